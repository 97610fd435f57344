//! How the things of a pool are made, checked and closed: [`Lifecycle`].

use std::pin::Pin;

use crate::client::Client;
use crate::connection::Connection;
use crate::error::Result;

/// How a pool makes, checks and closes what it lends. [`Client`] is one, for plain connections.
///
/// A protocol's own client is pooled by implementing this for whatever describes it:
///
/// ```
/// use wharf::pool::Lifecycle;
/// use wharf::{Client, Connection, Error, Result};
///
/// struct Cache(Client);
///
/// struct Session(Connection);
///
/// impl Lifecycle for Cache {
///     type Item = Session;
///
///     async fn make(&self) -> Result<Session> {
///         let mut conn = self.0.open().await?;
///         conn.send(b"HELLO 2\r\n").await?;
///         conn.recv_exact(&mut [0; 4]).await?;
///         Ok(Session(conn))
///     }
///
///     async fn check(&self, session: &mut Session) -> Result<()> {
///         session.0.send(b"PING\r\n").await?;
///         let mut pong = [0; 6];
///         session.0.recv_exact(&mut pong).await?;
///         if pong == *b"PONG\r\n" { Ok(()) } else { Err(Error::other("no pong")) }
///     }
///
///     fn connection<'a>(&self, session: &'a Session) -> Option<&'a Connection> {
///         Some(&session.0)
///     }
/// }
/// ```
pub trait Lifecycle: 'static {
    /// What is pooled.
    type Item: 'static;

    /// Makes one: connects, greets, whatever has to come before the first use. It ends with the deadline of whoever waits for it.
    ///
    /// # Errors
    /// Whatever keeps it from being made. It is told to whoever waited for this one.
    ///
    /// # Cancellation
    /// The future is dropped when nobody waits for it any more.
    fn make(&self) -> impl Future<Output = Result<Self::Item>>;

    /// Checks one before it is used again, beyond what the pool sees of its [`Lifecycle::connection`]. It has
    /// [`PoolOptions::check_within`](crate::pool::PoolOptions::check_within) to do so. Default: nothing is checked.
    ///
    /// # Errors
    /// If it is not fit for use: it is discarded, and another one takes its place. Nobody is told.
    fn check(&self, item: &mut Self::Item) -> impl Future<Output = Result<()>> {
        let _ = item;
        async { Ok(()) }
    }

    /// Whether [`Lifecycle::check`] does anything; if not, it is never called. Default: `true`.
    fn has_check(&self) -> bool {
        true
    }

    /// The connection within, if there is one: the pool watches it while nobody uses it, and looks at it before it is used again.
    /// Default: none, so that `check` is all there is.
    fn connection<'a>(&self, item: &'a Self::Item) -> Option<&'a Connection> {
        let _ = item;
        None
    }

    /// Closes one that is not used any more. Default: drops it, which closes a connection gracefully.
    fn close(&self, item: Self::Item) {
        drop(item);
    }
}

impl Lifecycle for Client {
    type Item = Connection;

    async fn make(&self) -> Result<Connection> {
        self.open().await
    }

    fn has_check(&self) -> bool {
        false
    }

    fn connection<'a>(&self, conn: &'a Connection) -> Option<&'a Connection> {
        Some(conn)
    }

    fn close(&self, mut conn: Connection) {
        drop(conn.close());
    }
}

/// A [`Lifecycle`] of which only the item's type is known, so that a pool is named by what it lends.
pub(super) trait Erased<C> {
    fn make(&self) -> Pin<Box<dyn Future<Output = Result<C>> + '_>>;
    fn check<'a>(&'a self, item: &'a mut C) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;
    fn has_check(&self) -> bool;
    fn connection<'a>(&self, item: &'a C) -> Option<&'a Connection>;
    fn close(&self, item: C);
}

impl<L: Lifecycle> Erased<L::Item> for L {
    fn make(&self) -> Pin<Box<dyn Future<Output = Result<L::Item>> + '_>> {
        Box::pin(Lifecycle::make(self))
    }

    fn check<'a>(&'a self, item: &'a mut L::Item) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>> {
        Box::pin(Lifecycle::check(self, item))
    }

    fn has_check(&self) -> bool {
        Lifecycle::has_check(self)
    }

    fn connection<'a>(&self, item: &'a L::Item) -> Option<&'a Connection> {
        Lifecycle::connection(self, item)
    }

    fn close(&self, item: L::Item) {
        Lifecycle::close(self, item);
    }
}
