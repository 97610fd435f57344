//! A whole server and its clients in one thread, on a simulated network with virtual time.
//!
//! Everything that happens, faults included, follows from one seed: the same seed gives the same trace. Handlers are
//! the same as on a real network, as long as they ask only Wharf for time and connections.
//!
//! ```
//! use std::time::Duration;
//! use wharf::sim::Simulation;
//! use wharf::{Client, Connection, Server};
//!
//! let mut sim = Simulation::new(42);
//! let server = sim.serve(Server::bind("10.0.0.1:7"), |mut conn: Connection| async move {
//!     let mut buf = [0; 64];
//!     let n = conn.recv(&mut buf).await?;
//!     conn.send(&buf[..n]).await
//! })?;
//! let answer = sim.client("10.0.0.2", async {
//!     let mut conn = Client::connect("10.0.0.1:7").await?;
//!     conn.send(b"hello").await?;
//!     let mut answer = [0; 5];
//!     conn.recv_exact(&mut answer).within(Duration::from_secs(1)).await?;
//!     Ok::<_, wharf::Error>(answer)
//! });
//! sim.run();
//! assert_eq!(&answer.take().expect("the client has ended")?, b"hello");
//! assert_eq!(server.connections(), 0);
//! # Ok::<(), wharf::Error>(())
//! ```

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use crate::connection::Connection;
use crate::endpoint::{Endpoint, Host};
use crate::engine::Engine;
use crate::engine::Listener;
use crate::engine::simulated::Network;
use crate::error::{Cause, Error, Operation, Result};
use crate::event::{Handler, Queue, QueuedHandler, Service, SocketHandle};
use crate::server::{self, Server, ServerHandle};
use crate::time::Time;
use crate::worker::Worker;
use crate::worker::member::Attach;

pub use crate::engine::simulated::Faults;

/// So much virtual time is more than any test means to spend; a run that needs more does not end.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// More turns than this without time passing are a loop.
const TURNS_AT_ONCE: usize = 1_000_000;

/// A network, the servers and clients on it, and their clock. When it is dropped, they end.
pub struct Simulation {
    seed: u64,
    network: Network,
    hosts: Vec<(IpAddr, Rc<Worker>)>,
    servers: Vec<(ServerHandle, Rc<Worker>)>,
    /// The workers of services.
    services: Vec<Rc<Worker>>,
    pending: Rc<Cell<usize>>,
}

/// The output of a client, once it has ended.
pub struct Outcome<T>(Rc<RefCell<Option<T>>>);

impl<T> Outcome<T> {
    /// Takes the output; `None` if the client has not ended (or it was taken before).
    pub fn take(&self) -> Option<T> {
        self.0.borrow_mut().take()
    }
}

impl<T> fmt::Debug for Outcome<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outcome")
    }
}

impl Simulation {
    /// A healthy network: some delay, bytes split and joined anywhere, sends that take a while.
    pub fn new(seed: u64) -> Simulation {
        Simulation::with_faults(seed, Faults::default())
    }

    /// A network with faults of one's choice.
    pub fn with_faults(seed: u64, faults: Faults) -> Simulation {
        Simulation {
            seed,
            network: Network::new(seed, faults),
            hosts: Vec::new(),
            servers: Vec::new(),
            services: Vec::new(),
            pending: Rc::default(),
        }
    }

    /// Changes the faults from here on.
    pub fn set_faults(&mut self, faults: Faults) {
        self.network.set_faults(faults);
    }

    /// Starts a server in async style on the host that its address names. It has one worker unless it says otherwise.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn serve<F, Fut>(&mut self, server: Server, handler: F) -> Result<ServerHandle>
    where
        F: Fn(Connection) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + 'static,
    {
        self.launch(server, &server::async_style(handler))
    }

    /// Starts a server in event style.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn serve_events<F, H>(&mut self, server: Server, make: F) -> Result<ServerHandle>
    where
        F: Fn() -> H + Send + Sync + 'static,
        H: Handler,
    {
        self.launch(server, &server::event_style(make))
    }

    /// Starts a server in event style, with handlers that run on `queue`. As for [`Simulation::service`], all follows from the seed
    /// if that is a [`PollQueue`](crate::event::PollQueue) which is polled between steps.
    ///
    /// # Errors
    /// As [`Server::start_queued`].
    pub fn serve_queued<F, H>(&mut self, server: Server, queue: &Queue, make: F) -> Result<ServerHandle>
    where
        F: Fn(&SocketHandle) -> H + Send + Sync + 'static,
        H: QueuedHandler,
    {
        self.launch(server, &server::queued_style(queue, make))
    }

