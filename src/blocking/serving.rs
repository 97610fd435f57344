//! A thread for each connection: [`Listener::serve`], what its threads share, and the handle of what it starts.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::{fmt, io};

use super::connection::Connection;
use super::door::Door;
use super::listener::Listener;
use super::office::Office;
use super::places::Places;
use super::pool::Pool;
use crate::address::Address;
use crate::config::{Access, Deadlines, Limits, ProxyProtocol};
use crate::error::{Cause, Error, Operation, Result};
use crate::server::{ConnectionInfo, Desk, Listen, ListenerInfo, Phase, Snapshot, SocketFile, Stats, Whom};
#[cfg(feature = "tls")]
use crate::tls::Acceptor;

type Handler = dyn Fn(Connection) -> Result<()> + Send + Sync;

/// What the accepting thread, the handlers' threads and the handles share.
pub(super) struct Shared {
    pub(super) address: Address,
    /// How it is opened again.
    pub(super) listen: Listen,
    pub(super) proxies: Option<ProxyProtocol>,
    #[cfg(feature = "tls")]
    pub(super) acceptor: Option<Acceptor>,
    /// As many connections as have threads.
    threads: usize,
    pub(super) office: Arc<Office>,
    pub(super) places: Arc<Places>,
    pub(super) handler: Box<Handler>,
}

/// Starts serving.
pub(super) fn start<H>(listener: Listener, handler: H) -> Result<ServerHandle>
where
    H: Fn(Connection) -> Result<()> + Send + Sync + 'static,
{
    let failed = |error| Error::os(Operation::Start, error);
    let (shared, socket, file) = share(listener, handler).map_err(failed)?;
    let pool = Pool::new(String::from("wharf-conn"), shared.threads);
    let door = Door::new(shared.clone(), pool, socket, file);
    let thread = thread::Builder::new().name(String::from("wharf-accept"));
    let keeper = shared.clone();
    let keep = move || {
        let _serving = OnThread::begin(&keeper);
        door.keep();
    };
    thread.spawn(keep).map_err(failed)?;
    Ok(ServerHandle { shared })
}

/// What of a listener is shared, and what is its door's.
pub(super) fn share<H>(
    listener: Listener,
    handler: H,
) -> io::Result<(Arc<Shared>, OwnedFd, Option<SocketFile>)>
where
    H: Fn(Connection) -> Result<()> + Send + Sync + 'static,
{
    let threads = listener.threads;
    let max = connections_max(&listener.limits, threads);
    let desk = Desk::new(listener.access, listener.limits, max);
    let office = Office::new(desk, listener.deadlines, listener.hooks)?;
    let shared = Shared {
        address: listener.address,
        proxies: listener.listen.proxy().cloned(),
        listen: listener.listen,
        #[cfg(feature = "tls")]
        acceptor: listener.acceptor,
        threads,
        places: Places::new(office.clone())?,
        office,
        handler: Box::new(handler),
    };
    Ok((Arc::new(shared), listener.socket, listener.file))
}

fn connections_max(limits: &Limits, threads: usize) -> usize {
    limits.connections.map_or(threads, |max| max.min(threads))
}

thread_local! {
    /// The server that this thread works for.
    static SERVING: Cell<Option<*const Shared>> = const { Cell::new(None) };
}

/// For as long as this lives, its thread works for a server.
pub(super) struct OnThread;

impl OnThread {
    pub(super) fn begin(server: &Arc<Shared>) -> OnThread {
        SERVING.set(Some(Arc::as_ptr(server)));
        OnThread
    }
}

impl Drop for OnThread {
    fn drop(&mut self) {
        SERVING.set(None);
    }
}

/// A running server of the blocking style. Cheap to clone, usable from any thread; dropping it does not stop the server.
///
/// ```
/// use std::time::Duration;
/// use wharf::Limits;
/// use wharf::blocking::{Connection, Listener};
///
/// let server = Listener::bind("127.0.0.1:0")?.serve(|mut conn: Connection| conn.send(b"hello"))?;
/// server.set_limits(Limits::default().connections(100))?; // while it runs
/// println!("{}", server.snapshot());
///
/// let stats = server.drain(Duration::from_secs(5)).wait()?;
/// println!("{} connections, {} refused", stats.accepted, stats.refusals());
/// # Ok::<(), wharf::Error>(())
/// ```
#[derive(Clone)]
pub struct ServerHandle {
    shared: Arc<Shared>,
}

