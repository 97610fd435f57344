//! One measurement of one peer: a new server, a client, and the clocks around them.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::churn::Churn;
use crate::client::{Client, Exercise, Load, Progress, Wire};
use crate::peers::{self, Peer};
use crate::relay::RelayWork;
use crate::scenario::{Cpu, Latency, Memory, Sample, Work};
use crate::server_process::{Placing, ServerProcess};
use crate::tls::{self, Bulk, Handshakes, Suite, Tls, TlsWork};
use crate::{proc, sys};

/// For how long to measure.
#[derive(Copy, Clone)]
pub enum Extent {
    Time(Duration),
    Operations(u64),
}

pub fn measure(peer: &Peer, work: Work, placing: &Placing, extent: Extent) -> Result<Sample> {
    // A new process each time: where its memory lands is part of the noise, not of the peer.
    let target = match work {
        Work::Relay(_) => Some(ServerProcess::start(peers::RELAYED, placing)?),
        _ => None,
    };
    let server = match (work, &target) {
        (_, Some(target)) => ServerProcess::start_relay(peer, target.address, placing),
        (Work::Tls { work, .. }, _) => {
            ServerProcess::start_tls(peer, work.service(), tls::credentials()?, placing)
        }
        _ => ServerProcess::start(peer, placing),
    }?;
    match work {
        Work::Echo(load) | Work::Relay(RelayWork::Echo(load)) => {
            warm_cpu(Client::connect(server.address, load)?, &server, extent)
        }
        Work::Churn { at_once, size } | Work::Relay(RelayWork::Churn { at_once, size }) => {
            warm_cpu(Churn::start(server.address, at_once, size)?, &server, extent)
        }
        Work::Latency(load) => latency(load, &server, extent),
        Work::Idle { connections } => memory(connections, &server, Client::connect),
        Work::Tls { work, suite } => measure_tls(work, suite, &server, extent),
    }
}

fn measure_tls(work: TlsWork, suite: Suite, server: &ServerProcess, extent: Extent) -> Result<Sample> {
    let address = server.address;
    let credentials = tls::credentials()?;
    let trust = credentials.trust(suite, false)?;
    let connect =
        |address, load| Client::connect_through(address, load, |socket| Tls::connect(socket, &trust));
    match work {
        TlsWork::Handshakes { at_once, resumed } => {
            let client = Handshakes::start(address, credentials, suite, at_once, resumed)?;
            warm_cpu(client, server, extent)
        }
        TlsWork::Echo(load) => warm_cpu(connect(address, load)?, server, extent),
        TlsWork::Upload { connections } => {
            warm_cpu(Bulk::upload(address, &trust, connections)?, server, extent)
        }
        TlsWork::Download {
            connections,
            write_kib,
        } => {
            let client = Bulk::download(address, &trust, connections, write_kib)?;
            warm_cpu(client, server, extent)
        }
        TlsWork::Idle { connections } => memory(connections, server, connect),
    }
}

fn warm_cpu(mut client: impl Exercise, server: &ServerProcess, extent: Extent) -> Result<Sample> {
    warm_up(&mut client, extent)?;
    Ok(Sample::Cpu(cpu(&mut client, server, extent)?))
}

fn warm_up(client: &mut impl Exercise, extent: Extent) -> Result<()> {
    if let Extent::Time(span) = extent {
        run_for(client, span / 8)?;
    }
    client.run(WARM_UP_ROUNDS * client.at_once())
}

const WARM_UP_ROUNDS: u64 = 5;

fn cpu(client: &mut impl Exercise, server: &ServerProcess, extent: Extent) -> Result<Cpu> {
    let before = Reading::take(client, server)?;
    match extent {
        Extent::Time(span) => run_for(client, span)?,
        Extent::Operations(operations) => client.run(operations)?,
    }
    let after = Reading::take(client, server)?;
    Ok(after.since(&before))
}

