//! Servers that are replaced while clients come and go: by another process, and within one.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking; a child talks to its parent"
)]

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use wharf::sim::Simulation;
use wharf::{Backend, Connection, ErrorKind, Handover, Listen, Phase, Server, ServerEvent, ServerHandle};

use common::behaviours::Echo;
use common::{Behaviour, HOST, Watchdog, backends};

const LIMIT: Duration = Duration::from_secs(20);

/// A folder of a test's own, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, backend: Backend) -> Folder {
        let name = format!("wharf-{name}-{}-{}", std::process::id(), backend.name());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn upgrade(&self) -> PathBuf {
        self.0.join("upgrade")
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// A connection of either kind.
trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

fn connect_tcp(address: SocketAddr) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(Box::new(stream))
}

fn connect_unix(path: &Path) -> io::Result<Box<dyn Stream>> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(Box::new(stream))
}

fn ping(stream: &mut dyn Stream) -> io::Result<()> {
    stream.write_all(b"ping")?;
    let mut reply = [0; 4];
    stream.read_exact(&mut reply)?;
    assert_eq!(&reply, b"ping");
    Ok(())
}

fn visit(connected: io::Result<Box<dyn Stream>>) -> io::Result<()> {
    ping(&mut *connected?)
}

/// Clients that connect, ask one thing and go, all the time.
struct Load {
    over: Arc<AtomicBool>,
    visits: Arc<[AtomicU64; 4]>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn new(address: SocketAddr, path: &Path) -> Load {
        let (over, visits) = (Arc::new(AtomicBool::new(false)), Arc::<[AtomicU64; 4]>::default());
        let client = |index: usize| {
            let (over, visits, path) = (over.clone(), visits.clone(), path.to_owned());
            thread::spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    let connect = || if index == 0 { connect_unix(&path) } else { connect_tcp(address) };
                    let nth = visits[index].fetch_add(1, Ordering::SeqCst);
                    visit(connect()).unwrap_or_else(|error| panic!("visit {nth} of client {index}: {error}"));
                }
            })
        };
        let threads = (0..4).map(client).collect();
        Load { over, visits, threads }
    }

    /// Waits until each client has come a few times more.
    fn go_on(&self) {
        let since: Vec<_> = self.visits.iter().map(|visits| visits.load(Ordering::SeqCst)).collect();
        let come = |index: usize| self.visits[index].load(Ordering::SeqCst) - since[index];
        let began = Instant::now();
        while (0..4).any(|index| come(index) < 40) {
            assert!(began.elapsed() < LIMIT, "clients wait");
            assert!(!self.threads.iter().any(thread::JoinHandle::is_finished), "a client was turned away");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The visits of all.
    fn end(self) -> u64 {
        self.over.store(true, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().expect("no client was turned away"));
        self.visits.iter().map(|visits| visits.load(Ordering::SeqCst)).sum()
    }
}

const ROLE: &str = "WHARF_TEST_ROLE";
const LISTEN: &str = "WHARF_TEST_LISTEN";
const FOLDER: &str = "WHARF_TEST_FOLDER";

/// A server in a process of its own: this test again, with a role in its environment.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Process {
    fn start(test: &str, backend: Backend, listen: &str, folder: &Folder) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(ROLE, backend.name())
            .env(LISTEN, listen)
            .env(FOLDER, &folder.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let address = told(&mut output, "listening").parse().unwrap();
        Process { child, output, address }
    }

    /// Waits for its end; the connections that it let in.
    fn end(mut self) -> u64 {
        let accepted = told(&mut self.output, "accepted").parse().unwrap();
        assert!(self.child.wait().unwrap().success());
        accepted
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The rest of the first line of a child's that begins with `word`.
fn told(output: &mut impl BufRead, word: &str) -> String {
    loop {
        let mut line = String::new();
        assert!(output.read_line(&mut line).unwrap() > 0, "the child has ended without telling `{word}`");
        if let Some(rest) = line.strip_prefix(word) {
            return rest.trim().to_owned();
        }
    }
}

/// The engine that this process is to run on, if it is a child.
fn role() -> Option<Backend> {
    std::env::var(ROLE).ok().map(|name| name.parse().unwrap())
}

/// The process of a server: serves until it has been replaced, or its parent closes its input.
fn serve(backend: Backend) {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let server = Server::bind(std::env::var(LISTEN).unwrap())
        .listen(Listen::at(unix(&folder.join("socket"))))
        .workers(2)
        .backend(backend)
        .handover(Handover::at(folder.join("upgrade")).drain(LIMIT))
        .start(|conn| Echo.run(conn))
        .unwrap();
    println!("\nlistening {}", server.local_addr());
    let handle = server.clone();
    thread::spawn(move || {
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
        handle.drain(LIMIT);
    });
    let stats = server.wait().unwrap();
    assert_eq!(stats.drain.reset, 0, "{stats:?}");
    println!("\naccepted {}", stats.accepted);
}

#[test]
fn a_process_is_replaced_again_and_again_and_no_client_notices() {
    const NAME: &str = "a_process_is_replaced_again_and_again_and_no_client_notices";
    if let Some(backend) = role() {
        return serve(backend);
    }
    for backend in backends(NAME) {
        let _watchdog = Watchdog::patient(NAME, LIMIT * 3);
        let folder = Folder::new("replaced", backend);
        let mut server = Process::start(NAME, backend, "127.0.0.1:0", &folder);
        let address = server.address;
        let load = Load::new(address, &folder.socket());
        let (mut accepted, mut stayed) = (0, 0);
        for _ in 0..3 {
            load.go_on();
            let mut stays = connect_tcp(address).unwrap();
            ping(&mut *stays).unwrap();
            stayed += 1;
            let successor = Process::start(NAME, backend, &address.to_string(), &folder);
            load.go_on();
            ping(&mut *stays).expect("who came before the switch stays");
            drop(stays);
            accepted += std::mem::replace(&mut server, successor).end();
        }
        load.go_on();
        let visits = load.end();
        drop(server.child.stdin.take());
        accepted += server.end();
        assert_eq!(accepted, visits + stayed, "everybody came in, and once");
        assert!(!fs::exists(folder.socket()).unwrap() && !fs::exists(folder.upgrade()).unwrap());
        TcpStream::connect(address).expect_err("nobody listens any more");
    }
}

/// A successor that takes everything and does not get ready; its parent kills it.
fn hesitate(folder: &Path) {
    use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};
    let mut stream = UnixStream::connect(folder.join("upgrade")).unwrap();
    stream.write_all(b"WHARF\x01\x01\0\0\0\0\0\0\0\0\0").unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut offer = [0; 16];
    let into = &mut [io::IoSliceMut::new(&mut offer)];
    let received = recvmsg(&stream, into, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!((received.bytes, offer[6], offer[8]), (16, 2, 2), "two listeners are offered");
    println!("\nlistening 127.0.0.1:0");
    // It hangs: whoever waits for it gives up, and ends it.
    thread::sleep(LIMIT);
}

#[test]
fn a_successor_that_is_killed_before_it_is_ready_changes_nothing() {
    const NAME: &str = "a_successor_that_is_killed_before_it_is_ready_changes_nothing";
    if role().is_some() {
        return hesitate(&PathBuf::from(std::env::var_os(FOLDER).unwrap()));
    }
    for backend in backends(NAME) {
        let _watchdog = Watchdog::new(NAME);
        let folder = Folder::new("killed", backend);
        let server = replaceable("127.0.0.1:0", &folder, backend).start(|conn| Echo.run(conn)).unwrap();
        let load = Load::new(server.local_addr(), &folder.socket());
        for _ in 0..2 {
            let mut successor = Process::start(NAME, backend, "", &folder);
            load.go_on();
            successor.child.kill().unwrap();
            successor.child.wait().unwrap();
            load.go_on();
        }
        assert_eq!(server.phase(), Phase::Serving);
        let visits = load.end();
        let stats = server.drain(LIMIT).wait().unwrap();
        assert_eq!(stats.accepted, visits);
        assert!(!fs::exists(folder.socket()).unwrap(), "its file goes with it, as ever");
    }
}

/// A server that can be replaced.
fn replaceable(listen: &str, folder: &Folder, backend: Backend) -> Server {
    Server::bind(listen)
        .listen(Listen::at(unix(&folder.socket())))
        .workers(2)
        .backend(backend)
        .handover(Handover::at(folder.upgrade()).drain(LIMIT).within(LIMIT))
}

fn echo(server: Server) -> wharf::Result<ServerHandle> {
    server.start_events(|| Echo)
}

#[test]
fn two_servers_of_one_process_follow_each_other() {
    const NAME: &str = "two_servers_of_one_process_follow_each_other";
    for backend in backends(NAME) {
        let _watchdog = Watchdog::patient(NAME, LIMIT * 3);
        let folder = Folder::new("follow", backend);
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        let note = move |event: &ServerEvent<'_>| {
            if let ServerEvent::HandedOver { process, .. } = event {
                seen.lock().unwrap().push(*process);
            }
        };
        let mut server = echo(replaceable("127.0.0.1:0", &folder, backend).watch(note)).unwrap();
        let mode = fs::metadata(folder.upgrade()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let address = server.local_addr();
        let load = Load::new(address, &folder.socket());
        let mut accepted = 0;
        for _ in 0..3 {
            load.go_on();
            let successor = echo(replaceable(&address.to_string(), &folder, backend)).unwrap();
            assert_eq!(successor.local_addr(), address);
            let replaced = std::mem::replace(&mut server, successor);
            accepted += replaced.wait().unwrap().accepted;
            assert_eq!(replaced.phase(), Phase::Stopped);
        }
        load.go_on();
        let visits = load.end();
        assert_eq!(*events.lock().unwrap(), [std::process::id()]);
        accepted += server.drain(LIMIT).wait().unwrap().accepted;
        assert_eq!(accepted, visits);
        assert!(!fs::exists(folder.socket()).unwrap());
    }
}

#[test]
fn what_the_successor_has_no_use_for_is_closed_and_what_is_new_is_opened() {
    const NAME: &str = "what_the_successor_has_no_use_for_is_closed_and_what_is_new_is_opened";
    for backend in backends(NAME) {
        let _watchdog = Watchdog::new(NAME);
        let folder = Folder::new("unclaimed", backend);
        let first = echo(replaceable("127.0.0.1:0", &folder, backend).listen("127.0.0.1:0")).unwrap();
        let kept = first.local_addr();
        let dropped = first.listeners()[2].address.socket().unwrap();
        let second = Server::bind("127.0.0.1:0")
            .listen(format!("localhost:{}", kept.port()))
            .backend(backend)
            .handover(Handover::at(folder.upgrade()).drain(LIMIT));
        let second = echo(second).unwrap();
        first.wait().unwrap();
        assert_eq!(second.listeners()[1].address, kept, "by its name");
        let new = second.local_addr();
        assert!(new != kept && new != dropped, "port 0 takes nothing");
        visit(connect_tcp(kept)).unwrap();
        visit(connect_tcp(new)).unwrap();
        connect_tcp(dropped).map(drop).expect_err("nobody listens there any more");
        assert!(!fs::exists(folder.socket()).unwrap());
        second.stop().wait().unwrap();
    }
}

#[test]
fn a_successor_that_cannot_start_changes_nothing() {
    const NAME: &str = "a_successor_that_cannot_start_changes_nothing";
    for backend in backends(NAME) {
        let _watchdog = Watchdog::new(NAME);
        let folder = Folder::new("cannot", backend);
        let server = echo(replaceable("127.0.0.1:0", &folder, backend)).unwrap();
        let address = server.local_addr();
        let load = Load::new(address, &folder.socket());
        load.go_on();
        for _ in 0..3 {
            let successor = replaceable(&address.to_string(), &folder, backend);
            let error = echo(successor.listen(&*unix(Path::new("/nonexistent/socket")))).unwrap_err();
            assert!(error.to_string().starts_with("listen on unix:/nonexistent/socket: "), "{error}");
            load.go_on();
        }
        let visits = load.end();
        assert_eq!(server.drain(LIMIT).wait().unwrap().accepted, visits);
    }
}

#[test]
fn a_taken_listener_is_only_paused_when_the_server_is_suspended() {
    const NAME: &str = "a_taken_listener_is_only_paused_when_the_server_is_suspended";
    for backend in backends(NAME) {
        let _watchdog = Watchdog::new(NAME);
        let folder = Folder::new("suspended", backend);
        let first = echo(replaceable("127.0.0.1:0", &folder, backend)).unwrap();
        let address = first.local_addr().to_string();
        let (paused, is_paused) = mpsc::channel();
        let note = move |event: &ServerEvent<'_>| {
            if matches!(event, ServerEvent::Suspended { .. }) {
                paused.send(()).unwrap();
            }
        };
        let second = echo(replaceable(&address, &folder, backend).watch(note)).unwrap();
        first.wait().unwrap();
        second.suspend();
        is_paused.recv_timeout(LIMIT).unwrap();
        let mut waits = connect_tcp(second.local_addr()).unwrap();
        // And what is paused can still be handed over.
        let third = echo(replaceable(&address, &folder, backend)).unwrap();
        second.wait().unwrap();
        ping(&mut *waits).unwrap();
        drop(waits);
        visit(connect_unix(&folder.socket())).unwrap();
        third.drain(LIMIT).wait().unwrap();
    }
}

#[test]
fn a_suspended_server_hands_over_what_it_has_not_closed() {
    const NAME: &str = "a_suspended_server_hands_over_what_it_has_not_closed";
    for backend in backends(NAME) {
        let _watchdog = Watchdog::new(NAME);
        let folder = Folder::new("closed", backend);
        let first = echo(replaceable(&format!("{HOST}:0"), &folder, backend)).unwrap();
        let address = first.local_addr();
        first.suspend();
        while TcpStream::connect(address).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
        let second = echo(replaceable(&address.to_string(), &folder, backend)).unwrap();
        first.wait().unwrap();
        visit(connect_tcp(address)).unwrap();
        visit(connect_unix(&folder.socket())).unwrap();
        second.drain(LIMIT).wait().unwrap();
    }
}

#[test]
fn a_predecessor_that_does_not_answer_is_an_error_after_a_while() {
    let folder = Folder::new("hangs", Backend::Readiness);
    let _hangs = UnixListener::bind(folder.upgrade()).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let within = Duration::from_millis(80);
    let start = || {
        let server = Server::bind(port).workers(1);
        server.handover(Handover::at(folder.upgrade()).within(within)).start(|conn| Echo.run(conn))
    };
    let told = format!("take over from {}: timed out after 80ms", folder.upgrade().display());
    let error = start().unwrap_err();
    assert_eq!((error.to_string(), error.kind()), (told.clone(), ErrorKind::Timeout));
    TcpStream::connect(port).expect_err("it has not listened meanwhile");

    // Nor if its backlog is full.
    let full = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    fs::remove_file(folder.upgrade()).unwrap();
    full.bind(&socket2::SockAddr::unix(folder.upgrade()).unwrap()).unwrap();
    full.listen(0).unwrap();
    let _first = UnixStream::connect(folder.upgrade()).unwrap();
    let _hangs = full;
    assert_eq!(start().unwrap_err().to_string(), told);
}

#[test]
fn a_predecessor_that_makes_no_sense_is_an_error() {
    let folder = Folder::new("nonsense", Backend::Readiness);
    let listener = UnixListener::bind(folder.upgrade()).unwrap();
    let answers: [(&[u8], &str); 5] = [
        (b"HTTP/1.1 400 Bad\r\n", "what answers is no server with a hand-over"),
        (b"WHARF\x02\x02\0\0\0\0\0\0\0\0\0", "it speaks version 2 of the hand-over, not 1"),
        (b"WHARF\x01\x02\0\x02\0\0\0\0\0\0\0", "it does not offer what it says"),
        (b"WHARF\x01\x04\0\0\0\0\0\0\0\0\0", "it has gone without an answer"),
        (b"", "it has gone without an answer"),
    ];
    let answering = thread::spawn(move || {
        for (answer, _) in answers {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 16]).unwrap();
            stream.write_all(answer).unwrap();
        }
    });
    for (_, problem) in answers {
        let server = Server::bind("127.0.0.1:0").workers(1).handover(Handover::at(folder.upgrade()));
        let error = server.start(|conn| Echo.run(conn)).unwrap_err();
        let told = format!("take over from {}: {problem}", folder.upgrade().display());
        assert_eq!((error.to_string(), error.kind()), (told, ErrorKind::System));
    }
    answering.join().unwrap();
}

