//! A worker as a member of its server: taking connections over, and draining.
//!
//! Accepting is the first member's business (`accept.rs`); each takes over what is given to it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::accept::Door;
use super::link::Link;
use super::{Alarm, Message, Worker};
use crate::address::Address;
use crate::conn::{Counts, Profile};
use crate::engine::{Listener, Socket};
use crate::error::{CloseReason, Rule};
use crate::server::{Admission, ServerEvent, ServerState, Whom};

/// Enough for handlers to be told of the end, and not for more.
const LAST_TURNS: u32 = 16;

/// Puts a handler on a new connection.
pub(crate) type Attach = Arc<dyn Fn(&Rc<Worker>, &Rc<Link>, HandlerCount) + Send + Sync>;

pub(crate) struct Member {
    pub(super) server: Arc<ServerState>,
    index: usize,
    /// What the next connections get.
    profile: RefCell<Rc<Profile>>,
    attach: Attach,
    pub(super) door: Door,
    drain: Cell<Drain>,
    /// Turns that tasks may still have when all connections are gone after the drain deadline.
    turns_left: Cell<u32>,
    handlers: Rc<Cell<usize>>,
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

impl Member {
    /// The member `index` of a server; the first gets its listeners.
    pub(crate) fn new(
        server: Arc<ServerState>,
        index: usize,
        profile: Rc<Profile>,
        attach: Attach,
    ) -> Rc<Member> {
        Rc::new(Member {
            server,
            index,
            profile: RefCell::new(profile),
            attach,
            door: Door::default(),
            drain: Cell::new(Drain::No),
            turns_left: Cell::new(LAST_TURNS),
            handlers: Rc::default(),
        })
    }

    /// From now on new connections get what is in force now.
    pub(super) fn configure(&self, worker: &Worker) {
        *self.profile.borrow_mut() = worker.profile(&self.server.limits(), &self.server.deadlines());
    }

    /// Gives a connection that was let in to the worker whose it is to be.
    pub(super) fn give(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        socket: Socket,
        peer: Address,
        admission: Admission,
    ) {
        let target = admission.worker();
        if target == self.index {
            return self.adopt(worker, socket, &peer, admission);
        }
        // A worker that is gone gives the message back, and the socket is closed.
        if let Some(post) = self.server.post(target)
            && let Err(Message::Adopt { admission, .. }) =
                post.send(Message::Adopt { socket, peer, admission })
        {
            admission.closed(CloseReason::Shutdown, Counts::default());
        }
    }

    /// Memory has become short, or is no longer: others have to do their part, or may go on.
    pub(super) fn memory_changed(&self, short: bool) {
        let used = self.server.memory.used();
        self.server.tell(&if short {
            ServerEvent::MemoryShort { used }
        } else {
            ServerEvent::MemoryEnough { used }
        });
        self.server.memory_changed(short);
    }

    /// Makes a connection that was let in one of this worker's.
    pub(crate) fn adopt(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        socket: Socket,
        peer: &Address,
        admission: Admission,
    ) {
        let profile = self.profile.borrow().clone();
        let link = match worker.open(socket, peer.clone(), &profile) {
            Ok(link) => link,
            Err(error) => {
                self.server.count_accept_error();
                event!(warn, %peer, %error, "an accepted connection could not be opened");
                return admission.closed(CloseReason::Network(error.kind()), Counts::default());
            }
        };
        let proxies = self.server.proxy(admission.listener());
        link.admit(admission);
        let count = HandlerCount::new(&self.handlers);
        match proxies {
            None => self.secure(worker, &link, count),
            Some(proxies) => {
                let member = self.clone();
                let begin = move |worker: &Rc<Worker>, link: &Rc<Link>| match link.seat() {
                    Ok(()) => member.secure(worker, link, count),
                    Err(rule) => member.turn_away(link, rule),
                };
                worker.await_proxy_header(&link, proxies, Box::new(begin));
            }
        }
        if self.drain.get() == Drain::GaveUp {
            link.command(|conn| conn.reset(CloseReason::Shutdown));
        }
    }

    /// Resets a connection that was let in, and for which there is no place after all.
    pub(crate) fn turn_away(&self, link: &Rc<Link>, rule: Rule) {
        self.server.count_refusal(rule);
        self.server.tell(&ServerEvent::Refused { peer: &link.peer(), rule });
        link.command(|conn| conn.reset(CloseReason::Refused(rule)));
    }

    /// Has TLS stand on a connection, if its listener asks for that, before the handler begins.
    fn secure(self: &Rc<Self>, worker: &Rc<Worker>, link: &Rc<Link>, count: HandlerCount) {
        #[cfg(feature = "tls")]
        if let Some(acceptor) = self.server.acceptor(link.listener()) {
            let member = self.clone();
            let begin = move |worker: &Rc<Worker>, link: &Rc<Link>| member.begin(worker, link, count);
            return worker.await_tls(link, acceptor, Box::new(begin));
        }
        self.begin(worker, link, count);
    }

    /// Puts the handler on a connection.
    fn begin(&self, worker: &Rc<Worker>, link: &Rc<Link>, count: HandlerCount) {
        link.tell_opened();
        (self.attach)(worker, link, count);
        if self.drain.get() != Drain::No {
            worker.tell_draining(link);
        }
    }

    /// Stops accepting, tells every handler, and sets the deadline. The listeners go first, so that a client that
    /// comes late is refused at once and can go elsewhere.
    pub(crate) fn drain(self: &Rc<Self>, worker: &Rc<Worker>, within: Duration) {
        if self.index == 0 {
            self.server.drain_begun.store(true, Ordering::SeqCst);
            if self.shut_door(worker) {
                self.server.notify_of_drain();
                self.server.tell(&ServerEvent::Draining { within });
            }
            // The others learn it from here, behind the last connection that this worker handed to them.
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
            worker.keep_none();
            for link in worker.slots.all() {
                worker.tell_draining(&link);
            }
        }
    }

    /// Has the other workers send away whom this one did: behind the last connection that it handed to them.
    pub(super) fn pass_on(&self, whom: Whom) {
        if self.index == 0 {
            for other in self.server.posts().iter().skip(1) {
                drop(other.send(Message::Disconnect { whom }));
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

    /// The worker has crashed, and is about to end: its server does without it.
    pub(crate) fn abandon(self: &Rc<Self>, worker: &Rc<Worker>) {
        self.server.worker_crashed(self.index);
        if self.shut_door(worker) {
            self.server.lose_all_listeners();
        }
        // From now on everybody is told that nobody reads them.
        for message in worker.post.close() {
            if let Message::Adopt { admission, .. } = message {
                admission.closed(CloseReason::Shutdown, Counts::default());
            }
        }
    }

    pub(crate) fn server(&self) -> &ServerState {
        &self.server
    }

    /// Which of the server's workers it is.
    pub(crate) fn index(&self) -> usize {
        self.index
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

    /// Starts accepting on the server's listeners, in their order.
    pub(crate) fn listen(&self, worker: &Worker, listeners: Vec<Listener>) -> std::io::Result<()> {
        self.door.open_all(worker, listeners)?;
        if self.server.door_is_held {
            self.door.hold_at_first(worker);
        }
        Ok(())
    }
}
