//! Programs that pass bytes on between a client and a server: what is measured of them.
//!
//! The relays are in peers/, the order of measuring in compare.rs, the clocks in measure.rs. The server behind them all is the same.

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::client::Load;
use crate::compare::{self, Course, Usual};
use crate::scenario::{Work, bytes};

#[derive(Args)]
pub struct Options {
    /// What to measure.
    #[arg(value_enum, default_values_t = [Part::All])]
    parts: Vec<Part>,
    /// Connections of `message`.
    #[arg(long, value_delimiter = ',', default_value = "1,64")]
    connections: Vec<usize>,
    /// Connections of `bulk`.
    #[arg(long, default_value_t = 4)]
    streams: usize,
    /// Connections that are opened at once in `connection`.
    #[arg(long, default_value_t = 64)]
    at_once: usize,
    #[command(flatten)]
    course: Course,
}

#[derive(Copy, Clone, PartialEq, ValueEnum)]
enum Part {
    /// Messages of 64 bytes, which come back.
    Message,
    /// Messages of 64 KiB: what a byte costs.
    Bulk,
    /// Connections that are opened, have one message come back, and are closed.
    Connection,
    All,
}

/// What a client does through a relay.
#[derive(Copy, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelayWork {
    /// Messages go to an echo server and come back.
    Echo(Load),
    /// Connections are opened, echo once, and are closed; the relay opens and closes as many.
    Churn { at_once: usize, size: usize },
}

const SMALL: usize = 64;
const LARGE: usize = 64 * 1024;

pub fn run(options: &Options) -> Result<()> {
    let is_asked = |part| {
        options
            .parts
            .iter()
            .any(|asked| [part, Part::All].contains(asked))
    };
    let echo = |connections, size| {
        Work::Relay(RelayWork::Echo(Load {
            connections,
            size,
            depth: 1,
        }))
    };
    let mut works = Vec::new();
    if is_asked(Part::Message) {
        works.extend(options.connections.iter().map(|&count| echo(count, SMALL)));
    }
    if is_asked(Part::Bulk) {
        works.push(echo(options.streams, LARGE));
    }
    if is_asked(Part::Connection) {
        works.push(Work::Relay(RelayWork::Churn {
            at_once: options.at_once,
            size: SMALL,
        }));
    }
    let usual = Usual {
        rounds: 7,
        seconds: 0.3,
    };
    compare::run(works, &options.course, &usual)
}

impl RelayWork {
    pub fn title(&self) -> String {
        match self {
            RelayWork::Echo(load) => load.title(),
            RelayWork::Churn { at_once, size } => {
                format!("new connections, {} each, {at_once} at once", bytes(*size))
            }
        }
    }

    /// What the ratio is of.
    pub fn figure_name(&self) -> &'static str {
        match self {
            RelayWork::Echo(_) => "CPU/message",
            RelayWork::Churn { .. } => "CPU/connection",
        }
    }
}
