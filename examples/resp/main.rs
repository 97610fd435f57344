//! A small server that speaks Redis's protocol (RESP2), in event style: pipelining, inline commands, and bounds on everything.
//!
//! ```text
//! $ cargo run --release --example resp -- 127.0.0.1:6379
//! $ redis-benchmark -q
//! ```

mod protocol;
mod store;

use std::sync::{Arc, Mutex, PoisonError};

use wharf::event::{Connection, Flow, Handler};
use wharf::{CloseReason, ErrorKind, Result, Server, ServerHandle};

use protocol::{Parsed, Reply};
use store::Store;

/// Replies are sent when so many bytes of them are there, and when there is nothing more to execute.
const BATCH: usize = 64 * 1024;

#[allow(clippy::print_stdout, reason = "an example shows what it does")]
#[allow(dead_code, reason = "its test has a main function of its own")]
fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:6379".into());
    let server = serve(Server::bind(&address))?;
    println!("listening on {}", server.local_addr());
    server.wait()?;
    Ok(())
}

/// Starts the server: all workers share one store.
pub(crate) fn serve(server: Server) -> Result<ServerHandle> {
    let store = Arc::new(Mutex::new(Store::default()));
    server.start_events(move || Client { store: store.clone(), replies: Reply::default(), ends: false })
}

/// What is known of one connection.
struct Client {
    store: Arc<Mutex<Store>>,
    /// What was not sent yet. Only when the send queue is full do they outlive a call.
    replies: Reply,
    /// When they are sent, nothing follows.
    ends: bool,
}

impl Handler for Client {
    fn received(&mut self, conn: &mut Connection<'_>, bytes: &[u8]) -> Flow {
        let mut at = 0;
        loop {
            if self.replies.len() >= BATCH && !self.send(conn) {
                return Flow::Consumed(at);
            }
            match protocol::parse(&bytes[at..]) {
                Ok(Parsed::Command { args, consumed }) => {
                    at += consumed;
                    self.ends = self.execute(&args);
                }
                Ok(Parsed::Incomplete { total }) => {
                    // So much of it is received, even if the receive buffer is smaller.
                    conn.expect(total);
                    self.send(conn);
                    return Flow::Consumed(at);
                }
                Err(problem) => {
                    self.replies.error(&format!("ERR Protocol error: {problem}"));
                    self.ends = true;
                }
            }
            if self.ends {
                return self.end(conn);
            }
        }
    }

    fn writable(&mut self, conn: &mut Connection<'_>) -> Flow {
        if self.ends {
            return self.end(conn);
        }
        self.send(conn);
        Flow::Continue
    }

    fn ended(&mut self, conn: &mut Connection<'_>) -> Flow {
        self.ends = true;
        self.end(conn)
    }

    fn closed(&mut self, _: &mut Connection<'_>, _: CloseReason) {}
}

impl Client {
    /// Executes a command; returns whether it was the last one.
    fn execute(&mut self, args: &[&[u8]]) -> bool {
        let Some((name, args)) = args.split_first() else { return false };
        let name = name.to_ascii_uppercase();
        if name == b"QUIT" {
            self.replies.simple("OK");
            return true;
        }
        // A panic elsewhere is no reason to lose what is there.
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.execute(&name, args, &mut self.replies);
        false
    }

    /// Sends the replies if there is room for them; otherwise they wait, and so does the peer.
    fn send(&mut self, conn: &mut Connection<'_>) -> bool {
        if self.replies.len() == 0 {
            return true;
        }
        match conn.send(self.replies.bytes()) {
            Err(error) if error.kind() == ErrorKind::Limit => false,
            // If it is closed, there is nobody to hear them.
            _ => {
                self.replies.clear();
                true
            }
        }
    }

    /// Closes behind the replies.
    fn end(&mut self, conn: &mut Connection<'_>) -> Flow {
        if self.send(conn) { Flow::Close } else { Flow::Continue }
    }
}
