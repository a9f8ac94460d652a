//! A volume of which only one replica is left goes on from it, on an operator's word; what comes back later is none of it.

use super::contract::{storage_off, storage_on};
use super::{attach, create, read, wait_healthy, write};
use lab::Lab;
use serde_json::Value;

const HOSTS: [&str; 4] = ["m1", "c1", "c2", "c3"];

fn replicas(shown: &Value) -> Vec<&Value> {
    let replicas = shown["replicas"].as_array().expect("it has replicas");
    let there = |replica: &&Value| {
        !["lost", "gone"]
            .iter()
            .any(|state| replica["state"] == *state)
    };
    replicas.iter().filter(there).collect()
}

fn last(shown: &Value, host: &str) -> u64 {
    let replicas = replicas(shown).into_iter();
    let mut of_host = replicas.filter(|replica| replica["host_name"] == host);
    of_host
        .find_map(|replica| replica["last"].as_u64())
        .unwrap_or_default()
}

fn shown_until(lab: &Lab, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    lab.eventually(what, || {
        let shown = lab.admin("volume show data");
        match holds(&shown) {
            true => Ok(shown),
            false => Err(shown.to_string()),
        }
    })
}

#[test]
fn it_goes_on_from_the_replica_that_is_left() {
    let lab = Lab::up_with(&["--hosts", &HOSTS.join(",")]);
    let made = create(&lab);
    let has = |host: &&&str| {
        replicas(&made)
            .iter()
            .any(|replica| replica["host_name"] == **host)
    };
    let with: Vec<&str> = HOSTS.iter().filter(has).copied().collect();
    let [left, lost, also_lost] = with[..] else {
        panic!("{made}")
    };
    let uri = attach(&lab, lost);
    let written = write(&lab, lost, &uri);
    let all_have = wait_healthy(&lab);
    // Only the two that are about to be lost have what comes now.
    lab.sh(
        left,
        "nft add table inet cut; nft 'add chain inet cut in { type filter hook input priority 0; }'; \
         for port in sport dport; do nft add rule inet cut in tcp $port 7445 drop; done",
    );
    write(&lab, lost, &uri);
    // More than the one that is left had before, whatever management was told of that one by then.
    shown_until(&lab, "management knows that these have more", |shown| {
        last(shown, lost) > all_have
    });
    let refused = lab.refused("volume recover data --accept-loss");
    assert!(refused.contains("nothing is to be recovered"), "{refused}");
    for host in [lost, also_lost] {
        storage_off(&lab, host);
    }
    shown_until(&lab, "nobody leads", |shown| shown["state"] == "down");

    let dead = format!("--dead {lost} --dead {also_lost}");
    lab.eventually("management knows that both are down", || {
        let refused = lab.refused("volume recover data --accept-loss");
        // Without one of the two there is no majority.
        let named = |host: &str| refused.contains(&format!("--dead {host}"));
        let one = named(lost) || named(also_lost);
        match one && refused.contains("may come back without loss") {
            true => Ok(()),
            false => Err(refused),
        }
    });
    let refused = lab.refused(&format!("volume recover data {dead}"));
    assert!(refused.contains("entries more"), "{refused}");
    assert!(refused.contains("Say --accept-loss"), "{refused}");
    let recovered = lab.admin(&format!("volume recover data {dead} --accept-loss --wait"));
    assert_eq!(recovered["recovered"]["number"], 1, "{recovered}");
    // No sooner: the kernels of the two still have, and send, what their processes gave them.
    lab.sh(left, "nft delete table inet cut");
    let (kept, known) = (
        &recovered["recovered"]["kept"],
        &recovered["recovered"]["known"],
    );
    assert!(kept.as_u64() < known.as_u64(), "{recovered}");
    assert_eq!(
        recovered["attachments"],
        serde_json::json!([]),
        "{recovered}"
    );
    let log = std::fs::read_to_string(lab.logs().join("m1-server.log"));
    let log = log.expect("the server has a log");
    let noted = log.lines().find(|line| line.contains("Loss accepted"));
    let noted = noted.expect("it is noted");
    assert!(noted.contains(lost) && noted.contains(also_lost), "{noted}");

    let uri = attach(&lab, left);
    assert_eq!(read(&lab, left, &uri), written);
    let second = write(&lab, left, &uri);
    // There is one more host with room.
    shown_until(&lab, "it has as many as there is room for", |shown| {
        shown["lacking"] == 1 && replicas(shown).len() == 2 && shown["state"] == "degraded"
    });
    // Those that were lost are a majority of what there was, and none of what there is.
    for host in [lost, also_lost] {
        storage_on(&lab, host);
    }
    shown_until(&lab, "it is as it was to be", |shown| {
        let all = shown["replicas"].as_array().expect("it has replicas");
        shown["state"] == "healthy" && shown["lacking"] == 0 && all.len() == 3
    });
    assert_eq!(read(&lab, left, &uri), second);
    let elsewhere = attach(&lab, lost);
    assert_eq!(read(&lab, lost, &elsewhere), second);
    wait_healthy(&lab);
}
