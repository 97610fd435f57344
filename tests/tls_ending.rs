//! How connections with TLS end: what is delivered before, what each side learns of it, and what counts as an end in order.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use wharf::event::{self, Flow, Handler};
use wharf::tls::{Acceptor, Connector};
use wharf::{
    Client, CloseReason, Connection, Deadline, Deadlines, ErrorKind, Limits, ReceiveRate, Result, Server,
    SocketOptions, TlsFault,
};

use common::behaviours::*;
use common::tls::*;
use common::*;

const TRUNCATED: CloseReason = CloseReason::Tls(TlsFault::Truncated);

fn secure(server: Server) -> Server {
    server.tls(&acceptor())
}

fn tolerant(server: Server) -> Server {
    server.tls(&Acceptor::new(server_tls().tolerate_truncation()).unwrap())
}

/// What a server was told, in order.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Greets, reads to the end, and tells how many bytes came before it and which end it was; answers an end in order with `bye`.
#[derive(Clone)]
struct Reads {
    told: Told,
    len: usize,
    ended: bool,
}

impl Reads {
    fn new(told: &Told) -> Reads {
        Reads { told: told.clone(), len: 0, ended: false }
    }
}

impl Behaviour for Reads {
    type Handler = Reads;

    async fn run(mut self, mut conn: Connection) -> Result<()> {
        // Its peer may be gone already, and what it sent not.
        drop(conn.send(b"hello").await);
        let end = loop {
            match conn.recv_chunk().await {
                Ok(Some(chunk)) => self.len += chunk.len(),
                Ok(None) => break String::from("end"),
                Err(error) => break error.close_reason().unwrap().to_string(),
            }
        };
        self.told.note(format!("{} bytes, {end}", self.len));
        conn.send(b"bye").await
    }

    fn handler(self) -> Reads {
        self
    }
}

impl Handler for Reads {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.send(b"hello").unwrap();
        Flow::Continue
    }

    fn received(&mut self, _: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        self.len += bytes.len();
        Flow::Continue
    }

    fn ended(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.told.note(format!("{} bytes, end", self.len));
        self.ended = true;
        conn.send(b"bye").unwrap();
        Flow::Close
    }

    fn closed(&mut self, _: &mut event::Connection<'_>, reason: CloseReason) {
        if !self.ended {
            self.told.note(format!("{} bytes, {reason}", self.len));
        }
    }
}

scenario! {
    fn a_client_that_has_finished_is_still_answered(world) {
        let server = world.serve_with(Checksum, secure);
        let address = server.local_addr();
        world.run(async move {
            for version in VERSIONS {
                let mut conn = client_of_version(address, version).open().await.unwrap();
                let text = pattern(0..100_000);
                conn.send(&text).await.unwrap();
                conn.finish().await.unwrap();
                assert!(conn.send(b"more").await.is_err());
                assert_eq!(recv_all(&mut conn).await.unwrap(), checksum(&text));
                assert_eq!(recv_all(&mut conn).await.unwrap(), b"", "an end stays one");
                assert_eq!(conn.close().await, CloseReason::Local);
            }
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 2);
    }
}

scenario! {
    fn an_end_is_announced_by_close_notify(world) {
        let replying = world.serve_with(ReplyThenClose(b"reply"[..].into()), secure);
        let told = Told::default();
        let reading = world.serve_with(Reads::new(&told), secure);
        let (address, of_reading) = (replying.local_addr(), reading.local_addr());
        world.run(async move {
            for version in VERSIONS {
                let mut hand = ByHand::connect_by(address, version).await;
                hand.send(b"?").await;
                assert_eq!(hand.recv_all().await, (b"reply".to_vec(), true));

                // Its own, with TCP still open in both directions, is the end of the stream.
                let mut hand = ByHand::connect_by(of_reading, version).await;
                hand.send(b"request").await;
                hand.tls.send_close_notify();
                hand.push().await.unwrap();
                assert_eq!(hand.recv_all().await, (b"hellobye".to_vec(), true));
            }
            let mut conn = client(address).open().await.unwrap();
            conn.send(b"?").await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"reply");
            assert_eq!(conn.close().await, CloseReason::Peer);
        });
        world.stop(&reading);
        assert_eq!(told.all(), ["7 bytes, end", "7 bytes, end"]);
        let stats = world.stop(&replying);
        assert_eq!((stats.closed(CloseReason::Local), stats.handshakes_failed), (3, 0));
    }
}

