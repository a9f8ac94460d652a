//! Figures of a management server with many NICs, printed. A release build must keep the budgets;
//! a debug build, on a machine that does other things, fails only when the order of growth is wrong.

use crate::script::World;
use fleet_plan::plan;
use std::time::{Duration, Instant};

/// The shortest of a few runs: what the code takes, not what else the machine does.
fn shortest(mut run: impl FnMut()) -> Duration {
    let times = (0..5).map(|_| {
        #[expect(clippy::disallowed_methods, reason = "measuring, not deciding")]
        let start = Instant::now();
        run();
        start.elapsed()
    });
    times.min().expect("there were runs")
}

fn within(what: &str, took: Duration, budget: Duration) {
    let budget = if cfg!(debug_assertions) {
        budget * 200
    } else {
        budget
    };
    println!("{what}: {took:?}");
    assert!(took <= budget, "{what} took {took:?}, more than {budget:?}");
}

#[test]
fn a_host_with_a_thousand_nics() {
    let mut world = World::new();
    world.run("account a").unwrap();
    world.run("host h 192.0.2.1").unwrap();
    for vpc in 0..10 {
        world
            .run(&format!("vpc a/v{vpc} 10.0.0.0/16 fd00::/48"))
            .unwrap();
        for subnet in 0..5 {
            world
                .run(&format!(
                    "subnet a/v{vpc}/s{subnet} 10.0.{subnet}.0/24 fd00:0:0:{subnet}::/64"
                ))
                .unwrap();
            for nic in 0..20 {
                world
                    .run(&format!(
                        "nic a/v{vpc}/s{subnet}/n{nic} h netns:n{vpc}-{subnet}-{nic}"
                    ))
                    .unwrap();
            }
        }
    }
    let host = world.intent.hosts().next().unwrap().id;
    let reflectors = world.reflectors();
    let planned = shortest(|| {
        plan(&world.intent, host, &reflectors).unwrap();
    });
    within("planning 1,000 NICs", planned, Duration::from_millis(2));
    world.rollout.poll(&world.intent);
    let mut n = 0;
    let polled = shortest(|| {
        n += 1;
        world.run(&format!("nic a/v0/s0/more{n} h tap")).unwrap();
        assert_eq!(world.rollout.poll(&world.intent).len(), 1);
    });
    within(
        "one NIC more, decided, planned and digested",
        polled,
        Duration::from_millis(8),
    );
}

/// Who is in a subnet is told to all its hosts: when one more comes to be there, and not with each NIC.
#[test]
fn a_subnet_on_two_hundred_hosts() {
    const HOSTS: usize = 200;
    let mut world = World::new();
    for line in [
        "account a",
        "vpc a/v 10.0.0.0/8",
        "subnet a/v/s 10.0.0.0/16",
    ] {
        world.run(line).unwrap();
    }
    for host in 0..=HOSTS {
        world.run(&format!("host h{host} 192.0.2.{host}")).unwrap();
    }
    for nic in 0..HOSTS * 20 {
        let host = nic % HOSTS;
        world.run(&format!("nic a/v/s/n{nic} h{host} tap")).unwrap();
    }
    world.rollout.poll(&world.intent);
    let mut n = 0;
    let one = shortest(|| {
        n += 1;
        world.run(&format!("nic a/v/s/more{n} h0 tap")).unwrap();
        assert_eq!(world.rollout.poll(&world.intent).len(), 1);
    });
    within(
        "one NIC more in a subnet of 200 hosts",
        one,
        Duration::from_millis(2),
    );
    let first = shortest(|| {
        let line = format!("nic a/v/s/first h{HOSTS} tap");
        world.run(&line).unwrap();
        assert_eq!(world.rollout.poll(&world.intent).len(), HOSTS + 1);
        world.run("delete nic a/v/s/first").unwrap();
        assert_eq!(world.rollout.poll(&world.intent).len(), HOSTS + 1);
    });
    within(
        "a host's first and last NIC there",
        first,
        Duration::from_millis(60),
    );
}

#[test]
fn a_full_slash_sixteen() {
    let mut world = World::new();
    for line in [
        "account a",
        "host h 192.0.2.1",
        "vpc a/v 10.0.0.0/8",
        "subnet a/v/s 10.0.0.0/16",
    ] {
        world.run(line).unwrap();
    }
    for n in 0..10_000 {
        world.run(&format!("nic a/v/s/n{n} h tap")).unwrap();
    }
    let mut n = 10_000;
    let hundred = shortest(|| {
        for _ in 0..100 {
            n += 1;
            world.run(&format!("nic a/v/s/n{n} h tap")).unwrap();
        }
    });
    within("100 NICs after 10,000", hundred, Duration::from_millis(10));
}
