//! What a server counts as it goes, on all of its workers; [`Stats`] are made of it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::state::{ServerState, lock};
use super::stats::{DrainReport, Stats};
use crate::conn::Counts;
use crate::error::{CloseReason, Rule};

#[derive(Default)]
pub(super) struct Counters {
    accepted: AtomicU64,
    accept_errors: AtomicU64,
    refused: [AtomicU64; Rule::ALL.len()],
    received: AtomicU64,
    sent: AtomicU64,
    unsent: AtomicU64,
    handshakes: AtomicU64,
    resumed: AtomicU64,
    handshakes_failed: AtomicU64,
    panics: AtomicU64,
    stalls: AtomicU64,
    finished: AtomicU64,
    reset: AtomicU64,
    lost: AtomicU64,
    closes: Mutex<HashMap<CloseReason, u64>>,
}

impl ServerState {
    pub(super) fn count_accepted(&self) {
        add(&self.counters.accepted, 1);
    }

    pub(crate) fn count_refusal(&self, rule: Rule) {
        add(&self.counters.refused[rule.index()], 1);
    }

    pub(crate) fn count_accept_error(&self) {
        add(&self.counters.accept_errors, 1);
    }

    /// A TLS handshake is done.
    pub(crate) fn count_handshake(&self, is_resumed: bool) {
        add(&self.counters.handshakes, 1);
        add(&self.counters.resumed, u64::from(is_resumed));
    }

    pub(crate) fn count_failed_handshake(&self) {
        add(&self.counters.handshakes_failed, 1);
    }

    pub(crate) fn count_panic(&self) {
        add(&self.counters.panics, 1);
    }

    pub(super) fn count_stall(&self) {
        add(&self.counters.stalls, 1);
    }

    /// A connection that was let in has ended.
    pub(super) fn count_close(&self, reason: CloseReason, counts: Counts) {
        let counters = &self.counters;
        add(&counters.received, counts.received);
        add(&counters.sent, counts.sent);
        add(&counters.unsent, counts.unsent);
        if self.drain_begun.load(Ordering::SeqCst) {
            match reason {
                CloseReason::Shutdown => add(&counters.reset, 1),
                _ => add(&counters.finished, 1),
            }
            add(&counters.lost, counts.unsent);
        }
        *lock(&counters.closes).entry(reason).or_default() += 1;
    }

    pub(super) fn stats(&self) -> Stats {
        self.counters.stats()
    }
}

impl Counters {
    fn stats(&self) -> Stats {
        let Counters {
            accepted,
            accept_errors,
            refused,
            received,
            sent,
            unsent,
            handshakes,
            resumed,
            handshakes_failed,
            panics,
            stalls,
            finished,
            reset,
            lost,
            closes,
        } = self;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut closes: Vec<_> = lock(closes).iter().map(|(reason, count)| (*reason, *count)).collect();
        closes.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), reason.to_string()));
        let refused = Rule::ALL.iter().zip(refused).map(|(rule, refused)| (*rule, count(refused)));
        Stats {
            accepted: count(accepted),
            accept_errors: count(accept_errors),
            refused: refused.filter(|(_, count)| *count > 0).collect(),
            received: count(received),
            sent: count(sent),
            unsent: count(unsent),
            handshakes: count(handshakes),
            resumed: count(resumed),
            handshakes_failed: count(handshakes_failed),
            panics: count(panics),
            stalls: count(stalls),
            closes,
            drain: DrainReport { finished: count(finished), reset: count(reset), lost: count(lost) },
        }
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
