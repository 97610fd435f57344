//! What a socket's three parties share: its owner, its queue, and the worker that has its connection.
//!
//! All of it lies under one lock, and no code of the program's (handlers, destructors, executors) and no other lock is ever
//! met with it held. docs/design/event.md has the states and who does what.
//!
//! Whatever is to be told is an **event** in one list. While the list has events, one job stands for the strand in its queue, or is
//! being run; so handlers run in order and never two at once, on whatever threads.

mod feed;
mod room;
mod turn;

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::thread::{self, ThreadId};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use self::room::Refusal;
use self::turn::Handling;
use super::completion::Dependency;
use super::members::Membership;
use super::places::Place;
use super::queue::RUNS_HERE;
use super::service::Hall;
use super::{Disconnect, Queue, QueuedHandler, SocketHandle, State};
use crate::address::Address;
use crate::client::Client;
use crate::config::{Limits, WhenFull};
use crate::error::{Bound, Cause, CloseReason, Error, Operation, Result};
use crate::worker;
use crate::worker::link::drop_guarded;

/// What each message counts for beside its bytes, so that the number of empty ones is bounded too.
const MESSAGE_COST: usize = 64;
/// So many changes of state may wait for a queue that nobody runs, before it has to catch up: with those of one connect on top, which are
/// three for each address.
const STATES_MAX: usize = 32;
/// So many may wait for one end.
const CLOSERS_MAX: usize = 64;

/// Makes the handler of an accepted connection.
pub(crate) type Maker = Arc<dyn Fn(&SocketHandle) -> Box<dyn QueuedHandler> + Send + Sync>;
pub(super) type SendHandler = Box<dyn FnOnce(&SocketHandle, Result<()>) + Send>;
pub(super) type ReceiveHandler = Box<dyn FnOnce(&SocketHandle, Result<Bytes>) + Send>;

pub(super) struct Strand {
    queue: Queue,
    pub(super) origin: Origin,
    /// Of whom errors tell.
    pub(super) address: Arc<str>,
    limits: Limits,
    inner: Mutex<Inner>,
    /// A handler has returned after the end of the strand.
    returned: Condvar,
    /// Its place among those that learn of the queue's end.
    membership: OnceLock<Membership>,
}

/// Where its connections come from.
pub(super) enum Origin {
    /// They are made, one after the other.
    Client { client: Box<Client>, hall: Arc<Hall> },
    /// There is one, which a server has accepted.
    Accepted,
}

/// What a handler is called for.
#[derive(Copy, Clone)]
struct Calls {
    receives: bool,
    produces: bool,
}

impl Calls {
    fn of(handler: &dyn QueuedHandler) -> Calls {
        Calls { receives: handler.receives(), produces: handler.produces() }
    }
}

struct Inner {
    state: State,
    /// There is a task for it on a worker, from `connect` to the end.
    is_driven: bool,
    /// Counts connections: what a handler decides is for the one that its event is of.
    epoch: u64,
    events: VecDeque<(u64, Event)>,
    /// How many of them are states.
    states: usize,
    /// One of them tells that there is room for more on this connection.
    has_writable: bool,
    /// A job for it is in the queue, or is being run.
    is_scheduled: bool,
    /// Whose handler runs, and where.
    running: Option<ThreadId>,
    /// Away before it is made, while it is being called, and for good after the end.
    handler: Option<Box<dyn QueuedHandler>>,
    /// Known when it is made.
    calls: Option<Calls>,
    /// What its handler has panicked with, until whoever counts that is told.
    panicked: Option<Box<dyn Any + Send>>,
    /// Its place among a server's connections, until its end has been told.
    place: Option<Place>,
    /// No handler is called any more.
    is_over: bool,
    /// There is, or was, somebody whose drop ends it.
    is_owned: bool,

    /// One receive is asked for, and its handler has not begun.
    is_receiving: bool,
    armed: Option<ReceiveHandler>,
    /// What came at the end, without a receive that asked for it.
    early: BytesMut,
    peer_ended: bool,
    /// What is known of the connection, or of the last one.
    info: Info,
    /// Bytes delivered that no handler has consumed, those left over by one included.
    unconsumed: usize,
    left: Bytes,
    /// What is left is the beginning of another message than what was left before.
    is_next_left: bool,
    /// Whether a send of its handler was refused, so that what is left waits for room.
    refusal: Refusal,
    /// One of the events offers what is left, with nothing new behind it.
    is_offered_again: bool,

