//! One connection of an edge-triggered loop: what bare_epoll.rs and mio.rs do with it. No limits, no deadlines.

use std::io::{ErrorKind, Read, Write};

pub struct Connection<S> {
    pub stream: S,
    /// Empty unless the peer reads more slowly than it sends; nothing is received meanwhile.
    unsent: Vec<u8>,
}

impl<S: Read + Write> Connection<S> {
    pub fn new(stream: S) -> Connection<S> {
        Connection {
            stream,
            unsent: Vec::new(),
        }
    }

    /// Whether the connection goes on. `end`: the peer's FIN or RST is behind the bytes that wait.
    pub fn echo(&mut self, buffer: &mut [u8], end: bool) -> bool {
        if !self.unsent.is_empty() {
            let unsent = std::mem::take(&mut self.unsent);
            if !self.send(&unsent) {
                return false;
            }
        }
        while self.unsent.is_empty() {
            match self.stream.read(buffer) {
                Ok(0) => return false,
                Ok(count) if !self.send(&buffer[..count]) => return false,
                // A short read means the socket is drained (epoll(7), edge-triggered stream sockets).
                Ok(count) if count < buffer.len() && !end => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }

    fn send(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        self.unsent.extend_from_slice(bytes);
        true
    }
}

/// Connections by a small number that the caller chooses: their descriptors. Grows to the highest, and no further.
pub struct Table<S> {
    slots: Vec<Option<Connection<S>>>,
}

impl<S> Table<S> {
    pub fn new() -> Table<S> {
        Table { slots: Vec::new() }
    }

    pub fn insert(&mut self, key: usize, connection: Connection<S>) {
        if key >= self.slots.len() {
            self.slots.resize_with(key + 1, || None);
        }
        self.slots[key] = Some(connection);
    }

    pub fn get(&mut self, key: usize) -> Option<&mut Connection<S>> {
        self.slots[key].as_mut()
    }

    /// Closes it. Its number may come again, and is then another's.
    pub fn remove(&mut self, key: usize) {
        self.slots[key] = None;
    }
}
