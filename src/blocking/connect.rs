//! From an address to a connection of the blocking style, with one deadline for all of it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::connection::Connection;
use super::line::Line;
use crate::address::Address;
use crate::client::{Client, interleave, of_source};
use crate::config::SocketOptions;
use crate::endpoint::{Endpoint, Host};
use crate::engine::socket;
use crate::error::{Cause, Error, Operation, Result};
use crate::resolve::{self, Lookup};

/// Between two tries to connect to a Unix socket whose backlog is full.
const FULL_RETRY: Duration = Duration::from_millis(5);

/// Connects to `address` (`host:port`, `1.2.3.4:port`, `[v6]:port`, `unix:/path`, `unix:@name`) with default options.
///
/// # Errors
/// See [`Client::open_blocking`].
pub fn connect(address: impl fmt::Display) -> Result<Connection> {
    open(&Client::new(address))
}

/// Connects as `client` says.
pub(crate) fn open(client: &Client) -> Result<Connection> {
    let (sockets, resolver) = client.by_hand()?;
    let endpoint = Endpoint::parse(Operation::Connect, &client.address)?;
    let began = Instant::now();
    let left = || client.within.saturating_sub(began.elapsed());
    let failed = |cause| Error::new(Operation::Connect, cause);
    let late = || failed(Cause::TimedOut { after: client.within }).at(&client.address);
    let candidates = match candidates(&endpoint, resolver, left()) {
        Some(found) => found.map_err(|cause| failed(cause).at(&client.address))?,
        None => return Err(late()),
    };
    let candidates = of_source(candidates, sockets.source)?;
    let mut failure = failed(Cause::Misuse("the name has no addresses"));
    for (tried, peer) in candidates.iter().enumerate() {
        let share = left() / u32::try_from(candidates.len() - tried).unwrap_or(u32::MAX);
        let cause = match attempt(client, &endpoint, peer, &sockets, share) {
            Ok(conn) => return Ok(conn),
            Err(cause) => cause,
        };
        if left().is_zero() {
            return Err(late());
        }
        failure = match endpoint.host {
            Host::Name(_) => failed(cause).at(format_args!("{} ({peer})", client.address)),
            _ => failed(cause).at(peer),
        };
    }
    Err(failure)
}

/// The addresses to try, in turn; `None` if the name is not looked up in time.
fn candidates(
    endpoint: &Endpoint,
    resolver: Option<Arc<Lookup>>,
    within: Duration,
) -> Option<Result<Vec<Address>, Cause>> {
    match &endpoint.host {
        Host::Unix(name) => Some(Ok(vec![Address::Unix(name.clone())])),
        Host::Ip(_) | Host::Scoped(_) => Some(Ok(endpoint.literal().into_iter().map(Address::Ip).collect())),
        Host::Name(name) => {
            let found = wait_for(resolve::lookup(name, endpoint.port, resolver), within)?;
            Some(found.map(|found| interleave(found).into_iter().map(Address::Ip).collect()))
        }
    }
}

/// Connects to one address, with TLS if the client wants that.
fn attempt(
    client: &Client,
    endpoint: &Endpoint,
    peer: &Address,
    sockets: &SocketOptions,
    within: Duration,
) -> Result<Connection, Cause> {
    let began = Instant::now();
    let socket = connected(peer, sockets, within)?;
    let line = Line::new(socket, peer.clone(), &client.limits, &client.deadlines).map_err(Cause::Os)?;
    let mut conn = Connection::new(line);
    let secured = secure(client, endpoint, &mut conn, within.saturating_sub(began.elapsed()));
    if let Err(error) = secured {
        // Nobody is to wait for a peer with whom it came to nothing.
        conn.reset();
        return Err(error);
    }
    Ok(conn)
}

#[cfg(feature = "tls")]
fn secure(
    client: &Client,
    endpoint: &Endpoint,
    conn: &mut Connection,
    within: Duration,
) -> Result<(), Cause> {
    let Some(connector) = &client.connector else { return Ok(()) };
    let host = endpoint.server_name();
    let mut conn = conn.within(within);
    let secured = conn.begin_connect(connector, host.as_deref()).and_then(|()| conn.secure());
    secured.map_err(Error::into_cause)
}

#[cfg(not(feature = "tls"))]
fn secure(_: &Client, _: &Endpoint, _: &mut Connection, _: Duration) -> Result<(), Cause> {
    Ok(())
}

/// A socket that is connected to `peer`.
fn connected(peer: &Address, options: &SocketOptions, within: Duration) -> Result<OwnedFd, Cause> {
    let began = Instant::now();
    let left = || within.saturating_sub(began.elapsed());
    let socket = loop {
        let (socket, address) = socket::for_peer(peer, options).map_err(Cause::Os)?;
        match socket::connect(socket.as_fd(), &address) {
            Ok(()) => break socket,
            // A full backlog, which over TCP makes a client wait; a Unix socket says so instead (connect(2), EAGAIN).
            Err(error) if error.kind() == ErrorKind::WouldBlock && !left().is_zero() => {
                thread::sleep(FULL_RETRY.min(left()));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(Cause::TimedOut { after: within });
            }
            Err(error) => return Err(Cause::Os(error)),
        }
    };
    loop {
        let mut fds = [PollFd::new(&socket, PollFlags::OUT)];
        let ready = poll(&mut fds, Timespec::try_from(left()).ok().as_ref());
        if let Some(error) = socket::failure(socket.as_fd()) {
            return Err(Cause::Os(error));
        }
        if ready.is_ok_and(|ready| ready > 0) && socket::is_connected(socket.as_fd()).map_err(Cause::Os)? {
            break;
        }
        if left().is_zero() {
            return Err(Cause::TimedOut { after: within });
        }
    }
    if socket::local_addr(socket.as_fd()).is_ok_and(|local| local == *peer) {
        // The kernel may pick the port that is connected to as the local one, and the two are then one socket.
        socket::reset_on_close(socket.as_fd());
        return Err(Cause::Os(io::Error::from(ErrorKind::ConnectionRefused)));
    }
    Ok(socket)
}

/// Waits for a future on this thread; `None` if it takes longer.
fn wait_for<T>(future: impl Future<Output = T>, within: Duration) -> Option<T> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut future = pin!(future);
    let began = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        let left = within.checked_sub(began.elapsed()).filter(|left| !left.is_zero())?;
        thread::park_timeout(left);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[test]
    fn a_future_is_waited_for_and_not_for_ever() {
        assert_eq!(wait_for(ready(7), Duration::ZERO), Some(7));
        let began = Instant::now();
        let within = Duration::from_millis(30);
        assert_eq!(wait_for(pending::<()>(), within), None);
        assert!(began.elapsed() >= within);
    }
}
