//! What becomes of bytes that are sent, and of connections that end or break meanwhile.

use super::*;

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
fn an_end_behind_unread_data_is_told_once_while_paused() {
    for seed in 0..20 {
        let network = Network::new(seed, Faults::harsh());
        let mut pair = Pair::new(&network);
        pair.send_all(&network, 30_000);
        pair.client.close(pair.token, false);
        let seen = settle(&network, [&mut pair.client, &mut pair.server]);
        let hangups = seen.iter().filter(|(_, c)| matches!(c, Completion::HungUp { .. }));
        assert_eq!(hangups.count(), 1, "{seen:?}");
        pair.server.receive(pair.token);
        let seen = settle(&network, [&mut pair.client, &mut pair.server]);
        assert_eq!(bytes_received(&seen), 30_000);
        assert!(matches!(seen.last(), Some((1, Completion::ReceiveEnded { .. }))), "{seen:?}");
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
fn a_reset_is_told_while_paused_and_leaves_what_came_before_to_be_read() {
    let network = Network::new(1, Faults::none());
    let mut pair = Pair::new(&network);
    pair.send_all(&network, 100);
    settle(&network, [&mut pair.client, &mut pair.server]);
    pair.client.close(pair.token, true);
    let closed = settle(&network, [&mut pair.client, &mut pair.server]);
    assert!(matches!(&closed[1..], [(1, Completion::Broken { .. })]), "{closed:?}");
    pair.server.receive(pair.token);
    let seen = settle(&network, [&mut pair.client, &mut pair.server]);
    assert_eq!(bytes_received(&seen), 100);
    assert!(matches!(seen.last(), Some((1, Completion::ReceiveEnded { .. }))), "{seen:?}");
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
    assert_eq!(failures(&seen), [], "told once");
}

#[test]
fn a_connection_that_broke_before_it_was_opened_says_so() {
    let network = Network::new(1, Faults::none());
    let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
    let address = listen(&network, &mut server);
    client.connect(token(0), &address.into(), None).expect("there are ports");
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
fn close_gives_back_the_send_in_flight() {
    for seed in 0..10 {
        let network = Network::new(seed, Faults::harsh().partial_sends(0.0).handed_sends(0.0).window(10));
        let mut pair = Pair::new(&network);
        pair.send_all(&network, 10);
        assert!(matches!(pair.client.send(pair.token, &mut pattern(33)), Submitted::InFlight));
        settle(&network, [&mut pair.client, &mut pair.server]);
        pair.client.close(pair.token, false);
        let mut seen = settle(&network, [&mut pair.client, &mut pair.server]);
        seen.retain(|(number, _)| *number == 0);
        let [(_, Completion::Closed { token, outgoing: Some(outgoing) })] = &seen[..] else {
            panic!("unexpected {seen:?}");
        };
        assert_eq!((*token, outgoing.len()), (pair.token, 33), "seed {seed}");
    }
}
