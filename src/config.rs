//! Every default in one place: [`Limits`], [`Deadlines`], [`SocketOptions`], [`Backend`], and their validation.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::engine;
use crate::error::{Cause, Error, Operation, Result};

/// The bounds of a server or of one client connection. Memory is a function of these, never of what a peer does.
///
/// ```
/// # use wharf::Limits;
/// let limits = Limits::default().connections(10_000).receive_buffer(16 * 1024);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub(crate) connections: Option<usize>,
    pub(crate) receive_buffer: usize,
    pub(crate) send_high: usize,
    pub(crate) send_low: usize,
    pub(crate) send_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: None,
            receive_buffer: 64 * 1024,
            send_high: 64 * 1024,
            send_low: 16 * 1024,
            send_max: 1024 * 1024,
        }
    }
}

impl Limits {
    /// Sets how many connections a server holds at once. Further ones wait in the listener's backlog.
    ///
    /// Default: the process's limit of open descriptors less 64 for everything else.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Limits {
        self.connections = Some(connections);
        self
    }

    /// Sets how many received bytes a connection holds unread before it stops receiving, and the kernel's window stops
    /// the peer. One read (65 KiB) may overshoot it. Default: 64 KiB.
    ///
    /// In event style it is also the longest stretch that a handler may leave unconsumed: a handler that consumes
    /// nothing of a full buffer can never make progress, and its connection ends with
    /// [`Bound::ReceiveBuffer`](crate::Bound::ReceiveBuffer).
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Limits {
        self.receive_buffer = bytes;
        self
    }

    /// Sets the low and high marks of the send queue, in bytes: at `high` queued bytes senders have to wait, at `low`
    /// they go on. Default: 16 KiB and 64 KiB.
    #[must_use]
    pub fn send_marks(mut self, low: usize, high: usize) -> Limits {
        (self.send_low, self.send_high) = (low, high);
        self
    }

    /// Sets the hard bound of the send queue, in bytes: a message up to this size is accepted whole or not at all. It is
    /// never passed, but by 32 KiB if those counted as sent and the kernel refused them after all. Default: 1 MiB.
    #[must_use]
    pub fn send_max(mut self, bytes: usize) -> Limits {
        self.send_max = bytes;
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.connections == Some(0) {
            return Err(Error::option("connections", "must be at least 1"));
        }
        if self.receive_buffer == 0 {
            return Err(Error::option("receive_buffer", "must be at least 1 byte"));
        }
        if self.send_high == 0 || self.send_low >= self.send_high {
            let marks = format!("must have low < high, not {} and {}", self.send_low, self.send_high);
            return Err(Error::option("send_marks", marks));
        }
        if self.send_max < self.send_high {
            let bounds =
                format!("must be at least the high mark ({}), not {}", self.send_high, self.send_max);
            return Err(Error::option("send_max", bounds));
        }
        Ok(())
    }
}

/// The deadlines of connections. Each is total: it covers the whole of what it names and is not restarted by each byte,
/// but for `idle` and `write`, which are about progress.
///
/// `None` turns a deadline off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines {
    pub(crate) idle: Option<Duration>,
    pub(crate) write: Option<Duration>,
    pub(crate) age: Option<Duration>,
    pub(crate) linger: Duration,
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        Deadlines {
            idle: Some(Duration::from_secs(60)),
            write: Some(Duration::from_secs(30)),
            age: None,
            linger: Duration::from_secs(2),
        }
    }
}

impl Deadlines {
    /// Sets how long a peer may send nothing while a read from it is awaited. What is sent to it does not extend this.
    ///
    /// Default: 60 s on servers, off on clients. Turn it off for protocols whose peers may rightly be silent.
    #[must_use]
    pub fn idle(mut self, after: impl Into<Option<Duration>>) -> Deadlines {
        self.idle = after.into();
        self
    }

    /// Sets how long queued bytes may wait without any of them leaving: the peer's window is closed. Default: 30 s.
    #[must_use]
    pub fn write(mut self, after: impl Into<Option<Duration>>) -> Deadlines {
        self.write = after.into();
        self
    }

    /// Sets the total age at which a connection is ended, whatever it is doing. Default: none.
    #[must_use]
    pub fn age(mut self, after: impl Into<Option<Duration>>) -> Deadlines {
        self.age = after.into();
        self
    }

