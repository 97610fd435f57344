//! PROXY headers: any bytes are a header, the beginning of one, or a fault, wherever they are split.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wharf::fuzzing::proxy(data));
