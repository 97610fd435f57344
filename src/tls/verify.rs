//! Verification of the peer's certificate: rustls's, with better words for what it refuses, revocation by our rules, and pins.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
};
use webpki::EndEntityCert;

use super::der;
use super::identity::public_key_hash;
use super::provider;
use super::trust::{Asked, ClientCertificates, Trust};
use crate::error::Result;
use crate::tls_fault::CertificateFault;

/// Why a certificate was refused, where rustls has no word for it.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) fault: CertificateFault,
    pub(super) detail: String,
}

thread_local! {
    /// Of the last [`CertificateError::UnknownIssuer`] on this thread. An error of our own in its place would take these words
    /// along, but rustls would then send certificate_unknown as the alert, where unknown_ca is due.
    static UNKNOWN_ISSUER: RefCell<Option<Refusal>> = const { RefCell::new(None) };
    /// Whether a server on this thread has stapled something to its certificate. rustls tells it to nobody but the verifier.
    static STAPLED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a server's certificate was looked at on this thread, since this was asked last, that had an OCSP response with it.
pub(super) fn take_stapled() -> bool {
    STAPLED.take()
}

/// Takes what is known of the `UnknownIssuer` that was returned on this thread last.
pub(super) fn take_unknown_issuer() -> Option<Refusal> {
    UNKNOWN_ISSUER.take()
}

/// The verifier of servers by `trust`; with pins, one of them has to fit besides.
pub(super) fn of_servers(trust: &Trust, pins: &[[u8; 32]]) -> Result<Arc<dyn ServerCertVerifier>> {
    let roots = trust.store();
    let build = |step: &Step| {
        let mut builder = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider());
        builder = builder.with_crls(trust.lists());
        if step.is_own_only {
            builder = builder.only_check_end_entity_revocation();
        }
        if step.allows_unknown {
            builder = builder.allow_unknown_revocation_status();
        }
        if step.enforces_dates {
            builder = builder.enforce_revocation_expiration();
        }
        builder.build().map_err(cannot_verify)
    };
    let steps = steps(trust).iter().map(build).collect::<Result<_>>()?;
    Ok(Arc::new(Servers { steps, roots, pins: pins.into() }))
}

/// The verifier that takes every server whose key fits its certificate; with pins, one of them has to fit.
pub(super) fn of_any_server(pins: &[[u8; 32]]) -> Arc<dyn ServerCertVerifier> {
    Arc::new(AnyServer { algorithms: provider().signature_verification_algorithms, pins: pins.into() })
}

/// The verifier of clients.
pub(super) fn of_clients(certificates: &ClientCertificates) -> Result<Arc<dyn ClientCertVerifier>> {
    let (trust, is_required) = match &certificates.0 {
        Asked::Off => return Ok(WebPkiClientVerifier::no_client_auth()),
        Asked::Optional(trust) => (trust, false),
        Asked::Required(trust) => (trust, true),
    };
    let roots = trust.store();
    let build = |step: &Step| {
        let mut builder = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider());
        builder = builder.with_crls(trust.lists());
        if step.is_own_only {
            builder = builder.only_check_end_entity_revocation();
        }
        if step.allows_unknown {
            builder = builder.allow_unknown_revocation_status();
        }
        if step.enforces_dates {
            builder = builder.enforce_revocation_expiration();
        }
        if !is_required {
            builder = builder.allow_unauthenticated();
        }
        if roots.len() > HINTS_MAX {
            builder = builder.clear_root_hint_subjects();
        }
        builder.build().map_err(cannot_verify)
    };
    let steps = steps(trust).iter().map(build).collect::<Result<_>>()?;
    Ok(Arc::new(Clients { steps, roots }))
}

/// One verification of a chain; what differs is how it looks at revocation.
struct Step {
    is_own_only: bool,
    allows_unknown: bool,
    enforces_dates: bool,
}

/// What makes up our rules: of the peer's own certificate a list has to tell; of those above it only if there is one.
fn steps(trust: &Trust) -> Vec<Step> {
    let is_strict = !trust.allows_unknown();
    let own = Step { is_own_only: true, allows_unknown: false, enforces_dates: true };
    let chain = Step { is_own_only: false, allows_unknown: true, enforces_dates: is_strict };
    match is_strict && trust.has_lists() {
        true => vec![own, chain],
        false => vec![chain],
    }
}

