//! Sockets in event style: states, sends and receives, their bounds, and what happens when their owners or queues go.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::stage::play;
use common::{Watchdog, assert_pattern, backends, pattern, recv_all};
use wharf::event::{
    Callbacks, Completion, Disconnect, Executor, Flow, Job, JobQueue, PollQueue, Queue, QueuedHandler,
    Service, SocketHandle, State,
};
use wharf::{Bound, Client, CloseReason, Connection, ErrorKind, Limits, Proxy, Result, Server};

async fn echo(mut conn: Connection) -> Result<()> {
    while let Some(chunk) = conn.recv_chunk().await? {
        conn.send(&chunk).await?;
    }
    Ok(())
}

/// A place for what handlers tell, and a handler that keeps the states in it.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn add(&self, line: impl std::fmt::Display) {
        self.0.lock().expect("no handler panics with it").push(line.to_string());
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no handler panics with it").clone()
    }

    fn has(&self, start: &str) -> bool {
        self.lines().iter().any(|line| line.starts_with(start))
    }

    fn count(&self, start: &str) -> usize {
        self.lines().iter().filter(|line| line.starts_with(start)).count()
    }

    fn feedback(&self) -> Callbacks {
        let notes = self.clone();
        Callbacks::new().feedback(move |_, state| notes.add(state))
    }
}

#[test]
fn each_state_is_told_once_and_in_order_and_it_connects_again() {
    play("each_state_is_told_once_and_in_order", |stage| {
        let address = stage.serve(echo);
        let notes = Notes::default();
        let socket = stage.socket(&address, notes.feedback());
        assert!(matches!(socket.state(), State::Disconnected(Disconnect::Unconnected)));
        assert!(socket.error().is_none());
        for round in 1..=3 {
            socket.connect().unwrap();
            let twice = socket.connect().unwrap_err();
            assert!(twice.to_string().contains("invalid state"), "{twice}");
            stage.until("it is connected", || notes.count("connected") == round);
            assert!(socket.state().is_connected());
            assert_eq!(socket.peer_addr().unwrap().to_string(), address);
            assert!(socket.local_addr().is_some());
            assert!(socket.connect().is_err());
            socket.close();
            stage.until("it is disconnected", || notes.count("disconnected") == round);
            let refused = socket.send("late").unwrap_err();
            assert!(refused.is_closed(), "{refused}");
        }
        let connecting = format!("connecting to {address}");
        let round = [&*connecting, "connected", "disconnected: closed by this side"];
        assert_eq!(notes.lines(), round.repeat(3));
        assert!(socket.error().is_none(), "it ended in order");
    });
}

#[test]
fn a_connect_that_fails_leaves_its_error_and_fails_what_was_queued() {
    play("a_connect_that_fails_leaves_its_error", |stage| {
        let address = stage.nobody();
        let notes = Notes::default();
        let socket = stage.socket(&address, notes.feedback());
        let (sent, received) = (notes.clone(), notes.clone());
        socket.send_then("early", move |_, result| sent.add(format!("sent {result:?}"))).unwrap();
        socket.receive(move |_, result| received.add(format!("received {result:?}"))).unwrap();
        let done = Completion::new();
        socket.connect_with(&done).unwrap();
        stage.until("it has failed", || notes.has("disconnected"));
        let lines = notes.lines();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[0], format!("connecting to {address}"));
        assert!(lines[1].starts_with("sent Err") && lines[1].contains("refused"), "{lines:?}");
        assert!(lines[2].starts_with("received Err") && lines[2].contains("refused"), "{lines:?}");
        assert!(lines[3].contains("connection refused"), "{lines:?}");
        assert!(socket.error().expect("it has failed").is_refused());
        let failures = done.wait(Duration::ZERO).unwrap_err();
        assert!(failures.errors()[0].is_refused(), "{failures}");
        assert_eq!(socket.queued(), 0);
    });
}

