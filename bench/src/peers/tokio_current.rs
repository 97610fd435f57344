//! tokio on one thread: what its documentation shows for an echo server.

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;

use super::{ANY_PORT, BUFFER_SIZE, Peer, announce};

pub const PEER: Peer = Peer {
    name: "tokio_current",
    about: "tokio 1.54, current_thread runtime, a task and a 16 KiB buffer per connection",
    ..Peer::echo(serve)
};

fn serve() -> Result<()> {
    run(echo)
}

/// Serves each connection with `handle` on this thread.
pub fn run<F: Future<Output = Result<()>> + Send + 'static>(handle: fn(TcpStream) -> F) -> Result<()> {
    runtime::Builder::new_current_thread()
        .enable_io()
        .build()?
        .block_on(accept(handle))
}

/// Accepts for ever; each connection is a spawned task.
pub async fn accept<F: Future<Output = Result<()>> + Send + 'static>(
    handle: fn(TcpStream) -> F,
) -> Result<()> {
    let listener = TcpListener::bind(ANY_PORT).await?;
    announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        // A connection that breaks is the client's to report.
        tokio::spawn(async move { handle(stream).await.ok() });
    }
}

pub async fn echo(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await?;
    }
}
