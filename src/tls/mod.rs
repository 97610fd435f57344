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
//!
//! # What is the default
//!
//! | | Server ([`ServerTls`]) | Client ([`ClientTls`]) |
//! |---|---|---|
//! | versions | 1.2 and 1.3 | the same |
//! | shows | its [`Identity`] | nothing |
//! | asks for and verifies | nothing of its clients | the server: chain, validity, use, name |
//! | trusts | nobody | whom the operating system trusts |
//! | key exchange | X25519 with ML-KEM-768 first, then X25519 and the curves of NIST | the same |
//! | ciphers | AES-128-GCM first, AES-256-GCM, ChaCha20-Poly1305; the server's order counts | the same |
//! | revocation | nothing is asked; by the lists of [`Trust`], if it has any | the same |
//! | resumption | by tickets, good for 12 hours at most | of up to 256 servers, in memory |
//! | the handshake has | 5 s | its part of the connect (10 s) |
//! | handshakes at once | 4096 | no bound |
//! | early data | never | never |
//!
//! # What goes wrong
//!
//! A file that cannot be used is an [`Error`](crate::Error) when it is loaded, with file, line and cause. What goes wrong with a peer
//! is a [`TlsFault`](crate::TlsFault), told by [`Error::tls_fault`](crate::Error::tls_fault), as
//! [`CloseReason::Tls`](crate::CloseReason::Tls), and to those who watch a server by
//! [`ServerEvent::HandshakeFailed`](crate::ServerEvent::HandshakeFailed). The text of the error says which check failed and what it
//! saw.
//!
//! A peer's end without close_notify is an error ([`TlsFault::Truncated`](crate::TlsFault::Truncated)), behind the bytes before
//! it.
//!
//! # What is counted
//!
//! [`Counts`](crate::Counts), the limits of queues and the deadlines are about the bytes on the wire, with what TLS adds: 22
//! bytes for each record in TLS 1.3, up to 29 in TLS 1.2, and the handshake.

mod classify;
mod client;
mod der;
mod handshake;
#[cfg(fuzzing)]
pub(crate) mod harness;
mod identity;
mod in_force;
mod info;
mod key_log;
mod names;
mod numbers;
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
