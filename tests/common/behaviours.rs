//! What the servers of the scenarios do, each in both styles.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use futures_lite::FutureExt as _;
use wharf::event::{self, Flow, Handler};
use wharf::{CloseReason, Connection, Error, ErrorKind, Remote, Result};

use super::{Behaviour, pattern};

/// Sends back what it receives, until the peer ends.
#[derive(Clone)]
pub(crate) struct Echo;

impl Behaviour for Echo {
    type Handler = Echo;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut buf = vec![0; 16 * 1024];
        loop {
            let n = conn.recv(&mut buf).await?;
            if n == 0 {
                return Ok(());
            }
            conn.send(&buf[..n]).await?;
        }
    }

    fn handler(self) -> Echo {
        self
    }
}

impl Handler for Echo {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        match conn.send(bytes) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Consumed(0),
        }
    }
}

/// Reads everything and says nothing; ends when the peer does.
#[derive(Clone)]
pub(crate) struct Discard;

impl Behaviour for Discard {
    type Handler = Discard;

    async fn run(self, mut conn: Connection) -> Result<()> {
        while conn.recv_chunk().await?.is_some() {}
        Ok(())
    }

    fn handler(self) -> Discard {
        self
    }
}

impl Handler for Discard {
    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }
}

/// Sends so many bytes of the pattern, in pieces, then ends.
#[derive(Clone)]
pub(crate) struct Stream {
    pub(crate) total: usize,
    pub(crate) piece: usize,
}

pub(crate) struct Streaming {
    stream: Stream,
    sent: usize,
}

impl Behaviour for Stream {
    type Handler = Streaming;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut sent = 0;
        while sent < self.total {
            let end = self.total.min(sent + self.piece);
            conn.send(&pattern(sent..end)).await?;
            sent = end;
        }
        Ok(())
    }

    fn handler(self) -> Streaming {
        Streaming { stream: self, sent: 0 }
    }
}

impl Streaming {
    fn go_on(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        while self.sent < self.stream.total {
            let end = self.stream.total.min(self.sent + self.stream.piece);
            if conn.send(&pattern(self.sent..end)).is_err() {
                return Flow::Continue;
            }
            self.sent = end;
        }
        Flow::Close
    }
}

impl Handler for Streaming {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.go_on(conn)
    }

    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn writable(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.go_on(conn)
    }

    fn ended(&mut self, _: &mut event::Connection<'_>) -> Flow {
        Flow::Continue
    }
}

/// How a send went: what kind of error it was, and why the connection had ended, if it had.
type Outcome = Result<(), (ErrorKind, Option<CloseReason>)>;

/// Sends so many bytes at once whenever bytes come, and passes on how each send went.
#[derive(Clone)]
pub(crate) struct Flood {
    pub(crate) message: usize,
    pub(crate) outcomes: Arc<Mutex<Vec<Outcome>>>,
}

impl Flood {
    pub(crate) fn new(message: usize) -> Flood {
        Flood { message, outcomes: Arc::default() }
    }

    /// Passes on how a send went; says whether it was refused.
    fn note(&self, outcome: Result<()>) -> bool {
        let outcome = outcome.map_err(|error| (error.kind(), error.close_reason()));
        self.outcomes.lock().expect("nobody panics under this lock").push(outcome);
        outcome.is_err()
    }
}

impl Behaviour for Flood {
    type Handler = Flood;

    async fn run(self, mut conn: Connection) -> Result<()> {
        while conn.recv_chunk().await?.is_some() {
            let message = vec![b'x'; self.message];
            while !self.note(conn.send(&message).await) {}
        }
        Ok(())
    }

    fn handler(self) -> Flood {
        self
    }
}

impl Handler for Flood {
    fn received(&mut self, conn: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        let message = vec![b'x'; self.message];
        while !self.note(conn.send(&message)) {}
        Flow::Continue
    }
}

/// Answers the first bytes it gets with a reply and closes at once, whatever else has come.
#[derive(Clone)]
pub(crate) struct ReplyThenClose(pub(crate) Arc<[u8]>);

impl Behaviour for ReplyThenClose {
    type Handler = ReplyThenClose;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.recv(&mut [0; 1]).await?;
        conn.send(&self.0).await
    }

    fn handler(self) -> ReplyThenClose {
        self
    }
}

impl Handler for ReplyThenClose {
    fn received(&mut self, conn: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        conn.send(&self.0).expect("an empty queue takes the reply");
        Flow::Close
    }
}

/// Greets, then closes or resets after a delay.
#[derive(Clone)]
pub(crate) struct EndAfter {
    pub(crate) delay: Duration,
    pub(crate) reset: bool,
}

impl Behaviour for EndAfter {
    type Handler = EndAfter;

    async fn run(self, mut conn: Connection) -> Result<()> {
        conn.send(b"hello").await?;
        if self.reset {
            conn.reset_after(self.delay);
        } else {
            conn.close_after(self.delay);
        }
        conn.closed().await;
        Ok(())
    }

