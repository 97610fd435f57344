//! Operating a blocking server: suspending it, looking into it, sending connections away, and what it tells of itself.

#[path = "common/threads.rs"]
mod threads;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use wharf::blocking::{Connection, Listener, ServerHandle};
use wharf::{
    Access, CloseReason, ConnectionInfo, ConnectionState, Deadlines, Limits, OverLimit, Phase, Result, Rule,
    ServerEvent, Whom,
};

use threads::echo;

/// Nothing takes that long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where no other test takes a port that is closed for a while.
const HERE: &str = if cfg!(target_os = "linux") { "127.0.47.11:0" } else { "127.0.0.1:0" };

fn listener() -> Listener {
    Listener::bind(HERE).expect("a port is free")
}

fn address(server: &ServerHandle) -> SocketAddr {
    server.local_addr().socket().expect("it is TCP")
}

fn connect(server: &ServerHandle) -> TcpStream {
    let socket = TcpStream::connect(address(server)).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("it can");
    socket
}

/// Has a byte echoed.
fn exchange(socket: &mut TcpStream) {
    socket.write_all(b"x").expect("it stands");
    socket.read_exact(&mut [0; 1]).expect("it is served");
}

fn served(server: &ServerHandle) -> TcpStream {
    let mut socket = connect(server);
    exchange(&mut socket);
    socket
}

fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn await_refusal(address: SocketAddr) {
    let refused = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
    await_that("it refuses", || TcpStream::connect(address).is_err_and(refused));
}

/// What a server has told so far.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn watch(&self, listener: Listener) -> Listener {
        let told = self.0.clone();
        listener.watch(move |event| told.lock().expect("nobody panics").push(event.to_string()))
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().expect("nobody panics").clone()
    }
}

#[test]
fn a_suspended_server_refuses_newcomers_and_goes_on_with_those_it_has() {
    let server = listener().serve(echo).expect("it starts");
    let mut old = served(&server);
    server.suspend().suspend();
    assert!(server.is_suspended());
    assert_eq!(server.phase(), Phase::Suspended);
    await_refusal(address(&server));
    exchange(&mut old);
    server.resume().expect("its address is free");
    server.resume().expect("it is resumed already");
    assert_eq!((server.is_suspended(), server.phase()), (false, Phase::Serving));
    exchange(&mut old);
    drop((old, served(&server)));
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert!(stats.accepted >= 2, "{stats:?}");
    assert_eq!(stats.accept_errors, 0);
}

#[test]
fn a_listener_that_was_given_is_left_alone_and_its_clients_wait() {
    let given = TcpListener::bind(HERE).expect("a port is free");
    let told = Told::default();
    let server = told.watch(Listener::bind(given).expect("it listens")).serve(echo).expect("it starts");
    served(&server);
    server.suspend();
    await_that("it is suspended", || told.all().iter().any(|line| line == "suspended"));
    let accepted = server.stats().accepted;
    let mut waits = connect(&server);
    waits.write_all(b"x").expect("the kernel has connected it");
    assert_eq!(server.stats().accepted, accepted);
    server.resume().expect("there is nothing to open");
    waits.read_exact(&mut [0; 1]).expect("it is served now");
    drop(waits);
    server.stop().wait().expect("it ends");
}

#[test]
fn resuming_right_after_suspending_finds_the_address_free() {
    let server = listener().serve(echo).expect("it starts");
    for round in 0..200u32 {
        server.suspend();
        (0..round % 20 * 100).for_each(|_| std::hint::spin_loop());
        server.resume().expect("nobody else has taken it");
    }
    served(&server);
    server.stop().wait().expect("it ends");
}

#[test]
fn one_that_cannot_resume_stays_suspended_and_tells() {
    let server = listener().serve(echo).expect("it starts");
    server.suspend();
    await_refusal(address(&server));
    let other = TcpListener::bind(address(&server)).expect("it is free");
    let error = server.resume().expect_err("somebody else has it");
    assert_eq!(error.io_kind(), Some(ErrorKind::AddrInUse));
    assert!(error.to_string().starts_with("listen on 127.0."), "{error}");
    assert!(server.is_suspended());
    drop(other);
    server.resume().expect("it is free again");
    served(&server);
    server.stop().wait().expect("it ends");
}

