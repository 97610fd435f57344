//! Receiving: straight into the caller's memory where that can be, and otherwise for the core.
//!
//! The kernel's receive timeout bounds a wait in recv(2). It is a bound only: when it passes, the deadlines are looked at. So it is
//! left as it is while it is neither later than the next deadline nor much earlier.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::{Line, Step, Until};
use crate::conn::Readable;
use crate::engine::buffer::Block;
use crate::engine::socket;
use crate::error::{Operation, Result};
use crate::time::Time;

/// What is received at once where it cannot go to the reader as it is: two TLS records of full size.
pub(super) const SCRATCH: usize = 33 * 1024;
/// The kernel counts its timeouts in ticks of up to 10 ms, and none at all is one that never passes.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// The longest of those ticks.
const TICK: Duration = Duration::from_millis(10);
/// The longest: so long may a step wait in vain.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// A wait by the kernel's timeout alone takes no more than such a part of the silence that is allowed, and the rest is waited for by
/// the clock: a signal that interrupts the first part makes the deadline later by that at most.
const PARTS_OF_SILENCE: u32 = 8;

/// What has become of a try to receive.
pub(super) enum Tried {
    /// So many bytes went to the reader as they are.
    Received(usize),
    /// The core knows something new, or the clock has to be looked at.
    News,
    /// Nothing has come.
    Nothing,
}

impl Line {
    /// Receives what is there. With `exact` that is the next part of a message of which `begun` bytes are here already.
    #[inline]
    pub(in crate::blocking) fn recv(
        &mut self,
        buf: &mut [u8],
        exact: bool,
        begun: usize,
        until: Option<Until>,
        alone: bool,
    ) -> Result<Step<usize>> {
        loop {
            self.heed_at_once();
            if alone && begun == 0 && until.is_none() {
                match self.receive_untimed(buf) {
                    Some(Tried::Received(n)) => return Ok(Step::Done(n)),
                    Some(_) => continue,
                    None => {}
                }
            }
            self.is_noted = false;
            match self.conn.readable() {
                Ok(Readable::Bytes(_)) => {
                    let n = if exact { self.conn.read_part(buf) } else { self.conn.read(buf) };
                    self.conn.stop_awaiting();
                    return Ok(Step::Done(n));
                }
                Ok(Readable::Ended) => return Ok(Step::Done(0)),
                Ok(Readable::NotYet) => {}
                Err(reason) => return Err(self.closed(Operation::Receive, reason)),
            }
            let now = self.now();
            self.conn.await_reading(now);
            if begun > 0 {
                self.conn.await_rest(begun, now);
            }
            let Some(deadline) = self.in_time(now, until, Operation::Receive)? else { continue };
            match self.receive(buf, now, deadline, alone) {
                Tried::Received(n) => {
                    if !exact || n == buf.len() {
                        self.conn.message_read();
                    }
                    self.conn.stop_awaiting();
                    return Ok(Step::Done(n));
                }
                Tried::News => {}
                Tried::Nothing => return Ok(self.wait_to_read(deadline)),
            }
        }
    }

    /// The next block of what is there, or `None` at the end.
    pub(in crate::blocking) fn recv_block(
        &mut self,
        until: Option<Until>,
        alone: bool,
    ) -> Result<Step<Option<Block>>> {
        if self.conn.reads_past_inbox() {
            let mut scratch = self.take_scratch();
            let step = self.recv(&mut scratch, false, 0, until, alone);
            let received = match step {
                Ok(Step::Done(n)) => Ok(Step::Done((n > 0).then(|| Block::copied(&scratch[..n])))),
                Ok(Step::Wait(wanted)) => Ok(Step::Wait(wanted)),
                Err(error) => Err(error),
            };
            self.scratch = scratch;
            return received;
        }
        match self.ready(until, false)? {
            Step::Done(_) => {
                let block = self.conn.take_chunk();
                self.conn.stop_awaiting();
                Ok(Step::Done(block))
            }
            Step::Wait(wanted) => Ok(Step::Wait(wanted)),
        }
    }

