//! The `wharf` command as its users meet it: only arguments, standard streams, signals and exit codes.

mod authority;
mod cert;
mod config;
mod connect;
mod demo;
#[cfg(target_os = "linux")]
mod faults;
mod operator;
mod options;
mod probe;
mod process;
mod proxied;
mod refused;
mod relay;
mod serve;
mod tls;
