//! What the records of one TLS connection mean, without input or output: received bytes in, plaintext and news out; plaintext
//! in, records at the end of a send queue out.
//!
//! A session begins with a handshake and then has keys. It ends in each direction by itself: with the close_notify that it sends
//! ([`Session::end`]) and the one that it receives ([`Step::Ended`]). It fails once, tells the peer by an alert, and then
//! reads nothing more.
//!
//! # The open record
//!
//! What is written goes into a record at the end of the queue that is not sealed yet. More can be appended until somebody wants to
//! send: then [`Session::seal`] makes the record whole. So the queue may be sent only when that was called.

use std::fmt;

use super::handshake::{Done, Handshake, Progress, Schedule};
use super::numbers::*;
use super::record::{self, Bad, OVERHEAD_MAX, Opener, Sealer};
use super::{Acceptor, Connector, Info, Version, options};
use crate::engine::buffer::{Chunk, Outgoing, PIECE_SIZE, PiecePool, Received};
use crate::engine::refillable::Refillable;
use crate::tls_fault::{TlsAlert, TlsFault};

/// The most that is written in one record.
const RECORD_MAX: usize = record::CONTENT_MAX;
/// What makes two records of full size, which fill a buffer.
pub(crate) const BUFFERFUL: usize = 2 * RECORD_MAX;
const _: () = assert!(BUFFERFUL + 2 * OVERHEAD_MAX <= PIECE_SIZE, "a buffer has room for them");

/// Records in a row that carry nothing: empty ones, warnings, renewed keys.
const USELESS_MAX: u8 = 32;
/// How often a peer may ask for another handshake, and be told that there is none.
const RENEGOTIATIONS_MAX: u8 = 4;
/// A ticket, with all that goes with it.
const TICKET_MAX: usize = 64 * 1024;
/// A wish to shake hands again.
const MESSAGE_MAX: usize = 16 * 1024;
/// Records that are kept free for the end when a key is used up.
const SPARE_RECORDS: u64 = 64;

/// TLS on one connection.
pub(crate) struct Session<C = Chunk> {
    state: State,
    /// What was received and not looked at.
    received: Option<C>,
    /// Something for the handshake was received, and it has not seen it.
    has_unseen: bool,
    /// The beginning of a record, in a buffer of the pool, or nothing.
    partial: Refillable,
    /// Bytes of the record that is open at the end of the queue, with its header.
    open: usize,
    /// What the next step is, behind the bytes before it.
    next: Option<Step<C>>,
    /// What came behind the peer's close_notify.
    rest: Vec<u8>,
    has_ended: bool,
    peer_has_ended: bool,
    /// The peer wants this side to renew its key too.
    owes_key: bool,
    /// The connection goes on without TLS when both have said close_notify.
    leaves: bool,
    tolerates_truncation: bool,
    failure: Option<Box<Failure>>,
}

enum State {
    Handshaking(Box<Handshake>),
    Established(Box<Established>),
    /// The handshake has failed.
    Over,
}

struct Established {
    version: Version,
    is_server: bool,
    sealer: Sealer,
    opener: Opener,
    schedule: Option<Schedule>,
    info: Info,
    /// The beginning of a handshake message, which the pool counts.
    message: Vec<u8>,
    /// How many records carried nothing, since one did.
    useless: u8,
    /// How often the peer has asked for another handshake.
    renegotiations: u8,
}

/// Why TLS failed on a connection.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) fault: TlsFault,
    /// In words what exactly; may be empty.
    pub(crate) detail: String,
}

/// What was in the received bytes.
#[derive(Debug)]
pub(crate) enum Step<C = Chunk> {
    /// Nothing more.
    Nothing,
    /// The handshake is over.
    Established,
    Bytes(C),
    /// The peer sends nothing more: its close_notify.
    Ended,
    /// It cannot go on; the alert is in the queue.
    Failed(TlsFault),
}

/// What one record turned out to be.
enum Content {
    Bytes,
    Ended,
    Nothing,
}

/// Why a record was refused: the alert that says so, and what we make of it.
struct Refused {
    alert: Option<u8>,
    fault: TlsFault,
    detail: &'static str,
}

