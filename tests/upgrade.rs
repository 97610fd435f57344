//! TLS in mid-stream: how it begins and ends on a connection that stands, and what cannot be slipped in between.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::sync::{Arc, Mutex};

use wharf::event::{self, Flow, Handler};
use wharf::tls::{Acceptor, ClientTls, Connector};
use wharf::{
    CertificateFault, Client, CloseReason, Connection, Deadline, Error, ErrorKind, Limits, Result, Server,
    SocketOptions, TlsAlert, TlsFault, WhenFull,
};

use common::behaviours::Discard;
use common::tls::*;
use common::*;

/// Echoes lines, but for three: `STARTTLS` begins TLS, `LEAVE` ends it, and `TWICE` begins it again.
#[derive(Clone)]
struct Upgrades {
    acceptor: Acceptor,
    told: Arc<Mutex<Vec<String>>>,
}

impl Upgrades {
    fn new() -> Upgrades {
        Upgrades::with(acceptor())
    }

    fn with(acceptor: Acceptor) -> Upgrades {
        Upgrades { acceptor, told: Arc::default() }
    }

    fn note(&self, what: impl Into<String>) {
        self.told.lock().unwrap().push(what.into());
    }

    fn all(&self) -> Vec<String> {
        self.told.lock().unwrap().clone()
    }

    fn note_misuse(&self, error: &Error) {
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Caller, "secure"), "{error}");
        self.note("misuse");
    }
}

async fn line(conn: &mut Connection) -> Result<String> {
    told(conn).await
}

impl Behaviour for Upgrades {
    type Handler = Upgrades;

    async fn run(self, mut conn: Connection) -> Result<()> {
        loop {
            let line = match line(&mut conn).await {
                Err(error) if error.is_ended() => return Ok(()),
                line => line?,
            };
            self.note(line.clone());
            match line.as_str() {
                "STARTTLS" => {
                    conn.send(b"220\n").await?;
                    // Given up, it goes on all the same; what is sent meanwhile waits.
                    drop(conn.accept_tls(&self.acceptor));
                    let again = conn.accept_tls(&self.acceptor).await.unwrap_err();
                    if conn.close_reason().is_none() {
                        self.note_misuse(&again);
                    }
                    let sent = conn.send(b"secured\n").await;
                    if let Err(error) = &sent {
                        self.note(error.close_reason().unwrap().to_string());
                    }
                    sent?;
                    assert!(conn.tls().is_some());
                }
                "TWICE" => {
                    self.note_misuse(&conn.accept_tls(&self.acceptor).await.unwrap_err());
                    conn.send(b"503\n").await?;
                }
                "LEAVE" => {
                    conn.send(b"221\n").await?;
                    conn.leave_tls().await?;
                    assert!(conn.tls().is_none());
                    conn.send(b"plain\n").await?;
                }
                other => conn.send(format!("{other}\n").as_bytes()).await?,
            }
        }
    }

    fn handler(self) -> Upgrades {
        self
    }
}

impl Handler for Upgrades {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Flow::Consumed(0) };
        let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
        self.note(line.clone());
        match line.as_str() {
            "STARTTLS" => {
                conn.send(b"220\n").unwrap();
                conn.accept_tls(&self.acceptor).unwrap();
                self.note_misuse(&conn.accept_tls(&self.acceptor).unwrap_err());
                let full = conn.send(b"too early\n").unwrap_err();
                assert_eq!(full.kind(), ErrorKind::Limit, "{full}");
                assert!(conn.tls().is_none());
            }
            "TWICE" => {
                self.note_misuse(&conn.accept_tls(&self.acceptor).unwrap_err());
                conn.send(b"503\n").unwrap();
            }
            "LEAVE" => {
                conn.send(b"221\n").unwrap();
                conn.leave_tls();
            }
            _ => conn.send(&bytes[..=end]).unwrap(),
        }
        Flow::Consumed(end + 1)
    }

    fn secured(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        assert!(conn.tls().is_some());
        conn.send(b"secured\n").unwrap();
        Flow::Continue
    }

    fn unsecured(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        assert!(conn.tls().is_none());
        conn.send(b"plain\n").unwrap();
        Flow::Continue
    }

    fn closed(&mut self, _: &mut event::Connection<'_>, reason: CloseReason) {
        if !reason.is_graceful() {
            self.note(reason.to_string());
        }
    }
}

