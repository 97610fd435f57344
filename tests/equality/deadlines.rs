//! Deadlines: of connects, of connections, of operations. All of them are total.

use wharf::{CloseReason, Deadline, Deadlines, ErrorKind, ReceiveRate};

use super::cell::{Role, Style};
use super::scenario::Scenario;
use super::script::{Script, Step, Stop, send};
use super::stage::{Options, Stage};
use super::streams::NO_OPERATIONS;

/// The subject, with these deadlines, does so with a peer that does that; its connection ends at that deadline.
fn ends_at(
    stage: &mut Stage<'_>,
    deadline: Deadline,
    (subject, deadlines): (impl Into<Script>, Deadlines),
    peer: impl Into<Script>,
) {
    let reason = CloseReason::Timeout(deadline);
    let (subject, _) = stage.play((subject, Options::deadlines(deadlines)), (peer, Options::default()));
    assert_eq!(subject.outcome(), (Stop::Closed(reason), reason));
}

/// Deadlines for peers that are slow on purpose: without the least rate, which a drip is below.
fn unhurried() -> Deadlines {
    Deadlines::default().receive_rate(None)
}

pub(crate) fn a_silent_peer_is_ended_in_order_at_the_idle_deadline() -> Scenario {
    Scenario::new(|stage| {
        let reason = CloseReason::Timeout(Deadline::Idle);
        let options = Options::deadlines(unhurried().idle(stage.time(4.0)));
        let (subject, peer) =
            stage.play(([Step::ReceiveAll], options), ([Step::ReceiveAll], Options::default()));
        assert_eq!(subject.outcome(), (Stop::Closed(reason), reason));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Peer));
    })
}

pub(crate) fn a_slow_peer_is_not_ended_at_the_idle_deadline() -> Scenario {
    Scenario::new(|stage| {
        let options = Options::deadlines(unhurried().idle(stage.time(20.0)));
        let drip = [Step::Drip(stage.time(1.0))];
        let (subject, _) = stage.play(([Step::Receive(25)], options), (drip, Options::default()));
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Local));
    })
    .in_time()
}

pub(crate) fn a_peer_that_says_nothing_is_ended_at_the_first_byte_deadline() -> Scenario {
    Scenario::new(|stage| {
        let deadlines = unhurried().first_byte(stage.time(4.0));
        ends_at(stage, Deadline::FirstByte, ([Step::ReceiveAll], deadlines), [Step::ReceiveAll]);
    })
}

pub(crate) fn a_peer_that_drips_is_ended_by_the_least_rate() -> Scenario {
    Scenario::new(|stage| {
        let rate = ReceiveRate::new(10_000).grace(stage.time(5.0));
        let deadlines = Deadlines::default().receive_rate(rate);
        let drip = [Step::Drip(stage.time(1.0))];
        ends_at(stage, Deadline::ReceiveRate, ([Step::Receive(1000)], deadlines), drip);
    })
}

pub(crate) fn a_connection_ends_at_its_age_whatever_it_does() -> Scenario {
    Scenario::new(|stage| {
        let deadlines = unhurried().age(stage.time(8.0));
        let drip = [Step::Drip(stage.time(1.0))];
        ends_at(stage, Deadline::Age, ([Step::Echo], deadlines), drip);
    })
}

pub(crate) fn a_deadline_that_it_sets_is_total_for_all_that_follows() -> Scenario {
    Scenario::new(|stage| {
        let (began, after) = (stage.now(), stage.time(10.0));
        let subject = [Step::Deadline(Some(after)), Step::Receive(100)];
        let drip = [Step::Drip(stage.time(2.0))];
        ends_at(stage, Deadline::Handler, (subject, unhurried()), drip);
        let took = stage.now() - began;
        assert!(took >= after && took < 20 * after, "{took:?}");
    })
    .in_time()
}

pub(crate) fn a_deadline_that_it_lifts_ends_nothing() -> Scenario {
    Scenario::new(|stage| {
        let deadline = Step::Deadline(Some(stage.time(20.0)));
        let subject = [deadline, Step::Receive(1), Step::Deadline(None), Step::Receive(24)];
        let drip = [Step::Drip(stage.time(1.0))];
        let options = Options::deadlines(unhurried());
        let (subject, _) = stage.play((subject, options), (drip, Options::default()));
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Local));
    })
    .in_time()
}

pub(crate) fn the_deadline_of_an_operation_is_total_and_the_connection_goes_on() -> Scenario {
    Scenario::new(|stage| {
        let (began, within) = (stage.now(), stage.time(10.0));
        let subject = [Step::ReceiveLate(100, within), Step::Receive(2), send("done")];
        let (options, drip) =
            (Options::deadlines(unhurried()), [Step::Drip(stage.time(2.0)), Step::ReceiveAll]);
        let (subject, peer) = stage.play((subject, options), (drip, Options::default()));
        let took = stage.now() - began;
        assert!(took >= within && took < 20 * within, "{took:?}");
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Local));
        assert_eq!((subject.late, peer.received), (1, b"done".to_vec()));
    })
    .not_in(Style::Event, NO_OPERATIONS)
}

pub(crate) fn a_connect_that_nobody_answers_ends_at_its_deadline() -> Scenario {
    Scenario::new(|stage| {
        let (began, within) = (stage.now(), stage.time(5.0));
        let nobody = stage.nobody();
        let options = Options { connect_within: Some(within), ..Options::default() };
        let failure = stage.fail_to_connect(nobody.address(), &options);
        let took = stage.now() - began;
        assert!(took >= within && took < 20 * within, "{took:?}");
        assert_eq!((failure.kind, failure.is_refused), (ErrorKind::Timeout, false), "{failure:?}");
        assert!(failure.words.starts_with(&format!("connect to {}: ", nobody.address())), "{failure:?}");
    })
    .in_time()
    .not_for(Role::Server, SERVERS_DO_NOT_CONNECT)
}

pub(crate) fn a_connect_that_is_refused_fails_at_once_and_says_so() -> Scenario {
    Scenario::new(|stage| {
        let serving = stage.serve([Step::Echo], &Options::default());
        stage.stop(&serving);
        let failure = stage.fail_to_connect(serving.address, &Options::default());
        assert_eq!((failure.kind, failure.is_refused), (ErrorKind::Peer, true), "{failure:?}");
        assert!(failure.words.starts_with(&format!("connect to {}: ", serving.address)), "{failure:?}");
    })
    .not_for(Role::Server, SERVERS_DO_NOT_CONNECT)
}

const SERVERS_DO_NOT_CONNECT: &str = "It is about connecting.";
