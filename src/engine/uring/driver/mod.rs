//! The io_uring engine's logic: which requests are in flight for whom, and what their completions mean.
//!
//! # Ownership
//!
//! The kernel reads and writes memory until a request's last completion was seen, whatever happens to the connection. So
//! a connection's slot, its socket and what it sends stay in `connections` while `requests` is not zero, also after
//! `close`; received bytes come in buffers that belong to the engine; and dropping the driver ends all requests first.
//!
//! [`connections`], [`receiving`] and [`listeners`] have the parts; here is what binds them: requests, turns, and the end.

#![allow(unsafe_code)] // requests carry pointers; see `push`

mod connections;
mod key;
mod listeners;
mod receiving;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffers::Buffers;
use super::kernel::{Completed, Kernel, Key, Request};
use crate::engine::alarm::Alarm;
use crate::engine::buffer::{ChunkPool, Outgoing};
use crate::engine::{Completion, Token, Waker};
use crate::time::Time;

use connections::Connection;
use key::{Kind, NOBODY};
use listeners::Listening;

/// How long dropping the engine waits for requests to end.
const TEARDOWN: Duration = Duration::from_secs(1);

pub(crate) struct Driver<K: Kernel> {
    kernel: K,
    buffers: Rc<Buffers>,
    chunks: Rc<ChunkPool>,
    connections: Vec<Option<Connection>>,
    listeners: Vec<Option<Listening>>,
    waker: Arc<OwnedFd>,
    alarm: Alarm,
    started: Instant,
    /// What may have something to do in this turn without the ring.
    queue: VecDeque<Source>,
    /// What has used up its share of this turn.
    later: Vec<Source>,
    /// Completions that need nothing more.
    finished: VecDeque<Completion>,
    /// Requests that found the ring full.
    backlog: VecDeque<(Key, Request)>,
    /// Connections whose receive found no buffer.
    starved: Vec<Token>,
    /// Connections that have ended receiving, and whose failure somebody has to notice.
    unwatched: Vec<Token>,
    /// Boxes for the next sends in flight.
    boxes: Vec<Box<Outgoing>>,
    send_inline: bool,
    /// Requests whose last completion is to come.
    in_flight: usize,
    listeners_made: u32,
    turn: u64,
}

#[derive(Copy, Clone)]
enum Source {
    Connection(u32),
    Listener(u32),
}

impl<K: Kernel> Driver<K> {
    pub(crate) fn new(kernel: K, buffers: Rc<Buffers>) -> io::Result<Driver<K>> {
        use rustix::event::{EventfdFlags, eventfd};
        let waker = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let mut driver = Driver {
            kernel,
            buffers,
            chunks: ChunkPool::new(),
            connections: Vec::new(),
            listeners: Vec::new(),
            waker: Arc::new(waker),
            alarm: Alarm::new()?,
            started: Instant::now(),
            queue: VecDeque::new(),
            later: Vec::new(),
            finished: VecDeque::new(),
            backlog: VecDeque::new(),
            starved: Vec::new(),
            unwatched: Vec::new(),
            boxes: Vec::new(),
            send_inline: true,
            in_flight: 0,
            listeners_made: 0,
            turn: 0,
        };
        driver.await_wake();
        driver.await_alarm();
        Ok(driver)
    }

    pub(crate) fn now(&self) -> Time {
        Time::ZERO.after(self.started.elapsed())
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker::Eventfd(self.waker.clone())
    }

    fn await_wake(&mut self) {
        let request = Request::PollAlways { fd: self.waker.as_raw_fd() };
        self.request(Kind::Wake, NOBODY, request);
    }

    fn await_alarm(&mut self) {
        let request = Request::PollAlways { fd: self.alarm.as_fd().as_raw_fd() };
        self.request(Kind::Alarm, NOBODY, request);
    }
}

/// Requests.
impl<K: Kernel> Driver<K> {
    /// Puts a request that will complete into the ring.
    fn request(&mut self, kind: Kind, token: Token, request: Request) {
        self.in_flight += 1;
        self.push(Key::new(kind, token), request);
    }

    /// Ends the request of this kind; it still completes, with whatever it came to.
    fn cancel(&mut self, kind: Kind, token: Token) {
        let key = Key::new(kind, token);
        self.push(Key::new(Kind::Cancel, token), Request::Cancel { key });
    }

    fn push(&mut self, key: Key, request: Request) {
        // SAFETY: two requests hold pointers. What a `Send` points to is owned by the connection's `outgoing`, what a `Connect`
        // points to by its `rare`; both are boxed, untouched while `sending` or `connecting`, and kept until the completion,
        // or leaked by `drop`.
        let push = |kernel: &mut K| unsafe { kernel.push(key, &request) };
        if self.backlog.is_empty() && push(&mut self.kernel) {
            return;
        }
        if self.backlog.is_empty() {
            // Full. What the kernel says of it, it says again in `wait`.
            drop(self.kernel.enter(false));
            if push(&mut self.kernel) {
                return;
            }
        }
        self.backlog.push_back((key, request));
    }

