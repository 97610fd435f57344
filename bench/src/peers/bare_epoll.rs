//! An edge-triggered epoll loop with nothing around it: what is left is the kernel's cost. No limits, no deadlines.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::Result;

use super::edge::{Connection, Table};
use super::{BUFFER_SIZE, Field, LARGE_BUFFER_SIZE, Peer, announce, listen};
use crate::sys::{self, Epoll, Interest};

pub const PEER: Peer = Peer {
    name: "bare_epoll",
    about: "epoll, recv and send by hand on one thread, one buffer of 16 KiB for all",
    ..Peer::echo(serve::<BUFFER_SIZE>)
};

pub const LARGE: Peer = Peer {
    name: "bare_epoll_64k",
    about: "the same with one buffer of 64 KiB",
    field: Field::Bulk,
    ..Peer::echo(serve::<LARGE_BUFFER_SIZE>)
};

fn serve<const SIZE: usize>() -> Result<()> {
    let listener = listen()?;
    listener.set_nonblocking(true)?;
    let mut epoll = Epoll::new(EVENTS_MAX)?;
    epoll.add(&listener, LISTENER, Interest::Level)?;
    announce(listener.local_addr()?)?;

    let mut connections = Table::new();
    let mut buffer = vec![0; SIZE];
    loop {
        for event in 0..epoll.wait(None)? {
            match epoll.key(event) {
                LISTENER => accept(&listener, &epoll, &mut connections)?,
                key => {
                    let Some(connection) = connections.get(key as usize) else {
                        continue;
                    };
                    if !connection.echo(&mut buffer, epoll.is_end(event)) {
                        connections.remove(key as usize);
                    }
                }
            }
        }
    }
}

fn accept(listener: &TcpListener, epoll: &Epoll, connections: &mut Table<TcpStream>) -> io::Result<()> {
    // The sockets have the listener's TCP_NODELAY.
    while let Some(stream) = sys::accept_nonblocking(listener)? {
        let key = stream.as_raw_fd();
        epoll.add(&stream, key as u64, Interest::Edge)?;
        connections.insert(key as usize, Connection::new(stream));
    }
    Ok(())
}

const LISTENER: u64 = u64::MAX;
/// tokio's default, too.
const EVENTS_MAX: usize = 1024;
