//! What a side shows of itself: certificates and the key to the first of them ([`Identity`]).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
#[cfg(feature = "self-signed")]
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::InconsistentKeys;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use webpki::EndEntityCert;

use super::der::{self, Facts};
#[cfg(feature = "self-signed")]
use super::options;
use super::pem::{self, Section, Source};
use super::provider;
use crate::error::{Error, Result};

/// A certificate chain and the private key of its first certificate: what a server, or a client that has to say who it is, shows.
///
/// It is checked when it is made: files can be read, the key is the first certificate's. So whatever is wrong with it comes out
/// before it is in force, with file, line and cause. Not refused is a certificate that is expired or not valid yet;
/// [`Identity::not_after`] tells.
///
/// A clone is the same identity and costs nothing.
///
/// ```no_run
/// use wharf::tls::Identity;
///
/// let identity = Identity::from_files("/etc/example/chain.pem", "/etc/example/key.pem")?;
/// println!("{:?} until {:?}", identity.names(), identity.not_after());
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    chain: Source,
    key: Source,
    ocsp: Option<PathBuf>,
    certified: Arc<CertifiedKey>,
    facts: Facts,
}

impl Identity {
    /// Reads a certificate chain and a private key from two files in PEM, or from one that holds both.
    ///
    /// The first certificate is the identity's own; those that issued it follow. The key is one of PKCS#8, PKCS#1 or SEC1, not
    /// encrypted. The files are read again by [`Acceptor::reload`](super::Acceptor::reload) and
    /// [`Connector::reload`](super::Connector::reload).
    ///
    /// # Errors
    /// A file cannot be read or has something else in it, or the key is not the first certificate's.
    pub fn from_files(chain: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Identity> {
        let (chain, key) = (chain.as_ref(), key.as_ref());
        let texts = (pem::read_file(chain)?, pem::read_file(key)?);
        Identity::made_of(Source::File(chain.into()), &texts.0, Source::File(key.into()), &texts.1)
    }

    /// Takes a certificate chain and a private key that are in memory, both in PEM; see [`Identity::from_files`].
    ///
    /// # Errors
    /// There is something else in them, or the key is not the first certificate's.
    pub fn from_pem(chain: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Result<Identity> {
        let names = (Source::Given("the given chain"), Source::Given("the given key"));
        Identity::made_of(names.0, chain.as_ref(), names.1, key.as_ref())
    }

    /// Makes a key and a certificate for these names (DNS names, also behind `*.`, and addresses) that has issued itself. Nobody
    /// trusts it but who is told to, by [`Trust::from_der`](super::Trust::from_der) for example. It is valid for 397 days, of which
    /// the first is yesterday.
    ///
    /// ```
    /// use wharf::tls::{Acceptor, ClientTls, Connector, Identity, ServerTls, Trust};
    ///
    /// let identity = Identity::self_signed(["localhost", "127.0.0.1"])?;
    /// let trust = Trust::from_der(identity.chain().next().unwrap_or_default())?;
    /// let acceptor = Acceptor::new(ServerTls::new(identity))?;
    /// let connector = Connector::new(ClientTls::new().trust(trust))?;
    /// # drop((acceptor, connector));
    /// # Ok::<(), wharf::Error>(())
    /// ```
    ///
    /// # Errors
    /// A name is neither a DNS name nor an address.
    #[cfg(feature = "self-signed")]
    pub fn self_signed(names: impl IntoIterator<Item = impl Into<String>>) -> Result<Identity> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let source = Source::Given("a self-signed certificate");
        let failed = |error: rcgen::Error| source.error(format!("cannot be made: {error}"));
        for name in &names {
            // rcgen takes whatever is made of ASCII.
            if options::server_name(name.strip_prefix("*.").unwrap_or(name)).is_none() {
                return Err(
                    source.error(format!("cannot be made: `{name}` is neither a DNS name nor an address"))
                );
            }
        }
        let first = names.first().cloned().unwrap_or_default();
        let mut params = rcgen::CertificateParams::new(names).map_err(failed)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, first);
        // From yesterday, for clocks that are behind, and for as long as the strictest clients accept: 397 days.
        let (epoch, day) = (rcgen::date_time_ymd(1970, 1, 1), Duration::from_secs(24 * 60 * 60));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        params.not_before = epoch + now.saturating_sub(day);
        params.not_after = epoch + now + 396 * day;
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Identity::from_pem(certificate.pem(), key.serialize_pem())
    }

