//! Servers: starting them, watching them, and stopping them in order.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::address::{self, Endpoint, Host};
use crate::config::{Backend, Deadlines, Limits, SocketOptions};
use crate::conn::Counts;
use crate::connection::Connection;
use crate::engine::{Engine, Listener};
use crate::error::{Cause, CloseReason, Deadline, Error, Operation, Result};
use crate::event::Handler;
use crate::runtime;
use crate::worker::accept::{Acceptor, Attach, HandlerCount};
use crate::worker::link::Link;
use crate::worker::{Message, Post, Profile, Worker};

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
    workers: Option<usize>,
}

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
    pub fn backend(mut self, backend: Backend) -> Server {
        self.backend = backend;
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
    /// option that makes no sense, threads or descriptors that are not to be had.
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

    fn launch(self, attach: &Attach) -> Result<ServerHandle> {
        let plan = self.plan()?;
        let endpoint = Endpoint::parse(Operation::Listen, &self.address)?;
        let candidates = match &endpoint.host {
            Host::Name(name) => address::resolve(name, endpoint.port).map_err(|error| {
                Error::new(Operation::Listen, Cause::Other(error.into())).at(&self.address)
            })?,
            _ => endpoint.literal().into_iter().collect(),
        };
        let failed = |error| Error::os(Operation::Listen, error).at(&self.address);
        let listener = listen_on_first(&candidates, &self.sockets).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let state = ServerState::new(local, plan.connections, plan.workers, false);
        start_threads(&self, &state, attach, listener)?;
        event!(info, %local, workers = plan.workers, "listening");
        Ok(ServerHandle { state })
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
        let state = ServerState::new(local, plan.connections, engines.len(), true);
        let workers: Vec<_> = engines.into_iter().map(Worker::new).collect();
        state.set_posts(workers.iter().map(|worker| worker.post.clone()).collect());
        let mut listener = Some(listener);
        for (index, worker) in workers.iter().enumerate() {
            let acceptor = Acceptor::new(state.clone(), index, self.profile(), attach.clone());
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
        let engine = runtime::engine(self.backend).map_err(|error| Error::os(Operation::Start, error))?;
        let worker = Worker::new(engine);
        let acceptor = Acceptor::new(state.clone(), index, self.profile(), attach);
        *worker.acceptor.borrow_mut() = Some(acceptor.clone());
        if let Some(listener) = listener {
            let listener = Listener::Os(mio::net::TcpListener::from_std(listener));
            let failed = |error| Error::os(Operation::Listen, error).at(&self.address);
            acceptor.listen(&worker, listener).map_err(failed)?;
        }
        Ok((worker, acceptor))
    }

    fn profile(&self) -> Profile {
        Profile { limits: self.limits.clone(), deadlines: self.deadlines.clone() }
    }

    /// Checks every option; what is left open is decided here.
    fn plan(&self) -> Result<Plan> {
        self.limits.validate()?;
        self.deadlines.validate()?;
        self.sockets.validate()?;
        let workers = self.worker_count();
        if !(1..=1024).contains(&workers) {
            return Err(Error::option("workers", format!("must be between 1 and 1024, not {workers}")));
        }
        let connections = self.limits.connections.unwrap_or_else(descriptors_for_connections);
        Ok(Plan { workers, connections })
    }
}

struct Plan {
    workers: usize,
    connections: usize,
}

/// How a handler in async style is put on a connection.
pub(crate) fn async_style<F, Fut>(handler: F) -> Attach
where
    F: Fn(Connection) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<()>> + 'static,
{
    let handler = Arc::new(handler);
    Arc::new(move |worker, link, count| {
        let (handler, conn) = (handler.clone(), Connection::new(link.clone()));
        let running = Running { link: link.clone(), _count: count };
        worker.tasks.spawn(Box::pin(async move {
            let running = running;
            if let Err(error) = handler(conn).await {
                running.failed(&error);
            }
        }));
    })
}

/// A handler in async style while it runs.
struct Running {
    link: Rc<Link>,
    _count: HandlerCount,
}

impl Running {
    /// The handler returned an error.
    fn failed(&self, error: &Error) {
        let reason = self.link.conn.borrow().reason();
        if error.is_closed() && error.close_reason() == reason {
            // The connection was closed under the handler's hands: that is no failure of the handler.
            return;
        }
        event!(debug, peer = %self.link.peer, %error, "handler failed");
        let reason = match error.is_timeout() {
            true => CloseReason::Timeout(Deadline::Handler),
            false => CloseReason::HandlerFailed,
        };
        self.link.command(|conn| conn.close_for(reason));
    }
}

impl Drop for Running {
    /// Dropped in a panic of the handler, which the worker catches: the connection is reset.
    fn drop(&mut self) {
        if thread::panicking() {
            self.link.command(|conn| conn.reset(CloseReason::HandlerPanicked));
        }
    }
}

/// How a handler in event style is put on a connection.
pub(crate) fn event_style<F, H>(make: F) -> Attach
where
    F: Fn() -> H + Send + Sync + 'static,
    H: Handler,
{
    Arc::new(move |worker, link, _count| {
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&make));
        match made {
            Ok(handler) => worker.attach(link, Box::new(handler)),
            Err(_) => link.command(|conn| conn.reset(CloseReason::HandlerPanicked)),
        }
    })
}

