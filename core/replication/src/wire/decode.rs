//! Frames out of bytes that anybody may have sent.

use super::codec::Take;
use super::{
    BadFrame, KIND_FRAME, MAGIC, MOST_HEAD_BYTES, MOST_PAYLOAD_BLOCKS, PREFIX_BYTES,
    PREFIX_COVERED, Prefix, VERSION, malformed,
};
use crate::message::{
    Answer, Answered, Care, Echo, Envelope, Failure, Frame, Message, Op, Place, Request, Step,
    VoteKind,
};
use crate::{HostId, Members, ReplicaId, SessionId, Stamp, Time};
use blocks::{Base, Body, Buffer, Chunk, Digest, Entry, MOST_CONFIG_BYTES, Run, VolumeId};
use std::sync::Arc;

/// The fewest bytes of a message, with its volume.
const MESSAGE_BYTES: usize = 25;
/// The fewest bytes of an entry.
const ENTRY_BYTES: usize = 25;
const LBA_BYTES: usize = 8;
const RUN_BYTES: usize = 9;

/// What comes after these bytes.
pub fn decode_prefix(bytes: &[u8; PREFIX_BYTES]) -> Result<Prefix, BadFrame> {
    if bytes[..4] != MAGIC {
        return Err(BadFrame::Magic);
    }
    if crc32c::crc32c(&bytes[..PREFIX_COVERED]).to_le_bytes() != bytes[PREFIX_COVERED..] {
        return Err(BadFrame::Checksum { part: "prefix" });
    }
    let mut take = Take(&bytes[4..]);
    let kind = take.u32()?;
    let found = kind as u16;
    if found != VERSION {
        return Err(BadFrame::Version { found });
    }
    if kind >> 16 != u32::from(KIND_FRAME) {
        return Err(malformed("a frame of no kind that is known"));
    }
    let prefix = Prefix {
        head_bytes: take.u32()?,
        payload_blocks: take.u32()?,
        head_crc: take.u32()?,
        payload_crc: take.u32()?,
    };
    let (head_bytes, payload_blocks) = (prefix.head_bytes, prefix.payload_blocks);
    if head_bytes > MOST_HEAD_BYTES || payload_blocks > MOST_PAYLOAD_BLOCKS {
        return Err(BadFrame::Size {
            head_bytes,
            payload_blocks,
        });
    }
    Ok(prefix)
}

/// The frame, given all that its prefix announced.
pub fn decode_frame(prefix: &Prefix, head: &[u8], payload: &Buffer) -> Result<Frame, BadFrame> {
    let (bytes, blocks) = (prefix.head_bytes as usize, prefix.payload_blocks as usize);
    if head.len() != bytes || payload.blocks() != blocks {
        return Err(malformed("it is not as long as announced"));
    }
    if crc32c::crc32c(head) != prefix.head_crc {
        return Err(BadFrame::Checksum { part: "head" });
    }
    let pages = payload.pages().iter();
    if pages.fold(0, |crc, page| crc32c::crc32c_append(crc, &page.0)) != prefix.payload_crc {
        return Err(BadFrame::Checksum { part: "payload" });
    }
    let mut parts = Parts {
        take: Take(head),
        payload,
        used: 0,
    };
    let frame = parts.frame()?;
    if !parts.take.0.is_empty() || parts.used != payload.blocks() {
        return Err(malformed("more than its messages"));
    }
    Ok(frame)
}

struct Parts<'a> {
    take: Take<'a>,
    payload: &'a Buffer,
    used: usize,
}

