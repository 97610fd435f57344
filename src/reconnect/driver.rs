//! The task of a session: connects, sends what is queued, waits, and tells of each step.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use super::policy::{Next, Policy};
use super::queue::Shared;
use super::{Greet, IsFinal, Local, Observe, Retry, SessionState};
use crate::client::Client;
use crate::conn::Hangup;
use crate::connection::{Connection, WriteHalf};
use crate::error::{Cause, CloseReason, Error, Operation, Result};
use crate::runtime::sleep;
use crate::time::Time;

pub(super) struct Driver {
    pub(super) client: Client,
    pub(super) retry: Retry,
    pub(super) greet: Option<Box<dyn Greet>>,
    pub(super) is_final: Box<IsFinal>,
    pub(super) teller: Rc<Teller>,
    pub(super) shared: Arc<Shared>,
    pub(super) local: Rc<Local>,
}

/// How it went with a connection.
enum Outcome {
    /// The session is over, as this side wants it.
    Done,
    Broken {
        error: Error,
        unacked: Option<u64>,
    },
}

impl Driver {
    pub(super) async fn run(self) {
        let mut policy = Policy::new(self.retry.clone(), self.now());
        let mut last: Option<Arc<Error>> = None;
        loop {
            if self.shared.is_done() {
                return self.closed();
            }
            match policy.next(self.now()) {
                Next::Attempt => {}
                Next::Wait(delay, why) => {
                    self.enter(&SessionState::Waiting { failures: policy.failures(), delay, why });
                    self.pause(delay).await;
                    continue;
                }
                Next::GiveUp => return self.failed(last.expect("there was an attempt")),
            }
            let outcome = self.attempt(policy.failures() + 1, &mut policy).await;
            let Outcome::Broken { error, unacked } = outcome else { return self.closed() };
            let is_final = (self.is_final)(&error);
            let error = Arc::new(error);
            self.shared.count(|stats| stats.unacked += unacked.unwrap_or_default());
            self.enter(&SessionState::Disconnected { error: error.clone(), unacked });
            self.local.end();
            if is_final {
                return self.failed(error);
            }
            last = Some(error);
        }
    }

    /// Connects, and stays until the connection ends.
    async fn attempt(&self, attempt: u32, policy: &mut Policy) -> Outcome {
        let connected = self.unless_done(self.connect(attempt)).await;
        let conn = match connected {
            None => return Outcome::Done,
            Some(Ok(conn)) => conn,
            Some(Err(error)) => {
                self.shared.count(|stats| stats.failed += 1);
                policy.failed(self.now(), self.random());
                return Outcome::Broken { error, unacked: Some(0) };
            }
        };
        self.shared.count(|stats| stats.connected += 1);
        let began = self.now();
        let link = conn.link().clone();
        link.await_delivery();
        let (reader, mut writer) = conn.split();
        self.local.begin(reader);
        self.enter(&SessionState::Connected);
        let ended = self.serve(&mut writer).await;
        policy.ended(self.now().since(began), self.now(), self.random());
        match ended {
            Ok(()) => {
                // What is queued has left; the close is orderly.
                drop(writer.finish());
                drop(self.local.half.take());
                Outcome::Done
            }
            Err(error) => {
                let given = link.conn.borrow().given();
                let unacked = link.delivered().ok().map(|delivered| given.saturating_sub(delivered));
                Outcome::Broken { error, unacked }
            }
        }
    }

    async fn connect(&self, attempt: u32) -> Result<Connection> {
        let (teller, greets) = (self.teller.clone(), self.greet.is_some());
        let connect = self.client.open().observe(move |step| {
            // How it ended, and that there is nothing more to do, are told as the session's.
            if step.is_connecting() || (greets && step.is_connected()) {
                teller.enter(&SessionState::Connecting { attempt, step: step.clone() });
            }
        });
        let mut conn = connect.await?;
        if let Some(greet) = &self.greet {
            greet.greet(&mut conn).await?;
            conn.flush().await?;
        }
        Ok(conn)
    }

