//! How connections end, on every backend and in both styles: what is told of the peer's end, what is lost and what is not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bytes::Bytes;
use wharf::event::{self, Flow, Handler};
use wharf::{
    Client, CloseReason, Connection, Deadlines, ErrorKind, Hangup, Limits, Result, Server, SocketOptions,
};

use common::behaviours::*;
use common::*;

/// More than the kernels at both ends hold while nobody reads.
const MUCH: usize = 8 << 20;
static REPLY: LazyLock<Bytes> = LazyLock::new(|| pattern(0..MUCH).into());

/// What a peer sends that nobody reads: more than an inbox of [`tight`] holds, and less than the kernel does.
const REQUEST: usize = 60_000;

/// Sends the request in two parts, of which the first fills the inbox; so the second most likely stays in the kernel.
async fn send_request(conn: &mut Connection, moment: Duration) {
    let request = pattern(0..REQUEST);
    conn.send(&request[..10_000]).await.unwrap();
    conn.flush().await.unwrap();
    wharf::sleep(moment).await;
    conn.send(&request[10_000..]).await.unwrap();
    conn.flush().await.unwrap();
}

/// A server that stops receiving soon, and queues one message of any size.
fn tight(server: Server) -> Server {
    let limits = Limits::default().receive_buffer(4096).send_max(2 * MUCH);
    server.limits(limits).sockets(SocketOptions::default().send_buffer(64 * 1024))
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

/// Sends more than its peer takes at first, and reads nothing before that is on its way; then it answers with the checksum of
/// what it reads. Tells of the peer's end.
#[derive(Clone)]
struct Generous(Told);

struct Giving {
    told: Told,
    inner: Summing,
}

impl Behaviour for Generous {
    type Handler = Giving;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.send_owned(REPLY.clone()).await?;
        let hangup = conn.hangup().await;
        self.0.note(format!("{hangup:?}"));
        assert_eq!(conn.hangup().await, hangup, "it stays known");
        let inner = Checksum.run(conn).await;
        self.0.note("ended");
        inner
    }

    fn handler(self) -> Giving {
        Giving { told: self.0, inner: Summing::default() }
    }
}

impl Handler for Giving {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.send_owned(REPLY.clone()).expect("an empty queue takes it");
        conn.send(b"!").expect_err("the queue is full, and reading stops");
        Flow::Continue
    }

    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        self.inner.received(conn, bytes)
    }

    fn hung_up(&mut self, _: &mut event::Connection<'_>) -> Flow {
        self.told.note("Ended");
        Flow::Continue
    }

    fn ended(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.told.note("ended");
        self.inner.ended(conn)
    }
}

scenario! {
    fn the_end_of_a_peer_is_told_while_its_bytes_are_unread(world) {
        let told = Told::default();
        let server = world.serve_with(Generous(told.clone()), tight);
        let address = server.local_addr();
        let seen = told.clone();
        let moment = world.time(1.0);
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            send_request(&mut conn, moment).await;
            conn.finish().await.unwrap();
            until("the server knows", || !seen.all().is_empty()).await;
            let reply = recv_all(&mut conn).await.unwrap();
            assert!(reply[..MUCH] == REPLY[..], "it gets all of the reply");
            assert_eq!(reply[MUCH..], checksum(&pattern(0..REQUEST)), "and it reads all of them");
        });
        assert_eq!(told.all(), ["Ended", "ended"]);
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
    }
}

scenario! {
    fn an_end_that_can_be_told_as_such_is_not_told_before(world) {
        let told = Told::default();
        let server = world.serve(Ends(told.clone()));
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(&pattern(0..REQUEST)).await.unwrap();
            conn.finish().await.unwrap();
            recv_all(&mut conn).await.unwrap();
        });
        assert_eq!(told.all(), ["ended"]);
    }
}

/// Reads to the end, and tells of it.
#[derive(Clone)]
struct Ends(Told);

impl Behaviour for Ends {
    type Handler = Ends;

    async fn run(self, conn: Connection) -> Result<()> {
        Discard.run(conn).await?;
        self.0.note("ended");
        Ok(())
    }

    fn handler(self) -> Ends {
        self
    }
}

impl Handler for Ends {
    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn hung_up(&mut self, _: &mut event::Connection<'_>) -> Flow {
        self.0.note("hung up");
        Flow::Continue
    }

    fn ended(&mut self, _: &mut event::Connection<'_>) -> Flow {
        self.0.note("ended");
        Flow::Close
    }
}

