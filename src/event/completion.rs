//! One object that waits for many operations: [`Completion`].

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Cause, Error, Operation, Result};
use crate::worker;

/// While a handler is waited for, its queue is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// So many errors are kept until somebody takes them; further ones are counted.
const ERRORS_MAX: usize = 64;

/// Waits for any number of operations, on the thread that asks: the way from handlers back to code that blocks.
///
/// It is given to operations ([`Socket::connect_with`](crate::event::SocketHandle::connect_with),
/// [`send_with`](crate::event::SocketHandle::send_with), [`receive_with`](crate::event::SocketHandle::receive_with),
/// [`close_with`](crate::event::SocketHandle::close_with)), or to work of the program's own
/// ([`add_dependency`](Completion::add_dependency)). Any thread may hold a clone. When all is over it can be used again.
///
/// ```
/// use std::time::Duration;
/// use wharf::event::Completion;
///
/// let completion = Completion::new();
/// let work = completion.add_dependency();
/// std::thread::spawn(move || work.finish(Ok(())));
/// assert!(completion.wait(Duration::from_secs(5)).expect("the work is done"));
/// ```
#[derive(Clone, Default)]
pub struct Completion {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    status: Mutex<Status>,
    changed: Condvar,
}

#[derive(Default)]
struct Status {
    pending: usize,
    errors: Vec<Error>,
    further: usize,
    /// Of those that a handler has to end: which they are, and why this thread must not wait for it, if it must not.
    handled: Vec<(u64, Arc<Obstacle>)>,
    next: u64,
}

type Obstacle = dyn Fn() -> Option<&'static str> + Send + Sync;

impl Completion {
    /// One that nothing depends on yet: waiting for it is over at once.
    pub fn new() -> Completion {
        Completion::default()
    }

    /// Waits until all operations are over, for `timeout` at most in total (`None`: for as long as it takes). `true`: all went
    /// well. `false`: some are not over; waiting can go on later.
    ///
    /// # Errors
    /// All the failures that were told since the last time, when all operations are over. And, with operations still under
    /// way, that waiting makes no sense: this thread runs a worker, or it is the one that would have to run a handler that is
    /// waited for (a [`PollQueue`](crate::event::PollQueue)'s is the one that polled it last), or that handler's queue has jobs
    /// and nobody polls it ([`PollQueue::unattended_max`](crate::event::PollQueue::unattended_max)). Use a timeout of zero there, which
    /// never waits.
    pub fn wait(&self, timeout: impl Into<Option<Duration>>) -> Result<bool, Failures> {
        let timeout = timeout.into();
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let (mut sensible, mut look) = (None, Instant::now());
        loop {
            let mut status = self.shared.lock();
            if status.pending == 0 {
                return status.outcome();
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            // What is new has to be looked at, and from time to time whether anybody is left to run the handlers.
            let patience = match status.handled.is_empty() {
                true => left,
                false => {
                    let until_look = look.saturating_duration_since(Instant::now());
                    Some(left.map_or(until_look, |left| left.min(until_look)))
                }
            };
            if sensible == Some(status.next) && patience.is_none_or(|patience| !patience.is_zero()) {
                match patience {
                    Some(patience) => drop(self.shared.changed.wait_timeout(status, patience)),
                    None => drop(self.shared.changed.wait(status)),
                }
                continue;
            }
            let (next, handled) = (status.next, status.handled.clone());
            drop(status);
            // Not under the lock: these look at queues.
            let problem = match worker::with_current(|_| ()) {
                Some(()) => Some("a worker's thread would wait for itself: wait on another thread"),
                None => handled.iter().find_map(|(_, obstacle)| obstacle()),
            };
            if let Some(problem) = problem {
                let error = Error::new(Operation::Wait, Cause::Misuse(problem));
                return Err(Failures { errors: vec![error], further: 0 });
            }
            sensible = Some(next);
            look = Instant::now() + LOOK_EVERY;
        }
    }

    /// Operations that are not over.
    pub fn pending(&self) -> usize {
        self.shared.lock().pending
    }

    /// One more thing to wait for, until the dependency is finished. One that is dropped instead counts as a failure.
    pub fn add_dependency(&self) -> Dependency {
        self.depend(None)
    }

    /// Tells of a failure, of an operation or of anything else. At most 64 are kept with their texts until they are taken by `wait`;
    /// further ones are counted.
    pub fn push_error(&self, error: Error) {
        self.shared.lock().push(error);
    }

    /// One more thing to wait for, which a handler ends; `obstacle` says why the calling thread must not wait for that, if it must not.
    pub(super) fn depend_on_handler(
        &self,
        obstacle: impl Fn() -> Option<&'static str> + Send + Sync + 'static,
    ) -> Dependency {
        self.depend(Some(Arc::new(obstacle)))
    }

    fn depend(&self, handler: Option<Arc<Obstacle>>) -> Dependency {
        let mut status = self.shared.lock();
        let id = status.next;
        status.next += 1;
        status.pending += 1;
        if let Some(handler) = handler {
            status.handled.push((id, handler));
        }
        drop(status);
        // Who waits looks again whether that makes sense.
        self.shared.changed.notify_all();
        Dependency { shared: Some(self.shared.clone()), id }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, id: u64, result: Result<()>) {
        let mut status = self.lock();
        status.pending -= 1;
        let handled = status.handled.iter().position(|(each, _)| *each == id);
        let handled = handled.map(|at| status.handled.swap_remove(at));
        if let Err(error) = result {
            status.push(error);
        }
        drop(status);
        // What it holds may be the last of a socket.
        drop(handled);
        self.changed.notify_all();
    }
}

impl Status {
    fn push(&mut self, error: Error) {
        match self.errors.len() < ERRORS_MAX {
            true => self.errors.push(error),
            false => self.further += 1,
        }
    }

