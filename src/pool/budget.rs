//! A bound that the pools of several workers draw on: so many permits, and who gets the next one.
//!
//! A connection never leaves its worker, so what is shared is not connections but the right to have one. Each pool tells how
//! many permits it could use and since when its oldest ticket waits; a permit that is free goes to the pool of the oldest
//! ticket of all. If none is free, a pool with an idle connection is asked to give one up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

/// Nanoseconds on a scale that all pools of a budget have in common.
pub(super) type Common = u64;

/// The permits, and the pools that draw on them.
pub(super) struct Budget {
    /// Of the shared pool, by which its workers know their own.
    pub(super) id: u64,
    /// Nobody can ask for the pool of a worker any more.
    abandoned: AtomicBool,
    state: Mutex<State>,
    /// Whether a pool waits for a permit; readable without the lock.
    contended: AtomicBool,
    /// A ticket may be overtaken by one on another worker that came so much later, for a connection that is at hand there.
    patience: Duration,
    pub(super) epoch: Instant,
}

impl Budget {
    pub(super) fn new(id: u64, max: usize, patience: Duration) -> Budget {
        Budget {
            id,
            abandoned: AtomicBool::new(false),
            state: Mutex::new(State { max, used: 0, members: BTreeMap::new(), next: 0 }),
            contended: AtomicBool::new(false),
            patience,
            epoch: Instant::now(),
        }
    }

    pub(super) fn join(&self) -> u64 {
        self.lock().join()
    }

    /// A pool is gone, and its permits with it.
    pub(super) fn leave(&self, member: u64, held: usize) {
        let mut state = self.lock();
        state.leave(member, held);
        self.settle(state);
    }

    /// A pool tells what it wants and has, and gives permits back. It gets what it was granted, and hears what it is asked for.
    pub(super) fn update(&self, member: u64, report: Report) -> Answer {
        let mut state = self.lock();
        state.report(member, report);
        self.distribute(&mut state);
        let answer = state.collect(member);
        self.settle(state);
        answer
    }

    /// Whom to wake when a pool has been granted something, or is asked for something.
    pub(super) fn set_waker(&self, member: u64, waker: Waker) {
        if let Some(entry) = self.lock().members.get_mut(&member) {
            entry.waker = Some(waker);
        }
    }

    /// The shared pool is gone: each worker is to forget its own.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        let wakers: Vec<_> = self.lock().members.values().filter_map(|entry| entry.waker.clone()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether the shared pool is gone. Behind [`Budget::set_waker`], so that it is not missed.
    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// A permit for a connection that nobody waits for: only if nobody else waits either.
    pub(super) fn try_take(&self) -> bool {
        let mut state = self.lock();
        let free = state.used < state.max && !state.members.values().any(Member::is_wanting);
        state.used += usize::from(free);
        free
    }

    /// Whether a connection that came free in the pool of `member`, whose oldest ticket waits since `oldest`, belongs to a
    /// ticket of another pool.
    pub(super) fn is_owed(&self, member: u64, oldest: Option<Common>) -> bool {
        self.contended.load(Ordering::Relaxed) && self.lock().is_owed(member, oldest, self.patience)
    }

    /// Permits that are in use.
    pub(super) fn used(&self) -> usize {
        self.lock().used
    }

    fn distribute(&self, state: &mut State) {
        state.distribute();
        self.contended.store(state.members.values().any(Member::is_wanting), Ordering::Relaxed);
    }

    /// Distributes, and wakes whom that concerns, not under the lock.
    fn settle(&self, mut state: MutexGuard<'_, State>) {
        self.distribute(&mut state);
        let wakers = state.take_wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Nothing panics under this lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How it stands with one pool.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Report {
    /// How many permits it could use at once.
    pub(super) wanted: usize,
    /// Since when its oldest ticket waits.
    pub(super) since: Common,
    /// How many idle connections it has.
    pub(super) idle: usize,
    /// How many permits it gives back.
    pub(super) returned: usize,
}

/// What a pool gets.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) granted: usize,
    /// So many idle connections are to be given up.
    pub(super) asked: usize,
}

impl Answer {
    pub(super) fn is_nothing(self) -> bool {
        self == Answer::default()
    }
}

/// What the lock guards.
struct State {
    max: usize,
    used: usize,
    members: BTreeMap<u64, Member>,
    next: u64,
}

#[derive(Default)]
struct Member {
    report: Report,
    /// Granted, and not collected.
    granted: usize,
    /// Asked for, and not heard.
    asked: usize,
    waker: Option<Waker>,
    to_wake: bool,
}

impl Member {
    /// Whether a permit would be of use that is not on its way. One at a time: its next ticket may be younger than another's.
    fn is_wanting(&self) -> bool {
        self.granted == 0 && self.report.wanted > 0
    }
}

impl State {
    fn join(&mut self) -> u64 {
        self.next += 1;
        self.members.insert(self.next, Member::default());
        self.next
    }

    fn leave(&mut self, member: u64, held: usize) {
        let granted = self.members.remove(&member).map_or(0, |entry| entry.granted);
        self.used -= held + granted;
    }

    fn report(&mut self, member: u64, report: Report) {
        self.used -= report.returned;
        if let Some(entry) = self.members.get_mut(&member) {
            entry.report = report;
        }
    }

    /// What there is for `member`, once.
    fn collect(&mut self, member: u64) -> Answer {
        let Some(entry) = self.members.get_mut(&member) else { return Answer::default() };
        entry.to_wake = false;
        Answer { granted: std::mem::take(&mut entry.granted), asked: std::mem::take(&mut entry.asked) }
    }

