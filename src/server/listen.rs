//! One listener of a server: where it listens, or which socket it was given, and how it is opened.

use std::fmt;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use socket2::SockRef;

use super::handover::Heritage;
use super::passed::{self, Which};
use crate::address::{Address, UnixName};
use crate::config::{ProxyProtocol, SocketOptions};
use crate::endpoint::{Endpoint, Host};
use crate::engine::socket;
use crate::error::{Cause, Error, Operation, Result};
use crate::resolve;
use crate::sockets;
#[cfg(feature = "tls")]
use crate::tls::Acceptor;

/// One listener of a server. Text and addresses turn into one, and so do listening sockets of the standard library.
///
/// ```
/// use wharf::{Connection, Listen, Server, SocketOptions};
///
/// let inherited = std::net::TcpListener::bind("127.0.0.1:0")?;
/// let server = Server::bind("127.0.0.1:0")
///     .listen(inherited)
///     .listen(Listen::at("127.0.0.1:0").sockets(SocketOptions::default().backlog(64)))
///     .start(|_: Connection| async { Ok(()) })?;
/// assert_eq!(server.listeners().len(), 3);
/// # server.stop().wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Listen {
    source: Source,
    sockets: Option<SocketOptions>,
    mode: Option<u32>,
    proxy: Option<ProxyProtocol>,
    #[cfg(feature = "tls")]
    tls: Tls,
}

/// Whether connections begin with TLS.
#[cfg(feature = "tls")]
#[derive(Clone, Debug, Default)]
enum Tls {
    /// As the server says.
    #[default]
    Inherited,
    Plain,
    With(Acceptor),
}

#[derive(Clone, Debug)]
enum Source {
    Text(String),
    Given(Arc<OwnedFd>),
}

/// A listener that is open.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) listener: OwnedFd,
    pub(crate) address: Address,
    pub(crate) file: Option<SocketFile>,
    /// It comes from a predecessor.
    pub(super) taken: bool,
}

impl Listen {
    /// A listener at `address`: `1.2.3.4:port`, `[v6]:port`, `name:port`, `unix:/path` or, in the abstract namespace of
    /// Linux, `unix:@name`.
    ///
    /// Port 0 takes a free port. `[::]` takes IPv4 too. The file of a Unix socket that nobody listens on any more is
    /// replaced; it is removed when the server drains.
    ///
    /// `systemd` stands for all sockets that the service manager passed to this process and nobody has taken yet,
    /// `systemd:NAME` for those of this name (`FileDescriptorName=`), and `fd:N` for the one with this number: several
    /// listeners, if there are several. They are like [given](Listen::given) ones. It is an error if there is none,
    /// if another process is meant, and if one is no listening stream socket.
    pub fn at(address: impl fmt::Display) -> Listen {
        Listen::from_source(Source::Text(address.to_string()))
    }

    /// All sockets that the service manager passed to this process (sd_listen_fds(3)) and that nobody has taken yet; none, if it
    /// passed none. They are free again when the server, its handles and its description are gone.
    ///
    /// The environment is read, and what it says about sockets removed from it, when this, or a server that listens on
    /// `systemd` or `fd:N`, first needs it. That should be before the program has other threads that read it.
    ///
    /// # Errors
    /// If the sockets are meant for another process, or one is no stream socket.
    ///
    /// ```
    /// use wharf::{Connection, Listen, Server};
    ///
    /// let passed = Listen::from_systemd()?;
    /// let mut server = Server::bind("127.0.0.1:0");
    /// for listen in passed {
    ///     server = server.listen(listen);
    /// }
    /// # drop(server);
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn from_systemd() -> Result<Vec<Listen>> {
        let sockets = passed::take(Which::All, "systemd")?;
        Ok(sockets.into_iter().map(|socket| Listen::at("").on(socket)).collect())
    }

    /// The sockets that this stands for, if it stands for those that were passed to the process, and else itself.
    pub(super) fn passed(&self) -> Result<Vec<Listen>> {
        let Source::Text(text) = &self.source else { return Ok(vec![self.clone()]) };
        let Some(which) = Which::parse(text) else { return Ok(vec![self.clone()]) };
        let sockets = passed::take(which?, text)?;
        if sockets.is_empty() {
            return Err(passed::nothing(text));
        }
        Ok(sockets.into_iter().map(|socket| self.clone().on(socket)).collect())
    }

