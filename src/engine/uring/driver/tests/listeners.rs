//! Listeners.

use rustix::io::Errno;

use super::*;
use crate::engine::ACCEPT_BUDGET;

#[test]
fn a_listener_accepts_until_it_is_paused_and_again_when_it_is_resumed() {
    let mut world = World::new();
    let listener = world.listen();
    world.knock(listener, 2);
    assert_eq!(world.settle(), ["accepted", "accepted"]);
    world.driver().pause_accept(LISTENER);
    world.knock(listener, 1);
    assert_eq!(world.settle(), [""; 0]);
    world.driver().resume_accept(LISTENER);
    assert_eq!(world.settle(), ["accepted"]);
    world.knock(listener, 1);
    assert_eq!(world.settle(), ["accepted"]);
}

#[test]
fn a_listener_that_is_paused_between_two_accepts_stops_there() {
    let mut world = World::new();
    let listener = world.listen();
    world.knock(listener, 3);
    world.driver().wait(Some(Time::ZERO)).expect("it waits");
    let first = world.driver().next();
    assert!(matches!(first, Some(Completion::Accepted { .. })));
    world.driver().pause_accept(LISTENER);
    assert_eq!(world.settle(), [""; 0]);
    world.driver().resume_accept(LISTENER);
    assert_eq!(world.settle(), ["accepted", "accepted"]);
}

#[test]
fn an_error_ends_accepting_until_it_is_resumed() {
    let mut world = World::new();
    let listener = world.listen();
    world.kernel.knocks(listener, Some(Errno::MFILE));
    world.knock(listener, 1);
    assert_eq!(world.settle(), ["not accepted"]);
    let enters = world.kernel.state().submitted.len();
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.state().submitted.len(), enters, "it does not spin");
    world.driver().resume_accept(LISTENER);
    assert_eq!(world.settle(), ["accepted"]);
}

#[test]
fn an_interrupted_accept_is_made_again() {
    let mut world = World::new();
    let listener = world.listen();
    world.kernel.knocks(listener, Some(Errno::INTR));
    world.knock(listener, 1);
    assert_eq!(world.settle(), ["accepted"]);
}

#[test]
fn no_listener_accepts_more_than_its_share_of_a_turn() {
    let mut world = World::new();
    let listener = world.listen();
    world.turn();
    world.knock(listener, ACCEPT_BUDGET + 5);
    assert_eq!(world.turn().len(), ACCEPT_BUDGET);
    assert_eq!(world.turn().len(), 5);
}

#[test]
fn a_closed_listener_accepts_nothing_more_and_its_number_can_be_used_again() {
    let mut world = World::new();
    let old = world.listen();
    world.turn();
    world.knock(old, 1);
    drop(world.driver().unlisten(LISTENER));
    assert_eq!(world.kernel.open_descriptors(), 0, "its poll is gone, too");
    let listener = world.listen();
    assert_eq!(world.settle(), [""; 0]);
    world.knock(listener, 1);
    assert_eq!(world.settle(), ["accepted"]);
    world.driver().pause_accept(ListenerId(9));
    world.driver().resume_accept(ListenerId(9));
    assert!(world.driver().unlisten(ListenerId(9)).is_none());
}

#[test]
fn a_listener_is_closed_for_good_also_by_a_kernel_that_is_busy() {
    let mut world = World::new();
    world.listen();
    world.kernel.state().enter_fails.extend([Errno::BUSY; 3]);
    drop(world.driver().unlisten(LISTENER));
    let accept = world.kernel.in_flight().into_iter().find(|key| key.kind() == Some(Kind::Accept));
    assert_eq!((accept, world.kernel.open_descriptors()), (None, 0));
    assert!(world.kernel.state().enter_fails.is_empty());
}
