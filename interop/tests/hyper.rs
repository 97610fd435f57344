//! hyper on connections: servers and clients of HTTP/1.1 and HTTP/2, on every backend, and with curl.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../tests/common/mod.rs"]
#[macro_use]
mod common;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io::Write as _;
use std::pin::{Pin, pin};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_lite::FutureExt as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::{http1 as client1, http2 as client2};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use wharf::hyper::{LocalExecutor, Timer};
use wharf::tls::{Acceptor, Identity, ServerTls};
use wharf::{Client, CloseReason, Connection, Error, Result, Server, ServerHandle};

use common::*;

/// More than what all queues and windows hold.
const LARGE: usize = 3 << 20;

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// `/hello` is answered at once, `/late` after a while, `/whole` when its body is there, and everything else with its own body as
/// it comes.
async fn answer(request: Request<Incoming>) -> Result<Answer, Infallible> {
    let whole = |text: &'static str| Full::from(text).map_err(|never| match never {}).boxed();
    Ok(match request.uri().path() {
        "/hello" => Response::new(whole("hello")),
        "/late" => {
            wharf::sleep(Duration::from_millis(50)).await;
            Response::new(whole("late"))
        }
        "/whole" => {
            let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
            Response::new(Full::new(body.unwrap_or_default()).map_err(|never| match never {}).boxed())
        }
        _ => Response::new(request.into_body().boxed()),
    })
}

fn failed(error: hyper::Error) -> Error {
    Error::other(error)
}

async fn serve_http1(conn: Connection) -> Result<()> {
    let serving = http1::Builder::new()
        .timer(Timer)
        .half_close(true)
        .pipeline_flush(true)
        .serve_connection(conn, service_fn(answer));
    serving.await.map_err(failed)
}

async fn serve_http2(conn: Connection) -> Result<()> {
    let serving = http2::Builder::new(LocalExecutor).timer(Timer).serve_connection(conn, service_fn(answer));
    serving.await.map_err(failed)
}

/// The protocol that was agreed on.
async fn serve_either(conn: Connection) -> Result<()> {
    let is_second = conn.tls().is_some_and(|info| info.alpn() == Some(b"h2"));
    if is_second { serve_http2(conn).await } else { serve_http1(conn).await }
}

fn request(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let method = if path == "/echo" { "POST" } else { "GET" };
    Request::builder()
        .method(method)
        .uri(format!("http://server.test{path}"))
        .body(Full::new(body.into()))
        .unwrap()
}

async fn whole(response: Response<Incoming>) -> Bytes {
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body().collect().await.unwrap().to_bytes()
}

/// A body whose length nobody knows before: it is sent in chunks.
fn in_chunks(bytes: &Bytes) -> impl Body<Data = Bytes, Error = Infallible> + Unpin + 'static {
    let parts: Vec<_> = bytes.chunks(10_000).map(|part| Ok(Frame::data(bytes.slice_ref(part)))).collect();
    StreamBody::new(futures_lite::stream::iter(parts))
}

fn exchange_by_http1(world: &mut World, wire: Wire) {
    let server = world.serve_async(|server| wire.server(server), serve_http1);
    let client = wire.client(server.local_addr());
    world.run(async move {
        let conn = client.open().await.unwrap();
        let (mut sender, driver) = client1::handshake(conn).await.unwrap();
        let driver = wharf::spawn(driver);
        for _ in 0..5 {
            let response = sender.send_request(request("/hello", "")).await.unwrap();
            assert_eq!(whole(response).await, "hello");
            poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
        }
        let large = Bytes::from(pattern(0..LARGE));
        let response = sender.send_request(request("/echo", large)).await.unwrap();
        let returned = whole(response).await;
        assert_eq!(returned.len(), LARGE);
        assert_pattern(&returned, 0);
        drop(sender);
        driver.await.unwrap().unwrap();
    });
    let stats = world.stop(&server);
    assert_eq!(stats.accepted, 1, "the connection is kept alive");
    assert_eq!(stats.closed(CloseReason::Peer), 1, "{stats:?}");
}

