//! The `wharf` command: TCP servers and clients for trying, testing and pipes.
//!
//! Data goes to standard output, messages to standard error.

mod args;
mod cert;
mod certificates;
mod client_tls;
mod connect;
mod demo;
mod exit;
mod files;
mod operator;
mod options;
mod probe;
mod relay;
mod serve;
mod serve_blocking;
mod services;
mod settings;
mod tls;
mod values;
mod x509;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Connect(args) => connect::run(&args),
        Command::Relay(args) => relay::run(&args),
        Command::Cert(args) => cert::run(&args),
        Command::Probe(_) => probe::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.report()),
    }
}
