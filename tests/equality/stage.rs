//! Where scenarios are played: who serves and who connects, in the style and on the backend of a cell.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_lite::FutureExt as _;
use wharf::blocking::{self, Listener};
use wharf::tls::{Acceptor, Connector};
use wharf::{
    Address, Client, Connection, Deadlines, Limits, Listen, Phase, Result, Server, ServerHandle,
    SocketOptions, Stats,
};

use super::cell::{Role, Style};
use super::in_events::Performing;
use super::script::{Failure, Gate, Script, Telling, Told};
use super::{in_async, in_blocking};
use crate::common::tls::{AUTHORITY, Authority, client_tls, server_tls};
use crate::common::{Nobody, Wire, World, until};

/// What a side is told beside its script.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) limits: Limits,
    pub(crate) deadlines: Deadlines,
    pub(crate) sockets: SocketOptions,
    pub(crate) wire: Wire,
    /// The deadline of a connect, if it is not the usual one.
    pub(crate) connect_within: Option<Duration>,
    /// The deadline of a server's handshakes, if it is not the usual one.
    pub(crate) handshake_within: Option<Duration>,
    /// Whether a client trusts no authority that a server here has.
    pub(crate) trusts_nobody: bool,
}

impl Default for Options {
    /// Small buffers of the kernel, so that its part of what is on the way is about the same everywhere.
    fn default() -> Options {
        Options {
            limits: Limits::default(),
            deadlines: Deadlines::default(),
            sockets: SocketOptions::default().send_buffer(16 * 1024).receive_buffer(16 * 1024),
            wire: Wire::Plain,
            connect_within: None,
            handshake_within: None,
            trusts_nobody: false,
        }
    }
}

impl Options {
    pub(crate) fn limits(limits: Limits) -> Options {
        Options { limits, ..Options::default() }
    }

    pub(crate) fn deadlines(deadlines: Deadlines) -> Options {
        Options { deadlines, ..Options::default() }
    }

    pub(crate) fn tls() -> Options {
        Options { wire: Wire::Tls, ..Options::default() }
    }

    fn client(&self, address: SocketAddr) -> Client {
        let Options { limits, deadlines, sockets, .. } = self.clone();
        let client = Client::new(address).limits(limits).deadlines(deadlines).sockets(sockets);
        let client = match self.connect_within {
            Some(within) => client.connect_within(within),
            None => client,
        };
        let trust =
            if self.trusts_nobody { Authority::new("Somebody else").trust() } else { AUTHORITY.trust() };
        match self.wire {
            Wire::Plain => client,
            Wire::Tls => client.tls(&Connector::new(client_tls().trust(trust)).expect("it can be used")),
        }
    }

    fn server(&self, server: Server) -> Server {
        let Options { limits, deadlines, sockets, .. } = self.clone();
        let server = server.limits(limits).deadlines(deadlines).sockets(sockets);
        match self.wire {
            Wire::Plain => server,
            Wire::Tls => server.tls(&self.acceptor()),
        }
    }

    fn listener(&self) -> Result<Listener> {
        let Options { limits, deadlines, sockets, .. } = self.clone();
        let listen = Listen::at("127.0.0.1:0").sockets(sockets);
        let listener = Listener::bind(listen)?.limits(limits)?.deadlines(deadlines)?;
        Ok(match self.wire {
            Wire::Plain => listener,
            Wire::Tls => listener.tls(&self.acceptor()),
        })
    }

    fn acceptor(&self) -> Acceptor {
        let tls = match self.handshake_within {
            Some(within) => server_tls().handshake_within(within),
            None => server_tls(),
        };
        Acceptor::new(tls).expect("it can be used")
    }
}

pub(crate) struct Stage<'w> {
    world: &'w mut World,
    style: Style,
    role: Role,
    /// In which style the other side is, if its script can be performed in it.
    other: Style,
}

/// Two sides at play.
pub(crate) struct Pair {
    pub(crate) subject: Telling,
    pub(crate) peer: Telling,
    serving: Serving,
}

