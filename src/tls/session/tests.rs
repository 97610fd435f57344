//! Sessions against each other and against rustls's own connections, in memory.

use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self as provider, cipher_suite};
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::*;
use crate::tls::info::Agreed;
use crate::tls::{ClientSide, ServerSide, Verification};

const NAME: &str = "server.test";

/// What both sides of the tests are made with.
#[derive(Clone)]
struct Pair {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Pair {
    fn new(suite: rustls::SupportedCipherSuite) -> Pair {
        let key = rcgen::generate_simple_self_signed([String::from(NAME)]).expect("a certificate");
        let chain = vec![key.cert.der().clone()];
        let secret = PrivateKeyDer::try_from(key.signing_key.serialize_der()).expect("a key");
        let provider =
            Arc::new(CryptoProvider { cipher_suites: vec![suite], ..provider::default_provider() });
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[suite.version()])
            .expect("a version")
            .with_no_client_auth()
            .with_single_cert(chain.clone(), secret)
            .expect("a pair");
        server.enable_secret_extraction = true;
        server.cert_resolver = Arc::new(super::super::handshake::NoteName(server.cert_resolver));
        let mut roots = RootCertStore::empty();
        roots.add(chain[0].clone()).expect("a root");
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[suite.version()])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.enable_secret_extraction = true;
        Pair { server: Arc::new(server), client: Arc::new(client) }
    }

    fn tls13() -> Pair {
        Pair::new(cipher_suite::TLS13_AES_128_GCM_SHA256)
    }

    fn tls12() -> Pair {
        Pair::new(cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384)
    }

    fn all() -> Vec<Pair> {
        let suites = [
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ];
        suites.into_iter().map(Pair::new).collect()
    }

    fn server_end(&self) -> End {
        let side = ServerSide {
            config: self.server.clone(),
            tolerates_truncation: false,
            within: std::time::Duration::from_secs(5),
            handshakes_max: 1,
            verification: Verification::Verified,
        };
        End::new(Handshake::accept(&side).expect("a handshake"))
    }

    fn client_end(&self) -> End {
        let side = ClientSide {
            config: self.client.clone(),
            server_name: None,
            tolerates_truncation: false,
            verification: Verification::Verified,
        };
        let name = ServerName::try_from(NAME).expect("a name");
        End::new(Handshake::connect(&side, name).expect("a handshake"))
    }

    fn rustls_client(&self) -> ClientConnection {
        let name = ServerName::try_from(NAME).expect("a name");
        ClientConnection::new(self.client.clone(), name).expect("a client")
    }

    fn rustls_server(&self) -> ServerConnection {
        ServerConnection::new(self.server.clone()).expect("a server")
    }
}

/// One side: a session with its send queue, and what it has heard.
struct End {
    session: Session,
    queue: Outgoing,
    pool: Rc<PiecePool>,
    heard: Vec<u8>,
    news: Vec<&'static str>,
}

impl End {
    fn new(handshake: Handshake) -> End {
        End {
            session: Session::new(handshake, false),
            queue: Outgoing::default(),
            pool: PiecePool::new(),
            heard: Vec::new(),
            news: Vec::new(),
        }
    }

    /// Lets it do what it can with `bytes`.
    fn hear(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.session.receive(Chunk::copied(bytes));
        }
        loop {
            match self.session.step(&mut self.queue, &self.pool) {
                Step::Nothing => return,
                Step::Established => self.news.push("established"),
                Step::Bytes(chunk) => self.heard.extend_from_slice(&chunk),
                Step::Ended => self.news.push("ended"),
                Step::Failed(_) => self.news.push("failed"),
            }
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.session.write(bytes, &mut self.queue, &self.pool);
    }

    fn end(&mut self) {
        self.session.end(&mut self.queue, &self.pool);
    }

    /// What is to be sent.
    fn sent(&mut self) -> Vec<u8> {
        self.session.seal(&mut self.queue, &self.pool);
        let mut bytes = std::collections::VecDeque::new();
        let len = self.queue.len();
        self.queue.copy_to(&mut bytes, len);
        self.queue.advance(len, &self.pool);
        bytes.into()
    }

