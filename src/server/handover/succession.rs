//! What a running server keeps for its successor, and how it makes way for it. Knows nothing of how the two talk.

use std::io::PipeWriter;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::server::holdings::{Holding, ListenerState};
use crate::server::listen::SocketFile;
use crate::server::state::{ServerState, lock};
use crate::worker::Message;

#[derive(Default)]
pub(in crate::server) struct Succession {
    /// Closed when the last worker has left, for the thread that waits for a successor.
    until_the_end: Mutex<Option<PipeWriter>>,
    /// The socket at which successors ask.
    upgrade: Mutex<Holding>,
}

impl Succession {
    /// The last worker has left.
    pub(in crate::server) fn end(&self) {
        drop(lock(&self.until_the_end).take());
        std::mem::take(&mut *lock(&self.upgrade)).clear();
    }
}

impl ServerState {
    /// Keeps `end` open, and the upgrade socket's file, until the last worker has left.
    pub(super) fn keep_until_the_end(&self, end: PipeWriter, file: Option<SocketFile>) {
        *lock(&self.succession.until_the_end) = Some(end);
        lock(&self.succession.upgrade).file = file;
        // They may have left already.
        if *lock(&self.workers_left) == 0 {
            self.succession.end();
        }
    }

    /// Copies of the listeners that are open, and which they are. From now on a successor may have them, and the upgrade
    /// socket.
    pub(super) fn promise_listeners(&self) -> (Vec<OwnedFd>, Vec<usize>) {
        lock(&self.succession.upgrade).promised = true;
        let listeners = self.listeners.iter().enumerate();
        listeners.filter_map(|(index, listener)| Some((listener.promise()?, index))).unzip()
    }

    /// The successor does not have this one.
    pub(super) fn keep(&self, listener: usize) {
        self.listeners[listener].keep();
    }

    /// There is no successor after all.
    pub(super) fn keep_all(&self) {
        lock(&self.succession.upgrade).promised = false;
        self.listeners.iter().for_each(ListenerState::keep);
    }

    /// The files of taken listeners are ours from now on.
    pub(super) fn claim_files(&self) {
        self.listeners.iter().for_each(ListenerState::claim_file);
    }

    /// The server accepts from now on, if it has not so far.
    pub(super) fn open_door(&self) {
        if self.door_is_held {
            self.tell_first(Message::OpenDoor);
        }
    }

    /// A successor serves; whoever is still here has this long, unless the server is draining anyway.
    pub(super) fn drain_for_successor(&self, process: u32, within: Duration) {
        self.notify_of_successor(process);
        if !self.drain_begun.load(Ordering::SeqCst) {
            self.drain(within);
        }
    }
}
