//! An io_uring loop with nothing around it: what is left is the kernel's cost. No limits, no deadlines.
//!
//! One ring and one enter per turn; multishot accept and receive, sockets that are descriptors of the ring only,
//! buffers that the kernel fills one behind the other with whatever comes from anybody, and sends straight out of them.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail, ensure};
use io_uring::types::{BufRingEntry, Fd, Fixed};
use io_uring::{CompletionQueue, IoUring, SubmissionQueue, Submitter, cqueue, opcode, squeue};

use super::{Peer, announce, listen};
use crate::sys;

pub const PEER: Peer = Peer {
    name: "bare_uring",
    about: "io_uring by hand on one thread, 8 buffers of 64 KiB for all, filled bit by bit",
    ..Peer::echo(serve)
};

/// Few and together smaller than a core's cache, since they are filled in turn: small messages lie side by side in them,
/// and large ones are not torn into many.
const BUFFER_SIZE: usize = 64 * 1024;
const BUFFERS: u16 = 8;
const SUBMISSIONS: u32 = 512;
/// More wait in the kernel's memory, which costs more.
const COMPLETIONS: u32 = 32 * 1024;
/// The most that one gathering send takes.
const GATHERED_MAX: usize = 16;
/// Receives that are tried again in one turn for each buffer that is not full.
const FED_PER_BUFFER: usize = 32;

fn serve() -> Result<()> {
    let listener = listen()?;
    let mut ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_no_sqarray()
        .setup_cqsize(COMPLETIONS)
        .build(SUBMISSIONS)?;
    let descriptors = u32::try_from(sys::raise_open_files_limit()?)?;
    ring.submitter().register_files_sparse(descriptors)?;
    ring.submitter().register_ring_fd()?;
    let buffers = Buffers::register(&ring.submitter(), BUFFER_SIZE, BUFFERS)?;
    announce(listener.local_addr()?)?;

    let (submitter, submissions, mut completions) = ring.split();
    let mut turn = Turn {
        listener: Fd(listener.as_raw_fd()),
        submitter,
        submissions,
        buffers,
        connections: (0..descriptors).map(|_| Connection::default()).collect(),
        pieces: Pieces::default(),
        tried: Vec::new(),
        hurry: false,
        to_send: Vec::new(),
        starved: Vec::new(),
        gathered: Vec::with_capacity(descriptors as usize),
    };
    turn.accept()?;
    loop {
        turn.run(&mut completions)?;
    }
}

/// What a completion is of; the rest of `user_data` is the connection.
const ACCEPTED: u64 = 0 << 32;
const RECEIVED: u64 = 1 << 32;
const SENT: u64 = 2 << 32;
const CLOSED: u64 = 3 << 32;

/// No piece.
const NONE: u32 = u32::MAX;

struct Connection {
    /// What was received and is not sent, linked by `Piece::next`.
    first: u32,
    last: u32,
    sending: bool,
    /// The bytes that the send is of.
    in_send: i32,
    /// The peer reads slowly: the kernel shall wait until it takes all.
    patient: bool,
    /// It is in `Turn::to_send`.
    queued: bool,
    receiving: bool,
    /// Nothing comes any more, and what cannot be sent is dropped.
    ended: bool,
    broken: bool,
}

impl Default for Connection {
    fn default() -> Connection {
        Connection {
            first: NONE,
            last: NONE,
            sending: false,
            in_send: 0,
            patient: false,
            queued: false,
            receiving: false,
            ended: false,
            broken: false,
        }
    }
}

struct Turn<'a> {
    listener: Fd,
    submitter: Submitter<'a>,
    submissions: SubmissionQueue<'a>,
    buffers: Buffers,
    /// By their slot in the ring's table of descriptors.
    connections: Vec<Connection>,
    pieces: Pieces,
    /// Connections with a send that tells only of a failure, since the last enter.
    tried: Vec<u32>,
    /// Something is to be done as soon as those sends are.
    hurry: bool,
    /// Connections that have pieces and no send.
    to_send: Vec<u32>,
    /// Connections whose receive ended for want of a buffer.
    starved: Vec<u32>,
    /// What gathering sends point to until they are submitted. Never grows.
    gathered: Vec<Gathered>,
}

/// What one receive brought.
#[derive(Copy, Clone)]
struct Piece {
    start: *const u8,
    length: u32,
    buffer: u16,
    next: u32,
}

/// All pieces, by numbers that are used again.
#[derive(Default)]
struct Pieces {
    all: Vec<Piece>,
    unused: Vec<u32>,
}

