//! Connections whose owners have dropped them, and whose peers have not ended: one thread waits for all of them, so that no drop waits.
//!
//! ```text
//!   drop --> FIN is sent --> over (the peer has ended before)
//!                      \---> the thread throws away what comes, until the peer ends or the linger time is over
//!                       \--> the server's own thread does, where the connection is a server's
//! ```

#![allow(clippy::vec_box, reason = "lines are boxed already, and large to move")]

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::line::{Line, Step, wait_for_any};
use crate::error::CloseReason;

/// More than so many are not waited for here.
const LINES_MAX: usize = 1024;
/// How long the thread waits for the next one before it ends.
const KEEP_IDLE: Duration = Duration::from_secs(10);

static LINGERING: Lingering =
    Lingering { state: Mutex::new(State { lines: 0, arrived: Vec::new(), bell: None }) };

struct Lingering {
    state: Mutex<State>,
}

struct State {
    /// How many the thread has, with those that have just arrived.
    lines: usize,
    arrived: Vec<Box<Line>>,
    /// By which the thread is reached, while there is one.
    bell: Option<UnixStream>,
}

/// Sees a line off whose owner has dropped it.
pub(super) fn leave(line: Box<Line>) {
    if let Err(mut line) = see_off(line) {
        // Then there is nobody else who could wait.
        drop(line.drive(|line| Ok(line.end())));
    }
}

/// The same for an owner who has no time to wait himself.
pub(super) fn part(line: Box<Line>) {
    if let Err(mut line) = see_off(line) {
        line.reset(CloseReason::LocalReset);
    }
}

/// Gives the line back if its peer has to be waited for, and nobody else can.
fn see_off(mut line: Box<Line>) -> Result<(), Box<Line>> {
    line.part();
    if let Some(place) = line.place().cloned() {
        place.give_back(line);
        return Ok(());
    }
    match line.end() {
        Step::Wait(_) => LINGERING.take(line),
        Step::Done(_) => Ok(()),
    }
}

impl Lingering {
    /// Waits for the line's peer elsewhere; gives the line back if that cannot be.
    fn take(&'static self, line: Box<Line>) -> Result<(), Box<Line>> {
        let mut state = self.state();
        if state.lines >= LINES_MAX {
            return Err(line);
        }
        if state.bell.is_none() {
            let Ok(bell) = self.start() else { return Err(line) };
            state.bell = Some(bell);
        }
        state.lines += 1;
        state.arrived.push(line);
        if let Some(bell) = &mut state.bell {
            // If there is no room for another byte, it rings already.
            drop(bell.write(&[1]));
        }
        Ok(())
    }

    fn start(&'static self) -> io::Result<UnixStream> {
        let (bell, ear) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ear.set_nonblocking(true)?;
        thread::Builder::new().name(String::from("wharf-linger")).spawn(move || self.work(ear))?;
        Ok(bell)
    }

    fn work(&self, mut ear: UnixStream) {
        let mut lines: Vec<Box<Line>> = Vec::new();
        let mut idle_since = Instant::now();
        loop {
            while matches!(ear.read(&mut [0; 64]), Ok(64)) {}
            lines.append(&mut self.state().arrived);
            let mut waits = Vec::with_capacity(lines.len());
            lines.retain_mut(|line| match line.end() {
                Step::Done(_) => false,
                Step::Wait(wanted) => {
                    waits.push(line.waiting(wanted));
                    true
                }
            });
            let mut state = self.state();
            state.lines = lines.len() + state.arrived.len();
            if state.lines > 0 {
                idle_since = Instant::now();
            }
            let left = KEEP_IDLE.saturating_sub(idle_since.elapsed());
            if left.is_zero() {
                // Who comes from now on starts another one.
                state.bell = None;
                return;
            }
            drop(state);
            wait_for_any(&waits, Some(ear.as_fd()), Some(left));
        }
    }

    /// Nothing panics under this lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
