//! The way from an address to a connection of the blocking style. What it decides, the style that is awaited decides in the same places:
//! the race, the proxies' talk, and the way; here is only how a thread waits for them.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Client;
use super::connect::Progress;
use super::race::{Race, Step};
use super::state::ConnectState;
use super::way::{Candidate, FULL_RETRY, Way, at_once};
use crate::address::Address;
use crate::blocking::{Connection, Line, Within};
use crate::config::SocketOptions;
use crate::engine::socket;
#[cfg(feature = "tls")]
use crate::error::Error;
use crate::error::{Cause, Result};

/// Connects as `client` says, within its deadline.
pub(super) fn open(client: &Client, progress: &Progress) -> Result<Connection> {
    let way = Way::of(client)?;
    let began = Instant::now();
    let left = || client.within.saturating_sub(began.elapsed());
    let candidates = match wait_for(way.candidates(client, progress, |_| None), left()) {
        Some(candidates) => candidates?,
        None => return Err(progress.late(client)),
    };
    let mut runner = Runner {
        race: Race::new(candidates.len(), client.attempt_delay),
        candidates,
        sockets: &way.sockets,
        within: client.within,
        began,
        progress,
        running: Vec::new(),
    };
    loop {
        let (index, socket) = match runner.next() {
            Next::Connected(index, socket) => (index, socket),
            Next::Over => return Err(progress.unreached(client)),
            Next::Late => return Err(progress.late(client)),
        };
        let candidate = runner.candidates[index].clone();
        let share = runner.race.share(left());
        let cause = match begin(client, &way, socket, &candidate, share, progress) {
            Ok(conn) => return Ok(conn),
            Err(cause) => cause,
        };
        if left().is_zero() {
            return Err(progress.late(client));
        }
        runner.race.failed(index);
        progress.failed_behind(&candidate, cause);
    }
}

/// Makes a connection of a socket that has connected: with the way through the proxy, and TLS, if the client wants them.
fn begin(
    client: &Client,
    way: &Way,
    socket: OwnedFd,
    candidate: &Candidate,
    within: Duration,
    progress: &Progress,
) -> Result<Connection, Cause> {
    let line =
        Line::new(socket, candidate.peer.clone(), &client.limits, &client.deadlines).map_err(Cause::Os)?;
    let mut conn = Connection::new(line);
    let mut timed = conn.within(within);
    if let Err(cause) = dress(client, way, candidate, &mut timed, progress) {
        match &cause {
            // An alert may be on its way, which a reset would overtake or throw away.
            Cause::Tls { .. } => conn.part(),
            // Nobody is to wait for a peer with whom it came to nothing.
            _ => drop(conn.reset()),
        }
        return Err(cause);
    }
    Ok(conn)
}

fn dress(
    client: &Client,
    way: &Way,
    candidate: &Candidate,
    conn: &mut Within<'_>,
    progress: &Progress,
) -> Result<(), Cause> {
    if let Some(proxy) = &client.proxy {
        progress.tell(ConnectState::Proxying(candidate.peer.clone()));
        proxy.lead_blocking(conn, &way.asked(candidate))?;
    }
    #[cfg(feature = "tls")]
    if let Some(connector) = &client.connector {
        progress.tell(ConnectState::Handshaking(candidate.peer.clone()));
        let host = way.target.server_name();
        let secured = conn.begin_connect(connector, host.as_deref()).and_then(|()| conn.secure());
        secured.map_err(Error::into_cause)?;
    }
    Ok(())
}

/// Drives the race: begins the attempts, and waits for the first of them that ends.
struct Runner<'a> {
    race: Race,
    candidates: Vec<Candidate>,
    sockets: &'a SocketOptions,
    within: Duration,
    began: Instant,
    progress: &'a Progress,
    running: Vec<Attempt>,
}

/// An attempt at the address of this index. Dropping it closes its socket.
struct Attempt {
    index: usize,
    stage: Stage,
}

enum Stage {
    Connecting(OwnedFd),
    /// It begins again at this time since the beginning of all.
    Again(Duration),
}

/// What has become of the race.
enum Next {
    Connected(usize, OwnedFd),
    /// No address is left.
    Over,
    /// The time is.
    Late,
}