/// A client that has asked for TLS and may begin it.
async fn started(address: std::net::SocketAddr) -> Connection {
    let mut conn = Client::connect(address).await.unwrap();
    conn.send(b"STARTTLS\n").await.unwrap();
    assert_eq!(line(&mut conn).await.unwrap(), "220");
    conn
}

async fn ask(conn: &mut Connection, text: &str) -> String {
    conn.send(format!("{text}\n").as_bytes()).await.unwrap();
    line(conn).await.unwrap()
}

scenario! {
    fn tls_begins_and_ends_in_mid_stream(world) {
        let behaviour = Upgrades::new();
        let server = world.serve(behaviour.clone());
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            assert_eq!(ask(&mut conn, "before").await, "before");
            assert_eq!(ask(&mut conn, "STARTTLS").await, "220");
            let connector = Connector::new(client_tls()).unwrap();
            conn.connect_tls(&connector, NAME).await.unwrap();
            assert_eq!(conn.tls().unwrap().server_name(), Some(NAME));
            assert_eq!(line(&mut conn).await.unwrap(), "secured");
            assert_eq!(ask(&mut conn, "within").await, "within");
            assert_eq!(ask(&mut conn, "TWICE").await, "503");
            assert_eq!(ask(&mut conn, "LEAVE").await, "221");
            conn.leave_tls().await.unwrap();
            assert!(conn.tls().is_none());
            assert_eq!(line(&mut conn).await.unwrap(), "plain");
            assert_eq!(ask(&mut conn, "behind").await, "behind");
            // And once more.
            assert_eq!(ask(&mut conn, "STARTTLS").await, "220");
            conn.connect_tls(&connector, NAME).await.unwrap();
            assert_eq!(line(&mut conn).await.unwrap(), "secured");
            let error = conn.connect_tls(&connector, NAME).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Caller, "{error}");
            conn.finish().await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"");
        });
        let stats = world.stop(&server);
        assert_eq!((stats.handshakes, stats.resumed, stats.closed(CloseReason::Peer)), (2, 1, 1), "{stats:?}");
        let lines = ["before", "STARTTLS", "misuse", "within", "TWICE", "misuse", "LEAVE", "behind", "STARTTLS", "misuse"];
        assert_eq!(behaviour.all(), lines);
    }
}

