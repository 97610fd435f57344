//! An alert: how a thread that waits in poll(2) is reached by another.
//!
//! Once raised it stays raised, so everybody who waits with it sees it, now and later; nobody has to take it back. Who knows that he alone
//! waits, and that it was for something that is done, may.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

#[derive(Debug)]
pub(super) struct Alert {
    bell: UnixStream,
    ear: UnixStream,
}

impl Alert {
    pub(super) fn new() -> io::Result<Alert> {
        let (bell, ear) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ear.set_nonblocking(true)?;
        Ok(Alert { bell, ear })
    }

    pub(super) fn raise(&self) {
        // If there is no room for another byte, it is raised already.
        drop((&self.bell).write(&[1]));
    }

    /// Takes back what was raised so far.
    pub(super) fn lower(&self) {
        while matches!((&self.ear).read(&mut [0; 64]), Ok(64)) {}
    }

    /// Readable from the moment at which it is raised.
    pub(super) fn ear(&self) -> BorrowedFd<'_> {
        self.ear.as_fd()
    }
}
