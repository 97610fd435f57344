//! What the workers of one server share: counts, rules, mailboxes, and each connection's place.

use std::collections::HashMap;
use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::admission::{Desk, Seat, Turnstile, Verdict};
use super::hooks::{Hooks, ServerEvent};
use super::listen::{Listen, Opened, SocketFile};
use super::stats::{DrainReport, Stats};
use crate::address::{Address, UnixName};
use crate::config::{Access, Backend, Deadlines, Limits, OverLimit, ProxyProtocol, SocketOptions};
use crate::conn::Counts;
use crate::engine::{Engine, Listener};
use crate::error::{CloseReason, Rule};
use crate::systemd::{self, State};
use crate::time::Time;
#[cfg(feature = "tls")]
use crate::tls::Acceptor;
use crate::worker::memory::Budget;
use crate::worker::pulse::Pulse;
use crate::worker::{Message, Post};

/// What the workers of one server share with each other and with its handles.
pub(crate) struct ServerState {
    /// What the connections' buffers take.
    pub(crate) memory: Arc<Budget>,
    pub(super) started: Instant,
    pub(super) listeners: Vec<ListenerState>,
    /// What holds for listeners that are not told otherwise.
    proxies: Option<ProxyProtocol>,
    #[cfg(feature = "tls")]
    acceptor: Option<Acceptor>,
    pub(super) sockets: SocketOptions,
    pub(super) connections: AtomicUsize,
    desk: Mutex<Reception>,
    deadlines: Mutex<Deadlines>,
    /// Connections of each worker, those on their way to it included.
    loads: Vec<AtomicUsize>,
    /// Whether each worker turns.
    pub(super) pulses: Vec<Arc<Pulse>>,
    /// The engine of each worker; unset in a simulation.
    backends: Vec<OnceLock<Backend>>,
    posts: OnceLock<Vec<Post>>,
    counters: Counters,
    closes: Mutex<HashMap<CloseReason, u64>>,
    workers_running: AtomicUsize,
    pub(super) workers_left: Mutex<usize>,
    pub(super) ended: Condvar,
    pub(super) crashed: AtomicBool,
    /// The start has failed, and its end is told to nobody.
    pub(super) start_failed: AtomicBool,
    /// The thread of the last worker, on which its end is told.
    pub(super) last_thread: OnceLock<ThreadId>,
    /// A drain has begun: how connections end is reported.
    pub(crate) drain_begun: AtomicBool,
    /// The first worker has passed a drain on, and hands nothing over any more.
    pub(crate) draining: AtomicBool,
    pub(super) suspension: Mutex<Suspension>,
    pub(super) simulated: bool,
    /// The service manager is told what the server is about.
    notifies: bool,
    /// It is not, of the drain: a successor goes on with the service.
    replaced: AtomicBool,
    /// There may be a successor, who would want copies of the listeners.
    keeps_copies: bool,
    /// Nobody is accepted before the predecessor has been told that we serve.
    pub(crate) door_is_held: bool,
    /// Closed when the last worker has left, for the thread that waits for a successor.
    until_the_end: Mutex<Option<PipeWriter>>,
    /// The socket at which successors ask.
    upgrade: Mutex<Holding>,
    hooks: Hooks,
}

/// One of a server's listeners.
pub(super) struct ListenerState {
    pub(super) listen: Listen,
    pub(super) address: Address,
    pub(super) accepted: AtomicU64,
    pub(super) lost: AtomicBool,
    /// A predecessor opened it.
    taken: bool,
    holding: Mutex<Holding>,
}

/// What there is of a listener beside the one that is used.
#[derive(Default)]
struct Holding {
    file: Option<SocketFile>,
    /// For a successor.
    copy: Option<OwnedFd>,
    /// A successor has it, or is about to: it is not ours to clear up.
    promised: bool,
}

impl Holding {
    /// Removes the file, unless a successor listens there.
    fn clear(self) {
        match self.file {
            Some(file) if self.promised => file.leave(),
            file => drop(file),
        }
    }
}

