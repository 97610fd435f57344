//! One connection as its worker, its handle and its handler share it: the conn core plus who waits for it.
//!
//! Never leaves its worker's thread. Everything that happens to a connection ends in [`Worker::advance`], which carries
//! out what the core asks for and tells those who wait.

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Buf, Bytes};

use super::preface::Preface;
use super::tasks::{Waiter, Waiters};
use super::timer::TimerId;
use super::{Alarm, Worker};
use crate::address::Address;
use crate::conn::{Action, Conn, News, Room, Unsealed};
use crate::engine::buffer::Chunk;
use crate::engine::{Engine, Submitted, Token};
use crate::error::{CloseReason, Rule};
use crate::event::Handler;
use crate::proxy::Proxied;
use crate::remote::RemoteState;
use crate::server::{Admission, ServerEvent};
use crate::time::Time;
use crate::tls::{BUFFERFUL, Info};

/// From this size on a message that can leave at once is not copied into the queue, and a reader's buffer is received to at once.
const DIRECT_MIN: usize = 4 * 1024;
/// Up to this size neither, if it is likely to be the only one of its pass. In between, the copy costs less than it may
/// save: a system call, if other messages follow.
pub(crate) const SMALL_MAX: usize = 512;

pub(crate) struct Link {
    pub(crate) token: Token,
    pub(crate) worker: Rc<Worker>,
    pub(crate) conn: RefCell<Conn>,
    dirty: Cell<bool>,
    /// Received bytes are offered to `handler`, or to the preface as long as there is one.
    pub(super) is_event: Cell<bool>,
    /// The handler has been told that the peer ended.
    pub(super) end_told: Cell<bool>,
    /// Or that its end is to come.
    pub(super) hangup_told: Cell<bool>,
    /// The last pass with a message, and in the lowest bit whether it had several.
    sends: Cell<u32>,
    /// In event style, what the connection's events go to. Away while it is being called.
    pub(super) handler: Cell<Option<Box<dyn Handler>>>,
    pub(crate) reader: Waiter,
    /// Whether who reads can receive by itself.
    offer: Cell<Offer>,
    timer: Cell<Option<TimerId>>,
    /// Whom the socket is connected to, be it a proxy.
    peer: Address,
    /// Whether it is one of a server's connections; then `admission` is there until it is closed.
    pub(crate) is_admitted: Cell<bool>,
    admission: Cell<Option<Admission>>,
    /// Which of the server's listeners it came through.
    listener: Cell<Option<u8>>,
    /// Whoever watches the server knows of it, and has to be told of its end.
    is_watched: Cell<bool>,
    rare: OnceCell<Box<Rare>>,
    pub(crate) opened: Time,
}

/// Names a connection among all that its server ever has.
///
/// ```
/// # fn example(conn: &wharf::Connection) {
/// println!("connection {}", conn.id());
/// # }
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    worker: u16,
    token: Token,
}

impl ConnectionId {
    /// One of a server that has no workers.
    pub(crate) fn without_worker(token: Token) -> ConnectionId {
        ConnectionId { worker: 0, token }
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.worker, self.token.index, self.token.generation)
    }
}

/// What few connections need; made when one needs any of it.
#[derive(Default)]
pub(crate) struct Rare {
    local: OnceCell<Address>,
    /// Who waits for the connection to stand, for room in the queue, or for an empty one.
    pub(crate) writer: Waiter,
    pub(crate) closer: Waiters,
    pub(crate) drainer: Waiters,
    /// Who waits for the peer's end without reading.
    pub(crate) hangup: Waiters,
    pub(crate) user: RefCell<Option<Box<dyn Any>>>,
    /// What its handler calls it.
    pub(crate) label: RefCell<Option<Arc<str>>>,
    delivery: Cell<Delivery>,
    remote: OnceCell<Arc<RemoteState>>,
    /// Messages of other threads that the send queue has no room for yet.
    arrivals: RefCell<VecDeque<Bytes>>,
    /// Another thread has closed the connection; that waits for the arrivals before it.
    close_behind: Cell<bool>,
    /// What has to come before the handler begins.
    pub(super) preface: RefCell<Option<Box<Preface>>>,
    pub(super) proxied: OnceCell<Box<Proxied>>,
    /// Its handler begins behind a TLS handshake.
    pub(super) awaits_tls: Cell<bool>,
}

