//! A local address whose port is picked when the socket connects (IP_BIND_ADDRESS_NO_PORT, ip(7)), for which no crate that we use has a
//! safe call.
//!
//! # Invariants
//!
//! 1. The kernel reads one `int` from the address that the call is given, and keeps nothing of it.

#![allow(unsafe_code)] // one system call

use std::ffi::c_int;
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Has bind(2) with port 0 leave the port to connect(2), which knows the peer: then as many connections to each peer can be had as there
/// are ports, and not as many to all of them.
pub(crate) fn pick_port_late(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: c_int = 1;
    let (value, size) = ((&raw const on).cast(), size_of_val(&on) as libc::socklen_t);
    let option = libc::IP_BIND_ADDRESS_NO_PORT;
    // SAFETY: `value` points to one `int`, of which the kernel is told the size (invariant 1).
    let status = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, value, size) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_port_is_picked_when_the_socket_connects() {
        for (any, domain) in [("127.0.0.1:0", socket2::Domain::IPV4), ("[::1]:0", socket2::Domain::IPV6)] {
            let any: SocketAddr = any.parse().expect("an address");
            let Ok(listener) = std::net::TcpListener::bind(any) else { continue };
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
            pick_port_late(socket.as_fd()).expect("Linux has it since 4.2");
            socket.bind(&any.into()).expect("it binds");
            let port = || socket.local_addr().expect("it has one").as_socket().expect("an IP one").port();
            assert_eq!(port(), 0);
            socket.connect(&listener.local_addr().expect("it has one").into()).expect("it connects");
            assert_ne!(port(), 0);
        }
    }
}
