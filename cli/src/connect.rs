//! `wharf connect`: standard input to a socket, the socket to standard output.
//!
//! ```text
//!   stdin  --> thread --> channel --> upload   --> socket
//!   stdout <-- thread <-- channel <-- download <-- socket
//! ```
//!
//! Standard input and output may block for as long as they like, so each has a thread. Both channels are bounded: memory
//! stays constant, and whoever is slow makes only his own direction wait.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use async_channel::{Receiver, Sender};
use futures_lite::{FutureExt, future};
use wharf::{Client, Connection, Deadlines, Proxy, ReadHalf, SocketOptions, WriteHalf};

use crate::args::{Args, Connect};
use crate::client_tls;
use crate::exit::{self, Failure, note};

const BUFFER_SIZE: usize = 64 * 1024;
/// Buffers on their way in one direction.
const BUFFERS_MAX: usize = 16;
/// After the peer's end, input is awaited for this long. It may have ended one direction only, and still read.
const SILENCE: Duration = Duration::from_millis(500);

pub(crate) fn run(args: &Connect) -> Result<(), Failure> {
    let connector = args.tls.connector(&args.server)?;
    exit::on_signals(&exit::ENDING, |signal| exit::at_once(exit::of_signal(signal)))?;
    // A peer that does not read for a while makes us wait, as in any pipe. One that is gone is found by keepalive.
    let client = Client::new(&args.server)
        .connect_within(args.timeout)
        .deadlines(Deadlines::for_clients().write(None))
        .sockets(SocketOptions::default().user_timeout(None));
    let client = match &args.bind {
        Some(address) => client.bind(address),
        None => client,
    };
    let client = client.proxy(args.proxy.as_deref().map(proxy));
    let client = match &connector {
        Some(connector) => client.tls(connector),
        None => client,
    };
    let (received, output) = async_channel::bounded(BUFFERS_MAX);
    let writer = start("stdout", move || write_output(&output))?;
    let relayed = wharf::run_on(args.backend, relay(client, received, args.verbose));
    // Whatever happened, what has been received is written.
    drop(writer.join());
    relayed?
}

/// The parser of the command line would repeat the password.
fn proxy(url: &str) -> Proxy {
    Proxy::parse(url).unwrap_or_else(|error| Args::refuse(&Failure::Wharf(error).to_string()))
}

async fn relay(client: Client, received: Sender<Vec<u8>>, verbose: bool) -> Result<(), Failure> {
    let conn = client.open().await?;
    if verbose {
        tell(&conn);
    }
    let (read, write) = conn.split();
    let (input, to_send) = async_channel::bounded(BUFFERS_MAX);
    start("stdin", move || read_input(&input))?;
    let (download_ends, peer_ended) = async_channel::bounded(1);
    let sent = RefCell::new(Ok(()));
    let uploaded = async {
        // If sending fails, what the peer sent before is still to be written; receiving then fails by itself.
        *sent.borrow_mut() = upload(write, to_send, peer_ended).await;
        Ok(())
    };
    let received = future::try_zip(uploaded, download(read, received, download_ends)).await;
    sent.into_inner().and(received.map(|_| ())).map_err(Failure::from)
}

/// Whom the connection is with.
fn tell(conn: &Connection) {
    note(format_args!("connected to {}", conn.peer_addr()));
    if let Some(info) = conn.tls() {
        note(format_args!("TLS: {}", client_tls::agreed(&info)));
        note(format_args!("TLS: peer {}", client_tls::peer(&info)));
    }
}

async fn upload(
    mut write: WriteHalf,
    to_send: Receiver<Vec<u8>>,
    peer_ended: Receiver<Infallible>,
) -> wharf::Result<()> {
    let input = async || to_send.recv().await.ok();
    let silence = async || {
        // Nothing is ever sent there: it ends when the other side is dropped.
        let _ = peer_ended.recv().await;
        wharf::sleep(SILENCE).await;
        None
    };
    while let Some(bytes) = input().or(silence()).await {
        write.send_owned(bytes).await?;
    }
    write.finish().await
}

/// Receives until the peer has ended.
async fn download(
    mut read: ReadHalf,
    received: Sender<Vec<u8>>,
    _ends: Sender<Infallible>,
) -> wharf::Result<()> {
    while let Some(chunk) = read.recv_chunk().await? {
        if received.send(chunk.to_vec()).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn read_input(input: &Sender<Vec<u8>>) {
    let mut stdin = io::stdin().lock();
    let mut buf = vec![0; BUFFER_SIZE];
    loop {
        match stdin.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => {
                if input.send_blocking(buf[..n].to_vec()).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => Failure::Io("read standard input", error).exit(),
        }
    }
}

fn write_output(output: &Receiver<Vec<u8>>) {
    if let Err(error) = try_write_output(output) {
        Failure::of_output(error).exit();
    }
}

fn try_write_output(output: &Receiver<Vec<u8>>) -> io::Result<()> {
    // Without the line buffer of `io::stdout`: what has come is shown at once, and nothing is copied again.
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    while let Ok(bytes) = output.recv_blocking() {
        stdout.write_all(&bytes)?;
    }
    Ok(())
}

fn start(name: &str, body: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>, Failure> {
    thread::Builder::new().name(name.into()).spawn(body).map_err(|error| Failure::Io("start a thread", error))
}
