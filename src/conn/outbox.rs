//! Bytes waiting to be sent on one connection. Knows nothing about sockets or time.

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

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Outgoing,
    /// Bytes that the engine holds at the moment; 0 when no send is in flight.
    in_flight: usize,
}

impl Outbox {
    /// Bytes queued or in flight.
    pub(crate) fn pending(&self) -> usize {
        self.waiting.len() + self.in_flight
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending() == 0
    }

    /// Whether a message of `len` bytes can be queued whole; if memory is `short`, only one at a time.
    pub(crate) fn room(&self, len: usize, limits: &Limits, short: bool) -> Room {
        let pending = self.pending();
        if len > limits.send_max {
            Room::Never
        } else if pending == 0 || (!short && pending < limits.send_high && pending + len <= limits.send_max) {
            Room::Yes
        } else {
            Room::Later
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, bytes: &[u8], pool: &PiecePool) {
        self.waiting.push_copied(bytes, pool);
    }

    pub(crate) fn push_owned(&mut self, bytes: Bytes, pool: &PiecePool) {
        pool.count().grow(bytes.len());
        self.waiting.push_owned(bytes);
    }

    pub(crate) fn is_in_flight(&self) -> bool {
        self.in_flight > 0
    }

    /// What waits, to be appended to.
    pub(crate) fn tail(&mut self) -> &mut Outgoing {
        &mut self.waiting
    }

    /// Whether the engine should be asked to send: something waits, and no send is in flight.
    pub(crate) fn is_sendable(&self) -> bool {
        self.in_flight == 0 && !self.waiting.is_empty()
    }

    /// Whether what waits lies in several buffers.
    pub(crate) fn is_divided(&self) -> bool {
        self.waiting.has_rest()
    }

    /// What the engine is asked to send.
    pub(crate) fn offer(&mut self) -> &mut Outgoing {
        debug_assert_eq!(self.in_flight, 0, "one send in flight per connection");
        &mut self.waiting
    }

    /// The engine took the `offered` bytes.
    pub(crate) fn taken(&mut self, offered: usize) {
        debug_assert!(self.waiting.is_empty(), "the engine takes all or nothing");
        self.in_flight = offered;
    }

    /// So many bytes that counted as sent are in flight after all.
    pub(crate) fn bounced(&mut self, unsent: usize) {
        self.in_flight += unsent;
    }

    /// The engine sent `n` bytes of what it was offered, and took nothing.
    pub(crate) fn sent_inline(&mut self, n: usize, pool: &PiecePool) {
        self.waiting.advance(n, pool);
    }

    /// The engine is done with `outgoing`, of which `n` bytes were sent; the rest goes first again.
    pub(crate) fn sent(&mut self, outgoing: &mut Outgoing, n: usize, pool: &PiecePool) {
        debug_assert_eq!(outgoing.len(), self.in_flight, "exactly what was taken comes back");
        self.in_flight = 0;
        outgoing.advance(n, pool);
        if !outgoing.is_empty() {
            outgoing.append(&mut self.waiting);
            std::mem::swap(outgoing, &mut self.waiting);
        }
    }

    /// Throws away what is queued, but not what is in flight; returns how many bytes that were.
    pub(crate) fn clear(&mut self, pool: &PiecePool) -> usize {
        let dropped = self.waiting.len();
        self.waiting.advance(dropped, pool);
        dropped
    }
}
