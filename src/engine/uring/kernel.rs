//! What the driver asks of the kernel: requests into a ring, completions out of it, and the plain system calls beside them.
//!
//! A trait, because the driver runs against two of them: [`Ring`](super::ring::Ring), and a scripted one in tests, which can
//! complete anything with any result at any moment.

#![allow(unsafe_code)] // one method of the trait is unsafe; nothing here is called

use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use socket2::SockAddr;

use super::buffers::Buffers;
use crate::address::Address;

/// Names a request; comes back with each of its completions.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key(pub(crate) u64);

/// A request.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Request {
    /// Receive again and again, each time into the next published buffer, at most `cap` bytes in all where the kernel knows
    /// caps.
    Receive {
        fd: RawFd,
        cap: u32,
    },
    /// Tell once that `fd` is readable, or broken.
    PollReadable {
        fd: RawFd,
    },
    /// Tell that `fd` is broken, or that the peer has ended; again, whenever either happens.
    PollBroken {
        fd: RawFd,
    },
    /// Tell whenever `fd` becomes readable, or the peer ends, or it breaks.
    PollAlways {
        fd: RawFd,
    },
    /// Send some of the bytes at `bytes`, as soon as any can be.
    Send {
        fd: RawFd,
        bytes: *const u8,
        len: u32,
    },
    /// Send the bytes at `bytes` at once. Completes only if not all of them were sent.
    SendQuietly {
        fd: RawFd,
        bytes: *const u8,
        len: u32,
    },
    Connect {
        fd: RawFd,
        address: *const SockAddr,
    },
    /// End the request with this key; it completes as ended, or as what it did before.
    Cancel {
        key: Key,
    },
    /// End all requests.
    CancelAll,
}

/// A completion.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Completed {
    pub(crate) key: Key,
    /// A count, or a negated error number.
    pub(crate) result: i32,
    /// More completions of the same request follow.
    pub(crate) more: bool,
    /// The receive buffer that the kernel filled, or took and left empty.
    pub(crate) buffer: Option<u16>,
}

impl Completed {
    pub(crate) fn outcome(&self) -> Result<usize, Errno> {
        usize::try_from(self.result).map_err(|_| Errno::from_raw_os_error(-self.result))
    }
}

pub(crate) trait Kernel {
    /// Queues a request; `false` if the queue is full. It is submitted by the next [`enter`](Kernel::enter).
    ///
    /// # Safety
    /// What `request` points to stays valid and unchanged until its last completion was seen.
    #[must_use]
    unsafe fn push(&mut self, key: Key, request: &Request) -> bool;

    /// Submits what is queued and lets finished requests complete; if `sleep`, waits until one has.
    fn enter(&mut self, sleep: bool) -> io::Result<()>;

    fn pop(&mut self) -> Option<Completed>;

    /// Takes all that have completed.
    fn drain(&mut self, into: &mut Vec<Completed>) {
        into.extend(std::iter::from_fn(|| self.pop()));
    }

    /// Requests that were pushed and not yet submitted.
    fn queued(&self) -> usize;

    /// Whether more has completed than the queue has room for; the rest comes with the next [`enter`](Kernel::enter).
    fn has_overflowed(&self) -> bool;

    /// Hands free receive buffers to the kernel.
    fn publish(&mut self, buffers: &Buffers);

    /// Whether a receive ends by itself after its cap.
    fn has_caps(&self) -> bool;

    /// Requests could not be ended: the memory that they may write to must stay for ever.
    fn abandon(&mut self);

    /// Whether something has completed or could after an [`enter`](Kernel::enter) that does not sleep.
    fn is_stirring(&self) -> bool;

    // The system calls of a socket, none of which waits.

    fn receive(&mut self, socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno>;
    fn send(&mut self, socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno>;
    fn send_gathered(&mut self, socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> Result<usize, Errno>;
    fn accept(&mut self, listener: BorrowedFd<'_>) -> Result<(OwnedFd, Address), Errno>;
    /// Takes the failure that the socket keeps, if it has one.
    fn failure(&mut self, socket: BorrowedFd<'_>) -> Option<io::Error>;
    /// Bytes that the peer has not acknowledged; FIN counts as one.
    fn unacked(&self, socket: BorrowedFd<'_>) -> io::Result<usize>;
    fn shutdown(&mut self, socket: BorrowedFd<'_>) -> io::Result<()>;
    /// Closes; with `reset` the peer gets RST.
    fn close(&mut self, socket: OwnedFd, reset: bool);
}
