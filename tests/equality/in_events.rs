//! Scripts in event style.

use wharf::event::{Connection, Flow, Handler};
use wharf::{CloseReason, Error};

use super::script::{Handle, Script, Step, Stop, Telling};

/// The largest piece that is queued at once: in this style a message is queued whole or not at all.
const PIECE: usize = 16 * 1024;

/// Performs a script, on a server's connection or on a client's.
pub(crate) struct Performing {
    script: Script,
    telling: Telling,
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
    fn go_on(&mut self, conn: &mut Connection<'_>, bytes: &[u8]) -> (usize, Flow) {
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
                    if !rest.is_empty() && conn.send(rest).is_ok() {
                        self.receive(rest);
                        used = bytes.len();
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
                    self.telling.note().handle = Some(Handle::OfWorker(conn.remote()));
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
                    | Step::Drip(_)),
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
    fn send(&mut self, conn: &mut Connection<'_>, message: &[u8]) -> bool {
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
        if self.is_stopped() {
            return Flow::Continue;
        }
        let (used, flow) = self.go_on(conn, bytes);
        self.left = bytes.len() - used;
        if flow == Flow::Continue { Flow::Consumed(used) } else { flow }
    }

    fn writable(&mut self, conn: &mut Connection<'_>) -> Flow {
        if self.is_stopped() { Flow::Continue } else { self.go_on(conn, b"").1 }
    }

    fn ended(&mut self, conn: &mut Connection<'_>) -> Flow {
        self.ended = true;
        if self.is_stopped() { Flow::Continue } else { self.go_on(conn, b"").1 }
    }

    fn draining(&mut self, _: &mut Connection<'_>) -> Flow {
        self.telling.note().is_draining = true;
        Flow::Continue
    }

    fn connect_failed(&mut self, error: Error) {
        self.telling.failed(&error);
    }

    fn closed(&mut self, _: &mut Connection<'_>, reason: CloseReason) {
        let mut told = self.telling.note();
        told.stop.get_or_insert(Stop::Closed(reason));
        told.ends.push(reason);
    }
}
