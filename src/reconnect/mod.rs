//! Staying connected: a [`Session`] outlives its connections. [`Reconnect`] describes it, [`Retry`] says when it tries again.
//!
//! ```text
//!            +-----------------------------------------------------+
//!            v                                                     |
//!   Connecting --> Connected --> Disconnected --> Waiting ---------+
//!       |                             ^  |
//!       +-----------------------------+  +--> Failed      close: --> Closed
//! ```
//!
//! What is sent while there is no connection waits, within a bound, and goes out with the next one. Nothing is sent twice: what
//! the kernel had taken when a connection broke is told ([`SessionState::Disconnected`], [`SessionStats`]), and whether to repeat it only
//! its sender knows.

mod driver;
mod policy;
mod queue;
mod state;

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

pub use policy::{Retry, Wait};
pub use queue::{Sending, SessionSender};
pub use state::{Changes, SessionState, SessionStats};

use self::driver::{Driver, Teller};
use self::queue::Shared;

use crate::client::Client;
use crate::config::WhenFull;
use crate::connection::{Connection, ReadHalf};
use crate::engine::buffer::Chunk;
use crate::error::{Cause, Error, Operation, Result};
use crate::runtime;
use crate::worker::Worker;
use crate::worker::tasks::Waiter;

/// Bytes that a session queues by default.
const QUEUE_MAX: usize = 1024 * 1024;

/// Describes a [`Session`]: whom to stay connected to, when to try again, how much to queue meanwhile.
///
/// ```
/// use wharf::reconnect::{Received, Reconnect};
/// use wharf::{Client, Connection, Server};
/// # let server = Server::bind("127.0.0.1:0").workers(1).start(|mut conn: Connection| async move {
/// #     let mut buf = [0; 64];
/// #     loop {
/// #         let n = conn.recv(&mut buf).await?;
/// #         if n == 0 { return Ok(()) }
/// #         conn.send(&buf[..n]).await?;
/// #     }
/// # })?;
/// # let address = server.local_addr();
///
/// wharf::run(async move {
///     let mut session = Reconnect::new(Client::new(address)).start()?;
///     session.send("hello").await?; // there need not be a connection yet
///     loop {
///         match session.recv().await? {
///             Received::Connected => println!("what comes next is from a new connection"),
///             Received::Bytes(chunk) => {
///                 assert_eq!(&*chunk, b"hello");
///                 break;
///             }
///         }
///     }
///     session.close().await
/// })??;
/// # server.stop().wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
pub struct Reconnect {
    client: Client,
    retry: Retry,
    queue_max: usize,
    when_full: WhenFull,
    label: String,
    greet: Option<Box<dyn Greet>>,
    is_final: Box<IsFinal>,
    observe: Option<Box<Observe>>,
}

type IsFinal = dyn Fn(&Error) -> bool;
type Observe = dyn FnMut(&SessionState);

impl Reconnect {
    /// Stays connected to what `client` connects to.
    ///
    /// [`Limits::when_full`](crate::Limits::when_full) of the client does not count: what a connection has no room for waits in the session's
    /// queue, and [`Reconnect::when_full`] is what becomes of that which has no room there.
    pub fn new(client: Client) -> Reconnect {
        Reconnect {
            client,
            retry: Retry::default(),
            queue_max: QUEUE_MAX,
            when_full: WhenFull::Wait,
            label: String::from("session"),
            greet: None,
            is_final: Box::new(is_final),
            observe: None,
        }
    }

    /// Sets when it tries again and when it gives up. Default: [`Retry::default`].
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Reconnect {
        self.retry = retry;
        self
    }

    /// Sets how many bytes may be queued that no connection has handed to the kernel. Default: 1 MiB.
    #[must_use]
    pub fn queue_max(mut self, bytes: usize) -> Reconnect {
        self.queue_max = bytes;
        self
    }

    /// Sets what becomes of a message for which there is no room: [`WhenFull::Wait`], the default, or [`WhenFull::Refuse`].
    #[must_use]
    pub fn when_full(mut self, when_full: WhenFull) -> Reconnect {
        self.when_full = when_full;
        self
    }

    /// Names the session in its errors. Default: "session".
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Reconnect {
        self.label = label.into();
        self
    }

    /// Has each new connection begin with `greet`, before anything that is queued: a login, a subscription. It counts as a part of the
    /// attempt, with the deadlines of its own operations; its errors are treated as those of a connect.
    ///
    /// ```
    /// # use wharf::Client;
    /// # use wharf::reconnect::Reconnect;
    /// let session = Reconnect::new(Client::new("10.0.0.7:7788")).greet(async |conn| {
    ///     conn.send(b"LOGIN\n").await?;
    ///     conn.recv_exact(&mut [0; 3]).await
    /// });
    /// ```
    #[must_use]
    pub fn greet(mut self, greet: impl AsyncFn(&mut Connection) -> Result<()> + 'static) -> Reconnect {
        self.greet = Some(Box::new(greet));
        self
    }

