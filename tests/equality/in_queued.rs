//! Scripts in event style, with handlers on a queue.

use std::time::Duration;

use bytes::Bytes;
use wharf::Result;
use wharf::event::{Disconnect, Flow, QueuedHandler, SocketHandle, State};

use super::in_events::{Line, Performing};
use super::script::Handle;

impl Line for &SocketHandle {
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        SocketHandle::send(self, Bytes::copy_from_slice(bytes))
    }

    fn queued(&self) -> usize {
        SocketHandle::queued(self)
    }

    fn finish(&mut self) {
        SocketHandle::finish(self);
    }

    fn set_deadline(&mut self, after: Option<Duration>) {
        SocketHandle::set_deadline(self, after);
    }

    fn handle(&self) -> Handle {
        Handle::Queue(SocketHandle::clone(self))
    }
}

impl QueuedHandler for Performing {
    fn state(&mut self, socket: &SocketHandle, state: &State) {
        match state {
            State::Connected => self.telling.note().is_secured = socket.tls().is_some(),
            State::Disconnected(Disconnect::Closed(reason)) => self.is_closed(*reason),
            State::Disconnected(Disconnect::Failed(error)) => self.telling.failed(error),
            _ => {}
        }
    }

    fn received(&mut self, mut socket: &SocketHandle, bytes: Bytes) -> Flow {
        self.is_offered(&mut socket, &bytes)
    }

    /// Also called when the connection stands.
    fn writable(&mut self, mut socket: &SocketHandle) -> Flow {
        self.has_room(&mut socket)
    }

    fn ended(&mut self, mut socket: &SocketHandle) -> Flow {
        self.has_ended(&mut socket)
    }

    fn draining(&mut self, _: &SocketHandle) -> Flow {
        self.telling.note().is_draining = true;
        Flow::Continue
    }

    fn produces(&self) -> bool {
        true
    }
}