impl Refused {
    fn new(alert: u8, fault: TlsFault, detail: &'static str) -> Refused {
        Refused { alert: Some(alert), fault, detail }
    }

    fn unexpected(detail: &'static str) -> Refused {
        Refused::new(UNEXPECTED_MESSAGE, TlsFault::Misbehaved, detail)
    }
}

impl From<Bad> for Refused {
    fn from(bad: Bad) -> Refused {
        match bad {
            Bad::Forged => Refused::new(BAD_RECORD_MAC, TlsFault::BadRecord, ""),
            Bad::TooLarge => Refused::new(RECORD_OVERFLOW, TlsFault::RecordTooLarge, ""),
            Bad::Unexpected => Refused::unexpected("a record of a kind that may not come now"),
        }
    }
}

impl<C: Received> fmt::Debug for Session<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("info", &self.info())
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

// The handshake, and what came of it.
impl<C: Received> Session<C> {
    /// A session of a server, that waits for the client to begin.
    pub(crate) fn accept(acceptor: &Acceptor) -> Result<Session<C>, Failure> {
        let side = acceptor.current();
        let handshake = Handshake::accept(&side).map_err(|error| Failure::local(&error))?;
        Ok(Session::new(handshake, side.tolerates_truncation))
    }

    /// A session of a client with a server at `host`, which has to have that name, unless the connector was told another.
    pub(crate) fn connect(connector: &Connector, host: Option<&str>) -> Result<Session<C>, Failure> {
        let side = connector.current();
        let name = match (&side.server_name, host) {
            (Some(name), _) => name.clone(),
            (None, Some(host)) => options::server_name(host).ok_or_else(|| {
                let detail = format!("`{host}` is no name that a certificate can have");
                Failure { fault: TlsFault::Local, detail }
            })?,
            (None, None) => {
                let detail = String::from("a Unix socket has no name to check; set `server_name`");
                return Err(Failure { fault: TlsFault::Local, detail });
            }
        };
        let handshake = Handshake::connect(&side, name).map_err(|error| Failure::local(&error))?;
        Ok(Session::new(handshake, side.tolerates_truncation))
    }

    fn new(handshake: Handshake, tolerates_truncation: bool) -> Session<C> {
        Session { tolerates_truncation, ..Session::of(State::Handshaking(Box::new(handshake))) }
    }

    fn of(state: State) -> Session<C> {
        Session {
            state,
            received: None,
            has_unseen: false,
            partial: Refillable::default(),
            open: 0,
            next: None,
            rest: Vec::new(),
            has_ended: false,
            peer_has_ended: false,
            owes_key: false,
            leaves: false,
            tolerates_truncation: false,
            failure: None,
        }
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        matches!(self.state, State::Handshaking(_))
    }

    /// What the handshake has brought.
    pub(crate) fn info(&self) -> Option<&Info> {
        match &self.state {
            State::Established(established) => Some(&established.info),
            _ => None,
        }
    }

    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.as_deref()
    }

    /// Whether there is something for the handshake to go on with, and nobody has made a step.
    pub(crate) fn has_unseen(&self) -> bool {
        self.has_unseen
    }

    /// How many bytes of a record are here that is not whole.
    pub(crate) fn begun(&self) -> usize {
        self.partial.len()
    }

    /// Whether the peer has said close_notify, and the connection ends with it.
    pub(crate) fn peer_has_ended(&self) -> bool {
        self.peer_has_ended && !self.has_been_left()
    }

    /// Whether the connection is to go on without it, and both sides have said close_notify: what comes from now on is none of
    /// its business.
    pub(crate) fn has_been_left(&self) -> bool {
        self.leaves && self.has_ended && self.peer_has_ended
    }

    /// The peer's bytes have ended, by FIN. Says what is wrong with that, if there is anything.
    pub(crate) fn cut_off(&mut self) -> Option<TlsFault> {
        let fault = match &self.state {
            State::Handshaking(_) => TlsFault::HandshakeEnded,
            // Who is to leave TLS and go on has no reason to end without it.
            State::Established(_) if !self.peer_has_ended && (self.leaves || !self.tolerates_truncation) => {
                TlsFault::Truncated
            }
            _ => return None,
        };
        self.fail(fault, "");
        Some(fault)
    }

    fn fail(&mut self, fault: TlsFault, detail: impl Into<String>) {
        self.failure = Some(Box::new(Failure { fault, detail: detail.into() }));
    }
}

