//! What is kept of a VTEP whose routes a reflector took back all at once that keeps none of a VTEP whose
//! process died (FRR before 10.6): longer if the VTEP is a member.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::fake::{
    Bench, as_path, attribute, communities, mac_route, origin, reach, unreach, update,
};
use common::{config, vni};
use evpn::{Config, LocalEvi, LocalState, Members, PeerConfig, Role, Timing};
use model::{Encoding, MacAddr, Tag};
use rustbgpd_wire as wire;
use std::net::IpAddr;
use std::time::Duration;

const REFLECTOR: &str = "10.0.0.101";
const SECOND: &str = "10.0.0.102";
/// The VTEP that this is about.
const ONE: u8 = 1;
const OTHER: u8 = 2;
const VNI: u32 = 100;
const HOLD: Duration = Duration::from_millis(500);
const MEMBER_HOLD: Duration = Duration::from_secs(15);
const MOMENT: Duration = Duration::from_millis(1);

fn vtep_address(number: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, number])
}

/// A VTEP 10.0.0.3 that uses VNI 100, and knows that 10.0.0.1 is a member there.
struct Fabric {
    bench: Bench,
    reflector: IpAddr,
}

impl Fabric {
    fn new() -> Self {
        Self::with(Timing::default(), REFLECTOR, false)
    }

    fn with(timing: Timing, reflector: &str, keeps: bool) -> Self {
        let address = vtep_address(3);
        let mut bench = Bench::new(Config {
            timing,
            ..config(address, Role::Vtep)
        });
        let mut state = LocalState::empty(address);
        let mut evi = LocalEvi::new(Encoding::VlanBased, 1);
        evi.domains.insert(None);
        state.evis.insert(vni(VNI), evi);
        bench.speaker.set_local(bench.now, state).unwrap();
        let reflector = add_reflector(&mut bench, reflector, keeps);
        let mut fabric = Self { bench, reflector };
        fabric.members(&[ONE]);
        fabric
    }

    fn members(&mut self, members: &[u8]) {
        let vteps = members.iter().map(|number| vtep_address(*number)).collect();
        let members = Members::from([((vni(VNI), None), vteps)]);
        self.bench.speaker.set_members(self.bench.now, members);
        self.bench.drain();
    }

    /// The VTEP has two NICs, 1 and 2.
    fn with_two_nics() -> Self {
        let mut fabric = Self::new();
        fabric.says_all();
        assert_eq!(fabric.rows(), ["flood", "1", "2"]);
        fabric
    }

    fn says_all(&mut self) {
        self.says_flood(ONE);
        self.says_mac(ONE, 1);
        self.says_mac(ONE, 2);
    }

    fn says_flood(&mut self, vtep: u8) {
        self.says(vtep, &flood(vtep), &[pmsi(vtep, VNI)]);
    }

    fn says_mac(&mut self, vtep: u8, mac: u8) {
        self.says(vtep, &mac_route(vtep, mac, VNI), &[]);
    }

    fn says(&mut self, vtep: u8, route: &[u8], more: &[Vec<u8>]) {
        let list = [
            reach(&[10, 0, 0, vtep], route),
            origin(),
            as_path(),
            communities(VNI),
        ];
        let bytes = update(&[&list[..], more].concat());
        self.bench.send_raw(self.reflector, &bytes);
    }

    fn takes_back(&mut self, routes: &[Vec<u8>]) {
        let bytes = update(&[unreach(&routes.concat())]);
        self.bench.send_raw(self.reflector, &bytes);
    }

    /// All of the VTEP's routes, as when its process dies.
    fn takes_all_back(&mut self) {
        // In the order of FRR's table.
        self.takes_back(&[mac_route(ONE, 1, VNI), mac_route(ONE, 2, VNI)]);
        self.takes_back(&[flood(ONE)]);
    }

    fn passes(&mut self, time: Duration) {
        let until = self.bench.now + time;
        loop {
            let due = self.bench.speaker.poll_timeout();
            let due = due.filter(|at| *at <= until);
            self.bench.now = due.unwrap_or(until).max(self.bench.now);
            self.bench.speaker.handle_timeout(self.bench.now);
            // That sessions stay is no matter of these tests.
            for peer in self.bench.speaker.peers(self.bench.now) {
                if peer.state == evpn::SessionState::Established {
                    self.bench.send(peer.peer, &wire::Message::Keepalive);
                }
            }
            self.bench.drain();
            if due.is_none() {
                return;
            }
        }
    }

