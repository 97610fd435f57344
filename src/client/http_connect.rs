//! The client's side of HTTP's CONNECT (RFC 9110, section 9.3.6). No socket: bytes in, bytes out.
//!
//! What stands in the answer's header is of no use here, but its status; what comes behind the header is the tunnel's.

use std::io::ErrorKind;

use super::proxy::{Credentials, Fault};

/// The most bytes of the proxy's answers, interim ones included, before the tunnel begins.
pub(super) const ANSWER_MAX: usize = 16 * 1024;
/// The most bytes of a proxy's own words that an error repeats.
const REASON_MAX: usize = 100;

/// The request for a tunnel to `authority`, a host and a port in ASCII.
pub(super) fn request(authority: &str, credentials: Option<&Credentials>) -> Vec<u8> {
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some(Credentials { user, password }) = credentials {
        let token = base64(format!("{user}:{password}").as_bytes());
        request.push_str(&format!("Proxy-Authorization: Basic {token}\r\n"));
    }
    request.push_str("\r\n");
    request.into_bytes()
}

/// What the proxy's answer has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is not whole.
    More,
    /// There is a tunnel; the last so many of the bytes that were given are the target's.
    Tunnel { behind: usize },
}

/// The proxy's answer as it comes.
#[derive(Debug, Default)]
pub(super) struct Reader {
    line: Vec<u8>,
    /// Of the answer that is being read, behind its first line.
    status: Option<u16>,
    reason: String,
    read: usize,
}

impl Reader {
    /// Takes what has come, in pieces of any size. Not to be called again when there is a tunnel, or after a fault.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<Answer, Fault> {
        for (index, byte) in bytes.iter().enumerate() {
            self.read += 1;
            if *byte == b'\n' {
                if self.end_line()? {
                    return Ok(Answer::Tunnel { behind: bytes.len() - index - 1 });
                }
            } else {
                self.line.push(*byte);
                self.look()?;
            }
            if self.read == ANSWER_MAX {
                let problem = format!("the proxy's answer is longer than {ANSWER_MAX} bytes");
                return Err(Fault::new(ErrorKind::InvalidData, problem));
            }
        }
        Ok(Answer::More)
    }

    /// Refuses what cannot become a status line, before it is as long as one may be.
    fn look(&self) -> Result<(), Fault> {
        const START: &[u8] = b"HTTP/1.";
        let looked_at = self.line.len().min(START.len());
        if self.status.is_none() && self.line[..looked_at] != START[..looked_at] {
            return Err(Fault::garbage("an answer that is not of HTTP/1"));
        }
        Ok(())
    }

    /// A line is whole; says whether there is a tunnel behind it.
    fn end_line(&mut self) -> Result<bool, Fault> {
        let mut line = std::mem::take(&mut self.line);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        let Some(status) = self.status else {
            self.status = Some(self.status_line(&line)?);
            return Ok(false);
        };
        if !line.is_empty() {
            return Ok(false);
        }
        match status {
            // An interim answer: the real one follows.
            100..=199 => {
                self.status = None;
                Ok(false)
            }
            200..=299 => Ok(true),
            _ => Err(self.refusal(status)),
        }
    }

    fn status_line(&mut self, line: &[u8]) -> Result<u16, Fault> {
        let garbage = || Fault::garbage("an answer that has no status");
        let text = String::from_utf8_lossy(line);
        let mut parts = text.splitn(3, ' ');
        let version = parts.next().unwrap_or_default();
        let digits = parts.next().unwrap_or_default();
        if !matches!(version, "HTTP/1.0" | "HTTP/1.1") || digits.len() != 3 {
            return Err(garbage());
        }
        let is_status = digits.bytes().all(|byte| byte.is_ascii_digit());
        let status = digits.parse().ok().filter(|status| is_status && (100..600).contains(status));
        self.reason = parts.next().unwrap_or_default().chars().take(REASON_MAX).collect();
        status.ok_or_else(garbage)
    }

    fn refusal(&self, status: u16) -> Fault {
        let kind = match status {
            401 | 403 | 407 => ErrorKind::PermissionDenied,
            504 => ErrorKind::TimedOut,
            _ => ErrorKind::Other,
        };
        let mut problem = format!("the proxy answered: {status} {}", self.reason.escape_debug());
        if status == 407 {
            problem.push_str("; give it (other) credentials");
        }
        Fault::new(kind, problem)
    }
}

/// The alphabet and the padding of RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index| u32::from(group.get(index).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            text.push(match digit <= group.len() {
                true => char::from(ALPHABET[(bits >> (18 - 6 * digit) & 63) as usize]),
                false => '=',
            });
        }
    }
    text
}

