//! hyper, axum, and what needs tokio.
//!
//! Wharf has its own workers, and other libraries run on them. What they need is behind features:
//!
//! | Library | Feature | What to do |
//! |---|---|---|
//! | hyper 1.x | `hyper` | hand it the [`Connection`](crate::Connection), with a timer and an executor of Wharf's |
//! | axum, tower | `hyper`, and hyper-util | serve the router by hyper: `interop/examples/axum.rs` |
//! | what takes `tokio::io::AsyncRead` and `AsyncWrite` | `tokio` | hand it the connection |
//! | what takes the traits of futures-io | `futures-io` | hand it the connection |
//! | what takes `AsyncBufRead` of either | the same | a `Buffered` of the connection, which copies nothing as a `BufReader` would |
//! | what needs a tokio runtime: timers, sockets, database clients | `tokio` | [`Server::tokio`](crate::Server), or `wharf::tokio::run` for a client |
//! | codecs of tokio-util | `tokio-util` | `framing::Coded` |
//! | what takes `std::io::Read` and `Write` | - | [`blocking::Connection`](crate::blocking::Connection) |
//! | channels, locks, `select!`, streams of any crate | - | nothing: they know no executor |
//!
//! # Streams of tokio
//!
//! ```
//! # #[cfg(feature = "tokio")] {
//! use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
//! use wharf::{Buffered, Connection, Server};
//!
//! let server = Server::bind("127.0.0.1:0").start(|conn: Connection| async move {
//!     let mut conn = Buffered::new(conn);
//!     let mut line = String::new();
//!     while conn.read_line(&mut line).await? > 0 {
//!         conn.write_all(line.as_bytes()).await?;
//!         line.clear();
//!     }
//!     Ok(())
//! })?;
//! # let mut conn = wharf::blocking::connect(server.local_addr())?;
//! # conn.send(b"hello\n")?;
//! # conn.within(std::time::Duration::from_secs(3)).recv_exact(&mut [0; 6])?;
//! # drop(conn);
//! # server.stop().wait()?;
//! # }
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! # A tokio runtime beside the workers
//!
//! The runtime's own threads turn its timers and sockets, and wake the worker. The handler stays where it is.
//!
//! ```
//! # #[cfg(feature = "tokio")] {
//! use std::time::Duration;
//! use wharf::{Connection, Server};
//!
//! let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
//! let server = Server::bind("127.0.0.1:0").tokio(runtime.handle().clone()).start(|mut conn: Connection| async move {
//!     // A client of a database would stand here: it finds its runtime.
//!     let answer = tokio::spawn(async {
//!         tokio::time::sleep(Duration::from_millis(5)).await;
//!         "42"
//!     });
//!     conn.send(answer.await.map_err(wharf::Error::other)?.as_bytes()).await
//! })?;
//! # let mut conn = wharf::blocking::connect(server.local_addr())?;
//! # conn.within(Duration::from_secs(3)).recv_exact(&mut [0; 2])?;
//! # drop(conn);
//! # server.stop().wait()?;
//! # }
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! # hyper
//!
//! The module `wharf::hyper` has a whole server; `interop/examples/` has hyper and axum with HTTP/1.1 and HTTP/2. Two things to know:
//!
//! * Give hyper the timer (`.timer(wharf::hyper::Timer)`): without one its `header_read_timeout` does nothing.
//! * hyper goes on reading while it answers, so [`Deadlines::idle`](crate::Deadlines::idle) counts then too. Set it above the time of the longest answer.
