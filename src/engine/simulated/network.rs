//! The simulated network: its virtual clock, hosts, listeners and events. What a connection does with its bytes is in
//! `connection`.
//!
//! All that happens is an event in one list, ordered by time and then by the order of scheduling, and all that is
//! random comes from one generator. So a seed, together with what the workers do, fixes everything that follows.

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use fastrand::Rng;
use rustix::io::Errno;

use super::connection::{Connection, EndId};
use super::trace::Trace;
use super::{Faults, Simulated};
use crate::engine::Token;
use crate::time::Time;

/// A handle to one simulated network; clones are the same network.
#[derive(Clone)]
pub(crate) struct Network(Rc<RefCell<State>>);

impl Network {
    pub(crate) fn new(seed: u64, faults: Faults) -> Network {
        Network(Rc::new(RefCell::new(State::new(seed, faults))))
    }

    /// Changes how the network behaves from now on. What is on its way already arrives as it would have.
    pub(crate) fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    pub(crate) fn now(&self) -> Time {
        self.state().now
    }

    /// When the next event is due. It may turn out to change nothing, if it concerns a connection that is gone.
    pub(crate) fn next_event(&self) -> Option<Time> {
        self.state().events.first_key_value().map(|(&(at, _), _)| at)
    }

    /// Moves the clock to `to`, unless it is past that, and delivers everything due until then. The workers see it when
    /// they are turned next.
    pub(crate) fn advance(&self, to: Time) {
        self.state().advance(to);
    }

    /// An engine on the host `address`; several of them share its ports and descriptors.
    pub(crate) fn host(&self, address: IpAddr) -> Simulated {
        let engine = self.state().add_engine();
        Simulated::new(self.clone(), address, engine)
    }

    /// Starts to listen. Port 0 picks a free one; an unspecified address listens on every host.
    pub(crate) fn listen(&self, address: SocketAddr) -> io::Result<Listening> {
        Ok(self.state().listen(address)?)
    }

    /// Enters `name` into the host table.
    pub(crate) fn name(&self, name: &str, addresses: Vec<IpAddr>) {
        self.state().names.insert(name.to_owned(), addresses);
    }

    pub(crate) fn resolve(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.state().names.get(name).cloned()
    }

    /// A random number that follows from the seed.
    pub(crate) fn random(&self) -> u64 {
        self.state().rng.u64(..)
    }

    /// From now on nothing answers a connect to `address`, not even with a refusal.
    pub(crate) fn blackhole(&self, address: IpAddr) {
        self.state().blackholes.insert(address);
    }

    /// Sockets that somebody holds: connections until their `Closed` is told, and listeners. For leak checks.
    pub(crate) fn open_sockets(&self) -> usize {
        let state = self.state();
        state.hosts.values().map(|host| host.open).sum::<usize>() + state.listeners.len()
    }

    /// The latest lines of what happened.
    pub(crate) fn trace(&self) -> Vec<String> {
        self.state().trace.lines()
    }

    /// A hash over all lines since the start: equal hashes mean that the same happened at the same times.
    pub(crate) fn trace_hash(&self) -> u64 {
        self.state().trace.hash()
    }

    /// Appends a line of the layers above to the trace.
    pub(crate) fn note(&self, what: &str) {
        self.state().log(format_args!("{what}"));
    }

    /// The state, after everything that was dropped unclaimed is closed.
    pub(super) fn state(&self) -> RefMut<'_, State> {
        let mut state = self.0.borrow_mut();
        state.close_unclaimed();
        state
    }
}

/// A connected socket that no engine holds. It can travel between threads, so it only names the connection. Dropping it
/// closes the connection as dropping an OS socket would, when the network is used next.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(super) host: IpAddr,
    end: EndId,
    claim: Claim,
}

impl Endpoint {
    /// Hands the socket to an engine, which has to close it from then on.
    pub(super) fn adopt(mut self) -> EndId {
        self.claim.network = None;
        self.end
    }

    /// Closes the socket; with `reset` the peer is reset.
    pub(in crate::engine) fn refuse(mut self, reset: bool) {
        self.claim.socket = Unclaimed::End { end: self.end, host: self.host, reset };
    }
}

/// A listening socket that no engine holds. Dropping it stops listening, when the network is used next.
#[derive(Debug)]
pub(crate) struct Listening {
    id: u64,
    address: SocketAddr,
    claim: Claim,
}

