//! The same HTTP/1.1 server twice: every request gets the same body.

use std::convert::Infallible;

use anyhow::Result;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime;

use crate::peers::{ANY_PORT, announce};

async fn answer(io: impl Read + Write + Unpin, body: Bytes) -> Result<(), hyper::Error> {
    let service = service_fn(move |_: Request<Incoming>| {
        let body = body.clone();
        async move { Ok::<_, Infallible>(Response::new(Full::new(body))) }
    });
    http1::Builder::new().serve_connection(io, service).await
}

fn body(size: usize) -> Bytes {
    vec![b'x'; size].into()
}

pub fn tokio(threads: usize, size: usize) -> Result<()> {
    let runtime = match threads {
        1 => runtime::Builder::new_current_thread().enable_io().build()?,
        _ => runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_io()
            .build()?,
    };
    let body = body(size);
    let serve = async move {
        let listener = TcpListener::bind(ANY_PORT).await?;
        announce(listener.local_addr()?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(answer(TokioIo::new(stream), body.clone()));
        }
    };
    // The accepting task is one of the runtime's own, as in a program that spawns it.
    runtime.block_on(async { tokio::spawn(serve).await? })
}

pub fn wharf(backend: wharf::Backend, threads: usize, size: usize) -> Result<()> {
    let body = body(size);
    let server = wharf::Server::bind(ANY_PORT).workers(threads).backend(backend);
    server.run(
        move |conn: wharf::Connection| {
            let body = body.clone();
            async move { answer(conn, body).await.map_err(wharf::Error::other) }
        },
        |server| announce(server.local_addr()).expect("the harness reads the address"),
    )?;
    Ok(())
}
