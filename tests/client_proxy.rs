//! Clients that go through proxies, honest ones and others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use wharf::{Client, ConnectState, Connection, Deadlines, ErrorKind, Proxy, Result};

use common::behaviours::*;
use common::*;

/// What a proxy of these tests does.
#[derive(Clone)]
enum Script {
    /// Speaks SOCKS5, wants this user if there is one, and leads every name to the address.
    Socks5 { user: Option<(&'static str, &'static str)>, to: SocketAddr },
    /// Speaks SOCKS5 with anybody, and leads to this address alone, and only if it is asked for that.
    Exactly(SocketAddr),
    /// Speaks HTTP, wants this `Proxy-Authorization` if there is one, and leads every name to the address; behind the header it says what
    /// the target says first.
    Http { authorization: Option<&'static str>, to: SocketAddr },
    /// Reads once before each of these, says it, and then ends.
    Say(Vec<Vec<u8>>),
    /// Says this for ever.
    Endless(Vec<u8>),
    /// Says these bytes one at a time, so far apart.
    Drip(Vec<u8>, Duration),
    /// Reads, and says nothing.
    Silent,
}

#[derive(Clone)]
struct Scripted {
    script: Script,
    /// What was asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Behaviour for Scripted {
    type Handler = Echo;

    async fn run(self, mut conn: Connection) -> Result<()> {
        match &self.script {
            Script::Socks5 { user, to } => self.socks5(conn, *user, *to).await,
            Script::Exactly(to) => self.socks5(conn, None, *to).await,
            Script::Http { authorization, to } => self.http(conn, *authorization, *to).await,
            Script::Say(answers) => {
                for answer in answers {
                    conn.recv(&mut [0; 1024]).await?;
                    conn.send(answer).await?;
                }
                conn.finish().await
            }
            Script::Endless(bytes) => loop {
                conn.send(bytes).await?;
            },
            Script::Drip(bytes, gap) => {
                for byte in bytes {
                    conn.send(&[*byte]).await?;
                    wharf::sleep(*gap).await;
                }
                Ok(())
            }
            Script::Silent => Discard.run(conn).await,
        }
    }

    fn handler(self) -> Echo {
        unreachable!("these scenarios are of the async style")
    }
}

impl Scripted {
    fn new(script: Script) -> Scripted {
        Scripted { script, asked: Arc::default() }
    }

    async fn socks5(&self, mut conn: Connection, user: Option<(&str, &str)>, to: SocketAddr) -> Result<()> {
        let mut head = [0; 2];
        conn.recv_exact(&mut head).await?;
        let mut methods = vec![0; head[1].into()];
        conn.recv_exact(&mut methods).await?;
        let wanted = if user.is_some() { 2 } else { 0 };
        if head[0] != 5 || !methods.contains(&wanted) {
            return conn.send(&[5, 0xff]).await;
        }
        conn.send(&[5, wanted]).await?;
        if let Some((user, password)) = user {
            let expected =
                [&[1, user.len() as u8], user.as_bytes(), &[password.len() as u8], password.as_bytes()]
                    .concat();
            let mut told = vec![0; expected.len()];
            conn.recv_exact(&mut told).await?;
            let is_right = told == expected;
            conn.send(&[1, u8::from(!is_right)]).await?;
            if !is_right {
                return Ok(());
            }
        }
        let mut request = [0; 4];
        conn.recv_exact(&mut request).await?;
        let asked = match request[3] {
            3 => {
                let mut len = [0];
                conn.recv_exact(&mut len).await?;
                let mut name = vec![0; len[0].into()];
                conn.recv_exact(&mut name).await?;
                String::from_utf8(name).unwrap()
            }
            1 => {
                let mut ip = [0; 4];
                conn.recv_exact(&mut ip).await?;
                std::net::Ipv4Addr::from(ip).to_string()
            }
            other => panic!("address of kind {other}"),
        };
        let mut port = [0; 2];
        conn.recv_exact(&mut port).await?;
        let asked = format!("{asked}:{}", u16::from_be_bytes(port));
        let is_unknown = matches!(self.script, Script::Exactly(to) if to.to_string() != asked);
        self.asked.lock().unwrap().push(asked);
        if is_unknown {
            return conn.send(&[5, 4, 0, 1, 0, 0, 0, 0, 0, 0]).await;
        }
        let Ok(target) = Client::connect(to).await else {
            return conn.send(&[5, 5, 0, 1, 0, 0, 0, 0, 0, 0]).await;
        };
        conn.send(b"\x05\x00\x00\x03\x05bound\x12\x34").await?;
        relay(conn, target).await
    }

