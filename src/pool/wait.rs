//! Getting one from a pool: [`Getting`], and what it holds on the way.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::core::{Grant, Refused, Ticket};
use super::{Discard, Inner, Pooled};
use crate::error::{Error, Result};
use crate::runtime;
use crate::time::Time;
use crate::worker::tasks::Wakeup;

/// The future of [`Pool::get`](super::Pool::get).
#[must_use = "futures do nothing unless awaited"]
pub struct Getting<C: 'static> {
    inner: Rc<Inner<C>>,
    after: Duration,
    /// If there was none at once.
    slow: Option<Slow<C>>,
}

type Slow<C> = Pin<Box<dyn Future<Output = Result<Pooled<C>>>>>;

impl<C: 'static> Getting<C> {
    pub(super) fn new(inner: Rc<Inner<C>>) -> Getting<C> {
        Getting { after: inner.options.within, inner, slow: None }
    }

    /// Replaces the deadline for all of it: waiting, checking, connecting; counted from the first poll.
    pub fn within(mut self, after: Duration) -> Getting<C> {
        self.after = after;
        self
    }
}

impl<C: 'static> Future for Getting<C> {
    type Output = Result<Pooled<C>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Pooled<C>>> {
        let this = &mut *self;
        let (inner, after) = (&this.inner, this.after);
        let slow = match &mut this.slow {
            Some(slow) => slow,
            None => {
                if let Some(lent) = at_once(inner)? {
                    return Poll::Ready(Ok(lent));
                }
                this.slow.insert(Box::pin(in_time(inner.clone(), after)))
            }
        };
        slow.as_mut().poll(cx)
    }
}

impl<C> fmt::Debug for Getting<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Getting").field("after", &self.after).finish_non_exhaustive()
    }
}

/// One that is idle, if nothing has to be waited for.
fn at_once<C: 'static>(inner: &Rc<Inner<C>>) -> Result<Option<Pooled<C>>> {
    let now = inner.at_home()?.worker.now();
    if inner.life.has_check() {
        return Ok(None);
    }
    let taken = inner.core.borrow_mut().take_idle(now, &mut |entry| inner.is_fit(entry));
    let is_less = taken.is_none() || inner.core.borrow().lacks_spare(now);
    if is_less || inner.budget.is_some() {
        inner.settle();
    }
    Ok(taken.map(|idle| {
        inner.count(|stats| stats.reused += 1);
        inner.bury();
        Pooled::new(inner, idle.value.item, idle.expires)
    }))
}

async fn in_time<C: 'static>(inner: Rc<Inner<C>>, after: Duration) -> Result<Pooled<C>> {
    match runtime::within(after, get(&inner)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(inner.starved(after)),
    }
}

async fn get<C: 'static>(inner: &Rc<Inner<C>>) -> Result<Pooled<C>> {
    let mut place = Place::join(inner)?;
    if !place.is_served() {
        inner.count(|stats| stats.waited += 1);
    }
    loop {
        let idle = match place.grant().await? {
            Grant::Idle(idle) => idle,
            Grant::Slot => return make(inner).await,
        };
        // It may have ended since it was handed over.
        let fault = inner.is_fit(&idle.value).err();
        let mut lent = Pooled::new(inner, idle.value.item, idle.expires);
        if let Some(why) = fault {
            lent.discard_for(why);
        } else if passes(inner, &mut lent).await {
            inner.count(|stats| stats.reused += 1);
            return Ok(lent);
        }
        place.rejoin()?;
    }
}

/// Whether the user's own check finds nothing. If it is not over, by whatever cause, the item is not used again.
async fn passes<C: 'static>(inner: &Rc<Inner<C>>, lent: &mut Pooled<C>) -> bool {
    if !inner.life.has_check() {
        return true;
    }
    lent.set_verdict(Some(Discard::Check));
    let checked = runtime::within(inner.options.check_within, inner.life.check(lent)).await;
    let passes = matches!(checked, Ok(Ok(())));
    if passes {
        lent.set_verdict(None);
    }
    passes
}

