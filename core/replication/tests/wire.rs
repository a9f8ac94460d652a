//! Frames survive their way as they are, or not at all.

use blocks::{BLOCK_BYTES, Base, Body, Buffer, Chunk, Digest, Entry, Page, Run, VolumeId};
use proptest::collection::vec;
use proptest::prelude::*;
use replication::wire::{
    BadFrame, Disagreed, HELLO_BYTES, Hello, PREFIX_BYTES, decode_frame, decode_prefix,
    encode_frame,
};
use replication::{
    Answer, Answered, Care, Echo, Envelope, Failure, Frame, HostId, Member, Members, Message, Op,
    Place, ReplicaId, Request, SessionId, Stamp, Step, Time, VoteKind,
};

fn buffer() -> impl Strategy<Value = Buffer> {
    vec(any::<u8>(), 0..4).prop_map(|fills| {
        Buffer::from_pages(
            fills
                .into_iter()
                .map(|fill| Page([fill; BLOCK_BYTES]))
                .collect(),
        )
    })
}

fn place() -> impl Strategy<Value = Place> {
    any::<(u64, u64)>().prop_map(|(index, term)| Place { index, term })
}

fn entry() -> impl Strategy<Value = Entry> {
    let body = prop_oneof![
        (any::<u64>(), buffer()).prop_map(|(lba, data)| Body::Write { lba, data }),
        any::<(u64, u64)>().prop_map(|(lba, blocks)| Body::Zero { lba, blocks }),
        Just(Body::Attach),
        vec(any::<u8>(), 0..80).prop_map(|bytes| Body::Config(bytes.into())),
        Just(Body::Empty),
        any::<u64>().prop_map(|blocks| Body::Grow { blocks }),
    ];
    (any::<(u64, u64, u64)>(), body).prop_map(|((index, term, epoch), body)| Entry {
        index,
        term,
        epoch,
        body,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        Just(VoteKind::Pre),
        Just(VoteKind::Vote),
        Just(VoteKind::Transfer)
    ];
    prop_oneof![
        (place(), any::<u64>(), vec(entry(), 0..5)).prop_map(|(prev, commit, entries)| {
            Step::Append {
                prev,
                commit,
                entries,
            }
        }),
        any::<(u64, u64)>().prop_map(|(last, commit)| Step::Appended { last, commit }),
        (any::<(u64, u64)>(), place()).prop_map(|((prev, commit), hint)| Step::Rejected {
            prev,
            hint,
            commit
        }),
        (kind, place(), place()).prop_map(|(kind, last, commit)| Step::Vote { kind, last, commit }),
        (any::<(bool, bool)>(), place()).prop_map(|((pre, granted), commit)| Step::Voted {
            pre,
            granted,
            commit,
        }),
        any::<(u64, u64)>().prop_map(|(commit, read)| Step::Heartbeat { commit, read }),
        any::<(u64, u64)>().prop_map(|(commit, read)| Step::HeartbeatReply { commit, read }),
        Just(Step::TimeoutNow),
    ]
}

fn base() -> impl Strategy<Value = Base> {
    let config = (any::<u64>(), vec(any::<u8>(), 0..80));
    (any::<(u64, u64, u64, u64)>(), config).prop_map(
        |((index, term, epoch, blocks), (config, bytes))| Base {
            index,
            term,
            epoch,
            blocks,
            config: (config, bytes.into()),
        },
    )
}

fn chunk() -> impl Strategy<Value = Chunk> {
    let all = (any::<(u64, u64, u128)>(), any::<[bool; 16]>());
    all.prop_map(|((number, changed, digest), some)| {
        let written = some.map(u16::from);
        let blocks = written.iter().filter(|valid| **valid > 0).count();
        let data = (blocks > 0).then(|| Buffer::zeroed(blocks));
        Chunk {
            number,
            changed,
            written,
            digest: Digest(digest),
            data: data.into_iter().collect(),
        }
    })
}

fn care() -> impl Strategy<Value = Care> {
    let numbers = vec(any::<u64>(), 0..5);
    let digests = vec(any::<u128>().prop_map(Digest), 0..5);
    prop_oneof![
        any::<u64>().prop_map(|first| Care::Behind { first }),
        any::<(u64, u64)>().prop_map(|(since, from)| Care::Changes { since, from }),
        (
            any::<(u64, u64, bool)>(),
            base(),
            vec(any::<(u64, u64)>(), 0..5)
        )
            .prop_map(|((since, from, more), base, chunks)| Care::Changed {
                since,
                from,
                base,
                chunks,
                more,
            }),
        any::<u64>().prop_map(|number| Care::WantChunk { number }),
        Just(Care::Who),
        (any::<u64>(), vec(any::<u8>(), 0..600)).prop_map(|(config, members)| Care::These {
            config,
            members: members.into()
        }),
        chunk().prop_map(Care::Chunk),
        (place(), any::<u64>()).prop_map(|(place, question)| Care::WantEntry { place, question }),
        (place(), any::<u64>()).prop_map(|(place, question)| Care::NoEntry { place, question }),
        entry().prop_map(Care::Entry),
        any::<u64>().prop_map(|lba| Care::WantBlock { lba }),
        (any::<u64>(), proptest::option::of(buffer()))
            .prop_map(|(lba, data)| Care::Block { lba, data }),
        (any::<(u64, u128, u64)>(), digests).prop_map(|((index, digest, from), chunks)| {
            Care::Compare {
                index,
                digest: Digest(digest),
                from,
                chunks,
            }
        }),
        (any::<u64>(), proptest::option::of(any::<bool>()), numbers).prop_map(
            |(index, same, differ)| Care::Compared {
                index,
                same,
                differ,
            }
        ),
    ]
}

fn members() -> impl Strategy<Value = Members> {
    (1..6_u64, any::<u64>()).prop_map(|(count, host)| {
        let member = |number| Member {
            replica: ReplicaId(number),
            host: HostId(u128::from(host) + u128::from(number)),
        };
        Members::new((1..=count).map(member).collect()).expect("they differ")
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        any::<u64>().prop_map(|claim| Op::Attach { claim }),
        (any::<u64>(), buffer()).prop_map(|(lba, data)| Op::Write { lba, data }),
        any::<(u64, u64)>().prop_map(|(lba, blocks)| Op::Zero { lba, blocks }),
        any::<(u64, u64)>().prop_map(|(lba, blocks)| Op::Read { lba, blocks }),
        any::<(u64, u64)>().prop_map(|(lba, blocks)| Op::Allocation { lba, blocks }),
        any::<u64>().prop_map(|blocks| Op::Grow { blocks }),
        (any::<u64>(), members()).prop_map(|(number, members)| Op::Change { number, members }),
    ]
}

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        (
            proptest::option::of(any::<u128>().prop_map(HostId)),
            any::<u64>()
        )
            .prop_map(|(leader, term)| Failure::NotLeader { leader, term }),
        Just(Failure::Busy),
        Just(Failure::Fenced),
        Just(Failure::NoSpace),
        any::<String>().prop_map(|why| Failure::Invalid { why }),
        vec(any::<u64>(), 0..5).prop_map(|lbas| Failure::Damaged { lbas }),
        Just(Failure::GaveUp),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let answered = prop_oneof![
        Just(Answered::Done),
        any::<u64>().prop_map(|epoch| Answered::Attached { epoch }),
        buffer().prop_map(|data| Answered::Data(vec![data])),
        vec(any::<(u64, bool)>(), 0..9).prop_map(|runs| {
            let run = |(blocks, written)| Run { blocks, written };
            Answered::Allocation(runs.into_iter().map(run).collect())
        }),
    ];
    let result = prop_oneof![answered.prop_map(Ok), failure().prop_map(Err)];
    prop_oneof![
        (any::<(u64, u64, u64)>(), step()).prop_map(|((from, to, term), step)| {
            Message::Consensus {
                from: ReplicaId(from),
                to: ReplicaId(to),
                term,
                step,
            }
        }),
        (any::<(u128, u64, u64, u64, u64)>(), op()).prop_map(
            |((session, id, term, stamp, floor), op)| {
                Message::Request(Request {
                    session: SessionId(session),
                    id,
                    term,
                    stamp: Stamp::from_entry(stamp),
                    floor,
                    op,
                })
            }
        ),
        (any::<(u64, u64)>(), care()).prop_map(|((from, to), care)| Message::Care {
            from: ReplicaId(from),
            to: ReplicaId(to),
            care,
        }),
        (any::<(u64, u64, u64, u64)>(), vec(any::<u8>(), 0..80)).prop_map(
            |((from, to, blocks, config), members)| Message::Join {
                from: ReplicaId(from),
                to: ReplicaId(to),
                blocks,
                config,
                members: members.into(),
            }
        ),
        any::<u64>().prop_map(|replica| Message::Gone {
            replica: ReplicaId(replica)
        }),
        any::<(u64, u64)>().prop_map(|(replica, config)| Message::Removed {
            replica: ReplicaId(replica),
            config,
        }),
        (any::<(u128, u64, u64)>(), result).prop_map(|((session, id, term), result)| {
            Message::Answer(Answer {
                session: SessionId(session),
                id,
                term,
                result,
            })
        }),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let echo = proptest::option::of(any::<(u64, u64)>().prop_map(|(incarnation, sent)| Echo {
        incarnation,
        sent: Time(sent),
    }));
    let envelope = (any::<u128>(), message()).prop_map(|(volume, message)| Envelope {
        volume: VolumeId::new(volume),
        message,
    });
    (any::<(u64, u128, u64)>(), echo, vec(envelope, 0..6)).prop_map(
        |((incarnation, disk, sent), echo, messages)| Frame {
            incarnation,
            disk,
            sent: Time(sent),
            echo,
            messages,
        },
    )
}

fn sent(frame: &Frame) -> (Vec<u8>, Buffer) {
    let encoded = encode_frame(frame);
    let pages = encoded.payload.iter().flat_map(Buffer::pages).cloned();
    (encoded.head, Buffer::from_pages(pages.collect()))
}

fn received(bytes: &[u8], payload: &Buffer) -> Result<Frame, BadFrame> {
    let (prefix, head) = bytes
        .split_first_chunk::<PREFIX_BYTES>()
        .expect("it has a prefix");
    decode_frame(&decode_prefix(prefix)?, head, payload)
}

proptest! {
    #[test]
    fn a_frame_comes_as_it_went(frame in frame()) {
        let (bytes, payload) = sent(&frame);
        prop_assert_eq!(received(&bytes, &payload), Ok(frame));
    }

    #[test]
    fn a_changed_bit_is_seen(frame in frame(), at in any::<proptest::sample::Index>(), bit in 0u8..8) {
        let (mut bytes, payload) = sent(&frame);
        let at = at.index(bytes.len() + payload.blocks() * BLOCK_BYTES);
        let mut pages = payload.pages().to_vec();
        match at.checked_sub(bytes.len()) {
            None => bytes[at] ^= 1 << bit,
            Some(at) => pages[at / BLOCK_BYTES].0[at % BLOCK_BYTES] ^= 1 << bit,
        }
        prop_assert!(received(&bytes, &Buffer::from_pages(pages)).is_err());
    }

    #[test]
    fn a_hello_comes_as_it_went(versions in any::<(u16, u16)>(), ids in any::<(u128, u128, u128)>(), bits in any::<(u64, u64)>()) {
        let hello = Hello {
            versions,
            cluster: ids.0,
            from: HostId(ids.1),
            to: HostId(ids.2),
            features: bits.0,
            needed: bits.1,
        };
        prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }
}

#[test]
fn hosts_agree_or_say_why_not() {
    let (a, b) = (HostId(1), HostId(2));
    let ours = Hello::ours(7, a, b);
    let theirs = Hello::ours(7, b, a);
    let check = |theirs: Hello, expected| assert_eq!(ours.agree(&theirs), expected);
    check(theirs, Ok(1));
    let newer = Hello {
        versions: (1, 9),
        ..theirs
    };
    check(newer, Ok(1));
    let other = Hello {
        cluster: 8,
        ..theirs
    };
    check(other, Err(Disagreed::Cluster { ours: 7, theirs: 8 }));
    let stranger = Hello {
        from: HostId(3),
        ..theirs
    };
    let (found, expected) = (HostId(3), b);
    check(stranger, Err(Disagreed::Host { found, expected }));
    let later = Hello {
        versions: (2, 3),
        ..theirs
    };
    check(
        later,
        Err(Disagreed::Version {
            oldest: 2,
            newest: 3,
        }),
    );
    let demanding = Hello {
        needed: 4,
        ..theirs
    };
    check(demanding, Err(Disagreed::Features { missing: 4 }));
}

#[test]
fn a_hello_is_the_same_in_all_releases() {
    let bytes = Hello::ours(0x0102, HostId(3), HostId(4)).encode();
    let mut expected = [0; HELLO_BYTES];
    expected[..10].copy_from_slice(&[b'v', b'p', b'R', b'H', 1, 0, 1, 0, 2, 1]);
    (expected[24], expected[40]) = (3, 4);
    let crc = crc32c::crc32c(&expected[..76]);
    expected[76..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(bytes, expected);
}
