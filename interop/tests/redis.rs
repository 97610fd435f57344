//! The example with a Redis client on tokio, in front of the example that speaks Redis's protocol.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../examples/resp/main.rs"]
mod resp;
#[path = "../examples/tokio_redis.rs"]
mod tokio_redis;

use std::time::Duration;

use tokio::runtime;
use wharf::framing::{Lines, blocking::Framed};
use wharf::{Backend, Server, blocking};

#[test]
fn a_redis_client_on_tokio_answers_in_handlers_on_workers() {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for backend in [Backend::Readiness, Backend::Auto] {
        let bind = || Server::bind("127.0.0.1:0").workers(2).backend(backend);
        let store = resp::serve(bind()).unwrap();
        let server = tokio_redis::serve(&runtime, &store.local_addr().to_string(), bind()).unwrap();

        let visit = |name: &str| {
            let conn = blocking::connect(server.local_addr()).unwrap();
            let mut lines = Framed::new(conn, Lines::new());
            lines.send(name.as_bytes()).unwrap();
            String::from_utf8(lines.recv().unwrap().unwrap().to_vec()).unwrap()
        };
        assert_eq!(["ada", "grace", "ada", "ada"].map(visit), ["1", "1", "2", "3"]);

        server.drain(Duration::from_secs(5)).wait().unwrap();
        store.stop().wait().unwrap();
    }
}
