//! Certificates for scenarios, made on the spot, and what servers and clients do with them.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, LazyLock, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, PKCS_ED25519, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use wharf::event::{self, Flow, Handler};
use wharf::tls::{Acceptor, ClientTls, Connector, Identity, Info, ServerTls, Trust};
use wharf::{Client, CloseReason, Connection, Result, Server, ServerEvent};

use super::Behaviour;
use super::behaviours::Echo;

/// The name of every server here.
pub(crate) const NAME: &str = "server.test";

/// An authority of the tests' own.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Authority(CertifiedIssuer::self_signed(params, key()).expect("a certificate"))
    }

    /// Its certificate, in PEM.
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Who believes it.
    pub(crate) fn trust(&self) -> Trust {
        Trust::from_pem(self.pem().as_bytes()).expect("a certificate")
    }

    /// A certificate and its key, in PEM, for `name`, changed as `change` says.
    pub(crate) fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        self.issue_for(&key(), name, change)
    }

    /// The same for a key that is there.
    pub(crate) fn issue_for(
        &self,
        key: &KeyPair,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String) {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        change(&mut params);
        let certificate = params.signed_by(key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// An identity for `name`.
    pub(crate) fn identity(&self, name: &str) -> Identity {
        self.identity_that(name, |_| {})
    }

    /// An identity for `name`, changed as `change` says.
    pub(crate) fn identity_that(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let (chain, key) = self.issue(name, change);
        Identity::from_pem(chain.as_bytes(), key.as_bytes()).expect("a pair")
    }

    /// Its list of revoked certificates, by their serial numbers, in PEM.
    pub(crate) fn revocation_list(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).and_then(|list| list.pem()).expect("a list")
    }

    /// What rustls itself needs to speak with its servers.
    pub(crate) fn config(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a root");
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .expect("versions that there are")
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

/// A key whose signatures are all of one length, so that with a seed a simulation has the same history in every run.
fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).expect("a key")
}

/// The two versions, each alone, as rustls names them.
pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// The authority that the usual server's certificate is of.
pub(crate) static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::new("Wharf's tests"));

/// The usual server's side, to be changed.
pub(crate) fn server_tls() -> ServerTls {
    static IDENTITY: LazyLock<Identity> = LazyLock::new(|| AUTHORITY.identity(NAME));
    ServerTls::new(IDENTITY.clone())
}

pub(crate) fn acceptor() -> Acceptor {
    Acceptor::new(server_tls()).expect("it can be used")
}

/// The usual client's side, to be changed.
pub(crate) fn client_tls() -> ClientTls {
    ClientTls::new().trust(AUTHORITY.trust()).server_name(NAME)
}

pub(crate) fn connector() -> Connector {
    Connector::new(client_tls()).expect("it can be used")
}

/// A client by TLS of the server at `address`.
pub(crate) fn client(address: impl std::fmt::Display) -> Client {
    Client::new(address).tls(&connector())
}

/// A client that speaks one version alone.
pub(crate) fn client_of_version(
    address: impl std::fmt::Display,
    version: &'static SupportedProtocolVersion,
) -> Client {
    let tls = ClientTls::from_rustls(AUTHORITY.config(&[version]).into()).server_name(NAME);
    Client::new(address).tls(&Connector::new(tls).expect("it can be used"))
}

/// A client whose TLS rustls does by itself, over a plain connection: it can do what ours never would.
pub(crate) struct ByHand {
    pub(crate) tls: ClientConnection,
    pub(crate) conn: Connection,
    /// What was received and not taken.
    pub(crate) received: Vec<u8>,
    /// Why it cannot go on.
    pub(crate) failure: Option<rustls::Error>,
}

impl ByHand {
    /// One that has not begun.
    pub(crate) fn over(conn: Connection, config: ClientConfig) -> ByHand {
        let name = NAME.try_into().expect("a name");
        let tls = ClientConnection::new(config.into(), name).expect("it can be used");
        ByHand { tls, conn, received: Vec::new(), failure: None }
    }

    /// One whose handshake is over, with the server at `address`.
    pub(crate) async fn connect(address: impl std::fmt::Display) -> ByHand {
        ByHand::connect_by(address, &TLS13).await
    }

    pub(crate) async fn connect_by(
        address: impl std::fmt::Display,
        version: &'static SupportedProtocolVersion,
    ) -> ByHand {
        let conn = Client::connect(address).await.expect("it can be reached");
        let mut hand = ByHand::over(conn, AUTHORITY.config(&[version]));
        hand.shake().await;
        hand
    }