impl Pieces {
    fn add(&mut self, piece: Piece) -> u32 {
        if let Some(number) = self.unused.pop() {
            self.all[number as usize] = piece;
            return number;
        }
        self.all.push(piece);
        self.all.len() as u32 - 1
    }

    fn get(&mut self, number: u32) -> &mut Piece {
        &mut self.all[number as usize]
    }

    /// Returns the one behind it, and the buffer that it was in.
    fn remove(&mut self, number: u32) -> (u32, u16) {
        self.unused.push(number);
        let piece = self.get(number);
        (piece.next, piece.buffer)
    }
}

struct Gathered {
    header: libc::msghdr,
    parts: [libc::iovec; GATHERED_MAX],
}

impl Turn<'_> {
    /// One enter, and all that has completed by then.
    fn run(&mut self, completions: &mut CompletionQueue<'_>) -> Result<()> {
        self.submissions.sync();
        // Sends may succeed in silence, so who depends on them must not sleep.
        let starved = !self.starved.is_empty() && (self.buffers.usable > 0 || !self.tried.is_empty());
        let hurry = std::mem::take(&mut self.hurry) || starved;
        match self.submitter.submit_and_wait(usize::from(!hurry)) {
            // Completions lie in the kernel's memory until there is room, which there will be.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            entered => drop(entered?),
        }
        self.submissions.sync();
        // What failed is known only once all completions have been seen.
        let entered = self.submissions.is_empty() && !self.submissions.cq_overflow();
        completions.sync();
        for completion in &mut *completions {
            self.complete(&completion)?;
        }
        completions.sync();
        if entered {
            self.gathered.clear();
            self.finish_tried()?;
        }
        self.send_all()?;
        self.buffers.publish();
        self.feed_starved()
    }

    fn complete(&mut self, completion: &cqueue::Entry) -> Result<()> {
        let slot = completion.user_data() as u32;
        match completion.user_data() & !u64::from(u32::MAX) {
            RECEIVED => self.received(slot, completion),
            SENT => self.sent(slot, completion.result()),
            ACCEPTED => self.accepted(completion),
            _ => bail!("close: {}", io::Error::from_raw_os_error(-completion.result())),
        }
    }

    fn accept(&mut self) -> Result<()> {
        let accept = opcode::AcceptMulti::new(self.listener).allocate_file_index(true);
        self.submit(&accept.build().user_data(ACCEPTED))
    }

    fn accepted(&mut self, completion: &cqueue::Entry) -> Result<()> {
        match u32::try_from(completion.result()) {
            Ok(slot) => {
                self.connections[slot as usize] = Connection::default();
                self.receive(slot)?;
            }
            Err(_) => {
                let error = io::Error::from_raw_os_error(-completion.result());
                ensure!(
                    error.raw_os_error() == Some(libc::ECONNABORTED),
                    "accept: {error}"
                );
            }
        }
        if cqueue::more(completion.flags()) {
            Ok(())
        } else {
            self.accept()
        }
    }

    fn receive(&mut self, slot: u32) -> Result<()> {
        self.connections[slot as usize].receiving = true;
        let receive = opcode::RecvMulti::new(Fixed(slot), BUFFER_GROUP);
        self.submit(&receive.build().user_data(RECEIVED | u64::from(slot)))
    }

    fn received(&mut self, slot: u32, completion: &cqueue::Entry) -> Result<()> {
        let result = completion.result();
        if let Some(buffer) = cqueue::buffer_select(completion.flags()) {
            let length = u32::try_from(result).unwrap_or(0);
            let start = self
                .buffers
                .take(buffer, length, completion.flags() & BUFFER_GOES_ON == 0);
            if length > 0 {
                self.append(
                    slot,
                    Piece {
                        start,
                        length,
                        buffer,
                        next: NONE,
                    },
                );
            }
        }
        if cqueue::more(completion.flags()) {
            return Ok(());
        }
        let connection = &mut self.connections[slot as usize];
        connection.receiving = false;
        if result == -libc::ENOBUFS {
            self.starved.push(slot);
            return Ok(());
        }
        if result > 0 && !connection.broken {
            return self.receive(slot);
        }
        connection.ended = true;
        connection.broken |= result < 0;
        self.close_if_done(slot)
    }

    /// Adds to what the connection has to send.
    fn append(&mut self, slot: u32, piece: Piece) {
        let connection = &mut self.connections[slot as usize];
        if connection.broken {
            return self.buffers.release(piece.buffer);
        }
        let number = self.pieces.add(piece);
        match connection.last {
            NONE => connection.first = number,
            last => self.pieces.get(last).next = number,
        }
        connection.last = number;
        if !connection.sending && !connection.queued {
            connection.queued = true;
            self.to_send.push(slot);
        }
    }

    /// One send for each connection that has something and no send under way, which keeps the bytes in order.
    fn send_all(&mut self) -> Result<()> {
        while let Some(slot) = self.to_send.pop() {
            self.connections[slot as usize].queued = false;
            self.send(slot)?;
        }
        Ok(())
    }

    fn send(&mut self, slot: u32) -> Result<()> {
        let connection = &mut self.connections[slot as usize];
        // It may have been closed since, and be another's.
        if connection.first == NONE || connection.sending {
            return Ok(());
        }
        connection.sending = true;
        // Whoever takes all at once, as nearly everybody does, needs no completion.
        let mut flags = libc::MSG_WAITALL;
        let mut telling = squeue::Flags::empty();
        if !connection.patient {
            flags |= libc::MSG_DONTWAIT;
            telling = squeue::Flags::SKIP_SUCCESS;
            self.tried.push(slot);
            self.hurry |= connection.ended;
        }
        let piece = *self.pieces.get(connection.first);
        connection.in_send = piece.length as i32;
        let entry = if piece.next == NONE {
            opcode::Send::new(Fixed(slot), piece.start, piece.length)
                .flags(flags)
                .build()
        } else {
            let header = self.gather(slot, piece);
            opcode::SendMsg::new(Fixed(slot), header)
                .flags(flags as u32)
                .build()
        };
        self.submit(&entry.flags(telling).user_data(SENT | u64::from(slot)))
    }

    /// The sends of the last enter that have not failed by now have sent all.
    fn finish_tried(&mut self) -> Result<()> {
        let mut tried = std::mem::take(&mut self.tried);
        for slot in tried.drain(..) {
            let connection = &self.connections[slot as usize];
            if connection.sending && !connection.patient {
                self.sent(slot, connection.in_send)?;
            }
        }
        self.tried = tried;
        Ok(())
    }

    /// Lists `piece` and those behind it for one send.
    fn gather(&mut self, slot: u32, mut piece: Piece) -> *const libc::msghdr {
        // SAFETY: both are plain data, of which all zeroes is valid.
        self.gathered.push(unsafe { std::mem::zeroed() });
        let gathered = self.gathered.last_mut().expect("just pushed");
        let (mut count, mut length) = (0, 0);
        loop {
            gathered.parts[count] = libc::iovec {
                iov_base: piece.start.cast_mut().cast(),
                iov_len: piece.length as usize,
            };
            count += 1;
            length += piece.length;
            if piece.next == NONE {
                break;
            }
            if count == GATHERED_MAX {
                self.hurry = true;
                break;
            }
            piece = *self.pieces.get(piece.next);
        }
        self.connections[slot as usize].in_send = length as i32;
        gathered.header.msg_iov = gathered.parts.as_mut_ptr();
        gathered.header.msg_iovlen = count;
        &gathered.header
    }

    fn sent(&mut self, slot: u32, result: i32) -> Result<()> {
        let connection = &mut self.connections[slot as usize];
        connection.sending = false;
        match u32::try_from(result) {
            Ok(count) => {
                connection.patient = result < connection.in_send;
                self.remove_sent(slot, count);
            }
            Err(_) if result == -libc::EAGAIN => connection.patient = true,
            Err(_) => {
                connection.broken = true;
                self.drop_unsent(slot);
            }
        }
        let connection = &mut self.connections[slot as usize];
        if connection.first == NONE {
            return self.close_if_done(slot);
        }
        connection.queued = true;
        self.to_send.push(slot);
        Ok(())
    }

    /// What is left of the last piece is sent again.
    fn remove_sent(&mut self, slot: u32, mut count: u32) {
        let connection = &mut self.connections[slot as usize];
        while count > 0 {
            let piece = self.pieces.get(connection.first);
            if count < piece.length {
                piece.start = piece.start.wrapping_add(count as usize);
                piece.length -= count;
                return;
            }
            count -= piece.length;
            let (next, buffer) = self.pieces.remove(connection.first);
            connection.first = next;
            self.buffers.release(buffer);
        }
        if connection.first == NONE {
            connection.last = NONE;
        }
    }

    fn drop_unsent(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        while connection.first != NONE {
            let (next, buffer) = self.pieces.remove(connection.first);
            connection.first = next;
            self.buffers.release(buffer);
        }
        connection.last = NONE;
    }

    fn close_if_done(&mut self, slot: u32) -> Result<()> {
        let connection = &mut self.connections[slot as usize];
        if !connection.ended || connection.sending {
            return Ok(());
        }
        if connection.broken {
            self.drop_unsent(slot);
        } else if connection.first != NONE {
            return Ok(());
        }
        let close = opcode::Close::new(Fixed(slot)).build();
        self.submit(&close.flags(squeue::Flags::SKIP_SUCCESS).user_data(CLOSED))
    }

    /// Receives again where buffers ran out, if the kernel has some now: for a few connections per turn and buffer, since
    /// each may fill it.
    fn feed_starved(&mut self) -> Result<()> {
        for _ in 0..self.starved.len().min(self.buffers.usable * FED_PER_BUFFER) {
            let slot = self.starved.pop().expect("no more than there are");
            self.receive(slot)?;
        }
        Ok(())
    }

    fn submit(&mut self, entry: &squeue::Entry) -> Result<()> {
        // SAFETY: what `entry` points to is a piece of a buffer, of which the connection keeps hold until the completion,
        // or an element of `gathered`, which the kernel copies when it is submitted.
        while unsafe { self.submissions.push(entry) }.is_err() {
            self.submissions.sync();
            self.submitter.submit().context("submit")?;
            self.submissions.sync();
        }
        Ok(())
    }
}

