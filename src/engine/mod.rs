//! The engine: what a worker may ask of the operating system, and what comes back.
//!
//! # The contract
//!
//! One engine belongs to one worker and never leaves its thread. The worker gives **commands** that name a slot by its
//! [`Token`] (an index and a generation), never a pointer; the engine answers with **completions**.
//!
//! ```text
//!   worker                                engine
//!   listen, open, connect        ------>
//!   accept_now, unlisten         ------>  a connection that waits; the listener itself
//!   receive / pause              ------>  (interest; nothing is returned)
//!   offer                        ------>  (whether receptions are offered first)
//!   receive_now(buffer)          ------>  what was offered, if it still stands
//!   send(outgoing)               ------>  Submitted::Done, or later a Sent completion
//!   send_now(bytes)              ------>  how many of them the kernel took
//!   shutdown, close              ------>
//!   unacked                      ------>  bytes sent that the peer's kernel has not acknowledged
//!   wait(until)                  ------>  one system call, at most, for all of the above
//!                                <------  next(): Accepted, AcceptFailed, Connected, Received,
//!                                           Readable, HungUp, ReceiveEnded, Broken, Failed, Sent, Bounced,
//!                                           Closed, Woken
//! ```
//!
//! 1. **Slots.** `open` and `connect` bind a token to a socket. From then on the token is the engine's until it has
//!    answered `close` with [`Completion::Closed`]; only after that may its index be used again, with another
//!    generation. Nothing is reported for a token after `Closed`, and a command with a stale token does nothing.
//! 2. **Connecting.** Exactly one `Connected` per `connect`. A token that failed to connect still has to be closed.
//! 3. **Receiving.** A token starts paused. After `receive` the engine may report any number of `Received`, each with a
//!    non-empty [`Chunk`], in stream order, until `pause` (which takes effect at once: what the kernel still holds stays
//!    there), or `ReceiveEnded` (the peer's FIN), or `Failed`. `ReceiveEnded` comes at most once, after all data. While a
//!    token is paused, and not all of its data was received, `HungUp` tells that the peer has ended: at most once, before
//!    `ReceiveEnded`, and not at all if that can be told.
//!    After `offer` an engine may report `Readable` first, if it would have to make a call to receive. Until the next `wait`
//!    `receive_now` makes that call with the reader's own buffer; what does not fit comes with it as a chunk. It gives nothing if
//!    nothing is there, and never an end or a failure: those are reported. What nobody takes, the engine receives in
//!    the next turn, so an offer has no need to be answered. On io_uring there are none: bytes are in a chunk when it knows of them.
//! 4. **Sending.** At most one send per token is in flight. The bytes move into the engine with [`Outgoing`] and move
//!    back with the completion, also when the token is closed meanwhile: a buffer that the kernel may read is never
//!    freed or changed before its final completion. A completion may tell of fewer bytes than were given; the worker
//!    sends the rest. An engine may complete a send inline ([`Submitted::Done`]); no completion follows then. Or it hands
//!    the bytes over together with those of other connections, at the next `wait` ([`Submitted::Handed`]): they count as
//!    sent, and only if the kernel does not take all of them, `Bounced` comes before anything else that was found
//!    out with it; what is left is in flight then, and the `Sent` for it follows. At most [`HANDED_MAX`] bytes are handed over: a queue that
//!    looks empty is filled again, and holds what bounces as well.
//!    `send_now` lends bytes for the length of the call, while no send is in flight: the engine gives the kernel what it
//!    takes at once, which may be nothing, or hands over a copy of few bytes. The worker sends the rest. `send_gathered_now` is
//!    the same of several slices, and hands nothing over.
//! 5. **Failure.** A broken connection (reset, unreachable, timed out in the kernel) is told at least once: by `Failed`, when
//!    nothing is left to be received; by `Broken`, while something may be and nobody receives it; by a failed `Sent`,
//!    `Submitted::Done`, `send_now` or `shutdown`. After all but `Failed` nothing can be sent any more, and receiving goes on as
//!    before: what the kernel still has is received, and then `ReceiveEnded` or `Failed` comes, whichever the system says. The
//!    token still has to be closed.
//! 6. **Shutdown** sends FIN behind what was sent; the worker asks for it only when no send is in flight. If bytes that were
//!    handed over turn out not to be sent, it says so instead, as `Bounced` would.
//! 7. **Close** takes the socket away, gracefully or with RST (`reset`; a Unix socket has no such thing). In-flight work is
//!    cancelled by the engine, and `Closed` comes after the last trace of it, with the outgoing bytes if a send was in
//!    flight.
//! 8. **Accepting.** A listener reports `Accepted` until it is paused or given back. `AcceptFailed` names the cause; the
//!    engine then waits for `resume_accept`, so that no error can make it spin. Accepted sockets are non-blocking,
//!    close-on-exec, and can move to another worker's engine by `open`. Listeners and sockets of TCP and of Unix stream
//!    sockets are the same to an engine; a simulated network has TCP only.
//!    `accept_now` takes one connection that waits out of turn: past the budget, and from a paused listener. It never waits,
//!    and an error of it pauses nothing. [`Socket::refuse`], or dropping what it gives, closes at once. It serves to empty a
//!    backlog before the listener is closed, and to turn clients away with a descriptor kept in reserve. `unlisten` gives
//!    the listener back with who waits in it, to be closed, kept, or given to another engine.
//! 9. **Fairness.** One `wait` and the `next` calls up to its `None` make a turn. In one turn no connection gets more
//!    than [`RECEIVE_BUDGET`] chunks and no listener more than [`ACCEPT_BUDGET`] sockets; the rest comes in later turns
//!    without another command. What the kernel receives by itself (multishot, on io_uring) is bounded by bytes instead, 64
//!    KiB and a buffer for each request.
//! 10. **Laziness.** An engine may do its work within `next`, so the worker handles each completion before it asks for
//!     the next one. That is what keeps one receive buffer warm for a thousand connections.
//! 11. **Time** is the engine's (`now`), and `wait` returns at `until` at the latest, when something completed, or when
//!     a [`Waker`] was used since the last `wait` (a `Woken` may follow).
//!
//! Three backends keep this contract: `uring` (io_uring), `readiness` (epoll or kqueue through mio), and `simulated` (no
//! operating system, seeded, virtual time). The backend is an enum, so calls are direct.

