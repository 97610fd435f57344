//! The blocking style: one connection at a time, its deadlines, its ends, and its traffic with other styles.

mod common;

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use wharf::blocking::{self, Connection, Listener, ReadHalf, Remote, WriteHalf};
use wharf::{
    Client, CloseReason, Deadline, Deadlines, ErrorKind, Hangup, Limits, Listen, ReceiveRate, Server,
    SocketOptions,
};

/// Nothing takes that long.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough to be seen, and short for who waits.
const SOON: Duration = Duration::from_millis(60);

fn listener() -> Listener {
    Listener::bind("127.0.0.1:0").expect("a port is free")
}

/// Both ends of a connection.
fn pair() -> (Connection, Connection) {
    pair_on(listener(), Client::new)
}

fn pair_on(mut listener: Listener, client: impl FnOnce(String) -> Client) -> (Connection, Connection) {
    let near = client(listener.local_addr().to_string()).open_blocking().expect("it listens");
    (near, listener.accept().expect("it has connected"))
}

/// A connection whose other end is a plain socket.
fn with_socket(deadlines: Deadlines) -> (Connection, TcpStream) {
    let mut listener = listener().deadlines(deadlines).expect("they make sense");
    let address = listener.local_addr().socket().expect("it is TCP");
    let socket = TcpStream::connect(address).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("it can");
    (listener.accept().expect("it has connected"), socket)
}

fn reset(socket: TcpStream) {
    set_socket_linger(&socket, Some(Duration::ZERO)).expect("it can");
    drop(socket);
}

/// Whether an operation took about as long as it should have: never less, and not much more.
fn took(began: Instant, expected: Duration) {
    let took = began.elapsed();
    assert!(took >= expected, "{took:?} instead of {expected:?}");
    assert!(took < expected + Duration::from_secs(10), "{took:?} instead of {expected:?}");
}

#[test]
fn handles_can_go_to_other_threads() {
    fn goes<T: Send>() {}
    fn is_shared<T: Send + Sync>() {}
    goes::<Connection>();
    goes::<Listener>();
    goes::<ReadHalf>();
    goes::<WriteHalf>();
    is_shared::<Remote>();
    is_shared::<blocking::ServerHandle>();
}

#[test]
fn what_is_sent_arrives_in_both_directions() {
    let (mut near, mut far) = pair();
    near.send(b"ping").expect("it stands");
    let mut buf = [0; 16];
    assert_eq!(far.recv(&mut buf).expect("it stands"), 4);
    assert_eq!(&buf[..4], b"ping");
    far.send_owned(&b"pong!"[..]).expect("it stands");
    assert_eq!(near.recv_chunk().expect("it stands").as_deref(), Some(&b"pong!"[..]));
    assert_eq!((near.counts().sent, near.counts().received), (4, 5));
    assert_eq!(Some(near.peer_addr()), far.local_addr());
    assert_eq!(near.local_addr(), Some(far.peer_addr()));
}

#[test]
fn a_connection_is_accepted_here_and_served_there() {
    let (mut near, mut far) = pair();
    let other = thread::spawn(move || {
        let mut buf = [0; 4];
        far.recv_exact(&mut buf).expect("it stands");
        far.send(&buf).expect("it stands");
        far
    });
    near.send(b"move").expect("it stands");
    let mut buf = [0; 4];
    near.recv_exact(&mut buf).expect("it stands");
    assert_eq!(&buf, b"move");
    assert_eq!(other.join().expect("it went well").close_reason(), None);
}

