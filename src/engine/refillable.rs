//! A buffer that is filled again and again: like a `Vec<u8>`, but what was written once needs no zeros to be written over.
//!
//! Whoever fills a stretch by a call that wants a slice (a cipher, say) has to make that slice first. A vector writes zeros there,
//! each time, and for a record of TLS that is a twentieth of what sealing and sending it costs. This one remembers how far it was
//! written before, and offers that as it is.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Bytes, and behind them what was there when the buffer was longer.
#[derive(Default)]
pub(crate) struct Refillable {
    /// As long as the buffer ever was.
    data: Vec<u8>,
    len: usize,
}

impl Refillable {
    pub(crate) fn with_capacity(capacity: usize) -> Refillable {
        Refillable { data: Vec::with_capacity(capacity), len: 0 }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.data.capacity()
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Drops what is behind the first `len` bytes, if there is more.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    #[inline]
    pub(crate) fn extend_from_slice(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        match self.data.get_mut(self.len..end) {
            Some(old) => old.copy_from_slice(bytes),
            None => {
                self.data.truncate(self.len);
                self.data.extend_from_slice(bytes);
            }
        }
        self.len = end;
    }

    /// Makes it `n` bytes longer, and gives these to be filled. Until they are, they may be anybody's old bytes: all of them have to
    /// be written before the buffer goes anywhere.
    #[inline]
    pub(crate) fn extend_to_fill(&mut self, n: usize) -> &mut [u8] {
        let (start, end) = (self.len, self.len + n);
        if self.data.len() < end {
            self.data.resize(end, 0);
        }
        self.len = end;
        &mut self.data[start..end]
    }

    pub(crate) fn into_vec(mut self) -> Vec<u8> {
        self.data.truncate(self.len);
        self.data
    }
}

#[cfg(test)]
impl From<Vec<u8>> for Refillable {
    fn from(data: Vec<u8>) -> Refillable {
        Refillable { len: data.len(), data }
    }
}

impl Deref for Refillable {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.data[..self.len]
    }
}

impl DerefMut for Refillable {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.data[..self.len]
    }
}

impl fmt::Debug for Refillable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refillable({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Extend(Vec<u8>),
        Fill(Vec<u8>),
        Truncate(usize),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Step> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            bytes().prop_map(Step::Extend),
            bytes().prop_map(Step::Fill),
            (0usize..60).prop_map(Step::Truncate),
            Just(Step::Clear),
        ]
    }

    proptest! {
        #[test]
        fn it_holds_what_a_vector_would(steps in prop::collection::vec(steps(), 0..30)) {
            let (mut buffer, mut vector) = (Refillable::with_capacity(50), Vec::new());
            for step in steps {
                match step {
                    Step::Extend(bytes) => {
                        buffer.extend_from_slice(&bytes);
                        vector.extend_from_slice(&bytes);
                    }
                    Step::Fill(bytes) => {
                        buffer.extend_to_fill(bytes.len()).copy_from_slice(&bytes);
                        vector.extend_from_slice(&bytes);
                    }
                    Step::Truncate(len) => {
                        buffer.truncate(len);
                        vector.truncate(len);
                    }
                    Step::Clear => {
                        buffer.clear();
                        vector.clear();
                    }
                }
                prop_assert_eq!(&buffer[..], &vector[..]);
            }
            prop_assert_eq!(buffer.into_vec(), vector);
        }
    }

    #[test]
    fn its_capacity_stays_what_it_was_made_with() {
        let mut buffer = Refillable::with_capacity(512);
        let capacity = buffer.capacity();
        for _ in 0..3 {
            buffer.extend_to_fill(capacity - 1).fill(7);
            buffer.extend_from_slice(&[8]);
            assert_eq!((buffer.len(), buffer[0], buffer[capacity - 1]), (capacity, 7, 8));
            buffer.clear();
        }
        assert_eq!(buffer.capacity(), capacity);
    }
}
