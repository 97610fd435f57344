//! One connection without input or output: what it has received, what it has to send, and how it ends.
//!
//! Knows no socket, no clock and no executor. The worker feeds it **inputs** (what the engine reported, passed
//! deadlines) and **commands** (what a handler asked for), each with the current time where it matters, and carries out
//! the [`Action`]s that [`Conn::next_action`] gives until there are none. [`Conn::take_news`] says whom to wake.
//!
//! With TLS the bytes between the engine and both queues are records, which a [`Session`] opens and seals (`secure.rs`). Without a worker, in
//! the blocking style, they mostly go past the queues (`direct.rs`).
//!
//! # How a connection ends
//!
//! Each direction ends by itself. The peer's FIN makes `reading` **Ended**: what came before it can still be read.
//! `finish` makes `writing` **Finishing**: the queue drains, then FIN goes out and it is **Finished**. When both are
//! over there is nothing left to happen, and the socket is released. While nobody receives, the engine may know of the
//! peer's FIN before the bytes in front of it are read: that is news (`hung_up`), and changes nothing else.
//!
//! A failure that a send meets ends `writing` alone: it is **Broken**, what was queued is lost, and the reason is certain. But
//! what the peer sent before may still be in the kernel (its error reply, most likely, behind which it sent RST because it
//! never read ours). So receiving goes on to the end that the engine tells, for the linger deadline at most. The same goes for
//! a failure that the engine notices while nobody receives. One that comes with receiving ends everything.
//!
//! The `phase` says how far the whole is:
//!
//! * **Connecting**: bytes may be queued already; nothing moves.
//! * **Open**: both directions as above.
//! * **Closing**: this side is done (`close`, or the handle was dropped). Unread bytes are thrown away, now and as they
//!   come; the queue drains, FIN goes out, and then the peer's end is awaited for the linger deadline. Closing the
//!   socket earlier would answer the peer's late bytes with RST, and RST destroys what the peer has not yet read of our
//!   last words (RFC 1122, 4.2.2.13; RFC 2525, 2.17). A connection that a deadline ends gets no more than the linger
//!   time for all of this.
//! * **Releasing**: the engine has to be told to close; with RST after `reset` or a stalled queue, plainly after the end
//!   of both directions or a failure.
//! * **Released**: it was told; a send may still be in flight, and its buffer comes back with `Closed`.
//! * **Closed**: nothing of this connection is anywhere but here. Received bytes can still be read.
//!
//! # The reason
//!
//! The first cause that forces the end is the reason and stays it. A graceful end forces nothing, so while it is under
//! way a failure may still become the reason; if none does, the side that ended first gives it.

mod deadline;
mod direct;
#[cfg(any(test, fuzzing))]
pub(crate) mod harness;
mod inbox;
mod news;
mod outbox;
#[cfg(test)]
mod properties;
mod secure;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::{Deadlines, Limits, WhenFull};
use crate::engine::buffer::{Chunk, Held, Outgoing, PIECE_SIZE, PiecePool, Received};
use crate::error::{Bound, CloseReason, Deadline};
use crate::time::Time;
use crate::tls::{BUFFERFUL, Session};

use deadline::{Clock, Expired};
use inbox::Inbox;
use outbox::Outbox;

pub(crate) use news::News;
pub(crate) use outbox::Room;
pub(crate) use secure::Unsealed;
pub use state::ConnectionState;

/// Owned bytes up to this size are copied behind what is queued. That also bounds the pieces of a full queue.
const COPY_MAX: usize = 1024;

/// What the connections of one server, or one client's, have in common on one worker.
#[derive(Debug)]
pub(crate) struct Profile<C: Received = Chunk> {
    pub(crate) limits: Limits,
    pub(crate) deadlines: Deadlines,
    /// Where the buffers of their send queues come from.
    pub(crate) pieces: C::Shared<PiecePool>,
}

