//! A list of jobs, first in first out, for threads that wait for them. Knows nothing of who runs them.
//!
//! Jobs of sockets always find a place, as each socket has at most one here. Those that the program posts are bounded.

use std::collections::VecDeque;
use std::fmt;
#[cfg(unix)]
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::queue::Job;
use crate::error::{Cause, Error, Operation, Result};
use crate::worker::link::drop_guarded;

/// So many jobs of the program's own may wait, by default.
pub(super) const POSTED_MAX: usize = 1024;

pub(super) struct Jobs {
    list: Mutex<List>,
    arrived: Condvar,
}

struct List {
    jobs: VecDeque<Work>,
    /// How many of them were posted, and how many may be.
    posted: usize,
    posted_max: usize,
    is_closed: bool,
    #[cfg(unix)]
    signal: Option<Signal>,
}

/// A pipe that holds one byte exactly while there are jobs, which makes its reading end readable. Written and read under the
/// list's lock: so no wake is lost, and neither end ever blocks.
#[cfg(unix)]
struct Signal {
    reader: PipeReader,
    writer: PipeWriter,
}

pub(super) enum Work {
    Socket(Job),
    Posted(Box<dyn FnOnce() + Send>),
}

impl Work {
    pub(super) fn run(self) {
        match self {
            Work::Socket(job) => job.run(),
            Work::Posted(job) => {
                if let Err(payload) = catch_unwind(AssertUnwindSafe(job)) {
                    drop_guarded(payload);
                }
            }
        }
    }
}

impl Jobs {
    pub(super) fn new(posted_max: usize) -> Jobs {
        let list = List {
            jobs: VecDeque::new(),
            posted: 0,
            posted_max,
            is_closed: false,
            #[cfg(unix)]
            signal: None,
        };
        Jobs { list: Mutex::new(list), arrived: Condvar::new() }
    }

    /// Takes a socket's job; gives it back once nobody runs it any more.
    pub(super) fn push(&self, job: Job) -> Result<(), Job> {
        let mut list = self.lock();
        if list.is_closed {
            return Err(job);
        }
        list.push(Work::Socket(job));
        drop(list);
        self.arrived.notify_one();
        Ok(())
    }

    /// Takes a job of the program's own.
    pub(super) fn post(&self, job: Box<dyn FnOnce() + Send>) -> Result<()> {
        let mut list = self.lock();
        let problem = match (list.is_closed, list.posted < list.posted_max) {
            (true, _) => Cause::Misuse("the queue has ended"),
            (false, false) => Cause::TooMany { count: list.posted, what: "jobs wait", option: "posted_max" },
            (false, true) => {
                list.posted += 1;
                list.push(Work::Posted(job));
                drop(list);
                self.arrived.notify_one();
                return Ok(());
            }
        };
        drop(list);
        // Its destructor is the program's code, and must not meet the lock.
        drop(job);
        Err(Error::new(Operation::Post, problem))
    }

    /// The next job, if there is one.
    pub(super) fn pop(&self) -> Option<Work> {
        self.lock().pop()
    }

