//! A Redis client that lives on tokio, used in Wharf's handlers: each line that comes is a name, and the answer is how often it
//! has come, from whichever connection.
//!
//! ```text
//! $ cargo run --release --example resp -- 127.0.0.1:6379 &    # or Redis itself
//! $ cargo run -p wharf-interop --example tokio_redis 127.0.0.1:6379
//! listening on 127.0.0.1:8083; Enter drains
//! $ printf 'ada\ngrace\nada\n' | nc -N 127.0.0.1 8083
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::io;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::runtime::{self, Runtime};
use wharf::framing::{Framed, Lines};
use wharf::{Connection, Error, Result, Server, ServerHandle};

/// The longest name.
const NAME_MAX: usize = 256;

#[allow(dead_code, reason = "its test has a main function of its own")]
fn main() -> Result<()> {
    let redis = std::env::args().nth(1).unwrap_or_else(|| String::from("127.0.0.1:6379"));
    // One thread turns tokio's sockets and timers; the handlers run on Wharf's workers.
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let server = serve(&runtime, &redis, Server::bind("127.0.0.1:8083"))?;
    println!("listening on {}; Enter drains", server.local_addr());
    io::stdin().read_line(&mut String::new())?;
    server.drain(Duration::from_secs(15)).wait()?;
    Ok(())
}

/// Starts the server: all handlers share one connection to Redis, which carries their requests beside each other.
pub(crate) fn serve(runtime: &Runtime, redis: &str, server: Server) -> Result<ServerHandle> {
    let client = redis::Client::open(format!("redis://{redis}/")).map_err(Error::other)?;
    let shared = runtime.block_on(client.get_multiplexed_async_connection()).map_err(Error::other)?;
    server.tokio(runtime.handle().clone()).start(move |conn| count(conn, shared.clone()))
}

async fn count(conn: Connection, mut redis: MultiplexedConnection) -> Result<()> {
    let mut lines = Framed::new(conn, Lines::new().frame_max(NAME_MAX));
    while let Some(name) = lines.recv().await? {
        let mut increment = redis::cmd("INCR");
        let counting = increment.arg(&name[..]).query_async::<u64>(&mut redis);
        let counted = tokio::time::timeout(Duration::from_secs(5), counting).await.map_err(Error::other)?;
        let answer = counted.map_or_else(|error| error.to_string(), |times| times.to_string());
        lines.send(answer.as_bytes()).await?;
    }
    Ok(())
}
