//! TLS of `wharf serve`: its options, and what they are to the library.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, value_parser};
use wharf::tls::{ClientCertificates, Identity, ServerTls, Trust, Versions};

use crate::exit::Failure;
use crate::values::{self, NamedIdentity, Names, Switch, Watch};

/// The heading of these options, all of which can change while a server with TLS runs.
pub(crate) const HEADING: &str = "TLS";
/// How often the files are looked at.
const WATCH: Watch = Watch(Some(Duration::from_secs(2)));
/// What has to be there for all else.
const IDENTITY: &str = "--tls-cert and --tls-key, or --tls-self-signed";

#[derive(Debug, Args)]
pub(crate) struct Tls {
    /// Speak TLS on all listeners, and show the certificate in this file (PEM: the server's own first, then those that issued it).
    /// It is shown to whoever asks for no name, or for one that no --tls-name is for. SIGHUP reads all files of TLS again.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert (PEM, not encrypted).
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Show another certificate to who asks for this name (SNI): a DNS name, or `*.example.com` for all with one label in the place
    /// of the star. Several times for several names.
    #[arg(long, value_name = "NAME=CERT:KEY")]
    tls_name: Vec<NamedIdentity>,
    /// In place of --tls-cert, make a certificate for these names, which nobody trusts who is not told to. What to tell clients is
    /// printed at the start: the fingerprint, and the pin of the key for `connect --pin`.
    #[arg(long, value_name = "NAME[,NAME]", default_missing_value = "localhost,127.0.0.1,::1")]
    #[arg(num_args = 0..=1, require_equals = true)]
    tls_self_signed: Option<Names>,
    /// Refuse clients without a certificate of those who are in this file (PEM). Several times for several files.
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Vec<PathBuf>,
    /// Let in clients without a certificate, too; one that is shown has to be right all the same. In a file:
    /// `tls-client-optional = on`.
    #[arg(long, value_name = "SWITCH", default_value = "off", default_missing_value = "on")]
    #[arg(num_args = 0..=1, require_equals = true)]
    tls_client_optional: Switch,
    /// Refuse clients whose certificate stands on the revocation list in this file (PEM or DER), or is on no list. Several times for
    /// several files.
    #[arg(long, value_name = "FILE")]
    tls_crl: Vec<PathBuf>,
    /// Agree on one of these protocols (ALPN), the first one first; clients that name others only are refused.
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',', value_parser = values::protocol)]
    alpn: Vec<String>,
    /// Refuse TLS 1.2. In a file: `tls-13-only = on`.
    #[arg(long, value_name = "SWITCH", default_value = "off", default_missing_value = "on")]
    #[arg(num_args = 0..=1, require_equals = true)]
    tls_13_only: Switch,
    /// How long a handshake may take as a whole [default: 5s].
    #[arg(long, value_name = "D", value_parser = values::duration)]
    tls_handshake: Option<Duration>,
    /// How many handshakes may be in progress at once [default: 4096].
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    tls_handshakes: Option<u32>,
    /// Staple the OCSP response in this file (DER) to --tls-cert.
    #[arg(long, value_name = "FILE")]
    tls_ocsp: Option<PathBuf>,
    /// Append the keys of all sessions to this file, for Wireshark. Who can read it can read the connections.
    #[arg(long, value_name = "FILE")]
    tls_key_log: Option<PathBuf>,
    /// Take a client's end without close_notify for an end in order: whoever is between can then cut its bytes short unnoticed. In a
    /// file: `tls-tolerate-truncation = on`.
    #[arg(long, value_name = "SWITCH", default_value = "off", default_missing_value = "on")]
    #[arg(num_args = 0..=1, require_equals = true)]
    tls_tolerate_truncation: Switch,
    /// Have no session resumed. In a file: `tls-no-tickets = on`.
    #[arg(long, value_name = "SWITCH", default_value = "off", default_missing_value = "on")]
    #[arg(num_args = 0..=1, require_equals = true)]
    tls_no_tickets: Switch,
    /// Look whether files of TLS have changed, so often, and read them again if so; or `off` [default: 2s]. A file that cannot be used
    /// is told, and what was in force stays.
    #[arg(long, value_name = "D")]
    tls_watch: Option<Watch>,
}

impl Tls {
    pub(crate) fn is_on(&self) -> bool {
        self.tls_cert.is_some() || self.tls_self_signed.is_some()
    }

    /// How often the files are looked at; `None` if never.
    pub(crate) fn watch(&self) -> Option<Duration> {
        self.tls_watch.unwrap_or(WATCH).0
    }

    /// The names of the certificate that is to be made, if one is.
    pub(crate) fn self_signed(&self) -> Option<&[String]> {
        self.tls_self_signed.as_ref().map(|names| names.0.as_slice())
    }

