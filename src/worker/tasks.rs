//! The futures that one worker runs, and how they are woken.
//!
//! Waking happens mostly from the worker's own loop, so it should cost no atomic operation: what waits on a connection
//! remembers the [`TaskId`], not a cloned `Waker`, whenever the future is polled by the task directly (see [`Waiter`]).
//! The task's real `Waker` works from any thread and goes through the mailbox there.
//!
//! This is own code because a library's task (async-task) pays reference counts and a state machine in atomics for each
//! wake and poll; docs/design/tasks.md has the measurement.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use super::link::drop_guarded;
use super::{Message, Post};

/// Names one task of one worker for as long as it lives.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaskId {
    index: u32,
    generation: u32,
}

/// The future given to `run`, which is not stored here.
const ROOT: TaskId = TaskId { index: u32::MAX, generation: 0 };

pub(crate) type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

pub(crate) struct Tasks {
    entries: RefCell<Vec<Entry>>,
    free: RefCell<Vec<u32>>,
    ready: RefCell<VecDeque<TaskId>>,
    root_ready: Cell<bool>,
    /// The task that is being polled, with the data pointer of its waker.
    current: Cell<Option<(TaskId, *const ())>>,
    live: Cell<usize>,
    /// Whom the panic of the task being polled is told to.
    on_panic: Cell<Option<OnPanic>>,
    post: Post,
}

type OnPanic = Box<dyn FnOnce(Box<dyn Any + Send>)>;

struct Entry {
    generation: u32,
    queued: bool,
    /// Away while it is being polled.
    body: Option<Body>,
}

struct Body {
    future: TaskFuture,
    waker: Waker,
}

impl Tasks {
    pub(crate) fn new(post: Post) -> Tasks {
        Tasks {
            entries: RefCell::default(),
            free: RefCell::default(),
            ready: RefCell::default(),
            on_panic: Cell::default(),
            root_ready: Cell::new(false),
            current: Cell::new(None),
            live: Cell::new(0),
            post,
        }
    }

