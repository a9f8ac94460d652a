//! `vpc capture`: what an operator sees of a NIC, at its port and on the underlay.

use super::evpn::{nic, vpc};
use lab::{Lab, text_of};
use serde_json::Value;
use std::io::{BufRead, BufReader};

/// Both ways, both sides, of some pings.
const FRAMES: usize = 12;

fn read(lab: &Lab, expression: &str) -> Vec<String> {
    let line = format!("tcpdump -nn -r - '{expression}' < /run/vpc/a1.pcapng");
    let told = lab.sh("c1", &line);
    told.lines().map(str::to_owned).collect()
}

#[test]
fn a_ping_is_seen_at_the_nic_and_on_the_underlay() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2"]);
    let blue = vpc(&lab, "blue");
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    lab.eventually("a1 reaches a2", || {
        let ping = lab.try_sh("c1/blue-a1", "ping -c 1 -W 1 10.4.1.12");
        match ping.status.success() {
            true => Ok(()),
            false => Err(text_of(&ping)),
        }
    });
    let mut pings = lab.spawn("c1/blue-a1", &["ping", "-i", "0.2", "10.4.1.12"]);
    let capture = |options: &str| {
        let line = format!(
            "vpc capture blue/web/a1 --filter 'icmp and host 10.4.1.12' --seconds 60 {options}"
        );
        let output = lab.try_sh("c1", &line);
        assert!(output.status.success(), "{}", text_of(&output));
        output
    };

    // As a file, which tcpdump reads.
    let count = format!("--count {FRAMES}");
    let output = capture(&format!("{count} -w /run/vpc/a1.pcapng"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("{FRAMES} frames")), "{said}");
    let (inner, mut outer) = (read(&lab, "icmp"), read(&lab, "udp port 4789"));
    // What is in a tunnel packet has a line of its own.
    outer.retain(|line| line.contains("VXLAN"));
    assert_eq!(inner.len() + outer.len(), FRAMES, "{inner:?} {outer:?}");
    for (from, to, kind) in [("11", "12", "request"), ("12", "11", "reply")] {
        let inside = format!("10.4.1.{from} > 10.4.1.{to}: ICMP echo {kind}");
        assert!(inner.iter().any(|l| l.contains(&inside)), "{inner:?}");
    }
    let vni = format!("vni {blue}");
    assert!(
        !outer.is_empty() && outer.iter().all(|l| l.contains(&vni)),
        "{outer:?}"
    );

    // As lines, and as JSON.
    let lines = capture(&count).stdout;
    let lines = String::from_utf8_lossy(&lines).into_owned();
    let vxlan = format!("VXLAN {}: 10.4.1.1", blue);
    for wanted in ["inner out", "inner in ", "outer out", "outer in ", &vxlan] {
        assert!(lines.contains(wanted), "{wanted}: {lines}");
    }
    let frames = capture(&format!("{count} -o json")).stdout;
    let frames = String::from_utf8_lossy(&frames).into_owned();
    let frames: Vec<Value> = (frames.lines())
        .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
        .collect();
    assert_eq!(frames.len(), FRAMES);
    for side in ["inner", "outer"] {
        for direction in ["in", "out"] {
            let is = |frame: &&Value| frame["side"] == side && frame["direction"] == direction;
            let frame = frames.iter().find(is);
            let frame = frame.unwrap_or_else(|| panic!("{side} {direction}: {frames:#?}"));
            let bytes = frame["bytes"].as_str().map(str::len);
            assert_eq!(bytes, frame["length"].as_u64().map(|n| 2 * n as usize));
            assert_eq!(frame["dropped"], Value::Null);
        }
    }

    // What does not match is not taken; what is elsewhere or no filter is told.
    let none = "vpc capture blue/web/a1 --filter 'icmp and host 10.4.1.99' --seconds 1";
    let none = lab.try_sh("c1", none);
    assert!(
        none.status.success() && none.stdout.is_empty(),
        "{}",
        text_of(&none)
    );
    for (options, says) in [
        ("blue/web/a2", "it is not on this host"),
        ("blue/web/a1 --filter 'icmp or'", "character 8: it ends"),
    ] {
        let refused = lab.try_sh("c1", &format!("vpc capture {options} --seconds 1"));
        assert!(!refused.status.success());
        assert!(text_of(&refused).contains(says), "{}", text_of(&refused));
    }
    pings.kill().expect("it ran");
    pings.wait().expect("it ends");
}

