//! `wharf serve --proxy-protocol`: headers written by hand, and HAProxy in front.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::process::{
    Folder, Process, STYLES, Server, assert_echoes, assert_reset, bounded, inherited, skipped,
};

const HEADER: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";

#[test]
fn the_client_that_a_trusted_proxy_tells_is_the_one_that_counts() {
    for style in STYLES.into_iter().chain(["blocking"]) {
        let more = ["--proxy-protocol", "10.0.0.0/8", "--proxy-protocol", "127.0.0.1", "-vv"];
        let rules = ["--max-per-address", "1", "--deny", "198.51.100.0/24"];
        let server = Server::start("echo", style, &[&more[..], &rules].concat());
        let mut client = server.connect();
        client.write_all(HEADER).unwrap();
        assert_echoes(&mut client);
        server.process.await_message("connection accepted peer=192.0.2.7:40000");

        assert_reset_after(HEADER, &server);
        assert_reset_after(b"PROXY TCP4 198.51.100.9 192.0.2.1 40000 443\r\n", &server);
        assert_reset_after(b"GET / HTTP/1.1\r\n\r\n", &server);
        let outcome = server.end(Signal::TERM);
        for reason in [
            "1 refused: connections per address",
            "1 refused: network",
            "1 PROXY protocol: there is no header",
        ] {
            assert!(outcome.stderr.contains(reason), "{style}, {reason}: {outcome:?}");
        }
    }
}

#[test]
fn whoever_is_not_trusted_is_reset() {
    let server = Server::start("echo", "async", &["--proxy-protocol", "192.0.2.0/24"]);
    assert_reset(server.try_connect());
    assert!(server.snapshot().contains("1 not a trusted proxy"));
}

#[test]
fn haproxy_tells_its_clients_and_checks_with_headers_of_its_own() {
    if Command::new("haproxy").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return skipped("haproxy is not installed (Debian: haproxy)");
    }
    for option in ["send-proxy", "send-proxy-v2"] {
        for style in STYLES {
            let server = Server::start("echo", style, &["--proxy-protocol", "127.0.0.0/8", "-vv"]);
            let (haproxy, address) = haproxy(&server, option);
            // Two checks in a row: haproxy goes on after the first one, so it was good.
            let own = "connection accepted peer=127.0.0.1:";
            server.process.await_message(own);
            server.process.await_message(own);
            let mut client = bounded(TcpStream::connect(address).unwrap());
            assert_echoes(&mut client);
            let me = client.local_addr().unwrap();
            server.process.await_message(&format!("connection accepted peer={me}"));
            drop((client, haproxy));
            let outcome = server.end(Signal::TERM);
            assert!(!outcome.stderr.contains("PROXY protocol:"), "{option}, {style}: {outcome:?}");
        }
    }
}

/// A proxy in front of `server`, and where it listens: on a socket that it gets from here, so that it need not be awaited.
fn haproxy(server: &Server, option: &str) -> (Process, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let inherited = inherited(&listener);
    let folder = Folder::new(&format!("haproxy-{}", server.address.port()));
    let file = folder.write(
        "haproxy.cfg",
        &format!(
            "defaults\n  mode tcp\n  timeout connect 60s\n  timeout client 60s\n  timeout server 60s\n  \
             timeout check 60s\nlisten front\n  bind fd@{}\n  \
             server wharf {} {option} check-send-proxy check inter 20ms\n",
            inherited, server.address
        ),
    );
    let process = Process::start(Command::new("haproxy").args(["-db", "-f", &file]).stdout(Stdio::null()));
    let address = listener.local_addr().expect("it is bound");
    // It has read its file when it takes the first connection.
    drop(TcpStream::connect(address).expect("it listens"));
    server.process.await_message("connection accepted");
    (process, address)
}

fn assert_reset_after(bytes: &[u8], server: &Server) {
    let mut client = server.connect();
    client.write_all(bytes).expect("the kernel takes it");
    assert_reset(Ok(client));
}
