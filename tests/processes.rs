//! A server's process that is stopped, has children, cannot get threads, and is told by the kernel that it cannot accept.
//!
//! All of that concerns a whole process, so each test runs its server in one of its own: this test binary again, with a
//! role in its environment. Where system calls have to fail, or signals to be seen, strace does that.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking; a child talks to its parent"
)]

mod common;

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use wharf::{Backend, CloseReason, Deadline, Deadlines, Server, ServerEvent, ServerHandle};

use common::behaviours::Echo;
use common::child::{alone, child, child_under, processor_time, role, told};
use common::{Behaviour, Watchdog, backends, raise_descriptor_limit};

fn echo(server: Server) -> wharf::Result<ServerHandle> {
    server.start(|conn| Echo.run(conn))
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

fn ping(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])
}

fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(40), "still not so: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A child that serves until its input ends.
struct Served {
    child: Child,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Served {
    fn of(mut child: Child) -> Served {
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let address = told(&mut output, "listening").parse().unwrap();
        Served { child, output, address }
    }

    /// Has it end, and passes on what it tells then.
    fn end(mut self) -> String {
        drop(self.child.stdin.take());
        let told = told(&mut self.output, "ended");
        assert!(self.child.wait().unwrap().success());
        told
    }
}

/// What the child of [`Served`] does: `tell` says how the server was.
fn serve(server: Server, tell: impl FnOnce(&ServerHandle) -> String) {
    let server = echo(server).unwrap();
    println!("\nlistening {}", server.local_addr());
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
    server.drain(Duration::from_secs(5)).wait().unwrap();
    println!("\nended {}", tell(&server));
}

/// SIGSTOP, then SIGCONT: deadlines that passed meanwhile end their connections once, and who has spoken meanwhile stays.
#[test]
fn a_process_that_was_stopped_for_a_while_ends_the_silent_and_goes_on_with_the_others() {
    const NAME: &str = "a_process_that_was_stopped_for_a_while_ends_the_silent_and_goes_on_with_the_others";
    let idle = Duration::from_secs(2);
    if let Some(backend) = role() {
        let deadlines = Deadlines::default().idle(idle);
        let server = Server::bind("127.0.0.1:0").workers(2).backend(backend).deadlines(deadlines);
        return serve(server, |server| {
            let stats = server.stats();
            format!("{} of {}", stats.closed(CloseReason::Timeout(Deadline::Idle)), stats.accepted)
        });
    }
    for backend in backends(NAME) {
        let _watchdog = Watchdog::new(NAME);
        let served = Served::of(child(NAME, backend));
        let mut streams: Vec<_> = (0..20).map(|_| connect(served.address)).collect();
        streams.iter_mut().for_each(|stream| ping(stream).unwrap());
        let mut alive = streams.split_off(10);
        let process = Pid::from_child(&served.child);
        kill_process(process, Signal::STOP).unwrap();
        until("it stands", || is_stopped(served.child.id()));
        for stream in &mut alive {
            stream.write_all(b"ping").unwrap();
        }
        let mut late = connect(served.address);
        late.write_all(b"late").unwrap();
        // That is what is tested: time that passes while the process does not run.
        thread::sleep(idle + idle / 4);
        kill_process(process, Signal::CONT).unwrap();
        for stream in alive.iter_mut().chain([&mut late]) {
            stream.read_exact(&mut [0; 4]).expect("it has spoken in time");
            ping(stream).unwrap();
        }
        for stream in &mut streams {
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "it was silent for too long");
        }
        drop((streams, alive, late));
        assert_eq!(served.end(), "10 of 21", "{backend}");
    }
}

/// Whether each thread of a process stands: the signal has returned before that.
fn is_stopped(process: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut stats = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap());
    stats.all(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
}