#[derive(Debug)]
pub(crate) struct Conn<C: Received = Chunk> {
    phase: Phase,
    reading: Reading,
    writing: Writing,
    inbox: Inbox<C>,
    outbox: Outbox,
    clock: Clock,
    profile: C::Shared<Profile<C>>,
    /// What protects its bytes, if anything does.
    tls: Option<Box<Session<C>>>,
    /// What the engine was told last: whether to receive.
    armed: bool,
    /// The peer's end is known, or this one's is certain: whoever waited for that was told.
    hung_up: bool,
    /// This side ended before the peer's end was read, and something of the stream may be missing: reading ends with the reason, not as
    /// if everything had come.
    cut_short: bool,
    news: News,
    /// What is unread is the beginning of a message, and a handler waits for the rest.
    incomplete: bool,
    /// How long the message is at least whose beginning a handler has left, if it has said so.
    expected: u32,
    /// Somebody was told to wait until the queue has drained to its low mark.
    blocked: bool,
    /// Somebody waits for an empty queue.
    flush_awaited: bool,
    /// What its user has left undone.
    undone: Undone,
    /// When bytes were last handed to the engine without a word of their end.
    handed_at: Time,
    /// Who ended its direction first.
    first_end: Option<CloseReason>,
    reason: Option<CloseReason>,
    counts: Counts,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Open,
    Closing,
    Releasing { reset: bool },
    Released,
    Closed,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Reading {
    Open,
    Ended,
    Broken,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Writing {
    Open,
    Finishing,
    Finished,
    /// `after_end` says that the peer had ended its direction in order before.
    Broken {
        after_end: bool,
    },
}

/// What the user of a connection has begun and not ended. Whoever uses it next would meet the rest.
#[derive(Copy, Clone, Debug, Default)]
struct Undone {
    /// Something was sent, and nothing was read since.
    answer: bool,
    /// A read was given up while it waited.
    read: bool,
    /// A message was queued in part.
    message: bool,
}

/// What the worker has to ask of the engine.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Action {
    Receive,
    Pause,
    /// Send what [`Conn::offer`] gives.
    Send,
    /// Send FIN.
    Shutdown,
    Close {
        reset: bool,
    },
}

/// What a read found.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Readable {
    /// So many bytes are here.
    Bytes(usize),
    /// Nothing, and nothing will come: the peer ended.
    Ended,
    /// Nothing yet.
    NotYet,
}

/// How it became certain that a peer sends nothing more: what [`Connection::hangup`](crate::Connection::hangup) tells.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hangup {
    /// The peer has ended its side (FIN), behind bytes that may still be unread. It may go on reading.
    Ended,
    /// The connection is closed, or about to be, for this reason.
    Closed(CloseReason),
}

/// Bytes that went through a connection.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Bytes received from the peer.
    pub received: u64,
    /// Bytes handed to the kernel.
    pub sent: u64,
    /// Bytes that were queued and will never be sent; final once the connection is closed.
    pub unsent: u64,
    /// Bytes received and thrown away unread: at the close and after it. What an event handler leaves when it closes is
    /// not counted.
    pub discarded: u64,
}

// Getters.
impl<C: Received> Conn<C> {
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Bytes queued or in flight.
    pub(crate) fn pending(&self) -> usize {
        self.outbox.pending()
    }

    pub(crate) fn unread(&self) -> usize {
        self.inbox.len()
    }

    /// Bytes that were sent, or are to be, and that the peer has not acknowledged. The engine has `unacked` of them, with FIN,
    /// which is the last to be acknowledged.
    pub(crate) fn unacked(&self, unacked: usize) -> usize {
        let fin = usize::from(self.writing == Writing::Finished);
        self.pending() + unacked.saturating_sub(fin)
    }

    /// How far into the stream the peer has acknowledged it; see [`Conn::unacked`].
    pub(crate) fn delivered(&self, unacked: usize) -> u64 {
        self.counts.sent + self.pending() as u64 - self.unacked(unacked) as u64
    }

    /// How far what was sent goes into the stream; with what is lost, if the connection has an end that may be to blame.
    pub(crate) fn given(&self) -> u64 {
        let lost = if self.reason().is_some() { self.counts.unsent } else { 0 };
        self.counts.sent + self.pending() as u64 + lost
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.profile.limits
    }

    pub(crate) fn send_high(&self) -> usize {
        self.profile.limits.send_high
    }

    pub(crate) fn send_max(&self) -> usize {
        self.profile.limits.send_max
    }

    pub(crate) fn when_full(&self) -> WhenFull {
        self.profile.limits.when_full
    }

    /// Why the connection ended or is about to, once that is certain.
    pub(crate) fn reason(&self) -> Option<CloseReason> {
        match self.phase {
            Phase::Connecting | Phase::Open if !self.is_send_broken() => None,
            _ => Some(self.reason.or(self.first_end).unwrap_or(CloseReason::Local)),
        }
    }

    /// The reason, once nothing more can be sent or acknowledged.
    pub(crate) fn final_reason(&self) -> Option<CloseReason> {
        self.reason().filter(|_| !self.is_flushing())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether something was sent and nothing read since.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.undone.answer
    }

