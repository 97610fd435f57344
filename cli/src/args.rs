//! What can be written on the command line. What it means is decided elsewhere.

use std::path::PathBuf;
use std::process;
use std::time::Duration;

use clap::{ArgAction, CommandFactory, Parser, Subcommand, ValueEnum};
use wharf::{Backend, Server};

use crate::client_tls::{ClientTls, Trusting};
use crate::exit;
use crate::options::Options;
use crate::values::{self, Size};

/// TCP servers and clients that stay up.
#[derive(Debug, Parser)]
#[command(name = "wharf", version, after_help = exit::CODES, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Args {
    /// Ends the process over a command line that makes no sense as a whole, as the parser does over a part of one.
    pub(crate) fn refuse(problem: &str) -> ! {
        // The parser's own error would show how to use `wharf` without any command.
        exit::print(format_args!("error: {problem}\n\nFor more information, try '--help'.\n"));
        process::exit(exit::SENSELESS.into())
    }

    /// Whether any command has such an option.
    pub(crate) fn has_option(name: &str) -> bool {
        let commands = Args::command();
        let mut arguments = commands.get_subcommands().flat_map(clap::Command::get_arguments);
        arguments.any(|argument| argument.get_long() == Some(name))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Demo(Demo),
    Serve(Box<Serve>),
    Connect(Connect),
    Relay(Relay),
    #[command(subcommand)]
    Cert(Cert),
    Probe(Probe),
}

/// Play ping-pong on this machine, plain and with TLS: a server, many clients, and a check of every byte.
///
/// Each client sends a message, waits until it has come back, compares it, and sends the next. No two messages are alike.
/// Ctrl-C ends it early.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{DURATIONS} {SIZES}\n\n{}", exit::CODES))]
pub(crate) struct Demo {
    /// Number of clients.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) clients: u32,
    /// How long they play, half of it with TLS.
    #[arg(long, value_name = "D", default_value = "4s", value_parser = values::duration)]
    pub(crate) duration: Duration,
    /// Size of a message, at most 16MiB.
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = values::size_to::<16>)]
    pub(crate) size: Size,
    #[command(flatten)]
    pub(crate) with: With,
}

/// Serve one of the classic small services, until SIGTERM or SIGINT.
///
/// Prints `listening on ADDRESS` to standard output, a line for each listener, before the first connection.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{DURATIONS} {SIZES}\n\n{}", exit::CODES), after_long_help = format!("{SERVE_NOTES}\n\n{DURATIONS} {SIZES}\n\n{}", exit::CODES))]
#[command(
    override_usage = "wharf serve <SERVICE> --listen <ADDRESS> [OPTIONS]\n       wharf serve <SERVICE> --config <FILE> [OPTIONS]"
)]
pub(crate) struct Serve {
    /// What to serve.
    pub(crate) service: Service,
    #[command(flatten)]
    pub(crate) options: Options,
    /// Read more options from this file; see below.
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    pub(crate) config: Option<PathBuf>,
    /// Say nothing but errors.
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Running")]
    pub(crate) quiet: bool,
    /// Say more: -v what the server does, -vv what happens to each connection.
    #[arg(short, long, action = ArgAction::Count, help_heading = "Running")]
    pub(crate) verbose: u8,
}

/// How values are written, for the end of the help.
const DURATIONS: &str = "Durations (D) are written as 500ms, 30s, 2m or 1h30m.";
const SIZES: &str = "Sizes (BYTES) as 4096, 64KiB or 1MiB.";

/// What `wharf serve --help` says in the end, in lines that fit any terminal.
const SERVE_NOTES: &str = "\
The file:
  A line is NAME = VALUE, with the name of an option from Listening to
  Running and without its dashes; `#` begins a comment. What may come
  several times may have several lines. The command line wins: lines with
  the name of an option that it has are passed over.

Signals:
  TERM, INT  drain: nothing new is accepted, connections that are silent for
             half a second end, busy ones have until --drain is over, and
             chargen stops; a second signal stops at once
  HUP        read the file again, and the files of TLS: what stands under
             TLS, Admission, Deadlines and Queues changes, for connections
             that come from then on; what cannot change is named, and a file
             with a mistake changes nothing
  USR1       print a snapshot to standard error: what the server is doing
             and has done
  USR2       suspend: accept nobody and keep who is there; the next one
             resumes";

