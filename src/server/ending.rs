//! How a server ends: draining, and its workers' leaving, in order or by a crash.
//!
//! A worker crashes when code panics that nothing guards, the destructor of a user's own `Bytes` owner. The others go on; but
//! the first accepts, and passes on what is for all, so without it nobody comes in, and whoever drains tells each worker.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::hooks::ServerEvent;
use super::state::{ServerState, lock};
use crate::worker::Message;

/// What is known of a server's end before it comes.
pub(super) struct Ending {
    /// The last drain that was asked for.
    asked: Mutex<Option<Duration>>,
    /// Which of the workers have crashed.
    crashed: Vec<AtomicBool>,
}

impl Ending {
    pub(super) fn new(workers: usize) -> Ending {
        Ending { asked: Mutex::default(), crashed: (0..workers).map(|_| AtomicBool::new(false)).collect() }
    }
}

impl ServerState {
    /// Has all workers drain. The first begins and tells the others, unless it is gone.
    pub(super) fn drain(&self, within: Duration) {
        // Before the first is told: if it crashes over that, it finds this.
        *lock(&self.ending.asked) = Some(within);
        self.tell_first(Message::Drain { within });
        if self.has_crashed(0) {
            self.drain_without_first(within);
        } else if self.draining.load(Ordering::SeqCst) {
            // It may have ended since it told the others of an earlier drain.
            self.tell_others(|| Message::Drain { within });
        }
    }

    fn drain_without_first(&self, within: Duration) {
        if !self.drain_begun.swap(true, Ordering::SeqCst) {
            self.notify_of_drain();
            self.tell(&ServerEvent::Draining { within });
        }
        self.tell_others(|| Message::Drain { within });
    }

    pub(super) fn has_crashed(&self, worker: usize) -> bool {
        self.ending.crashed[worker].load(Ordering::SeqCst)
    }

    /// A worker has crashed, and gets no connection any more.
    pub(crate) fn worker_crashed(&self, worker: usize) {
        self.ending.crashed[worker].store(true, Ordering::SeqCst);
        if worker == 0 {
            self.draining.store(true, Ordering::SeqCst);
            let asked = *lock(&self.ending.asked);
            if let Some(within) = asked {
                self.drain_without_first(within);
            }
        }
    }

    /// The worker that accepts has crashed, and its listeners are closed.
    pub(crate) fn lose_all_listeners(&self) {
        let error = io::Error::other("the worker that accepts has crashed");
        let is_left = |listener: &usize| !self.listeners[*listener].lost.load(Ordering::Relaxed);
        for listener in (0..self.listeners.len()).filter(is_left) {
            let address = self.lose_listener(listener);
            self.tell(&ServerEvent::ListenerLost { address, error: &error });
        }
    }

    pub(crate) fn worker_left(&self) {
        if self.workers_running.fetch_sub(1, Ordering::SeqCst) == 1 {
            // Whoever waits for the end waits for this too.
            self.last_thread.get_or_init(|| thread::current().id());
            if !self.start_failed.load(Ordering::SeqCst) {
                self.tell_of_end();
            }
            self.succession.end();
        }
        *lock(&self.workers_left) -= 1;
        self.ended.notify_all();
    }
}