    fn flush_backlog(&mut self) {
        for (key, request) in std::mem::take(&mut self.backlog) {
            self.push(key, request);
        }
    }
}

/// Turns.
impl<K: Kernel> Driver<K> {
    pub(crate) fn wait(&mut self, until: Option<Time>) -> io::Result<()> {
        self.turn += 1;
        for source in std::mem::take(&mut self.later) {
            self.enqueue(source);
        }
        self.flush_backlog();
        self.kernel.publish(&self.buffers);
        self.feed_starved();
        for token in std::mem::take(&mut self.unwatched) {
            self.watch(token);
        }
        let pending = !self.queue.is_empty() || !self.finished.is_empty() || self.kernel.has_completed();
        // Times in the past come up with every turn that must not sleep, and need no clock.
        let sleep = !pending && self.backlog.is_empty() && until != Some(Time::ZERO);
        if sleep && let Some(until) = until {
            let started = self.started;
            self.alarm.set(until, || Time::ZERO.after(started.elapsed()))?;
        }
        self.kernel.enter(sleep)
    }

    /// Lets those receive again that found no buffer, now that there are some.
    fn feed_starved(&mut self) {
        if self.buffers.published() > 0 {
            for token in std::mem::take(&mut self.starved) {
                self.arm(token);
            }
        }
    }

    pub(crate) fn next(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.finished.pop_front() {
                return Some(completion);
            }
            if let Some(completed) = self.kernel.pop() {
                if let Some(completion) = self.complete(completed) {
                    return Some(completion);
                }
                continue;
            }
            let source = self.queue.front().copied()?;
            let completion = match source {
                Source::Connection(index) => self.step(index),
                Source::Listener(index) => self.accept(index),
            };
            if completion.is_some() {
                // It stays in front, as it may have more to do.
                return completion;
            }
            self.queue.pop_front();
            if let Some(queued) = self.queued(source) {
                *queued = false;
            }
        }
    }

    fn complete(&mut self, completed: Completed) -> Option<Completion> {
        let kind = completed.key.kind()?;
        if !completed.more && kind != Kind::Cancel {
            self.in_flight -= 1;
        }
        match kind {
            Kind::Receive => return self.received(completed),
            Kind::Send => return self.sent(completed),
            Kind::Connect => return self.connected(completed),
            Kind::Broken => return self.broke(completed),
            Kind::Readable => self.became_readable(completed),
            Kind::Accept => self.connections_wait(completed),
            Kind::Wake => {
                if !completed.more {
                    self.await_wake();
                }
                return Some(Completion::Woken);
            }
            Kind::Alarm => {
                self.alarm.rang();
                if !completed.more {
                    self.await_alarm();
                }
            }
            Kind::Cancel => {}
        }
        None
    }

    fn queued(&mut self, source: Source) -> Option<&mut bool> {
        match source {
            Source::Connection(index) => {
                self.connections[index as usize].as_mut().map(|connection| &mut connection.is.queued)
            }
            Source::Listener(index) => {
                self.listeners[index as usize].as_mut().map(|listening| &mut listening.queued)
            }
        }
    }

    fn enqueue(&mut self, source: Source) {
        if let Some(queued) = self.queued(source)
            && !std::mem::replace(queued, true)
        {
            self.queue.push_back(source);
        }
    }
}

impl<K: Kernel> Drop for Driver<K> {
    /// Ends all requests before the memory goes that they use: first of teardown's steps, the rest is the kernel's drop.
    fn drop(&mut self) {
        // What never reached the ring has nothing to end.
        for (key, _) in std::mem::take(&mut self.backlog) {
            self.in_flight -= usize::from(key.kind() != Some(Kind::Cancel));
        }
        let end = Instant::now() + TEARDOWN;
        while self.in_flight > 0 && Instant::now() < end {
            if self.backlog.is_empty() {
                self.push(Key::new(Kind::Cancel, NOBODY), Request::CancelAll);
            }
            self.flush_backlog();
            drop(self.kernel.enter(false));
            let before = self.in_flight;
            while let Some(completed) = self.kernel.pop() {
                if let Some(id) = completed.buffer {
                    drop(self.buffers.lease(id));
                }
                let counts = completed.key.kind().is_some_and(|kind| kind != Kind::Cancel);
                self.in_flight -= usize::from(counts && !completed.more);
            }
            if self.in_flight == before {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if self.in_flight > 0 {
            self.kernel.abandon();
            for connection in self.connections.drain(..).flatten() {
                std::mem::forget((connection.outgoing, connection.rare));
            }
        }
    }
}

fn grow<T>(table: &mut Vec<Option<T>>, index: usize) {
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
}
