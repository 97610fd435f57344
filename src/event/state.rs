//! How far a socket is: [`State`], and why it is not connected: [`Disconnect`].

use std::fmt;

use crate::error::{CloseReason, Error};

/// How far a [`Socket`](crate::event::Socket) is. Each change is told once, in order.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum State {
    /// The name of the server is being looked up.
    Resolving,
    /// One of its addresses is being tried. It may come again behind `Handshaking`, if TLS fails at one of several addresses.
    Connecting,
    /// The client's proxy was asked for the server, and has not answered.
    Proxying,
    /// The TLS handshake is under way.
    Handshaking,
    /// The connection stands.
    Connected,
    /// There is no connection, for this reason.
    Disconnected(Disconnect),
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
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Resolving => f.write_str("resolving"),
            State::Connecting => f.write_str("connecting"),
            State::Proxying => f.write_str("waiting for the proxy"),
            State::Handshaking => f.write_str("TLS handshake"),
            State::Connected => f.write_str("connected"),
            State::Disconnected(why) => write!(f, "disconnected: {why}"),
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
