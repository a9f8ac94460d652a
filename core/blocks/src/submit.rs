//! Entries of volumes' logs: what Raft submits, cuts off and commits.

use crate::ahead::{Ahead, Effect};
use crate::batch::Queued;
use crate::format::record::Record;
use crate::log::{Body, Entry, Kind, Logged, Payload};
use crate::refused::{check_size, invalid};
use crate::space::{Need, Space};
use crate::volume::Volume;
use crate::{
    BLOCK_BYTES, EXTENT_BLOCKS, MOST_CONFIG_BYTES, Refused, Store, Ticket, VolumeId, block_crc,
};
use std::sync::Arc;

/// What Raft wants to be durable together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Submission {
    /// Term and vote, if they changed.
    pub hard: Option<(u64, u64)>,
    /// Entries one after another. The first may replace one that is there, and all after that; those
    /// that are there already, with the same term, are left alone.
    pub entries: Vec<Entry>,
}

impl Store {
    /// Takes in what Raft wants durable; [`crate::Event::Durable`] says when it is. All or nothing is taken.
    pub fn submit(&mut self, volume: VolumeId, submission: Submission) -> Result<Ticket, Refused> {
        let need = self.check(volume, &submission)?;
        let (held, space) = self.volume_mut(volume)?;
        let before = held.live;
        if let Some((term, vote)) = submission.hard {
            (held.hard.term, held.hard.vote) = (term, vote);
            (held.hard_changed, held.changed) = (true, true);
        }
        // Promised as a whole, so that no entry takes what a later one needs.
        space.promise(need);
        let mut promised = need;
        for entry in submission.entries {
            self.append(volume, entry, &mut promised);
        }
        assert_eq!(
            promised,
            Need::default(),
            "entries take what was reckoned when they were checked"
        );
        self.account(volume, before);
        Ok(self.ticket(volume))
    }

    /// Drops the entries after this one.
    pub fn truncate(&mut self, volume: VolumeId, last: u64) -> Result<Ticket, Refused> {
        let (held, space) = self.volume_mut(volume)?;
        let folded = held.folded.0;
        if last < folded {
            return Err(invalid(format!(
                "entries up to {folded} are committed; none after {last} can go"
            )));
        }
        if last < held.log.last() {
            let before = held.live;
            held.cut_after(last, space);
            self.account(volume, before);
            self.say(Record::LogEnd { volume, last });
        }
        Ok(self.ticket(volume))
    }

    /// Entries up to this one are committed, and take effect: reads see them. Gives those that have none,
    /// as they are of an epoch that is over. That the commit is durable comes with a later batch.
    pub fn committed(&mut self, volume: VolumeId, index: u64) -> Result<Vec<u64>, Refused> {
        let (held, space) = self.volume_mut(volume)?;
        if index > held.log.last() {
            let last = held.log.last();
            return Err(invalid(format!(
                "entry {index} cannot be committed: the last one here is {last}"
            )));
        }
        let lost = held
            .log
            .after(held.folded.0)
            .take_while(|(at, _)| *at <= index)
            .find(|(_, entry)| entry.is_lost());
        if let Some((lost, _)) = lost {
            return Err(Refused::Lost { index: lost });
        }
        let before = held.live;
        let (mut fenced, mut broken) = (Vec::new(), None);
        while held.folded.0 < index {
            if !held.has_room(space) {
                let why = format!("there is no room for entry {}", held.folded.0 + 1);
                held.broken = Some(why.clone());
                broken = Some(Refused::Broken { volume, why });
                break;
            }
            if !held.fold_next(space) {
                fenced.push(held.folded.0);
            }
        }
        self.account(volume, before);
        broken.map_or(Ok(fenced), Err)
    }

    /// What a volume's entries and hard state are answerable for, after something changed them.
    pub(crate) fn account(&mut self, volume: VolumeId, live_before: u64) {
        let held = self.volumes.get(&volume).expect("it was just changed");
        self.live = self.live - live_before + held.live;
        if held.hard_changed {
            self.hard_changed.insert(volume);
        }
    }

