//! Frames: where a message ends in the stream, and how it is sent, for every style.
//!
//! A [`Framing`] is a pure thing: bytes in, "a frame lies here" out. It knows no sockets and keeps no bytes. What drives it is
//! chosen by style:
//!
//! | Style | What drives it |
//! |---|---|
//! | async | [`Framed`] around a [`Connection`](crate::Connection): `recv().await`, `send(frame).await` |
//! | event | [`Frames`] around a [`FrameHandler`], which is called with each frame |
//! | blocking | [`blocking::Framed`] around anything that is [`Read`](std::io::Read) and [`Write`](std::io::Write) |
//!
//! ```text
//!   Chunk or &[u8] --> Framing::decode --> a frame, where it lies         nothing is copied while frames come whole
//!                                     \--> more: kept until the rest comes, never longer than bytes_max
//! ```
//!
//! Framings that are there: [`LengthPrefixed`], [`Lines`], [`Delimited`], [`Fixed`]. Each has a hard maximum, and memory grows
//! with what has come, not with what a length field says.
//!
//! ```
//! use wharf::framing::{Framed, Lines};
//! use wharf::{Client, Connection, Server};
//!
//! let server = Server::bind("127.0.0.1:0").workers(1).start(|conn: Connection| async move {
//!     let mut lines = Framed::new(conn, Lines::new());
//!     while let Some(line) = lines.recv().await? {
//!         lines.send(&line).await?;
//!     }
//!     Ok(())
//! })?;
//!
//! let address = server.local_addr();
//! let line = wharf::run(async move {
//!     let mut lines = Framed::new(Client::connect(address).await?, Lines::new());
//!     lines.send(b"hello").await?;
//!     let line = lines.recv().await?.expect("an answer");
//!     Ok::<_, wharf::Error>(line.to_vec())
//! })??;
//! assert_eq!(line, b"hello");
//! # server.stop().wait()?;
//! # Ok::<(), wharf::Error>(())
//! ```

mod assembly;
pub mod blocking;
#[cfg(feature = "tokio-util")]
mod codec;
mod delimited;
mod event;
mod fixed;
mod framed;
mod length;
mod lines;
mod outgoing;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use crate::error::{Cause, Error, Operation};

pub use assembly::Frame;
#[cfg(feature = "tokio-util")]
pub use codec::Coded;
pub use delimited::Delimited;
pub use event::{FrameConnection, FrameHandler, Frames};
pub use fixed::Fixed;
pub use framed::{Framed, FramedReader, FramedWriter, RecvFrame, SendFrame};
pub use length::LengthPrefixed;
pub use lines::Lines;

/// Tells where a frame ends, and what goes around one that is sent.
///
/// A frame is a stretch of the stream as it is; what changes its bytes (compression, masks) is a layer above.
///
/// Whoever drives it keeps to this: `decode` sees the bytes from where the last frame ended, and each time the same ones
/// again with more behind them, until it tells a frame. So a framing may remember how far it has searched. After a fault it is
/// not asked again.
///
/// ```
/// use wharf::framing::{Decoded, Envelope, Fault, Framing};
///
/// /// One byte says how long a frame is.
/// struct Short;
///
/// impl Framing for Short {
///     fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Fault> {
///         let Some(&len) = bytes.first() else { return Ok(Decoded::More { total: 1 }) };
///         let total = 1 + usize::from(len);
///         if bytes.len() < total {
///             return Ok(Decoded::More { total });
///         }
///         Ok(Decoded::Frame { frame: 1..total, consumed: total })
///     }
///
///     fn envelope(&self, frame: &[u8]) -> Result<Envelope<'_>, Fault> {
///         match u8::try_from(frame.len()) {
///             Ok(len) => Ok(Envelope::header(&[len])),
///             Err(_) => Err(Fault::too_large(frame.len(), 255, "length field")),
///         }
///     }
///
///     fn bytes_max(&self) -> usize {
///         256
///     }
/// }
/// # assert_eq!(Short.decode(b"\x02abc"), Ok(Decoded::Frame { frame: 1..3, consumed: 3 }));
/// ```
pub trait Framing {
    /// Looks for a frame at the beginning of `bytes`.
    ///
    /// # Errors
    /// If what is there can never become a frame, or only one that is too large.
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Fault>;

