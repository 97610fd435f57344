//! Bytes waiting to be sent on one connection. Knows nothing about sockets or time.

use std::rc::Rc;

use bytes::Bytes;

use crate::config::Limits;
use crate::engine::buffer::{Outgoing, PiecePool};

/// Whether a message can be queued now.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Yes,
    /// When the queue has drained to its low mark.
    Later,
    /// It is larger than the queue may ever be.
    Never,
}

#[derive(Debug)]
pub(crate) struct Outbox {
    waiting: Outgoing,
    /// Bytes that the engine holds at the moment; 0 when no send is in flight.
    in_flight: usize,
    /// Bytes that the engine was offered last.
    offered: usize,
    /// Somebody was told to wait until the low mark.
    blocked: bool,
    low: usize,
    high: usize,
    max: usize,
    pool: Rc<PiecePool>,
}

impl std::fmt::Debug for PiecePool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PiecePool")
    }
}

impl Outbox {
    pub(crate) fn new(limits: &Limits, pool: Rc<PiecePool>) -> Outbox {
        let Limits { send_low: low, send_high: high, send_max: max, .. } = *limits;
        Outbox {
            waiting: Outgoing::default(),
            in_flight: 0,
            offered: 0,
            blocked: false,
            low,
            high,
            max,
            pool,
        }
    }

    /// Bytes queued or in flight.
    pub(crate) fn pending(&self) -> usize {
        self.waiting.len() + self.in_flight
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending() == 0
    }

    pub(crate) fn high(&self) -> usize {
        self.high
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// Whether a message of `len` bytes can be queued whole; remembers that somebody waits if not yet.
    pub(crate) fn room(&mut self, len: usize) -> Room {
        let pending = self.pending();
        if len > self.max {
            Room::Never
        } else if pending == 0 || (pending < self.high && pending + len <= self.max) {
            Room::Yes
        } else {
            self.blocked = true;
            Room::Later
        }
    }

    /// Bytes that may be queued before the hard bound.
    fn spare(&self) -> usize {
        self.max - self.pending()
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= self.spare(), "the hard bound of the send queue");
        self.waiting.push_copied(bytes, &self.pool);
    }

    pub(crate) fn push_owned(&mut self, bytes: Bytes) {
        debug_assert!(bytes.len() <= self.spare(), "the hard bound of the send queue");
        self.waiting.push_owned(bytes);
    }

    /// Whether the engine should be asked to send: something waits, and no send is in flight.
    pub(crate) fn is_sendable(&self) -> bool {
        self.in_flight == 0 && !self.waiting.is_empty()
    }

    /// What the engine is asked to send.
    pub(crate) fn offer(&mut self) -> &mut Outgoing {
        debug_assert_eq!(self.in_flight, 0, "one send in flight per connection");
        self.offered = self.waiting.len();
        &mut self.waiting
    }

    /// The engine took what it was offered.
    pub(crate) fn taken(&mut self) {
        debug_assert!(self.waiting.is_empty(), "the engine takes all or nothing");
        self.in_flight = self.offered;
    }

    /// The engine sent `n` bytes of what it was offered, and took nothing.
    pub(crate) fn sent_inline(&mut self, n: usize) {
        self.waiting.advance(n, &self.pool);
    }

    /// The engine is done with `outgoing`, of which `n` bytes were sent; the rest goes first again.
    pub(crate) fn sent(&mut self, outgoing: &mut Outgoing, n: usize) {
        debug_assert_eq!(outgoing.len(), self.in_flight, "exactly what was taken comes back");
        self.in_flight = 0;
        outgoing.advance(n, &self.pool);
        if !outgoing.is_empty() {
            outgoing.append(&mut self.waiting);
            std::mem::swap(outgoing, &mut self.waiting);
        }
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether those who waited may go on; says so once.
    pub(crate) fn unblock(&mut self) -> bool {
        let unblocked = self.blocked && self.pending() <= self.low;
        self.blocked &= !unblocked;
        unblocked
    }

    /// Throws away what is queued, but not what is in flight; returns how many bytes that were.
    pub(crate) fn clear(&mut self) -> usize {
        let dropped = self.waiting.len();
        self.waiting.advance(dropped, &self.pool);
        dropped
    }
}