    /// Whether its user gave up an operation in the middle.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.undone.read || self.undone.message
    }

    pub(crate) fn is_connecting(&self) -> bool {
        self.phase == Phase::Connecting
    }

    /// Whether handlers have business with it: it was neither closed nor broken.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Open)
    }

    /// Whether nothing is to be offered to a handler until it can send again. While TLS is left it is the peer whose turn it is,
    /// and what it says comes before its close_notify.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked && !self.is_leaving_tls()
    }

    /// Whether a handler can be offered what is here. One that could not send is offered what came before TLS failed: it will not
    /// be able to any more.
    pub(crate) fn is_offered(&self) -> bool {
        match self.phase {
            Phase::Connecting | Phase::Open => !self.is_blocked(),
            Phase::Closing => self.blocked && self.tls_failure().is_some(),
            _ => false,
        }
    }

    /// Whether the inbox holds all that it may.
    pub(crate) fn is_full(&self) -> bool {
        self.inbox.len() >= self.profile.limits.receive_buffer.max(self.expected as usize)
    }

    /// What counts the bytes that it holds by other means than its queues.
    pub(crate) fn held(&self) -> &Arc<Held> {
        self.profile.pieces.count()
    }

    /// Whether nothing more is to be received for now. Where memory is short that is so with any unread byte, unless a
    /// handler cannot go on without more, or TLS is being left, which ends behind what is unread.
    pub(crate) fn has_enough(&self) -> bool {
        let one_is_enough = self.profile.pieces.is_short() && !self.incomplete && !self.is_leaving_tls();
        self.is_full() || (one_is_enough && self.inbox.len() > 0)
    }

    /// Whether the engine was told to stop receiving although more may come.
    pub(crate) fn is_paused(&self) -> bool {
        !self.armed && self.phase == Phase::Open && self.reading == Reading::Open
    }

    /// Whether everything asked for has been handed to the kernel: bytes, and FIN if this side finished.
    pub(crate) fn is_flushed(&self) -> bool {
        let stands = matches!(self.phase, Phase::Open | Phase::Closing) && !self.is_send_broken();
        let ended = self.writing == Writing::Finished && self.counts.unsent == 0;
        (stands || ended) && self.outbox.is_empty() && self.writing != Writing::Finishing
    }

    /// From now on an empty queue is news.
    pub(crate) fn await_flush(&mut self) {
        self.flush_awaited = true;
    }

    /// Whether that is still under way.
    pub(crate) fn is_flushing(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Open | Phase::Closing) && !self.is_send_broken()
    }

    fn is_send_broken(&self) -> bool {
        matches!(self.writing, Writing::Broken { .. })
    }

    /// What it is doing, for those who look on.
    pub(crate) fn state(&self) -> ConnectionState {
        match (self.phase, self.reading, self.writing) {
            (Phase::Connecting | Phase::Open, Reading::Open, Writing::Open) => ConnectionState::Open,
            (Phase::Connecting | Phase::Open, _, Writing::Open) => ConnectionState::PeerEnded,
            (Phase::Connecting | Phase::Open, ..) => ConnectionState::Finishing,
            _ => ConnectionState::Closing,
        }
    }

    /// Whether nothing more is to be read behind what is here.
    pub(crate) fn peer_ended(&self) -> bool {
        self.reading == Reading::Ended || self.tls.as_ref().is_some_and(|tls| tls.peer_has_ended())
    }

    /// Whether the peer has ended, and a handler should know: the connection stands, or is over because this side had finished before.
    pub(crate) fn ended_in_order(&self) -> bool {
        let stands = self.is_open() || (!self.cut_short && self.reason.is_none());
        stands && self.peer_ended()
    }

    /// Whether the peer's end is known, or this connection's is certain.
    pub(crate) fn hangup(&self) -> Option<Hangup> {
        match self.reason() {
            Some(reason) => Some(Hangup::Closed(reason)),
            None => self.hung_up.then_some(Hangup::Ended),
        }
    }
}

// Commands: what handlers ask for.
impl<C: Received> Conn<C> {
    pub(crate) fn new(profile: C::Shared<Profile<C>>, now: Time) -> Conn<C> {
        Conn {
            phase: Phase::Connecting,
            reading: Reading::Open,
            writing: Writing::Open,
            inbox: Inbox::default(),
            outbox: Outbox::default(),
            clock: Clock::new(&profile.deadlines, now),
            profile,
            tls: None,
            armed: false,
            hung_up: false,
            cut_short: false,
            news: News::default(),
            incomplete: false,
            expected: 0,
            blocked: false,
            flush_awaited: false,
            undone: Undone::default(),
            handed_at: Time::NEVER,
            first_end: None,
            reason: None,
            counts: Counts::default(),
        }
    }

