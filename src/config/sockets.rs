//! What the kernel is told about sockets: [`SocketOptions`].

use std::net::SocketAddr;
use std::time::Duration;

use crate::error::{Error, Result};

/// Options of listening and connected sockets.
///
/// On a server they are set on the listener, before it is bound, and its connections inherit them; on a client they are set
/// on each socket before it connects. `backlog`, `reuse_port` and `only_v6` are about listeners only and mean nothing to a
/// client.
///
/// One that the system refuses is an error of the start, or of the connect, with the option's name. One that the platform
/// does not have is refused too, unless its text says that it is ignored. In a [simulation](crate::sim) they are checked and
/// have no effect.
///
/// ```
/// use std::time::Duration;
/// use wharf::{Server, SocketOptions};
///
/// let options = SocketOptions::default()
///     .keepalive(Duration::from_secs(30))
///     .keepalive_probes(Duration::from_secs(5), 4)
///     .dscp(46);
/// let server = Server::bind("127.0.0.1:0").sockets(options);
/// # drop(server);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    pub(crate) backlog: u32,
    pub(crate) nodelay: bool,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) keepalive_interval: Duration,
    pub(crate) keepalive_count: u32,
    pub(crate) user_timeout: Option<Duration>,
    pub(crate) receive_buffer: Option<usize>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) linger: Option<Duration>,
    pub(crate) reuse_port: bool,
    pub(crate) only_v6: bool,
    pub(crate) device: Option<String>,
    pub(crate) mark: Option<u32>,
    pub(crate) dscp: Option<u8>,
    pub(crate) fast_open: Option<u32>,
    /// The local address of a socket that is to be connected: what [`Client::bind`](crate::Client::bind) sets, on a copy.
    pub(crate) source: Option<SocketAddr>,
}

