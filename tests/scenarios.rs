//! What a server and its clients do to each other, on every backend and in both styles.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use wharf::event::{self, Flow, Handler};
use wharf::{
    Bound, Client, CloseReason, Connection, Deadline, Deadlines, ErrorKind, Limits, ReadHalf, ReceiveRate,
    Result, SocketOptions, WhenFull, WriteHalf,
};

use common::behaviours::*;
use common::*;

scenario! {
    fn messages_of_many_sizes_come_back_intact(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            for size in [1, 2, 3, 7, 64, 1000, 1023, 1024, 1025, 4096, 16_384, 16_385, 40_000, 65_537] {
                let message = pattern(size..2 * size);
                conn.send(&message).await.unwrap();
                let mut echo = vec![0; size];
                conn.recv_exact(&mut echo).await.unwrap();
                assert!(echo == message, "a message of {size} bytes was changed");
            }
            conn.finish().await.unwrap();
            assert_eq!(conn.recv(&mut [0; 8]).await.unwrap(), 0);
        });
        let stats = world.stop(&server);
        assert_eq!((stats.accepted, stats.closed(CloseReason::Peer)), (1, 1));
        assert_eq!((stats.received, stats.unsent), (stats.sent, 0));
    }
}

scenario! {
    fn a_large_transfer_both_ways_at_once_is_intact(world) {
        const TOTAL: usize = 1 << 20;
        let server = world.serve(Echo);
        let address = server.local_addr();
        world.run(async move {
            let conn = Client::connect(address).await.unwrap();
            let (mut read, mut write) = conn.split();
            let writer = wharf::spawn(async move {
                let mut sent = 0;
                for size in [1, 100, 5000, 30_000].iter().cycle() {
                    let end = TOTAL.min(sent + size);
                    write.send(&pattern(sent..end)).await.unwrap();
                    sent = end;
                    if sent == TOTAL {
                        break;
                    }
                }
                write.finish().await.unwrap();
            });
            let mut received = 0;
            while let Some(chunk) = read.recv_chunk().await.unwrap() {
                assert_pattern(&chunk, received);
                received += chunk.len();
            }
            assert_eq!(received, TOTAL);
            writer.await.unwrap();
        });
        let stats = world.stop(&server);
        assert_eq!((stats.received, stats.sent, stats.unsent), (TOTAL as u64, TOTAL as u64, 0));
    }
}

scenario! {
    fn half_close_still_delivers_what_was_sent(world) {
        let server = world.serve(Checksum);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let data = pattern(0..100_000);
            conn.send(&data).await.unwrap();
            conn.finish().await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), checksum(&data));
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Peer), 1);
    }
}

scenario! {
    fn a_reply_before_a_close_with_unread_input_arrives_whole(world) {
        let reply = pattern(0..50_000);
        let server = world.serve(ReplyThenClose(reply.clone().into()));
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            // More than the server reads, and it goes on coming while the server closes.
            for _ in 0..20 {
                if conn.send(&[b'x'; 8192]).await.is_err() {
                    break;
                }
            }
            let received = recv_all(&mut conn).await.expect("the reply ends in order, not with a reset");
            assert!(received == reply, "{} of {} bytes", received.len(), reply.len());
        });
        let stats = world.stop(&server);
        assert_eq!((stats.closed(CloseReason::Local), stats.unsent), (1, 0));
    }
}

scenario! {
    fn a_reset_by_the_peer_is_told_as_such_exactly_once(world) {
        let (behaviour, notes) = Watched::new(Echo);
        let server = world.serve(behaviour);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"hello").await.unwrap();
            conn.recv_exact(&mut [0; 5]).await.unwrap();
            assert_eq!(conn.reset().await, CloseReason::LocalReset);
            until("the server knows", || notes.closed_all() > 0).await;
            assert_eq!((notes.closed(CloseReason::PeerReset), notes.closed_all()), (1, 1));
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::PeerReset), 1);
    }
}

scenario! {
    fn a_reset_by_the_server_is_seen_as_one(world) {
        let server = world.serve(Moody);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"r").await.unwrap();
            let error = conn.recv(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
            assert_eq!(error.io_kind(), Some(std::io::ErrorKind::ConnectionReset));
            assert_eq!(conn.closed().await, CloseReason::PeerReset);
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::LocalReset), 1);
    }
}

scenario! {
    fn a_handler_that_panics_loses_its_own_connection_only(world) {
        let server = world.serve_with(Moody, |server| server.workers(1));
        let address = server.local_addr();
        world.run(async move {
            let mut good = Client::connect(address).await.unwrap();
            let mut bad = Client::connect(address).await.unwrap();
            bad.send(b"p").await.unwrap();
            let error = bad.recv(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
            good.send(b"so what?").await.unwrap();
            good.recv_exact(&mut [0; 8]).await.unwrap();
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::HandlerPanicked), 1);
        assert_eq!(stats.closed(CloseReason::Peer), 1);
    }
}

scenario! {
    fn a_handler_that_fails_still_gets_its_last_words_out(world) {
        let server = world.serve(Moody);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"f").await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"last words");
        });
        let stats = world.stop(&server);
        let reason = match world.style() {
            Style::Async => CloseReason::HandlerFailed,
            // An event handler has no error to return: it just closes.
            Style::Event => CloseReason::Local,
        };
        assert_eq!(stats.closed(reason), 1, "{stats:?}");
    }
}

scenario! {
    fn a_connect_to_nobody_is_refused_at_once(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        world.stop(&server);
        world.run(async move {
            let error = Client::connect(address).await.unwrap_err();
            assert!(error.is_refused(), "{error}");
            assert_eq!(error.kind(), ErrorKind::Peer);
            assert!(error.to_string().starts_with(&format!("connect to {address}: ")), "{error}");
        });
    }
}

scenario! {
    fn a_peer_that_never_reads_costs_its_bounds_and_is_ended(world) {
        let max = 64 * 1024;
        let (behaviour, notes) = Watched::new(Stream { total: 64 << 20, piece: 10_000 });
        let deadlines = Deadlines::default().write(world.time(4.0));
        let server = world.serve_with(behaviour, |server| {
            let limits = Limits::default().send_marks(16 * 1024, 32 * 1024).send_max(max);
            let sockets = SocketOptions::default().send_buffer(16 * 1024);
            server.limits(limits).deadlines(deadlines).sockets(sockets)
        });
        let address = server.local_addr();
        let seen = notes.clone();
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let conn = Client::new(address).sockets(sockets).open().await.unwrap();
            until("the server gives up", || seen.closed_all() > 0).await;
            drop(conn);
        });
        assert_eq!(notes.closed(CloseReason::Timeout(Deadline::Write)), 1);
        // What counted as sent and was not, comes on top.
        let most = max + 32 * 1024;
        assert!(notes.look(|noted| noted.pending_max) <= most);
        let stats = world.stop(&server);
        assert!(stats.unsent > 0 && stats.unsent <= most as u64, "{stats:?}");
    }
}

