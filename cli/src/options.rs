//! The options of `wharf serve` that a file may hold as well, and what they are to the library.
//!
//! The headings of the help are also the rule of what can change while a server runs: see [`LIVE`]; and what is of TLS if it has TLS.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, value_parser};
use wharf::blocking::Listener;
use wharf::{
    AcceptRate, Access, Backend, Deadlines, Handover, Limits, Listen, Network, ProxyProtocol, Server,
    SocketOptions,
};

use crate::args::{Service, With};
use crate::exit::Failure;
use crate::services;
use crate::tls::Tls;
use crate::values::{self, MinRate, OverLimit, Size, Switch, Timeout, WhenFull};

/// How long a worker may go without a turn before it is reported, unless it was told otherwise.
const WATCHDOG: Duration = Duration::from_secs(1);

/// The threads that a server in blocking style may have, unless it is to have more.
const BLOCKING_THREADS: usize = 256;

/// The headings of the options that can change while a server runs.
pub(crate) const LIVE: [&str; 3] = ["Admission", "Deadlines", "Queues"];

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten, next_help_heading = "Listening")]
    listening: Listening,
    #[command(flatten, next_help_heading = "TLS")]
    pub(crate) tls: Tls,
    #[command(flatten, next_help_heading = "Admission")]
    pub(crate) admission: Admission,
    #[command(flatten, next_help_heading = "Deadlines")]
    pub(crate) times: Times,
    #[command(flatten, next_help_heading = "Queues")]
    queues: Queues,
    #[command(flatten, next_help_heading = "Sockets")]
    sockets: Sockets,
    #[command(flatten, next_help_heading = "Running")]
    pub(crate) running: Running,
}

#[derive(Debug, Args)]
pub(crate) struct Listening {
    /// Where: IP:PORT, [IPv6]:PORT, NAME:PORT or unix:/PATH; port 0 takes a free one. Or what the service manager passed:
    /// systemd, systemd:NAME or fd:N. Several times for several listeners.
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// Trust proxies in this network, such as 10.1.0.0/16, to tell whom they speak for (PROXY protocol, version 1 or 2).
    /// Whoever comes from elsewhere, or without its header, is reset. Several times for several networks.
    #[arg(long, value_name = "NET", value_parser = values::network)]
    proxy_protocol: Vec<Network>,
}

#[derive(Debug, Args)]
pub(crate) struct Admission {
    /// How many connections at once [default: as many as descriptors allow; 256 in blocking style].
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) max_connections: Option<u32>,
    /// How many connections at once of one address [default: no limit].
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) max_per_address: Option<u32>,
    /// How many leading bits of an IPv6 address count as one address.
    #[arg(long, value_name = "BITS", default_value_t = 64, value_parser = value_parser!(u8).range(1..=128))]
    ipv6_prefix: u8,
    /// How many connections may come in each second, and how many at once after a pause [default: no limit; the burst is
    /// as large as the rate].
    #[arg(long, value_name = "N[/BURST]", value_parser = values::accept_rate)]
    pub(crate) accept_rate: Option<AcceptRate>,
    /// What becomes of a connection that is one too many.
    #[arg(long, value_name = "POLICY", default_value = "queue")]
    over_limit: OverLimit,
    /// Let in whoever comes from this network, and nobody else [default: all]. Several times for several networks.
    #[arg(long, value_name = "NET", value_parser = values::network)]
    allow: Vec<Network>,
    /// Keep out whoever comes from this network, also if it lies in one that is allowed. Several times for several networks.
    #[arg(long, value_name = "NET", value_parser = values::network)]
    deny: Vec<Network>,
}

