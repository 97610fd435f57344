//! Running futures on a worker: [`run`], [`spawn`], [`sleep`], and deadlines around anything.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::config::Backend;
use crate::conn::Conn;
use crate::engine::Engine;
use crate::error::{Cause, Error, Operation, Result};
use crate::time::Time;
use crate::worker::tasks::{Waiter, Wakeup};
use crate::worker::timer::TimerId;
use crate::worker::{self, Alarm, Worker};

/// Runs `future` on a worker of this thread and returns its output: the way into Wharf for clients.
///
/// Connections that are still open when the future ends are closed gracefully, and `run` returns when the last of them is
/// closed, which their deadlines bound. Tasks that still run are dropped.
///
/// # Errors
/// If the engine cannot be set up (out of descriptors or memory), or if this thread runs a worker already.
///
/// ```
/// let sum = wharf::run(async { 1 + 1 })?;
/// assert_eq!(sum, 2);
/// # Ok::<(), wharf::Error>(())
/// ```
pub fn run<F: Future>(future: F) -> Result<F::Output> {
    run_on(Backend::Auto, future)
}

/// [`run`] with a choice of engine. Default, in [`run`]: [`Backend::Auto`].
///
/// # Errors
/// As [`run`]. And if that engine cannot run here, which [`Backend::Uring`] cannot in most containers: the error names what
/// was refused, why, and what to change.
///
/// ```
/// let sum = wharf::run_on(wharf::Backend::Readiness, async { 1 + 1 })?;
/// assert_eq!(sum, 2);
/// # Ok::<(), wharf::Error>(())
/// ```
pub fn run_on<F: Future>(backend: Backend, future: F) -> Result<F::Output> {
    if worker::with_current(|_| ()).is_some() {
        let nested = "this thread runs a worker already; await the future instead";
        return Err(Error::new(Operation::Run, Cause::Misuse(nested)));
    }
    let engine =
        Engine::new(backend.chosen()?).map_err(|refusal| Error::os(Operation::Run, refusal.into()))?;
    let worker = Worker::new(engine);
    // If the future panics, what it left behind is reset.
    let _shut = Shut(&worker);
    let _entered = worker.enter();
    let waker = worker.tasks.root_waker();
    let output = {
        let mut future = pin!(future);
        loop {
            let polled = worker.tasks.poll_root(&waker, |cx| future.as_mut().poll(cx));
            match polled {
                Poll::Ready(output) => break output,
                Poll::Pending => worker.turn(true),
            };
        }
    };
    worker.tasks.clear();
    worker.forget_locals();
    for link in worker.slots.all() {
        link.command(Conn::close);
    }
    while !worker.slots.is_empty() {
        // The future is over: a late wake for it must not keep the worker awake.
        let _ = worker.tasks.poll_root(&waker, |_| Poll::<()>::Pending);
        worker.turn(true);
    }
    Ok(output)
}

struct Shut<'a>(&'a Rc<Worker>);

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.0.shut();
    }
}

/// Runs `future` beside the current task, on the same worker. Dropping the handle lets it run on.
///
/// ```
/// use std::rc::Rc;
///
/// let sum = wharf::run(async {
///     let numbers = Rc::new([1, 2, 3]); // it need not be `Send`
///     let task = wharf::spawn({
///         let numbers = numbers.clone();
///         async move { numbers.iter().sum::<i32>() }
///     });
///     task.await
/// })??;
/// assert_eq!(sum, 6);
/// # Ok::<(), wharf::Error>(())
/// ```
///
/// # Panics
/// Outside a handler and outside [`run`].
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    let worker = current("wharf::spawn");
    let shared =
        Rc::new(Join { output: RefCell::new(None), waiter: Waiter::default(), worker: worker.clone() });
    let join = shared.clone();
    worker.tasks.spawn(Box::pin(async move {
        let output = catch(future).await;
        *join.output.borrow_mut() = Some(output.map_err(|_| ()));
        join.waiter.wake(&join.worker.tasks);
    }));
    JoinHandle { shared }
}

/// The output of a task started with [`spawn`], to be awaited.
///
/// # Errors
/// If the task panicked. It never completes if the task is dropped unfinished, when [`run`] or its server ends.
#[must_use = "await it for the output, or drop it and let the task run"]
pub struct JoinHandle<T> {
    shared: Rc<Join<T>>,
}

