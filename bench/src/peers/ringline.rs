//! ringline with one worker, on io_uring: the received buffers are sent as they are and then given back.
//!
//! Its `run_direct_echo` is left out: that echoes inside the engine, and no handler ever sees a byte.

use anyhow::{Context, Result};
use ringline::{AsyncEventHandler, ConfigBuilder, ConnCtx, RinglineBuilder};

use super::{ANY_PORT, BACKLOG, BUFFER_SIZE, Peer, announce};

pub const PEER: Peer = Peer {
    name: "ringline",
    about: "ringline 0.6, io_uring, one worker and an acceptor thread, 1024 buffers of 16 KiB for all",
    ..Peer::echo(serve)
};

fn serve() -> Result<()> {
    let config = ConfigBuilder::new()
        .workers(1)
        .pin_to_core(false)
        .backlog(BACKLOG)
        .max_connections(CONNECTIONS_MAX)
        .sq_entries(1024)
        .recv_buffer(1024, BUFFER_SIZE as u32)
        .tick_timeout_us(0)
        .build()?;
    let (shutdown, workers) = RinglineBuilder::new(config)
        .bind(ANY_PORT.parse()?)
        .launch::<Echo>()?;
    announce(shutdown.bound_addr().context("it listens nowhere")?)?;
    for worker in workers {
        worker.join().ok().context("a worker panicked")??;
    }
    Ok(())
}

struct Echo;

impl AsyncEventHandler for Echo {
    #[allow(clippy::manual_async_fn)] // an async fn's future would borrow `self`
    fn on_accept(&self, connection: ConnCtx) -> impl Future<Output = ()> + 'static {
        async move {
            echo(connection).await.ok();
        }
    }

    fn create_for_worker(_worker: usize) -> Echo {
        Echo
    }
}

async fn echo(connection: ConnCtx) -> Result<()> {
    connection.enable_recv_forward();
    loop {
        connection.recv_ready().await;
        if connection.forward_held()?.await? == 0 {
            return Ok(());
        }
    }
}

const CONNECTIONS_MAX: u32 = 19_000;
