#!/usr/bin/env bash
# Runs every fuzz target for the given number of seconds (default 60). Needs cargo-fuzz (cargo install cargo-fuzz) and a
# C++ compiler; RUSTC_BOOTSTRAP lets a stable toolchain build with a sanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTC_BOOTSTRAP=1
for target in connection uring_driver address proxy client_proxy framing tls; do
    cargo fuzz run "$target" -- -max_total_time="${1:-60}" -max_len=4096
done
