//! A connection core between a scripted engine and a scripted handler, which check each other: what the property tests
//! and the fuzzer drive.
//!
//! Received and sent bytes follow a fixed pattern, so that a lost, doubled or moved byte shows at once.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::{Action, Conn, Profile, Readable, Room};
use crate::config::{Deadlines, Limits, WhenFull};
use crate::engine::buffer::{CHUNK_SIZE, Chunk, Outgoing, PiecePool};
use crate::error::CloseReason;
use crate::time::Time;

const RECEIVE_BUFFER: usize = 300;
const SEND_LOW: usize = 100;
const SEND_HIGH: usize = 400;
const SEND_MAX: usize = 1000;
/// What one hand-over takes at most here.
const HANDED_MAX: usize = 150;
/// What one reception brings at most here; smaller than a real chunk, so that bounds are met often.
const RECEIVE_MAX: usize = 200;
/// What a reader has room for that receives by itself.
const ROOM: usize = 50;

/// One thing that can happen to a connection.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Step {
    Connected,
    /// So many bytes come, if the engine may report any.
    Receive(u16),
    /// So many come while a reader waits that receives by itself, and has room for [`ROOM`].
    ReceivePastInbox(u16),
    PeerEnds,
    /// The peer's end is known while nobody receives.
    HangsUp,
    Breaks,
    /// It breaks while something may be left to be received.
    HalfBreaks,
    /// The next send takes so many bytes inline.
    SendsInline(u16),
    /// The next send is handed over, and so many of its bytes will bounce.
    Hands(u16),
    /// The engine makes the sends that were handed over, as it does before time passes and before FIN.
    Submits,
    /// Messages go past the queue, which takes so many bytes of each.
    SendsPastQueue(u16),
    /// The send in flight ends with so many bytes.
    SendEnds(u16),
    /// The send in flight fails, or else the next one past the queue.
    SendFails,
    /// The engine lets go, if it was told to close.
    EngineCloses,
    Await,
    Read(u16),
    TakeChunk,
    /// A handler is offered what is there and consumes so many bytes of it.
    Offer(u16),
    /// Read a part of a message of so many bytes more; if that is all that is there, wait for the rest.
    ReadPart(u16),
    /// Read so many bytes and put the last of them back.
    PutBack(u16),
    Send(u16),
    SendOwned(u16),
    Finish,
    Close,
    Reset,
    CloseAfter(u16),
    SetDeadline(u16),
    /// Memory becomes short, or is no longer.
    Short(bool),
    /// So many milliseconds pass.
    Pass(u16),
}

impl Step {
    /// Reads a step from two bytes, for the fuzzer.
    pub(crate) fn from_bytes(kind: u8, amount: u8) -> Step {
        let n = u16::from(amount) * 4;
        match kind % 29 {
            0 => Step::Connected,
            1 => Step::Receive(n),
            2 => Step::PeerEnds,
            3 => Step::Breaks,
            4 => Step::SendEnds(n),
            5 => Step::SendFails,
            6 => Step::EngineCloses,
            7 => Step::Await,
            8 => Step::Read(n),
            9 => Step::TakeChunk,
            10 => Step::PutBack(n),
            11 => Step::Send(n),
            12 => Step::SendOwned(n),
            13 => Step::Finish,
            14 => Step::Close,
            15 => Step::Reset,
            16 => Step::CloseAfter(n),
            17 => Step::SetDeadline(n),
            18 => Step::SendsInline(n),
            19 => Step::SendsPastQueue(n),
            20 => Step::Hands(n),
            21 => Step::Submits,
            22 => Step::Offer(n),
            23 => Step::ReadPart(n),
            24 => Step::HangsUp,
            25 => Step::HalfBreaks,
            26 => Step::Short(amount % 2 == 1),
            27 => Step::ReceivePastInbox(n),
            _ => Step::Pass(n),
        }
    }
}

