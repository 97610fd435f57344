//! Measures peers side by side: what runs, in which order, and what is kept. report.rs and plot.rs show it.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::client::Load;
use crate::measure::{Extent, measure};
use crate::peers::{self, PEERS, Peer};
use crate::scenario::{PeerResult, Pin, Scenario, Work, suite};
use crate::server_process::Placing;
use crate::{plot, report, sys};

/// Echoed messages, of whatever kind is asked for.
#[derive(Args)]
pub struct Compare {
    #[arg(long, value_delimiter = ',', default_value = "1,64,1000")]
    connections: Vec<usize>,
    /// Bytes in a message.
    #[arg(long, value_delimiter = ',', default_value = "64")]
    size: Vec<usize>,
    /// Messages that each connection has on the way.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    depth: Vec<usize>,
    #[command(flatten)]
    course: Course,
}

/// Everything that this program compares.
#[derive(Args)]
pub struct All {
    /// A shorter list, each measured for a shorter time and less often.
    #[arg(long)]
    quick: bool,
    /// Only the scenarios whose title contains this.
    #[arg(long)]
    only: Option<String>,
    #[command(flatten)]
    course: Course,
}

/// Who is measured, how often, for how long, and where the results go.
#[derive(Args)]
pub struct Course {
    /// Peers to run [default: all that suit].
    #[arg(long, value_delimiter = ',', value_parser = peers::find)]
    peers: Vec<&'static Peer>,
    /// The peer that the others are compared with [default: tokio, in its form that suits].
    #[arg(long, value_parser = peers::find)]
    base: Option<&'static Peer>,
    /// How often each peer is measured in each scenario [default: 10; 5 for all and tls, 3 for all --quick].
    #[arg(long)]
    rounds: Option<usize>,
    /// How long one measurement takes [default: 0.4; 0.3 for all, 0.15 for all --quick].
    #[arg(long)]
    seconds: Option<f64>,
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
    #[arg(long, default_value = PLOT)]
    plot: PathBuf,
}

const PLOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/out/compare.svg");

/// What an earlier run measured, from its `--json`.
#[derive(Args)]
pub struct Show {
    samples: PathBuf,
    /// Compare with another peer than that run did.
    #[arg(long)]
    base: Option<String>,
    #[arg(long, default_value = PLOT)]
    plot: PathBuf,
}

/// All that one run measured.
#[derive(Serialize, Deserialize)]
pub struct Comparison {
    pub machine: Machine,
    pub second_thread: bool,
    pub scenarios: Vec<Scenario>,
}

#[derive(Serialize, Deserialize)]
pub struct Machine {
    pub kernel: String,
    pub cores: usize,
    pub load_before: String,
}

/// How often and how long, where the options do not say.
pub struct Usual {
    pub rounds: usize,
    pub seconds: f64,
}

pub fn compare(options: &Compare) -> Result<()> {
    let mut works = Vec::new();
    for &size in &options.size {
        for &depth in &options.depth {
            for &connections in &options.connections {
                works.push(Work::Echo(Load {
                    connections,
                    size,
                    depth,
                }));
            }
        }
    }
    let usual = Usual {
        rounds: 10,
        seconds: 0.4,
    };
    run(works, &options.course, &usual)
}

pub fn all(options: &All) -> Result<()> {
    let (rounds, seconds) = if options.quick { (3, 0.15) } else { (5, 0.3) };
    let asked = |work: &Work| {
        options
            .only
            .as_ref()
            .is_none_or(|part| work.title().contains(part))
    };
    let works: Vec<Work> = suite(options.quick).into_iter().filter(asked).collect();
    ensure!(!works.is_empty(), "no scenario is called so");
    run(works, &options.course, &Usual { rounds, seconds })
}

pub fn show(options: &Show) -> Result<()> {
    let path = &options.samples;
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut comparison: Comparison = serde_json::from_str(&text)?;
    if let Some(base) = &options.base {
        for scenario in &mut comparison.scenarios {
            scenario.base.clone_from(base);
        }
    }
    present(&comparison, &options.plot)
}