    /// The same on a socket that listens already.
    fn on(mut self, socket: Arc<OwnedFd>) -> Listen {
        self.source = Source::Given(socket);
        self
    }

    /// A socket that listens already: of a service manager, of a parent process, or made by this program.
    ///
    /// It stays open for as long as this description, a server with it, or a handle to that server lives: clients of a server
    /// that has ended wait in it until then. It is duplicated at each start, so the same description can start again. Options of its own are not changed.
    pub fn given(socket: impl Into<OwnedFd>) -> Listen {
        Listen::from_source(Source::Given(Arc::new(socket.into())))
    }

    fn from_source(source: Source) -> Listen {
        Listen {
            source,
            sockets: None,
            mode: None,
            proxy: None,
            #[cfg(feature = "tls")]
            tls: Tls::default(),
        }
    }

    /// Sets the options of this listener's sockets. Default: the server's.
    #[must_use]
    pub fn sockets(mut self, options: SocketOptions) -> Listen {
        self.sockets = Some(options);
        self
    }

    /// Sets the permissions of a Unix socket's file, for example `0o660`. Default: what the process's umask leaves.
    ///
    /// They are set right after the file was made. Where that moment matters, put it in a directory of its own.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Listen {
        self.mode = Some(mode);
        self
    }

    /// Has connections say whom they are for: they come through proxies that speak the PROXY protocol. Default: they do
    /// not.
    ///
    /// Limits per address and [`Access`](crate::Access) then concern whom the proxy speaks for.
    #[must_use]
    pub fn proxy_protocol(mut self, proxies: ProxyProtocol) -> Listen {
        self.proxy = Some(proxies);
        self
    }

    /// Has connections begin with TLS. Default: what [`Server::tls`](crate::Server::tls) says.
    ///
    /// Behind a proxy that speaks the PROXY protocol, TLS follows its header.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, acceptor: &Acceptor) -> Listen {
        self.tls = Tls::With(acceptor.clone());
        self
    }

    /// Has connections be plain, whatever [`Server::tls`](crate::Server::tls) says. A handler can begin TLS in mid-stream.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn plain(mut self) -> Listen {
        self.tls = Tls::Plain;
        self
    }

    /// What its connections begin TLS with, if they do; `inherited` is the server's.
    #[cfg(feature = "tls")]
    pub(crate) fn acceptor<'a>(&'a self, inherited: Option<&'a Acceptor>) -> Option<&'a Acceptor> {
        match &self.tls {
            Tls::Inherited => inherited,
            Tls::Plain => None,
            Tls::With(acceptor) => Some(acceptor),
        }
    }

    pub(crate) fn proxy(&self) -> Option<&ProxyProtocol> {
        self.proxy.as_ref()
    }

    pub(super) fn validate(&self) -> Result<()> {
        self.sockets.as_ref().map_or(Ok(()), SocketOptions::validate)?;
        self.proxy.as_ref().map_or(Ok(()), ProxyProtocol::validate)
    }

    /// Whether nobody but whoever gave it could open it again.
    pub(crate) fn is_given(&self) -> bool {
        matches!(self.source, Source::Given(_))
    }

    /// What was written as its address; for errors.
    pub(crate) fn text(&self) -> String {
        match &self.source {
            Source::Text(text) => text.clone(),
            Source::Given(_) => String::from("a given socket"),
        }
    }

    /// Opens it for the blocking style, which has one socket. What it stands for is told too.
    pub(crate) fn open_alone(&self) -> Result<(Listen, Opened)> {
        self.validate()?;
        match &*self.passed()? {
            [one] => Ok((one.clone(), one.open(&SocketOptions::default(), None, None)?)),
            several => {
                let problem = format!("stands for {} sockets, and one can listen here", several.len());
                Err(Error::new(Operation::Listen, Cause::Address { problem }).at(self.text()))
            }
        }
    }

    /// Opens again what was opened alone and has been closed.
    pub(crate) fn reopen_alone(&self, address: &Address) -> Result<Opened> {
        self.open(&SocketOptions::default(), Some(address), None)
    }

    /// Opens it, at `again` if that is known from an earlier time; or takes it from the server's predecessor, if that has
    /// one there.
    pub(super) fn open(
        &self,
        defaults: &SocketOptions,
        again: Option<&Address>,
        heritage: Option<&mut Heritage>,
    ) -> Result<Opened> {
        let failed = |error| Error::os(Operation::Listen, error).at(self.text());
        let options = self.sockets.as_ref().unwrap_or(defaults);
        let place = self.place(again)?;
        if let Some((socket, address)) = heritage.and_then(|heritage| heritage.take(|at| place.is_at(at))) {
            return Ok(Opened { listener: socket, address, file: None, taken: true });
        }
        let (listener, file) = match place {
            Place::Given(socket) => (given(socket).map_err(failed)?, None),
            Place::Ip(candidates) => (listen_on_first(&candidates, options).map_err(failed)?, None),
            Place::Unix(name) => {
                let socket = sockets::listen_unix(&name, options).map_err(failed)?;
                let file = name.path().map(SocketFile::of).transpose().map_err(failed)?;
                if let (Some(file), Some(mode)) = (&file, self.mode) {
                    file.set_mode(mode).map_err(failed)?;
                }
                (socket, file)
            }
        };
        let address = socket::local_addr(listener.as_fd()).map_err(failed)?;
        Ok(Opened { listener, address, file, taken: false })
    }

    fn place(&self, again: Option<&Address>) -> Result<Place<'_>> {
        let text = match (&self.source, again) {
            (Source::Given(socket), _) => return Ok(Place::Given(socket)),
            (_, Some(Address::Ip(socket))) => return Ok(Place::Ip(vec![*socket])),
            (_, Some(Address::Unix(name))) => return Ok(Place::Unix(name.clone())),
            (Source::Text(text), None) => text,
        };
        let endpoint = Endpoint::parse(Operation::Listen, text)?;
        Ok(match &endpoint.host {
            Host::Name(name) => Place::Ip(
                resolve::resolve(name, endpoint.port)
                    .map_err(|cause| Error::new(Operation::Listen, cause).at(text))?,
            ),
            Host::Unix(name) => Place::Unix(name.clone()),
            Host::Ip(_) | Host::Scoped(_) => Place::Ip(endpoint.literal().into_iter().collect()),
        })
    }
}

