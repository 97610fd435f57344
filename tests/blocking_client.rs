//! The way to a connection of the blocking style: the options of a client, its race, its proxies, its steps.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use wharf::blocking::{Connection, Listener, ServerHandle};
use wharf::{Client, ErrorKind, Listen, Proxy, SocketOptions};

/// Nothing takes that long.
const PATIENCE: Duration = Duration::from_secs(20);
/// Nobody listens there, whatever the port.
const NOBODY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 77, 0, 1)), IpAddr::V4(Ipv4Addr::new(127, 77, 0, 2))];

fn echo() -> (ServerHandle, SocketAddr) {
    let server = Listener::bind("127.0.0.1:0").unwrap().serve(|mut conn: Connection| {
        while let Some(chunk) = conn.recv_chunk()? {
            conn.send(&chunk)?;
        }
        Ok(())
    });
    let server = server.unwrap();
    let address = server.local_addr().socket().unwrap();
    (server, address)
}

/// A client of a name that has these addresses.
fn named(port: u16, addresses: impl Into<Vec<IpAddr>>) -> Client {
    let addresses = addresses.into();
    Client::new(format!("many.test:{port}")).resolver(move |_| Ok(addresses.clone()))
}

fn assert_echoes(conn: &mut Connection) {
    let mut timed = conn.within(PATIENCE);
    timed.send(b"ping").unwrap();
    let mut echo = [0; 4];
    timed.recv_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"ping");
}

#[test]
fn addresses_that_refuse_are_passed_over() {
    let (_server, address) = echo();
    let [first, second] = NOBODY;
    let mut conn = named(address.port(), [first, second, address.ip()]).open_blocking().unwrap();
    assert_eq!(conn.peer_addr(), address);
    assert_echoes(&mut conn);
}

#[test]
fn the_error_tells_what_each_address_has_said() {
    let [first, second] = NOBODY;
    let error = named(9, NOBODY).open_blocking().unwrap_err();
    let told =
        format!("connect to many.test:9: {first}:9: connection refused; {second}:9: connection refused");
    assert_eq!(error.to_string(), told);
    assert!(error.is_refused() && error.kind() == ErrorKind::Peer);
    let error = named(9, [first]).open_blocking().unwrap_err();
    assert_eq!(error.to_string(), format!("connect to many.test:9 ({first}:9): connection refused"));
}

/// A port of 127.0.0.1 that answers, and of 127.0.0.2 that does not: its backlog is full.
fn silent_beside(address: SocketAddr) -> (Listener, Vec<TcpStream>) {
    let one = SocketOptions::default().backlog(1);
    let silent = Listener::bind(Listen::at(format!("127.0.0.2:{}", address.port())).sockets(one)).unwrap();
    let peer = silent.local_addr().socket().unwrap();
    let mut waiting = Vec::new();
    // One that comes too late may be this thread's, which had to wait for a processor.
    let mut late = 0;
    while late < 3 {
        match TcpStream::connect_timeout(&peer, Duration::from_millis(100)) {
            Ok(socket) => waiting.push(socket),
            Err(_) => late += 1,
        }
        assert!(waiting.len() < 100, "the backlog is never full");
    }
    (silent, waiting)
}

#[test]
fn an_address_that_does_not_answer_costs_the_delay_and_no_more() {
    let (_server, address) = echo();
    let _silent = silent_beside(address);
    let addresses = [[127, 0, 0, 2].into(), address.ip()];
    for delay in [Duration::from_millis(20), Duration::from_millis(250)] {
        let began = Instant::now();
        let mut conn = named(address.port(), addresses).attempt_delay(delay).open_blocking().unwrap();
        assert!(began.elapsed() >= delay, "it was waited for");
        assert!(began.elapsed() < Duration::from_secs(5), "and then not for the deadline");
        assert_eq!(conn.peer_addr(), address);
        assert_echoes(&mut conn);
    }
    let within = Duration::from_millis(1500);
    let late = named(address.port(), [[127, 0, 0, 2].into(), NOBODY[0]]);
    let error =
        late.attempt_delay(Duration::from_millis(50)).connect_within(within).open_blocking().unwrap_err();
    let port = address.port();
    let told = format!(
        "connect to many.test:{port}: timed out after 1.5s; 127.0.0.2:{port}: no answer; {}:{port}: connection refused",
        NOBODY[0]
    );
    assert_eq!(error.to_string(), told);
    assert!(error.is_timeout());
}

