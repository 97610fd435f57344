//! The PROXY protocol in front of a blocking server: what proxies tell, whom they are asked for it, and what becomes of the others.

#[path = "common/proxy_headers.rs"]
mod proxy_headers;
#[path = "common/threads.rs"]
mod threads;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use wharf::blocking::{Connection, Listener, ServerHandle};
use wharf::{
    Access, Bound, CloseReason, Deadline, Deadlines, Limits, Listen, Network, OverLimit, ProxyProtocol,
    Result, Rule, ServerEvent,
};

use proxy_headers::{V1, V2_ENDS, bad_headers, v2};
use threads::echo;

/// Nothing takes that long.
const PATIENCE: Duration = Duration::from_secs(20);

const ENDS: &str = "192.0.2.7:40000 by 198.51.100.1:443";

/// For the same ends as the other, and with a host name.
fn v2_with_name() -> Vec<u8> {
    v2(0x21, 0x11, &[V2_ENDS, &[2, 0, 9], b"a.example"].concat())
}

fn trusting(networks: &[&str]) -> ProxyProtocol {
    ProxyProtocol::from(networks.iter().map(|text| text.parse::<Network>().expect("a network")))
}

fn listener(proxies: ProxyProtocol) -> Listener {
    Listener::bind(Listen::at("127.0.0.1:0").proxy_protocol(proxies)).expect("a port is free")
}

/// Tells whom it takes the peer for, and then echoes.
fn tell(mut conn: Connection) -> Result<()> {
    let proxied = conn.proxied().expect("a header was read");
    let destination = proxied.destination().map_or(String::from("nobody"), ToString::to_string);
    let name = proxied.tlv(2).map_or(String::new(), |name| format!(" for {}", name.escape_ascii()));
    let itself = conn.peer_addr() == *proxied.proxy();
    let peer = if itself { String::from("itself") } else { conn.peer_addr().to_string() };
    let line = format!("v{} {peer} by {destination}{name}\n", proxied.version());
    conn.send(line.as_bytes())?;
    echo(conn)
}

fn connect(server: &ServerHandle) -> TcpStream {
    let address: SocketAddr = server.local_addr().socket().expect("it is TCP");
    let socket = TcpStream::connect(address).expect("it listens");
    // One that is reset already need not have it.
    drop(socket.set_nodelay(true));
    socket.set_read_timeout(Some(PATIENCE)).expect("it can");
    socket
}

/// Sends the pieces and ends; returns what came back.
fn exchange(server: &ServerHandle, pieces: &[&[u8]]) -> String {
    let mut socket = connect(server);
    for piece in pieces {
        socket.write_all(piece).expect("it stands");
        thread::yield_now();
    }
    socket.shutdown(Shutdown::Write).expect("it stands");
    let mut all = String::new();
    socket.read_to_string(&mut all).expect("no reset");
    all
}

fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Has the connection reset by the server, whenever that comes.
fn await_reset(mut socket: TcpStream) {
    let error = loop {
        match socket.read(&mut [0; 64]) {
            Ok(0) => panic!("it has ended in order"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_header_is_read_wherever_it_is_split_and_what_follows_is_the_handlers() {
    let server = listener(trusting(&["127.0.0.0/8"])).serve(tell).expect("it starts");
    for (header, name) in [(V1.to_vec(), ""), (v2_with_name(), " for a.example")] {
        let version = if header[0] == b'P' { 1 } else { 2 };
        let expected = format!("v{version} {ENDS}{name}\nhello");
        let sent = [header.as_slice(), b"hello"].concat();
        for split in 0..=sent.len() {
            let (first, second) = sent.split_at(split);
            assert_eq!(exchange(&server, &[first, second]), expected, "split at {split}");
        }
        let bytes: Vec<&[u8]> = sent.chunks(1).collect();
        assert_eq!(exchange(&server, &bytes), expected, "byte for byte");
    }
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(stats.closed(CloseReason::Peer), stats.accepted, "{stats:?}");
}

#[test]
fn a_proxy_that_speaks_for_itself_is_the_peer() {
    let server = listener(trusting(&["127.0.0.0/8"])).serve(tell).expect("it starts");
    for (header, version) in
        [(b"PROXY UNKNOWN\r\n".to_vec(), 1), (v2(0x20, 0, b""), 2), (v2(0x21, 0, b""), 2)]
    {
        assert_eq!(exchange(&server, &[&header]), format!("v{version} itself by nobody\n"));
    }
    server.stop().wait().expect("it ends");
}

#[test]
fn a_connection_without_a_good_header_is_reset() {
    let server = listener(trusting(&["127.0.0.0/8"])).serve(tell).expect("it starts");
    let cases = bad_headers();
    for (bytes, _) in &cases {
        let mut socket = connect(&server);
        socket.write_all(bytes).expect("it stands");
        await_reset(socket);
    }
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    let faults = cases.map(|(_, fault)| fault);
    for fault in faults {
        let count = faults.iter().filter(|each| **each == fault).count() as u64;
        assert_eq!(stats.closed(CloseReason::Proxy(fault)), count, "{fault:?}: {stats:?}");
    }
}

#[test]
fn a_peer_that_is_not_trusted_is_refused_before_it_says_anything() {
    let server = listener(trusting(&["192.0.2.0/24", "::/0"])).serve(tell).expect("it starts");
    assert!(connect(&server).read(&mut [0; 1]).is_err());
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!((stats.refused_by(Rule::Untrusted), stats.accepted), (1, 0), "{stats:?}");
}

#[test]
fn a_header_that_takes_too_long_ends_the_connection_and_bytes_do_not_extend_that() {
    let within = Duration::from_millis(300);
    let server = listener(trusting(&["127.0.0.0/8"]).within(within)).serve(tell).expect("it starts");
    let began = Instant::now();
    let (silent, mut drips) = (connect(&server), connect(&server));
    let dripping = thread::spawn(move || {
        // Fewer than a header may have, however long it takes.
        for byte in b"PROXY UNKNOWN and so on, and on, and on, for longer than anybody waits" {
            if drips.write_all(&[*byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        await_reset(drips);
    });
    await_reset(silent);
    dripping.join().expect("it is ended");
    assert!(began.elapsed() >= within);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(stats.closed(CloseReason::Timeout(Deadline::ProxyHeader)), 2, "{stats:?}");
}

#[test]
fn a_peer_that_ends_before_its_header_has_just_ended() {
    let server = listener(trusting(&["127.0.0.0/8"])).serve(tell).expect("it starts");
    assert_eq!(exchange(&server, &[]), "");
    assert_eq!(exchange(&server, &[&V1[..20]]), "");
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(stats.closed(CloseReason::Peer), 2, "{stats:?}");
}

#[test]
fn a_header_larger_than_the_receive_buffer_passes_its_limit() {
    let limits = Limits::default().receive_buffer(30);
    let server = listener(trusting(&["127.0.0.0/8"])).limits(limits).expect("they make sense").serve(tell);
    let server = server.expect("it starts");
    assert_eq!(exchange(&server, &[&V1[..40]]), "");
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(stats.closed(CloseReason::Limit(Bound::ReceiveBuffer)), 1, "{stats:?}");
}

#[test]
fn the_rules_concern_whom_the_proxy_speaks_for() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tells = told.clone();
    let limits = Limits::default().per_address(1).over_limit(OverLimit::Reset);
    let access = Access::default().deny(["198.51.100.0/24".parse().expect("a network")]);
    let listener =
        listener(trusting(&["127.0.0.0/8"])).limits(limits).expect("they make sense").access(access);
    let listener = listener.watch(move |event| {
        if let ServerEvent::Opened { .. } | ServerEvent::Refused { .. } = event {
            tells.lock().expect("nobody panics").push(event.to_string());
        }
    });
    let server = listener.serve(tell).expect("it starts");
    let line = |socket: &mut TcpStream| {
        let mut line = vec![0; format!("v1 {ENDS}\n").len()];
        socket.read_exact(&mut line).map(|()| String::from_utf8(line).expect("text"))
    };
    let mut first = connect(&server);
    first.write_all(V1).expect("it stands");
    assert_eq!(line(&mut first).expect("it is served"), format!("v1 {ENDS}\n"));
    let mut second = connect(&server);
    second.write_all(V1).expect("it stands");
    await_reset(second);
    let mut denied = connect(&server);
    denied.write_all(b"PROXY TCP4 198.51.100.9 192.0.2.1 5 6\r\n").expect("it stands");
    await_reset(denied);
    let infos = server.list();
    assert_eq!(infos[0].peer.to_string(), "192.0.2.7:40000");
    server.disconnect("192.0.2.0/24".parse::<Network>().expect("a network"));
    assert_eq!(first.read(&mut [0; 1]).expect("it ends in order"), 0);
    drop(first);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(
        (stats.accepted, stats.refused_by(Rule::PerAddress), stats.refused_by(Rule::Network)),
        (3, 1, 1)
    );
    assert_eq!(stats.closed(CloseReason::Refused(Rule::PerAddress)), 1, "{stats:?}");
    let opened = format!("192.0.2.7:40000 ({}): connected", infos[0].id);
    let refused = |peer, rule| format!("{peer}: refused: {rule}");
    assert_eq!(
        *told.lock().expect("nobody panics"),
        [opened, refused("192.0.2.7:40000", Rule::PerAddress), refused("198.51.100.9:5", Rule::Network)]
    );
}

#[test]
fn a_header_is_awaited_while_the_server_drains_and_not_when_it_stops() {
    let server = listener(trusting(&["127.0.0.0/8"])).serve(tell).expect("it starts");
    let (mut late, never) = (connect(&server), connect(&server));
    late.write_all(&V1[..20]).expect("it stands");
    await_that("both are here", || server.connections() == 2);
    server.drain(PATIENCE * 2);
    late.write_all(&V1[20..]).expect("it stands");
    late.shutdown(Shutdown::Write).expect("it stands");
    let mut all = String::new();
    late.read_to_string(&mut all).expect("no reset");
    assert_eq!(all, format!("v1 {ENDS}\n"));
    await_that("it has left", || server.connections() == 1);
    let stats = server.stop().wait().expect("it ends");
    await_reset(never);
    assert_eq!((stats.drain.finished, stats.drain.reset), (1, 1), "{stats:?}");
}

#[test]
fn the_deadline_is_the_headers_alone() {
    let within = Duration::from_millis(400);
    let deadlines = Deadlines::default().idle(None);
    let server =
        listener(trusting(&["127.0.0.0/8"]).within(within)).deadlines(deadlines).expect("they make sense");
    let server = server.serve(tell).expect("it starts");
    let mut socket = connect(&server);
    socket.write_all(V1).expect("it stands");
    let mut line = vec![0; format!("v1 {ENDS}\n").len()];
    // A machine that has kept it waiting for longer has taken the test's point.
    if socket.read_exact(&mut line).is_err() {
        return;
    }
    thread::sleep(within * 2);
    socket.write_all(b"x").expect("it stands");
    socket.read_exact(&mut [0; 1]).expect("it is served");
    drop(socket);
    server.stop().wait().expect("it ends");
}