    async fn http(&self, mut conn: Connection, authorization: Option<&str>, to: SocketAddr) -> Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            conn.recv_exact(&mut byte).await?;
            head.extend(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let line = head.lines().next().unwrap();
        self.asked.lock().unwrap().push(line.to_owned());
        if let Some(wanted) = authorization
            && !head.contains(&format!("\r\nProxy-Authorization: {wanted}\r\n"))
        {
            return conn
                .send(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno")
                .await;
        }
        let Ok(mut target) = Client::connect(to).await else {
            return conn.send(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
        };
        // The target's first words come together with the header.
        let mut answer = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n".to_vec();
        let mut first = [0; 64];
        let read = target.recv(&mut first).within(Duration::from_millis(20)).await.unwrap_or_default();
        answer.extend_from_slice(&first[..read]);
        conn.send(&answer).await?;
        relay(conn, target).await
    }
}

/// Passes everything on in both directions, until both have ended.
async fn relay(near: Connection, far: Connection) -> Result<()> {
    let (mut near_read, mut near_write) = near.split();
    let (mut far_read, mut far_write) = far.split();
    let up = async {
        while let Some(chunk) = near_read.recv_chunk().await? {
            far_write.send(&chunk).await?;
        }
        far_write.finish().await
    };
    let down = async {
        while let Some(chunk) = far_read.recv_chunk().await? {
            near_write.send(&chunk).await?;
        }
        near_write.finish().await
    };
    futures_lite::future::try_zip(up, down).await.map(drop)
}

/// Says hello first, then sends back what comes.
#[derive(Clone)]
struct Greeter;

impl Behaviour for Greeter {
    type Handler = Echo;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.send(b"hello ").await?;
        Echo.run(conn).await
    }

    fn handler(self) -> Echo {
        unreachable!("these scenarios are of the async style")
    }
}

async fn assert_greets(conn: &mut Connection) {
    conn.send(b"world").await.unwrap();
    let mut said = [0; 11];
    conn.recv_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"hello world");
}

scenario! {
    async fn a_name_goes_through_socks5_as_it_is(world) {
        let target = world.serve(Greeter).local_addr();
        let scripted = Scripted::new(Script::Socks5 { user: None, to: target });
        let proxy = world.serve(scripted.clone()).local_addr();
        world.run(async move {
            let through = Proxy::socks5(proxy).unwrap();
            let mut conn = Client::new("hidden.test:4711").proxy(through.clone()).open().await.unwrap();
            assert_greets(&mut conn).await;
            assert_eq!(conn.peer_addr(), proxy);
            assert_eq!(*scripted.asked.lock().unwrap(), ["hidden.test:4711"]);
            let mut conn = Client::new("192.0.2.7:80").proxy(through.credentials("un", "asked").unwrap()).open().await.unwrap();
            assert_greets(&mut conn).await;
            assert_eq!(scripted.asked.lock().unwrap()[1], "192.0.2.7:80");
        });
    }
}

scenario! {
    async fn socks5_wants_the_right_password(world) {
        let target = world.serve(Greeter).local_addr();
        let scripted = Scripted::new(Script::Socks5 { user: Some(("jo", "secret")), to: target });
        let proxy = world.serve(scripted).local_addr();
        world.run(async move {
            let client = Client::new("hidden.test:80");
            let right = Proxy::parse(&format!("socks5h://jo:secret@{proxy}")).unwrap();
            assert_greets(&mut client.clone().proxy(right).open().await.unwrap()).await;
            for (credentials, told) in [
                ("jo:guesss@", "the proxy refused the user name or the password"),
                ("", "the proxy wants to know who we are; give it credentials"),
            ] {
                let wrong = Proxy::parse(&format!("socks5h://{credentials}{proxy}")).unwrap();
                let error = client.clone().proxy(wrong).open().await.unwrap_err();
                assert_eq!(error.to_string(), format!("connect to hidden.test:80 through socks5h://{proxy}: {told}"));
                assert_eq!(error.kind(), ErrorKind::Caller);
                assert_eq!(error.io_kind(), Some(io::ErrorKind::PermissionDenied));
            }
        });
    }
}

scenario! {
    async fn http_leads_to_a_name_and_what_follows_its_header_is_the_targets(world) {
        let target = world.serve(Greeter).local_addr();
        let scripted = Scripted::new(Script::Http { authorization: Some("Basic am86c2VjcmV0"), to: target });
        let proxy = world.serve(scripted.clone()).local_addr();
        world.run(async move {
            let client = Client::new("hidden.test:4711");
            let right = Proxy::parse(&format!("http://jo:secret@{proxy}")).unwrap();
            assert_greets(&mut client.clone().proxy(right).open().await.unwrap()).await;
            assert_eq!(*scripted.asked.lock().unwrap(), ["CONNECT hidden.test:4711 HTTP/1.1"]);
            let error = client.clone().proxy(Proxy::http(proxy).unwrap()).open().await.unwrap_err();
            let told = "the proxy answered: 407 Proxy Authentication Required; give it (other) credentials";
            assert_eq!(error.to_string(), format!("connect to hidden.test:4711 through http://{proxy}: {told}"));
            assert_eq!(error.kind(), ErrorKind::Caller);
        });
    }
}

/// A client of a name with these addresses, which it looks up itself. It tries them strictly in turn, and has time.
fn of_addresses(port: u16, addresses: &[IpAddr], proxy: Proxy) -> Client {
    let addresses = addresses.to_vec();
    Client::new(format!("many.test:{port}"))
        .resolver(move |_| Ok(addresses.clone()))
        .proxy(proxy.resolve_here())
        .attempt_delay(Duration::MAX)
        .connect_within(Duration::from_secs(60))
}

scenario! {
    async fn of_a_name_that_is_looked_up_here_a_proxy_is_asked_for_one_address_after_the_other(world) {
        let target = world.serve(Greeter).local_addr();
        let socks = Scripted::new(Script::Exactly(target));
        let http = Scripted::new(Script::Http { authorization: None, to: target });
        let [to_socks, to_http] = [&socks, &http].map(|scripted| world.serve(scripted.clone()).local_addr());
        world.run(async move {
            let port = target.port();
            let nobody = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into()];
            let through = Proxy::socks5(to_socks).unwrap();
            let addresses = [nobody[0], target.ip(), nobody[1]];
            let mut conn = of_addresses(port, &addresses, through.clone()).open().await.unwrap();
            assert_greets(&mut conn).await;
            assert_eq!(conn.peer_addr(), to_socks);
            assert_eq!(*socks.asked.lock().unwrap(), [format!("192.0.2.1:{port}"), target.to_string()]);

            let mut conn = of_addresses(port, &[target.ip()], Proxy::http(to_http).unwrap()).open().await.unwrap();
            assert_greets(&mut conn).await;
            assert_eq!(*http.asked.lock().unwrap(), [format!("CONNECT {target} HTTP/1.1")]);

            // Each address is told with what the proxy said of it.
            let error = of_addresses(port, &nobody, through).open().await.unwrap_err();
            let told = "the proxy answered: host unreachable";
            let expected = format!(
                "connect to many.test:{port} through socks5://{to_socks}: 192.0.2.1:{port}: {told}; 192.0.2.2:{port}: {told}"
            );
            assert_eq!(error.to_string(), expected);
            assert_eq!(error.io_kind(), Some(io::ErrorKind::HostUnreachable));
        });
    }
}

