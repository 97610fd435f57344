//! Where the connections of a blocking server are, so that it can stop them and tell them that it drains.
//!
//! A thread that waits for bytes is in recv(2), where nothing but its socket can reach it. Shutting the socket down for reading wakes
//! it and tells the peer nothing; the thread then resets its connection itself. One that waits otherwise hears the alert.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::net::Shutdown;

use super::alert::Alert;

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
        let place = Arc::new(Place { places: self.clone(), socket: Mutex::default() });
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
