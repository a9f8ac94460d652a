//! When a move of a NIC or of a router goes on, and when it is taken back to where it was.

use crate::RouterStep;
use model::{Liveness, Move, MovePhase, Nic, Router, UnixMillis};
use serde::{Deserialize, Serialize};

/// The new host has to have made the port after this long, in milliseconds.
pub const PROVISION_MILLIS: u64 = 60_000;
/// The new host has to have opened and announced it after this long, in milliseconds.
pub const SWITCH_MILLIS: u64 = 30_000;
/// The new host has to have a router ready after this long, in milliseconds.
pub const PREPARE_MILLIS: u64 = 10_000;
/// A host that did not make a router ready is asked again after this long, in milliseconds, and earlier only if no
/// other can have the router. What is wrong with a host is often a bridge that somebody has to make.
pub const TRY_AGAIN_MILLIS: u64 = 600_000;
/// The old host's word that it lost the NIC is waited for this long, in milliseconds.
pub const SETTLE_MILLIS: u64 = 5_000;

/// How a host of a move is, as it reported last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Whether it is heard of.
    pub liveness: Liveness,
    /// It made true what is wanted of the NIC there: the port, or that there is none.
    pub made: bool,
    /// What is wrong with the NIC there.
    pub trouble: Option<String>,
    /// It says that another host announces the NIC and wins.
    pub lost: bool,
}

/// What comes next in a move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoveStep {
    /// The new host is ready: the NIC is there from now on.
    Switch,
    /// The new host announced it: the old one removes its port.
    Retire,
    /// The new host does not do it: the NIC is where it was.
    Back {
        /// Why.
        reason: String,
    },
    /// The other host has removed its port.
    Finish,
}

/// What comes next in the move of `nic`, of whose hosts these are the reports; nothing for now, or
/// nothing at all if it does not move. `other` is none if that host was removed.
pub fn next_step(
    nic: &Nic,
    here: &Seat,
    other: Option<&Seat>,
    now: UnixMillis,
) -> Option<MoveStep> {
    let moving = nic.moving.as_ref()?;
    let late = |limit| now.0.saturating_sub(moving.since.0) > limit;
    match (moving.phase, other) {
        (MovePhase::Retire, None) => Some(MoveStep::Finish),
        (MovePhase::Retire, Some(other)) => other.made.then_some(MoveStep::Finish),
        // Its host cannot be removed meanwhile.
        (MovePhase::Provision | MovePhase::Switch, None) => None,
        (MovePhase::Provision, Some(new)) => provision(new, late(PROVISION_MILLIS)),
        (MovePhase::Switch, Some(old)) => switch(moving, here, old, now),
    }
}

/// How the move of `router` ends, of whose hosts these are the reports; nothing for now, or nothing at all
/// if it does not move. `new` is none if that host was removed.
pub fn next_router_step(
    router: &Router,
    old: Liveness,
    new: Option<&Seat>,
    now: UnixMillis,
) -> Option<RouterStep> {
    router.goes_to()?;
    let moving = router.moving.as_ref()?;
    let stay = |reason| Some(RouterStep::Stay { reason });
    let Some(new) = new else {
        return stay("the new host was removed".to_owned());
    };
    // Nothing runs that had to go on meanwhile.
    if old != Liveness::Up || (new.made && new.trouble.is_none()) {
        return Some(RouterStep::Switch);
    }
    if new.liveness == Liveness::Down {
        return stay("the new host stopped checking in".to_owned());
    }
    let late = now.0.saturating_sub(moving.since.0) > PREPARE_MILLIS;
    late.then(|| RouterStep::Stay {
        reason: failing(new, "make it ready", PREPARE_MILLIS),
    })
}

fn provision(new: &Seat, late: bool) -> Option<MoveStep> {
    if new.liveness == Liveness::Down {
        let reason = "the new host stopped checking in".to_owned();
        return Some(MoveStep::Back { reason });
    }
    if new.made && new.trouble.is_none() {
        return Some(MoveStep::Switch);
    }
    late.then(|| MoveStep::Back {
        reason: failing(new, "make the port", PROVISION_MILLIS),
    })
}

fn switch(moving: &Move, new: &Seat, old: &Seat, now: UnixMillis) -> Option<MoveStep> {
    let late = |limit| now.0.saturating_sub(moving.since.0) > limit;
    if new.made && new.trouble.is_none() {
        // One that is not heard of cannot say so; its routes lose all the same.
        let settled = old.lost || old.liveness != Liveness::Up || late(SETTLE_MILLIS);
        return settled.then_some(MoveStep::Retire);
    }
    // Without the old host there is nothing to go back to.
    (late(SWITCH_MILLIS) && old.liveness == Liveness::Up).then(|| MoveStep::Back {
        reason: failing(new, "open the port", SWITCH_MILLIS),
    })
}

