//! The slots of a pool and who waits for them, without input or output, clock or chance.
//!
//! ```text
//!            ask, and nobody waits        made
//!   free ----------------------> making ------> lent <------------- handed
//!    ^                             |              |  put               ^ serve
//!    |  failed, abandoned          |              v                    |
//!    +-----------------------------+<--------- idle ------------------+
//!                    discard, expired, surplus
//! ```
//!
//! A slot is one connection, or the right to make one. `slots` counts those that are not free; it never passes `max`. Whoever
//! wants one takes a ticket, and [`Core::serve`] hands what there is to the oldest ticket first. What was handed to a ticket
//! that is given up goes on to the next.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::Discard;
use crate::time::Time;

/// A place in the queue. Older ones are smaller.
pub(super) type Ticket = u64;

/// What bounds a pool's core.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) max: usize,
    pub(super) idle_max: usize,
    pub(super) idle_min: usize,
    pub(super) waiters_max: usize,
    pub(super) max_idle: Duration,
    /// Whether permits are needed beside slots, because others draw on the same bound.
    pub(super) shared: bool,
}

pub(super) struct Core<C> {
    bounds: Bounds,
    /// The last one was used last.
    idle: VecDeque<Idle<C>>,
    slots: usize,
    /// Of the slots, those that are being made.
    making: usize,
    /// What a shared bound has granted and no slot uses.
    permits: usize,
    /// Of a shared bound, what slots do not use any more. It has to go back first, for it may be somebody else's turn.
    freed: usize,
    /// Who waits, and since when.
    queue: BTreeMap<Ticket, Time>,
    handed: BTreeMap<Ticket, Grant<C>>,
    next_ticket: Ticket,
    /// Makings that failed in a row.
    failures: u32,
    /// Nothing is made before.
    retry_at: Time,
    closed: bool,
    /// Taken out by `serve` and others, to be closed by the caller.
    evicted: Vec<(C, Discard)>,
    /// Tickets that were handed something.
    woken: Vec<Ticket>,
}

/// One that nobody uses.
pub(super) struct Idle<C> {
    pub(super) value: C,
    pub(super) since: Time,
    /// When it will be too old.
    pub(super) expires: Time,
}

/// What a ticket is handed.
pub(super) enum Grant<C> {
    Idle(Idle<C>),
    /// The right to make one.
    Slot,
}

/// Why nobody can join the queue.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Closed,
    Full,
}

impl<C> Core<C> {
    pub(super) fn new(bounds: Bounds) -> Core<C> {
        Core {
            bounds,
            idle: VecDeque::new(),
            slots: 0,
            making: 0,
            permits: 0,
            freed: 0,
            queue: BTreeMap::new(),
            handed: BTreeMap::new(),
            next_ticket: 0,
            failures: 0,
            retry_at: Time::ZERO,
            closed: false,
            evicted: Vec::new(),
            woken: Vec::new(),
        }
    }

    /// Joins the queue; [`Core::serve`] may answer at once.
    pub(super) fn ask(&mut self, now: Time) -> Result<Ticket, Refused> {
        if self.closed {
            return Err(Refused::Closed);
        }
        if self.queue.len() >= self.bounds.waiters_max && !self.can_serve(now) {
            return Err(Refused::Full);
        }
        self.next_ticket += 1;
        self.queue.insert(self.next_ticket, now);
        Ok(self.next_ticket)
    }

