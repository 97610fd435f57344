//! Callbacks: a server whose handler prints what it is sent, and a client that has one completion wait for all it does.
//!
//! ```text
//! $ cargo run --example callbacks
//! server: connected with 127.0.0.1:40606
//! server: message "Test Message"
//! client: the answer is "12 bytes"
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use wharf::event::{Completion, Connection, Flow, Handler, JobQueue, Service};
use wharf::{Client, Error, Result, Server};

const SOON: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    let server = Server::bind("127.0.0.1:0").start_events(|| Printer)?;

    // The service has the threads that carry outgoing connections; the queue has the one that handlers run on.
    let service = Service::new();
    service.start()?;
    let queue = JobQueue::new("handlers")?;
    let socket = service.socket(&Client::new(server.local_addr()), &queue.queue(), ());

    // None of these waits. What is sent before the connection stands is queued for it.
    let done = Completion::new();
    socket.connect_with(&done)?;
    socket.send_with("Test Message", &done)?;
    socket.receive_with(&done, |_, answer| {
        println!("client: the answer is {:?}", String::from_utf8_lossy(&answer?));
        Ok(())
    })?;
    if !done.wait(SOON)? {
        return Err(Error::other("the server has not answered in time"));
    }

    socket.close_with(&done)?;
    done.wait(SOON)?;
    drop(socket);
    service.stop_and_wait()?;
    queue.join()?;
    server.drain(SOON).wait()?;
    Ok(())
}

/// The server's side: one for each connection.
struct Printer;

impl Handler for Printer {
    fn connected(&mut self, conn: &mut Connection<'_>) -> Flow {
        println!("server: connected with {}", conn.peer_addr());
        Flow::Continue
    }

    fn received(&mut self, conn: &mut Connection<'_>, bytes: &[u8]) -> Flow {
        println!("server: message {:?}", String::from_utf8_lossy(bytes));
        match conn.send(format!("{} bytes", bytes.len()).as_bytes()) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Consumed(0), // the queue is full: offer them again when it is not
        }
    }
}
