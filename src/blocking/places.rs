//! Where the connections of a blocking server are, so that it can list them, send them away, stop them, and tell them that it drains.
//!
//! A thread that waits for bytes is in recv(2), where nothing but its socket can reach it. Shutting the socket down for reading wakes
//! it and tells the peer nothing; the thread then ends its connection itself. One that waits otherwise hears the alert, or looks.
//!
//! Nobody can ask such a thread how its connection is. So it notes that at its place: all of it, by a few stores, when it begins an operation
//! that may wait or looks again in one, and by one store what a message adds that was received or sent at once. While it waits, what
//! is noted is true. What is asked of it is one word of its place, so that the usual message looks at nothing else of its server's.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::net::Shutdown;

use super::alert::Alert;
use super::line::Line;
use super::office::Office;
use crate::address::Address;
use crate::conn::{Conn, ConnectionState, Counts};
use crate::engine::Token;
use crate::engine::buffer::Block;
use crate::error::CloseReason;
use crate::proxy::Proxied;
use crate::server::{ConnectionInfo, Whom};
use crate::worker::link::ConnectionId;

/// How long a server that stops waits for a connection that its handler has given to another thread.
const BACK_WITHIN: Duration = Duration::from_secs(1);

/// All connections of one server.
#[derive(Debug)]
pub(super) struct Places {
    office: Arc<Office>,
    stopped: AtomicBool,
    stopping: Alert,
    drained: AtomicBool,
    draining: Alert,
    table: Mutex<Table>,
}

/// The places by their connections' ids.
#[derive(Debug, Default)]
struct Table {
    /// As many as there ever were at once.
    entries: Vec<Entry>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Entry {
    generation: u32,
    place: Option<Arc<Place>>,
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    id: ConnectionId,
    token: Token,
    opened: Instant,
    /// At the other end of the socket.
    peer: Address,
    proxied: OnceLock<Proxied>,
    label: Mutex<Option<Arc<str>>>,
    notes: Notes,
    socket: Mutex<Weak<OwnedFd>>,
    left: Mutex<Left>,
    /// The connection has come back, or the server stops.
    changed: Condvar,
}

/// The server stops: the connection is reset.
const STOP: u8 = 1;
/// A handle has it closed.
const GO_AWAY: u8 = 2;

/// What the handles ask of a connection's thread, and how the connection is, as that has noted: one cache line, which nothing else
/// shares. Each figure stands for itself.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Notes {
    /// [`STOP`], [`GO_AWAY`].
    asked: AtomicU8,
    state: AtomicU8,
    received: AtomicU64,
    sent: AtomicU64,
    unsent: AtomicU64,
    discarded: AtomicU64,
    queued: AtomicUsize,
    unread: AtomicUsize,
    /// The bytes in its buffers, which the budget knows of. Changed under the lock of [`Place::left`].
    held: AtomicUsize,
}

/// Where a connection is when its handler is over.
#[derive(Debug)]
enum Left {
    /// The handler has it, or another thread has, to whom the handler gave it.
    Out,
    /// Its owner has dropped it.
    Back(Box<Line>),
    /// Nobody waits for it any more, and what it holds is not counted.
    Forsaken,
}

impl Places {
    pub(super) fn new(office: Arc<Office>) -> io::Result<Arc<Places>> {
        Ok(Arc::new(Places {
            office,
            stopped: AtomicBool::new(false),
            stopping: Alert::new()?,
            drained: AtomicBool::new(false),
            draining: Alert::new()?,
            table: Mutex::default(),
        }))
    }

    /// A place for another connection, until it is [removed](Places::remove). Who comes after the server was stopped finds that there.
    pub(super) fn take(self: &Arc<Self>, peer: Address) -> Arc<Place> {
        let mut table = lock(&self.table);
        let index = table.free.pop().unwrap_or_else(|| {
            table.entries.push(Entry::default());
            (table.entries.len() - 1) as u32
        });
        let entry = &mut table.entries[index as usize];
        let token = Token { index, generation: entry.generation };
        // Under the table's lock: who is not in it yet when all are told looks here afterwards.
        let asked = if self.is_stopped() { STOP } else { 0 };
        let place = Place {
            places: self.clone(),
            id: ConnectionId::without_worker(token),
            token,
            opened: Instant::now(),
            peer,
            proxied: OnceLock::new(),
            label: Mutex::default(),
            notes: Notes { asked: AtomicU8::new(asked), ..Notes::default() },
            socket: Mutex::default(),
            left: Mutex::new(Left::Out),
            changed: Condvar::new(),
        };
        entry.place.insert(Arc::new(place)).clone()
    }