scenario! {
    /// What it means is seen by whoever knows the bytes of the wire.
    fn what_follows_tls_on_a_connection_is_plain(world) {
        let server = world.serve(Upgrades::new());
        let address = server.local_addr();
        world.run(async move {
            for in_one in [false, true] {
                let mut hand = ByHand::over(started(address).await, AUTHORITY.config(&VERSIONS));
                hand.shake().await;
                assert_eq!(hand.recv(8).await, b"secured\n");
                hand.send(b"LEAVE\n").await;
                assert_eq!(hand.recv(4).await, b"221\n");
                while !hand.peer_has_closed() {
                    assert!(hand.pull().await.unwrap());
                }
                hand.tls.send_close_notify();
                let mut bytes = hand.outgoing();
                if in_one {
                    bytes.extend_from_slice(b"behind\n");
                }
                hand.conn.send(&bytes).await.unwrap();
                let (mut rest, plain) = (Vec::new(), if in_one { 13 } else { 6 });
                while rest.len() < plain {
                    let chunk = hand.conn.recv_chunk().await.unwrap().expect("it goes on");
                    rest.extend_from_slice(&chunk);
                }
                // What had to wait comes behind what was there to be read, in event style.
                let text = String::from_utf8_lossy(&rest);
                assert!(text.contains("plain\n") && text.contains("behind\n") == in_one, "{text}");
                hand.conn.send(b"more\n").await.unwrap();
                let mut more = [0; 5];
                hand.conn.recv_exact(&mut more).await.unwrap();
                assert_eq!(&more, b"more\n");
                hand.conn.close().await;
            }
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 2);
    }
}

scenario! {
    fn a_peer_that_ends_tls_by_itself_ends_the_stream(world) {
        let server = world.serve(Upgrades::new());
        let address = server.local_addr();
        world.run(async move {
            let mut hand = ByHand::over(started(address).await, AUTHORITY.config(&VERSIONS));
            hand.shake().await;
            hand.recv(8).await;
            hand.tls.send_close_notify();
            let bytes = [hand.outgoing(), b"evil\n".to_vec()].concat();
            hand.conn.send(&bytes).await.unwrap();
            assert_eq!(hand.recv_all().await, (Vec::new(), true));
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
    }
}

scenario! {
    /// CVE-2011-0411 and its kin: it is taken for TLS, and refused as such.
    fn what_is_slipped_in_behind_the_command_is_never_taken_for_protected(world) {
        let behaviour = Upgrades::new();
        let server = world.serve(behaviour.clone());
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"STARTTLS\nevil\n").await.unwrap();
            let all = recv_all(&mut conn).await.unwrap();
            assert_eq!(all, [b"220\n".as_slice(), &[21, 3, 3, 0, 2, 2, 10]].concat());
        });
        let stats = world.stop(&server);
        let reason = CloseReason::Tls(TlsFault::NotTls);
        assert_eq!(stats.closed(reason), 1, "{stats:?}");
        let told = behaviour.all();
        assert_eq!((&*told[0], told.last().unwrap()), ("STARTTLS", &reason.to_string()), "{told:?}");
    }
}

scenario! {
    fn what_is_slipped_in_behind_the_answer_is_never_taken_for_protected(world) {
        let server = world.serve(Upgrades::new());
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            // Its echo stands for what somebody on the way has added.
            conn.send(b"evil answer\n").await.unwrap();
            let connector = Connector::new(client_tls()).unwrap();
            let error = conn.connect_tls(&connector, NAME).await.unwrap_err();
            assert_eq!(error.tls_fault(), Some(TlsFault::NotTls), "{error}");
            assert_eq!(error.operation(), "secure");
            assert!(conn.recv(&mut [0; 1]).await.is_err(), "nothing of it can be read");
        });
    }
}

scenario! {
    fn a_hello_in_one_segment_with_its_command_is_taken(world) {
        let server = world.serve(Upgrades::new());
        let address = server.local_addr();
        world.run(async move {
            // Whose system took all of it at once would have the server begin before it is asked.
            let small = SocketOptions::default().receive_buffer(16 * 1024);
            let limits = Limits::default().receive_buffer(16 * 1024);
            let conn = Client::new(address).sockets(small).limits(limits).open().await.unwrap();
            let mut hand = ByHand::over(conn, AUTHORITY.config(&VERSIONS));
            let bytes = [b"STARTTLS\n".to_vec(), hand.outgoing()].concat();
            hand.conn.send(&bytes).await.unwrap();
            let mut answer = [0; 4];
            hand.conn.recv_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"220\n");
            hand.shake().await;
            assert_eq!(hand.recv(8).await, b"secured\n");
        });
    }
}