scenario! {
    async fn work_for_a_peer_that_hangs_up_can_be_given_up_before_its_input_is_read(world) {
        let told = Told::default();
        let server = world.serve_with(Generous(told.clone()), tight);
        let address = server.local_addr();
        let seen = told.clone();
        let moment = world.time(1.0);
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            send_request(&mut conn, moment).await;
            // The server has stopped to read, and learns of the reset all the same.
            conn.recv_exact(&mut [0; 1]).await.unwrap();
            conn.reset().await;
            until("the server knows", || !seen.all().is_empty()).await;
        });
        assert_eq!(told.all()[0], "Closed(PeerReset)");
        assert_eq!(world.stop(&server).closed(CloseReason::PeerReset), 1);
    }
}

scenario! {
    async fn a_hangup_waits_as_long_as_both_stay_and_ends_with_the_connection(world) {
        let server = world.serve(ReplyThenClose(b"reply"[..].into()));
        let address = server.local_addr();
        let moment = world.time(1.0);
        world.run(async move {
            let (read, mut write) = Client::connect(address).await.unwrap().split();
            assert!(read.hangup().within(moment).await.unwrap_err().is_timeout());
            let (one, other) = (read.hangup(), write.hangup());
            write.send(b"request").await.unwrap();
            assert_eq!((one.await, other.await), (Hangup::Ended, Hangup::Ended));
            let mut conn = read.join(write).unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"reply");
            let reason = conn.close().await;
            assert_eq!((conn.hangup().await, reason), (Hangup::Closed(reason), CloseReason::Peer));
        });
    }
}

/// Sends [`REPLY`] at once, and notes how much is not acknowledged: before it, after it, and with every message.
#[derive(Clone)]
struct Counting(Told);

impl Counting {
    fn note(&self, unacked: Option<usize>) {
        let what = match unacked {
            None | Some(0) => format!("{unacked:?}"),
            Some(n) if (MUCH / 2..=MUCH).contains(&n) => "most".into(),
            Some(_) => "some".into(),
        };
        self.0.note(what);
    }
}

impl Behaviour for Counting {
    type Handler = Counting;

    async fn run(self, mut conn: Connection) -> Result<()> {
        self.note(conn.unacked());
        conn.send_owned(REPLY.clone()).await?;
        self.note(conn.unacked());
        while conn.recv(&mut [0; 1]).await? > 0 {
            self.note(conn.unacked());
        }
        conn.close().await;
        self.note(conn.unacked());
        Ok(())
    }

    fn handler(self) -> Counting {
        self
    }
}

impl Handler for Counting {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.note(conn.unacked());
        conn.send_owned(REPLY.clone()).expect("an empty queue takes it");
        self.note(conn.unacked());
        Flow::Continue
    }

    fn received(&mut self, conn: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        self.note(conn.unacked());
        Flow::Consumed(1)
    }

    fn closed(&mut self, conn: &mut event::Connection<'_>, _: CloseReason) {
        self.note(conn.unacked());
    }
}

scenario! {
    fn bytes_are_unacknowledged_until_the_peers_system_has_them(world) {
        if cfg!(not(target_os = "linux")) && !world.is_simulated() {
            return;
        }
        let told = Told::default();
        let server = world.serve_with(Counting(told.clone()), tight);
        let address = server.local_addr();
        let seen = told.clone();
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(64 * 1024);
            let mut conn = Client::new(address).sockets(sockets).open().await.unwrap();
            until("the reply is on its way", || seen.all().len() == 2).await;
            let mut reply = vec![0; MUCH];
            conn.recv_exact(&mut reply).await.unwrap();
            while seen.all().last().unwrap() != "Some(0)" {
                let asked = seen.all().len();
                conn.send(b"?").await.unwrap();
                until("it has an answer", || seen.all().len() > asked).await;
            }
            assert_eq!(conn.unacked(), Some(0), "and it has what was asked for");
        });
        world.stop(&server);
        let told = told.all();
        assert_eq!((&*told[0], &*told[1]), ("Some(0)", "most"));
        assert_eq!(&told[told.len() - 2..], ["Some(0)", "None"], "none when it is closed");
    }
}

/// Whether acknowledgements can be seen here.
fn sees_acknowledgements(world: &World) -> bool {
    cfg!(target_os = "linux") || world.is_simulated()
}

