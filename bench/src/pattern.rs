//! The bytes that clients send: a function of connection and stream position, so that a lost, repeated, swapped or
//! foreign byte shows. Knows nothing about sockets.

/// The longest run that one call hands out.
pub const RUN_MAX: usize = 64 * 1024;

/// Prime, so that no message size is aligned with it; small, so that the client's checking stays in its first cache.
const PERIOD: usize = 4093;

/// A table of noise, read from a place that depends on the connection and its stream position.
pub struct Pattern {
    table: Vec<u8>,
}

impl Pattern {
    pub fn new() -> Pattern {
        let mut noise = Noise::new(1);
        let period: Vec<u8> = (0..PERIOD).map(|_| noise.next_byte()).collect();
        let table = period.iter().copied().cycle().take(PERIOD + RUN_MAX).collect();
        Pattern { table }
    }

    /// The `len` (at most [`RUN_MAX`]) bytes of `connection`'s stream from `position` on.
    pub fn run(&self, connection: usize, position: u64, len: usize) -> &[u8] {
        let start = (connection as u64 * 1117 + position) % PERIOD as u64;
        &self.table[start as usize..][..len]
    }
}

/// A small, seeded source of bytes (SplitMix64).
pub struct Noise {
    state: u64,
}

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise { state: seed }
    }

    pub fn next_byte(&mut self) -> u8 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_reads_the_same_in_pieces() {
        let pattern = Pattern::new();
        let whole = pattern.run(7, 4000, 1000);
        assert_eq!(pattern.run(7, 4000, 300), &whole[..300]);
        assert_eq!(pattern.run(7, 4300, 700), &whole[300..]);
    }

    #[test]
    fn a_shifted_or_foreign_stream_differs() {
        let pattern = Pattern::new();
        let own = pattern.run(3, 640, 64);
        for wrong in [
            pattern.run(3, 641, 64),
            pattern.run(3, 704, 64),
            pattern.run(4, 640, 64),
        ] {
            assert_ne!(own, wrong);
        }
    }
}
