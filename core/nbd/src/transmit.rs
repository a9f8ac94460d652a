//! What is to be sent, in order.

use std::collections::VecDeque;

/// A piece of what is to be sent. Many go into one vectored write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<P> {
    /// Headers and everything else that is made here.
    Head(Vec<u8>),
    /// A buffer of the caller's.
    Payload(P),
    /// So many zeroes.
    Zeroes(u32),
    /// Not sent: when all before it is on its way, this goes back to the machine, which then has room for more.
    End(Sent),
}

/// How much room there is when a reply has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a machine that is not told what was sent comes to a stop"]
pub struct Sent {
    pub(crate) bytes: u64,
}

/// Pieces that wait to be taken.
#[derive(Debug)]
pub(crate) struct Outbox<P>(VecDeque<Piece<P>>);

impl<P> Outbox<P> {
    pub(crate) fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(crate) fn head(&mut self, bytes: Vec<u8>) {
        self.0.push_back(Piece::Head(bytes));
    }

    pub(crate) fn push(&mut self, piece: Piece<P>) {
        self.0.push_back(piece);
    }

    pub(crate) fn end(&mut self, bytes: u64) {
        self.0.push_back(Piece::End(Sent { bytes }));
    }

    pub(crate) fn pop(&mut self) -> Option<Piece<P>> {
        self.0.pop_front()
    }
}
