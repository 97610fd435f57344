//! TLS of a client: the description ([`ClientTls`]) and what connects with it ([`Connector`]).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;

use super::identity::Identity;
use super::in_force::InForce;
use super::key_log::KeyLogFile;
use super::options::{self, Versions};
use super::trust::Trust;
use super::{Verification, provider, verify};
use crate::error::{Error, Result};

/// TLS of a client, before it is used. It verifies whom it talks to: that somebody who is trusted vouches for the server's
/// certificate, that it is valid now, and that it is for the name that was connected to.
///
/// ```no_run
/// use wharf::tls::{ClientTls, Connector, Trust};
///
/// let connector = Connector::new(ClientTls::new())?; // trusts whom the system trusts
/// let inner = Connector::new(ClientTls::new().trust(Trust::from_file("our-ca.pem")?).alpn(["echo/2"]))?;
/// # drop((connector, inner));
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone)]
pub struct ClientTls {
    basis: Basis,
    server_name: Option<String>,
    tolerates_truncation: bool,
    /// An option that a configuration of rustls leaves no room for.
    misplaced: Option<&'static str>,
}

#[derive(Clone)]
enum Basis {
    Ours(Box<Ours>),
    Rustls(Arc<rustls::ClientConfig>),
}

#[derive(Clone)]
struct Ours {
    /// The platform's if there is none.
    trust: Option<Trust>,
    identity: Option<Identity>,
    pins: Vec<[u8; 32]>,
    alpn: Vec<Vec<u8>>,
    versions: Versions,
    resumption: bool,
    key_log: Option<PathBuf>,
    accepts_any: bool,
}

/// What a client connects by TLS with; a clone is the same one.
///
/// What is in force can be changed while it is used, by [`Connector::reload`] and [`Connector::replace`]: handshakes that begin
/// afterwards are made with the new, connections that there are go on.
#[derive(Clone)]
pub struct Connector(Arc<InForce<ClientSide, Description>>);

struct Description {
    tls: ClientTls,
    /// Only to count.
    _unverified: Option<Unverified>,
}

/// What a handshake that begins now is to be made with.
pub(crate) struct ClientSide {
    /// With `enable_secret_extraction`.
    pub(crate) config: Arc<rustls::ClientConfig>,
    /// The name that the server has to have; if nobody said one, the host of the address.
    pub(crate) server_name: Option<ServerName<'static>>,
    /// Whether a peer may end without close_notify.
    pub(crate) tolerates_truncation: bool,
    /// What a handshake that succeeds says of the peer: verified, skipped, or somebody else's rules.
    pub(crate) verification: Verification,
}

impl ClientTls {
    /// Trusts whom the operating system trusts, and shows no certificate.
    #[expect(clippy::new_without_default, reason = "what is trusted should be asked for by a name")]
    pub fn new() -> ClientTls {
        ClientTls::on(Basis::Ours(Box::new(Ours {
            trust: None,
            identity: None,
            pins: Vec::new(),
            alpn: Vec::new(),
            versions: Versions::default(),
            resumption: true,
            key_log: None,
            accepts_any: false,
        })))
    }

    /// Has rustls do as this configuration says. It decides all but [`ClientTls::server_name`] and
    /// [`ClientTls::tolerate_truncation`]; another option is an error of [`Connector::new`].
    ///
    /// Two things of it are not taken over: `enable_secret_extraction` is always on, for records are not protected by rustls, and
    /// there is no early data.
    pub fn from_rustls(config: Arc<rustls::ClientConfig>) -> ClientTls {
        ClientTls::on(Basis::Rustls(config))
    }

    /// Trusts these, and no longer those of the system.
    #[must_use]
    pub fn trust(self, trust: Trust) -> ClientTls {
        self.ours("trust", |ours| ours.trust = Some(trust))
    }

