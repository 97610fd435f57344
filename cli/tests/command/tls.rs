//! TLS of `wharf serve` and `wharf connect`: what is agreed, who is let in, and certificates that change while the server runs.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::process::Signal;
use wharf::Client;
use wharf::tls::{ClientTls, Connector, Info, Trust};

use crate::authority::{Authority, Files};
use crate::process::{Folder, LIMIT, Outcome, Process, Server, combinations, wharf};

/// The name of every server here.
const NAME: &str = "server.test";

/// An authority, what it has issued, and a folder for it.
struct Setup {
    folder: Folder,
    authority: Authority,
    ca: String,
    files: Files,
}

impl Setup {
    fn new(test: &str) -> Setup {
        let (folder, authority) = (Folder::new(test), Authority::new("Tests"));
        let ca = folder.write("ca.pem", &authority.pem());
        let files = authority.issue(NAME).write(&folder, "server");
        Setup { folder, authority, ca, files }
    }

    fn serve(&self, style: &str, more: &[&str]) -> Server {
        let identity = ["--tls-cert", &self.files.certificate, "--tls-key", &self.files.key];
        Server::start("echo", style, &[&identity, more].concat())
    }

    /// Has a client say hello that trusts the authority.
    fn connect(&self, server: &Server, more: &[&str]) -> Outcome {
        let trust = ["--ca", &self.ca, "--servername", NAME];
        connect(server, &[&trust, more].concat())
    }
}

fn connect(server: &Server, more: &[&str]) -> Outcome {
    let mut command = wharf(["connect", &server.address.to_string(), "--tls"]);
    Process::run(command.args(more), b"hello".to_vec())
}

fn assert_answered(outcome: &Outcome) {
    assert_eq!((outcome.code, outcome.stdout.as_slice()), (Some(0), &b"hello"[..]), "{outcome:?}");
}

fn assert_refused(outcome: &Outcome, why: &str) {
    assert_eq!((outcome.code, outcome.stdout.as_slice()), (Some(1), &b""[..]), "{outcome:?}");
    let last = outcome.stderr.lines().last().unwrap_or_default();
    assert!(last.starts_with("wharf: ") && last.contains(why), "{why}: {outcome:?}");
    assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
}

#[test]
fn bytes_go_by_tls_and_come_back() {
    let setup = Setup::new("tls-echo");
    let mut sent = vec![0; 8 << 20];
    fastrand::fill(&mut sent);
    for (backend, style) in combinations() {
        let server = setup.serve(style, &["--backend", backend, "--alpn", "echo/2,echo/1"]);
        let mut command = wharf(["connect", &server.address.to_string(), "--tls", "--ca", &setup.ca]);
        command.args(["--servername", NAME, "--alpn", "echo/1", "-v", "--backend", backend]);
        let outcome = Process::run(&mut command, sent.clone());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert!(outcome.stdout == sent, "{style} on {backend}: {} bytes came back", outcome.stdout.len());
        let said = format!("wharf: connected to {}\nwharf: TLS: TLS 1.3, TLS13_", server.address);
        assert!(outcome.stderr.starts_with(&said), "{outcome:?}");
        let said = format!(", ALPN echo/1, not resumed\nwharf: TLS: peer CN={NAME}, verified\n");
        assert!(outcome.stderr.ends_with(&said), "{}", outcome.stderr);
        let snapshot = server.snapshot();
        assert!(snapshot.contains(&format!("{} (1 let in, TLS)", server.address)), "{snapshot}");
        assert!(snapshot.contains(&format!("{:<22} 1 done", "handshakes")), "{snapshot}");
    }
}

