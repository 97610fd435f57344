//! Receiving, and noticing what breaks.
//!
//! A connection receives in one of two ways, and changes between them where nothing is in flight:
//!
//! * **multishot**: one request, completed once for each reception, into the next published buffer. Cheapest for messages.
//!   It ends by itself after [`CAP`] bytes, or has to be cancelled when nobody wants more.
//! * **bulk**: a standing poll tells that the socket is readable; then read inline, into one large warm chunk after the
//!   other, until it is drained. Cheapest for large messages and streams: fewer copies and calls, less cache, and no
//!   buffers in advance. Large receptions lead here, and small ones back.
//!
//! What a multishot request delivers after `pause`, before its end, is held for the next `receive`.

use std::os::fd::{AsFd, AsRawFd};

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::super::kernel::{Completed, Kernel, Request};
use super::Driver;
use super::key::Kind;
use crate::engine::buffer::Chunk;
use crate::engine::{Completion, RECEIVE_BUDGET, Source, Token};

/// The most bytes that one multishot receive delivers: a connection's share of a turn, after which it has to ask again.
const CAP: u32 = 64 * 1024;
/// Receptions from this size on are cheaper read in bulk.
const LARGE: usize = 8 * 1024;
/// So many large receptions in a row make a connection read in bulk,
const LARGE_RUN: u8 = 2;
/// and so many small ones end it.
const SMALL_RUN: u8 = 8;
/// What a poll tells of a socket that brings nothing more than what it has (poll(2)).
const OVER: i32 = (PollFlags::ERR.bits() | PollFlags::HUP.bits() | PollFlags::RDHUP.bits()) as i32;

impl<K: Kernel> Driver<K> {
    /// Makes sure that what comes next is noticed, if anybody wants it.
    pub(super) fn arm(&mut self, token: Token) {
        let Some(connection) = self.connection(token) else { return };
        let is = &mut connection.is;
        if !is.wanted || is.receiving || is.ended || is.connecting {
            return;
        }
        let fd = connection.socket.as_raw_fd();
        if !is.bulk {
            // The poll has to end first, or both would tell.
            if !is.polling {
                is.receiving = true;
                connection.requests += 1;
                self.request(Kind::Receive, token, Request::Receive { fd, cap: CAP });
            }
            return;
        }
        let readable = is.readable;
        if !is.polling {
            is.polling = true;
            connection.requests += 1;
            self.request(Kind::Readable, token, Request::PollAlways { fd });
        }
        if readable {
            self.enqueue(Source::Connection(token.index));
        }
    }

    /// Makes sure that a failure is noticed while nothing else is in flight that would.
    pub(super) fn watch(&mut self, token: Token) {
        let Some(connection) = self.connection(token) else { return };
        let is = &mut connection.is;
        let reads = is.wanted && !is.ended;
        if reads || is.watching || is.failed || is.polling || is.connecting {
            return;
        }
        is.watching = true;
        connection.requests += 1;
        let fd = connection.socket.as_raw_fd();
        self.request(Kind::Broken, token, Request::PollBroken { fd });
    }

    pub(super) fn received(&mut self, completed: Completed) -> Option<Completion> {
        // From here on the buffer is ours: wherever this returns, it finds its way back.
        let lease = completed.buffer.map(|id| self.buffers.lease(id));
        let large = self.large();
        let connection = self.addressee(completed.key)?;
        let token = connection.token(completed.key);
        if !completed.more {
            (connection.is.receiving, connection.is.cancelling) = (false, false);
            connection.requests -= 1;
        }
        if connection.is.closing {
            self.release_if_idle(token.index);
            return None;
        }
        let completion = match (completed.outcome(), lease) {
            (Ok(0), _) => self.receive_ended(token, Ok(())),
            (Ok(n), Some(lease)) => {
                connection.run = if n >= large { connection.run.saturating_add(1) } else { 0 };
                let is = &connection.is;
                let is_usual = completed.more && is.wanted && connection.rare.is_none();
                if connection.run >= LARGE_RUN {
                    self.go_bulk(token);
                }
                let chunk = Chunk::leased(lease, n);
                let copies = self.buffers.is_scarce() || (self.chunks.is_frugal() && n < large);
                let chunk = if copies { chunk.copy() } else { chunk };
                if is_usual {
                    // What `deliver` would do, without looking again.
                    return Some(Completion::Received { token, chunk });
                }
                self.deliver(token, chunk)
            }
            (Err(Errno::NOBUFS), _) => {
                self.buffers.widen();
                self.starved.push(token);
                return None;
            }
            (Err(Errno::CANCELED | Errno::AGAIN | Errno::INTR), _) => None,
            (Err(error), _) => self.receive_ended(token, Err(error)),
            // Bytes, and no buffer that they could be in.
            (Ok(_), None) => self.receive_ended(token, Err(Errno::IO)),
        };
        if !completed.more {
            self.arm(token);
        }
        completion
    }

