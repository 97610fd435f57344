//! What a pool lends: [`Pooled`].

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::thread;

use super::{Discard, Entry, Idle, Inner};
use crate::time::Time;

/// One that is lent. Dropping it gives it back, unless it is not fit for use by somebody else; see [`Discard`].
pub struct Pooled<C: 'static> {
    /// There until it is dropped.
    item: Option<C>,
    expires: Time,
    /// It goes for this reason, however it is.
    verdict: Option<Discard>,
    inner: Rc<Inner<C>>,
}

impl<C: 'static> Pooled<C> {
    /// A slot of `inner` is lent as this.
    pub(super) fn new(inner: &Rc<Inner<C>>, item: C, expires: Time) -> Pooled<C> {
        Pooled { item: Some(item), expires, verdict: None, inner: inner.clone() }
    }

    /// Does not give it back: it is closed, and its place in the pool is free.
    ///
    /// For what the pool cannot see: an answer that made no sense, or a session that is not as it was lent (a transaction, say).
    pub fn discard(self) {
        self.discard_for(Discard::Asked);
    }

    pub(super) fn discard_for(mut self, why: Discard) {
        self.verdict = Some(why);
    }

    /// From now on it goes for this reason when it is dropped, or for none of its own.
    pub(super) fn set_verdict(&mut self, verdict: Option<Discard>) {
        self.verdict = verdict;
    }

    /// Takes it out of the pool for good; its place in the pool is free.
    pub fn take(mut self) -> C {
        self.inner.core.borrow_mut().discard();
        self.inner.count(|stats| stats.discarded.count(Discard::Taken));
        self.inner.settle();
        self.item.take().expect("it is there until it is dropped")
    }

    /// Why it must not be used again, if so.
    fn fault(&self, entry: &Entry<C>) -> Option<Discard> {
        if thread::panicking() {
            return Some(Discard::Panicked);
        }
        if let Err(why) = self.verdict.map_or_else(|| self.inner.is_fit(entry), Err) {
            return Some(why);
        }
        let core = self.inner.core.borrow();
        if core.is_closed() {
            return Some(Discard::PoolClosed);
        }
        let member = self.inner.home.get()?.member.as_ref()?;
        member.is_owed(core.oldest()).then_some(Discard::Yielded)
    }
}

impl<C: 'static> Drop for Pooled<C> {
    fn drop(&mut self) {
        let Some(item) = self.item.take() else { return };
        let Some(home) = self.inner.home.get() else { return };
        let link = if thread::panicking() { None } else { self.inner.link_of(&item) };
        let entry = Entry { item, link };
        match self.fault(&entry) {
            Some(why) => {
                self.inner.core.borrow_mut().discard();
                self.inner.count(|stats| stats.discarded.count(why));
                self.inner.settle();
                self.inner.dispose(entry.item);
            }
            None => {
                if let Some(link) = &entry.link {
                    home.tender.watch(link);
                }
                let idle = Idle { value: entry, since: home.worker.now(), expires: self.expires };
                self.inner.core.borrow_mut().put(idle);
                self.inner.settle();
            }
        }
    }
}

impl<C> Deref for Pooled<C> {
    type Target = C;

    fn deref(&self) -> &C {
        self.item.as_ref().expect("it is there until it is dropped")
    }
}

impl<C> DerefMut for Pooled<C> {
    fn deref_mut(&mut self) -> &mut C {
        self.item.as_mut().expect("it is there until it is dropped")
    }
}

impl<C: fmt::Debug> fmt::Debug for Pooled<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pooled").field(&self.item).finish()
    }
}
