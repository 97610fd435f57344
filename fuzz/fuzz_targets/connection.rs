//! The connection core between a scripted engine and a scripted handler that check each other.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wharf::fuzzing::connection(data));
