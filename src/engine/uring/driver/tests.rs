//! The driver against a kernel that does what a test tells it.

#![allow(unsafe_code)] // one test takes back what the driver leaks on purpose

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use rustix::io::Errno;

use super::super::buffers::Buffers;
use super::super::kernel::{Key, Request};
use super::super::ring::{Sizes, is_transient};
use super::super::scripted::{Cancels, Scripted, SocketId};
use super::key::{Kind, NOBODY};
use super::{Driver, TEARDOWN};
use crate::config::SocketOptions;
use crate::engine::buffer::{CHUNK_SIZE, Chunk, Outgoing};
use crate::engine::{
    ACCEPT_BUDGET, Completion, HANDED_MAX, Listener, ListenerId, RECEIVE_BUDGET, Socket, Submitted, Token,
};
use crate::time::Time;

const SIZES: Sizes = Sizes { submissions: 8, completions: 16, buffers: 16, buffer_size: BUFFER, window: 4 };
const BUFFER: usize = 128;
const LISTENER: ListenerId = ListenerId(3);
const CANCELS: [Cancels; 4] = [Cancels::AtOnce, Cancels::TooLate, Cancels::HalfDone, Cancels::Slowly];

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
fn an_end_that_came_while_paused_waits_for_the_next_receive() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.kernel.state().stuck.insert(Key::new(Kind::Receive, token));
    world.driver().pause(token);
    world.late(token, b"last");
    world.kernel.completes(Key::new(Kind::Receive, token), 0, false, None);
    world.kernel.peer_ends(socket);
    assert_eq!(world.turn(), [""; 0]);
    world.driver().receive(token);
    assert_eq!(world.turn(), ["0 received last", "0 ended"]);
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
    assert_eq!(world.settle(), ["0 failed ConnectionReset"]);
    world.driver().receive(token);
    assert_eq!(world.settle(), [""; 0], "and nothing follows it");
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
    assert_eq!(world.settle(), ["0 failed ConnectionReset"]);
    world.kernel.breaks(connected, Errno::TIMEDOUT);
    assert_eq!(world.settle(), ["1 failed TimedOut"]);
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
    assert_eq!(world.settle(), ["0 failed ConnectionReset"]);
    assert_eq!(world.settle(), [""; 0]);
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
    assert_eq!(world.settle(), ["0 failed ConnectionReset"]);
}

#[test]
fn nothing_held_is_received_after_a_failure() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.driver().pause(token);
    world.late(token, b"held");
    world.settle();
    world.kernel.breaks(socket, Errno::CONNRESET);
    assert_eq!(world.settle(), ["0 failed ConnectionReset"]);
    world.driver().receive(token);
    assert_eq!(world.settle(), [""; 0]);
}

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
    assert_eq!(world.turn(), ["0 not sent ConnectionReset of 5"]);
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
fn handed_over_bytes_that_the_kernel_fails_to_send_are_a_failure() {
    let mut world = World::new();
    let (token, socket) = world.open(0);
    world.driver().expect_sends(100);
    world.send(token, "hello");
    world.kernel.breaks(socket, Errno::PIPE);
    assert_eq!(world.settle(), ["0 bounced 5", "0 failed BrokenPipe"]);
    world.driver().close(token, false);
    assert_eq!(world.settle(), ["0 closed with 5"]);
}

