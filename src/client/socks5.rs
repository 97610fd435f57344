//! The client's side of SOCKS5 (RFC 1928), with user name and password (RFC 1929). No socket: bytes in, bytes out.
//!
//! ```text
//!   greeting: methods           -->
//!                               <--  the method          (2 bytes)
//!   user name, password         -->                      (if it is that)
//!                               <--  status              (2 bytes)
//!   connect to name:port        -->
//!                               <--  reply, bound address (4 bytes, then as many as they say)
//! ```
//!
//! The proxy's answers say how long they are, so no byte of what comes behind them is ever read here.

use std::io::ErrorKind;
use std::net::IpAddr;

use super::proxy::{Credentials, Fault};
use crate::endpoint::{Endpoint, Host};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const PASSWORD: u8 = 2;
const NOTHING_ACCEPTABLE: u8 = 0xff;
const PASSWORD_VERSION: u8 = 1;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// The most bytes that are wanted at once: a bound name of 255 bytes, and the port.
pub(super) const WANTED_MAX: usize = 257;

/// A handshake with a SOCKS5 proxy.
pub(super) struct Socks5 {
    stage: Stage,
    request: Vec<u8>,
    password: Option<Vec<u8>>,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Stage {
    Method,
    Status,
    Reply,
    NameLength,
    /// The bound address, of so many bytes with its port.
    Bound(usize),
    Done,
}

impl Socks5 {
    /// A handshake that asks for `target`, and what to send first. The target is an IP address or a name, checked before.
    pub(super) fn new(target: &Endpoint, credentials: Option<&Credentials>) -> (Socks5, Vec<u8>) {
        let greeting = match credentials {
            None => vec![VERSION, 1, NO_AUTHENTICATION],
            Some(_) => vec![VERSION, 2, NO_AUTHENTICATION, PASSWORD],
        };
        let handshake = Socks5 {
            stage: Stage::Method,
            request: request(target),
            password: credentials.map(|Credentials { user, password }| {
                let mut message = vec![PASSWORD_VERSION, user.len() as u8];
                message.extend_from_slice(user.as_bytes());
                message.push(password.len() as u8);
                message.extend_from_slice(password.as_bytes());
                message
            }),
        };
        (handshake, greeting)
    }

    /// How many bytes come next; `None` when the proxy has connected, and everything that follows is the target's.
    pub(super) fn wants(&self) -> Option<usize> {
        match self.stage {
            Stage::Method | Stage::Status => Some(2),
            Stage::Reply => Some(4),
            Stage::NameLength => Some(1),
            Stage::Bound(bytes) => Some(bytes),
            Stage::Done => None,
        }
    }

    /// Takes as many bytes as are wanted. What it returns, which may be nothing, is to be sent.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Fault> {
        debug_assert_eq!(Some(bytes.len()), self.wants());
        match (self.stage, bytes) {
            (Stage::Method, &[VERSION, method]) => self.method(method),
            (Stage::Status, &[PASSWORD_VERSION, 0]) => {
                self.stage = Stage::Reply;
                Ok(std::mem::take(&mut self.request))
            }
            (Stage::Status, &[PASSWORD_VERSION, _]) => Err(Fault::new(
                ErrorKind::PermissionDenied,
                "the proxy refused the user name or the password",
            )),
            (Stage::Reply, &[VERSION, 0, _, kind]) => {
                self.stage = match kind {
                    IPV4 => Stage::Bound(4 + 2),
                    IPV6 => Stage::Bound(16 + 2),
                    NAME => Stage::NameLength,
                    _ => return Err(Fault::garbage("an address of an unassigned kind")),
                };
                Ok(Vec::new())
            }
            (Stage::Reply, &[VERSION, reply, ..]) => Err(refusal(reply)),
            (Stage::NameLength, &[length]) => {
                self.stage = Stage::Bound(usize::from(length) + 2);
                Ok(Vec::new())
            }
            // Where the proxy connects from is of no use here.
            (Stage::Bound(_), _) => {
                self.stage = Stage::Done;
                Ok(Vec::new())
            }
            _ => Err(Fault::garbage("an answer that is not of SOCKS5")),
        }
    }

