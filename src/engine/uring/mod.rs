//! The io_uring engine, on Linux: requests go into a ring, and one system call submits them and waits.
//!
//! * [`kernel`]: what is asked of the kernel, as a trait; [`ring`] is the real one.
//! * [`buffers`]: the memory that receives write into.
//! * [`driver`]: the logic, which knows connections and no system calls. Its tests run against a scripted kernel.
//! * [`mod@support`]: whether all of this works here.
//!
//! docs/design/uring.md tells what was measured and decided.
//!
//! # Other sizes
//!
//! `WHARF_RING_SIZES=8,16,16,4096` in the environment makes rings of 8 submissions and 16 completions, with 16 buffers of 4096
//! bytes. That is a tool for tests, which meet full queues and missing buffers this way, and for tuning; nothing else should
//! need it. It is read once. What cannot be a ring is refused with a panic, so that no test believes it ran with other sizes.

mod buffers;
mod driver;
mod kernel;
mod ring;
#[cfg(any(test, fuzzing))]
mod scripted;
mod support;

pub(crate) use buffers::Lease;
pub(crate) use support::support;

use std::sync::OnceLock;

use crate::engine::Refusal;
use driver::{Driver, INLINE_SENDS};
use ring::{Ring, Sizes};
use support::refusal;

pub(crate) type Uring = Driver<Ring>;

const SIZES: Sizes = Sizes {
    submissions: 512,
    completions: 4096,
    buffers: 1024,
    // A little above 16 KiB, so that a message of 16 KiB with a header or as a TLS record fits.
    buffer_size: 16 * 1024 + 64,
    window: 64,
};

const SIZES_VARIABLE: &str = "WHARF_RING_SIZES";

/// Takes a driver through the steps that `data` spells.
#[cfg(fuzzing)]
pub(crate) fn fuzz(data: &[u8]) {
    use driver::harness::{Step, drive};
    drive(data.chunks_exact(3).map(|step| Step::from_bytes([step[0], step[1], step[2]])));
}

/// The engine of a worker on this thread.
pub(crate) fn new() -> Result<Uring, Refusal> {
    let features = support()?;
    let sizes = sizes();
    let mut driver = Ring::new(sizes, features.receive_caps)
        .and_then(|(ring, buffers)| Driver::new(ring, buffers))
        .map_err(|error| refusal("setting up the ring of a worker", &error))?;
    // A small ring fills up earlier, and its tests are about that.
    driver.send_inline_up_to(INLINE_SENDS.min(sizes.submissions as usize / 4));
    Ok(driver)
}

/// The sizes of this process.
///
/// # Panics
/// If the environment asks for sizes that no ring has.
fn sizes() -> Sizes {
    static SIZES_HERE: OnceLock<Sizes> = OnceLock::new();
    *SIZES_HERE.get_or_init(|| match std::env::var_os(SIZES_VARIABLE) {
        Some(value) if !value.is_empty() => value.to_str().and_then(sizes_from).unwrap_or_else(|| {
            panic!(
                "{SIZES_VARIABLE} is {value:?}, not four numbers such as 8,16,16,4096: submissions, at least as many \
                 completions, 2^n buffers, and bytes in each"
            )
        }),
        _ => SIZES,
    })
}

fn sizes_from(text: &str) -> Option<Sizes> {
    let numbers = text.split(',').map(|number| number.trim().parse().ok()).collect::<Option<Vec<u32>>>()?;
    let [submissions, completions, buffers, buffer_size] = numbers[..] else { return None };
    let buffers = u16::try_from(buffers).ok().filter(|buffers| buffers.is_power_of_two() && *buffers >= 4)?;
    let is_ring = (1..=32 * 1024).contains(&submissions) && (submissions..=64 * 1024).contains(&completions);
    (is_ring && (64..=1 << 20).contains(&buffer_size)).then_some(Sizes {
        submissions,
        completions,
        buffers,
        buffer_size: buffer_size as usize,
        // In the proportion of the usual sizes, or a little more.
        window: (buffers / 4).min(SIZES.window),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_four_numbers_that_make_a_ring() {
        let sizes = sizes_from("8, 16,16,4096").expect("these do");
        assert_eq!((sizes.submissions, sizes.completions), (8, 16));
        assert_eq!((sizes.buffers, sizes.buffer_size, sizes.window), (16, 4096, 4));
        for wrong in
            ["", "8", "8,16,16", "8,16,16,4096,1", "8,16,15,4096", "16,8,16,4096", "8,16,16,0", "a,b,c,d"]
        {
            assert!(sizes_from(wrong).is_none(), "{wrong}");
        }
        assert!(sizes_from("8,16,65536,4096").is_none(), "buffers have numbers of 16 bits");
    }
}