/// The desk, and whether the acceptor waits for somebody to leave: under one lock, so that neither misses the other.
struct Reception {
    desk: Desk,
    awaited: bool,
}

/// Whether accepting is suspended, as handles ask for it and the acceptor carries it out: under one lock, so that whoever
/// resumes knows which addresses are free again.
#[derive(Default)]
pub(super) struct Suspension {
    pub(super) asked: bool,
    /// Counts the requests, so that one that was taken back before it was carried out is none.
    pub(super) round: u64,
    /// The listeners that are closed and have to be opened again.
    pub(super) closed: Vec<usize>,
}

#[derive(Default)]
struct Counters {
    accepted: AtomicU64,
    accept_errors: AtomicU64,
    refused: [AtomicU64; Rule::ALL.len()],
    received: AtomicU64,
    sent: AtomicU64,
    unsent: AtomicU64,
    panics: AtomicU64,
    stalls: AtomicU64,
    finished: AtomicU64,
    reset: AtomicU64,
    lost: AtomicU64,
}

/// What a new server's state is made from.
pub(super) struct Founding {
    pub(super) listeners: Vec<ListenerState>,
    pub(super) proxies: Option<ProxyProtocol>,
    #[cfg(feature = "tls")]
    pub(super) acceptor: Option<Acceptor>,
    pub(super) sockets: SocketOptions,
    pub(super) access: Access,
    pub(super) limits: Limits,
    pub(super) deadlines: Deadlines,
    pub(super) connections_max: usize,
    pub(super) workers: usize,
    pub(super) simulated: bool,
    pub(super) keeps_copies: bool,
    pub(super) notifies: bool,
    pub(super) door_is_held: bool,
    pub(super) hooks: Hooks,
}

impl ListenerState {
    pub(super) fn new(listen: Listen, address: Address, taken: bool) -> ListenerState {
        let (accepted, lost) = (AtomicU64::new(0), AtomicBool::new(false));
        ListenerState { listen, address, accepted, lost, taken, holding: Mutex::default() }
    }
}

impl ServerState {
    pub(super) fn new(founding: Founding) -> Arc<ServerState> {
        let Founding {
            listeners,
            proxies,
            #[cfg(feature = "tls")]
            acceptor,
            sockets,
            access,
            limits,
            deadlines,
            connections_max,
            workers,
            simulated,
            keeps_copies,
            notifies,
            door_is_held,
            hooks,
        } = founding;
        Arc::new(ServerState {
            memory: Arc::new(Budget::new(limits.memory)),
            started: Instant::now(),
            listeners,
            proxies,
            #[cfg(feature = "tls")]
            acceptor,
            sockets,
            connections: AtomicUsize::new(0),
            desk: Mutex::new(Reception { desk: Desk::new(access, limits, connections_max), awaited: false }),
            deadlines: Mutex::new(deadlines),
            loads: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            pulses: (0..workers).map(|_| Arc::default()).collect(),
            backends: (0..workers).map(|_| OnceLock::new()).collect(),
            posts: OnceLock::new(),
            counters: Counters::default(),
            closes: Mutex::default(),
            workers_running: AtomicUsize::new(workers),
            workers_left: Mutex::new(workers),
            ended: Condvar::new(),
            crashed: AtomicBool::new(false),
            start_failed: AtomicBool::new(false),
            last_thread: OnceLock::new(),
            drain_begun: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            suspension: Mutex::default(),
            simulated,
            keeps_copies,
            notifies,
            replaced: AtomicBool::new(false),
            door_is_held,
            until_the_end: Mutex::default(),
            upgrade: Mutex::default(),
            hooks,
        })
    }

    pub(super) fn set_posts(&self, posts: Vec<Post>) {
        let first = self.posts.set(posts).is_ok();
        debug_assert!(first, "the workers of a server are known once");
    }

