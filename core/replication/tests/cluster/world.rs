//! Hosts, what is between them, and time.

use crate::disk::{Disk, carry_out};
use crate::harm::Harm;
use crate::rng::Rng;
use blocks::{
    BLOCK_BYTES, Buffer, EntryKind, Formatted, Identity, Io, OpenError, Opening, Page, Recovered,
    Store, Token, VolumeId,
};
use replication::wire::{PREFIX_BYTES, decode_frame, decode_prefix, encode_frame};
use replication::{
    Frame, GroupInfo, Host, HostId, Member, Members, ReplicaId, Reply, Role, SessionId, Time,
};
use std::collections::BTreeMap;

/// Far more than any seed has (some 20,000 frames, and their IO): who comes here goes round for ever.
const MOST_EVENTS: u64 = 1_000_000;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const MILLIS: u64 = 1000;
pub(crate) const SECONDS: u64 = 1_000_000;

/// What happens at a time.
#[derive(Debug)]
pub(crate) enum Event {
    /// A frame arrives.
    Frame {
        from: usize,
        to: usize,
        bytes: Vec<u8>,
        payload: Buffer,
    },
    /// An IO ends, of that life of a host.
    Io {
        node: usize,
        life: u64,
        token: Token,
    },
    /// A host wanted to be woken.
    Timer { node: usize, life: u64 },
    /// A host starts again.
    Start { node: usize },
    /// The clients' turn.
    Client { client: usize },
    /// A host goes on after a pause.
    Resume { node: usize },
    /// The next thing goes wrong.
    Fault,
    /// A disk that failed works again.
    Replug { node: usize },
    /// Somebody else's volume takes more room of a disk.
    Fill { node: usize, session: SessionId },
    /// That volume goes.
    Empty { node: usize },
    /// Management looks for replicas that are gone for good.
    Manage,
    /// A link is as it was.
    Heal { from: usize, to: usize },
}

pub(crate) struct Node {
    pub(crate) id: HostId,
    pub(crate) host: Option<Host>,
    pub(crate) disk: Disk,
    pub(crate) harm: Harm,
    pub(crate) life: u64,
    ios: BTreeMap<Token, (Io, u64)>,
    /// Its clock: what it shows at the beginning, and its speed in thousandths.
    offset: u64,
    speed: u64,
    pub(crate) paused_until: u64,
    timer_at: Option<u64>,
}

/// How links are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    pub(crate) loss: u64,
    pub(crate) twice: u64,
    pub(crate) damage: u64,
    pub(crate) delay: u64,
    pub(crate) slow_io: u64,
}

/// What went wrong, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    pub(crate) kills: u64,
    pub(crate) power_losses: u64,
    pub(crate) pauses: u64,
    pub(crate) partitions: u64,
    pub(crate) flipped: u64,
    pub(crate) unreadable: u64,
    pub(crate) misdirected: u64,
    pub(crate) log_damaged: u64,
    pub(crate) forgotten: u64,
    pub(crate) failed_disks: u64,
    pub(crate) full: u64,
    pub(crate) gone: u64,
    pub(crate) jumps: u64,
    pub(crate) changes: u64,
    pub(crate) old_changes: u64,
    pub(crate) grows: u64,
    pub(crate) lost: u64,
    pub(crate) twice: u64,
    pub(crate) damaged: u64,
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) nodes: Vec<Node>,
    events: BTreeMap<(u64, u64), Event>,
    serial: u64,
    pub(crate) blocked: BTreeMap<(usize, usize), u64>,
    pub(crate) weather: Weather,
    pub(crate) replies: Vec<(usize, Reply)>,
    pub(crate) faults: Faults,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) wal_bytes: u64,
    /// What each volume had at each index, on whoever had it.
    digests: BTreeMap<(VolumeId, u64), blocks::Digest>,
    chunks_before: u64,
    pub(crate) formats: u128,
    /// Sessions of those who fill disks.
    pub(crate) sessions: u128,
    jumped_at: u64,
    /// Frames may be for hosts that do not exist.
    pub(crate) ignores_unknown: bool,
    /// The one host whose disk goes bad.
    pub(crate) victim: Option<usize>,
    /// How fast hosts scrub.
    pub(crate) scrubs: u64,
    mended_before: u64,
    pub(crate) trace: u64,
}

