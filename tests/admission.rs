//! Who comes in: limits, rates, networks, several listeners, suspending, listings and sending away.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wharf::{
    AcceptRate, Access, Client, CloseReason, Connection, ConnectionState, Limits, OverLimit, Result, Rule,
    ServerHandle, Whom,
};

use common::behaviours::Echo;
use common::{recv_all, until};

#[macro_use]
mod common;

/// A client whose message has come back: the server has let it in.
async fn let_in(address: std::net::SocketAddr) -> Connection {
    let mut conn = Client::connect(address).await.unwrap();
    conn.send(b"x").await.unwrap();
    conn.recv_exact(&mut [0; 1]).await.unwrap();
    conn
}

/// Whether a client is turned away: it is not answered.
async fn is_turned_away(address: std::net::SocketAddr) -> bool {
    let Ok(mut conn) = Client::connect(address).await else { return true };
    // It may be told of the end by either.
    drop(conn.send(b"x").await);
    matches!(conn.recv(&mut [0; 1]).await, Ok(0) | Err(_))
}

fn over(policy: OverLimit, connections: usize) -> Limits {
    Limits::default().connections(connections).over_limit(policy)
}

scenario! {
    fn one_too_many_is_turned_away_counted_and_no_more_later(world) {
        for policy in [OverLimit::Close, OverLimit::Reset] {
            let server = world.serve_with(Echo, |server| server.limits(over(policy, 2)));
            let (address, watched) = (server.local_addr(), server.clone());
            world.run(async move {
                let first = let_in(address).await;
                let _second = let_in(address).await;
                for _ in 0..3 {
                    assert!(is_turned_away(address).await);
                }
                drop(first);
                until("there is room", || watched.connections() < 2).await;
                let_in(address).await;
            });
            let stats = world.stop(&server);
            assert_eq!((stats.accepted, stats.refused_by(Rule::Connections)), (3, 3), "{stats:?}");
            assert_eq!(stats.refusals(), 3);
        }
    }
}

scenario! {
    fn an_address_has_its_share_and_leaves_the_rest_to_others(world) {
        let server = world.serve_with(Echo, |server| server.limits(Limits::default().per_address(2)));
        let (address, watched) = (server.local_addr(), server.clone());
        world.run(async move {
            let first = let_in(address).await;
            let _second = let_in(address).await;
            assert!(is_turned_away(address).await);
            drop(first);
            until("there is room", || watched.connections() < 2).await;
            let_in(address).await;
        });
        let stats = world.stop(&server);
        assert_eq!((stats.accepted, stats.refused_by(Rule::PerAddress)), (3, 1), "{stats:?}");
    }
}

scenario! {
    fn a_rate_lets_a_burst_in_and_then_so_many_in_a_time(world) {
        let limits = Limits::default().accept_rate(AcceptRate::new(20).burst(3));
        let server = world.serve_with(Echo, |server| server.limits(limits));
        let address = server.local_addr();
        let began = world.now();
        world.run(async move {
            for _ in 0..7 {
                let_in(address).await;
            }
        });
        // Three at once, and four more at one in 50 ms.
        assert!(world.now() - began >= Duration::from_millis(200), "{:?}", world.now() - began);
        assert_eq!(world.stop(&server).accepted, 7);
    }
}

scenario! {
    fn who_comes_too_fast_can_be_turned_away(world) {
        let rate = AcceptRate::new(1).burst(2);
        let limits = Limits::default().accept_rate(rate).over_limit(OverLimit::Reset);
        let server = world.serve_with(Echo, |server| server.limits(limits));
        let address = server.local_addr();
        world.run(async move {
            let _burst = [let_in(address).await, let_in(address).await];
            let mut away = 0;
            while is_turned_away(address).await {
                away += 1;
                if away == 3 {
                    break;
                }
            }
        });
        let stats = world.stop(&server);
        assert!(stats.accepted >= 2 && stats.accepted + stats.refusals() <= 5, "{stats:?}");
        assert_eq!(stats.refused_by(Rule::Rate), stats.refusals());
    }
}