impl ServerHandle {
    /// Where it listens, with the real port.
    pub fn local_addr(&self) -> Address {
        self.shared.address.clone()
    }

    /// The number of connections at this moment.
    pub fn connections(&self) -> usize {
        self.shared.office.books().connections
    }

    /// The number of connections that it holds at most: each has a thread.
    pub fn connections_max(&self) -> usize {
        self.shared.office.books().desk.connections_max()
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.shared.office.books().desk.rules().clone()
    }

    /// Replaces the limits of the running server. Those of the server (connections, memory, per address, rate, policy) hold for
    /// whoever comes next; lower ones send nobody home. Those of a connection (buffers and queues) hold for new connections. There
    /// are never more connections than [`Listener::threads`] allows.
    ///
    /// # Errors
    /// If they make no sense; then the old ones stay.
    pub fn set_limits(&self, limits: Limits) -> Result<()> {
        limits.validate()?;
        let office = &self.shared.office;
        let max = connections_max(&limits, self.shared.threads);
        office.memory().set_max(limits.memory);
        office.books().desk.set_rules(limits, max);
        office.judge_memory();
        office.look_again();
        Ok(())
    }

    /// The networks that may connect.
    pub fn access(&self) -> Access {
        self.shared.office.books().desk.access().clone()
    }

    /// Replaces the networks that may connect, for whoever comes next. Who is here stays; [`ServerHandle::disconnect`] sends away.
    pub fn set_access(&self, access: Access) {
        self.shared.office.books().desk.set_access(access);
    }

    /// The deadlines in force, for new connections.
    pub fn deadlines(&self) -> Deadlines {
        self.shared.office.books().deadlines.clone()
    }

    /// Replaces the deadlines of the running server, for new connections.
    ///
    /// # Errors
    /// If they make no sense; then the old ones stay.
    pub fn set_deadlines(&self, deadlines: Deadlines) -> Result<()> {
        deadlines.validate()?;
        self.shared.office.books().deadlines = deadlines;
        Ok(())
    }

    /// The connections at this moment, oldest first.
    ///
    /// Each is told as it was when its thread last received or sent something at once, began an operation that may wait, or looked again
    /// in one: so for one whose handler computes, what the last operation did may be missing.
    ///
    /// ```
    /// use wharf::blocking::{Connection, Listener};
    ///
    /// let server = Listener::bind("127.0.0.1:0")?.serve(|mut conn: Connection| conn.send(b"hello"))?;
    /// for info in server.list() {
    ///     println!("{} from {}, {:?} old, {}", info.id, info.peer, info.age, info.state);
    /// }
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn list(&self) -> Vec<ConnectionInfo> {
        self.shared.places.list()
    }

    /// Closes connections: one by its id, all of an address, or all. They end with
    /// [`CloseReason::Disconnected`](crate::CloseReason::Disconnected).
    ///
    /// Returns at once; a connection that has ended meanwhile is no error. The connection's own thread closes it: at once if it waits for
    /// bytes, within half a second if it waits for room to send, and otherwise with its next operation, which then fails. What was
    /// sent still goes out. To wake a thread that waits for bytes the connection is shut for reading, so a peer that begins to send just then may see a reset
    /// behind that.
    pub fn disconnect(&self, whom: impl Into<Whom>) {
        self.shared.places.send_away(whom.into());
    }