scenario! {
    /// However long it keeps TCP open: both have said all that they had to say.
    fn a_peer_that_has_only_its_fin_left_is_not_waited_for(world) {
        let told = Told::default();
        let linger = world.time(4.0);
        let server = world.serve_with(Reads::new(&told), |server| {
            secure(server).deadlines(Deadlines::default().linger(linger))
        });
        let address = server.local_addr();
        let looked_at = server.clone();
        world.run(async move {
            let mut hand = ByHand::connect(address).await;
            hand.tls.send_close_notify();
            let goodbye = [hand.outgoing(), b"not TLS any more".to_vec()].concat();
            hand.conn.send(&goodbye).await.unwrap();
            until("the server has closed", || looked_at.connections() == 0).await;
            hand.conn.reset().await;
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
        assert_eq!(told.all(), ["0 bytes, end"]);
    }
}

scenario! {
    /// It could have been cut short by anybody on the way.
    fn a_fin_without_close_notify_is_no_end_in_order(world) {
        let told = Told::default();
        let server = world.serve_with(Reads::new(&told), secure);
        let address = server.local_addr();
        world.run(async move {
            for version in VERSIONS {
                let mut hand = ByHand::connect_by(address, version).await;
                assert_eq!(hand.recv(5).await, b"hello");
                hand.send(b"request").await;
                hand.conn.finish().await.unwrap();
                let (received, _) = hand.recv_all().await;
                assert_eq!(received, b"", "it gets no answer");
            }
        });
        let stats = world.stop(&server);
        let expected = format!("7 bytes, {TRUNCATED}");
        assert_eq!(told.all(), [expected.clone(), expected]);
        assert_eq!((stats.closed(TRUNCATED), stats.handshakes_failed), (2, 0));
    }
}

scenario! {
    fn a_record_that_is_cut_off_is_lost_and_those_before_it_are_not(world) {
        let told = Told::default();
        let server = world.serve_with(Reads::new(&told), tolerant);
        let strict = world.serve_with(Reads::new(&told), secure);
        let addresses = [server.local_addr(), strict.local_addr()];
        world.run(async move {
            for address in addresses {
                let mut hand = ByHand::connect(address).await;
                hand.send(&pattern(0..5_000)).await;
                std::io::Write::write_all(&mut hand.tls.writer(), &pattern(0..5_000)).unwrap();
                let record = hand.outgoing();
                hand.conn.send(&record[..4_000]).await.unwrap();
                hand.conn.finish().await.unwrap();
                hand.recv_all().await;
            }
        });
        world.stop(&strict);
        world.stop(&server);
        let all = told.all();
        assert_eq!(all.len(), 2);
        assert!(all.contains(&format!("5000 bytes, {TRUNCATED}")), "{all:?}");
        assert!(all.iter().all(|each| each.starts_with("5000 bytes, ")), "{all:?}");
    }
}

scenario! {
    fn a_fin_without_close_notify_is_an_end_for_those_who_said_so(world) {
        let told = Told::default();
        let server = world.serve_with(Reads::new(&told), tolerant);
        let address = server.local_addr();
        world.run(async move {
            let mut hand = ByHand::connect(address).await;
            hand.send(b"request").await;
            hand.conn.finish().await.unwrap();
            assert_eq!(hand.recv_all().await, (b"hellobye".to_vec(), true));
        });
        assert_eq!(told.all(), ["7 bytes, end"]);
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
    }
}

scenario! {
    /// What came before can be read, whoever has not read it yet.
    async fn an_error_about_a_cut_off_stream_comes_behind_its_bytes(world) {
        /// Reads only when its peer has ended.
        #[derive(Clone)]
        struct Later(Told);

        impl Behaviour for Later {
            type Handler = Discard;

            async fn run(self, conn: Connection) -> Result<()> {
                let mut conn = conn;
                let hangup = conn.hangup().await;
                let mut all = vec![0; 7];
                conn.recv_exact(&mut all).await.unwrap();
                let error = conn.recv(&mut [0; 1]).await.unwrap_err();
                assert_eq!((error.tls_fault(), error.kind()), (Some(TlsFault::Truncated), ErrorKind::Peer));
                assert_eq!(conn.close_reason(), Some(TRUNCATED));
                let error = conn.send(b"too late").await.unwrap_err();
                assert_eq!(error.close_reason(), Some(TRUNCATED), "{error}");
                self.0.note(format!("{} {hangup:?}", String::from_utf8(all).unwrap()));
                Err(error)
            }

            fn handler(self) -> Discard {
                Discard
            }
        }

        let told = Told::default();
        let server = world.serve_with(Later(told.clone()), secure);
        let address = server.local_addr();
        world.run(async move {
            let mut hand = ByHand::connect(address).await;
            hand.send(b"request").await;
            hand.conn.finish().await.unwrap();
            hand.recv_all().await;
        });
        assert_eq!(world.stop(&server).closed(TRUNCATED), 1);
        assert_eq!(told.all(), ["request Closed(Tls(Truncated))"]);
    }
}

scenario! {
    fn a_reset_is_told_as_such(world) {
        let (behaviour, notes) = Watched::new(Echo);
        let server = world.serve_with(behaviour, secure);
        let failing = Moody;
        let moody = world.serve_with(failing, secure);
        let (address, of_moody) = (server.local_addr(), moody.local_addr());
        let seen = notes.clone();
        world.run(async move {
            let mut conn = client(address).open().await.unwrap();
            conn.send(b"x").await.unwrap();
            conn.recv_exact(&mut [0; 1]).await.unwrap();
            assert_eq!(conn.reset().await, CloseReason::LocalReset);
            until("the server knows", || seen.closed_all() == 1).await;

            // A panic is one too, for nobody knows what was to come.
            for (mood, reason) in [(b"r", CloseReason::PeerReset), (b"p", CloseReason::PeerReset)] {
                let mut conn = client(of_moody).open().await.unwrap();
                conn.send(mood).await.unwrap();
                let error = conn.recv(&mut [0; 1]).await.unwrap_err();
                assert_eq!(error.close_reason(), Some(reason), "{error}");
            }
            let mut conn = client(of_moody).open().await.unwrap();
            conn.send(b"f").await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"last words");
        });
        assert_eq!(notes.closed(CloseReason::PeerReset), 1);
        let stats = world.stop(&moody);
        assert_eq!((stats.closed(CloseReason::HandlerPanicked), stats.panics), (1, 1));
        assert_eq!(stats.closed(CloseReason::LocalReset), 1);
    }
}

scenario! {
    fn a_close_delivers_all_that_is_queued(world) {
        const MUCH: usize = 600_000;
        let reply: Arc<[u8]> = pattern(0..MUCH).into();
        let server = world.serve_with(ReplyThenClose(reply), |server| {
            let sockets = SocketOptions::default().send_buffer(16 * 1024);
            secure(server).sockets(sockets).limits(Limits::default().send_max(2 * MUCH))
        });
        let address = server.local_addr();
        let stall = world.time(2.0);
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let limits = Limits::default().receive_buffer(4096);
            let mut conn = client(address).sockets(sockets).limits(limits).open().await.unwrap();
            conn.send(b"?").await.unwrap();
            wharf::sleep(stall).await;
            let reply = recv_all(&mut conn).await.unwrap();
            assert_eq!(reply.len(), MUCH);
            assert_pattern(&reply, 0);
        });
        let stats = world.stop(&server);
        assert_eq!((stats.closed(CloseReason::Local), stats.unsent), (1, 0));
    }
}

