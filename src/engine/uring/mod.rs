//! The io_uring engine, on Linux: requests go into a ring, and one system call submits them and waits.
//!
//! * [`kernel`]: what is asked of the kernel, as a trait; [`ring`] is the real one.
//! * [`buffers`]: the memory that receives write into.
//! * [`driver`]: the logic, which knows connections and no system calls. Its tests run against a scripted kernel.
//! * [`mod@support`]: whether all of this works here.
//!
//! docs/design/uring.md tells what was measured and decided.

mod buffers;
mod driver;
mod kernel;
mod ring;
#[cfg(any(test, fuzzing))]
mod scripted;
mod support;

pub(crate) use buffers::Lease;
pub(crate) use support::support;

use crate::engine::Refusal;
use driver::Driver;
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

/// Takes a driver through the steps that `data` spells.
#[cfg(fuzzing)]
pub(crate) fn fuzz(data: &[u8]) {
    use driver::harness::{Step, drive};
    drive(data.chunks_exact(3).map(|step| Step::from_bytes([step[0], step[1], step[2]])));
}

/// The engine of a worker on this thread.
pub(crate) fn new() -> Result<Uring, Refusal> {
    let features = support().as_ref().map_err(Refusal::clone)?;
    Ring::new(SIZES, features.receive_caps)
        .and_then(|(ring, buffers)| Driver::new(ring, buffers))
        .map_err(|error| refusal("setting up the ring of a worker", &error))
}
