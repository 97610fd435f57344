//! TCP servers and clients that stay up.
//!
//! Wharf is for people who write their own protocol on TCP. It brings what a production service otherwise adds by hand:
//! bounds on every queue, total deadlines, an accept loop that survives, a drain, and a reason for every close.
//!
//! ```no_run
//! use std::time::Duration;
//! use wharf::{Connection, Server};
//!
//! let server = Server::bind("0.0.0.0:7788").start(|mut conn: Connection| async move {
//!     let mut buf = [0; 4];
//!     while conn.recv(&mut buf).within(Duration::from_secs(3)).await? > 0 {
//!         conn.send(b"pong").await?;
//!     }
//!     Ok(()) // a graceful close
//! })?; // bind errors arrive here, not later
//! println!("listening on {}", server.local_addr());
//! # let signal = || {};
//! # signal();
//! server.drain(Duration::from_secs(15)).wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! # The three styles
//!
//! | | Servers | Clients | A connection has |
//! |---|---|---|---|
//! | **Async** | [`Server::start`] | [`Client::connect`], within a handler or [`run`] | a future; it awaits what it does with its [`Connection`] |
//! | **Event** | [`Server::start_events`] | [`event::Service`] | an [`event::Handler`], called when something happens: the engine's own shape, nothing is allocated for a message |
//! | **Blocking** | [`blocking::Listener`] | [`blocking::connect`] | a thread; it makes its system calls itself |
//!
//! Limits, deadlines, errors, TLS and close reasons are the same in all of them. In event style, clients' handlers may also run on a thread
//! or a loop of the program's own ([`event::Socket`]). The [`guide`] has a first program in each style, says which one to choose, and how to move from tokio and from
//! other toolkits.
//!
//! # What there is
//!
//! | For | |
//! |---|---|
//! | Who may come in, and how much of everything | [`Limits`], [`Access`], [`Deadlines`], [`SocketOptions`] |
//! | A running server: look, change, drain, replace | [`ServerHandle`], [`Handover`], [`systemd`] |
//! | Connecting: names, races, proxies | [`Client`], [`Proxy`], [`Connect::observe`], [`Client::lazy`] |
//! | Staying connected, with back-off and a bounded queue | [`reconnect`] |
//! | Connections that are used again | [`pool`] |
//! | Messages instead of bytes | [`framing`] |
//! | Two connections become one | [`relay()`] |
//! | A connection for other threads | [`Remote`], [`blocking::Remote`], [`event::SocketHandle`] |
//! | What went wrong, and why it ended | [`Error`], [`CloseReason`] |
//! | Encryption | [`tls`] |
//! | Tests without a network | [`sim`] |
//!
//! # How data moves
//!
//! ```text
//!   kernel                    worker (one thread)                         handler
//!            +--------------------------------------------------+
//!   recv --> | engine --> Chunk --> conn: inbox, deadlines      | --> received(&[u8])  or  recv(&mut buf)
//!            |                                                  |
//!   send <-- | engine <-- Outgoing <-- conn: outbox, marks      | <-- conn.send(bytes)
//!            |    once per turn, for all dirty connections      |
//!            +--------------------------------------------------+
//! ```
//!
//! With TLS, `conn` is where it is: received bytes are decrypted in the chunk that they came in, sent bytes encrypted in the
//! buffer that goes to the engine.
//!
//! ```text
//!   Chunk --> records opened in place --> inbox, deadlines       outbox <-- records, sealed once per turn <-- conn.send(bytes)
//! ```
//!
//! A connection never leaves its worker, so nothing on this path is locked or atomic. Other threads hold a [`Remote`].
//! A handler on a queue ([`event::Socket`]) is beside the worker: bytes go to its thread, and what it sends comes back by the worker's mailbox.
//!
//! A blocking connection has no worker. The caller's thread makes the calls, with the same core beside it for deadlines, counts and TLS:
//!
//! ```text
//!   kernel                 the caller's own thread
//!   recv --> straight into the caller's buffer     conn: deadlines, counts, end
//!   send <-- straight from the caller's bytes
//! ```
//!
//! # TLS
//!
//! A server gets a [`tls::Acceptor`] ([`Server::tls`], [`Listen::tls`]), a client a [`tls::Connector`] ([`Client::tls`]), and
//! everything else stays as it is: styles, limits, deadlines, closes. The handler begins when the handshake is over, and
//! [`Connection::tls`] tells what came of it. [`Connection::accept_tls`], [`Connection::connect_tls`] and
//! [`Connection::leave_tls`] begin and end TLS in mid-stream. What goes wrong is a [`TlsFault`], in errors and in close reasons.
//!
//! ```no_run
//! # #[cfg(feature = "tls")] {
//! use wharf::tls::{Acceptor, ClientTls, Connector, Identity, ServerTls};
//! use wharf::{Client, Connection, Server};
//!
//! let identity = Identity::from_files("chain.pem", "key.pem")?;
//! let acceptor = Acceptor::new(ServerTls::new(identity))?;
//! let server = Server::bind("0.0.0.0:7789").tls(&acceptor).start(|mut conn: Connection| async move {
//!     conn.send(b"hello").await
//! })?;
//!
//! let connector = Connector::new(ClientTls::new())?; // trusts whom the system trusts
//! let conn = wharf::run(async { Client::new("example.org:7789").tls(&connector).open().await })?;
//! # drop(conn);
//! # server.stop().wait()?;
//! # }
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! # Backends
//!
//! What carries the connections is a [`Backend`]: io_uring where the system allows it, readiness (epoll, kqueue) elsewhere,
//! with the same semantics. [`probe()`] tells what works here and which limits a server meets;
//! [`ServerHandle::backends`] what a server runs on. The environment variable `WHARF_BACKEND` decides for programs that leave
//! the choice open.
//!
//! # Testing your own server
//!
//! [`sim`] runs a whole server and its clients in one thread, on a simulated network with virtual time. All that happens
//! follows from one seed, faults included.
//!
//! # Features
//!
//! | Feature | Default | What it adds |
//! |---|---|---|
//! | `tls` | on | [`tls`], by rustls and aws-lc-rs; needs a C compiler |
//! | `self-signed` | off | [`tls::Identity::self_signed`], for tests and trials; turns `tls` on |
//! | `tokio` | off | tokio's io traits for connections, and its runtime's context on workers: [`tokio`], [`Server::tokio`] |
//! | `futures-io` | off | the io traits of futures-io for connections and their halves |
//! | `hyper` | off | hyper 1.x on connections, with a timer and an executor: [`hyper`] |
//! | `tokio-util` | off | [`framing::Coded`]: any codec of tokio-util on a connection |
//! | `tracing` | off | lifecycle events to the program's `tracing` subscriber, and once why io_uring is not used |
//!
//! [`TlsFault`], [`TlsAlert`] and [`CertificateFault`] are there without `tls` too, so that a match on reasons is the same everywhere.