pub(crate) const FINE: Weather = Weather {
    loss: 0,
    twice: 0,
    damage: 0,
    delay: 300,
    slow_io: 0,
};

pub(crate) fn identity(node: usize) -> Identity {
    Identity {
        cluster: 0xc1,
        host: 0x100 + node as u128,
        disk: 0xd1,
    }
}

pub(crate) fn empty_disk(identity: Identity, format: u128, bytes: u64, wal_bytes: u64) -> Disk {
    let formatted = Formatted::new(identity, format, bytes, wal_bytes).expect("it fits");
    let mut disk = Disk::default();
    for (at, buffer) in formatted.log.iter().chain(&formatted.superblocks) {
        disk.write(*at, std::slice::from_ref(buffer));
        disk.sync(disk.mark());
    }
    disk
}

pub(crate) fn try_open(
    disk: &mut Disk,
    identity: Identity,
    bytes: u64,
    rng: &mut Rng,
) -> Result<(Store, Recovered), OpenError> {
    let mut opening = Opening::new(identity, bytes);
    let mut ios = Vec::new();
    loop {
        ios.extend(std::iter::from_fn(|| opening.poll_io()));
        if ios.is_empty() {
            return opening.finish().expect("nothing is under way");
        }
        let (token, io) = ios.swap_remove(rng.below(ios.len() as u64) as usize);
        opening.handle_done(token, carry_out(disk, &io, u64::MAX));
    }
}

impl World {
    pub(crate) fn new(seed: u64, hosts: usize, bytes: u64, wal_bytes: u64) -> Self {
        let mut rng = Rng(seed);
        let nodes = (0..hosts).map(|number| {
            let disk = empty_disk(identity(number), 0x5eed + number as u128, bytes, wal_bytes);
            Node {
                id: HostId(identity(number).host),
                host: None,
                disk,
                harm: Harm::default(),
                life: 0,
                ios: BTreeMap::new(),
                offset: (100 + rng.below(1000)) * SECONDS,
                speed: 920 + rng.below(160),
                paused_until: 0,
                timer_at: None,
            }
        });
        let nodes = nodes.collect();
        let mut world = Self {
            now: 0,
            rng,
            nodes,
            events: BTreeMap::new(),
            serial: 0,
            blocked: BTreeMap::new(),
            weather: FINE,
            replies: Vec::new(),
            faults: Faults::default(),
            frames: 0,
            bytes,
            wal_bytes,
            digests: BTreeMap::new(),
            formats: 0,
            sessions: 0,
            jumped_at: 0,
            chunks_before: 0,
            ignores_unknown: false,
            victim: None,
            scrubs: 0,
            mended_before: 0,
            trace: 0,
        };
        (0..hosts).for_each(|node| world.start(node));
        world
    }

    /// Lets a host put all that it has to its place.
    pub(crate) fn settle(&mut self, node: usize) {
        let host = self.nodes[node].host.as_mut().expect("it is up");
        let before = host.store().counters().checkpoints;
        host.checkpoint();
        self.drain(node);
        let settled = self.run_until(5 * SECONDS, |world| {
            let host = world.nodes[node].host.as_ref().expect("it is up");
            let store = host.store();
            store.is_idle() && store.counters().checkpoints > before
        });
        assert!(settled, "a checkpoint ends");
    }

    pub(crate) fn members(&self, nodes: &[usize]) -> Members {
        let member = |node: &usize| Member {
            replica: ReplicaId(*node as u64 + 1),
            host: self.nodes[*node].id,
        };
        Members::new(nodes.iter().map(member).collect()).expect("they differ")
    }

