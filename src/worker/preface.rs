//! What stands between the accept and the handler: a PROXY header, if the connection comes through a proxy.
//!
//! Received bytes are offered as they are to a handler in event style, whatever the handler's style is, and what is left of
//! them is offered again with more behind it. When the header is whole, exactly its bytes are consumed and the handler
//! begins, with the rest as if that had just come.
//!
//! Nothing was exchanged with a peer that sends no header, a malformed one, or is not to send any: it is reset.

use std::rc::Rc;

use super::link::{Link, drop_guarded};
use super::timer::TimerId;
use super::{Alarm, Worker};
use crate::config::ProxyProtocol;
use crate::error::{CloseReason, Deadline};
use crate::proxy::{self, Proxied};

/// Puts the handler, in either style, on a connection whose preface is over.
pub(crate) type Begin = Box<dyn FnOnce(&Rc<Worker>, &Rc<Link>)>;

/// A header that is awaited.
pub(crate) struct Preface {
    begin: Begin,
    deadline: TimerId,
}

impl Worker {
    /// Has a PROXY header read from a new connection before `begin` puts a handler on it. If none comes, `begin` is dropped.
    pub(crate) fn await_proxy_header(
        self: &Rc<Self>,
        link: &Rc<Link>,
        proxies: &ProxyProtocol,
        begin: Begin,
    ) {
        let at = self.now().after(proxies.within);
        let deadline = self.timers.borrow_mut().insert(at, Alarm::Preface(link.token));
        link.is_event.set(true);
        link.rare().preface.replace(Some(Box::new(Preface { begin, deadline })));
        link.mark_dirty();
    }

    /// Offers received bytes to the preface. Returns how many it has consumed, and whether the handler has begun.
    pub(super) fn read_preface(self: &Rc<Self>, link: &Rc<Link>, bytes: &[u8]) -> (usize, bool) {
        match proxy::read(bytes) {
            Ok(None) => (0, false),
            Ok(Some((header, len))) => {
                let Some(preface) = self.take_preface(link) else { return (bytes.len(), false) };
                let proxied = Proxied::new(link.peer(), header);
                drop(link.rare().proxied.set(Box::new(proxied)));
                event!(debug, peer = %link.peer(), "PROXY header read");
                // A handler in event style says so again.
                link.is_event.set(false);
                (preface.begin)(self, link);
                (len, true)
            }
            Err(fault) => {
                self.drop_preface(link);
                link.command(|conn| conn.reset(CloseReason::Proxy(fault)));
                (bytes.len(), false)
            }
        }
    }

    /// The header's deadline has passed.
    pub(super) fn expire_preface(self: &Rc<Self>, link: &Rc<Link>) {
        self.drop_preface(link);
        link.command(|conn| conn.reset(CloseReason::Timeout(Deadline::ProxyHeader)));
    }

    /// The handler will not begin.
    pub(super) fn drop_preface(&self, link: &Link) {
        drop_guarded(self.take_preface(link));
    }

    fn take_preface(&self, link: &Link) -> Option<Box<Preface>> {
        let preface = link.used_rare()?.preface.take()?;
        self.timers.borrow_mut().cancel(preface.deadline);
        Some(preface)
    }
}
