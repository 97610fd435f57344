//! compio on one thread, on io_uring: a task per connection, whose buffer travels into the kernel and back.

use anyhow::Result;
use compio::buf::{BufResult, IntoInner, IoBuf};
use compio::driver::ProactorBuilder;
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::Runtime;

use super::{BUFFER_SIZE, Peer, announce, listen};

pub const PEER: Peer = Peer {
    name: "compio",
    about: "compio 0.19, io_uring, one thread, a task and a 16 KiB buffer per connection",
    ..Peer::echo(serve)
};

fn serve() -> Result<()> {
    let mut ring = ProactorBuilder::new();
    ring.single_issuer(true)
        .coop_taskrun(true)
        .taskrun_flag(true)
        .defer_taskrun(true);
    Runtime::builder().with_proactor(ring).build()?.block_on(accept())
}

async fn accept() -> Result<()> {
    let listener = TcpListener::from_std(listen()?)?;
    announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        compio::runtime::spawn(async move { echo(stream).await.ok() }).detach();
    }
}

async fn echo(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(BUFFER_SIZE);
    loop {
        let BufResult(count, filled) = stream.read(buffer).await;
        let count = count?;
        if count == 0 {
            return Ok(());
        }
        let BufResult(sent, slice) = stream.write_all(filled.slice(..count)).await;
        sent?;
        buffer = slice.into_inner();
    }
}
