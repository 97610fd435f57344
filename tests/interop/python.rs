//! Python's `ssl` with Wharf, as a client and as a server; what it does there is in `peer.py`.

use wharf::tls::{Acceptor, ClientTls, Connector};
use wharf::{Backend, Client, CloseReason, Connection, Error, Result, TlsFault};

use super::papers::{Papers, ecdsa_tls};
use super::program::{Program, command, is_here};
use super::site::{Site, client, on_each};
use crate::common::tls::*;
use crate::common::{Style, assert_pattern, pattern, recv_all};

const VERSIONS: [&str; 2] = ["1.2", "1.3"];

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/peer.py");

/// Has Python do `what` with a server of Wharf's; returns what it says.
fn does(what: &str, site: &Site, version: &str, papers: &Papers) -> String {
    let outcome =
        Program::run(&mut command("python3", [SCRIPT, what, &site.port(), version, &papers.folder()]));
    assert_eq!(outcome.code, Some(0), "{}", outcome.all);
    outcome.all
}

/// Has Python serve, and tells where.
fn serves(what: &str, version: &str, papers: &Papers) -> (Program, String) {
    papers.server();
    let mut program = Program::start(&mut command("python3", [SCRIPT, what, version, &papers.folder()]));
    let address = format!("127.0.0.1:{}", program.await_line("listening "));
    (program, address)
}

