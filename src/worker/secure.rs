//! TLS handshakes on a worker: before the handler begins, or in mid-stream, with a deadline and a bound for all of them.

use std::rc::Rc;

use super::handshakes::{Place, Turn};
use super::link::Link;
use super::preface::Begin;
use super::{Alarm, Worker};
use crate::engine::Token;
use crate::error::{Cause, CloseReason, Deadline, Error, Operation, Result};
use crate::time::Time;
use crate::tls::{Acceptor, Failure, Session};
use crate::tls_fault::TlsFault;

impl Worker {
    /// Has TLS stand on a new connection before `begin` puts a handler on it.
    pub(crate) fn await_tls(self: &Rc<Self>, link: &Rc<Link>, acceptor: &Acceptor, begin: Begin) {
        self.await_preface(link, acceptor.current().within, Deadline::Handshake, Some(begin));
        link.rare().awaits_tls.set(true);
        if self.handshakes.anybody_waits() || !self.shake_hands(link, acceptor) {
            self.handshakes.wait(link.token);
        }
    }

    /// Begins the handshake of a new connection, if there is a place for it.
    fn shake_hands(self: &Rc<Self>, link: &Rc<Link>, acceptor: &Acceptor) -> bool {
        let max = self.handshakes_max(acceptor);
        let mut turn = self.handshakes.ask(link.token, max, self.now());
        // Several, if there are fewer places than there were.
        while let Turn::Instead(slow) = turn
            && self.give_way(slow)
        {
            turn = self.handshakes.ask(link.token, max, self.now());
        }
        let place = match turn {
            Turn::Begins(place) => place,
            Turn::Instead(_) => return false,
            Turn::Waits(until) => {
                self.look_at_handshakes(until);
                return false;
            }
        };
        if let Some(preface) = link.rare().preface.borrow_mut().as_mut() {
            preface.place = Some(place);
        }
        match Session::accept(acceptor) {
            Ok(session) => {
                link.conn.borrow_mut().begin_tls(session);
                self.unseal(link);
            }
            Err(failure) => {
                event!(error, detail = %failure.detail, "TLS cannot begin");
                let _ = failure;
                self.drop_preface(link);
                link.command(|conn| conn.reset(CloseReason::Tls(TlsFault::Local)));
            }
        }
        true
    }

    /// This worker's share of the handshakes that may be in progress.
    fn handshakes_max(&self, acceptor: &Acceptor) -> usize {
        let workers = self.member.borrow().as_ref().map_or(1, |member| member.server.posts().len().max(1));
        acceptor.current().handshakes_max.div_ceil(workers)
    }

    /// A handshake is over: somebody who waits may take its place, when what is under way is done.
    pub(super) fn leave_handshakes(&self, place: Place) {
        self.handshakes.leave(place);
        if self.handshakes.anybody_waits() {
            self.look_at_handshakes(self.now());
        }
    }

    fn look_at_handshakes(&self, at: Time) {
        if self.handshakes.look_at(at) {
            self.timers.borrow_mut().insert(at, Alarm::Handshakes);
        }
    }

    /// Has a handshake give its place up; says whether there is such a one.
    fn give_way(self: &Rc<Self>, slow: Token) -> bool {
        let Some(link) = self.slots.get(slow) else { return false };
        self.drop_preface(&link);
        link.command(|conn| conn.reset(CloseReason::Tls(TlsFault::Busy)));
        true
    }

    /// Begins the handshakes of those who wait, as far as there are places.
    pub(super) fn begin_waiting_handshakes(self: &Rc<Self>) {
        self.handshakes.looked();
        while let Some(token) = self.handshakes.next_waiting() {
            let Some(link) = self.slots.get(token).filter(|link| self.awaits_preface(link)) else { continue };
            let member = self.member.borrow().clone();
            let Some(acceptor) = member.as_ref().and_then(|member| member.server.acceptor(link.listener()))
            else {
                continue;
            };
            if !self.shake_hands(&link, acceptor) {
                return self.handshakes.wait_on(token);
            }
        }
    }

    /// Begins TLS in mid-stream, as the server.
    pub(crate) fn accept_tls(self: &Rc<Self>, link: &Rc<Link>, acceptor: &Acceptor) -> Result<()> {
        let session = Session::accept(acceptor).map_err(|failure| failed(link, &failure))?;
        self.secure(link, session)?;
        self.await_preface(link, acceptor.current().within, Deadline::Handshake, None);
        Ok(())
    }

    /// Begins TLS in mid-stream. [`Worker::unseal`] has to follow, once no handler is being called.
    pub(crate) fn secure(self: &Rc<Self>, link: &Rc<Link>, session: Session) -> Result<()> {
        if link.conn.borrow_mut().begin_tls(session) {
            link.mark_dirty();
            return Ok(());
        }
        let cause = match link.conn.borrow().reason() {
            Some(reason) => Cause::Closed(reason),
            None => Cause::Misuse("TLS can begin once, and before this side has finished"),
        };
        Err(Error::new(Operation::Secure, cause).at(link.peer()))
    }
}

/// The error that says why TLS cannot begin, or has failed.
pub(crate) fn failed(link: &Link, failure: &Failure) -> Error {
    let Failure { fault, detail } = failure.clone();
    Error::new(Operation::Secure, Cause::Tls { fault, detail }).at(link.peer())
}