scenario! {
    async fn a_name_that_is_looked_up_here_has_a_proxy_asked_for_four_addresses_at_most(world) {
        let target = world.serve(Greeter).local_addr();
        let scripted = Scripted::new(Script::Exactly(target));
        let proxy = world.serve(scripted.clone()).local_addr();
        world.run(async move {
            let through = Proxy::socks5(proxy).unwrap();
            let many: Vec<IpAddr> = (1..=9).map(|last| [192, 0, 2, last].into()).collect();
            assert!(of_addresses(80, &many, through.clone()).open().await.is_err());
            assert_eq!(scripted.asked.lock().unwrap().len(), 4);
            // What needs no looking up is asked for as it is, and what has no address is not asked for.
            scripted.asked.lock().unwrap().clear();
            let client = Client::new("192.0.2.7:80").proxy(through.clone().resolve_here());
            assert!(client.open().await.is_err());
            let error = of_addresses(80, &[], through).open().await.unwrap_err();
            assert!(error.is_unresolved(), "{error}");
            assert_eq!(*scripted.asked.lock().unwrap(), ["192.0.2.7:80"]);
        });
    }
}

scenario! {
    async fn a_target_that_refuses_is_told_as_the_proxy_tells_it(world) {
        let nobody = SocketAddr::new(world.serve(Greeter).local_addr().ip(), 1);
        let socks = world.serve(Scripted::new(Script::Socks5 { user: None, to: nobody })).local_addr();
        let http = world.serve(Scripted::new(Script::Http { authorization: None, to: nobody })).local_addr();
        world.run(async move {
            let client = Client::new("hidden.test:80");
            let error = client.clone().proxy(Proxy::socks5(socks).unwrap()).open().await.unwrap_err();
            assert!(error.is_refused() && error.kind() == ErrorKind::Peer, "{error}");
            let error = client.clone().proxy(Proxy::http(http).unwrap()).open().await.unwrap_err();
            assert!(error.to_string().ends_with("the proxy answered: 502 Bad Gateway") && !error.is_refused());
            // And if the proxy itself refuses, that is told of it.
            let error = client.clone().proxy(Proxy::http(nobody).unwrap()).open().await.unwrap_err();
            assert_eq!(error.to_string(), format!("connect to hidden.test:80 through http://{nobody}: connection refused"));
        });
    }
}

