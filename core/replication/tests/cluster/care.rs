//! What replicas do for each other: chunks for who was away for long, entries and blocks that are damaged,
//! replicas that come and go.

use crate::clients::page;
use crate::rng::Rng;
use crate::scenarios::{ask, done, isolate, reply, session, value_at, write};
use crate::world::{MIB, SECONDS, World};
use blocks::{BLOCK_BYTES, Buffer, VolumeId};
use replication::{
    Answered, Envelope, Failure, Frame, GroupInfo, HostId, Member, Members, Message, Op, ReplicaId,
    Request, Role, SessionId, Stamp,
};

pub(crate) const VOLUME: VolumeId = VolumeId::new(7);

pub(crate) fn world(hosts: usize, wal: u64) -> World {
    let mut world = World::new(1, hosts, 64 * MIB, wal);
    world.create(VOLUME, 4096, &[0, 1, 2]);
    level(&mut world, &[0, 1, 2]);
    world
}

pub(crate) fn level(world: &mut World, nodes: &[usize]) {
    let level = world.run_until(30 * SECONDS, |world| world.is_level(VOLUME, nodes));
    assert!(level, "all have all: {}", table(world));
    world.same_digests(VOLUME);
}

pub(crate) fn table(world: &World) -> String {
    let of = |host: &replication::Host| host.group(VOLUME).map(|group| group.to_string());
    let lines = world.nodes.iter().map(|node| {
        let group = node.host.as_ref().and_then(of).unwrap_or_default();
        format!("{}: {group}", node.id)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Waits until nothing changes any more, and these are the members.
pub(crate) fn changed(world: &mut World, target: &Members) {
    let over = world.run_until(20 * SECONDS, |world| {
        let leader = world.leader(VOLUME);
        let host = leader.and_then(|node| world.nodes[node].host.as_ref());
        let group = host.and_then(|host| host.group(VOLUME));
        group.is_some_and(|group| {
            !group.members.is_changing() && group.members.wanted() == target.wanted()
        })
    });
    assert!(over, "{}", table(world));
}

pub(crate) fn members(list: &[(u64, usize)], world: &World) -> Members {
    let member = |(replica, node): &(u64, usize)| Member {
        replica: ReplicaId(*replica),
        host: world.nodes[*node].id,
    };
    Members::new(list.iter().map(member).collect()).expect("they differ")
}

pub(crate) fn has(world: &World, node: usize) -> bool {
    let host = world.nodes[node].host.as_ref();
    host.is_some_and(|host| host.store().volume(VOLUME).is_some())
}

/// All that vote, as all that have a replica see it.
pub(crate) fn voters(world: &World) -> Vec<Vec<u64>> {
    let groups = world.nodes.iter().filter_map(|node| {
        let group = node.host.as_ref()?.group(VOLUME)?;
        let voters = group.members.iter().map(|member| member.replica);
        let voters = voters.filter(|replica| group.members.votes(*replica));
        Some(voters.map(|replica| replica.0).collect())
    });
    groups.collect()
}

/// Writes so much that a log of one MiB goes round several times.
fn write_much(world: &mut World, node: usize, session: SessionId, salt: u64) {
    for number in 0..120 {
        let lba = number * 37 % 1024;
        done(world, node, session, write(lba, salt + number));
    }
}

#[test]
fn who_was_away_for_long_takes_what_changed() {
    let mut world = world(3, MIB);
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    write_much(&mut world, 0, a, 1000);
    level(&mut world, &[0, 1, 2]);
    let away = (1..3)
        .find(|node| world.leader(VOLUME) != Some(*node))
        .expect("one leads");
    world.kill(away, true);
    // It lacks a lot, in some chunks only.
    for number in 0..150 {
        done(&mut world, 0, a, write(512 + number % 8, 5000 + number));
    }
    world.start(away);
    level(&mut world, &[0, 1, 2]);
    let counters = world.nodes[away]
        .host
        .as_ref()
        .expect("it is up")
        .store()
        .counters();
    assert_eq!(counters.chunks, 1, "one chunk changed, and one came");
    // It is a replica like the others: the leader may go.
    let leader = world.leader(VOLUME).expect("somebody leads");
    world.kill(leader, false);
    let b = session(&mut world, away, 2);
    done(&mut world, away, b, Op::Attach { claim: 0 });
    assert_eq!(
        value_at(&mut world, away, b, 519),
        Buffer::from_pages(vec![page(5000 + 143)])
    );
}

#[test]
fn a_replica_is_replaced_while_writes_go_on() {
    let mut world = world(4, MIB);
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    write_much(&mut world, 0, a, 1000);
    let gone = (1..3)
        .find(|node| world.leader(VOLUME) != Some(*node))
        .expect("one leads");
    world.kill(gone, true);
    let target: Vec<(u64, usize)> = (0..3)
        .map(|node| {
            if node == gone {
                (4, 3)
            } else {
                (node as u64 + 1, node)
            }
        })
        .collect();
    let target = members(&target, &world);
    let change = Op::Change {
        number: 1,
        members: target.clone(),
    };
    assert_eq!(done(&mut world, 0, a, change.clone()), Answered::Done);
    for number in 0..40 {
        done(&mut world, 0, a, write(number, 9000 + number));
    }
    let there: Vec<usize> = (0..4).filter(|node| *node != gone).collect();
    level(&mut world, &there);
    changed(&mut world, &target);
    level(&mut world, &there);
    assert_eq!(
        done(&mut world, 0, a, change),
        Answered::Done,
        "the same again is done"
    );
    // The one that was replaced comes back, is told, and gives its space back.
    world.start(gone);
    let deleted = world.run_until(10 * SECONDS, |world| !has(world, gone));
    assert!(deleted, "{}", table(&world));
    let voters = voters(&world);
    assert!(
        voters
            .iter()
            .all(|all| *all == voters[0] && all.contains(&4)),
        "{voters:?}"
    );
    // And the new one is one of a majority.
    let other = (0..3)
        .find(|node| *node != gone && *node != 0)
        .expect("there are three");
    world.kill(other, true);
    assert_eq!(done(&mut world, 0, a, write(1, 77)), Answered::Done);
}

#[test]
fn the_leader_is_replaced_by_itself() {
    let mut world = world(4, MIB);
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    assert!(world.run_until(5 * SECONDS, |world| world.leader(VOLUME) == Some(0)));
    write_much(&mut world, 0, a, 1000);
    let members = members(&[(2, 1), (3, 2), (9, 3)], &world);
    assert_eq!(
        done(&mut world, 0, a, Op::Change { number: 1, members }),
        Answered::Done
    );
    let gone = world.run_until(20 * SECONDS, |world| !has(world, 0));
    assert!(gone, "{}", table(&world));
    level(&mut world, &[1, 2, 3]);
    assert!(
        voters(&world).iter().all(|all| *all == [2, 3, 9]),
        "{:?}",
        voters(&world)
    );
    // Its endpoint goes on: the leader is elsewhere now.
    assert_eq!(done(&mut world, 0, a, write(5, 55)), Answered::Done);
}

#[test]
fn a_host_with_another_disk_is_not_taken_for_the_replica_that_it_had() {
    let mut world = world(3, MIB);
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    done(&mut world, 0, a, write(1, 11));
    level(&mut world, &[0, 1, 2]);
    let wiped = (1..3)
        .find(|node| world.leader(VOLUME) != Some(*node))
        .expect("one leads");
    let other = 3 - wiped;
    world.kill(wiped, true);
    world.wipe(wiped, MIB);
    world.start(wiped);
    // Somebody makes the replica that was there, as if the volume were new.
    let old = world.members(&[0, 1, 2]);
    let now = world.clock(wiped);
    let host = world.nodes[wiped].host.as_mut().expect("it is up");
    host.create(VOLUME, 4096, &old, now).expect("there is room");
    world.drain(wiped);
    assert!(
        world.run_until(10 * SECONDS, |world| !has(world, wiped)),
        "it is told that it is none: {}",
        table(&world)
    );
    // It helps no majority: with the other one away nothing is decided.
    let now = world.clock(wiped);
    let host = world.nodes[wiped].host.as_mut().expect("it is up");
    host.create(VOLUME, 4096, &old, now).expect("there is room");
    world.drain(wiped);
    world.kill(other, true);
    let stuck = ask(&mut world, 0, a, write(1, 12));
    world.run_until(5 * SECONDS, |_| false);
    assert!(
        !world
            .replies
            .iter()
            .any(|(_, reply)| reply.request == stuck)
    );
    world.start(other);
    assert_eq!(reply(&mut world, stuck), Some(Ok(Answered::Done)));
    // Under a number of its own it is welcome.
    let mut list = vec![(8, wiped)];
    list.extend(
        (0..3)
            .filter(|node| *node != wiped)
            .map(|node| (node as u64 + 1, node)),
    );
    let members = members(&list, &world);
    let change = Op::Change {
        number: 1,
        members: members.clone(),
    };
    assert_eq!(done(&mut world, 0, a, change), Answered::Done);
    changed(&mut world, &members);
    level(&mut world, &[0, 1, 2]);
    assert!(
        voters(&world).iter().all(|all| all.contains(&8)),
        "{:?}",
        voters(&world)
    );
}

/// Where on a disk this very block is.
fn places(world: &World, node: usize, value: u64) -> Vec<u64> {
    world.nodes[node].disk.find(&page(value))
}

pub(crate) fn info(world: &World, node: usize) -> GroupInfo {
    let host = world.nodes[node].host.as_ref().expect("it is up");
    host.group(VOLUME).expect("it started")
}

/// Damages the one place in the log that has this block.
pub(crate) fn damage(world: &mut World, node: usize, value: u64) {
    let bad = places(world, node, value);
    assert_eq!(bad.len(), 1, "in the log only");
    world.nodes[node].disk.corrupt(bad[0], &mut Rng(3));
}

/// A world in which node 0 leads and is attached, and the other two are known.
pub(crate) fn attached() -> (World, SessionId) {
    attached_with(16 * MIB)
}

pub(crate) fn attached_with(wal: u64) -> (World, SessionId) {
    let mut world = world(3, wal);
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    assert!(world.run_until(5 * SECONDS, |world| world.leader(VOLUME) == Some(0)));
    // So that the endpoint knows who leads.
    done(&mut world, 0, a, write(0, 700));
    level(&mut world, &[0, 1, 2]);
    (world, a)
}

#[test]
fn a_damaged_entry_comes_from_a_peer_and_nothing_is_cut() {
    let (mut world, a) = attached();
    let (away, damaged) = (1, 2);
    world.kill(away, true);
    // Two entries in batches of their own, of which nobody says that they are committed.
    world.block(damaged, 0);
    let asked = [(1, 701), (2, 702)].map(|(lba, value)| {
        let asked = ask(&mut world, 0, a, write(lba, value));
        world.run_until(SECONDS / 20, |_| false);
        asked
    });
    world.kill(damaged, true);
    damage(&mut world, damaged, 701);
    isolate(&mut world, 0);
    world.start(damaged);
    world.start(away);
    world.run_until(3 * SECONDS, |_| false);
    let before = info(&world, damaged);
    assert_eq!(before.damaged_entries, 1, "{before}");
    assert!(
        [away, damaged]
            .iter()
            .all(|node| info(&world, *node).role != Role::Leader),
        "neither who lacks entries nor who cannot vouch for its log leads: {}",
        table(&world)
    );
    world.blocked.clear();
    for asked in asked {
        assert_eq!(reply(&mut world, asked), Some(Ok(Answered::Done)));
    }
    level(&mut world, &[0, 1, 2]);
    assert_eq!(info(&world, damaged).damaged_entries, 0);
    let again = world.nodes[damaged].host.as_ref().expect("it is up");
    assert_eq!(again.unusable(), &[]);
    for (lba, value) in [(1, 701), (2, 702)] {
        let b = session(&mut world, damaged, 10 + u128::from(lba));
        let found = value_at(&mut world, damaged, b, lba);
        assert_eq!(found, Buffer::from_pages(vec![page(value)]));
    }
}

#[test]
fn a_leader_whose_log_is_damaged_sends_chunks_instead() {
    let (mut world, a) = attached();
    let (away, damaged) = (1, 2);
    world.kill(away, true);
    for number in 1..=4 {
        done(&mut world, 0, a, write(number, 700 + number));
    }
    world.kill(damaged, true);
    damage(&mut world, damaged, 702);
    isolate(&mut world, 0);
    world.start(damaged);
    world.start(away);
    world.run_until(3 * SECONDS, |_| false);
    assert_eq!(
        info(&world, damaged).role,
        Role::Leader,
        "{}",
        table(&world)
    );
    world.blocked.clear();
    level(&mut world, &[0, 1, 2]);
    for number in 1..=4 {
        let b = session(&mut world, away, 10 + u128::from(number));
        let found = value_at(&mut world, away, b, number);
        assert_eq!(found, Buffer::from_pages(vec![page(700 + number)]));
    }
    assert!(info(&world, damaged).mended > 0, "{}", table(&world));
}

#[test]
fn a_damaged_block_comes_from_a_peer_and_is_written_anew() {
    let mut world = world(3, MIB);
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    assert!(world.run_until(5 * SECONDS, |world| world.leader(VOLUME) == Some(0)));
    done(&mut world, 0, a, write(9, 901));
    level(&mut world, &[0, 1, 2]);
    for node in 0..3 {
        world.settle(node);
    }
    let hurt = |world: &mut World, node: usize| {
        let extents = {
            let host = world.nodes[node].host.as_ref().expect("it is up");
            host.store().layout().extent_at(0, 0) / BLOCK_BYTES as u64
        };
        let stored = places(world, node, 901)
            .into_iter()
            .find(|block| *block >= extents);
        let stored = stored.expect("a checkpoint put it there");
        world.nodes[node].disk.corrupt(stored, &mut Rng(stored));
    };
    hurt(&mut world, 0);
    assert_eq!(
        value_at(&mut world, 0, a, 9),
        Buffer::from_pages(vec![page(901)])
    );
    let mended = |world: &World, node: usize| {
        let host = world.nodes[node].host.as_ref().expect("it is up");
        host.group(VOLUME).expect("it is there").mended
    };
    assert_eq!(mended(&world, 0), 1);
    world.settle(0);
    assert_eq!(
        value_at(&mut world, 0, a, 9),
        Buffer::from_pages(vec![page(901)])
    );
    assert_eq!(mended(&world, 0), 1, "it is whole again");
    // Scrubbing finds what nobody reads.
    hurt(&mut world, 1);
    let now = world.clock(1);
    let host = world.nodes[1].host.as_mut().expect("it is up");
    host.scrub(1000, now);
    world.drain(1);
    assert!(
        world.run_until(5 * SECONDS, |world| mended(world, 1) == 1),
        "{}",
        table(&world)
    );
    // All copies bad: an error for this range, and for nothing else.
    world.settle(1);
    (0..3).for_each(|node| hurt(&mut world, node));
    let read = ask(&mut world, 0, a, Op::Read { lba: 8, blocks: 3 });
    let outcome = reply(&mut world, read);
    let damaged = matches!(&outcome, Some(Err(Failure::Damaged { lbas })) if *lbas == [9]);
    assert!(damaged, "{outcome:?}");
    assert_eq!(info(&world, 0).given_up, 1);
    assert_eq!(done(&mut world, 0, a, write(9, 902)), Answered::Done);
    assert_eq!(
        value_at(&mut world, 0, a, 9),
        Buffer::from_pages(vec![page(902)])
    );
    let whole = world.run_until(15 * SECONDS, |world| info(world, 0).given_up == 0);
    assert!(whole, "it is looked at again: {}", table(&world));
}

#[test]
fn a_volume_grows_on_all_replicas_at_one_entry() {
    let mut world = world(3, MIB);
    let a = session(&mut world, 0, 1);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    let beyond = ask(&mut world, 0, a, write(5000, 1));
    assert!(matches!(
        reply(&mut world, beyond),
        Some(Err(Failure::Invalid { .. }))
    ));
    let grow = Op::Grow { blocks: 100_000 };
    assert_eq!(done(&mut world, 0, a, grow.clone()), Answered::Done);
    assert_eq!(done(&mut world, 0, a, write(99_999, 5)), Answered::Done);
    assert_eq!(
        done(&mut world, 0, a, grow),
        Answered::Done,
        "the same again is done"
    );
    (0..3).for_each(|node| world.kill(node, true));
    (0..3).for_each(|node| world.start(node));
    level(&mut world, &[0, 1, 2]);
    let b = session(&mut world, 1, 2);
    assert_eq!(
        value_at(&mut world, 1, b, 99_999),
        Buffer::from_pages(vec![page(5)])
    );
    let sizes = world.nodes.iter().map(|node| {
        let host = node.host.as_ref().expect("it is up");
        host.store().volume(VOLUME).expect("it is there").blocks
    });
    assert!(sizes.into_iter().all(|blocks| blocks == 100_000));
}

#[test]
fn members_that_cannot_be_are_refused() {
    let mut world = world(3, MIB);
    let a = session(&mut world, 0, 1);
    let elsewhere = members(&[(1, 1), (2, 0), (3, 2)], &world);
    let change = Op::Change {
        number: 1,
        members: elsewhere,
    };
    let asked = ask(&mut world, 0, a, change);
    assert!(matches!(
        reply(&mut world, asked),
        Some(Err(Failure::Invalid { .. }))
    ));
    // A host that does not exist: the volume goes on, and another target puts it right.
    let nowhere = Member {
        replica: ReplicaId(5),
        host: HostId(0xdead),
    };
    let mut list: Vec<Member> = world.members(&[0, 1]).iter().collect();
    list.push(nowhere);
    let with_nowhere = Members::new(list).expect("they differ");
    world.ignores_unknown = true;
    let change = Op::Change {
        number: 1,
        members: with_nowhere,
    };
    assert_eq!(done(&mut world, 0, a, change), Answered::Done);
    done(&mut world, 0, a, Op::Attach { claim: 0 });
    assert_eq!(done(&mut world, 0, a, write(1, 1)), Answered::Done);
    let back = Op::Change {
        number: 2,
        members: world.members(&[0, 1, 2]),
    };
    assert_eq!(done(&mut world, 0, a, back), Answered::Done);
    level(&mut world, &[0, 1, 2]);
    assert!(voters(&world).iter().all(|all| *all == [1, 2, 3]));
}

/// A write of an attachment, by hand: what an endpoint sends to whom it takes for the leader, while a first one is not answered.
fn say(world: &mut World, to: usize, term: u64, write: (u64, u64, u64)) {
    say_after(world, to, term, write, 1);
}

/// The same, when all before `floor` are answered.
fn say_after(
    world: &mut World,
    to: usize,
    term: u64,
    (seq, lba, value): (u64, u64, u64),
    floor: u64,
) {
    let from = (0..3)
        .find(|node| *node != to && world.nodes[*node].host.is_some())
        .expect("another one is up");
    let sender = world.nodes[from].host.as_ref().expect("it is up");
    let request = Request {
        session: SessionId(99),
        id: seq,
        term,
        stamp: Stamp::new(1 << 8, seq).expect("it is small"),
        floor,
        op: write(lba, value),
    };
    let (volume, message) = (VOLUME, Message::Request(request));
    let frame = Frame {
        incarnation: world.nodes[from].life,
        disk: sender.store().format(),
        sent: world.clock(from),
        echo: None,
        messages: vec![Envelope { volume, message }],
    };
    let (id, now) = (world.nodes[from].id, world.clock(to));
    let host = world.nodes[to].host.as_mut().expect("it is up");
    host.handle_frame(id, frame, now);
    world.drain(to);
    world.run_until(SECONDS / 100, |_| false);
}

/// Three replicas; the third is attached to, and leads in that term.
fn led() -> (World, u64) {
    let mut world = world(3, MIB);
    let a = session(&mut world, 2, 1);
    done(&mut world, 2, a, Op::Attach { claim: 1 });
    assert!(world.run_until(5 * SECONDS, |world| world.leader(VOLUME) == Some(2)));
    let term = info(&world, 2).term;
    (world, term)
}

/// All have what the third one has, which loses power: who leads then, and in which term.
fn led_by_another(world: &mut World) -> (usize, u64) {
    level(world, &[0, 1, 2]);
    world.kill(2, true);
    let led = |world: &mut World| world.leader(VOLUME).is_some_and(|node| node != 2);
    assert!(world.run_until(5 * SECONDS, led));
    world.run_until(SECONDS, |_| false);
    let leader = world.leader(VOLUME).expect("it leads");
    (leader, info(world, leader).term)
}

/// Writes until the log has nothing any more of what it had before.
fn forget(world: &mut World, leader: usize, term: u64, from: u64, floor: impl Fn(u64) -> u64) {
    let before = info(world, leader).last;
    for seq in from..from + 400 {
        let lba = 16 + seq * 37 % 1024;
        say_after(world, leader, term, (seq, lba, 1000 + seq), floor(seq));
    }
    world.settle(leader);
    let now = info(world, leader);
    assert!(now.term == term && now.first > before, "{now}");
}

fn holds(world: &mut World, leader: usize, value: u64) {
    let reader = session(world, leader, 2);
    let expected = Buffer::from_pages(vec![page(value)]);
    assert_eq!(value_at(world, leader, reader, 1), expected);
}

#[test]
fn a_second_copy_of_a_write_does_not_undo_what_follows_it() {
    let (mut world, term) = led();
    say(&mut world, 2, term, (2, 1, 22));
    // Its answer is lost with who led. The next one has it in the log, and answers the first copy.
    let (leader, term) = led_by_another(&mut world);
    say(&mut world, leader, term, (2, 1, 22));
    say(&mut world, leader, term, (3, 1, 33));
    forget(&mut world, leader, term, 4, |_| 1);
    // The second one comes when the log has it no more.
    say(&mut world, leader, term, (2, 1, 22));
    holds(&mut world, leader, 33);
}

#[test]
fn a_copy_of_what_was_answered_long_ago_is_not_taken() {
    let (mut world, term) = led();
    say(&mut world, 2, term, (2, 1, 22));
    say_after(&mut world, 2, term, (3, 1, 33), 3);
    forget(&mut world, 2, term, 4, |seq| seq);
    say(&mut world, 2, term, (2, 1, 22));
    holds(&mut world, 2, 33);
}

#[test]
fn a_copy_that_was_sent_to_an_earlier_leader_is_not_taken() {
    let (mut world, before) = led();
    say(&mut world, 2, before, (2, 1, 22));
    let (leader, term) = led_by_another(&mut world);
    // It knows of no answer: its endpoint has others open that are older.
    say(&mut world, leader, term, (3, 1, 33));
    forget(&mut world, leader, term, 4, |_| 1);
    say(&mut world, leader, before, (2, 1, 22));
    holds(&mut world, leader, 33);
}
