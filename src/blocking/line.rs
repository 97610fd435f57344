//! One connection of the blocking style: its socket and its core, and the steps that its operations are made of.
//!
//! A step does what can be done at once and then says what has to be waited for ([`Wanted`]). Whoever has the line to himself may let
//! a step wait in recv(2) itself: then a message costs one call to receive it and one to send it. Who shares it, by halves or
//! by a [`Remote`](super::Remote), waits in poll(2), where others can reach him.
//!
//! The kernel's receive timeout bounds a wait in recv(2). It is a bound only: when it passes, the deadlines are looked at. So it is
//! left as it is while it is neither later than the next deadline nor much earlier.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::alert::Alert;
use super::places::Place;
use crate::address::Address;
use crate::config::{Deadlines, Limits};
use crate::conn::{Action, Conn, Hangup, Profile, Readable, Room, Unsealed};
use crate::engine::buffer::{Block, PiecePool, SLICES_MAX};
use crate::engine::{outq, socket};
use crate::error::{Cause, CloseReason, Deadline, Error, Operation, Result};
use crate::time::Time;
use crate::tls::{BUFFERFUL, Session};

/// What is received at once where it cannot go to the reader as it is: two TLS records of full size.
const SCRATCH: usize = 33 * 1024;
/// What is thrown away at a connection's end is received so many times before others are looked at.
const THROWN_AWAY_MAX: u32 = 4;
/// The kernel counts its timeouts in ticks of up to 10 ms, and none at all is one that never passes.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// The longest of those ticks.
const TICK: Duration = Duration::from_millis(10);
/// The longest: so long may a step wait in vain.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// The first look for an acknowledgement comes after the one, later ones after no more than the other.
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(50);
/// How often one that waits for room looks whether its server's handle has sent it away.
const SERVER_LOOK: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Line {
    socket: Option<Arc<OwnedFd>>,
    conn: Conn<Block>,
    peer: Address,
    local: Option<Address>,
    started: Instant,
    /// What the kernel's receive timeout is; none at first.
    timeout: Option<Duration>,
    /// Where received bytes are put first that do not go to the reader as they are; made when there are some.
    scratch: Vec<u8>,
    /// When the handshake has to be over.
    handshake_at: Option<Time>,
    /// Its remotes, or its halves.
    watch: Option<Arc<Watch>>,
    /// Its place in the server whose connection it is.
    place: Option<Arc<Place>>,
    /// How far the peer had acknowledged the stream when the socket was closed, for who has asked before.
    delivered: Delivered,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Delivered {
    Unasked,
    Asked,
    Final(u64),
}

/// What other threads can ask of a line.
#[derive(Debug)]
pub(super) struct Watch {
    asked: AtomicU8,
    /// The alert was raised only for a look at what there is to do.
    nudged: AtomicBool,
    alert: Alert,
    closed: OnceLock<CloseReason>,
}

const CLOSE: u8 = 1;
const RESET: u8 = 2;

impl Watch {
    pub(super) fn close(&self) {
        self.ask(CLOSE);
    }

    pub(super) fn reset(&self) {
        self.ask(RESET);
    }

    fn ask(&self, what: u8) {
        self.asked.fetch_max(what, Ordering::SeqCst);
        self.alert.raise();
    }

    /// Has whoever waits with the line look again.
    fn nudge(&self) {
        self.nudged.store(true, Ordering::SeqCst);
        self.alert.raise();
    }

    /// Takes a nudge back. Whoever asks for something meanwhile has said so before he raised the alert, and that is looked at next.
    fn take_nudge(&self) {
        if self.nudged.load(Ordering::Relaxed) && self.nudged.swap(false, Ordering::SeqCst) {
            self.alert.lower();
        }
    }

    pub(super) fn reason(&self) -> Option<CloseReason> {
        self.closed.get().copied()
    }
}

/// When an operation is given up, whatever the connection's own deadlines are.
#[derive(Copy, Clone, Debug)]
pub(super) struct Until {
    pub(super) at: Instant,
    pub(super) after: Duration,
}

/// What has become of an operation.
#[derive(Debug)]
pub(super) enum Step<T> {
    Done(T),
    /// It goes on when there is this.
    Wait(Wanted),
}

/// What a step waits for.
#[derive(Copy, Clone, Debug)]
pub(super) struct Wanted {
    read: bool,
    write: bool,
    /// Or that the server drains.
    drain: bool,
    until: Option<Time>,
}

/// What has become of a try to receive.
enum Tried {
    /// So many bytes went to the reader as they are.
    Received(usize),
    /// The core knows something new, or the clock has to be looked at.
    News,
    /// Nothing has come.
    Nothing,
}

impl Line {
    /// A line on a connected socket.
    pub(crate) fn new(
        socket: OwnedFd,
        peer: Address,
        limits: &Limits,
        deadlines: &Deadlines,
    ) -> io::Result<Line> {
        rustix::io::ioctl_fionbio(&socket, false)?;
        let (limits, deadlines) = (limits.clone(), deadlines.clone());
        let profile = Profile { limits, deadlines, pieces: Box::new(PiecePool::of_one()) };
        let (started, now) = (Instant::now(), Time::ZERO);
        let mut conn = Conn::new(Box::new(profile), now);
        conn.connected(now);
        Ok(Line {
            socket: Some(Arc::new(socket)),
            conn,
            peer,
            local: None,
            started,
            timeout: None,
            scratch: Vec::new(),
            handshake_at: None,
            watch: None,
            place: None,
            delivered: Delivered::Unasked,
        })
    }

    /// It is a server's, which can reach it there.
    pub(super) fn take_place(&mut self, place: Arc<Place>) {
        if let Some(socket) = &self.socket {
            place.enter(socket);
        }
        self.place = Some(place);
    }

    pub(super) fn place(&self) -> Option<&Arc<Place>> {
        self.place.as_ref()
    }

    pub(super) fn conn(&self) -> &Conn<Block> {
        &self.conn
    }

    pub(super) fn peer(&self) -> &Address {
        &self.peer
    }

    /// A proxy has told whom it is for.
    pub(super) fn is_for(&mut self, peer: Address) {
        self.peer = peer;
    }

    pub(super) fn local(&mut self) -> Option<Address> {
        if let (None, Some(socket)) = (&self.local, &self.socket) {
            self.local = socket::local_addr(socket.as_fd()).ok();
        }
        self.local.clone()
    }

    /// From now on others can reach it.
    pub(super) fn watch(&mut self) -> io::Result<Arc<Watch>> {
        if let Some(watch) = &self.watch {
            return Ok(watch.clone());
        }
        let watch = Watch {
            asked: AtomicU8::new(0),
            nudged: AtomicBool::new(false),
            alert: Alert::new()?,
            closed: OnceLock::new(),
        };
        if let Some(reason) = self.conn.reason() {
            let _ = watch.closed.set(reason);
        }
        Ok(self.watch.insert(Arc::new(watch)).clone())
    }

    pub(super) fn now(&self) -> Time {
        self.time(Instant::now())
    }

    fn time(&self, at: Instant) -> Time {
        Time::ZERO.after(at.saturating_duration_since(self.started))
    }

    pub(super) fn closed(&self, operation: Operation, reason: CloseReason) -> Error {
        self.failed(operation, Cause::Closed(reason))
    }

    pub(super) fn failed(&self, operation: Operation, cause: Cause) -> Error {
        Error::new(operation, cause).at(&self.peer)
    }
}

// Receiving.
impl Line {
    /// Receives what is there. With `exact` that is the next part of a message of which `begun` bytes are here already.
    #[inline]
    pub(super) fn recv(
        &mut self,
        buf: &mut [u8],
        exact: bool,
        begun: usize,
        until: Option<Until>,
        alone: bool,
    ) -> Result<Step<usize>> {
        loop {
            self.heed();
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
            if alone && begun == 0 && until.is_none() {
                match self.receive_untimed(buf) {
                    Some(Tried::Received(n)) => {
                        self.conn.stop_awaiting();
                        return Ok(Step::Done(n));
                    }
                    Some(_) => continue,
                    None => {}
                }
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
    pub(super) fn recv_block(&mut self, until: Option<Until>, alone: bool) -> Result<Step<Option<Block>>> {
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
    pub(super) fn ready(&mut self, until: Option<Until>, ends: bool) -> Result<Step<bool>> {
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
    pub(super) fn put_back(&mut self, bytes: &[u8]) {
        self.conn.unread_bytes(bytes);
    }

    fn wait_to_read<T>(&self, until: Option<Time>) -> Step<T> {
        let write = self.conn.has_to_send();
        Step::Wait(Wanted { read: true, write, drain: false, until })
    }

    /// Waits for bytes in the kernel alone, where nothing is measured but their silence: the kernel does that, and for a message that
    /// comes in time nobody looks at the clock. `None` if it cannot be done so.
    #[inline]
    fn receive_untimed(&mut self, buf: &mut [u8]) -> Option<Tried> {
        if self.watch.is_some() || self.handshake_at.is_some() || self.conn.has_to_send() {
            return None;
        }
        let silence = self.conn.silence_alone()?;
        if !self.conn.reads_past_inbox() {
            return None;
        }
        self.limit_wait(silence);
        let result = receive(self.socket.as_ref()?.as_fd(), buf, true);
        if let Ok(n @ 1..) = result {
            self.conn.received_untimed(n);
            return Some(Tried::Received(n));
        }
        // It has waited in vain, and from now on by the clock: for as long as the kernel was told, which counts in ticks. How long
        // it was before a signal came is not known.
        let waited = match result {
            Err(Errno::AGAIN) => self.timeout.unwrap_or_default().saturating_sub(TICK),
            _ => Duration::ZERO,
        };
        self.conn.await_reading(self.now().before(waited));
        Some(self.no_bytes(result, true))
    }

    /// Receives once: into `buf` if that can be, and otherwise for the core. Waits for it if the line is `alone`.
    #[inline]
    fn receive(&mut self, buf: &mut [u8], now: Time, deadline: Option<Time>, alone: bool) -> Tried {
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

    fn no_bytes(&mut self, result: Result<usize, Errno>, waited: bool) -> Tried {
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
        let left = left.unwrap_or(TIMEOUT_MAX).clamp(TIMEOUT_MIN, TIMEOUT_MAX);
        let fits = self.timeout.is_some_and(|timeout| timeout <= left && timeout >= left / 2);
        if let (false, Some(socket)) = (fits, &self.socket)
            && set_socket_timeout(socket, Timeout::Recv, Some(left)).is_ok()
        {
            self.timeout = Some(left);
        }
    }

    fn take_scratch(&mut self) -> Vec<u8> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(SCRATCH, 0);
        scratch
    }
}

#[inline]
fn receive(socket: BorrowedFd<'_>, buf: &mut [u8], waits: bool) -> Result<usize, Errno> {
    if waits { socket::receive_waiting(socket, buf) } else { socket::receive(socket, buf) }
}

// Sending.
impl Line {
    /// Hands `bytes` to the kernel, and leaves in them what is not its yet.
    #[inline]
    pub(super) fn send(&mut self, bytes: &mut &[u8], until: Option<Until>) -> Result<Step<()>> {
        let step = self.send_some(bytes, until);
        step.map_err(|error| {
            // What the kernel has not taken is the caller's again, and waits no longer.
            self.conn.caught_up();
            error.unsending(bytes.len())
        })
    }

    fn send_some(&mut self, bytes: &mut &[u8], until: Option<Until>) -> Result<Step<()>> {
        loop {
            self.heed();
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
            match socket::send(socket.as_fd(), bytes) {
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

    fn wait_to_write<T>(&self, until: Option<Time>) -> Step<T> {
        Step::Wait(Wanted { read: false, write: true, drain: false, until })
    }

    /// Receives for the core; what TLS waits for is the peer's turn.
    fn hear<T>(&mut self, now: Time, deadline: Option<Time>) -> Option<Step<T>> {
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
    pub(super) fn flush(&mut self, operation: Operation, until: Option<Until>) -> Result<Step<()>> {
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
    pub(super) fn finish(&mut self) {
        self.conn.finish();
        self.advance();
    }

    /// Its writer has gone: what is queued, close_notify at least, is sent by whoever reads, and he may wait for bytes only.
    pub(super) fn leave_to_reader(&mut self) {
        self.finish();
        if let (true, Some(watch)) = (self.conn.has_to_send(), &self.watch) {
            watch.nudge();
        }
    }
}

// Ending.
impl Line {
    pub(super) fn close(&mut self) {
        self.conn.close();
        self.advance();
    }

    pub(super) fn close_for(&mut self, reason: CloseReason) {
        self.conn.close_for(reason);
        self.advance();
    }

    pub(super) fn reset(&mut self, reason: CloseReason) {
        self.conn.reset(reason);
        self.advance();
    }

    /// Its owner drops it: it closes gracefully, or in a panic not at all so.
    pub(super) fn part(&mut self) {
        self.heed();
        if thread::panicking() {
            self.reset(CloseReason::HandlerPanicked);
        } else {
            self.close();
        }
    }

    /// Changes the deadlines of the core.
    pub(super) fn with_clock(&mut self, change: impl FnOnce(&mut Conn<Block>, Time)) {
        let now = self.now();
        change(&mut self.conn, now);
    }

    /// Throws away what still comes, until the connection is closed. Of who sends without a pause it takes a bounded amount, so that others
    /// who are waited for on the same thread have their turn.
    pub(super) fn end(&mut self) -> Step<CloseReason> {
        let mut turns = 0..THROWN_AWAY_MAX;
        loop {
            self.heed();
            let now = self.now();
            self.expire(now);
            self.advance();
            if self.conn.is_closed() {
                return Step::Done(self.conn.reason().unwrap_or(CloseReason::Local));
            }
            let deadline = self.next_deadline();
            if !self.conn.is_receiving() {
                return self.wait_to_write(deadline);
            }
            if turns.next().is_none() {
                return self.wait_to_read(deadline);
            }
            let mut scratch = self.take_scratch();
            let tried = match &self.socket {
                Some(socket) => match receive(socket.as_fd(), &mut scratch, false) {
                    Ok(n) if n > 0 => {
                        self.conn.received(n, now);
                        Tried::News
                    }
                    result => self.no_bytes(result, false),
                },
                None => Tried::News,
            };
            self.scratch = scratch;
            if let Tried::Nothing = tried {
                return self.wait_to_read(deadline);
            }
        }
    }

    /// Does what other threads have asked for.
    #[inline]
    fn heed(&mut self) {
        if let Some(watch) = &self.watch {
            watch.take_nudge();
            match watch.asked.load(Ordering::Relaxed) {
                CLOSE if self.conn.is_open() => self.close(),
                RESET if !self.conn.is_closed() => self.reset(CloseReason::LocalReset),
                _ => {}
            }
        }
        self.heed_server();
    }

    /// Tells the server whose it is how it is, and does what that wants.
    #[inline]
    fn heed_server(&mut self) {
        let Some(place) = &self.place else { return };
        if !self.scratch.is_empty() && place.memory_is_short() {
            self.scratch = Vec::new();
        }
        place.note(&self.conn, self.scratch.len());
        if place.is_stopped() && !self.conn.is_closed() {
            self.reset(CloseReason::Shutdown);
        } else if place.is_sent_away() && self.conn.is_open() {
            self.with_clock(|conn, now| conn.end(CloseReason::Disconnected, now));
            self.advance();
        }
    }

    /// How it is known that the peer sends nothing more, if it is.
    pub(super) fn hangup(&mut self) -> Option<Hangup> {
        self.heed();
        if let (None, Some(socket)) = (self.conn.hangup(), &self.socket)
            && has_hung_up(socket.as_fd())
        {
            self.conn.hung_up();
        }
        self.conn.hangup()
    }
}

#[cfg(target_os = "linux")]
fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    let end = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    matches!(poll(&mut fds, Some(&NOT_AT_ALL)), Ok(1)) && fds[0].revents().intersects(end)
}

/// Other systems tell the end of a stream only to who has read what is before it.
#[cfg(not(target_os = "linux"))]
fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    use rustix::net::RecvFlags;
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut [0; 1][..], flags) {
        Ok((n, _)) => n == 0,
        Err(error) => !matches!(error, Errno::AGAIN | Errno::INTR),
    }
}

#[cfg(target_os = "linux")]
const NOT_AT_ALL: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

// Delivery.
impl Line {
    /// How far the stream has to be acknowledged so that all that was sent is.
    pub(super) fn await_delivery(&mut self) -> u64 {
        if self.delivered == Delivered::Unasked {
            self.delivered = Delivered::Asked;
        }
        self.conn.given()
    }

    /// Waits until it is acknowledged so far. `looked` counts the looks.
    pub(super) fn delivered(
        &mut self,
        target: u64,
        looked: &mut u32,
        until: Option<Until>,
    ) -> Result<Step<()>> {
        loop {
            self.heed();
            self.look_for_failure();
            self.advance();
            let end = self.conn.final_reason();
            let left = match (self.delivered_so_far(), end) {
                (Ok(delivered), _) => target.saturating_sub(delivered),
                (Err(error), Some(reason)) if error.kind() != io::ErrorKind::Unsupported => {
                    return Err(self.closed(Operation::Deliver, reason));
                }
                (Err(error), _) => return Err(self.failed(Operation::Deliver, Cause::Os(error))),
            };
            match end {
                _ if left == 0 => return Ok(Step::Done(())),
                Some(reason) => {
                    return Err(self.failed(Operation::Deliver, Cause::Undelivered { reason, bytes: left }));
                }
                None => {}
            }
            let now = self.now();
            let Some(deadline) = self.in_time(now, until, Operation::Deliver)? else { continue };
            let look = now.after(LOOK_MAX.min(LOOK_MIN * 2u32.saturating_pow(*looked)));
            *looked += 1;
            let until = Some(deadline.map_or(look, |at| at.min(look)));
            let write = self.conn.has_to_send();
            return Ok(Step::Wait(Wanted { read: false, write, drain: false, until }));
        }
    }

    /// Nobody may be about to receive or to send, and so to learn that the connection broke.
    fn look_for_failure(&mut self) {
        if let Some(error) = self.socket.as_ref().and_then(|socket| socket::failure(socket.as_fd())) {
            let now = self.now();
            self.conn.broke(&error, now);
        }
    }

    fn delivered_so_far(&self) -> io::Result<u64> {
        match (self.delivered, &self.socket) {
            (Delivered::Final(delivered), _) => Ok(delivered),
            (_, Some(socket)) => Ok(self.conn.delivered(outq::unacked(socket.as_fd())?)),
            (_, None) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    pub(super) fn unacked(&self) -> Option<usize> {
        let unacked = outq::unacked(self.socket.as_ref()?.as_fd()).ok()?;
        Some(self.conn.unacked(unacked))
    }
}

// TLS.
impl Line {
    /// Begins TLS behind what was sent. The handshake has to be over `within` this time, if any.
    pub(super) fn begin_tls(&mut self, session: Session<Block>, within: Option<Duration>) -> Result<()> {
        if self.conn.begin_tls(session) {
            self.handshake_at = within.map(|within| self.now().after(within));
            self.unseal();
            return Ok(());
        }
        let cause = match self.conn.reason() {
            Some(reason) => Cause::Closed(reason),
            None => Cause::Misuse("TLS can begin once, and before this side has finished"),
        };
        Err(self.failed(Operation::Secure, cause))
    }

    /// Waits until TLS stands; it does where there is none.
    pub(super) fn secure(&mut self, until: Option<Until>) -> Result<Step<()>> {
        loop {
            self.heed();
            if let Some(failure) = self.conn.tls_failure() {
                let cause = Cause::Tls { fault: failure.fault, detail: failure.detail.clone() };
                return Err(self.failed(Operation::Secure, cause));
            }
            if !self.conn.is_handshaking() {
                return Ok(Step::Done(()));
            }
            if let Some(reason) = self.conn.reason() {
                return Err(self.closed(Operation::Secure, reason));
            }
            let now = self.now();
            let Some(deadline) = self.in_time(now, until, Operation::Secure)? else { continue };
            if let Some(step) = self.hear(now, deadline) {
                return Ok(step);
            }
        }
    }

    #[cfg(feature = "tls")]
    pub(super) fn leave_tls(&mut self) {
        self.conn.leave_tls();
        // If the peer has ended without a word, it will not say close_notify any more.
        self.unseal();
    }

    /// Waits until TLS is off.
    #[cfg(feature = "tls")]
    pub(super) fn left_tls(&mut self, until: Option<Until>) -> Result<Step<()>> {
        loop {
            self.heed();
            if !self.conn.is_sealed() {
                return Ok(Step::Done(()));
            }
            if let Some(reason) = self.conn.reason() {
                return Err(self.closed(Operation::Secure, reason));
            }
            self.check_room(Operation::Secure)?;
            let now = self.now();
            let Some(deadline) = self.in_time(now, until, Operation::Secure)? else { continue };
            if let Some(step) = self.hear(now, deadline) {
                return Ok(step);
            }
        }
    }

    /// While TLS is left, what the peer sends before it leaves too is kept: as much as may be.
    fn check_room(&self, operation: Operation) -> Result<()> {
        if self.conn.is_full() {
            let problem = "what the peer has sent before it leaves TLS has to be read first";
            return Err(self.failed(operation, Cause::Misuse(problem)));
        }
        Ok(())
    }

    /// Hands on what was received by TLS, and does what follows from it.
    fn unseal(&mut self) {
        loop {
            let now = self.now();
            match self.conn.unseal(now) {
                Unsealed::Nothing => break,
                Unsealed::Established => self.handshake_at = None,
                Unsealed::Bytes(block) => self.conn.deliver(block),
            }
        }
        self.advance();
    }
}

// What all steps have in common.
impl Line {
    /// Carries out what the core asks for, as far as that goes without waiting.
    fn advance(&mut self) {
        let now = self.now();
        while let Some(action) = self.conn.next_action(now) {
            match action {
                Action::Receive | Action::Pause => {}
                Action::Send => {
                    let result = self.send_queue();
                    let waits = matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
                    match result {
                        Ok(n) => self.conn.sent_inline(n, now),
                        // That it waits counts from now on.
                        Err(_) if waits => self.conn.sent_inline(0, now),
                        Err(error) => self.conn.broke(&error, now),
                    }
                    if waits {
                        break;
                    }
                }
                Action::Shutdown => {
                    if let Some(Err(error)) =
                        self.socket.as_ref().map(|socket| socket::shutdown(socket.as_fd()))
                    {
                        self.conn.broke(&error, now);
                    }
                }
                Action::Close { reset } => self.release(reset),
            }
        }
        let _ = self.conn.take_news();
    }

    fn send_queue(&mut self) -> io::Result<usize> {
        let Some(socket) = &self.socket else { return Err(io::ErrorKind::NotConnected.into()) };
        let queue = self.conn.offer();
        loop {
            let sent = match queue.single() {
                Some(bytes) => socket::send(socket.as_fd(), bytes),
                None => {
                    let mut slices = [io::IoSlice::new(&[]); SLICES_MAX];
                    let count = queue.slices(&mut slices);
                    socket::send_gathered(socket.as_fd(), &slices[..count])
                }
            };
            match sent {
                Err(Errno::INTR) => {}
                sent => return Ok(sent?),
            }
        }
    }

    /// Lets go of the socket.
    fn release(&mut self, reset: bool) {
        if self.delivered == Delivered::Asked
            && let Ok(delivered) = self.delivered_so_far()
        {
            self.delivered = Delivered::Final(delivered);
        }
        self.local();
        if let Some(place) = &self.place {
            place.leave();
        }
        if let (true, Some(socket)) = (reset, &self.socket) {
            socket::reset_on_close(socket.as_fd());
        }
        self.socket = None;
        self.conn.closed(None);
        if let Some(watch) = &self.watch {
            let _ = watch.closed.set(self.conn.reason().unwrap_or(CloseReason::Local));
            // Whoever waits with the socket lets go of it too.
            watch.alert.raise();
        }
    }

    /// The next time at which something is due.
    #[inline]
    fn next_deadline(&self) -> Option<Time> {
        let next = self.conn.next_deadline();
        let Some(handshake) = self.handshake_at else { return next };
        Some(next.map_or(handshake, |at| at.min(handshake)))
    }

    /// Until when an operation may wait from now on. An error if it is late; `None` if a deadline of the connection has passed,
    /// which has been acted on.
    #[inline]
    fn in_time(
        &mut self,
        now: Time,
        until: Option<Until>,
        operation: Operation,
    ) -> Result<Option<Option<Time>>> {
        let next = self.next_deadline();
        if next.is_some_and(|at| at <= now) {
            self.expire(now);
            return Ok(None);
        }
        let Some(Until { at, after }) = until else { return Ok(Some(next)) };
        let at = self.time(at);
        if at <= now {
            self.conn.give_up_awaiting(now);
            return Err(self.failed(operation, Cause::TimedOut { after }));
        }
        Ok(Some(Some(next.map_or(at, |next| next.min(at)))))
    }

    /// Does what the passed deadlines ask for.
    fn expire(&mut self, now: Time) {
        if self.handshake_at.is_some_and(|at| at <= now) {
            self.handshake_at = None;
            if self.conn.is_handshaking() {
                self.conn.reset(CloseReason::Timeout(Deadline::Handshake));
            }
        }
        while self.conn.expire(now) {}
        self.advance();
    }

    /// What to wait for, so that the line can be left to others meanwhile.
    pub(super) fn waiting(&self, wanted: Wanted) -> Waiting {
        let mut timeout = wanted.until.map(|at| at.since(self.now()));
        // Once it has been asked to close, the alert tells nothing new, and a reset is looked for now and then.
        let is_asked = self.watch.as_ref().is_some_and(|watch| watch.asked.load(Ordering::Relaxed) != 0);
        if is_asked {
            timeout = Some(timeout.map_or(LOOK_MAX, |timeout| timeout.min(LOOK_MAX)));
        }
        // The handle of its server reaches who waits for bytes; who waits only for room looks.
        if self.place.is_some() && !wanted.read {
            timeout = Some(timeout.map_or(SERVER_LOOK, |timeout| timeout.min(SERVER_LOOK)));
        }
        Waiting {
            wanted,
            timeout,
            socket: self.socket.clone(),
            watch: self.watch.clone().filter(|_| !is_asked),
            place: self.place.clone(),
        }
    }

    /// Does `step` until it is done.
    #[inline]
    pub(super) fn drive<T>(&mut self, mut step: impl FnMut(&mut Line) -> Result<Step<T>>) -> Result<T> {
        loop {
            match step(self)? {
                Step::Done(done) => return Ok(done),
                Step::Wait(wanted) => self.waiting(wanted).wait(),
            }
        }
    }
}

/// A wait, apart from its line.
pub(super) struct Waiting {
    wanted: Wanted,
    timeout: Option<Duration>,
    socket: Option<Arc<OwnedFd>>,
    watch: Option<Arc<Watch>>,
    place: Option<Arc<Place>>,
}

impl Waiting {
    /// Returns when there is what is wanted, the time is over, or for no reason at all.
    pub(super) fn wait(self) {
        wait_for_any(&[self], None, None);
    }

    fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        let Wanted { read, write, drain, .. } = self.wanted;
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, read);
        events.set(PollFlags::OUT, write);
        let watched = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        if let Some(socket) = self.socket.as_ref().filter(|_| read || write) {
            fds.push(PollFd::new(socket, events));
        }
        fds.extend(self.watch.iter().map(|watch| watched(watch.alert.ear())));
        if let Some(place) = &self.place {
            fds.push(watched(place.stopping()));
            fds.extend(drain.then(|| watched(place.draining())));
        }
    }
}

/// Waits for the first of several, for something else that can be read, and for no longer than `timeout`.
pub(super) fn wait_for_any(waits: &[Waiting], ear: Option<BorrowedFd<'_>>, timeout: Option<Duration>) {
    let mut fds = Vec::with_capacity(waits.len() + 3);
    waits.iter().for_each(|waiting| waiting.watch(&mut fds));
    fds.extend(ear.map(|ear| PollFd::from_borrowed_fd(ear, PollFlags::IN)));
    let timeout = waits.iter().filter_map(|waiting| waiting.timeout).chain(timeout).min();
    debug_assert!(!fds.is_empty() || timeout.is_some(), "it would wait for ever");
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    // Whatever comes of it, the next step looks for itself.
    let _ = poll(&mut fds, timeout.as_ref());
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn line(socket: UnixStream) -> Line {
        let peer = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], 9)));
        Line::new(socket.into(), peer, &Limits::default(), &Deadlines::default()).expect("it can block")
    }

    #[test]
    fn who_sends_without_a_pause_after_the_end_leaves_others_their_turn() {
        let (socket, mut peer) = UnixStream::pair().expect("descriptors");
        peer.set_nonblocking(true).expect("it can");
        let mut sent = 0;
        while let Ok(n) = peer.write(&[7; 16 * 1024]) {
            sent += n as u64;
        }
        let mut line = line(socket);
        line.close();
        let mut steps = 0;
        while line.conn().counts().discarded < sent {
            let before = line.conn().counts().discarded;
            assert!(matches!(line.end(), Step::Wait(Wanted { read: true, .. })));
            assert!(line.conn().counts().discarded - before <= u64::from(THROWN_AWAY_MAX) * SCRATCH as u64);
            steps += 1;
        }
        assert!(steps > 1, "{sent} bytes are no more than one step takes");
        drop(peer);
        assert!(matches!(line.end(), Step::Done(CloseReason::Local)));
    }

    fn is_raised(watch: &Watch) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(watch.alert.ear(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("it can be asked") == 1
    }

    #[test]
    fn a_nudge_is_over_when_it_was_heard_and_hides_no_request() {
        let (socket, _peer) = UnixStream::pair().expect("descriptors");
        let mut line = line(socket);
        let watch = line.watch().expect("descriptors");
        watch.nudge();
        line.waiting(Wanted { read: true, write: false, drain: false, until: None }).wait();
        line.heed();
        assert!(!is_raised(&watch), "who waits again would not wait");
        assert!(line.conn().is_open());
        watch.nudge();
        watch.reset();
        line.heed();
        assert_eq!(watch.reason(), Some(CloseReason::LocalReset));
    }
}
