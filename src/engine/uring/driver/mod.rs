//! The io_uring engine's logic: which requests are in flight for whom, and what their completions mean.
//!
//! # Ownership
//!
//! The kernel reads and writes memory until a request's last completion was seen, whatever happens to the connection. So
//! a connection's slot, its socket and what it sends stay in `connections` while `requests` is not zero, also after
//! `close`; received bytes come in buffers that belong to the engine; and dropping the driver ends all requests first.
//!
//! [`connections`], [`receiving`], [`sending`] and [`listeners`] have the parts; here is what binds them: requests, turns, and the end.

#![allow(unsafe_code)] // requests carry pointers; see `try_push`

mod connections;
#[cfg(any(test, fuzzing))]
pub(super) mod harness;
mod key;
mod listeners;
#[cfg(test)]
mod properties;
mod receiving;
mod sending;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffers::Buffers;
use super::kernel::{Completed, Kernel, Key, Request};
use crate::engine::alarm::Alarm;
use crate::engine::buffer::{ChunkPool, Outgoing, PiecePool};
use crate::engine::{Completion, Source, Token, Waker};
use crate::time::Time;

use connections::Connection;
use key::{Kind, NOBODY};
use listeners::Watched;
use sending::{COPIES_MAX, Unconfirmed};

pub(super) use sending::INLINE_SENDS;

/// Pauses between two looks at the ring, while spinning: reading what the kernel writes costs both of them.
const SPINS_PER_LOOK: usize = 8;
/// The kernel is asked so often to take what has to be submitted before something else is done.
const SUBMISSIONS_MAX: usize = 16;
/// How long dropping the engine waits for requests to end.
const TEARDOWN: Duration = Duration::from_secs(1);
const TEARDOWN_POLL: Duration = Duration::from_millis(1);

