#!/usr/bin/env bash
# Installs what the tests need and is missing, builds everything and runs all
# tests. Needs root: for packages, for switching to the test users, for a
# daemon in system mode, and for kernel mounts to compare with.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tests/install.sh
cargo build --workspace --bins --locked
# Whole-system tests measure nothing, but each uses both cores: a few at once.
cargo test --workspace --locked -- --test-threads="${SCTL_TEST_THREADS:-4}"
