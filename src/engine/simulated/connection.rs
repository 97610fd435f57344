//! What a simulated connection does, as the two sockets at its ends see it: handshake, bytes, FIN and RST.
//!
//! Each direction is a pipe. A sender may be ahead of the application behind the peer by one window, so what a peer
//! does not read stays bounded; the rest waits in the sender's engine. Data and FIN arrive in order. RST overtakes them
//! and destroys what is on its way; what lies unread in the receive buffer can still be read, as on Linux.

use std::collections::VecDeque;
use std::fmt;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::io::Errno;

use super::network::{Event, Ready, State};
use crate::engine::Token;
use crate::engine::buffer::Outgoing;
use crate::time::Time;

/// Names one end of a connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct EndId {
    connection: u64,
    side: usize,
}

impl EndId {
    pub(super) fn client(connection: u64) -> EndId {
        EndId { connection, side: CLIENT }
    }

    pub(super) fn server(connection: u64) -> EndId {
        EndId { connection, side: SERVER }
    }

    fn peer(self) -> EndId {
        EndId { connection: self.connection, side: 1 - self.side }
    }
}

const CLIENT: usize = 0;
const SERVER: usize = 1;

/// How often Linux repeats a SYN (net.ipv4.tcp_syn_retries).
const SYN_RETRIES: u32 = 6;

/// A connection from the moment somebody connects until both ends are gone.
pub(super) struct Connection {
    ends: [End; 2],
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// Client: the SYN is out. Server: it has not arrived.
    Opening,
    Open,
    /// The application has closed it; what it sent before still travels.
    Gone,
}

/// One end of a connection: a socket, as long as it is not gone.
pub(super) struct End {
    address: SocketAddr,
    stage: Stage,
    /// The engine and the slot to tell about news; an end in a listener's queue or in a mailbox has none.
    holder: Option<(usize, Token)>,
    /// Received and not yet read.
    inbox: VecDeque<u8>,
    fin_received: bool,
    fin_sent: bool,
    /// This end answered with RST: whatever follows needs no other.
    reset_sent: bool,
    /// Sent, and not known to be read by the application behind the peer.
    unread: usize,
    /// Sent, and not yet with the peer's host; FIN counts as one.
    undelivered: usize,
    /// When the last thing sent in order arrives.
    last_arrival: Time,
    broken: Option<Errno>,
    /// The cause of the break was told: it is told once.
    break_told: bool,
}

impl End {
    fn new(address: SocketAddr) -> End {
        End {
            address,
            stage: Stage::Opening,
            holder: None,
            inbox: VecDeque::new(),
            fin_received: false,
            fin_sent: false,
            reset_sent: false,
            unread: 0,
            undelivered: 0,
            last_arrival: Time::ZERO,
            broken: None,
            break_told: false,
        }
    }

    /// Whether the connect of this end has an outcome.
    pub(super) fn is_settled(&self) -> bool {
        self.stage != Stage::Opening || self.broken.is_some()
    }

    pub(super) fn broken(&self) -> Option<Errno> {
        self.broken
    }

    pub(super) fn has_unread(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// Acknowledgements take no time here.
    pub(super) fn undelivered(&self) -> usize {
        self.undelivered
    }

    pub(super) fn fin_received(&self) -> bool {
        self.fin_received
    }

    pub(super) fn is_break_told(&self) -> bool {
        self.break_told
    }

    /// Why a send fails, if it does: the cause of the break once, then EPIPE (measured on Linux 6).
    fn send_error(&mut self) -> Option<Errno> {
        let cause = self.broken.or(self.fin_sent.then_some(Errno::PIPE))?;
        Some(if std::mem::replace(&mut self.break_told, true) { Errno::PIPE } else { cause })
    }
}

impl State {
    pub(super) fn end(&self, id: EndId) -> Option<&End> {
        Some(&self.connections.get(&id.connection)?.ends[id.side])
    }

    fn end_mut(&mut self, id: EndId) -> Option<&mut End> {
        Some(&mut self.connections.get_mut(&id.connection)?.ends[id.side])
    }

    /// The end, if it is open and not broken.
    fn live(&mut self, id: EndId) -> Option<&mut End> {
        self.end_mut(id).filter(|end| end.stage == Stage::Open && end.broken.is_none())
    }