impl Failure {
    fn local(error: &rustls::Error) -> Failure {
        Failure { fault: TlsFault::Local, detail: error.to_string() }
    }
}

// What is received.
impl<C: Received> Session<C> {
    /// Takes what was received; [`Session::step`] tells what is in it.
    pub(crate) fn receive(&mut self, chunk: C) {
        if let State::Handshaking(handshake) = &mut self.state {
            handshake.receive(&chunk);
            self.has_unseen = true;
            return;
        }
        debug_assert!(self.received.is_none(), "what was received before was looked at");
        if self.failure.is_some() {
            return;
        }
        self.received = Some(chunk);
        if self.peer_has_ended {
            self.keep_rest();
        }
    }

    /// The next thing in what was received. What has to be sent for it is put into `queue`.
    pub(crate) fn step(&mut self, queue: &mut Outgoing, pool: &C::Shared<PiecePool>) -> Step<C> {
        if let Some(next) = self.next.take() {
            return next;
        }
        if self.peer_has_ended || self.failure.is_some() {
            return Step::Nothing;
        }
        if self.is_handshaking() {
            return self.shake_hands(queue, pool);
        }
        loop {
            let Some(chunk) = self.whole_records(pool) else { return Step::Nothing };
            if let Some(step) = self.open(chunk, queue, pool) {
                return step;
            }
        }
    }

    fn shake_hands(&mut self, queue: &mut Outgoing, pool: &C::Shared<PiecePool>) -> Step<C> {
        let State::Handshaking(handshake) = std::mem::replace(&mut self.state, State::Over) else {
            return Step::Nothing;
        };
        self.has_unseen = false;
        match handshake.advance(|bytes| queue.push_copied(bytes, pool)) {
            Progress::Waiting(handshake) => {
                self.state = State::Handshaking(handshake);
                Step::Nothing
            }
            Progress::Failed(fault, detail) => {
                self.fail(fault, detail);
                Step::Failed(fault)
            }
            Progress::Done(done) => {
                let Done { version, is_server, sealer, opener, schedule, info, rest } = *done;
                self.state = State::Established(Box::new(Established {
                    version,
                    is_server,
                    sealer,
                    opener,
                    schedule,
                    info,
                    message: Vec::new(),
                    useless: 0,
                    renegotiations: 0,
                }));
                if !rest.is_empty() {
                    self.received = Some(C::counted(&rest, pool.count()));
                }
                if self.leaves {
                    // That was asked for when there was nothing to end yet.
                    self.end(queue, pool);
                }
                Step::Established
            }
        }
    }

    /// Takes a stretch of received bytes that begins with a record and, if it has been put together, ends with it. What cannot
    /// be used yet is kept; then there is none.
    fn whole_records(&mut self, pool: &C::Shared<PiecePool>) -> Option<C> {
        let State::Established(established) = &self.state else { return None };
        let version = established.version;
        let chunk = self.received.as_mut()?;
        if self.partial.is_empty() {
            return self.received.take();
        }
        // What cannot be a record is shown as it is, and refused.
        let mut wanted = record::length(&self.partial, version).unwrap_or(Some(0));
        if wanted.is_none() {
            move_bytes(chunk, &mut self.partial, record::HEADER);
            wanted = record::length(&self.partial, version).unwrap_or(Some(0));
        }
        if let Some(len) = wanted {
            if len > self.partial.capacity() {
                let mut large = pool.lease(PIECE_SIZE);
                large.extend_from_slice(&self.partial);
                pool.give(std::mem::replace(&mut self.partial, large));
            }
            move_bytes(chunk, &mut self.partial, len);
        }
        let is_whole = wanted.is_some_and(|len| self.partial.len() >= len);
        if chunk.is_empty() {
            self.received = None;
        }
        is_whole.then(|| C::joined(std::mem::take(&mut self.partial), pool))
    }