    fn method(&mut self, method: u8) -> Result<Vec<u8>, Fault> {
        match (method, self.password.take()) {
            (NO_AUTHENTICATION, _) => {
                self.stage = Stage::Reply;
                Ok(std::mem::take(&mut self.request))
            }
            (PASSWORD, Some(password)) => {
                self.stage = Stage::Status;
                Ok(password)
            }
            (NOTHING_ACCEPTABLE, None) => Err(Fault::new(
                ErrorKind::PermissionDenied,
                "the proxy wants to know who we are; give it credentials",
            )),
            (NOTHING_ACCEPTABLE, Some(_)) => {
                let problem = "the proxy takes neither nobody nor user name and password";
                Err(Fault::new(ErrorKind::PermissionDenied, problem))
            }
            _ => Err(Fault::garbage("a method that it was not offered")),
        }
    }
}

/// Asks to be connected with `target`. A name goes as it is: the proxy looks it up.
fn request(target: &Endpoint) -> Vec<u8> {
    let mut request = vec![VERSION, CONNECT, 0];
    match &target.host {
        Host::Name(name) => {
            debug_assert!(name.len() <= 255, "an endpoint's name is short");
            request.extend([NAME, name.len() as u8]);
            request.extend_from_slice(name.as_bytes());
        }
        _ => match target.literal().map(|address| address.ip()) {
            Some(IpAddr::V4(ip)) => {
                request.push(IPV4);
                request.extend(ip.octets());
            }
            Some(IpAddr::V6(ip)) => {
                request.push(IPV6);
                request.extend(ip.octets());
            }
            None => debug_assert!(false, "a Unix socket is refused before"),
        },
    }
    request.extend(target.port.to_be_bytes());
    request
}

/// What the proxy says in the place of a connection (RFC 1928, section 6).
fn refusal(reply: u8) -> Fault {
    let (kind, what) = match reply {
        1 => (ErrorKind::Other, "general failure"),
        2 => (ErrorKind::PermissionDenied, "not allowed by its rules"),
        3 => (ErrorKind::NetworkUnreachable, "network unreachable"),
        4 => (ErrorKind::HostUnreachable, "host unreachable"),
        5 => (ErrorKind::ConnectionRefused, "connection refused"),
        6 => (ErrorKind::TimedOut, "time to live expired"),
        7 => (ErrorKind::Unsupported, "command not supported"),
        8 => (ErrorKind::Unsupported, "address type not supported"),
        other => {
            return Fault::new(ErrorKind::Other, format!("the proxy answered: unassigned reply {other}"));
        }
    };
    Fault::new(kind, format!("the proxy answered: {what}"))
}

