//! hyper on Wharf beside hyper on tokio: requests in a second as `wrk` counts them, and the server's CPU time for each.
//!
//! The servers differ in what carries hyper and in nothing else. They take turns, and each round has its own ratio.

mod servers;

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::server_process::{self, Placing, ServerProcess};

#[derive(Args)]
pub struct Http {
    /// What carries hyper; the ratios are to the first.
    #[arg(long, value_delimiter = ',', default_value = "tokio,wharf,wharf-uring")]
    on: Vec<Carrier>,
    /// Threads of the server.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Connections of wrk, which has one thread.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Bytes of each answer's body.
    #[arg(long, value_delimiter = ',', default_value = "13")]
    body: Vec<usize>,
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
}

/// What hyper's connections are.
#[derive(Copy, Clone, Debug, PartialEq, ValueEnum)]
pub enum Carrier {
    /// tokio's, by hyper-util; with one thread on the current-thread runtime.
    Tokio,
    /// Wharf's, on readiness.
    Wharf,
    WharfUring,
}

impl Carrier {
    fn name(self) -> &'static str {
        match self {
            Carrier::Tokio => "tokio",
            Carrier::Wharf => "wharf",
            Carrier::WharfUring => "wharf-uring",
        }
    }
}

#[derive(Args)]
pub struct ServeHttp {
    #[arg(long)]
    on: Carrier,
    #[arg(long)]
    threads: usize,
    #[arg(long)]
    body: usize,
    #[command(flatten)]
    placing: Placing,
}

/// What one run of wrk found.
#[derive(Copy, Clone)]
struct Found {
    per_second: f64,
    cpu_micros: f64,
}

pub fn run(options: &Http) -> Result<()> {
    for threads in &options.threads {
        for body in &options.body {
            compare(options, *threads, *body)?;
        }
    }
    Ok(())
}

fn compare(options: &Http, threads: usize, body: usize) -> Result<()> {
    println!(
        "{threads} server thread(s), {} connections, {body} bytes of body, {} rounds of {} s",
        options.connections, options.rounds, options.seconds
    );
    let servers = options
        .on
        .iter()
        .map(|carrier| start(*carrier, threads, body))
        .collect::<Result<Vec<_>>>()?;
    for server in &servers {
        drive(server, options.connections, Duration::from_secs(1))?;
    }
    let mut rounds = Vec::new();
    for number in 0..options.rounds {
        // Whoever is first in a round is so in turns.
        let mut round = vec![None; servers.len()];
        for place in 0..servers.len() {
            let index = (place + number) % servers.len();
            let span = Duration::from_secs(options.seconds);
            round[index] = Some(drive(&servers[index], options.connections, span)?);
        }
        rounds.push(round.into_iter().flatten().collect::<Vec<_>>());
    }
    println!(
        "  {:<14}{:>12}{:>10}{:>12}{:>10}",
        "", "requests/s", "ratio", "CPU us/req", "ratio"
    );
    for (index, carrier) in options.on.iter().enumerate() {
        let of = |value: fn(&Found) -> f64| median(rounds.iter().map(|round| value(&round[index])).collect());
        let ratio = |value: fn(&Found) -> f64| {
            median(
                rounds
                    .iter()
                    .map(|round| value(&round[index]) / value(&round[0]))
                    .collect(),
            )
        };
        println!(
            "  {:<14}{:>12.0}{:>10.3}{:>12.2}{:>10.3}",
            carrier.name(),
            of(|found| found.per_second),
            ratio(|found| found.per_second),
            of(|found| found.cpu_micros),
            ratio(|found| found.cpu_micros),
        );
    }
    Ok(())
}

fn start(carrier: Carrier, threads: usize, body: usize) -> Result<ServerProcess> {
    let (threads, body) = (threads.to_string(), body.to_string());
    let arguments = [
        "serve-http",
        "--on",
        carrier.name(),
        "--threads",
        &threads,
        "--body",
        &body,
    ];
    ServerProcess::start_with(&arguments, &Placing::default())
}

fn drive(server: &ServerProcess, connections: usize, span: Duration) -> Result<Found> {
    let before = server.cpu_time()?;
    let began = Instant::now();
    let requests = wrk(server.address, connections, span)?;
    let elapsed = began.elapsed();
    let cpu = server.cpu_time()? - before;
    Ok(Found {
        per_second: requests as f64 / elapsed.as_secs_f64(),
        cpu_micros: cpu.as_secs_f64() * 1e6 / requests as f64,
    })
}

/// How many requests wrk had answered. An answer that is none is an error.
fn wrk(address: SocketAddr, connections: usize, span: Duration) -> Result<u64> {
    let output = Command::new("wrk")
        .args(["--threads", "1", "--connections", &connections.to_string()])
        .args([
            "--duration",
            &format!("{}s", span.as_secs()),
            &format!("http://{address}/"),
        ])
        .output()
        .context("wrk is needed (Debian's package has its name)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk failed: {text}");
    ensure!(
        !text.contains("Socket errors") && !text.contains("Non-2xx"),
        "{text}"
    );
    let requests = text
        .split(" requests in")
        .next()
        .and_then(|text| text.split_whitespace().last());
    let requests = requests.and_then(|number| number.parse().ok()).unwrap_or(0);
    ensure!(requests > 0, "wrk tells of no requests: {text}");
    Ok(requests)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The child.
pub fn serve(options: &ServeHttp) -> Result<()> {
    server_process::prepare(&options.placing)?;
    match options.on {
        Carrier::Tokio => servers::tokio(options.threads, options.body),
        Carrier::Wharf => servers::wharf(wharf::Backend::Readiness, options.threads, options.body),
        Carrier::WharfUring => servers::wharf(wharf::Backend::Uring, options.threads, options.body),
    }
}
