//! FRR as the EVPN client of a host, beside hosts with the built-in one.

use super::evpn::{
    C1, C2, C3, MAC_1, MAC_2, NOBODY, established, nic, remote_rows, rows_become, vpc,
};
use lab::{Lab, Ping, difference};
use serde_json::Value;
use std::time::Duration;

const MAC_3: &str = "02:00:00:00:01:0d";

/// What FRR shows on a host.
fn vtysh(lab: &Lab, host: &str, command: &str) -> String {
    lab.sh(
        host,
        &format!("vtysh --vty_socket /run/vpc/frr -c '{command}'"),
    )
}

/// Rows that lead to `mac`, without what differs from host to host by its nature.
fn shape(lab: &Lab, host: &str, vni: u64, mac: &str) -> Vec<String> {
    let rows = lab.json(host, &format!("bridge -j fdb show dev t-{vni}"));
    let neighbours = lab.json(host, "ip -j neigh show nud permanent");
    let all = [rows, neighbours];
    let all = all
        .iter()
        .flat_map(|rows| rows.as_array().cloned().unwrap_or_default());
    let about = |row: &Value| row["mac"] == mac || row["lladdr"] == mac;
    let mut shapes: Vec<String> = all
        .filter(about)
        .map(|mut row| {
            if let Some(row) = row.as_object_mut() {
                row.remove("ifname");
                row.remove("dev");
                row.remove("master");
            }
            row.to_string()
        })
        .collect();
    shapes.sort();
    shapes
}

#[test]
fn a_host_with_frr_is_as_any_other() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,c3", "--speaker", "c1=frr"]);
    // E01.
    for host in ["c1", "c2", "c3"] {
        established(&lab, host, &["100.64.0.1"]);
    }
    let (blue, red) = (vpc(&lab, "blue"), vpc(&lab, "red"));
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    nic(&lab, "blue", "a3", "c3", 13);
    // E09: the same MACs the other way round in another VPC.
    nic(&lab, "red", "a1", "c2", 11);
    nic(&lab, "red", "a2", "c1", 12);
    // E02, E03.
    let of_1 = [(NOBODY, C1), (MAC_1, C1)];
    let of_2 = [(NOBODY, C2), (MAC_2, C2)];
    let of_3 = [(NOBODY, C3), (MAC_3, C3)];
    rows_become(&lab, "c1", blue, &[&of_2[..], &of_3].concat());
    rows_become(&lab, "c2", blue, &[&of_1[..], &of_3].concat());
    rows_become(&lab, "c1", red, &[(NOBODY, C2), (MAC_1, C2)]);
    rows_become(&lab, "c2", red, &[(NOBODY, C1), (MAC_2, C1)]);
    // MAC+IP left without a word of the workload's, and the rows are the same whoever spoke.
    lab.eventually("rows of the same shape at both", || {
        let (frr, builtin) = (
            shape(&lab, "c1", blue, MAC_3),
            shape(&lab, "c2", blue, MAC_3),
        );
        match frr == builtin && frr.len() > 2 {
            true => Ok(()),
            false => Err(format!("{frr:?}\n{builtin:?}")),
        }
    });
    lab.eventually("c2 knows whose address it is", || {
        let rows = shape(&lab, "c2", blue, MAC_1);
        match rows.iter().any(|row| row.contains("\"dst\":\"10.4.1.11\"")) {
            true => Ok(()),
            false => Err(format!("{rows:?}")),
        }
    });
    // E26.
    lab.reaches("c1/blue-a1", "10.4.1.12");
    lab.reaches("c2/blue-a2", "10.4.1.11");
    lab.reaches("c3/blue-a3", "10.4.1.11");
    lab.reaches("c1/red-a2", "10.4.1.11");
    lab.reaches("c1/blue-a1", "fd00:4:0:1::c");
    // Its own routes, heard from FRR, are not somebody else's.
    let summary = lab.json("c1", "vpc evpn summary -o json");
    assert_eq!(summary["speaker"], "frr");
    assert_eq!(summary["alerts"], serde_json::json!([]), "{summary}");
    // FRR has distinguishers from our allocator and takes no part in writing.
    let instances = vtysh(&lab, "c1", "show bgp l2vpn evpn vni json");
    let instances: Value = serde_json::from_str(&instances).expect("JSON");
    for vni in [blue, red] {
        let rd = instances[vni.to_string()]["rd"].to_string();
        assert!(rd.contains("100.64.0.2:"), "{instances}");
    }
    // E04: a NIC goes, here and there.
    lab.admin("nic delete blue/web/a3");
    rows_become(&lab, "c1", blue, &of_2);
    rows_become(&lab, "c2", blue, &of_1);
    lab.admin("nic delete blue/web/a1");
    rows_become(&lab, "c2", blue, &[]);
    // What somebody changes in FRR is taken back.
    let asn = instance_asn(&lab);
    lab.sh(
        "c1",
        &format!(
            "vtysh --vty_socket /run/vpc/frr -c 'configure terminal' -c 'router bgp {asn}' \
             -c 'address-family l2vpn evpn' -c 'no neighbor 100.64.0.1 activate'"
        ),
    );
    lab.eventually("it is taken back", || {
        let running = vtysh(&lab, "c1", "show running-config");
        match running.contains("neighbor 100.64.0.1 activate") {
            true => Ok(()),
            false => Err(running),
        }
    });
    // A bundle cannot be there.
    lab.admin("create bundle --cidr 10.9.0.0/16 --encoding vlan-aware-bundle");
    lab.admin("subnet create bundle/web --cidr 10.9.1.0/24");
    let refusal = lab.refused("nic create bundle/web/x --host c1 --attach tap");
    assert!(refusal.contains("--speaker builtin"), "{refusal}");
}

