//! Connections: what one is, and how it comes and goes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use socket2::SockAddr;

use super::super::kernel::{Completed, Kernel, Key, Request};
use super::Driver;
use super::key::Kind;
use crate::address::Address;
use crate::config::SocketOptions;
use crate::engine::buffer::{Chunk, Outgoing};
use crate::engine::{Completion, Share, Socket, Source, Token, grow, socket};

pub(super) struct Connection {
    pub(super) generation: u32,
    pub(super) socket: OwnedFd,
    /// Requests in flight.
    pub(super) requests: u8,
    pub(super) is: Is,
    /// Large receptions in a row; or small reads in a row, in bulk.
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
    /// Bytes are handed over that count as sent, unless the kernel refuses some of them,
    pub(super) unconfirmed: bool,
    /// which it has.
    pub(super) refused: bool,
    pub(super) bulk: bool,
    /// A read may find something,
    pub(super) readable: bool,
    /// and at last the end, which the poll has told.
    pub(super) over: bool,
    /// The peer's end, or a failure, has come.
    pub(super) ended: bool,
    /// It was told that the peer's end is to come.
    pub(super) hung_up: bool,
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
    /// What is to be sent when what was handed over before it is confirmed.
    pub(super) next: Option<Box<Outgoing>>,
    /// Why the kernel refused what is now in flight. It says so once.
    pub(super) refusal: Option<Errno>,
}

/// Commands.
impl<K: Kernel> Driver<K> {
    pub(crate) fn open(&mut self, token: Token, socket: Socket) -> io::Result<()> {
        let Socket::Os(socket) = socket else { return Err(io::ErrorKind::Unsupported.into()) };
        self.put(token, socket);
        self.unwatched.push(token);
        Ok(())
    }

    pub(crate) fn connect(
        &mut self,
        token: Token,
        peer: &Address,
        options: &SocketOptions,
    ) -> io::Result<()> {
        let (socket, address) = socket::for_peer(peer, options)?;
        if peer.unix().is_some() {
            // Never takes time: it is connected at once, or refused with a cause (connect(2)).
            socket::connect(socket.as_fd(), &address)?;
            self.put(token, socket).is.connecting = true;
            self.enqueue(Source::Connection(token.index));
            return Ok(());
        }
        let connection = self.put(token, socket);
        (connection.is.connecting, connection.requests) = (true, 1);
        let fd = connection.socket.as_raw_fd();
        let address: *const SockAddr = connection.rare().address.insert(address);
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

    pub(crate) fn local_addr(&self, token: Token) -> io::Result<Address> {
        match self.connections.get(token.index as usize) {
            Some(Some(connection)) if connection.generation == token.generation => {
                socket::local_addr(connection.socket.as_fd())
            }
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    pub(crate) fn unacked(&self, token: Token) -> io::Result<usize> {
        match self.connections.get(token.index as usize) {
            Some(Some(connection)) if connection.generation == token.generation && !connection.is.closing => {
                Ok(self.kernel.unacked(connection.socket.as_fd())? + self.unconfirmed_bytes(token.index))
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
        let is_over = connection.is.over || connection.rare.as_ref().is_some_and(|rare| rare.end.is_some());
        if connection.is.receiving && !connection.is.cancelling {
            connection.is.cancelling = true;
            self.cancel(Kind::Receive, token);
        }
        if is_over {
            // Nobody reads any more what the poll has told, and no poll tells it again.
            let end = self.find_end(token);
            self.finished.extend(end);
        }
        self.watch(token);
    }

    pub(crate) fn close(&mut self, token: Token, reset: bool) {
        let Some(connection) = self.connection(token) else { return };
        (connection.is.closing, connection.is.reset) = (true, reset);
        if let Some(rare) = &mut connection.rare {
            rare.held.clear();
        }
        let Is { receiving, cancelling, polling, watching, connecting, sending, unconfirmed, .. } =
            connection.is;
        let open = [
            (receiving && !cancelling, Kind::Receive),
            (polling, Kind::Readable),
            (watching, Kind::Broken),
            (connecting && connection.requests > 0, Kind::Connect),
            (sending && !unconfirmed, Kind::Send),
        ];
        self.hurries |= unconfirmed;
        for (_, kind) in open.into_iter().filter(|(open, _)| *open) {
            self.cancel(kind, token);
        }
        self.release_if_idle(token.index);
    }

    /// The connection of this token, unless it is closed or about to be.
    pub(super) fn connection(&mut self, token: Token) -> Option<&mut Connection> {
        find(&mut self.connections, token)
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
    pub(super) fn connected(&mut self, completed: Completed) -> Option<Completion> {
        let connection = self.addressee(completed.key)?;
        let token = connection.token(completed.key);
        connection.requests -= 1;
        connection.rare = None;
        if connection.is.closing {
            self.release_if_idle(token.index);
            return None;
        }
        self.finish_connecting(token, completed.outcome().map(drop).map_err(io::Error::from))
    }

    /// Tells what a connect came to.
    pub(super) fn finish_connecting(&mut self, token: Token, result: io::Result<()>) -> Option<Completion> {
        let connection = self.connection(token)?;
        connection.is.connecting = false;
        (connection.is.ended, connection.is.failed) = (result.is_err(), result.is_err());
        self.arm(token);
        self.unwatched.push(token);
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

/// What [`Driver::connection`] does, for those who need the rest of the driver meanwhile.
pub(super) fn find(connections: &mut [Option<Connection>], token: Token) -> Option<&mut Connection> {
    let connection = connections.get_mut(token.index as usize)?.as_mut()?;
    (connection.generation == token.generation && !connection.is.closing).then_some(connection)
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
}