    /// The addresses of an end and of its peer.
    pub(super) fn addresses(&self, id: EndId) -> Option<(SocketAddr, SocketAddr)> {
        Some((self.end(id)?.address, self.end(id.peer())?.address))
    }

    /// Says whom to tell about an end.
    pub(super) fn hold(&mut self, id: EndId, engine: usize, token: Token) {
        if let Some(end) = self.end_mut(id) {
            debug_assert!(end.holder.is_none(), "an end has one owner");
            end.holder = Some((engine, token));
        }
    }

    fn wake(&mut self, id: EndId) {
        if let Some((engine, token)) = self.end(id).and_then(|end| end.holder) {
            self.push_now(engine, Ready::Slot(token));
        }
    }

    /// Whether there is a connection of these two addresses already.
    pub(super) fn is_connected(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        self.connections.values().any(|Connection { ends: [a, b] }| a.address == local && b.address == peer)
    }

    // Commands of the engines.

    /// Begins to connect from `host`, which has one address: if one is wanted, it has to be that, or any.
    pub(super) fn connect(
        &mut self,
        host: IpAddr,
        peer: SocketAddr,
        source: Option<SocketAddr>,
    ) -> Result<EndId, Errno> {
        if host.is_ipv4() != peer.is_ipv4() {
            return Err(Errno::NETUNREACH);
        }
        if source.is_some_and(|source| !source.ip().is_unspecified() && source.ip() != host) {
            return Err(Errno::ADDRNOTAVAIL);
        }
        self.claim_descriptor(host)?;
        let wanted = source.map_or(0, |source| source.port());
        let port = match wanted {
            0 => self.claim_free_port(host).ok_or(Errno::ADDRNOTAVAIL),
            port => self.claim_source_port(SocketAddr::new(host, port), peer).map(|()| port),
        };
        let port = port.inspect_err(|_| self.release_descriptor(host))?;
        let connection = self.fresh_id();
        let ends = [End::new(SocketAddr::new(host, port)), End::new(peer)];
        self.connections.insert(connection, Connection { ends });
        let at = self.arrival();
        self.schedule(at, Event::Syn { connection, attempt: 0 });
        Ok(EndId::client(connection))
    }

    /// Sends what the window allows, or a part of it; `None` if it allows nothing at the moment.
    pub(super) fn send(&mut self, from: EndId, outgoing: &Outgoing) -> Option<Result<usize, Errno>> {
        self.send_with(from, outgoing.len(), |n| {
            let mut bytes = VecDeque::with_capacity(n);
            outgoing.copy_to(&mut bytes, n);
            bytes.into()
        })
    }

    /// The same for `len` bytes, of which `copy` copies the first so many.
    pub(super) fn send_with(
        &mut self,
        from: EndId,
        len: usize,
        copy: impl FnOnce(usize) -> Vec<u8>,
    ) -> Option<Result<usize, Errno>> {
        let room = self.room(from);
        let end = self.end_mut(from).expect("a connection lives as long as a slot holds it");
        if let Some(errno) = end.send_error() {
            return Some(Err(errno));
        }
        let fits = room.min(len);
        if fits == 0 {
            return (len == 0).then_some(Ok(0));
        }
        let cut = self.chance(self.faults.partial_sends);
        let n = if cut { self.rng.usize(1..=fits) } else { fits };
        self.transmit(from, copy(n));
        Some(Ok(n))
    }

    /// Whether `send` would not return `None`.
    pub(super) fn can_send(&self, from: EndId) -> bool {
        let failed = self.end(from).is_some_and(|end| end.broken.is_some() || end.fin_sent);
        failed || self.room(from) > 0
    }

    fn room(&self, from: EndId) -> usize {
        let unread = self.end(from).map_or(0, |end| end.unread);
        self.faults.window.saturating_sub(unread)
    }

    /// Reads a prefix of what is there into `buffer`, and opens the peer's window by so much.
    pub(super) fn read(&mut self, id: EndId, buffer: &mut [u8]) -> usize {
        let there = self.end(id).map_or(0, |end| end.inbox.len()).min(buffer.len());
        let cut = there > 0 && self.chance(self.faults.splits);
        let n = if cut { self.rng.usize(1..=there) } else { there };
        let Some(end) = self.end_mut(id) else { return 0 };
        end.inbox.read_exact(&mut buffer[..n]).expect("no more than is there");
        self.log_end(id, format_args!("read {n}"));
        let at = self.arrival();
        self.schedule(at, Event::Credit { to: id.peer(), bytes: n });
        n
    }