#[derive(Debug)]
struct Servers {
    /// One at least; the others are for chains that are longer than the peer's own certificate.
    steps: Box<[Arc<WebPkiServerVerifier>]>,
    roots: Arc<RootCertStore>,
    pins: Box<[[u8; 32]]>,
}

#[derive(Debug)]
struct Clients {
    /// As in [`Servers`].
    steps: Box<[Arc<dyn ClientCertVerifier>]>,
    roots: Arc<RootCertStore>,
}

#[derive(Debug)]
struct AnyServer {
    algorithms: WebPkiSupportedAlgorithms,
    pins: Box<[[u8; 32]]>,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        STAPLED.set(!ocsp.is_empty());
        let needed = if others.is_empty() { 1 } else { self.steps.len() };
        for step in &self.steps[..needed] {
            step.verify_server_cert(own, others, name, ocsp, now)
                .map_err(|error| explain(error, own, &self.roots))?;
        }
        check_pins(&self.pins, own)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.steps[0].verify_tls12_signature(message, own, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.steps[0].verify_tls13_signature(message, own, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.steps[0].supported_verify_schemes()
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        STAPLED.set(!ocsp.is_empty());
        check_pins(&self.pins, own)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, own, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, own, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.steps[0].client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.steps[0].root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let needed = if others.is_empty() { 1 } else { self.steps.len() };
        for step in &self.steps[..needed] {
            step.verify_client_cert(own, others, now).map_err(|error| explain(error, own, &self.roots))?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.steps[0].verify_tls12_signature(message, own, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.steps[0].verify_tls13_signature(message, own, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.steps[0].supported_verify_schemes()
    }
}

/// Notes what is known of a certificate of an unknown issuer, among them those that have issued themselves.
fn explain(error: rustls::Error, own: &CertificateDer<'_>, roots: &RootCertStore) -> rustls::Error {
    let Ok(certificate) = EndEntityCert::try_from(own) else { return error };
    let is_self_signed = certificate.issuer() == certificate.subject();
    let is_unknown = match &error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        // One of a CA that is not even a root; that it is a CA's matters less.
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => {
            is_self_signed
                && matches!(other.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
                && !roots.roots.iter().any(|root| root.subject.as_ref() == certificate.subject())
        }
        // There is a root of that name, which is not its issuer all the same.
        #[allow(deprecated)] // the variant without context: it may come from webpki's other versions
        rustls::Error::InvalidCertificate(
            CertificateError::BadSignature
            | CertificateError::UnsupportedSignatureAlgorithm
            | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => is_self_signed,
        _ => false,
    };
    if !is_unknown {
        return error;
    }
    let words = |name| der::words(name).filter(|words| !words.is_empty()).unwrap_or("nobody".into());
    let (subject, issuer) = (words(certificate.subject()), words(certificate.issuer()));
    UNKNOWN_ISSUER.set(Some(match is_self_signed {
        true => Refusal {
            fault: CertificateFault::SelfSigned,
            detail: format!("that of {subject} has issued itself, and is not among those that are trusted"),
        },
        false => Refusal {
            fault: CertificateFault::UnknownIssuer,
            detail: format!("that of {subject} is issued by {issuer}, and leads to nobody who is trusted"),
        },
    }));
    CertificateError::UnknownIssuer.into()
}

fn check_pins(pins: &[[u8; 32]], own: &CertificateDer<'_>) -> Result<ServerCertVerified, rustls::Error> {
    if pins.is_empty() {
        return Ok(ServerCertVerified::assertion());
    }
    let hash = public_key_hash(own).ok_or(CertificateError::BadEncoding)?;
    if pins.contains(&hash) {
        return Ok(ServerCertVerified::assertion());
    }
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let detail = format!("the SHA-256 of its public key is {hex}");
    let refusal = Refusal { fault: CertificateFault::NotPinned, detail };
    Err(CertificateError::Other(OtherError(Arc::new(refusal))).into())
}

fn cannot_verify(error: impl fmt::Display) -> crate::Error {
    super::pem::Source::Given("what is trusted").error(error.to_string())
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fault, self.detail)
    }
}

impl std::error::Error for Refusal {}

/// How many roots a server names to its clients, as a help to choose a certificate; with more of them, the platform's for
/// example, the names would be larger than all the rest of the handshake.
const HINTS_MAX: usize = 32;
