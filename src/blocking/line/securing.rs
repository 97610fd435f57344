//! TLS: its beginning, its handshake and its end.

use std::time::Duration;

use super::{Line, Step, Until};
use crate::conn::Unsealed;
use crate::engine::buffer::Block;
use crate::error::{Cause, Operation, Result};
use crate::tls::Session;

impl Line {
    /// Begins TLS behind what was sent. The handshake has to be over `within` this time, if any.
    pub(in crate::blocking) fn begin_tls(
        &mut self,
        session: Session<Block>,
        within: Option<Duration>,
    ) -> Result<()> {
        if self.conn.begin_tls(session) {
            self.handshake_at = within.map(|within| self.now().after(within));
            self.unseal();
            return Ok(());
        }
        let cause = match self.conn.reason() {
            Some(reason) => Cause::Closed(reason),
            None => Cause::Misuse("TLS can begin once, and before this side has finished"),
        };
        Err(self.failed(Operation::Secure, cause))
    }

    /// Waits until TLS stands; it does where there is none.
    pub(in crate::blocking) fn secure(&mut self, until: Option<Until>) -> Result<Step<()>> {
        loop {
            self.heed();
            if let Some(failure) = self.conn.tls_failure() {
                let cause = Cause::Tls { fault: failure.fault, detail: failure.detail.clone() };
                return Err(self.failed(Operation::Secure, cause));
            }
            if !self.conn.is_handshaking() {
                return Ok(Step::Done(()));
            }
            if let Some(reason) = self.conn.reason() {
                return Err(self.closed(Operation::Secure, reason));
            }
            let now = self.now();
            let Some(deadline) = self.in_time(now, until, Operation::Secure)? else { continue };
            if let Some(step) = self.hear(now, deadline) {
                return Ok(step);
            }
        }
    }

    #[cfg(feature = "tls")]
    pub(in crate::blocking) fn leave_tls(&mut self) {
        self.conn.leave_tls();
        // If the peer has ended without a word, it will not say close_notify any more.
        self.unseal();
    }

    /// Waits until TLS is off.
    #[cfg(feature = "tls")]
    pub(in crate::blocking) fn left_tls(&mut self, until: Option<Until>) -> Result<Step<()>> {
        loop {
            self.heed();
            if !self.conn.is_sealed() {
                return Ok(Step::Done(()));
            }
            if let Some(reason) = self.conn.reason() {
                return Err(self.closed(Operation::Secure, reason));
            }
            self.check_room(Operation::Secure)?;
            let now = self.now();
            let Some(deadline) = self.in_time(now, until, Operation::Secure)? else { continue };
            if let Some(step) = self.hear(now, deadline) {
                return Ok(step);
            }
        }
    }

    /// While TLS is left, what the peer sends before it leaves too is kept: as much as may be.
    pub(super) fn check_room(&self, operation: Operation) -> Result<()> {
        if self.conn.is_full() {
            let problem = "what the peer has sent before it leaves TLS has to be read first";
            return Err(self.failed(operation, Cause::Misuse(problem)));
        }
        Ok(())
    }

    /// Hands on what was received by TLS, and does what follows from it.
    pub(super) fn unseal(&mut self) {
        loop {
            let now = self.now();
            match self.conn.unseal(now) {
                Unsealed::Nothing => break,
                Unsealed::Established => self.handshake_at = None,
                Unsealed::Bytes(block) => self.conn.deliver(block),
            }
        }
        self.advance();
    }
}
