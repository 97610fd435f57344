//! What one good client notices of many hostile ones: its round trips alone and beside them, in turns.
//!
//! The server is Wharf with its default limits and deadlines. fleet.rs is the hostile side.

mod fleet;
mod good;
mod table;

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use wharf::{Backend, Limits, OverLimit, Server};

use crate::compare::Machine;
use crate::peers::{ANY_PORT, wharf_async, wharf_event};
use crate::server_process::{self, Placing, ServerProcess};
use crate::{proc, sys};
use fleet::Fleet;
use good::{Good, RoundTrips};

#[derive(Args)]
pub struct Hostile {
    #[arg(long, value_delimiter = ',', default_value = "readiness,uring")]
    backend: Vec<Engine>,
    #[arg(long, value_delimiter = ',', default_value = "event,async")]
    style: Vec<Style>,
    /// What the hostile peers do.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "readers,writers,silent,mixed,churn"
    )]
    kind: Vec<Kind>,
    /// Hostile peers at once [default: 1000; 30 with --quick].
    #[arg(long)]
    peers: Option<usize>,
    /// Round trips of the good client in one measurement [default: 2000; 100 with --quick].
    #[arg(long)]
    messages: Option<usize>,
    /// Round trips of the good client in a second.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// How often it is measured alone, and as often beside the others [default: 5; 1 with --quick].
    #[arg(long)]
    rounds: Option<usize>,
    /// A tiny form of everything, in seconds; its figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Also write every sample here.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Copy, Clone, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    Readiness,
    Uring,
}

#[derive(Copy, Clone, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    Event,
    Async,
}

/// What a hostile peer does.
#[derive(Copy, Clone, PartialEq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Send as much as they can and never read.
    Readers,
    /// Send a byte every 100 ms.
    Writers,
    /// Connect and say nothing.
    Silent,
    /// A third of each of these.
    Mixed,
    /// Connect anew every 200 ms to a server that has room for half of them and resets the others.
    Churn,
}

/// All that one run measured.
#[derive(Serialize)]
pub struct Outcome {
    machine: Machine,
    peers: usize,
    messages: usize,
    rate: u32,
    cases: Vec<Case>,
}

/// One server under one kind of peers.
#[derive(Serialize)]
pub struct Case {
    kind: Kind,
    backend: Engine,
    style: Style,
    rounds: Vec<Round>,
    /// Why there are no more of them.
    failure: Option<String>,
}

#[derive(Serialize)]
struct Round {
    alone: Sample,
    beside: Sample,
    fleet: FleetShare,
}

#[derive(Copy, Clone, Serialize)]
struct Sample {
    round_trips: RoundTrips,
    /// The server's CPU time as a part of the time that passed.
    server_share: f64,
    /// The server's resident memory at the end.
    resident: u64,
}

/// Whether the hostile side did what it was to do, and whether it was in the good client's way.
#[derive(Copy, Clone, Serialize)]
struct FleetShare {
    /// Its thread's CPU time as a part of the time that passed.
    cpu_share: f64,
    /// Turns of peers, as a part of those that were due.
    done_share: f64,
    /// Descriptors that the server has beyond those it has for the good client alone.
    held: usize,
}

pub fn run(options: &Hostile) -> Result<()> {
    let or = |given: Option<usize>, usual, quick| given.unwrap_or(if options.quick { quick } else { usual });
    let peers = or(options.peers, 1000, 30);
    let messages = or(options.messages, 2000, 100);
    let rounds = or(options.rounds, 5, 1);
    ensure!(
        peers > 0 && messages > 0 && rounds > 0 && options.rate > 0,
        "nothing to measure"
    );
    let limit = sys::raise_open_files_limit()?;
    ensure!(
        limit > peers as u64 + 128,
        "{peers} peers need more than the {limit} open files that a process may have"
    );
    let mut outcome = Outcome {
        machine: Machine::read()?,
        peers,
        messages,
        rate: options.rate,
        cases: Vec::new(),
    };
    on_core(1).apply()?;
    for &kind in &options.kind {
        for &style in &options.style {
            for &backend in &options.backend {
                let mut case = Case {
                    kind,
                    backend,
                    style,
                    rounds: Vec::new(),
                    failure: None,
                };
                let measured = measure(&mut case, &outcome, rounds);
                case.failure = measured.err().map(|error| format!("{error:#}"));
                outcome.cases.push(case);
            }
        }
    }
    print!("{}", table::table(&outcome));
    if let Some(path) = &options.json {
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        serde_json::to_writer_pretty(file, &outcome)?;
    }
    ensure!(
        outcome.cases.iter().all(|case| case.failure.is_none()),
        "the good client was let down"
    );
    Ok(())
}

