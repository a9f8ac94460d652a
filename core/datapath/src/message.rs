//! Packets of the tunnel as messages: several of one flow and size are sent as one, which the kernel, or
//! the network card, splits.

use crate::outbox::{Outbox, Packets, Segment, Span};
use crate::vxlan::VXLAN_BYTES;
use std::net::IpAddr;

/// What one message may hold: a UDP datagram's worth (RFC 768), less the headers.
const MESSAGE_BYTES: usize = 65_507;

/// How messages are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Source ports that flows are spread over.
    pub ports: usize,
    /// Packets that one message may stand for; one where nobody splits them.
    pub packets: usize,
}

/// Packets of one source port to one VTEP, in order; of one size, but for the last, which may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// The VTEP.
    pub to: IpAddr,
    /// Which of the source ports.
    pub port: usize,
    /// Of the outer header.
    pub traffic_class: u8,
    /// Of each packet but the last, in bytes, without the outer headers.
    pub size: usize,
    /// In [`Outbox::segments`].
    pub segments: Span,
    bytes: usize,
}

impl Outbox {
    /// What is in it as few messages, put into `messages` instead of what was there.
    pub fn messages(&self, bounds: Bounds, messages: &mut Vec<Message>) {
        messages.clear();
        for packets in &self.packets {
            let at = packets.segments.start();
            for (number, segment) in (at..).zip(packets.segments.of(&self.segments)) {
                let grown = messages
                    .last_mut()
                    .is_some_and(|message| message.takes(packets, (number, segment), bounds));
                if !grown {
                    messages.push(Message::begin(packets, (number, segment), bounds));
                }
            }
        }
    }
}

impl Message {
    /// How many packets.
    pub fn packets(&self) -> usize {
        self.segments.len()
    }

    /// Of the frames in its packets.
    pub(crate) fn inside_bytes(&self) -> usize {
        self.bytes - self.packets() * VXLAN_BYTES
    }

    fn begin(packets: &Packets, (number, segment): (usize, &Segment), bounds: Bounds) -> Self {
        Self {
            to: packets.to,
            port: port_of(packets, bounds),
            traffic_class: packets.traffic_class,
            size: segment.len(),
            segments: Span::new(number, number + 1),
            bytes: segment.len(),
        }
    }

    /// Takes one more packet, if it may: the next of the same port and VTEP, no larger than the first, and
    /// after none that is shorter.
    fn takes(
        &mut self,
        packets: &Packets,
        (number, segment): (usize, &Segment),
        bounds: Bounds,
    ) -> bool {
        let (length, count) = (segment.len(), self.segments.len());
        let (start, end) = (self.segments.start(), self.segments.start() + count);
        let is_whole = self.bytes == count * self.size;
        let fits = number == end
            && is_whole
            && length <= self.size
            && self.bytes + length <= MESSAGE_BYTES
            && count < bounds.packets
            && self.to == packets.to
            && self.traffic_class == packets.traffic_class
            && self.port == port_of(packets, bounds);
        if fits {
            self.segments = Span::new(start, end + 1);
            self.bytes += length;
        }
        fits
    }
}

fn port_of(packets: &Packets, bounds: Bounds) -> usize {
    packets.hash as usize % bounds.ports
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        ports: 64,
        packets: 4,
    };

    fn vtep(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    /// Frames: whither, hash, traffic class and the lengths of their segments.
    fn outbox(frames: &[(u8, u32, u8, &[usize])]) -> Outbox {
        let mut outbox = Outbox::default();
        for (to, hash, traffic_class, lengths) in frames {
            let first = outbox.segments.len();
            for length in *lengths {
                outbox.segment(Span::new(0, 8), Span::new(0, length - 8));
            }
            outbox.packets.push(Packets {
                to: vtep(*to),
                hash: *hash,
                traffic_class: *traffic_class,
                segments: Span::new(first, outbox.segments.len()),
            });
        }
        outbox
    }

    /// VTEP, port, size and number of packets of each message.
    fn messages(outbox: &Outbox, bounds: Bounds) -> Vec<(IpAddr, usize, usize, usize)> {
        let mut messages = Vec::new();
        outbox.messages(bounds, &mut messages);
        let told = |m: &Message| (m.to, m.port, m.size, m.packets());
        messages.iter().map(told).collect()
    }

    #[test]
    fn packets_of_one_size_are_one_message_and_a_shorter_one_ends_it() {
        let frames = outbox(&[(2, 65, 0, &[1450, 1450, 700]), (2, 1, 0, &[700, 700])]);
        let expected = [(vtep(2), 1, 1450, 3), (vtep(2), 1, 700, 2)];
        assert_eq!(messages(&frames, BOUNDS), expected);
        // Another frame of the flow goes on where the one before was whole.
        let frames = outbox(&[(2, 1, 0, &[1450, 1450]), (2, 1, 0, &[1450, 9])]);
        assert_eq!(messages(&frames, BOUNDS), [(vtep(2), 1, 1450, 4)]);
        // A larger one does not fit.
        let frames = outbox(&[(2, 1, 0, &[700, 1450])]);
        let expected = [(vtep(2), 1, 700, 1), (vtep(2), 1, 1450, 1)];
        assert_eq!(messages(&frames, BOUNDS), expected);
    }

    #[test]
    fn what_differs_stays_apart() {
        let size: &[usize] = &[100];
        let others = [(3, 1, 0, size), (2, 2, 0, size), (2, 1, 4, size)];
        for other in others {
            assert_eq!(
                messages(&outbox(&[(2, 1, 0, size), other]), BOUNDS).len(),
                2
            );
        }
        assert_eq!(
            messages(&outbox(&[(2, 1, 0, size), (2, 65, 0, size)]), BOUNDS).len(),
            1
        );
    }

    #[test]
    fn a_message_holds_no_more_than_it_may() {
        let many = outbox(&[(2, 0, 0, &[100; 9])]);
        let packets = |bounds| {
            messages(&many, bounds)
                .iter()
                .map(|m| m.3)
                .collect::<Vec<_>>()
        };
        assert_eq!(packets(BOUNDS), [4, 4, 1]);
        let alone = Bounds {
            packets: 1,
            ..BOUNDS
        };
        assert_eq!(packets(alone), [1; 9]);
        let large = outbox(&[(2, 0, 0, &[30_000; 3])]);
        assert_eq!(
            messages(&large, BOUNDS)
                .iter()
                .map(|m| m.3)
                .collect::<Vec<_>>(),
            [2, 1]
        );
    }

    #[test]
    fn what_goes_to_several_is_in_a_message_of_each() {
        let mut flood = outbox(&[(2, 0, 0, &[100, 100])]);
        let again = Packets {
            to: vtep(3),
            ..flood.packets[0]
        };
        flood.packets.push(again);
        assert_eq!(
            messages(&flood, BOUNDS),
            [(vtep(2), 0, 100, 2), (vtep(3), 0, 100, 2)]
        );
        // Nor is what is not the next taken for it.
        let again = flood.packets[0];
        flood.packets.pop();
        flood.packets.push(again);
        assert_eq!(messages(&flood, BOUNDS).len(), 2);
    }
}
