//! TLS, on every backend and in both styles: what goes through it, what the two sides agree on, and whom they take each other for.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
mod common;

use std::net::SocketAddr;

use rcgen::{ExtendedKeyUsagePurpose, SerialNumber, date_time_ymd};
use wharf::tls::{
    Acceptor, ClientCertificates, ClientTls, Connector, Identity, ServerTls, Verification, Version,
};
use wharf::{
    CertificateFault, Client, CloseReason, Connection, ErrorKind, Limits, Server, SocketOptions, TlsAlert,
    TlsFault,
};

use common::behaviours::*;
use common::tls::*;
use common::*;

fn secure(server: Server) -> Server {
    server.tls(&acceptor())
}

fn accepting(tls: ServerTls) -> impl FnOnce(Server) -> Server {
    move |server| server.tls(&Acceptor::new(tls).unwrap())
}

async fn open(address: SocketAddr, tls: ClientTls) -> wharf::Result<Connection> {
    Client::new(address).tls(&Connector::new(tls).unwrap()).open().await
}

fn certificate(fault: CertificateFault) -> TlsFault {
    TlsFault::Certificate(fault)
}

scenario! {
    /// Much of it, so that records are divided, and in both directions at once.
    fn bytes_go_through_tls_as_they_are(world) {
        let server = world.serve_with(Echo, secure);
        let address = server.local_addr();
        world.run(async move {
            for version in VERSIONS {
                let conn = client_of_version(address, version).open().await.unwrap();
                let (mut read, mut write) = conn.split();
                let text = pattern(0..300_000);
                let writer = wharf::spawn(async move {
                    for part in text.chunks(7_001) {
                        write.send(part).await.unwrap();
                    }
                    write.finish().await.unwrap();
                    write
                });
                let mut all = Vec::new();
                while let Some(chunk) = read.recv_chunk().await.unwrap() {
                    all.extend_from_slice(&chunk);
                }
                assert_eq!(all.len(), 300_000);
                assert_pattern(&all, 0);
                drop(writer.await);
            }
        });
        let stats = world.stop(&server);
        assert_eq!((stats.handshakes, stats.closed(CloseReason::Peer)), (2, 2));
    }
}

scenario! {
    /// Its first part is sealed and offered to the kernel, which does not take all of it, before the rest is queued.
    fn a_message_as_large_as_the_queue_may_be_goes_out_whole(world) {
        const LEN: usize = 400_000;
        let server = world.serve_with(Checksum, secure);
        let address = server.local_addr();
        world.run(async move {
            let limits = Limits::default().send_max(LEN);
            let sockets = SocketOptions::default().send_buffer(4096);
            let mut conn = client(address).limits(limits).sockets(sockets).open().await.unwrap();
            conn.send(&pattern(0..LEN)).await.unwrap();
            conn.finish().await.unwrap();
            assert_eq!(recv_all(&mut conn).await.unwrap(), checksum(&pattern(0..LEN)));
        });
        assert_eq!(world.stop(&server).unsent, 0);
    }
}

scenario! {
    fn both_sides_know_what_they_agreed_on(world) {
        let server = world.serve_with(Tell, accepting(server_tls().alpn(["h2", "http/1.1"])));
        let plain = world.serve(Tell);
        let (address, of_plain) = (server.local_addr(), plain.local_addr());
        world.run(async move {
            let mut conn = open(address, client_tls().alpn(["http/1.1", "h2"])).await.unwrap();
            let info = conn.tls().unwrap();
            assert_eq!((info.version(), info.alpn()), (Version::Tls13, Some(&b"h2"[..])));
            assert_eq!((info.server_name(), info.is_resumed()), (Some(NAME), false));
            assert_eq!((info.verification(), info.chain().len()), (Verification::Verified, 1));
            assert!(info.cipher().starts_with("TLS13_"), "{}", info.cipher());
            assert_eq!(told(&mut conn).await.unwrap(), "Tls13 h2 server.test new Unasked 0");

            // Whoever asks for nothing gets nothing.
            let mut conn = client(address).open().await.unwrap();
            assert_eq!(conn.tls().unwrap().alpn(), None);
            assert_eq!(told(&mut conn).await.unwrap(), "Tls13 - server.test new Unasked 0");

            let mut conn = client_of_version(address, VERSIONS[0]).open().await.unwrap();
            let info = conn.tls().unwrap();
            assert_eq!((info.version(), info.verification()), (Version::Tls12, Verification::Custom));
            assert!(info.cipher().starts_with("TLS_ECDHE_ECDSA_WITH_"), "{}", info.cipher());
            assert_eq!(told(&mut conn).await.unwrap(), "Tls12 - server.test new Unasked 0");

            let mut conn = Client::connect(of_plain).await.unwrap();
            assert!(conn.tls().is_none());
            assert_eq!(told(&mut conn).await.unwrap(), "plain");
        });
        assert_eq!(world.stop(&plain).handshakes, 0);
    }
}