    /// Its connection is over, or nobody waits for it any more. The next one at this place has another id.
    pub(super) fn remove(&self, place: &Place) {
        let mut table = lock(&self.table);
        let Token { index, generation } = place.token;
        let entry = &mut table.entries[index as usize];
        debug_assert_eq!(entry.generation, generation, "it is removed once");
        entry.generation = generation.wrapping_add(1);
        let removed = entry.place.take();
        table.free.push(index);
        drop(table);
        drop(removed);
        place.settle();
    }

    fn all(&self) -> Vec<Arc<Place>> {
        lock(&self.table).entries.iter().filter_map(|entry| entry.place.clone()).collect()
    }

    /// The connections as they are, the oldest first.
    pub(super) fn list(&self) -> Vec<ConnectionInfo> {
        let all = self.all();
        let now = Instant::now();
        let mut infos: Vec<_> = all.iter().map(|place| place.describe(now)).collect();
        infos.sort_by_key(|info| (std::cmp::Reverse(info.age), info.id));
        infos
    }

    /// Has those who are meant end their connections.
    pub(super) fn send_away(&self, whom: Whom) {
        for place in self.all().iter().filter(|place| whom.is(place.id, place.peer())) {
            place.ask(GO_AWAY);
            place.rouse();
        }
    }

