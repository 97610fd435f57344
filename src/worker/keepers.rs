//! What lives on a worker beside its connections and tasks: what keeps connections for later, and values that each worker has of
//! its own.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use super::Worker;

/// Something that keeps connections open that nobody uses.
pub(crate) trait Keeper {
    /// The server drains: from now on none is to be kept.
    fn keep_none(&self);
}

#[derive(Default)]
pub(super) struct Keepers {
    keepers: RefCell<Vec<Weak<dyn Keeper>>>,
    locals: RefCell<HashMap<u64, Box<dyn Any>>>,
}

impl Worker {
    /// Has `keeper` told when connections must not be kept any more.
    pub(crate) fn keep(&self, keeper: &Rc<dyn Keeper>) {
        let mut keepers = self.keepers.keepers.borrow_mut();
        keepers.retain(|keeper| keeper.strong_count() > 0);
        keepers.push(Rc::downgrade(keeper));
        drop(keepers);
        let is_draining = self.member.borrow().as_ref().is_some_and(|member| member.is_draining());
        if is_draining {
            keeper.keep_none();
        }
    }

    /// Has nothing kept any more: the worker can end only without connections.
    pub(super) fn keep_none(&self) {
        let keepers: Vec<_> = self.keepers.keepers.borrow().iter().filter_map(Weak::upgrade).collect();
        keepers.iter().for_each(|keeper| keeper.keep_none());
    }

    /// This worker's own value of that number, made by `make` if there is none.
    pub(crate) fn local<T: Clone + 'static>(self: &Rc<Self>, id: u64, make: impl FnOnce() -> T) -> T {
        let found = self.keepers.locals.borrow().get(&id).and_then(|local| local.downcast_ref().cloned());
        found.unwrap_or_else(|| {
            // The user's code, so nothing is borrowed.
            let made = make();
            self.keepers.locals.borrow_mut().insert(id, Box::new(made.clone()));
            made
        })
    }

    /// Drops the value of that number, if there is one.
    pub(crate) fn forget_local(&self, id: u64) {
        let local = self.keepers.locals.borrow_mut().remove(&id);
        drop(local);
    }

    /// Drops all of them; they may hold the worker itself.
    pub(crate) fn forget_locals(&self) {
        let locals = self.keepers.locals.take();
        drop(locals);
    }

    /// A random number. In a simulation it follows from the seed.
    pub(crate) fn random(&self) -> u64 {
        self.engine.borrow().random()
    }
}
