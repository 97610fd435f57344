//! TLS on servers and clients.
//!
//! A server has an [`Acceptor`](crate::tls::Acceptor), a client a [`Connector`](crate::tls::Connector). Everything else stays as it is: handlers, limits,
//! deadlines, closes.
//!
//! ```
//! # #[cfg(feature = "self-signed")] {
//! use wharf::tls::{Acceptor, ClientTls, Connector, Identity, ServerTls, Trust};
//! use wharf::{Client, Connection, Server};
//!
//! // In production: Identity::from_files("chain.pem", "key.pem").
//! let identity = Identity::self_signed(["localhost"])?;
//! let trust = Trust::from_der(identity.chain().next().expect("it shows one"))?; // or from_file("ca.pem")
//! let acceptor = Acceptor::new(ServerTls::new(identity))?;
//! let connector = Connector::new(ClientTls::new().trust(trust).server_name("localhost"))?;
//!
//! let server = Server::bind("127.0.0.1:0").tls(&acceptor).start(|mut conn: Connection| async move {
//!     conn.send(b"hello").await // the handshake is over
//! })?;
//!
//! let client = Client::new(server.local_addr()).tls(&connector);
//! let mut conn = client.open_blocking()?; // the same client is async, too
//! let mut hello = [0; 5];
//! conn.recv_exact(&mut hello)?;
//! assert_eq!(&hello, b"hello");
//! assert!(conn.tls().is_some(), "version, cipher, the server's certificates");
//! # drop(conn);
//! # server.stop().wait()?;
//! # }
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! * **A client verifies**, by the system's roots or by a [`Trust`](crate::tls::Trust), and the server has to be who the address says. Not to verify is
//!   spelled [`danger_accept_any_certificate`](crate::tls::ClientTls::danger_accept_any_certificate), and snapshots tell of it.
//! * **A handshake has a deadline** of 5 s ([`handshake_within`](crate::tls::ServerTls::handshake_within)), and at most 4096 are in progress: one that has
//!   stalled gives way.
//! * **Certificates change** while the server runs: [`Acceptor::reload`](crate::tls::Acceptor::reload) puts all files in force, or none.
//! * **An end is said.** `close` and `finish` send close_notify; FIN without it is [`TlsFault::Truncated`](crate::TlsFault::Truncated), behind the bytes before it.
//! * **In mid-stream** (STARTTLS) there are [`accept_tls`](crate::Connection::accept_tls), [`connect_tls`](crate::Connection::connect_tls) and
//!   [`leave_tls`](crate::Connection::leave_tls), in blocking style under the same names.
//!
//! What goes wrong is a [`TlsFault`](crate::TlsFault), in errors ([`Error::tls_fault`](crate::Error::tls_fault)) and as a reason ([`CloseReason::Tls`](crate::CloseReason::Tls)).
