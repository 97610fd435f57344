//! [`relay`]: two connections become one. Bytes are passed on both ways, and it ends as a whole.
//!
//! ```text
//!   a --> chunk --> b      a direction ends when the peer's FIN has been passed on behind its last byte;
//!   a <-- chunk <-- b      then the other one has to go on, or to end
//! ```
//!
//! What is on its way is what the receiving side holds unread, a chunk, and what the sending side has queued: a peer that does
//! not read stops the other one from being received from.

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::config::WhenFull;
use crate::conn::{Conn, Room};
use crate::connection::{Connection, ReadHalf, WriteHalf};
use crate::error::{CloseReason, Error, Result};
use crate::poll;
use crate::runtime::{Sleep, sleep};
use crate::time::Time;
use crate::worker::link::Link;

/// Passes bytes on between two connections, both ways, until both have ended: [`Relay`] with its defaults.
///
/// # Cancellation
/// As [`Relay::run`]: dropping the future resets both connections.
///
/// # Examples
/// A proxy:
///
/// ```no_run
/// use wharf::{Client, Connection, Server};
///
/// let server = Server::bind("127.0.0.1:7000").start(|conn: Connection| async move {
///     let target = Client::connect("127.0.0.1:7001").await?;
///     let relayed = wharf::relay(conn, target).await;
///     println!("{relayed}");
///     Ok(())
/// })?;
/// # server.stop().wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
pub async fn relay(a: Connection, b: Connection) -> Relayed {
    Relay::new().run(a, b).await
}

/// How two connections are relayed.
///
/// * When one peer ends its side (FIN), that is passed on behind its last byte, and the other direction goes on.
/// * What did not end in order is reset on the other side too, so that nobody takes what came for all of it
///   ([`reset_on_failure`](Relay::reset_on_failure)).
/// * A direction that waits for the other side's queue is not received from: memory stays bounded by the limits of both.
///
/// While it runs, the connections' own deadlines for silence ([`Deadlines::idle`](crate::Deadlines::idle),
/// [`first_byte`](crate::Deadlines::first_byte)) rest: a peer that only listens is not silent as long as the other one talks.
/// [`Relay::idle`] takes their place. The others stand: a side that takes nothing for
/// [`Deadlines::write`](crate::Deadlines::write) ends the relay.
///
/// ```no_run
/// use std::time::Duration;
/// use wharf::Relay;
///
/// # async fn example(a: wharf::Connection, b: wharf::Connection) {
/// let relayed = Relay::new().idle(Duration::from_secs(30)).run(a, b).await;
/// # let _ = relayed; }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a description of a relay does nothing until it runs"]
pub struct Relay {
    idle: Option<Duration>,
    half_closed_idle: Option<Duration>,
    half_closed_max: Option<Duration>,
    reset_on_failure: bool,
}

impl Default for Relay {
    fn default() -> Relay {
        Relay {
            idle: Some(Duration::from_secs(5 * 60)),
            half_closed_idle: Some(Duration::from_secs(60)),
            half_closed_max: None,
            reset_on_failure: true,
        }
    }
}

impl Relay {
    /// A relay with default options.
    pub fn new() -> Relay {
        Relay::default()
    }

    /// Ends the relay if no byte has gone through for this long, in either direction. Default: 5 minutes.
    pub fn idle(mut self, after: impl Into<Option<Duration>>) -> Relay {
        self.idle = after.into();
        self
    }

    /// Ends the relay if one direction has ended and no byte of the other one has gone through for this long. A long answer
    /// to a finished request is not cut short by it. Default: 60 seconds.
    pub fn half_closed_idle(mut self, after: impl Into<Option<Duration>>) -> Relay {
        self.half_closed_idle = after.into();
        self
    }

    /// Ends the relay this long after one direction has ended, whether bytes of the other one still go through or not. Default:
    /// none.
    pub fn half_closed_max(mut self, after: impl Into<Option<Duration>>) -> Relay {
        self.half_closed_max = after.into();
        self
    }

    /// Whether both connections are reset if the relay does not end in order; otherwise they are closed, and a peer cannot
    /// tell what was cut short from what was complete. Default: true.
    pub fn reset_on_failure(mut self, reset: bool) -> Relay {
        self.reset_on_failure = reset;
        self
    }

