//! Addresses: what a user writes, what it resolves to, and the sockets made for it.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::config::SocketOptions;
use crate::error::{Cause, Error, Operation, Result};

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// More addresses than this of one name are not tried.
pub(crate) const ADDRESSES_MAX: usize = 16;

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

/// Asks the operating system for the addresses of a name. Blocks for as long as it likes: never call it on a worker.
pub(crate) fn resolve(name: &str, port: u16) -> Result<Vec<SocketAddr>, Cause> {
    let found = (name, port).to_socket_addrs().map_err(|error| {
        let text = error.to_string().to_lowercase();
        let problem = text.trim_start_matches("failed to lookup address information: ");
        Cause::NotFound { problem: format!("cannot resolve {name}: {problem}") }
    })?;
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address) && addresses.len() < ADDRESSES_MAX {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(Cause::NotFound { problem: format!("{name} has no addresses") });
    }
    Ok(addresses)
}

/// Makes a listening socket. What it is set to, its connections inherit, on Linux at least.
pub(crate) fn listen(address: SocketAddr, options: &SocketOptions) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted server binds again although old connections are in TIME_WAIT (socket(7), SO_REUSEADDR).
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` takes IPv4 as well, whatever the system's default.
        socket.set_only_v6(false)?;
    }
    apply(&SockRef::from(&socket), options)?;
    socket.bind(&address.into())?;
    socket.listen(options.backlog.try_into().unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Sets the options of a connected or listening socket.
pub(crate) fn apply(socket: &SockRef<'_>, options: &SocketOptions) -> io::Result<()> {
    if options.nodelay {
        socket.set_tcp_nodelay(true)?;
    }
    if let Some(after) = options.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(after)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    if options.user_timeout.is_some() {
        socket.set_tcp_user_timeout(options.user_timeout)?;
    }
    if let Some(bytes) = options.receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.send_buffer {
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(())
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
