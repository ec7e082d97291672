#!/usr/bin/env bash
# Runs the benchmarks: everything is built with optimisation, and every figure
# is a ratio of things measured in turns within this run. Needs root, like the
# tests, and a quiet machine. Arguments: names of benchmarks (pull, second,
# memory, exec, start, read); none means all.
set -euo pipefail
cd "$(dirname "$0")/../.."
bash tests/install.sh bench
cargo build --release --workspace --bins --locked
cargo bench --locked -p sctl-tests --bench bench -- "$@"
