//! tokio's default runtime: the same tasks on work-stealing threads.

use anyhow::Result;
use tokio::runtime;

use super::{Peer, tokio_current};
use crate::sys;

pub const PEER: Peer = Peer {
    name: "tokio_multi",
    about: "tokio 1.54, multi_thread runtime, a worker per core of the machine, otherwise as tokio_current",
    ..Peer::echo(serve)
};

fn serve() -> Result<()> {
    // tokio's own default, but counted before pinning.
    runtime::Builder::new_multi_thread()
        .worker_threads(sys::cores_of_the_machine()?)
        .enable_io()
        .build()?
        .block_on(tokio_current::accept(tokio_current::echo))
}
