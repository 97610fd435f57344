//! What a server tells of itself: panics with their connection, handlers that block, snapshots; and what it adopts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use wharf::event::{Flow, Handler};
use wharf::{
    Backend, Connection, ConnectionId, Limits, OverLimit, Phase, Result, Rule, Server, ServerEvent,
    ServerHandle, event,
};

use common::behaviours::{Echo, Moody};
use common::{Behaviour, Watchdog, backends, until};

const PATIENCE: Duration = Duration::from_secs(40);
/// A worker that is busy for so long is blocked. A machine with much to do keeps it for shorter times.
const BLOCKED: Duration = Duration::from_millis(400);

fn start(server: Server, behaviour: impl Behaviour, event_style: bool) -> ServerHandle {
    if event_style {
        server.start_events(move || behaviour.clone().handler()).unwrap()
    } else {
        server.start(move |conn| behaviour.clone().run(conn)).unwrap()
    }
}

/// Each engine with each style.
fn each(name: &str, check: impl Fn(Backend, bool)) {
    for backend in backends(name) {
        for event_style in [false, true] {
            let _watchdog = Watchdog::new(name);
            check(backend, event_style);
        }
    }
}

fn connect(server: &ServerHandle) -> TcpStream {
    let stream = TcpStream::connect(server.local_addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn is_served(stream: &mut TcpStream) -> bool {
    stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0; 1])).is_ok()
}

scenario! {
    fn a_panic_is_told_with_its_connection_and_message(world) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let telling = told.clone();
        let server = world.serve_with(Moody, move |server| {
            server.watch(move |event| {
                if let ServerEvent::Panicked { peer, message, .. } = event {
                    telling.lock().unwrap().push((peer.to_string(), message.to_string()));
                }
            })
        });
        let address = server.local_addr();
        let client = world.run(async move {
            let mut conn = wharf::Client::connect(address).await.unwrap();
            let own = conn.local_addr().unwrap().to_string();
            conn.send(b"p").await.unwrap();
            // The handler is gone, with its connection.
            assert!(!matches!(conn.recv(&mut [0; 1]).await, Ok(1..)));
            own
        });
        let stats = world.stop(&server);
        assert_eq!(*told.lock().unwrap(), [(client, String::from("as told by the peer"))]);
        assert_eq!(stats.panics, 1);
    }
}

/// Keeps its worker, if the peer says so, for as long as the test wants: until there is something to be received here.
#[derive(Clone)]
struct Blocks(Arc<Mutex<mpsc::Receiver<()>>>);

impl Blocks {
    fn block(&self, byte: u8) {
        if byte == b'b' {
            // A handler that should not: that is what is tested.
            self.0.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
    }
}

impl Behaviour for Blocks {
    type Handler = Blocks;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut byte = [0; 1];
        while conn.recv(&mut byte).await? > 0 {
            self.block(byte[0]);
            conn.send(&byte).await?;
        }
        Ok(())
    }

    fn handler(self) -> Blocks {
        self
    }
}

impl Handler for Blocks {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        self.block(bytes[0]);
        conn.send(&bytes[..1]).expect("an empty queue has room");
        Flow::Consumed(1)
    }
}

#[derive(Debug, PartialEq)]
enum Told {
    Worker(usize),
    Handler(ConnectionId, String),
}

#[test]
fn a_handler_that_blocks_its_worker_is_told_at_the_time_and_by_name() {
    each("a_handler_that_blocks_its_worker_is_told_at_the_time_and_by_name", |backend, event_style| {
        let (tell, told) = mpsc::channel();
        let tell = Mutex::new(tell);
        let server =
            Server::bind("127.0.0.1:0").workers(2).backend(backend).watchdog(BLOCKED).watch(move |event| {
                let news = match event {
                    ServerEvent::WorkerBlocked { worker, lasted, .. } => {
                        assert!(*lasted >= BLOCKED);
                        Told::Worker(*worker)
                    }
                    ServerEvent::HandlerBlocked { id, peer, lasted, .. } => {
                        assert!(*lasted >= BLOCKED);
                        Told::Handler(*id, peer.to_string())
                    }
                    _ => return,
                };
                tell.lock().unwrap().send(news).unwrap();
            });
        let (release, held) = mpsc::channel();
        let server = start(server, Blocks(Arc::new(Mutex::new(held))), event_style);
        let mut innocent = [connect(&server), connect(&server)];
        let mut guilty = connect(&server);
        for stream in innocent.iter_mut().chain([&mut guilty]) {
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0; 1]).unwrap();
        }
        guilty.write_all(b"b").unwrap();
        let Told::Worker(worker) = told.recv_timeout(PATIENCE).unwrap() else {
            panic!("the worker is told first")
        };
        assert_eq!(server.snapshot().blocked_workers, [worker]);
        // Newcomers go to the other one, and are served meanwhile. (If the first worker is blocked, nobody is let in.)
        if worker != 0 {
            let mut newcomer = connect(&server);
            newcomer.write_all(b"x").unwrap();
            newcomer.read_exact(&mut [0; 1]).unwrap();
            assert_eq!(server.snapshot().blocked_workers, [worker], "it is still blocked");
        }
        release.send(()).unwrap();
        guilty.read_exact(&mut [0; 1]).unwrap();
        let Told::Handler(id, peer) = told.recv_timeout(PATIENCE).unwrap() else {
            panic!("the handler is told")
        };
        assert_eq!(peer, guilty.local_addr().unwrap().to_string());
        let infos = server.list().wait().unwrap();
        assert!(infos.iter().any(|info| info.id == id && info.peer.to_string() == peer), "{infos:?}");
        assert_eq!(server.snapshot().blocked_workers, []);
        assert_eq!(server.stats().stalls, 1);
        server.stop().wait().unwrap();
        assert!(told.try_recv().is_err(), "nothing else is told");
    });
}

