//! TLS of a connection: where its bytes go through a [`Session`], and what the session's end means to the connection.
//!
//! Counts, queues and marks are those of the bytes on the wire. `reading` and `writing` are TCP's; the peer's close_notify is
//! the end of what can be read ([`Conn::peer_ended`]), while its FIN is still to come. Between the two nothing is received, so what
//! follows is there for whoever takes TLS off the connection. A failure closes the connection gracefully, so that the alert
//! arrives; what was decrypted before can still be read.

use std::io;

use super::{Conn, News, Phase, Reading, Writing};
use crate::engine::buffer::{Chunk, Received};
use crate::error::CloseReason;
use crate::time::Time;
use crate::tls::{Failure, Info, Session, Step};
use crate::tls_fault::TlsFault;

/// What was in received bytes that are protected.
#[derive(Debug)]
pub(crate) enum Unsealed<C = Chunk> {
    /// Nothing more.
    Nothing,
    /// The handshake is over.
    Established,
    Bytes(C),
}

impl<C: Received> Conn<C> {
    /// Whether what is received has to be unsealed.
    #[inline]
    pub(crate) fn is_sealed(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// What the handshake has brought.
    pub(crate) fn tls_info(&self) -> Option<&Info> {
        self.tls.as_ref()?.info()
    }

    /// Why TLS has failed.
    pub(crate) fn tls_failure(&self) -> Option<&Failure> {
        self.tls.as_ref()?.failure()
    }

    /// Begins TLS behind what is queued. What is unread is the session's already. Says whether it can begin here.
    pub(crate) fn begin_tls(&mut self, mut session: Session<C>) -> bool {
        if self.phase != Phase::Open || self.writing != Writing::Open || self.tls.is_some() {
            return false;
        }
        if let Some(unread) = self.inbox.take_joined() {
            session.receive(unread);
        }
        self.tls = Some(Box::new(session));
        true
    }

    /// Ends TLS, and not the connection: says close_notify, and when the peer has said it too, bytes are what they are.
    pub(crate) fn leave_tls(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.leave(self.outbox.tail(), &self.profile.pieces);
            if !self.left_tls() && self.blocked && self.inbox.len() > 0 {
                // From here on a handler is offered what is unread, whether or not it can send.
                self.news.add(News::READABLE);
            }
        }
    }

