//! The door of a blocking server: the thread that accepts, suspends, and sees the others off.
//!
//! It lets in whom the desk admits (the same rules as a server's) and hands him to the pool; while the desk is full it accepts nobody, and
//! whoever leaves tells it. When the server is suspended, or drains, it lets in who is connected already and closes the listener.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::connection::Connection;
use super::line::Line;
use super::listener::{Remedy, Troubles, try_accept};
use super::office::{Drain, Turn};
use super::pool::Pool;
use super::serving::Shared;
use super::visit::Visit;
use crate::address::Address;
use crate::engine::Socket;
use crate::error::{CloseReason, Rule};
use crate::server::{Opened, ServerEvent, SocketFile};
use crate::worker::accept::PAUSE_MIN;

/// The most connections that are taken from a backlog before its listener is closed.
const BACKLOG_MAX: usize = 65_536;

pub(super) struct Door {
    shared: Arc<Shared>,
    pool: Arc<Pool>,
    /// None while it is suspended, and when it is lost.
    socket: Option<OwnedFd>,
    /// Removed when this is dropped.
    file: Option<SocketFile>,
    troubles: Troubles,
    /// Since which round of suspending and resuming it is suspended.
    suspended: Option<u64>,
}

impl Door {
    pub(super) fn new(
        shared: Arc<Shared>,
        pool: Arc<Pool>,
        socket: OwnedFd,
        file: Option<SocketFile>,
    ) -> Door {
        Door { shared, pool, socket: Some(socket), file, troubles: Troubles::default(), suspended: None }
    }

    /// Accepts until the server drains, and waits for its end.
    pub(super) fn keep(mut self) {
        let Drain { within, .. } = self.accept_all();
        if self.suspended.is_none() {
            self.take_backlog();
        }
        let Door { shared, pool, socket, file, .. } = self;
        drop((socket, file));
        shared.office.shut();
        shared.office.tell(&ServerEvent::Draining { within });
        shared.office.see_off(|| shared.places.stop());
        pool.close();
        shared.office.end();
    }

    fn accept_all(&mut self) -> Drain {
        loop {
            match self.shared.office.next_turn(self.suspended, self.socket.is_some()) {
                Turn::Accept => self.accept(),
                Turn::Suspend(round) => self.suspend(round),
                Turn::Resume(reopened) => self.resume(reopened),
                Turn::Drain(drain) => return drain,
            }
        }
    }

    /// Lets the next one in, or waits for him.
    fn accept(&mut self) {
        let Some(socket) = &self.socket else { return };
        match try_accept(socket.as_fd()) {
            Ok(Some((socket, peer))) => {
                self.troubles = Troubles::default();
                self.let_in(socket, &peer);
            }
            Ok(None) => self.shared.office.await_caller(Some(socket.as_fd()), None),
            Err(error) => self.accept_failed(&error),
        }
    }

    fn accept_failed(&mut self, error: &io::Error) {
        let Shared { office, address, .. } = &*self.shared;
        office.books().stats.accept_errors += 1;
        match self.troubles.meet(error) {
            Remedy::Retry => {}
            Remedy::Pause(pause) => {
                office.tell(&ServerEvent::AcceptFailed { error, pause });
                office.await_caller(None, Some(pause));
            }
            Remedy::None => {
                self.socket = None;
                office.books().is_lost = true;
                office.tell(&ServerEvent::ListenerLost { address, error });
            }
        }
    }

    fn let_in(&self, socket: OwnedFd, peer: &Address) {
        let shared = &self.shared;
        let refuse = |socket, rule| Socket::Os(socket).refuse(shared.office.refuse(peer, rule));
        if shared.proxies.as_ref().is_some_and(|proxies| !proxies.trusts(peer)) {
            return refuse(socket, Rule::Untrusted);
        }
        // Whom a proxy speaks for is not known before it has said so.
        let known = shared.proxies.is_none().then_some(peer);
        let seat = match shared.office.admit(known) {
            Ok(seat) => seat,
            Err(rule) => return refuse(socket, rule),
        };
        let visit = Visit::new(shared.clone(), seat, peer.clone());
        let (limits, deadlines) = shared.office.terms();
        match Line::new(socket, peer.clone(), &limits, &deadlines) {
            Ok(line) => {
                let visit = visit.with(Connection::new(line));
                if let Err(error) = self.pool.submit(Box::new(move || visit.run())) {
                    // The connection was refused with the job, and its place given back.
                    event!(error, %error, "no thread for a connection");
                    let _ = error;
                    shared.office.await_caller(None, Some(PAUSE_MIN));
                }
            }
            Err(error) => {
                shared.office.books().stats.accept_errors += 1;
                event!(warn, %peer, %error, "an accepted connection could not be opened");
                visit.end(CloseReason::Network(error.kind()));
            }
        }
    }

    fn suspend(&mut self, round: u64) {
        let can_reopen = self.socket.is_some() && !self.shared.listen.is_given();
        if can_reopen {
            self.take_backlog();
        }
        let Door { shared, socket, .. } = self;
        if shared.office.carry_out(round, can_reopen, || *socket = None) {
            self.suspended = Some(round);
            self.shared.office.tell(&ServerEvent::Suspended);
        }
    }

    fn resume(&mut self, reopened: Option<Opened>) {
        if let Some(Opened { listener, file, .. }) = reopened {
            (self.socket, self.file) = (Some(listener), file);
        }
        self.suspended = None;
        self.shared.office.tell(&ServerEvent::Resumed);
    }

    /// Accepts whom the kernel has connected already: closing the listener would reset them. Whom the rules would leave in the queue is
    /// reset by that.
    fn take_backlog(&mut self) {
        for _ in 0..BACKLOG_MAX {
            let Some(socket) = &self.socket else { return };
            if self.shared.places.is_stopped() || !self.shared.office.is_open() {
                return;
            }
            match try_accept(socket.as_fd()) {
                Ok(Some((socket, peer))) => self.let_in(socket, &peer),
                Ok(None) => return,
                Err(error) if self.troubles.meet(&error) == Remedy::Retry => {}
                Err(_) => return,
            }
        }
    }
}