fn on_core(core: usize) -> Placing {
    Placing {
        core: Some(core),
        ..Placing::default()
    }
}

/// One server for all rounds; the hostile peers come and go.
fn measure(case: &mut Case, outcome: &Outcome, rounds: usize) -> Result<()> {
    let server = start(case, outcome.peers)?;
    let mut good = Good::connect(server.address, outcome.rate)?;
    good.run(outcome.messages.min(WARM_UP))?;
    let descriptors = proc::descriptors(server.pid())?;
    for _ in 0..rounds {
        let alone = sample(&mut good, &server, outcome.messages)?;

        let fleet = Fleet::start(server.address, case.kind, outcome.peers);
        fleet.settle()?;
        let (began, before) = (Instant::now(), fleet.progress());
        let beside = sample(&mut good, &server, outcome.messages)?;
        let (passed, after) = (began.elapsed().as_secs_f64(), fleet.progress());
        let held = proc::descriptors(server.pid())?.saturating_sub(descriptors);
        fleet.stop()?;
        thread::sleep(SETTLE);

        let due = passed / case.kind.pause().as_secs_f64() * outcome.peers as f64;
        let fleet = FleetShare {
            cpu_share: (after.cpu - before.cpu).as_secs_f64() / passed,
            done_share: (after.turns - before.turns) as f64 / due,
            held,
        };
        case.rounds.push(Round { alone, beside, fleet });
    }
    Ok(())
}

const WARM_UP: usize = 200;
/// For the server to part with peers that left.
const SETTLE: Duration = Duration::from_millis(300);

fn sample(good: &mut Good, server: &ServerProcess, messages: usize) -> Result<Sample> {
    let (began, before) = (Instant::now(), server.cpu_time()?);
    let round_trips = good.run(messages)?;
    let server_share = (server.cpu_time()? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    Ok(Sample {
        round_trips,
        server_share,
        resident: proc::resident(server.pid())?,
    })
}

/// What the child is told.
#[derive(Args)]
pub struct ServeOwn {
    backend: Engine,
    style: Style,
    /// Hold no more connections than this, and reset others.
    #[arg(long)]
    limit: Option<usize>,
    #[command(flatten)]
    placing: Placing,
}

fn start(case: &Case, peers: usize) -> Result<ServerProcess> {
    let engine = case.backend.name();
    let style = case.style.name();
    let limit = (peers / 2 + 1).to_string();
    let mut arguments = vec!["serve-own", &engine, &style];
    if case.kind == Kind::Churn {
        arguments.extend(["--limit", &limit]);
    }
    ServerProcess::start_with(&arguments, &on_core(0))
}

/// The child: announces its address and serves until it is killed.
pub fn serve(options: &ServeOwn) -> Result<()> {
    server_process::prepare(&options.placing)?;
    let backend = match options.backend {
        Engine::Readiness => Backend::Readiness,
        Engine::Uring => Backend::Uring,
    };
    let limits = match options.limit {
        Some(limit) => Limits::default().connections(limit).over_limit(OverLimit::Reset),
        None => Limits::default(),
    };
    let server = Server::bind(ANY_PORT).workers(1).backend(backend).limits(limits);
    match options.style {
        Style::Event => wharf_event::run(server),
        Style::Async => wharf_async::run(server),
    }
}

/// As the command line has it.
trait Named: ValueEnum {
    fn name(&self) -> String {
        let value = self.to_possible_value().expect("none is skipped");
        value.get_name().to_owned()
    }

    fn about(&self) -> String {
        let value = self.to_possible_value().expect("none is skipped");
        value.get_help().map(ToString::to_string).unwrap_or_default()
    }
}

impl<T: ValueEnum> Named for T {}
