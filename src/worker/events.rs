//! Event style: what a connection's handler is told, and when.
//!
//! A handler is called by nobody but [`Worker::call`], with nothing borrowed, never twice at once, and not at all after
//! `closed`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::Worker;
use super::link::{Link, drop_guarded};
use crate::conn::{Conn, News};
use crate::engine::buffer::Chunk;
use crate::error::{Bound, CloseReason};
use crate::event::{self, Flow, Handler};

impl Worker {
    /// From now on `handler` gets the connection's events, beginning with `connected`.
    pub(crate) fn attach(self: &Rc<Self>, link: &Rc<Link>, handler: Box<dyn Handler>) {
        link.is_event.set(true);
        link.handler.set(Some(handler));
        link.conn.borrow_mut().await_reading(self.now());
        self.call(link, Handler::connected);
        link.mark_dirty();
    }

    /// The same for a connection that another has had before: what came meanwhile is offered, and an end that came is told.
    pub(crate) fn attach_late(self: &Rc<Self>, link: &Rc<Link>, handler: Box<dyn Handler>) {
        self.attach(link, handler);
        loop {
            let Some(chunk) = link.conn.borrow_mut().take_joined() else { break };
            let again = self.offer_joined(link, chunk);
            link.conn.borrow_mut().offered();
            if !again {
                break;
            }
        }
        let (is_closed, reason) = {
            let conn = link.conn.borrow();
            (conn.is_closed(), conn.reason().unwrap_or(CloseReason::Local))
        };
        if is_closed {
            return self.tell_closed(link, reason);
        }
        self.tell_end(link);
        self.tell_hangup(link);
        link.mark_dirty();
    }

    pub(super) fn tell_handler(self: &Rc<Self>, link: &Rc<Link>, news: News) {
        let mut conn = link.conn.borrow_mut();
        if news.unblocked() && !conn.is_blocked() {
            conn.await_reading(self.now());
        }
        drop(conn);
        if news.unsecured() && link.conn.borrow().is_open() {
            // An end that was told was that of TLS.
            link.end_told.set(false);
            link.hangup_told.set(false);
            self.call(link, Handler::unsecured);
        }
        // What came before comes first: a handler that refills its queue at once would never see it otherwise.
        if news.unblocked() || news.readable() {
            self.offer_unread(link);
            if link.conn.borrow().is_paused() {
                link.mark_dirty();
            }
            self.tell_end(link);
        }
        if news.hung_up() || news.readable() {
            self.tell_hangup(link);
        }
        let writable = {
            let conn = link.conn.borrow();
            news.unblocked() && conn.writable().is_ok() && !conn.is_blocked()
        };
        if writable {
            self.call(link, Handler::writable);
        }
    }

    /// Offers what was left over, once the handler can send again.
    fn offer_unread(self: &Rc<Self>, link: &Rc<Link>) {
        loop {
            let mut conn = link.conn.borrow_mut();
            if !conn.is_offered() {
                return;
            }
            let Some(chunk) = conn.take_joined() else { return };
            drop(conn);
            let again = self.offer_joined(link, chunk);
            link.conn.borrow_mut().offered();
            if !again {
                return;
            }
        }
    }

    /// Tells that TLS stands, to a handler that has begun it in mid-stream.
    pub(super) fn tell_secured(self: &Rc<Self>, link: &Rc<Link>) {
        if link.is_event.get() && link.conn.borrow().is_open() {
            self.call(link, Handler::secured);
        }
    }

    /// Tells the peer's end, after the last bytes.
    fn tell_end(self: &Rc<Self>, link: &Rc<Link>) {
        let due = {
            let conn = link.conn.borrow();
            conn.ended_in_order() && !conn.is_blocked()
        };
        if due && !link.end_told.replace(true) && !self.call(link, Handler::ended) {
            // What the handler waits for did not come whole, and will not.
            link.command(Conn::close);
        }
    }

    /// Tells the peer's end if its last bytes cannot be offered yet.
    fn tell_hangup(self: &Rc<Self>, link: &Rc<Link>) {
        let due = {
            let conn = link.conn.borrow();
            let is_behind = conn.is_blocked() || conn.is_paused();
            conn.hangup().is_some() && is_behind && conn.is_open() && !link.end_told.get()
        };
        if due && !link.hangup_told.replace(true) {
            self.call(link, Handler::hung_up);
        }
    }

