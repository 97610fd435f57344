//! Whom a server tells what happens to it: [`ServerEvent`] and those who listen to it.

use std::any::Any;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Stats;
use super::state::lock;
use crate::address::Address;
use crate::conn::Counts;
use crate::error::{CloseReason, Rule};
use crate::worker::link::ConnectionId;

/// Something that has happened to a server, as [`Server::watch`](crate::Server::watch) tells it.
///
/// Prints as one line.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServerEvent<'a> {
    /// A connection was let in, and its handler is about to see it; behind a proxy, when it has told whom it is for.
    #[non_exhaustive]
    Opened {
        /// Names the connection.
        id: ConnectionId,
        /// The other end.
        peer: &'a Address,
    },
    /// A connection that was opened has ended. Told once for each.
    #[non_exhaustive]
    Closed {
        /// Names the connection.
        id: ConnectionId,
        /// The other end.
        peer: &'a Address,
        /// Why it ended.
        reason: CloseReason,
        /// What went through it.
        counts: Counts,
    },
    /// A connection was refused.
    #[non_exhaustive]
    Refused {
        /// The other end.
        peer: &'a Address,
        /// What kept it out.
        rule: Rule,
    },
    /// The TLS handshake of a new connection failed, or was not done in time. No handler has seen it, and neither
    /// [`Opened`](ServerEvent::Opened) nor [`Closed`](ServerEvent::Closed) is told of it.
    #[non_exhaustive]
    HandshakeFailed {
        /// The other end.
        peer: &'a Address,
        /// Why.
        reason: CloseReason,
        /// In words what exactly was wrong: dates, names, issuers. May be empty.
        detail: &'a str,
    },
    /// A handler panicked; its connection is reset.
    #[non_exhaustive]
    Panicked {
        /// Names the connection.
        id: ConnectionId,
        /// The other end.
        peer: &'a Address,
        /// The panic's message.
        message: &'a str,
    },
    /// A worker does not turn: a handler has kept it for so long already.
    #[non_exhaustive]
    WorkerBlocked {
        /// Which of the workers.
        worker: usize,
        /// The time since it turned.
        lasted: Duration,
    },
    /// The handler that had blocked its worker has returned.
    #[non_exhaustive]
    HandlerBlocked {
        /// Names the handler's connection.
        id: ConnectionId,
        /// The other end.
        peer: &'a Address,
        /// For how long it kept the worker, at least.
        lasted: Duration,
    },
    /// Accepting failed in a way that trying again at once will not mend; the server pauses.
    #[non_exhaustive]
    AcceptFailed {
        /// What accept(2) said.
        error: &'a io::Error,
        /// For how long it pauses at most.
        pause: Duration,
    },
    /// A listener is gone and will not come back. The others go on.
    #[non_exhaustive]
    ListenerLost {
        /// Where it listened.
        address: &'a Address,
        /// What accept(2) said.
        error: &'a io::Error,
    },
    /// Its connections hold more than [`Limits::memory`](crate::Limits::memory): they do with less, and nobody comes in.
    #[non_exhaustive]
    MemoryShort {
        /// What they hold, in bytes.
        used: usize,
    },
    /// Memory is enough again.
    #[non_exhaustive]
    MemoryEnough {
        /// What its connections hold, in bytes.
        used: usize,
    },
    /// It accepts nobody until it is resumed.
    #[non_exhaustive]
    Suspended,
    /// It accepts again.
    #[non_exhaustive]
    Resumed,
    /// A successor serves in its place, and has its listeners ([`Server::handover`](crate::Server::handover)); it is about to
    /// drain.
    #[non_exhaustive]
    HandedOver {
        /// The successor's process.
        process: u32,
    },
    /// It accepts nobody any more, and ends what has not ended by itself within this time.
    #[non_exhaustive]
    Draining {
        /// The time that connections have.
        within: Duration,
    },
}