scenario! {
    fn a_full_queue_refuses_a_message_whole_if_that_was_asked_for(world) {
        let flood = Flood::new(10_000);
        let outcomes = flood.outcomes.clone();
        let server = world.serve_with(flood, |server| {
            let limits = Limits::default().send_marks(16 * 1024, 32 * 1024).send_max(64 * 1024);
            let limits = limits.when_full(WhenFull::Refuse);
            server.limits(limits).sockets(SocketOptions::default().send_buffer(16 * 1024))
        });
        let address = server.local_addr();
        let seen = outcomes.clone();
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let mut conn = Client::new(address).sockets(sockets).open().await.unwrap();
            conn.send(b"!").await.unwrap();
            until("a send is refused", || seen.lock().unwrap().iter().any(std::result::Result::is_err)).await;
            conn.finish().await.unwrap();
            let received = recv_all(&mut conn).await.unwrap();
            let accepted = seen.lock().unwrap().iter().filter(|each| each.is_ok()).count();
            assert_eq!(received.len(), 10_000 * accepted, "whole messages or nothing");
        });
        let refused = outcomes.lock().unwrap().iter().filter_map(|each| each.err()).next();
        assert_eq!(refused, Some((ErrorKind::Limit, None)));
        let stats = world.stop(&server);
        assert_eq!((stats.closed(CloseReason::Peer), stats.unsent), (1, 0), "{stats:?}");
    }
}

scenario! {
    fn a_full_queue_disconnects_if_that_was_asked_for(world) {
        let reason = CloseReason::Limit(Bound::SendQueue);
        let flood = Flood::new(10_000);
        let outcomes = flood.outcomes.clone();
        let server = world.serve_with(flood, |server| {
            let limits = Limits::default().send_marks(16 * 1024, 32 * 1024).send_max(64 * 1024);
            let limits = limits.when_full(WhenFull::Disconnect);
            server.limits(limits).sockets(SocketOptions::default().send_buffer(16 * 1024))
        });
        let address = server.local_addr();
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let mut conn = Client::new(address).sockets(sockets).open().await.unwrap();
            conn.send(b"!").await.unwrap();
            let error = recv_all(&mut conn).await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
        });
        let last = outcomes.lock().unwrap().last().copied();
        assert_eq!(last, Some(Err((ErrorKind::Limit, Some(reason)))));
        let stats = world.stop(&server);
        assert_eq!(stats.closed(reason), 1, "{stats:?}");
        assert!(stats.unsent > 0, "{stats:?}");
    }
}

scenario! {
    fn a_remote_that_passes_its_bound_disconnects_if_that_was_asked_for(world) {
        let reason = CloseReason::Limit(Bound::SendQueue);
        let (behaviour, notes) = Watched::new(Discard);
        let server = world.serve_with(behaviour, |server| {
            let limits = Limits::default().send_marks(16 * 1024, 32 * 1024).send_max(64 * 1024);
            let limits = limits.when_full(WhenFull::Disconnect);
            server.limits(limits).sockets(SocketOptions::default().send_buffer(16 * 1024))
        });
        let address = server.local_addr();
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let _slow = Client::new(address).sockets(sockets).open().await.unwrap();
            until("the server has it", || notes.connected() == 1).await;
            let remote = notes.remotes().remove(0);
            let refused = loop {
                if let Err(error) = remote.send(vec![b'x'; 10_000]) {
                    break error;
                }
            };
            assert_eq!(refused.kind(), ErrorKind::Limit, "{refused}");
            until("it is over", || notes.closed(reason) == 1).await;
            assert_eq!(remote.close_reason(), Some(reason));
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(reason), 1, "{stats:?}");
    }
}

scenario! {
    async fn a_message_that_can_never_be_queued_is_refused_where_nobody_waits(world) {
        for when_full in [WhenFull::Refuse, WhenFull::Disconnect] {
            let flood = Flood::new(64 * 1024 + 1);
            let outcomes = flood.outcomes.clone();
            let server = world.serve_with(flood, |server| {
                server.limits(Limits::default().send_max(64 * 1024).when_full(when_full))
            });
            let address = server.local_addr();
            world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"!").await.unwrap();
                conn.finish().await.unwrap();
                assert_eq!(recv_all(&mut conn).await.unwrap(), b"");
            });
            assert_eq!(outcomes.lock().unwrap()[..], [Err((ErrorKind::Limit, None))]);
            assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
        }
    }
}

scenario! {
    fn a_request_that_drips_in_is_ended_by_its_total_deadline(world) {
        let server = world.serve(Request { bytes: 100, within: world.time(10.0) });
        let address = server.local_addr();
        let every = world.time(2.0);
        let began = world.now();
        world.run(async move {
            let (mut read, mut write) = Client::connect(address).await.unwrap().split();
            let _drip = wharf::spawn(async move {
                while write.send(b"x").await.is_ok() {
                    wharf::sleep(every).await;
                }
            });
            assert_eq!(read.recv(&mut [0; 8]).await.unwrap(), 0, "the server says nothing and ends");
        });
        let took = world.now() - began;
        assert!(took >= world.time(10.0), "{took:?}");
        assert!(took < world.time(12.0) + Duration::from_millis(500), "{took:?}");
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::Handler)), 1, "{stats:?}");
    }
}

scenario! {
    fn a_request_in_time_is_answered(world) {
        let server = world.serve(Request { bytes: 100, within: world.time(30.0) });
        let address = server.local_addr();
        let pause = world.time(0.1);
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            for _ in 0..100 {
                conn.send(b"x").await.unwrap();
                wharf::sleep(pause / 10).await;
            }
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"ok");
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

scenario! {
    fn a_silent_peer_is_ended_and_a_slow_one_is_not(world) {
        let idle = world.time(10.0);
        let server = world.serve_with(Echo, |server| server.deadlines(Deadlines::default().idle(idle)));
        let address = server.local_addr();
        let every = world.time(3.0);
        world.run(async move {
            let silent = wharf::spawn(async move {
                let mut conn = Client::connect(address).await.unwrap();
                assert_eq!(conn.recv(&mut [0; 8]).await.unwrap(), 0);
            });
            let mut conn = Client::connect(address).await.unwrap();
            for _ in 0..8 {
                wharf::sleep(every).await;
                conn.send(b"x").await.unwrap();
                conn.recv_exact(&mut [0; 1]).await.unwrap();
            }
            silent.await.unwrap();
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::Idle)), 1, "{stats:?}");
        assert_eq!(stats.closed(CloseReason::Peer), 1, "{stats:?}");
    }
}

scenario! {
    fn what_a_server_sends_does_not_extend_the_idle_deadline_of_a_silent_peer(world) {
        let idle = world.time(10.0);
        let (behaviour, notes) = Watched::new(Echo);
        let server = world.serve_with(behaviour, |server| server.deadlines(Deadlines::default().idle(idle)));
        let address = server.local_addr();
        let every = world.time(2.0);
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            until("the server has it", || notes.connected() == 1).await;
            let remote = notes.remotes().remove(0);
            let mut ticks = 0;
            while remote.send(&b"tick"[..]).is_ok() {
                ticks += 1;
                assert!(ticks < 20, "the peer was silent for long enough");
                wharf::sleep(every).await;
            }
            let received = recv_all(&mut conn).await.unwrap();
            assert_eq!(received.len(), 4 * ticks);
            assert_eq!(notes.closed(CloseReason::Timeout(Deadline::Idle)), 0, "it lingers");
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Timeout(Deadline::Idle)), 1);
    }
}

