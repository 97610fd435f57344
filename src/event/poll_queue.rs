//! A queue that the program's own loop polls: [`PollQueue`].

use std::fmt;
#[cfg(unix)]
use std::io::PipeReader;
#[cfg(unix)]
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use super::jobs::{Jobs, POSTED_MAX};
use super::members::Members;
use super::queue::{Executor, Job, Queue};
use crate::error::Result;

/// A queue without a thread: handlers run when, and where, the program polls it. For a game's loop, a user interface, or
/// whatever has a loop already.
///
/// ```
/// use std::time::Duration;
/// use wharf::event::PollQueue;
///
/// let queue = PollQueue::new();
/// queue.post(|| println!("in the loop"))?;
/// for _frame in 0..3 {
///     queue.run_pending(100); // what has come, and no more than there is time for
/// }
/// assert!(!queue.wait(Duration::ZERO));
/// # Ok::<(), wharf::Error>(())
/// ```
///
/// # Dropping
/// Dropping it drops the jobs that wait, and closes the connections of all its sockets, behind what they have sent. No handler is
/// called any more.
pub struct PollQueue {
    shared: Arc<Shared>,
}

struct Shared {
    jobs: Jobs,
    members: Arc<Members>,
    /// Who has polled last.
    polled_by: Mutex<Option<ThreadId>>,
}

impl PollQueue {
    /// An empty queue.
    pub fn new() -> PollQueue {
        let (jobs, members) = (Jobs::new(POSTED_MAX), Arc::default());
        PollQueue { shared: Arc::new(Shared { jobs, members, polled_by: Mutex::new(None) }) }
    }

    /// Sets how many posted jobs may wait. Default: 1024.
    #[must_use]
    pub fn posted_max(self, jobs: usize) -> PollQueue {
        self.shared.jobs.set_posted_max(jobs);
        self
    }

    /// The destination that sockets are given.
    pub fn queue(&self) -> Queue {
        Queue::with_members(Polled(self.shared.clone()), &self.shared.members)
    }

    /// Has `job` run behind what is queued. One that panics ends, and nothing else.
    ///
    /// # Errors
    /// If more than [`posted_max`](PollQueue::posted_max) jobs wait (its kind is [`Limit`](crate::ErrorKind::Limit)).
    pub fn post(&self, job: impl FnOnce() + Send + 'static) -> Result<()> {
        self.shared.jobs.post(Box::new(job))
    }

    /// Runs one job, if there is one; returns whether there was. May be called within a job.
    pub fn poll(&self) -> bool {
        self.shared.note_poller();
        self.shared.jobs.pop().map(super::jobs::Work::run).is_some()
    }

    /// Runs the jobs that are here, `max` at most; returns how many. Those that they cause wait for the next call.
    pub fn run_pending(&self, max: usize) -> usize {
        let max = max.min(self.len());
        (0..max).take_while(|_| self.poll()).count()
    }

    /// Waits until there is a job, for `timeout` at most (`None`: for as long as it takes). Returns whether there is. Runs none.
    pub fn wait(&self, timeout: impl Into<Option<Duration>>) -> bool {
        self.shared.note_poller();
        self.shared.jobs.wait(timeout.into())
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.shared.jobs.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A descriptor that is readable exactly while jobs wait, for the program's own poll, epoll or select. Whoever finds it
    /// readable runs jobs, and must not read from it.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    ///
    /// # Platform notes
    /// On Unix only.
    #[cfg(unix)]
    pub fn descriptor(&self) -> Result<Descriptor> {
        Ok(Descriptor { reader: self.shared.jobs.signal()? })
    }
}

impl Default for PollQueue {
    fn default() -> PollQueue {
        PollQueue::new()
    }
}

impl Drop for PollQueue {
    fn drop(&mut self) {
        self.shared.jobs.clear();
        self.shared.members.end();
    }
}

impl fmt::Debug for PollQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollQueue").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The descriptor of a [`PollQueue`]: readable while jobs wait. It is the program's, and closed when it is dropped.
#[cfg(unix)]
#[derive(Debug)]
pub struct Descriptor {
    reader: PipeReader,
}

#[cfg(unix)]
impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

#[cfg(unix)]
impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.reader.as_raw_fd()
    }
}

impl Shared {
    fn note_poller(&self) {
        *self.polled_by.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current().id());
    }
}

/// What sockets know of the queue.
struct Polled(Arc<Shared>);

impl Executor for Polled {
    fn execute(&self, job: Job) -> Result<(), Job> {
        self.0.jobs.push(job)
    }

    fn runs_here(&self) -> bool {
        let polled_by = *self.0.polled_by.lock().unwrap_or_else(PoisonError::into_inner);
        polled_by == Some(thread::current().id())
    }
}