    commands: VecDeque<Command>,
    /// Handed to the connection, and not yet known to be handed to the kernel.
    in_flight: VecDeque<Sending>,
    /// What messages cost that are not sent, or whose handlers have not run.
    charged: usize,
    /// Bytes not yet handed to the kernel.
    queued: usize,
    has_finished: bool,
    /// A close was asked for, maybe for a reason of its own.
    closing: Option<Option<CloseReason>>,
    reset: Option<CloseReason>,
    /// A deadline that the connection is to have from now on, or none any more.
    deadline: Option<Option<Duration>>,
    connecting: Option<Dependency>,
    closers: Vec<Dependency>,
    /// How the task on the worker is woken.
    driver: Option<Waker>,
}

/// What is known of a connection that stands.
#[derive(Clone, Default)]
pub(super) struct Info {
    pub(super) peer: Option<Address>,
    pub(super) local: Option<Address>,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<crate::tls::Info>,
}

/// How it stands with a message of which the handler waits for the rest.
#[derive(Copy, Clone)]
pub(super) enum Rest {
    /// None has begun.
    Nothing,
    /// So much of one is here, and the peer has to send the rest; whether it is another one than the last time.
    Awaited(usize, bool),
    /// It is the queue's turn.
    Handled,
}

enum Event {
    /// An accepted connection gets its handler.
    Begin(Maker),
    State(State),
    Received(BytesMut),
    Ended,
    Writable,
    Draining,
    /// A handler of one operation, and what that cost.
    Call {
        call: Box<dyn FnOnce(&SocketHandle) + Send>,
        cost: usize,
        is_receive: bool,
    },
}

/// What the task on the worker is to do.
pub(super) enum Command {
    Send(Bytes, Sending),
    Finish,
    Close(Option<CloseReason>),
}

/// A message on its way, and whom its end is told.
pub(super) struct Sending {
    pub(super) bytes: usize,
    pub(super) handler: Option<SendHandler>,
    pub(super) dependency: Option<Dependency>,
}

impl Sending {
    fn cost(&self) -> usize {
        self.bytes + MESSAGE_COST
    }
}

/// What is over, to be told without the lock.
type Ended = Vec<(Dependency, Result<()>)>;

// What its owner asks for, on any thread.
impl Strand {
    pub(super) fn new(
        queue: Queue,
        client: Client,
        hall: Arc<Hall>,
        handler: Box<dyn QueuedHandler>,
    ) -> Arc<Strand> {
        let mut inner = Inner::new(State::Disconnected(Disconnect::Unconnected));
        inner.calls = Some(Calls::of(&*handler));
        (inner.handler, inner.is_owned) = (Some(handler), true);
        let (address, limits) = (Arc::from(&*client.address), client.limits.clone());
        Strand::with(queue, Origin::Client { client: Box::new(client), hall }, address, limits, inner)
    }

    /// Of a connection that a server has accepted. Nothing is told before [`Strand::open`].
    pub(super) fn accepted(
        queue: Queue,
        limits: Limits,
        info: Info,
        maker: Maker,
        place: Place,
    ) -> Arc<Strand> {
        let mut inner = Inner::new(State::Connected);
        (inner.is_driven, inner.epoch, inner.place) = (true, 1, Some(place));
        inner.push(Event::Begin(maker));
        inner.states = 1;
        inner.push(Event::State(State::Connected));
        let address = info.peer.as_ref().map(Address::to_string).unwrap_or_default();
        inner.info = info;
        Strand::with(queue, Origin::Accepted, Arc::from(address), limits, inner)
    }

    fn with(queue: Queue, origin: Origin, address: Arc<str>, limits: Limits, inner: Inner) -> Arc<Strand> {
        let (inner, returned) = (Mutex::new(inner), Condvar::new());
        let strand =
            Arc::new(Strand { queue, origin, address, limits, inner, returned, membership: OnceLock::new() });
        match strand.queue.join(&strand) {
            Ok(membership) => drop(membership.map(|membership| strand.membership.set(membership))),
            Err(()) => strand.abandon(),
        }
        strand
    }

    pub(super) fn connect(self: &Arc<Self>, mut told: Option<Dependency>) -> Result<()> {
        let begun = self.begin(&mut told);
        if let (Err(error), Some(told)) = (&begun, told) {
            told.finish(Err(error.clone()));
        }
        begun
    }