scenario! {
    fn a_denied_network_stays_out_and_comes_in_when_it_is_not_any_more(world) {
        let everybody = ["0.0.0.0/0".parse().unwrap()];
        let server = world.serve_with(Echo, |server| server.access(Access::default().deny(everybody)));
        let (address, changing) = (server.local_addr(), server.clone());
        world.run(async move {
            assert!(is_turned_away(address).await);
            changing.set_access(Access::default());
            assert_eq!(changing.access(), Access::default());
            let mut conn = let_in(address).await;
            changing.set_access(Access::default().allow(["203.0.113.0/24".parse().unwrap()]));
            assert!(is_turned_away(address).await);
            conn.send(b"y").await.unwrap();
            conn.recv_exact(&mut [0; 1]).await.expect("who is here stays");
        });
        let stats = world.stop(&server);
        assert_eq!((stats.accepted, stats.refused_by(Rule::Network)), (1, 2), "{stats:?}");
    }
}

scenario! {
    fn a_higher_limit_lets_those_in_who_wait_and_a_lower_one_sends_nobody_away(world) {
        let server = world.serve_with(Echo, |server| server.limits(over(OverLimit::Queue, 1)));
        let (address, changing) = (server.local_addr(), server.clone());
        world.run(async move {
            let mut first = let_in(address).await;
            let mut waiting = Client::connect(address).await.unwrap();
            waiting.send(b"w").await.unwrap();
            changing.set_limits(over(OverLimit::Queue, 2)).unwrap();
            waiting.recv_exact(&mut [0; 1]).await.expect("it is let in");
            changing.set_limits(over(OverLimit::Reset, 1)).unwrap();
            assert_eq!(changing.connections_max(), 1);
            assert!(is_turned_away(address).await);
            for conn in [&mut first, &mut waiting] {
                conn.send(b"y").await.unwrap();
                conn.recv_exact(&mut [0; 1]).await.expect("who is here stays");
            }
            let wrong = changing.set_limits(Limits::default().connections(0)).unwrap_err();
            assert!(wrong.to_string().contains("`connections`"), "{wrong}");
            assert_eq!(changing.connections_max(), 1, "what makes no sense changes nothing");
        });
        world.stop(&server);
    }
}

scenario! {
    fn new_limits_and_deadlines_of_connections_hold_for_new_ones(world) {
        let server = world.serve(Echo);
        let (address, changing, short) = (server.local_addr(), server.clone(), world.time(1.0));
        world.run(async move {
            let old = Client::connect(address).await.unwrap();
            until("it is let in", || changing.connections() == 1).await;
            changing.set_deadlines(wharf::Deadlines::default().idle(short)).unwrap();
            assert_eq!(changing.deadlines(), wharf::Deadlines::default().idle(short));
            let mut new = Client::connect(address).await.unwrap();
            assert_eq!(recv_all(&mut new).await.unwrap(), b"");
            drop(new);
            until("the new one is gone", || changing.connections() == 1).await;
            drop(old);
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Timeout(wharf::Deadline::Idle)), 1, "{stats:?}");
    }
}

scenario! {
    fn a_suspended_server_goes_on_with_those_it_has(world) {
        let simulated = world.is_simulated();
        let server = world.serve(Echo);
        let (address, changing) = (server.local_addr(), server.clone());
        let wait = world.time(2.0);
        world.run(async move {
            let mut old = let_in(address).await;
            changing.suspend().suspend();
            assert!(changing.is_suspended());
            // The listener is closed, or, where it could not be opened again, left alone.
            let mut waiting = None;
            if simulated {
                let mut conn = Client::connect(address).await.unwrap();
                conn.send(b"w").await.unwrap();
                let late = conn.recv(&mut [0; 1]).within(wait).await.unwrap_err();
                assert!(late.is_timeout(), "{late}");
                waiting = Some(conn);
            } else {
                let refused = |error: wharf::Error| error.is_refused();
                while !Client::connect(address).await.is_err_and(refused) {}
            }
            old.send(b"y").await.unwrap();
            old.recv_exact(&mut [0; 1]).await.expect("who is here stays");
            changing.resume().unwrap();
            changing.resume().unwrap();
            assert!(!changing.is_suspended());
            let_in(address).await;
            if let Some(mut conn) = waiting {
                conn.recv_exact(&mut [0; 1]).await.expect("who waited is let in");
            }
        });
        assert!(world.stop(&server).accepted >= 2);
    }
}

