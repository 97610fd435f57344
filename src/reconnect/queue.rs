//! What is to be sent on a session, whoever sends it and whether or not there is a connection: [`SessionSender`].
//!
//! Messages are taken whole and in order, within a bound in bytes. Who finds no room waits in turn, or is refused.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::state::{Ring, SessionState, SessionStats, lock};
use crate::client::ConnectState;
use crate::error::{Cause, Error, Operation, Result};

/// Messages for one connection at a time, as many bytes as it is given at once.
const BATCH_BYTES: usize = 64 * 1024;

/// What a session's driver and all who send have in common.
pub(super) struct Shared {
    pub(super) target: String,
    bound: usize,
    waits: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    queue: VecDeque<Bytes>,
    /// What a connection has been given and not yet handed to the kernel.
    in_hand: VecDeque<Bytes>,
    /// Both of them.
    bytes: usize,
    /// Who waits for room, in turn.
    waiting: BTreeMap<u64, Waker>,
    next_turn: u64,
    driver: Option<Waker>,
    state: SessionState,
    watchers: Vec<Weak<Mutex<Ring>>>,
    stats: SessionStats,
    /// Nothing more is taken; what is queued is still sent.
    is_closing: bool,
    /// There is nobody any more who could want anything.
    is_abandoned: bool,
    /// Why it ended.
    ended: Option<Arc<Error>>,
}

impl Shared {
    pub(super) fn new(target: String, bound: usize, waits: bool) -> Shared {
        let inner = Inner {
            queue: VecDeque::new(),
            in_hand: VecDeque::new(),
            bytes: 0,
            waiting: BTreeMap::new(),
            next_turn: 0,
            driver: None,
            state: SessionState::Connecting { attempt: 1, step: ConnectState::Idle },
            watchers: Vec::new(),
            stats: SessionStats::default(),
            is_closing: false,
            is_abandoned: false,
            ended: None,
        };
        Shared { target, bound, waits, inner: Mutex::new(inner) }
    }

    /// Takes a message if there is room for it and it is the turn of `turn`; `None` if it has to wait.
    fn offer(&self, bytes: &mut Bytes, turn: Option<u64>) -> Option<Result<()>> {
        let mut inner = lock(&self.inner);
        let failed = |cause| Some(Err(Error::new(Operation::Send, cause).at(&self.target)));
        if let Some(error) = &inner.ended {
            return failed(Cause::Session(error.clone()));
        }
        if inner.is_closing || inner.is_abandoned {
            return failed(Cause::Misuse("the session is closed"));
        }
        let len = bytes.len();
        if len > self.bound {
            return failed(Cause::TooLarge { bytes: len, bound: self.bound, option: "queue_max" });
        }
        let first = inner.waiting.first_key_value().map(|(first, _)| *first);
        let has_turn = first.is_none_or(|first| turn == Some(first));
        if !has_turn || inner.bytes + len > self.bound {
            return None;
        }
        inner.bytes += len;
        if len > 0 {
            inner.queue.push_back(std::mem::take(bytes));
        }
        let driver = inner.driver.take();
        drop(inner);
        driver.into_iter().for_each(Waker::wake);
        Some(Ok(()))
    }

    fn full(&self) -> Error {
        let queued = lock(&self.inner).bytes;
        Error::new(Operation::Send, Cause::Full { queued, option: "queue_max" }).at(&self.target)
    }

    fn wait(&self, turn: Option<u64>, waker: Waker) -> u64 {
        let mut inner = lock(&self.inner);
        let turn = turn.unwrap_or_else(|| {
            inner.next_turn += 1;
            inner.next_turn
        });
        inner.waiting.insert(turn, waker);
        turn
    }

    fn leave(&self, turn: u64) {
        let mut inner = lock(&self.inner);
        inner.waiting.remove(&turn);
        wake_first(inner);
    }

    /// From now on the driver's task is woken by this.
    pub(super) fn set_driver(&self, waker: &Waker) {
        lock(&self.inner).driver = Some(waker.clone());
    }

    fn wake_driver(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = lock(&self.inner);
        change(&mut inner);
        let driver = inner.driver.take();
        drop(inner);
        driver.into_iter().for_each(Waker::wake);
    }

    pub(super) fn close(&self) {
        self.wake_driver(|inner| inner.is_closing = true);
        self.wake_waiting();
    }