    /// Stops accepting until [`ServerHandle::resume`]; connections that stand go on.
    ///
    /// The listener is closed, so that clients are refused at once and can go elsewhere; whom the kernel has connected already
    /// comes in first. One that was given as a socket cannot be opened again: it is left alone, and clients wait.
    ///
    /// ```
    /// use wharf::Phase;
    /// use wharf::blocking::{Connection, Listener};
    ///
    /// let server = Listener::bind("127.0.0.1:0")?.serve(|mut conn: Connection| conn.send(b"hello"))?;
    /// assert_eq!(server.suspend().phase(), Phase::Suspended);
    /// server.resume()?;
    /// assert_eq!(server.phase(), Phase::Serving);
    /// # server.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    pub fn suspend(&self) -> &ServerHandle {
        self.shared.office.suspend();
        self
    }

    /// Accepts again after [`ServerHandle::suspend`]. One that drains, or has ended, does not.
    ///
    /// # Errors
    /// If the listener cannot be opened again, because somebody else has taken its address. Then it stays suspended.
    pub fn resume(&self) -> Result<()> {
        let Shared { office, listen, address, .. } = &*self.shared;
        office.resume(|| listen.reopen_alone(address))
    }

    /// Whether it is suspended.
    pub fn is_suspended(&self) -> bool {
        self.shared.office.is_suspended()
    }

    /// The memory that its connections hold at this moment, in bytes: what was received and not read, what TLS has sealed and not
    /// sent, and the buffers that both need. Each tells of it when it begins an operation or looks again in one.
    ///
    /// A connection that only passes bytes between the socket and its handler's memory holds nothing. Its thread, and what the handler has
    /// of its own, do not count.
    pub fn memory_used(&self) -> usize {
        self.shared.office.memory().used()
    }

    /// The budget for that: [`Limits::memory`].
    pub fn memory_max(&self) -> Option<usize> {
        self.shared.office.memory().max()
    }

    /// Whether the budget is spent: idle buffers are freed at once, and nobody comes in.
    pub fn memory_is_short(&self) -> bool {
        self.shared.office.memory().is_short()
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        self.shared.office.stats()
    }

    /// What it is about.
    pub fn phase(&self) -> Phase {
        self.shared.office.phase()
    }

    /// What it is doing at this moment and what it has done so far, to be looked at or printed. There are no workers in it.
    pub fn snapshot(&self) -> Snapshot {
        let stats = self.stats();
        #[cfg(feature = "tls")]
        let is_tls = self.shared.acceptor.is_some();
        #[cfg(not(feature = "tls"))]
        let is_tls = false;
        let (lost, accepted) = (self.shared.office.books().is_lost, stats.accepted);
        Snapshot {
            uptime: self.shared.office.uptime(),
            phase: self.phase(),
            listeners: vec![ListenerInfo { address: self.local_addr(), accepted, lost, is_tls }],
            connections: self.connections(),
            connections_max: self.connections_max(),
            connections_by_worker: Vec::new(),
            blocked_workers: Vec::new(),
            memory_used: self.memory_used(),
            memory_max: self.memory_max(),
            backends: Vec::new(),
            limits: self.limits(),
            deadlines: self.deadlines(),
            stats,
            #[cfg(feature = "tls")]
            unverified_connectors: crate::tls::unverified_connectors(),
        }
    }

    /// Stops accepting at once and lets connections end by themselves for `within`; what is left then is reset, as soon as its
    /// handler waits in an operation or begins one.
    ///
    /// Handlers are told by [`Connection::is_draining`] and [`Connection::ready`]. Returns at once; [`ServerHandle::wait`] waits for
    /// the end. A second call can only shorten the time.
    pub fn drain(&self, within: Duration) -> &ServerHandle {
        self.shared.office.drain(within);
        self.shared.places.drain();
        if within.is_zero() {
            self.shared.places.stop();
        }
        self
    }

    /// Stops accepting and resets all connections, at once. A handler that computes is not interrupted; it finds its connection
    /// reset.
    pub fn stop(&self) -> &ServerHandle {
        self.drain(Duration::ZERO)
    }

    /// Whether it has ended: no listener, no connections, no handler running.
    pub fn is_stopped(&self) -> bool {
        self.phase() == Phase::Stopped
    }

    /// Waits until it has ended, after [`ServerHandle::drain`] or [`ServerHandle::stop`], and tells what it did.
    ///
    /// # Errors
    /// If called on one of its own threads, for which it waits: by a handler, or by [`Listener::watch`] or [`Listener::on_exit`].
    pub fn wait(&self) -> Result<Stats> {
        if SERVING.get() == Some(Arc::as_ptr(&self.shared)) {
            let problem = "a handler cannot wait for its own server's end";
            return Err(Error::new(Operation::Wait, Cause::Misuse(problem)));
        }
        self.shared.office.await_end();
        Ok(self.stats())
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle")
            .field("address", &self.shared.address)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}
