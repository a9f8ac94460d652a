//! FRR as the EVPN client of a host, beside hosts with the built-in one.

use super::evpn::{C1, C2, C3, MAC_1, MAC_2, NOBODY, established, nic, rows_become, vpc};
use lab::{Lab, Ping, text_of};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
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
    // It compares the kernel's rows.
    let kernel = ["--transport", "kernel"];
    let hosts = ["--hosts", "m1,c1,c2,c3", "--speaker", "c1=frr"];
    let lab = Lab::up_with(&[&hosts[..], &kernel].concat());
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
    // Where the kernel filters VLANs FRR announces IPv6 addresses, too: zebra reads them from a
    // VLAN device that is never up.
    if lab.filters_vlans() {
        lab.eventually("c2 knows whose IPv6 address it is", || {
            let rows = shape(&lab, "c2", blue, MAC_1);
            match rows
                .iter()
                .any(|row| row.contains("\"dst\":\"fd00:4:0:1::b\""))
            {
                true => Ok(()),
                false => Err(format!("{rows:?}")),
            }
        });
    }
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

/// A host that is to have FRR has the kernel's tunnels.
const FOR_FRR: &[&str] = &["--transport", "kernel"];

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
fn a_host_changes_its_speaker_without_losing_a_packet() {
    let (lab, blue) = pair(FOR_FRR);
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

/// zebra hears of the kernel by notifications and bgpd of MACs by zebra: what either of them missed
/// is noticed and put right.
#[test]
fn what_is_announced_is_what_is_here() {
    let (lab, blue) = pair(&["--speaker", "c1=frr"]);
    let red = vpc(&lab, "red");
    nic(&lab, "blue", "a3", "c1", 13);
    nic(&lab, "red", "a1", "c1", 11);
    nic(&lab, "red", "a2", "c2", 12);
    let of_1 = [(NOBODY, C1), (MAC_1, C1)];
    let of_3 = (MAC_3, C1);
    rows_become(&lab, "c2", blue, &[&of_1[..], &[of_3]].concat());
    rows_become(&lab, "c2", red, &of_1);

    // NICs go while zebra is dead, one of them with its VNI.
    lab.sh(
        "c1",
        "mount --bind /bin/false /usr/lib/frr/zebra && kill -9 $(cat /run/vpc/frr/zebra.pid)",
    );
    lab.admin("nic delete blue/web/a3");
    lab.admin("nic delete red/web/a1");
    lab.eventually("the device of red is gone", || {
        match lab
            .try_sh("c1", &format!("ip link show t-{red}"))
            .status
            .success()
        {
            true => Err("it is there".to_owned()),
            false => Ok(()),
        }
    });
    lab.sh("c1", "umount /usr/lib/frr/zebra");
    rows_become(&lab, "c2", blue, &of_1);
    rows_become(&lab, "c2", red, &[]);

    if env::var_os("VPC_SOAK").is_none() {
        return;
    }
    // A NIC comes in a moment when zebra loses notifications: its buffer is full.
    listener_has_all(&lab);
    lab.sh("c1", "kill -STOP $(cat /run/vpc/frr/zebra.pid)");
    lab.sh(
        "c1",
        "ip link add noise type bridge; \
         (for i in $(seq 1000); do echo link set noise mtu 1400; echo link set noise mtu 1500; done) \
         | ip -batch -; ip link del noise",
    );
    nic(&lab, "blue", "a4", "c1", 14);
    lab.sh("c1", "kill -CONT $(cat /run/vpc/frr/zebra.pid)");
    let of_4 = ("02:00:00:00:01:0e", C1);
    rows_become(&lab, "c2", blue, &[&of_1[..], &[of_4]].concat());
    lab.reaches("c2/blue-a2", "10.4.1.14");
}

/// FRR's own service may run beside, but not announce everything.
#[test]
fn frr_of_the_distribution_that_announces_everything_is_told_of() {
    let (lab, blue) = pair(FOR_FRR);
    let doctor = || text_of(&lab.try_sh("c1", "vpc doctor"));
    assert!(doctor().contains("evpn; without"), "{}", doctor());
    let conf = "/run/frr/bgpd.conf";
    lab.sh(
        "c1",
        &format!(
            "install -d -o frr -g frr /run/frr; printf 'router bgp 65001\\n bgp router-id 9.9.9.9\\n address-family l2vpn evpn\\n  \
             advertise-all-vni\\n' > {conf} && chown frr {conf} && \
             /usr/lib/frr/bgpd -d --no_zebra -f {conf} -i /run/frr/bgpd.pid -l {C1} -P 0"
        ),
    );
    assert!(doctor().contains("frr-service"), "{}", doctor());
    lab.admin("host set c1 --speaker frr");
    let told = |lab: &Lab| {
        let host = lab.admin("host show c1");
        host["conditions"].to_string().contains("advertise-all-vni")
    };
    lab.eventually("the host says why it does not begin", || match told(&lab) {
        true => Ok(()),
        false => Err(lab.admin("host show c1").to_string()),
    });
    lab.sh("c1", "! pgrep -x zebra");
    // Rows stay meanwhile, and the remedy is one.
    whole(&lab, blue);
    lab.sh(
        "c1",
        "vtysh -c 'configure terminal' -c 'router bgp 65001' -c 'address-family l2vpn evpn' \
         -c 'no advertise-all-vni'",
    );
    established(&lab, "c1", &["100.64.0.1"]);
    listener_has_all(&lab);
    lab.eventually("nothing is wrong any more", || match told(&lab) {
        false => Ok(()),
        true => Err(lab.admin("host show c1").to_string()),
    });
    assert!(!doctor().contains("frr-service"), "{}", doctor());
    whole(&lab, blue);
}

/// Rows of a host that are about NICs and flooding, with NICs named as people do.
fn all_rows(lab: &Lab, host: &str) -> BTreeSet<String> {
    let nics = lab.admin("nic list");
    let mut names = BTreeMap::new();
    for nic in nics.as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let path = text(&nic["path"]);
        names.insert(format!("n-{}", text(&nic["id"])), format!("port of {path}"));
        names.insert(text(&nic["mac"]), format!("MAC of {path}"));
        for address in nic["addresses"].as_array().into_iter().flatten() {
            let kind = if text(address).contains(':') {
                "IPv6"
            } else {
                "IPv4"
            };
            // The same addresses are in both VPCs; the device tells them apart.
            let (_, name) = path.rsplit_once('/').expect("paths have parts");
            names.insert(text(address), format!("{kind} of {name}"));
        }
    }
    let fdb = lab.json(host, "bridge -j fdb show");
    let neighbours = lab.json(host, "ip -j neigh show nud permanent");
    let all = [fdb, neighbours];
    let all = all
        .iter()
        .flat_map(|rows| rows.as_array().into_iter().flatten());
    let told = |row: &&Value| {
        // Its own NICs' addresses are there for FRR to read, and where that is the client alone.
        if row.get("lladdr").is_some() && row.get("extern_learn").is_none() {
            return false;
        }
        let mac = row["mac"]
            .as_str()
            .or(row["lladdr"].as_str())
            .unwrap_or_default();
        mac.starts_with("02:00:00:00:01:") || mac == NOBODY
    };
    all.filter(told)
        .map(|row| {
            let mut row = row.clone();
            for value in row
                .as_object_mut()
                .into_iter()
                .flat_map(|row| row.values_mut())
            {
                if let Some(name) = value.as_str().and_then(|text| names.get(text)) {
                    *value = name.as_str().into();
                }
            }
            row.to_string()
        })
        .collect()
}