scenario! {
    fn both_sides_learn_that_they_cannot_begin(world) {
        let behaviour = Upgrades::new();
        let server = world.serve(behaviour.clone());
        let address = server.local_addr();
        let stranger = Authority::new("Somebody else");
        let seen = behaviour.clone();
        world.run(async move {
            let mut conn = started(address).await;
            let connector = Connector::new(client_tls().trust(stranger.trust())).unwrap();
            let error = conn.connect_tls(&connector, NAME).await.unwrap_err();
            let fault = TlsFault::Certificate(CertificateFault::UnknownIssuer);
            assert_eq!(error.tls_fault(), Some(fault), "{error}");
            assert_eq!(conn.closed().await, CloseReason::Tls(fault));

            let mut conn = started(address).await;
            let tls = ClientTls::new().trust(AUTHORITY.trust());
            let error = conn.connect_tls(&Connector::new(tls).unwrap(), "no name").await.unwrap_err();
            assert_eq!((error.tls_fault(), error.kind()), (Some(TlsFault::Local), ErrorKind::Caller));
            conn.reset().await;
            until("the server has told it", || seen.all().len() == 6).await;
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Tls(TlsFault::Alert(TlsAlert(48)))), 1, "{stats:?}");
        assert_eq!(stats.closed(CloseReason::PeerReset), 1, "{stats:?}");
    }
}

scenario! {
    fn a_handshake_in_mid_stream_has_its_time_too(world) {
        let within = world.time(4.0);
        let behaviour = Upgrades::with(Acceptor::new(server_tls().handshake_within(within)).unwrap());
        let server = world.serve(behaviour.clone());
        let address = server.local_addr();
        let of_silent = world.serve(Discard).local_addr();
        let (long, moment) = (world.time(8.0), world.time(1.0));
        let began = world.now();
        world.run(async move {
            let mut conn = started(address).await;
            let error = conn.recv(&mut [0; 1]).await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");

            // It is the handshake's alone.
            let mut conn = started(address).await;
            conn.connect_tls(&Connector::new(client_tls()).unwrap(), NAME).await.unwrap();
            assert_eq!(line(&mut conn).await.unwrap(), "secured");
            wharf::sleep(long).await;
            assert_eq!(ask(&mut conn, "still here").await, "still here");

            // A client has to say how long it waits.
            let mut conn = Client::connect(of_silent).await.unwrap();
            let connector = Connector::new(client_tls()).unwrap();
            let error = conn.connect_tls(&connector, NAME).within(moment).await.unwrap_err();
            assert!(error.is_timeout() && error.operation() == "secure", "{error}");
        });
        assert!(world.now() - began >= within);
        let stats = world.stop(&server);
        let late = CloseReason::Timeout(Deadline::Handshake);
        assert_eq!((stats.closed(late), stats.handshakes), (1, 1), "{stats:?}");
    }
}

scenario! {
    fn who_begins_with_tls_or_has_finished_cannot_begin_it(world) {
        /// Has finished before it begins.
        #[derive(Clone)]
        struct Finished(Upgrades);

        impl Behaviour for Finished {
            type Handler = Finished;

            async fn run(self, mut conn: Connection) -> Result<()> {
                conn.finish().await?;
                self.0.note_misuse(&conn.accept_tls(&self.0.acceptor).await.unwrap_err());
                while conn.recv_chunk().await?.is_some() {}
                Ok(())
            }

            fn handler(self) -> Finished {
                self
            }
        }

        impl Handler for Finished {
            fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
                conn.finish();
                self.0.note_misuse(&conn.accept_tls(&self.0.acceptor).unwrap_err());
                Flow::Continue
            }

            fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
                Flow::Continue
            }
        }

        let behaviour = Upgrades::new();
        let secure = |server: Server| server.tls(&acceptor());
        let server = world.serve_with(behaviour.clone(), secure);
        let finished = world.serve(Finished(behaviour.clone()));
        let addresses = [server.local_addr(), finished.local_addr()];
        world.run(async move {
            let mut conn = client(addresses[0]).open().await.unwrap();
            assert_eq!(ask(&mut conn, "TWICE").await, "503");
            let mut conn = Client::connect(addresses[1]).await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"");
        });
        world.stop(&finished);
        assert_eq!(behaviour.all(), ["TWICE", "misuse", "misuse"]);
    }
}

/// Fills its queue, and begins TLS when that has drained, in front of what it has left unread.
#[derive(Clone)]
struct BeginsLate {
    acceptor: Acceptor,
    asked: bool,
    /// The queue has drained before it was asked, which a fast system makes of it now and then.
    has_drained: bool,
}

