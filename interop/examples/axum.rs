//! An axum router on Wharf: its routes and extractors as they are, on Wharf's workers, with Wharf's limits and drain.
//!
//! axum wants what its handlers hold to be `Send`, though here nothing is ever sent. `axum::serve` is not used: it accepts by itself.
//!
//! ```text
//! $ cargo run -p wharf-interop --example axum
//! listening on 127.0.0.1:8081; Enter drains
//! $ curl http://127.0.0.1:8081/hello/world
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use futures_lite::FutureExt as _;
use hyper::server::conn::http1;
use hyper_util::service::TowerToHyperService;
use wharf::hyper::Timer;
use wharf::{Connection, Error, Result, Server};

fn main() -> Result<()> {
    let greeted = Arc::new(AtomicU64::new(0));
    let router = Router::new().route("/hello/{name}", get(hello)).with_state(greeted);
    let server = Server::bind("127.0.0.1:8081").start(move |conn| serve(conn, router.clone()))?;
    println!("listening on {}; Enter drains", server.local_addr());
    io::stdin().read_line(&mut String::new())?;
    server.drain(Duration::from_secs(15)).wait()?;
    Ok(())
}

async fn serve(conn: Connection, router: Router) -> Result<()> {
    let draining = conn.draining();
    let service = TowerToHyperService::new(router);
    let mut serving = std::pin::pin!(http1::Builder::new().timer(Timer).serve_connection(conn, service));
    let drained = async {
        draining.await;
        None
    };
    let outcome = match async { Some(serving.as_mut().await) }.or(drained).await {
        Some(outcome) => outcome,
        None => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    outcome.map_err(Error::other)
}

async fn hello(State(greeted): State<Arc<AtomicU64>>, Path(name): Path<String>) -> String {
    let number = greeted.fetch_add(1, Ordering::Relaxed) + 1;
    format!("hello {name}, you are number {number}\n")
}