/// Any bytes are a handshake or a fault; for the fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) fn check(mut data: &[u8]) {
    let target = Endpoint { host: Host::Name(String::from("example.test")), port: 80 };
    let credentials = Credentials { user: String::from("user"), password: String::from("secret") };
    let has_password = data.first().is_some_and(|first| first & 1 == 1);
    let (mut handshake, greeting) = Socks5::new(&target, has_password.then_some(&credentials));
    assert!(!greeting.is_empty());
    let (mut requests, mut steps) = (0, 0);
    while let Some(wanted) = handshake.wants() {
        assert!((1..=WANTED_MAX).contains(&wanted) && steps < 5);
        steps += 1;
        let Some((answer, rest)) = data.split_at_checked(wanted) else { return };
        data = rest;
        match handshake.receive(answer) {
            Ok(send) => requests += usize::from(send.starts_with(&[VERSION, CONNECT])),
            Err(_) => return,
        }
    }
    assert_eq!(requests, 1, "it was asked for the target, once");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Operation;

    fn target(text: &str) -> Endpoint {
        Endpoint::parse(Operation::Connect, text).expect("an address")
    }

    fn credentials() -> Credentials {
        Credentials { user: String::from("jo"), password: String::from("pw!") }
    }

    #[test]
    fn a_name_goes_to_the_proxy_as_it_is() {
        let (mut handshake, greeting) = Socks5::new(&target("a.test:258"), None);
        assert_eq!(greeting, [5, 1, 0]);
        assert_eq!(handshake.wants(), Some(2));
        assert_eq!(handshake.receive(&[5, 0]).unwrap(), b"\x05\x01\x00\x03\x06a.test\x01\x02");
        assert_eq!(handshake.wants(), Some(4));
        assert!(handshake.receive(&[5, 0, 0, 1]).unwrap().is_empty());
        assert_eq!(handshake.wants(), Some(6));
        assert!(handshake.receive(&[0; 6]).unwrap().is_empty());
        assert_eq!(handshake.wants(), None);
    }

    #[test]
    fn addresses_go_as_bytes_and_a_bound_name_is_skipped() {
        let (mut handshake, _) = Socks5::new(&target("192.0.2.7:80"), None);
        assert_eq!(handshake.receive(&[5, 0]).unwrap(), [5, 1, 0, 1, 192, 0, 2, 7, 0, 80]);
        assert!(handshake.receive(&[5, 0, 0, 3]).unwrap().is_empty());
        assert_eq!(handshake.wants(), Some(1));
        assert!(handshake.receive(&[255]).unwrap().is_empty());
        assert_eq!(handshake.wants(), Some(WANTED_MAX));
        let (mut handshake, _) = Socks5::new(&target("[2001:db8::7]:80"), None);
        let request = handshake.receive(&[5, 0]).unwrap();
        assert_eq!(request[..6], [5, 1, 0, 4, 0x20, 0x01]);
        assert_eq!(request[18..], [0, 7, 0, 80]);
    }

    #[test]
    fn a_proxy_that_wants_a_password_gets_it() {
        let (mut handshake, greeting) = Socks5::new(&target("a.test:80"), Some(&credentials()));
        assert_eq!(greeting, [5, 2, 0, 2]);
        assert_eq!(handshake.receive(&[5, 2]).unwrap(), b"\x01\x02jo\x03pw!");
        assert!(handshake.receive(&[1, 0]).unwrap().starts_with(&[5, 1, 0, 3]));
        // And one that wants none does not.
        let (mut handshake, _) = Socks5::new(&target("a.test:80"), Some(&credentials()));
        assert!(handshake.receive(&[5, 0]).unwrap().starts_with(&[5, 1, 0, 3]));
    }

    #[test]
    fn refusals_are_told_apart() {
        let refused = |credentials: Option<&Credentials>, answers: &[&[u8]]| {
            let (mut handshake, _) = Socks5::new(&target("a.test:80"), credentials);
            let (last, before) = answers.split_last().expect("there is one");
            before.iter().for_each(|answer| drop(handshake.receive(answer).expect("it goes on")));
            let fault = handshake.receive(last).expect_err("it refuses");
            (fault.kind, fault.problem)
        };
        for (reply, kind, words) in [
            (1, ErrorKind::Other, "general failure"),
            (2, ErrorKind::PermissionDenied, "not allowed"),
            (3, ErrorKind::NetworkUnreachable, "network unreachable"),
            (4, ErrorKind::HostUnreachable, "host unreachable"),
            (5, ErrorKind::ConnectionRefused, "connection refused"),
            (6, ErrorKind::TimedOut, "time to live"),
            (7, ErrorKind::Unsupported, "command"),
            (8, ErrorKind::Unsupported, "address type"),
            (99, ErrorKind::Other, "unassigned reply 99"),
        ] {
            let (told, problem) = refused(None, &[&[5, 0], &[5, reply, 0, 1]]);
            assert_eq!(told, kind);
            assert!(problem.contains(words), "{problem}");
        }
        let own = credentials();
        assert!(refused(None, &[&[5, 0xff]]).1.contains("give it credentials"));
        assert!(refused(Some(&own), &[&[5, 0xff]]).1.contains("takes neither"));
        assert!(refused(Some(&own), &[&[5, 2], &[1, 1]]).1.contains("refused the user name"));
        for garbage in [&[[4, 0].as_slice()][..], &[&[5, 2]], &[&[5, 0], b"HTTP"], &[&[5, 0], &[5, 0, 0, 2]]]
        {
            assert_eq!(refused(None, garbage).0, ErrorKind::InvalidData, "{garbage:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_handshake_or_a_fault(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            check(&data);
        }

        #[test]
        fn likely_bytes_are_a_handshake_or_a_fault(
            data in proptest::collection::vec(prop_oneof![Just(5), Just(0), Just(1), Just(2), Just(3), Just(4), any::<u8>()], 0..600),
        ) {
            check(&data);
        }
    }
}
