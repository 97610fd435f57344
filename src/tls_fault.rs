//! What can be wrong with TLS, for those who look at the end of a connection: [`TlsFault`].
//!
//! It is there without the feature `tls` too, so that a match on reasons is the same everywhere.

use std::fmt;

/// What went wrong with TLS on a connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsFault {
    /// The peer's bytes ended without its close_notify: whatever it was sending may be cut short (RFC 8446, 6.1). What came before
    /// can be read.
    Truncated,
    /// The peer's bytes ended in the middle of the handshake.
    HandshakeEnded,
    /// The first bytes are not those of TLS: another protocol, or garbage.
    NotTls,
    /// Both sides have no version of TLS in common. Below TLS 1.2 there is none here.
    Version,
    /// Both sides have no cipher suite, key exchange or signature scheme in common.
    Parameters,
    /// Both sides have no application protocol in common (ALPN, RFC 7301).
    Protocol,
    /// There is no identity for the name that the client asked for, and such clients are refused.
    UnknownName,
    /// The peer's certificate was refused.
    Certificate(CertificateFault),
    /// The peer refused, or found fault with what was sent: its fatal alert.
    Alert(TlsAlert),
    /// A record does not bear its authentication: it was changed on the way, or was not meant for this connection.
    BadRecord,
    /// A record is longer than a record may be.
    RecordTooLarge,
    /// The peer broke the rules of the protocol: something malformed, or at the wrong time.
    Misbehaved,
    /// The peer sent more than 32 records in a row that carry no data.
    Flood,
    /// So much was sent that the keys must not be used any more, and TLS 1.2 has no others: 2^24 records of AES-GCM.
    Exhausted,
    /// There were too many handshakes at once ([`ServerTls::handshakes_max`](crate::tls::ServerTls::handshakes_max)), and this one
    /// had been under way for a second: it gave way to another.
    Busy,
    /// Something on this side is at fault, such as a certificate that cannot be used.
    Local,
}

/// What is wrong with a certificate.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CertificateFault {
    /// The peer has none, and it must have one.
    Missing,
    /// It is no longer valid.
    Expired,
    /// It is not valid yet.
    NotYetValid,
    /// It is not for the name that was asked for.
    WrongName,
    /// Nobody who is trusted has issued it.
    UnknownIssuer,
    /// It has issued itself, and is not trusted.
    SelfSigned,
    /// Its issuer has revoked it.
    Revoked,
    /// No revocation list tells of it, or the list is out of date, and one has to.
    RevocationUnknown,
    /// It is not meant for this use: key usage, extended key usage, basic constraints.
    WrongUse,
    /// A signature in its chain, or in the handshake, is wrong or of a kind that is not accepted.
    BadSignature,
    /// Its public key is not one of those that were pinned.
    NotPinned,
    /// It cannot be read.
    Malformed,
    /// Something else.
    Other,
}

/// A fatal alert, by its number (RFC 8446, 6).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsAlert(pub u8);

impl fmt::Display for TlsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TlsFault::Truncated => "the peer ended without close_notify",
            TlsFault::HandshakeEnded => "the peer ended during the handshake",
            TlsFault::NotTls => "the peer does not speak TLS",
            TlsFault::Version => "no version in common",
            TlsFault::Parameters => "no cipher suite or key exchange in common",
            TlsFault::Protocol => "no application protocol in common",
            TlsFault::UnknownName => "no certificate for the name that was asked for",
            TlsFault::Certificate(fault) => return write!(f, "certificate {fault}"),
            TlsFault::Alert(alert) => return write!(f, "the peer refused: {alert}"),
            TlsFault::BadRecord => "a record that was changed on the way",
            TlsFault::RecordTooLarge => "a record too large",
            TlsFault::Misbehaved => "the peer broke the protocol",
            TlsFault::Flood => "too many records without content",
            TlsFault::Exhausted => "the keys are used up",
            TlsFault::Busy => "too many handshakes at once",
            TlsFault::Local => "this side cannot",
        })
    }
}

impl fmt::Display for CertificateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CertificateFault::Missing => "missing",
            CertificateFault::Expired => "expired",
            CertificateFault::NotYetValid => "not yet valid",
            CertificateFault::WrongName => "for another name",
            CertificateFault::UnknownIssuer => "of an unknown issuer",
            CertificateFault::SelfSigned => "self-signed and not trusted",
            CertificateFault::Revoked => "revoked",
            CertificateFault::RevocationUnknown => "of unknown revocation status",
            CertificateFault::WrongUse => "not meant for this use",
            CertificateFault::BadSignature => "with a bad signature",
            CertificateFault::NotPinned => "with a public key that is not pinned",
            CertificateFault::Malformed => "malformed",
            CertificateFault::Other => "refused",
        })
    }
}

impl fmt::Display for TlsAlert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0 => "close_notify",
            10 => "unexpected_message",
            20 => "bad_record_mac",
            22 => "record_overflow",
            40 => "handshake_failure",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            86 => "inappropriate_fallback",
            90 => "user_canceled",
            100 => "no_renegotiation",
            109 => "missing_extension",
            110 => "unsupported_extension",
            112 => "unrecognized_name",
            113 => "bad_certificate_status_response",
            115 => "unknown_psk_identity",
            116 => "certificate_required",
            120 => "no_application_protocol",
            number => return write!(f, "alert {number}"),
        };
        f.write_str(name)
    }
}
