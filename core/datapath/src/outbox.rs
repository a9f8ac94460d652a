//! Where packets for the tunnel and frames for TAPs are put, to be sent in one go. Kept and emptied,
//! so that no frame costs an allocation.

use crate::offload::Offload;
use std::net::IpAddr;

/// A part of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    pub(crate) fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && u32::try_from(end).is_ok());
        Self {
            start: start as u32,
            end: end as u32,
        }
    }

    /// Where it begins.
    pub fn start(self) -> usize {
        self.start as usize
    }

    /// How many.
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// None at all.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Those of a slice.
    pub fn of<T>(self, whole: &[T]) -> &[T] {
        &whole[self.start as usize..self.end as usize]
    }
}

/// A packet of the tunnel, in two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// In [`Outbox::heads`]: from the VXLAN header on.
    pub head: Span,
    /// In the bytes that were read from TAPs.
    pub body: Span,
}

impl Segment {
    /// In bytes, without the outer headers.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Never: a head has a VXLAN header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Packets to one VTEP, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packets {
    /// The VTEP.
    pub to: IpAddr,
    /// What the source port is made from.
    pub hash: u32,
    /// Type of service or traffic class of the outer header: that of the inner (RFC 2983, RFC 6040
    /// §4.1, normal mode).
    pub traffic_class: u8,
    /// In [`Outbox::segments`].
    pub segments: Span,
}

/// What goes to other hosts.
#[derive(Debug, Default)]
pub struct Outbox {
    /// Headers that were written.
    pub heads: Vec<u8>,
    /// Packets; several destinations may share them.
    pub segments: Vec<Segment>,
    /// What goes where.
    pub packets: Vec<Packets>,
}

impl Outbox {
    /// Forgets all, keeps the memory.
    pub fn clear(&mut self) {
        self.heads.clear();
        self.segments.clear();
        self.packets.clear();
    }

    pub(crate) fn head(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Span {
        let start = self.heads.len();
        write(&mut self.heads);
        Span::new(start, self.heads.len())
    }

    pub(crate) fn segment(&mut self, head: Span, body: Span) {
        self.segments.push(Segment { head, body });
    }
}

/// A frame for a TAP, in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// The number that the TAP was given.
    pub tap: usize,
    /// What is left to the kernel.
    pub offload: Offload,
    /// In [`Inbox::heads`]: what was written anew of it; may be empty.
    pub head: Span,
    /// In [`Inbox::parts`]: what follows.
    pub parts: Span,
}

/// What goes to TAPs.
#[derive(Debug, Default)]
pub struct Inbox {
    /// Headers that were written.
    pub heads: Vec<u8>,
    /// Parts of the bytes that were received.
    pub parts: Vec<Span>,
    /// Frames.
    pub frames: Vec<Frame>,
}

impl Inbox {
    /// Forgets all, keeps the memory.
    pub fn clear(&mut self) {
        self.heads.clear();
        self.parts.clear();
        self.frames.clear();
    }
}
