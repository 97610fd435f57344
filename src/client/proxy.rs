//! Proxies that a client goes through: [`Proxy`], and how one is asked for the target.

use std::fmt;
use std::io::ErrorKind;

use super::http_connect::{self, Answer};
use super::socks5::{self, Socks5};
use crate::blocking;
use crate::connection::Connection;
use crate::endpoint::{Endpoint, Host};
use crate::error::{Cause, Error, Operation, Result};

/// The port of SOCKS proxies (RFC 1928, section 3).
const SOCKS_PORT: u16 = 1080;
/// What fits into the fields of RFC 1929.
const CREDENTIAL_MAX: usize = 255;
/// How much of an answer is read at a time.
const READ_SIZE: usize = 2048;

/// A proxy that connects a client to its target: SOCKS5 (RFC 1928), or HTTP with CONNECT (RFC 9110).
///
/// The target's name goes to the proxy, which looks it up, unless [`Proxy::resolve_here`] says otherwise. What it is printed as has no
/// password in it, and no user name.
///
/// ```
/// use wharf::Proxy;
///
/// let proxy = Proxy::socks5("proxy.internal:1080")?.credentials("user", "secret")?;
/// assert_eq!(proxy.to_string(), "socks5h://proxy.internal:1080");
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone)]
pub struct Proxy {
    protocol: Protocol,
    address: String,
    endpoint: Endpoint,
    credentials: Option<Credentials>,
    resolves_here: bool,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Protocol {
    Socks5,
    Http,
}

/// Who the client is to its proxy. Never printed.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

impl Proxy {
    /// A SOCKS5 proxy at `address`, which is what a [`Client`](crate::Client) takes.
    ///
    /// # Errors
    /// If the address cannot be read.
    pub fn socks5(address: impl fmt::Display) -> Result<Proxy> {
        Proxy::new(Protocol::Socks5, address.to_string())
    }

    /// An HTTP proxy at `address`, which is what a [`Client`](crate::Client) takes. The way to it is not encrypted.
    ///
    /// # Errors
    /// If the address cannot be read.
    pub fn http(address: impl fmt::Display) -> Result<Proxy> {
        Proxy::new(Protocol::Http, address.to_string())
    }

    fn new(protocol: Protocol, address: String) -> Result<Proxy> {
        let endpoint = Endpoint::parse(Operation::Connect, &address).map_err(|error| {
            Error::option("proxy", format!("is no proxy's address: {}", error.into_cause()))
        })?;
        Ok(Proxy { protocol, address, endpoint, credentials: None, resolves_here: false })
    }

    /// Has the target's name looked up on this side, by [`Client::resolver`](crate::Client::resolver) or the system; the proxy is asked for
    /// its first four addresses, on a connection each and one after the other, until it leads to one. Default: the proxy looks names up.
    ///
    /// That is for proxies that look nothing up, or know other names. With the default, hosts that only the proxy knows can be
    /// reached, and no name server on this side learns whom a program talks to.
    ///
    /// ```
    /// use wharf::Proxy;
    ///
    /// let proxy = Proxy::socks5("10.0.0.1:1080")?.resolve_here();
    /// assert_eq!(proxy.to_string(), "socks5://10.0.0.1:1080");
    /// # Ok::<(), wharf::Error>(())
    /// ```
    #[must_use]
    pub fn resolve_here(mut self) -> Proxy {
        self.resolves_here = true;
        self
    }

    /// Says who the client is: user name and password (RFC 1929), or Basic authentication (RFC 7617). Default: nobody.
    ///
    /// Both go over the way to the proxy as they are, for everybody there to read.
    ///
    /// # Errors
    /// If one is longer than 255 bytes, the user name is empty or (for HTTP) has a colon, or one has control characters; for SOCKS5 also
    /// if the password is empty.
    pub fn credentials(mut self, user: impl Into<String>, password: impl Into<String>) -> Result<Proxy> {
        let (user, password) = (user.into(), password.into());
        let is_bad = |text: &str| text.len() > CREDENTIAL_MAX || text.chars().any(char::is_control);
        if user.is_empty() || is_bad(&user) || is_bad(&password) {
            let problem = "needs a user name, and that and the password of at most 255 bytes, without control characters";
            return Err(Error::option("proxy", problem));
        }
        match self.protocol {
            Protocol::Socks5 if password.is_empty() => {
                return Err(Error::option("proxy", "needs a password: SOCKS5 has no empty ones"));
            }
            Protocol::Http if user.contains(':') => {
                return Err(Error::option(
                    "proxy",
                    "needs a user name without a colon: HTTP has none with one",
                ));
            }
            _ => {}
        }
        self.credentials = Some(Credentials { user, password });
        Ok(self)
    }

