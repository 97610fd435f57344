//! The three styles are equal: one suite of scenarios, written once, for each style on each backend.
//!
//! A scenario says in steps what two sides do, and what has to come of it: what arrives, how each script ends, and for which
//! reason the connection. Each style has one interpreter of such scripts, and no scenario knows which one performs it. One side is
//! the one in question, the server or the client, and is performed in the style and on the backend of a cell; the style of its
//! peer goes around. What comes of it is asserted once, for all cells.
//!
//! `docs/EQUALITY.md` is the table of that, written by the suite itself (`table.rs`). To write it anew:
//!
//! ```text
//! WHARF_WRITE_TABLE=1 cargo test --all-features --test equality table
//! ```

#![cfg(all(unix, feature = "tls"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
#[macro_use]
mod common;

mod cell;
mod in_async;
mod in_blocking;
mod in_events;
mod in_queued;
mod scenario;
mod script;
mod stage;
mod table;

mod deadlines;
mod draining;
mod endings;
mod limits;
mod secured;
mod streams;

use cell::suite;

suite! {
    streams: "Bytes" {
        what_is_sent_to_it_comes_back,
        what_it_sends_comes_back,
        a_peer_that_has_ended_is_still_answered,
        having_ended_it_still_receives,
        a_peer_that_does_not_read_holds_it_back_within_its_bound,
        a_peer_that_never_reads_is_ended_by_the_write_deadline,
        while_it_does_not_read_its_peer_is_held_back,
        what_it_cannot_answer_yet_waits_and_is_answered_when_there_is_room,
        what_a_late_receive_got_is_received_by_the_next,
        what_a_late_send_has_not_sent_can_follow,
    }
    deadlines: "Deadlines" {
        a_silent_peer_is_ended_in_order_at_the_idle_deadline,
        a_slow_peer_is_not_ended_at_the_idle_deadline,
        a_peer_that_says_nothing_is_ended_at_the_first_byte_deadline,
        a_peer_that_drips_is_ended_by_the_least_rate,
        a_connection_ends_at_its_age_whatever_it_does,
        a_deadline_that_it_sets_is_total_for_all_that_follows,
        a_deadline_that_it_lifts_ends_nothing,
        the_deadline_of_an_operation_is_total_and_the_connection_goes_on,
        a_connect_that_nobody_answers_ends_at_its_deadline,
        a_connect_that_is_refused_fails_at_once_and_says_so,
    }
    limits: "Limits" {
        one_too_many_waits_and_is_served_when_one_leaves,
        one_too_many_is_turned_away_at_once_if_that_was_asked_for,
        an_address_has_its_share_and_no_more,
        a_full_send_queue_ends_the_connection_if_that_was_asked_for,
        a_message_that_can_never_be_held_ends_the_connection,
    }
    endings: "Ends" {
        a_reset_by_the_peer_is_told_as_one,
        its_own_reset_is_seen_as_one,
        a_close_with_unread_input_still_delivers_the_reply,
        a_peer_that_ends_within_a_message_is_told_with_how_much_came,
        another_thread_closes_it_in_order,
        another_thread_resets_it,
        a_handler_that_panics_loses_its_own_connection_only,
        a_handler_that_fails_still_gets_its_last_words_out,
    }
    draining: "Draining" {
        a_drain_refuses_newcomers_and_lets_what_has_begun_finish,
        a_drain_resets_at_its_deadline_what_has_not_ended,
        a_stop_resets_everything_at_once,
    }
    secured: "TLS" {
        bytes_go_through_tls_as_they_are,
        an_end_by_tls_is_announced,
        an_end_by_tls_that_nobody_announced_is_none_in_order,
        a_client_that_never_shakes_hands_is_ended_at_the_deadline_of_that,
        a_server_that_never_shakes_hands_is_given_up_at_the_deadline_of_the_connect,
        a_server_that_is_not_trusted_is_refused,
    }
}