impl Runner<'_> {
    /// The next address that connects.
    fn next(&mut self) -> Next {
        loop {
            if let Some((index, result)) = self.look() {
                match result {
                    Ok(socket) => {
                        self.running.clear();
                        self.race.connected(index);
                        return Next::Connected(index, socket);
                    }
                    Err(cause) => self.failed(index, cause),
                }
                continue;
            }
            let now = self.began.elapsed();
            if now >= self.within {
                return Next::Late;
            }
            match self.race.step(now) {
                Step::Begin(index) => self.begin(index),
                Step::Over => return Next::Over,
                Step::Wait { until } => self.wait(until.map_or(self.within, |at| at.min(self.within)), now),
            }
        }
    }

    /// The first attempt that is over.
    fn look(&mut self) -> Option<(usize, Result<OwnedFd, Cause>)> {
        let now = self.began.elapsed();
        for place in 0..self.running.len() {
            let Attempt { index, stage } = &mut self.running[place];
            let index = *index;
            if matches!(stage, Stage::Again(at) if *at <= now) {
                match start(&self.candidates[index].peer, self.sockets, now) {
                    Ok(begun) => *stage = begun,
                    Err(cause) => {
                        self.running.remove(place);
                        return Some((index, Err(cause)));
                    }
                }
            }
            let Stage::Connecting(socket) = stage else { continue };
            let Some(result) = outcome(socket, &self.candidates[index].peer) else { continue };
            let Attempt { stage, .. } = self.running.remove(place);
            let Stage::Connecting(socket) = stage else { unreachable!("it has just been asked") };
            return Some((index, result.map(|()| socket)));
        }
        None
    }

    fn begin(&mut self, index: usize) {
        self.progress.begun(&self.candidates[index].peer);
        // What fails at once is told by the next look, like everything else.
        self.running.push(Attempt { index, stage: Stage::Again(Duration::ZERO) });
    }

    fn failed(&mut self, index: usize, cause: Cause) {
        self.race.failed(index);
        self.progress.failed(&self.candidates[index].peer, cause);
    }

    /// Waits until an attempt may be over, or the time has come.
    fn wait(&self, until: Duration, now: Duration) {
        let (mut fds, mut until) = (Vec::with_capacity(self.running.len()), until);
        for attempt in &self.running {
            match &attempt.stage {
                Stage::Connecting(socket) => fds.push(PollFd::new(socket, PollFlags::OUT)),
                Stage::Again(at) => until = until.min(*at),
            }
        }
        let timeout = Timespec::try_from(until.saturating_sub(now)).ok();
        // Whatever comes of it, the next look sees for itself.
        let _ = poll(&mut fds, timeout.as_ref());
    }
}

/// Begins to connect to `peer`.
fn start(peer: &Address, options: &SocketOptions, now: Duration) -> Result<Stage, Cause> {
    let (socket, address) = socket::for_peer(peer, options).map_err(Cause::Os)?;
    match socket::connect(socket.as_fd(), &address) {
        Ok(()) => Ok(Stage::Connecting(socket)),
        // A full backlog, which over TCP makes a client wait; a Unix socket says so instead (connect(2), EAGAIN).
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Stage::Again(now + FULL_RETRY)),
        Err(error) => Err(at_once(error)),
    }
}

/// What has become of an attempt to connect to `peer`; `None` if it is under way.
fn outcome(socket: &OwnedFd, peer: &Address) -> Option<Result<(), Cause>> {
    if let Some(error) = socket::failure(socket.as_fd()) {
        return Some(Err(at_once(error)));
    }
    match socket::is_connected(socket.as_fd()) {
        Ok(false) => None,
        Err(error) => Some(Err(at_once(error))),
        Ok(true) if socket::local_addr(socket.as_fd()).is_ok_and(|local| local == *peer) => {
            // The kernel may pick the port that is connected to as the local one, and the two are then one socket.
            socket::reset_on_close(socket.as_fd());
            Some(Err(Cause::Os(ErrorKind::ConnectionRefused.into())))
        }
        Ok(true) => Some(Ok(())),
    }
}

/// Waits for a future on this thread; `None` if it takes longer.
fn wait_for<T>(future: impl Future<Output = T>, within: Duration) -> Option<T> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut future = pin!(future);
    let began = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        let left = within.checked_sub(began.elapsed()).filter(|left| !left.is_zero())?;
        thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[test]
    fn a_future_is_waited_for_and_not_for_ever() {
        assert_eq!(wait_for(ready(7), Duration::ZERO), Some(7));
        let began = Instant::now();
        let within = Duration::from_millis(30);
        assert_eq!(wait_for(pending::<()>(), within), None);
        assert!(began.elapsed() >= within);
    }
}
