//! A MAC that two hosts claim: whoever won it keeps it, also over a restart.

use super::evpn::{C1, NOBODY, established, nic, rows_become, vpc};
use super::guest::{Guest, REFLECTOR, Setup};
use evpn::LocalMac;
use lab::{Lab, Ping, text_of};
use std::net::Ipv4Addr;
use std::time::Duration;

const MAC: &str = "02:00:00:00:01:0b";
/// Where the other claim comes from.
const OTHER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 4);

/// What c1's speaker says of the MAC's sequence.
fn announced(lab: &Lab, sequence: u64) {
    lab.eventually("c1 announces its NIC with that sequence", || {
        let routes = lab.json("c1", "vpc -o json evpn routes");
        let mut own = routes.as_array().into_iter().flatten();
        let is_it = |route: &&serde_json::Value| {
            route["mac"] == MAC && route["next_hop"] == C1 && route["mobility_sequence"] == sequence
        };
        match own.find(is_it) {
            Some(_) => Ok(()),
            None => Err(text_of(&lab.try_sh("c1", "vpc evpn routes"))),
        }
    });
}

#[test]
fn a_nic_that_was_won_from_another_claim_is_not_lost_by_a_restart() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,r1"]);
    let vni = vpc(&lab, "blue");
    nic(&lab, "blue", "a2", "c2", 12);
    // So that c1 hears of the instance before it has the MAC.
    nic(&lab, "blue", "a3", "c1", 13);
    lab.kill("r1", "agent");
    let mut claim = Setup::of(&lab, OTHER);
    let how = LocalMac {
        sequence: 4,
        ..LocalMac::default()
    };
    let mac = MAC.parse().expect("a MAC");
    claim.claim(u32::try_from(vni).expect("24 bits"), mac, how);
    let guest = Guest::start(&lab, "r1", &claim);
    let of_c1 = [(NOBODY, C1), ("02:00:00:00:01:0d", C1)];
    let claimed = [of_c1, [(NOBODY, "100.64.0.4"), (MAC, "100.64.0.4")]].concat();
    rows_become(&lab, "c2", vni, &claimed);
    nic(&lab, "blue", "a1", "c1", 11);
    let won = [of_c1, [(NOBODY, "100.64.0.4"), (MAC, C1)]].concat();
    rows_become(&lab, "c2", vni, &won);
    announced(&lab, 5);
    let kept = "/var/lib/vpc/agent/mobility-sequences";
    lab.eventually("it is kept", || {
        let text = text_of(&lab.try_sh("c1", &format!("cat {kept}")));
        match text.contains(MAC) {
            true => Ok(()),
            false => Err(text),
        }
    });
    lab.reaches("c1/blue-a1", "10.4.1.12");
    let ping = Ping::start(&lab, "c1/blue-a1", "10.4.1.12", Duration::from_millis(10));
    for _ in 0..3 {
        lab.kill("c1", "agent");
        lab.start("c1", "agent");
        established(&lab, "c1", &[REFLECTOR]);
        announced(&lab, 5);
    }
    rows_become(&lab, "c2", vni, &won);
    let result = ping.stop();
    assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
    // It goes with the NIC.
    lab.admin("nic delete blue/web/a1 --wait");
    lab.eventually("nothing is kept of a NIC that is gone", || {
        let text = lab.sh("c1", &format!("cat {kept}"));
        match text.contains(MAC) {
            false => Ok(()),
            true => Err(text),
        }
    });
    rows_become(&lab, "c2", vni, &claimed);
    drop(guest);
    rows_become(&lab, "c2", vni, &of_c1);
    lab.start("r1", "agent");
}