    /// Staples the OCSP response in this file, in DER: clients that ask learn from it that the certificate is not revoked. The
    /// file is read again with the others.
    ///
    /// # Errors
    /// The file cannot be read, or there is no response in it that says something.
    pub fn ocsp_file(self, path: impl AsRef<Path>) -> Result<Identity> {
        let path = path.as_ref();
        let response = pem::read_file(path)?;
        der::check_ocsp_response(&response).map_err(|problem| Source::File(path.into()).error(problem))?;
        let Inner { chain, key, certified, facts, .. } = &*self.0;
        let certified = CertifiedKey { ocsp: Some(response), ..CertifiedKey::clone(certified) };
        Ok(Identity(Arc::new(Inner {
            chain: chain.clone(),
            key: key.clone(),
            ocsp: Some(path.into()),
            certified: Arc::new(certified),
            facts: facts.clone(),
        })))
    }

    /// The certificates in DER, its own first.
    pub fn chain(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.0.certified.cert.iter().map(AsRef::as_ref)
    }

    /// The SHA-256 of its own certificate in DER, as `openssl x509 -fingerprint -sha256` tells it.
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(self.leaf())
    }

    /// The SHA-256 of its public key (SubjectPublicKeyInfo in DER), as pins are made of (RFC 7469); see
    /// [`ClientTls::pin_public_key`](super::ClientTls::pin_public_key).
    pub fn public_key_hash(&self) -> [u8; 32] {
        public_key_hash(self.leaf()).unwrap_or_default()
    }

    /// The DNS names and addresses that its certificate is for.
    pub fn names(&self) -> &[String] {
        &self.0.facts.names
    }

    /// When its certificate begins to be valid.
    pub fn not_before(&self) -> SystemTime {
        der::system_time(self.0.facts.not_before)
    }

    /// When its certificate ceases to be valid.
    pub fn not_after(&self) -> SystemTime {
        der::system_time(self.0.facts.not_after)
    }

    /// The same from its files as they are now; one that is of no file stays as it is.
    pub(super) fn read_again(&self) -> Result<Identity> {
        let (Source::File(chain), Source::File(key)) = (&self.0.chain, &self.0.key) else {
            return match &self.0.ocsp {
                Some(path) => self.clone().ocsp_file(path),
                None => Ok(self.clone()),
            };
        };
        let identity = Identity::from_files(chain, key)?;
        match &self.0.ocsp {
            Some(path) => identity.ocsp_file(path),
            None => Ok(identity),
        }
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        [self.0.chain.path(), self.0.key.path(), self.0.ocsp.as_deref()].into_iter().flatten()
    }

    /// Whether it shows the same. The key need not be compared: it is that of the certificate.
    pub(super) fn is_same(&self, other: &Identity) -> bool {
        let (ours, theirs) = (&self.0.certified, &other.0.certified);
        ours.cert == theirs.cert && ours.ocsp == theirs.ocsp
    }

    /// Whether its certificate is for `name`.
    pub(super) fn is_for(&self, name: &str) -> bool {
        let leaf = CertificateDer::from(self.leaf());
        ServerName::try_from(name).is_ok_and(|name| {
            EndEntityCert::try_from(&leaf)
                .is_ok_and(|leaf| leaf.verify_is_valid_for_subject_name(&name).is_ok())
        })
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        self.0.certified.clone()
    }

    fn leaf(&self) -> &[u8] {
        self.0.certified.cert.first().map(AsRef::as_ref).unwrap_or_default()
    }

    fn made_of(chain: Source, chain_text: &[u8], key: Source, key_text: &[u8]) -> Result<Identity> {
        let sections = pem::sections(&chain, chain_text)?;
        let certificates = certificates(&chain, &sections)?;
        let private = private_key(&key, &pem::sections(&key, key_text)?)?;
        let ders = certificates.iter().map(|each| CertificateDer::from(each.der.clone())).collect();
        let certified = CertifiedKey::new(ders, private);
        if let Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) = certified.keys_match() {
            return Err(mismatch(&chain, &certificates, &key, &certified));
        }
        let facts = facts_of(&certified);
        Ok(Identity(Arc::new(Inner { chain, key, ocsp: None, certified: Arc::new(certified), facts })))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("chain", &self.0.chain)
            .field("key", &self.0.key)
            .field("ocsp", &self.0.ocsp)
            .field("names", &self.0.facts.names)
            .field("not_after", &format_args!("{}", der::date(self.0.facts.not_after)))
            .finish()
    }
}

