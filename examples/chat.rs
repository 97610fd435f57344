//! A chat in event style: each line goes to everybody else.
//!
//! The handlers of all connections share a map of [`Remote`] handles, which reach a connection from any thread. A reader
//! that is too slow misses lines; one that misses too many is thrown out. Nobody waits for anybody.
//!
//! ```text
//! $ cargo run --example chat -- 127.0.0.1:7788     # serves until it is killed; talk to it with nc
//! $ cargo run --example chat -- --demo             # plays a short conversation and ends
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wharf::event::{Connection, Flow, Handler};
use wharf::{Address, Client, CloseReason, Error, Remote, Result, Server};

const LINE_MAX: usize = 1024;
const MISSED_MAX: usize = 100;

fn main() -> Result<()> {
    let argument = std::env::args().nth(1);
    let demo = argument.as_deref() == Some("--demo");
    let address = argument.filter(|_| !demo).unwrap_or_else(|| String::from("127.0.0.1:0"));

    let room = Arc::new(Room::default());
    let server = Server::bind(address).start_events(move || Guest { room: room.clone() })?;
    println!("listening on {}", server.local_addr());
    if demo {
        wharf::run(converse(server.local_addr()))??;
        server.drain(Duration::from_secs(3));
    }
    server.wait()?;
    Ok(())
}

/// Who is here, and how many lines each has missed in a row.
#[derive(Default)]
struct Room {
    guests: Mutex<HashMap<Address, (Remote, usize)>>,
}

impl Room {
    fn guests(&self) -> MutexGuard<'_, HashMap<Address, (Remote, usize)>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_others(&self, speaker: &Address, line: &str) {
        for (_, (guest, missed)) in self.guests().iter_mut().filter(|(peer, _)| *peer != speaker) {
            // Never waits: if too much is on its way to this guest already, the line is not for them.
            match guest.send(line.to_owned()) {
                Ok(()) => *missed = 0,
                Err(_) => *missed += 1,
            }
            if *missed > MISSED_MAX {
                guest.reset();
            }
        }
    }
}

/// One connection's handler.
struct Guest {
    room: Arc<Room>,
}

impl Handler for Guest {
    fn connected(&mut self, conn: &mut Connection<'_>) -> Flow {
        self.room.guests().insert(conn.peer_addr(), (conn.remote(), 0));
        self.room.tell_others(&conn.peer_addr(), &format!("{} came\n", conn.peer_addr()));
        match conn.send(b"welcome\n") {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Reset,
        }
    }

    fn received(&mut self, conn: &mut Connection<'_>, bytes: &[u8]) -> Flow {
        // Takes the whole lines; the beginning of the next one is offered again when more has come.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if bytes.len() - whole > LINE_MAX {
            return Flow::Close;
        }
        for line in String::from_utf8_lossy(&bytes[..whole]).lines() {
            self.room.tell_others(&conn.peer_addr(), &format!("{}: {line}\n", conn.peer_addr()));
        }
        Flow::Consumed(whole)
    }

    fn draining(&mut self, _conn: &mut Connection<'_>) -> Flow {
        Flow::Close
    }

    fn closed(&mut self, conn: &mut Connection<'_>, reason: CloseReason) {
        self.room.guests().remove(&conn.peer_addr());
        self.room.tell_others(&conn.peer_addr(), &format!("{} left ({reason})\n", conn.peer_addr()));
    }
}

/// A conversation of two. What each hears is checked.
async fn converse(server: SocketAddr) -> Result<()> {
    let mut ann = Client::connect(server).await?;
    expect(&mut ann, "welcome\n").await?;
    let mut ben = Client::connect(server).await?;
    expect(&mut ben, "welcome\n").await?;
    let (ann_name, ben_name) = (name(&ann), name(&ben));

    expect(&mut ann, &format!("{ben_name} came\n")).await?;
    ben.send(b"hello\n").await?;
    expect(&mut ann, &format!("{ben_name}: hello\n")).await?;
    ann.send(b"hello yourself\nhow are you?\n").await?;
    expect(&mut ben, &format!("{ann_name}: hello yourself\n{ann_name}: how are you?\n")).await?;
    ben.finish().await?;
    expect(&mut ann, &format!("{ben_name} left (closed by the peer)\n")).await
}

/// What the server calls this client.
fn name(conn: &wharf::Connection) -> String {
    conn.local_addr().map_or_else(|| String::from("somebody"), |address| address.to_string())
}

async fn expect(conn: &mut wharf::Connection, lines: &str) -> Result<()> {
    let mut heard = vec![0; lines.len()];
    conn.recv_exact(&mut heard).within(Duration::from_secs(3)).await?;
    let text = String::from_utf8_lossy(&heard);
    print!("[heard by {}]\n{text}", name(conn));
    if text == lines { Ok(()) } else { Err(Error::other(format!("expected {lines:?}"))) }
}
