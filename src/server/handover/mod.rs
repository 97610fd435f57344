//! A server's listeners go to its successor: both sides of it (docs/design/handover.md tells why it is as it is).
//!
//! A server that starts is a successor first, if there is somebody to follow ([`Heritage`]). Once it serves, a thread of its
//! own waits at the upgrade socket for its own successor. Bytes and descriptors are `wire.rs`'s; what a server keeps for
//! its successor, `succession.rs`'s.

mod peer;
mod succession;
mod wire;

use std::io::{self, PipeReader, PipeWriter};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

pub(super) use self::succession::Succession;
use self::wire::{Message, Received, await_readable, receive, send};
use super::hooks::ServerEvent;
use super::listen::SocketFile;
use super::state::ServerState;
use crate::address::{Address, UnixName};
use crate::config::{Handover, SocketOptions};
use crate::engine::socket;
use crate::error::{Cause, Error, Operation, Result};
use crate::sockets;

/// How long a successor may take from the offer until it serves.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to say what it wants.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// After an accept that failed.
const PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: i32 = 16;

/// What a server with a hand-over has while it starts.
pub(super) struct Heritage {
    handover: Handover,
    origin: Origin,
}

enum Origin {
    /// Nobody was there.
    Founded(Upgrade),
    Inherited(Predecessor),
}

/// The socket at which successors ask.
struct Upgrade {
    listener: UnixListener,
    file: Option<SocketFile>,
}

/// A server that has offered its listeners, and waits for us to be ready.
struct Predecessor {
    stream: UnixStream,
    upgrade: UnixListener,
    offered: Vec<Option<Offered>>,
    taken: u64,
}

struct Offered {
    listener: OwnedFd,
    address: Address,
}

impl Heritage {
    /// Asks whoever listens at the path for what it has, or begins to listen there.
    pub(super) fn claim(handover: &Handover) -> Result<Heritage> {
        let origin = match Predecessor::ask(handover) {
            Ok(Some(predecessor)) => Origin::Inherited(predecessor),
            Ok(None) => Origin::Founded(Upgrade::open(handover)?),
            Err(error) => return Err(failed(handover, error)),
        };
        Ok(Heritage { handover: handover.clone(), origin })
    }

    pub(super) fn is_inherited(&self) -> bool {
        matches!(self.origin, Origin::Inherited(_))
    }

    /// Takes a listener that the predecessor has offered.
    pub(super) fn take(&mut self, wanted: impl Fn(&Address) -> bool) -> Option<(OwnedFd, Address)> {
        let Origin::Inherited(predecessor) = &mut self.origin else { return None };
        let is_wanted = |offer: &Option<Offered>| offer.as_ref().is_some_and(|offer| wanted(&offer.address));
        let index = predecessor.offered.iter().position(is_wanted)?;
        predecessor.taken |= 1 << index;
        predecessor.offered[index].take().map(|offer| (offer.listener, offer.address))
    }

    /// The server serves: its predecessor may go, and its own successor may come.
    pub(super) fn enter(self, state: &Arc<ServerState>) -> Result<()> {
        let Heritage { handover, origin } = self;
        // What can fail comes first, for there is no way back once the predecessor has been told.
        let (end, upgrades) = spawn(state, &handover)?;
        let upgrade = match origin {
            Origin::Founded(upgrade) => upgrade,
            Origin::Inherited(predecessor) => {
                let listener = predecessor.release().map_err(|error| failed(&handover, error))?;
                state.claim_files();
                Upgrade { listener, file: SocketFile::of(handover.path()).ok() }
            }
        };
        state.keep_until_the_end(end, upgrade.file);
        // If the thread is gone, it has panicked; the server itself can do without.
        drop(upgrades.send(upgrade.listener));
        state.open_door();
        Ok(())
    }
}

fn failed(handover: &Handover, error: io::Error) -> Error {
    let cause = match error.kind() {
        io::ErrorKind::TimedOut => Cause::TimedOut { after: handover.within },
        _ => Cause::Os(error),
    };
    Error::new(Operation::TakeOver, cause).at(handover.path().display())
}

