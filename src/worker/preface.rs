//! What stands between the accept and the handler: a PROXY header, if the connection comes through a proxy, and a TLS handshake
//! (`secure.rs`), each with a deadline of its own.
//!
//! For the header, received bytes are offered as they are to a handler in event style, whatever the handler's style is, and what is left of
//! them is offered again with more behind it. When the header is whole, exactly its bytes are consumed and the handler
//! begins, with the rest as if that had just come.
//!
//! Nothing was exchanged with a peer that sends no header, a malformed one, or is not to send any: it is reset.

use std::rc::Rc;
use std::time::Duration;

use super::handshakes::Place;
use super::link::{Link, drop_guarded};
use super::timer::TimerId;
use super::{Alarm, Worker};
use crate::config::ProxyProtocol;
use crate::error::{CloseReason, Deadline};
use crate::proxy::{self, Proxied};

/// Puts the handler, in either style, on a connection whose preface is over.
pub(crate) type Begin = Box<dyn FnOnce(&Rc<Worker>, &Rc<Link>)>;

/// What is awaited.
pub(crate) struct Preface {
    begin: Option<Begin>,
    timer: TimerId,
    deadline: Deadline,
    /// The place of a TLS handshake among those in progress.
    pub(super) place: Option<Place>,
}

impl Worker {
    /// Has a PROXY header read from a new connection before `begin` puts a handler on it. If none comes, `begin` is dropped.
    pub(crate) fn await_proxy_header(
        self: &Rc<Self>,
        link: &Rc<Link>,
        proxies: &ProxyProtocol,
        begin: Begin,
    ) {
        self.await_preface(link, proxies.within, Deadline::ProxyHeader, Some(begin));
        link.is_event.set(true);
        link.mark_dirty();
    }

    /// Has the connection reset if what is awaited does not come `within` this time. What follows it is `begin`, if anything.
    pub(super) fn await_preface(
        &self,
        link: &Link,
        within: Duration,
        deadline: Deadline,
        begin: Option<Begin>,
    ) {
        let at = self.clock().after(within);
        let timer = self.timers.borrow_mut().insert(at, Alarm::Preface(link.token));
        link.rare().preface.replace(Some(Box::new(Preface { begin, timer, deadline, place: None })));
    }

    /// Offers received bytes to the preface. Returns how many it has consumed, and whether the handler has begun.
    pub(super) fn read_preface(self: &Rc<Self>, link: &Rc<Link>, bytes: &[u8]) -> (usize, bool) {
        match proxy::read(bytes) {
            Ok(None) => (0, false),
            Ok(Some((header, len))) => {
                let Some(begin) = self.take_preface(link).and_then(|preface| preface.begin) else {
                    return (bytes.len(), false);
                };
                let proxied = Proxied::new(link.peer(), header);
                drop(link.rare().proxied.set(Box::new(proxied)));
                event!(debug, peer = %link.peer(), "PROXY header read");
                // A handler in event style says so again.
                link.is_event.set(false);
                begin(self, link);
                (len, true)
            }
            Err(fault) => {
                self.drop_preface(link);
                link.command(|conn| conn.reset(CloseReason::Proxy(fault)));
                (bytes.len(), false)
            }
        }
    }

    /// The deadline has passed.
    pub(super) fn expire_preface(self: &Rc<Self>, link: &Rc<Link>) {
        if let Some(preface) = self.take_preface(link) {
            let reason = CloseReason::Timeout(preface.deadline);
            drop_guarded(preface);
            link.command(|conn| conn.reset(reason));
        }
    }

    /// The TLS handshake is over. Puts the handler on the connection, if that waited for it; says whether it did.
    pub(super) fn begin_secured(self: &Rc<Self>, link: &Rc<Link>) -> bool {
        let begin = self.take_preface(link).and_then(|preface| preface.begin);
        let has_waited = begin.is_some();
        if let Some(begin) = begin {
            begin(self, link);
        }
        has_waited
    }

    /// The handler will not begin.
    pub(super) fn drop_preface(&self, link: &Link) {
        drop_guarded(self.take_preface(link));
    }

    #[cfg(feature = "tls")]
    pub(super) fn awaits_preface(&self, link: &Link) -> bool {
        link.used_rare().is_some_and(|rare| rare.preface.borrow().is_some())
    }

    fn take_preface(&self, link: &Link) -> Option<Box<Preface>> {
        let preface = link.used_rare()?.preface.take()?;
        self.timers.borrow_mut().cancel(preface.timer);
        #[cfg(feature = "tls")]
        if let Some(place) = preface.place {
            self.leave_handshakes(place);
        }
        Some(preface)
    }
}
