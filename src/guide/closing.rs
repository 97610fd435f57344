//! How connections end, who learns why, and how a server does.
//!
//! # Three ends
//!
//! | | What happens | For |
//! |---|---|---|
//! | `finish()` | what is queued leaves, then FIN; reading goes on | "that was my request" |
//! | `close()` | the same, then what still comes is thrown away until the peer ends too, for `linger` (2 s) at most | "that was all" |
//! | `reset()` | RST, with whatever is queued | a peer that is not worth a word |
//!
//! A plain `close(2)` with unread input sends RST, and the reply before it may never be read. That is why `close` lingers.
//!
//! A handler closes its connection by what it returns, and a dropped connection is closed as well:
//!
//! | | Graceful | Reset |
//! |---|---|---|
//! | Async handler | `Ok`, and `Err`, which is told as [`CloseReason::HandlerFailed`](crate::CloseReason::HandlerFailed) | a panic; `conn.reset()` |
//! | Event handler | [`Flow::Close`](crate::event::Flow::Close) | a panic; [`Flow::Reset`](crate::event::Flow::Reset) |
//! | Blocking handler | as async | a panic; `conn.reset()` |
//!
//! Each end can be had later (`close_after`, `reset_after`), and from another thread ([`Remote`](crate::Remote)).
//!
//! # One reason
//!
//! Every connection ends with exactly one [`CloseReason`](crate::CloseReason): the first cause that made its end certain.
//!
//! ```
//! use wharf::{Client, CloseReason, Connection, Server};
//!
//! let server = Server::bind("127.0.0.1:0").start(|mut conn: Connection| async move {
//!     let mut request = [0; 3];
//!     conn.recv_exact(&mut request).await?;
//!     conn.send(b"answer").await
//! })?;
//!
//! let address = server.local_addr();
//! wharf::run(async {
//!     let mut conn = Client::connect(address).await?;
//!     conn.send(b"ask").await?;
//!     conn.finish().await?;
//!     let mut answer = Vec::new();
//!     while let Some(chunk) = conn.recv_chunk().await? {
//!         answer.extend_from_slice(&chunk);
//!     }
//!     assert_eq!(answer, b"answer");
//!     assert_eq!(conn.close().await, CloseReason::Local); // this side ended first
//!     Ok::<(), wharf::Error>(())
//! })??;
//!
//! server.drain(std::time::Duration::from_secs(3)).wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! Whether all of it arrived is a question of its own. [`flush`](crate::Connection::flush) waits for this system's kernel,
//! [`delivered`](crate::Connection::delivered) for the peer's, [`unacked`](crate::Connection::unacked) tells how much is on its way; what was thrown
//! away is counted ([`Counts::unsent`](crate::Counts::unsent)). That the peer's program has read it, only its answer can tell.
//!
//! # What an error says
//!
//! An [`Error`](crate::Error) names the operation, the address and the cause. Ask it, and do not read its text:
//! [`is_timeout`](crate::Error::is_timeout), [`is_ended`](crate::Error::is_ended) (the peer ended in mid-message),
//! [`is_closed`](crate::Error::is_closed), [`is_refused`](crate::Error::is_refused), [`close_reason`](crate::Error::close_reason), [`kind`](crate::Error::kind) (who
//! can do something about it).
//!
//! # How a server ends
//!
//! | | New clients | Those who are in |
//! |---|---|---|
//! | [`suspend`](crate::ServerHandle::suspend) | none, until `resume` | stay |
//! | [`drain(d)`](crate::ServerHandle::drain) | none | are told, and have `d` to end; then they are reset |
//! | [`stop`](crate::ServerHandle::stop) | none | are reset |
//!
//! A server of the blocking style has the same on [its handle](crate::blocking::ServerHandle), and both can send single connections away:
//! [`disconnect`](crate::ServerHandle::disconnect).
//!
//! [`wait`](crate::ServerHandle::wait) returns when all is over, and tells what happened: who finished in time, who was reset, how many bytes
//! were lost. Handlers hear of a drain by [`Connection::draining`](crate::Connection::draining),
//! [`Handler::draining`](crate::event::Handler::draining), and in blocking style by [`ready`](crate::blocking::Connection::ready) and
//! [`is_draining`](crate::blocking::Connection::is_draining):
//!
//! ```
//! use std::time::Duration;
//! use wharf::blocking::{self, Connection, Listener};
//!
//! let server = Listener::bind("127.0.0.1:0")?.serve(|mut conn: Connection| {
//!     let mut request = [0; 4];
//!     while conn.ready()? { // false: the server drains, and this is a good place to stop
//!         if conn.recv(&mut request)? == 0 {
//!             return Ok(());
//!         }
//!         conn.send(b"done")?;
//!     }
//!     conn.send(b"good bye")
//! })?;
//!
//! let mut conn = blocking::connect(server.local_addr())?;
//! conn.send(b"work")?;
//! conn.recv_exact(&mut [0; 4])?;
//! server.drain(Duration::from_secs(5));
//! let mut last = [0; 8];
//! conn.recv_exact(&mut last)?;
//! assert_eq!(&last, b"good bye");
//! drop(conn);
//! server.wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! [`Server::handover`](crate::Server::handover) gives the listeners to the process that takes over, so that no connect is refused meanwhile.
