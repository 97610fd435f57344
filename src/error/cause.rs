//! What was being done and what went wrong there, and how both are put into words: `Operation` and `Cause`.
//!
//! Who can act on it is asked of the whole error.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{CloseReason, Error};
use crate::address::Address;
use crate::tls_fault::TlsFault;

/// What was being done when an error occurred.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Listen,
    Start,
    Connect,
    Receive,
    Send,
    Flush,
    Finish,
    Deliver,
    Secure,
    Wait,
    Run,
    Handle,
    Adopt,
    TakeOver,
    Notify,
    Parse,
    Post,
    Close,
    Acquire,
    #[cfg(feature = "tls")]
    Load,
}

#[derive(Debug)]
pub(crate) enum Cause {
    Os(io::Error),
    TimedOut {
        after: Duration,
    },
    Closed(CloseReason),
    /// So many bytes were not acknowledged.
    Undelivered {
        reason: CloseReason,
        bytes: u64,
    },
    Ended {
        received: usize,
        wanted: usize,
    },
    /// The peer ended in the middle of a frame, of which so many bytes are here.
    EndedInFrame {
        received: usize,
    },
    /// What came, or is to be sent, is no frame.
    Malformed(Cow<'static, str>),
    Option {
        name: &'static str,
        problem: String,
    },
    Variable {
        name: &'static str,
        problem: String,
    },
    Address {
        problem: String,
    },
    TooLarge {
        bytes: usize,
        bound: usize,
        option: &'static str,
    },
    Full {
        queued: usize,
        option: &'static str,
    },
    /// There is as much of something as there may be.
    TooMany {
        count: usize,
        what: &'static str,
        option: &'static str,
    },
    /// What was waited for did not come, and this is what was missing.
    Starved {
        after: Duration,
        detail: String,
    },
    NotFound {
        problem: String,
    },
    /// None of several addresses led to a connection: what became of each, in the order in which they were tried.
    Unreached {
        attempts: Vec<Attempt>,
    },
    /// A connect was not over in time. What was being done, if that was not the waiting for the only address; and what has become of
    /// the addresses, if there are several.
    Late {
        after: Duration,
        doing: Option<String>,
        attempts: Vec<Attempt>,
    },
    /// A proxy did not connect us.
    Tunnel {
        kind: io::ErrorKind,
        problem: String,
    },
    Misuse(&'static str),
    /// What was loaded is not what it has to be.
    #[cfg(feature = "tls")]
    Content {
        problem: String,
    },
    /// TLS failed, and this is what exactly.
    Tls {
        fault: TlsFault,
        detail: String,
    },
    /// What has ended the session for good.
    Session(Arc<Error>),
    Other(Box<dyn StdError + Send + Sync>),
}

/// What became of the attempt at one address; `None` if it has not answered.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) address: Address,
    pub(crate) failure: Option<Cause>,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Operation::Listen => "listen",
            Operation::Start => "start",
            Operation::Connect => "connect",
            Operation::Receive => "receive",
            Operation::Send => "send",
            Operation::Flush => "flush",
            Operation::Finish => "finish",
            Operation::Deliver => "deliver",
            Operation::Secure => "secure",
            Operation::Wait => "wait",
            Operation::Run => "run",
            Operation::Handle => "handle",
            Operation::Adopt => "adopt",
            Operation::TakeOver => "take over",
            Operation::Notify => "notify",
            Operation::Parse => "parse",
            Operation::Post => "post",
            Operation::Close => "close",
            Operation::Acquire => "acquire",
            #[cfg(feature = "tls")]
            Operation::Load => "load",
        }
    }

    /// What stands between the operation and its address, with the space before it.
    pub(super) fn preposition(self) -> &'static str {
        match self {
            Operation::Listen => " on",
            Operation::Receive | Operation::TakeOver | Operation::Acquire => " from",
            Operation::Secure => " with",
            Operation::Connect
            | Operation::Send
            | Operation::Flush
            | Operation::Finish
            | Operation::Deliver => " to",
            Operation::Start
            | Operation::Notify
            | Operation::Wait
            | Operation::Run
            | Operation::Handle
            | Operation::Adopt
            | Operation::Parse
            | Operation::Post
            | Operation::Close => "",
            #[cfg(feature = "tls")]
            Operation::Load => "",
        }
    }
}

