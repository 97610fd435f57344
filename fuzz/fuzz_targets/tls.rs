//! TLS: whatever a peer sends, before, in and after the handshake, sealed or not, is read, refused or awaited.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wharf::fuzzing::tls(data));
