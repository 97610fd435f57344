//! Where the system is not asked how much of what was sent the peer has not acknowledged.

use std::io;
use std::os::fd::BorrowedFd;

pub(crate) fn unacked(_: BorrowedFd<'_>) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}
