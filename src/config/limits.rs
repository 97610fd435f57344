//! The bounds of a server and of its connections: [`Limits`].

use std::fmt;

use crate::error::{Error, Result};

/// The bounds of a server or of one client connection. Memory is a function of these, never of what a peer does.
///
/// ```
/// # use wharf::Limits;
/// let limits = Limits::default().connections(10_000).receive_buffer(16 * 1024);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub(crate) connections: Option<usize>,
    pub(crate) per_address: Option<usize>,
    pub(crate) ipv6_prefix: u8,
    pub(crate) accept_rate: Option<AcceptRate>,
    pub(crate) over_limit: OverLimit,
    pub(crate) receive_buffer: usize,
    pub(crate) send_high: usize,
    pub(crate) send_low: usize,
    pub(crate) send_max: usize,
    pub(crate) when_full: WhenFull,
    pub(crate) memory: Option<usize>,
}

/// With less not even a few connections could have a buffer in each direction.
const MEMORY_MIN: usize = 1024 * 1024;

/// What becomes of a message that the send queue has no room for: the peer reads too slowly.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WhenFull {
    /// It waits: the sender in async style until there is room, a [`Remote`](crate::Remote)'s message on its way. In event
    /// style `send` refuses, and `writable` is called when there is room.
    #[default]
    Wait,
    /// It is refused, whole and at once, with an error whose kind is [`Limit`](crate::ErrorKind::Limit). In event style, and
    /// for remotes, that is the same as `Wait`.
    Refuse,
    /// The connection is reset, for [`Bound::SendQueue`](crate::Bound::SendQueue).
    Disconnect,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: None,
            per_address: None,
            ipv6_prefix: 64,
            accept_rate: None,
            over_limit: OverLimit::Queue,
            receive_buffer: 64 * 1024,
            send_high: 64 * 1024,
            send_low: 16 * 1024,
            send_max: 1024 * 1024,
            when_full: WhenFull::Wait,
            memory: None,
        }
    }
}

impl Limits {
    /// Sets how many connections a server holds at once. What becomes of further ones says [`Limits::over_limit`].
    ///
    /// Default: the process's limit of open descriptors less 64 for everything else, and 4 for each worker.
    #[must_use]
    pub fn connections(mut self, connections: usize) -> Limits {
        self.connections = Some(connections);
        self
    }

    /// Sets how many connections a server holds at once of one peer's address. Default: no limit.
    ///
    /// IPv6 addresses count by prefix ([`Limits::ipv6_prefix`]), an IPv4 address that came as `::ffff:a.b.c.d` as
    /// `a.b.c.d`. Unix sockets have no address and are not concerned. Behind a proxy all peers have its address, unless
    /// it tells theirs with the PROXY protocol.
    #[must_use]
    pub fn per_address(mut self, connections: impl Into<Option<usize>>) -> Limits {
        self.per_address = connections.into();
        self
    }

    /// Sets how many leading bits of an IPv6 address count as one peer, 1 to 128. Default: 64, what one site has at least.
    #[must_use]
    pub fn ipv6_prefix(mut self, bits: u8) -> Limits {
        self.ipv6_prefix = bits;
        self
    }

    /// Sets how fast connections may come in. Default: no limit.
    ///
    /// ```
    /// # use wharf::{AcceptRate, Limits};
    /// let limits = Limits::default().accept_rate(AcceptRate::new(200).burst(50));
    /// ```
    #[must_use]
    pub fn accept_rate(mut self, rate: impl Into<Option<AcceptRate>>) -> Limits {
        self.accept_rate = rate.into();
        self
    }