scenario! {
    fn a_reader_that_stalls_holds_its_sender_back_and_then_gets_everything(world) {
        const TOTAL: usize = 3 << 19;
        let max = 64 * 1024;
        let (behaviour, notes) = Watched::new(Stream { total: TOTAL, piece: 10_000 });
        let server = world.serve_with(behaviour, |server| {
            let limits = Limits::default().send_marks(16 * 1024, 32 * 1024).send_max(max);
            secure(server).limits(limits).sockets(SocketOptions::default().send_buffer(16 * 1024))
        });
        let address = server.local_addr();
        let stall = world.time(8.0);
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let limits = Limits::default().receive_buffer(4096);
            let mut conn = client(address).sockets(sockets).limits(limits).open().await.unwrap();
            wharf::sleep(stall).await;
            assert!(conn.counts().received < TOTAL as u64 / 2, "the sender waits");
            let received = recv_all(&mut conn).await.unwrap();
            assert_eq!(received.len(), TOTAL);
            assert_pattern(&received, 0);
        });
        assert!(notes.look(|noted| noted.pending_max) <= max + 1024, "within its bounds");
        let stats = world.stop(&server);
        assert_eq!((stats.closed(CloseReason::Local), stats.unsent), (1, 0));
        assert!(stats.sent > TOTAL as u64, "what TLS adds is counted");
    }
}

