//! HTTP/1.1 and HTTP/2 by hyper, on one port: which of them, the client's first bytes tell.
//!
//! ```text
//! $ cargo run -p wharf-interop --example hyper
//! listening on 127.0.0.1:8080; Enter drains
//! $ curl http://127.0.0.1:8080/
//! $ curl --http2-prior-knowledge http://127.0.0.1:8080/slow
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::FutureExt as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::server::conn::auto;
use wharf::hyper::{LocalExecutor, Timer};
use wharf::{Connection, Deadlines, Error, Result, Server};

fn main() -> Result<()> {
    // While it answers, hyper reads on to notice a client that leaves. So the silence that is allowed is the longest answer's time.
    let deadlines = Deadlines::default().idle(Duration::from_secs(120));
    let server = Server::bind("127.0.0.1:8080").deadlines(deadlines).start(serve)?;
    println!("listening on {}; Enter drains", server.local_addr());
    io::stdin().read_line(&mut String::new())?;
    let stats = server.drain(Duration::from_secs(15)).wait()?;
    println!("{} connections", stats.accepted);
    Ok(())
}

/// Serves one connection. When the server drains, what has been asked is answered, and nothing else.
async fn serve(conn: Connection) -> Result<()> {
    let (draining, peer) = (conn.draining(), conn.peer_addr());
    let service = service_fn(move |request| answer(request, peer.to_string()));
    let mut http = auto::Builder::new(LocalExecutor);
    http.http1().timer(Timer).header_read_timeout(Duration::from_secs(10));
    http.http2().timer(Timer).max_concurrent_streams(100);
    let mut serving = pin!(http.serve_connection(conn, service));
    let drained = async {
        draining.await;
        None
    };
    let ended = async { Some(serving.as_mut().await) }.or(drained).await;
    let outcome = match ended {
        Some(outcome) => outcome,
        None => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    outcome.map_err(Error::other)
}

/// Runs on the connection's worker: neither this future nor what it holds has to be `Send`.
async fn answer(request: Request<Incoming>, peer: String) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == "/slow" {
        wharf::sleep(Duration::from_secs(1)).await;
    }
    let text = format!("hello {peer}, you speak {:?}\n", request.version());
    Ok(Response::new(Full::from(text)))
}