fn instance_asn(lab: &Lab) -> String {
    lab.json("c1", "vpc -o json evpn summary")["asn"].to_string()
}

/// Two hosts with a NIC each and rows both ways.
fn pair(options: &[&str]) -> (Lab, u64) {
    let lab = Lab::up_with(&[&["--hosts", "m1,c1,c2"], options].concat());
    let blue = vpc(&lab, "blue");
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    whole(&lab, blue);
    lab.reaches("c1/blue-a1", "10.4.1.12");
    (lab, blue)
}

fn whole(lab: &Lab, vni: u64) {
    rows_become(lab, "c1", vni, &[(NOBODY, C2), (MAC_2, C2)]);
    rows_become(lab, "c2", vni, &[(NOBODY, C1), (MAC_1, C1)]);
}

/// Waits until FRR on c1 has told its listener everything: the other host's routes and its own.
fn listener_has_all(lab: &Lab) {
    lab.eventually("the listener has all routes, none of them stale", || {
        let routes = lab.json("c1", "vpc -o json evpn routes");
        let fresh = |hop: &str| {
            let routes = routes.as_array().into_iter().flatten();
            let of_hop = routes.filter(|r| r["next_hop"] == hop && r["stale"] == false);
            of_hop.count() >= 3
        };
        match fresh(C1) && fresh(C2) {
            true => Ok(()),
            false => Err(routes.to_string()),
        }
    });
}

#[test]
fn frr_that_is_killed_costs_no_packet() {
    let (lab, blue) = pair(&["--speaker", "c1=frr"]);
    listener_has_all(&lab);
    let before = ["c1", "c2"].map(|host| lab.dump(host));
    let there = Ping::start(&lab, "c1/blue-a1", "10.4.1.12", Duration::from_millis(10));
    let back = Ping::start(&lab, "c2/blue-a2", "10.4.1.11", Duration::from_millis(10));
    for daemon in ["bgpd", "zebra", "bgpd", "zebra"] {
        let file = format!("/run/vpc/frr/{daemon}.pid");
        let old = lab.sh("c1", &format!("cat {file}"));
        lab.sh("c1", &format!("kill -9 {old}"));
        lab.eventually(&format!("{daemon} runs again"), || {
            let line = format!(
                "test \"$(cat {file})\" != {} && kill -0 $(cat {file})",
                old.trim()
            );
            match lab.try_sh("c1", &line).status.success() {
                true => Ok(()),
                false => Err(format!("{old} is dead")),
            }
        });
        established(&lab, "c1", &["100.64.0.1"]);
        listener_has_all(&lab);
        assert!(!remote_rows(&lab, "c2", blue).is_empty());
        let after = ["c1", "c2"].map(|host| lab.dump(host));
        assert_eq!(
            before,
            after,
            "{daemon}: {}",
            difference(&before[1], &after[1])
        );
    }
    for ping in [there, back] {
        let result = ping.stop();
        assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
    }
}

#[test]
fn a_host_changes_its_speaker_without_losing_a_packet() {
    let (lab, blue) = pair(&[]);
    let there = Ping::start(&lab, "c1/blue-a1", "10.4.1.12", Duration::from_millis(10));
    let back = Ping::start(&lab, "c2/blue-a2", "10.4.1.11", Duration::from_millis(10));
    for speaker in ["frr", "builtin"] {
        lab.admin(&format!("host set c1 --speaker {speaker}"));
        lab.eventually(&format!("{speaker} speaks"), || {
            let runs = lab.try_sh("c1", "pgrep -x bgpd").status.success();
            match runs == (speaker == "frr") {
                true => Ok(()),
                false => Err(format!("bgpd runs: {runs}")),
            }
        });
        established(&lab, "c1", &["100.64.0.1"]);
        if speaker == "frr" {
            listener_has_all(&lab);
        }
        whole(&lab, blue);
    }
    for ping in [there, back] {
        let result = ping.stop();
        assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
    }
}
