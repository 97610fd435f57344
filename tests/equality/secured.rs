//! TLS: that it changes nothing but who can read it, and that its end is not anybody's to forge.

use wharf::{CloseReason, Deadline, ErrorKind, TlsFault};

use crate::common::pattern;

use super::cell::Role;
use super::scenario::Scenario;
use super::script::{Gate, Step, Stop, send};
use super::stage::Options;

pub(crate) fn bytes_go_through_tls_as_they_are() -> Scenario {
    Scenario::new(|stage| {
        let message = pattern(0..40_000);
        let peer = [send(message.clone()), Step::Receive(message.len()), Step::Finish, Step::ReceiveAll];
        let (subject, peer) = stage.play(([Step::Echo], Options::tls()), (peer, Options::tls()));
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Peer));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Local));
        assert!(subject.is_secured && peer.is_secured);
        assert!(peer.received == message && subject.received == message);
    })
}

/// Without close_notify its peer would take it for cut off.
pub(crate) fn an_end_by_tls_is_announced() -> Scenario {
    Scenario::new(|stage| {
        let (subject, peer) =
            stage.play(([send("all")], Options::tls()), ([Step::ReceiveAll], Options::tls()));
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Local));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Peer));
        assert_eq!(peer.received, b"all");
    })
}

pub(crate) fn an_end_by_tls_that_nobody_announced_is_none_in_order() -> Scenario {
    Scenario::new(|stage| {
        let truncated = CloseReason::Tls(TlsFault::Truncated);
        let (cut, gate) = (Gate::default(), Gate::default());
        let peer = [send("some"), Step::Await(gate.clone())];
        let pair = stage.begin_by(
            Some(&cut),
            ([Step::Receive(4), Step::ReceiveAll], Options::tls()),
            (peer, Options::tls()),
        );
        stage.until("some has come", || pair.subject.note().steps == 1);
        cut.open();
        stage.until("it is over", || pair.subject.note().is_over());
        gate.open();
        let (subject, _) = stage.end(&pair);
        assert_eq!(subject.outcome(), (Stop::Closed(truncated), truncated));
        assert_eq!(subject.received, b"some");
    })
}

pub(crate) fn a_client_that_never_shakes_hands_is_ended_at_the_deadline_of_that() -> Scenario {
    Scenario::new(|stage| {
        let (began, within) = (stage.now(), stage.time(5.0));
        let reason = CloseReason::Timeout(Deadline::Handshake);
        let options = Options { handshake_within: Some(within), ..Options::tls() };
        let serving = stage.serve([Step::Echo], &options);
        let client = stage.visitor(&serving, [Step::ReceiveAll]);
        stage.until("it is over", || client.note().is_over());
        let took = stage.now() - began;
        assert!(took >= within && took < 20 * within, "{took:?}");
        let reset = CloseReason::PeerReset;
        assert_eq!(client.told().outcome(), (Stop::Closed(reset), reset));
        assert_eq!(serving.len(), 0, "no handler has seen it");
        let stats = stage.stop(&serving);
        assert_eq!((stats.closes, stats.handshakes, stats.handshakes_failed), (vec![(reason, 1)], 0, 1));
    })
    .in_time()
    .not_for(Role::Client, "The next row is about that.")
}

pub(crate) fn a_server_that_never_shakes_hands_is_given_up_at_the_deadline_of_the_connect() -> Scenario {
    Scenario::new(|stage| {
        let (began, within) = (stage.now(), stage.time(5.0));
        let serving = stage.serve([Step::ReceiveAll], &Options::default());
        let options = Options { connect_within: Some(within), ..Options::tls() };
        let failure = stage.fail_to_connect(serving.address, &options);
        let took = stage.now() - began;
        assert!(took >= within && took < 20 * within, "{took:?}");
        assert_eq!((failure.kind, failure.is_refused), (ErrorKind::Timeout, false), "{failure:?}");
        stage.until("it has left", || serving.connections() == 0);
        assert_eq!(stage.stop(&serving).accepted, 1);
    })
    .in_time()
    .not_for(Role::Server, "The row before is about that.")
}

pub(crate) fn a_server_that_is_not_trusted_is_refused() -> Scenario {
    Scenario::new(|stage| {
        let serving = stage.serve([Step::ReceiveAll], &Options::tls());
        let options = Options { trusts_nobody: true, ..Options::tls() };
        let failure = stage.fail_to_connect(serving.address, &options);
        assert_eq!((failure.kind, failure.is_refused), (ErrorKind::Peer, false), "{failure:?}");
        assert!(matches!(failure.fault, Some(TlsFault::Certificate(_))), "{failure:?}");
        stage.until("it has left", || serving.connections() == 0);
        let stats = stage.stop(&serving);
        assert_eq!((stats.accepted, stats.handshakes, stats.handshakes_failed), (1, 0, 1), "{stats:?}");
    })
    .not_for(Role::Server, "It is about whom a client trusts.")
}