#[test]
fn an_end_of_one_side_leaves_the_other_open() {
    let (mut near, mut far) = pair();
    near.send(b"last words").expect("it stands");
    near.finish().expect("it stands");
    assert_eq!(near.send(b"more").expect_err("it has finished").close_reason(), Some(CloseReason::Local));
    let mut buf = [0; 64];
    assert_eq!(far.recv(&mut buf).expect("it stands"), 10);
    assert_eq!(far.recv(&mut buf).expect("it has ended"), 0);
    assert_eq!(far.recv(&mut buf).expect("it stays so"), 0);
    far.send(b"answer").expect("this side is open");
    assert_eq!(near.recv(&mut buf).expect("it stands"), 6);
    assert_eq!(far.close(), CloseReason::Peer);
    assert_eq!(near.recv(&mut buf).expect("the end"), 0);
    assert_eq!(near.close(), CloseReason::Local);
    assert_eq!(near.close_reason(), Some(CloseReason::Local));
}

#[test]
fn a_message_that_ends_too_soon_is_told_and_can_still_be_read() {
    let (mut near, mut far) = pair();
    near.send(b"half").expect("it stands");
    near.finish().expect("it stands");
    let error = far.recv_exact(&mut [0; 8]).expect_err("it is half");
    assert!(error.is_ended());
    assert_eq!(error.partial(), Some(4));
    let mut buf = [0; 8];
    assert_eq!(far.recv(&mut buf).expect("it is here"), 4);
    assert_eq!(&buf[..4], b"half");
}

#[test]
fn a_large_message_arrives_whole() {
    let (mut near, mut far) = pair();
    let message: Vec<u8> = (0..8_000_000u32).map(|n| (n % 251) as u8).collect();
    let expected = message.clone();
    let reader = thread::spawn(move || {
        let mut received = vec![0; expected.len()];
        far.recv_exact(&mut received).expect("it stands");
        assert!(received == expected);
        far
    });
    near.send(&message).expect("it stands");
    assert_eq!(near.counts().sent, message.len() as u64);
    drop(reader.join().expect("it went well"));
}

#[test]
fn nobody_comes_within_the_time() {
    let mut listener = listener();
    let began = Instant::now();
    assert!(listener.accept_within(SOON).expect("it listens").is_none());
    took(began, SOON);
    let _near = blocking::connect(listener.local_addr()).expect("it listens");
    assert!(listener.accept_within(PATIENCE).expect("it listens").is_some());
    assert!(listener.accept_within(Duration::ZERO).expect("it listens").is_none());
}

#[test]
fn sockets_that_listen_already_are_adopted() {
    let given = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = given.local_addr().expect("it has one");
    let mut listener = Listener::adopt(given).expect("it listens");
    assert_eq!(listener.local_addr().socket(), Some(address));
    let _near = TcpStream::connect(address).expect("it listens");
    drop(listener.accept().expect("it has connected"));

    let connected = TcpStream::connect(address).expect("it listens");
    let error = Listener::adopt(connected).expect_err("it does not listen");
    assert_eq!(error.to_string(), "listen on a given socket: the given socket does not listen");
}

