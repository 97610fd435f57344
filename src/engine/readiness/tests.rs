//! Receptions that are offered to a reader: what becomes of them whatever the reader and the peer do meanwhile.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags};
use socket2::SockRef;

use super::*;

const TOKEN: Token = Token { index: 0, generation: 7 };
/// What the reader has room for.
const ROOM: usize = 4096;
/// Nothing takes that long.
const PATIENCE: Duration = Duration::from_secs(20);

/// An engine with one connection, whose receptions are offered.
struct Scene {
    engine: Readiness,
    /// The engine's socket once more, to see what has reached it without asking the engine.
    beside: OwnedFd,
    peer: Option<TcpStream>,
    buf: [u8; ROOM],
}

impl Scene {
    fn new() -> Scene {
        let listener = TcpListener::bind("127.0.0.1:0").expect("it binds");
        let peer = TcpStream::connect(listener.local_addr().expect("it has one")).expect("it connects");
        let (socket, _) = listener.accept().expect("it waits");
        socket.set_nonblocking(true).expect("it can be");
        let socket = OwnedFd::from(socket);
        let beside = socket.try_clone().expect("a descriptor");
        let mut engine = Readiness::new().expect("readiness works everywhere");
        engine.open(TOKEN, Socket::Os(socket)).expect("it is connected");
        engine.receive(TOKEN);
        engine.offer(TOKEN, true);
        Scene { engine, beside, peer: Some(peer), buf: [0; ROOM] }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.peer.as_mut().expect("it is there").write_all(bytes).expect("it fits the kernel's buffer");
    }

    /// Waits until the kernel has something for a read, be it an end. What was there before has to be read.
    fn await_readable(&self) {
        let mut polled = [PollFd::new(&self.beside, PollFlags::IN)];
        let patience = PATIENCE.try_into().expect("it is not that long");
        assert_eq!(rustix::event::poll(&mut polled, Some(&patience)).expect("it waits"), 1);
    }

    /// What the engine reports next, in whichever turn.
    fn next(&mut self) -> Completion {
        let end = self.engine.now().after(PATIENCE);
        loop {
            assert!(self.engine.now() < end, "it will never be");
            self.engine.wait(Some(end)).expect("it waits");
            if let Some(completion) = self.engine.next() {
                return completion;
            }
        }
    }

    fn await_offer(&mut self) {
        let completion = self.next();
        assert!(matches!(completion, Completion::Readable { token: TOKEN }), "{completion:?}");
        let more = self.engine.next();
        assert!(more.is_none(), "an offer stands until the next wait: {more:?}");
    }

    /// Takes an offer of as much as fits the buffer, which leaves it open whether there is more: there will be another.
    fn fill_buffer(&mut self) {
        self.send(&[b'x'; ROOM]);
        let mut filled = 0;
        while filled < ROOM {
            self.await_offer();
            let taken = self.engine.receive_now(TOKEN, &mut self.buf[filled..]);
            filled += taken.map_or(0, |(n, rest)| n + rest.map_or(0, |rest| rest.len()));
        }
        self.await_offer();
    }
}

#[test]
fn an_offer_is_taken_once() {
    let mut scene = Scene::new();
    scene.send(b"hello");
    scene.await_offer();
    let (n, rest) = scene.engine.receive_now(TOKEN, &mut scene.buf).expect("it was offered");
    assert_eq!((&scene.buf[..n], rest.is_none()), (&b"hello"[..], true));
    scene.send(b"again");
    scene.await_readable();
    assert!(scene.engine.receive_now(TOKEN, &mut scene.buf).is_none(), "this was not");
    scene.await_offer();
}

#[test]
fn what_nobody_takes_is_received_by_the_engine() {
    let mut scene = Scene::new();
    scene.send(b"hello");
    scene.await_offer();
    let completion = scene.next();
    let Completion::Received { chunk, .. } = completion else { panic!("{completion:?}") };
    assert_eq!(&chunk[..], b"hello");
    assert!(scene.engine.receive_now(TOKEN, &mut scene.buf).is_none(), "the offer does not stand any more");
}

#[test]
fn what_is_declined_is_received_in_the_same_turn() {
    let mut scene = Scene::new();
    scene.send(b"hello");
    scene.await_offer();
    scene.engine.offer(TOKEN, false);
    let completion = scene.engine.next();
    let Some(Completion::Received { chunk, .. }) = completion else { panic!("{completion:?}") };
    assert_eq!(&chunk[..], b"hello");
}

