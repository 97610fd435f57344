//! Services: their threads, and outgoing connections whose handlers run on them.

mod common;

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::stage::{Stage, play};
use common::{Watchdog, backends, pattern, recv_all};
use wharf::event::{Completion, Connection, Flow, Handler, JobQueue, PollQueue, Service};
use wharf::{Client, CloseReason, Deadlines, Error, ErrorKind};

const LONG: Duration = Duration::from_secs(10);

/// Tells all that a handler is told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn add(&self, line: impl std::fmt::Display) {
        self.0.lock().expect("no handler panics with it").push(line.to_string());
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no handler panics with it").clone()
    }

    fn is_over(&self) -> bool {
        self.lines().iter().any(|line| line.starts_with("closed") || line.starts_with("failed"))
    }
}

/// Sends what it was given, and tells what happens.
struct Says {
    what: &'static str,
    told: Told,
    got: usize,
}

impl Says {
    fn new(what: &'static str, told: &Told) -> Says {
        Says { what, told: told.clone(), got: 0 }
    }
}

impl Handler for Says {
    fn connected(&mut self, conn: &mut Connection<'_>) -> Flow {
        self.told.add("connected");
        conn.send(self.what.as_bytes()).expect("the queue is empty");
        Flow::Continue
    }

    fn received(&mut self, _: &mut Connection<'_>, bytes: &[u8]) -> Flow {
        self.got += bytes.len();
        assert_ne!(self.what, "panic", "as the test has it");
        Flow::Continue
    }

    fn ended(&mut self, _: &mut Connection<'_>) -> Flow {
        self.told.add(format!("ended after {}", self.got));
        Flow::Close
    }

    fn connect_failed(&mut self, error: Error) {
        self.told.add(format!("failed: {error}"));
    }

    fn closed(&mut self, _: &mut Connection<'_>, reason: CloseReason) {
        self.told.add(format!("closed: {reason}"));
    }
}

fn echo(stage: &mut Stage) -> String {
    stage.serve(|mut conn| async move {
        let all = recv_all(&mut conn).await?;
        conn.send(&all).await
    })
}

#[test]
fn a_handler_on_a_worker_is_told_of_its_connection_from_begin_to_end() {
    play("a_handler_on_a_worker_is_told", |stage| {
        let address = stage.serve(|mut conn| async move {
            let mut ping = [0; 4];
            conn.recv_exact(&mut ping).await?;
            conn.send_owned(pattern(0..300_000)).await
        });
        let told: Vec<_> = (0..5).map(|_| Told::default()).collect();
        for told in &told {
            stage.service.connect(&Client::new(&address), Says::new("ping", told)).unwrap();
        }
        stage.until("all are over", || told.iter().all(Told::is_over));
        for told in told {
            assert_eq!(told.lines(), ["connected", "ended after 300000", "closed: closed by the peer"]);
        }
        stage.until("their places are free", {
            let service = stage.service.clone();
            move || service.connections() == 0
        });
    });
}

#[test]
fn what_comes_with_the_connection_is_not_lost() {
    play("what_comes_with_the_connection", |stage| {
        let address = stage.serve(|mut conn| async move { conn.send(b"hello and goodbye").await });
        for _ in 0..20 {
            let told = Told::default();
            stage.service.connect(&Client::new(&address), Says::new("", &told)).unwrap();
            stage.until("it is over", || told.is_over());
            assert_eq!(told.lines(), ["connected", "ended after 17", "closed: closed by the peer"]);
        }
    });
}

#[test]
fn a_connect_that_fails_is_told_once_and_nothing_else() {
    play("a_connect_that_fails_is_told_once", |stage| {
        let address = stage.nobody();
        let told = Told::default();
        stage.service.connect(&Client::new(&address), Says::new("", &told)).unwrap();
        stage.until("it is over", || told.is_over());
        let lines = told.lines();
        assert!(lines.len() == 1 && lines[0].contains("connection refused"), "{lines:?}");
        let bad = stage.service.connect(&Client::new("no address"), Says::new("", &told)).unwrap_err();
        assert_eq!(bad.kind(), ErrorKind::Caller);
        if stage.blackhole("10.9.9.9") {
            let client = Client::new("10.9.9.9:1").connect_within(Duration::from_secs(3));
            let told = Told::default();
            stage.service.connect(&client, Says::new("", &told)).unwrap();
            stage.until("it is over", || told.is_over());
            assert_eq!(told.lines().len(), 1);
            assert!(told.lines()[0].contains("timed out"), "{:?}", told.lines());
        }
    });
}

