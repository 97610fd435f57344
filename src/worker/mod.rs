//! One thread's worth of connections: the loop that turns an engine's completions into what handlers see.
//!
//! # One turn
//!
//! ```text
//!   mailbox -> ready tasks -> dirty connections -> passed deadlines
//!        -> engine.wait (one system call) -> each completion -> [tasks, dirty] every 32 -> tasks -> dirty
//! ```
//!
//! Handlers never touch the engine. What they ask for stays in their connection, which is marked dirty; the worker
//! carries it out when they have returned, so what one call sends leaves together, and no handler can be called within
//! another. After `Handler::received` that is at once, while the connection is warm; otherwise it is in the next pass. A pass
//! over tasks or dirty connections takes those that are there when it begins: what they cause waits for the next pass, after
//! the engine was looked at again, so nobody can keep the loop for himself.
//!
//! A worker without an operating system works the same way: the simulation calls [`Worker::turn`] instead of a thread.

pub(crate) mod accept;
mod events;
mod handshakes;
mod keepers;
pub(crate) mod link;
pub(crate) mod mailbox;
pub(crate) mod member;
pub(crate) mod memory;
mod parking;
pub(crate) mod preface;
pub(crate) mod pulse;
mod registry;
#[cfg(feature = "tls")]
pub(crate) mod secure;
pub(crate) mod slots;
pub(crate) mod tasks;
pub(crate) mod timer;

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::address::Address;
use crate::config::{Deadlines, Limits, SocketOptions};
use crate::conn::{Conn, Profile};
use crate::engine::buffer::PiecePool;
use crate::engine::{Completion, Engine, Listener, ListenerId, Socket, Token};
use crate::error::CloseReason;
use crate::server::{Admission, Reply, ServerEvent, Whom};
use crate::time::Time;

use handshakes::Handshakes;
pub(crate) use keepers::Keeper;
use keepers::Keepers;
use link::Link;
use mailbox::Mailbox;
use member::Member;
use memory::Budget;
use parking::Parking;
use pulse::Pulse;
use slots::Slots;
use tasks::{TaskId, Tasks, Wakeup};
use timer::Wheel;

/// After so many completions what they caused is carried out, while it is still warm.
const BATCH: usize = 32;
/// The same after so many received bytes: more would push each other out of the caches.
const BATCH_BYTES: usize = 64 * 1024;
/// How long a worker that failed to wait for its engine pauses before it tries again. There is nothing to wait for that
/// would tell of memory, and without a pause it would spin.
const WAIT_RETRY: Duration = Duration::from_millis(10);

/// How other threads reach a worker.
pub(crate) type Post = Arc<Mailbox<Message>>;

/// What other threads, and other workers, tell a worker.
pub(crate) enum Message {
    Wake(TaskId),
    /// Do this on the worker's thread.
    Run(Box<Errand>),
    /// Take over an accepted connection.
    Adopt {
        socket: Socket,
        peer: Address,
        admission: Admission,
    },
    Send {
        token: Token,
        bytes: Bytes,
    },
    Close {
        token: Token,
    },
    Reset {
        token: Token,
        reason: CloseReason,
    },
    /// Memory is short: whoever reads this turns, and accounts for itself; who accepts, waits.
    MemoryShort,
    /// There may be room for connections again.
    RoomAgain,
    /// Make a connected socket one of the server's connections, if the rules allow it.
    Arrive {
        socket: Socket,
        peer: Address,
    },
    /// Accept nobody, unless that request was taken back meanwhile.
    Suspend {
        round: u64,
    },
    /// The predecessor knows that the server serves: accept.
    OpenDoor,
    /// Accept again, on these listeners that were opened again too.
    Resume(Vec<(ListenerId, Listener)>),
    /// What new connections get has changed.
    Configure,
    /// Tell which connections there are.
    List {
        reply: Reply,
    },
    /// Close those who are meant, behind those who are on their way to a worker.
    Disconnect {
        whom: Whom,
    },
    /// Stop accepting; end what has not ended within this time.
    Drain {
        within: Duration,
    },
}