impl Parts<'_> {
    fn frame(&mut self) -> Result<Frame, BadFrame> {
        let take = &mut self.take;
        let (incarnation, disk) = (take.u64()?, take.u128()?);
        let sent = Time(take.u64()?);
        let echo = match take.flag()? {
            true => Some(Echo {
                incarnation: take.u64()?,
                sent: Time(take.u64()?),
            }),
            false => None,
        };
        let count = take.count(MESSAGE_BYTES)?;
        let mut messages = Vec::with_capacity(count);
        for _ in 0..count {
            let volume = VolumeId::new(self.take.u128()?);
            let message = self.message()?;
            messages.push(Envelope { volume, message });
        }
        Ok(Frame {
            incarnation,
            disk,
            sent,
            echo,
            messages,
        })
    }

    fn message(&mut self) -> Result<Message, BadFrame> {
        let take = &mut self.take;
        match take.u8()? {
            1 => Ok(Message::Consensus {
                from: ReplicaId(take.u64()?),
                to: ReplicaId(take.u64()?),
                term: take.u64()?,
                step: self.step()?,
            }),
            2 => Ok(Message::Request(self.request()?)),
            3 => Ok(Message::Answer(self.answer()?)),
            4 => Ok(Message::Care {
                from: ReplicaId(take.u64()?),
                to: ReplicaId(take.u64()?),
                care: self.care()?,
            }),
            5 => Ok(Message::Join {
                from: ReplicaId(take.u64()?),
                to: ReplicaId(take.u64()?),
                blocks: take.u64()?,
                config: take.u64()?,
                members: self.config()?,
            }),
            6 => Ok(Message::Removed {
                replica: ReplicaId(take.u64()?),
                config: take.u64()?,
            }),
            7 => Ok(Message::Gone {
                replica: ReplicaId(take.u64()?),
            }),
            _ => Err(malformed("a message of no kind that is known")),
        }
    }

    fn config(&mut self) -> Result<Arc<[u8]>, BadFrame> {
        match self.take.bytes()? {
            bytes if bytes.len() <= MOST_CONFIG_BYTES => Ok(bytes.into()),
            _ => Err(malformed("a configuration that is too large")),
        }
    }

    fn care(&mut self) -> Result<Care, BadFrame> {
        let take = &mut self.take;
        Ok(match take.u8()? {
            1 => Care::Behind { first: take.u64()? },
            2 => Care::Changes {
                since: take.u64()?,
                from: take.u64()?,
            },
            3 => self.changed()?,
            4 => Care::WantChunk {
                number: take.u64()?,
            },
            5 => Care::Chunk(self.chunk()?),
            6 => Care::WantEntry {
                place: self.place()?,
                question: self.take.u64()?,
            },
            13 => Care::NoEntry {
                place: self.place()?,
                question: self.take.u64()?,
            },
            7 => Care::Entry(self.entry()?),
            8 => Care::WantBlock { lba: take.u64()? },
            9 => Care::Block {
                lba: take.u64()?,
                data: match take.flag()? {
                    true => Some(self.blocks()?),
                    false => None,
                },
            },
            10 => self.compare()?,
            11 => self.compared()?,
            12 => Care::Who,
            14 => Care::These {
                config: take.u64()?,
                members: self.config()?,
            },
            _ => return Err(malformed("care of no kind that is known")),
        })
    }

    fn changed(&mut self) -> Result<Care, BadFrame> {
        let take = &mut self.take;
        let (since, from) = (take.u64()?, take.u64()?);
        let base = self.base()?;
        let take = &mut self.take;
        let more = take.flag()?;
        let count = take.count(2 * LBA_BYTES)?;
        let chunks: Result<_, BadFrame> =
            (0..count).map(|_| Ok((take.u64()?, take.u64()?))).collect();
        Ok(Care::Changed {
            since,
            from,
            base,
            chunks: chunks?,
            more,
        })
    }

    fn base(&mut self) -> Result<Base, BadFrame> {
        let take = &mut self.take;
        Ok(Base {
            index: take.u64()?,
            term: take.u64()?,
            epoch: take.u64()?,
            blocks: take.u64()?,
            config: (take.u64()?, self.config()?),
        })
    }

    fn chunk(&mut self) -> Result<Chunk, BadFrame> {
        let take = &mut self.take;
        let (number, changed) = (take.u64()?, take.u64()?);
        let mut written = [0; 16];
        for valid in &mut written {
            *valid = take.u16()?;
        }
        let mut chunk = Chunk {
            number,
            changed,
            written,
            digest: Digest(take.u128()?),
            data: Vec::new(),
        };
        let blocks = chunk.blocks();
        if blocks > 0 {
            chunk.data.push(self.next_blocks(blocks)?);
        }
        Ok(chunk)
    }

    fn compare(&mut self) -> Result<Care, BadFrame> {
        let take = &mut self.take;
        let (index, digest, from) = (take.u64()?, Digest(take.u128()?), take.u64()?);
        let count = take.count(2 * LBA_BYTES)?;
        let chunks: Result<_, BadFrame> = (0..count).map(|_| Ok(Digest(take.u128()?))).collect();
        Ok(Care::Compare {
            index,
            digest,
            from,
            chunks: chunks?,
        })
    }

    fn compared(&mut self) -> Result<Care, BadFrame> {
        let take = &mut self.take;
        let index = take.u64()?;
        let same = match take.u8()? {
            0 => Some(false),
            1 => Some(true),
            2 => None,
            _ => return Err(malformed("neither the same nor another")),
        };
        let count = take.count(LBA_BYTES)?;
        let differ: Result<_, BadFrame> = (0..count).map(|_| take.u64()).collect();
        Ok(Care::Compared {
            index,
            same,
            differ: differ?,
        })
    }

    fn place(&mut self) -> Result<Place, BadFrame> {
        Ok(Place {
            index: self.take.u64()?,
            term: self.take.u64()?,
        })
    }

    fn step(&mut self) -> Result<Step, BadFrame> {
        match self.take.u8()? {
            1 => self.append(),
            2 => Ok(Step::Appended {
                last: self.take.u64()?,
                commit: self.take.u64()?,
            }),
            3 => Ok(Step::Rejected {
                prev: self.take.u64()?,
                hint: self.place()?,
                commit: self.take.u64()?,
            }),
            4 => Ok(Step::Vote {
                kind: match self.take.u8()? {
                    0 => VoteKind::Pre,
                    1 => VoteKind::Vote,
                    2 => VoteKind::Transfer,
                    _ => return Err(malformed("a vote of no kind that is known")),
                },
                last: self.place()?,
                commit: self.place()?,
            }),
            5 => Ok(Step::Voted {
                pre: self.take.flag()?,
                granted: self.take.flag()?,
                commit: self.place()?,
            }),
            6 => Ok(Step::Heartbeat {
                commit: self.take.u64()?,
                read: self.take.u64()?,
            }),
            7 => Ok(Step::HeartbeatReply {
                commit: self.take.u64()?,
                read: self.take.u64()?,
            }),
            8 => Ok(Step::TimeoutNow),
            _ => Err(malformed("a step of no kind that is known")),
        }
    }

    fn append(&mut self) -> Result<Step, BadFrame> {
        let (prev, commit) = (self.place()?, self.take.u64()?);
        let count = self.take.count(ENTRY_BYTES)?;
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            entries.push(self.entry()?);
        }
        Ok(Step::Append {
            prev,
            commit,
            entries,
        })
    }

    fn entry(&mut self) -> Result<Entry, BadFrame> {
        let take = &mut self.take;
        let (index, term, epoch) = (take.u64()?, take.u64()?, take.u64()?);
        let body = match take.u8()? {
            1 => Body::Write {
                lba: take.u64()?,
                data: self.blocks()?,
            },
            2 => Body::Zero {
                lba: take.u64()?,
                blocks: take.u64()?,
            },
            3 => Body::Attach,
            4 => Body::Config(self.config()?),
            5 => Body::Empty,
            6 => Body::Grow {
                blocks: take.u64()?,
            },
            _ => return Err(malformed("an entry of no kind that is known")),
        };
        Ok(Entry {
            index,
            term,
            epoch,
            body,
        })
    }

    /// The next blocks of the payload, shared with it.
    fn blocks(&mut self) -> Result<Buffer, BadFrame> {
        let blocks = self.take.u32()? as usize;
        self.next_blocks(blocks)
    }

    fn next_blocks(&mut self, blocks: usize) -> Result<Buffer, BadFrame> {
        if blocks > self.payload.blocks() - self.used {
            return Err(malformed("more blocks than its payload has"));
        }
        self.used += blocks;
        Ok(self.payload.part(self.used - blocks, blocks))
    }

    fn request(&mut self) -> Result<Request, BadFrame> {
        let take = &mut self.take;
        Ok(Request {
            session: SessionId(take.u128()?),
            id: take.u64()?,
            term: take.u64()?,
            stamp: Stamp::from_entry(take.u64()?),
            floor: take.u64()?,
            op: match take.u8()? {
                1 => Op::Attach { claim: take.u64()? },
                2 => Op::Write {
                    lba: take.u64()?,
                    data: self.blocks()?,
                },
                3 => Op::Zero {
                    lba: take.u64()?,
                    blocks: take.u64()?,
                },
                4 => Op::Read {
                    lba: take.u64()?,
                    blocks: take.u64()?,
                },
                5 => Op::Grow {
                    blocks: take.u64()?,
                },
                6 => {
                    let number = take.u64()?;
                    let bytes = take.bytes()?;
                    let members = Members::decode(bytes).ok();
                    // There is one way to write them.
                    let members = members.filter(|members| members.encode() == bytes);
                    Op::Change {
                        number,
                        members: members.ok_or(malformed("members that are none"))?,
                    }
                }
                7 => Op::Allocation {
                    lba: take.u64()?,
                    blocks: take.u64()?,
                },
                _ => return Err(malformed("a request of no kind that is known")),
            },
        })
    }

    fn answer(&mut self) -> Result<Answer, BadFrame> {
        let take = &mut self.take;
        Ok(Answer {
            session: SessionId(take.u128()?),
            id: take.u64()?,
            term: take.u64()?,
            result: match take.u8()? {
                1 => Ok(Answered::Done),
                2 => Ok(Answered::Attached { epoch: take.u64()? }),
                3 => Ok(Answered::Data(vec![self.blocks()?])),
                4 => {
                    let count = take.count(RUN_BYTES)?;
                    let run = |_| {
                        Ok(Run {
                            blocks: take.u64()?,
                            written: take.flag()?,
                        })
                    };
                    Ok(Answered::Allocation((0..count).map(run).collect::<Result<
                        _,
                        BadFrame,
                    >>(
                    )?))
                }
                kind => Err(self.failure(kind)?),
            },
        })
    }

    fn failure(&mut self, kind: u8) -> Result<Failure, BadFrame> {
        let take = &mut self.take;
        Ok(match kind {
            16 => {
                let (known, host) = (take.flag()?, HostId(take.u128()?));
                if !known && host != HostId(0) {
                    return Err(malformed("a leader that is known and is not"));
                }
                Failure::NotLeader {
                    leader: known.then_some(host),
                    term: take.u64()?,
                }
            }
            17 => Failure::Busy,
            18 => Failure::Fenced,
            19 => Failure::NoSpace,
            20 => {
                let why = std::str::from_utf8(take.bytes()?);
                let why = why
                    .map_err(|_| malformed("a reason that is no text"))?
                    .to_owned();
                Failure::Invalid { why }
            }
            21 => {
                let count = take.count(LBA_BYTES)?;
                let lbas: Result<Vec<u64>, BadFrame> = (0..count).map(|_| take.u64()).collect();
                Failure::Damaged { lbas: lbas? }
            }
            22 => Failure::GaveUp,
            _ => return Err(malformed("an answer of no kind that is known")),
        })
    }
}