impl Cause {
    pub(super) fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Cause::Os(error) => Some(error.kind()),
            Cause::Tunnel { kind, .. } => Some(*kind),
            Cause::Closed(reason) | Cause::Undelivered { reason, .. } => match reason {
                CloseReason::Network(kind) => Some(*kind),
                CloseReason::PeerReset => Some(io::ErrorKind::ConnectionReset),
                _ => None,
            },
            _ => None,
        }
    }

    /// How far a connect has come that failed for this cause: somebody spoke, somebody answered, nobody did, there is no way.
    pub(super) fn distance(&self) -> u8 {
        match self {
            Cause::Tls { .. } | Cause::Tunnel { .. } => 4,
            Cause::Os(_) | Cause::Closed(_) => match self.io_kind() {
                Some(io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) => 3,
                Some(io::ErrorKind::TimedOut) => 2,
                _ => 1,
            },
            Cause::TimedOut { .. } => 2,
            _ => 1,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Os(error) => f.write_str(&plain(error)),
            Cause::TimedOut { after } => write!(f, "timed out after {after:?}"),
            Cause::Closed(reason) => write!(f, "connection is closed: {reason}"),
            Cause::Undelivered { reason, bytes } => {
                write!(f, "connection is closed: {reason}; {bytes} bytes were not acknowledged")
            }
            Cause::Ended { received, wanted } => {
                write!(f, "the peer ended after {received} of {wanted} bytes")
            }
            Cause::EndedInFrame { received } => {
                write!(f, "the peer ended in the middle of a frame, after {received} bytes of it")
            }
            Cause::Malformed(problem) => f.write_str(problem),
            Cause::Option { name, problem } => write!(f, "option `{name}` {problem}"),
            Cause::Variable { name, problem } => write!(f, "environment variable `{name}`: {problem}"),
            Cause::Address { problem } | Cause::NotFound { problem } | Cause::Tunnel { problem, .. } => {
                f.write_str(problem)
            }
            Cause::Unreached { attempts } => list(f, attempts),
            Cause::Late { after, doing, attempts } => {
                write!(f, "timed out after {after:?}")?;
                if let Some(doing) = doing {
                    write!(f, ", {doing}")?;
                }
                if !attempts.is_empty() {
                    f.write_str("; ")?;
                }
                list(f, attempts)
            }
            Cause::TooLarge { bytes, bound, option } => {
                write!(f, "{bytes} bytes are more than `{option}` allows ({bound})")
            }
            Cause::Full { queued, option } => write!(f, "{queued} bytes are queued, see `{option}`"),
            Cause::TooMany { count, what, option } => write!(f, "{count} {what}, see `{option}`"),
            Cause::Starved { after, detail } => write!(f, "timed out after {after:?}: {detail}"),
            Cause::Session(error) => write!(f, "the session has ended: {error}"),
            Cause::Misuse(what) => f.write_str(what),
            #[cfg(feature = "tls")]
            Cause::Content { problem } => f.write_str(problem),
            Cause::Tls { fault, detail } if detail.is_empty() => write!(f, "TLS: {fault}"),
            Cause::Tls { fault, detail } => write!(f, "TLS: {fault}: {detail}"),
            Cause::Other(error) => write!(f, "{error}"),
        }
    }
}

/// Tells of each address what became of it, one after the other.
fn list(f: &mut fmt::Formatter<'_>, attempts: &[Attempt]) -> fmt::Result {
    for (index, Attempt { address, failure }) in attempts.iter().enumerate() {
        let gap = if index == 0 { "" } else { "; " };
        match failure {
            Some(failure) => write!(f, "{gap}{address}: {failure}")?,
            None => write!(f, "{gap}{address}: no answer")?,
        }
    }
    Ok(())
}

/// The operating system's text without Rust's "(os error 98)" and with a small first letter.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::from("unknown error"),
    }
}

/// Errors that the other end or the path to it causes.
pub(crate) fn is_network(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}
