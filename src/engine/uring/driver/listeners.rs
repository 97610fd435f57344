//! Listeners: a poll tells that connections wait, and they are accepted one by one.
//!
//! Not by a multishot accept: that one accepts whatever waits, also what the server has no room for, has to be cancelled to be
//! paused, and does not tell the peer's address. docs/design/uring.md has the comparison.

use std::io;
use std::os::fd::AsRawFd;

use super::super::kernel::{Completed, Kernel, Request};
use super::key::Kind;
use super::{Driver, SUBMISSIONS_MAX};
use crate::address::Address;
use crate::engine::listening::{Listening, Next};
use crate::engine::{Completion, Listener, ListenerId, Socket, Source, Token, grow};

/// A listener, and the poll that watches it.
pub(super) struct Watched {
    pub(super) listening: Listening,
    generation: u32,
    polling: bool,
}

impl<K: Kernel> Driver<K> {
    pub(crate) fn listen(&mut self, id: ListenerId, listener: Listener) -> io::Result<()> {
        let Listener::Os(listener) = listener else { return Err(io::ErrorKind::Unsupported.into()) };
        let index = id.0 as usize;
        grow(&mut self.listeners, index);
        self.listeners_made += 1;
        let (listening, generation) = (Listening::new(listener), self.listeners_made);
        self.listeners[index] = Some(Watched { listening, generation, polling: false });
        self.await_connections(id.0);
        Ok(())
    }

    pub(crate) fn pause_accept(&mut self, id: ListenerId) {
        if let Some(Some(watched)) = self.listeners.get_mut(id.0 as usize) {
            watched.listening.paused = true;
        }
    }

    pub(crate) fn resume_accept(&mut self, id: ListenerId) {
        if let Some(Some(watched)) = self.listeners.get_mut(id.0 as usize) {
            watched.listening.paused = false;
            self.enqueue(Source::Listener(id.0));
            self.await_connections(id.0);
        }
    }

    pub(crate) fn unlisten(&mut self, id: ListenerId) -> Option<Listener> {
        let watched = self.listeners.get_mut(id.0 as usize)?.take()?;
        if watched.polling {
            // A request keeps its socket open: connects would go on succeeding until it is gone.
            self.cancel(Kind::Accept, Token { index: id.0, generation: watched.generation });
            // And it has to find this socket, not the next one with the same descriptor.
            for _ in 0..SUBMISSIONS_MAX {
                self.flush_backlog();
                drop(self.submit(false));
                if self.backlog.is_empty() && self.kernel.queued() == 0 {
                    break;
                }
            }
        }
        Some(Listener::Os(watched.listening.listener))
    }

    pub(crate) fn accept_now(&mut self, id: ListenerId) -> io::Result<Option<(Socket, Address)>> {
        match self.listeners.get_mut(id.0 as usize) {
            Some(Some(watched)) => watched.listening.accept_now(|listener| self.kernel.accept(listener)),
            _ => Ok(None),
        }
    }

    fn await_connections(&mut self, index: u32) {
        if let Some(Some(watched)) = self.listeners.get_mut(index as usize)
            && !(watched.polling || watched.listening.ready || watched.listening.paused)
        {
            watched.polling = true;
            let token = Token { index, generation: watched.generation };
            let request = Request::PollReadable { fd: watched.listening.listener.as_raw_fd() };
            self.request(Kind::Accept, token, request);
        }
    }

    pub(super) fn connections_wait(&mut self, completed: Completed) {
        let index = completed.key.index();
        if let Some(Some(watched)) = self.listeners.get_mut(index as usize)
            && completed.key.is_for(Token { index, generation: watched.generation })
        {
            (watched.polling, watched.listening.ready) = (false, true);
            self.enqueue(Source::Listener(index));
        }
    }

    pub(super) fn accept(&mut self, index: u32) -> Option<Completion> {
        let watched = self.listeners[index as usize].as_mut()?;
        match watched.listening.accept(ListenerId(index), self.turn, |listener| self.kernel.accept(listener))
        {
            Next::Report(completion) => return Some(completion),
            Next::Later => self.later.push(Source::Listener(index)),
            Next::Rest => self.await_connections(index),
        }
        None
    }
}
