//! A socket of the operating system: what the engines do alike with one, by plain calls, none of which waits.
//!
//! TCP and Unix stream sockets differ here in their addresses and in their options, and in nothing else. Which calls are made
//! when, and what their results mean, is the engines' business.
//!
//! Calls on the path of a message go through rustix, which on Linux makes them itself: libc's `send` and `recv` are
//! cancellation points, and pay for that with two atomic operations each once a process has a second thread.
//! `MSG_NOSIGNAL` goes with every send, so that a broken connection is an error and never SIGPIPE.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags};
use socket2::{Domain, SockAddr, SockRef};

use crate::address::{Address, UnixName};
use crate::config::SocketOptions;
use crate::sockets;

pub(crate) fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
    rustix::net::recv(socket, into, RecvFlags::DONTWAIT).map(|(n, _)| n)
}

/// Receives to `first`, and what does not fit there to `rest`.
pub(crate) fn receive_scattered(
    socket: BorrowedFd<'_>,
    first: &mut [u8],
    rest: &mut [u8],
) -> Result<usize, Errno> {
    let mut none = RecvAncillaryBuffer::default();
    let mut slices = [IoSliceMut::new(first), IoSliceMut::new(rest)];
    rustix::net::recvmsg(socket, &mut slices, &mut none, RecvFlags::DONTWAIT).map(|received| received.bytes)
}

/// Waits for bytes, if the socket is a blocking one, for as long as its receive timeout says.
pub(crate) fn receive_waiting(socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
    rustix::net::recv(socket, into, RecvFlags::empty()).map(|(n, _)| n)
}

pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    rustix::net::send(socket, bytes, SEND)
}

/// Sends several pieces in one call.
pub(crate) fn send_gathered(socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let mut none = SendAncillaryBuffer::default();
    rustix::net::sendmsg(socket, slices, &mut none, SEND)
}

const SEND: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

/// Accepts one connection: non-blocking, close-on-exec.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> Result<(OwnedFd, Address), Errno> {
    let (socket, peer) = accept_raw(&SockRef::from(&listener))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok((socket.into(), address_of(&peer)))
}

#[cfg(target_os = "linux")]
fn accept_raw(listener: &SockRef<'_>) -> io::Result<(socket2::Socket, SockAddr)> {
    use rustix::net::SocketFlags;
    listener.accept4((SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).bits().cast_signed())
}

#[cfg(not(target_os = "linux"))]
fn accept_raw(listener: &SockRef<'_>) -> io::Result<(socket2::Socket, SockAddr)> {
    let (socket, peer) = listener.accept()?;
    socket.set_nonblocking(true)?;
    Ok((socket, peer))
}

/// Makes the socket for a connection to `peer`, and the address to connect it to.
pub(crate) fn for_peer(peer: &Address, options: &SocketOptions) -> io::Result<(OwnedFd, SockAddr)> {
    let address = sock_addr(peer)?;
    let socket = sockets::unconnected(address.domain(), options)?;
    if let Some(source) = options.source {
        sockets::bind_source(&socket, source)?;
    }
    Ok((socket.into(), address))
}

/// Begins to connect; that it is over, the socket tells by becoming writable.
pub(crate) fn connect(socket: BorrowedFd<'_>, address: &SockAddr) -> io::Result<()> {
    match SockRef::from(&socket).connect(address) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INPROGRESS) => Ok(()),
        other => other,
    }
}

