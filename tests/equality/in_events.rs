//! Scripts in event style, with handlers on a worker. What handlers on a queue have in common with them is here too.

use std::time::Duration;

use wharf::event::{Connection, Flow, Handler};
use wharf::{CloseReason, Error, Result};

use super::script::{Handle, Script, Step, Stop, Telling};

/// The largest piece that is queued at once: in this style a message is queued whole or not at all.
pub(super) const PIECE: usize = 16 * 1024;

/// What a handler has before it: a connection, on a worker or on a queue.
pub(crate) trait Line {
    fn send(&mut self, bytes: &[u8]) -> Result<()>;
    fn queued(&self) -> usize;
    fn finish(&mut self);
    fn set_deadline(&mut self, after: Option<Duration>);
    fn handle(&self) -> Handle;
}

impl Line for Connection<'_> {
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Connection::send(self, bytes)
    }

    fn queued(&self) -> usize {
        Connection::queued(self)
    }

    fn finish(&mut self) {
        Connection::finish(self);
    }

    fn set_deadline(&mut self, after: Option<Duration>) {
        Connection::set_deadline(self, after);
    }

    fn handle(&self) -> Handle {
        Handle::Worker(self.remote())
    }
}

/// Performs a script, on a server's connection or on a client's.
pub(crate) struct Performing {
    script: Script,
    pub(super) telling: Telling,
    at: usize,
    /// How much of the message of this step is sent.
    sent: usize,
    /// How much of what came is left for when there is more.
    left: usize,
    /// Whether the peer has ended.
    ended: bool,
}

impl Performing {
    pub(crate) fn new(script: Script, telling: Telling) -> Performing {
        Performing { script, telling, at: 0, sent: 0, left: 0, ended: false }
    }

    /// Takes what steps it can, with what has come; says how much of that it has used.
    fn go_on(&mut self, conn: &mut impl Line, bytes: &[u8]) -> (usize, Flow) {
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            // What the step leaves of `rest` is offered again, when there is more.
            let done = match self.script.step(self.at) {
                None => return (used, self.stop(Stop::Done, Flow::Close)),
                Some(Step::Send(message)) => {
                    let message = message.clone();
                    self.send(conn, &message)
                }
                Some(Step::Receive(len)) if rest.len() >= *len => {
                    let len = *len;
                    self.receive(&rest[..len]);
                    used += len;
                    true
                }
                Some(Step::Receive(_)) if self.ended => {
                    let partial = self.left;
                    return (used, self.stop(Stop::Ended { partial }, Flow::Close));
                }
                Some(Step::Receive(_)) => false,
                Some(Step::ReceiveAll) => {
                    self.receive(rest);
                    used = bytes.len();
                    self.ended
                }
                Some(Step::Echo) => {
                    for piece in rest.chunks(PIECE) {
                        if conn.send(piece).is_err() {
                            break;
                        }
                        self.receive(piece);
                        used += piece.len();
                    }
                    self.ended && used == bytes.len()
                }
                Some(Step::Finish) => {
                    conn.finish();
                    true
                }
                Some(Step::Deadline(after)) => {
                    conn.set_deadline(*after);
                    true
                }
                Some(Step::GiveHandle) => {
                    self.telling.note().handle = Some(conn.handle());
                    true
                }
                Some(Step::Reset) => {
                    self.next();
                    return (used, self.stop(Stop::Done, Flow::Reset));
                }
                Some(Step::PanicOn(byte)) => {
                    assert_ne!(self.telling.last(), Some(*byte), "as told by the script");
                    true
                }
                Some(
                    step @ (Step::SendInAttempts(..)
                    | Step::ReceiveLate(..)
                    | Step::Fail
                    | Step::Await(_)
                    | Step::Drip(_)
                    | Step::Exchange(..)),
                ) => {
                    unreachable!("a handler of events has no {step:?}")
                }
            };
            let mut told = self.telling.note();
            told.pending_max = told.pending_max.max(conn.queued());
            drop(told);
            if !done {
                return (used, Flow::Continue);
            }
            self.next();
        }
    }

    fn next(&mut self) {
        self.at += 1;
        self.sent = 0;
        self.telling.note().steps = self.at;
    }

    fn stop(&mut self, stop: Stop, flow: Flow) -> Flow {
        self.telling.note().stop.get_or_insert(stop);
        flow
    }

    /// Queues what there is room for; says whether that is all.
    fn send(&mut self, conn: &mut impl Line, message: &[u8]) -> bool {
        while self.sent < message.len() {
            let end = message.len().min(self.sent + PIECE);
            if conn.send(&message[self.sent..end]).is_err() {
                return false;
            }
            self.sent = end;
        }
        true
    }

    fn receive(&self, bytes: &[u8]) {
        self.telling.note().received.extend_from_slice(bytes);
    }

    fn is_stopped(&self) -> bool {
        self.telling.note().stop.is_some()
    }

    /// There may be room for more.
    pub(super) fn has_room(&mut self, conn: &mut impl Line) -> Flow {
        if self.is_stopped() { Flow::Continue } else { self.go_on(conn, b"").1 }
    }

    pub(super) fn is_offered(&mut self, conn: &mut impl Line, bytes: &[u8]) -> Flow {
        if self.is_stopped() {
            return Flow::Continue;
        }
        let (used, flow) = self.go_on(conn, bytes);
        self.left = bytes.len() - used;
        if flow == Flow::Continue { Flow::Consumed(used) } else { flow }
    }

    pub(super) fn has_ended(&mut self, conn: &mut impl Line) -> Flow {
        self.ended = true;
        self.has_room(conn)
    }

    pub(super) fn is_closed(&mut self, reason: CloseReason) {
        let mut told = self.telling.note();
        told.stop.get_or_insert(Stop::Closed(reason));
        told.ends.push(reason);
    }
}

impl Handler for Performing {
    fn connected(&mut self, conn: &mut Connection<'_>) -> Flow {
        #[cfg(feature = "tls")]
        {
            self.telling.note().is_secured = conn.tls().is_some();
        }
        self.go_on(conn, b"").1
    }

    fn received(&mut self, conn: &mut Connection<'_>, bytes: &[u8]) -> Flow {
        self.is_offered(conn, bytes)
    }

    fn writable(&mut self, conn: &mut Connection<'_>) -> Flow {
        self.has_room(conn)
    }

    fn ended(&mut self, conn: &mut Connection<'_>) -> Flow {
        self.has_ended(conn)
    }

    fn draining(&mut self, _: &mut Connection<'_>) -> Flow {
        self.telling.note().is_draining = true;
        Flow::Continue
    }

    fn connect_failed(&mut self, error: Error) {
        self.telling.failed(&error);
    }

    fn closed(&mut self, _: &mut Connection<'_>, reason: CloseReason) {
        self.is_closed(reason);
    }
}
