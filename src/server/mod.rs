//! Servers: starting them, watching them, and stopping them in order.

mod admission;
mod counters;
mod descriptors;
mod ending;
mod handle;
mod handover;
mod holdings;
mod hooks;
mod listen;
mod notices;
mod passed;
mod reception;
mod registry;
mod snapshot;
mod state;
mod stats;
mod styles;
mod suspension;
mod threads;
mod watchdog;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

pub(crate) use admission::{Desk, Seat, Turnstile, Verdict};
pub use handle::{ListenerInfo, ServerHandle};
pub use hooks::ServerEvent;
pub(crate) use hooks::{Hooks, panic_message};
pub use listen::Listen;
pub(crate) use listen::{Opened, SocketFile};
pub(crate) use reception::Admission;
pub(crate) use registry::Reply;
pub use registry::{ConnectionInfo, Listing, Whom};
pub use snapshot::{Phase, Snapshot};
pub(crate) use state::ServerState;
pub use stats::{DrainReport, Stats};
pub(crate) use styles::{async_style, event_style, queued_style};

use handover::Heritage;
use holdings::ListenerState;
use state::Founding;

use crate::config::{Access, Backend, Deadlines, Handover, Limits, ProxyProtocol, SocketOptions};
use crate::connection::Connection;
use crate::engine::{Engine, Listener};
use crate::error::{Cause, Error, Operation, Result};
use crate::event::{Handler, Queue, QueuedHandler, SocketHandle};
#[cfg(feature = "tls")]
use crate::tls::Acceptor;
use crate::worker::Worker;
use crate::worker::member::{Attach, Member};

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
    listen: Vec<Listen>,
    proxies: Option<ProxyProtocol>,
    #[cfg(feature = "tls")]
    acceptor: Option<Acceptor>,
    access: Access,
    limits: Limits,
    deadlines: Deadlines,
    sockets: SocketOptions,
    backend: Backend,
    spin: Duration,
    workers: Option<usize>,
    handover: Option<Handover>,
    notifies: bool,
    hooks: Hooks,
    watchdog: Watchdog,
    #[cfg(feature = "tokio")]
    tokio: Option<::tokio::runtime::Handle>,
}

/// Whether a server has a watchdog, and how patient it is.
#[derive(Copy, Clone, Debug)]
enum Watchdog {
    Asked(Option<Duration>),
    /// Unless something was asked for.
    Unless(Duration),
}

const WATCHDOG: Duration = Duration::from_secs(1);
const WATCHDOG_MIN: Duration = Duration::from_millis(10);
/// More than anybody has use for, and few enough for a byte.
const LISTENERS_MAX: usize = 64;
/// Nobody gains anything by spinning longer.
const SPIN_MAX: Duration = Duration::from_millis(10);

impl Server {
    /// Describes a server that will listen on `address`: `1.2.3.4:port`, `[v6]:port`, `name:port`, or whatever else
    /// [`Listen::at`] reads.
    ///
    /// Port 0 takes a free port, which [`ServerHandle::local_addr`] tells. `[::]` takes IPv4 too. Nothing happens until
    /// the server starts, so a bad address is an error of [`Server::start`].
    pub fn bind(address: impl fmt::Display) -> Server {
        Server::on(Listen::at(address))
    }