    fn handler(self) -> EndAfter {
        self
    }
}

impl Handler for EndAfter {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.send(b"hello").expect("an empty queue takes it");
        if self.reset {
            conn.reset_after(self.delay);
        } else {
            conn.close_after(self.delay);
        }
        Flow::Continue
    }

    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }

    fn ended(&mut self, _: &mut event::Connection<'_>) -> Flow {
        Flow::Continue
    }
}

/// Echoes, but for three bytes: `p` panics, `f` fails, `r` resets.
#[derive(Clone)]
pub(crate) struct Moody;

impl Behaviour for Moody {
    type Handler = Moody;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut buf = [0; 64];
        loop {
            let n = conn.recv(&mut buf).await?;
            match buf[..n].first() {
                None => return Ok(()),
                Some(b'p') => panic!("as told by the peer"),
                Some(b'f') => {
                    conn.send(b"last words").await?;
                    return Err(Error::other("as told by the peer"));
                }
                Some(b'r') => {
                    conn.reset().await;
                    return Ok(());
                }
                Some(_) => conn.send(&buf[..n]).await?,
            }
        }
    }

    fn handler(self) -> Moody {
        self
    }
}

impl Handler for Moody {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        match bytes[0] {
            b'p' => panic!("as told by the peer"),
            b'f' => {
                conn.send(b"last words").expect("an empty queue takes it");
                Flow::Close
            }
            b'r' => Flow::Reset,
            _ => {
                conn.send(bytes).expect("an empty queue takes it");
                Flow::Continue
            }
        }
    }
}

/// Reads a request of so many bytes within a total deadline, and answers it with `ok`.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) bytes: usize,
    pub(crate) within: Duration,
}

impl Behaviour for Request {
    type Handler = Request;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut request = vec![0; self.bytes];
        conn.recv_exact(&mut request).within(self.within).await?;
        conn.send(b"ok").await
    }

    fn handler(self) -> Request {
        self
    }
}

impl Handler for Request {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.set_deadline(self.within);
        Flow::Continue
    }

    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        if bytes.len() < self.bytes {
            return Flow::Consumed(0);
        }
        conn.set_deadline(None);
        conn.send(b"ok").expect("an empty queue takes it");
        Flow::Close
    }
}

/// Reads until the peer's end, then answers with how many bytes there were and their sum.
#[derive(Clone)]
pub(crate) struct Checksum;

#[derive(Default)]
pub(crate) struct Summing {
    len: u64,
    sum: u64,
}

impl Summing {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.len += 1;
            self.sum = self.sum.wrapping_mul(31).wrapping_add(u64::from(*byte));
        }
    }

    fn answer(&self) -> [u8; 16] {
        let mut answer = [0; 16];
        answer[..8].copy_from_slice(&self.len.to_be_bytes());
        answer[8..].copy_from_slice(&self.sum.to_be_bytes());
        answer
    }
}

/// What [`Checksum`] answers to `bytes`.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 16] {
    let mut summing = Summing::default();
    summing.add(bytes);
    summing.answer()
}

impl Behaviour for Checksum {
    type Handler = Summing;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut summing = Summing::default();
        while let Some(chunk) = conn.recv_chunk().await? {
            summing.add(&chunk);
        }
        conn.send(&summing.answer()).await
    }

    fn handler(self) -> Summing {
        Summing::default()
    }
}

impl Handler for Summing {
    fn received(&mut self, _: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        self.add(bytes);
        Flow::Continue
    }

    fn ended(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.send(&self.answer()).expect("an empty queue takes it");
        Flow::Close
    }
}

/// Sends frames back: four bytes of length, big endian, then so many bytes.
#[derive(Clone)]
pub(crate) struct Frames;

impl Behaviour for Frames {
    type Handler = Frames;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut header = [0; 4];
        loop {
            match conn.recv_exact(&mut header).await {
                Err(error) if error.partial() == Some(0) => return Ok(()),
                outcome => outcome?,
            }
            let mut frame = header.to_vec();
            frame.resize(4 + u32::from_be_bytes(header) as usize, 0);
            conn.recv_exact(&mut frame[4..]).await?;
            conn.send_owned(frame).await?;
        }
    }

    fn handler(self) -> Frames {
        self
    }
}

impl Handler for Frames {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        let mut consumed = 0;
        while let Some((header, rest)) = bytes[consumed..].split_first_chunk::<4>() {
            let len = u32::from_be_bytes(*header) as usize;
            if rest.len() < len || conn.send(&bytes[consumed..consumed + 4 + len]).is_err() {
                break;
            }
            consumed += 4 + len;
        }
        Flow::Consumed(consumed)
    }
}

/// Never reads, and waits for whatever end there is. In event style reading cannot be put off: there it reads.
#[derive(Clone)]
pub(crate) struct Hold;

impl Behaviour for Hold {
    type Handler = Hold;

    async fn run(self, conn: Connection) -> Result<()> {
        conn.closed().await;
        Ok(())
    }

    fn handler(self) -> Hold {
        self
    }
}

