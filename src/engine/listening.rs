//! A listener of the operating system, as readiness and io_uring hold it: who waits is accepted one by one, until nobody
//! waits, the listener is paused, or its share of the turn is used up. How the engine learns that somebody waits, it knows
//! itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::{ACCEPT_BUDGET, Completion, ListenerId, Share, Socket};
use crate::address::Address;

pub(super) struct Listening {
    pub(super) listener: OwnedFd,
    pub(super) paused: bool,
    /// Somebody may wait.
    pub(super) ready: bool,
    pub(super) queued: bool,
    share: Share,
}

/// What to do next with a listener.
pub(super) enum Next {
    Report(Completion),
    /// The next turn has a share for it again.
    Later,
    /// Nobody waits, or nobody may be accepted.
    Rest,
}

impl Listening {
    pub(super) fn new(listener: OwnedFd) -> Listening {
        Listening { listener, paused: false, ready: false, queued: false, share: Share::default() }
    }

    /// Accepts the next one with `call`, if that may be. An error pauses.
    pub(super) fn accept(
        &mut self,
        listener: ListenerId,
        turn: u64,
        mut call: impl FnMut(BorrowedFd<'_>) -> Accepted,
    ) -> Next {
        if !self.ready || self.paused {
            return Next::Rest;
        }
        if !self.share.take(turn, ACCEPT_BUDGET) {
            return Next::Later;
        }
        match self.accept_now(&mut call) {
            Ok(Some((socket, peer))) => Next::Report(Completion::Accepted { listener, socket, peer }),
            Ok(None) => Next::Rest,
            Err(error) => {
                self.paused = true;
                Next::Report(Completion::AcceptFailed { listener, error })
            }
        }
    }

    /// Accepts the next one with `call`, whether or not that is wanted; `None` if nobody waits.
    pub(super) fn accept_now(
        &mut self,
        mut call: impl FnMut(BorrowedFd<'_>) -> Accepted,
    ) -> io::Result<Option<(Socket, Address)>> {
        loop {
            match call(self.listener.as_fd()) {
                Ok((socket, peer)) => return Ok(Some((Socket::Os(socket), peer))),
                Err(Errno::AGAIN) => {
                    self.ready = false;
                    return Ok(None);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

type Accepted = Result<(OwnedFd, Address), Errno>;

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Duration;

    use super::*;
    use crate::config::Backend;
    use crate::engine::{Engine, Listener};
    use crate::time::Time;

    const ID: ListenerId = ListenerId(2);

    /// The engines that this system has.
    fn engines() -> impl Iterator<Item = Engine> {
        [Backend::Readiness, Backend::Uring].into_iter().filter_map(|backend| Engine::new(backend).ok())
    }

    fn tcp() -> (TcpListener, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.set_nonblocking(true).expect("it can");
        let address = listener.local_addr().expect("it has one");
        (listener, address)
    }

    /// What is accepted in one turn that waits for the first of it.
    fn accepted(engine: &mut Engine) -> usize {
        let until = engine.now().after(Duration::from_secs(10));
        engine.wait(Some(until)).expect("it waits");
        std::iter::from_fn(|| engine.next())
            .filter(|completion| matches!(completion, Completion::Accepted { .. }))
            .count()
    }

    #[test]
    fn who_waits_can_be_accepted_at_once_past_the_budget_and_while_paused() {
        for mut engine in engines() {
            let (listener, address) = tcp();
            engine.listen(ID, Listener::Os(listener.into())).expect("it listens");
            engine.pause_accept(ID);
            let connect = || TcpStream::connect(address).expect("it connects");
            let clients: Vec<_> = (0..ACCEPT_BUDGET + 2).map(|_| connect()).collect();
            for client in &clients {
                let (_, peer) = engine.accept_now(ID).expect("it accepts").expect("somebody waits");
                assert_eq!(peer, client.local_addr().expect("it has one"));
            }
            assert!(engine.accept_now(ID).expect("it can be asked").is_none(), "nobody waits any more");
            assert!(
                engine.accept_now(ListenerId(9)).expect("it can be asked").is_none(),
                "there is none such"
            );

            // And it goes on as usual.
            engine.resume_accept(ID);
            engine.wait(Some(Time::ZERO)).expect("it waits");
            while engine.next().is_some() {}
            let _client = connect();
            assert_eq!(accepted(&mut engine), 1);
            drop(engine.unlisten(ID));
            assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
        }
    }

    #[test]
    fn a_listener_that_is_given_back_keeps_who_waits_and_serves_another_engine() {
        for (mut first, mut second) in engines().zip(engines()) {
            let name = format!("wharf-handed-over-{}-{:?}", std::process::id(), first.backend());
            let folder = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&folder).expect("a folder");
            let path = folder.join("socket");
            let listener = UnixListener::bind(&path).expect("it listens");
            listener.set_nonblocking(true).expect("it can");
            first.listen(ID, Listener::Os(listener.into())).expect("it listens");
            first.wait(Some(Time::ZERO)).expect("it waits");
            let _before = UnixStream::connect(&path).expect("it connects");
            let given_back = first.unlisten(ID).expect("it was there");
            assert!(first.unlisten(ID).is_none(), "only once");
            let _between = UnixStream::connect(&path).expect("it connects");
            first.wait(Some(Time::ZERO)).expect("it waits");
            assert!(
                std::iter::from_fn(|| first.next()).all(|c| !matches!(c, Completion::Accepted { .. })),
                "nothing is accepted any more"
            );

            second.listen(ListenerId(0), given_back).expect("it listens");
            assert_eq!(accepted(&mut second), 2);
            drop((first, second));
            assert_eq!(
                UnixStream::connect(&path).expect_err("nobody listens").kind(),
                ErrorKind::ConnectionRefused
            );
            std::fs::remove_dir_all(folder).expect("it was there");
        }
    }

    #[test]
    fn who_is_refused_learns_it_by_the_end_or_by_a_reset() {
        for mut engine in engines() {
            let (listener, address) = tcp();
            engine.listen(ID, Listener::Os(listener.into())).expect("it listens");
            for reset in [false, true] {
                let mut client = TcpStream::connect(address).expect("it connects");
                let (socket, _) = engine.accept_now(ID).expect("it accepts").expect("somebody waits");
                socket.refuse(reset);
                let read = client.read(&mut [0; 1]).map_err(|error| error.kind());
                assert_eq!(read, if reset { Err(ErrorKind::ConnectionReset) } else { Ok(0) });
            }
        }
    }
}
