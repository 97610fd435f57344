//! Which engine carries the connections: [`Backend`].

use std::fmt;
use std::str::FromStr;

use crate::engine;
use crate::error::{Cause, Error, Operation, Result};

/// Which engine carries the connections.
///
/// ```
/// use wharf::Backend;
///
/// let backend: Backend = "readiness".parse()?;
/// assert_eq!(backend, Backend::Readiness);
/// assert!(["uring", "readiness"].contains(&Backend::Auto.name()));
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// The best one that works on this machine: io_uring on Linux where the kernel has what it takes and lets us use it,
    /// readiness elsewhere. [`probe()`](crate::probe()) tells which, and why not the other.
    ///
    /// The environment variable `WHARF_BACKEND` (`uring`, `readiness` or `auto`) decides instead, if it is set and not
    /// empty: an operator's way out without recompiling. It is read at each start, changes nothing for programs that
    /// name a backend themselves, and anything else in it is an error of the start.
    #[default]
    Auto,
    /// io_uring, on Linux only. Where it does not work, starting is an error that says why.
    Uring,
    /// Readiness: epoll on Linux, kqueue on macOS and the BSDs.
    Readiness,
}

/// The environment variable that decides what [`Backend::Auto`] is.
const BACKEND_VARIABLE: &str = "WHARF_BACKEND";

impl Backend {
    /// The name of the engine that this choice stands for on this machine: `uring` or `readiness`.
    ///
    /// For [`Backend::Auto`] that needs a look at what works here, a fraction of a millisecond the first time. What the system
    /// refuses later, to one worker of many, only [`ServerHandle::backends`](crate::ServerHandle::backends) can tell.
    pub fn name(self) -> &'static str {
        match self.chosen().unwrap_or(self) {
            Backend::Auto if engine::uring_features().is_ok() => "uring",
            Backend::Auto | Backend::Readiness => "readiness",
            Backend::Uring => "uring",
        }
    }

    /// This choice, or the operator's if this one leaves it open.
    pub(crate) fn chosen(self) -> Result<Backend> {
        match (self, std::env::var_os(BACKEND_VARIABLE)) {
            (Backend::Auto, Some(value)) if !value.is_empty() => {
                let name = value.to_string_lossy();
                Backend::from_name(&name).map_err(|problem| {
                    Error::new(Operation::Start, Cause::Variable { name: BACKEND_VARIABLE, problem })
                })
            }
            _ => Ok(self),
        }
    }

    fn from_name(name: &str) -> Result<Backend, String> {
        match name {
            "auto" => Ok(Backend::Auto),
            "uring" => Ok(Backend::Uring),
            "readiness" => Ok(Backend::Readiness),
            _ => Err(format!("`{name}` is none of auto, uring, readiness")),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Auto => "auto",
            Backend::Uring => "uring",
            Backend::Readiness => "readiness",
        })
    }
}

impl FromStr for Backend {
    type Err = Error;

    /// Reads `auto`, `uring` or `readiness`.
    fn from_str(name: &str) -> Result<Backend> {
        Backend::from_name(name).map_err(|problem| Error::option("backend", problem))
    }
}