impl Handler for Hold {
    fn received(&mut self, _: &mut event::Connection<'_>, _: &[u8]) -> Flow {
        Flow::Continue
    }
}

/// Echoes until the server drains; then it says `bye` and closes.
#[derive(Clone)]
pub(crate) struct Polite;

impl Behaviour for Polite {
    type Handler = Polite;

    async fn run(self, mut conn: Connection) -> Result<()> {
        let mut buf = [0; 64];
        loop {
            let draining = conn.draining();
            let drained = async {
                draining.await;
                Ok(None)
            };
            let received = async { conn.recv(&mut buf).await.map(Some) };
            match drained.or(received).await? {
                None => return conn.send(b"bye").await,
                Some(0) => return Ok(()),
                Some(n) => conn.send(&buf[..n]).await?,
            }
        }
    }

    fn handler(self) -> Polite {
        self
    }
}

impl Handler for Polite {
    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        conn.send(bytes).expect("an empty queue takes it");
        Flow::Continue
    }

    fn draining(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        conn.send(b"bye").expect("an empty queue takes it");
        Flow::Close
    }
}

/// Tells whoever holds the [`Notes`] what happened to its connections, and lets the inner behaviour do the rest.
#[derive(Clone)]
pub(crate) struct Watched<B> {
    pub(crate) inner: B,
    pub(crate) notes: Notes,
}

/// What a [`Watched`] behaviour saw.
#[derive(Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<Noted>>);

#[derive(Default)]
pub(crate) struct Noted {
    pub(crate) connected: usize,
    pub(crate) draining: usize,
    pub(crate) closed: HashMap<CloseReason, usize>,
    pub(crate) remotes: Vec<Remote>,
    pub(crate) pending_max: usize,
    pub(crate) threads: HashMap<ThreadId, usize>,
}

impl Notes {
    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Noted) -> T) -> T {
        look(&mut self.0.lock().expect("nobody panics under this lock"))
    }

    pub(crate) fn connected(&self) -> usize {
        self.look(|noted| noted.connected)
    }

    pub(crate) fn draining(&self) -> usize {
        self.look(|noted| noted.draining)
    }

    /// How often an end for `reason` was told.
    pub(crate) fn closed(&self, reason: CloseReason) -> usize {
        self.look(|noted| noted.closed.get(&reason).copied().unwrap_or_default())
    }

    /// How often any end was told.
    pub(crate) fn closed_all(&self) -> usize {
        self.look(|noted| noted.closed.values().sum())
    }

    pub(crate) fn remotes(&self) -> Vec<Remote> {
        self.look(|noted| noted.remotes.clone())
    }

    fn note_connected(&self, remote: Remote) {
        self.look(|noted| {
            noted.connected += 1;
            noted.remotes.push(remote);
            *noted.threads.entry(thread::current().id()).or_default() += 1;
        });
    }

    fn note_draining(&self) {
        self.look(|noted| noted.draining += 1);
    }

    fn note_closed(&self, reason: CloseReason) {
        self.look(|noted| *noted.closed.entry(reason).or_default() += 1);
    }
}

impl<B> Watched<B> {
    pub(crate) fn new(inner: B) -> (Watched<B>, Notes) {
        let notes = Notes::default();
        (Watched { inner, notes: notes.clone() }, notes)
    }
}

impl<B: Behaviour> Behaviour for Watched<B> {
    type Handler = Watching<B::Handler>;

    fn run(self, conn: Connection) -> impl Future<Output = Result<()>> {
        let Watched { inner, notes } = self;
        notes.note_connected(conn.remote());
        let (closed, draining) = (conn.closed(), conn.draining());
        let of_drain = notes.clone();
        drop(wharf::spawn(async move {
            let reason = closed.await;
            notes.note_closed(reason);
        }));
        drop(wharf::spawn(async move {
            draining.await;
            of_drain.note_draining();
        }));
        inner.run(conn)
    }

    fn handler(self) -> Watching<B::Handler> {
        Watching { inner: self.inner.handler(), notes: self.notes }
    }
}

pub(crate) struct Watching<H> {
    inner: H,
    notes: Notes,
}

impl<H> Watching<H> {
    fn note_pending(&self, conn: &event::Connection<'_>) {
        let pending = conn.queued();
        self.notes.look(|noted| noted.pending_max = noted.pending_max.max(pending));
    }
}

impl<H: Handler> Handler for Watching<H> {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.notes.note_connected(conn.remote());
        self.inner.connected(conn)
    }

    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        let flow = self.inner.received(conn, bytes);
        self.note_pending(conn);
        flow
    }

    fn writable(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        let flow = self.inner.writable(conn);
        self.note_pending(conn);
        flow
    }

    fn ended(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.inner.ended(conn)
    }

    fn draining(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.notes.note_draining();
        self.inner.draining(conn)
    }

    fn closed(&mut self, conn: &mut event::Connection<'_>, reason: CloseReason) {
        self.notes.note_closed(reason);
        self.inner.closed(conn, reason);
    }
}
