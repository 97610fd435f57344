//! How it stands with a session: [`SessionState`], [`SessionStats`], and a stream of changes.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use super::policy::Wait;
use crate::client::ConnectState;
use crate::error::Error;

/// How it stands with a [`Session`](crate::reconnect::Session).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionState {
    /// Connecting; told again with each step of it.
    Connecting {
        /// Which attempt this is since the last connection that stood; the first is 1.
        attempt: u32,
        /// How far it has come, as [`Connect::observe`](crate::Connect::observe) tells it: `Idle` before the first attempt, and `Connected`
        /// when the [greeting](crate::reconnect::Reconnect::greet) is under way.
        step: ConnectState,
    },
    /// There is a connection, and what is queued is sent on it.
    Connected,
    /// An attempt failed, or the connection ended.
    Disconnected {
        /// Why.
        error: Arc<Error>,
        /// Bytes that were handed to the kernel on that connection and that the peer's system had not acknowledged: they may be lost,
        /// and are not sent again. With TLS they are counted as records. `None` if the operating system does not tell.
        unacked: Option<u64>,
    },
    /// It will try again.
    Waiting {
        /// Failures in a row; 0 after a connection that stood.
        failures: u32,
        /// When, from now.
        delay: Duration,
        /// What it waits for.
        why: Wait,
    },
    /// It has ended for good, with this error: it cannot be mended by trying again, or there were as many attempts as there may be.
    Failed(Arc<Error>),
    /// It was closed by this side.
    Closed,
}

impl SessionState {
    /// Whether nothing more will come.
    pub fn is_final(&self) -> bool {
        matches!(self, SessionState::Failed(_) | SessionState::Closed)
    }
}

impl fmt::Display for SessionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionState::Connecting { attempt, step: ConnectState::Connected(address) } => {
                write!(f, "greeting {address}, attempt {attempt}")
            }
            SessionState::Connecting { attempt, step } => write!(f, "{step}, attempt {attempt}"),
            SessionState::Connected => f.write_str("connected"),
            SessionState::Disconnected { error, .. } => write!(f, "disconnected: {error}"),
            SessionState::Waiting { failures: 0, delay, why: Wait::Backoff } => {
                write!(f, "trying again in {delay:?}")
            }
            SessionState::Waiting { failures, delay, why: Wait::Backoff } => {
                write!(f, "trying again in {delay:?} after {failures} failures")
            }
            SessionState::Waiting { delay, why: Wait::Budget, .. } => {
                write!(f, "trying again in {delay:?}: the retry budget is used up")
            }
            SessionState::Failed(error) => write!(f, "given up: {error}"),
            SessionState::Closed => f.write_str("closed"),
        }
    }
}

/// What a session has done so far.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionStats {
    /// Connections that stood.
    pub connected: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Messages handed to the kernel whole.
    pub sent: u64,
    /// Messages that may have been handed to the kernel in part on a connection that broke. They are not sent again.
    pub torn: u64,
    /// Messages that a connection had taken and not handed to the kernel when it broke: they are sent on the next one.
    pub requeued: u64,
    /// Bytes handed to the kernel and not acknowledged, on connections that broke; see [`SessionState::Disconnected`].
    pub unacked: u64,
    /// Messages that were queued when the session ended, and were never sent.
    pub unsent: u64,
    /// Bytes that are queued and not handed to the kernel, at this moment.
    pub queued: usize,
}

/// So many changes are kept for who does not look.
const KEPT_MAX: usize = 64;

/// The changes of a session's state, one by one and in order; made by [`Session::changes`](crate::reconnect::Session::changes). Any thread can
/// await it.
pub struct Changes {
    ring: Arc<Mutex<Ring>>,
}

#[derive(Default)]
pub(super) struct Ring {
    states: VecDeque<SessionState>,
    missed: u64,
    is_over: bool,
    waker: Option<Waker>,
}

impl Changes {
    pub(super) fn new() -> (Changes, Arc<Mutex<Ring>>) {
        let ring = Arc::<Mutex<Ring>>::default();
        (Changes { ring: ring.clone() }, ring)
    }

    /// The next change; `None` after the last one. 64 are kept, older ones make room: [`Changes::missed`] tells how many.
    ///
    /// # Cancellation
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<SessionState> {
        poll_fn(|cx| {
            let mut ring = lock(&self.ring);
            match ring.states.pop_front() {
                Some(state) => Poll::Ready(Some(state)),
                None if ring.is_over => Poll::Ready(None),
                None => {
                    ring.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// How many changes were too old to be kept.
    pub fn missed(&self) -> u64 {
        lock(&self.ring).missed
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("missed", &self.missed()).finish_non_exhaustive()
    }
}

impl Ring {
    /// There is nothing to tell any more.
    pub(super) fn end(ring: &Mutex<Ring>) {
        lock(ring).is_over = true;
    }

    /// Tells whoever looks.
    pub(super) fn push(ring: &Mutex<Ring>, state: &SessionState) {
        let mut ring = lock(ring);
        if ring.states.len() == KEPT_MAX {
            ring.states.pop_front();
            ring.missed += 1;
        }
        ring.states.push_back(state.clone());
        ring.is_over |= state.is_final();
        let waker = ring.waker.take();
        drop(ring);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// Nothing panics under these locks.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
