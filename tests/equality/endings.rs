//! Ends: each has one reason, which is told once, and what was sent before an end in order arrives.

use wharf::CloseReason;

use crate::common::pattern;

use super::cell::{Role, Style};
use super::scenario::Scenario;
use super::script::{Gate, Step, Stop, send};
use super::stage::Options;

pub(crate) fn a_reset_by_the_peer_is_told_as_one() -> Scenario {
    Scenario::new(|stage| {
        let peer = [send("hello"), Step::Receive(5), Step::Reset];
        let (subject, peer) = stage.play(([Step::Echo], Options::default()), (peer, Options::default()));
        assert_eq!(subject.outcome(), (Stop::Closed(CloseReason::PeerReset), CloseReason::PeerReset));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::LocalReset));
        assert_eq!(subject.received, b"hello");
    })
}

pub(crate) fn its_own_reset_is_seen_as_one() -> Scenario {
    Scenario::new(|stage| {
        let subject = [Step::Receive(1), Step::Reset];
        let peer = [send("x"), Step::ReceiveAll];
        let (subject, peer) = stage.play((subject, Options::default()), (peer, Options::default()));
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::LocalReset));
        assert_eq!(peer.outcome(), (Stop::Closed(CloseReason::PeerReset), CloseReason::PeerReset));
    })
}

pub(crate) fn a_close_with_unread_input_still_delivers_the_reply() -> Scenario {
    Scenario::new(|stage| {
        let reply = pattern(0..50_000);
        let subject = [Step::Receive(1), send(reply.clone())];
        let peer = [send(vec![b'x'; 160_000]), Step::ReceiveAll];
        let (subject, peer) = stage.play((subject, Options::default()), (peer, Options::default()));
        assert_eq!(subject.outcome(), (Stop::Done, CloseReason::Local));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Peer));
        assert!(peer.received == reply, "{} of {} bytes", peer.received.len(), reply.len());
    })
}

pub(crate) fn a_peer_that_ends_within_a_message_is_told_with_how_much_came() -> Scenario {
    Scenario::new(|stage| {
        let subject = [Step::Receive(10)];
        let (subject, peer) = stage.play((subject, Options::default()), ([send("half")], Options::default()));
        assert_eq!(subject.outcome(), (Stop::Ended { partial: 4 }, CloseReason::Peer));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Local));
    })
}

pub(crate) fn another_thread_closes_it_in_order() -> Scenario {
    Scenario::new(|stage| {
        let subject = [Step::Receive(1), Step::GiveHandle, Step::ReceiveAll];
        let peer = [send("x"), Step::ReceiveAll];
        let pair = stage.begin((subject, Options::default()), (peer, Options::default()));
        stage.until("there is a handle", || pair.subject.note().handle.is_some());
        pair.subject.handle().close();
        let (subject, peer) = stage.end(&pair);
        assert_eq!(subject.outcome(), (Stop::Closed(CloseReason::Local), CloseReason::Local));
        assert_eq!(peer.outcome(), (Stop::Done, CloseReason::Peer));
    })
}

pub(crate) fn another_thread_resets_it() -> Scenario {
    Scenario::new(|stage| {
        let (ours, theirs) = (CloseReason::LocalReset, CloseReason::PeerReset);
        let subject = [Step::Receive(1), Step::GiveHandle, Step::ReceiveAll];
        let peer = [send("x"), Step::ReceiveAll];
        let pair = stage.begin((subject, Options::default()), (peer, Options::default()));
        stage.until("there is a handle", || pair.subject.note().handle.is_some());
        pair.subject.handle().reset();
        let (subject, peer) = stage.end(&pair);
        assert_eq!(subject.outcome(), (Stop::Closed(ours), ours));
        assert_eq!(peer.outcome(), (Stop::Closed(theirs), theirs));
    })
}

pub(crate) fn a_handler_that_panics_loses_its_own_connection_only() -> Scenario {
    Scenario::new(|stage| {
        let serving = stage.serve([Step::Receive(1), Step::PanicOn(b'p'), Step::Echo], &Options::default());
        let gate = Gate::default();
        let good = stage
            .visitor(&serving, [send("g"), Step::Await(gate.clone()), send("so what?"), Step::Receive(8)]);
        stage.until("the good one is let in", || serving.told().iter().any(|told| told.steps >= 2));
        let bad = stage.visitor(&serving, [send("p"), Step::ReceiveAll]);
        stage.until("the bad one is over", || bad.note().is_over());
        gate.open();
        stage.until("the good one is over", || good.note().is_over());
        let (reset, reason) = (CloseReason::PeerReset, CloseReason::HandlerPanicked);
        assert_eq!(bad.told().outcome(), (Stop::Closed(reset), reset));
        assert_eq!(good.told().outcome(), (Stop::Done, CloseReason::Local));
        assert_eq!(good.told().received, b"so what?");
        let stats = stage.stop(&serving);
        assert_eq!((stats.accepted, stats.panics), (2, 1), "{stats:?}");
        assert_eq!((stats.closed(reason), stats.closed(CloseReason::Peer)), (1, 1), "{stats:?}");
    })
    .not_for(Role::Client, "A client's panic is its program's; no server called it.")
}

pub(crate) fn a_handler_that_fails_still_gets_its_last_words_out() -> Scenario {
    Scenario::new(|stage| {
        let serving = stage.serve([Step::Receive(1), send("last words"), Step::Fail], &Options::default());
        let client = stage.visitor(&serving, [send("x"), Step::ReceiveAll]);
        stage.until("it is over", || client.note().is_over());
        assert_eq!(client.told().outcome(), (Stop::Done, CloseReason::Peer));
        assert_eq!(client.told().received, b"last words");
        let stats = stage.stop(&serving);
        assert_eq!(stats.closed(CloseReason::HandlerFailed), 1, "{stats:?}");
    })
    .not_for(Role::Client, "It is about what a server does with the error that its handler returns.")
    .not_in(Style::Event, "A handler of events returns no error: it closes, or resets.")
}
