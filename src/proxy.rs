//! The PROXY protocol's header, read from bytes as they come, and what it tells: [`Proxied`]. Knows no socket and no time.
//!
//! The protocol is HAProxy's `doc/proxy-protocol.txt` ("the specification" here). What a header's addresses are, a library
//! decodes. Here stands what it leaves open: whether a beginning can still become a header, how long a header may be, and
//! what has no meaning on a stream.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use proxy_header::{ParseConfig, ProxyHeader};

use crate::address::{Address, UnixName};
use crate::error::ProxyFault;

/// What a proxy tells of a connection that it has passed on (the PROXY protocol, version 1 or 2).
///
/// What it tells is as true as the proxy is to be trusted, and nothing is asked of any other: see
/// [`ProxyProtocol`](crate::ProxyProtocol).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxied {
    proxy: Address,
    header: Header,
}

impl Proxied {
    pub(crate) fn new(proxy: Address, header: Header) -> Proxied {
        Proxied { proxy, header }
    }

    /// The address of the proxy itself, at the other end of the socket.
    pub fn proxy(&self) -> &Address {
        &self.proxy
    }

    /// The address that the connection to the proxy came from. `None` if the proxy speaks for itself, say to check whether
    /// the server lives (LOCAL), or does not know (UNKNOWN, AF_UNSPEC).
    pub fn source(&self) -> Option<&Address> {
        self.header.ends.as_ref().map(|(source, _)| source)
    }

    /// The address that the connection to the proxy went to; `None` if [`Proxied::source`] is.
    pub fn destination(&self) -> Option<&Address> {
        self.header.ends.as_ref().map(|(_, destination)| destination)
    }

    /// The version of the protocol: 1 or 2.
    pub fn version(&self) -> u8 {
        self.header.version
    }

    /// What else a proxy of version 2 told: each a type and its bytes (the specification, 2.2).
    ///
    /// They are as they came. The checksum that is one of them (PP2_TYPE_CRC32C) was not verified.
    pub fn tlvs(&self) -> impl Iterator<Item = (u8, &[u8])> {
        Tlvs(&self.header.tlvs).flatten()
    }

    /// The bytes of the first of them that has this type, for example 2 for the host name that the client asked for
    /// (PP2_TYPE_AUTHORITY).
    pub fn tlv(&self, kind: u8) -> Option<&[u8]> {
        self.tlvs().find_map(|(each, value)| (each == kind).then_some(value))
    }
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    version: u8,
    /// Source and destination.
    ends: Option<(Address, Address)>,
    /// Whole ones, one behind the other.
    tlvs: Box<[u8]>,
}

/// The specification's: with the line's end, "the worst case".
const V1_MAX: usize = 107;
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Up to the length, which counts what follows.
const V2_FIXED: usize = 16;
/// What may follow. The largest addresses take 216 bytes, so that there is room for a client's certificate; the length field
/// could ask for 64 KiB.
const V2_MAX: usize = 2048;
/// Of a path or an abstract name in version 2 (sockaddr_un).
const UNIX_PATH: usize = 108;

/// Reads the header that `bytes` begin with; also tells how many of them it takes. `None` as long as they are the
/// beginning of one, and a fault from the first byte on with which they no longer can be.
///
/// Only an address of version 1 is looked at when its line is whole, 107 bytes after the beginning at the latest.
pub(crate) fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyFault> {
    match bytes.first() {
        None => Ok(None),
        Some(b'P') => read_v1(bytes),
        Some(_) => read_v2(bytes),
    }
}

