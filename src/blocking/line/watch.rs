//! What other threads can ask of a line: those with a [`Remote`](crate::blocking::Remote), and those with the other half.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use super::Line;
use crate::blocking::alert::Alert;
use crate::error::CloseReason;

/// What other threads can ask of a line.
#[derive(Debug)]
pub(in crate::blocking) struct Watch {
    asked: AtomicU8,
    /// The alert was raised only for a look at what there is to do.
    nudged: AtomicBool,
    alert: Alert,
    closed: OnceLock<CloseReason>,
}

pub(super) const CLOSE: u8 = 1;
pub(super) const RESET: u8 = 2;

impl Watch {
    pub(in crate::blocking) fn close(&self) {
        self.ask(CLOSE);
    }

    pub(in crate::blocking) fn reset(&self) {
        self.ask(RESET);
    }

    fn ask(&self, what: u8) {
        self.asked.fetch_max(what, Ordering::SeqCst);
        self.alert.raise();
    }

    /// Has whoever waits with the line look again.
    pub(super) fn nudge(&self) {
        self.nudged.store(true, Ordering::SeqCst);
        self.alert.raise();
    }

    /// Takes a nudge back. Whoever asks for something meanwhile has said so before he raised the alert, and that is looked at next.
    pub(super) fn take_nudge(&self) {
        if self.nudged.load(Ordering::Relaxed) && self.nudged.swap(false, Ordering::SeqCst) {
            self.alert.lower();
        }
    }

    /// The most that was asked for so far: nothing, [`CLOSE`] or [`RESET`].
    pub(super) fn asked(&self) -> u8 {
        self.asked.load(Ordering::Relaxed)
    }

    /// The line is closed, for this reason. Whoever waits with the socket lets go of it too.
    pub(super) fn ended(&self, reason: CloseReason) {
        let _ = self.closed.set(reason);
        self.alert.raise();
    }

    /// Readable when something is asked for, or the line is closed.
    pub(super) fn ear(&self) -> BorrowedFd<'_> {
        self.alert.ear()
    }

    pub(in crate::blocking) fn reason(&self) -> Option<CloseReason> {
        self.closed.get().copied()
    }
}

impl Line {
    /// From now on others can reach it.
    pub(in crate::blocking) fn watch(&mut self) -> io::Result<Arc<Watch>> {
        if let Some(watch) = &self.watch {
            return Ok(watch.clone());
        }
        let watch = Watch {
            asked: AtomicU8::new(0),
            nudged: AtomicBool::new(false),
            alert: Alert::new()?,
            closed: OnceLock::new(),
        };
        if let Some(reason) = self.conn.reason() {
            let _ = watch.closed.set(reason);
        }
        Ok(self.watch.insert(Arc::new(watch)).clone())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::super::{Wanted, on};
    use super::*;
    use crate::config::Deadlines;

    fn is_raised(watch: &Watch) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(watch.ear(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("it can be asked") == 1
    }

    #[test]
    fn a_nudge_is_over_when_it_was_heard_and_hides_no_request() {
        let (socket, _peer) = UnixStream::pair().expect("descriptors");
        let mut line = on(socket, &Deadlines::default());
        let watch = line.watch().expect("descriptors");
        watch.nudge();
        line.waiting(Wanted { read: true, write: false, drain: false, until: None }).wait();
        line.heed();
        assert!(!is_raised(&watch), "who waits again would not wait");
        assert!(line.conn().is_open());
        watch.nudge();
        watch.reset();
        line.heed();
        assert_eq!(watch.reason(), Some(CloseReason::LocalReset));
    }
}
