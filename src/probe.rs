//! What this machine offers a server: the engines that work, and the limits of the process and the system.
//!
//! Looks, and changes nothing. For a health page, a line in a log at start, or an error report; the command has it as
//! `wharf probe`.

use std::fs;
use std::ops::RangeInclusive;
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit};
use rustix::system::uname;

use crate::config::Backend;
use crate::engine::{self, Engine};
use crate::error::{Error, Operation, Result};

pub use crate::engine::{Refusal, UringFeatures};

/// Finds out what there is: sets up each engine once and reads the limits. Takes about ten milliseconds, and for that time
/// about ten descriptors.
///
/// Nothing here fails as a whole: what cannot be found out says so in its place.
///
/// ```
/// let found = wharf::probe();
/// match &found.uring {
///     Ok(features) => println!("io_uring works: {features:?}"),
///     Err(refusal) => println!("{refusal}"),
/// }
/// println!("{:?} descriptors for {} processors", found.descriptors.soft, found.processors);
/// # assert_eq!(found.auto?.name(), wharf::Backend::Auto.name());
/// # Ok::<(), wharf::Error>(())
/// ```
pub fn probe() -> Probe {
    let uring = engine::uring_features().and_then(|features| Engine::new(Backend::Uring).map(|_| features));
    let readiness = Engine::new(Backend::Readiness).map(|_| engine::POLLER);
    Probe {
        kernel: kernel(),
        processors: thread::available_parallelism().map_or(1, usize::from),
        auto: auto(&uring, &readiness),
        uring,
        readiness,
        descriptors: ResourceLimit::of(Resource::Nofile),
        locked_memory: ResourceLimit::of(Resource::Memlock),
        listen_backlog: sysctl("net/core/somaxconn").and_then(|value| value.trim().parse().ok()),
        ephemeral_ports: sysctl("net/ipv4/ip_local_port_range").and_then(|value| range(&value)),
    }
}

/// What [`probe()`] found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Probe {
    /// The operating system and its release: `Linux 6.18.1`, for example.
    pub kernel: String,
    /// How many processors this process may use: its affinity and its control group counted. A server has so many
    /// workers by default.
    pub processors: usize,
    /// The engine that [`Backend::Auto`] stands for: [`Backend::Uring`] or [`Backend::Readiness`].
    ///
    /// It is an error where a server or client that leaves the choice open cannot start: `WHARF_BACKEND` names something
    /// else than a backend, or one that does not work here; or nothing works.
    pub auto: Result<Backend>,
    /// io_uring: what the kernel offers beyond the least, or why it cannot be used.
    pub uring: Result<UringFeatures, Refusal>,
    /// Readiness: `epoll` or `kqueue`, or why it cannot be used.
    pub readiness: Result<&'static str, Refusal>,
    /// How many descriptors the process may have open (RLIMIT_NOFILE). Each connection takes one.
    pub descriptors: ResourceLimit,
    /// How many bytes of memory the process may lock (RLIMIT_MEMLOCK). Without the capability CAP_IPC_LOCK, recent kernels
    /// count each worker's io_uring against it, for all processes of the user together.
    pub locked_memory: ResourceLimit,
    /// The longest queue of connections that wait to be accepted (`net.core.somaxconn`), which caps
    /// [`SocketOptions::backlog`](crate::SocketOptions::backlog). `None` where the system does not tell.
    pub listen_backlog: Option<u32>,
    /// The local ports of outgoing connections (`net.ipv4.ip_local_port_range`): so many connections from one local address
    /// to one server are possible. `None` where the system does not tell.
    pub ephemeral_ports: Option<RangeInclusive<u16>>,
}

/// A limit of the process (getrlimit(2)).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResourceLimit {
    /// What holds now; `None` for no limit.
    pub soft: Option<u64>,
    /// What the process may raise it to by itself; `None` for no limit.
    pub hard: Option<u64>,
}

impl ResourceLimit {
    fn of(resource: Resource) -> ResourceLimit {
        let Rlimit { current, maximum } = getrlimit(resource);
        ResourceLimit { soft: current, hard: maximum }
    }
}

fn auto(
    uring: &Result<UringFeatures, Refusal>,
    readiness: &Result<&'static str, Refusal>,
) -> Result<Backend> {
    let found = match Backend::Auto.chosen()? {
        Backend::Auto if uring.is_ok() => Ok(Backend::Uring),
        Backend::Uring => uring.clone().map(|_| Backend::Uring),
        Backend::Auto | Backend::Readiness => readiness.clone().map(|_| Backend::Readiness),
    };
    found.map_err(|refusal| Error::os(Operation::Start, refusal.into()))
}

fn kernel() -> String {
    let system = uname();
    format!("{} {}", system.sysname().to_string_lossy(), system.release().to_string_lossy())
}

/// A setting of the Linux kernel (proc_sys(5)).
fn sysctl(path: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{path}")).ok()
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.trim().split_once(char::is_whitespace)?;
    Some(first.parse().ok()?..=last.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_ports_is_two_numbers() {
        assert_eq!(range("32768\t60999\n"), Some(32768..=60999));
        for wrong in ["", "1", "a b", "1 70000"] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_works_can_be_started() {
        let found = probe();
        assert!(found.readiness.is_ok(), "{found:?}");
        assert_eq!(found.uring.is_ok(), crate::run_on(Backend::Uring, async {}).is_ok());
    }
}