#[test]
fn unix_sockets_are_the_same() {
    let folder = std::env::temp_dir().join(format!("wharf-blocking-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("socket");
    let listener = Listener::bind(format!("unix:{}", path.display())).expect("it is free");
    let (mut near, mut far) = pair_on(listener, Client::new);
    near.send(b"local").expect("it stands");
    assert_eq!(far.recv(&mut [0; 16]).expect("it stands"), 5);
    assert_eq!(near.delivered().expect_err("no system tells").io_kind(), Some(IoErrorKind::Unsupported));
    assert!(!path.exists(), "its file went with the listener");
    let given = Listener::bind(UnixListener::bind(&path).expect("it is free")).expect("it listens");
    drop(given);
    std::fs::remove_dir_all(folder).expect("it was there");
}

#[test]
fn options_that_make_no_sense_are_refused_by_their_names() {
    let error = listener().threads(0).expect_err("none is no bound");
    assert_eq!(error.to_string(), "start: option `threads` must be between 1 and 65536");
    let error = listener().limits(Limits::default().memory(1)).expect_err("it is not enough for anything");
    assert!(error.to_string().contains("`memory`"), "{error}");
    let error = listener().deadlines(Deadlines::default().idle(Duration::ZERO)).expect_err("no time");
    assert!(error.to_string().contains("`idle`"), "{error}");
    let proxied = Listen::at("127.0.0.1:0")
        .proxy_protocol(wharf::ProxyProtocol::from(["127.0.0.1".parse().expect("one")]));
    let mut proxied = Listener::bind(proxied).expect("a server can speak it");
    let error = proxied.accept_within(Duration::ZERO).expect_err("it would wait for a header");
    assert!(error.to_string().contains("`proxy_protocol` is for `Listener::serve`"), "{error}");
    let sockets = SocketOptions::default().backlog(0);
    assert!(Listener::bind(Listen::at("127.0.0.1:0").sockets(sockets)).is_err());
    assert_eq!(Listener::bind("127.0.0.1").expect_err("no port").kind(), ErrorKind::Caller);
}

#[test]
fn refused_reset_and_closed_are_told_apart() {
    let address = listener().local_addr();
    let error = blocking::connect(&address).expect_err("nobody listens");
    assert!(error.is_refused(), "{error}");
    assert!(error.to_string().starts_with(&format!("connect to {address}: ")), "{error}");

    let (mut conn, socket) = with_socket(Deadlines::default());
    reset(socket);
    let error = conn.recv(&mut [0; 4]).expect_err("it was reset");
    assert_eq!(error.close_reason(), Some(CloseReason::PeerReset));
    assert_eq!(conn.close(), CloseReason::PeerReset);

    let (mut conn, socket) = with_socket(Deadlines::default());
    drop(socket);
    assert_eq!(conn.recv(&mut [0; 4]).expect("an end is no failure"), 0);
    assert_eq!(conn.close(), CloseReason::Peer);
    let error = conn.send(b"more").expect_err("it is closed");
    assert_eq!((error.close_reason(), error.unsent()), (Some(CloseReason::Peer), Some(4)));

    let (mut conn, mut socket) = with_socket(Deadlines::default());
    assert_eq!(conn.reset(), CloseReason::LocalReset);
    assert_eq!(socket.read(&mut [0; 4]).expect_err("it was reset").kind(), IoErrorKind::ConnectionReset);
}

#[test]
fn a_late_receive_loses_nothing() {
    let (mut conn, mut socket) = with_socket(Deadlines::default());
    socket.write_all(b"ab").expect("it stands");
    let began = Instant::now();
    let error = conn.within(SOON).recv_exact(&mut [0; 4]).expect_err("two are missing");
    took(began, SOON);
    assert!(error.is_timeout() && !error.is_closed(), "{error}");
    socket.write_all(b"cd").expect("it stands");
    let mut buf = [0; 4];
    conn.recv_exact(&mut buf).expect("they are here");
    assert_eq!(&buf, b"abcd");
}

/// Sends a byte now and then until the other end has gone.
fn drip(mut socket: TcpStream, every: Duration) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        while socket.write_all(b"x").is_ok() {
            thread::sleep(every);
        }
    })
}

#[test]
fn a_deadline_is_total_however_the_bytes_drip() {
    let (mut conn, socket) = with_socket(Deadlines::default());
    let dripping = drip(socket, Duration::from_millis(5));
    let began = Instant::now();
    let within = Duration::from_millis(100);
    assert!(conn.within(within).recv_exact(&mut [0; 1_000_000]).expect_err("too slow").is_timeout());
    took(began, within);
    conn.reset();
    dripping.join().expect("it ends");
}

#[test]
fn several_operations_have_one_deadline_together() {
    let (mut conn, _socket) = with_socket(Deadlines::default());
    let began = Instant::now();
    let mut timed = conn.within(SOON);
    timed.send(b"question").expect("it stands");
    assert!(timed.recv(&mut [0; 4]).expect_err("no answer").is_timeout());
    assert!(timed.recv(&mut [0; 4]).expect_err("the time is over").is_timeout());
    took(began, SOON);
    assert_eq!(conn.close_reason(), None, "the connection stands");
}

