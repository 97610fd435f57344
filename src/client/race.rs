//! Which of a name's addresses is tried when, and what that comes to (Happy Eyeballs, RFC 8305). No socket, no clock.
//!
//! ```text
//!   0 ms    begin 1 ..........................  no answer
//!   250 ms            begin 2 ..  refused
//!   300 ms                        begin 3 .. connected: it wins, 1 is given up
//! ```
//!
//! Whoever drives a race asks [`Race::step`] until it says `Wait`, waits for the first attempt to end or for the time that it names,
//! tells it what has happened, and asks again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// The next attempt begins so long after the last one, if nothing has failed before (RFC 8305, section 8).
pub(crate) const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Less would flood the network with attempts that nobody needs (RFC 8305, section 5: it must not be less).
pub(crate) const ATTEMPT_DELAY_MIN: Duration = Duration::from_millis(10);

/// What to do next.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Begin the attempt at the address of this index, and ask again.
    Begin(usize),
    /// Wait until an attempt ends; and then, or at this time at the latest, ask again.
    Wait { until: Option<Duration> },
    /// No address is left.
    Over,
}

/// The attempts at a name's addresses. Times are told since the race began.
///
/// An address is waiting, running, or has failed. Who has connected stands for all of them: the others that run are given up, and wait
/// again, because what follows (a proxy's answer, TLS) may still fail at the winner.
#[derive(Debug)]
pub(crate) struct Race {
    addresses: Vec<Stage>,
    delay: Duration,
    /// So many may begin at once, because as many have failed.
    due: usize,
    /// When one more may begin in any case.
    next_at: Duration,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    Running,
    Connected,
    Failed,
}

impl Race {
    /// A race of so many addresses, the best one first, with so much time between two attempts.
    pub(crate) fn new(addresses: usize, delay: Duration) -> Race {
        Race { addresses: vec![Stage::Waiting; addresses], delay, due: 0, next_at: Duration::ZERO }
    }

    /// What to do at the time `now`.
    pub(crate) fn step(&mut self, now: Duration) -> Step {
        debug_assert!(!self.addresses.contains(&Stage::Connected), "a race that is won has no next step");
        let runs = self.addresses.contains(&Stage::Running);
        match self.addresses.iter().position(|stage| *stage == Stage::Waiting) {
            Some(index) if !runs || self.due > 0 || now >= self.next_at => {
                self.addresses[index] = Stage::Running;
                self.due = self.due.saturating_sub(1);
                self.next_at = now.saturating_add(self.delay);
                Step::Begin(index)
            }
            Some(_) => Step::Wait { until: Some(self.next_at) },
            None if runs => Step::Wait { until: None },
            None => Step::Over,
        }
    }

    /// The attempt has failed, or what came behind it: the next one begins at once.
    pub(crate) fn failed(&mut self, index: usize) {
        debug_assert!(matches!(self.addresses[index], Stage::Running | Stage::Connected), "it was begun");
        self.addresses[index] = Stage::Failed;
        self.due += 1;
    }

    /// The attempt has connected: give up all others that were begun. Should it still fail, they have their turn again.
    pub(crate) fn connected(&mut self, index: usize) {
        debug_assert_eq!(self.addresses[index], Stage::Running, "it was begun");
        for stage in &mut self.addresses {
            if *stage == Stage::Running {
                *stage = Stage::Waiting;
            }
        }
        self.addresses[index] = Stage::Connected;
        self.due = 0;
    }

    /// How many addresses have not failed.
    pub(crate) fn left(&self) -> usize {
        self.addresses.iter().filter(|stage| **stage != Stage::Failed).count()
    }

    /// What one of them may take of the `time` that is left, for what comes after it has connected.
    pub(crate) fn share(&self, time: Duration) -> Duration {
        time / self.left().max(1) as u32
    }
}

