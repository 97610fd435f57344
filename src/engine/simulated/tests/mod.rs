mod connecting;
mod sending;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;

use super::{Endpoint, Faults, Network, Simulated};
use crate::engine::buffer::{Outgoing, PiecePool};
use crate::engine::{
    ACCEPT_BUDGET, Completion, HANDED_MAX, Listener, ListenerId, RECEIVE_BUDGET, Socket, Submitted, Token,
};
use crate::time::Time;

const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
const LISTENER: ListenerId = ListenerId(7);

#[test]
fn many_bytes_come_back_intact_however_they_are_cut() {
    for seed in 0..20 {
        let faults = Faults::harsh().window(5000 + 1000 * seed as usize);
        let echoed = Echo::run(seed, faults, 100_000);
        assert_eq!(echoed.sent, echoed.received, "seed {seed}");
        assert_eq!(echoed.network.open_sockets(), 0, "seed {seed}");
    }
}

#[test]
fn a_seed_decides_all_that_happens() {
    for faults in [Faults::default(), Faults::harsh(), Faults::default().resets(0.05)] {
        let hash = |seed| Echo::run(seed, faults.clone(), 50_000).network.trace_hash();
        assert_eq!(hash(1), hash(1));
        assert_eq!(hash(2), hash(2));
        assert_ne!(hash(1), hash(2));
    }
}

#[test]
fn the_trace_tells_what_happened_when() {
    let network = Network::new(1, Faults::none());
    let pair = Pair::new(&network);
    network.note("connected");
    drop(pair);
    assert_eq!(
        network.trace(),
        [
            "0.000ms 10.0.0.1:80 listen",
            "0.050ms 10.0.0.2:49152>10.0.0.1:80 syn",
            "0.050ms 10.0.0.1:80 accept 10.0.0.2:49152",
            "0.100ms 10.0.0.1:80>10.0.0.2:49152 syn-ack",
            "0.100ms connected",
            "0.100ms 10.0.0.1:80 close",
            "0.100ms 10.0.0.1:80 unlisten",
            "0.100ms 10.0.0.2:49152 close",
        ]
    );
}

#[test]
fn a_stale_token_does_nothing() {
    let network = Network::new(1, Faults::none());
    let mut pair = Pair::new(&network);
    let stale = Token { generation: pair.token.generation + 1, ..pair.token };
    pair.client.receive(stale);
    pair.client.close(stale, true);
    assert!(pair.client.shutdown(stale).is_ok());
    assert!(pair.client.local_addr(stale).is_err());
    assert!(matches!(pair.client.send(stale, &mut pattern(5)), Submitted::Done(Err(_))));
    assert!(settle(&network, [&mut pair.client, &mut pair.server]).is_empty());
}

#[test]
fn one_turn_keeps_to_its_budgets() {
    let network = Network::new(1, Faults::none().splits(1.0));
    let mut pair = Pair::new(&network);
    pair.send_all(&network, 5_000);
    settle(&network, [&mut pair.client]);
    pair.server.receive(pair.token);
    assert_eq!(turn(&mut pair.server).len(), RECEIVE_BUDGET);
    assert!(pair.server.has_ready(), "the rest comes without another command");
    assert!(!turn(&mut pair.server).is_empty());
    pair.server.pause(pair.token);
    assert!(turn(&mut pair.server).is_empty(), "pause takes effect at once");

    pair.server.pause_accept(LISTENER);
    for index in 1..=ACCEPT_BUDGET as u32 + 1 {
        pair.client.connect(token(index), &pair.address.into(), None).expect("there are ports");
    }
    settle(&network, [&mut pair.client, &mut pair.server]);
    pair.server.resume_accept(LISTENER);
    assert_eq!(turn(&mut pair.server).len(), ACCEPT_BUDGET);
    assert_eq!(turn(&mut pair.server).len(), 1);
}

#[test]
fn names_resolve_to_what_was_entered() {
    let network = Network::new(1, Faults::none());
    network.name("server", vec![SERVER, CLIENT]);
    assert_eq!(network.resolve("server"), Some(vec![SERVER, CLIENT]));
    assert_eq!(network.resolve("nobody"), None);
}

#[test]
fn nothing_is_left_open_whatever_goes_wrong() {
    for seed in 0..200 {
        let faults = Faults::harsh().resets(0.02).refusals(0.1).aborted_accepts(0.1);
        let network = Echo::run(seed, faults.exhausted_accepts(0.1), 20_000).network;
        assert_eq!(network.open_sockets(), 0, "seed {seed}");
        assert_eq!(network.state().connections.len(), 0, "seed {seed}");
    }
}