impl Listening {
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Hands the socket to an engine, which has to close it from then on.
    pub(super) fn adopt(mut self) -> u64 {
        self.claim.network = None;
        self.id
    }
}

/// Tells the network about a socket that was dropped before an engine took it.
#[derive(Debug)]
struct Claim {
    socket: Unclaimed,
    /// Taken out when an engine adopts the socket.
    network: Option<Sender<Unclaimed>>,
}

#[derive(Copy, Clone, Debug)]
enum Unclaimed {
    End { end: EndId, host: IpAddr, reset: bool },
    Listener(u64),
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(network) = self.network.take() {
            // Fails only when the network is gone, and every socket with it.
            let _ = network.send(self.socket);
        }
    }
}

/// What is due at some time. An event for something that is gone meanwhile does nothing.
pub(super) enum Event {
    /// A connect reaches the listening side, for the first time or again.
    Syn {
        connection: u64,
        attempt: u32,
    },
    /// The answer reaches the connecting side.
    SynAck {
        connection: u64,
    },
    Data {
        to: EndId,
        bytes: Vec<u8>,
    },
    Fin {
        to: EndId,
    },
    Reset {
        to: EndId,
    },
    /// The application behind the peer has received so many bytes.
    Credit {
        to: EndId,
        bytes: usize,
    },
    /// An engine finishes something that it put off.
    Ready {
        engine: usize,
        ready: Ready,
    },
}

/// What an engine should look at.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ready {
    Slot(Token),
    Listener(u32),
}

/// What one engine should look at, in order and each once.
#[derive(Default)]
struct ReadyQueue {
    order: VecDeque<Ready>,
    members: BTreeSet<Ready>,
}

impl ReadyQueue {
    fn push(&mut self, ready: Ready) {
        if self.members.insert(ready) {
            self.order.push_back(ready);
        }
    }

    fn pop(&mut self) -> Option<Ready> {
        let ready = self.order.pop_front()?;
        self.members.remove(&ready);
        Some(ready)
    }
}

struct Host {
    /// Connections that count against `Faults::descriptors`.
    open: usize,
    next_port: u16,
}

struct Listener {
    address: SocketAddr,
    /// The engine and its number for this listener.
    holder: Option<(usize, u32)>,
    /// Connections that are not accepted yet.
    queue: VecDeque<u64>,
}

/// Everything a network consists of.
pub(super) struct State {
    pub(super) now: Time,
    pub(super) rng: Rng,
    pub(super) faults: Faults,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) blackholes: BTreeSet<IpAddr>,
    listeners: BTreeMap<u64, Listener>,
    events: BTreeMap<(Time, u64), Event>,
    hosts: BTreeMap<IpAddr, Host>,
    /// Who uses which port: listeners and connecting sides.
    ports: BTreeMap<u16, Vec<IpAddr>>,
    names: BTreeMap<String, Vec<IpAddr>>,
    engines: Vec<ReadyQueue>,
    trace: Trace,
    unclaimed: (Sender<Unclaimed>, Receiver<Unclaimed>),
    /// The number of the next event, connection or listener.
    next_id: u64,
}

impl State {
    fn new(seed: u64, faults: Faults) -> State {
        State {
            now: Time::ZERO,
            rng: Rng::with_seed(seed),
            faults,
            connections: BTreeMap::new(),
            listeners: BTreeMap::new(),
            blackholes: BTreeSet::new(),
            events: BTreeMap::new(),
            hosts: BTreeMap::new(),
            ports: BTreeMap::new(),
            names: BTreeMap::new(),
            engines: Vec::new(),
            trace: Trace::new(),
            unclaimed: mpsc::channel(),
            next_id: 0,
        }
    }

    // Events and chance.

    fn advance(&mut self, to: Time) {
        while let Some(event) = self.events.first_entry().filter(|event| event.key().0 <= to) {
            let ((at, _), event) = event.remove_entry();
            self.now = at;
            self.deliver(event);
        }
        self.now = self.now.max(to);
    }

    pub(super) fn schedule(&mut self, at: Time, event: Event) {
        let sequence = self.fresh_id();
        self.events.insert((at, sequence), event);
    }

