//! TLS of a server: the description ([`ServerTls`]) and what accepts with it ([`Acceptor`]).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{NoServerSessionStorage, ProducesTickets};

use super::handshake::NoteName;
use super::identity::Identity;
use super::in_force::InForce;
use super::key_log::KeyLogFile;
use super::names::Names;
use super::options::{self, Versions};
use super::trust::{ClientCertificates, Trust};
use super::{Verification, provider, verify};
use crate::error::{Error, Result};

/// TLS of a server, before it is used.
///
/// ```no_run
/// use wharf::tls::{Acceptor, ClientCertificates, Identity, ServerTls, Trust};
///
/// let tls = ServerTls::new(Identity::from_files("chain.pem", "key.pem")?)
///     .identity_for("*.example.net", Identity::from_files("net.pem", "net.key")?)
///     .client_certificates(ClientCertificates::optional(Trust::from_file("clients.pem")?))
///     .alpn(["echo/2", "echo/1"]);
/// let acceptor = Acceptor::new(tls)?;
/// # drop(acceptor);
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone)]
pub struct ServerTls {
    basis: Basis,
    tolerates_truncation: bool,
    within: Duration,
    handshakes_max: usize,
    /// An option that a configuration of rustls leaves no room for.
    misplaced: Option<&'static str>,
}

#[derive(Clone)]
enum Basis {
    Ours(Box<Ours>),
    Rustls(Arc<rustls::ServerConfig>),
}

#[derive(Clone)]
struct Ours {
    identity: Identity,
    others: Vec<(String, Identity)>,
    refuses_unknown_names: bool,
    clients: ClientCertificates,
    alpn: Vec<Vec<u8>>,
    versions: Versions,
    tickets: bool,
    key_log: Option<PathBuf>,
}

/// What a server accepts TLS with; a clone is the same one.
///
/// What is in force can be changed while servers use it, by [`Acceptor::reload`] and [`Acceptor::replace`]: handshakes that begin
/// afterwards are made with the new, connections that there are go on.
#[derive(Clone)]
pub struct Acceptor(Arc<InForce<ServerSide, Description>>);

struct Description {
    tls: ServerTls,
    tickets: Option<Arc<dyn ProducesTickets>>,
}

/// What a handshake that begins now is to be made with.
pub(crate) struct ServerSide {
    /// With `enable_secret_extraction`.
    pub(crate) config: Arc<rustls::ServerConfig>,
    /// Whether a peer may end without close_notify.
    pub(crate) tolerates_truncation: bool,
    /// How long a handshake may take.
    pub(crate) within: Duration,
    /// How many handshakes may be in progress at once, in the whole server.
    pub(crate) handshakes_max: usize,
    /// What a handshake that succeeds says of a client that has shown a certificate: verified, or somebody else's rules.
    pub(crate) verification: Verification,
}

impl ServerTls {
    /// Shows this identity, whatever name a client asks for; all else is at its default, which each option tells.
    pub fn new(identity: Identity) -> ServerTls {
        ServerTls::on(Basis::Ours(Box::new(Ours {
            identity,
            others: Vec::new(),
            refuses_unknown_names: false,
            clients: ClientCertificates::off(),
            alpn: Vec::new(),
            versions: Versions::default(),
            tickets: true,
            key_log: None,
        })))
    }

    /// Has rustls do as this configuration says. It decides all but [`ServerTls::handshake_within`],
    /// [`ServerTls::handshakes_max`] and [`ServerTls::tolerate_truncation`]; another option is an error of [`Acceptor::new`].
    ///
    /// Two things of it are not taken over: `enable_secret_extraction` is always on, for records are not protected by rustls, and
    /// there is no early data.
    pub fn from_rustls(config: Arc<rustls::ServerConfig>) -> ServerTls {
        ServerTls::on(Basis::Rustls(config))
    }

