//! Whether io_uring works here, found out by using it: versions lie, kernels are patched, and containers forbid.
//!
//! A small ring does to a pair of sockets all that the engine will do, once per process; again only if descriptors or memory
//! were short. What fails is named.

#![allow(unsafe_code)] // pushes requests; see `Trial::ask`

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use super::buffers::Buffers;
use super::kernel::{Completed, Kernel, Key, Request};
use super::ring::{Ring, Sizes};
use crate::engine::{Refusal, UringFeatures};

const ENGINE: &str = "io_uring";

/// What there is, or why the engine cannot run; found out at the first call. What may pass is not remembered: a process
/// that was short of descriptors once would do without io_uring for good.
pub(crate) fn support() -> Result<UringFeatures, Refusal> {
    static SUPPORT: Mutex<Option<Result<UringFeatures, Refusal>>> = Mutex::new(None);
    let mut known = SUPPORT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = &*known {
        return known.clone();
    }
    let found = try_out();
    if !found.as_ref().is_err_and(Refusal::passes) {
        *known = Some(found.clone());
    }
    found
}

/// After so many sends of 4 KiB that nobody reads, a socket is full.
const SENDS_MAX: usize = 4096;
const TRIAL: Sizes = Sizes { submissions: 8, completions: 16, buffers: 4, buffer_size: 64, window: 4 };
/// What the trial's receive is capped to: as much as is sent. (More comes through, for Linux 6.18 looks at the cap between
/// receptions.)
const CAP: u32 = 8;

fn try_out() -> Result<UringFeatures, Refusal> {
    // Kernels that know no caps refuse the field.
    receive_twice(true).or_else(|refusal| if refusal.passes() { Err(refusal) } else { receive_twice(false) })
}

fn receive_twice(caps: bool) -> Result<UringFeatures, Refusal> {
    let mut trial = Trial::new(caps)?;
    trial.receive_what_is_there(caps)?;
    trial.cancel_a_receive()?;
    trial.send()?;
    trial.send_quietly()?;
    trial.poll()?;
    Ok(trial.ring.features())
}

/// Why the kernel refused `step`, and what to do about it.
pub(super) fn refusal(step: &'static str, error: &io::Error) -> Refusal {
    Refusal::new(ENGINE, step, error, hint(error).to_owned())
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSYS) => "this kernel has no io_uring, or seccomp hides it; Linux 6.1 is the least",
        Some(Errno::PERM) => what_forbids_it(),
        Some(Errno::ACCESS) => "a security policy forbids it, SELinux for example",
        Some(Errno::INVAL) => "this kernel is too old: Linux 6.1 is the least",
        Some(Errno::NOMEM) => {
            "out of memory, or above the user's limit of locked memory: raise `ulimit -l`, LimitMEMLOCK= in systemd"
        }
        Some(Errno::MFILE) => "out of descriptors: raise `ulimit -n`, LimitNOFILE= in systemd",
        Some(Errno::NFILE) => "the system is out of descriptors: raise the sysctl fs.file-max",
        _ => "no known reason; the kernel's log may have one",
    }
}

/// The sysctl is there from Linux 6.6 on (Documentation/admin-guide/sysctl/kernel.rst).
fn what_forbids_it() -> &'static str {
    match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").as_deref().map(str::trim) {
        Ok("2") => "the sysctl kernel.io_uring_disabled is 2: set it to 0",
        Ok("1") => {
            "the sysctl kernel.io_uring_disabled is 1: set it to 0, or run in the group kernel.io_uring_group"
        }
        _ => {
            "seccomp forbids it, as in most containers: allow io_uring_setup, io_uring_enter and io_uring_register"
        }
    }
}

fn unexpected(step: &'static str, what: impl Into<String>) -> Refusal {
    Refusal::because(ENGINE, step, what, "this kernel does something else than it says; please report it")
}

struct Trial {
    ring: Ring,
    buffers: std::rc::Rc<Buffers>,
    near: UnixStream,
    far: UnixStream,
}

impl Trial {
    fn new(caps: bool) -> Result<Trial, Refusal> {
        let refused = |step| move |error: io::Error| refusal(step, &error);
        let (ring, buffers) = Ring::new(TRIAL, caps).map_err(refused("setting up a ring with buffers"))?;
        let (near, far) = UnixStream::pair().map_err(refused("making a pair of sockets"))?;
        let mut trial = Trial { ring, buffers, near, far };
        trial.ring.publish(&trial.buffers);
        Ok(trial)
    }