    pub(super) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.f64() < probability
    }

    /// Whether an offer comes to nothing although there are bytes: an engine may receive without one, and a reader's call may be
    /// interrupted.
    pub(super) fn spares_offer(&mut self) -> bool {
        self.chance(self.faults.splits)
    }

    /// When something arrives that leaves now.
    pub(super) fn arrival(&mut self) -> Time {
        let (min, max) = (self.faults.delay_min.as_nanos(), self.faults.delay_max.as_nanos());
        let delay = self.rng.u128(min..=max);
        self.now.after(Duration::from_nanos(u64::try_from(delay).unwrap_or(u64::MAX)))
    }

    /// When something is over that could be over now.
    pub(super) fn completion_time(&mut self) -> Time {
        if self.chance(self.faults.late_completions) { self.arrival() } else { self.now }
    }

    /// Whether a send is put off to the next turn, and counts as sent.
    pub(super) fn hands_over(&mut self) -> bool {
        self.chance(self.faults.handed_sends)
    }

    pub(super) fn log(&mut self, what: fmt::Arguments<'_>) {
        self.trace.line(self.now, what);
    }

    // Engines.

    fn add_engine(&mut self) -> usize {
        self.engines.push(ReadyQueue::default());
        self.engines.len() - 1
    }

    /// Has the engine look at `ready`.
    pub(super) fn push_now(&mut self, engine: usize, ready: Ready) {
        self.engines[engine].push(ready);
    }

    /// Has the engine look at `ready` when it is `at`.
    pub(super) fn push_at(&mut self, at: Time, engine: usize, ready: Ready) {
        if at > self.now {
            self.schedule(at, Event::Ready { engine, ready });
        } else {
            self.push_now(engine, ready);
        }
    }

    pub(super) fn pop_ready(&mut self, engine: usize) -> Option<Ready> {
        self.engines[engine].pop()
    }

    #[cfg(test)]
    pub(super) fn ready(&self, engine: usize) -> impl Iterator<Item = Ready> + '_ {
        self.engines[engine].order.iter().copied()
    }

    // Hosts: descriptors and ports.

    /// Counts one more open connection on the host, if it may have one.
    pub(super) fn claim_descriptor(&mut self, host: IpAddr) -> Result<(), Errno> {
        let limit = self.faults.descriptors;
        let host = self.host(host);
        if host.open >= limit {
            return Err(Errno::MFILE);
        }
        host.open += 1;
        Ok(())
    }

    pub(super) fn release_descriptor(&mut self, host: IpAddr) {
        let host = self.host(host);
        debug_assert!(host.open > 0, "a descriptor was given back twice");
        host.open -= 1;
    }

    fn host(&mut self, address: IpAddr) -> &mut Host {
        self.hosts.entry(address).or_insert(Host { open: 0, next_port: PORT_MIN })
    }

    /// Takes the next free port of the ephemeral range.
    pub(super) fn claim_free_port(&mut self, address: IpAddr) -> Option<u16> {
        for _ in PORT_MIN..=u16::MAX {
            let host = self.host(address);
            let port = host.next_port;
            host.next_port = port.checked_add(1).unwrap_or(PORT_MIN);
            if self.claim_port(SocketAddr::new(address, port)) {
                return Some(port);
            }
        }
        None
    }

    /// Takes the port if nobody has it on an overlapping address.
    fn claim_port(&mut self, address: SocketAddr) -> bool {
        let users = self.ports.entry(address.port()).or_default();
        let ip = address.ip();
        let free = !users.iter().any(|&user| covers(user, ip) || covers(ip, user));
        if free {
            users.push(ip);
        }
        free
    }

    /// Takes the port for a connection to `peer`, though connections to others may have it too. A listener may not.
    pub(super) fn claim_source_port(&mut self, address: SocketAddr, peer: SocketAddr) -> Result<(), Errno> {
        let listens = |listener: &Listener| {
            listener.address.port() == address.port() && covers(listener.address.ip(), address.ip())
        };
        if self.listeners.values().any(listens) {
            return Err(Errno::ADDRINUSE);
        }
        if self.is_connected(address, peer) {
            return Err(Errno::ADDRNOTAVAIL);
        }
        self.ports.entry(address.port()).or_default().push(address.ip());
        Ok(())
    }

    pub(super) fn release_port(&mut self, address: SocketAddr) {
        if let Some(users) = self.ports.get_mut(&address.port())
            && let Some(place) = users.iter().position(|&user| user == address.ip())
        {
            users.remove(place);
        }
    }

    // Listeners.

    fn listen(&mut self, mut address: SocketAddr) -> Result<Listening, Errno> {
        if address.port() == 0 {
            address.set_port(self.claim_free_port(address.ip()).ok_or(Errno::ADDRINUSE)?);
        } else if !self.claim_port(address) {
            return Err(Errno::ADDRINUSE);
        }
        let id = self.fresh_id();
        self.listeners.insert(id, Listener { address, holder: None, queue: VecDeque::new() });
        self.log(format_args!("{address} listen"));
        Ok(Listening { id, address, claim: self.claim(Unclaimed::Listener(id)) })
    }

    /// Closes a listener; what it has queued is reset.
    pub(super) fn unlisten(&mut self, id: u64) {
        let Some(listener) = self.listeners.remove(&id) else {
            return;
        };
        self.release_port(listener.address);
        self.log(format_args!("{} unlisten", listener.address));
        for connection in listener.queue {
            self.close(EndId::server(connection), true);
        }
    }

    /// The listener for connects to `address`; one for exactly this address comes first.
    pub(super) fn listener_at(&self, address: SocketAddr) -> Option<u64> {
        let covering = self.listeners.iter().filter(|(_, listener)| {
            let own = listener.address;
            own.port() == address.port() && covers(own.ip(), address.ip())
        });
        covering.min_by_key(|(_, listener)| listener.address.ip().is_unspecified()).map(|(&id, _)| id)
    }

    pub(super) fn has_queued(&self, listener: u64) -> bool {
        self.listeners.get(&listener).is_some_and(|listener| !listener.queue.is_empty())
    }

    /// Says which engine accepts, and that it should look what is queued already.
    pub(super) fn hold_listener(&mut self, id: u64, engine: usize, number: u32) {
        if let Some(listener) = self.listeners.get_mut(&id) {
            debug_assert!(listener.holder.is_none(), "a listener has one owner");
            listener.holder = Some((engine, number));
            self.push_now(engine, Ready::Listener(number));
        }
    }

    /// Takes a listener from the engine that accepts; what is queued stays so.
    pub(super) fn release_listener(&mut self, id: u64) -> Option<Listening> {
        let listener = self.listeners.get_mut(&id)?;
        listener.holder = None;
        let address = listener.address;
        Some(Listening { id, address, claim: self.claim(Unclaimed::Listener(id)) })
    }

    pub(super) fn is_full(&self, listener: u64) -> bool {
        let listener = self.listeners.get(&listener);
        listener.is_some_and(|listener| listener.queue.len() >= self.faults.backlog)
    }

    pub(super) fn enqueue(&mut self, listener: u64, connection: u64) {
        let Some(listener) = self.listeners.get_mut(&listener) else {
            return;
        };
        listener.queue.push_back(connection);
        if let Some((engine, number)) = listener.holder {
            self.push_now(engine, Ready::Listener(number));
        }
    }

    /// Takes the oldest connection out of the queue for an engine on `host`; there has to be one.
    pub(super) fn accept(&mut self, listener: u64, host: IpAddr) -> Result<(Endpoint, SocketAddr), Errno> {
        if self.chance(self.faults.exhausted_accepts) {
            return Err(Errno::MFILE);
        }
        self.claim_descriptor(host)?;
        let queue = self.listeners.get_mut(&listener).map(|listener| &mut listener.queue);
        let connection = queue.and_then(VecDeque::pop_front).expect("the caller saw it queued");
        let end = EndId::server(connection);
        if self.chance(self.faults.aborted_accepts) {
            self.release_descriptor(host);
            self.close(end, true);
            return Err(Errno::CONNABORTED);
        }
        let (local, peer) = self.addresses(end).expect("a queued connection exists");
        self.log(format_args!("{local} accept {peer}"));
        Ok((Endpoint { host, end, claim: self.claim(Unclaimed::End { end, host, reset: false }) }, peer))
    }

    // Sockets that no engine holds.

    fn claim(&self, socket: Unclaimed) -> Claim {
        Claim { socket, network: Some(self.unclaimed.0.clone()) }
    }

    fn close_unclaimed(&mut self) {
        while let Ok(socket) = self.unclaimed.1.try_recv() {
            match socket {
                Unclaimed::Listener(id) => self.unlisten(id),
                Unclaimed::End { end, host, reset } => {
                    self.release_descriptor(host);
                    self.close(end, reset);
                }
            }
        }
    }
}

/// Whether a socket bound to `bound` takes what goes to `address`; as on Linux, `::` takes IPv4 too (ipv6(7)).
fn covers(bound: IpAddr, address: IpAddr) -> bool {
    bound == address || (bound.is_unspecified() && (bound.is_ipv6() || address.is_ipv4()))
}

/// The first ephemeral port (RFC 6335).
const PORT_MIN: u16 = 49152;