    fn launch(&mut self, server: Server, attach: &Attach) -> Result<ServerHandle> {
        let server = server.workers_by_default(1);
        let (mut listeners, mut host) = (Vec::new(), None);
        for at in server.addresses() {
            let address = self.address(&at)?;
            if host.is_some_and(|host| host != address.ip()) {
                let one_host = "a simulated server listens on one host";
                return Err(Error::new(Operation::Listen, Cause::Misuse(one_host)).at(&at));
            }
            host = Some(address.ip());
            let failed = |error| Error::os(Operation::Listen, error).at(&at);
            let listening = self.network.listen(address).map_err(failed)?;
            let local = listening.local_addr();
            listeners.push((Listener::Simulated(listening), local));
        }
        let host = host.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let engines = (0..server.worker_count()).map(|_| self.engine(host)).collect();
        let (handle, workers) = server.launch_simulated(attach, engines, listeners)?;
        self.servers.extend(workers.into_iter().map(|worker| (handle.clone(), worker)));
        Ok(handle)
    }

    fn address(&self, text: &str) -> Result<SocketAddr> {
        let endpoint = Endpoint::parse(Operation::Listen, text)?;
        if let Some(address) = endpoint.literal() {
            return Ok(address);
        }
        let Host::Name(name) = &endpoint.host else {
            let problem = String::from("a simulated network has no Unix sockets");
            return Err(Error::new(Operation::Listen, Cause::Address { problem }).at(text));
        };
        let found = self.network.resolve(name).unwrap_or_default();
        let problem = String::from("the simulated network does not know this name");
        let unknown = || Error::new(Operation::Listen, Cause::NotFound { problem }).at(text);
        found.first().map(|ip| SocketAddr::new(*ip, endpoint.port)).ok_or_else(unknown)
    }

    fn engine(&self, host: IpAddr) -> Engine {
        Engine::Simulated(Box::new(self.network.host(host)))
    }

