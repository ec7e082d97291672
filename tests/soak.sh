#!/usr/bin/env bash
# Starts and kills containers, helpers and daemons many times over, then looks
# for anything left behind. Needs root, like the tests. Arguments: starts
# (default 10000) and kills among them (default 1000).
set -euo pipefail
cd "$(dirname "$0")/.."
bash tests/install.sh
cargo build --release --workspace --bins --locked
target/release/sctl-soak "$@"
