//! [`Listener`]: from an address to connections of the blocking style.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::connection::Connection;
use super::line::Line;
use super::serving::{self, ServerHandle};
use crate::address::Address;
use crate::config::{Access, Deadlines, Limits};
use crate::engine::socket;
use crate::error::{Error, Operation, Result};
use crate::server::{Hooks, Listen, Opened, ServerEvent, SocketFile, Stats};
#[cfg(feature = "tls")]
use crate::tls::Acceptor;
use crate::worker::accept::{ACCIDENTS_MAX, PAUSE_MAX, PAUSE_MIN, Trouble};

/// Handlers that run at once, unless it was told otherwise. Each has a thread, with a stack of 2 MiB at most.
const THREADS: usize = 256;
/// More threads than any system starts.
const THREADS_MAX: usize = 1 << 16;

/// A listening socket of the blocking style, TCP or Unix.
///
/// Either accept connections one by one, or have each served on a thread: [`Listener::serve`].
///
/// ```
/// use std::time::Duration;
/// use wharf::blocking::{self, Listener};
///
/// let mut listener = Listener::bind("127.0.0.1:0")?;
/// assert!(listener.accept_within(Duration::from_millis(1))?.is_none(), "nobody has come");
/// let client = blocking::connect(listener.local_addr())?;
/// let mut conn = listener.accept()?;
/// conn.send(b"hello")?;
/// # drop(client);
/// # Ok::<(), wharf::Error>(())
/// ```
pub struct Listener {
    pub(super) socket: OwnedFd,
    pub(super) address: Address,
    /// What it stands for.
    pub(super) listen: Listen,
    /// Removed when this is dropped.
    pub(super) file: Option<SocketFile>,
    pub(super) limits: Limits,
    pub(super) access: Access,
    pub(super) deadlines: Deadlines,
    #[cfg(feature = "tls")]
    pub(super) acceptor: Option<Acceptor>,
    pub(super) threads: usize,
    pub(super) hooks: Hooks,
    trouble: Troubles,
}

impl Listener {
    /// Listens at an address (`1.2.3.4:port`, `[v6]:port`, `name:port`, `unix:/path`, `unix:@name`, `fd:N`, `systemd:NAME`), or as
    /// a [`Listen`] says: with socket options of its own, or on a socket that listens already.
    ///
    /// ```
    /// use wharf::blocking::Listener;
    /// use wharf::{Listen, SocketOptions};
    ///
    /// let small = Listener::bind(Listen::at("127.0.0.1:0").sockets(SocketOptions::default().backlog(16)))?;
    /// let adopted = Listener::bind(std::net::TcpListener::bind("127.0.0.1:0")?)?;
    /// assert_ne!(small.local_addr(), adopted.local_addr());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If the address cannot be read or had, or an option makes no sense. If it stands for several sockets.
    pub fn bind(listen: impl Into<Listen>) -> Result<Listener> {
        let (listen, opened) = listen.into().open_alone()?;
        let Opened { listener, address, file, .. } = opened;
        Ok(Listener {
            socket: listener,
            address,
            file,
            limits: Limits::default(),
            access: Access::default(),
            deadlines: Deadlines::default(),
            #[cfg(feature = "tls")]
            acceptor: listen.acceptor(None).cloned(),
            listen,
            threads: THREADS,
            hooks: Hooks::default(),
            trouble: Troubles::default(),
        })
    }

    /// Takes a socket that listens already: of a service manager, of a parent process, or of the standard library.
    ///
    /// # Errors
    /// If it does not listen.
    pub fn adopt(socket: impl Into<OwnedFd>) -> Result<Listener> {
        Listener::bind(Listen::given(socket))
    }

    /// Sets the bounds of its connections; and for [`Listener::serve`] those of the server.
    ///
    /// Buffers and queues are a connection's; here they hold what TLS has opened or sealed. `connections`, `per_address`,
    /// `accept_rate`, `over_limit` and `memory` are a server's.
    ///
    /// # Errors
    /// If they make no sense.
    pub fn limits(mut self, limits: Limits) -> Result<Listener> {
        limits.validate()?;
        self.limits = limits;
        Ok(self)
    }

    /// Sets the deadlines of its connections. Default: those of a server.
    ///
    /// # Errors
    /// If they make no sense.
    pub fn deadlines(mut self, deadlines: Deadlines) -> Result<Listener> {
        deadlines.validate()?;
        self.deadlines = deadlines;
        Ok(self)
    }

