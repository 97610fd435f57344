//! Completions: waiting for many operations on the thread that asks.

mod common;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{Watchdog, backends};
use wharf::event::{Completion, Connection, Flow, Handler, JobQueue, PollQueue, Service};
use wharf::{Client, Error, Server, ServerHandle};

const LONG: Duration = Duration::from_secs(10);

/// Runs `scenario` with a service and an echo server on every backend.
fn on_each(name: &str, scenario: impl Fn(&Service, &Client)) {
    let _watchdog = Watchdog::new(name);
    for backend in backends(name) {
        let server = Server::bind("127.0.0.1:0").workers(1).backend(backend);
        let server: ServerHandle = server
            .start(|mut conn| async move {
                while let Some(chunk) = conn.recv_chunk().await? {
                    conn.send(&chunk).await?;
                }
                Ok(())
            })
            .expect("all is in order here");
        let service = Service::new().backend(backend);
        service.start().expect("all is in order here");
        scenario(&service, &Client::new(server.local_addr()));
        service.stop_and_wait().expect("all is in order here");
        server.stop().wait().expect("all is in order here");
    }
}

#[test]
fn one_completion_waits_for_many_operations_and_can_be_used_again() {
    on_each("one_completion_waits_for_many_operations", |service, client| {
        let queue = JobQueue::new("handlers").unwrap();
        let sockets: Vec<_> = (0..4).map(|_| service.socket(client, &queue.queue(), ())).collect();
        let done = Completion::new();
        assert!(done.wait(None).unwrap(), "nothing is waited for");
        for socket in &sockets {
            socket.connect_with(&done).unwrap();
        }
        assert!(done.wait(LONG).unwrap());
        assert!(sockets.iter().all(|socket| socket.state().is_connected()));
        for round in 0..5 {
            let (tell, told) = mpsc::channel();
            for socket in &sockets {
                let tell = tell.clone();
                socket.send_with(format!("round {round}"), &done).unwrap();
                let receive =
                    move |_: &_, bytes: wharf::Result<bytes::Bytes>| tell.send(bytes?).map_err(Error::other);
                socket.receive_with(&done, receive).unwrap();
            }
            assert!(done.wait(LONG).unwrap());
            assert_eq!(told.try_iter().count(), 4, "all handlers have run before");
        }
        for socket in &sockets {
            socket.close_with(&done).unwrap();
        }
        assert!(done.wait(LONG).unwrap());
        assert!(sockets.iter().all(|socket| socket.state().is_disconnected()));
        assert_eq!(done.pending(), 0);
    });
}

#[test]
fn a_wait_that_is_too_short_is_no_failure_and_goes_on_later() {
    on_each("a_wait_that_is_too_short", |service, client| {
        let queue = JobQueue::new("handlers").unwrap();
        let socket = service.socket(client, &queue.queue(), ());
        let done = Completion::new();
        socket.connect().unwrap();
        socket.receive_with(&done, |_, bytes| bytes.map(|_| ())).unwrap();
        assert!(!done.wait(Duration::from_millis(20)).unwrap(), "nobody has sent anything");
        assert!(!done.wait(Duration::ZERO).unwrap());
        socket.send("x").unwrap();
        assert!(done.wait(LONG).unwrap());
    });
}

#[test]
fn all_failures_can_be_read_and_are_told_once() {
    on_each("all_failures_can_be_read", |service, client| {
        let queue = JobQueue::new("handlers").unwrap();
        let socket = service.socket(client, &queue.queue(), ());
        let done = Completion::new();
        socket.connect().unwrap();
        socket.receive_with(&done, |_, _| Err(Error::other("the handler's own"))).unwrap();
        socket.send("x").unwrap();
        let refused = socket.connect_with(&done).unwrap_err();
        assert!(refused.to_string().contains("invalid state"), "{refused}");
        drop(done.add_dependency());
        let failures = done.wait(LONG).unwrap_err();
        let texts: Vec<_> = failures.errors().iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        for part in ["the handler's own", "invalid state", "given up"] {
            assert!(texts.iter().any(|text| text.contains(part)), "{part} is not in {texts:?}");
            assert!(failures.to_string().contains(part));
        }
        assert!(done.wait(LONG).unwrap(), "they were told");
        assert!(Error::from(failures).to_string().contains("the handler's own"));
    });
}

