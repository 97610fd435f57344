//! Servers that do TLS: what is measured of them, and the loads that only TLS has.
//!
//! The servers are in peers/, the order of measuring in compare.rs, the clocks in measure.rs.

mod bulk;
mod credentials;
mod handshakes;
#[cfg(test)]
mod tests;
mod wire;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum, value_parser};
use serde::{Deserialize, Serialize};

pub use bulk::{Bulk, TRANSFER};
pub use credentials::{Credentials, credentials};
pub use handshakes::Handshakes;
pub use wire::Tls;

use crate::client::Load;
use crate::compare::{self, Course, Usual};
use crate::scenario::{Measured, Work, bytes};

#[derive(Args)]
pub struct Options {
    /// What to measure.
    #[arg(value_enum, default_values_t = [Part::All])]
    parts: Vec<Part>,
    /// Connections that are opened at once in `handshake`.
    #[arg(long, default_value_t = 32)]
    at_once: usize,
    /// Connections of `echo`.
    #[arg(long, value_delimiter = ',', default_value = "64")]
    connections: Vec<usize>,
    /// Bytes in a message of `echo`.
    #[arg(long, value_delimiter = ',', default_value = "64,16384")]
    size: Vec<usize>,
    /// Connections of `bulk`.
    #[arg(long, default_value_t = 4)]
    streams: usize,
    /// KiB that a server writes at a time in `bulk`; at most 64.
    #[arg(long, value_delimiter = ',', default_value = "16,64", value_parser = value_parser!(u8).range(1..=64))]
    write: Vec<u8>,
    /// Connections of `idle`.
    #[arg(long, default_value_t = 2000)]
    idle: usize,
    /// What the client offers.
    #[arg(long, value_enum, default_value_t = Suite::Aes256)]
    suite: Suite,
    #[command(flatten)]
    course: Course,
}

/// Cipher suites of TLS 1.3.
#[derive(Copy, Clone, PartialEq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// AES-256-GCM with SHA-384, the first that rustls's clients offer.
    Aes256,
    /// AES-128-GCM with SHA-256.
    Aes128,
    /// All that rustls's clients offer: the server chooses, and each may choose another.
    Any,
}

#[derive(Copy, Clone, PartialEq, ValueEnum)]
enum Part {
    /// Connections that are opened, echo once, and are closed: with a full handshake, and with one that resumes.
    Handshake,
    /// Messages on connections that stand.
    Echo,
    /// A stream of bytes to the server, and one from it.
    Bulk,
    /// The memory of connections that are silent.
    Idle,
    All,
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(
        (1..=AT_ONCE_MAX).contains(&options.at_once),
        "a server that keeps 256 sessions can have no more than {AT_ONCE_MAX} at once resumed"
    );
    let is_asked = |part| {
        options
            .parts
            .iter()
            .any(|asked| [part, Part::All].contains(asked))
    };
    let mut works = Vec::new();
    if is_asked(Part::Handshake) {
        works.extend([false, true].map(|resumed| TlsWork::Handshakes {
            at_once: options.at_once,
            resumed,
        }));
    }
    if is_asked(Part::Echo) {
        for &size in &options.size {
            works.extend(options.connections.iter().map(|&connections| {
                TlsWork::Echo(Load {
                    connections,
                    size,
                    depth: 1,
                })
            }));
        }
    }
    if is_asked(Part::Bulk) {
        let connections = options.streams;
        works.push(TlsWork::Upload { connections });
        works.extend(options.write.iter().map(|&write_kib| TlsWork::Download {
            connections,
            write_kib,
        }));
    }
    if is_asked(Part::Idle) {
        works.push(TlsWork::Idle {
            connections: options.idle,
        });
    }
    let usual = Usual {
        rounds: 5,
        seconds: 0.4,
    };
    let suite = options.suite;
    let works = works.into_iter().map(|work| Work::Tls { work, suite });
    compare::run(works.collect(), &options.course, &usual)
}

/// rustls keeps 256 sessions unless told otherwise, gives out two with each handshake, and forgets the oldest.
const AT_ONCE_MAX: usize = 64;

/// What a client does to a server in TLS.
#[derive(Copy, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsWork {
    /// Connections are opened, echo [`MESSAGE`] bytes, and are closed; the figure is CPU.
    Handshakes { at_once: usize, resumed: bool },
    /// Messages are echoed; the figure is CPU.
    Echo(Load),
    /// The server receives.
    Upload { connections: usize },
    /// The server sends.
    Download { connections: usize, write_kib: u8 },
    /// Connections are open and silent; the figure is memory.
    Idle { connections: usize },
}

/// What is echoed on a connection that is about its handshake.
const MESSAGE: usize = 64;

/// What the server's handler does.
#[derive(Copy, Clone, PartialEq, ValueEnum)]
pub enum Service {
    /// Sends back what it receives.
    Echo,
    /// Sends back the last of every [`TRANSFER`] bytes that it has received.
    Sink,
    /// Answers every byte with [`TRANSFER`] bytes of connection 0's pattern, in writes of as many KiB as it says.
    Source,
}

impl TlsWork {
    pub fn service(&self) -> Service {
        match self {
            TlsWork::Upload { .. } => Service::Sink,
            TlsWork::Download { .. } => Service::Source,
            _ => Service::Echo,
        }
    }

    pub fn title(&self) -> String {
        match self {
            TlsWork::Handshakes { at_once, resumed } => {
                let kind = if *resumed { "resumed" } else { "full" };
                format!("{kind} handshakes, {} each, {at_once} at once", bytes(MESSAGE))
            }
            TlsWork::Echo(load) => load.title(),
            TlsWork::Upload { connections } => format!("{connections} uploads"),
            TlsWork::Download {
                connections,
                write_kib,
            } => format!("{connections} downloads, writes of {write_kib} KiB"),
            TlsWork::Idle { connections } => format!("memory of {connections} idle connections"),
        }
    }

    pub fn measured(&self) -> Measured {
        match self {
            TlsWork::Idle { .. } => Measured::Memory,
            _ => Measured::Cpu,
        }
    }

    /// What the ratio is of.
    pub fn figure_name(&self) -> &'static str {
        match self {
            TlsWork::Handshakes { .. } => "CPU/connection",
            TlsWork::Echo(_) => "CPU/message",
            TlsWork::Upload { .. } | TlsWork::Download { .. } => "CPU/KiB",
            TlsWork::Idle { .. } => "bytes",
        }
    }
}

impl Suite {
    /// For titles; the usual one needs no word.
    pub fn note(self) -> &'static str {
        match self {
            Suite::Aes256 => "",
            Suite::Aes128 => " with AES-128",
            Suite::Any => " with any suite",
        }
    }
}

impl Service {
    /// As the command line has it.
    pub fn name(self) -> &'static str {
        match self {
            Service::Echo => "echo",
            Service::Sink => "sink",
            Service::Source => "source",
        }
    }
}
