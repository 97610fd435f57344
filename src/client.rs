//! Clients: from an address to a connection, with one deadline for all of it.

use std::fmt;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::address::Address;
use crate::config::{Deadlines, Limits, SocketOptions};
use crate::conn::{Conn, Profile};
use crate::connection::Connection;
use crate::endpoint::{Endpoint, Host};
use crate::error::{Cause, CloseReason, Error, Operation, Result};
use crate::resolve;
use crate::runtime;
#[cfg(feature = "tls")]
use crate::tls::{Connector, Session};
use crate::worker::Worker;

/// The whole of a connect by default: name, addresses, handshake.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Between two tries to connect to a Unix socket whose backlog is full.
const FULL_RETRY: Duration = Duration::from_millis(5);

/// Whom to connect to, and within which bounds. Connects as often as asked; a clone has the same target.
///
/// ```no_run
/// use std::time::Duration;
///
/// wharf::run(async {
///     let mut conn = wharf::Client::connect("localhost:7788").within(Duration::from_secs(3)).await?;
///     conn.send(b"ping").await?;
///     conn.finish().await
/// })??;
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    address: String,
    limits: Limits,
    deadlines: Deadlines,
    sockets: SocketOptions,
    within: Duration,
    #[cfg(feature = "tls")]
    connector: Option<Connector>,
}

impl Client {
    /// Connects to `address` (`host:port`, `1.2.3.4:port`, `[v6]:port`, `unix:/path`, `unix:@name`) with default options.
    ///
    /// `unix:@name` is a name in the abstract namespace of Linux (unix(7)).
    ///
    /// # Errors
    /// See [`Client::open`].
    pub fn connect(address: impl fmt::Display) -> Connect {
        Client::new(address).open()
    }

    /// Describes a client of `address`. Nothing happens until it connects.
    pub fn new(address: impl fmt::Display) -> Client {
        Client {
            address: address.to_string(),
            limits: Limits::default(),
            deadlines: Deadlines::for_clients(),
            sockets: SocketOptions::default(),
            within: CONNECT_WITHIN,
            #[cfg(feature = "tls")]
            connector: None,
        }
    }

    /// Has its connections begin with TLS. Default: they are plain.
    ///
    /// The server has to be who the address says, by its host name or its IP address, unless
    /// [`ClientTls::server_name`](crate::tls::ClientTls::server_name) says another name; a Unix socket needs that. The handshake is a part of the connect and of its
    /// deadline; [`Connection::tls`] tells what came of it.
    ///
    /// ```no_run
    /// use wharf::tls::{ClientTls, Connector};
    ///
    /// let connector = Connector::new(ClientTls::new())?; // trusts whom the system trusts
    /// wharf::run(async {
    ///     let conn = wharf::Client::new("example.org:443").tls(&connector).open().await?;
    ///     println!("{:?}", conn.tls());
    ///     Ok::<(), wharf::Error>(())
    /// })??;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, connector: &Connector) -> Client {
        self.connector = Some(connector.clone());
        self
    }

    /// Sets the bounds of its connections.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Client {
        self.limits = limits;
        self
    }

    /// Sets the deadlines of its connections. Default: [`Deadlines::for_clients`].
    #[must_use]
    pub fn deadlines(mut self, deadlines: Deadlines) -> Client {
        self.deadlines = deadlines;
        self
    }

    /// Sets the options of its sockets.
    #[must_use]
    pub fn sockets(mut self, options: SocketOptions) -> Client {
        self.sockets = options;
        self
    }

    /// Sets the deadline of a connect as a whole: looking up the name, and trying its addresses, with a TLS handshake if there is
    /// to be one. Default: 10 s.
    #[must_use]
    pub fn connect_within(mut self, after: Duration) -> Client {
        self.within = after;
        self
    }

    /// Connects. The addresses of a name are tried in turn, each with an equal share of the time that is left; one at which TLS
    /// fails is given up like one that refuses.
    ///
    /// # Errors
    /// If the address cannot be read or resolved, an option makes no sense, the last address that was tried refuses or
    /// cannot be reached or TLS fails there ([`Error::tls_fault`] tells why), or the deadline passes.
    ///
    /// # Cancellation
    /// Cancel safe: dropping the future gives the attempt up, and no socket is left.
    ///
    /// # Panics
    /// When polled outside a handler and outside [`run`](crate::run).
    pub fn open(&self) -> Connect {
        Connect { client: self.clone() }
    }

    /// Connects, and tells how far it is.
    pub(crate) async fn open_telling(&self, mut tell: impl FnMut(Step)) -> Result<Connection> {
        let after = self.within;
        runtime::within(after, open(self, &mut tell))
            .await
            .map_err(|_| Error::new(Operation::Connect, Cause::TimedOut { after }).at(&self.address))?
    }

    /// Whom it connects to, if its options make sense.
    pub(crate) fn endpoint(&self) -> Result<Endpoint> {
        self.limits.validate()?;
        self.deadlines.validate()?;
        self.sockets.validate()?;
        Endpoint::parse(Operation::Connect, &self.address)
    }

    /// The bounds of its connections.
    pub(crate) fn bounds(&self) -> &Limits {
        &self.limits
    }

    /// The address as it was told.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}

/// How far a connect is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Resolving,
    Connecting,
    Handshaking,
}

/// The future of [`Client::connect`] and [`Client::open`].
#[must_use = "futures do nothing unless awaited"]
pub struct Connect {
    client: Client,
}

impl Connect {
    /// Replaces the deadline of the connect as a whole.
    pub fn within(mut self, after: Duration) -> Connect {
        self.client.within = after;
        self
    }
}

impl IntoFuture for Connect {
    type Output = Result<Connection>;
    type IntoFuture = Connecting;

