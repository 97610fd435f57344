//! How a user's handler, in either style, is put on a connection.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use crate::connection::Connection;
use crate::error::{CloseReason, Deadline, Error, Result, Rule};
use crate::event::{self, Handler, Maker, Places, Queue, QueuedHandler, SocketHandle};
use crate::worker::link::Link;
use crate::worker::member::{Attach, HandlerCount};

/// How a handler in async style is put on a connection.
pub(crate) fn async_style<F, Fut>(handler: F) -> Attach
where
    F: Fn(Connection) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<()>> + 'static,
{
    let handler = Arc::new(handler);
    Arc::new(move |worker, link, count| {
        let (handler, conn) = (handler.clone(), Connection::new(link.clone()));
        let running = Running { link: link.clone(), _count: count };
        worker.tasks.spawn(Box::pin(async move {
            let running = running;
            let mut future = pin!(handler(conn));
            let done = poll_fn(|cx| {
                let polled = future.as_mut().poll(cx);
                running.link.worker.returned(&running.link);
                polled
            });
            if let Err(error) = done.await {
                running.failed(&error);
            }
        }));
    })
}

/// A handler in async style while it runs.
struct Running {
    link: Rc<Link>,
    _count: HandlerCount,
}

impl Running {
    /// The handler returned an error.
    fn failed(&self, error: &Error) {
        let reason = self.link.conn.borrow().reason();
        if error.is_closed() && error.close_reason() == reason {
            // The connection was closed under the handler's hands: that is no failure of the handler.
            return;
        }
        event!(debug, peer = %self.link.peer(), %error, "handler failed");
        let reason = match error.is_timeout() {
            true => CloseReason::Timeout(Deadline::Handler),
            false => CloseReason::HandlerFailed,
        };
        self.link.command(|conn| conn.close_for(reason));
    }
}

impl Drop for Running {
    /// Dropped in a panic of the handler, which the worker catches: the connection is reset.
    fn drop(&mut self) {
        if thread::panicking() {
            let link = self.link.clone();
            self.link.worker.tasks.on_panic(move |payload| link.panicked(payload));
        }
    }
}

/// How a handler in event style is put on a connection.
pub(crate) fn event_style<F, H>(make: F) -> Attach
where
    F: Fn() -> H + Send + Sync + 'static,
    H: Handler,
{
    Arc::new(move |worker, link, _count| {
        let made = catch_unwind(AssertUnwindSafe(&make));
        match made {
            Ok(handler) => worker.attach(link, Box::new(handler)),
            Err(payload) => link.panicked(payload),
        }
    })
}

/// How a handler in event style is put on a connection, to be called on `queue`.
pub(crate) fn queued_style<F, H>(queue: &Queue, make: F) -> Attach
where
    F: Fn(&SocketHandle) -> H + Send + Sync + 'static,
    H: QueuedHandler,
{
    let maker: Maker = Arc::new(move |socket| Box::new(make(socket)));
    let (queue, places) = (queue.clone(), Places::default());
    Arc::new(move |worker, link, count| {
        worker.with_member(|member| match places.take(member.server().connections_max().saturating_mul(2)) {
            Some(place) => event::accept(worker, link, &queue, maker.clone(), (place, count)),
            // As many may stand, and as many may have ended without their handlers knowing.
            None => member.turn_away(link, Rule::Connections),
        });
    })
}
