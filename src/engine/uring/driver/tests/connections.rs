//! Connecting and closing.

use rustix::io::Errno;

use super::*;

// Connecting.

#[test]
fn a_connect_is_told_once_and_receives_if_that_was_asked_for_before() {
    let mut world = World::new();
    let (token, socket) = world.connect(0);
    world.driver().receive(token);
    assert_eq!(world.turn(), [""; 0]);
    world.kernel.connects(socket, Ok(()));
    assert_eq!(world.turn(), ["0 connected"]);
    world.kernel.arrives(socket, b"hello");
    assert_eq!(world.turn(), ["0 received hello"]);
    world.close(token, false);
}

#[test]
fn a_connect_that_fails_still_has_to_be_closed() {
    let mut world = World::new();
    let (token, socket) = world.connect(0);
    world.kernel.connects(socket, Err(Errno::CONNREFUSED));
    world.driver().receive(token);
    assert_eq!(world.settle(), ["0 not connected ConnectionRefused"]);
    world.driver().pause(token);
    assert_eq!(world.settle(), [""; 0]);
    world.close(token, false);
}

#[test]
fn a_connect_that_succeeds_against_its_cancel_is_closed_all_the_same() {
    let mut world = World::new();
    let (token, socket) = world.connect(0);
    world.turn();
    world.kernel.connects(socket, Ok(()));
    world.kernel.state().cancels = Cancels::TooLate;
    world.driver().close(token, false);
    assert_eq!(world.settle(), ["0 closed"]);
    assert_eq!(world.kernel.closed(socket), Some(false));
}

// Closing.

#[test]
fn a_close_in_every_state_is_told_once_and_keeps_its_way() {
    for reset in [false, true] {
        for (name, prepare) in STATES {
            for cancels in CANCELS {
                let mut world = World::new();
                let (token, socket) = prepare(&mut world);
                world.kernel.state().cancels = cancels;
                world.driver().close(token, reset);
                let seen = world.settle();
                let closed = seen.iter().filter(|told| told.starts_with("0 closed")).count();
                assert_eq!((closed, seen.len()), (1, 1), "{name}, {cancels:?}: {seen:?}");
                assert_eq!(world.kernel.closed(socket), Some(reset), "{name}");
            }
        }
    }
}

type Prepare = fn(&mut World) -> (Token, SocketId);

const STATES: [(&str, Prepare); 12] = [
    ("idle", |world| world.open(0)),
    ("connecting", |world| world.connect(0)),
    ("connecting in the ring", |world| {
        let connecting = world.connect(0);
        world.turn();
        connecting
    }),
    ("receiving", |world| world.reader(0)),
    ("with data on the way", |world| {
        let reader = world.reader(0);
        world.kernel.arrives(reader.1, b"unread");
        world.driver().submit(false).expect("it enters");
        reader
    }),
    ("sending", |world| {
        let full = world.full(0);
        world.send(full.0, "hello");
        world.turn();
        full
    }),
    ("handing over", |world| {
        let open = world.open(0);
        world.driver().expect_sends(100);
        world.send(open.0, "hello");
        open
    }),
    ("paused", |world| {
        let reader = world.reader(0);
        world.driver().pause(reader.0);
        world.turn();
        reader
    }),
    ("holding", |world| {
        let reader = world.reader(0);
        world.driver().pause(reader.0);
        world.late(reader.0, b"held");
        world.settle();
        reader
    }),
    ("bulk", |world| {
        let reader = world.reader(0);
        world.stream(reader.1, 100_000);
        reader
    }),
    ("ended", |world| {
        let reader = world.reader(0);
        world.kernel.peer_ends(reader.1);
        world.settle();
        reader
    }),
    ("failed", |world| {
        let reader = world.reader(0);
        world.kernel.breaks(reader.1, Errno::CONNRESET);
        world.settle();
        reader
    }),
];

#[test]
fn what_arrives_after_a_close_is_thrown_away_and_its_buffer_comes_back() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.kernel.state().stuck.insert(Key::new(Kind::Receive, token));
    world.driver().close(token, false);
    world.late(token, b"too late");
    world.kernel.arrives(socket, b"even later");
    world.kernel.state().cancels = Cancels::TooLate;
    assert_eq!(world.settle(), ["0 closed"]);
}

#[test]
fn nothing_is_told_of_a_closed_token_and_commands_with_it_do_nothing() {
    let mut world = World::new();
    let (old, _) = world.reader(0);
    world.close(old, false);
    let (token, socket) = world.open_as(Token { index: 0, generation: 2 });
    world.settle();
    let submitted = world.kernel.state().submitted.len();
    world.driver().receive(old);
    world.driver().pause(old);
    world.driver().close(old, true);
    assert!(matches!(world.send(old, "old"), Submitted::Done(Err(_))));
    assert!(world.driver().send_now(old, b"old").is_err());
    assert_eq!(world.driver().shutdown(old).ok(), Some(0));
    assert!(world.driver().local_addr(old).is_err());
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.state().submitted.len(), submitted);
    assert_eq!((world.kernel.sent(socket), world.kernel.closed(socket)), (vec![], None));
    world.close(token, false);
}

#[test]
fn a_slot_is_kept_until_the_last_completion() {
    let mut world = World::new();
    let (token, socket) = world.full(0);
    world.driver().receive(token);
    world.send(token, "hello");
    world.settle();
    world.kernel.state().cancels = Cancels::Slowly;
    world.driver().close(token, false);
    assert_eq!(world.turn(), [""; 0]);
    assert_eq!(world.kernel.closed(socket), None);
    assert_eq!(world.settle(), ["0 closed with 5"]);
    assert_eq!(world.kernel.closed(socket), Some(false));
}

#[test]
fn a_cancel_that_is_late_never_hits_the_next_user_of_the_slot() {
    let mut world = World::new();
    let (old, _) = world.reader(0);
    world.kernel.state().enter_fails.extend([Errno::BUSY; 20]);
    // Fill the queue, so that the cancel waits in the backlog.
    for index in 1..10 {
        let (token, _) = world.open(index);
        world.driver().receive(token);
    }
    world.driver().close(old, false);
    world.kernel.completes(Key::new(Kind::Receive, old), 0, false, None);
    world.driver().submit(false).expect("busy is no error");
    assert_eq!(world.told(), ["0 closed"]);
    let (token, socket) = world.open_as(Token { index: 0, generation: 2 });
    world.driver().receive(token);
    world.kernel.state().enter_fails.clear();
    world.settle();
    world.kernel.arrives(socket, b"mine");
    assert_eq!(world.settle(), ["0 received mine"]);
}
