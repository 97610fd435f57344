//! Networks as users write them: [`Network`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

use crate::error::{Cause, Error, Operation, Result};

/// The IP addresses that begin with the same bits: `10.0.0.0/8`, `2001:db8::/32`, or one address, `::1`.
///
/// An IPv4 address is the same in IPv6's clothes (`::ffff:10.0.0.1`).
///
/// ```
/// use wharf::Network;
///
/// let network: Network = "10.0.0.0/8".parse()?;
/// assert!(network.contains("10.1.2.3".parse()?));
/// assert!(network.contains("::ffff:10.1.2.3".parse()?));
/// assert!(!network.contains("11.1.2.3".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Network(IpNet);

impl Network {
    /// Whether `address` is one of the network's.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

/// The network of one address.
impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Network {
        Network(address.to_canonical().into())
    }
}

impl FromStr for Network {
    type Err = Error;

    /// Reads `ADDRESS/BITS`, or an address alone.
    ///
    /// # Errors
    /// If it is neither, or the address has bits behind the prefix: whoever writes `10.1.0.0/8` may have meant another
    /// network.
    fn from_str(text: &str) -> Result<Network> {
        let wrong = |problem: String| Error::new(Operation::Parse, Cause::Address { problem }).at(text);
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr =
            address.parse().map_err(|_| wrong(format!("`{address}` is not an IP address")))?;
        let Some(bits) = bits else { return Ok(address.into()) };
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let is_number = !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = bits.parse::<u8>().ok().filter(|bits| is_number && *bits <= bits_max);
        let prefix =
            prefix.ok_or_else(|| wrong(format!("`{bits}` is not a number of bits (0 to {bits_max})")))?;
        let network = IpNet::new(address, prefix).map_err(|error| wrong(error.to_string()))?;
        if network.trunc().addr() != address {
            return Err(wrong(format!("the address has bits behind the prefix; write {}", network.trunc())));
        }
        Ok(Network(unmapped(network)))
    }
}

/// A network of mapped addresses as what it is, a network of IPv4 addresses.
fn unmapped(network: IpNet) -> IpNet {
    let mapped: Option<Ipv4Addr> = match network.addr() {
        IpAddr::V6(address) if network.prefix_len() >= 96 => address.to_ipv4_mapped(),
        _ => None,
    };
    let unmapped = mapped.and_then(|address| Ipv4Net::new(address, network.prefix_len() - 96).ok());
    unmapped.map_or(network, IpNet::V4)
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            return self.0.addr().fmt(f);
        }
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().expect(text)
    }

    #[test]
    fn a_network_has_the_addresses_that_begin_like_it() {
        for (of, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::10.1.2.3"),
            ("::ffff:10.0.0.0/104", "10.1.2.3", "11.1.2.3"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("::ffff:192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("::1", "::1", "::2"),
            ("2001:db8::/33", "2001:db8:7fff::", "2001:db8:8000::"),
            ("0.0.0.0/0", "255.255.255.255", "2001:db8::"),
            ("::/0", "2001:db8::", "10.0.0.1"),
        ] {
            assert!(network(of).contains(inside.parse().expect("an address")), "{inside} in {of}");
            assert!(!network(of).contains(outside.parse().expect("an address")), "{outside} in {of}");
        }
    }

    #[test]
    fn a_network_prints_as_it_is_read() {
        for text in ["10.0.0.0/8", "192.0.2.7", "::1", "2001:db8::/32", "0.0.0.0/0", "::/0"] {
            assert_eq!(network(text).to_string(), text);
        }
        assert_eq!(network("::ffff:10.0.0.0/104").to_string(), "10.0.0.0/8");
    }

    #[test]
    fn what_is_no_network_says_why() {
        for (text, problem) in [
            ("", "`` is not an IP address"),
            ("localhost", "`localhost` is not an IP address"),
            ("10.0.0/8", "`10.0.0` is not an IP address"),
            ("10.0.0.0/33", "`33` is not a number of bits (0 to 32)"),
            ("10.0.0.0/", "`` is not a number of bits (0 to 32)"),
            ("10.0.0.0/+8", "`+8` is not a number of bits (0 to 32)"),
            ("10.0.0.0/255.0.0.0", "`255.0.0.0` is not a number of bits (0 to 32)"),
            ("::/129", "`129` is not a number of bits (0 to 128)"),
            ("10.1.0.0/8", "the address has bits behind the prefix; write 10.0.0.0/8"),
        ] {
            let error = text.parse::<Network>().expect_err(text);
            assert_eq!(error.to_string(), format!("parse {text}: {problem}"));
        }
    }
}
