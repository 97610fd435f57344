//! TLS of clients, `wharf connect` and `wharf cert check`: options, and what came of a handshake in words.

use std::path::PathBuf;

use wharf::tls::{Connector, Info, Verification};

use crate::args::Args;
use crate::exit::{self, Failure, note};
use crate::tls;
use crate::values;
use crate::x509::Facts;

/// Whom a client takes for the server.
#[derive(Debug, clap::Args)]
pub(crate) struct Trusting {
    /// Trust those in this file (PEM), and no longer those whom the system trusts. Several times for several files.
    #[arg(long, value_name = "FILE")]
    ca: Vec<PathBuf>,
    /// Have the server be this one, a DNS name or an address, in place of the host in ADDRESS.
    #[arg(long, value_name = "NAME")]
    servername: Option<String>,
    /// Agree on one of these protocols (ALPN), the first one first.
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',', value_parser = values::protocol)]
    alpn: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ClientTls {
    /// Speak TLS, with a server whose certificate is right.
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    trusting: Trusting,
    /// Show the certificate in this file (PEM) to a server that asks for one.
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The private key of --cert (PEM, not encrypted).
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Refuse a server with another public key than this: its SHA-256, hexadecimal or base64. Several times for several keys.
    #[arg(long, value_name = "HASH", value_parser = values::pin)]
    pin: Vec<[u8; 32]>,
    /// Refuse TLS 1.2.
    #[arg(long)]
    tls_13_only: bool,
    /// Accept every certificate: whoever is between can then read and change all. Only --pin is still looked at.
    #[arg(long)]
    insecure: bool,
}

impl ClientTls {
    /// What to connect to `server` with, if it is to be by TLS. Warns if that protects from nobody.
    pub(crate) fn connector(&self, server: &str) -> Result<Option<Connector>, Failure> {
        if let Some(problem) = self.problem() {
            Args::refuse(&problem);
        }
        if !self.tls {
            return Ok(None);
        }
        self.trusting.have_name(server);
        let mut tls = self.trusting.describe()?.versions(tls::versions(self.tls_13_only));
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            tls = tls.identity(tls::identity("--cert and --key", cert, key)?);
        }
        for pin in &self.pin {
            tls = tls.pin_public_key(*pin);
        }
        if self.insecure {
            let left = if self.pin.is_empty() {
                "anyone on the way can read and change everything"
            } else {
                "only the pinned key is looked at"
            };
            note(format_args!("warning: --insecure accepts every certificate: {left}"));
            tls = tls.danger_accept_any_certificate();
        }
        connector(tls).map(Some)
    }

    /// What makes no sense together, if anything does.
    fn problem(&self) -> Option<String> {
        let Trusting { ca, servername, alpn } = &self.trusting;
        if self.insecure && !ca.is_empty() {
            return Some(
                "--insecure and --ca exclude each other: either the certificate is looked at or not".into(),
            );
        }
        let plain = !self.tls;
        let needs = [
            ("--ca", !ca.is_empty() && plain, "--tls"),
            ("--servername", servername.is_some() && plain, "--tls"),
            ("--alpn", !alpn.is_empty() && plain, "--tls"),
            ("--cert", self.cert.is_some() && plain, "--tls"),
            ("--key", self.key.is_some() && plain, "--tls"),
            ("--pin", !self.pin.is_empty() && plain, "--tls"),
            ("--tls-13-only", self.tls_13_only && plain, "--tls"),
            ("--insecure", self.insecure && plain, "--tls"),
            ("--cert", self.cert.is_some() && self.key.is_none(), "--key"),
            ("--key", self.key.is_some() && self.cert.is_none(), "--cert"),
        ];
        let missing = needs.into_iter().find(|(_, is_missing, _)| *is_missing);
        missing.map(|(option, _, partner)| format!("{option} needs {partner}"))
    }
}

impl Trusting {
    /// Ends the process if nobody has said who the server is.
    pub(crate) fn have_name(&self, server: &str) {
        if server.starts_with("unix:") && self.servername.is_none() {
            Args::refuse(
                "TLS through a Unix socket needs --servername: its path says nothing of who the server is",
            );
        }
    }

    pub(crate) fn describe(&self) -> Result<wharf::tls::ClientTls, Failure> {
        let tls = self.describe_trusting_nobody();
        Ok(match tls::trust("--ca", &self.ca)? {
            Some(trust) => tls.trust(trust),
            None => tls,
        })
    }

    /// All but whom it trusts.
    pub(crate) fn describe_trusting_nobody(&self) -> wharf::tls::ClientTls {
        let tls = wharf::tls::ClientTls::new().alpn(&self.alpn);
        match &self.servername {
            Some(name) => tls.server_name(name),
            None => tls,
        }
    }
}

pub(crate) fn connector(tls: wharf::tls::ClientTls) -> Result<Connector, Failure> {
    Connector::new(tls).map_err(|error| {
        let text = error.to_string();
        match text.strip_prefix("start: option `server_name` ") {
            Some(problem) => Failure::Senseless(format!("--servername: {problem}")),
            None => Failure::Wharf(error),
        }
    })
}

/// What was agreed on.
pub(crate) fn agreed(info: &Info) -> String {
    let resumed = if info.is_resumed() { "resumed" } else { "not resumed" };
    format!("{}, {}, {}, {resumed}", info.version(), info.cipher(), protocol(info))
}

fn protocol(info: &Info) -> String {
    let name = info.alpn().map(|name| exit::printable(&String::from_utf8_lossy(name)));
    name.map_or(String::from("no ALPN"), |name| format!("ALPN {name}"))
}

/// Who the peer is, and how that is known.
pub(crate) fn peer(info: &Info) -> String {
    let subject = info.chain().next().map(|der| Facts::of(der).subject());
    let known = match info.verification() {
        Verification::Unasked => "not asked",
        Verification::Verified => "verified",
        Verification::Skipped => "NOT verified",
        _ => "by other rules",
    };
    format!("{}, {known}", subject.unwrap_or(String::from("no certificate")))
}