    /// Sets which errors end the session at once, because trying again cannot help. Default: those of this program's own making
    /// ([`ErrorKind::Caller`](crate::ErrorKind::Caller): a bad address, a bad option, an error of the greeting's own), and a certificate that
    /// was refused.
    #[must_use]
    pub fn final_if(mut self, is_final: impl Fn(&Error) -> bool + 'static) -> Reconnect {
        self.is_final = Box::new(is_final);
        self
    }

    /// Has `observe` told each change of state, in order, and each step of a connect. It runs on the session's worker and must not block;
    /// [`Session::changes`] is for other threads.
    #[must_use]
    pub fn observe(mut self, observe: impl FnMut(&SessionState) + 'static) -> Reconnect {
        self.observe = Some(Box::new(observe));
        self
    }

    /// Starts the session on the current worker. It connects at once.
    ///
    /// # Errors
    /// If an option makes no sense; the error tells its name.
    ///
    /// # Panics
    /// Outside a handler and outside [`run`](crate::run).
    pub fn start(self) -> Result<Session> {
        self.retry.validate()?;
        if self.queue_max == 0 {
            return Err(Error::option("queue_max", "is 0, so nothing could ever be sent"));
        }
        if self.when_full == WhenFull::Disconnect {
            return Err(Error::option(
                "when_full",
                "is `Disconnect`, but a session without a connection has none to end",
            ));
        }
        let worker = runtime::current("a session");
        let waits = self.when_full == WhenFull::Wait;
        let shared = Arc::new(Shared::new(self.label, self.queue_max, waits));
        let local =
            Rc::new(Local { half: Cell::new(None), reader: Waiter::default(), worker: worker.clone() });
        let limits = self.client.limits.clone().when_full(WhenFull::Wait);
        let driver = Driver {
            client: self.client.limits(limits),
            retry: self.retry,
            greet: self.greet,
            is_final: self.is_final,
            teller: Rc::new(Teller::new(shared.clone(), self.observe)),
            shared: shared.clone(),
            local: local.clone(),
        };
        worker.tasks.spawn(Box::pin(driver.run()));
        Ok(Session { sender: SessionSender::new(shared.clone()), shared, local })
    }
}

impl fmt::Debug for Reconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconnect")
            .field("client", &self.client)
            .field("retry", &self.retry)
            .field("queue_max", &self.queue_max)
            .field("when_full", &self.when_full)
            .finish_non_exhaustive()
    }
}

/// Whether an error cannot be mended by trying again.
fn is_final(error: &Error) -> bool {
    let refused = matches!(error.tls_fault(), Some(crate::TlsFault::Certificate(_)));
    // That a connection had ended says nothing about the next.
    refused || (error.kind() == crate::ErrorKind::Caller && !error.is_closed())
}

/// What is done first on each connection.
trait Greet {
    fn greet<'a>(&'a self, conn: &'a mut Connection) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;
}

impl<F: AsyncFn(&mut Connection) -> Result<()>> Greet for F {
    fn greet<'a>(&'a self, conn: &'a mut Connection) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>> {
        Box::pin(self(conn))
    }
}

/// A connection to one target that is made again whenever it ends. Started by [`Reconnect::start`].
///
/// It belongs to its worker; other threads send by a [`SessionSender`].
///
/// # Delivery
/// At most once: what was handed to the kernel is never sent again, for nobody but the peer knows whether it arrived; how much of it was
/// not acknowledged is told with the disconnect. What was only queued is sent on the next connection, in order.
///
/// # On a server
/// A session of a handler's ends with the handler that owns it. One that is kept beyond has to be closed when the server drains, or its
/// connection stands until the drain's deadline.
///
/// # Dropping
/// Dropping a session ends it: the connection is closed gracefully, what is queued is not sent. [`Session::close`] sends it first.
pub struct Session {
    shared: Arc<Shared>,
    sender: SessionSender,
    local: Rc<Local>,
}

/// What came on a session.
#[derive(Debug)]
pub enum Received {
    /// There is a new connection: what follows are its first bytes. A message whose beginning came before will never be complete.
    Connected,
    /// Bytes of the connection.
    Bytes(Chunk),
}

