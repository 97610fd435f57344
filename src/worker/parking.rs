//! Whether a worker that has nothing to do spins for a while before it sleeps.
//!
//! Waking a sleeping thread costs the waker microseconds, and the sleeper arrives tens of microseconds later where its
//! processor was halted meanwhile, as virtual machines do. A worker that spins is there at once, and uses up its core.
//! That pays only where a core is free and the next message comes soon, so it is off unless asked for, and switches itself
//! off while it finds nothing: after each miss it sleeps twice as often without spinning, up to [`SKIPS_MAX`] times.

use std::time::Duration;

/// The most sleeps in a row without spinning.
const SKIPS_MAX: u32 = 64;

#[derive(Debug, Default)]
pub(super) struct Parking {
    spin: Duration,
    /// Sleeps without spinning after the next miss.
    penalty: u32,
    /// Sleeps left without spinning.
    skips: u32,
}

impl Parking {
    pub(super) fn new(spin: Duration) -> Parking {
        Parking { spin, penalty: 0, skips: 0 }
    }

    /// How long to spin before the sleep that is due now.
    pub(super) fn spin(&mut self) -> Duration {
        if self.skips > 0 {
            self.skips -= 1;
            return Duration::ZERO;
        }
        self.spin
    }

    /// Spinning has found something to do, or has not.
    pub(super) fn spun(&mut self, found: bool) {
        self.penalty = if found { 0 } else { (self.penalty * 2).clamp(1, SKIPS_MAX) };
        self.skips = self.penalty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPIN: Duration = Duration::from_micros(50);

    fn sleeps_without_spinning(parking: &mut Parking) -> u32 {
        (0..).find(|_| parking.spin() == SPIN).expect("it spins again")
    }

    #[test]
    fn misses_make_spinning_rare_and_a_hit_makes_it_usual_again() {
        let mut parking = Parking::new(SPIN);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            pauses.push(sleeps_without_spinning(&mut parking));
            parking.spun(false);
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 64, 64]);
        assert_eq!(sleeps_without_spinning(&mut parking), 64);
        parking.spun(true);
        assert_eq!(parking.spin(), SPIN);
        assert_eq!(parking.spin(), SPIN);
    }
}