    /// Opens the records of a chunk where they lie, and moves what they carry together.
    fn open(&mut self, mut chunk: C, queue: &mut Outgoing, pool: &C::Shared<PiecePool>) -> Option<Step<C>> {
        let data = chunk.bytes_mut();
        let (mut at, mut plain) = (0, 0..0);
        let refused = loop {
            let State::Established(established) = &mut self.state else { return None };
            let len = match record::length(&data[at..], established.version) {
                Ok(Some(len)) if len <= data.len() - at => len,
                Ok(_) => break None,
                Err(bad) => break Some(bad.into()),
            };
            let opened = established.opener.open(&mut data[at..at + len]);
            let (kind, content) = match opened {
                Ok((kind, content)) => (kind, at + content.start..at + content.end),
                Err(bad) => break Some(Refused::from(bad)),
            };
            at += len;
            match self.content(kind, &data[content.clone()], queue, pool) {
                Ok(Content::Bytes) if plain.is_empty() => plain = content,
                Ok(Content::Bytes) => {
                    data.copy_within(content.clone(), plain.end);
                    plain.end += content.len();
                }
                Ok(Content::Nothing) => {}
                Ok(Content::Ended) => {
                    self.peer_has_ended = true;
                    break None;
                }
                Err(refused) => break Some(refused),
            }
        };
        let ends = match refused {
            Some(refused) => Some(Step::Failed(self.refuse(&refused, queue, pool))),
            None if self.peer_has_ended => {
                self.rest.extend_from_slice(&data[at..]);
                self.keep_rest();
                Some(Step::Ended)
            }
            None => {
                self.keep(&data[at..], pool);
                None
            }
        };
        if plain.is_empty() {
            return ends;
        }
        self.next = ends;
        chunk.narrow(plain);
        Some(Step::Bytes(chunk))
    }

    /// Keeps the beginning of a record.
    fn keep(&mut self, bytes: &[u8], pool: &C::Shared<PiecePool>) {
        if bytes.is_empty() {
            return;
        }
        debug_assert!(self.partial.is_empty(), "one beginning at a time");
        let State::Established(established) = &self.state else { return };
        let len = record::length(bytes, established.version).ok().flatten();
        self.partial = pool.lease(len.unwrap_or_default().max(bytes.len()).min(PIECE_SIZE));
        self.partial.extend_from_slice(bytes);
    }

    /// Keeps what came behind the peer's close_notify; little, because nothing is received from then on.
    fn keep_rest(&mut self) {
        if let Some(chunk) = self.received.take() {
            self.rest.extend_from_slice(&chunk);
        }
    }

    /// Looks at what a record carries.
    fn content(
        &mut self,
        kind: u8,
        content: &[u8],
        queue: &mut Outgoing,
        pool: &PiecePool,
    ) -> Result<Content, Refused> {
        let State::Established(established) = &mut self.state else { return Ok(Content::Nothing) };
        if kind != HANDSHAKE && !established.message.is_empty() {
            return Err(Refused::unexpected("something within a handshake message"));
        }
        if kind == APPLICATION_DATA && !content.is_empty() {
            established.useless = 0;
            return Ok(Content::Bytes);
        }
        established.useless += 1;
        if established.useless > USELESS_MAX {
            return Err(Refused::new(UNEXPECTED_MESSAGE, TlsFault::Flood, ""));
        }
        match kind {
            APPLICATION_DATA => Ok(Content::Nothing),
            ALERT => established.alert(content),
            HANDSHAKE => {
                self.messages(content, queue, pool)?;
                Ok(Content::Nothing)
            }
            _ => Err(Refused::unexpected("a record of a kind that may not come now")),
        }
    }

    /// Looks at the handshake messages that are whole, and keeps the beginning of another.
    fn messages(&mut self, content: &[u8], queue: &mut Outgoing, pool: &PiecePool) -> Result<(), Refused> {
        let State::Established(established) = &mut self.state else { return Ok(()) };
        let mut messages = std::mem::take(&mut established.message);
        pool.count().shrink(messages.len());
        messages.extend_from_slice(content);
        let mut at = 0;
        while let Some(&[kind, a, b, c]) = messages[at..].first_chunk() {
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            let State::Established(established) = &self.state else { return Ok(()) };
            let Some(max) = established.message_max(kind) else {
                return Err(Refused::unexpected("a handshake message that may not come now"));
            };
            if len > max {
                let detail = "a handshake message too large";
                return Err(Refused::new(DECODE_ERROR, TlsFault::Misbehaved, detail));
            }
            let Some(body) = messages.get(at + 4..at + 4 + len) else { break };
            at += 4 + len;
            self.message(kind, body, at == messages.len(), queue, pool)?;
        }
        if let State::Established(established) = &mut self.state {
            established.message = messages.split_off(at);
            pool.count().grow(established.message.len());
        }
        Ok(())
    }