#[cfg_attr(target_os = "linux", path = "timerfd.rs")]
#[cfg_attr(not(target_os = "linux"), path = "timeout.rs")]
mod alarm;
pub(crate) mod buffer;
mod capability;
#[cfg(target_os = "linux")]
pub(crate) mod fast_open;
#[cfg(target_os = "linux")]
pub(crate) mod late_port;
mod listening;
#[cfg_attr(target_os = "linux", path = "outq.rs")]
#[cfg_attr(not(target_os = "linux"), path = "no_outq.rs")]
pub(crate) mod outq;
mod readiness;
pub(crate) mod refillable;
pub(crate) mod simulated;
pub(crate) mod socket;
#[cfg(target_os = "linux")]
pub(crate) mod uring;

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use buffer::{Chunk, Outgoing, PiecePool};
pub use capability::{Refusal, UringFeatures};

use crate::address::Address;
use crate::config::{Backend, SocketOptions};
use crate::time::Time;

/// The most chunks that one connection receives in one turn.
pub(crate) const RECEIVE_BUDGET: usize = 4;
/// The most sockets that one listener accepts in one turn.
pub(crate) const ACCEPT_BUDGET: usize = 64;

/// The most bytes of one connection that are handed over.
pub(crate) const HANDED_MAX: usize = buffer::PIECE_SIZE;

/// Names one slot of one worker for as long as it holds the same connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Token {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Names one listener of one worker.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListenerId(pub(crate) u32);

/// A connected socket that no engine holds yet: a stream socket of any kind, non-blocking.
#[derive(Debug)]
pub(crate) enum Socket {
    Os(OwnedFd),
    Simulated(Box<simulated::Endpoint>),
}