#[test]
fn a_failure_that_waits_behind_held_bytes_is_told_when_a_send_meets_it() {
    let mut world = World::new();
    let (token, socket) = world.reader(0);
    world.driver().pause(token);
    world.late(token, b"held");
    world.kernel.breaks(socket, Errno::CONNRESET);
    world.kernel.state().cancels = Cancels::TooLate;
    assert_eq!(world.settle(), [""; 0]);
    world.driver().expect_sends(100);
    world.send(token, "hello");
    assert_eq!(world.settle(), ["0 bounced 5", "0 failed BrokenPipe"]);
    world.driver().receive(token);
    assert_eq!(world.settle(), [""; 0]);
    world.driver().close(token, false);
    assert_eq!(world.settle(), ["0 closed with 5"]);
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

// Listeners.

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

// The end of the engine.

#[test]
fn an_engine_with_everything_in_flight_ends_it_all_before_its_memory_goes() {
    for cancels in CANCELS {
        let mut world = World::new();
        let listener = world.listen();
        for index in 0..6 {
            world.reader(index);
        }
        let (paused, _) = world.reader(6);
        world.driver().pause(paused);
        let (sending, _) = world.full(7);
        world.send(sending, "in flight");
        world.connect(8);
        let (bulk, socket) = world.reader(9);
        world.stream(socket, 100_000);
        assert!(world.is_bulk(bulk));
        world.turn();
        // What is handed over, in the queue, in the backlog, completed and not yet looked at.
        world.knock(listener, 1);
        world.kernel.arrives(socket, b"unseen");
        world.driver().submit(false).expect("it enters");
        world.driver().expect_sends(100);
        let (handed, _) = world.open(10);
        world.send(handed, "handed over");
        world.driver().receive(handed);
        world.kernel.state().enter_fails.extend([Errno::BUSY; 3]);
        for index in 11..30 {
            let (token, _) = world.open(index);
            world.driver().receive(token);
        }
        world.kernel.state().cancels = cancels;
        let started = std::time::Instant::now();
        world.end();
        assert!(started.elapsed() < TEARDOWN / 2, "nothing was waited for in vain");
        assert!(!world.kernel.state().abandoned);
    }
}

#[test]
fn a_kernel_that_never_answers_keeps_the_memory_that_it_may_write_to() {
    let mut world = World::new();
    let (token, _) = world.full(0);
    world.send(token, "in flight");
    world.turn();
    let in_flight: *const Outgoing =
        world.driver().connections[0].as_ref().and_then(|c| c.outgoing.as_deref()).expect("a send");
    world.kernel.state().deaf = true;
    let buffers: Weak<Buffers> = Rc::downgrade(&world.buffers);
    let started = std::time::Instant::now();
    world.driver = None;
    assert!(started.elapsed() < TEARDOWN * 2);
    assert!(world.kernel.state().abandoned);
    drop(world);
    assert_eq!(buffers.strong_count(), 1, "the leak");
    // SAFETY: leaked by the driver and by the kernel's `abandon`, so nobody else frees them.
    unsafe {
        assert_eq!((*in_flight).len(), 9);
        drop(Box::from_raw(in_flight.cast_mut()));
        Rc::decrement_strong_count(buffers.as_ptr());
    }
}

fn token(index: u32, generation: u32) -> Token {
    Token { index, generation }
}

fn outgoing(pieces: &[&'static str]) -> Outgoing {
    let mut outgoing = Outgoing::default();
    for piece in pieces {
        outgoing.push_owned(Bytes::from_static(piece.as_bytes()));
    }
    outgoing
}

/// A driver on a scripted kernel; when it goes, nothing may be left behind.
struct World {
    driver: Option<Driver<Scripted>>,
    kernel: Scripted,
    buffers: Rc<Buffers>,
    /// Received chunks, if they are kept.
    chunks: Option<Vec<Chunk>>,
}

impl World {
    fn new() -> World {
        World::of(SIZES)
    }

    fn of(sizes: Sizes) -> World {
        let (kernel, buffers) = Scripted::new(sizes);
        let driver = Driver::new(kernel.clone(), buffers.clone()).expect("an engine");
        World { driver: Some(driver), kernel, buffers, chunks: None }
    }

    fn driver(&mut self) -> &mut Driver<Scripted> {
        self.driver.as_mut().expect("it is there")
    }

    fn open(&mut self, index: u32) -> (Token, SocketId) {
        self.open_as(token(index, 1))
    }

    fn open_as(&mut self, token: Token) -> (Token, SocketId) {
        let (fd, id) = self.kernel.socket();
        self.driver().open(token, Socket::Os(fd)).expect("it opens");
        (token, id)
    }

    /// A connection that receives.
    fn reader(&mut self, index: u32) -> (Token, SocketId) {
        let (token, id) = self.open(index);
        self.driver().receive(token);
        self.turn();
        (token, id)
    }

    /// A connection whose socket has no room.
    fn full(&mut self, index: u32) -> (Token, SocketId) {
        let (token, id) = self.open(index);
        self.kernel.state().fill_up(id);
        (token, id)
    }

    fn connect(&mut self, index: u32) -> (Token, SocketId) {
        let peer: SocketAddr = "127.0.0.1:1".parse().expect("an address");
        let token = token(index, 1);
        self.driver().connect(token, &peer.into(), &SocketOptions::default()).expect("it begins to connect");
        let connection = self.driver().connections[index as usize].as_ref().expect("it is there");
        let fd = connection.socket.as_raw_fd();
        (token, self.kernel.made(fd))
    }

    fn listen(&mut self) -> SocketId {
        let (fd, id) = self.kernel.listener();
        self.driver().listen(LISTENER, Listener::Os(fd)).expect("it listens");
        id
    }

    fn knock(&mut self, listener: SocketId, count: usize) {
        for _ in 0..count {
            self.kernel.knocks(listener, None);
        }
    }

    fn send(&mut self, token: Token, bytes: &'static str) -> Submitted {
        self.driver().send(token, &mut outgoing(&[bytes]))
    }

    /// Completes the receive in flight with bytes, before it ends.
    fn late(&mut self, token: Token, bytes: &[u8]) {
        let buffer = self.kernel.fills(bytes);
        self.kernel.completes(Key::new(Kind::Receive, token), bytes.len() as i32, true, Some(buffer));
    }

    fn close(&mut self, token: Token, reset: bool) {
        self.driver().close(token, reset);
        assert_eq!(self.settle(), [format!("{} closed", token.index)]);
    }

    /// Sends `len` bytes through a connection that receives; returns how many came.
    fn stream(&mut self, socket: SocketId, len: usize) -> usize {
        self.kernel.arrives(socket, &vec![b'.'; len]);
        let seen = self.settle();
        assert_eq!(self.kernel.unread(socket), 0);
        seen.len().min(len).max(len)
    }

    fn is_bulk(&mut self, token: Token) -> bool {
        self.driver().connections[token.index as usize].as_ref().is_some_and(|connection| connection.is.bulk)
    }

    fn keep_chunks(&mut self) {
        self.chunks = Some(Vec::new());
    }

    /// Leases every buffer there is.
    fn take_all_buffers(&mut self) -> Vec<super::super::buffers::Lease> {
        let mut taken = Vec::new();
        loop {
            while self.kernel.has_buffers() {
                let id = self.kernel.fills(b"");
                taken.push(self.buffers.lease(id));
            }
            self.buffers.widen();
            let Some((id, _)) = self.buffers.publish() else { return taken };
            taken.push(self.buffers.lease(id));
        }
    }

    /// One turn, and what was told in it.
    fn turn(&mut self) -> Vec<String> {
        self.driver().wait(Some(Time::ZERO)).expect("it waits");
        self.told()
    }

    fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(completion) = self.driver().next() {
            told.push(self.describe(completion));
        }
        told
    }

    /// Turns until nothing happens any more.
    fn settle(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..200 {
            told.extend(self.turn());
        }
        told
    }

    fn wait_for_ever(&mut self) {
        self.driver().wait(None).expect("it waits");
    }

    fn describe(&mut self, completion: Completion) -> String {
        match completion {
            Completion::Accepted { .. } => String::from("accepted"),
            Completion::AcceptFailed { .. } => String::from("not accepted"),
            Completion::Connected { token, result: Ok(()) } => format!("{} connected", token.index),
            Completion::Connected { token, result: Err(error) } => {
                format!("{} not connected {:?}", token.index, error.kind())
            }
            Completion::Received { token, chunk } => {
                let text = std::str::from_utf8(&chunk).ok().filter(|text| text.len() < 20);
                let told = match text {
                    Some(text) => format!("{} received {text}", token.index),
                    None => format!("{} received {} bytes", token.index, chunk.len()),
                };
                if let Some(chunks) = &mut self.chunks {
                    chunks.push(chunk);
                }
                told
            }
            Completion::ReceiveEnded { token } => format!("{} ended", token.index),
            Completion::Failed { token, error } => format!("{} failed {:?}", token.index, error.kind()),
            Completion::Sent { token, outgoing, result: Ok(n) } => {
                format!("{} sent {n} of {}", token.index, outgoing.len())
            }
            Completion::Sent { token, outgoing, result: Err(error) } => {
                format!("{} not sent {:?} of {}", token.index, error.kind(), outgoing.len())
            }
            Completion::Bounced { token, unsent } => format!("{} bounced {unsent}", token.index),
            Completion::Closed { token, outgoing: None } => format!("{} closed", token.index),
            Completion::Closed { token, outgoing: Some(outgoing) } => {
                format!("{} closed with {}", token.index, outgoing.len())
            }
            Completion::Woken => String::from("woken"),
        }
    }

    /// Ends the engine and looks for what it left.
    fn end(&mut self) {
        self.driver = None;
        self.chunks = None;
        assert_eq!(self.kernel.in_flight(), [], "no request is left");
        assert_eq!(self.kernel.open_descriptors(), 0, "no descriptor is left");
        assert_eq!(
            usize::from(self.buffers.published()),
            self.kernel.provided(),
            "the kernel has its buffers"
        );
        let idle = usize::from(self.buffers.published()) + self.buffers.free();
        assert_eq!(idle, usize::from(self.buffers.count()), "every buffer came back");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let keeps_chunk = std::mem::take(&mut self.chunks).is_some();
        let abandoned = self.kernel.state().abandoned;
        if !std::thread::panicking() && !keeps_chunk && !abandoned {
            self.end();
        }
    }
}