/// The SHA-256 of a certificate's SubjectPublicKeyInfo; `None` if it is no certificate.
pub(super) fn public_key_hash(certificate: &[u8]) -> Option<[u8; 32]> {
    let certificate = CertificateDer::from(certificate);
    let certificate = EndEntityCert::try_from(&certificate).ok()?;
    Some(sha256(&certificate.subject_public_key_info()))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().unwrap_or_default()
}

fn facts_of(certified: &CertifiedKey) -> Facts {
    certified.cert.first().and_then(|leaf| der::facts(leaf)).unwrap_or_default()
}

/// The certificates among `sections`: one at least, and the first one readable as the one to be shown.
fn certificates<'a>(source: &Source, sections: &'a [Section]) -> Result<Vec<&'a Section>> {
    let certificates: Vec<&Section> = sections.iter().filter(|each| each.label == "CERTIFICATE").collect();
    if certificates.is_empty() {
        return Err(source.error(format!("no certificate ({})", pem::found(sections))));
    }
    for (number, section) in certificates.iter().enumerate() {
        let is_readable = der::facts(&section.der).is_some();
        let problem = match EndEntityCert::try_from(&CertificateDer::from(section.der.as_slice())) {
            Ok(_) if is_readable => continue,
            // Roots may be old, and are only passed on.
            Err(_) if is_readable && number > 0 => continue,
            Err(webpki::Error::UnsupportedCertVersion) => "this certificate is not of version 3 of X.509",
            _ => "this certificate is malformed",
        };
        return Err(source.error(format!("line {}: {problem}", section.line)));
    }
    Ok(certificates)
}

/// The one private key among `sections`.
fn private_key(source: &Source, sections: &[Section]) -> Result<Arc<dyn rustls::sign::SigningKey>> {
    if let Some(section) =
        sections.iter().find(|each| each.is_encrypted || each.label == "ENCRYPTED PRIVATE KEY")
    {
        let problem = "the private key is encrypted, and has to be in the clear (`openssl pkey` decrypts it)";
        return Err(source.error(format!("line {}: {problem}", section.line)));
    }
    let mut keys = sections.iter().filter_map(|section| Some((section, key_der(section)?)));
    let Some((section, der)) = keys.next() else {
        return Err(source.error(format!("no private key ({})", pem::found(sections))));
    };
    if let Some((second, _)) = keys.next() {
        let lines = (section.line, second.line);
        return Err(source.error(format!("two private keys, on lines {} and {}", lines.0, lines.1)));
    }
    provider().key_provider.load_private_key(der).map_err(|_| {
        let problem = "this private key is malformed, or of a kind that is not supported";
        source.error(format!("line {}: {problem} (RSA from 2048 bits, ECDSA, Ed25519)", section.line))
    })
}

fn key_der(section: &Section) -> Option<PrivateKeyDer<'static>> {
    let der = section.der.clone();
    match section.label.as_str() {
        "PRIVATE KEY" => Some(PrivateKeyDer::Pkcs8(der.into())),
        "RSA PRIVATE KEY" => Some(PrivateKeyDer::Pkcs1(der.into())),
        "EC PRIVATE KEY" => Some(PrivateKeyDer::Sec1(der.into())),
        _ => None,
    }
}