scenario! {
    async fn a_proxy_that_lies_stalls_or_goes_ends_the_connect_in_time(world) {
        let slow = world.time(0.4);
        let scripts = [
            (Script::Say(vec![b"SSH-2.0-OpenSSH\r\n".to_vec()]), Some(io::ErrorKind::InvalidData)),
            (Script::Say(vec![vec![0xff; 5000]]), Some(io::ErrorKind::InvalidData)),
            (Script::Say(vec![Vec::new()]), Some(io::ErrorKind::UnexpectedEof)),
            (Script::Say(vec![vec![5]]), Some(io::ErrorKind::UnexpectedEof)),
            (Script::Say(vec![b"HTTP/1.1 200".to_vec()]), Some(io::ErrorKind::UnexpectedEof)),
            (Script::Say(vec![vec![5, 0], vec![5, 0, 0, 9]]), Some(io::ErrorKind::InvalidData)),
            (Script::Endless(b"HTTP/1.1 200 OK\r\nVia: ".to_vec()), Some(io::ErrorKind::InvalidData)),
            (Script::Endless(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()), Some(io::ErrorKind::InvalidData)),
            (Script::Endless(vec![5, 0, 5, 0, 0, 3]), Some(io::ErrorKind::InvalidData)),
            (Script::Drip(b"HTTP/1.1 200 OK and so on\r\n".repeat(4), slow), None),
            (Script::Drip([[5, 0], [5, 0], [0, 3]].concat(), slow), None),
            (Script::Silent, None),
        ];
        for (script, kind) in scripts {
            let is_endless = matches!(script, Script::Endless(_));
            let server = world.serve(Scripted::new(script));
            let proxy = server.local_addr();
            // Who is to be late need not be waited for; who is not has the time of a busy machine.
            let within = world.time(if kind.is_none() { 1.0 } else { 50.0 });
            let linger = world.time(0.25);
            let began = world.now();
            world.run(async move {
                let of_protocol = [Proxy::socks5(proxy).unwrap(), Proxy::http(proxy).unwrap()];
                let mut kinds = Vec::new();
                for proxy in of_protocol {
                    // What has failed is closed in the background, and `run` waits for that.
                    let deadlines = Deadlines::for_clients().linger(linger);
                    let client = Client::new("hidden.test:80").proxy(proxy).connect_within(within).deadlines(deadlines);
                    match client.open().await {
                        Ok(mut conn) => {
                            // What ends in the beginning of an address can be taken for one.
                            assert!(is_endless, "nobody is led anywhere");
                            conn.reset().await;
                        }
                        Err(error) => {
                            assert!(matches!(error.kind(), ErrorKind::Peer | ErrorKind::Timeout), "{error}");
                            kinds.push(error.io_kind());
                            if error.is_timeout() {
                                let told = format!("timed out after {within:?}, waiting for the proxy's answer from ");
                                assert!(error.to_string().contains(&told), "{error}");
                            }
                        }
                    }
                }
                // A reset may overtake what the proxy has said, but not make a connection of it.
                let lost = Some(io::ErrorKind::ConnectionReset);
                assert!(kinds.iter().any(|told| *told == kind || *told == lost), "{kinds:?} and not {kind:?}");
            });
            assert!(world.now() - began < within * 4 + Duration::from_secs(1), "it ends in time");
            server.stop();
        }
    }
}

/// Reads until there is an error, and tells what it met.
#[derive(Clone)]
struct Patient {
    asked: Arc<AtomicBool>,
    error: Arc<Mutex<Option<wharf::Error>>>,
}

