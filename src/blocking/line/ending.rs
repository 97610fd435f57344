//! Ending: how a line is closed or reset, and how it is known that the peer has ended.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

#[cfg(target_os = "linux")]
use rustix::event::Timespec;
use rustix::event::{PollFd, PollFlags, poll};
#[cfg(not(target_os = "linux"))]
use rustix::io::Errno;

use super::receiving::{Tried, receive};
use super::{Line, Step};
use crate::conn::Hangup;
use crate::error::CloseReason;

/// What is thrown away at a connection's end is received so many times before others are looked at.
const THROWN_AWAY_MAX: u32 = 4;

impl Line {
    pub(in crate::blocking) fn close(&mut self) {
        self.conn.close();
        self.advance();
    }

    pub(in crate::blocking) fn close_for(&mut self, reason: CloseReason) {
        self.conn.close_for(reason);
        self.advance();
    }

    pub(in crate::blocking) fn reset(&mut self, reason: CloseReason) {
        self.conn.reset(reason);
        self.advance();
    }

    /// Its owner drops it: it closes gracefully, or in a panic not at all so.
    pub(in crate::blocking) fn part(&mut self) {
        self.heed();
        if thread::panicking() {
            self.reset(CloseReason::HandlerPanicked);
        } else {
            self.close();
        }
    }

    /// Throws away what still comes, until the connection is closed. Of who sends without a pause it takes a bounded amount, so that others
    /// who are waited for on the same thread have their turn.
    pub(in crate::blocking) fn end(&mut self) -> Step<CloseReason> {
        let mut turns = 0..THROWN_AWAY_MAX;
        loop {
            self.heed();
            let now = self.now();
            self.expire(now);
            self.advance();
            if self.conn.is_closed() {
                return Step::Done(self.conn.reason().unwrap_or(CloseReason::Local));
            }
            let deadline = self.next_deadline();
            if !self.conn.is_receiving() {
                return self.wait_to_write(deadline);
            }
            if turns.next().is_none() {
                return self.wait_to_read(deadline);
            }
            let mut scratch = self.take_scratch();
            let tried = match &self.socket {
                Some(socket) => match receive(socket.as_fd(), &mut scratch, false) {
                    Ok(n) if n > 0 => {
                        self.conn.received(n, now);
                        Tried::News
                    }
                    result => self.no_bytes(result, false),
                },
                None => Tried::News,
            };
            self.scratch = scratch;
            if let Tried::Nothing = tried {
                return self.wait_to_read(deadline);
            }
        }
    }

    /// How it is known that the peer sends nothing more, if it is.
    pub(in crate::blocking) fn hangup(&mut self) -> Option<Hangup> {
        self.heed();
        if let (None, Some(socket)) = (self.conn.hangup(), &self.socket)
            && has_hung_up(socket.as_fd())
        {
            self.conn.hung_up();
        }
        self.conn.hangup()
    }
}

#[cfg(target_os = "linux")]
fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    let end = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    matches!(poll(&mut fds, Some(&NOT_AT_ALL)), Ok(1)) && fds[0].revents().intersects(end)
}

/// Other systems tell the end of a stream only to who has read what is before it.
#[cfg(not(target_os = "linux"))]
fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    use rustix::net::RecvFlags;
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut [0; 1][..], flags) {
        Ok((n, _)) => n == 0,
        Err(error) => !matches!(error, Errno::AGAIN | Errno::INTR),
    }
}

#[cfg(target_os = "linux")]
const NOT_AT_ALL: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::super::receiving::SCRATCH;
    use super::super::{Wanted, on};
    use super::*;
    use crate::config::Deadlines;

    #[test]
    fn who_sends_without_a_pause_after_the_end_leaves_others_their_turn() {
        let (socket, mut peer) = UnixStream::pair().expect("descriptors");
        peer.set_nonblocking(true).expect("it can");
        let mut sent = 0;
        while let Ok(n) = peer.write(&[7; 16 * 1024]) {
            sent += n as u64;
        }
        let mut line = on(socket, &Deadlines::default());
        line.close();
        let mut steps = 0;
        while line.conn().counts().discarded < sent {
            let before = line.conn().counts().discarded;
            assert!(matches!(line.end(), Step::Wait(Wanted { read: true, .. })));
            assert!(line.conn().counts().discarded - before <= u64::from(THROWN_AWAY_MAX) * SCRATCH as u64);
            steps += 1;
        }
        assert!(steps > 1, "{sent} bytes are no more than one step takes");
        drop(peer);
        assert!(matches!(line.end(), Step::Done(CloseReason::Local)));
    }
}