    fn fault(&self) -> Option<TlsFault> {
        self.session.failure().map(|failure| failure.fault)
    }
}

/// Carries bytes between two ends until they have nothing to say, in parts of at most `part` bytes.
fn exchange(one: &mut End, other: &mut End, part: usize) {
    one.hear(&[]);
    other.hear(&[]);
    loop {
        let (there, back) = (one.sent(), other.sent());
        if there.is_empty() && back.is_empty() {
            return;
        }
        there.chunks(part).for_each(|bytes| other.hear(bytes));
        back.chunks(part).for_each(|bytes| one.hear(bytes));
    }
}

/// Both ends of a session that stands.
fn stand(pair: &Pair) -> (End, End) {
    let (mut client, mut server) = (pair.client_end(), pair.server_end());
    exchange(&mut client, &mut server, usize::MAX);
    assert_eq!((&client.news[..], &server.news[..]), (&["established"][..], &["established"][..]));
    (client, server)
}

/// Carries bytes between an end and one of rustls's own connections; returns what that one has read.
macro_rules! exchange_with_rustls {
    ($end:expr, $rustls:expr) => {{
        let (end, rustls) = (&mut $end, &mut $rustls);
        let mut read = Vec::new();
        end.hear(&[]);
        loop {
            let there = end.sent();
            let mut back = Vec::new();
            while rustls.wants_write() {
                rustls.write_tls(&mut back).expect("memory");
            }
            if there.is_empty() && back.is_empty() {
                break;
            }
            let mut rest = &there[..];
            while !rest.is_empty() {
                rustls.read_tls(&mut rest).expect("memory");
                rustls.process_new_packets().expect("no fault");
                let mut buf = [0; 4096];
                while let Ok(n @ 1..) = rustls.reader().read(&mut buf) {
                    read.extend_from_slice(&buf[..n]);
                }
            }
            end.hear(&back);
        }
        read
    }};
}

#[test]
fn every_version_and_cipher_carries_bytes_in_parts_of_any_size() {
    let text: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    for pair in Pair::all() {
        for part in [1, 7, 1000, 16_384, usize::MAX] {
            let (mut client, mut server) = (pair.client_end(), pair.server_end());
            exchange(&mut client, &mut server, part);
            client.say(&text[..50_000]);
            client.say(&text[50_000..]);
            server.say(b"ok");
            exchange(&mut client, &mut server, part);
            assert!(server.heard == text, "in parts of {part}");
            assert_eq!(client.heard, b"ok");
            let info = server.session.info().expect("it stands");
            assert_eq!(info.server_name(), Some(NAME));
        }
    }
}

#[test]
fn what_both_have_agreed_on_is_told() {
    let (client, server) = stand(&Pair::tls13());
    let (client, server) =
        (client.session.info().expect("it stands"), server.session.info().expect("it stands"));
    assert_eq!((client.version(), server.version()), (Version::Tls13, Version::Tls13));
    assert_eq!((client.cipher(), server.cipher()), ("TLS13_AES_128_GCM_SHA256", "TLS13_AES_128_GCM_SHA256"));
    assert_eq!((client.verification(), client.chain().len()), (Verification::Verified, 1));
    assert_eq!((server.verification(), server.chain().len()), (Verification::Unasked, 0));
    assert!(!client.is_resumed());
}

#[test]
fn rustls_understands_it_and_is_understood() {
    for pair in Pair::all() {
        let (mut end, mut rustls) = (pair.server_end(), pair.rustls_client());
        exchange_with_rustls!(end, rustls);
        end.say(&[1; 40_000]);
        rustls.writer().write_all(&[2; 40_000]).expect("room");
        assert_eq!(exchange_with_rustls!(end, rustls), [1; 40_000]);
        assert_eq!(end.heard, [2; 40_000]);

        let (mut end, mut rustls) = (pair.client_end(), pair.rustls_server());
        exchange_with_rustls!(end, rustls);
        end.say(&[1; 40_000]);
        rustls.writer().write_all(&[2; 40_000]).expect("room");
        assert_eq!(exchange_with_rustls!(end, rustls), [1; 40_000]);
        assert_eq!(end.heard, [2; 40_000]);
    }
}

