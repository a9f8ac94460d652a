//! Clients that write, read, lose patience and go elsewhere; and readers that look on.

use crate::random::is_settled;
use crate::register::Register;
use crate::world::{Event, MILLIS, World};
use blocks::{Buffer, Page, VolumeId};
use replication::{
    Answered, Failure, HostId, Member, Members, Op, ReplicaId, RequestId, SessionId,
};
use std::collections::{BTreeMap, BTreeSet};

/// Of a volume: four chunks, of which each has some blocks that are used.
pub(crate) const BLOCKS: u64 = 1024;
pub(crate) const CHUNK: u64 = 256;
const USED: u64 = 6;

#[derive(Debug, Clone)]
enum Doing {
    Attach,
    Write { lba: u64, blocks: u64, value: u64 },
    Read { lba: u64, blocks: u64 },
}

#[derive(Debug)]
struct Asked {
    op: u64,
    doing: Doing,
    since: u64,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) volume: VolumeId,
    members: Vec<usize>,
    /// It reads only, without an attachment.
    looks_on: bool,
    /// It was there for one moment.
    once: bool,
    node: usize,
    /// Of the node, when the session was opened.
    life: u64,
    session: Option<SessionId>,
    attached: bool,
    asked: BTreeMap<RequestId, Asked>,
    /// Writes of sessions that are over, which may take effect until the next attachment.
    left: Vec<(u64, u64, u64)>,
    /// Writes to be sent again.
    again: Vec<(u64, u64, u64)>,
    patience: u64,
    pub(crate) depth: usize,
}

/// All clients, and what they know.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    pub(crate) clients: Vec<Client>,
    registers: BTreeMap<(VolumeId, u64), Register>,
    next: u64,
    pub(crate) done: u64,
    pub(crate) moves: u64,
    pub(crate) fenced: u64,
    /// Since when faults are over, and nobody asks for more.
    pub(crate) still: Option<u64>,
    /// Reads that were told that blocks are damaged, as those who have them were out of reach.
    pub(crate) damaged: u64,
    pub(crate) no_room: u64,
    /// The last number that a replica was given, and a change of replicas.
    replica: u64,
    change: u64,
    /// Who asked for a change of a volume's replicas, and by which number.
    admin: BTreeMap<SessionId, Option<(VolumeId, u64)>>,
    /// All changes that were asked for, and the last that was answered as done.
    targets: BTreeMap<(VolumeId, u64), Vec<Member>>,
    changed: BTreeMap<VolumeId, u64>,
    /// Replicas whose disk is gone for good, and that are to be replaced.
    pub(crate) lost: BTreeSet<(VolumeId, ReplicaId)>,
}

pub(crate) fn page(value: u64) -> Page {
    let mut page = Page::ZERO;
    if value != 0 {
        page.0
            .chunks_mut(8)
            .for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
    }
    page
}

fn value_of(page: &Page) -> u64 {
    let value = u64::from_le_bytes(page.0[..8].try_into().expect("eight bytes"));
    assert!(
        *page == self::page(value),
        "a block that nobody wrote: {page:?}"
    );
    value
}

impl Client {
    fn is_connected(&self, world: &World) -> bool {
        let node = &world.nodes[self.node];
        self.session.is_some() && node.host.is_some() && node.life == self.life
    }
}