    /// From now on the connection reads for itself, as soon as its request has ended.
    fn go_bulk(&mut self, token: Token) {
        let ends_by_itself = self.kernel.has_caps();
        let Some(connection) = self.connection(token) else { return };
        let is = &mut connection.is;
        (is.bulk, is.readable, connection.run) = (true, true, 0);
        if is.receiving && !is.cancelling && !ends_by_itself {
            is.cancelling = true;
            self.cancel(Kind::Receive, token);
        }
    }

    /// Reports a chunk, or holds it while nobody wants it.
    fn deliver(&mut self, token: Token, chunk: Chunk) -> Option<Completion> {
        let connection = self.connection(token)?;
        if connection.is.wanted && !connection.has_held() {
            return Some(Completion::Received { token, chunk });
        }
        connection.rare().held.push_back(chunk);
        if connection.is.wanted {
            self.enqueue(Source::Connection(token.index));
        }
        None
    }

    fn receive_ended(&mut self, token: Token, result: Result<(), Errno>) -> Option<Completion> {
        let connection = self.connection(token)?;
        if std::mem::replace(&mut connection.is.ended, true) {
            return None;
        }
        // A failure is told once.
        let result = if connection.is.failed { Ok(()) } else { result };
        connection.is.failed |= result.is_err();
        if result.is_ok() {
            self.unwatched.push(token);
        }
        let connection = self.connection(token)?;
        // The end waits for somebody who wants it, and for the bytes before it.
        if connection.has_held() || (result.is_ok() && !connection.is.wanted) {
            connection.rare().end = Some(result);
            if connection.is.wanted {
                self.enqueue(Source::Connection(token.index));
            }
            return self.find_held_end(token);
        }
        Some(end_of(token, result))
    }

    /// Reports of the end that waits behind held bytes what can be told while nobody receives them.
    fn find_held_end(&mut self, token: Token) -> Option<Completion> {
        let connection = self.connection(token)?;
        if connection.is.wanted {
            return None;
        }
        if let Some(end) = connection.rare.as_mut().and_then(|rare| rare.end.as_mut())
            && let Err(error) = std::mem::replace(end, Ok(()))
        {
            return Some(Completion::Broken { token, error: error.into() });
        }
        self.hang_up(token)
    }

    /// Reports that the peer has ended, if nobody receives what came before that.
    fn hang_up(&mut self, token: Token) -> Option<Completion> {
        let connection = self.connection(token)?;
        let is_told = connection.is.failed || (connection.is.ended && !connection.has_held());
        if connection.is.wanted || is_told || std::mem::replace(&mut connection.is.hung_up, true) {
            return None;
        }
        Some(Completion::HungUp { token })
    }

    /// Does what a connection can do without the ring: reports that it is connected, or what was held, and reads in bulk.
    pub(super) fn step(&mut self, index: u32) -> Option<Completion> {
        let connection = self.connections[index as usize].as_mut()?;
        let token = Token { index, generation: connection.generation };
        if connection.is.connecting && connection.requests == 0 {
            // A Unix socket: connected, and no request that would tell it.
            return self.finish_connecting(token, Ok(()));
        }
        if !connection.is.wanted || connection.is.closing {
            return None;
        }
        if let Some(rare) = &mut connection.rare {
            if let Some(chunk) = rare.held.pop_front() {
                return Some(Completion::Received { token, chunk });
            }
            if let Some(result) = rare.end.take() {
                return Some(end_of(token, result));
            }
        }
        let is = &connection.is;
        if !is.bulk || !is.readable || is.ended || is.receiving {
            return None;
        }
        if !connection.share.take(self.turn, RECEIVE_BUDGET) {
            self.later.push(Source::Connection(index));
            return None;
        }
        self.read(token)
    }

    /// Where small ends: a full buffer is large, also of a ring that has only small ones.
    fn large(&self) -> usize {
        LARGE.min(self.buffers.size())
    }

