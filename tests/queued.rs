//! Servers whose handlers run on a queue: how they begin and end, what holds peers up, and what happens when a queue goes.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::stage::play;
use common::{Watchdog, assert_pattern, backends, pattern, recv_all};
use wharf::event::{
    Callbacks, Executor, Flow, Job, JobQueue, PollQueue, Queue, QueuedHandler, Socket, SocketHandle, State,
};
use wharf::{Client, CloseReason, Deadlines, ErrorKind, Limits, Rule, Server};

/// A place for what handlers tell.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn add(&self, line: impl std::fmt::Display) {
        self.0.lock().expect("no handler panics with it").push(line.to_string());
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no handler panics with it").clone()
    }

    fn count(&self, start: &str) -> usize {
        self.lines().iter().filter(|line| line.starts_with(start)).count()
    }

    fn has(&self, start: &str) -> bool {
        self.count(start) > 0
    }
}

/// Tells all that it is told, and answers.
struct Echo(Notes);

impl QueuedHandler for Echo {
    fn state(&mut self, _: &SocketHandle, state: &State) {
        self.0.add(state);
    }

    fn received(&mut self, socket: &SocketHandle, bytes: Bytes) -> Flow {
        self.0.add(format!("got {}", String::from_utf8_lossy(&bytes)));
        socket.send(bytes).expect("there is room");
        Flow::Continue
    }

    fn ended(&mut self, _: &SocketHandle) -> Flow {
        self.0.add("ended");
        Flow::Close
    }

    fn draining(&mut self, _: &SocketHandle) -> Flow {
        self.0.add("draining");
        Flow::Close
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.add("dropped");
    }
}

/// A client that takes whatever comes, and closes behind the peer.
fn listening() -> Callbacks {
    Callbacks::new().incoming(|_, _| Flow::Continue)
}

#[test]
fn a_handler_is_made_on_the_queue_told_all_in_order_and_dropped_behind_the_end() {
    play("a_handler_is_made_on_the_queue", |stage| {
        let notes = Notes::default();
        let (theirs, here) = (notes.clone(), thread::current().id());
        let (address, server) = stage.serve_queued(
            |server| server,
            move |socket| {
                assert_eq!(thread::current().id(), here, "it is made where the queue is polled");
                assert!(socket.peer_addr().is_some() && socket.local_addr().is_some());
                assert!(socket.state().is_connected());
                assert!(socket.receive(|_, _| panic!("nothing is armed")).is_err());
                theirs.add("made");
                Echo(theirs.clone())
            },
        );
        let answers = Notes::default();
        let (got, bye) = (answers.clone(), answers.clone());
        let client = stage.socket(
            &address,
            Callbacks::new().feedback(move |_, state| bye.add(state)).incoming(move |_, bytes| {
                got.add(String::from_utf8_lossy(&bytes));
                Flow::Continue
            }),
        );
        client.send("hello").unwrap();
        client.connect().unwrap();
        stage.until("it is answered", || answers.lines().concat().ends_with("hello"));
        client.finish();
        stage.until("the handler has gone", || notes.has("dropped"));
        stage.until("the client knows", || answers.has("disconnected"));
        let (got, others): (Vec<_>, Vec<_>) =
            notes.lines().into_iter().partition(|line| line.starts_with("got"));
        assert_eq!(got.concat().replace("got ", ""), "hello");
        assert_eq!(others, ["made", "connected", "ended", "disconnected: closed by the peer", "dropped"]);
        assert_eq!(server.stats().accepted, 1);
    });
}

