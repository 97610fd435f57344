//! The Wharf's side of a test: a server that tells what came of its connections, and a client.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use wharf::event::{self, Flow, Handler};
use wharf::tls::{Acceptor, Info, ServerTls};
use wharf::{Backend, CloseReason, Connection, Result, Server, ServerEvent, ServerHandle, Stats};

use super::program::LIMIT;
use crate::common::behaviours::Echo;
use crate::common::{Behaviour, Style, Watchdog, backends};

/// Runs a test on each engine of this machine.
pub(crate) fn on_each(test: impl Fn(Backend)) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    for backend in backends(&name) {
        let _watchdog = Watchdog::patient(&name, Duration::from_secs(120));
        test(backend);
    }
}

/// Runs a client to its end.
pub(crate) fn client<T: 'static>(backend: Backend, client: impl Future<Output = T> + 'static) -> T {
    wharf::run_on(backend, client).unwrap()
}

/// A server of Wharf's.
pub(crate) struct Site {
    handle: ServerHandle,
    agreed: Receiver<Option<Info>>,
    ended: Receiver<CloseReason>,
    refused: Receiver<(CloseReason, String)>,
}

/// Sends back what it receives, and tells what was agreed on.
struct Telling(Sender<Option<Info>>);

impl Handler for Telling {
    fn connected(&mut self, conn: &mut event::Connection<'_>) -> Flow {
        self.0.send(conn.tls()).unwrap();
        Flow::Continue
    }

    fn received(&mut self, conn: &mut event::Connection<'_>, bytes: &[u8]) -> Flow {
        Echo.received(conn, bytes)
    }
}

impl Site {
    /// One that echoes, in this style.
    pub(crate) fn echo_in(style: Style, backend: Backend, tls: ServerTls) -> Site {
        match style {
            Style::Async => Site::serve(backend, tls, |conn| Echo.run(conn)),
            Style::Event => Site::of(backend, Some(tls), |server, agreed| {
                server.start_events(move || Telling(agreed.clone()))
            }),
        }
    }

    /// One that echoes.
    pub(crate) fn echo(backend: Backend, tls: ServerTls) -> Site {
        Site::echo_in(Style::Async, backend, tls)
    }

    /// One that begins with TLS.
    pub(crate) fn serve<F, Fut>(backend: Backend, tls: ServerTls, handler: F) -> Site
    where
        F: Fn(Connection) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + 'static,
    {
        Site::on(backend, Some(tls), handler)
    }

    /// One that begins without TLS.
    pub(crate) fn plain<F, Fut>(backend: Backend, handler: F) -> Site
    where
        F: Fn(Connection) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + 'static,
    {
        Site::on(backend, None, handler)
    }

    fn on<F, Fut>(backend: Backend, tls: Option<ServerTls>, handler: F) -> Site
    where
        F: Fn(Connection) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<()>> + 'static,
    {
        Site::of(backend, tls, |server, agreed| {
            server.start(move |conn| {
                agreed.send(conn.tls()).unwrap();
                handler(conn)
            })
        })
    }

    fn of(
        backend: Backend,
        tls: Option<ServerTls>,
        start: impl FnOnce(Server, Sender<Option<Info>>) -> Result<ServerHandle>,
    ) -> Site {
        let (agreed, ended, refused) = (mpsc::channel(), mpsc::channel(), mpsc::channel());
        let mut server = Server::bind("127.0.0.1:0").workers(1).backend(backend).watch(move |event| {
            // The test may be over already.
            match event {
                ServerEvent::Closed { reason, .. } => drop(ended.0.send(*reason)),
                ServerEvent::HandshakeFailed { reason, detail, .. } => {
                    drop(refused.0.send((*reason, (*detail).to_owned())));
                }
                _ => {}
            }
        });
        if let Some(tls) = tls {
            server = server.tls(&Acceptor::new(tls).unwrap());
        }
        let handle = start(server, agreed.0).unwrap();
        Site { handle, agreed: agreed.1, ended: ended.1, refused: refused.1 }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.handle.local_addr()
    }

    pub(crate) fn port(&self) -> String {
        self.address().port().to_string()
    }

    /// What the next connection has agreed on.
    pub(crate) fn agreed(&self) -> Info {
        self.agreed.recv_timeout(LIMIT).expect("somebody connects").expect("by TLS")
    }

    /// Why the next connection to end has ended.
    pub(crate) fn ended(&self) -> CloseReason {
        self.ended.recv_timeout(LIMIT).expect("somebody ends")
    }

    /// Why the next handshake to fail has failed.
    pub(crate) fn refused(&self) -> CloseReason {
        self.refused.recv_timeout(LIMIT).expect("somebody is refused").0
    }

    /// Ends it in order, with nobody left.
    pub(crate) fn end(self) -> Stats {
        self.handle.drain(LIMIT).wait().unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.handle.stop();
    }
}
