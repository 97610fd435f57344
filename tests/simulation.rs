//! Whole servers on bad networks: what happens follows from the seed alone, and whatever happens, nobody sees a wrong
//! byte, nothing hangs, and nothing is left over.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and names its seed")]

#[macro_use]
mod common;

use std::cell::RefCell;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Duration;

use wharf::sim::{Faults, Simulation};
use wharf::{Client, CloseReason, Connection, Limits, Result, Server, ServerHandle, Stats};

use common::behaviours::*;
use common::*;

const ADDRESS: &str = "10.0.0.1:7";

/// What became of the clients of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Tally {
    connected: usize,
    finished: usize,
    failed: usize,
}

/// A run: its trace, what its server did, and its clients.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    hash: u64,
    stats: Stats,
    tally: Tally,
}

fn serve(
    simulation: &mut Simulation,
    server: Server,
    style: Style,
    behaviour: impl Behaviour,
) -> ServerHandle {
    let started = match style {
        Style::Async => simulation.serve(server, move |conn| behaviour.clone().run(conn)),
        Style::Event => simulation.serve_events(server, move || behaviour.clone().handler()),
    };
    started.unwrap()
}

/// Sends messages and reads them back; any byte that comes has to be right, whatever else happens.
async fn talk(wire: Wire, mut rng: fastrand::Rng, tally: Rc<RefCell<Tally>>) -> Result<()> {
    wharf::sleep(Duration::from_millis(rng.u64(0..500))).await;
    let mut conn = wire.client(ADDRESS).open().within(Duration::from_secs(20)).await?;
    tally.borrow_mut().connected += 1;
    let (mut sent, mut received) = (0, 0);
    for _ in 0..rng.usize(1..6) {
        let size = rng.usize(1..6000);
        conn.send(&pattern(sent..sent + size)).within(Duration::from_secs(30)).await?;
        sent += size;
        while received < sent && rng.u8(0..8) > 0 {
            received += take(&mut conn, received).await?;
        }
    }
    match rng.u8(0..6) {
        0 => drop(conn),
        1 => drop(conn.reset()),
        _ => {
            conn.finish().within(Duration::from_secs(30)).await?;
            while received < sent {
                received += take(&mut conn, received).await?;
            }
            assert_eq!(conn.recv(&mut [0; 1]).within(Duration::from_secs(30)).await?, 0);
            tally.borrow_mut().finished += 1;
        }
    }
    Ok(())
}

async fn take(conn: &mut Connection, offset: usize) -> Result<usize> {
    let mut buf = [0; 1500];
    let n = conn.recv(&mut buf).within(Duration::from_secs(30)).await?;
    if n == 0 {
        return Err(wharf::Error::other("the server has ended"));
    }
    assert_pattern(&buf[..n], offset);
    Ok(n)
}

/// One server, so many clients on a few hosts, and an end in order.
fn run(wire: Wire, seed: u64, faults: Faults, style: Style, clients: usize, limits: Limits) -> Run {
    let mut simulation = Simulation::with_faults(seed, faults);
    let server = wire.server(Server::bind(ADDRESS).workers(1 + (seed as usize) % 3).limits(limits));
    let server = serve(&mut simulation, server, style, Echo);
    let tally = Rc::new(RefCell::new(Tally::default()));
    let outcomes: Vec<_> = (0..clients)
        .map(|client| {
            let rng = fastrand::Rng::with_seed(seed.wrapping_mul(1000) + client as u64);
            simulation.client(&format!("10.0.1.{}", client % 7), talk(wire, rng, tally.clone()))
        })
        .collect();
    simulation.run();
    for outcome in outcomes {
        // What has panicked has no outcome.
        match outcome.take().expect("a client saw something wrong") {
            Ok(()) => {}
            Err(_) => tally.borrow_mut().failed += 1,
        }
    }
    assert_eq!(server.connections(), 0, "all of them have ended: {:#?}", simulation.trace());
    server.drain(Duration::from_secs(1));
    simulation.run();
    assert_eq!(simulation.open_sockets(), 0, "sockets are left open");
    let stats = server.wait().unwrap();
    let closed: u64 = stats.closes.iter().map(|(_, count)| count).sum();
    assert_eq!(closed, stats.accepted, "{stats:?}");
    assert_eq!(stats.closed(CloseReason::HandlerPanicked), 0, "{stats:?}");
    let tally = tally.borrow().clone();
    Run { hash: simulation.trace_hash(), stats, tally }
}

