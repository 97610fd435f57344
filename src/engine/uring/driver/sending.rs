//! Sending, in one of three ways.
//!
//! * **inline**: a plain system call. Cheapest when few connections have something to send.
//! * **quietly**: a request that is either done when it has been submitted, and then completes without a word, or completes as
//!   refused. Many of them cost one system call together, and the usual one costs no completion. Its bytes count as sent
//!   when they are handed over; `confirm` settles that after each submission, before the worker sees anything.
//! * **in flight**: a request that waits for room in the socket. What an inline send found full, and what bounced.
//!
//! Nothing overtakes: while bytes are unconfirmed or in flight, what follows waits.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

use rustix::io::Errno;

use super::super::kernel::{Completed, Kernel, Key, Request};
use super::connections::{Connection, find};
use super::key::Kind;
use super::{Driver, SUBMISSIONS_MAX, try_push};
use crate::engine::buffer::{Outgoing, PiecePool, SLICES_MAX};
use crate::engine::{Completion, HANDED_MAX, Submitted, Token};

/// Up to so many sends are made at once, inline; more go into the ring together, which costs less from here on
/// (docs/design/uring.md has the measurement).
pub(crate) const INLINE_SENDS: usize = 16;
/// Up to so many bytes are handed over as a copy among those of other connections.
const HANDED_COPY_MAX: usize = 512;
/// Room for such copies. When it is used up, the rest of a turn's messages takes the way of the larger ones.
pub(super) const COPIES_MAX: usize = 64 * 1024;
/// Free boxes that are kept.
const BOXES_MAX: usize = 256;

/// Bytes that were handed over, and await their confirmation.
pub(super) struct Unconfirmed {
    index: u32,
    /// Where they are among the copies; if there are none of them, the connection has them.
    start: u32,
    len: u32,
}

impl<K: Kernel> Driver<K> {
    /// Where the buffers of confirmed sends go.
    pub(crate) fn use_pieces(&mut self, pieces: Rc<PiecePool>) {
        self.pieces = pieces;
    }

    /// Says that about so many sends follow.
    pub(crate) fn expect_sends(&mut self, count: usize) {
        self.send_inline = count <= self.inline_sends;
    }

    /// Up to so many sends are made inline.
    pub(crate) fn send_inline_up_to(&mut self, count: usize) {
        self.inline_sends = count;
    }

    pub(crate) fn recycle(&mut self, outgoing: Box<Outgoing>) {
        debug_assert!(outgoing.is_empty(), "a send that is over left nothing behind");
        if self.boxes.len() < BOXES_MAX {
            self.boxes.push(outgoing);
        }
    }

    pub(crate) fn send_now(&mut self, token: Token, bytes: &[u8]) -> io::Result<usize> {
        let connection = find(&mut self.connections, token).ok_or(io::ErrorKind::NotConnected)?;
        let waits = connection.is.connecting || connection.is.sending || connection.is.unconfirmed;
        if waits || bytes.is_empty() {
            return Ok(0);
        }
        if !self.send_inline && bytes.len() <= HANDED_COPY_MAX {
            return Ok(self.hand_copy(token, bytes));
        }
        match write(|| self.kernel.send(connection.socket.as_fd(), bytes)) {
            Some(result) => result,
            None => Ok(0),
        }
    }

    pub(crate) fn send_gathered_now(&mut self, token: Token, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let connection = find(&mut self.connections, token).ok_or(io::ErrorKind::NotConnected)?;
        if connection.is.connecting || connection.is.sending || connection.is.unconfirmed {
            return Ok(0);
        }
        write(|| self.kernel.send_gathered(connection.socket.as_fd(), slices)).unwrap_or(Ok(0))
    }

    pub(crate) fn send(&mut self, token: Token, outgoing: &mut Outgoing) -> Submitted {
        let Some(connection) = find(&mut self.connections, token) else {
            return Submitted::Done(Err(io::ErrorKind::NotConnected.into()));
        };
        debug_assert!(!connection.is.sending, "one send in flight per connection");
        let waits = connection.is.unconfirmed;
        let together = !self.send_inline && outgoing.single().is_some_and(|bytes| bytes.len() <= HANDED_MAX);
        if !together
            && !waits
            && let Some(result) = connection.write(&mut self.kernel, outgoing)
        {
            return Submitted::Done(result);
        }
        let mut boxed = self.boxes.pop().unwrap_or_default();
        std::mem::swap(&mut *boxed, outgoing);
        if waits {
            connection.is.sending = true;
            connection.rare().next = Some(boxed);
            self.hurries = true;
            return Submitted::InFlight;
        }
        if together && self.backlog.is_empty() && connection.hand_over(&mut self.kernel, token, boxed.first())
        {
            connection.outgoing = Some(boxed);
            self.in_flight += 1;
            self.unconfirmed.push(Unconfirmed { index: token.index, start: 0, len: 0 });
            return Submitted::Handed;
        }
        // The socket was full a moment ago, or the ring is.
        self.send_in_flight(token, boxed);
        Submitted::InFlight
    }

