//! Which identity a server shows to whom: by the name that the client asks for.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::identity::Identity;
use super::options;
use crate::error::{Error, Result};

/// Which identity is for which name.
pub(super) struct Names {
    default: Identity,
    default_certified: Arc<CertifiedKey>,
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what is behind `*.`.
    stars: HashMap<String, Arc<CertifiedKey>>,
    refuses_unknown: bool,
}

impl Names {
    /// `default` is for those for whom there is no other, unless it refuses unknown names.
    pub(super) fn new(
        default: &Identity,
        others: &[(String, Identity)],
        refuses_unknown: bool,
    ) -> Result<Names> {
        let (mut exact, mut stars) = (HashMap::new(), HashMap::new());
        for (name, identity) in others {
            let lower = name.to_ascii_lowercase();
            let lower = lower.strip_suffix('.').unwrap_or(&lower);
            let (names, rest) = match lower.strip_prefix("*.") {
                Some(rest) => (&mut stars, rest),
                None => (&mut exact, lower),
            };
            if !options::is_dns_name(rest) {
                let problem = format!("`{name}` is neither a DNS name nor one behind `*.`");
                return Err(Error::option("identity_for", problem));
            }
            if names.insert(rest.to_owned(), identity.certified()).is_some() {
                return Err(Error::option("identity_for", format!("`{name}` has two identities")));
            }
        }
        let (default_certified, default) = (default.certified(), default.clone());
        Ok(Names { default_certified, default, exact, stars, refuses_unknown })
    }

    pub(super) fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = name else { return Some(self.default_certified.clone()) };
        let name = name.to_ascii_lowercase();
        let by_star = || name.split_once('.').and_then(|(_, rest)| self.stars.get(rest));
        if let Some(found) = self.exact.get(&name).or_else(by_star) {
            return Some(found.clone());
        }
        (!self.refuses_unknown || self.default.is_for(&name)).then(|| self.default_certified.clone())
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name())
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").field("exact", &self.exact.keys()).field("stars", &self.stars.keys()).finish()
    }
}
