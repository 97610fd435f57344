//! What is received, into which buffers, and how failures are noticed while nobody receives.

use rustix::io::Errno;

use super::*;
use crate::engine::RECEIVE_BUDGET;
use crate::engine::buffer::CHUNK_SIZE;

// Receiving.

#[test]
fn nothing_is_received_before_somebody_asks() {
    let mut world = World::new();
    let (token, socket) = world.open(0);
    world.kernel.arrives(socket, b"early");
    assert_eq!(world.turn(), [""; 0]);
    world.driver().receive(token);
    assert_eq!(world.turn(), ["0 received early"]);
}

#[test]
fn what_arrives_is_received_in_order_and_then_the_end() {
    let mut world = World::new();
    let (_, socket) = world.reader(0);
    world.kernel.arrives(socket, b"one");
    assert_eq!(world.turn(), ["0 received one"]);
    world.kernel.arrives(socket, b"two");
    world.kernel.peer_ends(socket);
    assert_eq!(world.turn(), ["0 received two", "0 ended"]);
    assert_eq!(world.turn(), [""; 0], "the end comes once");
}

#[test]
fn a_pause_takes_effect_at_once_and_what_came_too_late_is_held_in_order() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.kernel.state().stuck.insert(Key::new(Kind::Receive, token));
    world.driver().pause(token);
    for late in [&b"first"[..], b"second"] {
        let buffer = world.kernel.fills(late);
        world.kernel.completes(Key::new(Kind::Receive, token), late.len() as i32, true, Some(buffer));
    }
    assert_eq!(world.turn(), [""; 0]);
    world.kernel.arrives(socket, b"third");
    world.driver().receive(token);
    assert_eq!(world.turn(), ["0 received first", "0 received second"]);
    world.kernel.state().stuck.clear();
    assert_eq!(world.turn(), ["0 received third"]);
}

#[test]
fn what_is_held_comes_before_what_arrives_later_in_the_same_turn() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.driver().pause(token);
    world.late(token, b"held");
    assert_eq!(world.turn(), [""; 0]);
    world.driver().receive(token);
    world.driver().submit(false).expect("it enters");
    world.kernel.arrives(socket, b"new");
    assert_eq!(world.turn(), ["0 received held", "0 received new"]);
}

#[test]
fn an_end_is_told_once_while_nobody_receives_and_does_not_make_the_engine_spin() {
    let mut world = World::new();
    let (token, socket) = world.open(0);
    world.turn();
    world.kernel.arrives(socket, b"unread");
    world.kernel.peer_ends(socket);
    assert_eq!(world.settle(), ["0 hung up"]);
    world.driver().receive(token);
    world.driver().pause(token);
    assert_eq!(world.settle(), [""; 0]);
    world.driver().receive(token);
    assert_eq!(world.settle(), ["0 received unread", "0 ended"]);
}

#[test]
fn an_end_that_came_while_paused_is_known_at_once_and_waits_for_the_next_receive() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.kernel.state().stuck.insert(Key::new(Kind::Receive, token));
    world.kernel.state().stuck.insert(Key::new(Kind::Broken, token));
    world.driver().pause(token);
    world.late(token, b"last");
    world.kernel.completes(Key::new(Kind::Receive, token), 0, false, None);
    world.kernel.peer_ends(socket);
    assert_eq!(world.turn(), ["0 hung up"]);
    world.kernel.state().stuck.clear();
    assert_eq!(world.settle(), [""; 0]);
    world.driver().receive(token);
    assert_eq!(world.settle(), ["0 received last", "0 ended"]);
}

#[test]
fn a_bulk_reader_that_pauses_before_the_end_is_told_of_it() {
    for pauses_first in [true, false] {
        let mut world = World::new();
        let (token, socket) = world.reader(0);
        world.stream(socket, 8 * BUFFER);
        assert!(world.is_bulk(token));
        world.settle();
        if pauses_first {
            world.driver().pause(token);
        }
        world.kernel.arrives(socket, &[b'x'; 3 * CHUNK_SIZE]);
        world.kernel.peer_ends(socket);
        if !pauses_first {
            world.driver().wait(Some(Time::ZERO)).expect("it waits");
            assert!(matches!(world.driver().next(), Some(Completion::Received { .. })));
            world.driver().pause(token);
        }
        assert_eq!(world.settle(), ["0 hung up"]);
    }
}

#[test]
fn a_receive_that_ends_without_a_word_is_made_again() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    let buffer = world.kernel.fills(b"last words");
    world.kernel.completes(Key::new(Kind::Receive, token), 10, false, Some(buffer));
    assert_eq!(world.turn(), ["0 received last words"]);
    world.kernel.arrives(socket, b"more");
    assert_eq!(world.turn(), ["0 received more"]);
}

#[test]
fn a_failure_comes_after_the_bytes_before_it_and_once() {
    let mut world = World::new();
    let (_, socket) = world.reader(0);
    world.kernel.arrives(socket, b"bye");
    world.kernel.breaks(socket, Errno::CONNRESET);
    assert_eq!(world.turn(), ["0 received bye", "0 failed ConnectionReset"]);
    assert_eq!(world.turn(), [""; 0]);
}

