//! What a server has to hold, with figures: floods of connects, no descriptors, handlers that panic.
//!
//! Beside the library's scenarios these are large, and run on real networks only.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking; a child talks to its parent"
)]

mod common;

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use wharf::{
    Backend, CloseReason, Connection, Limits, OverLimit, Rule, Server, ServerEvent, ServerHandle, Stats,
};

use common::behaviours::{Echo, Moody};
use common::child::{child, processor_time, role, told};
use common::{Behaviour, Watchdog, backends, raise_descriptor_limit};

const EVENT: [bool; 2] = [false, true];

fn serve(server: Server, behaviour: impl Behaviour, event_style: bool) -> ServerHandle {
    if event_style {
        server.start_events(move || behaviour.clone().handler()).unwrap()
    } else {
        server.start(move |conn| behaviour.clone().run(conn)).unwrap()
    }
}

/// Waits for what happens by itself soon.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "still not so: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn ended(stats: &Stats) -> u64 {
    stats.closes.iter().map(|(_, count)| count).sum()
}

/// Says hello, then waits for the end.
#[derive(Clone)]
struct Greet;

impl Behaviour for Greet {
    type Handler = Greet;

    async fn run(self, mut conn: Connection) -> wharf::Result<()> {
        conn.send(b"h").await?;
        while conn.recv(&mut [0; 16]).await? > 0 {}
        Ok(())
    }

    fn handler(self) -> Greet {
        self
    }
}

impl wharf::event::Handler for Greet {
    fn connected(&mut self, conn: &mut wharf::event::Connection<'_>) -> wharf::event::Flow {
        conn.send(b"h").expect("an empty queue has room");
        wharf::event::Flow::Continue
    }

    fn received(&mut self, _: &mut wharf::event::Connection<'_>, _: &[u8]) -> wharf::event::Flow {
        wharf::event::Flow::Continue
    }
}

