//! The smallest pair without async: a server that accepts one connection and reads a greeting, and a client that sends it.
//!
//! ```text
//! $ cargo run --example hello_blocking
//! client: connected to 127.0.0.1:35157
//! client: sends "hello there"
//! server: accepts connection from 127.0.0.1:51461
//! server: read "hello there"
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::thread;
use std::time::Duration;

use wharf::blocking::{self, Listener};
use wharf::{Address, Error, Result};

const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    // It listens from here on: who connects before `accept` waits in its backlog.
    let mut server = Listener::bind("127.0.0.1:0")?;
    let address = server.local_addr();
    let client = thread::spawn(move || greet(address));

    let Some(mut socket) = server.accept_within(PATIENCE)? else {
        return Err(Error::other("nobody has come"));
    };
    println!("server: accepts connection from {}", socket.peer_addr());
    let mut greeting = [0; 100];
    let mut len = 0;
    // Read to the end of input: a stream has no messages, and one `send` may come in pieces.
    while len < greeting.len() {
        match socket.within(PATIENCE).recv(&mut greeting[len..])? {
            0 => break,
            n => len += n,
        }
    }
    println!("server: read {:?}", String::from_utf8_lossy(&greeting[..len]));
    socket.close();
    client.join().map_err(|_| Error::other("the client panicked"))?
}

/// The client's side.
fn greet(server: Address) -> Result<()> {
    let mut socket = blocking::connect(server)?;
    println!("client: connected to {}", socket.peer_addr());
    println!("client: sends \"hello there\"");
    socket.send(b"hello there")?;
    socket.finish()?;
    // "The sender is notified if any bytes sent are not received": asked for, that is an error here.
    socket.within(PATIENCE).delivered()
}