    /// Offers what came, behind what was left over.
    pub(super) fn offer(self: &Rc<Self>, link: &Rc<Link>, chunk: Chunk) {
        let mut conn = link.conn.borrow_mut();
        if conn.unread() == 0 && !conn.is_blocked() {
            drop(conn);
            if self.offer_joined(link, chunk) {
                self.offer_unread(link);
            }
            return;
        }
        conn.keep(chunk);
        drop(conn);
        self.offer_unread(link);
    }

    /// Returns whether what is left has to be offered again at once: nothing more can come before some of it is gone.
    #[inline]
    fn offer_joined(self: &Rc<Self>, link: &Rc<Link>, mut chunk: Chunk) -> bool {
        let (consumed, begun) = match self.consume(link, &chunk) {
            Some(consumed) => (consumed, false),
            None => self.read_preface(link, &chunk),
        };
        if consumed == chunk.len() {
            return false;
        }
        let mut conn = link.conn.borrow_mut();
        if !conn.is_open() {
            return false;
        }
        chunk.advance(consumed);
        if conn.is_handshaking() {
            // TLS begins behind what was consumed.
            conn.receive_sealed(chunk);
            drop(conn);
            self.unseal(link);
            return false;
        }
        if !link.is_event.get() {
            // The preface is over, and the handler reads by itself.
            conn.keep(chunk);
            return false;
        }
        conn.leave(chunk, consumed, self.now());
        if conn.is_blocked() {
            return false;
        }
        if conn.is_full() && consumed == 0 {
            conn.end(CloseReason::Limit(Bound::ReceiveBuffer), self.now());
            drop(conn);
            link.mark_dirty();
            return false;
        }
        begun || conn.is_full()
    }

    /// Gives `bytes` to the handler; returns how many it has consumed. `None` if it has not begun yet.
    fn consume(self: &Rc<Self>, link: &Rc<Link>, bytes: &[u8]) -> Option<usize> {
        let mut consumed = bytes.len();
        let called = self.call(link, |handler, conn| {
            let flow = handler.received(conn, bytes);
            if let Flow::Consumed(n) = flow {
                consumed = n.min(bytes.len());
            }
            flow
        });
        called.then_some(consumed)
    }

    /// Tells the handler that the server drains.
    pub(crate) fn tell_draining(self: &Rc<Self>, link: &Rc<Link>) {
        if let Some(rare) = link.used_rare() {
            rare.drainer.wake(&self.tasks);
        }
        if link.conn.borrow().is_open() {
            self.call(link, Handler::draining);
        }
    }

    /// Tells the handler that all is over, and drops it.
    pub(super) fn tell_closed(self: &Rc<Self>, link: &Rc<Link>, reason: CloseReason) {
        self.call(link, |handler, conn| {
            handler.closed(conn, reason);
            Flow::Continue
        });
        drop_guarded(link.handler.take());
        self.drop_preface(link);
    }

    /// Calls the handler, if there is one, and does what it decides. A panic resets the connection. Returns whether there is
    /// one.
    fn call(
        self: &Rc<Self>,
        link: &Rc<Link>,
        call: impl FnOnce(&mut dyn Handler, &mut event::Connection<'_>) -> Flow,
    ) -> bool {
        let Some(mut handler) = link.handler.take() else { return false };
        let mut conn = event::Connection::new(link);
        match catch_unwind(AssertUnwindSafe(|| call(&mut *handler, &mut conn))) {
            Ok(Flow::Continue | Flow::Consumed(_)) => {}
            Ok(Flow::Close) => link.command(Conn::close),
            Ok(Flow::Reset) => link.command(|conn| conn.reset(CloseReason::LocalReset)),
            Err(payload) => link.panicked(payload),
        }
        self.returned(link);
        link.handler.set(Some(handler));
        let mut conn = link.conn.borrow_mut();
        if conn.is_blocked() {
            conn.make_wait();
        }
        true
    }
}
