//! Protection of TLS records: bytes, keys and sequence numbers, and nothing of what records mean.
//!
//! A record is a header of five bytes (type, version, length) and its body. What protects it after the handshake is one AEAD
//! call over the body, where it lies. There are three layouts:
//!
//! ```text
//!   TLS 1.3                 header | content, type, padding      | tag     RFC 8446, 5.2
//!   TLS 1.2, AES-GCM        header | nonce's last 8 | content    | tag     RFC 5288, 3
//!   TLS 1.2, ChaCha20       header | content                     | tag     RFC 7905, 2
//! ```
//!
//! In all of them the nonce is the initialization vector with the sequence number mixed in; AES-GCM of TLS 1.2 takes the peer's
//! word for the last 8 bytes of it.

use std::ops::Range;

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

use super::Version;
use super::numbers::{APPLICATION_DATA, CHANGE_CIPHER_SPEC};
use crate::engine::refillable::Refillable;

pub(super) const HEADER: usize = 5;
/// The most that may be protected in one record (RFC 8446, 5.1).
pub(super) const CONTENT_MAX: usize = 1 << 14;
/// The most that any layout of ours adds to content.
pub(super) const OVERHEAD_MAX: usize = HEADER + EXPLICIT + 1 + TAG;
/// The most that follows content.
pub(super) const TRAILER_MAX: usize = 1 + TAG;
/// What may follow a header, at most (RFC 5246, 6.2.3; of TLS 1.3 it is less).
pub(super) const BODY_MAX_12: usize = CONTENT_MAX + 2048;
const BODY_MAX_13: usize = CONTENT_MAX + 256;

const TAG: usize = 16;
/// The part of a nonce that AES-GCM of TLS 1.2 sends along.
const EXPLICIT: usize = 8;
/// Additional data in TLS 1.2: the sequence number, and a header.
const AAD_12: usize = 13;

/// After so many records a key of AES-GCM is replaced. The limit is 2^24.5 (RFC 8446, 5.5).
const GCM_RECORDS_MAX: u64 = 1 << 24;

/// What is wrong with a record.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// It does not bear its authentication.
    Forged,
    TooLarge,
    /// It is none that may come now.
    Unexpected,
}

/// Finds the record at the beginning of `bytes`: its length with the header, once that is known.
pub(super) fn length(bytes: &[u8], version: Version) -> Result<Option<usize>, Bad> {
    let Some(&[kind, major, _, high, low]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let body = usize::from(u16::from_be_bytes([high, low]));
    let max = match version {
        Version::Tls12 => BODY_MAX_12,
        Version::Tls13 => BODY_MAX_13,
    };
    if !is_kind(kind) || major != 3 {
        return Err(Bad::Unexpected);
    }
    if body > max {
        return Err(Bad::TooLarge);
    }
    Ok(Some(HEADER + body))
}

/// Whether a record can begin with this byte.
pub(super) fn is_kind(first: u8) -> bool {
    (CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&first)
}

/// How records of one direction are protected.
struct Protection {
    key: LessSafeKey,
    iv: [u8; aead::NONCE_LEN],
    /// The number of the next record.
    sequence: u64,
    layout: Layout,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Layout {
    Tls13,
    Gcm12,
    ChaCha12,
}

impl Protection {
    /// `None` for a cipher that we have not, which rustls would not have chosen.
    fn new(version: Version, sequence: u64, secrets: &ConnectionTrafficSecrets) -> Option<Protection> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return None,
        };
        let layout = match version {
            Version::Tls13 => Layout::Tls13,
            Version::Tls12 if *algorithm == aead::CHACHA20_POLY1305 => Layout::ChaCha12,
            Version::Tls12 => Layout::Gcm12,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?);
        Some(Protection { key, iv: iv.as_ref().try_into().ok()?, sequence, layout })
    }

    /// The nonce of the next record.
    fn nonce(&self) -> [u8; aead::NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, mixed) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= mixed;
        }
        nonce
    }

    /// What is authenticated beside the content in TLS 1.2, of which there are `len` bytes.
    fn additional_data(&self, kind: u8, len: usize) -> [u8; AAD_12] {
        let mut data = [0; AAD_12];
        data[..8].copy_from_slice(&self.sequence.to_be_bytes());
        data[8..].copy_from_slice(&header(kind, len));
        data
    }

    /// Bytes between the header and the content.
    fn prefix(&self) -> usize {
        if self.layout == Layout::Gcm12 { EXPLICIT } else { 0 }
    }
}

/// What is authenticated beside the content: the header in TLS 1.3, more before it.
struct Data([u8; AAD_12], usize);

impl Data {
    fn of_12(data: [u8; AAD_12]) -> Data {
        Data(data, AAD_12)
    }

    fn of_13(header: [u8; HEADER]) -> Data {
        let mut data = [0; AAD_12];
        data[..HEADER].copy_from_slice(&header);
        Data(data, HEADER)
    }
}

