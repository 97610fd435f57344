//! Who may come in: the desk that every new connection passes. Knows the rules and who is here; knows no socket.
//!
//! Only the worker that accepts admits, so what was free when it looked stays free; all workers give places back. The design is
//! in docs/design/admission.md.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::address::Address;
use crate::config::{AcceptRate, Access, Limits, OverLimit};
use crate::error::Rule;
use crate::time::Time;

/// What becomes of a new connection.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may come in, and has this place among its address's.
    Admit(Seat),
    Refuse(Rule),
}

/// Whether the next connection may be taken from the backlog.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Turnstile {
    Open,
    /// Not before somebody has left, or memory is enough again.
    Full,
    /// Not before this time.
    Until(Time),
}

/// A place among those of one address; none for who has no address.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seat(u32);

/// The rules in force and who is here.
#[derive(Debug)]
pub(crate) struct Desk {
    access: Access,
    rules: Limits,
    connections_max: usize,
    connections: usize,
    bucket: Bucket,
    addresses: Addresses,
}

impl Desk {
    pub(crate) fn new(access: Access, rules: Limits, connections_max: usize) -> Desk {
        let (bucket, addresses) = (Bucket::default(), Addresses::default());
        Desk { access, rules, connections_max, connections: 0, bucket, addresses }
    }

    /// From now on these networks may come in. Who is here stays.
    pub(crate) fn set_access(&mut self, access: Access) {
        self.access = access;
    }

    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    /// From now on these rules hold. Who is here stays, also where that is more than they allow.
    pub(crate) fn set_rules(&mut self, rules: Limits, connections_max: usize) {
        let prefix = rules.ipv6_prefix;
        if prefix != self.rules.ipv6_prefix {
            // Those who are here keep counting where they sit; who comes is counted anew.
            self.addresses.forget_keys();
        }
        (self.rules, self.connections_max) = (rules, connections_max);
    }

    pub(crate) fn rules(&self) -> &Limits {
        &self.rules
    }

    pub(crate) fn connections_max(&self) -> usize {
        self.connections_max
    }

    /// Decides about a connection that was accepted. `peer` is who it is for, if that is known already: a proxy tells later.
    pub(crate) fn admit(&mut self, peer: Option<&Address>, memory_is_short: bool, now: Time) -> Verdict {
        let key = match self.check(peer) {
            Ok(key) => key,
            Err(rule) => return Verdict::Refuse(rule),
        };
        if self.connections >= self.connections_max {
            return Verdict::Refuse(Rule::Connections);
        }
        if memory_is_short {
            return Verdict::Refuse(Rule::Memory);
        }
        if let Some(rate) = self.rules.accept_rate
            && !self.bucket.take(rate, now)
        {
            return Verdict::Refuse(Rule::Rate);
        }
        self.connections += 1;
        Verdict::Admit(key.map_or(Seat::default(), |key| self.addresses.enter(key)))
    }

    /// A connection that was let in has gone.
    pub(crate) fn leave(&mut self, seat: Seat) {
        self.connections -= 1;
        self.addresses.leave(seat);
    }

    /// The proxy has told whom a connection that is here is for: it gets a place of that address, if there is one.
    pub(crate) fn seat(&mut self, peer: &Address) -> Result<Seat, Rule> {
        let key = self.check(Some(peer))?;
        Ok(key.map_or(Seat::default(), |key| self.addresses.enter(key)))
    }

    /// What concerns the peer's address: whether it may be here, once more.
    fn check(&self, peer: Option<&Address>) -> Result<Option<u128>, Rule> {
        if peer.is_some_and(|peer| !self.access.admits(peer)) {
            return Err(Rule::Network);
        }
        let key = peer.and_then(Address::ip).map(|ip| key(ip, self.rules.ipv6_prefix));
        match (key, self.rules.per_address) {
            (Some(key), Some(max)) if self.addresses.count(key) >= max => Err(Rule::PerAddress),
            _ => Ok(key),
        }
    }

