//! The hostile peers: one thread for all of them, that gives each a turn at a fixed pace.
//!
//! A turn is a few system calls that never wait. Between turns a peer does nothing, so there is nothing to poll for.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::Kind;
use crate::sys;

/// Peers at their work, until `stop`.
pub struct Fleet {
    thread: JoinHandle<io::Result<()>>,
    shared: Arc<Shared>,
    peers: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    turns: AtomicU64,
    cpu_ns: AtomicU64,
}

pub struct FleetProgress {
    pub turns: u64,
    pub cpu: Duration,
}

impl Fleet {
    pub fn start(server: SocketAddr, kind: Kind, peers: usize) -> Fleet {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = thread::spawn(move || work(server, kind, peers, &theirs));
        Fleet {
            thread,
            shared,
            peers: peers as u64,
        }
    }

    /// Waits until each had several turns: readers have sent all that fits by then.
    pub fn settle(&self) -> Result<()> {
        let began = Instant::now();
        while self.progress().turns < SETTLED_TURNS * self.peers {
            ensure!(
                !self.thread.is_finished() && began.elapsed() < SETTLE_PATIENCE,
                "the hostile peers do not get to work"
            );
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub fn progress(&self) -> FleetProgress {
        FleetProgress {
            turns: self.shared.turns.load(Ordering::Relaxed),
            cpu: Duration::from_nanos(self.shared.cpu_ns.load(Ordering::Relaxed)),
        }
    }

    pub fn stop(self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow!("the hostile peers' thread panicked"))??;
        Ok(())
    }
}

const SETTLED_TURNS: u64 = 5;
const SETTLE_PATIENCE: Duration = Duration::from_secs(20);

impl Kind {
    /// Between two turns of one peer.
    pub fn pause(self) -> Duration {
        match self {
            Kind::Churn => Duration::from_millis(200),
            _ => Duration::from_millis(100),
        }
    }

    /// What the peer with this number does.
    fn of_peer(self, number: usize) -> Kind {
        match self {
            Kind::Mixed => [Kind::Readers, Kind::Writers, Kind::Silent][number % 3],
            kind => kind,
        }
    }
}

fn work(server: SocketAddr, kind: Kind, peers: usize, shared: &Shared) -> io::Result<()> {
    sys::step_back()?; // on the good client's core
    let mut crowd = Vec::new();
    for number in 0..peers {
        crowd.push(Peer {
            server,
            kind: kind.of_peer(number),
            stream: None,
        });
    }
    let (mut next, mut done) = (0, 0);
    let began = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        // Late turns are made up for, but not all at once: that would be another test.
        let due = (began.elapsed().as_secs_f64() / kind.pause().as_secs_f64() * peers as f64) as u64;
        for _ in 0..(due - done).min(TURNS_AT_ONCE) {
            crowd[next].turn()?;
            next = (next + 1) % peers;
            done += 1;
        }
        shared.turns.store(done, Ordering::Relaxed);
        let cpu = sys::cpu_time_of_thread()?;
        shared.cpu_ns.store(cpu.as_nanos() as u64, Ordering::Relaxed);
        thread::sleep(TICK);
    }
    Ok(())
}

const TICK: Duration = Duration::from_millis(1);
const TURNS_AT_ONCE: u64 = 32;

struct Peer {
    server: SocketAddr,
    kind: Kind,
    stream: Option<TcpStream>,
}

impl Peer {
    /// Whatever the server does about it, a peer that lost its connection comes back in its next turn.
    fn turn(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else {
            self.stream = Some(connect(self.server, self.kind)?);
            return Ok(());
        };
        let alive = match self.kind {
            Kind::Readers => fill(stream),
            Kind::Writers => read_some(stream) && write_some(stream, b"x"),
            Kind::Silent | Kind::Mixed => true,
            Kind::Churn => {
                self.stream = Some(connect(self.server, self.kind)?);
                true
            }
        };
        if !alive {
            self.stream = None;
        }
        Ok(())
    }
}

/// Sends until nothing more fits.
fn fill(stream: &mut TcpStream) -> bool {
    loop {
        match stream.write(&[b'x'; REQUEST]) {
            Ok(count) if count < REQUEST => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

fn read_some(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(count) => count > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    match stream.write(bytes) {
        Ok(count) => count > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

/// On loopback the handshake is over when this returns, unless the backlog is full: then it goes on by itself.
fn connect(server: SocketAddr, kind: Kind) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Closing resets, and leaves nothing in TIME_WAIT.
    socket.set_linger(Some(Duration::ZERO))?;
    if kind == Kind::Readers {
        // Loopback's segments of 64 KiB would make the kernel's first buffers forty times an Ethernet's.
        socket.set_tcp_mss(ETHERNET_MSS)?;
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
        socket.set_send_buffer_size(SMALL_BUFFER)?;
    }
    match socket.connect(&server.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let mut stream = TcpStream::from(socket);
    if kind == Kind::Churn {
        write_some(&mut stream, &[b'x'; REQUEST]); // in vain if it was refused already
    }
    Ok(stream)
}

const REQUEST: usize = 64;
const ETHERNET_MSS: u32 = 1460;
const SMALL_BUFFER: usize = 4096;