    /// Describes a server with this listener.
    ///
    /// ```
    /// use wharf::{Connection, Server};
    ///
    /// let inherited = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let server = Server::on(inherited).start(|_: Connection| async { Ok(()) })?;
    /// # server.stop().wait()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on(listen: impl Into<Listen>) -> Server {
        Server {
            listen: vec![listen.into()],
            proxies: None,
            #[cfg(feature = "tls")]
            acceptor: None,
            access: Access::default(),
            limits: Limits::default(),
            deadlines: Deadlines::default(),
            sockets: SocketOptions::default(),
            backend: Backend::Auto,
            spin: Duration::ZERO,
            workers: None,
            handover: None,
            notifies: false,
            hooks: Hooks::default(),
            watchdog: Watchdog::Unless(WATCHDOG),
            #[cfg(feature = "tokio")]
            tokio: None,
        }
    }

    /// Adds a listener; [`Connection::listener`] tells a handler through which it was reached. At most 64.
    pub fn listen(mut self, listen: impl Into<Listen>) -> Server {
        self.listen.push(listen.into());
        self
    }

    /// Sets that connections come through proxies, which tell whom they speak for in a header (the PROXY protocol), on all
    /// listeners that are not told otherwise ([`Listen::proxy_protocol`]). Default: they come straight from their peers.
    pub fn proxy_protocol(mut self, proxies: ProxyProtocol) -> Server {
        self.proxies = Some(proxies);
        self
    }

    /// Has connections begin with TLS, on all listeners that are not told otherwise ([`Listen::tls`], [`Listen::plain`]), and
    /// those that are [adopted](ServerHandle::adopt). Default: they are plain.
    ///
    /// The handler begins when the handshake is over, which has a deadline
    /// ([`ServerTls::handshake_within`](crate::tls::ServerTls::handshake_within)). The acceptor stays in your hands: what it is
    /// told later holds for the connections that come then.
    ///
    /// ```no_run
    /// use wharf::tls::{Acceptor, Identity, ServerTls};
    /// # use wharf::{Connection, Server};
    /// # async fn serve(conn: Connection) -> wharf::Result<()> { drop(conn); Ok(()) }
    ///
    /// let acceptor = Acceptor::new(ServerTls::new(Identity::from_files("chain.pem", "key.pem")?))?;
    /// let server = Server::bind("0.0.0.0:7789").tls(&acceptor).start(serve)?;
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    #[cfg(feature = "tls")]
    pub fn tls(mut self, acceptor: &Acceptor) -> Server {
        self.acceptor = Some(acceptor.clone());
        self
    }

    /// Sets which networks may connect. Default: all.
    pub fn access(mut self, access: Access) -> Server {
        self.access = access;
        self
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

    /// Has every worker thread in the context of a tokio runtime for as long as it serves, so that handlers can use what lives on
    /// tokio: its timers and sockets, `tokio::spawn`, database and HTTP clients. Default: none.
    ///
    /// The runtime stays the caller's, who keeps it until the server has ended. It has to be driven by threads of its own, as a
    /// multi-threaded one is; these turn its sockets and timers, and wake the worker.
    ///
    /// ```
    /// use std::time::Duration;
    /// use wharf::{Connection, Server};
    ///
    /// let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    /// let server = Server::bind("127.0.0.1:0").tokio(runtime.handle().clone());
    /// let server = server.start(|mut conn: Connection| async move {
    ///     tokio::time::sleep(Duration::from_millis(5)).await;
    ///     conn.send(b"good morning").await
    /// })?;
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    #[cfg(feature = "tokio")]
    pub fn tokio(mut self, handle: ::tokio::runtime::Handle) -> Server {
        self.tokio = Some(handle);
        self
    }

    /// Has it take its listeners from the process that it replaces, and hand them to the one that replaces it. Default: it
    /// does neither.
    ///
    /// Starting is an error if there is a predecessor that does not answer in time, or makes no sense.
    pub fn handover(mut self, handover: Handover) -> Server {
        self.handover = Some(handover);
        self
    }

    /// Has the service manager told when it serves (`READY=1`, once all workers do) and when it stops accepting for good
    /// (`STOPPING=1`), see [`systemd`](crate::systemd). Default: nobody is told.
    ///
    /// Nothing happens where no manager asks for it (`NOTIFY_SOCKET` is not set). When the server is
    /// [handed over](Server::handover), both processes tell which is the main one from now on (`MAINPID=`); for a unit that is
    /// replaced that way, `NotifyAccess=all` lets the manager believe the new one.
    pub fn notify_systemd(mut self) -> Server {
        self.notifies = true;
        self
    }

    /// Has `watcher` called for what happens to the server: connections let in, refused and closed, panics, trouble with
    /// accepting.
    ///
    /// It is called on the worker where it happens, between messages: it must not block. A panic in it is caught.
    pub fn watch(mut self, watcher: impl Fn(&ServerEvent<'_>) + Send + Sync + 'static) -> Server {
        self.hooks.set_watcher(watcher);
        self
    }

    /// Sets for how long a handler may keep its worker before that is reported, with [`ServerEvent::WorkerBlocked`] at the
    /// time and [`ServerEvent::HandlerBlocked`] when it returns; `None` turns the watchdog off. Default: 1 s.
    ///
    /// New connections avoid a worker that is blocked. The watchdog is a thread that looks twice in that time; a server
    /// with one worker on the calling thread ([`Server::run`]) has none unless this is called.
    pub fn watchdog(mut self, limit: impl Into<Option<Duration>>) -> Server {
        self.watchdog = Watchdog::Asked(limit.into());
        self
    }

    /// Has `on_exit` called when the server has ended: exactly once, after the last connection and before
    /// [`ServerHandle::wait`] returns. If it does not start, it is not called.
    ///
    /// It is called on the last worker to end. A panic in it is caught.
    pub fn on_exit(mut self, on_exit: impl FnOnce(&Stats) + Send + 'static) -> Server {
        self.hooks.set_on_exit(on_exit);
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

    /// Starts serving in event style, with handlers that run on `queue`: `make` is called there for each connection, and the handler
    /// that it returns gets the connection's events.
    ///
    /// The same holds as for a [`Socket`](crate::event::Socket): calls are in order and never two at once, a slow queue makes peers
    /// wait, and [`SocketHandle`]s send, receive and close from any thread. The first state told is
    /// [`Connected`](crate::event::State::Connected); the last call is the state that tells the end, and then the handler is
    /// dropped. A queue that ends closes its connections. Nobody owns a connection, unless somebody asks for that
    /// ([`SocketHandle::own`]): a handle that is dropped closes nothing.
    ///
    /// As many connections as [`Limits::connections`] allows may have ended without the queue having told their handlers, beside
    /// those that stand. If it is farther behind, new ones are reset, for [`Rule::Connections`](crate::Rule::Connections). The end of the server does not wait for
    /// the queue.
    ///
    /// # Errors
    /// As for [`Server::start`].
    ///
    /// ```
    /// use bytes::Bytes;
    /// use wharf::Server;
    /// use wharf::event::{Flow, JobQueue, QueuedHandler, SocketHandle};
    ///
    /// struct Echo;
    ///
    /// impl QueuedHandler for Echo {
    ///     fn received(&mut self, socket: &SocketHandle, bytes: Bytes) -> Flow {
    ///         match socket.send(bytes) {
    ///             Ok(()) => Flow::Continue,
    ///             Err(_) => Flow::Close,
    ///         }
    ///     }
    /// }
    ///
    /// let game = JobQueue::new("game")?;
    /// let server = Server::bind("127.0.0.1:0").start_queued(&game.queue(), |_socket| Echo)?;
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn start_queued<F, H>(self, queue: &Queue, make: F) -> Result<ServerHandle>
    where
        F: Fn(&SocketHandle) -> H + Send + Sync + 'static,
        H: QueuedHandler,
    {
        self.launch(&queued_style(queue, make))
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
        let (state, listeners, heritage) = self.prepare()?;
        threads::start(&self, &state, attach, listeners)?;
        if let Err(error) = self.enter(&state, heritage, true) {
            state.start_failed.store(true, Ordering::SeqCst);
            drop(ServerHandle { state }.stop().wait());
            return Err(error);
        }
        tell_of_start(&state);
        Ok(ServerHandle { state })
    }

    fn launch_here(mut self, attach: &Attach, started: impl FnOnce(&ServerHandle)) -> Result<Stats> {
        if crate::worker::with_current(|_| ()).is_some() {
            let nested = "this thread runs a worker already; use `start` here";
            return Err(Error::new(Operation::Run, Cause::Misuse(nested)));
        }
        let (state, listeners, heritage) = self.prepare()?;
        let handle = ServerHandle { state };
        let mut entered = Ok(());
        threads::run(&self, &handle.state, attach, listeners, || {
            entered = self.enter(&handle.state, heritage, self.worker_count() > 1);
            if entered.is_err() {
                handle.state.start_failed.store(true, Ordering::SeqCst);
                handle.stop();
                return;
            }
            tell_of_start(&handle.state);
            started(&handle);
        })?;
        entered?;
        handle.wait()
    }

    /// Does what is left to do when all workers turn. `threads` tells whether the server has threads anyway.
    fn enter(&self, state: &Arc<ServerState>, heritage: Option<Heritage>, threads: bool) -> Result<()> {
        self.watch_workers(state, threads)?;
        let inherited = heritage.as_ref().is_some_and(Heritage::is_inherited);
        heritage.map_or(Ok(()), |heritage| heritage.enter(state))?;
        state.notify_of_start(inherited);
        Ok(())
    }

    /// Starts the watchdog, if there is to be one. `threads` tells whether the server has threads anyway.
    fn watch_workers(&self, state: &Arc<ServerState>, threads: bool) -> Result<()> {
        let limit = match self.watchdog {
            Watchdog::Asked(limit) => limit,
            Watchdog::Unless(limit) => threads.then_some(limit),
        };
        limit.map_or(Ok(()), |limit| watchdog::watch(state, limit))
    }

    /// Does everything that can fail before there are threads.
    fn prepare(&mut self) -> Result<(Arc<ServerState>, Vec<Listener>, Option<Heritage>)> {
        let plan = self.plan()?;
        self.backend = self.backend.chosen()?;
        self.find_passed()?;
        let mut heritage = self.handover.as_ref().map(Heritage::claim).transpose()?;
        let (mut all, mut states) = (Vec::new(), Vec::new());
        for listen in &self.listen {
            let opened = listen.open(&self.sockets, None, heritage.as_mut())?;
            states.push(ListenerState::new(listen.clone(), opened.address.clone(), opened.taken));
            all.push(opened);
        }
        let inherited = heritage.as_ref().is_some_and(Heritage::is_inherited);
        let state = self.found(&plan, states, inherited, false);
        let held = all.into_iter().enumerate().map(|(index, opened)| state.hold(index, opened));
        let listeners =
            held.collect::<io::Result<_>>().map_err(|error| Error::os(Operation::Listen, error))?;
        Ok((state, listeners, heritage))
    }

    /// Replaces `systemd` and the like by the sockets that these stand for.
    fn find_passed(&mut self) -> Result<()> {
        let found = self.listen.iter().map(Listen::passed).collect::<Result<Vec<_>>>()?;
        self.listen = found.into_iter().flatten().collect();
        self.check_listeners()
    }

    fn check_listeners(&self) -> Result<()> {
        if self.listen.len() > LISTENERS_MAX {
            return Err(Error::option("listen", format!("must be at most {LISTENERS_MAX} listeners")));
        }
        Ok(())
    }

    fn found(
        &self,
        plan: &Plan,
        listeners: Vec<ListenerState>,
        door_is_held: bool,
        simulated: bool,
    ) -> Arc<ServerState> {
        ServerState::new(Founding {
            listeners,
            proxies: self.proxies.clone(),
            #[cfg(feature = "tls")]
            acceptor: self.acceptor.clone(),
            sockets: self.sockets.clone(),
            access: self.access.clone(),
            limits: self.limits.clone(),
            deadlines: self.deadlines.clone(),
            connections_max: plan.connections,
            workers: plan.workers,
            simulated,
            keeps_copies: self.handover.is_some(),
            notifies: self.notifies && !simulated,
            door_is_held,
            hooks: self.hooks.clone(),
        })
    }

    /// Starts the server's workers on a simulated network; its driver turns them.
    pub(crate) fn launch_simulated(
        self,
        attach: &Attach,
        engines: Vec<Engine>,
        listeners: Vec<(Listener, SocketAddr)>,
    ) -> Result<(ServerHandle, Vec<Rc<Worker>>)> {
        let plan = self.plan()?;
        if self.handover.is_some() {
            return Err(Error::option("handover", "is not there on a simulated network"));
        }
        #[cfg(feature = "tokio")]
        if self.tokio.is_some() {
            return Err(Error::option(
                "tokio",
                "is not there on a simulated network: its time is not virtual",
            ));
        }
        let (listeners, addresses): (Vec<_>, Vec<_>) = listeners.into_iter().unzip();
        let states = self.listen.iter().zip(addresses);
        let states =
            states.map(|(listen, address)| ListenerState::new(listen.clone(), address.into(), false));
        let state = self.found(&plan, states.collect(), false, true);
        let workers: Vec<_> = engines.into_iter().map(Worker::new).collect();
        state.set_posts(workers.iter().map(|worker| worker.post.clone()).collect());
        let mut listeners = Some(listeners);
        for (index, worker) in workers.iter().enumerate() {
            self.join(worker, index, &state, attach, listeners.take().unwrap_or_default())?;
        }
        Ok((ServerHandle { state }, workers))
    }

    /// Sets the number of workers, if it was not set.
    pub(crate) fn workers_by_default(mut self, workers: usize) -> Server {
        self.workers.get_or_insert(workers);
        self
    }

    /// Where it is to listen, as written.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.listen.iter().map(Listen::text).collect()
    }

    pub(crate) fn worker_count(&self) -> usize {
        self.workers.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
    }

    /// Makes one of the server's workers, on its own thread.
    fn make_worker(
        &self,
        index: usize,
        state: &Arc<ServerState>,
        attach: &Attach,
        listeners: Vec<Listener>,
    ) -> Result<(Rc<Worker>, Rc<Member>)> {
        let engine =
            Engine::new(self.backend).map_err(|refusal| Error::os(Operation::Start, refusal.into()))?;
        state.note_backend(index, &engine);
        let worker = Worker::new(engine);
        worker.spin_before_sleep(self.spin);
        let member = self.join(&worker, index, state, attach, listeners)?;
        Ok((worker, member))
    }

    /// Makes a worker a member of the server.
    fn join(
        &self,
        worker: &Worker,
        index: usize,
        state: &Arc<ServerState>,
        attach: &Attach,
        listeners: Vec<Listener>,
    ) -> Result<Rc<Member>> {
        worker.index.set(index as u16);
        worker.watch(state.pulses[index].clone());
        worker.budget.get_or_init(|| state.memory.clone());
        let profile = worker.profile(&self.limits, &self.deadlines);
        let member = Member::new(state.clone(), index, profile, attach.clone());
        *worker.member.borrow_mut() = Some(member.clone());
        member.listen(worker, listeners).map_err(|error| Error::os(Operation::Listen, error))?;
        Ok(member)
    }

    /// Checks every option; what is left open is decided here.
    fn plan(&self) -> Result<Plan> {
        self.limits.validate()?;
        self.deadlines.validate()?;
        self.sockets.validate()?;
        self.listen.iter().try_for_each(Listen::validate)?;
        self.proxies.as_ref().map_or(Ok(()), ProxyProtocol::validate)?;
        self.handover.as_ref().map_or(Ok(()), Handover::validate)?;
        if matches!(self.watchdog, Watchdog::Asked(Some(limit)) if limit < WATCHDOG_MIN) {
            return Err(Error::option("watchdog", "must be at least 10 ms; None turns it off"));
        }
        self.check_listeners()?;
        if self.spin > SPIN_MAX {
            return Err(Error::option("spin", "must be at most 10 ms"));
        }
        let workers = self.worker_count();
        if !(1..=1024).contains(&workers) {
            return Err(Error::option("workers", format!("must be between 1 and 1024, not {workers}")));
        }
        let connections = self.limits.connections.unwrap_or_else(|| descriptors::for_connections(workers));
        Ok(Plan { workers, connections })
    }
}

fn tell_of_start(state: &ServerState) {
    event!(info, listeners = ?state.addresses(), workers = state.workers(), backends = ?state.backends(),
        connections_max = state.connections_max(), "listening");
    let _ = state;
}

#[derive(Copy, Clone)]
struct Plan {
    workers: usize,
    connections: usize,
}
