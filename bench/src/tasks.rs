//! What it costs to wake a task of one thread and poll it once: the part of a runtime that each message pays.
//!
//! A task here is like a connection's reader: it leaves with the driver what wakes it and is pending until the driver
//! has something. The driver then wakes a number of such tasks, as one turn of an event loop does, and runs them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use anyhow::{Context as _, Result};
use async_task::{Runnable, Task};
use clap::Args;

#[cfg(feature = "wharf")]
use crate::own_tasks::{ByTaskId, OwnTasks};
use crate::report::Spread;
use crate::sys;

#[derive(Args)]
pub struct Tasks {
    /// Tasks that are woken in one turn.
    #[arg(long, value_delimiter = ',', default_value = "1,64,1000")]
    tasks: Vec<usize>,
    /// Wakes in one measurement.
    #[arg(long, default_value_t = 1_000_000)]
    wakes: usize,
    #[arg(long, default_value_t = 9)]
    rounds: usize,
}

/// Something that runs tasks of one thread.
pub trait Executor {
    fn new() -> Self;
    /// The task is never cancelled before the executor drops.
    fn spawn(&mut self, future: impl Future<Output = ()> + 'static);
    /// Polls every task that was woken, once.
    fn turn(&mut self);
}

/// Where a task waits for the driver. Made on the thread of an executor that lives.
pub trait Place: Default + 'static {
    fn register(&mut self, context: &Context<'_>);
    fn wake(&mut self);
}

struct Contender {
    name: &'static str,
    /// Of so many tasks, woken in so many turns.
    nanos_per_wake: fn(usize, usize) -> f64,
}

/// A new contender implements [`Executor`], or a [`Place`], and gets a line here.
const CONTENDERS: &[Contender] = &[
    Contender {
        name: "poll alone",
        nanos_per_wake: nanos_per_wake::<PollAll, Option<Waker>>,
    },
    Contender {
        name: "async_task",
        nanos_per_wake: nanos_per_wake::<AsyncTask, Option<Waker>>,
    },
    #[cfg(feature = "wharf")]
    Contender {
        name: "wharf (task id)",
        nanos_per_wake: nanos_per_wake::<OwnTasks, ByTaskId>,
    },
    #[cfg(feature = "wharf")]
    Contender {
        name: "wharf (std waker)",
        nanos_per_wake: nanos_per_wake::<OwnTasks, Option<Waker>>,
    },
];

pub fn run(options: &Tasks) -> Result<()> {
    sys::pin_to_core(sys::cores_of_the_machine()? - 1)?;
    println!("ns per wake and poll: median (all)\n");
    for &tasks in &options.tasks {
        let mut nanos = vec![Vec::new(); CONTENDERS.len()];
        for _ in 0..options.rounds {
            for (nanos, contender) in nanos.iter_mut().zip(CONTENDERS) {
                nanos.push((contender.nanos_per_wake)(tasks, options.wakes / tasks));
            }
        }
        println!("{tasks} woken per turn");
        for (nanos, contender) in nanos.into_iter().zip(CONTENDERS) {
            let Spread { median, min, max, .. } = Spread::of(nanos.into_iter()).context("no rounds")?;
            println!("  {:<18}{median:>8.1}  ({min:.1} {max:.1})", contender.name);
        }
    }
    Ok(())
}

fn nanos_per_wake<E: Executor, P: Place>(tasks: usize, turns: usize) -> f64 {
    let mut executor = E::new();
    let readers: Vec<_> = (0..tasks)
        .map(|_| Rc::new(RefCell::new(Reader::<P>::default())))
        .collect();
    for reader in &readers {
        executor.spawn(read_forever(reader.clone()));
    }
    let mut turn = || {
        for reader in &readers {
            reader.borrow_mut().deliver();
        }
        executor.turn();
    };
    // Everything is first polled, and then in cache, before the clock starts.
    for _ in 0..turns / 10 + 2 {
        turn();
    }
    let start = Instant::now();
    for _ in 0..turns {
        turn();
    }
    let nanos = start.elapsed().as_nanos() as f64;
    for reader in &readers {
        assert_eq!(
            reader.borrow().taken,
            turns + turns / 10 + 2,
            "a wake was lost or repeated"
        );
    }
    nanos / (turns * tasks) as f64
}

/// What a connection keeps for its reading task.
#[derive(Default)]
struct Reader<P> {
    ready: bool,
    taken: usize,
    place: P,
}

impl<P: Place> Reader<P> {
    /// A wake polls nothing, so the reader may be borrowed meanwhile.
    fn deliver(&mut self) {
        self.ready = true;
        self.place.wake();
    }
}

async fn read_forever<P: Place>(reader: Rc<RefCell<Reader<P>>>) {
    loop {
        Read(&reader).await;
    }
}

struct Read<'a, P>(&'a RefCell<Reader<P>>);

impl<P: Place> Future for Read<'_, P> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut reader = self.0.borrow_mut();
        if !std::mem::take(&mut reader.ready) {
            reader.place.register(context);
            return Poll::Pending;
        }
        reader.taken += 1;
        Poll::Ready(())
    }
}

/// What any executor understands: a clone of the task's waker.
impl Place for Option<Waker> {
    fn register(&mut self, context: &Context<'_>) {
        *self = Some(context.waker().clone());
    }

    fn wake(&mut self) {
        if let Some(waker) = self.take() {
            waker.wake();
        }
    }
}

/// No wakes and no queue, all are polled: what remains when an executor costs nothing.
struct PollAll(Vec<Pin<Box<dyn Future<Output = ()>>>>);

impl Executor for PollAll {
    fn new() -> PollAll {
        PollAll(Vec::new())
    }

    fn spawn(&mut self, future: impl Future<Output = ()> + 'static) {
        self.0.push(Box::pin(future));
    }

    fn turn(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for future in &mut self.0 {
            let _pending = black_box(future.as_mut().poll(&mut context));
        }
    }
}

/// async-task with a queue of this thread, the way its documentation makes a LocalSet.
struct AsyncTask {
    tasks: Vec<Task<()>>,
}

thread_local! {
    static WOKEN: RefCell<VecDeque<Runnable>> = const { RefCell::new(VecDeque::new()) };
}

impl Executor for AsyncTask {
    fn new() -> AsyncTask {
        AsyncTask { tasks: Vec::new() }
    }

    fn spawn(&mut self, future: impl Future<Output = ()> + 'static) {
        let schedule = |task| WOKEN.with_borrow_mut(|woken| woken.push_back(task));
        let (runnable, task) = async_task::spawn_local(future, schedule);
        runnable.schedule();
        self.tasks.push(task);
    }

    fn turn(&mut self) {
        let woken = WOKEN.with_borrow(VecDeque::len);
        for _ in 0..woken {
            if let Some(task) = WOKEN.with_borrow_mut(VecDeque::pop_front) {
                task.run();
            }
        }
    }
}

impl Drop for AsyncTask {
    fn drop(&mut self) {
        // Dropping a Task cancels it by scheduling it once more.
        self.tasks.clear();
        self.turn();
    }
}