    /// What goes in front of `frame` and behind it.
    ///
    /// # Errors
    /// If it is too large, or if the other side would not read it as this one frame.
    fn envelope(&self, frame: &[u8]) -> Result<Envelope<'_>, Fault>;

    /// The most bytes that one frame takes in the stream, with what is around it: no more are ever kept of a frame that is
    /// not whole.
    fn bytes_max(&self) -> usize;
}

/// What [`Framing::decode`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A whole frame.
    Frame {
        /// Where it lies in the bytes.
        frame: Range<usize>,
        /// Where the next one begins: at least 1.
        consumed: usize,
    },
    /// The beginning of one.
    More {
        /// How many bytes there have to be, those that are here included, before it is worth looking again.
        total: usize,
    },
}

/// The most bytes that a header has.
const HEADER_MAX: usize = 32;

/// What goes around a frame that is sent.
#[derive(Copy, Clone)]
pub struct Envelope<'a> {
    header: [u8; HEADER_MAX],
    header_len: u8,
    trailer: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// A header in front, and nothing behind.
    ///
    /// # Panics
    /// If it is longer than 32 bytes.
    pub fn header(header: &[u8]) -> Envelope<'a> {
        let mut envelope = Envelope { header: [0; HEADER_MAX], header_len: 0, trailer: &[] };
        envelope.push(header);
        envelope
    }

    /// A trailer behind, and nothing in front.
    pub fn trailer(trailer: &'a [u8]) -> Envelope<'a> {
        Envelope { header: [0; HEADER_MAX], header_len: 0, trailer }
    }

    /// Appends `bytes` to the header.
    fn push(&mut self, bytes: &[u8]) {
        let (len, room) = (usize::from(self.header_len), HEADER_MAX);
        assert!(bytes.len() <= room - len, "a header has at most {room} bytes");
        self.header[len..len + bytes.len()].copy_from_slice(bytes);
        self.header_len += bytes.len() as u8;
    }

    /// What goes in front.
    pub fn before(&self) -> &[u8] {
        &self.header[..usize::from(self.header_len)]
    }

    /// What goes behind.
    pub fn behind(&self) -> &'a [u8] {
        self.trailer
    }
}

impl fmt::Debug for Envelope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope").field("before", &self.before()).field("behind", &self.trailer).finish()
    }
}

/// Why bytes are no frame.
///
/// Whoever drives the framing makes an [`Error`] of it, which names the peer: a fault of
/// size has the kind [`Limit`](crate::ErrorKind::Limit), another one [`Peer`](crate::ErrorKind::Peer), or
/// [`Caller`](crate::ErrorKind::Caller) when sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    TooLarge { bytes: usize, bound: usize, option: &'static str },
    Malformed(Cow<'static, str>),
}

impl Fault {
    /// A frame of `bytes` bytes, or already so many of it, where `option` allows `bound`.
    pub fn too_large(bytes: usize, bound: usize, option: &'static str) -> Fault {
        Fault(Kind::TooLarge { bytes, bound, option })
    }

    /// Bytes that are none of a frame: `problem` says what is there and what should be.
    pub fn malformed(problem: impl Into<Cow<'static, str>>) -> Fault {
        Fault(Kind::Malformed(problem.into()))
    }

    /// Whether it is a matter of size.
    pub fn is_too_large(&self) -> bool {
        matches!(self.0, Kind::TooLarge { .. })
    }

    fn cause(self) -> Cause {
        match self.0 {
            Kind::TooLarge { bytes, bound, option } => Cause::TooLarge { bytes, bound, option },
            Kind::Malformed(problem) => Cause::Malformed(problem),
        }
    }

    fn error(self, operation: Operation) -> Error {
        Error::new(operation, self.cause())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.clone().cause())
    }
}

