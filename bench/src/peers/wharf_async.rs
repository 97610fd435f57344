//! Wharf, async style, one worker: the same code as tokio's, on Wharf's defaults.

use anyhow::Result;
use wharf::Backend;

use super::{ANY_PORT, BUFFER_SIZE, Peer, announce};

pub const PEER: Peer = Peer {
    name: "wharf_async",
    about: "Wharf, async style, readiness, one worker, a task and a 16 KiB buffer per connection",
    ..Peer::echo(|| serve(Backend::Readiness))
};

pub const URING: Peer = Peer {
    name: "wharf_async_uring",
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
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let count = connection.recv(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        connection.send(&buffer[..count]).await?;
    }
}
