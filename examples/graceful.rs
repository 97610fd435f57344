//! A server as it runs in production: bounded, watched, changed while it runs, and ended in order.
//!
//! ```text
//! $ cargo run --example graceful
//! listening on 127.0.0.1:39223 and unix:/tmp/wharf-graceful-30586.sock
//! - 127.0.0.1:56746 (0.0.0): connected
//! - 127.0.0.1:56758: refused: connections per address
//! - unix: (1.0.0): connected
//! there is 127.0.0.1:56746: "ann"
//! there is unix:: "ben"
//! - draining for at most 5s
//! - 127.0.0.1:56746 (0.0.0): disconnected by the server; received 4, sent 10, unsent 0
//! - unix: (1.0.0): closed by this side; received 4, sent 18, unsent 0
//! finished: 2, reset: 0, bytes lost: 0
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use wharf::{Client, Connection, Deadlines, Limits, OverLimit, Result, Server};

const SOON: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let socket =
        format!("unix:{}/wharf-graceful-{}.sock", std::env::temp_dir().display(), std::process::id());
    let server = Server::bind("127.0.0.1:0")
        .listen(socket.as_str())
        .workers(2)
        .limits(Limits::default().connections(1000).per_address(1).over_limit(OverLimit::Close))
        .deadlines(Deadlines::default().first_byte(SOON).age(Duration::from_secs(3600)))
        .watch(|event| println!("- {event}"))
        .on_exit(|stats| {
            let drain = stats.drain;
            println!("finished: {}, reset: {}, bytes lost: {}", drain.finished, drain.reset, drain.lost);
        })
        .start(greet)?;
    let address = server.local_addr();
    println!("listening on {address} and {socket}");

    let watched = server.clone();
    wharf::run(async move {
        let mut ann = Client::connect(address).await?;
        introduce(&mut ann, b"ann\n").await?;
        // Each address has one place, and Ann has it.
        let mut another = Client::connect(address).await?;
        drop(another.recv(&mut [0; 1]).within(SOON).await);
        let mut ben = Client::connect(socket).await?;
        introduce(&mut ben, b"ben\n").await?;

        let infos = watched.list().await;
        for info in &infos {
            println!("there is {}: {:?}", info.peer, info.label.as_deref().unwrap_or_default());
        }
        for info in infos.iter().filter(|info| info.label.as_deref() == Some("ann")) {
            watched.disconnect(info.id);
        }
        ann.recv(&mut [0; 1]).within(SOON).await?;
        drop(ann);

        watched.drain(SOON);
        let mut farewell = [0; 8];
        ben.recv_exact(&mut farewell).within(SOON).await
    })??;
    server.wait()?;
    Ok(())
}

async fn introduce(conn: &mut Connection, name: &[u8]) -> Result<()> {
    conn.send(name).await?;
    conn.recv_exact(&mut [0; 10]).within(SOON).await
}

/// Learns a name, and stays until the server drains or the client leaves.
async fn greet(mut conn: Connection) -> Result<()> {
    let mut name = [0; 4];
    conn.recv_exact(&mut name).await?;
    conn.set_label(String::from_utf8_lossy(name.trim_ascii()));
    conn.send(b"hello ").await?;
    conn.send(&name).await?;
    conn.draining().await;
    conn.send(b"goodbye\n").await
}
