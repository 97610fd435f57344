//! A server that runs out of descriptors, and what a process has open when all is over.
//!
//! Descriptors and their limit belong to a process, so each test runs its server in a process of its own: this test
//! binary again, with a role in its environment.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking; a child talks to its parent"
)]

mod common;

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use wharf::blocking::{self, Listener};
use wharf::{Backend, Client, ErrorKind, Limits, Server};

use common::behaviours::Echo;
use common::child::{alone, child, processor_time, role, told};
use common::{Behaviour, Watchdog, backends};

const DESCRIPTORS: u64 = 40;

/// The server's process: serves with few descriptors until its parent closes its input.
fn serve_with_few_descriptors(backend: Backend, event_style: bool) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), maximum }).unwrap();
    let limits = Limits::default().connections(1000);
    let server = Server::bind("127.0.0.1:0").workers(2).backend(backend).limits(limits);
    let server = if event_style {
        server.start_events(|| Echo).unwrap()
    } else {
        server.start(|conn| Echo.run(conn)).unwrap()
    };
    println!("\nlistening {}", server.local_addr());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let stats = server.drain(Duration::from_secs(5)).wait().unwrap();
    println!("\naccept_errors {} accepted {}", stats.accept_errors, stats.accepted);
}

/// The same in blocking style, which has no backend.
fn serve_blocking_with_few_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), maximum }).unwrap();
    let server = Listener::bind("127.0.0.1:0").unwrap().threads(1000).unwrap();
    let server = server.serve(|mut conn: blocking::Connection| {
        let mut buf = [0; 64];
        loop {
            match conn.recv(&mut buf)? {
                0 => return Ok(()),
                n => conn.send(&buf[..n])?,
            }
        }
    });
    let server = server.unwrap();
    println!("\nlistening {}", server.local_addr());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let stats = server.drain(Duration::from_secs(5)).wait().unwrap();
    println!("\naccept_errors {} accepted {}", stats.accept_errors, stats.accepted);
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])
}

fn survives(name: &str, backend: Backend) {
    let _watchdog = Watchdog::new(name);
    let mut child = child(name, backend);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let address: SocketAddr = told(&mut output, "listening").parse().unwrap();
    let connect = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    };
    // More than the server has descriptors for: the rest is accepted by the kernel, and waits.
    let mut streams: Vec<_> = (0..DESCRIPTORS + 20).map(|_| connect()).collect();
    ping(&mut streams[0]).unwrap();
    let before = processor_time(child.id());
    // Processor time that is not used can only be seen over some time.
    std::thread::sleep(Duration::from_millis(500));
    let used = processor_time(child.id()) - before;
    assert!(used <= 10, "it waits and does not spin: {used} hundredths of a second in half of one");
    for stream in &mut streams[..15] {
        ping(stream).unwrap();
    }
    // Those who wait are served when others leave.
    let mut waiting = streams.split_off(40);
    drop(streams);
    for stream in &mut waiting {
        ping(stream).unwrap();
    }
    drop(waiting);
    drop(child.stdin.take());
    let told = told(&mut output, "accept_errors");
    let (errors, accepted) = told.split_once(" accepted ").unwrap();
    assert!(errors.parse::<u64>().unwrap() > 0, "it did run out");
    assert_eq!(accepted.parse::<u64>().unwrap(), DESCRIPTORS + 20);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_server_out_of_descriptors_goes_on_async() {
    const NAME: &str = "a_server_out_of_descriptors_goes_on_async";
    match role() {
        Some(backend) => serve_with_few_descriptors(backend, false),
        None => backends(NAME).into_iter().for_each(|backend| survives(NAME, backend)),
    }
}

#[test]
fn a_server_out_of_descriptors_goes_on_event() {
    const NAME: &str = "a_server_out_of_descriptors_goes_on_event";
    match role() {
        Some(backend) => serve_with_few_descriptors(backend, true),
        None => backends(NAME).into_iter().for_each(|backend| survives(NAME, backend)),
    }
}

#[test]
fn a_server_out_of_descriptors_goes_on_blocking() {
    const NAME: &str = "a_server_out_of_descriptors_goes_on_blocking";
    match role() {
        Some(_) => serve_blocking_with_few_descriptors(),
        None => survives(NAME, Backend::Readiness),
    }
}

