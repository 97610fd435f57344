//! The way from an address to a connection: look-up, race of the addresses, proxy, TLS. The deadline is the caller's.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Client;
use super::connect::Progress;
use super::race::{Race, Step};
use super::state::ConnectState;
use super::way::{Candidate, FULL_RETRY, Way, at_once, refusal};
use crate::address::Address;
use crate::config::SocketOptions;
use crate::conn::{Conn, Profile};
use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::error::{Cause, CloseReason, Result};
use crate::runtime::{self, Sleep};
use crate::time::Time;
#[cfg(feature = "tls")]
use crate::tls::Session;
use crate::worker::Worker;
use crate::worker::link::Link;

/// Connects as `client` says. Dropped before it is done, it takes every socket with it.
pub(super) async fn open(client: &Client, progress: &Progress) -> Result<Connection> {
    let way = Way::of(client)?;
    let worker = runtime::current("a connect");
    let began = worker.clock();
    let simulated = |name: &str| worker.engine.borrow().resolve(name);
    let candidates = way.candidates(client, progress, simulated).await?;
    let mut runner = Runner {
        race: Race::new(candidates.len(), client.attempt_delay),
        profile: worker.profile(&client.limits, &client.deadlines),
        candidates,
        sockets: way.sockets.clone(),
        worker,
        began,
        progress,
        running: Vec::new(),
        alarm: None,
    };
    while let Some((index, conn)) = poll_fn(|cx| runner.poll(cx)).await {
        let share = runner.race.share(client.within.saturating_sub(runner.elapsed()));
        let is_last = runner.race.left() <= 1;
        let candidate = runner.candidates[index].clone();
        let dressed = dress(client, &way, &candidate, conn, progress);
        let cause = match if is_last { Ok(dressed.await) } else { runtime::within(share, dressed).await } {
            Ok(Ok(conn)) => return Ok(conn),
            Ok(Err(cause)) => cause,
            Err(_) => Cause::TimedOut { after: share },
        };
        runner.race.failed(index);
        progress.failed_behind(&candidate, cause);
    }
    Err(progress.unreached(client))
}

/// Drives the race: has attempts begin, and waits for the first of them that ends.
struct Runner<'a> {
    race: Race,
    candidates: Vec<Candidate>,
    profile: Rc<Profile>,
    sockets: SocketOptions,
    worker: Rc<Worker>,
    began: Time,
    progress: &'a Progress,
    running: Vec<(usize, Attempting)>,
    alarm: Option<(Duration, Sleep)>,
}

type Attempting = Pin<Box<dyn Future<Output = Result<Connection, Cause>>>>;

