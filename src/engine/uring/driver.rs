//! The io_uring engine's logic: which requests are in flight for whom, and what their completions mean.
//!
//! # Ownership
//!
//! The kernel reads and writes memory until a request's last completion was seen, whatever happens to the connection. So
//! a connection's slot, its socket and what it sends stay in `connections` while `requests` is not zero, also after
//! `close`; received bytes come in buffers that belong to the engine; and dropping the driver ends all requests first.
//!
//! # Receiving
//!
//! A connection receives in one of two ways, and changes between them where nothing is in flight:
//!
//! * **multishot**: one request, completed once for each reception, into the next published buffer. Cheapest for messages.
//!   It ends by itself after [`CAP`] bytes, or has to be cancelled when nobody wants more.
//! * **bulk**: wait until the socket is readable, then read inline into a large chunk until it is drained. Cheapest for
//!   streams, as the kernel copies 64 KiB at a time, and needs no buffers in advance. Buffers filled to the brim lead here,
//!   and light reads back.
//!
//! What a multishot request delivers after `pause`, before its end, is held for the next `receive`.

#![allow(unsafe_code)] // requests carry pointers; see `push`

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, SockRef, Type};

use super::buffers::Buffers;
use super::kernel::{Completed, Kernel, Key, Request};
use crate::address;
use crate::config::SocketOptions;
use crate::engine::alarm::Alarm;
use crate::engine::buffer::{Chunk, ChunkPool, Outgoing, SLICES_MAX};
use crate::engine::{
    ACCEPT_BUDGET, Completion, Listener, ListenerId, RECEIVE_BUDGET, Share, Socket, Submitted, Token, Waker,
};
use crate::time::Time;

/// The most bytes that one multishot receive delivers: a connection's share of a turn, after which it has to ask again.
const CAP: u32 = 64 * 1024;
/// So many buffers filled to the brim, one after the other, are a stream.
const FULL_IS_BULK: u8 = 2;
/// So many reads in a row that would have fit into a buffer are messages again.
const LIGHT_IS_MESSAGES: u8 = 8;
/// Up to so many sends are made at once, inline; more go into the ring together, which costs less from here on
/// (docs/design/uring.md has the measurement).
const INLINE_SENDS: usize = 3;
/// Free boxes that are kept.
const BOXES_MAX: usize = 256;
/// How long dropping the engine waits for requests to end.
const TEARDOWN: Duration = Duration::from_secs(1);

pub(crate) struct Driver<K: Kernel> {
    kernel: K,
    buffers: Rc<Buffers>,
    chunks: Rc<ChunkPool>,
    connections: Vec<Option<Connection>>,
    listeners: Vec<Option<Listening>>,
    waker: Arc<OwnedFd>,
    alarm: Alarm,
    started: Instant,
    /// What may have something to do in this turn without the ring.
    queue: VecDeque<Source>,
    /// What has used up its share of this turn.
    later: Vec<Source>,
    /// Completions that need nothing more.
    finished: VecDeque<Completion>,
    /// Requests that found the ring full.
    backlog: VecDeque<(Key, Request)>,
    /// Connections whose receive found no buffer.
    starved: Vec<Token>,
    /// Connections that have ended receiving, and whose failure somebody has to notice.
    unwatched: Vec<Token>,
    /// Boxes for the next sends in flight.
    boxes: Vec<Box<Outgoing>>,
    send_inline: bool,
    /// Requests whose last completion is to come.
    in_flight: usize,
    listeners_made: u32,
    turn: u64,
}

#[derive(Copy, Clone)]
enum Source {
    Connection(u32),
    Listener(u32),
}

/// What a request is for. With the token it makes the key.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Receive,
    Readable,
    Broken,
    Send,
    Connect,
    Accept,
    Wake,
    Alarm,
    Cancel,
}

const KINDS: [Kind; 9] = [
    Kind::Receive,
    Kind::Readable,
    Kind::Broken,
    Kind::Send,
    Kind::Connect,
    Kind::Accept,
    Kind::Wake,
    Kind::Alarm,
    Kind::Cancel,
];
/// A key has room for so many bits of a generation.
const GENERATION_BITS: u32 = 24;
const NOBODY: Token = Token { index: 0, generation: 0 };

