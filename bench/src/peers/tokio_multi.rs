//! tokio's default runtime: the same tasks on work-stealing threads.

use anyhow::Result;
use tokio::runtime;

use super::{Peer, tokio_current};
use crate::sys;

pub const PEER: Peer = Peer {
    name: "tokio_multi",
    about: "tokio, multi_thread runtime, a worker per core of the machine",
    serve,
};

fn serve() -> Result<()> {
    // tokio's own default, but counted before pinning.
    runtime::Builder::new_multi_thread()
        .worker_threads(sys::cores_of_the_machine()?)
        .enable_io()
        .build()?
        .block_on(tokio_current::accept())
}
