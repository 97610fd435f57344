//! A pool for each endpoint, and a bound on how many endpoints: [`Pools`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::rc::Rc;

use super::{Lifecycle, Pool, PoolOptions};
use crate::error::{Cause, Error, Operation, Result};

/// Pools by key: an endpoint, a tenant, whatever tells them apart. A clone has the same pools.
///
/// There are 64 at most, unless [`PoolOptions::endpoints`] says otherwise. Who needs another gets it in the place of the one that was used least recently, if nobody uses that.
///
/// ```
/// use wharf::Client;
/// use wharf::pool::{PoolOptions, Pools};
///
/// let pools = Pools::new(|endpoint: &String| Client::new(endpoint), PoolOptions::default().size(4))?;
/// let pool = pools.get("127.0.0.1:7788".to_string())?;
/// assert_eq!((pools.len(), pool.stats().idle), (1, 0));
/// # Ok::<(), wharf::Error>(())
/// ```
pub struct Pools<K, C: 'static> {
    inner: Rc<Inner<K, C>>,
}

struct Inner<K, C: 'static> {
    make: Make<K, C>,
    max: usize,
    state: RefCell<State<K, C>>,
}

type Make<K, C> = Box<dyn Fn(&K) -> Result<Pool<C>>>;

struct State<K, C: 'static> {
    pools: HashMap<K, Kept<C>>,
    /// Counts the uses.
    clock: u64,
}

struct Kept<C: 'static> {
    pool: Pool<C>,
    /// When it was used last.
    used: u64,
}

impl<K: Hash + Eq + Clone + 'static, C: 'static> Pools<K, C> {
    /// Describes pools with these options, which each of them has; `make` says how a key's connections are made.
    ///
    /// # Errors
    /// If an option makes no sense; the error tells its name.
    pub fn new<L>(make: impl Fn(&K) -> L + 'static, options: PoolOptions) -> Result<Pools<K, C>>
    where
        L: Lifecycle<Item = C>,
    {
        options.validate()?;
        let max = options.endpoints;
        let make = Box::new(move |key: &K| Pool::new(make(key), options.clone()));
        let state = RefCell::new(State { pools: HashMap::new(), clock: 0 });
        Ok(Pools { inner: Rc::new(Inner { make, max, state }) })
    }

    /// The pool of `key`.
    ///
    /// # Errors
    /// If there are as many as may be, and each is in use ([`ErrorKind::Limit`](crate::ErrorKind::Limit)).
    pub fn get(&self, key: K) -> Result<Pool<C>> {
        let used = {
            let mut state = self.inner.state.borrow_mut();
            state.clock += 1;
            let used = state.clock;
            if let Some(kept) = state.pools.get_mut(&key) {
                kept.used = used;
                return Ok(kept.pool.clone());
            }
            used
        };
        // The user's code, so nothing is borrowed.
        let pool = (self.inner.make)(&key)?;
        let displaced = self.make_room()?;
        let kept = Kept { pool: pool.clone(), used };
        self.inner.state.borrow_mut().pools.insert(key, kept);
        if let Some(displaced) = displaced {
            displaced.close();
        }
        Ok(pool)
    }

    /// Takes out the pool that was used least recently and that nobody uses, if there are as many as may be.
    fn make_room(&self) -> Result<Option<Pool<C>>> {
        let pools = &mut self.inner.state.borrow_mut().pools;
        if pools.len() < self.inner.max {
            return Ok(None);
        }
        let unused = pools.iter().filter(|(_, kept)| kept.pool.is_unused());
        let oldest = unused.min_by_key(|(_, kept)| kept.used).map(|(key, _)| key.clone());
        let displaced = oldest.and_then(|key| pools.remove(&key));
        let cause = Cause::TooMany { count: pools.len(), what: "endpoints are in use", option: "endpoints" };
        displaced.map(|kept| Some(kept.pool)).ok_or_else(|| Error::new(Operation::Acquire, cause))
    }

    /// How many keys have a pool.
    pub fn len(&self) -> usize {
        self.inner.state.borrow().pools.len()
    }

    /// Whether no key has one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Closes all of them and forgets them; see [`Pool::close`].
    pub fn close(&self) {
        let pools = std::mem::take(&mut self.inner.state.borrow_mut().pools);
        pools.into_values().for_each(|kept| kept.pool.close());
    }
}

impl<C: 'static> Pool<C> {
    /// Whether nobody uses it: none is lent or being made, nobody waits, and nobody else has a handle.
    fn is_unused(&self) -> bool {
        let core = self.inner.core.borrow();
        Rc::strong_count(&self.inner) == 1 && core.in_use() + core.making() + core.waiting() == 0
    }
}

impl<K, C> Clone for Pools<K, C> {
    fn clone(&self) -> Pools<K, C> {
        Pools { inner: self.inner.clone() }
    }
}

impl<K: fmt::Debug, C> fmt::Debug for Pools<K, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.inner.state.borrow().pools.keys()).finish()
    }
}
