//! The load of bulk: every connection has one transfer of a fixed size, to the server or from it, and when all have ended
//! they have the next one; on one thread. So nothing is on the way when a clock is read. The server confirms what it has
//! received with the last byte of it; what it sends is checked byte by byte.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustls::ClientConfig;
use socket2::SockRef;

use super::Tls;
use crate::client::{Exercise, Progress, STALLED};
use crate::pattern::{Pattern, RUN_MAX};
use crate::sys::{Epoll, Interest};

/// Bytes that are confirmed, or asked for, at a time: enough that asking costs nothing.
pub const TRANSFER: usize = 1024 * 1024;
/// How much a client writes at a time: a record.
const WRITE: usize = 16 * 1024;

pub struct Bulk {
    epoll: Epoll,
    streams: Vec<Stream>,
    direction: Direction,
    pattern: Pattern,
    buffer: Vec<u8>,
    progress: Progress,
}

#[derive(Copy, Clone, PartialEq)]
enum Direction {
    ToServer,
    /// The server is asked for writes of so many KiB.
    FromServer(u8),
}

/// One connection, and how far its current transfer is.
struct Stream {
    tls: Tls,
    sent: usize,
    received: usize,
}

impl Bulk {
    pub fn upload(server: SocketAddr, trust: &Arc<ClientConfig>, connections: usize) -> Result<Bulk> {
        Bulk::start(server, trust, connections, Direction::ToServer)
    }

    pub fn download(
        server: SocketAddr,
        trust: &Arc<ClientConfig>,
        connections: usize,
        write_kib: u8,
    ) -> Result<Bulk> {
        Bulk::start(server, trust, connections, Direction::FromServer(write_kib))
    }

    fn start(
        server: SocketAddr,
        trust: &Arc<ClientConfig>,
        connections: usize,
        direction: Direction,
    ) -> Result<Bulk> {
        ensure!(connections > 0, "an empty load");
        let mut load = Bulk {
            epoll: Epoll::new(connections)?,
            streams: Vec::new(),
            direction,
            pattern: Pattern::new(),
            buffer: vec![0; RUN_MAX],
            progress: Progress::default(),
        };
        for index in 0..connections {
            let socket = TcpStream::connect_timeout(&server, STALLED).context("connect")?;
            socket.set_nodelay(true)?;
            let tls = Tls::connect(socket, trust)?;
            SockRef::from(&tls).set_nonblocking(true)?;
            load.epoll.add(&tls, index as u64, Interest::Edge)?;
            load.streams.push(Stream {
                tls,
                sent: 0,
                received: 0,
            });
        }
        Ok(load)
    }

    /// One transfer on every connection.
    fn round(&mut self) -> Result<()> {
        for index in 0..self.streams.len() {
            let stream = &mut self.streams[index];
            (stream.sent, stream.received) = (0, 0);
            self.advance(index)?;
        }
        let to_receive = self.direction.to_receive();
        while self.streams.iter().any(|stream| stream.received < to_receive) {
            let count = self.epoll.wait(Some(STALLED))?;
            ensure!(count > 0, "no progress for {STALLED:?}");
            self.progress.waits += 1;
            self.progress.events += count as u64;
            for event in 0..count {
                self.advance(self.epoll.key(event) as usize)?;
            }
        }
        self.progress.operations += (self.streams.len() * TRANSFER / OPERATION) as u64;
        Ok(())
    }

    fn advance(&mut self, index: usize) -> Result<()> {
        self.streams[index]
            .advance(self.direction, &self.pattern, &mut self.buffer)
            .with_context(|| format!("connection {index}"))
    }
}

/// What is counted.
const OPERATION: usize = 1024;

impl Stream {
    /// Sends and receives what can be sent and received of its transfer.
    fn advance(&mut self, direction: Direction, pattern: &Pattern, buffer: &mut [u8]) -> Result<()> {
        if let Err(error) = self.send(direction, pattern)
            && error.kind() != ErrorKind::WouldBlock
        {
            return Err(error.into());
        }
        loop {
            let count = match self.tls.read(buffer) {
                Ok(0) => bail!("the server closed it"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            ensure!(
                self.sent == direction.to_send() && self.received + count <= direction.to_receive(),
                "unasked-for bytes"
            );
            let expected = direction.answer(pattern, self.received, count);
            ensure!(buffer[..count] == *expected, "wrong bytes at {}", self.received);
            self.received += count;
        }
    }

    fn send(&mut self, direction: Direction, pattern: &Pattern) -> io::Result<()> {
        while self.sent < direction.to_send() {
            self.sent += match direction {
                Direction::ToServer => {
                    let len = (TRANSFER - self.sent).min(WRITE);
                    self.tls.write(pattern.run(0, self.sent as u64, len))?
                }
                Direction::FromServer(write_kib) => self.tls.write(&[write_kib])?,
            };
        }
        self.tls.flush()
    }
}

impl Direction {
    fn to_send(self) -> usize {
        match self {
            Direction::ToServer => TRANSFER,
            Direction::FromServer(_) => 1,
        }
    }

    fn to_receive(self) -> usize {
        match self {
            Direction::ToServer => 1,
            Direction::FromServer(_) => TRANSFER,
        }
    }

    /// The `count` bytes that the server sends after `position` others of a transfer.
    fn answer(self, pattern: &Pattern, position: usize, count: usize) -> &[u8] {
        match self {
            Direction::ToServer => pattern.run(0, TRANSFER as u64 - 1, 1),
            Direction::FromServer(_) => pattern.run(0, position as u64, count),
        }
    }
}

impl Exercise for Bulk {
    fn run(&mut self, operations: u64) -> Result<()> {
        let target = self.progress.operations + operations;
        while self.progress.operations < target {
            self.round()?;
        }
        Ok(())
    }

    fn progress(&self) -> Progress {
        self.progress
    }

    fn at_once(&self) -> u64 {
        self.streams.len() as u64
    }
}