    /// Shows this identity to clients that ask for this name: a DNS name, or `*.example.com` for all that have one label in the
    /// place of the star. A name of its own goes before a star. Clients that ask for no name, or for one that is not here, are
    /// shown the first identity.
    #[must_use]
    pub fn identity_for(self, name: impl Into<String>, identity: Identity) -> ServerTls {
        self.ours("identity_for", |ours| ours.others.push((name.into(), identity)))
    }

    /// Refuses clients that ask for a name for which there is no identity, and which the first one's certificate is not for
    /// either; they are told by the alert access_denied. Who asks for no name is still shown the first. Default: not refused.
    #[must_use]
    pub fn refuse_unknown_names(self) -> ServerTls {
        self.ours("refuse_unknown_names", |ours| ours.refuses_unknown_names = true)
    }

    /// Sets which certificates clients are asked for. Default: none.
    ///
    /// A session can be resumed for up to 12 hours; the certificate it began with is not looked at again then. If what is trusted
    /// is changed, by a new revocation list for example, no session from before is resumed.
    #[must_use]
    pub fn client_certificates(self, certificates: ClientCertificates) -> ServerTls {
        self.ours("client_certificates", |ours| ours.clients = certificates)
    }

    /// Sets the application protocols (ALPN, RFC 7301), the most preferred first, each of 1 to 255 bytes. A client that names
    /// protocols and none of these is refused; one that names none is not. [`Info::alpn`](super::Info::alpn) tells what was agreed on.
    /// Default: none, and none is agreed on.
    #[must_use]
    pub fn alpn(self, protocols: impl IntoIterator<Item = impl AsRef<[u8]>>) -> ServerTls {
        let protocols = protocols.into_iter().map(|each| each.as_ref().to_vec()).collect();
        self.ours("alpn", |ours| ours.alpn = protocols)
    }

    /// Sets which versions of TLS are spoken. Default: 1.2 and 1.3.
    #[must_use]
    pub fn versions(self, versions: Versions) -> ServerTls {
        self.ours("versions", |ours| ours.versions = versions)
    }

    /// Sets whether sessions can be resumed. Default: yes.
    ///
    /// Tickets hold what is needed, encrypted by keys that this acceptor makes and changes every six hours; nothing is kept per
    /// session. A client gets one ticket on each connection, good for up to 12 hours, and the next one when it resumes. In another
    /// process, and behind another acceptor, it is good for nothing: the handshake is a full one then.
    #[must_use]
    pub fn tickets(self, tickets: bool) -> ServerTls {
        self.ours("tickets", |ours| ours.tickets = tickets)
    }

    /// Appends the keys of all sessions to this file, in the format of NSS that Wireshark reads. **Who can read the file can read
    /// the connections**; it is made for its owner alone, and refused if it is another's or others may read it. An error when it is
    /// written is ignored. Default: none; the environment is not asked.
    #[must_use]
    pub fn key_log(self, path: impl Into<PathBuf>) -> ServerTls {
        self.ours("key_log", |ours| ours.key_log = Some(path.into()))
    }

    /// Sets how long a handshake may take, as a whole: from the accept, or from the end of a PROXY header, or in mid-stream from
    /// its beginning. No byte extends it, and waiting for others (see [`ServerTls::handshakes_max`]) is a part of it. When it
    /// passes, the connection is reset, for [`Deadline::Handshake`](crate::Deadline::Handshake). More than zero; default: 5 s.
    #[must_use]
    pub fn handshake_within(mut self, after: Duration) -> ServerTls {
        self.within = after;
        self
    }

    /// Sets how many handshakes of new connections may be in progress at once, in the whole server. At least 1; default: 4096.
    ///
    /// Each worker has an equal share, rounded up. Where that is taken, the handshake that began first gives way to a new one if
    /// it has taken a second or more (it is reset, for [`TlsFault::Busy`](crate::TlsFault::Busy)); otherwise the new one waits, as
    /// long as its own time lets it. Handshakes that a handler begins in mid-stream are not counted.
    #[must_use]
    pub fn handshakes_max(mut self, handshakes: usize) -> ServerTls {
        self.handshakes_max = handshakes;
        self
    }

