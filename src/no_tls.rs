//! What stands for TLS in a build without it: sessions of which there are none.

use std::rc::Rc;

use crate::engine::buffer::{Chunk, Outgoing, PiecePool};
use crate::tls_fault::TlsFault;

pub(crate) const BUFFERFUL: usize = 1;

#[derive(Debug)]
pub(crate) enum Session {}

pub(crate) enum Info {}

impl Info {
    pub(crate) fn is_resumed(&self) -> bool {
        match *self {}
    }
}

/// Why TLS failed on a connection.
pub(crate) struct Failure {
    pub(crate) fault: TlsFault,
    pub(crate) detail: String,
}

pub(crate) enum Step {
    Nothing,
    Established,
    Bytes(Chunk),
    Ended,
    Failed(TlsFault),
}

impl Session {
    pub(crate) fn is_handshaking(&self) -> bool {
        match *self {}
    }

    pub(crate) fn info(&self) -> Option<&Info> {
        match *self {}
    }

    pub(crate) fn failure(&self) -> Option<&Failure> {
        match *self {}
    }

    pub(crate) fn peer_has_ended(&self) -> bool {
        match *self {}
    }

    pub(crate) fn has_been_left(&self) -> bool {
        match *self {}
    }

    pub(crate) fn has_unseen(&self) -> bool {
        match *self {}
    }

    pub(crate) fn begun(&self) -> usize {
        match *self {}
    }

    pub(crate) fn holds_back(&self) -> bool {
        match *self {}
    }

    pub(crate) fn is_leaving(&self) -> bool {
        match *self {}
    }

    pub(crate) fn can_write(&self) -> bool {
        match *self {}
    }

    pub(crate) fn is_used_up(&self) -> bool {
        match *self {}
    }

    pub(crate) fn cut_off(&mut self) -> Option<TlsFault> {
        match *self {}
    }

    pub(crate) fn receive(&mut self, _: Chunk) {
        match *self {}
    }

    pub(crate) fn step(&mut self, _: &mut Outgoing, _: &Rc<PiecePool>) -> Step {
        match *self {}
    }

    pub(crate) fn write(&mut self, _: &[u8], _: &mut Outgoing, _: &PiecePool) {
        match *self {}
    }

    pub(crate) fn seal(&mut self, _: &mut Outgoing, _: &PiecePool) {
        match *self {}
    }

    pub(crate) fn end(&mut self, _: &mut Outgoing, _: &PiecePool) {
        match *self {}
    }

    pub(crate) fn leave(&mut self, _: &mut Outgoing, _: &PiecePool) {
        match *self {}
    }

    pub(crate) fn queue_is_gone(&mut self) {
        match *self {}
    }

    pub(crate) fn release(&mut self, _: &PiecePool) {
        match *self {}
    }

    pub(crate) fn discard(&mut self) -> usize {
        match *self {}
    }

    pub(crate) fn take_rest(&mut self, _: &PiecePool) -> Option<Chunk> {
        match *self {}
    }
}
