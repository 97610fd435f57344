//! Frames with their length in front: [`LengthPrefixed`].

use super::{Decoded, Envelope, Fault, Framing, HEADER_MAX};

/// A length, and then so many bytes.
///
/// ```text
///   magic, if there is one | length: 1, 2, 4 or 8 bytes, or a varint | the frame
/// ```
///
/// Big endian by default. A frame is at most 8 MiB ([`frame_max`](LengthPrefixed::frame_max)): a larger one is an error as soon
/// as its length is known.
///
/// ```
/// use wharf::framing::LengthPrefixed;
///
/// // {u16 flags, u16 magic, u32 length}, all big endian.
/// let framing = LengthPrefixed::u32().magic(&[0, 0, 0x77, 0x77]).frame_max(1024 * 1024);
/// # let _ = framing;
/// ```
#[derive(Clone, Debug)]
pub struct LengthPrefixed {
    field: Field,
    little_endian: bool,
    magic: [u8; MAGIC_MAX],
    magic_len: u8,
    adjustment: i64,
    frame_max: usize,
}

/// How the length is written.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Field {
    /// In so many bytes.
    Bytes(usize),
    Varint,
}

/// Room for the longest length behind it.
const MAGIC_MAX: usize = HEADER_MAX - VARINT_MAX;
/// A varint has 7 bits in a byte.
const VARINT_MAX: usize = 10;
const FRAME_MAX: usize = 8 * 1024 * 1024;
/// No more can be in memory, so that sums with what a length field says never overflow.
const FRAME_MOST: usize = isize::MAX as usize - HEADER_MAX;

impl LengthPrefixed {
    /// The length is one byte.
    pub fn u8() -> LengthPrefixed {
        LengthPrefixed::new(Field::Bytes(1))
    }

    /// The length is two bytes.
    pub fn u16() -> LengthPrefixed {
        LengthPrefixed::new(Field::Bytes(2))
    }

    /// The length is four bytes.
    pub fn u32() -> LengthPrefixed {
        LengthPrefixed::new(Field::Bytes(4))
    }

    /// The length is eight bytes.
    pub fn u64() -> LengthPrefixed {
        LengthPrefixed::new(Field::Bytes(8))
    }

    /// The length is a varint as in Protocol Buffers (LEB128): seven bits in a byte, the lowest first, and the top bit says
    /// that there are more. One that is longer than it has to be is accepted.
    pub fn varint() -> LengthPrefixed {
        LengthPrefixed::new(Field::Varint)
    }

    fn new(field: Field) -> LengthPrefixed {
        let (magic, frame_max) = ([0; MAGIC_MAX], FRAME_MAX);
        LengthPrefixed { field, little_endian: false, magic, magic_len: 0, adjustment: 0, frame_max }
    }

    /// The length has its lowest byte first. Of no concern to a varint.
    #[must_use]
    pub fn little_endian(mut self) -> LengthPrefixed {
        self.little_endian = true;
        self
    }

    /// These bytes stand in front of every length; others are an error.
    ///
    /// # Panics
    /// If they are more than 22.
    #[must_use]
    pub fn magic(mut self, magic: &[u8]) -> LengthPrefixed {
        assert!(magic.len() <= MAGIC_MAX, "a magic has at most {MAGIC_MAX} bytes");
        self.magic[..magic.len()].copy_from_slice(magic);
        self.magic_len = magic.len() as u8;
        self
    }

    /// The frame has the length that is written, and so many bytes more; negative if the length counts bytes that are
    /// not the frame's. Default: 0.
    #[must_use]
    pub fn adjustment(mut self, bytes: i32) -> LengthPrefixed {
        self.adjustment = bytes.into();
        self
    }

    /// The length counts the magic, which has to be set before, and itself.
    ///
    /// # Panics
    /// If it is a varint: how long that is depends on what it says.
    #[must_use]
    pub fn includes_header(mut self) -> LengthPrefixed {
        let Field::Bytes(bytes) = self.field else { panic!("a varint does not count itself") };
        self.adjustment = -((self.magic_len as usize + bytes) as i64);
        self
    }