scenario! {
    async fn http1_keeps_alive_and_carries_large_bodies_both_ways(world) {
        exchange_by_http1(world, Wire::Plain);
    }
}

scenario! {
    async fn http1_keeps_alive_and_carries_large_bodies_both_ways_under_tls(world) {
        exchange_by_http1(world, Wire::Tls);
    }
}

scenario! {
    async fn bodies_of_unknown_length_go_in_chunks(world) {
        let server = world.serve_async(|server| server, serve_http1);
        let address = server.local_addr();
        world.run(async move {
            let conn = Client::connect(address).await.unwrap();
            let (mut sender, driver) = client1::handshake(conn).await.unwrap();
            let driver = wharf::spawn(driver);
            let bytes = Bytes::from(pattern(0..500_000));
            let request = Request::post("/echo").header("host", "server.test").body(in_chunks(&bytes)).unwrap();
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.headers()["transfer-encoding"], "chunked");
            assert_eq!(whole(response).await, bytes);
            drop(sender);
            driver.await.unwrap().unwrap();
        });
    }
}

fn exchange_by_http2(world: &mut World, wire: Wire) {
    let server = world.serve_async(|server| wire.server(server), serve_http2);
    let client = wire.client(server.local_addr());
    world.run(async move {
        let conn = client.open().await.unwrap();
        let (sender, driver) = client2::handshake(LocalExecutor, conn).await.unwrap();
        let driver = wharf::spawn(driver);
        let requests: Vec<_> = (0..20)
            .map(|index| {
                let mut sender = sender.clone();
                wharf::spawn(async move {
                    let size = index * 10_000;
                    let sent = Bytes::from(pattern(0..size));
                    let response = sender.send_request(request("/echo", sent.clone())).await.unwrap();
                    assert_eq!(whole(response).await, sent);
                })
            })
            .collect();
        for request in requests {
            request.await.unwrap();
        }
        drop(sender);
        driver.await.unwrap().unwrap();
    });
    let stats = world.stop(&server);
    assert_eq!((stats.accepted, stats.panics), (1, 0), "{stats:?}");
}

scenario! {
    async fn http2_carries_many_streams_on_one_connection(world) {
        exchange_by_http2(world, Wire::Plain);
    }
}

scenario! {
    async fn http2_carries_many_streams_on_one_connection_under_tls(world) {
        exchange_by_http2(world, Wire::Tls);
    }
}

/// Receives until `end`, and returns all of it.
async fn recv_until(conn: &mut Connection, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let chunk = conn.recv_chunk().await.unwrap().expect("the server has more to say");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    text
}

scenario! {
    async fn pipelined_requests_are_answered_in_order(world) {
        let server = world.serve_async(|server| server, serve_http1);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let mut requests = String::new();
            for index in 0..50 {
                requests += &format!("POST /{index} HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n{index:03}");
            }
            requests += "GET /late HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
            conn.send(requests.as_bytes()).await.unwrap();
            let answers = recv_all(&mut conn).await.unwrap();
            let answers = String::from_utf8(answers).unwrap();
            let bodies: Vec<&str> = answers.split("\r\n\r\n").skip(1).map(|rest| &rest[..rest.len().min(4)]).collect();
            assert_eq!(bodies.len(), 51, "{answers}");
            for (index, body) in bodies[..50].iter().enumerate() {
                assert_eq!(body[..3], format!("{index:03}"));
            }
            assert_eq!(bodies[50], "late");
        });
    }
}

scenario! {
    async fn a_client_that_asks_for_100_continue_is_told(world) {
        let server = world.serve_async(|server| server, serve_http1);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            let head = "POST /whole HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
            conn.send(head.as_bytes()).await.unwrap();
            let told = recv_until(&mut conn, "\r\n\r\n").await;
            assert_eq!(told, "HTTP/1.1 100 Continue\r\n\r\n");
            conn.send(b"body").await.unwrap();
            let answer = recv_until(&mut conn, "body").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        });
    }
}

scenario! {
    async fn a_client_that_has_ended_its_side_is_still_answered(world) {
        let server = world.serve_async(|server| server, serve_http1);
        let address = server.local_addr();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            conn.finish().await.unwrap();
            let answer = String::from_utf8(recv_all(&mut conn).await.unwrap()).unwrap();
            assert!(answer.ends_with("\r\n\r\nlate"), "{answer}");
        });
    }
}