#[test]
fn a_client_takes_only_the_right_server() {
    let setup = Setup::new("tls-wrong-server");
    let stranger = setup.folder.write("stranger.pem", &Authority::new("Stranger").pem());
    let server = setup.serve("async", &["--alpn", "echo/1"]);
    assert_answered(&setup.connect(&server, &[]));
    assert_refused(&connect(&server, &["--ca", &setup.ca]), "certificate for another name");
    let outcome = connect(&server, &["--ca", &setup.ca, "--servername", "a b"]);
    assert!(outcome.stderr.starts_with("error: --servername: `a b` is neither"), "{outcome:?}");
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert_refused(
        &connect(&server, &["--ca", &stranger, "--servername", NAME]),
        "certificate of an unknown issuer: that of CN=server.test is issued by CN=Tests",
    );
    let (trusting, pin) = (["--ca", &setup.ca, "--servername", NAME], "0".repeat(64));
    let pinned = connect(&server, &[&trusting[..], &["--pin", &pin]].concat());
    assert_refused(&pinned, "certificate with a public key that is not pinned");
    let other = connect(&server, &[&trusting[..], &["--alpn", "other"]].concat());
    assert_refused(&other, "no_application_protocol");
    let missing = setup.folder.path("missing.pem");
    let outcome = connect(&server, &["--ca", &missing]);
    assert_refused(&outcome, &format!("--ca: load {missing}: no such file or directory"));
    let outcome = connect(&server, &["--cert", &setup.ca, "--key", &setup.ca]);
    assert_refused(&outcome, &format!("--cert and --key: load {}: no private key", setup.ca));
}

#[test]
fn a_server_that_speaks_no_tls_is_told() {
    let server = Server::start("chargen", "async", &[]);
    assert_refused(&connect(&server, &["--insecure"]), "TLS: the peer does not speak TLS");
    let server = Server::start("pingpong", "async", &[]);
    assert_refused(&connect(&server, &["--insecure"]), "TLS: the peer ended during the handshake");
}

#[test]
fn a_client_that_speaks_no_tls_is_no_harm() {
    let setup = Setup::new("tls-plain-client");
    for style in ["async", "event"] {
        let server = setup.serve(style, &[]);
        let outcome = Process::run(
            &mut wharf(["connect", &server.address.to_string()]),
            b"GET / HTTP/1.0\r\n".to_vec(),
        );
        assert_ne!(outcome.stdout, b"GET / HTTP/1.0\r\n");
        assert_answered(&setup.connect(&server, &[]));
        let outcome = server.end(Signal::TERM);
        assert!(outcome.stderr.contains("1 TLS: the peer does not speak TLS"), "{outcome:?}");
    }
}

#[test]
fn clients_show_certificates_if_they_are_asked_to() {
    let setup = Setup::new("tls-clients");
    let clients = Authority::new("Clients");
    let ca = setup.folder.write("clients.pem", &clients.pem());
    let lists = setup.folder.write("clients.crl", &clients.revocation_list(&[666]));
    let with_serial = |serial: u64| {
        let made = clients.issue_with("client.test", |params| params.serial_number = Some(serial.into()));
        made.write(&setup.folder, &format!("client-{serial}"))
    };
    let (good, revoked) = (with_serial(7), with_serial(666));
    let stranger = Authority::new("Stranger").issue("client.test").write(&setup.folder, "stranger");
    let shown = |files: &Files, server: &Server| {
        setup.connect(server, &["--cert", &files.certificate, "--key", &files.key])
    };
    for optional in [false, true] {
        let mut more = vec!["--tls-client-ca", &ca, "--tls-crl", &lists];
        more.extend(optional.then_some("--tls-client-optional"));
        let server = setup.serve("async", &more);
        assert_answered(&shown(&good, &server));
        assert_refused(&shown(&revoked, &server), "the peer refused: certificate_revoked");
        assert_refused(&shown(&stranger, &server), "the peer refused: unknown_ca");
        let without = setup.connect(&server, &[]);
        if optional {
            assert_answered(&without);
        } else {
            assert_refused(&without, "the peer refused: certificate_required");
        }
    }
}

