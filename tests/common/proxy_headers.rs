//! PROXY headers, as proxies and those who only look like one send them.

use wharf::ProxyFault;

/// Version 1, for 192.0.2.7:40000 that has connected to 198.51.100.1:443.
pub(crate) const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";
/// The same ends in version 2.
pub(crate) const V2_ENDS: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0x9C, 0x40, 0x01, 0xBB];
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2 with these bytes for its command and family.
pub(crate) fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a short body").to_be_bytes();
    [V2_SIGNATURE, &[command, family], &length, body].concat()
}

/// What is no header, and what is wrong with it.
pub(crate) fn bad_headers() -> [(Vec<u8>, ProxyFault); 10] {
    [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), ProxyFault::Missing),
        (b"x".to_vec(), ProxyFault::Missing),
        (b"PROXY UDP4 ".to_vec(), ProxyFault::Family),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n".to_vec(), ProxyFault::Line),
        (b"PROXY TCP4 1.1.1.1 2.2.2.256 1 2\r\n".to_vec(), ProxyFault::Address),
        ([b"PROXY UNKNOWN ".as_slice(), &[b'x'; 107]].concat(), ProxyFault::TooLong),
        (v2(0x31, 0x11, &[0; 12]), ProxyFault::Version),
        (v2(0x22, 0x11, &[0; 12]), ProxyFault::Command),
        (v2(0x21, 0x11, &[0; 11]), ProxyFault::Length),
        (v2(0x21, 0x11, &[1; 14]), ProxyFault::Tlv),
    ]
}
