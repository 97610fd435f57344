//! Where scenarios of sockets play: on each backend with threads of a service, and in the simulation, from one source. The
//! handlers' queue is polled by the test in both.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use wharf::event::{PollQueue, QueuedHandler, Service, Socket, SocketHandle};
use wharf::sim::{Faults, Simulation};
use wharf::{Backend, Client, Connection, Deadlines, Result, Server, ServerHandle};

use super::{Nobody, Watchdog, backends, seeds};

/// A service, a queue, and a network with servers.
pub(crate) struct Stage {
    pub(crate) service: Service,
    pub(crate) queue: PollQueue,
    network: Network,
    servers: Vec<ServerHandle>,
}

enum Network {
    Real(Backend),
    Simulated(Box<Simulation>),
}

/// Plays `scenario` on every backend of this machine, and in the simulation with some seeds.
pub(crate) fn play(name: &str, scenario: impl Fn(&mut Stage)) {
    let _watchdog = Watchdog::patient(name, Duration::from_secs(60));
    for backend in backends(name) {
        let service = Service::new().workers(2).backend(backend);
        service.start().expect("the service starts");
        let mut stage = Stage {
            service,
            queue: PollQueue::new().expect("it has a descriptor"),
            network: Network::Real(backend),
            servers: Vec::new(),
        };
        scenario(&mut stage);
        stage.finish();
    }
    for (preset, faults) in [("default", Faults::default()), ("harsh", Faults::harsh())] {
        for seed in seeds(3) {
            let run = || {
                let mut simulation = Box::new(Simulation::with_faults(seed, faults.clone()));
                let service = simulation.service("10.0.0.2");
                let network = Network::Simulated(simulation);
                let mut stage = Stage {
                    service,
                    queue: PollQueue::new().expect("it has a descriptor"),
                    network,
                    servers: Vec::new(),
                };
                scenario(&mut stage);
                stage.finish();
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                eprintln!("{name} failed with seed {seed}, faults {preset}");
                resume_unwind(panic);
            }
        }
    }
}

impl Stage {
    /// Starts a server, and tells its address.
    pub(crate) fn serve<F, Fut>(&mut self, handler: F) -> String
    where
        F: Fn(Connection) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + 'static,
    {
        // Some scenarios let a peer wait for as long as the clock likes.
        let deadlines = Deadlines::default().write(None);
        let handle = match &mut self.network {
            Network::Real(backend) => {
                let server = Server::bind("127.0.0.1:0").workers(1).backend(*backend);
                server.deadlines(deadlines).start(handler)
            }
            Network::Simulated(simulation) => {
                simulation.serve(Server::bind("10.0.0.1:0").deadlines(deadlines), handler)
            }
        };
        let handle = handle.expect("the server starts");
        let address = handle.local_addr().to_string();
        self.servers.push(handle);
        address
    }

    /// Starts a server whose handlers run on the stage's queue, as `configure` has it.
    pub(crate) fn serve_queued<F, H>(
        &mut self,
        configure: impl FnOnce(Server) -> Server,
        make: F,
    ) -> (String, ServerHandle)
    where
        F: Fn(&SocketHandle) -> H + Send + Sync + 'static,
        H: QueuedHandler,
    {
        let queue = self.queue.queue();
        let handle = match &mut self.network {
            Network::Real(backend) => {
                let server = Server::bind("127.0.0.1:0").workers(2).backend(*backend);
                configure(server).start_queued(&queue, make)
            }
            Network::Simulated(simulation) => {
                simulation.serve_queued(configure(Server::bind("10.0.0.1:0")), &queue, make)
            }
        };
        let handle = handle.expect("the server starts");
        self.servers.push(handle.clone());
        (handle.local_addr().to_string(), handle)
    }

    /// An address where nobody listens.
    pub(crate) fn nobody(&mut self) -> String {
        let address = self.serve(|_| async { Ok(()) });
        let server = self.servers.pop().expect("it was started just now");
        self.stop(&server);
        address
    }

    pub(crate) fn socket(&self, address: &str, handler: impl QueuedHandler) -> Socket {
        self.service.socket(&Client::new(address), &self.queue.queue(), handler)
    }

    /// Polls the queue until `done`.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let queue = &self.queue;
        match &mut self.network {
            Network::Simulated(simulation) => {
                let so = simulation.run_until(|| {
                    queue.run_pending(usize::MAX);
                    queue.is_empty() && done()
                });
                assert!(so, "still not so: {what}: {:#?}", simulation.trace());
            }
            Network::Real(_) => {
                let began = Instant::now();
                while !done() {
                    queue.wait(Duration::from_millis(5));
                    queue.run_pending(usize::MAX);
                    assert!(began.elapsed() < Duration::from_secs(20), "still not so: {what}");
                }
            }
        }
    }

    /// Lets happen what happens by itself for a while, without polling the queue.
    pub(crate) fn idle(&mut self, done: impl FnMut() -> bool) -> bool {
        let mut done = done;
        match &mut self.network {
            Network::Simulated(simulation) => simulation.run_until(done),
            Network::Real(_) => {
                let began = Instant::now();
                while !done() && began.elapsed() < Duration::from_secs(20) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                done()
            }
        }
    }

    /// An address at which a connect is answered neither by yes nor by no.
    pub(crate) fn silent(&mut self) -> Nobody {
        match &mut self.network {
            Network::Real(_) => Nobody::with_a_full_backlog(),
            Network::Simulated(simulation) => Nobody::simulated(simulation),
        }
    }

    /// Has connects to an address never answered; only in a simulation.
    pub(crate) fn blackhole(&mut self, host: &str) -> bool {
        match &mut self.network {
            Network::Real(_) => false,
            Network::Simulated(simulation) => {
                simulation.blackhole(host.parse().expect("an IP address"));
                true
            }
        }
    }

    pub(crate) fn is_simulated(&self) -> bool {
        matches!(self.network, Network::Simulated(_))
    }

    fn stop(&mut self, server: &ServerHandle) {
        server.drain(Duration::from_secs(5));
        match &mut self.network {
            // Handlers on the queue hear of their ends from whoever polls it.
            Network::Real(_) => self.until("its connections end", || server.connections() == 0),
            Network::Simulated(simulation) => simulation.run(),
        }
        server.wait().expect("the server ends");
    }

    fn finish(mut self) {
        self.service.stop();
        for server in std::mem::take(&mut self.servers) {
            self.stop(&server);
        }
        match &mut self.network {
            Network::Real(_) => self.service.stop_and_wait().expect("no thread has crashed"),
            Network::Simulated(simulation) => {
                simulation.run();
                assert_eq!(simulation.open_sockets(), 0, "sockets are left open");
            }
        }
        assert_eq!(self.service.connections(), 0, "places of connections are left taken");
    }
}
