//! A peer that says what cannot be: nothing of it stops the program.

use crate::rng::Rng;
use crate::world::{MIB, SECONDS, World};
use blocks::{Body, Buffer, Entry, VolumeId};
use replication::{
    Envelope, Frame, Message, Op, Place, ReplicaId, Request, SessionId, Stamp, Step, Time, VoteKind,
};

const VOLUME: VolumeId = VolumeId::new(7);

fn number(rng: &mut Rng) -> u64 {
    match rng.below(12) {
        0 => u64::MAX,
        1 => u64::MAX - 1,
        2 => 1 << 62,
        3 => 0,
        _ => rng.below(9),
    }
}

fn place(rng: &mut Rng) -> Place {
    Place {
        index: number(rng),
        term: number(rng),
    }
}

fn entries(rng: &mut Rng) -> Vec<Entry> {
    let mut at = place(rng);
    let count = rng.below(4);
    let mut entry = || {
        at.index = at.index.wrapping_add(1);
        at.term = if rng.one_in(3) { number(rng) } else { at.term };
        let lba = number(rng);
        let body = match rng.below(5) {
            0 => Body::Attach,
            1 => Body::Zero {
                lba,
                blocks: number(rng),
            },
            2 => Body::Config([1, 2, 3].into()),
            3 => Body::Empty,
            _ => Body::Write {
                lba,
                data: Buffer::zeroed(rng.below(3) as usize),
            },
        };
        Entry {
            index: at.index,
            term: at.term,
            epoch: number(rng),
            body,
        }
    };
    (0..count).map(|_| entry()).collect()
}

fn step(rng: &mut Rng) -> Step {
    let (commit, last) = (number(rng), number(rng));
    match rng.below(8) {
        0 | 1 => {
            let entries = entries(rng);
            let before = entries.first().map(|it| Place {
                index: it.index.wrapping_sub(1),
                term: it.term,
            });
            let prev = before
                .filter(|_| !rng.one_in(4))
                .unwrap_or_else(|| place(rng));
            Step::Append {
                prev,
                commit,
                entries,
            }
        }
        2 => Step::Appended { last, commit },
        3 => Step::Rejected {
            prev: last,
            hint: place(rng),
            commit,
        },
        4 => {
            let kind = [VoteKind::Pre, VoteKind::Vote, VoteKind::Transfer][rng.below(3) as usize];
            Step::Vote {
                kind,
                last: place(rng),
                commit: place(rng),
            }
        }
        5 => Step::Voted {
            pre: rng.one_in(2),
            granted: rng.one_in(2),
            commit: place(rng),
        },
        6 => Step::Heartbeat { commit, read: last },
        _ if rng.one_in(20) => Step::TimeoutNow,
        _ => Step::HeartbeatReply { commit, read: last },
    }
}

fn message(rng: &mut Rng, from: u64, to: u64, term: u64) -> Message {
    if rng.one_in(5) {
        let (lba, blocks) = (number(rng), number(rng));
        let op = match rng.below(4) {
            0 => Op::Attach { claim: 0 },
            1 => Op::Write {
                lba,
                data: Buffer::zeroed(rng.below(3) as usize),
            },
            2 => Op::Zero { lba, blocks },
            _ => Op::Read { lba, blocks },
        };
        return Message::Request(Request {
            session: SessionId(u128::from(number(rng))),
            id: number(rng),
            term,
            stamp: Stamp::from_entry(number(rng) << 40 | number(rng) & 0xff),
            floor: number(rng),
            op,
        });
    }
    let step = step(rng);
    let (from, to) = (ReplicaId(from), ReplicaId(to));
    Message::Consensus {
        from,
        to,
        term,
        step,
    }
}

#[test]
fn nothing_that_a_peer_says_stops_the_program() {
    for seed in 1..=40 {
        let mut world = World::new(seed, 3, 64 * MIB, 4 * MIB);
        world.create(VOLUME, 64, &[0, 1, 2]);
        world.run_until(2 * SECONDS, |world| world.leader(VOLUME).is_some());
        let mut rng = Rng(seed);
        for _ in 0..400 {
            let (from, to) = (rng.below(3), rng.below(3));
            let host = world.nodes[to as usize].host.as_ref().expect("it is up");
            let term = host.group(VOLUME).map_or(1, |group| group.term);
            let term = match rng.below(8) {
                0 => number(&mut rng),
                1 => term + 1,
                _ => term,
            };
            let frame = Frame {
                incarnation: 1,
                disk: 0x5eed + u128::from(from),
                sent: Time(rng.below(1 << 40)),
                echo: None,
                messages: vec![Envelope {
                    volume: VOLUME,
                    message: message(&mut rng, from + 1, to + 1, term),
                }],
            };
            let (id, now) = (world.nodes[from as usize].id, world.clock(to as usize));
            let host = world.nodes[to as usize].host.as_mut().expect("it is up");
            host.handle_frame(id, frame, now);
            world.drain(to as usize);
            let until = world.now + rng.below(3000);
            while world.step(until).is_some() {}
        }
    }
}