impl Clients {
    pub(crate) fn add(
        &mut self,
        world: &mut World,
        volume: VolumeId,
        members: Vec<usize>,
        looks_on: bool,
    ) {
        let client = self.clients.len();
        let node = world.rng.below(world.nodes.len() as u64) as usize;
        self.clients.push(Client {
            volume,
            members,
            looks_on,
            once: false,
            node,
            life: 0,
            session: None,
            attached: false,
            asked: BTreeMap::new(),
            left: Vec::new(),
            again: Vec::new(),
            patience: 700 * MILLIS + world.rng.below(1500 * MILLIS),
            depth: 1 + world.rng.below(6) as usize,
        });
        world.after(1, Event::Client { client });
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A host goes on: what clients asked of it meanwhile is what it sees first.
    pub(crate) fn asked_meanwhile(&mut self, world: &mut World, node: usize) {
        let main: Vec<usize> = (0..self.clients.len())
            .filter(|at| !self.clients[*at].looks_on)
            .collect();
        for main in main {
            if self.still.is_some() || world.nodes[node].host.is_none() {
                return;
            }
            let session = SessionId(u128::from(self.next()));
            let at = &self.clients[main];
            let (volume, members, life) = (at.volume, at.members.clone(), world.nodes[node].life);
            let id = world.nodes[node].id;
            let others = world.nodes.iter().map(|node| node.id);
            let hosts = std::iter::once(id)
                .chain(others.filter(|other| *other != id))
                .collect();
            let host = world.nodes[node].host.as_mut().expect("it is up");
            host.open_session(session, volume, hosts);
            self.clients.push(Client {
                volume,
                members,
                looks_on: true,
                once: true,
                node,
                life,
                session: Some(session),
                attached: true,
                asked: BTreeMap::new(),
                left: Vec::new(),
                again: Vec::new(),
                patience: 0,
                depth: 1,
            });
            let client = self.clients.len() - 1;
            (0..4).for_each(|_| self.something(world, client));
        }
    }

    /// Somebody wants other replicas of a volume: some host instead of another.
    pub(crate) fn change_members(&mut self, world: &mut World) {
        let volume = self.some_volume(world);
        let Some(mut wanted) = world.wanted(volume) else {
            return;
        };
        let hosts = world.nodes.len();
        let free: Vec<usize> = (0..hosts).filter(|it| !wanted.contains(it)).collect();
        let Some(come) = free.get(world.rng.below(free.len() as u64) as usize) else {
            return;
        };
        let out = world.rng.below(wanted.len() as u64) as usize;
        let gone = world.nodes[wanted.swap_remove(out)].id;
        let Some(old) = world.members_of(volume) else {
            return;
        };
        let gone = old.wanted().into_iter().find(|it| it.host == gone);
        world.faults.changes += 1;
        if let Some(gone) = gone {
            self.replace(world, volume, &old, gone.replica, *come);
        }
    }

    /// Asks for another replica instead of one.
    fn replace(
        &mut self,
        world: &mut World,
        volume: VolumeId,
        old: &Members,
        gone: ReplicaId,
        come: usize,
    ) {
        let stay = old.wanted().into_iter().filter(|it| it.replica != gone);
        self.replica = self.replica.max(100) + 1;
        let new = Member {
            replica: ReplicaId(self.replica),
            host: world.nodes[come].id,
        };
        let members = Members::new(stay.chain([new]).collect()).expect("they differ");
        // Some numbers are left out: a change that was thought of, and is asked for later on.
        self.change += 1 + world.rng.below(2);
        let number = self.change;
        self.targets.insert((volume, number), members.wanted());
        self.administer(world, volume, Op::Change { number, members });
        if number > 1 && world.rng.one_in(4) {
            self.change_late(world, volume, number);
        }
    }

    /// What was wanted before is asked for now: by its number, if it has one.
    fn change_late(&mut self, world: &mut World, volume: VolumeId, number: u64) {
        let earlier = self.targets.range((volume, 0)..(volume, number));
        let earlier: Vec<(u64, Vec<Member>)> = earlier
            .map(|((_, number), members)| (*number, members.clone()))
            .collect();
        if earlier.is_empty() {
            return;
        }
        let (number, members) = &earlier[world.rng.below(earlier.len() as u64) as usize];
        let (number, members) = (*number, members.clone());
        let members = Members::new(members).expect("it was asked for");
        world.faults.old_changes += 1;
        self.administer(world, volume, Op::Change { number, members });
    }

    /// Checks that a volume's members are those that were asked for by the number that they have.
    pub(crate) fn members_are_those_asked_for(&self, world: &World, volume: VolumeId) {
        for host in world.nodes.iter().filter_map(|node| node.host.as_ref()) {
            let Some(members) = host.group(volume).map(|group| group.members) else {
                continue;
            };
            let asked = self.targets.get(&(volume, members.change()));
            assert!(
                members.change() == 0 || asked == Some(&members.wanted()),
                "the members of {volume} are of no change, or of another: {members:?}"
            );
        }
    }

    /// Checks that no change holds that came before one which was answered as done.
    pub(crate) fn later_changes_hold(&self, world: &World) {
        for (volume, changed) in &self.changed {
            let members = world.members_of(*volume).expect("somebody leads");
            assert!(
                members.change() >= *changed,
                "change {changed} of {volume} was done, and {members:?} hold"
            );
        }
    }

    /// A host's disk is gone for good, if all volumes can do without.
    pub(crate) fn lose_host(&mut self, world: &mut World, node: usize) {
        let volumes: BTreeSet<VolumeId> = self.clients.iter().map(|it| it.volume).collect();
        let settled = volumes.iter().all(|volume| is_settled(world, *volume));
        let whole = world.victim.is_none_or(|victim| victim == node);
        let up = world.nodes[node].host.is_some() && !world.nodes[node].harm.fails;
        if !settled || !whole || !up || !self.lost.is_empty() {
            return;
        }
        for volume in volumes {
            let members = world.members_of(volume).expect("it is settled");
            if let Some(replica) = members.replica(world.nodes[node].id) {
                self.lost.insert((volume, replica));
            }
        }
        world.faults.gone += 1;
        world.kill(node, true);
        world.wipe(node, world.wal_bytes);
        world.start(node);
    }

    /// Replicas that are gone for good are replaced.
    pub(crate) fn manage(&mut self, world: &mut World) {
        for (volume, gone) in self.lost.clone() {
            let Some(members) = world.members_of(volume) else {
                continue;
            };
            let wanted = members.wanted();
            if let Some(gone) = wanted.iter().find(|it| it.replica == gone) {
                let node = world.nodes.iter().position(|node| node.id == gone.host);
                let node = node.expect("hosts are known");
                self.replace(world, volume, &members, gone.replica, node);
            } else if is_settled(world, volume) {
                self.lost.remove(&(volume, gone));
            }
        }
        world.after(500 * MILLIS, Event::Manage);
    }

    /// Somebody wants a larger volume.
    pub(crate) fn grow(&mut self, world: &mut World) {
        let volume = self.some_volume(world);
        let blocks = BLOCKS + world.rng.below(200_000);
        world.faults.grows += 1;
        self.administer(world, volume, Op::Grow { blocks });
    }

    fn some_volume(&self, world: &mut World) -> VolumeId {
        let client = world.rng.below(self.clients.len() as u64) as usize;
        self.clients[client].volume
    }

    /// Asks for something of which nobody waits for the answer.
    fn administer(&mut self, world: &mut World, volume: VolumeId, op: Op) {
        let node = world.rng.below(world.nodes.len() as u64) as usize;
        let session = SessionId(u128::from(self.next()) | 1 << 100);
        let hosts = world.nodes.iter().map(|node| node.id).collect();
        let now = world.clock(node);
        let frozen = world.nodes[node].paused_until > world.now;
        if let Some(host) = world.nodes[node].host.as_mut().filter(|_| !frozen) {
            let change = match &op {
                Op::Change { number, .. } => Some((volume, *number)),
                _ => None,
            };
            host.open_session(session, volume, hosts);
            host.ask(session, op, now);
            self.admin.insert(session, change);
            world.drain(node);
        }
    }

    /// A client's turn.
    pub(crate) fn turn(&mut self, world: &mut World, client: usize) {
        self.take_replies(world);
        let at = &self.clients[client];
        let oldest = at.asked.values().map(|asked| asked.since).min();
        let impatient = oldest.is_some_and(|since| since + at.patience < world.now);
        let gone = !at.is_connected(world);
        let frozen = world.nodes[at.node].paused_until > world.now;
        let migrates = !at.looks_on && self.still.is_none() && world.rng.one_in(150);
        if impatient || gone || migrates {
            self.go(world, client);
        } else if self.clients[client].attached && !frozen {
            let again = self.clients[client].again.pop();
            if let Some((lba, blocks, value)) = again {
                self.write(world, client, lba, blocks, value);
            } else if self.still.is_none()
                && self.clients[client].asked.len() < self.clients[client].depth
            {
                self.something(world, client);
            }
        }
        let pause = 200 + world.rng.below(20 * MILLIS);
        world.after(pause, Event::Client { client });
    }

    /// Leaves the endpoint, which may go on for a while, and goes to another one.
    fn go(&mut self, world: &mut World, client: usize) {
        let anywhere = world.rng.below(world.nodes.len() as u64) as usize;
        let at = &self.clients[client];
        // Who looks on does so where it is answered first, and longest.
        let leader = world
            .leader(at.volume)
            .filter(|_| at.looks_on && anywhere > 0);
        let node = leader.unwrap_or(anywhere);
        let at = &mut self.clients[client];
        (at.session, at.attached) = (None, false);
        for (_, asked) in std::mem::take(&mut at.asked) {
            match asked.doing {
                Doing::Attach => {}
                Doing::Read { lba, blocks } => {
                    for lba in lba..lba + blocks {
                        self.registers
                            .entry((at.volume, lba))
                            .or_default()
                            .forget_read(asked.op);
                    }
                }
                Doing::Write { lba, blocks, value } => {
                    at.left.push((asked.op, lba, blocks));
                    at.again.push((lba, blocks, value));
                }
            }
        }
        if world.nodes[node].host.is_none() || world.nodes[node].paused_until > world.now {
            return;
        }
        self.moves += 1;
        let session = SessionId(u128::from(self.next()));
        let at = &mut self.clients[client];
        (at.node, at.session, at.life) = (node, Some(session), world.nodes[node].life);
        // Members first: others may have a replica by now.
        let first = at.members.iter().map(|member| world.nodes[*member].id);
        let mut hosts: Vec<HostId> = first.collect();
        let others = world.nodes.iter().map(|node| node.id);
        let others: Vec<HostId> = others.filter(|host| !hosts.contains(host)).collect();
        hosts.extend(others);
        let (volume, looks_on) = (at.volume, at.looks_on);
        let host = world.nodes[node].host.as_mut().expect("it is up");
        host.open_session(session, volume, hosts);
        if looks_on {
            self.clients[client].attached = true;
        } else {
            self.ask(world, client, Doing::Attach, Op::Attach { claim: 0 });
        }
    }

    fn something(&mut self, world: &mut World, client: usize) {
        let blocks = 1 + if world.rng.one_in(3) {
            world.rng.below(3)
        } else {
            0
        };
        let lba = world.rng.below(BLOCKS / CHUNK) * CHUNK + world.rng.below(USED - blocks + 1);
        let at = &self.clients[client];
        let overlaps = |asked: &Asked| match asked.doing {
            Doing::Write {
                lba: other,
                blocks: more,
                ..
            } => other < lba + blocks && lba < other + more,
            _ => false,
        };
        let reads = at.looks_on || world.rng.one_in(3);
        if reads {
            let volume = at.volume;
            let op = self.ask(
                world,
                client,
                Doing::Read { lba, blocks },
                Op::Read { lba, blocks },
            );
            for lba in lba..lba + blocks {
                self.registers.entry((volume, lba)).or_default().read(op);
            }
        } else if !at.asked.values().any(overlaps) {
            let value = if world.rng.one_in(8) { 0 } else { self.next() };
            self.write(world, client, lba, blocks, value);
        }
    }

    fn write(&mut self, world: &mut World, client: usize, lba: u64, blocks: u64, value: u64) {
        let data = Buffer::from_pages(vec![page(value); blocks as usize]);
        let op = match value {
            0 => Op::Zero { lba, blocks },
            _ => Op::Write { lba, data },
        };
        let volume = self.clients[client].volume;
        let number = self.next + 1;
        for lba in lba..lba + blocks {
            self.registers
                .entry((volume, lba))
                .or_default()
                .write(number, value);
        }
        self.ask(world, client, Doing::Write { lba, blocks, value }, op);
    }

    fn ask(&mut self, world: &mut World, client: usize, doing: Doing, op: Op) -> u64 {
        let number = self.next();
        let at = &mut self.clients[client];
        let now = world.clock(at.node);
        let host = world.nodes[at.node].host.as_mut().expect("it is up");
        let session = at.session.expect("it has one");
        let request = host.ask(session, op, now).expect("the session is open");
        let since = world.now;
        at.asked.insert(
            request,
            Asked {
                op: number,
                doing,
                since,
            },
        );
        let node = at.node;
        world.drain(node);
        number
    }

    pub(crate) fn take_replies(&mut self, world: &mut World) {
        for (_, reply) in std::mem::take(&mut world.replies) {
            if let Some(change) = self.admin.get(&reply.request.session) {
                let done = reply.outcome == Ok(Answered::Done);
                if let Some((volume, number)) = change.filter(|_| done) {
                    let changed = self.changed.entry(volume).or_default();
                    *changed = number.max(*changed);
                }
                continue;
            }
            let whose = |client: &Client| client.session == Some(reply.request.session);
            let Some(client) = self.clients.iter().position(whose) else {
                continue;
            };
            let at = &mut self.clients[client];
            let Some(asked) = at.asked.remove(&reply.request) else {
                continue;
            };
            let volume = at.volume;
            match (asked.doing.clone(), reply.outcome) {
                (Doing::Attach, Ok(Answered::Attached { .. })) => {
                    at.attached = true;
                    // I: from here on nothing of earlier attachments takes effect.
                    for (op, lba, blocks) in std::mem::take(&mut at.left) {
                        for lba in lba..lba + blocks {
                            self.registers.entry((volume, lba)).or_default().over(op);
                        }
                    }
                }
                (Doing::Write { lba, blocks, .. }, Ok(Answered::Done)) => {
                    self.done += 1;
                    for lba in lba..lba + blocks {
                        let register = self.registers.entry((volume, lba)).or_default();
                        register
                            .written(asked.op)
                            .unwrap_or_else(|error| panic!("block {lba} of {volume}: {error}"));
                    }
                }
                (Doing::Read { lba, blocks }, Ok(Answered::Data(buffers))) => {
                    self.done += 1;
                    let pages: Vec<&Page> = buffers.iter().flat_map(Buffer::pages).collect();
                    assert_eq!(pages.len() as u64, blocks);
                    for (lba, page) in (lba..).zip(pages) {
                        let register = self.registers.entry((volume, lba)).or_default();
                        let read = register.was_read(asked.op, value_of(page));
                        read.unwrap_or_else(|error| panic!("block {lba} of {volume}: {error}"));
                    }
                }
                (Doing::Read { lba, blocks }, Err(Failure::Damaged { lbas })) => {
                    // Those who have them may have been out of reach when it was asked.
                    assert!(
                        self.still.is_none_or(|since| asked.since < since),
                        "blocks {lbas:?} of {volume} are damaged everywhere"
                    );
                    self.damaged += 1;
                    for lba in lba..lba + blocks {
                        let register = self.registers.entry((volume, lba)).or_default();
                        register.forget_read(asked.op);
                    }
                }
                (Doing::Write { lba, blocks, .. }, Err(Failure::NoSpace)) => {
                    self.no_room += 1;
                    for lba in lba..lba + blocks {
                        let register = self.registers.entry((volume, lba)).or_default();
                        register.over(asked.op);
                    }
                }
                (doing, Err(failure)) => {
                    self.fenced += u64::from(failure == Failure::Fenced);
                    assert!(
                        matches!(failure, Failure::Fenced | Failure::GaveUp),
                        "{failure}"
                    );
                    // Whatever else was under way is as open as this.
                    let since = 0;
                    self.clients[client].asked.insert(
                        reply.request,
                        Asked {
                            op: asked.op,
                            doing,
                            since,
                        },
                    );
                }
                (doing, outcome) => panic!("{doing:?} answered by {outcome:?}"),
            }
        }
    }

    pub(crate) fn is_quiet(&self, world: &World) -> bool {
        let quiet = |client: &Client| {
            let idle = client.asked.is_empty() && client.again.is_empty();
            idle && client.attached && client.is_connected(world)
        };
        self.clients.iter().filter(|client| !client.once).all(quiet)
    }

    /// Reads everything, once all is quiet.
    pub(crate) fn read_all(&mut self, world: &mut World) {
        for client in (0..self.clients.len())
            .filter(|at| !self.clients[*at].once)
            .collect::<Vec<_>>()
        {
            for chunk in 0..BLOCKS / CHUNK {
                let (lba, blocks) = (chunk * CHUNK, USED);
                let volume = self.clients[client].volume;
                let op = self.ask(
                    world,
                    client,
                    Doing::Read { lba, blocks },
                    Op::Read { lba, blocks },
                );
                for lba in lba..lba + blocks {
                    self.registers.entry((volume, lba)).or_default().read(op);
                }
            }
        }
    }
}