    /// Hands a copy of few bytes over, with nothing more to remember; returns how many it took: all or none.
    fn hand_copy(&mut self, token: Token, bytes: &[u8]) -> usize {
        let (start, len) = (self.copies.len(), bytes.len());
        let has_room = self.backlog.is_empty() && start + len <= self.copies.capacity();
        let Some(connection) = find(&mut self.connections, token).filter(|_| has_room) else { return 0 };
        // Within its capacity the copies stay where they are.
        self.copies.extend_from_slice(bytes);
        if !connection.hand_over(&mut self.kernel, token, &self.copies[start..]) {
            self.copies.truncate(start);
            return 0;
        }
        self.in_flight += 1;
        self.unconfirmed.push(Unconfirmed { index: token.index, start: start as u32, len: len as u32 });
        len
    }

    /// Bytes of a connection that count as sent, and of which the kernel has not said so.
    pub(super) fn unconfirmed_bytes(&self, index: u32) -> usize {
        match &self.connections[index as usize] {
            Some(connection) if connection.is.unconfirmed => match &connection.outgoing {
                Some(outgoing) => outgoing.len(),
                None => {
                    let entry = self.unconfirmed.iter().rev().find(|entry| entry.index == index);
                    entry.map_or(0, |entry| entry.len as usize)
                }
            },
            _ => 0,
        }
    }

    /// Sends what there is room for, as soon as there is.
    fn send_in_flight(&mut self, token: Token, outgoing: Box<Outgoing>) {
        let Some(Some(connection)) = self.connections.get_mut(token.index as usize) else { return };
        connection.is.sending = true;
        let (fd, bytes, len) = connection.hold(outgoing);
        self.request(Kind::Send, token, Request::Send { fd, bytes, len });
    }

