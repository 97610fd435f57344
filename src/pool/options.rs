//! What bounds a pool, with every default: [`PoolOptions`].

use std::time::Duration;

use super::core::Bounds;
use crate::backoff::Backoff;
use crate::error::{Error, Result};

/// The bounds of a pool, and when it stops using a connection.
///
/// ```
/// use std::time::Duration;
/// use wharf::pool::PoolOptions;
///
/// let options = PoolOptions::default().size(32).idle_min(2).idle(Duration::from_secs(20));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct PoolOptions {
    size: usize,
    idle_max: Option<usize>,
    idle_min: usize,
    waiters: usize,
    pub(super) endpoints: usize,
    pub(super) within: Duration,
    pub(super) max_idle: Duration,
    pub(super) max_age: Duration,
    pub(super) check_within: Duration,
    pub(super) backoff: Backoff,
    pub(super) keep_unanswered: bool,
    pub(super) patience: Duration,
    pub(super) label: Option<String>,
}

impl Default for PoolOptions {
    fn default() -> PoolOptions {
        PoolOptions {
            size: 16,
            idle_max: None,
            idle_min: 0,
            waiters: 1024,
            endpoints: 64,
            within: Duration::from_secs(10),
            max_idle: Duration::from_secs(60),
            max_age: Duration::from_secs(30 * 60),
            check_within: Duration::from_secs(1),
            backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(5)),
            keep_unanswered: false,
            patience: Duration::from_millis(10),
            label: None,
        }
    }
}

impl PoolOptions {
    /// Sets how many there are at most: in use, idle and being made. Default: 16.
    #[must_use]
    pub fn size(mut self, max: usize) -> PoolOptions {
        self.size = max;
        self
    }

    /// Sets how many are kept idle at most. Default: all of them.
    #[must_use]
    pub fn idle_max(mut self, count: usize) -> PoolOptions {
        self.idle_max = Some(count);
        self
    }

    /// Sets how many are made ahead and kept idle, from the first use of the pool or [`Pool::warm`](super::Pool::warm) on. Default: 0.
    #[must_use]
    pub fn idle_min(mut self, count: usize) -> PoolOptions {
        self.idle_min = count;
        self
    }

    /// Sets how many may wait for one at once; who comes then gets an error. Default: 1024.
    #[must_use]
    pub fn waiters(mut self, max: usize) -> PoolOptions {
        self.waiters = max;
        self
    }

    /// Sets how many keys of a [`Pools`](super::Pools) have a pool at once. Default: 64.
    #[must_use]
    pub fn endpoints(mut self, max: usize) -> PoolOptions {
        self.endpoints = max;
        self
    }

    /// Sets the deadline of a [`Pool::get`](super::Pool::get) as a whole: waiting, checking, connecting. Default: 10 s.
    #[must_use]
    pub fn within(mut self, after: Duration) -> PoolOptions {
        self.within = after;
        self
    }

    /// Sets how long one may be idle before it is closed. It should be less than what the server allows. Default: 60 s.
    #[must_use]
    pub fn idle(mut self, after: Duration) -> PoolOptions {
        self.max_idle = after;
        self
    }

    /// Sets how old one may be when it is used again, so that connections move on when servers are added. Each has its own age, by chance
    /// up to a tenth less, so that they do not end together. Default: 30 min.
    #[must_use]
    pub fn age(mut self, after: Duration) -> PoolOptions {
        self.max_age = after;
        self
    }

    /// Sets the deadline of a [`Lifecycle::check`](super::Lifecycle::check). One that is late is not fit for use. Default: 1 s.
    #[must_use]
    pub fn check_within(mut self, after: Duration) -> PoolOptions {
        self.check_within = after;
        self
    }

    /// Sets the pauses after connections could not be made. Until one can, they are tried one at a time. Default: 50 ms, up to 5 s.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> PoolOptions {
        self.backoff = backoff;
        self
    }

    /// Sets whether a connection is used again on which something was sent and nothing was read since. Default: `false`, for an answer
    /// that still comes would be taken for the next request's. `true` is for protocols that do not answer.
    #[must_use]
    pub fn keep_unanswered(mut self, keep: bool) -> PoolOptions {
        self.keep_unanswered = keep;
        self
    }

    /// Sets by how much a ticket may be overtaken by a later one on another worker, in a [`SharedPool`](super::SharedPool). Default: 10 ms.
    ///
    /// A connection cannot change its worker: to serve tickets of different workers strictly in turn, one is closed and another made
    /// for almost every use. So a connection that comes free is used again where it is, unless somebody elsewhere has waited so much longer.
    #[must_use]
    pub fn patience(mut self, slack: Duration) -> PoolOptions {
        self.patience = slack;
        self
    }

    /// Names the pool in its errors. Default: it has no name.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> PoolOptions {
        self.label = Some(label.into());
        self
    }

    /// The most there may be.
    pub(super) fn max(&self) -> usize {
        self.size
    }

    pub(super) fn bounds(&self, shared: bool) -> Bounds {
        Bounds {
            max: self.size,
            idle_max: self.idle_max.unwrap_or(self.size),
            idle_min: self.idle_min,
            waiters_max: self.waiters,
            max_idle: self.max_idle,
            shared,
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        let refused = |name, problem: &str| Err(Error::option(name, problem));
        if self.size == 0 {
            return refused("size", "is 0, so nobody could ever get a connection");
        }
        if self.idle_min > self.idle_max.unwrap_or(self.size) || self.idle_min > self.size {
            return refused("idle_min", "is more than `idle_max` or `size` allows");
        }
        if self.endpoints == 0 {
            return refused("endpoints", "is 0, so no key could ever have a pool");
        }
        if self.max_idle.is_zero() {
            return refused("idle", "is zero; to keep none, set `idle_max` to 0");
        }
        if self.max_age.is_zero() {
            return refused("age", "is zero; to keep none, set `idle_max` to 0");
        }
        if self.check_within.is_zero() {
            return refused("check_within", "is zero, so no check could succeed");
        }
        self.backoff.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert!(PoolOptions::default().validate().is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let options = PoolOptions::default;
        let refused = [
            (options().size(0), "size"),
            (options().idle_min(17), "idle_min"),
            (options().idle_max(1).idle_min(2), "idle_min"),
            (options().endpoints(0), "endpoints"),
            (options().idle(Duration::ZERO), "idle"),
            (options().age(Duration::ZERO), "age"),
            (options().check_within(Duration::ZERO), "check_within"),
            (options().backoff(Backoff::new(Duration::ZERO, Duration::ZERO)), "backoff"),
        ];
        for (options, name) in refused {
            let message = options.validate().expect_err(name).to_string();
            assert!(message.contains(&format!("`{name}`")), "{message}");
        }
    }
}
