//! Frames as a file that tcpdump and Wireshark read: pcapng (draft-ietf-opsawg-pcapng).
//!
//! A file is [`section`], then an [`interface`] for each, then a [`packet`] for each frame; interfaces are
//! numbered as they come. A block is `| type 4 | length 4 | body, padded to 4 | length 4 |`, an option
//! `| code 2 | length 2 | value, padded to 4 |`, all of it little-endian here, which the first block says.

use std::time::Duration;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINK_ETHERNET: u16 = 1;
const OPT_END: u16 = 0;
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
/// An option has its length in 16 bits; nobody reads more of a comment.
const MOST_COMMENT_BYTES: usize = 1024;

/// Which way a frame went, as whoever has the interface sees it (`epb_flags`, bits 0 and 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It came in.
    In = 1,
    /// It went out.
    Out = 2,
}

/// A frame to write.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// The number of its interface.
    pub interface: u32,
    /// Since 1970.
    pub at: Duration,
    /// Which way it went.
    pub direction: Direction,
    /// What was kept of it.
    pub bytes: &'a [u8],
    /// How long it was.
    pub length: u32,
    /// What is to be said of it, as why it was dropped.
    pub comment: Option<&'a str>,
}

/// The section's header: `| byte order 4 | version 2, 2 | length of the section 8 | options |`.
pub fn section(application: &str) -> Vec<u8> {
    let mut block = Block::new(SECTION);
    block.u32(BYTE_ORDER).u16(1).u16(0);
    // It is as long as the file.
    block.bytes(&u64::MAX.to_le_bytes());
    block.option(SHB_USERAPPL, application.as_bytes());
    block.end_of_options();
    block.finish()
}

/// An interface: `| link type 2 | 0 2 | most bytes of a frame 4, 0 for all | options |`.
pub fn interface(name: &str) -> Vec<u8> {
    let mut block = Block::new(INTERFACE);
    block.u16(LINK_ETHERNET).u16(0).u32(0);
    block.option(IF_NAME, name.as_bytes());
    // Times are in 10^-9 s.
    block.option(IF_TSRESOL, &[9]);
    block.end_of_options();
    block.finish()
}

/// A frame: `| interface 4 | time high 4 | time low 4 | kept 4 | length 4 | the frame | options |`.
pub fn packet(packet: &Packet) -> Vec<u8> {
    let at = u64::try_from(packet.at.as_nanos()).unwrap_or(u64::MAX);
    let mut block = Block::new(ENHANCED_PACKET);
    block.u32(packet.interface);
    block.u32((at >> 32) as u32).u32(at as u32);
    block.u32(packet.bytes.len() as u32).u32(packet.length);
    block.bytes(packet.bytes).pad();
    if let Some(comment) = packet.comment {
        let end = comment.floor_char_boundary(MOST_COMMENT_BYTES);
        block.option(OPT_COMMENT, &comment.as_bytes()[..end]);
    }
    block.option(EPB_FLAGS, &(packet.direction as u32).to_le_bytes());
    block.end_of_options();
    block.finish()
}

struct Block(Vec<u8>);

impl Block {
    fn new(kind: u32) -> Self {
        let mut block = Self(Vec::with_capacity(64));
        // The length is known at the end.
        block.u32(kind).u32(0);
        block
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn pad(&mut self) -> &mut Self {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let length = u16::try_from(value.len()).expect("values here are short");
        self.u16(code).u16(length).bytes(value).pad();
    }

    fn end_of_options(&mut self) {
        self.u16(OPT_END).u16(0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32 + 4;
        self.u32(length);
        self.0[4..8].copy_from_slice(&length.to_le_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
    }

    /// Blocks with their types, as any reader walks them.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, &[u8])> {
        let mut blocks = Vec::new();
        while !bytes.is_empty() {
            let length = u32_at(bytes, 4) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(u32_at(bytes, length - 4) as usize, length);
            blocks.push((u32_at(bytes, 0), &bytes[8..length - 4]));
            bytes = &bytes[length..];
        }
        blocks
    }

    fn options(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
        let mut options = Vec::new();
        loop {
            let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            let (code, length) = (half(0), usize::from(half(2)));
            if code == OPT_END {
                assert_eq!((length, bytes.len()), (0, 4));
                return options;
            }
            options.push((code, &bytes[4..4 + length]));
            bytes = &bytes[4 + length.next_multiple_of(4)..];
        }
    }

    #[test]
    fn a_packet_to_the_byte() {
        let bytes = packet(&Packet {
            interface: 1,
            at: Duration::from_nanos(0x0102_0304_0506_0708),
            direction: Direction::Out,
            bytes: &[0xaa; 5],
            length: 7,
            comment: Some("no"),
        });
        let wanted: [&[u8]; 8] = [
            &[6, 0, 0, 0, 60, 0, 0, 0],
            &[1, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5],
            &[5, 0, 0, 0, 7, 0, 0, 0],
            &[0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0, 0, 0],
            &[1, 0, 2, 0, b'n', b'o', 0, 0],
            &[2, 0, 4, 0, 2, 0, 0, 0],
            &[0, 0, 0, 0],
            &[60, 0, 0, 0],
        ];
        assert_eq!(bytes, wanted.concat());
    }

    proptest! {
        #[test]
        fn any_file_is_walked_block_by_block(
            frames in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..100), any::<Option<String>>(), any::<bool>()),
                0..6,
            ),
            name: String,
        ) {
            let name = &name[..name.floor_char_boundary(300)];
            let mut file = [section("vpc"), interface(name)].concat();
            for (bytes, comment, out) in &frames {
                file.extend(packet(&Packet {
                    interface: 0,
                    at: Duration::from_secs(1),
                    direction: if *out { Direction::Out } else { Direction::In },
                    bytes,
                    length: bytes.len() as u32,
                    comment: comment.as_deref(),
                }));
            }
            let blocks = blocks(&file);
            prop_assert_eq!(blocks.len(), frames.len() + 2);
            prop_assert_eq!(blocks[0].0, SECTION);
            prop_assert_eq!(options(&blocks[1].1[8..])[0], (IF_NAME, name.as_bytes()));
            for ((kind, body), (bytes, comment, out)) in blocks[2..].iter().zip(&frames) {
                prop_assert_eq!(*kind, ENHANCED_PACKET);
                prop_assert_eq!(&body[20..20 + bytes.len()], &bytes[..]);
                let options = options(&body[20 + bytes.len().next_multiple_of(4)..]);
                let (flags, comments) = options.split_last().unwrap();
                prop_assert_eq!(flags.1[0], if *out { 2 } else { 1 });
                let comments: Vec<_> = comments.iter().map(|(_, value)| *value).collect();
                let wanted: Vec<_> = comment.iter().map(|comment| comment.as_bytes()).collect();
                prop_assert_eq!(comments, wanted);
            }
        }
    }
}