    /// Rows to the VTEP: to flood to it, and its MACs by their last octet.
    fn rows(&self) -> Vec<String> {
        let rows = &self.bench.speaker.forwarding().evis[&vni(VNI)];
        let one = vtep_address(ONE);
        let flood = rows.flood.iter().filter(|(_, vtep)| *vtep == one);
        let macs = rows.macs.iter().filter(|(_, vtep)| **vtep == one);
        flood
            .map(|_| "flood".to_owned())
            .chain(macs.map(|((_, mac), _)| mac.0[5].to_string()))
            .collect()
    }

    fn behind(&self, mac: u8) -> Option<IpAddr> {
        let rows = &self.bench.speaker.forwarding().evis[&vni(VNI)];
        let key: (Tag, MacAddr) = (None, MacAddr([2, 0, 0, 0, 0, mac]));
        rows.macs.get(&key).copied()
    }

    /// How many routes are kept as a last resort.
    fn kept(&self) -> usize {
        let routes = self.bench.speaker.routes(self.bench.now);
        routes.iter().filter(|r| r.long_lived_stale).count()
    }
}

/// One that keeps routes of those whose process died; or FRR, which says as much of itself.
fn add_reflector(bench: &mut Bench, address: &str, keeps: bool) -> IpAddr {
    if keeps {
        return bench.peer(address, PeerConfig::REFLECTOR);
    }
    // As FRR 8.4.4 says it.
    let family = wire::AddPathFamily {
        afi: wire::Afi::L2Vpn,
        safi: wire::Safi::Evpn,
        send_receive: wire::AddPathMode::Receive,
    };
    let adds_paths = wire::Capability::AddPath(vec![family]);
    bench.peer_adding(address, PeerConfig::REFLECTOR, adds_paths)
}

/// Type 3.
fn flood(vtep: u8) -> Vec<u8> {
    let rd = [0, 1, 10, 0, 0, vtep, 0, 1];
    [&[3, 17][..], &rd, &[0; 4], &[32, 10, 0, 0, vtep]].concat()
}

fn pmsi(vtep: u8, label: u32) -> Vec<u8> {
    let [_, a, b, c] = label.to_be_bytes();
    attribute(0xc0, 22, &[0, 6, a, b, c, 10, 0, 0, vtep])
}

#[test]
fn a_member_whose_process_died_is_waited_for() {
    let mut fabric = Fabric::with_two_nics();
    fabric.takes_all_back();
    fabric.passes(MEMBER_HOLD - MOMENT);
    assert_eq!(
        (fabric.rows(), fabric.kept()),
        (rows(&["flood", "1", "2"]), 3)
    );
    // It is back with one NIC less: that one goes when its time is over.
    fabric.says_flood(ONE);
    fabric.says_mac(ONE, 1);
    assert_eq!(fabric.rows(), ["flood", "1", "2"]);
    fabric.passes(MOMENT);
    assert_eq!((fabric.rows(), fabric.kept()), (rows(&["flood", "1"]), 0));
    fabric.passes(2 * MEMBER_HOLD);
    assert_eq!(fabric.rows(), ["flood", "1"]);
}

fn rows(text: &[&str]) -> Vec<String> {
    text.iter().map(ToString::to_string).collect()
}

#[test]
fn one_that_stays_away_goes_when_its_time_is_over() {
    let mut fabric = Fabric::with_two_nics();
    fabric.takes_all_back();
    fabric.passes(MEMBER_HOLD);
    assert_eq!(fabric.rows(), rows(&[]));
    assert_eq!(fabric.bench.info(fabric.reflector).routes, 0);
}

#[test]
fn whoever_is_no_member_is_not_waited_for() {
    for members in [&[][..], &[OTHER]] {
        let mut fabric = Fabric::with_two_nics();
        fabric.members(members);
        assert_eq!(fabric.rows(), ["flood", "1", "2"], "they are routes");
        fabric.takes_all_back();
        fabric.passes(HOLD - MOMENT);
        assert_eq!(fabric.rows(), ["flood", "1", "2"]);
        fabric.passes(MOMENT);
        assert_eq!(fabric.rows(), rows(&[]), "{members:?}");
    }
}

