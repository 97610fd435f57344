//! The standard library: a thread for each connection, a loop of read and write_all.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::{BUFFER_SIZE, Peer, announce, listen};

pub const PEER: Peer = Peer {
    name: "std_blocking",
    about: "std::net, a thread and a 16 KiB buffer per connection",
    ..Peer::echo(|| serve(None))
};

/// What Wharf's connections have by default: who is silent for a minute is ended. The kernel's timer for that is a part of each wait.
pub const PEER_TIMEOUT: Peer = Peer {
    name: "std_blocking_timeout",
    about: "the same with a read timeout of 60 s",
    ..Peer::echo(|| serve(Some(Duration::from_secs(60))))
};

fn serve(timeout: Option<Duration>) -> Result<()> {
    let listener = listen()?;
    announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = match listener.accept() {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            accepted => accepted?,
        };
        stream.set_read_timeout(timeout)?;
        thread::spawn(move || echo(stream));
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; BUFFER_SIZE];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}