    /// Grants what is free, oldest ticket first; asks for idle connections if that is not enough.
    fn distribute(&mut self) {
        while self.used < self.max {
            let wanting = self.members.values_mut().filter(|member| member.is_wanting());
            let Some(first) = wanting.min_by_key(|member| member.report.since) else { break };
            first.granted += 1;
            first.to_wake = true;
            self.used += 1;
        }
        let unmet = self.members.values().filter(|member| member.is_wanting()).count();
        let mut asked: usize = self.members.values().map(|member| member.asked).sum();
        while asked < unmet {
            let has_more = |member: &&mut Member| member.report.idle > member.asked;
            let others = self.members.values_mut().filter(has_more);
            let Some(richest) = others.max_by_key(|member| member.report.idle - member.asked) else { break };
            richest.asked += 1;
            richest.to_wake = true;
            asked += 1;
        }
    }

    fn is_owed(&self, member: u64, oldest: Option<Common>, patience: Duration) -> bool {
        let patience = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let before =
            |other: &Member| oldest.is_none_or(|oldest| other.report.since.saturating_add(patience) < oldest);
        let (mut unmet, mut asked) = (0, 0);
        for (id, other) in &self.members {
            asked += other.asked;
            unmet += usize::from(*id != member && other.is_wanting() && before(other));
        }
        // For the others there is one on its way, or asked for.
        unmet > asked && self.used >= self.max
    }

    fn take_wakers(&mut self) -> Vec<Waker> {
        let due = |member: &mut Member| std::mem::take(&mut member.to_wake).then(|| member.waker.clone());
        self.members.values_mut().filter_map(|member| due(member).flatten()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn budget(max: usize) -> Budget {
        Budget::new(1, max, Duration::from_nanos(10))
    }

    fn wants(wanted: usize, since: Common) -> Report {
        Report { wanted, since, ..Report::default() }
    }

    #[test]
    fn the_oldest_ticket_of_all_gets_the_next_permit() {
        let budget = budget(1);
        let (a, b, c) = (budget.join(), budget.join(), budget.join());
        assert_eq!(budget.update(a, wants(1, 1)).granted, 1);
        assert_eq!(budget.update(b, wants(1, 7)).granted, 0);
        assert_eq!(budget.update(c, wants(1, 5)).granted, 0);
        budget.update(a, Report { returned: 1, ..Report::default() });
        assert_eq!(budget.update(b, wants(1, 7)).granted, 0);
        assert_eq!(budget.update(c, wants(1, 5)).granted, 1);
    }

    #[test]
    fn an_idle_connection_is_asked_for_if_somebody_elsewhere_waits_and_once() {
        let budget = budget(1);
        let (a, b) = (budget.join(), budget.join());
        assert_eq!(budget.update(a, wants(1, 1)).granted, 1);
        budget.update(a, Report { idle: 1, ..Report::default() });
        budget.update(b, wants(1, 2));
        let answer = budget.update(a, Report { idle: 1, ..Report::default() });
        assert_eq!(answer.asked, 1);
        assert!(!budget.try_take(), "somebody waits");
    }

    #[test]
    fn a_connection_that_comes_free_goes_elsewhere_only_if_somebody_there_is_older_by_the_patience() {
        let budget = budget(1);
        let (a, b) = (budget.join(), budget.join());
        budget.update(a, wants(1, 1));
        budget.update(a, Report::default());
        budget.update(b, wants(1, 50));
        assert!(budget.is_owed(a, None));
        assert!(!budget.is_owed(a, Some(60)));
        assert!(budget.is_owed(a, Some(61)));
        assert!(!budget.is_owed(b, None), "nobody but itself waits");
    }

    #[test]
    fn what_was_granted_to_a_pool_that_is_gone_goes_on_to_the_next() {
        let budget = budget(1);
        let (a, b, c) = (budget.join(), budget.join(), budget.join());
        budget.update(a, wants(1, 1));
        budget.update(b, wants(1, 2));
        budget.update(c, wants(1, 3));
        budget.leave(a, 1);
        budget.leave(b, 0);
        assert_eq!(budget.update(c, wants(1, 3)).granted, 1);
        assert_eq!(budget.used(), 1);
    }

    proptest! {
        /// Pools report at random; permits are never more than the bound, and none is lost.
        #[test]
        fn permits_are_bounded_and_none_is_lost(
            max in 1usize..5,
            steps in vec((0usize..4, 0usize..4, 0u64..100, 0usize..3, any::<bool>()), 1..200),
        ) {
            let budget = budget(max);
            let members: Vec<u64> = (0..4).map(|_| budget.join()).collect();
            let mut held = [0usize; 4];
            for (who, wanted, since, idle, gives_back) in steps {
                let returned = usize::from(gives_back && held[who] > 0);
                held[who] -= returned;
                let report = Report { wanted, since, idle: idle.min(held[who]), returned };
                let answer = budget.update(members[who], report);
                held[who] += answer.granted;
                // What was granted is used: the ticket waits no longer.
                let rest = wanted.saturating_sub(answer.granted);
                held[who] += budget.update(members[who], Report { wanted: rest, returned: 0, ..report }).granted;
                prop_assert!(held.iter().sum::<usize>() <= budget.used());
                prop_assert!(budget.used() <= max);
            }
            for (who, member) in members.iter().enumerate() {
                budget.leave(*member, held[who]);
            }
            prop_assert_eq!(budget.used(), 0);
        }
    }
}
