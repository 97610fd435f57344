//! Peers from before TLS 1.2, and such as speak something else. Their bytes are made here, for OpenSSL no longer says such things.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use wharf::tls::Versions;
use wharf::{Client, CloseReason, TlsAlert, TlsFault};

use super::papers::ecdsa_tls;
use super::program::LIMIT;
use super::site::{Site, client, on_each};
use crate::common::tls::*;

/// A record of the handshake with one message.
fn handshake(record: [u8; 2], kind: u8, body: &[u8]) -> Vec<u8> {
    let message_len = u32::try_from(body.len()).unwrap().to_be_bytes();
    let record_len = u16::try_from(body.len() + 4).unwrap().to_be_bytes();
    let header = [&[22], &record[..], &record_len, &[kind], &message_len[1..]].concat();
    [&header, body].concat()
}

/// A ClientHello of this version, without extensions or with these.
fn client_hello(version: [u8; 2], extensions: Option<&[u8]>) -> Vec<u8> {
    // An empty session id; what everybody could then, no compression.
    let suites = [0, 6, 0xC0, 0x13, 0, 0x2F, 0, 0x0A, 1, 0];
    let mut body = [&version[..], &[7; 32], &[0], &suites].concat();
    if let Some(extensions) = extensions {
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
    }
    handshake([3, version[1].min(1)], 1, &body)
}

/// The extension that a client of TLS 1.2 has to have: here, ecdsa_secp256r1_sha256.
const SIGNATURE_ALGORITHMS: [u8; 8] = [0, 13, 0, 4, 0, 2, 4, 3];

fn says(site: &Site, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(site.address()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// A fatal alert in the clear, whichever version its record says.
fn alert(answer: &[u8]) -> TlsAlert {
    match answer {
        [21, 3, _, 0, 2, 2, alert] => TlsAlert(*alert),
        other => panic!("it is no alert: {other:02x?}"),
    }
}

const UNEXPECTED_MESSAGE: TlsAlert = TlsAlert(10);
const PROTOCOL_VERSION: TlsAlert = TlsAlert(70);

#[test]
fn clients_below_tls_1_2_are_told_that_there_is_no_such_version() {
    on_each(|backend| {
        let site = Site::echo(backend, ecdsa_tls());
        for version in [[3, 0], [3, 1], [3, 2]] {
            assert_eq!(alert(&says(&site, &client_hello(version, None))), PROTOCOL_VERSION, "{version:?}");
            assert_eq!(site.refused(), CloseReason::Tls(TlsFault::Version));
        }
        // Says 1.2 where everybody does, and then 1.1 and 1.0 where it counts.
        let versions = [&SIGNATURE_ALGORITHMS[..], &[0, 43, 0, 5, 4, 3, 2, 3, 1]].concat();
        assert_eq!(alert(&says(&site, &client_hello([3, 3], Some(&versions)))), PROTOCOL_VERSION);
        assert_eq!(site.refused(), CloseReason::Tls(TlsFault::Version));

        let site = Site::echo(backend, ecdsa_tls().versions(Versions::Tls13));
        let hello = client_hello([3, 3], Some(&SIGNATURE_ALGORITHMS));
        assert_eq!(alert(&says(&site, &hello)), PROTOCOL_VERSION);
        assert_eq!(site.refused(), CloseReason::Tls(TlsFault::Version));
    });
}

/// The hello of SSL 2, which SSL 3 could be asked for by as well.
#[test]
fn a_client_with_the_hello_of_ssl_2_is_sent_away() {
    on_each(|backend| {
        let site = Site::echo(backend, ecdsa_tls());
        let body = [&[1, 3, 1, 0, 3, 0, 0, 0, 16, 0, 0, 0x2F][..], &[7; 16]].concat();
        let hello = [&[0x80, u8::try_from(body.len()).unwrap()], &body[..]].concat();
        assert_eq!(alert(&says(&site, &hello)), UNEXPECTED_MESSAGE);
        assert_eq!(site.refused(), CloseReason::Tls(TlsFault::NotTls));
    });
}

#[test]
fn wharf_tells_a_server_below_tls_1_2_that_there_is_no_such_version() {
    on_each(|backend| {
        for version in [[3, 0], [3, 1], [3, 2]] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                let mut header = [0; 5];
                stream.read_exact(&mut header).unwrap();
                let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
                stream.read_exact(&mut hello).unwrap();
                let body = [&version[..], &[7; 32], &[0, 0xC0, 0x13, 0]].concat();
                stream.write_all(&handshake(version, 2, &body)).unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).unwrap();
                alert(&answer)
            });
            let fault = client(backend, async move {
                let error = Client::new(address).tls(&connector()).open().await.unwrap_err();
                error.tls_fault()
            });
            assert_eq!(fault, Some(TlsFault::Version), "{version:?}");
            assert_eq!(server.join().unwrap(), PROTOCOL_VERSION, "{version:?}");
        }
    });
}
