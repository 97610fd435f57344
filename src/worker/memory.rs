//! The memory that the connections of one server hold in buffers, on all of its workers, against its budget.
//!
//! Buffers are counted where they are made and freed, each worker by itself and without atomics; see `Held` in
//! engine/buffer.rs. A worker tells the sum here, once in a pass and only if it has changed, so that a server whose pools
//! are warm writes nothing. docs/design/memory.md tells what counts and why.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::Worker;

/// What a server's workers hold together, and how much that may be.
#[derive(Debug)]
pub(crate) struct Budget {
    /// `usize::MAX` is none.
    max: AtomicUsize,
    used: AtomicUsize,
    short: AtomicBool,
}

impl Budget {
    pub(crate) fn new(max: Option<usize>) -> Budget {
        Budget {
            max: AtomicUsize::new(max.unwrap_or(usize::MAX)),
            used: AtomicUsize::new(0),
            short: AtomicBool::new(false),
        }
    }

    pub(crate) fn max(&self) -> Option<usize> {
        Some(self.max.load(Ordering::Relaxed)).filter(|max| *max != usize::MAX)
    }

    /// Holds from the next pass of each worker on.
    pub(crate) fn set_max(&self, max: Option<usize>) {
        self.max.store(max.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether the budget is spent, idle buffers given back and all, and connections have to do with little.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// A worker, or a connection without one, holds `now` instead of `before`.
    pub(crate) fn tell(&self, before: usize, now: usize) {
        if now >= before {
            self.used.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.used.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    fn is_over(&self) -> bool {
        self.used() > self.max.load(Ordering::Relaxed)
    }

    /// Looks whether memory is short; says whether that is news. It stays short until an eighth is free, so that pools do not
    /// fill and empty by turns.
    pub(crate) fn judge(&self) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        let most = if self.is_short() { max - max / 8 } else { max };
        let short = self.used() > most;
        short != self.is_short() && self.short.swap(short, Ordering::Relaxed) != short
    }
}

impl Worker {
    /// Tells the server what its connections here hold, and does with less if that is too much.
    pub(super) fn account(&self) {
        let Some(budget) = self.budget.get() else { return };
        self.tell_memory(budget);
        if budget.is_over() || self.pieces.is_short() {
            self.engine.borrow_mut().shed();
            self.pieces.shed();
            self.tell_memory(budget);
        }
        if budget.judge()
            && let Some(member) = &*self.member.borrow()
        {
            member.memory_changed(budget.is_short());
        }
        if budget.is_short() != self.pieces.is_short() {
            self.pieces.set_short(budget.is_short());
            self.engine.borrow_mut().set_frugal(budget.is_short());
        }
    }

    #[inline]
    fn tell_memory(&self, budget: &Budget) {
        let held = self.engine.borrow().held() + self.pieces.held();
        let told = self.memory_told.replace(held);
        if held != told {
            budget.tell(told, held);
        }
    }

    /// The worker ends: what it still holds goes with it.
    pub(super) fn account_for_end(&self) {
        if let Some(budget) = self.budget.get() {
            budget.tell(self.memory_told.take(), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_short_from_above_the_budget_until_an_eighth_is_free() {
        let budget = Budget::new(Some(800));
        let mut told = 0;
        let mut hold = |now| {
            budget.tell(told, now);
            told = now;
            (budget.judge(), budget.is_short())
        };
        assert_eq!(hold(800), (false, false));
        assert_eq!(hold(801), (true, true));
        assert_eq!(hold(701), (false, true));
        assert_eq!(hold(700), (true, false));
        assert_eq!(hold(0), (false, false));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn without_a_budget_memory_is_never_short() {
        let budget = Budget::new(None);
        budget.tell(0, usize::MAX - 1);
        assert!(!budget.judge() && !budget.is_short() && !budget.is_over());
    }
}
