//! The toolkit of completion handlers: a service that has the threads, handlers on job queues, one receive at a time, and one
//! object that waits for many operations.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use wharf::event::{
    self, Callbacks, Completion, Executor, Flow, Handler, Job, JobQueue, PollQueue, Queue, Service, Socket,
};
use wharf::{
    Address, Backend, Client, CloseReason, Connection, Deadline, Deadlines, Error, ErrorKind, Limits,
    Network, Server, ServerHandle, SocketOptions,
};

use super::SOON;
use crate::common::behaviours::{Echo, Hold};
use crate::common::{Behaviour as _, Watchdog, backends};

/// A service, a queue with a thread, and a server to talk with.
struct Rig {
    server: ServerHandle,
    service: Service,
    queue: JobQueue,
}

impl Rig {
    /// With a server that echoes.
    fn new(backend: Backend) -> Rig {
        let server = Server::bind("127.0.0.1:0").backend(backend).workers(1);
        Rig::with(backend, server.start_events(|| Echo).unwrap())
    }

    fn with(backend: Backend, server: ServerHandle) -> Rig {
        let service = Service::new().backend(backend);
        service.start().unwrap();
        Rig { server, service, queue: JobQueue::new("handlers").unwrap() }
    }

    fn client(&self) -> Client {
        Client::new(self.server.local_addr())
    }

    fn socket(&self) -> Socket {
        self.service.socket(&self.client(), &self.queue.queue(), ())
    }

    fn connected(&self) -> Socket {
        let (socket, done) = (self.socket(), Completion::new());
        socket.connect_with(&done).unwrap();
        assert!(done.wait(SOON).unwrap());
        socket
    }

    fn end(self) {
        self.service.stop_and_wait().unwrap();
        self.queue.join().unwrap();
        self.server.drain(SOON).wait().unwrap();
    }
}

/// Runs `test` on each engine.
fn on_each(name: &str, test: impl Fn(Backend)) {
    let _watchdog = Watchdog::patient(name, Duration::from_secs(60));
    backends(name).into_iter().for_each(test);
}

/// Tells how a connect ended.
struct Outcome(mpsc::Sender<Result<Address, Error>>);

impl Handler for Outcome {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.0.send(Ok(conn.peer_addr())).unwrap();
        Flow::Close
    }

    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn connect_failed(&mut self, error: Error) {
        self.0.send(Err(error)).unwrap();
    }
}

/// It knew addresses alone, and no time by which an answer had to come.
#[test]
fn m1_opening_a_connection_returns_at_once_and_its_outcome_comes_once_within_its_deadline() {
    on_each("m1", |backend| {
        let rig = Rig::new(backend);
        let address = rig.server.local_addr();
        let (tell, told) = mpsc::channel();
        rig.service.connect(&rig.client(), Outcome(tell.clone())).unwrap();
        assert_eq!(told.recv_timeout(SOON).unwrap().unwrap(), address);

        let name = format!("server.test:{}", address.port());
        let named = Client::new(&name).resolver(|_| Ok(vec![Ipv4Addr::LOCALHOST.into()]));
        rig.service.connect(&named, Outcome(tell.clone())).unwrap();
        assert_eq!(told.recv_timeout(SOON).unwrap().unwrap(), address);

        // Looking the name up never ends; that is not waited for here, nor for ever there.
        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let hangs = Client::new(&name).connect_within(Duration::from_millis(600)).resolver(move |_| {
            assert!(held.lock().unwrap().recv().is_err());
            Ok(Vec::new())
        });
        let began = Instant::now();
        rig.service.connect(&hangs, Outcome(tell.clone())).unwrap();
        assert!(told.try_recv().is_err());
        let late = told.recv_timeout(SOON).unwrap().unwrap_err();
        assert!(late.is_timeout() && began.elapsed() >= Duration::from_millis(600), "{late}");
        drop(release);

        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        rig.service.connect(&Client::new(nobody), Outcome(tell.clone())).unwrap();
        let refused = told.recv_timeout(SOON).unwrap().unwrap_err();
        assert!(refused.is_refused(), "{refused}");
        let unreadable = rig.service.connect(&Client::new("no port"), Outcome(tell)).unwrap_err();
        assert_eq!(unreadable.kind(), ErrorKind::Caller, "{unreadable}");
        rig.end();
        assert!(told.try_recv().is_err(), "each outcome is told once");
    });
}