    pub(super) fn drain(&self) {
        self.drained.store(true, Ordering::SeqCst);
        self.draining.raise();
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        for place in self.all() {
            place.ask(STOP);
            place.wake();
        }
        self.stopping.raise();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

impl Place {
    /// Whoever sits here can be reached by his socket from now on.
    pub(super) fn enter(&self, socket: &Arc<OwnedFd>) {
        *lock(&self.socket) = Arc::downgrade(socket);
        if self.is_stopped() {
            self.wake();
        }
    }

    pub(super) fn leave(&self) {
        *lock(&self.socket) = Weak::new();
    }

    /// The connection's owner has dropped it: the server's thread sees it off.
    pub(super) fn give_back(&self, mut line: Box<Line>) {
        let mut left = lock(&self.left);
        if matches!(*left, Left::Forsaken) {
            drop(left);
            return line.reset(CloseReason::Shutdown);
        }
        *left = Left::Back(line);
        drop(left);
        self.changed.notify_all();
    }

    /// Waits until the connection is given back. `None` if that does not come about although the server stops: whoever has it
    /// finds it shut down.
    pub(super) fn await_line(&self) -> Option<Box<Line>> {
        let mut left = lock(&self.left);
        let mut stopped_at = None;
        loop {
            match std::mem::replace(&mut *left, Left::Out) {
                Left::Back(line) => return Some(line),
                other => *left = other,
            }
            if !self.is_stopped() {
                left = self.changed.wait(left).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let passed = stopped_at.get_or_insert_with(Instant::now).elapsed();
            let Some(rest) = BACK_WITHIN.checked_sub(passed) else { break };
            left = self.changed.wait_timeout(left, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        *left = Left::Forsaken;
        drop(left);
        if let Some(socket) = lock(&self.socket).upgrade() {
            let _ = rustix::net::shutdown(&*socket, Shutdown::Both);
        }
        None
    }

    pub(super) fn id(&self) -> ConnectionId {
        self.id
    }

    /// Whom the connection is for.
    pub(super) fn peer(&self) -> &Address {
        self.proxied.get().and_then(Proxied::source).unwrap_or(&self.peer)
    }

    /// What its proxy has told.
    pub(super) fn proxied(&self) -> Option<&Proxied> {
        self.proxied.get()
    }

    pub(super) fn set_proxied(&self, proxied: Proxied) {
        let is_first = self.proxied.set(proxied).is_ok();
        debug_assert!(is_first, "there is one header");
    }

    pub(super) fn set_label(&self, label: Arc<str>) {
        *lock(&self.label) = Some(label);
    }

    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    fn describe(&self, now: Instant) -> ConnectionInfo {
        let Notes { state, queued, unread, .. } = &self.notes;
        ConnectionInfo {
            id: self.id,
            peer: self.peer().clone(),
            listener: Some(0),
            age: now.saturating_duration_since(self.opened),
            state: state_of(state.load(Ordering::Relaxed)),
            counts: self.counts(),
            queued: queued.load(Ordering::Relaxed),
            unread: unread.load(Ordering::Relaxed),
            label: lock(&self.label).clone(),
        }
    }

    /// Notes how the connection is, by whoever has it. It holds so many bytes beside its queues.
    pub(super) fn note(&self, conn: &Conn<Block>, beside: usize) {
        let Counts { received, sent, unsent, discarded } = conn.counts();
        let (queued, unread) = (conn.pending(), conn.unread());
        let notes = &self.notes;
        notes.state.store(conn.state() as u8, Ordering::Relaxed);
        notes.received.store(received, Ordering::Relaxed);
        notes.sent.store(sent, Ordering::Relaxed);
        notes.unsent.store(unsent, Ordering::Relaxed);
        notes.discarded.store(discarded, Ordering::Relaxed);
        notes.queued.store(queued, Ordering::Relaxed);
        notes.unread.store(unread, Ordering::Relaxed);
        let held = queued + unread + beside;
        if notes.held.load(Ordering::Relaxed) != held {
            self.hold(held);
        }
    }

    /// Notes that it has received so much, where nothing else has changed.
    #[inline]
    pub(super) fn note_received(&self, received: u64) {
        self.notes.received.store(received, Ordering::Relaxed);
    }

    /// The same for what it has sent.
    #[inline]
    pub(super) fn note_sent(&self, sent: u64) {
        self.notes.sent.store(sent, Ordering::Relaxed);
    }

    /// What was exchanged, as it was noted last.
    pub(super) fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Notes { received, sent, unsent, discarded, .. } = &self.notes;
        Counts {
            received: count(received),
            sent: count(sent),
            unsent: count(unsent),
            discarded: count(discarded),
        }
    }

    /// The connection holds `now` bytes.
    fn hold(&self, now: usize) {
        let left = lock(&self.left);
        if matches!(*left, Left::Forsaken) {
            return;
        }
        let before = self.notes.held.swap(now, Ordering::Relaxed);
        self.places.office.memory().tell(before, now);
        drop(left);
        self.places.office.judge_memory();
    }

    /// The server is done with the connection, and with what it holds. A line that nobody has taken is closed: it holds its place, which
    /// would hold it for ever.
    fn settle(&self) {
        let mut left = lock(&self.left);
        let before = self.notes.held.swap(0, Ordering::Relaxed);
        self.places.office.memory().tell(before, 0);
        let was = std::mem::replace(&mut *left, Left::Forsaken);
        drop(left);
        drop(was);
        if before > 0 {
            self.places.office.judge_memory();
        }
    }

    /// Whether the connections hold more than they may, and what is idle has to be given back.
    pub(super) fn memory_is_short(&self) -> bool {
        self.places.office.memory().is_short()
    }

    fn ask(&self, what: u8) {
        self.notes.asked.fetch_or(what, Ordering::SeqCst);
    }

    /// Whether its thread can go on: it is neither stopped nor sent away.
    #[inline]
    pub(super) fn asks_nothing(&self) -> bool {
        self.notes.asked.load(Ordering::Relaxed) == 0
    }

    /// Whether a handle has it closed.
    pub(super) fn is_sent_away(&self) -> bool {
        self.notes.asked.load(Ordering::Relaxed) & GO_AWAY != 0
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.notes.asked.load(Ordering::Relaxed) & STOP != 0
    }

    pub(super) fn is_draining(&self) -> bool {
        self.places.drained.load(Ordering::Relaxed)
    }

    pub(super) fn stopping(&self) -> BorrowedFd<'_> {
        self.places.stopping.ear()
    }

    pub(super) fn draining(&self) -> BorrowedFd<'_> {
        self.places.draining.ear()
    }

    /// Ends a wait for bytes, so that its thread looks whether it is sent away.
    fn rouse(&self) {
        if let Some(socket) = lock(&self.socket).upgrade() {
            // What has come ends the wait by itself, and then the peer may go on to send while the connection closes.
            let has_bytes = rustix::io::ioctl_fionread(&*socket).is_ok_and(|bytes| bytes > 0);
            if !has_bytes {
                let _ = rustix::net::shutdown(&*socket, Shutdown::Read);
            }
        }
    }

    fn wake(&self) {
        // Under the lock, so that nobody has looked and does not wait yet.
        drop(lock(&self.left));
        self.changed.notify_all();
        if let Some(socket) = lock(&self.socket).upgrade() {
            // One that is not connected any more wakes its thread by that.
            let _ = rustix::net::shutdown(&*socket, Shutdown::Read);
        }
    }
}

fn state_of(noted: u8) -> ConnectionState {
    let all = [ConnectionState::Open, ConnectionState::PeerEnded, ConnectionState::Finishing];
    all.into_iter().find(|state| *state as u8 == noted).unwrap_or(ConnectionState::Closing)
}

/// Nothing panics under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
