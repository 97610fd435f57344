//! How many of the process's descriptors a server leaves to its connections, if nobody says how many these may be.

use rustix::process::{Resource, getrlimit};

/// For everything else in the process: the standard streams, listeners and their copies, files, name look-ups.
const RESERVE: usize = 64;
/// For each worker: epoll or a ring, the descriptor that wakes it, its alarm, and one for what a ring needs to be set up.
const OF_A_WORKER: usize = 4;

/// As many as the limit of the process allows.
pub(super) fn for_connections(workers: usize) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    left_of(limit, workers)
}

/// One connection there always is, so that a server with too few is noticed by its errors, and serves meanwhile.
fn left_of(limit: usize, workers: usize) -> usize {
    limit.saturating_sub(RESERVE + OF_A_WORKER * workers).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_keeps_descriptors_of_its_own() {
        assert_eq!(left_of(1024, 1), 956);
        assert_eq!(left_of(1024, 64), 704);
        assert_eq!(left_of(1024, 64), left_of(1024, 1) - 63 * OF_A_WORKER);
        assert_eq!(left_of(usize::MAX, 1), usize::MAX - 68);
    }

    #[test]
    fn there_is_always_one_for_a_connection() {
        for workers in [1, 240, 1024] {
            assert!(left_of(1024, workers) >= 1);
        }
        assert_eq!((left_of(0, 1), left_of(69, 1), left_of(70, 1)), (1, 1, 2));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn no_worker_takes_more_than_is_kept_for_it() {
        use crate::config::Backend;
        use crate::engine::Engine;
        const NAME: &str = "server::descriptors::tests::no_worker_takes_more_than_is_kept_for_it";
        const ROLE: &str = "WHARF_DESCRIPTORS";
        if std::env::var_os(ROLE).is_none() {
            // Other tests open descriptors meanwhile.
            let mut alone = std::process::Command::new(std::env::current_exe().expect("it runs"));
            let alone = alone.args(["--exact", NAME, "--test-threads=1"]).env(ROLE, "1").output();
            let alone = alone.expect("it starts");
            return assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stdout));
        }
        let open = || std::fs::read_dir("/proc/self/fd").expect("there is one").count();
        for backend in [Backend::Readiness, Backend::Uring] {
            let before = open();
            // Where io_uring does not work there is nothing to count.
            let engines: Vec<_> = (0..4).filter_map(|_| Engine::new(backend).ok()).collect();
            assert!(open() - before <= engines.len() * OF_A_WORKER, "{backend}: {}", open() - before);
        }
    }
}
