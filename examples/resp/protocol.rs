//! RESP2 without input or output: commands from bytes, replies to bytes.
//!
//! A command is an array of bulk strings, `*2\r\n$3\r\nGET\r\n$1\r\nk\r\n`, or a line of words, `GET k\r\n`.

/// The most arguments of a command,
const ARGS_MAX: usize = 1024;
/// bytes of one of them,
const BULK_MAX: usize = 512 * 1024;
/// and bytes of all of it.
const COMMAND_MAX: usize = 1024 * 1024;
/// The longest line: a command in words, or a number.
const LINE_MAX: usize = 16 * 1024;
/// The largest reply, which any argument fits into: with a batch before it, it fits into a send queue.
pub(crate) const REPLY_MAX: usize = 600 * 1024;

/// What the beginning of some bytes is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed<'a> {
    /// A whole command, which may be empty, and where the next one begins.
    Command { args: Vec<&'a [u8]>, consumed: usize },
    /// The beginning of one that has so many bytes at least.
    Incomplete { total: usize },
}

type Result<T> = std::result::Result<T, &'static str>;

/// Reads the first command of `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed<'_>> {
    if bytes.first() != Some(&b'*') {
        return parse_words(bytes);
    }
    let mut at = 0;
    let incomplete = |total| Ok(Parsed::Incomplete { total });
    let Some(count) = number(bytes, &mut at, "invalid multibulk length")? else {
        return incomplete(bytes.len() + 1);
    };
    if count > ARGS_MAX as i64 {
        return Err("invalid multibulk length");
    }
    // A peer may say that many come and send none: room is made for what is there.
    let mut args = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(bytes.len() / 4));
    for _ in 0..count {
        match bytes.get(at) {
            Some(b'$') => {}
            Some(_) => return Err("expected '$'"),
            None => return incomplete(at + 4),
        }
        let Some(len) = number(bytes, &mut at, "invalid bulk length")? else {
            return incomplete(bytes.len() + 1);
        };
        let len = usize::try_from(len).ok().filter(|len| *len <= BULK_MAX).ok_or("invalid bulk length")?;
        let end = at + len + 2;
        if end > COMMAND_MAX {
            return Err("too big a command");
        }
        let Some(bulk) = bytes.get(at..end) else { return incomplete(end) };
        args.push(bulk.strip_suffix(b"\r\n").ok_or("expected the end of a bulk string")?);
        at = end;
    }
    Ok(Parsed::Command { args, consumed: at })
}

fn parse_words(bytes: &[u8]) -> Result<Parsed<'_>> {
    let Some(end) = line_end(bytes, "too big inline request")? else {
        return Ok(Parsed::Incomplete { total: bytes.len() + 1 });
    };
    let words = bytes[..end].split(u8::is_ascii_whitespace);
    let args = words.filter(|word| !word.is_empty()).collect();
    Ok(Parsed::Command { args, consumed: end + 1 })
}

/// Reads the number of the line that begins with a mark at `at`, and moves `at` behind it.
fn number(bytes: &[u8], at: &mut usize, problem: &'static str) -> Result<Option<i64>> {
    let line = &bytes[*at + 1..];
    let Some(end) = line_end(&line[..line.len().min(32)], problem)? else {
        return if line.len() < 32 { Ok(None) } else { Err(problem) };
    };
    *at += end + 2;
    let digits = line[..end].strip_suffix(b"\r").ok_or(problem)?;
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or(problem).map(Some)
}

/// Where the first line ends, if it does.
fn line_end(bytes: &[u8], problem: &'static str) -> Result<Option<usize>> {
    let end = bytes.iter().take(LINE_MAX).position(|byte| *byte == b'\n');
    if end.is_none() && bytes.len() >= LINE_MAX { Err(problem) } else { Ok(end) }
}

/// Replies, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Reply(Vec<u8>);