scenario! {
    async fn hypers_header_timeout_ends_a_client_that_does_not_finish_its_request(world) {
        let patience = world.time(2.0);
        let server = world.serve_async(|server| server, move |conn: Connection| async move {
            let serving = http1::Builder::new()
                .timer(Timer)
                .header_read_timeout(patience)
                .serve_connection(conn, service_fn(answer));
            let error = serving.await.unwrap_err();
            assert!(error.is_timeout(), "{error}");
            Ok(())
        });
        let address = server.local_addr();
        let began = world.now();
        world.run(async move {
            let mut conn = Client::connect(address).await.unwrap();
            // A whole one first, so that the timer has to be set anew.
            conn.send(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\nGET /hello HT").await.unwrap();
            recv_until(&mut conn, "hello").await;
            let rest = recv_all(&mut conn).await.unwrap();
            assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{rest:?}");
        });
        assert!(world.now() - began >= patience);
    }
}

/// Serves until the server drains, and then to the end of what is being answered.
async fn serve_gracefully<S>(conn: Connection, serving: impl FnOnce(Connection) -> S) -> Result<()>
where
    S: Future<Output = hyper::Result<()>> + Graceful,
{
    let draining = conn.draining();
    let mut serving = pin!(serving(conn));
    let told = async {
        draining.await;
        None
    };
    let ended = async { Some(serving.as_mut().await) }.or(told).await;
    match ended {
        Some(outcome) => outcome,
        None => {
            serving.as_mut().shut_down();
            serving.await
        }
    }
    .map_err(failed)
}

/// What hyper's connections have in common but no trait for.
trait Graceful {
    fn shut_down(self: Pin<&mut Self>);
}

macro_rules! graceful {
    ($module:ident $(, $executor:ty)?) => {
        impl<F, S, B> Graceful for $module::Connection<Connection, S $(, $executor)?>
        where
            S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future = F>,
            F: Future<Output = Result<Response<B>, Infallible>> + 'static,
            B: Body<Data = Bytes, Error = hyper::Error> + 'static,
        {
            fn shut_down(self: Pin<&mut Self>) {
                self.graceful_shutdown();
            }
        }
    };
}

graceful!(http1);
graceful!(http2, LocalExecutor);

scenario! {
    async fn a_drain_answers_what_was_asked_and_ends_what_is_idle(world) {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let server = world.serve_async(|server| server, move |conn: Connection| {
            let counted = counted.clone();
            serve_gracefully(conn, |conn| {
                let service = service_fn(move |request| {
                    counted.fetch_add(1, Ordering::SeqCst);
                    answer(request)
                });
                http1::Builder::new().timer(Timer).serve_connection(conn, service)
            })
        });
        let draining = server.clone();
        world.run(async move {
            let mut idle = Client::connect(draining.local_addr()).await.unwrap();
            idle.send(b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            recv_until(&mut idle, "hello").await;
            let mut busy = Client::connect(draining.local_addr()).await.unwrap();
            busy.send(b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            until("both have asked", || asked.load(Ordering::SeqCst) == 2).await;
            draining.drain(Duration::from_secs(30));
            assert_eq!(recv_all(&mut idle).await.unwrap(), b"");
            let answer = String::from_utf8(recv_all(&mut busy).await.unwrap()).unwrap();
            assert!(answer.ends_with("\r\n\r\nlate"), "{answer}");
        });
        let stats = world.stop(&server);
        assert_eq!(stats.drain.reset, 0, "{stats:?}");
    }
}

scenario! {
    async fn a_drain_ends_http2_behind_its_streams(world) {
        let server = world.serve_async(|server| server, |conn: Connection| {
            serve_gracefully(conn, |conn| {
                http2::Builder::new(LocalExecutor).timer(Timer).serve_connection(conn, service_fn(answer))
            })
        });
        let draining = server.clone();
        world.run(async move {
            let conn = Client::connect(draining.local_addr()).await.unwrap();
            let (mut sender, driver) = client2::handshake(LocalExecutor, conn).await.unwrap();
            let driver = wharf::spawn(driver);
            let late = sender.send_request(request("/late", ""));
            let first = sender.clone().send_request(request("/hello", "")).await.unwrap();
            assert_eq!(whole(first).await, "hello");
            draining.drain(Duration::from_secs(30));
            assert_eq!(whole(late.await.unwrap()).await, "late");
            // GOAWAY has ended it, though the sender is still there.
            driver.await.unwrap().unwrap();
            poll_fn(|cx| match sender.poll_ready(cx) {
                Poll::Ready(Err(_)) => Poll::Ready(()),
                other => panic!("{other:?}"),
            })
            .await;
        });
        let stats = world.stop(&server);
        assert_eq!(stats.drain.reset, 0, "{stats:?}");
    }
}

/// Whether curl is here. Where it has to be, it is an error if not.
fn has_curl(name: &str) -> bool {
    let found = Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok();
    let required = std::env::var("WHARF_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
    assert!(found || !required, "{name}: WHARF_REQUIRE_TOOLS is set, and there is no curl");
    if !found {
        let _ = writeln!(std::io::stderr(), "\n*** SKIPPED: {name}: there is no curl ***");
    }
    found
}

/// What curl says to these arguments, with `input` on its standard input.
fn curl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--max-time", "15"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to_child = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || to_child.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap().unwrap();
    assert!(output.status.success(), "curl {arguments:?}: {:?}", output.status);
    output.stdout
}

fn with_curl(name: &str, start: impl Fn(Server) -> ServerHandle, scheme: &str, version: &str) {
    if !has_curl(name) {
        return;
    }
    for backend in backends(name) {
        let _watchdog = Watchdog::new(name);
        let server = start(Server::bind("127.0.0.1:0").backend(backend).workers(2));
        let url = |path: &str| format!("{scheme}://{}{path}", server.local_addr());
        let hello = url("/hello");
        let mut arguments =
            vec!["--insecure", version, "--write-out", " %{num_connects} %{http_version}\n", &hello];
        let protocol = if version == "--http1.1" { "1.1" } else { "2" };
        let mut expected = format!("hello 1 {protocol}\n");
        // curl 7.88 sends its preface again when it uses such a connection for a second time (its issue 10634).
        if version != "--http2-prior-knowledge" {
            arguments.push(&hello);
            expected += &format!("hello 0 {protocol}\n");
        }
        assert_eq!(String::from_utf8(curl(&arguments, b"")).unwrap(), expected);
        let large = pattern(0..LARGE);
        let returned = curl(
            &[
                "--insecure",
                version,
                "--data-binary",
                "@-",
                "--header",
                "Expect: 100-continue",
                &url("/whole"),
            ],
            &large,
        );
        assert_eq!(returned.len(), LARGE);
        assert_pattern(&returned, 0);
        let stats = server.stop().wait().unwrap();
        assert_eq!(stats.panics, 0, "{stats:?}");
    }
}

fn start_tls(server: Server) -> ServerHandle {
    let identity = Identity::self_signed(["localhost"]).unwrap();
    let tls = ServerTls::new(identity).alpn(["h2", "http/1.1"]);
    server.tls(&Acceptor::new(tls).unwrap()).start(serve_either).unwrap()
}

#[test]
fn curl_is_answered_by_http1() {
    let start = |server: Server| server.start(serve_http1).unwrap();
    with_curl("curl_is_answered_by_http1", start, "http", "--http1.1");
}

#[test]
fn curl_is_answered_by_http2_with_prior_knowledge() {
    let start = |server: Server| server.start(serve_http2).unwrap();
    with_curl("curl_is_answered_by_http2_with_prior_knowledge", start, "http", "--http2-prior-knowledge");
}

#[test]
fn curl_agrees_on_http1_under_tls() {
    with_curl("curl_agrees_on_http1_under_tls", start_tls, "https", "--http1.1");
}

#[test]
fn curl_agrees_on_http2_under_tls() {
    with_curl("curl_agrees_on_http2_under_tls", start_tls, "https", "--http2");
}
