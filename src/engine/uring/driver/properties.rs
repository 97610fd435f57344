//! Property tests: whatever a worker, a kernel and peers do in whatever order, the driver keeps the contract.

use proptest::collection::vec;
use proptest::prelude::*;

use super::harness::{Step, drive};

/// A third of the steps leave the kernel a choice; with more, little comes to an end.
fn step() -> impl Strategy<Value = Step> {
    let choice = prop_oneof![2 => Just(0), 1 => any::<u8>()];
    (any::<u8>(), any::<u8>(), choice)
        .prop_map(|(kind, amount, choice)| Step::from_bytes([kind, amount, choice]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_the_contract(steps in vec(step(), 0..300)) {
        drive(steps);
    }
}
