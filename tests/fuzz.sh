#!/usr/bin/env bash
# Fuzzes every parser of untrusted bytes, each for so many seconds (default
# 600). Needs cargo-fuzz: `cargo install cargo-fuzz`. The stable compiler is
# told to accept the sanitizer's options.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600}
export RUSTC_BOOTSTRAP=1
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
for folder in common/fuzz common/*/fuzz daemon/fuzz; do
    for target in $(cd "$folder" && cargo fuzz list); do
        echo "== $folder: $target for $seconds s =="
        (cd "$folder" && cargo fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=20)
    done
done