    /// Sets the name that the server's certificate has to be for: a DNS name, which the server is also told (SNI), or an address.
    /// It goes before the host of the address that is connected to, and before the one that
    /// [`Connection::connect_tls`](crate::Connection::connect_tls) is given. Default: that host.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> ClientTls {
        self.server_name = Some(name.into());
        self
    }

    /// Sets the application protocols (ALPN, RFC 7301), the most preferred first, each of 1 to 255 bytes. A server that does not
    /// know of ALPN agrees on none and is not refused: [`Info::alpn`](super::Info::alpn) tells. Default: none.
    #[must_use]
    pub fn alpn(self, protocols: impl IntoIterator<Item = impl AsRef<[u8]>>) -> ClientTls {
        let protocols = protocols.into_iter().map(|each| each.as_ref().to_vec()).collect();
        self.ours("alpn", |ours| ours.alpn = protocols)
    }

    /// Shows this identity to servers that ask who the client is.
    #[must_use]
    pub fn identity(self, identity: Identity) -> ClientTls {
        self.ours("identity", |ours| ours.identity = Some(identity))
    }

    /// Sets which versions of TLS are spoken. Default: 1.2 and 1.3.
    #[must_use]
    pub fn versions(self, versions: Versions) -> ClientTls {
        self.ours("versions", |ours| ours.versions = versions)
    }

    /// Requires, besides all else, that the server's own certificate has this public key: the SHA-256 of its
    /// SubjectPublicKeyInfo, as [`Identity::public_key_hash`] tells it. With several pins it has to be one of them; a second one
    /// lets the key be changed. Keys of issuers cannot be pinned: [`Trust::from_file`] with that issuer alone does that.
    #[must_use]
    pub fn pin_public_key(self, sha256: [u8; 32]) -> ClientTls {
        self.ours("pin_public_key", |ours| ours.pins.push(sha256))
    }

    /// Sets whether sessions are resumed, which spares the server's certificate. They are kept in memory, of up to 256 servers,
    /// for as long as their tickets are good. A server that resumes shows no certificate: what was verified was that of the
    /// session's beginning, then. Default: yes.
    #[must_use]
    pub fn resumption(self, resumption: bool) -> ClientTls {
        self.ours("resumption", |ours| ours.resumption = resumption)
    }

    /// Appends the keys of all sessions to this file, in the format of NSS that Wireshark reads. **Who can read the file can read
    /// the connections**; it is made for its owner alone, and refused if it is another's or others may read it. An error when it is
    /// written is ignored. Default: none; the environment is not asked.
    #[must_use]
    pub fn key_log(self, path: impl Into<PathBuf>) -> ClientTls {
        self.ours("key_log", |ours| ours.key_log = Some(path.into()))
    }

    /// Takes a peer's end without close_notify for an end in order. Only for protocols that tell themselves where a message ends:
    /// otherwise whoever is between can cut one short unnoticed.
    #[must_use]
    pub fn tolerate_truncation(mut self) -> ClientTls {
        self.tolerates_truncation = true;
        self
    }

    /// Accepts every certificate, whoever it is from and for. **Anyone on the way can then read and change everything**: what is
    /// left is that the server has the key of what it shows, and what [`ClientTls::pin_public_key`] says.
    ///
    /// Connections say [`Verification::Skipped`], and the snapshots of servers in this process how many such connectors there are.
    #[must_use]
    pub fn danger_accept_any_certificate(self) -> ClientTls {
        self.ours("danger_accept_any_certificate", |ours| ours.accepts_any = true)
    }

    fn on(basis: Basis) -> ClientTls {
        ClientTls { basis, server_name: None, tolerates_truncation: false, misplaced: None }
    }

    fn ours(mut self, option: &'static str, set: impl FnOnce(&mut Ours)) -> ClientTls {
        match &mut self.basis {
            Basis::Ours(ours) => set(ours),
            Basis::Rustls(_) => self.misplaced = Some(option),
        }
        self
    }

    /// The same from its files as they are now.
    fn read_again(&self) -> Result<ClientTls> {
        let mut again = self.clone();
        if let Basis::Ours(ours) = &mut again.basis {
            ours.trust = ours.trust.as_ref().map(Trust::read_again).transpose()?;
            ours.identity = ours.identity.as_ref().map(Identity::read_again).transpose()?;
        }
        Ok(again)
    }

    /// Whether another reading of its files has brought the same.
    fn has_same_content(&self, again: &ClientTls) -> bool {
        let (Basis::Ours(ours), Basis::Ours(theirs)) = (&self.basis, &again.basis) else { return true };
        let is_same_trust = match (&ours.trust, &theirs.trust) {
            (Some(ours), Some(theirs)) => ours.is_same(theirs),
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        };
        let is_same_identity = match (&ours.identity, &theirs.identity) {
            (Some(ours), Some(theirs)) => ours.is_same(theirs),
            (ours, theirs) => ours.is_none() && theirs.is_none(),
        };
        is_same_trust && is_same_identity
    }

    /// With the platform's roots in their place, if nobody else is trusted; so another reading can tell whether they have changed.
    fn with_roots(mut self) -> Result<ClientTls> {
        if let Basis::Ours(ours) = &mut self.basis
            && ours.trust.is_none()
            && !ours.accepts_any
        {
            ours.trust = Some(Trust::platform()?);
        }
        Ok(self)
    }

    fn build(self) -> Result<(ClientSide, Description)> {
        if let Some(option) = self.misplaced {
            return Err(Error::option(option, "is for the given configuration of rustls to say"));
        }
        let server_name = match &self.server_name {
            Some(name) => Some(options::server_name(name).ok_or_else(|| {
                Error::option("server_name", format!("`{name}` is neither a DNS name nor an address"))
            })?),
            None => None,
        };
        let tls = self.with_roots()?;
        let (mut config, verification) = match &tls.basis {
            Basis::Ours(ours) if ours.accepts_any => (ours.config()?, Verification::Skipped),
            Basis::Ours(ours) => (ours.config()?, Verification::Verified),
            Basis::Rustls(config) => (rustls::ClientConfig::clone(config), Verification::Custom),
        };
        config.enable_secret_extraction = true;
        config.enable_early_data = false;
        let side = ClientSide {
            config: Arc::new(config),
            server_name,
            tolerates_truncation: tls.tolerates_truncation,
            verification,
        };
        let _unverified = (verification == Verification::Skipped).then(|| Unverified::count(&UNVERIFIED));
        Ok((side, Description { tls, _unverified }))
    }
}

