//! Wharf, event style, one worker: one send for every message of 64 bytes, as request and response protocols do.

use anyhow::Result;
use wharf::Backend;
use wharf::event::{Connection, Flow, Handler};

use super::{ANY_PORT, Field, MESSAGE_SIZE, Peer, announce};

pub const PEER: Peer = Peer {
    name: "wharf_message",
    about: "as wharf_event, but one send for each message of 64 B",
    field: Field::SmallMessages,
    ..Peer::echo(|| serve(Backend::Readiness))
};

pub const URING: Peer = Peer {
    name: "wharf_message_uring",
    about: "the same on io_uring",
    field: Field::SmallMessages,
    ..Peer::echo(|| serve(Backend::Uring))
};

fn serve(backend: Backend) -> Result<()> {
    let server = wharf::Server::bind(ANY_PORT).workers(1).backend(backend);
    server.run_events(
        || Answer,
        |server| announce(server.local_addr()).expect("the harness reads the address"),
    )?;
    Ok(())
}

struct Answer;

impl Handler for Answer {
    fn received(&mut self, connection: &mut Connection<'_>, bytes: &[u8]) -> Flow {
        let messages = bytes.chunks_exact(MESSAGE_SIZE);
        let answered = messages
            .take_while(|message| connection.send(message).is_ok())
            .count();
        Flow::Consumed(answered * MESSAGE_SIZE) // what is left is offered again
    }
}
