//! What a pool has done, and how it stands: [`PoolStats`], [`Discard`].

use std::fmt;

/// What a pool has done so far, and how it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Connections that were made.
    pub created: u64,
    /// Connections that could not be made.
    pub failed: u64,
    /// Uses of a connection that had been used before, or made ahead.
    pub reused: u64,
    /// Gets that had to wait, be it for another's connection or for a new one.
    pub waited: u64,
    /// Gets that were not served in time.
    pub timed_out: u64,
    /// Gets that were refused because too many waited.
    pub refused: u64,
    /// Connections that were not used again, by reason.
    pub discarded: Discarded,
    /// Connections that nobody uses, at this moment.
    pub idle: usize,
    /// Connections in use, or handed to somebody who has not looked yet.
    pub in_use: usize,
    /// Connections being made.
    pub making: usize,
    /// Gets that wait for their turn.
    pub waiting: usize,
}

/// Why a connection was not used again.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Discard {
    /// It was closed, or broken.
    Closed,
    /// The peer has ended its side, or is gone.
    HungUp,
    /// Bytes are unread: nobody can know whose answer they are.
    Unread,
    /// Something was sent and no answer was read; see [`PoolOptions::keep_unanswered`](super::PoolOptions::keep_unanswered).
    Unanswered,
    /// An operation was given up in the middle: a read that waited, or a message larger than the send queue.
    Interrupted,
    /// The user's own check failed, or was not done in time.
    Check,
    /// It was idle for too long.
    Idle,
    /// It was too old.
    Aged,
    /// More than [`PoolOptions::idle_max`](super::PoolOptions::idle_max) would have been idle.
    Surplus,
    /// Its user panicked.
    Panicked,
    /// Its user said so, or returned an error from [`Pool::with`](super::Pool::with).
    Asked,
    /// Its user kept it for good.
    Taken,
    /// Somebody on another worker had waited longer.
    Yielded,
    /// The pool was closed, or its server drains.
    PoolClosed,
}

impl Discard {
    /// All reasons.
    pub const ALL: [Discard; 14] = [
        Discard::Closed,
        Discard::HungUp,
        Discard::Unread,
        Discard::Unanswered,
        Discard::Interrupted,
        Discard::Check,
        Discard::Idle,
        Discard::Aged,
        Discard::Surplus,
        Discard::Panicked,
        Discard::Asked,
        Discard::Taken,
        Discard::Yielded,
        Discard::PoolClosed,
    ];
}

impl fmt::Display for Discard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Discard::Closed => "closed",
            Discard::HungUp => "hung up by the peer",
            Discard::Unread => "bytes left unread",
            Discard::Unanswered => "no answer read",
            Discard::Interrupted => "an operation left in the middle",
            Discard::Check => "failed its check",
            Discard::Idle => "idle for too long",
            Discard::Aged => "too old",
            Discard::Surplus => "more than may be idle",
            Discard::Panicked => "its user panicked",
            Discard::Asked => "discarded by its user",
            Discard::Taken => "taken out by its user",
            Discard::Yielded => "given up to another worker",
            Discard::PoolClosed => "the pool closed",
        })
    }
}

/// How many connections were discarded, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discarded([u64; Discard::ALL.len()]);

impl Discarded {
    /// How many for this reason.
    pub fn by(&self, reason: Discard) -> u64 {
        self.0[reason as usize]
    }

    /// How many in all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Discard, u64)> {
        Discard::ALL.into_iter().map(|reason| (reason, self.by(reason))).filter(|(_, count)| *count > 0)
    }

    pub(super) fn count(&mut self, reason: Discard) {
        self.0[reason as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_count() {
        let mut discarded = Discarded::default();
        for (times, reason) in Discard::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| discarded.count(reason));
        }
        for (times, reason) in Discard::ALL.into_iter().enumerate() {
            assert_eq!(discarded.by(reason), times as u64, "{reason}");
        }
        assert_eq!(discarded.total(), (0..14).sum::<u64>());
    }
}
