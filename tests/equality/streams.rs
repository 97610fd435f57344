//! Bytes: that all of them come, in order, at the pace of who reads them.

use wharf::{CloseReason, Deadline, Deadlines, Limits};

use crate::common::pattern;

use super::cell::Style;
use super::scenario::Scenario;
use super::script::{Gate, Step, Stop, send};
use super::stage::Options;

/// A side that may queue little.
fn narrow() -> Options {
    Options::limits(Limits::default().send_marks(16 * 1024, 32 * 1024).send_max(NARROW))
}

const NARROW: usize = 64 * 1024;
/// What is queued comes on top of what an engine has been handed and gave back.
const BOUNCED: usize = 32 * 1024;
/// More than all that is between two sides can hold, and what that is.
const LONG: usize = 6 << 20;

pub(crate) fn what_is_sent_to_it_comes_back() -> Scenario {
    Scenario::new(|stage| {
        let message = pattern(0..65_537);
        let peer = [send(message.clone()), Step::Receive(message.len()), Step::Finish, Step::ReceiveAll];
        let (subject, peer) = stage.play(([Step::Echo], Options::default()), (peer, Options::default()));
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Peer));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Local));
        assert!(peer.received == message && subject.received == message);
    })
}

pub(crate) fn what_it_sends_comes_back() -> Scenario {
    Scenario::new(|stage| {
        let message = pattern(0..20_000);
        let subject = [send(message.clone()), Step::Receive(message.len()), Step::Finish, Step::ReceiveAll];
        let (subject, peer) = stage.play((subject, Options::default()), ([Step::Echo], Options::default()));
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Local));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Peer));
        assert!(subject.received == message && peer.received == message);
    })
}

pub(crate) fn a_peer_that_has_ended_is_still_answered() -> Scenario {
    Scenario::new(|stage| {
        let request = pattern(0..100_000);
        let peer = [send(request.clone()), Step::Finish, Step::ReceiveAll];
        let subject = [Step::ReceiveAll, send("answer")];
        let (subject, peer) = stage.play((subject, Options::default()), (peer, Options::default()));
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Peer));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Local));
        assert!(subject.received == request);
        assert_eq!(peer.received, b"answer");
    })
}

pub(crate) fn having_ended_it_still_receives() -> Scenario {
    Scenario::new(|stage| {
        let request = pattern(0..100_000);
        let subject = [send(request.clone()), Step::Finish, Step::ReceiveAll];
        let peer = [Step::ReceiveAll, send("answer")];
        let (subject, peer) = stage.play((subject, Options::default()), (peer, Options::default()));
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Local));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Peer));
        assert!(peer.received == request);
        assert_eq!(subject.received, b"answer");
    })
}

pub(crate) fn a_peer_that_does_not_read_holds_it_back_within_its_bound() -> Scenario {
    Scenario::new(|stage| {
        let (message, gate) = (pattern(0..LONG), Gate::default());
        let peer = [Step::Await(gate.clone()), Step::ReceiveAll];
        let pair = stage.begin(([send(message.clone())], narrow()), (peer, Options::default()));
        stage.pass(4.0);
        assert_eq!(pair.subject.told().steps, 0, "it waits");
        gate.open();
        let (subject, peer) = stage.end(&pair);
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Local));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Peer));
        assert!(peer.received == message);
        assert!(subject.pending_max <= NARROW + BOUNCED, "{}", subject.pending_max);
    })
}

pub(crate) fn a_peer_that_never_reads_is_ended_by_the_write_deadline() -> Scenario {
    Scenario::new(|stage| {
        let reason = CloseReason::Timeout(Deadline::Write);
        let options = Options { deadlines: Deadlines::default().write(stage.time(4.0)), ..narrow() };
        let gate = Gate::default();
        let pair = stage
            .begin(([send(pattern(0..LONG))], options), ([Step::Await(gate.clone())], Options::default()));
        stage.until("it gives up", || pair.subject.note().is_over());
        gate.open();
        let (subject, _) = stage.end(&pair);
        assert_eq!(subject.outcome(), (Stop::Closed(reason), reason));
    })
}