scenario! {
    fn sides_without_a_protocol_in_common_part(world) {
        let failures = Failures::default();
        let acceptor = Acceptor::new(server_tls().alpn(["h2"])).unwrap();
        let server = world.serve_with(Echo, |server| failures.watch(server.tls(&acceptor)));
        let address = server.local_addr();
        world.run(async move {
            let error = open(address, client_tls().alpn(["http/1.1"])).await.unwrap_err();
            assert_eq!(error.tls_fault(), Some(TlsFault::Alert(TlsAlert(120))), "{error}");
            assert_eq!((error.kind(), error.operation()), (ErrorKind::Peer, "connect"));
            assert!(error.to_string().contains("no_application_protocol"), "{error}");
        });
        let stats = world.stop(&server);
        assert_eq!(failures.all(), [(CloseReason::Tls(TlsFault::Protocol), String::new())]);
        assert_eq!((stats.handshakes, stats.handshakes_failed), (0, 1));
        assert_eq!(stats.closed(CloseReason::Tls(TlsFault::Protocol)), 1);
    }
}

scenario! {
    /// By the exact name before a pattern, and the first one for everybody else.
    fn the_name_that_is_asked_for_chooses_the_identity(world) {
        let failures = Failures::default();
        let exact = AUTHORITY.identity("a.wild.test");
        let wild = AUTHORITY.identity("*.wild.test");
        let chosen = [("a.wild.test", Some(exact.clone())), ("b.wild.test", Some(wild.clone())), (NAME, None)];
        let tls = server_tls().identity_for("*.wild.test", wild).identity_for("a.wild.test", exact);
        let open_to_all = world.serve_with(Tell, accepting(tls.clone()));
        let strict = Acceptor::new(tls.refuse_unknown_names()).unwrap();
        let strict = world.serve_with(Tell, |server| failures.watch(server.tls(&strict)));
        let addresses = [open_to_all.local_addr(), strict.local_addr()];
        world.run(async move {
            for (name, identity) in chosen {
                for address in addresses {
                    if name == NAME && address == addresses[1] {
                        continue;
                    }
                    let mut conn = open(address, client_tls().server_name(name)).await.unwrap();
                    let info = conn.tls().unwrap();
                    let own = info.chain().next().map(<[u8]>::to_vec);
                    if let Some(identity) = &identity {
                        assert_eq!(own.as_deref(), identity.chain().next(), "{name}");
                    }
                    assert_eq!(told(&mut conn).await.unwrap(), format!("Tls13 - {name} new Unasked 0"));
                }
            }
            // Nobody can be asked for by an address, so that is no name at all.
            let error = open(addresses[0], client_tls().server_name("192.0.2.7")).await.unwrap_err();
            assert_eq!(error.tls_fault(), Some(certificate(CertificateFault::WrongName)), "{error}");
            let error = open(addresses[1], client_tls().server_name("elsewhere.test")).await.unwrap_err();
            assert_eq!(error.tls_fault(), Some(TlsFault::Alert(TlsAlert(49))), "{error}");
        });
        world.stop(&strict);
        assert_eq!(failures.reasons(), [CloseReason::Tls(TlsFault::UnknownName)]);
    }
}

scenario! {
    fn a_session_is_resumed_if_both_sides_want_that(world) {
        let server = world.serve_with(Tell, secure);
        let without = world.serve_with(Tell, accepting(server_tls().tickets(false)));
        let (address, of_without) = (server.local_addr(), without.local_addr());
        world.run(async move {
            for version in VERSIONS {
                let client = client_of_version(address, version);
                for turn in 0..3 {
                    let mut conn = client.open().await.unwrap();
                    let info = conn.tls().unwrap();
                    assert_eq!(info.is_resumed(), turn > 0);
                    assert_eq!(info.chain().len(), 1, "it is still known who that is");
                    let line = told(&mut conn).await.unwrap();
                    assert_eq!(line.contains("resumed"), turn > 0, "{line}");
                    conn.finish().await.unwrap();
                    assert_eq!(recv_all(&mut conn).await.unwrap(), b"");
                }
            }
            let client = client(of_without);
            let never = Connector::new(client_tls().resumption(false)).unwrap();
            let unwilling = Client::new(address).tls(&never);
            for client in [client, unwilling] {
                for _ in 0..2 {
                    let mut conn = client.open().await.unwrap();
                    assert!(told(&mut conn).await.unwrap().contains("new"));
                }
            }
        });
        let stats = world.stop(&server);
        assert_eq!((stats.handshakes, stats.resumed), (8, 4));
        assert_eq!(world.stop(&without).resumed, 0);
    }
}

