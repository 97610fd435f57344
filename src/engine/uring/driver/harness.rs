//! A driver between a scripted kernel and a worker that checks the engine's contract: what the property tests and the fuzzer
//! drive.
//!
//! Received and sent bytes follow a fixed pattern, so that a lost, doubled or moved byte shows at once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;

use bytes::Bytes;
use rustix::io::Errno;

use super::super::buffers::Buffers;
use super::super::kernel::Key;
use super::super::ring::Sizes;
use super::super::scripted::{Scripted, SocketId};
use super::Driver;
use super::key::{Kind, NOBODY};
use crate::config::SocketOptions;
use crate::engine::buffer::{Chunk, Outgoing};
use crate::engine::{ACCEPT_BUDGET, Completion, Listener, ListenerId, Socket, Submitted, Token};
use crate::time::Time;

const SIZES: Sizes = Sizes { submissions: 8, completions: 16, buffers: 8, buffer_size: 192, window: 2 };
const SLOTS: usize = 5;
const LISTENER: ListenerId = ListenerId(1);
/// An engine that has not come to rest after so many turns never will.
const TURNS_MAX: usize = 2000;
/// What a socket has room for at first.
const ROOM: usize = 100;

/// One thing that can happen.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Step {
    kind: u8,
    amount: u8,
    /// Decides how the kernel goes about it; 0 decides nothing.
    choice: u8,
}

impl Step {
    /// Reads a step from three bytes.
    pub(crate) fn from_bytes(bytes: [u8; 3]) -> Step {
        Step { kind: bytes[0], amount: bytes[1], choice: bytes[2] }
    }
}

/// Drives an engine through `steps`, then to its end, checking everything after each step.
pub(crate) fn drive(steps: impl IntoIterator<Item = Step>) {
    let mut harness = Harness::new();
    for step in steps {
        if step.choice > 0 {
            harness.kernel.state().choices.push_back(step.choice);
        }
        if !harness.step(step.kind, usize::from(step.amount)) {
            return harness.drop_everything();
        }
        harness.check();
    }
    harness.end();
}

struct Harness {
    driver: Driver<Scripted>,
    kernel: Scripted,
    buffers: Rc<Buffers>,
    links: [Option<Link>; SLOTS],
    /// How often each slot was used.
    generations: [u32; SLOTS],
    /// Received chunks that somebody still reads, and where in the stream they start.
    chunks: VecDeque<(usize, Chunk)>,
    listening: Option<SocketId>,
    accept_paused: bool,
    accepted_in_turn: usize,
}

/// What the worker knows of a connection.
struct Link {
    token: Token,
    socket: SocketId,
    connected: bool,
    wanted: bool,
    peer_ended: bool,
    broken: bool,
    hung_up: bool,
    ended: bool,
    half_broken: bool,
    failed: bool,
    /// A failure was told in any way.
    told: bool,
    shut: bool,
    closing: Option<bool>,
    arrived: usize,
    received: usize,
    /// Bytes given to the engine, without those that came back.
    given: usize,
    in_flight: Option<usize>,
    handed: usize,
}

fn stretch(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|n| (n % 251) as u8).collect()
}

impl Harness {
    fn new() -> Harness {
        let (kernel, buffers) = Scripted::new(SIZES);
        let driver = Driver::new(kernel.clone(), buffers.clone()).expect("an engine");
        Harness {
            driver,
            kernel,
            buffers,
            links: Default::default(),
            generations: [0; SLOTS],
            chunks: VecDeque::new(),
            listening: None,
            accept_paused: false,
            accepted_in_turn: 0,
        }
    }

