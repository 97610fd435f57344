//! Connections: what one is, the worker's commands, and the ends of sends and connects.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, SockRef, Type};

use super::super::kernel::{Completed, Kernel, Key, Request};
use super::key::Kind;
use super::{Driver, Source, grow};
use crate::address;
use crate::config::SocketOptions;
use crate::engine::buffer::{Chunk, Outgoing, SLICES_MAX};
use crate::engine::{Completion, Share, Socket, Submitted, Token};

/// Up to so many sends are made at once, inline; more go into the ring together, which costs less from here on
/// (docs/design/uring.md has the measurement).
const INLINE_SENDS: usize = 3;
/// Free boxes that are kept.
const BOXES_MAX: usize = 256;

pub(super) struct Connection {
    pub(super) generation: u32,
    pub(super) socket: OwnedFd,
    /// Requests in flight.
    pub(super) requests: u8,
    pub(super) is: Is,
    /// Buffers filled to the brim, or light reads, in a row.
    pub(super) run: u8,
    pub(super) share: Share,
    pub(super) outgoing: Option<Box<Outgoing>>,
    pub(super) rare: Option<Box<Rare>>,
}

/// What a connection is at the moment.
#[derive(Default)]
pub(super) struct Is {
    /// Somebody wants to receive.
    pub(super) wanted: bool,
    /// A multishot receive is in flight,
    pub(super) receiving: bool,
    /// and a cancel behind it.
    pub(super) cancelling: bool,
    /// A poll for readability is in flight.
    pub(super) polling: bool,
    /// A poll for failure is in flight.
    pub(super) watching: bool,
    pub(super) connecting: bool,
    pub(super) sending: bool,
    pub(super) bulk: bool,
    /// A read may find something.
    pub(super) readable: bool,
    /// The peer's end, or a failure, has come.
    pub(super) ended: bool,
    pub(super) failed: bool,
    pub(super) queued: bool,
    pub(super) closing: bool,
    /// The close is to send RST.
    pub(super) reset: bool,
}

/// What few connections need, or not for long.
#[derive(Default)]
pub(super) struct Rare {
    /// Received while nobody wanted to.
    pub(super) held: VecDeque<Chunk>,
    /// How receiving ended behind that.
    pub(super) end: Option<Result<(), Errno>>,
    /// Where the connect in flight goes.
    pub(super) address: Option<SockAddr>,
}

/// Commands.
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
    pub(super) fn connection(&mut self, token: Token) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(token.index as usize)?.as_mut()?;
        (connection.generation == token.generation && !connection.is.closing).then_some(connection)
    }

    /// Lets go of a connection that closes, once nothing of it is in flight.
    pub(super) fn release_if_idle(&mut self, index: u32) {
        let slot = &mut self.connections[index as usize];
        if let Some(connection) = slot.take_if(|connection| connection.is.closing && connection.requests == 0)
        {
            let token = Token { index, generation: connection.generation };
            self.kernel.close(connection.socket, connection.is.reset);
            self.finished.push_back(Completion::Closed { token, outgoing: connection.outgoing });
        }
    }
}

/// The ends of requests.
impl<K: Kernel> Driver<K> {
    pub(super) fn sent(&mut self, completed: Completed) -> Option<Completion> {
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

    pub(super) fn connected(&mut self, completed: Completed) -> Option<Completion> {
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
    pub(super) fn addressee(&mut self, key: Key) -> Option<&mut Connection> {
        let index = key.index();
        let connection = self.connections.get_mut(index as usize)?.as_mut()?;
        let is_for = key.is_for(Token { index, generation: connection.generation });
        debug_assert!(is_for, "a slot outlives its requests");
        is_for.then_some(connection)
    }
}

impl Connection {
    pub(super) fn token(&self, key: Key) -> Token {
        Token { index: key.index(), generation: self.generation }
    }

    pub(super) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    pub(super) fn has_held(&self) -> bool {
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
}
