//! `wharf serve`: from arguments to a running server, and from a signal to its end.

use std::io::{self, Write};
use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::filter::LevelFilter;
use wharf::{Backend, Deadlines, Limits, Server, ServerHandle, Stats};

use crate::args::{Serve, Service, With};
use crate::exit::{self, Failure, note};
use crate::services;

pub(crate) fn run(args: &Serve) -> Result<(), Failure> {
    log_to_stderr(args);
    raise_descriptor_limit();
    let server = services::start(describe(args), args.service, args.with.style)?;
    drain_on_signals(args, server.clone())?;
    announce(server.local_addr()).map_err(Failure::of_output)?;
    if !args.quiet {
        note(start_line(args, &server));
    }
    let stats = server.wait()?;
    if !args.quiet {
        note(summary(&stats));
    }
    Ok(())
}

/// A server at `address` that runs as asked for.
pub(crate) fn server(address: &str, with: &With) -> Server {
    let server = Server::bind(address).backend(with.backend).spin(with.spin);
    match with.workers {
        Some(workers) => server.workers(workers),
        None => server,
    }
}

/// Allows as many descriptors as the system lets this process have. If it does not, the limit stays what it was, and
/// the number of connections follows it.
pub(crate) fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

fn describe(args: &Serve) -> Server {
    let idle = match args.service {
        // Its clients have nothing to say.
        Service::Chargen => None,
        _ => args.idle_timeout.0,
    };
    let mut deadlines = Deadlines::default().idle(idle);
    if idle.is_none() {
        deadlines = deadlines.first_byte(None);
    }
    let limits = Limits::default();
    server(&args.listen, &args.with).deadlines(deadlines).limits(match args.max_connections {
        Some(connections) => limits.connections(connections),
        None => limits,
    })
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

fn drain_on_signals(args: &Serve, server: ServerHandle) -> Result<(), Failure> {
    let (within, quiet) = (args.drain, args.quiet);
    let mut draining = false;
    exit::on_signals(move |_| {
        let (line, within) = if draining {
            (String::from("stopping at once"), Default::default())
        } else {
            let connections = server.connections();
            (
                format!(
                    "draining {connections} connections for at most {}",
                    humantime::format_duration(within)
                ),
                within,
            )
        };
        draining = true;
        if !quiet {
            note(line);
        }
        server.drain(within);
    })
}

/// The line that scripts wait for.
fn announce(address: SocketAddr) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "listening on {address}")?;
    stdout.flush()
}

/// How many workers a server has and what carries their connections, in one line.
fn start_line(args: &Serve, server: &ServerHandle) -> String {
    let line = format!("{} workers on {}", server.backends().len(), backends(server));
    let does_without = cfg!(target_os = "linux") && server.backends().contains(&Backend::Readiness);
    let by_choice = args.with.backend != Backend::Auto || std::env::var_os("WHARF_BACKEND").is_some();
    if does_without && !by_choice {
        return format!("{line}, as io_uring cannot be used: `wharf probe` tells why");
    }
    line
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
