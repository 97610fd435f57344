//! The timers of one worker: which of them is due, and when to wake for the next.
//! Knows neither what a timer is for nor what time it is; both come in as arguments.
//!
//! # How the wheel works
//!
//! Time is counted in ticks of 1 ms. A deadline is rounded up to a tick and the clock is rounded
//! down, so a timer is never early and at most one tick late. Connections have deadlines of seconds
//! and move them often, so insert and cancel must be cheap, and a millisecond is precise enough.
//!
//! A tick is read as a number of eight digits in base 64. The wheel has one level per digit and one
//! slot per value of that digit:
//!
//! ```text
//! level    0       1        2        3        4        5        6        7
//! slot     1 ms    64 ms    4.1 s    4.4 min  4.7 h    12.4 d   2.2 y    139 y
//! level    64 ms   4.1 s    4.4 min  4.7 h    12.4 d   2.2 y    139 y    8925 y
//! ```
//!
//! The last line is more than [`Time`] can count (584 years), so every deadline has a place and
//! there is no overflow list.
//!
//! A timer waits on the level of the highest digit in which its tick differs from the current tick,
//! in the slot of its own digit there. Worked through, at tick 4_242, which is `1:02:18`:
//!
//! ```text
//! in 8 ms   tick  4_250 = 1:02:26   differs in the last digit    level 0, slot 26
//! in 30 s   tick 34_242 = 8:23:02   differs in the first digit   level 2, slot 8
//! ```
//!
//! A slot of level 0 is one tick: when it is reached, its timers fire. A slot above is a range of
//! ticks: when its start is reached, its timers move to where they belong by then. The second timer
//! moves at `8:00:00` to level 1, slot 23, moves at `8:23:00` to level 0, slot 2, and fires at
//! `8:23:02`. Alone in the wheel, it wakes the worker three times: once per digit.
//!
//! Two consequences carry the rest:
//!
//! - On each level, only slots ahead of the current digit are in use (on level 0 also the current
//!   one), and everything on a level is earlier than everything on the levels above. So the
//!   earliest slot is the lowest bit set in the first bitmap that has any. Nothing wraps around.
//! - Where a timer waits depends only on its tick and the current one. So timers of one tick are
//!   always in one list and fire in the order of their insertion, and cancel finds the list
//!   without storing it.
//!
//! Lists are links between entries of one growing array, whose free entries are a list too. The
//! array keeps the size of the most timers that ever waited at once; within it, nothing allocates.
//! The slots take 4 KiB per worker, an entry about 24 bytes beside its value.

use std::mem;
use std::num::NonZero;

use crate::time::Time;

/// Values waiting for their deadlines.
pub(crate) struct Wheel<T> {
    /// The latest time `expire` was told.
    now: Time,
    /// All ticks before this one have fired. Behind `now` while a caller takes what is due.
    current: u64,
    /// One bit per slot of the level: is anything in its list?
    occupied: [u64; LEVELS],
    slots: [[List; SLOTS]; LEVELS],
    entries: Vec<Entry<T>>,
    /// First free entry, linked through `next`.
    free: u32,
    len: usize,
}

/// Names one timer for [`Wheel::cancel`]; worthless, but harmless, once that timer is gone.
///
/// To be mistaken for another, it must be kept until its entry was used 2^32 more times.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct TimerId {
    index: u32,
    /// Never 0, so that an `Option` of this is no larger.
    generation: NonZero<u32>,
}

impl<T> Wheel<T> {
    pub(crate) fn new(now: Time) -> Wheel<T> {
        Wheel {
            now,
            current: tick_reached(now),
            occupied: [0; LEVELS],
            slots: [[List::EMPTY; SLOTS]; LEVELS],
            entries: Vec::new(),
            free: NONE,
            len: 0,
        }
    }

    /// Keeps `value` until `at`; if that is past, until the next `expire`. [`Time::NEVER`] waits
    /// for its cancel.
    pub(crate) fn insert(&mut self, at: Time, value: T) -> TimerId {
        let mut tick = tick_due(at);
        if at <= self.now {
            tick = tick.min(tick_reached(self.now));
        }
        let index = self.occupy(tick.max(self.current), value);
        self.link(index);
        self.len += 1;
        TimerId { index, generation: self.entries[index as usize].generation }
    }

