//! The engine without an operating system: one worker's slots and listeners on a seeded network in virtual time. What
//! happens between two sockets is the business of the network behind it.
//!
//! ```text
//!   worker --> Simulated --> Network: hosts, listeners, connections, events by time
//!                  ^------ ready: "look at this slot, this listener" ------'
//! ```
//!
//! The network only says where to look. What there is to tell is found out within `next`, one completion at a time, so
//! whatever the worker does meanwhile (pause, close) takes effect at once. `wait` never sleeps: whoever drives the
//! simulation turns the workers until none has anything ready, and then moves the clock to the next event.

mod connection;
mod faults;
mod network;
#[cfg(test)]
mod tests;
mod trace;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use rustix::io::Errno;

use self::connection::{End, EndId};
pub use self::faults::Faults;
pub(crate) use self::network::{Endpoint, Listening, Network};
use self::network::{Ready, State};
use super::buffer::{Chunk, ChunkPool, Outgoing, PiecePool};
use super::{
    ACCEPT_BUDGET, Completion, HANDED_MAX, Listener, ListenerId, RECEIVE_BUDGET, Share, Socket, Submitted,
    Token, Waker,
};
use crate::address::Address;
use crate::time::Time;

/// The engine of one worker on one simulated host.
pub(crate) struct Simulated {
    network: Network,
    address: IpAddr,
    /// Its number on the network.
    id: usize,
    chunks: Rc<ChunkPool>,
    pieces: Rc<PiecePool>,
    slots: BTreeMap<u32, Slot>,
    listeners: BTreeMap<u32, Accepting>,
    turn: u64,
    /// What has used up its share of this turn.
    deferred: Vec<Ready>,
    /// Slots that were handed bytes since the last `wait`.
    handed: Vec<Token>,
    /// Slots of which bytes have bounced.
    bounced: VecDeque<Token>,
}

impl Simulated {
    pub(super) fn new(network: Network, address: IpAddr, id: usize) -> Simulated {
        Simulated {
            network,
            address,
            id,
            chunks: ChunkPool::new(),
            pieces: PiecePool::new(),
            slots: BTreeMap::new(),
            listeners: BTreeMap::new(),
            turn: 0,
            deferred: Vec::new(),
            handed: Vec::new(),
            bounced: VecDeque::new(),
        }
    }

