//! Buffers that travel between an engine and a connection: chunks in, outgoing pieces out, and the pools behind both.
//!
//! A pool belongs to one worker. What is given back is the next to be leased, so a busy worker touches few, warm buffers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io::IoSlice;
use std::ops::{Deref, Range};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, Bytes};

use super::refillable::Refillable;
#[cfg(target_os = "linux")]
use super::uring::Lease;

/// Size of a leased receive buffer. Above 64 KiB, which is what a bulk sender writes at once and what a socket buffer
/// holds at first, so that it ends in a short read and costs no second system call to learn that the socket is drained.
pub(crate) const CHUNK_SIZE: usize = 65 * 1024;
/// Size of a buffer that coalesces small sends: with room for two TLS records of full size and what protects them.
pub(crate) const PIECE_SIZE: usize = 32 * 1024 + 128;
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
    /// Counted by whom it was copied from, if by anybody.
    Own(Box<[u8]>, Option<Arc<Held>>),
    Pooled(Box<[u8]>, Rc<ChunkPool>),
    /// Put together from several receptions, in a buffer of those for sending.
    Joined(Refillable, Rc<PiecePool>),
    #[cfg(target_os = "linux")]
    Leased(Lease),
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        match self {
            Storage::Own(data, _) | Storage::Pooled(data, _) => data,
            Storage::Joined(data, _) => data,
            #[cfg(target_os = "linux")]
            Storage::Leased(lease) => lease,
        }
    }

    /// Who counts it.
    fn held(&self) -> Option<&Arc<Held>> {
        match self {
            Storage::Own(_, held) => held.as_ref(),
            Storage::Pooled(_, pool) => Some(&pool.held),
            Storage::Joined(_, pool) => Some(&pool.held),
            #[cfg(target_os = "linux")]
            Storage::Leased(lease) => Some(lease.held()),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Storage::Own(data, _) | Storage::Pooled(data, _) => data,
            Storage::Joined(data, _) => data,
            #[cfg(target_os = "linux")]
            Storage::Leased(lease) => lease,
        }
    }
}

impl Chunk {
    /// A chunk of its own, outside every pool and not counted.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn copied(bytes: &[u8]) -> Chunk {
        Chunk::own(bytes.into(), bytes.len(), None)
    }

    /// A chunk of its own that `held` counts.
    pub(crate) fn counted(bytes: &[u8], held: &Arc<Held>) -> Chunk {
        Chunk::own(bytes.into(), bytes.len(), Some(held))
    }

    /// The same bytes in a chunk of its own, counted by the same.
    #[cfg(target_os = "linux")]
    pub(crate) fn copy(&self) -> Chunk {
        Chunk::own((**self).into(), self.len(), self.storage.held())
    }

    /// An empty chunk of its own with room for `room` bytes, counted by whoever counts this one.
    pub(crate) fn with_room(&self, room: usize) -> Chunk {
        Chunk::own(vec![0; room].into(), 0, self.storage.held())
    }

    fn own(data: Box<[u8]>, len: usize, held: Option<&Arc<Held>>) -> Chunk {
        if let Some(held) = held {
            held.grow(data.len());
        }
        Chunk { storage: Storage::Own(data, held.cloned()), start: 0, end: len as u32 }
    }

    /// The first `len` bytes of a buffer that the io_uring engine leased from the kernel.
    #[cfg(target_os = "linux")]
    pub(crate) fn leased(lease: Lease, len: usize) -> Chunk {
        debug_assert!(len <= lease.len(), "received more than the buffer holds");
        Chunk { storage: Storage::Leased(lease), start: 0, end: len as u32 }
    }

    /// The bytes of a buffer that `pool` has leased.
    pub(crate) fn joined(data: Refillable, pool: &Rc<PiecePool>) -> Chunk {
        let end = data.len() as u32;
        Chunk { storage: Storage::Joined(data, pool.clone()), start: 0, end }
    }

    /// Its bytes, to be changed where they lie.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.storage.bytes_mut()[self.start as usize..self.end as usize]
    }

    /// Leaves only this part of its bytes in view.
    pub(crate) fn narrow(&mut self, part: Range<usize>) {
        assert!(part.start <= part.end && part.end <= self.len(), "a part of the chunk");
        self.end = self.start + part.end as u32;
        self.start += part.start as u32;
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
        match &mut self.storage {
            Storage::Joined(data, _) if data.capacity() - end >= bytes.len() => {
                data.truncate(end);
                data.extend_from_slice(bytes);
            }
            storage => match storage.bytes_mut().get_mut(end..end + bytes.len()) {
                Some(room) => room.copy_from_slice(bytes),
                None => return false,
            },
        }
        self.end += bytes.len() as u32;
        true
    }
}

