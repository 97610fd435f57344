//! A thread for each connection: [`Listener::serve`], and the handle of what it starts.
//!
//! One thread accepts. It lets in whom the desk admits (the same rules as a server's) and hands him to the pool; while the desk is full
//! it accepts nobody, and whoever leaves tells it. When the server drains it lets in who is connected already, closes the listener,
//! waits for the connections, and stops those that are left at the deadline.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::line::Line;
use super::listener::{Listener, Remedy, wait_for};
use super::places::Places;
use super::pool::Pool;
use crate::address::Address;
use crate::config::OverLimit;
use crate::conn::Counts;
use crate::engine::Socket;
use crate::error::{Cause, CloseReason, Deadline, Error, Operation, Result, Rule};
use crate::server::{Desk, Phase, Seat, Stats, Turnstile, Verdict};
use crate::time::Time;

/// The most connections that are taken from a backlog when the server drains.
const BACKLOG_MAX: usize = 65_536;

type Handler = dyn Fn(Connection) -> Result<()> + Send + Sync;

/// What the accepting thread, the handlers' threads and the handles share.
struct Shared {
    address: Address,
    started: Instant,
    places: Arc<Places>,
    books: Mutex<Books>,
    /// The books have changed: somebody has left, or it is to drain.
    changed: Condvar,
    handler: Box<Handler>,
}

struct Books {
    desk: Desk,
    connections: usize,
    stats: Stats,
    /// When what is left is reset, once it drains.
    drain_until: Option<Instant>,
    phase: Phase,
}

thread_local! {
    /// The server whose handler runs on this thread.
    static SERVING: Cell<Option<*const Shared>> = const { Cell::new(None) };
}

/// Starts serving.
pub(super) fn start<H>(listener: Listener, handler: H) -> Result<ServerHandle>
where
    H: Fn(Connection) -> Result<()> + Send + Sync + 'static,
{
    let failed = |error| Error::os(Operation::Start, error);
    let max = listener.limits.connections.map_or(listener.threads, |max| max.min(listener.threads));
    let desk = Desk::new(listener.access.clone(), listener.limits.clone(), max);
    let books =
        Books { desk, connections: 0, stats: Stats::default(), drain_until: None, phase: Phase::Serving };
    let shared = Arc::new(Shared {
        address: listener.local_addr(),
        started: Instant::now(),
        places: Places::new().map_err(failed)?,
        books: Mutex::new(books),
        changed: Condvar::new(),
        handler: Box::new(handler),
    });
    let acceptor =
        Acceptor { listener, shared: shared.clone(), pool: Pool::new(String::from("wharf-conn"), max) };
    let thread = thread::Builder::new().name(String::from("wharf-accept"));
    thread.spawn(move || acceptor.run()).map_err(failed)?;
    Ok(ServerHandle { shared })
}

/// What the accepting thread has.
struct Acceptor {
    listener: Listener,
    shared: Arc<Shared>,
    pool: Arc<Pool>,
}

impl Acceptor {
    fn run(mut self) {
        self.accept_all();
        let Acceptor { listener, shared, pool } = self;
        drop(listener);
        shared.see_off();
        pool.close();
        shared.books().phase = Phase::Stopped;
        shared.changed.notify_all();
    }

    /// Accepts until the server drains.
    fn accept_all(&mut self) {
        while self.shared.await_turn() {
            match self.listener.try_accept() {
                Ok(Some((socket, peer))) => self.let_in(socket, peer),
                Ok(None) => {
                    wait_for(&[self.listener.as_fd(), self.shared.places.draining()], None);
                }
                Err(error) => {
                    self.shared.books().stats.accept_errors += 1;
                    match self.listener.trouble.meet(&error) {
                        Remedy::Retry => {}
                        Remedy::Pause(pause) => {
                            event!(warn, %error, ?pause, "accepting failed");
                            wait_for(&[self.shared.places.draining()], Some(pause));
                        }
                        Remedy::None => {
                            event!(error, %error, "the listener is lost");
                            return self.shared.await_drain();
                        }
                    }
                }
            }
        }
        // Closing the listener would reset them.
        for _ in 0..BACKLOG_MAX {
            if self.shared.places.is_stopped() || self.shared.turnstile() != Turnstile::Open {
                break;
            }
            match self.listener.try_accept() {
                Ok(Some((socket, peer))) => self.let_in(socket, peer),
                Ok(None) => break,
                Err(error) if self.listener.trouble.meet(&error) == Remedy::Retry => {}
                Err(_) => break,
            }
        }
    }