    /// Takes a peer's end without close_notify for an end in order. Only for protocols that tell themselves where a message ends:
    /// otherwise whoever is between can cut one short unnoticed.
    #[must_use]
    pub fn tolerate_truncation(mut self) -> ServerTls {
        self.tolerates_truncation = true;
        self
    }

    fn on(basis: Basis) -> ServerTls {
        ServerTls {
            basis,
            tolerates_truncation: false,
            within: Duration::from_secs(5),
            handshakes_max: 4096,
            misplaced: None,
        }
    }

    fn ours(mut self, option: &'static str, set: impl FnOnce(&mut Ours)) -> ServerTls {
        match &mut self.basis {
            Basis::Ours(ours) => set(ours),
            Basis::Rustls(_) => self.misplaced = Some(option),
        }
        self
    }

    /// The same from its files as they are now.
    fn read_again(&self) -> Result<ServerTls> {
        let mut again = self.clone();
        if let Basis::Ours(ours) = &mut again.basis {
            ours.identity = ours.identity.read_again()?;
            for (_, identity) in &mut ours.others {
                *identity = identity.read_again()?;
            }
            ours.clients = ours.clients.read_again()?;
        }
        Ok(again)
    }

    /// Whether another reading of its files has brought the same.
    fn has_same_content(&self, again: &ServerTls) -> bool {
        match (&self.basis, &again.basis) {
            (Basis::Ours(ours), Basis::Ours(theirs)) => {
                let (ours_all, theirs_all) = (ours.identities(), theirs.identities());
                ours_all.zip(theirs_all).all(|(ours, theirs)| ours.is_same(theirs))
                    && ours.clients.is_same(&theirs.clients)
            }
            _ => true,
        }
    }

    /// Whether a session that began by these rules may be resumed by those.
    fn may_share_tickets(&self, other: &ServerTls) -> bool {
        match (&self.basis, &other.basis) {
            (Basis::Ours(ours), Basis::Ours(theirs)) => ours.clients.is_same(&theirs.clients),
            _ => false,
        }
    }

    fn build(self, tickets: Option<Arc<dyn ProducesTickets>>) -> Result<(ServerSide, Description)> {
        if self.within.is_zero() {
            return Err(Error::option("handshake_within", "must be longer than zero"));
        }
        if self.handshakes_max == 0 {
            return Err(Error::option("handshakes_max", "must be at least 1"));
        }
        if let Some(option) = self.misplaced {
            return Err(Error::option(option, "is for the given configuration of rustls to say"));
        }
        let (mut config, tickets, verification) = match &self.basis {
            Basis::Ours(ours) => {
                let (config, tickets) = ours.config(tickets)?;
                (config, tickets, Verification::Verified)
            }
            Basis::Rustls(config) => (rustls::ServerConfig::clone(config), None, Verification::Custom),
        };
        config.enable_secret_extraction = true;
        config.max_early_data_size = 0;
        config.cert_resolver = Arc::new(NoteName(config.cert_resolver));
        let side = ServerSide {
            config: Arc::new(config),
            tolerates_truncation: self.tolerates_truncation,
            within: self.within,
            handshakes_max: self.handshakes_max,
            verification,
        };
        Ok((side, Description { tls: self, tickets }))
    }
}

impl Ours {
    /// The configuration, and what makes its tickets: the one given, if any is needed.
    fn config(&self, tickets: Option<Arc<dyn ProducesTickets>>) -> Result<Made> {
        options::check_alpn(&self.alpn)?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(self.versions.of_rustls())
            .map_err(options::unusable)?
            .with_client_cert_verifier(verify::of_clients(&self.clients)?)
            .with_cert_resolver(Arc::new(Names::new(
                &self.identity,
                &self.others,
                self.refuses_unknown_names,
            )?));
        config.alpn_protocols.clone_from(&self.alpn);
        // Clients on their defaults prefer what is dearer, and mean nothing by it.
        config.ignore_client_order = true;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let tickets = match tickets {
            _ if !self.tickets => None,
            None => Some(Ticketer::new().map_err(options::unusable)?),
            given => given,
        };
        config.send_tls13_tickets = 0;
        if let Some(ticketer) = &tickets {
            config.ticketer = ticketer.clone();
            // One is enough: a client that resumes gets the next by that. rustls sends two, for browsers, which open several
            // connections after one; each costs this side an encryption, and with client certificates the room of their chain.
            config.send_tls13_tickets = 1;
        }
        if let Some(path) = &self.key_log {
            config.key_log = Arc::new(KeyLogFile::open(path)?);
        }
        Ok((config, tickets))
    }