#[test]
fn bytes_without_a_buffer_are_a_failure_and_no_crash() {
    let mut world = World::new();
    let (token, _) = world.reader(0);
    world.kernel.completes(Key::new(Kind::Receive, token), 5, false, None);
    assert_eq!(world.turn(), ["0 failed Uncategorized"]);
}

#[test]
fn a_buffer_that_an_end_took_along_comes_back() {
    let mut world = World::new();
    let (token, _) = world.reader(0);
    let buffer = world.kernel.fills(b"");
    world.kernel.completes(Key::new(Kind::Receive, token), 0, false, Some(buffer));
    assert_eq!(world.turn(), ["0 ended"]);
}

// Buffers.

#[test]
fn who_finds_no_buffer_waits_until_there_is_one_and_does_not_spin() {
    let mut world = World::new();
    world.keep_chunks();
    let (token, socket) = world.reader(0);
    // Leases must not end the pool before the test does: all buffers are taken by hand.
    let taken: Vec<_> = world.take_all_buffers();
    world.kernel.arrives(socket, b"x");
    world.turn();
    let submitted = world.kernel.state().submitted.len();
    let enters = world.kernel.state().enters;
    for _ in 0..10 {
        assert_eq!(world.turn(), [""; 0]);
    }
    assert_eq!(world.kernel.state().submitted.len(), submitted, "nothing is asked for again and again");
    assert!(world.kernel.state().enters <= enters + 10, "one enter for each wait");
    drop(taken);
    assert_eq!(world.turn(), ["0 received x"]);
    assert!(world.kernel.in_flight().contains(&Key::new(Kind::Receive, token)));
}

#[test]
fn a_starved_receive_that_is_paused_and_asked_for_again_is_made_once() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    let taken = world.take_all_buffers();
    world.kernel.arrives(socket, b"x");
    world.turn();
    world.driver().pause(token);
    world.driver().receive(token);
    world.turn();
    drop(taken);
    assert_eq!(world.turn(), ["0 received x"]);
}

#[test]
fn too_few_published_buffers_widen_the_window() {
    let mut world = World::new();
    let (_, socket) = world.reader(0);
    assert_eq!(world.buffers.published(), SIZES.window);
    world.kernel.arrives(socket, &[b'.'; 5 * BUFFER - 1]);
    world.settle();
    world.turn();
    assert_eq!(world.buffers.published(), 2 * SIZES.window);
}

#[test]
fn when_buffers_are_scarce_those_who_hold_chunks_get_copies() {
    let mut world = World::new();
    world.keep_chunks();
    let (_, socket) = world.reader(0);
    for _ in 0..3 * SIZES.buffers {
        world.kernel.arrives(socket, b"x");
        assert_eq!(world.turn(), ["0 received x"]);
    }
    let leased = usize::from(world.buffers.count() - world.buffers.published()) - world.buffers.free();
    assert_eq!(leased, usize::from(SIZES.buffers) * 3 / 4, "the rest of the chunks is in memory of its own");
}

#[test]
fn a_chunk_outlives_the_engine() {
    let mut world = World::new();
    world.keep_chunks();
    let (_, socket) = world.reader(0);
    world.kernel.arrives(socket, b"still here");
    world.turn();
    let chunk = world.chunks.as_mut().and_then(Vec::pop).expect("a chunk");
    drop(world);
    assert_eq!(&chunk[..], b"still here");
}

#[test]
fn a_completion_that_nobody_waits_for_gives_its_buffer_back() {
    let mut world = World::new();
    world.turn();
    let buffer = world.kernel.fills(b"stray");
    world.kernel.completes(Key::new(Kind::Receive, token(7, 1)), 5, true, Some(buffer));
    assert_eq!(world.turn(), [""; 0]);
}

// Bulk.

#[test]
fn full_buffers_lead_to_bulk_and_light_reads_back() {
    for caps in [true, false] {
        let mut world = World::new();
        world.kernel.state().caps = caps;
        let (token, socket) = world.reader(0);
        let mut received = world.stream(socket, 200_000);
        assert!(world.is_bulk(token), "caps {caps}");
        for _ in 0..10 {
            assert!(world.is_bulk(token));
            received += world.stream(socket, 1);
            if !world.is_bulk(token) {
                break;
            }
        }
        assert!(!world.is_bulk(token), "caps {caps}");
        received += world.stream(socket, 1);
        assert!(received > 200_000);
    }
}

#[test]
fn in_bulk_no_connection_gets_more_than_its_share_of_a_turn() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.stream(socket, 100_000);
    assert!(world.is_bulk(token));
    let many = RECEIVE_BUDGET + 2;
    world.kernel.arrives(socket, &vec![0; many * CHUNK_SIZE]);
    let full = format!("0 received {CHUNK_SIZE} bytes");
    assert_eq!(world.turn(), vec![full.clone(); RECEIVE_BUDGET]);
    assert_eq!(world.turn(), vec![full; 2], "without another command");
}