scenario! {
    fn a_suspended_server_drains_and_ends(world) {
        let server = world.serve(Echo);
        let (address, changing) = (server.local_addr(), server.clone());
        world.run(async move {
            let conn = let_in(address).await;
            changing.suspend();
            drop(conn);
        });
        assert_eq!(world.stop(&server).accepted, 1);
        assert!(server.resume().is_ok(), "there is nothing to resume any more");
    }
}

scenario! {
    fn connections_are_listed_with_what_they_do(world) {
        let server = world.serve(Echo);
        let (address, watched) = (server.local_addr(), server.clone());
        world.run(async move {
            assert_eq!(watched.list().await, []);
            let mut first = let_in(address).await;
            let second = let_in(address).await;
            let infos = watched.list().await;
            assert_eq!(infos.len(), 2);
            let peers: HashSet<_> = infos.iter().map(|info| info.peer.clone()).collect();
            let clients: HashSet<_> = [&first, &second].map(|conn| conn.local_addr().unwrap()).into();
            assert_eq!(peers, clients);
            for info in &infos {
                assert_eq!((info.state, info.listener, info.queued, info.unread), (ConnectionState::Open, Some(0), 0, 0));
                assert_eq!((info.counts.received, info.counts.sent), (1, 1));
            }
            assert_ne!(infos[0].id, infos[1].id);
            assert!(infos[0].age >= infos[1].age, "the oldest is first");
            first.send(b"more").await.unwrap();
            first.recv_exact(&mut [0; 4]).await.unwrap();
            let again = watched.list().await;
            let same = again.iter().find(|info| Some(&info.peer) == first.local_addr().as_ref()).unwrap();
            assert_eq!(same.counts.received, 5);
        });
        world.stop(&server);
    }
}

/// Whom `info` is about, as a client knows itself.
async fn id_of(server: &ServerHandle, conn: &Connection) -> wharf::ConnectionId {
    let infos = server.list().await;
    infos.iter().find(|info| Some(&info.peer) == conn.local_addr().as_ref()).expect("it is listed").id
}

scenario! {
    fn one_connection_or_all_of_an_address_can_be_sent_away(world) {
        let server = world.serve(Echo);
        let (address, watched) = (server.local_addr(), server.clone());
        world.run(async move {
            let mut first = let_in(address).await;
            let mut second = let_in(address).await;
            let mut third = let_in(address).await;
            let id = id_of(&watched, &first).await;
            watched.disconnect(id);
            assert_eq!(recv_all(&mut first).await.unwrap(), b"");
            drop(first);
            until("it is gone", || watched.connections() == 2).await;
            watched.disconnect(id);
            watched.disconnect(std::net::IpAddr::from([203, 0, 113, 1]));
            assert_eq!(watched.list().await.len(), 2, "nobody else is meant");
            watched.disconnect(second.local_addr().unwrap().ip().unwrap());
            for conn in [&mut second, &mut third] {
                assert_eq!(recv_all(conn).await.unwrap(), b"");
            }
            drop((second, third));
            let mut last = let_in(address).await;
            watched.disconnect(Whom::All);
            assert_eq!(recv_all(&mut last).await.unwrap(), b"");
        });
        let stats = world.stop(&server);
        assert_eq!(stats.closed(CloseReason::Disconnected), 4, "{stats:?}");
    }
}

scenario! {
    fn who_watches_a_server_is_told_each_opening_and_end_once(world) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = told.clone();
        let server = world.serve_with(Echo, move |server| {
            server.limits(over(OverLimit::Reset, 1)).watch(move |event| telling.lock().unwrap().push(event.to_string()))
        });
        let address = server.local_addr();
        world.run(async move {
            let conn = let_in(address).await;
            assert!(is_turned_away(address).await);
            drop(conn);
        });
        world.stop(&server);
        let told = told.lock().unwrap();
        let count = |what: &str| told.iter().filter(|line| line.contains(what)).count();
        assert_eq!((count(": connected"), count(": closed by the peer"), count(": refused")), (1, 1, 1), "{told:?}");
        assert_eq!(count("draining"), 1, "{told:?}");
    }
}

