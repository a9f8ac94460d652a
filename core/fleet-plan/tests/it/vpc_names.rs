//! What routers are told of their VPC's names.

use crate::script::World;
use fleet_plan::{Refusal, plan};
use model::{UserData, VpcNames};

const SETUP: &str = "\
account default
vpc default/blue 10.4.0.0/16
vpc default/red 10.4.0.0/16
host c1 192.0.2.11
host r1 192.0.2.21 roles route
subnet default/blue/web 10.4.8.0/21
subnet default/blue/db 10.4.2.0/24
subnet default/red/web 10.4.1.0/24
nic default/blue/web/a1 c1 tap user-data hello
nic default/blue/db/d1 c1 tap user-data secret
nic default/red/web/a1 c1 tap
router default/blue/gw subnet default/blue/web";

fn world() -> World {
    let mut world = World::new();
    for line in SETUP.lines() {
        world.run(line).unwrap();
    }
    world
}

fn names(world: &World) -> VpcNames {
    let host = world.host("r1").unwrap();
    let draft = plan(&world.intent, host, &[]).unwrap();
    let config = draft.issue(model::Generation(1));
    config.routers[0].names.clone()
}

/// `subnet/nic: user data`
fn told(names: &VpcNames) -> Vec<String> {
    let data = |data: &UserData| String::from_utf8_lossy(data.bytes()).into_owned();
    let line = |(subnet, nic): (&model::NamedSubnet, &model::NamedNic)| {
        let data = nic.user_data.as_ref().map(data);
        format!("{}/{}: {}", subnet.name, nic.name, data.unwrap_or_default())
    };
    names.nics().map(line).collect()
}

#[test]
fn a_router_knows_its_own_vpc_and_what_its_subnets_may_read() {
    let mut world = world();
    let before = names(&world);
    assert_eq!(before.vpc.as_ref().unwrap().as_str(), "blue");
    assert_eq!(told(&before), ["db/d1: ", "web/a1: hello"]);
    // A new NIC is a new configuration of the router's host; one of another VPC is not.
    let r1 = world.host("r1").unwrap();
    let issued = |world: &mut World, line: &str| {
        world.line(line);
        let issued = world.rollout.poll(&world.intent);
        issued.iter().any(|issued| issued.row.host == r1)
    };
    world.rollout.poll(&world.intent);
    assert!(issued(&mut world, "nic default/blue/web/a2 c1 tap"));
    assert!(!issued(&mut world, "nic default/red/web/a2 c1 tap"));
    assert_eq!(
        told(&names(&world)),
        ["db/d1: ", "web/a1: hello", "web/a2: "]
    );
}

#[test]
fn the_user_data_of_a_vpc_are_bounded() {
    let mut world = world();
    let most = "x".repeat(UserData::MOST_BYTES);
    let mut refused = None;
    for n in 0..=256 {
        let line = format!("nic default/blue/web/n{n} c1 tap user-data {most}");
        refused = world.run(&line).err();
        if refused.is_some() {
            assert_eq!(n, 255, "those that were there have some bytes");
            break;
        }
    }
    assert!(
        matches!(
            refused,
            Some(Refusal::TooMany {
                what: "bytes of user data",
                ..
            })
        ),
        "{refused:?}"
    );
    world
        .run("nic default/red/web/n1 c1 tap user-data x")
        .unwrap();
}