scenario! {
    async fn what_was_sent_is_delivered_when_the_peers_system_has_it_whether_or_not_it_reads(world) {
        if !sees_acknowledgements(world) {
            return;
        }
        let server = world.serve(Hold);
        let address = server.local_addr();
        let moment = world.time(1.0);
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.delivered().await.expect("nothing is nothing to wait for");
            conn.send(&pattern(0..REQUEST)).await.unwrap();
            let delivered = conn.delivered();
            // What is sent later does not count.
            let mut sent = Ok(());
            while sent.is_ok() {
                sent = conn.send(&pattern(0..REQUEST)).within(moment).await;
            }
            delivered.await.unwrap();
            let late = conn.delivered().within(moment).await.unwrap_err();
            assert!(late.is_timeout() && late.operation() == "deliver", "{late}");
            assert!(conn.unacked().unwrap() > 0);
            let all = conn.delivered();
            conn.reset();
            let lost = all.await.unwrap_err();
            assert_eq!(lost.close_reason(), Some(CloseReason::LocalReset), "{lost}");
            assert!(lost.undelivered().unwrap() > 0, "{lost}");
        });
    }
}

scenario! {
    async fn a_close_in_order_delivers_everything_and_a_reset_by_the_peer_tells_what_it_did_not(world) {
        if !sees_acknowledgements(world) {
            return;
        }
        let server = world.serve_with(Echo, tight);
        let address = server.local_addr();
        let resetting = world.serve_with(EndAfter { delay: world.time(2.0), reset: true }, tight).local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(&pattern(0..REQUEST)).await.unwrap();
            let delivered = conn.delivered();
            conn.close().await;
            delivered.await.expect("it closed in order");
            assert!(conn.delivered().await.is_ok(), "that stays known");

            let mut conn = Client::new(resetting).limits(Limits::default().send_max(2 * MUCH)).open().await.unwrap();
            conn.send_owned(REPLY.clone()).await.unwrap();
            let error = conn.delivered().await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
            let lost = error.undelivered().unwrap();
            assert!(lost > 0 && lost <= MUCH as u64, "{error}");
        });
    }
}

/// Sends more than its peer takes, and reads what came only after it has learned that the peer is gone.
#[derive(Clone)]
struct Late {
    told: Told,
    received: usize,
}

impl Late {
    fn new(told: &Told) -> Late {
        Late { told: told.clone(), received: 0 }
    }

    fn check(&mut self, bytes: &[u8]) {
        assert_pattern(bytes, self.received);
        self.received += bytes.len();
    }
}

impl Behaviour for Late {
    type Handler = Late;

    async fn run(mut self, mut conn: Connection) -> Result<()> {
        conn.send_owned(REPLY.clone()).await?;
        conn.hangup().await;
        let error = conn.send(b"?").await.unwrap_err();
        assert_eq!((error.close_reason(), error.kind()), (conn.close_reason(), ErrorKind::Peer));
        conn.flush().await.unwrap_err();
        let error = loop {
            match conn.recv_chunk().await {
                Ok(chunk) => self.check(&chunk.expect("a reset is no end in order")),
                Err(error) => break error,
            }
        };
        self.told.note(format!("{} bytes, {}", self.received, error.close_reason().unwrap()));
        Ok(())
    }

    fn handler(self) -> Late {
        self
    }
}

impl Handler for Late {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.send_owned(REPLY.clone()).expect("an empty queue takes it");
        conn.send(b"!").expect_err("the queue is full, and reading stops");
        Flow::Continue
    }

    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        let error = conn.send(b"?").expect_err("there is no way out any more");
        assert_eq!(error.kind(), ErrorKind::Peer, "{error}");
        self.check(bytes);
        Flow::Continue
    }

    fn writable(&mut self, _: &mut event::Connection<'_>) -> Flow {
        panic!("it is not");
    }

    fn closed(&mut self, _: &mut event::Connection<'_>, reason: CloseReason) {
        self.told.note(format!("{} bytes, {reason}", self.received));
    }
}

scenario! {
    fn what_a_peer_sent_before_it_reset_the_connection_is_still_received(world) {
        if !sees_acknowledgements(world) {
            return;
        }
        let told = Told::default();
        let server = world.serve_with(Late::new(&told), tight);
        let address = server.local_addr();
        let moment = world.time(1.0);
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            send_request(&mut conn, moment).await;
            conn.delivered().await.unwrap();
            conn.reset().await;
        });
        let stats = world.stop(&server);
        assert_eq!(told.all(), [format!("{REQUEST} bytes, reset by the peer")]);
        assert_eq!((stats.closed(CloseReason::PeerReset), stats.received), (1, REQUEST as u64));
        assert!(stats.unsent > 0, "and what was queued is counted as lost");
    }
}

