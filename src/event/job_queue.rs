//! A queue with a thread of its own: [`JobQueue`].

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use super::jobs::{Jobs, POSTED_MAX};
use super::members::Members;
use super::queue::{Executor, Job, Queue};
use crate::error::{Cause, Error, Operation, Result};

/// A thread with a name that runs the handlers of sockets, and jobs of the program's own, one after the other.
///
/// ```
/// use wharf::event::JobQueue;
///
/// let queue = JobQueue::new("game")?;
/// queue.post(|| println!("on its thread"))?;
/// queue.join()?; // runs what is there, then ends
/// # Ok::<(), wharf::Error>(())
/// ```
///
/// # Dropping
/// Dropping it is [`stop`](JobQueue::stop) and [`join`](JobQueue::join), unless that is done on its own thread: then the thread
/// ends by itself.
pub struct JobQueue {
    shared: Arc<Shared>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

struct Shared {
    jobs: Jobs,
    members: Arc<Members>,
    runs_on: OnceLock<ThreadId>,
}

impl JobQueue {
    /// Starts the thread; `name` is what the operating system calls it.
    ///
    /// # Errors
    /// If the name has a zero byte, or the system has no thread to give.
    pub fn new(name: impl Into<String>) -> Result<JobQueue> {
        let name = name.into();
        if name.contains('\0') {
            return Err(Error::option("name", "must not have a zero byte"));
        }
        let (jobs, members) = (Jobs::new(POSTED_MAX), Arc::default());
        let shared = Arc::new(Shared { jobs, members, runs_on: OnceLock::new() });
        let theirs = shared.clone();
        let body = move || {
            while let Some(work) = theirs.jobs.wait_for_job() {
                work.run();
            }
            theirs.members.end();
        };
        let spawned = thread::Builder::new().name(name).spawn(body);
        let thread = spawned.map_err(|error| Error::os(Operation::Start, error))?;
        shared.runs_on.get_or_init(|| thread.thread().id());
        Ok(JobQueue { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Sets how many posted jobs may wait. Default: 1024.
    #[must_use]
    pub fn posted_max(self, jobs: usize) -> JobQueue {
        self.shared.jobs.set_posted_max(jobs);
        self
    }

    /// The destination that sockets are given.
    pub fn queue(&self) -> Queue {
        Queue::with_members(Thread(self.shared.clone()), &self.shared.members)
    }

    /// Has `job` run behind what is queued. One that panics ends, and nothing else.
    ///
    /// # Errors
    /// If the queue was stopped, or more than [`posted_max`](JobQueue::posted_max) jobs wait (its kind is
    /// [`Limit`](crate::ErrorKind::Limit)).
    pub fn post(&self, job: impl FnOnce() + Send + 'static) -> Result<()> {
        self.shared.jobs.post(Box::new(job))
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.shared.jobs.len()
    }

    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Has the thread end behind the jobs that are queued; then the connections of all its sockets are closed, behind what they have
    /// sent. Does not wait; stopping twice is stopping once.
    pub fn stop(&self) {
        self.shared.jobs.close();
    }

    /// Stops, and waits until the thread has ended.
    ///
    /// # Errors
    /// On the queue's own thread, which would wait for itself.
    pub fn join(&self) -> Result<()> {
        if self.shared.runs_here() {
            let itself =
                "the queue's own thread cannot wait for its end: stop it, and join on another thread";
            return Err(Error::new(Operation::Wait, Cause::Misuse(itself)));
        }
        self.stop();
        // Whoever comes second waits here for the first.
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // It catches what its jobs panic with.
            drop(thread.join());
        }
        Ok(())
    }
}

impl Drop for JobQueue {
    fn drop(&mut self) {
        self.stop();
        // On its own thread it cannot wait, and that thread ends anyway.
        drop(self.join());
    }
}

impl Shared {
    fn runs_here(&self) -> bool {
        self.runs_on.get() == Some(&thread::current().id())
    }
}

/// What sockets know of the queue.
struct Thread(Arc<Shared>);

impl Executor for Thread {
    fn execute(&self, job: Job) -> Result<(), Job> {
        self.0.jobs.push(job)
    }

    fn runs_here(&self) -> bool {
        self.0.runs_here()
    }
}

impl fmt::Debug for JobQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobQueue").field("len", &self.len()).finish_non_exhaustive()
    }
}
