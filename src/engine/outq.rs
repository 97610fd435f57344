//! How much of what was sent the peer has not acknowledged: SIOCOUTQ (tcp(7)), which no crate that we use has a safe call for.
//!
//! # Invariants
//!
//! 1. The kernel writes one `int` to the address that the call is given, and keeps nothing of it.

#![allow(unsafe_code)] // one system call

use std::ffi::c_int;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::ioctl::{Getter, Opcode, ioctl, opcode};
use socket2::{Domain, SockRef};

/// SIOCOUTQ, which is TIOCOUTQ: each architecture has its own (asm/ioctls.h).
const OUTQ: Opcode = if cfg!(any(target_arch = "mips", target_arch = "mips64")) {
    0x7472
} else if cfg!(any(target_arch = "powerpc", target_arch = "powerpc64", target_arch = "sparc64")) {
    opcode::read::<c_int>(b't', 115)
} else {
    0x5411
};

/// Bytes of a TCP socket that its peer has not acknowledged; FIN counts as one. Of a Unix socket the kernel would tell how much
/// memory is used, which is another thing.
pub(crate) fn unacked(socket: BorrowedFd<'_>) -> io::Result<usize> {
    if SockRef::from(&socket).domain()? == Domain::UNIX {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: with this number the kernel writes one `int` (invariant 1), and for that is the getter's room.
    let bytes: c_int = unsafe { ioctl(socket, Getter::<OUTQ, c_int>::new())? };
    Ok(usize::try_from(bytes).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_the_peer_has_no_room_for_is_not_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut near = TcpStream::connect(listener.local_addr().expect("an address")).expect("it listens");
        let (mut far, _) = listener.accept().expect("it has connected");
        near.set_nonblocking(true).expect("it stands");
        let mut sent = 0;
        while let Ok(n) = near.write(&[b'x'; 65_536]) {
            sent += n;
        }
        let unacked_at_first = unacked(near.as_fd()).expect("it stands");
        assert!(unacked_at_first > 0 && unacked_at_first < sent, "{unacked_at_first} of {sent}");
        near.shutdown(Shutdown::Write).expect("it stands");
        assert_eq!(unacked(near.as_fd()).expect("it stands"), unacked_at_first + 1, "FIN counts");
        far.read_to_end(&mut Vec::new()).expect("it ends");
        while unacked(near.as_fd()).expect("it stands") > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_unix_socket_has_no_such_count() {
        let (near, _far) = UnixStream::pair().expect("a pair of sockets");
        assert_eq!(unacked(near.as_fd()).expect_err("none").kind(), io::ErrorKind::Unsupported);
    }
}
