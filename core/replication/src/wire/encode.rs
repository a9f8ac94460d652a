//! Frames into bytes. What is written here is read in `decode`, part by part in the same order.

use super::codec::Put;
use super::{KIND_FRAME, MAGIC, PREFIX_BYTES, PREFIX_COVERED, VERSION};
use crate::message::{
    Answer, Answered, Care, Envelope, Failure, Frame, Message, Op, Place, Request, Step, VoteKind,
};
use blocks::{Base, Body, Buffer, Chunk, Entry};

/// A frame to be sent: the head, and then the blocks of the payload, from where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Prefix and head.
    pub head: Vec<u8>,
    /// The payload.
    pub payload: Vec<Buffer>,
}

/// As it is sent.
pub fn encode_frame(frame: &Frame) -> Encoded {
    let mut put = Put(vec![0; PREFIX_BYTES]);
    let mut payload = Vec::new();
    put.u64(frame.incarnation);
    put.u128(frame.disk);
    put.u64(frame.sent.0);
    put.u8(u8::from(frame.echo.is_some()));
    if let Some(echo) = &frame.echo {
        put.u64(echo.incarnation);
        put.u64(echo.sent.0);
    }
    put.u32(frame.messages.len() as u32);
    for Envelope { volume, message } in &frame.messages {
        put.u128(volume.get());
        put_message(&mut put, &mut payload, message);
    }
    let mut head = put.0;
    let pages = || payload.iter().flat_map(Buffer::pages);
    let payload_crc = pages().fold(0, |crc, page| crc32c::crc32c_append(crc, &page.0));
    let head_crc = crc32c::crc32c(&head[PREFIX_BYTES..]);
    let mut prefix = Put(MAGIC.to_vec());
    prefix.u32(u32::from(VERSION) | u32::from(KIND_FRAME) << 16);
    prefix.u32((head.len() - PREFIX_BYTES) as u32);
    prefix.u32(pages().count() as u32);
    prefix.u32(head_crc);
    prefix.u32(payload_crc);
    prefix.u32(0);
    prefix.u32(crc32c::crc32c(&prefix.0[..PREFIX_COVERED]));
    head[..PREFIX_BYTES].copy_from_slice(&prefix.0);
    Encoded { head, payload }
}

/// `| kind 1 | .. |`
fn put_message(put: &mut Put, payload: &mut Vec<Buffer>, message: &Message) {
    match message {
        Message::Consensus {
            from,
            to,
            term,
            step,
        } => {
            put.u8(1);
            put.u64(from.0);
            put.u64(to.0);
            put.u64(*term);
            put_step(put, payload, step);
        }
        Message::Request(request) => {
            put.u8(2);
            put_request(put, payload, request);
        }
        Message::Answer(answer) => {
            put.u8(3);
            put_answer(put, payload, answer);
        }
        Message::Care { from, to, care } => {
            put.u8(4);
            put.u64(from.0);
            put.u64(to.0);
            put_care(put, payload, care);
        }
        Message::Join {
            from,
            to,
            blocks,
            config,
            members,
        } => {
            put.u8(5);
            put.u64(from.0);
            put.u64(to.0);
            put.u64(*blocks);
            put.u64(*config);
            put.bytes(members);
        }
        Message::Removed { replica, config } => {
            put.u8(6);
            put.u64(replica.0);
            put.u64(*config);
        }
        Message::Gone { replica } => {
            put.u8(7);
            put.u64(replica.0);
        }
    }
}