    /// Seals `bytes`, at most a buffer full, and has `send` send them at once, while they are warm; it tells how many it has sent.
    /// What is left is queued. Only if nothing is queued already; then it says whether nothing is left.
    pub(crate) fn send_at_once(
        &mut self,
        bytes: &[u8],
        now: Time,
        send: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> bool {
        debug_assert!(self.is_clear(), "it would be overtaken");
        self.send(bytes);
        let Some(tls) = &mut self.tls else { return false };
        tls.seal(self.outbox.tail(), &self.profile.pieces);
        self.send_buffer(now, send);
        self.is_clear()
    }

    /// Has `send` send all buffers of a long queue but the last, one at a time, until it takes less than that.
    ///
    /// Together they would be more than a packet of the loopback interface holds, and be followed by a tiny one.
    pub(crate) fn send_in_buffers(&mut self, now: Time, mut send: impl FnMut(&[u8]) -> io::Result<usize>) {
        while self.outbox.is_divided() && self.send_buffer(now, &mut send) {}
    }

    /// Has `send` send the first buffer of the queue; says whether it sent all of it.
    fn send_buffer(&mut self, now: Time, send: impl FnOnce(&[u8]) -> io::Result<usize>) -> bool {
        let first = self.outbox.tail().first();
        let len = first.len();
        match send(first) {
            Ok(n) => {
                // The engine may have kept them for the end of the turn.
                self.handed_at = now;
                self.sent_inline(n, now);
                n == len
            }
            Err(error) => {
                self.broke(&error, now);
                false
            }
        }
    }

    /// Whether there were unread bytes when TLS began, and nobody has unsealed them; or the peer had ended before, and so will not
    /// do what TLS waits for.
    #[inline]
    pub(crate) fn has_unseen(&self) -> bool {
        let has_ended = self.reading == Reading::Ended;
        let is_due = |tls: &Session<C>| tls.has_unseen() || (has_ended && tls.holds_back());
        self.phase == Phase::Open && self.tls.as_ref().is_some_and(|tls| is_due(tls))
    }

    /// Takes received bytes that are protected.
    pub(crate) fn receive_sealed(&mut self, chunk: C) {
        if let Some(tls) = &mut self.tls {
            tls.receive(chunk);
        }
    }

    /// The next thing in them.
    pub(crate) fn unseal(&mut self, now: Time) -> Unsealed<C> {
        while self.phase == Phase::Open
            && let Some(tls) = &mut self.tls
        {
            match tls.step(self.outbox.tail(), &self.profile.pieces) {
                Step::Nothing if self.reading == Reading::Ended && tls.holds_back() => {
                    self.is_cut_off(now);
                    break;
                }
                Step::Nothing => {
                    // The beginning of a record is that of a message too.
                    let begun = tls.begun();
                    if begun > 0 {
                        self.await_rest(begun, now);
                    }
                    return Unsealed::Nothing;
                }
                Step::Established => {
                    if self.writing == Writing::Finishing {
                        tls.end(self.outbox.tail(), &self.profile.pieces);
                    }
                    self.unblock();
                    return Unsealed::Established;
                }
                Step::Bytes(chunk) => {
                    self.clock.heard();
                    return Unsealed::Bytes(chunk);
                }
                Step::Ended => self.tls_ended(),
                Step::Failed(fault) => self.tls_failed(fault, now),
            }
        }
        // It was closed meanwhile.
        self.counts.discarded += self.tls.as_mut().map_or(0, |tls| tls.discard()) as u64;
        Unsealed::Nothing
    }

    /// The peer has said close_notify.
    fn tls_ended(&mut self) {
        if self.left_tls() {
            return;
        }
        self.first_end.get_or_insert(CloseReason::Peer);
        self.clock.read_over();
        self.clock.message_over();
        self.news.add(News::READABLE);
        self.hang_up();
    }

    /// Takes TLS off, if both sides have left it. Says whether that is so.
    fn left_tls(&mut self) -> bool {
        let Some(tls) = self.tls.as_mut().filter(|tls| tls.has_been_left()) else { return false };
        if let Some(rest) = tls.take_rest(&self.profile.pieces) {
            self.inbox.push(rest);
        }
        self.tls = None;
        if self.reading == Reading::Open {
            // The peer may have said it first, and that was not the end then.
            self.hung_up = false;
            self.first_end = None;
        }
        self.news.add(News::UNSECURED);
        self.news.add(News::READABLE);
        self.news.add(News::WRITABLE);
        self.unblock();
        true
    }

    /// Whether TLS lets nothing through for now, whatever room there is.
    pub(crate) fn is_held_back(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.holds_back())
    }

    /// Whether TLS is to end here, and the peer has not said close_notify.
    pub(crate) fn is_leaving_tls(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_leaving())
    }

    /// Whoever waited for TLS to let bytes through can go on.
    fn unblock(&mut self) {
        self.news.add(News::WRITABLE);
        if std::mem::take(&mut self.blocked) {
            self.news.add(News::UNBLOCKED);
        }
    }

    fn tls_failed(&mut self, fault: TlsFault, now: Time) {
        self.reason.get_or_insert(CloseReason::Tls(fault));
        self.clock.read_over();
        self.clock.message_over();
        if self.phase == Phase::Open {
            self.begin_closing();
            self.clock.late();
            self.clock.linger_once(now, &self.profile.deadlines);
        }
    }

    /// The peer has sent FIN. Whether TLS finds fault with that; then the connection ends.
    pub(super) fn is_cut_off(&mut self, now: Time) -> bool {
        if self.tls_failure().is_some() {
            // It has failed before, and reading fails for that.
            self.reading = Reading::Broken;
            return true;
        }
        // While it closes nothing is looked at, and so not whether close_notify came before.
        if self.phase != Phase::Open {
            return false;
        }
        let Some(fault) = self.tls.as_mut().and_then(|tls| tls.cut_off()) else { return false };
        self.reading = Reading::Broken;
        self.tls_failed(fault, now);
        true
    }

    /// Ends a connection whose key for sending must not be used any more, when there is no other.
    pub(super) fn writable_by_tls(&mut self) -> Result<(), CloseReason> {
        if self.tls.as_ref().is_some_and(|tls| tls.is_used_up()) {
            let reason = CloseReason::Tls(TlsFault::Exhausted);
            self.close_for(reason);
            return Err(reason);
        }
        Ok(())
    }
}
