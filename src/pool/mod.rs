//! Connections that are used again: [`Pool`] for one worker, [`SharedPool`] over all of them, [`Pools`] by endpoint.
//!
//! ```
//! use wharf::pool::{Pool, PoolOptions};
//! use wharf::{Client, Connection, Server};
//! # let server = Server::bind("127.0.0.1:0").workers(1).start(|mut conn: Connection| async move {
//! #     let mut buf = [0; 64];
//! #     loop {
//! #         let n = conn.recv(&mut buf).await?;
//! #         if n == 0 { return Ok(()) }
//! #         conn.send(&buf[..n]).await?;
//! #     }
//! # })?;
//! # let address = server.local_addr();
//!
//! wharf::run(async move {
//!     let pool = Pool::new(Client::new(address), PoolOptions::default().size(4))?;
//!     for _ in 0..10 {
//!         let mut conn = pool.get().await?;
//!         conn.send(b"ping").await?;
//!         conn.recv_exact(&mut [0; 4]).await?;
//!     } // each time it goes back to the pool here
//!     assert_eq!((pool.stats().created, pool.stats().reused), (1, 9));
//!     Ok::<(), wharf::Error>(())
//! })??;
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! # What goes back
//!
//! Dropping the guard gives a connection back, if it is fit to be used by somebody else: it is open, the peer has not hung up,
//! nothing is unread, no operation was left in the middle, and what was sent has been answered. Anything else is closed and counted
//! under its [`Discard`] reason. So a task that is dropped in the middle of a request cannot leave its answer to the next one.
//!
//! While it is idle a connection is watched: one that the peer closes goes at once, and is never handed out. What nobody can rule
//! out is that it ends while a request is on its way; that request fails, and whether it may be repeated only its sender knows.

mod budget;
mod core;
mod guard;
mod keyed;
mod lifecycle;
mod options;
mod shared;
mod stats;
mod tender;
mod wait;

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

pub use guard::Pooled;
pub use keyed::Pools;
pub use lifecycle::Lifecycle;
pub use options::PoolOptions;
pub use shared::SharedPool;
pub use stats::{Discard, Discarded, PoolStats};
pub use wait::Getting;

use self::budget::{Answer, Budget, Common, Report};
use self::core::{Core, Idle, Refused, Ticket};
use self::lifecycle::Erased;
use self::tender::Tender;

use crate::error::{Cause, Error, Operation, Result};
use crate::runtime;
use crate::time::Time;
use crate::worker::link::Link;
use crate::worker::tasks::{Waiters, Wakeup};
use crate::worker::{Keeper, Worker};

/// Connections to one endpoint, or whatever else a [`Lifecycle`] makes, lent to one task at a time. A clone is the same pool.
///
/// It belongs to the worker on which it is used first, like the connections in it. What is idle is lent last in, first out, so
/// that those that are not needed grow old and go. Who has to wait is served strictly in turn.
pub struct Pool<C: 'static> {
    inner: Rc<Inner<C>>,
}