    /// Takes the value back; `None` if it was already taken, here or by `expire`.
    pub(crate) fn cancel(&mut self, id: TimerId) -> Option<T> {
        let entry = self.entries.get(id.index as usize)?;
        if entry.generation != id.generation {
            return None;
        }
        Some(self.remove(id.index))
    }

    /// Takes the value whose deadline is earliest, if that has come; call it until `None`.
    ///
    /// Equal ticks come in the order of insertion. What is inserted between two calls takes part.
    /// A `now` before that of an earlier call counts as that one.
    pub(crate) fn expire(&mut self, now: Time) -> Option<T> {
        self.now = self.now.max(now);
        let reached = tick_reached(self.now);
        while let Some(place) = self.earliest() {
            let start = place.start(self.current);
            debug_assert!(start >= self.current, "an occupied slot was passed over");
            if start > reached {
                break;
            }
            self.current = start;
            if place.level == 0 {
                return Some(self.remove(self.slots[0][place.slot].head));
            }
            self.cascade(place);
        }
        self.current = reached;
        None
    }

    /// When to call `expire` next: never after the earliest deadline's tick, often before it, to
    /// move timers down. Either way that call makes progress; one timer causes at most eight.
    pub(crate) fn next(&self) -> Option<Time> {
        let start = self.earliest()?.start(self.current);
        Some(Time::from_nanos(start.saturating_mul(TICK_NS)))
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.len
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn earliest(&self) -> Option<Place> {
        let level = self.occupied.iter().position(|&slots| slots != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        Some(Place { level, slot })
    }

    /// Moves the timers of a slot, whose start is the current tick, to the levels below.
    fn cascade(&mut self, Place { level, slot }: Place) {
        self.occupied[level] &= !(1 << slot);
        let list = mem::replace(&mut self.slots[level][slot], List::EMPTY);
        let mut index = list.head;
        while index != NONE {
            let entry = &self.entries[index as usize];
            debug_assert!(Place::of(entry.tick, self.current).level < level);
            let next = entry.next;
            self.link(index);
            index = next;
        }
    }

    fn remove(&mut self, index: u32) -> T {
        self.unlink(index);
        self.len -= 1;
        self.vacate(index)
    }

    /// Appends the entry to the list its tick belongs to.
    fn link(&mut self, index: u32) {
        let tick = self.entries[index as usize].tick;
        debug_assert!(tick >= self.current, "a timer in the past has no place");
        let Place { level, slot } = Place::of(tick, self.current);
        self.occupied[level] |= 1 << slot;

        let list = &mut self.slots[level][slot];
        let previous = mem::replace(&mut list.tail, index);
        match previous {
            NONE => list.head = index,
            _ => self.entries[previous as usize].next = index,
        }
        let entry = &mut self.entries[index as usize];
        entry.previous = previous;
        entry.next = NONE;
    }

    fn unlink(&mut self, index: u32) {
        let Entry { tick, previous, next, .. } = self.entries[index as usize];
        let Place { level, slot } = Place::of(tick, self.current);
        let list = &mut self.slots[level][slot];
        match previous {
            NONE => list.head = next,
            _ => self.entries[previous as usize].next = next,
        }
        match next {
            NONE => list.tail = previous,
            _ => self.entries[next as usize].previous = previous,
        }
        if list.head == NONE {
            self.occupied[level] &= !(1 << slot);
        }
    }

    fn occupy(&mut self, tick: u64, value: T) -> u32 {
        if self.free == NONE {
            self.free = u32::try_from(self.entries.len())
                .ok()
                .filter(|&index| index != NONE)
                .expect("memory ends before four billion timers wait at once");
            self.entries.push(Entry::FREE);
        }
        let index = self.free;
        let entry = &mut self.entries[index as usize];
        debug_assert!(entry.value.is_none(), "a free entry holds nothing");
        self.free = entry.next;
        entry.tick = tick;
        entry.value = Some(value);
        index
    }

    fn vacate(&mut self, index: u32) -> T {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.checked_add(1).unwrap_or(NonZero::<u32>::MIN);
        entry.next = mem::replace(&mut self.free, index);
        entry.value.take().expect("a linked entry holds a value")
    }
}

/// One timer, or one free place for a timer.
struct Entry<T> {
    tick: u64,
    previous: u32,
    next: u32,
    /// Counts the timers that were here before.
    generation: NonZero<u32>,
    value: Option<T>,
}

impl<T> Entry<T> {
    const FREE: Entry<T> =
        Entry { tick: 0, previous: NONE, next: NONE, generation: NonZero::<u32>::MIN, value: None };
}

#[derive(Copy, Clone)]
struct List {
    head: u32,
    tail: u32,
}

impl List {
    const EMPTY: List = List { head: NONE, tail: NONE };
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Place {
    level: usize,
    slot: usize,
}

impl Place {
    /// Where a timer of `tick` waits while the wheel is at `current`.
    fn of(tick: u64, current: u64) -> Place {
        // The lowest bit stands in for "no difference", which is level 0 as well.
        let highest_difference = ((tick ^ current) | 1).ilog2();
        let level = highest_difference / DIGIT_BITS;
        let slot = (tick >> (level * DIGIT_BITS)) % SLOTS as u64;
        Place { level: level as usize, slot: slot as usize }
    }

    /// The first tick of this slot, given that it is not behind `current`.
    fn start(self, current: u64) -> u64 {
        let width = self.level as u32 * DIGIT_BITS;
        let above = width + DIGIT_BITS;
        (current >> above << above) | ((self.slot as u64) << width)
    }
}

/// The tick at which a timer of this deadline may fire.
const fn tick_due(at: Time) -> u64 {
    at.as_nanos().div_ceil(TICK_NS)
}

/// The latest tick that has come at `now`.
const fn tick_reached(now: Time) -> u64 {
    now.as_nanos() / TICK_NS
}

const TICK_NS: u64 = 1_000_000;
const DIGIT_BITS: u32 = 6;
const SLOTS: usize = 1 << DIGIT_BITS;
const LEVELS: usize = 8;
/// Ends a list.
const NONE: u32 = u32::MAX;

const _: () = assert!(SLOTS == u64::BITS as usize, "one bit per slot");
const _: () =
    assert!(tick_due(Time::NEVER) >> (LEVELS as u32 * DIGIT_BITS) == 0, "every point in time has a place");

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_timer_fires_at_its_deadline_and_not_before() {
        let mut wheel = Wheel::new(Time::ZERO);
        wheel.insert(millis(10), "ten");
        assert_eq!(wheel.expire(micros(9_999)), None);
        assert_eq!(wheel.expire(millis(10)), Some("ten"));
        assert_eq!(wheel.expire(millis(10)), None);
        assert!(wheel.is_empty());
    }

    #[test]
    fn a_deadline_between_two_ticks_waits_for_the_later_one() {
        let mut wheel = Wheel::new(Time::ZERO);
        wheel.insert(micros(10_001), ());
        assert_eq!(wheel.next(), Some(millis(11)));
        assert_eq!(wheel.expire(micros(10_999)), None);
        assert_eq!(wheel.expire(millis(11)), Some(()));
    }

    #[test]
    fn a_past_deadline_fires_at_the_next_expire() {
        let mut wheel = Wheel::new(micros(5_700));
        wheel.insert(Time::ZERO, "long past");
        wheel.insert(micros(5_600), "within this tick");
        wheel.insert(micros(5_700), "now");
        assert_eq!(wheel.next(), Some(millis(5)));
        assert_eq!(expire_all(&mut wheel, micros(5_700)), ["long past", "within this tick", "now"]);
    }

    #[test]
    fn timers_fire_in_the_order_of_their_ticks() {
        let mut wheel = Wheel::new(millis(63));
        for ms in [262_145, 64, 5_000, 63, 4_096, 65, 300_000, 4_095] {
            wheel.insert(millis(ms), ms);
        }
        let fired = expire_all(&mut wheel, millis(1_000_000));
        assert_eq!(fired, [63, 64, 65, 4_095, 4_096, 5_000, 262_145, 300_000]);
    }

    #[test]
    fn timers_of_one_tick_fire_in_the_order_of_insertion() {
        let mut wheel = Wheel::new(Time::ZERO);
        wheel.insert(millis(5_000), 1);
        assert_eq!(wheel.expire(millis(4_500)), None);
        wheel.insert(millis(5_000), 2);
        assert_eq!(wheel.expire(millis(4_999)), None);
        wheel.insert(micros(4_999_001), 3);
        assert_eq!(expire_all(&mut wheel, millis(5_000)), [1, 2, 3]);
    }

    #[test]
    fn a_timer_inserted_while_others_fire_takes_its_turn() {
        let mut wheel = Wheel::new(Time::ZERO);
        wheel.insert(millis(10), 10);
        wheel.insert(millis(30), 30);
        assert_eq!(wheel.expire(millis(100)), Some(10));
        wheel.insert(millis(20), 20);
        wheel.insert(millis(1), 1);
        wheel.insert(millis(101), 101);
        assert_eq!(expire_all(&mut wheel, millis(100)), [1, 20, 30]);
        assert_eq!(wheel.len(), 1);
    }

    #[test]
    fn a_cancelled_timer_returns_its_value_and_never_fires() {
        let mut wheel = Wheel::new(Time::ZERO);
        let kept = [wheel.insert(millis(7), 0), wheel.insert(millis(7), 2)];
        let cancelled = wheel.insert(millis(7), 1);
        assert_ne!(kept[0], kept[1]);
        assert_eq!(wheel.cancel(cancelled), Some(1));
        assert_eq!(wheel.cancel(cancelled), None);
        assert_eq!(expire_all(&mut wheel, millis(7)), [0, 2]);
    }

    #[test]
    fn a_stale_id_does_not_cancel_the_timer_that_took_its_place() {
        let mut wheel = Wheel::new(Time::ZERO);
        let fired = wheel.insert(millis(1), "fired");
        assert_eq!(wheel.expire(millis(1)), Some("fired"));
        let waiting = wheel.insert(millis(2), "waiting");
        assert_eq!(fired.index, waiting.index);
        assert_eq!(wheel.cancel(fired), None);
        assert_eq!(wheel.cancel(waiting), Some("waiting"));
    }

    #[test]
    fn an_id_of_another_wheel_may_be_out_of_range() {
        let id = Wheel::new(Time::ZERO).insert(millis(1), ());
        assert_eq!(Wheel::<()>::new(Time::ZERO).cancel(id), None);
    }

    #[test]
    fn the_last_point_in_time_waits_for_its_cancel() {
        let mut wheel = Wheel::new(Time::ZERO);
        let never = wheel.insert(Time::NEVER, ());
        let century = Time::ZERO.after(Duration::from_secs(100 * 365 * 86_400));
        assert!(wheel.next() > Some(century));
        assert_eq!(wheel.expire(century), None);
        assert_eq!(wheel.expire(Time::NEVER), None);
        assert_eq!(wheel.next(), Some(Time::NEVER));
        assert_eq!(wheel.cancel(never), Some(()));
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_clock_that_steps_back_fires_nothing_twice_and_nothing_early() {
        let mut wheel = Wheel::new(Time::ZERO);
        wheel.insert(millis(10), 10);
        wheel.insert(millis(20), 20);
        assert_eq!(wheel.expire(millis(15)), Some(10));
        assert_eq!(wheel.expire(millis(3)), None);
        wheel.insert(millis(12), 12);
        assert_eq!(wheel.expire(millis(3)), Some(12));
        assert_eq!(wheel.expire(millis(19)), None);
        assert_eq!(wheel.expire(millis(20)), Some(20));
    }

    #[test]
    fn thirty_seconds_wake_an_idle_worker_three_times() {
        let mut wheel = Wheel::new(millis(4_242));
        wheel.insert(millis(34_242), ());
        assert_eq!(wheel.next(), Some(millis(32_768)));
        assert_eq!(wheel.expire(millis(32_768)), None);
        assert_eq!(wheel.next(), Some(millis(34_240)));
        assert_eq!(wheel.expire(millis(34_240)), None);
        assert_eq!(wheel.next(), Some(millis(34_242)));
        assert_eq!(wheel.expire(millis(34_242)), Some(()));
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn timers_that_come_and_go_reuse_their_memory() {
        let mut wheel = Wheel::new(Time::ZERO);
        for ms in 0..1_000 {
            wheel.insert(millis(ms + 2), ms);
            let cancelled = wheel.insert(millis(ms + 60_000), ms);
            wheel.expire(millis(ms));
            wheel.cancel(cancelled);
        }
        assert_eq!(wheel.entries.len(), 4);
    }

    #[test]
    fn an_entry_costs_24_bytes_beside_its_value() {
        assert_eq!(size_of::<Entry<Box<()>>>(), 24 + size_of::<Box<()>>());
        assert_eq!(size_of::<TimerId>(), 8);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_wheel_agrees_with_a_sorted_map(
            start in 0..1_u64 << 41,
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let mut pair = Pair::new(Time::from_nanos(start));
            for step in steps {
                pair.apply(step);
                pair.check();
            }
            pair.finish();
        }

        #[test]
        fn one_timer_wakes_an_idle_worker_at_most_once_per_level(
            start in 0..1_u64 << 62,
            span in span(),
        ) {
            let mut wheel = Wheel::new(Time::from_nanos(start));
            let at = Time::from_nanos(start + span);
            wheel.insert(at, ());
            for _wake in 0..LEVELS {
                let now = wheel.next().expect("a timer is waiting");
                prop_assert!(tick_reached(now) <= tick_due(at));
                if wheel.expire(now).is_some() {
                    prop_assert!(span == 0 || now >= at);
                    return Ok(());
                }
            }
            prop_assert!(false, "still waiting after one wake per level");
        }
    }

    #[derive(Copy, Clone, Debug)]
    enum Step {
        /// A deadline this long after the clock.
        Insert(u64),
        /// A deadline this long before the clock.
        InsertPast(u64),
        InsertNever,
        /// Any timer ever inserted, by position.
        Cancel(prop::sample::Index),
        Advance(u64),
        /// As far as `next` says.
        Wake,
        /// Takes at most this many, so that others are inserted and cancelled in between.
        Expire(usize),
        ExpireAll,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => span().prop_map(Step::Insert),
            1 => span().prop_map(Step::InsertPast),
            1 => Just(Step::InsertNever),
            3 => any::<prop::sample::Index>().prop_map(Step::Cancel),
            2 => span().prop_map(Step::Advance),
            2 => Just(Step::Wake),
            2 => (1..4_usize).prop_map(Step::Expire),
            2 => Just(Step::ExpireAll),
        ]
    }

    /// Nanoseconds: within a tick, seconds, hours, and powers of two around the level crossings.
    fn span() -> impl Strategy<Value = u64> {
        prop_oneof![
            Just(0),
            0..3 * TICK_NS,
            0..100 * TICK_NS,
            0..60_000 * TICK_NS,
            0..12 * 3_600_000 * TICK_NS,
            Just(1 << 40),
            (0..44_u32, 0..3_u64).prop_map(|(bit, add)| ((1 << bit) + add - 1) * TICK_NS),
        ]
    }

    /// The wheel and a sorted map that must agree. Values are positions in `issued`.
    struct Pair {
        wheel: Wheel<usize>,
        /// By tick and order of insertion.
        model: BTreeMap<(u64, usize), Time>,
        issued: Vec<(TimerId, u64)>,
        clock: Time,
        /// What `expire` was last told.
        told: Time,
        /// The latest tick that fired, or that was passed with nothing left to fire.
        passed: u64,
    }

    impl Pair {
        fn new(now: Time) -> Pair {
            Pair {
                wheel: Wheel::new(now),
                model: BTreeMap::new(),
                issued: Vec::new(),
                clock: now,
                told: now,
                passed: tick_reached(now),
            }
        }

        fn apply(&mut self, step: Step) {
            let clock = self.clock.as_nanos();
            let later = |span| Time::from_nanos(clock.saturating_add(span));
            match step {
                Step::Insert(span) => self.insert(later(span)),
                Step::InsertPast(span) => self.insert(Time::from_nanos(clock.saturating_sub(span))),
                Step::InsertNever => self.insert(Time::NEVER),
                Step::Cancel(_) if self.issued.is_empty() => {}
                Step::Cancel(index) => self.cancel(index.index(self.issued.len())),
                Step::Advance(span) => self.advance_to(later(span)),
                Step::Wake => self.wake(),
                Step::Expire(count) => self.expire_some(count),
                Step::ExpireAll => self.expire_some(usize::MAX),
            }
        }

        fn insert(&mut self, at: Time) {
            let position = self.issued.len();
            let mut tick = tick_due(at);
            if at <= self.told {
                tick = tick.min(tick_reached(self.told));
            }
            tick = tick.max(self.passed);
            let id = self.wheel.insert(at, position);
            assert!(!self.issued.contains(&(id, tick)), "ids are unique");
            self.issued.push((id, tick));
            self.model.insert((tick, position), at);
        }

        fn cancel(&mut self, position: usize) {
            let (id, tick) = self.issued[position];
            let waiting = self.model.remove(&(tick, position));
            assert_eq!(self.wheel.cancel(id), waiting.map(|_| position));
        }

        fn advance_to(&mut self, time: Time) {
            self.clock = self.clock.max(time.min(FAR));
        }

        fn wake(&mut self) {
            let Some(next) = self.wheel.next() else { return };
            self.advance_to(next);
            let before = (self.wheel.current, self.wheel.next(), self.wheel.len());
            if self.clock >= next && !self.expire() {
                assert_ne!(before, (self.wheel.current, self.wheel.next(), self.wheel.len()));
            }
        }

        fn expire_some(&mut self, count: usize) {
            for _ in 0..count {
                if !self.expire() {
                    return;
                }
            }
        }

        fn expire(&mut self) -> bool {
            self.told = self.clock;
            let due = self.model.first_key_value().map(|(&key, &at)| (key, at));
            let due = due.filter(|&((tick, _), _)| tick <= tick_reached(self.clock));
            let fired = self.wheel.expire(self.clock);
            assert_eq!(fired, due.map(|((_, position), _)| position));
            let Some((key, at)) = due else {
                self.passed = tick_reached(self.clock);
                return false;
            };
            assert!(at <= self.clock, "fired early");
            self.passed = key.0;
            self.model.remove(&key);
            true
        }

        fn check(&self) {
            assert_eq!(self.wheel.len(), self.model.len());
            assert_eq!(self.wheel.is_empty(), self.model.is_empty());
            let next = self.wheel.next();
            assert_eq!(next.is_some(), !self.model.is_empty());
            if let Some(earliest) = self.model.values().min() {
                let tick = Time::from_nanos(tick_due(*earliest).saturating_mul(TICK_NS));
                assert!(next <= Some(tick.max(self.clock)), "woken too late");
            }
            check_lists(&self.wheel);
        }

        /// Cancels what waits beyond the clock's range, then follows `next` until all has fired.
        fn finish(mut self) {
            for position in 0..self.issued.len() {
                if self.model.get(&(self.issued[position].1, position)) >= Some(&FAR) {
                    self.cancel(position);
                }
            }
            while !self.wheel.is_empty() {
                self.wake();
                self.check();
            }
            assert!(self.model.is_empty());
        }
    }

    /// A whole tick, so that what is due before it can fire before it; 285 years.
    const FAR: Time = Time::from_nanos(9_000_000_000_000 * TICK_NS);

    /// Every timer is in the list its tick belongs to; the bitmaps and the count tell the truth.
    fn check_lists<T>(wheel: &Wheel<T>) {
        let mut count = 0;
        for (level, slots) in wheel.slots.iter().enumerate() {
            for (slot, list) in slots.iter().enumerate() {
                let occupied = wheel.occupied[level] >> slot & 1 == 1;
                assert_eq!(occupied, list.head != NONE);
                let (mut previous, mut index) = (NONE, list.head);
                while index != NONE {
                    let entry = &wheel.entries[index as usize];
                    assert!(entry.value.is_some());
                    assert!(entry.tick >= wheel.current);
                    assert_eq!(Place::of(entry.tick, wheel.current), Place { level, slot });
                    assert_eq!(entry.previous, previous);
                    (previous, index) = (index, entry.next);
                    count += 1;
                }
                assert_eq!(list.tail, previous);
            }
        }
        assert_eq!(count, wheel.len());
    }

    fn expire_all<T>(wheel: &mut Wheel<T>, now: Time) -> Vec<T> {
        std::iter::from_fn(|| wheel.expire(now)).collect()
    }

    fn millis(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    fn micros(us: u64) -> Time {
        Time::from_nanos(us * 1_000)
    }
}
