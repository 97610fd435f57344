//! The way of a connect, as a client's options describe it: what both styles of connecting have in common, but no waiting.

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Client;
use super::connect::Progress;
use super::proxy::Proxy;
use super::race::interleave;
use super::state::ConnectState;
use crate::address::Address;
use crate::config::SocketOptions;
use crate::endpoint::{Endpoint, Host, local};
use crate::error::{Cause, CloseReason, Error, Operation, Result, is_network};
use crate::resolve;

/// Between two tries to connect to a Unix socket whose backlog is full.
pub(super) const FULL_RETRY: Duration = Duration::from_millis(5);

/// The proxy is asked for so many addresses of a name at most. Each that is left shortens what the one before may take.
const ASKED_MAX: usize = 4;

/// One of the places that a connect may lead to.
#[derive(Clone)]
pub(super) struct Candidate {
    /// To whom this side connects.
    pub(super) peer: Address,
    /// What the proxy there is asked for, if this side has looked that up.
    pub(super) asked: Option<SocketAddr>,
}

/// Where a connect goes.
pub(super) struct Way {
    /// Whom the user wants.
    pub(super) target: Endpoint,
    /// To whom this side connects: the proxy, or the target.
    hop: Endpoint,
    /// Whether the proxy is asked for the target's addresses, and not for its name.
    looks_target_up: bool,
    /// Of each socket, its local address among them.
    pub(super) sockets: SocketOptions,
}

impl Way {
    /// The way that `client` wants.
    pub(super) fn of(client: &Client) -> Result<Way> {
        client.validate()?;
        let target = Endpoint::parse(Operation::Connect, &client.address)?;
        let hop = match &client.proxy {
            Some(proxy) => {
                proxy.check(&target)?;
                proxy.endpoint().clone()
            }
            None => target.clone(),
        };
        let resolves_here = client.proxy.as_ref().is_some_and(Proxy::resolves_here);
        let looks_target_up = resolves_here && matches!(target.host, Host::Name(_));
        let mut sockets = client.sockets.clone();
        sockets.source = client.source.as_deref().map(local).transpose()?;
        Ok(Way { target, hop, looks_target_up, sockets })
    }

    /// The first step of it.
    pub(super) fn first_step(&self) -> ConnectState {
        if self.looks_target_up {
            return ConnectState::Resolving;
        }
        match &self.hop.host {
            Host::Unix(name) => ConnectState::Connecting(Address::Unix(name.clone())),
            _ => match self.hop.literal() {
                Some(address) => ConnectState::Connecting(Address::Ip(address)),
                None => ConnectState::Resolving,
            },
        }
    }

    /// What it may lead to, in the order in which that is tried. `simulated` knows the names of a simulation.
    pub(super) async fn candidates(
        &self,
        client: &Client,
        progress: &Progress,
        simulated: impl Fn(&str) -> Option<Vec<IpAddr>>,
    ) -> Result<Vec<Candidate>> {
        let failed = |cause| Error::new(Operation::Connect, cause).at(progress.target(client));
        let found = find(&self.hop, client, progress, &simulated).await;
        let peers = of_source(found.map_err(failed)?, self.sockets.source)?;
        if !self.looks_target_up {
            return Ok(peers.into_iter().map(|peer| Candidate { peer, asked: None }).collect());
        }
        let found = find(&self.target, client, progress, &simulated).await.map_err(failed)?;
        let asked: Vec<_> = found.iter().filter_map(Address::socket).take(ASKED_MAX).collect();
        Ok(pairs(&peers, &asked))
    }

    /// What the proxy is asked for at a candidate.
    pub(super) fn asked(&self, candidate: &Candidate) -> Cow<'_, Endpoint> {
        match candidate.asked {
            Some(asked) => Cow::Owned(Endpoint { host: Host::Ip(asked.ip()), port: asked.port() }),
            None => Cow::Borrowed(&self.target),
        }
    }
}