    /// Sets how many bytes a frame has at most, without what is around it. Default: 8 MiB.
    #[must_use]
    pub fn frame_max(mut self, bytes: usize) -> LengthPrefixed {
        self.frame_max = bytes.min(FRAME_MOST);
        self
    }

    fn magic_bytes(&self) -> &[u8] {
        &self.magic[..self.magic_len as usize]
    }

    /// The length that is written in `bytes`, and how many bytes that takes.
    fn read(&self, bytes: &[u8]) -> Result<Option<(u64, usize)>, Fault> {
        let Field::Bytes(size) = self.field else { return read_varint(bytes) };
        let Some(field) = bytes.get(..size) else { return Ok(None) };
        let mut wide = [0; 8];
        let length = if self.little_endian {
            wide[..size].copy_from_slice(field);
            u64::from_le_bytes(wide)
        } else {
            wide[8 - size..].copy_from_slice(field);
            u64::from_be_bytes(wide)
        };
        Ok(Some((length, size)))
    }

    /// How many bytes the frame has whose length is written so.
    fn frame_len(&self, length: u64) -> Result<usize, Fault> {
        let len = i128::from(length) + i128::from(self.adjustment);
        if len < 0 {
            let least = -self.adjustment;
            return Err(Fault::malformed(format!("a length of {length}, which is {least} at least")));
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        match len <= self.frame_max {
            true => Ok(len),
            false => Err(Fault::too_large(len, self.frame_max, "frame_max")),
        }
    }
}

impl Framing for LengthPrefixed {
    #[inline]
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Fault> {
        let magic = self.magic_bytes();
        let here = magic.len().min(bytes.len());
        if bytes[..here] != magic[..here] {
            let found = &bytes[..here];
            return Err(Fault::malformed(format!("a frame begins with {magic:02x?}, not with {found:02x?}")));
        }
        let field = match self.field {
            Field::Bytes(size) => size,
            Field::Varint => 1,
        };
        if here < magic.len() {
            return Ok(Decoded::More { total: magic.len() + field });
        }
        let Some((length, size)) = self.read(&bytes[here..])? else {
            return Ok(Decoded::More { total: (bytes.len() + 1).max(here + field) });
        };
        let begin = here + size;
        let total = begin + self.frame_len(length)?;
        if bytes.len() < total {
            return Ok(Decoded::More { total });
        }
        Ok(Decoded::Frame { frame: begin..total, consumed: total })
    }

    #[inline]
    fn envelope(&self, frame: &[u8]) -> Result<Envelope<'_>, Fault> {
        if frame.len() > self.frame_max {
            return Err(Fault::too_large(frame.len(), self.frame_max, "frame_max"));
        }
        let length = frame.len() as i64 - self.adjustment;
        let Ok(length) = u64::try_from(length) else {
            let least = self.adjustment;
            return Err(Fault::malformed(format!("a frame has {least} bytes at least, not {}", frame.len())));
        };
        let mut envelope = Envelope::header(self.magic_bytes());
        let Field::Bytes(size) = self.field else {
            push_varint(&mut envelope, length);
            return Ok(envelope);
        };
        if size < 8 && length >> (8 * size) != 0 {
            let most = ((1i64 << (8 * size)) - 1).saturating_add(self.adjustment);
            return Err(Fault::too_large(frame.len(), most as usize, "length field"));
        }
        if self.little_endian {
            envelope.push(&length.to_le_bytes()[..size]);
        } else {
            envelope.push(&length.to_be_bytes()[8 - size..]);
        }
        Ok(envelope)
    }

    fn bytes_max(&self) -> usize {
        self.frame_max.saturating_add(HEADER_MAX)
    }
}

