//! Buffers that travel between an engine and a connection: chunks in, outgoing pieces out, and the pools behind both.
//!
//! A pool belongs to one worker. What is given back is the next to be leased, so a busy worker touches few, warm buffers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;
use std::ops::Deref;
use std::rc::Rc;

use bytes::{Buf, Bytes};

#[cfg(target_os = "linux")]
use super::uring::Lease;

/// Size of a leased receive buffer. Above 64 KiB, which is what a bulk sender writes at once and what a socket buffer
/// holds at first, so that it ends in a short read and costs no second system call to learn that the socket is drained.
pub(crate) const CHUNK_SIZE: usize = 65 * 1024;
/// Size of a buffer that coalesces small sends.
pub(crate) const PIECE_SIZE: usize = 32 * 1024;
/// Size of the buffer that such sends start in: many of these lie on one page, and a turn's worth of messages in the cache.
const SMALL_PIECE_SIZE: usize = 512;
/// Free buffers that a pool keeps; what comes back above that is given to the allocator.
const FREE_MAX: usize = 64;
/// Above this many leased chunks (8 MiB), small receptions are copied to exact size and the lease ends at once.
const LEASED_COMFORTABLE: usize = 128;
/// The most slices one gathered send names; a quarter of Linux's UIO_MAXIOV (1024), and more than a send ever accepts.
pub(crate) const SLICES_MAX: usize = 64;

/// Received bytes, leased from the worker's buffers without a copy.
///
/// Reads as a byte slice; the buffer returns to its worker when the chunk is dropped. Hold it briefly: copy what must
/// live long.
pub struct Chunk {
    storage: Storage,
    start: u32,
    end: u32,
}

/// Where the bytes of a chunk are, and where they go when it is dropped.
enum Storage {
    Own(Box<[u8]>),
    Pooled(Box<[u8]>, Rc<ChunkPool>),
    #[cfg(target_os = "linux")]
    Leased(Lease),
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        match self {
            Storage::Own(data) | Storage::Pooled(data, _) => data,
            #[cfg(target_os = "linux")]
            Storage::Leased(lease) => lease,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Storage::Own(data) | Storage::Pooled(data, _) => data,
            #[cfg(target_os = "linux")]
            Storage::Leased(lease) => lease,
        }
    }
}

impl Chunk {
    /// A chunk of its own, outside every pool.
    pub(crate) fn copied(bytes: &[u8]) -> Chunk {
        Chunk { storage: Storage::Own(bytes.into()), start: 0, end: bytes.len() as u32 }
    }

    /// An empty chunk of its own with room for `room` bytes.
    pub(crate) fn with_room(room: usize) -> Chunk {
        Chunk { storage: Storage::Own(vec![0; room].into()), start: 0, end: 0 }
    }

    /// The first `len` bytes of a buffer that the io_uring engine leased from the kernel.
    #[cfg(target_os = "linux")]
    pub(crate) fn leased(lease: Lease, len: usize) -> Chunk {
        debug_assert!(len <= lease.len(), "received more than the buffer holds");
        Chunk { storage: Storage::Leased(lease), start: 0, end: len as u32 }
    }

    /// Drops the first `n` bytes from view.
    ///
    /// # Panics
    /// If the chunk is shorter than `n`.
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.len(), "advance past the end of a chunk");
        self.start += n as u32;
    }

    /// Appends all of `bytes` behind what is here if they fit; says whether they did.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> bool {
        let end = self.end as usize;
        match self.storage.bytes_mut().get_mut(end..end + bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.end += bytes.len() as u32;
                true
            }
            None => false,
        }
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.storage.bytes()[self.start as usize..self.end as usize]
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.len())
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Storage::Pooled(data, pool) = self {
            pool.give(std::mem::take(data));
        }
    }
}

/// The receive buffers of one worker.
pub(crate) struct ChunkPool {
    free: RefCell<Vec<Box<[u8]>>>,
    leased: Cell<usize>,
}

impl ChunkPool {
    pub(crate) fn new() -> Rc<ChunkPool> {
        Rc::new(ChunkPool { free: RefCell::new(Vec::new()), leased: Cell::new(0) })
    }