/// Whether a workload reaches an address.
type Reached = Vec<(String, bool)>;

/// Which of the workloads reaches which address.
fn reachable(lab: &Lab, shift: u8) -> Reached {
    let of_blue = [11 + shift, 12 + shift, 13];
    let of_red = [14 + shift, 15 + shift];
    let mut all = Vec::new();
    for place in [
        "c1/blue-a1",
        "c2/blue-a2",
        "c3/blue-a3",
        "c1/red-b2",
        "c2/red-b1",
    ] {
        // All at once: to those that do not answer a ping takes its time.
        let mut line = String::new();
        for (index, number) in of_blue.iter().chain(&of_red).enumerate() {
            for (family, address) in [("IPv4", "10.4.1."), ("IPv6", "fd00:4:0:1::")] {
                let number = match family {
                    "IPv4" => number.to_string(),
                    _ => format!("{number:x}"),
                };
                line += &format!(
                    "(ping -c 1 -W 2 {address}{number} >/dev/null && echo {index}{family}) & "
                );
            }
        }
        let answered = lab.sh(place, &format!("{line} wait"));
        for index in 0..5 {
            for family in ["IPv4", "IPv6"] {
                let reaches = answered.contains(&format!("{index}{family}"));
                all.push((format!("{place} to {index} by {family}"), reaches));
            }
        }
    }
    all
}