#[test]
fn a_resolver_of_ones_own_is_asked_and_what_goes_wrong_there_is_told() {
    let client = Client::new("a.test:80");
    let error =
        client.clone().resolver(|_| Err(io::Error::other("out of order"))).open_blocking().unwrap_err();
    assert_eq!(error.to_string(), "connect to a.test:80: cannot resolve a.test: out of order");
    assert!(error.is_unresolved());
    let error = client.clone().resolver(|_| panic!("on purpose")).open_blocking().unwrap_err();
    assert!(error.to_string().ends_with("the resolver panicked"), "{error}");
    let (_gate, hangs) = mpsc::channel::<()>();
    let hangs = std::sync::Mutex::new(hangs);
    let hanging = client.resolver(move |_| {
        let _ = hangs.lock().unwrap().recv_timeout(PATIENCE);
        Ok(Vec::new())
    });
    let error = hanging.connect_within(Duration::from_millis(50)).open_blocking().unwrap_err();
    assert_eq!(error.to_string(), "connect to a.test:80: timed out after 50ms, looking up the name");
}

#[test]
fn a_client_connects_from_the_address_that_it_is_given() {
    let (_server, address) = echo();
    let mut conn = Client::new(address).bind("127.0.0.9").open_blocking().unwrap();
    assert_eq!(conn.local_addr().unwrap().ip(), Some([127, 0, 0, 9].into()));
    assert_echoes(&mut conn);
    // Only addresses of its family are tried.
    let v6: IpAddr = "2001:db8::1".parse().unwrap();
    assert_echoes(&mut named(address.port(), [v6, address.ip()]).bind("0.0.0.0").open_blocking().unwrap());
    let error = named(80, [v6]).bind("0.0.0.0").open_blocking().unwrap_err();
    assert!(error.to_string().starts_with("start: option `bind` is an IPv4 address"), "{error}");
}

#[test]
fn bad_options_are_refused_by_name_before_anything_happens() {
    let (_server, address) = echo();
    let proxy = Proxy::http(address).unwrap();
    for (client, name) in [
        (Client::new(address).attempt_delay(Duration::from_millis(9)), "attempt_delay"),
        (Client::new(address).bind("nonsense"), "bind"),
        (Client::new("unix:/nowhere").bind("127.0.0.1"), "bind"),
        (Client::new("unix:/nowhere").proxy(proxy), "proxy"),
    ] {
        let connect = client.open().observe(|state| assert!(!state.is_connecting()));
        let error = connect.blocking().unwrap_err();
        assert!(error.to_string().starts_with(&format!("start: option `{name}` ")), "{error}");
    }
}

/// Connects, and tells the steps.
fn steps(client: &Client) -> (wharf::Result<Connection>, Vec<String>) {
    let steps: Rc<RefCell<Vec<String>>> = Rc::default();
    let noted = steps.clone();
    let connected = client.open().observe(move |state| noted.borrow_mut().push(state.to_string())).blocking();
    let steps = steps.take();
    (connected, steps)
}

#[test]
fn each_step_of_a_connect_is_told_and_then_how_it_ended() {
    let (_server, address) = echo();
    let dead = SocketAddr::new(NOBODY[0], address.port());
    let (connected, told) = steps(&named(address.port(), [dead.ip(), address.ip()]));
    assert_echoes(&mut connected.unwrap());
    let expected = [
        String::from("looking up the name"),
        format!("connecting to {dead}"),
        format!("connecting to {address}"),
        format!("connected to {address}"),
    ];
    assert_eq!(told, expected);
    let (connected, told) = steps(&Client::new(dead));
    let error = connected.unwrap_err();
    assert_eq!(told, [format!("connecting to {dead}"), format!("disconnected: {error}")]);
}

