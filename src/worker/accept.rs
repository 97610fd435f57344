//! The door of a server, kept by its first worker: its listeners, and when to accept from them.
//!
//! Each accepted connection goes to the worker that has the fewest (docs/design/accepting.md tells why), if the server's
//! desk lets it in (docs/design/admission.md). An accept loop must neither die nor spin: every error is counted, and those that
//! will not go away by trying again make it pause, 10 ms at first and doubling up to 1 s.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;

use super::member::Member;
use super::{Alarm, Worker};
use crate::address::Address;
use crate::config::OverLimit;
use crate::engine::{Listener, ListenerId, Socket};
use crate::error::Rule;
use crate::server::{ServerEvent, Turnstile};
use crate::time::Time;

pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(10);
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(1);
/// So many errors in a row, each of one connection only, are no accident: a firewall's EPERM can persist.
pub(crate) const ACCIDENTS_MAX: u32 = 16;
/// The most connections that are shed with the reserve descriptor before the next pause.
const SHED_MAX: usize = 64;
/// The most connections that are taken from a listener's backlog before it is closed.
const BACKLOG_MAX: usize = 65_536;

/// The listeners of a server and whether they are accepted from. Those of the other members are empty.
#[derive(Default)]
pub(crate) struct Door {
    /// What is open, by listener.
    open: RefCell<Vec<bool>>,
    state: Cell<State>,
    /// How long to pause after the next accept error.
    pause: Cell<Backoff>,
    /// Errors of one connection in a row.
    accidents: Cell<u32>,
    reserve: RefCell<Option<File>>,
}

#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum State {
    /// This member accepts for nobody, or not any more.
    #[default]
    Shut,
    /// Not open yet: a predecessor still serves.
    Held,
    Accepting,
    /// The server holds as many connections as it may.
    Full,
    /// An error, or the accept rate, makes it wait until then.
    Paused {
        since: Time,
        until: Time,
    },
    Suspended,
}

#[derive(Copy, Clone, Debug)]
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff(PAUSE_MIN)
    }
}

/// What an accept error says about the next attempt (accept(2), "Error handling").
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Only this connection is concerned: the next may do better at once.
    Accident,
    /// The process or the system has no more descriptors or memory.
    Exhausted,
    /// The listener is none any more.
    Gone,
    Other,
}

impl Trouble {
    pub(crate) fn of(error: &io::Error) -> Trouble {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
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
                | Errno::PERM,
            ) => Trouble::Accident,
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Trouble::Exhausted,
            Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK) => Trouble::Gone,
            _ => Trouble::Other,
        }
    }
}

impl Door {
    pub(super) fn open_all(&self, worker: &Worker, listeners: Vec<Listener>) -> io::Result<()> {
        for (index, listener) in listeners.into_iter().enumerate() {
            worker.engine.borrow_mut().listen(ListenerId(index as u32), listener)?;
            self.open.borrow_mut().push(true);
        }
        if !self.open.borrow().is_empty() {
            self.keep_reserve();
            self.state.set(State::Accepting);
        }
        Ok(())
    }

    /// Accepts nobody before [`Member::open_door`].
    pub(super) fn hold_at_first(&self, worker: &Worker) {
        self.hold(worker, State::Held);
    }

    /// A descriptor that can be given up when there are no others.
    fn keep_reserve(&self) {
        let mut reserve = self.reserve.borrow_mut();
        if reserve.is_none() {
            *reserve = File::open("/dev/null").ok();
        }
    }

    /// The listeners that are open.
    fn listeners(&self) -> Vec<ListenerId> {
        let open = self.open.borrow();
        let indices = (0..open.len()).filter(|index| open[*index]);
        indices.map(|index| ListenerId(index as u32)).collect()
    }

    fn is_open(&self, listener: ListenerId) -> bool {
        self.open.borrow().get(listener.0 as usize) == Some(&true)
    }

    fn set_open(&self, listener: ListenerId, open: bool) {
        self.open.borrow_mut()[listener.0 as usize] = open;
    }

    fn hold(&self, worker: &Worker, state: State) {
        self.state.set(state);
        for listener in self.listeners() {
            worker.engine.borrow_mut().pause_accept(listener);
        }
    }

    /// Accepts nothing until then.
    fn hold_until(&self, worker: &Worker, until: Time) {
        self.hold(worker, State::Paused { since: worker.now(), until });
        worker.timers.borrow_mut().insert(until, Alarm::Accept);
    }
}

