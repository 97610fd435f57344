//! The stay of one connection in a blocking server, on its own thread: what its proxy tells, its TLS handshake, its handler, and
//! its end, which is counted and told however it comes about.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::connection::Connection;
use super::line::Line;
use super::places::Place;
use super::preface;
use super::serving::{OnThread, Shared};
use crate::address::Address;
use crate::conn::Counts;
use crate::error::{CloseReason, Deadline, Error};
use crate::server::{Seat, ServerEvent, panic_message};

pub(super) struct Visit {
    shared: Arc<Shared>,
    seat: Seat,
    place: Arc<Place>,
    stage: Stage,
    outcome: Option<(CloseReason, Counts)>,
    /// What exactly was wrong with its handshake.
    detail: String,
}

/// How far a connection has come.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Stage {
    Arriving,
    /// It waits for TLS.
    Securing,
    /// Its handler has it, and whoever watches knows.
    Open,
}

impl Visit {
    pub(super) fn new(shared: Arc<Shared>, seat: Seat, peer: Address) -> Visit {
        let place = shared.places.take(peer);
        Visit { shared, seat, place, stage: Stage::Arriving, outcome: None, detail: String::new() }
    }

    /// It is over before it has begun.
    pub(super) fn end(mut self, reason: CloseReason) {
        self.outcome = Some((reason, Counts::default()));
    }

    pub(super) fn run(mut self, conn: Connection) {
        let _serving = OnThread::begin(&self.shared);
        self.serve(conn);
        // Whoever watches is told on a thread that serves.
        drop(self);
    }

    fn serve(&mut self, mut conn: Connection) {
        conn.line().take_place(self.place.clone());
        let returned = if self.is_announced(&mut conn) && self.is_secured(&mut conn) {
            self.open();
            catch_unwind(AssertUnwindSafe(|| (self.shared.handler)(conn)))
        } else {
            drop(conn);
            Ok(Ok(()))
        };
        // Its owner, who need not be this thread's handler, has dropped it by then; here it is seen off.
        let mut line = self.place.await_line();
        self.outcome = Some((CloseReason::Shutdown, Counts::default()));
        if let (Some(line), Ok(Err(error))) = (&mut line, &returned) {
            failed(line, error);
        }
        if let Err(payload) = returned {
            self.panicked(line.as_deref_mut(), payload);
        }
        if let Some(mut line) = line {
            let reason = line.drive(|line| Ok(line.end())).unwrap_or(CloseReason::Local);
            if let Some(failure) = line.conn().tls_failure() {
                self.detail.clone_from(&failure.detail);
            }
            self.outcome = Some((reason, line.conn().counts()));
        }
    }

    /// Has the proxy tell whom the connection is for, if it comes through one, and gives it a place of that peer's. Says whether it may
    /// go on.
    fn is_announced(&mut self, conn: &mut Connection) -> bool {
        let Some(proxies) = &self.shared.proxies else { return true };
        if !preface::read_proxy_header(conn, &self.place, proxies) {
            return false;
        }
        let seat = self.shared.office.books().desk.seat(self.place.peer());
        match seat {
            Ok(seat) => {
                self.seat = seat;
                true
            }
            Err(rule) => {
                self.shared.office.refuse(self.place.peer(), rule);
                conn.line().reset(CloseReason::Refused(rule));
                false
            }
        }
    }

    /// Has the handshake done before the handler sees the connection. Says whether it is.
    #[cfg(feature = "tls")]
    fn is_secured(&mut self, conn: &mut Connection) -> bool {
        let Some(acceptor) = &self.shared.acceptor else { return true };
        self.stage = Stage::Securing;
        let secured = conn.accept_tls(acceptor);
        let stats = &mut self.shared.office.books().stats;
        if secured.is_err() {
            stats.handshakes_failed += 1;
            return false;
        }
        stats.handshakes += 1;
        stats.resumed += u64::from(conn.tls().is_some_and(|info| info.is_resumed()));
        true
    }

    #[cfg(not(feature = "tls"))]
    fn is_secured(&mut self, _: &mut Connection) -> bool {
        true
    }

    fn open(&mut self) {
        self.stage = Stage::Open;
        self.shared.office.tell(&ServerEvent::Opened { id: self.place.id(), peer: self.place.peer() });
    }

    /// Nobody knows in which state the handler left what it sends.
    fn panicked(&self, line: Option<&mut Line>, payload: Box<dyn Any + Send>) {
        if let Some(line) = line {
            line.reset(CloseReason::HandlerPanicked);
        }
        self.shared.office.books().stats.panics += 1;
        let (id, peer, message) = (self.place.id(), self.place.peer(), panic_message(&*payload));
        self.shared.office.tell(&ServerEvent::Panicked { id, peer, message });
        // What was thrown may panic when it is dropped.
        drop(catch_unwind(AssertUnwindSafe(|| drop(payload))));
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let Shared { office, places, .. } = &*self.shared;
        let (reason, counts) = self.outcome.unwrap_or((CloseReason::LocalReset, Counts::default()));
        let (id, peer) = (self.place.id(), self.place.peer());
        match self.stage {
            Stage::Open => office.tell(&ServerEvent::Closed { id, peer, reason, counts }),
            Stage::Securing => {
                office.tell(&ServerEvent::HandshakeFailed { peer, reason, detail: &self.detail });
            }
            Stage::Arriving => {
                event!(debug, %peer, %id, %reason, "connection closed before its handler began");
            }
        }
        places.remove(&self.place);
        office.leave(self.seat, reason, counts);
    }
}

/// The handler returned an error.
fn failed(line: &mut Line, error: &Error) {
    if error.is_closed() && error.close_reason() == line.conn().reason() {
        // The connection was closed under the handler's hands: that is no failure of the handler.
        return;
    }
    event!(debug, peer = %line.peer(), %error, "handler failed");
    let reason = match error.is_timeout() {
        true => CloseReason::Timeout(Deadline::Handler),
        false => CloseReason::HandlerFailed,
    };
    line.close_for(reason);
}
