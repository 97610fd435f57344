//! The four small services, each in both styles that run on workers. Knows nothing of the command line's other arguments.

use std::time::Duration;

use futures_lite::FutureExt;
use wharf::event::{self, Flow, Handler};
use wharf::{Chunk, Connection, Error, Result, Server, ServerHandle};

use crate::args::{Service, Style};

/// Starts a service. It sends at most `piece` bytes at a time: what the send queue can take is not what comes in at once.
pub(crate) fn start(server: Server, service: Service, style: Style, piece: usize) -> Result<ServerHandle> {
    match (style, service) {
        (Style::Async, Service::Echo) => server.start(move |conn| echo(conn, piece)),
        (Style::Async, Service::Discard) => server.start(discard),
        (Style::Async, Service::Chargen) => server.start(chargen),
        (Style::Async, Service::Pingpong) => server.start(move |conn| pingpong(conn, piece)),
        (Style::Event, Service::Echo) => server.start_events(move || Echo { piece, drain: Drain::default() }),
        (Style::Event, Service::Discard) => server.start_events(Discard::default),
        (Style::Event, Service::Chargen) => server.start_events(|| Chargen),
        (Style::Event, Service::Pingpong) => {
            server.start_events(move || Player { piece, game: Pingpong::default(), drain: Drain::default() })
        }
        (Style::Blocking, _) => Err(Error::other("this runs on workers; it has the styles async and event")),
    }
}

/// The largest message of all services.
pub(crate) const MESSAGE_MAX: usize = PATTERN.len();

// Async style.

async fn echo(mut conn: Connection, piece: usize) -> Result<()> {
    while let Some(chunk) = next(&mut conn).await? {
        for bytes in chunk.chunks(piece) {
            conn.send(bytes).await?;
        }
    }
    Ok(())
}

async fn discard(mut conn: Connection) -> Result<()> {
    while next(&mut conn).await?.is_some() {}
    Ok(())
}

async fn chargen(conn: Connection) -> Result<()> {
    let draining = conn.draining();
    let (mut read, mut write) = conn.split();
    let ended = async {
        while read.recv_chunk().await?.is_some() {}
        Ok(())
    };
    let drained = async {
        draining.await;
        Ok(())
    };
    let generated = async {
        loop {
            write.send_owned(PATTERN.as_slice()).await?;
        }
    };
    ended.or(drained).or(generated).await
}

async fn pingpong(mut conn: Connection, piece: usize) -> Result<()> {
    let mut game = Pingpong::default();
    while let Some(chunk) = next(&mut conn).await? {
        for bytes in chunk.chunks(piece) {
            let answer = game.play(bytes);
            conn.send(&answer.bytes).await?;
            if answer.is_last {
                return Err(Error::other("the peer sent something else than `ping`"));
            }
        }
    }
    Ok(())
}

/// The next bytes; `None` when the peer has ended, or when the server drains and nothing has come for a while.
async fn next(conn: &mut Connection) -> Result<Option<Chunk>> {
    let draining = conn.draining();
    let drained = async {
        draining.await;
        wharf::sleep(QUIET).await;
        Ok(None)
    };
    conn.recv_chunk().or(drained).await
}

// Event style.

struct Echo {
    piece: usize,
    drain: Drain,
}

impl Handler for Echo {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        self.drain.postpone(conn);
        for (done, piece) in bytes.chunks(self.piece).enumerate() {
            if conn.send(piece).is_err() {
                return Flow::Consumed(done * self.piece); // the queue is full: offered again when it is not
            }
        }
        Flow::Continue
    }

    fn draining(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.drain.begin(conn)
    }
}

#[derive(Default)]
struct Discard {
    drain: Drain,
}

impl Handler for Discard {
    fn received(&mut self, conn: &mut event::Connection<'_>, _bytes: &[u8]) -> Flow {
        self.drain.postpone(conn);
        Flow::Continue
    }

    fn draining(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.drain.begin(conn)
    }
}

struct Chargen;

impl Chargen {
    /// Queues the pattern until the queue is full; [`Handler::writable`] is called when there is room again.
    fn generate(conn: &mut event::Connection<'_>) -> Flow {
        while conn.send_owned(PATTERN.as_slice()).is_ok() {}
        Flow::Continue
    }
}

