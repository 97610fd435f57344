//! What holds for handshakes that begin now, and the description that it was made of; both can be changed while they are used.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::error::Result;

pub(super) struct InForce<S, D> {
    current: RwLock<Arc<S>>,
    /// Held while something else is put in force, so that two changes are one after the other.
    description: Mutex<D>,
}

impl<S, D> InForce<S, D> {
    pub(super) fn new((side, description): (S, D)) -> InForce<S, D> {
        InForce { current: RwLock::new(Arc::new(side)), description: Mutex::new(description) }
    }

    pub(super) fn current(&self) -> Arc<S> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn description(&self) -> MutexGuard<'_, D> {
        self.description.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts in force what `make` makes, which is told what holds so far. Tells whether it made anything; if it fails, all stays as it
    /// was.
    pub(super) fn change(&self, make: impl FnOnce(&D) -> Result<Option<(S, D)>>) -> Result<bool> {
        let mut description = self.description();
        let Some((side, made)) = make(&description)? else { return Ok(false) };
        *description = made;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(side);
        Ok(true)
    }
}
