//! A socket that tells its states: feedback for each change, one callback for what comes, and one that is called when there is room
//! to send.
//!
//! ```text
//! $ cargo run --example states
//! client: connecting
//! client: connected
//! client: sends "line 1"
//! client: sends "line 2"
//! client: received "LINE 1"
//! ...
//! server: 127.0.0.1:40606: closed by the peer
//! client: disconnected: closed by this side
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::mpsc;
use std::time::Duration;

use wharf::event::{Callbacks, Connection, Flow, Handler, JobQueue, Service};
use wharf::{Client, CloseReason, Error, Result, Server};

const SOON: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    let server = Server::bind("127.0.0.1:0").start_events(|| Shout)?;
    let service = Service::new();
    service.start()?;
    let queue = JobQueue::new("callbacks")?;

    let (ended, end) = mpsc::channel();
    let mut lines = 1..=3;
    let callbacks = Callbacks::new()
        .feedback(move |_, state| {
            println!("client: {state}");
            if state.is_disconnected() {
                let _ = ended.send(());
            }
        })
        .incoming(|_, bytes| {
            println!("client: received {:?}", String::from_utf8_lossy(&bytes));
            Flow::Continue
        })
        // Called when the connection stands, and whenever all that was sent has left.
        .outgoing(move |socket| match lines.next() {
            Some(number) => {
                println!("client: sends \"line {number}\"");
                socket.send(format!("line {number}")).map_or(Flow::Reset, |()| Flow::Continue)
            }
            None => {
                socket.finish(); // the server's end follows behind its last answer
                Flow::Continue
            }
        });
    let socket = service.socket(&Client::new(server.local_addr()), &queue.queue(), callbacks);
    socket.connect()?;
    end.recv_timeout(SOON).map_err(Error::other)?;
    if let Some(error) = socket.error() {
        println!("client: that was no end in order: {error}");
    }

    // No callback of it runs any more once it is dropped.
    drop(socket);
    service.stop_and_wait()?;
    queue.join()?;
    server.drain(SOON).wait()?;
    Ok(())
}

/// The server's side: sends everything back in capitals.
struct Shout;

impl Handler for Shout {
    fn received(&mut self, conn: &mut Connection<'_>, bytes: &[u8]) -> Flow {
        match conn.send(&bytes.to_ascii_uppercase()) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Consumed(0),
        }
    }

    fn closed(&mut self, conn: &mut Connection<'_>, reason: CloseReason) {
        println!("server: {}: {reason}", conn.peer_addr());
    }
}