/// Sends until that fails, then reads.
#[derive(Clone)]
struct Talker(Late);

impl Behaviour for Talker {
    type Handler = Talker;

    async fn run(mut self, mut conn: Connection) -> Result<()> {
        let error = loop {
            if let Err(error) = conn.send(b"?").await {
                break error;
            }
            wharf::sleep(Duration::from_millis(1)).await;
        };
        assert_eq!(error.close_reason(), Some(CloseReason::PeerReset));
        while let Ok(Some(chunk)) = conn.recv_chunk().await {
            self.0.check(&chunk);
        }
        self.0.told.note(format!("{} bytes", self.0.received));
        Ok(())
    }

    fn handler(self) -> Talker {
        self
    }
}

impl Handler for Talker {
    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }
}

scenario! {
    async fn a_send_that_fails_leaves_what_the_peer_sent_before_to_be_received(world) {
        if !sees_acknowledgements(world) {
            return;
        }
        for ends_first in [false, true] {
            let told = Told::default();
            let server = world.serve_with(Talker(Late::new(&told)), tight);
            let address = server.local_addr();
            let seen = told.clone();
            let moment = world.time(1.0);
            world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                send_request(&mut conn, moment).await;
                if ends_first {
                    conn.finish().await.unwrap();
                }
                conn.delivered().await.unwrap();
                conn.reset().await;
                until("the server has read", || !seen.all().is_empty()).await;
            });
            assert_eq!(told.all(), [format!("{REQUEST} bytes")]);
            assert_eq!(world.stop(&server).closed(CloseReason::PeerReset), 1);
        }
    }
}

/// Waits for its peer's end, and then for that of the connection, without reading.
#[derive(Clone)]
struct Idle(Told);

impl Behaviour for Idle {
    type Handler = Discard;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.hangup().await;
        let reason = conn.closed().await;
        let mut received = 0;
        while let Ok(Some(chunk)) = conn.recv_chunk().await {
            assert_pattern(&chunk, received);
            received += chunk.len();
        }
        assert!((1..REQUEST).contains(&received), "what was received in time stays: {received}");
        self.0.note(reason.to_string());
        Ok(())
    }

    fn handler(self) -> Discard {
        Discard
    }
}

scenario! {
    async fn a_broken_connection_that_nobody_reads_is_kept_for_the_linger_time_only(world) {
        if !sees_acknowledgements(world) {
            return;
        }
        let told = Told::default();
        let linger = world.time(5.0);
        let server = world.serve_with(Idle(told.clone()), |server| {
            tight(server).deadlines(Deadlines::default().linger(linger))
        });
        let address = server.local_addr();
        let before = world.now();
        let seen = told.clone();
        let moment = world.time(1.0);
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            send_request(&mut conn, moment).await;
            conn.delivered().await.unwrap();
            conn.reset().await;
            until("the server has closed", || !seen.all().is_empty()).await;
        });
        let took = world.now() - before;
        assert!(took >= linger && took < 3 * linger, "{took:?}");
        assert_eq!(told.all(), ["reset by the peer"]);
    }
}

scenario! {
    fn a_reader_that_stalls_holds_its_sender_back_and_then_gets_everything(world) {
        const TOTAL: usize = 3 << 19;
        let max = 64 * 1024;
        let (behaviour, notes) = Watched::new(Stream { total: TOTAL, piece: 10_000 });
        let server = world.serve_with(behaviour, |server| {
            let limits = Limits::default().send_marks(16 * 1024, 32 * 1024).send_max(max);
            server.limits(limits).sockets(SocketOptions::default().send_buffer(16 * 1024))
        });
        let address = server.local_addr();
        let stall = world.time(8.0);
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let limits = Limits::default().receive_buffer(4096);
            let mut conn = Client::new(address).sockets(sockets).limits(limits).open().await.unwrap();
            wharf::sleep(stall).await;
            assert!(conn.counts().received < TOTAL as u64 / 2, "the sender waits");
            let received = recv_all(&mut conn).await.unwrap();
            assert_eq!(received.len(), TOTAL);
            assert_pattern(&received, 0);
        });
        assert!(notes.look(|noted| noted.pending_max) <= max + 32 * 1024, "within its bounds");
        let stats = world.stop(&server);
        assert_eq!((stats.closed(CloseReason::Local), stats.unsent), (1, 0));
    }
}