/// A folder of a test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("wharf-blocking-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("there is room");
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[test]
fn a_suspended_server_drains_and_leaves_no_file() {
    let folder = Folder::new("suspended");
    let path = folder.0.join("socket");
    let server = Listener::bind(format!("unix:{}", path.display())).expect("it is free").serve(echo);
    let server = server.expect("it starts");
    server.suspend();
    await_that("it is closed", || UnixStream::connect(&path).is_err());
    server.resume().expect("nobody else has its name");
    let mut socket = UnixStream::connect(&path).expect("it listens again");
    socket.write_all(b"x").expect("it stands");
    socket.read_exact(&mut [0; 1]).expect("it is served");
    drop(socket);
    server.suspend().drain(PATIENCE).wait().expect("it ends");
    assert_eq!(server.phase(), Phase::Stopped);
    assert!(server.resume().is_ok(), "there is nothing to resume any more");
    assert!(!path.exists());
}

#[test]
fn who_the_kernel_has_connected_comes_in_before_it_is_suspended() {
    let folder = Folder::new("backlog");
    let path = folder.0.join("socket");
    for _ in 0..20 {
        let server = Listener::bind(format!("unix:{}", path.display())).expect("it is free").serve(echo);
        let server = server.expect("it starts");
        let connect = || UnixStream::connect(&path).expect("it listens");
        let mut sockets: Vec<_> = (0..8).map(|_| connect()).collect();
        server.suspend();
        for socket in &mut sockets {
            socket.write_all(b"x").expect("it stands");
            socket.read_exact(&mut [0; 1]).expect("it is served");
        }
        drop(sockets);
        let stats = server.drain(PATIENCE).wait().expect("it ends");
        assert_eq!((stats.accepted, stats.closed(CloseReason::Peer)), (8, 8), "{stats:?}");
    }
}

fn await_list(
    server: &ServerHandle,
    what: &str,
    holds: impl Fn(&[ConnectionInfo]) -> bool,
) -> Vec<ConnectionInfo> {
    await_that(what, || holds(&server.list()));
    server.list()
}

#[test]
fn connections_are_listed_with_what_they_do() {
    let server = listener().serve(|conn: Connection| {
        assert!(conn.id().is_some());
        conn.set_label("echo");
        echo(conn)
    });
    let server = server.expect("it starts");
    assert_eq!(server.list(), []);
    let (mut first, second) = (served(&server), served(&server));
    first.write_all(b"and more").expect("it stands");
    first.read_exact(&mut [0; 8]).expect("it is served");
    let waits = |infos: &[ConnectionInfo]| {
        let received: Vec<_> = infos.iter().map(|info| (info.counts.received, info.counts.sent)).collect();
        received == [(9, 9), (1, 1)]
    };
    let infos = await_list(&server, "both wait for bytes", waits);
    for (info, socket) in infos.iter().zip([&first, &second]) {
        assert_eq!(info.peer.socket(), socket.local_addr().ok());
        assert_eq!((info.listener, info.state), (Some(0), ConnectionState::Open));
        assert_eq!((info.queued, info.unread), (0, 0));
        assert_eq!(info.label.as_deref(), Some("echo"));
    }
    assert!(infos[0].age >= infos[1].age && infos[0].id != infos[1].id);
    drop((first, second));
    await_that("they have left the list", || server.list().is_empty());
    let again = served(&server);
    let later = server.list();
    assert!(infos.iter().all(|info| info.id != later[0].id), "an id names one connection only");
    drop(again);
    server.stop().wait().expect("it ends");
}

