//! What an operator sees: `vpc evpn` and `vpc doctor` on a host that somebody else gets in the way of.

use super::evpn::{C1, C2, Daemon, MAC_1, MAC_2, asn, established, nic, password, vpc};
use lab::{Lab, text_of};
use serde_json::Value;

const RR: &str = "100.64.0.4";

/// A reflector of another make on r1, beside ours. It announces what it is told to.
fn stranger(lab: &Lab, dir: &std::path::Path) -> Daemon {
    let asn = asn(lab);
    let mut config = format!(
        "[global.config]\nas = {asn}\nrouter-id = \"{RR}\"\nlocal-address-list = [\"{RR}\"]\n"
    );
    for client in ["100.64.0.1", C1, C2] {
        config += &format!(
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{client}\"\n\
             peer-as = {asn}\nauth-password = \"{}\"\n\
             [neighbors.transport.config]\npassive-mode = true\n\
             [neighbors.ttl-security.config]\nenabled = true\nttl-min = 255\n\
             [neighbors.route-reflector.config]\nroute-reflector-client = true\n\
             route-reflector-cluster-id = \"{RR}\"\n\
             [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"l2vpn-evpn\"\n",
            password(lab)
        );
    }
    let file = dir.join("gobgpd.toml");
    std::fs::write(&file, config).expect("a file");
    let file = file.display().to_string();
    let argv = ["gobgpd", "-f", &file, "--api-hosts", "127.0.0.1:50051"];
    let gobgp = Daemon::start(lab, "r1", &dir.join("log"), &argv);
    lab.kill("m1", "server");
    lab.sh(
        "m1",
        &format!(
            "sed -i '/^reflectors/d' /etc/vpc/server.toml && \
             sed -i '1i reflectors = [\"100.64.0.1\", \"{RR}\"]' /etc/vpc/server.toml"
        ),
    );
    lab.start("m1", "server");
    for host in ["c1", "c2"] {
        established(lab, host, &["100.64.0.1", RR]);
    }
    gobgp
}

/// Waits until a command's JSON is as wanted.
fn becomes(lab: &Lab, host: &str, command: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    lab.eventually(&format!("{host}: {command} tells"), || {
        match lab.json(host, command) {
            told if wanted(&told) => Ok(told),
            told => Err(format!("{told:#}")),
        }
    })
}

/// What `vpc doctor` finds wrong with EVPN, whether it ends well or not.
fn wrong(lab: &Lab, host: &str) -> (bool, Vec<Value>) {
    let output = lab.try_sh(host, "vpc doctor -o json");
    let all: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text_of(&output)));
    let all = all.as_array().cloned().unwrap_or_default();
    let wrong = all.into_iter().filter(|one| one["verdict"] == "wrong");
    let says = text_of(&output).contains("there are problems");
    (says, wrong.collect())
}

