//! Sending: to the kernel past the queue, or by the queue, where TLS seals.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::receiving::Tried;
use super::{Line, Step, Until};
use crate::conn::Room;
use crate::engine::socket;
use crate::error::{Operation, Result};
use crate::time::Time;
use crate::tls::BUFFERFUL;

impl Line {
    /// Hands `bytes` to the kernel, and leaves in them what is not its yet.
    #[inline]
    pub(in crate::blocking) fn send(&mut self, bytes: &mut &[u8], until: Option<Until>) -> Result<Step<()>> {
        self.heed_at_once();
        let mut sent = None;
        if self.conn.sends_past_queue()
            && !bytes.is_empty()
            && let Some(socket) = &self.socket
        {
            let result = socket::send(socket.as_fd(), bytes);
            if result == Ok(bytes.len()) {
                self.conn.sent_whole(bytes.len());
                if let Some(place) = &self.place {
                    place.note_sent(self.conn.counts().sent);
                }
                *bytes = &[];
                return Ok(Step::Done(()));
            }
            sent = Some(result);
        }
        self.send_rest(bytes, sent, until).map_err(|error| {
            // What the kernel has not taken is the caller's again, and waits no longer.
            self.conn.caught_up();
            error.unsending(bytes.len())
        })
    }

    /// The same for what could not be done at once. If the kernel was asked to take `bytes` already, `sent` is what it said.
    fn send_rest(
        &mut self,
        bytes: &mut &[u8],
        mut sent: Option<Result<usize, Errno>>,
        until: Option<Until>,
    ) -> Result<Step<()>> {
        self.is_noted = false;
        loop {
            // What the kernel took is counted before anything else may happen.
            if sent.is_none() {
                self.heed();
            }
            if self.conn.is_sealed() || self.conn.pending() > 0 {
                match self.send_queued(bytes, until)? {
                    Some(step) => return Ok(step),
                    None => continue,
                }
            }
            if let Err(reason) = self.conn.writable() {
                return Err(self.closed(Operation::Send, reason));
            }
            if bytes.is_empty() {
                self.conn.caught_up();
                return Ok(Step::Done(()));
            }
            let Some(socket) = &self.socket else { continue };
            match sent.take().unwrap_or_else(|| socket::send(socket.as_fd(), bytes)) {
                Ok(n) => {
                    self.conn.sent_past_queue(n, &Ok(n), Time::NEVER);
                    *bytes = &bytes[n..];
                    if bytes.is_empty() {
                        self.conn.caught_up();
                        return Ok(Step::Done(()));
                    }
                    let now = self.now();
                    self.conn.moved(now);
                    // A peer that reads all the time gets no more of it than one that does not.
                    let _ = self.in_time(now, until, Operation::Send)?;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let now = self.now();
                    self.conn.await_room(now);
                    let Some(deadline) = self.in_time(now, until, Operation::Send)? else { continue };
                    return Ok(self.wait_to_write(deadline));
                }
                Err(error) => {
                    let now = self.now();
                    self.conn.sent_past_queue(bytes.len(), &Err(error.into()), now);
                    self.advance();
                }
            }
        }
    }

    /// The same by the queue: that is where TLS seals. `None` if there is more to do.
    fn send_queued(&mut self, bytes: &mut &[u8], until: Option<Until>) -> Result<Option<Step<()>>> {
        let part = bytes.len().min(BUFFERFUL.max(1)).min(self.conn.send_max());
        let room = match self.conn.room(part) {
            Ok(room) => room,
            Err(reason) => {
                self.advance();
                return Err(self.closed(Operation::Send, reason));
            }
        };
        if room == Room::Yes && part > 0 {
            let (first, rest) = bytes.split_at(part);
            self.conn.send(first);
            *bytes = rest;
            self.advance();
            if !bytes.is_empty() {
                let _ = self.in_time(self.now(), until, Operation::Send)?;
            }
            return Ok(None);
        }
        if bytes.is_empty() && self.conn.pending() == 0 {
            return Ok(Some(Step::Done(())));
        }
        self.advance();
        let now = self.now();
        let Some(deadline) = self.in_time(now, until, Operation::Send)? else { return Ok(None) };
        if self.conn.is_held_back() {
            self.check_room(Operation::Send)?;
            return Ok(self.hear(now, deadline));
        }
        Ok(self.conn.has_to_send().then(|| self.wait_to_write(deadline)))
    }

    /// Receives for the core; what TLS waits for is the peer's turn.
    pub(super) fn hear<T>(&mut self, now: Time, deadline: Option<Time>) -> Option<Step<T>> {
        if !self.conn.is_receiving() {
            return self.conn.has_to_send().then(|| self.wait_to_write(deadline));
        }
        let mut nowhere = [];
        debug_assert!(!self.conn.reads_past_inbox(), "it would be lost");
        match self.receive(&mut nowhere, now, deadline, false) {
            Tried::Nothing => Some(self.wait_to_read(deadline)),
            _ => None,
        }
    }

    /// Waits until all that was asked for is the kernel's.
    pub(in crate::blocking) fn flush(
        &mut self,
        operation: Operation,
        until: Option<Until>,
    ) -> Result<Step<()>> {
        loop {
            self.heed();
            self.advance();
            if self.conn.is_flushed() {
                return Ok(Step::Done(()));
            }
            if let Some(reason) = self.conn.final_reason() {
                return Err(self.closed(operation, reason));
            }
            let now = self.now();
            let Some(deadline) = self.in_time(now, until, operation)? else { continue };
            let step = match self.conn.is_sealed() && self.conn.is_handshaking() {
                true => self.hear(now, deadline),
                false => Some(self.wait_to_write(deadline)),
            };
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }

    /// Ends this side's direction behind what was sent.
    pub(in crate::blocking) fn finish(&mut self) {
        self.conn.finish();
        self.advance();
    }

    /// Its writer has gone: what is queued, close_notify at least, is sent by whoever reads, and he may wait for bytes only.
    pub(in crate::blocking) fn leave_to_reader(&mut self) {
        self.finish();
        if let (true, Some(watch)) = (self.conn.has_to_send(), &self.watch) {
            watch.nudge();
        }
    }
}
