//! Ping and pong: one client plays three rounds, then several play at the same time.
//!
//! ```text
//! $ cargo run --example ping_pong
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::net::SocketAddr;
use std::time::Duration;

use wharf::{Client, Connection, Error, Result, Server};

const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    let server = Server::bind("127.0.0.1:0").start(answer)?;
    let address = server.local_addr();
    println!("server listens on {address}");

    wharf::run(async {
        // One client.
        play(1, address).await?;

        // Several at once. A task runs whether it is awaited or not; awaiting tells how it went.
        let players: Vec<_> = (2..=5).map(|id| wharf::spawn(play(id, address))).collect();
        for player in players {
            player.await??;
        }
        Ok::<(), Error>(())
    })??;

    // Nothing new is accepted, connections end by themselves, and the server tells what it did.
    let stats = server.drain(PATIENCE).wait()?;
    println!("server accepted {} connections and received {} bytes", stats.accepted, stats.received);
    Ok(())
}

/// The server's side: a pong for every ping.
async fn answer(mut conn: Connection) -> Result<()> {
    let mut ping = [0; 4];
    loop {
        // The deadline covers the whole message: a peer that sends a byte now and then does not extend it.
        match conn.recv_exact(&mut ping).within(PATIENCE).await {
            Ok(()) if ping == *b"ping" => conn.send(b"pong").await?,
            Ok(()) => return Err(Error::other("that was not a ping")),
            // The peer ended between two messages, as it should.
            Err(error) if error.partial() == Some(0) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The client's side.
async fn play(id: usize, server: SocketAddr) -> Result<()> {
    let mut conn = Client::connect(server).within(PATIENCE).await?;
    let mut pong = [0; 4];
    for round in 1..=ROUNDS {
        conn.send(b"ping").await?;
        conn.recv_exact(&mut pong).within(PATIENCE).await?;
        println!("client {id}, round {round}: sent ping, received {}", String::from_utf8_lossy(&pong));
    }
    // Dropping the connection closes it, gracefully.
    Ok(())
}
