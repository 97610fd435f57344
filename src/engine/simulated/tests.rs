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
fn the_window_bounds_what_a_peer_that_never_reads_is_sent() {
    let network = Network::new(3, Faults::harsh().window(10_000));
    let mut pair = Pair::new(&network);
    let mut outgoing = pattern(50_000);
    // The last send, of which nothing goes, has no end.
    while let Some(rest) = pair.send_some(&network, outgoing) {
        outgoing = rest;
    }
    pair.server.receive(pair.token);
    assert_eq!(bytes_received(&settle(&network, [&mut pair.server])), 10_000);

    let seen = settle(&network, [&mut pair.client, &mut pair.server]);
    let taken = seen.iter().find_map(|(_, completion)| match completion {
        Completion::Sent { result, .. } => result.as_ref().ok(),
        _ => None,
    });
    assert!(taken.is_some_and(|&n| n > 0), "reading opens the window");
}

#[test]
fn fin_comes_once_and_after_all_data() {
    for seed in 0..20 {
        let network = Network::new(seed, Faults::harsh());
        let mut pair = Pair::new(&network);
        pair.send_all(&network, 30_000);
        assert_eq!(pair.client.shutdown(pair.token).expect("it is connected"), 0);
        pair.server.receive(pair.token);
        let mut received = 0;
        let mut ended = 0;
        for (_, completion) in settle(&network, [&mut pair.client, &mut pair.server]) {
            match completion {
                Completion::Received { chunk, .. } => {
                    assert_eq!(ended, 0, "data after the end");
                    received += chunk.len();
                }
                Completion::ReceiveEnded { .. } => ended += 1,
                other => panic!("unexpected {other:?}"),
            }
        }
        assert_eq!((received, ended), (30_000, 1), "seed {seed}");
    }
}

#[test]
fn what_was_sent_before_a_close_still_arrives() {
    let network = Network::new(5, Faults::harsh());
    let mut pair = Pair::new(&network);
    pair.send_all(&network, 20_000);
    pair.client.close(pair.token, false);
    pair.server.receive(pair.token);
    let seen = settle(&network, [&mut pair.client, &mut pair.server]);
    assert_eq!(bytes_received(&seen), 20_000);
    assert!(seen.iter().any(|(_, c)| matches!(c, Completion::ReceiveEnded { .. })));
}

#[test]
fn closing_with_unread_data_resets_the_peer() {
    let network = Network::new(1, Faults::none());
    let mut pair = Pair::new(&network);
    pair.send_all(&network, 100);
    settle(&network, [&mut pair.client, &mut pair.server]);
    pair.server.close(pair.token, false);
    let seen = settle(&network, [&mut pair.client, &mut pair.server]);
    assert_eq!(failures(&seen), [(0, Errno::CONNRESET.raw_os_error())]);
}

#[test]
fn data_that_arrives_after_the_close_resets_its_sender() {
    let network = Network::new(1, Faults::none());
    let mut pair = Pair::new(&network);
    pair.server.close(pair.token, false);
    settle(&network, [&mut pair.client, &mut pair.server]);
    pair.send_all(&network, 100);
    let seen = settle(&network, [&mut pair.client, &mut pair.server]);
    // The FIN came first, so Linux calls it a broken pipe.
    assert_eq!(failures(&seen), [(0, Errno::PIPE.raw_os_error())]);
}

#[test]
fn a_reset_destroys_what_was_not_yet_read() {
    let network = Network::new(1, Faults::none());
    let mut pair = Pair::new(&network);
    pair.send_all(&network, 100);
    settle(&network, [&mut pair.client, &mut pair.server]);
    pair.client.close(pair.token, true);
    let closed = settle(&network, [&mut pair.client, &mut pair.server]);
    assert_eq!(failures(&closed), [(1, Errno::CONNRESET.raw_os_error())], "also while paused");
    pair.server.receive(pair.token);
    assert!(settle(&network, [&mut pair.client, &mut pair.server]).is_empty());
}

