//! Bounds: slow readers, slow handlers, too many clients.
//!
//! Every queue has a limit with a default, in [`Limits`](crate::Limits). Memory follows from what you configured, never from what a peer does.
//!
//! # A peer that reads slowly
//!
//! What is sent waits in the connection's send queue. It has three marks:
//!
//! ```text
//!   0 -------- low 16 KiB -------- high 64 KiB ------------------------ send_max 1 MiB
//!              senders go on       senders wait                          never more than that
//! ```
//!
//! | Style | Above the high mark |
//! |---|---|
//! | Async | `send(..).await` waits until there is room |
//! | Event | `send` refuses the whole message; when there is room again, what `received` left is offered again, and `writable` is called |
//! | Event, on a queue | `send` refuses what does not fit in `send_max`; when half of that is free again, what `received` left is offered again; `writable` is called when all is with the kernel |
//! | Blocking | `send` returns when the kernel has all of it; there is no queue but for what TLS has sealed |
//! | [`Remote`](crate::Remote), from any thread | messages wait on their way, up to `send_max`; then it refuses |
//!
//! Waiting slows whoever produces. Where that is wrong, as in a feed whose subscribers have to keep up, say so
//! ([`WhenFull`](crate::WhenFull)):
//!
//! ```
//! use wharf::{Limits, Server, WhenFull};
//!
//! let feed = Server::bind("127.0.0.1:0")
//!     .limits(Limits::default().send_max(256 * 1024).when_full(WhenFull::Disconnect))
//! #   .start(|_: wharf::Connection| async { Ok(()) })?;
//! # let server = feed;
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! A peer that takes nothing at all for [`Deadlines::write`](crate::Deadlines::write) (30 s) is ended.
//!
//! # A handler that is slow
//!
//! A connection that holds [`Limits::receive_buffer`](crate::Limits::receive_buffer) (64 KiB) unread stops receiving. Then the kernel's window closes, and the
//! peer's `send` waits. Nothing has to be done for it: who does not read is not sent to. So an echo that cannot send does not read,
//! and the client that floods it waits:
//!
//! ```
//! use wharf::event::{Connection, Flow, Handler};
//!
//! struct Echo;
//!
//! impl Handler for Echo {
//!     fn received(&mut self, conn: &mut Connection<'_>, bytes: &[u8]) -> Flow {
//!         match conn.send(bytes) {
//!             Ok(()) => Flow::Continue,
//!             Err(_) => Flow::Consumed(0), // unread: the peer has to wait
//!         }
//!     }
//! }
//! # let _ = Echo;
//! ```
//!
//! A handler that computes or blocks is another matter: on a worker it holds up all connections of that worker. Give the work to a
//! thread, and the answer to a [`Remote`](crate::Remote):
//!
//! ```
//! use std::sync::mpsc;
//! use std::thread;
//! use wharf::{Connection, Remote, Server};
//!
//! // A thread that computes. At most 100 questions wait for it.
//! let (questions, inbox) = mpsc::sync_channel::<(Remote, u64)>(100);
//! thread::spawn(move || {
//!     for (client, n) in inbox {
//!         let sum: u64 = (1..=n).sum();
//!         let _ = client.send(sum.to_be_bytes().to_vec()); // it may be gone
//!     }
//! });
//!
//! let server = Server::bind("127.0.0.1:0").start(move |mut conn: Connection| {
//!     let questions = questions.clone();
//!     async move {
//!         let mut n = [0; 8];
//!         loop {
//!             conn.recv_exact(&mut n).await?;
//!             questions
//!                 .try_send((conn.remote(), u64::from_be_bytes(n)))
//!                 .map_err(|_| wharf::Error::other("too many questions"))?; // refused, not piled up
//!         }
//!     }
//! })?;
//! # let mut conn = wharf::blocking::connect(server.local_addr())?;
//! # conn.send(&1000_u64.to_be_bytes())?;
//! # let mut answer = [0; 8];
//! # conn.within(std::time::Duration::from_secs(3)).recv_exact(&mut answer)?;
//! # assert_eq!(u64::from_be_bytes(answer), 500_500);
//! # drop(conn);
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! [`Server::watchdog`](crate::Server::watchdog) reports a handler that blocks its worker, by name.
//!
//! # Too many clients
//!
//! Who may come in is decided before anything is spent on him:
//!
//! ```
//! use wharf::{Access, AcceptRate, Limits, OverLimit, Server};
//!
//! let server = Server::bind("127.0.0.1:0")
//!     .limits(
//!         Limits::default()
//!             .connections(10_000)
//!             .per_address(64)
//!             .accept_rate(AcceptRate::new(500))
//!             .over_limit(OverLimit::Reset),
//!     )
//!     .access(Access::default().deny(["192.0.2.0/24".parse()?]))
//!     .start(|_: wharf::Connection| async { Ok(()) })?;
//! println!("{} were refused", server.stats().refusals()); // and each under its rule
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! [`ServerHandle::set_limits`](crate::ServerHandle::set_limits) changes them while the server runs. In blocking style a connection has a thread, and
//! [`Listener::threads`](crate::blocking::Listener::threads) (256) is the bound that is met first; its server's handle
//! [changes](crate::blocking::ServerHandle::set_limits) the others in the same way.
//!
//! The sum has a bound as well, if you set one: [`Limits::memory`](crate::Limits::memory) is a budget for the buffers of all connections of a server.
