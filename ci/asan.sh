#!/usr/bin/env bash
# AddressSanitizer: use after free, out of bounds, double free, and leaks at exit. Linux on x86-64.
# Stable Rust: the bootstrap variable admits the unstable flag, and nothing else uses it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address
test=(cargo test --workspace --lib --bins --tests --target x86_64-unknown-linux-gnu)
# No leaks can be looked for under ptrace, so not in what strace runs.
skip=(-- --skip faults:: --skip no_write_ever --skip an_accept_that --skip a_listener_that_breaks --skip a_thread_that_cannot)
"${test[@]}" "$@" "${skip[@]}"
# Once more with io_uring queues and buffers so few that they run out all the time; what waits then does allocate.
WHARF_RING_SIZES=8,16,16,4096 "${test[@]}" "$@" "${skip[@]}" --skip allocates_nothing
