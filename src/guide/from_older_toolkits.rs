//! Moving from co, Maxon, ObjectSpace, Parasol.
//!
//! Four older toolkits, four shapes of a program; each has its place here. `docs/SEEDS.md` in the repository goes through every one of their
//! capabilities, with what is different and the test that shows it. This page is for whoever has a program to move.
//!
//! | Here | co | Maxon | ObjectSpace | Parasol |
//! |---|---|---|---|---|
//! | [`Server`](crate::Server), [`ServerHandle`](crate::ServerHandle) | `tcp::Server` | `NetworkTcpServerInterface` | `os_tcp_connection_server` | NetSocket with `SERVER` |
//! | [`Connection`](crate::Connection) | `tcp::Connection` | `NetworkTcpConnectionInterface` | `os_tcp_socket` | ClientSocket |
//! | [`Client`](crate::Client) | `tcp::Client` | `OpenOutgoingConnection` | `connect_to` | `Connect` |
//! | [`pool::Pool`](crate::pool::Pool) | `co::Pool`, `PoolGuard` | - | - | - |
//! | [`event::Service`](crate::event::Service), [`JobQueue`](crate::event::JobQueue), [`PollQueue`](crate::event::PollQueue) | schedulers | `AioService`, job queues | - | the task's loop |
//! | [`event::Completion`](crate::event::Completion) | `wait_group` | `AioStatus` | - | - |
//! | [`event::Socket`](crate::event::Socket), [`Callbacks`](crate::event::Callbacks) | - | `Receive`, `Send` with handlers | - | `Feedback`, `Incoming`, `Outgoing` |
//! | [`blocking`](crate::blocking) | - | - | all of it | `SYNCHRONOUS` |
//! | [`Limits`](crate::Limits), [`ServerHandle::list`](crate::ServerHandle::list) | `conn_num` | - | - | `ClientLimit`, `SocketLimit`, `Clients` |
//! | [`Error`](crate::Error), [`CloseReason`](crate::CloseReason) | `strerror`, `timeout()` | `Result` | exceptions | `Error`, `State` |
//!
//! # co: a coroutine for each connection
//!
//! ```cpp
//! void on_connection(tcp::Connection conn) {
//!     char buf[8] = {0};
//!     while (true) {
//!         int r = conn.recv(buf, 8, 3000);
//!         if (r == 0) { conn.close(); break; }
//!         if (r < 0) { conn.reset(3000); break; }
//!         if (conn.send("pong", 4) <= 0) { conn.reset(3000); break; }
//!     }
//! }
//! tcp::Server().on_connection(on_connection).start("0.0.0.0", 7788);
//! ```
//!
//! It is the async style, almost line by line:
//!
//! ```
//! use std::time::Duration;
//! use wharf::{Connection, Result, Server};
//!
//! async fn on_connection(mut conn: Connection) -> Result<()> {
//!     let mut buf = [0; 8];
//!     while conn.recv(&mut buf).within(Duration::from_secs(3)).await? > 0 {
//!         conn.send(b"pong").await?;
//!     }
//!     Ok(()) // closed; and after an error, too. To reset instead: conn.reset_after(..)
//! }
//!
//! let server = Server::bind("127.0.0.1:0").start(on_connection)?; // a port that is taken is an error here
//! # let mut conn = wharf::blocking::connect(server.local_addr())?;
//! # conn.send(b"ping")?;
//! # conn.within(Duration::from_secs(3)).recv_exact(&mut [0; 4])?;
//! # drop(conn);
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! * The milliseconds of `recvn` began anew with each byte. `recv_exact(..).within(..)` is total: give it the time of the whole message.
//! * An end in mid-message was 0. Here it is an error ([`Error::is_ended`](crate::Error::is_ended)), and the bytes can still be read.
//! * `if (!c.connected()) c.connect(3000)` is [`Client::lazy`](crate::Client::lazy).
//! * The pool is [`pool::Pool`](crate::pool::Pool), for each worker as there. It has a bound, and what is stale is not handed out.
//! * `exit()` left connections open: that is [`suspend`](crate::ServerHandle::suspend). [`drain`](crate::ServerHandle::drain) ends them too, in time.
//! * A client verified nothing. Here it does, so a certificate of your own needs a `tls::Trust`.
//! * Blocking calls of other libraries are not hooked. They go to a thread, or the handler is in blocking style.
//!
//! # Maxon: handlers on job queues
//!
//! ```cpp
//! const maxon::AioServiceRef service = maxon::AioServiceRef::Create() iferr_return;
//! service.Start() iferr_return;
//! maxon::NetworkTcpInterface::OpenOutgoingConnection(address,
//!     [](maxon::Result<void> res, maxon::NetworkTcpConnectionRef connection) -> maxon::Result<void> {
//!         connection.Send(std::move(buffer)) iferr_return;
//!         return connection.Receive([](maxon::Result<void> res, maxon::AioBuffer data) { ... });
//!     }, service, maxon::JOBQUEUE_CURRENT) iferr_return;
//! ```
//!
//! It is the event style on a queue:
//!
//! ```
//! use std::time::Duration;
//! use wharf::Client;
//! use wharf::event::{Completion, JobQueue, Service};
//! # let server = wharf::Server::bind("127.0.0.1:0").workers(1).start(|mut conn: wharf::Connection| async move {
//! #     let mut buf = [0; 12];
//! #     conn.recv_exact(&mut buf).await?;
//! #     conn.send(&buf).await
//! # })?;
//! # let address = server.local_addr();
//!
//! let service = Service::new();
//! service.start()?;
//! let queue = JobQueue::new("network")?; // a thread of its own; JOBQUEUE_CURRENT is a PollQueue that the thread polls
//! let socket = service.socket(&Client::new(address), &queue.queue(), ());
//! let all = Completion::new(); // AioStatus
//! socket.connect_with(&all)?;
//! socket.send_with("Test Message", &all)?; // need not wait for the connection
//! socket.receive_with(&all, |_, data| {
//!     println!("{} bytes", data?.len());
//!     Ok(())
//! })?;
//! assert!(all.wait(Duration::from_secs(3))?, "false: it takes longer");
//! drop(socket);
//! service.stop_and_wait()?;
//! # queue.join()?;
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! * `Receive` asks for one piece, and so does [`receive`](crate::event::SocketHandle::receive). Who wants whatever comes gives the socket [`Callbacks`](crate::event::Callbacks)
//!   or a [`QueuedHandler`](crate::event::QueuedHandler).
//! * A connect has 10 s. There it had no end.
//! * `CreateServer` with `Start` is [`Server::start_queued`](crate::Server::start_queued), with the queue that handlers run on;
//!   [`Server::start_events`](crate::Server::start_events) has them run on the workers.
//! * `NetworkTcpConnectionOptions` are [`connect_within`](crate::Client::connect_within), [`Deadlines::idle`](crate::Deadlines::idle) and
//!   [`SocketOptions::nodelay`](crate::SocketOptions::nodelay), and do something.
//!
//! # ObjectSpace: blocking sockets
//!
//! ```cpp
//! os_tcp_connection_server server(os_socket_address(3000));
//! os_tcp_socket socket;
//! server.accept(socket);
//! cout << socket.peer_address() << endl;
//! char buffer[100];
//! int result = socket.read(buffer, sizeof(buffer));
//! ```
//!
//! It is the blocking style:
//!
//! ```
//! use wharf::blocking::{self, Listener};
//!
//! let mut server = Listener::bind("127.0.0.1:0")?;
//! # let address = server.local_addr();
//! # let client = std::thread::spawn(move || -> wharf::Result<()> {
//! #     let mut conn = blocking::connect(address)?;
//! #     conn.send(b"hello there")?;
//! #     conn.finish()
//! # });
//! let mut conn = server.accept()?; // with a timeout: accept_within
//! println!("{}", conn.peer_addr());
//! let mut buffer = [0; 100];
//! let result = conn.recv(&mut buffer)?;
//! # assert!(result > 0);
//! # while conn.recv(&mut buffer)? > 0 {}
//! # client.join().expect("no panic")?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! * The client's `connect_to` is [`blocking::connect`](crate::blocking::connect). `accept` returns a connection, and never closes one that you have.
//! * "A typical server spawns a thread to service a client" is [`Listener::serve`](crate::blocking::Listener::serve): a bounded number of threads, a drain,
//!   and no connection that takes the others with it.
//! * An address has a host: `localhost:3000`, and not 3000 alone.
//! * What was not received, TCP tells nobody by itself: [`delivered`](crate::blocking::Connection::delivered) and [`unacked`](crate::blocking::Connection::unacked) ask.
//!
//! # Parasol: states and callbacks
//!
//! ```lua
//! socket = obj.new('netsocket', {
//!     address  = 'localhost', port = 7788,
//!     feedback = function(Socket, State) print(State) end,
//!     incoming = function(Socket) ... Socket.acRead(buffer) ... end,
//! })
//! socket.acWrite('hello')
//! ```
//!
//! It is an [`event::Socket`](crate::event::Socket) with [`Callbacks`](crate::event::Callbacks) on a [`PollQueue`](crate::event::PollQueue), which the program's loop polls:
//!
//! ```
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
//! let callbacks = Callbacks::new()
//!     .feedback(|_, state| println!("{state}"))
//!     .incoming(|_, bytes| {
//!         println!("{} bytes", bytes.len());
//!         Flow::Close // ERR_Terminate; Flow::Continue goes on
//!     });
//! let socket = service.socket(&Client::new(address), &queue.queue(), callbacks);
//! socket.connect()?;
//! socket.send("hello")?; // queued until it is connected
//! while !socket.state().is_disconnected() {
//!     queue.wait(Duration::from_millis(50));
//!     queue.run_pending(64);
//! }
//! assert!(socket.error().is_none(), "it ended in order");
//! # drop(socket);
//! # service.stop_and_wait()?;
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```
//!
//! * `Incoming` that did not read lost the data, or the connection. Here what it leaves ([`Flow::Consumed`](crate::event::Flow::Consumed)) is offered again.
//! * `Outgoing` is `outgoing` of [`Callbacks`](crate::event::Callbacks), and on a server [`Handler::writable`](crate::event::Handler::writable).
//! * A write took what fitted, and failed with the rest. Here a message is taken whole or refused.
//! * The server's side is [`Server::start_events`](crate::Server::start_events); `ClientLimit` and `SocketLimit` are [`Limits::connections`](crate::Limits::connections) and
//!   [`per_address`](crate::Limits::per_address), and nothing limits the accepts in secret.
//! * Connecting is asked for ([`connect`](crate::event::SocketHandle::connect)), and its time covers the look-up and the TLS handshake.
