//! `gnutls-cli` with a server of Wharf's, and Wharf's client with `gnutls-serv`.

use wharf::tls::{ClientCertificates, ClientTls, Connector, Identity, ServerTls, Version};
use wharf::{CertificateFault, Client, CloseReason, Connection, Error, TlsAlert, TlsFault};

use super::papers::{Pair, Papers, ecdsa_tls, rsa_tls};
use super::program::{Program, command, is_here};
use super::site::{Site, client, on_each};
use crate::common::Style;
use crate::common::tls::*;

const VERSIONS: [(&str, Version); 2] =
    [("NORMAL:-VERS-ALL:+VERS-TLS1.2", Version::Tls12), ("NORMAL:-VERS-ALL:+VERS-TLS1.3", Version::Tls13)];

/// What GnuTLS calls the cipher of a suite of OpenSSL's, and the priorities that leave no other.
fn priority(suite: &str) -> (&'static str, String) {
    let cipher = match suite {
        _ if suite.contains("CHACHA20") => "CHACHA20-POLY1305",
        _ if suite.contains("384") => "AES-256-GCM",
        _ => "AES-128-GCM",
    };
    let version = if suite.starts_with("TLS_") { "1.3" } else { "1.2" };
    (cipher, format!("NORMAL:-VERS-ALL:+VERS-TLS{version}:-CIPHER-ALL:+{cipher}"))
}

fn gnutls_cli(papers: &Papers, site: &Site, more: &[&str]) -> std::process::Command {
    let mut cli = command("gnutls-cli", ["--port", &site.port(), "--x509cafile", &papers.ca()]);
    cli.args(["--sni-hostname", NAME, "--verify-hostname", NAME]).args(more).arg("127.0.0.1");
    cli
}

fn echoed(program: &mut Program, word: &str) {
    program.say(format!("{word}\n"));
    program.await_text(&format!("{word}\n"));
}

fn standing(papers: &Papers, site: &Site, more: &[&str]) -> Program {
    let mut program = Program::start(&mut gnutls_cli(papers, site, more));
    program.await_text("Simple Client Mode:\n");
    echoed(&mut program, "hello");
    program
}

fn left(mut program: Program) -> String {
    program.hush();
    let outcome = program.outcome();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all);
    outcome.all
}

#[test]
fn each_cipher_suite_of_both_versions_is_spoken_with_gnutls_cli() {
    if !is_here("gnutls-cli") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let sites = [Site::echo(backend, ecdsa_tls()), Site::echo(backend, rsa_tls())];
        for (theirs, ours) in super::SUITES {
            let (cipher, priority) = priority(theirs);
            let site = &sites[usize::from(theirs.contains("RSA"))];
            let program = standing(&papers, site, &["--priority", &priority]);
            assert_eq!(site.agreed().cipher(), ours);
            let all = left(program);
            assert!(all.contains(&format!("({cipher})")), "{all}");
            assert_eq!(site.ended(), CloseReason::Peer, "{ours}");
        }
    });
}

/// Its own keys and, because it asks for them, those of the other side.
#[test]
fn gnutls_cli_renews_its_keys_again_and_again() {
    if !is_here("gnutls-cli") {
        return;
    }
    on_each(|backend| {
        for style in [Style::Async, Style::Event] {
            let (papers, site) = (Papers::new(), Site::echo_in(style, backend, ecdsa_tls()));
            let mut program = standing(&papers, &site, &["--inline-commands", "--priority", VERSIONS[1].0]);
            for round in 0..5 {
                program.say("^rekey^\n");
                program.await_text("- Rekey was completed\n");
                for word in 0..3 {
                    echoed(&mut program, &format!("round {round} word {word}"));
                }
            }
            left(program);
            assert_eq!(site.ended(), CloseReason::Peer);
        }
    });
}

