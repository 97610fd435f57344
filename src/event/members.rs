//! The sockets of one queue, so that all of them learn of its end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::strand::Strand;

/// Who is to be told when a queue ends. Keeps nobody.
#[derive(Default)]
pub(super) struct Members {
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    has_ended: bool,
    next: u64,
    strands: HashMap<u64, Weak<Strand>>,
}

/// A socket's entry in the list of its queue, until this is dropped.
pub(super) struct Membership {
    members: Arc<Members>,
    id: u64,
}

impl Members {
    /// Enters `strand`; nothing if the queue has ended.
    pub(super) fn join(self: &Arc<Self>, strand: &Arc<Strand>) -> Option<Membership> {
        let mut list = self.lock();
        if list.has_ended {
            return None;
        }
        let id = list.next;
        list.next += 1;
        list.strands.insert(id, Arc::downgrade(strand));
        Some(Membership { members: self.clone(), id })
    }

    /// The queue has ended: so have the handlers of all its sockets, whether or not there was something for them.
    pub(super) fn end(&self) {
        let strands = {
            let mut list = self.lock();
            list.has_ended = true;
            std::mem::take(&mut list.strands)
        };
        // Not under the lock: whoever leaves takes it.
        for strand in strands.into_values().filter_map(|strand| strand.upgrade()) {
            strand.abandon();
        }
    }

    /// Nothing that may panic happens under this lock.
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.members.lock().strands.remove(&self.id);
    }
}
