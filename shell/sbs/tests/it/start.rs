//! Disks that are made, found again, and refused.

use crate::rig::{DEADLINE, MIB, Rig, contents, credential};
use api::pki::Authority;
use model::HostId;

#[test]
fn a_disk_is_made_once_and_found_again() {
    let mut rig = Rig::new(1);
    let first = rig.disk(0);
    rig.create("alone", 8 * MIB, &[0]);
    let target = rig.attach(0, 0, 1);
    let client = rig.client(&target);
    rig.runtime
        .block_on(client.write(4096, contents(7), false))
        .unwrap();
    rig.kill(0);
    rig.start(0);
    assert_eq!(rig.disk(0), first);
    // Its replicas it has again by itself; what is attached it has to be told.
    assert!(rig.look(0).attachments.is_empty());
    let target = rig.attach(0, 0, 1);
    let client = rig.client(&target);
    let read = rig.runtime.block_on(client.read(4096, 4096)).unwrap();
    assert!(read[..] == contents(7)[..]);
}

#[test]
fn a_disk_of_another_host_or_of_no_one_is_refused_and_left_alone() {
    let mut rig = Rig::new(1);
    rig.kill(0);
    let disk = rig.hosts[0].dir.join("disk");
    let before = std::fs::read(&disk).unwrap();
    let other = HostId::from_random(0x9999);
    credential(&rig.authority, other, &rig.hosts[0].dir.join("host.toml"));
    let refused = |rig: &mut Rig, why: &str| {
        rig.hosts[0].spawn();
        testkit::eventually("it ends", DEADLINE, || {
            rig.ended(0).then_some(()).ok_or_else(|| rig.log(0))
        });
        assert!(rig.log(0).contains(why), "{}", rig.log(0));
    };
    refused(&mut rig, "is a disk of host");
    let stranger = Authority::create("c-other").unwrap();
    credential(
        &stranger,
        HostId::from_random(0x1000),
        &rig.hosts[0].dir.join("host.toml"),
    );
    refused(&mut rig, "in cluster");
    assert!(
        std::fs::read(&disk).unwrap() == before,
        "nothing was written"
    );

    std::fs::write(&disk, b"somebody's file system").unwrap();
    refused(&mut rig, "is no disk of ours, and not empty");
    assert_eq!(std::fs::read(&disk).unwrap(), b"somebody's file system");
}

#[test]
fn a_replica_on_a_disk_that_was_replaced_is_not_made_anew() {
    let mut rig = Rig::new(3);
    let volume = rig.create("data", 8 * MIB, &[0, 1, 2]);
    rig.attach(0, 0, 1);
    rig.kill(2);
    std::fs::remove_file(rig.hosts[2].dir.join("disk")).unwrap();
    rig.start(2);
    let look = rig.look(2);
    assert!(look.replicas.is_empty(), "{look:?}");
    let trouble = &look.troubles[&volume];
    assert!(
        trouble.contains("it is lost; make another one"),
        "{trouble}"
    );
}

#[test]
fn a_host_without_a_disk_attaches_volumes_of_others() {
    let mut rig = Rig::with_disks(&[96 * MIB, 0]);
    rig.create("data", 8 * MIB, &[0]);
    let target = rig.attach(0, 1, 1);
    let client = rig.client(&target);
    rig.runtime
        .block_on(client.write(0, contents(1), true))
        .unwrap();
    let read = rig.runtime.block_on(client.read(0, 4096)).unwrap();
    assert!(read[..] == contents(1)[..]);
    assert!(rig.look(1).disk.is_none());
}

#[test]
fn a_host_has_one_process_whatever_disk_another_is_given() {
    let mut rig = Rig::new(3);
    let other = rig.hosts[0].dir.join("other");
    for path in [rig.hosts[0].dir.join("disk"), other.clone()] {
        let mut second = rig.hosts[0].another(&path);
        testkit::eventually("the second one ends", DEADLINE, || {
            let ended = second.try_wait().unwrap();
            ended.map(drop).ok_or_else(|| rig.log(0))
        });
        assert!(
            rig.log(0).contains("another storage process runs"),
            "{}",
            rig.log(0)
        );
        std::fs::remove_file(rig.hosts[0].dir.join("log")).unwrap();
    }
    assert!(!other.exists(), "it made a disk");
    // The others still reach the one that there is.
    rig.create("data", 8 * MIB, &[0, 1, 2]);
    rig.attach(0, 0, 1);
}
