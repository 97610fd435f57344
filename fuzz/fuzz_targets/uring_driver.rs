//! The io_uring engine between a scripted kernel and a worker that checks the engine's contract.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wharf::fuzzing::uring_driver(data));
