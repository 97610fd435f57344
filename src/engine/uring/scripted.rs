//! A kernel without a ring, for tests: sockets are plain data, and requests complete when the test enters.
//!
//! It does what io_uring does with multishot requests, provided buffers, cancels and a full queue. Where the real one may do
//! one thing or another (when a request goes on, how many bytes come at once, who wins a race with a cancel), a list of
//! choices decides; at its end everything goes the quickest way. It checks what the driver owes the kernel: bytes in flight
//! stay as they are, and no descriptor is closed, read or written under a request.

#![allow(unsafe_code)] // plays the kernel, which writes to published buffers and reads what requests point to

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::SockAddr;

use super::buffers::Buffers;
use super::kernel::{Completed, Kernel, Key, Request};
use super::ring::{Sizes, is_transient};
use crate::address::{Address, UnixName};

/// A receive goes on so often before others get their turn.
const RETRIES_MAX: usize = 32;
// What polls tell.
const IN: usize = 1;
const ERR: usize = 8;
const HUP: usize = 16;
const RDHUP: usize = 0x2000;

/// The kernel, and the test's hand on it.
#[derive(Clone)]
pub(super) struct Scripted(Rc<RefCell<State>>);

/// Names a socket, also after its descriptor is closed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct SocketId(usize);

pub(super) struct State {
    sizes: Sizes,
    buffers: Rc<Buffers>,
    /// A receive ends by itself after its cap.
    pub(super) caps: bool,
    /// Nothing completes any more, and cancels are not heard.
    pub(super) deaf: bool,
    /// These requests do not go on by themselves.
    pub(super) stuck: BTreeSet<Key>,
    /// Decides what may go one way or another.
    pub(super) choices: VecDeque<u8>,
    /// Which way cancels go when there are no choices.
    pub(super) cancels: Cancels,
    /// What the next enters fail with.
    pub(super) enter_fails: VecDeque<Errno>,
    /// The next enter submits no more than this.
    pub(super) submits_at_most: Option<usize>,
    /// All requests that were submitted.
    pub(super) submitted: Vec<(Key, Request)>,
    pub(super) enters: usize,
    /// Enters that were to sleep and found nothing: the real one would not have returned.
    pub(super) sleeps: usize,
    pub(super) abandoned: bool,
    queue: VecDeque<Submission>,
    in_flight: Vec<Submission>,
    completed: VecDeque<Completed>,
    overflow: VecDeque<Completed>,
    provided: VecDeque<(u16, *mut u8)>,
    sockets: Vec<Sock>,
}

/// What a cancel comes to.
#[derive(Copy, Clone, Debug)]
pub(super) enum Cancels {
    AtOnce,
    /// The request was about to complete.
    TooLate,
    /// A send tells what it did before.
    HalfDone,
    /// The request ends later, and until then may complete.
    Slowly,
}

struct Submission {
    key: Key,
    request: Request,
    socket: Option<SocketId>,
    /// What a send or a connect pointed to when it was pushed.
    copy: Vec<u8>,
    /// A receive has not looked yet.
    fresh: bool,
    /// Bytes until a receive ends by itself.
    left: u32,
    /// Events that a poll has told.
    told: usize,
    /// A cancel was heard in this enter and takes its time.
    cancelled: Option<usize>,
}

#[derive(Default)]
struct Sock {
    fd: RawFd,
    /// The other end, which sees whether the driver's is closed.
    far: Option<UnixStream>,
    incoming: VecDeque<u8>,
    fin: bool,
    failure: Option<Errno>,
    dead: bool,
    /// How often the peer has ended or broken it,
    events: usize,
    /// and how often anything has come, which wakes polls.
    wakes: usize,
    room: usize,
    sent: Vec<u8>,
    /// Bytes that the peer has acknowledged.
    acked: usize,
    shut: bool,
    connected: Option<Result<(), Errno>>,
    listens: bool,
    waiting: VecDeque<Option<Errno>>,
    closed: Option<bool>,
}