impl AsRef<[u8]> for Data {
    fn as_ref(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

fn header(kind: u8, len: usize) -> [u8; HEADER] {
    let [high, low] = (len as u16).to_be_bytes();
    [kind, 3, 3, high, low]
}

/// Protects what is sent.
pub(super) struct Sealer(Protection);

impl Sealer {
    pub(super) fn new(version: Version, sequence: u64, secrets: &ConnectionTrafficSecrets) -> Option<Sealer> {
        Protection::new(version, sequence, secrets).map(Sealer)
    }

    /// Begins a record at the end of `buf`; its content is to be appended.
    #[inline]
    pub(super) fn begin(&self, buf: &mut Refillable) {
        buf.extend_from_slice(&[0; HEADER + EXPLICIT][..self.head()]);
    }

    /// Bytes that stand before the content.
    #[inline]
    pub(super) fn head(&self) -> usize {
        HEADER + self.0.prefix()
    }

    /// Seals the record that was begun at `start` and reaches to the end of `buf`, where it lies.
    pub(super) fn seal(&mut self, kind: u8, buf: &mut Refillable, start: usize) {
        let content = start + self.head();
        let len = buf.len() - content;
        let inner = usize::from(self.0.layout == Layout::Tls13);
        buf.extend_to_fill(inner + TAG)[..inner].fill(kind);
        let (head, body) = buf[start..].split_at_mut(content - start);
        let (nonce, data) = self.write_head(kind, len, head);
        let (content, tag) = body.split_at_mut(len + inner);
        match self.0.key.seal_in_place_separate_tag(nonce, Aad::from(data), content) {
            Ok(made) => tag.copy_from_slice(made.as_ref()),
            // Only a content of more than 2^36 bytes is refused. Whatever happens, plaintext does not leave.
            Err(_) => body.fill(0),
        }
    }

    /// Appends a sealed record with `content`, which is read from where it lies.
    pub(super) fn seal_from(&mut self, kind: u8, content: &[u8], buf: &mut Refillable) {
        let (head, len) = (self.head(), content.len());
        let inner = usize::from(self.0.layout == Layout::Tls13);
        let record = buf.extend_to_fill(head + len + inner + TAG);
        let (nonce, data) = self.write_head(kind, len, &mut record[..head]);
        let (out, rest) = record[head..].split_at_mut(len);
        let extra = &[kind][..inner];
        let sealed = self.0.key.seal_out_of_place_scatter(nonce, Aad::from(data), content, out, extra, rest);
        if sealed.is_err() {
            // As above; nor does what was in the buffer before.
            record[head..].fill(0);
        }
    }

    /// Writes what stands before the content of the next record; gives its nonce and what is authenticated with it.
    fn write_head(&mut self, kind: u8, len: usize, head: &mut [u8]) -> (Nonce, Data) {
        debug_assert!(len <= CONTENT_MAX, "a record's content has a bound");
        let nonce = self.0.nonce();
        let data = if self.0.layout == Layout::Tls13 {
            let header = header(APPLICATION_DATA, len + 1 + TAG);
            head.copy_from_slice(&header);
            Data::of_13(header)
        } else {
            let (start, explicit) = head.split_at_mut(HEADER);
            start.copy_from_slice(&header(kind, explicit.len() + len + TAG));
            explicit.copy_from_slice(&nonce[nonce.len() - explicit.len()..]);
            Data::of_12(self.0.additional_data(kind, len))
        };
        self.0.sequence += 1;
        (Nonce::assume_unique_for_key(nonce), data)
    }

    /// Whether the key has protected as many records as it may, less `spare`.
    pub(super) fn is_used_up(&self, spare: u64) -> bool {
        let gcm = *self.0.key.algorithm() != aead::CHACHA20_POLY1305;
        self.0.sequence >= if gcm { GCM_RECORDS_MAX - spare } else { u64::MAX - spare }
    }

    #[cfg(test)]
    pub(super) fn use_up(&mut self) {
        self.0.sequence = GCM_RECORDS_MAX;
    }
}

/// Checks and reads what is received.
pub(super) struct Opener(Protection);

impl Opener {
    pub(super) fn new(version: Version, sequence: u64, secrets: &ConnectionTrafficSecrets) -> Option<Opener> {
        Protection::new(version, sequence, secrets).map(Opener)
    }

    /// Opens a whole record where it lies: its type, and where its content is.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(u8, Range<usize>), Bad> {
        let nonce = self.0.nonce();
        let kind = record[0];
        let opened = if self.0.layout == Layout::Tls13 {
            if kind != APPLICATION_DATA {
                return Err(Bad::Unexpected);
            }
            let (header, body) = record.split_at_mut(HEADER);
            let nonce = Nonce::assume_unique_for_key(nonce);
            let inner =
                self.0.key.open_in_place(nonce, Aad::from(&*header), body).map_err(|_| Bad::Forged)?;
            // Padding is zeros, and the type is the last byte that is none.
            let len = inner.iter().rposition(|byte| *byte != 0).ok_or(Bad::Unexpected)?;
            (inner[len], HEADER..HEADER + len)
        } else {
            let content = HEADER + self.0.prefix();
            let len = record.len().checked_sub(content + TAG).ok_or(Bad::Forged)?;
            let (head, body) = record.split_at_mut(content);
            let mut nonce = nonce;
            let explicit = nonce.len() - self.0.prefix();
            nonce[explicit..].copy_from_slice(&head[HEADER..]);
            let data = Aad::from(self.0.additional_data(kind, len));
            let nonce = Nonce::assume_unique_for_key(nonce);
            self.0.key.open_in_place(nonce, data, body).map_err(|_| Bad::Forged)?;
            (kind, content..content + len)
        };
        if opened.1.len() > CONTENT_MAX {
            return Err(Bad::TooLarge);
        }
        // Nobody lives to see it wrap.
        self.0.sequence += 1;
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    fn secrets(cipher: u8) -> ConnectionTrafficSecrets {
        let iv = Iv::new([7; 12]);
        match cipher {
            0 => ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([1; 32]), iv },
            _ => ConnectionTrafficSecrets::Chacha20Poly1305 { key: AeadKey::from([1; 32]), iv },
        }
    }

    fn pair(version: Version, cipher: u8) -> (Sealer, Opener) {
        let sealer = Sealer::new(version, 5, &secrets(cipher)).expect("a cipher that we have");
        (sealer, Opener::new(version, 5, &secrets(cipher)).expect("a cipher that we have"))
    }

    fn layouts() -> impl Strategy<Value = (Version, u8)> {
        (prop_oneof![Just(Version::Tls12), Just(Version::Tls13)], 0u8..2)
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(
            (version, cipher) in layouts(),
            contents in prop::collection::vec((20u8..24, prop::collection::vec(any::<u8>(), 0..300)), 1..5),
        ) {
            let (mut sealer, mut opener) = pair(version, cipher);
            let mut wire = Refillable::from(b"before".to_vec());
            for (kind, content) in &contents {
                let start = wire.len();
                if content.len() % 2 == 0 {
                    sealer.begin(&mut wire);
                    wire.extend_from_slice(content);
                    sealer.seal(*kind, &mut wire, start);
                } else {
                    sealer.seal_from(*kind, content, &mut wire);
                }
                prop_assert!(wire.len() - start <= content.len() + OVERHEAD_MAX);
            }
            let mut rest = &mut wire[6..];
            for (kind, content) in &contents {
                let len = length(rest, version).expect("a record").expect("whole");
                let (record, behind) = rest.split_at_mut(len);
                let (opened, range) = opener.open(record).expect("unchanged");
                prop_assert_eq!((opened, &record[range]), (*kind, &content[..]));
                rest = behind;
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn a_changed_bit_is_noticed((version, cipher) in layouts(), bit in 0usize..(5 + 8 + 40 + 17) * 8) {
            let (mut sealer, mut opener) = pair(version, cipher);
            let mut wire = Refillable::default();
            sealer.begin(&mut wire);
            wire.extend_from_slice(&[9; 40]);
            sealer.seal(APPLICATION_DATA, &mut wire, 0);
            let at = bit / 8 % wire.len();
            // The versions in a header of TLS 1.2 are not authenticated as they are, and need not be.
            prop_assume!(!(1..HEADER).contains(&at) || version == Version::Tls13);
            wire[at] ^= 1 << (bit % 8);
            prop_assert!(opener.open(&mut wire).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic((version, cipher) in layouts(), mut bytes in prop::collection::vec(any::<u8>(), 5..200)) {
            let (_, mut opener) = pair(version, cipher);
            bytes[0] = 20 + bytes[0] % 4;
            prop_assert!(opener.open(&mut bytes).is_err());
        }
    }

    #[test]
    fn a_record_may_be_padded_but_not_with_nothing_else() {
        let (mut sealer, mut opener) = pair(Version::Tls13, 0);
        let mut wire = Refillable::default();
        sealer.begin(&mut wire);
        // Content "hi", its type, and padding that goes on into the byte that `seal` takes for the type.
        wire.extend_from_slice(&[b'h', b'i', APPLICATION_DATA, 0, 0]);
        sealer.seal(0, &mut wire, 0);
        let (kind, range) = opener.open(&mut wire).expect("padded");
        assert_eq!((kind, &wire[range]), (APPLICATION_DATA, &b"hi"[..]));
        wire.clear();
        sealer.begin(&mut wire);
        sealer.seal(0, &mut wire, 0);
        assert_eq!(opener.open(&mut wire), Err(Bad::Unexpected));
    }

    #[test]
    fn a_length_is_refused_before_the_record_is_there() {
        assert_eq!(length(&[23, 3, 3, 0x41, 0], Version::Tls13), Ok(Some(5 + 0x4100)));
        assert_eq!(length(&[23, 3, 3, 0x41, 1], Version::Tls13), Err(Bad::TooLarge));
        assert_eq!(length(&[23, 3, 3, 0x48, 1], Version::Tls12), Err(Bad::TooLarge));
        assert_eq!(length(b"GET /", Version::Tls13), Err(Bad::Unexpected));
        assert_eq!(length(&[23, 3, 3, 0], Version::Tls13), Ok(None));
    }
}