#[test]
fn what_was_exchanged_at_once_is_listed_while_the_handler_computes() {
    let (tell, told) = mpsc::channel();
    let (go, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let handler = move |mut conn: Connection| {
        for _ in 0..3 {
            let n = conn.recv(&mut [0; 8])?;
            conn.send(b"answer")?;
            tell.send(n).expect("the test waits");
            gate.lock().expect("nobody panics").recv().expect("the test goes on");
        }
        Ok(())
    };
    let server = listener().serve(handler).expect("it starts");
    let mut socket = connect(&server);
    let mut received = 0;
    for round in 1..=3 {
        socket.write_all(b"ask").expect("it stands");
        received += told.recv_timeout(PATIENCE).expect("it is served") as u64;
        let counts = server.list()[0].counts;
        assert_eq!((counts.received, counts.sent), (received, 6 * round));
        go.send(()).expect("the handler waits");
    }
    drop(socket);
    server.drain(PATIENCE).wait().expect("it ends");
}

#[test]
fn a_connection_that_is_sent_away_ends_in_order_and_no_other_does() {
    let server = listener().serve(echo).expect("it starts");
    let (mut goes, mut stays) = (served(&server), served(&server));
    let peer = goes.local_addr().ok();
    let infos = server.list();
    let one = infos.iter().find(|info| info.peer.socket() == peer).expect("it is there").id;
    server.disconnect(one);
    assert_eq!(goes.read(&mut [0; 1]).expect("it ends in order"), 0);
    drop(goes);
    await_that("it is gone", || server.connections() == 1);
    exchange(&mut stays);
    // It names nobody any more.
    server.disconnect(one);
    exchange(&mut stays);
    server.disconnect("127.0.0.0/8".parse::<wharf::Network>().expect("a network"));
    assert_eq!(stays.read(&mut [0; 1]).expect("it ends in order"), 0);
    drop(stays);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(stats.closed(CloseReason::Disconnected), 2, "{stats:?}");
}

#[test]
fn whatever_a_handler_waits_for_it_is_sent_away() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let server = listener().serve(move |mut conn: Connection| {
        let mut kind = [0; 1];
        conn.recv_exact(&mut kind)?;
        let result = match kind[0] {
            b's' => conn.send(&vec![7; 64 << 20]),
            b'r' => conn.ready().map(drop),
            b'h' => {
                let (mut read, write) = conn.split()?;
                let result = read.recv(&mut [0; 1]).map(drop);
                drop((read, write));
                result
            }
            _ => conn.recv(&mut [0; 1]).map(drop),
        };
        let reason = result.as_ref().expect_err("it has not ended by itself").close_reason();
        tell.lock().expect("nobody panics").send(reason).expect("the test waits");
        result
    });
    let server = server.expect("it starts");
    let mut clients: Vec<_> = b"srh?".iter().map(|kind| (*kind, connect(&server))).collect();
    for (kind, client) in &mut clients {
        client.write_all(&[*kind]).expect("it stands");
    }
    // The sending one has begun when something of it is here.
    clients[0].1.read_exact(&mut [0; 1]).expect("it sends");
    let begun =
        |infos: &[ConnectionInfo]| infos.len() == 4 && infos.iter().all(|info| info.counts.received == 1);
    await_list(&server, "all have said what they want", begun);
    server.disconnect(Whom::All);
    for _ in &clients {
        let reason = told.recv_timeout(PATIENCE).expect("its wait ends");
        assert_eq!(reason, Some(CloseReason::Disconnected));
    }
    drop(clients);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(stats.closed(CloseReason::Disconnected), 4, "{stats:?}");
}