#[test]
fn gnutls_cli_resumes_its_sessions() {
    if !is_here("gnutls-cli") {
        return;
    }
    on_each(|backend| {
        for (priority, version) in VERSIONS {
            let (papers, site) = (Papers::new(), Site::echo(backend, ecdsa_tls()));
            let mut program = standing(&papers, &site, &["--inline-commands", "--priority", priority]);
            assert!(!site.agreed().is_resumed());
            program.say("^resume^\n");
            program.await_text("*** This is a resumed session");
            echoed(&mut program, "again");
            let agreed = site.agreed();
            assert_eq!((agreed.version(), agreed.is_resumed()), (version, true));
            left(program);
        }
    });
}

/// It does not take no for an answer, and asks again until one of both sides has had enough.
#[test]
fn gnutls_cli_may_not_renegotiate() {
    if !is_here("gnutls-cli") {
        return;
    }
    on_each(|backend| {
        let (papers, site) = (Papers::new(), Site::echo(backend, ecdsa_tls()));
        let mut other = standing(&papers, &site, &["--priority", VERSIONS[0].0]);
        let mut program = standing(&papers, &site, &["--inline-commands", "--priority", VERSIONS[0].0]);
        program.say("^renegotiate^\n");
        program.await_text("No renegotiation is allowed");
        let end = site.ended();
        assert!(matches!(end, CloseReason::Tls(TlsFault::Alert(_) | TlsFault::Flood)), "{end}");
        echoed(&mut other, "still here");
        left(other);
        assert_eq!(site.ended(), CloseReason::Peer);
    });
}

#[test]
fn gnutls_cli_has_to_show_a_certificate_that_is_trusted() {
    if !is_here("gnutls-cli") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let tls = ecdsa_tls().client_certificates(ClientCertificates::required(AUTHORITY.trust()));
        let site = Site::echo(backend, tls);
        let ((known, known_key), (stranger, stranger_key)) = (papers.client(), papers.stranger());
        for (priority, _) in VERSIONS {
            let mut more =
                vec!["--priority", priority, "--x509certfile", &known, "--x509keyfile", &known_key];
            left(standing(&papers, &site, &more));
            assert_eq!(site.ended(), CloseReason::Peer);
            (more[3], more[5]) = (&stranger, &stranger_key);
            let refused = Program::start(&mut gnutls_cli(&papers, &site, &more)).outcome();
            assert!(refused.all.contains("CA is unknown"), "{}", refused.all);
            let unknown = TlsFault::Certificate(CertificateFault::UnknownIssuer);
            assert_eq!(site.refused(), CloseReason::Tls(unknown));
            let none = Program::start(&mut gnutls_cli(&papers, &site, &more[..2])).outcome();
            assert!(none.all.contains("Certificate is required"), "{}", none.all);
            let missing = TlsFault::Certificate(CertificateFault::Missing);
            assert_eq!(site.refused(), CloseReason::Tls(missing));
        }
    });
}

#[test]
fn gnutls_cli_agrees_on_a_protocol_and_refuses_who_is_nobody() {
    if !is_here("gnutls-cli") {
        return;
    }
    on_each(|backend| {
        let (papers, site) = (Papers::new(), Site::echo(backend, ecdsa_tls().alpn(["echo/2"])));
        let program = standing(&papers, &site, &["--alpn", "echo/1", "--alpn", "echo/2"]);
        assert_eq!(site.agreed().alpn(), Some(&b"echo/2"[..]));
        left(program);
        assert_eq!(site.ended(), CloseReason::Peer);
        let refused = Program::start(&mut gnutls_cli(&papers, &site, &["--alpn", "chat"])).outcome();
        assert!(refused.all.contains("No supported application protocol"), "{}", refused.all);
        assert_eq!(site.refused(), CloseReason::Tls(TlsFault::Protocol));

        let nobody = Site::echo(backend, ServerTls::new(Authority::new("Nobody").identity(NAME)));
        let refuses = Program::start(&mut gnutls_cli(&papers, &nobody, &[])).outcome();
        assert_eq!(refuses.code, Some(1), "{}", refuses.all);
        assert!(matches!(nobody.refused(), CloseReason::Tls(TlsFault::Alert(_))));
    });
}

