//! Servers: starting them, watching them, and stopping them in order.

mod state;
mod styles;
mod threads;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

pub(crate) use state::{Admission, ServerState};
pub(crate) use styles::{async_style, event_style};

use state::lock;

use crate::config::{Backend, Deadlines, Limits, SocketOptions};
use crate::conn::Profile;
use crate::connection::Connection;
use crate::endpoint::{Endpoint, Host};
use crate::engine::{Engine, Listener};
use crate::error::{Cause, CloseReason, Error, Operation, Result};
use crate::event::Handler;
use crate::resolve;
use crate::sockets;
use crate::worker::accept::{Acceptor, Attach};
use crate::worker::{Message, Worker};

/// Descriptors that are left for everything but connections when the limit is taken from the process's.
const DESCRIPTOR_RESERVE: usize = 64;

/// A TCP server before it starts: where it listens and within which bounds.
///
/// ```
/// use std::time::Duration;
/// use wharf::{Connection, Server};
///
/// let server = Server::bind("127.0.0.1:0").workers(1).start(|mut conn: Connection| async move {
///     let mut buf = [0; 64];
///     loop {
///         let n = conn.recv(&mut buf).within(Duration::from_secs(30)).await?;
///         if n == 0 {
///             return Ok(());
///         }
///         conn.send(&buf[..n]).await?;
///     }
/// })?;
/// println!("listening on {}", server.local_addr());
/// # server.stop().wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a server does nothing until it is started"]
pub struct Server {
    address: String,
    limits: Limits,
    deadlines: Deadlines,
    sockets: SocketOptions,
    backend: Backend,
    spin: Duration,
    workers: Option<usize>,
}

/// Nobody gains anything by spinning longer.
const SPIN_MAX: Duration = Duration::from_millis(10);

impl Server {
    /// Describes a server that will listen on `address`: `1.2.3.4:port`, `[v6]:port` or `name:port`.
    ///
    /// Port 0 takes a free port, which [`ServerHandle::local_addr`] tells. `[::]` takes IPv4 too. Nothing happens until
    /// the server starts, so a bad address is an error of [`Server::start`].
    pub fn bind(address: impl fmt::Display) -> Server {
        Server {
            address: address.to_string(),
            limits: Limits::default(),
            deadlines: Deadlines::default(),
            sockets: SocketOptions::default(),
            backend: Backend::Auto,
            spin: Duration::ZERO,
            workers: None,
        }
    }

    /// Sets the bounds of the server and its connections.
    pub fn limits(mut self, limits: Limits) -> Server {
        self.limits = limits;
        self
    }

    /// Sets the deadlines of its connections.
    pub fn deadlines(mut self, deadlines: Deadlines) -> Server {
        self.deadlines = deadlines;
        self
    }

    /// Sets the options of its sockets.
    pub fn sockets(mut self, options: SocketOptions) -> Server {
        self.sockets = options;
        self
    }

    /// Sets the engine. Default: [`Backend::Auto`].
    ///
    /// With [`Backend::Uring`], starting is an error where io_uring cannot run; `Auto` then takes readiness, and
    /// [`ServerHandle::backends`] tells so.
    pub fn backend(mut self, backend: Backend) -> Server {
        self.backend = backend;
        self
    }

    /// Sets how long a worker spins before it sleeps when it has nothing to do. Default: not at all.
    ///
    /// A worker that spins sees the next message sooner, by the tens of microseconds that waking a thread takes, and keeps
    /// its processor busy for it. That pays for few connections with short pauses, on a machine with more processors than
    /// workers and clients need; elsewhere it takes time from others. 50 to 100 microseconds are plenty. Spinning that
    /// finds nothing becomes rare by itself.
    pub fn spin(mut self, spin: Duration) -> Server {
        self.spin = spin;
        self
    }

    /// Sets the number of worker threads. Default: one for each processor.
    pub fn workers(mut self, workers: usize) -> Server {
        self.workers = Some(workers);
        self
    }

    /// Starts serving in async style: `handler` is called for each connection, and the future that it returns runs on
    /// the connection's worker.
    ///
    /// When the future ends the connection is closed, gracefully. If it ends with an error the reason tells so, if it
    /// panics the connection is reset; neither touches any other connection. The server goes on without the handle.
    ///
    /// # Errors
    /// Whatever keeps it from serving is told here, not later: an address that cannot be read, resolved or bound, an
    /// option that makes no sense, an engine that cannot run here, threads or descriptors that are not to be had.
    pub fn start<F, Fut>(self, handler: F) -> Result<ServerHandle>
    where
        F: Fn(Connection) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + 'static,
    {
        self.launch(&async_style(handler))
    }