    /// Whether to take the next one from the backlog. Whoever refuses at the door always does.
    pub(crate) fn turnstile(&self, memory_is_short: bool, now: Time) -> Turnstile {
        if self.rules.over_limit != OverLimit::Queue {
            return Turnstile::Open;
        }
        if self.connections >= self.connections_max || memory_is_short {
            return Turnstile::Full;
        }
        match self.rules.accept_rate.map(|rate| self.bucket.free_at(rate)) {
            Some(at) if at > now => Turnstile::Until(at),
            _ => Turnstile::Open,
        }
    }
}

/// Connections of each address. A seat is an index, so that a connection keeps four bytes.
#[derive(Debug, Default)]
struct Addresses {
    by_key: HashMap<u128, u32>,
    /// The first is nobody's.
    entries: Vec<Entry>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    key: u128,
    count: usize,
}

impl Addresses {
    fn count(&self, key: u128) -> usize {
        self.by_key.get(&key).map_or(0, |index| self.entries[*index as usize].count)
    }

    fn enter(&mut self, key: u128) -> Seat {
        if self.entries.is_empty() {
            self.entries.push(Entry { key: 0, count: 0 });
        }
        let (entries, free) = (&mut self.entries, &mut self.free);
        let index = *self.by_key.entry(key).or_insert_with(|| {
            let entry = Entry { key, count: 0 };
            match free.pop() {
                Some(index) => {
                    entries[index as usize] = entry;
                    index
                }
                None => {
                    entries.push(entry);
                    (entries.len() - 1) as u32
                }
            }
        });
        self.entries[index as usize].count += 1;
        Seat(index)
    }

    fn leave(&mut self, seat: Seat) {
        if seat == Seat::default() {
            return;
        }
        let entry = &mut self.entries[seat.0 as usize];
        entry.count -= 1;
        if entry.count == 0 {
            // A key that was forgotten, or came back with another seat, is not this one's to remove.
            if self.by_key.get(&entry.key) == Some(&seat.0) {
                self.by_key.remove(&entry.key);
            }
            self.free.push(seat.0);
        }
    }

    fn forget_keys(&mut self) {
        self.by_key.clear();
    }
}

/// What counts as one address: IPv4 whole, IPv6 by prefix.
fn key(ip: IpAddr, ipv6_prefix: u8) -> u128 {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => prefix_of(v6, ipv6_prefix),
    }
}

fn prefix_of(ip: Ipv6Addr, bits: u8) -> u128 {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    ip.to_bits() & mask
}

/// A token bucket, as the time at which it would be full again: the generic cell rate algorithm (ITU-T I.371, annex A).
#[derive(Debug)]
struct Bucket {
    full_at: Time,
}

impl Default for Bucket {
    fn default() -> Bucket {
        Bucket { full_at: Time::ZERO }
    }
}

impl Bucket {
    /// When the next token is there.
    fn free_at(&self, rate: AcceptRate) -> Time {
        self.full_at.before(rate.interval() * (rate.burst - 1))
    }

    /// Takes a token, if there is one.
    fn take(&mut self, rate: AcceptRate, now: Time) -> bool {
        let free = self.free_at(rate) <= now;
        if free {
            self.full_at = self.full_at.max(now).after(rate.interval());
        }
        free
    }
}

impl AcceptRate {
    fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_second
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Address {
        Address::from(std::net::SocketAddr::new(text.parse().expect("an address"), 7))
    }

    fn desk(rules: Limits, connections_max: usize) -> Desk {
        Desk::new(Access::default(), rules, connections_max)
    }

    fn ms(ms: u64) -> Time {
        Time::ZERO.after(Duration::from_millis(ms))
    }

    fn seat(verdict: Verdict) -> Seat {
        match verdict {
            Verdict::Admit(seat) => seat,
            Verdict::Refuse(rule) => panic!("refused by {rule}"),
        }
    }