#[test]
fn keys_are_renewed_by_both_sides() {
    let pair = Pair::tls13();
    let (mut end, mut rustls) = (pair.server_end(), pair.rustls_client());
    exchange_with_rustls!(end, rustls);
    for round in 0..5u8 {
        // It asks for ours in return.
        rustls.refresh_traffic_keys().expect("TLS 1.3");
        rustls.writer().write_all(&[round; 10]).expect("room");
        end.say(&[round; 20]);
        assert_eq!(exchange_with_rustls!(end, rustls), [round; 20]);
    }
    assert_eq!(end.heard.len(), 50);
    assert!(!end.session.owes_key);
}

#[test]
fn a_key_that_is_used_up_is_renewed_before_the_next_record() {
    let (mut client, mut server) = stand(&Pair::tls13());
    let State::Established(established) = &mut client.session.state else { panic!("it stands") };
    // The other side would not follow a leap in the numbers, so only the sealer's own rule is looked at.
    established.sealer.use_up();
    assert!(!client.session.is_used_up(), "there is another");
    client.say(b"x");
    let State::Established(established) = &client.session.state else { panic!("it stands") };
    assert!(!established.sealer.is_used_up(0), "a new key");
    server.say(b"x");
    client.hear(&server.sent());
    assert_eq!(client.heard, b"x");

    let (mut client, _) = stand(&Pair::tls12());
    let State::Established(established) = &mut client.session.state else { panic!("it stands") };
    established.sealer.use_up();
    assert!(client.session.is_used_up(), "TLS 1.2 has no other");
}

#[test]
fn requests_for_a_new_key_are_answered_once() {
    let pair = Pair::tls13();
    let (mut end, mut rustls) = (pair.server_end(), pair.rustls_client());
    exchange_with_rustls!(end, rustls);
    let mut asked = Vec::new();
    for _ in 0..20 {
        rustls.refresh_traffic_keys().expect("TLS 1.3");
        while rustls.wants_write() {
            rustls.write_tls(&mut asked).expect("memory");
        }
    }
    end.hear(&asked);
    let answer = end.sent();
    assert!(answer.len() < 50, "{} bytes", answer.len());
}

#[test]
fn a_session_is_resumed() {
    for pair in [Pair::tls13(), Pair::tls12()] {
        let (client, _) = stand(&pair);
        assert!(!client.session.info().expect("it stands").is_resumed());
        let (client, server) = stand(&pair);
        assert!(client.session.info().expect("it stands").is_resumed());
        assert!(server.session.info().expect("it stands").is_resumed());
        assert_eq!(client.session.info().expect("it stands").chain().len(), 1, "of the first time");
    }
}

#[test]
fn small_messages_of_one_turn_share_a_record() {
    let (mut client, mut server) = stand(&Pair::tls13());
    for _ in 0..100 {
        client.say(&[5; 64]);
    }
    let bytes = client.sent();
    assert_eq!(bytes.len(), 6400 + 22);
    server.hear(&bytes);
    assert_eq!(server.heard.len(), 6400);
}

#[test]
fn each_side_ends_by_itself() {
    for pair in [Pair::tls13(), Pair::tls12()] {
        let (mut client, mut server) = stand(&pair);
        client.say(b"that was all");
        client.end();
        client.end();
        client.say(b"and nothing more");
        exchange(&mut client, &mut server, usize::MAX);
        assert_eq!((&server.heard[..], server.news.last()), (&b"that was all"[..], Some(&"ended")));
        assert_eq!(server.session.cut_off(), None);
        server.say(b"an answer");
        server.end();
        exchange(&mut client, &mut server, usize::MAX);
        assert_eq!((&client.heard[..], client.news.last()), (&b"an answer"[..], Some(&"ended")));
    }
}

