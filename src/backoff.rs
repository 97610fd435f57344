//! How long to wait before the next attempt at something that failed: [`Backoff`]. Knows neither clock nor chance.

use std::time::Duration;

use crate::error::{Error, Result};

/// Delays between attempts: exponential, up to a cap, with full jitter.
///
/// After `n` failures in a row the delay is drawn evenly from zero to `min(cap, base * 2^(n-1))`. The jitter is what keeps many
/// clients apart that lost the same server at the same moment: without it they would all come back at the same moment too.
///
/// ```
/// use std::time::Duration;
/// use wharf::Backoff;
///
/// let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
/// assert_eq!(backoff.delay_max(1), Duration::from_millis(50));
/// assert_eq!(backoff.delay_max(3), Duration::from_millis(200));
/// assert_eq!(backoff.delay_max(100), Duration::from_secs(5));
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
}

impl Default for Backoff {
    /// 100 ms, up to 30 s.
    fn default() -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(30))
    }
}

impl Backoff {
    /// The longest delay after the first failure is `base`, it doubles with each, and none is longer than `cap`.
    pub fn new(base: Duration, cap: Duration) -> Backoff {
        Backoff { base, cap }
    }

    /// The longest delay after so many failures in a row; zero after none.
    pub fn delay_max(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.cap)
    }

    /// The delay after so many failures in a row, as `random`, of which all values are equally likely, decides.
    pub(crate) fn delay(&self, failures: u32, random: u64) -> Duration {
        let bound = self.delay_max(failures).as_nanos() + 1;
        // The product's upper half: even enough, and without a division.
        Duration::from_nanos(u64::try_from((bound * u128::from(random)) >> 64).unwrap_or(u64::MAX))
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.base.is_zero() {
            return Err(Error::option("backoff", "has a base of zero, which would be no pause at all"));
        }
        if self.cap < self.base {
            return Err(Error::option("backoff", "has a cap below its base"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_delay_is_within_its_bound_and_below_the_cap(
            base in 1u64..10_000_000_000,
            cap in 1u64..100_000_000_000,
            failures in 0u32..200,
            random in any::<u64>(),
        ) {
            let backoff = Backoff::new(Duration::from_nanos(base), Duration::from_nanos(cap.max(base)));
            let delay = backoff.delay(failures, random);
            prop_assert!(delay <= backoff.delay_max(failures));
            prop_assert!(delay <= backoff.cap);
            prop_assert!(failures > 0 || delay.is_zero());
            prop_assert!(backoff.delay_max(failures) <= backoff.delay_max(failures + 1));
        }
    }

    #[test]
    fn delays_reach_from_nothing_to_the_bound() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(1, 0), Duration::ZERO);
        assert_eq!(backoff.delay(1, u64::MAX), Duration::from_millis(100));
        assert_eq!(backoff.delay(u32::MAX, u64::MAX), Duration::from_secs(30));
    }
}