impl Ours {
    fn config(&self) -> Result<rustls::ClientConfig> {
        options::check_alpn(&self.alpn)?;
        let verifier = match &self.trust {
            _ if self.accepts_any => verify::of_any_server(&self.pins),
            Some(trust) => verify::of_servers(trust, &self.pins)?,
            None => verify::of_servers(&Trust::platform()?, &self.pins)?,
        };
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(self.versions.of_rustls())
            .map_err(options::unusable)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.identity {
            Some(identity) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified())))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        if !self.resumption {
            config.resumption = Resumption::disabled();
        }
        if let Some(path) = &self.key_log {
            config.key_log = Arc::new(KeyLogFile::open(path)?);
        }
        Ok(config)
    }
}

impl Connector {
    /// Puts a description in force.
    ///
    /// # Errors
    /// An option has a value that cannot be, the system trusts nobody, or the file of keys cannot be opened.
    pub fn new(tls: ClientTls) -> Result<Connector> {
        Ok(Connector(Arc::new(InForce::new(tls.build()?))))
    }

    /// Puts another description in force, for handshakes that begin from now on. Sessions from before are not resumed.
    ///
    /// # Errors
    /// As [`Connector::new`]. Then all stays as it was.
    pub fn replace(&self, tls: ClientTls) -> Result<()> {
        self.0.change(|_| tls.build().map(Some)).map(drop)
    }

    /// Reads all files again, and the system's roots if they are trusted, and puts what they are now in force for handshakes that
    /// begin from now on. Tells whether anything was different; if so, sessions from before are not resumed.
    ///
    /// # Errors
    /// A file cannot be used: it is named. Then all stays as it was.
    pub fn reload(&self) -> Result<bool> {
        self.0.change(|description| {
            let again = description.tls.read_again()?;
            if description.tls.has_same_content(&again) {
                return Ok(None);
            }
            again.build().map(Some)
        })
    }

