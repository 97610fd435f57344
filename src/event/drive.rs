//! The task that a socket's connection is on its worker: it connects, then moves bytes between connection and strand.
//!
//! An ordinary user of the async style: what it does not read stays in the connection, whose bound makes the peer wait.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::places::Place;
use super::service::{Hall, Seat};
use super::strand::{Command, Info, Maker, Origin, Rest, Strand};
use super::{Disconnect, Queue};
use crate::conn::Conn;
use crate::connection::{Connection, ReadHalf, WriteHalf};
use crate::error::CloseReason;
use crate::time::Time;
use crate::worker::Worker;
use crate::worker::link::Link;
use crate::worker::member::HandlerCount;

/// Begins to connect, on the worker that `seat` names.
pub(super) fn launch(strand: Arc<Strand>, hall: &Hall, seat: Seat) {
    let driven = Driven { strand, why: Some(Disconnect::Closed(CloseReason::Shutdown)) };
    hall.launch(seat, move |worker, seat| {
        worker.tasks.spawn(Box::pin(async move {
            drive(driven).await;
            drop(seat);
        }));
    });
}

/// Puts a handler on a connection that a server has accepted; it is made on `queue`.
pub(crate) fn accept(
    worker: &Rc<Worker>,
    link: &Rc<Link>,
    queue: &Queue,
    maker: Maker,
    (place, count): (Place, HandlerCount),
) {
    let conn = Connection::new(link.clone());
    let limits = link.conn.borrow().limits().clone();
    let strand = Strand::accepted(queue.clone(), limits, info(&conn), maker, place);
    let mut driven = Driven { strand: strand.clone(), why: Some(Disconnect::Closed(CloseReason::Shutdown)) };
    worker.tasks.spawn(Box::pin(async move {
        strand.open();
        driven.why = Some(Disconnect::Closed(carry(&strand, conn).await));
        drop((driven, count));
    }));
}

fn info(conn: &Connection) -> Info {
    Info {
        peer: Some(conn.peer_addr()),
        local: conn.local_addr(),
        #[cfg(feature = "tls")]
        tls: conn.tls(),
    }
}

/// The strand while there is a task for it, or is to be one. Dropped, it tells of the end: a service that has ended, unless the
/// task knew better.
struct Driven {
    strand: Arc<Strand>,
    why: Option<Disconnect>,
}

impl Drop for Driven {
    fn drop(&mut self) {
        if let Some(why) = self.why.take() {
            self.strand.disconnected(why);
        }
    }
}

async fn drive(mut driven: Driven) {
    let strand = driven.strand.clone();
    let observer = strand.clone();
    let Origin::Client { client, .. } = &strand.origin else { return };
    let opening = client.open().observe(move |step| observer.step(step)).into_future();
    let given_up = |cx: &Context<'_>| {
        strand.register(cx.waker());
        strand.given_up()
    };
    let why = match unless_polled(given_up, opening).await {
        Err(reason) => Disconnect::Closed(reason),
        Ok(Err(error)) => Disconnect::Failed(error),
        Ok(Ok(conn)) => {
            strand.connected(info(&conn));
            Disconnect::Closed(carry(&strand, conn).await)
        }
    };
    driven.why = Some(why);
}

/// Awaits `future`, unless there is a reason to give it up. That is looked at whenever the task is woken.
pub(super) async fn unless<T>(
    mut reason: impl FnMut() -> Option<CloseReason>,
    future: impl Future<Output = T>,
) -> Result<T, CloseReason> {
    unless_polled(|_| reason(), future).await
}

