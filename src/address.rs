//! The address of one end of a connection, or of a listener: [`Address`].

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;

/// Where one end of a connection, or a listener, is: an IP address with its port, or a Unix socket.
///
/// An IPv4 peer of a dual-stack listener is told as IPv4, not as `::ffff:1.2.3.4`.
///
/// ```
/// use std::net::SocketAddr;
/// use wharf::Address;
///
/// let socket: SocketAddr = "127.0.0.1:7788".parse()?;
/// let address = Address::from(socket);
/// assert_eq!((address.ip(), address.port()), (Some(socket.ip()), Some(7788)));
/// assert_eq!(address.to_string(), "127.0.0.1:7788");
/// assert_eq!(address, socket);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A Unix socket.
    Unix(UnixName),
}

/// The name of a Unix socket (unix(7)): a path, an abstract name, or none, as clients usually have it.
///
/// Prints as what [`Server::bind`](crate::Server::bind) reads: `unix:/run/wharf.sock`, `unix:@name`; one without a name as
/// `unix:`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnixName(Name);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Name {
    None,
    Path(Arc<Path>),
    Abstract(Arc<[u8]>),
}

impl UnixName {
    pub(crate) fn unnamed() -> UnixName {
        UnixName(Name::None)
    }

    pub(crate) fn of_path(path: &Path) -> UnixName {
        UnixName(Name::Path(path.into()))
    }

    pub(crate) fn of_abstract(name: &[u8]) -> UnixName {
        UnixName(Name::Abstract(name.into()))
    }

    /// Its path in the file system, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Name::Path(path) => Some(path),
            _ => None,
        }
    }

    /// Its name in the abstract namespace of Linux, if it has one.
    pub fn abstract_name(&self) -> Option<&[u8]> {
        match &self.0 {
            Name::Abstract(name) => Some(name),
            _ => None,
        }
    }
}

impl Address {
    /// The IP address; `None` for a Unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        self.socket().map(|socket| socket.ip())
    }

    /// The port; `None` for a Unix socket.
    pub fn port(&self) -> Option<u16> {
        self.socket().map(|socket| socket.port())
    }

    /// IP address and port as the standard library has them; `None` for a Unix socket.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Address::Ip(socket) => Some(*socket),
            Address::Unix(_) => None,
        }
    }

    /// The name of the Unix socket; `None` for an IP address.
    pub fn unix(&self) -> Option<&UnixName> {
        match self {
            Address::Ip(_) => None,
            Address::Unix(name) => Some(name),
        }
    }

    /// The same with an IPv4 address that came in IPv6's clothes as what it is (RFC 4291, 2.5.5.2).
    pub(crate) fn canonical(socket: SocketAddr) -> Address {
        match socket.ip().to_canonical() {
            ip if ip == socket.ip() => Address::Ip(socket),
            ip => Address::Ip(SocketAddr::new(ip, socket.port())),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(socket: SocketAddr) -> Address {
        Address::Ip(socket)
    }
}

impl PartialEq<SocketAddr> for Address {
    fn eq(&self, other: &SocketAddr) -> bool {
        self.socket() == Some(*other)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(socket) => socket.fmt(f),
            Address::Unix(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Name::None => f.write_str("unix:"),
            Name::Path(path) => write!(f, "unix:{}", path.display()),
            Name::Abstract(name) => write!(f, "unix:@{}", name.escape_ascii()),
        }
    }
}

/// So that what takes an address to connect to takes this as well. A Unix socket is an error there.
impl ToSocketAddrs for Address {
    type Iter = std::option::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        match self {
            Address::Ip(socket) => Ok(Some(*socket).into_iter()),
            Address::Unix(name) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is no IP address")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_no_larger_than_the_standard_librarys() {
        // Every connection keeps one.
        assert_eq!(size_of::<Address>(), size_of::<SocketAddr>());
    }

    #[test]
    fn a_mapped_address_is_told_as_the_ipv4_address_that_it_is() {
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:80".parse().expect("an address");
        assert_eq!(Address::canonical(mapped).to_string(), "192.0.2.7:80");
        let plain: SocketAddr = "[2001:db8::7]:80".parse().expect("an address");
        assert_eq!(Address::canonical(plain).to_string(), "[2001:db8::7]:80");
    }

    #[test]
    fn a_unix_socket_prints_as_it_is_bound() {
        let path = Address::Unix(UnixName::of_path(Path::new("/run/x.sock")));
        assert_eq!(path.to_string(), "unix:/run/x.sock");
        assert_eq!(Address::Unix(UnixName::of_abstract(b"x\n")).to_string(), "unix:@x\\n");
        assert_eq!(Address::Unix(UnixName::unnamed()).to_string(), "unix:");
        assert!(path.to_socket_addrs().is_err());
    }
}
