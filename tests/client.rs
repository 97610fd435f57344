//! The client's way to a connection: addresses that race, local ones, steps that are told, connections that are made when used.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use wharf::sim::Simulation;
use wharf::{Client, ConnectState, Connection, ErrorKind, Server};

use common::behaviours::*;
use common::*;

/// A client of a name that has these addresses.
fn named(port: u16, addresses: impl Into<Vec<IpAddr>>) -> Client {
    let addresses = addresses.into();
    Client::new(format!("many.test:{port}")).resolver(move |_| Ok(addresses.clone()))
}

/// Addresses of the world's own network at which nobody listens.
fn nobody(server: SocketAddr) -> [IpAddr; 2] {
    let IpAddr::V4(ip) = server.ip() else { panic!("the worlds are of IPv4") };
    let [a, b, c, _] = ip.octets();
    [[a, b, c, 77].into(), [a, b, c, 78].into()]
}

/// Sends something there and back.
async fn assert_echoes(conn: &mut Connection) {
    conn.send(b"ping").await.unwrap();
    let mut echo = [0; 4];
    conn.recv_exact(&mut echo).within(Duration::from_secs(10)).await.unwrap();
    assert_eq!(&echo, b"ping");
}

scenario! {
    async fn addresses_that_refuse_are_passed_over(world) {
        let address = world.serve(Echo).local_addr();
        world.run(async move {
            let [first, second] = nobody(address);
            let mut conn = named(address.port(), [first, second, address.ip()]).open().await.unwrap();
            assert_eq!(conn.peer_addr(), address);
            assert_echoes(&mut conn).await;
        });
    }
}

scenario! {
    async fn the_error_of_a_name_tells_what_each_address_has_said(world) {
        let address = world.serve(Echo).local_addr();
        world.run(async move {
            let [first, second] = nobody(address);
            let error = named(address.port(), [first, second]).open().await.unwrap_err();
            let port = address.port();
            assert_eq!(error.to_string(), format!(
                "connect to many.test:{port}: {first}:{port}: connection refused; {second}:{port}: connection refused",
            ));
            assert!(error.is_refused() && error.kind() == ErrorKind::Peer);
            let error = named(port, [first]).open().await.unwrap_err();
            let told = format!("connect to many.test:{port} ({first}:{port}): connection refused");
            assert_eq!(error.to_string(), told, "of one alone it is told as ever");
        });
    }
}

scenario! {
    async fn a_name_that_cannot_be_resolved_is_told_from_one_that_refuses(world) {
        let address = world.serve(Echo).local_addr();
        world.run(async move {
            let client = Client::new("a.test:80");
            let failing = client.clone().resolver(|_| Err(io::Error::other("out of order")));
            let error = failing.open().await.unwrap_err();
            assert_eq!(error.to_string(), "connect to a.test:80: cannot resolve a.test: out of order");
            assert!(error.is_unresolved() && !error.is_refused());
            let error = client.clone().resolver(|_| Ok(Vec::new())).open().await.unwrap_err();
            assert_eq!(error.to_string(), "connect to a.test:80: cannot resolve a.test: it has no addresses");
            assert!(error.is_unresolved());
            let error = client.resolver(|_| panic!("on purpose")).open().await.unwrap_err();
            assert!(error.is_unresolved() && error.to_string().ends_with("the resolver panicked"), "{error}");
            // A literal address is not looked up.
            let never = |_: &str| -> io::Result<Vec<IpAddr>> { panic!("there is nothing to look up") };
            assert_echoes(&mut Client::new(address).resolver(never).open().await.unwrap()).await;
        });
    }
}

scenario! {
    async fn each_step_of_a_connect_is_told_and_then_how_it_ended(world) {
        let address = world.serve(Echo).local_addr();
        world.run(async move {
            let [nobody, _] = nobody(address);
            let steps: Rc<RefCell<Vec<String>>> = Rc::default();
            let noted = steps.clone();
            let connect = named(address.port(), [nobody, address.ip()]).open();
            let conn = connect.observe(move |state| noted.borrow_mut().push(state.to_string())).await.unwrap();
            let dead = SocketAddr::new(nobody, address.port());
            let expected = [
                String::from("looking up the name"),
                format!("connecting to {dead}"),
                format!("connecting to {address}"),
                format!("connected to {address}"),
            ];
            assert_eq!(*steps.borrow(), expected);
            drop(conn);
            let ends: Rc<RefCell<Vec<ConnectState>>> = Rc::default();
            let noted = ends.clone();
            let connect = Client::connect(dead).observe(move |state| noted.borrow_mut().push(state.clone()));
            let error = connect.await.unwrap_err();
            let ends = ends.borrow();
            let [ConnectState::Connecting(to), ConnectState::Disconnected(told)] = &ends[..] else { panic!("{ends:?}") };
            assert_eq!(*to, dead);
            assert_eq!(told.to_string(), error.to_string());
            assert!(ends[0].is_connecting() && !ends[1].is_connecting() && !ends[1].is_connected());
        });
    }
}

