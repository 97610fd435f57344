//! Which networks may connect at all: [`Access`].

use crate::address::Address;
use crate::network::Network;

/// Which networks may connect: all but those denied, or only those allowed. Default: all.
///
/// What is denied is refused, also if it lies within what is allowed. Peers on Unix sockets have no address and are not
/// concerned. Whoever is refused is closed or reset before anything else is spent on it.
///
/// ```
/// use wharf::{Access, Connection, Server};
///
/// let access = Access::default().allow(["127.0.0.0/8".parse()?]).deny(["127.0.0.66".parse()?]);
/// let server = Server::bind("127.0.0.1:0").access(access).start(|_: Connection| async { Ok(()) })?;
/// # server.stop().wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    allow: Vec<Network>,
    deny: Vec<Network>,
}

impl Access {
    /// Allows these networks, besides those allowed before, and no others.
    #[must_use]
    pub fn allow(mut self, networks: impl IntoIterator<Item = Network>) -> Access {
        self.allow.extend(networks);
        self
    }

    /// Denies these networks, besides those denied before.
    #[must_use]
    pub fn deny(mut self, networks: impl IntoIterator<Item = Network>) -> Access {
        self.deny.extend(networks);
        self
    }

    pub(crate) fn admits(&self, peer: &Address) -> bool {
        let Some(ip) = peer.ip() else { return true };
        let among = |networks: &[Network]| networks.iter().any(|network| network.contains(ip));
        !among(&self.deny) && (self.allow.is_empty() || among(&self.allow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ip: &str) -> Address {
        Address::Ip(std::net::SocketAddr::new(ip.parse().expect("an address"), 7))
    }

    fn network(text: &str) -> Network {
        text.parse().expect("a network")
    }

    #[test]
    fn everybody_may_come_unless_told_otherwise() {
        assert!(Access::default().admits(&at("192.0.2.1")));
        let denied = Access::default().deny([network("192.0.2.0/24")]);
        assert!(!denied.admits(&at("192.0.2.1")) && !denied.admits(&at("::ffff:192.0.2.1")));
        assert!(denied.admits(&at("198.51.100.1")) && denied.admits(&at("2001:db8::1")));
    }

    #[test]
    fn who_is_allowed_may_still_be_denied() {
        let access = Access::default().allow([network("10.0.0.0/8")]).deny([network("10.1.0.0/16")]);
        assert!(access.admits(&at("10.2.0.1")));
        assert!(!access.admits(&at("10.1.0.1")) && !access.admits(&at("192.0.2.1")));
        assert!(access.admits(&Address::Unix(crate::address::UnixName::unnamed())));
    }
}
