//! What a server has of its listeners beside those that it accepts from: their files, and their copies for a successor.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::listen::{Listen, Opened, SocketFile};
use super::state::{ServerState, lock};
use crate::address::{Address, UnixName};
use crate::engine::Listener;

/// One of a server's listeners.
pub(super) struct ListenerState {
    pub(super) listen: Listen,
    pub(super) address: Address,
    pub(super) accepted: AtomicU64,
    pub(super) lost: AtomicBool,
    /// A predecessor opened it.
    taken: bool,
    holding: Mutex<Holding>,
}

/// What there is of a listener beside the one that is used.
#[derive(Default)]
pub(super) struct Holding {
    pub(super) file: Option<SocketFile>,
    /// For a successor.
    copy: Option<OwnedFd>,
    /// A successor has it, or is about to: it is not ours to clear up.
    pub(super) promised: bool,
}

impl Holding {
    /// Removes the file, unless a successor listens there.
    pub(super) fn clear(self) {
        match self.file {
            Some(file) if self.promised => file.leave(),
            file => drop(file),
        }
    }
}

impl ListenerState {
    pub(super) fn new(listen: Listen, address: Address, taken: bool) -> ListenerState {
        let (accepted, lost) = (AtomicU64::new(0), AtomicBool::new(false));
        ListenerState { listen, address, accepted, lost, taken, holding: Mutex::default() }
    }

    /// A copy for a successor, who may have the listener from now on; none if it is closed.
    pub(super) fn promise(&self) -> Option<OwnedFd> {
        let mut holding = lock(&self.holding);
        let copy = holding.copy.as_ref()?.try_clone().ok()?;
        holding.promised = true;
        Some(copy)
    }

    /// The successor does not have it.
    pub(super) fn keep(&self) {
        lock(&self.holding).promised = false;
    }

    /// Its file is ours from now on, if a predecessor opened it.
    pub(super) fn claim_file(&self) {
        if self.taken {
            let path = self.address.unix().and_then(UnixName::path);
            lock(&self.holding).file = path.and_then(|path| SocketFile::of(path).ok());
        }
    }
}

impl ServerState {
    /// A listener has been opened. Returns it, to be accepted from.
    pub(super) fn hold(&self, listener: usize, opened: Opened) -> io::Result<Listener> {
        let copy = self.keeps_copies.then(|| opened.listener.try_clone()).transpose()?;
        *lock(&self.listeners[listener].holding) = Holding { file: opened.file, copy, promised: false };
        Ok(Listener::Os(opened.listener))
    }

    /// A listener is gone and will not come back.
    pub(crate) fn lose_listener(&self, listener: usize) -> &Address {
        self.close_copy(listener);
        self.listeners[listener].lost.store(true, Ordering::Relaxed);
        &self.listeners[listener].address
    }

    /// A listener's copy for a successor is no longer needed.
    pub(super) fn close_copy(&self, listener: usize) {
        drop(lock(&self.listeners[listener].holding).copy.take());
    }

    /// A listener is closed for good: what it has in the file system goes too, unless a successor listens there.
    pub(crate) fn clear_listener(&self, listener: usize) {
        std::mem::take(&mut *lock(&self.listeners[listener].holding)).clear();
    }

    /// The same for all of them.
    pub(crate) fn clear_listeners(&self) {
        (0..self.listeners.len()).for_each(|listener| self.clear_listener(listener));
    }

    /// Whether a listener may be closed when the server is suspended, for it can be opened again.
    pub(crate) fn can_reopen(&self, listener: usize) -> bool {
        let state = &self.listeners[listener];
        !self.simulated && !state.taken && !state.listen.is_given()
    }

    /// Whether who waits in a listener's backlog is a successor's business.
    pub(crate) fn is_promised(&self, listener: usize) -> bool {
        lock(&self.listeners[listener].holding).promised
    }
}