    fn receive_what_is_there(&mut self, caps: bool) -> Result<(), Refusal> {
        const STEP: &str = "multishot receive into provided buffers";
        self.far.write_all(&[7; CAP as usize]).map_err(|error| refusal(STEP, &error))?;
        self.ask(Key(1), &Request::Receive { fd: self.near.as_raw_fd(), cap: CAP });
        let got = self.answer(STEP, Key(1))?;
        let n = got.outcome().map_err(|errno| refusal(STEP, &errno.into()))?;
        let id = got.buffer.ok_or_else(|| unexpected(STEP, "no buffer was chosen"))?;
        let lease = self.buffers.lease(id);
        if n != CAP as usize || lease[..n].iter().any(|byte| *byte != 7) {
            return Err(unexpected(STEP, format!("{n} bytes came where {CAP} were sent")));
        }
        // At the cap it has ended; without one it goes on.
        match (caps, got.more) {
            (true, false) => self.ask(Key(1), &Request::Receive { fd: self.near.as_raw_fd(), cap: CAP }),
            (false, true) => {}
            _ => return Err(unexpected(STEP, "it ends at the wrong time")),
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
            other => Err(unexpected(STEP, format!("it ended with {other:?}"))),
        }
    }

    fn send(&mut self) -> Result<(), Refusal> {
        const STEP: &str = "sending";
        const BYTES: &[u8] = b"wharf";
        let fd = self.near.as_raw_fd();
        self.ask(Key(3), &Request::Send { fd, bytes: BYTES.as_ptr(), len: BYTES.len() as u32 });
        match self.answer(STEP, Key(3))?.outcome() {
            Ok(n) if n == BYTES.len() => Ok(()),
            Ok(n) => Err(unexpected(STEP, format!("{n} bytes were sent"))),
            Err(errno) => Err(refusal(STEP, &errno.into())),
        }
    }

    /// A quiet send says nothing when all went out, and tells what went out when the socket is full: bytes would be lost
    /// without a word otherwise.
    fn send_quietly(&mut self) -> Result<(), Refusal> {
        const STEP: &str = "sending without a completion";
        static BYTES: [u8; 4096] = [7; 4096];
        let fd = self.near.as_raw_fd();
        let len = BYTES.len();
        // A pair of sockets holds some hundred kilobytes.
        for _ in 0..SENDS_MAX {
            self.ask(Key(4), &Request::SendQuietly { fd, bytes: BYTES.as_ptr(), len: len as u32 });
            self.ring.enter(false).map_err(|error| refusal(STEP, &error))?;
            let told = std::iter::from_fn(|| self.ring.pop()).find(|completed| completed.key == Key(4));
            match told.map(|completed| completed.outcome()) {
                None => {}
                Some(Err(Errno::AGAIN)) => return Ok(()),
                Some(Ok(n)) if (1..len).contains(&n) => return Ok(()),
                Some(other) => return Err(unexpected(STEP, format!("it ended with {other:?}"))),
            }
        }
        Err(unexpected(STEP, "a full socket was not told"))
    }

    /// A standing poll tells each arrival.
    fn poll(&mut self) -> Result<(), Refusal> {
        const STEP: &str = "polling again and again";
        self.ask(Key(5), &Request::PollAlways { fd: self.near.as_raw_fd() });
        for _ in 0..2 {
            self.far.write_all(b"x").map_err(|error| refusal(STEP, &error))?;
            if !self.answer(STEP, Key(5))?.more {
                return Err(unexpected(STEP, "it ended"));
            }
        }
        Ok(())
    }

    fn ask(&mut self, key: Key, request: &Request) {
        // SAFETY: the requests with pointers, those of `send` and `send_quietly`, point to constants and statics.
        let pushed = unsafe { self.ring.push(key, request) };
        debug_assert!(pushed, "a ring of eight has room for one at a time");
    }

    /// The next completion of this request. All that the trial asks for is done while it is submitted.
    fn answer(&mut self, step: &'static str, key: Key) -> Result<Completed, Refusal> {
        for _ in 0..8 {
            self.ring.enter(false).map_err(|error| refusal(step, &error))?;
            while let Some(completed) = self.ring.pop() {
                if completed.key == key {
                    return Ok(completed);
                }
            }
        }
        Err(unexpected(step, "nothing happened"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_step_the_cause_and_what_to_look_at() {
        let causes = [
            (Errno::PERM, "operation not permitted", "io_uring"),
            (Errno::NOSYS, "function not implemented", "Linux 6.1"),
            (Errno::INVAL, "invalid argument", "Linux 6.1"),
            (Errno::NOMEM, "cannot allocate memory", "ulimit -l"),
        ];
        for (errno, cause, hint) in causes {
            let error = io::Error::from(refusal("setting up a ring", &errno.into()));
            let message = error.to_string();
            let start = format!("io_uring cannot be used: setting up a ring: {cause} (");
            assert!(message.starts_with(&start), "{message}");
            assert!(message[start.len()..].contains(hint), "{message}");
            assert_eq!(error.kind(), io::Error::from(errno).kind());
        }
    }
}
