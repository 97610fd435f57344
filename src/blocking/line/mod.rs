//! One connection of the blocking style: its socket and its core, and the steps that its operations are made of.
//!
//! A step does what can be done at once and then says what has to be waited for ([`Wanted`]). Whoever has the line to himself may let
//! a step wait in recv(2) itself: then a message costs one call to receive it and one to send it. Who shares it, by halves or
//! by a [`Remote`](super::Remote), waits in poll(2), where others can reach him.

mod delivery;
mod ending;
mod receiving;
mod securing;
mod sending;
mod waiting;
mod watch;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::places::Place;
use crate::address::Address;
use crate::config::{Deadlines, Limits};
use crate::conn::{Action, Conn, Profile};
use crate::engine::buffer::{Block, PiecePool, SLICES_MAX};
use crate::engine::socket;
use crate::error::{Cause, CloseReason, Deadline, Error, Operation, Result};
use crate::time::Time;

use delivery::Delivered;
use receiving::SCRATCH;
use waiting::Wanted;
pub(super) use waiting::wait_for_any;
pub(super) use watch::Watch;

#[derive(Debug)]
pub(crate) struct Line {
    socket: Option<Arc<OwnedFd>>,
    conn: Conn<Block>,
    peer: Address,
    local: Option<Address>,
    started: Instant,
    /// What the kernel's receive timeout is; none at first.
    timeout: Option<Duration>,
    /// The kernel's receive timeout is what a wait needs in which nothing is measured but the peer's silence.
    bounds_silence: bool,
    /// Where received bytes are put first that do not go to the reader as they are; made when there are some.
    scratch: Vec<u8>,
    /// It is made, and here or in use.
    has_scratch: bool,
    /// When the handshake has to be over.
    handshake_at: Option<Time>,
    /// Its remotes, or its halves.
    watch: Option<Arc<Watch>>,
    /// Its place in the server whose connection it is.
    place: Option<Arc<Place>>,
    /// That place knows how it is. What is received or sent at once is told there as it comes.
    is_noted: bool,
    /// How far the peer had acknowledged the stream when the socket was closed, for who has asked before.
    delivered: Delivered,
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
            bounds_silence: false,
            scratch: Vec::new(),
            has_scratch: false,
            handshake_at: None,
            watch: None,
            place: None,
            is_noted: false,
            delivered: Delivered::Unasked,
        })
    }

    /// It is a server's, which can reach it there.
    pub(super) fn take_place(&mut self, place: Arc<Place>) {
        if let Some(socket) = &self.socket {
            place.enter(socket);
        }
        self.place = Some(place);
        self.is_noted = false;
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

// What all steps have in common.
impl Line {
    /// Carries out what the core asks for, as far as that goes without waiting.
    fn advance(&mut self) {
        self.is_noted = false;
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
            watch.ended(self.conn.reason().unwrap_or(CloseReason::Local));
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

    #[inline]
    pub(super) fn drive<T>(&mut self, mut step: impl FnMut(&mut Line) -> Result<Step<T>>) -> Result<T> {
        loop {
            match step(self)? {
                Step::Done(done) => return Ok(done),
                Step::Wait(wanted) => self.waiting(wanted).wait(),
            }
        }
    }

    /// Changes the deadlines of the core.
    pub(super) fn with_clock(&mut self, change: impl FnOnce(&mut Conn<Block>, Time)) {
        self.is_noted = false;
        let now = self.now();
        change(&mut self.conn, now);
    }

    /// Does what other threads have asked for, and tells the server whose it is how it is, before what may change that.
    fn heed(&mut self) {
        self.heed_others();
        self.is_noted = false;
    }

    /// The same before what is over at once, or waits for bytes and changes nothing until they come. Where nothing is asked and nothing
    /// new to be told, as with most messages, that is all there is to see.
    #[inline]
    fn heed_at_once(&mut self) {
        let knows = match &self.place {
            Some(place) => self.is_noted && place.asks_nothing(),
            None => true,
        };
        if !knows || self.watch.is_some() {
            self.heed_others();
        }
    }

    #[cold]
    fn heed_others(&mut self) {
        if let Some(watch) = &self.watch {
            watch.take_nudge();
            match watch.asked() {
                watch::CLOSE if self.conn.is_open() => self.close(),
                watch::RESET if !self.conn.is_closed() => self.reset(CloseReason::LocalReset),
                _ => {}
            }
        }
        self.heed_server();
    }

    fn heed_server(&mut self) {
        let Some(place) = &self.place else { return };
        if !self.scratch.is_empty() && place.memory_is_short() {
            self.scratch = Vec::new();
            self.has_scratch = false;
        }
        self.note(place);
        // As long as it has a buffer, it looks whether memory is short.
        self.is_noted = !self.has_scratch;
        if place.is_stopped() && !self.conn.is_closed() {
            self.reset(CloseReason::Shutdown);
        } else if place.is_sent_away() && self.conn.is_open() {
            self.with_clock(|conn, now| conn.end(CloseReason::Disconnected, now));
            self.advance();
        }
    }

    fn note(&self, place: &Place) {
        place.note(&self.conn, if self.has_scratch { SCRATCH } else { 0 });
    }
}

#[cfg(test)]
fn on(socket: std::os::unix::net::UnixStream, deadlines: &Deadlines) -> Line {
    let peer = Address::from(std::net::SocketAddr::from(([127, 0, 0, 1], 9)));
    Line::new(socket.into(), peer, &Limits::default(), deadlines).expect("it can block")
}
