//! Whom a side trusts to vouch for its peers: roots and revocation lists ([`Trust`]).

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use webpki::{OwnedCertRevocationList, anchor_from_trusted_cert};

use super::pem::{self, Source};
use crate::error::Result;

/// Those who are trusted to issue certificates (roots), and lists of what they have revoked (CRLs).
///
/// It is checked when it is made. A clone is cheap.
///
/// Without lists nothing is asked about revocation. With lists, one of them has to speak for the peer's own certificate, and be
/// up to date: otherwise the peer is refused as of unknown status, unless [`Trust::allow_unknown_revocation`]. The certificates
/// between it and the root are looked up too, where there is a list of their issuer.
///
/// ```no_run
/// use wharf::tls::{ClientCertificates, Trust};
///
/// let employees = Trust::from_file("/etc/example/employees.pem")?.crl_file("/etc/example/employees.crl")?;
/// let required = ClientCertificates::required(employees);
/// # drop(required);
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone)]
pub struct Trust {
    roots: Vec<Piece>,
    lists: Vec<Piece>,
    allows_unknown: bool,
}

/// Which certificates a server asks its clients for. Default: none.
#[derive(Clone, Default)]
pub struct ClientCertificates(pub(super) Asked);

#[derive(Clone, Default)]
pub(super) enum Asked {
    #[default]
    Off,
    Optional(Trust),
    Required(Trust),
}

/// What is of one source, in DER.
#[derive(Clone, PartialEq, Eq)]
struct Piece {
    source: Source,
    ders: Arc<[Vec<u8>]>,
}

impl Trust {
    /// Trusts those whom the operating system trusts; the environment variables `SSL_CERT_FILE` and `SSL_CERT_DIR` can name
    /// others.
    ///
    /// # Errors
    /// None are found.
    pub fn platform() -> Result<Trust> {
        let found = rustls_native_certs::load_native_certs();
        let readable = found.certs.into_iter().filter(|each| anchor_from_trusted_cert(each).is_ok());
        let ders: Vec<Vec<u8>> = readable.map(|each| each.to_vec()).collect();
        if ders.is_empty() {
            let cause = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
            let problem = format!("there are none{cause}; Debian has them in the package ca-certificates");
            return Err(Source::Platform.error(problem));
        }
        Ok(Trust::of(Source::Platform, ders))
    }

    /// Trusts the certificates in this file in PEM. It is read again by [`Acceptor::reload`](super::Acceptor::reload) and
    /// [`Connector::reload`](super::Connector::reload).
    ///
    /// A certificate that has issued itself may be among them, and is then trusted as it is; unless it says that it is a CA's
    /// (`openssl req -x509` says so if not told otherwise), for then it can vouch for others only.
    ///
    /// # Errors
    /// The file cannot be read, or there is something else in it.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Trust> {
        let source = Source::File(path.as_ref().into());
        let ders = read_roots(&source, &pem::read_file(path.as_ref())?)?;
        Ok(Trust::of(source, ders))
    }

    /// Trusts these certificates in PEM; see [`Trust::from_file`].
    ///
    /// # Errors
    /// There is something else in them.
    pub fn from_pem(text: impl AsRef<[u8]>) -> Result<Trust> {
        let source = Source::Given("the given roots");
        let ders = read_roots(&source, text.as_ref())?;
        Ok(Trust::of(source, ders))
    }

    /// Trusts this certificate in DER.
    ///
    /// # Errors
    /// It is none.
    pub fn from_der(certificate: impl AsRef<[u8]>) -> Result<Trust> {
        let source = Source::Given("the given root");
        let der = certificate.as_ref().to_vec();
        check_root(&der).map_err(|problem| source.error(problem))?;
        Ok(Trust::of(source, vec![der]))
    }

    /// Trusts those as well, and has their lists. [`Trust::allow_unknown_revocation`] of either holds for both.
    #[must_use]
    pub fn and(mut self, others: Trust) -> Trust {
        self.roots.extend(others.roots);
        self.lists.extend(others.lists);
        self.allows_unknown |= others.allows_unknown;
        self
    }

    /// Has the revocation lists in this file, in PEM or DER. The file is read again with the others.
    ///
    /// # Errors
    /// The file cannot be read, or there is something else in it.
    pub fn crl_file(mut self, path: impl AsRef<Path>) -> Result<Trust> {
        let source = Source::File(path.as_ref().into());
        let ders = read_lists(&source, pem::read_file(path.as_ref())?)?.into();
        self.lists.push(Piece { source, ders });
        Ok(self)
    }

    /// Has these revocation lists, in PEM or DER.
    ///
    /// # Errors
    /// There is something else in them.
    pub fn crl_pem(mut self, text: impl AsRef<[u8]>) -> Result<Trust> {
        let source = Source::Given("the given revocation lists");
        let ders = read_lists(&source, text.as_ref().to_vec())?.into();
        self.lists.push(Piece { source, ders });
        Ok(self)
    }

    /// Accepts certificates of which no list tells, and lists that are out of date. What a list says is revoked stays refused.
    #[must_use]
    pub fn allow_unknown_revocation(mut self) -> Trust {
        self.allows_unknown = true;
        self
    }

    /// The same from its files as they are now.
    pub(super) fn read_again(&self) -> Result<Trust> {
        let mut again = self.clone();
        for piece in &mut again.roots {
            piece.ders = match &piece.source {
                Source::File(path) => read_roots(&piece.source, &pem::read_file(path)?)?.into(),
                Source::Platform => Trust::platform()?.roots.swap_remove(0).ders,
                Source::Given(_) => continue,
            };
        }
        for piece in &mut again.lists {
            if let Source::File(path) = &piece.source {
                piece.ders = read_lists(&piece.source, pem::read_file(path)?)?.into();
            }
        }
        Ok(again)
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.roots.iter().chain(&self.lists).filter_map(|piece| piece.source.path())
    }

    /// Whether it trusts the same by the same lists.
    pub(super) fn is_same(&self, other: &Trust) -> bool {
        let same = |ours: &[Piece], theirs: &[Piece]| {
            ours.iter().flat_map(|piece| &*piece.ders).eq(theirs.iter().flat_map(|piece| &*piece.ders))
        };
        self.allows_unknown == other.allows_unknown
            && same(&self.roots, &other.roots)
            && same(&self.lists, &other.lists)
    }

    pub(super) fn store(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        let ders = self.roots.iter().flat_map(|piece| &*piece.ders);
        store.add_parsable_certificates(ders.map(|der| CertificateDer::from(der.as_slice())));
        Arc::new(store)
    }

    pub(super) fn lists(&self) -> Vec<CertificateRevocationListDer<'static>> {
        let ders = self.lists.iter().flat_map(|piece| &*piece.ders);
        ders.map(|der| CertificateRevocationListDer::from(der.clone())).collect()
    }

    pub(super) fn has_lists(&self) -> bool {
        self.lists.iter().any(|piece| !piece.ders.is_empty())
    }

    pub(super) fn allows_unknown(&self) -> bool {
        self.allows_unknown
    }

    fn of(source: Source, ders: Vec<Vec<u8>>) -> Trust {
        Trust { roots: vec![Piece { source, ders: ders.into() }], lists: Vec::new(), allows_unknown: false }
    }
}