    /// Takes a step; `false` if the engine is to be dropped as it is.
    fn step(&mut self, kind: u8, amount: usize) -> bool {
        let slot = amount % SLOTS;
        match kind % 29 {
            0..=2 => self.turn(),
            3 => {
                self.accepted_in_turn = 0;
                self.driver.spin(Time::ZERO).expect("it spins");
                self.handle(usize::MAX);
            }
            4 => self.handle(amount % 4),
            5 => {
                let (fd, id) = self.kernel.socket();
                self.open(slot, Socket::Os(fd), id);
            }
            6 => self.connect(slot),
            7 | 8 => self.with_link(slot, |link, driver, _| {
                link.wanted = true;
                driver.receive(link.token);
            }),
            9 => self.with_link(slot, |link, driver, _| {
                link.wanted = false;
                driver.pause(link.token);
            }),
            10 => self.with_link(slot, |link, _, kernel| link.arrives(amount, kernel)),
            11 => self.with_link(slot, |link, _, kernel| link.arrives(100 * amount, kernel)),
            12 => self.driver.expect_sends(if amount.is_multiple_of(2) { 100 } else { 1 }),
            13 | 14 => self.with_link(slot, |link, driver, kernel| link.send(amount, driver, kernel)),
            15 => self.with_link(slot, |link, driver, kernel| link.send_now(amount, driver, kernel)),
            16 => self.with_link(slot, Link::shutdown),
            17 => self.with_link(slot, |link, driver, _| {
                link.closing = Some(amount % 2 == 1);
                driver.close(link.token, amount % 2 == 1);
            }),
            18 => self.with_link(slot, |link, _, kernel| {
                if !link.broken {
                    link.peer_ended = true;
                    kernel.peer_ends(link.socket);
                }
            }),
            19 => self.with_link(slot, |link, _, kernel| {
                if link.connected {
                    link.broken = true;
                    kernel.breaks(link.socket, Errno::CONNRESET);
                }
            }),
            20 => self.with_link(slot, |link, _, kernel| kernel.makes_room(link.socket, amount)),
            21 => self.with_link(slot, |link, _, kernel| {
                let result = if amount >= 200 { Err(Errno::CONNREFUSED) } else { Ok(()) };
                kernel.connects(link.socket, result);
            }),
            22 => self.listeners(amount),
            23 => drop(self.chunks.pop_front()),
            24 => self.kernel.state().enter_fails.push_back([Errno::INTR, Errno::BUSY][amount % 2]),
            25 => self.kernel.state().submits_at_most = Some(amount % 8),
            26 => self.rings(if amount < 128 { Kind::Wake } else { Kind::Alarm }, amount.is_multiple_of(2)),
            27 => self.stale(slot),
            _ => return amount != 255,
        }
        true
    }

    fn open(&mut self, slot: usize, socket: Socket, id: SocketId) {
        if self.links[slot].is_some() {
            return;
        }
        let token = self.next_token(slot);
        self.driver.open(token, socket).expect("it opens");
        self.kernel.state().fill_up(id);
        self.kernel.makes_room(id, ROOM);
        self.links[slot] = Some(Link::new(token, id, true));
    }

    fn connect(&mut self, slot: usize) {
        if self.links[slot].is_some() {
            return;
        }
        let token = self.next_token(slot);
        let peer: SocketAddr = "127.0.0.1:1".parse().expect("an address");
        self.driver.connect(token, &peer.into(), &SocketOptions::default()).expect("it begins to connect");
        let fd = self.driver.connections[slot].as_ref().expect("it has a slot").socket.as_raw_fd();
        let id = self.kernel.made(fd);
        self.links[slot] = Some(Link::new(token, id, false));
    }

    fn next_token(&mut self, slot: usize) -> Token {
        self.generations[slot] += 1;
        Token { index: slot as u32, generation: self.generations[slot] }
    }

    /// Does something with a connection that is not closed.
    fn with_link(&mut self, slot: usize, act: impl FnOnce(&mut Link, &mut Driver<Scripted>, &Scripted)) {
        if let Some(link) = self.links[slot].as_mut().filter(|link| link.closing.is_none()) {
            act(link, &mut self.driver, &self.kernel);
        }
    }

    fn listeners(&mut self, amount: usize) {
        match (amount % 7, self.listening) {
            (0, None) => {
                let (fd, id) = self.kernel.listener();
                self.driver.listen(LISTENER, Listener::Os(fd)).expect("it listens");
                (self.listening, self.accept_paused) = (Some(id), false);
            }
            (1, Some(_)) => {
                self.driver.pause_accept(LISTENER);
                self.accept_paused = true;
            }
            (2, Some(_)) => {
                self.driver.resume_accept(LISTENER);
                self.accept_paused = false;
            }
            (3, Some(_)) if amount > 200 => {
                assert!(self.driver.unlisten(LISTENER).is_some());
                self.listening = None;
            }
            (6, _) => {
                let waited = self.listening.map(|id| self.kernel.waiting(id));
                let accepted = self.driver.accept_now(LISTENER);
                let is_told = accepted.as_ref().is_ok_and(Option::is_none);
                assert!(is_told || waited > Some(0), "nobody is made up");
            }
            (4, Some(id)) => self.kernel.knocks(id, Some([Errno::MFILE, Errno::INTR][amount / 6 % 2])),
            (_, Some(id)) => (0..amount).for_each(|_| self.kernel.knocks(id, None)),
            _ => {}
        }
    }

