//! `openssl s_client` with a server of Wharf's.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use wharf::blocking::{self, Listener};
use wharf::tls::{Acceptor, ClientCertificates, Identity, ServerTls, Verification, Version};
use wharf::{CertificateFault, CloseReason, TlsAlert, TlsFault};

use super::papers::{Pair, Papers, ecdsa_tls, rsa_tls};
use super::program::{Program, command, is_here};
use super::site::{Site, client, on_each};
use crate::common::tls::*;
use crate::common::{Style, assert_pattern, pattern, recv_all};

/// Much more than fits into the buffers on the way.
const BULK: usize = 3 << 20;

const VERSIONS: [(&str, Version); 2] = [("-tls1_2", Version::Tls12), ("-tls1_3", Version::Tls13)];

fn s_client(papers: &Papers, site: &Site, more: &[&str]) -> std::process::Command {
    s_client_of(papers, site.address(), more)
}

fn s_client_of(papers: &Papers, address: SocketAddr, more: &[&str]) -> std::process::Command {
    let mut s_client = command("openssl", ["s_client", "-connect", &address.to_string()]);
    s_client.args(["-CAfile", &papers.ca(), "-servername", NAME, "-verify_hostname", NAME]);
    s_client.arg("-verify_return_error").args(more);
    s_client
}

/// One that has shaken hands, and has got back what it said.
fn standing(papers: &Papers, site: &Site, more: &[&str]) -> Program {
    let mut program = Program::start(&mut s_client(papers, site, more));
    echoed(&mut program, "hello");
    program
}

fn echoed(program: &mut Program, word: &str) {
    program.say(format!("{word}\n"));
    program.await_text(&format!("{word}\n"));
}

/// Ends its input, at which it says close_notify and ends; returns all that it printed.
fn left(mut program: Program) -> String {
    program.hush();
    let outcome = program.outcome();
    assert_eq!(outcome.code, Some(0), "{}", outcome.all);
    outcome.all
}

#[test]
fn s_client_talks_to_a_server_in_blocking_style() {
    if !is_here("openssl") {
        return;
    }
    let papers = Papers::new();
    let listener = Listener::bind("127.0.0.1:0").unwrap().tls(&Acceptor::new(ecdsa_tls()).unwrap());
    let server = listener.serve(|mut conn: blocking::Connection| {
        while let Some(chunk) = conn.recv_chunk()? {
            conn.send(&chunk)?;
        }
        Ok(())
    });
    let server = server.unwrap();
    for (option, version) in VERSIONS {
        let address = server.local_addr().socket().unwrap();
        let mut program = Program::start(&mut s_client_of(&papers, address, &[option]));
        echoed(&mut program, "hello");
        echoed(&mut program, "and again");
        let all = left(program);
        let told = if version == Version::Tls13 { "TLSv1.3" } else { "TLSv1.2" };
        assert!(all.contains(told), "{all}");
    }
    let stats = server.drain(Duration::from_secs(20)).wait().unwrap();
    assert_eq!((stats.handshakes, stats.closed(CloseReason::Peer)), (2, 2));
}

/// TLS 1.3 has three suites here, TLS 1.2 six: three for each kind of key.
#[test]
fn each_cipher_suite_of_both_versions_is_spoken_with_s_client() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let sites = [Site::echo(backend, ecdsa_tls()), Site::echo(backend, rsa_tls())];
        for (theirs, ours) in super::SUITES {
            let site = &sites[usize::from(theirs.contains("RSA"))];
            let options = if theirs.starts_with("TLS_") {
                ["-tls1_3", "-ciphersuites", theirs]
            } else {
                ["-tls1_2", "-cipher", theirs]
            };
            let program = standing(&papers, site, &options);
            assert_eq!(site.agreed().cipher(), ours);
            let all = left(program);
            assert!(all.contains(&format!("Cipher is {theirs}")), "{all}");
            assert_eq!(site.ended(), CloseReason::Peer, "{theirs}");
        }
    });
}

/// A first try with a group that Wharf does not have, so that it asks for another.
#[test]
fn s_client_is_asked_to_say_hello_again_with_another_group() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let (papers, site) = (Papers::new(), Site::echo(backend, ecdsa_tls()));
        for group in ["X25519", "P-256", "P-384"] {
            let groups = format!("P-521:{group}");
            let program = standing(&papers, &site, &["-tls1_3", "-groups", &groups, "-msg"]);
            let all = left(program);
            assert_eq!(all.matches(", ClientHello").count(), 2, "{all}");
            assert_eq!(site.ended(), CloseReason::Peer);
        }
        let refused = Program::run(&mut s_client(&papers, &site, &["-tls1_3", "-groups", "P-521"]));
        assert!(refused.all.contains("alert handshake failure"), "{}", refused.all);
        assert_eq!(site.refused(), CloseReason::Tls(TlsFault::Parameters));
    });
}