#[test]
fn m2_a_server_accepts_only_when_started_and_its_handler_gets_each_connection_once() {
    on_each("m2", |backend| {
        let place = TcpListener::bind("127.0.0.21:0").unwrap().local_addr().unwrap();
        let server = Server::bind(place).backend(backend).workers(2);
        let early = std::net::TcpStream::connect(place).unwrap_err();
        assert_eq!(
            early.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "it is described, and does not listen"
        );
        let (tell, told) = mpsc::channel();
        let server = server.start_events(move || Outcome(tell.clone())).unwrap();
        let peers: HashSet<_> = (0..5)
            .map(|_| std::net::TcpStream::connect(place).unwrap())
            .map(|conn| Address::from(conn.local_addr().unwrap()).to_string())
            .collect();
        let told_of: HashSet<_> =
            (0..5).map(|_| told.recv_timeout(SOON).unwrap().unwrap().to_string()).collect();
        assert_eq!(told_of, peers);
        assert_eq!(server.drain(SOON).wait().unwrap().accepted, 5);
        // What is wrong is told by the start, and not to a handler later.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken =
            Server::bind(taken.local_addr().unwrap()).backend(backend).start_events(|| Echo).unwrap_err();
        assert_eq!(taken.io_kind(), Some(std::io::ErrorKind::AddrInUse), "{taken}");
    });
}

/// Stopping said nothing of those who were connected.
#[test]
fn m3_a_server_starts_once_tells_its_real_address_and_stops_with_a_word_for_those_who_are_in() {
    on_each("m3", |backend| {
        let server = Server::bind("127.0.0.1:0").backend(backend).workers(1).start_events(|| Echo).unwrap();
        let address = server.local_addr();
        assert_ne!(address.port(), 0);
        let twice = Server::bind(address).backend(backend).start_events(|| Echo).unwrap_err();
        assert_eq!(twice.operation(), "listen", "{twice}");
        let rig = Rig::with(backend, server.clone());
        let socket = rig.connected();
        server.suspend();
        while std::net::TcpStream::connect(address).is_ok() {}
        // One that came just before the end may still be on its way out.
        while server.connections() > 1 {
            thread::yield_now();
        }
        assert!(server.is_suspended() && !server.is_stopped());
        let done = Completion::new();
        socket.send("still here").unwrap();
        socket.receive_with(&done, |_, bytes| bytes.map(drop)).unwrap();
        assert!(done.wait(SOON).unwrap());
        let stats = server.stop().wait().unwrap();
        assert!(server.is_stopped());
        assert_eq!(stats.drain.reset, 1, "{stats:?}");
        rig.end();
    });
}

/// Sends without end, and counts.
struct Torrent(Arc<AtomicUsize>);

impl Torrent {
    fn go_on(&self, conn: &mut event::Connection<'_>) -> Flow {
        while conn.send(&[7; 16 << 10]).is_ok() {
            self.0.fetch_add(16 << 10, Ordering::SeqCst);
        }
        Flow::Continue
    }
}

impl Handler for Torrent {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.go_on(conn)
    }

    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn writable(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.go_on(conn)
    }
}

#[test]
fn m4_receive_is_one_shot_and_allocates_the_buffer() {
    on_each("m4", |backend| {
        let sent = Arc::new(AtomicUsize::new(0));
        let counts = sent.clone();
        let small = SocketOptions::default().receive_buffer(64 << 10).send_buffer(64 << 10);
        let server = Server::bind("127.0.0.1:0").backend(backend).workers(1).sockets(small.clone());
        let rig = Rig::with(backend, server.start_events(move || Torrent(counts.clone())).unwrap());
        let client = rig.client().sockets(small).limits(Limits::default().receive_buffer(64 << 10));
        let socket = rig.service.socket(&client, &rig.queue.queue(), ());
        let (tell, told) = mpsc::channel::<Bytes>();
        let receive = || {
            let tell = tell.clone();
            socket.receive(move |_, bytes| tell.send(bytes.unwrap()).unwrap())
        };
        socket.connect().unwrap();
        receive().unwrap();
        let first = told.recv_timeout(SOON).unwrap();
        assert!(!first.is_empty() && first.iter().all(|byte| *byte == 7));

        // No other is armed: nothing comes, and before long the server cannot send any more.
        let mut before = usize::MAX;
        let stands = Instant::now() + SOON;
        while std::mem::replace(&mut before, sent.load(Ordering::SeqCst)) != sent.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(100));
            assert!(Instant::now() < stands, "what is not received holds the sender back");
        }
        assert!(told.try_recv().is_err());
        assert!(before < 4 << 20, "{before} bytes lie between a sender and one who does not receive");

        // One at a time.
        let mut received = first.len();
        while received < before + (1 << 20) {
            receive().unwrap();
            received += told.recv_timeout(SOON).unwrap().len();
        }
        let idle = rig.socket();
        idle.connect().unwrap();
        // Until this is over, what it receives is not handed on.
        let (release, held) = mpsc::channel::<()>();
        rig.queue.post(move || assert!(held.recv().is_err())).unwrap();
        idle.receive(|_, _| {}).unwrap();
        let twice = idle.receive(|_, _| {}).unwrap_err();
        assert_eq!(twice.kind(), ErrorKind::Caller, "{twice}");
        drop(release);
        drop((socket, idle));
        rig.server.stop();
        rig.end();
    });
}