/// Drives a connection through `steps`, then to its end, checking everything after each step.
pub(crate) fn drive(steps: impl IntoIterator<Item = Step>) {
    drive_with(WhenFull::Wait, steps);
}

/// The same for a connection that does so when its queue is full.
pub(crate) fn drive_with(when_full: WhenFull, steps: impl IntoIterator<Item = Step>) {
    let mut harness = Harness::new(when_full);
    for step in steps {
        harness.step(step);
        harness.settle();
    }
    harness.end();
}

struct Harness {
    conn: Conn,
    pieces: Rc<PiecePool>,
    now: Time,
    armed: bool,
    in_flight: Option<Outgoing>,
    /// How many bytes the next send takes inline.
    inline: Option<usize>,
    /// How many bytes of the next send bounce, which is handed over.
    hands: Option<usize>,
    /// What was handed over, and how many bytes of it are going to bounce.
    handed: Option<(Outgoing, usize)>,
    /// How many bytes of a message the engine takes past the queue, or that it fails.
    past_queue: io::Result<usize>,
    /// The connection stands, as the engine sees it.
    engine_open: bool,
    peer_ended: bool,
    broken: bool,
    /// No send can succeed any more.
    send_broken: bool,
    fin_sent: bool,
    close_asked: bool,
    closed_told: usize,
    hangup_told: usize,
    received: usize,
    read: usize,
    queued: usize,
    sent: usize,
    reason: Option<CloseReason>,
}

/// Byte `n` of the pattern.
fn pattern(n: usize) -> u8 {
    (n % 251) as u8
}

fn stretch(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(pattern).collect()
}

impl Harness {
    fn new(when_full: WhenFull) -> Harness {
        let limits = Limits::default()
            .receive_buffer(RECEIVE_BUFFER)
            .send_marks(SEND_LOW, SEND_HIGH)
            .send_max(SEND_MAX)
            .when_full(when_full);
        let deadlines = Deadlines::default().age(Duration::from_secs(3600));
        let pieces = PiecePool::new();
        let profile = Profile { limits, deadlines, pieces: pieces.clone() };
        Harness {
            conn: Conn::new(Rc::new(profile), Time::ZERO),
            pieces,
            now: Time::ZERO,
            armed: false,
            in_flight: None,
            inline: None,
            hands: None,
            handed: None,
            past_queue: Ok(0),
            engine_open: false,
            peer_ended: false,
            broken: false,
            send_broken: false,
            fin_sent: false,
            close_asked: false,
            closed_told: 0,
            hangup_told: 0,
            received: 0,
            read: 0,
            queued: 0,
            sent: 0,
            reason: None,
        }
    }