    /// Takes `told` if it begins.
    fn begin(self: &Arc<Self>, told: &mut Option<Dependency>) -> Result<()> {
        let failed = |cause| Err(Error::new(Operation::Connect, cause).at(&*self.address));
        let Origin::Client { client, hall } = &self.origin else {
            return failed(Cause::Misuse(
                "a server has accepted this connection: only its peer can make another",
            ));
        };
        let first = client.first_step()?;
        let seat = hall.seat(client)?;
        let mut inner = self.lock();
        if inner.is_over {
            return failed(Cause::Misuse(OVER));
        }
        if inner.is_driven {
            return failed(Cause::Misuse(
                "invalid state: the socket is connected, or connecting; close it and wait until it is disconnected",
            ));
        }
        if inner.states >= STATES_MAX {
            let (waiting, option) = (inner.states, "the socket's queue, which nobody runs");
            return failed(Cause::TooMany { count: waiting, what: "changes of state are untold", option });
        }
        inner.begin();
        inner.connecting = told.take();
        inner.change(State::Connecting(first));
        self.schedule(inner);
        super::drive::launch(self.clone(), hall, seat);
        Ok(())
    }

    pub(super) fn send(&self, bytes: Bytes, sending: Sending) -> Result<()> {
        let mut inner = self.lock();
        let bound = self.limits.send_max;
        let (len, cost) = (bytes.len(), sending.cost());
        let problem = match inner.cannot_send() {
            Some(cause) => Some(cause),
            None if len > bound => Some(Cause::TooLarge { bytes: len, bound, option: "send_max" }),
            None if inner.charged + cost > bound + MESSAGE_COST => {
                Some(Cause::Full { queued: inner.charged, option: "send_max" })
            }
            None => None,
        };
        if let Some(cause) = problem {
            let is_full = matches!(cause, Cause::Full { .. });
            if is_full && inner.is_driven && self.limits.when_full == WhenFull::Disconnect {
                inner.reset.get_or_insert(CloseReason::Limit(Bound::SendQueue));
                wake(inner);
            } else {
                if is_full && inner.running == Some(thread::current().id()) {
                    inner.refusal = Refusal::Standing;
                }
                drop(inner);
            }
            let error = Error::new(Operation::Send, cause).at(&*self.address);
            if let Some(dependency) = sending.dependency {
                dependency.finish(Err(error.clone()));
            }
            return Err(error);
        }
        inner.charged += cost;
        inner.queued += len;
        inner.commands.push_back(Command::Send(bytes, sending));
        wake(inner);
        Ok(())
    }

    pub(super) fn receive(self: &Arc<Self>, handler: ReceiveHandler) -> Result<()> {
        let failed = |cause| Err(Error::new(Operation::Receive, cause).at(&*self.address));
        let mut inner = self.lock();
        let problem = match &inner.state {
            _ if inner.is_over => Some(OVER),
            _ if inner.calls.is_none() => {
                Some("the handler is being made: receive when it is told the first state")
            }
            _ if inner.receives() => Some("the socket's handler is given whatever comes already"),
            _ if inner.is_receiving => Some("a receive is armed already: wait for its handler"),
            _ => None,
        };
        if let Some(problem) = problem {
            return failed(Cause::Misuse(problem));
        }
        if !inner.early.is_empty() {
            let bytes = inner.early.split().freeze();
            inner.answer(handler, Ok(bytes));
        } else if inner.peer_ended {
            inner.answer(handler, Ok(Bytes::new()));
        } else {
            if !inner.is_driven
                && let State::Disconnected(why) = &inner.state
                && !matches!(why, Disconnect::Unconnected)
            {
                let error = why.error(Operation::Receive, &self.address);
                drop(inner);
                return Err(error);
            }
            inner.is_receiving = true;
            inner.armed = Some(handler);
            wake(inner);
            return Ok(());
        }
        self.schedule(inner);
        Ok(())
    }

    pub(super) fn finish(&self) {
        let mut inner = self.lock();
        if inner.is_driven && !inner.has_finished {
            inner.has_finished = true;
            inner.commands.push_back(Command::Finish);
        }
        wake(inner);
    }

    pub(super) fn close(&self, reason: Option<CloseReason>, told: Option<Dependency>) -> Result<()> {
        let mut inner = self.lock();
        if !inner.is_driven {
            drop(inner);
            if let Some(told) = told {
                told.finish(Ok(()));
            }
            return Ok(());
        }
        if let Some(told) = told {
            if inner.closers.len() >= CLOSERS_MAX {
                let (count, what) = (inner.closers.len(), "operations wait for this close");
                let cause = Cause::TooMany { count, what, option: "close_with" };
                drop(inner);
                let error = Error::new(Operation::Close, cause).at(&*self.address);
                told.finish(Err(error.clone()));
                return Err(error);
            }
            inner.closers.push(told);
        }
        inner.close(reason);
        wake(inner);
        Ok(())
    }

    pub(super) fn reset(&self, reason: CloseReason) {
        let mut inner = self.lock();
        if inner.is_driven {
            inner.reset.get_or_insert(reason);
        }
        wake(inner);
    }

