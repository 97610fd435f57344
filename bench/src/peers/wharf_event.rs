//! Wharf, event style, one worker: the received slice goes back out.

use anyhow::Result;
use wharf::Backend;
use wharf::event::{Connection, Flow, Handler};

use super::{ANY_PORT, Peer, announce};

pub const PEER: Peer = Peer {
    name: "wharf_event",
    about: "Wharf, event style, readiness, one worker, no buffer per connection",
    ..Peer::echo(|| serve(Backend::Readiness))
};

pub const URING: Peer = Peer {
    name: "wharf_event_uring",
    about: "the same on io_uring",
    ..Peer::echo(|| serve(Backend::Uring))
};

fn serve(backend: Backend) -> Result<()> {
    run(wharf::Server::bind(ANY_PORT).workers(1).backend(backend))
}

pub fn run(server: wharf::Server) -> Result<()> {
    server.run_events(
        || Echo,
        |server| announce(server.local_addr()).expect("the harness reads the address"),
    )?;
    Ok(())
}

pub struct Echo;

impl Handler for Echo {
    fn received(&mut self, connection: &mut Connection<'_>, bytes: &[u8]) -> Flow {
        match connection.send(bytes) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Consumed(0), // the queue is full: offered again when it is not
        }
    }
}
