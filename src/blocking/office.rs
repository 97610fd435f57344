//! What the threads of a blocking server share: who may come in and who is here, what was counted, and what the accepting thread is
//! to do next.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};

use super::alert::Alert;
use super::listener::wait_for;
use crate::address::Address;
use crate::config::{Deadlines, Limits, OverLimit};
use crate::conn::Counts;
use crate::error::{CloseReason, Result, Rule};
use crate::server::{Desk, Hooks, Opened, Phase, Seat, ServerEvent, Stats, Turnstile, Verdict};
use crate::time::Time;
use crate::worker::memory::Budget;

pub(super) struct Office {
    started: Instant,
    books: Mutex<Books>,
    /// The books have changed: somebody has left, there is memory again, or something is asked of the accepting thread.
    changed: Condvar,
    /// The same for that thread while it waits for its listener.
    bell: Alert,
    hooks: Hooks,
    memory: Budget,
}

pub(super) struct Books {
    pub(super) desk: Desk,
    /// Of new connections.
    pub(super) deadlines: Deadlines,
    pub(super) connections: usize,
    pub(super) stats: Stats,
    /// The listener broke: it accepts nobody any more.
    pub(super) is_lost: bool,
    drain: Option<Drain>,
    suspension: Suspension,
    is_over: bool,
}

#[derive(Copy, Clone)]
pub(super) struct Drain {
    /// When what is left is reset.
    until: Instant,
    /// What was asked for first.
    pub(super) within: Duration,
}

/// Whether accepting is suspended, as handles ask for it and the accepting thread carries it out.
#[derive(Default)]
struct Suspension {
    asked: bool,
    /// Counts what was asked for, so that a request which was taken back before it was carried out is none.
    round: u64,
    /// The listener is closed, and has to be opened again.
    is_closed: bool,
    /// It was.
    reopened: Option<Opened>,
}

/// What the accepting thread does next.
pub(super) enum Turn {
    Accept,
    /// Suspends, if that is still asked for in this round.
    Suspend(u64),
    /// Goes on, with this listener if the other was closed.
    Resume(Option<Opened>),
    Drain(Drain),
}

impl Office {
    pub(super) fn new(desk: Desk, deadlines: Deadlines, hooks: Hooks) -> io::Result<Arc<Office>> {
        let memory = Budget::new(desk.rules().memory);
        let books = Books {
            desk,
            deadlines,
            connections: 0,
            stats: Stats::default(),
            is_lost: false,
            drain: None,
            suspension: Suspension::default(),
            is_over: false,
        };
        Ok(Arc::new(Office {
            started: Instant::now(),
            books: Mutex::new(books),
            changed: Condvar::new(),
            bell: Alert::new()?,
            hooks,
            memory,
        }))
    }

    /// Nothing panics under this lock, and nobody waits or tells anything under it.
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn now(&self) -> Time {
        Time::ZERO.after(self.started.elapsed())
    }

    pub(super) fn tell(&self, event: &ServerEvent<'_>) {
        self.hooks.tell(event);
    }

    /// Has everybody look at the books again.
    fn announce(&self) {
        self.bell.raise();
        self.changed.notify_all();
    }

    fn await_change<'a>(
        &'a self,
        books: MutexGuard<'a, Books>,
        left: Option<Duration>,
    ) -> MutexGuard<'a, Books> {
        match left {
            None => self.changed.wait(books).unwrap_or_else(PoisonError::into_inner),
            Some(left) => self.changed.wait_timeout(books, left).unwrap_or_else(PoisonError::into_inner).0,
        }
    }
}

// Who comes and who goes.
impl Office {
    /// Decides about who was accepted. `peer` is whom he is for, if that is known already.
    pub(super) fn admit(&self, peer: Option<&Address>) -> Result<Seat, Rule> {
        let mut books = self.books();
        // Who was let through the turnstile cannot go back.
        let queues = books.desk.rules().over_limit == OverLimit::Queue;
        let memory_is_short = !queues && self.memory.is_short();
        match books.desk.admit(peer, memory_is_short, self.now()) {
            Verdict::Admit(seat) => {
                books.connections += 1;
                books.stats.accepted += 1;
                Ok(seat)
            }
            Verdict::Refuse(rule) => Err(rule),
        }
    }

    /// Counts and tells that somebody was refused. Says whether he is to be reset.
    pub(super) fn refuse(&self, peer: &Address, rule: Rule) -> bool {
        let mut books = self.books();
        let refused = &mut books.stats.refused;
        match refused.iter_mut().find(|(each, _)| *each == rule) {
            Some((_, count)) => *count += 1,
            None => refused.push((rule, 1)),
        }
        let resets = books.desk.rules().over_limit != OverLimit::Close;
        drop(books);
        self.tell(&ServerEvent::Refused { peer, rule });
        resets
    }

    /// A connection that was let in has ended.
    pub(super) fn leave(&self, seat: Seat, reason: CloseReason, counts: Counts) {
        let mut books = self.books();
        books.desk.leave(seat);
        books.connections -= 1;
        let is_draining = books.drain.is_some();
        let stats = &mut books.stats;
        stats.received += counts.received;
        stats.sent += counts.sent;
        stats.unsent += counts.unsent;
        match stats.closes.iter_mut().find(|(each, _)| *each == reason) {
            Some((_, count)) => *count += 1,
            None => stats.closes.push((reason, 1)),
        }
        if is_draining {
            match reason {
                CloseReason::Shutdown => stats.drain.reset += 1,
                _ => stats.drain.finished += 1,
            }
            stats.drain.lost += counts.unsent;
        }
        drop(books);
        self.changed.notify_all();
    }