/// A proxy that has this conversation before it leads to `to`; what it has heard is told by the channel.
fn proxy(
    talk: impl Fn(&mut TcpStream) -> io::Result<Option<Vec<u8>>> + Send + 'static,
    to: SocketAddr,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for near in listener.incoming() {
            let mut near = near.unwrap();
            near.set_read_timeout(Some(PATIENCE)).unwrap();
            let Ok(Some(answer)) = talk(&mut near) else { continue };
            let mut far = TcpStream::connect(to).unwrap();
            // The target's first words come together with the answer.
            let mut first = [0; 6];
            far.read_exact(&mut first).unwrap();
            near.write_all(&[&answer, &first[..]].concat()).unwrap();
            let (mut up, mut down) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            thread::spawn(move || {
                io::copy(&mut up, &mut down).map(|_| down.shutdown(std::net::Shutdown::Write))
            });
            thread::spawn(move || {
                io::copy(&mut far, &mut near).map(|_| near.shutdown(std::net::Shutdown::Write))
            });
        }
    });
    address
}

/// What a SOCKS5 proxy says, which wants a password.
fn socks5(near: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut greeting = [0; 4];
    near.read_exact(&mut greeting)?;
    assert_eq!(greeting, [5, 2, 0, 2]);
    near.write_all(&[5, 2])?;
    let mut password = [0; 9];
    near.read_exact(&mut password)?;
    near.write_all(&[1, u8::from(&password != b"\x01\x02jo\x04open")])?;
    let mut request = [0; 18];
    near.read_exact(&mut request)?;
    assert_eq!(&request, b"\x05\x01\x00\x03\x0bhidden.test\x00\x50");
    Ok(Some(b"\x05\x00\x00\x03\x05bound\x12\x34".to_vec()))
}

fn http(near: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        near.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("CONNECT hidden.test:80 HTTP/1.1\r\n"), "{head}");
    if !head.contains("Proxy-Authorization: Basic am86b3Blbg==") {
        near.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")?;
        return Ok(None);
    }
    Ok(Some(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n".to_vec()))
}

/// Says hello first, then sends back what comes.
fn greeter() -> (ServerHandle, SocketAddr) {
    let server = Listener::bind("127.0.0.1:0").unwrap().serve(|mut conn: Connection| {
        conn.send(b"hello ")?;
        while let Some(chunk) = conn.recv_chunk()? {
            conn.send(&chunk)?;
        }
        Ok(())
    });
    let server = server.unwrap();
    let address = server.local_addr().socket().unwrap();
    (server, address)
}

#[test]
fn names_go_through_proxies_as_they_are() {
    let (_server, target) = greeter();
    for (scheme, address, refused) in [
        ("socks5h", proxy(socks5, target), "the proxy refused the user name or the password"),
        (
            "http",
            proxy(http, target),
            "the proxy answered: 407 Proxy Authentication Required; give it (other) credentials",
        ),
    ] {
        let through = |credentials: &str| {
            let proxy = Proxy::parse(&format!("{scheme}://{credentials}@{address}")).unwrap();
            Client::new("hidden.test:80").proxy(proxy)
        };
        let (connected, told) = steps(&through("jo:open"));
        let mut conn = connected.unwrap();
        conn.send(b"world").unwrap();
        let mut said = [0; 11];
        conn.within(PATIENCE).recv_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello world");
        let expected = [
            format!("connecting to {address}"),
            format!("waiting for the proxy's answer from {address}"),
            format!("connected to {address}"),
        ];
        assert_eq!(told, expected);
        let error = through("jo:shut").open_blocking().unwrap_err();
        let expected = format!("connect to hidden.test:80 through {scheme}://{address}: {refused}");
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.kind(), ErrorKind::Caller);
    }
}

#[test]
fn of_a_name_that_is_looked_up_here_a_proxy_is_asked_for_one_address_after_the_other() {
    let (_server, target) = greeter();
    // It leads to 192.0.2.2 alone.
    let socks5 = |near: &mut TcpStream| {
        near.read_exact(&mut [0; 3])?;
        near.write_all(&[5, 0])?;
        let mut request = [0; 10];
        near.read_exact(&mut request)?;
        let is_known = request == [5, 1, 0, 1, 192, 0, 2, 2, 0, 80];
        near.write_all(&[5, if is_known { 0 } else { 5 }, 0, 1, 0, 0, 0, 0, 0, 0])?;
        Ok(is_known.then(Vec::new))
    };
    let through = Proxy::socks5(proxy(socks5, target)).unwrap().resolve_here();
    let client = |last: [u8; 2]| {
        Client::new("many.test:80")
            .resolver(move |_| Ok(last.map(|last| [192, 0, 2, last].into()).to_vec()))
            .proxy(through.clone())
            .attempt_delay(Duration::MAX)
            .connect_within(PATIENCE)
    };
    let mut conn = client([1, 2]).open_blocking().unwrap();
    conn.send(b"world").unwrap();
    let mut said = [0; 11];
    conn.within(PATIENCE).recv_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello world");
    let error = client([1, 3]).open_blocking().unwrap_err();
    assert!(error.is_refused(), "{error}");
    assert!(
        error.to_string().contains(": 192.0.2.1:80: ") && error.to_string().contains("; 192.0.2.3:80: "),
        "{error}"
    );
}

