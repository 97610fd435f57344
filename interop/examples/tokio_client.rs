//! A client that lives on tokio, used in Wharf's handlers: each line that comes is a path, and the answer is what an HTTP server
//! says to it. What works so works for databases too, whose clients want a tokio runtime.
//!
//! ```text
//! $ cargo run -p wharf-interop --example hyper &
//! $ cargo run -p wharf-interop --example tokio_client 127.0.0.1:8080
//! listening on 127.0.0.1:8082; Enter drains
//! $ echo /slow | nc 127.0.0.1 8082
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::runtime;
use wharf::{Connection, Error, Result, Server};

/// The longest path that is read.
const PATH_MAX: u64 = 4096;

fn main() -> Result<()> {
    let backend = std::env::args().nth(1).unwrap_or_else(|| String::from("127.0.0.1:8080"));
    // One thread turns tokio's sockets and timers; the handlers run on Wharf's workers.
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let server = Server::bind("127.0.0.1:8082").tokio(runtime.handle().clone());
    let server = server.start(move |conn| serve(conn, backend.clone()))?;
    println!("listening on {}; Enter drains", server.local_addr());
    io::stdin().read_line(&mut String::new())?;
    server.drain(Duration::from_secs(15)).wait()?;
    Ok(())
}

async fn serve(conn: Connection, backend: String) -> Result<()> {
    let (read, mut write) = conn.split();
    let mut lines = BufReader::new(read);
    loop {
        let mut path = String::new();
        let mut bounded = tokio::io::AsyncReadExt::take(&mut lines, PATH_MAX);
        if bounded.read_line(&mut path).await? == 0 {
            return Ok(());
        }
        let answer = tokio::time::timeout(Duration::from_secs(5), ask(&backend, path.trim())).await;
        match answer.map_err(Error::other)? {
            Ok(body) => write.send(&body).await?,
            Err(error) => write.send(format!("{error}\n").as_bytes()).await?,
        }
    }
}

async fn ask(backend: &str, path: &str) -> Result<Bytes> {
    let stream = TcpStream::connect(backend).await?;
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(Error::other)?;
    // On the runtime's thread, beside the worker.
    tokio::spawn(driver);
    let request = Request::get(path).header("host", backend).body(Empty::<Bytes>::new());
    let response = sender.send_request(request.map_err(Error::other)?).await.map_err(Error::other)?;
    Ok(response.into_body().collect().await.map_err(Error::other)?.to_bytes())
}