#[test]
fn a_handler_that_panics_loses_its_connection_and_no_other() {
    play("a_handler_that_panics_loses_its_connection", |stage| {
        let address = stage.serve(|mut conn| async move {
            while let Some(chunk) = conn.recv_chunk().await? {
                conn.send(&chunk).await?;
            }
            Ok(())
        });
        let (bad, good) = (Told::default(), Told::default());
        stage.service.connect(&Client::new(&address), Says::new("panic", &bad)).unwrap();
        stage.until("it is over", || bad.is_over());
        let lines = bad.lines();
        assert_eq!(lines, ["connected", "closed: handler panicked"]);
        let client = Client::new(&address).deadlines(Deadlines::for_clients().age(Duration::from_secs(1)));
        stage.service.connect(&client, Says::new("ok", &good)).unwrap();
        stage.until("it is over", || good.is_over());
        assert_eq!(good.lines().last().unwrap(), "closed: age deadline passed");
    });
}

#[test]
fn stopping_ends_connections_and_attempts_and_tells_their_handlers() {
    play("stopping_ends_connections_and_attempts", |stage| {
        let address = echo(stage);
        let (standing, attempt) = (Told::default(), Told::default());
        let socket = stage.socket(&address, ());
        socket.connect().unwrap();
        stage.service.connect(&Client::new(&address), Says::new("x", &standing)).unwrap();
        stage.until("both stand", || socket.state().is_connected() && !standing.lines().is_empty());
        let silent = stage.silent();
        let nobody = Client::new(silent.address());
        stage.service.connect(&nobody, Says::new("", &attempt)).unwrap();
        let waits = stage.service.socket(&nobody, &stage.queue.queue(), ());
        waits.connect().unwrap();
        assert!(!stage.service.is_stopped());
        stage.service.stop();
        stage.service.stop();
        assert!(stage.service.is_stopped());
        let late = stage.service.connect(&Client::new(&address), Says::new("", &standing)).unwrap_err();
        assert!(late.to_string().contains("stopped"), "{late}");
        stage.until("all are over", || {
            standing.is_over()
                && attempt.is_over()
                && socket.state().is_disconnected()
                && waits.state().is_disconnected()
        });
        assert_eq!(standing.lines().last().unwrap(), "closed: server shut down");
        assert_eq!(attempt.lines().len(), 1);
        assert!(socket.connect().is_err());
    });
}

#[test]
fn what_a_socket_has_sent_before_its_service_stops_still_arrives() {
    const SIZE: usize = 600_000;
    play("what_a_socket_has_sent_before_its_service_stops", |stage| {
        let got = Arc::new(Mutex::new(Vec::new()));
        let theirs = got.clone();
        let address = stage.serve(move |mut conn| {
            let theirs = theirs.clone();
            async move {
                let all = recv_all(&mut conn).await?;
                *theirs.lock().unwrap() = all;
                Ok(())
            }
        });
        let client = Client::new(&address).limits(wharf::Limits::default().send_marks(1000, 4000));
        let socket = stage.service.socket(&client, &stage.queue.queue(), ());
        socket.connect().unwrap();
        stage.until("it stands", || socket.state().is_connected());
        // More than its connection takes at once.
        for at in (0..SIZE).step_by(SIZE / 4) {
            socket.send(pattern(at..at + SIZE / 4)).unwrap();
        }
        stage.service.stop();
        assert!(stage.idle(|| socket.state().is_disconnected()));
        stage.until("the server has it", || !got.lock().unwrap().is_empty());
        assert_eq!(got.lock().unwrap().len(), SIZE);
    });
}

