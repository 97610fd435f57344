//! From chunks to frames: [`Frame`], and the bytes that wait to become one. Knows no connection.
//!
//! A frame that lies in one chunk is told where it lies. Only one that reaches into the next chunk is put together, in a buffer
//! that is kept for the next such frame:
//!
//! ```text
//!   chunk    |--frame--|--frame--|--fra           both frames point into the chunk
//!   chunk     me--|--frame--|                     "fra" + "me" (and a little more) go to the buffer, the rest stays where it is
//! ```

use std::fmt;
use std::ops::{Deref, Range};
use std::rc::Rc;
use std::sync::Arc;

use super::{Decoded, Fault, Framing, decode};
use crate::engine::buffer::{Chunk, Held};
use crate::error::Operation;

/// A frame that was received, where it lies in the receive buffer. Reads as a byte slice.
///
/// Hold it briefly, for it keeps the buffer: copy what must live long. While one is held, the next buffer has to be made.
pub struct Frame {
    buffer: Rc<Buffer>,
    range: Range<usize>,
}

impl Frame {
    /// The frame as text.
    ///
    /// # Errors
    /// If it is not UTF-8: [`Error::kind`](crate::Error::kind) is [`Peer`](crate::ErrorKind::Peer).
    pub fn as_str(&self) -> crate::Result<&str> {
        std::str::from_utf8(self).map_err(|error| {
            let at = error.valid_up_to();
            Fault::malformed(format!("a frame that is not UTF-8 at byte {at}")).error(Operation::Receive)
        })
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer.bytes()[self.range.clone()]
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} bytes)", self.len())
    }
}

/// What frames point into: a chunk as it came, or what was put together.
struct Buffer {
    chunk: Option<Chunk>,
    joined: Joined,
}

impl Buffer {
    fn bytes(&self) -> &[u8] {
        self.chunk.as_deref().unwrap_or(&self.joined.bytes)
    }
}

/// What was put together, as the memory budget counts it.
#[derive(Default)]
struct Joined {
    bytes: Vec<u8>,
    counted: usize,
    held: Arc<Held>,
}

/// A buffer up to this size is kept for the next frame that comes in parts.
const KEEP_MAX: usize = 128 * 1024;
/// So many bytes more than a frame is known to need are put together at once, so that one whose end has to be searched for is not
/// put together byte by byte.
const GRAIN: usize = 1024;

impl Joined {
    fn new(held: &Arc<Held>) -> Joined {
        Joined { bytes: Vec::new(), counted: 0, held: held.clone() }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.recount();
    }

    fn clear(&mut self) {
        self.bytes.clear();
        if self.bytes.capacity() > KEEP_MAX {
            self.bytes = Vec::new();
        }
        self.recount();
    }

    fn recount(&mut self) {
        self.held.shrink(self.counted);
        self.counted = self.bytes.capacity();
        self.held.grow(self.counted);
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.held.shrink(self.counted);
    }
}

/// Received bytes on their way to become frames.
///
/// `buffer` holds what frames are told of, from `start` on; `next` is the chunk behind it, of which nothing is in `buffer`.
pub(super) struct Assembly<F> {
    pub(super) framing: F,
    buffer: Rc<Buffer>,
    start: usize,
    next: Option<Chunk>,
    /// Bytes that there have to be before it is worth looking again.
    wanted: usize,
    fault: Option<Fault>,
}

/// What has become of the bytes.
pub(super) enum Found {
    Frame(Frame),
    /// More bytes are needed; so many of a frame are here.
    Begun(usize),
}

impl<F> Assembly<F> {
    pub(super) fn new(framing: F, held: &Arc<Held>) -> Assembly<F> {
        let buffer = Rc::new(Buffer { chunk: None, joined: Joined::new(held) });
        Assembly { framing, buffer, start: 0, next: None, wanted: 0, fault: None }
    }

    /// Takes the next chunk, when [`Found::Begun`] was told.
    pub(super) fn push(&mut self, chunk: Chunk) {
        debug_assert!(self.next.is_none(), "what came before was not looked at");
        self.next = Some(chunk);
    }

    /// Bytes of which no frame was told.
    pub(super) fn unread(&self) -> [&[u8]; 2] {
        [&self.buffer.bytes()[self.start..], self.next.as_deref().unwrap_or_default()]
    }

    /// The buffer with nothing in it, for nothing points into it any more; a new one, if somebody still holds a frame.
    fn cleared(&mut self) -> &mut Buffer {
        if Rc::get_mut(&mut self.buffer).is_none() {
            let joined = Joined::new(&self.buffer.joined.held);
            self.buffer = Rc::new(Buffer { chunk: None, joined });
        }
        self.start = 0;
        let buffer = Rc::get_mut(&mut self.buffer).expect("nobody else holds it");
        buffer.chunk = None;
        buffer.joined.clear();
        buffer
    }

    /// Appends to what is left in the buffer as much of `chunk` as the frame needs.
    fn join(&mut self, mut chunk: Chunk) {
        let left = self.buffer.bytes().len() - self.start;
        let needed = self.wanted.saturating_sub(left).max(GRAIN).min(chunk.len());
        let start = std::mem::take(&mut self.start);
        match Rc::get_mut(&mut self.buffer) {
            Some(Buffer { chunk: earlier @ Some(_), joined }) => {
                joined.append(&earlier.take().as_deref().unwrap_or_default()[start..]);
            }
            Some(Buffer { chunk: None, joined }) => drop(joined.bytes.drain(..start)),
            None => {
                let mut joined = Joined::new(&self.buffer.joined.held);
                joined.append(&self.buffer.bytes()[start..]);
                self.buffer = Rc::new(Buffer { chunk: None, joined });
            }
        }
        let buffer = Rc::get_mut(&mut self.buffer).expect("nobody else holds it");
        buffer.joined.append(&chunk[..needed]);
        chunk.advance(needed);
        self.next = Some(chunk).filter(|chunk| !chunk.is_empty());
    }
}

