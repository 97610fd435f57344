//! `wharf cert`: what it tells of certificates, and what it thinks of them.

use crate::authority::{Authority, Made};
use crate::process::{Folder, Outcome, Process, Server, listen, wharf};

const NAME: &str = "server.test";

/// A server that shows this certificate.
fn serve(folder: &Folder, made: &Made, more: &[&str]) -> Server {
    let files = made.write(folder, "server");
    Server::start(
        "echo",
        "async",
        &[&["--tls-cert", &files.certificate, "--tls-key", &files.key], more].concat(),
    )
}

fn check(server: &Server, more: &[&str]) -> Outcome {
    let mut command = wharf(["cert", "check", &server.address.to_string()]);
    Process::run(command.args(more), Vec::new())
}

fn text(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stdout).into_owned()
}

fn assert_says(outcome: &Outcome, name: &str, fact: &str) {
    let line = format!("{name:<22} {fact}");
    assert!(text(outcome).lines().any(|it| it.starts_with(&line)), "{line}: {outcome:?}");
}

#[test]
fn a_good_server_is_accepted_and_described() {
    let (folder, authority) = (Folder::new("cert-good"), Authority::new("Tests"));
    let ca = folder.write("ca.pem", &authority.pem());
    // As little as a response can be: `wharf serve` asks only whether it is one.
    let ocsp = folder.path("ocsp.der");
    std::fs::write(&ocsp, [0x30, 5, 0x0A, 1, 0, 0xA0, 0]).unwrap();
    let server =
        serve(&folder, &authority.issue_for_days(NAME, 90), &["--alpn", "echo/1", "--tls-ocsp", &ocsp]);
    let outcome = check(&server, &["--ca", &ca, "--servername", NAME, "--alpn", "echo/1,other"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{outcome:?}");
    for (name, fact) in [
        ("agreed", "TLS 1.3, TLS13_"),
        ("stapled", "an OCSP response"),
        ("chain.0.subject", "CN=server.test"),
        ("chain.0.issuer", "CN=Tests"),
        ("chain.0.names", "server.test"),
        ("chain.0.valid", "1975-01-01T00:00:00Z to "),
        ("chain.0.key", "ECDSA, P-256"),
        ("chain.0.pin", ""),
        ("chain.0.fingerprint", ""),
        ("verdict", "accepted"),
    ] {
        assert_says(&outcome, name, fact);
    }
    let said = text(&outcome);
    assert!(said.contains("ALPN echo/1") && said.contains(", 90 days left\n"), "{said}");
    // What it says of the key is what `connect` takes.
    let pin = said.lines().find_map(|line| line.strip_prefix("chain.0.pin")).unwrap().trim();
    let mut command =
        wharf(["connect", &server.address.to_string(), "--tls", "--ca", &ca, "--servername", NAME]);
    let outcome = Process::run(command.args(["--alpn", "echo/1", "--pin", pin]), b"hello".to_vec());
    assert_eq!((outcome.code, outcome.stdout.as_slice()), (Some(0), &b"hello"[..]), "{outcome:?}");
}

#[test]
fn one_that_ends_soon_is_accepted_with_a_warning() {
    let (folder, authority) = (Folder::new("cert-soon"), Authority::new("Tests"));
    let ca = folder.write("ca.pem", &authority.pem());
    for (days, warns) in [(20, true), (21, false)] {
        let server = serve(&folder, &authority.issue_for_days(NAME, days), &[]);
        let outcome = check(&server, &["--ca", &ca, "--servername", NAME]);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let warning =
            format!("wharf: warning: the certificate of CN=server.test expires in {days} days, at ");
        assert_eq!(outcome.stderr.starts_with(&warning), warns, "{outcome:?}");
        assert_eq!(outcome.stderr.is_empty(), !warns, "{outcome:?}");
    }
}

#[test]
fn what_a_client_refuses_is_shown_all_the_same() {
    let (folder, authority) = (Folder::new("cert-bad"), Authority::new("Tests"));
    let ca = folder.write("ca.pem", &authority.pem());
    let stranger = folder.write("stranger.pem", &Authority::new("Stranger").pem());
    let (good, expired) = (authority.issue(NAME), authority.issue_expired(NAME));
    for (made, ca, name, why) in [
        (&expired, &ca, NAME, "certificate expired: valid until 2020-02-03"),
        (&good, &ca, "other.test", "certificate for another name: it is for server.test, not for other.test"),
        (
            &good,
            &stranger,
            NAME,
            "certificate of an unknown issuer: that of CN=server.test is issued by CN=Tests",
        ),
    ] {
        let server = serve(&folder, made, &[]);
        let outcome = check(&server, &["--ca", ca, "--servername", name]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let error = format!("wharf: connect to {}: TLS: {why}", server.address);
        assert!(outcome.stderr.lines().last().unwrap().starts_with(&error), "{error}: {outcome:?}");
        assert_says(&outcome, "chain.0.subject", "CN=server.test");
        assert_says(&outcome, "verdict", "refused");
        assert_eq!(
            outcome.stderr.contains("warning: the certificate of CN=server.test expired at 2020-02-03"),
            made.der == expired.der
        );
        assert_eq!(text(&outcome).contains("EXPIRED"), made.der == expired.der);
    }
}

#[test]
fn a_server_without_tls_and_no_server_are_one_line() {
    for (service, why) in [
        ("chargen", "TLS: the peer does not speak TLS"),
        ("pingpong", "TLS: the peer ended during the handshake"),
    ] {
        let server = Server::start(service, "async", &[]);
        let outcome = check(&server, &[]);
        assert_eq!((outcome.code, text(&outcome).as_str()), (Some(1), ""), "{outcome:?}");
        assert!(
            outcome.stderr.starts_with(&format!("wharf: connect to {}: {why}", server.address)),
            "{outcome:?}"
        );
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
    }
    let (listener, address) = listen();
    let outcome = Process::run(&mut wharf(["cert", "check", &address, "--timeout", "100ms"]), Vec::new());
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("timed out"), "{outcome:?}");
    drop(listener);
    let outcome = Process::run(&mut wharf(["cert", "check", &address]), Vec::new());
    let expected = format!("wharf: connect to {address}: connection refused\n");
    assert_eq!((outcome.code, outcome.stderr), (Some(1), expected));
}

#[test]
fn a_server_that_asks_for_certificates_is_told() {
    let (folder, authority) = (Folder::new("cert-clients"), Authority::new("Tests"));
    let ca = folder.write("ca.pem", &authority.pem());
    let server = serve(&folder, &authority.issue(NAME), &["--tls-client-ca", &ca]);
    let outcome = check(&server, &["--ca", &ca, "--servername", NAME]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_says(&outcome, "stapled", "nothing");
    assert_says(&outcome, "clients", "refused without a certificate of their own");
}

#[test]
fn a_file_is_described_without_a_server() {
    let (folder, authority) = (Folder::new("cert-show"), Authority::new("Tests"));
    let made = authority.issue_expired("a.test");
    let chain = format!("a comment\n{}{}{}", made.key, made.certificate, authority.pem());
    let der = folder.path("a.der");
    std::fs::write(&der, &made.der).unwrap();
    for file in [folder.write("chain.pem", &chain), der] {
        let outcome = Process::run(&mut wharf(["cert", "show", &file]), Vec::new());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert_says(&outcome, "chain.0.subject", "CN=a.test");
        assert_says(&outcome, "chain.0.valid", "1975-01-01T00:00:00Z to 2020-02-03T00:00:00Z, EXPIRED");
        assert!(
            outcome.stderr.contains("warning: the certificate of CN=a.test expired at 2020-02-03"),
            "{outcome:?}"
        );
        if file.ends_with(".pem") {
            assert_says(&outcome, "chain.1.subject", "CN=Tests");
            assert_says(&outcome, "chain.1.issuer", "itself");
            assert_says(&outcome, "chain.1.names", "none");
        }
    }
    for (text, problem) in [
        ("", "there is no certificate in it"),
        ("garbage", "there is no certificate in it"),
        (made.key.as_str(), "there is no certificate in it"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "section 1 of it is a certificate that cannot be read",
        ),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n", "section 1 of it is malformed"),
    ] {
        let file = folder.write("bad.pem", text);
        let outcome = Process::run(&mut wharf(["cert", "show", &file]), Vec::new());
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.starts_with(&format!("wharf: read {file}: {problem}")), "{outcome:?}");
    }
    let missing = folder.path("missing");
    let outcome = Process::run(&mut wharf(["cert", "show", &missing]), Vec::new());
    let expected = format!("wharf: read {missing}: no such file or directory\n");
    assert_eq!((outcome.code, outcome.stderr), (Some(1), expected));
}
