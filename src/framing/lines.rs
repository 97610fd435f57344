//! Frames that are lines: [`Lines`].

use memchr::memchr;

use super::{Decoded, Envelope, Fault, Framing};

/// Lines of any bytes, ended by `\n` or `\r\n`, which is not a part of the frame.
///
/// A line is at most 64 KiB ([`frame_max`](Lines::frame_max)). The last line of a stream has to be ended too: otherwise nobody
/// could tell it from one that was cut short.
///
/// ```
/// use wharf::framing::{Decoded, Framing, Lines};
///
/// let mut lines = Lines::new();
/// assert_eq!(lines.decode(b"hello\r\nwor"), Ok(Decoded::Frame { frame: 0..5, consumed: 7 }));
/// ```
#[derive(Clone, Debug)]
pub struct Lines {
    frame_max: usize,
    crlf: bool,
    utf8: bool,
    /// How far there is no end.
    searched: usize,
}

const FRAME_MAX: usize = 64 * 1024;

impl Default for Lines {
    fn default() -> Lines {
        Lines::new()
    }
}

impl Lines {
    /// Lines that are sent with `\n`, of any bytes.
    pub fn new() -> Lines {
        Lines { frame_max: FRAME_MAX, crlf: false, utf8: false, searched: 0 }
    }

    /// Lines are sent with `\r\n`.
    #[must_use]
    pub fn crlf(mut self) -> Lines {
        self.crlf = true;
        self
    }

    /// A line that is not UTF-8 is an error.
    #[must_use]
    pub fn utf8(mut self) -> Lines {
        self.utf8 = true;
        self
    }

    /// Sets how many bytes a line has at most, without what ends it. Default: 64 KiB.
    #[must_use]
    pub fn frame_max(mut self, bytes: usize) -> Lines {
        self.frame_max = bytes;
        self
    }

    fn check(&self, line: &[u8]) -> Result<(), Fault> {
        if line.len() > self.frame_max {
            return Err(Fault::too_large(line.len(), self.frame_max, "frame_max"));
        }
        if self.utf8
            && let Err(error) = std::str::from_utf8(line)
        {
            let at = error.valid_up_to();
            return Err(Fault::malformed(format!("a line that is not UTF-8 at byte {at}")));
        }
        Ok(())
    }
}

impl Framing for Lines {
    #[inline]
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Fault> {
        let from = self.searched.min(bytes.len());
        let Some(end) = memchr(b'\n', &bytes[from..]).map(|at| from + at) else {
            // One byte more may be the `\r` of its end.
            if bytes.len() > self.frame_max.saturating_add(1) {
                return Err(Fault::too_large(bytes.len(), self.frame_max, "frame_max"));
            }
            self.searched = bytes.len();
            return Ok(Decoded::More { total: bytes.len() + 1 });
        };
        self.searched = 0;
        let line = &bytes[..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        self.check(line)?;
        Ok(Decoded::Frame { frame: 0..line.len(), consumed: end + 1 })
    }

    #[inline]
    fn envelope(&self, line: &[u8]) -> Result<Envelope<'_>, Fault> {
        self.check(line)?;
        if memchr(b'\n', line).is_some() || line.ends_with(b"\r") {
            return Err(Fault::malformed("a line has no \\n in it, and no \\r at its end"));
        }
        Ok(Envelope::trailer(if self.crlf { b"\r\n" } else { b"\n" }))
    }

    fn bytes_max(&self) -> usize {
        self.frame_max.saturating_add(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_maximum_comes_with_either_end_and_a_longer_one_not() {
        let mut lines = Lines::new().frame_max(3);
        assert_eq!(lines.decode(b"abc\n"), Ok(Decoded::Frame { frame: 0..3, consumed: 4 }));
        assert_eq!(lines.decode(b"abc\r"), Ok(Decoded::More { total: 5 }));
        assert_eq!(lines.decode(b"abc\r\n"), Ok(Decoded::Frame { frame: 0..3, consumed: 5 }));
        assert!(lines.clone().decode(b"abcd\n").unwrap_err().is_too_large());
        assert!(lines.decode(b"abcde").unwrap_err().is_too_large());
    }

    #[test]
    fn only_lines_of_text_have_to_be_text() {
        assert!(Lines::new().decode(b"\xff\n").is_ok());
        let fault = Lines::new().utf8().decode(b"ab\xff\n").unwrap_err();
        assert_eq!(fault.to_string(), "a line that is not UTF-8 at byte 2");
    }

    #[test]
    fn what_would_be_two_lines_is_not_sent() {
        assert!(Lines::new().envelope(b"a\nb").is_err());
        assert!(Lines::new().envelope(b"a\r").is_err(), "it would come without its last byte");
        assert!(Lines::new().envelope(b"a\rb").is_ok());
    }
}