impl Handler for Chargen {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        Chargen::generate(conn)
    }

    fn received(&mut self, _conn: &mut event::Connection<'_>, _bytes: &[u8]) -> Flow {
        Flow::Continue
    }

    fn writable(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        Chargen::generate(conn)
    }

    fn draining(&mut self, _conn: &mut event::Connection<'_>) -> Flow {
        Flow::Close
    }
}

struct Player {
    piece: usize,
    game: Pingpong,
    drain: Drain,
}

impl Handler for Player {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        self.drain.postpone(conn);
        for (done, piece) in bytes.chunks(self.piece).enumerate() {
            let mut game = self.game;
            let answer = game.play(piece);
            if conn.send(&answer.bytes).is_err() {
                return Flow::Consumed(done * self.piece);
            }
            self.game = game;
            if answer.is_last {
                return Flow::Close;
            }
        }
        Flow::Continue
    }

    fn draining(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.drain.begin(conn)
    }
}

/// Ends a connection of a draining server when nothing has come for a while.
#[derive(Default)]
struct Drain {
    has_begun: bool,
}

impl Drain {
    fn begin(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.has_begun = true;
        conn.close_after(QUIET);
        Flow::Continue
    }

    /// Something has come.
    fn postpone(&self, conn: &mut event::Connection<'_>) {
        if self.has_begun {
            conn.close_after(QUIET);
        }
    }
}

// What the styles share.

/// One side of a game of ping-pong: how much of the next `ping` has come.
#[derive(Copy, Clone, Debug, Default)]
pub(crate) struct Pingpong {
    matched: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    /// Something else than `ping` came.
    pub(crate) is_last: bool,
}

impl Pingpong {
    pub(crate) fn play(&mut self, bytes: &[u8]) -> Answer {
        let mut answer = Vec::with_capacity(bytes.len() + PING.len());
        for &byte in bytes {
            if self.matched == 0 && matches!(byte, b'\r' | b'\n') {
                answer.push(byte);
            } else if byte == PING[self.matched] {
                self.matched = (self.matched + 1) % PING.len();
                if self.matched == 0 {
                    answer.extend_from_slice(PONG);
                }
            } else {
                return Answer { bytes: answer, is_last: true };
            }
        }
        Answer { bytes: answer, is_last: false }
    }
}

/// A peer that has been silent for this long is idle: nothing is lost by a close.
pub(crate) const QUIET: Duration = Duration::from_millis(500);

const PING: &[u8; 4] = b"ping";
const PONG: &[u8; 4] = b"pong";

/// The lines of RFC 864, "a popular pattern": 72 of the 95 printing characters, each line one further on. After 95 lines
/// it begins anew.
pub(crate) static PATTERN: [u8; LINES * LINE] = pattern();
const LINES: usize = 95;
const LINE: usize = 72 + 2;

const fn pattern() -> [u8; LINES * LINE] {
    let mut pattern = [0; LINES * LINE];
    let mut at = 0;
    while at < pattern.len() {
        let (line, column) = (at / LINE, at % LINE);
        pattern[at] = match column {
            72 => b'\r',
            73 => b'\n',
            _ => b' ' + ((line + column) % LINES) as u8,
        };
        at += 1;
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_that_of_rfc_864() {
        let lines: Vec<_> = PATTERN.chunks(LINE).map(|line| std::str::from_utf8(line).unwrap()).collect();
        assert_eq!(
            lines[0],
            " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefg\r\n"
        );
        assert_eq!(
            lines[94],
            "~ !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdef\r\n"
        );
    }

    #[test]
    fn each_ping_is_answered_in_whatever_pieces_it_comes() {
        let mut game = Pingpong::default();
        let answers: Vec<_> = [&b"pi"[..], b"ng\r\npin", b"gping"].map(|bytes| game.play(bytes).bytes).into();
        assert_eq!(answers.concat(), b"pong\r\npongpong");
    }

    #[test]
    fn something_else_ends_the_game_after_what_was_right() {
        let answer = Pingpong::default().play(b"ping\npang\nping");
        assert_eq!(answer, Answer { bytes: b"pong\n".to_vec(), is_last: true });
    }
}