    /// Takes what was handed to a ticket, which is then used up.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Grant<C>> {
        self.handed.remove(&ticket)
    }

    /// Whether something was handed to the ticket.
    pub(super) fn is_handed(&self, ticket: Ticket) -> bool {
        self.handed.contains_key(&ticket)
    }

    /// Whether the ticket has to wait, and more wait than may. Behind [`Core::serve`].
    pub(super) fn is_too_much(&self, ticket: Ticket) -> bool {
        self.queue.contains_key(&ticket) && self.queue.len() > self.bounds.waiters_max
    }

    /// A ticket is given up, with what it may have been handed.
    pub(super) fn give_up(&mut self, ticket: Ticket) {
        self.queue.remove(&ticket);
        match self.handed.remove(&ticket) {
            // It was not used, so it is as idle as before.
            Some(Grant::Idle(idle)) => self.idle.push_back(idle),
            Some(Grant::Slot) => self.abandoned(),
            None => {}
        }
    }

    /// What was taken turned out to be of no use and was discarded: the ticket is in the queue again, in its old place.
    pub(super) fn rejoin(&mut self, ticket: Ticket, since: Time) -> Result<(), Refused> {
        debug_assert!(!self.is_handed(ticket) && !self.queue.contains_key(&ticket), "it was taken");
        if self.closed {
            return Err(Refused::Closed);
        }
        self.queue.insert(ticket, since);
        Ok(())
    }

    /// Hands out what there is, oldest ticket first. `fit` tells why one must not be used.
    pub(super) fn serve(&mut self, now: Time, fit: &mut dyn FnMut(&C) -> Result<(), Discard>) {
        while let Some((&ticket, _)) = self.queue.first_key_value() {
            let grant = match self.pop_fit(now, fit) {
                Some(idle) => Grant::Idle(idle),
                None if self.may_make(now) => {
                    self.begin();
                    Grant::Slot
                }
                None => break,
            };
            self.queue.remove(&ticket);
            self.handed.insert(ticket, grant);
            self.woken.push(ticket);
        }
        self.check();
    }

    /// Takes one at once, without a ticket, if there is one and nobody waits.
    pub(super) fn take_idle(
        &mut self,
        now: Time,
        fit: &mut dyn FnMut(&C) -> Result<(), Discard>,
    ) -> Option<Idle<C>> {
        if self.closed || !self.queue.is_empty() {
            return None;
        }
        self.pop_fit(now, fit)
    }

    /// The one that was used last, if it may be used again; what may not is evicted.
    fn pop_fit(&mut self, now: Time, fit: &mut dyn FnMut(&C) -> Result<(), Discard>) -> Option<Idle<C>> {
        while let Some(idle) = self.idle.pop_back() {
            let surplus = self.idle.len() >= self.bounds.idle_min;
            match self.expired(&idle, now, surplus).map_or_else(|| fit(&idle.value), Err) {
                Ok(()) => return Some(idle),
                Err(why) => self.evict(idle.value, why),
            }
        }
        None
    }

    /// Begins to make one without a ticket, if fewer than `idle_min` are idle or on the way and nobody waits.
    pub(super) fn begin_spare(&mut self, now: Time) -> bool {
        let wanted = self.queue.is_empty()
            && self.idle.len() + self.making < self.bounds.idle_min
            && self.may_make(now);
        if wanted {
            self.begin();
        }
        wanted
    }

    /// Whether one that is idle is missing and may be made, but for the permit of a shared bound.
    pub(super) fn lacks_spare(&self, now: Time) -> bool {
        self.queue.is_empty()
            && self.idle.len() + self.making < self.bounds.idle_min
            && self.slots < self.bounds.max
            && self.is_gate_open(now)
            && !self.closed
    }

    fn begin(&mut self) {
        self.slots += 1;
        self.making += 1;
        if self.bounds.shared {
            self.permits -= 1;
        }
    }

    /// One was made, and is lent.
    pub(super) fn made(&mut self) {
        self.making -= 1;
        self.failures = 0;
    }

    /// Making one failed; nothing is made for `delay`, which `backoff` gives for the number of failures.
    pub(super) fn failed(&mut self, now: Time, backoff: impl FnOnce(u32) -> Duration) {
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now.after(backoff(self.failures));
        self.abandoned();
    }

    /// Making one was given up.
    pub(super) fn abandoned(&mut self) {
        self.making -= 1;
        self.free();
    }

    /// One that was lent is gone.
    pub(super) fn discard(&mut self) {
        self.free();
    }

    fn free(&mut self) {
        self.slots -= 1;
        if self.bounds.shared {
            self.freed += 1;
        }
    }

    /// One that was lent is idle again.
    pub(super) fn put(&mut self, idle: Idle<C>) {
        self.idle.push_back(idle);
        if self.closed {
            self.evict_all(Discard::PoolClosed);
        }
    }

    /// Evicts what is idle beyond the bound. After [`Core::serve`], so that nothing that somebody waits for is thrown away.
    pub(super) fn trim(&mut self) {
        while self.idle.len() > self.bounds.idle_max {
            self.evict_oldest(Discard::Surplus);
        }
    }

    /// Evicts what may no longer be used.
    pub(super) fn expire(&mut self, now: Time, fit: &mut dyn FnMut(&C) -> Result<(), Discard>) {
        let mut left = self.idle.len();
        for idle in std::mem::take(&mut self.idle) {
            let surplus = left > self.bounds.idle_min;
            left -= 1;
            match self.expired(&idle, now, surplus).map_or_else(|| fit(&idle.value), Err) {
                Ok(()) => {
                    self.idle.push_back(idle);
                    left += 1;
                }
                Err(why) => self.evict(idle.value, why),
            }
        }
    }

    /// Up to `count` of the idle ones make room for others elsewhere.
    pub(super) fn yield_idle(&mut self, count: usize) {
        for _ in 0..count.min(self.idle.len()) {
            self.evict_oldest(Discard::Yielded);
        }
    }

    /// Nothing is handed out any more. Those in the queue are to be told.
    pub(super) fn close(&mut self) {
        self.closed = true;
        let queue = std::mem::take(&mut self.queue);
        self.woken.extend(queue.into_keys());
        // Who was handed one and has not taken it yet is told too.
        for ticket in std::mem::take(&mut self.handed) {
            match ticket.1 {
                Grant::Idle(idle) => self.idle.push_back(idle),
                Grant::Slot => self.abandoned(),
            }
        }
        self.evict_all(Discard::PoolClosed);
    }

    /// From now on none is kept idle.
    pub(super) fn keep_none(&mut self) {
        (self.bounds.idle_max, self.bounds.idle_min) = (0, 0);
        self.evict_all(Discard::PoolClosed);
    }

    fn evict_all(&mut self, why: Discard) {
        while !self.idle.is_empty() {
            self.evict_oldest(why);
        }
    }

    fn evict_oldest(&mut self, why: Discard) {
        if let Some(idle) = self.idle.pop_front() {
            self.evict(idle.value, why);
        }
    }

    fn evict(&mut self, value: C, why: Discard) {
        self.evicted.push((value, why));
        self.free();
    }

    /// Why one may not be used any more. Those that are kept ahead may be idle for as long as they last, so only `surplus` ones
    /// are too idle.
    fn expired(&self, idle: &Idle<C>, now: Time, surplus: bool) -> Option<Discard> {
        if now >= idle.expires {
            return Some(Discard::Aged);
        }
        (surplus && now >= idle.since.after(self.bounds.max_idle)).then_some(Discard::Idle)
    }

    fn can_serve(&self, now: Time) -> bool {
        // Whether a shared bound has a permit is known only when it was asked.
        self.queue.is_empty() && (!self.idle.is_empty() || self.bounds.shared || self.may_make(now))
    }

    fn may_make(&self, now: Time) -> bool {
        !self.closed && self.is_gate_open(now) && self.has_slot() && (!self.bounds.shared || self.permits > 0)
    }

    fn has_slot(&self) -> bool {
        self.slots < self.bounds.max
    }

    /// After a failure nothing is made for a while, and then one at a time until one succeeds.
    fn is_gate_open(&self, now: Time) -> bool {
        self.failures == 0 || (self.making == 0 && now >= self.retry_at)
    }
}