scenario! {
    fn a_connection_ends_at_its_age_whatever_it_does(world) {
        let age = world.time(10.0);
        let server = world.serve_with(Echo, |server| server.deadlines(Deadlines::default().age(age)));
        let address = server.local_addr();
        let every = world.time(1.0);
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let mut rounds = 0;
            while conn.send(b"x").await.is_ok() && conn.recv_exact(&mut [0; 1]).await.is_ok() {
                rounds += 1;
                assert!(rounds < 50, "it is too old");
                wharf::sleep(every).await;
            }
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Timeout(Deadline::Age)), 1);
    }
}

scenario! {
    fn a_peer_that_says_nothing_is_ended_at_the_first_byte_deadline_whatever_is_sent_to_it(world) {
        let deadlines = Deadlines::default().first_byte(world.time(6.0)).idle(world.time(60.0));
        let (behaviour, notes) = Watched::new(Echo);
        let server = world.serve_with(behaviour, |server| server.deadlines(deadlines));
        let address = server.local_addr();
        let (began, every) = (world.now(), world.time(1.0));
        world.run(async move {
            let mut silent = Client::connect(address).await.unwrap();
            until("the server has it", || notes.connected() == 1).await;
            let remote = notes.remotes().remove(0);
            let ticks = wharf::spawn(async move {
                while remote.send(&b"tick"[..]).is_ok() {
                    wharf::sleep(every).await;
                }
            });
            // One that speaks once has the longer time.
            let mut good = Client::connect(address).await.unwrap();
            good.send(b"x").await.unwrap();
            good.recv_exact(&mut [0; 1]).await.unwrap();
            let received = recv_all(&mut silent).await.unwrap();
            assert!(received.starts_with(b"tick"));
            drop(silent);
            ticks.await.unwrap();
            good.send(b"still here").await.unwrap();
            good.recv_exact(&mut [0; 10]).await.unwrap();
        });
        let took = world.now() - began;
        assert!(took >= world.time(6.0) && took < world.time(30.0), "{took:?}");
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::FirstByte)), 1, "{stats:?}");
        assert_eq!(stats.closed(CloseReason::Peer), 1, "{stats:?}");
    }
}

scenario! {
    fn a_server_that_makes_its_peer_wait_does_not_count_that_as_silence(world) {
        // Before the peer says a word it reads a stream, slowly.
        let deadlines = Deadlines::default().first_byte(world.time(6.0)).write(world.time(60.0));
        let server = world.serve_with(Stream { total: 3_000_000, piece: 10_000 }, |server| {
            let limits = Limits::default().send_marks(16 * 1024, 32 * 1024).send_max(64 * 1024);
            let sockets = SocketOptions::default().send_buffer(16 * 1024);
            server.deadlines(deadlines).limits(limits).sockets(sockets)
        });
        let address = server.local_addr();
        let pause = world.time(0.5);
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let client = Client::new(address).sockets(sockets).limits(Limits::default().receive_buffer(1));
            let mut conn = client.open().await.unwrap();
            let mut received = 0;
            for _ in 0..20 {
                received += conn.recv_chunk().await.unwrap().map_or(0, |chunk| chunk.len());
                wharf::sleep(pause).await;
            }
            received += recv_all(&mut conn).await.unwrap().len();
            assert_eq!(received, 3_000_000);
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

scenario! {
    fn a_peer_that_drips_within_the_idle_time_is_ended_by_the_least_rate(world) {
        let idle = world.time(5.0);
        let rate = ReceiveRate::new(1000).grace(world.time(12.0));
        let server = world.serve_with(Frames, |server| {
            server.deadlines(Deadlines::default().idle(idle).first_byte(idle).receive_rate(rate))
        });
        let address = server.local_addr();
        let every = world.time(3.0);
        let began = world.now();
        world.run(async move {
            let (mut read, mut write) = Client::connect(address).await.unwrap().split();
            // A whole message first, and the beginning of the next one with it.
            write.send(&[0, 0, 0, 1, b'x', 0]).await.unwrap();
            read.recv_exact(&mut [0; 5]).await.unwrap();
            let drip = wharf::spawn(async move {
                for byte in [0, 0, 100].into_iter().chain([b'x'; 100]) {
                    wharf::sleep(every).await;
                    if write.send(&[byte]).await.is_err() {
                        return;
                    }
                }
            });
            assert_eq!(read.recv(&mut [0; 8]).await.unwrap(), 0, "the server ends");
            drop(drip);
        });
        let took = world.now() - began;
        // The four bytes of a length are a message of their own, for a handler that receives exactly those.
        assert!(took >= world.time(11.9), "{took:?}");
        assert!(took < world.time(36.0) + Duration::from_millis(500), "{took:?}");
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::ReceiveRate)), 1, "{stats:?}");
    }
}

scenario! {
    fn a_slow_message_above_the_least_rate_is_answered(world) {
        let rate = ReceiveRate::new(1).grace(world.time(6.0));
        let deadlines = Deadlines::default().receive_rate(rate);
        let server = world.serve_with(Frames, |server| server.deadlines(deadlines));
        let address = server.local_addr();
        // One in each second where time is virtual: twice the grace goes by.
        let every = world.time(1.0);
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let message = [&[0, 0, 0, 12][..], &[b'x'; 12]].concat();
            for byte in &message {
                conn.send(&[*byte]).await.unwrap();
                wharf::sleep(every).await;
            }
            let mut echo = [0; 16];
            conn.recv_exact(&mut echo).await.unwrap();
            assert_eq!(echo[..], message[..]);
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
    }
}

scenario! {
    async fn a_message_that_is_received_in_many_attempts_has_no_more_time(world) {
        #[derive(Clone)]
        struct Impatient(Duration);

        impl Behaviour for Impatient {
            type Handler = Discard;

            async fn run(self, mut conn: Connection) -> Result<()> {
                let mut message = [0; 100];
                loop {
                    match conn.recv_exact(&mut message).within(self.0).await {
                        Err(error) if error.is_timeout() && !error.is_closed() => {}
                        outcome => return outcome,
                    }
                }
            }

            fn handler(self) -> Discard {
                Discard
            }
        }

        let rate = ReceiveRate::new(1000).grace(world.time(10.0));
        let deadlines = Deadlines::default().idle(world.time(12.0)).receive_rate(rate);
        let server = world.serve_with(Impatient(world.time(1.3)), |server| server.deadlines(deadlines));
        let address = server.local_addr();
        let every = world.time(2.0);
        let began = world.now();
        world.run(async move {
            let (mut read, mut write) = Client::connect(address).await.unwrap().split();
            let _drip = wharf::spawn(async move {
                while write.send(b"x").await.is_ok() {
                    wharf::sleep(every).await;
                }
            });
            assert_eq!(read.recv(&mut [0; 8]).await.unwrap(), 0, "the server ends");
        });
        let took = world.now() - began;
        assert!(took >= world.time(10.0) && took < world.time(30.0), "{took:?}");
        assert_eq!(world.stop(&server).closed(CloseReason::Timeout(Deadline::ReceiveRate)), 1);
    }
}

