//! Connecting, listening and accepting.

use super::*;

#[test]
fn connecting_where_nobody_listens_is_refused_after_a_round_trip() {
    let network = Network::new(1, Faults::none());
    let mut client = network.host(CLIENT);
    client.connect(token(0), &SocketAddr::new(SERVER, 80).into(), None).expect("there are ports");
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
        client.connect(token, &SocketAddr::new(SERVER, 80).into(), None).expect("both came back");
        client.close(token, false);
        assert!(matches!(turn(&mut client)[..], [(_, Completion::Closed { .. })]));
    }
}

#[test]
fn refusals_can_be_asked_for() {
    let network = Network::new(1, Faults::none().refusals(1.0));
    let (mut server, mut client) = (network.host(SERVER), network.host(CLIENT));
    let address = listen(&network, &mut server);
    client.connect(token(0), &address.into(), None).expect("there are ports");
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
        client.connect(token(0), &address.into(), None).expect("there are ports");
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
    client.connect(token(0), &address.into(), None).expect("there are ports");
    client.connect(token(1), &address.into(), None).expect("there are ports");
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
    client.connect(token(0), &address.into(), None).expect("there are ports");
    let seen = settle(&network, [&mut client, &mut server]);
    assert_eq!(connect_results(&seen), [Some(Errno::TIMEDOUT.raw_os_error())]);
    assert!(network.now() < Time::ZERO.after(Duration::from_secs(64)));
}

#[test]
fn a_socket_can_move_to_another_worker_of_its_host() {
    let network = Network::new(1, Faults::default());
    let mut pair = Pair::new(&network);
    let mut other = network.host(SERVER);
    pair.client.connect(token(1), &pair.address.into(), None).expect("there are ports");
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
    first.connect(token(0), &address.into(), None).expect("there are ports");
    second.connect(token(0), &address.into(), None).expect("there are ports");
    let error = first.connect(token(1), &address.into(), None).expect_err("the client has one descriptor");
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
    client.connect(token(0), &address.into(), None).expect("there are ports");
    let accepted = endpoints(settle(&network, [&mut client, &mut server]));
    assert_eq!(accepted.failed, [Errno::CONNABORTED.raw_os_error()]);
    assert_eq!(network.open_sockets(), 2, "the client and the listener");
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
        client.connect(token(0), &SocketAddr::new(SERVER, 80).into(), None).expect("there are ports");
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
    client.connect(token(0), &address.into(), None).expect("there are ports");
    client.connect(token(1), &address.into(), None).expect("there are ports");
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
    client.connect(token(0), &address.into(), None).expect("there are ports");
    settle(&network, [&mut client, &mut server]);
    drop(server.unlisten(LISTENER));
    client.connect(token(1), &address.into(), None).expect("there are ports");
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
        client.connect(token(index), &address.into(), None).expect("there are ports");
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
    client.connect(token(0), &address.into(), None).expect("there are ports");
    settle(&network, [&mut client, &mut first]);
    let listener = first.unlisten(LISTENER).expect("it was there");
    assert!(first.unlisten(LISTENER).is_none(), "only once");
    client.connect(token(1), &address.into(), None).expect("there are ports");
    let seen = settle(&network, [&mut client, &mut first]);
    assert!(endpoints(seen).endpoints.is_empty(), "nothing is accepted any more");
    second.listen(ListenerId(0), listener).expect("it is simulated");
    let seen = settle(&network, [&mut client, &mut first, &mut second]);
    assert_eq!(endpoints(seen).endpoints.len(), 2);
    drop((first, second, client));
    assert_eq!(network.open_sockets(), 0);
}
