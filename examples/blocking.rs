//! Plain blocking sockets: a thread for each connection, no async anywhere.
//!
//! ```text
//! $ cargo run --example blocking
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::io::{BufRead, BufReader, Write};
use std::thread;
use std::time::Duration;

use wharf::blocking::{self, Connection, Listener};
use wharf::{Address, Error, Result};

const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    // At most 16 handlers run at once; whoever else connects waits for one of them to end.
    let server = Listener::bind("127.0.0.1:0")?.threads(16)?.serve(shout)?;
    let address = server.local_addr();
    println!("server listens on {address}");

    let clients: Vec<_> = ["one", "two", "three"]
        .map(|word| {
            let address = address.clone();
            thread::spawn(move || ask(&address, word))
        })
        .into();
    for client in clients {
        println!("{}", client.join().map_err(|_| Error::other("a client panicked"))??);
    }

    let stats = server.drain(PATIENCE).wait()?;
    println!("server accepted {} connections and received {} bytes", stats.accepted, stats.received);
    Ok(())
}

/// The server's side: a line in capitals for every line. Between two lines it hears of the drain.
fn shout(mut conn: Connection) -> Result<()> {
    let mut buf = [0; 1024];
    while conn.ready()? {
        match conn.recv(&mut buf)? {
            0 => return Ok(()),
            n => {
                buf[..n].make_ascii_uppercase();
                conn.send(&buf[..n])?;
            }
        }
    }
    conn.send(b"GOOD BYE\n")
}

/// The client's side: a connection reads and writes as the standard library's sockets do.
fn ask(address: &Address, word: &str) -> Result<String> {
    let mut conn = blocking::connect(address)?;
    // For the whole exchange, however its bytes come.
    conn.set_deadline(PATIENCE);
    writeln!(conn, "{word}")?;
    let mut answer = String::new();
    BufReader::new(&mut conn).read_line(&mut answer)?;
    conn.finish()?;
    Ok(answer.trim_end().to_owned())
}
