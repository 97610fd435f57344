//! As wharf_event, with a worker that spins for up to 100 us before it sleeps.

use std::time::Duration;

use anyhow::Result;
use wharf::Backend;

use super::wharf_event::Echo;
use super::{ANY_PORT, Peer, announce};

pub const PEER: Peer = Peer {
    name: "wharf_spin",
    about: "as wharf_event, spinning for up to 100 us before it sleeps",
    ..Peer::echo(|| serve(Backend::Readiness))
};

pub const URING: Peer = Peer {
    name: "wharf_spin_uring",
    about: "the same on io_uring",
    ..Peer::echo(|| serve(Backend::Uring))
};

fn serve(backend: Backend) -> Result<()> {
    let server = wharf::Server::bind(ANY_PORT)
        .workers(1)
        .backend(backend)
        .spin(Duration::from_micros(100));
    server.run_events(
        || Echo,
        |server| announce(server.local_addr()).expect("the harness reads the address"),
    )?;
    Ok(())
}