    fn let_in(&self, socket: OwnedFd, peer: Address) {
        let shared = &self.shared;
        let now = shared.now();
        let mut books = shared.books();
        let seat = match books.desk.admit(Some(&peer), false, now) {
            Verdict::Admit(seat) => seat,
            Verdict::Refuse(rule) => return shared.refuse(books, socket, rule),
        };
        books.connections += 1;
        books.stats.accepted += 1;
        drop(books);
        let mut visit = Visit { shared: shared.clone(), seat, outcome: None };
        match self.listener.open(socket, peer) {
            Ok(conn) => {
                let job = move || visit.serve(conn);
                if let Err(error) = self.pool.submit(Box::new(job)) {
                    // The connection was closed with the job, and its place given back.
                    event!(error, %error, "no thread for a connection");
                    let _ = error;
                    count_refusal(&mut shared.books().stats, Rule::Descriptors);
                    wait_for(&[shared.places.draining()], Some(crate::worker::accept::PAUSE_MIN));
                }
            }
            Err(error) => {
                event!(error, %error, "a connection cannot begin");
                let local = error.tls_fault().map_or(CloseReason::LocalReset, CloseReason::Tls);
                visit.outcome = Some((local, Counts::default()));
            }
        }
    }
}

/// One connection's stay; its end is noted when this is dropped, however that comes about.
struct Visit {
    shared: Arc<Shared>,
    seat: Seat,
    outcome: Option<(CloseReason, Counts)>,
}

impl Visit {
    fn serve(&mut self, mut conn: Connection) {
        SERVING.set(Some(Arc::as_ptr(&self.shared)));
        let place = self.shared.places.take();
        conn.line().take_place(place.clone());
        let returned = if self.secure(&mut conn) {
            catch_unwind(AssertUnwindSafe(|| (self.shared.handler)(conn)))
        } else {
            drop(conn);
            Ok(Ok(()))
        };
        // Its owner, who need not be this thread's handler, has dropped it by then; here it is seen off.
        let mut line = place.await_line();
        self.outcome = Some((CloseReason::Shutdown, Counts::default()));
        if let (Some(line), Ok(Err(error))) = (&mut line, &returned) {
            failed(line, error);
        }
        if let Err(payload) = returned {
            self.panicked(line.as_deref_mut(), payload);
        }
        if let Some(mut line) = line {
            let reason = line.drive(|line| Ok(line.end())).unwrap_or(CloseReason::Local);
            self.outcome = Some((reason, line.conn().counts()));
        }
        SERVING.set(None);
    }

    /// Has the handshake done before the handler sees the connection. Says whether it is.
    fn secure(&self, conn: &mut Connection) -> bool {
        if !conn.line().conn().is_handshaking() {
            return true;
        }
        let secured = conn.secure();
        let stats = &mut self.shared.books().stats;
        match secured {
            Ok(()) => {
                stats.handshakes += 1;
                let is_resumed = conn.line().conn().tls_info().is_some_and(crate::tls::Info::is_resumed);
                stats.resumed += u64::from(is_resumed);
                true
            }
            Err(error) => {
                event!(debug, %error, "TLS handshake failed");
                let _ = error;
                stats.handshakes_failed += 1;
                false
            }
        }
    }

    /// Nobody knows in which state the handler left what it sends.
    fn panicked(&self, line: Option<&mut Line>, payload: Box<dyn Any + Send>) {
        if let Some(line) = line {
            line.reset(CloseReason::HandlerPanicked);
        }
        self.shared.books().stats.panics += 1;
        // What was thrown may panic when it is dropped.
        drop(catch_unwind(AssertUnwindSafe(|| drop(payload))));
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut books = self.shared.books();
        books.desk.leave(self.seat);
        books.connections -= 1;
        let is_draining = books.drain_until.is_some();
        let stats = &mut books.stats;
        let (reason, counts) = self.outcome.unwrap_or((CloseReason::LocalReset, Counts::default()));
        stats.received += counts.received;
        stats.sent += counts.sent;
        stats.unsent += counts.unsent;
        match stats.closes.iter_mut().find(|(each, _)| *each == reason) {
            Some((_, count)) => *count += 1,
            None => stats.closes.push((reason, 1)),
        }
        if is_draining {
            match reason {
                CloseReason::Shutdown => stats.drain.reset += 1,
                _ => stats.drain.finished += 1,
            }
            stats.drain.lost += counts.unsent;
        }
        drop(books);
        self.shared.changed.notify_all();
    }
}

/// The handler returned an error.
fn failed(line: &mut Line, error: &Error) {
    if error.is_closed() && error.close_reason() == line.conn().reason() {
        // The connection was closed under the handler's hands: that is no failure of the handler.
        return;
    }
    event!(debug, peer = %line.peer(), %error, "handler failed");
    let reason = match error.is_timeout() {
        true => CloseReason::Timeout(Deadline::Handler),
        false => CloseReason::HandlerFailed,
    };
    line.close_for(reason);
}

fn count_refusal(stats: &mut Stats, rule: Rule) {
    match stats.refused.iter_mut().find(|(each, _)| *each == rule) {
        Some((_, count)) => *count += 1,
        None => stats.refused.push((rule, 1)),
    }
}

impl Shared {
    /// Nothing panics under this lock.
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Time {
        Time::ZERO.after(self.started.elapsed())
    }

