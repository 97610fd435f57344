//! Who is trusted to tell other addresses than its own: [`ProxyProtocol`].

use std::time::Duration;

use crate::address::Address;
use crate::error::{Error, Result};
use crate::network::Network;

/// That connections come through proxies, which say in a header before the first byte whom they speak for (HAProxy's PROXY
/// protocol, versions 1 and 2).
///
/// Never is it guessed whether there is a header: a peer that is trusted has to send one, and one that is not trusted is
/// refused. So who can reach the port can neither lie about its address nor come without a proxy.
///
/// A handler begins when the header was read, and sees the bytes behind it. Its `peer_addr` is what the proxy told, and
/// `proxied` is all of it. Connections without a header, with a malformed one, or one that comes too late are reset, with
/// [`CloseReason::Proxy`](crate::CloseReason::Proxy) or
/// [`Deadline::ProxyHeader`](crate::Deadline::ProxyHeader) as the reason.
///
/// ```
/// use wharf::{Network, ProxyProtocol, Server};
///
/// let balancers: Network = "10.1.0.0/16".parse()?;
/// let server = Server::bind("0.0.0.0:7788").proxy_protocol(ProxyProtocol::from([balancers]));
/// # drop(server);
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    networks: Vec<Network>,
    pub(crate) within: Duration,
}

impl ProxyProtocol {
    /// Trusts the peers in these networks. A peer on a Unix socket is always trusted: who may connect to it, its file says.
    pub fn from(networks: impl IntoIterator<Item = Network>) -> ProxyProtocol {
        ProxyProtocol { networks: networks.into_iter().collect(), within: Duration::from_secs(5) }
    }

    /// Sets how long the header may take, as a whole and from the accept on. Default: 5 s.
    #[must_use]
    pub fn within(mut self, after: Duration) -> ProxyProtocol {
        self.within = after;
        self
    }

    /// Whether `peer` may speak for others.
    pub(crate) fn trusts(&self, peer: &Address) -> bool {
        peer.ip().is_none_or(|ip| self.networks.iter().any(|network| network.contains(ip)))
    }

    pub(crate) fn validate(&self) -> Result<()> {
        if self.within.is_zero() {
            return Err(Error::option("proxy_protocol", "must leave the header longer than zero"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;

    use super::*;
    use crate::address::UnixName;

    #[test]
    fn those_in_the_networks_are_trusted_and_those_on_unix_sockets() {
        let networks = ["10.0.0.0/8", "::1"].map(|text| text.parse().expect("a network"));
        let proxies = ProxyProtocol::from(networks);
        let ip = |text: &str| Address::Ip(text.parse::<SocketAddr>().expect("an address"));
        for peer in [ip("10.1.2.3:4"), ip("[::ffff:10.1.2.3]:4"), ip("[::1]:4")] {
            assert!(proxies.trusts(&peer), "{peer}");
        }
        for peer in [ip("11.1.2.3:4"), ip("[::2]:4"), ip("[::10.1.2.3]:4")] {
            assert!(!proxies.trusts(&peer), "{peer}");
        }
        assert!(proxies.trusts(&Address::Unix(UnixName::of_path(Path::new("/run/x.sock")))));
        assert!(!ProxyProtocol::from([]).trusts(&ip("10.1.2.3:4")));
    }
}
