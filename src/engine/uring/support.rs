//! Whether io_uring works here, found out by using it: versions lie, kernels are patched, and containers forbid.
//!
//! Once per process a small ring does to a pair of sockets all that the engine will do. What fails is named.

#![allow(unsafe_code)] // pushes two requests; see `Trial::ask`

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use rustix::io::Errno;

use super::buffers::Buffers;
use super::kernel::{Completed, Kernel, Key, Request};
use super::ring::{Ring, Sizes};

/// What the kernel offers beyond the least that the engine needs.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    /// A multishot receive ends by itself after a number of bytes (Linux 6.17).
    pub(crate) receive_caps: bool,
}

/// Why the engine cannot run.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    step: &'static str,
    kind: io::ErrorKind,
    cause: String,
}

impl Refusal {
    pub(crate) fn to_io_error(&self) -> io::Error {
        io::Error::new(self.kind, self.to_string())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "io_uring cannot be used: {}: {}", self.step, self.cause)
    }
}

/// What there is, or why the engine cannot run; found out at the first call.
pub(crate) fn support() -> &'static Result<Features, Refusal> {
    static SUPPORT: OnceLock<Result<Features, Refusal>> = OnceLock::new();
    SUPPORT.get_or_init(try_out)
}

const TRIAL: Sizes = Sizes { submissions: 8, completions: 16, buffers: 4, buffer_size: 64, window: 4 };
/// What the trial's receive is capped to, less than is there.
const CAP: u32 = 8;

fn try_out() -> Result<Features, Refusal> {
    // Kernels that know no caps refuse the field.
    match receive_twice(true) {
        Ok(()) => Ok(Features { receive_caps: true }),
        Err(_) => receive_twice(false).map(|()| Features { receive_caps: false }),
    }
}

fn receive_twice(caps: bool) -> Result<(), Refusal> {
    let mut trial = Trial::new(caps)?;
    trial.receive_what_is_there(caps)?;
    trial.cancel_a_receive()?;
    trial.send()
}

struct Trial {
    ring: Ring,
    buffers: std::rc::Rc<Buffers>,
    near: UnixStream,
    far: UnixStream,
}

impl Trial {
    fn new(caps: bool) -> Result<Trial, Refusal> {
        let refused = |step| move |error: io::Error| Refusal::new(step, &error);
        let (ring, buffers) = Ring::new(TRIAL, caps).map_err(refused("setting up a ring with buffers"))?;
        let (near, far) = UnixStream::pair().map_err(refused("making a pair of sockets"))?;
        let mut trial = Trial { ring, buffers, near, far };
        trial.ring.publish(&trial.buffers);
        Ok(trial)
    }

    fn receive_what_is_there(&mut self, caps: bool) -> Result<(), Refusal> {
        const STEP: &str = "multishot receive into provided buffers";
        self.far.write_all(&[7; 24]).map_err(|error| Refusal::new(STEP, &error))?;
        self.ask(Key(1), &Request::Receive { fd: self.near.as_raw_fd(), cap: CAP });
        let got = self.answer(STEP, Key(1))?;
        let id = got.buffer.ok_or_else(|| Refusal::because(STEP, "no buffer was chosen"))?;
        let lease = self.buffers.lease(id);
        let expected = if caps { CAP as usize } else { 24 };
        match got.outcome() {
            Ok(n) if n == expected && lease[..n].iter().all(|byte| *byte == 7) && got.more != caps => {}
            Ok(n) => return Err(Refusal::because(STEP, &format!("received {n} bytes, not {expected}"))),
            Err(errno) => return Err(Refusal::new(STEP, &errno.into())),
        }
        if caps {
            let mut rest = [0; 16];
            self.near.read_exact(&mut rest).map_err(|error| Refusal::new(STEP, &error))?;
            self.ask(Key(1), &Request::Receive { fd: self.near.as_raw_fd(), cap: CAP });
        }
        Ok(())
    }

    /// Ends the receive that the step before left in flight.
    fn cancel_a_receive(&mut self) -> Result<(), Refusal> {
        const STEP: &str = "cancelling a receive";
        self.ask(Key(2), &Request::Cancel { key: Key(1) });
        let ended = self.answer(STEP, Key(1))?;
        match ended.outcome() {
            Err(Errno::CANCELED) if !ended.more => Ok(()),
            other => Err(Refusal::because(STEP, &format!("it ended with {other:?}"))),
        }
    }

    fn send(&mut self) -> Result<(), Refusal> {
        const STEP: &str = "sending";
        const BYTES: &[u8] = b"wharf";
        let fd = self.near.as_raw_fd();
        self.ask(Key(3), &Request::Send { fd, bytes: BYTES.as_ptr(), len: BYTES.len() as u32 });
        match self.answer(STEP, Key(3))?.outcome() {
            Ok(n) if n == BYTES.len() => Ok(()),
            Ok(n) => Err(Refusal::because(STEP, &format!("{n} bytes were sent"))),
            Err(errno) => Err(Refusal::new(STEP, &errno.into())),
        }
    }

    fn ask(&mut self, key: Key, request: &Request) {
        // SAFETY: the one request with a pointer, `send`, points to a constant.
        let pushed = unsafe { self.ring.push(key, request) };
        debug_assert!(pushed, "a ring of eight has room for three");
    }

    /// The next completion of this request. All that the trial asks for is done while it is submitted.
    fn answer(&mut self, step: &'static str, key: Key) -> Result<Completed, Refusal> {
        for _ in 0..8 {
            self.ring.enter(false).map_err(|error| Refusal::new(step, &error))?;
            while let Some(completed) = self.ring.pop() {
                if completed.key == key {
                    return Ok(completed);
                }
            }
        }
        Err(Refusal::because(step, "nothing happened"))
    }
}

impl Refusal {
    fn new(step: &'static str, error: &io::Error) -> Refusal {
        let hint = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSYS) => " (this kernel has no io_uring)",
            Some(Errno::PERM | Errno::ACCESS) => {
                " (forbidden by seccomp, as in most containers, or by the sysctl kernel.io_uring_disabled)"
            }
            Some(Errno::INVAL) => " (this kernel is too old: Linux 6.1 is the least)",
            Some(Errno::NOMEM) => " (out of memory, or above the limit on locked memory: ulimit -l)",
            _ => "",
        };
        Refusal { step, kind: error.kind(), cause: format!("{error}{hint}") }
    }

    fn because(step: &'static str, cause: &str) -> Refusal {
        Refusal { step, kind: io::ErrorKind::Unsupported, cause: cause.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_step_the_cause_and_what_to_look_at() {
        let refusal = Refusal::new("setting up a ring with buffers", &io::Error::from_raw_os_error(1));
        let message = refusal.to_io_error().to_string();
        assert!(
            message.starts_with("io_uring cannot be used: setting up a ring with buffers: "),
            "{message}"
        );
        assert!(message.contains("kernel.io_uring_disabled"), "{message}");
    }
}