    fn message(
        &mut self,
        kind: u8,
        body: &[u8],
        is_last: bool,
        queue: &mut Outgoing,
        pool: &PiecePool,
    ) -> Result<(), Refused> {
        let State::Established(established) = &mut self.state else { return Ok(()) };
        match (kind, established.version, &mut established.schedule) {
            (KEY_UPDATE, Version::Tls13, Some(schedule)) => {
                let &[request @ (0 | 1)] = body else {
                    return Err(Refused::new(DECODE_ERROR, TlsFault::Misbehaved, "a malformed KeyUpdate"));
                };
                if !is_last {
                    return Err(Refused::unexpected("something behind KeyUpdate in the same record"));
                }
                established.opener = schedule.next_opener().ok_or_else(Refused::exhausted)?;
                self.owes_key |= request == 1;
                Ok(())
            }
            (NEW_SESSION_TICKET, Version::Tls13, Some(Schedule::Client(schedule))) => schedule
                .handle_new_session_ticket(body)
                .map_err(|_| Refused::new(DECODE_ERROR, TlsFault::Misbehaved, "a malformed ticket")),
            // Nobody renegotiates here, and says so (RFC 5246, 7.4.1.1). Not as often as somebody likes who asks a thousand times in
            // a record and reads no answer.
            (CLIENT_HELLO, Version::Tls12, _) | (HELLO_REQUEST, Version::Tls12, _)
                if established.is_server == (kind == CLIENT_HELLO) =>
            {
                established.renegotiations += 1;
                if established.renegotiations > RENEGOTIATIONS_MAX {
                    return Err(Refused::new(UNEXPECTED_MESSAGE, TlsFault::Flood, ""));
                }
                self.control(ALERT, &[WARNING, NO_RENEGOTIATION], queue, pool);
                Ok(())
            }
            _ => Err(Refused::unexpected("a handshake message that may not come now")),
        }
    }

    /// Tells the peer why nothing more is read.
    fn refuse(&mut self, refused: &Refused, queue: &mut Outgoing, pool: &PiecePool) -> TlsFault {
        self.fail(refused.fault, refused.detail);
        if let Some(alert) = refused.alert
            && !self.has_ended
        {
            self.control(ALERT, &[FATAL, alert], queue, pool);
        }
        self.has_ended = true;
        self.received = None;
        refused.fault
    }

    /// Gives back what it holds of the pool. Nothing more will be received or sent.
    pub(crate) fn release(&mut self, pool: &PiecePool) {
        if self.partial.capacity() > 0 {
            pool.give(std::mem::take(&mut self.partial));
        }
        if let State::Established(established) = &mut self.state {
            pool.count().shrink(std::mem::take(&mut established.message).len());
        }
        self.discard();
        self.rest = Vec::new();
    }

    /// Throws away what was received and not looked at; returns how many bytes that were.
    pub(crate) fn discard(&mut self) -> usize {
        let next = match self.next.take() {
            Some(Step::Bytes(chunk)) => chunk.len(),
            _ => 0,
        };
        next + self.received.take().map_or(0, |chunk| chunk.len())
    }

    /// What came behind the peer's close_notify.
    pub(crate) fn take_rest(&mut self, pool: &PiecePool) -> Option<C> {
        (!self.rest.is_empty()).then(|| C::counted(&std::mem::take(&mut self.rest), pool.count()))
    }
}

impl Refused {
    fn exhausted() -> Refused {
        Refused::new(INTERNAL_ERROR, TlsFault::Exhausted, "")
    }
}