#[test]
fn nothing_stays_open_when_blocking_connections_are_over() {
    alone("nothing_stays_open_when_blocking_connections_are_over", |_| {
        // The thread that sees connections off has two of its own while it is there: here it begins.
        let lingering = || {
            let mut listener = Listener::bind("127.0.0.1:0").unwrap();
            let near = blocking::connect(listener.local_addr()).unwrap();
            let far = listener.accept().unwrap();
            drop(near);
            drop(far);
        };
        lingering();
        let before = open_descriptors();
        for _ in 0..20 {
            lingering();
        }
        await_descriptors(|open| open <= before);
    });
}

/// Waits until so many are open; what lingers is closed when its peer has ended.
fn await_descriptors(are_so_many: impl Fn(usize) -> bool) {
    let began = std::time::Instant::now();
    while !are_so_many(open_descriptors()) {
        assert!(began.elapsed() < Duration::from_secs(20), "{} stay open", open_descriptors());
        std::thread::yield_now();
    }
}

#[test]
fn nothing_stays_open_when_all_is_over() {
    alone("nothing_stays_open_when_all_is_over", |backend| {
        let before = open_descriptors();
        for round in 0..5 {
            let server =
                Server::bind("127.0.0.1:0").workers(3).backend(backend).start(|conn| Echo.run(conn)).unwrap();
            let address = server.local_addr();
            wharf::run_on(backend, async move {
                let mut conns = Vec::new();
                for _ in 0..20 {
                    // One that is given up at once, and one that stays.
                    drop(Client::connect(address).within(Duration::from_micros(1)).await);
                    let mut conn = Client::connect(address).await.unwrap();
                    conn.send(b"hello").await.unwrap();
                    conn.recv_exact(&mut [0; 5]).await.unwrap();
                    conns.push(conn);
                }
                if round % 2 == 0 {
                    for conn in &mut conns {
                        conn.reset();
                    }
                }
            })
            .unwrap();
            server.drain(Duration::from_secs(5)).wait().unwrap();
            let gone =
                wharf::run_on(backend, async move { Client::connect(address).await.unwrap_err() }).unwrap();
            assert!(gone.is_refused(), "{gone}");
        }
        await_descriptors(|open| open == before);
    });
}

#[test]
fn connections_that_outlive_their_run_keep_no_descriptors() {
    alone("connections_that_outlive_their_run_keep_no_descriptors", |backend| {
        let before = open_descriptors();
        let server =
            Server::bind("127.0.0.1:0").workers(1).backend(backend).start(|conn| Echo.run(conn)).unwrap();
        let address = server.local_addr();
        for _ in 0..5 {
            let connect = || async move { Client::connect(address).await.unwrap() };
            let (_read, write) = wharf::run_on(backend, async move { connect().await.split() }).unwrap();
            drop(write);
            drop(wharf::run_on(backend, connect()).unwrap());
        }
        server.drain(Duration::from_secs(5)).wait().unwrap();
        drop(server);
        await_descriptors(|open| open == before);
    });
}

#[test]
fn a_start_without_descriptors_fails_with_the_cause_and_leaves_nothing() {
    alone("a_start_without_descriptors_fails_with_the_cause_and_leaves_nothing", |backend| {
        let before = open_descriptors();
        let limit = getrlimit(Resource::Nofile);
        let mut started = 0;
        // The look at /proc has needed one more.
        for spare in 0..20 {
            let few = Rlimit { current: Some((before - 1 + spare) as u64), ..limit };
            setrlimit(Resource::Nofile, few).unwrap();
            let (tell, exits) = mpsc::channel();
            let server = Server::bind("127.0.0.1:0").workers(4).backend(backend);
            let server = server.on_exit(move |_| tell.send(()).unwrap());
            let outcome = server.start(|conn| Echo.run(conn));
            let ran = wharf::run_on(backend, async { Client::connect("127.0.0.1:1").await.unwrap_err() });
            setrlimit(Resource::Nofile, limit).unwrap();
            match outcome {
                Ok(server) => {
                    started += 1;
                    server.stop().wait().unwrap();
                    assert_eq!(exits.try_iter().count(), 1);
                }
                Err(error) => {
                    assert_eq!(exits.try_iter().count(), 0, "it has not started");
                    assert_eq!(error.kind(), ErrorKind::System, "{error}");
                    assert!(error.to_string().contains("too many open files"), "{error}");
                }
            }
            match ran {
                Ok(refused) if refused.is_refused() => {}
                Ok(error) | Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::System, "{error}");
                    assert!(error.to_string().contains("too many open files"), "{error}");
                }
            }
            await_descriptors(|open| open == before);
        }
        assert!(started > 0 && started < 20, "{started}");
    });
}