    /// Waits for the first byte, the end or a failure, without taking anything; `false` if the server drains before, where that
    /// `ends` the wait.
    pub(in crate::blocking) fn ready(&mut self, until: Option<Until>, ends: bool) -> Result<Step<bool>> {
        loop {
            self.heed();
            match self.conn.readable() {
                Ok(Readable::NotYet) => {}
                Ok(_) => return Ok(Step::Done(true)),
                Err(reason) => return Err(self.closed(Operation::Receive, reason)),
            }
            // Looked at first: what came before the drain is served.
            let drains = ends && self.place.as_ref().is_some_and(|place| place.is_draining());
            let now = self.now();
            self.conn.await_reading(now);
            let Some(deadline) = self.in_time(now, until, Operation::Receive)? else { continue };
            // With nowhere to go, what is received waits to be read.
            let mut scratch = self.take_scratch();
            let tried = self.receive(&mut scratch, now, deadline, false);
            if let Tried::Received(n) = tried {
                self.conn.deliver(Block::copied(&scratch[..n]));
            }
            self.scratch = scratch;
            if let Tried::Nothing = tried {
                if drains {
                    return Ok(Step::Done(false));
                }
                let Step::Wait(mut wanted) = self.wait_to_read::<()>(deadline) else { continue };
                wanted.drain = ends;
                return Ok(Step::Wait(wanted));
            }
        }
    }

    /// What was read of a message that has not come whole is read next.
    pub(in crate::blocking) fn put_back(&mut self, bytes: &[u8]) {
        self.is_noted = false;
        self.conn.unread_bytes(bytes);
    }

    /// Waits for bytes in the kernel alone, where nothing is measured but their silence: the kernel does that, and for a message that
    /// comes soon enough nobody looks at the clock. `None` if it cannot be done so.
    #[inline]
    fn receive_untimed(&mut self, buf: &mut [u8]) -> Option<Tried> {
        if self.watch.is_some() || self.handshake_at.is_some() {
            return None;
        }
        if !self.conn.reads_past_inbox() || self.conn.pending() > 0 || !self.conn.silence_alone() {
            return None;
        }
        if !self.bounds_silence {
            self.limit_wait(self.conn.idle().map(|idle| idle / PARTS_OF_SILENCE));
            self.bounds_silence = true;
        }
        let result = receive(self.socket.as_ref()?.as_fd(), buf, true);
        if let Ok(n @ 1..) = result {
            self.conn.received_untimed(n);
            if let Some(place) = &self.place {
                place.note_received(self.conn.counts().received);
            }
            return Some(Tried::Received(n));
        }
        // It has waited in vain, and from now on by the clock: for as long as the kernel was told, which counts in ticks. How long
        // it was before a signal came is not known, but no more than that.
        let waited = match result {
            Err(Errno::AGAIN) => self.timeout.unwrap_or_default().saturating_sub(TICK),
            _ => Duration::ZERO,
        };
        self.conn.await_reading(self.now().before(waited));
        Some(self.no_bytes(result, true))
    }

    /// Receives once: into `buf` if that can be, and otherwise for the core. Waits for it if the line is `alone`.
    #[inline]
    pub(super) fn receive(
        &mut self,
        buf: &mut [u8],
        now: Time,
        deadline: Option<Time>,
        alone: bool,
    ) -> Tried {
        if self.conn.has_to_send() {
            // A send that was late has left it, or TLS has something to say: who waits here is woken when there is room for it.
            self.advance();
            if !self.conn.is_receiving() {
                return Tried::News;
            }
        }
        let direct = self.conn.reads_past_inbox();
        let waits = alone && self.watch.is_none() && !self.conn.has_to_send();
        if waits {
            self.limit_wait(deadline.map(|at| at.since(now)));
        }
        let Some(socket) = &self.socket else { return Tried::News };
        if direct {
            let result = receive(socket.as_fd(), buf, waits);
            if let Ok(n) = result
                && n > 0
            {
                self.conn.received(n, now);
                return Tried::Received(n);
            }
            return self.no_bytes(result, waits);
        }
        let mut scratch = self.take_scratch();
        let Some(socket) = &self.socket else { return Tried::News };
        let result = receive(socket.as_fd(), &mut scratch, waits);
        let tried = match result {
            Ok(n) if n > 0 => {
                self.arrived(&scratch[..n]);
                Tried::News
            }
            result => self.no_bytes(result, waits),
        };
        self.scratch = scratch;
        tried
    }