impl Member {
    /// A listener has accepted a connection.
    pub(crate) fn accepted(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        listener: ListenerId,
        socket: Socket,
        peer: Address,
    ) {
        self.door.pause.set(Backoff::default());
        self.door.accidents.set(0);
        self.let_in(worker, Some(listener), socket, peer);
        if self.door.state.get() == State::Accepting {
            self.pass_turnstile(worker);
        }
    }

    /// The server's handle has brought a connection.
    pub(crate) fn arrived(self: &Rc<Self>, worker: &Rc<Worker>, socket: Socket, peer: Address) {
        // The drain was faster. The others may have ended, so nothing can be given to them.
        if self.is_draining() {
            return socket.refuse(true);
        }
        self.let_in(worker, None, socket, peer);
    }

    /// Lets a connection in, if the rules allow it.
    pub(crate) fn let_in(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        listener: Option<ListenerId>,
        socket: Socket,
        peer: Address,
    ) {
        let listener = listener.map(|listener| listener.0 as usize);
        if self.server.proxy(listener).is_some_and(|proxies| !proxies.trusts(&peer)) {
            return self.refuse(socket, &peer, Rule::Untrusted);
        }
        match self.server.admit(listener, &peer, worker.now()) {
            Ok(admission) => self.give(worker, socket, peer, admission),
            Err(rule) => self.refuse(socket, &peer, rule),
        }
    }

    fn refuse(&self, socket: Socket, peer: &Address, rule: Rule) {
        self.server.count_refusal(rule);
        self.server.tell(&ServerEvent::Refused { peer, rule });
        // A reset leaves nothing behind, neither here nor in the kernel.
        socket.refuse(self.server.over_limit() != OverLimit::Close);
    }

    /// Goes on accepting, or waits for what the rules ask for. Says whether it goes on.
    fn pass_turnstile(&self, worker: &Worker) -> bool {
        match self.server.turnstile(worker.now()) {
            Turnstile::Open => return true,
            Turnstile::Full => self.door.hold(worker, State::Full),
            Turnstile::Until(at) => self.door.hold_until(worker, at),
        }
        false
    }

    /// Goes on accepting if the rules allow it.
    fn go_on(&self, worker: &Worker) {
        self.door.state.set(State::Accepting);
        self.door.keep_reserve();
        if self.pass_turnstile(worker) {
            for listener in self.door.listeners() {
                worker.engine.borrow_mut().resume_accept(listener);
            }
        }
    }

    /// Accepting failed. The engine waits until it is told to go on.
    pub(crate) fn accept_failed(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        listener: ListenerId,
        error: &io::Error,
    ) {
        self.server.count_accept_error();
        match Trouble::of(error) {
            Trouble::Gone => return self.lose(worker, listener, error),
            Trouble::Accident => {
                self.door.accidents.set(self.door.accidents.get() + 1);
                if self.door.accidents.get() <= ACCIDENTS_MAX {
                    worker.engine.borrow_mut().resume_accept(listener);
                    return;
                }
            }
            Trouble::Exhausted => {
                // Whoever leaves gives a descriptor back.
                self.server.await_leave();
                if self.server.over_limit() != OverLimit::Queue {
                    self.shed(worker, listener);
                }
            }
            Trouble::Other => {}
        }
        let Backoff(pause) = self.door.pause.get();
        self.server.tell(&ServerEvent::AcceptFailed { error, pause });
        self.door.pause.set(Backoff((pause * 2).min(PAUSE_MAX)));
        self.door.hold_until(worker, worker.now().after(pause));
    }

    /// Gives the reserve descriptor up for a moment, to tell those who wait that they wait in vain.
    fn shed(&self, worker: &Worker, listener: ListenerId) {
        for _ in 0..SHED_MAX {
            drop(self.door.reserve.take());
            let accepted = worker.engine.borrow_mut().accept_now(listener);
            let Ok(Some((socket, peer))) = accepted else { break };
            self.refuse(socket, &peer, Rule::Descriptors);
            self.door.keep_reserve();
        }
        self.door.keep_reserve();
    }

    fn lose(&self, worker: &Worker, listener: ListenerId, error: &io::Error) {
        self.door.set_open(listener, false);
        drop(worker.engine.borrow_mut().unlisten(listener));
        let address = self.server.lose_listener(listener.0 as usize);
        self.server.tell(&ServerEvent::ListenerLost { address, error });
    }

