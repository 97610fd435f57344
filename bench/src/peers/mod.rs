//! The contenders: one file each, listed here. A peer listens on 127.0.0.1, announces its port, and echoes for ever; a relay has a
//! server behind it do that.
//!
//! All use TCP_NODELAY and a single worker, unless `about` says otherwise, and it names the size of their buffers.

mod bare_epoll;
mod bare_uring;
#[cfg(feature = "compio")]
mod compio;
mod edge;
#[cfg(feature = "glommio")]
mod glommio;
#[cfg(feature = "may")]
mod may;
mod mio;
#[cfg(feature = "monoio")]
mod monoio;
mod plain_uring;
mod relay_haproxy;
mod relay_tokio;
#[cfg(feature = "wharf")]
mod relay_wharf;
#[cfg(feature = "ringline")]
mod ringline;
#[cfg(feature = "smol")]
mod smol;
mod std_blocking;
mod tokio_current;
mod tokio_multi;
mod tokio_per_message;
mod tokio_rustls;
#[cfg(feature = "wharf")]
pub mod wharf_async;
#[cfg(feature = "wharf")]
mod wharf_blocking;
#[cfg(feature = "wharf")]
mod wharf_chunks;
#[cfg(feature = "wharf")]
pub mod wharf_event;
#[cfg(feature = "wharf")]
mod wharf_message;
#[cfg(feature = "wharf")]
mod wharf_spin;
#[cfg(feature = "wharf")]
mod wharf_tls;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};

use anyhow::Result;
use socket2::{Domain, Protocol, Socket, Type};

use crate::tls::{Credentials, Service};

/// One way to write an echo server.
pub struct Peer {
    pub name: &'static str,
    pub about: &'static str,
    pub field: Field,
    pub serve: Serve,
}

/// What a peer's process does; returns only when it fails.
#[derive(Copy, Clone)]
pub enum Serve {
    Plain(fn() -> Result<()>),
    Tls(fn(Service, &Credentials) -> Result<()>),
    /// Passes on to this address.
    Relay(fn(SocketAddr) -> Result<()>),
}

/// Where a peer takes part.
#[derive(Copy, Clone, PartialEq)]
pub enum Field {
    Everywhere,
    /// Only where several messages of [`MESSAGE_SIZE`] are on the way: it answers each by itself.
    SmallMessages,
    /// Only where messages are larger than [`BUFFER_SIZE`].
    Bulk,
    /// Only where there is TLS, and nowhere else.
    Tls,
    /// Only in front of an echo server.
    Relay,
}

pub const PEERS: &[Peer] = &[
    tokio_current::PEER,
    tokio_multi::PEER,
    tokio_per_message::PEER,
    #[cfg(feature = "smol")]
    smol::PEER,
    #[cfg(feature = "may")]
    may::PEER,
    std_blocking::PEER,
    std_blocking::PEER_TIMEOUT,
    mio::PEER,
    bare_epoll::PEER,
    bare_epoll::LARGE,
    #[cfg(feature = "glommio")]
    glommio::PEER,
    #[cfg(feature = "monoio")]
    monoio::PEER,
    #[cfg(feature = "compio")]
    compio::PEER,
    #[cfg(feature = "ringline")]
    ringline::PEER,
    bare_uring::PEER,
    plain_uring::PEER,
    #[cfg(feature = "wharf")]
    wharf_async::PEER,
    #[cfg(feature = "wharf")]
    wharf_async::URING,
    #[cfg(feature = "wharf")]
    wharf_blocking::PEER,
    #[cfg(feature = "wharf")]
    wharf_chunks::PEER,
    #[cfg(feature = "wharf")]
    wharf_chunks::URING,
    #[cfg(feature = "wharf")]
    wharf_event::PEER,
    #[cfg(feature = "wharf")]
    wharf_event::URING,
    #[cfg(feature = "wharf")]
    wharf_message::PEER,
    #[cfg(feature = "wharf")]
    wharf_message::URING,
    #[cfg(feature = "wharf")]
    wharf_spin::PEER,
    #[cfg(feature = "wharf")]
    wharf_spin::URING,
    tokio_rustls::PEER,
    tokio_rustls::MULTI,
    #[cfg(feature = "wharf")]
    wharf_tls::EVENT,
    #[cfg(feature = "wharf")]
    wharf_tls::EVENT_URING,
    #[cfg(feature = "wharf")]
    wharf_tls::CHUNKS,
    #[cfg(feature = "wharf")]
    wharf_tls::CHUNKS_URING,
    #[cfg(feature = "wharf")]
    wharf_tls::ASYNC,
    #[cfg(feature = "wharf")]
    wharf_tls::ASYNC_URING,
    relay_tokio::PEER,
    relay_tokio::LARGE,
    relay_haproxy::PEER,
    relay_haproxy::SPLICE,
    #[cfg(feature = "wharf")]
    relay_wharf::PEER,
    #[cfg(feature = "wharf")]
    relay_wharf::URING,
];

/// The peer that the others are compared with unless told otherwise.
pub const BASE: &Peer = &tokio_current::PEER;
/// The same where each message is answered by itself.
pub const BASE_PER_MESSAGE: &Peer = &tokio_per_message::PEER;
/// The same under TLS.
pub const BASE_TLS: &Peer = &tokio_rustls::PEER;
/// The same of relays.
pub const BASE_RELAY: &Peer = &relay_tokio::PEER;
/// The server that relays have behind them.
pub const RELAYED: &Peer = &bare_epoll::LARGE;

impl Peer {
    /// For each peer to fill in its name and what else it is.
    const fn echo(serve: fn() -> Result<()>) -> Peer {
        Peer {
            name: "",
            about: "",
            field: Field::Everywhere,
            serve: Serve::Plain(serve),
        }
    }

    /// The same for one that does TLS, and more than echo.
    const fn tls(serve: fn(Service, &Credentials) -> Result<()>) -> Peer {
        Peer {
            name: "",
            about: "",
            field: Field::Tls,
            serve: Serve::Tls(serve),
        }
    }

    /// The same for one that passes on what it receives.
    const fn relay(serve: fn(SocketAddr) -> Result<()>) -> Peer {
        Peer {
            name: "",
            about: "",
            field: Field::Relay,
            serve: Serve::Relay(serve),
        }
    }
}

/// The peer called `name`, as `clap` wants it.
pub fn find(name: &str) -> Result<&'static Peer, String> {
    let names: Vec<_> = PEERS.iter().map(|peer| peer.name).collect();
    PEERS
        .iter()
        .find(|peer| peer.name == name)
        .ok_or_else(|| format!("the peers are {}", names.join(", ")))
}

/// Where every peer listens.
pub const ANY_PORT: &str = "127.0.0.1:0";
/// The most that one receive takes.
const BUFFER_SIZE: usize = 16 * 1024;
/// The same, where a peer has a variant for bulk.
const LARGE_BUFFER_SIZE: usize = 64 * 1024;
/// A message, for those who answer each by itself.
pub const MESSAGE_SIZE: usize = 64;
const BACKLOG: i32 = 1024;

/// A listener for peers that bring none, or one with a short backlog. What it accepts inherits its TCP_NODELAY.
fn listen() -> io::Result<TcpListener> {
    let address: SocketAddr = ANY_PORT.parse().expect("a valid address");
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Tells the harness, which reads the first line of our output, where to connect.
pub fn announce(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{address}")?;
    out.flush()
}
