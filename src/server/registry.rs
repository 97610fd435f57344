//! Who is connected at this moment, and how to send somebody away: [`ConnectionInfo`], [`Listing`], [`Whom`].
//!
//! Nothing of it costs a connection anything while nobody asks: a listing asks each worker, which looks at its own.

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::state::lock;
use crate::address::Address;
use crate::conn::{ConnectionState, Counts};
use crate::error::{Cause, Error, Operation, Result};
use crate::network::Network;
use crate::worker::link::ConnectionId;

/// One of a server's connections as it was a moment ago.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Names the connection for as long as it lives.
    pub id: ConnectionId,
    /// The other end; behind a proxy that tells, whom the proxy speaks for.
    pub peer: Address,
    /// Which of the server's listeners it came through, in their order; `None` if it was adopted.
    pub listener: Option<usize>,
    /// The time since it was let in.
    pub age: Duration,
    /// What it is doing.
    pub state: ConnectionState,
    /// What went through it so far.
    pub counts: Counts,
    /// Bytes that wait to be sent.
    pub queued: usize,
    /// Bytes that were received and that its handler has not taken.
    pub unread: usize,
    /// What its handler calls it, see [`Connection::set_label`](crate::Connection::set_label).
    pub label: Option<Arc<str>>,
}

/// Which connections are meant.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Whom {
    /// This one.
    One(ConnectionId),
    /// All from this address, on whichever port.
    Address(IpAddr),
    /// All from this network.
    Network(Network),
    /// All of the server's.
    All,
}

impl From<ConnectionId> for Whom {
    fn from(id: ConnectionId) -> Whom {
        Whom::One(id)
    }
}

impl From<IpAddr> for Whom {
    fn from(ip: IpAddr) -> Whom {
        Whom::Address(ip)
    }
}

impl From<Network> for Whom {
    fn from(network: Network) -> Whom {
        Whom::Network(network)
    }
}

impl Whom {
    pub(crate) fn is(&self, id: ConnectionId, peer: &Address) -> bool {
        match self {
            Whom::One(one) => *one == id,
            Whom::Address(ip) => peer.ip().is_some_and(|peer| peer.to_canonical() == ip.to_canonical()),
            Whom::Network(network) => peer.ip().is_some_and(|peer| network.contains(peer)),
            Whom::All => true,
        }
    }
}

/// The connections of a server, once every worker has told its own: a future, and [`Listing::wait`] for other threads.
///
/// Workers answer between two turns, so one that is blocked by a handler delays the answer.
#[must_use = "it is a future, and has `wait`"]
pub struct Listing {
    gathering: Arc<Gathering>,
    /// It has a driver, who may be the one that waits.
    simulated: bool,
}

struct Gathering {
    state: Mutex<Gathered>,
    complete: Condvar,
}

#[derive(Default)]
struct Gathered {
    infos: Vec<ConnectionInfo>,
    /// Workers that have not answered.
    missing: usize,
    waker: Option<Waker>,
}

/// One worker's part of a listing. Dropped without an answer, it counts as one: that worker is gone.
pub(crate) struct Reply(Arc<Gathering>);

impl Listing {
    pub(super) fn new(simulated: bool) -> Listing {
        let gathering = Gathering { state: Mutex::default(), complete: Condvar::new() };
        Listing { gathering: Arc::new(gathering), simulated }
    }

    /// Place for the answer of one more worker.
    pub(super) fn reply(&self) -> Reply {
        lock(&self.gathering.state).missing += 1;
        Reply(self.gathering.clone())
    }

    /// Waits for the answers, on a thread that is no worker's.
    ///
    /// # Errors
    /// On one of Wharf's own workers, which it would block: await it there. And in a [`Simulation`](crate::sim::Simulation)
    /// that has not run since.
    pub fn wait(self) -> Result<Vec<ConnectionInfo>> {
        if crate::worker::with_current(|_| ()).is_some() {
            return Err(Error::new(Operation::Wait, Cause::Misuse("a worker awaits a listing instead")));
        }
        let mut state = lock(&self.gathering.state);
        if self.simulated && state.missing > 0 {
            let undone = "the simulation has to run until its servers have answered";
            return Err(Error::new(Operation::Wait, Cause::Misuse(undone)));
        }
        while state.missing > 0 {
            state = self.gathering.complete.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(state.take())
    }
}

impl Gathered {
    /// The oldest first.
    fn take(&mut self) -> Vec<ConnectionInfo> {
        let mut infos = std::mem::take(&mut self.infos);
        infos.sort_by_key(|info| (std::cmp::Reverse(info.age), info.id));
        infos
    }
}

impl Future for Listing {
    type Output = Vec<ConnectionInfo>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Vec<ConnectionInfo>> {
        let mut state = lock(&self.gathering.state);
        if state.missing > 0 {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(state.take())
    }
}

impl fmt::Debug for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listing")
    }
}

impl Reply {
    pub(crate) fn add(&self, infos: Vec<ConnectionInfo>) {
        lock(&self.0.state).infos.extend(infos);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.missing -= 1;
        if state.missing == 0 {
            let waker = state.waker.take();
            drop(state);
            self.0.complete.notify_all();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}