/// Puts addresses into the order in which they are tried: the families take turns, that of the first one first (RFC 8305, section 4).
/// Within a family they stay as they were resolved.
pub(crate) fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_first_family = addresses.first().map(SocketAddr::is_ipv6);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| Some(address.is_ipv6()) == is_first_family);
    let mut ordered = Vec::with_capacity(first.len() + second.len());
    while !first.is_empty() || !second.is_empty() {
        ordered.extend(first.pop_front());
        ordered.extend(second.pop_front());
    }
    ordered
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    const DELAY: Duration = ATTEMPT_DELAY;
    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_next_attempt_begins_when_the_delay_has_passed() {
        let mut race = Race::new(3, DELAY);
        assert_eq!(race.step(ms(0)), Step::Begin(0));
        assert_eq!(race.step(ms(0)), Step::Wait { until: Some(ms(250)) });
        assert_eq!(race.step(ms(249)), Step::Wait { until: Some(ms(250)) });
        assert_eq!(race.step(ms(251)), Step::Begin(1));
        assert_eq!(race.step(ms(251)), Step::Wait { until: Some(ms(501)) }, "it counts from the last one");
        assert_eq!(race.step(ms(501)), Step::Begin(2));
        assert_eq!(race.step(ms(501)), Step::Wait { until: None }, "there is no other");
    }

    #[test]
    fn the_next_attempt_begins_at_once_when_one_has_failed() {
        let mut race = Race::new(4, DELAY);
        assert_eq!(race.step(ms(0)), Step::Begin(0));
        race.failed(0);
        assert_eq!(race.step(ms(3)), Step::Begin(1));
        assert_eq!(race.step(ms(3)), Step::Wait { until: Some(ms(253)) }, "one for one");
        assert_eq!(race.step(ms(253)), Step::Begin(2));
        race.failed(1);
        assert_eq!(race.step(ms(254)), Step::Begin(3), "also if another one still runs");
        race.failed(2);
        race.failed(3);
        assert_eq!(race.step(ms(255)), Step::Over);
    }

    #[test]
    fn those_who_were_given_up_have_their_turn_again_when_the_winner_fails_after_all() {
        let mut race = Race::new(3, DELAY);
        assert_eq!(race.step(ms(0)), Step::Begin(0));
        assert_eq!(race.step(ms(250)), Step::Begin(1));
        race.connected(1);
        assert_eq!(race.left(), 3);
        race.failed(1);
        assert_eq!(race.left(), 2);
        assert_eq!(race.step(ms(700)), Step::Begin(0), "the best one first");
        assert_eq!(race.step(ms(700)), Step::Wait { until: Some(ms(950)) });
        assert_eq!(race.step(ms(950)), Step::Begin(2));
    }

    #[test]
    fn a_name_without_addresses_is_over_at_once() {
        assert_eq!(Race::new(0, DELAY).step(ms(0)), Step::Over);
    }

    #[test]
    fn the_families_take_turns_and_that_of_the_first_address_begins() {
        let order = |addresses: &[&str]| -> Vec<String> {
            let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
            interleave(addresses).iter().map(|address| address.ip().to_string()).collect()
        };
        assert_eq!(
            order(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "1.1.1.2:1"]),
            ["::1", "1.1.1.1", "::2", "1.1.1.2", "::3"]
        );
        assert_eq!(order(&["1.1.1.1:1", "1.1.1.2:1", "[::1]:1"]), ["1.1.1.1", "::1", "1.1.1.2"]);
        assert!(order(&[]).is_empty());
    }

    /// What an attempt comes to, and how long after its begin; `None` is never answered.
    #[derive(Copy, Clone, Debug)]
    struct Fate {
        after: Option<u64>,
        connects: bool,
    }

    fn fates() -> impl Strategy<Value = Vec<Fate>> {
        let fate = (proptest::option::of(0_u64..2_000), any::<bool>());
        proptest::collection::vec(fate.prop_map(|(after, connects)| Fate { after, connects }), 0..17)
    }

    /// Runs a race to its end: who wins and when, and when each one began.
    fn run(fates: &[Fate], delay: u64) -> (Option<(usize, u64)>, Vec<Option<u64>>) {
        let mut race = Race::new(fates.len(), ms(delay));
        let (mut now, mut began) = (0, vec![None; fates.len()]);
        let mut running: Vec<usize> = Vec::new();
        loop {
            let until = match race.step(ms(now)) {
                Step::Begin(index) => {
                    assert_eq!(began[index].replace(now), None, "nobody is tried twice");
                    running.push(index);
                    continue;
                }
                Step::Wait { until } => until.map(|until| until.as_millis() as u64),
                Step::Over => {
                    assert!(running.is_empty(), "nobody is forgotten");
                    return (None, began);
                }
            };
            assert!(!running.is_empty(), "somebody runs while others wait");
            let ends = |index: usize| fates[index].after.map(|after| began[index].expect("it runs") + after);
            let first = running.iter().filter_map(|&index| Some((ends(index)?, index))).min();
            match (first, until) {
                (Some((at, index)), until) if until.is_none_or(|until| at <= until) => {
                    now = at;
                    if fates[index].connects {
                        race.connected(index);
                        return (Some((index, now)), began);
                    }
                    running.retain(|other| *other != index);
                    race.failed(index);
                }
                (_, Some(until)) => {
                    assert!(until > now, "time goes on");
                    now = until;
                }
                // All that is left is never answered.
                _ => return (None, began),
            }
        }
    }

    proptest! {
        #[test]
        fn who_answers_is_found_and_those_before_it_cost_at_most_their_delays(
            fates in fates(), delay in 10_u64..1_000,
        ) {
            let (winner, began) = run(&fates, delay);
            let good = |fate: &Fate| fate.connects && fate.after.is_some();
            match fates.iter().position(good) {
                None => prop_assert_eq!(winner, None),
                Some(index) => {
                    let (_, at) = winner.expect("somebody answers");
                    let latest = delay * index as u64 + fates[index].after.expect("it answers");
                    prop_assert!(at <= latest, "{} ms after at most {} ms", at, latest);
                }
            }
            // They begin in their order, and each within the delay behind the one before.
            let begun: Vec<_> = began.iter().map_while(|at| *at).collect();
            prop_assert_eq!(began.iter().flatten().count(), begun.len());
            prop_assert!(begun.windows(2).all(|pair| pair[0] <= pair[1] && pair[1] - pair[0] <= delay));
        }

        #[test]
        fn without_failures_no_two_attempts_begin_closer_than_the_delay(
            count in 0_usize..17, delay in 10_u64..1_000,
        ) {
            let (_, began) = run(&vec![Fate { after: None, connects: false }; count], delay);
            let begun: Vec<_> = began.into_iter().flatten().collect();
            prop_assert_eq!(begun.len(), count);
            prop_assert!(begun.windows(2).all(|pair| pair[1] - pair[0] == delay));
        }

        #[test]
        fn the_order_of_addresses_loses_none_and_alternates_for_as_long_as_it_can(
            kinds in proptest::collection::vec(any::<bool>(), 0..17),
        ) {
            let addresses: Vec<SocketAddr> = kinds.iter().zip(1_u16..).map(|(v6, port)| match v6 {
                true => (Ipv6Addr::LOCALHOST, port).into(),
                false => (Ipv4Addr::LOCALHOST, port).into(),
            }).collect();
            let ordered = interleave(addresses.clone());
            let of = |list: &[SocketAddr], v6| -> Vec<_> { list.iter().copied().filter(|a| a.is_ipv6() == v6).collect() };
            prop_assert_eq!(of(&ordered, true), of(&addresses, true));
            prop_assert_eq!(of(&ordered, false), of(&addresses, false));
            prop_assert_eq!(ordered.first(), addresses.first());
            let rarer = of(&addresses, true).len().min(of(&addresses, false).len());
            let alternating = ordered.iter().take(rarer * 2).collect::<Vec<_>>();
            prop_assert!(alternating.windows(2).all(|pair| pair[0].is_ipv6() != pair[1].is_ipv6()));
        }
    }
}
