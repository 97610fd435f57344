//! The memory that multishot receives write into: fixed buffers, each either with the kernel, leased to a chunk, or free.
//!
//! # Invariants
//!
//! 1. A buffer is in exactly one of three states: **published** (the kernel may write to it at any moment, nobody else
//!    touches it), **leased** (exactly one [`Lease`] reads and writes it), or **free** (nobody does).
//! 2. `published` becomes `leased` only when a completion names the buffer: the kernel is done with it then. `leased`
//!    becomes `free` when the lease is dropped, `free` becomes `published` when the engine hands it to the kernel.
//! 3. The memory lives until the last lease and the engine are gone, or for ever if the kernel may still write to it.
//!
//! Buffers are used in the order in which they were published, so the number that is published is also the number of
//! cache lines, and of pages, in use: a small window that grows while it turns out too small, and then shrinks again, beats
//! many buffers. They lie one cache line
//! further apart than a power of two, or the first lines of all would compete for the same place in the cache.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use crate::engine::buffer::Held;

const CACHE_LINE: usize = 64;
/// After so many turns a window that was too wide all the time gets narrower.
const NARROW_AFTER: u16 = 256;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum State {
    Published,
    Leased,
    Free,
}

/// The receive buffers of one engine.
pub(crate) struct Buffers {
    /// The first buffer, at the start of a cache line within `block`.
    memory: NonNull<u8>,
    block: NonNull<u8>,
    layout: Layout,
    size: usize,
    states: Box<[Cell<State>]>,
    /// Free buffers; the last one freed is the next to be published.
    free: RefCell<Vec<u16>>,
    published: Cell<u16>,
    /// How many buffers may be published at once,
    window: Cell<u16>,
    /// at least.
    window_min: u16,
    /// The fewest that were published of late, when the kernel had taken what it needed,
    spare: Cell<u16>,
    /// and for how many turns that has been watched.
    turns: Cell<u16>,
    /// Copies of what they received.
    copies: Arc<Held>,
}

impl Buffers {
    /// `count` buffers of at least `size` bytes, all free; at first `window` of them get published.
    pub(super) fn new(count: u16, size: usize, window: u16) -> Rc<Buffers> {
        let size = size.next_multiple_of(CACHE_LINE);
        let bytes = size * usize::from(count);
        assert!(bytes > 0, "a pool has buffers");
        // Aligned by hand: for a larger alignment than malloc's own the standard library writes the zeros itself, and all of
        // the memory is resident then (`alloc_zeroed` of std/src/sys/alloc/unix.rs).
        let layout = Layout::array::<u8>(bytes + CACHE_LINE).expect("a few megabytes are a valid layout");
        // SAFETY: the layout is not empty. Zeroed, so that every byte can be read from the start; the allocator gets a block
        // of this size from the kernel untouched, so that nothing is resident yet.
        let Some(block) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        // SAFETY: less than a cache line further on, and the block is larger than the buffers by one.
        let memory = unsafe { block.add(block.align_offset(CACHE_LINE)) };
        Rc::new(Buffers {
            memory,
            block,
            layout,
            size,
            states: vec![Cell::new(State::Free); count.into()].into(),
            free: RefCell::new((0..count).rev().collect()),
            published: Cell::new(0),
            window: Cell::new(window.min(count)),
            window_min: window.min(count),
            spare: Cell::new(u16::MAX),
            turns: Cell::new(0),
            copies: Arc::default(),
        })
    }

