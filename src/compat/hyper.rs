//! hyper 1.x on Wharf: its io traits for connections, a [`Timer`] and a [`LocalExecutor`] on the worker.
//!
//! [`Connection`] is `hyper::rt::Read` and `hyper::rt::Write` itself. It stays on its worker, and so do services
//! and bodies: none of them has to be `Send`. As streams, connections are as in [`tokio`](crate::tokio).
//!
//! ```
//! # mod bodies { use std::pin::Pin; use std::task::{Context, Poll}; use hyper::body::{Body, Bytes, Frame};
//! # pub struct Full(pub Option<Bytes>);
//! # impl Body for Full { type Data = Bytes; type Error = std::convert::Infallible;
//! #   fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
//! #     Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes)))) } } }
//! # use bodies::Full;
//! use std::convert::Infallible;
//! use hyper::body::{Bytes, Incoming};
//! use hyper::server::conn::http1;
//! use hyper::service::service_fn;
//! use hyper::{Request, Response};
//! use wharf::{Connection, Error, Server};
//!
//! let server = Server::bind("127.0.0.1:0").workers(1).start(|conn: Connection| async move {
//!     let hello = service_fn(|_: Request<Incoming>| async {
//!         Ok::<_, Infallible>(Response::new(Full(Some(Bytes::from_static(b"hello")))))
//!     });
//!     http1::Builder::new()
//!         .timer(wharf::hyper::Timer)
//!         .serve_connection(conn, hello)
//!         .await
//!         .map_err(Error::other)
//! })?;
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! HTTP/2 has a task for each stream: `http2::Builder::new(wharf::hyper::LocalExecutor)` runs them on the connection's worker.
//! hyper bounds them (`max_concurrent_streams`, 200 by default).
//!
//! While a request is answered hyper goes on reading, to notice a client that leaves. So [`Deadlines::idle`](crate::Deadlines::idle)
//! (60 s on servers) counts then too: set it above the longest answer's time. What bounds slow requests is hyper's own
//! `header_read_timeout`, which needs the timer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::hyper::rt::{Executor, Read, ReadBufCursor, Write};

use crate::connection::{Connection, ReadHalf, WriteHalf};
use crate::runtime::current;
use crate::time::Time;
use crate::worker::tasks::Wakeup;
use crate::worker::timer::TimerId;
use crate::worker::{self, Alarm, Post, Worker};

/// Runs what hyper spawns on the worker of this thread; it need not be `Send`.
///
/// # Panics
/// `execute` panics outside a handler and outside [`run`](crate::run).
#[derive(Copy, Clone, Debug, Default)]
pub struct LocalExecutor;

impl<F> Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        drop(crate::spawn(future));
    }
}

/// hyper's timer on the worker of this thread; in a simulation its time is virtual.
///
/// # Panics
/// All of it panics outside a handler and outside [`run`](crate::run).
#[derive(Copy, Clone, Debug, Default)]
pub struct Timer;

impl ::hyper::rt::Timer for Timer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn ::hyper::rt::Sleep>> {
        let worker = current("wharf::hyper::Timer");
        Box::pin(Sleep { at: worker.clock().after(duration), set: None })
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn ::hyper::rt::Sleep>> {
        Box::pin(Sleep { at: time_of(deadline), set: None })
    }

    fn now(&self) -> Instant {
        let nanos = current("wharf::hyper::Timer").clock().as_nanos();
        epoch().checked_add(Duration::from_nanos(nanos)).unwrap_or_else(epoch)
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn ::hyper::rt::Sleep>>, new_deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<Sleep>() {
            Some(mut sleep) => *sleep = Sleep { at: time_of(new_deadline), set: None },
            None => *sleep = self.sleep_until(new_deadline),
        }
    }
}

/// What the workers' times count from where they are told as an `Instant`. Whatever it is: they come back by the same way.
fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

fn time_of(instant: Instant) -> Time {
    Time::ZERO.after(instant.saturating_duration_since(epoch()))
}

/// A sleep as hyper wants it: `Send`. So it does not hold its worker, but finds it when it is polled.
struct Sleep {
    at: Time,
    set: Option<Set>,
}

/// Where a timer was set, and whom it wakes.
struct Set {
    post: Post,
    timer: TimerId,
    wakeup: Wakeup,
}

impl ::hyper::rt::Sleep for Sleep {}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let worker = current("wharf::hyper::Timer");
        if worker.now() >= self.at {
            return Poll::Ready(());
        }
        let is_set = |set: &Set| set.is_of(&worker) && set.wakeup.is_for(&worker.tasks, cx);
        if !self.set.as_ref().is_some_and(is_set) {
            self.set = None;
            let wakeup = Wakeup::of(&worker.tasks, cx);
            let timer = worker.timers.borrow_mut().insert(self.at, Alarm::Wakeup(wakeup.clone()));
            self.set = Some(Set { post: worker.post.clone(), timer, wakeup });
        }
        Poll::Pending
    }
}

impl Set {
    fn is_of(&self, worker: &Worker) -> bool {
        Arc::ptr_eq(&self.post, &worker.post)
    }
}

impl Drop for Set {
    /// Away from its worker the timer stays, and wakes in vain.
    fn drop(&mut self) {
        worker::with_current(|worker| {
            if self.is_of(worker) {
                worker.timers.borrow_mut().cancel(self.timer);
            }
        });
    }
}

macro_rules! reads {
    ($name:ty) => {
        impl Read for $name {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                mut buf: ReadBufCursor<'_>,
            ) -> Poll<io::Result<()>> {
                super::poll_read(self.link(), cx, buf.remaining(), |bytes| buf.put_slice(bytes))
                    .map_ok(|_| ())
            }
        }
    };
}

macro_rules! writes {
    ($name:ty) => {
        impl Write for $name {
            write_methods!();
        }
    };
}

reads!(Connection);
reads!(ReadHalf);
writes!(Connection);
writes!(WriteHalf);