#[test]
fn a_handler_that_asks_receives_one_piece_at_a_time() {
    play("a_handler_that_asks_receives_one_piece", |stage| {
        struct Asks(Notes);
        fn arm(socket: &SocketHandle, notes: Notes) {
            let armed = socket.receive(move |socket, bytes| {
                let bytes = bytes.unwrap();
                notes.add(format!("got {}", bytes.len()));
                match bytes.is_empty() {
                    true => socket.close(),
                    false => arm(socket, notes),
                }
            });
            armed.unwrap();
        }
        impl QueuedHandler for Asks {
            fn state(&mut self, socket: &SocketHandle, state: &State) {
                self.0.add(state);
                if state.is_connected() {
                    arm(socket, self.0.clone());
                }
            }

            fn receives(&self) -> bool {
                false
            }
        }
        let notes = Notes::default();
        let theirs = notes.clone();
        let (address, _) = stage.serve_queued(|server| server, move |_| Asks(theirs.clone()));
        let client = stage.socket(&address, ());
        client.send(pattern(0..5000)).unwrap();
        client.connect().unwrap();
        client.finish();
        stage.until("it has ended", || notes.has("disconnected"));
        let lines = notes.lines();
        let got = |line: &String| line.strip_prefix("got ").map(|count| count.parse::<usize>().unwrap());
        assert_eq!(lines.iter().filter_map(got).sum::<usize>(), 5000, "{lines:?}");
        assert_eq!(lines[lines.len() - 2], "got 0", "{lines:?}");
        stage.until("the client knows", || client.state().is_disconnected());
    });
}

#[test]
fn what_came_before_the_handler_was_made_is_not_lost() {
    play("what_came_before_the_handler_was_made", |stage| {
        for receives in [true, false] {
            let notes = Notes::default();
            let theirs = notes.clone();
            let (address, server) = stage.serve_queued(
                |server| server,
                move |_| {
                    let (states, bytes) = (theirs.clone(), theirs.clone());
                    let handler = Callbacks::new().feedback(move |socket, state| {
                        states.add(state);
                        let notes = states.clone();
                        if state.is_connected() && !receives {
                            let told = move |_: &SocketHandle, bytes: wharf::Result<Bytes>| {
                                notes.add(format!(
                                    "got {}",
                                    String::from_utf8_lossy(&bytes.unwrap_or_default())
                                ));
                            };
                            // An error if nothing has come before the end.
                            drop(socket.receive(told));
                        }
                    });
                    match receives {
                        false => handler,
                        true => handler.incoming(move |_, got| {
                            bytes.add(format!("got {}", String::from_utf8_lossy(&got)));
                            Flow::Continue
                        }),
                    }
                },
            );
            let queue = PollQueue::new().unwrap();
            let client = stage.service.socket(&Client::new(&address), &queue.queue(), ());
            client.send("early").unwrap();
            client.connect().unwrap();
            assert!(stage.idle(|| client.state().is_connected() && client.queued() == 0));
            // The connection is over before anybody polls the queue.
            let unread =
                || server.list().wait().expect("it runs").iter().map(|conn| conn.unread).sum::<usize>();
            assert!(stage.is_simulated() || stage.idle(|| unread() == 5));
            client.reset();
            assert!(stage.idle(|| server.connections() == 0));
            stage.until("the end is told", || notes.has("disconnected"));
            let lines = notes.lines();
            assert_eq!(lines[0], "connected");
            let got: String = lines.iter().filter_map(|line| line.strip_prefix("got ")).collect();
            // The simulated network may overtake bytes by a reset.
            assert!(
                got == "early" || (stage.is_simulated() && "early".starts_with(&got)),
                "{receives} {lines:?}"
            );
        }
    });
}

