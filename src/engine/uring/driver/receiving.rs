//! Receiving, and noticing what breaks.
//!
//! A connection receives in one of two ways, and changes between them where nothing is in flight:
//!
//! * **multishot**: one request, completed once for each reception, into the next published buffer. Cheapest for messages.
//!   It ends by itself after [`CAP`] bytes, or has to be cancelled when nobody wants more.
//! * **bulk**: wait until the socket is readable, then read inline into a large chunk until it is drained. Cheapest for
//!   streams, as the kernel copies 64 KiB at a time, and needs no buffers in advance. Buffers filled to the brim lead here,
//!   and light reads back.
//!
//! What a multishot request delivers after `pause`, before its end, is held for the next `receive`.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use super::super::kernel::{Completed, Kernel, Request};
use super::connections::Connection;
use super::key::Kind;
use super::{Driver, Source};
use crate::engine::buffer::Chunk;
use crate::engine::{Completion, RECEIVE_BUDGET, Token};

/// The most bytes that one multishot receive delivers: a connection's share of a turn, after which it has to ask again.
const CAP: u32 = 64 * 1024;
/// So many buffers filled to the brim, one after the other, are a stream.
const FULL_IS_BULK: u8 = 2;
/// So many reads in a row that would have fit into a buffer are messages again.
const LIGHT_IS_MESSAGES: u8 = 8;

impl<K: Kernel> Driver<K> {
    /// Makes sure that what comes next is noticed, if anybody wants it.
    pub(super) fn arm(&mut self, token: Token) {
        let Some(connection) = self.connection(token) else { return };
        let is = &mut connection.is;
        if !is.wanted || is.receiving || is.polling || is.ended || is.connecting {
            return;
        }
        let fd = connection.socket.as_raw_fd();
        if !is.bulk {
            is.receiving = true;
            connection.requests += 1;
            self.request(Kind::Receive, token, Request::Receive { fd, cap: CAP });
        } else if is.readable {
            self.enqueue(Source::Connection(token.index));
        } else {
            is.polling = true;
            connection.requests += 1;
            self.request(Kind::Readable, token, Request::PollReadable { fd });
        }
    }

    /// Makes sure that a failure is noticed while nothing else is in flight that would.
    pub(super) fn watch(&mut self, token: Token) {
        let Some(connection) = self.connection(token) else { return };
        let is = &mut connection.is;
        if is.watching || is.failed || is.polling || is.connecting {
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
        let full = self.buffers.size();
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
                connection.run = if n == full { connection.run.saturating_add(1) } else { 0 };
                if connection.run >= FULL_IS_BULK {
                    self.go_bulk(token);
                }
                let chunk = Chunk::leased(lease, n);
                let chunk = if self.buffers.is_scarce() { Chunk::copied(&chunk) } else { chunk };
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
        connection.is.failed = result.is_err();
        if result.is_ok() {
            self.unwatched.push(token);
        }
        let connection = self.connection(token)?;
        // The peer's end waits for somebody who wants it; a failure is told at once, unless bytes come before it.
        if connection.has_held() || (result.is_ok() && !connection.is.wanted) {
            connection.rare().end = Some(result);
            if connection.is.wanted {
                self.enqueue(Source::Connection(token.index));
            }
            return None;
        }
        Some(end_of(token, result))
    }

    /// Does what a connection can do without the ring: reports what was held, and reads in bulk.
    pub(super) fn step(&mut self, index: u32) -> Option<Completion> {
        let connection = self.connections[index as usize].as_mut()?;
        let token = Token { index, generation: connection.generation };
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
        if !is.bulk || !is.readable || is.ended || is.receiving || is.polling {
            return None;
        }
        if !connection.share.take(self.turn, RECEIVE_BUDGET) {
            self.later.push(Source::Connection(index));
            return None;
        }
        self.read(token)
    }

    fn read(&mut self, token: Token) -> Option<Completion> {
        let messages = self.buffers.size();
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
                    // Fewer bytes than asked for: drained. The poll tells of more, and of the end.
                    connection.is.readable = chunk.len() == room;
                    connection.note_read(chunk.len() <= messages);
                    self.arm(token);
                    return Some(Completion::Received { token, chunk });
                }
                Ok(None) => return self.receive_ended(token, Ok(())),
                Err(Errno::AGAIN) => {
                    connection.is.readable = false;
                    self.arm(token);
                    return None;
                }
                Err(Errno::INTR) => {}
                Err(error) => return self.receive_ended(token, Err(error)),
            }
        }
    }

    pub(super) fn became_readable(&mut self, completed: Completed) {
        let Some(connection) = self.addressee(completed.key) else { return };
        let token = connection.token(completed.key);
        connection.is.polling = false;
        connection.requests -= 1;
        connection.is.readable = true;
        if connection.is.closing {
            return self.release_if_idle(token.index);
        }
        if connection.is.wanted {
            self.enqueue(Source::Connection(token.index));
        } else {
            // Readable is not broken: that is another question now.
            self.watch(token);
        }
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
        if completed.result < 0 || connection.is.failed || reads {
            // Cancelled, or told already, or about to be.
            return None;
        }
        let Some(Some(connection)) = self.connections.get_mut(token.index as usize) else { return None };
        let Some(error) = self.kernel.failure(connection.socket.as_fd()) else {
            // Only the peer has ended, or both sides have.
            if !completed.more {
                self.unwatched.push(token);
            }
            return None;
        };
        (connection.is.ended, connection.is.failed) = (true, true);
        Some(Completion::Failed { token, error })
    }
}

impl Connection {
    /// Goes back to multishot after enough reads in bulk that were none.
    fn note_read(&mut self, light: bool) {
        self.run = if light { self.run.saturating_add(1) } else { 0 };
        if self.run >= LIGHT_IS_MESSAGES && !self.is.readable {
            (self.is.bulk, self.run) = (false, 0);
        }
    }
}

fn end_of(token: Token, result: Result<(), Errno>) -> Completion {
    match result {
        Ok(()) => Completion::ReceiveEnded { token },
        Err(error) => Completion::Failed { token, error: error.into() },
    }
}