impl<'w> Stage<'w> {
    pub(crate) fn new(world: &'w mut World, style: Style, role: Role, other: Style) -> Stage<'w> {
        Stage { world, style, role, other }
    }

    /// In which style the side of that role is, if it is to perform `script`.
    fn style_of(&self, role: Role, script: &Script) -> Style {
        match self.role == role {
            true => self.style,
            false if script.is_for(self.other) => self.other,
            false => Style::Async,
        }
    }

    /// Has the side in question perform `subject`, and its peer `peer`; returns what is told of both when both are at their end.
    pub(crate) fn play(
        &mut self,
        subject: (impl Into<Script>, Options),
        peer: (impl Into<Script>, Options),
    ) -> (Told, Told) {
        let pair = self.begin(subject, peer);
        self.end(&pair)
    }

    /// Begins what [`Stage::play`] plays.
    pub(crate) fn begin(
        &mut self,
        subject: (impl Into<Script>, Options),
        peer: (impl Into<Script>, Options),
    ) -> Pair {
        self.begin_by(None, subject, peer)
    }

    /// The same with somebody on the way between the two, who ends both connections when the gate `cut` is opened.
    pub(crate) fn begin_by(
        &mut self,
        cut: Option<&Gate>,
        subject: (impl Into<Script>, Options),
        peer: (impl Into<Script>, Options),
    ) -> Pair {
        let (subject, peer) = ((subject.0.into(), subject.1), (peer.0.into(), peer.1));
        let role = self.role;
        let (server, client) = if role == Role::Server { (subject, peer) } else { (peer, subject) };
        let serving = self.serve(server.0, &server.1);
        let address = match cut {
            Some(cut) => self.relay(serving.address, cut),
            None => serving.address,
        };
        let client = self.connect(address, client.0, &client.1);
        self.until("it is let in", || serving.len() == 1);
        let server = serving.telling(0);
        let (subject, peer) = if role == Role::Server { (server, client) } else { (client, server) };
        Pair { subject, peer, serving }
    }

    /// Waits for the end of both sides.
    pub(crate) fn end(&mut self, pair: &Pair) -> (Told, Told) {
        let (near, far) = (&pair.subject, &pair.peer);
        self.until("both are at their end", || near.note().is_over() && far.note().is_over());
        let stats = self.stop(&pair.serving);
        let (near, far) = (near.told(), far.told());
        let server = if self.role == Role::Server { &near } else { &far };
        assert_eq!(stats.closes, [(server.end(), 1)], "the server says what the handler was told: {stats:?}");
        (near, far)
    }

    /// A server whose connections perform `script`.
    pub(crate) fn serve(&mut self, script: impl Into<Script>, options: &Options) -> Serving {
        let (script, tellings) = (script.into(), Tellings::default());
        let configure = |server| options.server(server);
        let begun = tellings.clone();
        let handle = match self.style_of(Role::Server, &script) {
            Style::Blocking => return Serving::of_threads(script, tellings, options),
            Style::Async => self
                .world
                .serve_async(configure, move |conn| in_async::serve(conn, script.clone(), begun.begin())),
            Style::Event => {
                self.world.serve_events(configure, move || Performing::new(script.clone(), begun.begin()))
            }
            Style::Queued => {
                self.world.serve_queued(configure, move |_| Performing::new(script.clone(), begun.begin()))
            }
        };
        Serving { address: handle.local_addr(), tellings, handle: Handle::Workers(handle) }
    }

    /// Somebody who passes bytes on to the server at `to` and back, until the gate `cut` is opened: then both directions of both
    /// connections end. Returns where to find him.
    fn relay(&mut self, to: SocketAddr, cut: &Gate) -> SocketAddr {
        let cut = cut.clone();
        let handle = self.world.serve_async(|server| server, move |conn| relay(conn, to, cut.clone()));
        handle.local_addr()
    }

    /// A client that performs `script`.
    pub(crate) fn connect(
        &mut self,
        address: SocketAddr,
        script: impl Into<Script>,
        options: &Options,
    ) -> Telling {
        let telling = Telling::default();
        let (client, script, seen) = (options.client(address), script.into(), telling.clone());
        match self.style_of(Role::Client, &script) {
            Style::Event => self.world.connect_events(&client, Performing::new(script, seen)),
            Style::Queued => self.world.connect_queued(&client, Performing::new(script, seen)),
            Style::Blocking => in_blocking::connect(client, script, seen),
            Style::Async => self.world.start(move || in_async::connect(client, script, seen)),
        }
        telling
    }

    /// A client with default options.
    pub(crate) fn visitor(&mut self, serving: &Serving, script: impl Into<Script>) -> Telling {
        self.connect(serving.address, script, &Options::default())
    }

    /// Connects to `address` in vain; returns why.
    pub(crate) fn fail_to_connect(&mut self, address: SocketAddr, options: &Options) -> Failure {
        let client = self.connect(address, [], options);
        self.until("the connect fails", || client.note().failure.is_some());
        client.told().failure.expect("it has failed")
    }

    pub(crate) fn until(&mut self, what: &str, done: impl FnMut() -> bool) {
        self.world.wait_until(what, done);
    }

    /// Has so much time pass. That alone sets nobody a deadline: whoever is late has only had more of it.
    pub(crate) fn pass(&mut self, units: f64) {
        self.world.pass(self.world.untimed(units));
    }

    pub(crate) fn time(&self, units: f64) -> Duration {
        self.world.time(units)
    }

    pub(crate) fn now(&self) -> Duration {
        self.world.now()
    }

    /// An address at which nobody answers, neither yes nor no.
    pub(crate) fn nobody(&mut self) -> Nobody {
        self.world.nobody()
    }

    /// Stops a server in order; tells what it did.
    pub(crate) fn stop(&mut self, serving: &Serving) -> Stats {
        match &serving.handle {
            Handle::Workers(handle) => self.world.stop(handle),
            Handle::Threads(handle) => {
                let stats = handle.drain(Duration::from_secs(10)).wait().expect("the server ends");
                assert_eq!(handle.connections(), 0, "a stopped server has no connections");
                let closed: u64 = stats.closes.iter().map(|(_, count)| count).sum();
                assert_eq!(closed, stats.accepted, "every connection has exactly one reason: {stats:?}");
                stats
            }
        }
    }
}

/// A server of a stage.
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    tellings: Tellings,
    handle: Handle,
}