scenario! {
    fn on_exit_is_called_once_after_the_last_connection(world) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let calling = seen.clone();
        let server = world.serve_with(Echo, move |server| {
            server.on_exit(move |stats| calling.lock().unwrap().push(stats.clone()))
        });
        let address = server.local_addr();
        world.run(async move {
            drop(let_in(address).await);
        });
        assert!(seen.lock().unwrap().is_empty());
        let stats = world.stop(&server);
        server.stop();
        assert_eq!(*seen.lock().unwrap(), [stats]);
    }
}

scenario! {
    fn a_drain_tells_who_finished_and_who_was_reset(world) {
        let server = world.serve(Echo);
        let (address, draining, soon) = (server.local_addr(), server.clone(), world.time(3.0));
        world.run(async move {
            drop(let_in(address).await);
            until("the early one is gone", || draining.connections() == 0).await;
            let finishing = let_in(address).await;
            let mut staying = let_in(address).await;
            draining.drain(soon);
            drop(finishing);
            let error = recv_all(&mut staying).await.unwrap_err();
            assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
        });
        let stats = world.stop(&server);
        assert_eq!((stats.drain.finished, stats.drain.reset, stats.drain.lost), (1, 1, 0), "{stats:?}");
    }
}

scenario! {
    fn whoever_is_connected_before_a_drain_is_let_in(world) {
        let server = world.serve_with(Echo, |server| server.limits(over(OverLimit::Queue, 64)));
        let (address, draining, long) = (server.local_addr(), server.clone(), world.time(100.0));
        world.run(async move {
            let mut clients = Vec::new();
            for _ in 0..20 {
                clients.push(Client::connect(address).await.unwrap());
            }
            draining.drain(long);
            for conn in &mut clients {
                conn.send(b"x").await.unwrap();
                conn.recv_exact(&mut [0; 1]).await.expect("it was connected in time");
            }
        });
        let stats = world.stop(&server);
        assert_eq!((stats.accepted, stats.drain.finished), (20, 20), "{stats:?}");
    }
}

/// Says by which listener it was reached.
#[derive(Clone)]
struct Which;

impl common::Behaviour for Which {
    type Handler = Which;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let listener = conn.listener().map_or(255, |listener| listener as u8);
        conn.send(&[listener]).await
    }

    fn handler(self) -> Which {
        self
    }
}

impl wharf::event::Handler for Which {
    fn connected(&mut self, conn: &mut wharf::event::Connection<'_>) -> wharf::event::Flow {
        let listener = conn.listener().map_or(255, |listener| listener as u8);
        conn.send(&[listener]).expect("an empty queue has room");
        wharf::event::Flow::Close
    }

    fn received(&mut self, _: &mut wharf::event::Connection<'_>, _: &[u8]) -> wharf::event::Flow {
        wharf::event::Flow::Continue
    }
}

scenario! {
    fn a_server_has_several_listeners_and_tells_them_apart(world) {
        let other = if world.is_simulated() { "10.0.0.1:0" } else { "127.0.0.1:0" };
        let server = world.serve_with(Which, |server| server.listen(other).listen(other));
        let listeners: Vec<_> = server.listeners().iter().map(|listener| listener.address.clone()).collect();
        assert_eq!(listeners.len(), 3);
        world.run(async move {
            for (index, address) in listeners.into_iter().enumerate() {
                let mut conn = Client::connect(address).await.unwrap();
                assert_eq!(recv_all(&mut conn).await.unwrap(), [index as u8]);
            }
        });
        let accepted: Vec<_> = server.listeners().iter().map(|listener| listener.accepted).collect();
        assert_eq!(accepted, [1, 1, 1]);
        world.stop(&server);
    }
}
