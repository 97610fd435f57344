//! Which fault a failure of rustls is, and the words for it.

use rustls::{CertificateError, InvalidMessage, OtherError, PeerIncompatible};

use super::der::{date, printable};
use super::verify::{self, Refusal};
use crate::tls_fault::{CertificateFault, TlsAlert, TlsFault};

/// What `error` is to those who look at the end of a connection: the fault, and a detail that says which check failed and what it
/// saw; empty if there is nothing to add.
///
/// To be called on the thread that got the error, before anything else is verified there.
pub(super) fn classify(error: &rustls::Error) -> (TlsFault, String) {
    use rustls::Error;
    match error {
        Error::InvalidCertificate(error) => {
            let (fault, detail) = of_certificate(error);
            (TlsFault::Certificate(fault), detail)
        }
        Error::InvalidCertRevocationList(error) => {
            let detail = format!("its revocation list cannot be used: {}", printable(&format!("{error:?}")));
            (TlsFault::Certificate(CertificateFault::RevocationUnknown), detail)
        }
        Error::NoCertificatesPresented => (TlsFault::Certificate(CertificateFault::Missing), String::new()),
        Error::AlertReceived(alert) => (TlsFault::Alert(TlsAlert(u8::from(*alert))), String::new()),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => (TlsFault::NotTls, String::new()),
        Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion) => {
            (TlsFault::NotTls, "its first record is of no version of TLS".into())
        }
        Error::InvalidMessage(InvalidMessage::MessageTooLarge) | Error::PeerSentOversizedRecord => {
            (TlsFault::RecordTooLarge, String::new())
        }
        Error::PeerIncompatible(cause) => of_parameters(cause),
        Error::NoApplicationProtocol => (TlsFault::Protocol, String::new()),
        Error::DecryptError => (TlsFault::BadRecord, String::new()),
        Error::InvalidMessage(cause) => (TlsFault::Misbehaved, format!("a malformed message: {cause:?}")),
        Error::PeerMisbehaved(cause) => (TlsFault::Misbehaved, format!("{cause:?}")),
        Error::InappropriateMessage { expect_types, got_type } => {
            (TlsFault::Misbehaved, format!("{got_type:?} came where {expect_types:?} is due"))
        }
        Error::InappropriateHandshakeMessage { expect_types, got_type } => {
            (TlsFault::Misbehaved, format!("{got_type:?} came where {expect_types:?} is due"))
        }
        Error::General(text) if text == NO_IDENTITY => (TlsFault::UnknownName, String::new()),
        other => (TlsFault::Local, printable(&other.to_string())),
    }
}

fn of_parameters(cause: &PeerIncompatible) -> (TlsFault, String) {
    match cause {
        PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled => (TlsFault::Version, String::new()),
        PeerIncompatible::NoCipherSuitesInCommon => {
            (TlsFault::Parameters, "no cipher suite in common".into())
        }
        PeerIncompatible::NoKxGroupsInCommon => (TlsFault::Parameters, "no key exchange in common".into()),
        PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => {
            (TlsFault::Parameters, "no signature scheme in common".into())
        }
        other => (TlsFault::Parameters, format!("{other:?}")),
    }
}

fn of_certificate(error: &CertificateError) -> (CertificateFault, String) {
    #[allow(deprecated)] // the variants without context: verifiers of others may return them
    match error {
        CertificateError::UnknownIssuer => match verify::take_unknown_issuer() {
            Some(Refusal { fault, detail }) => (fault, detail),
            None => (CertificateFault::UnknownIssuer, String::new()),
        },
        CertificateError::Expired => (CertificateFault::Expired, String::new()),
        CertificateError::ExpiredContext { time, not_after } => {
            (CertificateFault::Expired, format!("valid until {}, now it is {}", day(*not_after), day(*time)))
        }
        CertificateError::NotValidYet => (CertificateFault::NotYetValid, String::new()),
        CertificateError::NotValidYetContext { time, not_before } => (
            CertificateFault::NotYetValid,
            format!("valid from {}, now it is {}", day(*not_before), day(*time)),
        ),
        CertificateError::NotValidForName => (CertificateFault::WrongName, String::new()),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let detail = format!("it is {}, not for {}", those(presented), expected.to_str());
            (CertificateFault::WrongName, detail)
        }
        CertificateError::Revoked => (CertificateFault::Revoked, String::new()),
        CertificateError::UnknownRevocationStatus => {
            (CertificateFault::RevocationUnknown, "no revocation list of its issuer is there".into())
        }
        CertificateError::ExpiredRevocationList => {
            (CertificateFault::RevocationUnknown, "its revocation list is out of date".into())
        }
        CertificateError::ExpiredRevocationListContext { time, next_update } => {
            let detail = format!(
                "its revocation list was valid until {}, now it is {}",
                day(*next_update),
                day(*time)
            );
            (CertificateFault::RevocationUnknown, detail)
        }
        CertificateError::InvalidPurpose => (CertificateFault::WrongUse, String::new()),
        CertificateError::InvalidPurposeContext { required, presented } => {
            let purposes: Vec<_> = presented.iter().take(NAMES_SHOWN).map(ToString::to_string).collect();
            let is = if purposes.is_empty() { "nothing".into() } else { purposes.join(" and ") };
            (CertificateFault::WrongUse, format!("it is for {is}, not for {required}"))
        }
        CertificateError::BadSignature => (CertificateFault::BadSignature, String::new()),
        CertificateError::UnsupportedSignatureAlgorithm
        | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            (CertificateFault::BadSignature, "of a kind that is not accepted".into())
        }
        CertificateError::BadEncoding => (CertificateFault::Malformed, String::new()),
        CertificateError::UnhandledCriticalExtension => {
            (CertificateFault::Other, "it has a critical extension that is not known".into())
        }
        CertificateError::Other(OtherError(other)) => of_other(other.as_ref()),
        other => (CertificateFault::Other, printable(&other.to_string())),
    }
}