enum Handle {
    Workers(ServerHandle),
    Threads(blocking::ServerHandle),
}

/// What is told of a server's connections, in the order in which their handlers began.
#[derive(Clone, Default)]
struct Tellings(Arc<Mutex<Vec<Telling>>>);

impl Tellings {
    fn begin(&self) -> Telling {
        let telling = Telling::default();
        self.all().push(telling.clone());
        telling
    }

    fn all(&self) -> MutexGuard<'_, Vec<Telling>> {
        self.0.lock().expect("nobody panics under this lock")
    }
}

impl Serving {
    /// A server with a thread for each connection.
    fn of_threads(script: Script, tellings: Tellings, options: &Options) -> Serving {
        let begun = tellings.clone();
        let listener = options.listener().expect("it can listen");
        let serving = listener.serve(move |mut conn| in_blocking::serve(&mut conn, &script, &begun.begin()));
        let handle = serving.expect("the server starts");
        let Address::Ip(address) = handle.local_addr() else { panic!("it is told where it listens") };
        Serving { address, tellings, handle: Handle::Threads(handle) }
    }

    /// How many handlers have begun.
    pub(crate) fn len(&self) -> usize {
        self.tellings.all().len()
    }

    /// What is told of a connection.
    pub(crate) fn telling(&self, at: usize) -> Telling {
        self.tellings.all()[at].clone()
    }

    /// What is told of all of them so far.
    pub(crate) fn told(&self) -> Vec<Told> {
        self.tellings.all().iter().map(Telling::told).collect()
    }

    pub(crate) fn drain(&self, within: Duration) {
        match &self.handle {
            Handle::Workers(handle) => drop(handle.drain(within)),
            Handle::Threads(handle) => drop(handle.drain(within)),
        }
    }

    /// Whether its handlers have been told that it drains, or could tell if they looked: nobody calls one that blocks.
    pub(crate) fn is_draining(&self) -> bool {
        match &self.handle {
            Handle::Workers(_) => self.told().iter().all(|told| told.is_draining),
            Handle::Threads(handle) => handle.phase() == Phase::Draining,
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        match &self.handle {
            Handle::Workers(handle) => handle.is_stopped(),
            Handle::Threads(handle) => handle.is_stopped(),
        }
    }

    pub(crate) fn connections(&self) -> usize {
        match &self.handle {
            Handle::Workers(handle) => handle.connections(),
            Handle::Threads(handle) => handle.connections(),
        }
    }
}

async fn relay(mut near: Connection, to: SocketAddr, cut: Gate) -> Result<()> {
    let mut far = Client::connect(to).await?;
    loop {
        let received = async {
            let there = async { near.recv_chunk().await.map(|chunk| (true, chunk)) };
            let back = async { far.recv_chunk().await.map(|chunk| (false, chunk)) };
            there.or(back).await
        };
        let cut = async {
            until("it is cut", || cut.is_open()).await;
            Ok((true, None))
        };
        match received.or(cut).await? {
            (true, Some(chunk)) => far.send(&chunk).await?,
            (false, Some(chunk)) => near.send(&chunk).await?,
            (_, None) => return Ok(()),
        }
    }
}