    /// What there is to read; an error once reading makes no sense any more.
    pub(crate) fn readable(&self) -> Result<Readable, CloseReason> {
        if self.inbox.len() > 0 {
            return Ok(Readable::Bytes(self.inbox.len()));
        }
        match (self.reading, self.reason()) {
            _ if self.peer_ended() && !self.cut_short => Ok(Readable::Ended),
            (Reading::Open, _) if self.phase == Phase::Open => Ok(Readable::NotYet),
            (_, Some(reason)) => Err(reason),
            (_, None) => Ok(Readable::NotYet),
        }
    }

    pub(crate) fn read(&mut self, buf: &mut [u8]) -> usize {
        self.clock.message_over();
        self.inbox.read(buf)
    }

    /// Reads at most `room` bytes to `put`.
    #[allow(dead_code, reason = "for the traits of others, which are features")]
    pub(crate) fn read_with(&mut self, room: usize, put: impl FnMut(&[u8])) -> usize {
        self.clock.message_over();
        self.inbox.read_with(room, put)
    }

    /// Reads the next part of a message, of which `buf` is what is missing.
    pub(crate) fn read_part(&mut self, buf: &mut [u8]) -> usize {
        let was_full = self.is_full();
        let n = self.inbox.read(buf);
        if n == buf.len() || was_full {
            // Complete, or the peer had to wait for this side.
            self.clock.message_over();
        }
        n
    }

    pub(crate) fn take_chunk(&mut self) -> Option<C> {
        self.clock.message_over();
        self.inbox.take()
    }

    /// Takes a chunk that may be a part of a message, whose end is told by [`Conn::message_over`].
    pub(crate) fn take_part(&mut self) -> Option<C> {
        if self.is_full() {
            // The peer had to wait for this side.
            self.clock.message_over();
        }
        self.inbox.take()
    }

    /// The message that was under way has come whole.
    pub(crate) fn message_over(&mut self) {
        self.clock.message_over();
    }

    /// What a handler leaves is the beginning of a message of at least so many bytes: all of them have to find room.
    pub(crate) fn expect(&mut self, bytes: usize) {
        self.expected = u32::try_from(bytes).unwrap_or(u32::MAX);
    }

    pub(crate) fn take_joined(&mut self) -> Option<C> {
        self.incomplete = false;
        self.expected = 0;
        self.inbox.take_joined()
    }

    /// Puts bytes back that were taken but not used. They may come back after the close.
    pub(crate) fn unread_bytes(&mut self, bytes: &[u8]) {
        self.inbox.unread(bytes, self.profile.pieces.count());
    }

    /// Keeps received bytes that no handler has seen yet.
    pub(crate) fn keep(&mut self, chunk: C) {
        self.inbox.push(chunk);
    }

    /// Keeps what a handler left of the bytes that it was offered: the beginning of a message. It is the next one if some
    /// of them were `consumed`.
    pub(crate) fn leave(&mut self, chunk: C, consumed: usize, now: Time) {
        if consumed > 0 {
            self.clock.message_over();
        }
        self.inbox.push(chunk);
        self.incomplete = !self.is_blocked();
        if self.incomplete {
            self.await_rest(self.inbox.len(), now);
        }
    }

    /// A handler has seen what was left over: if it left nothing again, no message is under way.
    pub(crate) fn offered(&mut self) {
        if self.inbox.len() == 0 {
            self.clock.message_over();
        }
    }

    /// Somebody waits for the rest of a message of which `bytes` are here: from now on it must not come too slowly.
    pub(crate) fn await_rest(&mut self, bytes: usize, now: Time) {
        if self.phase == Phase::Open && self.reading == Reading::Open {
            self.clock.message_awaited(bytes, now, &self.profile.deadlines);
        }
    }

    /// Somebody waits for bytes: from now on the peer's silence counts.
    pub(crate) fn await_reading(&mut self, now: Time) {
        if self.phase == Phase::Open && self.reading == Reading::Open {
            self.clock.read_awaited(now, &self.profile.deadlines);
        }
    }

    /// Nobody waits for bytes: the peer may be silent.
    pub(crate) fn stop_awaiting(&mut self) {
        self.clock.read_over();
        self.undone = Undone { message: self.undone.message, ..Undone::default() };
    }

    /// A message was queued, whole or the first parts of it.
    pub(crate) fn queued(&mut self, is_whole: bool) {
        self.undone = Undone { answer: true, message: !is_whole, ..self.undone };
    }

    /// It is this side that makes the peer wait, until the send queue has drained.
    pub(crate) fn make_wait(&mut self) {
        self.clock.read_over();
        self.clock.message_over();
    }

