//! Bytes received on one connection and not yet read. Knows nothing about sockets or time.
//!
//! Small receptions are copied into the tail chunk when they fit, so that a peer who sends single bytes pins few
//! buffers: any two neighbouring chunks together hold more than one chunk's worth, and memory stays below twice the
//! bytes plus one chunk.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::engine::buffer::{Chunk, Held, Received};

#[derive(Debug)]
pub(crate) struct Inbox<C: Received = Chunk> {
    len: usize,
    /// Made for the first chunk that has to wait, which in event style may never happen.
    queue: Option<Box<Queue<C>>>,
}

#[derive(Debug)]
struct Queue<C> {
    /// The first chunk lives here, so that the usual connection, with one, has no use for the rest.
    head: Option<C>,
    rest: VecDeque<C>,
}

impl<C> Queue<C> {
    fn pop(&mut self) -> Option<C> {
        let chunk = self.head.take()?;
        self.head = self.rest.pop_front();
        Some(chunk)
    }
}

impl<C: Received> Default for Inbox<C> {
    fn default() -> Inbox<C> {
        Inbox { len: 0, queue: None }
    }
}

impl<C> Default for Queue<C> {
    fn default() -> Queue<C> {
        Queue { head: None, rest: VecDeque::new() }
    }
}

impl<C: Received> Inbox<C> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Queues `chunk` behind what is here.
    pub(crate) fn push(&mut self, chunk: C) {
        self.len += chunk.len();
        let queue = self.queue.get_or_insert_default();
        let Some(tail) = queue.rest.back_mut().or(queue.head.as_mut()) else {
            queue.head = Some(chunk);
            return;
        };
        if !tail.append(&chunk) {
            queue.rest.push_back(chunk);
        }
    }

    /// Puts `bytes` back in front, as if they had not been read.
    pub(crate) fn unread(&mut self, bytes: &[u8], count: &Arc<Held>) {
        if bytes.is_empty() {
            return;
        }
        self.len += bytes.len();
        let queue = self.queue.get_or_insert_default();
        if let Some(head) = queue.head.replace(C::counted(bytes, count)) {
            queue.rest.push_front(head);
        }
    }

    /// Moves bytes into `buf`, as many as are here and fit.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> usize {
        let mut filled = 0;
        self.read_with(buf.len(), |bytes| {
            buf[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
        })
    }

    /// Moves bytes to `put`, at most `room`; returns how many.
    pub(crate) fn read_with(&mut self, room: usize, mut put: impl FnMut(&[u8])) -> usize {
        let Some(queue) = &mut self.queue else { return 0 };
        let mut taken = 0;
        while let Some(head) = &mut queue.head {
            let n = head.len().min(room - taken);
            put(&head[..n]);
            taken += n;
            if n < head.len() {
                head.advance(n);
                break;
            }
            queue.pop();
        }
        self.len -= taken;
        taken
    }

    /// Takes the first chunk as it is.
    pub(crate) fn take(&mut self) -> Option<C> {
        let chunk = self.queue.as_mut()?.pop()?;
        self.len -= chunk.len();
        Some(chunk)
    }

    /// Takes everything as one chunk, joining what lies apart.
    pub(crate) fn take_joined(&mut self) -> Option<C> {
        let queue = self.queue.as_mut()?;
        if queue.rest.is_empty() {
            return self.take();
        }
        // Doubling keeps the joins of a long message linear in its length.
        let mut joined = queue.head.as_ref()?.with_room(self.len * 2);
        while let Some(chunk) = queue.pop() {
            let fits = joined.append(&chunk);
            debug_assert!(fits, "a joined chunk has room for all its parts");
        }
        self.len = 0;
        Some(joined)
    }

    /// Throws everything away; returns how many bytes that were.
    pub(crate) fn clear(&mut self) -> usize {
        self.queue = None;
        std::mem::take(&mut self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::buffer::PiecePool;

    fn inbox(parts: &[&[u8]]) -> Inbox {
        let mut inbox = Inbox::default();
        for part in parts {
            inbox.push(Chunk::copied(part));
        }
        inbox
    }

    #[test]
    fn reads_across_chunks_and_leaves_the_rest() {
        let mut inbox = inbox(&[b"abc", b"de", b"fgh"]);
        let mut buf = [0; 6];
        assert_eq!(inbox.read(&mut buf), 6);
        assert_eq!(&buf, b"abcdef");
        assert_eq!(inbox.take_joined().as_deref(), Some(&b"gh"[..]));
        assert_eq!(inbox.len(), 0);
    }

    #[test]
    fn unread_bytes_are_read_again_first() {
        let mut inbox = inbox(&[b"world"]);
        inbox.unread(b"hello ", &Arc::default());
        assert_eq!(inbox.take_joined().as_deref(), Some(&b"hello world"[..]));
    }

    #[test]
    fn single_bytes_share_a_chunk_with_room() {
        let mut inbox = Inbox::default();
        inbox.push(Chunk::copied(b"").with_room(4));
        for byte in b"abcdef" {
            inbox.push(Chunk::copied(&[*byte]));
        }
        assert_eq!(inbox.take().as_deref(), Some(&b"abcd"[..]));
        assert_eq!(inbox.len(), 2);
    }

    #[test]
    fn records_that_were_put_together_share_a_buffer() {
        let (mut inbox, pool) = (Inbox::default(), PiecePool::new());
        for byte in b"abcdef" {
            let mut record = pool.lease(30);
            record.extend_from_slice(&[0, *byte, 0]);
            let mut chunk = Chunk::joined(record, &pool);
            chunk.narrow(1..2);
            inbox.push(chunk);
        }
        let held = pool.held();
        assert_eq!(held, 2 * pool.lease(30).capacity(), "that of all, and the last one's");
        assert_eq!(inbox.take().as_deref(), Some(&b"abcdef"[..]));
    }
}