#[test]
fn the_word_that_one_is_no_member_any_more_ends_the_waiting() {
    // While it is waited for, and before that was decided: the last NIC of a host was deleted.
    for after in [Duration::ZERO, HOLD - MOMENT, HOLD, Duration::from_secs(5)] {
        let mut fabric = Fabric::with_two_nics();
        fabric.takes_all_back();
        fabric.passes(after);
        assert_eq!(fabric.rows(), ["flood", "1", "2"]);
        // Word of others changes nothing.
        fabric.members(&[ONE, OTHER]);
        assert_eq!(fabric.rows(), ["flood", "1", "2"]);
        fabric.members(&[OTHER]);
        assert_eq!(fabric.rows(), rows(&[]), "after {after:?}");
    }
    // The word that comes first takes no route: the reflector does.
    let mut fabric = Fabric::with_two_nics();
    fabric.members(&[]);
    fabric.passes(MEMBER_HOLD);
    assert_eq!(fabric.rows(), ["flood", "1", "2"]);
}

#[test]
fn membership_makes_no_row() {
    let mut fabric = Fabric::new();
    fabric.members(&[ONE, OTHER]);
    fabric.passes(MEMBER_HOLD);
    assert_eq!(fabric.rows(), rows(&[]));
    fabric.says_all();
    fabric.takes_all_back();
    fabric.passes(MEMBER_HOLD);
    fabric.members(&[ONE]);
    assert_eq!(fabric.rows(), rows(&[]));
}

#[test]
fn a_nic_that_is_deleted_is_not_waited_for() {
    let mut fabric = Fabric::with_two_nics();
    fabric.takes_back(&[mac_route(ONE, 1, VNI)]);
    fabric.passes(HOLD);
    assert_eq!(fabric.rows(), ["flood", "2"]);
    // Nor is one that was deleted well before the process died, or after it was back.
    fabric.takes_back(&[mac_route(ONE, 2, VNI)]);
    fabric.passes(HOLD - MOMENT);
    fabric.says_mac(ONE, 3);
    fabric.passes(MOMENT);
    assert_eq!(fabric.rows(), ["flood", "3"]);
    fabric.takes_back(&[flood(ONE), mac_route(ONE, 3, VNI)]);
    fabric.passes(Duration::from_secs(1));
    fabric.says_all();
    fabric.takes_back(&[mac_route(ONE, 1, VNI)]);
    fabric.passes(HOLD);
    assert_eq!(fabric.rows(), ["flood", "2", "3"], "3 is a leftover");
    fabric.passes(MEMBER_HOLD);
    assert_eq!(fabric.rows(), ["flood", "2"]);
}

#[test]
fn a_fresh_claim_wins() {
    let mut fabric = Fabric::with_two_nics();
    fabric.says_flood(OTHER);
    fabric.takes_all_back();
    fabric.passes(Duration::from_secs(1));
    // The same MAC, with no greater sequence and at a higher address: fresh beats kept.
    fabric.says_mac(OTHER, 1);
    assert_eq!(fabric.behind(1), Some(vtep_address(OTHER)));
    fabric.passes(MEMBER_HOLD);
    assert_eq!(fabric.behind(1), Some(vtep_address(OTHER)));
    assert_eq!(fabric.rows(), rows(&[]));
}

/// Of one that is on its way back the Type-3 route may be there when the others are judged.
#[test]
fn what_is_still_to_come_of_one_that_is_coming_back_is_waited_for() {
    let mut fabric = Fabric::with_two_nics();
    fabric.takes_all_back();
    fabric.passes(HOLD - MOMENT);
    fabric.says_flood(ONE);
    fabric.says_mac(ONE, 1);
    fabric.passes(Duration::from_secs(1));
    assert_eq!(fabric.rows(), ["flood", "1", "2"]);
}

/// Each death has its own time.
#[test]
fn one_that_dies_again_is_waited_for_again() {
    let mut fabric = Fabric::with_two_nics();
    fabric.takes_all_back();
    fabric.passes(MEMBER_HOLD - MOMENT);
    fabric.says_all();
    fabric.takes_all_back();
    fabric.passes(MEMBER_HOLD - MOMENT);
    assert_eq!(fabric.rows(), ["flood", "1", "2"]);
    fabric.passes(MOMENT);
    assert_eq!(fabric.rows(), rows(&[]));
    // The same within the shorter time, of whoever is no member.
    let mut fabric = Fabric::with_two_nics();
    fabric.members(&[]);
    fabric.takes_all_back();
    fabric.passes(HOLD - MOMENT);
    fabric.says_all();
    fabric.takes_all_back();
    fabric.passes(HOLD - MOMENT);
    assert_eq!(fabric.rows(), ["flood", "1", "2"]);
    fabric.passes(MOMENT);
    assert_eq!(fabric.rows(), rows(&[]));
}

