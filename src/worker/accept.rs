//! A worker's share of its server: accepting, taking connections over, and draining.
//!
//! The first worker of a server holds its listener and gives each accepted connection to the worker that has the fewest
//! (docs/design/accepting.md tells why). An accept loop must neither die nor spin: every error is counted, and those
//! that will not go away by trying again make it pause, 10 ms at first and doubling up to 1 s.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::io::Errno;

use super::link::Link;
use super::{Alarm, Message, Worker};
use crate::address::Address;
use crate::conn::Profile;
use crate::engine::{Listener, ListenerId, Socket};
use crate::error::CloseReason;
use crate::server::{Admission, ServerState};

const LISTENER: ListenerId = ListenerId(0);
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Enough for handlers to be told of the end, and not for more.
const LAST_TURNS: u32 = 16;

/// Puts a handler on a new connection.
pub(crate) type Attach = Arc<dyn Fn(&Rc<Worker>, &Rc<Link>, HandlerCount) + Send + Sync>;

pub(crate) struct Acceptor {
    server: Arc<ServerState>,
    index: usize,
    profile: Rc<Profile>,
    attach: Attach,
    accepting: Cell<Accepting>,
    /// How long to pause after the next accept error.
    pause: Cell<Duration>,
    drain: Cell<Drain>,
    /// Turns that tasks may still have when all connections are gone after the drain deadline.
    turns_left: Cell<u32>,
    handlers: Rc<Cell<usize>>,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Accepting {
    /// This worker has no listener, or none any more.
    No,
    Yes,
    /// The server holds as many connections as it may.
    Full,
    /// An error makes it wait.
    Paused,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Drain {
    No,
    Draining,
    /// The deadline has passed; what was left was reset.
    GaveUp,
}

/// Counts one running handler for as long as it lives.
pub(crate) struct HandlerCount(Rc<Cell<usize>>);

impl HandlerCount {
    fn new(count: &Rc<Cell<usize>>) -> HandlerCount {
        count.set(count.get() + 1);
        HandlerCount(count.clone())
    }
}

impl Drop for HandlerCount {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Acceptor {
    pub(crate) fn new(
        server: Arc<ServerState>,
        index: usize,
        profile: Rc<Profile>,
        attach: Attach,
    ) -> Rc<Acceptor> {
        Rc::new(Acceptor {
            server,
            index,
            profile,
            attach,
            accepting: Cell::new(Accepting::No),
            pause: Cell::new(PAUSE_MIN),
            drain: Cell::new(Drain::No),
            turns_left: Cell::new(LAST_TURNS),
            handlers: Rc::default(),
        })
    }

    pub(crate) fn listen(&self, worker: &Worker, listener: Listener) -> io::Result<()> {
        worker.listen(LISTENER, listener)?;
        self.accepting.set(Accepting::Yes);
        Ok(())
    }

    /// A connection was accepted here: the worker with the fewest connections gets it.
    pub(crate) fn accepted(&self, worker: &Rc<Worker>, listener: ListenerId, socket: Socket, peer: Address) {
        debug_assert_eq!(listener, LISTENER, "there is one listener");
        self.pause.set(PAUSE_MIN);
        let target = self.server.least_loaded();
        let admission = Admission::new(self.server.clone(), target);
        if self.server.is_full() && self.accepting.get() == Accepting::Yes {
            self.accepting.set(Accepting::Full);
            worker.engine.borrow_mut().pause_accept(LISTENER);
        }
        if target == self.index {
            return self.adopt(worker, socket, peer, admission);
        }
        // A worker that is gone drops the message, and with it the socket and its admission.
        if let Some(post) = self.server.post(target) {
            drop(post.send(Message::Adopt { socket, peer, admission }));
        }
    }

    /// Makes an accepted connection one of this worker's.
    pub(crate) fn adopt(&self, worker: &Rc<Worker>, socket: Socket, peer: Address, admission: Admission) {
        let link = match worker.open(socket, peer.clone(), &self.profile) {
            Ok(link) => link,
            Err(error) => {
                self.server.count_accept_error();
                event!(warn, %peer, %error, "an accepted connection could not be opened");
                let _ = error;
                return;
            }
        };
        event!(debug, %peer, worker = self.index, "connection accepted");
        link.admit(admission);
        (self.attach)(worker, &link, HandlerCount::new(&self.handlers));
        if self.drain.get() != Drain::No {
            worker.tell_draining(&link);
        }
        if self.drain.get() == Drain::GaveUp {
            link.command(|conn| conn.reset(CloseReason::Shutdown));
        }
    }

    pub(crate) fn failed(&self, worker: &Worker, listener: ListenerId, error: &io::Error) {
        self.server.count_accept_error();
        if is_of_one_connection(error) {
            worker.engine.borrow_mut().resume_accept(listener);
            return;
        }
        let pause = self.pause.get();
        event!(warn, %error, ?pause, "accepting failed; pausing");
        self.pause.set((pause * 2).min(PAUSE_MAX));
        self.accepting.set(Accepting::Paused);
        let at = worker.now().after(pause);
        worker.timers.borrow_mut().insert(at, Alarm::ResumeAccept(listener));
    }

    /// The pause after an error is over.
    pub(crate) fn retry(&self, worker: &Worker, listener: ListenerId) {
        if self.accepting.get() == Accepting::Paused {
            self.accepting.set(Accepting::Yes);
            worker.engine.borrow_mut().resume_accept(listener);
        }
    }

    /// A connection ended somewhere: there may be room for another.
    pub(crate) fn resume(&self, worker: &Worker) {
        if self.accepting.get() == Accepting::Full && !self.server.is_full() {
            self.accepting.set(Accepting::Yes);
            worker.engine.borrow_mut().resume_accept(LISTENER);
        }
    }

    /// Memory has become short, or is no longer: others have to do their part, or may go on.
    pub(super) fn memory_changed(&self, short: bool) {
        event!(info, short, used = self.server.memory.used(), "the memory budget is spent, or no longer");
        self.server.memory_changed(short);
    }

    /// Stops accepting, tells every handler, and sets the deadline. The listener goes first, so that a client that
    /// comes late is refused at once and can go elsewhere.
    pub(crate) fn drain(&self, worker: &Rc<Worker>, within: Duration) {
        if self.accepting.replace(Accepting::No) != Accepting::No {
            worker.engine.borrow_mut().unlisten(LISTENER);
            event!(info, ?within, "draining");
        }
        // The others learn it from here, behind the last connection that this worker handed to them.
        if self.index == 0 {
            for other in self.server.posts().iter().skip(1) {
                drop(other.send(Message::Drain { within }));
            }
            self.server.draining.store(true, Ordering::SeqCst);
        }
        if within.is_zero() {
            return self.give_up(worker);
        }
        let at = worker.now().after(within);
        worker.timers.borrow_mut().insert(at, Alarm::Drain);
        if self.drain.get() == Drain::No {
            self.drain.set(Drain::Draining);
            for link in worker.slots.all() {
                worker.tell_draining(&link);
            }
        }
    }

    /// The drain deadline has passed: what is left is reset.
    pub(crate) fn give_up(&self, worker: &Rc<Worker>) {
        self.drain.set(Drain::GaveUp);
        for link in worker.slots.all() {
            link.command(|conn| conn.reset(CloseReason::Shutdown));
        }
    }

    /// Whether the worker has nothing left to do for its server.
    pub(crate) fn is_done(&self, worker: &Worker) -> bool {
        match self.drain.get() {
            Drain::No => false,
            Drain::Draining => worker.slots.is_empty() && self.handlers.get() == 0 && !worker.has_work(),
            // Handlers may go on to use connections of their own; they end here.
            Drain::GaveUp if self.server.load(self.index) > 0 => false,
            Drain::GaveUp => {
                let left = self.turns_left.get().saturating_sub(1);
                self.turns_left.set(left);
                left == 0 || !worker.has_work()
            }
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.get() != Drain::No
    }
}

/// Whether an accept error concerns only the connection that was to be accepted, so that the next may do better at once
/// (accept(2), "Error handling").
fn is_of_one_connection(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        errno,
        Some(
            Errno::CONNABORTED
                | Errno::INTR
                | Errno::PROTO
                | Errno::NETDOWN
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::OPNOTSUPP
                | Errno::NETUNREACH
                | Errno::PERM
        )
    )
}
