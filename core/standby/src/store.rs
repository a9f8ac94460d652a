//! The side that stands by.

use crate::{Batch, Key, LEAST_TIMEOUT_SECS, newer};
use model::{HostId, RouterId, Tracked};
use std::collections::{BTreeMap, BTreeSet};

/// What this host knows of the routers that it stands by for.
#[derive(Debug)]
pub struct Store {
    most: usize,
    wanted: BTreeSet<RouterId>,
    routers: BTreeMap<RouterId, Known>,
}

#[derive(Debug)]
struct Known {
    from: HostId,
    epoch: u64,
    series: u64,
    connections: BTreeMap<Key, Tracked>,
    /// Of the series before, and not named yet by this one: better than nothing, but for want of room.
    before: BTreeMap<Key, Tracked>,
    /// Those of the series that there was no room for.
    refused: u64,
}

/// Why a batch is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As far as this host was told.
    #[error("this host does not stand by for it")]
    NotWanted,
    /// It was placed elsewhere since.
    #[error("it was placed anew since, with epoch {0}")]
    Superseded(u64),
    /// The beginning is not known here.
    #[error("this host did not see this series begin: begin another")]
    Unknown,
}

/// What a batch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Connections that are known of the router now.
    pub kept: u64,
    /// Connections of the series that there was no room for.
    pub refused: u64,
}

impl Store {
    /// With room for `most` connections of each router.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            wanted: BTreeSet::new(),
            routers: BTreeMap::new(),
        }
    }

    /// Routers that this host stands by for from now on; what is known of others is forgotten.
    pub fn want(&mut self, routers: &BTreeSet<RouterId>) {
        self.wanted.clone_from(routers);
        self.routers.retain(|router, _| routers.contains(router));
    }

    /// What the host that runs the router says.
    pub fn take(
        &mut self,
        from: HostId,
        (router, epoch): (RouterId, u64),
        batch: Batch,
    ) -> Result<Taken, Refused> {
        if !self.wanted.contains(&router) {
            return Err(Refused::NotWanted);
        }
        if let Some(known) = self.routers.get(&router)
            && known.epoch > epoch
        {
            return Err(Refused::Superseded(known.epoch));
        }
        let known = match (self.routers.get_mut(&router), batch.begins) {
            (Some(known), true) => known,
            (None, true) => self.routers.entry(router).or_insert(Known {
                from,
                epoch,
                series: 0,
                connections: BTreeMap::new(),
                before: BTreeMap::new(),
                refused: 0,
            }),
            (Some(known), false) => {
                let follows = (known.from, known.epoch, known.series);
                if follows != (from, epoch, batch.series) {
                    return Err(Refused::Unknown);
                }
                known
            }
            (None, false) => return Err(Refused::Unknown),
        };
        if batch.begins {
            (known.from, known.epoch, known.series) = (from, epoch, batch.series);
            known.refused = 0;
            let mut named = std::mem::take(&mut known.connections);
            known.before.append(&mut named);
        }
        known.apply(batch, self.most);
        Ok(known.taken())
    }

    /// How many connections of which router are known, ordered by router.
    pub fn kept(&self) -> impl Iterator<Item = (RouterId, Taken)> {
        let routers = self.routers.iter();
        routers.map(|(router, known)| (*router, known.taken()))
    }

    /// For this host to run the router itself: what is known of it, and of which placement. Then it is
    /// forgotten.
    pub fn give(&mut self, router: RouterId) -> Option<(u64, Vec<Tracked>)> {
        let known = self.routers.remove(&router)?;
        let connections = known.connections.into_values();
        let connections = connections.chain(known.before.into_values());
        let connections = connections.map(|mut tracked| {
            tracked.timeout = tracked.timeout.max(LEAST_TIMEOUT_SECS);
            tracked
        });
        Some((known.epoch, connections.collect()))
    }
}

impl Known {
    fn apply(&mut self, batch: Batch, most: usize) {
        for key in batch.gone {
            self.connections.remove(&key);
            self.before.remove(&key);
        }
        for tracked in batch.connections {
            let key = Key::of(&tracked);
            let before = self.before.remove(&key);
            let before = before.or_else(|| self.connections.remove(&key));
            if self.connections.len() + self.before.len() >= most
                && self.before.pop_first().is_none()
            {
                self.refused += 1;
                continue;
            }
            self.connections
                .insert(key, newer(tracked, before.as_ref()));
        }
        if batch.ends {
            self.before.clear();
        }
    }

    fn taken(&self) -> Taken {
        Taken {
            kept: (self.connections.len() + self.before.len()) as u64,
            refused: self.refused,
        }
    }
}