impl<C: 'static> Pool<C> {
    /// Describes a pool of what `lifecycle` makes. Nothing is made before the first use.
    ///
    /// # Errors
    /// If an option makes no sense; the error tells its name.
    pub fn new(lifecycle: impl Lifecycle<Item = C>, options: PoolOptions) -> Result<Pool<C>> {
        options.validate()?;
        Ok(Pool::build(Rc::new(lifecycle), options, None))
    }

    fn build(life: Rc<dyn Erased<C>>, options: PoolOptions, budget: Option<Arc<Budget>>) -> Pool<C> {
        let core = Core::new(options.bounds(budget.is_some()));
        let inner = Inner {
            life,
            options,
            core: RefCell::new(core),
            wakeups: RefCell::default(),
            stats: RefCell::default(),
            last_failure: RefCell::default(),
            home: OnceCell::new(),
            budget,
            emptied: Waiters::default(),
        };
        Pool { inner: Rc::new(inner) }
    }

    /// Lends one: an idle one, a new one if there may be more, or else the next that comes free. Who waits longest is first.
    ///
    /// [`Getting::within`] replaces the deadline of [`PoolOptions::within`], which is for all of it: waiting, checking, connecting.
    ///
    /// # Errors
    /// If there is none in time ([`Error::is_timeout`]; the message tells what was missing); if too many wait already
    /// ([`ErrorKind::Limit`](crate::ErrorKind::Limit)); if the pool is closed. And if one could not be made for this very call: a connect that
    /// fails is told to one caller, the others wait until the next try.
    ///
    /// # Cancellation
    /// Cancel safe: what was meant for it goes to the next who waits. A connect that was begun for it is given up.
    ///
    /// # Panics
    /// When polled outside a handler and outside [`run`](crate::run()).
    pub fn get(&self) -> Getting<C> {
        Getting::new(self.inner.clone())
    }

    /// Does `work` with one. If it ends with an error, the connection is not used again.
    ///
    /// ```no_run
    /// # async fn ping(pool: wharf::pool::Pool<wharf::Connection>) -> wharf::Result<()> {
    /// let pong = pool
    ///     .with(async |conn| {
    ///         conn.send(b"ping").await?;
    ///         let mut pong = [0; 4];
    ///         conn.recv_exact(&mut pong).await?;
    ///         Ok(pong)
    ///     })
    ///     .await?;
    /// # let _ = pong; Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Pool::get`], and those of `work`.
    ///
    /// # Cancellation
    /// As safe as `work` is; a connection that is left in the middle of an operation is not used again.
    pub async fn with<T>(&self, work: impl AsyncFnOnce(&mut C) -> Result<T>) -> Result<T> {
        let mut lent = self.get().await?;
        let outcome = work(&mut lent).await;
        if outcome.is_err() {
            lent.discard();
        }
        outcome
    }

    /// Has [`PoolOptions::idle_min`] connections made, without waiting for them. The first use does that too.
    ///
    /// # Errors
    /// If the pool belongs to another worker, or is closed.
    ///
    /// # Panics
    /// Outside a handler and outside [`run`](crate::run()).
    pub fn warm(&self) -> Result<()> {
        self.inner.at_home()?;
        if self.inner.core.borrow().is_closed() {
            return Err(self.inner.closed());
        }
        Ok(())
    }

    /// Closes the pool: idle connections are closed, those who wait get an error, and what is in use is closed when it comes back.
    pub fn close(&self) {
        self.inner.core.borrow_mut().close();
        self.inner.settle();
    }

    /// Waits until the pool has no connection left, in use or idle: after [`Pool::close`], until the last has come back.
    ///
    /// # Cancellation
    /// Cancel safe; it changes nothing.
    pub async fn emptied(&self) {
        let inner = &self.inner;
        poll_fn(|cx| {
            let Some(home) = inner.home.get().filter(|_| !inner.core.borrow().is_empty()) else {
                return Poll::Ready(());
            };
            inner.emptied.register(&home.worker.tasks, cx);
            Poll::Pending
        })
        .await;
    }

    /// Whether [`Pool::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.inner.core.borrow().is_closed()
    }

    /// What it has done, and how it stands.
    pub fn stats(&self) -> PoolStats {
        let core = self.inner.core.borrow();
        PoolStats {
            idle: core.idle_len(),
            in_use: core.in_use(),
            making: core.making(),
            waiting: core.waiting(),
            ..self.inner.stats.borrow().clone()
        }
    }
}

impl<C> Clone for Pool<C> {
    fn clone(&self) -> Pool<C> {
        Pool { inner: self.inner.clone() }
    }
}

impl<C> fmt::Debug for Pool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// What the handles of a pool share.
struct Inner<C: 'static> {
    life: Rc<dyn Erased<C>>,
    options: PoolOptions,
    core: RefCell<Core<Entry<C>>>,
    /// Who waits for which ticket.
    wakeups: RefCell<HashMap<Ticket, Wakeup>>,
    stats: RefCell<PoolStats>,
    /// Why the last connection could not be made; for the message of those who waited in vain.
    last_failure: RefCell<Option<String>>,
    home: OnceCell<Home>,
    budget: Option<Arc<Budget>>,
    emptied: Waiters,
}