scenario! {
    fn a_client_is_known_by_its_certificate(world) {
        let trust = || AUTHORITY.trust();
        let required = server_tls().client_certificates(ClientCertificates::required(trust()));
        let required = world.serve_with(Tell, accepting(required));
        let optional = server_tls().client_certificates(ClientCertificates::optional(trust()));
        let optional = world.serve_with(Tell, accepting(optional));
        let addresses = [required.local_addr(), optional.local_addr()];
        world.run(async move {
            for address in addresses {
                let tls = client_tls().identity(AUTHORITY.identity("client.test"));
                let connector = Connector::new(tls).unwrap();
                for kind in ["new", "resumed"] {
                    let mut conn = Client::new(address).tls(&connector).open().await.unwrap();
                    let line = told(&mut conn).await.unwrap();
                    assert_eq!(line, format!("Tls13 - server.test {kind} Verified 1"));
                }
            }
            let mut conn = client(addresses[1]).open().await.unwrap();
            assert_eq!(told(&mut conn).await.unwrap(), "Tls13 - server.test new Unasked 0");
        });
    }
}

scenario! {
    /// In TLS 1.3 it believes that the handshake went well, and learns of it with its first read.
    fn a_client_without_a_good_certificate_is_told_what_is_wrong_with_it(world) {
        let failures = Failures::default();
        let tls = server_tls().client_certificates(ClientCertificates::required(AUTHORITY.trust()));
        let acceptor = Acceptor::new(tls).unwrap();
        let server = world.serve_with(Tell, |server| failures.watch(server.tls(&acceptor)));
        let address = server.local_addr();
        let stranger = Authority::new("Somebody else");
        world.run(async move {
            let old = AUTHORITY.identity_that("client.test", |params| params.not_after = date_time_ymd(2024, 2, 29));
            let servers = AUTHORITY.identity_that("client.test", |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            });
            let cases = [
                (None, 116),
                (Some(stranger.identity("client.test")), 48),
                (Some(old), 45),
                (Some(servers), 43),
            ];
            for (identity, alert) in cases {
                let tls = match identity {
                    Some(identity) => client_tls().identity(identity),
                    None => client_tls(),
                };
                let mut conn = open(address, tls).await.unwrap();
                let error = conn.recv(&mut [0; 1]).await.unwrap_err();
                let fault = TlsFault::Alert(TlsAlert(alert));
                assert_eq!(error.tls_fault(), Some(fault), "{error}");
                assert_eq!((error.close_reason(), error.kind()), (Some(CloseReason::Tls(fault)), ErrorKind::Peer));
                assert_eq!(conn.closed().await, CloseReason::Tls(fault));
            }
            let error = client_of_version(address, VERSIONS[0]).open().await.unwrap_err();
            assert!(matches!(error.tls_fault(), Some(TlsFault::Alert(_))), "{error}");
        });
        let stats = world.stop(&server);
        let expected = [
            (CertificateFault::Missing, ""),
            (CertificateFault::UnknownIssuer, "that of CN=rcgen self signed cert is issued by CN=Somebody else, and"),
            (CertificateFault::Expired, "valid until 2024-02-29 00:00:00 UTC, now it is 2"),
            (CertificateFault::WrongUse, "it is for server authentication, not for client authentication"),
            (CertificateFault::Missing, ""),
        ];
        let all = failures.all();
        assert_eq!((all.len(), stats.handshakes, stats.handshakes_failed), (5, 0, 5), "{all:?}");
        for ((reason, detail), (fault, words)) in all.iter().zip(expected) {
            assert_eq!(*reason, CloseReason::Tls(certificate(fault)));
            assert!(detail.starts_with(words), "{detail}");
        }
    }
}

