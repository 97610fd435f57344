//! Endpoints: the host and port that a user writes, or the name of a Unix socket.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::Path;

use crate::address::UnixName;
use crate::error::{Cause, Error, Operation, Result};

/// A host and a port, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Ip(IpAddr),
    Name(String),
    /// An address with a scope, which only a whole socket address can carry.
    Scoped(SocketAddr),
    /// A Unix socket, which has no port.
    Unix(UnixName),
}

impl Endpoint {
    /// Reads `host:port`, `1.2.3.4:port`, `[v6]:port`, `[v6%scope]:port`, `unix:/path` or `unix:@name`.
    pub(crate) fn parse(operation: Operation, text: &str) -> Result<Endpoint> {
        let endpoint = Endpoint::read(operation, text)?;
        // The kernel would say that it is refused, as if a server might come.
        let is_port_missing = endpoint.port == 0 && !matches!(endpoint.host, Host::Unix(_));
        if operation == Operation::Connect && is_port_missing {
            let problem = String::from("nobody listens at port 0; it is what listeners write for a free one");
            return Err(Error::new(operation, Cause::Address { problem }).at(text));
        }
        Ok(endpoint)
    }

    fn read(operation: Operation, text: &str) -> Result<Endpoint> {
        let problem = |problem: String| Error::new(operation, Cause::Address { problem }).at(text);
        if let Ok(address) = text.parse::<SocketAddr>() {
            let scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
            let host = if scoped { Host::Scoped(address) } else { Host::Ip(address.ip()) };
            return Ok(Endpoint { host, port: address.port() });
        }
        if let Some(name) = text.strip_prefix("unix:") {
            let name = unix_name(name).map_err(problem)?;
            return Ok(Endpoint { host: Host::Unix(name), port: 0 });
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(problem(String::from("the port is missing; write HOST:PORT")));
        };
        let port = port
            .parse::<u16>()
            .map_err(|_| problem(format!("`{port}` is not a port number (0 to 65535)")))?;
        if let Some(scoped) = scoped(host, port) {
            return Ok(Endpoint { host: Host::Scoped(scoped.map_err(problem)?), port });
        }
        if host.contains(':') || host.starts_with('[') {
            return Err(problem(format!("`{host}` is not an IPv6 address; write [ADDRESS]:PORT")));
        }
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || host.len() > 253 || !host.chars().all(is_name) {
            return Err(problem(format!("`{host}` is not a host name or an IP address")));
        }
        Ok(Endpoint { host: Host::Name(host.to_owned()), port })
    }

    /// What a certificate of a server here has to be for: a name, or an address; `None` for a Unix socket.
    #[cfg(feature = "tls")]
    pub(crate) fn server_name(&self) -> Option<String> {
        match &self.host {
            Host::Ip(ip) => Some(ip.to_string()),
            Host::Scoped(address) => Some(address.ip().to_string()),
            Host::Name(name) => Some(name.trim_end_matches('.').to_owned()),
            Host::Unix(_) => None,
        }
    }

    /// The one IP address that this is, if it needs no resolving.
    pub(crate) fn literal(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Scoped(address) => Some(address),
            Host::Name(_) | Host::Unix(_) => None,
        }
    }
}

/// Reads a local address for a client: `1.2.3.4`, `::1` or `fe80::1%eth0` for a port that the system picks, or any of them with a port.
pub(crate) fn local(text: &str) -> Result<SocketAddr> {
    let with_port = text.parse::<SocketAddr>().ok().or_else(|| {
        let ip = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let whole = if ip.contains(':') { format!("[{ip}]:0") } else { format!("{ip}:0") };
        let endpoint = |text: &str| Endpoint::read(Operation::Connect, text).ok()?.literal();
        endpoint(text).or_else(|| endpoint(&whole))
    });
    with_port.ok_or_else(|| {
        Error::option(
            "bind",
            format!("is `{text}`; it must be ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT, of this machine"),
        )
    })
}

/// Reads `[ADDRESS%SCOPE]` where the scope is the name of a network device; `None` if it is nothing of the kind.
fn scoped(host: &str, port: u16) -> Option<Result<SocketAddr, String>> {
    let (address, device) = host.strip_prefix('[')?.strip_suffix(']')?.split_once('%')?;
    let address = address.parse().ok()?;
    let scope = device_index(device).ok_or_else(|| format!("there is no network device `{device}`"));
    Some(scope.map(|scope| SocketAddr::from(SocketAddrV6::new(address, port, 0, scope))))
}

#[cfg(target_os = "linux")]
fn device_index(name: &str) -> Option<u32> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None).ok()?;
    rustix::net::netdevice::name_to_index(&socket, name).ok()
}

#[cfg(not(target_os = "linux"))]
fn device_index(_: &str) -> Option<u32> {
    None
}