    /// The caller has no use for entries up to this one. They may be gone before it says so: see
    /// [`crate::VolumeInfo::first`].
    pub fn compact(&mut self, volume: VolumeId, index: u64) -> Result<(), Refused> {
        let (held, _) = self.volume_mut(volume)?;
        let until = index.min(held.carried_from());
        held.log.forget_until(until);
        Ok(())
    }

    /// An entry that is yet to take effect cannot be read: it has to be submitted again. It keeps what it
    /// was promised, and its extents.
    pub fn lose(&mut self, volume: VolumeId, index: u64) -> Result<(), Refused> {
        let (held, _) = self.volume_mut(volume)?;
        let entry = held.log.get(index).filter(|_| index > held.folded.0);
        let Some(entry) = entry.filter(|entry| !entry.is_lost()) else {
            return Err(invalid(format!("entry {index} is in effect, or not there")));
        };
        let Kind::Redirected { crcs, .. } = &entry.kind else {
            return Err(invalid(format!("entry {index} is known to be whole")));
        };
        held.lose(index, (0..crcs.len() as u32).collect());
        Ok(())
    }

    /// Checks a submission whole before anything of it is taken in. Gives what it may take.
    fn check(&mut self, volume: VolumeId, submission: &Submission) -> Result<Need, Refused> {
        let (most_live, most_blocks) = (self.most_live(), self.most_entry_blocks());
        let all_live = self.live;
        let (held, space) = self.volume_mut(volume)?;
        if let Some((term, _)) = submission.hard
            && term < held.hard.term
        {
            let has = held.hard.term;
            return Err(invalid(format!("term {term} after term {has}")));
        }
        let fresh = fresh_entries(held, &submission.entries)?;
        let known = fresh.iter().take_while(|entry| is_known(held, entry));
        let (known, new) = fresh.split_at(known.count());
        // What is replaced does not stand in the way of what replaces it.
        let kept = new.first().map_or(u64::MAX, |first| first.index - 1);
        let (mut gone, mut live) = (Need::default(), all_live);
        for (_, old) in held.log.after(kept) {
            gone.add(old.need);
            live -= old.cost(volume);
        }
        let mut blocks = held.blocks_at(kept);
        for entry in known {
            check_body(entry, blocks, most_blocks)?;
            check_refill(held, entry)?;
            // It has its promise.
            let old = held.log.get(entry.index).filter(|old| old.is_lost());
            live = old.map_or(live, |old| live + most_cost(&entry.body) - old.cost(volume));
        }
        let cut = (kept < held.log.last()).then(|| held.ahead_at(kept));
        let before = cut.as_ref().unwrap_or(&held.ahead);
        let (mut need, mut ahead) = (Need::default(), Ahead::default());
        for entry in new {
            check_body(entry, blocks, most_blocks)?;
            live += most_cost(&entry.body);
            let effect = Effect::of_body(&entry.body);
            need.add(if held.is_mixed() {
                held.most_need(&effect)
            } else {
                let ground = held.ground(Some(before), blocks);
                ahead.add(entry.index, entry.epoch, &effect, ground)
            });
            if let Body::Grow { blocks: more } = &entry.body {
                blocks = blocks.max(*more);
            }
        }
        // What takes no more than it has is never in the way.
        if live > most_live && live > all_live {
            return Err(Refused::Busy {
                live,
                most: most_live,
            });
        }
        space.take_back(gone);
        let (has, free) = (space.has(need), space.unpromised());
        space.promise(gone);
        if has {
            Ok(need)
        } else {
            Err(self.no_room(need, free))
        }
    }

