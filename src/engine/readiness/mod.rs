//! The readiness engine: epoll on Linux, kqueue on macOS and the BSDs, both through mio.
//!
//! It emulates completions. The kernel says that a socket is ready; the engine then makes the call itself, within
//! `next`, and reports its result. Readiness is edge-triggered, so each connection remembers what it was told until a
//! call says "would block" or moves fewer bytes than asked, which means the same (epoll(7), Q9): one system call per
//! message instead of two. A buffer is leased only when there is data, so idle connections hold none.
//!
//! Late events are nearly harmless here. One may come for the next connection in a slot only if somebody else, a forked child, still
//! holds the old descriptor; a wrong flag costs one call that would block, or tells a paused connection of an end that is not
//! there. Urgent data (MSG_OOB) is not supported: a peer
//! that sends some may find what follows it unread until it sends more.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use rustix::io::Errno;

use super::alarm::Alarm;
use super::buffer::{CHUNK_SIZE, Chunk, ChunkPool, Outgoing, SLICES_MAX};
use super::listening::{Listening, Next};
use super::{
    Completion, Listener, ListenerId, RECEIVE_BUDGET, Share, Socket, Source, Submitted, Token, Waker, grow,
    outq, socket,
};
use crate::address::Address;
use crate::config::SocketOptions;
use crate::time::Time;

/// Events fetched by one `wait`.
const EVENTS_MAX: usize = 1024;
const WAKER: mio::Token = mio::Token(usize::MAX);
const ALARM: mio::Token = mio::Token(usize::MAX - 1);
/// Listeners count down from here; connections count up from zero.
const LISTENERS: usize = usize::MAX - 2;

pub(crate) struct Readiness {
    poll: Poll,
    events: Events,
    waker: Arc<mio::Waker>,
    alarm: Alarm,
    started: Instant,
    connections: Vec<Option<Connection>>,
    listeners: Vec<Option<Listening>>,
    chunks: Rc<ChunkPool>,
    /// What may have something to do in this turn.
    queue: VecDeque<Source>,
    /// What has used up its share of this turn.
    later: Vec<Source>,
    /// Completions that need no call.
    finished: VecDeque<Completion>,
    turn: u64,
}

struct Connection {
    generation: u32,
    socket: OwnedFd,
    connecting: bool,
    armed: bool,
    /// A read may find something.
    readable: bool,
    /// FIN or an error has come: the socket is not drained before a read says so.
    read_closed: bool,
    /// An error has come, which has to be told also while nobody receives.
    broken: bool,
    /// A write may find room.
    writable: bool,
    /// The peer's end, or a failure, has been reported.
    ended: bool,
    /// So has that the peer's end is to come.
    hung_up: bool,
    /// A failure has been reported.
    failed: bool,
    queued: bool,
    /// Receptions are offered to whoever reads, before the engine makes them.
    offers: bool,
    /// One is, until the next `wait`.
    offered: bool,
    /// The last one filled the reader's buffer, which had so much room: more than that may have come.
    overflows: bool,
    room: usize,
    /// More than that had come: a chunk takes it in one piece.
    too_large: bool,
    /// What a reader's call found out, to be reported.
    found: Option<Errno>,
    outgoing: Option<Box<Outgoing>>,
    share: Share,
}

impl Readiness {
    pub(crate) fn new() -> io::Result<Readiness> {
        let poll = Poll::new()?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), WAKER)?);
        let alarm = Alarm::new()?;
        #[cfg(target_os = "linux")]
        poll.registry().register(&mut SourceFd(&alarm.as_fd().as_raw_fd()), ALARM, Interest::READABLE)?;
        Ok(Readiness {
            poll,
            alarm,
            events: Events::with_capacity(EVENTS_MAX),
            waker,
            started: Instant::now(),
            connections: Vec::new(),
            listeners: Vec::new(),
            chunks: ChunkPool::new(),
            queue: VecDeque::new(),
            later: Vec::new(),
            finished: VecDeque::new(),
            turn: 0,
        })
    }

    pub(crate) fn now(&self) -> Time {
        Time::ZERO.after(self.started.elapsed())
    }

    /// Where the receive buffers come from.
    pub(crate) fn chunks(&self) -> &ChunkPool {
        &self.chunks
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker::Readiness(self.waker.clone())
    }
}