    /// Sets how long a closed connection waits, after its last byte and FIN, for the peer's end.
    ///
    /// What the peer still sends in that time is read and thrown away, so that it does not turn the last reply into a
    /// reset (RFC 1122, 4.2.2.13). Zero closes at once. Default: 2 s.
    #[must_use]
    pub fn linger(mut self, at_most: Duration) -> Deadlines {
        self.linger = at_most;
        self
    }

    pub(crate) fn for_clients() -> Deadlines {
        Deadlines::default().idle(None)
    }

    pub(crate) fn validate(&self) -> Result<()> {
        for (name, deadline) in [("idle", self.idle), ("write", self.write), ("age", self.age)] {
            if deadline == Some(Duration::ZERO) {
                return Err(Error::option(name, "must be longer than zero; None turns it off"));
            }
        }
        Ok(())
    }
}

/// Options of listening and connected sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    pub(crate) backlog: u32,
    pub(crate) nodelay: bool,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) user_timeout: Option<Duration>,
    pub(crate) receive_buffer: Option<usize>,
    pub(crate) send_buffer: Option<usize>,
}

impl Default for SocketOptions {
    fn default() -> SocketOptions {
        SocketOptions {
            backlog: 1024,
            nodelay: true,
            keepalive: Some(Duration::from_secs(60)),
            user_timeout: Some(Duration::from_secs(30)),
            receive_buffer: None,
            send_buffer: None,
        }
    }
}

impl SocketOptions {
    /// Sets how many connections the kernel queues for a listener (listen(2)). Default: 1024; the kernel caps it at
    /// `net.core.somaxconn`.
    #[must_use]
    pub fn backlog(mut self, connections: u32) -> SocketOptions {
        self.backlog = connections;
        self
    }

    /// Sets whether small segments go out at once (TCP_NODELAY, tcp(7)). Default: on; Wharf gathers what is sent in one
    /// turn itself.
    #[must_use]
    pub fn nodelay(mut self, on: bool) -> SocketOptions {
        self.nodelay = on;
        self
    }

    /// Sets after how much silence the kernel probes the peer (SO_KEEPALIVE, TCP_KEEPIDLE); three probes 10 s apart
    /// follow. Default: 60 s.
    #[must_use]
    pub fn keepalive(mut self, after: impl Into<Option<Duration>>) -> SocketOptions {
        self.keepalive = after.into();
        self
    }

    /// Sets how long sent bytes may stay unacknowledged before the kernel gives the connection up (TCP_USER_TIMEOUT,
    /// RFC 5482). Default: 30 s.
    ///
    /// It also ends a peer that keeps its window closed for so long, as [`Deadlines::write`] does: raise both for peers
    /// that may rightly stall.
    ///
    /// # Platform notes
    /// Linux only; ignored elsewhere.
    #[must_use]
    pub fn user_timeout(mut self, after: impl Into<Option<Duration>>) -> SocketOptions {
        self.user_timeout = after.into();
        self
    }

    /// Sets the kernel's receive buffer in bytes (SO_RCVBUF, socket(7)). Default: the kernel tunes it.
    #[must_use]
    pub fn receive_buffer(mut self, bytes: impl Into<Option<usize>>) -> SocketOptions {
        self.receive_buffer = bytes.into();
        self
    }

    /// Sets the kernel's send buffer in bytes (SO_SNDBUF, socket(7)). Default: the kernel tunes it.
    #[must_use]
    pub fn send_buffer(mut self, bytes: impl Into<Option<usize>>) -> SocketOptions {
        self.send_buffer = bytes.into();
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.backlog == 0 || i32::try_from(self.backlog).is_err() {
            return Err(Error::option("backlog", "must be between 1 and 2147483647"));
        }
        // What the kernel's fields hold: tcp(7), socket(7).
        let keepalive = Duration::from_secs(1)..=Duration::from_secs(32_767);
        if self.keepalive.is_some_and(|after| !keepalive.contains(&after)) {
            return Err(Error::option("keepalive", "must be between 1 s and 32767 s"));
        }
        let user_timeout = Duration::from_millis(1)..=Duration::from_millis(i32::MAX as u64);
        if self.user_timeout.is_some_and(|after| !user_timeout.contains(&after)) {
            return Err(Error::option("user_timeout", "must be between 1 ms and 2147483647 ms"));
        }
        for (name, bytes) in [("receive_buffer", self.receive_buffer), ("send_buffer", self.send_buffer)] {
            if bytes.is_some_and(|bytes| bytes == 0 || i32::try_from(bytes).is_err()) {
                return Err(Error::option(name, "must be between 1 and 2147483647 bytes"));
            }
        }
        Ok(())
    }
}

