//! A server at a glance: [`Snapshot`], what it has done and what it is doing, in one value that prints itself.

use std::fmt;
use std::time::Duration;

use super::handle::{ListenerInfo, ServerHandle};
use super::stats::Stats;
use crate::config::{Backend, Deadlines, Limits};

/// What a server is doing at this moment and what it has done so far.
///
/// Prints as lines of a name, spaces, and what there is to tell, so that people and scripts can read it:
///
/// ```
/// use wharf::{Connection, Server};
///
/// let server = Server::bind("127.0.0.1:0").workers(2).start(|_: Connection| async { Ok(()) })?;
/// let text = server.snapshot().to_string();
/// assert!(text.lines().any(|line| line.starts_with("connections ")));
/// # server.stop().wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The time since it was started.
    pub uptime: Duration,
    /// What it is about.
    pub phase: Phase,
    /// Its listeners.
    pub listeners: Vec<ListenerInfo>,
    /// Connections at this moment.
    pub connections: usize,
    /// Connections that it holds at most.
    pub connections_max: usize,
    /// Connections of each worker.
    pub connections_by_worker: Vec<usize>,
    /// Workers that a handler keeps from turning at this moment.
    pub blocked_workers: Vec<usize>,
    /// The memory that its connections hold in buffers, in bytes.
    pub memory_used: usize,
    /// The budget for that.
    pub memory_max: Option<usize>,
    /// The engine of each worker.
    pub backends: Vec<Backend>,
    /// The limits in force.
    pub limits: Limits,
    /// The deadlines in force.
    pub deadlines: Deadlines,
    /// What it has done.
    pub stats: Stats,
    /// How many connectors of this process, on whichever server's behalf, accept any certificate
    /// ([`ClientTls::danger_accept_any_certificate`](crate::tls::ClientTls::danger_accept_any_certificate)).
    #[cfg(feature = "tls")]
    pub unverified_connectors: usize,
}

/// What a server is about.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// It accepts connections, as far as the rules allow.
    Serving,
    /// It accepts nobody until it is resumed.
    Suspended,
    /// It accepts nobody any more, and ends with its last connection.
    Draining,
    /// It has ended.
    Stopped,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Serving => "serving",
            Phase::Suspended => "suspended",
            Phase::Draining => "draining",
            Phase::Stopped => "stopped",
        })
    }
}

impl Snapshot {
    pub(super) fn of(server: &ServerHandle) -> Snapshot {
        let state = &server.state;
        Snapshot {
            uptime: state.started.elapsed(),
            phase: server.phase(),
            listeners: server.listeners(),
            connections: server.connections(),
            connections_max: server.connections_max(),
            connections_by_worker: server.connections_by_worker(),
            blocked_workers: state.blocked_workers(),
            memory_used: server.memory_used(),
            memory_max: server.memory_max(),
            backends: server.backends(),
            limits: server.limits(),
            deadlines: server.deadlines(),
            stats: server.stats(),
            #[cfg(feature = "tls")]
            unverified_connectors: crate::tls::unverified_connectors(),
        }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<22} {value}");
        line("phase", &self.phase)?;
        line("uptime", &format_args!("{}s", self.uptime.as_secs()))?;
        for listener in &self.listeners {
            let tls = if listener.is_tls { ", TLS" } else { "" };
            let lost = if listener.lost { ", lost" } else { "" };
            line(
                "listener",
                &format_args!("{} ({} let in{tls}{lost})", listener.address, listener.accepted),
            )?;
        }
        #[cfg(feature = "tls")]
        if self.unverified_connectors > 0 {
            let connectors = self.unverified_connectors;
            line("danger", &format_args!("{connectors} connectors accept any certificate"))?;
        }
        line("connections", &format_args!("{} of {}", self.connections, self.connections_max))?;
        let workers = self.connections_by_worker.iter().zip(0..);
        for (connections, worker) in workers {
            let backend = self.backends.get(worker).map_or(String::new(), |backend| format!(" on {backend}"));
            let blocked = if self.blocked_workers.contains(&worker) { ", blocked by a handler" } else { "" };
            line(&format!("worker.{worker}"), &format_args!("{connections}{backend}{blocked}"))?;
        }
        match self.memory_max {
            Some(max) => line("memory", &format_args!("{} of {max} bytes", self.memory_used))?,
            None => line("memory", &format_args!("{} bytes", self.memory_used))?,
        }
        for (name, limit) in self.limits.set() {
            line(&format!("limit.{name}"), &limit)?;
        }
        for (name, deadline) in self.deadlines.on() {
            line(&format!("deadline.{name}"), &deadline)?;
        }
        let stats = &self.stats;
        line("accepted", &stats.accepted)?;
        line("accept_errors", &stats.accept_errors)?;
        for (rule, count) in &stats.refused {
            line("refused", &format_args!("{count} {rule}"))?;
        }
        for (reason, count) in &stats.closes {
            line("closed", &format_args!("{count} {reason}"))?;
        }
        line("received", &format_args!("{} bytes, of closed connections", stats.received))?;
        line("sent", &format_args!("{} bytes, of closed connections", stats.sent))?;
        line("unsent", &format_args!("{} bytes, of closed connections", stats.unsent))?;
        if stats.handshakes + stats.handshakes_failed > 0 {
            let (done, resumed, failed) = (stats.handshakes, stats.resumed, stats.handshakes_failed);
            line("handshakes", &format_args!("{done} done, {resumed} of them resumed, {failed} failed"))?;
        }
        line("panics", &stats.panics)?;
        line("stalls", &stats.stalls)
    }
}