    /// Passes bytes on until both directions have ended, and tells what went through and how it ended.
    ///
    /// When it returns in order, everything has been handed to the kernel.
    ///
    /// # Cancellation
    /// Dropping the future ends both connections out of order: they are reset, or closed if
    /// [`reset_on_failure`](Relay::reset_on_failure) says so.
    ///
    /// # Panics
    /// If the connections belong to two workers, which only two simulated programs have.
    pub async fn run(&self, a: Connection, b: Connection) -> Relayed {
        assert!(Rc::ptr_eq(&a.link().worker, &b.link().worker), "both connections belong to one worker");
        let (mut a_read, mut a_write) = a.split();
        let (mut b_read, mut b_write) = b.split();
        let (there, back) = (Flowed::new(&a_read), Flowed::new(&b_read));
        let mut cut =
            Cut { links: [a_read.link().clone(), b_read.link().clone()], resets: self.reset_on_failure };
        let ended = {
            let mut there_done = pin!(pass(&mut a_read, &mut b_write, &there));
            let mut back_done = pin!(pass(&mut b_read, &mut a_write, &back));
            let mut outcomes = [None, None];
            let mut watch = Watch::new(self, &there, &back);
            poll_fn(|cx| {
                let [first, second] = &mut outcomes;
                drive(first, there_done.as_mut(), cx);
                drive(second, back_done.as_mut(), cx);
                match (&outcomes[0], &outcomes[1]) {
                    (Some(there), Some(back)) => Poll::Ready(judge(there, back)),
                    (there, back) => watch.poll(there.is_some() || back.is_some(), cx),
                }
            })
            .await
        };
        cut.resets &= ended != RelayEnd::InOrder;
        drop(cut);
        Relayed { a_to_b: there.bytes.get(), b_to_a: back.bytes.get(), ended }
    }
}

/// What went through a relay, and how it ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Relayed {
    /// Bytes of the first connection that were passed on to the second.
    pub a_to_b: u64,
    /// Bytes of the second connection that were passed on to the first.
    pub b_to_a: u64,
    /// Why it ended.
    pub ended: RelayEnd,
}

/// How a relay ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RelayEnd {
    /// Both peers ended, and all of their bytes have been passed on.
    InOrder,
    /// Nothing went through for [`Relay::idle`].
    Idle,
    /// One peer had ended, and of the other one nothing came for [`Relay::half_closed_idle`], or it did not end within
    /// [`Relay::half_closed_max`].
    HalfClosed,
    /// The first connection ended for this reason, before all was passed on.
    A(CloseReason),
    /// The second one did.
    B(CloseReason),
}

impl fmt::Display for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes there, {} back: {}", self.a_to_b, self.b_to_a, self.ended)
    }
}

impl fmt::Display for RelayEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RelayEnd::InOrder => f.write_str("ended in order"),
            RelayEnd::Idle => f.write_str("idle deadline passed"),
            RelayEnd::HalfClosed => f.write_str("one side had ended, and the other did not in time"),
            RelayEnd::A(reason) => write!(f, "first side: {reason}"),
            RelayEnd::B(reason) => write!(f, "second side: {reason}"),
        }
    }
}

/// Resets what is left of a relay, unless it ended in order; also of one that is dropped, for its peers would take what came for all of it.
struct Cut {
    links: [Rc<Link>; 2],
    resets: bool,
}

impl Drop for Cut {
    fn drop(&mut self) {
        if self.resets {
            self.links.iter().for_each(|link| link.command(|conn| conn.reset(CloseReason::LocalReset)));
        }
    }
}

/// How a direction ended.
#[derive(Copy, Clone, Debug)]
enum Outcome {
    /// The end was passed on behind the last byte.
    InOrder,
    /// What it is received from has failed.
    Source(CloseReason),
    /// What it is sent to has failed.
    Target(CloseReason),
}

/// How the relay ended whose directions ended so. The first failure of a side is the other direction's as well.
fn judge(there: &Outcome, back: &Outcome) -> RelayEnd {
    match (*there, *back) {
        (Outcome::InOrder, Outcome::InOrder) => RelayEnd::InOrder,
        // What a source tells is where the failure is; a target may have been told of it by the other direction.
        (Outcome::Source(reason), _) => RelayEnd::A(reason),
        (_, Outcome::Source(reason)) => RelayEnd::B(reason),
        (Outcome::Target(reason), _) => RelayEnd::B(reason),
        (_, Outcome::Target(reason)) => RelayEnd::A(reason),
    }
}

/// Polls a direction until it is done.
fn drive(
    outcome: &mut Option<Outcome>,
    direction: Pin<&mut impl Future<Output = Outcome>>,
    cx: &mut Context<'_>,
) {
    if outcome.is_none()
        && let Poll::Ready(done) = direction.poll(cx)
    {
        *outcome = Some(done);
    }
}

/// What went through in one direction, and when.
struct Flowed {
    source: Rc<Link>,
    bytes: Cell<u64>,
    last: Cell<Time>,
}

impl Flowed {
    fn new(source: &ReadHalf) -> Flowed {
        let source = source.link().clone();
        let last = Cell::new(source.worker.clock());
        Flowed { source, bytes: Cell::new(0), last }
    }

    fn add(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes as u64);
        self.touch();
    }

    fn touch(&self) {
        self.last.set(self.source.worker.now());
    }

    /// Bytes that the source has received, and that it was sent: those may leave its queue long after they were passed on.
    fn moved(&self) -> u64 {
        let counts = self.source.conn.borrow().counts();
        counts.received + counts.sent
    }
}

