//! Who has a MAC: claims to it, and which of them wins (RFC 7432 §7.7 and §15, RFC 9721).

use crate::codec::RouteKey;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

/// Where a MAC is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holder {
    /// Behind this host.
    Here,
    /// Behind another VTEP.
    Vtep(IpAddr),
}

impl Holder {
    /// The other VTEP.
    pub(crate) fn remote(self) -> Option<IpAddr> {
        match self {
            Self::Here => None,
            Self::Vtep(vtep) => Some(vtep),
        }
    }
}

/// Who says to have a MAC.
#[derive(Debug, Default)]
pub(crate) struct Contest {
    pub(crate) local: Option<LocalClaim>,
    pub(crate) remote: BTreeMap<RouteKey, Claim>,
    /// Who had the MAC when it was last settled.
    pub(crate) settled: Option<Holder>,
    /// Who keeps the MAC whatever anybody says: it is a duplicate, and frozen.
    pub(crate) pinned: Option<Holder>,
}

/// What this host says of a MAC behind it.
#[derive(Debug)]
pub(crate) struct LocalClaim {
    pub(crate) claim: Claim,
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Since when the MAC has been held, or lost to another VTEP.
    pub(crate) settled_at: Instant,
}

/// One VTEP's claim to a MAC, or to a MAC and an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) vtep: IpAddr,
    pub(crate) sequence: u32,
    pub(crate) sticky: bool,
    pub(crate) ip: Option<IpAddr>,
    /// The address is of a router (RFC 9047, R).
    pub(crate) router: bool,
    /// The address is of this MAC and no other (RFC 9047, I).
    pub(crate) immutable: bool,
    /// Kept as a last resort (RFC 9494 §4.3).
    pub(crate) last_resort: bool,
    pub(crate) since: Instant,
}

type Rank = (bool, bool, u32, Reverse<IpAddr>);

impl Claim {
    /// What is not long stale; then RFC 7432 §15: the static bit, then the higher sequence, then
    /// the lower VTEP address.
    pub(crate) fn rank(&self) -> Rank {
        let fresh = !self.last_resort;
        (fresh, self.sticky, self.sequence, Reverse(self.vtep))
    }

    /// The same among claims to an address, which one immutable binding decides (RFC 9047 §3.2).
    pub(crate) fn address_rank(&self) -> (bool, Rank) {
        (self.immutable, self.rank())
    }

    /// Which rule decided against this claim.
    pub(crate) fn lost_by(&self, winner: &Self) -> &'static str {
        if self.last_resort != winner.last_resort {
            "fresh over long stale"
        } else if self.sticky != winner.sticky {
            "static bit"
        } else if self.sequence != winner.sequence {
            "mobility sequence"
        } else if self.vtep != winner.vtep {
            "lower VTEP address"
        } else {
            "same VTEP"
        }
    }

    /// The sequence of a claim that takes over from this one. At the end of the numbers there is
    /// no next: the VTEP address decides until all claims are withdrawn.
    pub(crate) fn next_sequence(&self) -> u32 {
        self.sequence.saturating_add(1)
    }
}

impl Contest {
    pub(crate) fn is_empty(&self) -> bool {
        self.local.is_none() && self.remote.is_empty()
    }

    pub(crate) fn best_remote(&self) -> Option<&Claim> {
        self.remote.values().max_by_key(|claim| claim.rank())
    }

    /// The claim that wins, frozen or not.
    pub(crate) fn winner(&self) -> Option<&Claim> {
        let local = self.local.as_ref().map(|local| &local.claim);
        match (local, self.best_remote()) {
            (Some(local), Some(remote)) if local.rank() < remote.rank() => Some(remote),
            (Some(local), _) => Some(local),
            (None, remote) => remote,
        }
    }

    /// Who has the MAC; nobody if nobody claims it.
    pub(crate) fn holder(&self) -> Option<Holder> {
        if self.is_empty() {
            return None;
        }
        if self.pinned.is_some() {
            return self.pinned;
        }
        let winner = self.winner()?;
        let here = self.local.as_ref().map(|local| local.claim.vtep);
        Some(match winner.vtep {
            vtep if Some(vtep) == here => Holder::Here,
            vtep => Holder::Vtep(vtep),
        })
    }

    /// VTEPs that claim the MAC although another one's claim is static, and whether one of theirs
    /// is static too.
    pub(crate) fn challengers(&self) -> (BTreeSet<IpAddr>, bool) {
        let Some(winner) = self.winner().filter(|winner| winner.sticky) else {
            return (BTreeSet::new(), false);
        };
        let local = self.local.as_ref().map(|local| &local.claim);
        let others = || {
            let all = self.remote.values().chain(local);
            all.filter(|claim| claim.vtep != winner.vtep)
        };
        let sticky = others().any(|claim| claim.sticky);
        (others().map(|claim| claim.vtep).collect(), sticky)
    }
}
