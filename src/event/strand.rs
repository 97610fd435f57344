//! What a socket's three parties share: its owner, its queue, and the worker that has its connection.
//!
//! All of it lies under one lock, and no code of the program's (handlers, destructors, executors) and no other lock is ever
//! met with it held. docs/design/event.md has the states and who does what.
//!
//! Whatever is to be told is an **event** in one list. While the list has events, one job stands for the strand in its queue, or is
//! being run; so handlers run in order and never two at once, on whatever threads.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::{self, ThreadId};

use bytes::{Bytes, BytesMut};

use super::completion::Dependency;
use super::service::Hall;
use super::{Disconnect, Flow, Queue, QueuedHandler, SocketHandle, State};
use crate::address::Address;
use crate::client::{Client, ConnectState};
use crate::endpoint::Host;
use crate::error::{Bound, Cause, CloseReason, Error, Operation, Result};
use crate::worker::link::drop_guarded;

/// What each message counts for beside its bytes, so that the number of empty ones is bounded too.
const MESSAGE_COST: usize = 64;
/// So many events are handled in one job, before other sockets of the queue have their turn.
const BATCH: usize = 16;
/// So many changes of state may wait for a queue that nobody runs, before it has to catch up.
const STATES_MAX: usize = 32;
/// So many may wait for one end.
const CLOSERS_MAX: usize = 64;

pub(super) type SendHandler = Box<dyn FnOnce(&SocketHandle, Result<()>) + Send>;
pub(super) type ReceiveHandler = Box<dyn FnOnce(&SocketHandle, Result<Bytes>) + Send>;

pub(super) struct Strand {
    pub(super) queue: Queue,
    pub(super) client: Client,
    pub(super) hall: Arc<Hall>,
    receives: bool,
    produces: bool,
    inner: Mutex<Inner>,
    /// A handler has returned after the end of the strand.
    returned: Condvar,
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
    /// A job for it is in the queue, or is being run.
    is_scheduled: bool,
    /// Whose handler runs, and where.
    running: Option<ThreadId>,
    /// Away while it is being called, and for good after the end.
    handler: Option<Box<dyn QueuedHandler>>,
    /// No handler is called any more.
    is_over: bool,

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

enum Event {
    State(State),
    Received(BytesMut),
    Ended,
    Writable,
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
        Arc::new(Strand {
            queue,
            client,
            hall,
            receives: handler.receives(),
            produces: handler.produces(),
            inner: Mutex::new(Inner {
                state: State::Disconnected(Disconnect::Unconnected),
                is_driven: false,
                epoch: 0,
                events: VecDeque::new(),
                states: 0,
                is_scheduled: false,
                running: None,
                handler: Some(handler),
                is_over: false,
                is_receiving: false,
                armed: None,
                early: BytesMut::new(),
                peer_ended: false,
                info: Info::default(),
                unconsumed: 0,
                left: Bytes::new(),
                commands: VecDeque::new(),
                in_flight: VecDeque::new(),
                charged: 0,
                queued: 0,
                has_finished: false,
                closing: None,
                reset: None,
                connecting: None,
                closers: Vec::new(),
                driver: None,
            }),
            returned: Condvar::new(),
        })
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
        let endpoint = self.client.endpoint()?;
        let seat = self.hall.seat(&self.client)?;
        let failed = |cause| Err(Error::new(Operation::Connect, cause).at(&self.client.address));
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
        let first = match endpoint.host {
            Host::Name(_) => State::Resolving,
            _ => State::Connecting,
        };
        inner.change(first);
        self.schedule(inner);
        super::drive::launch(self.clone(), seat);
        Ok(())
    }