/// The test's side.
impl Scripted {
    pub(super) fn new(sizes: Sizes) -> (Scripted, Rc<Buffers>) {
        let buffers = Buffers::new(sizes.buffers, sizes.buffer_size, sizes.window);
        let state = State {
            sizes,
            buffers: buffers.clone(),
            caps: true,
            deaf: false,
            stuck: BTreeSet::new(),
            choices: VecDeque::new(),
            cancels: Cancels::AtOnce,
            enter_fails: VecDeque::new(),
            submits_at_most: None,
            submitted: Vec::new(),
            enters: 0,
            sleeps: 0,
            abandoned: false,
            queue: VecDeque::new(),
            in_flight: Vec::new(),
            completed: VecDeque::new(),
            overflow: VecDeque::new(),
            provided: VecDeque::new(),
            sockets: Vec::new(),
        };
        (Scripted(Rc::new(RefCell::new(state))), buffers)
    }

    pub(super) fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    /// A new socket, connected.
    pub(super) fn socket(&self) -> (OwnedFd, SocketId) {
        let (near, far) = UnixStream::pair().expect("a pair of sockets");
        let near = OwnedFd::from(near);
        let id = self.state().add(near.as_raw_fd());
        self.state().sockets[id.0].far = Some(far);
        (near, id)
    }

    /// A new socket that listens.
    pub(super) fn listener(&self) -> (OwnedFd, SocketId) {
        let (near, id) = self.socket();
        self.state().sockets[id.0].listens = true;
        (near, id)
    }

    /// The socket with this descriptor.
    pub(super) fn id(&self, fd: RawFd) -> SocketId {
        self.state().by_fd(fd).expect("a socket of this kernel")
    }

    /// The socket that the driver made with this descriptor.
    pub(super) fn made(&self, fd: RawFd) -> SocketId {
        self.state().made(fd)
    }

    pub(super) fn is_in_flight(&self, key: Key) -> bool {
        self.state().in_flight.iter().any(|submission| submission.key == key)
    }

    /// Connections and errors that wait at a listener.
    pub(super) fn waiting(&self, id: SocketId) -> usize {
        self.state().sockets[id.0].waiting.len()
    }

    pub(super) fn arrives(&self, id: SocketId, bytes: &[u8]) {
        let sock = &mut self.state().sockets[id.0];
        sock.incoming.extend(bytes);
        sock.wakes += 1;
    }

    pub(super) fn peer_ends(&self, id: SocketId) {
        let sock = &mut self.state().sockets[id.0];
        (sock.fin, sock.events, sock.wakes) = (true, sock.events + 1, sock.wakes + 1);
    }

    pub(super) fn breaks(&self, id: SocketId, errno: Errno) {
        let sock = &mut self.state().sockets[id.0];
        if !mem::replace(&mut sock.dead, true) {
            (sock.failure, sock.events, sock.wakes) = (Some(errno), sock.events + 1, sock.wakes + 1);
        }
    }

    /// The socket takes so many more bytes.
    pub(super) fn makes_room(&self, id: SocketId, bytes: usize) {
        self.state().sockets[id.0].room += bytes;
    }

    /// The peer acknowledges everything.
    #[cfg(test)]
    pub(super) fn acknowledges(&self, id: SocketId) {
        let sock = &mut self.state().sockets[id.0];
        sock.acked = sock.sent.len();
    }

    pub(super) fn connects(&self, id: SocketId, result: Result<(), Errno>) {
        self.state().sockets[id.0].connected = Some(result);
    }

    /// A connection waits at a listener, or an error.
    pub(super) fn knocks(&self, id: SocketId, error: Option<Errno>) {
        self.state().sockets[id.0].waiting.push_back(error);
    }

    pub(super) fn sent(&self, id: SocketId) -> Vec<u8> {
        self.state().sockets[id.0].sent.clone()
    }

    /// Bytes that wait in the socket.
    #[cfg(test)]
    pub(super) fn unread(&self, id: SocketId) -> usize {
        self.state().sockets[id.0].incoming.len()
    }