/// Listeners.
impl Readiness {
    pub(crate) fn listen(&mut self, id: ListenerId, listener: Listener) -> io::Result<()> {
        let Listener::Os(listener) = listener else {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        };
        let index = id.0 as usize;
        self.poll.registry().register(
            &mut SourceFd(&listener.as_raw_fd()),
            mio::Token(LISTENERS - index),
            Interest::READABLE,
        )?;
        grow(&mut self.listeners, index);
        self.listeners[index] = Some(Listening::new(listener));
        Ok(())
    }

    pub(crate) fn pause_accept(&mut self, id: ListenerId) {
        if let Some(Some(listening)) = self.listeners.get_mut(id.0 as usize) {
            listening.paused = true;
        }
    }

    pub(crate) fn resume_accept(&mut self, id: ListenerId) {
        if let Some(Some(listening)) = self.listeners.get_mut(id.0 as usize) {
            listening.paused = false;
            self.enqueue(Source::Listener(id.0));
        }
    }

    pub(crate) fn unlisten(&mut self, id: ListenerId) -> Option<Listener> {
        let listening = self.listeners.get_mut(id.0 as usize)?.take()?;
        // Fails only for what was never registered.
        drop(self.poll.registry().deregister(&mut SourceFd(&listening.listener.as_raw_fd())));
        Some(Listener::Os(listening.listener))
    }

    pub(crate) fn accept_now(&mut self, id: ListenerId) -> io::Result<Option<(Socket, Address)>> {
        match self.listeners.get_mut(id.0 as usize) {
            Some(Some(listening)) => listening.accept_now(socket::accept),
            _ => Ok(None),
        }
    }

    fn accept(&mut self, index: u32) -> Option<Completion> {
        let listening = self.listeners[index as usize].as_mut()?;
        listening.queued = false;
        match listening.accept(ListenerId(index), self.turn, socket::accept) {
            Next::Report(completion) => {
                listening.queued = true;
                self.queue.push_front(Source::Listener(index));
                Some(completion)
            }
            Next::Later => {
                self.later.push(Source::Listener(index));
                None
            }
            Next::Rest => None,
        }
    }
}

/// Connections.
impl Readiness {
    pub(crate) fn open(&mut self, token: Token, socket: Socket) -> io::Result<()> {
        let Socket::Os(socket) = socket else { return Err(io::Error::from(io::ErrorKind::Unsupported)) };
        self.register(token, socket, false)
    }

    pub(crate) fn connect(
        &mut self,
        token: Token,
        peer: &Address,
        options: &SocketOptions,
    ) -> io::Result<()> {
        let (socket, address) = socket::for_peer(peer, options)?;
        socket::connect(socket.as_fd(), &address)?;
        self.register(token, socket, true)
    }