scenario! {
    /// Those on the wire, handshake and all.
    fn both_sides_count_the_same_bytes(world) {
        let acknowledged = cfg!(target_os = "linux") || world.is_simulated();
        let server = world.serve_with(Echo, secure);
        let address = server.local_addr();
        let (sent, received) = world.run(async move {
            let mut conn = client(address).open().await.unwrap();
            let before = conn.counts();
            assert!(before.sent > 200 && before.received > 500, "{before:?}");
            conn.send_owned(pattern(0..50_000)).await.unwrap();
            conn.flush().await.unwrap();
            assert_eq!(conn.counts().unsent, 0);
            let overhead = conn.counts().sent - before.sent - 50_000;
            assert!((22..500).contains(&overhead), "{overhead}");
            let mut echoed = vec![0; 50_000];
            conn.recv_exact(&mut echoed).await.unwrap();
            assert_pattern(&echoed, 0);
            if acknowledged {
                conn.delivered().await.unwrap();
                assert_eq!(conn.unacked(), Some(0));
            }
            conn.finish().await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"");
            conn.close().await;
            (conn.counts().sent, conn.counts().received)
        });
        let stats = world.stop(&server);
        assert_eq!((stats.received, stats.sent), (sent, received));
    }
}

scenario! {
    fn a_remote_sends_and_closes_through_tls(world) {
        let (behaviour, notes) = Watched::new(Discard);
        let server = world.serve_with(behaviour, secure);
        let address = server.local_addr();
        let real = !world.is_simulated();
        world.run(async move {
            let mut conn = client(address).open().await.unwrap();
            until("there is a remote", || notes.remotes().len() == 1).await;
            let remote = notes.remotes().remove(0);
            let sends = move || {
                for part in pattern(0..60_000).chunks(6_000) {
                    remote.send(part.to_vec()).unwrap();
                }
                remote.close();
            };
            if real {
                std::thread::spawn(sends).join().unwrap();
            } else {
                sends();
            }
            let all = recv_all(&mut conn).await.unwrap();
            assert_eq!(all.len(), 60_000);
            assert_pattern(&all, 0);
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

scenario! {
    fn a_read_that_is_given_up_loses_nothing(world) {
        let server = world.serve_with(Frames, secure);
        let address = server.local_addr();
        let moment = world.time(0.5);
        world.run(async move {
            let mut conn = client(address).open().await.unwrap();
            let mut buf = [0; 12];
            for turn in 0..20_u8 {
                let frame = [0, 0, 0, 8, turn, 1, 2, 3, 4, 5, 6, 7];
                conn.send(&frame[..7]).await.unwrap();
                assert!(conn.recv_exact(&mut buf).within(moment / 8).await.unwrap_err().is_timeout());
                // Two of the wire's records may well be one and a half messages.
                conn.send(&frame[7..]).await.unwrap();
                conn.send(&frame[..5]).await.unwrap();
                let mut both = [0; 24];
                let given_up = conn.recv_exact(&mut both).within(moment).await;
                assert!(given_up.unwrap_err().is_timeout());
                conn.recv_exact(&mut buf).await.unwrap();
                assert_eq!(buf, frame);
                conn.send(&frame[5..]).await.unwrap();
                conn.recv_exact(&mut buf).await.unwrap();
                assert_eq!(buf, frame);
            }
        });
    }
}

scenario! {
    fn a_silent_peer_is_ended_in_order_and_one_that_does_not_read_is_not(world) {
        let idle = world.time(4.0);
        let silent = world.serve_with(Echo, |server| {
            secure(server).deadlines(Deadlines::default().first_byte(idle).idle(idle))
        });
        let write = world.time(6.0);
        let stream = Stream { total: 16 << 20, piece: 30_000 };
        let stalling = world.serve_with(stream, |server| {
            let sockets = SocketOptions::default().send_buffer(16 * 1024);
            secure(server).sockets(sockets).deadlines(Deadlines::default().write(write))
        });
        let (of_silent, of_stalling) = (silent.local_addr(), stalling.local_addr());
        world.run(async move {
            let mut hand = ByHand::connect(of_silent).await;
            assert_eq!(hand.recv_all().await, (Vec::new(), true));
            let mut conn = client(of_silent).open().await.unwrap();
            conn.send(b"x").await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"x");

            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let limits = Limits::default().receive_buffer(4096);
            let conn = client(of_stalling).sockets(sockets).limits(limits).open().await.unwrap();
            assert_eq!(conn.closed().await, CloseReason::PeerReset);
        });
        let stats = world.stop(&silent);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::FirstByte)), 1, "{stats:?}");
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::Idle)), 1, "{stats:?}");
        let stats = world.stop(&stalling);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::Write)), 1, "{stats:?}");
        assert!(stats.unsent > 0);
    }
}