pub(crate) struct Driver<K: Kernel> {
    kernel: K,
    buffers: Rc<Buffers>,
    chunks: Rc<ChunkPool>,
    connections: Vec<Option<Connection>>,
    listeners: Vec<Option<Watched>>,
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
    /// Connections that nobody may receive from, and whose failure somebody has to notice.
    unwatched: Vec<Token>,
    /// Boxes for the next sends in flight.
    #[allow(clippy::vec_box, reason = "they come and go boxed")]
    boxes: Vec<Box<Outgoing>>,
    pieces: Rc<PiecePool>,
    inline_sends: usize,
    send_inline: bool,
    /// Connections with bytes handed over that the next submission confirms,
    unconfirmed: Vec<Unconfirmed>,
    /// and whether something waits for that.
    hurries: bool,
    /// Copies of such bytes, of many connections. Never grows: the kernel reads from it.
    copies: Vec<u8>,
    /// What has completed, of which the first `next_arrived` were looked at.
    arrived: Vec<Completed>,
    next_arrived: usize,
    /// Requests whose last completion is to come.
    in_flight: usize,
    listeners_made: u32,
    turn: u64,
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
            pieces: PiecePool::new(),
            inline_sends: INLINE_SENDS,
            send_inline: true,
            unconfirmed: Vec::new(),
            copies: Vec::with_capacity(COPIES_MAX),
            hurries: false,
            arrived: Vec::new(),
            next_arrived: 0,
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
        if self.backlog.is_empty() && !try_push(&mut self.kernel, key, &request) {
            // Full. What the kernel says of it, it says again in `wait`.
            drop(self.submit(false));
            if !try_push(&mut self.kernel, key, &request) {
                self.backlog.push_back((key, request));
            }
        } else if !self.backlog.is_empty() {
            self.backlog.push_back((key, request));
        }
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
        self.buffers.begin_turn();
        self.kernel.publish(&self.buffers);
        self.feed_starved();
        for token in std::mem::take(&mut self.unwatched) {
            self.watch(token);
        }
        // Times in the past come up with every turn that must not sleep, and need no clock.
        let sleep =
            !self.has_something() && self.backlog.is_empty() && !self.hurries && until != Some(Time::ZERO);
        if sleep && let Some(until) = until {
            let started = self.started;
            self.alarm.set(until, || Time::ZERO.after(started.elapsed()))?;
        }
        self.submit(sleep)
    }

    pub(crate) fn spin(&mut self, until: Time) -> io::Result<bool> {
        self.wait(Some(Time::ZERO))?;
        loop {
            if self.has_something() {
                return Ok(true);
            }
            // The kernel says in shared memory that it has something: no call is needed to look.
            if self.kernel.is_stirring() {
                self.submit(false)?;
                continue;
            }
            if self.now() >= until {
                return Ok(false);
            }
            for _ in 0..SPINS_PER_LOOK {
                std::hint::spin_loop();
            }
        }
    }

    /// Whether `next` has something to look at.
    fn has_something(&self) -> bool {
        !self.queue.is_empty() || !self.finished.is_empty() || self.next_arrived < self.arrived.len()
    }

    /// Submits what was pushed, and takes what has completed; if `sleep`, waits until something has.
    fn submit(&mut self, sleep: bool) -> io::Result<()> {
        let mut entered = self.kernel.enter(sleep);
        if self.take_completed() == 0 && sleep {
            // A signal has ended the sleep, perhaps after a stop of the process: what has come meanwhile has to be known
            // before deadlines are looked at.
            entered = entered.and(self.kernel.enter(false));
            self.take_completed();
        }
        if !self.unconfirmed.is_empty() {
            // A refusal may be among what overflowed.
            while self.kernel.has_overflowed()
                && self.kernel.enter(false).is_ok()
                && self.take_completed() > 0
            {}
            // Should the kernel have left something in a queue, all are confirmed with the next submission.
            if self.kernel.queued() == 0 && !self.kernel.has_overflowed() {
                self.confirm();
            }
        }
        self.hurries &= !self.unconfirmed.is_empty();
        entered
    }

    /// Takes what has completed; returns how much that is.
    fn take_completed(&mut self) -> usize {
        if self.next_arrived == self.arrived.len() {
            self.arrived.clear();
            self.next_arrived = 0;
        }
        let before = self.arrived.len();
        self.kernel.drain(&mut self.arrived);
        if !self.unconfirmed.is_empty() {
            for at in before..self.arrived.len() {
                self.note_refusal(self.arrived[at].key);
            }
        }
        self.arrived.len() - before
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
            if let Some(completed) = self.arrived.get(self.next_arrived).copied() {
                self.next_arrived += 1;
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
            Kind::Readable => return self.became_readable(completed),
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

    /// Bytes of receive buffers that are in use or kept for the next reception.
    pub(crate) fn held(&self) -> usize {
        self.chunks.held() + self.buffers.held()
    }

    /// Where the buffers of bulk receptions come from.
    pub(crate) fn chunks(&self) -> &ChunkPool {
        &self.chunks
    }

    /// Buffers of completions that nobody has looked at.
    #[cfg(any(test, fuzzing))]
    fn arrived_buffers(&self) -> usize {
        self.arrived[self.next_arrived..].iter().filter(|completed| completed.buffer.is_some()).count()
    }

    fn queued(&mut self, source: Source) -> Option<&mut bool> {
        match source {
            Source::Connection(index) => {
                self.connections[index as usize].as_mut().map(|connection| &mut connection.is.queued)
            }
            Source::Listener(index) => {
                self.listeners[index as usize].as_mut().map(|watched| &mut watched.listening.queued)
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

/// Puts a request of a driver into its ring, if that has room.
fn try_push<K: Kernel>(kernel: &mut K, key: Key, request: &Request) -> bool {
    // SAFETY: three kinds of requests hold pointers, and what they point to stays until they are over.
    // `Connect` points to the address in its connection's `rare`, and a send to bytes of its connection's `outgoing`: both are
    // boxed, not touched while the request is in flight, and kept until its last completion, or leaked by `drop`.
    // A quiet send may point into `copies` as well, which neither move nor change before it was submitted, and it is over then.
    unsafe { kernel.push(key, request) }
}

impl<K: Kernel> Drop for Driver<K> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Teardown.
impl<K: Kernel> Driver<K> {
    /// Ends all requests before the memory goes that they use, and closes all sockets: first of teardown's steps, the rest is
    /// the kernel's drop. That may never come, if a user has leaked a connection, and with it the engine.
    pub(crate) fn end(&mut self) {
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
            let before = self.in_flight;
            drop(self.submit(false));
            while let Some(completed) = self.arrived.get(self.next_arrived).copied() {
                self.next_arrived += 1;
                if let Some(id) = completed.buffer {
                    drop(self.buffers.lease(id));
                }
                let counts = completed.key.kind().is_some_and(|kind| kind != Kind::Cancel);
                self.in_flight -= usize::from(counts && !completed.more);
            }
            if self.in_flight == before {
                // What a thread of the kernel is busy with ends at its own time. A wait for it might never return, so this
                // looks again, until `end` at the latest; usually the first look finds everything.
                std::thread::sleep(TEARDOWN_POLL);
            }
        }
        let abandoned = std::mem::take(&mut self.in_flight) > 0;
        if abandoned {
            self.kernel.abandon();
        }
        for connection in self.connections.iter_mut().filter_map(Option::take) {
            if abandoned {
                std::mem::forget((connection.outgoing, connection.rare));
            }
        }
    }
}