#[test]
fn twenty_thousand_connects_never_pass_a_limit_of_a_thousand() {
    const NAME: &str = "twenty_thousand_connects_never_pass_a_limit_of_a_thousand";
    const LIMIT: usize = 1000;
    const THREADS: usize = 8;
    const EACH: usize = 2500;
    let _watchdog = Watchdog::patient(NAME, Duration::from_secs(240));
    raise_descriptor_limit();
    for (backend, event_style) in backends(NAME).into_iter().flat_map(|each| EVENT.map(|style| (each, style)))
    {
        let most = Arc::new(AtomicUsize::new(0));
        let handle: Arc<std::sync::OnceLock<ServerHandle>> = Arc::default();
        let (seen, looking) = (most.clone(), handle.clone());
        let server = Server::bind("127.0.0.1:0")
            .workers(2)
            .backend(backend)
            .limits(Limits::default().connections(LIMIT).over_limit(OverLimit::Reset))
            .watch(move |event| {
                if matches!(event, ServerEvent::Opened { .. })
                    && let Some(server) = looking.get()
                {
                    seen.fetch_max(server.connections(), Ordering::SeqCst);
                }
            });
        let server = serve(server, Greet, event_style);
        handle.set(server.clone()).unwrap();
        let address = server.local_addr();
        let greeted = Arc::new(AtomicU64::new(0));
        let clients: Vec<_> = (0..THREADS)
            .map(|_| {
                let greeted = greeted.clone();
                thread::spawn(move || {
                    // More than its share of the limit, so that the server is full most of the time.
                    let mut held = std::collections::VecDeque::new();
                    for _ in 0..EACH {
                        let Ok(mut stream) = TcpStream::connect(address) else { continue };
                        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                        if let Ok(()) = stream.read_exact(&mut [0; 1]) {
                            greeted.fetch_add(1, Ordering::SeqCst);
                            held.push_back(stream);
                        }
                        if held.len() > 2 * LIMIT / THREADS {
                            held.drain(..LIMIT / THREADS);
                        }
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        wait_until("all have ended", || server.connections() == 0);
        drop(handle);
        let stats = server.drain(Duration::from_secs(5)).wait().unwrap();
        let total = (THREADS * EACH) as u64;
        assert_eq!(
            stats.accepted + stats.refused_by(Rule::Connections),
            total,
            "{backend} {event_style}: {stats:?}"
        );
        assert_eq!(stats.refusals(), stats.refused_by(Rule::Connections), "{stats:?}");
        assert_eq!(stats.accepted, greeted.load(Ordering::SeqCst), "whom it let in, it served: {stats:?}");
        assert!(stats.refusals() > 0, "the limit was reached");
        assert_eq!(ended(&stats), stats.accepted, "none leaked: {stats:?}");
        let most = most.load(Ordering::SeqCst);
        assert!(most <= LIMIT && most > LIMIT / 2, "{most} at once");
    }
}

#[test]
fn handlers_that_panic_in_one_of_ten_connections_disturb_nobody_else() {
    const NAME: &str = "handlers_that_panic_in_one_of_ten_connections_disturb_nobody_else";
    const THREADS: usize = 8;
    const CONNECTIONS: usize = 100;
    const ROUNDS: usize = 20;
    let _watchdog = Watchdog::patient(NAME, Duration::from_secs(120));
    // What they say is expected.
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.to_string();
        if !message.contains("as told by the peer") {
            let _ = writeln!(std::io::stderr(), "{message}");
        }
    }));
    for (backend, event_style) in backends(NAME).into_iter().flat_map(|each| EVENT.map(|style| (each, style)))
    {
        let told = Arc::new(AtomicU64::new(0));
        let counting = told.clone();
        let server = Server::bind("127.0.0.1:0").workers(2).backend(backend).watch(move |event| {
            if let ServerEvent::Panicked { message, .. } = event {
                assert_eq!(*message, "as told by the peer");
                counting.fetch_add(1, Ordering::SeqCst);
            }
        });
        let server = serve(server, Moody, event_style);
        let address = server.local_addr();
        let clients: Vec<_> = (0..THREADS)
            .map(|_| {
                thread::spawn(move || {
                    for n in 0..CONNECTIONS {
                        let mut stream = TcpStream::connect(address).unwrap();
                        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                        let panics = n % 10 == 0;
                        for round in 0..ROUNDS {
                            let message = [b'x', n as u8, round as u8];
                            stream.write_all(&message).unwrap();
                            let mut answer = [0; 3];
                            stream.read_exact(&mut answer).unwrap();
                            assert_eq!(answer, message);
                            if panics && round == ROUNDS / 2 {
                                stream.write_all(b"p").unwrap();
                                let end = stream.read(&mut [0; 1]);
                                assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
                                break;
                            }
                        }
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        let stats = server.drain(Duration::from_secs(5)).wait().unwrap();
        let panics = (THREADS * CONNECTIONS / 10) as u64;
        assert_eq!((stats.panics, told.load(Ordering::SeqCst)), (panics, panics), "{stats:?}");
        assert_eq!(stats.closed(CloseReason::HandlerPanicked), panics, "{stats:?}");
        assert_eq!((ended(&stats), server.connections()), (stats.accepted, 0), "{stats:?}");
        assert_eq!(stats.accepted, (THREADS * CONNECTIONS) as u64);
    }
    drop(std::panic::take_hook());
}

/// As few as a shell may leave a process.
const DESCRIPTORS: u64 = 64;

/// The server's process: serves with few descriptors until its parent closes its input.
fn serve_with_few_descriptors(backend: Backend, over: OverLimit) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), maximum }).unwrap();
    let limits = Limits::default().connections(1000).over_limit(over);
    let server = Server::bind("127.0.0.1:0").workers(2).backend(backend).limits(limits);
    let server = serve(server, Echo, false);
    println!("\nlistening {}", server.local_addr());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let stats = server.drain(Duration::from_secs(5)).wait().unwrap();
    println!("\nshed {} errors {}", stats.refused_by(Rule::Descriptors), stats.accept_errors);
}

/// For how long the server is pressed: `WHARF_PRESS_SECONDS`, or three.
fn pressing() -> Duration {
    let seconds = std::env::var("WHARF_PRESS_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

fn is_served(stream: &mut TcpStream) -> bool {
    stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut [0; 4])).is_ok()
}

/// Five hundred clients, of whom the server has descriptors for some fifty.
fn is_pressed(name: &str, backend: Backend, over: OverLimit) {
    let _watchdog = Watchdog::patient(name, pressing() * 4 + Duration::from_secs(60));
    let mut child = child(name, backend);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let address: SocketAddr = told(&mut output, "listening").parse().unwrap();
    let connect = move || {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok::<_, std::io::Error>(stream)
    };
    let mut live: Vec<_> = (0..10).map(|_| connect().unwrap()).collect();
    for stream in &mut live {
        assert!(is_served(stream));
    }
    let over_now = Arc::new(AtomicBool::new(false));
    let pressers: Vec<_> = (0..10)
        .map(|_| {
            let over_now = over_now.clone();
            thread::spawn(move || {
                let mut held: Vec<_> = (0..49).filter_map(|_| connect().ok()).collect();
                while !over_now.load(Ordering::SeqCst) {
                    // Who was turned away comes back, as clients do: a hundred in a second.
                    held.pop();
                    held.extend(connect().ok());
                    thread::sleep(Duration::from_millis(100));
                }
            })
        })
        .collect();
    // Only what it uses while it has no descriptors counts, and by then they are gone: a shorter time measures more, not less.
    thread::sleep(Duration::from_millis(300));
    let (began, before) = (Instant::now(), processor_time(child.id()));
    let mut rounds = 0;
    while began.elapsed() < pressing() {
        for stream in &mut live {
            assert!(is_served(stream), "who is connected is served");
        }
        rounds += 1;
        thread::sleep(Duration::from_millis(50));
    }
    let used = processor_time(child.id()) - before;
    let share = used as f64 / began.elapsed().as_secs_f64();
    over_now.store(true, Ordering::SeqCst);
    pressers.into_iter().for_each(|presser| presser.join().unwrap());
    println!("{backend} {over:?}: {share:.1} % of a processor, {rounds} rounds");
    assert!(share < 5.0, "{backend} {over:?}: {share:.1} % of a processor");
    // All over, newcomers are served again.
    wait_until("a newcomer is served", || connect().is_ok_and(|mut newcomer| is_served(&mut newcomer)));
    drop(live);
    drop(child.stdin.take());
    let shed = told(&mut output, "shed");
    let (shed, errors) = shed.split_once(" errors ").unwrap();
    assert!(errors.parse::<u64>().unwrap() > 0, "it did run out");
    assert_eq!(shed.parse::<u64>().unwrap() > 0, over != OverLimit::Queue, "{over:?} sheds {shed}");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_server_without_descriptors_rests_and_serves_those_it_has() {
    const NAME: &str = "a_server_without_descriptors_rests_and_serves_those_it_has";
    match role() {
        Some(backend) => serve_with_few_descriptors(backend, OverLimit::Queue),
        None => backends(NAME).into_iter().for_each(|backend| is_pressed(NAME, backend, OverLimit::Queue)),
    }
}

#[test]
fn a_server_without_descriptors_can_turn_away_those_who_wait() {
    const NAME: &str = "a_server_without_descriptors_can_turn_away_those_who_wait";
    match role() {
        Some(backend) => serve_with_few_descriptors(backend, OverLimit::Reset),
        None => backends(NAME).into_iter().for_each(|backend| is_pressed(NAME, backend, OverLimit::Reset)),
    }
}
