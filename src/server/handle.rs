//! A running server: watching it, changing it, stopping it in order.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use super::descriptors;
use super::holdings::ListenerState;
use super::registry::{Listing, Whom};
use super::snapshot::{Phase, Snapshot};
use super::state::{ServerState, lock};
use super::stats::Stats;
use crate::address::Address;
use crate::config::{Access, Backend, Deadlines, Limits};
use crate::engine::Socket;
use crate::error::{Cause, Error, Operation, Result};
use crate::worker::Message;

/// A running server. Cheap to clone, usable from any thread; dropping it does not stop the server.
///
/// ```
/// use std::time::Duration;
/// use wharf::{Connection, Limits, Server};
///
/// let server = Server::bind("127.0.0.1:0").workers(1).start(|_: Connection| async { Ok(()) })?;
/// server.set_limits(Limits::default().connections(100))?; // while it runs
/// println!("{}", server.snapshot());
///
/// let stats = server.drain(Duration::from_secs(5)).wait()?;
/// println!("{} connections, {} refused", stats.accepted, stats.refusals());
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone)]
pub struct ServerHandle {
    pub(super) state: Arc<ServerState>,
}

impl ServerHandle {
    /// The address of its first listener that has an IP address, with the real port. [`ServerHandle::listeners`] tells all.
    ///
    /// # Panics
    /// If it listens on Unix sockets only.
    pub fn local_addr(&self) -> SocketAddr {
        let mut addresses = self.state.listeners.iter().filter_map(|listener| listener.address.socket());
        addresses.next().expect("`local_addr` is for servers with a listener at an IP address")
    }

    /// Its listeners, in the order in which the server was given them.
    pub fn listeners(&self) -> Vec<ListenerInfo> {
        (0..)
            .zip(&self.state.listeners)
            .map(|(n, each)| ListenerInfo::of(each, self.state.is_tls(n)))
            .collect()
    }

    /// The number of connections at this moment.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// The number of connections of each worker at this moment, in the order of the workers; those that were accepted and
    /// are on their way to it included.
    ///
    /// A new connection goes to the worker with the fewest. Connections that end leave gaps, which the next ones fill.
    ///
    /// ```
    /// use wharf::{Connection, Server};
    ///
    /// let server = Server::bind("127.0.0.1:0").workers(3).start(|_: Connection| async { Ok(()) })?;
    /// assert_eq!(server.connections_by_worker(), [0, 0, 0]);
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn connections_by_worker(&self) -> Vec<usize> {
        self.state.loads()
    }

    /// The number of connections that it holds at most.
    pub fn connections_max(&self) -> usize {
        self.state.connections_max()
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.state.limits()
    }

    /// Replaces the limits of the running server. Those of the server (connections, memory, per address, rate, policy) hold for
    /// whoever comes next; lower ones send nobody home. Those of a connection (buffers and queues) hold for new connections.
    ///
    /// # Errors
    /// If they make no sense; then the old ones stay.
    pub fn set_limits(&self, limits: Limits) -> Result<()> {
        limits.validate()?;
        let by_descriptors = || descriptors::for_connections(self.state.workers());
        let connections_max = limits.connections.unwrap_or_else(by_descriptors);
        self.state.set_limits(limits, connections_max);
        self.state.tell_all(|| Message::Configure);
        self.state.tell_first(Message::RoomAgain);
        Ok(())
    }

    /// Replaces the networks that may connect, for whoever comes next. Who is here stays; [`ServerHandle::disconnect`] sends
    /// away.
    pub fn set_access(&self, access: Access) {
        self.state.set_access(access);
    }

    /// The networks that may connect.
    pub fn access(&self) -> Access {
        self.state.access()
    }

    /// The deadlines in force, for new connections.
    pub fn deadlines(&self) -> Deadlines {
        self.state.deadlines()
    }

    /// Replaces the deadlines of the running server, for new connections.
    ///
    /// # Errors
    /// If they make no sense; then the old ones stay.
    pub fn set_deadlines(&self, deadlines: Deadlines) -> Result<()> {
        deadlines.validate()?;
        self.state.set_deadlines(deadlines);
        self.state.tell_all(|| Message::Configure);
        Ok(())
    }

