//! What a TAP tells of a frame beside its bytes: the work that was left to the device.

/// The header before each frame of a TAP with `IFF_VNET_HDR` (virtio 1.2 §5.1.6, in the machine's own
/// byte order): `| flags 1 | segmentation 1 | header length 2 | segment size 2 | checksum start 2 |
/// checksum offset 2 |`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum is left to do: the field holds the sum of the pseudo-header.
    pub checksum: Option<Partial>,
    /// The frame stands for several.
    pub segments: Option<Segmentation>,
}

/// Where a checksum is to be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// From which byte of the frame to its end.
    pub start: u16,
    /// Where it goes, from there.
    pub offset: u16,
}

/// How a frame is to be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// By which protocol.
    pub kind: SegmentKind,
    /// Payload of each but the last, in bytes; not zero.
    pub size: u16,
    /// Headers before the payload, in bytes; a hint.
    pub header: u16,
}

/// What is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP, each segment a datagram.
    Udp,
}

/// Bytes of the header.
pub const OFFLOAD_BYTES: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const NONE: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const UDP: u8 = 5;
/// Congestion was told in the segments; no matter here, as flags are taken from the frame.
const ECN: u8 = 0x80;

impl Offload {
    /// None if it asks for something that was not offered.
    pub fn parse(bytes: &[u8; OFFLOAD_BYTES]) -> Option<Self> {
        let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1] = *bytes;
        let checksum = (flags & NEEDS_CHECKSUM != 0).then(|| Partial {
            start: u16::from_ne_bytes([c0, c1]),
            offset: u16::from_ne_bytes([o0, o1]),
        });
        let kind = match kind & !ECN {
            NONE => None,
            TCP4 => Some(SegmentKind::Tcp4),
            TCP6 => Some(SegmentKind::Tcp6),
            UDP => Some(SegmentKind::Udp),
            _ => return None,
        };
        let size = u16::from_ne_bytes([s0, s1]);
        let header = u16::from_ne_bytes([h0, h1]);
        let segments = kind.map(|kind| Segmentation { kind, size, header });
        // The kernel leaves the checksum of what is to be split to the one who splits it.
        let fine = segments.is_none_or(|split| split.size > 0 && checksum.is_some());
        fine.then_some(Self { checksum, segments })
    }

    /// As the TAP takes it.
    pub fn to_bytes(self) -> [u8; OFFLOAD_BYTES] {
        let mut bytes = [0; OFFLOAD_BYTES];
        if let Some(partial) = self.checksum {
            bytes[0] = NEEDS_CHECKSUM;
            bytes[6..8].copy_from_slice(&partial.start.to_ne_bytes());
            bytes[8..10].copy_from_slice(&partial.offset.to_ne_bytes());
        }
        if let Some(split) = self.segments {
            bytes[1] = match split.kind {
                SegmentKind::Tcp4 => TCP4,
                SegmentKind::Tcp6 => TCP6,
                SegmentKind::Udp => UDP,
            };
            bytes[2..4].copy_from_slice(&split.header.to_ne_bytes());
            bytes[4..6].copy_from_slice(&split.size.to_ne_bytes());
        }
        bytes
    }
}
