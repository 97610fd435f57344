//! Waiting in poll(2): for one line or for the first of several, apart from the lines, which others can use meanwhile.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Line, Step, Watch};
use crate::blocking::places::Place;
use crate::time::Time;

/// Who has to look again and again, for no alert tells him, does so at least every so often.
pub(super) const LOOK_MAX: Duration = Duration::from_millis(50);
/// How often one that waits for room looks whether its server's handle has sent it away.
const SERVER_LOOK: Duration = Duration::from_millis(500);

/// What a step waits for.
#[derive(Copy, Clone, Debug)]
pub(in crate::blocking) struct Wanted {
    pub(super) read: bool,
    pub(super) write: bool,
    /// Or that the server drains.
    pub(super) drain: bool,
    pub(super) until: Option<Time>,
}

impl Line {
    pub(super) fn wait_to_read<T>(&self, until: Option<Time>) -> Step<T> {
        let write = self.conn.has_to_send();
        Step::Wait(Wanted { read: true, write, drain: false, until })
    }

    pub(super) fn wait_to_write<T>(&self, until: Option<Time>) -> Step<T> {
        Step::Wait(Wanted { read: false, write: true, drain: false, until })
    }

    /// What to wait for, so that the line can be left to others meanwhile.
    pub(in crate::blocking) fn waiting(&self, wanted: Wanted) -> Waiting {
        let mut timeout = wanted.until.map(|at| at.since(self.now()));
        // Once it has been asked to close, the alert tells nothing new, and a reset is looked for now and then.
        let is_asked = self.watch.as_ref().is_some_and(|watch| watch.asked() != 0);
        if is_asked {
            timeout = Some(timeout.map_or(LOOK_MAX, |timeout| timeout.min(LOOK_MAX)));
        }
        // The handle of its server reaches who waits for bytes; who waits only for room looks.
        if self.place.is_some() && !wanted.read {
            timeout = Some(timeout.map_or(SERVER_LOOK, |timeout| timeout.min(SERVER_LOOK)));
        }
        Waiting {
            wanted,
            timeout,
            socket: self.socket.clone(),
            watch: self.watch.clone().filter(|_| !is_asked),
            place: self.place.clone(),
        }
    }
}

/// A wait, apart from its line.
pub(in crate::blocking) struct Waiting {
    wanted: Wanted,
    timeout: Option<Duration>,
    socket: Option<Arc<OwnedFd>>,
    watch: Option<Arc<Watch>>,
    place: Option<Arc<Place>>,
}

impl Waiting {
    /// Returns when there is what is wanted, the time is over, or for no reason at all.
    pub(in crate::blocking) fn wait(self) {
        wait_for_any(&[self], None, None);
    }

    fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        let Wanted { read, write, drain, .. } = self.wanted;
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, read);
        events.set(PollFlags::OUT, write);
        let watched = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        if let Some(socket) = self.socket.as_ref().filter(|_| read || write) {
            fds.push(PollFd::new(socket, events));
        }
        fds.extend(self.watch.iter().map(|watch| watched(watch.ear())));
        if let Some(place) = &self.place {
            fds.push(watched(place.stopping()));
            fds.extend(drain.then(|| watched(place.draining())));
        }
    }
}

/// Waits for the first of several, for something else that can be read, and for no longer than `timeout`.
pub(in crate::blocking) fn wait_for_any(
    waits: &[Waiting],
    ear: Option<BorrowedFd<'_>>,
    timeout: Option<Duration>,
) {
    let mut fds = Vec::with_capacity(waits.len() + 3);
    waits.iter().for_each(|waiting| waiting.watch(&mut fds));
    fds.extend(ear.map(|ear| PollFd::from_borrowed_fd(ear, PollFlags::IN)));
    let timeout = waits.iter().filter_map(|waiting| waiting.timeout).chain(timeout).min();
    debug_assert!(!fds.is_empty() || timeout.is_some(), "it would wait for ever");
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    // Whatever comes of it, the next step looks for itself; but one after the other, if the system is short of what a wait needs.
    if poll(&mut fds, timeout.as_ref()).is_err_and(|error| error != Errno::INTR) {
        thread::sleep(LOOK_MAX);
    }
}