fn run_for(client: &mut impl Exercise, span: Duration) -> Result<()> {
    let end = Instant::now() + span;
    while Instant::now() < end {
        client.run(OPERATIONS_BETWEEN_CLOCK_READS)?;
    }
    Ok(())
}

const OPERATIONS_BETWEEN_CLOCK_READS: u64 = 64;

fn latency(load: Load, server: &ServerProcess, extent: Extent) -> Result<Sample> {
    ensure!(load.depth == 1, "times are taken of one message at a time");
    let mut client = Client::connect(server.address, load)?;
    warm_up(&mut client, extent)?;
    client.watch_latency()?;
    let cpu = cpu(&mut client, server, extent)?;
    let times = client.latency().context("no times were taken")?;
    let micros = |part| times.value_at_quantile(part) as f64 / 1e3;
    Ok(Sample::Latency(Latency {
        p50_us: micros(0.5),
        p99_us: micros(0.99),
        p999_us: micros(0.999),
        max_us: times.max() as f64 / 1e3,
        cpu,
    }))
}

fn memory<W: Wire>(
    connections: usize,
    server: &ServerProcess,
    connect: impl Fn(SocketAddr, Load) -> Result<Client<W>>,
) -> Result<Sample> {
    let load = Load {
        connections: 1,
        size: 64,
        depth: 1,
    };
    // What a server allocates once, for its first connection, is not a connection's share.
    let mut first = connect(server.address, load)?;
    first.run(1)?;
    drop(first);
    thread::sleep(SETTLE);
    let read = || Ok::<_, anyhow::Error>((proc::resident(server.pid())?, proc::kernel_objects()));
    let (user_before, kernel_before) = read()?;
    let descriptors_before = proc::descriptors(server.pid())?;

    let load = Load { connections, ..load };
    let mut crowd = connect(server.address, load)?;
    crowd.run(connections as u64)?;
    crowd.finish()?;
    thread::sleep(SETTLE);
    let (user, kernel) = read()?;
    drop(crowd);

    let end = Instant::now() + CLOSING_PATIENCE;
    loop {
        let left = proc::descriptors(server.pid())?.saturating_sub(descriptors_before);
        if left == 0 {
            break;
        }
        ensure!(
            Instant::now() < end,
            "{left} descriptors stay after all connections closed"
        );
        thread::sleep(Duration::from_millis(10));
    }
    let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / connections as f64;
    Ok(Sample::Memory(Memory {
        user: each(user_before, user),
        kernel: kernel_before
            .zip(kernel)
            .map_or(0.0, |(before, after)| each(before, after)),
    }))
}

/// For the server to notice that connections closed, and for the kernel to free what the last server had.
const SETTLE: Duration = Duration::from_millis(200);
const CLOSING_PATIENCE: Duration = Duration::from_secs(5);

/// All counters at one moment, taken between two of the client's batches, when the server has all it may work on.
struct Reading {
    at: Instant,
    server: Duration,
    client: Duration,
    progress: Progress,
}

impl Reading {
    fn take(client: &impl Exercise, server: &ServerProcess) -> Result<Reading> {
        Ok(Reading {
            at: Instant::now(),
            server: server.cpu_time()?,
            client: sys::cpu_time_of_thread()?,
            progress: client.progress(),
        })
    }

    fn since(&self, before: &Reading) -> Cpu {
        let operations = self.progress.operations - before.progress.operations;
        let waits = self.progress.waits - before.progress.waits;
        let events = self.progress.events - before.progress.events;
        let passed = (self.at - before.at).as_secs_f64();
        let server = (self.server - before.server).as_secs_f64();
        let client = (self.client - before.client).as_secs_f64();
        Cpu {
            server_us: server * 1e6 / operations as f64,
            client_us: client * 1e6 / operations as f64,
            operations,
            per_second: operations as f64 / passed,
            batch: events as f64 / waits as f64,
            share: (server + client) / passed,
        }
    }
}
