//! The good client: one connection, one small message at a time, at a fixed rate.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::SocketAddr;
use crate::client::STALLED;
use crate::pattern::Pattern;

pub struct Good {
    stream: TcpStream,
    pattern: Pattern,
    position: u64,
    period: Duration,
}

/// In us.
#[derive(Copy, Clone, Serialize)]
pub struct RoundTrips {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Good {
    pub fn connect(server: SocketAddr, per_second: u32) -> Result<Good> {
        let stream = TcpStream::connect_timeout(&server, STALLED).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STALLED))?;
        Ok(Good {
            stream,
            pattern: Pattern::new(),
            position: 0,
            period: Duration::from_secs(1) / per_second,
        })
    }

    /// A message that the echo before it has kept waiting counts from when it was due.
    pub fn run(&mut self, messages: usize) -> Result<RoundTrips> {
        let mut times = Histogram::<u64>::new_with_bounds(1, LONGEST_NS, 3)?;
        let mut due = Instant::now();
        for _ in 0..messages {
            let ready = Instant::now();
            let begun = if ready < due {
                thread::sleep(due - ready);
                Instant::now()
            } else {
                due
            };
            self.exchange()?;
            times.saturating_record(begun.elapsed().as_nanos() as u64);
            due += self.period;
        }
        let micros = |part| times.value_at_quantile(part) as f64 / 1e3;
        Ok(RoundTrips {
            p50: micros(0.5),
            p99: micros(0.99),
            max: times.max() as f64 / 1e3,
        })
    }

    fn exchange(&mut self) -> Result<()> {
        let message = self.pattern.run(0, self.position, SIZE);
        let mut echo = [0; SIZE];
        self.stream.write_all(message).context("send")?;
        self.stream.read_exact(&mut echo).context("no echo")?;
        ensure!(echo == *message, "wrong bytes at {}", self.position);
        self.position += SIZE as u64;
        Ok(())
    }
}

const SIZE: usize = 64;
const LONGEST_NS: u64 = 10_000_000_000;