fn read_v1(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyFault> {
    let Some(bytes_left) = behind(bytes, b"PROXY ").ok_or(ProxyFault::Missing)? else { return Ok(None) };
    let protocols: [&[u8]; 3] = [b"TCP4 ", b"TCP6 ", b"UNKNOWN"];
    let found = protocols.into_iter().find_map(|protocol| Some((protocol, behind(bytes_left, protocol)?)));
    let (protocol, Some(fields)) = found.ok_or(ProxyFault::Family)? else { return Ok(None) };
    let end = fields.iter().position(|byte| *byte == b'\r');
    let fields = &fields[..end.unwrap_or(fields.len())];
    check_fields(protocol, fields, end.is_some())?;
    let len = bytes.len() - bytes_left.len() + protocol.len() + fields.len() + 2;
    if len > V1_MAX {
        return Err(ProxyFault::TooLong);
    }
    match bytes.get(len - 2..len) {
        Some(b"\r\n") => {}
        Some(_) => return Err(ProxyFault::Line),
        None => return Ok(None),
    }
    let ends = decode(&bytes[..len]).ok_or(ProxyFault::Address)?;
    Ok(Some((Header { version: 1, ends, tlvs: Box::default() }, len)))
}

/// Looks at what stands behind the protocol, as far as it has come.
fn check_fields(protocol: &[u8], fields: &[u8], is_whole: bool) -> Result<(), ProxyFault> {
    let legal: fn(&u8) -> bool = match protocol {
        b"TCP4 " => |byte| matches!(byte, b'0'..=b'9' | b'.' | b' '),
        b"TCP6 " => |byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.' | b' '),
        // What follows is to be ignored.
        _ if fields.first().is_none_or(|byte| *byte == b' ') => return Ok(()),
        _ => return Err(ProxyFault::Line),
    };
    let each = fields.split(|byte| *byte == b' ');
    if !fields.iter().all(legal) || each.clone().count() > 4 || (is_whole && each.clone().count() < 4) {
        return Err(ProxyFault::Line);
    }
    // "Heading zeroes are not permitted"; in the addresses, of which what has come may look like a number, the library sees to that.
    let is_port =
        |field: &[u8]| field.iter().all(u8::is_ascii_digit) && !(field.len() > 1 && field[0] == b'0');
    if !each.skip(2).all(is_port) {
        return Err(ProxyFault::Address);
    }
    Ok(())
}

fn read_v2(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProxyFault> {
    let Some(fixed) = behind(bytes, V2_SIGNATURE).ok_or(ProxyFault::Missing)? else { return Ok(None) };
    let Some(&version_and_command) = fixed.first() else { return Ok(None) };
    if version_and_command >> 4 != 2 {
        return Err(ProxyFault::Version);
    }
    let is_local = match version_and_command & 0xF {
        0 => true,
        1 => false,
        _ => return Err(ProxyFault::Command),
    };
    let Some(&family) = fixed.get(1) else { return Ok(None) };
    let addresses = match family {
        // Whatever a LOCAL header has behind its length is to be discarded, "including the family".
        _ if is_local => 0,
        0x00 => 0,
        0x11 => 12,
        0x21 => 36,
        0x31 => 2 * UNIX_PATH,
        _ => return Err(ProxyFault::Family),
    };
    let Some(&[high, low]) = fixed.get(2..4) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length < addresses {
        return Err(ProxyFault::Length);
    }
    if length > V2_MAX {
        return Err(ProxyFault::TooLong);
    }
    let len = V2_FIXED + length;
    let Some(body) = bytes.get(V2_FIXED..len) else { return Ok(None) };
    if is_local {
        return Ok(Some((Header { version: 2, ends: None, tlvs: Box::default() }, len)));
    }
    let ends = match family {
        0x31 => Some((unix(&body[..UNIX_PATH]), unix(&body[UNIX_PATH..addresses]))),
        _ => decode(&bytes[..len]).ok_or(ProxyFault::Address)?,
    };
    let tlvs = &body[addresses..];
    if Tlvs(tlvs).any(|tlv| tlv.is_none()) {
        return Err(ProxyFault::Tlv);
    }
    Ok(Some((Header { version: 2, ends, tlvs: tlvs.into() }, len)))
}

/// What follows `expected`, if `bytes` are as long; the outer `None` if they are something else.
fn behind<'a>(bytes: &'a [u8], expected: &[u8]) -> Option<Option<&'a [u8]>> {
    let common = bytes.len().min(expected.len());
    (bytes[..common] == expected[..common]).then(|| bytes.get(expected.len()..))
}

