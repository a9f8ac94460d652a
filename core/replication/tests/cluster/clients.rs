//! Clients that write, read, lose patience and go elsewhere; and readers that look on.

use crate::register::Register;
use crate::world::{Event, MILLIS, World};
use blocks::{Buffer, Page, VolumeId};
use replication::{Answered, Failure, Op, RequestId, SessionId};
use std::collections::BTreeMap;

pub(crate) const BLOCKS: u64 = 24;

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
    pub(crate) still: bool,
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
            if self.still || world.nodes[node].host.is_none() {
                return;
            }
            let session = SessionId(u128::from(self.next()));
            let at = &self.clients[main];
            let (volume, members, life) = (at.volume, at.members.clone(), world.nodes[node].life);
            let id = world.nodes[node].id;
            let others = members.iter().map(|member| world.nodes[*member].id);
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

    /// A client's turn.
    pub(crate) fn turn(&mut self, world: &mut World, client: usize) {
        self.take_replies(world);
        let at = &self.clients[client];
        let oldest = at.asked.values().map(|asked| asked.since).min();
        let impatient = oldest.is_some_and(|since| since + at.patience < world.now);
        let gone = !at.is_connected(world);
        let frozen = world.nodes[at.node].paused_until > world.now;
        let migrates = !at.looks_on && !self.still && world.rng.one_in(150);
        if impatient || gone || migrates {
            self.go(world, client);
        } else if self.clients[client].attached && !frozen {
            let again = self.clients[client].again.pop();
            if let Some((lba, blocks, value)) = again {
                self.write(world, client, lba, blocks, value);
            } else if !self.still && self.clients[client].asked.len() < self.clients[client].depth {
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
        let hosts = at
            .members
            .iter()
            .map(|member| world.nodes[*member].id)
            .collect();
        let (volume, looks_on) = (at.volume, at.looks_on);
        let host = world.nodes[node].host.as_mut().expect("it is up");
        host.open_session(session, volume, hosts);
        if looks_on {
            self.clients[client].attached = true;
        } else {
            self.ask(world, client, Doing::Attach, Op::Attach);
        }
    }

    fn something(&mut self, world: &mut World, client: usize) {
        let blocks = 1 + if world.rng.one_in(3) {
            world.rng.below(3)
        } else {
            0
        };
        let lba = world.rng.below(BLOCKS - blocks + 1);
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
            let (lba, blocks) = (0, BLOCKS);
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