/// How far it is agreed between engine and reader that the latter receives by itself, to a buffer of its own.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum Offer {
    /// The engine makes no offers,
    #[default]
    Unasked,
    /// or would make some, and nobody waits for one,
    Unawaited,
    /// or somebody does,
    Awaited,
    /// or there is one.
    Made,
}

/// Whether anybody wants to know what has arrived.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum Delivery {
    #[default]
    Unasked,
    Awaited,
    /// So many bytes, and it will be no more.
    Final(u64),
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("token", &self.token).field("peer", &self.peer()).finish_non_exhaustive()
    }
}

impl Drop for Rare {
    fn drop(&mut self) {
        drop_guarded(self.user.take());
    }
}

/// Drops what belongs to a handler; if its destructor panics, that is the end of it and of nothing else.
pub(crate) fn drop_guarded<T>(value: T) {
    drop(catch_unwind(AssertUnwindSafe(move || drop(value))));
}

impl Link {
    pub(crate) fn new(token: Token, worker: Rc<Worker>, peer: Address, conn: Conn) -> Rc<Link> {
        let opened = worker.now();
        Rc::new(Link {
            token,
            worker,
            conn: RefCell::new(conn),
            dirty: Cell::new(false),
            is_event: Cell::new(false),
            end_told: Cell::new(false),
            hangup_told: Cell::new(false),
            sends: Cell::new(0),
            handler: Cell::new(None),
            reader: Waiter::default(),
            offer: Cell::default(),
            timer: Cell::new(None),
            peer,
            is_admitted: Cell::new(false),
            admission: Cell::new(None),
            listener: Cell::new(None),
            is_watched: Cell::new(false),
            rare: OnceCell::new(),
            opened,
        })
    }

    /// It is one of a server's connections, and keeps its place until it is closed.
    pub(super) fn admit(&self, admission: Admission) {
        self.is_admitted.set(true);
        self.listener.set(admission.listener().map(|listener| listener as u8));
        self.admission.set(Some(admission));
    }

    /// Its handler panicked: nobody knows in which state that left what it was to send.
    pub(crate) fn panicked(self: &Rc<Self>, payload: Box<dyn Any + Send>) {
        self.command(|conn| conn.reset(CloseReason::HandlerPanicked));
        let message = crate::server::panic_message(&*payload);
        self.worker.with_member(|member| {
            member.server.count_panic();
            member.server.tell(&ServerEvent::Panicked { id: self.id(), peer: &self.peer(), message });
        });
        drop_guarded(payload);
    }

    /// Names the connection among all of its server's.
    pub(crate) fn id(&self) -> ConnectionId {
        ConnectionId { worker: self.worker.index.get(), token: self.token }
    }

    /// Its proxy has told whom it is for: it gets a place of that peer's.
    pub(super) fn seat(&self) -> Result<(), Rule> {
        let Some(mut admission) = self.admission.take() else { return Ok(()) };
        let seated = admission.seat(&self.peer());
        self.admission.set(Some(admission));
        seated
    }

    /// Which of the server's listeners it came through.
    pub(crate) fn listener(&self) -> Option<usize> {
        self.listener.get().map(usize::from)
    }

    /// Its handler is about to begin: whoever watches the server is told.
    pub(super) fn tell_opened(&self) {
        self.is_watched.set(true);
        self.worker.with_member(|member| {
            member.server.tell(&ServerEvent::Opened { id: self.id(), peer: &self.peer() });
        });
    }

    /// What few connections need, to be used.
    pub(crate) fn rare(&self) -> &Rare {
        self.rare.get_or_init(Box::default)
    }

