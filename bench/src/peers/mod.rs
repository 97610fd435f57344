//! The contenders: one file each, listed here. A peer listens on 127.0.0.1, announces its port, and echoes for ever.
//!
//! All use TCP_NODELAY, and those that bring a buffer bring 16 KiB.

mod bare_epoll;
mod tokio_current;
mod tokio_multi;
#[cfg(feature = "wharf")]
mod wharf_async;
#[cfg(feature = "wharf")]
mod wharf_chunks;
#[cfg(feature = "wharf")]
mod wharf_event;

use std::io::{self, Write};
use std::net::SocketAddr;

use anyhow::Result;

/// One way to write an echo server.
pub struct Peer {
    pub name: &'static str,
    pub about: &'static str,
    /// Returns only when it fails.
    pub serve: fn() -> Result<()>,
}

pub const PEERS: &[Peer] = &[
    tokio_current::PEER,
    tokio_multi::PEER,
    #[cfg(feature = "wharf")]
    wharf_async::PEER,
    #[cfg(feature = "wharf")]
    wharf_chunks::PEER,
    #[cfg(feature = "wharf")]
    wharf_event::PEER,
    bare_epoll::PEER,
];

/// The peer that the others are compared with unless told otherwise.
pub const BASE: &str = tokio_current::PEER.name;

/// The peer called `name`, as `clap` wants it.
pub fn find(name: &str) -> Result<&'static Peer, String> {
    let names: Vec<_> = PEERS.iter().map(|peer| peer.name).collect();
    PEERS
        .iter()
        .find(|peer| peer.name == name)
        .ok_or_else(|| format!("the peers are {}", names.join(", ")))
}

/// Where every peer listens.
const ANY_PORT: &str = "127.0.0.1:0";
/// The most that one receive takes.
const BUFFER_SIZE: usize = 16 * 1024;

/// Tells the harness, which reads the first line of our output, where to connect.
fn announce(address: SocketAddr) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{address}")?;
    out.flush()
}