/// The two ends of a header that is whole; the outer `None` if the library finds a fault in it.
fn decode(header: &[u8]) -> Option<Option<(Address, Address)>> {
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    let (decoded, len) = ProxyHeader::parse(header, config).ok()?;
    debug_assert_eq!(len, header.len(), "both agree on where it ends");
    let ends = decoded.proxied_address();
    Some(ends.map(|ends| (Address::canonical(ends.source), Address::canonical(ends.destination))))
}

/// A Unix socket's name in a field of fixed size: up to the first zero, or behind it if it is an abstract one (unix(7)).
fn unix(field: &[u8]) -> Address {
    let until_zeros = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    Address::Unix(match field.split_first() {
        Some((0, name)) => match until_zeros(name) {
            0 => UnixName::unnamed(),
            end => UnixName::of_abstract(&name[..end]),
        },
        _ => {
            let path = field.split(|byte| *byte == 0).next().unwrap_or_default();
            UnixName::of_path(Path::new(OsStr::from_bytes(path)))
        }
    })
}

/// Each a type, the length of its value in two bytes, and the value; `None` last, if that reaches over the end.
struct Tlvs<'a>(&'a [u8]);

impl<'a> Iterator for Tlvs<'a> {
    type Item = Option<(u8, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let &[kind, high, low, ..] = rest else { return Some(None) };
        let end = 3 + usize::from(u16::from_be_bytes([high, low]));
        let Some(value) = rest.get(3..end) else { return Some(None) };
        self.0 = &rest[end..];
        Some(Some((kind, value)))
    }
}

