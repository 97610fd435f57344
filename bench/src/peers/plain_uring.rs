//! An io_uring loop by the book: what the manual pages suggest, and nothing that took measuring to find.
//!
//! Multishot accept, multishot receive into a ring of buffers, sends out of those buffers, each with its completion, and
//! one enter per turn. bare_uring is what the same becomes with every trick.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::{Peer, announce, listen};

pub const PEER: Peer = Peer {
    name: "plain_uring",
    about: "io_uring by the book on one thread, 128 buffers of 16 KiB for all",
    ..Peer::echo(serve)
};

const BUFFER_SIZE: usize = 16 * 1024;
const BUFFERS: u16 = 128;
const GROUP: u16 = 0;

const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const CLOSE: u64 = 3;

/// Received bytes on their way back: the buffer that they are in, and which part of it is left.
struct Piece {
    buffer: u16,
    start: usize,
    end: usize,
}

#[derive(Default)]
struct Connection {
    /// The first of them is being sent.
    pieces: VecDeque<Piece>,
    receiving: bool,
    ended: bool,
}

struct Server {
    ring: IoUring,
    buffers: Buffers,
    /// By descriptor.
    connections: Vec<Connection>,
    /// Descriptors whose receive found no buffer.
    starved: Vec<i32>,
}

fn serve() -> Result<()> {
    let listener = listen()?;
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_cqsize(32 * 1024)
        .build(1024)?;
    let buffers = Buffers::register(&ring)?;
    announce(listener.local_addr()?)?;
    let mut server = Server {
        ring,
        buffers,
        connections: Vec::new(),
        starved: Vec::new(),
    };
    let accept = || {
        opcode::AcceptMulti::new(Fd(listener.as_raw_fd()))
            .build()
            .user_data(ACCEPT << 32)
    };
    server.push(&accept())?;
    loop {
        server.ring.submit_and_wait(1)?;
        loop {
            let Some(entry) = server.ring.completion().next() else {
                break;
            };
            let fd = entry.user_data() as u32 as i32;
            match entry.user_data() >> 32 {
                ACCEPT => {
                    if !cqueue::more(entry.flags()) {
                        server.push(&accept())?;
                    }
                    server.accepted(entry.result())?;
                }
                RECEIVE => server.received(fd, &entry)?,
                SEND => server.sent(fd, entry.result())?,
                _ => {}
            }
        }
        for fd in std::mem::take(&mut server.starved) {
            server.receive(fd)?;
        }
    }
}

impl Server {
    fn push(&mut self, entry: &squeue::Entry) -> Result<()> {
        // SAFETY: entries point at most to the buffers, which live as long as the process.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    fn accepted(&mut self, result: i32) -> Result<()> {
        if result < 0 {
            bail!("accept: {}", std::io::Error::from_raw_os_error(-result));
        }
        let index = result as usize;
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, Connection::default);
        }
        self.connections[index] = Connection::default();
        self.receive(result)
    }

    fn receive(&mut self, fd: i32) -> Result<()> {
        self.connections[fd as usize].receiving = true;
        self.push(
            &opcode::RecvMulti::new(Fd(fd), GROUP)
                .build()
                .user_data(RECEIVE << 32 | fd as u64),
        )
    }

    fn received(&mut self, fd: i32, entry: &cqueue::Entry) -> Result<()> {
        let connection = &mut self.connections[fd as usize];
        connection.receiving = cqueue::more(entry.flags());
        if let Some(buffer) = cqueue::buffer_select(entry.flags()) {
            let end = entry.result().max(0) as usize;
            connection.pieces.push_back(Piece {
                buffer,
                start: 0,
                end,
            });
            if connection.pieces.len() == 1 {
                self.send(fd)?;
            }
        }
        match entry.result() {
            result if result == -libc::ENOBUFS => self.starved.push(fd),
            result if result <= 0 => self.connections[fd as usize].ended = true,
            _ if !self.connections[fd as usize].receiving => self.receive(fd)?,
            _ => {}
        }
        self.close_if_done(fd)
    }

    fn send(&mut self, fd: i32) -> Result<()> {
        let Some(piece) = self.connections[fd as usize].pieces.front() else {
            return Ok(());
        };
        let start = self.buffers.address(piece.buffer).wrapping_add(piece.start);
        let entry = opcode::Send::new(Fd(fd), start, (piece.end - piece.start) as u32)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(SEND << 32 | fd as u64);
        self.push(&entry)
    }

    fn sent(&mut self, fd: i32, result: i32) -> Result<()> {
        let connection = &mut self.connections[fd as usize];
        if result < 0 {
            connection.ended = true;
            for piece in connection.pieces.drain(..) {
                self.buffers.publish(piece.buffer);
            }
        } else if let Some(piece) = connection.pieces.front_mut() {
            piece.start += result as usize;
            if piece.start == piece.end {
                self.buffers.publish(piece.buffer);
                connection.pieces.pop_front();
            }
        }
        self.send(fd)?;
        self.close_if_done(fd)
    }

    fn close_if_done(&mut self, fd: i32) -> Result<()> {
        let connection = &mut self.connections[fd as usize];
        if !connection.ended || connection.receiving || !connection.pieces.is_empty() {
            return Ok(());
        }
        connection.ended = false;
        self.push(&opcode::Close::new(Fd(fd)).build().user_data(CLOSE << 32))
    }
}

/// The buffers, and the ring in which the kernel finds those that are free.
struct Buffers {
    memory: *mut u8,
    entries: *mut BufRingEntry,
    tail: u16,
}

impl Buffers {
    fn register(ring: &IoUring) -> Result<Buffers> {
        let allocate = |bytes| {
            let layout = Layout::from_size_align(bytes, 4096).expect("a few megabytes");
            // SAFETY: the layout is not empty.
            let memory = unsafe { alloc_zeroed(layout) };
            if memory.is_null() {
                handle_alloc_error(layout)
            } else {
                memory
            }
        };
        let memory = allocate(BUFFER_SIZE * usize::from(BUFFERS));
        let entries = allocate(size_of::<BufRingEntry>() * usize::from(BUFFERS)).cast::<BufRingEntry>();
        // SAFETY: page-aligned, large enough, and never freed.
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(entries as u64, BUFFERS, GROUP, 0)?;
        };
        let mut buffers = Buffers {
            memory,
            entries,
            tail: 0,
        };
        for buffer in 0..BUFFERS {
            buffers.publish(buffer);
        }
        Ok(buffers)
    }

    fn address(&self, buffer: u16) -> *mut u8 {
        self.memory.wrapping_add(usize::from(buffer) * BUFFER_SIZE)
    }

    fn publish(&mut self, buffer: u16) {
        let address = self.address(buffer) as u64;
        // SAFETY: within the ring by the remainder; the kernel reads an entry only below the tail.
        unsafe {
            let entry = &mut *self.entries.add(usize::from(self.tail % BUFFERS));
            entry.set_addr(address);
            entry.set_len(BUFFER_SIZE as u32);
            entry.set_bid(buffer);
            self.tail = self.tail.wrapping_add(1);
            let tail = AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut());
            tail.store(self.tail, Ordering::Release);
        }
    }
}
