//! The engine's alarm where there is no timerfd: the timeout of the poll itself.

use std::io;
use std::time::Duration;

use crate::time::Time;

pub(super) struct Alarm;

impl Alarm {
    pub(super) fn new() -> io::Result<Alarm> {
        Ok(Alarm)
    }

    /// Returns the timeout with which a poll ends at `until`.
    pub(super) fn set(&mut self, until: Time, now: impl FnOnce() -> Time) -> io::Result<Option<Duration>> {
        Ok(Some(until.since(now())))
    }

    pub(super) fn rang(&mut self) {}
}
