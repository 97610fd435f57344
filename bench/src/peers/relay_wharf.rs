//! Wharf's `relay`, one worker, on Wharf's defaults.

use std::net::SocketAddr;

use anyhow::Result;
use wharf::{Backend, Client, Connection, Server};

use super::{ANY_PORT, Peer, announce};

pub const PEER: Peer = Peer {
    name: "relay_wharf",
    about: "Wharf's relay, readiness, one worker; no buffer of its own",
    ..Peer::relay(|target| serve(target, Backend::Readiness))
};

pub const URING: Peer = Peer {
    name: "relay_wharf_uring",
    about: "the same on io_uring",
    ..Peer::relay(|target| serve(target, Backend::Uring))
};

fn serve(target: SocketAddr, backend: Backend) -> Result<()> {
    let client = Client::new(target);
    let pass_on = move |near: Connection| {
        let client = client.clone();
        async move {
            let far = client.open().await?;
            wharf::relay(near, far).await;
            Ok(())
        }
    };
    Server::bind(ANY_PORT)
        .workers(1)
        .backend(backend)
        .run(pass_on, |server| {
            announce(server.local_addr()).expect("the harness reads the address");
        })?;
    Ok(())
}