#[test]
fn what_is_larger_than_the_readers_buffer_is_received_by_the_engine_the_next_time() {
    let mut scene = Scene::new();
    scene.fill_buffer();
    scene.send(&[b'x'; 2 * ROOM]);
    // As much as has arrived: nothing of it may be there yet, and then there is another offer.
    while scene.engine.receive_now(TOKEN, &mut scene.buf[..1]).is_none_or(|(_, rest)| rest.is_none()) {
        scene.await_offer();
    }
    scene.send(b"more");
    let completion = scene.next();
    assert!(matches!(completion, Completion::Received { .. }), "{completion:?}");
}

#[test]
fn a_paused_connection_receives_nothing() {
    let mut scene = Scene::new();
    scene.send(b"hello");
    scene.await_offer();
    scene.engine.pause(TOKEN);
    assert!(scene.engine.receive_now(TOKEN, &mut scene.buf).is_none());
    scene.engine.receive(TOKEN);
    scene.await_offer();
}

#[test]
fn an_end_in_an_offers_place_is_the_engines_to_tell() {
    let mut scene = Scene::new();
    scene.fill_buffer();
    drop(scene.peer.take());
    scene.await_readable();
    assert!(scene.engine.receive_now(TOKEN, &mut scene.buf).is_none());
    let completion = scene.next();
    assert!(matches!(completion, Completion::ReceiveEnded { token: TOKEN }), "{completion:?}");
}

/// Has a reader meet a reset in an offer's place.
fn reset_in_an_offers_place() -> Scene {
    let mut scene = Scene::new();
    scene.fill_buffer();
    let peer = scene.peer.take().expect("it is there");
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("it can be");
    drop(peer);
    scene.await_readable();
    assert!(scene.engine.receive_now(TOKEN, &mut scene.buf).is_none());
    scene
}

