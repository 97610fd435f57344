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
///
/// Key exchange is the hybrid with ML-KEM first, so that what is recorded today is not read by a quantum computer later; then
/// X25519. Of the ciphers, AES-128-GCM goes first: the hash that comes with it has instructions of its own on today's processors,
/// which makes a handshake a fifth cheaper than with AES-256-GCM and SHA-384, and nobody counts to 2^128.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let new = || {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(|suite| {
            use rustls::CipherSuite::*;
            !matches!(
                suite.suite(),
                TLS13_AES_128_GCM_SHA256
                    | TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                    | TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
            )
        });
        Arc::new(provider)
    };
    PROVIDER.get_or_init(new).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheapest_of_the_safe_ciphers_goes_first_in_both_versions() {
        let names: Vec<_> =
            provider().cipher_suites.iter().filter_map(|suite| suite.suite().as_str()).collect();
        let place = |name| names.iter().position(|each| *each == name).expect("it is there");
        assert_eq!(names.len(), 9, "none is lost");
        assert!(place("TLS13_AES_128_GCM_SHA256") < place("TLS13_AES_256_GCM_SHA384"));
        let (aes_128, aes_256) =
            ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384");
        assert!(place(aes_128) < place(aes_256));
        assert_eq!(provider().kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
    }
}
