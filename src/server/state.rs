//! What the workers of one server share with each other and with its handles: [`ServerState`]. What they do with a part of
//! it stands where that part is.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

use super::counters::Counters;
use super::ending::Ending;
use super::handover::Succession;
use super::holdings::ListenerState;
use super::hooks::{Hooks, ServerEvent};
use super::notices::Notices;
use super::reception::Reception;
use super::suspension::Suspension;
use crate::address::Address;
use crate::config::{Access, Backend, Deadlines, Limits, ProxyProtocol, SocketOptions};
use crate::engine::Engine;
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
    pub(super) reception: Mutex<Reception>,
    deadlines: Mutex<Deadlines>,
    /// Connections of each worker, those on their way to it included.
    pub(super) loads: Vec<AtomicUsize>,
    /// Whether each worker turns.
    pub(super) pulses: Vec<Arc<Pulse>>,
    /// The engine of each worker; unset in a simulation.
    backends: Vec<OnceLock<Backend>>,
    posts: OnceLock<Vec<Post>>,
    pub(super) counters: Counters,
    pub(super) workers_running: AtomicUsize,
    pub(super) workers_left: Mutex<usize>,
    pub(super) ended: Condvar,
    pub(super) crashed: AtomicBool,
    pub(super) ending: Ending,
    /// The start has failed, and its end is told to nobody.
    pub(super) start_failed: AtomicBool,
    /// The thread of the last worker, on which its end is told.
    pub(super) last_thread: OnceLock<ThreadId>,
    /// A drain has begun: how connections end is reported.
    pub(crate) drain_begun: AtomicBool,
    /// The first worker hands nothing over any more: it has passed a drain on, or has crashed.
    pub(crate) draining: AtomicBool,
    pub(super) suspension: Mutex<Suspension>,
    pub(super) simulated: bool,
    pub(super) notices: Notices,
    /// There may be a successor, who would want copies of the listeners.
    pub(super) keeps_copies: bool,
    /// Nobody is accepted before the predecessor has been told that we serve.
    pub(crate) door_is_held: bool,
    pub(super) succession: Succession,
    hooks: Hooks,
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
            reception: Mutex::new(Reception::new(access, limits, connections_max)),
            deadlines: Mutex::new(deadlines),
            loads: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            pulses: (0..workers).map(|_| Arc::default()).collect(),
            backends: (0..workers).map(|_| OnceLock::new()).collect(),
            posts: OnceLock::new(),
            counters: Counters::default(),
            workers_running: AtomicUsize::new(workers),
            workers_left: Mutex::new(workers),
            ended: Condvar::new(),
            crashed: AtomicBool::new(false),
            ending: Ending::new(workers),
            start_failed: AtomicBool::new(false),
            last_thread: OnceLock::new(),
            drain_begun: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            suspension: Mutex::default(),
            simulated,
            keeps_copies,
            notices: Notices::new(notifies),
            door_is_held,
            succession: Succession::default(),
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

    /// Tells every worker but the first.
    pub(super) fn tell_others(&self, message: impl Fn() -> Message) {
        for other in self.posts().iter().skip(1) {
            drop(other.send(message()));
        }
    }

    /// The worker with the fewest connections, of those that are there and that no handler blocks.
    pub(super) fn least_loaded(&self) -> usize {
        (0..self.loads.len())
            .min_by_key(|worker| {
                (self.has_crashed(*worker), self.pulses[*worker].is_blocked(), self.load(*worker))
            })
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

    /// Tells whoever waits for the server's end.
    pub(super) fn tell_of_end(&self) {
        self.hooks.ended(&self.stats());
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

    /// Whether connections through a listener begin with TLS.
    pub(super) fn is_tls(&self, listener: usize) -> bool {
        #[cfg(feature = "tls")]
        let is_tls = self.acceptor(Some(listener)).is_some();
        #[cfg(not(feature = "tls"))]
        let is_tls = {
            let _ = listener;
            false
        };
        is_tls
    }
}

/// A panic cannot happen under these locks, and what they guard has no half-done states.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