// What TLS needs of others stays where it belongs when there is none.
#![cfg_attr(not(feature = "tls"), allow(dead_code))]
// What is told of a feature leads nowhere without it.
#![cfg_attr(
    not(all(feature = "hyper", feature = "self-signed", feature = "tokio", feature = "tokio-util")),
    allow(rustdoc::broken_intra_doc_links, rustdoc::private_intra_doc_links)
)]

/// Keeps the README's programs compiling.
#[cfg(all(doctest, feature = "tls"))]
#[doc = include_str!("../README.md")]
struct Readme;

#[macro_use]
mod trace;

mod address;
mod backoff;
pub mod blocking;
mod client;
#[cfg(any(feature = "futures-io", feature = "hyper", feature = "tokio"))]
mod compat;
mod config;
mod conn;
mod connection;
mod endpoint;
mod engine;
mod error;
pub mod event;
pub mod framing;
pub mod guide;
mod network;
mod poll;
pub mod pool;
pub mod probe;
mod proxy;
pub mod reconnect;
mod relay;
mod remote;
mod resolve;
mod runtime;
#[cfg(feature = "tls")]
mod secure;
mod server;
pub mod sim;
mod sockets;
pub mod systemd;
mod time;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(not(feature = "tls"))]
#[path = "no_tls.rs"]
mod tls;
mod tls_fault;
mod worker;