    /// Whether the socket was closed, and with RST.
    pub(super) fn closed(&self, id: SocketId) -> Option<bool> {
        self.state().sockets[id.0].closed
    }

    /// Completes a request of its own accord.
    pub(super) fn completes(&self, key: Key, result: i32, more: bool, buffer: Option<u16>) {
        let mut state = self.state();
        if !more {
            state.in_flight.retain(|submission| submission.key != key);
        }
        state.complete(Completed { key, result, more, buffer });
    }

    /// The next buffer, filled with `bytes`.
    #[cfg(test)]
    pub(super) fn fills(&self, bytes: &[u8]) -> u16 {
        self.state().fill(bytes)
    }

    /// All requests but cancels.
    pub(super) fn in_flight(&self) -> Vec<Key> {
        let state = self.state();
        let is_cancel = |request: &Request| matches!(request, Request::Cancel { .. } | Request::CancelAll);
        let requests = state.in_flight.iter().chain(&state.queue).filter(|s| !is_cancel(&s.request));
        requests.map(|submission| submission.key).collect()
    }

    /// Buffers that the kernel holds or has filled.
    pub(super) fn provided(&self) -> usize {
        let state = self.state();
        let filled = state.completed.iter().chain(&state.overflow).filter(|done| done.buffer.is_some());
        state.provided.len() + filled.count()
    }

    /// Whether a receive could take a buffer.
    #[cfg(test)]
    pub(super) fn has_buffers(&self) -> bool {
        !self.state().provided.is_empty()
    }

    /// Descriptors that the driver was given and that are still open.
    pub(super) fn open_descriptors(&self) -> usize {
        let state = self.state();
        let is_open = |far: &UnixStream| {
            rustix::net::recv(far, &mut [0; 1][..], RecvFlags::DONTWAIT | RecvFlags::PEEK)
                .map_or(true, |(n, _)| n > 0)
        };
        state.sockets.iter().filter(|sock| sock.far.as_ref().is_some_and(is_open)).count()
    }
}

impl Kernel for Scripted {
    unsafe fn push(&mut self, key: Key, request: &Request) -> bool {
        let mut state = self.state();
        if state.queue.len() >= state.sizes.submissions as usize {
            return false;
        }
        let socket = match *request {
            Request::PollReadable { fd } => state.by_fd(fd).filter(|id| state.sockets[id.0].listens),
            Request::Receive { fd, .. }
            | Request::PollBroken { fd }
            | Request::PollAlways { fd }
            | Request::Send { fd, .. }
            | Request::SendQuietly { fd, .. } => state.by_fd(fd),
            Request::Connect { fd, .. } => Some(state.made(fd)),
            Request::Cancel { .. } | Request::CancelAll => None,
        };
        if !matches!(request, Request::Cancel { .. } | Request::CancelAll) {
            let twin = state.in_flight.iter().chain(&state.queue).any(|submission| submission.key == key);
            assert!(!twin, "one request has this key");
        }
        // SAFETY: valid from now on, as the caller promises.
        let copy = unsafe { pointed_to(request) };
        let left = if let Request::Receive { cap, .. } = *request { cap } else { 0 };
        state.queue.push_back(Submission {
            key,
            request: *request,
            socket,
            copy,
            fresh: true,
            left,
            told: 0,
            cancelled: None,
        });
        true
    }

    fn enter(&mut self, sleep: bool) -> io::Result<()> {
        let mut state = self.state();
        state.enters += 1;
        if let Some(errno) = state.enter_fails.pop_front() {
            let error = errno.into();
            return if is_transient(&error) { Ok(()) } else { Err(error) };
        }
        if state.chooses(16, 15) {
            return Ok(()); // interrupted
        }
        state.flush_overflow();
        // It may also stop on the way, for want of memory.
        let mut left =
            if state.chooses(16, 14) { 1 } else { state.submits_at_most.take().unwrap_or(usize::MAX) };
        while left > 0
            && let Some(submission) = state.queue.pop_front()
        {
            state.submit(submission);
            left -= 1;
        }
        state.work();
        state.sleeps += usize::from(sleep && state.completed.is_empty());
        Ok(())
    }