impl<F: Framing> Assembly<F> {
    /// The next frame.
    pub(super) fn next(&mut self) -> Result<Found, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        loop {
            let bytes = &self.buffer.bytes()[self.start..];
            if bytes.is_empty() {
                let next = self.next.take();
                // What waits holds no buffer.
                self.cleared().chunk = next;
                if self.buffer.chunk.is_none() {
                    return Ok(Found::Begun(0));
                }
                continue;
            }
            if bytes.len() >= self.wanted {
                match decode(&mut self.framing, bytes) {
                    Ok(Decoded::Frame { frame, consumed }) => {
                        let range = self.start + frame.start..self.start + frame.end;
                        self.start += consumed;
                        self.wanted = 0;
                        return Ok(Found::Frame(Frame { buffer: self.buffer.clone(), range }));
                    }
                    Ok(Decoded::More { total }) => self.wanted = total,
                    Err(fault) => {
                        self.fault = Some(fault.clone());
                        return Err(fault);
                    }
                }
            }
            let begun = self.buffer.bytes().len() - self.start;
            let Some(chunk) = self.next.take() else { return Ok(Found::Begun(begun)) };
            self.join(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::framing::{LengthPrefixed, Lines};

    /// All frames of `chunks`; every so many of them are held to the end.
    fn frames(framing: impl Framing, chunks: &[Vec<u8>], hold: usize) -> Vec<Vec<u8>> {
        let mut assembly = Assembly::new(framing, &Arc::default());
        let mut frames: Vec<Result<Frame, Vec<u8>>> = Vec::new();
        for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
            assembly.push(Chunk::copied(chunk));
            while let Found::Frame(frame) = assembly.next().unwrap() {
                let held = frames.len().is_multiple_of(hold);
                frames.push(if held { Ok(frame) } else { Err(frame.to_vec()) });
            }
        }
        frames.into_iter().map(|frame| frame.map_or_else(|copy| copy, |frame| frame.to_vec())).collect()
    }

    proptest! {
        #[test]
        fn frames_are_the_same_however_they_come_and_whoever_holds_them(
            expected in vec(vec(any::<u8>(), 0..3000), 0..12),
            cuts in vec(1usize..4000, 0..40),
            hold in 1usize..5,
        ) {
            let framing = LengthPrefixed::u16();
            let mut stream = Vec::new();
            for frame in &expected {
                stream.extend_from_slice(framing.envelope(frame).unwrap().before());
                stream.extend_from_slice(frame);
            }
            let mut chunks = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts {
                let (chunk, later) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk.to_vec());
                rest = later;
            }
            chunks.push(rest.to_vec());
            prop_assert_eq!(frames(framing, &chunks, hold), expected);
        }
    }

    #[test]
    fn what_is_whole_in_a_chunk_is_not_copied() {
        let chunk = Chunk::copied(b"one\ntwo\nthr");
        let at = chunk.as_ptr();
        let mut assembly = Assembly::new(Lines::new(), &Arc::default());
        assembly.push(chunk);
        for offset in [0, 4] {
            let Ok(Found::Frame(frame)) = assembly.next() else { panic!("a frame") };
            assert_eq!(frame.as_ptr(), at.wrapping_add(offset));
        }
        assert!(matches!(assembly.next(), Ok(Found::Begun(3))));
        assert_eq!(assembly.unread().concat(), b"thr");
    }

    #[test]
    fn memory_grows_with_what_has_come_and_is_counted() {
        let held = Arc::<Held>::default();
        let mut assembly = Assembly::new(LengthPrefixed::u32(), &held);
        assembly.push(Chunk::copied(&[0, 0x7f, 0, 0]));
        assert!(matches!(assembly.next(), Ok(Found::Begun(4))));
        assembly.push(Chunk::copied(&[0; 100]));
        assert!(matches!(assembly.next(), Ok(Found::Begun(104))));
        assert!((104..2048).contains(&held.bytes()), "{}", held.bytes());
        drop(assembly);
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn single_bytes_of_a_large_frame_cost_what_they_are() {
        struct Counted(Lines, Rc<std::cell::Cell<usize>>);
        impl Framing for Counted {
            fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Fault> {
                self.1.set(self.1.get() + 1);
                self.0.decode(bytes)
            }
            fn envelope(&self, frame: &[u8]) -> Result<crate::framing::Envelope<'_>, Fault> {
                self.0.envelope(frame)
            }
            fn bytes_max(&self) -> usize {
                self.0.bytes_max()
            }
        }
        let looks = Rc::new(std::cell::Cell::new(0));
        let lines = Counted(Lines::new().frame_max(100_000), looks.clone());
        let mut stream = vec![b'x'; 100_000];
        stream.push(b'\n');
        let pieces: Vec<_> = stream.chunks(1).map(<[u8]>::to_vec).collect();
        assert_eq!(frames(lines, &pieces, 1).len(), 1);
        assert_eq!(looks.get(), 100_001, "one look for each piece");
    }

    #[test]
    fn a_fault_stays() {
        let mut assembly = Assembly::new(LengthPrefixed::u8().frame_max(3), &Arc::default());
        assembly.push(Chunk::copied(b"\x01a\x04abcd"));
        assert!(matches!(assembly.next(), Ok(Found::Frame(_))));
        let first = assembly.next().err();
        assert!(first.as_ref().is_some_and(Fault::is_too_large));
        assert_eq!(assembly.next().err(), first);
        assert_eq!(assembly.unread().concat(), b"\x04abcd");
    }
}