impl Predecessor {
    fn ask(handover: &Handover) -> io::Result<Option<Predecessor>> {
        let deadline = Instant::now() + handover.within;
        let Some(stream) = connect(handover)? else { return Ok(None) };
        peer::trusted(&stream)?;
        send(&stream, Message::Ask, &[])?;
        match receive(&stream, deadline, None)? {
            Received::Message(Message::Offer(count), mut descriptors) => {
                if descriptors.len() as u64 != count + 1 {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not offer what it says"));
                }
                let listeners = descriptors.split_off(1);
                let upgrade = descriptors.into_iter().map(UnixListener::from).next();
                let upgrade = upgrade.ok_or(io::ErrorKind::InvalidData)?;
                let offered = listeners.into_iter().map(Offered::of).collect();
                Ok(Some(Predecessor { stream, upgrade, offered, taken: 0 }))
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it has gone without an answer")),
        }
    }

    /// Says that we serve, and returns the upgrade socket, which is ours now.
    fn release(self) -> io::Result<UnixListener> {
        if let Err(error) = send(&self.stream, Message::Ready(self.taken), &[]) {
            let last = receive(&self.stream, Instant::now(), None);
            if matches!(last, Ok(Received::Message(Message::TooLate, _))) {
                return Err(io::Error::other(
                    "it has waited too long for us to be ready, and goes on itself",
                ));
            }
            // It has ended meanwhile, and what it had is ours alone.
            debug_assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
        // From now on peers are told that we listen there (unix(7), SO_PEERCRED).
        SockRef::from(&self.upgrade).listen(BACKLOG)?;
        Ok(self.upgrade)
    }
}

/// Connects to a predecessor; `None` if there is none.
fn connect(handover: &Handover) -> io::Result<Option<UnixStream>> {
    let address = Address::Unix(UnixName::of_path(handover.path()));
    let stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full backlog makes connect wait, for as long as a write may (socket(7), SO_SNDTIMEO).
    stream.set_write_timeout(Some(handover.within))?;
    match stream.connect(&socket::sock_addr(&address)?) {
        Ok(()) => {}
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => return Ok(None),
            io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            _ => return Err(error),
        },
    }
    Ok(Some(OwnedFd::from(stream).into()))
}

impl Offered {
    /// Nobody takes what is no listening stream socket, so it is as good as not offered.
    fn of(listener: OwnedFd) -> Option<Offered> {
        let socket = SockRef::from(&listener);
        let listens = socket.is_listener().ok()? && socket.r#type().ok()? == Type::STREAM;
        let address = socket::local_addr(listener.as_fd()).ok()?;
        listens.then_some(Offered { listener, address })
    }
}

impl Upgrade {
    fn open(handover: &Handover) -> Result<Upgrade> {
        let failed = |error| Error::os(Operation::Listen, error).at(handover.path().display());
        let name = UnixName::of_path(handover.path());
        let options = SocketOptions::default().backlog(BACKLOG as u32);
        let listener = sockets::listen_unix(&name, &options).map_err(failed)?.into();
        let file = SocketFile::of(handover.path()).map_err(failed)?;
        // Whoever came before this is asked who it is.
        file.set_mode(0o600).map_err(failed)?;
        Ok(Upgrade { listener, file: Some(file) })
    }
}

/// Starts the thread that waits for a successor, once it gets the upgrade socket.
fn spawn(state: &Arc<ServerState>, handover: &Handover) -> Result<(PipeWriter, mpsc::Sender<UnixListener>)> {
    let failed = |error| Error::os(Operation::Start, error);
    let (ended, end) = io::pipe().map_err(failed)?;
    let (upgrades, upgrade) = mpsc::channel();
    let (state, drain) = (state.clone(), handover.drain);
    let body = move || {
        if let Ok(upgrade) = upgrade.recv() {
            Keeper { state, drain, ended, upgrade }.wait_for_successor();
        }
    };
    thread::Builder::new().name(String::from("wharf-handover")).spawn(body).map_err(failed)?;
    Ok((end, upgrades))
}

/// The thread of a server that waits for its successor.
struct Keeper {
    state: Arc<ServerState>,
    drain: Duration,
    /// Ends when the server does.
    ended: PipeReader,
    upgrade: UnixListener,
}

/// How an exchange with somebody who asked has ended.
enum Exchange {
    /// The successor serves, and these of the offered listeners are its own.
    Done { taken: u64 },
    /// It went away, or took too long.
    Nothing,
    /// The server has ended before.
    Ended,
}

impl Keeper {
    fn wait_for_successor(self) {
        loop {
            match await_readable(self.upgrade.as_fd(), None, Some(self.ended.as_fd())) {
                Ok(true) => {}
                Ok(false) => return,
                // For want of memory, say: looked at again, at a slower pace.
                Err(_) => thread::sleep(PAUSE),
            }
            let Ok((stream, _)) = self.upgrade.accept() else {
                // Nobody is there after all, or there are no descriptors.
                thread::sleep(PAUSE);
                continue;
            };
            if self.hand_over(&stream) {
                return;
            }
        }
    }