/// What the fuzz target checks: a header reads the same however the bytes are split, and a fault stays one.
#[cfg(any(test, fuzzing))]
pub(crate) fn check(bytes: &[u8]) {
    let whole = read(bytes);
    for split in 0..bytes.len().min(V2_FIXED + V2_MAX) {
        match read(&bytes[..split]) {
            Ok(None) => {}
            Ok(header) => assert_eq!(Ok(header), whole, "decided at {split}"),
            Err(_) => assert!(whole.is_err(), "refused at {split}"),
        }
    }
    if let Ok(Some((header, len))) = whole {
        assert!((15..=V2_FIXED + V2_MAX).contains(&len) && len <= bytes.len());
        let proxied = Proxied::new(Address::Unix(UnixName::unnamed()), header);
        assert_eq!(
            proxied.tlvs().map(|(_, value)| 3 + value.len()).sum::<usize>(),
            proxied.header.tlvs.len()
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).expect("a short body").to_be_bytes();
        [V2_SIGNATURE.as_slice(), &[command, family], &length, body].concat()
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).expect("a short value").to_be_bytes();
        [&[kind], length.as_slice(), value].concat()
    }

    #[test]
    fn the_beginning_of_an_address_is_no_number_with_heading_zeros() {
        let header = b"PROXY TCP6 0064:ff9b::1 2001:db8::1 40000 443\r\n";
        check(header);
        assert!(read(header).expect("in order").is_some());
        check(b"PROXY TCP6 016666A666666");
        check(b"PROXY TCP6   01182454 5e24");
        check(b"PROXY TCP6   01182454 15e24");
        assert_eq!(read(b"PROXY TCP4 192.0.2.7 198.51.100.1 040"), Err(ProxyFault::Address));
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x9C, 0x40, 0x01, 0xBB];

    fn v6() -> Vec<u8> {
        let mut body = vec![0; 36];
        (body[0], body[1], body[15]) = (0x20, 0x01, 7);
        (body[31], body[33], body[35]) = (1, 80, 81);
        body
    }

    fn unix_body(source: &[u8], destination: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 216];
        body[..source.len()].copy_from_slice(source);
        body[108..108 + destination.len()].copy_from_slice(destination);
        body
    }

    type Ends = Option<(String, String)>;

    /// Valid headers, and their ends as text.
    fn valid() -> Vec<(Vec<u8>, Ends)> {
        let ends = |source: &str, destination: &str| Some((source.to_owned(), destination.to_owned()));
        let worst = format!("PROXY UNKNOWN {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
        assert_eq!(worst.len(), V1_MAX);
        let v4 = ends("192.0.2.7:40000", "198.51.100.1:443");
        let long = format!("unix:{}", "x".repeat(UNIX_PATH));
        vec![
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n".to_vec(), v4.clone()),
            (
                b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n".to_vec(),
                ends("0.0.0.0:0", "255.255.255.255:65535"),
            ),
            (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n".to_vec(), ends("[2001:db8::7]:1", "[::1]:2")),
            (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n".to_vec(), ends("192.0.2.7:1", "[::1]:2")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN what ever \xFF\r\n".to_vec(), None),
            (worst.into_bytes(), None),
            (v2(0x21, 0x11, &V4), v4.clone()),
            (v2(0x21, 0x11, &[V4.as_slice(), &tlv(2, b"a.example"), &tlv(4, b"")].concat()), v4),
            (v2(0x21, 0x21, &v6()), ends("[2001::7]:80", "[::1]:81")),
            (v2(0x21, 0x31, &unix_body(b"/run/a", b"\0abstract")), ends("unix:/run/a", "unix:@abstract")),
            (v2(0x21, 0x31, &unix_body(b"", &[b'x'; 108])), ends("unix:", &long)),
            (v2(0x21, 0x00, b""), None),
            (v2(0x21, 0x00, &tlv(5, b"id")), None),
            (v2(0x20, 0x00, b""), None),
            (v2(0x20, 0x11, b"discarded"), None),
            (v2(0x20, 0xFF, &[0; V2_MAX]), None),
        ]
    }

    #[test]
    fn a_header_is_read_when_it_is_whole_and_not_before() {
        for (bytes, ends) in valid() {
            let text = bytes.escape_ascii().to_string();
            for split in 0..bytes.len() {
                assert_eq!(read(&bytes[..split]), Ok(None), "{text} up to {split}");
            }
            let behind = [bytes.as_slice(), b"PROXY and what follows"].concat();
            for bytes_and_more in [&bytes, &behind] {
                let (header, len) = read(bytes_and_more).expect(&text).expect(&text);
                assert_eq!(len, bytes.len(), "{text}");
                let told =
                    header.ends.map(|(source, destination)| (source.to_string(), destination.to_string()));
                assert_eq!(told, ends, "{text}");
                assert_eq!(header.version, if bytes[0] == b'P' { 1 } else { 2 });
            }
        }
    }

    #[test]
    fn what_version_2_tells_beside_the_addresses_is_there() {
        let bytes = v2(0x21, 0x11, &[V4.as_slice(), &tlv(2, b"a.example"), &tlv(4, b"")].concat());
        let (header, _) = read(&bytes).expect("valid").expect("whole");
        let proxied = Proxied::new(Address::Unix(UnixName::unnamed()), header);
        assert_eq!(proxied.tlvs().collect::<Vec<_>>(), [(2, b"a.example".as_slice()), (4, b"")]);
        assert_eq!(
            (proxied.tlv(2), proxied.tlv(4), proxied.tlv(1)),
            (Some(b"a.example".as_slice()), Some(&[][..]), None)
        );
    }

    /// Malformed beginnings, each with the byte behind which that is certain.
    #[test]
    fn a_malformed_header_is_refused_at_the_first_byte_that_shows_it() {
        let too_long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
        let endless_v4 = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
        let lying_tlv = [V4.as_slice(), &[2, 0, 9], b"8 bytes."].concat();
        let stub_tlv = [V4.as_slice(), &[2, 0]].concat();
        for (bytes, fault, at) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), ProxyFault::Missing, 1),
            (b"\x16\x03\x01".to_vec(), ProxyFault::Missing, 1),
            (b"POST / HTTP/1.1\r\n".to_vec(), ProxyFault::Missing, 2),
            (b"\r\n\r\nhello".to_vec(), ProxyFault::Missing, 5),
            (b"PROXYTCP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), ProxyFault::Missing, 6),
            (b"proxy UNKNOWN\r\n".to_vec(), ProxyFault::Missing, 1),
            (b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), ProxyFault::Family, 8),
            (b"PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), ProxyFault::Family, 10),
            (b"PROXY UNKNOWNS\r\n".to_vec(), ProxyFault::Line, 14),
            (b"PROXY UNKNOWN\rx".to_vec(), ProxyFault::Line, 15),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n".to_vec(), ProxyFault::Line, 31),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\r\n".to_vec(), ProxyFault::Line, 32),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n".to_vec(), ProxyFault::Line, 31),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n".to_vec(), ProxyFault::Line, 29),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n".to_vec(), ProxyFault::Line, 28),
            (b"PROXY TCP4 ::1 2.2.2.2 1 2\r\n".to_vec(), ProxyFault::Line, 12),
            (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n".to_vec(), ProxyFault::Line, 19),
            (b"PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n".to_vec(), ProxyFault::Address, 34),
            (b"PROXY TCP4 1.1.1.01 2.2.2.2 1 2\r\n".to_vec(), ProxyFault::Address, 33),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n".to_vec(), ProxyFault::Address, 29),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n".to_vec(), ProxyFault::Address, 36),
            (b"PROXY TCP4 1.1.1.1  1 2\r\n".to_vec(), ProxyFault::Address, 25),
            (b"PROXY TCP6 1.1.1.1 ::1 1 2\r\n".to_vec(), ProxyFault::Address, 28),
            (too_long, ProxyFault::TooLong, 106),
            (endless_v4, ProxyFault::TooLong, 106),
            (v2(0x11, 0x11, &V4), ProxyFault::Version, 13),
            (v2(0x31, 0x11, &V4), ProxyFault::Version, 13),
            (v2(0x22, 0x11, &V4), ProxyFault::Command, 13),
            (v2(0x2F, 0x11, &V4), ProxyFault::Command, 13),
            (v2(0x21, 0x10, &V4), ProxyFault::Family, 14),
            (v2(0x21, 0x12, &V4), ProxyFault::Family, 14),
            (v2(0x21, 0x13, &V4), ProxyFault::Family, 14),
            (v2(0x21, 0x22, &v6()), ProxyFault::Family, 14),
            (v2(0x21, 0x41, &V4), ProxyFault::Family, 14),
            (v2(0x21, 0x11, &V4[..11]), ProxyFault::Length, 16),
            (v2(0x21, 0x21, &v6()[..35]), ProxyFault::Length, 16),
            (v2(0x21, 0x31, &[0; 215]), ProxyFault::Length, 16),
            (v2(0x21, 0x11, &[0; V2_MAX + 1]), ProxyFault::TooLong, 16),
            (v2(0x20, 0x00, &[0; V2_MAX + 1]), ProxyFault::TooLong, 16),
            (v2(0x21, 0x11, &lying_tlv), ProxyFault::Tlv, 16 + lying_tlv.len()),
            (v2(0x21, 0x11, &stub_tlv), ProxyFault::Tlv, 16 + stub_tlv.len()),
        ] {
            let text = bytes.escape_ascii().to_string();
            assert_eq!(read(&bytes[..at - 1]), Ok(None), "{text} before {at}");
            assert_eq!(read(&bytes[..at]), Err(fault), "{text} at {at}");
            assert_eq!(read(&bytes), Err(fault), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_no_panic_and_no_header_that_depends_on_the_split(
            which in 0..valid().len(),
            flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..4),
        ) {
            let (mut bytes, _) = valid().swap_remove(which);
            for (at, bit) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= 1_u8 << bit;
            }
            check(&bytes);
        }

        #[test]
        fn any_bytes_are_a_header_a_beginning_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            check(&bytes);
            check(&[V2_SIGNATURE.as_slice(), &bytes].concat());
            check(&[b"PROXY ".as_slice(), &bytes].concat());
        }
    }
}