impl ClientCertificates {
    /// Asks for none.
    pub fn off() -> ClientCertificates {
        ClientCertificates(Asked::Off)
    }

    /// Asks for one. A client may have none; one that it has is verified.
    pub fn optional(trust: Trust) -> ClientCertificates {
        ClientCertificates(Asked::Optional(trust))
    }

    /// Asks for one, and refuses clients that have none.
    pub fn required(trust: Trust) -> ClientCertificates {
        ClientCertificates(Asked::Required(trust))
    }

    pub(super) fn read_again(&self) -> Result<ClientCertificates> {
        Ok(ClientCertificates(match &self.0 {
            Asked::Off => Asked::Off,
            Asked::Optional(trust) => Asked::Optional(trust.read_again()?),
            Asked::Required(trust) => Asked::Required(trust.read_again()?),
        }))
    }

    pub(super) fn trust(&self) -> Option<&Trust> {
        match &self.0 {
            Asked::Off => None,
            Asked::Optional(trust) | Asked::Required(trust) => Some(trust),
        }
    }

    pub(super) fn is_same(&self, other: &ClientCertificates) -> bool {
        match (&self.0, &other.0) {
            (Asked::Off, Asked::Off) => true,
            (Asked::Optional(ours), Asked::Optional(theirs))
            | (Asked::Required(ours), Asked::Required(theirs)) => ours.is_same(theirs),
            _ => false,
        }
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust")
            .field("roots", &self.roots)
            .field("lists", &self.lists)
            .field("allows_unknown", &self.allows_unknown)
            .finish()
    }
}

impl fmt::Debug for ClientCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Asked::Off => f.write_str("Off"),
            Asked::Optional(trust) => f.debug_tuple("Optional").field(trust).finish(),
            Asked::Required(trust) => f.debug_tuple("Required").field(trust).finish(),
        }
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.source, self.ders.len())
    }
}

fn read_roots(source: &Source, text: &[u8]) -> Result<Vec<Vec<u8>>> {
    let sections = pem::sections(source, text)?;
    let mut ders = Vec::new();
    for section in &sections {
        if section.label == "CERTIFICATE" {
            check_root(&section.der)
                .map_err(|problem| source.error(format!("line {}: {problem}", section.line)))?;
            ders.push(section.der.clone());
        }
    }
    match ders.is_empty() {
        true => Err(source.error(format!("no certificate ({})", pem::found(&sections)))),
        false => Ok(ders),
    }
}

