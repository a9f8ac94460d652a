//! The side that confirms.

use crate::{Ask, Claim, HOLD, MAX_REMEMBERED};
use model::{HostId, RouterId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// One voter. Its answers are safe whatever comes, in whatever order; what it must not do is forget: one
/// that may have confirmed something before it started is made by [`Voter::forgetful`].
#[derive(Debug, Clone)]
pub struct Voter {
    /// It may have confirmed anything to anybody up to then.
    quiet_until: Option<Instant>,
    routers: BTreeMap<RouterId, Vote>,
    heard: BTreeMap<HostId, Instant>,
}

/// What outlives a voter: to whom it is bound. To be kept before an answer is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// The highest epoch asked for.
    pub epoch: u64,
    /// By whom.
    pub owner: HostId,
    /// The last one that was confirmed.
    pub bound: Option<HostId>,
}

#[derive(Debug, Clone)]
struct Vote {
    epoch: u64,
    owner: HostId,
    bound: Option<Bound>,
    asked: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Bound {
    owner: HostId,
    epoch: u64,
    until: Instant,
}

impl Voter {
    /// One that remembers all it ever promised. For a while it takes each for just confirmed.
    pub fn remembering(now: Instant, promises: BTreeMap<RouterId, Promise>) -> Self {
        let routers = promises.into_iter().map(|(router, promise)| {
            let bound = promise.bound.map(|owner| Bound {
                owner,
                // The one that still holds may be of a lower epoch; it ends by itself.
                epoch: promise.epoch,
                until: now + HOLD,
            });
            let vote = Vote {
                epoch: promise.epoch,
                owner: promise.owner,
                bound,
                asked: now,
            };
            (router, vote)
        });
        Self {
            quiet_until: None,
            routers: routers.collect(),
            heard: BTreeMap::new(),
        }
    }

    /// One that remembers nothing: it confirms nothing before all that it may have confirmed has run out.
    pub fn forgetful(now: Instant) -> Self {
        Self {
            quiet_until: Some(now + HOLD),
            routers: BTreeMap::new(),
            heard: BTreeMap::new(),
        }
    }

    /// What of a question is confirmed.
    pub fn answer(&mut self, now: Instant, from: HostId, ask: &Ask) -> Vec<Claim> {
        self.heard.insert(from, now);
        for claim in &ask.ended {
            self.end(from, claim);
        }
        let confirmed = |claim: &&Claim| self.confirms(now, from, claim);
        let confirmed = ask.claims.iter().filter(confirmed).copied().collect();
        self.forget(now);
        confirmed
    }

    /// What has to be kept so that a later voter may be [`Voter::remembering`].
    pub fn promises(&self) -> BTreeMap<RouterId, Promise> {
        let promises = self.routers.iter().map(|(router, vote)| {
            let promise = Promise {
                epoch: vote.epoch,
                owner: vote.owner,
                bound: vote.bound.map(|bound| bound.owner),
            };
            (*router, promise)
        });
        promises.collect()
    }

    /// Hosts that asked within a lease.
    pub fn heard(&self, now: Instant) -> BTreeSet<HostId> {
        let lately = |at: &Instant| now.saturating_duration_since(*at) < HOLD;
        let heard = self.heard.iter().filter(|(_, at)| lately(at));
        heard.map(|(host, _)| *host).collect()
    }

    /// When a host asked last; none if it never did.
    pub fn last_heard(&self, host: HostId) -> Option<Instant> {
        self.heard.get(&host).copied()
    }

    /// Forgets when hosts asked that are not among these.
    pub fn keep_hosts(&mut self, hosts: &BTreeSet<HostId>) {
        self.heard.retain(|host, _| hosts.contains(host));
    }

    fn confirms(&mut self, now: Instant, from: HostId, claim: &Claim) -> bool {
        let vote = self.routers.entry(claim.router).or_insert(Vote {
            epoch: claim.epoch,
            owner: from,
            bound: None,
            asked: now,
        });
        vote.asked = now;
        let bound = vote.bound.filter(|bound| bound.until > now);
        let same = claim.epoch == vote.epoch && vote.owner == from;
        if claim.epoch < vote.epoch {
            return false;
        }
        if !same {
            // One epoch is of one host, unless the server was restored from a backup.
            if claim.epoch == vote.epoch && bound.is_some_and(|bound| bound.owner != from) {
                return false;
            }
            (vote.epoch, vote.owner) = (claim.epoch, from);
        }
        let free = bound.is_none_or(|bound| bound.owner == from);
        if !free || self.quiet_until.is_some_and(|until| until > now) {
            return false;
        }
        vote.bound = Some(Bound {
            owner: from,
            epoch: claim.epoch,
            until: now + HOLD,
        });
        true
    }

    fn end(&mut self, from: HostId, claim: &Claim) {
        let Some(vote) = self.routers.get_mut(&claim.router) else {
            return;
        };
        let by = |bound: &Bound| bound.owner == from && bound.epoch <= claim.epoch;
        if vote.bound.as_ref().is_some_and(by) {
            vote.bound = None;
        }
    }

    fn forget(&mut self, now: Instant) {
        while self.routers.len() > MAX_REMEMBERED {
            let free = |vote: &Vote| vote.bound.is_none_or(|bound| bound.until <= now);
            let oldest = self
                .routers
                .iter()
                .filter(|(_, vote)| free(vote))
                .min_by_key(|(_, vote)| vote.asked);
            let Some(router) = oldest.map(|(router, _)| *router) else {
                return;
            };
            self.routers.remove(&router);
        }
    }
}