    /// Sends FIN behind the data.
    pub(super) fn shutdown(&mut self, id: EndId) -> Result<(), Errno> {
        let end = self.live(id).ok_or(Errno::NOTCONN)?;
        if !std::mem::replace(&mut end.fin_sent, true) {
            end.undelivered += 1;
            let at = self.arrival_in_order(id);
            self.schedule(at, Event::Fin { to: id.peer() });
        }
        Ok(())
    }

    /// Takes the socket away: with RST if asked for or if data was left unread (RFC 2525, 2.17), else with FIN.
    pub(super) fn close(&mut self, id: EndId, reset: bool) {
        let Some(end) = self.end(id) else { return };
        let reset = reset || end.has_unread() || end.stage == Stage::Opening;
        if end.broken.is_none() && reset {
            self.send_reset(id);
        } else if end.broken.is_none() {
            self.shutdown(id).expect("an open end that is not broken can be shut down");
        }
        self.log_end(id, format_args!("close"));
        if let Some(end) = self.end_mut(id) {
            end.stage = Stage::Gone;
            end.holder = None;
            end.inbox = VecDeque::new();
        }
        self.forget_if_gone(id.connection);
    }

    /// Frees a connection that nobody can see any more, with what is still on its way.
    fn forget_if_gone(&mut self, connection: u64) {
        let Some(Connection { ends: [client, server] }) = self.connections.get(&connection) else {
            return;
        };
        // A server side that is still opening belongs to nobody.
        if client.stage == Stage::Gone && server.stage != Stage::Open {
            let local = client.address;
            self.connections.remove(&connection);
            self.release_port(local);
        }
    }

    // On the wire.

    /// Sends bytes as one segment or as several.
    fn transmit(&mut self, from: EndId, mut bytes: Vec<u8>) {
        if let Some(end) = self.end_mut(from) {
            end.unread += bytes.len();
            end.undelivered += bytes.len();
        }
        while !bytes.is_empty() {
            let cut = self.chance(self.faults.splits);
            let n = if cut { self.rng.usize(1..=bytes.len()) } else { bytes.len() };
            let rest = bytes.split_off(n);
            let at = self.arrival_in_order(from);
            self.schedule(at, Event::Data { to: from.peer(), bytes });
            bytes = rest;
        }
    }

    fn send_reset(&mut self, from: EndId) {
        if let Some(end) = self.end_mut(from) {
            end.reset_sent = true;
        }
        let at = self.arrival();
        self.schedule(at, Event::Reset { to: from.peer() });
    }

    /// When something arrives that leaves `from` now and overtakes nothing.
    fn arrival_in_order(&mut self, from: EndId) -> Time {
        let at = self.arrival();
        self.end_mut(from).map_or(at, |end| {
            end.last_arrival = end.last_arrival.max(at);
            end.last_arrival
        })
    }

    pub(super) fn deliver(&mut self, event: Event) {
        match event {
            Event::Syn { connection, attempt } => self.deliver_syn(connection, attempt),
            Event::SynAck { connection } => self.deliver_syn_ack(connection),
            Event::Data { to, bytes } => self.deliver_data(to, &bytes),
            Event::Fin { to } => self.deliver_fin(to),
            Event::Reset { to } => self.deliver_reset(to),
            Event::Credit { to, bytes } => self.deliver_credit(to, bytes),
            Event::Ready { engine, ready } => self.push_now(engine, ready),
        }
    }

    fn deliver_syn(&mut self, connection: u64, attempt: u32) {
        let to = EndId::server(connection);
        let Some((address, _)) = self.addresses(to) else {
            return;
        };
        self.log_packet(to, format_args!("syn"));
        // Whether a connect meets a fault is decided once, by its first SYN.
        let first = attempt == 0;
        let swallowed = first && self.chance(self.faults.blackholes);
        if swallowed || self.blackholes.contains(&address.ip()) {
            return;
        }
        let refused = first && self.chance(self.faults.refusals);
        match self.listener_at(address).filter(|_| !refused) {
            None => self.send_reset(to),
            Some(listener) if self.is_full(listener) => self.repeat_syn(connection, attempt),
            Some(listener) => {
                self.enqueue(listener, connection);
                if let Some(end) = self.end_mut(to) {
                    end.stage = Stage::Open;
                }
                let at = self.arrival_in_order(to);
                self.schedule(at, Event::SynAck { connection });
            }
        }
    }