    fn pop(&mut self) -> Option<Completed> {
        self.state().completed.pop_front()
    }

    fn queued(&self) -> usize {
        self.state().queue.len()
    }

    fn has_overflowed(&self) -> bool {
        !self.state().overflow.is_empty()
    }

    fn publish(&mut self, buffers: &Buffers) {
        let published = std::iter::from_fn(|| buffers.publish());
        self.state().provided.extend(published);
    }

    fn has_caps(&self) -> bool {
        self.state().caps
    }

    fn abandon(&mut self) {
        let mut state = self.state();
        state.abandoned = true;
        mem::forget(state.buffers.clone());
    }

    fn is_stirring(&self) -> bool {
        let state = self.state();
        !state.completed.is_empty() || !state.overflow.is_empty()
    }

    fn receive(&mut self, socket: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
        let mut state = self.state();
        let id = state.idle_socket(socket, |request| matches!(request, Request::Receive { .. }));
        if state.chooses(16, 1) {
            return Err(Errno::INTR);
        }
        let sock = &mut state.sockets[id.0];
        if sock.incoming.is_empty() {
            return match sock.failure.take() {
                Some(errno) => Err(errno),
                None if sock.fin || sock.dead => Ok(0),
                None => Err(Errno::AGAIN),
            };
        }
        let n = into.len().min(sock.incoming.len());
        for (to, from) in into.iter_mut().zip(sock.incoming.drain(..n)) {
            *to = from;
        }
        Ok(n)
    }

    fn send(&mut self, socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
        self.send_gathered(socket, &[IoSlice::new(bytes)])
    }

    fn send_gathered(&mut self, socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> Result<usize, Errno> {
        let mut state = self.state();
        let id = state.idle_socket(socket, is_send);
        if state.chooses(16, 1) {
            return Err(Errno::INTR);
        }
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        state.take(id, &bytes).unwrap_or(Err(Errno::AGAIN))
    }

    fn accept(&mut self, listener: BorrowedFd<'_>) -> Result<(OwnedFd, Address), Errno> {
        let id = self.id(listener.as_raw_fd());
        let waiting = self.state().sockets[id.0].waiting.pop_front();
        match waiting {
            Some(None) => Ok((self.socket().0, Address::Unix(UnixName::unnamed()))),
            Some(Some(errno)) => Err(errno),
            None => Err(Errno::AGAIN),
        }
    }

    fn failure(&mut self, socket: BorrowedFd<'_>) -> Option<io::Error> {
        let id = self.id(socket.as_raw_fd());
        self.state().sockets[id.0].failure.take().map(io::Error::from)
    }

    fn unacked(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let id = self.id(socket.as_raw_fd());
        let sock = &self.state().sockets[id.0];
        Ok(sock.sent.len() - sock.acked + usize::from(sock.shut))
    }

    fn shutdown(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let mut state = self.state();
        let id = state.idle_socket(socket, is_send);
        let sock = &mut state.sockets[id.0];
        sock.shut = true;
        if sock.dead { Err(sock.failure.take().unwrap_or(Errno::NOTCONN).into()) } else { Ok(()) }
    }

    fn close(&mut self, socket: OwnedFd, reset: bool) {
        let mut state = self.state();
        let id = state.by_fd(socket.as_raw_fd()).expect("a socket of this kernel");
        let busy = state.in_flight.iter().chain(&state.queue).any(|submission| submission.socket == Some(id));
        assert!(!busy, "a descriptor outlives the requests on it");
        state.sockets[id.0].closed = Some(reset);
    }
}

impl Sock {
    fn mask(&self) -> usize {
        let mut mask = 0;
        if !self.incoming.is_empty() || !self.waiting.is_empty() || self.fin || self.dead {
            mask |= IN;
        }
        if self.fin || self.dead {
            mask |= RDHUP;
        }
        if self.dead || self.fin && self.shut {
            mask |= HUP;
        }
        mask | if self.failure.is_some() { ERR } else { 0 }
    }
}

impl State {
    /// The socket takes no bytes any more.
    pub(super) fn fill_up(&mut self, id: SocketId) {
        self.sockets[id.0].room = 0;
    }