/// What a worker is to do on its own thread.
pub(crate) type Errand = dyn FnOnce(&Rc<Worker>) + Send;

/// What a timer was set for.
pub(crate) enum Alarm {
    Link(Token),
    Wakeup(Wakeup),
    /// What has to come before a connection's handler has not come in time.
    Preface(Token),
    /// The pause of accepting is over.
    Accept,
    /// There are places for TLS handshakes, or one that is slow has to give way.
    #[cfg(feature = "tls")]
    Handshakes,
    /// The drain deadline.
    Drain,
}

pub(crate) struct Worker {
    pub(crate) engine: RefCell<Engine>,
    pub(crate) post: Post,
    pub(crate) tasks: Tasks,
    pub(crate) slots: Slots,
    pub(crate) timers: RefCell<Wheel<Alarm>>,
    pub(crate) dirty: RefCell<Vec<Rc<Link>>>,
    /// The server that this worker belongs to, if any.
    pub(crate) member: RefCell<Option<Rc<Member>>>,
    /// Which of the server's workers this is.
    pub(crate) index: Cell<u16>,
    /// The TLS handshakes of new connections.
    handshakes: Handshakes,
    pieces: Rc<PiecePool>,
    /// The memory of the server that this worker belongs to, if any,
    pub(crate) budget: OnceCell<Arc<Budget>>,
    /// and what it was told last of this worker's part.
    memory_told: Cell<usize>,
    parking: RefCell<Parking>,
    /// Read by the server's watchdog.
    pulse: OnceCell<Arc<Pulse>>,
    now: Cell<Time>,
    /// Completions of the last turn.
    completed: Cell<usize>,
    /// Which pass over what is ready comes next.
    pass: Cell<u32>,
    inbox: RefCell<Vec<Message>>,
    spare: RefCell<Vec<Rc<Link>>>,
    /// What keeps connections for later use here.
    keepers: Keepers,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Worker>>> = const { RefCell::new(None) };
}

/// Runs `f` with the worker whose turn it is on this thread.
pub(crate) fn with_current<T>(f: impl FnOnce(&Rc<Worker>) -> T) -> Option<T> {
    CURRENT.try_with(|current| current.borrow().as_ref().map(f)).ok().flatten()
}

/// Makes a worker the current one of this thread for as long as this lives.
pub(crate) struct Entered(Option<Rc<Worker>>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|current| *current.borrow_mut() = self.0.take());
    }
}

impl Worker {
    pub(crate) fn new(mut engine: Engine) -> Rc<Worker> {
        let pieces = PiecePool::new();
        engine.use_pieces(&pieces);
        let waker = engine.waker();
        let post: Post = Arc::new(Mailbox::new(move || waker.wake()));
        let now = engine.now();
        Rc::new(Worker {
            engine: RefCell::new(engine),
            tasks: Tasks::new(post.clone()),
            post,
            slots: Slots::default(),
            timers: RefCell::new(Wheel::new(now)),
            dirty: RefCell::default(),
            member: RefCell::default(),
            index: Cell::default(),
            handshakes: Handshakes::default(),
            pieces,
            budget: OnceCell::new(),
            memory_told: Cell::new(0),
            parking: RefCell::default(),
            pulse: OnceCell::new(),
            now: Cell::new(now),
            completed: Cell::new(0),
            pass: Cell::new(1),
            inbox: RefCell::default(),
            spare: RefCell::default(),
            keepers: Keepers::default(),
        })
    }

    /// The time at which this turn's completions were looked at.
    pub(crate) fn now(&self) -> Time {
        self.now.get()
    }

    /// The time at this moment. A handler may have been busy since the turn began, and what it sets a deadline for begins
    /// now.
    pub(crate) fn clock(&self) -> Time {
        self.engine.borrow().now()
    }

    /// Looks at the clock before a turn: a simulation moves it between turns.
    pub(crate) fn look_at_clock(&self) {
        self.now.set(self.clock());
    }

    pub(crate) fn enter(self: &Rc<Self>) -> Entered {
        Entered(CURRENT.with(|current| current.replace(Some(self.clone()))))
    }