#[derive(Debug, Args)]
pub(crate) struct Times {
    /// How long a client may take to send its first byte, or `none` [default: 30s; none with `--idle-timeout none`]. Of no
    /// concern to chargen.
    #[arg(long, value_name = "D")]
    first_byte_timeout: Option<Timeout>,
    /// How long a client may be silent, or `none`. Of no concern to chargen.
    #[arg(long, value_name = "D", default_value = "60s")]
    idle_timeout: Timeout,
    /// At which rate a message has to come, in bytes per second, once it has begun and the grace is over; or `none`. The
    /// services here take bytes as they come and wait for no whole message, so none of them is concerned.
    #[arg(long, value_name = "BYTES[/GRACE]", default_value = "240/10s")]
    min_rate: MinRate,
    /// How long bytes may wait for a client that takes none of them, or `none`.
    #[arg(long, value_name = "D", default_value = "30s")]
    write_timeout: Timeout,
    /// How long a connection may last, whatever it is doing, or `none`.
    #[arg(long, value_name = "D", default_value = "none")]
    max_age: Timeout,
    /// How long connections have to end after a signal.
    #[arg(long, value_name = "D", default_value = "15s", value_parser = values::duration_or_zero)]
    pub(crate) drain: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Queues {
    /// How many bytes may wait to be sent to one client at the very most, at least 8KiB. A queue counts as full from a
    /// sixteenth of it on, or from 64KiB if that is more, until three quarters of that are gone.
    #[arg(long, value_name = "BYTES", default_value = "1MiB", value_parser = values::size_from::<WRITE_QUEUE_MIN_KIB>)]
    write_queue: Size,
    /// What becomes of a message for a queue that is full.
    #[arg(long, value_name = "POLICY", default_value = "wait")]
    when_full: WhenFull,
    /// How many bytes the buffers of all connections together may hold, at least 1MiB [default: no limit but those of each].
    /// When they do, every connection has to do with one message at a time in each direction, and nobody else is let in.
    #[arg(long, value_name = "BYTES", value_parser = values::size_from::<1024>)]
    max_memory: Option<Size>,
}

#[derive(Debug, Args)]
pub(crate) struct Sockets {
    /// How many connections the kernel queues for each listener; it allows at most net.core.somaxconn.
    #[arg(long, value_name = "N", default_value = "1024", value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    backlog: u32,
    /// Whether small segments go out at once (TCP_NODELAY).
    #[arg(long, value_name = "SWITCH", default_value = "on")]
    nodelay: Switch,
    /// After how much silence the kernel probes a client, in whole seconds, or `none`.
    #[arg(long, value_name = "D", default_value = "60s")]
    keepalive: Timeout,
    /// How long sent bytes may stay unacknowledged before the kernel gives up, or `none`: a client that takes nothing ends
    /// with the shorter one of this and --write-timeout. Linux only.
    #[arg(long, value_name = "D", default_value = "30s")]
    user_timeout: Timeout,
    /// How many connections of a listener may wait whose first packet brought data (TCP Fast Open), where the system has it
    /// switched on for servers [default: none, it is off]. Linux only.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    fast_open: Option<u32>,
    /// Code point of the packets sent, 0 to 63 (DSCP) [default: the system's].
    #[arg(long, value_name = "N", value_parser = value_parser!(u8).range(0..=63))]
    dscp: Option<u8>,
    /// Network device that packets come and go by, such as eth0 [default: any]. Linux only.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Mark of the packets sent, for routing and packet filters [default: none]. Linux only, and for root.
    #[arg(long, value_name = "N", value_parser = values::mark)]
    mark: Option<u32>,
    /// Share the port with other processes that say so, too. In a file: `reuse-port = on`.
    #[arg(long, value_name = "SWITCH", default_value = "off", default_missing_value = "on")]
    #[arg(num_args = 0..=1, require_equals = true)]
    reuse_port: Switch,
}

#[derive(Debug, Args)]
pub(crate) struct Running {
    #[command(flatten)]
    pub(crate) with: With,
    /// Be replaced without a client noticing: a server that is started with the same PATH takes the listeners of the one that
    /// has it, which then drains. Linux only.
    #[arg(long, value_name = "PATH")]
    handover: Option<PathBuf>,
    /// Report a worker that does not turn for so long, at least 10ms, or `none` [default: 1s].
    #[arg(long, value_name = "D")]
    watchdog: Option<Timeout>,
}

impl Options {
    /// A server that runs as asked for; without a listener there is none.
    pub(crate) fn server(&self, service: Service) -> Option<Server> {
        let (first, more) = self.listening.listen.split_first()?;
        let server = more.iter().fold(Server::bind(first), |server, address| server.listen(address.as_str()));
        let server = self.running.with.apply(server);
        let server = match &self.listening.proxy_protocol[..] {
            [] => server,
            networks => server.proxy_protocol(ProxyProtocol::from(networks.iter().copied())),
        };
        let server = server.access(self.access()).limits(self.limits()).deadlines(self.deadlines(service));
        let server = server.sockets(self.sockets.options()).notify_systemd();
        let server = server.watchdog(self.running.watchdog.map_or(Some(WATCHDOG), |within| within.0));
        Some(match &self.running.handover {
            Some(path) => server.handover(Handover::at(path).drain(self.times.drain)),
            None => server,
        })
    }