scenario! {
    fn a_peer_that_reads_a_little_before_each_write_deadline_is_ended_all_the_same(world) {
        let deadlines = Deadlines::default().write(world.time(8.0)).age(world.time(30.0));
        let server = world.serve_with(Stream { total: usize::MAX, piece: 10_000 }, |server| {
            let limits = Limits::default().send_marks(16 * 1024, 32 * 1024).send_max(64 * 1024);
            let sockets = SocketOptions::default().send_buffer(16 * 1024);
            server.limits(limits).deadlines(deadlines).sockets(sockets)
        });
        let address = server.local_addr();
        let (watched, every, began) = (server.clone(), world.time(4.0), world.now());
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let client = Client::new(address).sockets(sockets).limits(Limits::default().receive_buffer(1));
            let mut conn = client.open().await.unwrap();
            until("the server has it", || watched.connections() == 1).await;
            while watched.connections() > 0 {
                // What is read makes room for as much again.
                let _ = conn.recv_chunk().within(every).await;
                wharf::sleep(every).await;
            }
        });
        let took = world.now() - began;
        // Then it has the linger time, and its turn to read.
        assert!(took < world.time(50.0) + Duration::from_secs(4), "{took:?}");
        let stats = world.stop(&server);
        let ended = stats.closed(CloseReason::Timeout(Deadline::Age));
        // A kernel may keep its window closed for longer than that.
        let stalled = stats.closed(CloseReason::Timeout(Deadline::Write));
        assert!(ended == 1 || (stalled == 1 && !world.is_simulated()), "{stats:?}");
    }
}

scenario! {
    fn a_connection_ends_at_its_age_in_the_middle_of_a_transfer(world) {
        let age = world.time(10.0);
        let server = world.serve_with(Stream { total: usize::MAX, piece: 100_000 }, |server| {
            server.deadlines(Deadlines::default().age(age))
        });
        let address = server.local_addr();
        let began = world.now();
        let pause = world.time(0.05);
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let mut received = 0;
            while let Ok(Some(chunk)) = conn.recv_chunk().await {
                assert_pattern(&chunk, received);
                received += chunk.len();
                wharf::sleep(pause).await;
            }
        });
        let took = world.now() - began;
        assert!(took >= age && took < 2 * age + Duration::from_secs(3), "{took:?}");
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::Age)), 1, "{stats:?}");
    }
}

scenario! {
    fn a_peer_that_does_not_end_is_waited_for_no_longer_than_the_linger_time(world) {
        let deadlines = Deadlines::default().linger(world.time(5.0));
        let server = world.serve_with(ReplyThenClose((*b"reply").into()), |server| server.deadlines(deadlines));
        let address = server.local_addr();
        let watched = server.clone();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"x").await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"reply");
            assert_eq!(watched.connections(), 1, "it waits for this side's end");
            until("it waits no longer", || watched.connections() == 0).await;
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

scenario! {
    fn a_hundred_silent_peers_do_not_delay_a_good_one(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        let (began, rounds) = (world.now(), 50);
        world.run(async move {
            let mut silent = Vec::new();
            for _ in 0..100 {
                silent.push(Client::connect(address).await.unwrap());
            }
            let mut conn = Client::connect(address).await.unwrap();
            for _ in 0..rounds {
                conn.send(b"ping").await.unwrap();
                conn.recv_exact(&mut [0; 4]).await.unwrap();
            }
        });
        if world.is_simulated() {
            // Each way is at most 50 ms, cut into few pieces, and at most as late again.
            let took = world.now() - began;
            assert!(took < Duration::from_millis(400) * (rounds + 100), "{took:?}");
        }
        assert_eq!(world.stop(&server).accepted, 101);
    }
}

scenario! {
    fn clients_above_the_limit_wait_and_are_served_when_one_leaves(world) {
        let server = world.serve_with(Echo, |server| server.limits(Limits::default().connections(2)));
        let address = server.local_addr();
        let (watched, wait) = (server.clone(), world.time(2.0));
        world.run(async move {
            let mut served = Vec::new();
            for _ in 0..2 {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"x").await.unwrap();
                conn.recv_exact(&mut [0; 1]).await.unwrap();
                served.push(conn);
            }
            let mut third = Client::connect(address).await.unwrap();
            third.send(b"third").await.unwrap();
            let mut answer = [0; 5];
            let late = third.recv_exact(&mut answer).within(wait).await.unwrap_err();
            assert!(late.is_timeout(), "{late}");
            assert_eq!(watched.connections(), 2);
            drop(served.pop());
            third.recv_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"third");
        });
        assert_eq!(world.stop(&server).accepted, 3);
    }
}

scenario! {
    fn a_drain_refuses_newcomers_and_lets_started_work_finish(world) {
        let (behaviour, notes) = Watched::new(Frames);
        let server = world.serve(behaviour);
        let address = server.local_addr();
        let (draining, long) = (server.clone(), world.time(300.0));
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(&[0, 0, 0, 6, b'h', b'a', b'l']).await.unwrap();
            until("the server has it", || notes.connected() == 1).await;
            draining.drain(long);
            until("the handler is told", || notes.draining() == 1).await;
            let error = Client::connect(address).await.unwrap_err();
            assert!(error.is_refused(), "{error}");
            assert!(!draining.is_stopped());
            conn.send(b"ves").await.unwrap();
            let mut frame = [0; 10];
            conn.recv_exact(&mut frame).await.unwrap();
            assert_eq!(&frame[4..], b"halves");
            drop(conn);
            until("the server has ended", || draining.is_stopped()).await;
        });
        let stats = world.stop(&server);
        assert_eq!((stats.closed(CloseReason::Peer), stats.unsent), (1, 0), "{stats:?}");
    }
}

scenario! {
    fn a_drain_resets_what_has_not_ended_at_its_deadline(world) {
        let (behaviour, notes) = Watched::new(Echo);
        let server = world.serve(behaviour);
        let address = server.local_addr();
        let (draining, within) = (server.clone(), world.time(4.0));
        let told = notes.clone();
        world.run(async move {
            let mut conns = Vec::new();
            for _ in 0..5 {
                conns.push(Client::connect(address).await.unwrap());
            }
            until("the server has them", || notes.connected() == 5).await;
            draining.drain(within);
            for mut conn in conns {
                let error = conn.recv(&mut [0; 8]).await.unwrap_err();
                assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
            }
            until("the server has ended", || draining.is_stopped()).await;
        });
        assert_eq!((told.draining(), told.closed(CloseReason::Shutdown)), (5, 5));
        assert_eq!(world.stop(&server).closed(CloseReason::Shutdown), 5);
    }
}

scenario! {
    fn handlers_can_say_goodbye_when_the_server_drains(world) {
        let server = world.serve(Polite);
        let address = server.local_addr();
        let (draining, long) = (server.clone(), world.time(300.0));
        world.run(async move {
            let mut conns = Vec::new();
            for _ in 0..3 {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"x").await.unwrap();
                conn.recv_exact(&mut [0; 1]).await.unwrap();
                conns.push(conn);
            }
            draining.drain(long);
            for conn in &mut conns {
                assert_eq!(recv_all(conn).await.unwrap(), b"bye");
            }
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 3);
    }
}

scenario! {
    fn a_stop_resets_everything_at_once(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        let stopping = server.clone();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"x").await.unwrap();
            conn.recv_exact(&mut [0; 1]).await.unwrap();
            stopping.stop();
            let error = conn.recv(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
            until("the server has ended", || stopping.is_stopped()).await;
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Shutdown), 1);
    }
}