    /// The next job; waits for it. `None` when the list is closed and empty.
    pub(super) fn wait_for_job(&self) -> Option<Work> {
        let mut list = self.lock();
        loop {
            if let Some(work) = list.pop() {
                return Some(work);
            }
            if list.is_closed {
                return None;
            }
            list = self.arrived.wait(list).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until there is a job, for `timeout` at most. Returns whether there is.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> bool {
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut list = self.lock();
        while list.jobs.is_empty() && !list.is_closed {
            list = match until {
                None => self.arrived.wait(list).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.arrived.wait_timeout(list, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        !list.jobs.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    pub(super) fn set_posted_max(&self, posted_max: usize) {
        self.lock().posted_max = posted_max;
    }

    /// Takes no more jobs; those that are here may still be run.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_all();
    }

    /// Takes no more jobs, and drops those that are here.
    pub(super) fn clear(&self) {
        let mut list = self.lock();
        list.is_closed = true;
        let jobs = std::mem::take(&mut list.jobs);
        list.posted = 0;
        drop(list);
        self.arrived.notify_all();
        for job in jobs {
            drop_guarded(job);
        }
    }

    /// A descriptor that is readable while there are jobs.
    #[cfg(unix)]
    pub(super) fn signal(&self) -> Result<PipeReader> {
        let mut list = self.lock();
        let failed = |error| Error::os(Operation::Start, error);
        if list.signal.is_none() {
            let (reader, writer) = io::pipe().map_err(failed)?;
            list.signal = Some(Signal { reader, writer });
            if !list.jobs.is_empty() {
                list.raise();
            }
        }
        let signal = list.signal.as_ref().expect("it was made just now");
        signal.reader.try_clone().map_err(failed)
    }

    /// Nothing that may panic happens under this lock.
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    fn push(&mut self, work: Work) {
        self.jobs.push_back(work);
        #[cfg(unix)]
        if self.jobs.len() == 1 {
            self.raise();
        }
    }

    fn pop(&mut self) -> Option<Work> {
        let work = self.jobs.pop_front()?;
        self.posted -= usize::from(matches!(work, Work::Posted(_)));
        #[cfg(unix)]
        if self.jobs.is_empty() {
            self.lower();
        }
        Some(work)
    }

    #[cfg(unix)]
    fn raise(&mut self) {
        if let Some(signal) = &mut self.signal {
            // One byte in an empty pipe of our own: there is nothing that can fail or block.
            let _ = signal.writer.write_all(&[1]);
        }
    }

    #[cfg(unix)]
    fn lower(&mut self) {
        if let Some(signal) = &mut self.signal {
            let _ = signal.reader.read(&mut [0]);
        }
    }
}

impl fmt::Debug for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use proptest::prelude::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(reader: &PipeReader) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(reader, PollFlags::IN)], Some(&now)).unwrap() == 1
    }

    proptest! {
        #[test]
        fn the_descriptor_is_readable_exactly_while_there_are_jobs(
            steps in prop::collection::vec(any::<bool>(), 0..40),
            asked_at in 0..40usize,
        ) {
            let jobs = Jobs::new(8);
            let (mut reader, mut count) = (None, 0);
            for (at, is_post) in steps.into_iter().enumerate() {
                if at == asked_at {
                    reader = Some(jobs.signal().unwrap());
                }
                if is_post {
                    let posted = jobs.post(Box::new(|| ()));
                    prop_assert_eq!(posted.is_ok(), count < 8);
                    count += usize::from(posted.is_ok());
                } else {
                    prop_assert_eq!(jobs.pop().is_some(), count > 0);
                    count = count.saturating_sub(1);
                }
                prop_assert_eq!(jobs.len(), count);
                if let Some(reader) = &reader {
                    prop_assert_eq!(is_readable(reader), count > 0);
                }
            }
        }
    }

    #[test]
    fn no_wake_is_lost_between_posting_and_polling_threads() {
        const EACH: usize = 5_000;
        let jobs = Arc::new(Jobs::new(4));
        let reader = jobs.signal().unwrap();
        let posting = {
            let jobs = jobs.clone();
            thread::spawn(move || {
                let mut posted = 0;
                while posted < EACH {
                    match jobs.post(Box::new(|| ())) {
                        Ok(()) => posted += 1,
                        Err(_) => thread::yield_now(),
                    }
                }
            })
        };
        let mut run = 0;
        while run < EACH {
            let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&reader, PollFlags::IN)], Some(&patience)).unwrap();
            assert_eq!(ready, 1, "a wake was lost after {run} jobs");
            while let Some(work) = jobs.pop() {
                work.run();
                run += 1;
            }
        }
        posting.join().unwrap();
    }
}
