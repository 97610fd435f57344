//! `wharf demo`: a ping-pong server and its clients in one process, first plain and then with TLS, and a check of every byte.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use futures_lite::future;
use hdrhistogram::Histogram;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use wharf::tls::{Acceptor, ClientTls, Connector, Identity, Info, ServerTls, Trust};
use wharf::{Backend, Client, Server, Stats};

use crate::args::{Args, Demo, Service, Style};
use crate::exit::{self, Failure};
use crate::values::Size;
use crate::{serve, services};

/// The longest that one message may take, there and back.
const EXCHANGE_WITHIN: Duration = Duration::from_secs(10);
/// How long the server's connections have to end when the clients have.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// How long a handshake may take: all clients shake hands at once, and the server is not alone on its processors.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(60);

pub(crate) fn run(args: &Demo) -> Result<(), Failure> {
    if let Style::Blocking = args.with.style {
        Args::refuse("--style blocking is for `wharf serve` only; the demo has async and event");
    }
    serve::raise_descriptor_limit();
    let interrupted = Arc::new(AtomicBool::new(false));
    end_on_signals(interrupted.clone())?;
    let plain = Part { args, tls: None };
    let tls = Part { args, tls: Some(Tls::new(args.clients)?) };
    plain.play(&interrupted)?;
    if !interrupted.load(Ordering::Relaxed) {
        tls.play(&interrupted)?;
    }
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "every message came back right")
        .and_then(|()| stdout.flush())
        .map_err(Failure::of_output)
}

/// One of the two games: half of the time is for each.
struct Part<'a> {
    args: &'a Demo,
    tls: Option<Tls>,
}

/// A certificate for this one time, and clients that trust it.
struct Tls {
    acceptor: Acceptor,
    connector: Connector,
}

impl Tls {
    fn new(clients: u32) -> wharf::Result<Tls> {
        let identity = Identity::self_signed(["127.0.0.1"])?;
        let trust = Trust::from_der(identity.chain().next().unwrap_or_default())?;
        let server =
            ServerTls::new(identity).handshake_within(HANDSHAKE_WITHIN).handshakes_max(clients as usize);
        Ok(Tls {
            acceptor: Acceptor::new(server)?,
            connector: Connector::new(ClientTls::new().trust(trust).resumption(false))?,
        })
    }
}

impl Part<'_> {
    fn play(&self, interrupted: &Arc<AtomicBool>) -> Result<(), Failure> {
        let args = self.args;
        let server = args.with.apply(Server::bind("127.0.0.1:0"));
        let server = match &self.tls {
            Some(tls) => server.tls(&tls.acceptor),
            None => server,
        };
        // The library's queue has room for all that comes at once.
        let server = services::start(server, Service::Echo, args.with.style, usize::MAX)?;
        // Each client takes a descriptor here and one at the server, which is this same process.
        if server.connections_max() / 2 < args.clients as usize {
            let most = server.connections_max() / 2;
            return Err(Failure::Found(format!(
                "{} clients need too many descriptors; at most {most} can play",
                args.clients
            )));
        }
        let client = Client::new(server.local_addr());
        let game = Arc::new(Game {
            client: match &self.tls {
                Some(tls) => client.tls(&tls.connector).connect_within(HANDSHAKE_WITHIN),
                None => client,
            },
            backend: args.with.backend,
            size: args.size.0,
            messages: AtomicU64::new(0),
            agreed: OnceLock::new(),
            over: AtomicBool::new(false),
            interrupted: interrupted.clone(),
        });
        let began = Instant::now();
        let mut tally = play(&game, args, args.duration / 2)?;
        let took = began.elapsed();
        let stats = server.drain(DRAIN_WITHIN).wait()?;
        let failure = tally.failure.take().or_else(|| self.unclean(&tally, &stats));
        let report = Report {
            args,
            agreed: game.agreed.get(),
            tally: &tally,
            took,
            stats: &stats,
            backends: serve::backends(&server),
        };
        print(&report).map_err(Failure::of_output)?;
        failure.map_or(Ok(()), Err)
    }

    /// What is wrong with the server's report, if anything is.
    fn unclean(&self, tally: &Tally, stats: &Stats) -> Option<Failure> {
        let bytes = tally.bytes(self.args);
        // What is counted are the wire's bytes, and with TLS those are more.
        let at_least = |counted: u64| if self.tls.is_some() { bytes.min(counted) } else { counted };
        let expected = [
            ("connections", stats.accepted, self.args.clients.into()),
            ("accept errors", stats.accept_errors, 0),
            ("bytes received", at_least(stats.received), bytes),
            ("bytes sent", at_least(stats.sent), bytes),
            ("bytes unsent", stats.unsent, 0),
            ("connections that broke", broken(stats), 0),
        ];
        let (what, is, should) = expected.into_iter().find(|(_, is, should)| is != should)?;
        Some(Failure::Found(format!("the server reports {is} {what}, where there should be {should}")))
    }
}