#[test]
fn a_datapath_tells_what_it_dropped_and_why() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2", "--transport", "tap"]);
    lab.admin("create blue --cidr 10.4.0.0/16 --unknown-neighbours drop");
    lab.admin("subnet create blue/web --cidr 10.4.1.0/24");
    for (name, host, number) in [("a1", "c1", 11), ("a2", "c2", 12)] {
        lab.admin(&format!(
            "nic create blue/web/{name} --host {host} --attach netns:blue-{name} \
             --ip 10.4.1.{number} --wait"
        ));
    }
    // Nobody has that address, so it is asked for again and again.
    let mut pings = lab.spawn("c1/blue-a1", &["ping", "-i", "0.2", "10.4.1.99"]);
    let dropped = |file: &str| {
        let line = format!(
            "vpc capture blue/web/a1 --filter 'arp and host 10.4.1.99' --count 4 --seconds 60 {file}"
        );
        let output = lab.try_sh("c1", &line);
        assert!(output.status.success(), "{}", text_of(&output));
        output.stdout
    };
    let lines = String::from_utf8_lossy(&dropped("")).into_owned();
    let asked = "ARP who has 10.4.1.99? tell 10.4.1.11, 42 bytes";
    let at_nic = lines.lines().any(|line| line.ends_with(asked));
    // At the TAP it has a tag, where that is a trunk.
    let (question, _) = asked.split_once(',').expect("its length");
    let reason = "dropped: unknown-neighbour";
    let at_tap = |line: &&str| line.contains("inner out ") && line.contains(question);
    let at_tap = lines.lines().filter(at_tap);
    let told = at_tap.filter(|line| line.ends_with(reason)).count();
    assert!(at_nic && told > 0, "{lines}");
    assert!(!lines.contains("outer"), "{lines}");
    // In a file it is a comment.
    let file = dropped("-w -");
    let comment = b"dropped: unknown-neighbour";
    assert!(file.windows(comment.len()).any(|part| part == comment));
    pings.kill().expect("it ran");
    pings.wait().expect("it ends");
}

#[test]
fn a_capture_goes_on_with_the_datapath_that_runs_then() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2", "--transport", "tap"]);
    vpc(&lab, "blue");
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    lab.reaches("c1/blue-a1", "10.4.1.12");
    // One that another takes over from, and one that the agent starts anew after its end.
    let kill = "kill -9 $(vpc -o json datapath show | jq .pid)";
    for ending in ["vpc datapath restart", kill] {
        let line = "exec vpc capture blue/web/a1 --filter 'icmp and host 10.4.1.12' --count 200 --seconds 120";
        let mut capture = lab.spawn("c1", &["sh", "-c", line]);
        let mut remarks = BufReader::new(capture.stderr.take().expect("it is a pipe"));
        let mut until = |text: &str| {
            let mut said = String::new();
            while !said.contains(text) {
                let read = remarks.read_line(&mut said).expect("it is text");
                assert!(read > 0, "it ended without {text:?}: {said}");
            }
        };
        until("capturing at");
        lab.sh("c1", ending);
        until("another datapath runs now");
        let mut pings = lab.spawn("c1/blue-a1", &["ping", "-i", "0.05", "10.4.1.12"]);
        let output = capture.wait_with_output().expect("it ends");
        pings.kill().expect("it ran");
        pings.wait().expect("it ends");
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{lines}");
        for wanted in ["inner out", "inner in ", "outer out", "outer in "] {
            assert!(lines.contains(wanted), "after {ending}: {wanted}: {lines}");
        }
    }
}