    /// Sends FIN; or says how many bytes before it are in flight after all.
    pub(crate) fn shutdown(&mut self, token: Token) -> io::Result<usize> {
        let mut submissions = 0;
        while find(&mut self.connections, token).is_some_and(|connection| connection.is.unconfirmed) {
            if submissions == SUBMISSIONS_MAX {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            submissions += 1;
            self.submit(false)?;
            if let Some(bounced) = self.find_refusal(token) {
                return Ok(bounced);
            }
        }
        match find(&mut self.connections, token) {
            Some(connection) => self.kernel.shutdown(connection.socket.as_fd()).map(|()| 0),
            None => Ok(0),
        }
    }

    /// Handles the refusal of this connection's bytes out of turn, if there is one.
    fn find_refusal(&mut self, token: Token) -> Option<usize> {
        let key = Key::new(Kind::Send, token);
        let place = self.arrived.iter().skip(self.next_arrived).position(|completed| completed.key == key)?;
        let completed = &mut self.arrived[self.next_arrived + place];
        let refusal = *completed;
        // What is left in its place says nothing.
        completed.key = Key::new(Kind::Cancel, token);
        self.in_flight -= 1;
        match self.sent(refusal) {
            Some(Completion::Bounced { unsent, .. }) => Some(unsent),
            _ => None,
        }
    }

    /// Remembers that the kernel has refused bytes that count as sent, if this is what completed.
    pub(super) fn note_refusal(&mut self, key: Key) {
        if key.kind() != Some(Kind::Send) {
            return;
        }
        let Some(connection) = self.addressee(key) else { return };
        connection.is.refused = connection.is.unconfirmed;
        if connection.is.refused && connection.outgoing.is_none() {
            self.keep_copy(key.index());
        }
    }

    /// Takes bytes out of the copies: what becomes of them takes longer than those live.
    fn keep_copy(&mut self, index: u32) {
        let entry = self.unconfirmed.iter().rev().find(|entry| entry.index == index);
        let Some(&Unconfirmed { start, len, .. }) = entry else { return };
        let mut outgoing = self.boxes.pop().unwrap_or_default();
        outgoing.push_copied(&self.copies[start as usize..][..len as usize], &self.pieces);
        if let Some(Some(connection)) = self.connections.get_mut(index as usize) {
            connection.outgoing = Some(outgoing);
        }
    }

    /// After a submission: all quiet sends are done, but for those that completed.
    pub(super) fn confirm(&mut self) {
        let mut unconfirmed = std::mem::take(&mut self.unconfirmed);
        for Unconfirmed { index, .. } in unconfirmed.drain(..) {
            let Some(Some(connection)) = self.connections.get_mut(index as usize) else { continue };
            if connection.is.refused || !connection.is.unconfirmed {
                continue;
            }
            connection.is.unconfirmed = false;
            connection.requests -= 1;
            self.in_flight -= 1;
            let goes_on = connection.is.closing || connection.rare.is_some();
            let token = Token { index, generation: connection.generation };
            if let Some(mut outgoing) = connection.outgoing.take() {
                outgoing.advance(outgoing.len(), &self.pieces);
                self.recycle(outgoing);
            }
            if goes_on {
                self.send_next(token);
            }
        }
        self.unconfirmed = unconfirmed;
        self.copies.clear();
    }

    /// Goes on with what had to wait for a confirmation.
    fn send_next(&mut self, token: Token) {
        let Some(Some(connection)) = self.connections.get_mut(token.index as usize) else { return };
        let next = connection.rare.as_mut().and_then(|rare| rare.next.take());
        match next {
            Some(next) if connection.is.closing => connection.outgoing = Some(next),
            Some(next) => return self.send_in_flight(token, next),
            None => {}
        }
        self.release_if_idle(token.index);
    }

    pub(super) fn sent(&mut self, completed: Completed) -> Option<Completion> {
        let connection = self.addressee(completed.key)?;
        let token = connection.token(completed.key);
        connection.requests -= 1;
        if std::mem::take(&mut connection.is.refused) {
            return self.bounce(token, completed);
        }
        connection.is.sending = false;
        if connection.is.closing {
            // How much went out before the close is known only here, but nobody asks any more.
            self.release_if_idle(token.index);
            return None;
        }
        let outgoing = connection.outgoing.take()?;
        let refusal = connection.rare.as_mut().and_then(|rare| rare.refusal.take());
        let result = match completed.outcome() {
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            other => other.map_err(|errno| refusal.unwrap_or(errno).into()),
        };
        Some(Completion::Sent { token, outgoing, result })
    }

    /// The kernel refused bytes that count as sent: they are in flight now. If they can never be sent, the end of that tells.
    fn bounce(&mut self, token: Token, completed: Completed) -> Option<Completion> {
        let connection = self.connections.get_mut(token.index as usize)?.as_mut()?;
        connection.is.unconfirmed = false;
        let mut outgoing = connection.outgoing.take()?;
        let (sent, failure) = match completed.outcome() {
            Ok(n) => (n, None),
            Err(Errno::AGAIN | Errno::INTR) => (0, None),
            Err(error) => (0, Some(error)),
        };
        outgoing.advance(sent, &self.pieces);
        let unsent = outgoing.len();
        if let Some(mut next) = connection.rare.as_mut().and_then(|rare| rare.next.take()) {
            outgoing.append(&mut next);
        }
        if connection.is.closing {
            connection.outgoing = Some(outgoing);
            self.release_if_idle(token.index);
        } else {
            if failure.is_some() {
                connection.rare().refusal = failure;
            }
            self.send_in_flight(token, outgoing);
        }
        Some(Completion::Bounced { token, unsent })
    }
}

impl Connection {
    /// Puts a quiet send of `bytes` into the ring, if that has room. They are kept where they are until it is confirmed.
    fn hand_over(&mut self, kernel: &mut impl Kernel, token: Token, bytes: &[u8]) -> bool {
        let (fd, len) = (self.socket.as_raw_fd(), bytes.len() as u32);
        let request = Request::SendQuietly { fd, bytes: bytes.as_ptr(), len };
        let pushed = try_push(kernel, Key::new(Kind::Send, token), &request);
        self.is.unconfirmed = pushed;
        self.requests += u8::from(pushed);
        pushed
    }

    /// Keeps `outgoing` while the kernel reads it; returns what a request needs of it.
    fn hold(&mut self, outgoing: Box<Outgoing>) -> (i32, *const u8, u32) {
        let first = outgoing.first();
        let (bytes, len) = (first.as_ptr(), u32::try_from(first.len()).unwrap_or(u32::MAX));
        self.outgoing = Some(outgoing);
        self.requests += 1;
        (self.socket.as_raw_fd(), bytes, len)
    }

    /// Writes what the kernel takes; `None` if it takes nothing now.
    fn write(&self, kernel: &mut impl Kernel, outgoing: &Outgoing) -> Option<io::Result<usize>> {
        let socket = self.socket.as_fd();
        match outgoing.single() {
            Some(bytes) => write(|| kernel.send(socket, bytes)),
            None => {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = outgoing.slices(&mut slices);
                write(|| kernel.send_gathered(socket, &slices[..count]))
            }
        }
    }
}

/// Makes a call that writes; `None` if it would have to wait.
fn write(mut call: impl FnMut() -> Result<usize, Errno>) -> Option<io::Result<usize>> {
    loop {
        match call() {
            Ok(n) => return Some(Ok(n)),
            Err(Errno::AGAIN) => return None,
            Err(Errno::INTR) => {}
            Err(error) => return Some(Err(error.into())),
        }
    }
}