/// A port that is free, and stays so: nobody else here asks for it, and the system takes those that it hands out from above.
fn free_port() -> u16 {
    static ASKED: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + std::process::id() as u16 % 10_000;
    let ports = std::iter::repeat_with(|| first + ASKED.fetch_add(1, Ordering::SeqCst));
    ports.take(10_000).find(|port| TcpListener::bind(("0.0.0.0", *port)).is_ok()).unwrap()
}

scenario! {
    async fn a_client_connects_from_the_address_and_the_port_that_it_is_given(world) {
        let address = world.serve(Echo).local_addr();
        let own: IpAddr = if world.is_simulated() { [10, 0, 0, 2].into() } else { [127, 0, 0, 1].into() };
        world.run(async move {
            for source in [own.to_string(), String::from("0.0.0.0")] {
                let mut conn = Client::new(address).bind(&source).open().await.unwrap();
                assert_eq!(conn.local_addr().unwrap().ip(), Some(own), "{source}");
                assert_ne!(conn.local_addr().unwrap().port(), Some(0));
                assert_echoes(&mut conn).await;
            }
            for ip in [own, [0, 0, 0, 0].into()] {
                let port = free_port();
                let client = Client::new(address).bind(SocketAddr::new(ip, port));
                let mut conn = client.open().await.unwrap();
                assert_eq!(conn.local_addr().unwrap(), SocketAddr::new(own, port));
                assert_echoes(&mut conn).await;
                let error = client.open().await.unwrap_err();
                let taken = [Some(io::ErrorKind::AddrNotAvailable), Some(io::ErrorKind::AddrInUse)];
                assert!(taken.contains(&error.io_kind()), "one connection at a time: {error}");
                assert_eq!(error.kind(), ErrorKind::System);
                conn.reset().await;
            }
        });
    }
}

scenario! {
    async fn with_a_port_of_ones_own_the_addresses_race_all_the_same(world) {
        let address = world.serve(Echo).local_addr();
        world.run(async move {
            let [first, second] = nobody(address);
            let client = named(address.port(), [first, second, address.ip()]).bind(format_args!("0.0.0.0:{}", free_port()));
            assert_echoes(&mut client.open().await.unwrap()).await;
        });
    }
}

scenario! {
    async fn only_addresses_of_the_local_ones_family_are_tried(world) {
        let address = world.serve(Echo).local_addr();
        world.run(async move {
            let v6: IpAddr = "2001:db8::1".parse().unwrap();
            let client = named(address.port(), [v6, address.ip()]).bind("0.0.0.0");
            let tried: Rc<RefCell<usize>> = Rc::default();
            let count = tried.clone();
            let connect = client.open().observe(move |state| {
                *count.borrow_mut() += usize::from(matches!(state, ConnectState::Connecting(_)));
            });
            assert_echoes(&mut connect.await.unwrap()).await;
            assert_eq!(*tried.borrow(), 1);
            let error = named(80, [v6]).bind("0.0.0.0").open().await.unwrap_err();
            let told = "start: option `bind` is an IPv4 address (0.0.0.0), and there are only IPv6 ones to connect to";
            assert_eq!(error.to_string(), told);
            assert_eq!(error.kind(), ErrorKind::Caller);
        });
    }
}

scenario! {
    async fn bad_options_are_refused_by_name_before_anything_happens(world) {
        let address = world.serve(Echo).local_addr();
        world.run(async move {
            let refused = async |client: Client, name: &str| {
                let error = client.open().observe(|state| assert!(!state.is_connecting())).await.unwrap_err();
                assert!(error.to_string().starts_with(&format!("start: option `{name}` ")), "{error}");
            };
            refused(Client::new(address).attempt_delay(Duration::from_millis(9)), "attempt_delay").await;
            refused(Client::new(address).bind("nonsense"), "bind").await;
            refused(Client::new("unix:/nowhere").bind("127.0.0.1"), "bind").await;
        });
    }
}