/// What it queued had no bound.
#[test]
fn m5_send_takes_the_buffer_and_its_handler_runs_once_when_it_is_sent_or_never_will_be() {
    on_each("m5", |backend| {
        let server = Server::bind("127.0.0.1:0").backend(backend).workers(1);
        let rig = Rig::with(backend, server.start(|conn: Connection| Hold.run(conn)).unwrap());
        let socket = rig.connected();
        let (tell, told) = mpsc::channel();
        for number in 0..3 {
            let tell = tell.clone();
            let message = Bytes::from(vec![number; 1000]);
            socket.send_then(message, move |_, sent| tell.send((number, sent.is_ok())).unwrap()).unwrap();
        }
        for number in 0..3 {
            assert_eq!(told.recv_timeout(SOON).unwrap(), (number, true));
        }

        // The server does not read. What waits is bounded, and each message is taken whole or refused.
        let (mut taken, refused) = (
            0,
            loop {
                let tell = tell.clone();
                let message = vec![9; 256 << 10];
                match socket.send_then(message, move |_, sent| tell.send((9, sent.is_ok())).unwrap()) {
                    Ok(()) => {}
                    Err(error) if socket.queued() > 0 => break error,
                    Err(error) => panic!("{error}"),
                }
            },
        );
        assert_eq!(refused.kind(), ErrorKind::Limit, "{refused}");
        assert!(socket.queued() <= 1 << 20, "{}", socket.queued());
        socket.reset();
        drop(tell);
        let mut failed = 0;
        while let Ok((_, sent)) = told.recv_timeout(SOON) {
            taken += 1;
            failed += usize::from(!sent);
        }
        assert!(failed > 0 && taken >= failed, "{failed} of {taken} messages were lost, and told");
        while !socket.state().is_disconnected() {
            thread::yield_now();
        }
        assert_eq!(socket.error().unwrap().close_reason(), Some(CloseReason::LocalReset));
        rig.server.stop();
        drop(socket);
        rig.end();
    });
}

/// Notes both addresses.
struct Ends(mpsc::Sender<(Address, Address)>);

impl Handler for Ends {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.0.send((conn.local_addr().unwrap(), conn.peer_addr())).unwrap();
        Flow::Continue
    }

    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }
}

#[test]
fn m6_both_ends_tell_both_addresses() {
    on_each("m6", |backend| {
        let (theirs, told) = mpsc::channel();
        let server = Server::bind("127.0.0.1:0").backend(backend).workers(1);
        let rig = Rig::with(backend, server.start_events(move || Ends(theirs.clone())).unwrap());
        let (ours, tells) = mpsc::channel();
        rig.service.connect(&rig.client(), Ends(ours)).unwrap();
        let (local, remote) = tells.recv_timeout(SOON).unwrap();
        assert_eq!(remote, rig.server.local_addr());
        assert_eq!(told.recv_timeout(SOON).unwrap(), (remote, local));
        rig.end();
    });
}

