//! The deadlines of one connection. Time comes in as an argument; what has passed is told when asked.
//!
//! Nothing here touches a timer. The worker keeps one per connection, and is told of a new time for it only when a
//! deadline is earlier. One that moves later, as with every message, costs a comparison: when the timer fires too early,
//! the deadlines are looked at again.

use std::time::Duration;

use crate::config::Deadlines;
use crate::error::Deadline;
use crate::time::Time;

#[derive(Debug)]
pub(crate) struct Clock {
    silence: Silence,
    /// When the last byte left, or the queue stopped being empty. None while nothing is queued.
    writing_since: Option<Time>,
    age_at: Option<Time>,
    handler_at: Option<Time>,
    linger_at: Option<Time>,
    close_at: Option<Time>,
    reset_at: Option<Time>,
    /// When the worker's timer will look at the deadlines.
    timer_at: Time,
    /// A deadline is earlier than the timer.
    urgent: bool,
}

/// How long the peer has been silent while somebody waited to read.
#[derive(Debug)]
enum Silence {
    /// When the last byte came, or the wait for one began, earlier by the waits that were in vain.
    Since(Time),
    /// Nobody waits to read. Earlier waits, since the last byte, were in vain for so long.
    Before(Duration),
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
    pub(crate) fn new(deadlines: &Deadlines, now: Time) -> Clock {
        Clock {
            silence: Silence::Before(Duration::ZERO),
            writing_since: None,
            age_at: deadlines.age.map(|age| now.after(age)),
            handler_at: None,
            linger_at: None,
            close_at: None,
            reset_at: None,
            timer_at: Time::NEVER,
            urgent: deadlines.age.is_some(),
        }
    }

    /// A byte is awaited; that may be said again at any time.
    pub(crate) fn read_awaited(&mut self, now: Time, deadlines: &Deadlines) {
        if let Silence::Before(silent) = self.silence {
            let since = now.before(silent);
            self.silence = Silence::Since(since);
            self.hurry(progress(Some(since), deadlines.idle));
        }
    }

    /// The wait is given up without a byte. The silence so far counts when the next one begins.
    pub(crate) fn read_given_up(&mut self, now: Time) {
        if let Silence::Since(since) = self.silence {
            self.silence = Silence::Before(now.since(since));
        }
    }

    /// The wait is over.
    pub(crate) fn read_over(&mut self) {
        self.silence = Silence::Before(Duration::ZERO);
    }

    /// A byte came.
    pub(crate) fn received(&mut self, now: Time) {
        self.silence = match self.silence {
            Silence::Since(_) => Silence::Since(now),
            Silence::Before(_) => Silence::Before(Duration::ZERO),
        };
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.writing_since.is_some()
    }

    /// The queue moved, or stopped being empty.
    pub(crate) fn writing(&mut self, now: Time, deadlines: &Deadlines) {
        self.writing_since = Some(now);
        self.hurry(progress(self.writing_since, deadlines.write));
    }

    /// The queue is empty.
    pub(crate) fn written(&mut self) {
        self.writing_since = None;
    }

    pub(crate) fn handler(&mut self, at: Option<Time>) {
        self.handler_at = at;
        self.hurry(at);
    }

    pub(crate) fn close(&mut self, at: Time) {
        self.close_at = Some(at);
        self.hurry(self.close_at);
    }

    pub(crate) fn reset(&mut self, at: Time) {
        self.reset_at = Some(at);
        self.hurry(self.reset_at);
    }

    /// From now on only the queue's progress, and after it the peer's end, are waited for.
    pub(crate) fn closing(&mut self) {
        self.read_over();
        (self.handler_at, self.close_at) = (None, None);
    }

    /// Starts the linger time, unless it runs already.
    pub(crate) fn linger_once(&mut self, now: Time, deadlines: &Deadlines) {
        self.linger_at.get_or_insert(now.after(deadlines.linger));
        self.hurry(self.linger_at);
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

    /// The earliest deadline, if it is earlier than the timer; from now on it is what the timer is set to.
    #[inline]
    pub(crate) fn take_urgent(&mut self, deadlines: &Deadlines) -> Option<Time> {
        if self.urgent { self.reset_timer(deadlines) } else { None }
    }

    fn reset_timer(&mut self, deadlines: &Deadlines) -> Option<Time> {
        self.urgent = false;
        let next = self.next(deadlines).filter(|at| *at < self.timer_at)?;
        self.timer_at = next;
        Some(next)
    }

    /// The timer fired: there is none until the next urgent deadline.
    pub(crate) fn timer_fired(&mut self) {
        self.timer_at = Time::NEVER;
        self.urgent = true;
    }

    /// The earliest deadline.
    fn next(&self, deadlines: &Deadlines) -> Option<Time> {
        self.all(deadlines).into_iter().flatten().map(|(at, _)| at).min()
    }

    fn hurry(&mut self, at: Option<Time>) {
        self.urgent |= at.is_some_and(|at| at < self.timer_at);
    }

    /// The earliest deadline that has passed.
    pub(crate) fn expired(&self, now: Time, deadlines: &Deadlines) -> Option<Expired> {
        let passed = self.all(deadlines).into_iter().flatten().filter(|(at, _)| *at <= now);
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

    fn all(&self, deadlines: &Deadlines) -> [Option<(Time, Expired)>; 7] {
        let reading_since = match self.silence {
            Silence::Since(since) => Some(since),
            Silence::Before(_) => None,
        };
        let deadline = |at: Option<Time>, which| at.map(|at| (at, Expired::Deadline(which)));
        [
            deadline(progress(reading_since, deadlines.idle), Deadline::Idle),
            deadline(progress(self.writing_since, deadlines.write), Deadline::Write),
            deadline(self.age_at, Deadline::Age),
            deadline(self.handler_at, Deadline::Handler),
            self.linger_at.map(|at| (at, Expired::Linger)),
            self.close_at.map(|at| (at, Expired::Close)),
            self.reset_at.map(|at| (at, Expired::Reset)),
        ]
    }
}

fn progress(since: Option<Time>, within: Option<Duration>) -> Option<Time> {
    Some(since?.after(within?))
}
