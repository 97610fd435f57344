//! Wharf's client with `openssl s_server`.

use wharf::tls::{ClientTls, Connector, Identity, Verification, Version};
use wharf::{CertificateFault, Client, CloseReason, Connection, Error, TlsAlert, TlsFault};

use super::papers::{Pair, Papers};
use super::program::{Program, command, is_here};
use super::site::{client, on_each};
use crate::common::tls::*;
use crate::common::{assert_pattern, pattern};

const BULK: usize = 3 << 20;

const VERSIONS: [(&str, Version); 2] = [("-tls1_2", Version::Tls12), ("-tls1_3", Version::Tls13)];

/// An `s_server` that listens, and where.
fn s_server(pair: &Pair, more: &[&str]) -> (Program, String) {
    let mut s_server = command("openssl", ["s_server", "-accept", "127.0.0.1:0"]);
    s_server.args(["-cert", &pair.0, "-key", &pair.1]).args(more);
    let mut program = Program::start(&mut s_server);
    let address = format!("127.0.0.1:{}", program.await_port());
    (program, address)
}

fn connector(change: impl FnOnce(ClientTls) -> ClientTls) -> Connector {
    Connector::new(change(client_tls())).unwrap()
}

async fn open(address: &str, connector: &Connector) -> Result<Connection, Error> {
    Client::new(address).tls(connector).open().await
}

/// Says a line to one that reverses them, and looks at what comes back.
async fn reversed(conn: &mut Connection, word: &str) -> Result<(), Error> {
    conn.send(format!("{word}\n").as_bytes()).await?;
    let mut answer = vec![0; word.len() + 1];
    conn.recv_exact(&mut answer).await?;
    let expected: String = word.chars().rev().chain(['\n']).collect();
    assert_eq!(String::from_utf8_lossy(&answer), expected);
    Ok(())
}

/// A handshake that is refused in TLS 1.3 may look well until the first bytes should come.
async fn refusal(address: &str, connector: &Connector) -> TlsFault {
    let error = match open(address, connector).await {
        Ok(mut conn) => conn.recv(&mut [0; 1]).await.unwrap_err(),
        Err(error) => error,
    };
    error.tls_fault().expect("it is one of TLS")
}

#[test]
fn each_cipher_suite_of_both_versions_is_spoken_with_s_server() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let pairs = [papers.server(), papers.rsa_server()];
        for (theirs, ours) in super::SUITES {
            let pair = &pairs[usize::from(theirs.contains("RSA"))];
            let option = if theirs.starts_with("TLS_") { "-ciphersuites" } else { "-cipher" };
            let version = if theirs.starts_with("TLS_") { "-tls1_3" } else { "-tls1_2" };
            let (_program, address) = s_server(pair, &["-rev", version, option, theirs]);
            client(backend, async move {
                let mut conn = open(&address, &connector(|tls| tls)).await.unwrap();
                assert_eq!(conn.tls().unwrap().cipher(), ours);
                for word in ["one", "another"] {
                    reversed(&mut conn, word).await.unwrap();
                }
                conn.close().await;
            });
        }
    });
}

/// Its group is not the one that Wharf had tried first.
#[test]
fn s_server_asks_wharf_to_say_hello_again_with_another_group() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let (mut program, address) = s_server(&papers.server(), &["-rev", "-groups", "P-384", "-msg"]);
        client(backend, async move {
            let mut conn = open(&address, &connector(|tls| tls)).await.unwrap();
            reversed(&mut conn, "again").await.unwrap();
            conn.close().await;
        });
        for _ in 0..2 {
            program.await_text(", ClientHello");
        }
    });
}

