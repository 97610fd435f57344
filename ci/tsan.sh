#!/usr/bin/env bash
# ThreadSanitizer: data races. Linux on x86-64. In release only: the standard library is not
# instrumented, and in a debug build its locks are reported as races. The rest is suppressed by name.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export TSAN_OPTIONS="suppressions=$PWD/ci/tsan.suppressions ${TSAN_OPTIONS:-}"
RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" \
    cargo test --release --workspace --lib --bins --tests --target x86_64-unknown-linux-gnu "$@"