#[test]
fn a_thread_that_crashes_ends_its_service_which_tells() {
    /// Larger than what the kernel takes at once: the worker has it in hand when it is over.
    struct Bomb(Vec<u8>);
    impl AsRef<[u8]> for Bomb {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("as the test has it");
        }
    }
    const SIZE: usize = 16 * 1024 * 1024;
    let _watchdog = Watchdog::new("a_thread_that_crashes_ends_its_service");
    for backend in backends("a_thread_that_crashes_ends_its_service") {
        let server = wharf::Server::bind("127.0.0.1:0").workers(1).backend(backend);
        let server = server.start(|mut conn| async move { recv_all(&mut conn).await.map(|_| ()) }).unwrap();
        let service = Service::new().workers(3).backend(backend);
        service.start().unwrap();
        let queue = PollQueue::new().unwrap();
        let client = Client::new(server.local_addr()).limits(wharf::Limits::default().send_max(SIZE));
        let sockets: Vec<_> = (0..3).map(|_| service.socket(&client, &queue.queue(), ())).collect();
        let done = Completion::new();
        sockets.iter().for_each(|socket| socket.connect_with(&done).unwrap());
        assert!(done.wait(LONG).unwrap());
        sockets[0].send(bytes::Bytes::from_owner(Bomb(vec![0; SIZE]))).unwrap();
        // The others end by themselves.
        while sockets.iter().any(|socket| !socket.state().is_disconnected()) {
            thread::yield_now();
        }
        let crashed = service.stop_and_wait().unwrap_err().to_string();
        assert!(crashed.contains("panicked"), "{crashed}");
        assert!(service.is_stopped());
        assert!(sockets.iter().all(|socket| socket.state().is_disconnected()));
        assert_eq!(service.connections(), 0);
        server.stop().wait().unwrap();
    }
}

#[test]
fn a_service_starts_once_and_says_what_is_wrong() {
    let _watchdog = Watchdog::new("a_service_starts_once");
    let service = Service::new();
    let early = service.connect(&Client::new("127.0.0.1:1"), Says::new("", &Told::default())).unwrap_err();
    assert!(early.to_string().contains("not been started"), "{early}");
    let bad = Service::new().workers(0).start().unwrap_err();
    assert!(bad.to_string().contains("`workers`"), "{bad}");
    let bad = Service::new().name("a\0b").start().unwrap_err();
    assert!(bad.to_string().contains("`name`"), "{bad}");
    let bad = Service::new().connections_max(0).start().unwrap_err();
    assert!(bad.to_string().contains("`connections_max`"), "{bad}");
    for backend in backends("a_service_starts_once") {
        let service = Service::new().workers(3).backend(backend).connections_max(1);
        service.start().unwrap();
        let twice = service.clone().start().unwrap_err();
        assert!(twice.to_string().contains("started already"), "{twice}");
        // Nobody accepts there; the backlog has room for one.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Client::new(listener.local_addr().unwrap());
        let told = Told::default();
        service.connect(&client, Says::new("", &told)).unwrap();
        let full = service.connect(&client, Says::new("", &Told::default())).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::Limit);
        assert!(full.to_string().contains("connections_max"), "{full}");
        drop(listener);
        let ending: Vec<_> = (0..3)
            .map(|_| {
                let service = service.clone();
                thread::spawn(move || service.stop_and_wait().unwrap())
            })
            .collect();
        ending.into_iter().for_each(|thread| thread.join().unwrap());
        service.stop_and_wait().unwrap();
        assert!(told.is_over());
        assert_eq!(service.connections(), 0);
        let again = service.start().unwrap_err();
        assert!(again.to_string().contains("make a new one"), "{again}");
    }
}

#[test]
fn waiting_for_its_own_thread_is_an_error() {
    let _watchdog = Watchdog::new("waiting_for_its_own_thread");
    for backend in backends("waiting_for_its_own_thread") {
        struct Waits(Service, mpsc::Sender<String>);
        impl Handler for Waits {
            fn received(&mut self, _: &mut Connection<'_>, _: &[u8]) -> Flow {
                Flow::Continue
            }

            fn connect_failed(&mut self, _: Error) {
                self.1.send(self.0.stop_and_wait().unwrap_err().to_string()).unwrap();
            }
        }
        let service = Service::new().backend(backend);
        service.start().unwrap();
        let (tell, told) = mpsc::channel();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        service.connect(&Client::new(free), Waits(service.clone(), tell)).unwrap();
        let problem = told.recv_timeout(LONG).unwrap();
        assert!(problem.contains("another thread"), "{problem}");
        service.stop_and_wait().unwrap();
    }
    // The same of a queue.
    let queue = Arc::new(JobQueue::new("its own").unwrap());
    let (tell, told) = mpsc::channel();
    let theirs = queue.clone();
    queue.post(move || tell.send(theirs.join().unwrap_err().to_string()).unwrap()).unwrap();
    let problem = told.recv_timeout(LONG).unwrap();
    assert!(problem.contains("another thread"), "{problem}");
    queue.join().unwrap();
}