/// fork and exec: the ring, the sockets and the wake descriptors of a server are not its children's.
#[test]
fn children_inherit_no_descriptor() {
    alone("children_inherit_no_descriptor", |backend| {
        // A child sees its three streams, and the folder that it lists.
        let inherited = || {
            let output = Command::new("ls").arg("/proc/self/fd").stdin(Stdio::null()).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let before = inherited();
        let server = echo(
            Server::bind("127.0.0.1:0")
                .listen(format!("unix:@wharf-children-{}", std::process::id()))
                .workers(2)
                .backend(backend)
                .spin(Duration::ZERO),
        )
        .unwrap();
        let mut streams: Vec<_> = (0..4).map(|_| connect(server.local_addr())).collect();
        streams.iter_mut().for_each(|stream| ping(stream).unwrap());
        let address = server.local_addr();
        let seen = wharf::run_on(backend, async move {
            let mut conn = wharf::Client::connect(address).await.unwrap();
            conn.send(b"x").await.unwrap();
            conn.recv_exact(&mut [0; 1]).await.unwrap();
            inherited()
        });
        assert_eq!(seen.unwrap(), before);
        drop(streams);
        server.drain(Duration::from_secs(5)).wait().unwrap();
    });
}

/// How many idle connections both ends of which fit into one process, at most five thousand.
fn idle_connections() -> usize {
    raise_descriptor_limit();
    let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
    5000.min((limit - 200) / 2)
}

/// A second SIGTERM
#[test]
fn five_thousand_idle_connections_are_gone_at_the_second_word() {
    alone("five_thousand_idle_connections_are_gone_at_the_second_word", |backend| {
        let count = idle_connections();
        let server = echo(Server::bind("127.0.0.1:0").workers(2).backend(backend)).unwrap();
        let mut streams: Vec<_> = (0..count).map(|_| connect(server.local_addr())).collect();
        until("all are let in", || server.connections() == count);
        server.drain(Duration::from_secs(3600));
        until("it refuses", || TcpStream::connect(server.local_addr()).is_err());
        // Who came just before that is let in, and on the way out.
        until("they are alone", || server.connections() == count);
        ping(&mut streams[count / 2]).unwrap();
        assert!(!server.is_stopped(), "they may stay for an hour");
        let second = Instant::now();
        let stats = server.stop().wait().unwrap();
        assert!(second.elapsed() < Duration::from_secs(60), "not an hour: {:?}", second.elapsed());
        assert_eq!(stats.closed(CloseReason::Shutdown), count as u64, "{stats:?}");
        assert_eq!(stats.drain.reset, count as u64, "{stats:?}");
    });
}

/// A server needs no connection of its own to end.
#[test]
fn a_server_ends_when_not_one_more_socket_can_be_opened() {
    alone("a_server_ends_when_not_one_more_socket_can_be_opened", |backend| {
        let server = echo(Server::bind("127.0.0.1:0").workers(2).backend(backend)).unwrap();
        let mut stream = connect(server.local_addr());
        ping(&mut stream).unwrap();
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
        assert!(TcpStream::connect(server.local_addr()).is_err());
        drop(stream);
        let stats = server.drain(Duration::from_secs(10)).wait().unwrap();
        setrlimit(Resource::Nofile, limit).unwrap();
        assert_eq!(stats.closed(CloseReason::Peer), 1, "{stats:?}");
    });
}

/// A process under strace, with these options and a file for what it sees; `None`, and a word about it, where that cannot work.
///
/// strace watches from aside (-D), so that the exit code is the child's own.
fn strace(name: &str, backend: Backend, options: &[&str]) -> Option<(Child, PathBuf)> {
    let mut trial = Command::new("strace");
    trial.args(["-f", "-qq", "-o", "/dev/null", "true"]);
    if !trial.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        // Straight to the descriptor, for the test harness swallows what is printed.
        let line = format!("\n*** SKIPPED: {name}: strace is not installed, or may not trace ***\n");
        drop(io::stderr().write_all(line.as_bytes()));
        return None;
    }
    let file = std::env::temp_dir().join(format!("wharf-{}-{name}-{backend}", std::process::id()));
    let mut strace = Command::new("strace");
    strace.args(["-D", "-f", "-qq", "-o"]).arg(&file).args(options);
    Some((child_under(strace, name, backend), file))
}

/// What strace saw. It writes the last of it when the process has ended already.
fn seen(file: &PathBuf, enough: impl Fn(&str) -> bool) -> String {
    let read = || std::fs::read_to_string(file).unwrap();
    until("strace has written", || enough(&read()));
    let all = read();
    std::fs::remove_file(file).unwrap();
    all
}