    /// Sets the networks that may connect, for [`Listener::serve`]. Default: all.
    #[must_use]
    pub fn access(mut self, access: Access) -> Listener {
        self.access = access;
        self
    }

    /// Sets how many handlers [`Listener::serve`] runs at once, each on a thread of its own; whoever else connects meets
    /// [`Limits::over_limit`]. Default: 256. [`Limits::connections`] can only lower it.
    ///
    /// # Errors
    /// If it is zero, or more than 65,536.
    pub fn threads(mut self, max: usize) -> Result<Listener> {
        if !(1..=THREADS_MAX).contains(&max) {
            return Err(Error::option("threads", format!("must be between 1 and {THREADS_MAX}")));
        }
        self.threads = max;
        Ok(self)
    }

    /// Has `watcher` called for what happens to the server that [`Listener::serve`] starts: connections let in, refused and closed, panics,
    /// trouble with accepting. Default: nobody is told.
    ///
    /// It is called on the thread where it happens, a connection's or the one that accepts: that thread waits for it. A panic in it is
    /// caught.
    ///
    /// ```
    /// use wharf::ServerEvent;
    /// use wharf::blocking::{Connection, Listener};
    ///
    /// let listener = Listener::bind("127.0.0.1:0")?.watch(|event| {
    ///     if let ServerEvent::Refused { .. } = event {
    ///         eprintln!("{event}");
    ///     }
    /// });
    /// # listener.serve(|_: Connection| Ok(()))?.stop().wait()?;
    /// # Ok::<(), wharf::Error>(())
    /// ```
    #[must_use]
    pub fn watch(mut self, watcher: impl Fn(&ServerEvent<'_>) + Send + Sync + 'static) -> Listener {
        self.hooks.set_watcher(watcher);
        self
    }

    /// Has `on_exit` called when the server that [`Listener::serve`] starts has ended: exactly once, after the last connection and before
    /// [`ServerHandle::wait`] returns. If it does not start, it is not called.
    ///
    /// It is called on the thread that accepts. A panic in it is caught.
    #[must_use]
    pub fn on_exit(mut self, on_exit: impl FnOnce(&Stats) + Send + 'static) -> Listener {
        self.hooks.set_on_exit(on_exit);
        self
    }

    /// Has its connections begin with TLS. The handshake is a part of a connection's first operation, on the thread that uses
    /// it: who connects and says nothing keeps nobody else waiting.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, acceptor: &Acceptor) -> Listener {
        self.acceptor = Some(acceptor.clone());
        self
    }

    /// Where it listens, with the real port.
    pub fn local_addr(&self) -> Address {
        self.address.clone()
    }

    /// Waits for a connection. It survives what concerns one connection only, and waits for descriptors if there are none.
    ///
    /// The bounds of a server ([`Limits::connections`] and so on) are for [`Listener::serve`]; here the caller decides how many he
    /// accepts.
    ///
    /// # Errors
    /// If the socket does not listen any more, or TLS cannot begin. If it is to speak the PROXY protocol, whose header would be waited
    /// for here: that is for [`Listener::serve`].
    pub fn accept(&mut self) -> Result<Connection> {
        loop {
            if let Some(conn) = self.accept_until(None)? {
                return Ok(conn);
            }
        }
    }

    /// The same for no longer than `after`; `None` if nobody has come. Zero takes who is there already.
    ///
    /// # Errors
    /// As [`Listener::accept`].
    pub fn accept_within(&mut self, after: Duration) -> Result<Option<Connection>> {
        self.accept_until(Instant::now().checked_add(after))
    }

