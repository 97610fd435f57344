//! Holds many connections open to one server, sends a distinct message on each, and checks every byte that comes back.
//!
//! Tells whether a server keeps its connections apart and what an idle one costs in its memory; not how fast it is.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use socket2::{Domain, Protocol, Socket, Type};

use crate::pattern::Noise;
use crate::peers::{self, Field, Peer};
use crate::server_process::{Placing, ServerProcess};
use crate::{proc, sys};

#[derive(Args)]
pub struct C10k {
    /// The echo server.
    #[arg(long, required_unless_present = "peer", conflicts_with = "peer")]
    to: Option<SocketAddr>,
    /// Start this peer instead, as the server and for its memory.
    #[arg(long, value_parser = peers::find)]
    peer: Option<&'static Peer>,
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// The server's process, to report its memory.
    #[arg(long)]
    pid: Option<u32>,
    /// Seconds of silence before the second message of each connection.
    #[arg(long, default_value_t = 1.0)]
    hold: f64,
    /// Seconds that any one step of a connection may take.
    #[arg(long, default_value_t = 10.0)]
    patience: f64,
}

pub fn run(options: &C10k) -> Result<()> {
    let limit = sys::raise_open_files_limit()?;
    ensure!(
        limit > options.connections as u64 + 16,
        "{} connections need more than the {limit} open files that this process may have",
        options.connections
    );
    ensure!(
        options.peer.is_none_or(|peer| peer.field != Field::SmallMessages),
        "that peer answers messages of one size, and here each has another"
    );
    ensure!(
        options.peer.is_none_or(|peer| peer.field != Field::Tls),
        "that peer wants TLS, which is not spoken here"
    );
    ensure!(
        options.peer.is_none_or(|peer| peer.field != Field::Relay),
        "that peer is a relay, and has no server behind it here"
    );
    let started = options
        .peer
        .map(|peer| ServerProcess::start(peer, &Placing::default()))
        .transpose()?;
    let to = started.as_ref().map(|server| server.address).or(options.to);
    let to = to.context("neither an address nor a peer")?;
    let memory = Memory {
        pid: started.as_ref().map(ServerProcess::pid).or(options.pid),
    };
    let patience = Duration::from_secs_f64(options.patience);

    // What a server allocates once, for its first connection, is not a connection's share.
    let mut first = Crowd::open(to, 1, patience);
    first.exchange(0);
    first.close();
    first.failures.into_result().context("a single connection")?;
    thread::sleep(SETTLE);
    let memory_before = memory.resident()?;

    let mut crowd = timed("opened", || Crowd::open(to, options.connections, patience));
    timed("first message on each", || crowd.exchange(1));
    thread::sleep(Duration::from_secs_f64(options.hold));
    let memory_held = memory.resident()?;
    let held = crowd.members.len();
    timed("second message on each", || crowd.exchange(2));
    timed("closed", || crowd.close());
    thread::sleep(SETTLE);
    let memory_after = memory.resident()?;

    println!(
        "{held} of {} connections held at once to {to}",
        options.connections
    );
    if let (Some(before), Some(idle), Some(after)) = (memory_before, memory_held, memory_after) {
        let each = idle.saturating_sub(before) as f64 / held.max(1) as f64;
        println!(
            "server memory: {before} B before, {idle} B with all idle after one message each, \
             {after} B after closing; {each:.0} B per idle connection (the kernel's part not included)"
        );
    }
    crowd.failures.into_result()?;
    println!("every byte was right");
    Ok(())
}

/// For the server to notice that connections closed.
const SETTLE: Duration = Duration::from_millis(300);

fn timed<T>(what: &str, step: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = step();
    println!("{what}: {:.2} s", start.elapsed().as_secs_f64());
    result
}

/// Connections that are open, and what went wrong with the others.
struct Crowd {
    members: Vec<Member>,
    failures: Failures,
}

struct Member {
    number: usize,
    stream: TcpStream,
}

