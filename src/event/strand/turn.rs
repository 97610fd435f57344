//! What a queue does with a strand: one event after the other is handled, and what a handler decides is carried out.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use bytes::{Bytes, BytesMut};

use super::room::Refusal;
use super::{Calls, Event, Origin, Strand, wake};
use crate::error::{Bound, CloseReason};
use crate::event::{Flow, QueuedHandler, SocketHandle};
use crate::worker::link::drop_guarded;

/// So many events are handled in one job, before other sockets of the queue have their turn.
const BATCH: usize = 16;

impl Strand {
    /// Handles what has come: some of it, if it is much.
    pub(in crate::event) fn run(self: Arc<Self>) {
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
        let next = inner.next_event();
        let Some((epoch, event)) = next.and_then(|at| inner.events.remove(at)) else {
            inner.is_scheduled = false;
            return false;
        };
        let _handling = Handling::begin();
        if let Event::Begin(maker) = event {
            inner.running = Some(thread::current().id());
            drop(inner);
            let make = || {
                let handler = maker(socket);
                (Calls::of(&*handler), handler)
            };
            return self.made(catch_unwind(AssertUnwindSafe(make)));
        }
        let Some(mut handler) = inner.handler.take() else { return false };
        inner.running = Some(thread::current().id());
        // An accepted connection is the only one of its handler.
        let is_last = matches!(&event, Event::State(state) if state.is_disconnected())
            && matches!(self.origin, Origin::Accepted);
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
            Event::Received(_) => {
                left = Some(std::mem::take(&mut inner.left));
                inner.is_offered_again = false;
            }
            Event::Call { cost: costs, is_receive, .. } => {
                cost = *costs;
                if *is_receive {
                    inner.is_receiving = false;
                }
            }
            // One of an earlier connection stands for none of this one's.
            Event::Writable => inner.has_writable &= epoch != inner.epoch,
            Event::Begin(_) | Event::Ended | Event::Draining => {}
        }
        drop(inner);
        let called = catch_unwind(AssertUnwindSafe(|| call(&mut *handler, socket, event, left)));
        if is_last {
            self.over(None);
        }
        self.returned(epoch, cost, handler, called)
    }

    /// The handler of an accepted connection is made. Returns whether it may be called.
    fn made(&self, made: thread::Result<(Calls, Box<dyn QueuedHandler>)>) -> bool {
        let made = made.map_err(|payload| self.panicked(payload)).ok();
        let mut inner = self.lock();
        if inner.is_over {
            drop(inner);
            drop_guarded(made);
            self.leave();
            return false;
        }
        inner.running = None;
        if let Some((calls, handler)) = made {
            (inner.calls, inner.handler) = (Some(calls), Some(handler));
            if !calls.receives {
                inner.set_aside();
            }
            if calls.produces {
                inner.writable();
            }
        }
        inner.look_for_what_waits();
        // There may be credit now.
        wake(inner);
        true
    }

    /// A handler has panicked: none is called any more.
    fn panicked(&self, payload: Box<dyn Any + Send>) {
        let mut inner = self.lock();
        let unheard = match inner.is_driven {
            true => {
                inner.reset.get_or_insert(CloseReason::HandlerPanicked);
                inner.panicked.replace(payload)
            }
            false => Some(payload),
        };
        drop(inner);
        self.over(None);
        drop_guarded(unheard);
    }

    /// The last handler of a strand that is over has returned.
    fn leave(&self) {
        self.lock().running = None;
        self.returned.notify_all();
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
                self.panicked(payload);
                Called::default()
            }
        };
        let mut inner = self.lock();
        if inner.is_over {
            drop(inner);
            // While it counts as running: who waits for the end waits for its destructor too.
            drop_guarded(handler);
            self.leave();
            return false;
        }
        inner.running = None;
        inner.handler = Some(handler);
        inner.charged -= cost;
        let was_offered = called.left.is_some();
        inner.unconsumed -= called.consumed;
        inner.is_next_left |= called.consumed > 0;
        inner.left = match called.left {
            Some(left) => left,
            None => std::mem::take(&mut inner.left),
        };
        // What is left for want of room is not a message that is too long.
        let was_refused = inner.refusal != Refusal::None;
        match cost {
            0 => inner.look_for_what_waits(),
            _ => inner.has_room(self.limits.send_max),
        }
        let is_current = epoch == inner.epoch && inner.is_driven;
        if is_current {
            let is_stuck = was_offered && called.consumed == 0 && !was_refused;
            if is_stuck && inner.left.len() >= self.limits.receive_buffer.max(1) {
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
            let offered = joined(left.unwrap_or_default(), bytes);
            let flow = handler.received(socket, offered.clone());
            let consumed = match flow {
                Flow::Consumed(n) => n.min(offered.len()),
                _ => offered.len(),
            };
            return Called { flow, consumed, left: Some(offered.slice(consumed..)) };
        }
        Event::Ended => handler.ended(socket),
        Event::Writable => handler.writable(socket),
        Event::Draining => handler.draining(socket),
        // Met before: there is no handler yet.
        Event::Begin(_) => Flow::Continue,
        Event::Call { call, .. } => {
            call(socket);
            Flow::Continue
        }
    };
    Called { flow, ..Called::default() }
}

/// Marks this thread as one on which a handler runs.
pub(super) struct Handling;

thread_local! {
    static HANDLING: Cell<usize> = const { Cell::new(0) };
}

impl Handling {
    fn begin() -> Handling {
        HANDLING.with(|depth| depth.set(depth.get() + 1));
        Handling
    }

    pub(super) fn is_on_this_thread() -> bool {
        HANDLING.try_with(|depth| depth.get() > 0).unwrap_or(false)
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        HANDLING.with(|depth| depth.set(depth.get() - 1));
    }
}

fn joined(left: Bytes, bytes: BytesMut) -> Bytes {
    if left.is_empty() {
        return bytes.freeze();
    }
    if bytes.is_empty() {
        return left;
    }
    let mut whole = BytesMut::with_capacity(left.len() + bytes.len());
    whole.extend_from_slice(&left);
    whole.extend_from_slice(&bytes);
    whole.freeze()
}