    /// Bytes came for the core.
    fn arrived(&mut self, bytes: &[u8]) {
        let now = self.now();
        if !self.conn.received(bytes.len(), now) {
            return;
        }
        if self.conn.is_sealed() {
            self.conn.receive_sealed(Block::copied(bytes));
            self.unseal();
        } else {
            self.conn.deliver(Block::copied(bytes));
        }
    }

    pub(super) fn no_bytes(&mut self, result: Result<usize, Errno>, waited: bool) -> Tried {
        match result {
            Err(Errno::AGAIN) if !waited => return Tried::Nothing,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => {
                self.conn.failed(&error.into());
                self.advance();
            }
            Ok(_) => {
                // A server that stops has the kernel tell an end, so that whoever waits for bytes is there.
                self.heed();
                let now = self.now();
                self.conn.receive_ended(now);
                self.advance();
            }
        }
        Tried::News
    }

    /// Has the kernel end a wait for bytes when `left` has passed at the latest.
    #[inline]
    fn limit_wait(&mut self, left: Option<Duration>) {
        let left = left.map(|left| left.clamp(TIMEOUT_MIN, TIMEOUT_MAX));
        let fits = match (self.timeout, left) {
            (Some(timeout), Some(left)) => timeout <= left && timeout >= left / 2,
            (timeout, left) => timeout == left,
        };
        if let (false, Some(socket)) = (fits, &self.socket)
            && set_socket_timeout(socket, Timeout::Recv, left).is_ok()
        {
            self.timeout = left;
            self.bounds_silence = false;
        }
    }

    pub(super) fn take_scratch(&mut self) -> Vec<u8> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(SCRATCH, 0);
        if !self.has_scratch {
            self.has_scratch = true;
            self.is_noted = false;
            if let Some(place) = &self.place {
                self.note(place);
            }
        }
        scratch
    }
}

#[inline]
pub(super) fn receive(socket: BorrowedFd<'_>, buf: &mut [u8], waits: bool) -> Result<usize, Errno> {
    if waits { socket::receive_waiting(socket, buf) } else { socket::receive(socket, buf) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use rustix::net::sockopt::socket_timeout;

    use super::super::on;
    use super::*;
    use crate::config::Deadlines;

    const IDLE: Duration = Duration::from_secs(80);

    /// Receives a byte, and tells how long the kernel would have waited for it.
    fn timeout_of(line: &mut Line, peer: &mut UnixStream, until: Option<Until>) -> Option<Duration> {
        peer.write_all(&[7]).expect("there is room");
        let step = line.recv(&mut [0; 8], false, 0, until, true);
        assert!(matches!(step, Ok(Step::Done(1))), "{step:?}");
        let socket = line.socket.as_ref().expect("it stands");
        socket_timeout(socket, Timeout::Recv).expect("it is told")
    }

    #[test]
    fn a_signal_can_make_the_time_of_a_silent_peer_longer_only_by_a_part_of_it() {
        let (socket, mut peer) = UnixStream::pair().expect("descriptors");
        let mut line = on(socket, &Deadlines::default().first_byte(None).idle(IDLE));
        let a_part = IDLE / PARTS_OF_SILENCE + TICK;
        assert!(timeout_of(&mut line, &mut peer, None).is_some_and(|timeout| timeout <= a_part));
        // What another wait has left behind is not taken for it.
        let until = Until { at: Instant::now() + IDLE / 2, after: IDLE / 2 };
        assert!(timeout_of(&mut line, &mut peer, Some(until)).is_some_and(|timeout| timeout > a_part));
        for _ in 0..2 {
            assert!(timeout_of(&mut line, &mut peer, None).is_some_and(|timeout| timeout <= a_part));
        }
    }

    #[test]
    fn a_peer_that_may_be_silent_for_ever_costs_no_timer() {
        let (socket, mut peer) = UnixStream::pair().expect("descriptors");
        let mut line = on(socket, &Deadlines::default().first_byte(None).idle(None));
        assert_eq!(timeout_of(&mut line, &mut peer, None), None);
        let until = Until { at: Instant::now() + IDLE, after: IDLE };
        assert!(timeout_of(&mut line, &mut peer, Some(until)).is_some());
        assert_eq!(timeout_of(&mut line, &mut peer, None), None);
    }
}