#[test]
fn the_way_through_a_proxy_begins_with_the_proxy_and_not_with_the_name_that_it_looks_up() {
    play("the_way_through_a_proxy_begins_with_the_proxy", |stage| {
        let proxy = stage.nobody();
        let notes = Notes::default();
        let client = Client::new("hidden.test:80").proxy(Proxy::socks5(&proxy).unwrap());
        let socket = stage.service.socket(&client, &stage.queue.queue(), notes.feedback());
        socket.connect().unwrap();
        stage.until("it has failed", || notes.has("disconnected"));
        let lines = notes.lines();
        assert_eq!((lines.len(), &*lines[0]), (2, &*format!("connecting to {proxy}")), "{lines:?}");
        assert!(socket.error().expect("it has failed").is_refused());
    });
}

#[test]
fn what_is_sent_before_the_connection_stands_is_sent_when_it_does() {
    play("what_is_sent_before_the_connection_stands", |stage| {
        let got = Notes::default();
        let server = got.clone();
        let address = stage.serve(move |mut conn| {
            let server = server.clone();
            async move {
                server.add(String::from_utf8(recv_all(&mut conn).await?).unwrap());
                Ok(())
            }
        });
        let notes = Notes::default();
        let socket = stage.socket(&address, ());
        for word in ["one ", "two ", "three"] {
            let notes = notes.clone();
            socket.send_then(word, move |_, result| notes.add(format!("{word}{result:?}"))).unwrap();
        }
        assert_eq!(socket.queued(), 13);
        socket.connect().unwrap();
        stage.until("all is sent", || notes.lines().len() == 3);
        assert_eq!(notes.lines(), ["one Ok(())", "two Ok(())", "threeOk(())"]);
        assert_eq!(socket.queued(), 0);
        socket.finish();
        assert!(socket.send("more").is_err(), "this side has finished");
        stage.until("the server has it", || got.has("one two three"));
    });
}

#[test]
fn one_receive_is_armed_at_a_time_and_the_rest_waits_with_the_peer() {
    const SIZE: usize = 12 * 1024 * 1024;
    play("one_receive_is_armed_at_a_time", |stage| {
        let size = if stage.is_simulated() { SIZE / 4 } else { SIZE };
        let sent = Arc::new(AtomicUsize::new(0));
        let progress = sent.clone();
        let address = stage.serve(move |mut conn| {
            let sent = progress.clone();
            async move {
                while sent.load(Ordering::SeqCst) < size {
                    let at = sent.load(Ordering::SeqCst);
                    conn.send_owned(pattern(at..at + 64 * 1024)).await?;
                    sent.fetch_add(64 * 1024, Ordering::SeqCst);
                }
                Ok(())
            }
        });
        let socket = stage.socket(&address, ());
        let got = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        socket.connect().unwrap();
        let arm = |socket: &SocketHandle| {
            let (got, ended) = (got.clone(), ended.clone());
            socket.receive(move |_, bytes| match bytes.unwrap() {
                bytes if bytes.is_empty() => ended.store(true, Ordering::SeqCst),
                bytes => got.lock().unwrap().extend_from_slice(&bytes),
            })
        };
        arm(&socket).unwrap();
        let twice = socket.receive(|_, _| panic!("it is not armed")).unwrap_err();
        assert!(twice.to_string().contains("armed already"), "{twice}");
        stage.until("the first piece is here", || !got.lock().unwrap().is_empty());
        let first = got.lock().unwrap().len();
        // The peer comes to a halt, far from its end: nobody takes anything.
        let mut last = (usize::MAX, 0);
        stage.idle(|| {
            let now = sent.load(Ordering::SeqCst);
            last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
            last.1 > 100
        });
        assert!(sent.load(Ordering::SeqCst) < size, "the peer was not held up");
        assert_eq!(got.lock().unwrap().len(), first, "nothing comes that was not asked for");
        while !ended.load(Ordering::SeqCst) {
            let before = got.lock().unwrap().len();
            arm(&socket).unwrap();
            stage.until("the next piece", || {
                got.lock().unwrap().len() > before || ended.load(Ordering::SeqCst)
            });
        }
        let got = got.lock().unwrap();
        assert_eq!(got.len(), size);
        assert_pattern(&got, 0);
    });
}