#[test]
fn m7_one_status_waits_for_many_operations_false_is_a_timeout_and_it_can_be_used_again() {
    on_each("m7", |backend| {
        let rig = Rig::new(backend);
        let socket = rig.socket();
        let status = Completion::new();
        assert!(status.wait(Duration::ZERO).unwrap(), "nothing depends on it");
        let received = Arc::new(Mutex::new(Vec::new()));
        let sink = received.clone();
        socket.connect_with(&status).unwrap();
        socket.send_with("hello", &status).unwrap();
        socket
            .receive_with(&status, move |_, bytes| {
                sink.lock().unwrap().extend_from_slice(&bytes?);
                Ok(())
            })
            .unwrap();
        assert!(status.wait(SOON).unwrap());
        assert_eq!(*received.lock().unwrap(), b"hello");

        // Again: nothing more comes, and that is a timeout and no failure.
        socket.receive_with(&status, |_, bytes| bytes.map(drop)).unwrap();
        let began = Instant::now();
        assert!(!status.wait(Duration::from_millis(50)).unwrap());
        assert!(began.elapsed() >= Duration::from_millis(50));
        assert_eq!(status.pending(), 1);
        socket.send("more").unwrap();
        assert!(status.wait(SOON).unwrap());

        // Work of one's own, and all the failures together.
        let work = status.add_dependency();
        thread::spawn(move || work.finish(Err(Error::other("the work failed"))));
        let other = rig.service.socket(&Client::new(nobody()), &rig.queue.queue(), ());
        other.connect_with(&status).unwrap();
        status.push_error(Error::other("something else"));
        let failures = status.wait(SOON).unwrap_err();
        assert_eq!((failures.errors().len(), failures.further()), (3, 0), "{failures}");
        assert!(failures.errors().iter().any(Error::is_refused), "{failures}");
        assert!(status.wait(SOON).unwrap(), "they are told once");
        drop((socket, other));
        rig.end();
    });
}

/// Where nobody listens.
fn nobody() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Runs each job on a thread of its own: as many at once as there are.
struct Threads;

impl Executor for Threads {
    fn execute(&self, job: Job) -> Result<(), Job> {
        thread::spawn(move || job.run());
        Ok(())
    }
}

#[test]
fn m8_a_service_starts_once_stops_twice_joins_its_threads_and_never_calls_one_handler_twice_at_once() {
    on_each("m8", |backend| {
        let rig = Rig::new(backend);
        let twice = rig.service.start().unwrap_err();
        assert_eq!((twice.operation(), twice.kind()), ("start", ErrorKind::Caller), "{twice}");

        let (busy, overlaps, bytes) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        let seen = Arc::new((busy, overlaps, bytes));
        let (theirs, done) = (seen.clone(), Completion::new());
        let work = Mutex::new(Some(done.add_dependency()));
        let callbacks = Callbacks::new().incoming(move |_, bytes| {
            let (busy, overlaps, total) = &*theirs;
            overlaps.fetch_add(usize::from(busy.swap(true, Ordering::SeqCst)), Ordering::SeqCst);
            thread::yield_now();
            busy.store(false, Ordering::SeqCst);
            if total.fetch_add(bytes.len(), Ordering::SeqCst) + bytes.len() == 20_000 {
                work.lock().unwrap().take().expect("once").finish(Ok(()));
            }
            Flow::Continue
        });
        let socket = rig.service.socket(&rig.client(), &Queue::new(Threads), callbacks);
        socket.connect().unwrap();
        for _ in 0..200 {
            socket.send(vec![1; 100]).unwrap();
        }
        assert!(done.wait(SOON).unwrap());
        assert_eq!(seen.1.load(Ordering::SeqCst), 0, "handlers of one socket overlapped");

        // A thread of it cannot wait for itself.
        let (tell, told) = mpsc::channel();
        rig.service.connect(&rig.client(), Outcome(tell)).unwrap();
        told.recv_timeout(SOON).unwrap().unwrap();
        drop(socket);
        rig.service.stop();
        rig.service.stop();
        rig.service.stop_and_wait().unwrap();
        assert!(rig.service.is_stopped());
        assert_eq!(rig.service.connections(), 0);
        let over = rig.service.connect(&rig.client(), Echo).unwrap_err();
        assert_eq!(over.kind(), ErrorKind::Caller, "{over}");
        rig.end();
    });
}

#[test]
fn m9_handlers_run_on_the_queue_that_was_chosen_or_on_the_caller_s() {
    on_each("m9", |backend| {
        let rig = Rig::new(backend);
        let (tell, told) = mpsc::channel();
        let on_queue = tell.clone();
        let callbacks = Callbacks::new().feedback(move |_, state| {
            let name = thread::current().name().unwrap_or_default().to_owned();
            on_queue.send((name, state.is_connected())).unwrap();
        });
        let named = rig.service.socket(&rig.client(), &rig.queue.queue(), callbacks);
        named.connect().unwrap();
        loop {
            let (name, is_connected) = told.recv_timeout(SOON).unwrap();
            assert_eq!(name, "handlers");
            if is_connected {
                break;
            }
        }

        // The caller's own: nothing runs but while it polls, and then here.
        let (ours, here) = (PollQueue::new().unwrap(), thread::current().id());
        let connected = Arc::new(AtomicBool::new(false));
        let seen = connected.clone();
        let callbacks = Callbacks::new().feedback(move |_, state| {
            assert_eq!(thread::current().id(), here);
            seen.fetch_or(state.is_connected(), Ordering::SeqCst);
        });
        let polled = rig.service.socket(&rig.client(), &ours.queue(), callbacks);
        polled.connect().unwrap();
        while !polled.state().is_connected() {
            thread::yield_now();
        }
        assert!(!connected.load(Ordering::SeqCst), "nobody has polled");
        while !connected.load(Ordering::SeqCst) {
            assert!(ours.wait(SOON));
            ours.run_pending(10);
        }
        drop((named, polled));
        rig.end();
    });
}

