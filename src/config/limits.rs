//! The bounds of a server and of its connections: [`Limits`].

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