/// The worker of a pool, from its first use on.
struct Home {
    worker: Rc<Worker>,
    tender: Rc<Tender>,
    member: Option<Member>,
}

/// A pool's place in the bound that it shares with others.
struct Member {
    budget: Arc<Budget>,
    id: u64,
    /// What turns this worker's time into that of the budget.
    offset: i128,
}

/// One that is lent or idle, beside what the pool has to know of it.
struct Entry<C> {
    item: C,
    /// The connection within, as it was when it came back.
    link: Option<Rc<Link>>,
}

impl<C: 'static> Inner<C> {
    /// The worker of the pool, which is the current one.
    fn at_home(self: &Rc<Self>) -> Result<&Home> {
        let worker = runtime::current("a pool");
        if let Some(home) = self.home.get() {
            if Rc::ptr_eq(&home.worker, &worker) {
                return Ok(home);
            }
            let elsewhere = "the pool belongs to another worker; share it with `SharedPool`";
            return Err(Error::new(Operation::Acquire, Cause::Misuse(elsewhere)));
        }
        let member = self.budget.as_ref().map(|budget| Member::join(budget, &worker));
        let tender = Tender::start(self, &worker);
        let keeper: Rc<dyn Keeper> = self.clone();
        let home = Home { worker, tender, member };
        assert!(self.home.set(home).is_ok(), "nobody else is here");
        let home = self.home.get().expect("it was set above");
        home.worker.keep(&keeper);
        Ok(home)
    }

    /// Hands out what there is and carries out what follows from that. Comes behind whatever changes the core.
    fn settle(&self) {
        // Before its first use a pool has nothing.
        let Some(home) = self.home.get() else { return };
        let now = home.worker.now();
        loop {
            let mut core = self.core.borrow_mut();
            core.serve(now, &mut |entry| self.is_fit(entry));
            core.trim();
            let Some(member) = &home.member else { break };
            let answer = member.report(&mut core, now);
            if answer.is_nothing() {
                break;
            }
            core.add_permits(answer.granted);
            core.yield_idle(answer.asked);
        }
        self.wake(home);
        self.bury();
        let core = self.core.borrow();
        // Only the tender makes what nobody waits for.
        let due = if core.lacks_spare(now) { Some(now) } else { core.next_due(now) };
        drop(core);
        home.tender.look_at(due, home);
    }

    /// Tells those who were handed something.
    fn wake(&self, home: &Home) {
        let woken = self.core.borrow_mut().take_woken();
        for ticket in woken {
            let wakeup = self.wakeups.borrow_mut().remove(&ticket);
            if let Some(wakeup) = wakeup {
                wakeup.wake(&home.worker.tasks);
            }
        }
        if self.core.borrow().is_empty() {
            self.emptied.wake(&home.worker.tasks);
        }
    }

    /// Closes what was evicted. It is the user's code that does, so nothing is borrowed.
    fn bury(&self) {
        let evicted = self.core.borrow_mut().take_evicted();
        for (entry, why) in evicted {
            self.count(|stats| stats.discarded.count(why));
            self.dispose(entry.item);
        }
    }

    fn dispose(&self, item: C) {
        if std::thread::panicking() {
            drop(item);
        } else {
            self.life.close(item);
        }
    }

    /// Whether one may be used by somebody else than its last user.
    fn is_fit(&self, entry: &Entry<C>) -> Result<(), Discard> {
        entry.link.as_ref().map_or(Ok(()), |link| fit(link, self.options.keep_unanswered))
    }

    fn link_of(&self, item: &C) -> Option<Rc<Link>> {
        self.life.connection(item).map(|conn| conn.link().clone())
    }

    /// When one that was made now is too old.
    fn expiry(&self, worker: &Worker) -> Time {
        let age = self.options.max_age;
        let part = u32::try_from(worker.random() >> 32).unwrap_or_default();
        let less = (age / 10).mul_f64(f64::from(part) / f64::from(u32::MAX));
        worker.now().after(age.saturating_sub(less))
    }

    fn count(&self, count: impl FnOnce(&mut PoolStats)) {
        count(&mut self.stats.borrow_mut());
    }

    fn closed(&self) -> Error {
        self.failed(Cause::Misuse("the pool is closed"))
    }

    fn refused(&self, refused: Refused) -> Error {
        match refused {
            Refused::Closed => self.closed(),
            Refused::Full => {
                self.count(|stats| stats.refused += 1);
                let count = self.core.borrow().waiting();
                self.failed(Cause::TooMany { count, what: "wait for a connection", option: "waiters" })
            }
        }
    }

    /// The error of somebody who waited in vain, with what was missing.
    fn starved(&self, after: Duration) -> Error {
        self.count(|stats| stats.timed_out += 1);
        let core = self.core.borrow();
        let detail = match self.last_failure.borrow().as_ref().filter(|_| core.is_failing()) {
            Some(failure) => format!("the last try failed: {failure}"),
            None if core.making() > 0 => {
                format!("{} are in use and {} being made", core.in_use(), core.making())
            }
            None if self.budget.is_some() => String::from("all are in use on some worker, see `size`"),
            None => format!("all {} are in use, see `size`", core.in_use()),
        };
        self.failed(Cause::Starved { after, detail })
    }

    fn failed(&self, cause: Cause) -> Error {
        let error = Error::new(Operation::Acquire, cause);
        match &self.options.label {
            Some(label) => error.at(label),
            None => error,
        }
    }
}