impl Behaviour for BeginsLate {
    type Handler = BeginsLate;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.send(&pattern(0..900_000)).await?;
        line(&mut conn).await?;
        conn.accept_tls(&self.acceptor).await?;
        conn.send(b"secured\n").await
    }

    fn handler(self) -> BeginsLate {
        self
    }
}

impl Handler for BeginsLate {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.send(&pattern(0..900_000)).unwrap();
        conn.send(b"more").unwrap_err();
        Flow::Continue
    }

    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        assert!(!self.asked || bytes[0] == 22);
        let asked = std::mem::replace(&mut self.asked, true);
        if self.has_drained {
            conn.accept_tls(&self.acceptor).unwrap();
        }
        Flow::Consumed(if asked { 0 } else { 9 })
    }

    fn writable(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.has_drained = !self.asked;
        if self.asked && conn.tls().is_none() {
            conn.accept_tls(&self.acceptor).unwrap();
        }
        Flow::Continue
    }

    fn secured(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.send(b"secured\n").unwrap();
        Flow::Close
    }
}

scenario! {
    fn a_hello_that_was_there_before_tls_began_is_taken(world) {
        let behaviour = BeginsLate { acceptor: acceptor(), asked: false, has_drained: false };
        let server = world.serve_with(behaviour, |server| {
            server.sockets(SocketOptions::default().send_buffer(16 * 1024))
        });
        let address = server.local_addr();
        world.run(async move {
            let conn = Client::connect(address).await.unwrap();
            let mut hand = ByHand::over(conn, AUTHORITY.config(&VERSIONS));
            let bytes = [b"STARTTLS\n".to_vec(), hand.outgoing()].concat();
            hand.conn.send(&bytes).await.unwrap();
            let mut much = vec![0; 900_000];
            hand.conn.recv_exact(&mut much).await.unwrap();
            hand.shake().await;
            assert_eq!(hand.recv(8).await, b"secured\n");
        });
        assert_eq!(world.stop(&server).handshakes, 1);
    }
}

/// Sends before TLS stands, where a queue that is full ends the connection.
#[derive(Clone)]
struct Hasty(Acceptor);

impl Behaviour for Hasty {
    type Handler = Hasty;

    async fn run(self, mut conn: Connection) -> Result<()> {
        line(&mut conn).await?;
        conn.send(b"220\n").await?;
        drop(conn.accept_tls(&self.0));
        assert_eq!(conn.send(b"too early\n").await.unwrap_err().kind(), ErrorKind::Limit);
        until("TLS stands", || conn.tls().is_some()).await;
        conn.send(b"secured\n").await
    }

    fn handler(self) -> Hasty {
        self
    }
}

impl Handler for Hasty {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Flow::Consumed(0) };
        conn.send(b"220\n").unwrap();
        conn.accept_tls(&self.0).unwrap();
        assert_eq!(conn.send(b"too early\n").unwrap_err().kind(), ErrorKind::Limit);
        Flow::Consumed(end + 1)
    }

    fn secured(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.send(b"secured\n").unwrap();
        Flow::Close
    }
}