fn listen_on_first(candidates: &[SocketAddr], options: &SocketOptions) -> io::Result<std::net::TcpListener> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in candidates {
        match address::listen(*address, options) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Starts the worker threads; the first gets the listener. Returns when all of them serve, or none does any more.
fn start_threads(
    server: &Server,
    state: &Arc<ServerState>,
    attach: &Attach,
    listener: std::net::TcpListener,
) -> Result<()> {
    // A worker cannot leave its thread, so each is made there and reports its mailbox.
    let (report, reports) = std::sync::mpsc::channel();
    let mut listener = Some(listener);
    let mut failure = None;
    for index in 0..state.loads.len() {
        let (report, state, attach) = (report.clone(), state.clone(), attach.clone());
        let (server, listener) = (server.clone(), listener.take());
        let body = move || {
            let _leaving = Leaving(state.clone());
            match server.make_worker(index, &state, attach, listener) {
                Ok((worker, acceptor)) => {
                    drop(report.send(Ok((index, worker.post.clone()))));
                    // The start is over when nobody is left to report.
                    drop(report);
                    serve(&worker, &acceptor);
                }
                Err(error) => drop(report.send(Err(error))),
            }
        };
        let spawned = thread::Builder::new().name(format!("wharf-{index}")).spawn(body);
        if let Err(error) = spawned {
            failure = Some(Error::os(Operation::Start, error));
            break;
        }
    }
    drop(report);
    let mut posts: Vec<(usize, Post)> = Vec::new();
    for ready in reports {
        match ready {
            Ok(post) => posts.push(post),
            Err(error) => failure = Some(error),
        }
    }
    posts.sort_by_key(|(index, _)| *index);
    state.set_posts(posts.into_iter().map(|(_, post)| post).collect());
    let Some(failure) = failure else { return Ok(()) };
    for post in state.posts() {
        drop(post.send(Message::Drain { within: Duration::ZERO }));
    }
    Err(failure)
}

/// What a worker thread does all day.
fn serve(worker: &Rc<Worker>, acceptor: &Acceptor) {
    let _entered = worker.enter();
    while !acceptor.is_done(worker) {
        worker.turn(true);
    }
    worker.shut();
    worker.acceptor.borrow_mut().take();
}

/// Tells that a worker's thread ended, in whichever way.
struct Leaving(Arc<ServerState>);

impl Drop for Leaving {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.crashed.store(true, Ordering::SeqCst);
        }
        self.0.worker_left();
    }
}

fn descriptors_for_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    limit.saturating_sub(DESCRIPTOR_RESERVE).max(1)
}

