//! Two connections that become one: bytes, ends, failures and deadlines, on every backend.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wharf::event::{self, Flow, Handler};
use wharf::{Client, CloseReason, Connection, Deadlines, Limits, Relay, RelayEnd, Relayed, Result, WhenFull};

use common::behaviours::*;
use common::*;

/// Passes every connection on to a target, and keeps what became of it.
#[derive(Clone)]
struct Proxy {
    target: SocketAddr,
    relay: Relay,
    limits: Limits,
    ends: Arc<Mutex<Vec<Relayed>>>,
}

impl Proxy {
    fn to(target: SocketAddr) -> Proxy {
        Proxy { target, relay: Relay::new(), limits: Limits::default(), ends: Arc::default() }
    }

    fn with(self, relay: Relay) -> Proxy {
        Proxy { relay, ..self }
    }

    /// The only relay that there was.
    fn end(&self) -> Relayed {
        let ends = self.ends.lock().unwrap();
        assert_eq!(ends.len(), 1, "{ends:?}");
        ends[0]
    }
}

impl Behaviour for Proxy {
    type Handler = Never;

    async fn run(self, conn: Connection) -> Result<()> {
        let target = Client::new(self.target).limits(self.limits.clone()).open().await?;
        let relayed = self.relay.run(conn, target).await;
        self.ends.lock().unwrap().push(relayed);
        Ok(())
    }

    fn handler(self) -> Never {
        unreachable!("a relay is async")
    }
}

/// A handler that there is not.
struct Never;

impl Handler for Never {
    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Reset
    }
}

/// Waits for what the relay's own task still has to do.
async fn relayed(proxy: &Proxy) {
    let ends = proxy.ends.clone();
    until("the relay has ended", move || !ends.lock().unwrap().is_empty()).await;
}

scenario! {
    async fn bytes_go_both_ways_and_the_end_follows_the_last_one(world) {
        let target = world.serve(Echo);
        let proxy = Proxy::to(target.local_addr());
        let server = world.serve(proxy.clone());
        let address = server.local_addr();
        let seen = proxy.clone();
        world.run(async move {
            let (mut read, mut write) = Client::connect(address).await.unwrap().split();
            let writing = wharf::spawn(async move {
                for part in pattern(0..700_000).chunks(9_000) {
                    write.send(part).await.unwrap();
                }
                write.finish().await.unwrap();
                write
            });
            let mut offset = 0;
            while let Some(chunk) = read.recv_chunk().await.unwrap() {
                assert_pattern(&chunk, offset);
                offset += chunk.len();
            }
            assert_eq!(offset, 700_000);
            drop(writing.await.unwrap());
            relayed(&seen).await;
        });
        let end = proxy.end();
        assert_eq!((end.a_to_b, end.b_to_a, end.ended), (700_000, 700_000, RelayEnd::InOrder));
    }
}

/// Answers when the peer has ended, after a while, and with much.
#[derive(Clone)]
struct LateAnswer(Duration, usize);

impl Behaviour for LateAnswer {
    type Handler = Never;

    async fn run(self, mut conn: Connection) -> Result<()> {
        recv_all(&mut conn).await?;
        for part in pattern(0..self.1).chunks(10_000) {
            wharf::sleep(self.0).await;
            conn.send(part).await?;
        }
        Ok(())
    }

    fn handler(self) -> Never {
        unreachable!("an answer that waits is async")
    }
}

scenario! {
    /// A client that ends its request reads an answer for longer than it may be silent.
    async fn a_half_close_is_passed_on_and_a_long_answer_is_not_cut_short(world) {
        // A busy machine may stand still for a while.
        let target = world.serve(LateAnswer(world.time(2.5), 100_000));
        let relay = Relay::new().idle(world.time(20.0)).half_closed_idle(world.time(20.0));
        let proxy = Proxy::to(target.local_addr()).with(relay);
        let server = world.serve(proxy.clone());
        let (address, seen) = (server.local_addr(), proxy.clone());
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"request").await.unwrap();
            conn.finish().await.unwrap();
            let answer = recv_all(&mut conn).await.unwrap();
            assert_eq!(answer.len(), 100_000);
            assert_pattern(&answer, 0);
            drop(conn);
            relayed(&seen).await;
        });
        let end = proxy.end();
        assert_eq!((end.a_to_b, end.b_to_a, end.ended), (7, 100_000, RelayEnd::InOrder));
    }
}

