//! TLS in the blocking style, with itself, with the async style, and with rustls.
#![cfg(feature = "tls")]

mod common;
#[path = "common/threads.rs"]
mod threads;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::Wire;
use common::tls::{AUTHORITY, NAME, acceptor, client, connector, server_tls};
use rustls::version::{TLS12, TLS13};
use threads::echo;
use wharf::blocking::{self, Connection, Listener};
use wharf::tls::Acceptor;
use wharf::{Client, CloseReason, Deadline, Deadlines, Result, Server, TlsFault};

const PATIENCE: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(60);

fn listener() -> Listener {
    Listener::bind("127.0.0.1:0").expect("a port is free")
}

/// Has messages of many lengths echoed.
fn exchange(conn: &mut Connection) {
    for len in [1, 64, 16_384, 16_385, 40_000, 300_000] {
        let message: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        // The echo has to be read while the message is sent, for the kernels hold only so much.
        for part in message.chunks(30_000) {
            conn.send(part).expect("it stands");
            let mut echo = vec![0; part.len()];
            conn.recv_exact(&mut echo).expect("it stands");
            assert!(echo == part);
        }
    }
}

#[test]
fn both_ends_speak_tls() {
    let server = listener().tls(&acceptor()).serve(echo).expect("it starts");
    let mut conn = client(server.local_addr()).open_blocking().expect("it is trusted");
    assert_eq!(conn.tls().and_then(|info| info.server_name().map(str::to_owned)).as_deref(), Some(NAME));
    exchange(&mut conn);
    assert_eq!(conn.close(), CloseReason::Local);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!((stats.handshakes, stats.handshakes_failed), (1, 0));
    assert_eq!(stats.closed(CloseReason::Peer), 1);
}

#[test]
fn a_blocking_client_talks_to_an_async_server() {
    for backend in common::backends("a_blocking_client_talks_to_an_async_server") {
        let server = Wire::Tls.server(Server::bind("127.0.0.1:0").workers(1).backend(backend));
        let server = server.start(|mut conn: wharf::Connection| async move {
            let mut buf = [0; 4096];
            loop {
                match conn.recv(&mut buf).await? {
                    0 => return Ok(()),
                    n => conn.send(&buf[..n]).await?,
                }
            }
        });
        let server = server.expect("it starts");
        let mut conn = client(server.local_addr()).open_blocking().expect("it is trusted");
        exchange(&mut conn);
        assert_eq!(conn.close(), CloseReason::Local);
        server.drain(PATIENCE).wait().expect("it ends");
    }
}

#[test]
fn an_async_client_talks_to_a_blocking_server() {
    let server = listener().tls(&acceptor()).serve(echo).expect("it starts");
    let address = server.local_addr();
    let echoed = wharf::run(async move {
        let mut conn = client(address).open().await?;
        conn.send(b"from afar").await?;
        let mut buf = [0; 9];
        conn.recv_exact(&mut buf).await?;
        conn.finish().await?;
        assert_eq!(conn.recv(&mut [0; 1]).await?, 0);
        Ok::<_, wharf::Error>(buf)
    });
    assert_eq!(&echoed.expect("a worker").expect("it is served"), b"from afar");
    server.drain(PATIENCE).wait().expect("it ends");
}

#[test]
fn rustls_talks_to_a_blocking_server() {
    let server = listener().tls(&acceptor()).serve(echo).expect("it starts");
    for version in [&TLS12, &TLS13] {
        let socket =
            TcpStream::connect(server.local_addr().socket().expect("it is TCP")).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("it can");
        let config = Arc::new(AUTHORITY.config(&[version]));
        let tls =
            rustls::ClientConnection::new(config, NAME.try_into().expect("a name")).expect("it can be used");
        let mut stream = rustls::StreamOwned::new(tls, socket);
        stream.write_all(&[7; 50_000]).expect("it stands");
        let mut echo = [0; 50_000];
        stream.read_exact(&mut echo).expect("it stands");
        assert!(echo == [7; 50_000]);
        stream.conn.send_close_notify();
        stream.flush().expect("it stands");
        assert_eq!(stream.read(&mut [0; 1]).expect("close_notify comes back"), 0);
    }
    server.drain(PATIENCE).wait().expect("it ends");
}

