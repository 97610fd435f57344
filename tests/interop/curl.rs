//! curl with a responder that speaks just enough HTTP.

use std::process::Command;
use std::time::{Duration, Instant};

use wharf::tls::{ClientCertificates, ServerTls, Version};
use wharf::{Backend, CertificateFault, CloseReason, Connection, Result, TlsAlert, TlsFault};

use super::papers::{Papers, ecdsa_tls};
use super::program::{Outcome, Program, command, is_here};
use super::site::{Site, on_each};
use crate::common::tls::*;
use crate::common::{assert_pattern, pattern};

/// Answers one request with its body, or with a word if it has none; the answer ends where the connection does.
async fn respond(mut conn: Connection) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        conn.recv_exact(&mut byte).await?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let len = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; len.map_or(0, |len| len.parse().unwrap())];
    conn.recv_exact(&mut body).await?;
    conn.send(b"HTTP/1.0 200 OK\r\n\r\n").await?;
    conn.send(if body.is_empty() { b"hello" } else { &body }).await
}

fn site(backend: Backend, tls: ServerTls) -> Site {
    Site::serve(backend, tls, respond)
}

/// curl, that finds the server by its name.
fn curl(site: &Site, scheme: &str, more: &[&str]) -> Command {
    let port = site.port();
    let mut curl = command("curl", ["--silent", "--show-error", "--http1.0", "--max-time", "20"]);
    curl.args(["--noproxy", "*", "--resolve", &format!("{NAME}:{port}:127.0.0.1")]);
    curl.args(more).arg(format!("{scheme}://{NAME}:{port}/"));
    curl
}

fn https(site: &Site, papers: &Papers, more: &[&str]) -> Outcome {
    Program::run(curl(site, "https", more).args(["--cacert", &papers.ca()]))
}

/// The answer has no length: that it is whole only close_notify tells, and OpenSSL insists on it.
#[test]
fn curl_fetches_and_sends_by_both_versions() {
    if !is_here("curl") {
        return;
    }
    on_each(|backend| {
        let (papers, site) = (Papers::new(), site(backend, ecdsa_tls().alpn(["http/1.1", "http/1.0"])));
        let file = papers.write("body", pattern(0..3_000_000));
        for (option, version) in [("1.2", Version::Tls12), ("1.3", Version::Tls13)] {
            let outcome = https(&site, &papers, &["--tls-max", option]);
            assert_eq!((outcome.code, &outcome.out[..]), (Some(0), &b"hello"[..]), "{}", outcome.all);
            assert_eq!((site.agreed().version(), site.ended()), (version, CloseReason::Local));
            let outcome = https(&site, &papers, &["--tls-max", option, "--data-binary", &format!("@{file}")]);
            assert_eq!(outcome.code, Some(0));
            assert_eq!(outcome.out.len(), 3_000_000);
            assert_pattern(&outcome.out, 0);
            assert_eq!((site.agreed().version(), site.ended()), (version, CloseReason::Local));
        }
    });
}

#[test]
fn curl_refuses_a_server_that_nobody_it_trusts_has_vouched_for() {
    if !is_here("curl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let site = site(backend, ServerTls::new(Authority::new("Nobody").identity(NAME)));
        let outcome = https(&site, &papers, &[]);
        // 60: the peer's certificate cannot be authenticated.
        assert_eq!(outcome.code, Some(60), "{}", outcome.all);
        assert_eq!(site.refused(), CloseReason::Tls(TlsFault::Alert(TlsAlert(48))));
        let outcome = https(&site, &papers, &["--insecure"]);
        assert_eq!((outcome.code, &outcome.out[..]), (Some(0), &b"hello"[..]), "{}", outcome.all);
    });
}

#[test]
fn curl_has_to_show_a_certificate_that_is_trusted() {
    if !is_here("curl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let tls = ecdsa_tls().client_certificates(ClientCertificates::required(AUTHORITY.trust()));
        let site = site(backend, tls);
        let ((known, known_key), (stranger, stranger_key)) = (papers.client(), papers.stranger());
        for version in ["1.2", "1.3"] {
            let shows = ["--tls-max", version, "--cert", &known, "--key", &known_key];
            let outcome = https(&site, &papers, &shows);
            assert_eq!((outcome.code, &outcome.out[..]), (Some(0), &b"hello"[..]), "{}", outcome.all);

            let outcome = https(&site, &papers, &["--tls-max", version]);
            assert!(outcome.all.contains("alert certificate required"), "{}", outcome.all);
            let missing = TlsFault::Certificate(CertificateFault::Missing);
            assert_eq!(site.refused(), CloseReason::Tls(missing));

            let shows = ["--tls-max", version, "--cert", &stranger, "--key", &stranger_key];
            let outcome = https(&site, &papers, &shows);
            assert!(outcome.all.contains("alert unknown ca"), "{}", outcome.all);
            let unknown = TlsFault::Certificate(CertificateFault::UnknownIssuer);
            assert_eq!(site.refused(), CloseReason::Tls(unknown));
        }
    });
}

#[test]
fn a_curl_that_speaks_plain_http_is_sent_away_at_once() {
    if !is_here("curl") {
        return;
    }
    on_each(|backend| {
        let long = Duration::from_secs(60);
        let site = site(backend, ecdsa_tls().handshake_within(long));
        let began = Instant::now();
        let outcome = Program::run(&mut curl(&site, "http", &[]));
        // 1: the answer is no HTTP, but an alert.
        assert_eq!(outcome.code, Some(1), "{}", outcome.all);
        assert_eq!(site.refused(), CloseReason::Tls(TlsFault::NotTls));
        assert!(began.elapsed() < long / 2, "it is not the deadline of the handshake: {:?}", began.elapsed());
    });
}