impl Session {
    /// Queues `bytes` as one message, also while there is no connection. While there is no room it waits, or is refused, as
    /// [`Reconnect::when_full`] says.
    ///
    /// `bytes` are owned, because they may wait for a connection: a `Vec<u8>`, a `String`, [`Bytes`], or what is there for as long as the
    /// program: `"ping"`, or `&b"ping"[..]` for bytes.
    ///
    /// # Errors
    /// If the session is closed or has ended; if the message has no room and must not wait, or is larger than
    /// [`Reconnect::queue_max`] ([`ErrorKind::Limit`](crate::ErrorKind::Limit)).
    ///
    /// # Cancellation
    /// Cancel safe: the message is queued whole, when the future completes, or not at all.
    pub fn send(&self, bytes: impl Into<Bytes>) -> Sending {
        self.sender.send(bytes)
    }

    /// Queues `bytes` if there is room; see [`SessionSender::try_send`].
    ///
    /// # Errors
    /// As [`SessionSender::try_send`].
    pub fn try_send(&self, bytes: impl Into<Bytes>) -> Result<()> {
        self.sender.try_send(bytes)
    }

    /// What comes next: bytes, or the word that there is a new connection. Waits through any number of disconnects.
    ///
    /// What a connection had received when it ended can still be read until the next one stands. To wait only so long, there is
    /// [`within`](crate::within): `within(after, session.recv()).await??`.
    ///
    /// # Errors
    /// If the session has ended for good.
    ///
    /// # Cancellation
    /// Cancel safe: nothing that came is lost.
    pub async fn recv(&mut self) -> Result<Received> {
        loop {
            let mut lent = self.next_half().await?;
            if lent.take_news() {
                return Ok(Received::Connected);
            }
            let Some(half) = &mut lent.half else { continue };
            match half.reader.recv_chunk().await {
                Ok(Some(chunk)) => return Ok(Received::Bytes(chunk)),
                // The connection is over; why is for the states to tell.
                Ok(None) | Err(_) => lent.half = None,
            }
        }
    }

    /// The reading side of the connection that there is, or of the next one.
    async fn next_half(&self) -> Result<Lent<'_>> {
        let local = &*self.local;
        poll_fn(|cx| {
            if let Some(half) = local.half.take() {
                return Poll::Ready(Ok(Lent { local, half: Some(half) }));
            }
            if let Some(error) = self.shared.ended() {
                let cause = Cause::Session(error);
                return Poll::Ready(Err(Error::new(Operation::Receive, cause).at(&self.shared.target)));
            }
            local.reader.register(&local.worker.tasks, cx);
            Poll::Pending
        })
        .await
    }

    /// A handle to send by from other threads.
    pub fn sender(&self) -> SessionSender {
        self.sender.clone()
    }

    /// How it stands.
    pub fn state(&self) -> SessionState {
        self.shared.state()
    }

    /// The changes of state from now on, one by one.
    pub fn changes(&self) -> Changes {
        let (changes, ring) = Changes::new();
        self.shared.watch(&ring);
        changes
    }

    /// What it has done so far.
    pub fn stats(&self) -> SessionStats {
        self.shared.stats()
    }

    /// Sends what is queued, on the next connection if there is none, then closes gracefully. Takes nothing more meanwhile.
    ///
    /// It takes as long as it takes for a connection to stand; bound it with [`within`](crate::within), which ends the session when the time
    /// is over.
    ///
    /// # Errors
    /// If the session ends for another reason before everything is handed to the kernel.
    ///
    /// # Cancellation
    /// Dropping the future drops the session.
    pub async fn close(self) -> Result<()> {
        let mut changes = self.changes();
        self.shared.close();
        loop {
            let state = self.state();
            match state {
                SessionState::Closed => return Ok(()),
                SessionState::Failed(error) => {
                    let cause = Cause::Session(error);
                    return Err(Error::new(Operation::Finish, cause).at(&self.shared.target));
                }
                _ => drop(changes.next().await),
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// What a session and its driver share on their worker.
struct Local {
    /// The reading side of the latest connection, unless it is being read from.
    half: Cell<Option<Half>>,
    reader: Waiter,
    worker: Rc<Worker>,
}

struct Half {
    reader: ReadHalf,
    /// Nobody was told yet that this is a new connection.
    is_news: bool,
}

/// A reading side that is being read from.
struct Lent<'a> {
    local: &'a Local,
    half: Option<Half>,
}

impl Lent<'_> {
    fn take_news(&mut self) -> bool {
        self.half.as_mut().is_some_and(|half| std::mem::take(&mut half.is_news))
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        // Unless there is a newer one by now.
        let newer = self.local.half.take();
        self.local.half.set(newer.or(self.half.take()));
    }
}

impl Local {
    /// There is a new connection to read from. What is unread of the one before is given up.
    fn begin(&self, reader: ReadHalf) {
        drop(self.half.replace(Some(Half { reader, is_news: true })));
        self.reader.wake(&self.worker.tasks);
    }

    fn end(&self) {
        self.reader.wake(&self.worker.tasks);
    }
}
