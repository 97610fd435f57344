//! Clients: from an address to a connection, with one deadline for all of it.

mod connect;
mod http_connect;
mod lazy;
mod open;
mod open_blocking;
mod proxy;
mod race;
mod socks5;
mod state;
mod way;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Deadlines, Limits, SocketOptions};
use crate::error::{Error, Result};
#[cfg(feature = "tls")]
use crate::tls::Connector;

pub use connect::{Connect, Connecting};
pub use lazy::Lazy;
pub use proxy::Proxy;
use race::{ATTEMPT_DELAY, ATTEMPT_DELAY_MIN};
pub use state::ConnectState;

/// The whole of a connect by default: name, addresses, handshake.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Whom to connect to, by which way, and within which bounds. Connects as often as asked; a clone has the same target.
///
/// Addresses are `host:port`, `1.2.3.4:port`, `[v6]:port`, `[v6%scope]:port`, `unix:/path` or `unix:@name`, where `unix:@name` is a name in
/// the abstract namespace of Linux (unix(7)). A scope is a number or, on Linux, the name of a network device.
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
    pub(crate) address: String,
    pub(crate) limits: Limits,
    pub(crate) deadlines: Deadlines,
    pub(crate) sockets: SocketOptions,
    pub(crate) within: Duration,
    attempt_delay: Duration,
    source: Option<String>,
    resolver: Option<Resolver>,
    proxy: Option<Proxy>,
    #[cfg(feature = "tls")]
    pub(crate) connector: Option<Connector>,
}

