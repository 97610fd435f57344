#!/usr/bin/env bash
# LeakSanitizer: memory that nothing points to at exit. Subset of asan.sh, at nearly full speed.
# Linux on x86-64.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=leak \
    cargo test --workspace --lib --bins --tests --target x86_64-unknown-linux-gnu "$@"
