//! What the workers of one server share: counts, mailboxes, and each connection's place.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::config::Backend;
use crate::conn::Counts;
use crate::engine::Engine;
use crate::error::CloseReason;
use crate::worker::memory::Budget;
use crate::worker::{Message, Post};

/// What the workers of one server share with each other and with its handles.
pub(crate) struct ServerState {
    pub(super) local: SocketAddr,
    pub(super) connections_max: usize,
    /// What the connections' buffers take.
    pub(crate) memory: Arc<Budget>,
    pub(super) connections: AtomicUsize,
    /// Connections of each worker, those on their way to it included.
    pub(super) loads: Vec<AtomicUsize>,
    /// The engine of each worker; unset in a simulation.
    backends: Vec<OnceLock<Backend>>,
    pub(super) posts: OnceLock<Vec<Post>>,
    /// The limit was reached: whoever makes room must say so.
    pub(super) full: AtomicBool,
    pub(super) accepted: AtomicU64,
    pub(super) accept_errors: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) unsent: AtomicU64,
    pub(super) closes: Mutex<HashMap<CloseReason, u64>>,
    pub(super) workers_left: Mutex<usize>,
    pub(super) ended: Condvar,
    pub(super) crashed: AtomicBool,
    /// The first worker has passed a drain on, and hands nothing over any more.
    pub(crate) draining: AtomicBool,
    pub(super) simulated: bool,
}

impl ServerState {
    pub(super) fn new(
        local: SocketAddr,
        connections_max: usize,
        memory_max: Option<usize>,
        workers: usize,
        simulated: bool,
    ) -> Arc<ServerState> {
        Arc::new(ServerState {
            local,
            connections_max,
            memory: Arc::new(Budget::new(memory_max)),
            connections: AtomicUsize::new(0),
            loads: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            backends: (0..workers).map(|_| OnceLock::new()).collect(),
            posts: OnceLock::new(),
            full: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            accept_errors: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            closes: Mutex::default(),
            workers_left: Mutex::new(workers),
            ended: Condvar::new(),
            crashed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            simulated,
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

    /// Tells the worker that accepts. One that is gone needs to know nothing.
    pub(super) fn tell_first(&self, message: Message) {
        if let Some(first) = self.post(0) {
            drop(first.send(message));
        }
    }

    /// The worker with the fewest connections.
    pub(crate) fn least_loaded(&self) -> usize {
        (0..self.loads.len()).min_by_key(|worker| self.load(*worker)).unwrap_or(0)
    }

    pub(crate) fn is_full(&self) -> bool {
        let full = self.connections.load(Ordering::SeqCst) >= self.connections_max;
        self.full.store(full, Ordering::SeqCst);
        // A connection that ended between the two looks may not have seen the flag.
        full && self.connections.load(Ordering::SeqCst) >= self.connections_max
    }

    /// Whether the memory budget is spent, so that there is none for another connection.
    pub(crate) fn memory_is_short(&self) -> bool {
        self.memory.is_short()
    }

    /// Memory has become short: workers that sleep on idle buffers have to free them. Or it is no longer.
    pub(crate) fn memory_changed(&self, short: bool) {
        if !short {
            return self.tell_first(Message::ResumeAccept);
        }
        for post in self.posts() {
            drop(post.send(Message::MemoryShort));
        }
    }

    pub(crate) fn count_accept_error(&self) {
        self.accept_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn worker_left(&self) {
        *lock(&self.workers_left) -= 1;
        self.ended.notify_all();
    }
}

/// A panic cannot happen under these locks, and what they guard has no half-done states.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection's place in its server; free again when this is dropped, however that comes about.
pub(crate) struct Admission {
    server: Arc<ServerState>,
    worker: usize,
}

impl Admission {
    pub(crate) fn new(server: Arc<ServerState>, worker: usize) -> Admission {
        server.accepted.fetch_add(1, Ordering::Relaxed);
        server.connections.fetch_add(1, Ordering::SeqCst);
        server.loads[worker].fetch_add(1, Ordering::Relaxed);
        Admission { server, worker }
    }

    /// The connection ended; gives the place back and keeps the books.
    pub(crate) fn closed(self, reason: CloseReason, counts: Counts) {
        let server = &self.server;
        server.received.fetch_add(counts.received, Ordering::Relaxed);
        server.sent.fetch_add(counts.sent, Ordering::Relaxed);
        server.unsent.fetch_add(counts.unsent, Ordering::Relaxed);
        *lock(&server.closes).entry(reason).or_default() += 1;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.server.loads[self.worker].fetch_sub(1, Ordering::Relaxed);
        self.server.connections.fetch_sub(1, Ordering::SeqCst);
        if self.server.full.swap(false, Ordering::SeqCst) {
            self.server.tell_first(Message::ResumeAccept);
        }
    }
}
