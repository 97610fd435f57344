//! Sending: inline, in flight, and handed over.

use rustix::io::Errno;

use super::*;
use crate::engine::HANDED_MAX;

// Sending.

#[test]
fn a_send_with_room_is_done_inline() {
    let mut world = World::new();
    let (token, socket) = world.open(0);
    let mut outgoing = outgoing(&["hello ", "world"]);
    let submitted = world.driver().send(token, &mut outgoing);
    assert!(matches!(submitted, Submitted::Done(Ok(11))), "{submitted:?}");
    assert_eq!(outgoing.len(), 11, "it stays with the caller");
    assert_eq!(world.kernel.sent(socket), b"hello world");
}

#[test]
fn a_send_without_room_is_in_flight_and_comes_back_short() {
    let mut world = World::new();
    let (token, socket) = world.full(0);
    assert!(matches!(world.send(token, "hello"), Submitted::InFlight));
    assert_eq!(world.turn(), [""; 0]);
    world.kernel.makes_room(socket, 3);
    assert_eq!(world.turn(), ["0 sent 3 of 5"]);
    assert_eq!(world.kernel.sent(socket), b"hel");
}

#[test]
fn a_send_that_fails_brings_its_bytes_back() {
    let mut world = World::new();
    let (token, socket) = world.full(0);
    world.send(token, "hello");
    world.kernel.breaks(socket, Errno::CONNRESET);
    assert_eq!(world.turn(), ["0 not sent ConnectionReset of 5", "0 hung up"]);
}

#[test]
fn an_interrupted_send_is_a_send_of_nothing() {
    for errno in [Errno::INTR, Errno::AGAIN] {
        let mut world = World::new();
        let (token, _) = world.full(0);
        world.send(token, "hello");
        world.turn();
        world.kernel.completes(Key::new(Kind::Send, token), -errno.raw_os_error(), false, None);
        assert_eq!(world.turn(), ["0 sent 0 of 5"]);
    }
}

#[test]
fn the_bytes_of_a_send_in_flight_come_back_with_the_close() {
    for cancels in CANCELS {
        let mut world = World::new();
        let (token, socket) = world.full(0);
        world.send(token, "hello");
        world.turn();
        world.kernel.makes_room(socket, 100);
        world.kernel.state().cancels = cancels;
        world.driver().close(token, false);
        assert_eq!(world.settle(), ["0 closed with 5"], "{cancels:?}");
    }
}

#[test]
fn lent_bytes_go_as_far_as_there_is_room_and_never_overtake() {
    let mut world = World::new();
    let (token, socket) = world.full(0);
    assert_eq!(world.driver().send_now(token, b"nothing").ok(), Some(0));
    world.kernel.makes_room(socket, 3);
    assert_eq!(world.driver().send_now(token, b"hello").ok(), Some(3));
    world.send(token, "lo");
    world.kernel.makes_room(socket, 10);
    assert_eq!(world.driver().send_now(token, b" world").ok(), Some(0), "a send is in flight");
    assert_eq!(world.turn(), ["0 sent 2 of 2"]);
    assert_eq!(world.driver().send_now(token, b"!").ok(), Some(1));
    assert_eq!(world.kernel.sent(socket), b"hello!");
}

// Handing over.

#[test]
fn bytes_that_are_handed_over_are_sent_together_and_say_nothing() {
    let mut world = World::new();
    world.driver().expect_sends(100);
    let sockets: Vec<_> = (0..5).map(|index| world.open(index)).collect();
    world.turn();
    let enters = world.kernel.state().enters;
    for (token, _) in &sockets {
        assert!(matches!(world.send(*token, "hello"), Submitted::Handed));
    }
    assert_eq!(world.turn(), [""; 0]);
    assert_eq!(world.kernel.state().enters, enters + 1);
    assert!(sockets.iter().all(|(_, socket)| world.kernel.sent(*socket) == b"hello"));
}

