//! Handing a server's listeners to the process that replaces it: [`Handover`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};

/// That a server is replaced without a client noticing: the new process takes its listeners from the old one, through a
/// Unix socket whose path both know.
///
/// A server that starts asks whoever listens at the path, its predecessor, for its listeners. It takes those that it is to
/// listen on itself: the same IP address and port, or the same path of a Unix socket. When all of its workers are ready it
/// says so, and only then begins to accept; the predecessor stops accepting and drains. Those who have connected meanwhile
/// wait in the queue that both share. If the new process ends before it is ready, the old one goes on as if nothing had
/// happened. Then the new one waits at the path for its own successor.
///
/// Only a process of the same user, or of root, is believed or answered.
///
/// Taken listeners are like given ones ([`Listen::given`](crate::Listen::given)): options of the socket and the permissions of
/// a Unix socket's file stay what they were, and [`ServerHandle::suspend`](crate::ServerHandle::suspend) pauses them. Listeners
/// that the new server has no use for are closed with the old one. Port 0 takes nothing, and `name:port` takes a listener at any
/// of the addresses that the name has.
///
/// # Platform notes
/// Linux only; elsewhere starting is an error.
///
/// # Examples
/// ```no_run
/// use std::time::Duration;
/// use wharf::{Connection, Handover, Server};
///
/// let server = Server::bind("0.0.0.0:7788")
///     .handover(Handover::at("/run/pong/upgrade.sock").drain(Duration::from_secs(60)))
///     .start(|mut conn: Connection| async move { conn.send(b"pong").await })?;
/// server.wait()?; // until a successor has taken over, and the last connection has ended
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    path: PathBuf,
    pub(crate) drain: Duration,
    pub(crate) within: Duration,
}

impl Handover {
    /// Hands over, and takes over, through a Unix socket at `path`. Its file has mode 0600.
    pub fn at(path: impl Into<PathBuf>) -> Handover {
        let (drain, within) = (Duration::from_secs(15), Duration::from_secs(5));
        Handover { path: path.into(), drain, within }
    }

    /// Sets how long connections have to end by themselves when a successor has taken over. Default: 15 s.
    #[must_use]
    pub fn drain(mut self, within: Duration) -> Handover {
        self.drain = within;
        self
    }

    /// Sets how long a predecessor may take to answer; if it does not, starting is an error. Default: 5 s.
    #[must_use]
    pub fn within(mut self, after: Duration) -> Handover {
        self.within = after;
        self
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.path.as_os_str().is_empty() {
            return Err(Error::option("handover", "needs a path"));
        }
        if self.within.is_zero() {
            return Err(Error::option("handover", "must leave the predecessor longer than zero"));
        }
        if cfg!(not(target_os = "linux")) {
            return Err(Error::option("handover", "is there on Linux only"));
        }
        Ok(())
    }
}