/// Both directions at once; and in records of other shapes.
#[test]
fn megabytes_go_both_ways_with_s_server_as_they_were() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let ways: [&[&str]; 4] = [
            &["-tls1_2"],
            &["-tls1_3"],
            &["-tls1_3", "-max_send_frag", "700"],
            &["-tls1_3", "-record_padding", "1000"],
        ];
        for way in ways {
            let mut more = vec!["-quiet", "-naccept", "1"];
            more.extend(way);
            let (mut program, address) = s_server(&papers.server(), &more);
            let feeding = program.feed(pattern(0..BULK));
            let sent = client(backend, async move {
                let conn = open(&address, &connector(|tls| tls)).await.unwrap();
                let (mut read, mut write) = conn.split();
                let writing = wharf::spawn(async move {
                    write.send(&pattern(BULK..2 * BULK)).await.unwrap();
                    write.flush().await.unwrap();
                    write
                });
                let mut came = vec![0; BULK];
                read.recv_exact(&mut came).await.unwrap();
                assert_pattern(&came, 0);
                let mut conn = read.join(writing.await.unwrap()).unwrap();
                conn.finish().await.unwrap();
                conn.close().await
            });
            assert_eq!(sent, CloseReason::Local);
            let came = program.await_bytes(BULK);
            assert_eq!(came.len(), BULK, "{way:?}");
            assert_pattern(&came, BULK);
            drop(feeding.join().unwrap());
        }
    });
}

#[test]
fn wharf_resumes_its_sessions_with_s_server() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        for (option, version) in VERSIONS {
            let (_program, address) = s_server(&papers.server(), &["-rev", option]);
            client(backend, async move {
                let connector = connector(|tls| tls);
                for round in 0..4 {
                    let mut conn = open(&address, &connector).await.unwrap();
                    let info = conn.tls().unwrap();
                    assert_eq!((info.version(), info.is_resumed()), (version, round > 0));
                    // Tickets of TLS 1.3 come with what comes.
                    reversed(&mut conn, "hello").await.unwrap();
                    conn.close().await;
                }
            });
        }
    });
}

#[test]
fn wharf_shows_s_server_a_certificate_and_is_refused_without() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let ca = papers.ca();
        for (option, version) in VERSIONS {
            let more = ["-rev", option, "-Verify", "1", "-verify_return_error", "-CAfile", &ca];
            let (_program, address) = s_server(&papers.server(), &more);
            let known = Identity::from_files(papers.client().0, papers.path("client.test.key")).unwrap();
            let stranger =
                Identity::from_files(papers.stranger().0, papers.path("stranger.test.key")).unwrap();
            client(backend, async move {
                let mut conn = open(&address, &connector(|tls| tls.identity(known))).await.unwrap();
                reversed(&mut conn, "hello").await.unwrap();
                conn.close().await;
                let missing = if version == Version::Tls13 { 116 } else { 40 };
                let alert = TlsFault::Alert(TlsAlert(missing));
                assert_eq!(refusal(&address, &connector(|tls| tls)).await, alert);
                let alert = TlsFault::Alert(TlsAlert(48));
                assert_eq!(refusal(&address, &connector(|tls| tls.identity(stranger))).await, alert);
            });
        }
    });
}

#[test]
fn wharf_and_s_server_agree_on_a_protocol_or_not() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        for (option, _) in VERSIONS {
            let (_program, address) = s_server(&papers.server(), &["-rev", option, "-alpn", "echo/2,echo/1"]);
            client(backend, async move {
                let mut conn = open(&address, &connector(|tls| tls.alpn(["chat", "echo/1"]))).await.unwrap();
                assert_eq!(conn.tls().unwrap().alpn(), Some(&b"echo/1"[..]));
                reversed(&mut conn, "hello").await.unwrap();
                // It has time for one at once.
                conn.close().await;
                let alert = TlsFault::Alert(TlsAlert(120));
                assert_eq!(refusal(&address, &connector(|tls| tls.alpn(["chat"]))).await, alert);
            });
        }
    });
}