scenario! {
    /// Nobody gets time by records that never become whole.
    fn a_record_that_comes_too_slowly_is_a_message_that_does(world) {
        let (grace, pause) = (world.time(4.0), world.time(0.3));
        let server = world.serve_with(Echo, |server| {
            let rate = ReceiveRate::new(1_000_000).grace(grace);
            secure(server).deadlines(Deadlines::default().receive_rate(rate))
        });
        let address = server.local_addr();
        let long = world.time(8.0);
        world.run(async move {
            let mut hand = ByHand::connect(address).await;
            // Records that are whole have all the time that there is between them.
            for _ in 0..3 {
                hand.send(b"x").await;
                hand.recv(1).await;
                wharf::sleep(long).await;
            }
            std::io::Write::write_all(&mut hand.tls.writer(), &pattern(0..5_000)).unwrap();
            for byte in hand.outgoing().chunks(1) {
                if hand.conn.send(byte).await.is_err() || hand.conn.hangup().within(pause).await.is_ok() {
                    return;
                }
            }
            panic!("nobody has ended this");
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::ReceiveRate)), 1, "{stats:?}");
    }
}

scenario! {
    fn a_drain_lets_handlers_say_goodbye_through_tls(world) {
        let server = world.serve_with(Polite, secure);
        let holding = world.serve_with(Hold, secure);
        let (address, of_holding) = (server.local_addr(), holding.local_addr());
        let (long, short) = (world.time(300.0), world.time(2.0));
        let draining = (server.clone(), holding.clone());
        world.run(async move {
            let mut hand = ByHand::connect(address).await;
            hand.send(b"x").await;
            hand.recv(1).await;
            let conn = client(of_holding).open().await.unwrap();
            until("its handler runs", || draining.1.stats().handshakes == 1).await;
            draining.0.drain(long);
            draining.1.drain(short);
            assert_eq!(hand.recv_all().await, (b"bye".to_vec(), true));
            drop(hand);
            assert_eq!(conn.closed().await, CloseReason::PeerReset);
        });
        assert_eq!(world.stop(&server).drain.finished, 1);
        assert_eq!(world.stop(&holding).closed(CloseReason::Shutdown), 1);
    }
}

