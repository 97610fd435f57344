//! When to try to connect again: back-off, retry budget, limit of attempts. Knows neither clock nor chance; both come in as arguments.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::error::{Error, Result};
use crate::time::Time;

/// When a [`Reconnect`](crate::reconnect::Reconnect) tries again, and when it gives up.
///
/// ```
/// use std::time::Duration;
/// use wharf::Backoff;
/// use wharf::reconnect::Retry;
///
/// let retry = Retry::default()
///     .backoff(Backoff::new(Duration::from_millis(200), Duration::from_secs(10)))
///     .attempts(20);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    pub(super) backoff: Backoff,
    stable_after: Duration,
    attempts: Option<u32>,
    budget: u32,
    window: Duration,
}

impl Default for Retry {
    fn default() -> Retry {
        Retry {
            backoff: Backoff::default(),
            stable_after: Duration::from_secs(10),
            attempts: None,
            budget: 30,
            window: Duration::from_secs(60),
        }
    }
}

impl Retry {
    /// Sets the pauses between attempts. Default: 100 ms, up to 30 s, with full jitter.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Retry {
        self.backoff = backoff;
        self
    }

    /// Sets how long a connection has to stand for what failed before to be forgotten. One that ends sooner counts as a failure, so
    /// that a server that accepts and hangs up is not stormed. Default: 10 s.
    #[must_use]
    pub fn stable_after(mut self, after: Duration) -> Retry {
        self.stable_after = after;
        self
    }

    /// Sets after how many failures in a row it gives up, with the last error. Default: never.
    #[must_use]
    pub fn attempts(mut self, max: u32) -> Retry {
        self.attempts = Some(max);
        self
    }

    /// Sets the retry budget: at most `count` attempts at once, and as many again in each `window`, evenly. Default: 30 in 60 s.
    ///
    /// It is what bounds the load on a server whatever else happens, with the back-off of a long-lived session always starting anew. When
    /// it is used up, the session waits for it, and says so: [`Wait::Budget`].
    #[must_use]
    pub fn budget(mut self, count: u32, window: Duration) -> Retry {
        (self.budget, self.window) = (count, window);
        self
    }

    pub(super) fn validate(&self) -> Result<()> {
        self.backoff.validate()?;
        if self.attempts == Some(0) {
            return Err(Error::option("attempts", "is 0, so it would never connect"));
        }
        if self.budget == 0 {
            return Err(Error::option("budget", "is 0, so it would never connect"));
        }
        if self.window.is_zero() {
            return Err(Error::option("budget", "has a window of zero, which is no bound at all"));
        }
        Ok(())
    }
}

/// Why a session waits before its next attempt.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// The back-off after so many failures.
    Backoff,
    /// The retry budget is used up, see [`Retry::budget`].
    Budget,
}

/// What is known of attempts so far.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    retry: Retry,
    /// In a row.
    failures: u32,
    /// What is left of the budget, in attempts times the window's nanoseconds, so that refilling it loses nothing to rounding,
    tokens: u128,
    /// as of this time.
    counted_at: Time,
    not_before: Time,
}

/// What to do now.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Try to connect; the attempt is counted.
    Attempt,
    Wait(Duration, Wait),
    /// There were as many attempts as there may be.
    GiveUp,
}

impl Policy {
    pub(super) fn new(retry: Retry, now: Time) -> Policy {
        let tokens = u128::from(retry.budget) * retry.window.as_nanos();
        Policy { retry, failures: 0, tokens, counted_at: now, not_before: now }
    }

    /// What to do now.
    pub(super) fn next(&mut self, now: Time) -> Next {
        if self.retry.attempts.is_some_and(|max| self.failures >= max) {
            return Next::GiveUp;
        }
        self.refill(now);
        let price = self.retry.window.as_nanos();
        let missing = price.saturating_sub(self.tokens);
        let refilled = missing.div_ceil(u128::from(self.retry.budget));
        let refilled = Duration::from_nanos(u64::try_from(refilled).unwrap_or(u64::MAX));
        let pause = self.not_before.since(now);
        if refilled > pause {
            return Next::Wait(refilled, Wait::Budget);
        }
        if !pause.is_zero() {
            return Next::Wait(pause, Wait::Backoff);
        }
        self.tokens -= price;
        Next::Attempt
    }

    /// An attempt failed.
    pub(super) fn failed(&mut self, now: Time, random: u64) {
        self.failures = self.failures.saturating_add(1);
        self.pause(now, random);
    }