fn of_other(error: &(dyn std::error::Error + Send + Sync + 'static)) -> (CertificateFault, String) {
    use webpki::Error;
    if let Some(Refusal { fault, detail }) = error.downcast_ref() {
        return (*fault, detail.clone());
    }
    let fault = match error.downcast_ref() {
        Some(Error::CaUsedAsEndEntity) => {
            let detail = "it is a CA's, which can vouch for others but not be shown (`openssl req -x509` makes such ones unless \
                          it has `-addext basicConstraints=critical,CA:FALSE`)";
            return (CertificateFault::WrongUse, detail.into());
        }
        Some(Error::EndEntityUsedAsCa) => {
            return (CertificateFault::WrongUse, "a certificate that is not a CA's has issued it".into());
        }
        Some(
            Error::PathLenConstraintViolated | Error::NameConstraintViolation | Error::EmptyEkuExtension,
        ) => CertificateFault::WrongUse,
        Some(
            Error::UnsupportedCertVersion
            | Error::MalformedExtensions
            | Error::ExtensionValueInvalid
            | Error::MalformedDnsIdentifier
            | Error::MalformedNameConstraint
            | Error::InvalidSerialNumber
            | Error::SignatureAlgorithmMismatch,
        ) => CertificateFault::Malformed,
        _ => CertificateFault::Other,
    };
    (fault, printable(&error.to_string()))
}

/// What a certificate is for: `for a and b`.
fn those(presented: &[String]) -> String {
    // webpki prints what it found as `DnsName("a")` and `IpAddress(192.0.2.7)`.
    let plain = |name: &String| {
        let inner = name.split_once('(').and_then(|(_, inner)| inner.strip_suffix(')')).unwrap_or(name);
        printable(inner.trim_matches('"'))
    };
    let names: Vec<String> = presented.iter().take(NAMES_SHOWN).map(plain).collect();
    match presented.len().checked_sub(NAMES_SHOWN) {
        _ if names.is_empty() => "for no name".into(),
        Some(more @ 1..) => format!("for {} and {more} more", names.join(", ")),
        _ => format!("for {}", names.join(", ")),
    }
}

fn day(time: rustls::pki_types::UnixTime) -> String {
    date(i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 2))
}

