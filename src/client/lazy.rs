//! A connection that is made when it is used: [`Lazy`].

use std::fmt;

use super::Client;
use crate::connection::Connection;
use crate::error::Result;

/// A connection to a client's target that is made at its first use, and again at the first use after it has ended: `connected` asks
/// whether it stands, and connects if it does not.
///
/// A clone has the same target, and no connection.
///
/// ```
/// # let server = wharf::Server::bind("127.0.0.1:0").start(|mut conn: wharf::Connection| async move {
/// #     let mut byte = [0];
/// #     while conn.recv(&mut byte).await? > 0 {}
/// #     Ok(())
/// # })?;
/// # let address = server.local_addr();
/// wharf::run(async move {
///     let mut lazy = wharf::Client::new(address).lazy(); // nothing happens yet
///     lazy.connected().await?.send(b"hello").await?;
///     lazy.disconnect();
///     lazy.connected().await?.send(b"hello again").await
/// })??;
/// # server.stop().wait()?;
/// # Ok::<(), wharf::Error>(())
/// ```
pub struct Lazy {
    client: Client,
    conn: Option<Connection>,
}

impl Lazy {
    pub(super) fn new(client: Client) -> Lazy {
        Lazy { client, conn: None }
    }

    /// The connection if it stands, as [`Lazy::is_connected`] has it, and else a new one.
    ///
    /// Whatever the old one had not read or sent is lost with it. Nothing is repeated: what to say first on a new connection is the
    /// caller's business. That the peer is gone may become known only by what is sent next.
    ///
    /// # Errors
    /// As [`Client::open`].
    ///
    /// # Cancellation
    /// Cancel safe: dropping the future gives the attempt up.
    ///
    /// # Panics
    /// When polled outside a handler and outside [`run`](crate::run).
    pub async fn connected(&mut self) -> Result<&mut Connection> {
        if !self.is_connected() {
            self.disconnect();
        }
        let conn = match self.conn.take() {
            Some(conn) => conn,
            None => self.client.open().await?,
        };
        Ok(self.conn.insert(conn))
    }

    /// Whether there is a connection of which nobody knows that it ends: it is not closed, neither side has finished, and no end of the
    /// peer has come. Looks at what is known, and asks nobody.
    pub fn is_connected(&self) -> bool {
        self.conn.as_ref().is_some_and(|conn| {
            let conn = conn.link().conn.borrow();
            conn.hangup().is_none() && conn.state() == crate::ConnectionState::Open
        })
    }

    /// Gives the connection up, gracefully and in the background, if there is one. The next use makes another. May be repeated.
    pub fn disconnect(&mut self) {
        if let Some(mut conn) = self.conn.take() {
            drop(conn.close());
        }
    }

    /// Takes the connection out, if there is one: from then on it is the caller's, and the next use makes another.
    pub fn take(&mut self) -> Option<Connection> {
        self.conn.take()
    }

    /// What it connects with.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

impl Clone for Lazy {
    fn clone(&self) -> Lazy {
        Lazy::new(self.client.clone())
    }
}

impl fmt::Debug for Lazy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lazy")
            .field("address", &self.client.address)
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}
