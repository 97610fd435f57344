//! Name look-ups beside the workers: the operating system's resolver blocks, so a few threads of its own wait for it.
//!
//! At most [`THREADS_MAX`] look-ups run at once, whatever hangs; the others queue. A thread with nothing to do ends.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use crate::error::Cause;

/// More addresses than this of one name are not tried.
pub(crate) const ADDRESSES_MAX: usize = 16;
const THREADS_MAX: usize = 8;
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

struct Job {
    name: String,
    port: u16,
    answer: Arc<Mutex<Answer>>,
}

#[derive(Default)]
struct Answer {
    result: Option<Result<Vec<SocketAddr>, Cause>>,
    waker: Option<Waker>,
}

/// Looks `name` up. Dropping the future gives the answer up; a look-up that nobody awaits any more is not begun.
pub(crate) async fn lookup(name: &str, port: u16) -> Result<Vec<SocketAddr>, Cause> {
    let answer = Arc::new(Mutex::new(Answer::default()));
    let job = Job { name: name.to_owned(), port, answer: answer.clone() };
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
            // Its future is gone if nobody else holds the place for the answer.
            if Arc::strong_count(&job.answer) == 1 {
                continue;
            }
            job.answer(resolve(&job.name, job.port));
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
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address) && addresses.len() < ADDRESSES_MAX {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(Cause::NotFound { problem: format!("{name} has no addresses") });
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_beside_the_worker() {
        let addresses = crate::run(async { lookup("localhost", 80).await }).unwrap().unwrap();
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == 80));
    }

    #[test]
    fn a_name_that_does_not_exist_is_an_error_that_names_it() {
        let error = crate::run(async { lookup("no-such-host.invalid", 80).await }).unwrap().unwrap_err();
        assert!(error.to_string().starts_with("cannot resolve no-such-host.invalid: "), "{error}");
    }
}
