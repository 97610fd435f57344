//! A TLS handshake without input or output: received bytes in, bytes to send out, and at the end the keys.
//!
//! rustls does it. It is shown one record at a time, so that it never sees what comes behind the handshake.

use std::cell::Cell;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ResolvesServerCert, ServerConnectionData, UnbufferedServerConnection};
use rustls::sign::CertifiedKey;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{CommonState, ExtractedSecrets, HandshakeKind, ProtocolVersion};

use super::classify::classify;
use super::info::Agreed;
use super::numbers::*;
use super::record::{self, Opener, Sealer};
use super::{ClientSide, Info, ServerSide, Verification, Version, verify};
use crate::tls_fault::TlsFault;

/// A handshake in progress.
pub(super) struct Handshake {
    side: Side,
    /// What was received and is not over and done with.
    received: Vec<u8>,
    /// So much of it was shown to rustls: whole records.
    shown: usize,
    verification: Verification,
    server_name: Option<Box<str>>,
    /// Whether the server has sent an OCSP response.
    is_stapled: bool,
}

enum Side {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

/// How far a handshake is.
pub(super) enum Progress {
    /// The peer has to go on.
    Waiting(Box<Handshake>),
    Done(Box<Done>),
    Failed(TlsFault, String),
}

/// What a handshake leaves.
pub(super) struct Done {
    pub(super) version: Version,
    pub(super) is_server: bool,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    /// What TLS 1.3 needs of rustls further on.
    pub(super) schedule: Option<Schedule>,
    pub(super) info: Info,
    /// What came behind the handshake.
    pub(super) rest: Vec<u8>,
}

/// The key schedule, and at a client the place where tickets go.
pub(super) enum Schedule {
    Server(KernelConnection<ServerConnectionData>),
    Client(KernelConnection<ClientConnectionData>),
}

impl Handshake {
    pub(super) fn accept(side: &ServerSide) -> Result<Handshake, rustls::Error> {
        let conn = UnbufferedServerConnection::new(side.config.clone())?;
        Ok(Handshake::new(Side::Server(Box::new(conn)), side.verification))
    }

    pub(super) fn connect(side: &ClientSide, name: ServerName<'static>) -> Result<Handshake, rustls::Error> {
        let asked_for = match &name {
            ServerName::DnsName(name) => Some(name.as_ref().into()),
            _ => None,
        };
        let conn = UnbufferedClientConnection::new(side.config.clone(), name)?;
        let handshake = Handshake::new(Side::Client(Box::new(conn)), side.verification);
        Ok(Handshake { server_name: asked_for, ..handshake })
    }

    fn new(side: Side, verification: Verification) -> Handshake {
        Handshake { side, received: Vec::new(), shown: 0, verification, server_name: None, is_stapled: false }
    }

    /// Takes what was received.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// Whether nothing has come that could be TLS.
    fn is_foreign(&self) -> bool {
        self.shown == 0
            && self.server_name.is_none()
            && self.received.first().is_some_and(|kind| !record::is_kind(*kind))
    }

    /// Goes as far as it can; `send` gets what is to be sent.
    pub(super) fn advance(mut self: Box<Self>, mut send: impl FnMut(&[u8])) -> Progress {
        match self.drive(&mut send) {
            Ok(false) => Progress::Waiting(self),
            Ok(true) => match self.take_apart() {
                Ok(done) => Progress::Done(Box::new(done)),
                Err(error) => Progress::Failed(TlsFault::Local, error.to_string()),
            },
            Err(error) if self.is_too_old(&error) => {
                send(&[ALERT, 3, 3, 0, 2, FATAL, PROTOCOL_VERSION]);
                Progress::Failed(TlsFault::Version, String::new())
            }
            Err(error) => {
                self.send_last_words(&mut send);
                let (fault, detail) = classify(&error);
                Progress::Failed(fault, detail)
            }
        }
    }

    /// Whether the client speaks nothing newer than TLS 1.1. rustls misses an extension of TLS 1.2 before it looks at the version.
    fn is_too_old(&self, error: &rustls::Error) -> bool {
        // Behind the headers of the record and of the message (RFC 5246, 7.4.1.2).
        let version = self.received.get(record::HEADER + 4..record::HEADER + 6);
        *error == rustls::PeerIncompatible::SignatureAlgorithmsExtensionRequired.into()
            && version.is_some_and(|version| version < [3, 3].as_slice())
    }

