//! What the kernel is told about sockets: [`SocketOptions`].

use std::time::Duration;

use crate::error::{Error, Result};

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
    /// It also ends a peer that keeps its window closed for so long, as [`Deadlines::write`](crate::Deadlines::write) does:
    /// raise both for peers that may rightly stall.
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