    pub(crate) fn now(&self) -> Time {
        self.network.now()
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// Where the receive buffers come from.
    pub(crate) fn chunks(&self) -> &ChunkPool {
        &self.chunks
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker::Simulated
    }

    /// Where the buffers of sent bytes go.
    pub(crate) fn use_pieces(&mut self, pieces: Rc<PiecePool>) {
        self.pieces = pieces;
    }

    pub(crate) fn listen(&mut self, id: ListenerId, listener: Listener) -> io::Result<()> {
        let Listener::Simulated(listening) = listener else {
            return Err(Errno::INVAL.into());
        };
        debug_assert!(!self.listeners.contains_key(&id.0), "a listener's number is in use");
        let listener = listening.adopt();
        self.listeners.insert(id.0, Accepting { listener, paused: false, share: Share::default() });
        self.network.state().hold_listener(listener, self.id, id.0);
        Ok(())
    }

    pub(crate) fn pause_accept(&mut self, id: ListenerId) {
        if let Some(accepting) = self.listeners.get_mut(&id.0) {
            accepting.paused = true;
        }
    }

    pub(crate) fn resume_accept(&mut self, id: ListenerId) {
        if let Some(accepting) = self.listeners.get_mut(&id.0) {
            accepting.paused = false;
            self.network.state().push_now(self.id, Ready::Listener(id.0));
        }
    }

    pub(crate) fn unlisten(&mut self, id: ListenerId) -> Option<Listener> {
        let accepting = self.listeners.remove(&id.0)?;
        self.network.state().release_listener(accepting.listener).map(Listener::Simulated)
    }

    pub(crate) fn accept_now(&mut self, id: ListenerId) -> io::Result<Option<(Socket, Address)>> {
        let Some(accepting) = self.listeners.get(&id.0) else { return Ok(None) };
        let mut state = self.network.state();
        if !state.has_queued(accepting.listener) {
            return Ok(None);
        }
        let (endpoint, peer) = state.accept(accepting.listener, self.address)?;
        Ok(Some((Socket::Simulated(Box::new(endpoint)), peer.into())))
    }

    /// Takes an accepted socket. Its descriptor is counted since the accept, so this cannot run out of them.
    pub(crate) fn open(&mut self, token: Token, socket: Socket) -> io::Result<()> {
        let Socket::Simulated(endpoint) = socket else {
            return Err(Errno::INVAL.into());
        };
        debug_assert_eq!(endpoint.host, self.address, "a socket cannot move to another host");
        let end = endpoint.adopt();
        self.occupy(Slot::new(token, end));
        Ok(())
    }

    pub(crate) fn connect(
        &mut self,
        token: Token,
        peer: &Address,
        source: Option<SocketAddr>,
    ) -> io::Result<()> {
        let Some(peer) = peer.socket() else {
            let problem = "a simulated network has no Unix sockets";
            return Err(io::Error::new(io::ErrorKind::Unsupported, problem));
        };
        let end = self.network.state().connect(self.address, peer, source)?;
        self.occupy(Slot { connecting: true, ..Slot::new(token, end) });
        Ok(())
    }

    fn occupy(&mut self, slot: Slot) {
        let (token, end) = (slot.token, slot.end);
        let before = self.slots.insert(token.index, slot);
        debug_assert!(before.is_none(), "a slot is free only after Closed");
        let mut state = self.network.state();
        state.hold(end, self.id, token);
        // It may have been broken on its way here.
        state.push_now(self.id, Ready::Slot(token));
    }

    pub(crate) fn local_addr(&self, token: Token) -> io::Result<Address> {
        let slot = self.slots.get(&token.index).filter(|slot| slot.token == token);
        let state = self.network.state();
        let addresses = slot.and_then(|slot| state.addresses(slot.end));
        Ok(Address::canonical(addresses.ok_or(Errno::NOTCONN)?.0))
    }

    pub(crate) fn unacked(&self, token: Token) -> io::Result<usize> {
        let slot =
            self.slots.get(&token.index).filter(|slot| slot.token == token && slot.closed_at.is_none());
        let slot = slot.ok_or(Errno::NOTCONN)?;
        let handed = slot.handed.as_ref().map_or(0, |outgoing| outgoing.len()) + slot.bounced;
        Ok(handed + self.network.state().end(slot.end).map_or(0, End::undelivered))
    }

    pub(crate) fn receive(&mut self, token: Token) {
        if let Some(slot) = slot(&mut self.slots, token) {
            slot.receiving = true;
            self.network.state().push_now(self.id, Ready::Slot(token));
        }
    }

    pub(crate) fn offer(&mut self, token: Token, offers: bool) {
        if let Some(slot) = slot(&mut self.slots, token) {
            (slot.offers, slot.offered) = (offers, None);
            self.network.state().push_now(self.id, Ready::Slot(token));
        }
    }

    pub(crate) fn receive_now(&mut self, token: Token, into: &mut [u8]) -> Option<(usize, Option<Chunk>)> {
        let slot = slot(&mut self.slots, token)?;
        let mut state = self.network.state();
        let is_offered = slot.offered.take() == Some(self.turn);
        if !is_offered || !matches!(slot.due(&state), Some(Due::Received)) || state.spares_offer() {
            return None;
        }
        let n = state.read(slot.end, into);
        let overflows = n == into.len() && state.end(slot.end).is_some_and(End::has_unread);
        let rest = overflows.then(|| {
            let Ok::<_, Infallible>(rest) = self.chunks.fill(|rest| Ok(state.read(slot.end, rest)));
            rest.expect("there is more")
        });
        Some((n, rest))
    }

    pub(crate) fn pause(&mut self, token: Token) {
        if let Some(slot) = slot(&mut self.slots, token) {
            slot.receiving = false;
            // What a read would have told now may have to be told otherwise.
            self.network.state().push_now(self.id, Ready::Slot(token));
        }
    }

    pub(crate) fn send(&mut self, token: Token, outgoing: &mut Outgoing) -> Submitted {
        let Some(slot) = slot(&mut self.slots, token) else {
            return Submitted::Done(Err(Errno::BADF.into()));
        };
        debug_assert!(slot.outgoing.is_none() || slot.bounced > 0, "one send is in flight already");
        debug_assert!(!slot.connecting && slot.closed_at.is_none(), "the slot is not connected");
        let mut state = self.network.state();
        let overtakes = slot.is_unconfirmed();
        if !overtakes && outgoing.len() <= HANDED_MAX && state.hands_over() {
            slot.handed = Some(Box::new(std::mem::take(outgoing)));
            self.handed.push(token);
            return Submitted::Handed;
        }
        slot.sent_at = state.completion_time();
        if !overtakes
            && slot.sent_at <= state.now
            && let Some(result) = state.send(slot.end, outgoing)
        {
            return Submitted::Done(result.map_err(io::Error::from));
        }
        match &mut slot.outgoing {
            Some(bounced) => bounced.append(outgoing),
            None => slot.outgoing = Some(Box::new(std::mem::take(outgoing))),
        }
        state.push_at(slot.sent_at, self.id, Ready::Slot(token));
        Submitted::InFlight
    }

    /// Sends what was handed over; what does not go bounces, and is in flight from now on.
    fn confirm(&mut self, token: Token) {
        let Some(slot) = slot(&mut self.slots, token) else { return };
        let Some(mut outgoing) = slot.handed.take() else { return };
        let mut state = self.network.state();
        slot.sent_at = state.completion_time();
        outgoing.advance(slot.send_handed(&mut state, &outgoing), &self.pieces);
        if !outgoing.is_empty() {
            slot.bounced = outgoing.len();
            self.bounced.push_back(token);
            if let Some(mut behind) = slot.outgoing.replace(outgoing)
                && let Some(bounced) = &mut slot.outgoing
            {
                bounced.append(&mut behind);
            }
        }
        state.push_at(slot.sent_at, self.id, Ready::Slot(token));
    }

    /// A send that would take time takes nothing now.
    pub(crate) fn send_now(&mut self, token: Token, bytes: &[u8]) -> io::Result<usize> {
        let slot = slot(&mut self.slots, token).ok_or(Errno::BADF)?;
        if slot.is_unconfirmed() {
            return Ok(0);
        }
        debug_assert!(slot.outgoing.is_none(), "nothing overtakes the send in flight");
        debug_assert!(!slot.connecting && slot.closed_at.is_none(), "the slot is not connected");
        let mut state = self.network.state();
        if state.completion_time() > state.now {
            return Ok(0);
        }
        let sent = state.send_with(slot.end, bytes.len(), |n| bytes[..n].to_vec());
        sent.unwrap_or(Ok(0)).map_err(io::Error::from)
    }

    pub(crate) fn send_gathered_now(&mut self, token: Token, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.send_now(token, &bytes)
    }

    /// Sends FIN behind what was handed over; or says how much of that has bounced.
    pub(crate) fn shutdown(&mut self, token: Token) -> io::Result<usize> {
        self.confirm(token);
        let Some(slot) = slot(&mut self.slots, token) else {
            return Ok(0);
        };
        debug_assert!(slot.closed_at.is_none(), "the slot is closing");
        if slot.bounced > 0 {
            return Ok(std::mem::take(&mut slot.bounced));
        }
        debug_assert!(slot.outgoing.is_none(), "FIN would overtake the send in flight");
        self.network.state().shutdown(slot.end)?;
        Ok(0)
    }

    /// What was handed over before leaves before the end does.
    pub(crate) fn close(&mut self, token: Token, reset: bool) {
        self.confirm(token);
        let Some(slot) = slot(&mut self.slots, token) else {
            return;
        };
        debug_assert!(slot.closed_at.is_none(), "the slot is closing already");
        let mut state = self.network.state();
        state.close(slot.end, reset);
        let at = state.completion_time();
        slot.closed_at = Some(at);
        state.push_at(at, self.id, Ready::Slot(token));
    }

    /// Begins a turn. Nothing to wait for: time moves only between turns, and not by our doing.
    pub(crate) fn wait(&mut self, _until: Option<Time>) -> io::Result<()> {
        self.turn += 1;
        for token in std::mem::take(&mut self.handed) {
            self.confirm(token);
        }
        let mut state = self.network.state();
        for ready in self.deferred.drain(..) {
            state.push_now(self.id, ready);
        }
        Ok(())
    }

    /// Whether a turn that begins now would report anything.
    #[cfg(test)]
    fn has_ready(&self) -> bool {
        let state = self.network.state();
        let bounced = self.bounced.iter().any(|token| {
            self.slots.get(&token.index).is_some_and(|slot| slot.token == *token && slot.bounced > 0)
        });
        bounced
            || state.ready(self.id).chain(self.deferred.iter().copied()).any(|ready| match ready {
                Ready::Slot(token) => {
                    let slot = self.slots.get(&token.index).filter(|slot| slot.token == token);
                    slot.is_some_and(|slot| slot.due(&state).is_some())
                }
                Ready::Listener(number) => {
                    self.listeners.get(&number).is_some_and(|accepting| accepting.is_due(&state))
                }
            })
    }

    /// Whether bytes were handed over that the next turn sends.
    #[cfg(test)]
    fn has_handed(&self) -> bool {
        self.slots.values().any(|slot| slot.handed.is_some())
    }

    pub(crate) fn next(&mut self) -> Option<Completion> {
        if let Some(bounced) = self.next_bounced() {
            return Some(bounced);
        }
        loop {
            let ready = self.network.state().pop_ready(self.id)?;
            let completion = match ready {
                Ready::Slot(token) => self.next_of_slot(token),
                Ready::Listener(number) => self.next_of_listener(number),
            };
            if completion.is_some() {
                // There may be more, but others come first.
                self.network.state().push_now(self.id, ready);
                return completion;
            }
        }
    }

    fn next_bounced(&mut self) -> Option<Completion> {
        while let Some(token) = self.bounced.pop_front() {
            // A shutdown may have told it.
            let bounced = slot(&mut self.slots, token).map_or(0, |slot| std::mem::take(&mut slot.bounced));
            if bounced > 0 {
                return Some(Completion::Bounced { token, unsent: bounced });
            }
        }
        None
    }

    fn next_of_slot(&mut self, token: Token) -> Option<Completion> {
        let slot = slot(&mut self.slots, token)?;
        let mut state = self.network.state();
        let due = slot.due(&state)?;
        if matches!(due, Due::Received) {
            if slot.offered == Some(self.turn) {
                return None;
            }
            if !slot.share.take(self.turn, RECEIVE_BUDGET) {
                self.deferred.push(Ready::Slot(token));
                return None;
            }
            let offers = slot.offers && slot.offered.is_none() && !state.spares_offer();
            slot.offered = offers.then_some(self.turn);
            if offers {
                // If nobody takes it until then.
                self.deferred.push(Ready::Slot(token));
                return Some(Completion::Readable { token });
            }
        }
        Some(match due {
            Due::Connected(result) => {
                slot.connecting = false;
                (slot.ended, slot.failed) = (result.is_err(), result.is_err());
                Completion::Connected { token, result: result.map_err(io::Error::from) }
            }
            Due::Sent => {
                let outgoing = slot.outgoing.take().expect("due only with a send in flight");
                let result = state.send(slot.end, &outgoing).expect("due only when it can go");
                Completion::Sent { token, outgoing, result: result.map_err(io::Error::from) }
            }
            Due::Broken(errno) => {
                slot.failed = true;
                Completion::Broken { token, error: errno.into() }
            }
            Due::Failed(errno) => {
                (slot.ended, slot.failed) = (true, true);
                Completion::Failed { token, error: errno.into() }
            }
            Due::Received => {
                let read = |buffer: &mut [u8]| Ok(state.read(slot.end, buffer));
                let Ok::<_, Infallible>(chunk) = self.chunks.fill(read);
                Completion::Received { token, chunk: chunk.expect("due only with unread bytes") }
            }
            Due::HungUp => {
                slot.hung_up = true;
                Completion::HungUp { token }
            }
            Due::ReceiveEnded => {
                slot.ended = true;
                Completion::ReceiveEnded { token }
            }
            Due::Closed => {
                state.release_descriptor(self.address);
                let outgoing = slot.outgoing.take();
                self.slots.remove(&token.index);
                Completion::Closed { token, outgoing }
            }
        })
    }

    fn next_of_listener(&mut self, number: u32) -> Option<Completion> {
        let accepting = self.listeners.get_mut(&number)?;
        let mut state = self.network.state();
        if !accepting.is_due(&state) {
            return None;
        }
        if !accepting.share.take(self.turn, ACCEPT_BUDGET) {
            self.deferred.push(Ready::Listener(number));
            return None;
        }
        let listener = ListenerId(number);
        Some(match state.accept(accepting.listener, self.address) {
            Ok((endpoint, peer)) => Completion::Accepted {
                listener,
                socket: Socket::Simulated(Box::new(endpoint)),
                peer: peer.into(),
            },
            Err(errno) => {
                accepting.paused = true;
                Completion::AcceptFailed { listener, error: errno.into() }
            }
        })
    }
}

/// Closes what the worker left open, as the end of a process would.
impl Drop for Simulated {
    fn drop(&mut self) {
        let mut state = self.network.state();
        for slot in self.slots.values() {
            if slot.closed_at.is_none() {
                state.close(slot.end, false);
            }
            state.release_descriptor(self.address);
        }
        for accepting in self.listeners.values() {
            state.unlisten(accepting.listener);
        }
    }
}

/// A socket of the worker.
struct Slot {
    token: Token,
    end: EndId,
    connecting: bool,
    receiving: bool,
    /// Receptions are offered to whoever reads; the last one was, in this turn.
    offers: bool,
    offered: Option<u64>,
    /// The peer's FIN was told.
    ended: bool,
    /// It was told that it is to come.
    hung_up: bool,
    /// A failure was told, by `Failed` or by `Connected`.
    failed: bool,
    /// The send in flight, which is not over before `sent_at`.
    outgoing: Option<Box<Outgoing>>,
    sent_at: Time,
    /// What counts as sent, and goes out with the next turn, or bounces.
    handed: Option<Box<Outgoing>>,
    /// So many bytes of `outgoing` have bounced, and nobody was told.
    bounced: usize,
    /// Closed by the worker; told at this time.
    closed_at: Option<Time>,
    share: Share,
}

/// What a slot has to tell next.
enum Due {
    Connected(Result<(), Errno>),
    Sent,
    Broken(Errno),
    Failed(Errno),
    Received,
    HungUp,
    ReceiveEnded,
    Closed,
}

impl Slot {
    fn new(token: Token, end: EndId) -> Slot {
        Slot {
            token,
            end,
            connecting: false,
            receiving: false,
            offers: false,
            offered: None,
            ended: false,
            hung_up: false,
            failed: false,
            outgoing: None,
            sent_at: Time::ZERO,
            handed: None,
            bounced: 0,
            closed_at: None,
            share: Share::default(),
        }
    }

