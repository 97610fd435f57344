//! Where queued handlers run: [`Queue`], and the [`Executor`] behind it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::members::{Members, Membership};
use super::strand::Strand;
use crate::worker::link::drop_guarded;

/// A destination for handlers: a [`JobQueue`](crate::event::JobQueue), a [`PollQueue`](crate::event::PollQueue), or an
/// [`Executor`] of the program's own. Cheap to clone.
///
/// The handlers of one socket run in order and never two at once, also if the executor has many threads. A socket has at most
/// one job in its queue, however much has come for it: so a queue is as long as there are sockets, and what waits for one
/// socket is bounded by its limits.
#[derive(Clone)]
pub struct Queue {
    executor: Arc<dyn Executor>,
    /// Whom its end is told; an executor of the program's own tells by its jobs.
    members: Option<Arc<Members>>,
}

impl Queue {
    /// Has handlers run by `executor`.
    ///
    /// ```
    /// use std::thread;
    /// use wharf::event::{Executor, Job, Queue};
    ///
    /// struct Threads; // one for each job
    ///
    /// impl Executor for Threads {
    ///     fn execute(&self, job: Job) -> Result<(), Job> {
    ///         thread::spawn(move || job.run());
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let queue = Queue::new(Threads);
    /// # let _ = queue;
    /// ```
    pub fn new(executor: impl Executor) -> Queue {
        Queue { executor: Arc::new(executor), members: None }
    }

    /// The same; when it ends, `members` learn of it.
    pub(super) fn with_members(executor: impl Executor, members: &Arc<Members>) -> Queue {
        Queue { executor: Arc::new(executor), members: Some(members.clone()) }
    }

    /// Enters `strand` among those that learn of the queue's end.
    ///
    /// # Errors
    /// If it has ended.
    pub(super) fn join(&self, strand: &Arc<Strand>) -> Result<Option<Membership>, ()> {
        let Some(members) = &self.members else { return Ok(None) };
        members.join(strand).map(Some).ok_or(())
    }

    pub(super) fn execute(&self, strand: &Arc<Strand>) {
        let job = Job { strand: Some(strand.clone()) };
        // A job that comes back is dropped, which tells its socket; so is one that an executor panics with.
        drop_guarded(catch_unwind(AssertUnwindSafe(|| self.executor.execute(job))));
    }

    /// Why this thread must not wait for a job, if it must not.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        if self.executor.runs_here() {
            return Some(RUNS_HERE);
        }
        self.executor
            .is_unattended()
            .then_some("nobody polls the queue of a handler that is waited for: poll it")
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queue")
    }
}

pub(super) const RUNS_HERE: &str =
    "this thread runs the queue of a handler that is waited for: wait on another thread";

/// Runs jobs somewhere: what a [`Queue`] needs of a thread pool, or of a loop.
pub trait Executor: Send + Sync + 'static {
    /// Has `job` run, on any thread, soon. Never waits for it.
    ///
    /// # Errors
    /// The job, if none is run any more. Its socket's connection is closed then, as it is when a job is dropped.
    fn execute(&self, job: Job) -> Result<(), Job>;

    /// Whether the calling thread is the only one that runs the jobs, so that it must not wait for one of them:
    /// [`Completion::wait`](crate::event::Completion::wait) is an error then, and not a hang. Default: no.
    fn runs_here(&self) -> bool {
        false
    }

    /// Whether jobs have waited for so long that nobody seems to run them any more:
    /// [`Completion::wait`](crate::event::Completion::wait) is an error then too. It asks a few times a second. Default: no.
    fn is_unattended(&self) -> bool {
        false
    }
}

/// One run of a socket's handlers. One that is dropped closes its socket's connection: nobody is left to listen to it.
#[must_use = "a job that is not run closes its connection"]
pub struct Job {
    strand: Option<Arc<Strand>>,
}

impl Job {
    /// Runs it. Panics of handlers are caught, and reset their connections.
    pub fn run(mut self) {
        if let Some(strand) = self.strand.take() {
            strand.run();
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(strand) = self.strand.take() {
            strand.abandon();
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Job")
    }
}