impl Socket {
    /// Takes a connected socket that was made elsewhere.
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<(Socket, Address)> {
        let socket = socket2::SockRef::from(&fd);
        if socket.r#type()? != socket2::Type::STREAM {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no stream socket"));
        }
        let peer = socket::peer_addr(fd.as_fd())?;
        socket.set_nonblocking(true)?;
        Ok((Socket::Os(fd), peer))
    }

    /// Closes it; with `reset` the peer gets RST.
    pub(crate) fn refuse(self, reset: bool) {
        match self {
            Socket::Os(socket) if reset => socket::reset_on_close(socket.as_fd()),
            Socket::Os(_) => {}
            Socket::Simulated(endpoint) => endpoint.refuse(reset),
        }
    }
}

/// A listening socket that no engine holds, of any kind of stream; non-blocking.
#[derive(Debug)]
pub(crate) enum Listener {
    Os(OwnedFd),
    Simulated(simulated::Listening),
}

/// What became of a `send`.
#[derive(Debug)]
pub(crate) enum Submitted {
    /// It is over; so many bytes were sent. The [`Outgoing`] stays with the caller, not yet advanced.
    Done(io::Result<usize>),
    /// The engine took the [`Outgoing`] and left an empty one; a [`Completion::Sent`] brings it back.
    InFlight,
    /// The engine took the [`Outgoing`], left an empty one, and all its bytes count as sent, unless a
    /// [`Completion::Bounced`] says otherwise.
    Handed,
}

/// What an engine reports. Small, because each one is moved a few times: what is large, and rare or in need of a stable
/// address anyway, is boxed.
#[derive(Debug)]
pub(crate) enum Completion {
    Accepted {
        listener: ListenerId,
        socket: Socket,
        peer: Address,
    },
    AcceptFailed {
        listener: ListenerId,
        error: io::Error,
    },
    Connected {
        token: Token,
        result: io::Result<()>,
    },
    Received {
        token: Token,
        chunk: Chunk,
    },
    /// Bytes may be there for [`Engine::receive_now`], until the next `wait`.
    Readable {
        token: Token,
    },
    /// The peer has ended, and nobody receives what came before that.
    HungUp {
        token: Token,
    },
    ReceiveEnded {
        token: Token,
    },
    /// Nothing can be sent any more; but what came before may still be received.
    Broken {
        token: Token,
        error: io::Error,
    },
    Failed {
        token: Token,
        error: io::Error,
    },
    Sent {
        token: Token,
        outgoing: Box<Outgoing>,
        result: io::Result<usize>,
    },
    /// Of what was handed over so many bytes were not sent: they are in flight.
    Bounced {
        token: Token,
        unsent: usize,
    },
    Closed {
        token: Token,
        outgoing: Option<Box<Outgoing>>,
    },
    Woken,
}

/// Ends the `wait` of one engine from any thread.
#[derive(Clone, Debug)]
pub(crate) enum Waker {
    Readiness(Arc<mio::Waker>),
    #[cfg(target_os = "linux")]
    Eventfd(Arc<OwnedFd>),
    /// A simulation turns its workers itself; nobody sleeps.
    Simulated,
}

/// What may have something to do in a turn.
#[derive(Copy, Clone)]
enum Source {
    Connection(u32),
    Listener(u32),
}

/// What one connection or listener has had of the current turn (rule 9 of the contract).
#[derive(Default)]
struct Share {
    /// The last digits of the turn's number. Mistaken for another turn, it makes a connection wait for the next.
    turn: u16,
    used: u8,
}

impl Share {
    /// Takes one more of the turn's budget; says whether there was one left.
    fn take(&mut self, turn: u64, budget: usize) -> bool {
        if self.turn != turn as u16 {
            *self = Share { turn: turn as u16, used: 0 };
        }
        let left = usize::from(self.used) < budget;
        self.used += u8::from(left);
        left
    }
}

/// Makes room for the index in a table of slots.
fn grow<T>(table: &mut Vec<Option<T>>, index: usize) {
    if table.len() <= index {
        table.resize_with(index + 1, || None);
    }
}