    /// Nobody waits for bytes any more, and none has come.
    pub(crate) fn give_up_awaiting(&mut self, now: Time) {
        self.clock.read_given_up(now);
        self.undone.read = true;
    }

    /// Whether `len` bytes can be queued whole, and if not yet, remembers that somebody waits; an error once writing
    /// makes no sense any more.
    pub(crate) fn room(&mut self, len: usize) -> Result<Room, CloseReason> {
        self.writable()?;
        self.writable_by_tls()?;
        if self.tls.as_ref().is_some_and(|tls| !tls.can_write()) {
            self.blocked = true;
            return Ok(Room::Later);
        }
        let room = self.outbox.room(len, &self.profile.limits, self.profile.pieces.is_short());
        self.blocked |= room == Room::Later;
        Ok(room)
    }

    /// The same for a handler's own message; if there is no room, and that is what ends connections here, it is reset.
    pub(crate) fn room_or_end(&mut self, len: usize) -> Result<Room, CloseReason> {
        let room = self.room(len)?;
        if room == Room::Later && self.when_full() == WhenFull::Disconnect && !self.is_held_back() {
            let reason = CloseReason::Limit(Bound::SendQueue);
            self.reset(reason);
            return Err(reason);
        }
        Ok(room)
    }

    #[inline]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        debug_assert!(self.is_within_bound(bytes.len()), "the hard bound of the send queue");
        match &mut self.tls {
            None => self.outbox.push(bytes, &self.profile.pieces),
            Some(tls) => tls.write(bytes, self.outbox.tail(), &self.profile.pieces),
        }
    }

    /// Queues `bytes` without a copy, unless they are so few that a copy is cheaper than a piece of their own.
    pub(crate) fn send_owned(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY_MAX || self.tls.is_some() {
            self.send(&bytes);
        } else {
            debug_assert!(self.is_within_bound(bytes.len()), "the hard bound of the send queue");
            self.outbox.push_owned(bytes, &self.profile.pieces);
        }
    }

    /// Whether the queue can take so many bytes. The first part of a message may lie there sealed already, and is longer by that.
    fn is_within_bound(&self, len: usize) -> bool {
        let sealed = if self.is_sealed() { PIECE_SIZE - BUFFERFUL } else { 0 };
        self.pending() + len <= self.send_max() + sealed
    }

    /// Whether bytes may go past the queue: they would be the first to leave.
    pub(crate) fn is_clear(&self) -> bool {
        self.phase == Phase::Open && self.outbox.is_empty() && !self.is_send_broken()
    }

    /// The engine was lent `len` bytes past the queue, and `result` tells how many it sent. Returns how many are over
    /// and done with; the rest has to be queued. After a failure none is left: it takes all of them, as it takes a queue.
    pub(crate) fn sent_past_queue(&mut self, len: usize, result: &io::Result<usize>, now: Time) -> usize {
        match result {
            Ok(n) => {
                self.counts.sent += *n as u64;
                // The engine may have kept them for the end of the turn.
                self.handed_at = now;
                *n
            }
            Err(error) => {
                self.broke(error, now);
                self.lost(len);
                len
            }
        }
    }

    /// An error once nothing more can be queued.
    pub(crate) fn writable(&self) -> Result<(), CloseReason> {
        match (self.reason(), self.writing) {
            (Some(reason), _) => Err(reason),
            (None, Writing::Open) => Ok(()),
            (None, _) => Err(CloseReason::Local),
        }
    }

    /// Ends this side's direction behind what is queued.
    pub(crate) fn finish(&mut self) {
        if self.is_open() && self.writing == Writing::Open {
            if let Some(tls) = &mut self.tls {
                tls.end(self.outbox.tail(), &self.profile.pieces);
            }
            self.writing = Writing::Finishing;
            self.first_end.get_or_insert(CloseReason::Local);
        }
    }

    /// Closes gracefully; see the module's essay.
    pub(crate) fn close(&mut self) {
        match self.phase {
            // What was queued in advance never had a way out.
            Phase::Connecting => {
                let lost = !self.outbox.is_empty();
                self.release(lost.then_some(CloseReason::LocalReset), false);
            }
            // Nothing goes out, and nobody wants what comes.
            Phase::Open if self.is_send_broken() => {
                self.counts.discarded += self.inbox.clear() as u64;
                self.release(None, false);
            }
            Phase::Open => {
                self.begin_closing();
                let unread = self.inbox.clear() as u64;
                self.counts.discarded += unread;
                // An end that could not be told before is not told any more.
                self.cut_short |= unread > 0 || self.blocked;
            }
            _ => {}
        }
    }

    /// From now on only what is queued matters, and what was received already.
    fn begin_closing(&mut self) {
        self.finish();
        self.cut_short = !self.peer_ended();
        self.phase = Phase::Closing;
        self.clock.closing();
        self.news.add(News::READABLE);
        self.news.add(News::WRITABLE);
        self.hang_up();
    }

    /// Closes gracefully for a reason of its own: the handler failed.
    pub(crate) fn close_for(&mut self, reason: CloseReason) {
        if matches!(self.phase, Phase::Connecting | Phase::Open | Phase::Closing) {
            self.reason.get_or_insert(reason);
        }
        self.close();
    }

    /// Closes for a reason that the peer is to blame for: gracefully, but within the linger time.
    pub(crate) fn end(&mut self, reason: CloseReason, now: Time) {
        self.close_for(reason);
        if self.phase == Phase::Closing {
            self.clock.late();
            self.clock.linger_once(now, &self.profile.deadlines);
        }
    }

    /// Bytes that somebody had for this connection were never queued.
    pub(crate) fn lost(&mut self, bytes: usize) {
        self.counts.unsent += bytes as u64;
    }

    /// Throws the connection away: RST.
    pub(crate) fn reset(&mut self, reason: CloseReason) {
        if matches!(self.phase, Phase::Connecting | Phase::Open | Phase::Closing) {
            self.counts.discarded += self.inbox.clear() as u64;
            self.release(Some(reason), true);
        }
    }

    pub(crate) fn close_after(&mut self, delay: Duration, now: Time) {
        if self.is_open() {
            self.clock.close(now.after(delay));
        }
    }

    pub(crate) fn reset_after(&mut self, delay: Duration, now: Time) {
        if matches!(self.phase, Phase::Connecting | Phase::Open | Phase::Closing) {
            self.clock.reset(now.after(delay));
        }
    }

    /// Sets or removes the handler's own deadline.
    pub(crate) fn set_deadline(&mut self, at: Option<Time>) {
        if self.is_open() {
            self.clock.handler(at);
        }
    }
}

