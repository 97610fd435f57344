//! A worker's pulse: whether it turns, readable by other threads, and which handler is to blame if it does not.
//!
//! The worker beats twice in a turn, once when it begins to work and once when it begins to wait: two plain stores. A watchdog
//! on another thread sees a beat that lasts too long and marks it; the handler that returns first after that is the one
//! that blocked, so nothing has to be noted before a handler is called. A mark that no handler has taken ends with the beat.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// Odd while the worker works.
    beats: AtomicU64,
    /// The watchdog has seen that it does not turn.
    blocked: AtomicBool,
}

impl Pulse {
    /// The worker begins to work, or to wait.
    pub(super) fn beat(&self, works: bool) {
        if !works {
            // It turns again. If no handler was to blame, a task was, or whoever watches the server.
            self.take_blocked();
        }
        // Only the worker writes it.
        let beats = self.beats.load(Ordering::Relaxed);
        if (beats % 2 == 1) != works {
            self.beats.store(beats + 1, Ordering::Relaxed);
        }
    }

    /// Whether it was marked since the last time that it was asked.
    #[inline]
    pub(super) fn take_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) && self.blocked.swap(false, Ordering::Relaxed)
    }

    /// Whether it is marked, and works on what it was marked for: a mark may come late.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) && !self.beats.load(Ordering::Relaxed).is_multiple_of(2)
    }
}

/// What a watchdog remembers of one pulse.
#[derive(Debug, Default)]
pub(crate) struct Observation {
    beats: u64,
    /// For how long it has been the same, working, beat.
    lasted: Duration,
    told: bool,
}

impl Observation {
    /// Looks again, `later` than the last time. For how long the worker has not turned, when that passes `limit`: once.
    pub(crate) fn look(&mut self, pulse: &Pulse, later: Duration, limit: Duration) -> Option<Duration> {
        let beats = pulse.beats.load(Ordering::Relaxed);
        if beats != self.beats || beats.is_multiple_of(2) {
            *self = Observation { beats, ..Observation::default() };
            return None;
        }
        self.lasted += later;
        if self.told || self.lasted < limit {
            return None;
        }
        self.told = true;
        pulse.blocked.store(true, Ordering::Relaxed);
        Some(self.lasted)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Backend;
    use crate::engine::Engine;
    use crate::worker::Worker;

    const LIMIT: Duration = Duration::from_secs(1);
    const HALF: Duration = Duration::from_millis(500);

    #[test]
    fn a_beat_that_lasts_is_told_once_and_marked() {
        let (pulse, mut seen) = (Pulse::default(), Observation::default());
        pulse.beat(true);
        assert_eq!(seen.look(&pulse, HALF, LIMIT), None);
        assert_eq!(seen.look(&pulse, HALF, LIMIT), None);
        assert_eq!(seen.look(&pulse, HALF, LIMIT), Some(LIMIT));
        assert_eq!(seen.look(&pulse, HALF, LIMIT), None);
        assert!(pulse.take_blocked());
        assert!(!pulse.take_blocked());
    }

    #[test]
    fn a_mark_that_no_handler_takes_ends_with_the_beat() {
        let (pulse, mut seen) = (Pulse::default(), Observation::default());
        pulse.beat(true);
        seen.look(&pulse, HALF, LIMIT);
        seen.look(&pulse, LIMIT, LIMIT);
        assert!(pulse.is_blocked());
        pulse.beat(false);
        pulse.beat(true);
        assert!(!pulse.is_blocked() && !pulse.take_blocked(), "the next handler is not to blame");
    }

    #[test]
    fn a_mark_that_comes_when_the_worker_waits_keeps_nobody_away() {
        let pulse = Pulse::default();
        pulse.blocked.store(true, Ordering::Relaxed);
        assert!(!pulse.is_blocked());
    }

    #[test]
    fn a_worker_that_waits_or_turns_is_well() {
        let (pulse, mut seen) = (Pulse::default(), Observation::default());
        for _ in 0..10 {
            assert_eq!(seen.look(&pulse, HALF, LIMIT), None);
        }
        for _ in 0..10 {
            pulse.beat(true);
            assert_eq!(seen.look(&pulse, HALF, LIMIT), None);
            pulse.beat(false);
        }
        assert!(!pulse.is_blocked());
    }

    #[test]
    fn a_worker_that_has_ended_is_well() {
        let engine = Engine::new(Backend::Readiness).expect("readiness works everywhere");
        let (worker, pulse, mut seen) =
            (Worker::new(engine), Arc::new(Pulse::default()), Observation::default());
        worker.watch(pulse.clone());
        worker.turn(false);
        worker.shut();
        for _ in 0..10 {
            assert_eq!(seen.look(&pulse, HALF, LIMIT), None);
        }
    }
}
