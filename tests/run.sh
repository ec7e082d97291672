#!/usr/bin/env bash
# Installs what the tests need and is missing, builds everything and runs all
# tests. Needs root: for packages, for switching to the test users, for a
# daemon in system mode, and for kernel mounts to compare with.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tests/install.sh
cargo build --workspace --bins --locked
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Whole-system tests measure nothing, but each uses both cores: a few at once.
# What tests print is shown, for a test that finds something missing skips
# what it is about, and says so.
cargo test --workspace --locked -- --show-output --test-threads="${SCTL_TEST_THREADS:-4}" 2>&1 | tee "$log"
echo "== skipped =="
grep -h '^SKIPPED' "$log" | sort -u || echo "nothing"