/// Whoever speaks on a host and whatever reflects: the same rows everywhere, the same reachability.
#[test]
fn speakers_and_reflectors_mix_and_rows_are_the_same() {
    let options = [
        "--hosts",
        "m1,c1,c2,c3",
        "--reflector",
        "frr",
        "--speaker",
        "c1=frr",
        // They are compared as the kernel has them.
        "--transport",
        "kernel",
    ];
    let lab = Lab::up_with(&options);
    vpc(&lab, "blue");
    vpc(&lab, "red");
    nic(&lab, "blue", "a3", "c3", 13);
    let mut seen: Option<(Vec<BTreeSet<String>>, Reached)> = None;
    for (change, shift) in [("", 0), ("reflector", 20), ("speaker", 40)] {
        match change {
            "reflector" => {
                lab.stop("m1", "server");
                lab.sh("m1", "sed -i /^reflector_kind/d /etc/vpc/server.toml");
                lab.start("m1", "server");
            }
            "speaker" => {
                lab.eventually("the server takes it", || {
                    let output = lab.try_sh("m1", "vpc host set c1 --speaker builtin");
                    match output.status.success() {
                        true => Ok(()),
                        false => Err(text_of(&output)),
                    }
                });
                lab.eventually("FRR has ended", || {
                    match lab.try_sh("c1", "pgrep -x bgpd").status.success() {
                        true => Err("bgpd runs".to_owned()),
                        false => Ok(()),
                    }
                });
            }
            _ => {}
        }
        for host in ["c1", "c2", "c3"] {
            established(&lab, host, &["100.64.0.1"]);
        }
        // Learned anew, each time from who speaks now.
        for (vpc, name, host, number) in [
            ("blue", "a1", "c1", 11),
            ("blue", "a2", "c2", 12),
            ("red", "b1", "c2", 14),
            ("red", "b2", "c1", 15),
        ] {
            if seen.is_some() {
                lab.admin(&format!("nic delete {vpc}/web/{name} --wait"));
            }
            // What was freed just now is on hold.
            nic(&lab, vpc, name, host, number + shift);
        }
        for place in ["c1/blue-a1", "c2/blue-a2"] {
            lab.reaches(place, "10.4.1.13");
        }
        lab.reaches("c2/red-b1", &format!("10.4.1.{}", 15 + shift));
        let rows = || ["c1", "c2", "c3"].map(|host| all_rows(&lab, host)).to_vec();
        let Some((rows_before, reach_before)) = &seen else {
            // Each host has a row for each NIC of its VPCs, and one to flood to each other host.
            lab.eventually("all rows are there", || match rows() {
                all if all.iter().map(BTreeSet::len).min() >= Some(6) => Ok(()),
                all => Err(format!("{all:#?}")),
            });
            seen = Some((rows(), reachable(&lab, shift)));
            continue;
        };
        lab.eventually("the same rows as before", || match rows() {
            now if now == *rows_before => Ok(()),
            now => Err(format!("{now:#?}\nnot\n{rows_before:#?}")),
        });
        let reach = reachable(&lab, shift);
        assert_eq!(reach, *reach_before, "after the change of {change}");
    }
    let (_, reach) = seen.expect("it was seen");
    let reached = reach.iter().filter(|(_, reaches)| *reaches).count();
    // Two addresses of each workload, itself among them.
    assert_eq!(reached, 2 * (3 * 3 + 2 * 2), "{reach:?}");
}
