//! Name look-ups beside the workers: the operating system's resolver blocks, so a few threads of its own wait for it.
//!
//! At most [`THREADS_MAX`] look-ups run at once, whatever hangs; of the others [`QUEUED_MAX`] queue. A thread with nothing to do ends.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use crate::error::{Cause, plain};

/// More addresses than this of one name are not tried.
pub(crate) const ADDRESSES_MAX: usize = 16;
const THREADS_MAX: usize = 8;
/// More that wait are not a queue any more: every thread hangs.
const QUEUED_MAX: usize = 4096;
const KEEP_IDLE: Duration = Duration::from_secs(10);

static RESOLVER: Resolver = Resolver {
    state: Mutex::new(State { jobs: VecDeque::new(), threads: 0, idle: 0 }),
    filled: Condvar::new(),
};

struct Resolver {
    state: Mutex<State>,
    filled: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// Finds the addresses of a name, the best one first. May block.
pub(crate) type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

struct Job {
    name: String,
    port: u16,
    /// In the place of the system.
    by: Option<Arc<Lookup>>,
    answer: Arc<Mutex<Answer>>,
}

#[derive(Default)]
struct Answer {
    result: Option<Result<Vec<SocketAddr>, Cause>>,
    waker: Option<Waker>,
}

/// Looks `name` up, by somebody else than the system if one is given. Dropping the future gives the answer up; a look-up that nobody
/// awaits any more is not begun.
pub(crate) async fn lookup(name: &str, port: u16, by: Option<Arc<Lookup>>) -> Result<Vec<SocketAddr>, Cause> {
    let answer = Arc::new(Mutex::new(Answer::default()));
    let job = Job { name: name.to_owned(), port, by, answer: answer.clone() };
    RESOLVER.submit(job).map_err(Cause::Os)?;
    std::future::poll_fn(|cx| {
        let mut answer = lock(&answer);
        match answer.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                answer.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    })
    .await
}

impl Resolver {
    fn submit(&'static self, job: Job) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.jobs.len() >= QUEUED_MAX {
            state.jobs.retain(Job::is_awaited);
        }
        if state.jobs.len() >= QUEUED_MAX {
            return Err(io::Error::other(format!(
                "{QUEUED_MAX} look-ups of names wait already, and none is answered"
            )));
        }
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() || state.threads >= THREADS_MAX {
            self.filled.notify_one();
            return Ok(());
        }
        state.threads += 1;
        drop(state);
        let spawned = thread::Builder::new().name(String::from("wharf-resolve")).spawn(|| self.work());
        if let Err(error) = spawned {
            let mut state = lock(&self.state);
            state.threads -= 1;
            if state.threads == 0 {
                let stranded = std::mem::take(&mut state.jobs);
                drop(state);
                stranded.iter().for_each(|job| job.answer(Err(Cause::Os(error.kind().into()))));
                return Err(error);
            }
        }
        Ok(())
    }

    fn work(&self) {
        while let Some(job) = self.next_job() {
            if !job.is_awaited() {
                continue;
            }
            job.answer(match &job.by {
                Some(by) => ask(&**by, &job.name, job.port),
                None => resolve(&job.name, job.port),
            });
        }
    }

    /// The next job; `None` when this thread is no longer needed.
    fn next_job(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            let (woken, waited) =
                self.filled.wait_timeout(state, KEEP_IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return None;
            }
        }
    }
}

impl Job {
    /// Its future is gone if nobody else holds the place for the answer.
    fn is_awaited(&self) -> bool {
        Arc::strong_count(&self.answer) > 1
    }

    /// Leaves the result where its future looks for it.
    fn answer(&self, result: Result<Vec<SocketAddr>, Cause>) {
        let mut answer = lock(&self.answer);
        answer.result = Some(result);
        let waker = answer.waker.take();
        drop(answer);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Nothing panics under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks the operating system for the addresses of a name. Blocks for as long as it likes: never call it on a worker.
pub(crate) fn resolve(name: &str, port: u16) -> Result<Vec<SocketAddr>, Cause> {
    let found = (name, port).to_socket_addrs().map_err(|error| {
        let text = error.to_string().to_lowercase();
        let problem = text.trim_start_matches("failed to lookup address information: ");
        Cause::NotFound { problem: format!("cannot resolve {name}: {problem}") }
    })?;
    distinct(name, found)
}

/// Asks somebody else than the operating system. May block as well.
pub(crate) fn ask(by: &Lookup, name: &str, port: u16) -> Result<Vec<SocketAddr>, Cause> {
    let found = catch_unwind(AssertUnwindSafe(|| by(name)))
        .unwrap_or_else(|_| Err(io::Error::other("the resolver panicked")))
        .map_err(|error| Cause::NotFound { problem: format!("cannot resolve {name}: {}", plain(&error)) })?;
    self::found(name, port, found)
}

/// What a name leads to, if these are its addresses.
pub(crate) fn found(name: &str, port: u16, addresses: Vec<IpAddr>) -> Result<Vec<SocketAddr>, Cause> {
    distinct(name, addresses.into_iter().map(|ip| SocketAddr::new(ip, port)))
}

/// Each of them once, and not too many.
fn distinct(name: &str, found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, Cause> {
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address) && addresses.len() < ADDRESSES_MAX {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(Cause::NotFound { problem: format!("cannot resolve {name}: it has no addresses") });
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_beside_the_worker() {
        let addresses = crate::run(async { lookup("localhost", 80, None).await }).unwrap().unwrap();
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 80));
    }

    #[test]
    fn a_name_that_does_not_exist_is_an_error_that_names_it() {
        let error =
            crate::run(async { lookup("no-such-host.invalid", 80, None).await }).unwrap().unwrap_err();
        assert!(error.to_string().starts_with("cannot resolve no-such-host.invalid: "), "{error}");
    }

    #[test]
    fn a_resolver_that_panics_fails_its_look_up_and_no_other() {
        let panics: Arc<Lookup> = Arc::new(|_| panic!("on purpose"));
        let counts: Arc<Lookup> = Arc::new(|name| Ok(vec![[10, 0, 0, name.len() as u8].into(); 100]));
        let (panicked, counted) = crate::run(async move {
            (lookup("a.test", 80, Some(panics)).await, lookup("a.test", 80, Some(counts)).await)
        })
        .unwrap();
        assert_eq!(panicked.unwrap_err().to_string(), "cannot resolve a.test: the resolver panicked");
        assert_eq!(counted.unwrap(), ["10.0.0.6:80".parse().unwrap()], "each address once");
    }

    #[test]
    fn of_many_addresses_the_first_are_kept() {
        let many = (0..=255).map(|last| [10, 0, 0, last].into()).collect();
        let found = found("a.test", 80, many).unwrap();
        assert_eq!(found.len(), ADDRESSES_MAX);
        assert_eq!(found[0], "10.0.0.0:80".parse().unwrap());
    }
}
