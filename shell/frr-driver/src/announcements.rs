//! When a difference between what is announced and what is here is worth a repair.

use frr::{Differences, Route};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long FRR may take to announce what changed, or to forget it.
const PATIENCE: Duration = Duration::from_secs(5);
/// First wait between repairs that did not help; doubles ...
const PAUSE_FIRST: Duration = Duration::from_secs(30);
/// ... up to this.
const PAUSE_MOST: Duration = Duration::from_secs(900);
/// So many repairs that did not help are worth a word.
const TOLD_AFTER: u32 = 2;

/// What is to be started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repair {
    /// zebra, which lacks something of the kernel's.
    Zebra,
    /// bgpd, which has something that is gone.
    Bgpd,
    /// Both: one alone has not helped.
    Both,
}

/// Differences and since when there are.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    since: BTreeMap<(bool, Route), Instant>,
    /// Repairs since all was as it should be.
    repairs: u32,
    not_before: Option<Instant>,
}

impl Announcements {
    /// True if there was a difference at the last look.
    pub(crate) fn are_unlike(&self) -> bool {
        !self.since.is_empty() || self.repairs > 0
    }

    /// True if repairs have not helped.
    pub(crate) const fn given_up(&self) -> bool {
        self.repairs >= TOLD_AFTER
    }

    /// Takes in a look; what is to be done about it, if anything is.
    pub(crate) fn found(&mut self, differences: &Differences, now: Instant) -> Option<Repair> {
        if differences.is_empty() {
            *self = Self::default();
            return None;
        }
        let missing = differences.missing.iter().map(|route| (false, *route));
        let stale = differences.stale.iter().map(|route| (true, *route));
        let since = missing.chain(stale).map(|key| {
            let at = self.since.get(&key).copied().unwrap_or(now);
            (key, at)
        });
        self.since = since.collect();
        let stay = |(_, at): &(&(bool, Route), &Instant)| now.duration_since(**at) >= PATIENCE;
        let staying: Vec<bool> = self
            .since
            .iter()
            .filter(stay)
            .map(|(key, _)| key.0)
            .collect();
        if staying.is_empty() || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let repair = match (self.repairs, staying.contains(&true)) {
            (1.., _) => Repair::Both,
            (0, true) => Repair::Bgpd,
            (0, false) => Repair::Zebra,
        };
        let pause = PAUSE_FIRST * 2_u32.saturating_pow(self.repairs.min(10));
        self.repairs += 1;
        self.not_before = (self.repairs > 1).then(|| now + pause.min(PAUSE_MOST));
        self.since.clear();
        Some(repair)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Vni;

    #[test]
    fn what_stays_is_repaired_more_thoroughly_and_less_often_each_time() {
        let route = Route::Instance(Vni::new(7).unwrap());
        let missing = Differences {
            missing: [route].into(),
            ..Differences::default()
        };
        let stale = Differences {
            stale: [route].into(),
            ..Differences::default()
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut all = Announcements::default();
        assert_eq!(all.found(&missing, at(0)), None);
        assert_eq!(all.found(&missing, at(4)), None);
        // Another difference than before has its own time.
        assert_eq!(all.found(&stale, at(5)), None);
        assert_eq!(all.found(&stale, at(10)), Some(Repair::Bgpd));
        assert!(all.are_unlike() && !all.given_up());
        assert_eq!(all.found(&stale, at(11)), None);
        assert_eq!(all.found(&stale, at(16)), Some(Repair::Both));
        assert!(all.given_up());
        for seconds in 17..76 {
            assert_eq!(all.found(&stale, at(seconds)), None, "{seconds}");
        }
        assert_eq!(all.found(&stale, at(76)), Some(Repair::Both));
        assert_eq!(all.found(&Differences::default(), at(77)), None);
        assert!(!all.are_unlike() && !all.given_up());
        assert_eq!(all.found(&missing, at(80)), None);
        assert_eq!(all.found(&missing, at(85)), Some(Repair::Zebra));
    }
}
