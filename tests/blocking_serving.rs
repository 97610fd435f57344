//! The blocking style's servers: a thread for each connection, within bounds, and how they end.

#[path = "common/threads.rs"]
mod threads;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use wharf::blocking::{Connection, Listener, ServerHandle};
use wharf::{Access, CloseReason, Deadline, Deadlines, Limits, OverLimit, Phase, Rule};

use threads::echo;

/// Nothing takes that long.
const PATIENCE: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(60);

fn listener() -> Listener {
    Listener::bind("127.0.0.1:0").expect("a port is free")
}

fn connect(server: &ServerHandle) -> TcpStream {
    let address = server.local_addr().socket().expect("it is TCP");
    let socket = TcpStream::connect(address).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("it can");
    socket
}

/// What a client reads first. If it is refused by a reset, that may come before its connect is over.
fn first_read(server: &ServerHandle) -> Result<usize, ErrorKind> {
    let address = server.local_addr().socket().expect("it is TCP");
    let read = TcpStream::connect(address).and_then(|mut socket| {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.read(&mut [0; 1])
    });
    read.map_err(|error| error.kind())
}

/// Has a byte echoed.
fn exchange(socket: &mut TcpStream) {
    socket.write_all(b"x").expect("it stands");
    socket.read_exact(&mut [0; 1]).expect("it is served");
}

fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        thread::yield_now();
    }
}

#[test]
fn each_connection_is_served_until_it_ends() {
    let server = listener().serve(echo).expect("it starts");
    let mut clients: Vec<_> = (0..8).map(|_| connect(&server)).collect();
    clients.iter_mut().for_each(exchange);
    assert_eq!((server.connections(), server.phase()), (8, Phase::Serving));
    drop(clients);
    await_that("they end", || server.connections() == 0);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!((stats.accepted, stats.closed(CloseReason::Peer)), (8, 8));
    assert_eq!((stats.received, stats.sent), (8, 8));
    assert_eq!(server.phase(), Phase::Stopped);
    assert_eq!(
        TcpStream::connect(server.local_addr().socket().expect("it is TCP")).expect_err("it is gone").kind(),
        ErrorKind::ConnectionRefused
    );
}

#[test]
fn a_panic_loses_one_connection_and_no_other() {
    let server = listener().serve(|mut conn: Connection| {
        let mut byte = [0; 1];
        while conn.recv(&mut byte)? > 0 {
            assert_ne!(byte[0], b'!', "on purpose");
            conn.send(&byte)?;
        }
        Ok(())
    });
    let server = server.expect("it starts");
    let mut stays = connect(&server);
    exchange(&mut stays);
    let mut goes = connect(&server);
    goes.write_all(b"!").expect("it stands");
    assert_eq!(goes.read(&mut [0; 1]).expect_err("it is reset").kind(), ErrorKind::ConnectionReset);
    exchange(&mut stays);
    exchange(&mut connect(&server));
    drop(stays);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!((stats.panics, stats.closed(CloseReason::HandlerPanicked)), (1, 1));
}

#[test]
fn a_handler_that_fails_closes_gracefully_and_says_why() {
    let server = listener().serve(|mut conn: Connection| {
        conn.send(b"no")?;
        match conn.within(SOON).recv(&mut [0; 1]) {
            Ok(_) => Err(wharf::Error::other("unknown command")),
            Err(error) => Err(error),
        }
    });
    let server = server.expect("it starts");
    let mut failing = connect(&server);
    failing.write_all(b"x").expect("it stands");
    let mut last_words = Vec::new();
    failing.read_to_end(&mut last_words).expect("no reset");
    assert_eq!(last_words, b"no");
    let mut late = connect(&server);
    late.read_to_end(&mut last_words).expect("no reset");
    drop((failing, late));
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(stats.closed(CloseReason::HandlerFailed), 1);
    assert_eq!(stats.closed(CloseReason::Timeout(Deadline::Handler)), 1);
}

