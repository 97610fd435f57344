//! TLS handshakes on a worker: before the handler begins, or in mid-stream, with a deadline and a bound for all of them.

use std::rc::Rc;

use super::Worker;
use super::link::Link;
use super::preface::Begin;
use crate::error::{Cause, CloseReason, Deadline, Error, Operation, Result};
use crate::tls::{Acceptor, Failure, Session};
use crate::tls_fault::TlsFault;

impl Worker {
    /// Has TLS stand on a new connection before `begin` puts a handler on it.
    pub(crate) fn await_tls(self: &Rc<Self>, link: &Rc<Link>, acceptor: &Acceptor, begin: Begin) {
        let within = acceptor.current().within;
        self.await_preface(link, within, Deadline::Handshake, Some(begin));
        match Session::accept(acceptor) {
            Ok(session) => {
                link.conn.borrow_mut().begin_tls(session);
                link.mark_dirty();
            }
            Err(failure) => {
                event!(error, detail = %failure.detail, "TLS cannot begin");
                let _ = failure;
                self.drop_preface(link);
                link.command(|conn| conn.reset(CloseReason::Tls(TlsFault::Local)));
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

    /// Begins TLS in mid-stream.
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
