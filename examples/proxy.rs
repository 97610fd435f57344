//! A TCP proxy: what comes in at one address goes to another, both ways, and each end is passed on.
//!
//! ```text
//! $ cargo run --example proxy -- 127.0.0.1:7000 example.org:80
//! $ curl --header 'Host: example.org' http://127.0.0.1:7000
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use wharf::{Client, Connection, Deadlines, Limits, Relay, Result, Server};

/// What two connections are relayed by: half an hour of silence is the end of it.
fn relay() -> Relay {
    Relay::new().idle(Duration::from_secs(30 * 60)).half_closed_idle(Duration::from_secs(60))
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(listen), Some(target)) = (args.next(), args.next()) else {
        return Err(wharf::Error::other("usage: proxy LISTEN TARGET"));
    };

    // Each connection brings another one, so half of what a process may have is enough.
    let limits = Limits::default().connections(400).per_address(100);
    // A side that takes nothing for two minutes will not come back.
    let deadlines = Deadlines::default().write(Duration::from_secs(120));

    let server = Server::bind(&listen).limits(limits).deadlines(deadlines.clone());
    let told = target.clone();
    server.run(
        move |conn| pass_on(conn, target.clone(), deadlines.clone()),
        |server| println!("listening on {}, for {told}", server.local_addr()),
    )?;
    Ok(())
}

async fn pass_on(conn: Connection, target: String, deadlines: Deadlines) -> Result<()> {
    let peer = conn.peer_addr();
    // One deadline for looking the name up and for all of its addresses. If it fails, the connection is closed.
    let client = Client::new(&target).connect_within(Duration::from_secs(10)).deadlines(deadlines);
    let target = client.open().await.inspect_err(|error| println!("{peer}: {error}"))?;
    let relayed = relay().run(conn, target).await;
    println!("{peer}: {relayed}");
    Ok(())
}
