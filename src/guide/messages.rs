//! Frames instead of bytes; relays.
//!
//! TCP is a stream: what one side sends at once, the other may receive in pieces, or together with what comes next. A
//! [`Framing`](crate::framing::Framing) finds the messages in it, in every style:
//!
//! | Framing | A frame is |
//! |---|---|
//! | [`LengthPrefixed`](crate::framing::LengthPrefixed) | a length of 1 to 8 bytes or a varint, then so many bytes |
//! | [`Lines`](crate::framing::Lines) | what ends with a line feed |
//! | [`Delimited`](crate::framing::Delimited) | what ends with bytes of your choice |
//! | [`Fixed`](crate::framing::Fixed) | so many bytes |
//! | yours | what your `decode` says |
//!
//! Each has a hard maximum, and memory grows with what has come, not with what a length field claims.
//!
//! ```
//! use std::time::Duration;
//! use wharf::event::Flow;
//! use wharf::framing::{FrameConnection, FrameHandler, Framed, Frames, LengthPrefixed, blocking};
//! use wharf::{Client, Server};
//!
//! /// Four bytes of length, 64 KiB at most. Both sides agree on this, and on nothing else.
//! fn framing() -> LengthPrefixed {
//!     LengthPrefixed::u32().frame_max(64 * 1024)
//! }
//!
//! // The server, in event style: called with whole frames.
//! struct Echo;
//!
//! impl FrameHandler<LengthPrefixed> for Echo {
//!     fn frame(&mut self, conn: &mut FrameConnection<'_, '_, LengthPrefixed>, frame: &[u8]) -> Flow {
//!         match conn.send_frame(frame) {
//!             Ok(()) => Flow::Continue,
//!             Err(_) => Flow::Consumed(0),
//!         }
//!     }
//! }
//!
//! let server = Server::bind("127.0.0.1:0").start_events(|| Frames::new(framing(), Echo))?;
//! let address = server.local_addr();
//!
//! // A client, async.
//! wharf::run(async {
//!     let mut frames = Framed::new(Client::connect(address).await?, framing());
//!     frames.send(b"one").await?;
//!     let frame = frames.recv().within(Duration::from_secs(3)).await?.expect("an answer");
//!     assert_eq!(&*frame, b"one");
//!     Ok::<(), wharf::Error>(())
//! })??;
//!
//! // A client, blocking.
//! let mut frames = blocking::Framed::new(wharf::blocking::connect(address)?, framing());
//! frames.send(b"two")?;
//! assert_eq!(frames.recv()?.as_deref(), Some(&b"two"[..]));
//! # drop(frames);
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! A codec of tokio-util that you have already goes into [`framing::Coded`](crate::framing), with the feature `tokio-util`.
//!
//! # Relays
//!
//! [`relay`](crate::relay()) makes one connection of two, and passes their ends on: a half-close stays a half-close, a reset becomes a
//! reset. A side that does not read stops the other one from being received from.
//!
//! ```
//! use std::time::Duration;
//! use wharf::{Client, Connection, Relay, Server};
//! # let target = Server::bind("127.0.0.1:0").start(|mut conn: Connection| async move { conn.send(b"hello").await })?;
//! # let address = target.local_addr();
//!
//! let server = Server::bind("127.0.0.1:0").start(move |conn: Connection| async move {
//!     let target = Client::connect(address).await?;
//!     let relayed = Relay::new().idle(Duration::from_secs(600)).run(conn, target).await;
//!     println!("{relayed}"); // how many bytes each way, and how it ended
//!     Ok(())
//! })?;
//! # let mut conn = wharf::blocking::connect(server.local_addr())?;
//! # conn.within(Duration::from_secs(3)).recv_exact(&mut [0; 5])?;
//! # drop(conn);
//! # server.stop().wait()?;
//! # target.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
