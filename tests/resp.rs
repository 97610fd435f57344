//! The example that speaks Redis's protocol, with redis-benchmark as its client.
//!
//! The tests of the protocol and of the store stand beside their code; they run here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;
#[path = "../examples/resp/main.rs"]
mod resp;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use wharf::{Backend, Client, Server, ServerHandle};

use common::{Watchdog, backends};

fn server(backend: Backend) -> ServerHandle {
    resp::serve(Server::bind("127.0.0.1:0").workers(2).backend(backend)).unwrap()
}

/// What redis-benchmark runs if nobody chooses.
const TESTS: [&str; 20] = [
    "PING_INLINE",
    "PING_MBULK",
    "SET",
    "GET",
    "INCR",
    "LPUSH",
    "RPUSH",
    "LPOP",
    "RPOP",
    "SADD",
    "HSET",
    "SPOP",
    "ZADD",
    "ZPOPMIN",
    "LPUSH (needed to benchmark LRANGE)",
    "LRANGE_100 (first 100 elements)",
    "LRANGE_300 (first 300 elements)",
    "LRANGE_500 (first 500 elements)",
    "LRANGE_600 (first 600 elements)",
    "MSET (10 keys)",
];

#[test]
fn redis_benchmark_runs_all_of_its_tests_without_an_error() {
    let name = "redis_benchmark_runs_all_of_its_tests_without_an_error";
    if !is_here("redis-benchmark", name) {
        return;
    }
    let _watchdog = Watchdog::patient(name, Duration::from_secs(120));
    for backend in backends(name) {
        for pipeline in ["1", "16"] {
            let server = server(backend);
            let port = server.local_addr().port().to_string();
            let args = ["-h", "127.0.0.1", "-p", &port, "-n", "2000", "-c", "20", "-P", pipeline, "--csv"];
            let output = Command::new("redis-benchmark").args(args).stdin(Stdio::null()).output().unwrap();
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            let told = format!("on {backend}, pipeline {pipeline}: {}\n{out}\n{err}", output.status);
            assert!(output.status.success() && err.trim().is_empty(), "{told}");
            let lines: Vec<_> = out.lines().skip(1).collect();
            for test in TESTS {
                let line = lines.iter().find_map(|line| line.strip_prefix(&format!("\"{test}\",\"")));
                let rate = line.and_then(|line| line.split('"').next()?.parse::<f64>().ok());
                assert!(rate.is_some_and(|rate| rate > 0.0), "{test} {told}");
            }
            assert!(!out.to_lowercase().contains("err"), "{told}");
            server.drain(Duration::from_secs(5)).wait().unwrap();
        }
    }
}

#[test]
fn a_client_that_reads_late_gets_every_reply_in_order() {
    let name = "a_client_that_reads_late_gets_every_reply_in_order";
    let _watchdog = Watchdog::patient(name, Duration::from_secs(60));
    for backend in backends(name) {
        let server = server(backend);
        let address = server.local_addr();
        let replies = wharf::run_on(backend, async move {
            let (mut read, mut write) = Client::connect(address).await.unwrap().split();
            let writing = wharf::spawn(async move {
                let value = "v".repeat(20_000);
                write.send(format!("SET k {}\r\n", &value[..16_000]).as_bytes()).await.unwrap();
                for n in 0..400 {
                    write
                        .send(format!("GET k\r\n*2\r\n$4\r\nECHO\r\n$3\r\n{n:03}\r\n").as_bytes())
                        .await
                        .unwrap();
                }
                write.send(b"QUIT\r\n").await.unwrap();
                write
            });
            // All of it is on its way before the first reply is read.
            let _write = writing.await.unwrap();
            let mut replies = Vec::new();
            while let Some(chunk) = read.recv_chunk().await.unwrap() {
                replies.extend_from_slice(&chunk);
            }
            replies
        });
        let replies = String::from_utf8(replies.unwrap()).unwrap();
        let echoed: Vec<_> =
            replies.split("\r\n").filter(|line| line.len() == 3 && !line.starts_with('+')).collect();
        let expected: Vec<_> = (0..400).map(|n| format!("{n:03}")).collect();
        assert_eq!(echoed, expected);
        assert!(replies.starts_with("+OK\r\n$16000\r\n") && replies.ends_with("\r\n+OK\r\n"));
        server.drain(Duration::from_secs(5)).wait().unwrap();
    }
}

#[test]
fn what_is_no_command_is_told_and_ends_the_connection() {
    let name = "what_is_no_command_is_told_and_ends_the_connection";
    let _watchdog = Watchdog::new(name);
    for backend in backends(name) {
        let server = server(backend);
        let address = server.local_addr();
        let replies = wharf::run_on(backend, async move {
            let mut conn = Client::connect(address).await.unwrap();
            conn.send(b"PING\r\n*1\r\n$999999999\r\n").await.unwrap();
            common::recv_all(&mut conn).await.unwrap()
        });
        assert_eq!(replies.unwrap(), b"+PONG\r\n-ERR Protocol error: invalid bulk length\r\n");
        server.drain(Duration::from_secs(5)).wait().unwrap();
    }
}

/// Whether a program is installed. If not, says that the test is skipped; or fails, where that was asked for.
fn is_here(program: &str, test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        return true;
    }
    let is_required = std::env::var("WHARF_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
    assert!(!is_required, "{test}: WHARF_REQUIRE_TOOLS is set, and {program} is not installed");
    let line = format!("\n*** SKIPPED: {test}: {program} is not installed ***\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}
