//! What a server tells the service manager of itself, if it was asked to.

use std::sync::atomic::{AtomicBool, Ordering};

use super::state::ServerState;
use crate::systemd::{self, State};

/// Whom the manager takes for the service, as far as this server has a part in it.
pub(super) struct Notices {
    /// The manager is told what the server is about.
    wanted: bool,
    /// It was told that the server serves; so it is to be told of the drain,
    ready: AtomicBool,
    /// unless a successor goes on with the service.
    replaced: AtomicBool,
}

impl Notices {
    pub(super) fn new(wanted: bool) -> Notices {
        Notices { wanted, ready: AtomicBool::new(false), replaced: AtomicBool::new(false) }
    }

    fn tell(&self, states: &[State<'_>]) {
        if self.wanted
            && let Err(error) = systemd::notify(states)
        {
            event!(warn, %error, "the service manager could not be told");
            let _ = error;
        }
    }
}

impl ServerState {
    /// All workers serve. One that has inherited its listeners is the service's main process from now on.
    pub(super) fn notify_of_start(&self, inherited: bool) {
        let main = inherited.then(|| State::MainProcess(std::process::id()));
        let states: Vec<_> = main.into_iter().chain([State::Ready]).collect();
        self.notices.ready.store(true, Ordering::SeqCst);
        self.notices.tell(&states);
    }

    /// A successor is the service from now on.
    pub(super) fn notify_of_successor(&self, process: u32) {
        self.notices.replaced.store(true, Ordering::SeqCst);
        self.notices.tell(&[State::MainProcess(process)]);
    }

    /// The drain has begun. That of a start which has failed is nobody's business.
    pub(crate) fn notify_of_drain(&self) {
        let Notices { ready, replaced, .. } = &self.notices;
        if ready.load(Ordering::SeqCst) && !replaced.load(Ordering::SeqCst) {
            self.notices.tell(&[State::Stopping]);
        }
    }
}
