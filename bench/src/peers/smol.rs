//! smol on one thread: a local executor inside `block_on`, which also waits for epoll.

use anyhow::Result;
use smol::LocalExecutor;
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::net::{TcpListener, TcpStream};

use super::{ANY_PORT, BUFFER_SIZE, Peer, announce};

pub const PEER: Peer = Peer {
    name: "smol",
    about: "smol 2.0, epoll, LocalExecutor in block_on, a task and a 16 KiB buffer per connection",
    ..Peer::echo(serve)
};

fn serve() -> Result<()> {
    let executor = LocalExecutor::new();
    smol::block_on(executor.run(accept(&executor)))
}

async fn accept(executor: &LocalExecutor<'_>) -> Result<()> {
    let listener = TcpListener::bind(ANY_PORT).await?;
    announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        executor.spawn(async move { echo(stream).await.ok() }).detach();
    }
}

async fn echo(mut stream: TcpStream) -> Result<()> {
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