    fn identities(&self) -> impl Iterator<Item = &Identity> {
        [&self.identity].into_iter().chain(self.others.iter().map(|(_, identity)| identity))
    }
}

impl Description {
    /// What holds when this is replaced.
    fn followed_by(&self, tls: ServerTls) -> Result<(ServerSide, Description)> {
        let tickets = self.tickets.clone().filter(|_| self.tls.may_share_tickets(&tls));
        tls.build(tickets)
    }
}

type Made = (rustls::ServerConfig, Option<Arc<dyn ProducesTickets>>);

impl Acceptor {
    /// Puts a description in force.
    ///
    /// # Errors
    /// An option has a value that cannot be, or the file of keys cannot be opened.
    pub fn new(tls: ServerTls) -> Result<Acceptor> {
        Ok(Acceptor(Arc::new(InForce::new(tls.build(None)?))))
    }

    /// Puts another description in force, for handshakes that begin from now on. Sessions from before can be resumed, unless the
    /// rules for client certificates differ.
    ///
    /// # Errors
    /// As [`Acceptor::new`]. Then all stays as it was.
    pub fn replace(&self, tls: ServerTls) -> Result<()> {
        self.0.change(|description| description.followed_by(tls).map(Some)).map(drop)
    }

    /// Reads all files again, and puts what they are now in force for handshakes that begin from now on. Tells whether anything
    /// was different.
    ///
    /// # Errors
    /// A file cannot be used: it is named. Then all stays as it was.
    pub fn reload(&self) -> Result<bool> {
        self.0.change(|description| {
            let again = description.tls.read_again()?;
            if description.tls.has_same_content(&again) {
                return Ok(None);
            }
            description.followed_by(again).map(Some)
        })
    }

    /// The files that [`Acceptor::reload`] reads, each once.
    pub fn files(&self) -> Vec<PathBuf> {
        let description = self.0.description();
        let Basis::Ours(ours) = &description.tls.basis else { return Vec::new() };
        let trust = ours.clients.trust().into_iter().flat_map(Trust::files);
        options::each_once(ours.identities().flat_map(Identity::files).chain(trust))
    }

    /// The identities in force, the first one first; none if a configuration of rustls is.
    pub fn identities(&self) -> Vec<Identity> {
        let description = self.0.description();
        match &description.tls.basis {
            Basis::Ours(ours) => ours.identities().cloned().collect(),
            Basis::Rustls(_) => Vec::new(),
        }
    }

