//! TLS, on every backend and in both styles: what goes through it, how it begins and ends, and whom it refuses.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use wharf::tls::Version;
use wharf::{CloseReason, Server};

use common::behaviours::*;
use common::tls::*;
use common::*;

fn secure(server: Server) -> Server {
    server.tls(&acceptor())
}

scenario! {
    /// Much of it, so that records are divided, and in both directions at once.
    fn bytes_go_through_tls_as_they_are(world) {
        let server = world.serve_with(Echo, secure);
        let address = server.local_addr();
        world.run(async move {
            let conn = client(address).open().await.unwrap();
            let info = conn.tls().unwrap();
            assert_eq!((info.version(), info.server_name()), (Version::Tls13, Some(NAME)));
            let (mut read, mut write) = conn.split();
            let text = pattern(0..300_000);
            let writer = wharf::spawn(async move {
                for part in text.chunks(7_001) {
                    write.send(part).await.unwrap();
                }
                write.finish().await.unwrap();
                write
            });
            let mut all = Vec::new();
            while let Some(chunk) = read.recv_chunk().await.unwrap() {
                all.extend_from_slice(&chunk);
            }
            assert_eq!(all.len(), 300_000);
            assert_pattern(&all, 0);
            drop(writer.await);
        });
        let stats = world.stop(&server);
        assert_eq!((stats.handshakes, stats.closed(CloseReason::Peer)), (1, 1));
    }
}