#[test]
fn a_peer_that_sends_may_go_on_while_its_connection_is_sent_away() {
    let folder = Folder::new("sending");
    let path = folder.0.join("socket");
    let (go, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let server = Listener::bind(format!("unix:{}", path.display())).expect("it is free");
    let server = server.serve(move |mut conn: Connection| {
        conn.recv(&mut [0; 1])?;
        conn.send(b"last words")?;
        gate.lock().expect("nobody panics").recv().expect("the test goes on");
        conn.send(b"too late")
    });
    let server = server.expect("it starts");
    let mut socket = UnixStream::connect(&path).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("it can");
    socket.write_all(b"x").expect("it stands");
    socket.read_exact(&mut [0; 4]).expect("it is served");
    socket.write_all(b"unread").expect("it stands");
    server.disconnect(Whom::All);
    socket.write_all(b"and more").expect("nobody has shut it");
    socket.shutdown(std::net::Shutdown::Write).expect("it stands");
    go.send(()).expect("the handler waits");
    let mut rest = String::new();
    socket.read_to_string(&mut rest).expect("it ends in order");
    assert_eq!(rest, " words");
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(stats.closed(CloseReason::Disconnected), 1, "{stats:?}");
}

#[test]
fn what_changes_while_it_runs_holds_for_who_comes_next() {
    let server = listener().threads(3).expect("it makes sense").serve(echo).expect("it starts");
    let mut first = served(&server);
    server
        .set_limits(Limits::default().connections(1).over_limit(OverLimit::Close))
        .expect("they make sense");
    assert_eq!(server.connections_max(), 1);
    assert_eq!(connect(&server).read(&mut [0; 1]).expect("it is closed"), 0);
    exchange(&mut first);
    server.set_limits(Limits::default().connections(10)).expect("they make sense");
    assert_eq!(server.connections_max(), 3, "each has a thread");
    server.set_access(Access::default().deny(["127.0.0.0/8".parse().expect("a network")]));
    assert!(connect(&server).read(&mut [0; 1]).is_err());
    server.set_access(Access::default());
    let deadlines = Deadlines::default().first_byte(Duration::from_millis(20)).linger(Duration::ZERO);
    server.set_deadlines(deadlines.clone()).expect("they make sense");
    assert_eq!(server.deadlines(), deadlines);
    assert_eq!(connect(&server).read(&mut [0; 1]).expect("it is closed"), 0);
    exchange(&mut first);
    assert!(server.set_deadlines(Deadlines::default().idle(Duration::ZERO)).is_err());
    assert!(server.set_limits(Limits::default().connections(0)).is_err());
    assert_eq!((server.deadlines(), server.limits().clone()), (deadlines, Limits::default().connections(10)));
    drop(first);
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!((stats.refused_by(Rule::Connections), stats.refused_by(Rule::Network)), (1, 1), "{stats:?}");
}

#[test]
fn a_snapshot_tells_what_it_is_doing() {
    let server = listener().serve(echo).expect("it starts");
    let client = served(&server);
    let snapshot = server.snapshot();
    assert_eq!((snapshot.phase, snapshot.connections, snapshot.connections_max), (Phase::Serving, 1, 256));
    assert_eq!(snapshot.listeners[0].address, server.local_addr());
    assert_eq!((snapshot.listeners[0].accepted, snapshot.listeners[0].lost), (1, false));
    let text = snapshot.to_string();
    assert!(text.lines().any(|line| line == "connections            1 of 256"), "{text}");
    assert!(!text.contains("worker"), "{text}");
    drop(client);
    server.stop().wait().expect("it ends");
    assert_eq!(server.snapshot().phase, Phase::Stopped);
}

#[test]
fn what_happens_is_told_in_order() {
    let told = Told::default();
    let (gone, exited) = mpsc::channel();
    let listener =
        told.watch(listener()).on_exit(move |stats| gone.send(stats.clone()).expect("the test waits"));
    let server = listener.serve(|mut conn: Connection| {
        let mut byte = [0; 1];
        while conn.recv(&mut byte)? > 0 {
            assert_ne!(byte[0], b'!', "on purpose");
            conn.send(&byte)?;
        }
        Ok(())
    });
    let server = server.expect("it starts");
    let await_line = |n: usize| {
        await_that("it is told", || told.all().len() >= n);
        told.all().pop().expect("there is one")
    };
    let mut first = served(&server);
    let (peer, id) = (first.local_addr().expect("it has one"), server.list()[0].id);
    assert_eq!(await_line(1), format!("{peer} ({id}): connected"));
    first.shutdown(std::net::Shutdown::Write).expect("it stands");
    first.read_to_end(&mut Vec::new()).expect("it ends");
    let closed = format!("{peer} ({id}): {}; received 1, sent 1, unsent 0", CloseReason::Peer);
    assert_eq!(await_line(2), closed);
    await_that("it has left", || server.connections() == 0);

    let mut panics = served(&server);
    let (peer, id) = (panics.local_addr().expect("it has one"), server.list()[0].id);
    await_line(3);
    panics.write_all(b"!").expect("it stands");
    await_line(5);
    let lines = told.all();
    assert!(lines[3].starts_with(&format!("{peer} ({id}): handler panicked: assertion")), "{lines:?}");
    assert!(lines[3].contains("on purpose"), "{lines:?}");
    assert!(lines[4].starts_with(&format!("{peer} ({id}): {}", CloseReason::HandlerPanicked)), "{lines:?}");

    server.set_access(Access::default().deny(["127.0.0.0/8".parse().expect("a network")]));
    let refused = connect(&server);
    let peer = refused.local_addr().expect("it has one");
    assert_eq!(await_line(6), format!("{peer}: refused: {}", Rule::Network));
    server.suspend();
    assert_eq!(await_line(7), "suspended");
    server.resume().expect("its address is free");
    assert_eq!(await_line(8), "resumed");
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!(exited.try_recv().as_ref(), Ok(&stats), "it was told before");
    assert_eq!(told.all()[8..], ["draining for at most 20s"]);
}

#[test]
fn a_watcher_may_use_the_handle_and_may_panic_but_cannot_wait() {
    let (hand, handed) = mpsc::channel::<ServerHandle>();
    let (tell, told) = mpsc::channel();
    let (handed, tell) = (Mutex::new(handed), Mutex::new(tell));
    let listener = listener().watch(move |event| {
        if let ServerEvent::Closed { .. } = event {
            let server = handed.lock().expect("nobody panics").recv().expect("the test hands it");
            let waited = server.wait().map(drop);
            tell.lock().expect("nobody panics").send((server.connections(), waited)).expect("the test waits");
        }
        panic!("a watcher panics for the test");
    });
    let server = listener.serve(echo).expect("it starts");
    drop(served(&server));
    hand.send(server.clone()).expect("the watcher waits");
    let (connections, waited) = told.recv_timeout(PATIENCE).expect("it is told");
    assert_eq!(connections, 1, "it is told before its place is free");
    assert!(waited.is_err(), "it would wait for ever");
    let stats = server.drain(PATIENCE).wait().expect("it ends");
    assert_eq!((stats.accepted, stats.panics), (1, 0), "a watcher is no handler");
}

/// What each client sends, and its connection then holds.
const EACH: u64 = 32 << 10;

/// Holds what has come, until the test goes on.
fn holds(mut conn: Connection, gate: &Mutex<mpsc::Receiver<()>>) -> Result<()> {
    // What is received and not read is held.
    while conn.ready()? && conn.counts().received < EACH {
        if conn.recv(&mut [0; 1])? == 0 {
            return Ok(());
        }
    }
    let go = gate.lock().expect("nobody panics").recv();
    let mut rest = vec![0; 4096];
    while go.is_ok() && conn.recv(&mut rest)? > 0 {}
    Ok(())
}

/// Has clients come one after the other until there is no memory for more.
fn spend_memory(server: &ServerHandle) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    while !server.memory_is_short() {
        assert!(clients.len() < 40, "{} clients hold {} bytes", clients.len(), server.memory_used());
        let mut client = connect(server);
        client.write_all(&[7; EACH as usize]).expect("the kernel has room");
        clients.push(client);
        let all_hold = |infos: &[ConnectionInfo]| {
            infos.len() == clients.len() && infos.iter().all(|info| info.counts.received == EACH)
        };
        await_list(server, "what it has sent is held", all_hold);
    }
    clients
}

