//! The guide: how to write servers and clients with Wharf, one subject a page.
//!
//! There is nothing to call here. Every program on these pages is compiled and run by the tests.
//!
//! | Page | What it is about |
//! |---|---|
//! | [`first_steps`] | a first server and client in each style |
//! | [`deadlines`] | time: total deadlines, and what becomes of an operation that is given up |
//! | [`backpressure`] | bounds: slow readers, slow handlers, too many clients |
//! | [`closing`] | how connections end, who learns why, and how a server does |
//! | [`clients`] | connecting, staying connected, pools, proxies |
//! | [`messages`] | frames instead of bytes; relays |
#![cfg_attr(feature = "tls", doc = "| [`encryption`] | TLS on servers and clients |")]
//! | [`others`] | hyper, axum, and what needs tokio |
//! | [`testing`] | your own server in a simulation |
//! | [`from_tokio`] | moving a program from tokio: what is what, and the traps |
//! | [`from_older_toolkits`] | moving from co, Maxon, ObjectSpace, Parasol |
//!
//! # Choosing a style
//!
//! Limits, deadlines, errors, TLS and close reasons are the same in all of them, and they talk to each other. What differs is
//! who runs your code, and what a connection costs.
//!
//! | | Async | Event | Event, on a queue | Blocking |
//! |---|---|---|---|---|
//! | You write | a future for each connection | a handler that is called | callbacks on a queue | a function for each connection |
//! | It runs on | a worker, one per core | a worker, one per core | a thread or a loop of your choice | a thread for each connection |
//! | May it block or compute? | no | no | on its queue | yes |
//! | Waiting looks like | `.await` | returning | returning | a call that takes its time |
//! | A connection costs | its future, and under 1 KB | its handler, and under 1 KB | the same, and its events on their way | a thread with its stack |
//! | Received bytes are | copied to a buffer, or a chunk without a copy | borrowed from the engine | owned | copied to a buffer |
//! | Servers | [`Server::start`](crate::Server::start) | [`Server::start_events`](crate::Server::start_events) | [`Server::start_queued`](crate::Server::start_queued) | [`blocking::Listener`](crate::blocking::Listener) |
//! | Its handle | [`ServerHandle`](crate::ServerHandle) | the same | the same | [`blocking::ServerHandle`](crate::blocking::ServerHandle): the same, but for hand-over, adopting and what is of workers |
//! | Clients | [`Client::connect`](crate::Client::connect) | [`event::Service::connect`](crate::event::Service::connect) | [`event::Service::socket`](crate::event::Service::socket) | [`blocking::connect`](crate::blocking::connect) |
//!
//! * **Async** if you have no reason for another one. A protocol of several steps reads like its specification.
//! * **Event** if a message is answered from itself and there are many of them: nothing is allocated for one, and no future is
//!   woken. State that a future would keep in its variables is in your handler's fields.
//! * **Event, on a queue** for a program that has a loop already: a game, a user interface, a thread that owns the data.
//! * **Blocking** for tools, for clients in programs that are not async, for handlers that compute or call a database that
//!   blocks, and for some hundred connections rather than thousands.
//!
//! A program may have several: a server in event style whose console is blocking, say. A connection does not change its style.

pub mod backpressure;
pub mod clients;
pub mod closing;
pub mod deadlines;
#[cfg(feature = "tls")]
pub mod encryption;
pub mod first_steps;
pub mod from_older_toolkits;
pub mod from_tokio;
pub mod messages;
pub mod others;
pub mod testing;