/// Reads what comes behind `unix:`.
fn unix_name(text: &str) -> Result<UnixName, String> {
    let (kind, name) = match text.strip_prefix('@') {
        Some(name) => ("name", name),
        None => ("path", text),
    };
    if name.is_empty() {
        return Err(format!("the {kind} is missing; write unix:/PATH or unix:@NAME"));
    }
    if name.contains('\0') {
        return Err(format!("the {kind} must not contain NUL"));
    }
    if name.len() > UNIX_NAME_MAX {
        return Err(format!("the {kind} is {} bytes long; {UNIX_NAME_MAX} is the most", name.len()));
    }
    Ok(if kind == "path" {
        UnixName::of_path(Path::new(name))
    } else {
        UnixName::of_abstract(name.as_bytes())
    })
}

/// What `sun_path` has room for, beside the NUL behind a path or before an abstract name (unix(7)).
const UNIX_NAME_MAX: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Endpoint> {
        Endpoint::parse(Operation::Connect, text)
    }

    #[test]
    fn reads_names_and_addresses_with_ports() {
        assert_eq!(parse("127.0.0.1:80").unwrap().literal(), Some("127.0.0.1:80".parse().unwrap()));
        assert_eq!(parse("[::1]:80").unwrap().literal(), Some("[::1]:80".parse().unwrap()));
        let named = parse("example.test:7788").unwrap();
        assert_eq!((named.host, named.port), (Host::Name(String::from("example.test")), 7788));
    }

    #[test]
    fn a_scope_is_a_number_or_on_linux_a_device() {
        let scope = |text: &str| match parse(text).expect(text).literal() {
            Some(SocketAddr::V6(address)) => address.scope_id(),
            other => panic!("{other:?}"),
        };
        assert_eq!(scope("[fe80::1%7]:80"), 7);
        let message = parse("[fe80::1%no-such0]:80").unwrap_err().to_string();
        assert!(message.ends_with("there is no network device `no-such0`"), "{message}");
        if cfg!(target_os = "linux") {
            assert_eq!(scope("[fe80::1%lo]:80"), 1, "it is the first in every network namespace");
        }
    }

    #[test]
    fn a_local_address_has_a_port_or_none() {
        for (text, address) in [
            ("127.0.0.1", "127.0.0.1:0"),
            ("0.0.0.0:5000", "0.0.0.0:5000"),
            ("::1", "[::1]:0"),
            ("[::1]", "[::1]:0"),
            ("[::1]:5000", "[::1]:5000"),
            ("fe80::1%3", "[fe80::1%3]:0"),
        ] {
            assert_eq!(local(text).expect(text), address.parse().expect("an address"), "{text}");
        }
        for text in ["", "localhost", "localhost:80", "127.0.0.1:", "unix:/a", "1.2.3.4:70000", "[::1"] {
            let message = local(text).expect_err(text).to_string();
            assert!(message.starts_with("start: option `bind` is `"), "{message}");
        }
    }

    #[test]
    fn reads_the_names_of_unix_sockets() {
        let longest = format!("unix:{}", "p".repeat(UNIX_NAME_MAX));
        for text in ["unix:/run/wharf.sock", "unix:relative.sock", "unix:@name", "unix:/a:80", &longest] {
            let endpoint = parse(text).unwrap();
            assert_eq!(endpoint.literal(), None);
            let Host::Unix(name) = endpoint.host else { panic!("{text}") };
            assert_eq!(name.to_string(), text, "it is told as it was written");
        }
    }

    #[test]
    fn says_what_is_wrong_with_an_address() {
        let wrong = [
            ("localhost", "the port is missing"),
            ("localhost:http", "`http` is not a port number"),
            ("localhost:65536", "`65536` is not a port number"),
            ("localhost:0", "nobody listens at port 0"),
            ("[::1]:0", "nobody listens at port 0"),
            ("::1:80", "`::1` is not an IPv6 address"),
            ("[::1:80", "`[::1` is not an IPv6 address"),
            (":80", "`` is not a host name"),
            ("a b:80", "`a b` is not a host name"),
            ("unix:", "the path is missing; write unix:/PATH or unix:@NAME"),
            ("unix:@", "the name is missing"),
            ("unix:/a\0b", "the path must not contain NUL"),
            ("unix:@\0", "the name must not contain NUL"),
            (&format!("unix:{}", "p".repeat(UNIX_NAME_MAX + 1)), "the path is "),
            (&format!("unix:@{}", "ä".repeat(60)), "the name is 120 bytes long"),
        ];
        for (text, problem) in wrong {
            let message = parse(text).expect_err(text).to_string();
            assert!(message.starts_with(&format!("connect to {text}: ")), "{message}");
            assert!(message.contains(problem), "{message}");
        }
    }
}
