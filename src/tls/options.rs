//! What the options of servers and clients have in common: versions, protocols, names.

use std::fmt;
use std::path::{Path, PathBuf};

use rustls::SupportedProtocolVersion;
use rustls::pki_types::{DnsName, ServerName};
use rustls::version::{TLS12, TLS13};

use crate::error::{Error, Result};

/// Which versions of TLS a side speaks.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Versions {
    /// TLS 1.2 and 1.3: the default.
    #[default]
    Tls12And13,
    /// TLS 1.3 alone.
    Tls13,
}

impl Versions {
    pub(super) fn of_rustls(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
        match self {
            Versions::Tls12And13 => BOTH,
            Versions::Tls13 => &BOTH[..1],
        }
    }
}

pub(super) fn check_alpn(protocols: &[Vec<u8>]) -> Result<()> {
    // The length is one byte (RFC 7301, 3.1), that of the list two.
    if protocols.iter().any(|each| each.is_empty() || each.len() > 255) {
        return Err(Error::option("alpn", "must name protocols by 1 to 255 bytes each"));
    }
    if protocols.iter().map(|each| each.len() + 1).sum::<usize>() > usize::from(u16::MAX) {
        return Err(Error::option("alpn", "must not be longer than 65535 bytes"));
    }
    Ok(())
}

/// Protocols, to be printed.
pub(super) fn protocols(alpn: &[Vec<u8>]) -> Vec<String> {
    alpn.iter().map(|each| String::from_utf8_lossy(each).into_owned()).collect()
}

pub(super) fn is_dns_name(name: &str) -> bool {
    DnsName::try_from(name).is_ok()
}

/// A host as the name of a server: a DNS name, with or without the dot at its end, or an address, which may be in brackets.
pub(crate) fn server_name(host: &str) -> Option<ServerName<'static>> {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let plain = inner.unwrap_or_else(|| host.strip_suffix('.').unwrap_or(host));
    let name = ServerName::try_from(plain).ok()?;
    match (&name, inner) {
        (ServerName::DnsName(_), Some(_)) => None,
        _ => Some(name.to_owned()),
    }
}

/// Each of these paths once, in their order.
pub(super) fn each_once<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<PathBuf> {
    let mut once: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !once.iter().any(|each| each == path) {
            once.push(path.into());
        }
    }
    once
}

/// The error for what rustls does not take.
pub(super) fn unusable(error: impl fmt::Display) -> Error {
    Error::option("tls", format!("cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_name_is_a_dns_name_or_an_address() {
        for (host, name) in [
            ("example.com", "example.com"),
            ("example.com.", "example.com"),
            ("192.0.2.7", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
        ] {
            assert_eq!(server_name(host).map(|name| name.to_str().into_owned()).as_deref(), Some(name));
        }
        for host in
            ["", ".", "a b", "*.example.com", "[example.com]", "-a.example", "a..example", "ümlaut.example"]
        {
            assert_eq!(server_name(host), None, "{host}");
        }
    }

    #[test]
    fn a_protocols_name_has_bounds() {
        assert!(check_alpn(&[]).is_ok() && check_alpn(&[vec![b'x'; 255]]).is_ok());
        for protocols in [vec![vec![]], vec![vec![b'x'; 256]]] {
            let error = check_alpn(&protocols).expect_err("no such name");
            assert_eq!(error.to_string(), "start: option `alpn` must name protocols by 1 to 255 bytes each");
        }
    }
}