#[test]
fn only_so_many_bytes_of_a_connection_are_handed_over() {
    let mut world = World::new();
    world.driver().expect_sends(100);
    let (most, _) = world.open(0);
    let (more, _) = world.full(1);
    let mut submit = |token, len| {
        let mut outgoing = Outgoing::default();
        outgoing.push_owned(Bytes::from(vec![0; len]));
        world.driver().send(token, &mut outgoing)
    };
    assert!(matches!(submit(most, HANDED_MAX), Submitted::Handed));
    assert!(matches!(submit(more, HANDED_MAX + 1), Submitted::InFlight));
}

#[test]
fn more_sends_than_the_queue_holds_are_all_made() {
    let mut world = World::new();
    world.driver().expect_sends(100);
    let sockets: Vec<_> = (0..30).map(|index| world.open(index)).collect();
    for (token, _) in &sockets {
        world.send(*token, "hello");
    }
    world.settle();
    assert!(sockets.iter().all(|(_, socket)| world.kernel.sent(*socket) == b"hello"));
}

#[test]
fn what_is_handed_over_waits_for_a_kernel_that_takes_nothing() {
    let mut world = World::new();
    world.driver().expect_sends(100);
    let sockets: Vec<_> = (0..30).map(|index| world.open(index)).collect();
    world.turn();
    world.kernel.state().enter_fails.extend([Errno::BUSY; 40]);
    for (token, _) in &sockets {
        world.send(*token, "hello");
    }
    world.turn();
    assert!(sockets.iter().all(|(_, socket)| world.kernel.sent(*socket).is_empty()));
    world.kernel.state().enter_fails.clear();
    world.kernel.state().submits_at_most = Some(3);
    world.settle();
    assert!(sockets.iter().all(|(_, socket)| world.kernel.sent(*socket) == b"hello"));
}

#[test]
fn what_does_not_fit_bounces_and_is_sent_when_there_is_room() {
    let mut world = World::new();
    let (token, socket) = world.full(0);
    world.kernel.makes_room(socket, 2);
    world.driver().expect_sends(100);
    assert!(matches!(world.send(token, "hello"), Submitted::Handed));
    assert_eq!(world.turn(), ["0 bounced 3"]);
    world.kernel.makes_room(socket, 100);
    assert_eq!(world.settle(), ["0 sent 3 of 3"]);
    assert_eq!(world.kernel.sent(socket), b"hello");
}

#[test]
fn a_refusal_is_noticed_however_the_submission_is_cut() {
    let mut world = World::new();
    let (first, full) = world.full(0);
    let (second, _) = world.open(1);
    world.turn();
    world.driver().expect_sends(100);
    world.send(first, "hello");
    world.send(second, "hello");
    world.kernel.state().submits_at_most = Some(1);
    world.turn();
    world.kernel.makes_room(full, 100);
    world.settle();
    assert_eq!(world.kernel.sent(full), b"hello");
}

#[test]
fn a_refusal_that_found_the_completion_queue_full_is_noticed() {
    let mut world = World::of(Sizes { completions: 4, ..SIZES });
    world.turn();
    let sockets: Vec<_> = (0..8).map(|index| world.full(index)).collect();
    world.driver().expect_sends(100);
    for (token, _) in &sockets {
        world.send(*token, "hello");
    }
    let mut seen = world.settle();
    seen.sort();
    assert_eq!(seen, (0..8).map(|index| format!("{index} bounced 5")).collect::<Vec<_>>());
}

#[test]
fn what_follows_handed_over_bytes_waits_for_them_but_not_for_others() {
    for room in [0, 3, 100] {
        let mut world = World::new();
        let (token, socket) = world.full(0);
        world.settle();
        world.kernel.makes_room(socket, room);
        world.driver().expect_sends(100);
        assert!(matches!(world.send(token, "hello"), Submitted::Handed));
        assert!(matches!(world.send(token, " world"), Submitted::InFlight));
        let sleeps = world.kernel.state().sleeps;
        world.wait_for_ever();
        assert_eq!(world.kernel.state().sleeps, sleeps, "nothing else would wake it");
        world.kernel.makes_room(socket, 100);
        let told = world.settle();
        // What bounced comes back in one piece with what waited behind it, and is sent piece by piece.
        let (sent, last) = match room {
            0 => ("hello", "0 sent 5 of 11"),
            3 => ("hello", "0 sent 2 of 8"),
            _ => ("hello world", "0 sent 6 of 6"),
        };
        assert_eq!(told.last().map(String::as_str), Some(last));
        assert_eq!(world.kernel.sent(socket), sent.as_bytes());
    }
}

