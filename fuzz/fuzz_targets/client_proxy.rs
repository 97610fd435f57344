//! Answers of a client's proxy, SOCKS5 and HTTP: any bytes are an answer, the beginning of one, or a fault, wherever they are split.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wharf::fuzzing::client_proxy(data));