impl Behaviour for Patient {
    type Handler = Echo;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let error = loop {
            match conn.recv(&mut [0; 1024]).await {
                // An end in order is not the end here.
                Ok(0) => wharf::sleep(Duration::from_secs(3600)).await,
                Ok(_) => self.asked.store(true, Ordering::SeqCst),
                Err(error) => break error,
            }
        };
        *self.error.lock().unwrap() = Some(error);
        Ok(())
    }

    fn handler(self) -> Echo {
        unreachable!("these scenarios are of the async style")
    }
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        wharf::sleep(Duration::from_millis(5)).await;
    }
}

scenario! {
    async fn a_connect_that_is_given_up_leaves_no_socket(world) {
        let patient = Patient { asked: Arc::default(), error: Arc::default() };
        let proxy = world.serve(patient.clone()).local_addr();
        world.run(async move {
            // The proxy never ends its side: with a socket that waits for that, it would hear nothing for an hour.
            let deadlines = Deadlines::for_clients().linger(Duration::from_secs(3600));
            let client = Client::new("hidden.test:80").proxy(Proxy::http(proxy).unwrap()).deadlines(deadlines);
            let connect = async { drop(client.connect_within(Duration::from_secs(3600)).open().await) };
            let asked = until(|| patient.asked.load(Ordering::SeqCst));
            futures_lite::future::or(connect, asked).await;
            let told = until(|| patient.error.lock().unwrap().is_some());
            wharf::within(Duration::from_secs(60), told).await.expect("the proxy learns of it");
            let error = patient.error.lock().unwrap().take().unwrap();
            assert_eq!(error.close_reason(), Some(wharf::CloseReason::PeerReset), "{error}");
        });
    }
}

scenario! {
    async fn the_way_through_a_proxy_is_told_step_by_step(world) {
        let target = world.serve(Greeter).local_addr();
        let proxy = world.serve(Scripted::new(Script::Socks5 { user: None, to: target })).local_addr();
        world.run(async move {
            let steps: Arc<Mutex<Vec<String>>> = Arc::default();
            let noted = steps.clone();
            let client = Client::new("hidden.test:80").proxy(Proxy::socks5(proxy).unwrap());
            let conn = client.open().observe(move |state: &ConnectState| noted.lock().unwrap().push(state.to_string()));
            assert_greets(&mut conn.await.unwrap()).await;
            let expected = [
                format!("connecting to {proxy}"),
                format!("waiting for the proxy's answer from {proxy}"),
                format!("connected to {proxy}"),
            ];
            assert_eq!(*steps.lock().unwrap(), expected);
        });
    }
}

scenario! {
    async fn what_a_proxy_cannot_be_asked_for_is_refused_at_once(world) {
        let proxy = world.serve(Scripted::new(Script::Silent)).local_addr();
        world.run(async move {
            for target in ["unix:/run/x", "[fe80::1%1]:80", "bücher.test:80"] {
                let client = Client::new(target).proxy(Proxy::http(proxy).unwrap());
                let error = client.open().await.unwrap_err();
                assert!(error.to_string().starts_with("start: option `proxy` "), "{error}");
                assert_eq!(error.kind(), ErrorKind::Caller);
            }
        });
    }
}

#[cfg(feature = "tls")]
mod tls {
    use super::*;

    scenario! {
        async fn tls_is_spoken_with_the_target_through_the_proxy(world) {
            let target = world.serve_with(Echo, |server| server.tls(&common::tls::acceptor())).local_addr();
            let socks = world.serve(Scripted::new(Script::Socks5 { user: None, to: target })).local_addr();
            let http = world.serve(Scripted::new(Script::Http { authorization: None, to: target })).local_addr();
            world.run(async move {
                for proxy in [Proxy::socks5(socks).unwrap(), Proxy::http(http).unwrap()] {
                    let client = common::tls::client(format!("{}:443", common::tls::NAME)).proxy(proxy.clone());
                    let mut conn = client.open().await.unwrap();
                    assert!(conn.tls().is_some());
                    conn.send(b"ping").await.unwrap();
                    let mut echo = [0; 4];
                    conn.recv_exact(&mut echo).await.unwrap();
                    assert_eq!(&echo, b"ping");
                    conn.reset().await;
                    // The certificate has to be the target's, whatever the proxy says.
                    let connector = wharf::tls::Connector::new(
                        wharf::tls::ClientTls::new().trust(common::tls::AUTHORITY.trust()),
                    );
                    let other = Client::new("other.test:443").tls(&connector.unwrap()).proxy(proxy);
                    let error = other.open().await.unwrap_err();
                    assert!(error.tls_fault().is_some(), "{error}");
                }
            });
        }
    }
}