    /// The same, if it was used.
    pub(crate) fn used_rare(&self) -> Option<&Rare> {
        self.rare.get().map(|rare| &**rare)
    }

    /// The address of the other end; of a connection that a proxy has passed on, the one that the proxy tells.
    pub(crate) fn peer(&self) -> Address {
        self.proxied().and_then(Proxied::source).unwrap_or(&self.peer).clone()
    }

    /// What a proxy has told, if one had to.
    pub(crate) fn proxied(&self) -> Option<&Proxied> {
        self.used_rare()?.proxied.get().map(|proxied| &**proxied)
    }

    /// The address of this end; asked of the engine once.
    pub(crate) fn local_addr(&self) -> Option<Address> {
        let local = &self.rare().local;
        if local.get().is_none()
            && let Ok(address) = self.worker.engine.borrow().local_addr(self.token)
        {
            drop(local.set(address));
        }
        local.get().cloned()
    }

    /// Bytes sent and not acknowledged by the peer, at most.
    pub(crate) fn unacked(&self) -> io::Result<usize> {
        let unacked = self.worker.engine.borrow().unacked(self.token)?;
        Ok(self.conn.borrow().unacked(unacked))
    }

    /// How far into the stream the peer has acknowledged it, at least; or had, when the engine let go of the socket.
    ///
    /// # Errors
    /// If nobody can tell.
    pub(crate) fn delivered(&self) -> io::Result<u64> {
        if let Delivery::Final(delivered) = self.rare().delivery.get() {
            return Ok(delivered);
        }
        let unacked = self.worker.engine.borrow().unacked(self.token)?;
        Ok(self.conn.borrow().delivered(unacked))
    }

    /// From now on somebody wants to know what has arrived.
    pub(crate) fn await_delivery(&self) {
        let delivery = &self.rare().delivery;
        if delivery.get() == Delivery::Unasked {
            delivery.set(Delivery::Awaited);
        }
    }

    /// The engine is about to let go of the socket: if somebody asks, what has arrived is known for the last time.
    fn note_delivery(&self, conn: &Conn, engine: &Engine) {
        if let Some(rare) = self.used_rare()
            && rare.delivery.get() == Delivery::Awaited
            && let Ok(unacked) = engine.unacked(self.token)
        {
            rare.delivery.set(Delivery::Final(conn.delivered(unacked)));
        }
    }

