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
use crate::error::{CloseReason, Deadline, Error, Rule};
use crate::server::{Seat, ServerEvent, panic_message};

pub(super) struct Visit {
    shared: Arc<Shared>,
    seat: Seat,
    place: Arc<Place>,
    /// Until a thread begins with it.
    conn: Option<Connection>,
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
        let (outcome, detail) = (None, String::new());
        Visit { shared, seat, place, conn: None, stage: Stage::Arriving, outcome, detail }
    }

    /// Of this connection. One that is dropped before it [runs](Visit::run) has found no thread: its connection is refused.
    pub(super) fn with(mut self, conn: Connection) -> Visit {
        self.conn = Some(conn);
        self
    }

    /// It is over before it has begun.
    pub(super) fn end(mut self, reason: CloseReason) {
        self.outcome = Some((reason, Counts::default()));
    }

    pub(super) fn run(mut self) {
        let _serving = OnThread::begin(&self.shared);
        if let Some(conn) = self.conn.take() {
            self.serve(conn);
        }
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
        self.outcome = Some((CloseReason::Shutdown, self.place.counts()));
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

    /// There is no thread for it. It is reset: on whichever thread this is, nobody can wait for its end.
    fn refuse(&mut self, mut conn: Connection) {
        let reason = CloseReason::Refused(Rule::Descriptors);
        conn.line().reset(reason);
        drop(conn);
        self.shared.office.refuse(self.place.peer(), Rule::Descriptors);
        self.outcome = Some((reason, Counts::default()));
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
        if let Some(conn) = self.conn.take() {
            self.refuse(conn);
        }
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

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::TcpStream;
    use std::os::fd::AsFd;

    use super::super::Listener;
    use super::super::listener::{try_accept, wait_for};
    use super::super::serving::share;
    use super::*;

    /// A server without a thread, and one whom it has let in.
    fn let_in() -> (Arc<Shared>, Visit, Connection, TcpStream) {
        let listener = Listener::bind("127.0.0.1:0").expect("a port");
        let (shared, socket, _) = share(listener, |_: Connection| Ok(())).expect("descriptors");
        let port = shared.address.socket().expect("it is TCP");
        let peer = TcpStream::connect(port).expect("it listens");
        let (socket, address) = loop {
            match try_accept(socket.as_fd()).expect("it listens") {
                Some(accepted) => break accepted,
                None => wait_for(&[socket.as_fd()], None),
            }
        };
        let seat = shared.office.admit(Some(&address)).expect("there is room");
        let visit = Visit::new(shared.clone(), seat, address.clone());
        let (limits, deadlines) = shared.office.terms();
        let line = Line::new(socket, address, &limits, &deadlines).expect("it can block");
        (shared, visit, Connection::new(line), peer)
    }

    #[test]
    fn who_finds_no_thread_is_reset_at_once_and_counted_as_refused() {
        let (shared, visit, conn, mut peer) = let_in();
        drop(visit.with(conn));
        let read = peer.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(read, Err(ErrorKind::ConnectionReset));
        let stats = shared.office.stats();
        assert_eq!(stats.refused, [(Rule::Descriptors, 1)]);
        assert_eq!(stats.closes, [(CloseReason::Refused(Rule::Descriptors), 1)]);
        assert_eq!(shared.office.books().connections, 0);
        assert!(shared.places.list().is_empty());
    }

    #[test]
    fn whom_nobody_sees_off_leaves_nothing_behind() {
        let (shared, visit, mut conn, mut peer) = let_in();
        conn.line().take_place(visit.place.clone());
        // Its thread is gone before it has waited for the connection.
        drop(conn);
        let place = Arc::downgrade(&visit.place);
        drop(visit);
        assert_eq!(peer.read(&mut [0]).expect("it was closed"), 0);
        assert!(place.upgrade().is_none(), "the connection and its place hold each other");
        assert_eq!(shared.office.memory().used(), 0);
    }

    #[test]
    fn what_is_held_is_given_back_before_the_end_is_counted_and_not_counted_after() {
        let (shared, visit, mut conn, _peer) = let_in();
        let place = visit.place.clone();
        conn.line().take_place(place.clone());
        place.note(conn.line().conn(), 1000);
        assert_eq!(shared.office.memory().used(), 1000);
        drop(visit);
        assert_eq!(shared.office.memory().used(), 0);
        // Whoever has it still does not count.
        place.note(conn.line().conn(), 2000);
        assert_eq!(shared.office.memory().used(), 0);
    }
}