    fn rings(&mut self, kind: Kind, more: bool) {
        let key = Key::new(kind, NOBODY);
        if self.kernel.is_in_flight(key) {
            self.kernel.completes(key, 1, more, None);
        }
    }

    /// Commands with a token of the past do nothing.
    fn stale(&mut self, slot: usize) {
        let Some(generation) = self.generations[slot].checked_sub(1) else { return };
        let token = Token { index: slot as u32, generation };
        self.driver.receive(token);
        self.driver.pause(token);
        self.driver.close(token, true);
        assert!(self.driver.send_now(token, b"stale").is_err());
        assert!(matches!(self.driver.send(token, &mut outgoing(0, 5)), Submitted::Done(Err(_))));
    }

    fn turn(&mut self) {
        self.accepted_in_turn = 0;
        self.driver.wait(Some(Time::ZERO)).expect("it waits");
        self.handle(usize::MAX);
    }

    fn handle(&mut self, most: usize) {
        for _ in 0..most {
            let Some(completion) = self.driver.next() else { return };
            self.handle_one(completion);
        }
    }

    fn handle_one(&mut self, completion: Completion) {
        match completion {
            Completion::Woken => {}
            Completion::Accepted { listener, socket, .. } => {
                assert_eq!(listener, LISTENER);
                assert!(self.listening.is_some() && !self.accept_paused, "nothing is accepted unasked");
                self.accepted_in_turn += 1;
                assert!(self.accepted_in_turn <= ACCEPT_BUDGET, "a listener gets no more than its share");
                let Socket::Os(fd) = &socket else { panic!("a socket of the system") };
                let id = self.kernel.id(fd.as_raw_fd());
                if let Some(slot) = self.links.iter().position(Option::is_none) {
                    self.open(slot, socket, id);
                }
            }
            Completion::AcceptFailed { .. } => {
                assert!(self.listening.is_some() && !self.accept_paused, "nothing is accepted unasked");
                self.accept_paused = true;
            }
            Completion::Connected { token, result } => {
                let link = self.link(token);
                assert!(!link.connected && !link.failed && link.closing.is_none(), "connected once");
                (link.connected, link.failed, link.told) = (result.is_ok(), result.is_err(), result.is_err());
            }
            Completion::Received { token, chunk } => {
                let link = self.link(token);
                assert!(link.may_receive(), "received only while somebody wants to");
                assert!(!chunk.is_empty());
                assert_eq!(&chunk[..], stretch(link.received, chunk.len()), "received in order");
                let start = link.received;
                link.received += chunk.len();
                self.chunks.push_back((start, chunk));
            }
            Completion::Readable { .. } => panic!("what came is in a buffer already"),
            Completion::HungUp { token } => {
                let link = self.link(token);
                assert!(link.connected && link.closing.is_none() && !link.failed, "of one that stands");
                assert!(!link.half_broken, "that would be no news");
                assert!(link.peer_ended || link.broken, "the peer has ended");
                assert!(!link.ended && !link.hung_up, "once, and before the end");
                link.hung_up = true;
            }
            Completion::ReceiveEnded { token } => {
                let link = self.link(token);
                assert!(link.may_receive(), "the end comes once, while somebody wants it");
                assert!(link.peer_ended || link.broken, "the peer has ended");
                assert!(link.received == link.arrived, "the end comes after all data");
                link.ended = true;
            }
            Completion::Broken { token, .. } => {
                let link = self.link(token);
                assert!(link.broken && !link.failed && !link.half_broken, "a failure is told once by itself");
                assert!(!link.ended, "something may be left");
                (link.half_broken, link.told) = (true, true);
            }
            Completion::Failed { token, .. } => {
                let link = self.link(token);
                assert!(link.broken && !link.failed && !link.half_broken, "a failure is told once by itself");
                (link.failed, link.told) = (true, true);
            }
            Completion::Sent { token, outgoing, result } => self.link(token).sent(&outgoing, result.ok()),
            Completion::Bounced { token, unsent } => self.link(token).bounced(unsent),
            Completion::Closed { token, outgoing } => {
                self.link(token);
                let link = self.links[token.index as usize].take().expect("it was there");
                link.closed(outgoing.as_deref(), &self.kernel);
            }
        }
    }

