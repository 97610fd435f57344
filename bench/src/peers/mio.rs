//! A mio loop: bare_epoll.rs on the portable layer under tokio.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;

use anyhow::Result;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token};

use super::edge::{Connection, Table};
use super::{BUFFER_SIZE, Peer, announce, listen};

pub const PEER: Peer = Peer {
    name: "mio",
    about: "mio 1.2, epoll, a loop by hand on one thread, one buffer of 16 KiB for all",
    ..Peer::echo(serve)
};

fn serve() -> Result<()> {
    let listener = listen()?;
    listener.set_nonblocking(true)?;
    let mut listener = TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    announce(listener.local_addr()?)?;

    let mut events = Events::with_capacity(EVENTS_MAX);
    let mut connections = Table::new();
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in &events {
            match event.token() {
                LISTENER => accept(&listener, poll.registry(), &mut connections)?,
                Token(key) => {
                    let Some(connection) = connections.get(key) else {
                        continue;
                    };
                    let end = event.is_read_closed() || event.is_error();
                    if !connection.echo(&mut buffer, end) {
                        connections.remove(key);
                    }
                }
            }
        }
    }
}

fn accept(listener: &TcpListener, registry: &Registry, connections: &mut Table<TcpStream>) -> io::Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        stream.set_nodelay(true)?;
        let key = stream.as_raw_fd() as usize;
        registry.register(&mut stream, Token(key), Interest::READABLE | Interest::WRITABLE)?;
        connections.insert(key, Connection::new(stream));
    }
}

const LISTENER: Token = Token(usize::MAX);
const EVENTS_MAX: usize = 1024;
