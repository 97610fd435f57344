//! Who the servers of a run are, and what its clients trust: a certificate that is made for the run.

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};

use anyhow::{Context, Result, anyhow};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite};

use super::Suite;

/// A certificate for ECDSA on P-256, signed by its own key, and that key.
pub struct Credentials {
    pub chain: String,
    pub key: String,
}

/// Those of this run.
pub fn credentials() -> Result<&'static Credentials> {
    static OF_THIS_RUN: LazyLock<Result<Credentials>> = LazyLock::new(Credentials::new);
    OF_THIS_RUN.as_ref().map_err(|error| anyhow!("{error:#}"))
}

impl Credentials {
    fn new() -> Result<Credentials> {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed([Ipv4Addr::LOCALHOST.to_string()]).context("make a certificate")?;
        Ok(Credentials {
            chain: cert.pem(),
            key: signing_key.serialize_pem(),
        })
    }

    /// The reverse of [`Credentials::pem`].
    pub fn from_pem(pem: &str) -> Result<Credentials> {
        let (chain, key) = pem
            .find(KEY_BEGINS)
            .map(|place| pem.split_at(place))
            .context("no certificate and key on standard input")?;
        Ok(Credentials {
            chain: chain.to_owned(),
            key: key.to_owned(),
        })
    }

    /// The chain, and then the key.
    pub fn pem(&self) -> String {
        format!("{}{}", self.chain, self.key)
    }

    /// rustls's defaults on aws-lc-rs, with this certificate.
    pub fn server(&self) -> Result<ServerConfig> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate()?], key)?;
        Ok(config)
    }

    /// A client that trusts this certificate and wants TLS 1.3 with X25519. If it `resumes`, what it knows of earlier
    /// sessions is its own.
    pub fn trust(&self, suite: Suite, resumes: bool) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate()?)?;
        let provider = CryptoProvider {
            cipher_suites: suite.offered(),
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = if resumes {
            Resumption::in_memory_sessions(1)
        } else {
            Resumption::disabled()
        };
        Ok(Arc::new(config))
    }

    fn certificate(&self) -> Result<CertificateDer<'static>> {
        Ok(CertificateDer::from_pem_slice(self.chain.as_bytes())?)
    }
}

impl Suite {
    fn offered(self) -> Vec<SupportedCipherSuite> {
        match self {
            Suite::Aes256 => vec![cipher_suite::TLS13_AES_256_GCM_SHA384],
            Suite::Aes128 => vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
            Suite::Any => aws_lc_rs::DEFAULT_CIPHER_SUITES.to_vec(),
        }
    }
}

const KEY_BEGINS: &str = "-----BEGIN PRIVATE KEY-----";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_out_of_a_pipe_as_they_went_in() {
        let made = credentials().expect("they can be made");
        let read = Credentials::from_pem(&made.pem()).expect("there are both");
        assert_eq!((&read.chain, &read.key), (&made.chain, &made.key));
        read.server().expect("the key fits the certificate");
    }
}