/// What all clients share.
struct Game {
    client: Client,
    backend: Backend,
    size: usize,
    /// How many came back right so far.
    messages: AtomicU64,
    /// What TLS has agreed on, if there is TLS.
    agreed: OnceLock<Info>,
    over: AtomicBool,
    /// That of both games.
    interrupted: Arc<AtomicBool>,
}

impl Game {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.interrupted.load(Ordering::Relaxed)
    }
}

/// What some of the clients have done.
struct Tally {
    /// Of each message that came back right, in nanoseconds.
    latency: Histogram<u64>,
    /// The first thing that went wrong.
    failure: Option<Failure>,
}

impl Default for Tally {
    fn default() -> Tally {
        let latency = Histogram::new_with_max(2 * EXCHANGE_WITHIN.as_nanos() as u64, 3);
        Tally { latency: latency.expect("three digits of a minute are within its bounds"), failure: None }
    }
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.latency.add(other.latency).expect("both have the same bounds");
        self.failure = self.failure.take().or(other.failure);
    }

    fn bytes(&self, args: &Demo) -> u64 {
        self.latency.len() * args.size.0 as u64
    }
}

/// The first signal ends the game, the second the process.
fn end_on_signals(interrupted: Arc<AtomicBool>) -> Result<(), Failure> {
    exit::on_signals(&exit::ENDING, move |signal| {
        if interrupted.swap(true, Ordering::Relaxed) {
            exit::at_once(exit::of_signal(signal));
        }
    })
}

/// Lets the clients play on threads of their own, and shows how they do.
fn play(game: &Arc<Game>, args: &Demo, duration: Duration) -> Result<Tally, Failure> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(args.clients as usize);
    let (report, reports) = mpsc::channel();
    for first in 0..threads {
        let (game, report) = (game.clone(), report.clone());
        let clients = (first as u32..args.clients).step_by(threads);
        thread::Builder::new()
            .name(format!("clients-{first}"))
            .spawn(move || drop(report.send(play_on_this_thread(&game, clients))))
            .map_err(|error| Failure::Io("start a thread", error))?;
    }
    drop(report);
    let progress = Progress::new(duration);
    let mut tally = Tally::default();
    loop {
        let left = duration.saturating_sub(progress.began.elapsed());
        if left.is_zero() {
            game.over.store(true, Ordering::Relaxed);
        }
        let wait = if left.is_zero() { PROGRESS_EVERY } else { left.min(PROGRESS_EVERY) };
        match reports.recv_timeout(wait) {
            Ok(report) => tally.add(report),
            Err(mpsc::RecvTimeoutError::Timeout) => progress.show(game.messages.load(Ordering::Relaxed)),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(tally),
        }
    }
}

fn play_on_this_thread(game: &Arc<Game>, clients: impl Iterator<Item = u32>) -> Tally {
    let tally = Rc::new(RefCell::new(Tally::default()));
    let play_all = async {
        let play_one = |client| wharf::spawn(play_one(game.clone(), client, tally.clone()));
        let playing: Vec<_> = clients.map(play_one).collect();
        for client in playing {
            client.await?;
        }
        Ok(())
    };
    let played = wharf::run_on(game.backend, play_all).and_then(|played| played);
    let mut tally = tally.take();
    if let Err(error) = played {
        tally.failure.get_or_insert(error.into());
    }
    tally
}

async fn play_one(game: Arc<Game>, client: u32, tally: Rc<RefCell<Tally>>) {
    if let Err(failure) = exchange_until_over(&game, client, &tally).await {
        // One is enough to know: the others need not go on.
        game.over.store(true, Ordering::Relaxed);
        tally.borrow_mut().failure.get_or_insert(failure);
    }
}