    fn add(&mut self, fd: RawFd) -> SocketId {
        self.sockets.push(Sock { fd, room: usize::MAX / 2, ..Sock::default() });
        SocketId(self.sockets.len() - 1)
    }

    fn made(&mut self, fd: RawFd) -> SocketId {
        let is_it = |sock: &Sock| sock.fd == fd && sock.far.is_none() && sock.closed.is_none();
        match self.sockets.iter().rposition(is_it) {
            Some(at) => SocketId(at),
            None => self.add(fd),
        }
    }

    /// The newest socket with this descriptor; numbers are used again.
    fn by_fd(&self, fd: RawFd) -> Option<SocketId> {
        self.sockets.iter().rposition(|sock| sock.fd == fd && sock.closed.is_none()).map(SocketId)
    }

    /// A socket that is about to be used directly, which no such request may be doing at the same time.
    fn idle_socket(&self, socket: BorrowedFd<'_>, is_such: impl Fn(&Request) -> bool) -> SocketId {
        let id = self.by_fd(socket.as_raw_fd()).expect("a socket of this kernel");
        let mut requests = self.in_flight.iter().chain(&self.queue).filter(|s| s.socket == Some(id));
        assert!(!requests.any(|s| is_such(&s.request)), "a request does this already");
        id
    }

    /// Whether of `ways` ways to go on the script takes this one; the way 0 is the quickest.
    fn chooses(&mut self, ways: u8, way: u8) -> bool {
        self.choose(ways) == way
    }

    fn choose(&mut self, ways: u8) -> u8 {
        self.choices.pop_front().map_or(0, |choice| choice % ways)
    }

    fn is_full(&self) -> bool {
        self.completed.len() >= self.sizes.completions as usize || !self.overflow.is_empty()
    }

    fn complete(&mut self, done: Completed) {
        let queue = if self.is_full() { &mut self.overflow } else { &mut self.completed };
        queue.push_back(done);
    }

    fn flush_overflow(&mut self) {
        while self.completed.len() < self.sizes.completions as usize
            && let Some(done) = self.overflow.pop_front()
        {
            self.completed.push_back(done);
        }
    }

    /// Ends a request.
    fn end(&mut self, key: Key, result: Result<usize, Errno>, buffer: Option<u16>) {
        let result = match result {
            Ok(n) => i32::try_from(n).expect("a small count"),
            Err(errno) => -errno.raw_os_error(),
        };
        self.complete(Completed { key, result, more: false, buffer });
    }

    /// One of several completions of a request; says whether it goes on. With a full queue it ends.
    fn tell(&mut self, key: Key, n: usize, buffer: Option<u16>) -> bool {
        if self.is_full() {
            self.end(key, Ok(n), buffer);
            return false;
        }
        self.complete(Completed {
            key,
            result: i32::try_from(n).expect("a small count"),
            more: true,
            buffer,
        });
        true
    }

    fn submit(&mut self, submission: Submission) {
        self.submitted.push((submission.key, submission.request));
        match submission.request {
            Request::Cancel { .. } | Request::CancelAll if self.deaf => {}
            Request::Cancel { key } => {
                let found = self.in_flight.iter().position(|submission| submission.key == key);
                let answer = found.map(|_| 0).ok_or(Errno::NOENT);
                let answers_first = self.chooses(2, 0);
                if answers_first {
                    self.end(submission.key, answer, None);
                }
                if let Some(at) = found {
                    self.cancel(at);
                }
                if !answers_first {
                    self.end(submission.key, answer, None);
                }
            }
            Request::CancelAll => {
                for at in (0..self.in_flight.len()).rev() {
                    self.cancel(at);
                }
                self.end(submission.key, Ok(0), None);
            }
            Request::SendQuietly { .. } => self.send_at_once(&submission),
            _ => self.in_flight.push(submission),
        }
    }