#[test]
fn a_mac_claimed_twice_and_a_vtep_address_used_twice_are_told() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,r1"]);
    let blue = vpc(&lab, "blue");
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let _gobgp = stranger(&lab, dir.path());

    // All is well.
    let summary = becomes(&lab, "c1", "vpc evpn summary -o json", |told| {
        told["remote_macs"] == 1 && told["complete"] == true
    });
    assert_eq!(summary["role"], "vtep");
    assert_eq!(summary["speaker"], "builtin");
    assert_eq!(summary["vtep"], C1);
    assert_eq!(
        (&summary["peers_up"], &summary["peers"]),
        (&2.into(), &2.into())
    );
    assert_eq!(summary["instances"], 1);
    assert_eq!(summary["mac_rows"], 1);
    assert_eq!(summary["alerts"], serde_json::json!([]));
    let types = summary["routes"].as_array().expect("counts");
    assert!(
        types
            .iter()
            .any(|count| count["route_type"] == 2 && count["best"].as_u64() >= Some(4)),
        "{summary}"
    );
    assert_eq!(wrong(&lab, "c1"), (false, vec![]));

    // So does our reflector.
    let reflector = becomes(&lab, "m1", "vpc evpn summary --reflector -o json", |told| {
        told["peers_up"].as_u64() >= Some(3)
    });
    assert_eq!(reflector["role"], "reflector");
    assert_eq!(reflector["instances"], 0);
    let client = format!("vpc evpn peers {C1} --reflector -o json");
    assert_eq!(lab.json("m1", &client)["state"], "established");
    let told = lab.json(
        "m1",
        &format!("vpc evpn routes --reflector --peer {C1} -o json"),
    );
    assert!(told.as_array().is_some_and(|all| all.len() >= 2), "{told}");

    // The same route by two reflectors: one path wins, and says by what.
    let routes = format!("vpc evpn routes --type 2 --mac {MAC_2} -o json");
    let routes = becomes(&lab, "c1", &routes, |told| {
        told.as_array().is_some_and(|all| {
            all.iter()
                .any(|path| path["best"] == false && path["peer"] == RR)
        })
    });
    for path in routes.as_array().expect("paths") {
        assert_eq!(path["mac"], MAC_2, "{path}");
        assert!(
            path["decided_by"][0].is_string() && path["since"].is_string(),
            "{path}"
        );
    }
    let of_rr = lab.json("c1", &format!("vpc evpn routes --peer {RR} -o json"));
    let of_rr = of_rr.as_array().expect("paths");
    assert!(!of_rr.is_empty() && of_rr.iter().all(|path| path["peer"] == RR));

    // What was said to and by a peer, and everything once more.
    let peer = |lab: &Lab| lab.json("c1", "vpc evpn peers 100.64.0.1 -o json");
    let asked = || peer(&lab)["counters"]["sent"]["refreshes"].as_u64();
    // It may have asked by itself: when it came, the reflector had nothing.
    let before = asked().expect("a count");
    lab.sh("c1", "vpc evpn peers 100.64.0.1 --refresh");
    assert_eq!(asked(), Some(before + 1));
    let history = lab.json("c1", "vpc evpn peers 100.64.0.1 --history -o json");
    let said = |direction: &str, kind: &str| {
        let all = history.as_array().expect("messages");
        let one = |told: &&Value| told["direction"] == direction && told["kind"] == kind;
        assert!(all.iter().any(|told| one(&told)), "{history:#}");
    };
    said("sent", "open");
    said("received", "open");
    said("sent", "route-refresh");

    // A stranger says that c2's MAC is behind c1's address, which is lower.
    let asn = asn(&lab);
    let route = format!(
        "gobgp global rib {{}} -a evpn macadv {MAC_2} 0.0.0.0 etag 0 label {blue} rd {RR}:77 \
         rt {asn}:{blue} encap vxlan nexthop {C1}"
    );
    let (add, del) = (route.replace("{}", "add"), route.replace("{}", "del"));
    lab.sh("r1", &add);
    let mac = format!("vpc evpn mac {MAC_2} --vni {blue} -o json");
    let told = becomes(&lab, "c2", &mac, |told| told[0]["vtep"] == C1);
    let (winner, loser) = (&told[0]["claims"][0], &told[0]["claims"][1]);
    assert_eq!(
        (&winner["vtep"], &winner["lost_by"]),
        (&C1.into(), &Value::Null)
    );
    assert_eq!(
        (&loser["vtep"], &loser["local"]),
        (&C2.into(), &true.into())
    );
    assert_eq!(loser["lost_by"], "lower VTEP address");
    let text = lab.sh("c2", &format!("vpc evpn mac {MAC_2}"));
    let why = format!("lost: same sequence, and the address {C1} is lower");
    assert!(text.contains(&why), "{text}");
    // c1 sees that somebody passes for it.
    lab.eventually("c1's doctor tells of its address", || {
        let (says, wrong) = wrong(&lab, "c1");
        let told = wrong.iter().any(|one| {
            one["kind"] == "duplicate-vtep"
                && one["remedy"].to_string().contains("underlay address")
        });
        match says && told {
            true => Ok(()),
            false => Err(format!("{wrong:?}")),
        }
    });

    // To and fro until it is frozen; then cleared by hand.
    let moved = |count: u64| {
        becomes(&lab, "c2", &mac, |told| {
            told[0]["moves"].as_u64() >= Some(count)
        })
    };
    moved(1);
    for (command, moves) in [(&del, 2), (&add, 3), (&del, 4), (&add, 5)] {
        lab.sh("r1", command);
        moved(moves);
    }
    let told = becomes(&lab, "c2", &mac, |told| told[0]["frozen"] == true);
    assert!(told[0]["frozen_since"].is_string() && told[0]["frozen_until"].is_string());
    let (says, found) = wrong(&lab, "c2");
    let clear = format!("vpc evpn clear {MAC_2} --vni {blue}");
    assert!(says, "{found:?}");
    assert!(
        found
            .iter()
            .any(|one| one["kind"] == "duplicate-mac"
                && one["remedy"].to_string().contains(&clear)),
        "{found:?}"
    );
    assert_eq!(lab.json("c2", "vpc evpn summary -o json")["frozen_macs"], 1);
    lab.sh("r1", &del);
    lab.sh("c2", &clear);
    becomes(&lab, "c2", &mac, |told| {
        told[0]["frozen"] == false && told[0]["vtep"] == C2
    });
    let again = lab.try_sh("c2", &clear);
    assert!(!again.status.success());
    assert!(
        text_of(&again).contains("is not frozen here"),
        "{}",
        text_of(&again)
    );
    becomes(&lab, "c2", "vpc evpn summary -o json", |told| {
        told["frozen_macs"] == 0 && told["local_macs"] == 1
    });
    // Nobody else was hurt.
    let other = format!("vpc evpn mac {MAC_1} --vni {blue} -o json");
    assert_eq!(lab.json("c2", &other)[0]["vtep"], C1);
}