async fn unless_polled<T>(
    mut reason: impl FnMut(&Context<'_>) -> Option<CloseReason>,
    future: impl Future<Output = T>,
) -> Result<T, CloseReason> {
    let mut future = pin!(future);
    poll_fn(|cx| match reason(cx) {
        Some(reason) => Poll::Ready(Err(reason)),
        None => future.as_mut().poll(cx).map(Ok),
    })
    .await
}

/// Serves a connection that stands, until it is closed; returns why it was.
async fn carry(strand: &Arc<Strand>, conn: Connection) -> CloseReason {
    let link = conn.link().clone();
    let mut closed = pin!(conn.closed());
    let mut draining = link.is_admitted.get().then(|| conn.draining());
    let mut is_stopping = false;
    let (mut reader, mut writer) = conn.split();
    let reason = {
        let mut receiving = pin!(receive(strand, &mut reader));
        let mut sending = pin!(send(strand, &link, &mut writer));
        let (mut has_received, mut has_sent) = (false, false);
        let mut message = Message::default();
        poll_fn(|cx| {
            // First of all: what changes behind this wakes the task again.
            strand.register(cx.waker());
            if !is_stopping && strand.is_stopping() {
                is_stopping = true;
                // Behind what was sent, like any close.
                drop(strand.close(Some(CloseReason::Shutdown), None));
            }
            if draining.as_mut().is_some_and(|draining| Pin::new(draining).poll(cx).is_ready()) {
                draining = None;
                if !link.conn.borrow().is_closed() {
                    strand.draining();
                }
            }
            if let Some(after) = strand.take_deadline() {
                let at = after.map(|after| link.worker.clock().after(after));
                link.command(|conn| conn.set_deadline(at));
            }
            if let Some(reason) = strand.take_reset() {
                link.command(|conn| conn.reset(reason));
            }
            // Behind the reset that it comes with: a closed connection has nobody look again.
            if let Some(payload) = strand.take_panic() {
                link.panicked(payload);
            }
            has_received = has_received || receiving.as_mut().poll(cx).is_ready();
            message.look(strand.rest(), &link);
            has_sent = has_sent || sending.as_mut().poll(cx).is_ready();
            closed.as_mut().poll(cx)
        })
        .await
    };
    // What came before the end is told before the end, also where there was no credit for it.
    loop {
        let chunk = link.conn.borrow_mut().take_chunk();
        let Some(chunk) = chunk else { return reason };
        strand.deliver(&chunk);
    }
}

/// The time of a message that has begun and whose rest the peer has to send: it counts only while it is the peer's turn, and not while
/// the queue is.
#[derive(Default)]
struct Message {
    /// Since when the peer is waited for.
    since: Option<Time>,
    /// How long it was before.
    waited: Duration,
}

impl Message {
    fn look(&mut self, rest: Rest, link: &Rc<Link>) {
        let now = link.worker.clock();
        let stop = |since: &mut Option<Time>| {
            let since = since.take()?;
            link.conn.borrow_mut().message_over();
            Some(now.since(since))
        };
        match rest {
            Rest::Nothing => {
                stop(&mut self.since);
                self.waited = Duration::ZERO;
            }
            Rest::Handled => self.waited += stop(&mut self.since).unwrap_or_default(),
            Rest::Awaited(bytes, is_next) => {
                if is_next {
                    stop(&mut self.since);
                    self.waited = Duration::ZERO;
                }
                if self.since.is_none() {
                    self.since = Some(now);
                    let begun = now.before(self.waited);
                    link.command(|conn| conn.await_rest(bytes, begun));
                }
            }
        }
    }
}

/// Delivers what comes, as far as there is credit for it.
async fn receive(strand: &Arc<Strand>, reader: &mut ReadHalf) {
    loop {
        ready(|| strand.has_credit()).await;
        match reader.recv_chunk().await {
            Ok(Some(chunk)) => strand.deliver(&chunk),
            Ok(None) => return strand.peer_ended(),
            // Its close tells why.
            Err(_) => return,
        }
    }
}

/// Does what the strand asks for, in order, until it is to close.
async fn send(strand: &Arc<Strand>, link: &Rc<Link>, writer: &mut WriteHalf) {
    loop {
        let mut is_flushed = true;
        let mut end = None;
        while end.is_none() {
            match strand.next_command() {
                None => break,
                Some(Command::Finish) => link.command(Conn::finish),
                Some(Command::Close(reason)) => end = Some(reason),
                Some(Command::Send(bytes, _)) => match writer.send_owned(bytes).await {
                    Ok(()) => is_flushed = false,
                    Err(error) => strand.refused(&error),
                },
            }
        }
        if !is_flushed {
            strand.flushed(&writer.flush().await);
        }
        match end {
            None => ready(|| strand.has_commands()).await,
            Some(None) => return link.command(Conn::close),
            Some(Some(reason)) => return link.command(|conn| conn.close_for(reason)),
        }
    }
}

/// Waits until `is_ready`, which is looked at whenever the task is woken.
async fn ready(is_ready: impl Fn() -> bool) {
    poll_fn(|_| if is_ready() { Poll::Ready(()) } else { Poll::Pending }).await;
}
