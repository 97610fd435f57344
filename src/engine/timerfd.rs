//! The alarm of the engines on Linux: one timerfd among the descriptors that they watch.
//!
//! A timeout given to epoll_wait(2) or io_uring_enter(2) is armed and cancelled in the kernel with every sleep, which costs
//! 7 % of a message at one connection. Deadlines mostly move later, so the timerfd is set when the earliest moves earlier,
//! and otherwise left alone: it then wakes the worker once too early, and is set again. It is watched for edges and never
//! read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::time::Time;

/// A timerfd of zero is off, and time in the past is now.
const SOONEST: Duration = Duration::from_nanos(1);

pub(super) struct Alarm {
    fd: OwnedFd,
    set_for: Time,
}

impl Alarm {
    pub(super) fn new() -> io::Result<Alarm> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Alarm { fd, set_for: Time::NEVER })
    }

    /// Makes sure that the descriptor becomes readable at `until`; returns the timeout that a poll needs beside it.
    pub(super) fn set(&mut self, until: Time, now: impl FnOnce() -> Time) -> io::Result<Option<Duration>> {
        if until < self.set_for {
            let left = until.since(now()).max(SOONEST);
            let it_value = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
            let spec = Itimerspec { it_interval: Timespec::default(), it_value };
            rustix::time::timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &spec)?;
            self.set_for = until;
        }
        Ok(None)
    }

    /// The descriptor became readable.
    pub(super) fn rang(&mut self) {
        self.set_for = Time::NEVER;
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
