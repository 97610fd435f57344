//! The blocking style: plain blocking sockets, for programs that have a thread for each connection.
//!
//! The same connections as everywhere in Wharf, with the same limits, deadlines, errors, TLS and reasons for their ends, but without a
//! worker: each operation makes its system call on the caller's own thread and returns when it is done. A message costs one call to
//! receive it and one to send it, as with [`std::net`], and nothing is allocated for it.
//!
//! ```
//! use wharf::blocking::{self, Connection, Listener};
//!
//! let server = Listener::bind("127.0.0.1:0")?.serve(|mut conn: Connection| {
//!     let mut buf = [0; 512];
//!     loop {
//!         match conn.recv(&mut buf)? {
//!             0 => return Ok(()), // a graceful close
//!             n => conn.send(&buf[..n])?,
//!         }
//!     }
//! })?;
//!
//! let mut conn = blocking::connect(server.local_addr())?;
//! conn.send(b"ping")?;
//! let mut pong = [0; 4];
//! conn.recv_exact(&mut pong)?;
//! # drop(conn);
//! server.drain(std::time::Duration::from_secs(5)).wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! # Deadlines
//!
//! A connection's [`Deadlines`](crate::Deadlines) are looked at whenever it is used and while an operation waits; between two
//! operations nobody looks. [`Connection::within`] gives what is done through it one deadline of its own, a total one.
//!
//! # Which style
//!
//! This one is for tools, for clients in programs that are not async, and for servers whose handlers compute or block. Its
//! connections take a thread each, so a server has a bound for those ([`Listener::threads`]). For thousands of connections there
//! is [`Server`](crate::Server).

mod alert;
mod connection;
mod door;
mod halves;
mod line;
mod linger;
mod listener;
mod office;
mod places;
mod pool;
mod preface;
mod remote;
mod served;
mod serving;
mod visit;

use std::fmt;

use crate::client::Client;
use crate::error::Result;

pub use connection::{Connection, Within};
pub use halves::{ReadHalf, WriteHalf};
pub(crate) use line::Line;
pub use listener::Listener;
pub use remote::Remote;
pub use serving::ServerHandle;

/// Connects to `address` (`host:port`, `1.2.3.4:port`, `[v6]:port`, `unix:/path`, `unix:@name`) with default options;
/// [`Client::open_blocking`] is for others.
///
/// # Errors
/// See [`Client::open`].
pub fn connect(address: impl fmt::Display) -> Result<Connection> {
    Client::new(address).open_blocking()
}
