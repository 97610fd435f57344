//! That the loads notice what a server does wrong: each against a server of rustls that does it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;
use rustls::{ServerConnection, StreamOwned};

use super::{Bulk, Handshakes, MESSAGE, Suite, TRANSFER, credentials};
use crate::client::Exercise;
use crate::pattern::Pattern;

type Stream = StreamOwned<ServerConnection, TcpStream>;

#[test]
fn full_handshakes_end_in_order() {
    let server = server(echo);
    let mut load = handshakes(&server, false);
    load.run(20).expect("nothing is wrong");
    assert!(load.progress().operations >= 20);
}

#[test]
fn sessions_are_resumed() {
    let server = server(echo);
    handshakes(&server, true).run(20).expect("nothing is wrong");
}

#[test]
fn a_session_that_is_not_resumed_is_noticed() {
    let server = server_with(0, echo);
    let failure = failure(handshakes(&server, true).run(20));
    assert!(failure.contains("not Resumed"), "{failure}");
}

#[test]
fn an_end_without_close_notify_is_noticed() {
    let server = server(|mut stream| {
        let mut message = [0; MESSAGE];
        stream.read_exact(&mut message)?;
        stream.write_all(&message)?;
        stream.read(&mut message).map(drop) // the client's end
    });
    let failure = failure(handshakes(&server, false).run(1));
    assert!(failure.contains("without close_notify"), "{failure}");
}

#[test]
fn a_wrong_byte_is_noticed() {
    let server = server(|mut stream| {
        let mut message = [0; MESSAGE];
        stream.read_exact(&mut message)?;
        message[MESSAGE - 1] ^= 1;
        stream.write_all(&message)
    });
    let failure = failure(handshakes(&server, false).run(1));
    assert!(failure.contains("wrong bytes"), "{failure}");
}

#[test]
fn an_upload_is_confirmed_by_its_last_byte() {
    let sink = |wrong: u8| {
        move |mut stream: Stream| {
            let mut transfer = vec![0; TRANSFER];
            loop {
                stream.read_exact(&mut transfer)?;
                stream.write_all(&[transfer[TRANSFER - 1] ^ wrong])?;
            }
        }
    };
    let trust = credentials().and_then(|credentials| credentials.trust(Suite::Any, false));
    let trust = trust.expect("there are credentials");
    let upload = |server: &Server| Bulk::upload(server.address, &trust, 2).expect("it connects");

    let (right, wrong) = (server(sink(0)), server(sink(1)));
    let mut load = upload(&right);
    load.run(5000).expect("nothing is wrong");
    assert!(load.progress().operations >= 5000);
    let failure = failure(upload(&wrong).run(1));
    assert!(failure.contains("wrong bytes"), "{failure}");
}

#[test]
fn a_download_is_checked_byte_by_byte() {
    let source = |wrong: u8| {
        move |mut stream: Stream| {
            let mut request = [0];
            loop {
                stream.read_exact(&mut request)?;
                let pattern = Pattern::new();
                for position in (0..TRANSFER).step_by(1024) {
                    let mut bytes = pattern.run(0, position as u64, 1024).to_vec();
                    bytes[17] ^= wrong;
                    stream.write_all(&bytes)?;
                }
            }
        }
    };
    let trust = credentials().and_then(|credentials| credentials.trust(Suite::Any, false));
    let trust = trust.expect("there are credentials");
    let download = |server: &Server| Bulk::download(server.address, &trust, 2, 16).expect("it connects");

    let (right, wrong) = (server(source(0)), server(source(1)));
    download(&right).run(5000).expect("nothing is wrong");
    let failure = failure(download(&wrong).run(1));
    assert!(failure.contains("wrong bytes"), "{failure}");
}

fn handshakes(server: &Server, resumed: bool) -> Handshakes {
    let credentials = credentials().expect("there are credentials");
    Handshakes::start(server.address, credentials, Suite::Any, 4, resumed).expect("it connects")
}

fn failure(result: Result<()>) -> String {
    format!("{:#}", result.expect_err("the server is at fault"))
}

/// A server of rustls. Its threads have ended when this is dropped, after which the process may exit: the library of
/// cryptography aborts it if some thread still wants randomness then.
struct Server {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address)); // wakes the thread that accepts
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a server does not panic");
        }
    }
}

fn server(handle: impl Fn(Stream) -> io::Result<()> + Sync + Send + 'static) -> Server {
    server_with(2, handle)
}

/// One thread for each connection, which ends when the client is gone.
fn server_with(tickets: usize, handle: impl Fn(Stream) -> io::Result<()> + Sync + Send + 'static) -> Server {
    let credentials = credentials().expect("there are credentials");
    let mut config = credentials.server().expect("the credentials fit");
    config.send_tls13_tickets = tickets;
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let stopping = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stopping);
    let accept = move || {
        thread::scope(|scope| {
            for socket in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let session = ServerConnection::new(config.clone()).expect("the configuration is whole");
                let handle = &handle;
                scope.spawn(move || handle(StreamOwned::new(session, socket)).ok());
            }
        });
    };
    Server {
        address,
        stopping,
        thread: Some(thread::spawn(accept)),
    }
}

fn echo(mut stream: Stream) -> io::Result<()> {
    let mut buffer = [0; MESSAGE];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            stream.conn.send_close_notify();
            return stream.flush();
        }
        stream.write_all(&buffer[..count])?;
    }
}
