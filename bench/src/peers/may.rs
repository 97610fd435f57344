//! may: a coroutine with a stack of its own per connection, on epoll, written as if it blocked.

use std::io::{Read, Write};

use anyhow::Result;
use may::net::{TcpListener, TcpStream};

use super::{ANY_PORT, BUFFER_SIZE, Peer, announce};

pub const PEER: Peer = Peer {
    name: "may",
    about: "may 0.3, epoll, one worker thread, a coroutine and a 16 KiB buffer per connection",
    ..Peer::echo(serve)
};

fn serve() -> Result<()> {
    may::config().set_workers(1);
    let accepting = may::go!(accept);
    accepting
        .join()
        .unwrap_or_else(|_| anyhow::bail!("the accepting coroutine panicked"))
}

fn accept() -> Result<()> {
    let listener = TcpListener::bind(ANY_PORT)?;
    announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept()?;
        may::go!(move || echo(stream).ok());
    }
}

fn echo(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count])?;
    }
}
