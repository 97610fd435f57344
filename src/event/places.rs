//! How many connections of one server a queue stands for: those that there are, and those whose end it has not told yet.
//!
//! A server bounds the first by itself; a queue that nobody runs would have the others pile up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Clone, Default)]
pub(crate) struct Places {
    taken: Arc<AtomicUsize>,
}

/// One of them; free again when this is dropped.
pub(crate) struct Place(Places);

impl Places {
    /// One more, unless there are `most`.
    pub(crate) fn take(&self, most: usize) -> Option<Place> {
        let fits = |taken| (taken < most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let places = Places::default();
        let (one, two) = (places.take(2), places.take(2));
        assert!(one.is_some() && two.is_some() && places.take(2).is_none());
        drop(one);
        assert!(places.take(2).is_some());
    }
}
