//! Sessions driven by bytes that a fuzzer chooses.
//!
//! The first byte says what is driven: a handshake on either side with raw bytes, or a session of either version that stands, on
//! records that the fuzzer writes and this seals with the right keys, so that what they mean is looked at and not only refused.

use std::rc::Rc;
use std::sync::LazyLock;

use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};

use super::info::Agreed;
use super::record::{Opener, Sealer};
use super::session::{Session, Step};
use super::{Acceptor, ClientTls, Connector, Identity, Info, ServerTls, Verification, Version};
use crate::engine::buffer::{Chunk, Outgoing, PiecePool};
use crate::engine::refillable::Refillable;

static ACCEPTOR: LazyLock<Acceptor> = LazyLock::new(|| {
    let identity = Identity::self_signed(["fuzz.test"]).expect("a certificate");
    Acceptor::new(ServerTls::new(identity)).expect("it can be used")
});
static CONNECTOR: LazyLock<Connector> = LazyLock::new(|| {
    Connector::new(ClientTls::new().danger_accept_any_certificate()).expect("it can be used")
});

/// Drives whatever `data` says.
pub(crate) fn drive(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    match choice % 6 {
        0 => Driven::new(Session::accept(&ACCEPTOR).expect("a session")).hear_raw(data),
        1 => Driven::new(Session::connect(&CONNECTOR, Some("fuzz.test")).expect("a session")).hear_raw(data),
        2 => sealed(Version::Tls12, true, data),
        3 => sealed(Version::Tls12, false, data),
        4 => sealed(Version::Tls13, true, data),
        _ => shaken(data),
    }
}

fn secrets() -> ConnectionTrafficSecrets {
    ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([7; 32]), iv: Iv::new([7; 12]) }
}

fn info(version: Version) -> Info {
    Info::new(Agreed {
        version,
        cipher: "",
        alpn: None,
        server_name: None,
        is_resumed: false,
        is_stapled: false,
        verification: Verification::Unasked,
        chain: Box::default(),
    })
}

/// A session with fixed keys, which are never renewed.
fn sealed(version: Version, is_server: bool, data: &[u8]) {
    let known = "a known cipher";
    let sealer = Sealer::new(version, 0, &secrets()).expect(known);
    let opener = Opener::new(version, 0, &secrets()).expect(known);
    let session = Session::standing(version, is_server, sealer, opener, info(version));
    let peer = Sealer::new(version, 0, &secrets()).expect(known);
    Driven::new(session).hear_records(peer, data);
}

/// Both sides of a real session: what one is told to write, the other reads.
fn shaken(data: &[u8]) {
    let mut client = Driven::new(Session::connect(&CONNECTOR, Some("fuzz.test")).expect("a session"));
    let mut server = Driven::new(Session::accept(&ACCEPTOR).expect("a session"));
    client.hear(&[]);
    for _ in 0..8 {
        server.hear(&client.sent());
        client.hear(&server.sent());
    }
    assert!(!client.session.is_handshaking() && !server.session.is_handshaking());
    for step in data.chunks(3) {
        let &[choice, value, part] = step else { return };
        let (from, to) =
            if choice & 1 == 0 { (&mut client, &mut server) } else { (&mut server, &mut client) };
        match choice >> 1 & 7 {
            0 => from.session.end(&mut from.queue, &from.pool),
            1 => from.session.leave(&mut from.queue, &from.pool),
            2 => from.session.control_of_any_kind(
                20 + value % 5,
                &[value, 0, 0, 1, part],
                &mut from.queue,
                &from.pool,
            ),
            3 => from.session.renew_key(&mut from.queue, &from.pool),
            _ => from.session.write(&vec![value; usize::from(value) * 97], &mut from.queue, &from.pool),
        }
        let mut bytes = from.sent();
        if choice >> 4 == 15 && !bytes.is_empty() {
            let at = usize::from(value) % bytes.len();
            bytes[at] ^= part;
        }
        for bytes in bytes.chunks(usize::from(part) * 7 + 1) {
            to.hear(bytes);
        }
        let back = to.sent();
        from.hear(&back);
    }
}

struct Driven {
    session: Session,
    queue: Outgoing,
    pool: Rc<PiecePool>,
}

impl Driven {
    fn new(session: Session) -> Driven {
        Driven { session, queue: Outgoing::default(), pool: PiecePool::new() }
    }

    /// Hears raw bytes, of which every first says how long a part is.
    fn hear_raw(&mut self, mut data: &[u8]) {
        self.hear(&[]);
        while let Some((&len, rest)) = data.split_first() {
            let (part, rest) = rest.split_at(rest.len().min(1 + usize::from(len) * 5));
            self.hear(part);
            data = rest;
        }
        self.session.cut_off();
    }

    /// Hears records: each is a kind, a length and a content, and arrives in parts.
    fn hear_records(&mut self, mut peer: Sealer, mut data: &[u8]) {
        while let Some((&[kind, len, part], rest)) = data.split_first_chunk() {
            let (content, rest) = rest.split_at(rest.len().min(usize::from(len)));
            data = rest;
            let mut wire = Refillable::default();
            peer.begin(&mut wire);
            wire.extend_from_slice(content);
            peer.seal(20 + kind % 5, &mut wire, 0);
            if kind & 0x80 != 0 && part != 0 {
                let at = usize::from(kind) % wire.len();
                wire[at] ^= part;
            }
            wire.chunks(usize::from(part) + 1).for_each(|bytes| self.hear(bytes));
            if kind & 0x40 != 0 {
                self.session.write(content, &mut self.queue, &self.pool);
            }
        }
        self.sent();
        self.session.cut_off();
    }

    fn hear(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.session.receive(Chunk::copied(bytes));
        }
        while !matches!(self.session.step(&mut self.queue, &self.pool), Step::Nothing) {}
    }

    fn sent(&mut self) -> Vec<u8> {
        self.session.seal(&mut self.queue, &self.pool);
        let (mut bytes, len) = (std::collections::VecDeque::new(), self.queue.len());
        self.queue.copy_to(&mut bytes, len);
        self.queue.advance(len, &self.pool);
        bytes.into()
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        self.session.release(&self.pool);
        let len = self.queue.len();
        self.queue.advance(len, &self.pool);
        self.pool.shed();
        assert_eq!(self.pool.held(), 0, "a buffer is lost");
    }
}
