//! What the datapath is told: the difference of its tables, each row in its place among the steps.
//! A TAP is bound before it joins its bridge, and let go before it is removed; the tunnel's address
//! is taken after the kernel's own VXLAN devices let go of its port, and given up before they come.

use super::{Phase, Planner, stamp_of};
use crate::{Action, Subject};
use datapath::{Change, Domain, Place};
use model::IfName;

impl Planner<'_> {
    pub(super) fn datapath(&mut self) {
        let Some(held) = &self.observed.datapath else {
            return;
        };
        for change in held.changes_to(&self.want.tables) {
            if let Some((phase, subject)) = self.place_of(&change) {
                self.step(phase, subject, Action::ChangeDatapath(change));
            }
        }
        // Behind a TAP that is made anew there is nobody, whatever the datapath still has open.
        let again: Vec<_> = held.bindings.iter().collect();
        for (place, binding) in again {
            if self.want.tables.bindings.contains_key(place) && !self.outlasts(&place.tap) {
                let subject = self.subject_of_domain(binding.domain);
                let unbind = Change::Unbind {
                    place: place.clone(),
                };
                self.step(Phase::StaleRows, subject, Action::ChangeDatapath(unbind));
                self.bind_again(place);
            }
        }
    }

    fn bind_again(&mut self, place: &Place) {
        let wanted = self.want.tables.bindings.get(place).copied();
        let held = &self.observed.datapath;
        let held = held.as_ref().and_then(|held| held.bindings.get(place));
        // Another binding is a step already.
        if let Some(binding) = wanted.filter(|wanted| Some(wanted) == held) {
            let subject = self.subject_of_domain(binding.domain);
            let bind = Change::Bind {
                place: place.clone(),
                binding,
            };
            self.step(Phase::Bind, subject, Action::ChangeDatapath(bind));
        }
    }

    /// True if the interface is there and stays.
    fn outlasts(&self, tap: &IfName) -> bool {
        self.observed.links.contains_key(tap) && !self.gone.contains(tap)
    }

    /// When a change is made, and for whom; none if not now: of what EVPN did not tell yet nothing is
    /// removed.
    fn place_of(&self, change: &Change) -> Option<(Phase, Subject)> {
        let of = |domain: &Domain| self.subject_of_domain(*domain);
        let (phase, subject) = match change {
            Change::SetLocal(None) => (Phase::StaleRows, Subject::Host),
            Change::SetLocal(Some(_)) | Change::SetLimits(_) => (Phase::Local, Subject::Host),
            Change::Unbind { place } => (Phase::StaleRows, self.subject_of(&place.tap)),
            Change::Bind { binding, .. } => (Phase::Bind, of(&binding.domain)),
            Change::AddFlood { domain, .. } | Change::SetMac { domain, .. } => {
                (Phase::TunnelRows, of(domain))
            }
            Change::SetNeighbour {
                domain,
                ip,
                neighbour,
            } => match self.want.addresses_here.get(&(*domain, *ip)) {
                Some(subject) if neighbour.here => (Phase::LocalRows, *subject),
                _ => (Phase::RemoteRows, of(domain)),
            },
            Change::DeleteFlood { domain, .. } | Change::DeleteMac { domain, .. } => {
                let goes = self.complete || !self.want.domains.contains_key(domain);
                return goes.then(|| (Phase::StaleRows, of(domain)));
            }
            Change::DeleteNeighbour { domain, ip } => {
                let held = self.observed.datapath.as_ref()?;
                let here = held.neighbours.get(&(*domain, *ip))?.here;
                let goes = here || self.complete || !self.want.domains.contains_key(domain);
                return goes.then(|| (Phase::StaleRows, of(domain)));
            }
        };
        Some((phase, subject))
    }

    /// For whom a domain is, or was.
    fn subject_of_domain(&self, domain: Domain) -> Subject {
        if let Some(subject) = self.want.domains.get(&domain) {
            return *subject;
        }
        let held = self.observed.datapath.iter();
        let mut places = held.flat_map(|held| &held.bindings);
        let place = places.find(|(_, binding)| binding.domain == domain);
        let stamp = place.and_then(|(place, _)| stamp_of(self.observed.links.get(&place.tap)?));
        stamp.map_or(Subject::Host, |stamp| stamp.subject())
    }
}