// Inputs: what the engine reported and what time has passed.
impl<C: Received> Conn<C> {
    pub(crate) fn connected(&mut self, now: Time) {
        if self.phase == Phase::Connecting {
            self.phase = Phase::Open;
            self.news.add(News::WRITABLE);
            if !self.outbox.is_empty() {
                self.clock.writing(now, &self.profile.deadlines);
            }
        }
    }

    /// Counts what came. Says whether a handler should see it; if not, it is to be thrown away.
    pub(crate) fn received(&mut self, bytes: usize, now: Time) -> bool {
        self.counts.received += bytes as u64;
        let wanted = self.phase == Phase::Open && self.reading == Reading::Open;
        if wanted {
            self.clock.received(bytes, now, &self.profile.deadlines);
            if self.tls.is_none() {
                self.clock.heard();
            }
        } else {
            self.counts.discarded += bytes as u64;
        }
        wanted
    }

    /// Queues what came for the reader, who has to be told.
    pub(crate) fn deliver(&mut self, chunk: C) {
        self.inbox.push(chunk);
    }

    /// The peer has ended, and what came before that is still in the kernel.
    pub(crate) fn hung_up(&mut self) {
        if self.reading == Reading::Open {
            self.hang_up();
        }
    }

    pub(crate) fn receive_ended(&mut self, now: Time) {
        if self.reading == Reading::Open && !self.is_cut_off(now) {
            // The failure that a send took from the system leaves an end like any other behind.
            let in_order = self.writing != Writing::Broken { after_end: false };
            self.reading = if in_order { Reading::Ended } else { Reading::Broken };
            self.first_end.get_or_insert(CloseReason::Peer);
            self.clock.read_over();
            self.clock.message_over();
            self.news.add(News::READABLE);
            self.hang_up();
        }
    }

    /// Whether something waits to be sent, and can be.
    pub(crate) fn has_to_send(&self) -> bool {
        self.is_flushing() && self.outbox.is_sendable()
    }

    /// What the engine is to send.
    pub(crate) fn offer(&mut self) -> &mut Outgoing {
        self.outbox.offer()
    }

    /// The engine took the `offered` bytes, to send them later.
    pub(crate) fn in_flight(&mut self, offered: usize, now: Time) {
        self.outbox.taken(offered);
        if !self.clock.is_writing() {
            self.clock.writing(now, &self.profile.deadlines);
        }
    }

    /// The engine sent so much of what it was offered, and took nothing.
    pub(crate) fn sent_inline(&mut self, n: usize, now: Time) {
        self.counts.sent += n as u64;
        self.outbox.sent_inline(n, &self.profile.pieces);
        self.progressed(n, now);
    }

