//! Volumes that grow, whose replicas move, that are erased, and that several hosts read.

use crate::load::Load;
use crate::rig::{DEADLINE, MIB, Rig, contents};
use model::{Replica, StorageConfig, VolumeSize};
use std::process::Command;

fn size_at(rig: &Rig, uri: &str) -> u64 {
    let output = Command::new("nbdinfo")
        .args(["--size", uri])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{said}: {}", rig.log(0)))
}

#[test]
fn a_volume_grows_under_clients_and_new_ones_see_it() {
    let mut rig = Rig::new(3);
    let id = rig.create("data", 8 * MIB, &[0, 1, 2]);
    let target = rig.attach(0, 1, 1);
    let mut load = Load::start(&rig, &target);
    load.wait_more(50);
    rig.volumes[0].founding = Some(rig.volumes[0].founding());
    rig.volumes[0].size = VolumeSize::new(24 * MIB).unwrap();
    rig.tell_all(&[(0, 1, 1)]);
    rig.wait_look("it is served larger", 1, |look| {
        look.attachments[&id].bytes == 24 * MIB
    });
    assert_eq!(size_at(&rig, &rig.uri(0, 1)), 24 * MIB);
    load.wait_more(50);
    let (outcomes, _) = load.end(&rig);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    load.check(&rig, &target);
    let client = rig.client(&target);
    let end = 24 * MIB - 4096;
    rig.runtime
        .block_on(client.write(end, contents(5), false))
        .unwrap();
    rig.wait_equal(0, &[0, 1, 2]);
    for host in 0..3 {
        rig.wait_look("all have grown", host, |look| {
            look.replicas[&id].bytes == 24 * MIB
        });
    }
    // It is as large after all have started again, also where nobody is attached.
    (0..3).for_each(|host| rig.kill(host));
    (0..3).for_each(|host| rig.start(host));
    let target = rig.attach(0, 2, 2);
    let client = rig.client(&target);
    let read = rig.runtime.block_on(client.read(end, 4096)).unwrap();
    assert!(read[..] == contents(5)[..]);
}

#[test]
fn a_volume_that_nobody_has_attached_grows_by_who_leads_it() {
    let mut rig = Rig::new(3);
    let id = rig.create("data", 8 * MIB, &[0, 1, 2]);
    rig.volumes[0].founding = Some(rig.volumes[0].founding());
    rig.volumes[0].size = VolumeSize::new(9 * MIB).unwrap();
    rig.tell_all(&[]);
    for host in 0..3 {
        rig.wait_look("it has grown", host, |look| {
            look.replicas[&id].bytes == 9 * MIB
        });
    }
}

#[test]
fn what_is_erased_is_free_again_and_who_was_away_does_it_later() {
    let mut rig = Rig::new(3);
    let free = |rig: &Rig, host| rig.look(host).disk.unwrap().free_bytes;
    let before = free(&rig, 0);
    let id = rig.create("data", 16 * MIB, &[0, 1, 2]);
    let target = rig.attach(0, 0, 1);
    let client = rig.client(&target);
    for at in 0..8 {
        let mib = bytes::Bytes::from(vec![7; MIB as usize]);
        rig.runtime
            .block_on(client.write(at * MIB, mib, false))
            .unwrap();
    }
    drop(client);
    rig.wait_equal(0, &[0, 1, 2]);
    assert!(free(&rig, 0) < before, "it takes room");
    rig.tell_all(&[]);
    rig.kill(2);
    rig.volumes.clear();
    let mut gone = rig.config(0, &[]);
    gone.deleted.insert(id);
    let erase = |rig: &Rig, host: usize| {
        rig.tell(host, &gone);
        rig.wait_look("it is erased, and its room is free", host, |look| {
            let free = look.disk.as_ref().unwrap().free_bytes;
            look.erased.contains(&id) && !look.replicas.contains_key(&id) && free == before
        });
    };
    erase(&rig, 0);
    erase(&rig, 1);
    // It has what it was told before it was away, and nothing is lost by that.
    rig.start(2);
    assert!(rig.look(2).replicas.contains_key(&id));
    erase(&rig, 2);
    rig.kill(2);
    rig.start(2);
    assert!(rig.look(2).replicas.is_empty());
}

