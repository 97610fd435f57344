//! `wharf relay`: passes connections on to a target, both ways.

use rustix::process::{Resource, getrlimit};
use wharf::tls::Connector;
use wharf::{Client, Connection, Deadlines, Limits, Relay as Relaying, RelayEnd, Server};

use crate::args::Relay;
use crate::exit::{self, Failure, note};
use crate::serve::{addresses, announce, raise_descriptor_limit};

/// Descriptors for everything that is no connection.
const RESERVED: u64 = 128;

pub(crate) fn run(args: &Relay) -> Result<(), Failure> {
    let connector = args.tls.connector(&args.target)?;
    raise_descriptor_limit();
    // Each connection brings another one.
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(RESERVED) / 2;
    let connections = usize::try_from(most).unwrap_or(usize::MAX).clamp(1, args.max_connections as usize);
    let server = Server::bind(&args.listen)
        .backend(args.backend)
        .limits(Limits::default().connections(connections))
        .deadlines(deadlines());
    let (target, verbose) = (Target::new(args, connector)?, args.verbose);
    let server = server.start(move |conn| pass_on(conn, target.clone(), verbose))?;

    let (handle, drain, mut draining) = (server.clone(), args.drain, false);
    exit::on_signals(&exit::ENDING, move |_| {
        if std::mem::replace(&mut draining, true) {
            handle.stop();
        } else {
            handle.drain(drain);
        }
    })?;
    announce(addresses(&server)).map_err(Failure::of_output)?;
    server.wait()?;
    Ok(())
}

/// A peer that does not read for a while makes the other one wait, as in any pipe; silence is the relay's matter.
fn deadlines() -> Deadlines {
    Deadlines::default().write(None)
}

#[derive(Clone)]
struct Target {
    client: Client,
    relay: Relaying,
}

impl Target {
    fn new(args: &Relay, connector: Option<Connector>) -> wharf::Result<Target> {
        let client =
            Client::new(&args.target).connect_within(args.timeout).deadlines(deadlines().first_byte(None));
        let client = match connector {
            Some(connector) => client.tls(&connector),
            None => client,
        };
        let relay = Relaying::new().idle(args.idle).half_closed_idle(args.half_closed_idle);
        client.check()?;
        Ok(Target { client, relay })
    }
}

async fn pass_on(mut conn: Connection, target: Target, verbose: bool) -> wharf::Result<()> {
    let peer = conn.peer_addr();
    let other = match target.client.open().await {
        Ok(other) => other,
        Err(error) => {
            note(format_args!("{peer}: {error}"));
            // That nothing came is not to look like an answer.
            conn.reset().await;
            return Ok(());
        }
    };
    let relayed = target.relay.run(conn, other).await;
    if verbose || relayed.ended != RelayEnd::InOrder {
        note(format_args!("{peer}: {relayed}"));
    }
    Ok(())
}
