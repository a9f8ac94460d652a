//! Route reflectors of others in place of ours: FRR that the server runs, GoBGP beside it.

use lab::{Lab, Ping, text_of};
use serde_json::Value;
use std::time::Duration;

/// A hundred a second.
const EVERY: Duration = Duration::from_millis(10);

fn up(reflector: &str) -> Lab {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,c3", "--reflector", reflector]);
    lab.admin("create blue --cidr 10.4.0.0/16");
    lab.admin("subnet create blue/web --cidr 10.4.0.0/16");
    for host in 1..=2 {
        nic(&lab, host);
    }
    lab.reaches("c1/a1", "10.4.1.12");
    lab
}

fn nic(lab: &Lab, host: u8) {
    lab.admin(&format!(
        "nic create blue/web/a{host} --host c{host} --attach netns:a{host} --ip 10.4.1.1{host} --wait"
    ));
}

/// What `vpc server reflector` shows.
fn shown(lab: &Lab) -> Result<Value, String> {
    let output = lab.try_sh("m1", "vpc -o json server reflector");
    serde_json::from_slice(&output.stdout).map_err(|_| text_of(&output))
}

/// Waits until all of the reflector's clients, so many, have a session.
fn sessions(lab: &Lab, clients: usize) -> Value {
    lab.eventually("the reflector has its clients", || {
        let state = shown(lab)?;
        let peers = state["peers"].as_array().cloned().unwrap_or_default();
        let up = peers.iter().all(|peer| peer["state"] == "established");
        match up && peers.len() == clients && state["problem"].is_null() {
            true => Ok(state),
            false => Err(state.to_string()),
        }
    })
}

/// How often bgpd's sessions with hosts came up, and how often they went.
fn counts(lab: &Lab, hosts: &[&str]) -> Vec<(Value, Value)> {
    let summary = lab.json(
        "m1",
        "vtysh --vty_socket /run/vpc/reflector -c 'show bgp l2vpn evpn summary json'",
    );
    let of = |host: &&str| {
        let peer = &summary["peers"][*host];
        (
            peer["connectionsEstablished"].clone(),
            peer["connectionsDropped"].clone(),
        )
    };
    hosts.iter().map(of).collect()
}

fn bgpd(lab: &Lab) -> String {
    lab.sh("m1", "cat /run/vpc/reflector/bgpd.pid")
        .trim()
        .to_owned()
}

/// Waits until a host has all that its only reflector has, fresh.
fn fresh(lab: &Lab, host: &str) {
    lab.eventually(&format!("{host}'s routes are fresh"), || {
        let output = lab.try_sh(host, "vpc -o json evpn peers");
        let peers: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let peer = &peers[0];
        match peer["state"] == "established" && peer["stale"] == false {
            true => Ok(()),
            false => Err(text_of(&output)),
        }
    });
}