    /// Sends what is queued until the connection ends, or all is done.
    async fn serve(&self, writer: &mut WriteHalf) -> Result<()> {
        loop {
            self.work(writer).await?;
            if self.shared.is_done() {
                return Ok(());
            }
            let batch = self.shared.take_batch();
            let before = writer.counts().sent;
            let sent = async {
                for message in batch {
                    writer.send_owned(message).await?;
                }
                writer.flush().await
            };
            match self.unless_abandoned(sent).await {
                None => return Ok(()),
                Some(Ok(())) => self.shared.batch_sent(),
                Some(Err(error)) => {
                    // Nothing is certain before its end.
                    writer.closed().await;
                    let handed = writer.counts().sent - before;
                    self.shared.batch_broken(if is_sealed(writer) && handed > 0 {
                        None
                    } else {
                        Some(handed)
                    });
                    return Err(error);
                }
            }
        }
    }

    /// Waits until there is something to send or nothing more will be; an error if the connection ends before.
    async fn work(&self, writer: &WriteHalf) -> Result<()> {
        let mut hangup = pin!(writer.hangup());
        let end = poll_fn(|cx| {
            self.shared.set_driver(cx.waker());
            // Whoever has hung up will hardly read.
            if let Poll::Ready(hangup) = hangup.as_mut().poll(cx) {
                return Poll::Ready(Some(hangup));
            }
            if self.shared.has_queued() || self.shared.is_done() {
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await;
        let reason = match end {
            None => return Ok(()),
            Some(Hangup::Ended) => CloseReason::Peer,
            Some(Hangup::Closed(reason)) => {
                writer.closed().await;
                reason
            }
        };
        Err(Error::new(Operation::Receive, Cause::Closed(reason)).at(writer.peer_addr()))
    }

    /// Waits, but not for what nobody wants any more.
    async fn pause(&self, delay: Duration) {
        self.unless_done(sleep(delay)).await;
    }

    /// The output of `future`; `None` if the session is closed before, and has nothing left to send.
    async fn unless_done<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.unless(future, Shared::is_done).await
    }

    async fn unless_abandoned<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.unless(future, Shared::is_abandoned).await
    }

    async fn unless<T>(&self, future: impl Future<Output = T>, is_over: fn(&Shared) -> bool) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            self.shared.set_driver(cx.waker());
            if is_over(&self.shared) {
                return Poll::Ready(None);
            }
            Pin::new(&mut future).poll(cx).map(Some)
        })
        .await
    }

    fn closed(&self) {
        let cause = Cause::Misuse("it was closed by this side");
        self.shared.end(Arc::new(Error::new(Operation::Finish, cause)));
        self.enter(&SessionState::Closed);
        self.local.end();
    }

    fn failed(&self, error: Arc<Error>) {
        self.shared.end(error.clone());
        self.enter(&SessionState::Failed(error));
        self.local.end();
    }

    fn enter(&self, state: &SessionState) {
        self.teller.enter(state);
    }

    fn now(&self) -> Time {
        self.local.worker.clock()
    }

    fn random(&self) -> u64 {
        self.local.worker.random()
    }
}

impl Drop for Driver {
    /// Nobody waits for a session that nothing drives any more.
    fn drop(&mut self) {
        if self.shared.ended().is_some() {
            return;
        }
        let why = match thread::panicking() {
            true => "something that it called has panicked",
            false => "its worker has ended",
        };
        let error = Arc::new(Error::new(Operation::Handle, Cause::Misuse(why)));
        self.shared.end(error.clone());
        // Not by the observer: it may be what has panicked.
        self.shared.enter(&match self.shared.is_done() {
            true => SessionState::Closed,
            false => SessionState::Failed(error),
        });
        self.local.end();
    }
}

/// Tells how it stands with a session, all who look on.
pub(super) struct Teller {
    shared: Arc<Shared>,
    observe: RefCell<Option<Box<Observe>>>,
}

impl Teller {
    pub(super) fn new(shared: Arc<Shared>, observe: Option<Box<Observe>>) -> Teller {
        Teller { shared, observe: RefCell::new(observe) }
    }

    fn enter(&self, state: &SessionState) {
        self.shared.enter(state);
        // The observer has no way back to here: what it does to the session only wakes the driver.
        if let Some(observe) = &mut *self.observe.borrow_mut() {
            observe(state);
        }
    }
}

/// Whether what is counted as sent are TLS records, and not messages.
#[cfg(feature = "tls")]
fn is_sealed(writer: &WriteHalf) -> bool {
    writer.tls().is_some()
}

#[cfg(not(feature = "tls"))]
fn is_sealed(_: &WriteHalf) -> bool {
    false
}