    pub(super) fn set_deadline(&self, after: Option<Duration>) {
        let mut inner = self.lock();
        if inner.is_driven {
            inner.deadline = Some(after);
        }
        wake(inner);
    }

    pub(super) fn state(&self) -> State {
        self.lock().state.clone()
    }

    pub(super) fn info(&self) -> Info {
        self.lock().info.clone()
    }

    pub(super) fn queued(&self) -> usize {
        self.lock().queued
    }

    /// Why this thread must not wait for a handler, if it must not.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        let running = self.lock().running;
        match running == Some(thread::current().id()) {
            true => Some(RUNS_HERE),
            false => self.queue.obstacle(),
        }
    }

    /// Somebody is the owner from here on.
    pub(super) fn own(&self) -> Result<()> {
        if std::mem::replace(&mut self.lock().is_owned, true) {
            let twice = "the connection has an owner already: keep the `Socket`, and use handles elsewhere";
            return Err(Error::new(Operation::Adopt, Cause::Misuse(twice)).at(&*self.address));
        }
        Ok(())
    }

    /// The owner has gone: no handler begins any more, and one that runs on another thread is waited for.
    ///
    /// Within a handler of any socket nothing is waited for, as that one may be what another one waits for; nor on a worker's
    /// thread, which others do.
    pub(super) fn detach(&self) {
        self.over(None);
        if Handling::is_on_this_thread() || worker::with_current(|_| ()).is_some() {
            return;
        }
        let here = thread::current().id();
        let mut inner = self.lock();
        while inner.running.is_some_and(|running| running != here) {
            inner = self.returned.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The queue has gone, and with it whoever would listen.
    pub(super) fn abandon(&self) {
        self.over(Some(CloseReason::Shutdown));
    }

    /// Ends all calls of handlers, and the connection behind what was sent.
    fn over(&self, reason: Option<CloseReason>) {
        let mut inner = self.lock();
        inner.is_over = true;
        let (handler, place) = (inner.handler.take(), inner.place.take());
        let events = std::mem::take(&mut inner.events);
        let armed = inner.armed.take();
        let (mut handlers, mut unsent) = (Vec::new(), VecDeque::new());
        let Inner { commands, in_flight, .. } = &mut *inner;
        let queued = commands.iter_mut().filter_map(|command| match command {
            Command::Send(_, sending) => Some(sending),
            _ => None,
        });
        for sending in queued.chain(in_flight) {
            if let Some(handler) = sending.handler.take() {
                handlers.push(handler);
            }
        }
        (inner.states, inner.unconsumed, inner.left, inner.early) = (0, 0, Bytes::new(), BytesMut::new());
        if inner.is_driven {
            inner.close(reason);
        } else {
            // What was queued for a connection that will not be.
            unsent = std::mem::take(&mut inner.commands);
            (inner.charged, inner.queued) = (0, 0);
        }
        wake(inner);
        drop_guarded(unsent);
        drop((place, drop_guarded((events, armed, handlers))));
        drop_guarded(handler);
    }
}

const OVER: &str =
    "no handler of the socket is called any more: it was dropped, its queue has ended, or a handler panicked";

impl Strand {
    /// Lets go of the lock, and has the events handled if that is not arranged.
    fn schedule(self: &Arc<Self>, inner: MutexGuard<'_, Inner>) {
        self.schedule_telling(inner, Vec::new());
    }

    /// The same; tells first what has ended, so that it has when its handlers run.
    fn schedule_telling(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>, ended: Ended) {
        let due = inner.next_event().is_some() && !inner.is_over && !inner.is_scheduled;
        inner.is_scheduled |= due;
        drop(inner);
        for (dependency, result) in ended {
            dependency.finish(result);
        }
        if due {
            self.queue.execute(self);
        }
    }

    /// Nothing that may panic happens under this lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets go of the lock, and wakes the task on the worker.
fn wake(inner: MutexGuard<'_, Inner>) {
    let driver = inner.driver.clone();
    drop(inner);
    if let Some(driver) = driver {
        driver.wake();
    }
}

impl Inner {
    fn new(state: State) -> Inner {
        Inner {
            state,
            is_driven: false,
            epoch: 0,
            events: VecDeque::new(),
            states: 0,
            has_writable: false,
            is_scheduled: false,
            running: None,
            handler: None,
            calls: None,
            panicked: None,
            place: None,
            is_over: false,
            is_owned: false,
            is_receiving: false,
            armed: None,
            early: BytesMut::new(),
            peer_ended: false,
            info: Info::default(),
            unconsumed: 0,
            left: Bytes::new(),
            is_next_left: false,
            refusal: Refusal::None,
            is_offered_again: false,
            commands: VecDeque::new(),
            in_flight: VecDeque::new(),
            charged: 0,
            queued: 0,
            has_finished: false,
            closing: None,
            reset: None,
            deadline: None,
            connecting: None,
            closers: Vec::new(),
            driver: None,
        }
    }

    fn receives(&self) -> bool {
        self.calls.is_some_and(|calls| calls.receives)
    }

    fn produces(&self) -> bool {
        self.calls.is_some_and(|calls| calls.produces)
    }

    /// What came before the handler was made waits for receives, as it turns out.
    fn set_aside(&mut self) {
        for (_, event) in &mut self.events {
            if let Event::Received(bytes) = event {
                self.early.extend_from_slice(bytes);
            }
        }
        self.events.retain(|(_, event)| !matches!(event, Event::Received(_)));
        self.unconsumed = 0;
    }

    /// There is room for more, which is told once until the handler has been called.
    fn writable(&mut self) {
        if !self.has_writable && !self.is_over {
            self.has_writable = true;
            self.push(Event::Writable);
        }
    }

    /// A new connection: nothing of the last one holds for it, but what is still to be told.
    fn begin(&mut self) {
        self.is_driven = true;
        self.epoch += 1;
        self.early.clear();
        self.peer_ended = false;
        self.info = Info::default();
        (self.has_finished, self.has_writable) = (false, false);
        self.deadline = None;
        (self.refusal, self.is_offered_again) = (Refusal::None, false);
        (self.closing, self.reset) = (None, None);
    }

    fn push(&mut self, event: Event) {
        if !self.is_over {
            self.events.push_back((self.epoch, event));
        }
    }

    /// The state is another from here on, which is told if it is true.
    fn change(&mut self, state: State) {
        if self.state.is_same(&state) {
            return;
        }
        self.state = state.clone();
        if !self.is_over {
            self.states += 1;
            self.push(Event::State(state));
        }
    }

    fn cannot_send(&self) -> Option<Cause> {
        if self.is_over {
            return Some(Cause::Misuse(OVER));
        }
        if let Some(reason) = self.closing {
            return Some(Cause::Closed(reason.unwrap_or(CloseReason::Local)));
        }
        if self.has_finished {
            return Some(Cause::Misuse("this side has finished"));
        }
        match &self.state {
            State::Disconnected(Disconnect::Closed(reason)) => Some(Cause::Closed(*reason)),
            State::Disconnected(Disconnect::Failed(_)) => {
                Some(Cause::Misuse("invalid state: the connect has failed; connect again first"))
            }
            _ => None,
        }
    }

    fn close(&mut self, reason: Option<CloseReason>) {
        if self.closing.is_none() {
            self.closing = Some(reason);
            self.commands.push_back(Command::Close(reason));
        }
    }

    /// A message is over, one way or the other.
    fn sent(&mut self, sending: Sending, result: Result<()>, ended: &mut Ended) {
        let cost = sending.cost();
        self.queued -= sending.bytes;
        if let Some(dependency) = sending.dependency {
            self.charged -= cost;
            ended.push((dependency, result));
            return;
        }
        match sending.handler {
            // What it costs is free when its handler has run.
            Some(handler) if !self.is_over => {
                let call = Box::new(move |socket: &SocketHandle| handler(socket, result));
                self.push(Event::Call { call, cost, is_receive: false });
            }
            _ => self.charged -= cost,
        }
    }

    /// The receive that was asked for has a result.
    fn answer(&mut self, handler: ReceiveHandler, result: Result<Bytes>) {
        self.is_receiving = true;
        let call = Box::new(move |socket: &SocketHandle| handler(socket, result));
        if self.is_over {
            return;
        }
        // In front of the end, if that waits to be told already: behind it nothing of this connection is.
        let is_end = |(epoch, event): &(u64, Event)| {
            *epoch == self.epoch && matches!(event, Event::State(State::Disconnected(_)))
        };
        let at = self.events.iter().position(is_end).unwrap_or(self.events.len());
        self.events.insert(at, (self.epoch, Event::Call { call, cost: 0, is_receive: true }));
    }
}

impl Disconnect {
    /// What an operation fails with that met it.
    pub(super) fn error(&self, operation: Operation, address: &str) -> Error {
        match self {
            Disconnect::Failed(error) => error.clone(),
            Disconnect::Closed(reason) => Error::new(operation, Cause::Closed(*reason)).at(address),
            Disconnect::Unconnected => {
                Error::new(operation, Cause::Misuse("the socket is not connected")).at(address)
            }
        }
    }
}
