//! Endpoints: the host and port that a user writes.

use std::net::{IpAddr, SocketAddr};

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
}

impl Endpoint {
    /// Reads `host:port`, `1.2.3.4:port` or `[v6]:port`.
    pub(crate) fn parse(operation: Operation, text: &str) -> Result<Endpoint> {
        let problem = |problem: String| Error::new(operation, Cause::Address { problem }).at(text);
        if let Ok(address) = text.parse::<SocketAddr>() {
            let scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
            let host = if scoped { Host::Scoped(address) } else { Host::Ip(address.ip()) };
            return Ok(Endpoint { host, port: address.port() });
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(problem(String::from("the port is missing; write HOST:PORT")));
        };
        let port = port
            .parse::<u16>()
            .map_err(|_| problem(format!("`{port}` is not a port number (0 to 65535)")))?;
        if host.contains(':') || host.starts_with('[') {
            return Err(problem(format!("`{host}` is not an IPv6 address; write [ADDRESS]:PORT")));
        }
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || host.len() > 253 || !host.chars().all(is_name) {
            return Err(problem(format!("`{host}` is not a host name or an IP address")));
        }
        Ok(Endpoint { host: Host::Name(host.to_owned()), port })
    }

    /// The one address that this is, if it needs no resolving.
    pub(crate) fn literal(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Ip(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Scoped(address) => Some(address),
            Host::Name(_) => None,
        }
    }
}

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
    fn says_what_is_wrong_with_an_address() {
        let wrong = [
            ("localhost", "the port is missing"),
            ("localhost:http", "`http` is not a port number"),
            ("localhost:65536", "`65536` is not a port number"),
            ("::1:80", "`::1` is not an IPv6 address"),
            ("[::1:80", "`[::1` is not an IPv6 address"),
            (":80", "`` is not a host name"),
            ("a b:80", "`a b` is not a host name"),
        ];
        for (text, problem) in wrong {
            let message = parse(text).expect_err(text).to_string();
            assert!(message.starts_with(&format!("connect to {text}: ")), "{message}");
            assert!(message.contains(problem), "{message}");
        }
    }
}