#[test]
fn no_more_handlers_run_than_may_and_the_others_wait() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let names = Arc::new(Mutex::new(Vec::new()));
    let handler = {
        let (running, most, names) = (running.clone(), most.clone(), names.clone());
        move |conn: Connection| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            names.lock().expect("nobody panics").push(thread::current().name().map(str::to_owned));
            let result = echo(conn);
            running.fetch_sub(1, Ordering::SeqCst);
            result
        }
    };
    let server = listener().threads(2).expect("it makes sense").serve(handler).expect("it starts");
    assert_eq!(server.connections_max(), 2);
    let mut clients: Vec<_> = (0..6).map(|_| connect(&server)).collect();
    await_that("as many as may be run", || running.load(Ordering::SeqCst) == 2);
    // Those who wait are served when others leave.
    for client in &mut clients {
        exchange(client);
        client.shutdown(std::net::Shutdown::Write).expect("it stands");
        client.read_to_end(&mut Vec::new()).expect("it ends");
    }
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(stats.accepted, 6);
    assert_eq!(most.load(Ordering::SeqCst), 2);
    let mut names = names.lock().expect("nobody panics").clone();
    names.sort();
    names.dedup();
    assert!(names.len() <= 3, "threads are used again: {names:?}");
    assert!(names.iter().flatten().all(|name| name.starts_with("wharf-conn-")), "{names:?}");
}

#[test]
fn who_is_one_too_many_can_be_refused() {
    for (policy, expected) in [(OverLimit::Reset, Err(ErrorKind::ConnectionReset)), (OverLimit::Close, Ok(0))]
    {
        let limits = Limits::default().connections(1).over_limit(policy);
        let server = listener().limits(limits).expect("they make sense").serve(echo).expect("it starts");
        let mut first = connect(&server);
        exchange(&mut first);
        assert_eq!(first_read(&server), expected);
        drop(first);
        await_that("there is room", || server.connections() == 0);
        exchange(&mut connect(&server));
        let stats = server.drain(PATIENCE).wait().expect("it ends");
        assert_eq!(stats.refused_by(Rule::Connections), 1);
    }
}

#[test]
fn the_rules_of_admission_are_a_servers() {
    let access = Access::default().deny(["127.0.0.0/8".parse().expect("a network")]);
    let server = listener().access(access).serve(echo).expect("it starts");
    assert!(first_read(&server).is_err());
    assert_eq!(server.stop().wait().expect("it ends").refused_by(Rule::Network), 1);

    let limits = Limits::default().per_address(1).over_limit(OverLimit::Reset);
    let server = listener().limits(limits).expect("they make sense").serve(echo).expect("it starts");
    let mut first = connect(&server);
    exchange(&mut first);
    assert!(first_read(&server).is_err());
    assert_eq!(server.stop().wait().expect("it ends").refused_by(Rule::PerAddress), 1);
}