impl Key {
    fn new(kind: Kind, token: Token) -> Key {
        let generation = u64::from(token.generation) & ((1 << GENERATION_BITS) - 1);
        Key((kind as u64) << 56 | generation << 32 | u64::from(token.index))
    }

    fn kind(self) -> Option<Kind> {
        KINDS.get((self.0 >> 56) as usize).copied()
    }

    fn index(self) -> u32 {
        self.0 as u32
    }

    /// Whether this is a request for `token`'s generation.
    fn is_for(self, token: Token) -> bool {
        self.0 << 8 == Key::new(Kind::Receive, token).0 << 8
    }
}

struct Connection {
    generation: u32,
    socket: OwnedFd,
    /// Requests in flight.
    requests: u8,
    is: Is,
    /// Buffers filled to the brim, or light reads, in a row.
    run: u8,
    share: Share,
    outgoing: Option<Box<Outgoing>>,
    rare: Option<Box<Rare>>,
}

/// What a connection is at the moment.
#[derive(Default)]
struct Is {
    /// Somebody wants to receive.
    wanted: bool,
    /// A multishot receive is in flight,
    receiving: bool,
    /// and a cancel behind it.
    cancelling: bool,
    /// A poll for readability is in flight.
    polling: bool,
    /// A poll for failure is in flight.
    watching: bool,
    connecting: bool,
    sending: bool,
    bulk: bool,
    /// A read may find something.
    readable: bool,
    /// The peer's end, or a failure, has come.
    ended: bool,
    failed: bool,
    queued: bool,
    closing: bool,
    /// The close is to send RST.
    reset: bool,
}

/// What few connections need, or not for long.
#[derive(Default)]
struct Rare {
    /// Received while nobody wanted to.
    held: VecDeque<Chunk>,
    /// How receiving ended behind that.
    end: Option<Result<(), Errno>>,
    /// Where the connect in flight goes.
    address: Option<SockAddr>,
}

struct Listening {
    listener: OwnedFd,
    generation: u32,
    paused: bool,
    polling: bool,
    ready: bool,
    queued: bool,
    share: Share,
}

impl<K: Kernel> Driver<K> {
    pub(crate) fn new(kernel: K, buffers: Rc<Buffers>) -> io::Result<Driver<K>> {
        use rustix::event::{EventfdFlags, eventfd};
        let waker = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let mut driver = Driver {
            kernel,
            buffers,
            chunks: ChunkPool::new(),
            connections: Vec::new(),
            listeners: Vec::new(),
            waker: Arc::new(waker),
            alarm: Alarm::new()?,
            started: Instant::now(),
            queue: VecDeque::new(),
            later: Vec::new(),
            finished: VecDeque::new(),
            backlog: VecDeque::new(),
            starved: Vec::new(),
            unwatched: Vec::new(),
            boxes: Vec::new(),
            send_inline: true,
            in_flight: 0,
            listeners_made: 0,
            turn: 0,
        };
        driver.await_wake();
        driver.await_alarm();
        Ok(driver)
    }

    pub(crate) fn now(&self) -> Time {
        Time::ZERO.after(self.started.elapsed())
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker::Eventfd(self.waker.clone())
    }

    fn await_wake(&mut self) {
        let request = Request::PollAlways { fd: self.waker.as_raw_fd() };
        self.request(Kind::Wake, NOBODY, request);
    }

    fn await_alarm(&mut self) {
        let request = Request::PollAlways { fd: self.alarm.as_fd().as_raw_fd() };
        self.request(Kind::Alarm, NOBODY, request);
    }
}

/// Requests.
impl<K: Kernel> Driver<K> {
    /// Puts a request that will complete into the ring.
    fn request(&mut self, kind: Kind, token: Token, request: Request) {
        self.in_flight += 1;
        self.push(Key::new(kind, token), request);
    }

    /// Ends the request of this kind; it still completes, with whatever it came to.
    fn cancel(&mut self, kind: Kind, token: Token) {
        let key = Key::new(kind, token);
        self.push(Key::new(Kind::Cancel, token), Request::Cancel { key });
    }