#[test]
fn failures_are_kept_up_to_a_bound_and_counted_beyond() {
    let done = Completion::new();
    (0..100).for_each(|number| done.push_error(Error::other(format!("number {number}"))));
    let failures = done.wait(None).unwrap_err();
    assert_eq!((failures.errors().len(), failures.further()), (64, 36));
    assert!(failures.to_string().ends_with("and 36 more"));
    assert!(done.wait(None).unwrap());
}

#[test]
fn waiting_on_the_thread_that_would_have_to_act_is_an_error() {
    on_each("waiting_on_the_thread_that_would_have_to_act", |service, client| {
        // On the queue's own thread.
        let queue = JobQueue::new("handlers").unwrap();
        let socket = service.socket(client, &queue.queue(), ());
        socket.connect().unwrap();
        let done = Completion::new();
        socket.receive_with(&done, |_, bytes| bytes.map(|_| ())).unwrap();
        let (tell, told) = mpsc::channel();
        let theirs = done.clone();
        queue.post(move || tell.send(theirs.wait(None)).unwrap()).unwrap();
        let problem = told.recv_timeout(LONG).unwrap().unwrap_err();
        assert!(problem.to_string().contains("another thread"), "{problem}");
        socket.send("x").unwrap();
        assert!(done.wait(LONG).unwrap(), "elsewhere it is none, and nothing was lost");
        // What needs no handler can be waited for there.
        let (tell, told) = mpsc::channel();
        let handle = socket.handle();
        queue
            .post(move || {
                let sent = Completion::new();
                handle.send_with("y", &sent).unwrap();
                tell.send(sent.wait(LONG)).unwrap();
            })
            .unwrap();
        assert!(told.recv_timeout(LONG).unwrap().unwrap());

        // On the thread that polls.
        let queue = PollQueue::new().unwrap();
        let socket = service.socket(client, &queue.queue(), ());
        socket.connect().unwrap();
        socket.send("x").unwrap();
        queue.poll();
        socket.receive_with(&done, |_, bytes| bytes.map(|_| ())).unwrap();
        let problem = done.wait(None).unwrap_err();
        assert!(problem.to_string().contains("runs the queue"), "{problem}");
        while !done.wait(Duration::ZERO).unwrap() {
            queue.wait(LONG);
            queue.run_pending(10);
        }

        // On a thread that should poll and never has; nobody else does.
        let queue = PollQueue::new().unwrap().unattended_max(Duration::from_millis(50));
        let socket = service.socket(client, &queue.queue(), ());
        socket.connect().unwrap();
        socket.send("x").unwrap();
        socket.receive_with(&done, |_, bytes| bytes.map(|_| ())).unwrap();
        let problem = done.wait(None).unwrap_err();
        assert!(problem.to_string().contains("nobody polls the queue"), "{problem}");
        while !done.wait(Duration::ZERO).unwrap() {
            queue.wait(LONG);
            queue.run_pending(10);
        }

        // On a worker.
        struct Waits(mpsc::Sender<String>);
        impl Handler for Waits {
            fn connected(&mut self, _: &mut Connection<'_>) -> Flow {
                let done = Completion::new();
                let work = done.add_dependency();
                self.0.send(done.wait(None).unwrap_err().to_string()).unwrap();
                work.finish(Ok(()));
                Flow::Close
            }

            fn received(&mut self, _: &mut Connection<'_>, _: &[u8]) -> Flow {
                Flow::Continue
            }
        }
        let (tell, told) = mpsc::channel();
        service.connect(client, Waits(tell)).unwrap();
        let problem = told.recv_timeout(LONG).unwrap();
        assert!(problem.contains("worker"), "{problem}");
    });
}

#[test]
fn many_threads_can_finish_and_wait_at_once() {
    let _watchdog = Watchdog::new("many_threads_can_finish_and_wait_at_once");
    for _ in 0..200 {
        let done = Completion::new();
        let work: Vec<_> = (0..8).map(|_| done.add_dependency()).collect();
        let waiting: Vec<_> = (0..2)
            .map(|_| {
                let done = done.clone();
                thread::spawn(move || done.wait(LONG).unwrap())
            })
            .collect();
        let working: Vec<_> =
            work.into_iter().map(|work| thread::spawn(move || work.finish(Ok(())))).collect();
        assert!(waiting.into_iter().all(|thread| thread.join().unwrap()));
        working.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