    #[test]
    fn an_address_has_so_many_places_and_gets_them_back() {
        let mut desk = desk(Limits::default().per_address(2), 100);
        let first = seat(desk.admit(Some(&at("192.0.2.1")), false, Time::ZERO));
        seat(desk.admit(Some(&at("192.0.2.1")), false, Time::ZERO));
        assert_eq!(desk.admit(Some(&at("192.0.2.1")), false, Time::ZERO), Verdict::Refuse(Rule::PerAddress));
        seat(desk.admit(Some(&at("192.0.2.2")), false, Time::ZERO));
        desk.leave(first);
        seat(desk.admit(Some(&at("192.0.2.1")), false, Time::ZERO));
    }

    #[test]
    fn an_ipv6_prefix_is_one_address_and_a_mapped_one_is_ipv4() {
        let mut desk = desk(Limits::default().per_address(1), 100);
        seat(desk.admit(Some(&at("2001:db8::1")), false, Time::ZERO));
        assert_eq!(
            desk.admit(Some(&at("2001:db8::ffff:1")), false, Time::ZERO),
            Verdict::Refuse(Rule::PerAddress)
        );
        seat(desk.admit(Some(&at("2001:db8:0:1::1")), false, Time::ZERO));
        seat(desk.admit(Some(&at("192.0.2.1")), false, Time::ZERO));
        assert_eq!(
            desk.admit(Some(&at("::ffff:192.0.2.1")), false, Time::ZERO),
            Verdict::Refuse(Rule::PerAddress)
        );
    }

    #[test]
    fn a_changed_prefix_counts_those_who_come() {
        let mut desk = desk(Limits::default().per_address(1), 100);
        let old = seat(desk.admit(Some(&at("2001:db8::1")), false, Time::ZERO));
        desk.set_rules(Limits::default().per_address(1).ipv6_prefix(128), 100);
        let new = seat(desk.admit(Some(&at("2001:db8::1")), false, Time::ZERO));
        desk.leave(old);
        assert_eq!(
            desk.admit(Some(&at("2001:db8::1")), false, Time::ZERO),
            Verdict::Refuse(Rule::PerAddress)
        );
        desk.leave(new);
        seat(desk.admit(Some(&at("2001:db8::1")), false, Time::ZERO));
    }

    #[test]
    fn a_peer_without_an_address_takes_a_place_of_the_server_only() {
        let unix = Address::Unix(crate::address::UnixName::unnamed());
        let mut desk = desk(Limits::default().per_address(1), 2);
        let first = seat(desk.admit(Some(&unix), false, Time::ZERO));
        seat(desk.admit(Some(&unix), false, Time::ZERO));
        assert_eq!(desk.admit(Some(&unix), false, Time::ZERO), Verdict::Refuse(Rule::Connections));
        desk.leave(first);
        seat(desk.admit(Some(&unix), false, Time::ZERO));
    }

    #[test]
    fn lower_limits_send_nobody_home() {
        let mut desk = desk(Limits::default(), 3);
        let seats: Vec<_> =
            (0..3).map(|_| seat(desk.admit(Some(&at("192.0.2.1")), false, Time::ZERO))).collect();
        desk.set_rules(Limits::default(), 1);
        assert_eq!(desk.turnstile(false, Time::ZERO), Turnstile::Full);
        seats.into_iter().for_each(|seat| desk.leave(seat));
        assert_eq!(desk.turnstile(false, Time::ZERO), Turnstile::Open);
    }

    #[test]
    fn the_queue_moves_when_the_rate_allows() {
        let mut desk = desk(Limits::default().accept_rate(AcceptRate::new(10).burst(2)), 100);
        seat(desk.admit(Some(&at("192.0.2.1")), false, ms(1000)));
        assert_eq!(desk.turnstile(false, ms(1000)), Turnstile::Open);
        seat(desk.admit(Some(&at("192.0.2.1")), false, ms(1000)));
        assert_eq!(desk.turnstile(false, ms(1000)), Turnstile::Until(ms(1100)));
        assert_eq!(desk.admit(Some(&at("192.0.2.1")), false, ms(1099)), Verdict::Refuse(Rule::Rate));
        seat(desk.admit(Some(&at("192.0.2.1")), false, ms(1100)));
    }

