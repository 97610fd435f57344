//! Certificates for scenarios, made on the spot, and what servers and clients do with them.

use std::sync::LazyLock;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use wharf::Client;
use wharf::tls::{Acceptor, ClientTls, Connector, Identity, ServerTls, Trust};

/// The name of every server here.
pub(crate) const NAME: &str = "server.test";

/// An authority of the tests' own.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
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
        self.issue_for(&KeyPair::generate().expect("a key"), name, change)
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
        let (chain, key) = self.issue(name, |_| {});
        Identity::from_pem(chain.as_bytes(), key.as_bytes()).expect("a pair")
    }
}

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