impl Default for SocketOptions {
    fn default() -> SocketOptions {
        SocketOptions {
            backlog: 1024,
            nodelay: true,
            keepalive: Some(Duration::from_secs(60)),
            keepalive_interval: Duration::from_secs(10),
            keepalive_count: 3,
            user_timeout: Some(Duration::from_secs(30)),
            receive_buffer: None,
            send_buffer: None,
            linger: None,
            reuse_port: false,
            only_v6: false,
            device: None,
            mark: None,
            dscp: None,
            fast_open: None,
            source: None,
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

    /// Sets after how much silence the kernel probes the peer, in whole seconds (SO_KEEPALIVE, TCP_KEEPIDLE, tcp(7));
    /// `None` turns probing off. Default: 60 s. What follows is [`SocketOptions::keepalive_probes`].
    #[must_use]
    pub fn keepalive(mut self, after: impl Into<Option<Duration>>) -> SocketOptions {
        self.keepalive = after.into();
        self
    }

    /// Sets how many seconds lie between the probes and how many of them in a row may stay unanswered before the connection
    /// is given up (TCP_KEEPINTVL, TCP_KEEPCNT, tcp(7)). Default: 3 probes, 10 s apart.
    ///
    /// # Platform notes
    /// On Linux a [`SocketOptions::user_timeout`] takes the place of the count: the first unanswered probe after so long is
    /// the last.
    #[must_use]
    pub fn keepalive_probes(mut self, interval: Duration, count: u32) -> SocketOptions {
        (self.keepalive_interval, self.keepalive_count) = (interval, count);
        self
    }

    /// Sets how long sent bytes may stay unacknowledged before the kernel gives the connection up (TCP_USER_TIMEOUT,
    /// RFC 5482). Default: 30 s.
    ///
    /// It also ends a peer that keeps its window closed for so long, as [`Deadlines::write`](crate::Deadlines::write)
    /// does: raise both for peers that may rightly stall.
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

    /// Sets that closing throws away what the peer has not acknowledged and sends RST (SO_LINGER, socket(7)). Default:
    /// off. Zero is the only duration that is accepted: with a longer one, close(2) would block the whole worker. How long a
    /// closed connection waits for its peer is [`Deadlines::linger`](crate::Deadlines::linger).
    ///
    /// It leaves no port in TIME_WAIT, which load generators may want. The price is that bytes on their way may be lost even
    /// at a close that is told as graceful, when the peer has ended first or does not end in time.
    #[must_use]
    pub fn linger(mut self, at_most: impl Into<Option<Duration>>) -> SocketOptions {
        self.linger = at_most.into();
        self
    }

    /// Sets whether several listeners, of several processes too, may share the port (SO_REUSEPORT, socket(7)). Default: off,
    /// so that a second server on the same port is an error.
    ///
    /// For listeners only.
    ///
    /// # Platform notes
    /// Linux spreads connections over them; elsewhere it may be the last one that gets all.
    #[must_use]
    pub fn reuse_port(mut self, on: bool) -> SocketOptions {
        self.reuse_port = on;
        self
    }

    /// Sets whether a listener on an IPv6 address takes IPv6 only (IPV6_V6ONLY, ipv6(7)). Default: off; `[::]` takes IPv4
    /// too, whatever the system's default.
    ///
    /// For listeners only, and without a meaning for those on IPv4.
    #[must_use]
    pub fn only_v6(mut self, on: bool) -> SocketOptions {
        self.only_v6 = on;
        self
    }

    /// Sets the network device that packets come and go by, such as `eth0` (SO_BINDTODEVICE, socket(7)). Default: any.
    ///
    /// # Platform notes
    /// Linux only. Needs CAP_NET_RAW before Linux 5.7.
    #[must_use]
    pub fn device(mut self, name: impl Into<String>) -> SocketOptions {
        self.device = Some(name.into());
        self
    }

    /// Sets the mark of each packet sent, for routing and packet filters (SO_MARK, socket(7)). Default: none.
    ///
    /// # Platform notes
    /// Linux only. Needs CAP_NET_ADMIN, or CAP_NET_RAW since Linux 5.17.
    #[must_use]
    pub fn mark(mut self, mark: impl Into<Option<u32>>) -> SocketOptions {
        self.mark = mark.into();
        self
    }

    /// Sets the differentiated services code point of each packet sent, 0 to 63 (IP_TOS, ip(7), and IPV6_TCLASS, ipv6(7);
    /// RFC 2474). Default: the system's, which is 0.
    ///
    /// # Platform notes
    /// The traffic of IPv4 clients of a listener on `[::]` is marked on Linux only.
    #[must_use]
    pub fn dscp(mut self, code_point: impl Into<Option<u8>>) -> SocketOptions {
        self.dscp = code_point.into();
        self
    }

    /// Sets how many connections of a listener may wait whose first packet brought data (TCP Fast Open, RFC 7413;
    /// TCP_FASTOPEN, tcp(7)). Default: off.
    ///
    /// The kernel must have it switched on for servers (`net.ipv4.tcp_fastopen`, bit 2). What came with the first packet may
    /// come twice: only for protocols whose first message may be repeated.
    ///
    /// # Platform notes
    /// Linux only. Clients do not use it: connecting would succeed before anybody has answered.
    #[must_use]
    pub fn fast_open(mut self, queue: impl Into<Option<u32>>) -> SocketOptions {
        self.fast_open = queue.into();
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
        if !keepalive.contains(&self.keepalive_interval) || !(1..=127).contains(&self.keepalive_count) {
            let problem = "must be between 1 and 127 probes, 1 s to 32767 s apart";
            return Err(Error::option("keepalive_probes", problem));
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
        if self.linger.is_some_and(|linger| !linger.is_zero()) {
            let problem = "must be zero, a reset at the close: with a longer one, close(2) blocks the worker; how long a \
                           closed connection waits for its peer is `Deadlines::linger`";
            return Err(Error::option("linger", problem));
        }
        // IFNAMSIZ with its zero byte, and what the kernel's dev_valid_name refuses.
        let is_name = |name: &str| {
            let legal = |byte: u8| !byte.is_ascii_whitespace() && !matches!(byte, 0 | b'/' | b':');
            (1..16).contains(&name.len()) && !matches!(name, "." | "..") && name.bytes().all(legal)
        };
        if self.device.as_deref().is_some_and(|name| !is_name(name)) {
            return Err(Error::option("device", "must be the name of a network device, of 1 to 15 bytes"));
        }
        if self.dscp.is_some_and(|code_point| code_point > 63) {
            return Err(Error::option("dscp", "must be between 0 and 63"));
        }
        if self.fast_open.is_some_and(|queue| queue == 0 || i32::try_from(queue).is_err()) {
            return Err(Error::option("fast_open", "must be between 1 and 2147483647; None turns it off"));
        }
        self.check_platform()
    }

    #[cfg(target_os = "linux")]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "Linux has all of them")]
    fn check_platform(&self) -> Result<()> {
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn check_platform(&self) -> Result<()> {
        let of_linux = [
            ("device", self.device.is_some()),
            ("mark", self.mark.is_some()),
            ("fast_open", self.fast_open.is_some()),
        ];
        for (name, is_set) in of_linux {
            if is_set {
                return Err(Error::option(name, "is an option of Linux, which this system does not have"));
            }
        }
        Ok(())
    }
}