#[test]
fn a_server_that_is_not_trusted_is_refused() {
    let server = listener().tls(&acceptor()).serve(echo).expect("it starts");
    let stranger = common::tls::Authority::new("Stranger");
    let trusting = wharf::tls::ClientTls::new().trust(stranger.trust()).server_name(NAME);
    let connector = wharf::tls::Connector::new(trusting).expect("it can be used");
    let error =
        Client::new(server.local_addr()).tls(&connector).open_blocking().expect_err("nobody knows it");
    assert!(matches!(error.tls_fault(), Some(TlsFault::Certificate(_))), "{error}");
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!((stats.handshakes, stats.handshakes_failed), (0, 1));
}

#[test]
fn who_speaks_no_tls_reads_an_alert_and_an_end_in_order() {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = server.local_addr().expect("it has one");
    // As long as this test may have to come to read.
    let client = client(address).deadlines(Deadlines::default().linger(PATIENCE));
    let client = thread::spawn(move || client.open_blocking().map(drop));
    let (mut peer, _) = server.accept().expect("it connects");
    peer.set_read_timeout(Some(PATIENCE)).expect("it can");
    peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("it stands");
    let error = client.join().expect("it does not panic").expect_err("that is no TLS");
    assert!(error.tls_fault().is_some(), "{error}");
    let mut heard = Vec::new();
    peer.read_to_end(&mut heard).expect("an end in order");
    // The client is done with it, so that a reset would be here: behind the end reading alone does not tell it.
    assert!(peer.take_error().expect("it can be asked").is_none());
    let alert = heard.last_chunk::<7>().expect("a greeting, and behind it an alert");
    assert!(matches!(alert, [21, 3, _, 0, 2, 2, _]), "{alert:?}");
}

#[test]
fn who_says_nothing_is_given_up_and_keeps_nobody_waiting() {
    let acceptor = Acceptor::new(server_tls().handshake_within(SOON)).expect("it can be used");
    let mut listener = listener().tls(&acceptor);
    let address = listener.local_addr().socket().expect("it is TCP");
    let mut silent = TcpStream::connect(address).expect("it listens");
    let began = Instant::now();
    let mut conn = listener.accept().expect("nothing has to come for that");
    let error = conn.recv(&mut [0; 1]).expect_err("nothing comes");
    assert!(began.elapsed() >= SOON);
    assert_eq!(error.close_reason(), Some(CloseReason::Timeout(Deadline::Handshake)));
    assert!(silent.read(&mut [0; 1]).is_err());
}

#[test]
fn plain_bytes_are_no_tls() {
    let server = listener().tls(&acceptor()).serve(echo).expect("it starts");
    let mut plain = TcpStream::connect(server.local_addr().socket().expect("it is TCP")).expect("it listens");
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it stands");
    plain.read_to_end(&mut Vec::new()).expect("an alert, and the end");
    drop(plain);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(stats.handshakes_failed, 1);
    assert!(
        stats.closes.iter().all(|(reason, _)| matches!(reason, CloseReason::Tls(_))),
        "{:?}",
        stats.closes
    );
}

#[test]
fn tls_begins_and_ends_in_mid_stream() {
    let mut listener = listener();
    let address = listener.local_addr();
    let server = thread::spawn(move || -> Result<()> {
        let mut conn = listener.accept()?;
        let mut word = [0; 8];
        conn.recv_exact(&mut word)?;
        assert_eq!(&word, b"STARTTLS");
        conn.send(b"go ahead")?;
        conn.accept_tls(&acceptor())?;
        assert!(conn.tls().is_some());
        conn.recv_exact(&mut word[..6])?;
        assert_eq!(&word[..6], b"secret");
        conn.send(b"heard")?;
        conn.leave_tls()?;
        assert!(conn.tls().is_none());
        conn.recv_exact(&mut word[..5])?;
        assert_eq!(&word[..5], b"plain");
        conn.send(b"again")
    });
    let mut conn = blocking::connect(address).expect("it listens");
    let mut answer = [0; 8];
    conn.send(b"STARTTLS").expect("it stands");
    conn.recv_exact(&mut answer).expect("it stands");
    conn.within(PATIENCE).connect_tls(&connector(), NAME).expect("it is trusted");
    conn.send(b"secret").expect("it stands");
    conn.recv_exact(&mut answer[..5]).expect("it stands");
    assert_eq!(&answer[..5], b"heard");
    conn.leave_tls().expect("both leave");
    assert!(conn.tls().is_none());
    conn.send(b"plain").expect("it stands");
    conn.recv_exact(&mut answer[..5]).expect("it stands");
    assert_eq!(&answer[..5], b"again");
    drop(conn);
    server.join().expect("no panic").expect("it went well");
}