    fn send_at_once(&mut self, submission: &Submission) {
        // SAFETY: submitted just now, so the driver keeps it.
        let same = unsafe { pointed_to(&submission.request) } == submission.copy;
        assert!(same, "what a request points to stays as it is");
        let id = submission.socket.expect("sends have sockets");
        match self.take(id, &submission.copy).unwrap_or(Err(Errno::AGAIN)) {
            Ok(n) if n == submission.copy.len() => {}
            result => self.end(submission.key, result, None),
        }
    }

    fn cancel(&mut self, at: usize) {
        let ways = [Cancels::AtOnce, Cancels::TooLate, Cancels::HalfDone, Cancels::Slowly];
        let way = if self.choices.is_empty() { self.cancels } else { ways[usize::from(self.choose(4))] };
        match way {
            Cancels::TooLate => {
                let mut submission = self.in_flight.remove(at);
                if self.goes_on(&mut submission) {
                    self.end(submission.key, Err(Errno::CANCELED), None);
                }
            }
            Cancels::HalfDone if matches!(self.in_flight[at].request, Request::Send { .. }) => {
                let submission = self.in_flight.remove(at);
                let id = submission.socket.expect("sends have sockets");
                let most = submission.copy.len().div_ceil(2);
                let sent = self.take(id, &submission.copy[..most]);
                self.end(submission.key, sent.unwrap_or(Err(Errno::CANCELED)), None);
            }
            Cancels::Slowly => {
                self.in_flight[at].cancelled.get_or_insert(self.enters);
            }
            _ => {
                let submission = self.in_flight.remove(at);
                self.end(submission.key, Err(Errno::CANCELED), None);
            }
        }
    }

    /// Lets requests go on.
    fn work(&mut self) {
        if self.deaf {
            return;
        }
        for mut submission in mem::take(&mut self.in_flight) {
            let ends = submission.cancelled.is_some_and(|since| since < self.enters);
            let waits = self.stuck.contains(&submission.key) && !ends || self.chooses(4, 3);
            if waits || self.goes_on(&mut submission) {
                if ends && !waits {
                    self.end(submission.key, Err(Errno::CANCELED), None);
                } else {
                    self.in_flight.push(submission);
                }
            }
        }
    }

    /// Completes what a request can now, and says whether it stays in flight.
    fn goes_on(&mut self, submission: &mut Submission) -> bool {
        // SAFETY: in flight, so the driver keeps it.
        let same = unsafe { pointed_to(&submission.request) } == submission.copy;
        assert!(same, "what a request points to stays as it is");
        let key = submission.key;
        let Some(id) = submission.socket else {
            // The waker and the alarm complete when the test says so; other descriptors are closed.
            let always = matches!(submission.request, Request::PollAlways { .. });
            if !always {
                self.end(key, Err(Errno::BADF), None);
            }
            return always;
        };
        let sock = &self.sockets[id.0];
        match submission.request {
            Request::Receive { .. } => return self.receives(submission, id),
            Request::Send { .. } => {
                if self.chooses(16, 1) {
                    self.end(key, Err(Errno::INTR), None);
                    return false;
                }
                let Some(sent) = self.take(id, &submission.copy) else { return true };
                self.end(key, sent, None);
            }
            Request::Connect { .. } => {
                let Some(result) = sock.connected else { return true };
                self.end(key, result.map(|()| 0), None);
            }
            Request::PollReadable { .. } => {
                if sock.incoming.is_empty() && sock.waiting.is_empty() && !sock.fin && !sock.dead {
                    return true;
                }
                let mask = sock.mask();
                self.end(key, Ok(mask), None);
            }
            Request::PollBroken { .. } => {
                let news = (sock.fin || sock.dead) && sock.events > submission.told;
                submission.told = sock.events;
                let mask = sock.mask() & !IN;
                return !news || self.tell(key, mask, None);
            }
            Request::PollAlways { .. } => {
                let news = mem::take(&mut submission.fresh) || sock.wakes > submission.told;
                submission.told = sock.wakes;
                let mask = sock.mask();
                return !news || mask == 0 || self.tell(key, mask, None);
            }
            Request::SendQuietly { .. } | Request::Cancel { .. } | Request::CancelAll => return true,
        }
        false
    }

