//! Frames that end with a delimiter: [`Delimited`].

use std::fmt;
use std::sync::Arc;

use memchr::memmem::Finder;

use super::{Decoded, Envelope, Fault, Framing};

/// Frames of any bytes, each ended by a delimiter, which is not a part of it.
///
/// A frame is at most 64 KiB ([`frame_max`](Delimited::frame_max)).
///
/// ```
/// use wharf::framing::{Decoded, Delimited, Framing};
///
/// let mut framing = Delimited::by(b"\0");
/// assert_eq!(framing.decode(b"hello\0wor"), Ok(Decoded::Frame { frame: 0..5, consumed: 6 }));
/// ```
#[derive(Clone)]
pub struct Delimited {
    delimiter: Arc<Finder<'static>>,
    frame_max: usize,
    /// Before this there is no delimiter.
    searched: usize,
}

const FRAME_MAX: usize = 64 * 1024;

impl Delimited {
    /// Frames that end with `delimiter`.
    ///
    /// # Panics
    /// If it is empty.
    pub fn by(delimiter: impl AsRef<[u8]>) -> Delimited {
        let delimiter = Finder::new(delimiter.as_ref()).into_owned();
        assert!(!delimiter.needle().is_empty(), "a delimiter has a byte at least");
        Delimited { delimiter: Arc::new(delimiter), frame_max: FRAME_MAX, searched: 0 }
    }

    /// Sets how many bytes a frame has at most, without the delimiter. Default: 64 KiB.
    #[must_use]
    pub fn frame_max(mut self, bytes: usize) -> Delimited {
        self.frame_max = bytes;
        self
    }

    fn too_large(&self, bytes: usize) -> Fault {
        Fault::too_large(bytes, self.frame_max, "frame_max")
    }
}

impl Framing for Delimited {
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Fault> {
        let delimiter = self.delimiter.needle().len();
        let from = self.searched.min(bytes.len());
        if let Some(at) = self.delimiter.find(&bytes[from..]) {
            let end = from + at;
            self.searched = 0;
            if end > self.frame_max {
                return Err(self.too_large(end));
            }
            return Ok(Decoded::Frame { frame: 0..end, consumed: end + delimiter });
        }
        // The last bytes may be the beginning of the delimiter.
        self.searched = bytes.len().saturating_sub(delimiter - 1);
        if self.searched > self.frame_max {
            return Err(self.too_large(self.searched));
        }
        Ok(Decoded::More { total: bytes.len() + 1 })
    }

    fn envelope(&self, frame: &[u8]) -> Result<Envelope<'_>, Fault> {
        if frame.len() > self.frame_max {
            return Err(self.too_large(frame.len()));
        }
        let needle = self.delimiter.needle();
        // It must not begin with the frame's last bytes either.
        let begins_with_last = |last: usize| {
            let rest = needle.len() - last;
            frame.ends_with(&needle[..last]) && needle[last..] == needle[..rest]
        };
        if self.delimiter.find(frame).is_some() || (1..needle.len()).any(begins_with_last) {
            return Err(Fault::malformed(
                "a frame has no delimiter in it, nor one that would begin at its end",
            ));
        }
        Ok(Envelope::trailer(needle))
    }

    fn bytes_max(&self) -> usize {
        self.frame_max.saturating_add(self.delimiter.needle().len())
    }
}

impl fmt::Debug for Delimited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let delimiter = self.delimiter.needle();
        f.debug_struct("Delimited")
            .field("delimiter", &delimiter)
            .field("frame_max", &self.frame_max)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delimiter_is_found_across_cuts_and_never_searched_for_twice() {
        let mut framing = Delimited::by(b"--x");
        assert_eq!(framing.decode(b"ab-"), Ok(Decoded::More { total: 4 }));
        assert_eq!(framing.searched, 1);
        assert_eq!(framing.decode(b"ab--"), Ok(Decoded::More { total: 5 }));
        assert_eq!(framing.decode(b"ab--x"), Ok(Decoded::Frame { frame: 0..2, consumed: 5 }));
        assert_eq!(framing.searched, 0);
    }

    #[test]
    fn a_frame_with_which_the_delimiter_would_begin_too_early_is_not_sent() {
        let framing = Delimited::by(b"aab");
        assert!(framing.envelope(b"xaab").is_err());
        assert!(framing.envelope(b"xa").is_ok(), "xa aab ends behind xa");
        let overlapping = Delimited::by(b"aa");
        assert!(overlapping.envelope(b"xa").is_err(), "x aa a");
        assert!(overlapping.envelope(b"ax").is_ok());
    }

    #[test]
    fn a_frame_above_the_maximum_is_refused_with_and_without_its_end() {
        let mut framing = Delimited::by(b"--").frame_max(3);
        assert!(framing.clone().decode(b"abc--").is_ok());
        assert!(framing.clone().decode(b"abcd--").unwrap_err().is_too_large());
        assert_eq!(framing.decode(b"abc-"), Ok(Decoded::More { total: 5 }));
        assert!(framing.decode(b"abcde").unwrap_err().is_too_large());
    }
}
