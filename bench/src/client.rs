//! The load: N connections, each with a fixed number of messages on the way, on one thread.
//!
//! A closed loop: the next message leaves when an echo is complete. Every byte is checked. Does not know what it
//! measures, except for the time that messages take when asked to: measure.rs reads the clocks around it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use crate::pattern::{Pattern, RUN_MAX};
use crate::sys::{Epoll, Interest};

/// What to send.
#[derive(Copy, Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    pub connections: usize,
    pub size: usize,
    /// Messages that each connection has on the way at any time.
    pub depth: usize,
}

/// A load that can be measured.
pub trait Exercise {
    /// Runs until `operations` more were done, and to the end of that batch.
    fn run(&mut self, operations: u64) -> Result<()>;
    fn progress(&self) -> Progress;
    /// Operations under way at any time.
    fn at_once(&self) -> u64;
}

/// What the messages of a connection go through: a socket, or TLS on one. Does not block.
pub trait Wire: Read + Write + AsFd {
    /// Whether a read that was not filled has left nothing behind.
    const SHORT_READ_DRAINS: bool;
}

impl Wire for TcpStream {
    /// epoll(7), edge-triggered stream sockets.
    const SHORT_READ_DRAINS: bool = true;
}

/// Connected, and in the middle of its exchange after the first `run`.
pub struct Client<W = TcpStream> {
    epoll: Epoll,
    connections: Vec<Connection<W>>,
    pattern: Pattern,
    buffer: Vec<u8>,
    load: Load,
    progress: Progress,
    /// In ns, of messages whose connection has no other on the way.
    latency: Option<Histogram<u64>>,
}

/// What happened since the client connected.
#[derive(Copy, Clone, Default)]
pub struct Progress {
    /// Echoed messages, or closed connections.
    pub operations: u64,
    /// Calls of epoll_wait, and the events that they returned: how large the batches are that the server sees.
    pub waits: u64,
    pub events: u64,
}

impl Client {
    pub fn connect(server: SocketAddr, load: Load) -> Result<Client> {
        Client::connect_through(server, load, Ok)
    }
}

impl<W: Wire> Client<W> {
    /// The same through what `wire` makes of each connection, which may block until that stands.
    pub fn connect_through(
        server: SocketAddr,
        load: Load,
        wire: impl Fn(TcpStream) -> Result<W>,
    ) -> Result<Client<W>> {
        ensure!(
            load.connections > 0 && load.size > 0 && load.depth > 0,
            "an empty load"
        );
        let epoll = Epoll::new(load.connections)?;
        let mut connections = Vec::with_capacity(load.connections);
        for index in 0..load.connections {
            // A server that shares our core accepts only while we sleep, and its backlog may be as short as 128.
            if index % 64 == 63 {
                thread::sleep(Duration::from_millis(1));
            }
            let connection = Connection::open(server, index, &epoll, &wire);
            connections.push(connection.with_context(|| format!("connect to {server}"))?);
        }
        Ok(Client {
            epoll,
            connections,
            pattern: Pattern::new(),
            buffer: vec![0; RUN_MAX],
            load,
            progress: Progress::default(),
            latency: None,
        })
    }

    /// Starts to take the time of every message, anew if it did already.
    pub fn watch_latency(&mut self) -> Result<()> {
        self.latency = Some(Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?);
        let now = Instant::now();
        self.connections
            .iter_mut()
            .for_each(|connection| connection.sent_at = now);
        Ok(())
    }

    /// What was seen since `watch_latency`.
    pub fn latency(&mut self) -> Option<Histogram<u64>> {
        self.latency.take()
    }

    /// Receives what is under way, and sends nothing more.
    pub fn finish(&mut self) -> Result<()> {
        self.load.depth = 0;
        while self
            .connections
            .iter()
            .any(|connection| connection.received < connection.sent)
        {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<()> {
        let count = self.epoll.wait(Some(STALLED))?;
        ensure!(count > 0, "no echo for {STALLED:?}");
        self.progress.waits += 1;
        self.progress.events += count as u64;
        for event in 0..count {
            let connection = &mut self.connections[self.epoll.key(event) as usize];
            let before = connection.received / self.load.size as u64;
            connection.receive(&self.pattern, &mut self.buffer)?;
            let done = connection.received / self.load.size as u64 - before;
            if let (Some(latency), 1..) = (&mut self.latency, done) {
                let now = Instant::now();
                latency.saturating_record((now - connection.sent_at).as_nanos() as u64);
                connection.sent_at = now;
            }
            connection.send_allowed(&self.pattern, &self.load)?;
            self.progress.operations += done;
        }
        Ok(())
    }
}

impl<W: Wire> Exercise for Client<W> {
    fn run(&mut self, operations: u64) -> Result<()> {
        if self.progress.operations == 0 {
            for connection in &mut self.connections {
                connection.send_allowed(&self.pattern, &self.load)?;
            }
        }
        let target = self.progress.operations + operations;
        while self.progress.operations < target {
            self.turn()?;
        }
        Ok(())
    }

    fn progress(&self) -> Progress {
        self.progress
    }

    fn at_once(&self) -> u64 {
        (self.load.connections * self.load.depth) as u64
    }
}

struct Connection<W> {
    stream: W,
    index: usize,
    sent: u64,
    received: u64,
    /// When the last message left, while times are taken.
    sent_at: Instant,
}

impl<W: Wire> Connection<W> {
    fn open(
        server: SocketAddr,
        index: usize,
        epoll: &Epoll,
        wire: &impl Fn(TcpStream) -> Result<W>,
    ) -> Result<Connection<W>> {
        let socket = TcpStream::connect_timeout(&server, CONNECT_PATIENCE)?;
        socket.set_nodelay(true)?;
        // Closing resets: a run leaves no connection in TIME_WAIT for the next one to stumble over.
        SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
        let stream = wire(socket)?;
        SockRef::from(&stream).set_nonblocking(true)?;
        epoll.add(&stream, index as u64, Interest::Edge)?;
        Ok(Connection {
            stream,
            index,
            sent: 0,
            received: 0,
            sent_at: Instant::now(),
        })
    }

    fn receive(&mut self, pattern: &Pattern, buffer: &mut [u8]) -> Result<()> {
        loop {
            let count = match self.stream.read(buffer) {
                Ok(0) => bail!("connection {}: the server closed it", self.index),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    return Err(error).with_context(|| format!("connection {}", self.index));
                }
            };
            let expected = pattern.run(self.index, self.received, count);
            ensure!(
                buffer[..count] == *expected,
                "connection {}: wrong bytes at {}",
                self.index,
                self.received
            );
            self.received += count as u64;
            ensure!(
                self.received <= self.sent,
                "connection {}: unasked-for bytes",
                self.index
            );
            if W::SHORT_READ_DRAINS && count < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Sends in one piece whatever the completed echoes allow.
    fn send_allowed(&mut self, pattern: &Pattern, load: &Load) -> Result<()> {
        let size = load.size as u64;
        let allowed = (self.received / size + load.depth as u64) * size;
        while self.sent < allowed {
            let len = usize::try_from(allowed - self.sent)?.min(RUN_MAX);
            match self.stream.write(pattern.run(self.index, self.sent, len)) {
                Ok(count) => self.sent += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    return Err(error).with_context(|| format!("connection {}", self.index));
                }
            }
        }
        match self.stream.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                Err(error).with_context(|| format!("connection {}", self.index))
            }
            _ => Ok(()),
        }
    }
}

/// A server that is silent for this long has lost a message.
pub const STALLED: Duration = Duration::from_secs(5);
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
const LATENCY_MAX_NS: u64 = 10_000_000_000;
