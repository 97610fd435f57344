//! How long anything may take: [`Deadlines`].

use std::time::Duration;

use crate::error::{Error, Result};

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