impl Reply {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Forgets what was sent, and keeps a buffer of a usual size.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
        self.0.shrink_to(16 * 1024);
    }

    /// Takes back what is behind the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    pub(crate) fn simple(&mut self, text: &str) {
        self.line('+', text);
    }

    pub(crate) fn error(&mut self, text: &str) {
        // Nothing that a peer has sent may end the line.
        self.line('-', &text.replace(['\r', '\n'], " "));
    }

    pub(crate) fn integer(&mut self, number: i64) {
        self.line(':', &number.to_string());
    }

    pub(crate) fn array(&mut self, len: usize) {
        self.line('*', &len.to_string());
    }

    pub(crate) fn bulk(&mut self, bytes: &[u8]) {
        self.line('$', &bytes.len().to_string());
        self.0.extend_from_slice(bytes);
        self.0.extend_from_slice(b"\r\n");
    }

    /// The bulk string, or that there is none.
    pub(crate) fn bulk_or_nil(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            Some(bytes) => self.bulk(bytes),
            None => self.line('$', "-1"),
        }
    }

    fn line(&mut self, mark: char, text: &str) {
        self.0.push(mark as u8);
        self.0.extend_from_slice(text.as_bytes());
        self.0.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn array(args: &[Vec<u8>]) -> Vec<u8> {
        let mut command = Reply::default();
        command.array(args.len());
        for arg in args {
            command.bulk(arg);
        }
        command.0
    }

    proptest! {
        #[test]
        fn a_command_is_read_back_and_each_beginning_of_it_is_incomplete(
            args in vec(vec(any::<u8>(), 0..40), 0..6),
            behind in vec(any::<u8>(), 0..20),
        ) {
            let command = array(&args);
            let stream = [&command[..], &behind].concat();
            let args: Vec<_> = args.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(parse(&stream), Ok(Parsed::Command { args, consumed: command.len() }));
            for len in 0..command.len() {
                let Ok(Parsed::Incomplete { total }) = parse(&command[..len]) else { panic!("at {len}") };
                prop_assert!(len < total && total <= command.len(), "{} of {} at {}", total, command.len(), len);
            }
        }

        #[test]
        fn any_bytes_are_a_command_the_beginning_of_one_or_a_problem(
            bytes in vec(prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), b'0'..=b'9', any::<u8>()], 0..200),
        ) {
            match parse(&bytes) {
                Ok(Parsed::Command { consumed, .. }) => prop_assert!((1..=bytes.len()).contains(&consumed)),
                Ok(Parsed::Incomplete { total }) => prop_assert!(total > bytes.len()),
                Err(_) => {}
            }
        }
    }

    #[test]
    fn words_on_a_line_are_a_command() {
        let args = vec![&b"SET"[..], b"k", b"v"];
        assert_eq!(parse(b"SET  k v\r\nGET"), Ok(Parsed::Command { args, consumed: 10 }));
        assert_eq!(parse(b"\r\n"), Ok(Parsed::Command { args: vec![], consumed: 2 }));
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_comes() {
        assert_eq!(parse(b"*1025\r\n"), Err("invalid multibulk length"));
        assert_eq!(parse(b"*1\r\n$524289\r\n"), Err("invalid bulk length"));
        assert_eq!(parse(b"*1\r\n$-1\r\n"), Err("invalid bulk length"));
        assert_eq!(parse(&[b'x'; LINE_MAX]), Err("too big inline request"));
        assert_eq!(parse(&[b'*'; 40]), Err("invalid multibulk length"));
        let half = [&b"*3\r\n$524288\r\n"[..], &[b'x'; BULK_MAX], b"\r\n"].concat();
        let whole = [&half[..], &half[4..], b"$1\r\n"].concat();
        assert_eq!(parse(&whole), Err("too big a command"));
    }

    #[test]
    fn an_error_is_one_line_whatever_the_peer_has_sent() {
        let mut reply = Reply::default();
        reply.error("unknown command 'a\r\n+OK'");
        assert_eq!(reply.bytes(), b"-unknown command 'a  +OK'\r\n");
    }
}