/// The error for a key that is not the first certificate's; often the file is in the wrong order.
fn mismatch(chain: &Source, sections: &[&Section], key: &Source, certified: &CertifiedKey) -> Error {
    for (at, section) in sections.iter().enumerate().skip(1) {
        let alone = vec![CertificateDer::from(section.der.clone())];
        if CertifiedKey::new(alone, certified.key.clone()).keys_match().is_ok() {
            let (number, line) = (at + 1, section.line);
            let problem =
                format!("the key belongs to certificate {number} (line {line}), which has to be the first");
            return chain.error(problem);
        }
    }
    key.error(format!("the key does not belong to the first certificate of {chain}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::{Authority, Directory, leaf, self_signed};

    #[test]
    fn an_identity_tells_what_it_shows() {
        let made = Authority::new("Root").issue(leaf(&["example.com", "192.0.2.7"]));
        let identity = Identity::from_pem(made.chain(), made.key()).expect("all is well");
        assert_eq!(identity.names(), ["example.com", "192.0.2.7"]);
        assert_eq!(identity.chain().collect::<Vec<_>>(), made.chain_der());
        assert_eq!(identity.fingerprint(), sha256(&made.chain_der()[0]));
        assert_eq!(identity.public_key_hash(), sha256(&made.public_key()));
        assert!(identity.not_before() < SystemTime::now() && SystemTime::now() < identity.not_after());
        assert!(
            identity.is_for("EXAMPLE.com")
                && identity.is_for("192.0.2.7")
                && !identity.is_for("a.example.com")
        );
        assert_eq!(identity.files().count(), 0);
        let printed = format!("{identity:?}");
        assert!(printed.contains("example.com") && !printed.contains("PRIVATE"), "{printed}");
    }

    #[test]
    fn a_key_may_be_of_any_common_form_and_lie_with_the_chain() {
        let made = self_signed(leaf(&["example.com"]));
        let both = format!("{}{}", made.key(), made.chain());
        Identity::from_pem(&both, &both).expect("one text for both");
        Identity::from_pem(EC_CHAIN, EC_KEY).expect("SEC1, behind its parameters");
        Identity::from_pem(RSA_CHAIN, RSA_KEY).expect("PKCS#1");
        Identity::from_pem(ED25519_CHAIN, ED25519_KEY).expect("Ed25519");
        Identity::from_pem(format!("{EC_CHAIN}{V1_CHAIN}"), EC_KEY).expect("a root of version 1");
    }

    #[test]
    fn its_hashes_are_those_that_openssl_tells() {
        let identity = Identity::from_pem(RSA_CHAIN, RSA_KEY).expect("in order");
        let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(identity.fingerprint()),
            "7e17e94709f61d390a5cacbb6077316b17692bf2b0d35084a3b394b945c04740"
        );
        assert_eq!(
            hex(identity.public_key_hash()),
            "4c812e52e565def122c3c1f93252389fdc727386db1c266c78d061f7eea6e7a6"
        );
    }

    #[test]
    fn what_is_wrong_is_told() {
        let authority = Authority::new("Root");
        let (made, other) = (authority.issue(leaf(&["a.example"])), authority.issue(leaf(&["b.example"])));
        let (chain, key) = (made.chain(), made.key());
        let lines = made.chain_lines();
        let wrong_order = format!("{}{}", other.chain(), chain);
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let old_encrypted = "\n-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n\
                             AAAA\n-----END RSA PRIVATE KEY-----\n";
        let clear = "and has to be in the clear (`openssl pkey` decrypts it)";
        let unusable = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        for (chain, key, expected) in [
            ("", key, "the given chain: is empty".into()),
            (chain, "", "the given key: is empty".into()),
            (key, key, "the given chain: no certificate (found: PRIVATE KEY)".into()),
            (chain, chain, "the given key: no private key (found: CERTIFICATE)".into()),
            (chain, other.key(), "the given key: the key does not belong to the first certificate of the given chain".into()),
            (
                &wrong_order,
                key,
                format!(
                    "the given chain: the key belongs to certificate 2 (line {}), which has to be the first",
                    other.chain_lines() + 1
                ),
            ),
            (chain, encrypted, format!("the given key: line 1: the private key is encrypted, {clear}")),
            (chain, old_encrypted, format!("the given key: line 2: the private key is encrypted, {clear}")),
            (
                chain,
                &format!("{key}{key}"),
                format!("the given key: two private keys, on lines 1 and {}", key.lines().count() + 1),
            ),
            (
                chain,
                unusable,
                "the given key: line 1: this private key is malformed, or of a kind that is not supported (RSA from 2048 bits, \
                 ECDSA, Ed25519)"
                    .into(),
            ),
            (
                &format!("{chain}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
                key,
                format!("the given chain: line {}: this certificate is malformed", lines + 1),
            ),
        ] {
            let error = Identity::from_pem(chain, key).expect_err("it cannot be used");
            assert_eq!(error.to_string(), format!("load {expected}"));
            assert_eq!(error.kind(), crate::ErrorKind::Caller);
        }
    }

    #[test]
    fn a_certificate_of_the_first_version_is_refused_in_words() {
        let error = Identity::from_pem(V1_CHAIN, V1_KEY).expect_err("it cannot be used");
        assert_eq!(
            error.to_string(),
            "load the given chain: line 1: this certificate is not of version 3 of X.509"
        );
    }

    #[test]
    fn files_are_named_and_read_again() {
        let directory = Directory::new();
        let authority = Authority::new("Root");
        let (first, second) = (authority.issue(leaf(&["a.example"])), authority.issue(leaf(&["b.example"])));
        let (chain, key) =
            (directory.write("chain.pem", first.chain()), directory.write("key.pem", first.key()));
        let identity = Identity::from_files(&chain, &key).expect("all is well");
        assert_eq!(identity.files().collect::<Vec<_>>(), [chain.as_path(), &key]);
        assert!(identity.is_same(&identity.read_again().expect("nothing has changed")));

        directory.write("chain.pem", second.chain());
        let error = identity.read_again().expect_err("the key is still the old one");
        let expected = format!(
            "load {}: the key does not belong to the first certificate of {}",
            key.display(),
            chain.display()
        );
        assert_eq!(error.to_string(), expected);
        directory.write("key.pem", second.key());
        let changed = identity.read_again().expect("both are the new ones");
        assert_eq!(changed.names(), ["b.example"]);
        assert!(!identity.is_same(&changed));

        let error = Identity::from_files(directory.path("none.pem"), &key).expect_err("it is not there");
        let none = directory.path("none.pem");
        assert_eq!(error.to_string(), format!("load {}: no such file or directory", none.display()));
        assert_eq!(error.kind(), crate::ErrorKind::System);
    }

    #[test]
    fn a_staple_is_checked_and_read_again() {
        let directory = Directory::new();
        let made = self_signed(leaf(&["a.example"]));
        let identity = Identity::from_pem(made.chain(), made.key()).expect("all is well");
        let path = directory.write("ocsp.der", [0x30, 5, 0x0A, 1, 0, 0xA0, 0]);
        let stapled = identity.clone().ocsp_file(&path).expect("a response");
        assert!(stapled.certified().ocsp.is_some() && !identity.is_same(&stapled));
        assert_eq!(stapled.names(), ["a.example"]);
        assert_eq!(stapled.files().collect::<Vec<_>>(), [path.as_path()]);
        directory.write("ocsp.der", [0x30, 3, 0x0A, 1, 3]);
        let error = stapled.read_again().expect_err("it says nothing");
        let expected =
            format!("load {}: the OCSP responder did not answer, it said tryLater", path.display());
        assert_eq!(error.to_string(), expected);
    }

    #[cfg(feature = "self-signed")]
    #[test]
    fn a_self_signed_identity_is_for_its_names() {
        let identity = Identity::self_signed(["localhost", "127.0.0.1", "::1"]).expect("names");
        assert_eq!(identity.names(), ["localhost", "127.0.0.1", "::1"]);
        let error = Identity::self_signed(["ümlaut"]).expect_err("that is no DNS name");
        assert!(error.to_string().starts_with("load a self-signed certificate: cannot be made: "), "{error}");
    }

    // Made by OpenSSL 3.0 for these tests alone: rcgen writes neither SEC1 nor PKCS#1 nor version 1.
    const EC_CHAIN: &str = include_str!("testdata/ec.pem");
    const EC_KEY: &str = include_str!("testdata/ec.key");
    const RSA_CHAIN: &str = include_str!("testdata/rsa.pem");
    const RSA_KEY: &str = include_str!("testdata/rsa.key");
    const ED25519_CHAIN: &str = include_str!("testdata/ed25519.pem");
    const ED25519_KEY: &str = include_str!("testdata/ed25519.key");
    const V1_CHAIN: &str = include_str!("testdata/v1.pem");
    const V1_KEY: &str = EC_KEY;
}