fn check_root(der: &[u8]) -> Result<(), &'static str> {
    match anchor_from_trusted_cert(&CertificateDer::from(der)) {
        Ok(_) => Ok(()),
        Err(_) => Err("this certificate is malformed"),
    }
}

fn read_lists(source: &Source, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>> {
    if pem::is_der(&bytes) {
        check_list(&bytes).map_err(|problem| source.error(problem))?;
        return Ok(vec![bytes]);
    }
    let sections = pem::sections(source, &bytes)?;
    let mut ders = Vec::new();
    for section in &sections {
        if section.label == "X509 CRL" {
            check_list(&section.der)
                .map_err(|problem| source.error(format!("line {}: {problem}", section.line)))?;
            ders.push(section.der.clone());
        }
    }
    match ders.is_empty() {
        true => Err(source.error(format!("no revocation list ({})", pem::found(&sections)))),
        false => Ok(ders),
    }
}

fn check_list(der: &[u8]) -> Result<(), &'static str> {
    use webpki::Error;
    match OwnedCertRevocationList::from_der(der) {
        Ok(_) => Ok(()),
        Err(Error::UnsupportedCrlVersion) => Err("this revocation list is not of version 2"),
        Err(Error::UnsupportedDeltaCrl) => {
            Err("this is a delta revocation list, and has to be a complete one")
        }
        Err(Error::UnsupportedIndirectCrl) => {
            Err("this revocation list speaks for other issuers than its own")
        }
        Err(Error::UnsupportedCriticalExtension) => {
            Err("this revocation list has a critical extension that is not supported")
        }
        Err(_) => Err("this revocation list is malformed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::{Authority, Directory};

    #[test]
    fn what_is_wrong_is_told() {
        let authority = Authority::new("Root");
        let (root, list) = (authority.pem(), authority.revocation_list(&[]));
        let malformed = format!("{root}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        for (text, expected) in [
            ("", "is empty".into()),
            (list.as_str(), "no certificate (found: X509 CRL)".into()),
            (&malformed, format!("line {}: this certificate is malformed", root.lines().count() + 1)),
        ] {
            let error = Trust::from_pem(text).expect_err("it cannot be used");
            assert_eq!(error.to_string(), format!("load the given roots: {expected}"));
        }
        let error = Trust::from_der([0x30]).expect_err("it is cut off");
        assert_eq!(error.to_string(), "load the given root: this certificate is malformed");

        let malformed = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
        for (text, expected) in [
            (root.as_str(), "no revocation list (found: CERTIFICATE)"),
            (malformed, "line 1: this revocation list is malformed"),
            ("0", "this revocation list is malformed"),
        ] {
            let trust = Trust::from_pem(&root).expect("a root");
            let error = trust.crl_pem(text).expect_err("it cannot be used");
            assert_eq!(error.to_string(), format!("load the given revocation lists: {expected}"));
        }
        let error = Trust::from_file("/nowhere/ca.pem").expect_err("it is not there");
        assert_eq!(error.to_string(), "load /nowhere/ca.pem: no such file or directory");
    }

    #[test]
    fn files_are_read_again() {
        let directory = Directory::new();
        let (first, second) = (Authority::new("First"), Authority::new("Second"));
        let roots = directory.write("ca.pem", first.pem());
        let lists = directory.write("ca.crl", first.revocation_list(&[]));
        let trust =
            Trust::from_file(&roots).and_then(|trust| trust.crl_file(&lists)).expect("both are in order");
        assert_eq!(trust.files().collect::<Vec<_>>(), [roots.as_path(), &lists]);
        assert!(trust.is_same(&trust.read_again().expect("nothing has changed")));

        directory.write("ca.crl", first.revocation_list(&[7]));
        let changed = trust.read_again().expect("both are in order");
        assert!(!changed.is_same(&trust));
        directory.write("ca.pem", second.pem());
        assert!(!changed.read_again().expect("both are in order").is_same(&changed));
        directory.write("ca.pem", "");
        let error = trust.read_again().expect_err("there is nothing in it");
        assert_eq!(error.to_string(), format!("load {}: is empty", roots.display()));
    }

    #[test]
    fn two_can_be_one() {
        let (first, second) = (Authority::new("First"), Authority::new("Second"));
        let both =
            Trust::from_pem(first.pem()).expect("a root").and(Trust::from_pem(second.pem()).expect("a root"));
        let together = Trust::from_pem(first.pem() + &second.pem()).expect("two roots");
        assert!(both.is_same(&together) && both.store().len() == 2);
        assert!(!both.is_same(&both.clone().allow_unknown_revocation()));
        assert_eq!(
            format!("{both:?}"),
            "Trust { roots: [the given roots (1), the given roots (1)], lists: [], allows_unknown: false }"
        );
    }
}