    /// The mailboxes of the workers, in their order; waits for the start to be over.
    pub(crate) fn posts(&self) -> &[Post] {
        self.posts.wait()
    }

    /// Where it listens.
    pub(super) fn addresses(&self) -> Vec<Address> {
        self.listeners.iter().map(|listener| listener.address.clone()).collect()
    }

    pub(super) fn workers(&self) -> usize {
        self.loads.len()
    }

    /// A worker has got its engine.
    pub(super) fn note_backend(&self, worker: usize, engine: &Engine) {
        if let Some(backend) = engine.backend() {
            self.backends[worker].get_or_init(|| backend);
        }
    }

    pub(super) fn backends(&self) -> Vec<Backend> {
        self.backends.iter().filter_map(OnceLock::get).copied().collect()
    }

    /// The mailbox of one worker; after a start that failed there may be fewer than workers.
    pub(crate) fn post(&self, worker: usize) -> Option<&Post> {
        self.posts().get(worker)
    }

    /// The connections of a worker, those on their way to it included.
    pub(crate) fn load(&self, worker: usize) -> usize {
        self.loads[worker].load(Ordering::Relaxed)
    }

    /// The same of all workers.
    pub(super) fn loads(&self) -> Vec<usize> {
        (0..self.workers()).map(|worker| self.load(worker)).collect()
    }

    /// The workers that a handler keeps from turning.
    pub(super) fn blocked_workers(&self) -> Vec<usize> {
        (0..self.workers()).filter(|worker| self.pulses[*worker].is_blocked()).collect()
    }

    /// Tells the worker that accepts. One that is gone needs to know nothing.
    pub(super) fn tell_first(&self, message: Message) {
        if let Some(first) = self.post(0) {
            drop(first.send(message));
        }
    }

    /// Tells every worker.
    pub(super) fn tell_all(&self, message: impl Fn() -> Message) {
        for post in self.posts() {
            drop(post.send(message()));
        }
    }

    /// The worker with the fewest connections, of those that no handler blocks.
    fn least_loaded(&self) -> usize {
        (0..self.loads.len())
            .min_by_key(|worker| (self.pulses[*worker].is_blocked(), self.load(*worker)))
            .unwrap_or(0)
    }

    /// Whether the memory budget is spent, so that there is none for another connection.
    pub(super) fn memory_is_short(&self) -> bool {
        self.memory.is_short()
    }

    /// Memory has become short: workers that sleep on idle buffers have to free them. Or it is no longer.
    pub(crate) fn memory_changed(&self, short: bool) {
        if short {
            self.tell_all(|| Message::MemoryShort);
        } else {
            self.tell_first(Message::RoomAgain);
        }
    }

    /// Tells whoever watches the server.
    pub(crate) fn tell(&self, event: &ServerEvent<'_>) {
        self.hooks.tell(event);
    }

    /// Tells the service manager, if it is to be told.
    pub(super) fn notify(&self, states: &[State<'_>]) {
        if self.notifies
            && let Err(error) = systemd::notify(states)
        {
            event!(warn, %error, "the service manager could not be told");
            let _ = error;
        }
    }

    /// The drain has begun.
    pub(crate) fn notify_of_drain(&self) {
        if !self.replaced.load(Ordering::SeqCst) {
            self.notify(&[State::Stopping]);
        }
    }

    pub(crate) fn worker_left(&self) {
        if self.workers_running.fetch_sub(1, Ordering::SeqCst) == 1 {
            // Whoever waits for the end waits for this too.
            self.last_thread.get_or_init(|| thread::current().id());
            if !self.start_failed.load(Ordering::SeqCst) {
                self.hooks.ended(&self.stats());
            }
            self.close_upgrade();
        }
        *lock(&self.workers_left) -= 1;
        self.ended.notify_all();
    }
}

/// Admission: see [`Desk`].
impl ServerState {
    /// Decides about a connection that was accepted; the place is with the worker that has the fewest.
    pub(crate) fn admit(
        self: &Arc<Self>,
        listener: Option<usize>,
        peer: &Address,
        now: Time,
    ) -> Result<Admission, Rule> {
        // Whom a proxy speaks for is not known before it has said so.
        let behind_proxy = self.proxy(listener).is_some();
        let mut reception = lock(&self.desk);
        let queues = listener.is_some() && reception.desk.rules().over_limit == OverLimit::Queue;
        // Other workers may have used it up since this one was let through the turnstile, and it cannot go back.
        let memory_is_short = !queues && self.memory.is_short();
        match reception.desk.admit((!behind_proxy).then_some(peer), memory_is_short, now) {
            Verdict::Admit(seat) => Ok(Admission::new(self.clone(), seat, listener)),
            Verdict::Refuse(rule) => Err(rule),
        }
    }

