//! One peer running as a child process, so that its CPU time and memory are its own.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::peers::{self, Peer};
use crate::sys;
use crate::tls::{Credentials, Service};

/// A running echo server; killed when dropped.
pub struct ServerProcess {
    child: Child,
    pub address: SocketAddr,
}

impl ServerProcess {
    /// Starts this program again as a server, and waits until it listens.
    pub fn start(peer: &Peer, placing: &Placing) -> Result<ServerProcess> {
        ServerProcess::start_with(&["serve", peer.name], placing)
    }

    /// The same of a peer that does TLS, as the one whom `credentials` name.
    pub fn start_tls(
        peer: &Peer,
        service: Service,
        credentials: &Credentials,
        placing: &Placing,
    ) -> Result<ServerProcess> {
        let arguments = ["serve", peer.name, "--service", service.name()];
        ServerProcess::spawn(&arguments, credentials.pem().as_bytes(), placing)
    }

    /// The same of a relay, which passes on to `target`.
    pub fn start_relay(peer: &Peer, target: SocketAddr, placing: &Placing) -> Result<ServerProcess> {
        ServerProcess::start_with(&["serve", peer.name, "--target", &target.to_string()], placing)
    }

    /// The same with a command of this program, which announces its address as a peer does.
    pub fn start_with(arguments: &[&str], placing: &Placing) -> Result<ServerProcess> {
        ServerProcess::spawn(arguments, &[], placing)
    }

    /// `input` has to fit into a pipe.
    fn spawn(arguments: &[&str], input: &[u8], placing: &Placing) -> Result<ServerProcess> {
        let mut command = Command::new(env::current_exe()?);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(core) = placing.core {
            command.args(["--core", &core.to_string()]);
        }
        if placing.take_turns {
            command.arg("--take-turns");
        }
        if placing.second_thread {
            command.arg("--second-thread");
        }
        let mut child = command.spawn()?;
        let out = child.stdout.take().expect("stdout was asked for as a pipe");
        let mut to_child = child.stdin.take().expect("stdin was asked for as a pipe");
        let mut server = ServerProcess {
            child,
            address: SocketAddr::from(([0; 4], 0)),
        };
        to_child.write_all(input)?;
        drop(to_child);

        // An empty line is no address: it ended, or does not get there.
        let line = first_line(out).recv_timeout(START_PATIENCE).unwrap_or_default();
        server.address = line
            .trim()
            .parse()
            .with_context(|| format!("`{}` did not start", arguments.join(" ")))?;
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn cpu_time(&self) -> Result<Duration> {
        Ok(sys::cpu_time_of_process(self.pid())?)
    }
}

/// The child's first line, when it comes; empty if the child ends before.
fn first_line(out: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        if BufReader::new(out).read_line(&mut line).is_ok() {
            // Nobody listens any more when the wait was given up.
            sender.send(line).ok();
        }
    });
    receiver
}

const START_PATIENCE: Duration = Duration::from_secs(10);

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may have ended by itself, which the client has noticed before us.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What the child is told.
#[derive(Args)]
pub struct Serve {
    #[arg(value_parser = peers::find)]
    peer: &'static Peer,
    /// What a peer that does TLS does with it; its certificate and key come as PEM on standard input.
    #[arg(long, value_enum, default_value_t = Service::Echo)]
    service: Service,
    /// Where a relay passes on to.
    #[arg(long)]
    target: Option<SocketAddr>,
    #[command(flatten)]
    placing: Placing,
}

/// The circumstances under which a server runs.
#[derive(Args, Default)]
pub struct Placing {
    /// Stay on this core.
    #[arg(long)]
    pub core: Option<usize>,
    /// Run under SCHED_BATCH.
    #[arg(long)]
    pub take_turns: bool,
    /// Have a thread that does nothing.
    #[arg(long)]
    pub second_thread: bool,
}

/// The child: announces its address and serves until it is killed.
pub fn serve(options: &Serve) -> Result<()> {
    prepare(&options.placing)?;
    match options.peer.serve {
        peers::Serve::Plain(serve) => serve(),
        peers::Serve::Tls(serve) => {
            let credentials = Credentials::from_pem(&io::read_to_string(io::stdin())?)?;
            serve(options.service, &credentials)
        }
        peers::Serve::Relay(serve) => serve(options.target.context("a relay needs a `--target`")?),
    }
}

/// What a child does before it serves.
pub fn prepare(placing: &Placing) -> Result<()> {
    sys::die_with_parent()?;
    sys::raise_open_files_limit()?;
    placing.apply()?;
    if placing.second_thread {
        thread::spawn(|| {
            loop {
                thread::park();
            }
        });
    }
    Ok(())
}

impl Placing {
    /// Moves the calling thread, and those it starts later, to where they belong.
    pub fn apply(&self) -> Result<()> {
        if let Some(core) = self.core {
            sys::pin_to_core(core).with_context(|| format!("pin to core {core}"))?;
        }
        sys::take_turns(self.take_turns).context("set the scheduling policy")
    }
}
