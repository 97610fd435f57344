//! What can go wrong: [`Error`] and [`ErrorKind`], and what programs ask of them.
//!
//! An error names the operation, the address and the cause, and its kind says who can act on it.

mod cause;
mod reason;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

pub(crate) use cause::{Attempt, Cause, Operation, is_network, plain};
pub use reason::{Bound, CloseReason, Deadline, ProxyFault, Rule};

use crate::tls_fault::TlsFault;

/// A result whose error is Wharf's own.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any failure of an operation: what was done, to whom, and the cause.
///
/// Prints as one line, for example `receive from 10.0.0.7:443: connection reset by peer`. A clone is the same error, for whoever else
/// waits for what has failed. Programs ask it, and do not read its text:
///
/// ```
/// let error = wharf::blocking::connect("127.0.0.1:1").unwrap_err();
/// assert!(error.is_refused() && !error.is_timeout());
/// assert_eq!(error.operation(), "connect");
/// assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    operation: Operation,
    target: Option<String>,
    cause: Cause,
    /// How much of a message was not sent, where that is known.
    unsent: Option<usize>,
}

/// Who can act on an error.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The peer or the network between ended or refused the connection.
    Peer,
    /// This program asked for something that cannot be: a bad address or option, a closed connection.
    Caller,
    /// The operating system refused: the port is taken, permission is missing, descriptors ran out.
    System,
    /// A configured bound was reached.
    Limit,
    /// A deadline passed.
    Timeout,
}

impl Error {
    pub(crate) fn new(operation: Operation, cause: Cause) -> Error {
        Error(Arc::new(Inner { operation, target: None, cause, unsent: None }))
    }

    pub(crate) fn os(operation: Operation, error: io::Error) -> Error {
        Error::new(operation, Cause::Os(error))
    }

    pub(crate) fn option(name: &'static str, problem: impl Into<String>) -> Error {
        Error::new(Operation::Start, Cause::Option { name, problem: problem.into() })
    }

    pub(crate) fn at(mut self, target: impl fmt::Display) -> Error {
        if let Some(inner) = self.new_inner() {
            inner.target = Some(target.to_string());
        }
        self
    }

    /// What it says, to be added to.
    fn new_inner(&mut self) -> Option<&mut Inner> {
        let inner = Arc::get_mut(&mut self.0);
        debug_assert!(inner.is_some(), "an error is whole before anybody else has it");
        inner
    }

    pub(crate) fn unsending(mut self, bytes: usize) -> Error {
        if let Some(inner) = self.new_inner() {
            inner.unsent = Some(bytes);
        }
        self
    }

