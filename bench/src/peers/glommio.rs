//! glommio on one thread, on io_uring where a socket is not ready at once: a task per connection.

use anyhow::{Result, anyhow};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};

use super::{ANY_PORT, BUFFER_SIZE, Peer, announce};

pub const PEER: Peer = Peer {
    name: "glommio",
    about: "glommio 0.9, io_uring, one thread, a task and a 16 KiB buffer per connection",
    ..Peer::echo(serve)
};

fn serve() -> Result<()> {
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .make()
        .map_err(|error| anyhow!("{error}"))?;
    // Its errors cannot be shared between threads, as anyhow's have to be.
    executor.run(accept()).map_err(|error| anyhow!("{error}"))
}

async fn accept() -> glommio::Result<(), ()> {
    let listener = TcpListener::bind(ANY_PORT)?;
    announce(listener.local_addr()?)?;
    loop {
        let stream = listener.accept().await?;
        glommio::spawn_local(async move { echo(stream).await.ok() }).detach();
    }
}

async fn echo(mut stream: TcpStream) -> glommio::Result<(), ()> {
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