const BUFFER_GROUP: u16 = 0;
/// IOU_PBUF_RING_INC and IORING_CQE_F_BUF_MORE: a receive takes no more of a buffer than it needs (Linux 6.12).
const TAKEN_BIT_BY_BIT: u16 = 2;
const BUFFER_GOES_ON: u32 = 1 << 4;

/// The memory for received bytes, and the ring in which the kernel is told which of it is free.
struct Buffers {
    entries: *mut BufRingEntry,
    memory: *mut u8,
    size: usize,
    tail: u16,
    states: Vec<BufferState>,
    /// Those that are not full.
    usable: usize,
}

#[derive(Copy, Clone, Default)]
struct BufferState {
    /// How far the kernel has filled it, and whether it fills no further.
    taken: usize,
    full: bool,
    /// Pieces of it that are not sent.
    pieces: u32,
}

impl Buffers {
    fn register(submitter: &Submitter<'_>, size: usize, count: u16) -> Result<Buffers> {
        let entries = allocate(usize::from(count) * size_of::<BufRingEntry>())?.cast();
        let memory = allocate(usize::from(count) * size)?;
        // SAFETY: `entries` has room for `count` and is never freed.
        unsafe {
            submitter.register_buf_ring_with_flags(entries as u64, count, BUFFER_GROUP, TAKEN_BIT_BY_BIT)?;
        }
        let mut buffers = Buffers {
            entries,
            memory,
            size,
            tail: 0,
            states: vec![BufferState::default(); usize::from(count)],
            usable: 0,
        };
        (0..count).for_each(|buffer| buffers.give_back(buffer));
        buffers.publish();
        Ok(buffers)
    }

