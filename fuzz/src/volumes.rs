//! What hosts say to each other about volumes.

use blocks::{BLOCK_BYTES, Buffer, Page};
use replication::wire::{
    HELLO_BYTES, Hello, PREFIX_BYTES, decode_frame, decode_prefix, encode_frame,
};

/// `| blocks 1 | a frame without its checksums |`: another host's bytes. The checksums are put right, so
/// that what is behind them is reached.
pub fn volume_frames(data: &[u8]) {
    if let Some((hello, _)) = data.split_first_chunk::<HELLO_BYTES>() {
        drop(Hello::decode(hello));
    }
    if let Some((prefix, _)) = data.split_first_chunk::<PREFIX_BYTES>() {
        drop(decode_prefix(prefix));
    }
    let Some((blocks, head)) = data.split_first() else {
        return;
    };
    let blocks = usize::from(*blocks % 8);
    let pages: Vec<Page> = (0..blocks)
        .map(|fill| Page([fill as u8; BLOCK_BYTES]))
        .collect();
    let payload = Buffer::from_pages(pages);
    let prefix = decode_prefix(&prefix(head, &payload)).expect("it is made as it should be");
    if let Ok(frame) = decode_frame(&prefix, head, &payload) {
        let encoded = encode_frame(&frame);
        assert_eq!(
            encoded.head[PREFIX_BYTES..],
            *head,
            "there is one way to write a frame"
        );
    }
}

fn prefix(head: &[u8], payload: &Buffer) -> [u8; PREFIX_BYTES] {
    let crc = payload
        .pages()
        .iter()
        .fold(0, |crc, page| crc32c::crc32c_append(crc, &page.0));
    let mut bytes = [0; PREFIX_BYTES];
    bytes[..4].copy_from_slice(b"vpRF");
    bytes[4..8].copy_from_slice(&[1, 0, 2, 0]);
    bytes[8..12].copy_from_slice(&(head.len() as u32).to_le_bytes());
    bytes[12..16].copy_from_slice(&(payload.blocks() as u32).to_le_bytes());
    bytes[16..20].copy_from_slice(&crc32c::crc32c(head).to_le_bytes());
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    let own = crc32c::crc32c(&bytes[..28]);
    bytes[28..].copy_from_slice(&own.to_le_bytes());
    bytes
}

/// Heads of frames with something of everything.
pub fn frame_samples() -> Vec<Vec<u8>> {
    use blocks::{Base, Body, Chunk, Digest, Entry, VolumeId};
    use replication::{
        Care, Echo, Envelope, Frame, Message, Op, Place, ReplicaId, Request, SessionId, Stamp,
        Step, Time,
    };
    let entry = |index, body| Entry {
        index,
        term: 3,
        epoch: 1 << 40,
        body,
    };
    let data = Buffer::from_pages(vec![Page([0; BLOCK_BYTES])]);
    let entries = vec![
        entry(5, Body::Attach),
        entry(6, Body::Zero { lba: 1, blocks: 2 }),
        entry(7, Body::Config([1, 1].into())),
        entry(8, Body::Write { lba: 9, data }),
        entry(9, Body::Empty),
    ];
    let prev = Place { index: 4, term: 3 };
    let append = Step::Append {
        prev,
        commit: 4,
        entries,
    };
    let heartbeat = Step::Heartbeat { commit: 9, read: 1 };
    let of = |step| Message::Consensus {
        from: ReplicaId(1),
        to: ReplicaId(2),
        term: 3,
        step,
    };
    let request = Message::Request(Request {
        session: SessionId(8),
        id: 1,
        term: 3,
        stamp: Stamp::from_entry(1 << 40 | 5),
        floor: 5,
        op: Op::Read { lba: 1, blocks: 1 },
    });
    let frame = |message| Frame {
        incarnation: 1,
        disk: 9,
        sent: Time(2),
        echo: Some(Echo {
            incarnation: 3,
            sent: Time(4),
        }),
        messages: vec![Envelope {
            volume: VolumeId::new(7),
            message,
        }],
    };
    let head = |message| {
        let encoded = encode_frame(&frame(message));
        let blocks = encoded.payload.iter().map(Buffer::blocks).sum::<usize>() as u8;
        [&[blocks], &encoded.head[PREFIX_BYTES..]].concat()
    };
    let care = |care| Message::Care {
        from: ReplicaId(1),
        to: ReplicaId(2),
        care,
    };
    let mut written = [0; 16];
    written[3] = 1;
    let chunk = Chunk {
        number: 2,
        changed: 9,
        written,
        digest: Digest(7),
        data: vec![Buffer::from_pages(vec![Page([0; BLOCK_BYTES])])],
    };
    let changed = Care::Changed {
        since: 3,
        from: 0,
        base: Base {
            index: 9,
            term: 3,
            epoch: 1 << 40,
            blocks: 900,
            config: (1, [2, 0].into()),
        },
        chunks: vec![(0, 5), (2, 9)],
        more: true,
    };
    let compare = Care::Compare {
        index: 9,
        digest: Digest(8),
        from: 0,
        chunks: vec![Digest(1), Digest(2)],
    };
    let removed = Message::Removed {
        replica: ReplicaId(2),
        config: 9,
    };
    let cared = [Care::Chunk(chunk), changed, compare].map(care);
    [of(append), of(heartbeat), request, removed]
        .into_iter()
        .chain(cared)
        .map(head)
        .collect()
}