#[test]
fn a_queue_runs_jobs_in_order_survives_panics_and_has_a_bound() {
    let _watchdog = Watchdog::new("a_queue_runs_jobs_in_order");
    let queue = JobQueue::new("jobs").unwrap().posted_max(4);
    let (go, gate) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let inside = Completion::new();
    let begun = inside.add_dependency();
    queue
        .post(move || {
            begun.finish(Ok(()));
            gate.recv().unwrap();
        })
        .unwrap();
    assert!(inside.wait(LONG).unwrap());
    queue.post(|| panic!("as the test has it")).unwrap();
    for number in 0..3 {
        let tell = tell.clone();
        queue
            .post(move || tell.send((number, thread::current().name().map(str::to_owned))).unwrap())
            .unwrap();
    }
    let full = queue.post(|| ()).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Limit);
    assert!(full.to_string().contains("posted_max"), "{full}");
    go.send(()).unwrap();
    queue.join().unwrap();
    let name = Some(String::from("jobs"));
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [(0, name.clone()), (1, name.clone()), (2, name)]);
    assert!(queue.post(|| ()).unwrap_err().to_string().contains("ended"));
    assert!(JobQueue::new("a\0b").is_err());

    let queue = PollQueue::new().unwrap();
    assert!(!queue.wait(Duration::ZERO));
    for _ in 0..5 {
        queue.post(|| ()).unwrap();
    }
    assert_eq!((queue.run_pending(2), queue.len()), (2, 3));
    assert!(queue.wait(None));
    assert_eq!((queue.run_pending(100), queue.poll()), (3, false));
}

#[cfg(feature = "tls")]
#[test]
fn handlers_and_sockets_begin_behind_the_tls_handshake() {
    let _watchdog = Watchdog::new("handlers_and_sockets_begin_behind_the_tls_handshake");
    for backend in backends("handlers_and_sockets_begin_behind_the_tls_handshake") {
        let server = wharf::Server::bind("127.0.0.1:0").workers(1).backend(backend);
        let server = server.tls(&common::tls::acceptor());
        let server = server.start(|mut conn| async move { conn.send(b"protected").await }).unwrap();
        let client = common::tls::client(server.local_addr());
        let service = Service::new().backend(backend);
        service.start().unwrap();
        let queue = PollQueue::new().unwrap();
        let told = Told::default();
        service.connect(&client, Says::new("", &told)).unwrap();
        let (states, bytes) = (Told::default(), Told::default());
        let (feedback, incoming) = (states.clone(), bytes.clone());
        let handler = wharf::event::Callbacks::new().feedback(move |_, state| feedback.add(state)).incoming(
            move |_, bytes| {
                incoming.add(String::from_utf8_lossy(&bytes));
                Flow::Continue
            },
        );
        let socket = service.socket(&client, &queue.queue(), handler);
        socket.connect().unwrap();
        while !told.is_over() || !states.lines().iter().any(|line| line.starts_with("disconnected")) {
            queue.wait(Duration::from_millis(5));
            queue.run_pending(usize::MAX);
        }
        assert_eq!(told.lines(), ["connected", "ended after 9", "closed: closed by the peer"]);
        let states = states.lines();
        let address = server.local_addr();
        let way = [format!("connecting to {address}"), format!("in the TLS handshake with {address}")];
        let from = states.iter().position(|state| *state == way[0]).unwrap();
        assert_eq!(states[from..from + 2], way);
        assert_eq!(states[from + 2..], ["connected", "disconnected: closed by the peer"]);
        assert_eq!(bytes.lines().concat(), "protected");
        drop(socket);
        service.stop_and_wait().unwrap();
        server.stop().wait().unwrap();
    }
}