    /// Adds a task; it is polled in the next run.
    pub(crate) fn spawn(&self, future: TaskFuture) -> TaskId {
        let mut entries = self.entries.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            entries.push(Entry { generation: 0, queued: false, body: None });
            (entries.len() - 1) as u32
        });
        let entry = &mut entries[index as usize];
        let id = TaskId { index, generation: entry.generation };
        entry.body = Some(Body { future, waker: self.waker(id) });
        entry.queued = true;
        self.live.set(self.live.get() + 1);
        self.ready.borrow_mut().push_back(id);
        id
    }

    /// Tasks that have not ended.
    #[cfg(test)]
    fn live(&self) -> usize {
        self.live.get()
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.root_ready.get() || !self.ready.borrow().is_empty()
    }

    /// Queues a task to be polled; one that ended, or is queued already, is left alone.
    pub(crate) fn wake(&self, id: TaskId) {
        if id == ROOT {
            self.root_ready.set(true);
            return;
        }
        if let Some(entry) = self.entries.borrow_mut().get_mut(id.index as usize)
            && entry.generation == id.generation
            && !entry.queued
        {
            entry.queued = true;
            self.ready.borrow_mut().push_back(id);
        }
    }

    /// Queues all tasks: something has changed that any of them may wait for.
    pub(crate) fn wake_all(&self) {
        let mut ready = self.ready.borrow_mut();
        for (index, entry) in self.entries.borrow_mut().iter_mut().enumerate() {
            if entry.body.is_some() && !entry.queued {
                entry.queued = true;
                ready.push_back(TaskId { index: index as u32, generation: entry.generation });
            }
        }
    }

    /// Polls the tasks that are ready now, each once; those that they wake wait for the next run.
    pub(crate) fn run(&self) {
        let count = self.ready.borrow().len();
        for _ in 0..count {
            let Some(id) = self.ready.borrow_mut().pop_front() else { break };
            self.poll(id);
        }
    }

    /// Polls a future that lives elsewhere, if it was woken.
    pub(crate) fn poll_root<T>(
        &self,
        waker: &Waker,
        poll: impl FnOnce(&mut Context<'_>) -> std::task::Poll<T>,
    ) -> std::task::Poll<T> {
        if !self.root_ready.replace(false) {
            return std::task::Poll::Pending;
        }
        let _current = Polling::new(self, ROOT, waker);
        poll(&mut Context::from_waker(waker))
    }

    /// The waker of a future that is about to be polled for the first time.
    pub(crate) fn root_waker(&self) -> Waker {
        self.root_ready.set(true);
        self.waker(ROOT)
    }

    /// The task that `cx` belongs to, if that is the one being polled here: it can be woken by its id.
    fn polled_by(&self, cx: &Context<'_>) -> Option<TaskId> {
        let (id, data) = self.current.get()?;
        (cx.waker().data() == data).then_some(id)
    }

    /// Drops all tasks, also those that the others spawn as they go. What they own may still use the worker.
    pub(crate) fn clear(&self) {
        let mut from = 0;
        loop {
            let found = {
                let mut entries = self.entries.borrow_mut();
                let mut rest = entries.iter_mut().enumerate().skip(from);
                rest.find_map(|(index, entry)| entry.body.take().map(|body| (index, body)))
            };
            match found {
                Some((index, body)) => {
                    from = index + 1;
                    self.forget(index as u32, body);
                }
                None if from == 0 => return,
                // Those that were spawned meanwhile may have taken places before.
                None => from = 0,
            }
        }
    }

    fn poll(&self, id: TaskId) {
        let taken = self.entries.borrow_mut().get_mut(id.index as usize).and_then(|entry| {
            // A task may end with itself queued, and another take its place.
            if entry.generation != id.generation {
                return None;
            }
            entry.queued = false;
            entry.body.take()
        });
        let Some(mut body) = taken else { return };
        let polled = {
            let _current = Polling::new(self, id, &body.waker);
            let mut context = Context::from_waker(&body.waker);
            catch_unwind(AssertUnwindSafe(|| body.future.as_mut().poll(&mut context)))
        };
        match polled {
            Ok(std::task::Poll::Pending) => {
                self.entries.borrow_mut()[id.index as usize].body = Some(body);
            }
            Ok(std::task::Poll::Ready(())) => self.forget(id.index, body),
            // The panic ends the task alone.
            Err(payload) => {
                match self.on_panic.take() {
                    Some(report) => report(payload),
                    None => drop_guarded(payload),
                }
                self.forget(id.index, body);
            }
        }
    }

    /// Has the panic that is ending the task being polled told to `report`.
    pub(crate) fn on_panic(&self, report: impl FnOnce(Box<dyn Any + Send>) + 'static) {
        self.on_panic.set(Some(Box::new(report)));
    }

    fn forget(&self, index: u32, body: Body) {
        {
            let entry = &mut self.entries.borrow_mut()[index as usize];
            entry.generation = entry.generation.wrapping_add(1);
            entry.queued = false;
        }
        self.free.borrow_mut().push(index);
        self.live.set(self.live.get() - 1);
        // What goes with the task may wake and spawn others. A destructor that panics ends here too.
        drop_guarded(body);
    }

    fn waker(&self, id: TaskId) -> Waker {
        Waker::from(Arc::new(TaskWaker { id, post: self.post.clone() }))
    }
}

/// Marks a task as the one being polled, also when its poll panics.
struct Polling<'a> {
    tasks: &'a Tasks,
    before: Option<(TaskId, *const ())>,
}

impl<'a> Polling<'a> {
    fn new(tasks: &'a Tasks, id: TaskId, waker: &Waker) -> Polling<'a> {
        Polling { tasks, before: tasks.current.replace(Some((id, waker.data()))) }
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.tasks.current.set(self.before);
    }
}

/// The waker of one task, usable from any thread.
struct TaskWaker {
    id: TaskId,
    post: Post,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let here = super::with_current(|worker| {
            let mine = Arc::ptr_eq(&worker.post, &self.post);
            if mine {
                worker.tasks.wake(self.id);
            }
            mine
        });
        if here != Some(true) {
            // A worker that is gone has dropped the task as well.
            drop(self.post.send(Message::Wake(self.id)));
        }
    }
}

/// Who is to be woken.
#[derive(Clone)]
pub(crate) enum Wakeup {
    /// A task of this worker, polled directly.
    Task(TaskId),
    /// Whatever else polls futures: a combinator with wakers of its own. Boxed, because it is rare, and each connection
    /// and each timer has room for this.
    Foreign(Box<Waker>),
}

impl Wakeup {
    pub(crate) fn of(tasks: &Tasks, cx: &Context<'_>) -> Wakeup {
        match tasks.polled_by(cx) {
            Some(id) => Wakeup::Task(id),
            None => Wakeup::Foreign(Box::new(cx.waker().clone())),
        }
    }

