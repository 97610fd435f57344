//! Points in time as every part of Wharf counts them: nanoseconds since the engine's own start.
//!
//! Time comes in as an argument everywhere. Only an engine knows where it comes from, so the simulated engine can make
//! it virtual.

use std::time::Duration;

/// A point in time of one engine.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(u64);

impl Time {
    pub(crate) const ZERO: Time = Time(0);
    /// Later than anything that will happen: 584 years after the start.
    pub(crate) const NEVER: Time = Time(u64::MAX);

    pub(crate) const fn from_nanos(nanos: u64) -> Time {
        Time(nanos)
    }

    pub(crate) const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The point `duration` later; `Duration::MAX` saturates to [`Time::NEVER`].
    pub(crate) fn after(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(nanos(duration)))
    }

    /// The point `duration` earlier; never before the start.
    pub(crate) fn before(self, duration: Duration) -> Time {
        Time(self.0.saturating_sub(nanos(duration)))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub(crate) fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// `Duration::as_nanos` in 64 bits; more than 584 years saturate.
fn nanos(duration: Duration) -> u64 {
    let seconds = duration.as_secs().saturating_mul(1_000_000_000);
    seconds.saturating_add(u64::from(duration.subsec_nanos()))
}