#[test]
fn a_failure_in_an_offers_place_is_the_engines_to_tell() {
    let mut scene = reset_in_an_offers_place();
    let completion = scene.next();
    let Completion::Failed { error, .. } = completion else { panic!("{completion:?}") };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_failure_in_an_offers_place_is_told_also_while_nobody_receives() {
    let mut scene = reset_in_an_offers_place();
    scene.engine.pause(TOKEN);
    let completion = scene.next();
    let Completion::Failed { error, .. } = completion else { panic!("{completion:?}") };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// The system tells the cause once, to the reader.
#[test]
fn a_failure_in_an_offers_place_is_also_what_writers_are_told() {
    let mut scene = reset_in_an_offers_place();
    for _ in 0..2 {
        let error = scene.engine.send_now(TOKEN, b"late").expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    let error = scene.engine.shutdown(TOKEN).expect_err("nobody is there");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let completion = scene.next();
    let Completion::Failed { error, .. } = completion else { panic!("{completion:?}") };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// What happens to a connection whose receptions may be offered.
#[derive(Copy, Clone, Debug)]
enum Step {
    /// The peer sends so much.
    Comes(usize),
    /// The engine looks, and everything that it reports is handled; an offer so.
    Turn(Answer),
    /// A reader looks that has room for so much.
    Takes(usize),
    Offers(bool),
    Pauses,
    Receives,
}

/// What becomes of an offer before the engine is asked for the next completion.
#[derive(Copy, Clone, Debug)]
enum Answer {
    /// A reader with so much room takes it.
    Taken(usize),
    Declined,
    /// Nothing; it may be taken later.
    Left,
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        4 => (1usize..2000).prop_map(Answer::Taken),
        1 => Just(Answer::Declined),
        2 => Just(Answer::Left),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1usize..1000).prop_map(Step::Comes),
        8 => answer().prop_map(Step::Turn),
        3 => (1usize..2000).prop_map(Step::Takes),
        2 => any::<bool>().prop_map(Step::Offers),
        1 => Just(Step::Pauses),
        1 => Just(Step::Receives),
    ]
}

/// A scene, and what must hold for all that the engine says of it.
struct Model {
    scene: Scene,
    sent: usize,
    received: usize,
    armed: bool,
    /// It was told that the peer's end is to come.
    hung_up: bool,
    ended: bool,
}

/// The byte at this place of the stream.
fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

impl Model {
    fn new() -> Model {
        Model { scene: Scene::new(), sent: 0, received: 0, armed: true, hung_up: false, ended: false }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Comes(n) => {
                let bytes: Vec<u8> = (self.sent..self.sent + n).map(byte).collect();
                self.sent += n;
                self.scene.send(&bytes);
            }
            Step::Turn(answer) => {
                self.scene.engine.wait(Some(Time::ZERO)).expect("it waits");
                self.handle_all(answer);
            }
            Step::Takes(room) => self.take(room),
            Step::Offers(offers) => self.scene.engine.offer(TOKEN, offers),
            Step::Pauses => {
                self.armed = false;
                self.scene.engine.pause(TOKEN);
            }
            Step::Receives => {
                self.armed = true;
                self.scene.engine.receive(TOKEN);
            }
        }
    }

    fn handle_all(&mut self, answer: Answer) {
        while let Some(completion) = self.scene.engine.next() {
            self.handle(completion, answer);
        }
    }

    fn handle(&mut self, completion: Completion, answer: Answer) {
        assert!(!self.ended, "nothing comes behind the end: {completion:?}");
        match completion {
            Completion::Readable { token: TOKEN } => {
                assert!(self.armed, "nobody receives");
                match answer {
                    Answer::Taken(room) => self.take(room),
                    Answer::Declined => self.scene.engine.offer(TOKEN, false),
                    Answer::Left => {}
                }
            }
            Completion::Received { token: TOKEN, chunk } => {
                assert!(self.armed, "nobody receives");
                self.came(&chunk);
            }
            Completion::HungUp { token: TOKEN } => {
                assert!(!self.armed && !self.hung_up, "it is told once, while nobody receives");
                self.hung_up = true;
            }
            Completion::ReceiveEnded { token: TOKEN } => {
                assert_eq!((self.armed, self.received), (true, self.sent), "the end is behind all bytes");
                self.ended = true;
            }
            other => panic!("{other:?}"),
        }
    }

    fn take(&mut self, room: usize) {
        let mut buf = vec![0; room];
        if let Some((n, rest)) = self.scene.engine.receive_now(TOKEN, &mut buf) {
            assert!(self.armed && !self.ended, "nobody receives");
            assert!(n > 0 && (rest.is_none() || n == room), "the reader's buffer is filled first");
            self.came(&buf[..n]);
            if let Some(rest) = rest {
                self.came(&rest);
            }
        }
    }

    fn came(&mut self, bytes: &[u8]) {
        assert!(!bytes.is_empty() && self.received + bytes.len() <= self.sent, "it was sent");
        for (at, &found) in bytes.iter().enumerate() {
            assert_eq!(found, byte(self.received + at), "at {}", self.received + at);
        }
        self.received += bytes.len();
    }

    /// Whatever was done before, all bytes come as soon as somebody receives, and then the peer's end.
    fn end(&mut self, answer: Answer) {
        self.step(Step::Receives);
        let end = self.scene.engine.now().after(PATIENCE);
        while self.received < self.sent {
            assert!(self.scene.engine.now() < end, "it is offered again and again");
            let completion = self.scene.next();
            self.handle(completion, answer);
        }
        drop(self.scene.peer.take());
        while !self.ended {
            let completion = self.scene.next();
            self.handle(completion, answer);
        }
    }

    /// The peer resets the connection, which is told once, also to a reader that meets it first.
    fn reset(&mut self, answer: Answer) {
        self.step(Step::Receives);
        let peer = self.scene.peer.take().expect("it is there");
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("it can be");
        drop(peer);
        self.take(1);
        loop {
            match self.scene.next() {
                Completion::Failed { error, .. } => {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                    break;
                }
                completion => self.handle(completion, answer),
            }
        }
        self.take(1);
        self.step(Step::Turn(answer));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_becomes_of_offers_all_bytes_come_in_order_and_then_the_end(
        steps in prop::collection::vec(step(), 0..40),
        answer in answer(),
    ) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
        }
        model.end(answer);
    }

    /// What is not received before, the reset may have destroyed.
    #[test]
    fn whatever_becomes_of_offers_a_reset_is_told_behind_what_comes(
        steps in prop::collection::vec(step(), 0..20),
        answer in answer(),
    ) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
        }
        model.reset(answer);
    }
}