impl Established {
    /// How long a handshake message of this kind may be; `None` if it may not come, so that nobody waits for the rest of it.
    fn message_max(&self, kind: u8) -> Option<usize> {
        match (kind, self.version, self.is_server) {
            (KEY_UPDATE, Version::Tls13, _) => Some(1),
            (NEW_SESSION_TICKET, Version::Tls13, false) => Some(TICKET_MAX),
            (CLIENT_HELLO, Version::Tls12, true) => Some(MESSAGE_MAX),
            (HELLO_REQUEST, Version::Tls12, false) => Some(0),
            _ => None,
        }
    }

    fn alert(&mut self, content: &[u8]) -> Result<Content, Refused> {
        let &[level, kind] = content else {
            return Err(Refused::new(DECODE_ERROR, TlsFault::Misbehaved, "a malformed alert"));
        };
        match (kind, self.version, level) {
            (CLOSE_NOTIFY, ..) => Ok(Content::Ended),
            // It goes before close_notify (RFC 8446, 6.1).
            (USER_CANCELED, ..) | (_, Version::Tls12, WARNING) => Ok(Content::Nothing),
            _ => Err(Refused { alert: None, fault: TlsFault::Alert(TlsAlert(kind)), detail: "" }),
        }
    }
}

impl Schedule {
    fn next_opener(&mut self) -> Option<Opener> {
        let (sequence, secrets) = match self {
            Schedule::Server(schedule) => schedule.update_rx_secret(),
            Schedule::Client(schedule) => schedule.update_rx_secret(),
        }
        .ok()?;
        Opener::new(Version::Tls13, sequence, &secrets)
    }

    fn next_sealer(&mut self) -> Option<Sealer> {
        let (sequence, secrets) = match self {
            Schedule::Server(schedule) => schedule.update_tx_secret(),
            Schedule::Client(schedule) => schedule.update_tx_secret(),
        }
        .ok()?;
        Sealer::new(Version::Tls13, sequence, &secrets)
    }
}

// What is sent.
impl<C: Received> Session<C> {
    /// Whether it can send, so that [`Session::write`] makes sense.
    pub(crate) fn can_write(&self) -> bool {
        matches!(self.state, State::Established(_)) && !self.has_ended && self.failure.is_none()
    }

    /// Whether nothing can be sent now, and will be when the peer has done its part: shaken hands, or left.
    pub(crate) fn holds_back(&self) -> bool {
        self.is_handshaking() || self.is_leaving()
    }