async fn exchange_until_over(game: &Game, client: u32, tally: &RefCell<Tally>) -> Result<(), Failure> {
    let conn = game.client.open().await?;
    if let Some(info) = conn.tls() {
        game.agreed.get_or_init(|| info);
    }
    let (mut read, mut write) = conn.split();
    let (mut message, mut answer) = (vec![0; game.size], vec![0; game.size]);
    for sequence in 0.. {
        fill(&mut message, client, sequence);
        let began = Instant::now();
        // Both at once: a message may be larger than all the buffers between here and there.
        let exchange = future::try_zip(write.send(&message), read.recv_exact(&mut answer));
        wharf::within(EXCHANGE_WITHIN, exchange).await??;
        let nanos = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if let Some(at) = message.iter().zip(&answer).position(|(sent, came)| sent != came) {
            let (sent, came) = (message[at], answer[at]);
            return Err(Failure::Found(format!(
                "message {sequence} of client {client}: byte {at} left as {sent:#04x} and came back as {came:#04x}"
            )));
        }
        tally.borrow_mut().latency.saturating_record(nanos);
        game.messages.fetch_add(1, Ordering::Relaxed);
        if game.is_over() {
            break;
        }
    }
    write.finish().await?;
    match read.recv(&mut answer).within(EXCHANGE_WITHIN).await? {
        0 => Ok(()),
        n => Err(Failure::Found(format!("client {client} got {n} bytes more than it had sent"))),
    }
}

/// Makes a message that is like no other: sequence number, client, and noise that depends on both and on the position.
fn fill(message: &mut [u8], client: u32, sequence: u64) {
    let mut noise = mixed(sequence ^ (u64::from(client) << 32));
    for word in message.chunks_mut(8) {
        noise = noise.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&mixed(noise).to_le_bytes()[..word.len()]);
    }
    let header = sequence.to_le_bytes().into_iter().chain(client.to_le_bytes());
    for (byte, head) in message.iter_mut().zip(header) {
        *byte = head;
    }
}

/// The finalizer of SplitMix64.
fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

fn broken(stats: &Stats) -> u64 {
    let broken = stats.closes.iter().filter(|(reason, _)| !reason.is_graceful());
    broken.map(|(_, count)| count).sum()
}

struct Report<'a> {
    args: &'a Demo,
    agreed: Option<&'a Info>,
    tally: &'a Tally,
    took: Duration,
    stats: &'a Stats,
    backends: String,
}

fn print(report: &Report<'_>) -> io::Result<()> {
    let Report { args, agreed, tally, took, stats, backends } = report;
    let Demo { clients, size: Size(size), with, .. } = args;
    let messages = tally.latency.len();
    let rate = (messages as f64 / took.as_secs_f64()) as u64;
    let bytes = tally.bytes(args);
    let quantile = |q| Duration::from_nanos(tally.latency.value_at_quantile(q));
    let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(quantile);
    let style = format!("{:?}", with.style).to_lowercase();
    let carried =
        agreed.map_or(String::from("plain"), |info| format!("{}, {}", info.version(), info.cipher()));
    let mut stdout = io::stdout().lock();
    writeln!(
        stdout,
        "ping-pong  {carried}: {clients} clients, {size} bytes a message, {style} style on {backends}"
    )?;
    writeln!(stdout, "messages   {} in {took:.1?}, {} per second", HumanCount(messages), HumanCount(rate))?;
    writeln!(stdout, "latency    p50 {p50:.1?}, p99 {p99:.1?}, p99.9 {p999:.1?}, max {max:.1?}")?;
    writeln!(stdout, "bytes      {} each way", HumanCount(bytes))?;
    writeln!(stdout, "server     {}\n", serve::summary(stats))?;
    stdout.flush()
}

/// A bar on standard error, if that is a terminal.
struct Progress {
    began: Instant,
    bar: ProgressBar,
}

impl Progress {
    fn new(duration: Duration) -> Progress {
        let bar = ProgressBar::new(duration.as_millis() as u64);
        let style = ProgressStyle::with_template("{bar:40} {msg}").expect("the template is a constant");
        bar.set_style(style);
        Progress { began: Instant::now(), bar }
    }

    fn show(&self, messages: u64) {
        let passed = self.began.elapsed();
        let rate = (messages as f64 / passed.as_secs_f64()) as u64;
        self.bar.set_message(format!("{} messages, {} per second", HumanCount(messages), HumanCount(rate)));
        self.bar.set_position(passed.as_millis() as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_messages_are_alike_and_no_two_words_of_one() {
        let mut words = HashSet::new();
        for (client, sequence) in [(0, 0), (0, 1), (1, 0), (1, 1), (63, 1_000_000)] {
            let mut message = [0; 1021];
            fill(&mut message, client, sequence);
            for word in message[16..].chunks_exact(8) {
                assert!(words.insert(word.to_vec()), "client {client}, message {sequence}");
            }
        }
    }

    #[test]
    fn a_message_begins_with_its_sequence_number_and_client() {
        let mut message = [0; 12];
        fill(&mut message, 7, 258);
        assert_eq!(message, [2, 1, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0]);
    }
}