scenario! {
    /// A client learns of a server's truncation as a server of a client's.
    fn a_client_tells_an_end_in_order_from_a_connection_cut_off(world) {
        let server = world.serve_with(EndAfter { delay: Duration::ZERO, reset: false }, secure);
        let address = server.local_addr();
        let connector = Connector::new(client_tls().tolerate_truncation()).unwrap();
        world.run(async move {
            for client in [client(address), Client::new(address).tls(&connector)] {
                let mut conn = client.open().await.unwrap();
                assert_eq!(recv_all(&mut conn).await.unwrap(), b"hello");
                assert_eq!(conn.close().await, CloseReason::Peer);
            }
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 2);
    }
}

/// Fills its queue first thing, so that what comes has to wait; counts what it is offered.
#[derive(Clone)]
struct Blocked {
    told: Told,
    len: usize,
}

impl Behaviour for Blocked {
    type Handler = Blocked;

    async fn run(mut self, mut conn: Connection) -> Result<()> {
        let why = loop {
            match conn.recv_chunk().await {
                Ok(Some(chunk)) => self.len += chunk.len(),
                Ok(None) => unreachable!("it is cut off"),
                Err(error) => break error.close_reason().unwrap(),
            }
        };
        self.told.note(format!("{} {why}", self.len));
        Ok(())
    }

    fn handler(self) -> Blocked {
        self
    }
}

impl Handler for Blocked {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.send(&pattern(0..900_000)).unwrap();
        conn.send(b"x").unwrap_err();
        Flow::Continue
    }

    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        assert_eq!(conn.send(b"x").unwrap_err().close_reason(), Some(TRUNCATED));
        self.len += bytes.len();
        Flow::Continue
    }

    fn closed(&mut self, _: &mut event::Connection<'_>, reason: CloseReason) {
        self.told.note(format!("{} {reason}", self.len));
    }
}

scenario! {
    /// A handler that cannot send is offered nothing; but now it will never be able to.
    fn bytes_before_a_truncation_reach_a_handler_that_could_not_send(world) {
        let told = Told::default();
        let small = || SocketOptions::default().send_buffer(16 * 1024).receive_buffer(16 * 1024);
        let blocked = Blocked { told: told.clone(), len: 0 };
        let server = world.serve_with(blocked, |server| secure(server).sockets(small()));
        let address = server.local_addr();
        let seen = told.clone();
        world.run(async move {
            let limits = Limits::default().receive_buffer(4096);
            let conn = Client::new(address).sockets(small()).limits(limits).open().await.unwrap();
            let mut hand = ByHand::over(conn, AUTHORITY.config(&VERSIONS));
            hand.shake().await;
            hand.send(b"request").await;
            hand.conn.finish().await.unwrap();
            until("it has ended", || !seen.all().is_empty()).await;
        });
        assert_eq!(told.all(), [format!("7 {TRUNCATED}")]);
    }
}