impl std::error::Error for Fault {}

/// Decodes, and holds the framing to what it has to keep: progress, ranges, and its own bound.
fn decode(framing: &mut impl Framing, bytes: &[u8]) -> Result<Decoded, Fault> {
    let decoded = framing.decode(bytes)?;
    match &decoded {
        Decoded::Frame { frame, consumed } => {
            let fits = frame.start <= frame.end && frame.end <= bytes.len() && *consumed <= bytes.len();
            if !fits || *consumed == 0 {
                return Err(Fault::malformed("the framing tells a frame that is not there"));
            }
        }
        Decoded::More { total } => {
            let (total, bound) = (bytes.len().saturating_add(1).max(*total), framing.bytes_max());
            if total > bound {
                return Err(Fault::too_large(total, bound, "bytes_max"));
            }
            return Ok(Decoded::More { total });
        }
    }
    Ok(decoded)
}

/// What the fuzz target drives: any bytes, cut anywhere, are the same frames, or the same fault.
#[cfg(any(test, fuzzing))]
pub(crate) fn check(data: &[u8]) {
    let [choice, cut, data @ ..] = data else { return };
    match choice % 8 {
        0 => check_with(&LengthPrefixed::u8(), *cut, data),
        1 => check_with(&LengthPrefixed::u16().frame_max(300), *cut, data),
        2 => check_with(&LengthPrefixed::u32().little_endian().includes_header().frame_max(1000), *cut, data),
        3 => check_with(&LengthPrefixed::varint().frame_max(500), *cut, data),
        4 => check_with(&LengthPrefixed::u16().magic(&[7, 7]).adjustment(-3), *cut, data),
        5 => check_with(&Lines::new().utf8().frame_max(100), *cut, data),
        6 => check_with(&Delimited::by(b"aab").frame_max(100), *cut, data),
        _ => check_with(&Fixed::of(7), *cut, data),
    }
}

#[cfg(any(test, fuzzing))]
fn check_with<F: Framing + Clone>(framing: &F, cut: u8, data: &[u8]) {
    let whole = all_frames(&mut framing.clone(), data, data.len().max(1));
    let pieces = all_frames(&mut framing.clone(), data, usize::from(cut) + 1);
    assert_eq!(whole.0, pieces.0, "the cuts do not matter");
    // A fault of size tells how much had come; apart from that they agree.
    assert_eq!(whole.1.is_some(), pieces.1.is_some(), "{:?} {:?}", whole.1, pieces.1);
    for frame in &whole.0 {
        assert!(frame.len() <= framing.bytes_max());
        // What was received can be sent again, unless only the receiver is tolerant, and comes back the same.
        if let Ok(envelope) = framing.envelope(frame) {
            let sent = [envelope.before(), frame, envelope.behind()].concat();
            let (again, fault) = all_frames(&mut framing.clone(), &sent, usize::from(cut) + 1);
            assert_eq!((again, fault), (vec![frame.clone()], None));
        }
    }
}