#[test]
fn frr_reflects_for_hosts_as_they_come_and_go() {
    let lab = up("frr");
    let state = sessions(&lab, 4);
    assert_eq!(state["kind"], "frr", "{state}");
    let doctor = text_of(&lab.try_sh("m1", "vpc doctor"));
    assert!(
        doctor.contains("frr at 100.64.0.1:179: 4 of 4 hosts"),
        "{doctor}"
    );
    let others = ["100.64.0.1", "100.64.0.2", "100.64.0.3"];
    let before = counts(&lab, &others);
    let pid = bgpd(&lab);

    lab.kill("c3", "agent");
    lab.admin("host remove c3");
    sessions(&lab, 3);
    let token = lab.admin("host token create --host c3 --role compute");
    let token = token["text"].as_str().expect("a token");
    lab.sh(
        "c3",
        &format!(
            "rm -rf /etc/vpc/* /var/lib/vpc/* && vpc host join --server 100.64.0.1:7443 \
             --token {token} --name c3 --underlay 100.64.0.4"
        ),
    );
    lab.start("c3", "agent");
    sessions(&lab, 4);
    nic(&lab, 3);
    lab.reaches("c1/a1", "10.4.1.13");
    lab.reaches("c2/a2", "10.4.1.13");

    // Nobody else noticed, and it is the process that it was.
    assert_eq!(counts(&lab, &others), before);
    assert_eq!(bgpd(&lab), pid);
    let state = sessions(&lab, 4);
    assert_eq!(
        (&state["restarts"], &state["drift"]),
        (&0.into(), &0.into()),
        "{state}"
    );
    let running = lab.sh(
        "m1",
        "vtysh --vty_socket /run/vpc/reflector -c 'show running-config'",
    );
    for line in [
        "no bgp default ipv4-unicast",
        "bgp cluster-id 244.64.0.1",
        "neighbor 100.64.0.4 ttl-security hops 1",
        "neighbor 100.64.0.4 password ",
        "neighbor 100.64.0.4 timers 3 9",
        "neighbor 100.64.0.4 route-reflector-client",
    ] {
        assert!(running.contains(line), "{line}:\n{running}");
    }

    // What somebody takes away comes back, and that is told.
    lab.sh(
        "m1",
        "vtysh --vty_socket /run/vpc/reflector -c 'configure terminal' -c 'router bgp 65000' \
         -c 'no neighbor 100.64.0.2'",
    );
    lab.eventually("the neighbour is back", || {
        let state = shown(&lab)?;
        match state["drift"] == 1 {
            true => Ok(()),
            false => Err(state.to_string()),
        }
    });
    sessions(&lab, 4);
}

#[test]
fn frr_outlives_a_killed_server_and_ends_with_a_stopped_one() {
    let lab = up("frr");
    sessions(&lab, 4);
    let hosts = ["100.64.0.1", "100.64.0.2", "100.64.0.3", "100.64.0.4"];
    let (pid, before) = (bgpd(&lab), counts(&lab, &hosts));
    lab.kill("m1", "server");
    lab.start("m1", "server");
    sessions(&lab, 4);
    assert_eq!((bgpd(&lab), counts(&lab, &hosts)), (pid.clone(), before));

    let ping = Ping::start(&lab, "c1/a1", "10.4.1.12", EVERY);
    lab.stop("m1", "server");
    lab.sh("m1", &format!("! kill -0 {pid}"));

    // It is not there: the server says so, with the remedy, instead of running without.
    let output = lab.try_sh(
        "m1",
        "unshare -m sh -c 'mount -t tmpfs none /usr/lib/frr && exec timeout 10 vpc server run'",
    );
    let said = text_of(&output);
    assert!(
        !output.status.success() && said.contains("not installed") && said.contains("apt install"),
        "{said}"
    );

    // Ours takes its place.
    lab.sh("m1", "sed -i /^reflector_kind/d /etc/vpc/server.toml");
    lab.start("m1", "server");
    let state = sessions(&lab, 4);
    assert_eq!(state["kind"], "builtin", "{state}");
    for host in ["c1", "c2"] {
        fresh(&lab, host);
    }
    assert_eq!(ping.stop().lost(), 0);
}

#[test]
fn gobgp_reflects_with_the_configuration_that_the_server_prints() {
    let lab = up("external");
    let state = shown(&lab).expect("a state");
    assert_eq!(
        (&state["kind"], &state["listen"]),
        (&"external".into(), &Value::Null),
        "{state}"
    );
    nic(&lab, 3);
    lab.reaches("c1/a1", "10.4.1.13");
    lab.reaches("c2/a2", "10.4.1.13");
    let ping = Ping::start(&lab, "c1/a1", "10.4.1.12", EVERY);
    lab.kill("m1", "reflector");
    lab.start("m1", "reflector");
    for host in ["c1", "c2"] {
        fresh(&lab, host);
    }
    let result = ping.stop();
    assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
}