#[test]
fn a_stream_that_is_cut_off_is_told() {
    let mut listener = listener().tls(&acceptor());
    let address = listener.local_addr().socket().expect("it is TCP");
    let server = thread::spawn(move || {
        let mut conn = listener.accept().expect("somebody comes");
        let mut buf = [0; 5];
        conn.recv_exact(&mut buf).expect("it stands");
        conn.recv(&mut buf).expect_err("no close_notify").tls_fault()
    });
    let socket = TcpStream::connect(address).expect("it listens");
    let config = Arc::new(AUTHORITY.config(&[&TLS13]));
    let tls =
        rustls::ClientConnection::new(config, NAME.try_into().expect("a name")).expect("it can be used");
    let mut stream = rustls::StreamOwned::new(tls, socket);
    stream.write_all(b"hello").expect("it stands");
    stream.sock.shutdown(std::net::Shutdown::Write).expect("it stands");
    assert_eq!(server.join().expect("no panic"), Some(TlsFault::Truncated));
}

#[test]
fn halves_speak_tls_at_the_same_time() {
    let server = listener().tls(&acceptor()).serve(echo).expect("it starts");
    let conn = client(server.local_addr()).open_blocking().expect("it is trusted");
    let (mut reads, mut writes) = conn.split().expect("descriptors");
    let reader = thread::spawn(move || {
        let mut received = vec![0; 3_000_000];
        reads.recv_exact(&mut received).expect("it stands");
        assert!(received.iter().all(|byte| *byte == 7));
        assert_eq!(reads.recv(&mut [0; 1]).expect("the end"), 0);
    });
    writes.send(&vec![7; 3_000_000]).expect("it stands");
    writes.finish().expect("it stands");
    reader.join().expect("it went well");
    drop(writes);
    server.drain(PATIENCE).wait().expect("it ends");
}

#[test]
fn what_a_late_send_has_left_leaves_while_its_sender_waits_for_an_answer() {
    let mut listener = listener().tls(&acceptor());
    let address = listener.local_addr();
    let (told, expected) = mpsc::channel();
    let server = thread::spawn(move || -> Result<()> {
        let mut conn = listener.accept()?;
        conn.send(b"go")?;
        let mut received = vec![0; expected.recv().expect("the client tells")];
        conn.within(PATIENCE / 2).recv_exact(&mut received)?;
        conn.send(b"all of it")
    });
    let mut conn = client(address).open_blocking().expect("it is trusted");
    // With that it has read all that the handshake left.
    conn.recv_exact(&mut [0; 2]).expect("it stands");
    let message = vec![7; 48 << 20];
    let (mut sent, mut times_late) = (0, 0);
    // Again and again, until the kernel takes nothing more and something is left here.
    while times_late < 40 {
        let late = conn.within(Duration::from_millis(20)).send(&message).expect_err("nobody reads");
        assert!(late.is_timeout(), "{late}");
        let took = message.len() - late.unsent().expect("it is told");
        sent += took;
        times_late = if took == 0 { times_late + 1 } else { 0 };
    }
    told.send(sent).expect("the server waits");
    let mut answer = [0; 9];
    conn.within(PATIENCE).recv_exact(&mut answer).expect("it answers");
    assert_eq!(&answer, b"all of it");
    server.join().expect("no panic").expect("it went well");
}

/// Has rustls connect, and say hello.
fn rustls_client(address: SocketAddr) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let config = Arc::new(AUTHORITY.config(&[&TLS13]));
    let tls =
        rustls::ClientConnection::new(config, NAME.try_into().expect("a name")).expect("it can be used");
    let mut stream = rustls::StreamOwned::new(tls, TcpStream::connect(address).expect("it listens"));
    stream.write_all(b"hello").expect("it stands");
    stream
}