struct Join<T> {
    /// `Err` if the task panicked.
    output: RefCell<Option<Result<T, ()>>>,
    waiter: Waiter,
    worker: Rc<Worker>,
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        match self.shared.output.borrow_mut().take() {
            Some(Ok(output)) => Poll::Ready(Ok(output)),
            Some(Err(())) => {
                Poll::Ready(Err(Error::new(Operation::Wait, Cause::Misuse("the task panicked"))))
            }
            None => {
                self.shared.waiter.register(&self.shared.worker.tasks, cx);
                Poll::Pending
            }
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinHandle")
    }
}

/// Waits for `duration`, counted from the first poll.
///
/// # Panics
/// When polled outside a handler and outside [`run`].
pub fn sleep(duration: Duration) -> Sleep {
    Sleep { duration, set: None }
}

/// The future of [`sleep`].
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    duration: Duration,
    set: Option<Alarmed>,
}

/// A sleep that has begun.
struct Alarmed {
    worker: Rc<Worker>,
    at: Time,
    timer: Option<(TimerId, Wakeup)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let duration = self.duration;
        let set = self.set.get_or_insert_with(|| {
            let worker = current("wharf::sleep");
            // The turn's own time may be long ago, if somebody was busy since.
            let now = worker.clock();
            Alarmed { at: now.after(duration), worker, timer: None }
        });
        if duration.is_zero() || set.worker.now() >= set.at {
            return Poll::Ready(());
        }
        let tasks = &set.worker.tasks;
        if !set.timer.as_ref().is_some_and(|(_, wakeup)| wakeup.is_for(tasks, cx)) {
            set.cancel();
            let wakeup = Wakeup::of(&set.worker.tasks, cx);
            let id = set.worker.timers.borrow_mut().insert(set.at, Alarm::Wakeup(wakeup.clone()));
            set.timer = Some((id, wakeup));
        }
        Poll::Pending
    }
}

impl Alarmed {
    fn cancel(&mut self) {
        if let Some((id, _)) = self.timer.take() {
            self.worker.timers.borrow_mut().cancel(id);
        }
    }
}

impl Drop for Alarmed {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sleep").field(&self.duration).finish()
    }
}

/// Awaits `future` for at most `after` as a whole; whatever it consists of.
///
/// # Errors
/// [`Error::is_timeout`] if it is not done by then. The future is dropped.
///
/// # Cancellation
/// As that of the future: dropping this drops it.
///
/// # Panics
/// When polled outside a handler and outside [`run`].
///
/// ```
/// use std::time::Duration;
///
/// let late = wharf::run(wharf::within(Duration::from_millis(5), std::future::pending::<()>()))?;
/// assert!(late.unwrap_err().is_timeout());
/// # Ok::<(), wharf::Error>(())
/// ```
pub async fn within<F: Future>(after: Duration, future: F) -> Result<F::Output> {
    let mut future = pin!(future);
    let mut sleep = sleep(after);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        match Pin::new(&mut sleep).poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(Error::new(Operation::Wait, Cause::TimedOut { after }))),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// An operation that can be late: what [`Within`] needs to know of it.
pub trait Late: Future + Unpin {
    /// What it yields when it is in time and succeeds.
    type Value;

    /// Its output as a result.
    ///
    /// # Errors
    /// Its own.
    fn result(output: Self::Output) -> Result<Self::Value>;

    /// The error that says that it was not done in time.
    fn late(&self, after: Duration) -> Error;
}

/// An operation with a total deadline; made by the operation's own `within`.
#[must_use = "futures do nothing unless awaited"]
pub struct Within<O> {
    operation: O,
    after: Duration,
    sleep: Sleep,
}

impl<O: Late> Within<O> {
    pub(crate) fn new(operation: O, after: Duration) -> Within<O> {
        Within { operation, after, sleep: sleep(after) }
    }
}

impl<O: Late> Future for Within<O> {
    type Output = Result<O::Value>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Poll::Ready(output) = Pin::new(&mut this.operation).poll(cx) {
            return Poll::Ready(O::result(output));
        }
        match Pin::new(&mut this.sleep).poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(this.operation.late(this.after))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<O> fmt::Debug for Within<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Within").field(&self.after).finish()
    }
}

/// Polls `future` so that a panic in it becomes a value.
pub(crate) async fn catch<T>(future: impl Future<Output = T>) -> Result<T, Box<dyn Any + Send>> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// The worker of this thread.
///
/// # Panics
/// If there is none.
pub(crate) fn current(who: &str) -> Rc<Worker> {
    worker::with_current(Rc::clone)
        .unwrap_or_else(|| panic!("{who} needs a worker: call it in a handler or within wharf::run"))
}