    /// The engine took the `offered` bytes, to send them with the next turn: they count as sent, unless they bounce.
    pub(crate) fn handed(&mut self, offered: usize, now: Time) {
        debug_assert!(self.outbox.is_empty(), "the engine takes all or nothing");
        self.counts.sent += offered as u64;
        self.handed_at = now;
        self.progressed(offered, now);
    }

    /// Of what was handed to the engine so many bytes were not sent after all: they are in flight.
    pub(crate) fn bounced(&mut self, unsent: usize, now: Time) {
        self.counts.sent -= unsent as u64;
        self.outbox.bounced(unsent);
        if self.writing == Writing::Finished {
            // FIN has to wait for them.
            self.writing = Writing::Finishing;
        }
        let goes_on = matches!(self.phase, Phase::Open | Phase::Closing) && !self.is_send_broken();
        if goes_on && !self.clock.is_writing() {
            self.clock.writing(now, &self.profile.deadlines);
        }
    }

    /// A send in flight is over.
    pub(crate) fn sent(&mut self, outgoing: &mut Outgoing, n: usize, now: Time) {
        self.counts.sent += n as u64;
        self.outbox.sent(outgoing, n, &self.profile.pieces);
        if self.is_flushing() {
            self.progressed(n, now);
        } else {
            self.drop_queue();
        }
    }

    fn progressed(&mut self, n: usize, now: Time) {
        if self.outbox.is_empty() {
            self.clock.written();
        } else if n > 0 || !self.clock.is_writing() {
            self.clock.writing(now, &self.profile.deadlines);
        }
        // Where memory is short, a queue has room when it is empty.
        let low = if self.profile.pieces.is_short() { 0 } else { self.profile.limits.send_low };
        if self.blocked && self.outbox.pending() <= low && !self.is_held_back() {
            self.blocked = false;
            self.news.add(News::UNBLOCKED);
            self.news.add(News::WRITABLE);
        } else if self.flush_awaited && self.outbox.is_empty() {
            self.flush_awaited = false;
            self.news.add(News::WRITABLE);
        }
    }

    /// A send came back with an error; nothing of it counts as sent.
    pub(crate) fn send_failed(&mut self, outgoing: &mut Outgoing, error: &io::Error, now: Time) {
        self.outbox.sent(outgoing, 0, &self.profile.pieces);
        if self.is_flushing() {
            self.broke(error, now);
        } else {
            self.drop_queue();
        }
    }

    /// The connection broke, as a send found out, or the engine while nobody received. What came before may still be read, if
    /// anybody is going to.
    pub(crate) fn broke(&mut self, error: &io::Error, now: Time) {
        if self.phase != Phase::Open || self.reading != Reading::Open {
            return self.failed(error);
        }
        self.reason.get_or_insert(CloseReason::of(error));
        // RST after FIN is EPIPE and without it ECONNRESET: tcp_reset() in Linux.
        self.writing = Writing::Broken { after_end: error.kind() == io::ErrorKind::BrokenPipe };
        self.drop_queue();
        self.clock.written();
        self.clock.linger_once(now, &self.profile.deadlines);
        self.news.add(News::WRITABLE);
        if std::mem::take(&mut self.blocked) {
            self.news.add(News::UNBLOCKED);
        }
        self.hang_up();
    }

    /// The connection broke, and nothing is left to be received.
    pub(crate) fn failed(&mut self, error: &io::Error) {
        if matches!(self.phase, Phase::Connecting | Phase::Open | Phase::Closing) {
            if self.reading == Reading::Open {
                self.reading = Reading::Broken;
            }
            self.release(Some(CloseReason::of(error)), false);
        }
    }

    /// The timer that was set for the deadlines fired.
    pub(crate) fn timer_fired(&mut self) {
        self.clock.timer_fired();
    }

    /// Looks at the deadlines; does what the first passed one asks for. Returns whether there was one.
    pub(crate) fn expire(&mut self, now: Time) -> bool {
        let Some(expired) = self.clock.expired(now, &self.profile.deadlines) else { return false };
        self.clock.done(expired);
        match expired {
            Expired::Deadline(deadline) => self.end_late(deadline, now),
            Expired::Linger => self.release(None, !self.outbox.is_empty()),
            Expired::Close => self.close(),
            Expired::Reset => self.reset(CloseReason::LocalReset),
        }
        true
    }

