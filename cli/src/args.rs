//! What can be written on the command line. What it means is decided elsewhere.

use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use wharf::Backend;

use crate::exit;

/// TCP servers and clients that stay up.
#[derive(Debug, Parser)]
#[command(name = "wharf", version, after_help = exit::CODES, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(Demo),
    Serve(Serve),
    Connect(Connect),
    Probe(Probe),
}

/// Play ping-pong on this machine: a server, many clients, and a check of every byte.
///
/// Each client sends a message, waits until it has come back, compares it, and sends the next. No two messages are alike.
/// Ctrl-C ends it early.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::CODES)]
pub(crate) struct Demo {
    /// Number of clients.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) clients: u32,
    /// How long they play.
    #[arg(long, value_name = "D", default_value = "4s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// Size of a message.
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub(crate) size: u32,
    #[command(flatten)]
    pub(crate) with: With,
}

/// Serve one of the classic small services, until SIGTERM or SIGINT.
///
/// Prints `listening on ADDRESS` to standard output before the first connection. A signal drains: nothing new is accepted,
/// connections that are silent for half a second end, busy ones have time to, and chargen stops. A second signal stops at
/// once.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::CODES)]
pub(crate) struct Serve {
    /// What to serve.
    pub(crate) service: Service,
    /// Where: IP:PORT, [IPv6]:PORT or NAME:PORT; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: String,
    #[command(flatten)]
    pub(crate) with: With,
    /// How long a client may be silent, or `none`. Of no concern to chargen.
    #[arg(long, value_name = "D", default_value = "60s")]
    pub(crate) idle_timeout: Timeout,
    /// How many connections at once [default: as many as descriptors allow].
    #[arg(long, value_name = "N")]
    pub(crate) max_connections: Option<usize>,
    /// How long connections have to end after a signal.
    #[arg(long, value_name = "D", default_value = "15s", value_parser = humantime::parse_duration)]
    pub(crate) drain: Duration,
    /// Say nothing but errors.
    #[arg(short, long, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more: -v what the server does, -vv what happens to each connection.
    #[arg(short, long, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// Connect standard input and output to a server.
///
/// The end of the input is passed on, and the command ends when the server has ended. Input that comes after that is still
/// sent, until there is none for half a second. A stalled reader is waited for, on either side.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::CODES)]
pub(crate) struct Connect {
    /// The server.
    #[arg(value_name = "HOST:PORT")]
    pub(crate) server: String,
    /// How long connecting may take, looking up the name included.
    #[arg(long, value_name = "D", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
    /// What carries the connection: auto, uring or readiness; `wharf probe` tells what works.
    #[arg(long, value_name = "ENGINE", default_value_t = Backend::Auto)]
    pub(crate) backend: Backend,
}

/// Tell which backends work here, and which limits a server meets.
///
/// One fact on a line: a name, spaces, the fact. Below what is missing stands a line NAME.hint, which says what to change.
/// Ends with 0 if any backend works.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::CODES)]
pub(crate) struct Probe {}

/// How a server runs.
#[derive(Debug, clap::Args)]
pub(crate) struct With {
    /// How the service is written.
    #[arg(long, default_value = "async")]
    pub(crate) style: Style,
    /// What carries the connections: auto, uring or readiness; `wharf probe` tells what works.
    #[arg(long, value_name = "ENGINE", default_value_t = Backend::Auto)]
    pub(crate) backend: Backend,
    /// Number of worker threads of the server [default: one for each processor].
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// How long a worker with nothing to do spins before it sleeps, at most 10ms: sooner replies, for a processor that is
    /// kept busy.
    #[arg(long, value_name = "D", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) spin: Duration,
}

#[derive(Copy, Clone, Debug, ValueEnum)]
pub(crate) enum Style {
    /// A future for each connection.
    Async,
    /// A handler that is called when something happens.
    Event,
}

#[derive(Copy, Clone, Debug, ValueEnum)]
pub(crate) enum Service {
    /// Sends back what comes (RFC 862).
    Echo,
    /// Throws away what comes (RFC 863).
    Discard,
    /// Sends characters for as long as the client stays (RFC 864).
    Chargen,
    /// Answers each `ping` with `pong`; line ends come back as they are.
    Pingpong,
}

/// A duration, or `none`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timeout(pub(crate) Option<Duration>);

impl FromStr for Timeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Timeout, String> {
        if text == "none" {
            return Ok(Timeout(None));
        }
        match humantime::parse_duration(text) {
            Ok(Duration::ZERO) => Err(String::from("must be longer than zero; `none` turns it off")),
            Ok(after) => Ok(Timeout(Some(after))),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_timeout_is_a_duration_or_none() {
        assert_eq!("none".parse(), Ok(Timeout(None)));
        assert_eq!("500ms".parse(), Ok(Timeout(Some(Duration::from_millis(500)))));
        assert_eq!("2m".parse(), Ok(Timeout(Some(Duration::from_secs(120)))));
        for wrong in ["", "0s", "3", "-1s", "soon"] {
            assert!(wrong.parse::<Timeout>().is_err(), "{wrong}");
        }
    }
}