    pub(crate) fn into_cause(self) -> Cause {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => inner.cause,
            Err(shared) => Cause::Other(Box::new(Error(shared))),
        }
    }

    /// An error of the handler's own, to be returned from it.
    ///
    /// ```
    /// # use wharf::Error;
    /// let error = Error::other("unknown command");
    /// assert_eq!(error.to_string(), "handle: unknown command");
    /// ```
    pub fn other(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::new(Operation::Handle, Cause::Other(error.into()))
    }

    /// Who can act on this error.
    pub fn kind(&self) -> ErrorKind {
        match self.cause() {
            Cause::Os(error) if is_network(error.kind()) => ErrorKind::Peer,
            Cause::Os(error) if error.kind() == io::ErrorKind::TimedOut => ErrorKind::Timeout,
            Cause::Os(_) => ErrorKind::System,
            Cause::TimedOut { .. } | Cause::Late { .. } | Cause::Starved { .. } => ErrorKind::Timeout,
            Cause::Ended { .. } | Cause::EndedInFrame { .. } | Cause::Unreached { .. } => ErrorKind::Peer,
            Cause::Malformed(_) if self.0.operation == Operation::Send => ErrorKind::Caller,
            Cause::Malformed(_) => ErrorKind::Peer,
            // Who the proxy takes us for is ours to say.
            Cause::Tunnel { kind: io::ErrorKind::PermissionDenied, .. } => ErrorKind::Caller,
            Cause::Tunnel { .. } => ErrorKind::Peer,
            Cause::NotFound { .. } => ErrorKind::System,
            Cause::Tls { fault: TlsFault::Local, .. } => ErrorKind::Caller,
            Cause::Tls { .. } => ErrorKind::Peer,
            Cause::TooLarge { .. } | Cause::Full { .. } | Cause::TooMany { .. } => ErrorKind::Limit,
            Cause::Option { .. } | Cause::Variable { .. } | Cause::Address { .. } => ErrorKind::Caller,
            Cause::Session(error) => error.kind(),
            Cause::Misuse(_) | Cause::Other(_) => ErrorKind::Caller,
            #[cfg(feature = "tls")]
            Cause::Content { .. } => ErrorKind::Caller,
            Cause::Closed(reason) | Cause::Undelivered { reason, .. } => match reason {
                CloseReason::Peer | CloseReason::PeerReset => ErrorKind::Peer,
                CloseReason::Network(_) | CloseReason::Proxy(_) | CloseReason::Tls(_) => ErrorKind::Peer,
                CloseReason::Timeout(_) => ErrorKind::Timeout,
                CloseReason::Limit(_) => ErrorKind::Limit,
                _ => ErrorKind::Caller,
            },
        }
    }

    /// What was being done: `"connect"`, `"receive"`, `"send"` and so on.
    pub fn operation(&self) -> &'static str {
        self.0.operation.name()
    }

    /// Whether a deadline passed: of the operation, or of the connection.
    pub fn is_timeout(&self) -> bool {
        self.kind() == ErrorKind::Timeout
    }

    /// Whether a name could not be resolved: it has no address, or whoever knows could not be asked.
    pub fn is_unresolved(&self) -> bool {
        match &self.0.cause {
            Cause::Session(error) => error.is_unresolved(),
            cause => matches!(cause, Cause::NotFound { .. }),
        }
    }

    /// Whether the peer refused the connection (nobody listens there).
    pub fn is_refused(&self) -> bool {
        self.io_kind() == Some(io::ErrorKind::ConnectionRefused)
    }

    /// Whether the peer ended its side before a whole message had come; see [`Error::partial`].
    pub fn is_ended(&self) -> bool {
        matches!(self.0.cause, Cause::Ended { .. } | Cause::EndedInFrame { .. })
    }

    /// Whether the connection was already closed; [`Error::close_reason`] tells why.
    pub fn is_closed(&self) -> bool {
        self.close_reason().is_some()
    }

    /// How many bytes of a message that never came whole are there, still to be read with `recv`.
    pub fn partial(&self) -> Option<usize> {
        match self.0.cause {
            Cause::Ended { received, .. } | Cause::EndedInFrame { received } => Some(received),
            _ => None,
        }
    }

    /// How many bytes of what was to be delivered the peer's system had not acknowledged when the connection ended; see
    /// [`Connection::delivered`](crate::Connection::delivered). Fewer may not have arrived: an acknowledgement can be lost too.
    pub fn undelivered(&self) -> Option<u64> {
        match self.0.cause {
            Cause::Undelivered { bytes, .. } => Some(bytes),
            _ => None,
        }
    }

    /// How many bytes at the end of a message were not sent, if it was
    /// [`blocking::Connection::send`](crate::blocking::Connection::send) that failed: those before them are the kernel's, or, with TLS,
    /// sealed and queued.
    pub fn unsent(&self) -> Option<usize> {
        self.0.unsent
    }

    /// Why the connection had ended, if this error is due to that.
    pub fn close_reason(&self) -> Option<CloseReason> {
        match self.cause() {
            Cause::Closed(reason) | Cause::Undelivered { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    /// What went wrong with TLS, if that is the cause, or the reason for which the connection had ended.
    pub fn tls_fault(&self) -> Option<TlsFault> {
        if let Cause::Session(error) = &self.0.cause {
            return error.tls_fault();
        }
        match (self.cause(), self.close_reason()) {
            (Cause::Tls { fault, .. }, _) => Some(*fault),
            (_, Some(CloseReason::Tls(fault))) => Some(fault),
            _ => None,
        }
    }

    /// The kind of the operating system's error, if one is the cause; or what a proxy said, in those terms.
    ///
    /// Of a connect to a name with several addresses it is that of the one that came furthest: one that refuses is further than one that
    /// does not answer, and that than one to which there is no way.
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match &self.0.cause {
            Cause::Session(error) => error.io_kind(),
            _ => self.cause().io_kind(),
        }
    }

    /// The cause that decides what this error is.
    fn cause(&self) -> &Cause {
        match &self.0.cause {
            Cause::Unreached { attempts } => {
                let failures = attempts.iter().filter_map(|attempt| attempt.failure.as_ref());
                failures.max_by_key(|failure| failure.distance()).unwrap_or(&self.0.cause)
            }
            cause => cause,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { operation, target, cause, unsent: _ } = &*self.0;
        match target {
            Some(target) => write!(f, "{}{} {target}: {cause}", operation.name(), operation.preposition())?,
            None => write!(f, "{}: {cause}", operation.name())?,
        }
        match cause {
            Cause::Os(error) => what_to_change(f, *operation, target.as_deref(), error),
            _ => Ok(()),
        }
    }
}

/// Adds what the system's own words leave open, where it is the same nearly always.
fn what_to_change(
    f: &mut fmt::Formatter<'_>,
    operation: Operation,
    target: Option<&str>,
    error: &io::Error,
) -> fmt::Result {
    if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) {
        return f.write_str(" (see `ulimit -n`)");
    }
    let port = || target?.rsplit_once(':')?.1.parse::<u16>().ok();
    let is_denied = operation == Operation::Listen && error.kind() == io::ErrorKind::PermissionDenied;
    if is_denied && port().is_some_and(|port| port < PORT_FOR_ALL) {
        return f.write_str(" (a port this low is for root, or takes CAP_NET_BIND_SERVICE)");
    }
    Ok(())
}

/// The first port for which no system wants a privilege.
const PORT_FOR_ALL: u16 = 1024;

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self.cause() {
            Cause::Os(error) => Some(error),
            Cause::Other(error) => Some(&**error),
            Cause::Session(error) => Some(&**error),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    /// Wraps an input/output error of the handler's own (a file, say). One that an error of Wharf was made into becomes that again.
    fn from(error: io::Error) -> Error {
        error.downcast().unwrap_or_else(|error| Error::os(Operation::Handle, error))
    }
}

impl From<Error> for io::Error {
    /// The nearest kind of input/output error, with the error within: `io::Error::downcast` gives it back.
    fn from(error: Error) -> io::Error {
        io::Error::new(error.nearest_io_kind(), error)
    }
}

impl Error {
    /// What code that knows only `io::Error` makes most of.
    fn nearest_io_kind(&self) -> io::ErrorKind {
        if self.is_timeout() {
            return io::ErrorKind::TimedOut;
        }
        if let Some(kind) = self.io_kind() {
            return kind;
        }
        let sends = matches!(self.0.operation, Operation::Send | Operation::Flush | Operation::Finish);
        match (&self.0.cause, self.tls_fault()) {
            (Cause::Ended { .. }, _) | (_, Some(TlsFault::Truncated | TlsFault::HandshakeEnded)) => {
                io::ErrorKind::UnexpectedEof
            }
            (_, Some(_)) => io::ErrorKind::InvalidData,
            // What a system says to a write behind its own end, or the peer's.
            (Cause::Closed(CloseReason::Local | CloseReason::Peer), _) if sends => io::ErrorKind::BrokenPipe,
            (Cause::Closed(_), _) => io::ErrorKind::ConnectionAborted,
            (Cause::Option { .. } | Cause::Address { .. } | Cause::TooLarge { .. }, _) => {
                io::ErrorKind::InvalidInput
            }
            (Cause::NotFound { .. }, _) => io::ErrorKind::NotFound,
            _ => io::ErrorKind::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::address::Address;

    #[test]
    fn an_error_names_operation_address_and_cause_in_one_line() {
        let reset = io::Error::from_raw_os_error(104);
        let error = Error::os(Operation::Receive, reset).at("10.0.0.7:443");
        assert_eq!(error.to_string(), "receive from 10.0.0.7:443: connection reset by peer");
        assert_eq!(error.kind(), ErrorKind::Peer);
    }

    #[test]
    fn what_to_change_is_told_where_the_system_does_not() {
        let os = |operation, errno: rustix::io::Errno, target: &str| {
            Error::os(operation, io::Error::from_raw_os_error(errno.raw_os_error())).at(target).to_string()
        };
        let (full, denied) = (rustix::io::Errno::MFILE, rustix::io::Errno::ACCESS);
        let told = os(Operation::Connect, full, "[::1]:80");
        assert_eq!(told, "connect to [::1]:80: too many open files (see `ulimit -n`)");
        let told = os(Operation::Listen, denied, "[::1]:80");
        assert!(
            told.ends_with(
                ": permission denied (a port this low is for root, or takes CAP_NET_BIND_SERVICE)"
            )
        );
        for (operation, target) in [
            (Operation::Listen, "[::1]:8080"),
            (Operation::Listen, "unix:/run/x"),
            (Operation::Connect, "[::1]:80"),
        ] {
            assert!(os(operation, denied, target).ends_with(": permission denied"), "{target}");
        }
    }

    #[test]
    fn an_error_that_goes_through_io_comes_back() {
        let late = Error::new(Operation::Receive, Cause::TimedOut { after: Duration::from_secs(1) });
        let through = io::Error::from(late);
        assert_eq!(through.kind(), io::ErrorKind::TimedOut);
        assert_eq!(Error::from(through).to_string(), "receive: timed out after 1s");
        let file = Error::from(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(file.operation(), "handle");
    }

    #[test]
    fn an_error_has_the_io_kind_that_says_most() {
        let kind = |operation, cause| io::Error::from(Error::new(operation, cause)).kind();
        let closed = |operation, reason| kind(operation, Cause::Closed(reason));
        assert_eq!(closed(Operation::Send, CloseReason::Peer), io::ErrorKind::BrokenPipe);
        assert_eq!(closed(Operation::Receive, CloseReason::Local), io::ErrorKind::ConnectionAborted);
        assert_eq!(closed(Operation::Receive, CloseReason::PeerReset), io::ErrorKind::ConnectionReset);
        assert_eq!(closed(Operation::Send, CloseReason::Shutdown), io::ErrorKind::ConnectionAborted);
        let truncated = CloseReason::Tls(TlsFault::Truncated);
        assert_eq!(closed(Operation::Receive, truncated), io::ErrorKind::UnexpectedEof);
        let ended = Cause::Ended { received: 1, wanted: 2 };
        assert_eq!(kind(Operation::Receive, ended), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_bad_option_is_named() {
        let error = Error::option("workers", "must be at least 1");
        assert_eq!(error.to_string(), "start: option `workers` must be at least 1");
        assert_eq!(error.kind(), ErrorKind::Caller);
    }

    fn unreached(kinds: &[Option<io::ErrorKind>]) -> Vec<Attempt> {
        let attempt = |(index, kind): (usize, &Option<io::ErrorKind>)| Attempt {
            address: Address::Ip(([10, 0, 0, index as u8], 80).into()),
            failure: kind.map(|kind| Cause::Os(kind.into())),
        };
        kinds.iter().enumerate().map(attempt).collect()
    }

    #[test]
    fn of_several_addresses_each_is_told_and_the_one_that_came_furthest_says_what_the_error_is() {
        use io::ErrorKind::{ConnectionRefused, NetworkUnreachable, TimedOut};
        let attempts = unreached(&[Some(TimedOut), Some(ConnectionRefused), Some(NetworkUnreachable)]);
        let error = Error::new(Operation::Connect, Cause::Unreached { attempts }).at("a.test:80");
        assert_eq!(
            error.to_string(),
            "connect to a.test:80: 10.0.0.0:80: timed out; 10.0.0.1:80: connection refused; 10.0.0.2:80: network unreachable"
        );
        assert!(error.is_refused() && error.kind() == ErrorKind::Peer);
        let attempts = unreached(&[Some(NetworkUnreachable), Some(TimedOut)]);
        assert!(Error::new(Operation::Connect, Cause::Unreached { attempts }).is_timeout());
    }

    #[test]
    fn a_late_connect_tells_what_it_was_doing_and_what_it_had_heard() {
        let attempts = unreached(&[Some(io::ErrorKind::ConnectionRefused), None]);
        let after = Duration::from_secs(3);
        let late = Error::new(Operation::Connect, Cause::Late { after, doing: None, attempts });
        assert_eq!(
            late.to_string(),
            "connect: timed out after 3s; 10.0.0.0:80: connection refused; 10.0.0.1:80: no answer"
        );
        let doing = Some(String::from("looking up the name"));
        let late = Error::new(Operation::Connect, Cause::Late { after, doing, attempts: Vec::new() });
        assert_eq!(late.to_string(), "connect: timed out after 3s, looking up the name");
        assert!(late.is_timeout() && late.io_kind().is_none());
    }

    #[test]
    fn a_clone_is_the_same_error() {
        let error = Error::os(Operation::Receive, io::ErrorKind::ConnectionReset.into()).at("10.0.0.7:443");
        let clone = error.clone();
        assert_eq!(clone.to_string(), error.to_string());
        assert!(matches!(error.into_cause(), Cause::Other(_)), "the other one keeps its own");
        assert_eq!(clone.io_kind(), Some(io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn an_error_is_one_pointer_wide() {
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
    }

    #[test]
    fn a_timeout_stays_a_timeout_as_an_io_error() {
        let error = Error::new(Operation::Connect, Cause::TimedOut { after: Duration::from_secs(3) });
        assert!(error.is_timeout());
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::TimedOut);
    }
}
