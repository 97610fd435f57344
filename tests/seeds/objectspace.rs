//! The toolkit of blocking sockets: a connection server that accepts, endpoints that connect, and a thread for each client.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use wharf::blocking::{self, Connection, Listener};
use wharf::{Address, Client, CloseReason, ErrorKind, Limits, Listen, SocketOptions};

use super::SOON;
use crate::common::Watchdog;

/// A listener, a client that has connected to it, and what was accepted.
fn pair() -> (Listener, Connection, Connection) {
    let mut server = Listener::bind("127.0.0.1:0").unwrap();
    let client = blocking::connect(server.local_addr()).unwrap();
    let accepted = server.accept().unwrap();
    (server, client, accepted)
}

/// It had to be begun, in the right scope.
#[test]
fn o1_there_is_nothing_to_begin_and_nothing_to_end() {
    let _watchdog = Watchdog::new("o1");
    // Each thread by itself, in any order.
    let threads: Vec<_> = (0..4).map(|_| thread::spawn(|| drop(pair()))).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn o2_a_connection_server_binds_and_listens_or_takes_a_descriptor_that_does() {
    let _watchdog = Watchdog::new("o2");
    let mut server = Listener::bind("127.0.0.1:0").unwrap();
    assert_ne!(server.local_addr().port(), Some(0), "the real one");
    let taken = Listener::bind(server.local_addr()).unwrap_err();
    assert_eq!(taken.io_kind(), Some(std::io::ErrorKind::AddrInUse), "{taken}");

    let given = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = given.local_addr().unwrap();
    let mut adopted = Listener::adopt(given).unwrap();
    assert_eq!(adopted.local_addr(), address);
    for server in [&mut server, &mut adopted] {
        let client = blocking::connect(server.local_addr()).unwrap();
        assert_eq!(server.accept().unwrap().peer_addr(), client_addr(client));
    }
    let idle = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(idle.local_addr().unwrap()).unwrap();
    let refused = Listener::adopt(connected).unwrap_err();
    assert!(refused.to_string().contains("listen"), "{refused}");
}

fn client_addr(mut client: Connection) -> Address {
    client.local_addr().unwrap()
}

/// An open socket that was given to it was closed without a word; and false was an error as well as nobody.
#[test]
fn o3_accept_waits_for_its_time_and_tells_nobody_from_an_error() {
    let _watchdog = Watchdog::new("o3");
    let (mut server, mut client, accepted) = pair();
    let (patience, began) = (Duration::from_millis(100), Instant::now());
    assert!(server.accept_within(patience).unwrap().is_none());
    assert!(began.elapsed() >= patience);
    assert!(server.accept_within(Duration::ZERO).unwrap().is_none(), "without waiting");

    // What was accepted before is closed by who holds it: here by putting another in its place.
    let second = blocking::connect(server.local_addr()).unwrap();
    let mut held = accepted;
    assert_eq!(held.close_reason(), None);
    held = server.accept_within(SOON).unwrap().expect("it waits to be accepted");
    assert_eq!(client.recv(&mut [0; 1]).unwrap(), 0, "the first was closed");
    assert_eq!(held.peer_addr(), client_addr(second));

    // Without a time it waits for as long as it takes.
    let address = server.local_addr();
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        blocking::connect(address).unwrap();
    });
    server.accept().unwrap();
    late.join().unwrap();
}

#[test]
fn o4_the_backlog_is_set_where_it_listens() {
    let _watchdog = Watchdog::new("o4");
    let listen = Listen::at("127.0.0.1:0").sockets(SocketOptions::default().backlog(1));
    let server = Listener::bind(listen).unwrap();
    let client = Client::new(server.local_addr()).connect_within(Duration::from_millis(200));
    // Nobody accepts.
    let outcomes: Vec<_> = (0..5).map(|_| client.open_blocking()).collect();
    let waiting = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!((1..4).contains(&waiting), "{waiting} were taken for a backlog of 1");
    assert!(outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).all(wharf::Error::is_timeout));
    let none =
        Listener::bind(Listen::at("127.0.0.1:0").sockets(SocketOptions::default().backlog(0))).unwrap_err();
    assert!(none.to_string().contains("backlog"), "{none}");
}

