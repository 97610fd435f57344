//! One bound for pools on all workers: [`SharedPool`].

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::budget::Budget;
use super::lifecycle::Erased;
use super::{Getting, Lifecycle, Pool, PoolOptions};
use crate::error::Result;
use crate::runtime;

/// Pools of all workers with one bound for their sum. A clone is the same pool; it can be used on any worker.
///
/// A connection never leaves its worker, so each worker has a pool of its own ([`SharedPool::local`]), made at its first use. What they
/// have in common is [`PoolOptions::size`]: the right to have another connection goes to who waits longest, on whichever worker, and an
/// idle connection is given up if somebody elsewhere waits. The other options are each pool's own. When the last clone is dropped, each
/// worker's pool goes, unless somebody there still has a handle.
///
/// ```no_run
/// use wharf::pool::{PoolOptions, SharedPool};
/// use wharf::{Client, Connection, Server};
///
/// let backend = SharedPool::new(Client::new("10.0.0.7:6379"), PoolOptions::default().size(32))?;
/// let server = Server::bind("0.0.0.0:7788").start(move |mut conn: Connection| {
///     let backend = backend.clone();
///     async move {
///         let mut request = [0; 64];
///         conn.recv_exact(&mut request).await?;
///         let mut upstream = backend.get().await?;
///         upstream.send(&request).await?;
///         let mut answer = [0; 64];
///         upstream.recv_exact(&mut answer).await?;
///         conn.send(&answer).await
///     }
/// })?;
/// # server.wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
pub struct SharedPool<C: 'static> {
    common: Arc<Common<C>>,
}

struct Common<C> {
    make: Box<dyn Fn() -> Rc<dyn Erased<C>> + Send + Sync>,
    options: PoolOptions,
    budget: Arc<Budget>,
}

/// The next number of a shared pool.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl<C: 'static> SharedPool<C> {
    /// Describes pools of what `lifecycle` makes; each worker has a copy of that. Nothing is made before the first use.
    ///
    /// # Errors
    /// If an option makes no sense; the error tells its name.
    pub fn new<L>(lifecycle: L, options: PoolOptions) -> Result<SharedPool<C>>
    where
        L: Lifecycle<Item = C> + Clone + Send + Sync,
    {
        options.validate()?;
        let make = move || -> Rc<dyn Erased<C>> { Rc::new(lifecycle.clone()) };
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let budget = Arc::new(Budget::new(id, options.max(), options.patience));
        Ok(SharedPool { common: Arc::new(Common { make: Box::new(make), options, budget }) })
    }

    /// The pool of the current worker.
    ///
    /// # Panics
    /// Outside a handler and outside [`run`](crate::run()).
    pub fn local(&self) -> Pool<C> {
        let Common { make, options, budget } = &*self.common;
        runtime::current("a pool")
            .local(budget.id, || Pool::build(make(), options.clone(), Some(budget.clone())))
    }

    /// Lends one of the current worker's, as [`Pool::get`] does.
    ///
    /// # Errors
    /// As [`Pool::get`].
    ///
    /// # Cancellation
    /// As [`Pool::get`].
    ///
    /// # Panics
    /// Outside a handler and outside [`run`](crate::run()).
    pub fn get(&self) -> Getting<C> {
        self.local().get()
    }

    /// How many there are at this moment on all workers: in use, idle and being made.
    pub fn connections(&self) -> usize {
        self.common.budget.used()
    }
}

impl<C> Drop for Common<C> {
    fn drop(&mut self) {
        self.budget.abandon();
    }
}

impl<C> Clone for SharedPool<C> {
    fn clone(&self) -> SharedPool<C> {
        SharedPool { common: self.common.clone() }
    }
}

impl<C> fmt::Debug for SharedPool<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedPool").field("connections", &self.connections()).finish_non_exhaustive()
    }
}
