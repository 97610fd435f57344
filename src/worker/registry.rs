//! What a worker tells of its server's connections, and whom it sends away.

use std::rc::Rc;

use super::Worker;
use super::link::Link;
use crate::error::CloseReason;
use crate::server::{ConnectionInfo, Whom};

impl Worker {
    /// The server's connections that are this worker's.
    pub(super) fn list(&self) -> Vec<ConnectionInfo> {
        self.admitted().map(|link| self.describe(&link)).collect()
    }

    /// Closes those who are meant.
    pub(super) fn disconnect(&self, whom: Whom) {
        let now = self.now();
        for link in self.admitted().filter(|link| whom.is(link.id(), &link.peer())) {
            link.command(|conn| conn.end(CloseReason::Disconnected, now));
        }
    }

    fn admitted(&self) -> impl Iterator<Item = Rc<Link>> {
        self.slots.all().into_iter().filter(|link| link.is_admitted.get())
    }

    fn describe(&self, link: &Link) -> ConnectionInfo {
        let conn = link.conn.borrow();
        ConnectionInfo {
            id: link.id(),
            peer: link.peer(),
            listener: link.listener(),
            age: self.now().since(link.opened),
            state: conn.state(),
            counts: conn.counts(),
            queued: conn.pending(),
            unread: conn.unread(),
            label: link.used_rare().and_then(|rare| rare.label.borrow().clone()),
        }
    }
}