#[test]
fn sends_on_a_reset_connection_fail_with_the_cause_once() {
    let network = Network::new(1, Faults::none());
    let mut pair = Pair::new(&network);
    pair.client.close(pair.token, true);
    settle(&network, [&mut pair.client, &mut pair.server]);
    let mut errors = Vec::new();
    for _ in 0..3 {
        match pair.server.send(pair.token, &mut pattern(10)) {
            Submitted::Done(Err(error)) => errors.push(error.raw_os_error()),
            other => panic!("unexpected {other:?}"),
        }
    }
    let expected = [Errno::CONNRESET, Errno::PIPE, Errno::PIPE];
    assert_eq!(errors, expected.map(|errno| Some(errno.raw_os_error())));
}

#[test]
fn a_reset_completes_the_send_in_flight() {
    let network = Network::new(1, Faults::none().window(10));
    let mut pair = Pair::new(&network);
    pair.send_all(&network, 10);
    assert!(matches!(pair.client.send(pair.token, &mut pattern(10)), Submitted::InFlight));
    pair.server.close(pair.token, true);
    let seen = settle(&network, [&mut pair.client, &mut pair.server]);
    let failed = seen.iter().find_map(|(_, completion)| match completion {
        Completion::Sent { outgoing, result: Err(error), .. } => Some((outgoing.len(), error)),
        _ => None,
    });
    let (len, error) = failed.expect("the send has an end");
    assert_eq!((len, error.raw_os_error()), (10, Some(Errno::CONNRESET.raw_os_error())));
    assert_eq!(failures(&seen).len(), 1, "told once besides");
}

#[test]
fn a_connection_that_broke_before_it_was_opened_says_so() {
    let network = Network::new(1, Faults::none());
    let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
    let address = listen(&network, &mut server);
    client.connect(token(0), &address.into()).expect("there are ports");
    let mut accepted = endpoints(settle(&network, [&mut client, &mut server]));
    client.close(token(0), true);
    settle(&network, [&mut client, &mut server]);
    let socket = Socket::Simulated(Box::new(accepted.endpoints.remove(0)));
    server.open(token(0), socket).expect("it was accepted");
    let seen = settle(&network, [&mut server]);
    assert_eq!(failures(&seen), [(0, Errno::CONNRESET.raw_os_error())]);
}

#[test]
fn bytes_that_were_handed_over_go_out_with_the_next_turn() {
    let network = Network::new(1, Faults::none().handed_sends(1.0));
    let mut pair = Pair::new(&network);
    let mut outgoing = pattern(100);
    assert!(matches!(pair.client.send(pair.token, &mut outgoing), Submitted::Handed));
    assert!(outgoing.is_empty(), "the engine has them");
    assert!(pair.client.next().is_none());
    assert_eq!(network.next_event(), None, "nothing has left");
    assert!(turn(&mut pair.client).is_empty(), "nothing is said of what went well");
    pair.server.receive(pair.token);
    assert_eq!(bytes_received(&settle(&network, [&mut pair.client, &mut pair.server])), 100);
}