    /// Starts `future` on a host; it begins when the simulation runs.
    ///
    /// # Panics
    /// If `host` is not an IP address.
    pub fn client<T: 'static>(
        &mut self,
        host: &str,
        future: impl Future<Output = T> + 'static,
    ) -> Outcome<T> {
        let host: IpAddr = host.parse().unwrap_or_else(|_| panic!("`{host}` is not an IP address"));
        let worker = self.host(host);
        let outcome = Outcome(Rc::default());
        let place = outcome.0.clone();
        let pending = Pending::new(&self.pending);
        worker.tasks.spawn(Box::pin(async move {
            let output = future.await;
            *place.borrow_mut() = Some(output);
            drop(pending);
        }));
        outcome
    }

    /// A running [`Service`] of one worker on a host. Its threads are the simulation: [`Service::stop`] ends its connections
    /// as it runs on.
    ///
    /// Sockets whose handlers run on a [`PollQueue`](crate::event::PollQueue), which is polled between
    /// [`run_until`](Simulation::run_until)'s steps, follow from the seed too; on threads of their own they do not.
    ///
    /// # Panics
    /// If `host` is not an IP address.
    pub fn service(&mut self, host: &str) -> Service {
        let host: IpAddr = host.parse().unwrap_or_else(|_| panic!("`{host}` is not an IP address"));
        let worker = Worker::new(self.engine(host));
        self.services.push(worker.clone());
        Service::on_worker(&worker)
    }

    fn host(&mut self, host: IpAddr) -> Rc<Worker> {
        if let Some((_, worker)) = self.hosts.iter().find(|(address, _)| *address == host) {
            return worker.clone();
        }
        let worker = Worker::new(self.engine(host));
        self.hosts.push((host, worker.clone()));
        worker
    }

    /// Gives a name its addresses, for clients to look up.
    pub fn name(&mut self, name: &str, addresses: &[IpAddr]) {
        self.network.name(name, addresses.to_vec());
    }

    /// From now on connects to `host` are never answered.
    pub fn blackhole(&mut self, host: IpAddr) {
        self.network.blackhole(host);
    }

    /// Runs until every client has ended and nothing is left to happen.
    ///
    /// # Panics
    /// If that takes more than a day of virtual time, or time stands still in a loop, or clients wait for what will
    /// never come. The message tells the seed.
    pub fn run(&mut self) {
        let limit = self.network.now().after(PATIENCE);
        while self.step(limit) {}
        assert!(self.network.now() < limit, "seed {}: not settled after a day", self.seed);
        let pending = self.pending.get();
        assert!(pending == 0, "seed {}: {pending} clients wait for what will never come", self.seed);
    }

    /// Runs until `done`, or nothing is left to happen; returns whether `done`.
    ///
    /// # Panics
    /// If time stands still in a loop.
    pub fn run_until(&mut self, mut done: impl FnMut() -> bool) -> bool {
        let limit = self.network.now().after(PATIENCE);
        let mut asked = 0;
        loop {
            // Before the clock moves: it is over at the time when it is done.
            self.settle();
            if done() {
                return true;
            }
            if self.has_work() {
                // It has asked for something that happens now.
                asked += 1;
                assert!(asked < TURNS_AT_ONCE, "seed {}: time stands still at {:?}", self.seed, self.now());
                continue;
            }
            asked = 0;
            if !self.advance(limit) {
                return false;
            }
        }
    }

    /// Runs for `duration` of virtual time.
    ///
    /// # Panics
    /// If time stands still in a loop.
    pub fn run_for(&mut self, duration: Duration) {
        let limit = self.network.now().after(duration);
        while self.step(limit) {}
        self.network.advance(limit);
    }

    /// The virtual time since the start.
    pub fn now(&self) -> Duration {
        self.network.now().since(Time::ZERO)
    }

    /// The last lines of what happened on the network.
    pub fn trace(&self) -> Vec<String> {
        self.network.trace()
    }

    /// Appends a line of the test's own to the trace, and so to its hash.
    pub fn note(&mut self, line: &str) {
        self.network.note(line);
    }

    /// A hash of everything that happened on the network: equal for equal seeds.
    pub fn trace_hash(&self) -> u64 {
        self.network.trace_hash()
    }

    /// Sockets that are open anywhere, listeners included.
    pub fn open_sockets(&self) -> usize {
        self.network.open_sockets()
    }

    /// Lets everything happen that happens now, then moves the clock to the next event before `limit`. Returns whether
    /// there was one.
    fn step(&mut self, limit: Time) -> bool {
        self.settle();
        self.advance(limit)
    }

    /// Lets everything happen that happens now.
    fn settle(&mut self) {
        for _ in 0..TURNS_AT_ONCE {
            if !self.turn_all() {
                return;
            }
        }
        panic!("seed {}: time stands still at {:?}", self.seed, self.now());
    }

    fn workers(&self) -> impl Iterator<Item = &Rc<Worker>> {
        let hosts = self.hosts.iter().map(|(_, worker)| worker);
        let servers = self.servers.iter().map(|(_, worker)| worker);
        hosts.chain(&self.services).chain(servers)
    }

    fn has_work(&self) -> bool {
        self.workers().any(|worker| worker.has_work())
    }

    fn turn_all(&mut self) -> bool {
        let mut busy = false;
        for worker in self.hosts.iter().map(|(_, worker)| worker).chain(&self.services) {
            let _entered = worker.enter();
            worker.look_at_clock();
            busy |= worker.turn(false);
        }
        self.servers.retain(|(handle, worker)| {
            let entered = worker.enter();
            worker.look_at_clock();
            busy |= worker.turn(false);
            drop(entered);
            let member = worker.member.borrow().clone();
            let done = member.is_some_and(|member| member.is_done(worker));
            if done {
                leave(handle, worker);
            }
            !done
        });
        busy
    }

    fn advance(&mut self, limit: Time) -> bool {
        let alarms = self.workers().filter_map(|worker| worker.next_alarm());
        let next = alarms.chain(self.network.next_event()).min();
        match next {
            Some(at) if at < limit => {
                self.network.advance(at);
                true
            }
            _ => false,
        }
    }
}

/// One of a server's workers ends, and with the last of them the server.
fn leave(handle: &ServerHandle, worker: &Rc<Worker>) {
    worker.shut();
    worker.member.borrow_mut().take();
    handle.state().worker_left();
}

impl Drop for Simulation {
    fn drop(&mut self) {
        for worker in self.hosts.iter().map(|(_, worker)| worker).chain(&self.services) {
            worker.shut();
        }
        for (handle, worker) in &self.servers {
            leave(handle, worker);
        }
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("seed", &self.seed)
            .field("now", &self.now())
            .finish_non_exhaustive()
    }
}

/// Counts a client that has not ended.
struct Pending(Rc<Cell<usize>>);

impl Pending {
    fn new(count: &Rc<Cell<usize>>) -> Pending {
        count.set(count.get() + 1);
        Pending(count.clone())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