/// All frames of `data`, of which `step` bytes more are shown at a time; and the fault behind them.
#[cfg(any(test, fuzzing))]
fn all_frames(framing: &mut impl Framing, data: &[u8], step: usize) -> (Vec<Vec<u8>>, Option<Fault>) {
    let (mut frames, mut at, mut shown) = (Vec::new(), 0, 0);
    while shown < data.len() {
        shown = data.len().min(shown + step);
        while at < shown {
            match decode(framing, &data[at..shown]) {
                Ok(Decoded::Frame { frame, consumed }) => {
                    frames.push(data[at..shown][frame].to_vec());
                    at += consumed;
                }
                Ok(Decoded::More { total }) => {
                    assert!(total > shown - at, "it asks for what is there");
                    break;
                }
                Err(fault) => return (frames, Some(fault)),
            }
        }
    }
    (frames, None)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// What `framing` sends for `frames`.
    fn sent(framing: &impl Framing, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut stream = Vec::new();
        for frame in frames {
            let envelope = framing.envelope(frame).unwrap();
            stream.extend_from_slice(envelope.before());
            stream.extend_from_slice(frame);
            stream.extend_from_slice(envelope.behind());
        }
        stream
    }

    fn comes_back(framing: &(impl Framing + Clone), frames: &[Vec<u8>], step: usize) {
        let stream = sent(framing, frames);
        let (received, fault) = all_frames(&mut framing.clone(), &stream, step);
        assert_eq!(fault, None);
        assert_eq!(received, frames);
    }

    proptest! {
        #[test]
        fn what_is_sent_comes_back_however_it_is_cut(
            frames in vec(vec(any::<u8>(), 0..200), 0..20),
            step in 1usize..300,
        ) {
            comes_back(&LengthPrefixed::u8(), &frames, step);
            comes_back(&LengthPrefixed::u16().little_endian(), &frames, step);
            comes_back(&LengthPrefixed::u32().includes_header(), &frames, step);
            comes_back(&LengthPrefixed::varint(), &frames, step);
            comes_back(&LengthPrefixed::u32().magic(&[0, 0, 0x77, 0x77]), &frames, step);
            comes_back(&LengthPrefixed::u16().adjustment(-2), &frames, step);
        }

        #[test]
        fn text_that_is_sent_comes_back_however_it_is_cut(
            frames in vec("[a-z\r]{0,50}[a-z]", 0..20),
            step in 1usize..100,
        ) {
            let frames: Vec<_> = frames.into_iter().map(String::into_bytes).collect();
            comes_back(&Lines::new(), &frames, step);
            comes_back(&Lines::new().crlf().utf8(), &frames, step);
            comes_back(&Delimited::by(b"\0\0"), &frames, step);
        }

        #[test]
        fn the_cuts_of_any_bytes_do_not_matter(
            choice in any::<u8>(),
            cut in any::<u8>(),
            data in vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'a'), Just(b'b'), 0u8..4, any::<u8>()], 0..600),
        ) {
            check(&[&[choice, cut], &data[..]].concat());
        }

        #[test]
        fn lines_are_what_splitting_gives(text in "[a\n\r]{0,200}", step in 1usize..50) {
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let expected: Vec<Vec<u8>> = match text.contains('\n') {
                true => whole.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line).into()).collect(),
                false => Vec::new(),
            };
            let (lines, fault) = all_frames(&mut Lines::new(), text.as_bytes(), step);
            prop_assert_eq!((lines, fault), (expected, None));
        }

        #[test]
        fn delimited_frames_are_what_splitting_gives(text in "[ab]{0,200}", step in 1usize..50) {
            let mut expected: Vec<Vec<u8>> = text.split("aab").map(Into::into).collect();
            expected.pop(); // not ended
            let (frames, fault) = all_frames(&mut Delimited::by(b"aab"), text.as_bytes(), step);
            prop_assert_eq!((frames, fault), (expected, None));
        }
    }

    #[test]
    fn a_framing_that_breaks_its_word_is_a_fault_and_not_a_loop() {
        struct Wrong(Decoded);
        impl Framing for Wrong {
            fn decode(&mut self, _: &[u8]) -> Result<Decoded, Fault> {
                Ok(self.0.clone())
            }
            fn envelope(&self, _: &[u8]) -> Result<Envelope<'_>, Fault> {
                Ok(Envelope::header(&[]))
            }
            fn bytes_max(&self) -> usize {
                10
            }
        }
        for frame in [(0..0, 0), (0..5, 4), (2..3, 9)] {
            let (frame, consumed) = frame;
            assert!(decode(&mut Wrong(Decoded::Frame { frame, consumed }), b"abc").is_err());
        }
        assert!(decode(&mut Wrong(Decoded::More { total: 11 }), b"abc").unwrap_err().is_too_large());
        assert_eq!(decode(&mut Wrong(Decoded::More { total: 0 }), b"abc"), Ok(Decoded::More { total: 4 }));
    }
}