    /// The time to wait until is over, unless it was moved meanwhile.
    pub(crate) fn retry_accept(&self, worker: &Worker) {
        if let State::Paused { until, .. } = self.door.state.get()
            && until <= worker.now()
        {
            self.go_on(worker);
        }
    }

    /// A connection ended somewhere, or the rules have changed: there may be room for another.
    pub(crate) fn room_again(&self, worker: &Worker) {
        match self.door.state.get() {
            State::Full => self.go_on(worker),
            // A pause for want of descriptors need not last to its end, but a moment, lest it be none.
            State::Paused { since, until } => {
                let soon = since.after(PAUSE_MIN).max(worker.now());
                if soon < until {
                    self.door.hold_until(worker, soon);
                }
            }
            State::Accepting => drop(self.pass_turnstile(worker)),
            State::Shut | State::Held | State::Suspended => {}
        }
    }

    /// There is no memory for another connection.
    pub(crate) fn memory_short(&self, worker: &Worker) {
        if self.door.state.get() == State::Accepting {
            self.pass_turnstile(worker);
        }
    }

    /// Accepts from now on, if it was held so far.
    pub(crate) fn open_door(&self, worker: &Worker) {
        if self.door.state.get() == State::Held {
            self.go_on(worker);
        }
    }

    /// Accepts nobody until it is resumed. Who is connected already comes in first.
    pub(crate) fn suspend(self: &Rc<Self>, worker: &Rc<Worker>, round: u64) {
        let is_shut = matches!(self.door.state.get(), State::Shut | State::Suspended);
        if is_shut || !self.server.is_to_suspend(round) {
            return;
        }
        for id in self.door.listeners() {
            let listener = id.0 as usize;
            if self.server.can_reopen(listener) {
                self.take_backlog(worker, id);
                let close = || {
                    self.door.set_open(id, false);
                    drop(worker.engine.borrow_mut().unlisten(id));
                };
                if !self.server.suspend_listener(round, listener, close) {
                    // It was taken back halfway. That is told by a message, which opens again what is closed.
                    break;
                }
            }
        }
        self.door.hold(worker, State::Suspended);
        self.server.tell(&ServerEvent::Suspended);
    }

    /// Accepts again, on those listeners too that were opened again.
    pub(crate) fn resume(&self, worker: &Worker, reopened: Vec<(ListenerId, Listener)>) {
        if self.door.state.get() != State::Suspended {
            // A drain came first: nothing may stay behind. Or it was never carried out, and there is nothing.
            for (id, listener) in reopened {
                drop(listener);
                self.server.clear_listener(id.0 as usize);
            }
            return;
        }
        for (id, listener) in reopened {
            match worker.engine.borrow_mut().listen(id, listener) {
                Ok(()) => self.door.set_open(id, true),
                Err(error) => {
                    let address = self.server.lose_listener(id.0 as usize);
                    self.server.tell(&ServerEvent::ListenerLost { address, error: &error });
                }
            }
        }
        self.server.tell(&ServerEvent::Resumed);
        self.go_on(worker);
    }

    /// Closes all listeners for good, after those who are connected already came in; but for whom another process accepts,
    /// a successor, or a predecessor that goes on. Says whether it was open.
    pub(super) fn shut_door(self: &Rc<Self>, worker: &Rc<Worker>) -> bool {
        let state = self.door.state.get();
        if state == State::Shut {
            return false;
        }
        for listener in self.door.listeners() {
            if state != State::Held && !self.server.is_promised(listener.0 as usize) {
                self.take_backlog(worker, listener);
            }
            self.door.set_open(listener, false);
            drop(worker.engine.borrow_mut().unlisten(listener));
        }
        // Also what those have left that were closed before.
        self.server.clear_listeners();
        self.door.state.set(State::Shut);
        drop(self.door.reserve.take());
        true
    }

    /// Accepts whom the kernel has connected already: closing the listener would reset them. Whom the rules would
    /// leave in the queue is reset by that.
    fn take_backlog(self: &Rc<Self>, worker: &Rc<Worker>, listener: ListenerId) {
        for _ in 0..BACKLOG_MAX {
            if self.server.turnstile(worker.now()) != Turnstile::Open || !self.door.is_open(listener) {
                return;
            }
            let accepted = worker.engine.borrow_mut().accept_now(listener);
            match accepted {
                Ok(Some((socket, peer))) => self.let_in(worker, Some(listener), socket, peer),
                Err(error) if Trouble::of(&error) == Trouble::Accident => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}
