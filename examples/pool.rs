//! A front server that asks a backend by a pool: a few connections for many clients, on all workers together.
//!
//! The front answers each line with the backend's answer to it. However many clients there are, the backend has four connections
//! at a time at most; who finds none free waits in turn.
//!
//! ```text
//! $ cargo run --example pool
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use wharf::pool::{PoolOptions, SharedPool};
use wharf::{Client, Connection, Result, Server};

const LINE: usize = 6;

fn main() -> Result<()> {
    let backend = Server::bind("127.0.0.1:0").start(shout)?;

    let options = PoolOptions::default().size(4).within(Duration::from_secs(3)).label("backend");
    let pool = SharedPool::new(Client::new(backend.local_addr()), options)?;
    let asked = pool.clone();
    let front = Server::bind("127.0.0.1:0").start(move |conn| ask(conn, asked.clone()))?;
    let address = front.local_addr();

    wharf::run(async {
        let clients: Vec<_> = (0..100).map(|_| wharf::spawn(talk(address))).collect();
        for client in clients {
            client.await??;
        }
        Ok::<(), wharf::Error>(())
    })??;

    println!("100 clients were answered; the backend accepted {} connections", backend.stats().accepted);
    front.drain(Duration::from_secs(3)).wait()?;
    backend.drain(Duration::from_secs(3)).wait()?;
    Ok(())
}

/// The backend: sends each line back in capitals.
async fn shout(mut conn: Connection) -> Result<()> {
    let mut line = [0; LINE];
    while conn.recv_exact(&mut line).await.is_ok() {
        line.make_ascii_uppercase();
        conn.send(&line).await?;
    }
    Ok(())
}

/// The front: asks the backend for each line.
async fn ask(mut conn: Connection, pool: SharedPool<Connection>) -> Result<()> {
    let mut line = [0; LINE];
    while conn.recv_exact(&mut line).await.is_ok() {
        // A connection that fails in the middle is not used again; one that does not goes back.
        let mut upstream = pool.get().await?;
        upstream.send(&line).await?;
        upstream.recv_exact(&mut line).within(Duration::from_secs(1)).await?;
        drop(upstream);
        conn.send(&line).await?;
    }
    Ok(())
}

/// A client with ten questions.
async fn talk(front: std::net::SocketAddr) -> Result<()> {
    let mut conn = Client::connect(front).await?;
    for _ in 0..10 {
        conn.send(b"hello\n").await?;
        let mut answer = [0; LINE];
        conn.recv_exact(&mut answer).within(Duration::from_secs(5)).await?;
        assert_eq!(&answer, b"HELLO\n");
    }
    conn.finish().await
}