scenario! {
    async fn a_lazy_connection_is_made_when_it_is_used_and_again_when_it_has_ended(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        world.run(async move {
            let mut lazy = Client::new(address).lazy();
            assert!(!lazy.is_connected());
            assert_eq!(server.connections(), 0, "nothing happens before the first use");
            lazy.disconnect();
            assert_echoes(lazy.connected().await.unwrap()).await;
            let first = lazy.connected().await.unwrap().local_addr();
            assert_echoes(lazy.connected().await.unwrap()).await;
            assert_eq!(lazy.connected().await.unwrap().local_addr(), first, "it stands, and is used again");
            assert!(!lazy.clone().is_connected(), "a clone has the target and not the connection");
            lazy.disconnect();
            lazy.disconnect();
            assert!(!lazy.is_connected());
            assert_echoes(lazy.connected().await.unwrap()).await;
            // Ended by this side, half or whole; and by the other one.
            lazy.connected().await.unwrap().finish().await.unwrap();
            assert!(!lazy.is_connected());
            assert_echoes(lazy.connected().await.unwrap()).await;
            lazy.connected().await.unwrap().reset().await;
            assert_echoes(lazy.connected().await.unwrap()).await;
            let gone = lazy.connected().await.unwrap().hangup();
            server.disconnect(wharf::Whom::All);
            gone.await;
            assert!(!lazy.is_connected());
            assert_echoes(lazy.connected().await.unwrap()).await;
        });
    }
}

scenario! {
    async fn a_connect_that_is_dropped_leaves_nothing(world) {
        let server = world.serve(Echo);
        let address = server.local_addr();
        world.run(async move {
            for polls in 0..6 {
                let mut connect = Box::pin(named(address.port(), [nobody(address)[0], address.ip()]).open().into_future());
                for _ in 0..polls {
                    if let Some(connected) = futures_lite::future::poll_once(&mut connect).await {
                        connected.unwrap();
                        break;
                    }
                    wharf::sleep(Duration::from_millis(1)).await;
                }
            }
            until("nobody is connected", || server.connections() == 0).await;
        });
    }
}

/// Names of the simulated network, whose hosts answer or not.
fn ips(last: &[u8]) -> Vec<IpAddr> {
    last.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect()
}

async fn echo(mut conn: Connection) -> wharf::Result<()> {
    let mut buf = [0; 64];
    while let n @ 1.. = conn.recv(&mut buf).await? {
        conn.send(&buf[..n]).await?;
    }
    Ok(())
}

/// How long a connect took, in milliseconds, and what came of it.
fn timed(
    simulation: &mut Simulation,
    connect: impl Future<Output = wharf::Result<Connection>> + 'static,
) -> (u128, wharf::Result<String>) {
    let outcome = simulation.client("10.0.0.2", async move {
        let mut conn = connect.await?;
        assert_echoes(&mut conn).await;
        Ok(conn.peer_addr().to_string())
    });
    let began = simulation.now();
    let mut result = None;
    simulation.run_until(|| {
        result = result.take().or_else(|| outcome.take());
        result.is_some()
    });
    let took = simulation.now() - began;
    simulation.run();
    (took.as_millis(), result.expect("it is over"))
}

#[test]
fn a_name_with_two_dead_addresses_of_three_connects_within_600_ms() {
    for seed in 0..20 {
        let mut simulation = Simulation::new(seed);
        let server = simulation.serve(Server::bind("10.0.0.1:80"), echo).unwrap();
        simulation.name("many.test", &ips(&[7, 8, 1]));
        ips(&[7, 8]).into_iter().for_each(|dead| simulation.blackhole(dead));
        let (took, result) = timed(&mut simulation, async { Client::connect("many.test:80").await });
        assert_eq!(result.unwrap(), "10.0.0.1:80");
        assert!((500..600).contains(&took), "seed {seed}: {took} ms");
        // The delay is the user's, and so is the deadline.
        let slow = Client::new("many.test:80").attempt_delay(Duration::from_secs(2));
        let (took, result) = timed(&mut simulation, slow.open().into_future());
        assert!(result.is_ok() && (4_000..4_100).contains(&took), "seed {seed}: {took} ms");
        let (took, result) = timed(&mut simulation, slow.open().within(Duration::from_secs(3)).into_future());
        let told =
            "connect to many.test:80: timed out after 3s; 10.0.0.7:80: no answer; 10.0.0.8:80: no answer";
        assert_eq!(result.unwrap_err().to_string(), told);
        assert!((3_000..3_050).contains(&took), "seed {seed}: {took} ms");
        server.stop();
        simulation.run();
        assert_eq!(simulation.open_sockets(), 0, "seed {seed}: whoever has lost is closed");
    }
}