impl Client {
    /// Connects to `address` with default options.
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
            attempt_delay: ATTEMPT_DELAY,
            source: None,
            resolver: None,
            proxy: None,
            #[cfg(feature = "tls")]
            connector: None,
        }
    }

    /// Has its connections begin with TLS. Default: they are plain.
    ///
    /// The server has to be who the address says, by its host name or its IP address, unless
    /// [`ClientTls::server_name`](crate::tls::ClientTls::server_name) says another name; a Unix socket needs that. The handshake is a part of the connect and of its
    /// deadline; [`Connection::tls`](crate::Connection::tls) tells what came of it.
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

    /// Sets the deadline of a connect as a whole: looking up the name, trying its addresses, a proxy's answer, a TLS handshake. Default:
    /// 10 s.
    #[must_use]
    pub fn connect_within(mut self, after: Duration) -> Client {
        self.within = after;
        self
    }

    /// Sets how long the attempt at one address of a name goes unanswered before the next address is tried beside it. Default: 250 ms, as
    /// RFC 8305 recommends; 10 ms are the least.
    ///
    /// Short delays find an address that answers sooner, and begin more connections that nobody needs. With
    /// [`Duration::MAX`] only one address is tried at a time.
    #[must_use]
    pub fn attempt_delay(mut self, delay: Duration) -> Client {
        self.attempt_delay = delay;
        self
    }

    /// Sets the local address of its connections: `1.2.3.4` or `::1` for a port that the system picks, or with a port, as in
    /// `1.2.3.4:5000`, `[::1]:5000`, `0.0.0.0:5000`. Default: the system picks both.
    ///
    /// Only addresses of the same family are tried. With a port of one's own there is one connection to a server at a time: another one
    /// fails ([`AddrNotAvailable`](io::ErrorKind::AddrNotAvailable)), and for a minute after one that this side closed first it may too.
    /// Without one there may be as many to each server as there are ports.
    ///
    /// ```
    /// # let server = wharf::Server::bind("127.0.0.1:0").start(|_: wharf::Connection| async { Ok(()) })?;
    /// # let address = server.local_addr();
    /// let local = wharf::run(async move {
    ///     let conn = wharf::Client::new(address).bind("127.0.0.2").open().await?;
    ///     Ok::<_, wharf::Error>(conn.local_addr())
    /// })??;
    /// assert_eq!(local.and_then(|local| local.ip()), Some([127, 0, 0, 2].into()));
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    #[must_use]
    pub fn bind(mut self, address: impl fmt::Display) -> Client {
        self.source = Some(address.to_string());
        self
    }

    /// Sets who looks names up: from a name to its addresses, the best one first. Default: the system (getaddrinfo(3)).
    ///
    /// It may block: it is called on one of at most eight threads that are there for look-ups alone. A connect that waits for it ends at
    /// its deadline whatever it does, but the thread is not free before it returns. Of what it finds the first 16 are tried. A panic in
    /// it fails the look-up. In a [simulation](crate::sim) it is called on the spot.
    ///
    /// ```
    /// use std::io;
    /// use wharf::Client;
    ///
    /// let client = Client::new("database.internal:5432").resolver(|name| match name {
    ///     "database.internal" => Ok(vec![[10, 0, 0, 7].into(), [10, 0, 0, 8].into()]),
    ///     _ => Err(io::Error::new(io::ErrorKind::NotFound, "not one of ours")),
    /// });
    /// # drop(client);
    /// ```
    #[must_use]
    pub fn resolver(
        mut self,
        resolver: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Client {
        self.resolver = Some(Resolver(Arc::new(resolver)));
        self
    }

    /// Has a proxy connect to the target. Default: none; `None` turns one off. The environment (`ALL_PROXY`) is not looked at.
    ///
    /// The proxy looks the target's name up, or this side ([`Proxy::resolve_here`]); this side looks up the proxy's, and tries its
    /// addresses. TLS is spoken with the target, through the proxy. [`Connection::peer_addr`](crate::Connection::peer_addr) is the proxy.
    ///
    /// ```no_run
    /// use wharf::{Client, Proxy};
    ///
    /// let client = Client::new("example.org:443").proxy(Proxy::parse("socks5h://127.0.0.1:1080")?);
    /// # drop(client);
    /// # Ok::<(), wharf::Error>(())
    /// ```
    #[must_use]
    pub fn proxy(mut self, proxy: impl Into<Option<Proxy>>) -> Client {
        self.proxy = proxy.into();
        self
    }

    /// Connects.
    ///
    /// The addresses of a name race (RFC 8305): the families take turns, the one that was resolved first begins, and the next address
    /// is tried when the one before fails, or has not answered for [`Client::attempt_delay`]. The first with which a connection stands is
    /// taken, and the others are given up. If then the proxy refuses or TLS fails there, or one of them takes more than its share of the
    /// time that is left, that address has failed too, and the race goes on.
    ///
    /// # Errors
    /// If the address cannot be read or resolved ([`Error::is_unresolved`]), an option makes no sense, all addresses refuse, cannot be
    /// reached, or TLS fails there ([`Error::tls_fault`] tells why), or the deadline passes. The error names each address that was
    /// tried; see [`Error::io_kind`] for what it is when they differ.
    ///
    /// # Cancellation
    /// Cancel safe: dropping the future gives all attempts up, and no socket is left.
    ///
    /// # Panics
    /// When polled outside a handler and outside [`run`](crate::run).
    pub fn open(&self) -> Connect {
        Connect::new(self.clone())
    }

    /// Connects in the [blocking style](crate::blocking): waits on the caller's thread, within the same deadline. The same as
    /// [`Client::open`] and [`Connect::blocking`], where an observer can be given.
    ///
    /// Addresses race, and proxies and TLS are gone through, as there.
    ///
    /// # Errors
    /// As [`Client::open`].
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// let client = wharf::Client::new("localhost:7788").connect_within(Duration::from_secs(3));
    /// let mut conn = client.open_blocking()?;
    /// conn.send(b"ping")?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn open_blocking(&self) -> Result<crate::blocking::Connection> {
        self.open().blocking()
    }

    /// Checks the address and the options as every connect does first, with no look-up and no connection: for programs that connect
    /// later, and had better not start with what can never work.
    ///
    /// # Errors
    /// If the address cannot be read, or an option makes no sense; which one it is stands in the error.
    ///
    /// ```
    /// use wharf::Client;
    ///
    /// assert!(Client::new("gateway.example:7788").check().is_ok());
    /// let error = Client::new("gateway.example").check().unwrap_err();
    /// assert_eq!(error.to_string(), "connect to gateway.example: the port is missing; write HOST:PORT");
    /// ```
    pub fn check(&self) -> Result<()> {
        way::Way::of(self).map(drop)
    }

    /// A connection to the same target that is made at its first use, and made again at the first use after it has ended.
    pub fn lazy(&self) -> Lazy {
        Lazy::new(self.clone())
    }

    /// What a connect begins with, if its address and options make sense.
    pub(crate) fn first_step(&self) -> Result<ConnectState> {
        Ok(way::Way::of(self)?.first_step())
    }

    fn validate(&self) -> Result<()> {
        self.limits.validate()?;
        self.deadlines.validate()?;
        self.sockets.validate()?;
        if self.attempt_delay < ATTEMPT_DELAY_MIN {
            return Err(Error::option("attempt_delay", "must be at least 10 ms"));
        }
        Ok(())
    }
}

/// Reads `data` as the answers of proxies; for the fuzz target.
#[cfg(fuzzing)]
pub(crate) fn check_proxies(data: &[u8]) {
    socks5::check(data);
    http_connect::check(data);
}

/// Who looks names up in the place of the system.
#[derive(Clone)]
struct Resolver(Arc<crate::resolve::Lookup>);

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}