fn bad() -> Faults {
    Faults::harsh()
        .resets(0.005)
        .refusals(0.05)
        .blackholes(0.02)
        .aborted_accepts(0.05)
        .exhausted_accepts(0.05)
        .backlog(4)
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for style in [Style::Async, Style::Event] {
        let first = run(Wire::Plain, 7, bad(), style, 50, Limits::default());
        let second = run(Wire::Plain, 7, bad(), style, 50, Limits::default());
        let other = run(Wire::Plain, 8, bad(), style, 50, Limits::default());
        assert_eq!(first, second);
        assert_ne!(first.hash, other.hash);
    }
}

/// Runs `each` for many seeds, and names the one that fails.
fn sweep(name: &str, count: u64, each: impl Fn(u64, Style) -> Run) -> Tally {
    let mut total = Tally::default();
    for seed in seeds(count) {
        let style = if seed % 2 == 0 { Style::Async } else { Style::Event };
        match catch_unwind(AssertUnwindSafe(|| each(seed, style))) {
            Ok(Run { tally, .. }) => {
                total.connected += tally.connected;
                total.finished += tally.finished;
                total.failed += tally.failed;
            }
            Err(panic) => {
                eprintln!("{name} failed with seed {seed} ({style:?})");
                resume_unwind(panic);
            }
        }
    }
    total
}

#[test]
fn nothing_fails_on_a_network_that_only_delays_and_splits() {
    let tally = sweep("harsh", 40, |seed, style| {
        run(Wire::Plain, seed, Faults::harsh(), style, 8, Limits::default())
    });
    assert_eq!(tally.failed, 0, "{tally:?}");
    assert_eq!(tally.connected % 8, 0, "{tally:?}");
}

#[test]
fn two_hundred_bad_networks_leave_nothing_behind() {
    let tally = sweep("bad", 200, |seed, style| run(Wire::Plain, seed, bad(), style, 6, Limits::default()));
    assert!(tally.finished > 0, "{tally:?}");
}

#[test]
fn small_bounds_everywhere_change_nothing() {
    let limits = Limits::default().connections(2).receive_buffer(700).send_marks(100, 900).send_max(40_000);
    let faults = Faults::harsh().window(500).resets(0.0005).exhausted_accepts(0.1);
    let tally =
        sweep("small", 60, |seed, style| run(Wire::Plain, seed, faults.clone(), style, 6, limits.clone()));
    assert!(tally.finished > 0, "{tally:?}");
}