    fn step(&mut self, step: Step) {
        let live = self.engine_open && !self.close_asked && !self.broken;
        match step {
            Step::Connected if !self.engine_open && !self.close_asked && !self.broken => {
                self.engine_open = true;
                self.conn.connected(self.now);
            }
            Step::Receive(n) if live && self.armed && !self.peer_ended => self.receive(usize::from(n)),
            Step::ReceivePastInbox(n) if live && self.armed && self.conn.reads_past_inbox() => {
                assert!(!self.peer_ended, "nothing comes behind an end");
                self.receive_past_inbox(usize::from(n));
            }
            Step::PeerEnds if live && self.armed && !self.peer_ended => {
                self.peer_ended = true;
                self.conn.receive_ended(self.now);
            }
            Step::HangsUp if live && !self.armed && !self.peer_ended => self.conn.hung_up(),
            Step::Breaks if !self.close_asked && !self.broken => {
                self.broken = true;
                self.conn.failed(&io::ErrorKind::ConnectionReset.into());
            }
            Step::HalfBreaks if live => {
                self.send_broken = true;
                self.conn.broke(&io::ErrorKind::ConnectionReset.into(), self.now);
            }
            Step::SendsInline(n) => self.inline = Some(usize::from(n).max(1)),
            Step::SendsPastQueue(n) => self.past_queue = Ok(n.into()),
            Step::Hands(n) => self.hands = Some(n.into()),
            Step::Submits => self.submit(),
            Step::SendEnds(n) if self.handed.is_none() => self.end_send(usize::from(n)),
            Step::SendFails if self.handed.is_none() => match self.in_flight.take() {
                Some(mut outgoing) => {
                    self.send_broken = true;
                    self.conn.send_failed(&mut outgoing, &io::ErrorKind::BrokenPipe.into(), self.now);
                }
                None => self.past_queue = Err(io::ErrorKind::BrokenPipe.into()),
            },
            Step::EngineCloses if self.close_asked && self.closed_told == 0 && !self.conn.is_closed() => {
                self.submit();
                self.conn.closed(self.in_flight.take().map(Box::new));
            }
            Step::Await if self.conn.readable() == Ok(Readable::NotYet) => {
                self.conn.await_reading(self.now);
            }
            Step::Read(n) => drop(self.read(usize::from(n))),
            Step::TakeChunk => {
                if let Some(chunk) = self.conn.take_chunk() {
                    self.check_read(&chunk);
                }
            }
            Step::Offer(n) => self.offer(usize::from(n)),
            Step::ReadPart(n) => self.read_part(usize::from(n)),
            Step::PutBack(n) => {
                let bytes = self.read(usize::from(n));
                let back = bytes.len() / 2;
                self.read -= back;
                self.conn.unread_bytes(&bytes[bytes.len() - back..]);
            }
            Step::Send(n) => self.queue(usize::from(n), Conn::send),
            Step::SendOwned(n) => {
                self.queue(usize::from(n), |conn, bytes| conn.send_owned(Bytes::copy_from_slice(bytes)));
            }
            Step::Finish => self.conn.finish(),
            Step::Close => self.conn.close(),
            Step::Reset => self.conn.reset(CloseReason::LocalReset),
            Step::CloseAfter(ms) => self.conn.close_after(Duration::from_millis(ms.into()), self.now),
            Step::Short(short) => self.pieces.set_short(short),
            Step::SetDeadline(ms) => {
                self.conn.set_deadline(Some(self.now.after(Duration::from_millis(ms.into()))));
            }
            Step::Pass(ms) => {
                self.submit();
                self.settle();
                self.now = self.now.after(Duration::from_millis(ms.into()));
                while self.conn.expire(self.now) {}
            }
            _ => {}
        }
    }

    fn receive(&mut self, n: usize) {
        let n = n.clamp(1, RECEIVE_MAX.min(CHUNK_SIZE));
        let chunk = Chunk::copied(&stretch(self.received, n));
        self.received += n;
        if self.conn.received(n, self.now) {
            self.conn.deliver(chunk);
        }
    }

    fn receive_past_inbox(&mut self, n: usize) {
        let n = n.clamp(1, ROOM + CHUNK_SIZE);
        let bytes = stretch(self.received, n);
        let (read, rest) = bytes.split_at(n.min(ROOM));
        self.received += n;
        self.check_read(read);
        let rest = (!rest.is_empty()).then(|| Chunk::copied(rest));
        self.conn.received_past_inbox(read.len(), rest, self.now);
    }

    fn end_send(&mut self, n: usize) {
        if let Some(mut outgoing) = self.in_flight.take() {
            let n = n.min(outgoing.len());
            self.check_sent(&outgoing, n);
            self.conn.sent(&mut outgoing, n, self.now);
        }
    }

    /// Makes the sends that were handed over; what bounces is in flight, before what followed it.
    fn submit(&mut self) {
        let Some((mut outgoing, bounces)) = self.handed.take() else { return };
        let sent = outgoing.len() - bounces;
        self.check_sent(&outgoing, sent);
        outgoing.advance(sent, &self.pieces);
        if bounces > 0 {
            if let Some(mut behind) = self.in_flight.take() {
                outgoing.append(&mut behind);
            }
            self.in_flight = Some(outgoing);
            self.conn.bounced(bounces, self.now);
        }
    }