    /// The listener dropped a SYN; the client waits 1 s, then twice as long each time, and gives up at last (tcp(7)).
    fn repeat_syn(&mut self, connection: u64, attempt: u32) {
        if attempt == SYN_RETRIES {
            self.break_off(EndId::client(connection), Errno::TIMEDOUT);
            return;
        }
        let at = self.now.after(Duration::from_secs(1 << attempt));
        self.schedule(at, Event::Syn { connection, attempt: attempt + 1 });
    }

    fn deliver_syn_ack(&mut self, connection: u64) {
        let to = EndId::client(connection);
        let Some(end) = self.end_mut(to) else { return };
        if end.stage == Stage::Opening && end.broken.is_none() {
            end.stage = Stage::Open;
            self.log_packet(to, format_args!("syn-ack"));
            self.wake(to);
        }
    }

    fn deliver_data(&mut self, to: EndId, bytes: &[u8]) {
        let Some(end) = self.end(to) else { return };
        if end.stage == Stage::Gone {
            self.answer_late_data(to);
            return;
        }
        if self.live(to).is_none() {
            return;
        }
        if self.chance(self.faults.resets) {
            self.log_packet(to, format_args!("lost {}", bytes.len()));
            self.deliver_reset(to);
            self.deliver_reset(to.peer());
            return;
        }
        self.log_packet(to, format_args!("data {}", bytes.len()));
        if let Some(end) = self.live(to) {
            end.inbox.extend(bytes);
        }
        self.acknowledge(to.peer(), bytes.len());
        self.wake(to);
    }

    /// So many bytes of this end, or its FIN, have come to the peer's host.
    fn acknowledge(&mut self, id: EndId, bytes: usize) {
        if let Some(end) = self.end_mut(id) {
            debug_assert!(end.undelivered >= bytes, "more came than was sent");
            end.undelivered -= bytes;
        }
    }

    /// Nobody will read it, and the sender has to know.
    fn answer_late_data(&mut self, to: EndId) {
        if self.end(to).is_some_and(|end| !end.reset_sent && end.broken.is_none()) {
            self.send_reset(to);
        }
    }

    fn deliver_fin(&mut self, to: EndId) {
        if let Some(end) = self.live(to) {
            end.fin_received = true;
            self.log_packet(to, format_args!("fin"));
            self.acknowledge(to.peer(), 1);
            self.wake(to);
        }
    }

    fn deliver_reset(&mut self, to: EndId) {
        let Some(end) = self.end(to) else { return };
        // As Linux' tcp_reset() has it: by the state in which the RST finds the socket.
        let cause = match end.stage {
            Stage::Opening => Errno::CONNREFUSED,
            _ if end.fin_received => Errno::PIPE,
            _ => Errno::CONNRESET,
        };
        self.break_off(to, cause);
    }

    /// Ends the connection as this end sees it.
    fn break_off(&mut self, id: EndId, cause: Errno) {
        let end = self.end_mut(id).filter(|end| end.stage != Stage::Gone && end.broken.is_none());
        let Some(end) = end else { return };
        end.broken = Some(cause);
        self.log_end(id, format_args!("broken {cause:?}"));
        self.wake(id);
    }

    fn deliver_credit(&mut self, to: EndId, bytes: usize) {
        if let Some(end) = self.live(to) {
            debug_assert!(end.unread >= bytes, "more was read than sent");
            end.unread -= bytes;
            self.wake(to);
        }
    }

    // The trace.

    fn log_packet(&mut self, to: EndId, what: fmt::Arguments<'_>) {
        if let Some((to, from)) = self.addresses(to) {
            self.log(format_args!("{from}>{to} {what}"));
        }
    }

    fn log_end(&mut self, id: EndId, what: fmt::Arguments<'_>) {
        if let Some((address, _)) = self.addresses(id) {
            self.log(format_args!("{address} {what}"));
        }
    }
}
