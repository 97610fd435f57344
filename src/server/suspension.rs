//! Suspending a server: asked for by its handles, carried out by the worker that accepts (`worker/accept.rs`).

use std::sync::atomic::Ordering;

use super::holdings::ListenerState;
use super::listen::Opened;
use super::state::{ServerState, lock};
use crate::engine::ListenerId;
use crate::error::{Error, Operation, Result};
use crate::worker::Message;

/// Whether accepting is suspended, as handles ask for it and the acceptor carries it out: under one lock, so that whoever
/// resumes knows which addresses are free again.
#[derive(Default)]
pub(super) struct Suspension {
    asked: bool,
    /// Counts the requests, so that one that was taken back before it was carried out is none.
    round: u64,
    /// The listeners that are closed and have to be opened again.
    closed: Vec<usize>,
}

impl ServerState {
    /// Asks the acceptor to suspend.
    pub(super) fn suspend(&self) {
        let mut suspension = lock(&self.suspension);
        if !suspension.asked {
            suspension.asked = true;
            suspension.round += 1;
            self.tell_first(Message::Suspend { round: suspension.round });
        }
    }

    /// Opens again what is closed, and has it accepted from.
    pub(super) fn resume(&self) -> Result<()> {
        let mut suspension = lock(&self.suspension);
        if !suspension.asked || self.drain_begun.load(Ordering::SeqCst) || self.has_crashed(0) {
            return Ok(());
        }
        let open = |index: &usize| {
            let ListenerState { listen, address, .. } = &self.listeners[*index];
            Ok((*index, listen.open(&self.sockets, Some(address), None)?))
        };
        // All of them or none.
        let opened = suspension.closed.iter().map(open).collect::<Result<Vec<_>>>()?;
        let hold = |(index, opened): (usize, Opened)| {
            let failed = |error| Error::os(Operation::Listen, error).at(&self.listeners[index].address);
            Ok((ListenerId(index as u32), self.hold(index, opened).map_err(failed)?))
        };
        let reopened = opened.into_iter().map(hold).collect::<Result<Vec<_>>>();
        let reopened =
            reopened.inspect_err(|_| suspension.closed.iter().for_each(|index| self.close_copy(*index)))?;
        *suspension = Suspension { round: suspension.round + 1, ..Suspension::default() };
        self.tell_first(Message::Resume(reopened));
        Ok(())
    }

    pub(super) fn is_suspended(&self) -> bool {
        lock(&self.suspension).asked
    }

    /// Whether that request to suspend still stands.
    pub(crate) fn is_to_suspend(&self, round: u64) -> bool {
        lock(&self.suspension).round == round
    }

    /// Has `close` close a listener that can be opened again, if the request to suspend still stands; says whether it does.
    pub(crate) fn suspend_listener(&self, round: u64, listener: usize, close: impl FnOnce()) -> bool {
        let mut suspension = lock(&self.suspension);
        let stands = suspension.round == round;
        if stands {
            close();
            self.close_copy(listener);
            suspension.closed.push(listener);
        }
        stands
    }
}
