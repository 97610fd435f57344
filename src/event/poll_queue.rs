//! A queue that the program's own loop polls: [`PollQueue`].

use std::fmt;
#[cfg(unix)]
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::jobs::{Jobs, POSTED_MAX};
use super::members::Members;
use super::queue::{Executor, Job, Queue};
use crate::error::Result;

/// So long jobs may wait for somebody who polls, by default.
const UNATTENDED_MAX: Duration = Duration::from_secs(30);

/// A queue without a thread: handlers run when, and where, the program polls it. For a game's loop, a user interface, or
/// whatever has a loop already.
///
/// ```
/// use std::time::Duration;
/// use wharf::event::PollQueue;
///
/// let queue = PollQueue::new()?;
/// queue.post(|| println!("in the loop"))?;
/// for _frame in 0..3 {
///     queue.run_pending(100); // what has come, and no more than there is time for
/// }
/// assert!(!queue.wait(Duration::ZERO));
/// # Ok::<(), wharf::Error>(())
/// ```
///
/// # Its descriptor
/// It is one ([`AsFd`], [`AsRawFd`]) that is readable exactly while jobs wait, for the program's own poll, epoll, select or reactor. Whoever
/// finds it readable runs jobs, and must not read from it. Only a queue whose descriptor somebody has asked for pays for that: a
/// system call when the first job comes, and one when the last has run.
///
/// ```
/// # #[cfg(unix)] {
/// use std::os::fd::AsFd;
/// use rustix::event::{PollFd, PollFlags, poll};
/// use wharf::event::PollQueue;
///
/// let queue = PollQueue::new()?;
/// queue.post(|| println!("in the loop"))?;
/// let ready = poll(&mut [PollFd::new(&queue.as_fd(), PollFlags::IN)], None).expect("it is a descriptor");
/// assert_eq!((ready, queue.run_pending(100)), (1, 1));
/// # }
/// # Ok::<(), wharf::Error>(())
/// ```
///
/// # Platform notes
/// The descriptor is there on Unix only.
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
    attendance: Mutex<Attendance>,
}

/// Who looks after the queue.
struct Attendance {
    /// Who has polled last, and when.
    polled_by: Option<ThreadId>,
    polled: Instant,
    /// Jobs that are being run, one within the other.
    running: usize,
    unattended_max: Duration,
}

impl PollQueue {
    /// An empty queue.
    ///
    /// # Errors
    /// If the process has no descriptors left: it takes two.
    pub fn new() -> Result<PollQueue> {
        let (jobs, members) = (Jobs::with_signal(POSTED_MAX)?, Arc::default());
        let (polled, unattended_max) = (Instant::now(), UNATTENDED_MAX);
        let attendance = Mutex::new(Attendance { polled_by: None, polled, running: 0, unattended_max });
        Ok(PollQueue { shared: Arc::new(Shared { jobs, members, attendance }) })
    }

    /// Sets how many posted jobs may wait. Default: 1024.
    #[must_use]
    pub fn posted_max(self, jobs: usize) -> PollQueue {
        self.shared.jobs.set_posted_max(jobs);
        self
    }

    /// Sets how long jobs may wait while nobody polls or runs one, before a [`Completion`](crate::event::Completion) that waits for
    /// one of them gives up, with an error that says so. Default: 30 s.
    ///
    /// It is for a program that waits on the very thread that should poll, or has stopped polling: that wait would have no
    /// end. Nothing else happens to the jobs.
    #[must_use]
    pub fn unattended_max(self, within: Duration) -> PollQueue {
        self.shared.attendance().unattended_max = within;
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
        self.shared.attendance().note_poll();
        let Some(work) = self.shared.jobs.pop() else { return false };
        self.shared.attendance().running += 1;
        // It catches what the job panics with.
        work.run();
        let mut attendance = self.shared.attendance();
        attendance.running -= 1;
        attendance.note_poll();
        true
    }

    /// Runs the jobs that are here, `max` at most; returns how many. Those that they cause wait for the next call.
    pub fn run_pending(&self, max: usize) -> usize {
        let max = max.min(self.len());
        (0..max).take_while(|_| self.poll()).count()
    }

    /// Waits until there is a job, for `timeout` at most (`None`: for as long as it takes). Returns whether there is. Runs none.
    pub fn wait(&self, timeout: impl Into<Option<Duration>>) -> bool {
        self.shared.attendance().note_poll();
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

#[cfg(unix)]
impl AsFd for PollQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.jobs.descriptor().expect("its list was made with one")
    }
}

#[cfg(unix)]
impl AsRawFd for PollQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Shared {
    /// Nothing that may panic happens under this lock.
    fn attendance(&self) -> MutexGuard<'_, Attendance> {
        self.attendance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attendance {
    /// This thread polls, at this moment.
    fn note_poll(&mut self) {
        self.polled_by = Some(thread::current().id());
        self.polled = Instant::now();
    }
}

/// What sockets know of the queue.
struct Polled(Arc<Shared>);

impl Executor for Polled {
    fn execute(&self, job: Job) -> Result<(), Job> {
        self.0.jobs.push(job)
    }

    fn runs_here(&self) -> bool {
        self.0.attendance().polled_by == Some(thread::current().id())
    }

    fn is_unattended(&self) -> bool {
        let Some(filled) = self.0.jobs.filled_for() else { return false };
        let attendance = self.0.attendance();
        attendance.running == 0 && filled.min(attendance.polled.elapsed()) > attendance.unattended_max
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_queue_is_unattended_if_it_has_jobs_and_nobody_has_come_for_them_or_is_at_one() {
        let queue = PollQueue::new().unwrap().unattended_max(Duration::ZERO);
        let polled = Polled(queue.shared.clone());
        assert!(!polled.is_unattended(), "there is nothing to do");
        let within = Polled(queue.shared.clone());
        let (tell, told) = mpsc::channel();
        queue.post(move || tell.send(within.is_unattended()).expect("it is waited for")).unwrap();
        queue.post(|| ()).unwrap();
        while !polled.is_unattended() {
            thread::yield_now();
        }
        assert!(queue.poll());
        assert!(!told.recv().unwrap(), "one was being run");
        let queue = queue.unattended_max(Duration::MAX);
        assert!(!polled.is_unattended(), "there is time");
        assert_eq!(queue.run_pending(10), 1);
        assert!(!polled.is_unattended(), "there is nothing to do");
    }
}