    /// Whether the connection is to go on without it, and the peer has not said close_notify.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaves && !self.peer_has_ended
    }

    /// Writes `bytes` into records at the end of the queue.
    pub(crate) fn write(&mut self, mut bytes: &[u8], queue: &mut Outgoing, pool: &PiecePool) {
        while !bytes.is_empty() {
            let State::Established(established) = &mut self.state else { return };
            if self.open == 0 && (self.owes_key || established.sealer.is_used_up(SPARE_RECORDS)) {
                self.renew_key(queue, pool);
            }
            let State::Established(established) = &mut self.state else { return };
            if self.open == 0
                && let Some((full, rest)) = bytes.split_at_checked(RECORD_MAX)
            {
                let sealer = &mut established.sealer;
                queue.extend_tail(0, RECORD_MAX + OVERHEAD_MAX, pool, |tail| {
                    sealer.seal_from(APPLICATION_DATA, full, tail);
                });
                bytes = rest;
                continue;
            }
            let sealer = &established.sealer;
            let content = self.open.saturating_sub(sealer.head());
            let mut n = bytes.len().min(RECORD_MAX - content);
            if self.open == 0 {
                queue.extend_tail(0, n + OVERHEAD_MAX, pool, |tail| {
                    sealer.begin(tail);
                    tail.extend_from_slice(&bytes[..n]);
                });
                self.open = sealer.head() + n;
            } else {
                // A record is in one buffer.
                n = n.min(queue.tail_room().saturating_sub(record::TRAILER_MAX));
                queue.extend_tail(self.open, n + record::TRAILER_MAX, pool, |tail| {
                    tail.extend_from_slice(&bytes[..n]);
                });
                self.open += n;
            }
            bytes = &bytes[n..];
            if !bytes.is_empty() || content + n == RECORD_MAX {
                self.seal(queue, pool);
            }
        }
    }

    /// Makes the queue fit to be sent: seals the open record, if there is one.
    #[inline]
    pub(crate) fn seal(&mut self, queue: &mut Outgoing, pool: &PiecePool) {
        if self.open > 0 {
            self.seal_as(APPLICATION_DATA, queue, pool);
        } else if self.owes_key && queue.is_empty() && self.can_write() {
            // Asked for several times before, it is done once.
            self.renew_key(queue, pool);
        }
    }

    fn seal_as(&mut self, kind: u8, queue: &mut Outgoing, pool: &PiecePool) {
        let open = std::mem::take(&mut self.open);
        let State::Established(established) = &mut self.state else { return };
        let sealer = &mut established.sealer;
        // The room was there from the beginning.
        queue.extend_tail(open, record::TRAILER_MAX, pool, |tail| sealer.seal(kind, tail, tail.len() - open));
    }

    /// Writes a record of another kind than data.
    fn control(&mut self, kind: u8, content: &[u8], queue: &mut Outgoing, pool: &PiecePool) {
        self.seal(queue, pool);
        let State::Established(established) = &mut self.state else { return };
        queue.extend_tail(0, content.len() + OVERHEAD_MAX, pool, |tail| {
            established.sealer.begin(tail);
            tail.extend_from_slice(content);
        });
        self.open = established.sealer.head() + content.len();
        self.seal_as(kind, queue, pool);
    }

    /// Says close_notify: nothing more is sent.
    pub(crate) fn end(&mut self, queue: &mut Outgoing, pool: &PiecePool) {
        if self.can_write() {
            self.control(ALERT, &[WARNING, CLOSE_NOTIFY], queue, pool);
            self.has_ended = true;
        }
    }

    /// Says close_notify, and that the connection goes on without TLS.
    pub(crate) fn leave(&mut self, queue: &mut Outgoing, pool: &PiecePool) {
        // What has ended to end the stream does not go on.
        if !self.has_ended {
            self.leaves = true;
            self.end(queue, pool);
        }
    }

    /// What was in the queue is not sent.
    pub(crate) fn queue_is_gone(&mut self) {
        self.open = 0;
    }

    /// Goes over to the next key for sending, and says so. TLS 1.2 has one key for all of a connection.
    pub(super) fn renew_key(&mut self, queue: &mut Outgoing, pool: &PiecePool) {
        self.owes_key = false;
        let State::Established(established) = &mut self.state else { return };
        let Some(sealer) = established.schedule.as_mut().and_then(Schedule::next_sealer) else { return };
        self.control(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], queue, pool);
        if let State::Established(established) = &mut self.state {
            established.sealer = sealer;
        }
    }

    /// Whether the key for sending has protected all that it may, and there is no other.
    pub(crate) fn is_used_up(&self) -> bool {
        match &self.state {
            State::Established(established) => {
                established.schedule.is_none() && established.sealer.is_used_up(SPARE_RECORDS)
            }
            _ => false,
        }
    }
}

// What drives it from outside.
#[cfg(any(test, fuzzing))]
impl<C: Received> Session<C> {
    /// A session that stands, with keys that are never renewed.
    pub(super) fn standing(
        version: Version,
        is_server: bool,
        sealer: Sealer,
        opener: Opener,
        info: Info,
    ) -> Session<C> {
        Session::of(State::Established(Box::new(Established {
            version,
            is_server,
            sealer,
            opener,
            schedule: None,
            info,
            message: Vec::new(),
            useless: 0,
            renegotiations: 0,
        })))
    }

    #[cfg(fuzzing)]
    pub(super) fn control_of_any_kind(
        &mut self,
        kind: u8,
        content: &[u8],
        queue: &mut Outgoing,
        pool: &PiecePool,
    ) {
        if self.can_write() {
            self.control(kind, content, queue, pool);
        }
    }
}

/// Moves bytes from the front of `chunk` behind `buf` until that has `len`.
fn move_bytes(chunk: &mut impl Received, buf: &mut Refillable, len: usize) {
    let n = len.saturating_sub(buf.len()).min(chunk.len());
    buf.extend_from_slice(&chunk[..n]);
    chunk.advance(n);
}

#[cfg(test)]
mod tests;
