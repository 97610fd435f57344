//! Where a client stands on its way to a connection: [`ConnectState`].

use std::fmt;

use crate::address::Address;
use crate::error::Error;

/// Where a client stands: on its way to a connection, on it, or without one.
///
/// ```text
///   Idle --> Resolving --> Connecting --> [Proxying] --> [Handshaking] --> Connected --> Disconnected
/// ```
///
/// What fails at one address begins again at the next, so `Connecting` may come behind any of those that follow it. Each step but
/// the last may be followed by `Disconnected`.
///
/// ```
/// use wharf::ConnectState;
///
/// assert_eq!(ConnectState::Resolving.to_string(), "looking up the name");
/// assert!(!ConnectState::Idle.is_connected() && ConnectState::Idle.address().is_none());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ConnectState {
    /// Not connected, and not about to be: nobody has asked yet, or this side has disconnected.
    Idle,
    /// Looking up the addresses of a name, the target's or the proxy's.
    Resolving,
    /// An attempt at this address has begun. Others may be under way.
    Connecting(Address),
    /// The proxy at this address was asked for the target, and has not answered.
    Proxying(Address),
    /// The connection with this address stands; TLS does not yet.
    Handshaking(Address),
    /// Connected, with this address: the target's, or the proxy's that leads there.
    Connected(Address),
    /// Not connected, for this reason: the connect failed, or the connection has ended ([`Error::close_reason`]).
    Disconnected(Error),
}

impl ConnectState {
    /// Whether there is a connection that can be used.
    pub fn is_connected(&self) -> bool {
        matches!(self, ConnectState::Connected(_))
    }

    /// Whether a connect is under way.
    pub fn is_connecting(&self) -> bool {
        !matches!(self, ConnectState::Idle | ConnectState::Connected(_) | ConnectState::Disconnected(_))
    }

    /// The address that it is about, if it is about one: a proxy's, while that is on the way.
    pub fn address(&self) -> Option<&Address> {
        match self {
            ConnectState::Connecting(address)
            | ConnectState::Proxying(address)
            | ConnectState::Handshaking(address)
            | ConnectState::Connected(address) => Some(address),
            ConnectState::Idle | ConnectState::Resolving | ConnectState::Disconnected(_) => None,
        }
    }
}

impl fmt::Display for ConnectState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectState::Idle => f.write_str("idle"),
            ConnectState::Resolving => f.write_str("looking up the name"),
            ConnectState::Connecting(address) => write!(f, "connecting to {address}"),
            ConnectState::Proxying(address) => write!(f, "waiting for the proxy's answer from {address}"),
            ConnectState::Handshaking(address) => write!(f, "in the TLS handshake with {address}"),
            ConnectState::Connected(address) => write!(f, "connected to {address}"),
            ConnectState::Disconnected(error) => write!(f, "disconnected: {error}"),
        }
    }
}