/// Fed and read at once, in both styles; and in records of other shapes.
#[test]
fn megabytes_come_back_to_s_client_as_they_were() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        for style in [Style::Async, Style::Event] {
            let site = Site::echo_in(style, backend, ecdsa_tls());
            let ways: [&[&str]; 4] = [
                &["-tls1_2"],
                &["-tls1_3"],
                &["-tls1_3", "-max_send_frag", "700"],
                &["-tls1_3", "-record_padding", "1000"],
            ];
            for way in ways {
                let mut s_client = s_client(&papers, &site, way);
                let mut program = Program::start(s_client.args(["-quiet", "-no_ign_eof", "-nocommands"]));
                let feeding = program.feed(pattern(0..BULK));
                let came = program.await_bytes(BULK);
                assert_eq!(came.len(), BULK);
                assert_pattern(&came, 0);
                drop(feeding.join().unwrap());
                let outcome = program.outcome();
                assert_eq!((outcome.code, outcome.out.len()), (Some(0), BULK));
                assert_eq!(site.ended(), CloseReason::Peer, "{way:?}");
            }
        }
    });
}

/// By a file, as a client does that comes back later, and at once.
#[test]
fn s_client_resumes_its_sessions() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let (papers, site) = (Papers::new(), Site::echo(backend, ecdsa_tls()));
        for (option, version) in VERSIONS {
            let file = papers.path(option);
            for (direction, is_resumed) in [("-sess_out", false), ("-sess_in", true)] {
                let program = standing(&papers, &site, &[option, direction, &file]);
                let agreed = site.agreed();
                assert_eq!((agreed.version(), agreed.is_resumed()), (version, is_resumed));
                let all = left(program);
                assert!(all.contains(if is_resumed { "Reused, TLSv" } else { "New, TLSv" }), "{all}");
                assert_eq!(site.ended(), CloseReason::Peer);
            }
        }
        // It connects five times more, and only in TLS 1.2 with what it got.
        let program = Program::start(&mut s_client(&papers, &site, &["-tls1_2", "-reconnect"]));
        assert!(!site.agreed().is_resumed());
        for _ in 0..5 {
            assert!(site.agreed().is_resumed());
        }
        let all = left(program);
        assert_eq!(all.matches("Reused, TLSv1.2").count(), 5, "{all}");
    });
}

#[test]
fn s_client_cannot_resume_where_there_are_no_tickets() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let (papers, site) = (Papers::new(), Site::echo(backend, ecdsa_tls().tickets(false)));
        let program = Program::start(&mut s_client(&papers, &site, &["-tls1_2", "-reconnect"]));
        for _ in 0..6 {
            assert!(!site.agreed().is_resumed());
        }
        left(program);
    });
}

fn shows(pair: &Pair) -> [&str; 4] {
    ["-cert", &pair.0, "-key", &pair.1]
}

#[test]
fn s_client_has_to_show_a_certificate_that_is_trusted() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let tls = ecdsa_tls().client_certificates(ClientCertificates::required(AUTHORITY.trust()));
        let site = Site::echo(backend, tls);
        let (known, stranger) = (papers.client(), papers.stranger());
        for (option, _) in VERSIONS {
            let mut more = vec![option];
            more.extend(shows(&known));
            let program = standing(&papers, &site, &more);
            assert_eq!(site.agreed().verification(), Verification::Verified);
            left(program);
            assert_eq!(site.ended(), CloseReason::Peer);

            more.truncate(1);
            // Its input stays open: at the end of that it would go before it is refused.
            let none = Program::start(&mut s_client(&papers, &site, &more)).outcome();
            assert!(none.all.contains("alert certificate required"), "{}", none.all);
            let missing = TlsFault::Certificate(CertificateFault::Missing);
            assert_eq!(site.refused(), CloseReason::Tls(missing));

            more.extend(shows(&stranger));
            let refused = Program::start(&mut s_client(&papers, &site, &more)).outcome();
            assert!(refused.all.contains("alert unknown ca"), "{}", refused.all);
            let unknown = TlsFault::Certificate(CertificateFault::UnknownIssuer);
            assert_eq!(site.refused(), CloseReason::Tls(unknown));
        }
        assert_eq!(site.end().handshakes, 2);
    });
}