#[test]
fn a_self_signed_certificate_is_told_with_its_pin() {
    for (option, name) in [("--tls-self-signed", "localhost"), ("--tls-self-signed=a.test,b.test", "a.test")]
    {
        let server = Server::start("echo", "async", &[option]);
        let said = server.process.await_message("self-signed, pin ");
        assert!(
            said.contains("TLS: self-signed, fingerprint ") && said.contains(&format!("TLS: {name}, ")),
            "{said}"
        );
        let pin = said.trim_end().rsplit(' ').next().unwrap();
        let outcome = connect(&server, &["--insecure", "--pin", pin, "-v"]);
        assert_answered(&outcome);
        let warning = "warning: --insecure accepts every certificate: only the pinned key is looked at\n";
        assert!(outcome.stderr.contains(warning), "{outcome:?}");
        assert!(outcome.stderr.ends_with(&format!("peer CN={name}, NOT verified\n")), "{outcome:?}");
        assert_refused(&connect(&server, &["--insecure", "--pin", &"0".repeat(64)]), "not pinned");

        let outcome = connect(&server, &["--insecure"]);
        let warning = "wharf: warning: --insecure accepts every certificate: anyone on the way can read and change everything\n";
        assert_eq!(outcome.stderr, warning);
        assert_answered(&outcome);
        // It stays as clients have been told.
        server.process.signal(Signal::HUP);
        server.process.await_message("TLS: read again, nothing has changed");
        assert_answered(&connect(&server, &["--insecure", "--pin", pin]));
    }
}

#[test]
fn each_name_has_its_certificate() {
    let setup = Setup::new("tls-names");
    let issue = |name: &str, file: &str| setup.authority.issue(name).write(&setup.folder, file);
    let (one, star) = (issue("one.example.com", "one"), issue("*.example.com", "star"));
    let named = |name: &str, files: &Files| format!("{name}={}:{}", files.certificate, files.key);
    let (one, star) = (named("one.example.com", &one), named("*.example.com", &star));
    let server = setup.serve("async", &["--tls-name", &one, "--tls-name", &star]);
    for (asked, subject) in [
        ("one.example.com", "CN=one.example.com"),
        ("two.example.com", "CN=*.example.com"),
        (NAME, "CN=server.test"),
    ] {
        let outcome = connect(&server, &["--ca", &setup.ca, "--servername", asked, "-v"]);
        assert_answered(&outcome);
        assert!(outcome.stderr.contains(&format!("peer {subject}, verified")), "{outcome:?}");
    }
    let twice = ["--tls-name", &one, "--tls-name", &one];
    let identity = ["--tls-cert", &setup.files.certificate, "--tls-key", &setup.files.key];
    assert_not_started(&[&identity[..], &twice].concat(), "--tls-name: `one.example.com` has two identities");
    let strange = named("a b", &setup.files);
    let outcome = [&identity[..], &["--tls-name", &strange]].concat();
    assert_not_started(&outcome, "--tls-name: `a b` is neither a DNS name nor one behind `*.`");
}

#[test]
fn versions_tickets_and_the_key_log_are_as_asked() {
    let setup = Setup::new("tls-options");
    let log = setup.folder.path("keys.log");
    for tickets in [true, false] {
        let mut more =
            vec!["--tls-13-only", "--tls-handshake", "9s", "--tls-handshakes", "10", "--tls-key-log", &log];
        more.extend((!tickets).then_some("--tls-no-tickets"));
        let server = setup.serve("async", &more);
        let connector = connector(&setup);
        let first = hello(server.address, &connector).expect("it is let in");
        assert!(!first.is_resumed());
        let second = hello(server.address, &connector).expect("it is let in");
        assert_eq!(second.is_resumed(), tickets);
    }
    assert!(fs::read_to_string(&log).unwrap().contains("CLIENT_HANDSHAKE_TRAFFIC_SECRET "));
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&log, fs::Permissions::from_mode(0o644)).unwrap();
    let identity = ["--tls-cert", &setup.files.certificate, "--tls-key", &setup.files.key];
    let more = [&identity[..], &["--tls-key-log", &log]].concat();
    assert_not_started(&more, "others than its owner have access to it (mode 644)");
}

#[test]
fn a_handshake_has_a_deadline() {
    let setup = Setup::new("tls-deadline");
    let server = setup.serve("async", &["--tls-handshake", "50ms", "-vv"]);
    let client = server.connect();
    server.process.await_message("TLS handshake deadline passed");
    drop(client);
    let outcome = server.end(Signal::TERM);
    assert!(outcome.stderr.contains("1 TLS handshake deadline passed"), "{outcome:?}");
}

