//! Frames: any bytes are the same frames, or the same fault, wherever they are cut; and what was received can be sent again.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wharf::fuzzing::framing(data));
