//! One listener of a server: where it listens, or which socket it was given, and how it is opened.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use crate::address::Address;
use crate::config::SocketOptions;
use crate::endpoint::{Endpoint, Host};
use crate::engine::Listener;
use crate::error::{Error, Operation, Result};
use crate::resolve;
use crate::sockets;

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
}

#[derive(Clone, Debug)]
enum Source {
    Text(String),
    Given(Arc<OwnedFd>),
}

/// A listener that is open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) listener: Listener,
    pub(super) address: Address,
}

impl Listen {
    /// A listener at `address`: `1.2.3.4:port`, `[v6]:port` or `name:port`.
    ///
    /// Port 0 takes a free port. `[::]` takes IPv4 too.
    pub fn at(address: impl fmt::Display) -> Listen {
        Listen { source: Source::Text(address.to_string()), sockets: None }
    }

    /// A socket that listens already: of a service manager, of a parent process, or made by this program.
    ///
    /// It is duplicated at each start, so the same description can start again. Options of its own are not changed.
    pub fn given(socket: impl Into<OwnedFd>) -> Listen {
        Listen { source: Source::Given(Arc::new(socket.into())), sockets: None }
    }

    /// Sets the options of this listener's sockets. Default: the server's.
    #[must_use]
    pub fn sockets(mut self, options: SocketOptions) -> Listen {
        self.sockets = Some(options);
        self
    }

    pub(super) fn validate(&self) -> Result<()> {
        self.sockets.as_ref().map_or(Ok(()), SocketOptions::validate)
    }

    /// Whether nobody but whoever gave it could open it again.
    pub(super) fn is_given(&self) -> bool {
        matches!(self.source, Source::Given(_))
    }

    /// What was written as its address; for errors.
    pub(crate) fn text(&self) -> String {
        match &self.source {
            Source::Text(text) => text.clone(),
            Source::Given(_) => String::from("a given socket"),
        }
    }

    /// Opens it, at `address` if that is known from an earlier time.
    pub(super) fn open(&self, defaults: &SocketOptions, again: Option<&Address>) -> Result<Opened> {
        let failed = |error| Error::os(Operation::Listen, error).at(self.text());
        let options = self.sockets.as_ref().unwrap_or(defaults);
        let listener = match (&self.source, again.and_then(Address::socket)) {
            (Source::Given(socket), _) => given(socket).map_err(failed)?,
            (Source::Text(_), Some(address)) => sockets::listen(address, options).map_err(failed)?,
            (Source::Text(text), None) => listen_on_first(&candidates(text)?, options).map_err(failed)?,
        };
        let address = Address::from(listener.local_addr().map_err(failed)?);
        let listener = Listener::Os(mio::net::TcpListener::from_std(listener));
        Ok(Opened { listener, address })
    }
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

fn candidates(text: &str) -> Result<Vec<SocketAddr>> {
    let endpoint = Endpoint::parse(Operation::Listen, text)?;
    match &endpoint.host {
        Host::Name(name) => resolve::resolve(name, endpoint.port)
            .map_err(|cause| Error::new(Operation::Listen, cause).at(text)),
        _ => Ok(endpoint.literal().into_iter().collect()),
    }
}

fn listen_on_first(candidates: &[SocketAddr], options: &SocketOptions) -> io::Result<std::net::TcpListener> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in candidates {
        match sockets::listen(*address, options) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// A socket of our own for the same listener.
fn given(socket: &OwnedFd) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::from(socket.try_clone()?);
    listener.set_nonblocking(true)?;
    Ok(listener)
}