scenario! {
    fn messages_of_another_thread_arrive_whole_and_in_order_before_its_close(world) {
        let (behaviour, notes) = Watched::new(Echo);
        let server = world.serve(behaviour);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            until("the server has it", || notes.connected() == 1).await;
            let remote = notes.remotes().remove(0);
            let sender = std::thread::spawn(move || {
                for n in 0..1000u32 {
                    remote.send(n.to_be_bytes().to_vec()).unwrap();
                }
                // Larger than what the send queue takes at once behind the others.
                remote.send(pattern(0..300_000)).unwrap();
                remote.send(pattern(300_000..600_000)).unwrap();
                remote.close();
            });
            sender.join().unwrap();
            let received = recv_all(&mut conn).await.unwrap();
            let (numbers, rest) = received.split_at(4000);
            assert!(numbers.chunks(4).zip(0u32..).all(|(bytes, n)| *bytes == n.to_be_bytes()));
            assert_pattern(rest, 0);
            assert_eq!(rest.len(), 600_000);
        });
        let stats = world.stop(&server);
        assert_eq!((stats.closed(CloseReason::Local), stats.unsent), (1, 0));
    }
}

scenario! {
    fn another_thread_is_told_when_a_slow_peer_has_its_bound(world) {
        let (behaviour, notes) = Watched::new(Echo);
        let max = 100_000;
        let server = world.serve_with(behaviour, |server| {
            let limits = Limits::default().send_marks(10_000, 50_000).send_max(max);
            server.limits(limits).sockets(SocketOptions::default().send_buffer(16 * 1024))
        });
        let address = server.local_addr();
        let seen = notes.clone();
        let queued = world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let mut conn = Client::new(address).sockets(sockets).open().await.unwrap();
            until("the server has it", || notes.connected() == 1).await;
            let remote = notes.remotes().remove(0);
            let too_large = remote.send(vec![0; max + 1]).unwrap_err();
            assert_eq!(too_large.kind(), ErrorKind::Limit);
            let mut sent = 0;
            let full = loop {
                match remote.send(pattern(sent..sent + 5000)) {
                    Ok(()) => sent += 5000,
                    Err(error) => break error,
                }
                assert!(remote.queued() <= max);
                wharf::sleep(Duration::from_micros(100)).await;
            };
            assert_eq!(full.kind(), ErrorKind::Limit, "{full}");
            let mut received = vec![0; sent];
            conn.recv_exact(&mut received).await.unwrap();
            assert_pattern(&received, 0);
            assert_eq!(remote.queued(), 0);
            remote.reset();
            assert!(conn.recv(&mut [0; 1]).await.is_err());
            until("the handle knows", || remote.close_reason().is_some()).await;
            sent
        });
        assert!(queued > 0);
        assert_eq!(seen.remotes()[0].close_reason(), Some(CloseReason::LocalReset));
        assert!(seen.remotes()[0].send("too late").unwrap_err().is_closed());
    }
}

scenario! {
    fn a_delayed_close_delivers_and_then_ends(world) {
        let server = world.serve(EndAfter { delay: world.time(2.0), reset: false });
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"hello");
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

scenario! {
    fn a_delayed_reset_resets(world) {
        let server = world.serve(EndAfter { delay: world.time(2.0), reset: true });
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.recv_exact(&mut [0; 5]).await.unwrap();
            let error = conn.recv(&mut [0; 1]).await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
        });
        assert_eq!(world.stop(&server).closed(CloseReason::LocalReset), 1);
    }
}

scenario! {
    fn frames_are_found_wherever_the_stream_is_cut(world) {
        let server = world.serve(Frames);
        let address = server.local_addr();
        world.run(async move {
            let mut stream = Vec::new();
            for size in [0, 1, 3, 500, 4, 70, 0, 0, 10_000, 2, 20_000, 1] {
                stream.extend_from_slice(&(size as u32).to_be_bytes());
                stream.extend_from_slice(&pattern(0..size));
            }
            let (mut read, mut write) = Client::connect(address).await.unwrap().split();
            let all = stream.clone();
            let writer = wharf::spawn(async move {
                let mut cut = 0;
                while cut < all.len() {
                    let end = all.len().min(cut + 1 + cut % 97 + cut / 50);
                    write.send(&all[cut..end]).await.unwrap();
                    write.flush().await.unwrap();
                    cut = end;
                }
                write.finish().await.unwrap();
            });
            let mut received = Vec::new();
            while let Some(chunk) = read.recv_chunk().await.unwrap() {
                received.extend_from_slice(&chunk);
            }
            assert!(received == stream);
            writer.await.unwrap();
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
    }
}

scenario! {
    fn a_frame_that_cannot_fit_the_receive_buffer_ends_its_connection(world) {
        let limits = Limits::default().receive_buffer(4096);
        let server = world.serve_with(Frames, |server| server.limits(limits));
        let address = server.local_addr();
        let outcome = world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            // A small frame first: the large one begins in the middle of what is received.
            conn.send(&[0, 0, 0, 2, b'h', b'i']).await.unwrap();
            conn.send(&200_000u32.to_be_bytes()).await.unwrap();
            conn.send(&pattern(0..200_000)).await.unwrap();
            conn.finish().await.ok();
            recv_all(&mut conn).await
        });
        let stats = world.stop(&server);
        match world.style() {
            // There the frame is read into a buffer of the handler's own.
            Style::Async => assert_eq!(outcome.unwrap().len(), 200_010),
            Style::Event => assert_eq!(stats.closed(CloseReason::Limit(Bound::ReceiveBuffer)), 1, "{stats:?}"),
        }
    }
}

scenario! {
    fn messages_larger_than_the_send_queue_go_out_in_parts(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        world.run(async move {
            let limits = Limits::default().send_marks(1000, 5000).send_max(20_000);
            let conn = Client::new(address).limits(limits).open().await.unwrap();
            let (mut read, mut write) = conn.split();
            let writer = wharf::spawn(async move {
                write.send(&pattern(0..500_000)).await.unwrap();
                write.send_owned(pattern(500_000..1_000_000)).await.unwrap();
                write.send_owned(pattern(1_000_000..1_000_100)).await.unwrap();
                write.finish().await.unwrap();
            });
            let mut received = vec![0; 1_000_100];
            read.recv_exact(&mut received).await.unwrap();
            assert_pattern(&received, 0);
            writer.await.unwrap();
        });
        assert_eq!(world.stop(&server).received, 1_000_100);
    }
}

scenario! {
    fn two_servers_in_one_process_do_not_disturb_each_other(world) {
        let echo = world.serve(Echo);
        let stream = world.serve(Stream { total: 100_000, piece: 3000 });
        let (echo_at, stream_at) = (echo.local_addr(), stream.local_addr());
        assert_ne!(echo_at, stream_at);
        world.run(async move {
            let mut a = Client::connect(echo_at).await.unwrap();
            let mut b = Client::connect(stream_at).await.unwrap();
            a.send(b"one").await.unwrap();
            let received = recv_all(&mut b).await.unwrap();
            assert_pattern(&received, 0);
            assert_eq!(received.len(), 100_000);
            a.recv_exact(&mut [0; 3]).await.unwrap();
        });
        assert_eq!(world.stop(&stream).accepted, 1);
        world.run(async move {
            let mut a = Client::connect(echo_at).await.unwrap();
            a.send(b"two").await.unwrap();
            a.recv_exact(&mut [0; 3]).await.unwrap();
        });
        assert_eq!(world.stop(&echo).accepted, 2);
    }
}

