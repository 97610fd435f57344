//! Clients of Unix sockets.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use futures_lite::future::poll_once;
use wharf::sim::Simulation;
use wharf::{Client, Connection, Server};

/// A path for a socket, in a folder that goes with it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let folder = std::env::temp_dir().join(format!("wharf-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Place(folder.join("socket"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(self.0.parent().unwrap()));
    }
}

/// Sends back what comes until the end, which it returns too.
fn echo(mut stream: UnixStream) {
    let mut buf = [0; 16 * 1024];
    loop {
        match stream.read(&mut buf).unwrap() {
            0 => return,
            n => stream.write_all(&buf[..n]).unwrap(),
        }
    }
}

#[test]
fn a_client_talks_to_a_unix_socket() {
    for backend in common::backends("a_client_talks_to_a_unix_socket") {
        let place = Place::new("talk");
        let listener = UnixListener::bind(&place.0).unwrap();
        let server = thread::spawn(move || echo(listener.accept().unwrap().0));
        let address = format!("unix:{}", place.0.display());
        wharf::run_on(backend, async move {
            let mut conn = Client::connect(&address).await?;
            assert_eq!(conn.peer_addr().to_string(), address);
            assert_eq!(conn.local_addr().unwrap().to_string(), "unix:", "a client's socket has no name");
            let message = vec![7; 1 << 20];
            let mut reply = vec![0; message.len()];
            for size in [1, 64, 5000, message.len()] {
                conn.send(&message[..size]).await?;
                conn.recv_exact(&mut reply[..size]).await?;
                assert_eq!(reply[..size], message[..size]);
            }
            conn.finish().await
        })
        .unwrap()
        .unwrap();
        server.join().unwrap();
    }
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "abstract names are a part of Linux")]
fn a_client_talks_to_an_abstract_name() {
    #[cfg(target_os = "linux")]
    for backend in common::backends("a_client_talks_to_an_abstract_name") {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("wharf-abstract-{}-{backend:?}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let server = thread::spawn(move || echo(listener.accept().unwrap().0));
        wharf::run_on(backend, async move {
            let mut conn = Client::connect(format!("unix:@{name}")).await?;
            assert_eq!(conn.peer_addr().unix().unwrap().abstract_name(), Some(name.as_bytes()));
            conn.send(b"hello").await?;
            conn.recv_exact(&mut [0; 5]).await?;
            conn.finish().await
        })
        .unwrap()
        .unwrap();
        server.join().unwrap();
    }
}

#[test]
fn a_client_waits_for_room_in_the_backlog() {
    for backend in common::backends("a_client_waits_for_room_in_the_backlog") {
        let place = Place::new("backlog");
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        listener.bind(&socket2::SockAddr::unix(&place.0).unwrap()).unwrap();
        // One may wait (listen(2)), and this is the one.
        listener.listen(0).unwrap();
        let first = UnixStream::connect(&place.0).unwrap();
        let address = format!("unix:{}", place.0.display());

        let client = Client::new(&address);
        let late = wharf::run_on(backend, async move {
            let refused = client.clone().connect_within(Duration::from_millis(30)).open().await.unwrap_err();
            assert!(refused.is_timeout(), "{refused}");
            let makes_room = thread::spawn(move || {
                let listener = UnixListener::from(std::os::fd::OwnedFd::from(listener));
                for _ in 0..2 {
                    drop(listener.accept().unwrap());
                }
            });
            let connected = client.open().await.map(drop);
            makes_room.join().unwrap();
            connected
        });
        late.unwrap().unwrap();
        drop(first);
    }
}

#[test]
fn a_connect_that_is_given_up_leaves_its_place_to_the_next() {
    for backend in common::backends("a_connect_that_is_given_up_leaves_its_place_to_the_next") {
        let place = Place::new("given-up");
        let listener = UnixListener::bind(&place.0).unwrap();
        let server =
            thread::spawn(move || listener.incoming().take(3).for_each(|stream| drop(stream.unwrap())));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("unix:{}", place.0.display());
        wharf::run_on(backend, async move {
            let connect = || Box::pin(Client::connect(&address).into_future());
            assert!(poll_once(connect()).await.is_none(), "it is told in the next turn");
            let mut conn = Client::connect(tcp.local_addr().unwrap()).await?;
            drop((poll_once(connect()).await, connect().await?));
            let (mut far, _) = tcp.accept().unwrap();
            far.write_all(b"tcp").unwrap();
            conn.recv_exact(&mut [0; 3]).await
        })
        .unwrap()
        .unwrap();
        server.join().unwrap();
    }
}

#[test]
fn nobody_listens_is_an_error_that_names_the_socket() {
    for backend in common::backends("nobody_listens_is_an_error_that_names_the_socket") {
        let place = Place::new("nobody");
        let address = format!("unix:{}", place.0.display());
        let connect = |address: String| {
            wharf::run_on(backend, async move { Client::connect(address).await.map(drop) })
                .unwrap()
                .unwrap_err()
        };
        let error = connect(address.clone());
        assert_eq!(error.to_string(), format!("connect to {address}: no such file or directory"));
        drop(UnixListener::bind(&place.0).unwrap());
        let error = connect(address.clone());
        assert_eq!(error.to_string(), format!("connect to {address}: connection refused"));
    }
}

#[test]
fn a_simulated_network_has_no_unix_sockets() {
    let mut simulation = Simulation::new(1);
    let client = simulation.client("10.0.0.1", async { Client::connect("unix:/x").await.map(drop) });
    simulation.run();
    let error = client.take().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "connect to unix:/x: a simulated network has no Unix sockets");
    let server = simulation.serve(Server::bind("unix:/x"), |_: Connection| async { Ok(()) });
    let error = server.unwrap_err();
    assert_eq!(error.to_string(), "listen on unix:/x: a simulated network has no Unix sockets");
}