/// Whether the socket is connected: one may be told writable before it is.
pub(crate) fn is_connected(socket: BorrowedFd<'_>) -> io::Result<bool> {
    match SockRef::from(&socket).peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn local_addr(socket: BorrowedFd<'_>) -> io::Result<Address> {
    SockRef::from(&socket).local_addr().map(|address| address_of(&address))
}

pub(crate) fn peer_addr(socket: BorrowedFd<'_>) -> io::Result<Address> {
    SockRef::from(&socket).peer_addr().map(|address| address_of(&address))
}

/// Takes the failure that the socket keeps, if it has one.
pub(crate) fn failure(socket: BorrowedFd<'_>) -> Option<io::Error> {
    SockRef::from(&socket).take_error().unwrap_or_else(Some)
}

/// Sends FIN.
pub(crate) fn shutdown(socket: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    // A broken socket says only that it is not connected; why, it keeps elsewhere.
    socket.shutdown(Shutdown::Write).map_err(|error| socket.take_error().ok().flatten().unwrap_or(error))
}

/// Has close(2) send RST. A Unix socket has no such thing, and its peer is told the end.
pub(crate) fn reset_on_close(socket: BorrowedFd<'_>) {
    // Fails only for a socket that is past caring.
    drop(SockRef::from(&socket).set_linger(Some(Duration::ZERO)));
}

/// What the kernel calls `address`.
///
/// # Errors
/// If this system has no such addresses, or the name is too long.
pub(crate) fn sock_addr(address: &Address) -> io::Result<SockAddr> {
    let name = match address {
        Address::Ip(socket) => return Ok(SockAddr::from(*socket)),
        Address::Unix(name) => name,
    };
    match (name.path(), name.abstract_name()) {
        (Some(path), _) => SockAddr::unix(path),
        (None, Some(name)) => abstract_addr(name),
        (None, None) => Err(io::Error::new(io::ErrorKind::InvalidInput, "a Unix socket without a name")),
    }
}

#[cfg(target_os = "linux")]
fn abstract_addr(name: &[u8]) -> io::Result<SockAddr> {
    use std::os::unix::ffi::OsStrExt;
    SockAddr::unix(std::ffi::OsStr::from_bytes(&[b"\0", name].concat()))
}

#[cfg(not(target_os = "linux"))]
fn abstract_addr(_name: &[u8]) -> io::Result<SockAddr> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "abstract names of Unix sockets are a part of Linux"))
}

fn address_of(address: &SockAddr) -> Address {
    if let Some(socket) = address.as_socket() {
        return Address::canonical(socket);
    }
    debug_assert!(matches!(address.domain(), Domain::UNIX) || address.len() == 0, "there is no third kind");
    if let Some(path) = address.as_pathname() {
        return Address::Unix(UnixName::of_path(path));
    }
    if let Some(name) = address.as_abstract_namespace() {
        return Address::Unix(UnixName::of_abstract(name));
    }
    Address::Unix(UnixName::unnamed())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::Path;

    use super::*;

    fn there_and_back(address: &Address) {
        assert_eq!(address_of(&sock_addr(address).expect("the kernel has such")), *address);
    }

    #[test]
    fn addresses_are_the_kernels_and_ours() {
        there_and_back(&Address::Ip("[2001:db8::7%3]:80".parse().expect("an address")));
        there_and_back(&Address::Unix(UnixName::of_path(Path::new("/run/x.sock"))));
        if cfg!(target_os = "linux") {
            there_and_back(&Address::Unix(UnixName::of_abstract(b"a\0b")));
        }
        let longest = "p".repeat(107);
        there_and_back(&Address::Unix(UnixName::of_path(Path::new(&longest))));
        let too_long = Address::Unix(UnixName::of_path(Path::new("p/").join(&longest).as_path()));
        assert!(sock_addr(&too_long).is_err());
        assert!(sock_addr(&Address::Unix(UnixName::unnamed())).is_err());
    }

    #[test]
    fn a_unix_peer_is_told_by_its_name_if_it_has_one() {
        let name = format!("wharf-peer-{}", std::process::id());
        let address = Address::Unix(UnixName::of_abstract(name.as_bytes()));
        let options = SocketOptions::default();
        let listener =
            sockets::listen_unix(address.unix().expect("it is one"), &options).expect("it listens");
        for named in [false, true] {
            let (client, to) = for_peer(&address, &options).expect("a socket");
            let mine = Address::Unix(UnixName::of_abstract(format!("{name}-mine").as_bytes()));
            if named {
                SockRef::from(&client).bind(&sock_addr(&mine).expect("a name")).expect("it binds");
            }
            connect(client.as_fd(), &to).expect("it connects");
            let (socket, peer) = accept(listener.as_fd()).expect("it waits");
            assert_eq!(peer, if named { mine } else { Address::Unix(UnixName::unnamed()) });
            assert_eq!(local_addr(socket.as_fd()).expect("it has one"), address);
            assert!(is_connected(client.as_fd()).expect("it can be asked"));
            assert_eq!(receive(socket.as_fd(), &mut [0; 1]), Err(Errno::AGAIN), "no call waits");
        }
        assert_eq!(accept(listener.as_fd()).map(drop), Err(Errno::AGAIN));
    }
}