scenario! {
    fn a_server_that_is_not_who_it_should_be_is_refused_with_words_for_why(world) {
        let of_other = Authority::new("Somebody else");
        let issue = |change: fn(&mut rcgen::CertificateParams)| AUTHORITY.identity_that(NAME, change);
        let self_signed = {
            let params = rcgen::CertificateParams::new([NAME.to_owned()]).unwrap();
            let key = rcgen::KeyPair::generate().unwrap();
            let made = params.self_signed(&key).unwrap();
            Identity::from_pem(made.pem(), key.serialize_pem()).unwrap()
        };
        let trust = || AUTHORITY.trust();
        let usual = || client_tls().trust(trust());
        let lists = trust().crl_pem(AUTHORITY.revocation_list(&[77])).unwrap();
        let cases: Vec<(Identity, ClientTls, CertificateFault, u8, &str)> = vec![
            (
                issue(|params| params.not_after = date_time_ymd(2024, 2, 29)),
                usual(),
                CertificateFault::Expired,
                45,
                "certificate expired: valid until 2024-02-29 00:00:00 UTC, now it is 2",
            ),
            (
                issue(|params| params.not_before = date_time_ymd(3000, 1, 1)),
                usual(),
                CertificateFault::NotYetValid,
                45,
                "certificate not yet valid: valid from 3000-01-01 00:00:00 UTC, now it is 2",
            ),
            (
                AUTHORITY.identity("other.test"),
                usual(),
                CertificateFault::WrongName,
                42,
                "certificate for another name: it is for other.test, not for server.test",
            ),
            (
                of_other.identity(NAME),
                usual(),
                CertificateFault::UnknownIssuer,
                48,
                "is issued by CN=Somebody else, and leads to nobody who is trusted",
            ),
            (self_signed, usual(), CertificateFault::SelfSigned, 48, "self-signed and not trusted"),
            (
                issue(|params| params.serial_number = Some(SerialNumber::from(77))),
                usual().trust(lists.clone()),
                CertificateFault::Revoked,
                44,
                "certificate revoked",
            ),
            (
                issue(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
                usual(),
                CertificateFault::WrongUse,
                43,
                "not for server authentication",
            ),
            (
                AUTHORITY.identity(NAME),
                usual().pin_public_key([7; 32]),
                CertificateFault::NotPinned,
                0,
                "with a public key that is not pinned: the SHA-256 of its public key is ",
            ),
        ];
        for (identity, tls, fault, alert, words) in cases {
            let failures = Failures::default();
            let acceptor = Acceptor::new(ServerTls::new(identity)).unwrap();
            let server = world.serve_with(Tell, |server| failures.watch(server.tls(&acceptor)));
            let address = server.local_addr();
            world.run(async move {
                let error = open(address, tls).await.unwrap_err();
                assert_eq!(error.tls_fault(), Some(certificate(fault)), "{error}");
                let text = error.to_string();
                assert!(text.starts_with(&format!("connect to {address}: TLS: ")), "{text}");
                assert!(text.contains(words), "{text}");
            });
            let stats = world.stop(&server);
            let reasons = failures.reasons();
            let [CloseReason::Tls(TlsFault::Alert(told))] = reasons[..] else { panic!("{reasons:?}") };
            assert!(alert == 0 || told == TlsAlert(alert), "{fault:?}: {told:?}");
            assert_eq!((stats.handshakes, stats.handshakes_failed), (0, 1));
        }
        // And the list does not speak against others.
        let server = world.serve_with(Tell, secure);
        let address = server.local_addr();
        let tls = usual().trust(lists);
        world.run(async move {
            assert!(told(&mut open(address, tls).await.unwrap()).await.is_ok());
        });
    }
}

scenario! {
    fn who_does_not_verify_is_seen_by_those_who_look(world) {
        let stranger = Authority::new("Somebody else");
        let server = world.serve_with(Tell, accepting(ServerTls::new(stranger.identity("elsewhere.test"))));
        let address = server.local_addr();
        let connector = Connector::new(ClientTls::new().server_name(NAME).danger_accept_any_certificate()).unwrap();
        let snapshot = server.snapshot();
        assert!(snapshot.unverified_connectors >= 1);
        assert!(snapshot.to_string().contains("connectors accept any certificate"), "{snapshot}");
        world.run(async move {
            let conn = Client::new(address).tls(&connector).open().await.unwrap();
            assert_eq!(conn.tls().unwrap().verification(), Verification::Skipped);
        });
    }
}

scenario! {
    /// A name in the address is what the certificate has to be for.
    fn a_server_has_to_be_who_its_address_says(world) {
        let addresses = AUTHORITY.identity(if world.is_simulated() { "10.0.0.1" } else { HOST });
        let server = world.serve_with(Tell, accepting(ServerTls::new(addresses)));
        let named = world.serve_with(Tell, secure);
        let (address, of_named) = (server.local_addr(), named.local_addr());
        world.run(async move {
            let tls = || ClientTls::new().trust(AUTHORITY.trust());
            let mut conn = open(address, tls()).await.unwrap();
            assert_eq!(conn.tls().unwrap().server_name(), None, "an address is not asked for");
            assert_eq!(told(&mut conn).await.unwrap(), "Tls13 - - new Unasked 0");
            let error = open(of_named, tls()).await.unwrap_err();
            assert_eq!(error.tls_fault(), Some(certificate(CertificateFault::WrongName)), "{error}");
            let ip = of_named.ip();
            assert!(error.to_string().contains(&format!("for server.test, not for {ip}")), "{error}");
        });
    }
}