impl<C: 'static> Keeper for Inner<C> {
    /// The server drains: what is idle would keep its worker from ending.
    fn keep_none(&self) {
        self.core.borrow_mut().keep_none();
        self.settle();
    }
}

impl<C: 'static> Drop for Inner<C> {
    fn drop(&mut self) {
        self.core.get_mut().close();
        self.bury();
        if let Some(home) = self.home.get() {
            if let Some(member) = &home.member {
                member.budget.leave(member.id, self.core.get_mut().take_permits());
            }
            home.tender.wake(&home.worker);
        }
    }
}

impl Member {
    fn join(budget: &Arc<Budget>, worker: &Worker) -> Member {
        // A simulation has one clock for all of its workers, and no other.
        let elapsed = match worker.engine.borrow().backend() {
            Some(_) => i128::try_from(budget.epoch.elapsed().as_nanos()).unwrap_or(i128::MAX),
            None => i128::from(worker.clock().as_nanos()),
        };
        let offset = elapsed - i128::from(worker.clock().as_nanos());
        Member { budget: budget.clone(), id: budget.join(), offset }
    }

    /// Tells how it stands, gives back what is not needed, and hears what there is.
    fn report<C>(&self, core: &mut Core<C>, now: Time) -> Answer {
        let since = core.oldest().map_or(0, |since| self.common(since));
        let (wanted, idle) = (core.wanted(now), core.idle_len());
        let report = Report { wanted, since, idle, returned: core.take_permits() };
        self.budget.update(self.id, report)
    }

    fn common(&self, time: Time) -> Common {
        Common::try_from(i128::from(time.as_nanos()) + self.offset).unwrap_or_default()
    }

    /// Whether one that comes free here is somebody else's turn.
    fn is_owed(&self, oldest: Option<Time>) -> bool {
        self.budget.is_owed(self.id, oldest.map(|since| self.common(since)))
    }
}

/// Whether a connection is as a new one is, as far as this side can know.
fn fit(link: &Link, keep_unanswered: bool) -> Result<(), Discard> {
    let conn = link.conn.borrow();
    if conn.reason().is_some() {
        return Err(Discard::Closed);
    }
    if conn.hangup().is_some() || conn.peer_ended() {
        return Err(Discard::HungUp);
    }
    if conn.unread() > 0 {
        return Err(Discard::Unread);
    }
    if conn.is_interrupted() {
        return Err(Discard::Interrupted);
    }
    if conn.is_unanswered() && !keep_unanswered {
        return Err(Discard::Unanswered);
    }
    Ok(())
}