    /// Turns the loop once; sleeps in it only if `may_sleep` and there is nothing to do. Returns whether anything
    /// happened.
    pub(crate) fn turn(self: &Rc<Self>, may_sleep: bool) -> bool {
        let mut busy = self.handle_messages();
        busy |= self.run_ready();
        busy |= self.expire_timers();
        // Whoever drives the worker looks at what has happened before it may sleep on it.
        let sleeps = may_sleep && !busy && !self.has_work() && self.post.prepare_sleep();
        self.beat(false);
        let waited = if sleeps { self.sleep() } else { self.engine.borrow_mut().wait(Some(Time::ZERO)) };
        self.beat(true);
        self.post.awake();
        self.now.set(self.clock());
        if let Err(error) = waited {
            self.survive(&error);
        }
        busy | self.handle_completions()
    }

    /// Waits for the engine; spins first, if that was asked for and finds something now and then.
    fn sleep(&self) -> io::Result<()> {
        let until = self.timers.borrow().next();
        let mut engine = self.engine.borrow_mut();
        let spin = self.parking.borrow_mut().spin();
        if !spin.is_zero() {
            let end = engine.now().after(spin);
            let found = engine.spin(until.map_or(end, |until| until.min(end)))?;
            self.parking.borrow_mut().spun(found);
            if found {
                return Ok(());
            }
        }
        engine.wait(until)
    }

    /// Has its turns watched.
    pub(crate) fn watch(&self, pulse: Arc<Pulse>) {
        drop(self.pulse.set(pulse));
    }

    fn beat(&self, works: bool) {
        if let Some(pulse) = self.pulse.get() {
            pulse.beat(works);
        }
    }

    /// A handler has returned. If the watchdog saw the worker blocked meanwhile, it was this one.
    #[inline]
    pub(crate) fn returned(&self, link: &Link) {
        if self.pulse.get().is_some_and(|pulse| pulse.take_blocked()) {
            self.was_blocked(link);
        }
    }

    #[cold]
    fn was_blocked(&self, link: &Link) {
        let lasted = self.clock().since(self.now());
        self.with_member(|member| {
            member.server.tell(&ServerEvent::HandlerBlocked { id: link.id(), peer: &link.peer(), lasted });
        });
    }

    /// Sets how long the worker spins before it sleeps; zero is not at all.
    pub(crate) fn spin_before_sleep(&self, spin: Duration) {
        *self.parking.borrow_mut() = Parking::new(spin);
    }

    /// Whether the next turn has something to do without the engine.
    pub(crate) fn has_work(&self) -> bool {
        self.tasks.has_ready() || !self.dirty.borrow().is_empty() || self.post.is_filled()
    }

    /// When the next timer is due.
    pub(crate) fn next_alarm(&self) -> Option<Time> {
        self.timers.borrow().next()
    }

    /// Takes a connected socket: from now on it is a connection of this worker.
    pub(crate) fn open(
        self: &Rc<Self>,
        socket: Socket,
        peer: Address,
        profile: &Rc<Profile>,
    ) -> io::Result<Rc<Link>> {
        let link = self.link(peer, profile);
        let opened = self.engine.borrow_mut().open(link.token, socket);
        if let Err(error) = opened {
            self.never_opened(&link, &error);
            return Err(error);
        }
        link.conn.borrow_mut().connected(self.now());
        link.mark_dirty();
        Ok(link)
    }

    /// Begins to connect; the link's waiters are told when that is over.
    pub(crate) fn connect(
        self: &Rc<Self>,
        peer: &Address,
        profile: &Rc<Profile>,
        options: &SocketOptions,
    ) -> io::Result<Rc<Link>> {
        let link = self.link(peer.clone(), profile);
        let begun = self.engine.borrow_mut().connect(link.token, peer, options);
        if let Err(error) = begun {
            self.never_opened(&link, &error);
            return Err(error);
        }
        Ok(link)
    }