    /// Says whether the handshake is over.
    fn drive(&mut self, send: &mut impl FnMut(&[u8])) -> Result<bool, rustls::Error> {
        // What a handshake has left that failed on this thread is not this one's.
        forget_notes();
        loop {
            while self.side.step(&mut self.received, &mut self.shown, send)? {}
            if let Some(name) = ASKED_FOR.take() {
                self.server_name = Some(name);
            }
            self.is_stapled |= verify::take_stapled();
            if !self.side.common().is_handshaking() {
                return Ok(true);
            }
            if self.shown > SHOWN_MAX {
                send(&[ALERT, 3, 3, 0, 2, FATAL, DECODE_ERROR]);
                return Err(rustls::InvalidMessage::HandshakePayloadTooLarge.into());
            }
            match record::length(&self.received[self.shown..], Version::Tls12) {
                Ok(Some(len)) if self.shown + len <= self.received.len() => self.shown += len,
                Ok(_) if !self.is_foreign() => return Ok(false),
                Err(_) if self.shown == self.received.len() => return Ok(false),
                _ => {
                    if !self.is_foreign() {
                        // rustls finds the words for what is wrong with it.
                        self.shown = self.received.len();
                        self.side.step(&mut self.received, &mut self.shown, send)?;
                    }
                    // rustls waits for five bytes before it looks at the first, and its alert is for a record that cannot be
                    // read; this one is of a kind that there is not (RFC 8446, 5.1).
                    send(&[ALERT, 3, 3, 0, 2, FATAL, UNEXPECTED_MESSAGE]);
                    return Err(rustls::InvalidMessage::InvalidContentType.into());
                }
            }
        }
    }

    /// Sends the alert that tells the peer why, and whatever else is ready.
    fn send_last_words(&mut self, send: &mut impl FnMut(&[u8])) {
        // Only as long as there is some: rustls would look at the messages behind the bad one next, and they are not shown.
        while self.side.common().wants_write() {
            if self.side.step(&mut Vec::new(), &mut 0, send).is_err() {
                return;
            }
        }
    }

    fn take_apart(self) -> Result<Done, rustls::Error> {
        let Handshake { side, mut received, shown, verification, server_name, is_stapled, .. } = self;
        let rest = received.split_off(shown);
        let common = side.common();
        let version = match common.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => Version::Tls13,
            _ => Version::Tls12,
        };
        let chain: Box<[_]> = common
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|der| der.clone().into_owned())
            .collect();
        let info = Info::new(Agreed {
            version,
            cipher: common
                .negotiated_cipher_suite()
                .and_then(|suite| suite.suite().as_str())
                .unwrap_or("unknown"),
            alpn: common.alpn_protocol().map(Box::from),
            server_name,
            is_resumed: common.handshake_kind() == Some(HandshakeKind::Resumed),
            is_stapled,
            verification: if chain.is_empty() { Verification::Unasked } else { verification },
            chain,
        });
        let is_server = matches!(side, Side::Server(_));
        let (secrets, schedule) = match side {
            Side::Server(conn) => {
                let (secrets, schedule) = conn.dangerous_into_kernel_connection()?;
                (secrets, Schedule::Server(schedule))
            }
            Side::Client(conn) => {
                let (secrets, schedule) = conn.dangerous_into_kernel_connection()?;
                (secrets, Schedule::Client(schedule))
            }
        };
        let ExtractedSecrets { tx: (sent, tx), rx: (opened, rx) } = secrets;
        let foreign = || rustls::Error::General(String::from("a cipher that is not known here"));
        Ok(Done {
            version,
            is_server,
            sealer: Sealer::new(version, sent, &tx).ok_or_else(foreign)?,
            opener: Opener::new(version, opened, &rx).ok_or_else(foreign)?,
            // Keys are renewed, and tickets come late, only in TLS 1.3.
            schedule: (version == Version::Tls13).then_some(schedule),
            info,
            rest,
        })
    }
}

impl Side {
    fn common(&self) -> &CommonState {
        match self {
            Side::Server(conn) => conn,
            Side::Client(conn) => conn,
        }
    }

    /// Does one thing; says whether there may be more to do with what was shown.
    fn step(
        &mut self,
        received: &mut Vec<u8>,
        shown: &mut usize,
        send: &mut impl FnMut(&[u8]),
    ) -> Result<bool, rustls::Error> {
        let (discard, again) = match self {
            Side::Server(conn) => step(conn.process_tls_records(&mut received[..*shown]), send)?,
            Side::Client(conn) => step(conn.process_tls_records(&mut received[..*shown]), send)?,
        };
        received.drain(..discard);
        *shown -= discard;
        Ok(again)
    }
}

/// Does what `status` asks for; returns how many bytes are done with, and whether there may be more to do.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    send: &mut impl FnMut(&[u8]),
) -> Result<(usize, bool), rustls::Error> {
    let again = match status.state? {
        ConnectionState::EncodeTlsData(mut data) => {
            let mut bytes = Vec::new();
            if let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut bytes) {
                bytes.resize(needed.required_size, 0);
                data.encode(&mut bytes).map_err(|error| rustls::Error::General(error.to_string()))?;
            }
            send(&bytes);
            true
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            true
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => false,
        // Neither bytes nor an end may come before the handshake is over, and nothing behind it was shown.
        _ => return Err(rustls::Error::HandshakeNotComplete),
    };
    Ok((status.discard, again))
}

/// What may be shown to rustls and not be a whole message yet. It takes messages of up to 64 KiB, and what divides one into
/// records of one byte has six times as much stored.
const SHOWN_MAX: usize = 128 * 1024;

thread_local! {
    /// The name that the client of the handshake under way has asked for. rustls tells it to nobody but the resolver of
    /// certificates, which it calls within `process_tls_records`.
    static ASKED_FOR: Cell<Option<Box<str>>> = const { Cell::new(None) };
}

