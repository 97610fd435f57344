//! Draining: newcomers are refused, what ends in time is let end, the rest is reset.

use std::time::Duration;

use wharf::CloseReason;

use super::cell::Role;
use super::scenario::Scenario;
use super::script::{Gate, Step, Stop, Told, send};
use super::stage::{Options, Stage};

const OF_SERVERS: &str = "It is servers that drain.";
const LONG: Duration = Duration::from_secs(60);

pub(crate) fn a_drain_refuses_newcomers_and_lets_what_has_begun_finish() -> Scenario {
    Scenario::new(|stage| {
        let serving = stage.serve([Step::Echo], &Options::default());
        let gate = Gate::default();
        let script =
            [send("hal"), Step::Receive(3), Step::Await(gate.clone()), send("ves"), Step::Receive(3)];
        let client = stage.visitor(&serving, script);
        stage.until("it has begun", || client.note().steps == 2);
        serving.drain(LONG);
        stage.until("its handler is told", || serving.is_draining());
        // Whoever comes before the listener is closed, is let in.
        loop {
            let newcomer = stage.visitor(&serving, []);
            stage.until("the newcomer knows", || newcomer.note().is_over());
            if let Some(failure) = newcomer.told().failure {
                assert!(failure.is_refused, "{failure:?}");
                break;
            }
        }
        assert!(!serving.is_stopped());
        gate.open();
        stage.until("it has finished", || client.note().is_over());
        assert_eq!(client.told().outcome(), (Stop::Done, CloseReason::Local));
        assert_eq!(client.told().received, b"halves");
        stage.until("the server has ended long before its deadline", || serving.is_stopped());
        let stats = stage.stop(&serving);
        assert_eq!(stats.closes, [(CloseReason::Peer, stats.accepted)]);
        assert_eq!((stats.drain.finished, stats.drain.reset, stats.drain.lost), (stats.accepted, 0, 0));
    })
    .not_for(Role::Client, OF_SERVERS)
}

pub(crate) fn a_drain_resets_at_its_deadline_what_has_not_ended() -> Scenario {
    Scenario::new(|stage| {
        let (began, within) = (stage.now(), stage.time(5.0));
        ends_all(stage, within);
        let took = stage.now() - began;
        assert!(took >= within && took < 20 * within, "{took:?}");
    })
    .in_time()
    .not_for(Role::Client, OF_SERVERS)
}

pub(crate) fn a_stop_resets_everything_at_once() -> Scenario {
    Scenario::new(|stage| ends_all(stage, Duration::ZERO)).not_for(Role::Client, OF_SERVERS)
}

/// Those who are here when the server drains, and do not end in time, are reset.
fn ends_all(stage: &mut Stage<'_>, within: Duration) {
    let serving = stage.serve([Step::Echo], &Options::default());
    let script = [send("x"), Step::Receive(1), Step::ReceiveAll];
    let clients: Vec<_> = (0..3).map(|_| stage.visitor(&serving, script.clone())).collect();
    stage.until("they are served", || clients.iter().all(|client| client.note().steps == 2));
    serving.drain(within);
    stage.until("they are reset", || clients.iter().all(|client| client.note().is_over()));
    let reset = CloseReason::PeerReset;
    for client in &clients {
        assert_eq!(client.told().outcome(), (Stop::Closed(reset), reset));
    }
    // A queue may be behind the server.
    let are_over = || serving.told().iter().all(Told::is_over);
    stage.until("the server has ended, and all of them know", || serving.is_stopped() && are_over());
    let shutdown = CloseReason::Shutdown;
    for told in serving.told() {
        assert_eq!(told.outcome(), (Stop::Closed(shutdown), shutdown));
    }
    let stats = stage.stop(&serving);
    assert_eq!(stats.closes, [(shutdown, 3)]);
    assert_eq!((stats.drain.finished, stats.drain.reset), (0, 3));
}