    /// Ends everything of this worker that still lives: connections are reset, tasks dropped.
    pub(crate) fn shut(self: &Rc<Self>) {
        let _entered = self.enter();
        self.tasks.clear();
        self.forget_locals();
        for link in self.slots.all() {
            link.command(|conn| conn.reset(CloseReason::Shutdown));
        }
        while !self.slots.is_empty() && self.turn(false) {}
        self.tasks.clear();
        drop(self.post.close());
        // On a simulated network a close takes time, which nobody gives any more.
        self.slots.clear();
        drop(self.dirty.take());
        self.engine.borrow_mut().end();
        self.account_for_end();
        // Who has gone home is not at work.
        self.beat(false);
    }

    /// What the connections that are made with these options share here.
    pub(crate) fn profile(&self, limits: &Limits, deadlines: &Deadlines) -> Rc<Profile> {
        let (limits, deadlines, pieces) = (limits.clone(), deadlines.clone(), self.pieces.clone());
        Rc::new(Profile { limits, deadlines, pieces })
    }

    fn link(self: &Rc<Self>, peer: Address, profile: &Rc<Profile>) -> Rc<Link> {
        let conn = Conn::new(profile.clone(), self.now());
        self.slots.insert(|token| Link::new(token, self.clone(), peer, conn))
    }

    fn never_opened(self: &Rc<Self>, link: &Rc<Link>, error: &io::Error) {
        link.conn.borrow_mut().never_opened(error);
        self.advance(link);
    }

    fn handle_messages(self: &Rc<Self>) -> bool {
        let mut messages = self.inbox.take();
        self.post.drain(&mut messages);
        let busy = !messages.is_empty();
        for message in messages.drain(..) {
            self.handle(message);
        }
        *self.inbox.borrow_mut() = messages;
        busy
    }

    fn handle(self: &Rc<Self>, message: Message) {
        let with_link = |token, f: &dyn Fn(&Rc<Link>)| {
            if let Some(link) = self.slots.get(token) {
                f(&link);
            }
        };
        match message {
            Message::Wake(id) => self.tasks.wake(id),
            Message::Run(run) => run(self),
            Message::Send { token, bytes } => {
                if let Some(link) = self.slots.get(token) {
                    self.arrived(&link, bytes);
                }
            }
            Message::Close { token } => with_link(token, &|link| self.close_behind(link)),
            Message::Reset { token, reason } => {
                with_link(token, &|link| link.command(|conn| conn.reset(reason)));
            }
            Message::Adopt { socket, peer, admission } => {
                self.with_member(|member| member.adopt(self, socket, &peer, admission));
            }
            Message::MemoryShort => self.with_member(|member| member.memory_short(self)),
            Message::RoomAgain => self.with_member(|member| member.room_again(self)),
            Message::Arrive { socket, peer } => {
                self.with_member(|member| member.arrived(self, socket, peer));
            }
            Message::OpenDoor => self.with_member(|member| member.open_door(self)),
            Message::Suspend { round } => self.with_member(|member| member.suspend(self, round)),
            Message::Resume(listeners) => self.with_member(|member| member.resume(self, listeners)),
            Message::Configure => self.with_member(|member| member.configure(self)),
            Message::List { reply } => {
                reply.add(self.list());
            }
            Message::Disconnect { whom } => {
                self.disconnect(whom);
                self.with_member(|member| member.pass_on(whom));
            }
            Message::Drain { within } => self.with_member(|member| member.drain(self, within)),
        }
    }

    pub(crate) fn with_member(&self, f: impl FnOnce(&Rc<Member>)) {
        let member = self.member.borrow().clone();
        if let Some(member) = member {
            f(&member);
        }
    }

    /// Polls the ready tasks, then carries out what the dirty connections ask for.
    fn run_ready(self: &Rc<Self>) -> bool {
        self.pass.set(self.pass.get().wrapping_add(1));
        let mut busy = self.tasks.has_ready();
        self.tasks.run();
        let mut dirty = self.spare.take();
        std::mem::swap(&mut dirty, &mut *self.dirty.borrow_mut());
        busy |= !dirty.is_empty();
        if !dirty.is_empty() {
            self.engine.borrow_mut().expect_sends(dirty.len());
        }
        for link in dirty.drain(..) {
            self.advance(&link);
        }
        *self.spare.borrow_mut() = dirty;
        self.account();
        busy
    }

