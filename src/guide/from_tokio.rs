//! Moving a program from tokio: what is what, and the traps.
//!
//! An echo server on tokio is right up to the first flood, the first silent peer and the first deploy:
//!
//! ```no_run
//! # mod tokio_program {
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio::net::TcpListener;
//!
//! async fn serve() -> std::io::Result<()> {
//!     let listener = TcpListener::bind("127.0.0.1:7788").await?;
//!     loop {
//!         let (mut stream, _) = listener.accept().await?; // out of descriptors: the server ends
//!         tokio::spawn(async move {
//!             let mut buf = [0; 512];
//!             while let Ok(n) = stream.read(&mut buf).await { // no deadline
//!                 if n == 0 || stream.write_all(&buf[..n]).await.is_err() {
//!                     break;
//!                 }
//!             }
//!         });
//!     } // no limit, no drain
//! }
//! # }
//! ```
//!
//! The same on Wharf has the limits, the deadlines, the drain and the accept loop that survives:
//!
//! ```
//! use wharf::{Connection, Server};
//!
//! let server = Server::bind("127.0.0.1:0").start(|mut conn: Connection| async move {
//!     let mut buf = [0; 512];
//!     loop {
//!         match conn.recv(&mut buf).await? {
//!             0 => return Ok(()),
//!             n => conn.send(&buf[..n]).await?,
//!         }
//!     }
//! })?;
//! # let mut conn = wharf::blocking::connect(server.local_addr())?;
//! # conn.send(b"hello")?;
//! # conn.within(std::time::Duration::from_secs(3)).recv_exact(&mut [0; 5])?;
//! # drop(conn);
//! server.drain(std::time::Duration::from_secs(15)).wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! # What is what
//!
//! | tokio | Wharf | Differences |
//! |---|---|---|
//! | `#[tokio::main]`, `Runtime::block_on` | [`run`](crate::run) for a client; nothing for a server | servers bring their threads |
//! | `TcpListener::bind`, `accept`, `spawn` | [`Server::bind`](crate::Server::bind)`(..).start(handler)` | the loop is Wharf's, and so are its errors |
//! | `TcpStream::connect` | [`Client::connect`](crate::Client::connect) | a deadline of 10 s, addresses race |
//! | `TcpStream` | [`Connection`](crate::Connection) | not `Send`; has queues and deadlines |
//! | `read` | [`recv`](crate::Connection::recv) | |
//! | `read_exact` | [`recv_exact`](crate::Connection::recv_exact) | cancel safe |
//! | `read_buf`, `BytesMut` | [`recv_chunk`](crate::Connection::recv_chunk) | no copy |
//! | `write_all` | [`send`](crate::Connection::send) | done means queued, not handed to the kernel; cancel safe |
//! | `flush` | [`flush`](crate::Connection::flush) | waits until the kernel has all of it |
//! | `shutdown` | [`finish`](crate::Connection::finish), [`close`](crate::Connection::close) | `close` lingers, so that the last bytes are not lost to RST |
//! | `set_linger(0)` and drop | [`reset`](crate::Connection::reset) | |
//! | `split`, `into_split`, `reunite` | [`split`](crate::Connection::split), [`join`](crate::ReadHalf::join) | one call, no lock, with TLS too |
//! | `readable()` to notice a peer that leaves | [`hangup`](crate::Connection::hangup) | told although bytes are unread |
//! | `timeout(d, op)` | `op.within(d)`, [`within`](crate::within)`(d, async { .. })` | the error is a [`wharf::Error`](crate::Error) |
//! | `sleep`, `spawn` | [`sleep`](crate::sleep), [`spawn`](crate::spawn) | `spawn` stays on this worker, and takes what is not `Send` |
//! | `JoinHandle::abort` | - | a task that can be given up waits for a signal of yours |
//! | `spawn_blocking` | a thread, and a [`Remote`](crate::Remote) for the answer | or the blocking style |
//! | `mpsc`, `select!`, `Notify` | the same, of tokio or any other crate | they need no runtime |
//! | `copy_bidirectional` | [`relay`](crate::relay()) | ends on a reset, bounds silence and half-closed sides |
//! | `Framed`, `LengthDelimitedCodec` | [`framing::Framed`](crate::framing::Framed), [`LengthPrefixed`](crate::framing::LengthPrefixed) | your codecs: `framing::Coded` |
//! | `CancellationToken`, `TaskTracker` | [`ServerHandle::drain`](crate::ServerHandle::drain), [`draining`](crate::Connection::draining) | counts the bytes that were lost |
//! | `Semaphore` around `accept` | [`Limits::connections`](crate::Limits::connections), `per_address` | refusals are counted by rule |
//! | tokio-rustls | `Server::tls`, `Client::tls` | the handshake is off the accept path, with a deadline |
//! | bb8, deadpool | [`pool`](crate::pool) | looks at what is idle |
//! | `tokio::time::pause`, turmoil | [`sim`](crate::sim) | network and time, from one seed |
//! | `TcpStream::from_std` | [`ServerHandle::adopt`](crate::ServerHandle::adopt) | |
//!
//! # Traps
//!
//! * **A handler is not a tokio task.** `tokio::spawn`, `tokio::time::sleep` and tokio's sockets panic without their runtime: give
//!   the server one ([`others`](super::others)). What is spawned with a connection is spawned with [`spawn`](crate::spawn).
//! * **There is no work stealing.** A connection stays on its worker. Work that takes more than some hundred microseconds goes to a thread;
//!   [`Server::watchdog`](crate::Server::watchdog) tells where it does not.
//! * **Connections are not `Send`.** `Arc<Mutex<..>>` around them is neither possible nor needed: tasks of one worker share by `Rc`,
//!   other threads hold a [`Remote`](crate::Remote).
//! * **`send` that is done is queued.** A program that exits right behind it calls [`flush`](crate::Connection::flush), or closes and waits.
//! * **Silence ends.** A server's connections that are read from and say nothing for 60 s are closed. For peers that may be silent:
//!   `Deadlines::default().idle(None).first_byte(None)`.
//! * **`Err` from a handler is not printed.** It is counted as [`CloseReason::HandlerFailed`](crate::CloseReason::HandlerFailed); log what you want to see before you return it,
//!   or watch ([`Server::watch`](crate::Server::watch)).
//! * **Dropping a `JoinHandle`** lets its task run on, as with tokio. The tasks of a worker end with it.
//!
//! Piece by piece works as well: hyper, and whatever takes tokio's traits, runs on a [`Connection`](crate::Connection) as it is ([`others`](super::others)).