    /// What is in force now.
    pub(crate) fn current(&self) -> Arc<ServerSide> {
        self.0.current()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = f.debug_struct("ServerTls");
        match &self.basis {
            Basis::Ours(ours) => all
                .field("identity", &ours.identity)
                .field("others", &ours.others)
                .field("refuses_unknown_names", &ours.refuses_unknown_names)
                .field("client_certificates", &ours.clients)
                .field("alpn", &options::protocols(&ours.alpn))
                .field("versions", &ours.versions)
                .field("tickets", &ours.tickets)
                .field("key_log", &ours.key_log),
            Basis::Rustls(_) => all.field("config", &format_args!("of rustls")),
        };
        all.field("tolerates_truncation", &self.tolerates_truncation)
            .field("handshake_within", &self.within)
            .field("handshakes_max", &self.handshakes_max)
            .finish()
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let description = self.0.description();
        f.debug_tuple("Acceptor").field(&description.tls).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::{Authority, Directory, handshake, leaf};
    use crate::tls::{ClientTls, Connector};

    fn identity(root: &Authority, name: &str) -> Identity {
        root.issue(leaf(&[name])).identity()
    }

    fn acceptor(tls: ServerTls) -> Acceptor {
        Acceptor::new(tls).expect("in order")
    }

    fn problem(tls: ServerTls) -> String {
        Acceptor::new(tls).expect_err("an option that cannot be").to_string()
    }

    #[test]
    fn an_option_that_cannot_be_is_named() {
        let root = Authority::new("Root");
        let plain = || ServerTls::new(identity(&root, "a.example"));
        for (tls, expected) in [
            (plain().handshake_within(Duration::ZERO), "`handshake_within` must be longer than zero"),
            (plain().handshakes_max(0), "`handshakes_max` must be at least 1"),
            (plain().alpn([""]), "`alpn` must name protocols by 1 to 255 bytes each"),
            (
                plain().identity_for("*.*.example", identity(&root, "x")),
                "`identity_for` `*.*.example` is neither a DNS name nor one behind `*.`",
            ),
            (
                plain().identity_for("*", identity(&root, "x")),
                "`identity_for` `*` is neither a DNS name nor one behind `*.`",
            ),
            (
                plain()
                    .identity_for("b.example", identity(&root, "x"))
                    .identity_for("B.example.", identity(&root, "x")),
                "`identity_for` `B.example.` has two identities",
            ),
            (
                ServerTls::from_rustls(acceptor(plain()).current().config.clone()).alpn(["x"]),
                "`alpn` is for the given configuration of rustls to say",
            ),
        ] {
            assert_eq!(problem(tls), format!("start: option {expected}"));
        }
        assert_eq!(
            problem(plain().key_log("/nowhere/keys")),
            "load /nowhere/keys: no such file or directory"
        );
    }

    #[test]
    fn the_name_that_is_asked_for_decides_what_is_shown() {
        let root = Authority::new("Root");
        let [first, own, star] =
            ["first.example", "own.star.example", "*.star.example"].map(|name| identity(&root, name));
        let tls =
            ServerTls::new(first).identity_for("*.STAR.example", star).identity_for("own.Star.example", own);
        let shown = |tls: &ServerTls, name| {
            let Basis::Ours(ours) = &tls.basis else { panic!("it is ours") };
            let found = Names::new(&ours.identity, &ours.others, ours.refuses_unknown_names)
                .expect("names")
                .find(name)?;
            ours.identities()
                .find(|each| Arc::ptr_eq(&each.certified(), &found))
                .map(|each| each.names()[0].clone())
        };
        for (asked, expected) in [
            (None, "first.example"),
            (Some("first.example"), "first.example"),
            (Some("unknown.example"), "first.example"),
            (Some("own.star.example"), "own.star.example"),
            (Some("OWN.star.EXAMPLE"), "own.star.example"),
            (Some("x.star.example"), "*.star.example"),
            (Some("star.example"), "first.example"),
            (Some("x.y.star.example"), "first.example"),
        ] {
            assert_eq!(shown(&tls, asked).as_deref(), Some(expected), "{asked:?}");
        }
        let strict = tls.refuse_unknown_names();
        assert_eq!(shown(&strict, Some("unknown.example")), None);
        assert_eq!(shown(&strict, Some("First.example")).as_deref(), Some("first.example"));
        assert_eq!(shown(&strict, None).as_deref(), Some("first.example"));
    }

    #[test]
    fn clients_are_shown_the_identity_that_they_ask_for_and_refused_if_told_so() {
        let root = Authority::new("Root");
        let tls = ServerTls::new(identity(&root, "a.example"))
            .identity_for("b.example", identity(&root, "b.example"));
        let connector = Connector::new(ClientTls::new().trust(root.trust())).expect("in order");
        let accepting = acceptor(tls.clone());
        for name in ["a.example", "b.example"] {
            assert!(handshake(&connector, &accepting, name).is_ok());
        }
        let strict = acceptor(tls.refuse_unknown_names());
        let failed = handshake(&connector, &strict, "c.example").err().expect("it is refused");
        let crate::tls::testing::Failed::Server(error) = failed else { panic!("{failed:?}") };
        assert_eq!(crate::tls::classify::classify(&error).0, crate::TlsFault::UnknownName);
    }

    #[test]
    fn a_reload_puts_good_files_in_force_and_keeps_what_was_if_one_is_not() {
        let (directory, root) = (Directory::new(), Authority::new("Root"));
        let [first, second] = ["a.example", "b.example"].map(|name| root.issue(leaf(&[name])));
        let (chain, key) =
            (directory.write("chain.pem", first.chain()), directory.write("key.pem", first.key()));
        let roots = directory.write("clients.pem", root.pem());
        let tls = ServerTls::new(Identity::from_files(&chain, &key).expect("in order"));
        let clients = ClientCertificates::optional(Trust::from_file(&roots).expect("in order"));
        let acceptor = acceptor(tls.client_certificates(clients));
        assert_eq!(acceptor.files(), [chain.clone(), key, roots.clone()]);

        let before = acceptor.current();
        assert!(!acceptor.reload().expect("nothing has changed"));
        directory.write("chain.pem", second.chain());
        let error = acceptor.reload().expect_err("the key is still the old one");
        assert!(error.to_string().contains("key.pem"), "{error}");
        std::fs::remove_file(&roots).expect("it was there");
        directory.write("key.pem", second.key());
        let error = acceptor.reload().expect_err("one is not there");
        assert_eq!(error.to_string(), format!("load {}: no such file or directory", roots.display()));
        assert!(Arc::ptr_eq(&before, &acceptor.current()));
        assert_eq!(acceptor.identities()[0].names(), ["a.example"]);

        directory.write("clients.pem", root.pem());
        assert!(acceptor.clone().reload().expect("all is in order again"));
        assert!(!Arc::ptr_eq(&before, &acceptor.current()));
        assert_eq!(acceptor.identities()[0].names(), ["b.example"]);
        let connector = Connector::new(ClientTls::new().trust(root.trust())).expect("in order");
        assert!(handshake(&connector, &acceptor, "b.example").is_ok());

        let cannot = ServerTls::new(second.identity()).handshakes_max(0);
        assert!(acceptor.replace(cannot).is_err() && acceptor.identities()[0].names() == ["b.example"]);
    }

    /// Whether a client that was here before has its session resumed.
    fn is_resumed(connector: &Connector, acceptor: &Acceptor) -> bool {
        let mut ends = handshake(connector, acceptor, "a.example").expect("they agree");
        let resumed = Some(rustls::HandshakeKind::Resumed);
        assert_eq!(ends.client.handshake_kind() == resumed, ends.server.handshake_kind() == resumed);
        ends.client.send_close_notify();
        ends.server.handshake_kind() == resumed
    }

    #[test]
    fn sessions_are_resumed_across_new_identities_but_not_across_new_rules_for_clients() {
        let (directory, root) = (Directory::new(), Authority::new("Root"));
        let made = root.issue(leaf(&["a.example"]));
        let (chain, key) =
            (directory.write("chain.pem", made.chain()), directory.write("key.pem", made.key()));
        let list = directory.write("clients.crl", root.revocation_list(&[]));
        let clients = root.trust().crl_file(&list).expect("in order");
        let tls = ServerTls::new(Identity::from_files(&chain, &key).expect("in order"))
            .client_certificates(ClientCertificates::required(clients));
        let acceptor = acceptor(tls.clone());
        let mut params = leaf(&["client"]);
        params.serial_number = Some(7.into());
        let client = ClientTls::new().trust(root.trust()).identity(root.issue(params).identity());
        for versions in [Versions::Tls12And13, Versions::Tls13] {
            let connector = Connector::new(client.clone().versions(versions)).expect("in order");
            assert!(!is_resumed(&connector, &acceptor));
            assert!(is_resumed(&connector, &acceptor));
            assert!(is_resumed(&connector, &acceptor), "by the ticket of the second");
        }
        let connector = Connector::new(client).expect("in order");
        assert!(!is_resumed(&connector, &acceptor));
        let renewed = root.issue(leaf(&["a.example", "b.example"]));
        directory.write("chain.pem", renewed.chain());
        directory.write("key.pem", renewed.key());
        assert!(acceptor.reload().expect("in order"));
        assert!(is_resumed(&connector, &acceptor));

        directory.write("clients.crl", root.revocation_list(&[8]));
        assert!(acceptor.reload().expect("in order"));
        assert!(!is_resumed(&connector, &acceptor), "the list is new");
        assert!(is_resumed(&connector, &acceptor));
        directory.write("clients.crl", root.revocation_list(&[7]));
        assert!(acceptor.reload().expect("in order"));
        assert!(handshake(&connector, &acceptor, "a.example").is_err(), "revoked since");

        acceptor.replace(tls.client_certificates(ClientCertificates::off())).expect("in order");
        assert!(!is_resumed(&connector, &acceptor));
    }

    #[test]
    fn sessions_of_version_1_2_are_resumed_too() {
        let root = Authority::new("Root");
        let acceptor = acceptor(ServerTls::new(identity(&root, "a.example")));
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("a version")
            .with_root_certificates(root.trust().store())
            .with_no_client_auth();
        let connector = Connector::new(ClientTls::from_rustls(config.into())).expect("in order");
        assert!(!is_resumed(&connector, &acceptor) && is_resumed(&connector, &acceptor));
    }

    #[test]
    fn without_tickets_no_session_is_resumed() {
        let root = Authority::new("Root");
        let acceptor = acceptor(ServerTls::new(identity(&root, "a.example")).tickets(false));
        let connector = Connector::new(ClientTls::new().trust(root.trust())).expect("in order");
        assert!(!is_resumed(&connector, &acceptor) && !is_resumed(&connector, &acceptor));
    }

    #[test]
    fn a_configuration_of_rustls_is_used_with_its_secrets_to_be_had() {
        let root = Authority::new("Root");
        let mut config = rustls::ServerConfig::clone(
            &acceptor(ServerTls::new(identity(&root, "a.example"))).current().config,
        );
        (config.enable_secret_extraction, config.max_early_data_size) = (false, 1000);
        let tls = ServerTls::from_rustls(config.into())
            .handshake_within(Duration::from_secs(9))
            .tolerate_truncation();
        let acceptor = acceptor(tls);
        let side = acceptor.current();
        assert!(side.config.enable_secret_extraction && side.config.max_early_data_size == 0);
        assert!(side.tolerates_truncation && side.within == Duration::from_secs(9));
        assert_eq!(side.verification, Verification::Custom);
        assert!(!acceptor.reload().expect("there is nothing to read") && acceptor.files().is_empty());
        assert!(format!("{acceptor:?}").contains("of rustls"));
    }

    #[test]
    fn keys_are_logged_only_where_one_was_told_to() {
        let (directory, root) = (Directory::new(), Authority::new("Root"));
        let path = directory.path("keys.log");
        let acceptor = acceptor(ServerTls::new(identity(&root, "a.example")).key_log(&path));
        let connector = Connector::new(ClientTls::new().trust(root.trust())).expect("in order");
        handshake(&connector, &acceptor, "a.example").expect("they agree");
        let log = std::fs::read_to_string(&path).expect("it is there");
        assert!(log.lines().any(|line| line.starts_with("CLIENT_TRAFFIC_SECRET_0 ")), "{log}");
    }

    #[test]
    fn nothing_that_is_printed_holds_a_key() {
        let root = Authority::new("Root");
        let made = root.issue(leaf(&["a.example"]));
        let tls =
            ServerTls::new(made.identity()).client_certificates(ClientCertificates::optional(root.trust()));
        let printed = format!("{tls:?} {:?}", acceptor(tls.clone()));
        assert!(printed.contains("a.example") && printed.contains("Optional"), "{printed}");
        assert!(made.key().lines().all(|line| !printed.contains(line)));
    }
}
