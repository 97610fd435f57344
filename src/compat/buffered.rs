//! [`Buffered`]: connections whose received bytes are shown where they lie, for the buffered reading of tokio and of futures-io.
//!
//! Knows nothing of either's traits, which are implemented where those of connections are.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::conn::Conn;
use crate::connection::{Connection, ReadHalf};
use crate::engine::buffer::Chunk;
use crate::poll;
use crate::worker::link::Link;

/// A [`Connection`] or its [`ReadHalf`] that shows what it has received where it lies: `AsyncBufRead` of tokio and of futures-io.
///
/// It stands in the place of their `BufReader`, which copies everything into a buffer of its own: here a received chunk is lent to
/// whoever reads, and while nothing is unread no buffer is held. It reads, and around a whole connection writes, as the connection does.
/// What is larger than a chunk (up to 65 KiB) is shown in pieces.
///
/// There with the features `tokio` and `futures-io`.
///
/// ```
/// # #[cfg(feature = "tokio")] {
/// use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
/// use wharf::{Buffered, Connection, Server};
///
/// let server = Server::bind("127.0.0.1:0").workers(1).start(|conn: Connection| async move {
///     let mut conn = Buffered::new(conn);
///     let mut line = String::new();
///     while conn.read_line(&mut line).await? > 0 {
///         conn.write_all(line.as_bytes()).await?;
///         line.clear();
///     }
///     Ok(())
/// })?;
/// # server.stop().wait()?;
/// # }
/// # Ok::<(), wharf::Error>(())
/// ```
pub struct Buffered<R> {
    inner: R,
    /// What is shown and not consumed: never empty.
    chunk: Option<Chunk>,
}

impl<R> Buffered<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Buffered<R> {
        Buffered { inner, chunk: None }
    }

    /// What was received and shown, and is not consumed. It may be nothing while there is more to be received.
    pub fn unread(&self) -> &[u8] {
        self.chunk.as_deref().unwrap_or_default()
    }

    /// The connection, or the half.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The connection, or the half, to be changed. What is received on it by other means is missing here.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Takes so many of the bytes that are shown out of view, or all of them.
    pub(super) fn advance(&mut self, bytes: usize) {
        let Some(chunk) = &mut self.chunk else { return };
        if bytes < chunk.len() {
            chunk.advance(bytes);
        } else {
            // Its buffer is the next to be leased.
            self.chunk = None;
        }
    }
}

macro_rules! buffers {
    ($name:ty) => {
        impl Buffered<$name> {
            pub(super) fn link(&self) -> &Rc<Link> {
                self.inner.link()
            }

            /// Shows what is unread, waiting until there is something; nothing after the peer's end.
            pub(super) fn poll_show(&mut self, cx: &Context<'_>) -> Poll<io::Result<&[u8]>> {
                if self.chunk.is_none() {
                    let received = ready!(poll::read(self.inner.link(), cx, 0, Conn::take_chunk))?;
                    self.chunk = received.flatten();
                }
                Poll::Ready(Ok(self.unread()))
            }

            /// Moves at most `room` bytes to `put`.
            pub(super) fn poll_take(
                &mut self,
                cx: &Context<'_>,
                room: usize,
                put: impl FnOnce(&[u8]),
            ) -> Poll<io::Result<usize>> {
                if room == 0 {
                    return Poll::Ready(Ok(0));
                }
                let shown = ready!(self.poll_show(cx))?;
                let taken = shown.len().min(room);
                put(&shown[..taken]);
                self.advance(taken);
                Poll::Ready(Ok(taken))
            }

            /// What it was made of: what is not consumed is the first to be received.
            pub fn into_inner(self) -> $name {
                self.link().conn.borrow_mut().unread_bytes(self.unread());
                self.inner
            }
        }
    };
}

buffers!(Connection);
buffers!(ReadHalf);

impl<R: fmt::Debug> fmt::Debug for Buffered<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unread = self.unread().len();
        f.debug_struct("Buffered").field("inner", &self.inner).field("unread", &unread).finish()
    }
}