scenario! {
    /// Neither direction's silence counts by itself: not by the relay's deadline, nor by the connections' own.
    async fn a_direction_may_be_silent_as_long_as_the_other_one_talks(world) {
        let target = world.serve(LateAnswer(world.time(1.0), 100_000));
        let relay = Relay::new().idle(world.time(4.0)).half_closed_idle(world.time(4.0));
        let proxy = Proxy::to(target.local_addr()).with(relay);
        let silence = Deadlines::default().idle(world.time(3.0)).first_byte(world.time(3.0));
        let server = world.serve_with(proxy.clone(), |server| server.deadlines(silence));
        let (address, seen) = (server.local_addr(), proxy.clone());
        let pause = world.time(1.0);
        world.run(async move {
            // The other way round: this side talks, and the target listens.
            let mut conn = Client::connect(address).await.unwrap();
            for _ in 0..8 {
                conn.send(b"x").await.unwrap();
                wharf::sleep(pause).await;
            }
            conn.finish().await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap().len(), 100_000);
            drop(conn);
            relayed(&seen).await;
        });
        assert_eq!(proxy.end().ended, RelayEnd::InOrder);
    }
}

scenario! {
    async fn a_relay_through_which_nothing_goes_ends_both_sides(world) {
        let target = world.serve(Echo);
        let proxy = Proxy::to(target.local_addr()).with(Relay::new().idle(world.time(2.0)));
        let server = world.serve(proxy.clone());
        let (address, seen) = (server.local_addr(), proxy.clone());
        let stats = target.clone();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"ping").await.unwrap();
            conn.recv_exact(&mut [0; 4]).await.unwrap();
            assert_eq!(conn.closed().await, CloseReason::PeerReset);
            relayed(&seen).await;
            until("the target's side has ended", || stats.connections() == 0).await;
        });
        let end = proxy.end();
        assert_eq!((end.a_to_b, end.b_to_a, end.ended), (4, 4, RelayEnd::Idle));
    }
}

scenario! {
    /// The peer has ended, and the target never does.
    async fn a_half_that_never_ends_ends_by_its_deadline(world) {
        for total in [false, true] {
            let target = world.serve(Hold);
            let relay = match total {
                true => Relay::new().half_closed_max(world.time(2.0)),
                false => Relay::new().half_closed_idle(world.time(2.0)),
            };
            let proxy = Proxy::to(target.local_addr()).with(relay);
            let server = world.serve(proxy.clone());
            let (address, seen) = (server.local_addr(), proxy.clone());
            world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"bye").await.unwrap();
                conn.finish().await.unwrap();
                relayed(&seen).await;
                conn.closed().await;
            });
            let end = proxy.end();
            assert_eq!((end.a_to_b, end.b_to_a, end.ended), (3, 0, RelayEnd::HalfClosed));
        }
    }
}

scenario! {
    async fn a_reset_is_passed_on_as_a_reset_and_told(world) {
        let target = world.serve(Hold);
        let proxy = Proxy::to(target.local_addr());
        let server = world.serve(proxy.clone());
        let (address, seen) = (server.local_addr(), proxy.clone());
        let watched = target.clone();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"ping").await.unwrap();
            until("the target has a connection", || watched.connections() == 1).await;
            conn.reset().await;
            relayed(&seen).await;
            until("the target's side has ended", || watched.connections() == 0).await;
        });
        assert_eq!(proxy.end().ended, RelayEnd::A(CloseReason::PeerReset));
        let closes = target.stats().closes;
        assert!(closes.contains(&(CloseReason::PeerReset, 1)), "{closes:?}");
    }
}

scenario! {
    async fn a_target_that_resets_is_told_with_its_side(world) {
        let target = world.serve(ResetAtOnce);
        let proxy = Proxy::to(target.local_addr());
        let server = world.serve(proxy.clone());
        let (address, seen) = (server.local_addr(), proxy.clone());
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let _ = conn.send(b"ping").await;
            assert_eq!(conn.closed().await, CloseReason::PeerReset);
            relayed(&seen).await;
        });
        assert_eq!(proxy.end().ended, RelayEnd::B(CloseReason::PeerReset));
    }
}

/// Resets whoever says anything.
#[derive(Clone)]
struct ResetAtOnce;

impl Behaviour for ResetAtOnce {
    type Handler = Never;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.recv(&mut [0; 1]).await?;
        conn.reset().await;
        Ok(())
    }

    fn handler(self) -> Never {
        unreachable!("only async")
    }
}