/// Where a listener is to be.
enum Place<'a> {
    /// Where it is already.
    Given(&'a OwnedFd),
    /// At the first of these that can be had.
    Ip(Vec<SocketAddr>),
    Unix(UnixName),
}

impl Place<'_> {
    /// Whether somebody else's listener at `address` is there.
    fn is_at(&self, address: &Address) -> bool {
        match (self, address) {
            (Place::Ip(candidates), _) => candidates.iter().any(|each| Address::canonical(*each) == *address),
            // Without its file nobody could reach it.
            (Place::Unix(wanted), Address::Unix(name)) => {
                wanted == name && name.path().is_none_or(sockets::is_socket)
            }
            _ => false,
        }
    }
}

/// The file of a Unix socket that we listen on. Dropped, it is removed, unless it has become somebody else's.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device, inode and time of its making.
    identity: (u64, u64, i64, i64),
}

impl SocketFile {
    pub(super) fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }

    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        std::fs::set_permissions(&self.path, Permissions::from_mode(mode))
    }

    /// Leaves the file to whoever listens on it next.
    pub(super) fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Whoever comes next replaces one that cannot be removed.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64, i64, i64)> {
    let file = std::fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino(), file.mtime(), file.mtime_nsec()))
}

impl From<&str> for Listen {
    fn from(address: &str) -> Listen {
        Listen::at(address)
    }
}

impl From<String> for Listen {
    fn from(address: String) -> Listen {
        Listen::at(address)
    }
}

impl From<SocketAddr> for Listen {
    fn from(address: SocketAddr) -> Listen {
        Listen::at(address)
    }
}

impl From<Address> for Listen {
    /// At an address that was told: of another listener, or of a connection.
    fn from(address: Address) -> Listen {
        Listen::at(address)
    }
}

impl From<std::net::TcpListener> for Listen {
    fn from(listener: std::net::TcpListener) -> Listen {
        Listen::given(listener)
    }
}

impl From<UnixListener> for Listen {
    fn from(listener: UnixListener) -> Listen {
        Listen::given(listener)
    }
}

fn listen_on_first(candidates: &[SocketAddr], options: &SocketOptions) -> io::Result<OwnedFd> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in candidates {
        match sockets::listen(*address, options) {
            Ok(listener) => return Ok(listener.into()),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// A descriptor of our own for a socket that listens already.
fn given(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let listener = socket.try_clone()?;
    let options = SockRef::from(&listener);
    if !options.is_listener()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the given socket does not listen"));
    }
    options.set_nonblocking(true)?;
    Ok(listener)
}
