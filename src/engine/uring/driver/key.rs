//! What tells completions apart: a request's key is what it is for, and for whom.

use super::super::kernel::Key;
use crate::engine::Token;

/// What a request is for. With the token it makes the key.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Receive,
    Readable,
    Broken,
    Send,
    Connect,
    Accept,
    Wake,
    Alarm,
    Cancel,
}

const KINDS: [Kind; 9] = [
    Kind::Receive,
    Kind::Readable,
    Kind::Broken,
    Kind::Send,
    Kind::Connect,
    Kind::Accept,
    Kind::Wake,
    Kind::Alarm,
    Kind::Cancel,
];
/// A key has room for so many bits of a generation.
const GENERATION_BITS: u32 = 24;
pub(super) const NOBODY: Token = Token { index: 0, generation: 0 };

impl Key {
    pub(super) fn new(kind: Kind, token: Token) -> Key {
        let generation = u64::from(token.generation) & ((1 << GENERATION_BITS) - 1);
        Key((kind as u64) << 56 | generation << 32 | u64::from(token.index))
    }

    pub(super) fn kind(self) -> Option<Kind> {
        KINDS.get((self.0 >> 56) as usize).copied()
    }

    pub(super) fn index(self) -> u32 {
        self.0 as u32
    }

    /// Whether this is a request for `token`'s generation.
    pub(super) fn is_for(self, token: Token) -> bool {
        self.0 << 8 == Key::new(Kind::Receive, token).0 << 8
    }
}