scenario! {
    /// What waits for a side that does not read stays within the limits of both connections.
    async fn a_side_that_does_not_read_stops_the_other_one(world) {
        let target = world.serve(Echo);
        let bounds = || Limits::default().send_marks(1000, 16_000).send_max(20_000).receive_buffer(8000);
        for when_full in [WhenFull::Wait, WhenFull::Refuse] {
            let mut proxy = Proxy::to(target.local_addr());
            proxy.limits = bounds().when_full(when_full);
            let server = world.serve_with(proxy.clone(), |server| server.limits(bounds().when_full(when_full)));
            let (address, seen) = (server.local_addr(), proxy.clone());
            world.run(async move {
                let (mut read, mut write) = Client::connect(address).await.unwrap().split();
                let writing = wharf::spawn(async move {
                    for part in pattern(0..3_000_000).chunks(30_000) {
                        write.send(part).await.unwrap();
                    }
                    write.finish().await.unwrap();
                    write
                });
                for _ in 0..20 {
                    wharf::sleep(Duration::from_micros(300)).await;
                }
                let used = server.memory_used();
                assert!(used < 1_000_000, "{used} of 3,000,000 bytes");
                let mut offset = 0;
                while let Some(chunk) = read.recv_chunk().await.unwrap() {
                    assert_pattern(&chunk, offset);
                    offset += chunk.len();
                }
                assert_eq!(offset, 3_000_000);
                drop(writing.await.unwrap());
                relayed(&seen).await;
            });
            assert_eq!(proxy.end().ended, RelayEnd::InOrder);
        }
    }
}

scenario! {
    async fn a_relay_that_is_dropped_has_not_ended_in_order_for_either_side(world) {
        let target = world.serve(Discard);
        let address = target.local_addr();
        let watched = target.clone();
        world.run(async move {
            for resets in [true, false] {
                let a = Client::connect(address).await.unwrap();
                let b = Client::connect(address).await.unwrap();
                let (a_closed, b_closed) = (a.closed(), b.closed());
                until("both are accepted", || watched.connections() == 2).await;
                let relay = Relay::new().reset_on_failure(resets);
                let given_up = wharf::within(Duration::from_millis(2), relay.run(a, b)).await;
                assert!(given_up.unwrap_err().is_timeout());
                let ends = [a_closed.await, b_closed.await];
                assert!(ends.iter().all(|end| end.is_graceful() != resets), "{ends:?}");
                until("both are gone", || watched.connections() == 0).await;
            }
        });
    }
}

/// TLS on one side, on the other, and on both.
#[test]
#[cfg(feature = "tls")]
fn tls_on_either_side_is_relayed_like_any_other() {
    use wharf::Server;

    let name = "tls_on_either_side_is_relayed_like_any_other";
    let _watchdog = Watchdog::patient(name, Duration::from_secs(60));
    for backend in backends(name) {
        for (front, back) in [(Wire::Tls, Wire::Plain), (Wire::Plain, Wire::Tls), (Wire::Tls, Wire::Tls)] {
            let target = back.server(Server::bind("127.0.0.1:0").workers(1).backend(backend));
            let target = target.start(|conn| Echo.run(conn)).unwrap();
            let (ends, to) = (Arc::new(Mutex::new(Vec::new())), target.local_addr());
            let proxy = front.server(Server::bind("127.0.0.1:0").workers(1).backend(backend));
            let seen = ends.clone();
            let proxy = proxy
                .start(move |conn: Connection| {
                    let ends = ends.clone();
                    async move {
                        let relayed = wharf::relay(conn, back.client(to).open().await?).await;
                        ends.lock().unwrap().push(relayed);
                        Ok(())
                    }
                })
                .unwrap();
            let address = proxy.local_addr();
            wharf::run_on(backend, async move {
                let (mut read, mut write) = front.client(address).open().await.unwrap().split();
                let writing = wharf::spawn(async move {
                    write.send(&pattern(0..400_000)).await.unwrap();
                    write.finish().await.unwrap();
                    write
                });
                let mut offset = 0;
                while let Some(chunk) = read.recv_chunk().await.unwrap() {
                    assert_pattern(&chunk, offset);
                    offset += chunk.len();
                }
                assert_eq!(offset, 400_000);
                drop(writing.await.unwrap());
            })
            .unwrap();
            for server in [proxy, target] {
                server.drain(Duration::from_secs(5)).wait().unwrap();
            }
            let ends = seen.lock().unwrap();
            let counts: Vec<_> = ends.iter().map(|end| (end.a_to_b, end.b_to_a, end.ended)).collect();
            assert_eq!(counts, [(400_000, 400_000, RelayEnd::InOrder)], "{front:?} {back:?} on {backend}");
        }
    }
}
