#!/usr/bin/env bash
# AddressSanitizer: use after free, out of bounds, double free, and leaks at exit. Linux on x86-64.
# Stable Rust: the bootstrap variable admits the unstable flag, and nothing else uses it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address \
    cargo test --workspace --lib --bins --tests --target x86_64-unknown-linux-gnu "$@"
