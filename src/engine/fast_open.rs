//! TCP Fast Open of a listener (TCP_FASTOPEN, tcp(7)), for which no crate that we use has a safe call.
//!
//! # Invariants
//!
//! 1. The kernel reads one `int` from the address that the call is given, and keeps nothing of it.

#![allow(unsafe_code)] // one system call

use std::ffi::c_int;
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Lets so many connections at once wait whose first packet brought data.
pub(crate) fn set_fast_open(listener: BorrowedFd<'_>, queue: c_int) -> io::Result<()> {
    let (value, size) = ((&raw const queue).cast(), size_of_val(&queue) as libc::socklen_t);
    // SAFETY: `value` points to one `int`, of which the kernel is told the size (invariant 1).
    let status =
        unsafe { libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN, value, size) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;

    fn fast_open(listener: &TcpListener) -> c_int {
        let mut queue: c_int = -1;
        let mut size = size_of_val(&queue) as libc::socklen_t;
        let (value, room) = ((&raw mut queue).cast(), &raw mut size);
        // SAFETY: `value` points to one `int`, and `room` says so.
        let status = unsafe {
            libc::getsockopt(listener.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_FASTOPEN, value, room)
        };
        assert_eq!(status, 0);
        queue
    }

    #[test]
    fn a_listener_lets_as_many_wait_as_it_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        assert_eq!(fast_open(&listener), 0);
        set_fast_open(listener.as_fd(), 17).expect("a listener has it");
        assert_eq!(fast_open(&listener), 17);
    }
}