#[test]
fn who_leaves_tls_after_an_end_without_a_word_is_told() {
    let acceptor = Acceptor::new(server_tls().tolerate_truncation()).expect("it makes sense");
    let mut listener = listener().tls(&acceptor);
    let address = listener.local_addr().socket().expect("it is TCP");
    let server = thread::spawn(move || {
        let mut conn = listener.accept().expect("somebody comes");
        conn.recv_exact(&mut [0; 5]).expect("it stands");
        assert_eq!(conn.recv(&mut [0; 5]).expect("that is tolerated"), 0);
        conn.within(PATIENCE).leave_tls().expect_err("it will not say close_notify")
    });
    let stream = rustls_client(address);
    stream.sock.shutdown(std::net::Shutdown::Write).expect("it stands");
    let error = server.join().expect("no panic");
    assert_eq!(error.close_reason(), Some(CloseReason::Tls(TlsFault::Truncated)), "{error}");
}

#[test]
fn while_tls_is_left_no_more_is_kept_than_may_be() {
    let mut listener = listener().tls(&acceptor());
    let address = listener.local_addr().socket().expect("it is TCP");
    let server = thread::spawn(move || {
        let mut conn = listener.accept().expect("somebody comes");
        conn.recv_exact(&mut [0; 5]).expect("it stands");
        let full = conn.within(PATIENCE).leave_tls().expect_err("the peer does not leave");
        assert!(!full.is_timeout(), "{full}");
        let held_back = conn.within(PATIENCE).send(b"plain").expect_err("the peer has not left");
        assert!(!held_back.is_timeout(), "{held_back}");
        assert_eq!(held_back.unsent(), Some(5));
        let received = conn.counts().received;
        conn.reset();
        received
    });
    let mut stream = rustls_client(address);
    while stream.write_all(&[7; 16 * 1024]).is_ok() {}
    let received = server.join().expect("no panic");
    assert!(received < 1 << 20, "{received} bytes were taken");
}

#[test]
fn tls_follows_what_a_proxy_tells() {
    let proxies = wharf::ProxyProtocol::from(["127.0.0.0/8".parse().expect("a network")]);
    let listen = wharf::Listen::at("127.0.0.1:0").proxy_protocol(proxies).tls(&acceptor());
    let server = Listener::bind(listen).expect("a port is free").serve(|conn: Connection| {
        let told = conn.proxied().and_then(wharf::Proxied::source).map(ToString::to_string);
        assert_eq!(told.as_deref(), Some("192.0.2.7:40000"));
        assert!(conn.tls().is_some());
        echo(conn)
    });
    let server = server.expect("it starts");
    let mut conn = blocking::connect(server.local_addr()).expect("it listens");
    conn.send(b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n").expect("it stands");
    conn.connect_tls(&connector(), NAME).expect("it is trusted");
    exchange(&mut conn);
    drop(conn);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!((stats.handshakes, stats.panics, stats.closed(CloseReason::Peer)), (1, 0, 1), "{stats:?}");
}

#[test]
fn a_handshake_that_fails_is_told_with_its_detail_and_nobody_is_opened() {
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tells = told.clone();
    let listener = listener().tls(&acceptor()).watch(move |event| {
        tells.lock().expect("nobody panics").push(event.to_string());
    });
    let server = listener.serve(echo).expect("it starts");
    let mut plain = TcpStream::connect(server.local_addr().socket().expect("it is TCP")).expect("it listens");
    let peer = plain.local_addr().expect("it has one");
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("it stands");
    plain.shutdown(std::net::Shutdown::Write).expect("it stands");
    drop(plain.read_to_end(&mut Vec::new()));
    let began = Instant::now();
    while server.stats().closes.is_empty() {
        assert!(began.elapsed() < PATIENCE, "it never ends");
        thread::sleep(Duration::from_millis(1));
    }
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!((stats.accepted, stats.handshakes_failed), (1, 1), "{stats:?}");
    let told = told.lock().expect("nobody panics");
    assert!(told[0].starts_with(&format!("{peer}: handshake failed: ")), "{told:?}");
    assert!(told[1..].iter().all(|line| line.starts_with("draining")), "{told:?}");
}

#[test]
fn a_protected_connection_that_is_sent_away_ends_with_a_word() {
    let server = listener().tls(&acceptor()).serve(echo).expect("it starts");
    let mut conn = client(server.local_addr()).open_blocking().expect("it is trusted");
    exchange(&mut conn);
    server.disconnect(wharf::Whom::All);
    assert_eq!(conn.recv(&mut [0; 1]).expect("close_notify has come"), 0);
    drop(conn);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(stats.closed(CloseReason::Disconnected), 1, "{stats:?}");
}