/// Passes its connections on to another server, and what that says back.
#[derive(Clone)]
struct Relay(SocketAddr);

impl Behaviour for Relay {
    type Handler = Discard;

    async fn run(self, near: Connection) -> Result<()> {
        let far = Client::connect(self.0).await?;
        let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
        let back = wharf::spawn(pump(far_read, near_write));
        pump(near_read, far_write).await?;
        back.await?
    }

    fn handler(self) -> Discard {
        Discard
    }
}

/// Moves bytes until the end, and passes that on too; a failure ends both, and must not look like an end in order.
async fn pump(mut from: ReadHalf, mut to: WriteHalf) -> Result<()> {
    let moved = async {
        while let Some(chunk) = from.recv_chunk().await? {
            to.send(&chunk).await?;
        }
        to.finish().await
    };
    let result = moved.await;
    if result.is_err() {
        from.remote().reset();
        to.remote().reset();
        // Dropped before, it would end in order.
        to.closed().await;
    }
    result
}

scenario! {
    async fn a_server_can_pass_connections_on_to_another_with_their_half_close(world) {
        let checksums = world.serve(Checksum);
        let at = checksums.local_addr();
        let relay = match world.is_simulated() {
            true => world.serve_with(Relay(at), |server| server.workers(3)),
            false => world.serve(Relay(at)),
        };
        let address = relay.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let data = pattern(0..300_000);
            conn.send(&data).await.unwrap();
            conn.finish().await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), checksum(&data));
        });
        for server in [relay, checksums] {
            assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
        }
    }
}

scenario! {
    async fn a_relay_ends_both_connections_when_either_is_reset(world) {
        for by_the_client in [true, false] {
            let moody = world.serve(Moody);
            let at = moody.local_addr();
            let relay = world.serve(Relay(at));
            let address = relay.local_addr();
            let through = relay.clone();
            world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"hello").await.unwrap();
                conn.recv_exact(&mut [0; 5]).await.unwrap();
                if by_the_client {
                    conn.reset().await;
                } else {
                    conn.send(b"r").await.unwrap();
                    recv_all(&mut conn).await.expect_err("a reset is passed on as one");
                }
                until("the relay has let go", || through.connections() == 0).await;
            });
            for server in [relay, moody] {
                assert_eq!(world.stop(&server).accepted, 1);
            }
        }
    }
}

scenario! {
    fn a_peer_that_floods_does_not_starve_another(world) {
        let server = world.serve_with(Echo, |server| server.workers(1));
        let address = server.local_addr();
        world.run(async move {
            let (mut read, mut write) = Client::connect(address).await.unwrap().split();
            let flood = wharf::spawn(async move {
                while write.send(&[0; 10_000]).await.is_ok() {}
            });
            let swallow = wharf::spawn(async move {
                while let Ok(Some(_)) = read.recv_chunk().await {}
                drop(read);
            });
            let mut conn = Client::connect(address).await.unwrap();
            for _ in 0..30 {
                conn.send(b"ping").await.unwrap();
                conn.recv_exact(&mut [0; 4]).within(Duration::from_secs(5)).await.unwrap();
            }
            drop((flood, swallow));
        });
        server.stop();
    }
}

scenario! {
    fn halves_that_are_joined_are_one_connection_again(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        world.run(async move {
            let (a_read, a_write) = Client::connect(address).await.unwrap().split();
            let (b_read, b_write) = Client::connect(address).await.unwrap().split();
            let (a_read, b_write) = a_read.join(b_write).expect_err("they are not of one connection");
            let mut a = a_read.join(a_write).unwrap();
            let mut b = b_read.join(b_write).unwrap();
            for conn in [&mut a, &mut b] {
                conn.send(b"whole").await.unwrap();
                conn.recv_exact(&mut [0; 5]).await.unwrap();
            }
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 2);
    }
}

scenario! {
    fn a_dropped_write_half_ends_its_direction_only(world) {
        let server = world.serve(Checksum);
        let address = server.local_addr();
        world.run(async move {
            let (mut read, mut write) = Client::connect(address).await.unwrap().split();
            write.send(b"abc").await.unwrap();
            drop(write);
            let mut answer = [0; 16];
            read.recv_exact(&mut answer).await.unwrap();
            assert_eq!(answer, checksum(b"abc"));
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
    }
}

scenario! {
    fn what_was_queued_before_a_reset_is_counted_as_unsent(world) {
        let server = world.serve_with(Hold, |server| {
            server.sockets(SocketOptions::default().receive_buffer(16 * 1024))
        });
        let address = server.local_addr();
        world.run(async move {
            let sockets = SocketOptions::default().send_buffer(16 * 1024);
            let limits = Limits::default().send_marks(1 << 20, 16 << 20).send_max(64 << 20);
            let mut conn = Client::new(address).limits(limits).sockets(sockets).open().await.unwrap();
            conn.send(&vec![0; 32 << 20]).await.unwrap();
            assert_eq!(conn.reset().await, CloseReason::LocalReset);
            let counts = conn.counts();
            assert!(counts.unsent > 0, "{counts:?}");
            assert_eq!(counts.sent + counts.unsent, 32 << 20);
            let error = conn.send(b"x").await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::LocalReset));
        });
    }
}

scenario! {
    fn an_end_within_a_message_is_told_and_leaves_what_came(world) {
        let server = world.serve(EndAfter { delay: world.time(1.0), reset: false });
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let error = conn.recv_exact(&mut [0; 8]).await.unwrap_err();
            assert!(error.is_ended());
            assert_eq!(error.partial(), Some(5));
            let text = format!("receive from {address}: the peer ended after 5 of 8 bytes");
            assert_eq!(error.to_string(), text);
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"hello");
        });
    }
}

scenario! {
    fn a_second_drain_can_only_shorten_the_time(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        let (short, long) = (world.time(3.0), world.time(200.0));
        for (first, second) in [(long, short), (short, long)] {
            let server = world.serve(Echo);
            let address = server.local_addr();
            let (draining, began) = (server.clone(), world.now());
            world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"x").await.unwrap();
                conn.recv_exact(&mut [0; 1]).await.unwrap();
                draining.drain(first).drain(second);
                assert!(conn.recv(&mut [0; 1]).await.is_err());
            });
            assert!(world.now() - began < world.time(100.0));
            assert_eq!(world.stop(&server).closed(CloseReason::Shutdown), 1);
        }
        // Another server of the same process has nothing to do with it.
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"x").await.unwrap();
            conn.recv_exact(&mut [0; 1]).await.unwrap();
        });
        world.stop(&server);
    }
}

/// Keeps a count with the connection, and tells it.
#[derive(Clone)]
struct Counter(u8);

