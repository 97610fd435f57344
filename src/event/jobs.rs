//! A list of jobs, first in first out, for threads that wait for them. Knows nothing of who runs them.
//!
//! Jobs of sockets always find a place, as each socket has at most one here. Those that the program posts are bounded.

use std::collections::VecDeque;
use std::fmt;
#[cfg(unix)]
use std::io::{self, PipeReader, PipeWriter, Read, Write};
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
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
    #[cfg(unix)]
    signal: Option<Signal>,
}

struct List {
    jobs: VecDeque<Work>,
    /// How many of them were posted, and how many may be.
    posted: usize,
    posted_max: usize,
    is_closed: bool,
    /// Somebody looks at the signal.
    #[cfg(unix)]
    is_watched: bool,
    /// When the first one came, of those that have come since there were none.
    filled: Instant,
}

/// A pipe that holds one byte exactly while there are jobs, which makes its reading end readable. Written and read under the
/// list's lock: so no wake is lost, and neither end ever blocks. Left alone until somebody looks at it.
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
            is_watched: false,
            filled: Instant::now(),
        };
        Jobs {
            list: Mutex::new(list),
            arrived: Condvar::new(),
            #[cfg(unix)]
            signal: None,
        }
    }

    /// The same, with a descriptor where there are any.
    pub(super) fn with_signal(posted_max: usize) -> Result<Jobs> {
        #[cfg_attr(not(unix), allow(unused_mut))]
        let mut jobs = Jobs::new(posted_max);
        #[cfg(unix)]
        {
            let (reader, writer) = io::pipe().map_err(|error| Error::os(Operation::Start, error))?;
            jobs.signal = Some(Signal { reader, writer });
        }
        Ok(jobs)
    }

    /// Takes a socket's job; gives it back once nobody runs it any more.
    pub(super) fn push(&self, job: Job) -> Result<(), Job> {
        let list = self.lock();
        if list.is_closed {
            return Err(job);
        }
        self.add(list, Work::Socket(job));
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
                self.add(list, Work::Posted(job));
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
        self.remove(&mut self.lock())
    }

    /// The next job; waits for it. `None` when the list is closed and empty.
    pub(super) fn wait_for_job(&self) -> Option<Work> {
        let mut list = self.lock();
        loop {
            if let Some(work) = self.remove(&mut list) {
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
        #[cfg(unix)]
        if let Some(signal) = self.signal.as_ref().filter(|_| list.is_watched && !jobs.is_empty()) {
            signal.lower();
        }
        drop(list);
        self.arrived.notify_all();
        for job in jobs {
            drop_guarded(job);
        }
    }

    /// How long there have been jobs without a break; nothing while there are none.
    pub(super) fn filled_for(&self) -> Option<Duration> {
        let list = self.lock();
        (!list.jobs.is_empty()).then(|| list.filled.elapsed())
    }

    /// A descriptor that is readable while there are jobs; there if the list was made [with it](Jobs::with_signal).
    #[cfg(unix)]
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        let signal = self.signal.as_ref()?;
        let mut list = self.lock();
        if !list.is_watched {
            list.is_watched = true;
            if !list.jobs.is_empty() {
                signal.raise();
            }
        }
        Some(signal.reader.as_fd())
    }

    /// Takes `work`; tells whoever waits.
    fn add(&self, mut list: MutexGuard<'_, List>, work: Work) {
        if list.jobs.is_empty() {
            list.filled = Instant::now();
            #[cfg(unix)]
            if let Some(signal) = self.signal.as_ref().filter(|_| list.is_watched) {
                signal.raise();
            }
        }
        list.jobs.push_back(work);
        drop(list);
        self.arrived.notify_one();
    }

    /// Takes the next job out.
    fn remove(&self, list: &mut List) -> Option<Work> {
        let work = list.jobs.pop_front()?;
        list.posted -= usize::from(matches!(work, Work::Posted(_)));
        #[cfg(unix)]
        if let Some(signal) = self.signal.as_ref().filter(|_| list.is_watched && list.jobs.is_empty()) {
            signal.lower();
        }
        Some(work)
    }

    /// Nothing that may panic happens under this lock.
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(unix)]
impl Signal {
    fn raise(&self) {
        // One byte in an empty pipe of our own: there is nothing that can fail or block.
        let _ = (&self.writer).write_all(&[1]);
    }

    fn lower(&self) {
        let _ = (&self.reader).read(&mut [0]);
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

    fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&now)).unwrap() == 1
    }

    proptest! {
        #[test]
        fn the_descriptor_is_readable_exactly_while_there_are_jobs(
            steps in prop::collection::vec(any::<bool>(), 0..40),
            asked_at in 0..40usize,
        ) {
            let jobs = Jobs::with_signal(8).unwrap();
            let (mut descriptor, mut count) = (None, 0);
            for (at, is_post) in steps.into_iter().enumerate() {
                if at >= asked_at {
                    descriptor = jobs.descriptor();
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
                prop_assert_eq!(jobs.filled_for().is_some(), count > 0);
                if let Some(descriptor) = descriptor {
                    prop_assert_eq!(is_readable(descriptor), count > 0);
                }
            }
        }
    }

    #[test]
    fn no_wake_is_lost_between_posting_and_polling_threads() {
        const EACH: usize = 5_000;
        let jobs = Arc::new(Jobs::with_signal(4).unwrap());
        let descriptor = jobs.descriptor().unwrap();
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
            let ready = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&patience)).unwrap();
            assert_eq!(ready, 1, "a wake was lost after {run} jobs");
            while let Some(work) = jobs.pop() {
                work.run();
                run += 1;
            }
        }
        posting.join().unwrap();
    }
}
