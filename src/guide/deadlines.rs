//! Time: total deadlines, and what becomes of an operation that is given up.
//!
//! # A deadline is for the whole
//!
//! `.within(duration)` on an operation covers all of it: all the bytes of a `recv_exact`, the look-up, all addresses and the TLS
//! handshake of a connect. A peer that sends one byte a second does not extend it.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use wharf::{Client, Connection, Server};
//!
//! // A server that drips.
//! let server = Server::bind("127.0.0.1:0").start(|mut conn: Connection| async move {
//!     loop {
//!         conn.send(b".").await?;
//!         wharf::sleep(Duration::from_millis(10)).await;
//!     }
//! })?;
//!
//! let address = server.local_addr();
//! wharf::run(async {
//!     let mut conn = Client::connect(address).await?;
//!     let begun = Instant::now();
//!     let late = conn.recv_exact(&mut [0; 1_000_000]).within(Duration::from_millis(100)).await.unwrap_err();
//!     assert!(late.is_timeout());
//!     assert!(begun.elapsed() < Duration::from_secs(5), "and not 1,000,000 times 10 ms");
//!
//!     // The connection stands, and what has come is still there.
//!     assert!(conn.recv(&mut [0; 1_000]).await? > 1);
//!     Ok::<(), wharf::Error>(())
//! })??;
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! For several operations together:
//!
//! | | Async | Event | Blocking |
//! |---|---|---|---|
//! | one operation | `.within(d)` on it | - | `conn.within(d).recv(..)` |
//! | several | [`within`](crate::within)`(d, async { .. })` | `conn.set_deadline(d)` | keep what `conn.within(d)` returns |
//! | whatever comes next, then close | `conn.set_deadline(d)` | the same | the same |
//!
//! # Deadlines that nobody has to think of
//!
//! [`Deadlines`](crate::Deadlines) end connections by themselves. Servers have them on:
//!
//! | Deadline | Default | It ends |
//! |---|---|---|
//! | `first_byte` | 30 s | who connects and says nothing |
//! | `idle` | 60 s | who says nothing while a read is awaited; turn it off for peers that may be silent |
//! | `receive_rate` | 240 bytes/s after 10 s | who begins a message and lets it drip |
//! | `write` | 30 s | who reads nothing of what is queued for him |
//! | `age` | off | whatever is that old |
//! | `linger` | 2 s | a closed connection whose peer does not end |
//!
//! Clients have `write` and `linger` ([`Deadlines::for_clients`](crate::Deadlines::for_clients)), and 10 s for a connect. In blocking style
//! they are looked at whenever the connection is used, and while an operation waits: between two operations nobody looks.
//!
//! # Cancellation
//!
//! Dropping a future is how Rust gives an operation up: a deadline passes, `select` takes another branch, a task is aborted.
//! Here that loses nothing.
//!
//! * **Reading.** Bytes are taken when the future completes. What a dropped `recv_exact` has gathered goes back, and is read next.
//! * **Sending.** A message up to [`Limits::send_max`](crate::Limits::send_max) is queued whole or not at all. The documentation of each
//!   operation says under "Cancellation" what holds for it.
//! * **Connecting.** All attempts are given up, and no socket is left.
//! * **Waiting** for [`closed`](crate::Connection::closed), [`hangup`](crate::Connection::hangup), [`draining`](crate::Connection::draining)
//!   or [`delivered`](crate::Connection::delivered) holds no borrow of the connection, so it can stand beside an operation:
//!
//! ```
//! use futures_lite::FutureExt;
//! use wharf::{Connection, Server};
//!
//! let server = Server::bind("127.0.0.1:0").start(|mut conn: Connection| async move {
//!     let mut header = [0; 8];
//!     loop {
//!         // The next message, or the end of the server: whichever is first.
//!         let draining = conn.draining();
//!         let message = async { conn.recv_exact(&mut header).await.map(|()| true) };
//!         if !message.or(async { draining.await; Ok(false) }).await? {
//!             return conn.send(b"good bye").await;
//!         }
//!         conn.send(&header).await?;
//!     }
//! })?;
//! # use std::time::Duration;
//! # let mut conn = wharf::blocking::connect(server.local_addr())?;
//! # conn.send(b"12345678")?;
//! # let mut answer = [0; 8];
//! # conn.within(Duration::from_secs(3)).recv_exact(&mut answer)?;
//! # let server = std::thread::spawn(move || server.drain(Duration::from_secs(3)).wait().map(drop));
//! # conn.within(Duration::from_secs(3)).recv_exact(&mut answer)?;
//! # assert_eq!(&answer, b"good bye");
//! # drop(conn);
//! # server.join().expect("no panic")?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! In event style there is nothing to cancel. In blocking style a deadline that passes keeps what was received for the next read; of a message
//! that was being sent a part may be on its way, and [`Error::unsent`](crate::Error::unsent) tells how much is not.