/// Each of the proxy's addresses with each that it is asked for. If one of the proxy's is dead, the next one is asked for the same. A proxy
/// with so many addresses that all would be too much loses some of them, so that each of the target's has its turn.
fn pairs(peers: &[Address], asked: &[SocketAddr]) -> Vec<Candidate> {
    let peers = &peers[..peers.len().min(resolve::ADDRESSES_MAX / asked.len().max(1))];
    let to = |asked| peers.iter().map(move |peer| Candidate { peer: peer.clone(), asked: Some(asked) });
    asked.iter().copied().flat_map(to).collect()
}

/// The addresses of `endpoint`, in the order in which they are tried.
async fn find(
    endpoint: &Endpoint,
    client: &Client,
    progress: &Progress,
    simulated: &impl Fn(&str) -> Option<Vec<IpAddr>>,
) -> Result<Vec<Address>, Cause> {
    let name = match &endpoint.host {
        Host::Unix(name) => return Ok(vec![Address::Unix(name.clone())]),
        Host::Ip(_) | Host::Scoped(_) => {
            return Ok(endpoint.literal().into_iter().map(Address::Ip).collect());
        }
        Host::Name(name) => name,
    };
    progress.tell(ConnectState::Resolving);
    let resolver = client.resolver.as_ref().map(|resolver| resolver.0.clone());
    let found = match (simulated(name), resolver) {
        (None, resolver) => resolve::lookup(name, endpoint.port, resolver).await?,
        (Some(_), Some(resolver)) => resolve::ask(&*resolver, name, endpoint.port)?,
        (Some(found), None) => resolve::found(name, endpoint.port, found)?,
    };
    Ok(interleave(found).into_iter().map(Address::Ip).collect())
}

/// Those of the addresses that can be reached from the local one.
fn of_source(mut addresses: Vec<Address>, source: Option<SocketAddr>) -> Result<Vec<Address>> {
    let Some(source) = source else { return Ok(addresses) };
    if addresses.iter().any(|address| address.unix().is_some()) {
        return Err(Error::option("bind", "is for IP addresses; a Unix socket has no local one"));
    }
    addresses.retain(|address| address.socket().is_some_and(|each| each.is_ipv4() == source.is_ipv4()));
    if addresses.is_empty() {
        let [own, other] = if source.is_ipv4() { ["IPv4", "IPv6"] } else { ["IPv6", "IPv4"] };
        let problem =
            format!("is an {own} address ({}), and there are only {other} ones to connect to", source.ip());
        return Err(Error::option("bind", problem));
    }
    Ok(addresses)
}

/// An engine may tell at once what another one tells later: it is told in the same words.
pub(super) fn at_once(error: io::Error) -> Cause {
    match error.kind() {
        kind if error.raw_os_error().is_some() && is_network(kind) => Cause::Os(kind.into()),
        _ => Cause::Os(error),
    }
}

/// What a connection that ended before it was ready is told as.
pub(super) fn refusal(reason: CloseReason) -> Cause {
    match reason {
        CloseReason::Network(kind) => Cause::Os(kind.into()),
        CloseReason::PeerReset => Cause::Os(ErrorKind::ConnectionReset.into()),
        reason => Cause::Closed(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_addresses_a_proxy_has_it_is_asked_for_each_of_the_targets() {
        let ports =
            |from: u16, count| (from..from + count).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        for proxies in 0..=20 {
            for targets in 0..=ASKED_MAX as u16 {
                let peers: Vec<_> = ports(1, proxies).map(Address::Ip).collect();
                let asked: Vec<_> = ports(100, targets).collect();
                let pairs = pairs(&peers, &asked);
                assert!(pairs.len() <= resolve::ADDRESSES_MAX);
                let begun = pairs.iter().filter(|pair| Some(&pair.peer) == peers.first());
                let begun: Vec<_> = begun.filter_map(|pair| pair.asked).collect();
                assert!(proxies == 0 || begun == asked, "{proxies} and {targets}: {begun:?}");
            }
        }
    }
}
