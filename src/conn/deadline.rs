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
    /// When the message that has begun must be complete; counts only while a read is awaited.
    message_at: Option<Time>,
    /// When the last byte left, or the queue stopped being empty. None while nothing is queued.
    writing_since: Option<Time>,
    age_at: Option<Time>,
    handler_at: Option<Time>,
    /// When a delayed close is due; once the connection closes, when the peer is waited for no longer.
    end_at: Option<Time>,
    reset_at: Option<Time>,
    /// When the worker's timer will look at the deadlines.
    timer_at: Time,
    /// A deadline is earlier than the timer.
    urgent: bool,
    /// The peer has sent something, and not only what TLS needs for itself.
    heard: bool,
    /// The connection closes, and `end_at` is the end of the linger time.
    lingers: bool,
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
            message_at: None,
            writing_since: None,
            age_at: deadlines.age.map(|age| now.after(age)),
            handler_at: None,
            end_at: None,
            reset_at: None,
            timer_at: Time::NEVER,
            urgent: deadlines.age.is_some(),
            heard: false,
            lingers: false,
        }
    }

    /// A byte is awaited; that may be said again at any time.
    pub(crate) fn read_awaited(&mut self, now: Time, deadlines: &Deadlines) {
        if let Silence::Before(silent) = self.silence {
            let since = now.before(silent);
            self.silence = Silence::Since(since);
            let silence = self.silence_deadline(deadlines);
            self.hurry(silence.map(|(at, _)| at));
            self.hurry(self.message_at);
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

    /// Bytes came. They give the message under way more time, by as much as they may take at the least rate.
    pub(crate) fn received(&mut self, bytes: usize, now: Time, deadlines: &Deadlines) {
        self.silence = match self.silence {
            Silence::Since(_) => Silence::Since(now),
            Silence::Before(_) => Silence::Before(Duration::ZERO),
        };
        if let (Some(at), Some(rate)) = (self.message_at, deadlines.receive_rate) {
            self.message_at = Some(at.after(rate.time_for(bytes)));
        }
    }

    /// There is something among what came that is for the handler.
    pub(crate) fn heard(&mut self) {
        self.heard = true;
    }

    /// Of a message `bytes` are here, and the rest is awaited; that may be said again at any time.
    pub(crate) fn message_awaited(&mut self, bytes: usize, now: Time, deadlines: &Deadlines) {
        if self.message_at.is_none()
            && let Some(rate) = deadlines.receive_rate
        {
            self.message_at = Some(now.after(rate.grace).after(rate.time_for(bytes)));
            self.hurry(self.message_at);
        }
    }

    /// The message is complete, or it is no longer the peer's turn: the next one has all of its time.
    pub(crate) fn message_over(&mut self) {
        self.message_at = None;
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

    /// A delayed close. One whose linger time runs, since a send failed, ends when that is over at the latest.
    pub(crate) fn close(&mut self, at: Time) {
        let lingers_until = self.end_at.filter(|_| self.lingers);
        self.end_at = Some(lingers_until.map_or(at, |until| until.min(at)));
        self.hurry(self.end_at);
    }

    pub(crate) fn reset(&mut self, at: Time) {
        self.reset_at = Some(at);
        self.hurry(self.reset_at);
    }

    /// From now on only the queue's progress, and after it the peer's end, are waited for.
    pub(crate) fn closing(&mut self) {
        self.read_over();
        (self.message_at, self.handler_at) = (None, None);
        if !self.lingers {
            self.end_at = None;
        }
    }

    /// Starts the linger time, unless it runs already.
    pub(crate) fn linger_once(&mut self, now: Time, deadlines: &Deadlines) {
        if !self.lingers {
            self.lingers = true;
            self.end_at = Some(now.after(deadlines.linger));
            self.hurry(self.end_at);
        }
    }

    /// A deadline has ended the connection: it must not do so again while the connection closes.
    pub(crate) fn late(&mut self) {
        self.age_at = None;
    }

    /// Nothing is waited for any more.
    pub(crate) fn stop(&mut self) {
        self.closing();
        (self.writing_since, self.age_at, self.end_at, self.reset_at) = (None, None, None, None);
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

    /// Whether a silence that begins now is all there is to be measured, by the idle deadline.
    pub(crate) fn silence_alone(&self, deadlines: &Deadlines) -> bool {
        let others =
            [self.message_at, self.writing_since, self.age_at, self.handler_at, self.end_at, self.reset_at];
        let is_new = matches!(self.silence, Silence::Before(Duration::ZERO))
            && (self.heard || deadlines.first_byte.is_none());
        is_new && others == [None; 6]
    }

    /// The earliest deadline.
    pub(crate) fn next(&self, deadlines: &Deadlines) -> Option<Time> {
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
            Expired::Close | Expired::Linger => self.end_at = None,
            Expired::Reset => self.reset_at = None,
            Expired::Deadline(_) => {}
        }
    }

    fn all(&self, deadlines: &Deadlines) -> [Option<(Time, Expired)>; 7] {
        let awaited = matches!(self.silence, Silence::Since(_));
        let deadline = |at: Option<Time>, which| at.map(|at| (at, Expired::Deadline(which)));
        let at_end = if self.lingers { Expired::Linger } else { Expired::Close };
        [
            self.silence_deadline(deadlines).map(|(at, which)| (at, Expired::Deadline(which))),
            deadline(self.message_at.filter(|_| awaited), Deadline::ReceiveRate),
            deadline(progress(self.writing_since, deadlines.write), Deadline::Write),
            deadline(self.age_at, Deadline::Age),
            deadline(self.handler_at, Deadline::Handler),
            self.end_at.map(|at| (at, at_end)),
            self.reset_at.map(|at| (at, Expired::Reset)),
        ]
    }

    /// When the peer will have been silent for too long. Before its first byte that may be earlier.
    fn silence_deadline(&self, deadlines: &Deadlines) -> Option<(Time, Deadline)> {
        let Silence::Since(since) = self.silence else { return None };
        let first_byte = deadlines.first_byte.filter(|_| !self.heard);
        let first_byte = first_byte.map(|after| (since.after(after), Deadline::FirstByte));
        let idle = deadlines.idle.map(|after| (since.after(after), Deadline::Idle));
        first_byte.into_iter().chain(idle).min_by_key(|(at, _)| *at)
    }
}

fn progress(since: Option<Time>, within: Option<Duration>) -> Option<Time> {
    Some(since?.after(within?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ReceiveRate;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> Time {
        Time::ZERO.after(SECOND * seconds)
    }

    #[test]
    fn a_clock_is_small() {
        assert!(size_of::<Clock>() <= 80, "{}", size_of::<Clock>());
    }

    /// The first second at whose beginning a deadline has passed, and which.
    fn end(clock: &Clock, deadlines: &Deadlines) -> Option<(u32, Expired)> {
        (0..10_000).find_map(|second| Some((second, clock.expired(at(second), deadlines)?)))
    }

    fn rate() -> Deadlines {
        let rate = ReceiveRate::new(10).grace(5 * SECOND);
        Deadlines::default().idle(None).first_byte(None).receive_rate(rate)
    }

    #[test]
    fn the_first_byte_has_less_time_than_those_that_follow() {
        let deadlines = Deadlines::default().first_byte(3 * SECOND).idle(7 * SECOND);
        let mut clock = Clock::new(&deadlines, Time::ZERO);
        assert_eq!(end(&clock, &deadlines), None, "nobody waits to read");
        clock.read_awaited(at(1), &deadlines);
        assert_eq!(clock.take_urgent(&deadlines), Some(at(4)));
        assert_eq!(end(&clock, &deadlines), Some((4, Expired::Deadline(Deadline::FirstByte))));
        clock.writing(at(3), &deadlines);
        clock.written();
        assert_eq!(end(&clock, &deadlines), Some((4, Expired::Deadline(Deadline::FirstByte))));
        clock.received(1, at(3), &deadlines);
        assert_eq!(end(&clock, &deadlines), Some((6, Expired::Deadline(Deadline::FirstByte))));
        clock.heard();
        assert_eq!(end(&clock, &deadlines), Some((10, Expired::Deadline(Deadline::Idle))));
    }

    #[test]
    fn waits_for_the_first_byte_that_are_given_up_add_up() {
        let deadlines = Deadlines::default().first_byte(3 * SECOND);
        let mut clock = Clock::new(&deadlines, Time::ZERO);
        clock.read_awaited(at(0), &deadlines);
        clock.read_given_up(at(2));
        assert_eq!(end(&clock, &deadlines), None);
        clock.read_awaited(at(10), &deadlines);
        assert_eq!(end(&clock, &deadlines), Some((11, Expired::Deadline(Deadline::FirstByte))));
    }

    #[test]
    fn a_message_has_its_grace_and_the_time_of_its_bytes() {
        let deadlines = rate();
        let mut clock = Clock::new(&deadlines, Time::ZERO);
        clock.read_awaited(at(0), &deadlines);
        clock.received(20, at(1), &deadlines);
        assert_eq!(end(&clock, &deadlines), None, "no message is under way");
        clock.message_awaited(20, at(1), &deadlines);
        assert_eq!(end(&clock, &deadlines), Some((8, Expired::Deadline(Deadline::ReceiveRate))));
        clock.received(30, at(4), &deadlines);
        clock.message_awaited(50, at(4), &deadlines);
        assert_eq!(end(&clock, &deadlines), Some((11, Expired::Deadline(Deadline::ReceiveRate))));
        clock.message_over();
        assert_eq!(end(&clock, &deadlines), None);
        clock.message_awaited(1, at(10), &deadlines);
        assert_eq!(end(&clock, &deadlines), Some((16, Expired::Deadline(Deadline::ReceiveRate))));
    }

    #[test]
    fn a_message_is_late_only_while_somebody_waits_for_it() {
        let deadlines = rate();
        let mut clock = Clock::new(&deadlines, Time::ZERO);
        clock.read_awaited(at(0), &deadlines);
        clock.message_awaited(0, at(0), &deadlines);
        clock.read_given_up(at(1));
        assert_eq!(end(&clock, &deadlines), None);
        clock.read_awaited(at(20), &deadlines);
        assert_eq!(end(&clock, &deadlines), Some((5, Expired::Deadline(Deadline::ReceiveRate))));
    }

    #[test]
    fn the_linger_time_takes_the_place_of_a_delayed_close() {
        let deadlines = Deadlines::default().linger(2 * SECOND);
        let mut clock = Clock::new(&deadlines, Time::ZERO);
        clock.close(at(1));
        assert_eq!(end(&clock, &deadlines), Some((1, Expired::Close)));
        clock.closing();
        assert_eq!(end(&clock, &deadlines), None);
        clock.linger_once(at(4), &deadlines);
        clock.linger_once(at(5), &deadlines);
        clock.closing();
        assert_eq!(end(&clock, &deadlines), Some((6, Expired::Linger)));
    }

    proptest::proptest! {
        /// However the bytes of a message come: it is over by its grace and its length at the least rate.
        #[test]
        fn no_message_takes_longer_than_its_length_allows(steps in proptest::collection::vec((1..200usize, 0..4000u64), 1..60)) {
            let deadlines = rate();
            let mut clock = Clock::new(&deadlines, Time::ZERO);
            let (mut now, mut bytes) = (Time::ZERO, 1);
            clock.read_awaited(now, &deadlines);
            clock.message_awaited(bytes, now, &deadlines);
            for (more, pause) in steps {
                now = now.after(Duration::from_millis(pause));
                let allowed = 5 * SECOND + SECOND * bytes as u32 / 10;
                let late = clock.expired(now, &deadlines).is_some();
                proptest::prop_assert_eq!(late, now >= Time::ZERO.after(allowed));
                clock.received(more, now, &deadlines);
                clock.message_awaited(more, now, &deadlines);
                bytes += more;
            }
        }
    }
}
