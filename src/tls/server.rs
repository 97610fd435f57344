//! TLS of a server: the description ([`ServerTls`]) and what accepts with it ([`Acceptor`]).

use std::sync::Arc;
use std::time::Duration;

/// TLS of a server, before it is used.
pub struct ServerTls {
    config: Arc<rustls::ServerConfig>,
}

/// What a server accepts TLS with; a clone is the same one.
#[derive(Clone)]
pub struct Acceptor(Arc<ServerSide>);

/// What a handshake that begins now is to be made with.
pub(crate) struct ServerSide {
    /// With `enable_secret_extraction`.
    pub(crate) config: Arc<rustls::ServerConfig>,
    /// Whether a peer may end without close_notify.
    pub(crate) tolerates_truncation: bool,
    /// How long a handshake may take.
    pub(crate) within: Duration,
    /// How many handshakes may be in progress at once, in the whole server.
    pub(crate) handshakes_max: usize,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

impl Acceptor {
    /// What is in force now.
    pub(crate) fn current(&self) -> Arc<ServerSide> {
        self.0.clone()
    }
}