#[test]
fn an_end_without_close_notify_is_told_unless_it_is_tolerated() {
    let setup = Setup::new("tls-truncated");
    for (style, tolerates) in [("async", false), ("async", true), ("event", false), ("event", true)] {
        let server = setup.serve(style, if tolerates { &["--tls-tolerate-truncation"] } else { &[] });
        let args = ["connect", &server.address.to_string(), "--tls", "--ca", &setup.ca, "--servername", NAME];
        let mut client = Process::start(wharf(args).stdout(Stdio::piped()));
        let (mut input, mut output) = (client.stdin(), client.stdout());
        input.write_all(b"hello").unwrap();
        output.read_exact(&mut [0; 5]).unwrap();
        // The kernel ends the connection for it, and knows nothing of TLS.
        client.signal(Signal::KILL);
        client.outcome();
        let outcome = server.end(Signal::TERM);
        let reason =
            if tolerates { "1 closed by the peer" } else { "1 TLS: the peer ended without close_notify" };
        assert!(outcome.stderr.contains(reason), "{style}: {outcome:?}");
    }
}

#[test]
fn an_expired_certificate_is_served_and_told() {
    let setup = Setup::new("tls-expired");
    setup.authority.issue_expired(NAME).write(&setup.folder, "server");
    let server = setup.serve("async", &[]);
    server
        .process
        .await_message("TLS: server.test until 2020-02-03T00:00:00Z, EXPIRED, so clients refuse it");
    assert_refused(&setup.connect(&server, &[]), "certificate expired");
}

#[test]
fn a_file_of_options_may_say_all_of_it() {
    let setup = Setup::new("tls-file");
    let Files { certificate, key } = &setup.files;
    let (ca, other) = (&setup.ca, setup.authority.issue("other.test").write(&setup.folder, "other"));
    let all = format!(
        "listen = 127.0.0.1:0\ntls-cert = {certificate}\ntls-key = {key}\n\
         tls-client-ca = {ca}\ntls-client-optional = on\nalpn = echo/1\ntls-13-only = on\n\
         tls-handshake = 3s\ntls-handshakes = 99\ntls-tolerate-truncation = on\ntls-no-tickets = on\ntls-watch = off\n"
    );
    let file = setup.folder.write("wharf.conf", &all);
    let server = Server::of(wharf(["serve", "echo", "--config", &file]));
    assert_answered(&setup.connect(&server, &[]));

    // All of it can change while the server runs.
    let named = format!("{all}tls-name = other.test={}:{}\n", other.certificate, other.key);
    setup.folder.write("wharf.conf", &named.replace("tls-client-optional", "# "));
    server.process.signal(Signal::HUP);
    let said = server.process.await_message("TLS: other.test until ");
    assert!(said.contains(&format!("reloaded {file}")) && !said.contains("warning"), "{said}");
    assert_refused(&setup.connect(&server, &[]), "certificate_required");
    let Files { certificate, key } = &other;
    let shown = ["--ca", ca, "--servername", "other.test", "--cert", certificate, "--key", key];
    assert_answered(&connect(&server, &shown));

    setup.folder.write("wharf.conf", &named.replace("other.pem", "missing.pem"));
    server.process.signal(Signal::HUP);
    let said = server.process.await_message("reload failed");
    let missing = setup.folder.path("missing.pem");
    assert!(
        said.contains(&format!("all stays as it was: --tls-name: load {missing}: no such file")),
        "{said}"
    );
    assert_answered(&connect(&server, &shown));

    setup.folder.write("wharf.conf", "idle-timeout = 5s\n");
    server.process.signal(Signal::HUP);
    let said = server.process.await_message("warning: ");
    assert!(said.contains("stays as it was: listen, tls-cert, tls-key, "), "{said}");
    assert_answered(&connect(&server, &shown));
}

