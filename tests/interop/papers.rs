//! Certificates in files, as programs of others want them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use wharf::tls::{Identity, ServerTls};

use crate::common::tls::*;

/// A folder with certificates and keys, that goes with its test.
pub(crate) struct Papers(PathBuf);

/// The path of a certificate and that of its key.
pub(crate) type Pair = (String, String);

impl Papers {
    /// Has the certificate of the tests' authority in it, as `ca.pem`.
    pub(crate) fn new() -> Papers {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("wharf-interop-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let papers = Papers(folder);
        papers.write("ca.pem", AUTHORITY.pem());
        papers
    }

    pub(crate) fn folder(&self) -> String {
        self.0.to_str().unwrap().to_owned()
    }

    /// The path of a file in it.
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        std::fs::write(self.0.join(name), text).unwrap();
        self.path(name)
    }

    /// The certificate of whom all here trust.
    pub(crate) fn ca(&self) -> String {
        self.path("ca.pem")
    }

    /// A pair of `authority`'s for `name`.
    pub(crate) fn pair(&self, authority: &Authority, name: &str) -> Pair {
        let (chain, key) = authority.issue_for(&ecdsa_key(), name, |_| {});
        (self.write(&format!("{name}.pem"), chain), self.write(&format!("{name}.key"), key))
    }

    /// The usual server's pair.
    pub(crate) fn server(&self) -> Pair {
        self.pair(&AUTHORITY, NAME)
    }

    /// The same with an RSA key.
    pub(crate) fn rsa_server(&self) -> Pair {
        let (chain, key) = rsa();
        (self.write("rsa.pem", chain), self.write("rsa.key", key))
    }

    /// A client's pair that servers here trust.
    pub(crate) fn client(&self) -> Pair {
        self.pair(&AUTHORITY, "client.test")
    }

    /// A client's pair that nobody trusts.
    pub(crate) fn stranger(&self) -> Pair {
        self.pair(&Authority::new("Somebody"), "stranger.test")
    }
}

impl Drop for Papers {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// The server's side with the certificate that most have.
pub(crate) fn ecdsa_tls() -> ServerTls {
    let (chain, key) = AUTHORITY.issue_for(&ecdsa_key(), NAME, |_| {});
    ServerTls::new(Identity::from_pem(chain, key).unwrap())
}

fn ecdsa_key() -> rcgen::KeyPair {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

/// The server's side with an RSA certificate: the other half of TLS 1.2's suites.
pub(crate) fn rsa_tls() -> ServerTls {
    let (chain, key) = rsa();
    ServerTls::new(Identity::from_pem(chain, key).unwrap())
}

fn rsa() -> (String, String) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    AUTHORITY.issue_for(&key, NAME, |_| {})
}