    pub(super) fn abandon(&self) {
        self.wake_driver(|inner| inner.is_abandoned = true);
        self.wake_waiting();
    }

    fn wake_waiting(&self) {
        let waiting: Vec<Waker> = lock(&self.inner).waiting.values().cloned().collect();
        waiting.into_iter().for_each(Waker::wake);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        lock(&self.inner).is_abandoned
    }

    /// Whether all was sent that will be.
    pub(super) fn is_done(&self) -> bool {
        let inner = lock(&self.inner);
        inner.is_abandoned || (inner.is_closing && inner.bytes == 0)
    }

    pub(super) fn has_queued(&self) -> bool {
        !lock(&self.inner).queue.is_empty()
    }

    pub(super) fn state(&self) -> SessionState {
        lock(&self.inner).state.clone()
    }

    pub(super) fn stats(&self) -> SessionStats {
        let inner = lock(&self.inner);
        SessionStats { queued: inner.bytes, ..inner.stats }
    }

    pub(super) fn ended(&self) -> Option<Arc<Error>> {
        lock(&self.inner).ended.clone()
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut SessionStats)) {
        count(&mut lock(&self.inner).stats);
    }

    pub(super) fn watch(&self, ring: &Arc<Mutex<Ring>>) {
        let mut inner = lock(&self.inner);
        if inner.state.is_final() {
            return Ring::end(ring);
        }
        inner.watchers.retain(|ring| ring.strong_count() > 0);
        inner.watchers.push(Arc::downgrade(ring));
    }

    /// The state has changed.
    pub(super) fn enter(&self, state: &SessionState) {
        let mut inner = lock(&self.inner);
        inner.state = state.clone();
        let watchers: Vec<_> = inner.watchers.iter().filter_map(Weak::upgrade).collect();
        drop(inner);
        watchers.iter().for_each(|ring| Ring::push(ring, state));
    }

    /// Nothing more is sent or taken. What is queued is counted as unsent.
    pub(super) fn end(&self, error: Arc<Error>) {
        let mut inner = lock(&self.inner);
        inner.ended = Some(error);
        inner.stats.unsent += (inner.queue.len() + inner.in_hand.len()) as u64;
        inner.queue.clear();
        inner.in_hand.clear();
        inner.bytes = 0;
        drop(inner);
        self.wake_waiting();
    }

    /// The next messages for a connection. They stay here until it is known what became of them.
    pub(super) fn take_batch(&self) -> Vec<Bytes> {
        let mut inner = lock(&self.inner);
        debug_assert!(inner.in_hand.is_empty(), "one batch at a time");
        let mut taken = 0;
        while let Some(message) = inner.queue.pop_front() {
            taken += message.len();
            inner.in_hand.push_back(message);
            if taken >= BATCH_BYTES {
                break;
            }
        }
        inner.in_hand.iter().cloned().collect()
    }

    /// The connection has handed the batch to the kernel.
    pub(super) fn batch_sent(&self) {
        let mut inner = lock(&self.inner);
        let sent = std::mem::take(&mut inner.in_hand);
        inner.stats.sent += sent.len() as u64;
        inner.bytes -= sent.iter().map(Bytes::len).sum::<usize>();
        wake_first(inner);
    }

    /// The connection broke when it had handed so many bytes of the batch to the kernel; `None` if that cannot be told, and some.
    pub(super) fn batch_broken(&self, handed: Option<u64>) {
        let mut inner = lock(&self.inner);
        let (mut end, mut again) = (0, VecDeque::new());
        for message in std::mem::take(&mut inner.in_hand) {
            let begin = end;
            end += message.len() as u64;
            if handed.is_some_and(|handed| handed <= begin) {
                inner.stats.requeued += 1;
                again.push_back(message);
                continue;
            }
            inner.bytes -= message.len();
            match handed {
                Some(handed) if handed >= end => inner.stats.sent += 1,
                _ => inner.stats.torn += 1,
            }
        }
        // They come before what was queued behind them.
        again.append(&mut inner.queue);
        inner.queue = again;
        wake_first(inner);
    }
}

/// There may be room for the first who waits.
fn wake_first(inner: std::sync::MutexGuard<'_, Inner>) {
    let first = inner.waiting.first_key_value().map(|(_, waker)| waker.clone());
    drop(inner);
    first.into_iter().for_each(Waker::wake);
}