#[test]
fn nonsense_at_the_upgrade_socket_is_passed_over() {
    const NAME: &str = "nonsense_at_the_upgrade_socket_is_passed_over";
    for backend in backends(NAME) {
        let _watchdog = Watchdog::new(NAME);
        let folder = Folder::new("garbage", backend);
        let first = echo(replaceable("127.0.0.1:0", &folder, backend)).unwrap();
        let garbage: [&[u8]; 5] = [
            b"",
            b"x",
            b"GET / HTTP/1.1\r\n\r\n",
            b"WHARF\x01\x03\0\xff\xff\xff\xff\xff\xff\xff\xff",
            b"WHARF\x09\x01\0\0\0\0\0\0\0\0\0",
        ];
        for bytes in garbage {
            let mut stream = UnixStream::connect(folder.upgrade()).unwrap();
            stream.write_all(bytes).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            // It may be closed before all of it was read.
            drop(stream.read_to_end(&mut Vec::new()));
        }
        assert_eq!(first.phase(), Phase::Serving);
        let second = echo(replaceable(&first.local_addr().to_string(), &folder, backend)).unwrap();
        first.wait().unwrap();
        visit(connect_tcp(second.local_addr())).unwrap();
        second.drain(LIMIT).wait().unwrap();
    }
}