    /// Takes one in; `promised` is to it and to those of its submission that follow.
    fn append(&mut self, volume: VolumeId, entry: Entry, promised: &mut Need) {
        let serial = self.number();
        let held = self.volumes.get_mut(&volume).expect("it was checked");
        let space = &mut self.space;
        let Entry {
            index,
            term,
            epoch,
            body,
        } = entry;
        if is_there(held, index, term) {
            return;
        }
        let old = held.log.get(index).filter(|old| old.term == term);
        let (kind, need, refills) = if let Some(old) = old {
            (refilled(&old.kind, body), old.need, true)
        } else {
            if index <= held.log.last() {
                held.cut_after(index - 1, space);
            }
            let need = held.foresee(index, epoch, &Effect::of_body(&body));
            promised.take(need);
            space.take_back(need);
            let (kind, need) = kind_of(body, volume, need, space);
            (kind, need, false)
        };
        let logged = Logged {
            term,
            epoch,
            kind,
            need,
            serial,
            batch: 0,
            durable: false,
        };
        if refills {
            held.refill(index, logged);
        } else {
            held.append(logged, space);
        }
        self.queue.push_back(Queued::Entry {
            volume,
            index,
            serial,
        });
    }
}

/// Whether an entry of its term is at its place, damaged or not.
fn is_known(held: &Volume, entry: &Entry) -> bool {
    let same = |old: &Logged| old.term == entry.term;
    entry.index <= held.folded.0 || held.log.get(entry.index).is_some_and(same)
}

/// Whether an entry needs no second time: it took effect, or is in the log, undamaged.
fn is_there(held: &Volume, index: u64, term: u64) -> bool {
    let same = held.log.get(index).filter(|old| old.term == term);
    index <= held.folded.0 || same.is_some_and(|old| !old.is_lost())
}

/// The entries of a submission without those, at its beginning, that are there.
fn fresh_entries<'a>(held: &Volume, entries: &'a [Entry]) -> Result<&'a [Entry], Refused> {
    for (offset, entry) in entries.iter().enumerate() {
        if entry.index != entries[0].index + offset as u64 {
            return Err(invalid(format!(
                "entry {} is out of its place",
                entry.index
            )));
        }
        let (index, folded) = (entry.index, held.folded.0);
        if index == 0 || index <= folded && held.log.term(index).is_some_and(|t| t != entry.term) {
            return Err(invalid(format!(
                "entry {index} cannot be replaced: {folded} are committed"
            )));
        }
    }
    let there = |entry: &&Entry| is_there(held, entry.index, entry.term);
    let fresh = &entries[entries.iter().take_while(there).count()..];
    let last = held.log.last();
    match fresh.first() {
        Some(first) if first.index > last + 1 => Err(invalid(format!(
            "entry {} does not follow entry {last}",
            first.index
        ))),
        _ => Ok(fresh),
    }
}

/// A payload that is put in again has to be the one that was there.
fn check_refill(held: &Volume, entry: &Entry) -> Result<(), Refused> {
    let old = held
        .log
        .get(entry.index)
        .filter(|old| old.term == entry.term);
    let (Some(Kind::Write { lba, crcs, .. }) | Some(Kind::Redirected { lba, crcs, .. })) =
        old.map(|old| &old.kind)
    else {
        return Ok(());
    };
    let same = match &entry.body {
        Body::Write { lba: come, data } if come == lba && data.blocks() == crcs.len() => {
            let made = (*lba..).zip(data.pages());
            made.zip(crcs.iter())
                .all(|((lba, page), crc)| block_crc(held.id, lba, page) == *crc)
        }
        _ => false,
    };
    if same {
        return Ok(());
    }
    let (index, volume) = (entry.index, held.id);
    Err(invalid(format!(
        "entry {index} of volume {volume} is not what was written there in its term; take it from another peer"
    )))
}

