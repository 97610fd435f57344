//! The deadlines of one connection. Time comes in as an argument; what has passed is told when asked.
//!
//! Nothing here touches a timer. The worker asks for the earliest deadline and keeps one timer per connection, which it
//! corrects only when it fires: a deadline that moves with every message costs a store, not a timer operation.

use std::time::Duration;

use crate::config;
use crate::error::Deadline;
use crate::time::Time;

#[derive(Debug)]
pub(crate) struct Clock {
    idle: Option<Duration>,
    write: Option<Duration>,
    linger: Duration,
    /// When the last byte came, or the wait for one began. None while nobody waits to read.
    reading_since: Option<Time>,
    /// When the last byte left, or the queue stopped being empty. None while nothing is queued.
    writing_since: Option<Time>,
    age_at: Option<Time>,
    handler_at: Option<Time>,
    linger_at: Option<Time>,
    close_at: Option<Time>,
    reset_at: Option<Time>,
}

/// What a passed deadline asks for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// End the connection for this reason.
    Deadline(Deadline),
    /// The peer did not end in time; stop waiting for it.
    Linger,
    /// A delayed close is due.
    Close,
    /// A delayed reset is due.
    Reset,
}

impl Clock {
    pub(crate) fn new(deadlines: &config::Deadlines, now: Time) -> Clock {
        Clock {
            idle: deadlines.idle,
            write: deadlines.write,
            linger: deadlines.linger,
            reading_since: None,
            writing_since: None,
            age_at: deadlines.age.map(|age| now.after(age)),
            handler_at: None,
            linger_at: None,
            close_at: None,
            reset_at: None,
        }
    }

    pub(crate) fn reading(&mut self, since: Option<Time>) {
        self.reading_since = since;
    }

    /// A byte came; counts only while one is awaited.
    pub(crate) fn received(&mut self, now: Time) {
        if self.reading_since.is_some() {
            self.reading_since = Some(now);
        }
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.writing_since.is_some()
    }

    pub(crate) fn writing(&mut self, since: Option<Time>) {
        self.writing_since = since;
    }

    pub(crate) fn handler(&mut self, at: Option<Time>) {
        self.handler_at = at;
    }

    pub(crate) fn close(&mut self, at: Time) {
        self.close_at = Some(at);
    }

    pub(crate) fn reset(&mut self, at: Time) {
        self.reset_at = Some(at);
    }

    /// From now on only the queue's progress, and after it the peer's end, are waited for.
    pub(crate) fn closing(&mut self) {
        (self.reading_since, self.handler_at, self.close_at) = (None, None, None);
    }

    /// Starts the linger time, unless it runs already.
    pub(crate) fn linger_once(&mut self, now: Time) {
        self.linger_at.get_or_insert(now.after(self.linger));
    }

    /// A deadline has ended the connection: it must not do so again while the connection closes.
    pub(crate) fn late(&mut self) {
        self.age_at = None;
    }

    /// Nothing is waited for any more.
    pub(crate) fn stop(&mut self) {
        self.closing();
        (self.writing_since, self.age_at, self.linger_at, self.reset_at) = (None, None, None, None);
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Time> {
        self.all().into_iter().flatten().map(|(at, _)| at).min()
    }

    /// The earliest deadline that has passed.
    pub(crate) fn expired(&self, now: Time) -> Option<Expired> {
        let passed = self.all().into_iter().flatten().filter(|(at, _)| *at <= now);
        passed.min_by_key(|(at, _)| *at).map(|(_, expired)| expired)
    }

    /// A delayed close or reset that was due is done.
    pub(crate) fn done(&mut self, expired: Expired) {
        match expired {
            Expired::Close => self.close_at = None,
            Expired::Reset => self.reset_at = None,
            Expired::Linger => self.linger_at = None,
            Expired::Deadline(_) => {}
        }
    }

    fn all(&self) -> [Option<(Time, Expired)>; 7] {
        let progress = |since: Option<Time>, within: Option<Duration>| Some(since?.after(within?));
        let deadline = |at: Option<Time>, which| at.map(|at| (at, Expired::Deadline(which)));
        [
            deadline(progress(self.reading_since, self.idle), Deadline::Idle),
            deadline(progress(self.writing_since, self.write), Deadline::Write),
            deadline(self.age_at, Deadline::Age),
            deadline(self.handler_at, Deadline::Handler),
            self.linger_at.map(|at| (at, Expired::Linger)),
            self.close_at.map(|at| (at, Expired::Close)),
            self.reset_at.map(|at| (at, Expired::Reset)),
        ]
    }
}