    /// What a new connection gets.
    pub(super) fn terms(&self) -> (Limits, Deadlines) {
        let books = self.books();
        (books.desk.rules().clone(), books.deadlines.clone())
    }

    pub(super) fn memory(&self) -> &Budget {
        &self.memory
    }

    /// Tells if memory has become short, or is no longer.
    pub(super) fn judge_memory(&self) {
        if !self.memory.judge() {
            return;
        }
        let (used, is_short) = (self.memory.used(), self.memory.is_short());
        self.tell(&match is_short {
            true => ServerEvent::MemoryShort { used },
            false => ServerEvent::MemoryEnough { used },
        });
        self.look_again();
    }

    /// Who waits at the turnstile looks again.
    pub(super) fn look_again(&self) {
        // Under the lock, so that nobody has looked and does not wait yet.
        drop(self.books());
        self.changed.notify_all();
    }
}

// What the accepting thread does.
impl Office {
    /// Waits for what is to be done next by who is `suspended` since a round, or `listens`.
    pub(super) fn next_turn(&self, suspended: Option<u64>, listens: bool) -> Turn {
        let mut books = self.books();
        loop {
            if let Some(drain) = books.drain {
                return Turn::Drain(drain);
            }
            let suspension = &mut books.suspension;
            let left = match suspended {
                Some(round) if suspension.round != round => return Turn::Resume(suspension.reopened.take()),
                Some(_) => None,
                None if suspension.asked => return Turn::Suspend(suspension.round),
                None if !listens => None,
                None => match self.turnstile_of(&books) {
                    Turnstile::Open => return Turn::Accept,
                    Turnstile::Full => None,
                    Turnstile::Until(at) => Some(at.since(self.now())),
                },
            };
            books = self.await_change(books, left);
        }
    }

    /// Whether the rules let another one in at this moment.
    pub(super) fn is_open(&self) -> bool {
        self.turnstile_of(&self.books()) == Turnstile::Open
    }

    fn turnstile_of(&self, books: &Books) -> Turnstile {
        books.desk.turnstile(self.memory.is_short(), self.now())
    }

    /// Waits for who connects, for a change, or until `left` has passed.
    pub(super) fn await_caller(&self, listener: Option<BorrowedFd<'_>>, left: Option<Duration>) {
        let fds: Vec<_> = listener.into_iter().chain([self.bell.ear()]).collect();
        wait_for(&fds, left);
        // What it was raised for is looked at next.
        self.bell.lower();
    }

    /// Has `close` close the listener, if it is still asked for in this round; says whether it is.
    pub(super) fn carry_out(&self, round: u64, can_reopen: bool, close: impl FnOnce()) -> bool {
        let mut books = self.books();
        let stands = books.suspension.round == round;
        if stands && can_reopen {
            close();
            books.suspension.is_closed = true;
        }
        stands
    }

    /// The listener is gone for good.
    pub(super) fn shut(&self) {
        drop(self.books().suspension.reopened.take());
    }

    pub(super) fn end(&self) {
        let stats = self.stats();
        self.hooks.ended(&stats);
        self.books().is_over = true;
        self.changed.notify_all();
    }

    /// Waits until nobody is left; `stop` is called once, when the time for that is over.
    pub(super) fn see_off(&self, stop: impl FnOnce()) {
        let mut stop = Some(stop);
        let mut books = self.books();
        while books.connections > 0 {
            let until = books.drain.map(|drain| drain.until);
            let left = until.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero()
                && let Some(stop) = stop.take()
            {
                drop(books);
                stop();
                books = self.books();
                continue;
            }
            books = self.await_change(books, Some(left).filter(|left| !left.is_zero()));
        }
    }
}

// What handles ask for.
impl Office {
    pub(super) fn suspend(&self) {
        let suspension = &mut self.books().suspension;
        if !suspension.asked {
            suspension.asked = true;
            suspension.round += 1;
            self.announce();
        }
    }

    /// Has accepting go on; `open` opens the listener again if it is closed.
    pub(super) fn resume(&self, open: impl FnOnce() -> Result<Opened>) -> Result<()> {
        let mut books = self.books();
        let is_draining = books.drain.is_some();
        let suspension = &mut books.suspension;
        if !suspension.asked || is_draining {
            return Ok(());
        }
        if suspension.is_closed {
            suspension.reopened = Some(open()?);
        }
        (suspension.asked, suspension.is_closed) = (false, false);
        suspension.round += 1;
        drop(books);
        self.announce();
        Ok(())
    }

    pub(super) fn is_suspended(&self) -> bool {
        self.books().suspension.asked
    }

    pub(super) fn phase(&self) -> Phase {
        let books = self.books();
        if books.is_over {
            Phase::Stopped
        } else if books.drain.is_some() {
            Phase::Draining
        } else if books.suspension.asked {
            Phase::Suspended
        } else {
            Phase::Serving
        }
    }

    pub(super) fn drain(&self, within: Duration) {
        let mut books = self.books();
        let now = Instant::now();
        // What is further away than time reaches is as good as a day, after which one can drain again.
        let until = now.checked_add(within).unwrap_or(now + Duration::from_secs(86_400));
        let drain = books.drain.get_or_insert(Drain { until, within });
        drain.until = drain.until.min(until);
        drop(books);
        self.announce();
    }

    pub(super) fn await_end(&self) {
        let mut books = self.books();
        while !books.is_over {
            books = self.await_change(books, None);
        }
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = self.books().stats.clone();
        stats.closes.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), reason.to_string()));
        stats.refused.sort_by_key(|(rule, _)| rule.index());
        stats
    }
}

impl fmt::Debug for Office {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Office").field("memory", &self.memory).finish_non_exhaustive()
    }
}