impl Behaviour for Counter {
    type Handler = Counter;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.set_data("replaced by what follows");
        conn.set_data(0u8);
        assert!(conn.data::<&str>().is_none());
        while conn.recv(&mut [0; 1]).await? > 0 {
            let count = *conn.data::<u8>().expect("it was set") + 1;
            conn.set_data(count);
            conn.send(&[count]).await?;
        }
        Ok(())
    }

    fn handler(self) -> Counter {
        self
    }
}

impl Handler for Counter {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        for _ in bytes {
            self.0 += 1;
            conn.send(&[self.0]).expect("there is room for a byte");
        }
        Flow::Continue
    }
}

scenario! {
    fn each_connection_keeps_data_of_its_own(world) {
        let server = world.serve(Counter(0));
        let address = server.local_addr();
        world.run(async move {
            let mut conns = Vec::new();
            for _ in 0..3 {
                conns.push(Client::connect(address).await.unwrap());
            }
            for round in 1..=5 {
                for conn in &mut conns {
                    let mut count = [0];
                    conn.send(b"x").await.unwrap();
                    conn.recv_exact(&mut count).await.unwrap();
                    assert_eq!(count, [round]);
                }
            }
        });
    }
}

/// Waits for a word of another thread.
#[derive(Clone)]
struct Listener(Arc<Mutex<Vec<Waker>>>);

impl Behaviour for Listener {
    type Handler = Discard;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut told = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut told, true) {
                return Poll::Ready(());
            }
            self.0.lock().expect("nobody panics under this lock").push(cx.waker().clone());
            Poll::Pending
        })
        .await;
        conn.send(b"told").await
    }

    fn handler(self) -> Discard {
        Discard
    }
}

scenario! {
    async fn a_handler_can_await_what_another_thread_does(world) {
        let wakers = Arc::new(Mutex::new(Vec::new()));
        let server = world.serve(Listener(wakers.clone()));
        let address = server.local_addr();
        world.run(async move {
            let mut conns = Vec::new();
            for _ in 0..5 {
                conns.push(Client::connect(address).await.unwrap());
            }
            until("all of them wait", || wakers.lock().unwrap().len() == 5).await;
            let wakers = std::mem::take(&mut *wakers.lock().unwrap());
            std::thread::spawn(move || wakers.into_iter().for_each(Waker::wake)).join().unwrap();
            for conn in &mut conns {
                assert_eq!(recv_all(conn).await.unwrap(), b"told");
            }
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 5);
    }
}

scenario! {
    fn a_client_that_gave_up_in_the_queue_does_no_harm(world) {
        let server = world.serve_with(Echo, |server| server.limits(Limits::default().connections(1)));
        let address = server.local_addr();
        let watched = server.clone();
        world.run(async move {
            let mut first = Client::connect(address).await.unwrap();
            first.send(b"x").await.unwrap();
            first.recv_exact(&mut [0; 1]).await.unwrap();
            for patient in [false, true, false] {
                // Nobody has accepted them yet when they leave.
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"unread").await.unwrap();
                conn.flush().await.unwrap();
                if patient {
                    conn.finish().await.unwrap();
                } else {
                    conn.reset().await;
                }
            }
            drop(first);
            let mut last = Client::connect(address).await.unwrap();
            last.send(b"last").await.unwrap();
            last.recv_exact(&mut [0; 4]).await.unwrap();
            assert_eq!(watched.connections(), 1);
        });
    }
}

/// Says what it has to say, ends its direction, and only then listens.
#[derive(Clone)]
struct SpeaksFirst;

impl Behaviour for SpeaksFirst {
    type Handler = SpeaksFirst;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.send(b"that is all").await?;
        conn.finish().await?;
        assert!(conn.send(b"one more").await.is_err());
        while conn.recv_chunk().await?.is_some() {}
        Ok(())
    }

    fn handler(self) -> SpeaksFirst {
        self
    }
}

impl Handler for SpeaksFirst {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.send(b"that is all").expect("an empty queue takes it");
        conn.finish();
        assert!(conn.send(b"one more").is_err());
        Flow::Continue
    }

    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }
}

scenario! {
    fn a_server_that_ends_its_direction_first_still_receives_everything(world) {
        let server = world.serve(SpeaksFirst);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), b"that is all");
            conn.send(&pattern(0..200_000)).await.unwrap();
            conn.flush().await.unwrap();
            assert_eq!(conn.counts().sent, 200_000);
            conn.finish().await.unwrap();
            assert_eq!(conn.closed().await, CloseReason::Peer);
        });
        let stats = world.stop(&server);
        assert_eq!((stats.received, stats.closed(CloseReason::Local)), (200_000, 1));
    }
}

scenario! {
    fn a_peer_that_goes_on_sending_after_the_reply_is_cut_off_at_the_linger_time(world) {
        let deadlines = Deadlines::default().linger(world.time(5.0));
        let server = world.serve_with(ReplyThenClose((*b"reply").into()), |server| server.deadlines(deadlines));
        let address = server.local_addr();
        let began = world.now();
        world.run(async move {
            let (mut read, mut write) = Client::connect(address).await.unwrap().split();
            let flood = wharf::spawn(async move {
                let mut sent = 0;
                while write.send(&[0; 10_000]).await.is_ok() {
                    sent += 1;
                    // On a network without a speed limit nothing else would slow it down.
                    wharf::sleep(Duration::from_millis(1)).await;
                }
                (sent, write)
            });
            let mut reply = [0; 5];
            read.recv_exact(&mut reply).await.unwrap();
            assert_eq!(&reply, b"reply");
            let (sent, _write) = flood.await.unwrap();
            assert!(sent > 0);
        });
        let took = world.now() - began;
        assert!(took >= world.time(5.0) && took < world.time(30.0), "{took:?}");
        assert_eq!(world.stop(&server).closed(CloseReason::Local), 1);
    }
}

scenario! {
    fn a_large_owned_message_and_many_small_ones_keep_their_order(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let mut sent = 0;
            for round in 0..20 {
                for size in [1, 10, 1024, 1025, 30_000] {
                    let message = pattern(sent..sent + size);
                    match round % 2 {
                        0 => conn.send_owned(message).await.unwrap(),
                        _ => conn.send(&message).await.unwrap(),
                    }
                    sent += size;
                }
                let mut echo = vec![0; 32_060];
                conn.recv_exact(&mut echo).await.unwrap();
                assert_pattern(&echo, sent - 32_060);
            }
        });
        assert_eq!(world.stop(&server).closed(CloseReason::Peer), 1);
    }
}

/// Sends messages of these sizes in one go when it is spoken to, then closes.
#[derive(Clone)]
struct Burst {
    sizes: &'static [usize],
    /// Keeps its thread busy before, until the test has it go on.
    gate: Option<Arc<Gate>>,
    /// Bytes that were in the kernel when the last message was accepted.
    sent_at_once: Arc<AtomicU64>,
}

impl Burst {
    fn of(sizes: &'static [usize]) -> Burst {
        Burst { sizes, gate: None, sent_at_once: Arc::default() }
    }

    fn wait(&self) {
        if let Some(gate) = &self.gate {
            gate.pass();
        }
    }

    fn messages(&self) -> impl Iterator<Item = Vec<u8>> {
        let mut end = 0;
        self.sizes.iter().map(move |size| {
            end += size;
            pattern(end - size..end)
        })
    }

    fn total(&self) -> usize {
        self.sizes.iter().sum()
    }
}