/// What a reflector says that keeps the routes of the dead itself is what is: its withdrawal counts at
/// once, and what another took back is not waited for beside it.
#[test]
fn beside_a_reflector_that_keeps_nobody_is_waited_for() {
    let mut fabric = Fabric::with_two_nics();
    let keeper = add_reflector(&mut fabric.bench, SECOND, true);
    let end_of_rib = update(&[unreach(&[])]);
    fabric.bench.send_raw(keeper, &end_of_rib);
    fabric.takes_all_back();
    fabric.passes(HOLD);
    assert_eq!(fabric.rows(), rows(&[]));
    // But it has to be there.
    let mut fabric = Fabric::with_two_nics();
    let keeper = add_reflector(&mut fabric.bench, SECOND, true);
    fabric.bench.send_raw(keeper, &end_of_rib);
    let (conn, now) = (fabric.bench.conn(keeper), fabric.bench.now);
    fabric.bench.speaker.handle_disconnected(now, conn, "reset");
    fabric.takes_all_back();
    fabric.passes(Duration::from_secs(5));
    assert_eq!(fabric.rows(), ["flood", "1", "2"]);
}

#[test]
fn a_reflector_that_keeps_means_what_it_says() {
    let mut fabric = Fabric::with(Timing::default(), REFLECTOR, true);
    fabric.says_all();
    fabric.takes_all_back();
    assert_eq!(fabric.rows(), rows(&[]));
}

#[test]
fn without_time_for_members_they_are_as_anybody() {
    let timing = Timing {
        member_hold: HOLD,
        ..Timing::default()
    };
    let mut fabric = Fabric::with(timing, REFLECTOR, false);
    fabric.says_all();
    fabric.takes_all_back();
    fabric.passes(HOLD);
    assert_eq!(fabric.rows(), rows(&[]));
}

/// In a bundle each broadcast domain is for itself.
#[test]
fn a_member_of_one_broadcast_domain_is_none_of_another() {
    let mut fabric = Fabric::with_two_nics();
    let tag: Tag = Some(model::VlanId::new(10).unwrap());
    let elsewhere = [
        ((vni(VNI), tag), [vtep_address(ONE)].into()),
        ((vni(VNI + 1), None), [vtep_address(ONE)].into()),
    ];
    let now = fabric.bench.now;
    fabric.bench.speaker.set_members(now, elsewhere.into());
    fabric.takes_all_back();
    fabric.passes(HOLD);
    assert_eq!(fabric.rows(), rows(&[]));
}

/// If all processes die at once, the reflector has nothing of those that are not back yet.
#[test]
fn a_speaker_that_starts_waits_for_members() {
    let told_all = |keeps: bool| {
        let mut fabric = Fabric::with(Timing::default(), REFLECTOR, keeps);
        fabric.members(&[ONE, OTHER]);
        fabric.says_flood(ONE);
        let end_of_rib = update(&[unreach(&[])]);
        fabric.bench.send_raw(fabric.reflector, &end_of_rib);
        fabric
    };
    let complete = |fabric: &Fabric| fabric.bench.speaker.forwarding().complete;
    let mut fabric = told_all(false);
    fabric.passes(Duration::from_secs(2));
    assert!(!complete(&fabric), "the other has said nothing");
    fabric.says_flood(OTHER);
    fabric.passes(HOLD - MOMENT);
    assert!(!complete(&fabric), "its MACs are still to come");
    fabric.passes(MOMENT);
    assert!(complete(&fabric));
    // One that stays away is not waited for without end, nor one that is a member no longer.
    let mut fabric = told_all(false);
    fabric.passes(MEMBER_HOLD - MOMENT);
    assert!(!complete(&fabric));
    fabric.passes(MOMENT);
    assert!(complete(&fabric));
    let mut fabric = told_all(false);
    fabric.passes(HOLD);
    fabric.members(&[ONE]);
    assert!(complete(&fabric));
    // A reflector that keeps them has told all there is.
    assert!(complete(&told_all(true)));
}
