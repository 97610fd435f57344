//! Looking after what a pool keeps: a task that closes what is too old or has ended, and makes what is missing.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use super::{Home, Inner, wait};
use crate::runtime::{self, Sleep, sleep};
use crate::time::Time;
use crate::worker::Worker;
use crate::worker::link::Link;
use crate::worker::tasks::{TaskId, Waiter, Wakeup};

/// How a pool's task is reached.
#[derive(Default)]
pub(super) struct Tender {
    /// Which task it is, once it has begun.
    task: Cell<Option<TaskId>>,
    waiter: Waiter,
    /// When it looks by itself.
    due: Cell<Option<Time>>,
}

impl Tender {
    /// Starts looking after `inner`, until its last handle is gone.
    pub(super) fn start<C: 'static>(inner: &Rc<Inner<C>>, worker: &Rc<Worker>) -> Rc<Tender> {
        let tender = Rc::new(Tender::default());
        let task = tend(Rc::downgrade(inner), tender.clone());
        tender.task.set(Some(worker.tasks.spawn(Box::pin(task))));
        tender
    }

    /// The task will know when something happens to an idle connection.
    pub(super) fn watch(&self, link: &Rc<Link>) {
        if let Some(task) = self.task.get() {
            link.reader.set(Wakeup::Task(task));
            link.rare().hangup.add(task);
        }
    }

    /// There is something to do at this time, or earlier than was known.
    pub(super) fn look_at(&self, due: Option<Time>, home: &Home) {
        if let Some(due) = due
            && self.due.get().is_none_or(|known| due < known)
        {
            self.wake(&home.worker);
        }
    }

    pub(super) fn wake(&self, worker: &Worker) {
        self.waiter.wake(&worker.tasks);
    }
}

async fn tend<C: 'static>(inner: Weak<Inner<C>>, tender: Rc<Tender>) {
    let worker = runtime::current("a pool");
    let pause: RefCell<Option<Sleep>> = RefCell::new(None);
    let mut is_forgotten = false;
    poll_fn(|cx| {
        loop {
            let Some(inner) = inner.upgrade() else { return Poll::Ready(()) };
            tender.waiter.register(&worker.tasks, cx);
            if let Some(member) = inner.home.get().and_then(|home| home.member.as_ref()) {
                member.budget.set_waker(member.id, cx.waker().clone());
                if member.budget.is_abandoned() && !is_forgotten {
                    is_forgotten = true;
                    worker.forget_local(member.budget.id);
                    // It may have been the last handle.
                    drop(inner);
                    continue;
                }
            }
            // Until it is known again, nobody has to wake this task for it.
            tender.due.set(Some(Time::ZERO));
            inner.look_after(&worker);
            let due = inner.core.borrow().next_due(worker.now());
            tender.due.set(due);
            // The pool may end while this waits.
            drop(inner);
            let mut pause = pause.borrow_mut();
            *pause = due.map(|due| sleep(due.since(worker.now())));
            if !is_over(&mut pause, cx) {
                return Poll::Pending;
            }
        }
    })
    .await;
}

fn is_over(pause: &mut Option<Sleep>, cx: &mut Context<'_>) -> bool {
    pause.as_mut().is_some_and(|pause| Pin::new(pause).poll(cx).is_ready())
}

impl<C: 'static> Inner<C> {
    /// Closes what has ended, hands on what there is, makes what is missing.
    fn look_after(self: &Rc<Self>, worker: &Rc<Worker>) {
        let now = worker.now();
        self.core.borrow_mut().expire(now, &mut |entry| self.is_fit(entry));
        self.settle();
        loop {
            if let Some(budget) = &self.budget {
                let mut core = self.core.borrow_mut();
                if core.lacks_spare(now) && budget.try_take() {
                    core.add_permits(1);
                }
            }
            if !self.core.borrow_mut().begin_spare(now) {
                return;
            }
            let inner = self.clone();
            let within = self.options.within;
            // What it makes is put into the pool by being dropped; what fails is counted.
            worker.tasks.spawn(Box::pin(async move {
                drop(runtime::within(within, wait::make(&inner)).await);
            }));
        }
    }
}