/// What rustls says when its resolver has no certificate for the client's name.
const NO_IDENTITY: &str = "no server certificate chain resolved";
/// How many of a peer's names are shown.
const NAMES_SHOWN: usize = 8;

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, date_time_ymd};
    use rustls::AlertDescription;

    use super::*;
    use crate::tls::testing::{Authority, Failed, Made, handshake, leaf, self_signed};
    use crate::tls::{Acceptor, ClientCertificates, ClientTls, Connector, ServerTls, Trust, Versions};

    /// What a client that trusts `trust` makes of a server that shows `made`.
    fn of_server(made: &Made, trust: Trust) -> (TlsFault, String) {
        let acceptor = Acceptor::new(ServerTls::new(made.identity())).expect("in order");
        let connector = Connector::new(ClientTls::new().trust(trust)).expect("in order");
        match handshake(&connector, &acceptor, "a.example").err().expect("it is refused") {
            Failed::Client(error) => classify(&error),
            Failed::Server(error) => panic!("the server refused: {error}"),
        }
    }

    /// What a server that requires `trust` makes of a client that shows `made`.
    fn of_client(made: Option<&Made>, trust: Trust) -> (TlsFault, String) {
        let root = Authority::new("Servers");
        let server = ServerTls::new(root.issue(leaf(&["a.example"])).identity());
        let acceptor = Acceptor::new(server.client_certificates(ClientCertificates::required(trust)));
        let mut client = ClientTls::new().trust(root.trust());
        if let Some(made) = made {
            client = client.identity(made.identity());
        }
        let connector = Connector::new(client).expect("in order");
        let failed = handshake(&connector, &acceptor.expect("in order"), "a.example");
        match failed.err().expect("it is refused") {
            Failed::Server(error) => classify(&error),
            Failed::Client(error) => panic!("the client refused: {error}"),
        }
    }

    fn with(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
        let mut params = leaf(&["a.example"]);
        change(&mut params);
        params
    }

    fn certificate(fault: CertificateFault) -> TlsFault {
        TlsFault::Certificate(fault)
    }

    #[test]
    fn a_certificate_out_of_its_time_says_when_it_was_or_will_be_valid() {
        let root = Authority::new("Root");
        let expired = root.issue(with(|params| params.not_after = date_time_ymd(2024, 2, 29)));
        let (fault, detail) = of_server(&expired, root.trust());
        assert_eq!(fault, certificate(CertificateFault::Expired));
        assert!(detail.starts_with("valid until 2024-02-29 00:00:00 UTC, now it is 2"), "{detail}");
        assert_eq!(of_client(Some(&expired), root.trust()).0, fault);

        let early = root.issue(with(|params| params.not_before = date_time_ymd(3000, 1, 1)));
        let (fault, detail) = of_server(&early, root.trust());
        assert_eq!(fault, certificate(CertificateFault::NotYetValid));
        assert!(detail.starts_with("valid from 3000-01-01 00:00:00 UTC, now it is 2"), "{detail}");
    }

    #[test]
    fn a_certificate_for_others_says_for_whom() {
        let root = Authority::new("Root");
        for (names, expected) in [
            (
                &["b.example", "*.c.example", "192.0.2.7"][..],
                "it is for b.example, *.c.example, 192.0.2.7, not for a.example",
            ),
            (&["b.example"], "it is for b.example, not for a.example"),
            (
                &["1.x", "2.x", "3.x", "4.x", "5.x", "6.x", "7.x", "8.x", "9.x"],
                "it is for 1.x, 2.x, 3.x, 4.x, 5.x, 6.x, 7.x, 8.x and 1 more, not for a.example",
            ),
        ] {
            let (fault, detail) = of_server(&root.issue(leaf(names)), root.trust());
            assert_eq!((fault, detail.as_str()), (certificate(CertificateFault::WrongName), expected));
        }
        let nameless = root.issue(with(|params| params.subject_alt_names.clear()));
        let (fault, detail) = of_server(&nameless, root.trust());
        assert_eq!(fault, certificate(CertificateFault::WrongName));
        assert_eq!(detail, "it is for no name, not for a.example");
    }

    #[test]
    fn a_certificate_of_strangers_says_of_whom() {
        let (root, stranger) = (Authority::new("Root"), Authority::new("Stranger"));
        let made = stranger.issue(leaf(&["a.example"]));
        let detail = "that of CN=a.example is issued by CN=Stranger, and leads to nobody who is trusted";
        let expected = (certificate(CertificateFault::UnknownIssuer), detail.to_owned());
        assert_eq!(of_server(&made, root.trust()), expected);
        assert_eq!(of_client(Some(&made), root.trust()), expected);
        let incomplete = root.below("Intermediate", 7).issue(leaf(&["a.example"]));
        // With its dashes: base64 may well have the word in it.
        const END: &str = "-----END CERTIFICATE-----";
        let first = &incomplete.chain()[..incomplete.chain().find(END).expect("it has one") + END.len()];
        let identity = crate::tls::Identity::from_pem(first, incomplete.key()).expect("in order");
        let acceptor = Acceptor::new(ServerTls::new(identity)).expect("in order");
        let connector = Connector::new(ClientTls::new().trust(root.trust())).expect("in order");
        let Err(Failed::Client(error)) = handshake(&connector, &acceptor, "a.example") else {
            panic!("it is refused")
        };
        assert_eq!(
            classify(&error).1,
            "that of CN=a.example is issued by CN=Intermediate, and leads to nobody who is trusted"
        );
    }

    #[test]
    fn a_certificate_that_has_issued_itself_is_told_from_others_whether_or_not_it_says_it_is_a_cas() {
        let root = Authority::new("Root");
        let detail = "that of CN=a.example has issued itself, and is not among those that are trusted";
        let expected = (certificate(CertificateFault::SelfSigned), detail.to_owned());
        let plain = self_signed(leaf(&["a.example"]));
        let ca = self_signed(with(|params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)));
        for made in [&plain, &ca] {
            assert_eq!(of_server(made, root.trust()), expected);
            assert_eq!(of_client(Some(made), root.trust()), expected);
        }
        // Nor is one that has the name of somebody who is.
        assert_eq!(of_server(&plain, Authority::new("a.example").trust()), expected);
        // Trusted, one is as good as any; but what says it is a CA's is not to be shown.
        let (fault, detail) = of_server(&ca, Trust::from_pem(ca.chain()).expect("a root"));
        assert_eq!(fault, certificate(CertificateFault::WrongUse));
        assert!(detail.starts_with("it is a CA's, "), "{detail}");
    }

    #[test]
    fn the_peer_of_one_who_does_not_know_its_issuer_is_told_so() {
        let (root, made) = (Authority::new("Root"), self_signed(leaf(&["a.example"])));
        let acceptor = Acceptor::new(ServerTls::new(made.identity())).expect("in order");
        let connector = Connector::new(ClientTls::new().trust(root.trust())).expect("in order");
        let Err(Failed::Client(error)) = handshake(&connector, &acceptor, "a.example") else {
            panic!("it is refused")
        };
        let rustls::Error::InvalidCertificate(error) = error else { panic!("{error}") };
        assert_eq!(AlertDescription::from(error), AlertDescription::UnknownCA);
    }

    #[test]
    fn what_was_noted_of_one_certificate_is_not_said_of_another() {
        of_server(&self_signed(leaf(&["a.example"])), Authority::new("Root").trust());
        let (fault, detail) = classify(&CertificateError::UnknownIssuer.into());
        assert_eq!((fault, detail.as_str()), (certificate(CertificateFault::UnknownIssuer), ""));
    }

    #[test]
    fn a_certificate_for_another_use_says_for_which() {
        let root = Authority::new("Root");
        let for_clients =
            with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
        let (fault, detail) = of_server(&root.issue(for_clients), root.trust());
        assert_eq!(fault, certificate(CertificateFault::WrongUse));
        assert_eq!(detail, "it is for client authentication, not for server authentication");
        let for_servers =
            with(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
        let (fault, detail) = of_client(Some(&root.issue(for_servers)), root.trust());
        assert_eq!(fault, certificate(CertificateFault::WrongUse));
        assert_eq!(detail, "it is for server authentication, not for client authentication");
    }

    #[test]
    fn a_client_without_a_certificate_is_told_from_others() {
        let expected = (certificate(CertificateFault::Missing), String::new());
        assert_eq!(of_client(None, Authority::new("Root").trust()), expected);
    }

    #[test]
    fn revocation_is_by_lists_that_are_there_and_up_to_date() {
        let root = Authority::new("Root");
        let made = root.issue(with(|params| params.serial_number = Some(7.into())));
        let by = |list: String| root.trust().crl_pem(list).expect("a list");
        let revoked = certificate(CertificateFault::Revoked);
        assert_eq!(of_server(&made, by(root.revocation_list(&[7]))), (revoked, String::new()));
        assert_eq!(of_client(Some(&made), by(root.revocation_list(&[7]))), (revoked, String::new()));
        assert_eq!(of_server(&made, by(root.revocation_list(&[7])).allow_unknown_revocation()).0, revoked);

        let other = by(Authority::new("Other").revocation_list(&[]));
        let unknown = certificate(CertificateFault::RevocationUnknown);
        let no_list = (unknown, "no revocation list of its issuer is there".to_owned());
        assert_eq!(of_server(&made, other.clone()), no_list);
        let old = by(root.revocation_list_until(&[], 2024));
        let (fault, detail) = of_server(&made, old.clone());
        assert_eq!(fault, unknown);
        let expected = "its revocation list was valid until 2024-01-01 00:00:00 UTC, now it is 2";
        assert!(detail.starts_with(expected), "{detail}");

        let acceptor = Acceptor::new(ServerTls::new(made.identity())).expect("in order");
        let current = by(root.revocation_list(&[8]));
        for trust in [current, other.allow_unknown_revocation(), old.allow_unknown_revocation()] {
            let connector = Connector::new(ClientTls::new().trust(trust)).expect("in order");
            assert!(handshake(&connector, &acceptor, "a.example").is_ok());
        }
    }

    #[test]
    fn those_between_are_looked_up_where_there_is_a_list() {
        let root = Authority::new("Root");
        let between = root.below("Between", 9);
        let made = between.issue(with(|params| params.serial_number = Some(7.into())));
        let own = root.trust().crl_pem(between.revocation_list(&[8])).expect("a list");
        let acceptor = Acceptor::new(ServerTls::new(made.identity())).expect("in order");
        let connector = Connector::new(ClientTls::new().trust(own.clone())).expect("in order");
        assert!(handshake(&connector, &acceptor, "a.example").is_ok(), "no list tells of the one between");
        let both = own.crl_pem(root.revocation_list(&[9])).expect("a list");
        assert_eq!(of_server(&made, both).0, certificate(CertificateFault::Revoked));
        let root_only = root.trust().crl_pem(root.revocation_list(&[])).expect("a list");
        assert_eq!(of_server(&made, root_only).0, certificate(CertificateFault::RevocationUnknown));
    }

    #[test]
    fn what_two_sides_do_not_have_in_common_is_told() {
        let root = Authority::new("Root");
        let identity = root.issue(leaf(&["a.example"])).identity();
        let acceptor = Acceptor::new(ServerTls::new(identity.clone()).alpn(["x/1"])).expect("in order");
        let connector = Connector::new(ClientTls::new().trust(root.trust()).alpn(["y/1"])).expect("in order");
        let Err(Failed::Server(error)) = handshake(&connector, &acceptor, "a.example") else {
            panic!("it is refused")
        };
        assert_eq!(classify(&error), (TlsFault::Protocol, String::new()));

        let acceptor = Acceptor::new(ServerTls::new(identity).versions(Versions::Tls13)).expect("in order");
        let old = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("a version")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let connector = Connector::new(ClientTls::from_rustls(old.into())).expect("in order");
        let Err(Failed::Server(error)) = handshake(&connector, &acceptor, "a.example") else {
            panic!("it is refused")
        };
        assert_eq!(classify(&error), (TlsFault::Version, String::new()));
    }

    #[test]
    fn first_bytes_that_are_not_those_of_tls_are_told_from_broken_ones() {
        let made = self_signed(leaf(&["a.example"]));
        let acceptor = Acceptor::new(ServerTls::new(made.identity())).expect("in order");
        for (bytes, fault) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], TlsFault::NotTls),
            (b"SSH-2.0-OpenSSH_9.6\r\n", TlsFault::NotTls),
            (b"\x16\x07\x07\x00\x05hello", TlsFault::NotTls),
            (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", TlsFault::Misbehaved),
            (b"\x16\x03\x01\xff\xff", TlsFault::RecordTooLarge),
            (b"\x15\x03\x01\x00\x02\x02\x28", TlsFault::Alert(TlsAlert(40))),
        ] {
            let mut server =
                rustls::ServerConnection::new(acceptor.current().config.clone()).expect("in order");
            server.read_tls(&mut &*bytes).expect("memory gives all");
            let error = server.process_new_packets().expect_err("it is no hello");
            assert_eq!(classify(&error).0, fault, "{error:?}");
        }
    }

    #[test]
    fn the_rest_is_told_in_words() {
        use rustls::{Error, PeerIncompatible, PeerMisbehaved};
        for (error, fault, detail) in [
            (Error::DecryptError, TlsFault::BadRecord, ""),
            (Error::PeerSentOversizedRecord, TlsFault::RecordTooLarge, ""),
            (
                PeerIncompatible::NoCipherSuitesInCommon.into(),
                TlsFault::Parameters,
                "no cipher suite in common",
            ),
            (PeerIncompatible::NoKxGroupsInCommon.into(), TlsFault::Parameters, "no key exchange in common"),
            (
                PeerMisbehaved::TooManyKeyUpdateRequests.into(),
                TlsFault::Misbehaved,
                "TooManyKeyUpdateRequests",
            ),
            (Error::General("no\nway".into()), TlsFault::Local, "unexpected error: no?way"),
            (CertificateError::BadSignature.into(), certificate(CertificateFault::BadSignature), ""),
            (CertificateError::BadEncoding.into(), certificate(CertificateFault::Malformed), ""),
            (
                CertificateError::Other(OtherError(std::sync::Arc::new(
                    webpki::Error::UnsupportedCertVersion,
                )))
                .into(),
                certificate(CertificateFault::Malformed),
                "UnsupportedCertVersion",
            ),
        ] {
            assert_eq!(classify(&error), (fault, detail.to_owned()));
        }
    }
}
