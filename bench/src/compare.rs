//! Measures peers side by side: what runs, in which order, and what is kept. report.rs and plot.rs show it.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::client::{Client, Load, Progress};
use crate::peers::{self, PEERS, Peer};
use crate::server_process::{Placing, ServerProcess, take_turns_on};
use crate::{plot, report, sys};

#[derive(Args)]
pub struct Compare {
    /// Peers to run [default: all].
    #[arg(long, value_delimiter = ',', value_parser = peers::find)]
    peers: Vec<&'static Peer>,
    /// The peer that the others are compared with.
    #[arg(long, default_value = peers::BASE, value_parser = peers::find)]
    base: &'static Peer,
    #[arg(long, value_delimiter = ',', default_value = "1,64,1000")]
    connections: Vec<usize>,
    /// Bytes in a message.
    #[arg(long, value_delimiter = ',', default_value = "64")]
    size: Vec<usize>,
    /// Messages that each connection has on the way.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    depth: Vec<usize>,
    /// How often each peer is measured in each scenario.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// How long one measurement takes.
    #[arg(long, default_value_t = 0.4)]
    seconds: f64,
    /// Measure this many messages instead.
    #[arg(long, conflicts_with = "seconds")]
    messages: Option<u64>,
    #[arg(long, value_enum, default_value_t = Pin::Same)]
    pin: Pin,
    /// Give each server a thread that does nothing, as most real programs have one. It makes libc's and the kernel's
    /// calls dearer by some percent, for the peers that would otherwise have a single thread.
    #[arg(long)]
    second_thread: bool,
    /// Also write every sample here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the plot goes.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/out/compare.svg"))]
    plot: PathBuf,
}

/// Which cores client and server get.
#[derive(Copy, Clone, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pin {
    /// One for both: they take turns.
    Same,
    /// Server on core 0, client on core 1.
    Separate,
    /// Whatever the scheduler likes.
    None,
}

/// All that one run measured.
#[derive(Serialize)]
pub struct Comparison {
    pub machine: Machine,
    pub pin: Pin,
    pub second_thread: bool,
    pub base: &'static str,
    pub scenarios: Vec<Scenario>,
}

#[derive(Serialize)]
pub struct Machine {
    pub kernel: String,
    pub cores: usize,
    pub load_before: String,
}

#[derive(Serialize)]
pub struct Scenario {
    pub load: Load,
    pub results: Vec<PeerResult>,
}

/// One peer's samples in one scenario, by round.
#[derive(Serialize)]
pub struct PeerResult {
    pub peer: &'static str,
    pub samples: Vec<Sample>,
}

/// One measurement, per echoed message.
#[derive(Copy, Clone, Serialize)]
pub struct Sample {
    pub server_us: f64,
    pub client_us: f64,
    pub messages: u64,
    pub messages_per_second: f64,
    /// How many connections had something each time that the client woke.
    pub batch: f64,
    /// Client's and server's CPU time as a part of the time that passed: on one core, what is missing to 1 went to
    /// other processes, and above 1 a server has used several.
    pub share: f64,
}

pub fn run(options: &Compare) -> Result<()> {
    let comparison = measure(options)?;
    print!("{}", report::table(&comparison));
    if let Some(folder) = options.plot.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&options.plot, plot::svg(&comparison))
        .with_context(|| format!("write {}", options.plot.display()))?;
    println!("plot: {}", options.plot.display());
    if let Some(path) = &options.json {
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        serde_json::to_writer_pretty(file, &report::json(&comparison)?)?;
    }
    Ok(())
}