#[test]
fn a_connected_socket_can_be_adopted_within_the_rules() {
    each("a_connected_socket_can_be_adopted_within_the_rules", |backend, event_style| {
        let limits = Limits::default().connections(1).over_limit(OverLimit::Close);
        let server = Server::bind("127.0.0.1:0").workers(2).backend(backend).limits(limits);
        let server = start(server, Echo, event_style);
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        let pair = || {
            let client = TcpStream::connect(elsewhere.local_addr().unwrap()).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            (client, elsewhere.accept().unwrap().0)
        };
        let (mut client, accepted) = pair();
        server.adopt(accepted).unwrap();
        assert!(is_served(&mut client));
        let infos = server.list().wait().unwrap();
        assert_eq!(infos.len(), 1);
        assert_eq!(
            (infos[0].listener, infos[0].peer.port()),
            (None, Some(client.local_addr().unwrap().port()))
        );
        let (mut late, accepted) = pair();
        server.adopt(accepted).unwrap();
        assert!(!is_served(&mut late), "there is no room");
        assert_eq!(server.stats().refused_by(Rule::Connections), 1);
        let error = server.adopt(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("adopt: "), "{error}");
        server.stop().wait().unwrap();
        let (_client, accepted) = pair();
        assert!(server.adopt(accepted).is_err(), "it has ended");
    });
}

#[test]
fn a_snapshot_follows_a_server_through_its_life() {
    let server = Server::bind("127.0.0.1:0").workers(2).start(|conn| Echo.run(conn)).unwrap();
    let mut client = connect(&server);
    assert!(is_served(&mut client));
    let snapshot = server.snapshot();
    assert_eq!((snapshot.phase, snapshot.connections, snapshot.stats.accepted), (Phase::Serving, 1, 1));
    let text = snapshot.to_string();
    let line = |name: &str| text.lines().find(|line| line.split_whitespace().next() == Some(name));
    assert_eq!(line("phase").unwrap().split_whitespace().last(), Some("serving"), "{text}");
    for name in ["listener", "connections", "worker.0", "worker.1", "memory", "accepted"] {
        assert!(line(name).is_some(), "{name}: {text}");
    }
    server.suspend();
    assert_eq!(server.phase(), Phase::Suspended);
    server.resume().unwrap();
    server.drain(PATIENCE);
    let began = Instant::now();
    while server.phase() != Phase::Draining {
        assert!(began.elapsed() < PATIENCE, "it does not begin to drain");
        thread::yield_now();
    }
    drop(client);
    server.wait().unwrap();
    assert_eq!(server.snapshot().phase, Phase::Stopped);
    assert_eq!(server.list().wait().unwrap(), [], "who has ended has nobody");
}

scenario! {
    fn a_label_is_shown_to_those_who_look(world) {
        #[derive(Clone)]
        struct Named;

        impl Behaviour for Named {
            type Handler = Named;

            async fn run(self, mut conn: Connection) -> Result<()> {
                conn.set_label("somebody");
                while conn.recv(&mut [0; 8]).await? > 0 {}
                Ok(())
            }

            fn handler(self) -> Named {
                self
            }
        }

        impl Handler for Named {
            fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
                conn.set_label("somebody");
                Flow::Continue
            }

            fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
                Flow::Continue
            }
        }

        let server = world.serve(Named);
        let (address, watched) = (server.local_addr(), server.clone());
        world.run(async move {
            let conn = wharf::Client::connect(address).await.unwrap();
            until("it is let in", || watched.connections() == 1).await;
            loop {
                let infos = watched.list().await;
                if infos.first().and_then(|info| info.label.as_deref()) == Some("somebody") {
                    break;
                }
                wharf::sleep(Duration::from_millis(1)).await;
            }
            drop(conn);
        });
        world.stop(&server);
    }
}