    /// Whether to take the next connection from the backlog. If not before somebody leaves, whoever leaves says so.
    pub(crate) fn turnstile(&self, now: Time) -> Turnstile {
        let mut reception = lock(&self.desk);
        let turnstile = reception.desk.turnstile(self.memory.is_short(), now);
        reception.awaited |= turnstile == Turnstile::Full;
        turnstile
    }

    /// From now on the next connection that ends is told to the acceptor.
    pub(crate) fn await_leave(&self) {
        lock(&self.desk).awaited = true;
    }

    pub(crate) fn over_limit(&self) -> OverLimit {
        lock(&self.desk).desk.rules().over_limit
    }

    pub(super) fn connections_max(&self) -> usize {
        lock(&self.desk).desk.connections_max()
    }

    pub(crate) fn limits(&self) -> Limits {
        lock(&self.desk).desk.rules().clone()
    }

    pub(super) fn access(&self) -> Access {
        lock(&self.desk).desk.access().clone()
    }

    pub(super) fn set_access(&self, access: Access) {
        lock(&self.desk).desk.set_access(access);
    }

    pub(super) fn set_limits(&self, limits: Limits, connections_max: usize) {
        let mut reception = lock(&self.desk);
        self.memory.set_max(limits.memory);
        reception.desk.set_rules(limits, connections_max);
    }

    pub(crate) fn deadlines(&self) -> Deadlines {
        lock(&self.deadlines).clone()
    }

    pub(super) fn set_deadlines(&self, deadlines: Deadlines) {
        *lock(&self.deadlines) = deadlines;
    }

    /// How connections through a listener say whom they are for, if a proxy does.
    pub(crate) fn proxy(&self, listener: Option<usize>) -> Option<&ProxyProtocol> {
        self.listeners[listener?].listen.proxy().or(self.proxies.as_ref())
    }

    /// What connections through a listener, or without one, begin TLS with, if they do.
    #[cfg(feature = "tls")]
    pub(crate) fn acceptor(&self, listener: Option<usize>) -> Option<&Acceptor> {
        let inherited = self.acceptor.as_ref();
        listener.map_or(inherited, |listener| self.listeners[listener].listen.acceptor(inherited))
    }