    /// Whom something is told about.
    fn link(&mut self, token: Token) -> &mut Link {
        let link = self.links[token.index as usize].as_mut().expect("nothing is told after the close");
        assert_eq!(link.token, token, "nothing is told of the past");
        link
    }

    fn check(&mut self) {
        for (start, chunk) in &self.chunks {
            assert_eq!(&chunk[..], stretch(*start, chunk.len()), "a chunk stays as it is while it is held");
        }
        for link in self.links.iter().flatten() {
            let sent = self.kernel.sent(link.socket);
            assert!(sent.len() <= link.given, "no more is sent than was given");
            assert_eq!(sent, stretch(0, sent.len()), "sent in order");
            let is_open = self.kernel.closed(link.socket).is_none();
            assert!(is_open || link.closing.is_some(), "nobody else closes");
        }
        let published = self.kernel.provided() + self.driver.arrived_buffers();
        assert_eq!(usize::from(self.buffers.published()), published, "the kernel has what is published");
    }

    /// Lets a healthy kernel do its part until nothing happens any more, and looks for what was forgotten.
    fn settle(&mut self) {
        self.chunks.clear();
        {
            let mut state = self.kernel.state();
            state.choices.clear();
            state.enter_fails.clear();
            state.submits_at_most = None;
        }
        for link in self.links.iter().flatten() {
            self.kernel.makes_room(link.socket, 1 << 20);
        }
        for _ in 0..TURNS_MAX {
            let sleeps = self.kernel.state().sleeps;
            self.accepted_in_turn = 0;
            self.driver.wait(None).expect("it waits");
            self.handle(usize::MAX);
            self.chunks.clear();
            self.check();
            if self.kernel.state().sleeps > sleeps {
                return self.check_at_rest();
            }
        }
        panic!("it never comes to rest");
    }

    fn check_at_rest(&mut self) {
        for link in self.links.iter().flatten() {
            assert!(link.closing.is_none(), "every close is told");
            if !link.connected {
                continue;
            }
            if link.may_receive() {
                assert_eq!(link.received, link.arrived, "everything is received");
                assert!(!link.peer_ended && !link.broken, "every end is told");
            }
            if link.peer_ended && !link.ended && !link.told {
                assert!(link.hung_up, "an end that nobody receives is told");
            }
            if link.broken {
                assert!(link.told || link.ended, "every failure is told");
            }
            if !link.failed {
                assert_eq!(link.in_flight, None, "every send comes back");
                assert!(link.told || self.kernel.sent(link.socket).len() == link.given, "everything is sent");
            }
        }
        if let Some(id) = self.listening {
            assert!(self.accept_paused || self.kernel.waiting(id) == 0, "everybody is accepted");
        }
    }

    fn end(mut self) {
        self.settle();
        for slot in 0..SLOTS {
            self.with_link(slot, |link, driver, _| {
                link.closing = Some(false);
                driver.close(link.token, false);
            });
        }
        self.settle();
        assert!(self.links.iter().all(Option::is_none), "every close is told");
        let (waker, alarm) = (Key::new(Kind::Wake, NOBODY), Key::new(Kind::Alarm, NOBODY));
        let mut left = self.kernel.in_flight();
        left.retain(|key| *key != waker && *key != alarm && key.kind() != Some(Kind::Accept));
        assert_eq!(left, [], "no request is left when all are closed");
        self.drop_everything();
    }

    fn drop_everything(mut self) {
        // The time that it takes is not tested here.
        self.kernel.state().choices.clear();
        drop(self.driver);
        assert!(!self.kernel.state().abandoned, "all requests end");
        assert_eq!(self.kernel.in_flight(), [], "no request outlives the engine");
        assert_eq!(self.kernel.open_descriptors(), 0, "no descriptor outlives the engine");
        for (start, chunk) in self.chunks.drain(..) {
            assert_eq!(&chunk[..], stretch(start, chunk.len()), "chunks do outlive it");
        }
        let idle = usize::from(self.buffers.published()) + self.buffers.free();
        assert_eq!(idle, usize::from(self.buffers.count()), "every buffer came back");
    }
}

fn outgoing(from: usize, len: usize) -> Outgoing {
    let mut outgoing = Outgoing::default();
    let bytes = Bytes::from(stretch(from, len));
    // In one piece, or in two.
    let cut = if len.is_multiple_of(3) { len / 2 } else { 0 };
    outgoing.push_owned(bytes.slice(..cut));
    outgoing.push_owned(bytes.slice(cut..));
    outgoing
}