    fn register(&mut self, token: Token, socket: OwnedFd, connecting: bool) -> io::Result<()> {
        let index = token.index as usize;
        self.poll.registry().register(
            &mut SourceFd(&socket.as_raw_fd()),
            mio::Token(index),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        grow(&mut self.connections, index);
        debug_assert!(self.connections[index].is_none(), "a slot is free before it is used again");
        self.connections[index] = Some(Connection {
            generation: token.generation,
            socket,
            connecting,
            armed: false,
            readable: false,
            read_closed: false,
            broken: false,
            writable: !connecting,
            ended: false,
            hung_up: false,
            failed: false,
            queued: false,
            offers: false,
            offered: false,
            overflows: false,
            room: 0,
            too_large: false,
            found: None,
            outgoing: None,
            share: Share::default(),
        });
        Ok(())
    }

    pub(crate) fn local_addr(&self, token: Token) -> io::Result<Address> {
        let connection = self.connections.get(token.index as usize).and_then(Option::as_ref);
        match connection {
            Some(connection) if connection.generation == token.generation => {
                socket::local_addr(connection.socket.as_fd())
            }
            _ => Err(io::Error::from(io::ErrorKind::NotConnected)),
        }
    }

    pub(crate) fn unacked(&self, token: Token) -> io::Result<usize> {
        match self.connections.get(token.index as usize) {
            Some(Some(connection)) if connection.generation == token.generation => {
                outq::unacked(connection.socket.as_fd())
            }
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    pub(crate) fn receive(&mut self, token: Token) {
        if let Some(connection) = self.connection(token) {
            connection.armed = true;
            if connection.readable {
                self.enqueue(Source::Connection(token.index));
            }
        }
    }

    pub(crate) fn offer(&mut self, token: Token, offers: bool) {
        let Some(connection) = self.connection(token) else { return };
        (connection.offers, connection.offered) = (offers, false);
        if !offers && connection.has_work() {
            self.enqueue(Source::Connection(token.index));
        }
    }

    pub(crate) fn receive_now(&mut self, token: Token, into: &mut [u8]) -> Option<(usize, Option<Chunk>)> {
        let connection = self.connections.get_mut(token.index as usize)?.as_mut()?;
        let is_offered = connection.generation == token.generation && std::mem::take(&mut connection.offered);
        if !is_offered || !connection.may_read() {
            return None;
        }
        connection.read_into(into, &self.chunks)
    }

    pub(crate) fn pause(&mut self, token: Token) {
        if let Some(connection) = self.connection(token) {
            connection.armed = false;
            if connection.broken || connection.read_closed {
                self.enqueue(Source::Connection(token.index));
            }
        }
    }

    pub(crate) fn send(&mut self, token: Token, outgoing: &mut Outgoing) -> Submitted {
        let Some(connection) = self.connection(token) else {
            return Submitted::Done(Err(io::ErrorKind::NotConnected.into()));
        };
        debug_assert!(connection.outgoing.is_none(), "one send in flight per connection");
        match connection.write(outgoing) {
            Some(result) => Submitted::Done(result),
            None => {
                connection.outgoing = Some(Box::new(std::mem::take(outgoing)));
                Submitted::InFlight
            }
        }
    }

    pub(crate) fn send_now(&mut self, token: Token, bytes: &[u8]) -> io::Result<usize> {
        let connection = self.connection(token).ok_or(io::ErrorKind::NotConnected)?;
        debug_assert!(connection.outgoing.is_none(), "nothing overtakes the send in flight");
        connection.write_slice(bytes).unwrap_or(Ok(0))
    }

    pub(crate) fn send_gathered_now(&mut self, token: Token, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let connection = self.connection(token).ok_or(io::ErrorKind::NotConnected)?;
        debug_assert!(connection.outgoing.is_none(), "nothing overtakes the send in flight");
        connection.write_gathered(slices).unwrap_or(Ok(0))
    }

    pub(crate) fn shutdown(&mut self, token: Token) -> io::Result<()> {
        let Some(connection) = self.connection(token) else { return Ok(()) };
        socket::shutdown(connection.socket.as_fd())
            .map_err(|error| connection.found.map_or(error, Errno::into))
    }

    pub(crate) fn close(&mut self, token: Token, reset: bool) {
        if self.connection(token).is_none() {
            return;
        }
        let Some(connection) = self.connections[token.index as usize].take() else { return };
        if reset {
            socket::reset_on_close(connection.socket.as_fd());
        }
        self.finished.push_back(Completion::Closed { token, outgoing: connection.outgoing });
    }

    fn connection(&mut self, token: Token) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(token.index as usize)?.as_mut()?;
        (connection.generation == token.generation).then_some(connection)
    }
}

/// Turns.
impl Readiness {
    pub(crate) fn spin(&mut self, until: Time) -> io::Result<bool> {
        loop {
            self.wait(Some(Time::ZERO))?;
            if !self.queue.is_empty() || !self.finished.is_empty() {
                return Ok(true);
            }
            if self.now() >= until {
                return Ok(false);
            }
        }
    }

    pub(crate) fn wait(&mut self, until: Option<Time>) -> io::Result<()> {
        self.turn += 1;
        let mut later = std::mem::take(&mut self.later);
        for source in later.drain(..) {
            // Most receptions that were offered have been made.
            if self.has_work(source) {
                self.enqueue(source);
            }
        }
        self.later = later;
        let pending = !self.queue.is_empty() || !self.finished.is_empty();
        let timeout = match until {
            _ if pending => Some(Duration::ZERO),
            // Times in the past come up with every turn that must not sleep, and need no clock.
            Some(Time::ZERO) => Some(Duration::ZERO),
            Some(until) => self.alarm.set(until, || Time::ZERO.after(self.started.elapsed()))?,
            None => None,
        };
        let is_signal = |error: &io::Error| error.kind() == io::ErrorKind::Interrupted;
        let mut polled = self.poll.poll(&mut self.events, timeout);
        if polled.as_ref().is_err_and(is_signal) {
            // Perhaps after a stop of the process: what has come meanwhile has to be known before deadlines are looked at.
            polled = self.poll.poll(&mut self.events, Some(Duration::ZERO));
        }
        match polled {
            Ok(()) => {}
            Err(error) if is_signal(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            self.note(event);
        }
        self.events = events;
        Ok(())
    }

    pub(crate) fn next(&mut self) -> Option<Completion> {
        if let Some(completion) = self.finished.pop_front() {
            return Some(completion);
        }
        while let Some(source) = self.queue.pop_front() {
            let completion = match source {
                Source::Connection(index) => self.step(index),
                Source::Listener(index) => self.accept(index),
            };
            if completion.is_some() {
                return completion;
            }
        }
        None
    }

    /// Remembers what an event tells.
    fn note(&mut self, event: &Event) {
        match event.token() {
            WAKER => self.finished.push_back(Completion::Woken),
            ALARM => self.alarm.rang(),
            mio::Token(index) if index < self.connections.len() => {
                let Some(connection) = &mut self.connections[index] else { return };
                connection.note(event);
                if connection.has_work() && !std::mem::replace(&mut connection.queued, true) {
                    self.queue.push_back(Source::Connection(index as u32));
                }
            }
            mio::Token(token) => {
                let index = LISTENERS - token;
                if let Some(Some(listening)) = self.listeners.get_mut(index) {
                    listening.ready = true;
                    self.enqueue(Source::Listener(index as u32));
                }
            }
        }
    }

    fn has_work(&self, source: Source) -> bool {
        match source {
            Source::Connection(index) => {
                self.connections[index as usize].as_ref().is_some_and(Connection::has_work)
            }
            Source::Listener(_) => true,
        }
    }

    fn enqueue(&mut self, source: Source) {
        let queued = match source {
            Source::Connection(index) => self.connections[index as usize].as_mut().map(|c| &mut c.queued),
            Source::Listener(index) => self.listeners[index as usize].as_mut().map(|l| &mut l.queued),
        };
        if let Some(queued) = queued
            && !std::mem::replace(queued, true)
        {
            self.queue.push_back(source);
        }
    }

    /// Makes the next call that a connection is ready for. It stays in front while there is more to do.
    fn step(&mut self, index: u32) -> Option<Completion> {
        let connection = self.connections[index as usize].as_mut()?;
        connection.queued = false;
        let token = Token { index, generation: connection.generation };
        if let Some(completion) = connection.finish(token) {
            self.again(index);
            return Some(completion);
        }
        if !connection.may_read() {
            return None;
        }
        if !connection.share.take(self.turn, RECEIVE_BUDGET) {
            self.later.push(Source::Connection(index));
            return None;
        }
        if connection.offers && connection.makes_offer() {
            // If nobody takes it until then.
            self.later.push(Source::Connection(index));
            return Some(Completion::Readable { token });
        }
        let read = connection.read(&self.chunks);
        if connection.offers
            && let Ok(Some(chunk)) = &read
        {
            connection.too_large = chunk.len() > connection.room && connection.room > 0;
        }
        if connection.has_work() {
            self.again(index);
        }
        match read {
            Ok(Some(chunk)) => Some(Completion::Received { token, chunk }),
            Ok(None) => Some(Completion::ReceiveEnded { token }),
            Err(Errno::AGAIN) => None,
            Err(error) => Some(Completion::Failed { token, error: error.into() }),
        }
    }

    /// Looks at a connection again before all others.
    fn again(&mut self, index: u32) {
        if let Some(connection) = &mut self.connections[index as usize] {
            connection.queued = true;
            self.queue.push_front(Source::Connection(index));
        }
    }
}

impl Connection {
    fn note(&mut self, event: &Event) {
        self.broken |= event.is_error();
        self.read_closed |= event.is_read_closed() || event.is_error();
        self.readable |= event.is_readable() || self.read_closed;
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
    }

    fn has_work(&self) -> bool {
        let may_write = self.writable && (self.connecting || self.outgoing.is_some());
        self.may_read() || self.broken || may_write || self.may_hang_up()
    }

    /// Whether the peer's end is known, and no read is going to tell it.
    fn may_hang_up(&self) -> bool {
        self.read_closed && !self.armed && !self.ended && !self.hung_up && !self.connecting
    }

    fn may_read(&self) -> bool {
        self.armed && self.readable && !self.ended && !self.connecting
    }

    /// Offers what may have come to the reader; not twice in vain, nor where an end is known, which is the engine's to tell.
    fn makes_offer(&mut self) -> bool {
        self.offered = !self.offered && !self.read_closed && !self.too_large;
        self.offered
    }

    /// Ends what was begun before: a connect, a send, or the connection itself.
    fn finish(&mut self, token: Token) -> Option<Completion> {
        if self.connecting {
            return self.finish_connecting().map(|result| Completion::Connected { token, result });
        }
        if self.outgoing.is_some()
            && let Some((outgoing, result)) = self.write_rest()
        {
            return Some(Completion::Sent { token, outgoing, result });
        }
        if let Some(error) = self.failure() {
            return Some(match self.ended {
                true => Completion::Failed { token, error },
                false => Completion::Broken { token, error },
            });
        }
        let hangs_up = self.may_hang_up();
        self.hung_up |= hangs_up;
        hangs_up.then_some(Completion::HungUp { token })
    }

    /// What broke the connection, if no read is going to find out. From now on a read finds only what came before, and an end.
    fn failure(&mut self) -> Option<io::Error> {
        let may_read = self.armed && !self.ended;
        if may_read || self.failed || !std::mem::take(&mut self.broken) {
            return None;
        }
        let error = match self.found.take() {
            Some(error) => error.into(),
            None => socket::failure(self.socket.as_fd())?,
        };
        (self.failed, self.hung_up) = (true, true);
        Some(error)
    }

    /// The outcome of a connect that is over; `None` while it goes on.
    fn finish_connecting(&mut self) -> Option<io::Result<()>> {
        if !self.writable {
            return None;
        }
        // What has failed is told as an error or an end, so a connect that goes well is asked about once.
        let may_have_failed = self.broken || self.read_closed || cfg!(not(target_os = "linux"));
        let failure = if may_have_failed { socket::failure(self.socket.as_fd()) } else { None };
        let result = match failure {
            Some(error) => Err(error),
            None => match socket::is_connected(self.socket.as_fd()) {
                Ok(false) => {
                    self.writable = false;
                    return None;
                }
                asked => asked.map(drop),
            },
        };
        self.connecting = false;
        (self.ended, self.failed) = (result.is_err(), result.is_err());
        Some(result)
    }

    /// Reads what is there to where the reader wants it, and what does not fit there to a chunk. An end, or a failure, is left to
    /// the next step.
    fn read_into(&mut self, into: &mut [u8], chunks: &Rc<ChunkPool>) -> Option<(usize, Option<Chunk>)> {
        let room = into.len();
        let mut n = 0;
        let read = if self.overflows {
            // One call for all, as long as it is likely that all do not fit.
            chunks.fill(|rest| {
                let all = socket::receive_scattered(self.socket.as_fd(), into, rest)?;
                n = all.min(room);
                Ok(all - n)
            })
        } else {
            socket::receive(self.socket.as_fd(), into).map(|all| {
                n = all;
                None
            })
        };
        match read {
            Ok(_) if n == 0 => {
                self.read_closed = true;
                None
            }
            Ok(rest) => {
                self.readable = match &rest {
                    _ if self.read_closed => true,
                    Some(rest) => rest.len() == CHUNK_SIZE,
                    None => n == room && !self.overflows,
                };
                (self.overflows, self.room, self.too_large) = (n == room, room, rest.is_some());
                Some((n, rest))
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                None
            }
            // The next turn has another try.
            Err(Errno::INTR) => None,
            Err(error) => {
                // The system tells it only once, and nothing is left to be received.
                self.found = Some(error);
                (self.broken, self.ended) = (true, true);
                None
            }
        }
    }

    /// Reads what is there; `None` at the peer's end.
    fn read(&mut self, chunks: &Rc<ChunkPool>) -> Result<Option<Chunk>, Errno> {
        loop {
            let mut room = 0;
            let read = chunks.fill(|buf| {
                room = buf.len();
                socket::receive(self.socket.as_fd(), buf)
            });
            match &read {
                // Fewer bytes than asked for: drained, unless the end is known to follow.
                Ok(Some(chunk)) => self.readable = chunk.len() == room || self.read_closed,
                Ok(None) => self.ended = true,
                Err(Errno::AGAIN) => self.readable = false,
                Err(Errno::INTR) => continue,
                Err(_) => (self.ended, self.failed) = (true, true),
            }
            return read;
        }
    }

    /// Goes on with the send in flight; gives it back if the kernel took something, or refused.
    fn write_rest(&mut self) -> Option<(Box<Outgoing>, io::Result<usize>)> {
        let outgoing = self.outgoing.take()?;
        match self.write(&outgoing) {
            Some(result) => Some((outgoing, result)),
            None => {
                self.outgoing = Some(outgoing);
                None
            }
        }
    }

    /// Writes what the kernel takes; `None` if it takes nothing now.
    fn write(&mut self, outgoing: &Outgoing) -> Option<io::Result<usize>> {
        match outgoing.single() {
            Some(bytes) => self.write_slice(bytes),
            None => {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = outgoing.slices(&mut slices);
                self.write_gathered(&slices[..count])
            }
        }
    }

    fn write_slice(&mut self, bytes: &[u8]) -> Option<io::Result<usize>> {
        self.write_with(bytes.len(), |socket| socket::send(socket, bytes))
    }

    /// Writes several pieces in one call.
    fn write_gathered(&mut self, slices: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        let given = slices.iter().map(|slice| slice.len()).sum();
        self.write_with(given, |socket| socket::send_gathered(socket, slices))
    }

    /// Makes a call that writes, at most `given` bytes, if the kernel may take some.
    fn write_with(
        &mut self,
        given: usize,
        write: impl Fn(BorrowedFd<'_>) -> Result<usize, Errno>,
    ) -> Option<io::Result<usize>> {
        if !self.writable || self.connecting {
            return None;
        }
        loop {
            match write(self.socket.as_fd()) {
                Ok(n) => {
                    // Fewer bytes than given: full, and an edge will tell when there is room (epoll(7), Q9).
                    self.writable = n == given;
                    return Some(Ok(n));
                }
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    return None;
                }
                Err(Errno::INTR) => {}
                // Once a reader has met the cause, the system says EPIPE for any.
                Err(error) => return Some(Err(self.found.unwrap_or(error).into())),
            }
        }
    }
}
