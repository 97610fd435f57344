//! What the engines tell of themselves: features, or why one cannot run. The same types on every system.

use std::error::Error;
use std::fmt;
use std::io;

use rustix::io::Errno;

/// What the kernel offers io_uring beyond the least that the engine needs. What is missing costs a little, and is done in
/// another way.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UringFeatures {
    /// A multishot receive ends by itself after a number of bytes, or one buffer later (Linux 6.17). Without, it is cancelled
    /// when a connection wants no more, and goes on until that is done.
    pub receive_caps: bool,
    /// A thread that waits for completions does not count as waiting for a disk (Linux 6.15). Without, an idle worker shows
    /// up as I/O wait in `top` and in the load average.
    pub no_iowait: bool,
    /// Requests need no index array (Linux 6.6). Without, each costs one more access to memory.
    pub no_index: bool,
}

/// Why an engine cannot run here.
///
/// Prints as one line: the engine, the step that failed, the cause, and what to change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The engine: `io_uring`, `epoll` or `kqueue`.
    pub engine: &'static str,
    /// What was tried: `setting up a ring with buffers`, for example.
    pub step: &'static str,
    /// How it failed: `operation not permitted`, for example.
    pub cause: String,
    /// What to look at, or to change.
    pub hint: String,
    kind: io::ErrorKind,
    /// It may be otherwise the next time: descriptors or memory were short.
    passes: bool,
}

impl Refusal {
    pub(crate) fn new(engine: &'static str, step: &'static str, error: &io::Error, hint: String) -> Refusal {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        let passes = matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN));
        Refusal { engine, step, cause: crate::error::plain(error), hint, kind: error.kind(), passes }
    }

    /// A refusal that is not the operating system's.
    pub(crate) fn because(
        engine: &'static str,
        step: &'static str,
        cause: impl Into<String>,
        hint: &str,
    ) -> Refusal {
        let (cause, hint) = (cause.into(), hint.to_owned());
        Refusal { engine, step, cause, hint, kind: io::ErrorKind::Unsupported, passes: false }
    }

    /// Whether another attempt may do better.
    #[cfg(target_os = "linux")]
    pub(crate) fn passes(&self) -> bool {
        self.passes
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be used: {}: {} ({})", self.engine, self.step, self.cause, self.hint)
    }
}

impl Error for Refusal {}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        io::Error::new(refusal.kind, refusal)
    }
}
