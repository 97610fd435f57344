//! Addresses as users write them: any text is an address or a clear error, never a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| wharf::fuzzing::address(text));
