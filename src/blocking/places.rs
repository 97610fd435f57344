//! Where the connections of a blocking server are, so that it can stop them and tell them that it drains.
//!
//! A thread that waits for bytes is in recv(2), where nothing but its socket can reach it. Shutting the socket down for reading wakes
//! it and tells the peer nothing; the thread then resets its connection itself. One that waits otherwise hears the alert.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::net::Shutdown;

use super::alert::Alert;
use super::line::Line;
use crate::error::CloseReason;

/// How long a server that stops waits for a connection that its handler has given to another thread.
const BACK_WITHIN: Duration = Duration::from_secs(1);

/// All connections of one server.
#[derive(Debug)]
pub(super) struct Places {
    stopped: AtomicBool,
    stopping: Alert,
    drained: AtomicBool,
    draining: Alert,
    taken: Mutex<Vec<Weak<Place>>>,
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    socket: Mutex<Weak<OwnedFd>>,
    left: Mutex<Left>,
    /// The connection has come back, or the server stops.
    changed: Condvar,
}

/// Where a connection is when its handler is over.
#[derive(Debug)]
enum Left {
    /// The handler has it, or another thread has, to whom the handler gave it.
    Out,
    /// Its owner has dropped it.
    Back(Box<Line>),
    /// Nobody waits for it any more.
    Forsaken,
}

impl Places {
    pub(super) fn new() -> io::Result<Arc<Places>> {
        Ok(Arc::new(Places {
            stopped: AtomicBool::new(false),
            stopping: Alert::new()?,
            drained: AtomicBool::new(false),
            draining: Alert::new()?,
            taken: Mutex::default(),
        }))
    }

    /// A place for another connection.
    pub(super) fn take(self: &Arc<Self>) -> Arc<Place> {
        let place = Arc::new(Place {
            places: self.clone(),
            socket: Mutex::default(),
            left: Mutex::new(Left::Out),
            changed: Condvar::new(),
        });
        let mut taken = lock(&self.taken);
        // No more than those who are here, and as many that have gone.
        if taken.len() == taken.capacity() {
            taken.retain(|place| place.strong_count() > 0);
            let here = taken.len();
            taken.reserve(here.max(8));
        }
        taken.push(Arc::downgrade(&place));
        place
    }

    pub(super) fn drain(&self) {
        self.drained.store(true, Ordering::SeqCst);
        self.draining.raise();
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        for place in lock(&self.taken).iter().filter_map(Weak::upgrade) {
            place.wake();
        }
        self.stopping.raise();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Raised when it drains or stops.
    pub(super) fn draining(&self) -> BorrowedFd<'_> {
        self.draining.ear()
    }
}

impl Place {
    /// Whoever sits here can be reached by his socket from now on.
    pub(super) fn enter(&self, socket: &Arc<OwnedFd>) {
        *lock(&self.socket) = Arc::downgrade(socket);
        if self.places.is_stopped() {
            self.wake();
        }
    }

    pub(super) fn leave(&self) {
        *lock(&self.socket) = Weak::new();
    }

    /// The connection's owner has dropped it: the server's thread sees it off.
    pub(super) fn give_back(&self, mut line: Box<Line>) {
        let mut left = lock(&self.left);
        if matches!(*left, Left::Forsaken) {
            drop(left);
            return line.reset(CloseReason::Shutdown);
        }
        *left = Left::Back(line);
        drop(left);
        self.changed.notify_all();
    }

    /// Waits until the connection is given back. `None` if that does not come about although the server stops: whoever has it
    /// finds it shut down.
    pub(super) fn await_line(&self) -> Option<Box<Line>> {
        let mut left = lock(&self.left);
        let mut stopped_at = None;
        loop {
            match std::mem::replace(&mut *left, Left::Out) {
                Left::Back(line) => return Some(line),
                other => *left = other,
            }
            if !self.is_stopped() {
                left = self.changed.wait(left).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let passed = stopped_at.get_or_insert_with(Instant::now).elapsed();
            let Some(rest) = BACK_WITHIN.checked_sub(passed) else { break };
            left = self.changed.wait_timeout(left, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        *left = Left::Forsaken;
        drop(left);
        if let Some(socket) = lock(&self.socket).upgrade() {
            let _ = rustix::net::shutdown(&*socket, Shutdown::Both);
        }
        None
    }

    #[inline]
    pub(super) fn is_stopped(&self) -> bool {
        self.places.stopped.load(Ordering::Relaxed)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.places.drained.load(Ordering::Relaxed)
    }

    pub(super) fn stopping(&self) -> BorrowedFd<'_> {
        self.places.stopping.ear()
    }

    pub(super) fn draining(&self) -> BorrowedFd<'_> {
        self.places.draining.ear()
    }

    fn wake(&self) {
        // Under the lock, so that nobody has looked and does not wait yet.
        drop(lock(&self.left));
        self.changed.notify_all();
        if let Some(socket) = lock(&self.socket).upgrade() {
            // One that is not connected any more wakes its thread by that.
            let _ = rustix::net::shutdown(&*socket, Shutdown::Read);
        }
    }
}

/// Nothing panics under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
