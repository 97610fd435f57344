//! A server's threads: one for each worker, or one less if the first worker has the caller's.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::Server;
use super::state::ServerState;
use crate::engine::Listener;
use crate::error::{Error, Operation, Result};
use crate::worker::member::{Attach, Member};
use crate::worker::{Message, Post, Worker};

/// Starts the worker threads; the first gets the listeners. Returns when all of them serve, or none does any more.
pub(super) fn start(
    server: &Server,
    state: &Arc<ServerState>,
    attach: &Attach,
    listeners: Vec<Listener>,
) -> Result<()> {
    let mut crew = Crew::new(state);
    let mut listeners = Some(listeners);
    for index in 0..state.workers() {
        crew.spawn(server, index, attach, listeners.take().unwrap_or_default());
    }
    crew.muster(None)
}

/// The same with the first worker on the calling thread. Returns when the server has ended; calls `started` before.
pub(super) fn run(
    server: &Server,
    state: &Arc<ServerState>,
    attach: &Attach,
    listeners: Vec<Listener>,
    started: impl FnOnce(),
) -> Result<()> {
    let _leaving = Leaving(state.clone());
    let mut crew = Crew::new(state);
    for index in 1..state.workers() {
        crew.spawn(server, index, attach, Vec::new());
    }
    match server.make_worker(0, state, attach, listeners) {
        Ok((worker, member)) => {
            crew.muster(Some(worker.post.clone()))?;
            // If `started` panics, or the worker crashes, nobody is left to stop the others.
            let abandoned = Abandoned(state);
            started();
            serve(server, &worker, &member);
            std::mem::forget(abandoned);
            Ok(())
        }
        Err(error) => {
            crew.failure = Some(error);
            crew.muster(None)
        }
    }
}

/// The threads of a server while it starts. A worker cannot leave its thread, so each is made there and reports its
/// mailbox.
struct Crew<'a> {
    state: &'a Arc<ServerState>,
    report: mpsc::Sender<Result<(usize, Post)>>,
    reports: mpsc::Receiver<Result<(usize, Post)>>,
    threads: Vec<thread::JoinHandle<()>>,
    failure: Option<Error>,
}

/// Sends the workers home when it is dropped.
struct Abandoned<'a>(&'a ServerState);

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        for post in self.0.posts() {
            drop(post.send(Message::Drain { within: Duration::ZERO }));
        }
    }
}

impl<'a> Crew<'a> {
    fn new(state: &'a Arc<ServerState>) -> Crew<'a> {
        let (report, reports) = mpsc::channel();
        Crew { state, report, reports, threads: Vec::new(), failure: None }
    }

    fn spawn(&mut self, server: &Server, index: usize, attach: &Attach, listeners: Vec<Listener>) {
        let (server, state, attach) = (server.clone(), self.state.clone(), attach.clone());
        let report = self.report.clone();
        let body = move || {
            let _leaving = Leaving(state.clone());
            match server.make_worker(index, &state, &attach, listeners) {
                Ok((worker, member)) => {
                    drop(report.send(Ok((index, worker.post.clone()))));
                    // The start is over when nobody is left to report.
                    drop(report);
                    serve(&server, &worker, &member);
                }
                Err(error) => {
                    state.start_failed.store(true, Ordering::SeqCst);
                    drop(report.send(Err(error)));
                }
            }
        };
        match thread::Builder::new().name(format!("wharf-{index}")).spawn(body) {
            Ok(thread) => self.threads.push(thread),
            Err(error) => self.failure = Some(Error::os(Operation::Start, error)),
        }
    }

    /// Waits for all reports. If one tells of a failure, the workers that did start are sent home.
    fn muster(self, first: Option<Post>) -> Result<()> {
        let Crew { state, report, reports, threads, mut failure } = self;
        drop(report);
        let mut posts: Vec<(usize, Post)> = first.into_iter().map(|post| (0, post)).collect();
        for report in reports {
            match report {
                Ok(post) => posts.push(post),
                Err(error) => failure = Some(error),
            }
        }
        posts.sort_by_key(|(index, _)| *index);
        state.set_posts(posts.into_iter().map(|(_, post)| post).collect());
        let Some(failure) = failure else { return Ok(()) };
        state.start_failed.store(true, Ordering::SeqCst);
        drop(Abandoned(state));
        for thread in threads {
            // One that panicked has ended as well.
            drop(thread.join());
        }
        Err(failure)
    }
}

/// What a worker thread does all day.
fn serve(server: &Server, worker: &Rc<Worker>, member: &Rc<Member>) {
    #[cfg(feature = "tokio")]
    let _context = server.tokio.as_ref().map(::tokio::runtime::Handle::enter);
    #[cfg(not(feature = "tokio"))]
    let _ = server;
    let _entered = worker.enter();
    let day = || {
        while !member.is_done(worker) {
            worker.turn(true);
        }
    };
    let crash = catch_unwind(AssertUnwindSafe(day)).err();
    if crash.is_some() {
        // What the crash has left half done may panic once more; the rest of the end is none the worse for it.
        drop(catch_unwind(AssertUnwindSafe(|| member.abandon(worker))));
    }
    let crash = crash.or(catch_unwind(AssertUnwindSafe(|| worker.shut())).err());
    if let Some(crash) = crash {
        member.server().worker_crashed(member.index());
        // Who waits for an answer to a message learns that there will be none.
        drop(catch_unwind(AssertUnwindSafe(|| drop(worker.post.close()))));
        drop(catch_unwind(AssertUnwindSafe(|| worker.slots.clear())));
        worker.member.borrow_mut().take();
        resume_unwind(crash);
    }
    worker.member.borrow_mut().take();
}

/// Tells that a worker's thread ended, in whichever way.
struct Leaving(Arc<ServerState>);

impl Drop for Leaving {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.crashed.store(true, Ordering::SeqCst);
        }
        self.0.worker_left();
    }
}
