//! Turns: queues that are full, calls that fail, wakes and alarms.

use rustix::io::Errno;

use super::super::super::kernel::Request;
use super::super::super::ring::is_transient;
use super::super::key::NOBODY;
use super::*;

// The queues.

#[test]
fn a_full_queue_keeps_all_requests_and_their_order() {
    let mut world = World::new();
    world.turn();
    world.kernel.state().enter_fails.extend([Errno::BUSY; 200]);
    let mut expected = Vec::new();
    let tokens: Vec<_> = (0..100).map(|index| world.open(index)).collect();
    for (token, _) in &tokens {
        world.driver().receive(*token);
        expected.push(Key::new(Kind::Receive, *token));
    }
    for (token, _) in &tokens {
        world.driver().close(*token, false);
        expected.push(Key::new(Kind::Cancel, *token));
    }
    let before = world.kernel.state().submitted.len();
    world.kernel.state().enter_fails.clear();
    let mut closed = world.settle();
    closed.sort();
    closed.dedup();
    assert_eq!(closed.len(), 100);
    let submitted = world.kernel.state().submitted[before..].iter().map(|(key, _)| *key).collect::<Vec<_>>();
    assert_eq!(submitted, expected);
}

#[test]
fn a_hundred_connections_are_armed_and_closed_at_once() {
    let mut world = World::new();
    let tokens: Vec<_> = (0..100).map(|index| world.open(index)).collect();
    for (token, socket) in &tokens {
        world.driver().receive(*token);
        world.kernel.arrives(*socket, b"hi");
    }
    let received = world.settle();
    assert_eq!(received.len(), 100, "{received:?}");
    for (token, _) in &tokens {
        world.driver().close(*token, true);
    }
    assert_eq!(world.settle().len(), 100);
}

#[test]
fn completions_beyond_the_queue_come_later_and_none_is_lost() {
    let mut world = World::of(Sizes { completions: 2, buffers: 16, window: 16, ..SIZES });
    let tokens: Vec<_> = (0..10).map(|index| world.reader(index)).collect();
    for (_, socket) in &tokens {
        world.kernel.arrives(*socket, b"a");
        world.kernel.arrives(*socket, b"b");
        world.kernel.peer_ends(*socket);
    }
    let mut seen = world.settle();
    seen.sort();
    let expected = (0..10).flat_map(|index| [format!("{index} ended"), format!("{index} received ab")]);
    assert_eq!(seen, expected.collect::<Vec<_>>());
}

#[test]
fn an_enter_that_is_interrupted_loses_nothing() {
    for errno in [Errno::INTR, Errno::BUSY, Errno::AGAIN] {
        assert!(is_transient(&errno.into()));
        let mut world = World::new();
        let (token, socket) = world.open(0);
        world.driver().receive(token);
        world.kernel.arrives(socket, b"hello");
        world.kernel.state().enter_fails.extend([errno; 3]);
        assert_eq!(world.settle(), ["0 received hello"]);
    }
    assert!(!is_transient(&Errno::BADF.into()));
    assert!(!is_transient(&std::io::ErrorKind::Other.into()));
}

#[test]
fn an_enter_that_fails_is_told_to_the_worker() {
    let mut world = World::new();
    world.kernel.state().enter_fails.push_back(Errno::BADF);
    let result = world.driver().wait(Some(Time::ZERO));
    assert_eq!(result.map_err(|error| error.raw_os_error()), Err(Some(Errno::BADF.raw_os_error())));
}

#[test]
fn a_spin_ends_with_the_first_completion_or_in_time() {
    let mut world = World::new();
    let (_, socket) = world.reader(0);
    world.settle();
    let now = world.driver().now();
    assert_eq!(world.driver().spin(now).ok(), Some(false));
    world.kernel.arrives(socket, b"hello");
    assert_eq!(world.driver().spin(Time::NEVER).ok(), Some(true));
    assert_eq!(world.told(), ["0 received hello"]);
}

// The waker and the alarm.

#[test]
fn a_wake_is_told_and_goes_on_being_told_when_its_poll_ends() {
    let mut world = World::new();
    world.turn();
    for more in [true, false, true] {
        world.kernel.completes(Key::new(Kind::Wake, NOBODY), 1, more, None);
        assert_eq!(world.turn(), ["woken"]);
        assert_eq!(world.turn(), [""; 0]);
        assert!(world.kernel.in_flight().contains(&Key::new(Kind::Wake, NOBODY)));
    }
}

#[test]
fn an_alarm_is_no_news_and_goes_on_when_its_poll_ends() {
    let mut world = World::new();
    world.turn();
    for more in [true, false, true] {
        world.kernel.completes(Key::new(Kind::Alarm, NOBODY), 1, more, None);
        assert_eq!(world.turn(), [""; 0]);
        assert_eq!(world.turn(), [""; 0]);
        assert!(world.kernel.in_flight().contains(&Key::new(Kind::Alarm, NOBODY)));
    }
}

#[test]
fn the_waker_and_the_alarm_have_descriptors_of_their_own() {
    let mut world = World::new();
    world.turn();
    let state = world.kernel.state();
    let polled = state.submitted.iter().filter_map(|(_, request)| match request {
        Request::PollAlways { fd } => Some(*fd),
        _ => None,
    });
    let polled: Vec<_> = polled.collect();
    assert_eq!(polled.len(), 2);
    assert_ne!(polled[0], polled[1]);
}
