//! The capabilities of four older TCP toolkits, each shown by a test that has the name of its row in docs/SEEDS.md.
//!
//! Each toolkit is a module, and its tests are written as its own programs were: with handlers on queues, with calls that
//! block, with coroutines, with states that are told. Where that toolkit had a defect, the test shows that it is not here.

#![cfg(all(unix, feature = "tls"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
#[macro_use]
mod common;

mod co;
mod maxon;
mod objectspace;
mod parasol;
mod programs;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use common::behaviours::Discard;
use common::{Behaviour, Wire};
use wharf::{Connection, Result};

/// What a server does with a connection, written where it is used: in async style only.
#[derive(Clone)]
struct Script<F>(F);

impl<F, Fut> Behaviour for Script<F>
where
    F: Fn(Connection) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<()>> + 'static,
{
    type Handler = Discard;

    fn run(self, conn: Connection) -> impl Future<Output = Result<()>> {
        self.0(conn)
    }

    fn handler(self) -> Discard {
        unreachable!("a script is for scenarios in async style")
    }
}

/// No event is waited for any longer.
const SOON: Duration = Duration::from_secs(10);
/// Both ways in which bytes travel.
const WIRES: [Wire; 2] = [Wire::Plain, Wire::Tls];

/// Sends `message` and gets it back.
async fn echoed(conn: &mut Connection, message: &[u8]) {
    conn.send(message).await.unwrap();
    let mut echo = vec![0; message.len()];
    conn.recv_exact(&mut echo).await.unwrap();
    assert!(echo == message, "what came back is not what was sent");
}

/// A client of the server at `address` whose message has come back: the server has let it in.
async fn let_in(address: SocketAddr) -> Connection {
    let mut conn = wharf::Client::connect(address).await.unwrap();
    echoed(&mut conn, b"x").await;
    conn
}