    fn push(&mut self, key: Key, request: Request) {
        // SAFETY: two requests hold pointers. What a `Send` points to is owned by the connection's `outgoing`, what a `Connect`
        // points to by its `rare`; both are boxed, untouched while `sending` or `connecting`, and kept until the completion,
        // or leaked by `drop`.
        let push = |kernel: &mut K| unsafe { kernel.push(key, &request) };
        if self.backlog.is_empty() && push(&mut self.kernel) {
            return;
        }
        if self.backlog.is_empty() {
            // Full. What the kernel says of it, it says again in `wait`.
            drop(self.kernel.enter(false));
            if push(&mut self.kernel) {
                return;
            }
        }
        self.backlog.push_back((key, request));
    }

    fn flush_backlog(&mut self) {
        for (key, request) in std::mem::take(&mut self.backlog) {
            self.push(key, request);
        }
    }
}

/// Listeners.
impl<K: Kernel> Driver<K> {
    pub(crate) fn listen(&mut self, id: ListenerId, listener: Listener) -> io::Result<()> {
        let Listener::Os(listener) = listener else { return Err(io::ErrorKind::Unsupported.into()) };
        let index = id.0 as usize;
        grow(&mut self.listeners, index);
        self.listeners_made += 1;
        self.listeners[index] = Some(Listening {
            listener: OwnedFd::from(std::net::TcpListener::from(listener)),
            generation: self.listeners_made,
            paused: false,
            polling: false,
            ready: false,
            queued: false,
            share: Share::default(),
        });
        self.await_connections(id.0);
        Ok(())
    }

    pub(crate) fn pause_accept(&mut self, id: ListenerId) {
        if let Some(Some(listening)) = self.listeners.get_mut(id.0 as usize) {
            listening.paused = true;
        }
    }

    pub(crate) fn resume_accept(&mut self, id: ListenerId) {
        if let Some(Some(listening)) = self.listeners.get_mut(id.0 as usize) {
            listening.paused = false;
            self.enqueue(Source::Listener(id.0));
            self.await_connections(id.0);
        }
    }

    pub(crate) fn unlisten(&mut self, id: ListenerId) {
        let Some(listening) = self.listeners.get_mut(id.0 as usize).and_then(Option::take) else { return };
        if listening.polling {
            // A request keeps its socket open: connects would go on succeeding until it is gone.
            self.cancel(Kind::Accept, Token { index: id.0, generation: listening.generation });
            drop(listening);
            drop(self.kernel.enter(false));
        }
    }

    fn await_connections(&mut self, index: u32) {
        if let Some(Some(listening)) = self.listeners.get_mut(index as usize)
            && !(listening.polling || listening.ready || listening.paused)
        {
            listening.polling = true;
            let token = Token { index, generation: listening.generation };
            let request = Request::PollReadable { fd: listening.listener.as_raw_fd() };
            self.request(Kind::Accept, token, request);
        }
    }

    fn connections_wait(&mut self, completed: Completed) {
        let index = completed.key.index();
        if let Some(Some(listening)) = self.listeners.get_mut(index as usize)
            && completed.key.is_for(Token { index, generation: listening.generation })
        {
            (listening.polling, listening.ready) = (false, true);
            self.enqueue(Source::Listener(index));
        }
    }

    fn accept(&mut self, index: u32) -> Option<Completion> {
        let listening = self.listeners[index as usize].as_mut()?;
        let listener = ListenerId(index);
        while listening.ready && !listening.paused {
            if !listening.share.take(self.turn, ACCEPT_BUDGET) {
                self.later.push(Source::Listener(index));
                return None;
            }
            match self.kernel.accept(listening.listener.as_fd()) {
                Ok((socket, peer)) => {
                    // An IPv4 peer of a dual-stack listener is an IPv4 peer.
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    let stream = mio::net::TcpStream::from_std(std::net::TcpStream::from(socket));
                    return Some(Completion::Accepted { listener, socket: Socket::Os(stream), peer });
                }
                Err(Errno::AGAIN) => listening.ready = false,
                Err(Errno::INTR) => {}
                Err(error) => {
                    listening.paused = true;
                    return Some(Completion::AcceptFailed { listener, error: error.into() });
                }
            }
        }
        self.await_connections(index);
        None
    }
}

/// Connections: commands.
impl<K: Kernel> Driver<K> {
    pub(crate) fn open(&mut self, token: Token, socket: Socket) -> io::Result<()> {
        let Socket::Os(stream) = socket else { return Err(io::ErrorKind::Unsupported.into()) };
        self.put(token, std::net::TcpStream::from(stream).into());
        Ok(())
    }

