//! A first server and client in each style.
//!
//! All of them do the same: the server sends back what it gets. Each is a whole program but for `main`.
//!
//! # Async
//!
//! ```
//! use std::time::Duration;
//! use wharf::{Client, Connection, Server};
//!
//! // Runs once for each connection. When it returns, the connection is closed gracefully.
//! async fn echo(mut conn: Connection) -> wharf::Result<()> {
//!     let mut buf = [0; 512];
//!     loop {
//!         match conn.recv(&mut buf).await? {
//!             0 => return Ok(()), // the peer has ended
//!             n => conn.send(&buf[..n]).await?,
//!         }
//!     }
//! }
//!
//! let server = Server::bind("127.0.0.1:0").start(echo)?; // port 0: the system picks one
//! let address = server.local_addr();
//!
//! // Clients are futures too; `run` makes this thread a worker until the future is done.
//! wharf::run(async {
//!     let mut conn = Client::connect(address).within(Duration::from_secs(3)).await?;
//!     conn.send(b"hello").await?;
//!     let mut answer = [0; 5];
//!     conn.recv_exact(&mut answer).within(Duration::from_secs(3)).await?;
//!     assert_eq!(&answer, b"hello");
//!     Ok::<(), wharf::Error>(())
//! })??; // one ? for the worker, one for the future
//!
//! server.drain(Duration::from_secs(5)).wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! [`Server::start`](crate::Server::start) returns when the server listens, and the server runs on threads of its own. For a program that is
//! nothing but a server there is [`Server::run`](crate::Server::run), which serves on the calling thread.
//!
//! Within a handler, [`spawn`](crate::spawn), [`sleep`](crate::sleep) and [`Client`](crate::Client) work as they are. None of it has to be `Send`,
//! because a connection never leaves its worker.
//!
//! # Event
//!
//! ```
//! use wharf::Server;
//! use wharf::event::{Connection, Flow, Handler};
//!
//! /// One for each connection: what it has to remember are its fields.
//! struct Echo;
//!
//! impl Handler for Echo {
//!     fn received(&mut self, conn: &mut Connection<'_>, bytes: &[u8]) -> Flow {
//!         match conn.send(bytes) {
//!             Ok(()) => Flow::Continue,
//!             Err(_) => Flow::Consumed(0), // its queue is full: they are offered again when it is not
//!         }
//!     }
//! }
//!
//! let server = Server::bind("127.0.0.1:0").start_events(|| Echo)?;
//! # use std::time::Duration;
//! # let mut conn = wharf::blocking::connect(server.local_addr())?;
//! # conn.send(b"hello")?;
//! # conn.within(Duration::from_secs(3)).recv_exact(&mut [0; 5])?;
//! # drop(conn);
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! A handler that has got half a message returns [`Flow::Consumed`](crate::event::Flow::Consumed) with the bytes that it took, and is offered
//! the rest again with more behind it. [`messages`](super::messages) has framings, which do that for you.
//!
//! A client in this style is a handler, too. A [`Service`](crate::event::Service) has the threads for it:
//!
//! ```
//! use std::sync::mpsc;
//! use wharf::event::{Connection, Flow, Handler, Service};
//! use wharf::{Client, Error};
//! # let server = wharf::Server::bind("127.0.0.1:0").workers(1).start(|mut conn: wharf::Connection| async move {
//! #     let mut buf = [0; 5];
//! #     conn.recv_exact(&mut buf).await?;
//! #     conn.send(&buf).await
//! # })?;
//! # let address = server.local_addr();
//!
//! struct Hello(mpsc::Sender<Result<Vec<u8>, Error>>);
//!
//! impl Handler for Hello {
//!     fn connected(&mut self, conn: &mut Connection<'_>) -> Flow {
//!         if conn.send(b"hello").is_ok() { Flow::Continue } else { Flow::Reset }
//!     }
//!
//!     fn received(&mut self, _: &mut Connection<'_>, bytes: &[u8]) -> Flow {
//!         if bytes.len() < 5 {
//!             return Flow::Consumed(0); // TCP is a stream: the rest may come later
//!         }
//!         let _ = self.0.send(Ok(bytes[..5].to_vec()));
//!         Flow::Close
//!     }
//!
//!     fn connect_failed(&mut self, error: Error) {
//!         let _ = self.0.send(Err(error));
//!     }
//! }
//!
//! let service = Service::new();
//! service.start()?;
//! let (answers, answer) = mpsc::channel();
//! service.connect(&Client::new(address), Hello(answers))?; // returns at once
//! assert_eq!(answer.recv().expect("it is told one way or the other")?, b"hello");
//! service.stop_and_wait()?;
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! # Event, on your own loop
//!
//! A game has a loop, and wants to hear of its server between two frames, on the thread that draws:
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, Ordering};
//! use std::time::Duration;
//! use wharf::Client;
//! use wharf::event::{Callbacks, Flow, PollQueue, Service};
//! # let server = wharf::Server::bind("127.0.0.1:0").workers(1).start(|mut conn: wharf::Connection| async move {
//! #     let mut buf = [0; 5];
//! #     conn.recv_exact(&mut buf).await?;
//! #     conn.send(&buf).await
//! # })?;
//! # let address = server.local_addr();
//!
//! let service = Service::new();
//! service.start()?;
//! let queue = PollQueue::new()?;
//! let answered = Arc::new(AtomicBool::new(false));
//! let seen = answered.clone();
//! let callbacks = Callbacks::new()
//!     .feedback(|_, state| println!("{state}")) // connecting to 10.0.0.7:7788, connected, ...
//!     .incoming(move |_, bytes| {
//!         println!("the server says {} bytes", bytes.len());
//!         seen.store(true, Ordering::Relaxed);
//!         Flow::Continue
//!     });
//! let socket = service.socket(&Client::new(address), &queue.queue(), callbacks);
//! socket.connect()?;
//! socket.send("hello")?; // before it is connected: it is sent when it is
//!
//! while !answered.load(Ordering::Relaxed) {
//!     // Here a frame would be drawn.
//!     queue.wait(Duration::from_millis(16));
//!     queue.run_pending(64); // callbacks run here, and nowhere else
//! }
//!
//! drop(socket); // nothing of it is called from here on
//! service.stop_and_wait()?;
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! A loop that sleeps in `poll` or `epoll_wait` gives it the [`PollQueue`](crate::event::PollQueue) itself: its descriptor (`AsFd`) is readable while
//! something waits. A [`JobQueue`](crate::event::JobQueue) is a queue with a thread. [`examples/queue.rs`] is this program with a clock.
//!
//! [`examples/queue.rs`]: https://docs.rs/crate/wharf/latest/source/examples/queue.rs
//!
//! # Blocking
//!
//! ```
//! use std::time::Duration;
//! use wharf::blocking::{self, Connection, Listener};
//!
//! fn echo(mut conn: Connection) -> wharf::Result<()> {
//!     let mut buf = [0; 512];
//!     loop {
//!         match conn.recv(&mut buf)? {
//!             0 => return Ok(()),
//!             n => conn.send(&buf[..n])?,
//!         }
//!     }
//! }
//!
//! // A thread for each connection; at most 16 at once, and whoever else comes waits.
//! let server = Listener::bind("127.0.0.1:0")?.threads(16)?.serve(echo)?;
//!
//! let mut conn = blocking::connect(server.local_addr())?;
//! conn.send(b"hello")?;
//! let mut answer = [0; 5];
//! conn.within(Duration::from_secs(3)).recv_exact(&mut answer)?;
//! assert_eq!(&answer, b"hello");
//! drop(conn);
//!
//! server.drain(Duration::from_secs(5)).wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! A connection is `Read` and `Write` as well, so `BufReader`, `writeln!` and everything else of the standard library works on it.
//! Who wants the loop around `accept` for himself has [`Listener::accept`](crate::blocking::Listener::accept).