    fn turnstile(&self) -> Turnstile {
        let now = self.now();
        self.books().desk.turnstile(false, now)
    }

    /// Waits until the next connection may be accepted; `false` if the server drains before.
    fn await_turn(&self) -> bool {
        let mut books = self.books();
        loop {
            if books.drain_until.is_some() {
                return false;
            }
            let now = self.now();
            let left = match books.desk.turnstile(false, now) {
                Turnstile::Open => return true,
                Turnstile::Full => None,
                Turnstile::Until(at) => Some(at.since(now)),
            };
            books = self.await_change(books, left);
        }
    }

    fn await_drain(&self) {
        let mut books = self.books();
        while books.drain_until.is_none() {
            books = self.await_change(books, None);
        }
    }

    /// Waits for the connections that are left, and stops them when the time is over.
    fn see_off(&self) {
        let mut books = self.books();
        while books.connections > 0 {
            let left =
                books.drain_until.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() && !self.places.is_stopped() {
                drop(books);
                self.places.stop();
                books = self.books();
                continue;
            }
            books = self.await_change(books, Some(left).filter(|left| !left.is_zero()));
        }
    }

    fn await_change<'a>(
        &'a self,
        books: MutexGuard<'a, Books>,
        left: Option<Duration>,
    ) -> MutexGuard<'a, Books> {
        match left {
            None => self.changed.wait(books).unwrap_or_else(PoisonError::into_inner),
            Some(left) => self.changed.wait_timeout(books, left).unwrap_or_else(PoisonError::into_inner).0,
        }
    }

    fn refuse(&self, mut books: MutexGuard<'_, Books>, socket: OwnedFd, rule: Rule) {
        count_refusal(&mut books.stats, rule);
        // A reset leaves nothing behind, neither here nor in the kernel.
        let resets = books.desk.rules().over_limit != OverLimit::Close;
        drop(books);
        Socket::Os(socket).refuse(resets);
    }
}

/// A running server of the blocking style. Cheap to clone, usable from any thread; dropping it does not stop the server.
#[derive(Clone)]
pub struct ServerHandle {
    shared: Arc<Shared>,
}

impl ServerHandle {
    /// Where it listens, with the real port.
    pub fn local_addr(&self) -> Address {
        self.shared.address.clone()
    }

    /// The number of connections at this moment.
    pub fn connections(&self) -> usize {
        self.shared.books().connections
    }

    /// The number of connections that it holds at most: each has a thread.
    pub fn connections_max(&self) -> usize {
        self.shared.books().desk.connections_max()
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        let mut stats = self.shared.books().stats.clone();
        stats.closes.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), reason.to_string()));
        stats.refused.sort_by_key(|(rule, _)| rule.index());
        stats
    }

    /// What it is about.
    pub fn phase(&self) -> Phase {
        self.shared.books().phase
    }

    /// Stops accepting at once and lets connections end by themselves for `within`; what is left then is reset, as soon as its
    /// handler waits in an operation or begins one.
    ///
    /// Handlers are told by [`Connection::is_draining`] and [`Connection::ready`]. Returns at once; [`ServerHandle::wait`] waits for
    /// the end. A second call can only shorten the time.
    pub fn drain(&self, within: Duration) -> &ServerHandle {
        let mut books = self.shared.books();
        let now = Instant::now();
        // What is further away than time reaches is as good as a day, after which one can drain again.
        let until = now.checked_add(within).unwrap_or(now + Duration::from_secs(86_400));
        books.drain_until = Some(books.drain_until.map_or(until, |before| before.min(until)));
        if books.phase == Phase::Serving {
            books.phase = Phase::Draining;
        }
        drop(books);
        self.shared.places.drain();
        if within.is_zero() {
            self.shared.places.stop();
        }
        self.shared.changed.notify_all();
        self
    }

    /// Stops accepting and resets all connections, at once. A handler that computes is not interrupted; it finds its connection
    /// reset.
    pub fn stop(&self) -> &ServerHandle {
        self.drain(Duration::ZERO)
    }

    /// Whether it has ended: no listener, no connections, no handler running.
    pub fn is_stopped(&self) -> bool {
        self.phase() == Phase::Stopped
    }

    /// Waits until it has ended, after [`ServerHandle::drain`] or [`ServerHandle::stop`], and tells what it did.
    ///
    /// # Errors
    /// If called by one of its own handlers, for which it waits.
    pub fn wait(&self) -> Result<Stats> {
        if SERVING.get() == Some(Arc::as_ptr(&self.shared)) {
            let problem = "a handler cannot wait for its own server's end";
            return Err(Error::new(Operation::Wait, Cause::Misuse(problem)));
        }
        let mut books = self.shared.books();
        while books.phase != Phase::Stopped {
            books = self.shared.await_change(books, None);
        }
        drop(books);
        Ok(self.stats())
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle")
            .field("address", &self.shared.address)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