impl Waker {
    /// Wakes the engine. One call is enough for any number of messages; several before one `wait` are one wake.
    pub(crate) fn wake(&self) {
        match self {
            // Fails only when the kernel refuses a write to an eventfd whose counter is full: it is readable then.
            Waker::Readiness(waker) => drop(waker.wake()),
            #[cfg(target_os = "linux")]
            Waker::Eventfd(fd) => drop(rustix::io::write(fd, &1u64.to_ne_bytes())),
            Waker::Simulated => {}
        }
    }
}

/// The engine of one worker.
pub(crate) enum Engine {
    Readiness(Box<readiness::Readiness>),
    #[cfg(target_os = "linux")]
    Uring(Box<uring::Uring>),
    Simulated(Box<simulated::Simulated>),
}

/// Calls the same method of whichever backend this is.
macro_rules! backend {
    ($self:ident, $engine:ident => $call:expr) => {
        match $self {
            Engine::Readiness($engine) => $call,
            #[cfg(target_os = "linux")]
            Engine::Uring($engine) => $call,
            Engine::Simulated($engine) => $call,
        }
    };
}

impl Engine {
    /// The engine of a worker on this thread.
    pub(crate) fn new(backend: Backend) -> Result<Engine, Refusal> {
        match backend {
            Backend::Uring => new_uring(),
            Backend::Readiness => new_readiness(),
            // The trial may have worked, and a ring be refused all the same, by a limit for example: then this worker does
            // without.
            Backend::Auto => new_uring().or_else(|refusal| {
                tell_once(&refusal);
                new_readiness()
            }),
        }
    }

    /// Which of the backends this is; a simulated one is none that could be chosen.
    pub(crate) fn backend(&self) -> Option<Backend> {
        match self {
            Engine::Readiness(_) => Some(Backend::Readiness),
            #[cfg(target_os = "linux")]
            Engine::Uring(_) => Some(Backend::Uring),
            Engine::Simulated(_) => None,
        }
    }

    pub(crate) fn now(&self) -> Time {
        backend!(self, engine => engine.now())
    }

    pub(crate) fn waker(&self) -> Waker {
        backend!(self, engine => engine.waker())
    }

    /// Starts accepting on `listener`.
    pub(crate) fn listen(&mut self, id: ListenerId, listener: Listener) -> io::Result<()> {
        backend!(self, engine => engine.listen(id, listener))
    }

    pub(crate) fn pause_accept(&mut self, id: ListenerId) {
        backend!(self, engine => engine.pause_accept(id));
    }

    pub(crate) fn resume_accept(&mut self, id: ListenerId) {
        backend!(self, engine => engine.resume_accept(id));
    }

    /// Accepts one connection at once, past the turn's budget and also while the listener is paused; `None` if none waits.
    pub(crate) fn accept_now(&mut self, id: ListenerId) -> io::Result<Option<(Socket, Address)>> {
        backend!(self, engine => engine.accept_now(id))
    }

    /// Gives the listener back: nothing more is accepted. To drop it is to close it; who waits in it then is reset.
    #[must_use = "dropping a listener closes it"]
    pub(crate) fn unlisten(&mut self, id: ListenerId) -> Option<Listener> {
        backend!(self, engine => engine.unlisten(id))
    }

    /// Takes a connected socket into the slot `token`. On error the slot stays free and the socket is closed.
    pub(crate) fn open(&mut self, token: Token, socket: Socket) -> io::Result<()> {
        backend!(self, engine => engine.open(token, socket))
    }

    /// Begins to connect. On error the slot stays free.
    pub(crate) fn connect(
        &mut self,
        token: Token,
        peer: &Address,
        options: &SocketOptions,
    ) -> io::Result<()> {
        match self {
            Engine::Readiness(engine) => engine.connect(token, peer, options),
            #[cfg(target_os = "linux")]
            Engine::Uring(engine) => engine.connect(token, peer, options),
            // A simulated socket has no other options.
            Engine::Simulated(engine) => engine.connect(token, peer, options.source),
        }
    }

