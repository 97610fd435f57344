//! An edge-triggered epoll loop with nothing around it: what is left is the kernel's cost. No limits, no deadlines.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::Result;

use super::{ANY_PORT, BUFFER_SIZE, Peer, announce};
use crate::sys::{Epoll, Interest};

pub const PEER: Peer = Peer {
    name: "bare_epoll",
    about: "epoll, recv and send by hand on one thread, one buffer for all: the practical limit",
    serve,
};

fn serve() -> Result<()> {
    let listener = TcpListener::bind(ANY_PORT)?;
    listener.set_nonblocking(true)?;
    let mut epoll = Epoll::new(EVENTS_MAX)?;
    epoll.add(&listener, LISTENER, Interest::Level)?;
    announce(listener.local_addr()?)?;

    let mut connections = Vec::new();
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        for event in 0..epoll.wait(None)? {
            match epoll.key(event) {
                LISTENER => accept(&listener, &epoll, &mut connections)?,
                key => {
                    let slot = &mut connections[key as usize];
                    let Some(connection): &mut Option<Connection> = slot else {
                        continue;
                    };
                    if !connection.echo(&mut buffer, epoll.is_end(event)) {
                        *slot = None;
                    }
                }
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    epoll: &Epoll,
    connections: &mut Vec<Option<Connection>>,
) -> io::Result<()> {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        epoll.add(&stream, connections.len() as u64, Interest::Edge)?;
        connections.push(Some(Connection {
            stream,
            unsent: Vec::new(),
        }));
    }
}

struct Connection {
    stream: TcpStream,
    /// Empty unless the peer reads more slowly than it sends; nothing is received meanwhile.
    unsent: Vec<u8>,
}

impl Connection {
    /// Whether the connection goes on. `end`: the peer's FIN or RST is behind the bytes that wait.
    fn echo(&mut self, buffer: &mut [u8], end: bool) -> bool {
        if !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            if !self.send(&unsent) {
                return false;
            }
        }
        while self.unsent.is_empty() {
            match self.stream.read(buffer) {
                Ok(0) => return false,
                Ok(count) if !self.send(&buffer[..count]) => return false,
                // A short read means the socket is drained (epoll(7), edge-triggered stream sockets).
                Ok(count) if count < buffer.len() && !end => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }

    fn send(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        self.unsent.extend_from_slice(bytes);
        true
    }
}

const LISTENER: u64 = u64::MAX;
/// tokio's default, too.
const EVENTS_MAX: usize = 1024;