    /// Starts serving in event style: `make` is called for each connection, and the handler that it returns gets the
    /// connection's events.
    ///
    /// # Errors
    /// As for [`Server::start`].
    pub fn start_events<F, H>(self, make: F) -> Result<ServerHandle>
    where
        F: Fn() -> H + Send + Sync + 'static,
        H: Handler,
    {
        self.launch(&event_style(make))
    }

    /// Serves in async style with the first worker on the calling thread, until the server has ended.
    ///
    /// With one worker that is a server without any thread of its own, which spares each system call the price of a
    /// shared descriptor table. `started` gets the handle when the server listens; keep a clone of it, or hand one to
    /// whoever is to stop the server.
    ///
    /// # Errors
    /// As for [`Server::start`]; and if this thread runs a worker already.
    ///
    /// ```
    /// use wharf::{Connection, Server};
    ///
    /// let stats = Server::bind("127.0.0.1:0").workers(1).run(
    ///     |mut conn: Connection| async move { conn.send(b"hello").await },
    ///     |server| { server.stop(); },
    /// )?;
    /// assert_eq!(stats.accepted, 0);
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn run<F, Fut>(self, handler: F, started: impl FnOnce(&ServerHandle)) -> Result<Stats>
    where
        F: Fn(Connection) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + 'static,
    {
        self.launch_here(&async_style(handler), started)
    }

    /// Serves in event style with the first worker on the calling thread; see [`Server::run`].
    ///
    /// # Errors
    /// As for [`Server::run`].
    pub fn run_events<F, H>(self, make: F, started: impl FnOnce(&ServerHandle)) -> Result<Stats>
    where
        F: Fn() -> H + Send + Sync + 'static,
        H: Handler,
    {
        self.launch_here(&event_style(make), started)
    }

    fn launch(mut self, attach: &Attach) -> Result<ServerHandle> {
        let (state, listener) = self.prepare()?;
        threads::start(&self, &state, attach, listener)?;
        tell_of_start(&state);
        Ok(ServerHandle { state })
    }

    fn launch_here(mut self, attach: &Attach, started: impl FnOnce(&ServerHandle)) -> Result<Stats> {
        if crate::worker::with_current(|_| ()).is_some() {
            let nested = "this thread runs a worker already; use `start` here";
            return Err(Error::new(Operation::Run, Cause::Misuse(nested)));
        }
        let (state, listener) = self.prepare()?;
        let handle = ServerHandle { state };
        threads::run(&self, &handle.state, attach, listener, || {
            tell_of_start(&handle.state);
            started(&handle);
        })?;
        handle.wait()
    }

    /// Does everything that can fail before there are threads.
    fn prepare(&mut self) -> Result<(Arc<ServerState>, std::net::TcpListener)> {
        let plan = self.plan()?;
        self.backend = self.backend.chosen()?;
        let endpoint = Endpoint::parse(Operation::Listen, &self.address)?;
        let candidates = match &endpoint.host {
            Host::Name(name) => resolve::resolve(name, endpoint.port)
                .map_err(|cause| Error::new(Operation::Listen, cause).at(&self.address))?,
            _ => endpoint.literal().into_iter().collect(),
        };
        let failed = |error| Error::os(Operation::Listen, error).at(&self.address);
        let listener = listen_on_first(&candidates, &self.sockets).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        Ok((ServerState::new(local, plan.connections, self.limits.memory, plan.workers, false), listener))
    }

    /// Starts the server's workers on a simulated network; its driver turns them.
    pub(crate) fn launch_simulated(
        self,
        attach: &Attach,
        engines: Vec<Engine>,
        listener: Listener,
        local: SocketAddr,
    ) -> Result<(ServerHandle, Vec<Rc<Worker>>)> {
        let plan = self.plan()?;
        let state = ServerState::new(local, plan.connections, self.limits.memory, engines.len(), true);
        let workers: Vec<_> = engines.into_iter().map(Worker::new).collect();
        state.set_posts(workers.iter().map(|worker| worker.post.clone()).collect());
        let mut listener = Some(listener);
        for (index, worker) in workers.iter().enumerate() {
            worker.budget.get_or_init(|| state.memory.clone());
            let acceptor = Acceptor::new(state.clone(), index, self.profile(worker), attach.clone());
            if let Some(listener) = listener.take() {
                acceptor.listen(worker, listener).map_err(|error| Error::os(Operation::Listen, error))?;
            }
            *worker.acceptor.borrow_mut() = Some(acceptor);
        }
        Ok((ServerHandle { state }, workers))
    }

