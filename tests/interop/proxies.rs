//! A SOCKS5 proxy of others between a client and its target: microsocks, with names looked up by it and by the client.

use std::fmt;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use wharf::{Backend, Client, Connection, Proxy, Server};

use super::program::{LIMIT, Program, command, is_here_by_chance};
use super::site::on_each;
use crate::common::{assert_pattern, pattern};

/// Starts it on a free port, where it wants this user name and password if there are some.
fn microsocks(credentials: Option<(&str, &str)>) -> (Program, SocketAddr) {
    let mut microsocks = command("microsocks", ["-i", "127.0.0.1", "-p", "0"]);
    if let Some((user, password)) = credentials {
        microsocks.args(["-u", user, "-P", password]);
    }
    let mut program = Program::start(&mut microsocks);
    let address = SocketAddr::from(([127, 0, 0, 1], program.await_port()));
    (program, address)
}

fn echo(backend: Backend) -> (wharf::ServerHandle, u16) {
    let server = Server::bind("127.0.0.1:0").workers(1).backend(backend);
    let server = server.start(|mut conn: Connection| async move {
        while let Some(chunk) = conn.recv_chunk().await? {
            conn.send(&chunk).await?;
        }
        Ok(())
    });
    let server = server.unwrap();
    let port = server.local_addr().port();
    (server, port)
}

fn client(target: impl fmt::Display, proxy: &Proxy) -> Client {
    Client::new(target).proxy(proxy.clone()).attempt_delay(Duration::MAX).connect_within(LIMIT)
}

async fn assert_echoes(mut conn: Connection) {
    // Less than what fits between two that do not read while they write.
    conn.send(&pattern(0..50_000)).await.unwrap();
    let mut echoed = vec![0; 50_000];
    conn.recv_exact(&mut echoed).within(LIMIT).await.unwrap();
    assert_pattern(&echoed, 0);
    conn.close().await;
}

#[test]
fn microsocks_leads_to_names_that_it_looks_up_and_to_addresses_that_the_client_does() {
    if !is_here_by_chance("microsocks") {
        return;
    }
    let (_microsocks, address) = microsocks(None);
    on_each(|backend| {
        let (server, port) = echo(backend);
        let proxy = Proxy::socks5(address).unwrap();
        wharf::run_on(backend, async move {
            // Not an address as the client reads them, but for inet_aton(3), by which the proxy looks it up.
            assert_echoes(client(format!("127.1:{port}"), &proxy).open().await.unwrap()).await;
            assert_echoes(client(format!("127.0.0.1:{port}"), &proxy).open().await.unwrap()).await;
            // Nobody listens at the first address.
            let here = client(format!("many.test:{port}"), &proxy.clone().resolve_here());
            let here = here.resolver(|_| Ok(vec![[127, 0, 0, 2].into(), [127, 0, 0, 1].into()]));
            assert_echoes(here.open().await.unwrap()).await;
            let error = client(format!("127.0.0.2:{port}"), &proxy).open().await.unwrap_err();
            assert!(error.is_refused(), "{error}");
        })
        .unwrap();
        server.stop().wait().unwrap();
    });
}

#[test]
fn microsocks_wants_the_right_password() {
    if !is_here_by_chance("microsocks") {
        return;
    }
    let (_microsocks, address) = microsocks(Some(("jo", "open sesame")));
    on_each(|backend| {
        let (server, port) = echo(backend);
        wharf::run_on(backend, async move {
            let target = format!("127.0.0.1:{port}");
            let right = Proxy::parse(&format!("socks5h://jo:open%20sesame@{address}")).unwrap();
            assert_echoes(client(&target, &right).open().await.unwrap()).await;
            for wrong in ["jo:shut@", ""] {
                let wrong = Proxy::parse(&format!("socks5h://{wrong}{address}")).unwrap();
                let error = client(&target, &wrong).open().await.unwrap_err();
                assert_eq!(error.io_kind(), Some(ErrorKind::PermissionDenied), "{error}");
            }
        })
        .unwrap();
        server.stop().wait().unwrap();
    });
}