scenario! {
    fn a_send_that_is_too_early_for_tls_is_no_full_queue(world) {
        let server = world.serve_with(Hasty(acceptor()), |server| {
            server.limits(Limits::default().when_full(WhenFull::Disconnect))
        });
        let address = server.local_addr();
        world.run(async move {
            let mut conn = started(address).await;
            conn.connect_tls(&Connector::new(client_tls()).unwrap(), NAME).await.unwrap();
            assert_eq!(line(&mut conn).await.unwrap(), "secured");
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"");
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

/// Bytes that come before a peer leaves TLS.
const MANY: usize = 100_000;

/// Leaves TLS when it is told to, wants to say so at once, and goes on counting what still comes; says it behind.
#[derive(Clone)]
struct Leaves {
    len: usize,
    refused: usize,
}

impl Behaviour for Leaves {
    type Handler = Leaves;

    async fn run(mut self, mut conn: Connection) -> Result<()> {
        assert_eq!(line(&mut conn).await?, "LEAVE");
        while let Err(error) = conn.leave_tls().await {
            if error.kind() != ErrorKind::Caller {
                return Err(error);
            }
            self.len += conn.recv_chunk().await?.unwrap().len();
        }
        while self.len < MANY {
            self.len += conn.recv_chunk().await?.unwrap().len();
        }
        conn.send(format!("{}\n", self.len).as_bytes()).await?;
        assert_eq!(recv_all(&mut conn).await?, b"");
        Ok(())
    }

    fn handler(self) -> Leaves {
        self
    }
}

impl Handler for Leaves {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        let mut bytes = bytes;
        if self.len == 0 && self.refused == 0 {
            bytes = bytes.strip_prefix(b"LEAVE\n").unwrap();
            conn.leave_tls();
            self.refused += usize::from(conn.send(b"too early\n").is_err());
        }
        self.len += bytes.len();
        Flow::Continue
    }

    fn writable(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        assert!(conn.tls().is_none() && self.refused == 1);
        conn.send(format!("{}\n", self.len).as_bytes()).unwrap();
        Flow::Continue
    }
}

scenario! {
    fn more_than_is_kept_may_come_before_a_peer_leaves_tls(world) {
        let leaves = Leaves { len: 0, refused: 0 };
        let server = world.serve_with(leaves, |server| {
            server.tls(&acceptor()).limits(Limits::default().receive_buffer(4096))
        });
        let address = server.local_addr();
        world.run(async move {
            let mut hand = ByHand::connect(address).await;
            hand.send(b"LEAVE\n").await;
            while !hand.peer_has_closed() {
                assert!(hand.pull().await.unwrap());
            }
            for _ in 0..20 {
                hand.send(&[b'x'; MANY / 20]).await;
            }
            hand.tls.send_close_notify();
            hand.push().await.unwrap();
            assert_eq!(line(&mut hand.conn).await.unwrap(), "100000");
            hand.conn.close().await;
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
    }
}

scenario! {
    fn a_peer_that_is_cut_off_before_it_leaves_tls_ends_the_wait(world) {
        for tolerates in [false, true] {
            let tls = server_tls();
            let tls = if tolerates { tls.tolerate_truncation() } else { tls };
            let leaves = Leaves { len: 0, refused: 0 };
            let server = world.serve_with(leaves, |server| server.tls(&Acceptor::new(tls).unwrap()));
            let address = server.local_addr();
            let before = world.now();
            world.run(async move {
                let mut hand = ByHand::connect(address).await;
                hand.send(b"LEAVE\n").await;
                while !hand.peer_has_closed() {
                    assert!(hand.pull().await.unwrap());
                }
                hand.conn.finish().await.unwrap();
                while hand.conn.recv_chunk().await.unwrap().is_some() {}
            });
            assert!(world.now() - before < std::time::Duration::from_secs(if world.is_simulated() { 5 } else { 20 }));
            let stats = world.stop(&server);
            assert_eq!(stats.closed(CloseReason::Tls(TlsFault::Truncated)), 1, "{stats:?}");
        }
    }
}

/// Begins TLS when told to, and says at once what it does afterwards: it ends its side, or leaves TLS.
#[derive(Clone)]
struct Early {
    leaves: bool,
    told: Arc<Mutex<Vec<String>>>,
}

impl Behaviour for Early {
    type Handler = Early;

    async fn run(self, mut conn: Connection) -> Result<()> {
        assert_eq!(line(&mut conn).await?, "STARTTLS");
        conn.send(b"220\n").await?;
        drop(conn.accept_tls(&acceptor()));
        match self.leaves {
            true => conn.leave_tls().await?,
            false => conn.finish().await?,
        }
        let rest = recv_all(&mut conn).await?;
        self.told.lock().unwrap().push(String::from_utf8(rest).unwrap());
        Ok(())
    }

    fn handler(self) -> Early {
        self
    }
}

impl Handler for Early {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        if bytes == b"STARTTLS\n" {
            conn.send(b"220\n").unwrap();
            conn.accept_tls(&acceptor()).unwrap();
            match self.leaves {
                true => conn.leave_tls(),
                false => conn.finish(),
            }
        } else if bytes.len() == 4 {
            self.told.lock().unwrap().push(String::from_utf8(bytes.to_vec()).unwrap());
        } else {
            return Flow::Consumed(0);
        }
        Flow::Continue
    }
}

scenario! {
    fn who_ends_during_the_handshake_ends_behind_it(world) {
        for leaves in [false, true] {
            let told = Arc::default();
            let server = world.serve(Early { leaves, told: Arc::clone(&told) });
            let address = server.local_addr();
            world.run(async move {
                let mut conn = started(address).await;
                conn.connect_tls(&Connector::new(client_tls()).unwrap(), NAME).await.unwrap();
                if leaves {
                    conn.leave_tls().await.unwrap();
                } else {
                    assert_eq!(recv_all(&mut conn).await.unwrap(), b"");
                }
                conn.send(b"rest").await.unwrap();
                conn.finish().await.unwrap();
                conn.closed().await;
            });
            world.stop(&server);
            assert_eq!(*told.lock().unwrap(), ["rest"], "{leaves}");
        }
    }
}

scenario! {
    /// It will never do its part of a handshake.
    fn with_a_peer_that_has_ended_tls_does_not_begin(world) {
        let long = std::time::Duration::from_secs(60);
        let upgrades = Upgrades::with(Acceptor::new(server_tls().handshake_within(long)).unwrap());
        let server = world.serve(upgrades.clone());
        let address = server.local_addr();
        let before = world.now();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"STARTTLS\n").await.unwrap();
            conn.finish().await.unwrap();
            let text = recv_all(&mut conn).await.unwrap();
            assert!(text.starts_with(b"220\n"), "{text:?}");
            let connector = Connector::new(client_tls()).unwrap();
            let mut other = Client::connect(address).await.unwrap();
            other.finish().await.unwrap();
            assert_eq!(recv_all(&mut other).await.unwrap(), b"");
            assert!(other.connect_tls(&connector, NAME).await.is_err());
        });
        assert!(world.now() - before < long / 2, "no deadline has to end it");
        let ended = CloseReason::Tls(TlsFault::HandshakeEnded);
        assert_eq!(world.stop(&server).closed(ended), 1);
    }
}

