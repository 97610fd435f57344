//! A certificate in words. Nothing is verified here.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate, X509Name};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::exit::printable;
use crate::values::{base64, colons, date};

/// One that ends within this time is worth a warning: whoever renews every 90 days, as is usual, does so 30 days before.
const SOON: Duration = Duration::from_secs(21 * DAY);
const DAY: u64 = 86_400;

/// What there is to say about a certificate, in DER.
pub(crate) struct Facts<'a> {
    der: &'a [u8],
    /// `None` if it cannot be read.
    certificate: Option<X509Certificate<'a>>,
}

impl<'a> Facts<'a> {
    pub(crate) fn of(der: &'a [u8]) -> Facts<'a> {
        let certificate = X509Certificate::from_der(der).ok();
        Facts { der, certificate: certificate.filter(|(rest, _)| rest.is_empty()).map(|(_, it)| it) }
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.certificate.is_some()
    }

    pub(crate) fn subject(&self) -> String {
        self.certificate.as_ref().map_or_else(unreadable, |it| name(it.subject()))
    }

    /// Names of facts, and the facts.
    pub(crate) fn lines(&self, now: SystemTime) -> Vec<(&'static str, String)> {
        let mut lines = vec![("subject", self.subject())];
        if let Some(it) = &self.certificate {
            let (from, until) = self.validity();
            lines.push((
                "issuer",
                if it.subject() == it.issuer() { String::from("itself") } else { name(it.issuer()) },
            ));
            lines.push(("names", names(it)));
            lines.push(("valid", format!("{} to {}, {}", date(from), date(until), left(from, until, now))));
            lines.push(("key", key(it.public_key())));
            lines.push(("pin", base64(sha256(it.public_key().raw).as_ref())));
        }
        lines.push(("fingerprint", colons(sha256(self.der).as_ref())));
        lines
    }

    /// What is wrong with its time, or will be soon.
    pub(crate) fn warning(&self, now: SystemTime) -> Option<String> {
        self.certificate.as_ref()?;
        let (from, until) = self.validity();
        let problem = match until.duration_since(now) {
            Err(_) => format!("expired at {}", date(until)),
            Ok(_) if now < from => format!("is not valid before {}", date(from)),
            Ok(left) if left < SOON => {
                format!("expires in {} days, at {}", left.as_secs() / DAY, date(until))
            }
            Ok(_) => return None,
        };
        Some(format!("the certificate of {} {problem}", self.subject()))
    }

    fn validity(&self) -> (SystemTime, SystemTime) {
        let validity = self.certificate.as_ref().map(|it| it.validity());
        validity.map_or((SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH), |it| {
            (moment(it.not_before), moment(it.not_after))
        })
    }
}

fn unreadable() -> String {
    String::from("a certificate that cannot be read")
}

fn sha256(bytes: &[u8]) -> impl AsRef<[u8]> {
    digest(&SHA256, bytes)
}

fn name(name: &X509Name<'_>) -> String {
    match printable(&name.to_string()) {
        empty if empty.is_empty() => String::from("nobody"),
        name => name,
    }
}

/// What it is for: the subject alternative names.
fn names(certificate: &X509Certificate<'_>) -> String {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return String::from("none") };
    let each: Vec<_> = extension.value.general_names.iter().map(general_name).collect();
    if each.is_empty() { String::from("none") } else { each.join(", ") }
}

fn general_name(name: &GeneralName<'_>) -> String {
    match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
            printable(name)
        }
        GeneralName::IPAddress(bytes) => {
            address(bytes).map_or(String::from("a strange address"), |ip| ip.to_string())
        }
        GeneralName::DirectoryName(it) => self::name(it),
        _ => String::from("a name of another kind"),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn key(info: &SubjectPublicKeyInfo<'_>) -> String {
    let curve =
        || info.algorithm.parameters.as_ref().and_then(|it| it.as_oid().ok()).map(|it| it.to_id_string());
    match info.parsed() {
        Ok(PublicKey::RSA(rsa)) => {
            let modulus =
                rsa.modulus.iter().position(|byte| *byte != 0).map_or(&[][..], |at| &rsa.modulus[at..]);
            let unused = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
            format!("RSA, {} bits", modulus.len() * 8 - unused)
        }
        Ok(PublicKey::EC(_)) => match curve().as_deref() {
            Some("1.2.840.10045.3.1.7") => String::from("ECDSA, P-256"),
            Some("1.3.132.0.34") => String::from("ECDSA, P-384"),
            Some("1.3.132.0.35") => String::from("ECDSA, P-521"),
            _ => String::from("ECDSA, on another curve"),
        },
        _ => match info.algorithm.algorithm.to_id_string().as_str() {
            "1.3.101.112" => String::from("Ed25519"),
            "1.3.101.113" => String::from("Ed448"),
            other => format!("of another kind ({other})"),
        },
    }
}

fn moment(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

fn left(from: SystemTime, until: SystemTime, now: SystemTime) -> String {
    match until.duration_since(now) {
        Ok(_) if now < from => String::from("NOT YET"),
        Ok(left) => format!("{} days left", left.as_secs() / DAY),
        Err(_) => String::from("EXPIRED"),
    }
}