/// A payload that was lost goes to where it was meant to be.
fn refilled(old: &Kind, body: Body) -> Kind {
    let Body::Write { data, .. } = body else {
        unreachable!("only payloads are lost");
    };
    match old {
        Kind::Redirected {
            lba, extents, crcs, ..
        } => Kind::Redirected {
            lba: *lba,
            extents: Arc::clone(extents),
            crcs: Arc::clone(crcs),
            data: Some(data),
            lost: Vec::new(),
        },
        Kind::Write { lba, crcs, .. } => Kind::Write {
            lba: *lba,
            crcs: Arc::clone(crcs),
            at: Payload::Queued,
            data: Some(data),
        },
        _ => unreachable!("only payloads are lost"),
    }
}

/// What an entry is answerable for in the log at most.
fn most_cost(body: &Body) -> u64 {
    let fixed = 200;
    match body {
        Body::Write { data, .. } => fixed + data.blocks() as u64 * (BLOCK_BYTES as u64 + 10),
        Body::Config(bytes) => fixed + 2 * bytes.len() as u64,
        Body::Zero { .. } | Body::Attach | Body::Empty | Body::Grow { .. } => fixed,
    }
}

/// Decides where a payload goes: whole extents are written once, to where they stay.
fn kind_of(body: Body, volume: VolumeId, need: Need, space: &mut Space) -> (Kind, Need) {
    let (lba, data) = match body {
        Body::Write { lba, data } => (lba, data),
        Body::Zero { lba, blocks } => return (Kind::Zero { lba, blocks }, need),
        Body::Attach => return (Kind::Attach, need),
        Body::Config(bytes) => return (Kind::Config(bytes), need),
        Body::Empty => return (Kind::Empty, need),
        Body::Grow { blocks } => return (Kind::Grow { blocks }, need),
    };
    let blocks = data.blocks() as u64;
    let crcs: Arc<[u32]> = (lba..)
        .zip(data.pages())
        .map(|(lba, page)| block_crc(volume, lba, page))
        .collect();
    let extent = u64::from(EXTENT_BLOCKS);
    let whole = lba.is_multiple_of(extent) && blocks.is_multiple_of(extent);
    let extents = (blocks / u64::from(EXTENT_BLOCKS)) as u32;
    if whole && may_redirect(extents, need, space) {
        let taken: Option<Arc<[u32]>> = (0..extents).map(|_| space.extents.take()).collect();
        let kind = Kind::Redirected {
            lba,
            extents: taken.expect("they were counted"),
            crcs,
            data: Some(data),
            lost: Vec::new(),
        };
        let need = Need { extents: 0, ..need };
        return (kind, need);
    }
    let kind = Kind::Write {
        lba,
        crcs,
        at: Payload::Queued,
        data: Some(data),
    };
    (kind, need)
}

/// Extents that an overwrite leaves are free only after a checkpoint: when the disk is nearly full it
/// goes in place, so that it leaves others what they were promised.
const fn may_redirect(extents: u32, need: Need, space: &Space) -> bool {
    let free = space.unpromised();
    let fresh = need.extents >= extents;
    if fresh {
        free >= extents
    } else {
        free >= extents * 4
    }
}

fn check_body(entry: &Entry, volume_blocks: u64, most_blocks: u32) -> Result<(), Refused> {
    let (lba, blocks, most) = match &entry.body {
        Body::Write { lba, data } => (*lba, data.blocks() as u64, u64::from(most_blocks)),
        Body::Zero { lba, blocks } => (*lba, *blocks, u64::MAX),
        Body::Config(bytes) if bytes.len() > MOST_CONFIG_BYTES => {
            let bytes = bytes.len();
            return Err(invalid(format!(
                "a configuration of {bytes} bytes: at most {MOST_CONFIG_BYTES}"
            )));
        }
        Body::Config(_) | Body::Attach | Body::Empty => return Ok(()),
        Body::Grow { blocks } => return check_size(*blocks),
    };
    let end = lba.checked_add(blocks).filter(|end| *end <= volume_blocks);
    if blocks == 0 || blocks > most || end.is_none() {
        let index = entry.index;
        return Err(invalid(format!(
            "entry {index} is for {blocks} blocks at {lba} of {volume_blocks}, of at most {most} at once"
        )));
    }
    Ok(())
}