    pub(crate) fn connect(
        &mut self,
        token: Token,
        peer: SocketAddr,
        options: &SocketOptions,
    ) -> io::Result<()> {
        let socket = socket2::Socket::new(Domain::for_address(peer), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        address::apply(&SockRef::from(&socket), options)?;
        let connection = self.put(token, socket.into());
        (connection.is.connecting, connection.requests) = (true, 1);
        let fd = connection.socket.as_raw_fd();
        let address: *const SockAddr = connection.rare().address.insert(peer.into());
        self.request(Kind::Connect, token, Request::Connect { fd, address });
        Ok(())
    }

    fn put(&mut self, token: Token, socket: OwnedFd) -> &mut Connection {
        let index = token.index as usize;
        grow(&mut self.connections, index);
        debug_assert!(self.connections[index].is_none(), "a slot is free before it is used again");
        self.connections[index].insert(Connection {
            generation: token.generation,
            socket,
            requests: 0,
            is: Is::default(),
            run: 0,
            share: Share::default(),
            outgoing: None,
            rare: None,
        })
    }

    pub(crate) fn local_addr(&self, token: Token) -> io::Result<SocketAddr> {
        match self.connections.get(token.index as usize) {
            Some(Some(connection)) if connection.generation == token.generation => {
                let address = SockRef::from(&connection.socket).local_addr()?;
                address.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
            }
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    pub(crate) fn receive(&mut self, token: Token) {
        if let Some(connection) = self.connection(token) {
            connection.is.wanted = true;
            if connection.has_held() {
                self.enqueue(Source::Connection(token.index));
            }
            self.arm(token);
        }
    }

    pub(crate) fn pause(&mut self, token: Token) {
        let Some(connection) = self.connection(token) else { return };
        connection.is.wanted = false;
        if connection.is.receiving && !connection.is.cancelling {
            connection.is.cancelling = true;
            self.cancel(Kind::Receive, token);
        }
        self.watch(token);
    }

    /// Says that about so many sends follow.
    pub(crate) fn expect_sends(&mut self, count: usize) {
        self.send_inline = count <= INLINE_SENDS;
    }

    pub(crate) fn recycle(&mut self, outgoing: Box<Outgoing>) {
        debug_assert!(outgoing.is_empty(), "a send that is over left nothing behind");
        if self.boxes.len() < BOXES_MAX {
            self.boxes.push(outgoing);
        }
    }

    pub(crate) fn send_now(&mut self, token: Token, bytes: &[u8]) -> io::Result<usize> {
        let Some(Some(connection)) = self.connections.get(token.index as usize) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if connection.generation != token.generation || connection.is.closing {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if connection.is.connecting || connection.is.sending {
            return Ok(0);
        }
        loop {
            return match self.kernel.send(connection.socket.as_fd(), bytes) {
                Ok(n) => Ok(n),
                Err(Errno::AGAIN) => Ok(0),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    pub(crate) fn send(&mut self, token: Token, outgoing: &mut Outgoing) -> Submitted {
        let send_inline = self.send_inline || outgoing.single().is_none();
        let Some(Some(connection)) = self.connections.get_mut(token.index as usize) else {
            return Submitted::Done(Err(io::ErrorKind::NotConnected.into()));
        };
        if connection.generation != token.generation || connection.is.closing {
            return Submitted::Done(Err(io::ErrorKind::NotConnected.into()));
        }
        debug_assert!(!connection.is.sending, "one send in flight per connection");
        if send_inline && let Some(result) = connection.write(&mut self.kernel, outgoing) {
            return Submitted::Done(result);
        }
        let mut boxed = self.boxes.pop().unwrap_or_default();
        std::mem::swap(&mut *boxed, outgoing);
        let first = boxed.first();
        let (bytes, len) = (first.as_ptr(), u32::try_from(first.len()).unwrap_or(u32::MAX));
        connection.outgoing = Some(boxed);
        connection.is.sending = true;
        connection.requests += 1;
        let fd = connection.socket.as_raw_fd();
        self.request(Kind::Send, token, Request::Send { fd, bytes, len });
        Submitted::InFlight
    }

    pub(crate) fn shutdown(&mut self, token: Token) -> io::Result<()> {
        match self.connections.get(token.index as usize) {
            Some(Some(connection)) if connection.generation == token.generation => {
                self.kernel.shutdown(connection.socket.as_fd())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn close(&mut self, token: Token, reset: bool) {
        let Some(connection) = self.connection(token) else { return };
        (connection.is.closing, connection.is.reset) = (true, reset);
        if let Some(rare) = &mut connection.rare {
            rare.held.clear();
        }
        let Is { receiving, cancelling, polling, watching, connecting, sending, .. } = connection.is;
        let open = [
            (receiving && !cancelling, Kind::Receive),
            (polling, Kind::Readable),
            (watching, Kind::Broken),
            (connecting, Kind::Connect),
            (sending, Kind::Send),
        ];
        for (_, kind) in open.into_iter().filter(|(open, _)| *open) {
            self.cancel(kind, token);
        }
        self.release_if_idle(token.index);
    }

    /// The connection of this token, unless it is closed or about to be.
    fn connection(&mut self, token: Token) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(token.index as usize)?.as_mut()?;
        (connection.generation == token.generation && !connection.is.closing).then_some(connection)
    }

    /// Lets go of a connection that closes, once nothing of it is in flight.
    fn release_if_idle(&mut self, index: u32) {
        let slot = &mut self.connections[index as usize];
        if let Some(connection) = slot.take_if(|connection| connection.is.closing && connection.requests == 0)
        {
            let token = Token { index, generation: connection.generation };
            self.kernel.close(connection.socket, connection.is.reset);
            self.finished.push_back(Completion::Closed { token, outgoing: connection.outgoing });
        }
    }
}

/// Connections: receiving.
impl<K: Kernel> Driver<K> {
    /// Makes sure that what comes next is noticed, if anybody wants it.
    fn arm(&mut self, token: Token) {
        let Some(connection) = self.connection(token) else { return };
        let is = &mut connection.is;
        if !is.wanted || is.receiving || is.polling || is.ended || is.connecting {
            return;
        }
        let fd = connection.socket.as_raw_fd();
        if !is.bulk {
            is.receiving = true;
            connection.requests += 1;
            self.request(Kind::Receive, token, Request::Receive { fd, cap: CAP });
        } else if is.readable {
            self.enqueue(Source::Connection(token.index));
        } else {
            is.polling = true;
            connection.requests += 1;
            self.request(Kind::Readable, token, Request::PollReadable { fd });
        }
    }

    /// Makes sure that a failure is noticed while nothing else is in flight that would.
    fn watch(&mut self, token: Token) {
        let Some(connection) = self.connection(token) else { return };
        let is = &mut connection.is;
        if is.watching || is.failed || is.polling || is.connecting {
            return;
        }
        is.watching = true;
        connection.requests += 1;
        let fd = connection.socket.as_raw_fd();
        self.request(Kind::Broken, token, Request::PollBroken { fd });
    }

    fn received(&mut self, completed: Completed) -> Option<Completion> {
        // From here on the buffer is ours: wherever this returns, it finds its way back.
        let lease = completed.buffer.map(|id| self.buffers.lease(id));
        let full = self.buffers.size();
        let connection = self.addressee(completed.key)?;
        let token = connection.token(completed.key);
        if !completed.more {
            (connection.is.receiving, connection.is.cancelling) = (false, false);
            connection.requests -= 1;
        }
        if connection.is.closing {
            self.release_if_idle(token.index);
            return None;
        }
        let completion = match (completed.outcome(), lease) {
            (Ok(0), _) => self.receive_ended(token, Ok(())),
            (Ok(n), Some(lease)) => {
                connection.run = if n == full { connection.run.saturating_add(1) } else { 0 };
                if connection.run >= FULL_IS_BULK {
                    self.go_bulk(token);
                }
                let chunk = Chunk::leased(lease, n);
                let chunk = if self.buffers.is_scarce() { Chunk::copied(&chunk) } else { chunk };
                self.deliver(token, chunk)
            }
            (Err(Errno::NOBUFS), _) => {
                self.buffers.widen();
                self.starved.push(token);
                return None;
            }
            (Err(Errno::CANCELED | Errno::AGAIN | Errno::INTR), _) => None,
            (Err(error), _) => self.receive_ended(token, Err(error)),
            // Bytes, and no buffer that they could be in.
            (Ok(_), None) => self.receive_ended(token, Err(Errno::IO)),
        };
        if !completed.more {
            self.arm(token);
        }
        completion
    }

    /// From now on the connection reads for itself, as soon as its request has ended.
    fn go_bulk(&mut self, token: Token) {
        let ends_by_itself = self.kernel.has_caps();
        let Some(connection) = self.connection(token) else { return };
        let is = &mut connection.is;
        (is.bulk, is.readable, connection.run) = (true, true, 0);
        if is.receiving && !is.cancelling && !ends_by_itself {
            is.cancelling = true;
            self.cancel(Kind::Receive, token);
        }
    }

    /// Reports a chunk, or holds it while nobody wants it.
    fn deliver(&mut self, token: Token, chunk: Chunk) -> Option<Completion> {
        let connection = self.connection(token)?;
        if connection.is.wanted && !connection.has_held() {
            return Some(Completion::Received { token, chunk });
        }
        connection.rare().held.push_back(chunk);
        if connection.is.wanted {
            self.enqueue(Source::Connection(token.index));
        }
        None
    }

    fn receive_ended(&mut self, token: Token, result: Result<(), Errno>) -> Option<Completion> {
        let connection = self.connection(token)?;
        if std::mem::replace(&mut connection.is.ended, true) {
            return None;
        }
        connection.is.failed = result.is_err();
        if result.is_ok() {
            self.unwatched.push(token);
        }
        let connection = self.connection(token)?;
        // The peer's end waits for somebody who wants it; a failure is told at once, unless bytes come before it.
        if connection.has_held() || (result.is_ok() && !connection.is.wanted) {
            connection.rare().end = Some(result);
            if connection.is.wanted {
                self.enqueue(Source::Connection(token.index));
            }
            return None;
        }
        Some(end_of(token, result))
    }

    /// Does what a connection can do without the ring: reports what was held, and reads in bulk.
    fn step(&mut self, index: u32) -> Option<Completion> {
        let connection = self.connections[index as usize].as_mut()?;
        let token = Token { index, generation: connection.generation };
        if !connection.is.wanted || connection.is.closing {
            return None;
        }
        if let Some(rare) = &mut connection.rare {
            if let Some(chunk) = rare.held.pop_front() {
                return Some(Completion::Received { token, chunk });
            }
            if let Some(result) = rare.end.take() {
                return Some(end_of(token, result));
            }
        }
        let is = &connection.is;
        if !is.bulk || !is.readable || is.ended || is.receiving || is.polling {
            return None;
        }
        if !connection.share.take(self.turn, RECEIVE_BUDGET) {
            self.later.push(Source::Connection(index));
            return None;
        }
        self.read(token)
    }

    fn read(&mut self, token: Token) -> Option<Completion> {
        let messages = self.buffers.size();
        loop {
            let Some(Some(connection)) = self.connections.get_mut(token.index as usize) else { return None };
            let mut room = 0;
            let (kernel, socket) = (&mut self.kernel, connection.socket.as_fd());
            let read = self.chunks.fill(|buf| {
                room = buf.len();
                kernel.receive(socket, buf)
            });
            match read {
                Ok(Some(chunk)) => {
                    // Fewer bytes than asked for: drained. The poll tells of more, and of the end.
                    connection.is.readable = chunk.len() == room;
                    connection.note_read(chunk.len() <= messages);
                    self.arm(token);
                    return Some(Completion::Received { token, chunk });
                }
                Ok(None) => return self.receive_ended(token, Ok(())),
                Err(Errno::AGAIN) => {
                    connection.is.readable = false;
                    self.arm(token);
                    return None;
                }
                Err(Errno::INTR) => {}
                Err(error) => return self.receive_ended(token, Err(error)),
            }
        }
    }

    fn became_readable(&mut self, completed: Completed) {
        let Some(connection) = self.addressee(completed.key) else { return };
        let token = connection.token(completed.key);
        connection.is.polling = false;
        connection.requests -= 1;
        connection.is.readable = true;
        if connection.is.closing {
            return self.release_if_idle(token.index);
        }
        if connection.is.wanted {
            self.enqueue(Source::Connection(token.index));
        } else {
            // Readable is not broken: that is another question now.
            self.watch(token);
        }
    }

    /// The poll for failure has completed.
    fn broke(&mut self, completed: Completed) -> Option<Completion> {
        let connection = self.addressee(completed.key)?;
        let token = connection.token(completed.key);
        if !completed.more {
            connection.is.watching = false;
            connection.requests -= 1;
        }
        if connection.is.closing {
            self.release_if_idle(token.index);
            return None;
        }
        let reads = connection.is.wanted && !connection.is.ended;
        if completed.result < 0 || connection.is.failed || reads {
            // Cancelled, or told already, or about to be.
            return None;
        }
        let Some(error) = SockRef::from(&connection.socket).take_error().unwrap_or_else(Some) else {
            // Only the peer has ended, or both sides have.
            if !completed.more {
                self.unwatched.push(token);
            }
            return None;
        };
        (connection.is.ended, connection.is.failed) = (true, true);
        Some(Completion::Failed { token, error })
    }
}

/// Connections: the ends of other requests.
impl<K: Kernel> Driver<K> {
    fn sent(&mut self, completed: Completed) -> Option<Completion> {
        let connection = self.addressee(completed.key)?;
        let token = connection.token(completed.key);
        connection.is.sending = false;
        connection.requests -= 1;
        if connection.is.closing {
            // What went out before the close is known only here, but nobody wants to know any more.
            self.release_if_idle(token.index);
            return None;
        }
        let outgoing = connection.outgoing.take()?;
        let result = match completed.outcome() {
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            other => other.map_err(io::Error::from),
        };
        Some(Completion::Sent { token, outgoing, result })
    }

    fn connected(&mut self, completed: Completed) -> Option<Completion> {
        let connection = self.addressee(completed.key)?;
        let token = connection.token(completed.key);
        connection.is.connecting = false;
        connection.requests -= 1;
        connection.rare = None;
        if connection.is.closing {
            self.release_if_idle(token.index);
            return None;
        }
        let result = completed.outcome().map(drop).map_err(io::Error::from);
        (connection.is.ended, connection.is.failed) = (result.is_err(), result.is_err());
        self.arm(token);
        Some(Completion::Connected { token, result })
    }

    /// The connection that a request was made for, closing or not: its slot is kept until the last completion.
    fn addressee(&mut self, key: Key) -> Option<&mut Connection> {
        let index = key.index();
        let connection = self.connections.get_mut(index as usize)?.as_mut()?;
        let is_for = key.is_for(Token { index, generation: connection.generation });
        debug_assert!(is_for, "a slot outlives its requests");
        is_for.then_some(connection)
    }
}

/// Turns.
impl<K: Kernel> Driver<K> {
    pub(crate) fn wait(&mut self, until: Option<Time>) -> io::Result<()> {
        self.turn += 1;
        for source in std::mem::take(&mut self.later) {
            self.enqueue(source);
        }
        self.flush_backlog();
        self.kernel.publish(&self.buffers);
        self.feed_starved();
        for token in std::mem::take(&mut self.unwatched) {
            self.watch(token);
        }
        let pending = !self.queue.is_empty() || !self.finished.is_empty() || self.kernel.has_completed();
        // Times in the past come up with every turn that must not sleep, and need no clock.
        let sleep = !pending && self.backlog.is_empty() && until != Some(Time::ZERO);
        if sleep && let Some(until) = until {
            let started = self.started;
            self.alarm.set(until, || Time::ZERO.after(started.elapsed()))?;
        }
        self.kernel.enter(sleep)
    }

    /// Lets those receive again that found no buffer, now that there are some.
    fn feed_starved(&mut self) {
        if self.buffers.published() > 0 {
            for token in std::mem::take(&mut self.starved) {
                self.arm(token);
            }
        }
    }

    pub(crate) fn next(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.finished.pop_front() {
                return Some(completion);
            }
            if let Some(completed) = self.kernel.pop() {
                if let Some(completion) = self.complete(completed) {
                    return Some(completion);
                }
                continue;
            }
            let source = self.queue.front().copied()?;
            let completion = match source {
                Source::Connection(index) => self.step(index),
                Source::Listener(index) => self.accept(index),
            };
            if completion.is_some() {
                // It stays in front, as it may have more to do.
                return completion;
            }
            self.queue.pop_front();
            if let Some(queued) = self.queued(source) {
                *queued = false;
            }
        }
    }

    fn complete(&mut self, completed: Completed) -> Option<Completion> {
        let kind = completed.key.kind()?;
        if !completed.more && kind != Kind::Cancel {
            self.in_flight -= 1;
        }
        match kind {
            Kind::Receive => return self.received(completed),
            Kind::Send => return self.sent(completed),
            Kind::Connect => return self.connected(completed),
            Kind::Broken => return self.broke(completed),
            Kind::Readable => self.became_readable(completed),
            Kind::Accept => self.connections_wait(completed),
            Kind::Wake => {
                if !completed.more {
                    self.await_wake();
                }
                return Some(Completion::Woken);
            }
            Kind::Alarm => {
                self.alarm.rang();
                if !completed.more {
                    self.await_alarm();
                }
            }
            Kind::Cancel => {}
        }
        None
    }

    fn queued(&mut self, source: Source) -> Option<&mut bool> {
        match source {
            Source::Connection(index) => {
                self.connections[index as usize].as_mut().map(|connection| &mut connection.is.queued)
            }
            Source::Listener(index) => {
                self.listeners[index as usize].as_mut().map(|listening| &mut listening.queued)
            }
        }
    }

    fn enqueue(&mut self, source: Source) {
        if let Some(queued) = self.queued(source)
            && !std::mem::replace(queued, true)
        {
            self.queue.push_back(source);
        }
    }
}

impl<K: Kernel> Drop for Driver<K> {
    /// Ends all requests before the memory goes that they use: first of teardown's steps, the rest is the kernel's drop.
    fn drop(&mut self) {
        // What never reached the ring has nothing to end.
        for (key, _) in std::mem::take(&mut self.backlog) {
            self.in_flight -= usize::from(key.kind() != Some(Kind::Cancel));
        }
        let end = Instant::now() + TEARDOWN;
        while self.in_flight > 0 && Instant::now() < end {
            if self.backlog.is_empty() {
                self.push(Key::new(Kind::Cancel, NOBODY), Request::CancelAll);
            }
            self.flush_backlog();
            drop(self.kernel.enter(false));
            let before = self.in_flight;
            while let Some(completed) = self.kernel.pop() {
                if let Some(id) = completed.buffer {
                    drop(self.buffers.lease(id));
                }
                let counts = completed.key.kind().is_some_and(|kind| kind != Kind::Cancel);
                self.in_flight -= usize::from(counts && !completed.more);
            }
            if self.in_flight == before {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        if self.in_flight > 0 {
            self.kernel.abandon();
            for connection in self.connections.drain(..).flatten() {
                std::mem::forget((connection.outgoing, connection.rare));
            }
        }
    }
}

impl Connection {
    fn token(&self, key: Key) -> Token {
        Token { index: key.index(), generation: self.generation }
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn has_held(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| !rare.held.is_empty() || rare.end.is_some())
    }

    /// Writes what the kernel takes; `None` if it takes nothing now.
    fn write(&self, kernel: &mut impl Kernel, outgoing: &Outgoing) -> Option<io::Result<usize>> {
        loop {
            let written = match outgoing.single() {
                Some(bytes) => kernel.send(self.socket.as_fd(), bytes),
                None => {
                    let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                    let count = outgoing.slices(&mut slices);
                    kernel.send_gathered(self.socket.as_fd(), &slices[..count])
                }
            };
            match written {
                Ok(n) => return Some(Ok(n)),
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => {}
                Err(error) => return Some(Err(error.into())),
            }
        }
    }

    /// Goes back to multishot after enough reads in bulk that were none.
    fn note_read(&mut self, light: bool) {
        self.run = if light { self.run.saturating_add(1) } else { 0 };
        if self.run >= LIGHT_IS_MESSAGES && !self.is.readable {
            (self.is.bulk, self.run) = (false, 0);
        }
    }
}

fn end_of(token: Token, result: Result<(), Errno>) -> Completion {
    match result {
        Ok(()) => Completion::ReceiveEnded { token },
        Err(error) => Completion::Failed { token, error: error.into() },
    }
}

fn grow<T>(table: &mut Vec<Option<T>>, index: usize) {
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
}