#[test]
fn a_silent_peer_is_ended() {
    for (deadlines, expected) in [
        (Deadlines::default().first_byte(SOON), Deadline::FirstByte),
        (Deadlines::default().first_byte(None).idle(SOON), Deadline::Idle),
        (Deadlines::default().age(SOON), Deadline::Age),
    ] {
        let began = Instant::now();
        let (mut conn, mut socket) = with_socket(deadlines.linger(Duration::from_millis(10)));
        let error = conn.recv(&mut [0; 4]).expect_err("nothing came");
        took(began, SOON);
        assert_eq!(error.close_reason(), Some(CloseReason::Timeout(expected)));
        assert_eq!(socket.read(&mut [0; 4]).expect("a graceful close"), 0);
    }
}

#[test]
fn a_peer_that_falls_silent_after_some_messages_is_ended_as_soon() {
    let idle = Duration::from_millis(150);
    let (mut conn, mut socket) = with_socket(Deadlines::default().idle(idle));
    let mut began = Instant::now();
    for _ in 0..3 {
        began = Instant::now();
        socket.write_all(b"hi").expect("it stands");
        conn.recv_exact(&mut [0; 2]).expect("it stands");
    }
    let error = conn.recv(&mut [0; 1]).expect_err("nothing comes");
    assert_eq!(error.close_reason(), Some(CloseReason::Timeout(Deadline::Idle)));
    took(began, idle);
}

#[test]
fn a_peer_that_drips_a_message_is_ended() {
    let rate = ReceiveRate::new(1_000_000).grace(SOON);
    let (mut conn, socket) = with_socket(Deadlines::default().receive_rate(rate).linger(Duration::ZERO));
    let dripping = drip(socket, Duration::from_millis(2));
    let error = conn.recv_exact(&mut [0; 1_000_000]).expect_err("too slow");
    assert_eq!(error.close_reason(), Some(CloseReason::Timeout(Deadline::ReceiveRate)));
    drop(conn);
    dripping.join().expect("it ends");
}

#[test]
fn a_deadline_of_ones_own_ends_the_connection() {
    let (mut conn, _socket) = with_socket(Deadlines::default());
    let began = Instant::now();
    conn.set_deadline(SOON);
    let error = conn.recv(&mut [0; 4]).expect_err("nothing came");
    took(began, SOON);
    assert_eq!(error.close_reason(), Some(CloseReason::Timeout(Deadline::Handler)));

    let (mut conn, mut socket) = with_socket(Deadlines::default());
    conn.set_deadline(SOON);
    conn.set_deadline(None);
    conn.reset_after(SOON);
    let error = conn.recv(&mut [0; 4]).expect_err("nothing came");
    assert_eq!(error.close_reason(), Some(CloseReason::LocalReset));
    assert_eq!(socket.read(&mut [0; 4]).expect_err("it was reset").kind(), IoErrorKind::ConnectionReset);
}

#[test]
fn a_peer_that_does_not_read_is_told_by_what_was_not_sent() {
    let (mut conn, mut socket) = with_socket(Deadlines::default());
    let message = vec![7; 64 << 20];
    let began = Instant::now();
    let error = conn.within(SOON).send(&message).expect_err("nobody reads");
    took(began, SOON);
    assert!(error.is_timeout(), "{error}");
    let unsent = error.unsent().expect("it is known");
    assert_eq!(message.len() - unsent, conn.counts().sent as usize);
    // The rest can follow, and the message is whole.
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        socket.read_to_end(&mut all).expect("it ends");
        all
    });
    conn.send(&message[message.len() - unsent..]).expect("somebody reads");
    assert_eq!(conn.close(), CloseReason::Local);
    assert!(reader.join().expect("it went well") == message);
}

#[test]
fn a_peer_that_never_reads_is_reset() {
    let (mut conn, socket) = with_socket(Deadlines::default().write(SOON));
    let error = conn.send(&vec![7; 64 << 20]).expect_err("nobody reads");
    assert_eq!(error.close_reason(), Some(CloseReason::Timeout(Deadline::Write)));
    assert!(error.unsent().is_some_and(|unsent| unsent > 0));
    drop(socket);
}