#[test]
fn what_follows_refused_bytes_does_not_make_the_engine_spin() {
    let mut world = World::new();
    let (token, _) = world.full(0);
    world.settle();
    world.driver().expect_sends(100);
    world.send(token, "hello");
    world.driver().submit(false).expect("it enters");
    world.send(token, " world");
    assert_eq!(world.settle(), ["0 bounced 5"]);
    world.wait_for_ever();
    assert_eq!(world.kernel.state().sleeps, 1);
}

#[test]
fn a_close_behind_handed_over_bytes_is_told_without_waiting_for_others() {
    let mut world = World::new();
    let (token, socket) = world.open(0);
    world.settle();
    world.driver().expect_sends(100);
    world.send(token, "bye");
    world.driver().close(token, false);
    world.wait_for_ever();
    assert_eq!(world.kernel.state().sleeps, 0);
    assert_eq!(world.settle(), ["0 closed"]);
    assert_eq!(world.kernel.sent(socket), b"bye");
}

#[test]
fn handed_over_bytes_that_the_kernel_fails_to_send_come_back_with_what_it_said_first() {
    let mut world = World::new();
    let (token, socket) = world.open(0);
    world.driver().expect_sends(100);
    world.send(token, "hello");
    world.kernel.breaks(socket, Errno::PIPE);
    assert_eq!(world.settle(), ["0 bounced 5", "0 hung up", "0 not sent BrokenPipe of 5"]);
    world.driver().close(token, false);
    assert_eq!(world.settle(), ["0 closed"]);
}

#[test]
fn handed_over_bytes_are_unacknowledged_until_the_peer_has_them() {
    for size in [5, 3000] {
        let mut world = World::new();
        let (token, socket) = world.reader(0);
        world.driver().expect_sends(100);
        let bytes: &'static [u8] = &[b'x'; 3000];
        if size == 5 {
            assert_eq!(world.driver().send_now(token, &bytes[..size]).expect("it takes them"), size);
        } else {
            let mut outgoing = Outgoing::default();
            outgoing.push_owned(Bytes::from_static(&bytes[..size]));
            assert!(matches!(world.driver().send(token, &mut outgoing), Submitted::Handed));
        }
        assert_eq!(world.kernel.sent(socket), b"", "not submitted");
        assert_eq!(world.driver().unacked(token).expect("it stands"), size);
        world.settle();
        assert_eq!(world.driver().unacked(token).expect("it stands"), size);
        world.kernel.acknowledges(socket);
        assert_eq!(world.driver().unacked(token).expect("it stands"), 0);
        world.close(token, false);
        assert!(world.driver().unacked(token).is_err());
    }
}

#[test]
fn a_shutdown_never_overtakes_handed_over_bytes() {
    for (room, unsent) in [(100, 0), (2, 3)] {
        let mut world = World::new();
        let (token, socket) = world.full(0);
        let (other, _) = world.open(1);
        world.settle();
        world.kernel.makes_room(socket, room);
        world.driver().expect_sends(100);
        world.send(other, "first");
        world.send(token, "hello");
        world.kernel.state().enter_fails.push_back(Errno::INTR);
        world.kernel.state().submits_at_most = Some(1);
        assert_eq!(world.driver().shutdown(token).ok(), Some(unsent));
        world.kernel.makes_room(socket, 100);
        world.settle();
        assert_eq!(world.kernel.sent(socket), b"hello");
    }
}

#[test]
fn a_refusal_found_by_a_shutdown_leaves_no_request_behind() {
    let mut world = World::new();
    let (token, socket) = world.full(0);
    world.driver().expect_sends(100);
    world.send(token, "hello");
    assert_eq!(world.driver().shutdown(token).ok(), Some(5));
    world.kernel.makes_room(socket, 100);
    assert_eq!(world.settle(), ["0 sent 5 of 5"]);
    let in_flight = world.kernel.in_flight().len();
    assert_eq!(world.driver().in_flight, in_flight);
}