#[test]
fn a_drain_waits_for_who_ends_and_resets_the_rest() {
    let server = listener().serve(echo).expect("it starts");
    let (mut ends, mut stays) = (connect(&server), connect(&server));
    exchange(&mut ends);
    exchange(&mut stays);
    let began = Instant::now();
    server.drain(Duration::from_millis(300));
    assert_eq!(server.phase(), Phase::Draining);
    exchange(&mut ends);
    drop(ends);
    let stats = server.wait().expect("it ends");
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!((stats.drain.finished, stats.drain.reset), (1, 1));
    assert_eq!(stats.closed(CloseReason::Shutdown), 1);
    assert_eq!(stays.read(&mut [0; 1]).expect_err("it is reset").kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_handler_between_two_requests_hears_of_the_drain() {
    let server = listener().serve(|mut conn: Connection| {
        let mut request = [0; 1];
        while conn.ready()? {
            if conn.recv(&mut request)? == 0 {
                return Ok(());
            }
            conn.send(&request)?;
        }
        assert!(conn.is_draining());
        conn.send(b"bye")
    });
    let server = server.expect("it starts");
    let mut idle = connect(&server);
    exchange(&mut idle);
    let began = Instant::now();
    server.drain(PATIENCE);
    let mut last_words = Vec::new();
    idle.read_to_end(&mut last_words).expect("no reset");
    assert_eq!(last_words, b"bye");
    drop(idle);
    assert_eq!(server.wait().expect("it ends").drain.finished, 1);
    assert!(began.elapsed() < PATIENCE / 2);
}

#[test]
fn a_request_that_came_before_the_drain_is_served() {
    let (go, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let server = listener().serve(move |mut conn: Connection| {
        gate.lock().expect("nobody panics").recv().expect("the test goes on");
        let mut request = [0; 1];
        while conn.ready()? {
            if conn.recv(&mut request)? == 0 {
                return Ok(());
            }
            conn.send(&request)?;
        }
        conn.send(b"bye")
    });
    let server = server.expect("it starts");
    let mut client = connect(&server);
    client.write_all(b"x").expect("it stands");
    await_that("it is accepted", || server.connections() == 1);
    server.drain(PATIENCE);
    go.send(()).expect("the handler waits");
    let mut words = Vec::new();
    client.read_to_end(&mut words).expect("no reset");
    assert_eq!(words, b"xbye");
    drop(client);
    assert_eq!(server.wait().expect("it ends").drain.finished, 1);
}

#[test]
fn a_stop_ends_at_once_whatever_handlers_wait_for() {
    let server = listener().serve(|mut conn: Connection| {
        let mut kind = [0; 1];
        conn.recv_exact(&mut kind)?;
        match kind[0] {
            b's' => conn.send(&vec![7; 64 << 20]),
            b'r' => conn.ready().map(drop),
            _ => conn.recv(&mut [0; 1]).map(drop),
        }
    });
    let server = server.expect("it starts");
    let mut clients: Vec<_> = b"sr?".iter().map(|kind| (*kind, connect(&server))).collect();
    for (kind, client) in &mut clients {
        client.write_all(&[*kind]).expect("it stands");
    }
    // The sending one has begun when something of it is here.
    clients[0].1.read_exact(&mut [0; 1]).expect("it sends");
    await_that("they are served", || server.connections() == 3);
    let began = Instant::now();
    let stats = server.stop().wait().expect("it ends");
    assert!(began.elapsed() < PATIENCE / 2);
    assert_eq!(stats.closed(CloseReason::Shutdown), 3);
    assert_eq!(stats.drain.reset, 3);
}

#[test]
fn a_stop_while_nobody_connects_is_heard_and_told_to_who_comes() {
    for _ in 0..20 {
        let server = listener().serve(echo).expect("it starts");
        let address = server.local_addr().socket().expect("it is TCP");
        let clients = thread::spawn(move || while TcpStream::connect(address).is_ok() {});
        server.stop().wait().expect("it ends");
        clients.join().expect("they are refused");
    }
}

#[test]
fn a_handler_cannot_wait_for_its_own_server() {
    let (tell, told) = mpsc::channel();
    let (hand, handed) = mpsc::channel::<ServerHandle>();
    let handed = Mutex::new(handed);
    let server = listener().serve(move |_: Connection| {
        let server = handed.lock().expect("nobody panics").recv().expect("the test hands it");
        tell.send(server.wait().map(drop)).expect("the test waits");
        Ok(())
    });
    let server = server.expect("it starts");
    hand.send(server.clone()).expect("it waits");
    let _client = connect(&server);
    let error = told.recv_timeout(PATIENCE).expect("it is told").expect_err("it would wait for ever");
    assert_eq!(error.to_string(), "wait: a handler cannot wait for its own server's end");
    server.stop().wait().expect("it ends");
}

#[test]
fn who_says_nothing_is_ended_by_the_servers_deadlines() {
    let deadlines = Deadlines::default().first_byte(SOON).linger(Duration::ZERO);
    let server = listener().deadlines(deadlines).expect("they make sense").serve(echo).expect("it starts");
    let mut silent = connect(&server);
    assert_eq!(silent.read(&mut [0; 1]).expect("it is closed"), 0);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(stats.closed(CloseReason::Timeout(Deadline::FirstByte)), 1);
}

#[test]
fn a_handler_may_split_its_connection_and_give_it_away() {
    let server = listener().serve(|conn: Connection| {
        let (mut read, mut write) = conn.split()?;
        // The handler is over before its connection is.
        thread::spawn(move || std::io::copy(&mut read, &mut write));
        Ok(())
    });
    let server = server.expect("it starts");
    let mut sockets: Vec<_> = (0..3).map(|_| connect(&server)).collect();
    for socket in &mut sockets {
        exchange(socket);
    }
    assert_eq!(server.connections(), 3, "each is one for as long as it lasts");
    drop(sockets);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!((stats.accepted, stats.closed(CloseReason::Peer)), (3, 3));
    assert_eq!((stats.received, stats.sent), (3, 3));
}

#[test]
fn a_stop_does_not_wait_for_connections_that_nobody_uses() {
    let kept: Arc<Mutex<Vec<Connection>>> = Arc::default();
    let keeper = kept.clone();
    let server = listener().serve(move |mut conn: Connection| {
        conn.send(b"!")?;
        keeper.lock().expect("nobody panics").push(conn);
        Ok(())
    });
    let server = server.expect("it starts");
    let mut socket = connect(&server);
    socket.read_exact(&mut [0; 1]).expect("it is served");
    let stats = server.stop().wait().expect("it ends");
    assert_eq!(stats.closed(CloseReason::Shutdown), 1);
    assert_eq!(socket.read(&mut [0; 1]).unwrap_or(0), 0, "the peer is told");
    let mut conn = kept.lock().expect("nobody panics").pop().expect("it is kept");
    assert_eq!(conn.send(b"late").expect_err("it is over").close_reason(), Some(CloseReason::Shutdown));
}
