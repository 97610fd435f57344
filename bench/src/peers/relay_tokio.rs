//! tokio as a relay, on one thread: what its documentation shows for a proxy.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;

use super::{ANY_PORT, LARGE_BUFFER_SIZE, Peer, announce};

pub const PEER: Peer = Peer {
    name: "relay_tokio",
    about: "tokio 1.54, current_thread runtime, copy_bidirectional with its own 8 KiB each way",
    ..Peer::relay(|target| serve(target, TOKIOS_OWN))
};

pub const LARGE: Peer = Peer {
    name: "relay_tokio_64k",
    about: "the same with 64 KiB each way",
    ..Peer::relay(|target| serve(target, LARGE_BUFFER_SIZE))
};

/// What `copy_bidirectional` takes.
const TOKIOS_OWN: usize = 8 * 1024;

fn serve(target: SocketAddr, buffer: usize) -> Result<()> {
    runtime::Builder::new_current_thread()
        .enable_io()
        .build()?
        .block_on(async {
            let listener = TcpListener::bind(ANY_PORT).await?;
            announce(listener.local_addr()?)?;
            loop {
                let (near, _) = listener.accept().await?;
                // A connection that breaks is the client's to report.
                tokio::spawn(async move { pass_on(near, target, buffer).await.ok() });
            }
        })
}

async fn pass_on(mut near: TcpStream, target: SocketAddr, buffer: usize) -> Result<()> {
    near.set_nodelay(true)?;
    let mut far = TcpStream::connect(target).await?;
    far.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut near, &mut far, buffer, buffer).await?;
    Ok(())
}
