//! The real kernel: one io_uring instance with its ring of provided buffers.
//!
//! # Invariants
//!
//! 1. The ring is created, entered and dropped on one thread (IORING_SETUP_SINGLE_ISSUER).
//! 2. A request is pushed with pointers that its caller keeps valid until its last completion ([`Kernel::push`]).
//! 3. `provided` is registered with the kernel from `new` to `drop`; its entries point into `buffers`, which is kept alive
//!    beyond that, and only at buffers in the published state.
//! 4. Teardown, in this order: the driver has ended all requests and seen their last completions; the provided buffers are
//!    unregistered; the ring is closed; the memory is freed. If requests could not be ended ([`Ring::abandon`]), the
//!    memory that they may write to is leaked instead.

#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, CancelBuilder, Fd};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::buffers::Buffers;
use super::kernel::{Completed, Kernel, Key, Request};
use crate::address::Address;
use crate::engine::{UringFeatures, outq, socket};

/// The only buffer group of a ring.
const GROUP: u16 = 0;
/// Where a submission queue entry has `optlen`, which caps a multishot receive from Linux 6.17 on (io_uring_enter(2)); the
/// io-uring crate has no name for it.
const OPTLEN_OFFSET: usize = 44;
/// The key of closes, which belong to nobody any more. No kind of request has it, so their failures are ignored.
const CLOSE: u64 = u64::MAX;
/// The largest page that Linux has: what is aligned to it is aligned to a page.
const PAGE: usize = 64 * 1024;
/// MSG_WAITALL, which rustix knows only for receiving.
const WAITALL: SendFlags = SendFlags::from_bits_retain(RecvFlags::WAITALL.bits());

/// How large a ring is.
#[derive(Copy, Clone, Debug)]
pub(super) struct Sizes {
    pub(super) submissions: u32,
    pub(super) completions: u32,
    pub(super) buffers: u16,
    pub(super) buffer_size: usize,
    /// Buffers published at first.
    pub(super) window: u16,
}

pub(crate) struct Ring {
    provided: Provided,
    buffers: ManuallyDrop<Rc<Buffers>>,
    ring: ManuallyDrop<IoUring>,
    features: UringFeatures,
    no_iowait: EnterFlags,
}

impl Ring {
    pub(super) fn new(sizes: Sizes, has_caps: bool) -> io::Result<(Ring, Rc<Buffers>)> {
        let build = |no_sqarray: bool| {
            let mut builder = IoUring::builder();
            builder
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_taskrun_flag()
                .setup_submit_all()
                .setup_cqsize(sizes.completions)
                .setup_clamp()
                .dontfork();
            if no_sqarray {
                builder.setup_no_sqarray();
            }
            builder.build(sizes.submissions)
        };
        // Without the index array one memory access is saved per request, from Linux 6.6 on.
        let (ring, no_index) = match build(true) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => (build(false)?, false),
            other => (other?, true),
        };
        let buffers = Buffers::new(sizes.buffers, sizes.buffer_size, sizes.window);
        let provided = Provided::new(sizes.buffers);
        // SAFETY: `provided` is page-aligned, has room for that many entries, and lives until it is unregistered (invariant 3).
        unsafe {
            ring.submitter().register_buf_ring_with_flags(provided.address(), sizes.buffers, GROUP, 0)?;
        }
        let no_iowait = ring.params().is_feature_no_iowait();
        let ring = Ring {
            provided,
            buffers: ManuallyDrop::new(buffers.clone()),
            ring: ManuallyDrop::new(ring),
            features: UringFeatures { receive_caps: has_caps, no_iowait, no_index },
            no_iowait: if no_iowait { EnterFlags::NO_IOWAIT } else { EnterFlags::empty() },
        };
        Ok((ring, buffers))
    }

    pub(super) fn features(&self) -> UringFeatures {
        self.features
    }

    fn entry(&self, request: &Request) -> squeue::Entry {
        match *request {
            Request::Receive { fd, cap } => {
                let mut entry = opcode::RecvMulti::new(Fd(fd), GROUP).build();
                if self.features.receive_caps {
                    set_cap(&mut entry, cap);
                }
                entry
            }
            Request::PollReadable { fd } => poll(fd, PollFlags::IN | PollFlags::RDHUP).build(),
            // Errors are always told, and so is the peer's end (io_uring_enter(2)): with `multi`, what follows it as well.
            Request::PollBroken { fd } => poll(fd, PollFlags::empty()).multi(true).build(),
            Request::PollAlways { fd } => poll(fd, PollFlags::IN | PollFlags::RDHUP).multi(true).build(),
            Request::Send { fd, bytes, len } => {
                opcode::Send::new(Fd(fd), bytes, len).flags(SendFlags::NOSIGNAL.bits().cast_signed()).build()
            }
            Request::SendQuietly { fd, bytes, len } => {
                // MSG_DONTWAIT: not later. MSG_WAITALL: a send of less than all counts as failed, and failures are told.
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT | WAITALL;
                let entry = opcode::Send::new(Fd(fd), bytes, len).flags(flags.bits().cast_signed()).build();
                entry.flags(squeue::Flags::SKIP_SUCCESS)
            }
            Request::Connect { fd, address } => {
                // SAFETY: valid until the completion, as the caller of `push` promised.
                let address = unsafe { &*address };
                opcode::Connect::new(Fd(fd), address.as_ptr().cast(), address.len()).build()
            }
            Request::Cancel { key } => opcode::AsyncCancel::new(key.0).build(),
            Request::CancelAll => opcode::AsyncCancel2::new(CancelBuilder::any().all()).build(),
        }
    }
}