/// Nothing took them.
#[test]
fn m10_the_options_of_a_connection_are_obeyed() {
    on_each("m10", |backend| {
        let server = Server::bind("127.0.0.1:0").backend(backend).workers(1);
        let rig = Rig::with(backend, server.start(|conn: Connection| Hold.run(conn)).unwrap());
        let moment = Duration::from_millis(500);

        // The session's time: nothing comes for that long.
        let session = rig.client().deadlines(Deadlines::for_clients().idle(moment));
        let (socket, done, began) =
            (rig.service.socket(&session, &rig.queue.queue(), ()), Completion::new(), Instant::now());
        socket.connect().unwrap();
        socket.receive_with(&done, |_, bytes| bytes.map(drop)).unwrap();
        let failures = done.wait(SOON).unwrap_err();
        assert_eq!(
            failures.errors()[0].close_reason(),
            Some(CloseReason::Timeout(Deadline::Idle)),
            "{failures}"
        );
        assert!(began.elapsed() >= moment);

        // The connect's: the server's side takes the connection, and says nothing of TLS.
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = Client::new(mute.local_addr().unwrap())
            .tls(&crate::common::tls::connector())
            .connect_within(moment);
        let (socket, done) = (rig.service.socket(&connect, &rig.queue.queue(), ()), Completion::new());
        socket.connect_with(&done).unwrap();
        let failures = done.wait(SOON).unwrap_err();
        assert!(failures.errors()[0].is_timeout(), "{failures}");
        // Or the end of what was given up would be waited for.
        drop(mute);

        // Nagle's: a bad option is refused by its name, so options are looked at; what the kernel has of them shows elsewhere.
        let odd = rig.client().sockets(SocketOptions::default().nodelay(false).keepalive(Duration::ZERO));
        let refused = rig.service.socket(&odd, &rig.queue.queue(), ()).connect().unwrap_err();
        assert!(refused.to_string().contains("keepalive"), "{refused}");
        rig.server.stop();
        rig.end();
    });
}

#[test]
fn m11_addresses_are_values_of_both_families_and_networks_tell_who_belongs_to_them() {
    let network = |text: &str| text.parse::<Network>().unwrap();
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    for (net, inside, outside) in [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
        ("172.16.0.0/12", "172.31.255.255", "172.32.0.0"),
        ("192.168.0.0/16", "192.168.7.7", "192.169.0.1"),
        ("fc00::/7", "fdff::1", "fe80::1"),
        ("0.0.0.0/0", "1.2.3.4", "::1"),
        ("::/0", "::1", "127.0.0.1"),
    ] {
        assert!(network(net).contains(address(inside)), "{inside} is in {net}");
        let outside = address(outside);
        assert!(
            !network(net).contains(outside),
            "{outside} is not in {net}: its family is another one, or its prefix"
        );
    }
    assert!("10.0.0.0/33".parse::<Network>().is_err() && "fc00::/129".parse::<Network>().is_err());
    let addresses: HashSet<_> = ["127.0.0.1:80", "[::1]:80", "127.0.0.1:81", "127.0.0.1:80"]
        .map(|text| Address::from(text.parse::<std::net::SocketAddr>().unwrap()).to_string())
        .into();
    assert_eq!(addresses.len(), 3);
    // An address of one family is no listener's of the other, and says so.
    let server = Server::bind("127.0.0.1:0").workers(1).start_events(|| Echo).unwrap();
    let odd =
        wharf::run(async { Client::new(server.local_addr()).bind("::1").open().await }).unwrap().unwrap_err();
    assert!(odd.kind() == ErrorKind::Caller && odd.to_string().contains("`bind`"), "{odd}");
    server.stop().wait().unwrap();
}