    /// The connections at this moment, oldest first. Adding a listing up by address groups them.
    ///
    /// ```
    /// use wharf::{Connection, Server};
    ///
    /// let server = Server::bind("127.0.0.1:0").workers(1).start(|_: Connection| async { Ok(()) })?;
    /// for info in server.list().wait()? {
    ///     println!("{} from {}, {:?} old, {} bytes queued", info.id, info.peer, info.age, info.queued);
    /// }
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn list(&self) -> Listing {
        let listing = Listing::new(self.state.simulated);
        // Nobody's answer completes the listing before all are asked.
        let asking = listing.reply();
        self.state.tell_all(|| Message::List { reply: listing.reply() });
        drop(asking);
        listing
    }

    /// Closes connections: one by its id, all of an address, or all.
    ///
    /// What is queued for them is still sent, for as long as [`Deadlines::linger`] allows. They end with
    /// [`CloseReason::Disconnected`](crate::CloseReason::Disconnected). Returns at once; a connection that has ended
    /// meanwhile is no error.
    pub fn disconnect(&self, whom: impl Into<Whom>) {
        let whom = whom.into();
        // The first worker tells the others, but it may have ended since it told them of a drain.
        if self.state.draining.load(Ordering::SeqCst) {
            self.state.tell_all(|| Message::Disconnect { whom });
        } else {
            self.state.tell_first(Message::Disconnect { whom });
        }
    }

    /// Makes a connected socket one of its connections, as if it had been accepted: one that was accepted elsewhere, or
    /// handed over by another process.
    ///
    /// The rules of admission apply; who is refused shows in [`ServerHandle::stats`].
    ///
    /// # Errors
    /// If it is no connected stream socket, or the server drains or has ended.
    pub fn adopt(&self, socket: impl Into<OwnedFd>) -> Result<()> {
        let failed = |error| Error::os(Operation::Adopt, error);
        let (socket, peer) = Socket::adopt(socket.into()).map_err(failed)?;
        let refused = |why| Error::new(Operation::Adopt, Cause::Misuse(why));
        if self.state.drain_begun.load(Ordering::SeqCst) && !self.is_stopped() {
            return Err(refused("the server drains"));
        }
        let first = self.state.post(0).ok_or_else(|| refused("the server has ended"))?;
        first.send(Message::Arrive { socket, peer }).map_err(|_| refused("the server has ended"))
    }

    /// Stops accepting until [`ServerHandle::resume`]; connections that stand go on.
    ///
    /// Listeners are closed, so that clients are refused at once and can go elsewhere; whom the kernel has connected
    /// already comes in first. Listeners that were given as sockets or taken from a predecessor, and those of a simulation,
    /// cannot be opened again: they are left alone, and clients wait.
    pub fn suspend(&self) -> &ServerHandle {
        self.state.suspend();
        self
    }

    /// Accepts again after [`ServerHandle::suspend`]. One that drains, or has ended, does not.
    ///
    /// # Errors
    /// If a listener cannot be opened again, because somebody else has taken its address. Then it stays suspended.
    pub fn resume(&self) -> Result<()> {
        self.state.resume()
    }

    /// Whether it is suspended.
    pub fn is_suspended(&self) -> bool {
        self.state.is_suspended()
    }

    /// The memory that its connections hold in buffers at this moment, in bytes, on all workers: what was received and not
    /// read, what is queued to be sent, and free buffers that are kept for the next messages.
    ///
    /// Workers tell of it when it changes, each at the end of what it is doing; so it may be a little behind. What a
    /// connection takes besides (some hundred bytes, its task, the kernel's buffers) does not count.
    ///
    /// ```
    /// use wharf::{Connection, Limits, Server};
    ///
    /// let limits = Limits::default().memory(64 << 20);
    /// let server = Server::bind("127.0.0.1:0").workers(1).limits(limits);
    /// let server = server.start(|_: Connection| async { Ok(()) })?;
    /// assert_eq!((server.memory_used(), server.memory_max()), (0, Some(64 << 20)));
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn memory_used(&self) -> usize {
        self.state.memory.used()
    }

    /// The budget for that: [`Limits::memory`].
    pub fn memory_max(&self) -> Option<usize> {
        self.state.memory.max()
    }