    /// Whether this wakes what polls with `cx`.
    pub(crate) fn is_for(&self, tasks: &Tasks, cx: &Context<'_>) -> bool {
        match self {
            Wakeup::Task(id) => tasks.polled_by(cx) == Some(*id),
            Wakeup::Foreign(waker) => waker.will_wake(cx.waker()),
        }
    }

    pub(crate) fn wake(self, tasks: &Tasks) {
        match self {
            Wakeup::Task(id) => tasks.wake(id),
            Wakeup::Foreign(waker) => waker.wake(),
        }
    }
}

/// The place where one future waits for one thing.
#[derive(Default)]
pub(crate) struct Waiter(Cell<Option<Wakeup>>);

impl Waiter {
    /// From now on `wake` wakes whoever polls with `cx`; who waited here before is forgotten.
    pub(crate) fn register(&self, tasks: &Tasks, cx: &Context<'_>) {
        self.0.set(Some(Wakeup::of(tasks, cx)));
    }

    /// From now on `wakeup` is what is woken.
    pub(crate) fn set(&self, wakeup: Wakeup) {
        self.0.set(Some(wakeup));
    }

    pub(crate) fn wake(&self, tasks: &Tasks) {
        if let Some(wakeup) = self.0.take() {
            wakeup.wake(tasks);
        }
    }
}

/// The place where any number of futures wait for one thing.
#[derive(Default)]
pub(crate) struct Waiters(RefCell<Vec<Wakeup>>);

impl Waiters {
    pub(crate) fn register(&self, tasks: &Tasks, cx: &Context<'_>) {
        let mut waiters = self.0.borrow_mut();
        if !waiters.iter().any(|wakeup| wakeup.is_for(tasks, cx)) {
            waiters.push(Wakeup::of(tasks, cx));
        }
    }

    /// A task of this worker waits here too.
    pub(crate) fn add(&self, task: TaskId) {
        let mut waiters = self.0.borrow_mut();
        if !waiters.iter().any(|wakeup| matches!(wakeup, Wakeup::Task(id) if *id == task)) {
            waiters.push(Wakeup::Task(task));
        }
    }

    pub(crate) fn wake(&self, tasks: &Tasks) {
        let waiters = self.0.take();
        waiters.into_iter().for_each(|wakeup| wakeup.wake(tasks));
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Poll;

    use super::super::mailbox::Mailbox;
    use super::*;

    fn tasks() -> Tasks {
        Tasks::new(Arc::new(Mailbox::new(|| {})))
    }

    #[test]
    fn a_task_is_polled_once_for_many_wakes() {
        let tasks = tasks();
        let polls = Rc::new(Cell::new(0));
        let count = polls.clone();
        let id = tasks.spawn(Box::pin(poll_fn(move |_| {
            count.set(count.get() + 1);
            Poll::Pending
        })));
        tasks.run();
        (0..10).for_each(|_| tasks.wake(id));
        tasks.run();
        assert_eq!(polls.get(), 2);
    }

    #[test]
    fn a_late_wake_does_not_reach_the_next_task_in_the_same_place() {
        let tasks = tasks();
        let old = tasks.spawn(Box::pin(async {}));
        tasks.run();
        tasks.spawn(Box::pin(std::future::pending()));
        tasks.run();
        tasks.wake(old);
        assert!(tasks.ready.borrow().is_empty());
        assert_eq!(tasks.live(), 1);
    }

    #[test]
    fn a_panic_ends_its_task_only() {
        let tasks = tasks();
        tasks.spawn(Box::pin(async { panic!("one of the tasks") }));
        tasks.spawn(Box::pin(std::future::pending()));
        tasks.run();
        assert_eq!(tasks.live(), 1);
    }

    #[test]
    fn a_wake_from_another_thread_comes_by_the_mailbox() {
        let tasks = tasks();
        let waker = Rc::new(RefCell::new(None));
        let slot = waker.clone();
        tasks.spawn(Box::pin(poll_fn(move |cx| {
            *slot.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })));
        tasks.run();
        let waker = waker.borrow_mut().take().expect("the task has left its waker");
        std::thread::spawn(move || waker.wake()).join().unwrap();
        let mut messages = Vec::new();
        tasks.post.drain(&mut messages);
        assert!(matches!(messages[..], [Message::Wake(_)]));
    }
}
