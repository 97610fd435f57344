//! How far a socket is: [`State`], and why it is not connected: [`Disconnect`].

use std::fmt;
use std::mem::discriminant;

use crate::client::ConnectState;
use crate::error::{CloseReason, Error};

/// How far a [`Socket`](crate::event::Socket) is. Each change is told once, in order.
///
/// ```text
///   Disconnected --connect--> Connecting, once for each step --> Connected --> Disconnected
///        ^                                  |
///        +----------------------------------+
/// ```
///
/// ```
/// use wharf::event::State;
///
/// fn label(state: &State) -> String {
///     match state {
///         State::Connecting(step) => step.to_string(), // connecting to 10.0.0.7:7788
///         State::Connected => String::from("online"),
///         State::Disconnected(why) if why.is_graceful() => String::from("offline"),
///         State::Disconnected(why) => format!("offline: {why}"),
///         other => other.to_string(),
///     }
/// }
/// # assert_eq!(label(&State::Connected), "online");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum State {
    /// There is no connection, for this reason, nor an attempt at one.
    Disconnected(Disconnect),
    /// It is being made; told again with each step of it: looking up the name, trying an address, asking the proxy, the TLS handshake.
    ///
    /// The steps are those of [`Connect::observe`](crate::Connect::observe), but for the last: that the connection stands, or cannot be
    /// made, is a state of its own here.
    Connecting(ConnectState),
    /// The connection stands.
    Connected,
}

impl State {
    /// Whether the connection stands.
    pub fn is_connected(&self) -> bool {
        matches!(self, State::Connected)
    }

    /// Whether there is no connection, nor an attempt at one.
    pub fn is_disconnected(&self) -> bool {
        matches!(self, State::Disconnected(_))
    }

    /// Whether it is where `other` is: the reasons of an end are not looked at.
    pub(super) fn is_same(&self, other: &State) -> bool {
        match (self, other) {
            (State::Connecting(one), State::Connecting(other)) => {
                discriminant(one) == discriminant(other) && one.address() == other.address()
            }
            _ => discriminant(self) == discriminant(other),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Disconnected(why) => write!(f, "disconnected: {why}"),
            State::Connecting(step) => write!(f, "{step}"),
            State::Connected => f.write_str("connected"),
        }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Disconnect {
    /// Nobody has asked for one yet.
    Unconnected,
    /// It could not be made.
    Failed(Error),
    /// It has ended.
    Closed(CloseReason),
}

impl Disconnect {
    /// Whether nothing went wrong: never connected, or ended in order with all data received.
    pub fn is_graceful(&self) -> bool {
        match self {
            Disconnect::Unconnected => true,
            Disconnect::Failed(_) => false,
            Disconnect::Closed(reason) => reason.is_graceful(),
        }
    }
}

impl fmt::Display for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disconnect::Unconnected => f.write_str("not connected yet"),
            Disconnect::Failed(error) => write!(f, "{error}"),
            Disconnect::Closed(reason) => write!(f, "{reason}"),
        }
    }
}