    /// Lets `read` fill a buffer and wraps what it filled; `None` if it read nothing, and the buffer never left.
    pub(crate) fn fill<E>(
        self: &Rc<Self>,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Option<Chunk>, E> {
        let mut data = self.free.borrow_mut().pop().unwrap_or_else(|| vec![0; CHUNK_SIZE].into());
        self.leased.set(self.leased.get() + 1);
        let read = read(&mut data);
        let len = *read.as_ref().unwrap_or(&0);
        debug_assert!(len <= data.len(), "read more than the buffer holds");
        let crowded = self.leased.get() > LEASED_COMFORTABLE && len <= CHUNK_SIZE / 4;
        let copy = (crowded && len > 0).then(|| Chunk::copied(&data[..len]));
        if len == 0 || copy.is_some() {
            self.give(data);
            return read.map(|_| copy);
        }
        Ok(Some(Chunk { storage: Storage::Pooled(data, self.clone()), start: 0, end: len as u32 }))
    }

    #[inline]
    fn give(&self, data: Box<[u8]>) {
        debug_assert_eq!(data.len(), CHUNK_SIZE, "a foreign buffer came back");
        self.leased.set(self.leased.get() - 1);
        let mut free = self.free.borrow_mut();
        if free.len() < FREE_MAX {
            free.push(data);
        }
    }
}

/// The buffers in which one worker coalesces small sends.
pub(crate) struct PiecePool {
    small: RefCell<Vec<Vec<u8>>>,
    large: RefCell<Vec<Vec<u8>>>,
}

impl PiecePool {
    pub(crate) fn new() -> Rc<PiecePool> {
        Rc::new(PiecePool { small: RefCell::default(), large: RefCell::default() })
    }

    /// An empty buffer with room for `len` bytes, at most [`PIECE_SIZE`].
    #[inline]
    fn lease(&self, len: usize) -> Vec<u8> {
        let (free, size) =
            if len <= SMALL_PIECE_SIZE { (&self.small, SMALL_PIECE_SIZE) } else { (&self.large, PIECE_SIZE) };
        free.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(size))
    }

    #[inline]
    fn give(&self, mut piece: Vec<u8>) {
        piece.clear();
        let free = if piece.capacity() < PIECE_SIZE { &self.small } else { &self.large };
        let mut free = free.borrow_mut();
        if free.len() < FREE_MAX {
            free.push(piece);
        }
    }
}

impl fmt::Debug for PiecePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PiecePool")
    }
}

/// One stretch of bytes to send.
enum Piece {
    /// Small sends, coalesced in a buffer of the pool.
    Copied(Vec<u8>),
    /// What the caller gave away whole.
    Owned(Bytes),
}

impl Piece {
    fn as_slice(&self) -> &[u8] {
        match self {
            Piece::Copied(bytes) => bytes,
            Piece::Owned(bytes) => bytes,
        }
    }
}

/// Bytes on their way out, in order. Moves whole to the engine and comes back with the completion of its send, so no
/// memory is ever shared between the two.
#[derive(Default)]
pub(crate) struct Outgoing {
    /// The first piece lives here, so that the usual connection, with one, allocates no queue.
    head: Option<Piece>,
    /// The others, in a queue that is made when there is one.
    #[allow(clippy::box_collection, reason = "an idle connection keeps a pointer, not an empty queue")]
    rest: Option<Box<VecDeque<Piece>>>,
    /// Bytes of `head` that are sent already.
    head_sent: usize,
    len: usize,
}

impl Outgoing {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `bytes` behind what is queued, filling the last pooled buffer first.
    #[inline]
    pub(crate) fn push_copied(&mut self, bytes: &[u8], pool: &PiecePool) {
        self.len += bytes.len();
        if self.head.is_none() && bytes.len() <= PIECE_SIZE && !bytes.is_empty() {
            let mut piece = pool.lease(bytes.len());
            piece.extend_from_slice(bytes);
            self.head = Some(Piece::Copied(piece));
        } else {
            self.fill_up(bytes, pool);
        }
    }