    /// A listener in blocking style that is as asked for; without one there is none.
    pub(crate) fn blocking_listener(&self, service: Service) -> Result<Option<Listener>, Failure> {
        let Some((first, more)) = self.listening.listen.split_first() else { return Ok(None) };
        let Running { with, handover, watchdog } = &self.running;
        for (is_given, option) in [
            (!more.is_empty(), "a second --listen"),
            (with.backend != Backend::Auto, "--backend"),
            (with.workers.is_some(), "--workers"),
            (!with.spin.is_zero(), "--spin"),
            (handover.is_some(), "--handover"),
            (watchdog.is_some(), "--watchdog"),
        ] {
            if is_given {
                return Err(Failure::Senseless(format!(
                    "--style blocking has no workers, and does without {option}"
                )));
            }
        }
        let listen = Listen::at(first).sockets(self.sockets.options());
        let listen = match &self.listening.proxy_protocol[..] {
            [] => listen,
            networks => listen.proxy_protocol(ProxyProtocol::from(networks.iter().copied())),
        };
        let listener = Listener::bind(listen)?;
        let listener =
            listener.limits(self.limits())?.deadlines(self.deadlines(service))?.access(self.access());
        // Fewer connections than it may have threads are a limit, which can change while it runs.
        let threads = match self.admission.max_connections.map(|connections| connections as usize) {
            Some(connections) if connections > BLOCKING_THREADS => connections,
            _ => BLOCKING_THREADS,
        };
        Ok(Some(listener.threads(threads)?))
    }

    pub(crate) fn access(&self) -> Access {
        let Admission { allow, deny, .. } = &self.admission;
        Access::default().allow(allow.iter().copied()).deny(deny.iter().copied())
    }

    pub(crate) fn limits(&self) -> Limits {
        let Admission { max_connections, max_per_address, ipv6_prefix, accept_rate, over_limit, .. } =
            &self.admission;
        let high = high_mark(self.queues.write_queue);
        let limits = Limits::default()
            .per_address(max_per_address.map(|connections| connections as usize))
            .ipv6_prefix(*ipv6_prefix)
            .accept_rate(*accept_rate)
            .over_limit((*over_limit).into())
            .memory(self.queues.max_memory.map(|size| size.0))
            .send_max(self.queues.write_queue.0)
            .send_marks(high / 4, high)
            .when_full(self.queues.when_full.into());
        max_connections.map_or(limits.clone(), |connections| limits.connections(connections as usize))
    }

    /// How much a service may send at a time, so that the queue has room for several.
    pub(crate) fn piece(&self) -> usize {
        self.queues.write_queue.0 / 4
    }

    pub(crate) fn deadlines(&self, service: Service) -> Deadlines {
        let Times { first_byte_timeout, idle_timeout, min_rate, write_timeout, max_age, .. } = &self.times;
        let deadlines = Deadlines::default().receive_rate(min_rate.0).write(write_timeout.0).age(max_age.0);
        // Clients of chargen have nothing to say.
        let is_silent = matches!(service, Service::Chargen);
        let idle = idle_timeout.0.filter(|_| !is_silent);
        match first_byte_timeout {
            Some(first_byte) if !is_silent => deadlines.first_byte(first_byte.0).idle(idle),
            _ if idle.is_none() => deadlines.first_byte(None).idle(None),
            _ => deadlines.idle(idle),
        }
    }
}

/// Room for the largest message of all services.
const WRITE_QUEUE_MIN_KIB: usize = 8;
const _: () = assert!(services::MESSAGE_MAX <= WRITE_QUEUE_MIN_KIB << 10);

/// Where senders begin to wait: that of the library for its own bound, and in proportion for larger ones.
fn high_mark(write_queue: Size) -> usize {
    let bound = write_queue.0;
    (bound / 16).max(bound.min(64 << 10))
}

impl Sockets {
    fn options(&self) -> SocketOptions {
        let options = SocketOptions::default()
            .backlog(self.backlog)
            .nodelay(self.nodelay.is_on())
            .keepalive(self.keepalive.0)
            .user_timeout(self.user_timeout.0)
            .dscp(self.dscp)
            .fast_open(self.fast_open)
            .mark(self.mark)
            .reuse_port(self.reuse_port.is_on());
        self.device.as_ref().map_or(options.clone(), |name| options.device(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_follow_the_bound_of_the_queue() {
        for (bound, high) in
            [(8 << 10, 8 << 10), (64 << 10, 64 << 10), (1 << 20, 64 << 10), (1 << 30, 1 << 26)]
        {
            assert_eq!(high_mark(Size(bound)), high, "{bound}");
        }
    }
}
