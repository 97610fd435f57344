//! Points in time as every part of Wharf counts them: nanoseconds since the engine's own start.
//!
//! Time comes in as an argument everywhere. Only an engine knows where it comes from, so the simulated engine can make
//! it virtual.

use std::num::NonZero;
use std::time::Duration;

/// A point in time of one engine. Counted from 1, so that an `Option<Time>` is no larger: connections keep several.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(NonZero<u64>);

impl Time {
    pub(crate) const ZERO: Time = Time(NonZero::<u64>::MIN);
    /// Later than anything that will happen: 584 years after the start.
    pub(crate) const NEVER: Time = Time(NonZero::<u64>::MAX);

    pub(crate) const fn from_nanos(nanos: u64) -> Time {
        Time(NonZero::<u64>::MIN.saturating_add(nanos))
    }

    pub(crate) const fn as_nanos(self) -> u64 {
        self.0.get() - 1
    }

    /// The point `duration` later; `Duration::MAX` saturates to [`Time::NEVER`].
    pub(crate) fn after(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(nanos(duration)))
    }

    /// The point `duration` earlier; never before the start.
    pub(crate) fn before(self, duration: Duration) -> Time {
        Time::from_nanos(self.as_nanos().saturating_sub(nanos(duration)))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub(crate) fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.as_nanos().saturating_sub(earlier.as_nanos()))
    }
}

/// `Duration::as_nanos` in 64 bits; more than 584 years saturate.
fn nanos(duration: Duration) -> u64 {
    let seconds = duration.as_secs().saturating_mul(1_000_000_000);
    seconds.saturating_add(u64::from(duration.subsec_nanos()))
}