/// What received bytes lie in: a [`Chunk`] of a worker's buffers, or a [`Block`], which can go to another thread.
pub(crate) trait Received: Deref<Target = [u8]> + fmt::Debug + Sized {
    /// How the connections of one thread hold what they have in common.
    type Shared<T: fmt::Debug>: Deref<Target = T> + fmt::Debug;

    /// A copy, counted by `held` where buffers are counted.
    fn counted(bytes: &[u8], held: &Arc<Held>) -> Self;

    /// The bytes of a buffer that `pool` has leased.
    fn joined(data: Refillable, pool: &Self::Shared<PiecePool>) -> Self;

    /// An empty one with room for `room` bytes, counted as this one is.
    fn with_room(&self, room: usize) -> Self;

    /// Its bytes, to be changed where they lie.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// Leaves only this part of its bytes in view.
    fn narrow(&mut self, part: Range<usize>);

    /// Drops the first `n` bytes from view.
    fn advance(&mut self, n: usize);

    /// Appends all of `bytes` behind what is here if they fit; says whether they did.
    fn append(&mut self, bytes: &[u8]) -> bool;
}

impl Received for Chunk {
    type Shared<T: fmt::Debug> = Rc<T>;

    fn counted(bytes: &[u8], held: &Arc<Held>) -> Chunk {
        Chunk::counted(bytes, held)
    }

    fn joined(data: Refillable, pool: &Rc<PiecePool>) -> Chunk {
        Chunk::joined(data, pool)
    }

    fn with_room(&self, room: usize) -> Chunk {
        Chunk::with_room(self, room)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        Chunk::bytes_mut(self)
    }

    fn narrow(&mut self, part: Range<usize>) {
        Chunk::narrow(self, part);
    }

    fn advance(&mut self, n: usize) {
        Chunk::advance(self, n);
    }

    fn append(&mut self, bytes: &[u8]) -> bool {
        Chunk::append(self, bytes)
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
        match self {
            Storage::Pooled(data, pool) => pool.give(std::mem::take(data)),
            Storage::Joined(data, pool) => pool.give(std::mem::take(data)),
            Storage::Own(data, Some(held)) => held.shrink(data.len()),
            _ => {}
        }
    }
}

/// Received bytes of a connection that belongs to no worker: memory of its own, freed when it is dropped.
pub(crate) struct Block {
    data: Vec<u8>,
    start: usize,
}

impl Block {
    pub(crate) fn copied(bytes: &[u8]) -> Block {
        Block { data: bytes.to_vec(), start: 0 }
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        let mut bytes = Bytes::from(self.data);
        bytes.advance(self.start);
        bytes
    }
}

impl Received for Block {
    type Shared<T: fmt::Debug> = Box<T>;

    fn counted(bytes: &[u8], _: &Arc<Held>) -> Block {
        Block::copied(bytes)
    }

    fn joined(data: Refillable, _: &Box<PiecePool>) -> Block {
        Block { data: data.into_vec(), start: 0 }
    }

    fn with_room(&self, room: usize) -> Block {
        Block { data: Vec::with_capacity(room), start: 0 }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.data[self.start..]
    }

    fn narrow(&mut self, part: Range<usize>) {
        self.data.truncate(self.start + part.end);
        self.advance(part.start);
    }

    fn advance(&mut self, n: usize) {
        assert!(n <= self.len(), "advance past the end of a block");
        self.start += n;
    }

    fn append(&mut self, bytes: &[u8]) -> bool {
        let fits = self.data.capacity() - self.data.len() >= bytes.len();
        if fits {
            self.data.extend_from_slice(bytes);
        }
        fits
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data[self.start..]
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.len())
    }
}

/// How many bytes of buffers there are of one kind: counted when one is made and when one is freed, which warm pools do
/// neither.
///
/// One thread counts. The number is atomic only so that what a connection holds can go to another thread as a whole.
#[derive(Debug, Default)]
pub(crate) struct Held(AtomicUsize);

impl Held {
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn grow(&self, bytes: usize) {
        self.0.store(self.bytes() + bytes, Ordering::Relaxed);
    }

    /// Saturates, for an [`Outgoing`] may carry what was never counted.
    pub(crate) fn shrink(&self, bytes: usize) {
        self.0.store(self.bytes().saturating_sub(bytes), Ordering::Relaxed);
    }
}

