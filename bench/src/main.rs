//! What Wharf costs, beside its peers: `all` and `compare` measure echo servers, `tasks` the waking of tasks, `c10k` holds
//! ten thousand connections open, `tls` measures servers that do TLS, `relay` programs that stand between,
//! `hostile` asks what peers that mean harm cost the others,
//! `http` puts hyper on Wharf and on tokio. README.md tells the method.

mod c10k;
mod churn;
mod client;
mod compare;
#[cfg(feature = "wharf")]
mod hostile;
#[cfg(feature = "http")]
mod http;
mod measure;
#[cfg(feature = "wharf")]
mod own_tasks;
mod pattern;
mod peers;
mod plot;
mod proc;
mod relay;
mod report;
mod scenario;
mod server_process;
mod sys;
mod tasks;
mod tls;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Benchmarks of Wharf beside its peers.
#[derive(Parser)]
enum Command {
    /// Every scenario, all peers in one run.
    All(compare::All),
    /// Server CPU time per echoed message, all peers in one run.
    Compare(compare::Compare),
    /// What TLS costs a server: handshakes, echoed messages, bulk, and idle connections.
    Tls(tls::Options),
    /// What a program costs that passes bytes on between clients and a server.
    Relay(relay::Options),
    /// The table and the plot of an earlier run again, perhaps with another base.
    Show(compare::Show),
    /// Time to wake and poll a task of one thread.
    Tasks(tasks::Tasks),
    /// Holds many connections open to one server, and checks every byte.
    C10k(c10k::C10k),
    /// What a good client of Wharf notices of a thousand hostile ones.
    #[cfg(feature = "wharf")]
    Hostile(hostile::Hostile),
    /// hyper on Wharf beside hyper on tokio, driven by wrk.
    #[cfg(feature = "http")]
    Http(http::Http),
    /// Names the peers.
    Peers,
    /// One peer as a server, until it is killed.
    #[command(hide = true)]
    Serve(server_process::Serve),
    /// Wharf as the server of `hostile`, until it is killed.
    #[cfg(feature = "wharf")]
    #[command(hide = true)]
    ServeOwn(hostile::ServeOwn),
    /// hyper as the server of `http`, until it is killed.
    #[cfg(feature = "http")]
    #[command(hide = true)]
    ServeHttp(http::ServeHttp),
}

fn main() -> ExitCode {
    match run(&Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::All(options) => compare::all(options),
        Command::Compare(options) => compare::compare(options),
        Command::Tls(options) => tls::run(options),
        Command::Relay(options) => relay::run(options),
        Command::Show(options) => compare::show(options),
        Command::Tasks(options) => tasks::run(options),
        Command::C10k(options) => c10k::run(options),
        #[cfg(feature = "wharf")]
        Command::Hostile(options) => hostile::run(options),
        #[cfg(feature = "wharf")]
        Command::ServeOwn(options) => hostile::serve(options),
        #[cfg(feature = "http")]
        Command::Http(options) => http::run(options),
        #[cfg(feature = "http")]
        Command::ServeHttp(options) => http::serve(options),
        Command::Serve(options) => server_process::serve(options),
        Command::Peers => {
            for peer in peers::PEERS {
                println!("{:<24}{}", peer.name, peer.about);
            }
            Ok(())
        }
    }
}
