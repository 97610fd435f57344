//! Your own server in a simulation.
//!
//! [`sim`](crate::sim) runs your whole server and its clients in one thread, on a network that is simulated, with virtual time. A test of
//! a deadline of an hour takes no time. Everything that happens follows from one seed: how bytes are split, what comes first, which
//! fault strikes. A failure is repeated by its seed.
//!
//! ```
//! use std::time::Duration;
//! use wharf::sim::Simulation;
//! use wharf::{Client, CloseReason, Connection, Deadline, Deadlines, Server};
//!
//! // What is tested: a server that has no patience with the silent.
//! async fn handler(mut conn: Connection) -> wharf::Result<()> {
//!     let mut buf = [0; 64];
//!     while conn.recv(&mut buf).await? > 0 {
//!         conn.send(b"ok").await?;
//!     }
//!     Ok(())
//! }
//!
//! for seed in 0..20 {
//!     let mut sim = Simulation::new(seed);
//!     let patience = Deadlines::default().first_byte(Duration::from_secs(3600)).idle(None);
//!     let server = sim.serve(Server::bind("10.0.0.1:7").deadlines(patience), handler)?;
//!     let silent = sim.client("10.0.0.2", async {
//!         let mut conn = Client::connect("10.0.0.1:7").await?;
//!         conn.recv(&mut [0; 1]).await
//!     });
//!
//!     sim.run(); // until nothing is left to happen
//!
//!     assert!(sim.now() >= Duration::from_secs(3600), "virtual");
//!     assert!(silent.take().expect("the client has ended").is_ok(), "it saw an end in order");
//!     assert_eq!(server.stats().closed(CloseReason::Timeout(Deadline::FirstByte)), 1, "seed {seed}");
//! }
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! [`Simulation::with_faults`](crate::sim::Simulation::with_faults) adds resets, lost descriptors and refusals ([`Faults`](crate::sim::Faults)).
//! [`name`](crate::sim::Simulation::name) gives a host its addresses, [`blackhole`](crate::sim::Simulation::blackhole) has one swallow what it is sent,
//! [`service`](crate::sim::Simulation::service) runs clients in event style, [`trace`](crate::sim::Simulation::trace) tells what happened.
//!
//! What is simulated is the network and the time, so handlers should ask only Wharf for both: [`sleep`](crate::sleep), not a thread's. The blocking
//! style makes system calls, and has no simulation. Bind port 0 of 127.0.0.1 for its tests, as these pages do.
//!
//! Handlers take a [`Connection`](crate::Connection) in the simulation and on every backend. To try a real one by name, there are
//! [`Server::backend`](crate::Server::backend), [`run_on`](crate::run_on), and the environment variable `WHARF_BACKEND`.
