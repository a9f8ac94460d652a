//! Processes that are killed and stopped while clients write.

use crate::load::Load;
use crate::rig::{DEADLINE, MIB, Rig, contents};
use nbd_io::Target;
use nix::sys::signal::Signal;
use sbs::AttachmentState;
use std::time::Duration;

/// Three hosts with replicas, and one with none, where the volume is attached.
fn attached_elsewhere() -> (Rig, Target) {
    let mut rig = Rig::with_disks(&[96 * MIB, 96 * MIB, 96 * MIB, 0]);
    rig.create("data", 8 * MIB, &[0, 1, 2]);
    let target = rig.attach(0, 3, 1);
    (rig, target)
}

#[test]
fn killing_a_follower_is_not_seen() {
    let (mut rig, target) = attached_elsewhere();
    let mut load = Load::start(&rig, &target);
    load.wait_more(100);
    let follower = (rig.leader(0, &[0, 1, 2]) + 1) % 3;
    rig.kill(follower);
    load.wait_more(200);
    rig.start(follower);
    load.wait_more(200);
    let (outcomes, _) = load.end(&rig);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    load.check(&rig, &target);
    rig.wait_equal(0, &[0, 1, 2]);
}

#[test]
fn killing_the_leader_is_a_pause_for_clients_elsewhere() {
    let (mut rig, target) = attached_elsewhere();
    let mut load = Load::start(&rig, &target);
    for _ in 0..3 {
        load.wait_more(100);
        let leads = rig.leader(0, &[0, 1, 2]);
        rig.kill(leads);
        load.wait_more(100);
        rig.start(leads);
        rig.wait_attached(0, 3);
    }
    let (outcomes, longest) = load.end(&rig);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert!(
        longest < Duration::from_secs(10),
        "a write took {longest:?}"
    );
    println!("the longest write over 3 kills of the leader took {longest:?}");
    load.check(&rig, &target);
    rig.wait_equal(0, &[0, 1, 2]);
}

#[test]
fn killing_all_at_once_loses_nothing_that_was_answered() {
    let mut rig = Rig::new(3);
    rig.create("data", 8 * MIB, &[0, 1, 2]);
    let target = rig.attach(0, 0, 1);
    for _ in 0..2 {
        let mut load = Load::start(&rig, &target);
        load.wait_more(150);
        (0..3).for_each(|host| rig.kill(host));
        let (outcomes, _) = load.end(&rig);
        assert!(
            outcomes.iter().all(Result::is_err),
            "they lost their connections"
        );
        (0..3).for_each(|host| rig.start(host));
        rig.attach(0, 0, 1);
        load.check(&rig, &target);
        rig.wait_equal(0, &[0, 1, 2]);
    }
}

#[test]
fn a_leader_that_stands_still_is_replaced_and_follows_when_it_goes_on() {
    let (rig, target) = attached_elsewhere();
    let mut load = Load::start(&rig, &target);
    load.wait_more(100);
    let leads = rig.leader(0, &[0, 1, 2]);
    rig.signal(leads, Signal::SIGSTOP);
    load.wait_more(300);
    rig.signal(leads, Signal::SIGCONT);
    load.wait_more(300);
    let (outcomes, longest) = load.end(&rig);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    println!("the longest write took {longest:?}");
    load.check(&rig, &target);
    rig.wait_equal(0, &[0, 1, 2]);
}

#[test]
fn attaching_elsewhere_fences_the_old_client() {
    let mut rig = Rig::new(3);
    let volume = rig.create("data", 8 * MIB, &[0, 1, 2]);
    let target = rig.attach(0, 0, 1);
    let mut load = Load::start(&rig, &target);
    load.wait_more(100);
    // The host that has it hears nothing of that.
    rig.tell(1, &rig.config(1, &[(0, 1, 2)]));
    let moved = rig.wait_attached(0, 1);
    let (outcomes, _) = load.end(&rig);
    let fenced = |outcome: &Result<(), String>| {
        outcome
            .as_ref()
            .is_err_and(|error| error.contains("attached elsewhere"))
    };
    // Some may have been asked to stop before.
    assert!(outcomes.iter().any(fenced), "{outcomes:?}");
    assert!(
        outcomes
            .iter()
            .all(|outcome| outcome.is_ok() || fenced(outcome)),
        "{outcomes:?}"
    );
    load.check(&rig, &moved);
    testkit::eventually("the old one knows", DEADLINE, || {
        let state = rig.look(0).attachments[&volume].state.clone();
        (state == AttachmentState::Fenced)
            .then_some(())
            .ok_or(format!("{state:?}"))
    });
}

#[test]
fn a_volume_is_detached_under_load() {
    let mut rig = Rig::new(3);
    rig.create("data", 8 * MIB, &[0, 1, 2]);
    let target = rig.attach(0, 0, 1);
    let mut load = Load::start(&rig, &target);
    load.wait_more(100);
    rig.tell_all(&[]);
    assert!(rig.look(0).attachments.is_empty());
    assert!(!rig.socket(0, 0).exists());
    let (outcomes, _) = load.end(&rig);
    assert!(outcomes.iter().any(Result::is_err), "{outcomes:?}");
    let again = rig.attach(0, 0, 2);
    load.check(&rig, &again);
}

#[test]
fn a_full_disk_refuses_what_needs_room_and_goes_on() {
    let mut rig = Rig::with_disks(&[56 * MIB]);
    rig.create("thin", 256 * MIB, &[0]);
    let target = rig.attach(0, 0, 1);
    let client = rig.client(&target);
    let mut written = 0;
    let refused = loop {
        let mib = bytes::Bytes::from(vec![7; MIB as usize]);
        match rig
            .runtime
            .block_on(client.write(written * MIB, mib, false))
        {
            Ok(()) => written += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(
        refused.contains("no space left"),
        "after {written} MiB: {refused}"
    );
    assert!(written > 4, "{written}");
    // What is there is overwritten, read, and given back.
    rig.runtime
        .block_on(client.write(0, contents(9), false))
        .unwrap();
    let read = rig.runtime.block_on(client.read(0, 4096)).unwrap();
    assert!(read[..] == contents(9)[..]);
    rig.runtime
        .block_on(client.trim(MIB, (2 * MIB) as u32, false))
        .unwrap();
    testkit::eventually("there is room again", DEADLINE, || {
        let mib = bytes::Bytes::from(vec![8; MIB as usize]);
        let done = rig
            .runtime
            .block_on(client.write(written * MIB, mib, false));
        done.map_err(|error| error.to_string())
    });
}
