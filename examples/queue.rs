//! A game's loop: frames at a steady pace, and between them whatever has come from the server, on the loop's own thread.
//!
//! ```text
//! $ cargo run --example queue
//! connecting
//! connected
//! the server says seen
//! the server says seen
//! disconnected: closed by this side
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::{Duration, Instant};

use wharf::event::{Callbacks, Flow, PollQueue, Service};
use wharf::{Client, Connection, Server};

const FRAME: Duration = Duration::from_millis(16);
/// So many handlers between two frames at most: the rest waits, and so does the peer if it is much.
const PER_FRAME: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Somebody to play with: it answers each move.
    let server = Server::bind("127.0.0.1:0").start(|mut conn: Connection| async move {
        let mut step = [0; 4];
        while conn.recv(&mut step).await? > 0 {
            conn.send(b"seen").await?;
        }
        Ok(())
    })?;

    let service = Service::new().name("network");
    service.start()?;
    let queue = PollQueue::new()?;
    let callbacks = Callbacks::new().feedback(|_, state| println!("{state}")).incoming(|_, bytes| {
        println!("the server says {}", String::from_utf8_lossy(&bytes));
        Flow::Continue
    });
    let socket = service.socket(&Client::new(server.local_addr()), &queue.queue(), callbacks);
    socket.connect()?;
    socket.send("hello")?; // before it stands: it is sent when it does

    for frame in 0..10 {
        let next = Instant::now() + FRAME;
        if frame % 3 == 0 && socket.state().is_connected() {
            socket.send("step")?;
        }
        // Here the world would be moved and drawn. What is left of the frame is the network's.
        while Instant::now() < next && queue.wait(next.saturating_duration_since(Instant::now())) {
            queue.run_pending(PER_FRAME);
        }
    }

    socket.close();
    while !socket.state().is_disconnected() && queue.wait(Duration::from_secs(5)) {
        queue.run_pending(PER_FRAME);
    }
    drop(socket); // nothing of it is called from here on
    service.stop_and_wait()?;
    server.stop().wait()?;
    Ok(())
}