/// Both sockets can travel between threads, as the operating system's do.
#[test]
fn sockets_without_an_engine_are_send() {
    fn is_send<T: Send>() {}
    is_send::<Endpoint>();
    is_send::<super::Listening>();
}

// What the tests are made of.

fn token(index: u32) -> Token {
    Token { index, generation: 1 }
}

/// Bytes that show where they were, with a period that no buffer size divides.
fn pattern_bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn pattern(len: usize) -> Outgoing {
    let mut outgoing = Outgoing::default();
    outgoing.push_owned(Bytes::from(pattern_bytes(len)));
    outgoing
}

fn listen(network: &Network, server: &mut Simulated) -> SocketAddr {
    let listening = network.listen(SocketAddr::new(SERVER, 80)).expect("the port is free");
    let address = listening.local_addr();
    server.listen(LISTENER, Listener::Simulated(listening)).expect("it is simulated");
    address
}

/// What one turn reports.
fn turn(engine: &mut Simulated) -> Vec<(usize, Completion)> {
    engine.wait(None).expect("it cannot fail");
    std::iter::from_fn(|| engine.next()).map(|completion| (0, completion)).collect()
}

/// Turns the engines and moves the clock until nothing happens any more; gives all completions to `handle`.
fn drive(
    network: &Network,
    engines: &mut [&mut Simulated],
    mut handle: impl FnMut(usize, &mut Simulated, Completion),
) {
    loop {
        for (number, engine) in engines.iter_mut().enumerate() {
            while engine.has_ready() || engine.has_handed() {
                let mut has_ready = engine.has_ready();
                engine.wait(None).expect("it cannot fail");
                while let Some(completion) = engine.next() {
                    has_ready = false;
                    handle(number, engine, completion);
                }
                assert!(!has_ready, "has_ready tells the truth");
            }
        }
        if engines.iter().any(|engine| engine.has_ready() || engine.has_handed()) {
            continue;
        }
        let Some(at) = network.next_event() else { return };
        network.advance(at);
    }
}

fn settle<const N: usize>(network: &Network, mut engines: [&mut Simulated; N]) -> Vec<(usize, Completion)> {
    let mut seen = Vec::new();
    drive(network, &mut engines, |number, _, completion| {
        seen.push((number, completion));
    });
    seen
}

fn bytes_received(seen: &[(usize, Completion)]) -> usize {
    let chunks = seen.iter().map(|(_, completion)| match completion {
        Completion::Received { chunk, .. } => chunk.len(),
        _ => 0,
    });
    chunks.sum()
}

fn failures(seen: &[(usize, Completion)]) -> Vec<(usize, i32)> {
    let failed = seen.iter().filter_map(|(number, completion)| match completion {
        Completion::Failed { error, .. } => Some((*number, error.raw_os_error()?)),
        _ => None,
    });
    failed.collect()
}

fn connect_results(seen: &[(usize, Completion)]) -> Vec<Option<i32>> {
    let results = seen.iter().filter_map(|(_, completion)| match completion {
        Completion::Connected { result, .. } => {
            Some(result.as_ref().err().and_then(std::io::Error::raw_os_error))
        }
        _ => None,
    });
    results.collect()
}

#[derive(Default)]
struct Accepted {
    endpoints: Vec<Endpoint>,
    failed: Vec<i32>,
}

fn endpoints(seen: Vec<(usize, Completion)>) -> Accepted {
    let mut accepted = Accepted::default();
    for (_, completion) in seen {
        match completion {
            Completion::Accepted { socket: Socket::Simulated(endpoint), .. } => {
                accepted.endpoints.push(*endpoint);
            }
            Completion::AcceptFailed { error, .. } => {
                accepted.failed.push(error.raw_os_error().expect("a system error"));
            }
            _ => {}
        }
    }
    accepted
}

/// A client and a server with one connection, both under the same token.
struct Pair {
    server: Simulated,
    client: Simulated,
    token: Token,
    address: SocketAddr,
}

impl Pair {
    fn new(network: &Network) -> Pair {
        let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
        let address = listen(network, &mut server);
        client.connect(token(0), &address.into(), None).expect("there are ports");
        let accepted = endpoints(settle(network, [&mut client, &mut server]));
        let [endpoint] = <[Endpoint; 1]>::try_from(accepted.endpoints).expect("one connection");
        server.open(token(0), Socket::Simulated(Box::new(endpoint))).expect("it was accepted");
        Pair { server, client, token: token(0), address }
    }

    /// Sends from the client what has to fit into the window.
    fn send_all(&mut self, network: &Network, len: usize) {
        let mut outgoing = pattern(len);
        while !outgoing.is_empty() {
            outgoing = self.send_some(network, outgoing).expect("the send has an end");
        }
    }