fn read_varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, Fault> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(VARINT_MAX) {
        let bits = u64::from(byte & 0x7f);
        if index == VARINT_MAX - 1 && bits > 1 {
            break;
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    match bytes.len() < VARINT_MAX {
        true => Ok(None),
        false => Err(Fault::malformed("a varint of more than 64 bits")),
    }
}

fn push_varint(envelope: &mut Envelope<'_>, mut value: u64) {
    while value >= 0x80 {
        envelope.push(&[value as u8 | 0x80]);
        value >>= 7;
    }
    envelope.push(&[value as u8]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(framing: &LengthPrefixed, frame: &[u8]) -> Vec<u8> {
        framing.envelope(frame).unwrap().before().to_vec()
    }

    #[test]
    fn lengths_are_written_as_protocols_have_them() {
        let frame = [0; 300];
        assert_eq!(header(&LengthPrefixed::u16(), &frame), [1, 44]);
        assert_eq!(header(&LengthPrefixed::u32().little_endian(), &frame), [44, 1, 0, 0]);
        assert_eq!(header(&LengthPrefixed::varint(), &frame), [0xac, 0x02], "the example of protobuf.dev");
        assert_eq!(header(&LengthPrefixed::u32().includes_header(), &frame), [0, 0, 1, 48]);
        let rpc = LengthPrefixed::u32().magic(&[0, 0, 0x77, 0x77]);
        assert_eq!(header(&rpc, &frame), [0, 0, 0x77, 0x77, 0, 0, 1, 44]);
        let counted = LengthPrefixed::u16().magic(b"ab").includes_header();
        assert_eq!(header(&counted, &frame), [b'a', b'b', 1, 48]);
    }

    #[test]
    fn a_length_above_the_maximum_is_refused_before_anything_of_it_has_come() {
        for framing in [LengthPrefixed::u64(), LengthPrefixed::u64().little_endian()] {
            let fault = framing.frame_max(100).decode(&[0xff; 8]).unwrap_err();
            assert!(fault.is_too_large(), "{fault}");
        }
        let fault = LengthPrefixed::u16().frame_max(100).decode(&[0, 101]).unwrap_err();
        assert_eq!(fault, Fault::too_large(101, 100, "frame_max"));
        assert!(LengthPrefixed::u8().envelope(&[0; 256]).unwrap_err().is_too_large());
    }

    #[test]
    fn a_length_that_no_memory_holds_is_refused_also_without_a_maximum() {
        let boundless = LengthPrefixed::u64().frame_max(usize::MAX);
        assert!(boundless.clone().decode(&[0xff; 8]).unwrap_err().is_too_large());
        assert!(boundless.adjustment(i32::MAX).decode(&[0xff; 9]).unwrap_err().is_too_large());
        let varint = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert!(LengthPrefixed::varint().frame_max(usize::MAX).decode(&varint).unwrap_err().is_too_large());
    }

    #[test]
    fn a_wrong_magic_is_told_with_its_first_byte() {
        let mut framing = LengthPrefixed::u16().magic(b"wharf");
        assert_eq!(framing.decode(b"wh"), Ok(Decoded::More { total: 7 }));
        assert!(framing.decode(b"wx").is_err());
    }

    #[test]
    fn a_length_that_does_not_even_count_its_header_is_malformed() {
        let fault = LengthPrefixed::u32().includes_header().decode(&[0, 0, 0, 3]).unwrap_err();
        assert_eq!(fault.to_string(), "a length of 3, which is 4 at least");
    }

    #[test]
    fn a_varint_has_at_most_64_bits() {
        let mut framing = LengthPrefixed::varint();
        assert!(framing.decode(&[0xff; 10]).is_err());
        assert_eq!(framing.decode(&[0x80; 9]), Ok(Decoded::More { total: 10 }));
        assert_eq!(framing.decode(&[0x80, 0x00]), Ok(Decoded::Frame { frame: 2..2, consumed: 2 }));
        let largest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(read_varint(&largest), Ok(Some((u64::MAX, 10))));
    }
}
