//! What a handler leaves because a send of it was refused: it waits for room, and is offered again then, as on a worker.
//!
//! A refusal means that messages wait, so room comes, or the end. Until then bytes and the peer's end stay in the list of events;
//! what else there is goes on, as the handlers of messages do, whose return makes the room.

use super::{Event, Inner, State};

/// How it stands with the sends of a handler.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    None,
    /// One was refused, and there has been no room since.
    Standing,
    /// One was refused, and there has been room since: what is left when the handler returns is offered again.
    Over,
}

impl Inner {
    /// Which event is handled next, if one can be.
    pub(super) fn next_event(&self) -> Option<usize> {
        let waits = self.refusal == Refusal::Standing && !self.left.is_empty();
        let is_held = |(epoch, event): &(u64, Event)| {
            waits && *epoch == self.epoch && matches!(event, Event::Received(_) | Event::Ended)
        };
        self.events.iter().position(|event| !is_held(event))
    }

    /// Messages have gone. When half of `send_max` is free, what was left for want of room is offered again; a message that needs more
    /// may be refused again, and waits for the next ones to go.
    pub(super) fn has_room(&mut self, send_max: usize) {
        if self.refusal == Refusal::Standing && self.charged <= send_max / 2 {
            self.refusal = Refusal::Over;
        }
        self.look_for_what_waits();
    }

    /// A handler has returned, or there is room: what a handler leaves is known, and offered again, when it has returned.
    pub(super) fn look_for_what_waits(&mut self) {
        if self.refusal == Refusal::Over && self.running.is_none() {
            self.refusal = Refusal::None;
            self.offer_again();
        }
    }

    /// In front of "writable", and of the end. With what comes next, if that is here.
    fn offer_again(&mut self) {
        let epoch = self.epoch;
        // Where there is something of an earlier connection, what is left may be of that one.
        let is_needless = |(of, event): &(u64, Event)| *of != epoch || matches!(event, Event::Received(_));
        if self.is_over || self.left.is_empty() || self.events.iter().any(is_needless) {
            return;
        }
        let is_behind = |(_, event): &(u64, Event)| {
            matches!(event, Event::Writable | Event::Ended | Event::State(State::Disconnected(_)))
        };
        let at = self.events.iter().position(is_behind).unwrap_or(self.events.len());
        self.events.insert(at, (epoch, Event::Received(Default::default())));
        self.is_offered_again = true;
    }
}