    /// Whether the server has nothing to wait for any more.
    fn hand_over(&self, stream: &UnixStream) -> bool {
        let outcome = peer::trusted(stream).and_then(|peer| {
            let (copies, offered) = self.asked(stream)?;
            Ok((peer, self.offer(stream, &copies)?, offered))
        });
        match outcome {
            Ok((peer, Exchange::Done { taken }, offered)) => {
                let mine = offered.iter().zip(0..).filter(|(_, bit)| taken & (1 << bit) == 0);
                mine.for_each(|(index, _)| self.state.keep(*index));
                self.state.tell(&ServerEvent::HandedOver { process: peer.process });
                self.state.drain_for_successor(peer.process, self.drain);
                true
            }
            // Who has been offered everything may still take it.
            Ok((_, Exchange::Ended, _)) => true,
            Ok((_, Exchange::Nothing, _)) => {
                event!(warn, "a successor has asked for the listeners, and gone before it was ready");
                self.state.keep_all();
                false
            }
            Err(error) => {
                event!(warn, %error, "a hand-over came to nothing");
                let _ = error;
                self.state.keep_all();
                false
            }
        }
    }

    /// Waits until somebody says what it wants; returns the listeners, with their indices.
    fn asked(&self, stream: &UnixStream) -> io::Result<(Vec<OwnedFd>, Vec<usize>)> {
        match receive(stream, Instant::now() + ASK_WITHIN, Some(self.ended.as_fd()))? {
            Received::Message(Message::Ask, _) => Ok(self.state.promise_listeners()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it did not ask for the listeners")),
        }
    }

    /// Offers the listeners and waits for the successor to be ready.
    fn offer(&self, stream: &UnixStream, listeners: &[OwnedFd]) -> io::Result<Exchange> {
        let upgrade = std::iter::once(self.upgrade.as_fd());
        let descriptors: Vec<BorrowedFd<'_>> = upgrade.chain(listeners.iter().map(AsFd::as_fd)).collect();
        send(stream, Message::Offer(listeners.len() as u64), &descriptors)?;
        let answer = receive(stream, Instant::now() + READY_WITHIN, Some(self.ended.as_fd()));
        let answer = match answer {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                // After this it cannot say it any more; it may just have done so.
                stream.shutdown(Shutdown::Read)?;
                receive(stream, Instant::now(), None)?
            }
            answer => answer?,
        };
        match answer {
            Received::Message(Message::Ready(taken), _) => Ok(Exchange::Done { taken }),
            Received::Interrupted => Ok(Exchange::Ended),
            Received::End | Received::Message(..) => {
                // Nobody may be there to hear it.
                drop(send(stream, Message::TooLate, &[]));
                Ok(Exchange::Nothing)
            }
        }
    }
}