    /// Shakes hands.
    pub(crate) async fn shake(&mut self) {
        while self.tls.is_handshaking() {
            self.push().await.expect("it can send");
            assert!(self.pull().await.expect("it can receive"), "the server ends: {:?}", self.failure);
        }
        self.push().await.expect("it can send");
    }

    /// What is to be sent.
    pub(crate) fn outgoing(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut bytes).expect("a vector takes all");
        }
        bytes
    }

    /// Sends what is to be sent.
    pub(crate) async fn push(&mut self) -> Result<()> {
        let bytes = self.outgoing();
        self.conn.send(&bytes).await
    }

    /// Receives something; says whether there was anything.
    pub(crate) async fn pull(&mut self) -> Result<bool> {
        let Some(chunk) = self.conn.recv_chunk().await? else { return Ok(false) };
        let mut bytes = &chunk[..];
        while !bytes.is_empty()
            && self.failure.is_none()
            && self.tls.read_tls(&mut bytes).is_ok_and(|n| n > 0)
        {
            match self.tls.process_new_packets() {
                Ok(state) => {
                    let mut plain = vec![0; state.plaintext_bytes_to_read()];
                    self.tls.reader().read_exact(&mut plain).expect("so much is there");
                    self.received.extend_from_slice(&plain);
                }
                Err(error) => self.failure = Some(error),
            }
        }
        Ok(true)
    }

    /// Sends `bytes`.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).expect("it takes all");
        self.push().await.expect("it can send");
    }

    /// Receives so many bytes.
    pub(crate) async fn recv(&mut self, len: usize) -> Vec<u8> {
        while self.received.len() < len {
            assert!(self.pull().await.expect("it can receive"), "the server ends: {:?}", self.failure);
        }
        self.received.drain(..len).collect()
    }

    /// Receives until the end; returns all that was not taken. Says also whether close_notify came.
    pub(crate) async fn recv_all(&mut self) -> (Vec<u8>, bool) {
        while self.pull().await.expect("it can receive") {}
        (std::mem::take(&mut self.received), self.peer_has_closed())
    }

    /// Whether close_notify came.
    pub(crate) fn peer_has_closed(&mut self) -> bool {
        self.tls.process_new_packets().is_ok_and(|state| state.peer_has_closed())
    }
}

/// The handshakes that failed on a server: why, and in words what exactly.
#[derive(Clone, Default)]
pub(crate) struct Failures(Arc<Mutex<Vec<(CloseReason, String)>>>);

impl Failures {
    pub(crate) fn watch(&self, server: Server) -> Server {
        let failures = self.clone();
        server.watch(move |event| {
            if let ServerEvent::HandshakeFailed { reason, detail, .. } = event {
                failures.0.lock().expect("nobody panics here").push((*reason, (*detail).to_owned()));
            }
        })
    }

    pub(crate) fn all(&self) -> Vec<(CloseReason, String)> {
        self.0.lock().expect("nobody panics here").clone()
    }

    pub(crate) fn reasons(&self) -> Vec<CloseReason> {
        self.all().into_iter().map(|(reason, _)| reason).collect()
    }
}

/// Says in a line what was agreed on, then sends back what it receives.
#[derive(Clone)]
pub(crate) struct Tell;

/// That line: `Tls13 h2 server.test new Unasked 0`.
pub(crate) fn agreed(info: Option<&Info>) -> String {
    let Some(info) = info else { return String::from("plain\n") };
    let alpn = String::from_utf8_lossy(info.alpn().unwrap_or(b"-")).into_owned();
    let kind = if info.is_resumed() { "resumed" } else { "new" };
    let (version, name) = (info.version(), info.server_name().unwrap_or("-"));
    format!("{version:?} {alpn} {name} {kind} {:?} {}\n", info.verification(), info.chain().len())
}

impl Behaviour for Tell {
    type Handler = Tell;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let line = agreed(conn.tls().as_ref());
        conn.send(line.as_bytes()).await?;
        Echo.run(conn).await
    }

    fn handler(self) -> Tell {
        self
    }
}

impl Handler for Tell {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        let line = agreed(conn.tls().as_ref());
        conn.send(line.as_bytes()).expect("an empty queue takes it");
        Flow::Continue
    }

    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        Echo.received(conn, bytes)
    }
}

/// Receives the line of [`Tell`].
pub(crate) async fn told(conn: &mut Connection) -> Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0; 1]);
    while line.last() != Some(&b'\n') {
        conn.recv_exact(&mut byte).await?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}