#[test]
fn a_gnutls_cli_that_is_killed_has_not_ended_but_broken_off() {
    if !is_here("gnutls-cli") {
        return;
    }
    on_each(|backend| {
        let (papers, site) = (Papers::new(), Site::echo(backend, ecdsa_tls()));
        for (priority, _) in VERSIONS {
            standing(&papers, &site, &["--priority", priority]).kill();
            assert_eq!(site.ended(), CloseReason::Tls(TlsFault::Truncated));
        }
    });
}

/// A `gnutls-serv` that echoes, and where. It listens on every address, and cannot be told otherwise.
fn gnutls_serv(pair: &Pair, more: &[&str]) -> (Program, String) {
    let mut serv = command("gnutls-serv", ["--echo", "--port", "0", "--nocookie"]);
    serv.args(["--x509certfile", &pair.0, "--x509keyfile", &pair.1]).args(more);
    let mut program = Program::start(&mut serv);
    let address = format!("127.0.0.1:{}", program.await_port());
    (program, address)
}

fn connector(change: impl FnOnce(ClientTls) -> ClientTls) -> Connector {
    Connector::new(change(client_tls())).unwrap()
}

async fn open(address: &str, connector: &Connector) -> Result<Connection, Error> {
    Client::new(address).tls(connector).open().await
}

async fn answered(conn: &mut Connection, word: &str) -> Result<(), Error> {
    let line = format!("{word}\n");
    conn.send(line.as_bytes()).await?;
    let mut answer = vec![0; line.len()];
    conn.recv_exact(&mut answer).await?;
    assert_eq!(String::from_utf8_lossy(&answer), line);
    Ok(())
}

async fn refusal(address: &str, connector: &Connector) -> TlsFault {
    let error = match open(address, connector).await {
        Ok(mut conn) => conn.recv(&mut [0; 1]).await.unwrap_err(),
        Err(error) => error,
    };
    error.tls_fault().expect("it is one of TLS")
}

#[test]
fn each_cipher_suite_of_both_versions_is_spoken_with_gnutls_serv() {
    if !is_here("gnutls-serv") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let pairs = [papers.server(), papers.rsa_server()];
        for (theirs, ours) in super::SUITES {
            let (_, priority) = priority(theirs);
            let pair = &pairs[usize::from(theirs.contains("RSA"))];
            let more = ["--disable-client-cert", "--priority", &priority];
            let (_program, address) = gnutls_serv(pair, &more);
            client(backend, async move {
                let connector = connector(|tls| tls);
                for round in 0..3 {
                    let mut conn = open(&address, &connector).await.unwrap();
                    let info = conn.tls().unwrap();
                    assert_eq!((info.cipher(), info.is_resumed()), (ours, round > 0));
                    for word in ["one", "another"] {
                        answered(&mut conn, word).await.unwrap();
                    }
                    assert_eq!(conn.close().await, CloseReason::Local);
                }
            });
        }
    });
}

#[test]
fn wharf_shows_gnutls_serv_a_certificate_and_is_refused_without() {
    if !is_here("gnutls-serv") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let ca = papers.ca();
        // In TLS 1.2 GnuTLS says decode_error to whoever has none.
        for ((priority, _), alert) in VERSIONS.into_iter().zip([50, 116]) {
            let more = [
                "--require-client-cert",
                "--verify-client-cert",
                "--x509cafile",
                &ca,
                "--priority",
                priority,
            ];
            let (_program, address) = gnutls_serv(&papers.server(), &more);
            let known = Identity::from_files(papers.client().0, papers.path("client.test.key")).unwrap();
            client(backend, async move {
                let mut conn = open(&address, &connector(|tls| tls.identity(known))).await.unwrap();
                answered(&mut conn, "hello").await.unwrap();
                conn.close().await;
                let refused = refusal(&address, &connector(|tls| tls)).await;
                assert_eq!(refused, TlsFault::Alert(TlsAlert(alert)));
            });
        }
    });
}