/// Runs a test on each engine, with each version.
fn on_each_with_each(test: impl Fn(Backend, &'static str)) {
    if is_here("python3") {
        on_each(|backend| VERSIONS.into_iter().for_each(|version| test(backend, version)));
    }
}

fn connector(change: impl FnOnce(ClientTls) -> ClientTls) -> Connector {
    Connector::new(change(client_tls())).unwrap()
}

async fn open(address: &str, connector: &Connector) -> Result<Connection, Error> {
    Client::new(address).tls(connector).open().await
}

async fn answered(conn: &mut Connection, word: &[u8]) {
    conn.send(word).await.unwrap();
    let mut answer = vec![0; word.len()];
    conn.recv_exact(&mut answer).await.unwrap();
    assert_eq!(answer, word);
}

#[test]
fn python_gets_megabytes_back_and_both_say_close_notify() {
    on_each_with_each(|backend, version| {
        for style in [Style::Async, Style::Event] {
            let (papers, site) = (Papers::new(), Site::echo_in(style, backend, ecdsa_tls()));
            assert_eq!(does("bulk", &site, version, &papers), "unwrapped\n");
            assert_eq!(site.ended(), CloseReason::Peer);
        }
    });
}

#[test]
fn python_resumes_its_sessions() {
    on_each_with_each(|backend, version| {
        let (papers, site) = (Papers::new(), Site::echo(backend, ecdsa_tls()));
        assert_eq!(does("resume", &site, version, &papers), "reused False True True\n");
        for is_resumed in [false, true, true] {
            assert_eq!(site.agreed().is_resumed(), is_resumed);
            assert_eq!(site.ended(), CloseReason::Peer);
        }
    });
}

#[test]
fn python_that_has_ended_its_direction_gets_its_answer() {
    on_each_with_each(|backend, version| {
        let papers = Papers::new();
        let site = Site::serve(backend, ecdsa_tls(), |mut conn| async move {
            let all = recv_all(&mut conn).await?;
            conn.send(&all).await
        });
        assert_eq!(does("half_close", &site, version, &papers), "answer True notified\n");
        assert_eq!(site.ended(), CloseReason::Peer);
    });
}

#[test]
fn python_goes_on_when_wharf_has_ended_its_direction() {
    on_each_with_each(|backend, version| {
        let papers = Papers::new();
        let site = Site::serve(backend, ecdsa_tls(), |mut conn| async move {
            conn.send(b"that is all").await?;
            conn.finish().await?;
            assert_eq!(recv_all(&mut conn).await?, b"but I am not through\n");
            Ok(())
        });
        assert_eq!(does("told_last", &site, version, &papers), "heard that is all notified\n");
        assert_eq!(site.ended(), CloseReason::Local);
    });
}

#[test]
fn python_that_goes_without_a_word_has_broken_off() {
    on_each_with_each(|backend, version| {
        let (papers, site) = (Papers::new(), Site::echo(backend, ecdsa_tls()));
        does("cut", &site, version, &papers);
        assert_eq!(site.ended(), CloseReason::Tls(TlsFault::Truncated));
        let site = Site::echo(backend, ecdsa_tls().tolerate_truncation());
        does("cut", &site, version, &papers);
        assert_eq!(site.ended(), CloseReason::Peer);
    });
}

#[test]
fn python_begins_tls_in_mid_stream_and_ends_it() {
    on_each_with_each(|backend, version| {
        let (papers, acceptor) = (Papers::new(), Acceptor::new(ecdsa_tls()).unwrap());
        let site = Site::plain(backend, move |mut conn| {
            let acceptor = acceptor.clone();
            async move {
                let mut word = [0; 9];
                conn.recv_exact(&mut word).await?;
                assert_eq!(&word, b"STARTTLS\n");
                conn.send(b"go\n").await?;
                conn.accept_tls(&acceptor).await?;
                echo_once(&mut conn).await?;
                conn.leave_tls().await?;
                assert!(conn.tls().is_none());
                echo_once(&mut conn).await?;
                assert!(recv_all(&mut conn).await?.is_empty());
                Ok(())
            }
        });
        assert_eq!(does("starttls", &site, version, &papers), "plain again\n");
        assert_eq!(site.ended(), CloseReason::Peer);
    });
}

async fn echo_once(conn: &mut Connection) -> Result<()> {
    let mut word = [0; 6];
    conn.recv_exact(&mut word).await?;
    conn.send(&word).await
}

#[test]
fn wharf_resumes_its_sessions_with_python_and_says_close_notify() {
    on_each_with_each(|backend, version| {
        let papers = Papers::new();
        let (mut program, address) = serves("serve", version, &papers);
        client(backend, async move {
            let connector = connector(|tls| tls);
            for round in 0..3 {
                let conn = open(&address, &connector).await.unwrap();
                assert_eq!(conn.tls().unwrap().is_resumed(), round > 0);
                let (mut read, mut write) = conn.split();
                let writing = wharf::spawn(async move {
                    write.send(&pattern(0..400_000)).await.unwrap();
                    write
                });
                let mut came = vec![0; 400_000];
                read.recv_exact(&mut came).await.unwrap();
                assert_pattern(&came, 0);
                let mut conn = read.join(writing.await.unwrap()).unwrap();
                assert_eq!(conn.close().await, CloseReason::Local);
            }
        });
        for is_resumed in ["False", "True", "True"] {
            assert_eq!(program.await_line("reused "), is_resumed);
            assert_eq!(program.await_line("end "), "notified");
        }
    });
}

#[test]
fn wharf_sees_that_python_has_broken_off_unless_it_is_told_not_to_mind() {
    on_each_with_each(|backend, version| {
        let papers = Papers::new();
        let (_program, address) = serves("serve_cut", version, &papers);
        client(backend, async move {
            for tolerates in [false, true] {
                let connector = connector(|tls| if tolerates { tls.tolerate_truncation() } else { tls });
                let mut conn = open(&address, &connector).await.unwrap();
                conn.send(b"hello").await.unwrap();
                let mut came = [0; 3];
                conn.recv_exact(&mut came).await.unwrap();
                assert_eq!(&came, b"hal", "what came before the end can be read");
                match conn.recv(&mut came).await {
                    Ok(n) => assert!(tolerates && n == 0),
                    Err(error) => {
                        assert!(!tolerates, "{error}");
                        assert_eq!(error.tls_fault(), Some(TlsFault::Truncated), "{error}");
                    }
                }
            }
        });
    });
}

#[test]
fn wharf_that_has_ended_its_direction_gets_its_answer_from_python() {
    on_each_with_each(|backend, version| {
        let papers = Papers::new();
        let (_program, address) = serves("serve_half_closed", version, &papers);
        client(backend, async move {
            let mut conn = open(&address, &connector(|tls| tls)).await.unwrap();
            conn.send(&pattern(0..100_000)).await.unwrap();
            conn.finish().await.unwrap();
            let all = recv_all(&mut conn).await.unwrap();
            let (text, end) = all.split_at(100_000);
            assert_pattern(text, 0);
            assert_eq!(String::from_utf8_lossy(end), "notified");
        });
    });
}

#[test]
fn wharf_begins_tls_in_mid_stream_with_python_and_ends_it() {
    on_each_with_each(|backend, version| {
        let papers = Papers::new();
        let (program, address) = serves("serve_starttls", version, &papers);
        client(backend, async move {
            let mut conn = Client::connect(&address).await.unwrap();
            conn.send(b"STARTTLS\n").await.unwrap();
            conn.recv_exact(&mut [0; 3]).await.unwrap();
            conn.connect_tls(&connector(|tls| tls), NAME).await.unwrap();
            answered(&mut conn, b"secret").await;
            conn.leave_tls().await.unwrap();
            assert!(conn.tls().is_none());
            answered(&mut conn, b"public").await;
        });
        let outcome = program.outcome();
        assert_eq!(outcome.code, Some(0), "{}", outcome.all);
    });
}