/// The replica on `from` gives way to one on `to`.
fn move_replica(rig: &mut Rig, from: usize, to: usize) {
    let (from, disk) = (rig.hosts[from].id, rig.disk(to));
    let to = rig.hosts[to].id;
    let volume = &mut rig.volumes[0];
    volume.founding = Some(volume.founding());
    let at = volume.replicas.iter().position(|it| it.host == from);
    let left = volume.replicas.remove(at.unwrap());
    volume.leaving.push(left);
    volume.numbered += 1;
    volume.replicas.push(Replica {
        number: volume.numbered,
        host: to,
        disk,
    });
}

#[test]
fn a_replica_moves_under_load_and_an_old_configuration_does_not_bring_it_back() {
    let mut rig = Rig::with_disks(&[96 * MIB, 96 * MIB, 96 * MIB, 96 * MIB, 0]);
    let id = rig.create("data", 8 * MIB, &[0, 1, 2]);
    let target = rig.attach(0, 4, 1);
    let mut load = Load::start(&rig, &target);
    load.wait_more(50);
    let old = rig.config(2, &[]);
    move_replica(&mut rig, 2, 3);
    rig.tell_all(&[(0, 4, 1)]);
    rig.wait_look("the new one is there", 3, |look| {
        look.replicas.contains_key(&id)
    });
    rig.wait_look("the old one is gone", 2, |look| {
        !look.replicas.contains_key(&id)
    });
    load.wait_more(50);
    let (outcomes, longest) = load.end(&rig);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    println!("the longest write while a replica moved took {longest:?}");
    load.check(&rig, &target);
    rig.wait_equal(0, &[0, 1, 3]);
    let leads = rig.leader(0, &[0, 1, 3]);
    rig.wait_look("all decide", leads, |look| {
        let replica = &look.replicas[&id];
        let members: Vec<u64> = replica.members.iter().map(|it| it.number).collect();
        members == [1, 2, 4] && replica.members.iter().all(|it| it.votes && !it.behind)
    });
    // Whoever still believes that it is one of the first is none any more, and makes none.
    rig.kill(2);
    rig.start(2);
    rig.tell(2, &old);
    rig.wait_look("it says so", 2, |look| {
        let trouble = look.troubles.get(&id);
        trouble.is_some_and(|it| it.contains("the others removed the replica"))
    });
    assert!(!rig.look(2).replicas.contains_key(&id));
}

#[test]
fn one_replica_becomes_three_and_one_again() {
    let mut rig = Rig::new(3);
    let id = rig.create("data", 8 * MIB, &[0]);
    let target = rig.attach(0, 0, 1);
    let client = rig.client(&target);
    rig.runtime
        .block_on(client.write(MIB, contents(3), false))
        .unwrap();
    let founding = rig.volumes[0].founding();
    let more = [1, 2].map(|host| Replica {
        number: host as u64 + 1,
        host: rig.hosts[host].id,
        disk: rig.disk(host),
    });
    let volume = &mut rig.volumes[0];
    volume.founding = Some(founding);
    volume.replicas.extend(more);
    volume.numbered = 3;
    rig.tell_all(&[(0, 0, 1)]);
    rig.wait_look("three decide", 0, |look| {
        let members = &look.replicas[&id].members;
        members.len() == 3 && members.iter().all(|it| it.votes && it.there)
    });
    rig.wait_equal(0, &[0, 1, 2]);
    let volume = &mut rig.volumes[0];
    volume.leaving = volume.replicas.split_off(1);
    rig.tell_all(&[(0, 0, 1)]);
    for host in [1, 2] {
        rig.wait_look("it is gone", host, |look| look.replicas.is_empty());
    }
    let read = rig.runtime.block_on(client.read(MIB, 4096)).unwrap();
    assert!(
        read[..] == contents(3)[..],
        "the client was there all the time"
    );
}