#[test]
fn a_queue_that_is_slow_holds_the_peer_up_and_loses_nothing() {
    const SIZE: usize = 8 * 1024 * 1024;
    play("a_queue_that_is_slow_holds_the_peer_up", |stage| {
        let size = if stage.is_simulated() { SIZE / 4 } else { SIZE };
        let address = stage.serve(move |mut conn| async move { conn.send_owned(pattern(0..size)).await });
        let bound = 16 * 1024;
        let client = Client::new(&address).limits(Limits::default().receive_buffer(bound));
        let (total, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let notes = Notes::default();
        let handler = {
            let (total, most) = (total.clone(), most.clone());
            notes.feedback().incoming(move |_, bytes| {
                most.fetch_max(bytes.len(), Ordering::SeqCst);
                assert_pattern(&bytes, total.load(Ordering::SeqCst));
                total.fetch_add(bytes.len(), Ordering::SeqCst);
                Flow::Continue
            })
        };
        let socket = stage.service.socket(&client, &stage.queue.queue(), handler);
        socket.connect().unwrap();
        // Nobody polls for a while: all that may pile up does.
        stage.idle(|| socket.state().is_connected());
        stage.until("all is here, and the end", || notes.has("disconnected"));
        assert_eq!(total.load(Ordering::SeqCst), size);
        assert!(most.load(Ordering::SeqCst) <= bound + 65 * 1024, "{}", most.load(Ordering::SeqCst));
        let connecting = format!("connecting to {address}");
        assert_eq!(notes.lines(), [&*connecting, "connected", "disconnected: closed by the peer"]);
    });
}

#[test]
fn what_a_handler_does_not_consume_is_offered_again_in_front_of_the_rest() {
    play("what_a_handler_does_not_consume", |stage| {
        let address = stage.serve(|mut conn| async move {
            for byte in b"alpha\nbeta\ngamma\n" {
                conn.send(&[*byte]).await?;
                conn.flush().await?;
            }
            Ok(())
        });
        let notes = Notes::default();
        let lines = notes.clone();
        let handler = Callbacks::new().incoming(move |_, bytes| {
            let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else { return Flow::Consumed(0) };
            for line in String::from_utf8_lossy(&bytes[..end]).lines() {
                lines.add(line);
            }
            Flow::Consumed(end + 1)
        });
        let socket = stage.socket(&address, handler);
        socket.connect().unwrap();
        stage.until("all lines are here", || notes.lines().len() == 3);
        assert_eq!(notes.lines(), ["alpha", "beta", "gamma"]);
        stage.until("it has ended", || socket.state().is_disconnected());
    });
}

#[test]
fn a_handler_that_can_never_consume_loses_its_connection() {
    play("a_handler_that_can_never_consume", |stage| {
        let address = stage.serve(|mut conn| async move {
            conn.send_owned(pattern(0..512 * 1024)).await?;
            recv_all(&mut conn).await.map(|_| ())
        });
        let client = Client::new(&address).limits(Limits::default().receive_buffer(4096));
        let notes = Notes::default();
        let handler = notes.feedback().incoming(|_, _| Flow::Consumed(0));
        let socket = stage.service.socket(&client, &stage.queue.queue(), handler);
        socket.connect().unwrap();
        stage.until("it is disconnected", || notes.has("disconnected"));
        let State::Disconnected(Disconnect::Closed(reason)) = socket.state() else { panic!("{socket:?}") };
        assert_eq!(reason, CloseReason::Limit(Bound::ReceiveBuffer));
    });
}

#[test]
fn sends_are_bounded_and_their_room_comes_back() {
    play("sends_are_bounded", |stage| {
        let address = stage.serve(|mut conn| async move { recv_all(&mut conn).await.map(|_| ()) });
        let client = Client::new(&address).limits(Limits::default().send_marks(1000, 4000).send_max(8000));
        let socket = stage.service.socket(&client, &stage.queue.queue(), ());
        let large = socket.send(vec![0; 8001]).unwrap_err();
        assert_eq!(large.kind(), ErrorKind::Limit);
        let mut accepted = 0;
        let full = loop {
            match socket.send(Bytes::new()) {
                Ok(()) => accepted += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::Limit, "{full}");
        assert!(full.to_string().contains("send_max"), "{full}");
        assert!(accepted <= 8000 / 64 + 1, "{accepted}");
        socket.connect().unwrap();
        stage.until("there is room again", || socket.send(vec![1; 7000]).is_ok());
        socket.close();
        stage.until("it has ended", || socket.state().is_disconnected());
    });
}

#[test]
fn whoever_produces_is_asked_for_more_whenever_all_is_sent() {
    play("whoever_produces_is_asked_for_more", |stage| {
        let got = Arc::new(AtomicUsize::new(0));
        let server = got.clone();
        let address = stage.serve(move |mut conn| {
            let server = server.clone();
            async move {
                let all = recv_all(&mut conn).await?;
                assert_pattern(&all, 0);
                server.store(all.len(), Ordering::SeqCst);
                Ok(())
            }
        });
        let mut at = 0;
        let handler = Callbacks::new().outgoing(move |socket| {
            if at == 500_000 {
                return Flow::Close;
            }
            socket.send(pattern(at..at + 50_000)).unwrap();
            at += 50_000;
            Flow::Continue
        });
        let socket = stage.socket(&address, handler);
        socket.connect().unwrap();
        stage.until("the server has all of it", || got.load(Ordering::SeqCst) == 500_000);
    });
}

#[test]
fn a_queued_handler_that_panics_loses_its_connection_and_the_queue_goes_on() {
    play("a_queued_handler_that_panics", |stage| {
        let address = stage.serve(echo);
        let bad = stage.socket(&address, Callbacks::new().incoming(|_, _| panic!("as the test has it")));
        let notes = Notes::default();
        let good = notes.clone();
        let good = stage.socket(
            &address,
            Callbacks::new().incoming(move |_, bytes| {
                good.add(String::from_utf8_lossy(&bytes));
                Flow::Continue
            }),
        );
        bad.send("x").unwrap();
        bad.connect().unwrap();
        stage.until("it is reset", || bad.state().is_disconnected());
        let State::Disconnected(Disconnect::Closed(reason)) = bad.state() else { panic!("{bad:?}") };
        assert_eq!(reason, CloseReason::HandlerPanicked);
        assert!(bad.connect().is_err(), "no handler of it is called any more");
        good.send("still here").unwrap();
        good.connect().unwrap();
        stage.until("the queue goes on", || notes.lines().concat() == "still here");
    });
}

#[test]
fn dropping_a_queue_closes_the_connections_of_its_sockets() {
    play("dropping_a_queue_closes_the_connections", |stage| {
        let address = stage.serve(|mut conn| async move {
            conn.send(b"hello").await?;
            recv_all(&mut conn).await.map(|_| ())
        });
        let queue = PollQueue::new().unwrap();
        let callbacks = || Callbacks::new().incoming(|_, _| panic!("nobody polls"));
        let one = stage.service.socket(&Client::new(&address), &queue.queue(), callbacks());
        let two = stage.service.socket(&Client::new(&address), &queue.queue(), callbacks());
        one.connect().unwrap();
        let done = Completion::new();
        one.send_with("x", &done).unwrap();
        stage.idle(|| one.state().is_connected());
        drop(queue);
        stage.until("it is closed", || one.state().is_disconnected());
        let State::Disconnected(Disconnect::Closed(reason)) = one.state() else { panic!("{one:?}") };
        assert_eq!(reason, CloseReason::Shutdown);
        drop(done.wait(Duration::ZERO).map(|is_done| assert!(is_done, "the message has an end")));
        // One without any connection ends as well, and so does one that is made now.
        assert!(two.connect().unwrap_err().to_string().contains("its queue has ended"));
    });
}

#[test]
fn a_queue_that_ends_ends_the_sockets_too_that_have_nothing_for_it() {
    play("a_queue_that_ends_ends_the_sockets_too", |stage| {
        let address = stage.serve(|mut conn| async move { recv_all(&mut conn).await.map(|_| ()) });
        let queue = PollQueue::new().unwrap();
        let quiet = stage.service.socket(&Client::new(&address), &queue.queue(), ());
        quiet.connect().unwrap();
        stage.idle(|| {
            queue.run_pending(usize::MAX);
            quiet.state().is_connected() && queue.is_empty()
        });
        queue.run_pending(usize::MAX);
        let later = queue.queue();
        drop(queue);
        stage.idle(|| quiet.state().is_disconnected());
        let State::Disconnected(Disconnect::Closed(reason)) = quiet.state() else { panic!("{quiet:?}") };
        assert_eq!(reason, CloseReason::Shutdown);
        let late = stage.service.socket(&Client::new(&address), &later, ());
        assert!(late.connect().unwrap_err().to_string().contains("its queue has ended"));
        if !stage.is_simulated() {
            let queue = JobQueue::new("ends").unwrap();
            let quiet = stage.service.socket(&Client::new(&address), &queue.queue(), ());
            let done = Completion::new();
            quiet.connect_with(&done).unwrap();
            assert!(done.wait(Duration::from_secs(10)).unwrap());
            queue.stop();
            assert!(stage.idle(|| quiet.state().is_disconnected()));
        }
    });
}

#[test]
fn room_for_more_is_told_once_however_long_the_queue_sleeps() {
    play("room_for_more_is_told_once", |stage| {
        let address = stage.serve(|mut conn| async move { recv_all(&mut conn).await.map(|_| ()) });
        let calls = Arc::new(AtomicUsize::new(0));
        let told = calls.clone();
        let handler = Callbacks::new().outgoing(move |_| {
            told.fetch_add(1, Ordering::SeqCst);
            Flow::Continue
        });
        let socket = stage.socket(&address, handler);
        socket.connect().unwrap();
        assert!(stage.idle(|| socket.state().is_connected()));
        for _ in 0..200 {
            socket.send("more").unwrap();
            assert!(stage.idle(|| socket.queued() == 0));
        }
        stage.until("it is told", || calls.load(Ordering::SeqCst) > 0);
        assert_eq!(calls.load(Ordering::SeqCst), 1, "calls pile up for a queue that nobody polls");
    });
}

#[test]
fn an_executor_that_panics_ends_the_socket_and_completions_learn_of_it() {
    struct Broken;
    impl Executor for Broken {
        fn execute(&self, _: Job) -> std::result::Result<(), Job> {
            panic!("as the test has it")
        }
    }
    play("an_executor_that_panics_ends_the_socket", |stage| {
        let address = stage.serve(echo);
        let done = Completion::new();
        let socket = stage.service.socket(&Client::new(&address), &Queue::new(Broken), ());
        socket.connect_with(&done).unwrap();
        assert!(stage.idle(|| done.pending() == 0 && socket.state().is_disconnected()));
        assert!(socket.connect().unwrap_err().to_string().contains("no handler"));
    });
}

#[test]
fn two_handlers_that_drop_each_others_sockets_do_not_wait_for_each_other() {
    let _watchdog = Watchdog::new("two_handlers_that_drop_each_others_sockets");
    for backend in backends("two_handlers_that_drop_each_others_sockets") {
        let service = Service::new().backend(backend);
        service.start().unwrap();
        let server = Server::bind("127.0.0.1:0").workers(1).backend(backend).start(echo).unwrap();
        let queues = [JobQueue::new("one").unwrap(), JobQueue::new("two").unwrap()];
        let places: [Arc<Mutex<Option<wharf::event::Socket>>>; 2] = Default::default();
        let both = Arc::new(std::sync::Barrier::new(2));
        let done = Completion::new();
        for (index, queue) in queues.iter().enumerate() {
            let (other, both) = (places[1 - index].clone(), both.clone());
            let mut end = Some(done.add_dependency());
            let handler = Callbacks::new().feedback(move |_, state| {
                if state.is_connected() {
                    both.wait();
                    let other = other.lock().unwrap().take();
                    drop(other);
                    end.take().unwrap().finish(Ok(()));
                }
            });
            let client = Client::new(server.local_addr());
            *places[index].lock().unwrap() = Some(service.socket(&client, &queue.queue(), handler));
        }
        for place in &places {
            place.lock().unwrap().as_ref().unwrap().connect().unwrap();
        }
        assert!(done.wait(Duration::from_secs(10)).unwrap(), "they wait for each other");
        for queue in queues {
            queue.join().unwrap();
        }
        service.stop_and_wait().unwrap();
        server.stop().wait().unwrap();
    }
}

#[test]
fn no_handler_of_a_dropped_socket_is_called() {
    play("no_handler_of_a_dropped_socket", |stage| {
        let address = stage.serve(|mut conn| async move {
            conn.send(b"hello").await?;
            recv_all(&mut conn).await.map(|_| ())
        });
        for armed in [false, true] {
            let socket = match armed {
                true => stage.socket(&address, ()),
                false => stage.socket(&address, Callbacks::new().incoming(|_, _| panic!("it was dropped"))),
            };
            let done = Completion::new();
            socket.connect().unwrap();
            socket.send_then("bytes", |_, _| panic!("it was dropped")).unwrap();
            if armed {
                socket.receive_with(&done, |_, _| panic!("it was dropped")).unwrap();
            }
            stage.idle(|| socket.state().is_connected());
            let handle = socket.handle();
            drop(socket);
            if armed {
                let given_up = done.wait(Duration::ZERO).unwrap_err();
                assert!(given_up.to_string().contains("given up"), "{given_up}");
            }
            stage.until("its connection is closed", || handle.state().is_disconnected());
            assert!(handle.connect().is_err() && handle.send("x").is_err());
        }
    });
}

#[test]
fn dropping_a_socket_waits_for_its_handler_but_not_within_it() {
    let _watchdog = Watchdog::new("dropping_a_socket_waits_for_its_handler");
    for backend in backends("dropping_a_socket_waits_for_its_handler") {
        let service = Service::new().backend(backend);
        service.start().unwrap();
        let server = Server::bind("127.0.0.1:0").workers(1).backend(backend).start(echo).unwrap();
        let client = Client::new(server.local_addr());
        let queue = JobQueue::new("handlers").unwrap();
        // From another thread: it waits.
        let (inside, is_over) = (Completion::new(), Arc::new(AtomicBool::new(false)));
        let (begun, over) = (Mutex::new(Some(inside.add_dependency())), is_over.clone());
        let handler = Callbacks::new().incoming(move |_, _| {
            begun.lock().unwrap().take().unwrap().finish(Ok(()));
            thread::sleep(Duration::from_millis(50));
            over.store(true, Ordering::SeqCst);
            Flow::Continue
        });
        let socket = service.socket(&client, &queue.queue(), handler);
        socket.send("x").unwrap();
        socket.connect().unwrap();
        assert!(inside.wait(Duration::from_secs(10)).unwrap());
        drop(socket);
        assert!(is_over.load(Ordering::SeqCst), "the handler ran on behind the drop");
        // Within its own handler: it does not.
        let place: Arc<Mutex<Option<wharf::event::Socket>>> = Arc::default();
        let done = Completion::new();
        let (theirs, end) = (place.clone(), Mutex::new(Some(done.add_dependency())));
        let handler = Callbacks::new().feedback(move |_, state| {
            if state.is_connected() {
                drop(theirs.lock().unwrap().take());
                end.lock().unwrap().take().unwrap().finish(Ok(()));
            }
        });
        let mut held = place.lock().unwrap();
        held.insert(service.socket(&client, &queue.queue(), handler)).connect().unwrap();
        drop(held);
        assert!(done.wait(Duration::from_secs(10)).unwrap());
        queue.join().unwrap();
        service.stop_and_wait().unwrap();
        server.stop().wait().unwrap();
    }
}

/// Many threads that run jobs as they come.
struct Pool {
    jobs: std::sync::mpsc::Sender<Job>,
}

impl Pool {
    fn queue(threads: usize) -> Queue {
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
        Queue::new(Pool { jobs })
    }
}

impl Executor for Pool {
    fn execute(&self, job: Job) -> std::result::Result<(), Job> {
        self.jobs.send(job).map_err(|refused| refused.0)
    }
}

/// Asserts that it is never called twice at once, nor after it was dropped, and that its bytes are the pattern's.
struct Alone {
    is_inside: Arc<AtomicBool>,
    is_gone: Arc<AtomicBool>,
    wrong: Arc<AtomicUsize>,
    got: Arc<AtomicUsize>,
}

impl QueuedHandler for Alone {
    fn state(&mut self, _: &SocketHandle, _: &State) {
        self.enter();
        self.leave();
    }

    fn received(&mut self, _: &SocketHandle, bytes: Bytes) -> Flow {
        self.enter();
        let at = self.got.fetch_add(bytes.len(), Ordering::SeqCst);
        if bytes != pattern(at..at + bytes.len()) {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
        thread::yield_now();
        self.leave();
        Flow::Continue
    }
}

impl Alone {
    fn enter(&self) {
        if self.is_inside.swap(true, Ordering::SeqCst) || self.is_gone.load(Ordering::SeqCst) {
            self.wrong.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn leave(&self) {
        self.is_inside.store(false, Ordering::SeqCst);
    }
}

#[test]
fn handlers_of_one_socket_never_run_at_once_nor_after_its_drop() {
    let _watchdog = Watchdog::patient("handlers_of_one_socket_never_run_at_once", Duration::from_secs(60));
    for backend in backends("handlers_of_one_socket_never_run_at_once") {
        let service = Service::new().workers(2).backend(backend);
        service.start().unwrap();
        let server = Server::bind("127.0.0.1:0").workers(2).backend(backend);
        let server = server
            .start(|mut conn| async move {
                let mut at = 0;
                loop {
                    conn.send(&pattern(at..at + 700)).await?;
                    conn.flush().await?;
                    at += 700;
                }
            })
            .unwrap();
        let client = Client::new(server.local_addr());
        let pool = Pool::queue(4);
        let threads: Vec<_> = (0..4)
            .map(|number| {
                let (service, client, pool) = (service.clone(), client.clone(), pool.clone());
                thread::spawn(move || {
                    for round in 0..60 {
                        let handler = Alone {
                            is_inside: Arc::default(),
                            is_gone: Arc::default(),
                            wrong: Arc::default(),
                            got: Arc::default(),
                        };
                        let (gone, wrong) = (handler.is_gone.clone(), handler.wrong.clone());
                        let (got, inside) = (handler.got.clone(), handler.is_inside.clone());
                        let socket = service.socket(&client, &pool, handler);
                        socket.connect().unwrap();
                        let enough = (round * 7 + number) * 100;
                        while got.load(Ordering::SeqCst) < enough {
                            thread::yield_now();
                        }
                        drop(socket);
                        assert!(!inside.load(Ordering::SeqCst), "a handler runs behind the drop");
                        gone.store(true, Ordering::SeqCst);
                        thread::yield_now();
                        assert_eq!(wrong.load(Ordering::SeqCst), 0);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        service.stop_and_wait().unwrap();
        assert_eq!(service.connections(), 0);
        server.stop().wait().unwrap();
    }
}
