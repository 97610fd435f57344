//! Wharf with TLS, one worker, on its defaults; the echoes are those of the plain peers.

use anyhow::Result;
use wharf::event::{Connection, Flow, Handler};
use wharf::tls::{Acceptor, Identity, ServerTls};
use wharf::{Backend, Server};

use super::{ANY_PORT, BUFFER_SIZE, Peer, announce, wharf_async, wharf_chunks, wharf_event};
use crate::pattern::Pattern;
use crate::tls::{Credentials, Service, TRANSFER};

pub const EVENT: Peer = Peer {
    name: "wharf_tls_event",
    about: "Wharf, TLS, event style, readiness, one worker, no buffer per connection",
    ..Peer::tls(|service, credentials| serve_events(server(Backend::Readiness, credentials)?, service))
};

pub const EVENT_URING: Peer = Peer {
    name: "wharf_tls_event_uring",
    about: "the same on io_uring",
    ..Peer::tls(|service, credentials| serve_events(server(Backend::Uring, credentials)?, service))
};

pub const CHUNKS: Peer = Peer {
    name: "wharf_tls_chunks",
    about: "Wharf, TLS, async style, readiness, one worker, recv_chunk: no buffer per connection",
    ..Peer::tls(|service, credentials| serve_chunks(server(Backend::Readiness, credentials)?, service))
};

pub const CHUNKS_URING: Peer = Peer {
    name: "wharf_tls_chunks_uring",
    about: "the same on io_uring",
    ..Peer::tls(|service, credentials| serve_chunks(server(Backend::Uring, credentials)?, service))
};

pub const ASYNC: Peer = Peer {
    name: "wharf_tls_async",
    about: "Wharf, TLS, async style, readiness, one worker, a task and a 16 KiB buffer per connection",
    ..Peer::tls(|service, credentials| serve_async(server(Backend::Readiness, credentials)?, service))
};

pub const ASYNC_URING: Peer = Peer {
    name: "wharf_tls_async_uring",
    about: "the same on io_uring",
    ..Peer::tls(|service, credentials| serve_async(server(Backend::Uring, credentials)?, service))
};

fn server(backend: Backend, credentials: &Credentials) -> Result<Server> {
    let identity = Identity::from_pem(&credentials.chain, &credentials.key)?;
    let acceptor = Acceptor::new(ServerTls::new(identity))?;
    Ok(Server::bind(ANY_PORT).workers(1).backend(backend).tls(&acceptor))
}

fn serve_events(server: Server, service: Service) -> Result<()> {
    match service {
        Service::Echo => wharf_event::run(server),
        Service::Sink => run_events(server, Sink::default),
        Service::Source => run_events(server, Source::default),
    }
}

fn run_events<H: Handler>(server: Server, handler: fn() -> H) -> Result<()> {
    server.run_events(handler, |server| {
        announce(server.local_addr()).expect("the harness reads the address");
    })?;
    Ok(())
}

#[derive(Default)]
struct Sink {
    received: usize,
}

impl Handler for Sink {
    fn received(&mut self, connection: &mut Connection<'_>, bytes: &[u8]) -> Flow {
        self.received += bytes.len();
        if self.received < TRANSFER {
            return Flow::Continue;
        }
        self.received -= TRANSFER;
        match connection.send(&bytes[bytes.len() - 1..]) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Reset, // the peer does not read its confirmations
        }
    }
}

/// What is sent, how much of the current transfer has been, and how much goes at a time.
struct Source {
    pattern: Pattern,
    position: usize,
    write: usize,
}

impl Default for Source {
    fn default() -> Source {
        Source {
            pattern: Pattern::new(),
            position: TRANSFER,
            write: 0,
        }
    }
}

impl Source {
    fn go_on(&mut self, connection: &mut Connection<'_>) -> Flow {
        while self.position < TRANSFER {
            let len = self.write.min(TRANSFER - self.position);
            let bytes = self.pattern.run(0, self.position as u64, len);
            if connection.send(bytes).is_err() {
                break; // `writable` is next
            }
            self.position += len;
        }
        Flow::Continue
    }
}

impl Handler for Source {
    fn received(&mut self, connection: &mut Connection<'_>, bytes: &[u8]) -> Flow {
        self.position = 0;
        self.write = usize::from(bytes[0]) * 1024;
        self.go_on(connection)
    }

    fn writable(&mut self, connection: &mut Connection<'_>) -> Flow {
        self.go_on(connection)
    }
}

fn serve_chunks(server: Server, service: Service) -> Result<()> {
    match service {
        Service::Echo => wharf_chunks::run(server),
        Service::Sink => run(server, sink_chunks),
        Service::Source => run(server, source),
    }
}

fn serve_async(server: Server, service: Service) -> Result<()> {
    match service {
        Service::Echo => wharf_async::run(server),
        Service::Sink => run(server, sink),
        Service::Source => run(server, source),
    }
}

fn run<F: Future<Output = wharf::Result<()>> + 'static>(
    server: Server,
    handler: fn(wharf::Connection) -> F,
) -> Result<()> {
    server.run(handler, |server| {
        announce(server.local_addr()).expect("the harness reads the address");
    })?;
    Ok(())
}

async fn sink_chunks(mut connection: wharf::Connection) -> wharf::Result<()> {
    let mut received = 0;
    while let Some(chunk) = connection.recv_chunk().await? {
        received += chunk.len();
        if received >= TRANSFER {
            received -= TRANSFER;
            connection.send(&chunk[chunk.len() - 1..]).await?;
        }
    }
    Ok(())
}

async fn sink(mut connection: wharf::Connection) -> wharf::Result<()> {
    let mut buffer = vec![0; BUFFER_SIZE];
    let mut received = 0;
    loop {
        let count = connection.recv(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        received += count;
        if received >= TRANSFER {
            received -= TRANSFER;
            connection.send(&buffer[count - 1..count]).await?;
        }
    }
}

async fn source(mut connection: wharf::Connection) -> wharf::Result<()> {
    let pattern = Pattern::new();
    let mut request = [0];
    while connection.recv(&mut request).await? > 0 {
        let write = usize::from(request[0]) * 1024;
        for position in (0..TRANSFER).step_by(write) {
            let len = write.min(TRANSFER - position);
            connection.send(pattern.run(0, position as u64, len)).await?;
        }
    }
    Ok(())
}
