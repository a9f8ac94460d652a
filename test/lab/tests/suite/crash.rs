//! Killed agents and servers: no packet is lost, nothing in the kernel changes.

use lab::{Lab, Ping, difference};
use std::time::Duration;

#[test]
fn a_killed_agent_loses_no_ping_and_changes_nothing() {
    let lab = Lab::up();
    lab.admin("create blue --cidr 10.4.0.0/16");
    lab.admin("subnet create blue/web --cidr 10.4.1.0/24");
    lab.admin("nic create blue/web/a1 --host c1 --attach netns:a1 --ip 10.4.1.11 --wait");
    lab.admin("nic create blue/web/a2 --host c2 --attach netns:a2 --ip 10.4.1.12 --wait");
    lab.reaches("c1/a1", "10.4.1.12");
    let before = lab.dump("c1");
    let ping = Ping::start(&lab, "c1/a1", "10.4.1.12", Duration::from_millis(10));
    lab.kill("c1", "agent");
    lab.start("c1", "agent");
    lab.eventually("the agent converges", || {
        let status = lab.json("c1", "vpc -o json agent status");
        if status["converged"] == true {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    let result = ping.stop();
    assert_eq!(result.lost(), 0, "{result:?}");
    let after = lab.dump("c1");
    assert_eq!(before, after, "{}", difference(&before, &after));
}
