//! What happened on a simulated network, as lines of text and as one hash over all of them.

use std::collections::VecDeque;
use std::fmt::{self, Write};

use crate::time::Time;

/// Lines that are kept; the hash covers the older ones too.
const LINES_MAX: usize = 4096;

/// The latest lines, and a hash of all lines that is the same in every build of the same code.
#[derive(Debug)]
pub(super) struct Trace {
    lines: VecDeque<String>,
    hash: u64,
}

impl Trace {
    pub(super) fn new() -> Trace {
        Trace { lines: VecDeque::new(), hash: FNV_OFFSET }
    }

    /// Appends one line that tells what happened at `now`.
    pub(super) fn line(&mut self, now: Time, what: fmt::Arguments<'_>) {
        let mut line = self.recycled();
        let micros = now.as_nanos() / 1000;
        write!(line, "{}.{:03}ms {what}", micros / 1000, micros % 1000)
            .expect("writing to a string cannot fail");
        for &byte in line.as_bytes().iter().chain(b"\n") {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
        self.lines.push_back(line);
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// An empty line; the memory of the oldest one once enough are kept, so that tracing stops allocating.
    fn recycled(&mut self) -> String {
        if self.lines.len() < LINES_MAX {
            return String::new();
        }
        let mut line = self.lines.pop_front().unwrap_or_default();
        line.clear();
        line
    }
}

// FNV-1a, 64 bits (draft-eastlake-fnv): std's hashers promise no stable result across releases.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
