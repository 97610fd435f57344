//! The reception of a running server: its desk, at which all workers ask, and each connection's place ([`Admission`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::admission::{Desk, Seat, Turnstile, Verdict};
use super::state::{ServerState, lock};
use crate::address::Address;
use crate::config::{Access, Limits, OverLimit};
use crate::conn::Counts;
use crate::error::{CloseReason, Rule};
use crate::time::Time;
use crate::worker::Message;

/// The desk, and whether the acceptor waits for somebody to leave: under one lock, so that neither misses the other.
pub(super) struct Reception {
    desk: Desk,
    awaited: bool,
}

impl Reception {
    pub(super) fn new(access: Access, limits: Limits, connections_max: usize) -> Reception {
        Reception { desk: Desk::new(access, limits, connections_max), awaited: false }
    }
}

impl ServerState {
    /// Decides about a connection that was accepted; the place is with the worker that has the fewest.
    pub(crate) fn admit(
        self: &Arc<Self>,
        listener: Option<usize>,
        peer: &Address,
        now: Time,
    ) -> Result<Admission, Rule> {
        // Whom a proxy speaks for is not known before it has said so.
        let behind_proxy = self.proxy(listener).is_some();
        let mut reception = lock(&self.reception);
        let queues = listener.is_some() && reception.desk.rules().over_limit == OverLimit::Queue;
        // Other workers may have used it up since this one was let through the turnstile, and it cannot go back.
        let memory_is_short = !queues && self.memory.is_short();
        match reception.desk.admit((!behind_proxy).then_some(peer), memory_is_short, now) {
            Verdict::Admit(seat) => Ok(Admission::new(self.clone(), seat, listener)),
            Verdict::Refuse(rule) => Err(rule),
        }
    }

    /// Whether to take the next connection from the backlog. If not before somebody leaves, whoever leaves says so.
    pub(crate) fn turnstile(&self, now: Time) -> Turnstile {
        let mut reception = lock(&self.reception);
        let turnstile = reception.desk.turnstile(self.memory.is_short(), now);
        reception.awaited |= turnstile == Turnstile::Full;
        turnstile
    }

    /// From now on the next connection that ends is told to the acceptor.
    pub(crate) fn await_leave(&self) {
        lock(&self.reception).awaited = true;
    }

    pub(crate) fn over_limit(&self) -> OverLimit {
        lock(&self.reception).desk.rules().over_limit
    }

    pub(crate) fn connections_max(&self) -> usize {
        lock(&self.reception).desk.connections_max()
    }

    pub(crate) fn limits(&self) -> Limits {
        lock(&self.reception).desk.rules().clone()
    }

    pub(super) fn access(&self) -> Access {
        lock(&self.reception).desk.access().clone()
    }

    pub(super) fn set_access(&self, access: Access) {
        lock(&self.reception).desk.set_access(access);
    }

    pub(super) fn set_limits(&self, limits: Limits, connections_max: usize) {
        let mut reception = lock(&self.reception);
        self.memory.set_max(limits.memory);
        reception.desk.set_rules(limits, connections_max);
    }
}

/// One connection's place in its server; free again when this is dropped, however that comes about.
pub(crate) struct Admission {
    server: Arc<ServerState>,
    seat: Seat,
    worker: u16,
    listener: u8,
}

/// The listener of who came through none.
const NO_LISTENER: u8 = u8::MAX;

impl Admission {
    fn new(server: Arc<ServerState>, seat: Seat, listener: Option<usize>) -> Admission {
        let worker = server.least_loaded();
        server.count_accepted();
        server.connections.fetch_add(1, Ordering::SeqCst);
        server.loads[worker].fetch_add(1, Ordering::Relaxed);
        if let Some(listener) = listener {
            server.listeners[listener].accepted.fetch_add(1, Ordering::Relaxed);
        }
        let listener = listener.map_or(NO_LISTENER, |listener| listener as u8);
        Admission { server, seat, worker: worker as u16, listener }
    }

    /// The worker that is to have the connection.
    pub(crate) fn worker(&self) -> usize {
        self.worker.into()
    }

    /// The proxy has told whom the connection is for.
    pub(crate) fn seat(&mut self, peer: &Address) -> Result<(), Rule> {
        debug_assert_eq!(self.seat, Seat::default(), "it had no place of an address so far");
        self.seat = lock(&self.server.reception).desk.seat(peer)?;
        Ok(())
    }

    /// Which of the server's listeners it came through.
    pub(crate) fn listener(&self) -> Option<usize> {
        (self.listener != NO_LISTENER).then_some(self.listener.into())
    }

    /// The server whose place it is.
    pub(crate) fn server(&self) -> &ServerState {
        &self.server
    }

    /// The connection ended; gives the place back and keeps the books.
    pub(crate) fn closed(self, reason: CloseReason, counts: Counts) {
        self.server.count_close(reason, counts);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.server.loads[self.worker()].fetch_sub(1, Ordering::Relaxed);
        self.server.connections.fetch_sub(1, Ordering::SeqCst);
        let mut reception = lock(&self.server.reception);
        reception.desk.leave(self.seat);
        let awaited = std::mem::take(&mut reception.awaited);
        drop(reception);
        if awaited {
            self.server.tell_first(Message::RoomAgain);
        }
    }
}
