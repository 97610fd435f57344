//! A connection whose owner moves bytes between the socket and memory of his own, past the queues: the blocking style, and the async
//! style where it reads to a large buffer.
//!
//! The queues are for what cannot go past them: bytes that TLS has opened or sealed, and the beginning of a message that did not
//! come whole. In the blocking style there is no timer either; whoever waits asks until when.

use std::time::Duration;

use super::{Conn, Phase, Reading};
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

    /// How long the peer may be silent from now on, if nothing else has to be measured meanwhile.
    #[inline]
    pub(crate) fn silence_alone(&self) -> Option<Option<Duration>> {
        self.clock.silence_alone(&self.profile.deadlines)
    }

    /// Bytes came that nobody was noted to wait for: then it does not matter when.
    #[inline]
    pub(crate) fn received_untimed(&mut self, bytes: usize) {
        debug_assert!(self.silence_alone().is_some(), "something is measured");
        self.received(bytes, Time::ZERO);
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