    fn receives(&mut self, submission: &mut Submission, id: SocketId) -> bool {
        let key = submission.key;
        for _ in 0..RETRIES_MAX {
            let sock = &self.sockets[id.0];
            let looks =
                mem::take(&mut submission.fresh) || sock.fin || sock.dead || !sock.incoming.is_empty();
            if !looks {
                return true;
            }
            // The buffer is chosen before the socket is asked.
            if self.provided.is_empty() {
                self.end(key, Err(Errno::NOBUFS), None);
                return false;
            }
            if sock.incoming.is_empty() {
                return self.receives_nothing(key, id);
            }
            let mut n = sock.incoming.len().min(self.buffers.size());
            if self.chooses(4, 1) {
                n = n.min(1 + usize::from(self.choose(255)));
            }
            let bytes: Vec<u8> = self.sockets[id.0].incoming.drain(..n).collect();
            let buffer = Some(self.fill(&bytes));
            submission.left = submission.left.saturating_sub(n as u32);
            // The cap is looked at between receptions. It may also end for no reason that anybody is told.
            let ends = self.caps && submission.left == 0 || self.chooses(16, 15);
            if ends {
                self.end(key, Ok(n), buffer);
                return false;
            }
            if !self.tell(key, n, buffer) {
                return false;
            }
        }
        true
    }

    fn receives_nothing(&mut self, key: Key, id: SocketId) -> bool {
        let sock = &mut self.sockets[id.0];
        let ended = sock.fin || sock.dead;
        if let Some(errno) = sock.failure.take() {
            self.end(key, Err(errno), None);
        } else if ended {
            let buffer = self.chooses(4, 1).then(|| self.fill(&[]));
            self.end(key, Ok(0), buffer);
        } else {
            return true;
        }
        false
    }

    fn fill(&mut self, bytes: &[u8]) -> u16 {
        let (id, address) = self.provided.pop_front().expect("a buffer");
        assert!(bytes.len() <= self.buffers.size());
        // SAFETY: published, and as large as that.
        unsafe { address.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        id
    }

    /// What the socket takes of these bytes; `None` if it has no room.
    fn take(&mut self, id: SocketId, bytes: &[u8]) -> Option<Result<usize, Errno>> {
        let short = if self.chooses(4, 1) { 1 + usize::from(self.choose(255)) } else { usize::MAX };
        let sock = &mut self.sockets[id.0];
        if sock.dead || sock.shut {
            return Some(Err(sock.failure.take().unwrap_or(Errno::PIPE)));
        }
        let n = bytes.len().min(sock.room).min(short);
        sock.room -= n;
        sock.sent.extend_from_slice(&bytes[..n]);
        (n > 0).then_some(Ok(n))
    }
}

fn is_send(request: &Request) -> bool {
    matches!(request, Request::Send { .. } | Request::SendQuietly { .. })
}

/// # Safety
/// The request is to be pushed, or in flight.
unsafe fn pointed_to(request: &Request) -> Vec<u8> {
    match *request {
        // SAFETY: as the caller promises.
        Request::Send { bytes, len, .. } | Request::SendQuietly { bytes, len, .. } => {
            unsafe { std::slice::from_raw_parts(bytes, len as usize) }.to_vec()
        }
        Request::Connect { address, .. } => {
            // SAFETY: as the caller promises.
            let address: &SockAddr = unsafe { &*address };
            address.as_socket().map(|address| address.to_string().into_bytes()).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}