// What the caller has to carry out, and to ask.
impl<C> Core<C> {
    /// What is to be closed, and why.
    pub(super) fn take_evicted(&mut self) -> Vec<(C, Discard)> {
        std::mem::take(&mut self.evicted)
    }

    /// Tickets of which the holder has to look again.
    pub(super) fn take_woken(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.woken)
    }

    /// Permits that no slot uses, to be given back.
    pub(super) fn take_permits(&mut self) -> usize {
        std::mem::take(&mut self.permits) + std::mem::take(&mut self.freed)
    }

    pub(super) fn add_permits(&mut self, count: usize) {
        self.permits += count;
    }

    /// How many permits could be used for those who wait.
    pub(super) fn wanted(&self, now: Time) -> usize {
        if self.closed || !self.is_gate_open(now) {
            return 0;
        }
        let wanted = self.queue.len().min(self.bounds.max - self.slots);
        if self.failures > 0 { wanted.min(1) } else { wanted }
    }

    /// Since when the oldest ticket waits.
    pub(super) fn oldest(&self) -> Option<Time> {
        self.queue.first_key_value().map(|(_, since)| *since)
    }

    /// When there is something to do if nothing happens before: something expires, or may be made again.
    pub(super) fn next_due(&self, now: Time) -> Option<Time> {
        let surplus = self.idle.len() > self.bounds.idle_min;
        let expiring = self.idle.iter().map(|idle| {
            let idle_until = if surplus { idle.since.after(self.bounds.max_idle) } else { Time::NEVER };
            idle.expires.min(idle_until)
        });
        let lacks = self.idle.len() + self.making < self.bounds.idle_min;
        let waits = !self.queue.is_empty() || lacks;
        let retry =
            (waits && self.failures > 0 && self.retry_at > now && !self.closed).then_some(self.retry_at);
        expiring.chain(retry).min()
    }

    #[cfg(test)]
    fn idle(&self) -> impl Iterator<Item = &C> {
        self.idle.iter().map(|idle| &idle.value)
    }

    pub(super) fn idle_len(&self) -> usize {
        self.idle.len()
    }

    pub(super) fn making(&self) -> usize {
        self.making
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Those in use, and those handed to somebody who has not looked yet.
    pub(super) fn in_use(&self) -> usize {
        self.slots - self.making - self.idle.len()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots == 0
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    fn check(&self) {
        debug_assert!(self.slots <= self.bounds.max, "the bound of the pool");
        debug_assert!(self.making + self.idle.len() <= self.slots, "each slot is in one state");
        debug_assert!(self.queue.is_empty() || self.idle.is_empty(), "nobody waits while one is idle");
    }
}

#[cfg(test)]
#[path = "properties.rs"]
mod properties;