fn failing(host: &Seat, what: &str, limit_millis: u64) -> String {
    match (&host.trouble, host.liveness) {
        (Some(trouble), _) => trouble.clone(),
        (None, Liveness::Down) => {
            format!("the new host stopped checking in before it could {what}")
        }
        (None, _) => format!("the new host did not {what} in {} s", limit_millis / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Attachment, HostId, Meta, Name, NicId, Placement, SubnetId};

    fn nic(phase: Option<MovePhase>) -> Nic {
        let at = |host| Placement {
            host: HostId::from_random(host),
            attachment: Attachment::Tap,
        };
        Nic {
            id: NicId::from_random(1),
            subnet: SubnetId::from_random(2),
            name: Name::new("a1").unwrap(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            addresses: Vec::new(),
            placement: at(3),
            moves: 0,
            moving: phase.map(|phase| Move {
                phase,
                other: at(4),
                started: UnixMillis(0),
                since: UnixMillis(1_000),
                taken_back: String::new(),
            }),
            user_data: None,
            meta: Meta::default(),
        }
    }

    const UP: Seat = Seat {
        liveness: Liveness::Up,
        made: false,
        trouble: None,
        lost: false,
    };

    fn step(phase: MovePhase, here: &Seat, other: &Seat, after: u64) -> Option<MoveStep> {
        let now = UnixMillis(1_000 + after);
        next_step(&nic(Some(phase)), here, Some(other), now)
    }

    #[test]
    fn a_move_goes_on_when_its_hosts_are_ready_and_back_when_they_are_not() {
        use MovePhase::{Provision, Retire, Switch};
        let made = Seat { made: true, ..UP };
        let lost = Seat { lost: true, ..UP };
        let trouble = |made| Seat {
            trouble: Some("no such interface".to_owned()),
            made,
            ..UP
        };
        let down = Seat {
            liveness: Liveness::Down,
            ..UP
        };
        let back = |reason: &str| {
            let reason = reason.to_owned();
            Some(MoveStep::Back { reason })
        };
        assert_eq!(next_step(&nic(None), &UP, Some(&UP), UnixMillis(9)), None);

        assert_eq!(step(Provision, &UP, &UP, 60_000), None);
        assert_eq!(step(Provision, &UP, &made, 0), Some(MoveStep::Switch));
        assert_eq!(step(Provision, &down, &made, 0), Some(MoveStep::Switch));
        assert_eq!(step(Provision, &UP, &trouble(true), 0), None);
        assert_eq!(
            step(Provision, &UP, &trouble(true), 60_001),
            back("no such interface")
        );
        assert_eq!(
            step(Provision, &UP, &UP, 60_001),
            back("the new host did not make the port in 60 s")
        );
        assert_eq!(
            step(Provision, &UP, &down, 0),
            back("the new host stopped checking in")
        );

        assert_eq!(step(Switch, &UP, &lost, 5_001), None);
        assert_eq!(step(Switch, &made, &UP, 5_000), None);
        assert_eq!(step(Switch, &made, &UP, 5_001), Some(MoveStep::Retire));
        assert_eq!(step(Switch, &made, &lost, 0), Some(MoveStep::Retire));
        assert_eq!(step(Switch, &made, &down, 0), Some(MoveStep::Retire));
        assert_eq!(step(Switch, &down, &down, 99_999), None);
        assert_eq!(
            step(Switch, &down, &UP, 30_001),
            back("the new host stopped checking in before it could open the port")
        );

        assert_eq!(step(Retire, &UP, &down, 99_999), None);
        assert_eq!(step(Retire, &UP, &made, 0), Some(MoveStep::Finish));
        let nic = nic(Some(Retire));
        let alone = next_step(&nic, &UP, None, UnixMillis(0));
        assert_eq!(alone, Some(MoveStep::Finish));
    }

    #[test]
    fn a_router_switches_when_it_is_ready_and_stays_where_it_cannot_be() {
        use Liveness::{Down, Up};
        let mut router = Router {
            id: model::RouterId::from_random(1),
            vpc: model::VpcId::from_random(2),
            name: Name::new("gw").unwrap(),
            legs: Vec::new(),
            uplink: None,
            routes: Vec::new(),
            source: model::SourcePolicy::None,
            source_v6: false,
            forwards: Vec::new(),
            placement: model::RouterPlacement {
                host: HostId::from_random(3),
                epoch: 1,
            },
            moving: Some(model::RouterMove {
                to: HostId::from_random(4),
                since: UnixMillis(1_000),
                taken_back: String::new(),
                tried: std::collections::BTreeMap::new(),
            }),
            standby: model::Standby::Off,
            meta: Meta::default(),
        };
        let after = |router: &Router, old, new: Option<&Seat>, after: u64| {
            next_router_step(router, old, new, UnixMillis(1_000 + after))
        };
        let made = Seat { made: true, ..UP };
        let trouble = Seat {
            trouble: Some("br-ext does not exist".to_owned()),
            made: true,
            ..UP
        };
        let down = Seat {
            liveness: Down,
            ..UP
        };
        let stay = |reason: &str| {
            let reason = reason.to_owned();
            Some(RouterStep::Stay { reason })
        };
        assert_eq!(after(&router, Up, Some(&UP), 10_000), None);
        assert_eq!(after(&router, Up, Some(&made), 0), Some(RouterStep::Switch));
        assert_eq!(after(&router, Down, Some(&UP), 0), Some(RouterStep::Switch));
        assert_eq!(after(&router, Up, Some(&trouble), 10_000), None);
        let late = after(&router, Up, Some(&trouble), 10_001);
        assert_eq!(late, stay("br-ext does not exist"));
        let late = after(&router, Up, Some(&UP), 10_001);
        assert_eq!(late, stay("the new host did not make it ready in 10 s"));
        let gone = after(&router, Up, Some(&down), 0);
        assert_eq!(gone, stay("the new host stopped checking in"));
        assert_eq!(
            after(&router, Up, None, 0),
            stay("the new host was removed")
        );
        router.moving.as_mut().unwrap().taken_back = "no".to_owned();
        assert_eq!(after(&router, Up, Some(&made), 0), None);
    }
}