impl Runner<'_> {
    /// The next address that connects; `None` if no address is left.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, Connection)>> {
        loop {
            if let Some((index, result)) = self.poll_running(cx) {
                match result {
                    Ok(conn) => {
                        // Dropping an attempt closes its socket.
                        self.running.clear();
                        self.race.connected(index);
                        return Poll::Ready(Some((index, conn)));
                    }
                    Err(cause) => self.failed(index, cause),
                }
                continue;
            }
            let now = self.elapsed();
            match self.race.step(now) {
                Step::Begin(index) => self.begin(index),
                Step::Over => return Poll::Ready(None),
                Step::Wait { until: None } => return Poll::Pending,
                Step::Wait { until: Some(until) } => {
                    if self.poll_alarm(until, now, cx).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// The first attempt that is over.
    fn poll_running(&mut self, cx: &mut Context<'_>) -> Option<(usize, Result<Connection, Cause>)> {
        for place in 0..self.running.len() {
            let (index, attempt) = &mut self.running[place];
            let index = *index;
            if let Poll::Ready(result) = attempt.as_mut().poll(cx) {
                drop(self.running.remove(place));
                return Some((index, result));
            }
        }
        None
    }

    fn begin(&mut self, index: usize) {
        let peer = self.candidates[index].peer.clone();
        self.progress.begun(&peer);
        let (worker, profile, sockets) = (self.worker.clone(), self.profile.clone(), self.sockets.clone());
        let attempt = Box::pin(async move { attempt(&worker, &peer, &profile, &sockets).await });
        self.running.push((index, attempt));
    }

    fn failed(&mut self, index: usize, cause: Cause) {
        self.race.failed(index);
        self.progress.failed(&self.candidates[index].peer, cause);
    }

    fn poll_alarm(&mut self, until: Duration, now: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if self.alarm.as_ref().is_none_or(|(at, _)| *at != until) {
            self.alarm = Some((until, runtime::sleep(until.saturating_sub(now))));
        }
        let Some((_, sleep)) = &mut self.alarm else { return Poll::Pending };
        let polled = Pin::new(sleep).poll(cx);
        if polled.is_ready() {
            self.alarm = None;
        }
        polled
    }

    /// The time since the beginning.
    fn elapsed(&self) -> Duration {
        self.worker.clock().since(self.began)
    }
}

/// Puts on a connection what it has to have beside TCP: the way through the proxy, and TLS. Dropped before it is done, it takes the
/// socket with it.
async fn dress(
    client: &Client,
    way: &Way,
    candidate: &Candidate,
    conn: Connection,
    progress: &Progress,
) -> Result<Connection, Cause> {
    let waiting = Waiting(Some(conn.link().clone()));
    let dressed = lead_and_secure(client, way, candidate, conn, progress).await;
    waiting.over();
    dressed
}

/// A connection that waits for what a proxy or a handshake has to say. Nobody is left to take that when the connect is given up, so
/// there is nothing to linger for either. What has failed by itself closes in order: an alert may be on its way.
struct Waiting(Option<Rc<Link>>);

impl Waiting {
    fn over(mut self) {
        self.0 = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(link) = &self.0 {
            link.command(|conn: &mut Conn| conn.reset(CloseReason::LocalReset));
        }
    }
}

async fn lead_and_secure(
    client: &Client,
    way: &Way,
    candidate: &Candidate,
    mut conn: Connection,
    progress: &Progress,
) -> Result<Connection, Cause> {
    if let Some(proxy) = &client.proxy {
        progress.tell(ConnectState::Proxying(conn.peer_addr()));
        proxy.lead(&mut conn, &way.asked(candidate)).await?;
    }
    secure(client, &way.target, conn, progress).await
}

/// Has TLS stand on a connection, if the client wants that.
#[cfg(feature = "tls")]
async fn secure(
    client: &Client,
    target: &Endpoint,
    mut conn: Connection,
    progress: &Progress,
) -> Result<Connection, Cause> {
    if let Some(connector) = &client.connector {
        progress.tell(ConnectState::Handshaking(conn.peer_addr()));
        let host = target.server_name();
        conn.handshake(Session::connect(connector, host.as_deref())).await?;
    }
    Ok(conn)
}

#[cfg(not(feature = "tls"))]
#[expect(clippy::unused_async, reason = "with TLS it waits")]
async fn secure(_: &Client, _: &Endpoint, conn: Connection, _: &Progress) -> Result<Connection, Cause> {
    Ok(conn)
}

/// Connects to one address. Dropped before it is done, it takes the socket with it.
async fn attempt(
    worker: &Rc<Worker>,
    peer: &Address,
    profile: &Rc<Profile>,
    options: &SocketOptions,
) -> Result<Connection, Cause> {
    loop {
        match attempt_once(worker, peer, profile, options).await {
            // A full backlog, which over TCP makes a client wait; a Unix socket says so instead (connect(2), EAGAIN).
            Err(Cause::Os(error)) if error.kind() == ErrorKind::WouldBlock => {
                runtime::sleep(FULL_RETRY).await;
            }
            other => return other,
        }
    }
}

async fn attempt_once(
    worker: &Rc<Worker>,
    peer: &Address,
    profile: &Rc<Profile>,
    options: &SocketOptions,
) -> Result<Connection, Cause> {
    let link = worker.connect(peer, profile, options).map_err(at_once)?;
    // Dropping the connection closes the link, also when this future is dropped.
    let conn = Connection::new(link.clone());
    poll_fn(|cx| {
        if link.conn.borrow().is_connecting() {
            link.rare().writer.register(&worker.tasks, cx);
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
    if let Some(reason) = link.conn.borrow().reason() {
        return Err(refusal(reason));
    }
    if worker.engine.borrow().local_addr(link.token).is_ok_and(|local| local == *peer) {
        // The kernel may pick the port that is connected to as the local one, and the two are then one socket.
        link.command(|conn: &mut Conn| conn.reset(CloseReason::LocalReset));
        return Err(refusal(CloseReason::Network(ErrorKind::ConnectionRefused)));
    }
    Ok(conn)
}
