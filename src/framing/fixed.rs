//! Frames that are all of one size: [`Fixed`].

use super::{Decoded, Envelope, Fault, Framing};

/// Frames of so many bytes each, with nothing around them.
///
/// ```
/// use wharf::framing::{Decoded, Fixed, Framing};
///
/// assert_eq!(Fixed::of(4).decode(b"pingpo"), Ok(Decoded::Frame { frame: 0..4, consumed: 4 }));
/// ```
#[derive(Copy, Clone, Debug)]
pub struct Fixed {
    size: usize,
}

impl Fixed {
    /// Frames of `size` bytes, which is their maximum as well.
    ///
    /// # Panics
    /// If it is 0.
    pub fn of(size: usize) -> Fixed {
        assert!(size > 0, "a frame of a fixed size has a byte at least");
        Fixed { size }
    }
}

impl Framing for Fixed {
    #[inline]
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Fault> {
        let total = self.size;
        if bytes.len() < total {
            return Ok(Decoded::More { total });
        }
        Ok(Decoded::Frame { frame: 0..total, consumed: total })
    }

    #[inline]
    fn envelope(&self, frame: &[u8]) -> Result<Envelope<'_>, Fault> {
        if frame.len() != self.size {
            let (size, len) = (self.size, frame.len());
            return Err(Fault::malformed(format!("a frame has {size} bytes, not {len}")));
        }
        Ok(Envelope::header(&[]))
    }

    fn bytes_max(&self) -> usize {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frames_of_the_size_are_sent() {
        assert!(Fixed::of(4).envelope(b"ping").is_ok());
        assert_eq!(Fixed::of(4).envelope(b"pi").unwrap_err().to_string(), "a frame has 4 bytes, not 2");
    }
}