    /// Sets the number of workers, if it was not set.
    pub(crate) fn workers_by_default(mut self, workers: usize) -> Server {
        self.workers.get_or_insert(workers);
        self
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn worker_count(&self) -> usize {
        self.workers.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
    }

    /// Makes one of the server's workers, on its own thread.
    fn make_worker(
        &self,
        index: usize,
        state: &Arc<ServerState>,
        attach: Attach,
        listener: Option<std::net::TcpListener>,
    ) -> Result<(Rc<Worker>, Rc<Acceptor>)> {
        let engine =
            Engine::new(self.backend).map_err(|refusal| Error::os(Operation::Start, refusal.into()))?;
        state.note_backend(index, &engine);
        let worker = Worker::new(engine);
        worker.spin_before_sleep(self.spin);
        worker.budget.get_or_init(|| state.memory.clone());
        let acceptor = Acceptor::new(state.clone(), index, self.profile(&worker), attach);
        *worker.acceptor.borrow_mut() = Some(acceptor.clone());
        if let Some(listener) = listener {
            let listener = Listener::Os(mio::net::TcpListener::from_std(listener));
            let failed = |error| Error::os(Operation::Listen, error).at(&self.address);
            acceptor.listen(&worker, listener).map_err(failed)?;
        }
        Ok((worker, acceptor))
    }

    fn profile(&self, worker: &Worker) -> Rc<Profile> {
        worker.profile(&self.limits, &self.deadlines)
    }

    /// Checks every option; what is left open is decided here.
    fn plan(&self) -> Result<Plan> {
        self.limits.validate()?;
        self.deadlines.validate()?;
        self.sockets.validate()?;
        if self.spin > SPIN_MAX {
            return Err(Error::option("spin", "must be at most 10 ms"));
        }
        let workers = self.worker_count();
        if !(1..=1024).contains(&workers) {
            return Err(Error::option("workers", format!("must be between 1 and 1024, not {workers}")));
        }
        let connections = self.limits.connections.unwrap_or_else(descriptors_for_connections);
        Ok(Plan { workers, connections })
    }
}

fn tell_of_start(state: &ServerState) {
    event!(info, local = %state.local, workers = state.workers(), backends = ?state.backends(), "listening");
    let _ = state;
}

struct Plan {
    workers: usize,
    connections: usize,
}

fn listen_on_first(candidates: &[SocketAddr], options: &SocketOptions) -> io::Result<std::net::TcpListener> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in candidates {
        match sockets::listen(*address, options) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn descriptors_for_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    limit.saturating_sub(DESCRIPTOR_RESERVE).max(1)
}

/// A running server. Cheap to clone, usable from any thread; dropping it does not stop the server.
#[derive(Clone)]
pub struct ServerHandle {
    state: Arc<ServerState>,
}

impl ServerHandle {
    /// The address it listens on, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.state.local
    }

    /// The number of connections at this moment.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// The number of connections of each worker at this moment, in the order of the workers; those that were accepted and
    /// are on their way to it included.
    ///
    /// A new connection goes to the worker with the fewest. Connections that end leave gaps, which the next ones fill.
    ///
    /// ```
    /// use wharf::{Connection, Server};
    ///
    /// let server = Server::bind("127.0.0.1:0").workers(3).start(|_: Connection| async { Ok(()) })?;
    /// assert_eq!(server.connections_by_worker(), [0, 0, 0]);
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn connections_by_worker(&self) -> Vec<usize> {
        self.state.loads()
    }

    /// The number of connections that it holds at most.
    pub fn connections_max(&self) -> usize {
        self.state.connections_max
    }

    /// The memory that its connections hold in buffers at this moment, in bytes, on all workers: what was received and not
    /// read, what is queued to be sent, and free buffers that are kept for the next messages.
    ///
    /// Workers tell of it when it changes, each at the end of what it is doing; so it may be a little behind. What a
    /// connection takes besides (some hundred bytes, its task, the kernel's buffers) does not count.
    ///
    /// ```
    /// use wharf::{Connection, Limits, Server};
    ///
    /// let limits = Limits::default().memory(64 << 20);
    /// let server = Server::bind("127.0.0.1:0").workers(1).limits(limits);
    /// let server = server.start(|_: Connection| async { Ok(()) })?;
    /// assert_eq!((server.memory_used(), server.memory_max()), (0, Some(64 << 20)));
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn memory_used(&self) -> usize {
        self.state.memory.used()
    }