/// The receive buffers of one worker.
pub(crate) struct ChunkPool {
    free: RefCell<Vec<Box<[u8]>>>,
    leased: Cell<usize>,
    /// Its buffers, free ones too, and copies of what they received.
    held: Arc<Held>,
    /// Memory is short.
    frugal: Cell<bool>,
}

impl ChunkPool {
    pub(crate) fn new() -> Rc<ChunkPool> {
        Rc::new(ChunkPool {
            free: RefCell::default(),
            leased: Cell::new(0),
            held: Arc::default(),
            frugal: Cell::new(false),
        })
    }

    /// Bytes of its buffers and of copies.
    pub(crate) fn held(&self) -> usize {
        self.held.bytes()
    }

    /// Frees what is idle.
    pub(crate) fn shed(&self) {
        let freed = self.free.take();
        self.held.shrink(freed.len() * CHUNK_SIZE);
    }

    /// Whether to copy receptions rather than to keep large buffers for them.
    pub(crate) fn set_frugal(&self, frugal: bool) {
        self.frugal.set(frugal);
    }

    pub(crate) fn is_frugal(&self) -> bool {
        self.frugal.get()
    }

    fn make(&self) -> Box<[u8]> {
        self.held.grow(CHUNK_SIZE);
        vec![0; CHUNK_SIZE].into()
    }

    /// Lets `read` fill a buffer and wraps what it filled; `None` if it read nothing, and the buffer never left.
    pub(crate) fn fill<E>(
        self: &Rc<Self>,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Option<Chunk>, E> {
        let free = self.free.borrow_mut().pop();
        let mut data = free.unwrap_or_else(|| self.make());
        self.leased.set(self.leased.get() + 1);
        let read = read(&mut data);
        let len = *read.as_ref().unwrap_or(&0);
        debug_assert!(len <= data.len(), "read more than the buffer holds");
        // What is handled before the next reception needs no copy, however short memory is.
        let crowded = match self.frugal.get() {
            false => self.leased.get() > LEASED_COMFORTABLE && len <= CHUNK_SIZE / 4,
            true => self.leased.get() > 1 && len <= CHUNK_SIZE / 2,
        };
        let copy = (crowded && len > 0).then(|| Chunk::counted(&data[..len], &self.held));
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
        } else {
            self.held.shrink(data.len());
        }
    }
}

/// The buffers in which one worker coalesces small sends, and the count of all that it has to send.
pub(crate) struct PiecePool {
    small: RefCell<Vec<Refillable>>,
    large: RefCell<Vec<Refillable>>,
    /// Its buffers, free ones too, and what was given away whole to be sent.
    held: Arc<Held>,
    /// Memory is short: connections have to do with one message at a time.
    short: Cell<bool>,
}

impl PiecePool {
    /// The pool of a worker.
    pub(crate) fn new() -> Rc<PiecePool> {
        Rc::new(PiecePool::of_one())
    }

    /// The pool of one connection that belongs to no worker.
    pub(crate) fn of_one() -> PiecePool {
        PiecePool {
            small: RefCell::default(),
            large: RefCell::default(),
            held: Arc::default(),
            short: Cell::new(false),
        }
    }

    /// Bytes of its buffers, and of what was given away whole.
    pub(crate) fn held(&self) -> usize {
        self.held.bytes()
    }

    /// What counts bytes that connections hold by other means.
    pub(crate) fn count(&self) -> &Arc<Held> {
        &self.held
    }

    pub(crate) fn is_short(&self) -> bool {
        self.short.get()
    }

    pub(crate) fn set_short(&self, short: bool) {
        self.short.set(short);
    }

    /// Frees what is idle.
    pub(crate) fn shed(&self) {
        for piece in self.small.take().into_iter().chain(self.large.take()) {
            self.held.shrink(piece.capacity());
        }
    }

    fn make(&self, size: usize) -> Refillable {
        let piece = Refillable::with_capacity(size);
        self.held.grow(piece.capacity());
        piece
    }

    /// An empty buffer with room for `len` bytes, at most [`PIECE_SIZE`].
    #[inline]
    pub(crate) fn lease(&self, len: usize) -> Refillable {
        let (free, size) =
            if len <= SMALL_PIECE_SIZE { (&self.small, SMALL_PIECE_SIZE) } else { (&self.large, PIECE_SIZE) };
        let free = free.borrow_mut().pop();
        free.unwrap_or_else(|| self.make(size))
    }

