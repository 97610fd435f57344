//! Wharf, async style without a buffer of the handler's own: the engine's chunk is received, sent and given back.

use anyhow::Result;
use wharf::Backend;

use super::{ANY_PORT, Peer, announce};

pub const PEER: Peer = Peer {
    name: "wharf_chunks",
    about: "Wharf, async style, readiness, one worker, recv_chunk: no buffer per connection",
    ..Peer::echo(|| serve(Backend::Readiness))
};

pub const URING: Peer = Peer {
    name: "wharf_chunks_uring",
    about: "the same on io_uring",
    ..Peer::echo(|| serve(Backend::Uring))
};

fn serve(backend: Backend) -> Result<()> {
    run(wharf::Server::bind(ANY_PORT).workers(1).backend(backend))
}

pub fn run(server: wharf::Server) -> Result<()> {
    server.run(echo, |server| {
        announce(server.local_addr()).expect("the harness reads the address");
    })?;
    Ok(())
}

async fn echo(mut connection: wharf::Connection) -> wharf::Result<()> {
    while let Some(chunk) = connection.recv_chunk().await? {
        connection.send(&chunk).await?;
    }
    Ok(())
}