    fn fill_up(&mut self, mut bytes: &[u8], pool: &PiecePool) {
        while !bytes.is_empty() {
            let last = self.rest.as_mut().and_then(|rest| rest.back_mut()).or(self.head.as_mut());
            if let Some(Piece::Copied(piece)) = last
                && piece.len() < PIECE_SIZE
            {
                let n = bytes.len().min(PIECE_SIZE - piece.len());
                if piece.len() + n > piece.capacity() {
                    let mut large = pool.lease(PIECE_SIZE);
                    large.extend_from_slice(piece);
                    pool.give(std::mem::replace(piece, large));
                }
                piece.extend_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
            } else {
                self.push_piece(Piece::Copied(pool.lease(bytes.len().min(PIECE_SIZE))));
            }
        }
    }

    /// Queues `bytes` without copying them.
    pub(crate) fn push_owned(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.push_piece(Piece::Owned(bytes));
        }
    }

    /// The unsent bytes as at most [`SLICES_MAX`] slices; returns how many of `slices` are set.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut skip = self.head_sent;
        let mut count = 0;
        for (slot, piece) in slices.iter_mut().zip(self.pieces()) {
            *slot = IoSlice::new(&piece.as_slice()[skip..]);
            skip = 0;
            count += 1;
        }
        count
    }

    /// The unsent bytes, if they are one slice: the usual case.
    pub(crate) fn single(&self) -> Option<&[u8]> {
        match (&self.head, self.has_rest()) {
            (Some(piece), false) => Some(&piece.as_slice()[self.head_sent..]),
            _ => None,
        }
    }

    /// The first slice of the unsent bytes: all of them in the usual case.
    #[cfg(target_os = "linux")]
    pub(crate) fn first(&self) -> &[u8] {
        self.head.as_ref().map_or(&[], |piece| &piece.as_slice()[self.head_sent..])
    }

    /// Forgets the first `n` unsent bytes and gives their buffers back.
    #[inline]
    pub(crate) fn advance(&mut self, n: usize, pool: &PiecePool) {
        assert!(n <= self.len, "an engine reported more bytes sent than it was given");
        self.len -= n;
        if self.len == 0 && !self.has_rest() {
            self.head_sent = 0;
            if let Some(Piece::Copied(piece)) = self.head.take() {
                pool.give(piece);
            }
        } else {
            self.advance_by_pieces(n, pool);
        }
    }

    fn advance_by_pieces(&mut self, mut n: usize, pool: &PiecePool) {
        while let Some(head) = self.head.take() {
            let left = head.as_slice().len() - self.head_sent;
            if n < left {
                self.head_sent += n;
                self.head = Some(head);
                return;
            }
            n -= left;
            self.head_sent = 0;
            self.head = self.rest.as_mut().and_then(|rest| rest.pop_front());
            if let Piece::Copied(piece) = head {
                pool.give(piece);
            }
        }
    }

    /// Moves everything of `later` behind what is here.
    pub(crate) fn append(&mut self, later: &mut Outgoing) {
        debug_assert_eq!(later.head_sent, 0, "only untouched bytes can follow others");
        self.len += std::mem::take(&mut later.len);
        if let Some(head) = later.head.take() {
            self.push_piece(head);
        }
        for piece in later.rest.iter_mut().flat_map(|rest| rest.drain(..)) {
            self.push_piece(piece);
        }
    }

    /// Copies the unsent bytes out; for tests and for engines that have no scatter-gather.
    pub(crate) fn copy_to(&self, out: &mut VecDeque<u8>, max: usize) -> usize {
        let mut left = max.min(self.len);
        let total = left;
        let mut skip = self.head_sent;
        for piece in self.pieces() {
            let mut bytes = &piece.as_slice()[skip..];
            skip = 0;
            bytes = &bytes[..left.min(bytes.remaining())];
            out.extend(bytes);
            left -= bytes.len();
            if left == 0 {
                break;
            }
        }
        total
    }

    fn push_piece(&mut self, piece: Piece) {
        if self.head.is_none() {
            self.head = Some(piece);
        } else {
            self.rest.get_or_insert_default().push_back(piece);
        }
    }

    fn has_rest(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| !rest.is_empty())
    }

    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.head.iter().chain(self.rest.iter().flat_map(|rest| rest.iter()))
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing({} bytes)", self.len)
    }
}
