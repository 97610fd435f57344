//! What stands for TLS in a build without it: sessions of which there are none.

use std::convert::Infallible;
use std::marker::PhantomData;

use crate::engine::buffer::{Chunk, Outgoing, PiecePool, Received};
use crate::tls_fault::TlsFault;

pub(crate) const BUFFERFUL: usize = 1;

#[derive(Debug)]
pub(crate) struct Session<C = Chunk> {
    never: Infallible,
    marker: PhantomData<C>,
}

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

pub(crate) enum Step<C = Chunk> {
    Nothing,
    Established,
    Bytes(C),
    Ended,
    Failed(TlsFault),
}

impl<C: Received> Session<C> {
    pub(crate) fn is_handshaking(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn info(&self) -> Option<&Info> {
        match self.never {}
    }

    pub(crate) fn failure(&self) -> Option<&Failure> {
        match self.never {}
    }

    pub(crate) fn peer_has_ended(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn has_been_left(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn has_unseen(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn begun(&self) -> usize {
        match self.never {}
    }

    pub(crate) fn holds_back(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn is_leaving(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn can_write(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn is_used_up(&self) -> bool {
        match self.never {}
    }

    pub(crate) fn cut_off(&mut self) -> Option<TlsFault> {
        match self.never {}
    }

    pub(crate) fn receive(&mut self, _: C) {
        match self.never {}
    }

    pub(crate) fn step(&mut self, _: &mut Outgoing, _: &C::Shared<PiecePool>) -> Step<C> {
        match self.never {}
    }

    pub(crate) fn write(&mut self, _: &[u8], _: &mut Outgoing, _: &PiecePool) {
        match self.never {}
    }

    pub(crate) fn seal(&mut self, _: &mut Outgoing, _: &PiecePool) {
        match self.never {}
    }

    pub(crate) fn end(&mut self, _: &mut Outgoing, _: &PiecePool) {
        match self.never {}
    }

    pub(crate) fn leave(&mut self, _: &mut Outgoing, _: &PiecePool) {
        match self.never {}
    }

    pub(crate) fn queue_is_gone(&mut self) {
        match self.never {}
    }

    pub(crate) fn release(&mut self, _: &PiecePool) {
        match self.never {}
    }

    pub(crate) fn discard(&mut self) -> usize {
        match self.never {}
    }

    pub(crate) fn take_rest(&mut self, _: &PiecePool) -> Option<C> {
        match self.never {}
    }
}
