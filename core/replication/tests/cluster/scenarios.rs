//! What happens by name.

use crate::clients::page;
use crate::world::{SECONDS, World};
use blocks::{Buffer, Run, VolumeId};
use replication::{Answered, Failure, Op, Outcome, RETRY_MICROS, RequestId, SessionId};

const VOLUME: VolumeId = VolumeId::new(7);
const MIB: u64 = 1 << 20;

fn world() -> World {
    let mut world = World::new(1, 3, 64 * MIB, 16 * MIB);
    world.create(VOLUME, 64, &[0, 1, 2]);
    assert!(
        world.run_until(5 * SECONDS, |world| world.is_level(VOLUME, &[0, 1, 2])),
        "somebody leads"
    );
    world
}

pub(crate) fn write(lba: u64, value: u64) -> Op {
    Op::Write {
        lba,
        data: Buffer::from_pages(vec![page(value)]),
    }
}

pub(crate) fn session(world: &mut World, node: usize, number: u128) -> SessionId {
    let hosts = world.nodes.iter().map(|node| node.id).collect();
    let session = SessionId(number);
    let host = world.nodes[node].host.as_mut().expect("it is up");
    host.open_session(session, VOLUME, hosts);
    session
}

pub(crate) fn ask(world: &mut World, node: usize, session: SessionId, op: Op) -> RequestId {
    let now = world.clock(node);
    let host = world.nodes[node].host.as_mut().expect("it is up");
    let request = host.ask(session, op, now).expect("it is open");
    world.drain(node);
    request
}

pub(crate) fn reply(world: &mut World, request: RequestId) -> Option<Outcome> {
    let of = |world: &World| {
        world
            .replies
            .iter()
            .position(|(_, reply)| reply.request == request)
    };
    world.run_until(5 * SECONDS, |world| of(world).is_some());
    let at = of(world)?;
    Some(world.replies.remove(at).1.outcome)
}

#[track_caller]
pub(crate) fn done(world: &mut World, node: usize, session: SessionId, op: Op) -> Answered {
    let request = ask(world, node, session, op);
    reply(world, request)
        .expect("it is answered")
        .expect("it is done")
}

