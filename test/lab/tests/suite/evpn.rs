//! Routes and rows: what EVPN learns is in the kernel, and nothing else is.

use lab::{Lab, Ping, difference};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const MAC_1: &str = "02:00:00:00:01:0b";
const MAC_2: &str = "02:00:00:00:01:0c";

/// A VPC with one subnet.
fn vpc(lab: &Lab, name: &str) -> u64 {
    lab.admin(&format!(
        "create {name} --cidr 10.4.0.0/16 --cidr fd00:4::/48"
    ));
    let subnet = lab.admin(&format!(
        "subnet create {name}/web --cidr 10.4.1.0/24 --cidr fd00:4:0:1::/64"
    ));
    subnet["vni"].as_u64().expect("a VNI")
}

fn nic(lab: &Lab, vpc: &str, name: &str, host: &str, number: u8) {
    lab.admin(&format!(
        "nic create {vpc}/web/{name} --host {host} --attach netns:{vpc}-{name} \
         --ip 10.4.1.{number} --ip fd00:4:0:1::{number:x} --mac 02:00:00:00:01:{number:02x} --wait"
    ));
}

/// Rows of a tunnel device that lead elsewhere: MAC and VTEP.
fn remote_rows(lab: &Lab, host: &str, vni: u64) -> BTreeSet<(String, String)> {
    let fdb = lab.json(host, &format!("bridge -j fdb show dev t-{vni}"));
    let rows = fdb.as_array().into_iter().flatten();
    rows.filter_map(|row| {
        let dst = row["dst"].as_str()?;
        Some((row["mac"].as_str()?.to_owned(), dst.to_owned()))
    })
    .collect()
}

/// Address and MAC of what EVPN put into the neighbour tables.
fn neighbours(lab: &Lab, host: &str) -> BTreeSet<(String, String)> {
    let rows = lab.json(host, "ip -j neigh show nud permanent");
    let rows = rows.as_array().cloned().unwrap_or_default();
    rows.iter()
        .filter(|row| row["protocol"].to_string().contains("118"))
        .filter_map(|row| Some((row["dst"].as_str()?.into(), row["lladdr"].as_str()?.into())))
        .collect()
}

fn rows(expected: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    let owned = expected.iter().map(|(a, b)| ((*a).into(), (*b).into()));
    owned.collect()
}

/// Waits for exactly these rows; how long it took.
fn rows_become(lab: &Lab, host: &str, vni: u64, expected: &[(&str, &str)]) -> Duration {
    let expected = rows(expected);
    let start = Instant::now();
    lab.eventually(
        &format!("rows of t-{vni} on {host} are {expected:?}"),
        || match remote_rows(lab, host, vni) {
            seen if seen == expected => Ok(()),
            seen => Err(format!("{seen:?}")),
        },
    );
    start.elapsed()
}

fn peer_states(lab: &Lab, host: &str) -> Vec<(String, String)> {
    let peers = lab.json(host, "vpc -o json evpn peers");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let peers = peers.as_array().cloned().unwrap_or_default();
    let peers = peers.iter();
    peers
        .map(|peer| (text(&peer["address"]), text(&peer["state"])))
        .collect()
}

/// Waits until a host's sessions are up: with these and nobody else.
fn established(lab: &Lab, host: &str, peers: &[&str]) {
    let expected: Vec<_> = peers
        .iter()
        .map(|peer| ((*peer).to_owned(), "established".to_owned()))
        .collect();
    lab.eventually(&format!("{host} has its sessions"), || {
        match lab.try_sh(host, "vpc evpn peers").status.success()
            && peer_states(lab, host) == expected
        {
            true => Ok(()),
            false => Err(lab::text_of(&lab.try_sh(host, "vpc evpn peers"))),
        }
    });
}

#[expect(clippy::print_stdout, reason = "a figure of the test")]
fn figure(what: &str, took: Duration) {
    println!("figure: {what}: {} ms", took.as_millis());
    assert!(took < Duration::from_secs(5), "{what}: {took:?}");
}

const NOBODY: &str = "00:00:00:00:00:00";
const C1: &str = "100.64.0.2";
const C2: &str = "100.64.0.3";
const C3: &str = "100.64.0.4";