    /// Reads `socks5h://[user:password@]host[:port]`, `socks5://[user:password@]host[:port]` or `http://[user:password@]host:port`.
    ///
    /// As curl has it: with `socks5h` and `http` the proxy looks names up, with `socks5` this side does ([`Proxy::resolve_here`]). The port
    /// of SOCKS is 1080 unless it says another. User name and password may be percent-encoded.
    ///
    /// # Errors
    /// If it is none of these. The error does not repeat user name and password.
    ///
    /// ```
    /// use wharf::Proxy;
    ///
    /// assert_eq!(Proxy::parse("socks5h://user:pass%21@10.0.0.1")?.to_string(), "socks5h://10.0.0.1:1080");
    /// assert!(Proxy::parse("https://10.0.0.1:443").is_err());
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn parse(url: &str) -> Result<Proxy> {
        let forms =
            "must be socks5h://[USER:PASSWORD@]HOST[:PORT], socks5://... or http://[USER:PASSWORD@]HOST:PORT";
        let wrong = || Error::option("proxy", forms);
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user_info, address) = match rest.rsplit_once('@') {
            Some((user_info, address)) => (Some(user_info), address),
            None => (None, rest),
        };
        let socks5 = || match has_port(address) {
            true => Proxy::socks5(address),
            false => Proxy::socks5(format_args!("{address}:{SOCKS_PORT}")),
        };
        let proxy = match scheme.to_ascii_lowercase().as_str() {
            "socks5h" => socks5()?,
            "socks5" => socks5()?.resolve_here(),
            "http" => Proxy::http(address)?,
            _ => return Err(wrong()),
        };
        let Some(user_info) = user_info else { return Ok(proxy) };
        let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
        let decoded = |text| percent_decoded(text).ok_or_else(wrong);
        proxy.credentials(decoded(user)?, decoded(password)?)
    }

    /// Where the proxy is.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether this side looks the target's name up.
    pub(super) fn resolves_here(&self) -> bool {
        self.resolves_here
    }

    /// Refuses a target that cannot be asked for.
    pub(super) fn check(&self, target: &Endpoint) -> Result<()> {
        let problem = match &target.host {
            Host::Unix(_) => "leads to IP addresses and names, not to a Unix socket",
            Host::Scoped(_) => "cannot be told the scope of an IPv6 address",
            Host::Name(name) if !self.resolves_here && !name.is_ascii() => {
                "has to be told a name in ASCII; write it as xn--..."
            }
            _ => return Ok(()),
        };
        Err(Error::option("proxy", problem))
    }

    /// Has the proxy at the other end of `conn` lead it to the target.
    pub(super) async fn lead(&self, conn: &mut Connection, target: &Endpoint) -> Result<(), Cause> {
        let (mut talk, request) = self.ask(target)?;
        conn.send(&request).await.map_err(lost)?;
        let mut buf = [0; READ_SIZE];
        loop {
            let read = match talk.wants() {
                Wants::Nothing => return Ok(()),
                Wants::Exactly(n) => conn.recv_exact(&mut buf[..n]).await.map(|()| n),
                Wants::Anything => conn.recv(&mut buf).await,
            };
            let answer = &buf[..read.map_err(lost)?];
            let Heard { reply, behind } = talk.hear(answer)?;
            conn.link().conn.borrow_mut().unread_bytes(&answer[answer.len() - behind..]);
            if !reply.is_empty() {
                conn.send(&reply).await.map_err(lost)?;
            }
        }
    }

    /// The same in the blocking style.
    pub(super) fn lead_blocking(
        &self,
        conn: &mut blocking::Within<'_>,
        target: &Endpoint,
    ) -> Result<(), Cause> {
        let (mut talk, request) = self.ask(target)?;
        conn.send(&request).map_err(lost)?;
        let mut buf = [0; READ_SIZE];
        loop {
            let read = match talk.wants() {
                Wants::Nothing => return Ok(()),
                Wants::Exactly(n) => conn.recv_exact(&mut buf[..n]).map(|()| n),
                Wants::Anything => conn.recv(&mut buf),
            };
            let answer = &buf[..read.map_err(lost)?];
            let Heard { reply, behind } = talk.hear(answer)?;
            conn.put_back(&answer[answer.len() - behind..]);
            if !reply.is_empty() {
                conn.send(&reply).map_err(lost)?;
            }
        }
    }

    /// A talk with the proxy that asks for `target`, and what to say first.
    fn ask(&self, target: &Endpoint) -> Result<(Talk, Vec<u8>), Cause> {
        let credentials = self.credentials.as_ref();
        if self.protocol == Protocol::Socks5 {
            let (handshake, greeting) = Socks5::new(target, credentials);
            return Ok((Talk::Socks5(handshake), greeting));
        }
        let authority = match (&target.host, target.literal()) {
            (Host::Name(name), _) => format!("{name}:{}", target.port),
            (_, Some(address)) => address.to_string(),
            (_, None) => return Err(Cause::Misuse("a proxy was asked for a Unix socket")),
        };
        let request = http_connect::request(&authority, credentials);
        Ok((Talk::Http(Some(http_connect::Reader::default())), request))
    }
}

/// What is said between a client and its proxy, in either protocol. No socket: bytes in, bytes out.
enum Talk {
    Socks5(Socks5),
    /// Until there is a tunnel.
    Http(Option<http_connect::Reader>),
}

/// What a [`Talk`] has to hear next.
enum Wants {
    Exactly(usize),
    /// What comes, and not more than [`READ_SIZE`] of it at once.
    Anything,
    /// The proxy has connected.
    Nothing,
}

