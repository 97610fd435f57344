//! `wharf serve`: from arguments to a running server, and what it says about itself.

use std::io::{self, Write};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::filter::LevelFilter;
use wharf::{Address, Backend, ServerHandle, Stats};

use crate::args::{Serve, Style};
use crate::certificates::Certificates;
use crate::exit::{Failure, note};
use crate::operator::{self, Running};
use crate::options::Admission;
use crate::serve_blocking;
use crate::services;
use crate::settings::{CommandLine, Settings};

pub(crate) fn run(args: &Serve) -> Result<(), Failure> {
    log_to_stderr(args);
    raise_descriptor_limit();
    let line = CommandLine::of_process(args);
    let settings = line.settings()?;
    let certificates = Certificates::new(&settings.serve.options.tls, args.quiet)?;
    if let Style::Blocking = settings.serve.options.running.with.style {
        return serve_blocking::run(line, settings, certificates.as_ref());
    }
    let server = start(&settings, certificates.as_ref()).map_err(|failure| settings.failure(failure))?;
    let workers = workers(&settings.serve, &server);
    let bounds = bounds(&settings.serve, &server);
    operator::obey_signals(line, settings, server.clone(), certificates.clone())?;
    certificates.as_ref().map_or(Ok(()), Certificates::watch)?;
    announce(addresses(&server)).map_err(Failure::of_output)?;
    if !args.quiet {
        note(workers);
        bounds.iter().for_each(note);
        certificates.iter().flat_map(Certificates::lines).for_each(note);
    }
    let stats = server.wait()?;
    if !args.quiet {
        note(summary(&stats));
    }
    Ok(())
}

/// Allows as many descriptors as the system lets this process have. If it does not, the limit stays what it was, and
/// the number of connections follows it.
pub(crate) fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

fn start(settings: &Settings, certificates: Option<&Certificates>) -> Result<ServerHandle, Failure> {
    let Serve { service, options, .. } = &settings.serve;
    let server = options.server(*service).ok_or_else(|| settings.without_listener())?;
    let server = match certificates {
        Some(certificates) => server.tls(certificates.acceptor()),
        None => server,
    };
    Ok(services::start(server, *service, options.running.with.style, options.piece())?)
}

fn log_to_stderr(args: &Serve) {
    let level = match args.verbose {
        _ if args.quiet => LevelFilter::ERROR,
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        // If standard error is gone, the server goes on without.
        .log_internal_errors(false)
        .init();
}

/// The lines that scripts wait for.
pub(crate) fn announce(addresses: impl IntoIterator<Item = Address>) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    for address in addresses {
        writeln!(stdout, "listening on {address}")?;
    }
    stdout.flush()
}

pub(crate) fn addresses(server: &ServerHandle) -> impl Iterator<Item = Address> {
    server.listeners().into_iter().map(|listener| listener.address)
}

/// What is said when a drain begins.
pub(crate) fn draining(connections: usize, within: Duration) -> String {
    format!("draining {connections} connections for at most {}", humantime::format_duration(within))
}

/// How many workers a server has and what carries their connections.
fn workers(args: &Serve, server: &ServerHandle) -> String {
    let line = format!("{} workers on {}", server.backends().len(), backends(server));
    let does_without = cfg!(target_os = "linux") && server.backends().contains(&Backend::Readiness);
    let by_choice =
        args.options.running.with.backend != Backend::Auto || std::env::var_os("WHARF_BACKEND").is_some();
    if does_without && !by_choice {
        return format!("{line}, as io_uring cannot be used: `wharf probe` tells why");
    }
    line
}
/// The limits and deadlines in force, and why so many connections, in a line each.
pub(crate) fn bounds(serve: &Serve, server: &impl Running) -> [String; 2] {
    let admission = &serve.options.admission;
    let snapshot = server.snapshot();
    let mut limits = vec![format!("{} connections, {}", snapshot.connections_max, server.reason(admission))];
    limits.extend(admission.max_per_address.map(|connections| format!("{connections} of one address")));
    limits.extend(admission.accept_rate.map(|rate| rate.to_string()));
    [format!("limits: {}", limits.join("; ")), format!("deadlines: {}", snapshot.deadlines)]
}

/// Why a server holds as many connections as it does.
pub(crate) fn reason(_: &ServerHandle, admission: &Admission) -> String {
    let descriptors = getrlimit(Resource::Nofile).current;
    match (admission.max_connections, descriptors) {
        (None, _) => String::from("from the descriptor limit"),
        (Some(asked), Some(allowed)) if u64::from(asked) >= allowed => {
            format!("from --max-connections, but the process may have only {allowed} descriptors")
        }
        _ => String::from("from --max-connections"),
    }
}

/// What carries a server's connections: nearly always one backend.
pub(crate) fn backends(server: &ServerHandle) -> String {
    let all = server.backends();
    let of = |backend: Backend| all.iter().filter(|each| **each == backend).count();
    match (of(Backend::Uring), of(Backend::Readiness)) {
        (_, 0) => Backend::Uring.to_string(),
        (0, _) => Backend::Readiness.to_string(),
        (uring, readiness) => {
            format!("{} ({uring}) and {} ({readiness})", Backend::Uring, Backend::Readiness)
        }
    }
}

/// What a server did, in one line.
pub(crate) fn summary(stats: &Stats) -> String {
    let Stats { accepted, accept_errors, received, sent, unsent, .. } = stats;
    format!(
        "served {accepted} connections ({accept_errors} accept errors), received {received} bytes, sent {sent} bytes, \
         {unsent} unsent; {}",
        closes(stats)
    )
}

/// How connections ended, most frequent first.
fn closes(stats: &Stats) -> String {
    if stats.closes.is_empty() {
        return String::from("none closed");
    }
    let each: Vec<_> = stats.closes.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    each.join(", ")
}
