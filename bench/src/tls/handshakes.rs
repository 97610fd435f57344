//! The load of short TLS connections: handshake, one message, its echo, and the end in the orderly way, from both sides;
//! a fixed number at once, on one thread.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rustls::{ClientConfig, HandshakeKind};

use super::{Credentials, MESSAGE, Suite, Tls};
use crate::client::{Exercise, Progress, STALLED};
use crate::pattern::Pattern;
use crate::sys::{Epoll, Interest};

pub struct Handshakes {
    server: SocketAddr,
    epoll: Epoll,
    slots: Vec<Slot>,
    pattern: Pattern,
    progress: Progress,
    resumed: bool,
}

/// Where one connection comes after the other.
struct Slot {
    tls: Tls,
    /// Tells the connection's bytes from those of others.
    number: usize,
    received: usize,
    config: Arc<ClientConfig>,
}

impl Handshakes {
    /// If `resumed`, each connection but the first of a slot resumes the session of the one before.
    pub fn start(
        server: SocketAddr,
        credentials: &Credentials,
        suite: Suite,
        at_once: usize,
        resumed: bool,
    ) -> Result<Handshakes> {
        let mut load = Handshakes {
            server,
            epoll: Epoll::new(at_once)?,
            slots: Vec::new(),
            pattern: Pattern::new(),
            progress: Progress::default(),
            resumed,
        };
        for index in 0..at_once {
            let slot = load.open(index, index, credentials.trust(suite, resumed)?)?;
            load.slots.push(slot);
        }
        Ok(load)
    }

    /// The client's hello is under way when this returns.
    fn open(&self, index: usize, number: usize, config: Arc<ClientConfig>) -> Result<Slot> {
        let socket = TcpStream::connect_timeout(&self.server, STALLED).context("connect")?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut tls = Tls::begin(socket, &config)?;
        tls.write_all(self.pattern.run(number, 0, MESSAGE))?;
        self.epoll.add(&tls, index as u64, Interest::Edge)?;
        Ok(Slot {
            tls,
            number,
            received: 0,
            config,
        })
    }

    fn turn(&mut self) -> Result<()> {
        let count = self.epoll.wait(Some(STALLED))?;
        ensure!(count > 0, "no progress for {STALLED:?}");
        self.progress.waits += 1;
        self.progress.events += count as u64;
        for event in 0..count {
            let index = self.epoll.key(event) as usize;
            let number = self.slots[index].number;
            let expected = if self.resumed && number >= self.slots.len() {
                HandshakeKind::Resumed
            } else {
                HandshakeKind::Full
            };
            let slot = &mut self.slots[index];
            let is_over = slot.advance(&self.pattern, expected);
            if is_over.with_context(|| format!("connection {number}"))? {
                let config = slot.config.clone();
                self.slots[index] = self.open(index, number + self.slots.len(), config)?;
                self.progress.operations += 1;
            }
        }
        Ok(())
    }
}

impl Slot {
    /// Whether both sides have said that nothing follows.
    fn advance(&mut self, pattern: &Pattern, expected: HandshakeKind) -> Result<bool> {
        let mut buffer = [0; MESSAGE + 1];
        loop {
            let count = match self.tls.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            ensure!(self.received + count <= MESSAGE, "unasked-for bytes");
            let echo = pattern.run(self.number, self.received as u64, count);
            ensure!(buffer[..count] == *echo, "wrong bytes");
            self.received += count;
            if self.received == MESSAGE {
                let kind = self.tls.handshake_kind();
                ensure!(
                    kind == Some(expected),
                    "the handshake was {kind:?}, not {expected:?}"
                );
                self.tls.finish()?;
            }
        }
        ensure!(self.received == MESSAGE, "the server closed it");
        Ok(true)
    }
}

impl Exercise for Handshakes {
    fn run(&mut self, operations: u64) -> Result<()> {
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
        self.slots.len() as u64
    }
}