fn forget_notes() {
    ASKED_FOR.set(None);
    verify::take_stapled();
}

/// A resolver that notes which name was asked for.
#[derive(Debug)]
pub(super) struct NoteName(pub(super) Arc<dyn ResolvesServerCert>);

impl ResolvesServerCert for NoteName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        ASKED_FOR.set(hello.server_name().map(Box::from));
        self.0.resolve(hello)
    }

    fn only_raw_public_keys(&self) -> bool {
        self.0.only_raw_public_keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::{Authority, leaf};
    use crate::tls::{Acceptor, ClientTls, Connector, ServerTls, options};
    use crate::tls_fault::CertificateFault;

    fn accept(acceptor: &Acceptor) -> Box<Handshake> {
        Box::new(Handshake::accept(&acceptor.current()).expect("a configuration in order"))
    }

    fn connect(connector: &Connector, name: &str) -> Box<Handshake> {
        let name = options::server_name(name).expect("a name");
        Box::new(Handshake::connect(&connector.current(), name).expect("a configuration in order"))
    }

    /// Shows it these bytes; returns how far it is, and what it sends, by the piece.
    fn advance(mut handshake: Box<Handshake>, bytes: &[u8]) -> (Progress, Vec<Vec<u8>>) {
        handshake.receive(bytes);
        let mut sent = Vec::new();
        let progress = handshake.advance(|bytes| sent.push(bytes.to_vec()));
        (progress, sent)
    }

    fn waiting((progress, sent): (Progress, Vec<Vec<u8>>)) -> (Box<Handshake>, Vec<u8>) {
        let Progress::Waiting(handshake) = progress else { panic!("the other side has to go on") };
        (handshake, sent.concat())
    }

    fn failed(progress: &Progress) -> TlsFault {
        let Progress::Failed(fault, _) = progress else { panic!("it has to fail") };
        *fault
    }

    /// The server's certificate comes in one record with the rest of its flight, which is never looked at.
    #[test]
    fn who_refuses_a_certificate_says_so_once() {
        let (root, stranger) = (Authority::new("Root"), Authority::new("Stranger"));
        let identity = root.issue(leaf(&["a.example"])).identity();
        let acceptor = Acceptor::new(ServerTls::new(identity)).expect("in order");
        let connector = Connector::new(ClientTls::new().trust(stranger.trust())).expect("in order");
        let (client, hello) = waiting(advance(connect(&connector, "a.example"), &[]));
        let (server, flight) = waiting(advance(accept(&acceptor), &hello));
        let (progress, last_words) = advance(client, &flight);
        assert_eq!(failed(&progress), TlsFault::Certificate(CertificateFault::UnknownIssuer));
        let alerts = last_words.iter().filter(|record| record[0] != CHANGE_CIPHER_SPEC).count();
        assert_eq!(alerts, 1, "{last_words:?}");
        let (progress, _) = advance(server, &last_words.concat());
        assert!(matches!(failed(&progress), TlsFault::Alert(alert) if alert.0 == 48));
    }

    #[test]
    fn a_hello_in_crumbs_is_kept_up_to_a_bound() {
        let identity = Authority::new("Root").issue(leaf(&["a.example"])).identity();
        let acceptor = Acceptor::new(ServerTls::new(identity)).expect("in order");
        // It says that it is of 60,000 bytes, and would be here with six times as many.
        let header = [22, 3, 1, 0, 4, 1, 0, 0xEA, 0x60];
        let crumb = [22, 3, 1, 0, 1, 0];
        let (mut server, _) = waiting(advance(accept(&acceptor), &header));
        let mut kept = 0;
        let fault = loop {
            match advance(server, &crumb.repeat(1000)).0 {
                Progress::Waiting(waiting) => (server, kept) = (waiting, kept + 6000),
                progress => break failed(&progress),
            }
        };
        assert_eq!(fault, TlsFault::Misbehaved);
        assert!((100_000..=SHOWN_MAX).contains(&kept), "{kept}");
    }

    #[test]
    fn what_one_handshake_leaves_is_not_taken_for_anothers() {
        let root = Authority::new("Root");
        let identity = root.issue(leaf(&["a.example", "192.0.2.7"])).identity();
        let acceptor = Acceptor::new(ServerTls::new(identity).refuse_unknown_names()).expect("in order");
        let connector = Connector::new(ClientTls::new().trust(root.trust())).expect("in order");
        let (_, unwanted) = waiting(advance(connect(&connector, "b.example"), &[]));
        let (client, hello) = waiting(advance(connect(&connector, "192.0.2.7"), &[]));
        let (progress, _) = advance(accept(&acceptor), &unwanted);
        assert_eq!(failed(&progress), TlsFault::UnknownName);
        let (server, flight) = waiting(advance(accept(&acceptor), &hello));
        let (progress, finished) = advance(client, &flight);
        assert!(matches!(progress, Progress::Done(_)));
        let (Progress::Done(done), _) = advance(server, &finished.concat()) else { panic!("it is over") };
        assert_eq!(done.info.server_name(), None);
    }
}