    /// The budget for that: [`Limits::memory`].
    pub fn memory_max(&self) -> Option<usize> {
        self.state.memory.max()
    }

    /// Whether the budget is spent: connections have to do with one message at a time, and idle buffers are freed at once.
    pub fn memory_is_short(&self) -> bool {
        self.state.memory_is_short()
    }

    /// The engine of each worker, in the order of the workers: [`Backend::Uring`] or [`Backend::Readiness`].
    ///
    /// With [`Backend::Auto`] they may differ, if the system grants io_uring to some and refuses it to others, for want
    /// of lockable memory, say. Empty for a server in a [`Simulation`](crate::sim::Simulation).
    ///
    /// ```
    /// use wharf::{Backend, Connection, Server};
    ///
    /// let server = Server::bind("127.0.0.1:0").workers(2).backend(Backend::Readiness);
    /// let server = server.start(|_: Connection| async { Ok(()) })?;
    /// assert_eq!(server.backends(), [Backend::Readiness; 2]);
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn backends(&self) -> Vec<Backend> {
        self.state.backends()
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        let state = &self.state;
        let mut closes: Vec<_> =
            lock(&state.closes).iter().map(|(reason, count)| (*reason, *count)).collect();
        closes.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), reason.to_string()));
        Stats {
            accepted: state.accepted.load(Ordering::Relaxed),
            accept_errors: state.accept_errors.load(Ordering::Relaxed),
            received: state.received.load(Ordering::Relaxed),
            sent: state.sent.load(Ordering::Relaxed),
            unsent: state.unsent.load(Ordering::Relaxed),
            closes,
        }
    }

    /// Stops accepting at once and lets connections end by themselves for `within`; what is left then is reset.
    ///
    /// Handlers are told: [`Connection::draining`] and [`Handler::draining`]. Returns at once; [`ServerHandle::wait`]
    /// waits for the end. A second call can only shorten the time.
    pub fn drain(&self, within: Duration) -> &ServerHandle {
        self.state.tell_first(Message::Drain { within });
        // The first worker tells the others, but it may have ended since it did so for an earlier drain.
        if self.state.draining.load(Ordering::SeqCst) {
            for other in self.state.posts().iter().skip(1) {
                drop(other.send(Message::Drain { within }));
            }
        }
        self
    }

    /// Stops accepting and resets all connections, at once.
    pub fn stop(&self) -> &ServerHandle {
        self.drain(Duration::ZERO)
    }

    /// Whether it has ended: no listener, no connections, no handler running. Its threads are about to end; what they hold
    /// besides (a wake descriptor each) is closed with them and with the last handle.
    pub fn is_stopped(&self) -> bool {
        *lock(&self.state.workers_left) == 0
    }

    /// Waits until it has ended, after [`ServerHandle::drain`] or [`ServerHandle::stop`], and tells what it did.
    ///
    /// # Errors
    /// If called on one of Wharf's own workers, which it would block, or if a worker crashed.
    pub fn wait(&self) -> Result<Stats> {
        if crate::worker::with_current(|_| ()).is_some() && !self.is_stopped() {
            return Err(Error::new(
                Operation::Wait,
                Cause::Misuse("a worker cannot wait for a server's end"),
            ));
        }
        if self.state.simulated && !self.is_stopped() {
            let undone = "the simulation has to run until the server has stopped";
            return Err(Error::new(Operation::Wait, Cause::Misuse(undone)));
        }
        let mut left = lock(&self.state.workers_left);
        while *left > 0 {
            left = self.state.ended.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
        drop(left);
        if self.state.crashed.load(Ordering::SeqCst) {
            return Err(Error::new(
                Operation::Wait,
                Cause::Misuse("a worker crashed; this is a defect of Wharf"),
            ));
        }
        Ok(self.stats())
    }

    pub(crate) fn state(&self) -> &ServerState {
        &self.state
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle")
            .field("local_addr", &self.local_addr())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

/// What a server has done: connections, bytes, and why connections ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections accepted.
    pub accepted: u64,
    /// Errors while accepting.
    pub accept_errors: u64,
    /// Bytes received on connections that have ended.
    pub received: u64,
    /// Bytes handed to the kernel on connections that have ended.
    pub sent: u64,
    /// Bytes that were queued on connections that have ended, and never sent.
    pub unsent: u64,
    /// Why connections ended and how many for each reason, most frequent first.
    pub closes: Vec<(CloseReason, u64)>,
}

impl Stats {
    /// How many connections ended for `reason`.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closes.iter().find(|(each, _)| *each == reason).map_or(0, |(_, count)| *count)
    }
}
