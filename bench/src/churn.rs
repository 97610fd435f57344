//! The load of short connections: connect, one message, its echo, close; a fixed number at once, on one thread.
//!
//! The client closes first and in the ordinary way, so the server reads the end and then closes its socket. The kernel is
//! told to forget our end of it at that moment (TCP_LINGER2), or TIME_WAIT would use up all ports within seconds.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};

use crate::client::{Exercise, Progress, STALLED};
use crate::pattern::{Pattern, RUN_MAX};
use crate::sys::{self, Epoll, Interest};

pub struct Churn {
    server: SocketAddr,
    epoll: Epoll,
    slots: Vec<Slot>,
    pattern: Pattern,
    buffer: Vec<u8>,
    size: usize,
    progress: Progress,
}

struct Slot {
    stream: TcpStream,
    /// Tells the connection's bytes from those of others.
    number: usize,
    received: usize,
}

impl Churn {
    pub fn start(server: SocketAddr, at_once: usize, size: usize) -> Result<Churn> {
        ensure!(
            at_once > 0 && (1..=RUN_MAX).contains(&size),
            "an empty or too large load"
        );
        let mut churn = Churn {
            server,
            epoll: Epoll::new(at_once)?,
            slots: Vec::new(),
            pattern: Pattern::new(),
            buffer: vec![0; RUN_MAX],
            size,
            progress: Progress::default(),
        };
        for index in 0..at_once {
            let slot = churn.open(index, index)?;
            churn.slots.push(slot);
        }
        Ok(churn)
    }

    /// On loopback the connection stands, and the message is under way, when this returns.
    fn open(&self, index: usize, number: usize) -> Result<Slot> {
        let mut stream = TcpStream::connect_timeout(&self.server, STALLED).context("connect")?;
        sys::forget_when_closed(&stream)?;
        stream.write_all(self.pattern.run(number, 0, self.size))?;
        stream.set_nonblocking(true)?;
        self.epoll.add(&stream, index as u64, Interest::Edge)?;
        Ok(Slot {
            stream,
            number,
            received: 0,
        })
    }

    fn turn(&mut self) -> Result<()> {
        let count = self.epoll.wait(Some(STALLED))?;
        ensure!(count > 0, "no echo for {STALLED:?}");
        self.progress.waits += 1;
        self.progress.events += count as u64;
        for event in 0..count {
            let index = self.epoll.key(event) as usize;
            if self.receive(index)? {
                let number = self.slots[index].number + self.slots.len();
                self.slots[index] = self.open(index, number)?;
                self.progress.operations += 1;
            }
        }
        Ok(())
    }

    /// Whether the echo is complete.
    fn receive(&mut self, index: usize) -> Result<bool> {
        let slot = &mut self.slots[index];
        let number = slot.number;
        let count = match slot.stream.read(&mut self.buffer) {
            Ok(0) => bail!("connection {number}: the server closed it"),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("connection {number}")),
        };
        let expected = self.pattern.run(number, slot.received as u64, count);
        ensure!(
            self.buffer[..count] == *expected,
            "connection {number}: wrong bytes"
        );
        slot.received += count;
        ensure!(
            slot.received <= self.size,
            "connection {number}: unasked-for bytes"
        );
        Ok(slot.received == self.size)
    }
}

impl Exercise for Churn {
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
