//! What a server has done so far, in figures: [`Stats`].

use crate::error::{CloseReason, Rule};

/// What a server has done: connections, bytes, who was refused, and why connections ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections that were let in.
    pub accepted: u64,
    /// Errors while accepting.
    pub accept_errors: u64,
    /// Connections that were refused, for each rule that refused any. One that was refused when its proxy had told whom it is for
    /// was let in before, and counts there as well.
    pub refused: Vec<(Rule, u64)>,
    /// Bytes received on connections that have ended.
    pub received: u64,
    /// Bytes handed to the kernel on connections that have ended.
    pub sent: u64,
    /// Bytes that were queued on connections that have ended, and never sent.
    pub unsent: u64,
    /// TLS handshakes that were done, those of resumed sessions and those in mid-stream among them.
    pub handshakes: u64,
    /// TLS handshakes that resumed a session.
    pub resumed: u64,
    /// Connections whose TLS handshake failed, or was not done in time, so that no handler has seen them. One that fails in
    /// mid-stream is among `closes` only.
    pub handshakes_failed: u64,
    /// Handlers that panicked.
    pub panics: u64,
    /// Times that a handler kept its worker for longer than [`Server::watchdog`](crate::Server::watchdog) allows.
    pub stalls: u64,
    /// Why connections ended and how many for each reason, most frequent first.
    pub closes: Vec<(CloseReason, u64)>,
    /// What became of those who were there when the server began to drain.
    pub drain: DrainReport,
}

/// What became of the connections that a draining server still had.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainReport {
    /// Connections that ended by themselves in time.
    pub finished: u64,
    /// Connections that were reset at the deadline.
    pub reset: u64,
    /// Bytes that were queued on them and never sent.
    pub lost: u64,
}

impl Stats {
    /// How many connections ended for `reason`.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closes.iter().find(|(each, _)| *each == reason).map_or(0, |(_, count)| *count)
    }

    /// How many connections `rule` refused.
    pub fn refused_by(&self, rule: Rule) -> u64 {
        self.refused.iter().find(|(each, _)| *each == rule).map_or(0, |(_, count)| *count)
    }

    /// How many connections were refused in all.
    pub fn refusals(&self) -> u64 {
        self.refused.iter().map(|(_, count)| count).sum()
    }
}
