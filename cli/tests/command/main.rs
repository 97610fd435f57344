//! The `wharf` command as its users meet it: only arguments, standard streams, signals and exit codes.

mod connect;
mod demo;
#[cfg(target_os = "linux")]
mod faults;
mod probe;
mod process;
mod refused;
mod serve;
