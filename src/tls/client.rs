//! TLS of a client: the description ([`ClientTls`]) and what connects with it ([`Connector`]).

use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::Verification;

/// TLS of a client, before it is used.
pub struct ClientTls {
    config: Arc<rustls::ClientConfig>,
}

/// What a client connects by TLS with; a clone is the same one.
#[derive(Clone)]
pub struct Connector(Arc<ClientSide>);

/// What a handshake that begins now is to be made with.
pub(crate) struct ClientSide {
    /// With `enable_secret_extraction`.
    pub(crate) config: Arc<rustls::ClientConfig>,
    /// The name that the server has to have; of nobody said, the host of the address.
    pub(crate) server_name: Option<ServerName<'static>>,
    /// Whether a peer may end without close_notify.
    pub(crate) tolerates_truncation: bool,
    /// What a handshake that succeeds says of the peer: verified, skipped, or somebody else's rules.
    pub(crate) verification: Verification,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    /// What is in force now.
    pub(crate) fn current(&self) -> Arc<ClientSide> {
        self.0.clone()
    }
}
