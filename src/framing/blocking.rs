//! Blocking style: [`Framed`] around anything that reads and writes.

use std::fmt;
use std::io::{self, Read, Write};

use bytes::{Bytes, BytesMut};

use super::{Decoded, Fault, Framing, decode};
use crate::error::{Cause, Error, Operation, Result};

/// A blocking stream that speaks in frames: `std::net::TcpStream`, say, or whatever implements [`Read`] and [`Write`].
///
/// Deadlines are the stream's own. One that passes loses nothing of what was received, and the next call goes on; but of a frame
/// that is being sent a part may be on its way, and then nothing more can be sent.
///
/// ```
/// use std::net::{TcpListener, TcpStream};
/// use wharf::framing::{LengthPrefixed, blocking::Framed};
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let mut client = Framed::new(TcpStream::connect(listener.local_addr()?)?, LengthPrefixed::u16());
/// let mut server = Framed::new(listener.accept()?.0, LengthPrefixed::u16());
/// client.send(b"hello")?;
/// assert_eq!(server.recv()?.as_deref(), Some(&b"hello"[..]));
/// drop(client);
/// assert_eq!(server.recv()?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Framed<S, F> {
    stream: S,
    framing: F,
    /// What was read and is no frame yet.
    unread: BytesMut,
    /// Bytes that there have to be before it is worth looking again.
    wanted: usize,
    fault: Option<Fault>,
    /// A frame with what is around it, on its way out.
    message: Vec<u8>,
    /// Half a frame has been written.
    broken: bool,
}

/// So much is read at once, and that long a buffer is kept.
const READ_SIZE: usize = 16 * 1024;

impl<S, F: Framing> Framed<S, F> {
    /// Reads and writes the frames of `framing` on `stream`.
    pub fn new(stream: S, framing: F) -> Framed<S, F> {
        let (unread, message) = (BytesMut::new(), Vec::new());
        Framed { stream, framing, unread, wanted: 0, fault: None, message, broken: false }
    }

    /// The stream.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The stream, to be changed.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The stream, and what was read of it that is no frame.
    pub fn into_inner(self) -> (S, Bytes) {
        (self.stream, self.unread.freeze())
    }

    /// The next frame of what was read; `None` if there is none yet.
    fn take(&mut self) -> Result<Option<Bytes>, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        if self.unread.is_empty() || self.unread.len() < self.wanted {
            return Ok(None);
        }
        match decode(&mut self.framing, &self.unread) {
            Ok(Decoded::Frame { frame, consumed }) => {
                self.wanted = 0;
                Ok(Some(self.unread.split_to(consumed).freeze().slice(frame)))
            }
            Ok(Decoded::More { total }) => {
                self.wanted = total;
                Ok(None)
            }
            Err(fault) => {
                self.fault = Some(fault.clone());
                Err(fault)
            }
        }
    }
}

impl<S: Read, F: Framing> Framed<S, F> {
    /// Receives the next frame; `None` when the peer has ended behind the last one. Frames that came together share one buffer.
    ///
    /// # Errors
    /// Those of the stream. If what comes is no frame, or one that is too large: then the stream cannot be read any further. If
    /// the peer ends in mid-frame ([`Error::is_ended`]).
    pub fn recv(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(frame) = self.take().map_err(|fault| fault.error(Operation::Receive))? {
                return Ok(Some(frame));
            }
            let before = self.unread.len();
            self.unread.resize(before + READ_SIZE, 0);
            let read = self.stream.read(&mut self.unread[before..]);
            self.unread.truncate(before + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) if before == 0 => return Ok(None),
                Ok(0) => {
                    return Err(Error::new(Operation::Receive, Cause::EndedInFrame { received: before }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(from_stream(Operation::Receive, error)),
            }
        }
    }
}

impl<S: Write, F: Framing> Framed<S, F> {
    /// Sends `frame` with what goes around it, and flushes.
    ///
    /// # Errors
    /// Those of the stream: a part of the frame may be on its way then, and nothing more can be sent. If it is larger than the
    /// framing allows, or would not be read as one frame: nothing is sent then.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        if self.broken {
            let half = "a frame was cut short before, and nothing can follow it; close the connection";
            return Err(Error::new(Operation::Send, Cause::Misuse(half)));
        }
        let envelope = self.framing.envelope(frame).map_err(|fault| fault.error(Operation::Send))?;
        self.message.clear();
        for part in [envelope.before(), frame, envelope.behind()] {
            self.message.extend_from_slice(part);
        }
        self.broken = true;
        let written = self.stream.write_all(&self.message).and_then(|()| self.stream.flush());
        self.broken = written.is_err();
        self.message.shrink_to(READ_SIZE);
        written.map_err(|error| from_stream(Operation::Send, error))
    }
}

impl<S, F> fmt::Debug for Framed<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Framed").field("unread", &self.unread.len()).finish_non_exhaustive()
    }
}

/// A stream of Wharf's own has an error of Wharf's inside, which says more.
fn from_stream(operation: Operation, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::os(operation, error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::framing::{LengthPrefixed, Lines};

    /// Reads so many bytes at a time, and fails in between.
    struct Dripping(Cursor<Vec<u8>>, usize, bool);

    impl Read for Dripping {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.2 = !self.2;
            if self.2 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = buf.len().min(self.1);
            self.0.read(&mut buf[..n])
        }
    }

    proptest! {
        #[test]
        fn frames_come_as_they_were_sent_over_deadlines_that_pass(
            expected in vec(vec(any::<u8>(), 0..5000), 0..10),
            step in 1usize..9000,
        ) {
            let mut out = Framed::new(Vec::new(), LengthPrefixed::u16());
            for frame in &expected {
                out.send(frame).unwrap();
            }
            let stream = Dripping(Cursor::new(out.into_inner().0), step, false);
            let mut framed = Framed::new(stream, LengthPrefixed::u16());
            let mut received = Vec::new();
            loop {
                match framed.recv() {
                    Ok(Some(frame)) => received.push(frame.to_vec()),
                    Ok(None) => break,
                    Err(error) => prop_assert_eq!(error.io_kind(), Some(io::ErrorKind::WouldBlock)),
                }
            }
            prop_assert_eq!(received, expected);
        }
    }

    #[test]
    fn an_end_in_mid_frame_is_an_error_of_its_own() {
        let mut framed = Framed::new(Cursor::new(b"one\ntw".to_vec()), Lines::new());
        assert_eq!(framed.recv().unwrap().as_deref(), Some(&b"one"[..]));
        let error = framed.recv().unwrap_err();
        assert!(error.is_ended());
        assert_eq!(error.partial(), Some(2));
        assert_eq!(framed.into_inner().1, b"tw"[..]);
    }

    #[test]
    fn nothing_follows_half_a_frame() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
                let n = buf.len().min(std::mem::take(&mut self.0));
                if n == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(n) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut framed = Framed::new(Full(3), Lines::new());
        assert_eq!(framed.send(b"hello").unwrap_err().io_kind(), Some(io::ErrorKind::WouldBlock));
        framed.get_mut().0 = 100;
        assert!(framed.send(b"x").unwrap_err().to_string().contains("cut short"));
    }
}