fn poll(fd: i32, flags: PollFlags) -> opcode::PollAdd {
    opcode::PollAdd::new(Fd(fd), u32::from(flags.bits()))
}

fn set_cap(entry: &mut squeue::Entry, cap: u32) {
    const { assert!(size_of::<squeue::Entry>() == 64) }
    // SAFETY: an entry is 64 plain bytes in the kernel's layout (`repr(C)`), of which these four are the field.
    unsafe {
        let field = std::ptr::from_mut(entry).cast::<u8>().add(OPTLEN_OFFSET);
        field.cast::<u32>().write_unaligned(cap);
    }
}

impl Kernel for Ring {
    unsafe fn push(&mut self, key: Key, request: &Request) -> bool {
        let entry = self.entry(request).user_data(key.0);
        // SAFETY: the caller keeps what the entry points to; sizes are the kernel's.
        unsafe { self.ring.submission().push(&entry).is_ok() }
    }

    fn enter(&mut self, sleep: bool) -> io::Result<()> {
        let queue = self.ring.submission();
        let (queued, stirring) = (queue.len() as u32, queue.taskrun() || queue.cq_overflow());
        drop(queue);
        if queued == 0 && !stirring && !sleep {
            return Ok(());
        }
        // Deferred work is done only by calls that ask for events.
        let flags = EnterFlags::GETEVENTS | self.no_iowait;
        // SAFETY: plain integers, and no argument.
        let entered =
            unsafe { self.ring.submitter().enter::<()>(queued, u32::from(sleep), flags.bits(), None) };
        match entered {
            Ok(_) => Ok(()),
            // A signal; or completions, which the kernel wants to be taken before it goes on. The queue keeps what it did not
            // take, for the next call.
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn pop(&mut self) -> Option<Completed> {
        self.ring.completion().next().map(|entry| completed(&entry))
    }

    fn drain(&mut self, into: &mut Vec<Completed>) {
        into.extend(self.ring.completion().map(|entry| completed(&entry)));
    }

    fn queued(&self) -> usize {
        // SAFETY: only the indices are read; `&mut self` is needed for everything that moves the tail.
        unsafe { self.ring.submission_shared() }.len()
    }

    fn has_overflowed(&self) -> bool {
        // SAFETY: only the flags are read; `&mut self` is needed for everything that moves the tail.
        unsafe { self.ring.submission_shared() }.cq_overflow()
    }

    fn publish(&mut self, buffers: &Buffers) {
        self.provided.extend(std::iter::from_fn(|| buffers.publish()), buffers.size());
    }

    fn has_caps(&self) -> bool {
        self.features.receive_caps
    }

    fn abandon(&mut self) {
        std::mem::forget(Rc::clone(&self.buffers));
    }

    fn is_stirring(&self) -> bool {
        // SAFETY: only the indices are read; `&mut self` is needed for everything that moves the head.
        let has_completed = !unsafe { self.ring.completion_shared() }.is_empty();
        // SAFETY: only the flags are read; `&mut self` is needed for everything that moves the tail.
        has_completed || self.has_overflowed() || unsafe { self.ring.submission_shared() }.taskrun()
    }

    fn receive(&mut self, socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
        socket::receive(socket, into)
    }

    fn send(&mut self, socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
        socket::send(socket, bytes)
    }

    fn send_gathered(&mut self, socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> Result<usize, Errno> {
        socket::send_gathered(socket, slices)
    }

    fn accept(&mut self, listener: BorrowedFd<'_>) -> Result<(OwnedFd, Address), Errno> {
        match socket::accept(listener) {
            Err(Errno::MFILE) if self.queued() > 0 => {
                // Descriptors may be about to be closed.
                drop(self.enter(false));
                socket::accept(listener)
            }
            accepted => accepted,
        }
    }

    fn failure(&mut self, socket: BorrowedFd<'_>) -> Option<io::Error> {
        socket::failure(socket)
    }

    fn unacked(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        outq::unacked(socket)
    }

    fn shutdown(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        socket::shutdown(socket)
    }

    fn close(&mut self, socket: OwnedFd, reset: bool) {
        if reset {
            socket::reset_on_close(socket.as_fd());
        }
        let fd = socket.into_raw_fd();
        let close = opcode::Close::new(Fd(fd)).build().flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: it points to nothing, and the descriptor is given away.
        let pushed = unsafe { self.ring.submission().push(&close.user_data(CLOSE)) };
        if pushed.is_err() {
            // SAFETY: it came out of an owner a moment ago.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

fn completed(entry: &cqueue::Entry) -> Completed {
    Completed {
        key: Key(entry.user_data()),
        result: entry.result(),
        more: cqueue::more(entry.flags()),
        buffer: cqueue::buffer_select(entry.flags()),
    }
}

pub(super) fn is_transient(error: &io::Error) -> bool {
    let transient = [Errno::INTR, Errno::BUSY, Errno::AGAIN];
    transient.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Closes that were queued; the kernel takes what it can of them.
        drop(self.enter(false));
        // In the order of invariant 4. Should unregistering fail, closing the ring does it.
        drop(self.ring.submitter().unregister_buf_ring(GROUP));
        // SAFETY: neither is used after this.
        unsafe {
            ManuallyDrop::drop(&mut self.ring);
            ManuallyDrop::drop(&mut self.buffers);
        }
    }
}

/// The ring in which free buffers are named to the kernel: entries in a circle, and their tail, which the kernel reads.
struct Provided {
    entries: NonNull<BufRingEntry>,
    count: u16,
    tail: u16,
}

impl Provided {
    /// # Panics
    /// If `count` is not a power of two, as the kernel wants it (io_uring_register(2), IORING_REGISTER_PBUF_RING).
    fn new(count: u16) -> Provided {
        assert!(count.is_power_of_two(), "a ring of 2^n buffers");
        let layout = Provided::layout(count);
        // SAFETY: the layout is not empty.
        let Some(memory) = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }) else {
            std::alloc::handle_alloc_error(layout)
        };
        Provided { entries: memory.cast(), count, tail: 0 }
    }

    fn layout(count: u16) -> std::alloc::Layout {
        let bytes = size_of::<BufRingEntry>() * usize::from(count);
        std::alloc::Layout::from_size_align(bytes, PAGE).expect("at most 64 KiB of entries")
    }

    fn address(&self) -> u64 {
        self.entries.as_ptr() as u64
    }

    fn extend(&mut self, buffers: impl Iterator<Item = (u16, *mut u8)>, size: usize) {
        let before = self.tail;
        for (id, address) in buffers {
            let place = usize::from(self.tail & (self.count - 1));
            // SAFETY: within the allocation by the mask. The kernel reads an entry only below the tail that it was told.
            let entry = unsafe { self.entries.add(place).as_mut() };
            entry.set_addr(address as u64);
            entry.set_len(size as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
        }
        if self.tail != before {
            // SAFETY: the tail overlies the first entry's reserved field (io_uring_register(2)); the kernel reads it while we
            // write, hence atomic, and must see the entries before it, hence Release.
            let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()) };
            tail.store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; `Ring::drop` ran before, so the kernel reads it no more.
        unsafe { std::alloc::dealloc(self.entries.as_ptr().cast(), Provided::layout(self.count)) }
    }
}