#[test]
fn a_close_waits_for_the_peer_but_not_for_ever() {
    let linger = Duration::from_millis(100);
    let (mut conn, mut socket) = with_socket(Deadlines::default().linger(linger));
    // The others may all be late; this one is here.
    socket.write_all(b"x").expect("it stands");
    assert!(conn.ready().expect("it stands"));
    let dripping = drip(socket, Duration::from_millis(5));
    let began = Instant::now();
    assert_eq!(conn.close(), CloseReason::Local);
    took(began, linger);
    assert!(conn.counts().discarded > 0);
    dripping.join().expect("it ends");
}

#[test]
fn last_words_arrive_although_the_peer_still_sends() {
    let (mut conn, mut socket) = with_socket(Deadlines::default());
    let closing = thread::spawn(move || {
        conn.send(b"busy").expect("it stands");
        drop(conn);
    });
    socket.write_all(&[7; 100_000]).expect("it is thrown away");
    socket.shutdown(Shutdown::Write).expect("it stands");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("no reset");
    assert_eq!(answer, b"busy");
    closing.join().expect("it went well");
}

#[test]
fn a_drop_does_not_wait_and_last_words_arrive_all_the_same() {
    let mut sockets = Vec::new();
    let began = Instant::now();
    for _ in 0..20 {
        let (mut conn, mut socket) = with_socket(Deadlines::default().linger(PATIENCE));
        socket.write_all(b"never read").expect("it stands");
        conn.send(b"last words").expect("it stands");
        drop(conn);
        sockets.push(socket);
    }
    assert!(began.elapsed() < PATIENCE / 2, "nobody was waited for");
    for mut socket in sockets {
        // Without somebody who reads this, it would be answered by a reset.
        socket.write_all(&[7; 100_000]).expect("it is thrown away");
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("no reset");
        assert_eq!(answer, b"last words");
        socket.shutdown(Shutdown::Write).expect("it stands");
    }
}

#[test]
fn a_peer_that_does_not_end_is_not_waited_for_after_a_drop_for_ever() {
    let (conn, mut socket) = with_socket(Deadlines::default().linger(SOON));
    let began = Instant::now();
    drop(conn);
    assert_eq!(socket.read(&mut [0; 4]).expect("an end"), 0);
    // What is sent is thrown away at first, and later answered by a reset.
    let failure = loop {
        match socket.write(b"still here") {
            Ok(_) => thread::sleep(Duration::from_millis(1)),
            Err(error) => break error,
        }
        assert!(began.elapsed() < PATIENCE, "it is waited for still");
    };
    assert!(matches!(failure.kind(), IoErrorKind::ConnectionReset | IoErrorKind::BrokenPipe), "{failure}");
    assert!(began.elapsed() >= SOON);
}

#[test]
fn a_panic_resets() {
    let (conn, mut socket) = with_socket(Deadlines::default());
    let panicking = thread::spawn(move || {
        let _conn = conn;
        panic!("on purpose");
    });
    assert!(panicking.join().is_err());
    assert_eq!(socket.read(&mut [0; 4]).expect_err("it was reset").kind(), IoErrorKind::ConnectionReset);
}

#[test]
fn another_thread_ends_a_receive() {
    for resets in [false, true] {
        let (mut conn, mut socket) = with_socket(Deadlines::default().linger(SOON));
        let remote = conn.remote().expect("descriptors");
        assert_eq!((remote.close_reason(), remote.peer_addr()), (None, conn.peer_addr()));
        let waiting = thread::spawn(move || {
            let error = conn.recv(&mut [0; 4]).expect_err("it is ended");
            (error.close_reason(), conn.close())
        });
        if resets {
            remote.reset();
        } else {
            remote.close();
        }
        let read = socket.read(&mut [0; 4]).map_err(|error| error.kind());
        assert_eq!(read, if resets { Err(IoErrorKind::ConnectionReset) } else { Ok(0) });
        let expected = if resets { CloseReason::LocalReset } else { CloseReason::Local };
        assert_eq!(waiting.join().expect("it went well"), (Some(expected), expected));
        assert_eq!(remote.close_reason(), Some(expected));
    }
}