    /// So many bytes count as sent, and nobody knows yet whether they are.
    fn unconfirmed(&self) -> usize {
        self.handed.as_ref().map_or(0, |(outgoing, _)| outgoing.len())
    }

    /// Plays the engine that is asked to send: at once if it was told to, or with the next turn, or later.
    fn send(&mut self) {
        assert!(self.in_flight.is_none(), "one send is in flight at a time");
        assert!(!self.fin_sent, "no send follows FIN");
        assert!(!self.send_broken, "no send follows a failure");
        let outgoing = std::mem::take(self.conn.offer());
        if self.handed.is_none()
            && outgoing.len() <= HANDED_MAX
            && let Some(bounces) = self.hands.take()
        {
            let offered = outgoing.len();
            self.conn.handed(offered, self.now);
            self.handed = Some((outgoing, bounces.min(offered)));
            return;
        }
        match self.inline.take().filter(|_| self.handed.is_none()) {
            None => {
                self.conn.in_flight(outgoing.len(), self.now);
                self.in_flight = Some(outgoing);
            }
            Some(most) => {
                let n = most.min(outgoing.len());
                self.check_sent(&outgoing, n);
                *self.conn.offer() = outgoing;
                self.conn.sent_inline(n, self.now);
            }
        }
    }

    fn check_sent(&mut self, outgoing: &Outgoing, n: usize) {
        assert!(!self.fin_sent, "no byte follows FIN");
        let mut bytes = std::collections::VecDeque::new();
        outgoing.copy_to(&mut bytes, n);
        assert_eq!(Vec::from(bytes), stretch(self.sent, n), "sent bytes are in order");
        self.sent += n;
    }

    fn read(&mut self, n: usize) -> Vec<u8> {
        let mut buf = vec![0; n];
        let n = self.conn.read(&mut buf);
        buf.truncate(n);
        self.check_read(&buf);
        buf
    }

    fn offer(&mut self, n: usize) {
        if let Some(mut chunk) = self.conn.take_joined() {
            let n = n.min(chunk.len());
            self.check_read(&chunk[..n]);
            if n < chunk.len() {
                chunk.advance(n);
                self.conn.leave(chunk, n, self.now);
            }
            self.conn.offered();
        }
    }

    fn read_part(&mut self, n: usize) {
        let mut buf = vec![0; n];
        let read = self.conn.read_part(&mut buf);
        self.check_read(&buf[..read]);
        if 0 < read && read < n && self.conn.readable() == Ok(Readable::NotYet) {
            self.conn.await_reading(self.now);
            self.conn.await_rest(read, self.now);
        }
    }

    fn check_read(&mut self, bytes: &[u8]) {
        assert_eq!(bytes, stretch(self.read, bytes.len()), "read bytes are in order");
        self.read += bytes.len();
    }

    /// Sends a message as a link does: past the queue as far as that is possible, the rest through it.
    fn queue(&mut self, n: usize, push: impl FnOnce(&mut Conn, &[u8])) {
        let (before, short) = (self.conn.pending(), self.pieces.is_short());
        let room = self.conn.room_or_end(n);
        assert!(!short || before == 0 || room != Ok(Room::Yes), "one message at a time");
        if self.conn.when_full() == WhenFull::Disconnect {
            assert_ne!(room, Ok(Room::Later), "nobody waits");
        }
        if room == Ok(Room::Yes) {
            let message = stretch(self.queued, n);
            let over = if self.conn.is_clear() { self.send_past_queue(n) } else { 0 };
            push(&mut self.conn, &message[over..]);
            self.queued += n;
        }
    }

    fn send_past_queue(&mut self, n: usize) -> usize {
        assert!(self.engine_open && !self.close_asked, "a connection stands that sends at once");
        assert!(!self.fin_sent && self.in_flight.is_none(), "nothing is overtaken");
        assert_eq!(self.sent + self.unconfirmed(), self.queued, "nothing is left behind");
        if self.handed.is_some() {
            return self.conn.sent_past_queue(n, &Ok(0), self.now);
        }
        let result = std::mem::replace(&mut self.past_queue, Ok(0)).map(|most| most.min(n));
        self.send_broken |= result.is_err();
        self.sent += *result.as_ref().unwrap_or(&0);
        self.conn.sent_past_queue(n, &result, self.now)
    }