    /// Whether bytes that count as sent may not be, as far as the worker knows.
    fn is_unconfirmed(&self) -> bool {
        self.handed.is_some() || self.bounced > 0
    }

    /// Sends what it can of what was handed over; returns how much that is. What breaks the connection is told by the
    /// send in flight that the rest becomes.
    fn send_handed(&self, state: &mut State, outgoing: &Outgoing) -> usize {
        let stands = state.end(self.end).is_some_and(|end| end.broken().is_none());
        if !stands || self.sent_at > state.now {
            return 0;
        }
        state.send(self.end, outgoing).and_then(Result::ok).unwrap_or(0)
    }

    fn due(&self, state: &State) -> Option<Due> {
        if let Some(at) = self.closed_at {
            return (at <= state.now).then_some(Due::Closed);
        }
        let end = state.end(self.end)?;
        if self.connecting {
            let result = end.broken().map_or(Ok(()), Err);
            return end.is_settled().then_some(Due::Connected(result));
        }
        let may_send = self.outgoing.is_some() && !self.is_unconfirmed();
        if may_send && self.sent_at <= state.now && state.can_send(self.end) {
            return Some(Due::Sent);
        }
        match end.broken() {
            Some(errno) => self.due_of_broken(end, errno),
            None if self.receiving && end.has_unread() => Some(Due::Received),
            None if !end.fin_received() || self.ended => None,
            None if self.receiving => Some(Due::ReceiveEnded),
            None => (!self.hung_up).then_some(Due::HungUp),
        }
    }

    /// What there is to tell of a broken end: its cause once, and the bytes before it.
    fn due_of_broken(&self, end: &End, errno: Errno) -> Option<Due> {
        let is_told = self.failed || end.is_break_told();
        if self.ended || (!self.receiving && !end.has_unread()) {
            return (!is_told).then_some(Due::Failed(errno));
        }
        if !self.receiving {
            // A paused slot is told too: otherwise it might never learn that its peer is gone.
            return (!is_told).then_some(Due::Broken(errno));
        }
        Some(match end.has_unread() {
            true => Due::Received,
            false if is_told || end.fin_received() => Due::ReceiveEnded,
            false => Due::Failed(errno),
        })
    }
}

/// A listener of the worker.
struct Accepting {
    listener: u64,
    paused: bool,
    share: Share,
}

impl Accepting {
    fn is_due(&self, state: &State) -> bool {
        !self.paused && state.has_queued(self.listener)
    }
}

/// The slot that the token names, unless the token is stale.
fn slot(slots: &mut BTreeMap<u32, Slot>, token: Token) -> Option<&mut Slot> {
    slots.get_mut(&token.index).filter(|slot| slot.token == token)
}