/// Measures all of `works` and shows it.
pub fn run(works: Vec<Work>, course: &Course, usual: &Usual) -> Result<()> {
    let comparison = measure_all(works, course, usual)?;
    if let Some(path) = &course.json {
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        serde_json::to_writer_pretty(file, &report::json(&comparison)?)?;
    }
    present(&comparison, &course.plot)
}

fn present(comparison: &Comparison, plot: &Path) -> Result<()> {
    print!("{}", report::table(comparison));
    if let Some(folder) = plot.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(plot, plot::svg(comparison)).with_context(|| format!("write {}", plot.display()))?;
    println!("plot: {}", plot.display());
    Ok(())
}

fn measure_all(works: Vec<Work>, course: &Course, usual: &Usual) -> Result<Comparison> {
    let rounds = course.rounds.unwrap_or(usual.rounds);
    ensure!(rounds > 0, "no rounds");
    let seconds = course.seconds.unwrap_or(usual.seconds);
    let extent = match course.messages {
        Some(messages) => Extent::Operations(messages),
        None => Extent::Time(Duration::try_from_secs_f64(seconds)?),
    };
    let mut comparison = Comparison {
        machine: Machine::read()?,
        second_thread: course.second_thread,
        scenarios: works.into_iter().map(|work| scenario(work, course)).collect(),
    };
    sys::raise_open_files_limit()?;
    for round in 0..rounds {
        for (number, scenario) in comparison.scenarios.iter_mut().enumerate() {
            if io::stderr().is_terminal() {
                eprint!(
                    "\x1b[2Kround {} of {rounds}: {}\r",
                    round + 1,
                    scenario.work.title()
                );
            }
            let placing = place(scenario.pin, course.second_thread, comparison.machine.cores)?;
            let peers = scenario.results.len();
            for place in 0..peers {
                // Each peer comes first, second, ... equally often, and after a different neighbour per scenario.
                let turn = (place + round + number) % peers;
                measure_once(scenario.work, &mut scenario.results[turn], &placing, extent)?;
            }
        }
    }
    Ok(comparison)
}

/// A peer that fails is not measured again in that scenario.
fn measure_once(work: Work, result: &mut PeerResult, placing: &Placing, extent: Extent) -> Result<()> {
    let peer = peers::find(&result.peer).map_err(anyhow::Error::msg)?;
    let sample = match result.failure {
        Some(_) => None,
        None => measure(peer, work, placing, extent)
            .map_err(|error| result.failure = Some(format!("{error:#}")))
            .ok(),
    };
    result.samples.push(sample);
    Ok(())
}

/// With the peers that were asked for and suit, the base among them, since nothing can be compared without it.
fn scenario(work: Work, course: &Course) -> Scenario {
    let base = course
        .base
        .filter(|base| work.suits(base))
        .unwrap_or_else(|| work.usual_base());
    let asked = |peer: &&Peer| {
        peer.name == base.name
            || course.peers.is_empty()
            || course.peers.iter().any(|asked| asked.name == peer.name)
    };
    let result = |peer: &Peer| PeerResult {
        peer: peer.name.to_owned(),
        samples: Vec::new(),
        failure: None,
    };
    let peers = PEERS.iter().filter(|peer| work.suits(peer)).filter(asked);
    Scenario {
        work,
        pin: if matches!(work, Work::Latency(_)) {
            Pin::Separate
        } else {
            course.pin
        },
        base: base.name.to_owned(),
        results: peers.map(result).collect(),
    }
}

/// Puts this thread, as the client, where `pin` wants it, and tells where a server has to be.
fn place(pin: Pin, second_thread: bool, cores: usize) -> Result<Placing> {
    // Not core 0, which tends to serve the machine's interrupts.
    let (server, client) = match pin {
        Pin::Same => (Some(cores - 1), Some(cores - 1)),
        Pin::Separate => (Some(0), Some(1)),
        Pin::None => (None, None),
    };
    let placing = |core| Placing {
        core,
        // Who has a core of its own shall be woken at once, whatever else runs there.
        take_turns: pin == Pin::Same,
        second_thread,
    };
    placing(client).apply()?;
    Ok(placing(server))
}

impl Machine {
    pub fn read() -> Result<Machine> {
        Ok(Machine {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            cores: sys::cores_of_the_machine()?,
            load_before: fs::read_to_string("/proc/loadavg")?.trim().to_owned(),
        })
    }
}