/// Which engine carries the connections.
///
/// ```
/// use wharf::Backend;
///
/// let backend: Backend = "readiness".parse()?;
/// assert_eq!(backend, Backend::Readiness);
/// assert!(["uring", "readiness"].contains(&Backend::Auto.name()));
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// The best one that works on this machine: io_uring on Linux where the kernel has what it takes and lets us use it,
    /// readiness elsewhere. [`probe()`](crate::probe()) tells which, and why not the other.
    ///
    /// The environment variable `WHARF_BACKEND` (`uring`, `readiness` or `auto`) decides instead, if it is set and not
    /// empty: an operator's way out without recompiling. It is read at each start, changes nothing for programs that
    /// name a backend themselves, and anything else in it is an error of the start.
    #[default]
    Auto,
    /// io_uring, on Linux only. Where it does not work, starting is an error that says why.
    Uring,
    /// Readiness: epoll on Linux, kqueue on macOS and the BSDs.
    Readiness,
}

/// The environment variable that decides what [`Backend::Auto`] is.
pub(crate) const BACKEND_VARIABLE: &str = "WHARF_BACKEND";

impl Backend {
    /// The name of the engine that this choice stands for on this machine: `uring` or `readiness`.
    ///
    /// For [`Backend::Auto`] that needs a look at what works here, a fraction of a millisecond the first time. What the system
    /// refuses later, to one worker of many, only [`ServerHandle::backends`](crate::ServerHandle::backends) can tell.
    pub fn name(self) -> &'static str {
        match self.chosen().unwrap_or(self) {
            Backend::Auto if engine::uring_features().is_ok() => "uring",
            Backend::Auto | Backend::Readiness => "readiness",
            Backend::Uring => "uring",
        }
    }

    /// This choice, or the operator's if this one leaves it open.
    pub(crate) fn chosen(self) -> Result<Backend> {
        match (self, std::env::var_os(BACKEND_VARIABLE)) {
            (Backend::Auto, Some(value)) if !value.is_empty() => {
                let name = value.to_string_lossy();
                Backend::from_name(&name).map_err(|problem| {
                    Error::new(Operation::Start, Cause::Variable { name: BACKEND_VARIABLE, problem })
                })
            }
            _ => Ok(self),
        }
    }

    fn from_name(name: &str) -> Result<Backend, String> {
        match name {
            "auto" => Ok(Backend::Auto),
            "uring" => Ok(Backend::Uring),
            "readiness" => Ok(Backend::Readiness),
            _ => Err(format!("`{name}` is none of auto, uring, readiness")),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Auto => "auto",
            Backend::Uring => "uring",
            Backend::Readiness => "readiness",
        })
    }
}

impl FromStr for Backend {
    type Err = Error;

    /// Reads `auto`, `uring` or `readiness`.
    fn from_str(name: &str) -> Result<Backend> {
        Backend::from_name(name).map_err(|problem| Error::option("backend", problem))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert!(Limits::default().validate().is_ok());
        assert!(Deadlines::default().validate().is_ok());
        assert!(SocketOptions::default().validate().is_ok());
    }

    #[test]
    fn a_bad_value_is_refused_with_the_name_of_its_option() {
        let refused = [
            (Limits::default().connections(0).validate(), "connections"),
            (Limits::default().receive_buffer(0).validate(), "receive_buffer"),
            (Limits::default().send_marks(8, 8).validate(), "send_marks"),
            (Limits::default().send_max(1).validate(), "send_max"),
            (Deadlines::default().idle(Duration::ZERO).validate(), "idle"),
            (SocketOptions::default().backlog(0).validate(), "backlog"),
            (SocketOptions::default().keepalive(Duration::ZERO).validate(), "keepalive"),
        ];
        for (result, option) in refused {
            let message = result.expect_err(option).to_string();
            assert!(message.contains(&format!("`{option}`")), "{message}");
        }
    }
}