impl Crowd {
    fn open(to: SocketAddr, connections: usize, patience: Duration) -> Crowd {
        let mut crowd = Crowd {
            members: Vec::new(),
            failures: Failures::default(),
        };
        for number in 0..connections {
            // A SYN that finds the backlog full is lost for a second; servers have between 128 and 4096.
            if number % 64 == 63 {
                thread::sleep(Duration::from_millis(1));
            }
            match open(to, number, patience) {
                Ok(stream) => crowd.members.push(Member { number, stream }),
                Err(error) => crowd.failures.add("connect", number, &error.into()),
            }
        }
        crowd
    }

    /// One message on every connection before the first echo is read, so that all are in the server at once.
    fn exchange(&mut self, pass: u64) {
        self.each("send", |member| {
            Ok(member.stream.write_all(&message(member.number, pass))?)
        });
        self.each("echo", |member| member.expect(&message(member.number, pass)));
        self.each("surplus", Member::expect_silence);
    }

    /// FIN on every connection, then the server's own FIN from each.
    fn close(&mut self) {
        self.each("shutdown", |member| {
            Ok(member.stream.shutdown(std::net::Shutdown::Write)?)
        });
        self.each("end", |member| {
            let surplus = member.stream.read(&mut [0])?;
            ensure!(surplus == 0, "bytes instead of the end");
            Ok(())
        });
        self.members.clear();
    }

    /// Does `step` with every member, and parts with those that fail.
    fn each(&mut self, what: &'static str, mut step: impl FnMut(&mut Member) -> Result<()>) {
        let failures = &mut self.failures;
        self.members.retain_mut(|member| match step(member) {
            Ok(()) => true,
            Err(error) => {
                failures.add(what, member.number, &error);
                false
            }
        });
    }
}

impl Member {
    fn expect(&mut self, message: &[u8]) -> Result<()> {
        let mut echo = vec![0; message.len()];
        self.stream.read_exact(&mut echo)?;
        let wrong = echo.iter().zip(message).position(|(echoed, sent)| echoed != sent);
        match wrong {
            Some(place) => Err(anyhow!("wrong byte at {place} of {}", message.len())),
            None => Ok(()),
        }
    }

    fn expect_silence(&mut self) -> Result<()> {
        self.stream.set_nonblocking(true)?;
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false)?;
        match peeked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Ok(0) => Err(anyhow!("the server closed it")),
            Ok(_) => Err(anyhow!("more bytes than were sent")),
            Err(error) => Err(error.into()),
        }
    }
}

fn open(to: SocketAddr, number: usize, patience: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(from) = source(to, number) {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&to.into(), patience)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

/// On loopback, another source address for every few thousand connections, so that ports suffice.
fn source(to: SocketAddr, number: usize) -> Option<IpAddr> {
    let group = u8::try_from(number / CONNECTIONS_PER_SOURCE).unwrap_or(u8::MAX - 2);
    match to.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Some(Ipv4Addr::new(127, 0, 0, 2 + group).into()),
        _ => None,
    }
}

const CONNECTIONS_PER_SOURCE: usize = 2000;

/// Differs in bytes for each connection and pass, and in length between neighbours.
fn message(number: usize, pass: u64) -> Vec<u8> {
    let mut noise = Noise::new((number as u64) << 8 | pass);
    (0..64 + number % 193).map(|_| noise.next_byte()).collect()
}

/// Counted by what failed and why, each kind with the first connection that showed it.
#[derive(Default)]
struct Failures {
    kinds: BTreeMap<(&'static str, String), (usize, usize)>,
}

impl Failures {
    fn add(&mut self, what: &'static str, number: usize, error: &anyhow::Error) {
        let (count, _) = self.kinds.entry((what, error.to_string())).or_insert((0, number));
        *count += 1;
    }

    fn into_result(self) -> Result<()> {
        for ((what, error), (count, first)) in &self.kinds {
            println!("{what}: {error}: {count} connections, the first is number {first}");
        }
        ensure!(self.kinds.is_empty(), "connections failed");
        Ok(())
    }
}

/// The server's memory, when its process is known.
struct Memory {
    pid: Option<u32>,
}

impl Memory {
    fn resident(&self) -> Result<Option<u64>> {
        self.pid.map(proc::resident).transpose()
    }
}