    /// The addresses of a name, if this engine has names of its own; `None` means that the operating system knows.
    pub(crate) fn resolve(&self, name: &str) -> Option<Vec<IpAddr>> {
        match self {
            Engine::Simulated(engine) => Some(engine.network().resolve(name).unwrap_or_default()),
            _ => None,
        }
    }

    /// A random number. In a simulation it follows from the seed.
    pub(crate) fn random(&self) -> u64 {
        match self {
            Engine::Simulated(engine) => engine.network().random(),
            _ => fastrand::u64(..),
        }
    }

    /// The local address of the socket in the slot.
    pub(crate) fn local_addr(&self, token: Token) -> io::Result<Address> {
        backend!(self, engine => engine.local_addr(token))
    }

    /// Bytes that count as sent, and that the peer's kernel has not acknowledged, at most; FIN counts as one. An error if the
    /// token is closed, or if nobody can tell.
    pub(crate) fn unacked(&self, token: Token) -> io::Result<usize> {
        backend!(self, engine => engine.unacked(token))
    }

    pub(crate) fn receive(&mut self, token: Token) {
        backend!(self, engine => engine.receive(token));
    }

    pub(crate) fn pause(&mut self, token: Token) {
        backend!(self, engine => engine.pause(token));
    }

    /// Has receptions offered before they are made, or no longer; then one that is on offer is made in this turn.
    pub(crate) fn offer(&mut self, token: Token, offers: bool) {
        match self {
            #[cfg(target_os = "linux")]
            Engine::Uring(_) => {}
            Engine::Readiness(engine) => engine.offer(token, offers),
            Engine::Simulated(engine) => engine.offer(token, offers),
        }
    }

    /// Receives what [`Completion::Readable`] has offered: how many bytes are in `into`, and what did not fit there.
    pub(crate) fn receive_now(&mut self, token: Token, into: &mut [u8]) -> Option<(usize, Option<Chunk>)> {
        match self {
            #[cfg(target_os = "linux")]
            Engine::Uring(_) => None,
            Engine::Readiness(engine) => engine.receive_now(token, into),
            Engine::Simulated(engine) => engine.receive_now(token, into),
        }
    }

    /// Says that about so many `send`s follow before the next `wait`: few are cheapest made at once, many together.
    pub(crate) fn expect_sends(&mut self, count: usize) {
        match self {
            #[cfg(target_os = "linux")]
            Engine::Uring(engine) => engine.expect_sends(count),
            _ => {}
        }
    }

    /// Takes back the box of a completed send, for the next one.
    pub(crate) fn recycle(&mut self, outgoing: Box<Outgoing>) {
        match self {
            #[cfg(target_os = "linux")]
            Engine::Uring(engine) => engine.recycle(outgoing),
            _ => drop(outgoing),
        }
    }

    /// Sends what it can of `outgoing`, or takes it to send it later.
    pub(crate) fn send(&mut self, token: Token, outgoing: &mut Outgoing) -> Submitted {
        backend!(self, engine => engine.send(token, outgoing))
    }

    /// Sends what the kernel takes of `bytes` right now: 0 if it takes none.
    pub(crate) fn send_now(&mut self, token: Token, bytes: &[u8]) -> io::Result<usize> {
        backend!(self, engine => engine.send_now(token, bytes))
    }

    /// The same of several slices, at most [`SLICES_MAX`](buffer::SLICES_MAX), in one call.
    #[allow(dead_code, reason = "for the traits of others, which are features")]
    pub(crate) fn send_gathered_now(&mut self, token: Token, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        backend!(self, engine => engine.send_gathered_now(token, slices))
    }

    /// Sends FIN. If it cannot yet, because bytes that were handed over were not sent, it says how many: they are in flight.
    pub(crate) fn shutdown(&mut self, token: Token) -> io::Result<usize> {
        match self {
            #[cfg(target_os = "linux")]
            Engine::Uring(engine) => engine.shutdown(token),
            Engine::Readiness(engine) => engine.shutdown(token).map(|()| 0),
            Engine::Simulated(engine) => engine.shutdown(token),
        }
    }