#[test]
fn routes_become_rows_and_go_with_what_they_tell_of() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,c3"]);
    // E01.
    for host in ["c1", "c2", "c3"] {
        established(&lab, host, &["100.64.0.1"]);
    }
    let (blue, red) = (vpc(&lab, "blue"), vpc(&lab, "red"));
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    nic(&lab, "blue", "a3", "c3", 13);
    // E09: the same MAC elsewhere in another VPC.
    nic(&lab, "red", "a1", "c2", 11);
    nic(&lab, "red", "a2", "c1", 12);
    let mac_3 = "02:00:00:00:01:0d";
    // E02 and E03: a flood row for each peer, and a row for each MAC behind it.
    let of_2 = [(NOBODY, C2), (MAC_2, C2)];
    let of_3 = [(NOBODY, C3), (mac_3, C3)];
    rows_become(&lab, "c1", blue, &[&of_2[..], &of_3].concat());
    rows_become(
        &lab,
        "c2",
        blue,
        &[(NOBODY, C1), (MAC_1, C1), (NOBODY, C3), (mac_3, C3)],
    );
    rows_become(&lab, "c1", red, &[(NOBODY, C2), (MAC_1, C2)]);
    rows_become(&lab, "c2", red, &[(NOBODY, C1), (MAC_2, C1)]);
    // No MAC of ours has moved.
    for route in lab
        .json("c3", "vpc -o json evpn routes")
        .as_array()
        .expect("routes")
    {
        assert_eq!(route["mobility_sequence"], 0, "{route}");
    }
    // Addresses: IPv6 only where there is a device for it that is down.
    let mut expected = rows(&[
        ("10.4.1.12", MAC_2),
        ("10.4.1.13", mac_3),
        ("10.4.1.11", MAC_1),
    ]);
    if lab.filters_vlans() {
        let v6 = [
            ("fd00:4:0:1::c", MAC_2),
            ("fd00:4:0:1::d", mac_3),
            ("fd00:4:0:1::b", MAC_1),
        ];
        expected.extend(rows(&v6));
    }
    lab.eventually("c1 has its neighbours", || match neighbours(&lab, "c1") {
        seen if seen == expected => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
    nothing_is_learned_from_frames(&lab, &[blue, red]);

    // E04: a NIC goes.
    let start = Instant::now();
    lab.admin("nic delete blue/web/a3");
    rows_become(&lab, "c1", blue, &of_2);
    figure("NIC deleted to rows gone elsewhere", start.elapsed());
    nic(&lab, "blue", "a4", "c3", 14);
    let of_3 = [(NOBODY, C3), ("02:00:00:00:01:0e", C3)];
    rows_become(&lab, "c1", blue, &[&of_2[..], &of_3].concat());

    // Killed: nothing changes, then or when it is back.
    let before = lab.dump("c1");
    lab.kill("c3", "agent");
    lab.eventually("the reflector misses c3", || {
        let host = lab.admin("host show c3");
        match host["state"] == "down" {
            true => Ok(()),
            false => Err(host.to_string()),
        }
    });
    let after = lab.dump("c1");
    assert_eq!(before, after, "killed: {}", difference(&before, &after));
    lab.start("c3", "agent");
    established(&lab, "c3", &["100.64.0.1"]);
    let after = lab.dump("c1");
    assert_eq!(before, after, "back: {}", difference(&before, &after));

    // Told to go for good.
    let start = Instant::now();
    lab.sh("c3", "vpc agent stop --withdraw");
    rows_become(&lab, "c1", blue, &of_2);
    figure("agent stopped to rows gone elsewhere", start.elapsed());
    lab.start("c3", "agent");
    rows_become(&lab, "c1", blue, &[&of_2[..], &of_3].concat());
}

/// Learning is off, and rows that lead elsewhere are those that were put there.
fn nothing_is_learned_from_frames(lab: &Lab, vnis: &[u64]) {
    lab.reaches("c1/blue-a1", "10.4.1.12");
    lab.reaches("c1/red-a2", "10.4.1.11");
    let links = lab.json("c1", "ip -j -d link show");
    let links = links.as_array().expect("links");
    let ours = |link: &&Value| {
        let alias = link["ifalias"].as_str().unwrap_or_default();
        alias.starts_with("vpc:")
    };
    for link in links.iter().filter(ours) {
        let info = &link["linkinfo"];
        if info["info_kind"] == "vxlan" {
            assert_eq!(info["info_data"]["learning"], false, "{link}");
        }
        if info["info_slave_kind"] == "bridge" {
            assert_eq!(info["info_slave_data"]["learning"], false, "{link}");
        }
    }
    for vni in vnis {
        let fdb = lab.json("c1", &format!("bridge -j fdb show dev t-{vni}"));
        let rows = fdb.as_array().expect("rows").iter();
        // The device's own MAC is the kernel's.
        for row in rows.filter(|row| row["dst"].is_string() || row["state"] != "permanent") {
            let flags = row["flags"].to_string();
            assert!(flags.contains("extern_learn"), "{row}");
        }
    }
}

#[test]
fn a_reflector_that_dies_costs_no_packet() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2"]);
    let blue = vpc(&lab, "blue");
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    rows_become(&lab, "c1", blue, &[(NOBODY, C2), (MAC_2, C2)]);
    rows_become(&lab, "c2", blue, &[(NOBODY, C1), (MAC_1, C1)]);
    lab.reaches("c1/blue-a1", "10.4.1.12");
    let before = ["c1", "c2"].map(|host| lab.dump(host));
    let ping = Ping::start(&lab, "c1/blue-a1", "10.4.1.12", Duration::from_millis(10));
    for round in 1..=3 {
        lab.kill("m1", "server");
        for host in ["c1", "c2"] {
            lab.eventually("its session is gone", || match peer_states(&lab, host) {
                states if states.iter().all(|(_, state)| state != "established") => Ok(()),
                states => Err(format!("{states:?}")),
            });
        }
        let during = ["c1", "c2"].map(|host| lab.dump(host));
        assert_eq!(before, during, "{}", difference(&before[0], &during[0]));
        lab.start("m1", "server");
        for host in ["c1", "c2"] {
            established(&lab, host, &["100.64.0.1"]);
        }
        lab.eventually(&format!("routes are fresh again in round {round}"), || {
            let peers = lab.json("c1", "vpc -o json evpn peers");
            match peers[0]["stale"] == false && peers[0]["end_of_rib"] == true {
                true => Ok(()),
                false => Err(peers.to_string()),
            }
        });
    }
    let after = ["c1", "c2"].map(|host| lab.dump(host));
    assert_eq!(before, after, "{}", difference(&before[1], &after[1]));
    let result = ping.stop();
    assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
}
