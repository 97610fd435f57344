//! What one side of a scenario does, in steps that every style can perform, and what is told of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use wharf::{CloseReason, ErrorKind, TlsFault};

use super::cell::Style;

/// One thing that a side does. Each style has one interpreter for all of them, in a file of its own.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Sends all of it, and waits as long as there is no room.
    Send(Bytes),
    /// Sends all of it, in attempts that have so much time each.
    SendInAttempts(Bytes, Duration),
    /// Receives so many bytes.
    Receive(usize),
    /// Has so much time to receive so many bytes, is late, and goes on.
    ReceiveLate(usize, Duration),
    /// Receives until the peer's end.
    ReceiveAll,
    /// Sends back what it receives, until the peer's end.
    Echo,
    /// Ends its direction.
    Finish,
    /// From here on the connection has so much time, or as much as it likes.
    Deadline(Option<Duration>),
    /// Gives the scenario a handle, by which another thread can end the connection.
    GiveHandle,
    /// Throws the connection away.
    Reset,
    /// Panics, if the last byte received is this.
    PanicOn(u8),
    /// Fails, as a handler does that returns an error.
    Fail,
    /// Does nothing, not even read, until the scenario opens the gate. Not for handlers of events, which do not wait.
    Await(Gate),
    /// Sends a byte after each such time, until the connection is at its end. For peers.
    Drip(Duration),
    /// Sends all of it whatever comes, and, from when the scenario opens the gate, receives as much. For peers.
    Exchange(Bytes, Gate),
}

/// What one side does, in order. Behind the last step it closes.
#[derive(Clone, Debug)]
pub(crate) struct Script(Arc<[Step]>);

impl Script {
    pub(crate) fn step(&self, at: usize) -> Option<&Step> {
        self.0.get(at)
    }

    /// Whether a side of that style can perform it: one that waits, or is late, has operations, and what is for peers is async.
    pub(crate) fn is_for(&self, style: Style) -> bool {
        self.0.iter().all(|step| match step {
            Step::Drip(_) | Step::Exchange(..) => style == Style::Async,
            Step::Await(_) | Step::SendInAttempts(..) | Step::ReceiveLate(..) | Step::Fail => {
                matches!(style, Style::Async | Style::Blocking)
            }
            // A handler of events is offered no more at once than it may leave.
            Step::Receive(len) => matches!(style, Style::Async | Style::Blocking) || *len <= OFFERED_MAX,
            _ => true,
        })
    }
}

impl<const N: usize> From<[Step; N]> for Script {
    fn from(steps: [Step; N]) -> Script {
        Script(steps.into())
    }
}

impl From<Vec<Step>> for Script {
    fn from(steps: Vec<Step>) -> Script {
        Script(steps.into())
    }
}

/// The usual `Limits::receive_buffer`.
const OFFERED_MAX: usize = 64 * 1024;

/// What a scenario holds a side back by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<AtomicBool>);

impl Gate {
    pub(crate) fn open(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Sends `bytes`.
pub(crate) fn send(bytes: impl Into<Bytes>) -> Step {
    Step::Send(bytes.into())
}

/// How a script came to its end.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It was done.
    Done,
    /// The peer ended before all that was to be received had come; so many bytes had.
    Ended { partial: usize },
    /// The connection ended meanwhile.
    Closed(CloseReason),
}

/// What is told of one connection on one side.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// Steps that were done.
    pub(crate) steps: usize,
    /// What was received. Of an echo as well.
    pub(crate) received: Vec<u8>,
    /// How often an operation was late.
    pub(crate) late: usize,
    /// How the script ended.
    pub(crate) stop: Option<Stop>,
    /// The ends of the connection that were told: one.
    pub(crate) ends: Vec<CloseReason>,
    /// The most that was queued.
    pub(crate) pending_max: usize,
    /// Whether it was by TLS.
    pub(crate) is_secured: bool,
    /// Whether the server's drain was told.
    pub(crate) is_draining: bool,
    /// What another thread can end the connection by.
    pub(crate) handle: Option<Handle>,
    /// Why there is no connection.
    pub(crate) failure: Option<Failure>,
}

/// A connection, for another thread.
#[derive(Clone, Debug)]
pub(crate) enum Handle {
    Worker(wharf::Remote),
    Thread(wharf::blocking::Remote),
    Queue(wharf::event::SocketHandle),
}

impl Handle {
    pub(crate) fn close(&self) {
        match self {
            Handle::Worker(remote) => remote.close(),
            Handle::Thread(remote) => remote.close(),
            Handle::Queue(socket) => socket.close(),
        }
    }

    pub(crate) fn reset(&self) {
        match self {
            Handle::Worker(remote) => remote.reset(),
            Handle::Thread(remote) => remote.reset(),
            Handle::Queue(socket) => socket.reset(),
        }
    }
}

/// Why a connect failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) is_refused: bool,
    /// What was wrong with TLS, if that was it.
    pub(crate) fault: Option<TlsFault>,
    pub(crate) words: String,
}

impl Told {
    /// The connection's end, which is told once, however it comes.
    pub(crate) fn end(&self) -> CloseReason {
        let [end] = self.ends[..] else { panic!("an end is told once: {self:?}") };
        end
    }

    /// How the script ended, and the connection.
    pub(crate) fn outcome(&self) -> (Stop, CloseReason) {
        (self.stop.expect("the script has ended"), self.end())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.failure.is_some() || (self.stop.is_some() && !self.ends.is_empty())
    }
}

/// Where one side tells what it does, while it does it.
#[derive(Clone, Default)]
pub(crate) struct Telling(Arc<Mutex<Told>>);

impl Telling {
    pub(crate) fn note(&self) -> MutexGuard<'_, Told> {
        self.0.lock().expect("nobody panics under this lock")
    }

    pub(crate) fn told(&self) -> Told {
        self.note().clone()
    }

    /// The last byte that was received.
    pub(crate) fn last(&self) -> Option<u8> {
        self.note().received.last().copied()
    }

    /// The handle that the script has given out.
    pub(crate) fn handle(&self) -> Handle {
        self.note().handle.clone().expect("it has been given out")
    }

    pub(crate) fn failed(&self, error: &wharf::Error) {
        self.note().failure = Some(Failure {
            kind: error.kind(),
            is_refused: error.is_refused(),
            fault: error.tls_fault(),
            words: error.to_string(),
        });
    }

    /// A script stops where an operation fails. Whatever the style: what kind of error it is follows from the reason.
    pub(crate) fn stopped_by(&self, error: &wharf::Error) {
        let stop = match (error.partial(), error.close_reason()) {
            (Some(partial), None) => {
                assert_eq!(error.kind(), ErrorKind::Peer, "{error}");
                Stop::Ended { partial }
            }
            (None, Some(reason)) => {
                assert_eq!(error.kind(), kind_of(reason), "{error}");
                Stop::Closed(reason)
            }
            _ => panic!("what is that? {error}"),
        };
        self.note().stop = Some(stop);
    }
}

/// What kind of error it is to use a connection that has ended so.
fn kind_of(reason: CloseReason) -> ErrorKind {
    match reason {
        CloseReason::Peer | CloseReason::PeerReset => ErrorKind::Peer,
        CloseReason::Network(_) | CloseReason::Proxy(_) | CloseReason::Tls(_) => ErrorKind::Peer,
        CloseReason::Timeout(_) => ErrorKind::Timeout,
        CloseReason::Limit(_) => ErrorKind::Limit,
        _ => ErrorKind::Caller,
    }
}