/// What the fuzz targets drive; not part of the API.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    use crate::address::Address;
    use crate::conn::harness::{Step, drive};
    use crate::endpoint::{Endpoint, Host};
    use crate::engine::socket::sock_addr;
    use crate::error::Operation;

    /// Takes a connection core through the steps that `data` spells.
    pub fn connection(data: &[u8]) {
        drive(data.chunks_exact(2).map(|step| Step::from_bytes(step[0], step[1])));
    }

    /// Takes the io_uring engine, on a kernel of data, through the steps that `data` spells.
    #[cfg(target_os = "linux")]
    pub fn uring_driver(data: &[u8]) {
        crate::engine::uring::fuzz(data);
    }

    /// Reads `text` as an address. What is read as a Unix socket's name, the kernel takes for one.
    pub fn address(text: &str) {
        if let Ok(Endpoint { host: Host::Unix(name), .. }) = Endpoint::parse(Operation::Connect, text) {
            assert!(name.path().is_none() || name.to_string() == text, "{name}");
            sock_addr(&Address::Unix(name)).expect("it is neither empty nor too long");
        }
    }

    /// Drives TLS sessions as `data` says.
    #[cfg(feature = "self-signed")]
    pub fn tls(data: &[u8]) {
        crate::tls::harness::drive(data);
    }

    /// Reads `data` as what a client's proxy answers.
    pub fn client_proxy(data: &[u8]) {
        crate::client::check_proxies(data);
    }

    /// Reads `data` as frames, cut anywhere.
    pub fn framing(data: &[u8]) {
        crate::framing::check(data);
    }

    /// Reads `data` as the beginning of a connection that comes through a proxy.
    pub fn proxy(data: &[u8]) {
        crate::proxy::check(data);
    }
}

pub use address::{Address, UnixName};
pub use backoff::Backoff;
pub use client::{Client, Connect, ConnectState, Connecting, Lazy, Proxy};
#[cfg(any(feature = "futures-io", feature = "tokio"))]
pub use compat::Buffered;
#[cfg(feature = "hyper")]
pub use compat::hyper;
#[cfg(feature = "tokio")]
pub use compat::tokio;
pub use config::{
    AcceptRate, Access, Backend, Deadlines, Handover, Limits, OverLimit, ProxyProtocol, ReceiveRate,
    SocketOptions, WhenFull,
};
pub use conn::{ConnectionState, Counts, Hangup};
pub use connection::{
    Closing, Connection, Delivered, Draining, Flush, HangingUp, ReadHalf, Recv, RecvChunk, RecvExact, Send,
    SendOwned, WriteHalf,
};
pub use engine::buffer::Chunk;
pub use error::{Bound, CloseReason, Deadline, Error, ErrorKind, ProxyFault, Result, Rule};
pub use network::Network;
pub use probe::probe;
pub use proxy::Proxied;
pub use relay::{Relay, RelayEnd, Relayed, relay};
pub use remote::Remote;
pub use runtime::{JoinHandle, Late, Sleep, Within, run, run_on, sleep, spawn, within};
#[cfg(feature = "tls")]
pub use secure::{Leaving, Securing};
pub use server::{
    ConnectionInfo, DrainReport, Listen, ListenerInfo, Listing, Phase, Server, ServerEvent, ServerHandle,
    Snapshot, Stats, Whom,
};
pub use tls_fault::{CertificateFault, TlsAlert, TlsFault};
pub use worker::link::ConnectionId;