    fn read(&mut self, token: Token) -> Option<Completion> {
        let large = self.large();
        loop {
            let Some(Some(connection)) = self.connections.get_mut(token.index as usize) else { return None };
            let mut room = 0;
            let (kernel, socket) = (&mut self.kernel, connection.socket.as_fd());
            let read = self.chunks.fill(|buf| {
                room = buf.len();
                kernel.receive(socket, buf)
            });
            match read {
                Ok(Some(chunk)) => {
                    // Fewer bytes than asked for: drained. The poll tells of more, and of the end, unless it has.
                    connection.is.readable = chunk.len() == room || connection.is.over;
                    self.note_read(token, chunk.len() < large);
                    return Some(Completion::Received { token, chunk });
                }
                Ok(None) => return self.receive_ended(token, Ok(())),
                Err(Errno::AGAIN) => {
                    connection.is.readable = false;
                    return None;
                }
                Err(Errno::INTR) => {}
                Err(error) => return self.receive_ended(token, Err(error)),
            }
        }
    }

    /// Goes back to multishot after enough small reads.
    fn note_read(&mut self, token: Token, small: bool) {
        let Some(connection) = self.connection(token) else { return };
        connection.run = if small { connection.run.saturating_add(1) } else { 0 };
        if connection.run < SMALL_RUN || connection.is.readable {
            return;
        }
        (connection.is.bulk, connection.run) = (false, 0);
        if connection.is.polling {
            self.cancel(Kind::Readable, token);
        }
    }

    /// The poll of a connection that reads in bulk has completed.
    pub(super) fn became_readable(&mut self, completed: Completed) -> Option<Completion> {
        let connection = self.addressee(completed.key)?;
        let token = connection.token(completed.key);
        if !completed.more {
            connection.is.polling = false;
            connection.requests -= 1;
        }
        if connection.is.closing {
            self.release_if_idle(token.index);
            return None;
        }
        let is_over = completed.result > 0 && completed.result & OVER != 0;
        connection.is.readable |= completed.result > 0;
        connection.is.over |= is_over;
        let reads = connection.is.wanted && !connection.is.ended;
        if reads && connection.is.bulk {
            self.enqueue(Source::Connection(token.index));
        }
        let end = if is_over && !reads { self.find_end(token) } else { None };
        if !completed.more {
            if reads {
                self.arm(token);
            } else {
                self.watch(token);
            }
        }
        end
    }

    /// Reports what has become of a connection that nobody reads from, and of which a poll has told that it is over.
    pub(super) fn find_end(&mut self, token: Token) -> Option<Completion> {
        self.fail(token).or_else(|| self.find_held_end(token))
    }

    /// Reports what broke a connection that nobody reads from, if anything did.
    fn fail(&mut self, token: Token) -> Option<Completion> {
        let Some(Some(connection)) = self.connections.get_mut(token.index as usize) else { return None };
        if connection.is.failed {
            return None;
        }
        let error = self.kernel.failure(connection.socket.as_fd())?;
        connection.is.failed = true;
        if connection.is.ended && !connection.has_held() {
            return Some(Completion::Failed { token, error });
        }
        Some(Completion::Broken { token, error })
    }

    /// The poll for failure has completed.
    pub(super) fn broke(&mut self, completed: Completed) -> Option<Completion> {
        let connection = self.addressee(completed.key)?;
        let token = connection.token(completed.key);
        if !completed.more {
            connection.is.watching = false;
            connection.requests -= 1;
        }
        if connection.is.closing {
            self.release_if_idle(token.index);
            return None;
        }
        let reads = connection.is.wanted && !connection.is.ended;
        if reads || connection.is.failed {
            // Told already, or about to be. Should a pause come first, this poll would not tell it again; a new one does.
            if reads && completed.more {
                self.cancel(Kind::Broken, token);
            }
            return None;
        }
        if completed.result < 0 {
            if completed.outcome() == Err(Errno::CANCELED) {
                self.unwatched.push(token);
            }
            return None;
        }
        if !completed.more {
            self.unwatched.push(token);
        }
        self.find_end(token)
    }
}

fn end_of(token: Token, result: Result<(), Errno>) -> Completion {
    match result {
        Ok(()) => Completion::ReceiveEnded { token },
        Err(error) => Completion::Failed { token, error: error.into() },
    }
}