#[test]
fn files_that_have_changed_are_seen_and_no_handshake_fails() {
    let setup = Setup::new("tls-watch");
    // As volumes of Kubernetes are: all files change at once, by one link.
    let publish = |version: &str| {
        fs::create_dir(setup.folder.path(version)).unwrap();
        let made = setup.authority.issue(NAME);
        setup.folder.write(&format!("{version}/tls.crt"), &made.certificate);
        setup.folder.write(&format!("{version}/tls.key"), &made.key);
        let link = setup.folder.path("..next");
        symlink(version, &link).unwrap();
        fs::rename(link, setup.folder.path("..data")).unwrap();
        made.der
    };
    let first = publish("v1");
    let (certificate, key) = (setup.folder.path("..data/tls.crt"), setup.folder.path("..data/tls.key"));
    let server = Server::start(
        "echo",
        "async",
        &["--tls-cert", &certificate, "--tls-key", &key, "--tls-watch", "100ms"],
    );
    let visitors = Visitors::start(server.address, &setup);
    assert_shows(&server, &setup, &first);
    for version in ["v2", "v3"] {
        let next = publish(version);
        server.process.await_message("TLS: the files have changed");
        server.process.await_message(&format!("TLS: {NAME} until "));
        assert_shows(&server, &setup, &next);
    }
    assert!(visitors.end() > 0);
}

#[test]
fn a_signal_has_files_read_again_and_no_handshake_fails() {
    let setup = Setup::new("tls-hup");
    let server = setup.serve("async", &["--tls-watch", "off"]);
    let visitors = Visitors::start(server.address, &setup);
    for _ in 0..5 {
        let made = setup.authority.issue(NAME);
        made.write(&setup.folder, "server");
        server.process.signal(Signal::HUP);
        server.process.await_message("TLS: the files have changed");
        assert_shows(&server, &setup, &made.der);
    }
    let last = hello(server.address, &connector(&setup)).expect("it is let in");
    setup.folder.write("server.key", "");
    server.process.signal(Signal::HUP);
    let said = server.process.await_message("error: TLS stays as it was");
    assert!(said.contains(&format!("load {}: is empty", setup.files.key)), "{said}");
    assert_shows(&server, &setup, last.chain().next().unwrap());
    assert!(visitors.end() > 0);
}

#[test]
fn a_bad_new_file_is_told_once_and_changes_nothing() {
    let setup = Setup::new("tls-bad");
    for quiet in [false, true] {
        let first = setup.authority.issue(NAME);
        first.write(&setup.folder, "server");
        let mut more = vec!["--tls-watch", "100ms"];
        more.extend(quiet.then_some("--quiet"));
        let server = setup.serve("async", &more);
        let mut said = String::new();
        for (text, problem) in
            [("garbage\n", "is not PEM: there is no line with `-----BEGIN`"), ("", "is empty")]
        {
            setup.folder.write("server.pem", text);
            said += &server.process.await_message("error: TLS stays as it was");
            assert!(said.contains(&setup.files.certificate) && said.contains(problem), "{said}");
            assert_shows(&server, &setup, &first.der);
        }
        let second = setup.authority.issue(NAME);
        second.write(&setup.folder, "server");
        let until = Instant::now() + LIMIT;
        while hello(server.address, &connector(&setup)).expect("it is let in").chain().next()
            != Some(&second.der)
        {
            assert!(Instant::now() < until, "the new certificate is not seen");
            thread::yield_now();
        }
        said += &server.end(Signal::TERM).stderr;
        // Between the two files of the last change there may be a look, too.
        let told = said.matches("error: TLS stays as it was").count();
        assert!((2..=3).contains(&told), "{said}");
        assert_eq!(said.contains("the files have changed"), !quiet, "{said}");
    }
}