#[test]
fn s_client_agrees_on_a_protocol_or_is_told_that_there_is_none() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let (papers, site) = (Papers::new(), Site::echo(backend, ecdsa_tls().alpn(["echo/2", "echo/1"])));
        for (option, _) in VERSIONS {
            let program = standing(&papers, &site, &[option, "-alpn", "chat,echo/1,echo/2"]);
            assert_eq!(site.agreed().alpn(), Some(&b"echo/2"[..]));
            let all = left(program);
            assert!(all.contains("ALPN protocol: echo/2"), "{all}");
            let refused = Program::run(&mut s_client(&papers, &site, &[option, "-alpn", "chat"]));
            assert!(refused.all.contains("alert no application protocol"), "{}", refused.all);
            assert_eq!(site.refused(), CloseReason::Tls(TlsFault::Protocol));
        }
    });
}

/// Without being asked for a new key in return, and with it. Each key begins to count from 0, and each letter is
/// protected by the next.
#[test]
fn s_client_renews_its_keys_again_and_again() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        for style in [Style::Async, Style::Event] {
            let (papers, site) = (Papers::new(), Site::echo_in(style, backend, ecdsa_tls()));
            let mut program = standing(&papers, &site, &["-tls1_3", "-msg"]);
            for (round, letter) in ["k", "K", "k", "k", "K", "K"].into_iter().enumerate() {
                program.say(format!("{letter}\n"));
                program.await_text("KEYUPDATE");
                for word in 0..3 {
                    echoed(&mut program, &format!("round {round} word {word}"));
                }
            }
            let all = left(program);
            let updates = |side: &str| {
                all.lines().filter(|line| line.starts_with(side) && line.ends_with(", KeyUpdate")).count()
            };
            assert_eq!((updates(">>>"), updates("<<<")), (6, 3), "{all}");
            assert_eq!(site.ended(), CloseReason::Peer);
        }
    });
}

/// OpenSSL gives up when it is told no; all others go on.
#[test]
fn s_client_may_not_renegotiate() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let (papers, site) = (Papers::new(), Site::echo(backend, ecdsa_tls()));
        let mut other = standing(&papers, &site, &["-tls1_2"]);
        let mut program = standing(&papers, &site, &["-tls1_2", "-msg"]);
        program.say("R\n");
        let outcome = program.outcome();
        assert!(outcome.all.contains("warning no_renegotiation"), "{}", outcome.all);
        assert!(outcome.all.contains("no renegotiation"), "{}", outcome.all);
        assert_eq!(site.ended(), CloseReason::Tls(TlsFault::Alert(TlsAlert(40))));
        echoed(&mut other, "still here");
        left(other);
        assert_eq!(site.ended(), CloseReason::Peer);
    });
}

#[test]
fn an_s_client_that_is_killed_has_not_ended_but_broken_off() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        for (option, _) in VERSIONS {
            for style in [Style::Async, Style::Event] {
                let site = Site::echo_in(style, backend, ecdsa_tls());
                standing(&papers, &site, &[option]).kill();
                assert_eq!(site.ended(), CloseReason::Tls(TlsFault::Truncated));
                let site = Site::echo_in(style, backend, ecdsa_tls().tolerate_truncation());
                standing(&papers, &site, &[option]).kill();
                assert_eq!(site.ended(), CloseReason::Peer);
            }
        }
    });
}

/// One that takes its time within the handshake, and one that says nothing at all.
#[test]
fn an_s_client_that_stops_within_the_handshake_is_given_up() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let within = Duration::from_millis(1500);
        let (papers, site) = (Papers::new(), Site::echo(backend, ecdsa_tls().handshake_within(within)));
        let began = Instant::now();
        let silent = std::net::TcpStream::connect(site.address()).unwrap();
        assert_eq!(site.refused(), CloseReason::Timeout(wharf::Deadline::Handshake));
        assert!(began.elapsed() >= within);
        drop(silent);
        left(standing(&papers, &site, &[]));
    });
}

/// Whoever closes says so before FIN: `s_client` would call it an unexpected end otherwise.
#[test]
fn s_client_sees_the_end_that_wharf_says() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let site = Site::serve(backend, ecdsa_tls(), |mut conn| async move {
            conn.recv(&mut [0; 8]).await?;
            conn.send(b"last words\n").await
        });
        for (option, _) in VERSIONS {
            let mut program = Program::start(&mut s_client(&papers, &site, &[option, "-msg"]));
            program.say("hello\n");
            program.await_text("last words");
            let outcome = program.outcome();
            assert!(outcome.all.contains("warning close_notify"), "{}", outcome.all);
            assert!(!outcome.all.contains("unexpected eof"), "{}", outcome.all);
            assert_eq!(outcome.code, Some(0), "{}", outcome.all);
            assert_eq!(site.ended(), CloseReason::Local);
        }
    });
}

