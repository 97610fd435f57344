//! What a simulated network does to its traffic: delays, splits, and the failures that were asked for.

use std::time::Duration;

/// How a simulated network behaves: how long packets travel, how bytes are cut up, and what goes wrong.
///
/// Starts as a healthy network ([`Faults::default`]); each method changes one thing. A probability is a number from 0
/// (never) to 1 (always), and is brought into that range.
#[derive(Clone, Debug)]
pub struct Faults {
    pub(super) delay_min: Duration,
    pub(super) delay_max: Duration,
    pub(super) window: usize,
    pub(super) backlog: usize,
    pub(super) descriptors: usize,
    pub(super) splits: f64,
    pub(super) partial_sends: f64,
    pub(super) handed_sends: f64,
    pub(super) late_completions: f64,
    pub(super) resets: f64,
    pub(super) refusals: f64,
    pub(super) blackholes: f64,
    pub(super) aborted_accepts: f64,
    pub(super) exhausted_accepts: f64,
}

impl Faults {
    /// A network without any variance: 50 us each way, nothing is cut up, everything works.
    pub fn none() -> Faults {
        Faults {
            delay_min: Duration::from_micros(50),
            delay_max: Duration::from_micros(50),
            window: 64 * 1024,
            backlog: 128,
            descriptors: usize::MAX,
            splits: 0.0,
            partial_sends: 0.0,
            handed_sends: 0.0,
            late_completions: 0.0,
            resets: 0.0,
            refusals: 0.0,
            blackholes: 0.0,
            aborted_accepts: 0.0,
            exhausted_accepts: 0.0,
        }
    }

    /// A network that cuts up and delays as much as it may, up to 50 ms, and still loses nothing.
    pub fn harsh() -> Faults {
        Faults::none()
            .delay(Duration::from_micros(20), Duration::from_millis(50))
            .splits(0.5)
            .partial_sends(0.5)
            .handed_sends(0.5)
            .late_completions(0.5)
    }

    /// How long a packet travels, one way: at random from `min` to `max`.
    pub fn delay(mut self, min: Duration, max: Duration) -> Faults {
        self.delay_min = min;
        self.delay_max = max.max(min);
        self
    }

    /// How many bytes a sender may be ahead of the peer's application, at least one; 64 KiB otherwise.
    pub fn window(mut self, bytes: usize) -> Faults {
        self.window = bytes.max(1);
        self
    }

    /// How many connections a listener queues until they are accepted; 128 otherwise.
    ///
    /// When it is full, the client tries again after 1, 2, 4, ... seconds, as Linux does.
    pub fn backlog(mut self, connections: usize) -> Faults {
        self.backlog = connections;
        self
    }

    /// How many connections one host can have open; above that it sees EMFILE. No limit otherwise.
    pub fn descriptors(mut self, sockets: usize) -> Faults {
        self.descriptors = sockets;
        self
    }

    /// Probability that bytes are cut: into one more segment on the way, or by a receive that gets only a part, or that finds nothing
    /// where it was told that there is something.
    pub fn splits(mut self, probability: f64) -> Faults {
        self.splits = bounded(probability);
        self
    }

    /// Probability that a send takes only a part of what would fit.
    pub fn partial_sends(mut self, probability: f64) -> Faults {
        self.partial_sends = bounded(probability);
        self
    }

    /// Probability that a send counts as sent although it is made later: with those of other connections, before the worker
    /// looks at anything else, as io_uring makes them. What cannot be sent then is told and sent behind; how often that
    /// is, follows from [`Faults::partial_sends`], [`Faults::late_completions`] and the window.
    pub fn handed_sends(mut self, probability: f64) -> Faults {
        self.handed_sends = bounded(probability);
        self
    }

    /// Probability that a send or a close that could be over at once is over a while later.
    pub fn late_completions(mut self, probability: f64) -> Faults {
        self.late_completions = bounded(probability);
        self
    }

    /// Probability, for each segment of data, that its connection is reset on both sides instead.
    pub fn resets(mut self, probability: f64) -> Faults {
        self.resets = bounded(probability);
        self
    }

    /// Probability that a connect is refused although somebody listens.
    pub fn refusals(mut self, probability: f64) -> Faults {
        self.refusals = bounded(probability);
        self
    }

    /// Probability that a connect is never answered.
    pub fn blackholes(mut self, probability: f64) -> Faults {
        self.blackholes = bounded(probability);
        self
    }

    /// Probability that an accept fails with ECONNABORTED, and the connection is gone.
    pub fn aborted_accepts(mut self, probability: f64) -> Faults {
        self.aborted_accepts = bounded(probability);
        self
    }

    /// Probability that an accept fails with EMFILE although descriptors are left; the connection stays queued.
    pub fn exhausted_accepts(mut self, probability: f64) -> Faults {
        self.exhausted_accepts = bounded(probability);
        self
    }
}

impl Default for Faults {
    /// A healthy network: 20 to 200 us each way, bytes cut up now and then, and nothing is lost.
    fn default() -> Faults {
        Faults::none()
            .delay(Duration::from_micros(20), Duration::from_micros(200))
            .splits(0.1)
            .partial_sends(0.1)
            .handed_sends(0.1)
            .late_completions(0.1)
    }
}

/// Brings a probability into range; what is no number is never.
fn bounded(probability: f64) -> f64 {
    if probability.is_nan() { 0.0 } else { probability.clamp(0.0, 1.0) }
}