#[test]
fn an_end_without_close_notify_is_told_apart() {
    let (mut client, mut server) = stand(&Pair::tls13());
    client.say(b"half a mess");
    exchange(&mut client, &mut server, usize::MAX);
    assert_eq!(server.session.cut_off(), Some(TlsFault::Truncated));
    let mut server = Pair::tls13().server_end();
    server.hear(&[22, 3, 1]);
    assert_eq!(server.session.cut_off(), Some(TlsFault::HandshakeEnded));
}

#[test]
fn who_breaks_the_rules_gets_the_right_alert() {
    /// The alert that the client hears, if its server sees these records of the client's.
    fn told(pair: &Pair, spoil: impl FnOnce(&mut End) -> Vec<u8>) -> (Option<TlsFault>, Option<TlsFault>) {
        let (mut client, mut server) = stand(pair);
        client.sent();
        let bytes = spoil(&mut client);
        server.hear(&bytes);
        assert_eq!(server.news.last(), Some(&"failed"));
        client.hear(&server.sent());
        server.hear(b"more");
        assert_eq!(server.heard, b"");
        (server.fault(), client.fault())
    }
    fn record(end: &mut End, kind: u8, content: &[u8]) -> Vec<u8> {
        end.session.control(kind, content, &mut end.queue, &end.pool);
        end.sent()
    }
    let alert = |kind| Some(TlsFault::Alert(TlsAlert(kind)));
    for (pair, may_come) in [(Pair::tls13(), KEY_UPDATE), (Pair::tls12(), CLIENT_HELLO)] {
        let forged = told(&pair, |client| {
            client.say(b"hello");
            let mut bytes = client.sent();
            *bytes.last_mut().expect("a record") ^= 1;
            bytes
        });
        assert_eq!(forged, (Some(TlsFault::BadRecord), alert(BAD_RECORD_MAC)));
        let large = told(&pair, |_| vec![23, 3, 3, 0x50, 0]);
        assert_eq!(large, (Some(TlsFault::RecordTooLarge), alert(RECORD_OVERFLOW)));
        let http = told(&pair, |_| b"GET / HTTP/1.1\r\n\r\n".to_vec());
        assert_eq!(http, (Some(TlsFault::Misbehaved), alert(UNEXPECTED_MESSAGE)));
        let repeated = told(&pair, |client| {
            client.say(b"");
            let once = record(client, APPLICATION_DATA, b"");
            [&once[..], &once[..]].concat()
        });
        assert_eq!(repeated, (Some(TlsFault::BadRecord), alert(BAD_RECORD_MAC)));
        let malformed = told(&pair, |client| record(client, ALERT, &[1]));
        assert_eq!(malformed, (Some(TlsFault::Misbehaved), alert(DECODE_ERROR)));
        let unknown = told(&pair, |client| record(client, HANDSHAKE, &[99, 0, 1, 0]));
        assert_eq!(unknown, (Some(TlsFault::Misbehaved), alert(UNEXPECTED_MESSAGE)));
        let huge = told(&pair, |client| record(client, HANDSHAKE, &[may_come, 1, 0, 1]));
        assert_eq!(huge, (Some(TlsFault::Misbehaved), alert(DECODE_ERROR)));
        let between = told(&pair, |client| {
            let mut bytes = record(client, HANDSHAKE, &[may_come, 0, 0]);
            client.say(b"data");
            bytes.extend(client.sent());
            bytes
        });
        assert_eq!(between, (Some(TlsFault::Misbehaved), alert(UNEXPECTED_MESSAGE)));
        let flood = told(&pair, |client| {
            (0..=USELESS_MAX).flat_map(|_| record(client, APPLICATION_DATA, b"")).collect()
        });
        assert_eq!(flood, (Some(TlsFault::Flood), alert(UNEXPECTED_MESSAGE)));
        let ccs = told(&pair, |_| vec![20, 3, 3, 0, 1, 1]);
        assert!(ccs.1.is_some());
    }
    let update = told(&Pair::tls13(), |client| record(client, HANDSHAKE, &[24, 0, 0, 1, 2]));
    assert_eq!(update, (Some(TlsFault::Misbehaved), alert(DECODE_ERROR)));
    let behind = told(&Pair::tls13(), |client| record(client, HANDSHAKE, &[24, 0, 0, 1, 0, 24]));
    assert_eq!(behind, (Some(TlsFault::Misbehaved), alert(UNEXPECTED_MESSAGE)));
    let ticket = told(&Pair::tls13(), |client| record(client, HANDSHAKE, &[4, 0, 0, 0]));
    assert_eq!(ticket, (Some(TlsFault::Misbehaved), alert(UNEXPECTED_MESSAGE)));
}