#[test]
fn what_bounces_is_told_first_and_goes_out_before_what_followed() {
    let network = Network::new(1, Faults::none().handed_sends(1.0).window(60));
    let mut pair = Pair::new(&network);
    let mut outgoing = pattern(100);
    assert!(matches!(pair.client.send(pair.token, &mut outgoing), Submitted::Handed));
    assert_eq!(pair.client.send_now(pair.token, b"late").expect("it stands"), 0, "nothing overtakes");
    outgoing.push_owned(Bytes::from_static(b"behind"));
    assert!(matches!(pair.client.send(pair.token, &mut outgoing), Submitted::InFlight));
    pair.client.wait(None).expect("it cannot fail");
    assert_eq!(pair.client.send_now(pair.token, b"late").expect("it stands"), 0, "still nothing overtakes");
    assert!(matches!(pair.client.next(), Some(Completion::Bounced { unsent: 40, .. })));
    pair.server.receive(pair.token);
    let mut received = Vec::new();
    let mut taken = Vec::new();
    for (_, completion) in settle(&network, [&mut pair.client, &mut pair.server]) {
        match completion {
            Completion::Received { chunk, .. } => received.extend_from_slice(&chunk),
            Completion::Sent { outgoing, result, .. } => {
                taken.push((outgoing.len(), result.expect("the peer is there")));
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(taken, [(46, 46)]);
    assert_eq!(received, [pattern_bytes(100), b"behind".to_vec()].concat());
}

#[test]
fn more_than_may_be_handed_over_is_sent_otherwise() {
    let network = Network::new(1, Faults::none().handed_sends(1.0));
    let mut pair = Pair::new(&network);
    let sent = pair.client.send(pair.token, &mut pattern(HANDED_MAX + 1));
    assert!(matches!(sent, Submitted::Done(Ok(n)) if n == HANDED_MAX + 1), "{sent:?}");
    assert!(matches!(pair.client.send(pair.token, &mut pattern(HANDED_MAX)), Submitted::Handed));
}

#[test]
fn fin_waits_for_what_has_bounced_and_is_asked_for_again() {
    for told in [false, true] {
        let network = Network::new(1, Faults::none().handed_sends(1.0).window(60));
        let mut pair = Pair::new(&network);
        assert!(matches!(pair.client.send(pair.token, &mut pattern(100)), Submitted::Handed));
        if told {
            pair.client.wait(None).expect("it cannot fail");
        }
        assert_eq!(pair.client.shutdown(pair.token).expect("it stands"), 40);
        pair.server.receive(pair.token);
        let seen = settle(&network, [&mut pair.client, &mut pair.server]);
        assert!(!seen.iter().any(|(_, c)| matches!(c, Completion::Bounced { .. })), "told once");
        assert!(!seen.iter().any(|(_, c)| matches!(c, Completion::ReceiveEnded { .. })), "no FIN");
        assert_eq!(bytes_received(&seen), 100);
        assert_eq!(pair.client.shutdown(pair.token).expect("it stands"), 0);
        let seen = settle(&network, [&mut pair.client, &mut pair.server]);
        assert!(matches!(seen[..], [(1, Completion::ReceiveEnded { .. })]), "{seen:?}");
    }
}

#[test]
fn a_close_gives_back_what_has_bounced() {
    for reset in [false, true] {
        let network = Network::new(1, Faults::none().handed_sends(1.0).window(60));
        let mut pair = Pair::new(&network);
        let mut outgoing = pattern(100);
        assert!(matches!(pair.client.send(pair.token, &mut outgoing), Submitted::Handed));
        outgoing.push_owned(Bytes::from_static(b"behind"));
        assert!(matches!(pair.client.send(pair.token, &mut outgoing), Submitted::InFlight));
        pair.client.close(pair.token, reset);
        let told = turn(&mut pair.client);
        let [(_, Completion::Bounced { unsent: 40, .. }), (_, Completion::Closed { outgoing, .. })] =
            &told[..]
        else {
            panic!("unexpected {told:?}")
        };
        assert_eq!(outgoing.as_ref().map(|left| left.len()), Some(46));
    }
}

#[test]
fn what_is_handed_over_to_a_broken_connection_bounces_and_fails_with_the_cause() {
    let network = Network::new(1, Faults::none().handed_sends(1.0));
    let mut pair = Pair::new(&network);
    pair.server.close(pair.token, true);
    settle(&network, [&mut pair.server]);
    assert!(matches!(pair.client.send(pair.token, &mut pattern(10)), Submitted::Handed));
    let told = turn(&mut pair.client);
    let (_, Completion::Bounced { unsent: 10, .. }) = &told[0] else { panic!("unexpected {told:?}") };
    let (_, Completion::Sent { result: Err(error), .. }) = &told[1] else { panic!("unexpected {told:?}") };
    assert_eq!(error.raw_os_error(), Some(Errno::CONNRESET.raw_os_error()));
}

#[test]
fn a_late_completion_is_not_told_early() {
    let network = Network::new(1, Faults::none().late_completions(1.0));
    let mut pair = Pair::new(&network);
    assert!(matches!(pair.client.send(pair.token, &mut pattern(10)), Submitted::InFlight));
    pair.client.receive(pair.token);
    assert!(turn(&mut pair.client).is_empty());
    network.advance(network.next_event().expect("the completion"));
    assert!(matches!(turn(&mut pair.client)[..], [(_, Completion::Sent { result: Ok(10), .. })]));
}

#[test]
fn resets_on_the_way_break_both_sides() {
    let network = Network::new(1, Faults::none().resets(1.0));
    let mut pair = Pair::new(&network);
    pair.send_all(&network, 100);
    let seen = settle(&network, [&mut pair.client, &mut pair.server]);
    let reset = Errno::CONNRESET.raw_os_error();
    let mut failed = failures(&seen);
    failed.sort_unstable();
    assert_eq!(failed, [(0, reset), (1, reset)]);
}

#[test]
fn connecting_where_nobody_listens_is_refused_after_a_round_trip() {
    let network = Network::new(1, Faults::none());
    let mut client = network.host(CLIENT);
    client.connect(token(0), &SocketAddr::new(SERVER, 80).into()).expect("there are ports");
    let seen = settle(&network, [&mut client]);
    assert_eq!(connect_results(&seen), [Some(Errno::CONNREFUSED.raw_os_error())]);
    assert_eq!(network.now(), Time::ZERO.after(Duration::from_micros(100)));
    client.close(token(0), false);
    assert!(matches!(settle(&network, [&mut client])[..], [(_, Completion::Closed { .. })]));
    assert_eq!(network.open_sockets(), 0);
}

#[test]
fn ports_and_descriptors_of_closed_connections_are_used_again() {
    let network = Network::new(1, Faults::none().descriptors(1));
    let mut client = network.host(CLIENT);
    for generation in 0..20_000 {
        let token = Token { index: 0, generation };
        client.connect(token, &SocketAddr::new(SERVER, 80).into()).expect("both came back");
        client.close(token, false);
        assert!(matches!(turn(&mut client)[..], [(_, Completion::Closed { .. })]));
    }
}

#[test]
fn refusals_can_be_asked_for() {
    let network = Network::new(1, Faults::none().refusals(1.0));
    let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
    let address = listen(&network, &mut server);
    client.connect(token(0), &address.into()).expect("there are ports");
    let seen = settle(&network, [&mut client, &mut server]);
    assert_eq!(connect_results(&seen), [Some(Errno::CONNREFUSED.raw_os_error())]);
}

#[test]
fn a_black_hole_never_answers() {
    for faults in [Faults::none(), Faults::none().blackholes(1.0)] {
        let network = Network::new(1, faults.clone());
        if faults.blackholes == 0.0 {
            network.blackhole(SERVER);
        }
        let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
        let address = listen(&network, &mut server);
        client.connect(token(0), &address.into()).expect("there are ports");
        assert!(settle(&network, [&mut client, &mut server]).is_empty());
        client.close(token(0), false);
        settle(&network, [&mut client, &mut server]);
        assert_eq!(network.open_sockets(), 1, "the listener");
    }
}

#[test]
fn a_full_backlog_makes_the_client_try_again() {
    let network = Network::new(1, Faults::none().backlog(1));
    let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
    let address = listen(&network, &mut server);
    server.pause_accept(LISTENER);
    client.connect(token(0), &address.into()).expect("there are ports");
    client.connect(token(1), &address.into()).expect("there are ports");
    network.advance(Time::ZERO.after(Duration::from_millis(10)));
    assert_eq!(connect_results(&turn(&mut client)), [None]);
    server.resume_accept(LISTENER);
    let seen = settle(&network, [&mut client, &mut server]);
    assert_eq!(connect_results(&seen), [None]);
    assert!(network.now() > Time::ZERO.after(Duration::from_secs(1)));
}

#[test]
fn a_client_gives_up_on_a_backlog_that_stays_full() {
    let network = Network::new(1, Faults::none().backlog(0));
    let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
    let address = listen(&network, &mut server);
    client.connect(token(0), &address.into()).expect("there are ports");
    let seen = settle(&network, [&mut client, &mut server]);
    assert_eq!(connect_results(&seen), [Some(Errno::TIMEDOUT.raw_os_error())]);
    assert!(network.now() < Time::ZERO.after(Duration::from_secs(64)));
}

#[test]
fn a_socket_can_move_to_another_worker_of_its_host() {
    let network = Network::new(1, Faults::default());
    let mut pair = Pair::new(&network);
    let mut other = network.host(SERVER);
    pair.client.connect(token(1), &pair.address.into()).expect("there are ports");
    let seen = settle(&network, [&mut pair.client, &mut pair.server]);
    let socket = Socket::Simulated(Box::new(endpoints(seen).endpoints.remove(0)));
    other.open(token(0), socket).expect("it was accepted");
    other.receive(token(0));
    pair.token = token(1);
    pair.send_all(&network, 1000);
    assert_eq!(bytes_received(&settle(&network, [&mut other])), 1000);
}

#[test]
fn without_descriptors_accept_fails_and_the_connection_stays_queued() {
    let network = Network::new(1, Faults::none().descriptors(1));
    let other = IpAddr::from([10, 0, 0, 3]);
    let mut server = network.host(SERVER);
    let (mut first, mut second) = (network.host(CLIENT), network.host(other));
    let address = listen(&network, &mut server);
    first.connect(token(0), &address.into()).expect("there are ports");
    second.connect(token(0), &address.into()).expect("there are ports");
    let error = first.connect(token(1), &address.into()).expect_err("the client has one descriptor");
    assert_eq!(error.raw_os_error(), Some(Errno::MFILE.raw_os_error()));

    let seen = settle(&network, [&mut first, &mut second, &mut server]);
    let mut accepted = endpoints(seen);
    assert_eq!(accepted.failed, [Errno::MFILE.raw_os_error()], "told once, then paused");
    assert_eq!(accepted.endpoints.len(), 1);

    let endpoint = accepted.endpoints.remove(0);
    server.open(token(0), Socket::Simulated(Box::new(endpoint))).expect("it was counted at the accept");
    server.close(token(0), false);
    assert_eq!(endpoints(settle(&network, [&mut server])).endpoints.len(), 0, "still paused");
    server.resume_accept(LISTENER);
    assert_eq!(endpoints(settle(&network, [&mut server])).endpoints.len(), 1);
}

#[test]
fn an_accept_can_be_aborted() {
    let network = Network::new(1, Faults::none().aborted_accepts(1.0));
    let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
    let address = listen(&network, &mut server);
    client.connect(token(0), &address.into()).expect("there are ports");
    let accepted = endpoints(settle(&network, [&mut client, &mut server]));
    assert_eq!(accepted.failed, [Errno::CONNABORTED.raw_os_error()]);
    assert_eq!(network.open_sockets(), 2, "the client and the listener");
}

#[test]
fn close_gives_back_the_send_in_flight() {
    for seed in 0..10 {
        let network = Network::new(seed, Faults::harsh().partial_sends(0.0).handed_sends(0.0).window(10));
        let mut pair = Pair::new(&network);
        pair.send_all(&network, 10);
        assert!(matches!(pair.client.send(pair.token, &mut pattern(33)), Submitted::InFlight));
        settle(&network, [&mut pair.client, &mut pair.server]);
        pair.client.close(pair.token, false);
        let seen = settle(&network, [&mut pair.client, &mut pair.server]);
        let [(0, Completion::Closed { token, outgoing: Some(outgoing) })] = &seen[..] else {
            panic!("unexpected {seen:?}");
        };
        assert_eq!((*token, outgoing.len()), (pair.token, 33), "seed {seed}");
    }
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
fn port_zero_picks_a_free_port_and_a_taken_one_is_refused() {
    let network = Network::new(1, Faults::none());
    let any = SocketAddr::new(SERVER, 0);
    let first = network.listen(any).expect("ports are free");
    let second = network.listen(any).expect("ports are free");
    assert_eq!((first.local_addr().port(), second.local_addr().port()), (49152, 49153));
    let in_use = |address: SocketAddr| {
        let error = network.listen(address).expect_err("it is taken");
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    };
    in_use(first.local_addr());
    in_use("0.0.0.0:49152".parse().expect("an address"));
    in_use("[::]:49153".parse().expect("an address"));
    assert!(network.listen(SocketAddr::new(CLIENT, 49152)).is_ok(), "another host");

    let taken = first.local_addr();
    drop(first);
    assert!(network.listen(taken).is_ok(), "dropping it frees the port");
    drop(second);
    assert_eq!(network.open_sockets(), 0);
}

#[test]
fn an_unspecified_address_listens_on_every_host() {
    for address in ["0.0.0.0:80", "[::]:80"] {
        let network = Network::new(1, Faults::none());
        let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
        let listening = network.listen(address.parse().expect("an address")).expect("free");
        server.listen(LISTENER, Listener::Simulated(listening)).expect("it is simulated");
        client.connect(token(0), &SocketAddr::new(SERVER, 80).into()).expect("there are ports");
        let mut accepted = endpoints(settle(&network, [&mut client, &mut server]));
        let socket = Socket::Simulated(Box::new(accepted.endpoints.remove(0)));
        server.open(token(0), socket).expect("it was accepted");
        let local = server.local_addr(token(0)).expect("it is open");
        assert_eq!(local, SocketAddr::new(SERVER, 80));
    }
}

#[test]
fn a_socket_dropped_on_its_way_to_a_worker_is_closed() {
    let network = Network::new(1, Faults::none());
    let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
    let address = listen(&network, &mut server);
    client.connect(token(0), &address.into()).expect("there are ports");
    client.connect(token(1), &address.into()).expect("there are ports");
    let mut accepted = endpoints(settle(&network, [&mut client, &mut server])).endpoints;
    client.receive(token(0));
    client.receive(token(1));
    drop(accepted.pop());
    drop(accepted.remove(0));
    let seen = settle(&network, [&mut client, &mut server]);
    let ended = seen.iter().filter(|(_, c)| matches!(c, Completion::ReceiveEnded { .. }));
    assert_eq!(ended.count(), 2);
    drop((server, client));
    assert_eq!(network.open_sockets(), 0);
}

#[test]
fn closing_a_listener_resets_what_it_has_queued() {
    let network = Network::new(1, Faults::none());
    let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
    let address = listen(&network, &mut server);
    server.pause_accept(LISTENER);
    client.connect(token(0), &address.into()).expect("there are ports");
    settle(&network, [&mut client, &mut server]);
    drop(server.unlisten(LISTENER));
    client.connect(token(1), &address.into()).expect("there are ports");
    let seen = settle(&network, [&mut client, &mut server]);
    assert_eq!(failures(&seen), [(0, Errno::CONNRESET.raw_os_error())]);
    assert_eq!(connect_results(&seen), [Some(Errno::CONNREFUSED.raw_os_error())]);
}

#[test]
fn who_waits_can_be_accepted_at_once_while_paused_and_refused() {
    let network = Network::new(1, Faults::none());
    let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
    let address = listen(&network, &mut server);
    server.pause_accept(LISTENER);
    for index in 0..2 {
        client.connect(token(index), &address.into()).expect("there are ports");
        client.receive(token(index));
    }
    settle(&network, [&mut client, &mut server]);
    for reset in [false, true] {
        let (socket, peer) = server.accept_now(LISTENER).expect("it accepts").expect("somebody waits");
        assert_eq!(peer.ip(), Some(CLIENT));
        socket.refuse(reset);
    }
    assert!(server.accept_now(LISTENER).expect("it can be asked").is_none(), "nobody waits any more");
    let seen = settle(&network, [&mut client, &mut server]);
    let ended = seen.iter().filter(|(_, c)| matches!(c, Completion::ReceiveEnded { .. }));
    assert_eq!(ended.count(), 1);
    assert_eq!(failures(&seen), [(0, Errno::CONNRESET.raw_os_error())]);
}

#[test]
fn a_listener_that_is_given_back_keeps_who_waits_and_serves_another_engine() {
    let network = Network::new(1, Faults::none());
    let (mut first, mut client) = (network.host(SERVER), network.host(CLIENT));
    let mut second = network.host(SERVER);
    let address = listen(&network, &mut first);
    first.pause_accept(LISTENER);
    client.connect(token(0), &address.into()).expect("there are ports");
    settle(&network, [&mut client, &mut first]);
    let listener = first.unlisten(LISTENER).expect("it was there");
    assert!(first.unlisten(LISTENER).is_none(), "only once");
    client.connect(token(1), &address.into()).expect("there are ports");
    let seen = settle(&network, [&mut client, &mut first]);
    assert!(endpoints(seen).endpoints.is_empty(), "nothing is accepted any more");
    second.listen(ListenerId(0), listener).expect("it is simulated");
    let seen = settle(&network, [&mut client, &mut first, &mut second]);
    assert_eq!(endpoints(seen).endpoints.len(), 2);
    drop((first, second, client));
    assert_eq!(network.open_sockets(), 0);
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
        pair.client.connect(token(index), &pair.address.into()).expect("there are ports");
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
        client.connect(token(0), &address.into()).expect("there are ports");
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
        client.connect(token(0), &address.into()).expect("there are ports");
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
            Completion::Received { .. } | Completion::Closed { .. } | Completion::Woken => {}
            Completion::ReceiveEnded { .. } => self.ended = true,
            Completion::Sent { outgoing, result, .. } => {
                self.in_flight = false;
                self.sent(engine, *outgoing, result.ok());
            }
            Completion::Failed { .. } | Completion::Connected { .. } => self.finish(engine),
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
