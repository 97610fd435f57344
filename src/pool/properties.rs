//! Property tests: whatever is asked, given back, lost and waited for in whatever order, the core agrees with a simple model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MAX: usize = 3;
const WAITERS: usize = 6;

#[derive(Copy, Clone, Debug)]
enum Step {
    Ask,
    Take(usize),
    GiveUp(usize),
    Made,
    Fails,
    Abandons,
    Put(usize),
    Discard(usize),
    /// An idle one ends.
    Ends(usize),
    Spare,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let which = || 0usize..8;
    prop_oneof![
        6 => Just(Step::Ask),
        8 => which().prop_map(Step::Take),
        2 => which().prop_map(Step::GiveUp),
        6 => Just(Step::Made),
        1 => Just(Step::Fails),
        1 => Just(Step::Abandons),
        8 => which().prop_map(Step::Put),
        2 => which().prop_map(Step::Discard),
        1 => which().prop_map(Step::Ends),
        1 => Just(Step::Spare),
        3 => (0u64..40).prop_map(Step::Pass),
    ]
}

/// What is known of a pool by watching it from outside.
struct Model {
    core: Core<u32>,
    now: u64,
    /// Tickets that were neither used nor given up.
    open: Vec<Ticket>,
    making: usize,
    lent: Vec<(u32, u64)>,
    /// All that were made and are not closed, and which of them have ended.
    alive: BTreeSet<u32>,
    ended: BTreeSet<u32>,
    /// When each came back.
    since: BTreeMap<u32, u64>,
    next: u32,
}

impl Model {
    fn new(shared: bool) -> Model {
        let bounds = Bounds {
            max: MAX,
            idle_max: 2,
            idle_min: 1,
            waiters_max: WAITERS,
            max_idle: Duration::from_nanos(50),
            shared,
        };
        let mut core = Core::new(bounds);
        core.add_permits(if shared { MAX } else { 0 });
        Model {
            core,
            now: 0,
            open: Vec::new(),
            making: 0,
            lent: Vec::new(),
            alive: BTreeSet::new(),
            ended: BTreeSet::new(),
            since: BTreeMap::new(),
            next: 0,
        }
    }

    fn time(&self) -> Time {
        Time::from_nanos(self.now)
    }

    fn step(&mut self, step: Step) {
        let pick = |len: usize, which: usize| (len > 0).then(|| which % len);
        match step {
            Step::Ask => {
                let waiting = self.core.waiting();
                match self.core.ask(self.time()) {
                    Ok(ticket) => self.open.push(ticket),
                    Err(refused) => {
                        assert_eq!(refused, Refused::Full);
                        assert!(waiting >= WAITERS);
                    }
                }
            }
            Step::Take(which) => self.take(which),
            Step::GiveUp(which) => {
                if let Some(at) = pick(self.open.len(), which) {
                    let ticket = self.open.remove(at);
                    self.core.give_up(ticket);
                }
            }
            Step::Made if self.making > 0 => {
                self.making -= 1;
                self.core.made();
                self.next += 1;
                self.alive.insert(self.next);
                self.lent.push((self.next, self.now + 200));
            }
            Step::Fails if self.making > 0 => {
                self.making -= 1;
                self.core.failed(self.time(), |failures| Duration::from_nanos(u64::from(failures) * 10));
            }
            Step::Abandons if self.making > 0 => {
                self.making -= 1;
                self.core.abandoned();
            }
            Step::Made | Step::Fails | Step::Abandons => {}
            Step::Put(which) => {
                if let Some(at) = pick(self.lent.len(), which) {
                    let (value, expires) = self.lent.remove(at);
                    self.since.insert(value, self.now);
                    let expires = Time::from_nanos(expires);
                    self.core.put(Idle { value, since: self.time(), expires });
                }
            }
            Step::Discard(which) => {
                if let Some(at) = pick(self.lent.len(), which) {
                    let (value, _) = self.lent.remove(at);
                    self.alive.remove(&value);
                    self.core.discard();
                }
            }
            Step::Ends(which) => {
                let idle: Vec<u32> = self.core.idle().copied().collect();
                if let Some(at) = pick(idle.len(), which) {
                    self.ended.insert(idle[at]);
                }
            }
            Step::Spare => {
                if self.core.begin_spare(self.time()) {
                    self.making += 1;
                }
            }
            Step::Pass(nanos) => {
                self.now += nanos;
                let (now, ended) = (self.time(), &self.ended);
                self.core.expire(now, &mut |value| fit(ended, *value));
            }
        }
        self.settle();
    }

