//! Codecs of tokio-util on a connection: [`Coded`].

use std::fmt;
use std::io;

use bytes::BytesMut;
use tokio_util::codec::{Decoder, Encoder};

use super::framed::SendFrame;
use super::{Envelope, Fault};
use crate::connection::Connection;
use crate::error::Operation;

/// A [`Connection`] that speaks by a codec of tokio-util: any [`Decoder`] and [`Encoder`]. No runtime of tokio is needed.
///
/// ```
/// use tokio_util::codec::LinesCodec;
/// use wharf::framing::Coded;
/// use wharf::{Client, Connection, Error, Server};
///
/// let server = Server::bind("127.0.0.1:0").workers(1).start(|conn: Connection| async move {
///     let mut lines = Coded::new(conn, LinesCodec::new_with_max_length(1000));
///     while let Some(line) = lines.recv().await.map_err(Error::other)? {
///         lines.send(line.to_uppercase()).await.map_err(Error::other)?;
///     }
///     Ok(())
/// })?;
/// # let address = server.local_addr();
/// # let answer = wharf::run(async move {
/// #     let mut lines = Coded::new(Client::connect(address).await?, LinesCodec::new());
/// #     lines.send("hello").await.map_err(Error::other)?;
/// #     lines.recv().await.map_err(Error::other)
/// # })??;
/// # assert_eq!(answer.as_deref(), Some("HELLO"));
/// # server.stop().wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
pub struct Coded<C> {
    conn: Connection,
    codec: C,
    /// What came and was not decoded.
    unread: BytesMut,
    /// What was encoded and is not queued.
    encoded: BytesMut,
    unread_max: usize,
    /// It was looked at, and nothing has come since.
    is_stale: bool,
    ended: bool,
}

/// What is kept undecoded at most, unless it is changed.
const UNREAD_MAX: usize = 8 * 1024 * 1024;

impl<C> Coded<C> {
    /// Reads and writes by `codec` on `conn`.
    pub fn new(conn: Connection, codec: C) -> Coded<C> {
        let (unread, encoded) = (BytesMut::new(), BytesMut::new());
        Coded { conn, codec, unread, encoded, unread_max: UNREAD_MAX, is_stale: true, ended: false }
    }

    /// Sets how many bytes are kept of a message that the codec has not decoded, whatever its own bounds are; one read (65 KiB)
    /// may overshoot it. Default: 8 MiB.
    #[must_use]
    pub fn unread_max(mut self, bytes: usize) -> Coded<C> {
        self.unread_max = bytes;
        self
    }

    /// The connection.
    pub fn get_ref(&self) -> &Connection {
        &self.conn
    }

    /// The connection, to be changed.
    pub fn get_mut(&mut self) -> &mut Connection {
        &mut self.conn
    }

    /// The codec, to be changed.
    pub fn codec_mut(&mut self) -> &mut C {
        &mut self.codec
    }

    /// The connection as it is behind the last message: what was not decoded is the first to be received.
    pub fn into_inner(self) -> Connection {
        self.conn.link().conn.borrow_mut().unread_bytes(&self.unread);
        self.conn
    }

    /// Receives what the codec decodes next; `None` when the peer has ended and nothing is left.
    ///
    /// # Errors
    /// Those of the codec; and those of the connection, which come as an [`io::Error`] with a [`wharf::Error`](crate::Error) inside. What
    /// the codec makes of a peer that ends in mid-message is its own matter.
    ///
    /// # Cancellation
    /// Cancel safe: what has come is kept.
    pub async fn recv(&mut self) -> Result<Option<C::Item>, C::Error>
    where
        C: Decoder,
    {
        loop {
            if self.ended {
                return self.codec.decode_eof(&mut self.unread);
            }
            if !self.is_stale {
                if let Some(item) = self.codec.decode(&mut self.unread)? {
                    return Ok(Some(item));
                }
                self.is_stale = true;
            }
            if self.unread.len() > self.unread_max {
                let fault = Fault::too_large(self.unread.len(), self.unread_max, "unread_max");
                let error = fault.error(Operation::Receive).at(self.conn.peer_addr());
                return Err(io::Error::from(error).into());
            }
            match self.conn.recv_chunk().await.map_err(io::Error::from)? {
                Some(chunk) => {
                    self.unread.extend_from_slice(&chunk);
                    self.is_stale = false;
                }
                None => self.ended = true,
            }
        }
    }

    /// Encodes and sends `item` as one message.
    ///
    /// # Errors
    /// Those of the codec; and those of the connection, as [`Connection::send`] has them, as an [`io::Error`].
    ///
    /// # Cancellation
    /// Cancel safe: all of it is queued, or nothing. But a message that is larger than
    /// [`Limits::send_max`](crate::Limits::send_max) is queued in parts; a call that is dropped after the first of them resets
    /// the connection, for the peer could not tell what follows from the rest of the message.
    pub async fn send<I>(&mut self, item: I) -> Result<(), <C as Encoder<I>>::Error>
    where
        C: Encoder<I>,
    {
        self.encoded.clear();
        self.codec.encode(item, &mut self.encoded)?;
        let message = self.encoded.split().freeze();
        // A codec has put around the message what goes around it.
        let sending = SendFrame::owned(self.conn.link(), Envelope::trailer(&[]), message);
        Ok(sending.await.map_err(io::Error::from)?)
    }
}

impl<C> fmt::Debug for Coded<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coded").field("peer", &self.conn.peer_addr()).finish_non_exhaustive()
    }
}
