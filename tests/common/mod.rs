//! One source for every scenario: it runs on every engine, real and simulated, with the server in async and in event style.
//!
//! A scenario is an ordinary function of a [`World`]. What is written in it may not know which network it is on: it
//! waits for events, never for luck, and takes its durations from [`World::time`].

#![allow(dead_code, reason = "every test binary uses a part of it")]
#![allow(unused_macros, unused_imports, reason = "every test binary uses a part of it")]
#![allow(
    clippy::print_stderr,
    reason = "a failing seed has to be told, and the harness shows it with the failure"
)]

pub(crate) mod behaviours;
#[cfg(target_os = "linux")]
pub(crate) mod child;
pub(crate) mod outage;
pub(crate) mod proxy_headers;
pub(crate) mod stage;
#[cfg(feature = "tls")]
pub(crate) mod tls;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::{LazyLock, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use wharf::event::{
    Handler, JobQueue, PollQueue, Queue, QueuedHandler, Service, Socket as Outgoing, SocketHandle,
};
use wharf::sim::{Faults, Simulation};
use wharf::{Backend, Client, Connection, Result, Server, ServerHandle, Stats};

/// What a server does with a connection, in both styles.
pub(crate) trait Behaviour: Clone + Send + Sync + 'static {
    type Handler: Handler;

    /// Async style.
    fn run(self, conn: Connection) -> impl Future<Output = Result<()>>;

    /// Event style.
    fn handler(self) -> Self::Handler;
}

