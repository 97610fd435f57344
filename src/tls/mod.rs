//! TLS on servers and clients: what a side shows, whom it trusts, and what came of a handshake.
//!
//! A server gets an [`Acceptor`], a client a [`Connector`]; both are made of a description ([`ServerTls`], [`ClientTls`]) that
//! is checked when they are made, and both can get another description while they are in use: connections that begin then have
//! it. Clients verify whom they talk to; not to do so is spelled `danger`.
//!
//! The handshake is [rustls]'s, with the cryptography of aws-lc. Records are protected within the connection's own path: what
//! is received is decrypted where it lies, what is sent is encrypted in the buffer that goes to the kernel, and everything that
//! one turn sends leaves in as few records as it fits.
//!
//! ```no_run
//! use wharf::tls::{Acceptor, Identity, ServerTls};
//! use wharf::{Connection, Server};
//!
//! let identity = Identity::from_files("chain.pem", "key.pem")?;
//! let acceptor = Acceptor::new(ServerTls::new(identity))?;
//! let server = Server::bind("0.0.0.0:7789").tls(&acceptor).start(|mut conn: Connection| async move {
//!     conn.send(b"hello").await
//! })?;
//! acceptor.reload()?; // the files have changed
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```

mod classify;
mod client;
mod der;
mod handshake;
#[cfg(fuzzing)]
pub(crate) mod harness;
mod identity;
mod info;
mod key_log;
mod options;
mod pem;
mod record;
mod server;
mod session;
#[cfg(test)]
mod testing;
mod trust;
mod verify;

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use client::{ClientTls, Connector};
pub use identity::Identity;
pub use info::{Info, Verification, Version};
pub use options::Versions;
pub use server::{Acceptor, ServerTls};
pub use trust::{ClientCertificates, Trust};

pub(crate) use client::{ClientSide, unverified_connectors};
pub(crate) use server::ServerSide;
pub(crate) use session::{BUFFERFUL, Failure, Session, Step};

/// The cryptography of aws-lc, as rustls wants it; so nothing depends on what the process has for its default.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())).clone()
}
