//! Connecting, staying connected, pools, proxies.
//!
//! A [`Client`](crate::Client) is a description: whom to connect to, by which way, within which bounds. It connects as often as it is asked,
//! in whatever style:
//!
//! ```
//! use std::time::Duration;
//! use wharf::{Client, Connection, Server};
//! # let server = Server::bind("127.0.0.1:0").start(|mut conn: Connection| async move { conn.send(b"hello").await })?;
//! # let address = server.local_addr();
//!
//! let client = Client::new(address).connect_within(Duration::from_secs(3));
//!
//! let mut conn = client.open_blocking()?; // blocking
//! # conn.recv_exact(&mut [0; 5])?;
//! wharf::run(async move {
//!     let mut conn = client.open().await?; // async
//! #   conn.recv_exact(&mut [0; 5]).await?;
//! #   let _ = &mut conn;
//!     Ok::<(), wharf::Error>(())
//! })??;
//! // and in event style: service.connect(&client, handler), service.socket(&client, &queue, handler)
//! # drop(conn);
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! # One deadline, all addresses
//!
//! A connect is the look-up of the name, TCP, the proxy's answer and the TLS handshake, and has 10 s for all of it
//! ([`connect_within`](crate::Client::connect_within)). The addresses of a name race (RFC 8305): the next one begins when the one before has failed, or has not
//! answered for 250 ms. So a network whose IPv6 is broken costs a quarter of a second and not the deadline. The error of a connect names every
//! address and what became of it.
//!
//! ```
//! wharf::run(async {
//!     let error = wharf::Client::connect("127.0.0.1:1").await.unwrap_err();
//!     assert!(error.is_refused(), "{error}"); // connect to 127.0.0.1:1: connection refused
//! })?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! [`Connect::observe`](crate::Connect::observe) is told each step. [`Client::resolver`](crate::Client::resolver) looks names up by your own means,
//! [`Client::bind`](crate::Client::bind) sets the local address.
//!
//! # Which way to keep a connection
//!
//! | You want | Take | When the connection ends |
//! |---|---|---|
//! | one conversation | [`Client::connect`](crate::Client::connect) | it is over |
//! | one connection, made when it is used | [`Client::lazy`](crate::Client::lazy) | the next use makes another one |
//! | a stream that goes on: a feed, a broker | [`Reconnect`](crate::reconnect::Reconnect) | it is made again by itself, with back-off |
//! | requests and answers, many at once | [`pool::Pool`](crate::pool::Pool) | the next request gets another one |
//! | to be told, and to decide | [`event::Socket`](crate::event::Socket) | its handler is told, and may connect again |
//!
//! # Staying connected
//!
//! ```
//! use wharf::reconnect::{Received, Reconnect};
//! use wharf::{Client, Connection, Server};
//! # let server = Server::bind("127.0.0.1:0").start(|mut conn: Connection| async move {
//! #     let mut buf = [0; 64];
//! #     let n = conn.recv(&mut buf).await?;
//! #     conn.send(&buf[..n]).await?;
//! #     conn.recv(&mut buf).await.map(drop)
//! # })?;
//! # let address = server.local_addr();
//!
//! wharf::run(async move {
//!     let mut session = Reconnect::new(Client::new(address))
//!         .greet(async |conn: &mut Connection| conn.send(b"subscribe").await) // on each new connection, before all else
//!         .start()?;
//!     loop {
//!         match session.recv().await? {
//!             Received::Connected => {} // what was half received before belongs to nothing now
//!             Received::Bytes(chunk) => {
//!                 assert_eq!(&*chunk, b"subscribe");
//!                 break;
//!             }
//!         }
//!     }
//!     session.close().await
//! })??;
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! Pauses grow from 100 ms to 30 s, with full jitter, and at most 30 attempts go out in a minute ([`Retry`](crate::reconnect::Retry)). What is sent meanwhile is queued within
//! [`queue_max`](crate::reconnect::Reconnect::queue_max). Nothing is sent twice; what may be lost is told.
//!
//! # Pools
//!
//! ```
//! use std::time::Duration;
//! use wharf::pool::{Pool, PoolOptions};
//! use wharf::{Client, Connection, Server};
//! # let server = Server::bind("127.0.0.1:0").start(|mut conn: Connection| async move {
//! #     let mut buf = [0; 4];
//! #     while conn.recv(&mut buf).await? > 0 { conn.send(b"pong").await?; }
//! #     Ok(())
//! # })?;
//! # let address = server.local_addr();
//!
//! wharf::run(async move {
//!     let pool = Pool::new(Client::new(address), PoolOptions::default().size(8))?;
//!     let mut conn = pool.get().within(Duration::from_secs(1)).await?; // waits for its turn
//!     conn.send(b"ping").await?;
//!     conn.recv_exact(&mut [0; 4]).await?;
//!     drop(conn); // goes back, because it is fit for the next one
//!     assert_eq!(pool.stats().idle, 1);
//!
//!     let mut conn = pool.get().await?;
//!     conn.send(b"ping").await?;
//!     drop(conn); // the answer is still to come: discarded, so that nobody takes it for his
//!     assert_eq!(pool.stats().idle, 0);
//!     Ok::<(), wharf::Error>(())
//! })??;
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! A pool belongs to its worker, as its connections do. In a server, [`SharedPool`](crate::pool::SharedPool) has one bound over the pools of all workers;
//! [`Pools`](crate::pool::Pools) has one for each endpoint.
//!
//! # Proxies
//!
//! ```no_run
//! use wharf::{Client, Proxy};
//!
//! let proxy = Proxy::parse("socks5h://user:secret@127.0.0.1:1080")?; // or http://
//! let client = Client::new("example.org:443").proxy(proxy);
//! # drop(client);
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! The proxy looks the target's name up; with `socks5://` this side does, as by curl ([`Proxy::resolve_here`](crate::Proxy::resolve_here)). TLS is spoken with the target, through the proxy. (A server that stands behind a proxy is another
//! subject: [`Server::proxy_protocol`](crate::Server::proxy_protocol).)