#[test]
fn a_slow_queue_holds_the_peers_of_a_server_up_and_loses_nothing() {
    const SIZE: usize = 8 * 1024 * 1024;
    play("a_slow_queue_holds_the_peers_of_a_server_up", |stage| {
        let size = if stage.is_simulated() { SIZE / 8 } else { SIZE };
        let bound = 16 * 1024;
        let (total, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (theirs, largest) = (total.clone(), most.clone());
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let (address, _) = stage.serve_queued(
            |server| server.limits(Limits::default().receive_buffer(bound)),
            move |_| {
                let (total, most, over) = (theirs.clone(), largest.clone(), over.clone());
                Callbacks::new()
                    .feedback(move |_, state| over.store(state.is_disconnected(), Ordering::SeqCst))
                    .incoming(move |_, bytes| {
                        most.fetch_max(bytes.len(), Ordering::SeqCst);
                        assert_pattern(&bytes, total.load(Ordering::SeqCst));
                        total.fetch_add(bytes.len(), Ordering::SeqCst);
                        Flow::Continue
                    })
            },
        );
        let limits = Limits::default().send_max(2 * SIZE);
        let client = Client::new(&address).limits(limits).deadlines(Deadlines::for_clients().write(None));
        let queue = PollQueue::new().unwrap();
        let socket = stage.service.socket(&client, &queue.queue(), ());
        socket.send(pattern(0..size)).unwrap();
        socket.connect().unwrap();
        socket.finish();
        // Nobody polls: the client comes to a halt.
        let mut last = (usize::MAX, 0);
        stage.idle(|| {
            let now = socket.queued();
            last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
            last.1 > 100 && socket.state().is_connected()
        });
        assert_eq!(total.load(Ordering::SeqCst), 0);
        stage.until("all is here, and the end", || is_over.load(Ordering::SeqCst));
        assert_eq!(total.load(Ordering::SeqCst), size);
        assert!(most.load(Ordering::SeqCst) <= bound + 65 * 1024, "{}", most.load(Ordering::SeqCst));
    });
}

/// Answers one byte with more than there is ever room for, and leaves it until all of that is sent.
struct Answers {
    left: usize,
    /// Whether it hears of each message that it has gone.
    hears: bool,
    notes: Notes,
}

impl QueuedHandler for Answers {
    fn received(&mut self, socket: &SocketHandle, bytes: Bytes) -> Flow {
        assert_eq!(&bytes[..], b"?");
        let before = self.left;
        while self.left > 0 {
            let piece = pattern(ANSWER - self.left..ANSWER - self.left + PIECE);
            let sent = match self.hears {
                true => socket.send_then(piece, |_, _| ()),
                false => socket.send(piece),
            };
            if let Err(error) = sent {
                assert!(error.kind() == ErrorKind::Limit && self.left < before, "not for nothing: {error}");
                self.notes.add("refused");
                return Flow::Consumed(0);
            }
            self.left -= PIECE;
        }
        self.notes.add("answered");
        Flow::Consumed(1)
    }

    fn ended(&mut self, _: &SocketHandle) -> Flow {
        self.notes.add("ended");
        Flow::Close
    }
}

const PIECE: usize = 1024;
const ANSWER: usize = 128 * PIECE;

#[test]
fn what_a_handler_leaves_when_a_send_is_refused_is_offered_again_when_there_is_room_and_the_end_behind_it() {
    for hears in [false, true] {
        play("what_a_handler_leaves_is_offered_again", |stage| {
            let (notes, got) = (Notes::default(), Arc::new(AtomicUsize::new(0)));
            let (theirs, all) = (notes.clone(), got.clone());
            // It may leave no more than one byte: one that waits for room is not too long.
            let limits =
                Limits::default().send_marks(2 * PIECE, 4 * PIECE).send_max(8 * PIECE).receive_buffer(1);
            let (address, _) = stage.serve_queued(
                |server| server.limits(limits),
                move |_| Answers { left: ANSWER, hears, notes: theirs.clone() },
            );
            let client = stage.socket(
                &address,
                Callbacks::new().incoming(move |_, bytes| {
                    assert_pattern(&bytes, all.load(Ordering::SeqCst));
                    all.fetch_add(bytes.len(), Ordering::SeqCst);
                    Flow::Continue
                }),
            );
            client.connect().unwrap();
            client.send("?").unwrap();
            client.finish();
            // The client's state is ahead of what its handler has been told.
            let has_all = || got.load(Ordering::SeqCst) == ANSWER;
            stage
                .until("all is told", || notes.has("ended") && client.state().is_disconnected() && has_all());
            assert_eq!((notes.count("answered"), notes.lines().last().unwrap().as_str()), (1, "ended"));
            // Elsewhere the worker may be quicker than the handler.
            assert!(notes.count("refused") > 0 || !stage.is_simulated());
        });
    }
}

#[test]
fn a_panic_of_one_handler_or_of_making_it_touches_no_other_connection() {
    play("a_panic_of_one_handler_or_of_making_it", |stage| {
        let count = AtomicUsize::new(0);
        let notes = Notes::default();
        let theirs = notes.clone();
        let (address, server) = stage.serve_queued(
            |server| server,
            move |_| {
                let number = count.fetch_add(1, Ordering::SeqCst);
                assert_ne!(number, 0, "as the test has it");
                let notes = theirs.clone();
                Callbacks::new().incoming(move |socket, bytes| {
                    assert_ne!(number, 1, "as the test has it");
                    notes.add("served");
                    socket.send(bytes).unwrap();
                    Flow::Continue
                })
            },
        );
        for round in 0..3 {
            let client = stage.socket(&address, ());
            client.send("x").unwrap();
            client.connect().unwrap();
            if round < 2 {
                client.receive(|_, _| ()).unwrap();
                stage.until("it is reset", || client.state().is_disconnected());
                let panics = round + 1;
                stage.until("it is counted", || server.stats().panics == panics);
            } else {
                stage.until("it is served", || notes.has("served"));
            }
        }
        assert_eq!(server.stats().panics, 2);
    });
}

#[test]
fn a_queue_that_goes_takes_its_connections_with_it_and_new_ones_too() {
    play("a_queue_that_goes_takes_its_connections", |stage| {
        let notes = Notes::default();
        let theirs = notes.clone();
        let (address, _) = stage.serve_queued(|server| server, move |_| Echo(theirs.clone()));
        let clients = PollQueue::new().unwrap();
        let one = stage.service.socket(&Client::new(&address), &clients.queue(), listening());
        one.send("x").unwrap();
        one.connect().unwrap();
        stage.until("it is served", || notes.has("got x"));
        drop(std::mem::replace(&mut stage.queue, PollQueue::new().unwrap()));
        let over = |socket: &SocketHandle| {
            clients.run_pending(usize::MAX);
            socket.state().is_disconnected()
        };
        assert!(stage.idle(|| over(&one)));
        let late = stage.service.socket(&Client::new(&address), &clients.queue(), listening());
        late.connect().unwrap();
        assert!(stage.idle(|| over(&late)));
        assert_eq!(notes.count("dropped"), 1);
        assert_eq!(notes.count("connected"), 1, "no handler is made for a queue that has gone");
    });
}

#[test]
fn a_queue_that_nobody_runs_does_not_pile_up_connections_that_have_ended() {
    play("a_queue_that_nobody_runs_does_not_pile_up", |stage| {
        let notes = Notes::default();
        let theirs = notes.clone();
        let (address, server) = stage.serve_queued(
            |server| server.limits(Limits::default().connections(3)),
            move |_| Echo(theirs.clone()),
        );
        let clients = PollQueue::new().unwrap();
        let refused = || server.stats().refused_by(Rule::Connections);
        for _ in 0..100 {
            let client = stage.service.socket(&Client::new(&address), &clients.queue(), ());
            client.connect().unwrap();
            assert!(stage.idle(|| client.state().is_connected() || client.state().is_disconnected()));
            client.reset();
            assert!(stage.idle(|| client.state().is_disconnected() && server.connections() == 0));
            if refused() >= 5 {
                break;
            }
        }
        assert!(refused() >= 5, "{} were refused", refused());
        stage.until("the others are told", || notes.count("dropped") >= 1);
        assert!(notes.count("dropped") <= 6, "{}", notes.count("dropped"));
        // There is room again.
        let client = stage.socket(&address, ());
        client.send("x").unwrap();
        client.connect().unwrap();
        stage.until("it is served", || notes.has("got x"));
    });
}

#[test]
fn draining_is_told_and_handles_of_other_threads_send_and_close() {
    play("draining_is_told_and_handles_send", |stage| {
        let notes = Notes::default();
        let handles: Arc<Mutex<Vec<SocketHandle>>> = Arc::default();
        let (theirs, kept) = (notes.clone(), handles.clone());
        let (address, server) = stage.serve_queued(
            |server| server,
            move |socket| {
                kept.lock().unwrap().push(socket.clone());
                Echo(theirs.clone())
            },
        );
        let got = Notes::default();
        let theirs = got.clone();
        let handler = move |_: &SocketHandle, bytes: Bytes| {
            theirs.add(String::from_utf8_lossy(&bytes));
            Flow::Continue
        };
        let client = stage.socket(&address, Callbacks::new().incoming(handler));
        client.connect().unwrap();
        stage.until("it has its handler", || notes.has("connected"));
        let handle = handles.lock().unwrap()[0].clone();
        assert!(handle.connect().unwrap_err().to_string().contains("only its peer"));
        handle.send("from elsewhere").unwrap();
        stage.until("it is there", || got.lines().concat() == "from elsewhere");
        server.drain(Duration::from_secs(5));
        stage.until("it has ended", || notes.has("dropped"));
        assert_eq!(notes.lines()[..2], ["connected", "draining"]);
        assert!(handle.state().is_disconnected());
        assert!(handle.send("late").unwrap_err().to_string().contains("no handler"));
        stage.until("the client knows", || client.state().is_disconnected());
    });
}

#[test]
fn whoever_owns_a_connection_closes_it_by_dropping_it_and_nothing_of_it_is_called_any_more() {
    play("whoever_owns_a_connection_closes_it", |stage| {
        let notes = Notes::default();
        let owned: Arc<Mutex<Option<Socket>>> = Arc::default();
        let (theirs, kept) = (notes.clone(), owned.clone());
        let (address, server) = stage.serve_queued(
            |server| server,
            move |socket| {
                let mut kept = kept.lock().unwrap();
                if kept.is_none() {
                    *kept = Some(socket.own().unwrap());
                    assert!(socket.own().unwrap_err().to_string().contains("has an owner"));
                }
                Echo(theirs.clone())
            },
        );
        let clients = PollQueue::new().unwrap();
        let connect = || {
            let client = stage.service.socket(&Client::new(&address), &clients.queue(), listening());
            assert!(client.own().is_err(), "it has one");
            client.connect().unwrap();
            client
        };
        let (owned_one, free_one) = (connect(), connect());
        stage.until("both are served", || notes.count("connected") == 2);
        let socket = owned.lock().unwrap().take().unwrap();
        socket.send("bye").unwrap();
        assert_eq!(notes.count("dropped"), 0);
        drop(socket);
        assert_eq!(notes.count("dropped"), 1, "its handler is gone when the drop has returned");
        let ended = || {
            clients.run_pending(usize::MAX);
            [&owned_one, &free_one].iter().filter(|client| client.state().is_disconnected()).count()
        };
        stage.until("its peer has its end, behind what was sent", || ended() == 1);
        let has_left = || server.connections() == 1 && server.stats().closed(CloseReason::Local) == 1;
        stage.until("it has left", has_left);
        assert_eq!(notes.count("disconnected"), 0, "nothing is told behind the drop");
        assert_eq!(ended(), 1, "the other one has no owner, and lives");
    });
}

/// Many threads that run jobs as they come.
struct Pool(std::sync::mpsc::Sender<Job>);

impl Executor for Pool {
    fn execute(&self, job: Job) -> Result<(), Job> {
        self.0.send(job).map_err(|refused| refused.0)
    }
}

fn pool(threads: usize) -> Queue {
    let (jobs, arrivals) = std::sync::mpsc::channel::<Job>();
    let arrivals = Arc::new(Mutex::new(arrivals));
    for _ in 0..threads {
        let arrivals = arrivals.clone();
        thread::spawn(move || {
            loop {
                let next = arrivals.lock().expect("nothing panics with it").recv();
                match next {
                    Ok(job) => job.run(),
                    Err(_) => return,
                }
            }
        });
    }
    Queue::new(Pool(jobs))
}

#[test]
fn handlers_of_one_connection_never_run_at_once_on_many_threads() {
    struct Alone {
        is_inside: AtomicBool,
        wrong: Arc<AtomicUsize>,
        ended: Arc<AtomicUsize>,
        at: usize,
    }
    impl Alone {
        fn alone(&self, inside: impl FnOnce()) {
            if self.is_inside.swap(true, Ordering::SeqCst) {
                self.wrong.fetch_add(1, Ordering::SeqCst);
            }
            inside();
            thread::yield_now();
            self.is_inside.store(false, Ordering::SeqCst);
        }
    }
    impl QueuedHandler for Alone {
        fn received(&mut self, socket: &SocketHandle, bytes: Bytes) -> Flow {
            self.alone(|| ());
            if bytes != pattern(self.at..self.at + bytes.len()) {
                self.wrong.fetch_add(1, Ordering::SeqCst);
            }
            self.at += bytes.len();
            let wrong = self.wrong.clone();
            let count = move |_: &SocketHandle, sent: wharf::Result<()>| {
                wrong.fetch_add(usize::from(sent.is_err()), Ordering::SeqCst);
            };
            match socket.send_then(bytes, count) {
                Ok(()) => Flow::Continue,
                Err(_) => Flow::Reset,
            }
        }

        fn state(&mut self, _: &SocketHandle, state: &State) {
            self.alone(|| ());
            self.ended.fetch_add(usize::from(state.is_disconnected()), Ordering::SeqCst);
        }
    }
    let _watchdog =
        Watchdog::patient("handlers_of_one_connection_never_run_at_once", Duration::from_secs(60));
    for backend in backends("handlers_of_one_connection_never_run_at_once") {
        let (wrong, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (bad, over) = (wrong.clone(), ended.clone());
        let server = Server::bind("127.0.0.1:0").workers(2).backend(backend);
        let server = server
            .start_queued(&pool(4), move |_| Alone {
                is_inside: AtomicBool::new(false),
                wrong: bad.clone(),
                ended: over.clone(),
                at: 0,
            })
            .unwrap();
        let address = server.local_addr();
        let threads: Vec<_> = (0..8)
            .map(|number| {
                thread::spawn(move || {
                    wharf::run(async move {
                        let mut conn = Client::new(address).open().await.unwrap();
                        let size = 20_000 * (number + 1);
                        for at in (0..size).step_by(500) {
                            conn.send(&pattern(at..at + 500)).await.unwrap();
                            let mut back = [0; 500];
                            conn.recv_exact(&mut back).await.unwrap();
                            assert_pattern(&back, at);
                        }
                        conn.finish().await.unwrap();
                        assert!(recv_all(&mut conn).await.unwrap().is_empty());
                    })
                    .unwrap();
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        server.drain(Duration::from_secs(5)).wait().unwrap();
        while ended.load(Ordering::SeqCst) < 8 {
            thread::yield_now();
        }
        assert_eq!(wrong.load(Ordering::SeqCst), 0);
    }
}

#[cfg(feature = "tls")]
#[test]
fn a_handler_is_made_behind_the_tls_handshake_and_knows_what_came_of_it() {
    let _watchdog = Watchdog::new("a_handler_is_made_behind_the_tls_handshake");
    for backend in backends("a_handler_is_made_behind_the_tls_handshake") {
        let queue = JobQueue::new("handlers").unwrap();
        let server = Server::bind("127.0.0.1:0").workers(1).backend(backend).tls(&common::tls::acceptor());
        let notes = Notes::default();
        let theirs = notes.clone();
        let server = server
            .start_queued(&queue.queue(), move |socket| {
                assert!(socket.tls().is_some(), "the handshake is over");
                Echo(theirs.clone())
            })
            .unwrap();
        let client = common::tls::client(server.local_addr());
        wharf::run(async move {
            let mut conn = client.open().await.unwrap();
            conn.send(b"protected").await.unwrap();
            let mut back = [0; 9];
            conn.recv_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"protected");
            conn.finish().await.unwrap();
            assert!(recv_all(&mut conn).await.unwrap().is_empty());
            let reason = conn.close().await;
            assert!(reason.is_graceful(), "{reason}");
        })
        .unwrap();
        server.drain(Duration::from_secs(5)).wait().unwrap();
        queue.join().unwrap();
        assert_eq!(notes.lines().last().unwrap(), "dropped");
    }
}