    /// The files that [`Connector::reload`] reads, each once, without those of the system.
    pub fn files(&self) -> Vec<PathBuf> {
        let description = self.0.description();
        let Basis::Ours(ours) = &description.tls.basis else { return Vec::new() };
        let trust = ours.trust.iter().flat_map(Trust::files);
        options::each_once(ours.identity.iter().flat_map(Identity::files).chain(trust))
    }

    /// What is in force now.
    pub(crate) fn current(&self) -> Arc<ClientSide> {
        self.0.current()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = f.debug_struct("ClientTls");
        match &self.basis {
            Basis::Ours(ours) => all
                .field("trust", &ours.trust)
                .field("identity", &ours.identity)
                .field("pins", &ours.pins.len())
                .field("alpn", &options::protocols(&ours.alpn))
                .field("versions", &ours.versions)
                .field("resumption", &ours.resumption)
                .field("key_log", &ours.key_log)
                .field("accepts_any", &ours.accepts_any),
            Basis::Rustls(_) => all.field("config", &format_args!("of rustls")),
        };
        all.field("server_name", &self.server_name)
            .field("tolerates_truncation", &self.tolerates_truncation)
            .finish()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let description = self.0.description();
        f.debug_tuple("Connector").field(&description.tls).finish()
    }
}

/// How many connectors in this process do not verify whom they talk to.
pub(crate) fn unverified_connectors() -> usize {
    UNVERIFIED.load(Ordering::Relaxed)
}

