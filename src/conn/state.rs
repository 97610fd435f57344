//! What a connection is doing, for those who look on: [`ConnectionState`].

use std::fmt;

/// What a connection is doing.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionState {
    /// Both directions stand.
    Open,
    /// The peer has ended its direction.
    PeerEnded,
    /// This side has ended its direction, or is about to, behind what is queued.
    Finishing,
    /// It is being closed.
    Closing,
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConnectionState::Open => "open",
            ConnectionState::PeerEnded => "peer ended",
            ConnectionState::Finishing => "finishing",
            ConnectionState::Closing => "closing",
        })
    }
}
