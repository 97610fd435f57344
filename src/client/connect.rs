//! A connect as it is awaited, or waited for: [`Connect`] and [`Connecting`], the deadline of the whole, and who looks on.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use super::state::ConnectState;
use super::way::Candidate;
use super::{Client, open, open_blocking};
use crate::address::Address;
use crate::blocking;
use crate::connection::Connection;
use crate::error::{Attempt, Cause, Error, Operation, Result};
use crate::runtime;

/// The future of [`Client::connect`] and [`Client::open`]; or [`Connect::blocking`], for who has no use for futures.
#[must_use = "futures do nothing unless awaited"]
pub struct Connect {
    client: Client,
    observer: Option<Observer>,
}

type Observer = Box<dyn FnMut(&ConnectState)>;

impl Connect {
    pub(super) fn new(client: Client) -> Connect {
        Connect { client, observer: None }
    }

    /// Replaces the deadline of the connect as a whole.
    pub fn within(mut self, after: Duration) -> Connect {
        self.client.within = after;
        self
    }

    /// Has `observer` called at each step of the connect, on its thread and before the connect goes on: it should not take long. The
    /// last thing that it is told is `Connected` or `Disconnected`; of a connect that is dropped it is told nothing more. Default: nobody.
    ///
    /// ```
    /// let outcome = wharf::run(async {
    ///     wharf::Client::connect("127.0.0.1:1").observe(|state| println!("{state}")).await
    /// })?;
    /// // connecting to 127.0.0.1:1
    /// // disconnected: connect to 127.0.0.1:1: connection refused
    /// assert!(outcome.is_err());
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn observe(mut self, observer: impl FnMut(&ConnectState) + 'static) -> Connect {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Connects in the [blocking style](crate::blocking): waits here and now, on the caller's thread, with the same options, steps and
    /// deadline.
    ///
    /// ```
    /// # let server = wharf::Server::bind("127.0.0.1:0").start(|_: wharf::Connection| async { Ok(()) })?;
    /// # let address = server.local_addr();
    /// let conn = wharf::Client::connect(address).observe(|state| println!("{state}")).blocking()?;
    /// // connecting to 127.0.0.1:7788
    /// // connected to 127.0.0.1:7788
    /// # drop(conn);
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Client::open`].
    pub fn blocking(self) -> Result<blocking::Connection> {
        let Connect { client, observer } = self;
        let progress = Progress::new(observer);
        let connected = open_blocking::open(&client, &progress);
        progress.over(connected.as_ref().map(blocking::Connection::peer_addr));
        connected
    }
}

impl IntoFuture for Connect {
    type Output = Result<Connection>;
    type IntoFuture = Connecting;

    fn into_future(self) -> Connecting {
        let Connect { client, observer } = self;
        Connecting { future: Box::pin(connect(client, Progress::new(observer))) }
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").field("address", &self.client.address).finish_non_exhaustive()
    }
}

/// A connect under way.
#[must_use = "futures do nothing unless awaited"]
pub struct Connecting {
    future: Pin<Box<dyn Future<Output = Result<Connection>>>>,
}

impl Future for Connecting {
    type Output = Result<Connection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Connection>> {
        self.future.as_mut().poll(cx)
    }
}

impl fmt::Debug for Connecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connecting")
    }
}

async fn connect(client: Client, progress: Progress) -> Result<Connection> {
    let connected = match runtime::within(client.within, open::open(&client, &progress)).await {
        Ok(connected) => connected,
        Err(_) => Err(progress.late(&client)),
    };
    progress.over(connected.as_ref().map(Connection::peer_addr));
    connected
}

/// How far a connect has come: for those who look on, and for the error if it does not get any further.
pub(super) struct Progress {
    state: RefCell<ConnectState>,
    attempts: RefCell<Vec<Attempt>>,
    observer: RefCell<Option<Observer>>,
}

impl Progress {
    fn new(observer: Option<Observer>) -> Progress {
        Progress {
            state: RefCell::new(ConnectState::Idle),
            attempts: RefCell::default(),
            observer: RefCell::new(observer),
        }
    }

    pub(super) fn tell(&self, state: ConnectState) {
        if let Some(observer) = &mut *self.observer.borrow_mut() {
            observer(&state);
        }
        *self.state.borrow_mut() = state;
    }

    /// The attempt at an address has begun, for the first time or again.
    pub(super) fn begun(&self, address: &Address) {
        let mut attempts = self.attempts.borrow_mut();
        if !attempts.iter().any(|attempt| attempt.address == *address) {
            attempts.push(Attempt { address: address.clone(), failure: None });
        }
        drop(attempts);
        self.tell(ConnectState::Connecting(address.clone()));
    }

    pub(super) fn failed(&self, address: &Address, cause: Cause) {
        let mut attempts = self.attempts.borrow_mut();
        if let Some(attempt) = attempts.iter_mut().find(|attempt| attempt.address == *address) {
            attempt.failure = Some(cause);
        }
    }

    /// A candidate has connected, and then it failed: if the proxy there was asked for an address, that is where.
    pub(super) fn failed_behind(&self, candidate: &Candidate, cause: Cause) {
        if let Some(asked) = candidate.asked.map(Address::Ip) {
            let mut attempts = self.attempts.borrow_mut();
            attempts.retain(|attempt| attempt.address != candidate.peer && attempt.address != asked);
            attempts.push(Attempt { address: asked, failure: Some(cause) });
        } else {
            self.failed(&candidate.peer, cause);
        }
    }

    /// The connect has come to this.
    fn over(&self, connected: Result<Address, &Error>) {
        self.tell(match connected {
            Ok(peer) => ConnectState::Connected(peer),
            Err(error) => ConnectState::Disconnected(error.clone()),
        });
    }

    /// Why there is no connection, now that every address was tried.
    pub(super) fn unreached(&self, client: &Client) -> Error {
        let target = self.target(client);
        let mut attempts = self.attempts.take();
        let cause = match attempts.pop() {
            Some(Attempt { failure: Some(failure), .. }) if attempts.is_empty() => failure,
            Some(last) => {
                attempts.push(last);
                Cause::Unreached { attempts }
            }
            None => Cause::Misuse("the name has no addresses"),
        };
        Error::new(Operation::Connect, cause).at(target)
    }

    /// Why there is no connection, now that the time is over.
    pub(super) fn late(&self, client: &Client) -> Error {
        let (after, target) = (client.within, self.target(client));
        let mut attempts = self.attempts.take();
        if attempts.len() == 1 {
            attempts.clear();
        }
        let doing = match &*self.state.borrow() {
            // That is what every connect does, and the address is told anyway.
            ConnectState::Connecting(_) => None,
            state => Some(state.to_string()),
        };
        let cause = match (doing, &*attempts) {
            (None, []) => Cause::TimedOut { after },
            (doing, _) => Cause::Late { after, doing, attempts },
        };
        Error::new(Operation::Connect, cause).at(target)
    }

    /// Whom an error is about: as the user wrote it, and which address that was if there is only one.
    pub(super) fn target(&self, client: &Client) -> String {
        let mut target = client.address.clone();
        if let Some(proxy) = &client.proxy {
            target = format!("{target} through {proxy}");
        }
        if let [Attempt { address, .. }] = &**self.attempts.borrow() {
            let address = address.to_string();
            if !target.ends_with(&address) {
                target = format!("{target} ({address})");
            }
        }
        target
    }
}