    /// Takes back what [`PiecePool::lease`] gave.
    #[inline]
    pub(crate) fn give(&self, mut piece: Refillable) {
        piece.clear();
        let free = if piece.capacity() < PIECE_SIZE { &self.small } else { &self.large };
        let mut free = free.borrow_mut();
        if free.len() < FREE_MAX {
            free.push(piece);
        } else {
            self.held.shrink(piece.capacity());
        }
    }

    /// Takes back what is sent.
    #[inline]
    fn retire(&self, piece: Piece) {
        match piece {
            Piece::Copied(piece) => self.give(piece),
            Piece::Owned(bytes) => self.held.shrink(bytes.len()),
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
    Copied(Refillable),
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
            if let Some(piece) = self.tail()
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

    /// Has `append` append at most `room` bytes to the last buffer; to a new one, if that has no room for them in one
    /// stretch. A `started` stretch at its end stays with them.
    #[inline]
    pub(crate) fn extend_tail<T>(
        &mut self,
        started: usize,
        room: usize,
        pool: &PiecePool,
        append: impl FnOnce(&mut Refillable) -> T,
    ) -> T {
        debug_assert!(started + room <= PIECE_SIZE, "no buffer has so much room");
        let fits = match self.tail() {
            Some(tail) if tail.len() + room <= tail.capacity() => true,
            Some(tail) if tail.len() + room <= PIECE_SIZE => {
                let mut large = pool.lease(PIECE_SIZE);
                large.extend_from_slice(tail);
                pool.give(std::mem::replace(tail, large));
                true
            }
            _ => false,
        };
        if !fits {
            debug_assert_eq!(started, 0, "there is room for what was started");
            self.push_piece(Piece::Copied(pool.lease(room)));
        }
        let Some(tail) = self.tail() else { unreachable!("there is a last buffer") };
        let before = tail.len();
        let appended = append(tail);
        let added = tail.len() - before;
        self.len += added;
        appended
    }

    /// How many bytes the last buffer can still take, grown to its full size.
    pub(crate) fn tail_room(&mut self) -> usize {
        self.tail().map_or(0, |tail| PIECE_SIZE.saturating_sub(tail.len()))
    }

    /// The last buffer, if it is one that can be appended to.
    #[inline]
    fn tail(&mut self) -> Option<&mut Refillable> {
        match self.rest.as_mut().and_then(|rest| rest.back_mut()).or(self.head.as_mut()) {
            Some(Piece::Copied(piece)) => Some(piece),
            _ => None,
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
            if let Some(piece) = self.head.take() {
                pool.retire(piece);
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
            pool.retire(head);
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

    pub(crate) fn has_rest(&self) -> bool {
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn receive(pool: &Rc<ChunkPool>, len: usize) -> Chunk {
        let Ok::<_, Infallible>(chunk) = pool.fill(|_| Ok(len));
        chunk.expect("bytes came")
    }

    #[test]
    fn a_pool_counts_its_buffers_and_frees_the_idle_ones() {
        let pool = ChunkPool::new();
        let kept = receive(&pool, 10);
        drop((receive(&pool, 10), receive(&pool, 10)));
        assert_eq!(pool.held(), 3 * CHUNK_SIZE);
        pool.shed();
        assert_eq!(pool.held(), CHUNK_SIZE);
        drop(kept);
        pool.shed();
        assert_eq!(pool.held(), 0);
    }

    #[test]
    fn a_frugal_pool_keeps_copies_of_what_waits_behind_others() {
        let pool = ChunkPool::new();
        pool.set_frugal(true);
        let chunks = [receive(&pool, 10), receive(&pool, 20), receive(&pool, CHUNK_SIZE)];
        pool.shed();
        assert_eq!(pool.held(), 2 * CHUNK_SIZE + 20);
        drop(chunks);
        pool.shed();
        assert_eq!(pool.held(), 0);
    }

    #[test]
    fn what_is_queued_counts_until_it_is_sent() {
        let pool = PiecePool::new();
        let mut outgoing = Outgoing::default();
        outgoing.push_copied(&[0; 100], &pool);
        assert_eq!(pool.held(), SMALL_PIECE_SIZE);
        pool.count().grow(5000);
        outgoing.push_owned(vec![0; 5000].into());
        outgoing.advance(200, &pool);
        assert_eq!(pool.held(), SMALL_PIECE_SIZE + 5000, "an owned message counts whole");
        outgoing.advance(4900, &pool);
        assert_eq!(pool.held(), SMALL_PIECE_SIZE, "kept for the next message");
        pool.shed();
        assert_eq!(pool.held(), 0);
    }
}