    /// Sets what becomes of a connection that is one too many. Default: [`OverLimit::Queue`].
    #[must_use]
    pub fn over_limit(mut self, policy: OverLimit) -> Limits {
        self.over_limit = policy;
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
    /// never passed, but by 32 KiB if those counted as sent and the kernel refused them after all, and by what protects the
    /// bytes where TLS does: at most 29 bytes for each 16 KiB. Default: 1 MiB.
    ///
    /// Received bytes come in pieces of up to 65 KiB: whoever sends such a piece back whole needs a bound above that.
    #[must_use]
    pub fn send_max(mut self, bytes: usize) -> Limits {
        self.send_max = bytes;
        self
    }

    /// Sets what becomes of a message that the send queue has no room for. Default: [`WhenFull::Wait`].
    ///
    /// The queue has no room when it is above its high mark, or would be above `send_max`. A
    /// [`Remote`](crate::Remote) has a bound of its own, for messages that the queue has not taken yet: again `send_max`
    /// bytes. With [`WhenFull::Disconnect`] a remote that would pass that one resets the connection too, with
    /// [`WhenFull::Refuse`] as with `Wait` it gets an error.
    ///
    /// ```
    /// # use wharf::{Limits, WhenFull};
    /// // A feed whose subscribers have to keep up.
    /// let limits = Limits::default().send_max(256 * 1024).when_full(WhenFull::Disconnect);
    /// ```
    #[must_use]
    pub fn when_full(mut self, when_full: WhenFull) -> Limits {
        self.when_full = when_full;
        self
    }

    /// Those that are set, each with its name, but for the number of connections.
    pub(crate) fn set(&self) -> impl Iterator<Item = (&'static str, String)> {
        let prefix = self.per_address.map(|_| format!("{} bits", self.ipv6_prefix));
        let queue = format!("{} bytes, marks at {} and {}", self.send_max, self.send_low, self.send_high);
        let all = [
            ("per_address", self.per_address.map(|connections| connections.to_string())),
            ("ipv6_prefix", prefix),
            ("accept_rate", self.accept_rate.map(|rate| rate.to_string())),
            ("over_limit", Some(self.over_limit.to_string())),
            ("receive_buffer", Some(format!("{} bytes", self.receive_buffer))),
            ("send_max", Some(queue)),
            ("when_full", Some(self.when_full.to_string())),
        ];
        all.into_iter().filter_map(|(name, limit)| Some((name, limit?)))
    }

    /// Sets the memory that all connections of a server together may hold in buffers, in bytes, at least 1 MiB. Default:
    /// none, for each connection is bounded, and so is their number. Of no concern to clients.
    ///
    /// When it is spent, idle buffers are freed; and while that is not enough, every connection has to do with one message at
    /// a time in each direction: [`Connection::send`](crate::Connection::send) waits for an empty queue, and nothing is
    /// received while anything is unread. (An event handler that has left the beginning of a message still gets the rest of
    /// it.) So no connection stands still for want of memory, and the budget may be passed by a message and a read of 65 KiB
    /// for each. See [`ServerHandle::memory_used`](crate::ServerHandle::memory_used).
    #[must_use]
    pub fn memory(mut self, bytes: impl Into<Option<usize>>) -> Limits {
        self.memory = bytes.into();
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.connections == Some(0) {
            return Err(Error::option("connections", "must be at least 1"));
        }
        if self.memory.is_some_and(|bytes| bytes < MEMORY_MIN) {
            return Err(Error::option("memory", "must be at least 1 MiB; None is no budget"));
        }
        if self.per_address == Some(0) {
            return Err(Error::option("per_address", "must be at least 1; `deny` keeps addresses out"));
        }
        if !(1..=128).contains(&self.ipv6_prefix) {
            return Err(Error::option("ipv6_prefix", "must be between 1 and 128 bits"));
        }
        if self.accept_rate.is_some_and(|rate| rate.per_second == 0 || rate.burst == 0) {
            return Err(Error::option("accept_rate", "must be at least 1 per second, with a burst of 1"));
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

/// How fast connections may come in: so many per second, and some more at once after a pause (a token bucket).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct AcceptRate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

impl AcceptRate {
    /// So many connections per second, and as many at once after a second's pause.
    pub fn new(per_second: u32) -> AcceptRate {
        AcceptRate { per_second, burst: per_second }
    }

    /// Sets how many connections may come in at once after a pause. Default: a second's worth.
    #[must_use]
    pub fn burst(mut self, connections: u32) -> AcceptRate {
        self.burst = connections;
        self
    }
}

/// What becomes of a connection that is one too many for [`Limits`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OverLimit {
    /// It waits in the kernel's backlog until there is room. Costs nothing and loses nobody, but who waits too long gives
    /// up without having been told.
    ///
    /// One that its own address keeps out, and not the server, is reset: nobody behind it should wait for it.
    #[default]
    Queue,
    /// It is accepted and closed at once.
    Close,
    /// It is accepted and reset at once: the cheapest way to say no, and one that clients notice.
    Reset,
}

impl fmt::Display for AcceptRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} per second, {} at once", self.per_second, self.burst)
    }
}

impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OverLimit::Queue => "queue",
            OverLimit::Close => "close",
            OverLimit::Reset => "reset",
        })
    }
}

impl fmt::Display for WhenFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WhenFull::Wait => "wait",
            WhenFull::Refuse => "refuse",
            WhenFull::Disconnect => "disconnect",
        })
    }
}
