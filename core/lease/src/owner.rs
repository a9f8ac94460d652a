//! The side that holds.

use crate::{ACQUIRE, Ask, Claim, HOLD, LEASE, RENEW};
use model::{RouterId, VoterSet};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What one host wants to run, and what it may. It may have crashed before: what it does not know that it
/// holds, it does not hold.
#[derive(Debug, Clone, Default)]
pub struct Owner {
    sets: Vec<VoterSet>,
    wanted: BTreeMap<RouterId, Wanted>,
    /// Given up, and told until then.
    ended: BTreeMap<RouterId, (u64, Instant)>,
}

#[derive(Debug, Clone)]
struct Wanted {
    epoch: u64,
    /// When the last question was sent that a voter confirmed.
    sent: BTreeMap<model::Voter, Instant>,
}

impl Owner {
    /// By whose word from now on: a majority of each set is needed. None at all: nobody's.
    pub fn set_voters(&mut self, sets: Vec<VoterSet>) {
        self.sets = sets;
    }

    /// What it is to run from now on. What was given up must be silent already, because voters are told so.
    pub fn want(&mut self, now: Instant, claims: &BTreeMap<RouterId, u64>) {
        let before = std::mem::take(&mut self.wanted);
        for (router, wanted) in before {
            if claims.get(&router) == Some(&wanted.epoch) {
                self.wanted.insert(router, wanted);
            } else {
                // Longer than a voter keeps to it is of no use.
                self.ended.insert(router, (wanted.epoch, now + HOLD));
            }
        }
        for (router, epoch) in claims {
            self.wanted.entry(*router).or_insert(Wanted {
                epoch: *epoch,
                sent: BTreeMap::new(),
            });
        }
    }

    /// What to ask all voters now.
    pub fn ask(&mut self, now: Instant) -> Ask {
        self.ended.retain(|_, (_, until)| *until > now);
        let claim = |(router, epoch): (&RouterId, u64)| Claim {
            router: *router,
            epoch,
        };
        let claims = self.wanted.iter().map(|(r, wanted)| (r, wanted.epoch));
        let ended = self.ended.iter().map(|(r, (epoch, _))| (r, *epoch));
        Ask {
            claims: claims.map(claim).collect(),
            ended: ended.map(claim).collect(),
        }
    }

    /// What a voter confirmed of the question that was sent at `sent`, by our clock.
    pub fn confirmed(&mut self, voter: model::Voter, sent: Instant, claims: &[Claim]) {
        for claim in claims {
            if let Some(wanted) = self.wanted.get_mut(&claim.router)
                && wanted.epoch == claim.epoch
            {
                let last = wanted.sent.entry(voter).or_insert(sent);
                *last = sent.max(*last);
            }
        }
    }

    /// Until when a router may be run, if a majority ever confirmed it. May be in the past.
    pub fn until(&self, router: RouterId) -> Option<Instant> {
        let wanted = self.wanted.get(&router)?;
        let of_set = |set: &VoterSet| {
            let mut sent: Vec<Instant> = set
                .iter()
                .filter_map(|voter| wanted.sent.get(voter).copied())
                .collect();
            sent.sort_unstable();
            // Of a majority's the one that was sent first.
            let majority = set.len() / 2 + 1;
            sent.len().checked_sub(majority).map(|at| sent[at] + LEASE)
        };
        let all: Option<Vec<Instant>> = self.sets.iter().map(of_set).collect();
        all?.into_iter().min()
    }

    /// What may be run now, and until when.
    pub fn held(&self, now: Instant) -> BTreeMap<RouterId, Instant> {
        let held = |router: &RouterId| {
            let until = self.until(*router).filter(|until| *until > now)?;
            Some((*router, until))
        };
        self.wanted.keys().filter_map(held).collect()
    }

    /// How long to wait before the next question.
    pub fn pace(&self, now: Instant) -> Duration {
        match self.held(now).len() < self.wanted.len() {
            true => ACQUIRE,
            false => RENEW,
        }
    }
}