    pub(super) fn send(&self, bytes: Bytes, sending: Sending) -> Result<()> {
        let mut inner = self.lock();
        let bound = self.client.limits.send_max;
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
            drop(inner);
            let error = Error::new(Operation::Send, cause).at(&self.client.address);
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
        let failed = |cause| Err(Error::new(Operation::Receive, cause).at(&self.client.address));
        let mut inner = self.lock();
        let problem = match &inner.state {
            _ if inner.is_over => Some(OVER),
            _ if self.receives => Some("the socket's handler is given whatever comes already"),
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
                let error = why.error(Operation::Receive, &self.client.address);
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
                let error = Error::new(Operation::Close, cause).at(&self.client.address);
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

    pub(super) fn state(&self) -> State {
        self.lock().state.clone()
    }

    pub(super) fn info(&self) -> Info {
        self.lock().info.clone()
    }

    pub(super) fn queued(&self) -> usize {
        self.lock().queued
    }

    /// Whether this thread is the one on which handlers run, or runs one of this strand's.
    pub(super) fn runs_here(&self) -> bool {
        let running = self.lock().running;
        running == Some(thread::current().id()) || self.queue.runs_here()
    }

    /// The owner has gone: no handler begins any more, and one that runs on another thread is waited for.
    pub(super) fn detach(&self) {
        self.over(None);
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
        let handler = inner.handler.take();
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
        drop_guarded((events, armed, handlers));
        drop_guarded(handler);
    }
}

const OVER: &str =
    "no handler of the socket is called any more: it was dropped, its queue has ended, or a handler panicked";

// What its queue does.
impl Strand {
    /// Handles what has come: some of it, if it is much.
    pub(super) fn run(self: Arc<Self>) {
        let socket = SocketHandle::of(self.clone());
        for _ in 0..BATCH {
            if !self.run_one(&socket) {
                return;
            }
        }
        let inner = self.lock();
        if !inner.is_over {
            drop(inner);
            // Still scheduled: behind the others now.
            self.queue.execute(&self);
        }
    }

    /// Handles one event. Returns whether there may be more.
    fn run_one(&self, socket: &SocketHandle) -> bool {
        let mut inner = self.lock();
        if inner.is_over {
            return false;
        }
        let Some((epoch, event)) = inner.events.pop_front() else {
            inner.is_scheduled = false;
            return false;
        };
        let Some(mut handler) = inner.handler.take() else { return false };
        inner.running = Some(thread::current().id());
        let (mut cost, mut left) = (0, None);
        match &event {
            Event::State(state) => {
                inner.states -= 1;
                if state.is_disconnected() {
                    // The rest of its last message will not come.
                    inner.unconsumed -= inner.left.len();
                    inner.left = Bytes::new();
                }
            }
            Event::Received(_) => left = Some(std::mem::take(&mut inner.left)),
            Event::Call { cost: costs, is_receive, .. } => {
                cost = *costs;
                if *is_receive {
                    inner.is_receiving = false;
                }
            }
            Event::Ended | Event::Writable => {}
        }
        drop(inner);
        let called = catch_unwind(AssertUnwindSafe(|| call(&mut *handler, socket, event, left)));
        self.returned(epoch, cost, handler, called)
    }

    /// A handler has returned. Returns whether the next one may be called.
    fn returned(
        &self,
        epoch: u64,
        cost: usize,
        handler: Box<dyn QueuedHandler>,
        called: thread::Result<Called>,
    ) -> bool {
        let called = match called {
            Ok(called) => called,
            Err(payload) => {
                {
                    let mut inner = self.lock();
                    if inner.is_driven {
                        inner.reset.get_or_insert(CloseReason::HandlerPanicked);
                    }
                }
                self.over(None);
                drop_guarded(payload);
                Called::default()
            }
        };
        let mut inner = self.lock();
        if inner.is_over {
            drop(inner);
            // While it counts as running: who waits for the end waits for its destructor too.
            drop_guarded(handler);
            self.lock().running = None;
            self.returned.notify_all();
            return false;
        }
        inner.running = None;
        inner.handler = Some(handler);
        inner.charged -= cost;
        inner.unconsumed -= called.consumed;
        inner.left = match called.left {
            Some(left) => left,
            None => std::mem::take(&mut inner.left),
        };
        let is_current = epoch == inner.epoch && inner.is_driven;
        if is_current {
            if called.consumed == 0 && inner.left.len() >= self.client.limits.receive_buffer.max(1) {
                inner.reset.get_or_insert(CloseReason::Limit(Bound::ReceiveBuffer));
            }
            match called.flow {
                Flow::Continue | Flow::Consumed(_) => {}
                Flow::Close => inner.close(None),
                Flow::Reset => _ = inner.reset.get_or_insert(CloseReason::LocalReset),
            }
        }
        // There is credit again, or something to do.
        wake(inner);
        true
    }
}

/// What came of a call.
struct Called {
    flow: Flow,
    consumed: usize,
    /// Of what `received` was offered.
    left: Option<Bytes>,
}

impl Default for Called {
    fn default() -> Called {
        Called { flow: Flow::Continue, consumed: 0, left: None }
    }
}

fn call(handler: &mut dyn QueuedHandler, socket: &SocketHandle, event: Event, left: Option<Bytes>) -> Called {
    let flow = match event {
        Event::State(state) => {
            handler.state(socket, &state);
            Flow::Continue
        }
        Event::Received(bytes) => {
            let offered = joined(&left.unwrap_or_default(), bytes);
            let flow = handler.received(socket, offered.clone());
            let consumed = match flow {
                Flow::Consumed(n) => n.min(offered.len()),
                _ => offered.len(),
            };
            return Called { flow, consumed, left: Some(offered.slice(consumed..)) };
        }
        Event::Ended => handler.ended(socket),
        Event::Writable => handler.writable(socket),
        Event::Call { call, .. } => {
            call(socket);
            Flow::Continue
        }
    };
    Called { flow, ..Called::default() }
}

fn joined(left: &Bytes, bytes: BytesMut) -> Bytes {
    if left.is_empty() {
        return bytes.freeze();
    }
    let mut whole = BytesMut::with_capacity(left.len() + bytes.len());
    whole.extend_from_slice(left);
    whole.extend_from_slice(&bytes);
    whole.freeze()
}

// What the task on the worker tells and asks.
impl Strand {
    /// The task waits from here on: what changes behind this wakes it.
    pub(super) fn register(&self, waker: &Waker) {
        let mut inner = self.lock();
        if !inner.driver.as_ref().is_some_and(|driver| driver.will_wake(waker)) {
            inner.driver = Some(waker.clone());
        }
    }

    /// How far the connect is. That it is over, the task tells.
    pub(super) fn step(self: &Arc<Self>, step: &ConnectState) {
        let state = match step {
            ConnectState::Resolving => State::Resolving,
            ConnectState::Connecting(_) => State::Connecting,
            ConnectState::Proxying(_) => State::Proxying,
            ConnectState::Handshaking(_) => State::Handshaking,
            ConnectState::Idle | ConnectState::Connected(_) | ConnectState::Disconnected(_) => return,
        };
        let mut inner = self.lock();
        inner.change(state);
        self.schedule(inner);
    }

    /// Why the attempt is given up, if it is.
    pub(super) fn given_up(&self) -> Option<CloseReason> {
        let inner = self.lock();
        let closing = inner.closing.map(|reason| reason.unwrap_or(CloseReason::Local));
        let stopping = self.hall.stopping.load(std::sync::atomic::Ordering::SeqCst);
        inner.reset.or(closing).or(stopping.then_some(CloseReason::Shutdown))
    }

    pub(super) fn connected(self: &Arc<Self>, info: Info) {
        let mut inner = self.lock();
        inner.info = info;
        let told = inner.connecting.take();
        inner.change(State::Connected);
        if self.produces {
            inner.push(Event::Writable);
        }
        self.schedule_telling(inner, told.map(|told| (told, Ok(()))).into_iter().collect());
    }

    pub(super) fn take_reset(&self) -> Option<CloseReason> {
        self.lock().reset.take()
    }

    /// Whether bytes would be taken: they were asked for, or there is room for them.
    pub(super) fn has_credit(&self) -> bool {
        let inner = self.lock();
        match self.receives {
            // What comes after the end is thrown away.
            _ if inner.is_over => true,
            true => inner.unconsumed < self.client.limits.receive_buffer.max(1),
            false => inner.armed.is_some(),
        }
    }

    pub(super) fn deliver(self: &Arc<Self>, bytes: &[u8]) {
        let mut inner = self.lock();
        if inner.is_over {
            return;
        }
        if !self.receives {
            match inner.armed.take() {
                Some(handler) => inner.answer(handler, Ok(Bytes::copy_from_slice(bytes))),
                None => inner.early.extend_from_slice(bytes),
            }
            return self.schedule(inner);
        }
        inner.unconsumed += bytes.len();
        let epoch = inner.epoch;
        match inner.events.back_mut() {
            Some((of, Event::Received(there))) if *of == epoch => there.extend_from_slice(bytes),
            _ => inner.push(Event::Received(BytesMut::from(bytes))),
        }
        self.schedule(inner);
    }

    /// The peer has ended its side, behind all that was delivered.
    pub(super) fn peer_ended(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.peer_ended = true;
        if self.receives {
            inner.push(Event::Ended);
        } else if let Some(handler) = inner.armed.take() {
            inner.answer(handler, Ok(Bytes::new()));
        }
        self.schedule(inner);
    }

    pub(super) fn has_commands(&self) -> bool {
        !self.lock().commands.is_empty()
    }

    /// What to do next. A message counts as in flight from here on.
    pub(super) fn next_command(&self) -> Option<Command> {
        let mut inner = self.lock();
        let command = inner.commands.pop_front()?;
        let Command::Send(bytes, sending) = command else { return Some(command) };
        inner.in_flight.push_back(sending);
        Some(Command::Send(bytes, Sending { bytes: 0, handler: None, dependency: None }))
    }

    /// The last message in flight was not taken.
    pub(super) fn refused(self: &Arc<Self>, error: &Error) {
        let mut inner = self.lock();
        let mut ended = Vec::new();
        if let Some(sending) = inner.in_flight.pop_back() {
            inner.sent(sending, Err(error.clone()), &mut ended);
        }
        self.schedule_telling(inner, ended);
    }

    /// What was in flight has been handed to the kernel, or never will be.
    pub(super) fn flushed(self: &Arc<Self>, result: &Result<()>) {
        let mut inner = self.lock();
        let mut ended = Vec::new();
        for sending in std::mem::take(&mut inner.in_flight) {
            let result = match result {
                Ok(()) => Ok(()),
                Err(error) => Err(error.clone()),
            };
            inner.sent(sending, result, &mut ended);
        }
        let has_room = inner.commands.is_empty() && inner.closing.is_none() && !inner.has_finished;
        if self.produces && result.is_ok() && has_room {
            inner.push(Event::Writable);
        }
        self.schedule_telling(inner, ended);
    }

    /// All is over: told once for each `connect`, and last.
    pub(super) fn disconnected(self: &Arc<Self>, why: Disconnect) {
        let operation = if self.lock().connecting.is_some() { Operation::Connect } else { Operation::Send };
        let error = why.error(operation, &self.client.address);
        let mut inner = self.lock();
        let mut ended: Ended = Vec::new();
        let in_flight = std::mem::take(&mut inner.in_flight);
        let commands = std::mem::take(&mut inner.commands);
        // Bytes may be the program's, with a destructor of its own: they are dropped without the lock.
        let (mut unsent, mut queued) = (Vec::new(), Vec::new());
        for command in commands {
            if let Command::Send(bytes, sending) = command {
                unsent.push(bytes);
                queued.push(sending);
            }
        }
        for sending in in_flight.into_iter().chain(queued) {
            inner.sent(sending, Err(error.clone()), &mut ended);
        }
        if let Some(handler) = inner.armed.take() {
            let result = match why.is_graceful() {
                true => Ok(Bytes::new()),
                false => Err(why.error(Operation::Receive, &self.client.address)),
            };
            inner.answer(handler, result);
        }
        ended.extend(inner.connecting.take().map(|told| (told, Err(error))));
        ended.extend(inner.closers.drain(..).map(|told| (told, Ok(()))));
        (inner.is_driven, inner.driver) = (false, None);
        (inner.closing, inner.reset) = (None, None);
        inner.change(State::Disconnected(why));
        self.schedule_telling(inner, ended);
        drop_guarded(unsent);
    }
}

impl Strand {
    /// Lets go of the lock, and has the events handled if that is not arranged.
    fn schedule(self: &Arc<Self>, inner: MutexGuard<'_, Inner>) {
        self.schedule_telling(inner, Vec::new());
    }

    /// The same; tells first what has ended, so that it has when its handlers run.
    fn schedule_telling(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>, ended: Ended) {
        let due = !inner.events.is_empty() && !inner.is_over && !inner.is_scheduled;
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
    /// A new connection: nothing of the last one holds for it, but what is still to be told.
    fn begin(&mut self) {
        self.is_driven = true;
        self.epoch += 1;
        self.early.clear();
        self.peer_ended = false;
        self.info = Info::default();
        self.has_finished = false;
        (self.closing, self.reset) = (None, None);
    }

    fn push(&mut self, event: Event) {
        if !self.is_over {
            self.events.push_back((self.epoch, event));
        }
    }

    /// The state is another from here on, which is told if it is true.
    fn change(&mut self, state: State) {
        if std::mem::discriminant(&self.state) == std::mem::discriminant(&state) {
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
        self.push(Event::Call { call, cost: 0, is_receive: true });
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
