//! Receptions that are offered to a reader: what becomes of them whatever the reader and the peer do meanwhile.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;

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
