#!/usr/bin/env bash
# Builds sctl and runs its main job as an ordinary user: pull an image, convert
# it, run a program in it. The user's own daemon is started by the client.
# The image is made of programs of this host and served by a registry on
# loopback that ends with this script; name another one to try it instead:
#   tests/try.sh docker://alpine cat /etc/os-release
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked -p sctl -p sctld -p sctl-tests --bins
exec target/release/sctl-try "$@"