/// Connect standard input and output to a server.
///
/// The end of the input is passed on, and the command ends when the server has ended. Input that comes after that is still
/// sent, until there is none for half a second. A stalled reader is waited for, on either side.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{DURATIONS}\n\n{}", exit::CODES))]
pub(crate) struct Connect {
    /// The server: HOST:PORT or unix:/PATH.
    #[arg(value_name = "ADDRESS")]
    pub(crate) server: String,
    /// How long connecting may take, with looking up the name, a proxy's answer and TLS.
    #[arg(long, value_name = "D", default_value = "10s", value_parser = values::duration)]
    pub(crate) timeout: Duration,
    /// Connect from this address of this machine, ADDRESS or ADDRESS:PORT.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) bind: Option<String>,
    /// Connect through this proxy: socks5h://[USER:PASSWORD@]HOST[:PORT] or http://[USER:PASSWORD@]HOST:PORT. It looks the
    /// server's name up; with socks5:// in the place of socks5h:// that is done here, as by curl. Others on this machine can read
    /// what stands on a command line.
    #[arg(long, value_name = "URL")]
    pub(crate) proxy: Option<String>,
    /// What carries the connection: auto, uring or readiness; `wharf probe` tells what works.
    #[arg(long, value_name = "ENGINE", default_value_t = Backend::Auto, value_parser = values::backend)]
    pub(crate) backend: Backend,
    /// Tell whom the connection is with, and what TLS has agreed on.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    #[command(flatten, next_help_heading = "TLS")]
    pub(crate) tls: ClientTls,
}

/// Pass connections on to a server, both ways, until SIGTERM or SIGINT.
///
/// Prints `listening on ADDRESS` to standard output before the first connection. When one side ends, that is passed on, and the
/// other one may go on. What did not end in order is reset on both sides, and told on standard error. SIGTERM and SIGINT drain;
/// a second signal stops at once.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{DURATIONS}\n\n{}", exit::CODES))]
pub(crate) struct Relay {
    /// Where to listen: HOST:PORT or unix:/PATH.
    #[arg(value_name = "LISTEN")]
    pub(crate) listen: String,
    /// The server: HOST:PORT or unix:/PATH.
    #[arg(value_name = "TARGET")]
    pub(crate) target: String,
    /// How long connecting to the server may take, looking up the name included.
    #[arg(long, value_name = "D", default_value = "10s", value_parser = values::duration)]
    pub(crate) timeout: Duration,
    /// End a connection through which nothing has gone for so long, in either direction.
    #[arg(long, value_name = "D", default_value = "5m", value_parser = values::duration)]
    pub(crate) idle: Duration,
    /// The same, when one side has ended and the other one has not.
    #[arg(long, value_name = "D", default_value = "1m", value_parser = values::duration)]
    pub(crate) half_closed_idle: Duration,
    /// How long connections may go on after SIGTERM.
    #[arg(long, value_name = "D", default_value = "15s", value_parser = values::duration_or_zero)]
    pub(crate) drain: Duration,
    /// Hold no more connections than this, each of which takes two descriptors; others wait.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_connections: u32,
    /// What carries the connections: auto, uring or readiness; `wharf probe` tells what works.
    #[arg(long, value_name = "ENGINE", default_value_t = Backend::Auto, value_parser = values::backend)]
    pub(crate) backend: Backend,
    /// Tell of each connection how much went through.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    #[command(flatten, next_help_heading = "TLS to the server")]
    pub(crate) tls: ClientTls,
}

/// Look at certificates: those of a server, or in a file.
///
/// One fact on a line: a name, spaces, the fact; `chain.0` is the first certificate, which is the server's own. A certificate that
/// has expired, or does so within 21 days, is told on standard error.
#[derive(Debug, Subcommand)]
pub(crate) enum Cert {
    Check(Check),
    Show(Show),
}

/// Tell what certificates a server shows, and whether a client accepts them.
///
/// Connects as a client that verifies. If that refuses the certificates, connects again without, so as to show them. Ends with 0 only
/// if the client accepts them.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{DURATIONS}\n\n{}", exit::CODES))]
pub(crate) struct Check {
    /// The server: HOST:PORT or unix:/PATH.
    #[arg(value_name = "ADDRESS")]
    pub(crate) server: String,
    /// How long a connect may take, looking up the name and the handshake included.
    #[arg(long, value_name = "D", default_value = "10s", value_parser = values::duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) trusting: Trusting,
}

/// Tell what certificates are in a file.
#[derive(Debug, clap::Args)]
#[command(after_help = exit::CODES)]
pub(crate) struct Show {
    /// Certificates in PEM, or one in DER.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
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
    #[arg(long, value_name = "ENGINE", default_value_t = Backend::Auto, value_parser = values::backend)]
    pub(crate) backend: Backend,
    /// Number of worker threads of the server [default: one for each processor].
    #[arg(long, value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// How long a worker with nothing to do spins before it sleeps, at most 10ms: sooner replies, for a processor that is
    /// kept busy.
    #[arg(long, value_name = "D", default_value = "0s", value_parser = values::duration_or_zero)]
    pub(crate) spin: Duration,
}

impl With {
    pub(crate) fn apply(&self, server: Server) -> Server {
        let server = server.backend(self.backend).spin(self.spin);
        match self.workers {
            Some(workers) => server.workers(workers),
            None => server,
        }
    }
}

#[derive(Copy, Clone, Debug, ValueEnum)]
pub(crate) enum Style {
    /// A future for each connection.
    Async,
    /// A handler that is called when something happens.
    Event,
    /// A thread for each connection, without workers; for `serve` only.
    Blocking,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