#[test]
fn an_upgrade_socket_that_was_left_behind_is_nobodys() {
    let folder = Folder::new("abandoned", Backend::Readiness);
    drop(UnixListener::bind(folder.upgrade()).unwrap());
    let server = Server::bind("127.0.0.1:0").workers(1).handover(Handover::at(folder.upgrade()));
    let server = server.start(|conn| Echo.run(conn)).unwrap();
    server.stop().wait().unwrap();
    assert!(!fs::exists(folder.upgrade()).unwrap(), "its file goes with the server");
}

#[test]
fn a_server_on_the_calling_thread_is_replaced_as_well() {
    let _watchdog = Watchdog::new("a_server_on_the_calling_thread_is_replaced_as_well");
    let folder = Folder::new("calling", Backend::Readiness);
    let run = |listen: &str, started: fn(&ServerHandle)| {
        let server = replaceable(listen, &folder, Backend::Readiness).workers(1);
        server.run(|conn: Connection| Echo.run(conn), started).unwrap()
    };
    let first = echo(replaceable("127.0.0.1:0", &folder, Backend::Readiness)).unwrap();
    let stats = run(&first.local_addr().to_string(), |server| {
        let (server, address) = (server.clone(), server.local_addr());
        thread::spawn(move || {
            visit(connect_tcp(address)).unwrap();
            server.drain(LIMIT);
        });
    });
    // Until the first one has heard of it, both accept.
    assert_eq!(stats.accepted + first.wait().unwrap().accepted, 1);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let mut simulation = Simulation::new(1);
    let server = Server::bind("10.0.0.1:80").handover(Handover::at("/x"));
    let error = simulation.serve(server, |conn| Echo.run(conn)).unwrap_err();
    assert_eq!(error.to_string(), "start: option `handover` is not there on a simulated network");
    let refused = |handover: Handover| {
        let server = Server::bind("127.0.0.1:0").handover(handover);
        server.start(|conn| Echo.run(conn)).unwrap_err().to_string()
    };
    assert_eq!(refused(Handover::at("")), "start: option `handover` needs a path");
    let at_once = Handover::at("/x").within(Duration::ZERO);
    assert!(refused(at_once).contains("`handover` must leave"));
    let long = refused(Handover::at(format!("/{}", "x".repeat(200))));
    assert!(long.starts_with("take over from /xxx"), "{long}");
}