/// The response is one that OpenSSL has made, of a certificate that vouches for itself.
#[test]
fn s_client_is_shown_the_ocsp_response() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let (chain, key) = (papers.path("own.pem"), papers.path("own.key"));
        let mut make = command("openssl", ["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]);
        make.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", &key, "-out", &chain]);
        make.args(["-subj", &format!("/CN={NAME}"), "-addext", &format!("subjectAltName=DNS:{NAME}")]);
        make.args(["-set_serial", "0x1234", "-addext", "basicConstraints=critical,CA:FALSE"]);
        let made = Program::run(&mut make);
        assert_eq!(made.code, Some(0), "{}", made.all);
        let index = papers.write("index", format!("V\t401231235959Z\t\t1234\tunknown\t/CN={NAME}\n"));
        let response = papers.path("ocsp.der");
        let mut answer = command("openssl", ["ocsp", "-index", &index, "-CA", &chain, "-ndays", "1"]);
        answer.args(["-rsigner", &chain, "-rkey", &key, "-issuer", &chain, "-cert", &chain]);
        let made = Program::run(answer.args(["-noverify", "-respout", &response]));
        assert_eq!(made.code, Some(0), "{}", made.all);

        let identity = Identity::from_files(&chain, &key).unwrap().ocsp_file(&response).unwrap();
        let site = Site::echo(backend, ServerTls::new(identity));
        for (option, _) in VERSIONS {
            let mut asks = command("openssl", ["s_client", "-connect", &site.address().to_string()]);
            asks.args(["-CAfile", &chain, "-servername", NAME, "-verify_return_error", "-status", option]);
            let mut program = Program::start(&mut asks);
            echoed(&mut program, "hello");
            let all = left(program);
            for part in ["OCSP Response Status: successful (0x0)", "Serial Number: 1234", "Cert Status: good"]
            {
                assert!(all.contains(part), "{part}: {all}");
            }
        }
    });
}

/// What SMTP calls STARTTLS, as `s_client` speaks it, and back.
#[test]
fn s_client_begins_tls_in_mid_stream() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let (papers, acceptor) = (Papers::new(), acceptor());
        let site = Site::plain(backend, move |mut conn| {
            let acceptor = acceptor.clone();
            async move {
                conn.send(b"220 here\r\n").await?;
                assert!(line(&mut conn).await?.starts_with("EHLO "));
                conn.send(b"250-here\r\n250 STARTTLS\r\n").await?;
                assert_eq!(line(&mut conn).await?, "STARTTLS");
                conn.send(b"220 go ahead\r\n").await?;
                conn.accept_tls(&acceptor).await?;
                conn.send(b"220 protected\r\n").await?;
                let word = line(&mut conn).await?;
                conn.send(format!("{word} came\r\n").as_bytes()).await?;
                assert!(recv_all(&mut conn).await?.is_empty());
                Ok(())
            }
        });
        for (option, _) in VERSIONS {
            let mut program =
                Program::start(&mut s_client(&papers, &site, &[option, "-starttls", "smtp", "-crlf"]));
            program.await_text("220 protected");
            program.say("hello\n");
            program.await_text("hello came");
            left(program);
            assert_eq!(site.ended(), CloseReason::Peer);
        }
    });
}

/// The next line, without its end.
async fn line(conn: &mut wharf::Connection) -> wharf::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        conn.recv_exact(&mut byte).await?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line[..line.len() - 2]).into_owned())
}

#[test]
fn a_wharf_that_is_nobody_for_s_client_is_told_so() {
    if !is_here("openssl") {
        return;
    }
    on_each(|backend| {
        let papers = Papers::new();
        let site = Site::echo(backend, ServerTls::new(Authority::new("Nobody").identity(NAME)));
        for (option, _) in VERSIONS {
            let refused = Program::run(&mut s_client(&papers, &site, &[option]));
            assert_eq!(refused.code, Some(1), "{}", refused.all);
            assert_eq!(site.refused(), CloseReason::Tls(TlsFault::Alert(TlsAlert(48))));
        }
        // It goes on for others.
        client(backend, {
            let address = site.address();
            async move {
                let any = wharf::tls::ClientTls::new().danger_accept_any_certificate().server_name(NAME);
                let connector = wharf::tls::Connector::new(any).unwrap();
                let mut conn = wharf::Client::new(address).tls(&connector).open().await.unwrap();
                conn.send(b"hello").await.unwrap();
                conn.recv_exact(&mut [0; 5]).await.unwrap();
            }
        });
    });
}