#[test]
fn without_memory_nobody_comes_in_until_there_is_some() {
    let told = Told::default();
    let (go, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let limits = Limits::default().memory(1 << 20);
    let listener = told.watch(listener().limits(limits).expect("they make sense"));
    let server = listener.serve(move |conn: Connection| holds(conn, &gate)).expect("it starts");
    assert_eq!((server.memory_used(), server.memory_max()), (0, Some(1 << 20)));
    let mut clients = spend_memory(&server);
    let before = clients.len() as u64;
    clients.extend((0..4).map(|_| connect(&server)));
    // One may have been about to be accepted.
    assert!(server.stats().accepted <= before + 1);
    clients.iter().for_each(|_| go.send(()).expect("handlers wait"));
    let came = clients.len() as u64;
    drop(clients);
    await_that("who waited comes in", || server.stats().accepted == came);
    await_that("nobody is left", || server.connections() == 0);
    await_that("nothing is held", || server.memory_used() == 0);
    assert!(!server.memory_is_short());
    let news: Vec<_> = told.all().into_iter().filter(|line| line.starts_with("memory")).collect();
    assert!(news[0].starts_with("memory is short: "), "{news:?}");
    assert!(news[1].starts_with("memory is enough again: "), "{news:?}");
    server.stop().wait().expect("it ends");
}

#[test]
fn without_memory_newcomers_can_be_refused() {
    let (go, gate) = mpsc::channel();
    let gate = Mutex::new(gate);
    let limits = Limits::default().memory(1 << 20).over_limit(OverLimit::Reset);
    let listener = listener().limits(limits).expect("they make sense");
    let server = listener.serve(move |conn: Connection| holds(conn, &gate)).expect("it starts");
    let clients = spend_memory(&server);
    assert!(connect(&server).read(&mut [0; 1]).is_err(), "it is reset");
    assert_eq!(server.stats().refused_by(Rule::Memory), 1);
    server.set_limits(Limits::default().memory(64 << 20)).expect("they make sense");
    assert!(!server.memory_is_short());
    let late = connect(&server);
    await_that("it comes in", || server.connections() == clients.len() + 1);
    drop((go, clients, late));
    server.stop().wait().expect("it ends");
}
