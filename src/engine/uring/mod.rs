//! The io_uring engine, on Linux: requests go into a ring, and one system call submits them and waits.
//!
//! * [`kernel`]: what is asked of the kernel, as a trait; [`ring`] is the real one.
//! * [`buffers`]: the memory that receives write into.
//! * [`driver`]: the logic, which knows connections and no system calls. Its tests run against a scripted kernel.
//! * [`support`]: whether all of this works here.
//!
//! docs/design/uring.md tells what was measured and decided.

mod buffers;
mod driver;
mod kernel;
mod ring;
mod support;

use std::io;

pub(crate) use buffers::Lease;
pub(crate) use support::support;

use driver::Driver;
use ring::{Ring, Sizes};

pub(crate) type Uring = Driver<Ring>;

const SIZES: Sizes = Sizes {
    submissions: 512,
    completions: 4096,
    buffers: 1024,
    // A little above 16 KiB, so that a message of 16 KiB with a header or as a TLS record fits.
    buffer_size: 16 * 1024 + 64,
    window: 64,
};

/// The engine of a worker on this thread.
pub(crate) fn new() -> io::Result<Uring> {
    let features = support().as_ref().map_err(support::Refusal::to_io_error)?;
    let (ring, buffers) = Ring::new(SIZES, features.receive_caps)?;
    Driver::new(ring, buffers)
}
