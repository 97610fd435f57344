//! The smallest pair: a server that reads one greeting, and a client that sends it.
//!
//! ```text
//! $ cargo run --example hello
//! client: connected to 127.0.0.1:35157
//! server: connection from 127.0.0.1:51461
//! client: sends "hello there"
//! server: read "hello there"
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use wharf::{Client, Connection, Server};

fn main() -> wharf::Result<()> {
    // Port 0: the system picks a free one. The server runs on threads of its own from here on.
    let server = Server::bind("127.0.0.1:0").start(greet)?;
    let address = server.local_addr();

    // Clients are async too; `run` turns this thread into a worker until the future is done.
    wharf::run(async {
        let mut conn = Client::connect(address).within(Duration::from_secs(3)).await?;
        println!("client: connected to {}", conn.peer_addr());
        println!("client: sends \"hello there\"");
        conn.send(b"hello there").await?;
        // The end of our side follows the greeting, and tells the server that it is whole.
        conn.finish().await?;
        // Nothing comes back but the server's own end: it has read everything.
        conn.recv(&mut [0; 1]).within(Duration::from_secs(3)).await?;
        Ok::<(), wharf::Error>(())
    })??;

    server.drain(Duration::from_secs(3)).wait()?;
    Ok(())
}

/// Runs once for each connection. When it returns, the connection is closed gracefully.
async fn greet(mut conn: Connection) -> wharf::Result<()> {
    println!("server: connection from {}", conn.peer_addr());
    // TCP is a stream: one `send` may arrive as several pieces, so read until the client ends.
    let mut greeting = Vec::new();
    while let Some(chunk) = conn.recv_chunk().within(Duration::from_secs(3)).await? {
        greeting.extend_from_slice(&chunk);
        if greeting.len() > 100 {
            return Err(wharf::Error::other("that is more than a greeting"));
        }
    }
    println!("server: read {:?}", String::from_utf8_lossy(&greeting));
    Ok(())
}