    fn accept_until(&mut self, until: Option<Instant>) -> Result<Option<Connection>> {
        if self.listen.proxy().is_some() {
            return Err(Error::option(
                "proxy_protocol",
                "is for `Listener::serve`, which reads the header on the connection's thread",
            ));
        }
        loop {
            match try_accept(self.socket.as_fd()) {
                Ok(Some((socket, peer))) => {
                    self.trouble = Troubles::default();
                    return self.open(socket, peer).map(Some);
                }
                Ok(None) => {}
                Err(error) => match self.trouble.meet(&error) {
                    Remedy::Retry => continue,
                    Remedy::Pause(pause) => {
                        let left =
                            until.map_or(pause, |until| until.saturating_duration_since(Instant::now()));
                        thread::sleep(pause.min(left));
                    }
                    Remedy::None => return Err(Error::os(Operation::Listen, error).at(&self.address)),
                },
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            wait_for(&[self.socket.as_fd()], left);
        }
    }

    /// Makes a connection of an accepted socket.
    fn open(&self, socket: OwnedFd, peer: Address) -> Result<Connection> {
        let line = Line::new(socket, peer, &self.limits, &self.deadlines);
        let line = line.map_err(|error| Error::os(Operation::Listen, error).at(&self.address))?;
        #[cfg_attr(not(feature = "tls"), allow(unused_mut))]
        let mut conn = Connection::new(line);
        #[cfg(feature = "tls")]
        if let Some(acceptor) = &self.acceptor {
            conn.begin_accept(acceptor)?;
        }
        Ok(conn)
    }

    /// Serves each connection by `handler`, on a thread of its own, until the handle that this returns stops it.
    ///
    /// Threads are kept for a while for those who come next. The connection is the handler's: it may split it, or give it to another
    /// thread. Its own thread stays with the connection until that is dropped and its peer has ended. A handler that returns `Ok` closes its connection gracefully, one that
    /// fails too, for [`CloseReason::HandlerFailed`](crate::CloseReason::HandlerFailed); one that panics loses its own connection,
    /// which is reset, and no other. [`Listener::threads`] says how many run at once.
    ///
    /// # Errors
    /// If the system has no descriptors or no threads for it.
    pub fn serve<H>(self, handler: H) -> Result<ServerHandle>
    where
        H: Fn(Connection) -> Result<()> + Send + Sync + 'static,
    {
        serving::start(self, handler)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Accepts who waits, if anybody does.
pub(super) fn try_accept(listener: BorrowedFd<'_>) -> io::Result<Option<(OwnedFd, Address)>> {
    loop {
        match socket::accept(listener) {
            Ok(accepted) => return Ok(Some(accepted)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns when one of them is readable, or after `left`, or for no reason.
pub(super) fn wait_for(fds: &[BorrowedFd<'_>], left: Option<Duration>) {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    // Whoever waits looks again, whatever comes of it; but one time after the other, if the system is short of what a wait needs.
    if poll(&mut fds, timeout.as_ref()).is_err_and(|error| error != Errno::INTR) {
        thread::sleep(PAUSE_MIN);
    }
}

/// What goes wrong while accepting, and how often it did in a row.
#[derive(Debug)]
pub(super) struct Troubles {
    accidents: u32,
    pause: Duration,
}

/// What to do about it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    Retry,
    Pause(Duration),
    None,
}

impl Default for Troubles {
    fn default() -> Troubles {
        Troubles { accidents: 0, pause: PAUSE_MIN }
    }
}

impl Troubles {
    pub(super) fn meet(&mut self, error: &io::Error) -> Remedy {
        match Trouble::of(error) {
            Trouble::Gone => return Remedy::None,
            Trouble::Accident if self.accidents < ACCIDENTS_MAX => {
                self.accidents += 1;
                return Remedy::Retry;
            }
            Trouble::Accident | Trouble::Exhausted | Trouble::Other => {}
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        Remedy::Pause(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: Errno) -> io::Error {
        errno.into()
    }

    #[test]
    fn an_accident_is_retried_at_once_and_many_are_none() {
        let mut troubles = Troubles::default();
        for _ in 0..ACCIDENTS_MAX {
            assert_eq!(troubles.meet(&error(Errno::CONNABORTED)), Remedy::Retry);
        }
        assert_eq!(troubles.meet(&error(Errno::CONNABORTED)), Remedy::Pause(PAUSE_MIN));
    }

    #[test]
    fn without_descriptors_it_pauses_longer_and_longer_but_not_for_ever() {
        let mut troubles = Troubles::default();
        let pauses: Vec<_> = (0..9).map(|_| troubles.meet(&error(Errno::MFILE))).collect();
        assert_eq!(pauses[0], Remedy::Pause(PAUSE_MIN));
        assert_eq!(pauses[1], Remedy::Pause(PAUSE_MIN * 2));
        assert_eq!(pauses[8], Remedy::Pause(PAUSE_MAX));
    }

    #[test]
    fn a_socket_that_listens_no_more_is_told() {
        assert_eq!(Troubles::default().meet(&error(Errno::INVAL)), Remedy::None);
    }
}