#[test]
fn what_came_before_a_bad_record_is_heard() {
    let (mut client, mut server) = stand(&Pair::tls13());
    client.say(b"good");
    let mut bytes = client.sent();
    client.say(b"bad");
    bytes.extend(client.sent());
    *bytes.last_mut().expect("a record") ^= 1;
    server.hear(&bytes);
    assert_eq!((&server.heard[..], server.fault()), (&b"good"[..], Some(TlsFault::BadRecord)));
}

#[test]
fn a_fatal_alert_is_told_by_its_name_and_not_answered() {
    let (mut client, mut server) = stand(&Pair::tls13());
    client.session.control(ALERT, &[FATAL, 49], &mut client.queue, &client.pool);
    server.hear(&client.sent());
    assert_eq!(server.fault(), Some(TlsFault::Alert(TlsAlert(49))));
    assert!(server.sent().is_empty());
}

#[test]
fn nobody_renegotiates() {
    let (mut client, mut server) = stand(&Pair::tls12());
    client.session.control(HANDSHAKE, &[CLIENT_HELLO, 0, 0, 0], &mut client.queue, &client.pool);
    exchange(&mut client, &mut server, usize::MAX);
    client.say(b"as you like");
    exchange(&mut client, &mut server, usize::MAX);
    assert_eq!(server.heard, b"as you like");
}

/// Data between the questions makes none of them useful.
#[test]
fn who_asks_again_and_again_for_another_handshake_gets_few_answers() {
    for asks in [CLIENT_HELLO, HELLO_REQUEST] {
        let (mut client, mut server) = stand(&Pair::tls12());
        let (asking, asked) =
            if asks == CLIENT_HELLO { (&mut client, &mut server) } else { (&mut server, &mut client) };
        asking.sent();
        let many = [asks, 0, 0, 0].repeat(4000);
        asking.session.control(HANDSHAKE, &many, &mut asking.queue, &asking.pool);
        asked.hear(&asking.sent());
        assert_eq!(asked.fault(), Some(TlsFault::Flood));
        assert!(asked.queue.len() < 200, "{} bytes", asked.queue.len());

        let (mut client, mut server) = stand(&Pair::tls12());
        let (asking, asked) =
            if asks == CLIENT_HELLO { (&mut client, &mut server) } else { (&mut server, &mut client) };
        for _ in 0..=RENEGOTIATIONS_MAX {
            assert_eq!(asked.fault(), None);
            asking.session.control(HANDSHAKE, &[asks, 0, 0, 0], &mut asking.queue, &asking.pool);
            asking.say(b"x");
            asked.hear(&asking.sent());
        }
        assert_eq!(asked.fault(), Some(TlsFault::Flood));
    }
}

#[test]
fn garbage_before_the_handshake_is_refused_at_once() {
    for garbage in
        [&b"GET / HTTP/1.1\r\n"[..], b"S", &[0x80, 0x2e, 1, 0, 2], &[23, 3, 3, 0, 1, 0], &[22, 9, 9, 0, 1, 0]]
    {
        let mut server = Pair::tls13().server_end();
        server.hear(garbage);
        assert_eq!(server.news, ["failed"], "{garbage:?}");
        assert_eq!(server.sent()[..5], [21, 3, 3, 0, 2], "an alert, for {garbage:?}");
    }
}