    /// Whether the budget is spent: connections have to do with one message at a time, and idle buffers are freed at once.
    pub fn memory_is_short(&self) -> bool {
        self.state.memory_is_short()
    }

    /// The engine of each worker, in the order of the workers: [`Backend::Uring`] or [`Backend::Readiness`].
    ///
    /// With [`Backend::Auto`] they may differ, if the system grants io_uring to some and refuses it to others, for want
    /// of lockable memory, say. Empty for a server in a [`Simulation`](crate::sim::Simulation).
    ///
    /// ```
    /// use wharf::{Backend, Connection, Server};
    ///
    /// let server = Server::bind("127.0.0.1:0").workers(2).backend(Backend::Readiness);
    /// let server = server.start(|_: Connection| async { Ok(()) })?;
    /// assert_eq!(server.backends(), [Backend::Readiness; 2]);
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn backends(&self) -> Vec<Backend> {
        self.state.backends()
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        self.state.stats()
    }

    /// What it is about.
    pub fn phase(&self) -> Phase {
        if self.is_stopped() {
            Phase::Stopped
        } else if self.state.drain_begun.load(Ordering::SeqCst) {
            Phase::Draining
        } else if self.is_suspended() {
            Phase::Suspended
        } else {
            Phase::Serving
        }
    }

    /// What it is doing at this moment and what it has done so far, to be looked at or printed.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(self)
    }

    /// Stops accepting at once and lets connections end by themselves for `within`; what is left then is reset.
    ///
    /// Handlers are told: [`Connection::draining`](crate::Connection::draining) and
    /// [`Handler::draining`](crate::event::Handler::draining). Returns at once; [`ServerHandle::wait`]
    /// waits for the end. A second call can only shorten the time.
    pub fn drain(&self, within: Duration) -> &ServerHandle {
        self.state.drain(within);
        self
    }

    /// Stops accepting and resets all connections, at once.
    pub fn stop(&self) -> &ServerHandle {
        self.drain(Duration::ZERO)
    }

    /// Whether it has ended: no listener, no connections, no handler running. Its threads are about to end; what they hold
    /// besides (a wake descriptor each) is closed with them and with the last handle.
    pub fn is_stopped(&self) -> bool {
        *lock(&self.state.workers_left) == 0
    }

    /// Waits until it has ended, after [`ServerHandle::drain`] or [`ServerHandle::stop`], and tells what it did.
    ///
    /// # Errors
    /// If called on one of Wharf's own workers, which it would block, or by [`Server::on_exit`](crate::Server::on_exit), for
    /// which it waits; or if a worker crashed.
    pub fn wait(&self) -> Result<Stats> {
        let is_last = self.state.last_thread.get() == Some(&thread::current().id());
        if (is_last || crate::worker::with_current(|_| ()).is_some()) && !self.is_stopped() {
            return Err(Error::new(
                Operation::Wait,
                Cause::Misuse("a worker cannot wait for a server's end"),
            ));
        }
        if self.state.simulated && !self.is_stopped() {
            let undone = "the simulation has to run until the server has stopped";
            return Err(Error::new(Operation::Wait, Cause::Misuse(undone)));
        }
        let mut left = lock(&self.state.workers_left);
        while *left > 0 {
            left = self.state.ended.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
        drop(left);
        if self.state.crashed.load(Ordering::SeqCst) {
            return Err(Error::new(
                Operation::Wait,
                Cause::Misuse("a worker crashed; this is a defect of Wharf"),
            ));
        }
        Ok(self.stats())
    }

    pub(crate) fn state(&self) -> &ServerState {
        &self.state
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle")
            .field("listeners", &self.state.addresses())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

/// One of a server's listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerInfo {
    /// Where it listens, with the real port.
    pub address: Address,
    /// Connections that were let in through it.
    pub accepted: u64,
    /// Whether it broke: it accepts nobody any more.
    pub lost: bool,
    /// Whether its connections begin with TLS.
    pub is_tls: bool,
}

impl ListenerInfo {
    fn of(listener: &ListenerState, is_tls: bool) -> ListenerInfo {
        ListenerInfo {
            address: listener.address.clone(),
            accepted: listener.accepted.load(Ordering::Relaxed),
            lost: listener.lost.load(Ordering::Relaxed),
            is_tls,
        }
    }
}