#[test]
fn a_server_out_of_descriptors_serves_those_who_wait_when_some_are_free_again() {
    let faults = Faults::default().descriptors(3);
    for seed in seeds(20) {
        let mut simulation = Simulation::with_faults(seed, faults.clone());
        let server = simulation
            .serve_events(Server::bind(ADDRESS).limits(Limits::default().connections(100)), || Echo)
            .unwrap();
        let outcomes: Vec<_> = (0..10)
            .map(|host| {
                simulation.client(&format!("10.0.2.{host}"), async {
                    let mut conn = Client::connect(ADDRESS).within(Duration::from_secs(60)).await?;
                    conn.send(b"hello").await?;
                    conn.recv_exact(&mut [0; 5]).within(Duration::from_secs(60)).await?;
                    wharf::sleep(Duration::from_secs(1)).await;
                    conn.finish().await
                })
            })
            .collect();
        simulation.run();
        for outcome in outcomes {
            outcome.take().unwrap().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        let stats = server.stats();
        assert_eq!(stats.accepted, 10);
        assert!(stats.accept_errors > 0, "it did run out");
        assert!(stats.accept_errors < 100, "and did not spin: {stats:?}");
    }
}

#[test]
fn a_client_out_of_descriptors_is_told_so() {
    let mut simulation = Simulation::with_faults(1, Faults::none().descriptors(2));
    let outcome = simulation.client("10.0.0.2", async {
        let mut errors = Vec::new();
        let mut open = Vec::new();
        for _ in 0..3 {
            match Client::connect("10.0.0.9:1").within(Duration::from_secs(1)).await {
                Ok(conn) => open.push(conn),
                Err(error) => errors.push(error.to_string()),
            }
        }
        errors
    });
    simulation.run();
    // Nobody listens there, and each refused socket is given back.
    let errors = outcome.take().unwrap();
    assert_eq!(errors, ["connect to 10.0.0.9:1: connection refused"; 3]);
    assert_eq!(simulation.open_sockets(), 0);
}

#[test]
fn a_connect_that_nobody_answers_ends_at_its_deadline() {
    let mut simulation = Simulation::new(3);
    let dark: IpAddr = "10.0.0.9".parse().unwrap();
    simulation.blackhole(dark);
    let outcome = simulation
        .client("10.0.0.2", async { Client::connect("10.0.0.9:80").within(Duration::from_secs(3)).await });
    simulation.run_until(|| false);
    let error = outcome.take().unwrap().unwrap_err();
    assert!(error.is_timeout());
    assert_eq!(error.to_string(), "connect to 10.0.0.9:80: timed out after 3s");
    assert!(simulation.now() >= Duration::from_secs(3));
    assert_eq!(simulation.open_sockets(), 0, "the attempt leaves nothing");
}

#[test]
fn a_drain_at_any_moment_ends_in_time_and_leaves_nothing() {
    drain_at_any_moment(Wire::Plain, 150);
}

/// Ends a server at any moment, with any patience, while clients come and go.
fn drain_at_any_moment(wire: Wire, count: u64) {
    for seed in seeds(count) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let style = if rng.bool() { Style::Async } else { Style::Event };
        let mut simulation = Simulation::with_faults(seed, if rng.bool() { bad() } else { Faults::harsh() });
        let limits = Limits::default().connections(rng.usize(1..10));
        let server = wire.server(Server::bind(ADDRESS).workers(rng.usize(1..4)).limits(limits));
        let server = serve(&mut simulation, server, style, Echo);
        let outcomes: Vec<_> = (0..8)
            .map(|client| {
                let talk = talk(wire, fastrand::Rng::with_seed(rng.u64(..)), Rc::default());
                simulation.client(&format!("10.0.1.{client}"), talk)
            })
            .collect();
        simulation.run_for(Duration::from_millis(rng.u64(0..1500)));
        let within = Duration::from_millis(rng.u64(0..1000));
        server.drain(within);
        let began = simulation.now();
        simulation.run_until(|| server.is_stopped());
        let took = simulation.now() - began;
        assert!(server.is_stopped(), "seed {seed}");
        assert!(
            took <= within + Duration::from_millis(200),
            "seed {seed}: {took:?} of {within:?}: {:#?}",
            simulation.trace()
        );
        let stats = server.wait().unwrap();
        let closed: u64 = stats.closes.iter().map(|(_, count)| count).sum();
        assert_eq!((closed, server.connections()), (stats.accepted, 0), "seed {seed}: {stats:?}");
        simulation.run();
        assert!(
            outcomes.iter().all(|outcome| outcome.take().is_some()),
            "seed {seed}: a client saw something wrong"
        );
        assert_eq!(simulation.open_sockets(), 0, "seed {seed}");
    }
}

#[cfg(feature = "tls")]
mod over_tls {
    use super::*;

    /// Keys and nonces are random, but not how long anything is: the certificates' keys are of a kind whose signatures are of
    /// one length.
    #[test]
    fn the_same_seed_gives_the_same_history() {
        for style in [Style::Async, Style::Event] {
            let first = run(Wire::Tls, 7, bad(), style, 20, Limits::default());
            for _ in 0..3 {
                assert_eq!(run(Wire::Tls, 7, bad(), style, 20, Limits::default()), first);
            }
        }
    }

    #[test]
    fn nothing_fails_on_a_network_that_only_delays_and_splits() {
        let tally = sweep("harsh", 20, |seed, style| {
            run(Wire::Tls, seed, Faults::harsh(), style, 8, Limits::default())
        });
        assert_eq!(tally.failed, 0, "{tally:?}");
        assert_eq!(tally.connected % 8, 0, "{tally:?}");
    }

    #[test]
    fn bad_networks_leave_nothing_behind() {
        let tally = sweep("bad", 100, |seed, style| run(Wire::Tls, seed, bad(), style, 6, Limits::default()));
        assert!(tally.finished > 0, "{tally:?}");
    }

    #[test]
    fn small_bounds_everywhere_change_nothing() {
        let limits =
            Limits::default().connections(2).receive_buffer(700).send_marks(100, 900).send_max(40_000);
        let faults = Faults::harsh().window(500).resets(0.0005).exhausted_accepts(0.1);
        let tally =
            sweep("small", 40, |seed, style| run(Wire::Tls, seed, faults.clone(), style, 6, limits.clone()));
        assert!(tally.finished > 0, "{tally:?}");
    }

    #[test]
    fn a_drain_at_any_moment_ends_in_time_and_leaves_nothing() {
        drain_at_any_moment(Wire::Tls, 80);
    }
}
