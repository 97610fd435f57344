//! Wharf, blocking style: a thread for each connection, on Wharf's defaults.

use anyhow::Result;
use wharf::blocking::{Connection, Listener};

use super::{ANY_PORT, BUFFER_SIZE, Peer, announce};

pub const PEER: Peer = Peer {
    name: "wharf_blocking",
    about: "Wharf, blocking style, a thread and a 16 KiB buffer per connection",
    ..Peer::echo(serve)
};

/// As many as the harness ever has at once.
const THREADS: usize = 4096;

fn serve() -> Result<()> {
    let server = Listener::bind(ANY_PORT)?.threads(THREADS)?.serve(echo)?;
    announce(server.local_addr().socket().expect("it is TCP"))?;
    server.wait()?;
    Ok(())
}

fn echo(mut connection: Connection) -> wharf::Result<()> {
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        match connection.recv(&mut buffer)? {
            0 => return Ok(()),
            count => connection.send(&buffer[..count])?,
        }
    }
}
