//! monoio on one thread, on io_uring: a task per connection, whose buffer travels into the kernel and back.

use anyhow::Result;
use monoio::buf::IoBuf;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{ListenerOpts, TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};

use super::{ANY_PORT, BACKLOG, BUFFER_SIZE, Peer, announce};

pub const PEER: Peer = Peer {
    name: "monoio",
    about: "monoio 0.2.4, io_uring, one thread, a task and a 16 KiB buffer per connection",
    ..Peer::echo(serve)
};

fn serve() -> Result<()> {
    let mut ring = io_uring_of_monoio::IoUring::builder();
    ring.setup_single_issuer()
        .setup_coop_taskrun()
        .setup_defer_taskrun();
    RuntimeBuilder::<IoUringDriver>::new()
        .uring_builder(ring)
        .build()?
        .block_on(accept())
}

async fn accept() -> Result<()> {
    let options = ListenerOpts::new().backlog(BACKLOG);
    let listener = TcpListener::bind_with_config(ANY_PORT, &options)?;
    announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        monoio::spawn(async move { echo(stream).await.ok() });
    }
}

async fn echo(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let (count, filled) = stream.read(buffer).await;
        let count = count?;
        if count == 0 {
            return Ok(());
        }
        let (sent, slice) = stream.write_all(filled.slice(..count)).await;
        sent?;
        buffer = slice.into_inner();
    }
}