#[test]
fn options_without_their_partner_are_refused() {
    let identity = "--tls-cert and --tls-key, or --tls-self-signed";
    let cases: [(&[&str], &str); 17] = [
        (&["--tls-cert", "x"], "--tls-cert needs --tls-key"),
        (&["--tls-key", "x"], "--tls-key needs --tls-cert"),
        (&["--tls-self-signed", "--tls-cert", "x"], "--tls-cert and --tls-self-signed exclude each other"),
        (&["--tls-self-signed", "--tls-key", "x"], "--tls-key needs --tls-cert"),
        (&["--tls-self-signed", "--tls-ocsp", "x"], "--tls-ocsp needs --tls-cert and --tls-key"),
        (&["--tls-self-signed", "--tls-crl", "x"], "--tls-crl needs --tls-client-ca"),
        (&["--tls-self-signed", "--tls-client-optional"], "--tls-client-optional needs --tls-client-ca"),
        (&["--tls-name", "a=b:c"], "--tls-name needs "),
        (&["--tls-client-ca", "x"], "--tls-client-ca needs "),
        (&["--alpn", "x"], "--alpn needs "),
        (&["--tls-13-only"], "--tls-13-only needs "),
        (&["--tls-handshake", "1s"], "--tls-handshake needs "),
        (&["--tls-handshakes", "1"], "--tls-handshakes needs "),
        (&["--tls-key-log", "x"], "--tls-key-log needs "),
        (&["--tls-tolerate-truncation"], "--tls-tolerate-truncation needs "),
        (&["--tls-no-tickets"], "--tls-no-tickets needs "),
        (&["--tls-watch", "1s"], "--tls-watch needs "),
    ];
    for (more, expected) in cases {
        let mut command = wharf(["serve", "echo", "--listen", "127.0.0.1:0"]);
        let outcome = Process::run(command.args(more), Vec::new());
        let expected =
            if expected.ends_with(' ') { format!("{expected}{identity}") } else { expected.into() };
        assert_eq!(outcome.code, Some(2), "{more:?}: {outcome:?}");
        assert!(outcome.stderr.starts_with(&format!("error: {expected}")), "{more:?}: {outcome:?}");
    }
    let folder = Folder::new("tls-partner");
    let file = folder.write("wharf.conf", "listen = 127.0.0.1:0\ntls-cert = x\n");
    let outcome = Process::run(&mut wharf(["serve", "echo", "--config", &file]), Vec::new());
    let expected = format!("wharf: --tls-cert needs --tls-key, in {file} or on the command line\n");
    assert_eq!((outcome.code, outcome.stderr), (Some(1), expected));

    let cases: [(&[&str], &str); 11] = [
        (&["--ca", "x"], "--ca needs --tls"),
        (&["--servername", "x"], "--servername needs --tls"),
        (&["--alpn", "x"], "--alpn needs --tls"),
        (&["--cert", "x"], "--cert needs --tls"),
        (&["--key", "x"], "--key needs --tls"),
        (&["--pin", &"0".repeat(64)], "--pin needs --tls"),
        (&["--tls-13-only"], "--tls-13-only needs --tls"),
        (&["--insecure"], "--insecure needs --tls"),
        (&["--tls", "--cert", "x"], "--cert needs --key"),
        (&["--tls", "--key", "x"], "--key needs --cert"),
        (&["--tls", "--insecure", "--ca", "x"], "--insecure and --ca exclude each other"),
    ];
    let nameless = Process::run(&mut wharf(["connect", "unix:/nowhere", "--tls"]), Vec::new());
    assert_eq!(nameless.code, Some(2), "{nameless:?}");
    assert!(
        nameless.stderr.starts_with("error: TLS through a Unix socket needs --servername"),
        "{nameless:?}"
    );
    for (more, expected) in cases {
        let outcome = Process::run(wharf(["connect", "127.0.0.1:1"]).args(more), Vec::new());
        assert_eq!(outcome.code, Some(2), "{more:?}: {outcome:?}");
        assert!(outcome.stderr.starts_with(&format!("error: {expected}")), "{more:?}: {outcome:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_key_log_without_room_is_told_and_keeps_nobody_from_being_served() {
    let setup = Setup::new("tls-full");
    let server = setup.serve("async", &["--tls-key-log", "/dev/full"]);
    assert_answered(&setup.connect(&server, &[]));
    let told = server.process.await_message("keys cannot be written to the key log");
    assert!(told.contains("no space left on device"), "{told}");
}

#[test]
fn values_that_make_no_sense_and_files_that_cannot_be_used_are_refused() {
    for (option, value, problem) in [
        ("--tls-watch", "1ms", "must be at least 100ms; `off` turns it off"),
        ("--tls-watch", "5", "the unit is missing"),
        ("--tls-handshake", "0s", "must be longer than zero"),
        ("--tls-handshakes", "0", "0 is not in 1.."),
        ("--tls-name", "a.test", "must be NAME=CERT:KEY; there is no `=`"),
        ("--alpn", "a,,b", "a protocol has a name of 1 to 255 bytes"),
    ] {
        let mut command = wharf(["serve", "echo", "--listen", "127.0.0.1:0", option, value]);
        let outcome = Process::run(&mut command, Vec::new());
        assert_eq!(outcome.code, Some(2), "{option} {value}: {outcome:?}");
        assert!(outcome.stderr.contains(option) && outcome.stderr.contains(problem), "{outcome:?}");
    }
    let setup = Setup::new("tls-unusable");
    let Files { certificate, key } = &setup.files;
    let garbage = setup.folder.write("garbage", "garbage");
    let missing = setup.folder.path("missing");
    assert_not_started(
        &["--tls-cert", &missing, "--tls-key", key],
        &format!("--tls-cert and --tls-key: load {missing}: no such file or directory"),
    );
    assert_not_started(
        &["--tls-cert", certificate, "--tls-key", certificate],
        &format!("--tls-cert and --tls-key: load {certificate}: no private key"),
    );
    let identity = ["--tls-cert", certificate, "--tls-key", key];
    for (more, problem) in [
        (vec!["--tls-client-ca", &garbage], format!("--tls-client-ca: load {garbage}: ")),
        (vec!["--tls-client-ca", &setup.ca, "--tls-crl", &garbage], format!("--tls-crl: load {garbage}: ")),
        (vec!["--tls-ocsp", &garbage], format!("--tls-ocsp: load {garbage}: ")),
    ] {
        assert_not_started(&[&identity[..], &more].concat(), &problem);
    }
    assert_not_started(
        &["--tls-self-signed=a b"],
        "load a self-signed certificate: cannot be made: `a b` is neither a DNS name nor an address",
    );
}

fn assert_not_started(more: &[&str], why: &str) {
    let outcome = Process::run(wharf(["serve", "echo", "--listen", "127.0.0.1:0"]).args(more), Vec::new());
    assert_refused(&outcome, why);
    assert_eq!(outcome.stderr.lines().count(), 1, "{outcome:?}");
}

/// Clients that come one after another, and are all to be served.
struct Visitors {
    enough: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Visitors {
    fn start(server: SocketAddr, setup: &Setup) -> Visitors {
        let enough = Arc::new(AtomicBool::new(false));
        let (connector, until) = (connector(setup), enough.clone());
        let thread = thread::spawn(move || {
            let mut served = 0;
            while !until.load(Ordering::Relaxed) {
                hello(server, &connector).expect("nobody is turned away");
                served += 1;
            }
            served
        });
        Visitors { enough, thread }
    }

    /// Returns how many there were.
    fn end(self) -> usize {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().expect("none failed")
    }
}

fn connector(setup: &Setup) -> Connector {
    let trust = Trust::from_pem(setup.authority.pem()).expect("a root");
    Connector::new(ClientTls::new().trust(trust).server_name(NAME)).expect("it can be used")
}

/// Shakes hands, and has five bytes come back.
fn hello(server: SocketAddr, connector: &Connector) -> wharf::Result<Info> {
    wharf::run(async {
        let mut conn = Client::new(server).tls(connector).open().await?;
        conn.send(b"hello").await?;
        let mut came = [0; 5];
        conn.recv_exact(&mut came).within(LIMIT).await?;
        assert_eq!(&came, b"hello");
        let info = conn.tls().expect("it has begun with TLS");
        conn.finish().await?;
        assert_eq!(conn.recv(&mut came).within(LIMIT).await?, 0);
        Ok(info)
    })?
}

fn assert_shows(server: &Server, setup: &Setup, certificate: &[u8]) {
    let info = hello(server.address, &connector(setup)).expect("it is let in");
    assert!(info.chain().next() == Some(certificate), "it shows another certificate");
}
