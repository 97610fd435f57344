//! Wharf's tasks without the rest of a worker: no engine, no connections, no timers.
//!
//! They are private to the library, and an export made for a benchmark would be a promise to everybody. So the very
//! source files are compiled here once more, and this module stands in for their parent, with as much of a worker as
//! they use. What is measured is the library's code; should it come to use more of its worker, this ceases to build.

// The two have the library's format, which is not that of this package, and the worker uses more of them.
#[allow(dead_code)]
#[path = "../../src/worker/mailbox.rs"]
#[rustfmt::skip]
mod mailbox;
#[allow(dead_code)]
#[path = "../../src/worker/tasks.rs"]
#[rustfmt::skip]
mod tasks;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;

use crate::tasks::{Executor, Place};
use mailbox::Mailbox;
use tasks::{TaskId, Tasks, Waiter};

/// Wharf's tasks, with a worker that is the current one of this thread for as long as this lives.
pub struct OwnTasks {
    worker: Rc<Worker>,
    inbox: Vec<Message>,
}

impl Executor for OwnTasks {
    fn new() -> OwnTasks {
        let post: Post = Arc::new(Mailbox::new(|| {}));
        let worker = Rc::new(Worker {
            tasks: Tasks::new(post.clone()),
            post,
        });
        CURRENT.set(Some(worker.clone()));
        OwnTasks {
            worker,
            inbox: Vec::new(),
        }
    }

    fn spawn(&mut self, future: impl Future<Output = ()> + 'static) {
        self.worker.tasks.spawn(Box::pin(future));
    }

    /// Looks for wakes from other threads too, as a worker's turn does.
    fn turn(&mut self) {
        self.worker.post.drain(&mut self.inbox);
        for Message::Wake(id) in self.inbox.drain(..) {
            self.worker.tasks.wake(id);
        }
        self.worker.tasks.run();
    }
}

impl Drop for OwnTasks {
    fn drop(&mut self) {
        // Tasks may hold their worker.
        self.worker.tasks.clear();
        CURRENT.set(None);
    }
}

/// The place that Wharf's connections have: it remembers the task's id, and no waker is cloned.
pub struct ByTaskId {
    waiter: Waiter,
    worker: Rc<Worker>,
}

impl Default for ByTaskId {
    fn default() -> ByTaskId {
        ByTaskId {
            waiter: Waiter::default(),
            worker: with_current(Rc::clone).expect("an executor of own tasks lives"),
        }
    }
}

impl Place for ByTaskId {
    fn register(&mut self, context: &Context<'_>) {
        self.waiter.register(&self.worker.tasks, context);
    }

    fn wake(&mut self) {
        self.waiter.wake(&self.worker.tasks);
    }
}

struct Worker {
    tasks: Tasks,
    post: Post,
}

mod link {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// The library's own: a panic of a destructor ends here.
    pub fn drop_guarded<T>(value: T) {
        drop(catch_unwind(AssertUnwindSafe(move || drop(value))));
    }
}

type Post = Arc<Mailbox<Message>>;

enum Message {
    Wake(TaskId),
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Worker>>> = const { RefCell::new(None) };
}

/// The same as the library's: each wake by a waker pays for it.
fn with_current<T>(f: impl FnOnce(&Rc<Worker>) -> T) -> Option<T> {
    CURRENT
        .try_with(|current| current.borrow().as_ref().map(f))
        .ok()
        .flatten()
}
