//! Delivery: what the peer's system has acknowledged of what was sent.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::waiting::{LOOK_MAX, Wanted};
use super::{Line, Step, Until};
use crate::engine::{outq, socket};
use crate::error::{Cause, Operation, Result};

/// The first look for an acknowledgement comes after this time, later ones after [`LOOK_MAX`] at most.
const LOOK_MIN: Duration = Duration::from_millis(1);

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    Unasked,
    Asked,
    Final(u64),
}

impl Line {
    /// How far the stream has to be acknowledged so that all that was sent is.
    pub(in crate::blocking) fn await_delivery(&mut self) -> u64 {
        if self.delivered == Delivered::Unasked {
            self.delivered = Delivered::Asked;
        }
        self.conn.given()
    }

    /// Waits until it is acknowledged so far. `looked` counts the looks.
    pub(in crate::blocking) fn delivered(
        &mut self,
        target: u64,
        looked: &mut u32,
        until: Option<Until>,
    ) -> Result<Step<()>> {
        loop {
            self.heed();
            self.look_for_failure();
            self.advance();
            let end = self.conn.final_reason();
            let left = match (self.delivered_so_far(), end) {
                (Ok(delivered), _) => target.saturating_sub(delivered),
                (Err(error), Some(reason)) if error.kind() != io::ErrorKind::Unsupported => {
                    return Err(self.closed(Operation::Deliver, reason));
                }
                (Err(error), _) => return Err(self.failed(Operation::Deliver, Cause::Os(error))),
            };
            match end {
                _ if left == 0 => return Ok(Step::Done(())),
                Some(reason) => {
                    return Err(self.failed(Operation::Deliver, Cause::Undelivered { reason, bytes: left }));
                }
                None => {}
            }
            let now = self.now();
            let Some(deadline) = self.in_time(now, until, Operation::Deliver)? else { continue };
            let look = now.after(LOOK_MAX.min(LOOK_MIN * 2u32.saturating_pow(*looked)));
            *looked += 1;
            let until = Some(deadline.map_or(look, |at| at.min(look)));
            let write = self.conn.has_to_send();
            return Ok(Step::Wait(Wanted { read: false, write, drain: false, until }));
        }
    }

    /// Nobody may be about to receive or to send, and so to learn that the connection broke.
    fn look_for_failure(&mut self) {
        if let Some(error) = self.socket.as_ref().and_then(|socket| socket::failure(socket.as_fd())) {
            let now = self.now();
            self.conn.broke(&error, now);
        }
    }

    pub(super) fn delivered_so_far(&self) -> io::Result<u64> {
        match (self.delivered, &self.socket) {
            (Delivered::Final(delivered), _) => Ok(delivered),
            (_, Some(socket)) => Ok(self.conn.delivered(outq::unacked(socket.as_fd())?)),
            (_, None) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    pub(in crate::blocking) fn unacked(&self) -> Option<usize> {
        let unacked = outq::unacked(self.socket.as_ref()?.as_fd()).ok()?;
        Some(self.conn.unacked(unacked))
    }
}