/// What the workers of one server share with each other and with its handles.
pub(crate) struct ServerState {
    local: SocketAddr,
    connections_max: usize,
    connections: AtomicUsize,
    /// Connections of each worker, those on their way to it included.
    loads: Vec<AtomicUsize>,
    posts: OnceLock<Vec<Post>>,
    /// The limit was reached: whoever makes room must say so.
    full: AtomicBool,
    accepted: AtomicU64,
    accept_errors: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    unsent: AtomicU64,
    closes: Mutex<HashMap<CloseReason, u64>>,
    workers_left: Mutex<usize>,
    ended: Condvar,
    crashed: AtomicBool,
    simulated: bool,
}

impl ServerState {
    fn new(local: SocketAddr, connections_max: usize, workers: usize, simulated: bool) -> Arc<ServerState> {
        Arc::new(ServerState {
            local,
            connections_max,
            connections: AtomicUsize::new(0),
            loads: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            posts: OnceLock::new(),
            full: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            accept_errors: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            closes: Mutex::default(),
            workers_left: Mutex::new(workers),
            ended: Condvar::new(),
            crashed: AtomicBool::new(false),
            simulated,
        })
    }

    fn set_posts(&self, posts: Vec<Post>) {
        let first = self.posts.set(posts).is_ok();
        debug_assert!(first, "the workers of a server are known once");
    }

    /// The mailboxes of the workers, in their order; waits for the start to be over.
    pub(crate) fn posts(&self) -> &[Post] {
        self.posts.wait()
    }

    pub(crate) fn post(&self, worker: usize) -> &Post {
        &self.posts()[worker]
    }

    /// The connections of a worker, those on their way to it included.
    pub(crate) fn load(&self, worker: usize) -> usize {
        self.loads[worker].load(Ordering::Relaxed)
    }

    /// The worker with the fewest connections.
    pub(crate) fn least_loaded(&self) -> usize {
        (0..self.loads.len()).min_by_key(|worker| self.load(*worker)).unwrap_or(0)
    }

    pub(crate) fn is_full(&self) -> bool {
        let full = self.connections.load(Ordering::SeqCst) >= self.connections_max;
        self.full.store(full, Ordering::SeqCst);
        // A connection that ended between the two looks may not have seen the flag.
        full && self.connections.load(Ordering::SeqCst) >= self.connections_max
    }

    pub(crate) fn count_accept_error(&self) {
        self.accept_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn worker_left(&self) {
        *lock(&self.workers_left) -= 1;
        self.ended.notify_all();
    }
}

/// A panic cannot happen under these locks, and what they guard has no half-done states.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection's place in its server; free again when this is dropped, however that comes about.
pub(crate) struct Admission {
    server: Arc<ServerState>,
    worker: usize,
}

impl Admission {
    pub(crate) fn new(server: Arc<ServerState>, worker: usize) -> Admission {
        server.accepted.fetch_add(1, Ordering::Relaxed);
        server.connections.fetch_add(1, Ordering::SeqCst);
        server.loads[worker].fetch_add(1, Ordering::Relaxed);
        Admission { server, worker }
    }

    /// The connection ended; gives the place back and keeps the books.
    pub(crate) fn closed(self, reason: CloseReason, counts: Counts) {
        let server = &self.server;
        server.received.fetch_add(counts.received, Ordering::Relaxed);
        server.sent.fetch_add(counts.sent, Ordering::Relaxed);
        server.unsent.fetch_add(counts.unsent, Ordering::Relaxed);
        *lock(&server.closes).entry(reason).or_default() += 1;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.server.loads[self.worker].fetch_sub(1, Ordering::Relaxed);
        self.server.connections.fetch_sub(1, Ordering::SeqCst);
        if self.server.full.swap(false, Ordering::SeqCst) {
            drop(self.server.post(0).send(Message::ResumeAccept));
        }
    }
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

    /// The number of connections that it holds at most.
    pub fn connections_max(&self) -> usize {
        self.state.connections_max
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
        drop(self.state.post(0).send(Message::Drain { within }));
        self
    }

    /// Stops accepting and resets all connections, at once.
    pub fn stop(&self) -> &ServerHandle {
        self.drain(Duration::ZERO)
    }

    /// Whether it has ended: no listener, no connections, no threads.
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