    /// What makes no sense together, if anything does.
    pub(crate) fn problem(&self) -> Option<String> {
        let no_ca = self.tls_client_ca.is_empty();
        if self.tls_cert.is_some() && self.tls_self_signed.is_some() {
            let problem = "--tls-cert and --tls-self-signed exclude each other: one certificate is the first";
            return Some(problem.into());
        }
        let needs = [
            ("--tls-cert", self.tls_cert.is_some() && self.tls_key.is_none(), "--tls-key"),
            ("--tls-key", self.tls_key.is_some() && self.tls_cert.is_none(), "--tls-cert"),
            ("--tls-ocsp", self.tls_ocsp.is_some() && self.tls_cert.is_none(), "--tls-cert and --tls-key"),
            ("--tls-client-optional", self.tls_client_optional.is_on() && no_ca, "--tls-client-ca"),
            ("--tls-crl", !self.tls_crl.is_empty() && no_ca, "--tls-client-ca"),
        ];
        let of_tls = [
            ("--tls-name", !self.tls_name.is_empty()),
            ("--tls-client-ca", !no_ca),
            ("--alpn", !self.alpn.is_empty()),
            ("--tls-13-only", self.tls_13_only.is_on()),
            ("--tls-handshake", self.tls_handshake.is_some()),
            ("--tls-handshakes", self.tls_handshakes.is_some()),
            ("--tls-key-log", self.tls_key_log.is_some()),
            ("--tls-tolerate-truncation", self.tls_tolerate_truncation.is_on()),
            ("--tls-no-tickets", self.tls_no_tickets.is_on()),
            ("--tls-watch", self.tls_watch.is_some()),
        ];
        let is_on = self.is_on();
        let of_tls = of_tls.map(|(option, is_given)| (option, is_given && !is_on, IDENTITY));
        let mut missing = needs.into_iter().chain(of_tls).filter(|(_, is_missing, _)| *is_missing);
        missing.next().map(|(option, _, partner)| format!("{option} needs {partner}"))
    }

    /// What the library has to know; `made` is the certificate of this server's own making. Reads the files.
    pub(crate) fn describe(&self, made: Option<&Identity>) -> Result<Option<ServerTls>, Failure> {
        let identity = match (&self.tls_cert, &self.tls_key, made) {
            (Some(cert), Some(key), _) => self.stapled(identity("--tls-cert and --tls-key", cert, key)?)?,
            (_, _, Some(made)) if self.tls_self_signed.is_some() => made.clone(),
            _ => return Ok(None),
        };
        let mut tls = ServerTls::new(identity)
            .client_certificates(self.clients()?)
            .alpn(&self.alpn)
            .versions(versions(self.tls_13_only.is_on()))
            .tickets(!self.tls_no_tickets.is_on());
        for NamedIdentity { name, cert, key } in &self.tls_name {
            tls = tls.identity_for(name, self::identity("--tls-name", cert, key)?);
        }
        if let Some(within) = self.tls_handshake {
            tls = tls.handshake_within(within);
        }
        if let Some(handshakes) = self.tls_handshakes {
            tls = tls.handshakes_max(handshakes as usize);
        }
        if let Some(path) = &self.tls_key_log {
            tls = tls.key_log(path);
        }
        if self.tls_tolerate_truncation.is_on() {
            tls = tls.tolerate_truncation();
        }
        Ok(Some(tls))
    }

    fn stapled(&self, identity: Identity) -> Result<Identity, Failure> {
        match &self.tls_ocsp {
            Some(path) => identity.ocsp_file(path).map_err(Failure::of_option("--tls-ocsp")),
            None => Ok(identity),
        }
    }

    fn clients(&self) -> Result<ClientCertificates, Failure> {
        let Some(mut trust) = trust("--tls-client-ca", &self.tls_client_ca)? else {
            return Ok(ClientCertificates::off());
        };
        for path in &self.tls_crl {
            trust = trust.crl_file(path).map_err(Failure::of_option("--tls-crl"))?;
        }
        Ok(match self.tls_client_optional {
            Switch::On => ClientCertificates::optional(trust),
            Switch::Off => ClientCertificates::required(trust),
        })
    }
}

/// An identity that `option` has named.
pub(crate) fn identity(option: &'static str, cert: &Path, key: &Path) -> Result<Identity, Failure> {
    Identity::from_files(cert, key).map_err(Failure::of_option(option))
}

/// Those in all of these files, which `option` has named; `None` without a file.
pub(crate) fn trust(option: &'static str, files: &[PathBuf]) -> Result<Option<Trust>, Failure> {
    let mut all: Option<Trust> = None;
    for file in files {
        let trust = Trust::from_file(file).map_err(Failure::of_option(option))?;
        all = Some(match all {
            Some(others) => others.and(trust),
            None => trust,
        });
    }
    Ok(all)
}

pub(crate) fn versions(is_13_only: bool) -> Versions {
    if is_13_only { Versions::Tls13 } else { Versions::Tls12And13 }
}