    /// So many bytes of remotes are no longer on their way to the send queue.
    fn release_queued(&self, bytes: usize) {
        if let Some(remote) = self.used_remote() {
            remote.queued.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Runs `command` on the core and has its consequences carried out before the turn ends.
    pub(crate) fn command<T>(self: &Rc<Self>, command: impl FnOnce(&mut Conn) -> T) -> T {
        let result = command(&mut self.conn.borrow_mut());
        self.mark_dirty();
        result
    }

    /// Receives to `buf`, past the inbox, what the engine has offered, and says how much; `None` if there is no offer.
    #[inline]
    pub(crate) fn receive_now(self: &Rc<Self>, buf: &mut [u8]) -> Option<usize> {
        match self.offer.get() {
            Offer::Unasked => None,
            Offer::Made => {
                self.offer.set(Offer::Unawaited);
                self.take_offer(buf)
            }
            _ => {
                self.offer.set(Offer::Unawaited);
                None
            }
        }
    }

    fn take_offer(self: &Rc<Self>, buf: &mut [u8]) -> Option<usize> {
        let mut conn = self.conn.borrow_mut();
        if !conn.reads_past_inbox() {
            return None;
        }
        let (n, rest) = self.worker.engine.borrow_mut().receive_now(self.token, buf)?;
        let is_more = rest.is_some();
        conn.received_past_inbox(n, rest, self.worker.now());
        if is_more && conn.has_enough() {
            // The engine has to stop before it reads the next chunk.
            drop(conn);
            self.mark_dirty();
        }
        Some(n)
    }

    /// Somebody waits who would receive to a buffer of `room` bytes by itself.
    #[inline]
    pub(crate) fn await_offer(&self, room: usize) {
        if room >= DIRECT_MIN
            && !self.conn.borrow().is_sealed()
            && self.offer.replace(Offer::Awaited) == Offer::Unasked
        {
            self.worker.engine.borrow_mut().offer(self.token, true);
        }
    }

    /// Nobody waits any more.
    pub(crate) fn forgo_offer(&self) {
        if self.offer.get() != Offer::Unasked {
            self.offer.set(Offer::Unawaited);
        }
    }

    /// Sends `bytes`, for which the queue has room. [`Link::sent`] has to follow.
    #[inline]
    pub(crate) fn send(&self, conn: &mut Conn, bytes: &[u8]) {
        if conn.is_sealed() {
            return self.send_sealed(conn, bytes);
        }
        let over = self.send_past_queue(conn, bytes);
        if over < bytes.len() {
            conn.send(&bytes[over..]);
        }
    }

    /// Sends the beginning of these slices, for which the queue has room, and returns how much that is: what the kernel takes at once,
    /// and behind it what brings the queue to its high mark. [`Link::sent`] has to follow.
    #[allow(dead_code, reason = "for the traits of others, which are features")]
    pub(crate) fn send_stream(&self, conn: &mut Conn, slices: &[IoSlice<'_>]) -> usize {
        let len = slices.iter().map(|slice| slice.len()).sum::<usize>();
        let pass = self.worker.pass.get();
        let mut over = 0;
        // As `send_past_queue` has it for large messages.
        if len >= DIRECT_MIN && self.sends.get() >> 1 != pass && conn.is_clear() && !conn.is_sealed() {
            self.sends.set(pass << 1);
            let result = self.worker.engine.borrow_mut().send_gathered_now(self.token, slices);
            over = conn.sent_past_queue(len, &result, self.worker.now());
        }
        let end = len.min(over + conn.send_high().saturating_sub(conn.pending()));
        let mut at = 0;
        for slice in slices {
            let part = over.max(at)..end.min(at + slice.len());
            if !part.is_empty() {
                conn.send(&slice[part.start - at..part.end - at]);
            }
            at += slice.len();
        }
        end
    }

    /// Sends `bytes`, for which the queue has room, without copying them. [`Link::sent`] has to follow.
    pub(crate) fn send_owned(&self, conn: &mut Conn, mut bytes: Bytes) {
        if conn.is_sealed() {
            return self.send_sealed(conn, &bytes);
        }
        let over = self.send_past_queue(conn, &bytes);
        bytes.advance(over);
        conn.send_owned(bytes);
    }

    /// Has what was queued carried out; if all went past the queue, there is nothing to do.
    #[inline]
    pub(crate) fn sent(self: &Rc<Self>, conn: &Conn) {
        if !conn.is_clear() && !self.dirty.replace(true) {
            self.worker.dirty.borrow_mut().push(self.clone());
        }
    }

    /// Gives a message that is the next to leave to the engine at once, from where it lies: that saves the way through the
    /// queue, and for a large one a copy. Returns how many bytes are over and done with.
    ///
    /// Once in a pass: what follows leaves together, and a handler that sends until it is refused is refused some time,
    /// however fast the peer reads. And small messages not at all if there were several in the pass before: then it is
    /// likely that more follow, with which they leave together.
    #[inline]
    fn send_past_queue(&self, conn: &mut Conn, bytes: &[u8]) -> usize {
        let pass = self.worker.pass.get();
        let (last, several) = (self.sends.get() >> 1, self.sends.get() & 1);
        if last == pass {
            self.sends.set(pass << 1 | 1);
            return 0;
        }
        self.sends.set(pass << 1);
        let small = bytes.len() < DIRECT_MIN;
        if !conn.is_clear() || (small && (several == 1 || bytes.len() > SMALL_MAX)) {
            return 0;
        }
        let result = self.worker.engine.borrow_mut().send_now(self.token, bytes);
        conn.sent_past_queue(bytes.len(), &result, self.worker.now())
    }

    /// The same by TLS. A large message that is the next to leave is sealed and given to the engine a buffer at a time; so a few
    /// buffers do, which stay warm. Once in a pass, as above.
    fn send_sealed(&self, conn: &mut Conn, mut bytes: &[u8]) {
        let pass = self.worker.pass.get();
        if bytes.len() >= DIRECT_MIN && conn.is_clear() && self.sends.get() >> 1 != pass {
            self.sends.set(pass << 1);
            while bytes.len() >= DIRECT_MIN {
                let (part, rest) = bytes.split_at(bytes.len().min(BUFFERFUL));
                bytes = rest;
                let send = |sealed: &[u8]| self.worker.engine.borrow_mut().send_now(self.token, sealed);
                if !conn.send_at_once(part, self.worker.now(), send) {
                    break;
                }
            }
        }
        match conn.writable() {
            Ok(()) => conn.send(bytes),
            Err(_) => conn.lost(bytes.len()),
        }
    }

    pub(crate) fn mark_dirty(self: &Rc<Self>) {
        // A closed connection asks for nothing any more, and its worker may be gone.
        if !self.conn.borrow().is_closed() && !self.dirty.replace(true) {
            self.worker.dirty.borrow_mut().push(self.clone());
        }
    }

    /// What handles on other threads share with this connection.
    pub(crate) fn remote(&self) -> Arc<RemoteState> {
        let new = || {
            let conn = self.conn.borrow();
            let (bound, when_full) = (conn.send_max(), conn.when_full());
            let post = self.worker.post.clone();
            let state = RemoteState::new(post, self.token, self.peer(), bound, when_full);
            if let Some(reason) = conn.reason() {
                state.close(reason);
            }
            Arc::new(state)
        };
        self.rare().remote.get_or_init(new).clone()
    }

    fn used_remote(&self) -> Option<&Arc<RemoteState>> {
        self.used_rare()?.remote.get()
    }
}

/// What happens to connections.
impl Worker {
    /// Carries out what the core of `link` asks for, then tells those who wait.
    pub(crate) fn advance(self: &Rc<Self>, link: &Rc<Link>) {
        link.dirty.set(false);
        let now = self.now();
        let mut conn = link.conn.borrow_mut();
        if conn.has_unseen() {
            // A handler has begun TLS in front of what it had left unread.
            drop(conn);
            return self.unseal(link);
        }
        let mut engine = self.engine.borrow_mut();
        while let Some(action) = conn.next_action(now) {
            if matches!(action, Action::Close { .. }) {
                link.note_delivery(&conn, &engine);
            }
            act(&mut engine, link.token, &mut conn, action, now);
        }
        let urgent = conn.take_urgent_deadline();
        let news = conn.take_news();
        drop((conn, engine));
        if let Some(at) = urgent {
            self.retime(link, at);
        }
        if !news.is_none() {
            self.tell(link, news);
        }
    }

    /// Makes sure that the worker looks at the connection's deadlines `at` this time. A timer that is too early stays:
    /// when it fires, they are looked at again.
    pub(crate) fn retime(&self, link: &Link, at: Time) {
        let mut timers = self.timers.borrow_mut();
        if let Some(id) = link.timer.get() {
            timers.cancel(id);
        }
        link.timer.set(Some(timers.insert(at, Alarm::Link(link.token))));
    }

    /// The connection's timer fired.
    pub(crate) fn expire(self: &Rc<Self>, link: &Rc<Link>) {
        link.timer.set(None);
        let mut conn = link.conn.borrow_mut();
        conn.timer_fired();
        if link.offer.get() == Offer::Made && conn.reads_past_inbox() {
            // It was there in time, and nobody has looked: the engine receives it in this turn.
            link.offer.set(Offer::Unawaited);
            conn.noticed(self.now());
        }
        while conn.expire(self.now()) {}
        drop(conn);
        self.advance(link);
    }

    /// Bytes came.
    pub(crate) fn received(self: &Rc<Self>, link: &Rc<Link>, chunk: Chunk) {
        let mut conn = link.conn.borrow_mut();
        if !conn.received(chunk.len(), self.now()) {
            return;
        }
        if conn.is_sealed() {
            conn.receive_sealed(chunk);
            drop(conn);
            return self.unseal(link);
        }
        if link.is_event.get() {
            drop(conn);
            // What the handler asks for is carried out at once, while all of it is warm, and not by the next pass.
            link.dirty.set(true);
            self.offer(link, chunk);
            return self.advance(link);
        }
        conn.deliver(chunk);
        let full = conn.has_enough();
        drop(conn);
        link.reader.wake(&self.tasks);
        if full {
            // The engine has to stop before it reads the next chunk.
            self.advance(link);
        }
    }

    /// The engine offers a reception: it is for the reader, if one waits that can make it.
    pub(crate) fn offered(&self, link: &Link) {
        if link.offer.get() == Offer::Awaited {
            link.offer.set(Offer::Made);
            link.reader.wake(&self.tasks);
        } else {
            link.offer.set(Offer::Unasked);
            self.engine.borrow_mut().offer(link.token, false);
        }
    }

    /// Hands on what was received by TLS, and does what follows from it.
    pub(crate) fn unseal(self: &Rc<Self>, link: &Rc<Link>) {
        // What is asked for meanwhile is carried out at the end.
        link.dirty.set(true);
        loop {
            let unsealed = link.conn.borrow_mut().unseal(self.now());
            match unsealed {
                Unsealed::Nothing => break,
                Unsealed::Established => self.secured(link),
                Unsealed::Bytes(chunk) if link.is_event.get() => {
                    self.offer(link, chunk);
                    link.conn.borrow_mut().offered();
                }
                Unsealed::Bytes(chunk) => {
                    link.conn.borrow_mut().deliver(chunk);
                    link.reader.wake(&self.tasks);
                }
            }
        }
        if link.conn.borrow().tls_failure().is_some() {
            // What is left is an alert and the wait for the peer's end, which keep nobody else from a handshake.
            self.drop_preface(link);
        }
        self.advance(link);
    }

    /// The TLS handshake is over.
    fn secured(self: &Rc<Self>, link: &Rc<Link>) {
        event!(debug, peer = %link.peer(), "TLS handshake done");
        if link.is_admitted.get() {
            let is_resumed = link.conn.borrow().tls_info().is_some_and(Info::is_resumed);
            self.with_member(|member| member.server.count_handshake(is_resumed));
        }
        if !self.begin_secured(link) {
            self.tell_secured(link);
        }
    }

    /// Wakes, or calls, those who wait for what has happened.
    fn tell(self: &Rc<Self>, link: &Rc<Link>, news: News) {
        if news.unblocked() && link.used_rare().is_some_and(|rare| !rare.arrivals.borrow().is_empty()) {
            self.pump(link);
            link.mark_dirty();
        }
        if link.is_event.get() {
            self.tell_handler(link, news);
        } else {
            if news.readable() {
                link.reader.wake(&self.tasks);
            }
            if news.writable()
                && let Some(rare) = link.used_rare()
            {
                rare.writer.wake(&self.tasks);
            }
        }
        if news.hung_up()
            && let Some(rare) = link.used_rare()
        {
            rare.hangup.wake(&self.tasks);
        }
        if news.closed() {
            self.closed(link);
        } else if let Some(remote) = link.used_remote()
            && let Some(reason) = link.conn.borrow().reason()
        {
            remote.close(reason);
        }
    }

    /// The engine has let go of the connection: everybody is told, and the slot is free.
    fn closed(self: &Rc<Self>, link: &Rc<Link>) {
        self.slots.remove(link.token);
        if let Some(id) = link.timer.take() {
            self.timers.borrow_mut().cancel(id);
        }
        let reason = link.conn.borrow().reason().unwrap_or(CloseReason::Local);
        if let Some(rare) = link.used_rare() {
            let undelivered: usize = rare.arrivals.take().iter().map(Bytes::len).sum();
            link.conn.borrow_mut().lost(undelivered);
            link.release_queued(undelivered);
            self.pieces.count().shrink(undelivered);
        }
        if let Some(remote) = link.used_remote() {
            remote.close(reason);
        }
        self.tell_closed(link, reason);
        if let Some(rare) = link.used_rare() {
            rare.closer.wake(&self.tasks);
            rare.drainer.wake(&self.tasks);
        }
        let counts = link.conn.borrow().counts();
        if let Some(admission) = link.admission.take() {
            let (id, peer) = (link.id(), &link.peer());
            if link.is_watched.get() {
                admission.server().tell(&ServerEvent::Closed { id, peer, reason, counts });
            } else if link.used_rare().is_some_and(|rare| rare.awaits_tls.get()) {
                let conn = link.conn.borrow();
                let detail = conn.tls_failure().map_or("", |failure| &failure.detail);
                admission.server().count_failed_handshake();
                admission.server().tell(&ServerEvent::HandshakeFailed { peer, reason, detail });
            } else {
                event!(debug, %peer, %id, %reason, "connection closed before its handler began");
            }
            admission.closed(reason, counts);
        }
    }
}

/// Carries out one thing that a core asks for.
fn act(engine: &mut Engine, token: Token, conn: &mut Conn, action: Action, now: Time) {
    match action {
        Action::Receive => engine.receive(token),
        Action::Pause => engine.pause(token),
        Action::Close { reset } => engine.close(token, reset),
        Action::Shutdown => match engine.shutdown(token) {
            Ok(0) => {}
            Ok(unsent) => conn.bounced(unsent, now),
            Err(error) => conn.broke(&error, now),
        },
        Action::Send => {
            if conn.is_sealed() {
                conn.send_in_buffers(now, |buffer| engine.send_now(token, buffer));
                if !conn.has_to_send() {
                    return;
                }
            }
            let offered = conn.pending();
            match engine.send(token, conn.offer()) {
                Submitted::InFlight => conn.in_flight(offered, now),
                Submitted::Handed => conn.handed(offered, now),
                Submitted::Done(Ok(n)) => conn.sent_inline(n, now),
                Submitted::Done(Err(error)) => conn.broke(&error, now),
            }
        }
    }
}

/// Messages of other threads.
impl Worker {
    /// Queues `bytes` behind what other threads sent before.
    pub(crate) fn arrived(self: &Rc<Self>, link: &Rc<Link>, bytes: Bytes) {
        if link.rare().close_behind.get() {
            link.release_queued(bytes.len());
            return link.conn.borrow_mut().lost(bytes.len());
        }
        self.pieces.count().grow(bytes.len());
        link.rare().arrivals.borrow_mut().push_back(bytes);
        self.pump(link);
        link.mark_dirty();
    }

    /// Closes the connection behind what other threads sent before.
    pub(crate) fn close_behind(&self, link: &Rc<Link>) {
        link.rare().close_behind.set(true);
        self.pump(link);
        link.mark_dirty();
    }

    /// Moves arrivals into the send queue while it has room for them.
    fn pump(&self, link: &Link) {
        let Some(rare) = link.used_rare() else { return };
        let mut arrivals = rare.arrivals.borrow_mut();
        let mut conn = link.conn.borrow_mut();
        while let Some(bytes) = arrivals.front() {
            let room = conn.room(bytes.len());
            if room.is_ok_and(|room| room != Room::Yes) {
                if link.is_event.get() && conn.is_blocked() {
                    conn.make_wait();
                }
                return;
            }
            let Some(bytes) = arrivals.pop_front() else { return };
            self.pieces.count().shrink(bytes.len());
            link.release_queued(bytes.len());
            match room {
                Ok(_) => conn.send_owned(bytes),
                // This side has finished: there is no way out any more.
                Err(_) => conn.lost(bytes.len()),
            }
        }
        if rare.close_behind.get() {
            conn.close();
        }
    }
}