/// A write behind a reset must not raise SIGPIPE, in programs too that have left it deadly (C hosts do).
///
/// That of a pipe does raise it, and strace sees it although this process ignores it: so it would see others.
#[test]
fn no_write_ever_raises_sigpipe() {
    const NAME: &str = "no_write_ever_raises_sigpipe";
    if let Some(backend) = role() {
        let server = echo(Server::bind("127.0.0.1:0").workers(2).backend(backend)).unwrap();
        let address = server.local_addr();
        wharf::run_on(backend, async move {
            for size in [1, 10_000, 3_000_000] {
                // Who accepts and resets, and who accepts, ends and goes.
                for linger in [Some(Duration::ZERO), None] {
                    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                    let mut conn = wharf::Client::connect(listener.local_addr().unwrap()).await.unwrap();
                    let (accepted, _) = listener.accept().unwrap();
                    let accepted = socket2::Socket::from(accepted);
                    accepted.set_linger(linger).unwrap();
                    drop(accepted);
                    let message = vec![0; size];
                    while conn.send(&message).await.is_ok() && conn.flush().await.is_ok() {}
                    assert!(conn.send(&message).await.is_err());
                }
            }
            // And the server, in the midst of its answer.
            for _ in 0..20 {
                let mut conn = wharf::Client::connect(address).await.unwrap();
                conn.send(&vec![0; 200_000]).await.unwrap();
                conn.recv(&mut [0; 1]).await.unwrap();
                conn.reset().await;
            }
        })
        .unwrap();
        server.drain(Duration::from_secs(5)).wait().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(writer.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        return;
    }
    for backend in backends(NAME) {
        let _watchdog = Watchdog::new(NAME);
        let options = ["-e", "trace=none", "-e", "signal=SIGPIPE"];
        let Some((mut child, file)) = strace(NAME, backend, &options) else { return };
        assert!(child.wait().unwrap().success());
        let all = seen(&file, |all| all.contains("SIGPIPE"));
        assert_eq!(all.matches("SIGPIPE {").count(), 1, "{backend}: {all}");
    }
}

/// What accept(2) can say that is no fault of the listener's: how often in a row, and whether it is told as trouble.
const TRANSIENT: [(&str, usize); 12] = [
    ("EMFILE", 5),
    ("ENFILE", 5),
    ("ENOBUFS", 5),
    ("ENOMEM", 5),
    ("ECONNABORTED", 10),
    ("EPROTO", 10),
    ("ENETDOWN", 10),
    ("EHOSTUNREACH", 10),
    ("ENETUNREACH", 10),
    ("EOPNOTSUPP", 10),
    ("ETIMEDOUT", 5),
    ("EPERM", 10),
];

/// Five injected EMFILE and ENFILE, every transient errno, ten transient errors in a row
#[test]
fn an_accept_that_fails_for_a_while_disturbs_nobody() {
    const NAME: &str = "an_accept_that_fails_for_a_while_disturbs_nobody";
    if let Some(backend) = role() {
        let server = Server::bind("127.0.0.1:0").workers(1).backend(backend);
        return serve(server, |server| {
            let stats = server.stats();
            format!("accepted {} errors {}", stats.accepted, stats.accept_errors)
        });
    }
    for backend in backends(NAME) {
        for (errno, times) in TRANSIENT {
            let _watchdog = Watchdog::new(NAME);
            // One is accepted before. (The attempt that finds nobody is a call too: they fail at whichever comes then.)
            let fault = format!("inject=accept4:error={errno}:when=3..{}", times + 2);
            let Some((child, file)) = strace(NAME, backend, &["-e", "trace=accept4", "-e", &fault]) else {
                return;
            };
            let served = Served::of(child);
            let mut old = connect(served.address);
            ping(&mut old).unwrap();
            let mut new: Vec<_> = (0..3).map(|_| connect(served.address)).collect();
            ping(&mut old).unwrap();
            for stream in &mut new {
                ping(stream).unwrap();
            }
            ping(&mut old).unwrap();
            drop((old, new));
            let told = served.end();
            assert_eq!(told, format!("accepted 4 errors {times}"), "{backend}: {errno}");
            std::fs::remove_file(file).unwrap();
        }
    }
}

/// An errno that does not go away: a firewall's EPERM, for one
#[test]
fn an_accept_that_fails_for_ever_costs_no_time_and_those_who_are_in_nothing() {
    const NAME: &str = "an_accept_that_fails_for_ever_costs_no_time_and_those_who_are_in_nothing";
    if let Some(backend) = role() {
        let server = Server::bind("127.0.0.1:0").workers(1).backend(backend);
        return serve(server, |server| {
            format!("accepted {} errors {}", server.stats().accepted, server.stats().accept_errors)
        });
    }
    for backend in backends(NAME) {
        for errno in ["EPERM", "ECONNABORTED", "EMFILE", "EIO"] {
            let _watchdog = Watchdog::new(NAME);
            let fault = format!("inject=accept4:error={errno}:when=3+");
            let Some((child, file)) = strace(NAME, backend, &["-e", "trace=accept4", "-e", &fault]) else {
                return;
            };
            let served = Served::of(child);
            let mut old = connect(served.address);
            ping(&mut old).unwrap();
            let _waiting: Vec<_> = (0..3).map(|_| connect(served.address)).collect();
            let before = processor_time(served.child.id());
            // Processor time that is not used can only be seen over some time.
            thread::sleep(Duration::from_millis(400));
            let used = processor_time(served.child.id()) - before;
            assert!(used <= 10, "{backend}: {errno}: it spins: {used} hundredths of a second");
            ping(&mut old).unwrap();
            drop(old);
            let told = served.end();
            let errors: usize = told.strip_prefix("accepted 1 errors ").expect(&told).parse().unwrap();
            assert!((2..60).contains(&errors), "{backend}: {errno}: {told}");
            std::fs::remove_file(file).unwrap();
        }
    }
}

/// A listener that is gone
#[test]
fn a_listener_that_breaks_is_told_and_the_others_and_the_connections_go_on() {
    const NAME: &str = "a_listener_that_breaks_is_told_and_the_others_and_the_connections_go_on";
    if let Some(backend) = role() {
        let lost = Arc::new(AtomicUsize::new(0));
        let counting = lost.clone();
        let server = Server::bind("127.0.0.1:0").listen("127.0.0.1:0").workers(1).backend(backend);
        let server = server.watch(move |event| {
            if let ServerEvent::ListenerLost { .. } = event {
                counting.fetch_add(1, Ordering::SeqCst);
            }
        });
        let server = echo(server).unwrap();
        let listeners = server.listeners();
        let other = listeners[1].address.to_string().parse::<SocketAddr>().unwrap();
        println!("\nlistening {}", server.local_addr());
        println!("\nother {other}");
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
        let listeners = server.listeners();
        assert!(listeners[0].lost && !listeners[1].lost, "{listeners:?}");
        server.drain(Duration::from_secs(5)).wait().unwrap();
        println!("\nended {}", lost.load(Ordering::SeqCst));
        return;
    }
    for backend in backends(NAME) {
        for errno in ["EINVAL", "EBADF", "ENOTSOCK"] {
            let _watchdog = Watchdog::new(NAME);
            let fault = format!("inject=accept4:error={errno}:when=3");
            let Some((child, file)) = strace(NAME, backend, &["-e", "trace=accept4", "-e", &fault]) else {
                return;
            };
            let mut served = Served::of(child);
            let other: SocketAddr = told(&mut served.output, "other").parse().unwrap();
            let mut old = connect(served.address);
            ping(&mut old).unwrap();
            // This is the one that breaks it.
            let refused = TcpStream::connect(served.address).and_then(|mut stream| ping(&mut stream));
            assert!(refused.is_err(), "{backend}: {errno}");
            assert_eq!(
                TcpStream::connect(served.address).unwrap_err().kind(),
                io::ErrorKind::ConnectionRefused
            );
            ping(&mut old).unwrap();
            let mut new = connect(other);
            ping(&mut new).unwrap();
            drop((old, new));
            assert_eq!(served.end(), "1", "{backend}: {errno}");
            std::fs::remove_file(file).unwrap();
        }
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// clone3(2) says EAGAIN
#[test]
fn a_thread_that_cannot_be_had_is_an_error_of_the_start_and_leaves_nothing() {
    const NAME: &str = "a_thread_that_cannot_be_had_is_an_error_of_the_start_and_leaves_nothing";
    if let Some(backend) = role() {
        let exits = Arc::new(AtomicUsize::new(0));
        let before = (descriptors(), threads());
        let mut outcomes = String::new();
        for _ in 0..2 {
            let counting = exits.clone();
            let server = Server::bind("127.0.0.1:0").workers(3).backend(backend);
            let server = server.on_exit(move |_| {
                counting.fetch_add(1, Ordering::SeqCst);
            });
            match echo(server) {
                Ok(server) => {
                    server.stop().wait().unwrap();
                    assert_eq!(exits.swap(0, Ordering::SeqCst), 1);
                    outcomes += "started ";
                }
                Err(error) => {
                    assert_eq!(
                        (error.operation(), error.kind()),
                        ("start", wharf::ErrorKind::System),
                        "{error}"
                    );
                    assert!(error.to_string().contains("temporarily unavailable"), "{error}");
                    assert_eq!(exits.load(Ordering::SeqCst), 0, "what did not start does not exit");
                    outcomes += "failed ";
                }
            }
            // A thread that was joined may still be listed for a moment.
            until("its threads are gone", || threads() == before.1);
            until("its descriptors are closed", || descriptors() == before.0);
        }
        println!("\noutcomes {outcomes}");
        return;
    }
    for backend in backends(NAME) {
        // Three workers and the watchdog. (Which of the first calls are the test harness's is its own business.)
        let mut failures = 0;
        for call in 1..=6 {
            let _watchdog = Watchdog::new(NAME);
            let fault = format!("inject=clone3:error=EAGAIN:when={call}");
            let Some((mut child, file)) = strace(NAME, backend, &["-e", "trace=clone3", "-e", &fault]) else {
                return;
            };
            let mut output = BufReader::new(child.stdout.take().unwrap());
            let outcomes = told(&mut output, "outcomes");
            assert!(child.wait().unwrap().success(), "{backend}: {call}: {outcomes}");
            failures += outcomes.matches("failed").count();
            std::fs::remove_file(file).unwrap();
        }
        assert!(failures >= 4, "{backend}: {failures}");
    }
}