#[test]
fn a_connection_can_go_on_without_tls() {
    let (mut client, mut server) = stand(&Pair::tls13());
    client.say(b"secret");
    client.session.leave(&mut client.queue, &client.pool);
    let mut bytes = client.sent();
    bytes.extend_from_slice(b"pl");
    server.hear(&bytes);
    server.hear(b"ain");
    assert_eq!(server.heard, b"secret");
    server.session.leave(&mut server.queue, &server.pool);
    assert!(server.session.has_been_left());
    let rest = server.session.take_rest(&server.pool).expect("something came behind");
    assert_eq!(&rest[..], b"plain");
    client.hear(&server.sent());
    assert!(client.session.has_been_left());
}

#[test]
fn an_idle_session_holds_no_buffer() {
    let (mut client, mut server) = stand(&Pair::tls13());
    client.say(&[1; 100_000]);
    exchange(&mut client, &mut server, 999);
    assert_eq!(server.session.partial.capacity(), 0);
    assert!(server.session.received.is_none() && server.session.next.is_none());
    for pool in [&client.pool, &server.pool] {
        pool.shed();
        assert_eq!(pool.held(), 0);
    }
}

#[test]
fn a_message_that_was_begun_counts() {
    let (mut client, mut server) = stand(&Pair::tls12());
    let begun = [&[CLIENT_HELLO, 0, 0x3f, 0xff][..], &[0; 10_000]].concat();
    client.session.control(HANDSHAKE, &begun, &mut client.queue, &client.pool);
    exchange(&mut client, &mut server, usize::MAX);
    server.pool.shed();
    assert_eq!(server.pool.held(), begun.len());
    client.session.control(HANDSHAKE, &[0; 0x3fff - 10_000], &mut client.queue, &client.pool);
    exchange(&mut client, &mut server, usize::MAX);
    server.pool.shed();
    assert_eq!((server.pool.held(), server.fault()), (0, None));
    client.session.control(HANDSHAKE, &begun, &mut client.queue, &client.pool);
    exchange(&mut client, &mut server, usize::MAX);
    server.session.release(&server.pool);
    server.pool.shed();
    assert_eq!(server.pool.held(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_messages_arrive_however_they_are_divided(
        is_13 in any::<bool>(),
        messages in prop::collection::vec((any::<bool>(), 0usize..40_000, any::<bool>()), 1..12),
        parts in prop::collection::vec(1usize..30_000, 1..8),
    ) {
        let pair = if is_13 { Pair::tls13() } else { Pair::tls12() };
        let (mut client, mut server) = stand(&pair);
        let mut said = [Vec::new(), Vec::new()];
        for (turn, (by_client, len, leaves)) in messages.into_iter().enumerate() {
            let text: Vec<u8> = (0..len).map(|i| (i * 7 + turn) as u8).collect();
            let (from, to, log) = if by_client {
                (&mut client, &mut server, &mut said[0])
            } else {
                (&mut server, &mut client, &mut said[1])
            };
            from.say(&text);
            log.extend(text);
            if leaves {
                let bytes = from.sent();
                let mut rest = &bytes[..];
                for part in parts.iter().cycle() {
                    let (now, later) = rest.split_at(rest.len().min(*part));
                    to.hear(now);
                    rest = later;
                    if rest.is_empty() {
                        break;
                    }
                }
            }
        }
        exchange(&mut client, &mut server, parts[0]);
        prop_assert!(server.heard == said[0]);
        prop_assert!(client.heard == said[1]);
    }
}

#[test]
fn what_has_ended_the_stream_is_not_taken_for_a_leave() {
    let (mut client, mut server) = stand(&Pair::tls13());
    client.end();
    client.session.leave(&mut client.queue, &client.pool);
    server.end();
    exchange(&mut client, &mut server, usize::MAX);
    assert!(client.session.peer_has_ended() && !client.session.has_been_left());
}

/// What a session does with buffers.
#[derive(Clone, Debug)]
enum Doing {
    Writes(usize),
    /// So much of what is queued leaves.
    Sends(usize),
    /// A record of such a length comes in parts, each in a chunk.
    Hears(usize, usize),
    Ends,
}

fn doing() -> impl Strategy<Value = Doing> {
    prop_oneof![
        6 => (1usize..600).prop_map(Doing::Writes),
        3 => (1usize..50_000).prop_map(Doing::Writes),
        6 => (1usize..40_000).prop_map(Doing::Sends),
        3 => (0usize..2000, 1usize..700).prop_map(|(len, part)| Doing::Hears(len, part)),
        1 => Just(Doing::Ends),
    ]
}

/// A pool whose buffers have been full of `old` bytes.
fn used_before(old: u8) -> Rc<PiecePool> {
    let pool = PiecePool::new();
    for mut buffer in [1, 1, 1, PIECE_SIZE, PIECE_SIZE, PIECE_SIZE].map(|len| pool.lease(len)) {
        let capacity = buffer.capacity();
        buffer.extend_to_fill(capacity).fill(old);
        pool.give(buffer);
    }
    pool
}

/// What leaves, and what is read, where the buffers have held `old` bytes.
fn said_and_heard(version: Version, doings: &[Doing], old: u8) -> (Vec<u8>, Vec<u8>) {
    let secrets =
        || rustls::ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([7; 32]), iv: Iv::new([7; 12]) };
    let sealer = || Sealer::new(version, 0, &secrets()).expect("a known cipher");
    let opener = Opener::new(version, 0, &secrets()).expect("a known cipher");
    let info = Info::new(Agreed {
        version,
        cipher: "",
        alpn: None,
        server_name: None,
        is_resumed: false,
        is_stapled: false,
        verification: Verification::Unasked,
        chain: Box::default(),
    });
    let mut peer = sealer();
    let mut end = End {
        session: Session::standing(version, true, sealer(), opener, info),
        queue: Outgoing::default(),
        pool: used_before(old),
        heard: Vec::new(),
        news: Vec::new(),
    };
    let mut said = Vec::new();
    for doing in doings.iter().chain([&Doing::Sends(usize::MAX)]) {
        match *doing {
            Doing::Writes(n) => end.say(&vec![b'w'; n]),
            Doing::Ends => end.end(),
            Doing::Sends(n) => {
                end.session.seal(&mut end.queue, &end.pool);
                let n = n.min(end.queue.len());
                let mut bytes = std::collections::VecDeque::new();
                end.queue.copy_to(&mut bytes, n);
                end.queue.advance(n, &end.pool);
                said.extend(bytes);
            }
            Doing::Hears(len, part) => {
                let mut wire = Refillable::default();
                peer.seal_from(APPLICATION_DATA, &vec![b'h'; len], &mut wire);
                wire.chunks(part).for_each(|bytes| end.hear(bytes));
            }
        }
    }
    (said, end.heard)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// A buffer was another connection's before. Nothing may depend on what that has left there, for it may be in plain text.
    #[test]
    fn nothing_that_leaves_or_is_read_depends_on_what_was_in_the_buffers(
        version in prop_oneof![Just(Version::Tls12), Just(Version::Tls13)],
        doings in prop::collection::vec(doing(), 1..12),
    ) {
        let told = said_and_heard(version, &doings, 0x5a);
        prop_assert!(told == said_and_heard(version, &doings, 0xa5), "bytes of others are in it");
        let written: usize = doings.iter().take_while(|doing| !matches!(doing, Doing::Ends)).map(|doing| match doing {
            Doing::Writes(n) => *n,
            _ => 0,
        }).sum();
        prop_assert!(told.0.len() > written || written == 0, "all that was written has left");
    }
}