    /// Where the engine puts the buffers of bytes that it has sent for good.
    pub(crate) fn use_pieces(&mut self, pieces: &Rc<PiecePool>) {
        match self {
            #[cfg(target_os = "linux")]
            Engine::Uring(engine) => engine.use_pieces(pieces.clone()),
            Engine::Simulated(engine) => engine.use_pieces(pieces.clone()),
            Engine::Readiness(_) => {}
        }
    }

    /// Bytes of receive buffers that are in use, or kept for the next reception.
    #[inline]
    pub(crate) fn held(&self) -> usize {
        match self {
            #[cfg(target_os = "linux")]
            Engine::Uring(engine) => engine.held(),
            Engine::Readiness(engine) => engine.chunks().held(),
            Engine::Simulated(engine) => engine.chunks().held(),
        }
    }

    /// Frees the receive buffers that are idle.
    pub(crate) fn shed(&mut self) {
        backend!(self, engine => engine.chunks().shed());
    }

    /// Whether to copy receptions rather than to keep large buffers for them.
    pub(crate) fn set_frugal(&mut self, frugal: bool) {
        backend!(self, engine => engine.chunks().set_frugal(frugal));
    }

    /// Closes the socket; with `reset` the peer gets RST and unsent bytes are thrown away.
    pub(crate) fn close(&mut self, token: Token, reset: bool) {
        backend!(self, engine => engine.close(token, reset));
    }

    /// Closes what is still open, also if the engine itself never goes.
    pub(crate) fn end(&mut self) {
        match self {
            #[cfg(target_os = "linux")]
            Engine::Uring(engine) => engine.end(),
            // Their sockets are closed at once.
            Engine::Readiness(_) | Engine::Simulated(_) => {}
        }
    }

    /// Waits until something completes, a wake, or `until`; `None` waits without end, a time in the past polls.
    pub(crate) fn wait(&mut self, until: Option<Time>) -> io::Result<()> {
        backend!(self, engine => engine.wait(until))
    }

    /// Waits without sleeping, at most until `until`; says whether something is there for `next`.
    pub(crate) fn spin(&mut self, until: Time) -> io::Result<bool> {
        match self {
            #[cfg(target_os = "linux")]
            Engine::Uring(engine) => engine.spin(until),
            Engine::Readiness(engine) => engine.spin(until),
            // Its time stands still within a turn.
            Engine::Simulated(_) => Ok(false),
        }
    }

    /// The next completion of this turn.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Completion> {
        backend!(self, engine => engine.next())
    }
}

/// What io_uring offers here, or why it cannot be used.
#[cfg(target_os = "linux")]
pub(crate) fn uring_features() -> Result<UringFeatures, Refusal> {
    uring::support()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn uring_features() -> Result<UringFeatures, Refusal> {
    Err(Refusal::because("io_uring", "looking for it", "it is a part of Linux", "take `readiness` or `auto`"))
}

#[cfg(target_os = "linux")]
fn new_uring() -> Result<Engine, Refusal> {
    Ok(Engine::Uring(Box::new(uring::new()?)))
}

#[cfg(not(target_os = "linux"))]
fn new_uring() -> Result<Engine, Refusal> {
    Err(uring_features().expect_err("this is not Linux"))
}

fn new_readiness() -> Result<Engine, Refusal> {
    let engine = readiness::Readiness::new().map_err(|error| {
        Refusal::new(POLLER, "setting up a worker's engine", &error, String::from("see `ulimit -n`"))
    })?;
    Ok(Engine::Readiness(Box::new(engine)))
}

/// What tells of readiness on this system.
pub(crate) const POLLER: &str =
    if cfg!(any(target_os = "linux", target_os = "android")) { "epoll" } else { "kqueue" };

/// Tells, once in a process, why `auto` does without io_uring.
fn tell_once(refusal: &Refusal) {
    static TOLD: std::sync::Once = std::sync::Once::new();
    TOLD.call_once(|| {
        event!(info, %refusal, "io_uring is not used");
        let _ = refusal;
    });
}