impl Behaviour for Burst {
    type Handler = Burst;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.recv(&mut [0]).await?;
        self.wait();
        for message in self.messages() {
            conn.send(&message).await?;
        }
        self.sent_at_once.fetch_max(conn.counts().sent, Ordering::SeqCst);
        Ok(())
    }

    fn handler(self) -> Burst {
        self
    }
}

impl Handler for Burst {
    fn received(&mut self, conn: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        self.wait();
        for message in self.messages() {
            let before = conn.counts().sent as usize + conn.queued();
            if conn.send(&message).is_err() {
                return Flow::Close;
            }
            let counts = conn.counts();
            let after = (counts.sent + counts.unsent) as usize + conn.queued();
            assert_eq!(after, before + message.len(), "a message is sent, queued or lost");
        }
        self.sent_at_once.fetch_max(conn.counts().sent, Ordering::SeqCst);
        Flow::Close
    }
}

/// Where a handler waits, with all of its thread, for the test.
#[derive(Default)]
struct Gate {
    /// Who has come, and who may go on.
    counts: Mutex<(usize, usize)>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut counts = self.counts.lock().unwrap();
        counts.0 += 1;
        let turn = counts.0;
        while counts.1 < turn {
            counts = self.opened.wait(counts).unwrap();
        }
    }

    fn arrived(&self) -> usize {
        self.counts.lock().unwrap().0
    }

    fn open(&self) {
        self.counts.lock().unwrap().1 += 1;
        self.opened.notify_all();
    }
}

/// Marks that never refuse what a `Burst` says.
fn roomy() -> Limits {
    Limits::default().send_marks(16 * 1024, 1024 * 1024)
}

scenario! {
    fn large_and_small_messages_of_one_go_keep_their_order(world) {
        let go = Burst::of(&[20_000, 10, 30_000, 4096, 4095, 1, 100_000, 5]);
        let small_first = Burst::of(&[10, 20_000, 30_000, 1]);
        for burst in [go, small_first] {
            let server = world.serve_with(burst.clone(), |server| server.limits(roomy()));
            let (address, total) = (server.local_addr(), burst.total());
            world.run(async move {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"x").await.unwrap();
                let all = recv_all(&mut conn).await.unwrap();
                assert_eq!(all.len(), total);
                assert_pattern(&all, 0);
            });
            if !world.is_simulated() {
                assert!(burst.sent_at_once.load(Ordering::SeqCst) > 0, "the first does not wait for the others");
            }
            let stats = world.stop(&server);
            assert_eq!((stats.sent, stats.unsent), (total as u64, 0));
        }
    }
}

scenario! {
    fn what_the_kernel_leaves_of_a_large_message_follows(world) {
        let burst = Burst::of(&[800_000, 10, 20_000]);
        let server = world.serve_with(burst.clone(), |server| {
            server.limits(roomy()).sockets(SocketOptions::default().send_buffer(16 * 1024))
        });
        let address = server.local_addr();
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let mut conn = Client::new(address).sockets(sockets).open().await.unwrap();
            conn.send(b"x").await.unwrap();
            wharf::sleep(Duration::from_millis(20)).await;
            let all = recv_all(&mut conn).await.unwrap();
            assert_eq!(all.len(), 820_010);
            assert_pattern(&all, 0);
        });
        let at_once = burst.sent_at_once.load(Ordering::SeqCst);
        assert!(at_once < 800_000, "{at_once} bytes fit into small buffers");
        assert!(world.is_simulated() || at_once > 0, "the kernel takes a part at once");
        let stats = world.stop(&server);
        assert_eq!((stats.sent, stats.unsent, stats.closed(CloseReason::Local)), (820_010, 0, 1));
    }
}

scenario! {
    fn a_large_message_to_a_peer_that_never_reads_meets_the_write_deadline(world) {
        let burst = Burst::of(&[800_000]);
        let deadlines = Deadlines::default().write(world.time(4.0)).linger(world.time(60.0));
        let server = world.serve_with(burst, |server| {
            let sockets = SocketOptions::default().send_buffer(16 * 1024);
            server.limits(roomy()).deadlines(deadlines).sockets(sockets)
        });
        let address = server.local_addr();
        let watched = server.clone();
        world.run(async move {
            let sockets = SocketOptions::default().receive_buffer(16 * 1024);
            let mut conn = Client::new(address).sockets(sockets).open().await.unwrap();
            conn.send(b"x").await.unwrap();
            until("the server has it", || watched.connections() == 1).await;
            until("the server gives up", || watched.connections() == 0).await;
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Timeout(Deadline::Write)), 1, "{stats:?}");
        assert!(stats.unsent > 0, "{stats:?}");
        assert_eq!(stats.sent + stats.unsent, 800_000);
    }
}

scenario! {
    fn large_messages_on_connections_that_were_reset_are_counted_as_lost(world) {
        let mut burst = Burst::of(&[50_000, 10, 50_000]);
        // The reset comes while the server looks elsewhere, so that its send is what meets it.
        let gate = (!world.is_simulated()).then(Arc::<Gate>::default);
        burst.gate = gate.clone();
        let server = world.serve_with(burst, |server| server.limits(roomy()));
        let (address, watched) = (server.local_addr(), server.clone());
        world.run(async move {
            for nth in 1..=4 {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"x").await.unwrap();
                until("the server has it", || watched.connections() == 1).await;
                match &gate {
                    Some(gate) => until("its handler is at work", || gate.arrived() == nth).await,
                    None => wharf::sleep(Duration::from_millis(5)).await,
                }
                assert_eq!(conn.reset().await, CloseReason::LocalReset);
                if let Some(gate) = &gate {
                    // The kernel has sent the reset, and may take a moment to deliver it.
                    wharf::sleep(Duration::from_millis(20)).await;
                    gate.open();
                }
                until("the server knows", || watched.connections() == 0).await;
            }
        });
        let simulated = world.is_simulated();
        let stats = world.stop(&server);
        assert_eq!(stats.accepted, 4);
        if !simulated {
            assert_eq!(stats.closed(CloseReason::PeerReset), 4, "{stats:?}");
            // What is refused after the failure was never accepted.
            assert_eq!((stats.sent, stats.unsent), (0, 4 * 50_000), "{stats:?}");
        }
    }
}

#[test]
fn connections_are_spread_over_the_workers() {
    let _watchdog = Watchdog::new("connections_are_spread_over_the_workers");
    let (behaviour, notes) = Watched::new(Echo);
    // A worker that the machine leaves waiting is not one that is blocked.
    let server = wharf::Server::bind("127.0.0.1:0").workers(4).watchdog(None);
    let server = server.start_events(move || behaviour.clone().handler()).unwrap();
    let address = server.local_addr();
    wharf::run(async move {
        let mut conns = Vec::new();
        for _ in 0..40 {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"x").await.unwrap();
            conn.recv_exact(&mut [0; 1]).await.unwrap();
            conns.push(conn);
        }
    })
    .unwrap();
    let mut loads: Vec<_> = notes.look(|noted| noted.threads.values().copied().collect());
    loads.sort_unstable();
    assert_eq!(loads, [10, 10, 10, 10]);
    server.drain(Duration::from_secs(5)).wait().unwrap();
}
