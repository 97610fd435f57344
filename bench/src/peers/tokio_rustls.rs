//! tokio with rustls: a task per connection, as without TLS, behind tokio-rustls's acceptor.

use std::sync::Arc;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{ANY_PORT, BUFFER_SIZE, Peer, announce};
use crate::pattern::Pattern;
use crate::sys;
use crate::tls::{Credentials, Service, TRANSFER};

pub const PEER: Peer = Peer {
    name: "tokio_rustls",
    about: "tokio 1.54 and tokio-rustls 0.26, current_thread runtime, otherwise as tokio_current",
    ..Peer::tls(current)
};

pub const MULTI: Peer = Peer {
    name: "tokio_rustls_multi",
    about: "the same with the multi_thread runtime, a worker per core of the machine",
    ..Peer::tls(multi)
};

fn current(service: Service, credentials: &Credentials) -> Result<()> {
    runtime::Builder::new_current_thread()
        .enable_io()
        .build()?
        .block_on(accept(service, credentials))
}

fn multi(service: Service, credentials: &Credentials) -> Result<()> {
    runtime::Builder::new_multi_thread()
        .worker_threads(sys::cores_of_the_machine()?)
        .enable_io()
        .build()?
        .block_on(accept(service, credentials))
}

async fn accept(service: Service, credentials: &Credentials) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(credentials.server()?));
    let listener = TcpListener::bind(ANY_PORT).await?;
    announce(listener.local_addr()?)?;
    loop {
        let (socket, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        // A connection that breaks is the client's to report.
        tokio::spawn(async move { handle(service, acceptor, socket).await.ok() });
    }
}

async fn handle(service: Service, acceptor: TlsAcceptor, socket: TcpStream) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut stream = acceptor.accept(socket).await?;
    match service {
        Service::Echo => echo(&mut stream).await?,
        Service::Sink => sink(&mut stream).await?,
        Service::Source => source(&mut stream).await?,
    }
    // Without it there is no close_notify.
    stream.shutdown().await?;
    Ok(())
}

async fn echo(stream: &mut TlsStream<TcpStream>) -> Result<()> {
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await?;
        // What was written may still be in the session's own buffer.
        stream.flush().await?;
    }
}

async fn sink(stream: &mut TlsStream<TcpStream>) -> Result<()> {
    let mut buffer = vec![0; BUFFER_SIZE];
    let mut received = 0;
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        received += count;
        if received >= TRANSFER {
            received -= TRANSFER;
            stream.write_all(&buffer[count - 1..count]).await?;
            stream.flush().await?;
        }
    }
}

async fn source(stream: &mut TlsStream<TcpStream>) -> Result<()> {
    let pattern = Pattern::new();
    let mut request = [0];
    while stream.read(&mut request).await? > 0 {
        let write = usize::from(request[0]) * 1024;
        for position in (0..TRANSFER).step_by(write) {
            let len = write.min(TRANSFER - position);
            stream.write_all(pattern.run(0, position as u64, len)).await?;
        }
        stream.flush().await?;
    }
    Ok(())
}