    /// Does what the core asks for, and checks what must always hold.
    fn settle(&mut self) {
        while let Some(action) = self.conn.next_action(self.now) {
            assert!(!self.close_asked, "nothing is asked for after the close");
            match action {
                Action::Receive => self.armed = true,
                Action::Pause => self.armed = false,
                Action::Send => self.send(),
                Action::Shutdown => {
                    self.submit();
                    if self.in_flight.is_some() {
                        continue;
                    }
                    assert!(!std::mem::replace(&mut self.fin_sent, true), "FIN is sent once");
                    assert_eq!((self.conn.pending(), self.sent), (0, self.queued), "FIN follows all bytes");
                }
                Action::Close { .. } => self.close_asked = true,
            }
        }
        self.check();
    }

    fn check(&mut self) {
        let counts = self.conn.counts();
        let unread = self.conn.unread();
        assert!(self.conn.pending() <= SEND_MAX + HANDED_MAX, "the hard bound of the send queue");
        assert!(
            !self.armed || self.close_asked || !self.conn.is_open() || unread < RECEIVE_BUFFER,
            "paused when full"
        );
        if self.closed_told == 0 && !self.close_asked {
            assert_eq!(counts.received as usize, self.received);
            let unconfirmed = self.unconfirmed();
            assert_eq!(counts.sent as usize, self.sent + unconfirmed);
            assert_eq!(self.sent + unconfirmed + self.conn.pending() + counts.unsent as usize, self.queued);
            assert_eq!(self.read + unread + counts.discarded as usize, self.received, "no byte is lost");
        }
        let news = self.conn.take_news();
        self.closed_told += usize::from(news.closed());
        assert_eq!(self.closed_told, usize::from(self.conn.is_closed()), "closed is told exactly once");
        self.hangup_told += usize::from(news.hung_up());
        let hung_up = usize::from(self.conn.hangup().is_some());
        assert_eq!(self.hangup_told, hung_up, "the peer's end is told exactly once");
        if self.conn.is_closed() {
            let reason = self.conn.reason().expect("a closed connection has a reason");
            assert_eq!(*self.reason.get_or_insert(reason), reason, "the reason stays");
            assert_eq!(self.conn.pending(), 0);
            self.pieces.shed();
            if self.in_flight.is_none() && self.handed.is_none() && self.conn.unread() == 0 {
                assert_eq!(self.pieces.held(), 0, "no memory is left behind");
            }
            assert_eq!(counts.sent as usize, self.sent, "what was sent is counted");
            assert_eq!(self.sent + counts.unsent as usize, self.queued, "what was not sent is counted");
            assert!(!reason.is_graceful() || counts.unsent == 0, "nothing is lost gracefully");
        }
    }

    /// Closes, lets a healthy engine and peer do their part, and expects the end.
    fn end(&mut self) {
        self.step(Step::Connected);
        self.settle();
        self.step(Step::Close);
        self.settle();
        for _ in 0..SEND_MAX {
            self.step(Step::Submits);
            self.settle();
            self.step(Step::SendEnds(u16::MAX));
            self.settle();
            self.step(Step::PeerEnds);
            self.settle();
            self.step(Step::Pass(1));
            self.settle();
            self.step(Step::EngineCloses);
            self.settle();
            if self.conn.is_closed() {
                return;
            }
        }
        // A reader that lags keeps the engine paused, and the peer's end unseen: the linger deadline is for that.
        self.step(Step::Pass(u16::MAX));
        self.settle();
        self.step(Step::EngineCloses);
        self.settle();
        assert!(self.conn.is_closed(), "a close comes to its end");
    }
}