    /// A connection that had stood for `lasted` has ended.
    pub(super) fn ended(&mut self, lasted: Duration, now: Time, random: u64) {
        self.failures = if lasted >= self.retry.stable_after { 0 } else { self.failures.saturating_add(1) };
        self.pause(now, random);
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    fn pause(&mut self, now: Time, random: u64) {
        // Also one that stood for long may have ended together with many others.
        self.not_before = now.after(self.retry.backoff.delay(self.failures.max(1), random));
    }

    fn refill(&mut self, now: Time) {
        let full = u128::from(self.retry.budget) * self.retry.window.as_nanos();
        let passed = now.since(self.counted_at).as_nanos() * u128::from(self.retry.budget);
        self.tokens = full.min(self.tokens + passed);
        self.counted_at = now;
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    proptest! {
        /// Whatever fails and whenever: no pause is longer than its bound, and no window has more attempts than the budget allows.
        #[test]
        fn attempts_keep_to_the_back_off_and_the_budget(
            budget in 1u32..8,
            stable in 0u64..5,
            steps in vec((0u64..3 * SECOND, any::<u64>(), any::<bool>()), 1..200),
        ) {
            let window = Duration::from_secs(4);
            let backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
            let retry = Retry::default()
                .backoff(backoff)
                .budget(budget, window)
                .stable_after(Duration::from_secs(stable));
            let mut now = 0;
            let mut policy = Policy::new(retry, Time::from_nanos(now));
            let mut attempts: Vec<u64> = Vec::new();
            for (later, random, connects) in steps {
                // As a driver does: it waits for as long as it is told, and is then served.
                loop {
                    match policy.next(Time::from_nanos(now)) {
                        Next::Attempt => break,
                        Next::Wait(pause, why) => {
                            prop_assert!(pause > Duration::ZERO);
                            let bound = match why {
                                Wait::Backoff => backoff.delay_max(policy.failures().max(1)),
                                Wait::Budget => window,
                            };
                            prop_assert!(pause <= bound, "{:?} {:?}", pause, why);
                            now += u64::try_from(pause.as_nanos()).expect("a short time");
                        }
                        Next::GiveUp => prop_assert!(false, "there is no limit"),
                    }
                }
                attempts.push(now);
                let recent = attempts.iter().filter(|at| **at + 4 * SECOND > now).count();
                // A full bucket, and what came into it meanwhile.
                prop_assert!(recent <= 2 * budget as usize, "{} attempts in a window", recent);
                now += later / 100;
                if connects {
                    now += later;
                    policy.ended(Duration::from_nanos(later), Time::from_nanos(now), random);
                } else {
                    policy.failed(Time::from_nanos(now), random);
                }
            }
            let span = attempts.last().expect("there was one") - attempts[0];
            let allowed = u64::from(budget) + (span * u64::from(budget)).div_ceil(4 * SECOND);
            prop_assert!(attempts.len() as u64 <= allowed, "{} of {}", attempts.len(), allowed);
        }
    }

    #[test]
    fn the_first_attempt_is_made_at_once() {
        assert_eq!(Policy::new(Retry::default(), Time::ZERO).next(Time::ZERO), Next::Attempt);
    }

    #[test]
    fn a_connection_that_stood_resets_the_back_off_and_one_that_did_not_does_not() {
        let mut policy = Policy::new(Retry::default(), Time::ZERO);
        for _ in 0..5 {
            policy.failed(Time::ZERO, 0);
        }
        policy.ended(Duration::from_secs(9), Time::ZERO, 0);
        assert_eq!(policy.failures(), 6);
        policy.ended(Duration::from_secs(10), Time::ZERO, 0);
        assert_eq!(policy.failures(), 0);
        assert_eq!(policy.next(Time::ZERO), Next::Attempt);
    }

    #[test]
    fn it_gives_up_after_so_many_failures() {
        let mut policy = Policy::new(Retry::default().attempts(2), Time::ZERO);
        policy.failed(Time::ZERO, 0);
        assert_eq!(policy.next(Time::ZERO), Next::Attempt);
        policy.failed(Time::ZERO, 0);
        assert_eq!(policy.next(Time::ZERO), Next::GiveUp);
        // That a connection ends that had stood is no failure, but it has its pause.
        let mut policy = Policy::new(Retry::default().attempts(1), Time::ZERO);
        policy.ended(Duration::from_secs(10), Time::ZERO, u64::MAX);
        assert_eq!(policy.next(Time::ZERO), Next::Wait(Duration::from_millis(100), Wait::Backoff));
        policy.ended(Duration::from_secs(9), Time::ZERO, 0);
        assert_eq!(policy.next(Time::ZERO), Next::GiveUp);
    }

    #[test]
    fn options_that_make_no_sense_are_refused_by_name() {
        let refused = [
            (Retry::default().attempts(0), "attempts"),
            (Retry::default().budget(0, Duration::from_secs(1)), "budget"),
            (Retry::default().budget(1, Duration::ZERO), "budget"),
            (Retry::default().backoff(Backoff::new(Duration::ZERO, Duration::ZERO)), "backoff"),
        ];
        for (retry, name) in refused {
            let message = retry.validate().expect_err(name).to_string();
            assert!(message.contains(&format!("`{name}`")), "{message}");
        }
        assert!(Retry::default().validate().is_ok());
    }
}