/// Sends on a [`Session`](crate::reconnect::Session) from any thread. Cheap to clone; does not keep the session up.
#[derive(Clone)]
pub struct SessionSender {
    shared: Arc<Shared>,
}

impl SessionSender {
    pub(super) fn new(shared: Arc<Shared>) -> SessionSender {
        SessionSender { shared }
    }

    /// Queues `bytes` as one message, also while there is no connection. See [`Session::send`](crate::reconnect::Session::send).
    ///
    /// # Errors
    /// As [`Session::send`](crate::reconnect::Session::send).
    ///
    /// # Cancellation
    /// Cancel safe: the message is queued whole, when the future completes, or not at all.
    pub fn send(&self, bytes: impl Into<Bytes>) -> Sending {
        Sending { shared: self.shared.clone(), bytes: bytes.into(), turn: None }
    }

    /// Queues `bytes` as one message if there is room. Never waits.
    ///
    /// # Errors
    /// If there is none ([`ErrorKind::Limit`](crate::ErrorKind::Limit)), or the session is closed or has ended.
    pub fn try_send(&self, bytes: impl Into<Bytes>) -> Result<()> {
        self.shared.offer(&mut bytes.into(), None).unwrap_or_else(|| Err(self.shared.full()))
    }

    /// How it stands with the session.
    pub fn state(&self) -> SessionState {
        self.shared.state()
    }

    /// What the session has done so far.
    pub fn stats(&self) -> SessionStats {
        self.shared.stats()
    }
}

impl fmt::Debug for SessionSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionSender").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// The future of [`Session::send`](crate::reconnect::Session::send) and [`SessionSender::send`].
#[must_use = "futures do nothing unless awaited"]
pub struct Sending {
    shared: Arc<Shared>,
    bytes: Bytes,
    /// Its place among those who wait.
    turn: Option<u64>,
}

impl Future for Sending {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = &mut *self;
        // The place is taken before the look, so that room that comes in between is not missed.
        if this.turn.is_some() {
            this.turn = Some(this.shared.wait(this.turn, cx.waker().clone()));
        }
        loop {
            match this.shared.offer(&mut this.bytes, this.turn) {
                Some(outcome) => return Poll::Ready(outcome),
                None if !this.shared.waits => return Poll::Ready(Err(this.shared.full())),
                None if this.turn.is_some() => return Poll::Pending,
                None => this.turn = Some(this.shared.wait(None, cx.waker().clone())),
            }
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(turn) = self.turn {
            self.shared.leave(turn);
        }
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(messages: &[&'static str]) -> Shared {
        let shared = Shared::new(String::from("there"), 100, false);
        for message in messages {
            shared.offer(&mut Bytes::from(*message), None).expect("there is room").expect("it is taken");
        }
        shared
    }

    #[test]
    fn of_a_broken_batch_what_was_not_handed_over_comes_first_on_the_next_connection() {
        let shared = queue(&["one", "two", "three"]);
        assert_eq!(shared.take_batch().len(), 3);
        shared.offer(&mut Bytes::from("four"), None).expect("there is room").expect("it is taken");
        shared.batch_broken(Some(4));
        assert_eq!(shared.take_batch(), ["three", "four"]);
        let stats = shared.stats();
        assert_eq!((stats.sent, stats.torn, stats.requeued, stats.queued), (1, 1, 1, 9));
    }

    #[test]
    fn nothing_is_sent_twice_if_nobody_knows_what_was_handed_over() {
        let shared = queue(&["one", "two"]);
        shared.take_batch();
        shared.batch_broken(None);
        assert!(shared.take_batch().is_empty());
        assert_eq!(shared.stats().torn, 2);
    }

    #[test]
    fn everything_is_sent_again_if_nothing_was_handed_over() {
        let shared = queue(&["one", "two"]);
        shared.take_batch();
        shared.batch_broken(Some(0));
        assert_eq!(shared.take_batch(), ["one", "two"]);
    }

    #[test]
    fn a_message_that_finds_no_room_is_refused_whole() {
        let shared = queue(&[]);
        assert!(shared.offer(&mut Bytes::from(vec![0; 60]), None).is_some());
        assert!(shared.offer(&mut Bytes::from(vec![0; 60]), None).is_none());
        let too_large = shared.offer(&mut Bytes::from(vec![0; 101]), None).expect("it never has room");
        assert!(too_large.expect_err("it is too large").to_string().contains("queue_max"));
    }
}