    /// What has come of the operations, which are over.
    fn outcome(&mut self) -> Result<bool, Failures> {
        if self.errors.is_empty() {
            return Ok(true);
        }
        let errors = std::mem::take(&mut self.errors);
        Err(Failures { errors, further: std::mem::take(&mut self.further) })
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").field("pending", &self.pending()).finish_non_exhaustive()
    }
}

/// One thing that a [`Completion`] waits for.
#[must_use = "dropping it counts as a failure"]
pub struct Dependency {
    /// There until it is finished.
    shared: Option<Arc<Shared>>,
    id: u64,
}

impl Dependency {
    /// It is over, with this result.
    pub fn finish(mut self, result: Result<()>) {
        if let Some(shared) = self.shared.take() {
            shared.finish(self.id, result);
        }
    }
}

impl Drop for Dependency {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            let abandoned = "the operation was given up: what it was for has gone";
            shared.finish(self.id, Err(Error::new(Operation::Wait, Cause::Misuse(abandoned))));
        }
    }
}

impl fmt::Debug for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dependency")
    }
}

/// The failures of operations that were waited for, in the order in which they were told. There is at least one.
pub struct Failures {
    errors: Vec<Error>,
    further: usize,
}

impl Failures {
    /// Each failure, at most 64.
    pub fn errors(&self) -> &[Error] {
        &self.errors
    }

    /// How many there were beside [`errors`](Failures::errors).
    pub fn further(&self) -> usize {
        self.further
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        match self.further {
            0 => Ok(()),
            further => write!(f, "; and {further} more"),
        }
    }
}

impl fmt::Debug for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failures({self})")
    }
}

impl std::error::Error for Failures {}

impl From<Failures> for Error {
    /// The failure, if it was one; otherwise one error that tells them all.
    fn from(mut failures: Failures) -> Error {
        match (failures.errors.len(), failures.further) {
            (1, 0) => failures.errors.remove(0),
            _ => Error::new(Operation::Wait, Cause::Other(Box::new(failures))),
        }
    }
}
