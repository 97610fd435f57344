//! How many TLS handshakes of new connections a worker has in progress, and who waits for a place.
//!
//! A handshake costs memory, and processor time when its peer goes on, so there is a bound. Where it is reached, a peer that has
//! taken its time gives way to a new one: who stalls on purpose keeps nobody else out for long, and who is merely far away is
//! through before. A new one that finds nobody to give way waits, as long as its deadline lets it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::engine::Token;
use crate::time::Time;

/// After so long a handshake gives way, if others wait.
const SLOW: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Handshakes(RefCell<Inner>);

#[derive(Default)]
struct Inner {
    /// Those in progress, in the order in which they began.
    running: BTreeMap<Place, (Token, Time)>,
    next: u64,
    /// Those that have not begun; some may be gone meanwhile.
    waiting: VecDeque<Token>,
    /// When somebody gives way at the earliest, if a timer is set for that.
    looked_at: Option<Time>,
}

/// A place among those in progress.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(u64);

/// What becomes of a handshake that would like to begin.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It begins.
    Begins(Place),
    /// It would, if this one gave way.
    Instead(Token),
    /// It waits, at least until then.
    Waits(Time),
}

impl Handshakes {
    /// Asks for a place among at most `max`.
    pub(crate) fn ask(&self, token: Token, max: usize, now: Time) -> Turn {
        let mut inner = self.0.borrow_mut();
        if inner.running.len() < max {
            let place = Place(inner.next);
            inner.next += 1;
            inner.running.insert(place, (token, now));
            return Turn::Begins(place);
        }
        match inner.running.first_key_value() {
            Some((_, (oldest, began))) if began.after(SLOW) <= now => Turn::Instead(*oldest),
            Some((_, (_, began))) => Turn::Waits(began.after(SLOW)),
            // There is room for none.
            None => Turn::Waits(now.after(SLOW)),
        }
    }

    /// One is over, however it ended.
    pub(crate) fn leave(&self, place: Place) {
        self.0.borrow_mut().running.remove(&place);
    }

    pub(crate) fn wait(&self, token: Token) {
        self.0.borrow_mut().waiting.push_back(token);
    }

    /// Who has waited longest.
    pub(crate) fn next_waiting(&self) -> Option<Token> {
        self.0.borrow_mut().waiting.pop_front()
    }

    /// It has to wait on.
    pub(crate) fn wait_on(&self, token: Token) {
        self.0.borrow_mut().waiting.push_front(token);
    }

    pub(crate) fn anybody_waits(&self) -> bool {
        !self.0.borrow().waiting.is_empty()
    }

    /// Whether a timer has to be set for this time; one that comes before is enough.
    pub(crate) fn look_at(&self, at: Time) -> bool {
        let mut inner = self.0.borrow_mut();
        let sets = inner.looked_at.is_none_or(|set| at < set);
        if sets {
            inner.looked_at = Some(at);
        }
        sets
    }

    /// The timer has fired.
    pub(crate) fn looked(&self) {
        self.0.borrow_mut().looked_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(index: u32) -> Token {
        Token { index, generation: 0 }
    }

    #[test]
    fn the_oldest_gives_way_when_it_has_taken_its_time() {
        let handshakes = Handshakes::default();
        let Turn::Begins(first) = handshakes.ask(token(1), 2, Time::ZERO) else { panic!("there is room") };
        let half = Time::ZERO.after(SLOW / 2);
        assert!(matches!(handshakes.ask(token(2), 2, half), Turn::Begins(_)));
        assert_eq!(handshakes.ask(token(3), 2, half), Turn::Waits(Time::ZERO.after(SLOW)));
        let later = Time::ZERO.after(SLOW);
        assert_eq!(handshakes.ask(token(3), 2, later), Turn::Instead(token(1)));
        handshakes.leave(first);
        assert!(matches!(handshakes.ask(token(3), 2, later), Turn::Begins(_)));
        assert_eq!(handshakes.ask(token(4), 2, later), Turn::Waits(half.after(SLOW)));
    }

    #[test]
    fn who_waits_is_next_in_order_and_one_timer_is_enough() {
        let handshakes = Handshakes::default();
        for index in 0..3 {
            handshakes.wait(token(index));
        }
        assert_eq!(handshakes.next_waiting(), Some(token(0)));
        handshakes.wait_on(token(0));
        assert_eq!(handshakes.next_waiting(), Some(token(0)));
        assert!(handshakes.look_at(Time::ZERO));
        assert!(!handshakes.look_at(Time::ZERO.after(SLOW)));
        handshakes.looked();
        assert!(handshakes.look_at(Time::ZERO));
    }
}