#[test]
fn o5_an_endpoint_has_a_local_address_of_its_own_that_the_system_or_the_program_picks() {
    let _watchdog = Watchdog::new("o5");
    let (mut server, mut first, _accepted) = pair();
    let mut second = blocking::connect(server.local_addr()).unwrap();
    assert_ne!(first.local_addr().unwrap().port(), second.local_addr().unwrap().port());
    let mut bound = Client::new(server.local_addr()).bind("127.0.0.5").open_blocking().unwrap();
    assert_eq!(bound.local_addr().unwrap().ip(), Some(IpAddr::from([127, 0, 0, 5])));
    server.accept().unwrap();
    assert_eq!(Some(server.accept().unwrap().peer_addr()), bound.local_addr());
}

#[test]
fn o6_connect_to_and_accept_return_when_the_two_are_connected() {
    let _watchdog = Watchdog::new("o6");
    let mut server = Listener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr();
    let client = thread::spawn(move || blocking::connect(address).unwrap());
    let mut accepted = server.accept().unwrap();
    let mut client = client.join().unwrap();
    assert_eq!(Some(accepted.peer_addr()), client.local_addr());
    assert_eq!(accepted.local_addr(), Some(client.peer_addr()));
    drop(server);
    let refused = blocking::connect(client.peer_addr()).unwrap_err();
    assert!(refused.is_refused(), "{refused}");
    // Those two go on without the server that brought them together.
    accepted.send(b"x").unwrap();
    client.recv_exact(&mut [0; 1]).unwrap();
}

/// "The sender is notified if any bytes sent are not received": TCP does not tell that by itself.
#[test]
fn o7_read_and_write_tell_how_much_and_a_sender_can_ask_what_was_not_received() {
    let _watchdog = Watchdog::new("o7");
    let (_server, mut client, mut accepted) = pair();
    client.send(b"hello there").unwrap();
    client.delivered().unwrap();
    if cfg!(target_os = "linux") {
        assert_eq!(client.unacked(), Some(0), "the peer's system has all of it");
    }
    let mut buffer = [0; 100];
    let n = accepted.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"hello there", "what is there, and no more is waited for");

    // The standard library's way to read and write is there too.
    accepted.write_all(b"and back").unwrap();
    client.read_exact(&mut buffer[..8]).unwrap();
    assert_eq!(&buffer[..8], b"and back");

    // What the peer never takes is told, and how much of it.
    while client.within(Duration::from_millis(50)).send(&[0; 64 << 10]).is_ok() {}
    accepted.reset();
    let error = client.delivered().unwrap_err();
    assert_eq!(error.close_reason(), Some(CloseReason::PeerReset), "{error}");
    assert!(error.undelivered().is_some_and(|bytes| bytes > 0), "{error}");
}

#[test]
fn o8_the_peer_s_address_is_told_and_printed_the_same_on_both_sides() {
    let _watchdog = Watchdog::new("o8");
    let (server, mut client, accepted) = pair();
    assert_eq!(client.peer_addr(), server.local_addr());
    assert_eq!(accepted.peer_addr().to_string(), client.local_addr().unwrap().to_string());
    assert!(accepted.peer_addr().to_string().starts_with("127.0.0.1:"));
}

/// The local host was that of the machine's name, whichever interface that is.
#[test]
fn o9_an_address_is_written_with_its_host() {
    let _watchdog = Watchdog::new("o9");
    let server = Listener::bind("localhost:0").unwrap();
    assert!(server.local_addr().ip().unwrap().is_loopback());
    let everywhere = Listener::bind("0.0.0.0:0").unwrap();
    assert_eq!(everywhere.local_addr().ip(), Some(Ipv4Addr::UNSPECIFIED.into()));
    let without = Listener::bind("3000").unwrap_err();
    assert_eq!(without.kind(), ErrorKind::Caller, "{without}");
    assert!(without.to_string().contains("3000"), "{without}");
}

