//! Property tests: whatever happens in whatever order, no byte is lost, doubled or moved, no bound is passed, and a
//! connection closes exactly once.

use proptest::collection::vec;
use proptest::prelude::*;

use super::harness::{Step, drive, drive_with};
use crate::config::WhenFull;

fn step() -> impl Strategy<Value = Step> {
    let n = || 0..=600u16;
    // Traffic is frequent, ends are rare, so that most sequences live for a while.
    prop_oneof![
        4 => Just(Step::Connected),
        12 => n().prop_map(Step::Receive),
        6 => n().prop_map(Step::ReceivePastInbox),
        12 => n().prop_map(Step::SendEnds),
        8 => n().prop_map(Step::SendsInline),
        8 => n().prop_map(Step::SendsPastQueue),
        8 => n().prop_map(Step::Hands),
        4 => Just(Step::Hands(0)),
        4 => Just(Step::Submits),
        12 => n().prop_map(Step::Read),
        6 => Just(Step::TakeChunk),
        6 => n().prop_map(Step::PutBack),
        4 => n().prop_map(Step::Offer),
        4 => n().prop_map(Step::ReadPart),
        12 => n().prop_map(Step::Send),
        6 => n().prop_map(Step::SendOwned),
        6 => Just(Step::Await),
        4 => Just(Step::EngineCloses),
        4 => n().prop_map(Step::Pass),
        1 => Just(Step::Pass(60_001)),
        2 => proptest::bool::ANY.prop_map(Step::Short),
        1 => n().prop_map(Step::CloseAfter),
        1 => n().prop_map(Step::SetDeadline),
        1 => Just(Step::PeerEnds),
        1 => Just(Step::HangsUp),
        1 => Just(Step::Breaks),
        1 => Just(Step::HalfBreaks),
        1 => Just(Step::SendFails),
        1 => Just(Step::Finish),
        1 => Just(Step::Close),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_bytes_bounds_and_one_close(steps in vec(step(), 0..200)) {
        drive(steps);
    }

    #[test]
    fn so_does_any_sequence_that_ends_with_a_full_queue(steps in vec(step(), 0..100)) {
        drive_with(WhenFull::Disconnect, steps);
    }
}

#[test]
fn a_delayed_close_of_a_connection_that_broke_waits_no_longer_than_the_linger_time() {
    for delay in [0, u16::MAX] {
        drive([Step::Connected, Step::HalfBreaks, Step::CloseAfter(delay)]);
    }
}

#[test]
fn steps_are_read_from_any_two_bytes() {
    for kind in 0..=u8::MAX {
        drive([Step::from_bytes(kind, 7)]);
    }
}