/// What follows from what was heard.
struct Heard {
    /// To be said, if it is anything.
    reply: Vec<u8>,
    /// So many of the bytes at the end are the target's.
    behind: usize,
}

const _: () = assert!(socks5::WANTED_MAX <= READ_SIZE);

impl Talk {
    fn wants(&self) -> Wants {
        match self {
            Talk::Socks5(handshake) => handshake.wants().map_or(Wants::Nothing, Wants::Exactly),
            Talk::Http(Some(_)) => Wants::Anything,
            Talk::Http(None) => Wants::Nothing,
        }
    }

    fn hear(&mut self, answer: &[u8]) -> Result<Heard, Cause> {
        let heard = |reply, behind| Ok(Heard { reply, behind });
        match self {
            _ if answer.is_empty() => Err(ended()),
            Talk::Socks5(handshake) => heard(handshake.receive(answer)?, 0),
            Talk::Http(reader) => match reader.as_mut().map(|reader| reader.receive(answer)).transpose()? {
                Some(Answer::More) => heard(Vec::new(), 0),
                Some(Answer::Tunnel { behind }) => {
                    *reader = None;
                    heard(Vec::new(), behind)
                }
                None => heard(Vec::new(), answer.len()),
            },
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            Protocol::Socks5 if self.resolves_here => "socks5",
            Protocol::Socks5 => "socks5h",
            Protocol::Http => "http",
        };
        write!(f, "{scheme}://{}", self.address)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// What a proxy did in the place of connecting us.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: ErrorKind,
    pub(super) problem: String,
}

impl Fault {
    pub(super) fn new(kind: ErrorKind, problem: impl Into<String>) -> Fault {
        Fault { kind, problem: problem.into() }
    }

    /// It does not speak its protocol.
    pub(super) fn garbage(what: &str) -> Fault {
        Fault::new(ErrorKind::InvalidData, format!("the proxy gave {what}"))
    }
}

impl From<Fault> for Cause {
    fn from(Fault { kind, problem }: Fault) -> Cause {
        Cause::Tunnel { kind, problem }
    }
}

/// The connection with the proxy is lost.
fn lost(error: Error) -> Cause {
    match error.into_cause() {
        Cause::Ended { .. } => ended(),
        Cause::Closed(reason) => super::way::refusal(reason),
        cause => cause,
    }
}

fn ended() -> Cause {
    Fault::new(ErrorKind::UnexpectedEof, "the proxy ended the connection before it had answered").into()
}

fn has_port(address: &str) -> bool {
    let behind_brackets = address.rsplit_once(']').map_or(address, |(_, behind)| behind);
    behind_brackets.contains(':')
}

/// `None` if it is not UTF-8, or a percent sign stands for nothing.
fn percent_decoded(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(url: &str) -> (String, Option<(String, String)>) {
        let proxy = Proxy::parse(url).expect(url);
        (proxy.to_string(), proxy.credentials.map(|own| (own.user, own.password)))
    }

    #[test]
    fn proxies_are_read_from_urls() {
        let own = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        for (url, told, credentials) in [
            ("socks5://10.0.0.1:1081", "socks5://10.0.0.1:1081", None),
            ("socks5h://proxy.test", "socks5h://proxy.test:1080", None),
            ("SOCKS5://[::1]", "socks5://[::1]:1080", None),
            ("socks5://[::1]:9/", "socks5://[::1]:9", None),
            ("http://u:p@proxy.test:3128/", "http://proxy.test:3128", own("u", "p")),
            ("http://u@proxy.test:3128", "http://proxy.test:3128", own("u", "")),
            ("socks5://a%40b:p%3a@:%C3%A9@h:1", "socks5://h:1", own("a@b", "p:@:é")),
        ] {
            assert_eq!(parts(url), (told.to_owned(), credentials), "{url}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_telling_the_password() {
        for url in [
            "10.0.0.1:1080",
            "https://user:secret@h:1",
            "http://user:secret@h",
            "socks5://user:secret@",
            "socks5://user@h:1",
            "socks5://user:secret%@h:1",
            "socks5://user:secret%ff@h:1",
            "socks5://user:secret@h:port",
            "http://:secret@h:1",
            "http://us%3Aer:secret@h:1",
            "http://user:secret%0a@h:1",
        ] {
            let message = Proxy::parse(url).expect_err(url).to_string();
            assert!(message.contains("option `proxy` "), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
        let long = "x".repeat(256);
        assert!(Proxy::socks5("h:1").unwrap().credentials("user", long).is_err());
    }

    #[test]
    fn nothing_that_is_printed_of_a_proxy_is_secret() {
        let client =
            crate::Client::new("a.test:80").proxy(Proxy::parse("http://user:secret@h:1").expect("it is one"));
        let printed = format!("{client:?}");
        assert!(printed.contains("http://h:1") && !printed.contains("secret") && !printed.contains("user:"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_proxy_or_none(text in ".{0,60}") {
            let _ = Proxy::parse(&text);
            let _ = Proxy::parse(&format!("socks5://{text}"));
        }
    }
}