fn measure(options: &Compare) -> Result<Comparison> {
    ensure!(options.rounds > 0, "no rounds");
    let peers = chosen_peers(options);
    let mut comparison = Comparison {
        machine: Machine::read()?,
        pin: options.pin,
        second_thread: options.second_thread,
        base: options.base.name,
        scenarios: scenarios(options, &peers),
    };
    sys::raise_open_files_limit()?;
    let (server_core, client_core) = match options.pin {
        // Not core 0, which tends to serve the machine's interrupts.
        Pin::Same => (
            Some(comparison.machine.cores - 1),
            Some(comparison.machine.cores - 1),
        ),
        Pin::Separate => (Some(0), Some(1)),
        Pin::None => (None, None),
    };
    let placing = Placing {
        core: server_core,
        second_thread: options.second_thread,
    };
    if let Some(core) = client_core {
        take_turns_on(core)?;
    }

    for round in 0..options.rounds {
        if io::stderr().is_terminal() {
            eprint!("round {} of {}\r", round + 1, options.rounds);
        }
        for (number, scenario) in comparison.scenarios.iter_mut().enumerate() {
            for place in 0..peers.len() {
                // Each peer comes first, second, ... equally often, and after a different neighbour per scenario.
                let turn = (place + round + number) % peers.len();
                let sample = measure_once(peers[turn], scenario.load, &placing, options)
                    .with_context(|| format!("{} with {:?}", peers[turn].name, scenario.load))?;
                scenario.results[turn].samples.push(sample);
            }
        }
    }
    Ok(comparison)
}

/// Those asked for, the base among them, since nothing can be compared without it.
fn chosen_peers(options: &Compare) -> Vec<&'static Peer> {
    let asked =
        |peer: &&Peer| options.peers.is_empty() || options.peers.iter().any(|asked| asked.name == peer.name);
    PEERS
        .iter()
        .filter(|peer| peer.name == options.base.name || asked(peer))
        .collect()
}

fn scenarios(options: &Compare, peers: &[&Peer]) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for &size in &options.size {
        for &depth in &options.depth {
            for &connections in &options.connections {
                let result = |peer: &&Peer| PeerResult {
                    peer: peer.name,
                    samples: Vec::new(),
                };
                scenarios.push(Scenario {
                    load: Load {
                        connections,
                        size,
                        depth,
                    },
                    results: peers.iter().map(result).collect(),
                });
            }
        }
    }
    scenarios
}

fn measure_once(peer: &Peer, load: Load, placing: &Placing, options: &Compare) -> Result<Sample> {
    // A new process each time: where its memory lands is part of the noise, not of the peer.
    let server = ServerProcess::start(peer, placing)?;
    let mut client = Client::connect(server.address, load)?;
    let in_flight = (load.connections * load.depth) as u64;
    let span = Duration::from_secs_f64(options.seconds);

    run_for(&mut client, span / 8)?;
    client.run(5 * in_flight)?;

    let before = Reading::take(&client, &server)?;
    match options.messages {
        Some(messages) => client.run(messages)?,
        None => run_for(&mut client, span)?,
    }
    let after = Reading::take(&client, &server)?;
    Ok(after.since(&before))
}

fn run_for(client: &mut Client, span: Duration) -> Result<()> {
    let end = Instant::now() + span;
    while Instant::now() < end {
        client.run(MESSAGES_BETWEEN_CLOCK_READS)?;
    }
    Ok(())
}

const MESSAGES_BETWEEN_CLOCK_READS: u64 = 64;

/// All counters at one moment, taken between two of the client's batches, when the server has all it may work on.
struct Reading {
    at: Instant,
    server: Duration,
    client: Duration,
    progress: Progress,
}

impl Reading {
    fn take(client: &Client, server: &ServerProcess) -> Result<Reading> {
        Ok(Reading {
            at: Instant::now(),
            server: server.cpu_time()?,
            client: sys::cpu_time_of_thread()?,
            progress: client.progress,
        })
    }

    fn since(&self, before: &Reading) -> Sample {
        let messages = self.progress.messages - before.progress.messages;
        let waits = self.progress.waits - before.progress.waits;
        let events = self.progress.events - before.progress.events;
        let passed = (self.at - before.at).as_secs_f64();
        let server = (self.server - before.server).as_secs_f64();
        let client = (self.client - before.client).as_secs_f64();
        Sample {
            server_us: server * 1e6 / messages as f64,
            client_us: client * 1e6 / messages as f64,
            messages,
            messages_per_second: messages as f64 / passed,
            batch: events as f64 / waits as f64,
            share: (server + client) / passed,
        }
    }
}

impl Machine {
    fn read() -> Result<Machine> {
        Ok(Machine {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            cores: sys::cores_of_the_machine()?,
            load_before: fs::read_to_string("/proc/loadavg")?.trim().to_owned(),
        })
    }
}