#[test]
fn another_thread_ends_a_send() {
    let (mut conn, _socket) = with_socket(Deadlines::default().write(None));
    let remote = conn.remote().expect("descriptors");
    let (begun, beginning) = mpsc::channel();
    let sending = thread::spawn(move || {
        begun.send(()).expect("the test waits");
        conn.send(&vec![7; 64 << 20]).expect_err("nobody reads").close_reason()
    });
    beginning.recv().expect("it begins");
    remote.reset();
    assert_eq!(sending.join().expect("it went well"), Some(CloseReason::LocalReset));
}

#[test]
fn halves_read_and_write_at_the_same_time() {
    let (near, far) = pair();
    let (mut far_reads, mut far_writes) = far.split().expect("descriptors");
    let (mut near_reads, mut near_writes) = near.split().expect("descriptors");
    let echo = thread::spawn(move || {
        let mut buf = [0; 4096];
        loop {
            match far_reads.recv(&mut buf).expect("it stands") {
                0 => return,
                n => far_writes.send(&buf[..n]).expect("it stands"),
            }
        }
    });
    let message: Vec<u8> = (0..4_000_000u32).map(|n| (n % 241) as u8).collect();
    let expected = message.clone();
    let reader = thread::spawn(move || {
        let mut received = vec![0; expected.len()];
        near_reads.recv_exact(&mut received).expect("it stands");
        assert!(received == expected);
        near_reads
    });
    near_writes.send(&message).expect("it stands");
    let near_reads = reader.join().expect("it went well");
    let (mut other, _) = pair();
    other.finish().expect("it stands");
    let (_, other_writes) = other.split().expect("descriptors");
    let (near_reads, _) = near_reads.join(other_writes).expect_err("they do not belong together");
    let mut near = near_reads.join(near_writes).expect("they do");
    near.finish().expect("it stands");
    assert_eq!(near.recv(&mut [0; 4]).expect("the end"), 0);
    echo.join().expect("it went well");
}

#[test]
fn the_end_is_known_before_what_is_unread_is_read() {
    let (mut conn, mut socket) = with_socket(Deadlines::default());
    assert_eq!(conn.hangup(), None);
    socket.write_all(b"unread").expect("it stands");
    drop(socket);
    let began = Instant::now();
    while conn.hangup().is_none() {
        assert!(began.elapsed() < PATIENCE);
        thread::yield_now();
    }
    assert_eq!(conn.hangup(), Some(Hangup::Ended));
    assert_eq!(conn.recv(&mut [0; 16]).expect("it is here"), 6);
}

#[cfg(target_os = "linux")]
#[test]
fn what_was_delivered_is_known() {
    let (mut conn, mut socket) = with_socket(Deadlines::default());
    conn.send(b"arrives").expect("it stands");
    conn.delivered().expect("the kernel acknowledges");
    assert_eq!(conn.unacked(), Some(0));
    socket.read_exact(&mut [0; 7]).expect("it is here");

    let error = conn.within(SOON).send(&vec![7; 64 << 20]).expect_err("nobody reads");
    assert!(error.unsent().is_some());
    let error = conn.within(SOON).delivered().expect_err("nobody reads");
    assert!(error.is_timeout(), "{error}");
    assert!(conn.unacked().is_some_and(|unacked| unacked > 0));
    reset(socket);
    let error = conn.delivered().expect_err("it was reset");
    assert_eq!(error.close_reason(), Some(CloseReason::PeerReset));
    assert!(error.undelivered().is_some_and(|bytes| bytes > 0), "{error}");
}