#[track_caller]
pub(crate) fn value_at(world: &mut World, node: usize, session: SessionId, lba: u64) -> Buffer {
    match done(world, node, session, Op::Read { lba, blocks: 1 }) {
        Answered::Data(buffers) => buffers[0].clone(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn isolate(world: &mut World, node: usize) {
    for other in (0..3).filter(|other| *other != node) {
        world.block(node, other);
        world.block(other, node);
    }
}

#[test]
fn an_old_endpoint_does_not_overwrite_what_came_after_it() {
    let mut world = world();
    let a = session(&mut world, 0, 1);
    assert_eq!(
        done(&mut world, 0, a, Op::Attach { claim: 0 }),
        Answered::Attached { epoch: 1 }
    );
    assert!(
        world.run_until(5 * SECONDS, |world| world.leader(VOLUME) == Some(0)),
        "the leader follows"
    );
    // The first endpoint's write is stuck in its queue.
    isolate(&mut world, 0);
    let stuck = ask(&mut world, 0, a, write(5, 101));
    // The client goes elsewhere, sends it again, and writes something newer.
    let b = session(&mut world, 1, 2);
    assert_eq!(
        done(&mut world, 1, b, Op::Attach { claim: 0 }),
        Answered::Attached { epoch: 2 }
    );
    assert_eq!(done(&mut world, 1, b, write(5, 101)), Answered::Done);
    assert_eq!(done(&mut world, 1, b, write(5, 202)), Answered::Done);
    // Now the old endpoint's reaches a leader.
    world.blocked.clear();
    assert_eq!(reply(&mut world, stuck), Some(Err(Failure::Fenced)));
    assert_eq!(
        value_at(&mut world, 1, b, 5),
        Buffer::from_pages(vec![page(202)])
    );
    assert!(world.run_until(5 * SECONDS, |world| world.is_level(VOLUME, &[0, 1, 2])));
    let digests: Vec<_> = world
        .nodes
        .iter()
        .map(|node| {
            node.host
                .as_ref()
                .expect("it is up")
                .store()
                .volume(VOLUME)
                .expect("it is there")
                .digest
        })
        .collect();
    assert!(
        digests.windows(2).all(|two| two[0] == two[1]),
        "{digests:?}"
    );
    let again = ask(&mut world, 0, a, write(5, 303));
    assert_eq!(reply(&mut world, again), Some(Err(Failure::Fenced)));
}

/// A host that was cut off from management, or whose endpoint was started anew, asks again for what was given
/// to another since.
#[test]
fn an_earlier_claim_that_comes_later_takes_nothing_back() {
    let mut world = world();
    let by = |claim| Op::Attach { claim };
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, by(1));
    let b = session(&mut world, 1, 2);
    done(&mut world, 1, b, by(2));
    done(&mut world, 1, b, write(5, 1));
    let again = session(&mut world, 0, 3);
    let asked = ask(&mut world, 0, again, by(1));
    assert_eq!(reply(&mut world, asked), Some(Err(Failure::Fenced)));
    done(&mut world, 1, b, write(5, 2));
    // Its own endpoint that is started anew has it, and what the one before left under way is over.
    let anew = session(&mut world, 1, 4);
    done(&mut world, 1, anew, by(2));
    done(&mut world, 1, anew, write(5, 3));
    let late = ask(&mut world, 1, b, write(5, 4));
    assert_eq!(reply(&mut world, late), Some(Err(Failure::Fenced)));
    assert_eq!(
        value_at(&mut world, 1, anew, 5),
        Buffer::from_pages(vec![page(3)])
    );
    let large = session(&mut world, 2, 5);
    let asked = ask(&mut world, 2, large, by(1 << 16));
    let refused = reply(&mut world, asked);
    assert!(
        matches!(refused, Some(Err(Failure::Invalid { .. }))),
        "{refused:?}"
    );
}

#[test]
fn the_leader_follows_the_attachment() {
    let mut world = world();
    for (number, node) in [(1, 2), (2, 0), (3, 1)] {
        let session = session(&mut world, node, number);
        done(&mut world, node, session, Op::Attach { claim: 0 });
        assert!(
            world.run_until(SECONDS, |world| world.leader(VOLUME) == Some(node)),
            "{node} leads"
        );
        assert_eq!(
            done(&mut world, node, session, write(1, number as u64)),
            Answered::Done
        );
    }
}

#[test]
fn a_leader_without_a_majority_stops_reading() {
    let mut world = world();
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    assert!(world.run_until(5 * SECONDS, |world| world.leader(VOLUME) == Some(0)));
    done(&mut world, 0, a, write(3, 33));
    isolate(&mut world, 0);
    world.run_until(SECONDS, |_| false);
    let read = ask(&mut world, 0, a, Op::Read { lba: 3, blocks: 1 });
    world.run_until(2 * SECONDS, |_| false);
    assert!(
        !world.replies.iter().any(|(_, reply)| reply.request == read),
        "nobody was asked"
    );
    assert!(
        world.leader(VOLUME).is_some_and(|leader| leader != 0),
        "others lead"
    );
    world.blocked.clear();
    assert!(matches!(
        reply(&mut world, read),
        Some(Ok(Answered::Data(_)))
    ));
}

#[test]
fn all_hosts_lose_power() {
    let mut world = world();
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    for value in 1..40 {
        assert_eq!(
            done(&mut world, 0, a, write(value % 8, value)),
            Answered::Done
        );
    }
    (0..3).for_each(|node| world.kill(node, true));
    (0..3).for_each(|node| world.start(node));
    let b = session(&mut world, 1, 2);
    for value in 32..40 {
        assert_eq!(
            value_at(&mut world, 1, b, value % 8),
            Buffer::from_pages(vec![page(value)])
        );
    }
}

#[test]
fn what_cannot_be_is_said() {
    let mut world = world();
    let a = session(&mut world, 0, 1);
    let early = ask(&mut world, 0, a, write(0, 1));
    assert!(matches!(
        reply(&mut world, early),
        Some(Err(Failure::Invalid { .. }))
    ));
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    for op in [
        write(64, 1),
        Op::Zero { lba: 0, blocks: 65 },
        Op::Read { lba: 60, blocks: 5 },
        Op::Zero { lba: 1, blocks: 0 },
    ] {
        let request = ask(&mut world, 0, a, op.clone());
        let outcome = reply(&mut world, request);
        assert!(
            matches!(outcome, Some(Err(Failure::Invalid { .. }))),
            "{op:?}: {outcome:?}"
        );
    }
    assert_eq!(done(&mut world, 0, a, write(63, 1)), Answered::Done);
    assert_eq!(
        done(&mut world, 0, a, Op::Zero { lba: 0, blocks: 64 }),
        Answered::Done
    );
    assert_eq!(value_at(&mut world, 0, a, 63), Buffer::zeroed(1));
}

#[test]
fn what_has_something_is_told_as_it_is_read() {
    let mut world = world();
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    done(&mut world, 0, a, write(3, 301));
    done(&mut world, 0, a, write(5, 302));
    done(&mut world, 0, a, Op::Zero { lba: 5, blocks: 2 });
    let asked = Op::Allocation { lba: 2, blocks: 62 };
    let run = |blocks, written| Run { blocks, written };
    let runs = vec![run(1, false), run(1, true), run(60, false)];
    let told = Answered::Allocation(runs);
    assert_eq!(done(&mut world, 0, a, asked.clone()), told);
    // Who was attached elsewhere since knows nothing any more.
    let b = session(&mut world, 1, 2);
    done(&mut world, 1, b, Op::Attach { claim: 0 });
    let stale = ask(&mut world, 0, a, asked.clone());
    assert_eq!(reply(&mut world, stale), Some(Err(Failure::Fenced)));
    assert_eq!(done(&mut world, 1, b, asked), told);
}

/// Hosts that have no replica say so: an endpoint that knows old ones alone finds the leader before it would lose patience
/// with the first of them.
#[test]
fn an_endpoint_finds_the_leader_behind_those_that_have_nothing() {
    let mut world = World::new(7, 6, 64 * MIB, MIB);
    world.create(VOLUME, 4096, &[0, 1, 2]);
    assert!(world.run_until(5 * SECONDS, |world| world.leader(VOLUME).is_some()));
    // Itself first, then others that have none.
    let hosts = [5, 4, 3, 2, 1, 0].map(|node: usize| world.nodes[node].id);
    let session = SessionId(1);
    let host = world.nodes[5].host.as_mut().expect("it is up");
    host.open_session(session, VOLUME, hosts.to_vec());
    let since = world.now;
    let attach = Op::Attach { claim: 0 };
    assert!(matches!(
        done(&mut world, 5, session, attach),
        Answered::Attached { .. }
    ));
    assert!(world.now - since < RETRY_MICROS, "{} us", world.now - since);
}