pub(crate) fn while_it_does_not_read_its_peer_is_held_back() -> Scenario {
    Scenario::new(|stage| {
        let (message, gate) = (pattern(0..LONG), Gate::default());
        let options = Options::limits(Limits::default().receive_buffer(16 * 1024));
        let subject = [Step::Await(gate.clone()), Step::ReceiveAll];
        let pair = stage.begin((subject, options), ([send(message.clone())], narrow()));
        stage.pass(4.0);
        assert_eq!(pair.peer.told().steps, 0, "the peer waits");
        gate.open();
        let (subject, peer) = stage.end(&pair);
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Peer));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Local));
        assert!(subject.received == message);
    })
    .not_in(
        Style::Event,
        "A handler is offered what has come; it holds its peer back while a send of its own is refused, as the rows on \
         echoes show.",
    )
}

pub(crate) fn what_it_cannot_answer_yet_waits_and_is_answered_when_there_is_room() -> Scenario {
    Scenario::new(|stage| {
        let (message, gate) = (pattern(0..LONG), Gate::default());
        let mut options = narrow();
        options.limits = options.limits.receive_buffer(4096);
        let peer = [Step::Exchange(message.clone().into(), gate.clone()), Step::Finish, Step::ReceiveAll];
        let pair = stage.begin(([Step::Echo], options), (peer, narrow()));
        let mut still = (0, 0);
        stage.until("it has come to a halt", || {
            let received = pair.subject.note().received.len();
            still = if received == still.0 { (received, still.1 + 1) } else { (received, 0) };
            received > 0 && still.1 > 100
        });
        gate.open();
        // The peer's end follows when all of it has come back: nothing new calls for the last answer.
        let (subject, peer) = stage.end(&pair);
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Peer));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Local));
        assert!(subject.received == message && peer.received == message);
        assert!(subject.pending_max <= NARROW + BOUNCED, "{}", subject.pending_max);
    })
}

pub(crate) fn what_a_late_receive_got_is_received_by_the_next() -> Scenario {
    Scenario::new(|stage| {
        let (message, gate) = (pattern(0..10), Gate::default());
        let subject = [Step::ReceiveLate(10, stage.time(2.0)), Step::Receive(10), Step::ReceiveAll];
        let peer = [send(message[..5].to_vec()), Step::Await(gate.clone()), send(message[5..].to_vec())];
        let pair = stage.begin((subject, Options::default()), (peer, Options::default()));
        stage.until("it is late", || pair.subject.note().late == 1);
        gate.open();
        let (subject, peer) = stage.end(&pair);
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Peer));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Local));
        assert_eq!(subject.received, message);
    })
    .not_in(Style::Event, NO_OPERATIONS)
}

pub(crate) fn what_a_late_send_has_not_sent_can_follow() -> Scenario {
    Scenario::new(|stage| {
        let (message, gate, within) = (pattern(0..LONG), Gate::default(), stage.time(1.0));
        let piece = |piece: &[u8]| Step::SendInAttempts(piece.to_vec().into(), within);
        let subject = message.chunks(NARROW).map(piece).collect::<Vec<_>>();
        let peer = [Step::Await(gate.clone()), Step::ReceiveAll];
        let pair = stage.begin((subject, narrow()), (peer, Options::default()));
        stage.until("it is late twice", || pair.subject.note().late >= 2);
        gate.open();
        let (subject, peer) = stage.end(&pair);
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Local));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Peer));
        assert!(peer.received == message, "{} of {} bytes", peer.received.len(), message.len());
    })
    .not_in(Style::Event, NO_OPERATIONS)
}

/// Why what is about a single operation is not about handlers of events.
pub(crate) const NO_OPERATIONS: &str = "A handler is called and does not wait: it has no operation that could be late. What it leaves is offered again.";