/// Turns one function of a [`World`] into six tests.
macro_rules! scenario {
    ($(#[doc = $doc:literal])* fn $name:ident($world:ident) $body:block) => {
        $(#[doc = $doc])*
        mod $name {
            use super::*;

            fn scenario($world: &mut crate::common::World) $body

            #[test]
            fn async_readiness() {
                crate::common::on_readiness(stringify!($name), crate::common::Style::Async, scenario);
            }

            #[test]
            #[cfg_attr(not(target_os = "linux"), ignore = "io_uring is a part of Linux")]
            fn async_uring() {
                crate::common::on_uring(stringify!($name), crate::common::Style::Async, scenario);
            }

            #[test]
            fn event_readiness() {
                crate::common::on_readiness(stringify!($name), crate::common::Style::Event, scenario);
            }

            #[test]
            #[cfg_attr(not(target_os = "linux"), ignore = "io_uring is a part of Linux")]
            fn event_uring() {
                crate::common::on_uring(stringify!($name), crate::common::Style::Event, scenario);
            }

            #[test]
            fn async_simulated() {
                crate::common::on_simulation(stringify!($name), crate::common::Style::Async, scenario);
            }

            #[test]
            fn event_simulated() {
                crate::common::on_simulation(stringify!($name), crate::common::Style::Event, scenario);
            }
        }
    };
    // What makes sense in async style only.
    ($(#[doc = $doc:literal])* async fn $name:ident($world:ident) $body:block) => {
        $(#[doc = $doc])*
        mod $name {
            use super::*;

            fn scenario($world: &mut crate::common::World) $body

            #[test]
            fn async_readiness() {
                crate::common::on_readiness(stringify!($name), crate::common::Style::Async, scenario);
            }

            #[test]
            #[cfg_attr(not(target_os = "linux"), ignore = "io_uring is a part of Linux")]
            fn async_uring() {
                crate::common::on_uring(stringify!($name), crate::common::Style::Async, scenario);
            }

            #[test]
            fn async_simulated() {
                crate::common::on_simulation(stringify!($name), crate::common::Style::Async, scenario);
            }
        }
    };
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Async,
    Event,
}

/// How the bytes of a connection travel.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Plain,
    #[cfg(feature = "tls")]
    Tls,
}

impl Wire {
    /// A server that speaks so.
    pub(crate) fn server(self, server: Server) -> Server {
        match self {
            Wire::Plain => server,
            #[cfg(feature = "tls")]
            Wire::Tls => server.tls(&tls::acceptor()),
        }
    }

    /// A client of the server at `address` that does.
    pub(crate) fn client(self, address: impl std::fmt::Display) -> Client {
        match self {
            Wire::Plain => Client::new(address),
            #[cfg(feature = "tls")]
            Wire::Tls => tls::client(address),
        }
    }

    /// What is counted on it if so many bytes are sent.
    pub(crate) fn is_count_of(self, counted: u64, bytes: usize) -> bool {
        match self {
            Wire::Plain => counted == bytes as u64,
            #[cfg(feature = "tls")]
            Wire::Tls => counted > bytes as u64,
        }
    }
}

/// A network with servers on it.
pub(crate) struct World {
    network: Network,
    style: Style,
    servers: Vec<ServerHandle>,
    /// Carries the clients in event style, if there are any.
    service: Option<Service>,
    /// Those of them whose handlers run on the queue.
    outgoing: Vec<Outgoing>,
    /// Runs what is on a queue, if anything is.
    queue: Option<Running>,
    began: Instant,
    /// The unit of [`World::time`].
    unit: Duration,
    /// Whether the scenario has asked for time.
    is_timed: Rc<Cell<bool>>,
}

/// Where handlers run that are on a queue: a thread, or, so that all follows from the seed, between the steps of a simulation.
enum Running {
    Thread(JobQueue),
    Between(PollQueue),
}

impl Running {
    /// Runs what has come, and what comes of that. A thread does by itself.
    fn poll(running: Option<&Running>) -> bool {
        let Some(Running::Between(queue)) = running else { return false };
        let mut any = false;
        while queue.run_pending(usize::MAX) > 0 {
            any = true;
        }
        any
    }
}

enum Network {
    Real(Backend),
    Simulated { simulation: Box<Simulation>, seed: u64 },
}

/// No scenario takes that long on real sockets.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a unit of [`World::time`] is on real sockets: short, for most machines are quick; and what it is the second time, if the
/// first was too short for a machine that has other things to do as well.
const UNITS: [Duration; 2] = [Duration::from_millis(30), Duration::from_millis(300)];
/// Where servers listen on real sockets whose port is to be free when they have closed it: not where the system connects from, or a
/// client might take it.
pub(crate) const HOST: &str = if cfg!(target_os = "linux") { "127.77.0.1" } else { "127.0.0.1" };
/// Seeds for each preset of faults.
const SEEDS: u64 = 3;

pub(crate) fn on_readiness(name: &str, style: Style, scenario: impl Fn(&mut World)) {
    on_real(Backend::Readiness, name, style, scenario);
}

/// Skipped, and not silently, where io_uring does not work.
pub(crate) fn on_uring(name: &str, style: Style, scenario: impl Fn(&mut World)) {
    if works(Backend::Uring, name) {
        on_real(Backend::Uring, name, style, scenario);
    }
}

/// The engines of this machine on which the test `name` can run.
pub(crate) fn backends(name: &str) -> Vec<Backend> {
    let mut backends = vec![Backend::Readiness];
    if cfg!(target_os = "linux") && works(Backend::Uring, name) {
        backends.push(Backend::Uring);
    }
    backends
}

/// Whether a test can run on an engine. If not, says that it is skipped, and why; or fails, where that was asked for.
pub(crate) fn works(backend: Backend, name: &str) -> bool {
    static REFUSAL: LazyLock<Option<String>> =
        LazyLock::new(|| wharf::probe().uring.err().map(|refusal| refusal.to_string()));
    let Some(refusal) = REFUSAL.as_ref().filter(|_| backend == Backend::Uring) else { return true };
    assert!(!is_uring_required(), "{name}: WHARF_REQUIRE_URING is set, and {refusal}");
    // Straight to the descriptor, for the test harness swallows what is printed; and in one piece.
    let line = format!("\n*** SKIPPED: {name} on io_uring: {refusal} ***\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}

fn is_uring_required() -> bool {
    std::env::var("WHARF_REQUIRE_URING").is_ok_and(|value| value == "1")
}

/// A scenario that sets deadlines in real time fails also where the machine stands still for longer than a deadline. So what fails
/// has to fail again with ten times as much time; what does not measure time has no such excuse. Nothing tells the one from the other
/// for certain, so what failed is told in any case, and with `WHARF_ONCE=1` once is enough.
fn on_real(backend: Backend, name: &str, style: Style, scenario: impl Fn(&mut World)) {
    let play = |unit| {
        let _watchdog = Watchdog::new(name);
        let is_timed = Rc::<Cell<bool>>::default();
        let timed = is_timed.clone();
        let played = catch_unwind(AssertUnwindSafe(|| {
            let mut world = World::new(Network::Real(backend), style);
            (world.unit, world.is_timed) = (unit, timed);
            scenario(&mut world);
            world.finish();
        }));
        played.map_err(|panic| (panic, is_timed.get()))
    };
    match play(UNITS[0]) {
        Err((panic, true)) if !is_once_enough() => {
            let why = said(&*panic);
            let line = format!("\n*** AGAIN, with more time: {name} ({style:?}, {backend}): {why} ***\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
            play(UNITS[1]).unwrap_or_else(|(panic, _)| resume_unwind(panic));
        }
        outcome => outcome.unwrap_or_else(|(panic, _)| resume_unwind(panic)),
    }
}

fn is_once_enough() -> bool {
    std::env::var("WHARF_ONCE").is_ok_and(|value| value == "1")
}

/// What a panic has said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it has panicked")
}

pub(crate) fn on_simulation(name: &str, style: Style, scenario: impl Fn(&mut World)) {
    let presets = [("default", Faults::default()), ("none", Faults::none()), ("harsh", Faults::harsh())];
    for (preset, faults) in presets {
        for seed in seeds(SEEDS) {
            let run = || {
                let simulation = Box::new(Simulation::with_faults(seed, faults.clone()));
                let network = Network::Simulated { simulation, seed };
                let mut world = World::new(network, style);
                scenario(&mut world);
                world.finish();
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                eprintln!("{name} ({style:?}) failed with seed {seed}, faults {preset}");
                resume_unwind(panic);
            }
        }
    }
}

/// The seeds to try: so many from 0, `WHARF_SEEDS` times as many, or only the one that `WHARF_SEED` names.
pub(crate) fn seeds(count: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("WHARF_SEED") {
        Some(seed) => vec![seed],
        None => (0..count * number("WHARF_SEEDS").unwrap_or(1)).collect(),
    }
}

impl World {
    fn new(network: Network, style: Style) -> World {
        World {
            network,
            style,
            servers: Vec::new(),
            service: None,
            outgoing: Vec::new(),
            queue: None,
            began: Instant::now(),
            unit: UNITS[0],
            is_timed: Rc::default(),
        }
    }

    pub(crate) fn style(&self) -> Style {
        self.style
    }

    pub(crate) fn is_simulated(&self) -> bool {
        matches!(self.network, Network::Simulated { .. })
    }

    /// What random choices of a scenario should follow from.
    pub(crate) fn seed(&self) -> u64 {
        match self.network {
            Network::Real(_) => 0,
            Network::Simulated { seed, .. } => seed,
        }
    }

    /// `units` of time that this world can afford: seconds if time is virtual, and else tens of milliseconds.
    pub(crate) fn time(&self, units: f64) -> Duration {
        self.is_timed.set(true);
        self.untimed(units)
    }

    /// The same, for what is right however late anybody is: a scenario with nothing else is not tried again.
    pub(crate) fn untimed(&self, units: f64) -> Duration {
        match self.network {
            Network::Real(_) => self.unit.mul_f64(units),
            Network::Simulated { .. } => Duration::from_secs(1).mul_f64(units),
        }
    }

    /// The time since the beginning.
    pub(crate) fn now(&self) -> Duration {
        match &self.network {
            Network::Real(_) => self.began.elapsed(),
            Network::Simulated { simulation, .. } => simulation.now(),
        }
    }

    /// Starts a server with default options.
    pub(crate) fn serve(&mut self, behaviour: impl Behaviour) -> ServerHandle {
        self.serve_with(behaviour, |server| server)
    }

    /// Starts a server with the options that `configure` sets.
    pub(crate) fn serve_with(
        &mut self,
        behaviour: impl Behaviour,
        configure: impl FnOnce(Server) -> Server,
    ) -> ServerHandle {
        if self.style == Style::Async {
            return self.serve_async(configure, move |conn| behaviour.clone().run(conn));
        }
        self.serve_events(configure, move || behaviour.clone().handler())
    }

    /// Starts a server in event style, whatever the style of the world.
    pub(crate) fn serve_events<H: Handler>(
        &mut self,
        configure: impl FnOnce(Server) -> Server,
        make: impl Fn() -> H + Send + Sync + 'static,
    ) -> ServerHandle {
        let server = configure(self.server());
        let started = match &mut self.network {
            Network::Real(_) => server.start_events(make),
            Network::Simulated { simulation, .. } => simulation.serve_events(server, make),
        };
        self.started(started)
    }

    /// Starts a server whose handlers run on the queue.
    pub(crate) fn serve_queued<H: QueuedHandler>(
        &mut self,
        configure: impl FnOnce(Server) -> Server,
        make: impl Fn(&SocketHandle) -> H + Send + Sync + 'static,
    ) -> ServerHandle {
        let (server, queue) = (configure(self.server()), self.queue());
        let started = match &mut self.network {
            Network::Real(_) => server.start_queued(&queue, make),
            Network::Simulated { simulation, .. } => simulation.serve_queued(server, &queue, make),
        };
        self.started(started)
    }

    fn queue(&mut self) -> Queue {
        let running = self.queue.get_or_insert_with(|| match &self.network {
            Network::Real(_) => {
                Running::Thread(JobQueue::new("handlers").expect("a thread for the handlers"))
            }
            Network::Simulated { .. } => {
                Running::Between(PollQueue::new().expect("a queue for the handlers"))
            }
        });
        match running {
            Running::Thread(queue) => queue.queue(),
            Running::Between(queue) => queue.queue(),
        }
    }

    /// Starts a server in async style, whatever the style of the world.
    pub(crate) fn serve_async<F>(
        &mut self,
        configure: impl FnOnce(Server) -> Server,
        handler: impl Fn(Connection) -> F + Send + Sync + 'static,
    ) -> ServerHandle
    where
        F: Future<Output = Result<()>> + 'static,
    {
        let server = configure(self.server());
        let started = match &mut self.network {
            Network::Real(_) => server.start(handler),
            Network::Simulated { simulation, .. } => simulation.serve(server, handler),
        };
        self.started(started)
    }

    fn server(&self) -> Server {
        match &self.network {
            Network::Real(backend) => Server::bind(format!("{HOST}:0")).workers(2).backend(*backend),
            // One worker or two, as the seed has it.
            Network::Simulated { seed, .. } => Server::bind("10.0.0.1:0").workers(1 + (*seed as usize) % 2),
        }
    }

    fn started(&mut self, started: Result<ServerHandle>) -> ServerHandle {
        let handle = started.expect("the server starts");
        self.servers.push(handle.clone());
        handle
    }

    /// Has a client connect in event style; it goes on beside the scenario.
    pub(crate) fn connect_events(&mut self, client: &Client, handler: impl Handler + Send) {
        self.service().connect(client, handler).expect("the service takes it");
    }

    /// Has a client connect whose handler runs on the queue.
    pub(crate) fn connect_queued(&mut self, client: &Client, handler: impl QueuedHandler) {
        let queue = self.queue();
        let socket = self.service().socket(client, &queue, handler);
        socket.connect().expect("the service takes it");
        self.outgoing.push(socket);
    }

    fn service(&mut self) -> &Service {
        self.service.get_or_insert_with(|| match &mut self.network {
            Network::Real(backend) => {
                let service = Service::new().backend(*backend);
                service.start().expect("a worker for the clients");
                service
            }
            Network::Simulated { simulation, .. } => simulation.service("10.0.0.2"),
        })
    }

    /// Runs a client to its end.
    pub(crate) fn run<T: 'static>(&mut self, client: impl Future<Output = T> + 'static) -> T {
        match &mut self.network {
            Network::Real(backend) => wharf::run_on(*backend, client).expect("a worker for the client"),
            Network::Simulated { simulation, .. } => {
                let ended = Rc::new(RefCell::new(false));
                let end = Ended(ended.clone());
                let outcome = simulation.client("10.0.0.2", async move {
                    let _end = end;
                    client.await
                });
                let done = simulation.run_until(|| *ended.borrow());
                assert!(done, "the client waits for what will never come: {:#?}", simulation.trace());
                outcome.take().expect("the client has panicked; see above")
            }
        }
    }

    /// Starts a client, which goes on beside the scenario; the scenario waits for what it does by [`World::wait_until`].
    pub(crate) fn start<F>(&mut self, client: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        match &mut self.network {
            Network::Real(backend) => {
                let backend = *backend;
                thread::spawn(move || wharf::run_on(backend, client()).expect("a worker for the client"));
            }
            Network::Simulated { simulation, .. } => {
                simulation.client("10.0.0.2", client());
            }
        }
    }

    /// Has so much time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        match &mut self.network {
            Network::Real(_) => thread::sleep(time),
            Network::Simulated { simulation, .. } => {
                // In pieces: what is on the queue has its turn in between.
                let pieces = if self.queue.is_some() { 64 } else { 1 };
                for _ in 0..pieces {
                    simulation.run_for(time / pieces);
                    Running::poll(self.queue.as_ref());
                }
            }
        }
    }

    /// An address at which a connect is answered neither by yes nor by no.
    pub(crate) fn nobody(&mut self) -> Nobody {
        match &mut self.network {
            Network::Real(_) => Nobody::with_a_full_backlog(),
            Network::Simulated { simulation, .. } => Nobody::simulated(simulation),
        }
    }

    /// Waits until `done`; fails after a long time, or when nothing can happen any more.
    pub(crate) fn wait_until(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        match &mut self.network {
            Network::Real(_) => {
                let began = Instant::now();
                while !done() {
                    assert!(began.elapsed() < PATIENCE / 2, "still not so: {what}");
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Network::Simulated { simulation, .. } => {
                let queue = self.queue.as_ref();
                let done = || {
                    Running::poll(queue);
                    done()
                };
                assert!(simulation.run_until(done), "it will never be so: {what}");
            }
        }
    }

    /// Stops every server in order and looks at what is left: nothing.
    pub(crate) fn finish(&mut self) {
        for server in std::mem::take(&mut self.servers) {
            self.stop(&server);
        }
        self.outgoing.clear();
        let service = self.service.take();
        if let Some(service) = &service {
            service.stop();
        }
        if let Network::Simulated { simulation, .. } = &mut self.network {
            settle(simulation, self.queue.as_ref());
            simulation.run();
            assert_eq!(simulation.open_sockets(), 0, "sockets are left open");
        } else if let Some(service) = service {
            service.stop_and_wait().expect("the service ends");
        }
    }

    /// Stops a server in order and tells what it did.
    pub(crate) fn stop(&mut self, server: &ServerHandle) -> Stats {
        server.drain(Duration::from_secs(10));
        if let Network::Simulated { simulation, .. } = &mut self.network {
            settle(simulation, self.queue.as_ref());
            simulation.run();
        }
        self.servers.retain(|each| each.local_addr() != server.local_addr());
        let stats = server.wait().expect("the server ends");
        assert_eq!(server.connections(), 0, "a stopped server has no connections");
        let closed: u64 = stats.closes.iter().map(|(_, count)| count).sum();
        assert_eq!(closed, stats.accepted, "every connection has exactly one reason: {stats:?}");
        stats
    }
}

/// Lets happen whatever happens, on the queue too.
fn settle(simulation: &mut Simulation, queue: Option<&Running>) {
    if queue.is_some() {
        simulation.run_until(|| {
            Running::poll(queue);
            false
        });
    }
}

/// Where nobody answers, as long as this is there.
pub(crate) struct Nobody {
    address: SocketAddr,
    _backlog: Vec<TcpStream>,
    _listener: Option<Socket>,
}

impl Nobody {
    /// Nobody accepts, and the system has no room for one more who waits: it answers no further SYN (listen(2), tcp(7)).
    fn with_a_full_backlog() -> Nobody {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&local.into()).expect("a free port");
        listener.listen(0).expect("it listens");
        let address =
            listener.local_addr().ok().and_then(|address| address.as_socket()).expect("its address");
        // One that comes too late may be this thread's, which had to wait for a processor.
        let try_once = || TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok();
        let knock = || try_once().or_else(try_once).or_else(try_once);
        let backlog = std::iter::from_fn(knock).take(64).collect::<Vec<_>>();
        assert!(backlog.len() < 64, "a backlog of none has an end");
        Nobody { address, _backlog: backlog, _listener: Some(listener) }
    }

    fn simulated(simulation: &mut Simulation) -> Nobody {
        let address = SocketAddr::from(([10, 0, 0, 3], 7788));
        simulation.blackhole(address.ip());
        Nobody { address, _backlog: Vec::new(), _listener: None }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Allows this process as many descriptors as it may have.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .expect("it is within its maximum");
}

/// Tells that a client is over, also when it panics.
struct Ended(Rc<RefCell<bool>>);

impl Drop for Ended {
    fn drop(&mut self) {
        *self.0.borrow_mut() = true;
    }
}

/// Waits until `done`; fails after a long time.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..15_000 {
        if done() {
            return;
        }
        wharf::sleep(Duration::from_millis(2)).await;
    }
    panic!("still not so: {what}");
}

/// Ends the whole test binary when one test hangs: a hanging test cannot be ended otherwise.
pub(crate) struct Watchdog {
    _done: mpsc::Sender<()>,
}

impl Watchdog {
    pub(crate) fn new(name: &str) -> Watchdog {
        Watchdog::patient(name, PATIENCE)
    }

    /// One for a test that may take so long.
    pub(crate) fn patient(name: &str, patience: Duration) -> Watchdog {
        let (done, ended) = mpsc::channel();
        let name = name.to_owned();
        thread::spawn(move || {
            if ended.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                // Straight to the descriptor: the test harness swallows what is printed.
                let _ = writeln!(std::io::stderr(), "{name} hangs");
                std::process::abort();
            }
        });
        Watchdog { _done: done }
    }
}

/// Bytes that betray any loss, repetition or change of order.
pub(crate) fn pattern(range: std::ops::Range<usize>) -> Vec<u8> {
    with_pattern(range, <[u8]>::to_vec)
}

/// Looks at bytes of the pattern. Its beginning is kept, for making it takes longer than sending it in a build that is not optimized.
fn with_pattern<T>(range: std::ops::Range<usize>, look: impl FnOnce(&[u8]) -> T) -> T {
    const KEPT_MAX: usize = 32 << 20;
    static KEPT: RwLock<Vec<u8>> = RwLock::new(Vec::new());
    if range.is_empty() || range.end > KEPT_MAX {
        return look(&range.map(pattern_at).collect::<Vec<_>>());
    }
    if KEPT.read().expect("nobody panics with it").len() < range.end {
        let mut kept = KEPT.write().expect("nobody panics with it");
        let missing = kept.len()..range.end.next_power_of_two().max(1 << 16);
        kept.extend(missing.map(pattern_at));
    }
    let kept = KEPT.read().expect("nobody panics with it");
    look(&kept[range])
}

/// The byte of the pattern at `index`.
pub(crate) fn pattern_at(index: usize) -> u8 {
    let mixed = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

/// Asserts that `bytes` are the pattern's from `offset` on, without printing megabytes.
pub(crate) fn assert_pattern(bytes: &[u8], offset: usize) {
    if with_pattern(offset..offset + bytes.len(), |expected| bytes == expected) {
        return;
    }
    if let Some(wrong) = bytes.iter().enumerate().position(|(i, byte)| *byte != pattern_at(offset + i)) {
        panic!("byte {} of the stream is wrong", offset + wrong);
    }
}

/// Receives until the peer's end.
pub(crate) async fn recv_all(conn: &mut Connection) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(chunk) = conn.recv_chunk().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}
