//! The connections of one worker, found by token: an index into a table, and a generation that tells late from current.

use std::cell::RefCell;
use std::rc::Rc;

use super::link::Link;
use crate::engine::Token;

#[derive(Default)]
pub(crate) struct Slots {
    table: RefCell<Table>,
}

#[derive(Default)]
struct Table {
    entries: Vec<Entry>,
    free: Vec<u32>,
}

struct Entry {
    generation: u32,
    link: Option<Rc<Link>>,
}

impl Slots {
    /// Puts the link that `make` builds for it into a free slot.
    pub(crate) fn insert(&self, make: impl FnOnce(Token) -> Rc<Link>) -> Rc<Link> {
        let mut table = self.table.borrow_mut();
        let index = table.free.pop().unwrap_or_else(|| {
            table.entries.push(Entry { generation: 0, link: None });
            (table.entries.len() - 1) as u32
        });
        let entry = &mut table.entries[index as usize];
        let link = make(Token { index, generation: entry.generation });
        entry.link = Some(link.clone());
        link
    }

    pub(crate) fn get(&self, token: Token) -> Option<Rc<Link>> {
        let table = self.table.borrow();
        let entry = table.entries.get(token.index as usize)?;
        entry.link.as_ref().filter(|_| entry.generation == token.generation).cloned()
    }

    /// Frees the slot; its next user has another generation.
    pub(crate) fn remove(&self, token: Token) -> Option<Rc<Link>> {
        let mut table = self.table.borrow_mut();
        let entry = table.entries.get_mut(token.index as usize)?;
        if entry.generation != token.generation {
            return None;
        }
        let link = entry.link.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        table.free.push(token.index);
        Some(link)
    }

    /// Forgets all connections.
    pub(crate) fn clear(&self) {
        drop(self.table.take());
    }

    pub(crate) fn len(&self) -> usize {
        let table = self.table.borrow();
        table.entries.len() - table.free.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All connections, as they are now.
    pub(crate) fn all(&self) -> Vec<Rc<Link>> {
        self.table.borrow().entries.iter().filter_map(|entry| entry.link.clone()).collect()
    }
}
