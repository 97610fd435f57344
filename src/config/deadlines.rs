//! How long anything may take: [`Deadlines`].

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Result};

/// The deadlines of connections. Each is total: it covers the whole of what it names and is not restarted by each byte,
/// but for `idle` and `write`, which are about progress: the first bounds a peer that says nothing, the second one that
/// reads nothing. `first_byte` and `receive_rate` bound a peer that says as little as it can.
///
/// `None` turns a deadline off.
///
/// ```
/// use std::time::Duration;
/// use wharf::Deadlines;
///
/// // Peers may be silent for as long as they like, once they have said something.
/// let deadlines = Deadlines::default().first_byte(Duration::from_secs(10)).idle(None);
/// assert!(deadlines.to_string().starts_with("first byte 10s, receive rate"), "{deadlines}");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines {
    pub(crate) first_byte: Option<Duration>,
    pub(crate) idle: Option<Duration>,
    pub(crate) receive_rate: Option<ReceiveRate>,
    pub(crate) write: Option<Duration>,
    pub(crate) age: Option<Duration>,
    pub(crate) linger: Duration,
}

/// The least rate at which a message has to come once it has begun; see [`Deadlines::receive_rate`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct ReceiveRate {
    bytes_per_second: u32,
    pub(crate) grace: Duration,
}

impl ReceiveRate {
    /// So many bytes in a second, at least 1, after a grace of 10 s.
    pub fn new(bytes_per_second: u32) -> ReceiveRate {
        ReceiveRate { bytes_per_second, grace: Duration::from_secs(10) }
    }

    /// Sets the time that every message has, however short it is. A packet that is lost twice
    /// costs a second or more, so below 3 s honest peers on bad paths are ended too. Default: 10 s.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> ReceiveRate {
        self.grace = grace;
        self
    }

    /// How long `bytes` may take.
    pub(crate) fn time_for(self, bytes: usize) -> Duration {
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / u64::from(self.bytes_per_second.max(1));
        Duration::from_nanos(nanos)
    }
}

impl Default for Deadlines {
    /// Those of a server.
    fn default() -> Deadlines {
        Deadlines {
            first_byte: Some(Duration::from_secs(30)),
            idle: Some(Duration::from_secs(60)),
            receive_rate: Some(ReceiveRate::new(240)),
            write: Some(Duration::from_secs(30)),
            age: None,
            linger: Duration::from_secs(2),
        }
    }
}

impl Deadlines {
    /// What clients begin with: those of a server, without `first_byte`, `idle` and `receive_rate`.
    #[must_use]
    pub fn for_clients() -> Deadlines {
        Deadlines::default().first_byte(None).idle(None).receive_rate(None)
    }

    /// Sets how long a peer may take to send its first byte, while a read from it is awaited: in event style, and with a
    /// handler that reads at once, that is counted from the accept. What is sent to it does not extend this.
    ///
    /// Under TLS the bytes of the handshake are none: the time begins with the handler, and the handshake has its own
    /// ([`ServerTls::handshake_within`](crate::tls::ServerTls::handshake_within)).
    ///
    /// Default: 30 s on servers, off on clients. A server that speaks first and never reads is not concerned.
    #[must_use]
    pub fn first_byte(mut self, after: impl Into<Option<Duration>>) -> Deadlines {
        self.first_byte = after.into();
        self
    }

    /// Sets the least rate at which a message has to come once it has begun. A message has begun when a `recv_exact` has
    /// some of its bytes, or when an event handler has left bytes unconsumed; it must be complete within the grace and
    /// the time that the bytes so far take at this rate. So a peer that sends one byte at a time cannot keep it open.
    ///
    /// The time begins anew when a message was consumed and the beginning of the next one is left, and when the peer had
    /// to wait for this side: its send queue or its receive buffer was full. Bytes that `recv` returns, or that a handler
    /// consumes, are nobody's beginning: for those there are `within` and `set_deadline`. Under TLS the beginning of a record is
    /// one, whatever the style.
    ///
    /// Default: 240 bytes in a second, after a grace of 10 s, on servers; off on clients.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use wharf::{Deadlines, ReceiveRate};
    /// let strict = Deadlines::default().receive_rate(ReceiveRate::new(1000).grace(Duration::from_secs(5)));
    /// let off = Deadlines::default().receive_rate(None);
    /// ```
    #[must_use]
    pub fn receive_rate(mut self, rate: impl Into<Option<ReceiveRate>>) -> Deadlines {
        self.receive_rate = rate.into();
        self
    }

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

    /// Those that are on, each with its name.
    pub(crate) fn on(&self) -> impl Iterator<Item = (&'static str, String)> {
        let Deadlines { first_byte, idle, receive_rate, write, age, linger } = self;
        let told = |after: &Option<Duration>| after.map(|after| format!("{after:?}"));
        let all = [
            ("first_byte", told(first_byte)),
            ("idle", told(idle)),
            ("receive_rate", receive_rate.map(|rate| rate.to_string())),
            ("write", told(write)),
            ("age", told(age)),
            ("linger", Some(format!("{linger:?}"))),
        ];
        all.into_iter().filter_map(|(name, deadline)| Some((name, deadline?)))
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let all =
            [("first_byte", self.first_byte), ("idle", self.idle), ("write", self.write), ("age", self.age)];
        for (name, deadline) in all {
            if deadline == Some(Duration::ZERO) {
                return Err(Error::option(name, "must be longer than zero; None turns it off"));
            }
        }
        if self.receive_rate.is_some_and(|rate| rate.bytes_per_second == 0) {
            let problem = "must be at least 1 byte in a second; None turns it off";
            return Err(Error::option("receive_rate", problem));
        }
        Ok(())
    }
}

/// Those that are on: `first byte 30s, idle 60s, receive rate 240 bytes/s after 10s, write 30s, linger 2s`.
impl fmt::Display for Deadlines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<_> =
            self.on().map(|(name, after)| format!("{} {after}", name.replace('_', " "))).collect();
        f.write_str(&each.join(", "))
    }
}

impl fmt::Display for ReceiveRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes/s after {:?}", self.bytes_per_second, self.grace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_print_those_that_are_on() {
        let printed = "first byte 30s, idle 60s, receive rate 240 bytes/s after 10s, write 30s, linger 2s";
        assert_eq!(Deadlines::default().to_string(), printed);
        let aged = Deadlines::for_clients().write(None).age(Duration::from_millis(1500));
        assert_eq!(aged.to_string(), "age 1.5s, linger 2s");
    }
}