#[test]
fn a_proxy_that_stalls_or_goes_ends_the_connect_in_time() {
    let (release, held) = mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let silent = proxy(
        move |_| {
            let _ = held.lock().unwrap().recv_timeout(PATIENCE);
            Ok(None)
        },
        SocketAddr::new(NOBODY[0], 9),
    );
    let goes = proxy(|near| near.read(&mut [0; 1024]).map(|_| None), SocketAddr::new(NOBODY[0], 9));
    for (proxy, within, told) in [
        (silent, Duration::from_millis(700), "timed out after 700ms, waiting for the proxy's answer from "),
        (goes, PATIENCE, "the proxy ended the connection before it had answered"),
    ] {
        for proxy in [Proxy::socks5(proxy).unwrap(), Proxy::http(proxy).unwrap()] {
            let began = Instant::now();
            let client = Client::new("hidden.test:80").proxy(proxy).connect_within(within);
            let error = client.open_blocking().unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
            assert!(began.elapsed() < Duration::from_secs(10));
        }
    }
    drop(release);
}

#[cfg(feature = "tls")]
#[test]
fn tls_is_spoken_with_the_target_through_the_proxy() {
    let server = Listener::bind("127.0.0.1:0").unwrap().tls(&common::tls::acceptor());
    let server = server.serve(|mut conn: Connection| {
        while let Some(chunk) = conn.recv_chunk()? {
            conn.send(&chunk)?;
        }
        Ok(())
    });
    let server = server.unwrap();
    let to = server.local_addr().socket().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut near, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            near.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        let mut far = TcpStream::connect(to).unwrap();
        near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let (mut up, mut down) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        thread::spawn(move || io::copy(&mut up, &mut down).map(|_| down.shutdown(std::net::Shutdown::Write)));
        thread::spawn(move || {
            io::copy(&mut far, &mut near).map(|_| near.shutdown(std::net::Shutdown::Write))
        });
    });
    let client =
        common::tls::client(format!("{}:443", common::tls::NAME)).proxy(Proxy::http(address).unwrap());
    let (connected, told) = steps(&client);
    let mut conn = connected.unwrap();
    assert!(conn.tls().is_some());
    assert_echoes(&mut conn);
    assert_eq!(told[2], format!("in the TLS handshake with {address}"));
}

#[test]
fn a_unix_socket_whose_backlog_is_full_is_waited_for() {
    let directory = std::env::temp_dir().join(format!("wharf-backlog-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("socket");
    let one = SocketOptions::default().backlog(1);
    let mut listener = Listener::bind(Listen::at(format!("unix:{}", path.display())).sockets(one)).unwrap();
    let client = Client::new(listener.local_addr()).connect_within(Duration::from_millis(300));
    let mut waiting = Vec::new();
    let error = loop {
        match client.open_blocking() {
            Ok(conn) => waiting.push(conn),
            Err(error) => break error,
        }
        assert!(waiting.len() < 100, "the backlog is never full");
    };
    assert!(error.is_timeout(), "{error}");
    let patient = client.connect_within(PATIENCE);
    let (began, begins) = mpsc::channel();
    let other = thread::spawn(move || {
        let connect =
            patient.open().observe(move |state| began.send(state.is_connecting()).unwrap_or_default());
        connect.blocking().map(|mut conn| conn.reset())
    });
    assert!(begins.recv_timeout(PATIENCE).unwrap());
    let mut accepted = Vec::new();
    while !other.is_finished() {
        accepted.extend(listener.accept_within(Duration::from_millis(10)).unwrap());
    }
    other.join().unwrap().unwrap();
    assert!(!accepted.is_empty(), "room was made");
    for conn in waiting.iter_mut().chain(&mut accepted) {
        conn.reset();
    }
    drop(listener);
    std::fs::remove_dir_all(directory).unwrap();
}
