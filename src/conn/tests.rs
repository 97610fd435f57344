//! The core in single steps, where a sentence says more than a property.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::{Action, Conn, Hangup, Profile, Readable};
use crate::config::{Deadlines, Limits};
use crate::engine::buffer::{Chunk, PiecePool};
use crate::error::{CloseReason, Deadline};
use crate::time::Time;

const LINGER: Duration = Duration::from_secs(2);

fn open() -> Conn {
    let (limits, deadlines) = (Limits::default(), Deadlines::default().linger(LINGER));
    let mut conn = Conn::new(Rc::new(Profile { limits, deadlines, pieces: PiecePool::new() }), Time::ZERO);
    conn.connected(Time::ZERO);
    assert!(matches!(conn.next_action(Time::ZERO), Some(Action::Receive)));
    conn
}

/// A send of this connection fails.
fn fail_send(conn: &mut Conn, kind: io::ErrorKind) {
    conn.send(b"question");
    assert!(matches!(conn.next_action(Time::ZERO), Some(Action::Send)));
    conn.broke(&kind.into(), Time::ZERO);
    assert!(conn.next_action(Time::ZERO).is_none(), "receiving goes on");
}

#[test]
fn after_a_failed_send_no_other_is_possible_and_receiving_goes_on() {
    let mut conn = open();
    fail_send(&mut conn, io::ErrorKind::ConnectionReset);
    assert_eq!((conn.counts().unsent, conn.pending()), (8, 0));
    assert_eq!(conn.writable(), Err(CloseReason::PeerReset));
    assert_eq!(conn.hangup(), Some(Hangup::Closed(CloseReason::PeerReset)));
    assert!(!conn.is_flushed() && !conn.is_clear());
    assert!(conn.received(6, Time::ZERO));
    conn.deliver(Chunk::copied(b"answer"));
    assert_eq!(conn.readable(), Ok(Readable::Bytes(6)));
    conn.read(&mut [0; 6]);
    assert_eq!(conn.readable(), Ok(Readable::NotYet));
}

#[test]
fn the_end_behind_a_failed_send_is_in_order_only_if_it_came_before_the_reset() {
    let reset = (io::ErrorKind::ConnectionReset, Err(CloseReason::PeerReset));
    let reset_after_fin = (io::ErrorKind::BrokenPipe, Ok(Readable::Ended));
    for (kind, end) in [reset, reset_after_fin] {
        let mut conn = open();
        fail_send(&mut conn, kind);
        conn.receive_ended(Time::ZERO);
        assert_eq!((conn.readable(), conn.reason()), (end, Some(CloseReason::PeerReset)));
        assert!(matches!(conn.next_action(Time::ZERO), Some(Action::Close { reset: false })));
    }
}

#[test]
fn nobody_waits_for_an_end_behind_a_failed_send_longer_than_the_linger_time() {
    let mut conn = open();
    fail_send(&mut conn, io::ErrorKind::TimedOut);
    let late = Time::ZERO.after(LINGER);
    assert_eq!(conn.take_urgent_deadline(), Some(late));
    assert!(conn.expire(late));
    assert!(matches!(conn.next_action(late), Some(Action::Close { reset: false })));
    assert_eq!(conn.reason(), Some(CloseReason::Network(io::ErrorKind::TimedOut)));
}

#[test]
fn whoever_closes_after_a_failed_send_waits_for_nothing() {
    let mut conn = open();
    fail_send(&mut conn, io::ErrorKind::ConnectionReset);
    conn.close();
    assert!(matches!(conn.next_action(Time::ZERO), Some(Action::Close { reset: false })));
    assert_eq!(conn.reason(), Some(CloseReason::PeerReset));
}

/// What comes while this side closes is thrown away: behind it an end says nothing of the stream.
#[test]
fn an_end_that_comes_when_this_side_has_ended_is_not_read_as_one_in_order() {
    let late = CloseReason::Timeout(Deadline::Idle);
    for reason in [late, CloseReason::Shutdown, CloseReason::Local] {
        let mut conn = open();
        match reason {
            CloseReason::Shutdown => conn.reset(reason),
            CloseReason::Local => conn.close(),
            _ => conn.end(reason, Time::ZERO),
        }
        assert_eq!(conn.readable(), Err(reason));
        conn.receive_ended(Time::ZERO);
        assert_eq!(conn.readable(), Err(reason));
        assert!(!conn.ended_in_order());
    }
}

#[test]
fn an_end_that_was_there_when_this_side_ended_can_still_be_read_unless_bytes_before_it_are_gone() {
    let mut conn = open();
    conn.receive_ended(Time::ZERO);
    conn.close();
    assert_eq!(conn.readable(), Ok(Readable::Ended));

    let mut conn = open();
    assert!(conn.received(4, Time::ZERO));
    conn.deliver(Chunk::copied(b"gone"));
    conn.receive_ended(Time::ZERO);
    conn.close();
    assert_eq!(conn.readable(), Err(CloseReason::Peer));
}

#[test]
fn who_has_finished_is_told_the_end_of_the_peer_though_it_ends_the_connection() {
    let mut conn = open();
    conn.finish();
    assert!(matches!(conn.next_action(Time::ZERO), Some(Action::Shutdown)));
    assert!(!conn.ended_in_order());
    conn.receive_ended(Time::ZERO);
    assert!(matches!(conn.next_action(Time::ZERO), Some(Action::Close { reset: false })));
    assert!(conn.ended_in_order() && !conn.is_open());
}
