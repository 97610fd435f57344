//! What is measured: the kinds of work, the list of them that `all` goes through, and what each peer made of it.

use serde::{Deserialize, Serialize};

use crate::client::Load;
use crate::peers::{self, Field, Peer};
use crate::relay::RelayWork;
use crate::tls::{Suite, TlsWork};

/// What a client does to a server.
#[derive(Copy, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Messages are echoed; the figure is CPU.
    Echo(Load),
    /// The same with a core each; the figure is time.
    Latency(Load),
    /// Connections are opened, echo once, and are closed.
    Churn { at_once: usize, size: usize },
    /// Connections are open and silent; the figure is memory.
    Idle { connections: usize },
    /// To a server that does TLS.
    Tls { work: TlsWork, suite: Suite },
    /// Through a relay to an echo server.
    Relay(RelayWork),
}

/// What the samples of a kind of work are.
#[derive(Copy, Clone, PartialEq)]
pub enum Measured {
    Cpu,
    Latency,
    Memory,
}

/// Which cores client and server get.
#[derive(Copy, Clone, PartialEq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pin {
    /// One for both: they take turns.
    Same,
    /// Server on core 0, client on core 1.
    Separate,
    /// Whatever the scheduler likes.
    None,
}

/// One kind of work, and all that was measured of it.
#[derive(Serialize, Deserialize)]
pub struct Scenario {
    pub work: Work,
    pub pin: Pin,
    /// The peer that the others are compared with.
    pub base: String,
    pub results: Vec<PeerResult>,
}

#[derive(Serialize, Deserialize)]
pub struct PeerResult {
    pub peer: String,
    /// By round.
    pub samples: Vec<Option<Sample>>,
    /// Why there are no more of them.
    pub failure: Option<String>,
}

/// One measurement, per operation: a message, or a whole connection.
#[derive(Copy, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sample {
    Cpu(Cpu),
    Latency(Latency),
    Memory(Memory),
}

#[derive(Copy, Clone, Serialize, Deserialize)]
pub struct Cpu {
    pub server_us: f64,
    pub client_us: f64,
    pub operations: u64,
    pub per_second: f64,
    /// How many connections had something each time that the client woke.
    pub batch: f64,
    /// Client's and server's CPU time as a part of the time that passed: on one core, what is missing to 1 went to
    /// other processes, and above 1 a server has used several.
    pub share: f64,
}

/// From before a message is sent until its echo is read, in the client's turns with all other connections.
#[derive(Copy, Clone, Serialize, Deserialize)]
pub struct Latency {
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    pub cpu: Cpu,
}

/// Bytes per connection.
#[derive(Copy, Clone, Serialize, Deserialize)]
pub struct Memory {
    /// What the server process grew by.
    pub user: f64,
    /// What the kernel's slabs grew by, the client's end of the connection included; zero where they may not be read.
    pub kernel: f64,
}

impl Sample {
    /// What is compared: server CPU in units of the client's own, which drifts alike; or the median time; or memory.
    pub fn figure(&self) -> f64 {
        match self {
            Sample::Cpu(cpu) => cpu.server_us / cpu.client_us,
            Sample::Latency(latency) => latency.p50_us,
            Sample::Memory(memory) => memory.user + memory.kernel,
        }
    }

    /// The same without the client's part.
    pub fn plain_figure(&self) -> f64 {
        match self {
            Sample::Cpu(cpu) => cpu.server_us,
            Sample::Latency(latency) => latency.p50_us,
            Sample::Memory(memory) => memory.user,
        }
    }
}

impl Work {
    /// Whether `peer` is made for it.
    pub fn suits(&self, peer: &Peer) -> bool {
        match peer.field {
            Field::Tls => matches!(self, Work::Tls { .. }),
            Field::Relay => matches!(self, Work::Relay(_)),
            Field::Everywhere => !matches!(self, Work::Tls { .. } | Work::Relay(_)),
            Field::SmallMessages => {
                matches!(self, Work::Echo(load) if load.depth > 1 && load.size == peers::MESSAGE_SIZE)
            }
            Field::Bulk => matches!(self, Work::Echo(load) if load.size > 16 * 1024),
        }
    }

    /// Who the others are compared with, unless told otherwise.
    pub fn usual_base(&self) -> &'static Peer {
        [peers::BASE_TLS, peers::BASE_RELAY, peers::BASE_PER_MESSAGE]
            .into_iter()
            .find(|base| self.suits(base))
            .unwrap_or(peers::BASE)
    }

    pub fn title(&self) -> String {
        match self {
            Work::Echo(load) => load.title(),
            Work::Latency(load) => format!("latency, {}", load.title()),
            Work::Churn { at_once, size } => {
                format!("new connections, {} each, {at_once} at once", bytes(*size))
            }
            Work::Idle { connections } => format!("memory of {connections} idle connections"),
            Work::Tls { work, suite } => format!("TLS{}, {}", suite.note(), work.title()),
            Work::Relay(work) => format!("relay, {}", work.title()),
        }
    }

    pub fn measured(&self) -> Measured {
        match self {
            Work::Echo(_) | Work::Churn { .. } | Work::Relay(_) => Measured::Cpu,
            Work::Latency(_) => Measured::Latency,
            Work::Idle { .. } => Measured::Memory,
            Work::Tls { work, .. } => work.measured(),
        }
    }

    /// What the ratio is of.
    pub fn figure_name(&self) -> &'static str {
        match self {
            Work::Echo(_) => "CPU/message",
            Work::Latency(_) => "p50",
            Work::Churn { .. } => "CPU/connection",
            Work::Idle { .. } => "bytes",
            Work::Tls { work, .. } => work.figure_name(),
            Work::Relay(work) => work.figure_name(),
        }
    }
}

impl Load {
    pub fn title(&self) -> String {
        let plural = if self.connections == 1 { "" } else { "s" };
        let depth = match self.depth {
            1 => String::new(),
            depth => format!(", {depth} deep"),
        };
        format!(
            "{} connection{plural}, {}{depth}",
            self.connections,
            bytes(self.size)
        )
    }
}

pub fn bytes(size: usize) -> String {
    if size.is_multiple_of(1024) {
        format!("{} KiB", size / 1024)
    } else {
        format!("{size} B")
    }
}

/// All that `all` measures.
pub fn suite(quick: bool) -> Vec<Work> {
    let echo = |size, connections, depth| {
        Work::Echo(Load {
            connections,
            size,
            depth,
        })
    };
    let latency = |connections| {
        Work::Latency(Load {
            connections,
            size: 64,
            depth: 1,
        })
    };
    let mut works = Vec::new();
    let sizes: &[usize] = if quick {
        &[64, 16 * 1024]
    } else {
        &[64, 1024, 16 * 1024]
    };
    for &size in sizes {
        let counts: &[usize] = if quick {
            &[1, 64, 1000]
        } else {
            &[1, 64, 1000, 10_000]
        };
        works.extend(counts.iter().map(|&connections| echo(size, connections, 1)));
    }
    works.push(echo(64, 64, 16));
    if !quick {
        works.push(echo(64, 1000, 16));
    }
    works.push(echo(64 * 1024, 4, 1));
    works.push(Work::Churn {
        at_once: 64,
        size: 64,
    });
    works.push(latency(1));
    works.push(latency(1000));
    works.push(Work::Idle {
        connections: if quick { 2000 } else { 15_000 },
    });
    works
}
