//! Why a connection ended, or was kept out: [`CloseReason`], [`Deadline`], [`Bound`], [`ProxyFault`], [`Rule`].

use std::fmt;
use std::io;

use crate::tls_fault::TlsFault;

/// Why a connection ended. Every connection has exactly one reason: the first cause that made its end certain.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// This side ended first, gracefully: all that was queued went out before FIN.
    Local,
    /// The peer ended first (FIN; under TLS close_notify), and this side then finished gracefully.
    Peer,
    /// This side threw the connection away (RST), with whatever was unsent.
    LocalReset,
    /// The peer threw the connection away (RST).
    PeerReset,
    /// A deadline of the connection passed.
    Timeout(Deadline),
    /// A bound of the connection was passed.
    Limit(Bound),
    /// The network failed: unreachable, down, or unanswered for too long.
    Network(io::ErrorKind),
    /// The PROXY header that has to come first did not, or not from a proxy that is trusted; the connection was reset.
    Proxy(ProxyFault),
    /// TLS failed. The peer was told by an alert, unless it was the peer who told us, or who has cut the connection short.
    Tls(TlsFault),
    /// The handler returned an error; what it had queued was still sent.
    HandlerFailed,
    /// The handler panicked; the connection was reset.
    HandlerPanicked,
    /// [`ServerHandle::disconnect`](crate::ServerHandle::disconnect) sent it away; what was queued was still sent if it could
    /// be in time.
    Disconnected,
    /// The connection was refused after all, when its proxy had told whom it is for.
    Refused(Rule),
    /// The server stopped, or its drain deadline passed, before the connection ended.
    Shutdown,
}

/// The deadlines that can end a connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Deadline {
    /// A read was awaited and the peer's first byte did not come for
    /// [`Deadlines::first_byte`](crate::Deadlines::first_byte).
    FirstByte,
    /// A read was awaited and no byte came for [`Deadlines::idle`](crate::Deadlines::idle).
    Idle,
    /// A message had begun, and the rest of it came slower than
    /// [`Deadlines::receive_rate`](crate::Deadlines::receive_rate).
    ReceiveRate,
    /// Bytes were queued and none went out for [`Deadlines::write`](crate::Deadlines::write).
    Write,
    /// The connection reached [`Deadlines::age`](crate::Deadlines::age).
    Age,
    /// The handler's own deadline, set with `set_deadline`; or the handler ended with a timeout of an operation.
    Handler,
    /// The PROXY header was not there, or not whole, within [`ProxyProtocol::within`](crate::ProxyProtocol::within).
    ProxyHeader,
    /// The TLS handshake was not over within [`ServerTls::handshake_within`](crate::tls::ServerTls::handshake_within).
    Handshake,
}

/// The bounds whose passing ends a connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bound {
    /// An event handler left more unconsumed than [`Limits::receive_buffer`](crate::Limits::receive_buffer) holds.
    ReceiveBuffer,
    /// A message had no room in the send queue, and [`Limits::when_full`](crate::Limits::when_full) is
    /// [`Disconnect`](crate::WhenFull::Disconnect).
    SendQueue,
}

/// Why a connection on which a PROXY header has to come first was refused.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProxyFault {
    /// The first bytes are not those of a header, of version 1 or 2.
    Missing,
    /// A version other than 1 and 2.
    Version,
    /// A command other than LOCAL and PROXY.
    Command,
    /// An address family or a protocol that is not assigned, or that of datagrams.
    Family,
    /// A line that is not of version 1's form.
    Line,
    /// An address or a port that is none.
    Address,
    /// A length that leaves no room for the addresses.
    Length,
    /// A header longer than a header may be: 107 bytes in version 1, 2064 in version 2.
    TooLong,
    /// A value behind the addresses that reaches over the header's end.
    Tlv,
}

