//! What the task on a worker tells a strand, and asks of it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::room::Refusal;
use super::{Command, Ended, Event, Info, Origin, Rest, Sending, Strand};
use crate::client::ConnectState;
use crate::error::{CloseReason, Error, Operation, Result};
use crate::event::{Disconnect, State};
use crate::worker::link::drop_guarded;

impl Strand {
    /// The task waits from here on: what changes behind this wakes it.
    pub(in crate::event) fn register(&self, waker: &Waker) {
        let mut inner = self.lock();
        if !inner.driver.as_ref().is_some_and(|driver| driver.will_wake(waker)) {
            inner.driver = Some(waker.clone());
        }
    }

    /// An accepted connection has its task: its handler may be made.
    pub(in crate::event) fn open(self: &Arc<Self>) {
        self.schedule(self.lock());
    }

    /// The server drains.
    pub(in crate::event) fn draining(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.push(Event::Draining);
        self.schedule(inner);
    }

    /// How far the connect is. That it is over, the task tells.
    pub(in crate::event) fn step(self: &Arc<Self>, step: &ConnectState) {
        if !step.is_connecting() {
            return;
        }
        let mut inner = self.lock();
        inner.change(State::Connecting(step.clone()));
        self.schedule(inner);
    }

    /// Why the attempt is given up, if it is.
    pub(in crate::event) fn given_up(&self) -> Option<CloseReason> {
        let inner = self.lock();
        let closing = inner.closing.map(|reason| reason.unwrap_or(CloseReason::Local));
        inner.reset.or(closing).or(self.is_stopping().then_some(CloseReason::Shutdown))
    }

    /// Whether its service stops. A server resets its connections itself.
    pub(in crate::event) fn is_stopping(&self) -> bool {
        match &self.origin {
            Origin::Client { hall, .. } => hall.stopping.load(Ordering::SeqCst),
            Origin::Accepted => false,
        }
    }

    pub(in crate::event) fn connected(self: &Arc<Self>, info: Info) {
        let mut inner = self.lock();
        inner.info = info;
        let told = inner.connecting.take();
        inner.change(State::Connected);
        if inner.produces() {
            inner.writable();
        }
        self.schedule_telling(inner, told.map(|told| (told, Ok(()))).into_iter().collect());
    }

    pub(in crate::event) fn take_reset(&self) -> Option<CloseReason> {
        self.lock().reset.take()
    }

    /// The deadline that was set last, once.
    pub(in crate::event) fn take_deadline(&self) -> Option<Option<Duration>> {
        self.lock().deadline.take()
    }

    /// What its handler has panicked with, once.
    pub(in crate::event) fn take_panic(&self) -> Option<Box<dyn Any + Send>> {
        self.lock().panicked.take()
    }

    /// Whether bytes would be taken: they were asked for, or there is room for them.
    pub(in crate::event) fn has_credit(&self) -> bool {
        let inner = self.lock();
        match inner.calls {
            // What comes after the end is thrown away.
            _ if inner.is_over => true,
            // Nobody knows yet who asks for it.
            None => false,
            Some(calls) if calls.receives => inner.unconsumed < self.limits.receive_buffer.max(1),
            Some(_) => inner.armed.is_some(),
        }
    }

    pub(in crate::event) fn rest(&self) -> Rest {
        let mut inner = self.lock();
        match inner.left.len() {
            left if inner.unconsumed > left => Rest::Handled,
            1.. if inner.refusal != Refusal::None || inner.is_offered_again => Rest::Handled,
            0 => Rest::Nothing,
            left => Rest::Awaited(left, std::mem::take(&mut inner.is_next_left)),
        }
    }

    pub(in crate::event) fn deliver(self: &Arc<Self>, bytes: &[u8]) {
        let mut inner = self.lock();
        if inner.is_over {
            return;
        }
        if inner.calls.is_some_and(|calls| !calls.receives) {
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
    pub(in crate::event) fn peer_ended(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.peer_ended = true;
        if inner.receives() {
            inner.push(Event::Ended);
        } else if let Some(handler) = inner.armed.take() {
            inner.answer(handler, Ok(Bytes::new()));
        }
        self.schedule(inner);
    }

    pub(in crate::event) fn has_commands(&self) -> bool {
        let inner = self.lock();
        inner.reset.is_none() && !inner.commands.is_empty()
    }

    /// What to do next. A message counts as in flight from here on.
    ///
    /// Nothing while a reset waits for the task to look: the close behind a handler's panic must not come before it.
    pub(in crate::event) fn next_command(&self) -> Option<Command> {
        let mut inner = self.lock();
        if inner.reset.is_some() {
            return None;
        }
        let command = inner.commands.pop_front()?;
        let Command::Send(bytes, sending) = command else { return Some(command) };
        inner.in_flight.push_back(sending);
        Some(Command::Send(bytes, Sending { bytes: 0, handler: None, dependency: None }))
    }

    /// The last message in flight was not taken.
    pub(in crate::event) fn refused(self: &Arc<Self>, error: &Error) {
        let mut inner = self.lock();
        let mut ended = Vec::new();
        if let Some(sending) = inner.in_flight.pop_back() {
            inner.sent(sending, Err(error.clone()), &mut ended);
        }
        inner.has_room(self.limits.send_max);
        self.schedule_telling(inner, ended);
    }

    /// What was in flight has been handed to the kernel, or never will be.
    pub(in crate::event) fn flushed(self: &Arc<Self>, result: &Result<()>) {
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
        if inner.produces() && result.is_ok() && has_room {
            inner.writable();
        }
        inner.has_room(self.limits.send_max);
        self.schedule_telling(inner, ended);
    }

    /// All is over: told once for each `connect`, and last.
    pub(in crate::event) fn disconnected(self: &Arc<Self>, why: Disconnect) {
        let operation = if self.lock().connecting.is_some() { Operation::Connect } else { Operation::Send };
        let error = why.error(operation, &self.address);
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
                false => Err(why.error(Operation::Receive, &self.address)),
            };
            inner.answer(handler, result);
        }
        ended.extend(inner.connecting.take().map(|told| (told, Err(error))));
        ended.extend(inner.closers.drain(..).map(|told| (told, Ok(()))));
        (inner.is_driven, inner.driver) = (false, None);
        (inner.closing, inner.reset) = (None, None);
        // There will be no room: what came is told now.
        inner.refusal = Refusal::None;
        let panicked = inner.panicked.take();
        inner.change(State::Disconnected(why));
        self.schedule_telling(inner, ended);
        drop_guarded(unsent);
        drop_guarded(panicked);
    }
}