    /// The kernel has filled the next `length` bytes. Returns where they are.
    fn take(&mut self, buffer: u16, length: u32, full: bool) -> *const u8 {
        let state = &mut self.states[usize::from(buffer)];
        let start = self
            .memory
            .wrapping_add(usize::from(buffer) * self.size + state.taken);
        state.taken += length as usize;
        if full && !state.full {
            state.full = true;
            self.usable -= 1;
        }
        state.pieces += u32::from(length > 0);
        if state.full && state.pieces == 0 {
            self.give_back(buffer);
        }
        start
    }

    /// A piece is not needed any more.
    fn release(&mut self, buffer: u16) {
        let state = &mut self.states[usize::from(buffer)];
        state.pieces -= 1;
        if state.full && state.pieces == 0 {
            self.give_back(buffer);
        }
    }

    /// The kernel sees it from the next `publish` on.
    fn give_back(&mut self, buffer: u16) {
        self.states[usize::from(buffer)] = BufferState::default();
        let place = usize::from(self.tail) & (self.states.len() - 1);
        // SAFETY: within the entries, of which the kernel does not use this one now: there are as many entries as
        // buffers, and this buffer was not in the ring.
        let entry = unsafe { &mut *self.entries.add(place) };
        entry.set_addr(self.memory.wrapping_add(usize::from(buffer) * self.size) as u64);
        entry.set_len(self.size as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        self.usable += 1;
    }

    fn publish(&self) {
        // SAFETY: the tail lies in the first entry, which lives for ever.
        let tail = unsafe { &*BufRingEntry::tail(self.entries).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

/// Zeroed memory from the start of a page on, never freed.
fn allocate(size: usize) -> Result<*mut u8> {
    let layout = Layout::from_size_align(size, 4096)?;
    // SAFETY: the size is not zero.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    Ok(memory)
}
