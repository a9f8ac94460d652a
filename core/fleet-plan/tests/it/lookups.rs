//! Names and lists: what users type, and what they get to see.

use crate::script::World;
use fleet_plan::{Delta, Digest, Filter, IssuedRow, Rollout};
use model::{Generation, Kind, Object, ObjectId};

fn world() -> World {
    let mut world = World::new();
    for line in [
        "account red",
        "account blue",
        "host c1 192.0.2.11",
        "host c2 192.0.2.12",
        "vpc red/net 10.0.0.0/16",
        "vpc blue/net 10.0.0.0/16 label env=prod",
        "subnet red/net/a 10.0.1.0/24",
        "subnet blue/net/a 10.0.1.0/24",
    ] {
        world.run(line).unwrap();
    }
    for n in 0..10 {
        let (account, host) = (["red", "blue"][n % 2], ["c1", "c2"][n / 5]);
        let label = ["env=prod", "env=test"][n % 3 % 2];
        world
            .run(&format!(
                "nic {account}/net/a/n{n} {host} tap label {label}"
            ))
            .unwrap();
    }
    world
}

#[test]
fn names_lead_to_objects() {
    let world = world();
    let intent = &world.intent;
    let red = intent.account_named(&"red".parse().unwrap()).unwrap().id;
    let check = |kind, home, text: &str, expected: &str| {
        let found = match intent.resolve(kind, home, text) {
            Ok(id) => intent.path(id),
            Err(refusal) => refusal.code().to_string(),
        };
        assert_eq!(found, expected, "{kind} {text}");
    };
    check(Kind::Account, None, "red", "red");
    check(Kind::Host, Some(red), "c1", "c1");
    check(Kind::Vpc, None, "blue/net", "blue/net");
    check(Kind::Vpc, Some(red), "net", "red/net");
    check(Kind::Vpc, Some(red), "blue/net", "blue/net");
    check(Kind::Vpc, None, "net", "not-found");
    check(Kind::Subnet, Some(red), "net/a", "red/net/a");
    check(Kind::Nic, Some(red), "net/a/n0", "red/net/a/n0");
    check(Kind::Nic, Some(red), "blue/net/a/n1", "blue/net/a/n1");
    check(Kind::Nic, Some(red), "net/a/n1", "not-found");
    for bad in [
        "",
        "/",
        "red/",
        "/net",
        "red/net/a/b/c",
        "Red/net",
        "red net",
    ] {
        check(Kind::Vpc, Some(red), bad, "not-found");
    }
    // An id is as good as a name.
    for page in [
        Kind::Account,
        Kind::Host,
        Kind::Vpc,
        Kind::Subnet,
        Kind::Nic,
    ] {
        for object in intent.list(page, &Filter::default(), None, 100).items {
            let text = object.id().id_text();
            assert_eq!(intent.resolve(page, None, &text), Ok(object.id()));
        }
    }
}

#[test]
fn lists_are_filtered() {
    let world = world();
    let intent = &world.intent;
    let red = intent.account_named(&"red".parse().unwrap()).unwrap().id;
    let c2 = intent.host_named(&"c2".parse().unwrap()).unwrap().id;
    let (ObjectId::Vpc(vpc), ObjectId::Subnet(subnet)) = (
        intent.resolve(Kind::Vpc, None, "blue/net").unwrap(),
        intent.resolve(Kind::Subnet, None, "blue/net/a").unwrap(),
    ) else {
        panic!("other kinds")
    };
    let check = |kind, filter: Filter, expected: &[&str]| {
        let page = intent.list(kind, &filter, None, 100);
        let mut found: Vec<String> = page.items.iter().map(|o| intent.path(o.id())).collect();
        found.sort();
        assert_eq!(found, expected, "{kind} {filter:?}");
        assert_eq!(page.next, None);
    };
    let all = Filter::default();
    check(Kind::Account, all.clone(), &["blue", "red"]);
    let of_red = Filter {
        account: Some(red),
        ..all.clone()
    };
    check(Kind::Vpc, of_red.clone(), &["red/net"]);
    check(Kind::Subnet, of_red.clone(), &["red/net/a"]);
    check(Kind::Host, of_red.clone(), &[]);
    let on_c2 = Filter {
        host: Some(c2),
        ..of_red
    };
    check(Kind::Nic, on_c2, &["red/net/a/n6", "red/net/a/n8"]);
    let of_vpc = Filter {
        vpc: Some(vpc),
        ..all.clone()
    };
    check(Kind::Subnet, of_vpc, &["blue/net/a"]);
    let prod = Filter {
        subnet: Some(subnet),
        labels: [("env".to_owned(), "prod".to_owned())].into(),
        ..all.clone()
    };
    check(
        Kind::Nic,
        prod,
        &["blue/net/a/n3", "blue/net/a/n5", "blue/net/a/n9"],
    );
    let named = Filter {
        name: Some("n7".parse().unwrap()),
        ..all
    };
    check(Kind::Nic, named, &["blue/net/a/n7"]);
}

#[test]
fn pages_neither_miss_nor_repeat() {
    let mut world = world();
    let (mut seen, mut after) = (Vec::new(), None);
    let first = world.intent.list(Kind::Nic, &Filter::default(), None, 3);
    loop {
        let page = world.intent.list(Kind::Nic, &Filter::default(), after, 3);
        assert!(page.items.len() <= 3);
        seen.extend(page.items.iter().map(Object::id));
        // The object that the next page starts after may be deleted in between.
        if page.items == first.items {
            let last = world.intent.path(seen[2]);
            world.run(&format!("delete nic {last}")).unwrap();
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen.len(), 10);
    assert!(seen.is_sorted());
}

#[test]
fn a_generation_of_another_server_is_outdone() {
    let mut world = world();
    world.rollout.poll(&world.intent);
    let c1 = world.intent.host_named(&"c1".parse().unwrap()).unwrap().id;
    let own = world.rollout.config(c1).unwrap().generation;
    assert_eq!(own, Generation(1));
    let row = |generation| IssuedRow {
        host: c1,
        generation: Generation(generation),
        digest: Digest("another".to_owned()),
    };
    world.rollout.adopt(row(7));
    world.rollout.adopt(row(3));
    let issued = world.rollout.poll(&world.intent);
    assert_eq!(issued.len(), 1);
    assert_eq!(issued[0].row.generation, Generation(8));
    assert_eq!(issued[0].config.generation, Generation(8));
}

#[test]
fn other_reflectors_concern_every_host() {
    let mut world = world();
    assert_eq!(world.rollout.poll(&world.intent).len(), 2);
    world
        .rollout
        .set_reflectors(&world.intent, world.reflectors());
    assert!(world.rollout.poll(&world.intent).is_empty());
    world.rollout.set_reflectors(&world.intent, vec![]);
    let issued = world.rollout.poll(&world.intent);
    assert_eq!(issued.len(), 2);
    assert!(
        issued
            .iter()
            .all(|issued| issued.row.generation == Generation(2))
    );
    // A delta that concerns nobody.
    world.rollout.note(&world.intent, &Delta::default());
    assert!(world.rollout.poll(&world.intent).is_empty());
    // A rollout that starts over with nothing remembered starts with 1.
    let mut fresh = Rollout::new(vec![], &world.intent, vec![]);
    assert!(
        fresh
            .poll(&world.intent)
            .iter()
            .all(|i| i.row.generation == Generation(1))
    );
}