/// Passes on what comes, and then the end.
async fn pass(from: &mut ReadHalf, to: &mut WriteHalf, flowed: &Flowed) -> Outcome {
    // If nothing can be sent any more, there is no use in waiting for what could be.
    let mut closed = to.closed();
    let failed = |error: &Error, link: &Link| {
        error.close_reason().or(link.conn.borrow().reason()).unwrap_or(CloseReason::Local)
    };
    loop {
        // The peer may be silent for as long as it likes: the relay has a deadline of its own.
        let chunk = poll_fn(|cx| match poll::read_patiently(from.link(), cx, Conn::take_chunk) {
            Poll::Pending => Pin::new(&mut closed).poll(cx).map(Err),
            Poll::Ready(received) => Poll::Ready(Ok(received.map(Option::flatten))),
        });
        let mut chunk = match chunk.await {
            Err(reason) => return Outcome::Target(reason),
            Ok(Err(error)) => return Outcome::Source(failed(&error, from.link())),
            Ok(Ok(None)) => {
                flowed.touch();
                return match to.finish().await {
                    Ok(()) => Outcome::InOrder,
                    Err(error) => Outcome::Target(failed(&error, to.link())),
                };
            }
            Ok(Ok(Some(chunk))) => chunk,
        };
        flowed.touch();
        while !chunk.is_empty() {
            match poll_fn(|cx| poll_send(to.link(), &chunk, cx)).await {
                Ok(sent) => {
                    chunk.advance(sent);
                    flowed.add(sent);
                }
                Err(reason) => return Outcome::Target(reason),
            }
        }
    }
}

/// Sends a part of `bytes`, all of them if the queue may ever hold so many; returns how many that were. Waits for room whatever
/// becomes of a handler's messages that find none, unless that ends the connection.
fn poll_send(link: &Rc<Link>, bytes: &[u8], cx: &Context<'_>) -> Poll<Result<usize, CloseReason>> {
    let mut conn = link.conn.borrow_mut();
    let part = if bytes.len() > conn.send_max() { conn.send_high() } else { bytes.len() };
    let room = match conn.when_full() {
        WhenFull::Disconnect => conn.room_or_end(part),
        _ => conn.room(part),
    };
    match room {
        Ok(Room::Yes) => {
            link.send(&mut conn, &bytes[..part]);
            link.sent(&conn);
            Poll::Ready(Ok(part))
        }
        Ok(_) => {
            drop(conn);
            link.rare().writer.register(&link.worker.tasks, cx);
            link.mark_dirty();
            Poll::Pending
        }
        Err(reason) => {
            drop(conn);
            link.mark_dirty();
            Poll::Ready(Err(reason))
        }
    }
}

/// Looks at the deadlines of a relay.
struct Watch<'a> {
    options: &'a Relay,
    there: &'a Flowed,
    back: &'a Flowed,
    /// When one direction had ended.
    half_closed: Option<Time>,
    /// What had moved at the last look.
    moved: u64,
    alarm: Option<Sleep>,
}

impl<'a> Watch<'a> {
    fn new(options: &'a Relay, there: &'a Flowed, back: &'a Flowed) -> Watch<'a> {
        let moved = there.moved() + back.moved();
        Watch { options, there, back, half_closed: None, moved, alarm: None }
    }

    fn poll(&mut self, half_closed: bool, cx: &mut Context<'_>) -> Poll<RelayEnd> {
        if half_closed && self.half_closed.is_none() {
            self.half_closed = Some(self.there.source.worker.now());
            // What counts from now on may be shorter.
            self.alarm = None;
        }
        loop {
            if let Some(alarm) = &mut self.alarm
                && Pin::new(alarm).poll(cx).is_pending()
            {
                return Poll::Pending;
            }
            match self.look() {
                Ok(None) => return Poll::Pending,
                Ok(Some(left)) => self.alarm = Some(sleep(left)),
                Err(end) => return Poll::Ready(end),
            }
        }
    }

    /// How long until it is time to look again, if ever; or what has passed.
    fn look(&mut self) -> Result<Option<Duration>, RelayEnd> {
        let now = self.there.source.worker.clock();
        let moved = self.there.moved() + self.back.moved();
        let last = self.there.last.get().max(self.back.last.get());
        // What left a queue since the last look, nobody knows when.
        let last = if std::mem::replace(&mut self.moved, moved) == moved { last } else { now };
        let idle = self.options.idle.map(|idle| (last.after(idle), RelayEnd::Idle));
        let half_closed = self.half_closed.into_iter().flat_map(|since| {
            let silence = self.options.half_closed_idle.map(|after| last.max(since).after(after));
            let total = self.options.half_closed_max.map(|after| since.after(after));
            silence.into_iter().chain(total).map(|at| (at, RelayEnd::HalfClosed))
        });
        match idle.into_iter().chain(half_closed).min_by_key(|(at, _)| *at) {
            Some((at, end)) if at <= now => Err(end),
            next => Ok(next.map(|(at, _)| at.since(now))),
        }
    }
}
