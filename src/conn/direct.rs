//! A connection whose owner moves bytes between the socket and memory of his own, past the queues: the blocking style, and the async
//! style where it reads to a large buffer.
//!
//! The queues are for what cannot go past them: bytes that TLS has opened or sealed, and the beginning of a message that did not
//! come whole. In the blocking style there is no timer either; whoever waits asks until when.

use std::time::Duration;

use super::{Conn, Phase, Reading, Undone, Writing};
use crate::engine::buffer::Received;
use crate::time::Time;

impl<C: Received> Conn<C> {
    /// When the deadlines have to be looked at next.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.clock.next(&self.profile.deadlines)
    }

    /// Whether the peer may still send something.
    pub(crate) fn is_receiving(&self) -> bool {
        self.reading == Reading::Open && matches!(self.phase, Phase::Open | Phase::Closing)
    }

    /// Whether what is received next can go to the reader as it is.
    pub(crate) fn reads_past_inbox(&self) -> bool {
        self.phase == Phase::Open && self.reading == Reading::Open && self.tls.is_none() && self.unread() == 0
    }

    /// Whether nothing has to be measured from now on but how long the peer is silent, for which it has [`Conn::idle`].
    #[inline]
    pub(crate) fn silence_alone(&self) -> bool {
        self.clock.silence_alone(&self.profile.deadlines)
    }

    pub(crate) fn idle(&self) -> Option<Duration> {
        self.profile.deadlines.idle
    }

    /// Bytes went to the reader as they are, and nobody was noted to wait for them: then it does not matter when.
    #[inline]
    pub(crate) fn received_untimed(&mut self, bytes: usize) {
        debug_assert!(self.silence_alone() && self.reads_past_inbox(), "something is measured");
        self.counts.received += bytes as u64;
        self.clock.heard();
        self.undone = Undone { message: self.undone.message, ..Undone::default() };
    }

    /// Whether bytes can go to the kernel as they are, and nothing is measured but how long it has no room for them.
    #[inline]
    pub(crate) fn sends_past_queue(&self) -> bool {
        self.phase == Phase::Open
            && self.writing == Writing::Open
            && self.tls.is_none()
            && self.outbox.is_empty()
    }

    /// All of a message went to the kernel as it is.
    #[inline]
    pub(crate) fn sent_whole(&mut self, bytes: usize) {
        debug_assert!(self.sends_past_queue(), "it went past others");
        self.counts.sent += bytes as u64;
        self.clock.written();
    }

    /// Bytes came, of which the first `n` are with the reader already; the `rest` it had no room for.
    pub(crate) fn received_past_inbox(&mut self, n: usize, rest: Option<C>, now: Time) {
        debug_assert!(self.reads_past_inbox(), "others come first, or the connection is over");
        self.received(n + rest.as_ref().map_or(0, |rest| rest.len()), now);
        self.message_read();
        self.stop_awaiting();
        if let Some(rest) = rest {
            self.deliver(rest);
        }
    }

    /// The engine knows of bytes that nobody has received yet: the peer is not silent.
    pub(crate) fn noticed(&mut self, now: Time) {
        self.clock.received(0, now, &self.profile.deadlines);
    }

    /// Received bytes went to the reader as they are; with them a message is complete, or it is nobody's beginning.
    pub(crate) fn message_read(&mut self) {
        self.clock.message_over();
    }

    /// The kernel has no room: from now on the peer's closed window counts.
    pub(crate) fn await_room(&mut self, now: Time) {
        if !self.clock.is_writing() {
            self.clock.writing(now, &self.profile.deadlines);
        }
    }

    /// It took something, and more is to come.
    pub(crate) fn moved(&mut self, now: Time) {
        self.clock.writing(now, &self.profile.deadlines);
    }

    /// Nothing more is to come.
    pub(crate) fn caught_up(&mut self) {
        if self.outbox.is_empty() {
            self.clock.written();
        }
    }
}