/// Counts for as long as it is there.
struct Unverified(&'static AtomicUsize);

impl Unverified {
    fn count(all: &'static AtomicUsize) -> Unverified {
        all.fetch_add(1, Ordering::Relaxed);
        Unverified(all)
    }
}

impl Drop for Unverified {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

static UNVERIFIED: AtomicUsize = AtomicUsize::new(0);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::classify::classify;
    use crate::tls::testing::{Authority, Directory, Ends, Failed, handshake, leaf, self_signed};
    use crate::tls::{Acceptor, ClientCertificates, ServerTls};
    use crate::{CertificateFault, TlsFault};

    fn connector(tls: ClientTls) -> Connector {
        Connector::new(tls).expect("in order")
    }

    fn problem(tls: ClientTls) -> String {
        Connector::new(tls).expect_err("an option that cannot be").to_string()
    }

    fn fault(failed: Result<Ends, Failed>) -> TlsFault {
        match failed.err().expect("it is refused") {
            Failed::Client(error) | Failed::Server(error) => classify(&error).0,
        }
    }

    #[test]
    fn an_option_that_cannot_be_is_named() {
        let trust = Authority::new("Root").trust();
        let plain = || ClientTls::new().trust(trust.clone());
        let config = connector(plain()).current().config.clone();
        for (tls, expected) in [
            (plain().server_name("a b"), "`server_name` `a b` is neither a DNS name nor an address"),
            (plain().alpn([[b'x'; 256]]), "`alpn` must name protocols by 1 to 255 bytes each"),
            (
                ClientTls::from_rustls(config).pin_public_key([0; 32]),
                "`pin_public_key` is for the given configuration of rustls to say",
            ),
        ] {
            assert_eq!(problem(tls), format!("start: option {expected}"));
        }
    }

    #[test]
    fn the_name_that_was_set_is_the_one_that_counts() {
        let root = Authority::new("Root");
        let acceptor =
            Acceptor::new(ServerTls::new(root.issue(leaf(&["a.example", "192.0.2.7"])).identity()));
        let acceptor = acceptor.expect("in order");
        let plain = || ClientTls::new().trust(root.trust());
        for name in ["a.example", "192.0.2.7"] {
            let ends = handshake(&connector(plain().server_name(name)), &acceptor, "b.example");
            assert!(ends.is_ok(), "{name}");
        }
        let wrong = TlsFault::Certificate(CertificateFault::WrongName);
        assert_eq!(fault(handshake(&connector(plain()), &acceptor, "b.example")), wrong);
        assert_eq!(fault(handshake(&connector(plain()), &acceptor, "192.0.2.8")), wrong);
    }

    #[test]
    fn a_pin_is_required_besides_all_else() {
        let (root, stranger) = (Authority::new("Root"), Authority::new("Stranger"));
        let between = root.below("Between", 7);
        let made = between.issue(leaf(&["a.example"]));
        let identity = made.identity();
        let acceptor = Acceptor::new(ServerTls::new(identity.clone())).expect("in order");
        let pin = identity.public_key_hash();
        let plain = || ClientTls::new().trust(root.trust());
        for tls in [plain().pin_public_key(pin), plain().pin_public_key([0; 32]).pin_public_key(pin)] {
            assert!(handshake(&connector(tls), &acceptor, "a.example").is_ok());
        }
        let not_pinned = TlsFault::Certificate(CertificateFault::NotPinned);
        let issuers = crate::tls::identity::public_key_hash(&made.chain_der()[1]).expect("a certificate");
        for tls in [plain().pin_public_key([0; 32]), plain().pin_public_key(issuers)] {
            assert_eq!(fault(handshake(&connector(tls), &acceptor, "a.example")), not_pinned);
        }
        let tls = ClientTls::new().trust(stranger.trust()).pin_public_key(pin);
        let unknown = TlsFault::Certificate(CertificateFault::UnknownIssuer);
        assert_eq!(fault(handshake(&connector(tls), &acceptor, "a.example")), unknown);

        let wrong = connector(plain().pin_public_key([0; 32]));
        let Err(Failed::Client(error)) = handshake(&wrong, &acceptor, "a.example") else {
            panic!("it is refused")
        };
        let hex: String = pin.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(classify(&error).1, format!("the SHA-256 of its public key is {hex}"));
    }

    #[test]
    fn who_does_not_verify_is_counted_as_long_as_it_is_in_force() {
        let made = self_signed(leaf(&["b.example"]));
        let acceptor = Acceptor::new(ServerTls::new(made.identity())).expect("in order");
        let any = || ClientTls::new().danger_accept_any_certificate();
        let (first, second) =
            (connector(any()), connector(any().pin_public_key(made.identity().public_key_hash())));
        // Other tests may make such connectors at the same time.
        assert!(unverified_connectors() >= 2);
        for connector in [&first, &second] {
            assert_eq!(connector.current().verification, Verification::Skipped);
            assert!(handshake(connector, &acceptor, "a.example").is_ok());
        }
        let pinned = connector(any().pin_public_key([0; 32]));
        let not_pinned = TlsFault::Certificate(CertificateFault::NotPinned);
        assert_eq!(fault(handshake(&pinned, &acceptor, "a.example")), not_pinned);

        let counts = |connector: &Connector| connector.0.description()._unverified.is_some();
        assert!(counts(&first));
        first.clone().replace(ClientTls::new().trust(Authority::new("Root").trust())).expect("in order");
        assert!(!counts(&first) && first.current().verification == Verification::Verified);
        assert!(handshake(&first, &acceptor, "b.example").is_err());
    }

    #[test]
    fn what_counts_stops_when_it_is_dropped() {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let counted = [Unverified::count(&COUNT), Unverified::count(&COUNT)];
        assert_eq!(COUNT.load(Ordering::Relaxed), 2);
        drop(counted);
        assert_eq!(COUNT.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_systems_roots_are_trusted_if_nobody_else_is() {
        match (Trust::platform(), Connector::new(ClientTls::new())) {
            (Ok(_), Ok(connector)) => {
                assert!(!connector.reload().expect("they are still the same"));
                assert!(connector.files().is_empty());
            }
            (Err(error), Err(again)) => {
                assert!(
                    error.to_string().starts_with("load the roots of the system: there are none"),
                    "{error}"
                );
                assert_eq!(error.to_string(), again.to_string());
            }
            (trust, connector) => panic!("{trust:?} {connector:?}"),
        }
    }

    #[test]
    fn a_certificate_that_has_issued_itself_can_be_trusted_by_itself() {
        let made = self_signed(leaf(&["a.example"]));
        let acceptor = Acceptor::new(ServerTls::new(made.identity())).expect("in order");
        let trust = Trust::from_der(&made.chain_der()[0]).expect("a root");
        assert!(handshake(&connector(ClientTls::new().trust(trust)), &acceptor, "a.example").is_ok());
    }

    #[test]
    fn an_optional_certificate_is_shown_or_not() {
        let root = Authority::new("Root");
        let tls = ServerTls::new(root.issue(leaf(&["a.example"])).identity());
        let acceptor = Acceptor::new(tls.client_certificates(ClientCertificates::optional(root.trust())));
        let acceptor = acceptor.expect("in order");
        let plain = || ClientTls::new().trust(root.trust());
        let nobody = handshake(&connector(plain()), &acceptor, "a.example").expect("they agree");
        assert_eq!(nobody.server.peer_certificates(), None);
        let made = root.issue(leaf(&["client"]));
        let somebody = connector(plain().identity(made.identity()));
        let ends = handshake(&somebody, &acceptor, "a.example").expect("they agree");
        assert_eq!(
            ends.server.peer_certificates().map(|chain| chain[0].to_vec()).as_ref(),
            made.chain_der().first()
        );
        let stranger = self_signed(leaf(&["client"]));
        let refused = handshake(&connector(plain().identity(stranger.identity())), &acceptor, "a.example");
        assert_eq!(fault(refused), TlsFault::Certificate(CertificateFault::SelfSigned));
    }

    #[test]
    fn a_reload_puts_good_files_in_force_and_keeps_what_was_if_one_is_not() {
        let (directory, old, new) = (Directory::new(), Authority::new("Old"), Authority::new("New"));
        let acceptor =
            Acceptor::new(ServerTls::new(new.issue(leaf(&["a.example"])).identity())).expect("in order");
        let path = directory.write("ca.pem", old.pem());
        let connector = connector(ClientTls::new().trust(Trust::from_file(&path).expect("a root")));
        assert_eq!(connector.files(), std::slice::from_ref(&path));
        assert!(handshake(&connector, &acceptor, "a.example").is_err());
        assert!(!connector.reload().expect("nothing has changed"));
        directory.write("ca.pem", "");
        let error = connector.reload().expect_err("there is nothing in it");
        assert_eq!(error.to_string(), format!("load {}: is empty", path.display()));
        directory.write("ca.pem", new.pem());
        assert!(connector.reload().expect("in order"));
        assert!(handshake(&connector, &acceptor, "a.example").is_ok());
    }

    #[test]
    fn sessions_are_not_resumed_if_told_so_nor_by_new_rules() {
        let root = Authority::new("Root");
        let acceptor =
            Acceptor::new(ServerTls::new(root.issue(leaf(&["a.example"])).identity())).expect("in order");
        let is_resumed = |connector: &Connector| {
            let ends = handshake(connector, &acceptor, "a.example").expect("they agree");
            ends.client.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
        };
        let tls = ClientTls::new().trust(root.trust());
        let never = connector(tls.clone().resumption(false));
        assert!(!is_resumed(&never) && !is_resumed(&never));
        let resuming = connector(tls.clone());
        assert!(!is_resumed(&resuming) && is_resumed(&resuming));
        resuming.replace(tls.versions(Versions::Tls13)).expect("in order");
        assert!(!is_resumed(&resuming) && is_resumed(&resuming));
    }

    #[test]
    fn a_configuration_of_rustls_is_used_with_its_secrets_to_be_had() {
        let tls = ClientTls::new().trust(Authority::new("Root").trust());
        let mut config = rustls::ClientConfig::clone(&connector(tls).current().config);
        (config.enable_secret_extraction, config.enable_early_data) = (false, true);
        let connector =
            connector(ClientTls::from_rustls(config.into()).server_name("a.example").tolerate_truncation());
        let side = connector.current();
        assert!(side.config.enable_secret_extraction && !side.config.enable_early_data);
        assert!(side.tolerates_truncation && side.verification == Verification::Custom);
        assert_eq!(side.server_name, options::server_name("a.example"));
        assert!(!connector.reload().expect("there is nothing to read") && connector.files().is_empty());
        assert!(format!("{connector:?}").contains("of rustls"));
    }
}
