//! Listeners: a poll tells that connections wait, and they are accepted one by one.
//!
//! Not by a multishot accept: that one accepts whatever waits, also what the server has no room for, has to be cancelled to be
//! paused, and does not tell the peer's address. docs/design/uring.md has the comparison.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;

use super::super::kernel::{Completed, Kernel, Request};
use super::key::Kind;
use super::{Driver, SUBMISSIONS_MAX, Source, grow};
use crate::engine::{ACCEPT_BUDGET, Completion, Listener, ListenerId, Share, Socket, Token};

pub(super) struct Listening {
    pub(super) listener: OwnedFd,
    pub(super) generation: u32,
    pub(super) paused: bool,
    pub(super) polling: bool,
    pub(super) ready: bool,
    pub(super) queued: bool,
    pub(super) share: Share,
}

impl<K: Kernel> Driver<K> {
    pub(crate) fn listen(&mut self, id: ListenerId, listener: Listener) -> io::Result<()> {
        let Listener::Os(listener) = listener else { return Err(io::ErrorKind::Unsupported.into()) };
        let index = id.0 as usize;
        grow(&mut self.listeners, index);
        self.listeners_made += 1;
        self.listeners[index] = Some(Listening {
            listener,
            generation: self.listeners_made,
            paused: false,
            polling: false,
            ready: false,
            queued: false,
            share: Share::default(),
        });
        self.await_connections(id.0);
        Ok(())
    }

    pub(crate) fn pause_accept(&mut self, id: ListenerId) {
        if let Some(Some(listening)) = self.listeners.get_mut(id.0 as usize) {
            listening.paused = true;
        }
    }

    pub(crate) fn resume_accept(&mut self, id: ListenerId) {
        if let Some(Some(listening)) = self.listeners.get_mut(id.0 as usize) {
            listening.paused = false;
            self.enqueue(Source::Listener(id.0));
            self.await_connections(id.0);
        }
    }

    pub(crate) fn unlisten(&mut self, id: ListenerId) {
        let Some(listening) = self.listeners.get_mut(id.0 as usize).and_then(Option::take) else { return };
        if listening.polling {
            // A request keeps its socket open: connects would go on succeeding until it is gone.
            self.cancel(Kind::Accept, Token { index: id.0, generation: listening.generation });
            // And it has to find this socket, not the next one with the same descriptor.
            for _ in 0..SUBMISSIONS_MAX {
                self.flush_backlog();
                drop(self.submit(false));
                if self.backlog.is_empty() && self.kernel.queued() == 0 {
                    break;
                }
            }
        }
    }

    pub(super) fn await_connections(&mut self, index: u32) {
        if let Some(Some(listening)) = self.listeners.get_mut(index as usize)
            && !(listening.polling || listening.ready || listening.paused)
        {
            listening.polling = true;
            let token = Token { index, generation: listening.generation };
            let request = Request::PollReadable { fd: listening.listener.as_raw_fd() };
            self.request(Kind::Accept, token, request);
        }
    }

    pub(super) fn connections_wait(&mut self, completed: Completed) {
        let index = completed.key.index();
        if let Some(Some(listening)) = self.listeners.get_mut(index as usize)
            && completed.key.is_for(Token { index, generation: listening.generation })
        {
            (listening.polling, listening.ready) = (false, true);
            self.enqueue(Source::Listener(index));
        }
    }

    pub(super) fn accept(&mut self, index: u32) -> Option<Completion> {
        let listening = self.listeners[index as usize].as_mut()?;
        let listener = ListenerId(index);
        while listening.ready && !listening.paused {
            if !listening.share.take(self.turn, ACCEPT_BUDGET) {
                self.later.push(Source::Listener(index));
                return None;
            }
            match self.kernel.accept(listening.listener.as_fd()) {
                Ok((socket, peer)) => {
                    return Some(Completion::Accepted { listener, socket: Socket::Os(socket), peer });
                }
                Err(Errno::AGAIN) => listening.ready = false,
                Err(Errno::INTR) => {}
                Err(error) => {
                    listening.paused = true;
                    return Some(Completion::AcceptFailed { listener, error: error.into() });
                }
            }
        }
        self.await_connections(index);
        None
    }
}