    fn expire_timers(self: &Rc<Self>) -> bool {
        let mut busy = false;
        loop {
            let Some(alarm) = self.timers.borrow_mut().expire(self.now()) else { return busy };
            busy = true;
            match alarm {
                Alarm::Wakeup(wakeup) => wakeup.wake(&self.tasks),
                Alarm::Link(token) => {
                    if let Some(link) = self.slots.get(token) {
                        self.expire(&link);
                    }
                }
                Alarm::Preface(token) => {
                    if let Some(link) = self.slots.get(token) {
                        self.expire_preface(&link);
                    }
                }
                #[cfg(feature = "tls")]
                Alarm::Handshakes => self.begin_waiting_handshakes(),
                Alarm::Accept => self.with_member(|member| member.retry_accept(self)),
                Alarm::Drain => self.with_member(|member| member.give_up(self)),
            }
        }
    }

    fn handle_completions(self: &Rc<Self>) -> bool {
        // In event style each of them may be answered at once, and the last turn is the best guess at how many they are.
        self.engine.borrow_mut().expect_sends(self.completed.get());
        let (mut count, mut since_run, mut bytes) = (0, 0, 0);
        loop {
            let Some(completion) = self.engine.borrow_mut().next() else { break };
            if let Completion::Received { chunk, .. } = &completion {
                bytes += chunk.len();
            }
            self.complete(completion);
            count += 1;
            since_run += 1;
            if since_run == BATCH || bytes >= BATCH_BYTES {
                self.run_ready();
                (since_run, bytes) = (0, 0);
            }
        }
        self.completed.set(count);
        self.run_ready() | (count > 0)
    }

    fn complete(self: &Rc<Self>, completion: Completion) {
        match completion {
            Completion::Received { token, chunk } => {
                if let Some(link) = self.slots.get(token) {
                    self.received(&link, chunk);
                }
            }
            Completion::Readable { token } => {
                if let Some(link) = self.slots.get(token) {
                    self.offered(&link);
                }
            }
            Completion::Sent { token, mut outgoing, result } => {
                self.with_link(token, |conn, now| match result {
                    Ok(n) => conn.sent(&mut outgoing, n, now),
                    Err(error) => conn.send_failed(&mut outgoing, &error, now),
                });
                self.engine.borrow_mut().recycle(outgoing);
            }
            Completion::Bounced { token, unsent } => {
                self.with_link(token, |conn, now| conn.bounced(unsent, now));
            }
            Completion::HungUp { token } => self.with_link(token, |conn, _| conn.hung_up()),
            Completion::ReceiveEnded { token } => self.with_link(token, Conn::receive_ended),
            Completion::Broken { token, error } => self.with_link(token, |conn, now| conn.broke(&error, now)),
            Completion::Failed { token, error } => self.with_link(token, |conn, _| conn.failed(&error)),
            Completion::Closed { token, outgoing } => self.with_link(token, |conn, _| conn.closed(outgoing)),
            Completion::Connected { token, result } => self.with_link(token, |conn, now| match result {
                Ok(()) => conn.connected(now),
                Err(error) => conn.failed(&error),
            }),
            Completion::Accepted { listener, socket, peer } => {
                self.with_member(|member| member.accepted(self, listener, socket, peer));
            }
            Completion::AcceptFailed { listener, error } => {
                self.with_member(|member| member.accept_failed(self, listener, &error));
            }
            Completion::Woken => {}
        }
    }

    /// Gives an input to the core of a connection and carries out what follows.
    fn with_link(self: &Rc<Self>, token: Token, input: impl FnOnce(&mut Conn, Time)) {
        if let Some(link) = self.slots.get(token) {
            input(&mut link.conn.borrow_mut(), self.now());
            self.advance(&link);
        }
    }

    /// The engine could not wait. Whatever the cause (memory, most likely), connections that stand are not given up:
    /// the worker goes on at a slower pace.
    fn survive(&self, error: &io::Error) {
        event!(error, %error, "waiting for the engine failed");
        let _ = error;
        std::thread::sleep(WAIT_RETRY);
    }
}
