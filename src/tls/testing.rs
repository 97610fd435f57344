//! Certificates, keys, revocation lists and files for tests, and handshakes in memory.

#![expect(clippy::needless_pass_by_value, reason = "what a certificate is made of is made for it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName,
    DnType, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use super::{Acceptor, ClientSide, Connector, Identity, Trust};

/// A certificate with those that issued it, and its key.
pub(super) struct Made {
    chain: String,
    ders: Vec<Vec<u8>>,
    key: KeyPair,
    key_text: String,
}

/// Somebody who issues certificates.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Those above, up to the root but without it.
    chain: Vec<(String, Vec<u8>)>,
}

/// What a certificate for these names is made of, valid from long ago for long.
pub(super) fn leaf(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names.clone()).expect("names");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names[0].as_str());
    params
}

pub(super) fn self_signed(params: CertificateParams) -> Made {
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate");
    Made::new(vec![(certificate.pem(), certificate.der().to_vec())], key)
}

impl Made {
    fn new(chain: Vec<(String, Vec<u8>)>, key: KeyPair) -> Made {
        let (texts, ders): (Vec<String>, _) = chain.into_iter().unzip();
        // One kind of line ends, so that lines can be counted.
        let chain = texts.concat().replace('\r', "");
        let key_text = key.serialize_pem().replace('\r', "");
        Made { chain, ders, key, key_text }
    }

    pub(super) fn chain(&self) -> &str {
        &self.chain
    }

    pub(super) fn chain_lines(&self) -> usize {
        self.chain.lines().count()
    }

    pub(super) fn chain_der(&self) -> &[Vec<u8>] {
        &self.ders
    }

    pub(super) fn key(&self) -> &str {
        &self.key_text
    }

    /// The SubjectPublicKeyInfo.
    pub(super) fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    pub(super) fn identity(&self) -> Identity {
        Identity::from_pem(self.chain(), self.key()).expect("they belong together")
    }
}

impl Authority {
    pub(super) fn new(name: &str) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(ca(name), key).expect("a certificate");
        Authority { issuer, chain: Vec::new() }
    }

    /// An authority of which this one is the issuer; its certificate has this serial number.
    pub(super) fn below(&self, name: &str, serial: u64) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = ca(name);
        params.serial_number = Some(SerialNumber::from(serial));
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).expect("a certificate");
        let mut chain = vec![(issuer.pem(), issuer.der().to_vec())];
        chain.extend(self.chain.iter().cloned());
        Authority { issuer, chain }
    }

    pub(super) fn issue(&self, params: CertificateParams) -> Made {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let mut chain = vec![(certificate.pem(), certificate.der().to_vec())];
        chain.extend(self.chain.iter().cloned());
        Made::new(chain, key)
    }

    pub(super) fn pem(&self) -> String {
        self.issuer.pem().replace('\r', "")
    }

    pub(super) fn trust(&self) -> Trust {
        Trust::from_pem(self.pem()).expect("a root")
    }

    /// A list of those who are revoked, by serial number; valid for long.
    pub(super) fn revocation_list(&self, serials: &[u64]) -> String {
        self.revocation_list_until(serials, 4000)
    }

    pub(super) fn revocation_list_until(&self, serials: &[u64], year: i32) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).and_then(|list| list.pem()).expect("a list").replace('\r', "")
    }
}

fn ca(name: &str) -> CertificateParams {
    let mut params = leaf(&[name]);
    params.subject_alt_names.clear();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A directory that is gone with this value.
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn new() -> Directory {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("wharf-tls-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Directory(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("a file");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(Path::new(&self.0));
    }
}

/// What came of a handshake in memory: both ends, or what failed at one of them.
pub(super) struct Ends {
    pub(super) client: ClientConnection,
    pub(super) server: ServerConnection,
}

#[derive(Debug)]
pub(super) enum Failed {
    Client(rustls::Error),
    Server(rustls::Error),
}

/// A handshake as `connector` and `acceptor` have it now, for the server `name` if no other is said.
pub(super) fn handshake(connector: &Connector, acceptor: &Acceptor, name: &str) -> Result<Ends, Failed> {
    let side: Arc<ClientSide> = connector.current();
    let name = side.server_name.clone().or_else(|| super::options::server_name(name)).expect("a name");
    handshake_of(&side.config, &acceptor.current().config, name)
}

fn handshake_of(
    client: &Arc<rustls::ClientConfig>,
    server: &Arc<rustls::ServerConfig>,
    name: ServerName<'static>,
) -> Result<Ends, Failed> {
    let mut client = ClientConnection::new(client.clone(), name).expect("a configuration in order");
    let mut server = ServerConnection::new(server.clone()).expect("a configuration in order");
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("memory takes all");
        }
        let mut given = bytes.as_slice();
        let mut is_quiet = given.is_empty();
        while !given.is_empty() {
            server.read_tls(&mut given).expect("memory gives all");
            server.process_new_packets().map_err(Failed::Server)?;
        }
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("memory takes all");
        }
        let mut given = bytes.as_slice();
        is_quiet &= given.is_empty();
        while !given.is_empty() {
            client.read_tls(&mut given).expect("memory gives all");
            client.process_new_packets().map_err(Failed::Client)?;
        }
        if is_quiet {
            return Ok(Ends { client, server });
        }
    }
}