/// The rule that keeps a connection out.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Rule {
    /// The peer's network may not connect, see [`Access`](crate::Access).
    Network,
    /// The peer is not trusted to speak for others, on a listener behind proxies (see
    /// [`ProxyProtocol`](crate::ProxyProtocol)).
    Untrusted,
    /// The peer's address already has [`Limits::per_address`](crate::Limits::per_address) connections.
    PerAddress,
    /// The server holds [`Limits::connections`](crate::Limits::connections).
    Connections,
    /// The server's connections hold all of [`Limits::memory`](crate::Limits::memory).
    Memory,
    /// Connections came faster than [`Limits::accept_rate`](crate::Limits::accept_rate).
    Rate,
    /// The process has no descriptors, or the system no memory, for another connection.
    Descriptors,
}

impl Rule {
    /// All rules, in the order in which they are asked.
    pub(crate) const ALL: [Rule; 7] = [
        Rule::Network,
        Rule::Untrusted,
        Rule::PerAddress,
        Rule::Connections,
        Rule::Memory,
        Rule::Rate,
        Rule::Descriptors,
    ];

    pub(crate) fn index(self) -> usize {
        Rule::ALL.iter().position(|each| *each == self).unwrap_or_default()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::Network => "network",
            Rule::Untrusted => "not a trusted proxy",
            Rule::PerAddress => "connections per address",
            Rule::Connections => "connections in total",
            Rule::Memory => "memory budget",
            Rule::Rate => "accept rate",
            Rule::Descriptors => "out of descriptors or memory",
        })
    }
}

impl CloseReason {
    /// Whether both directions ended in order and nothing queued was lost.
    pub fn is_graceful(self) -> bool {
        matches!(self, CloseReason::Local | CloseReason::Peer)
    }

    pub(crate) fn of(error: &io::Error) -> CloseReason {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => CloseReason::PeerReset,
            kind => CloseReason::Network(kind),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Local => f.write_str("closed by this side"),
            CloseReason::Peer => f.write_str("closed by the peer"),
            CloseReason::LocalReset => f.write_str("reset by this side"),
            CloseReason::PeerReset => f.write_str("reset by the peer"),
            CloseReason::Timeout(deadline) => write!(f, "{deadline} deadline passed"),
            CloseReason::Limit(bound) => write!(f, "{bound} limit passed"),
            CloseReason::Network(kind) => write!(f, "{kind}"),
            CloseReason::Proxy(fault) => write!(f, "PROXY protocol: {fault}"),
            CloseReason::Tls(fault) => write!(f, "TLS: {fault}"),
            CloseReason::HandlerFailed => f.write_str("handler failed"),
            CloseReason::HandlerPanicked => f.write_str("handler panicked"),
            CloseReason::Disconnected => f.write_str("disconnected by the server"),
            CloseReason::Refused(rule) => write!(f, "refused: {rule}"),
            CloseReason::Shutdown => f.write_str("server shut down"),
        }
    }
}

impl fmt::Display for Deadline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Deadline::FirstByte => "first byte",
            Deadline::Idle => "idle",
            Deadline::ReceiveRate => "receive rate",
            Deadline::Write => "write",
            Deadline::Age => "age",
            Deadline::Handler => "handler's",
            Deadline::ProxyHeader => "PROXY header",
            Deadline::Handshake => "TLS handshake",
        })
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bound::ReceiveBuffer => "receive buffer",
            Bound::SendQueue => "send queue",
        })
    }
}

impl fmt::Display for ProxyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProxyFault::Missing => "there is no header",
            ProxyFault::Version => "unassigned version",
            ProxyFault::Command => "unassigned command",
            ProxyFault::Family => "unfit address family",
            ProxyFault::Line => "malformed line",
            ProxyFault::Address => "malformed address",
            ProxyFault::Length => "too short for its addresses",
            ProxyFault::TooLong => "header too long",
            ProxyFault::Tlv => "a value reaches over the header's end",
        })
    }
}
