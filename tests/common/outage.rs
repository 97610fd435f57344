//! Servers that are killed and started again, on the same address, while clients go on.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use wharf::{Server, ServerHandle};

use super::{Behaviour, HOST, Network, Style, World};

/// Asks for the server to be killed and started again; made by [`World::with_outages`].
#[derive(Clone, Default)]
pub(crate) struct Outage {
    /// Odd: it is to be dead.
    asked: Arc<AtomicUsize>,
    done: Arc<AtomicUsize>,
}

impl Outage {
    /// Kills the server: its connections are reset, connects are refused.
    pub(crate) async fn kill(&self) {
        self.change(1).await;
    }

    /// Starts it again.
    pub(crate) async fn restart(&self) {
        self.change(0).await;
    }

    async fn change(&self, parity: usize) {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        assert_eq!(asked % 2, parity, "it is killed and started by turns");
        while self.done.load(Ordering::SeqCst) < asked {
            wharf::sleep(Duration::from_millis(1)).await;
        }
    }

    fn next(&self) -> Option<usize> {
        let done = self.done.load(Ordering::SeqCst);
        (done < self.asked.load(Ordering::SeqCst)).then_some(done + 1)
    }
}

impl World {
    /// Runs a client of a server that the client has killed and started again.
    pub(crate) fn with_outages<T, F>(
        &mut self,
        behaviour: impl Behaviour,
        client: impl FnOnce(SocketAddr, Outage) -> F,
    ) -> T
    where
        T: 'static,
        F: Future<Output = T> + 'static,
    {
        let outage = Outage::default();
        let mut server = self.open(&behaviour, None);
        let address = server.local_addr();
        let client = client(address, outage.clone());
        if let Network::Real(backend) = self.network {
            let style = self.style;
            let over = Arc::new(AtomicUsize::new(0));
            return thread::scope(|scope| {
                let ended = over.clone();
                scope.spawn(move || {
                    let mut world = World::new(Network::Real(backend), style);
                    while ended.load(Ordering::SeqCst) == 0 {
                        match outage.next() {
                            Some(change) => world.change(&behaviour, &mut server, &outage, change),
                            None => thread::sleep(Duration::from_millis(1)),
                        }
                    }
                    server.stop().wait().expect("the server ends");
                });
                // Also if the client panics, or nothing would ever end.
                let _over = Over(over);
                self.run(client)
            });
        }
        let outcome = {
            let Network::Simulated { simulation, .. } = &mut self.network else { unreachable!("see above") };
            simulation.client("10.0.0.2", client)
        };
        loop {
            let mut output = None;
            let Network::Simulated { simulation, .. } = &mut self.network else { unreachable!("see above") };
            let happens = simulation.run_until(|| {
                output = output.take().or_else(|| outcome.take());
                output.is_some() || outage.next().is_some()
            });
            if let Some(output) = output {
                server.stop();
                self.servers.push(server);
                return output;
            }
            assert!(happens, "the client waits for what will never come");
            let change = outage.next().expect("the client has not ended");
            self.change(&behaviour, &mut server, &outage, change);
        }
    }

    fn change(
        &mut self,
        behaviour: &impl Behaviour,
        server: &mut ServerHandle,
        outage: &Outage,
        change: usize,
    ) {
        if change % 2 == 1 {
            server.stop();
            if let Network::Simulated { simulation, .. } = &mut self.network {
                let stopped = server.clone();
                simulation.run_until(|| stopped.is_stopped());
            }
            server.wait().expect("the server ends");
        } else {
            *server = self.open(behaviour, Some(server.local_addr()));
        }
        outage.done.store(change, Ordering::SeqCst);
    }

    fn open(&mut self, behaviour: &impl Behaviour, at: Option<SocketAddr>) -> ServerHandle {
        let behaviour = behaviour.clone();
        let started = match (&mut self.network, self.style) {
            (Network::Real(backend), style) => {
                let at = at.map_or_else(|| format!("{HOST}:0"), |at| at.to_string());
                let server = Server::bind(at).workers(2).backend(*backend);
                match style {
                    Style::Async => server.start(move |conn| behaviour.clone().run(conn)),
                    Style::Event => server.start_events(move || behaviour.clone().handler()),
                }
            }
            (Network::Simulated { simulation, .. }, style) => {
                let server = Server::bind(at.map_or_else(|| String::from("10.0.0.1:0"), |at| at.to_string()));
                match style {
                    Style::Async => simulation.serve(server, move |conn| behaviour.clone().run(conn)),
                    Style::Event => simulation.serve_events(server, move || behaviour.clone().handler()),
                }
            }
        };
        started.expect("the server starts")
    }
}

struct Over(Arc<AtomicUsize>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(1, Ordering::SeqCst);
    }
}