impl Link {
    fn new(token: Token, socket: SocketId, connected: bool) -> Link {
        Link {
            token,
            socket,
            connected,
            wanted: false,
            peer_ended: false,
            broken: false,
            hung_up: false,
            ended: false,
            half_broken: false,
            failed: false,
            told: false,
            shut: false,
            closing: None,
            arrived: 0,
            received: 0,
            given: 0,
            in_flight: None,
            handed: 0,
        }
    }

    fn may_receive(&self) -> bool {
        self.connected && self.wanted && !self.ended && !self.failed && self.closing.is_none()
    }

    fn may_send(&self) -> bool {
        let stands = self.connected && !self.failed && !self.half_broken;
        stands && !self.shut && self.in_flight.is_none() && self.closing.is_none()
    }

    fn arrives(&mut self, n: usize, kernel: &Scripted) {
        if self.connected && !self.peer_ended && !self.broken {
            kernel.arrives(self.socket, &stretch(self.arrived, n));
            self.arrived += n;
        }
    }

    fn send(&mut self, n: usize, driver: &mut Driver<Scripted>, _: &Scripted) {
        let n = n.max(1);
        if !self.may_send() {
            return;
        }
        let mut outgoing = outgoing(self.given, n);
        match driver.send(self.token, &mut outgoing) {
            Submitted::Done(result) => {
                assert_eq!(outgoing.len(), n, "it stays with the caller");
                self.told |= result.is_err();
                assert!(result.is_ok() || self.broken);
                self.given += result.unwrap_or(0);
            }
            Submitted::InFlight => {
                assert!(outgoing.is_empty());
                (self.given, self.in_flight) = (self.given + n, Some(n));
            }
            Submitted::Handed => {
                assert!(outgoing.is_empty());
                (self.given, self.handed) = (self.given + n, self.handed + n);
            }
        }
    }

    fn send_now(&mut self, n: usize, driver: &mut Driver<Scripted>, _: &Scripted) {
        if self.may_send() {
            let result = driver.send_now(self.token, &stretch(self.given, n));
            self.told |= result.is_err();
            assert!(result.is_ok() || self.broken);
            // Few bytes may have been handed over.
            let n = result.unwrap_or(0);
            (self.given, self.handed) = (self.given + n, self.handed + n);
        }
    }

    fn shutdown(&mut self, driver: &mut Driver<Scripted>, kernel: &Scripted) {
        if !self.may_send() {
            return;
        }
        match driver.shutdown(self.token) {
            Ok(0) => {
                self.shut = true;
                assert!(self.broken || kernel.sent(self.socket).len() == self.given, "FIN is the last");
            }
            Ok(unsent) => self.bounced(unsent),
            Err(_) => self.told = true,
        }
    }

    fn bounced(&mut self, unsent: usize) {
        assert!(
            (1..=self.handed).contains(&unsent),
            "only what was handed over bounces: {unsent} of {}",
            self.handed
        );
        self.handed = 0;
        self.in_flight = Some(self.in_flight.unwrap_or(0) + unsent);
    }

    fn sent(&mut self, outgoing: &Outgoing, result: Option<usize>) {
        assert!(self.closing.is_none(), "after a close its send comes with the end");
        self.check_returned(outgoing);
        assert!(result.is_some() || self.broken);
        self.told |= result.is_none();
        self.given -= outgoing.len() - result.unwrap_or(0);
        self.in_flight = None;
    }

    fn check_returned(&self, outgoing: &Outgoing) {
        assert_eq!(self.in_flight, Some(outgoing.len()), "what was in flight comes back");
        let mut bytes = VecDeque::new();
        outgoing.copy_to(&mut bytes, usize::MAX);
        assert_eq!(Vec::from(bytes), stretch(self.given - outgoing.len(), outgoing.len()), "as it was");
    }

    fn closed(&self, outgoing: Option<&Outgoing>, kernel: &Scripted) {
        assert!(self.closing.is_some(), "only what was closed is closed");
        assert_eq!(kernel.closed(self.socket), self.closing, "in the way that was asked for");
        match outgoing {
            Some(outgoing) => self.check_returned(outgoing),
            None => assert_eq!(self.in_flight, None, "what was in flight comes back"),
        }
        let sent = kernel.sent(self.socket);
        assert_eq!(sent, stretch(0, sent.len()), "sent in order");
        let least = self.given - self.in_flight.unwrap_or(0);
        let complete = (least..=self.given).contains(&sent.len());
        assert!(complete || self.broken, "what counts as sent was sent");
    }
}