    /// The engine has let go of everything; `outgoing` is what it still had.
    pub(crate) fn closed(&mut self, outgoing: Option<Box<Outgoing>>) {
        debug_assert_eq!(self.phase, Phase::Released, "closed without being asked");
        if let Some(mut outgoing) = outgoing {
            self.outbox.sent(&mut outgoing, 0, &self.profile.pieces);
        }
        self.drop_queue();
        if let Some(tls) = &mut self.tls {
            tls.release(&self.profile.pieces);
        }
        self.phase = Phase::Closed;
        for news in [News::READABLE, News::WRITABLE, News::CLOSED] {
            self.news.add(news);
        }
    }

    /// The engine never had a socket for it, or none any more.
    pub(crate) fn never_opened(&mut self, error: &io::Error) {
        self.failed(error);
        self.phase = Phase::Released;
        self.closed(None);
    }
}

// Outputs.
impl<C: Received> Conn<C> {
    /// What the engine has to do next.
    #[inline]
    pub(crate) fn next_action(&mut self, now: Time) -> Option<Action> {
        if !matches!(self.phase, Phase::Open | Phase::Closing) {
            return self.release_action();
        }
        if let Some(tls) = &mut self.tls
            && !self.outbox.is_in_flight()
        {
            tls.seal(self.outbox.tail(), &self.profile.pieces);
        }
        if self.outbox.is_sendable() {
            return Some(Action::Send);
        }
        if self.writing != Writing::Open
            && let Some(action) = self.end_action(now)
        {
            return Some(action);
        }
        self.receive_interest()
    }

    fn release_action(&mut self) -> Option<Action> {
        let Phase::Releasing { reset } = self.phase else { return None };
        self.phase = Phase::Released;
        Some(Action::Close { reset })
    }

    /// What follows the last byte of this side.
    fn end_action(&mut self, now: Time) -> Option<Action> {
        if self.writing == Writing::Finishing {
            // A handshake that was under way is brought to its end, and close_notify follows.
            if !self.outbox.is_empty() || (self.phase == Phase::Open && self.is_handshaking()) {
                return None;
            }
            self.writing = Writing::Finished;
            self.news.add(News::WRITABLE);
            // After the peer's end, closing sends FIN as well. But what was handed over in this turn may bounce, and only a
            // shutdown finds that out in time.
            if self.reading != Reading::Ended || self.handed_at == now {
                return Some(Action::Shutdown);
            }
        }
        if self.reading != Reading::Open {
            self.release(None, false);
            return self.release_action();
        }
        if self.phase == Phase::Open && self.peer_ended() {
            // Both have said close_notify, and only the peer's FIN is missing.
            self.begin_closing();
        }
        if self.phase == Phase::Closing {
            // FIN is sent: the wait for the peer's end begins here.
            self.clock.linger_once(now, &self.profile.deadlines);
        }
        None
    }

    /// When the worker has to look at the deadlines, if that is earlier than it knows.
    pub(crate) fn take_urgent_deadline(&mut self) -> Option<Time> {
        self.clock.take_urgent(&self.profile.deadlines)
    }

    pub(crate) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    fn receive_interest(&mut self) -> Option<Action> {
        let more = || !self.has_enough() && !self.peer_ended();
        let wanted = self.reading == Reading::Open && (self.phase == Phase::Closing || more());
        if wanted == self.armed {
            return None;
        }
        self.armed = wanted;
        // After the peer's end there is nothing to pause.
        match (wanted, self.reading) {
            (true, _) => Some(Action::Receive),
            (false, Reading::Open) => Some(Action::Pause),
            (false, _) => None,
        }
    }

    fn hang_up(&mut self) {
        if !std::mem::replace(&mut self.hung_up, true) {
            self.news.add(News::HUNG_UP);
        }
    }

    /// What is queued will never be sent.
    fn drop_queue(&mut self) {
        self.counts.unsent += self.outbox.clear(&self.profile.pieces) as u64;
        if let Some(tls) = &mut self.tls {
            tls.queue_is_gone();
        }
    }

    /// Ends the connection for a passed deadline.
    fn end_late(&mut self, deadline: Deadline, now: Time) {
        let reason = CloseReason::Timeout(deadline);
        match deadline {
            // Its queue is what stands still, so waiting for the queue is pointless.
            Deadline::Write => self.release(Some(reason), true),
            _ => self.end(reason, now),
        }
    }

    fn release(&mut self, reason: Option<CloseReason>, reset: bool) {
        if let Some(reason) = reason {
            self.reason.get_or_insert(reason);
        }
        self.cut_short |= !self.peer_ended();
        self.drop_queue();
        self.clock.stop();
        self.phase = Phase::Releasing { reset };
        self.news.add(News::READABLE);
        self.news.add(News::WRITABLE);
        self.hang_up();
    }
}