    #[test]
    fn a_proxied_connection_takes_a_place_of_whom_it_is_for() {
        let mut desk = desk(Limits::default().per_address(1), 100);
        let seats: Vec<_> = ["192.0.2.1", "192.0.2.2"]
            .iter()
            .map(|ip| {
                assert_eq!(desk.admit(None, false, Time::ZERO), Verdict::Admit(Seat::default()));
                desk.seat(&at(ip)).expect("a place")
            })
            .collect();
        assert_eq!(desk.admit(None, false, Time::ZERO), Verdict::Admit(Seat::default()));
        assert_eq!(desk.seat(&at("192.0.2.1")), Err(Rule::PerAddress));
        desk.leave(Seat::default());
        seats.into_iter().for_each(|seat| desk.leave(seat));
        assert!(desk.addresses.by_key.is_empty());
        assert_eq!(desk.connections, 0);
    }

    #[test]
    fn without_memory_nobody_comes_in() {
        let mut desk = desk(Limits::default(), 1);
        assert_eq!(desk.turnstile(true, Time::ZERO), Turnstile::Full);
        let refused = desk.admit(Some(&at("192.0.2.1")), true, Time::ZERO);
        assert_eq!(refused, Verdict::Refuse(Rule::Memory));
        assert_eq!(desk.turnstile(false, Time::ZERO), Turnstile::Open);
    }

    #[test]
    fn a_network_that_is_denied_takes_no_place() {
        let mut desk = desk(Limits::default(), 1);
        desk.set_access(Access::default().deny(["192.0.2.0/24".parse().expect("a network")]));
        assert_eq!(desk.admit(Some(&at("192.0.2.1")), false, Time::ZERO), Verdict::Refuse(Rule::Network));
        seat(desk.admit(Some(&at("198.51.100.1")), false, Time::ZERO));
    }

    proptest! {
        #[test]
        fn no_window_sees_more_than_burst_and_rate(
            per_second in 1u32..1000,
            burst in 1u32..50,
            pauses in prop::collection::vec(0u64..50_000_000, 1..300),
        ) {
            let rate = AcceptRate::new(per_second).burst(burst);
            let (mut bucket, mut now, mut taken) = (Bucket::default(), Time::ZERO, Vec::new());
            for pause in pauses {
                now = now.after(Duration::from_nanos(pause));
                let free = bucket.free_at(rate) <= now;
                prop_assert_eq!(bucket.take(rate, now), free);
                if free {
                    taken.push(now);
                }
            }
            for (i, first) in taken.iter().enumerate() {
                for (j, last) in taken.iter().enumerate().skip(i) {
                    let window = last.since(*first).as_secs_f64();
                    let most = f64::from(burst) + window * f64::from(per_second) * 1.001 + 1e-6;
                    prop_assert!((j - i + 1) as f64 <= most.floor() + 1.0);
                }
            }
        }

        #[test]
        fn every_place_is_given_back(steps in prop::collection::vec((any::<bool>(), 0u8..4), 1..200)) {
            let mut desk = desk(Limits::default().per_address(3), 8);
            let mut here: Vec<(u8, Seat)> = Vec::new();
            for (come, who) in steps {
                if come {
                    let peer = at(&format!("192.0.2.{who}"));
                    let of_address = here.iter().filter(|(each, _)| *each == who).count();
                    match desk.admit(Some(&peer), false, Time::ZERO) {
                        Verdict::Admit(seat) => {
                            prop_assert!(of_address < 3 && here.len() < 8);
                            here.push((who, seat));
                        }
                        Verdict::Refuse(Rule::PerAddress) => prop_assert_eq!(of_address, 3),
                        Verdict::Refuse(_) => prop_assert_eq!(here.len(), 8),
                    }
                } else if !here.is_empty() {
                    let (_, seat) = here.swap_remove(usize::from(who) % here.len());
                    desk.leave(seat);
                }
                prop_assert_eq!(desk.connections, here.len());
            }
            here.into_iter().for_each(|(_, seat)| desk.leave(seat));
            prop_assert!(desk.addresses.by_key.is_empty());
            prop_assert_eq!(desk.addresses.free.len(), desk.addresses.entries.len().saturating_sub(1));
        }
    }
}