/// `| care 1 | .. |`
fn put_care(put: &mut Put, payload: &mut Vec<Buffer>, care: &Care) {
    match care {
        Care::Behind { first } => {
            put.u8(1);
            put.u64(*first);
        }
        Care::Changes { since, from } => {
            put.u8(2);
            put.u64(*since);
            put.u64(*from);
        }
        Care::Changed {
            since,
            from,
            base,
            chunks,
            more,
        } => {
            put.u8(3);
            put.u64(*since);
            put.u64(*from);
            put_base(put, base);
            put.u8(u8::from(*more));
            put.u32(chunks.len() as u32);
            for (number, changed) in chunks {
                put.u64(*number);
                put.u64(*changed);
            }
        }
        Care::WantChunk { number } => {
            put.u8(4);
            put.u64(*number);
        }
        Care::Chunk(chunk) => {
            put.u8(5);
            put_chunk(put, payload, chunk);
        }
        Care::WantEntry { place, question } => {
            put.u8(6);
            put_place(put, *place);
            put.u64(*question);
        }
        Care::NoEntry { place, question } => {
            put.u8(13);
            put_place(put, *place);
            put.u64(*question);
        }
        Care::Entry(entry) => {
            put.u8(7);
            put_entry(put, payload, entry);
        }
        Care::WantBlock { lba } => {
            put.u8(8);
            put.u64(*lba);
        }
        Care::Block { lba, data } => {
            put.u8(9);
            put.u64(*lba);
            put.u8(u8::from(data.is_some()));
            if let Some(data) = data {
                put_blocks(put, payload, data);
            }
        }
        Care::Compare {
            index,
            digest,
            from,
            chunks,
        } => {
            put.u8(10);
            put.u64(*index);
            put.u128(digest.0);
            put.u64(*from);
            put.u32(chunks.len() as u32);
            chunks.iter().for_each(|digest| put.u128(digest.0));
        }
        Care::Who => put.u8(12),
        Care::These { config, members } => {
            put.u8(14);
            put.u64(*config);
            put.bytes(members);
        }
        Care::Compared {
            index,
            same,
            differ,
        } => {
            put.u8(11);
            put.u64(*index);
            put.u8(same.map_or(2, u8::from));
            put.u32(differ.len() as u32);
            differ.iter().for_each(|number| put.u64(*number));
        }
    }
}

/// `| index 8 | term 8 | epoch 8 | blocks 8 | config's index 8 | length 4 | bytes |`
fn put_base(put: &mut Put, base: &Base) {
    put.u64(base.index);
    put.u64(base.term);
    put.u64(base.epoch);
    put.u64(base.blocks);
    put.u64(base.config.0);
    put.bytes(&base.config.1);
}

/// `| number 8 | changed 8 | written 2, of 16 extents | digest 16 |`; blocks are in the payload.
fn put_chunk(put: &mut Put, payload: &mut Vec<Buffer>, chunk: &Chunk) {
    put.u64(chunk.number);
    put.u64(chunk.changed);
    chunk.written.iter().for_each(|valid| put.u16(*valid));
    put.u128(chunk.digest.0);
    payload.extend(chunk.data.iter().cloned());
}

fn put_place(put: &mut Put, place: Place) {
    put.u64(place.index);
    put.u64(place.term);
}

/// `| step 1 | .. |`
fn put_step(put: &mut Put, payload: &mut Vec<Buffer>, step: &Step) {
    match step {
        Step::Append {
            prev,
            commit,
            entries,
        } => {
            put.u8(1);
            put_place(put, *prev);
            put.u64(*commit);
            put.u32(entries.len() as u32);
            for entry in entries {
                put_entry(put, payload, entry);
            }
        }
        Step::Appended { last, commit } => {
            put.u8(2);
            put.u64(*last);
            put.u64(*commit);
        }
        Step::Rejected { prev, hint, commit } => {
            put.u8(3);
            put.u64(*prev);
            put_place(put, *hint);
            put.u64(*commit);
        }
        Step::Vote { kind, last, commit } => {
            put.u8(4);
            put.u8(match kind {
                VoteKind::Pre => 0,
                VoteKind::Vote => 1,
                VoteKind::Transfer => 2,
            });
            put_place(put, *last);
            put_place(put, *commit);
        }
        Step::Voted {
            pre,
            granted,
            commit,
        } => {
            put.u8(5);
            put.u8(u8::from(*pre));
            put.u8(u8::from(*granted));
            put_place(put, *commit);
        }
        Step::Heartbeat { commit, read } => {
            put.u8(6);
            put.u64(*commit);
            put.u64(*read);
        }
        Step::HeartbeatReply { commit, read } => {
            put.u8(7);
            put.u64(*commit);
            put.u64(*read);
        }
        Step::TimeoutNow => put.u8(8),
    }
}

