//! What the two sides of a TLS connection agreed on, and what is known of the peer: [`Info`].

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

/// What a TLS handshake has brought; see [`Connection::tls`](crate::Connection::tls). A clone is cheap.
#[derive(Clone)]
pub struct Info(Arc<Agreed>);

pub(super) struct Agreed {
    pub(super) version: Version,
    pub(super) cipher: &'static str,
    pub(super) alpn: Option<Box<[u8]>>,
    pub(super) server_name: Option<Box<str>>,
    pub(super) is_resumed: bool,
    pub(super) is_stapled: bool,
    pub(super) verification: Verification,
    pub(super) chain: Box<[CertificateDer<'static>]>,
}

/// A version of TLS.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Version {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    Tls13,
}

/// What is known of who the peer is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verification {
    /// The peer has shown no certificate, and needed none.
    Unasked,
    /// The peer's certificate was verified: its chain, its validity, its use and, of a server, its name; when the session
    /// began, if this one is resumed.
    Verified,
    /// The peer's certificate was accepted without a look, because this side was told to:
    /// [`ClientTls::danger_accept_any_certificate`](super::ClientTls::danger_accept_any_certificate).
    Skipped,
    /// Somebody else's rules decided: those of the rustls configuration that was given.
    Custom,
}

impl Info {
    pub(super) fn new(agreed: Agreed) -> Info {
        Info(Arc::new(agreed))
    }

    /// The version of TLS.
    pub fn version(&self) -> Version {
        self.0.version
    }

    /// The cipher suite, by its name in the registry of IANA: `TLS13_AES_128_GCM_SHA256`, for example.
    pub fn cipher(&self) -> &'static str {
        self.0.cipher
    }

    /// The application protocol that was agreed on (ALPN, RFC 7301); `None` if there was no talk of any.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.0.alpn.as_deref()
    }

    /// The name that the client asked for (SNI, RFC 6066), in small letters; `None` if it asked for none, as for an address.
    pub fn server_name(&self) -> Option<&str> {
        self.0.server_name.as_deref()
    }

    /// Whether the session was resumed: no certificate was exchanged this time.
    pub fn is_resumed(&self) -> bool {
        self.0.is_resumed
    }

    /// Whether the server has sent an OCSP response with its certificate (stapling, RFC 6066). Nobody has looked into it, and none
    /// is seen if a configuration of rustls decides, or when a session is resumed.
    pub fn is_stapled(&self) -> bool {
        self.0.is_stapled
    }

    /// What is known of who the peer is.
    pub fn verification(&self) -> Verification {
        self.0.verification
    }

    /// The peer's certificates in DER, its own first; empty if it has shown none. Of a resumed session they are those of its
    /// beginning.
    pub fn chain(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.0.chain.iter().map(AsRef::as_ref)
    }
}

impl fmt::Debug for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Info")
            .field("version", &self.version())
            .field("cipher", &self.cipher())
            .field("alpn", &self.alpn().map(String::from_utf8_lossy))
            .field("server_name", &self.server_name())
            .field("is_resumed", &self.is_resumed())
            .field("is_stapled", &self.is_stapled())
            .field("verification", &self.verification())
            .field("chain", &format_args!("{} certificates", self.chain().len()))
            .finish()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::Tls12 => "TLS 1.2",
            Version::Tls13 => "TLS 1.3",
        })
    }
}