/// Echoes; when its peer has ended TLS, it does so too, and goes on without.
#[derive(Clone)]
struct Follows;

impl Behaviour for Follows {
    type Handler = Follows;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut buf = [0; 64];
        loop {
            match conn.recv(&mut buf).await? {
                0 if conn.tls().is_some() => conn.leave_tls().await?,
                0 => return Ok(()),
                n => conn.send(&buf[..n]).await?,
            }
        }
    }

    fn handler(self) -> Follows {
        self
    }
}

impl Handler for Follows {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        conn.send(bytes).unwrap();
        Flow::Continue
    }

    fn ended(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        if conn.tls().is_none() {
            return Flow::Close;
        }
        conn.leave_tls();
        Flow::Continue
    }
}

scenario! {
    /// And its end is told once more, when it comes.
    fn who_follows_a_peer_out_of_tls_goes_on_with_it(world) {
        let server = world.serve_with(Follows, |server| server.tls(&acceptor()));
        let address = server.local_addr();
        world.run(async move {
            let mut conn = client(address).open().await.unwrap();
            let mut echo = [0; 5];
            for by_tls in [true, false] {
                assert_eq!(conn.tls().is_some(), by_tls);
                conn.send(b"hello").await.unwrap();
                conn.recv_exact(&mut echo).await.unwrap();
                conn.leave_tls().await.unwrap();
            }
            conn.finish().await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"");
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
    }
}
