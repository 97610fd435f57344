//! Certificates that change while a server runs: no handshake fails by it, and connections that stand go on.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wharf::tls::{Acceptor, Connector, Identity, ServerTls};
use wharf::{Client, Connection};

use common::behaviours::Echo;
use common::tls::*;
use common::*;

/// A directory with a certificate and its key, gone with this value.
struct Files(PathBuf);

impl Files {
    fn new() -> Files {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("wharf-reload-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Files(path)
    }

    /// Writes a new pair; returns it.
    fn renew(&self) -> Identity {
        let (chain, key) = AUTHORITY.issue(NAME, |_| {});
        fs::write(self.chain(), &chain).unwrap();
        fs::write(self.key(), &key).unwrap();
        Identity::from_pem(chain, key).unwrap()
    }

    fn chain(&self) -> PathBuf {
        self.0.join("chain.pem")
    }

    fn key(&self) -> PathBuf {
        self.0.join("key.pem")
    }

    fn acceptor(&self) -> Acceptor {
        Acceptor::new(ServerTls::new(Identity::from_files(self.chain(), self.key()).unwrap())).unwrap()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn shown(conn: &Connection) -> Vec<u8> {
    conn.tls().unwrap().chain().next().unwrap().to_vec()
}

fn own(identity: &Identity) -> Vec<u8> {
    identity.chain().next().unwrap().to_vec()
}

async fn is_alive(conn: &mut Connection) -> bool {
    conn.send(b"x").await.is_ok() && conn.recv_exact(&mut [0; 1]).await.is_ok()
}

scenario! {
    fn certificates_change_under_load_and_no_handshake_fails(world) {
        const CLIENTS: usize = 4;
        let files = Files::new();
        let first = files.renew();
        let acceptor = files.acceptor();
        let server = world.serve_with(Echo, |server| server.tls(&acceptor));
        let address = server.local_addr();
        let done = world.run(async move {
            // New sessions, and such as would like to be resumed.
            let clients = [client_tls().resumption(false), client_tls()].map(|tls| {
                Client::new(address).tls(&Connector::new(tls).unwrap())
            });
            let (stop, done) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
            let known = Rc::new(RefCell::new(vec![own(&first)]));
            let mut tasks = Vec::new();
            for number in 0..CLIENTS {
                let (client, stop, done, known) =
                    (clients[number % 2].clone(), stop.clone(), done.clone(), known.clone());
                tasks.push(wharf::spawn(async move {
                    while !stop.get() {
                        let oldest = known.borrow().len() - 1;
                        let mut conn = client.open().await.unwrap();
                        if !conn.tls().unwrap().is_resumed() {
                            let shown = shown(&conn);
                            let place = known.borrow().iter().position(|each| *each == shown);
                            assert!(place.unwrap() >= oldest, "what was replaced is not shown any more");
                        }
                        assert!(is_alive(&mut conn).await);
                        done.set(done.get() + 1);
                    }
                }));
            }
            let mut old = clients[0].open().await.unwrap();
            for turn in 1..=12 {
                let before = done.get();
                until("some handshakes are done", || done.get() >= before + CLIENTS).await;
                let next = files.renew();
                if turn % 3 == 0 {
                    acceptor.replace(ServerTls::new(Identity::from_files(files.chain(), files.key()).unwrap())).unwrap();
                } else {
                    assert!(acceptor.reload().unwrap());
                    assert!(!acceptor.reload().unwrap(), "nothing has changed");
                }
                known.borrow_mut().push(own(&next));
                let mut new = clients[0].open().await.unwrap();
                assert_eq!(shown(&new), own(&next));
                assert!(is_alive(&mut new).await && is_alive(&mut old).await);
            }
            stop.set(true);
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(shown(&old), own(&first), "it stands as it began");
            done.get()
        });
        let stats = world.stop(&server);
        assert_eq!((stats.handshakes, stats.handshakes_failed), (done as u64 + 13, 0), "{stats:?}");
        assert!(stats.resumed > 0);
    }
}

scenario! {
    fn what_cannot_be_used_does_not_come_into_force(world) {
        let files = Files::new();
        let first = files.renew();
        let acceptor = files.acceptor();
        let server = world.serve_with(Echo, |server| server.tls(&acceptor));
        let address = server.local_addr();
        world.run(async move {
            let client = client(address);
            let chain = fs::read(files.chain()).unwrap();
            let of_another = AUTHORITY.issue(NAME, |_| {}).1;
            let bad = [
                (files.chain(), Some(b"no certificate".as_slice())),
                (files.chain(), Some(&chain[..chain.len() / 2])),
                (files.key(), Some(of_another.as_bytes())),
                (files.key(), None),
            ];
            for (path, content) in bad {
                files.renew();
                match content {
                    Some(content) => fs::write(&path, content).unwrap(),
                    None => fs::remove_file(&path).unwrap(),
                }
                let error = acceptor.reload().unwrap_err();
                assert!(error.to_string().starts_with("load "), "{error}");
                assert!(names(&error.to_string(), &files.0), "{error}");
                let mut conn = client.open().await.unwrap();
                assert_eq!(shown(&conn), own(&first));
                assert!(is_alive(&mut conn).await);
            }
            let next = files.renew();
            assert!(acceptor.reload().unwrap());
            let unresuming = Connector::new(client_tls().resumption(false)).unwrap();
            let conn = Client::new(address).tls(&unresuming).open().await.unwrap();
            assert_eq!(shown(&conn), own(&next));
        });
    }
}

fn names(text: &str, path: &Path) -> bool {
    text.contains(&path.display().to_string())
}

scenario! {
    /// Their own rules changed meanwhile: whoever connects from then on is measured by the new.
    fn a_client_changes_whom_it_trusts_while_it_runs(world) {
        let stranger = Authority::new("Somebody else");
        let server = world.serve_with(Echo, |server| server.tls(&acceptor()));
        let address = server.local_addr();
        world.run(async move {
            let connector = Connector::new(client_tls()).unwrap();
            let client = Client::new(address).tls(&connector);
            let mut old = client.open().await.unwrap();
            assert!(is_alive(&mut old).await);
            connector.replace(client_tls().trust(stranger.trust())).unwrap();
            assert!(client.open().await.is_err());
            assert!(is_alive(&mut old).await);
            connector.replace(client_tls()).unwrap();
            assert!(is_alive(&mut client.open().await.unwrap()).await);
        });
    }
}
