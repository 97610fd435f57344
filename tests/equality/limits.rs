//! Limits: how many may come in, and how much a connection may hold.

use wharf::{Bound, CloseReason, Limits, OverLimit, Rule, WhenFull};

use crate::common::pattern;

use super::cell::{Role, Style};
use super::scenario::Scenario;
use super::script::{Gate, Step, Stop, send};
use super::stage::{Options, Stage};

const OF_SERVERS: &str = "It is about whom a server lets in.";

/// What a client does that is let in: it sees that it is, and stays until the gate opens.
fn visit(gate: &Gate) -> [Step; 3] {
    [send("x"), Step::Receive(1), Step::Await(gate.clone())]
}

pub(crate) fn one_too_many_waits_and_is_served_when_one_leaves() -> Scenario {
    Scenario::new(|stage| {
        let serving = stage.serve([Step::Echo], &Options::limits(Limits::default().connections(1)));
        let gate = Gate::default();
        let first = stage.visitor(&serving, visit(&gate));
        stage.until("the first is let in", || first.note().steps == 2);
        let second = stage.visitor(&serving, [send("x"), Step::Receive(1)]);
        stage.pass(4.0);
        assert_eq!((serving.len(), second.told().steps < 2), (1, true), "the second waits");
        gate.open();
        stage.until("both are served", || first.note().is_over() && second.note().is_over());
        assert_eq!(second.told().outcome(), (Stop::Done, CloseReason::Local));
        let stats = stage.stop(&serving);
        assert_eq!((stats.accepted, stats.closed(CloseReason::Peer)), (2, 2), "{stats:?}");
    })
    .not_for(Role::Client, OF_SERVERS)
}

pub(crate) fn one_too_many_is_turned_away_at_once_if_that_was_asked_for() -> Scenario {
    Scenario::new(|stage| {
        let limits = Limits::default().connections(1).over_limit(OverLimit::Close);
        turned_away(stage, limits, Rule::Connections);
    })
    .not_for(Role::Client, OF_SERVERS)
}

pub(crate) fn an_address_has_its_share_and_no_more() -> Scenario {
    Scenario::new(|stage| turned_away(stage, Limits::default().per_address(1), Rule::PerAddress))
        .not_for(Role::Client, OF_SERVERS)
}

/// A second client is turned away while the first stays, by that rule; a third is let in behind it.
fn turned_away(stage: &mut Stage<'_>, limits: Limits, rule: Rule) {
    let serving = stage.serve([Step::Echo], &Options::limits(limits));
    let gate = Gate::default();
    let first = stage.visitor(&serving, visit(&gate));
    stage.until("the first is let in", || first.note().steps == 2);
    let second = stage.visitor(&serving, [Step::ReceiveAll]);
    stage.until("the second is turned away", || second.note().is_over());
    let second = second.told();
    assert!(second.received.is_empty() && second.ends != [CloseReason::Local], "{second:?}");
    gate.open();
    stage.until("there is room", || first.note().is_over() && serving.connections() == 0);
    let third = stage.visitor(&serving, [send("x"), Step::Receive(1)]);
    stage.until("the third is served", || third.note().is_over());
    assert_eq!(third.told().outcome(), (Stop::Done, CloseReason::Local));
    let stats = stage.stop(&serving);
    assert_eq!((stats.accepted, stats.refused), (2, vec![(rule, 1)]));
}

pub(crate) fn a_full_send_queue_ends_the_connection_if_that_was_asked_for() -> Scenario {
    Scenario::new(|stage| {
        let reason = CloseReason::Limit(Bound::SendQueue);
        let limits = Limits::default().send_marks(16 * 1024, 32 * 1024).send_max(64 * 1024);
        let options = Options::limits(limits.when_full(WhenFull::Disconnect));
        let message = send(pattern(0..10_000));
        let (subject, gate) = (vec![message; 1000], Gate::default());
        let pair = stage.begin((subject, options), ([Step::Await(gate.clone())], Options::default()));
        stage.until("it gives up", || pair.subject.note().is_over());
        gate.open();
        let (subject, _) = stage.end(&pair);
        assert_eq!(subject.outcome(), (Stop::Closed(reason), reason));
    })
    .not_in(
        Style::Blocking,
        "It has no queue that could be full: a send waits for the kernel, for the time that the write deadline leaves it.",
    )
}

pub(crate) fn a_message_that_can_never_be_held_ends_the_connection() -> Scenario {
    const OWN_BUFFER: &str =
        "A message is received into the caller's own buffer, of the size that it has chosen.";
    Scenario::new(|stage| {
        let reason = CloseReason::Limit(Bound::ReceiveBuffer);
        let options = Options::limits(Limits::default().receive_buffer(4096));
        let message = send(pattern(0..200_000));
        let (subject, _) = stage
            .play(([Step::Receive(200_000)], options), ([message, Step::ReceiveAll], Options::default()));
        assert_eq!(subject.outcome(), (Stop::Closed(reason), reason));
    })
    .not_in(Style::Async, OWN_BUFFER)
    .not_in(Style::Blocking, OWN_BUFFER)
}
