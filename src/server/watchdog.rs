//! A thread that notices workers which a handler has blocked.

use std::sync::Arc;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use super::hooks::ServerEvent;
use super::state::{ServerState, lock};
use crate::error::{Error, Operation, Result};
use crate::worker::pulse::Observation;

/// Watches the workers of a server until it has ended. What does not turn for `limit` is told, twice at most as late.
pub(super) fn watch(state: &Arc<ServerState>, limit: Duration) -> Result<()> {
    let state = state.clone();
    let name = String::from("wharf-watchdog");
    let spawned = thread::Builder::new().name(name).spawn(move || look_now_and_then(&state, limit));
    spawned.map(drop).map_err(|error| Error::os(Operation::Start, error))
}

fn look_now_and_then(state: &ServerState, limit: Duration) {
    let mut observations: Vec<_> = state.pulses.iter().map(|_| Observation::default()).collect();
    let mut looked = Instant::now();
    let mut left = lock(&state.workers_left);
    while *left > 0 {
        let (guard, _) = state.ended.wait_timeout(left, limit / 2).unwrap_or_else(PoisonError::into_inner);
        drop(guard);
        let later = looked.elapsed();
        looked = Instant::now();
        for (worker, (pulse, seen)) in state.pulses.iter().zip(&mut observations).enumerate() {
            if let Some(lasted) = seen.look(pulse, later, limit) {
                state.count_stall();
                state.tell(&ServerEvent::WorkerBlocked { worker, lasted });
            }
        }
        left = lock(&state.workers_left);
    }
}