/// `| index 8 | term 8 | stamp 8 | body 1 | .. |`; blocks are in the payload.
fn put_entry(put: &mut Put, payload: &mut Vec<Buffer>, entry: &Entry) {
    put.u64(entry.index);
    put.u64(entry.term);
    put.u64(entry.epoch);
    match &entry.body {
        Body::Write { lba, data } => {
            put.u8(1);
            put.u64(*lba);
            put_blocks(put, payload, data);
        }
        Body::Zero { lba, blocks } => {
            put.u8(2);
            put.u64(*lba);
            put.u64(*blocks);
        }
        Body::Attach => put.u8(3),
        Body::Config(bytes) => {
            put.u8(4);
            put.bytes(bytes);
        }
        Body::Empty => put.u8(5),
        Body::Grow { blocks } => {
            put.u8(6);
            put.u64(*blocks);
        }
    }
}

fn put_blocks(put: &mut Put, payload: &mut Vec<Buffer>, data: &Buffer) {
    put.u32(data.blocks() as u32);
    payload.push(data.clone());
}

/// `| session 16 | id 8 | term 8 | stamp 8 | floor 8 | op 1 | .. |`
fn put_request(put: &mut Put, payload: &mut Vec<Buffer>, request: &Request) {
    put.u128(request.session.0);
    put.u64(request.id);
    put.u64(request.term);
    put.u64(request.stamp.to_entry());
    put.u64(request.floor);
    match &request.op {
        Op::Attach { claim } => {
            put.u8(1);
            put.u64(*claim);
        }
        Op::Write { lba, data } => {
            put.u8(2);
            put.u64(*lba);
            put_blocks(put, payload, data);
        }
        Op::Zero { lba, blocks } => {
            put.u8(3);
            put.u64(*lba);
            put.u64(*blocks);
        }
        Op::Read { lba, blocks } => {
            put.u8(4);
            put.u64(*lba);
            put.u64(*blocks);
        }
        Op::Allocation { lba, blocks } => {
            put.u8(7);
            put.u64(*lba);
            put.u64(*blocks);
        }
        Op::Grow { blocks } => {
            put.u8(5);
            put.u64(*blocks);
        }
        Op::Change { number, members } => {
            put.u8(6);
            put.u64(*number);
            put.bytes(&members.encode());
        }
    }
}

/// `| session 16 | id 8 | term 8 | result 1 | .. |`
fn put_answer(put: &mut Put, payload: &mut Vec<Buffer>, answer: &Answer) {
    put.u128(answer.session.0);
    put.u64(answer.id);
    put.u64(answer.term);
    match &answer.result {
        Ok(Answered::Done) => put.u8(1),
        Ok(Answered::Attached { epoch }) => {
            put.u8(2);
            put.u64(*epoch);
        }
        Ok(Answered::Data(buffers)) => {
            put.u8(3);
            put.u32(buffers.iter().map(Buffer::blocks).sum::<usize>() as u32);
            payload.extend(buffers.iter().cloned());
        }
        Ok(Answered::Allocation(runs)) => {
            put.u8(4);
            put.u32(runs.len() as u32);
            for run in runs {
                put.u64(run.blocks);
                put.u8(u8::from(run.written));
            }
        }
        Err(failure) => put_failure(put, failure),
    }
}

fn put_failure(put: &mut Put, failure: &Failure) {
    match failure {
        Failure::NotLeader { leader, term } => {
            put.u8(16);
            put.u8(u8::from(leader.is_some()));
            put.u128(leader.map_or(0, |host| host.0));
            put.u64(*term);
        }
        Failure::Busy => put.u8(17),
        Failure::Fenced => put.u8(18),
        Failure::NoSpace => put.u8(19),
        Failure::Invalid { why } => {
            put.u8(20);
            put.bytes(why.as_bytes());
        }
        Failure::Damaged { lbas } => {
            put.u8(21);
            put.u32(lbas.len() as u32);
            lbas.iter().for_each(|lba| put.u64(*lba));
        }
        Failure::GaveUp => put.u8(22),
    }
}
