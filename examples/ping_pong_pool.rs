//! Ping and pong over TLS with a pool: eight players share the connections of at most three clients.
//!
//! ```text
//! $ cargo run --example ping_pong_pool --features self-signed
//! player 1: pong, pong, pong
//! ...
//! 8 players, 24 pongs, 3 connections
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use wharf::pool::{Pool, PoolOptions};
use wharf::tls::{Acceptor, ClientTls, Connector, Identity, ServerTls, Trust};
use wharf::{Client, Connection, Result, Server};

const PLAYERS: usize = 8;
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    let identity = Identity::self_signed(["localhost"])?;
    let trust = Trust::from_der(identity.chain().next().unwrap_or_default())?;
    let acceptor = Acceptor::new(ServerTls::new(identity))?;
    let server = Server::bind("127.0.0.1:0").tls(&acceptor).start(answer)?;

    // It is made once; every connection of the pool is made by it. Nobody but this server is taken for it.
    let connector = Connector::new(ClientTls::new().trust(trust).server_name("localhost"))?;
    let client = Client::new(server.local_addr()).tls(&connector).connect_within(PATIENCE);

    wharf::run(async {
        let pool = Pool::new(client, PoolOptions::default().size(3).within(PATIENCE))?;
        let players: Vec<_> = (1..=PLAYERS).map(|id| wharf::spawn(play(id, pool.clone()))).collect();
        for player in players {
            player.await??;
        }
        pool.close();
        pool.emptied().await;
        Ok::<(), wharf::Error>(())
    })??;

    let stats = server.drain(PATIENCE).wait()?;
    println!("{PLAYERS} players, {} pongs, {} connections", PLAYERS * ROUNDS, stats.accepted);
    Ok(())
}

/// The server's side: a pong for every ping; an error or the peer's end is the end.
async fn answer(mut conn: Connection) -> Result<()> {
    let mut ping = [0; 4];
    loop {
        match conn.recv_exact(&mut ping).await {
            Ok(()) => conn.send(b"pong").await?,
            Err(error) if error.partial() == Some(0) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// The client's side: each round takes a connection out, and puts it back when the guard is dropped.
async fn play(id: usize, pool: Pool<Connection>) -> Result<()> {
    let mut pongs = Vec::new();
    for _ in 0..ROUNDS {
        let mut conn = pool.get().await?;
        conn.send(b"ping").await?;
        let mut pong = [0; 4];
        conn.recv_exact(&mut pong).within(PATIENCE).await?;
        pongs.push(String::from_utf8_lossy(&pong).into_owned());
    }
    println!("player {id}: {}", pongs.join(", "));
    Ok(())
}