/// With its letters, it says who is to have new keys; what both say in between is protected by the next each time.
#[test]
fn s_server_renews_its_keys_again_and_again() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let (mut program, address) = s_server(&papers.server(), &["-tls1_3", "-msg", "-naccept", "1"]);
        let updates = client(backend, async move {
            let mut conn = open(&address, &connector(|tls| tls)).await.unwrap();
            conn.send(b"hello\n").await.unwrap();
            conn.flush().await.unwrap();
            program.await_text("hello\n");
            for (round, letter) in ["k", "K", "k", "k", "K", "K"].into_iter().enumerate() {
                program.say(format!("{letter}\n"));
                program.await_text(", KeyUpdate");
                for word in 0..3 {
                    let theirs = format!("their round {round} word {word}\n");
                    program.say(&theirs);
                    let mut came = vec![0; theirs.len()];
                    conn.recv_exact(&mut came).await.unwrap();
                    assert_eq!(String::from_utf8_lossy(&came), theirs);
                    let ours = format!("our round {round} word {word}\n");
                    conn.send(ours.as_bytes()).await.unwrap();
                    conn.flush().await.unwrap();
                    program.await_text(&ours);
                }
            }
            assert_eq!(conn.close().await, CloseReason::Local);
            let all = program.outcome().all;
            let count = |side: &str| {
                all.lines().filter(|line| line.starts_with(side) && line.ends_with(", KeyUpdate")).count()
            };
            (count(">>>"), count("<<<"))
        });
        assert_eq!(updates, (6, 3));
    });
}

/// It asks by HelloRequest, is told no, and gives up as OpenSSL does.
#[test]
fn s_server_may_not_renegotiate() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let (mut program, address) = s_server(&papers.server(), &["-tls1_2", "-msg"]);
        client(backend, async move {
            let mut conn = open(&address, &connector(|tls| tls)).await.unwrap();
            conn.send(b"hello\n").await.unwrap();
            conn.flush().await.unwrap();
            program.await_text("hello\n");
            program.say("r\n");
            let error = conn.recv(&mut [0; 1]).await.unwrap_err();
            assert_eq!(error.tls_fault(), Some(TlsFault::Alert(TlsAlert(40))), "{error}");
            program.await_text("warning no_renegotiation");
        });
    });
}

#[test]
fn an_s_server_that_is_killed_has_not_ended_but_broken_off() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        for (option, _) in VERSIONS {
            for tolerates in [false, true] {
                let (mut program, address) = s_server(&papers.server(), &["-rev", option]);
                client(backend, async move {
                    let connector = connector(|tls| if tolerates { tls.tolerate_truncation() } else { tls });
                    let mut conn = open(&address, &connector).await.unwrap();
                    reversed(&mut conn, "hello").await.unwrap();
                    program.kill();
                    let end = conn.recv(&mut [0; 1]).await;
                    match end {
                        Ok(n) => assert!(tolerates && n == 0),
                        Err(error) => {
                            assert!(!tolerates, "{error}");
                            assert_eq!(error.tls_fault(), Some(TlsFault::Truncated), "{error}");
                        }
                    }
                });
            }
        }
    });
}

/// Its `-status_file` is not looked at by a client that has no use for it, and is no hindrance.
#[test]
fn wharf_refuses_an_s_server_that_it_does_not_believe_and_says_why() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let cases = [
            (papers.stranger(), CertificateFault::UnknownIssuer, "alert unknown ca"),
            (papers.client(), CertificateFault::WrongName, "alert bad certificate"),
        ];
        for (pair, fault, alert) in cases {
            for (option, _) in VERSIONS {
                let (mut program, address) = s_server(&pair, &["-rev", option]);
                client(backend, async move {
                    let error = open(&address, &connector(|tls| tls)).await.unwrap_err();
                    assert_eq!(error.tls_fault(), Some(TlsFault::Certificate(fault)), "{error}");
                    let any = connector(ClientTls::danger_accept_any_certificate);
                    let mut conn = open(&address, &any).await.unwrap();
                    assert_eq!(conn.tls().unwrap().verification(), Verification::Skipped);
                    reversed(&mut conn, "hello").await.unwrap();
                });
                program.await_text(alert);
            }
        }
    });
}
