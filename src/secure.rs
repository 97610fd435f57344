//! Async style, TLS in mid-stream: beginning it on a connection that stands, and ending it.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::connection::Connection;
use crate::error::{Cause, Error, Operation, Result};
use crate::runtime::{Late, Within};
use crate::tls::{Acceptor, Connector, Failure, Session};
use crate::worker::link::Link;
use crate::worker::secure::failed;

impl Connection {
    /// Begins TLS in mid-stream, as the server (STARTTLS): behind what was sent, and in front of what is unread.
    ///
    /// What came before the peer could know of TLS is thus taken for TLS, and refused: nobody can slip plain commands in that
    /// look protected later. The handshake begins with the call and has the acceptor's deadline
    /// ([`ServerTls::handshake_within`](crate::tls::ServerTls::handshake_within)), which resets the connection. It takes no place
    /// among [`ServerTls::handshakes_max`](crate::tls::ServerTls::handshakes_max). Until it is over, sends wait.
    ///
    /// # Errors
    /// If this side has finished, if there is TLS already, or if the handshake fails or is late, which also ends the connection;
    /// [`Error::tls_fault`] tells why it failed.
    ///
    /// # Cancellation
    /// The handshake goes on when the future is dropped; [`Connection::tls`] tells when it is over.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn serve(mut conn: wharf::Connection, acceptor: wharf::tls::Acceptor) -> wharf::Result<()> {
    /// conn.send(b"220 go ahead\r\n").await?;
    /// conn.accept_tls(&acceptor).await?;
    /// conn.send(b"250 nobody else hears this\r\n").await
    /// # }
    /// ```
    pub fn accept_tls(&mut self, acceptor: &Acceptor) -> Securing<'_> {
        let link = self.link();
        let begun = link.worker.accept_tls(link, acceptor);
        Securing::new(link, begun)
    }

    /// Begins TLS in mid-stream, as the client, with a server that has to be `host`: a DNS name, which the server is also told
    /// (SNI), or an address. A name that the connector has, by
    /// [`ClientTls::server_name`](crate::tls::ClientTls::server_name), goes before it.
    ///
    /// What is unread is taken for TLS, as with [`Connection::accept_tls`]: read the server's answer to the end before, and no further.
    /// The handshake has no deadline of its own; [`within`](Securing::within) sets one.
    ///
    /// # Errors
    /// As [`Connection::accept_tls`]; and if `host` is neither a name nor an address and the connector has none either, which
    /// leaves the connection as it was.
    ///
    /// # Cancellation
    /// As [`Connection::accept_tls`].
    ///
    /// # Examples
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn ask(mut conn: wharf::Connection, connector: wharf::tls::Connector) -> wharf::Result<()> {
    /// conn.send(b"STARTTLS\r\n").await?;
    /// let mut answer = [0; 14];
    /// conn.recv_exact(&mut answer).await?; // "220 go ahead\r\n"
    /// conn.connect_tls(&connector, "mail.example.org").within(Duration::from_secs(5)).await
    /// # }
    /// ```
    pub fn connect_tls(&mut self, connector: &Connector, host: &str) -> Securing<'_> {
        let begun = self.begin(Session::connect(connector, Some(host)));
        Securing::new(self.link(), begun)
    }

    /// Ends TLS and not the connection: close_notify follows what was sent, and when the peer has said it too, bytes are plain.
    ///
    /// What comes before the peer's close_notify is read afterwards, in front of what is plain. If it may be more than
    /// [`Limits::receive_buffer`](crate::Limits::receive_buffer) holds, it has to be read first: dropping the future and calling again
    /// does no harm. Until the peer has said close_notify nothing can be sent.
    ///
    /// The protocol has to say that TLS ends here: a peer that ends TLS by itself ends the stream. Without TLS nothing happens.
    ///
    /// The peer's close_notify has no deadline of its own; [`within`](Leaving::within) sets one.
    ///
    /// # Errors
    /// If the connection ends before.
    ///
    /// # Cancellation
    /// TLS ends all the same.
    pub fn leave_tls(&mut self) -> Leaving<'_> {
        self.link().command(crate::conn::Conn::leave_tls);
        Leaving { link: self.link() }
    }

    /// Shakes hands as a client does when it connects.
    pub(crate) async fn handshake(&mut self, session: Result<Session, Failure>) -> Result<(), Cause> {
        let begun = self.begin(session);
        Securing::new(self.link(), begun).await.map_err(Error::into_cause)
    }

    fn begin(&self, session: Result<Session, Failure>) -> Result<()> {
        let session = session.map_err(|failure| failed(self.link(), &failure))?;
        self.link().worker.secure(self.link(), session)
    }
}

/// The future of [`Connection::accept_tls`] and [`Connection::connect_tls`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Securing<'a> {
    link: &'a Rc<Link>,
    begun: Result<()>,
}

impl<'a> Securing<'a> {
    fn new(link: &'a Rc<Link>, begun: Result<()>) -> Securing<'a> {
        // A client speaks first; and what is unread is TLS already.
        link.worker.unseal(link);
        Securing { link, begun }
    }

    /// Ends the wait with an error if TLS does not stand `after` this long. The handshake goes on; who gives it up resets the
    /// connection.
    pub fn within(self, after: Duration) -> Within<Self> {
        Within::new(self, after)
    }
}

impl Late for Securing<'_> {
    type Value = ();

    fn result(output: Result<()>) -> Result<()> {
        output
    }

    fn late(&self, after: Duration) -> Error {
        Error::new(Operation::Secure, Cause::TimedOut { after }).at(self.link.peer())
    }
}

impl Future for Securing<'_> {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        std::mem::replace(&mut self.begun, Ok(()))?;
        let conn = self.link.conn.borrow();
        if let Some(failure) = conn.tls_failure() {
            return Poll::Ready(Err(failed(self.link, failure)));
        }
        if let Some(reason) = conn.reason() {
            let error = Error::new(Operation::Secure, Cause::Closed(reason)).at(self.link.peer());
            return Poll::Ready(Err(error));
        }
        if !conn.is_handshaking() {
            return Poll::Ready(Ok(()));
        }
        self.link.rare().writer.register(&self.link.worker.tasks, cx);
        Poll::Pending
    }
}

/// The future of [`Connection::leave_tls`].
#[must_use = "futures do nothing unless awaited"]
pub struct Leaving<'a> {
    link: &'a Rc<Link>,
}

impl Leaving<'_> {
    /// Ends the wait with an error if the peer has not said close_notify `after` this long. This side has said it all the same.
    pub fn within(self, after: Duration) -> Within<Self> {
        Within::new(self, after)
    }
}

impl Late for Leaving<'_> {
    type Value = ();

    fn result(output: Result<()>) -> Result<()> {
        output
    }

    fn late(&self, after: Duration) -> Error {
        Error::new(Operation::Secure, Cause::TimedOut { after }).at(self.link.peer())
    }
}

impl Future for Leaving<'_> {
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let conn = self.link.conn.borrow();
        if !conn.is_sealed() {
            return Poll::Ready(Ok(()));
        }
        if let Some(reason) = conn.reason() {
            let error = Error::new(Operation::Secure, Cause::Closed(reason)).at(self.link.peer());
            return Poll::Ready(Err(error));
        }
        self.link.rare().writer.register(&self.link.worker.tasks, cx);
        Poll::Pending
    }
}

impl fmt::Debug for Leaving<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaving").field("peer", &self.link.peer()).finish_non_exhaustive()
    }
}