    /// What was handed out is handed to the oldest, and is as good as new.
    fn take(&mut self, which: usize) {
        let handed: Vec<Ticket> =
            self.open.iter().copied().filter(|ticket| self.core.is_handed(*ticket)).collect();
        if handed.is_empty() {
            return;
        }
        let ticket = handed[which % handed.len()];
        self.open.retain(|open| *open != ticket);
        match self.core.take(ticket).expect("it was handed something") {
            Grant::Slot => self.making += 1,
            Grant::Idle(idle) => {
                assert!(self.alive.contains(&idle.value), "what was closed is not handed out");
                self.lent.push((idle.value, idle.expires.as_nanos()));
            }
        }
    }

    fn settle(&mut self) {
        let (now, ended) = (self.time(), &self.ended);
        let alive = &self.alive;
        // Once more, because of what the first time frees: a bound of which nobody else draws grants it again.
        for _ in 0..2 {
            let permits = self.core.take_permits();
            self.core.add_permits(permits);
            self.core.serve(now, &mut |value| {
                assert!(alive.contains(value), "what is looked at is there");
                fit(ended, *value)
            });
        }
        self.core.trim();
        for (value, why) in self.core.take_evicted() {
            assert!(self.alive.remove(&value), "each is closed once");
            let idle_since = self.since[&value];
            match why {
                Discard::Idle => assert!(self.now >= idle_since + 50),
                Discard::Closed => assert!(self.ended.contains(&value)),
                Discard::Surplus | Discard::Aged => {}
                other => panic!("nobody asked for {other:?}"),
            }
        }
        self.core.take_woken();
        self.check();
    }

    fn check(&self) {
        let handed: Vec<Ticket> =
            self.open.iter().copied().filter(|ticket| self.core.is_handed(*ticket)).collect();
        let waiting: Vec<Ticket> =
            self.open.iter().copied().filter(|ticket| !self.core.is_handed(*ticket)).collect();
        assert_eq!(self.core.waiting(), waiting.len(), "who was not served is in the queue");
        assert!(waiting.len() <= WAITERS);
        if let (Some(last), Some(first)) = (handed.last(), waiting.first()) {
            assert!(last < first, "nobody is overtaken");
        }
        let slots = self.core.in_use() + self.core.making() + self.core.idle_len();
        assert!(slots <= MAX, "never more than the bound");
        assert!(self.alive.len() + self.making <= slots, "each has a slot");
        assert!(self.core.idle_len() <= 2, "never more idle than the bound");
        assert!(waiting.is_empty() || self.core.idle_len() == 0, "nobody waits while one is idle");
        let blocked = slots == MAX || self.core.is_failing();
        assert!(waiting.is_empty() || blocked, "nobody waits while one could be made");
        // Whoever waits for a failure to be over is looked after at that time.
        if !waiting.is_empty() && slots < MAX && self.core.making() == 0 {
            let due = self.core.next_due(self.time()).expect("there is a time to try again");
            assert!(due > self.time());
        }
    }
}

fn fit(ended: &BTreeSet<u32>, value: u32) -> Result<(), Discard> {
    if ended.contains(&value) { Err(Discard::Closed) } else { Ok(()) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_the_bound_the_order_and_every_slot(
        shared in any::<bool>(),
        steps in vec(step(), 0..200),
    ) {
        let mut model = Model::new(shared);
        steps.into_iter().for_each(|step| model.step(step));
        // Everything comes back in the end, and nothing is left.
        while !(model.open.is_empty() && model.making == 0 && model.lent.is_empty()) {
            model.step(Step::Take(0));
            model.step(Step::Made);
            model.step(Step::Put(0));
            model.step(Step::Pass(60));
        }
        model.core.close();
        model.core.take_evicted();
        prop_assert!(model.core.is_empty());
        prop_assert_eq!(model.core.take_permits(), if shared { MAX } else { 0 });
    }
}

#[test]
fn a_ticket_that_is_given_up_passes_on_what_it_was_handed() {
    let mut model = Model::new(false);
    for _ in 0..MAX + 1 {
        model.step(Step::Ask);
    }
    let (first, last) = (model.open[0], model.open[MAX]);
    assert!(model.core.is_handed(first) && !model.core.is_handed(last));
    model.step(Step::GiveUp(0));
    assert!(model.core.is_handed(last));
}

#[test]
fn after_a_failure_one_is_tried_at_a_time() {
    let mut model = Model::new(false);
    model.step(Step::Ask);
    model.step(Step::Take(0));
    model.step(Step::Fails);
    for _ in 0..MAX {
        model.step(Step::Ask);
    }
    assert!(model.open.iter().all(|ticket| !model.core.is_handed(*ticket)), "not before the pause is over");
    model.step(Step::Pass(10));
    assert!(model.core.is_handed(model.open[0]) && !model.core.is_handed(model.open[1]));
    model.step(Step::Take(0));
    model.step(Step::Made);
    assert!(model.open.iter().all(|ticket| model.core.is_handed(*ticket)), "one is there: now all may try");
}