    pub(crate) fn create(&mut self, volume: VolumeId, blocks: u64, nodes: &[usize]) {
        let members = self.members(nodes);
        for node in nodes {
            let now = self.clock(*node);
            let host = self.nodes[*node].host.as_mut().expect("all are up");
            host.create(volume, blocks, &members, now)
                .expect("there is room");
            self.drain(*node);
        }
    }

    /// What a host's clock shows.
    pub(crate) fn clock(&self, node: usize) -> Time {
        let node = &self.nodes[node];
        Time(node.offset + self.now * node.speed / 1000)
    }

    /// A host's clock runs at another speed from now on, in thousandths of what it should.
    pub(crate) fn run_at(&mut self, node: usize, speed: u64) {
        let shows = self.clock(node).0;
        let at = &mut self.nodes[node];
        at.speed = speed;
        at.offset = shows.saturating_sub(self.now * speed / 1000);
        self.drain(node);
    }

    /// A host's clock jumps, if none did for a while.
    pub(crate) fn jump(&mut self, node: usize, forward: bool, micros: u64) {
        if self.jumped_at + SECONDS > self.now {
            return;
        }
        self.jumped_at = self.now;
        self.faults.jumps += 1;
        let offset = &mut self.nodes[node].offset;
        *offset = match forward {
            true => *offset + micros,
            false => offset.saturating_sub(micros),
        };
        self.drain(node);
    }

    fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what)
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(5);
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.serial += 1;
        assert!(
            self.serial < MOST_EVENTS,
            "{MOST_EVENTS} events, {} of them frames, and it goes on at {} us: a storm",
            self.frames,
            self.now
        );
        self.events.insert((at.max(self.now), self.serial), event);
    }

    pub(crate) fn after(&mut self, micros: u64, event: Event) {
        self.at(self.now + micros, event);
    }

    pub(crate) fn start(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        at.life += 1;
        at.paused_until = 0;
        at.harm.fails = false;
        let opened = try_open(&mut at.disk, identity(node), self.bytes, &mut self.rng);
        let (store, _) = opened.expect("what a crash leaves is opened");
        let (id, life) = (at.id, at.life);
        let now = self.clock(node);
        let mut host = Host::new(id, life, store, now);
        host.scrub(self.scrubs, now);
        self.nodes[node].host = Some(host);
        self.drain(node);
    }

    /// Ends a host's process: what was handed to its disk may have been done, or not.
    pub(crate) fn kill(&mut self, node: usize, power: bool) {
        let at = &mut self.nodes[node];
        let chunks = at.host.as_ref().map(|host| host.store().counters().chunks);
        self.chunks_before += chunks.unwrap_or(0);
        self.mended_before += at
            .host
            .as_ref()
            .map_or(0, |host| host.store().counters().repaired_blocks);
        at.host = None;
        at.life += 1;
        at.timer_at = None;
        for (_, (io, _)) in std::mem::take(&mut at.ios) {
            if matches!(io, Io::Write { .. } | Io::WriteSync { .. }) && self.rng.one_in(2) {
                carry_out(&mut at.disk, &io, 0);
            }
        }
        if power {
            at.disk.lose_power(&mut self.rng);
            at.offset = (100 + self.rng.below(1000)) * SECONDS;
            self.faults.power_losses += 1;
            self.forget_writes(node);
        } else {
            self.faults.kills += 1;
        }
        self.damage_log(node);
    }

    /// Takes from a host what it has for others.
    pub(crate) fn drain(&mut self, node: usize) {
        self.drain_some(node);
    }

    /// Blocks that came from peers, as a host's own were damaged.
    pub(crate) fn mended(&self) -> u64 {
        let hosts = self.nodes.iter().filter_map(|node| node.host.as_ref());
        let mended = hosts.map(|host| host.store().counters().repaired_blocks);
        self.mended_before + mended.sum::<u64>()
    }

    /// Entries that were given up, since the start of each host.
    pub(crate) fn given_up(&self) -> u64 {
        let hosts = self.nodes.iter().filter_map(|node| node.host.as_ref());
        let groups = hosts.flat_map(|host| {
            let volumes = host.store().volumes();
            volumes
                .filter_map(|volume| host.group(volume))
                .collect::<Vec<_>>()
        });
        groups.map(|group| group.entries_given_up).sum()
    }

    /// Checks that who leads took in no request of an attachment that its log had (R5). What its log had no more it may take
    /// again: nothing else was written there since, as the request is not answered.
    pub(crate) fn once_each(&self, volume: VolumeId) {
        for host in self.nodes.iter().filter_map(|node| node.host.as_ref()) {
            let group = host.group(volume);
            let Some(group) = group.filter(|group| group.role == Role::Leader) else {
                continue;
            };
            let info = host.store().volume(volume).expect("it leads it");
            let mut seen = BTreeMap::new();
            for index in info.first..=info.last {
                let head = host.store().entry_head(volume, index);
                let head = head.expect("it is in the log");
                let writes = matches!(head.kind, EntryKind::Write | EntryKind::Zero);
                let other = writes.then(|| seen.insert(head.epoch, index)).flatten();
                if let Some(other) = other.filter(|_| head.term == group.term) {
                    let stamp = replication::Stamp::from_entry(head.epoch);
                    panic!("request {stamp} of {volume} is twice in the log: {other} and {index}");
                }
            }
        }
    }

    /// The hosts that are to have a volume, as its leader has it; nothing while that changes.
    pub(crate) fn wanted(&self, volume: VolumeId) -> Option<Vec<usize>> {
        let leader = self.nodes[self.leader(volume)?].host.as_ref()?;
        let members = leader.group(volume)?.members;
        let node = |member: &Member| self.nodes.iter().position(|it| it.id == member.host);
        let wanted = members.wanted();
        let nodes: Option<Vec<usize>> = wanted.iter().map(node).collect();
        nodes.filter(|_| !members.is_changing())
    }

    /// A volume's members, as its leader has them.
    pub(crate) fn members_of(&self, volume: VolumeId) -> Option<Members> {
        let leader = self.nodes[self.leader(volume)?].host.as_ref()?;
        Some(leader.group(volume)?.members)
    }

    fn drain_some(&mut self, node: usize) {
        let fails = self.nodes[node].harm.fails;
        let Some(host) = self.nodes[node].host.as_mut() else {
            return;
        };
        let frames: Vec<(HostId, Frame)> = std::iter::from_fn(|| host.poll_frame()).collect();
        let ios: Vec<(Token, Io)> = std::iter::from_fn(|| host.poll_io()).collect();
        let replies: Vec<Reply> = std::iter::from_fn(|| host.poll_reply()).collect();
        assert!(host.dead().is_none() || fails, "{:?}", host.dead());
        assert_eq!(host.unusable(), &[]);
        let timeout = host.poll_timeout();
        for (to, frame) in frames {
            let to = self.nodes.iter().position(|it| it.id == to);
            assert!(to.is_some() || self.ignores_unknown, "hosts are known");
            if let Some(to) = to {
                self.send(node, to, &frame);
            }
        }
        for (token, io) in ios {
            let slow = self.weather.slow_io;
            let slow = slow > 0 && self.rng.one_in(6);
            let most = if slow { self.weather.slow_io } else { 400 };
            let delay = 20 + self.rng.below(most);
            let mark = self.nodes[node].disk.mark();
            let life = self.nodes[node].life;
            self.nodes[node].ios.insert(token, (io, mark));
            self.after(delay, Event::Io { node, life, token });
        }
        self.replies
            .extend(replies.into_iter().map(|reply| (node, reply)));
        if let Some(at) = timeout {
            let from = self.nodes[node].offset;
            let at = at.0.saturating_sub(from) * 1000 / self.nodes[node].speed + 2;
            let at = at.max(self.now + 1);
            let sooner = self.nodes[node]
                .timer_at
                .is_none_or(|old| old <= self.now || at < old);
            if sooner {
                self.nodes[node].timer_at = Some(at);
                let life = self.nodes[node].life;
                self.at(at, Event::Timer { node, life });
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, frame: &Frame) {
        self.frames += 1;
        let encoded = encode_frame(frame);
        let pages: Vec<Page> = encoded
            .payload
            .iter()
            .flat_map(Buffer::pages)
            .cloned()
            .collect();
        let weather = self.weather;
        if self.blocked.contains_key(&(from, to))
            || weather.loss > 0 && self.rng.one_in(weather.loss)
        {
            self.faults.lost += 1;
            return;
        }
        let again = weather.twice > 0 && self.rng.one_in(weather.twice);
        self.faults.twice += u64::from(again);
        for _ in 0..1 + u64::from(again) {
            let mut bytes = encoded.head.clone();
            let mut payload = pages.clone();
            if weather.damage > 0 && self.rng.one_in(weather.damage) {
                self.faults.damaged += 1;
                let bit = 1 << self.rng.below(8);
                let at = self
                    .rng
                    .below((bytes.len() + payload.len() * BLOCK_BYTES) as u64)
                    as usize;
                match at.checked_sub(bytes.len()) {
                    None => bytes[at] ^= bit,
                    Some(at) => payload[at / BLOCK_BYTES].0[at % BLOCK_BYTES] ^= bit,
                }
            }
            let payload = Buffer::from_pages(payload);
            let late = if self.rng.one_in(30) { 20 } else { 1 };
            let delay = 50 + self.rng.below(weather.delay * late);
            self.after(
                delay,
                Event::Frame {
                    from,
                    to,
                    bytes,
                    payload,
                },
            );
        }
    }

    /// Stops a host for a while; when it goes on, that is the first thing that happens.
    pub(crate) fn pause(&mut self, node: usize, micros: u64) {
        let until = self.now + micros;
        self.nodes[node].paused_until = until;
        self.faults.pauses += 1;
        self.events
            .insert((until, node as u64), Event::Resume { node });
    }

    /// The next event, if it is before that time. Gives those that are not about hosts.
    pub(crate) fn step(&mut self, until: u64) -> Option<Event> {
        let ((at, serial), event) = self.events.pop_first()?;
        if at > until {
            self.events.insert((at, serial), event);
            self.now = until;
            return None;
        }
        self.now = at;
        self.note(at ^ serial << 32);
        let node = match &event {
            Event::Frame { to, .. } => Some(*to),
            Event::Io { node, .. } | Event::Timer { node, .. } => Some(*node),
            _ => None,
        };
        if let Some(paused) = node
            .map(|node| self.nodes[node].paused_until)
            .filter(|it| *it > at)
        {
            self.events.insert((paused, serial), event);
            return Some(Event::Heal {
                from: usize::MAX,
                to: 0,
            });
        }
        match event {
            Event::Frame {
                from,
                to,
                bytes,
                payload,
            } => self.arrive(from, to, &bytes, &payload),
            Event::Io { node, life, token } => self.io_done(node, life, token),
            Event::Timer { node, life } => {
                let now = self.clock(node);
                let at = &mut self.nodes[node];
                if let Some(host) = at.host.as_mut().filter(|_| at.life == life) {
                    at.timer_at = None;
                    host.handle_time(now);
                    self.drain(node);
                }
            }
            Event::Start { node } => {
                if self.nodes[node].host.is_none() {
                    self.start(node);
                }
            }
            Event::Replug { node } => self.replug(node),
            Event::Fill { node, session } => self.fill_on(node, session),
            Event::Empty { node } => self.empty_disk(node),
            other => return Some(other),
        }
        Some(Event::Heal {
            from: usize::MAX,
            to: 0,
        })
    }

    fn arrive(&mut self, from: usize, to: usize, bytes: &[u8], payload: &Buffer) {
        let now = self.clock(to);
        let sender = self.nodes[from].id;
        let Some(host) = self.nodes[to].host.as_mut() else {
            return;
        };
        let (prefix, head) = bytes
            .split_first_chunk::<PREFIX_BYTES>()
            .expect("it has a prefix");
        let decoded = decode_prefix(prefix).and_then(|prefix| decode_frame(&prefix, head, payload));
        // What is damaged ends the connection, and another one begins.
        if let Ok(frame) = decoded {
            host.handle_frame(sender, frame, now);
            self.drain(to);
        }
    }

    fn io_done(&mut self, node: usize, life: u64, token: Token) {
        let now = self.clock(node);
        let at = &mut self.nodes[node];
        if at.life != life {
            return;
        }
        let (io, mark) = at.ios.remove(&token).expect("it was handed out");
        let done = self.failed_io(node, &io).unwrap_or_else(|| {
            self.perhaps_forget(node, &io);
            carry_out(&mut self.nodes[node].disk, &io, mark)
        });
        self.nodes[node]
            .host
            .as_mut()
            .expect("it lives")
            .handle_done(token, done, now);
        self.drain(node);
    }

    /// Runs until something holds, or for so long.
    pub(crate) fn run_until(
        &mut self,
        micros: u64,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let until = self.now + micros;
        while !holds(self) {
            if self.step(until).is_none() {
                return holds(self);
            }
        }
        true
    }

    pub(crate) fn leader(&self, volume: VolumeId) -> Option<usize> {
        let leads = |node: &Node| {
            let group = node.host.as_ref()?.group(volume)?;
            (group.role == Role::Leader).then_some(group.term)
        };
        let leaders = self
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(at, node)| Some((leads(node)?, at)));
        leaders.max().map(|(_, at)| at)
    }

    pub(crate) fn block(&mut self, from: usize, to: usize) {
        self.blocked.insert((from, to), self.now);
    }

    /// Chunks that hosts took in since the start of each.
    pub(crate) fn chunks(&self) -> u64 {
        let counters = self
            .nodes
            .iter()
            .filter_map(|node| Some(node.host.as_ref()?.store().counters().chunks));
        self.chunks_before + counters.sum::<u64>()
    }

    /// Checks that no two replicas disagree on what a volume holds at an index.
    pub(crate) fn same_digests(&mut self, volume: VolumeId) {
        for node in &self.nodes {
            let info = node
                .host
                .as_ref()
                .and_then(|host| host.store().volume(volume));
            // What is mixed is what no replica ever held.
            if let Some(info) = info.filter(|info| !info.mixed) {
                let digest = *self
                    .digests
                    .entry((volume, info.applied))
                    .or_insert(info.digest);
                assert_eq!(
                    digest, info.digest,
                    "replicas differ at entry {} of {volume}: {:?}",
                    info.applied, node.id
                );
            }
        }
    }

    /// All members have all there is.
    pub(crate) fn is_level(&self, volume: VolumeId, members: &[usize]) -> bool {
        let info = |node: &usize| self.nodes[*node].host.as_ref()?.group(volume);
        let infos: Option<Vec<_>> = members.iter().map(info).collect();
        let infos = infos.unwrap_or_default();
        let leaders: Vec<_> = infos
            .iter()
            .filter(|info| info.role == Role::Leader)
            .collect();
        let [leader] = leaders[..] else { return false };
        let has_all = |info: &GroupInfo| {
            let all = (info.applied, info.last) == (leader.last, leader.last);
            all && info.catching_up.is_none() && info.damaged_entries == 0
        };
        infos.iter().all(has_all)
    }
}

impl Faults {
    pub(crate) const fn add(&mut self, more: &Self) {
        self.kills += more.kills;
        self.power_losses += more.power_losses;
        self.pauses += more.pauses;
        self.partitions += more.partitions;
        self.lost += more.lost;
        self.twice += more.twice;
        self.damaged += more.damaged;
        self.flipped += more.flipped;
        self.unreadable += more.unreadable;
        self.misdirected += more.misdirected;
        self.log_damaged += more.log_damaged;
        self.forgotten += more.forgotten;
        self.failed_disks += more.failed_disks;
        self.full += more.full;
        self.gone += more.gone;
        self.jumps += more.jumps;
        self.old_changes += more.old_changes;
        self.changes += more.changes;
        self.grows += more.grows;
    }
}