    /// Sends what goes, however the engine goes about it, and returns the rest; `None` if that has no end.
    fn send_some(&mut self, network: &Network, mut outgoing: Outgoing) -> Option<Outgoing> {
        let mut seen = Vec::new();
        match self.client.send(self.token, &mut outgoing) {
            Submitted::Done(result) => {
                outgoing.advance(result.expect("the peer is there"), &PiecePool::new());
                return Some(outgoing);
            }
            Submitted::Handed => {
                seen = turn(&mut self.client);
                if !seen.iter().any(|(_, completion)| matches!(completion, Completion::Bounced { .. })) {
                    return Some(outgoing);
                }
            }
            Submitted::InFlight => {}
        }
        seen.extend(settle(network, [&mut self.client]));
        seen.into_iter().find_map(|(_, completion)| match completion {
            Completion::Sent { mut outgoing, result, .. } => {
                outgoing.advance(result.expect("the peer is there"), &PiecePool::new());
                Some(*outgoing)
            }
            _ => None,
        })
    }
}

/// A client that sends a pattern and a server that sends it back; each closes when all is done or something broke.
struct Echo {
    network: Network,
    sent: Vec<u8>,
    received: Vec<u8>,
}

/// What a worker knows of its one connection.
#[derive(Default)]
struct Side {
    waiting: Outgoing,
    in_flight: bool,
    ended: bool,
    finished: bool,
}

impl Echo {
    fn run(seed: u64, faults: Faults, len: usize) -> Echo {
        let network = Network::new(seed, faults);
        let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
        let address = listen(&network, &mut server);
        client.connect(token(0), &address.into(), None).expect("there are ports");
        let mut sides = [Side { waiting: pattern(len), ..Side::default() }, Side::default()];
        let mut received = Vec::new();
        drive(&network, &mut [&mut client, &mut server], |number, engine, completion| {
            if let Completion::Received { chunk, .. } = &completion
                && number == 0
            {
                received.extend_from_slice(chunk);
            }
            sides[number].handle(engine, completion, number == 1);
        });
        drop(server);
        Echo { network, sent: pattern_bytes(len), received }
    }
}

impl Side {
    fn handle(&mut self, engine: &mut Simulated, completion: Completion, echoes: bool) {
        match completion {
            Completion::Accepted { socket, .. } => {
                engine.open(token(0), socket).expect("it was accepted");
                engine.receive(token(0));
            }
            Completion::AcceptFailed { listener, .. } => engine.resume_accept(listener),
            Completion::Connected { result: Ok(()), .. } => engine.receive(token(0)),
            Completion::Received { chunk, .. } if echoes => {
                let mut piece = Outgoing::default();
                piece.push_owned(Bytes::copy_from_slice(&chunk));
                self.waiting.append(&mut piece);
            }
            Completion::Received { .. } | Completion::HungUp { .. } | Completion::Closed { .. } => {}
            Completion::Readable { .. } | Completion::Woken => {}
            Completion::ReceiveEnded { .. } => self.ended = true,
            Completion::Sent { outgoing, result, .. } => {
                self.in_flight = false;
                self.sent(engine, *outgoing, result.ok());
            }
            Completion::Broken { .. } | Completion::Failed { .. } => self.finish(engine),
            Completion::Connected { .. } => self.finish(engine),
            Completion::Bounced { .. } => self.in_flight = true,
        }
        self.progress(engine, echoes);
    }

    fn progress(&mut self, engine: &mut Simulated, echoes: bool) {
        while !self.finished && !self.in_flight && !self.waiting.is_empty() {
            let mut outgoing = std::mem::take(&mut self.waiting);
            match engine.send(token(0), &mut outgoing) {
                Submitted::Done(result) => self.sent(engine, outgoing, result.ok()),
                Submitted::InFlight => self.in_flight = true,
                Submitted::Handed => {}
            }
        }
        if self.finished || self.in_flight || (echoes && !self.ended) {
            return;
        }
        // All is sent, unless it bounces; a connection that broke meanwhile is told by `Failed`.
        self.in_flight = engine.shutdown(token(0)).is_ok_and(|unsent| unsent > 0);
        if self.ended && !self.in_flight {
            self.finish(engine);
        }
    }

    fn sent(&mut self, engine: &mut Simulated, mut left: Outgoing, sent: Option<usize>) {
        match sent {
            Some(n) => {
                left.advance(n, &PiecePool::new());
                left.append(&mut self.waiting);
                self.waiting = left;
            }
            None => self.finish(engine),
        }
    }

    fn finish(&mut self, engine: &mut Simulated) {
        if !std::mem::replace(&mut self.finished, true) {
            engine.close(token(0), false);
        }
    }
}