impl fmt::Display for ServerEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerEvent::Opened { id, peer } => write!(f, "{peer} ({id}): connected"),
            ServerEvent::Closed { id, peer, reason, counts } => write!(
                f,
                "{peer} ({id}): {reason}; received {}, sent {}, unsent {}",
                counts.received, counts.sent, counts.unsent
            ),
            ServerEvent::Refused { peer, rule } => write!(f, "{peer}: refused: {rule}"),
            ServerEvent::HandshakeFailed { peer, reason, detail: "" } => {
                write!(f, "{peer}: handshake failed: {reason}")
            }
            ServerEvent::HandshakeFailed { peer, reason, detail } => {
                write!(f, "{peer}: handshake failed: {reason}: {detail}")
            }
            ServerEvent::Panicked { id, peer, message } => {
                write!(f, "{peer} ({id}): handler panicked: {message}")
            }
            ServerEvent::WorkerBlocked { worker, lasted } => {
                write!(f, "worker {worker} has been blocked by a handler for {lasted:?}")
            }
            ServerEvent::HandlerBlocked { id, peer, lasted } => {
                write!(f, "{peer} ({id}): handler blocked its worker for {lasted:?}")
            }
            ServerEvent::AcceptFailed { error, pause } => {
                write!(f, "accepting failed, pausing for {pause:?}: {error}")
            }
            ServerEvent::ListenerLost { address, error } => write!(f, "listener {address} is gone: {error}"),
            ServerEvent::MemoryShort { used } => write!(f, "memory is short: {used} bytes are used"),
            ServerEvent::MemoryEnough { used } => write!(f, "memory is enough again: {used} bytes are used"),
            ServerEvent::Suspended => f.write_str("suspended"),
            ServerEvent::Resumed => f.write_str("resumed"),
            ServerEvent::HandedOver { process } => write!(f, "handed over to process {process}"),
            ServerEvent::Draining { within } => write!(f, "draining for at most {within:?}"),
        }
    }
}

type Watcher = dyn Fn(&ServerEvent<'_>) + Send + Sync;
type OnExit = Box<dyn FnOnce(&Stats) + Send>;

/// The user's functions that a server calls besides its handlers.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    watcher: Option<Arc<Watcher>>,
    on_exit: Arc<Mutex<Option<OnExit>>>,
}

impl Hooks {
    pub(crate) fn set_watcher(&mut self, watcher: impl Fn(&ServerEvent<'_>) + Send + Sync + 'static) {
        self.watcher = Some(Arc::new(watcher));
    }

    pub(crate) fn set_on_exit(&mut self, on_exit: impl FnOnce(&Stats) + Send + 'static) {
        self.on_exit = Arc::new(Mutex::new(Some(Box::new(on_exit))));
    }

    /// A panic of the watcher is the end of that call and of nothing else.
    pub(crate) fn tell(&self, event: &ServerEvent<'_>) {
        #[cfg(feature = "tracing")]
        trace(event);
        if let Some(watcher) = &self.watcher {
            drop(catch_unwind(AssertUnwindSafe(|| watcher(event))));
        }
    }

    /// The server has ended. Only the first call tells anybody.
    pub(crate) fn ended(&self, stats: &Stats) {
        let on_exit = lock(&self.on_exit).take();
        if let Some(on_exit) = on_exit {
            drop(catch_unwind(AssertUnwindSafe(|| on_exit(stats))));
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").field("watcher", &self.watcher.is_some()).finish_non_exhaustive()
    }
}

/// What a panic says.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(a panic without a message)")
}

/// The same for the program's `tracing` subscriber.
#[cfg(feature = "tracing")]
fn trace(event: &ServerEvent<'_>) {
    match event {
        ServerEvent::Opened { id, peer } => event!(debug, %peer, %id, "connection accepted"),
        ServerEvent::Closed { id, peer, reason, counts } => event!(debug, %peer, %id, %reason,
            received = counts.received, sent = counts.sent, unsent = counts.unsent, "connection closed"),
        ServerEvent::Refused { peer, rule } => event!(debug, %peer, %rule, "connection refused"),
        ServerEvent::HandshakeFailed { peer, reason, detail } => {
            event!(debug, %peer, %reason, detail, "TLS handshake failed");
        }
        ServerEvent::Panicked { id, peer, message } => {
            event!(error, %peer, %id, message, "handler panicked");
        }
        ServerEvent::WorkerBlocked { worker, lasted } => {
            event!(warn, worker, ?lasted, "a handler blocks its worker");
        }
        ServerEvent::HandlerBlocked { id, peer, lasted } => {
            event!(warn, %peer, %id, ?lasted, "handler blocked its worker");
        }
        ServerEvent::AcceptFailed { error, pause } => {
            event!(warn, %error, ?pause, "accepting failed; pausing");
        }
        ServerEvent::ListenerLost { address, error } => event!(error, %address, %error, "a listener is gone"),
        ServerEvent::MemoryShort { used } => event!(warn, used, "memory is short"),
        ServerEvent::MemoryEnough { used } => event!(info, used, "memory is enough again"),
        ServerEvent::Suspended => event!(info, "suspended"),
        ServerEvent::Resumed => event!(info, "resumed"),
        ServerEvent::HandedOver { process } => event!(info, process, "handed over"),
        ServerEvent::Draining { within } => event!(info, ?within, "draining"),
    }
}