#[test]
fn o10_options_are_set_before_and_a_broken_connection_says_so_once_and_for_all() {
    let _watchdog = Watchdog::new("o10");
    let options = SocketOptions::default().keepalive(Duration::from_secs(30)).receive_buffer(64 << 10);
    let server = Listener::bind(Listen::at("127.0.0.1:0").sockets(options.clone())).unwrap();
    let mut server = server.limits(Limits::default()).unwrap();
    let mut client = Client::new(server.local_addr()).sockets(options).open_blocking().unwrap();
    let mut accepted = server.accept().unwrap();
    // On: the system asks the peer when nothing has come for so long (tcp(7)); what it has is looked at in socket_options.rs.
    client.send(b"x").unwrap();
    accepted.recv_exact(&mut [0; 1]).unwrap();
    assert_eq!((client.close_reason(), client.hangup()), (None, None), "it is good, and not at its end");
    accepted.reset();
    assert!(client.recv(&mut [0; 1]).is_err());
    for _ in 0..2 {
        assert_eq!(client.close_reason(), Some(CloseReason::PeerReset), "asking does not clear it");
        assert!(client.send(b"x").is_err());
    }
    let bad = SocketOptions::default().keepalive(Duration::ZERO);
    let refused = Listener::bind(Listen::at("127.0.0.1:0").sockets(bad)).unwrap_err();
    assert!(refused.to_string().contains("keepalive"), "{refused}");
}

#[test]
fn o11_every_failure_is_an_error_with_operation_address_and_cause() {
    let _watchdog = Watchdog::new("o11");
    let (mut server, mut client, accepted) = pair();
    drop(accepted);
    let ended = client.recv_exact(&mut [0; 4]).unwrap_err();
    assert!(ended.is_ended(), "{ended}");
    assert_eq!((ended.operation(), ended.partial()), ("receive", Some(0)));
    assert!(ended.to_string().starts_with(&format!("receive from {}: ", server.local_addr())), "{ended}");

    let mut client = blocking::connect(server.local_addr()).unwrap();
    let accepted = server.accept().unwrap();
    let late = client.within(Duration::from_millis(20)).recv(&mut [0; 4]).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Timeout, "{late}");
    assert_eq!(std::io::Error::from(late).kind(), std::io::ErrorKind::TimedOut);
    drop(accepted);
    let unreadable = blocking::connect("nowhere").unwrap_err();
    assert_eq!((unreadable.operation(), unreadable.kind()), ("connect", ErrorKind::Caller), "{unreadable}");
}

#[test]
fn o12_each_client_has_a_thread_and_the_server_is_back_to_accept_the_next() {
    const CLIENTS: usize = 4;
    let _watchdog = Watchdog::new("o12");
    // None of them is answered before all are there: a server that served one after the other would wait for ever.
    let (all, there) = (Arc::new(Barrier::new(CLIENTS)), Barrier::new(CLIENTS));
    let server = Listener::bind("127.0.0.1:0").unwrap().threads(CLIENTS).unwrap();
    let server = server.serve(move |mut conn: Connection| {
        let mut word = [0; 4];
        conn.recv_exact(&mut word)?;
        there.wait();
        conn.send(&word)
    });
    let server = server.unwrap();
    let address = server.local_addr();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (all, address) = (all.clone(), address.clone());
            thread::spawn(move || {
                let mut conn = blocking::connect(address).unwrap();
                all.wait();
                conn.send(b"word").unwrap();
                let mut answer = [0; 4];
                conn.recv_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"word");
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(server.drain(SOON).wait().unwrap().accepted, CLIENTS as u64);

    // The same by hand, as its programs did it.
    let (mut server, mut client, mut accepted) = pair();
    let served = thread::spawn(move || {
        let mut word = [0; 4];
        accepted.recv_exact(&mut word).unwrap();
        accepted.send(&word).unwrap();
    });
    let another = blocking::connect(server.local_addr()).unwrap();
    server.accept().unwrap();
    client.send(b"word").unwrap();
    client.recv_exact(&mut [0; 4]).unwrap();
    served.join().unwrap();
    drop(another);
}