#[test]
fn it_reads_and_writes_as_the_standard_library_does() {
    let (mut near, mut far) = pair();
    writeln!(near, "a line").expect("it stands");
    near.flush().expect("it stands");
    let mut line = String::new();
    let mut reader = std::io::BufReader::new(&mut far);
    std::io::BufRead::read_line(&mut reader, &mut line).expect("it stands");
    assert_eq!(line, "a line\n");
    let error = Read::read_exact(&mut std::io::BufReader::new(near.within_read(SOON)), &mut [0; 1]);
    assert_eq!(error.expect_err("nothing comes").kind(), IoErrorKind::TimedOut);
}

/// A view that reads within a time, as a user may write one.
trait WithinRead {
    fn within_read(&mut self, after: Duration) -> impl Read;
}

impl WithinRead for Connection {
    fn within_read(&mut self, after: Duration) -> impl Read {
        struct Timed<'a>(&'a mut Connection, Duration);
        impl Read for Timed<'_> {
            fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
                Ok(self.0.within(self.1).recv(buf)?)
            }
        }
        Timed(self, after)
    }
}

#[test]
fn names_are_looked_up_and_connects_have_one_deadline() {
    let listener = listener();
    let port = listener.local_addr().port().expect("it is TCP");
    drop(blocking::connect(format!("localhost:{port}")).expect("it listens"));

    // A backlog that is full makes a client wait.
    let silent = Listener::bind(Listen::at("127.0.0.1:0").sockets(SocketOptions::default().backlog(1)))
        .expect("a port");
    let client = Client::new(silent.local_addr()).connect_within(SOON);
    let mut waiting = Vec::new();
    let error = loop {
        let began = Instant::now();
        match client.open_blocking() {
            Ok(conn) => waiting.push(conn),
            Err(error) => {
                took(began, SOON);
                break error;
            }
        }
        assert!(waiting.len() < 100, "the backlog is never full");
    };
    assert!(error.is_timeout(), "{error}");
    for conn in &mut waiting {
        conn.reset();
    }
}

#[test]
fn blocking_clients_talk_to_async_servers_on_every_engine() {
    for backend in common::backends("blocking_clients_talk_to_async_servers") {
        let server = Server::bind("127.0.0.1:0").workers(1).backend(backend).start(
            |mut conn: wharf::Connection| async move {
                let mut buf = [0; 4096];
                loop {
                    match conn.recv(&mut buf).await? {
                        0 => return Ok(()),
                        n => conn.send(&buf[..n]).await?,
                    }
                }
            },
        );
        let server = server.expect("it starts");
        let mut conn = blocking::connect(server.local_addr()).expect("it listens");
        for len in [1, 64, 4096, 100_000] {
            let message = vec![len as u8; len];
            conn.send(&message).expect("it stands");
            let mut echo = vec![0; len];
            conn.recv_exact(&mut echo).expect("it stands");
            assert!(echo == message);
        }
        assert_eq!(conn.close(), CloseReason::Local);
        server.drain(PATIENCE).wait().expect("it ends");
    }
}

#[test]
fn a_client_s_source_and_resolver_hold_for_a_blocking_connect() {
    let mut listener = listener();
    let port = listener.local_addr().port().expect("it has one");
    // Nobody listens at the first.
    let two = |_: &str| Ok(vec![[127, 0, 0, 99].into(), [127, 0, 0, 1].into()]);
    let client = Client::new(format!("server.test:{port}")).resolver(two).bind("127.0.0.5");
    let mut near = client.open_blocking().expect("it listens at the second");
    let ours = near.local_addr().expect("it stands");
    assert_eq!(ours.ip(), Some([127, 0, 0, 5].into()));
    assert_eq!(listener.accept().expect("it has connected").peer_addr(), ours);

    let odd = client.clone().bind("::1").open_blocking().expect_err("there are no such addresses");
    assert!(odd.to_string().contains("`bind`"), "{odd}");
    assert!(listener.accept_within(Duration::ZERO).expect("it listens").is_none());
}