    pub(crate) fn count_refusal(&self, rule: Rule) {
        self.counters.refused[rule.index()].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_accept_error(&self) {
        self.counters.accept_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_panic(&self) {
        self.counters.panics.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_stall(&self) {
        self.counters.stalls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> Stats {
        let Counters {
            accepted,
            accept_errors,
            refused,
            received,
            sent,
            unsent,
            panics,
            stalls,
            finished,
            reset,
            lost,
        } = &self.counters;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut closes: Vec<_> = lock(&self.closes).iter().map(|(reason, count)| (*reason, *count)).collect();
        closes.sort_by_key(|(reason, count)| (std::cmp::Reverse(*count), reason.to_string()));
        let refused = Rule::ALL.iter().zip(refused).map(|(rule, refused)| (*rule, count(refused)));
        Stats {
            accepted: count(accepted),
            accept_errors: count(accept_errors),
            refused: refused.filter(|(_, count)| *count > 0).collect(),
            received: count(received),
            sent: count(sent),
            unsent: count(unsent),
            panics: count(panics),
            stalls: count(stalls),
            closes,
            drain: DrainReport { finished: count(finished), reset: count(reset), lost: count(lost) },
        }
    }
}

/// The listeners, beside those that are accepted from: their files, and their copies for a successor.
impl ServerState {
    /// A listener has been opened. Returns it, to be accepted from.
    pub(super) fn hold(&self, listener: usize, opened: Opened) -> io::Result<Listener> {
        let copy = self.keeps_copies.then(|| opened.listener.try_clone()).transpose()?;
        *lock(&self.listeners[listener].holding) = Holding { file: opened.file, copy, promised: false };
        Ok(Listener::Os(opened.listener))
    }

    /// A listener is gone and will not come back.
    pub(crate) fn lose_listener(&self, listener: usize) -> &Address {
        self.close_copy(listener);
        self.listeners[listener].lost.store(true, Ordering::Relaxed);
        &self.listeners[listener].address
    }

    /// Whether that request to suspend still stands.
    pub(crate) fn is_to_suspend(&self, round: u64) -> bool {
        lock(&self.suspension).round == round
    }

    /// Has `close` close a listener that can be opened again, if the request to suspend still stands; says whether it does.
    pub(crate) fn suspend_listener(&self, round: u64, listener: usize, close: impl FnOnce()) -> bool {
        let mut suspension = lock(&self.suspension);
        let stands = suspension.round == round;
        if stands {
            close();
            self.close_copy(listener);
            suspension.closed.push(listener);
        }
        stands
    }

    /// A listener's copy for a successor is no longer needed.
    pub(super) fn close_copy(&self, listener: usize) {
        drop(lock(&self.listeners[listener].holding).copy.take());
    }

    /// A listener is closed for good: what it has in the file system goes too, unless a successor listens there.
    pub(crate) fn clear_listener(&self, listener: usize) {
        std::mem::take(&mut *lock(&self.listeners[listener].holding)).clear();
    }

    /// The same for all of them.
    pub(crate) fn clear_listeners(&self) {
        (0..self.listeners.len()).for_each(|listener| self.clear_listener(listener));
    }

    /// Whether a listener may be closed when the server is suspended, for it can be opened again.
    pub(crate) fn can_reopen(&self, listener: usize) -> bool {
        let state = &self.listeners[listener];
        !self.simulated && !state.taken && !state.listen.is_given()
    }

    /// Whether who waits in a listener's backlog is a successor's business.
    pub(crate) fn is_promised(&self, listener: usize) -> bool {
        lock(&self.listeners[listener].holding).promised
    }

    /// Copies of the listeners that are open, and which they are. From now on a successor may have them, and the upgrade
    /// socket.
    pub(super) fn promise_listeners(&self) -> (Vec<OwnedFd>, Vec<usize>) {
        lock(&self.upgrade).promised = true;
        let promise = |(index, listener): (usize, &ListenerState)| {
            let mut holding = lock(&listener.holding);
            let copy = holding.copy.as_ref()?.try_clone().ok()?;
            holding.promised = true;
            Some((copy, index))
        };
        self.listeners.iter().enumerate().filter_map(promise).unzip()
    }

    /// The successor does not have this one.
    pub(super) fn keep(&self, listener: usize) {
        lock(&self.listeners[listener].holding).promised = false;
    }

    /// There is no successor after all.
    pub(super) fn keep_all(&self) {
        lock(&self.upgrade).promised = false;
        (0..self.listeners.len()).for_each(|listener| self.keep(listener));
    }

    /// The files of taken listeners are ours from now on.
    pub(super) fn claim_files(&self) {
        for listener in self.listeners.iter().filter(|listener| listener.taken) {
            let path = listener.address.unix().and_then(UnixName::path);
            lock(&listener.holding).file = path.and_then(|path| SocketFile::of(path).ok());
        }
    }

    /// Keeps `end` open, and the upgrade socket's file, until the last worker has left.
    pub(super) fn keep_until_the_end(&self, end: PipeWriter, file: Option<SocketFile>) {
        *lock(&self.until_the_end) = Some(end);
        lock(&self.upgrade).file = file;
        // They may have left already.
        if *lock(&self.workers_left) == 0 {
            self.close_upgrade();
        }
    }

    fn close_upgrade(&self) {
        drop(lock(&self.until_the_end).take());
        std::mem::take(&mut *lock(&self.upgrade)).clear();
    }

    /// The server accepts from now on, if it has not so far.
    pub(super) fn open_door(&self) {
        if self.door_is_held {
            self.tell_first(Message::OpenDoor);
        }
    }

    /// A successor serves; whoever is still here has this long, unless the server is draining anyway.
    pub(super) fn drain_for_successor(&self, process: u32, within: Duration) {
        self.replaced.store(true, Ordering::SeqCst);
        self.notify(&[State::MainProcess(process)]);
        if !self.drain_begun.load(Ordering::SeqCst) {
            self.tell_first(Message::Drain { within });
        }
    }
}

/// A panic cannot happen under these locks, and what they guard has no half-done states.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection's place in its server; free again when this is dropped, however that comes about.
pub(crate) struct Admission {
    server: Arc<ServerState>,
    seat: Seat,
    worker: u16,
    listener: u8,
}

/// The listener of who came through none.
const NO_LISTENER: u8 = u8::MAX;

impl Admission {
    fn new(server: Arc<ServerState>, seat: Seat, listener: Option<usize>) -> Admission {
        let worker = server.least_loaded();
        server.counters.accepted.fetch_add(1, Ordering::Relaxed);
        server.connections.fetch_add(1, Ordering::SeqCst);
        server.loads[worker].fetch_add(1, Ordering::Relaxed);
        if let Some(listener) = listener {
            server.listeners[listener].accepted.fetch_add(1, Ordering::Relaxed);
        }
        let listener = listener.map_or(NO_LISTENER, |listener| listener as u8);
        Admission { server, seat, worker: worker as u16, listener }
    }

    /// The worker that is to have the connection.
    pub(crate) fn worker(&self) -> usize {
        self.worker.into()
    }

    /// The proxy has told whom the connection is for.
    pub(crate) fn seat(&mut self, peer: &Address) -> Result<(), Rule> {
        debug_assert_eq!(self.seat, Seat::default(), "it had no place of an address so far");
        self.seat = lock(&self.server.desk).desk.seat(peer)?;
        Ok(())
    }

    /// Which of the server's listeners it came through.
    pub(crate) fn listener(&self) -> Option<usize> {
        (self.listener != NO_LISTENER).then_some(self.listener.into())
    }

    /// The server whose place it is.
    pub(crate) fn server(&self) -> &ServerState {
        &self.server
    }

    /// The connection ended; gives the place back and keeps the books.
    pub(crate) fn closed(self, reason: CloseReason, counts: Counts) {
        let server = &self.server;
        let add = |counter: &AtomicU64, n| counter.fetch_add(n, Ordering::Relaxed);
        add(&server.counters.received, counts.received);
        add(&server.counters.sent, counts.sent);
        add(&server.counters.unsent, counts.unsent);
        if server.drain_begun.load(Ordering::SeqCst) {
            match reason {
                CloseReason::Shutdown => add(&server.counters.reset, 1),
                _ => add(&server.counters.finished, 1),
            };
            add(&server.counters.lost, counts.unsent);
        }
        *lock(&server.closes).entry(reason).or_default() += 1;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.server.loads[self.worker()].fetch_sub(1, Ordering::Relaxed);
        self.server.connections.fetch_sub(1, Ordering::SeqCst);
        let mut reception = lock(&self.server.desk);
        reception.desk.leave(self.seat);
        let awaited = std::mem::take(&mut reception.awaited);
        drop(reception);
        if awaited {
            self.server.tell_first(Message::RoomAgain);
        }
    }
}
