//! Threads for the handlers of one server: as many as there is work for, at most a bound, kept for a while when there is none.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a thread waits for the next connection before it ends.
const KEEP_IDLE: Duration = Duration::from_secs(10);

pub(super) type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Pool {
    name: String,
    max: usize,
    keep_idle: Duration,
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// Who has nothing to do ends at once.
    closed: bool,
    /// Counts the threads that there were, for their names.
    born: usize,
}

impl Pool {
    pub(super) fn new(name: String, max: usize) -> Arc<Pool> {
        Pool::that_keeps(name, max, KEEP_IDLE)
    }

    fn that_keeps(name: String, max: usize, keep_idle: Duration) -> Arc<Pool> {
        Arc::new(Pool { name, max, keep_idle, state: Mutex::default(), filled: Condvar::new() })
    }

    /// Has `job` done by an idle thread or a new one; by the next that has time, if there are as many as may be.
    ///
    /// # Errors
    /// If there is no thread at all, and the system gives none. The job is dropped.
    pub(super) fn submit(self: &Arc<Self>, job: Job) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() || state.threads >= self.max {
            self.filled.notify_one();
            return Ok(());
        }
        state.threads += 1;
        state.born += 1;
        let name = format!("{}-{}", self.name, state.born);
        drop(state);
        let pool = self.clone();
        let Err(error) = thread::Builder::new().name(name).spawn(move || pool.work()) else { return Ok(()) };
        let mut state = lock(&self.state);
        state.threads -= 1;
        if state.threads > 0 {
            // Those who are there do it later.
            return Ok(());
        }
        let stranded = std::mem::take(&mut state.jobs);
        drop(state);
        drop(stranded);
        Err(error)
    }

    /// From now on threads end when they have nothing to do.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.filled.notify_all();
    }

    fn work(&self) {
        while let Some(job) = self.next_job() {
            // A thread that a panic ended would be counted for ever.
            drop(catch_unwind(AssertUnwindSafe(job)));
        }
    }

    /// The next job; `None` when this thread is no longer needed.
    fn next_job(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            let (woken, waited) =
                self.filled.wait_timeout(state, self.keep_idle).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return None;
            }
        }
    }
}

/// Nothing panics under this lock.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Waits until the pool has so many threads.
    fn await_threads(pool: &Pool, threads: usize) {
        let began = std::time::Instant::now();
        while lock(&pool.state).threads != threads {
            assert!(began.elapsed() < PATIENCE, "the pool never has {threads} threads");
            thread::yield_now();
        }
    }

    #[test]
    fn a_thread_does_one_job_after_the_other_and_then_ends() {
        let pool = Pool::that_keeps(String::from("test"), 1, Duration::from_millis(1));
        let (done, jobs) = mpsc::channel();
        for n in 0..3 {
            let done = done.clone();
            let job = move || {
                let name = thread::current().name().map(str::to_owned);
                done.send((n, name)).expect("the test waits");
            };
            pool.submit(Box::new(job)).expect("a thread");
        }
        for n in 0..3 {
            assert_eq!(jobs.recv_timeout(PATIENCE).expect("it is done").0, n);
        }
        await_threads(&pool, 0);
    }

    #[test]
    fn a_job_that_panics_takes_no_thread_from_the_others() {
        let pool = Pool::that_keeps(String::from("test"), 1, PATIENCE);
        let (done, jobs) = mpsc::channel();
        pool.submit(Box::new(|| panic!("a job panics for the test"))).expect("a thread");
        pool.submit(Box::new(move || done.send(()).expect("the test waits"))).expect("a thread");
        assert_eq!(jobs.recv_timeout(PATIENCE), Ok(()));
        pool.close();
        await_threads(&pool, 0);
    }

    #[test]
    fn there_are_no_more_threads_than_may_be() {
        let pool = Pool::that_keeps(String::from("test"), 2, PATIENCE);
        let (begun, beginnings) = mpsc::channel();
        let (go, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for n in 0..3 {
            let (begun, gate) = (begun.clone(), gate.clone());
            let job = move || {
                begun.send(n).expect("the test waits");
                gate.lock().expect("nobody panics").recv().expect("the test goes on");
            };
            pool.submit(Box::new(job)).expect("a thread");
        }
        let mut first = [beginnings.recv().expect("one"), beginnings.recv().expect("two")];
        first.sort_unstable();
        assert_eq!(first, [0, 1]);
        assert_eq!(lock(&pool.state).threads, 2);
        assert_eq!(lock(&pool.state).jobs.len(), 1);
        for _ in 0..3 {
            go.send(()).expect("they wait");
        }
        assert_eq!(beginnings.recv_timeout(PATIENCE), Ok(2));
        pool.close();
        await_threads(&pool, 0);
    }
}