#[test]
fn several_hosts_read_and_whoever_wrote_before_is_fenced() {
    let mut rig = Rig::with_disks(&[96 * MIB, 96 * MIB, 96 * MIB, 0]);
    let id = rig.create("data", 8 * MIB, &[0, 1, 2]);
    let writer = rig.attach(0, 0, 1);
    let client = rig.client(&writer);
    rig.runtime
        .block_on(client.write(0, contents(1), false))
        .unwrap();
    let reads = |rig: &Rig, host: usize| -> StorageConfig {
        let mut config = rig.config(host, &[(0, host, 2)]);
        let attachment = config.volumes[0].attachment.as_mut();
        attachment.unwrap().read_only = true;
        config
    };
    for host in [1, 2, 3] {
        rig.tell(host, &reads(&rig, host));
        let target = rig.wait_attached(0, host);
        let reader = rig.client(&target);
        let read = rig.runtime.block_on(reader.read(0, 4096)).unwrap();
        assert!(read[..] == contents(1)[..]);
        let refused = rig.runtime.block_on(reader.write(0, contents(2), false));
        assert!(refused.is_err(), "nothing is written by who only reads");
    }
    // The host that wrote was not told, and learns it.
    let late = rig.runtime.block_on(client.write(0, contents(9), false));
    assert!(late.unwrap_err().to_string().contains("attached elsewhere"));
    // All of them go on, also when one starts anew.
    rig.kill(1);
    rig.start(1);
    rig.tell(1, &reads(&rig, 1));
    for host in [1, 2, 3] {
        let target = rig.wait_attached(0, host);
        let reader = rig.client(&target);
        let read = rig.runtime.block_on(reader.read(0, 4096)).unwrap();
        assert!(read[..] == contents(1)[..]);
        assert_eq!(rig.look(host).attachments[&id].state.name(), "attached");
    }
}

/// A loop device that ends long before the disk on it does, from when it is told.
struct Failing {
    device: String,
    file: std::path::PathBuf,
}

fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {complained}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Failing {
    fn new(rig: &Rig, bytes: u64) -> Self {
        let file = rig.path().join("failing");
        std::fs::File::create(&file)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let device = sh(&format!("losetup --find --show {}", file.display()));
        Self { device, file }
    }

    /// From now on whatever is beyond the first MiB cannot be read or written.
    fn fail(&self) {
        std::fs::File::options()
            .write(true)
            .open(&self.file)
            .unwrap()
            .set_len(MIB)
            .unwrap();
        sh(&format!("losetup -c {}", self.device));
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        sh(&format!("losetup -d {}", self.device));
    }
}

#[test]
fn a_disk_that_fails_under_its_attachment_is_a_pause_for_clients() {
    let mut rig = Rig::new(3);
    let failing = Failing::new(&rig, 96 * MIB);
    rig.kill(0);
    rig.hosts[0].use_disk(failing.device.clone().into());
    rig.start(0);
    rig.create("data", 8 * MIB, &[0, 1, 2]);
    let target = rig.attach(0, 0, 1);
    let mut load = Load::start(&rig, &target);
    load.wait_more(100);
    failing.fail();
    rig.wait_look("the disk failed", 0, |look| {
        look.disk.as_ref().unwrap().dead.is_some()
    });
    load.wait_more(200);
    let (outcomes, longest) = load.end(&rig);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    println!("the longest write while the disk failed took {longest:?}");
    load.check(&rig, &target);
    rig.wait_equal(0, &[1, 2]);
    let leads = rig.leader(0, &[1, 2]);
    rig.wait_look("who leads knows", leads, |look| {
        let members = look.replicas.values().flat_map(|it| &it.members);
        let away = members.filter(|it| !it.there);
        away.map(|it| it.number).collect::<Vec<_>>() == [1]
    });
    testkit::eventually("it goes elsewhere, too", DEADLINE, || {
        rig.tell_all(&[(0, 1, 2)]);
        let moved = rig.wait_attached(0, 1);
        load.check(&rig, &moved);
        Ok::<(), String>(())
    });
    rig.kill(0);
}