/// Any bytes are an answer, the beginning of one, or a fault, wherever they are split; for the fuzz target.
#[cfg(any(test, fuzzing))]
pub(crate) fn check(data: &[u8]) {
    /// Where the tunnel begins; `Err` tells after how many bytes there was a fault.
    fn read(pieces: &[&[u8]]) -> Result<Option<usize>, usize> {
        let (mut reader, mut before) = (Reader::default(), 0);
        for piece in pieces {
            match reader.receive(piece) {
                Ok(Answer::More) => before += piece.len(),
                Ok(Answer::Tunnel { behind }) => return Ok(Some(before + piece.len() - behind)),
                Err(_) => return Err(reader.read),
            }
            assert!(before <= ANSWER_MAX && reader.line.len() <= ANSWER_MAX);
        }
        Ok(None)
    }
    let whole = read(&[data]);
    let bytes: Vec<&[u8]> = data.chunks(1).collect();
    assert_eq!(whole, read(&bytes), "it does not matter how it is split");
    let half = data.len() / 2;
    assert_eq!(whole, read(&[&data[..half], &data[half..]]));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(answer: &[u8]) -> Result<Answer, Fault> {
        Reader::default().receive(answer)
    }

    #[test]
    fn the_request_names_the_target_twice_and_the_user_once() {
        assert_eq!(request("a.test:80", None), b"CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n\r\n");
        let credentials =
            Credentials { user: String::from("Aladdin"), password: String::from("open sesame") };
        let request = String::from_utf8(request("a.test:80", Some(&credentials))).unwrap();
        // The example of RFC 7617.
        assert!(
            request.contains("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"),
            "{request}"
        );
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn what_comes_behind_the_header_is_the_tunnels() {
        assert_eq!(read(b"HTTP/1.1 200 OK\r\n\r\n").unwrap(), Answer::Tunnel { behind: 0 });
        assert_eq!(read(b"HTTP/1.0 200\nVia: x\n\nhello").unwrap(), Answer::Tunnel { behind: 5 });
        let with_length = b"HTTP/1.1 204 No\r\nContent-Length: 9\r\n\r\nabc";
        assert_eq!(read(with_length).unwrap(), Answer::Tunnel { behind: 3 }, "it has no body (RFC 9110)");
        assert_eq!(
            read(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n!").unwrap(),
            Answer::Tunnel { behind: 1 }
        );
        assert_eq!(read(b"HTTP/1.1 200 OK\r\nVia: x\r\n").unwrap(), Answer::More);
    }

    #[test]
    fn refusals_are_told_apart() {
        for (answer, kind, words) in [
            (
                "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
                ErrorKind::PermissionDenied,
                "credentials",
            ),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", ErrorKind::PermissionDenied, "answered: 403 Forbidden"),
            ("HTTP/1.1 504 Gateway Timeout\r\n\r\n", ErrorKind::TimedOut, "504"),
            ("HTTP/1.1 502 Bad\x1b[2J\r\n\r\n", ErrorKind::Other, "502 Bad\\u{1b}[2J"),
            ("HTTP/1.1 301 Moved\r\n\r\n", ErrorKind::Other, "301"),
            ("SSH-2.0", ErrorKind::InvalidData, "not of HTTP/1"),
            ("\n", ErrorKind::InvalidData, "no status"),
            ("HTTP/2 200 OK\r\n", ErrorKind::InvalidData, "not of HTTP/1"),
            ("HTTP/1.1 2000 OK\r\n", ErrorKind::InvalidData, "no status"),
            ("HTTP/1.1 +20 OK\r\n", ErrorKind::InvalidData, "no status"),
            ("HTTP/1.1 099 OK\r\n", ErrorKind::InvalidData, "no status"),
        ] {
            let fault = read(answer.as_bytes()).expect_err(answer);
            assert_eq!(fault.kind, kind, "{answer}");
            assert!(fault.problem.contains(words), "{}", fault.problem);
        }
    }

    #[test]
    fn an_answer_without_end_is_refused_and_little_of_it_is_repeated() {
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(ANSWER_MAX));
        assert!(read(endless.as_bytes()).unwrap_err().problem.contains("longer than 16384"));
        let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(ANSWER_MAX / 20);
        assert!(read(interim.as_bytes()).unwrap_err().problem.contains("longer than 16384"));
        let wordy = format!("HTTP/1.1 500 {}\r\n\r\n", "x".repeat(5_000));
        assert!(read(wordy.as_bytes()).unwrap_err().problem.len() < 200);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_a_fault(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            check(&data);
        }

        #[test]
        fn it_does_not_matter_how_an_answer_is_split(
            status in 90_u16..700, headers in "([A-Za-z-]{1,9}: [ -~]{0,30}\r?\n){0,5}", behind in ".{0,20}",
        ) {
            check(format!("HTTP/1.1 {status} Words\r\n{headers}\r\n{behind}").as_bytes());
        }
    }
}