    fn into_future(self) -> Connecting {
        let client = self.client;
        Connecting { future: Box::pin(async move { client.open_telling(|_| ()).await }) }
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").field("address", &self.client.address).finish_non_exhaustive()
    }
}

/// A connect under way.
#[must_use = "futures do nothing unless awaited"]
pub struct Connecting {
    future: Pin<Box<dyn Future<Output = Result<Connection>>>>,
}

impl Future for Connecting {
    type Output = Result<Connection>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Connection>> {
        self.future.as_mut().poll(cx)
    }
}

impl fmt::Debug for Connecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connecting")
    }
}

async fn open(client: &Client, tell: &mut dyn FnMut(Step)) -> Result<Connection> {
    let endpoint = client.endpoint()?;
    let worker = runtime::current("a connect");
    let began = worker.now();
    if matches!(endpoint.host, Host::Name(_)) {
        tell(Step::Resolving);
    }
    let candidates = candidates(&worker, &endpoint)
        .await
        .map_err(|cause| Error::new(Operation::Connect, cause).at(&client.address))?;
    let profile = worker.profile(&client.limits, &client.deadlines);
    let mut failure = Error::new(Operation::Connect, Cause::Misuse("the name has no addresses"));
    for (tried, peer) in candidates.iter().enumerate() {
        let left = client.within.saturating_sub(worker.now().since(began));
        let share = left / u32::try_from(candidates.len() - tried).unwrap_or(u32::MAX);
        tell(Step::Connecting);
        let attempt = async {
            let conn = attempt(&worker, peer, &profile, &client.sockets).await?;
            secure(client, &endpoint, conn, tell).await
        };
        failure = match runtime::within(share, attempt).await {
            Ok(Ok(conn)) => return Ok(conn),
            Ok(Err(cause)) => Error::new(Operation::Connect, cause),
            Err(_) => Error::new(Operation::Connect, Cause::TimedOut { after: share }),
        };
        failure = match endpoint.host {
            Host::Name(_) => failure.at(format_args!("{} ({peer})", client.address)),
            _ => failure.at(peer),
        };
    }
    Err(failure)
}

async fn candidates(worker: &Rc<Worker>, endpoint: &Endpoint) -> Result<Vec<Address>, Cause> {
    let name = match &endpoint.host {
        Host::Unix(name) => return Ok(vec![Address::Unix(name.clone())]),
        Host::Ip(_) | Host::Scoped(_) => {
            return Ok(endpoint.literal().into_iter().map(Address::Ip).collect());
        }
        Host::Name(name) => name,
    };
    let simulated = worker.engine.borrow().resolve(name);
    match simulated {
        None => Ok(resolve::lookup(name, endpoint.port).await?.into_iter().map(Address::Ip).collect()),
        Some(found) => {
            let at_port = |ip| Address::Ip(SocketAddr::new(ip, endpoint.port));
            let addresses: Vec<_> = found.into_iter().map(at_port).collect();
            if addresses.is_empty() {
                let problem = format!("cannot resolve {name}: name or service not known");
                return Err(Cause::NotFound { problem });
            }
            Ok(addresses)
        }
    }
}

/// Has TLS stand on a connection, if the client wants that.
#[cfg(feature = "tls")]
async fn secure(
    client: &Client,
    endpoint: &Endpoint,
    mut conn: Connection,
    tell: &mut dyn FnMut(Step),
) -> Result<Connection, Cause> {
    if let Some(connector) = &client.connector {
        tell(Step::Handshaking);
        let host = endpoint.server_name();
        conn.handshake(Session::connect(connector, host.as_deref())).await?;
    }
    Ok(conn)
}

#[cfg(not(feature = "tls"))]
async fn secure(
    _: &Client,
    _: &Endpoint,
    conn: Connection,
    _: &mut dyn FnMut(Step),
) -> Result<Connection, Cause> {
    Ok(conn)
}

/// Connects to one address. Dropped before it is done, it takes the socket with it.
async fn attempt(
    worker: &Rc<Worker>,
    peer: &Address,
    profile: &Rc<Profile>,
    options: &SocketOptions,
) -> Result<Connection, Cause> {
    loop {
        match attempt_once(worker, peer, profile, options).await {
            // A full backlog, which over TCP makes a client wait; a Unix socket says so instead (connect(2), EAGAIN).
            Err(Cause::Os(error)) if error.kind() == ErrorKind::WouldBlock => {
                runtime::sleep(FULL_RETRY).await;
            }
            other => return other,
        }
    }
}

async fn attempt_once(
    worker: &Rc<Worker>,
    peer: &Address,
    profile: &Rc<Profile>,
    options: &SocketOptions,
) -> Result<Connection, Cause> {
    let link = worker.connect(peer, profile, options).map_err(Cause::Os)?;
    // Dropping the connection closes the link, also when this future is dropped.
    let conn = Connection::new(link.clone());
    poll_fn(|cx| {
        if link.conn.borrow().is_connecting() {
            link.rare().writer.register(&worker.tasks, cx);
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
    if let Some(reason) = link.conn.borrow().reason() {
        return Err(refusal(reason));
    }
    if worker.engine.borrow().local_addr(link.token).is_ok_and(|local| local == *peer) {
        // The kernel may pick the port that is connected to as the local one, and the two are then one socket.
        link.command(|conn: &mut Conn| conn.reset(CloseReason::LocalReset));
        return Err(refusal(CloseReason::Network(ErrorKind::ConnectionRefused)));
    }
    Ok(conn)
}

fn refusal(reason: CloseReason) -> Cause {
    match reason {
        CloseReason::Network(kind) => Cause::Os(kind.into()),
        CloseReason::PeerReset => Cause::Os(ErrorKind::ConnectionReset.into()),
        reason => Cause::Closed(reason),
    }
}