#[test]
fn bulk_ends_and_fails_like_anything_else() {
    for (errno, last) in [(None, "0 ended"), (Some(Errno::CONNRESET), "0 failed ConnectionReset")] {
        let mut world = World::new();
        let (token, socket) = world.reader(0);
        world.stream(socket, 100_000);
        assert!(world.is_bulk(token));
        world.kernel.arrives(socket, b"end");
        match errno {
            None => world.kernel.peer_ends(socket),
            Some(errno) => world.kernel.breaks(socket, errno),
        }
        assert_eq!(world.settle(), ["0 received end", last]);
    }
}

#[test]
fn a_pause_in_bulk_leaves_the_bytes_in_the_socket() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.stream(socket, 100_000);
    world.driver().pause(token);
    world.kernel.arrives(socket, b"later");
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.kernel.unread(socket), 5);
    world.driver().receive(token);
    assert_eq!(world.settle(), ["0 received later"]);
}

// Failures while nobody receives.

#[test]
fn a_failure_is_noticed_while_paused_and_told_once() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.driver().pause(token);
    world.settle();
    world.kernel.breaks(socket, Errno::CONNRESET);
    assert_eq!(world.settle(), ["0 broken ConnectionReset"]);
    world.driver().receive(token);
    assert_eq!(world.settle(), ["0 ended"], "which is all that is left");
}

#[test]
fn a_failure_is_noticed_before_anybody_has_asked_for_bytes() {
    let mut world = World::new();
    let (_, opened) = world.open(0);
    let (token, connected) = world.connect(1);
    world.driver().pause(token);
    world.kernel.connects(connected, Ok(()));
    assert_eq!(world.settle(), ["1 connected"]);
    world.kernel.breaks(opened, Errno::CONNRESET);
    assert_eq!(world.settle(), ["0 broken ConnectionReset"]);
    world.kernel.breaks(connected, Errno::TIMEDOUT);
    assert_eq!(world.settle(), ["1 broken TimedOut"]);
    world.close(token, false);
}

#[test]
fn a_failure_is_noticed_after_the_peers_end() {
    let mut world = World::new();
    let (_, socket) = world.reader(0);
    world.kernel.peer_ends(socket);
    assert_eq!(world.settle(), ["0 ended"]);
    world.kernel.breaks(socket, Errno::TIMEDOUT);
    assert_eq!(world.settle(), ["0 failed TimedOut"]);
}

#[test]
fn a_failure_is_noticed_when_bulk_is_paused() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.stream(socket, 100_000);
    world.driver().pause(token);
    world.kernel.arrives(socket, b"unread");
    assert_eq!(world.settle(), [""; 0]);
    world.kernel.breaks(socket, Errno::CONNRESET);
    assert_eq!(world.settle(), ["0 broken ConnectionReset"]);
    assert_eq!(world.settle(), [""; 0]);
    world.driver().receive(token);
    assert_eq!(world.settle(), ["0 received unread", "0 ended"]);
}

#[test]
fn a_failure_that_came_just_before_a_pause_is_told_all_the_same() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.driver().pause(token);
    world.settle();
    world.driver().receive(token);
    world.settle();
    // The watch tells first, and is not asked; then the receive is cancelled before it could tell.
    world.kernel.state().stuck.insert(Key::new(Kind::Receive, token));
    world.kernel.breaks(socket, Errno::CONNRESET);
    assert_eq!(world.turn(), [""; 0]);
    world.driver().pause(token);
    assert_eq!(world.settle(), ["0 broken ConnectionReset"]);
}

#[test]
fn what_is_held_is_received_after_a_failure() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.driver().pause(token);
    world.late(token, b"held");
    world.settle();
    world.kernel.breaks(socket, Errno::CONNRESET);
    assert_eq!(world.settle(), ["0 broken ConnectionReset"]);
    world.driver().receive(token);
    assert_eq!(world.settle(), ["0 received held", "0 ended"]);
}

#[test]
fn a_failure_behind_held_bytes_is_told_before_them_unless_somebody_receives_them() {
    for receives_first in [false, true] {
        let mut world = World::new();
        let (token, socket) = world.reader(0);
        world.kernel.state().stuck.insert(Key::new(Kind::Receive, token));
        world.driver().pause(token);
        world.late(token, b"held");
        world.late(token, b"more");
        world.kernel.breaks(socket, Errno::CONNRESET);
        world.kernel.completes(Key::new(Kind::Receive, token), -Errno::CONNRESET.raw_os_error(), false, None);
        world.kernel.state().stuck.insert(Key::new(Kind::Broken, token));
        if receives_first {
            world.driver().receive(token);
            world.driver().wait(Some(Time::ZERO)).expect("it waits");
            assert!(matches!(world.driver().next(), Some(Completion::Received { .. })));
            world.driver().pause(token);
        }
        assert_eq!(world.settle(), ["0 broken ConnectionReset"]);
        world.driver().receive(token);
        let held = ["0 received held", "0 received more", "0 ended"];
        assert_eq!(world.settle(), held[usize::from(receives_first)..]);
    }
}