/// Makes one in a slot that was granted.
pub(super) async fn make<C: 'static>(inner: &Rc<Inner<C>>) -> Result<Pooled<C>> {
    let making = Making { inner, is_over: false };
    match inner.life.make().await {
        Ok(item) => Ok(making.made(item)),
        Err(error) => {
            making.failed(&error);
            Err(error)
        }
    }
}

/// A slot in which one is being made; free again if that is given up.
struct Making<'a, C: 'static> {
    inner: &'a Rc<Inner<C>>,
    is_over: bool,
}

impl<C: 'static> Making<'_, C> {
    fn made(mut self, item: C) -> Pooled<C> {
        self.is_over = true;
        let inner = self.inner;
        inner.core.borrow_mut().made();
        inner.count(|stats| stats.created += 1);
        inner.last_failure.take();
        let worker = runtime::current("a pool");
        let lent = Pooled::new(inner, item, inner.expiry(&worker));
        // While makings failed, one at a time was tried; now others may be made too.
        inner.settle();
        lent
    }

    fn failed(mut self, error: &Error) {
        self.is_over = true;
        let inner = self.inner;
        let worker = runtime::current("a pool");
        let backoff = inner.options.backoff;
        inner.core.borrow_mut().failed(worker.now(), |failures| backoff.delay(failures, worker.random()));
        inner.count(|stats| stats.failed += 1);
        *inner.last_failure.borrow_mut() = Some(error.to_string());
        inner.settle();
    }
}

impl<C: 'static> Drop for Making<'_, C> {
    fn drop(&mut self) {
        if !self.is_over {
            self.inner.core.borrow_mut().abandoned();
            self.inner.settle();
        }
    }
}

/// A place in the queue. Dropped, it passes on what it was handed.
struct Place<C: 'static> {
    inner: Rc<Inner<C>>,
    ticket: Ticket,
    since: Time,
    /// Whether the ticket is in the core.
    stands: bool,
}

impl<C: 'static> Place<C> {
    fn join(inner: &Rc<Inner<C>>) -> Result<Place<C>> {
        let since = inner.at_home()?.worker.now();
        let asked = inner.core.borrow_mut().ask(since);
        let ticket = asked.map_err(|refused| inner.refused(refused))?;
        let place = Place { inner: inner.clone(), ticket, since, stands: true };
        inner.settle();
        if inner.core.borrow().is_too_much(ticket) {
            drop(place);
            return Err(inner.refused(Refused::Full));
        }
        Ok(place)
    }

    fn is_served(&self) -> bool {
        self.inner.core.borrow().is_handed(self.ticket)
    }

    /// Queues again, where it was before.
    fn rejoin(&mut self) -> Result<()> {
        let joined = self.inner.core.borrow_mut().rejoin(self.ticket, self.since);
        joined.map_err(|refused| self.inner.refused(refused))?;
        self.stands = true;
        self.inner.settle();
        Ok(())
    }

    /// What it is handed, when it is.
    async fn grant(&mut self) -> Result<Grant<super::Entry<C>>> {
        poll_fn(|cx| {
            let mut core = self.inner.core.borrow_mut();
            if let Some(grant) = core.take(self.ticket) {
                self.stands = false;
                return Poll::Ready(Ok(grant));
            }
            let is_closed = core.is_closed();
            drop(core);
            if is_closed {
                return Poll::Ready(Err(self.inner.closed()));
            }
            let wakeup = Wakeup::of(&self.inner.at_home()?.worker.tasks, cx);
            self.inner.wakeups.borrow_mut().insert(self.ticket, wakeup);
            Poll::Pending
        })
        .await
    }
}

impl<C: 'static> Drop for Place<C> {
    fn drop(&mut self) {
        self.inner.wakeups.borrow_mut().remove(&self.ticket);
        if self.stands {
            self.inner.core.borrow_mut().give_up(self.ticket);
            self.inner.settle();
        }
    }
}