    /// Bytes in a buffer.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn count(&self) -> u16 {
        self.states.len() as u16
    }

    pub(super) fn published(&self) -> u16 {
        self.published.get()
    }

    /// Buffers that nobody has.
    #[cfg(any(test, fuzzing))]
    pub(super) fn free(&self) -> usize {
        self.free.borrow().len()
    }

    /// Bytes of leased buffers, and of copies. The others are memory of the engine, whatever connections do.
    pub(super) fn held(&self) -> usize {
        let idle = self.free.borrow().len() + usize::from(self.published.get());
        (self.states.len() - idle) * self.size + self.copies.bytes()
    }

    /// Whether so many are leased that holders of more should get copies.
    pub(super) fn is_scarce(&self) -> bool {
        let idle = self.free.borrow().len() + usize::from(self.published.get());
        idle < self.states.len() / 4
    }

    /// Lets more buffers be published at once: the kernel ran out of them.
    pub(super) fn widen(&self) {
        self.window.set(self.window.get().saturating_mul(2).min(self.count()));
    }

    /// A turn begins: narrows the window again if half of it has not been needed for a while.
    pub(super) fn begin_turn(&self) {
        self.spare.set(self.spare.get().min(self.published.get()));
        self.turns.set(self.turns.get() + 1);
        if self.turns.get() == NARROW_AFTER {
            if self.spare.get() > self.window.get() / 2 {
                self.window.set((self.window.get() / 2).max(self.window_min));
            }
            self.turns.set(0);
            self.spare.set(u16::MAX);
        }
    }

    /// The next free buffer that should go to the kernel, which has it from now on: its number and its address.
    pub(super) fn publish(&self) -> Option<(u16, *mut u8)> {
        if self.published.get() >= self.window.get() {
            return None;
        }
        let id = self.free.borrow_mut().pop()?;
        self.states[usize::from(id)].set(State::Published);
        self.published.set(self.published.get() + 1);
        Some((id, self.address(id).as_ptr()))
    }

    /// Takes over a buffer that a completion names.
    ///
    /// # Panics
    /// If that buffer was not published: two completions for one buffer would mean two owners.
    pub(super) fn lease(self: &Rc<Self>, id: u16) -> Lease {
        let state = &self.states[usize::from(id)];
        assert_eq!(
            state.replace(State::Leased),
            State::Published,
            "the kernel gave a buffer that it did not have"
        );
        self.published.set(self.published.get() - 1);
        Lease { address: self.address(id), buffers: self.clone(), id }
    }

    fn address(&self, id: u16) -> NonNull<u8> {
        assert!(id < self.count(), "a buffer that exists");
        // SAFETY: within the block, by the assertion.
        unsafe { self.memory.add(usize::from(id) * self.size) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout. No lease is left, as each holds the pool; the kernel has let go, or the
        // engine would have kept the pool for ever (invariant 3).
        unsafe { dealloc(self.block.as_ptr(), self.layout) }
    }
}

/// One buffer, as long as somebody reads it.
pub(crate) struct Lease {
    address: NonNull<u8>,
    buffers: Rc<Buffers>,
    id: u16,
}

impl Lease {
    /// What counts copies of this.
    pub(crate) fn held(&self) -> &Arc<Held> {
        &self.buffers.copies
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: leased, so nobody else writes to it (invariant 1), and `buffers` keeps the memory.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.buffers.size) }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the lease is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.buffers.size) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.buffers.states[usize::from(self.id)].set(State::Free);
        self.buffers.free.borrow_mut().push(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_freed_last_is_published_first_and_never_more_than_the_window() {
        let buffers = Buffers::new(4, 100, 2);
        assert_eq!(buffers.size(), 128);
        let (first, _) = buffers.publish().unwrap();
        let (second, _) = buffers.publish().unwrap();
        assert!(buffers.publish().is_none());
        let lease = buffers.lease(second);
        drop(buffers.lease(first));
        assert_eq!(buffers.publish().unwrap().0, first);
        drop(lease);
        assert_eq!(buffers.publish().unwrap().0, second);
        buffers.widen();
        assert!(buffers.publish().is_some());
    }

    #[test]
    fn a_lease_keeps_the_memory_when_the_pool_is_gone() {
        let buffers = Buffers::new(1, 64, 1);
        let (id, _) = buffers.publish().unwrap();
        let mut lease = buffers.lease(id);
        drop(buffers);
        lease[63] = 7;
        assert_eq!(lease[63], 7);
    }

    #[test]
    #[should_panic(expected = "did not have")]
    fn a_buffer_that_is_not_with_the_kernel_cannot_come_from_it() {
        let buffers = Buffers::new(2, 64, 1);
        let _ = buffers.lease(0);
    }
}