#[test]
fn the_first_that_answers_wins_and_the_others_leave_no_connection() {
    for seed in 0..20 {
        let mut simulation = Simulation::new(seed);
        let servers: Vec<_> = (1..=4)
            .map(|host| simulation.serve(Server::bind(format!("10.0.0.{host}0:80")), echo).unwrap())
            .collect();
        simulation.name("many.test", &ips(&[10, 20, 30, 40]));
        let hasty = Client::new("many.test:80").attempt_delay(Duration::from_millis(10));
        let (_, result) = timed(&mut simulation, hasty.open().into_future());
        assert!(result.is_ok());
        for server in servers {
            assert_eq!(server.connections(), 0, "seed {seed}");
            server.stop();
        }
        simulation.run();
        assert_eq!(simulation.open_sockets(), 0, "seed {seed}");
    }
}

#[cfg(feature = "tls")]
#[test]
fn an_address_at_which_tls_fails_or_stalls_is_passed_over() {
    use common::tls::{acceptor, client};
    for seed in 0..5 {
        let mut simulation = Simulation::new(seed);
        // One speaks no TLS, one says nothing, one is right.
        let plain = simulation.serve(Server::bind("10.0.0.10:80"), async |mut conn: Connection| {
            conn.send(b"220 hello\r\n").await
        });
        let silent = simulation.serve(Server::bind("10.0.0.20:80"), async |mut conn: Connection| {
            while conn.recv_chunk().await?.is_some() {}
            Ok(())
        });
        let right = simulation.serve(Server::bind("10.0.0.30:80").tls(&acceptor()), echo);
        let servers = [plain.unwrap(), silent.unwrap(), right.unwrap()];
        simulation.name("server.test", &ips(&[10, 20, 30]));
        let connect = client("server.test:80").connect_within(Duration::from_secs(9));
        let (took, result) = timed(&mut simulation, connect.open().into_future());
        assert_eq!(result.unwrap(), "10.0.0.30:80", "seed {seed}");
        // Of the nine seconds the silent one had half.
        assert!((4_300..5_500).contains(&took), "seed {seed}: {took} ms");
        simulation.name("server.test", &ips(&[10, 20]));
        let (took, result) = timed(&mut simulation, connect.open().into_future());
        let error = result.unwrap_err().to_string();
        assert!(
            error.starts_with(
                "connect to server.test:80: timed out after 9s, in the TLS handshake with 10.0.0.20:80; "
            ),
            "{error}"
        );
        assert!(error.contains("10.0.0.10:80: TLS: "), "{error}");
        assert!((9_000..9_100).contains(&took), "seed {seed}: the deadline is that of the whole: {took} ms");
        for server in servers {
            server.stop();
        }
        simulation.run();
        assert_eq!(simulation.open_sockets(), 0, "seed {seed}");
    }
}

#[test]
fn a_resolver_that_hangs_ends_at_the_deadline() {
    for backend in backends("a_resolver_that_hangs_ends_at_the_deadline") {
        let _watchdog = Watchdog::new("a_resolver_that_hangs_ends_at_the_deadline");
        let (release, hung) = std::sync::mpsc::channel::<()>();
        let hung = std::sync::Mutex::new(hung);
        let client =
            Client::new("hangs.test:80").connect_within(Duration::from_millis(50)).resolver(move |_| {
                let _ = hung.lock().unwrap().recv();
                Err(io::ErrorKind::TimedOut.into())
            });
        wharf::run_on(backend, async move {
            let error = client.open().await.unwrap_err();
            assert!(error.is_timeout());
            assert_eq!(
                error.to_string(),
                "connect to hangs.test:80: timed out after 50ms, looking up the name"
            );
            // One thread is taken; the others look up.
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            Client::connect(format_args!("localhost:{port}")).await.unwrap();
            drop(client);
            drop(release);
        })
        .unwrap();
    }
}
