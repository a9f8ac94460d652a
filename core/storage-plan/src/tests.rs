use super::*;

const HERE: HostId = HostId::from_random(1);
const DISK: DiskId = DiskId(11);

fn volume(number: u64) -> VolumeConfig {
    let replica = |host: u64| Replica {
        number: host,
        host: HostId::from_random(host),
        disk: DiskId(u128::from(host) + 10),
    };
    VolumeConfig {
        id: VolumeId::from_random(number),
        name: Name::new(format!("v{number}")).unwrap(),
        size: VolumeSize::new(1 << 30).unwrap(),
        replicas: (1..=3).map(replica).collect(),
        founding: None,
        leaving: Vec::new(),
        numbered: 3,
        recovery: None,
        attachment: None,
    }
}

fn attached(number: u64, attachment: u64) -> VolumeConfig {
    VolumeConfig {
        attachment: Some(VolumeAttachment {
            number: attachment,
            read_only: false,
            tcp_port: None,
        }),
        ..volume(number)
    }
}

fn wanted(volumes: &[VolumeConfig]) -> StorageConfig {
    StorageConfig {
        volumes: volumes.to_vec(),
        ..StorageConfig::default()
    }
}

fn have() -> Have {
    Have {
        host: HERE,
        disk: Some(DISK),
        replicas: BTreeMap::new(),
        had: BTreeSet::new(),
        attached: BTreeMap::new(),
    }
}

/// Has all that is wanted.
fn reach(have: &mut Have, wanted: &StorageConfig) {
    let steps = plan(wanted, have).steps;
    follow(have, &steps);
}

/// Carries steps out.
fn follow(have: &mut Have, steps: &[Step]) {
    for step in steps {
        match step.clone() {
            Step::Detach { volume } => drop(have.attached.remove(&volume)),
            Step::Delete { volume } => drop(have.replicas.remove(&volume)),
            Step::Create {
                volume,
                size,
                replicas,
            } => {
                let replica = HaveReplica {
                    bytes: size.bytes(),
                    number: 1,
                    recovery: 0,
                    leads: false,
                    wanted: replicas.iter().map(|it| (it.number, it.host)).collect(),
                    numbered: replicas.iter().map(|it| it.number).max().unwrap_or(0),
                };
                have.replicas.insert(volume, replica);
                have.had.insert(volume);
            }
            Step::Recover { volume, recovery } => {
                have.replicas.get_mut(&volume).unwrap().recovery = recovery.number;
            }
            Step::Grow { volume, size } => {
                have.replicas.get_mut(&volume).unwrap().bytes = size.bytes();
            }
            Step::Change { volume, replicas } => {
                let wanted = replicas.iter().map(|it| (it.number, it.host));
                have.replicas.get_mut(&volume).unwrap().wanted = wanted.collect();
            }
            Step::Attach { volume, attached } | Step::Adjust { volume, attached } => {
                drop(have.attached.insert(volume, attached));
            }
        }
    }
}

#[test]
fn what_is_wanted_is_made_and_then_there_is_nothing_to_do() {
    let wanted = wanted(&[volume(1), attached(2, 1)]);
    let mut have = have();
    let first = plan(&wanted, &have);
    let made: Vec<VolumeId> = first
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Create { volume, .. } => Some(*volume),
            _ => None,
        })
        .collect();
    assert_eq!(made, [volume(1).id, volume(2).id]);
    assert!(matches!(first.steps.last(), Some(Step::Attach { .. })));
    follow(&mut have, &first.steps);
    assert_eq!(plan(&wanted, &have), Plan::default());
}

#[test]
fn a_replica_that_was_on_another_disk_is_not_made_anew() {
    let wanted = wanted(&[volume(1)]);
    let mut have = have();
    have.disk = Some(DiskId(99));
    let plan_of = plan(&wanted, &have);
    assert_eq!(plan_of.steps, []);
    let lack = Lack::OtherDisk {
        placed: DISK,
        found: DiskId(99),
    };
    assert_eq!(plan_of.lacks[&volume(1).id], lack);
    have.disk = None;
    assert_eq!(plan(&wanted, &have).lacks[&volume(1).id], Lack::NoDisk);
}

#[test]
fn a_volume_of_others_is_attached_and_has_no_replica_here() {
    let mut elsewhere = attached(1, 1);
    elsewhere.replicas.retain(|replica| replica.host != HERE);
    let plan = plan(&wanted(&[elsewhere.clone()]), &have());
    assert!(matches!(&plan.steps[..], [Step::Attach { .. }]), "{plan:?}");
    assert!(plan.lacks.is_empty());
}

#[test]
fn another_attachment_is_made_after_the_one_before_has_ended() {
    let mut have = have();
    reach(&mut have, &wanted(&[attached(1, 1)]));
    let again = plan(&wanted(&[attached(1, 2)]), &have);
    let kinds: Vec<bool> = again
        .steps
        .iter()
        .map(|step| matches!(step, Step::Detach { .. }))
        .collect();
    assert_eq!(kinds, [true, false], "{again:?}");
    follow(&mut have, &again.steps);
    assert_eq!(plan(&wanted(&[attached(1, 2)]), &have), Plan::default());
}

#[test]
fn only_what_is_named_as_deleted_goes() {
    let mut have = have();
    reach(&mut have, &wanted(&[attached(1, 1), volume(2)]));
    let nothing = plan(&StorageConfig::default(), &have);
    assert_eq!(
        nothing.steps,
        [Step::Detach {
            volume: volume(1).id
        }]
    );
    let mut deleted = wanted(&[volume(2)]);
    // What is still wanted stays, whatever is said of it.
    deleted.deleted = BTreeSet::from([volume(1).id, volume(2).id]);
    let steps = plan(&deleted, &have).steps;
    let (detach, delete) = (
        Step::Detach {
            volume: volume(1).id,
        },
        Step::Delete {
            volume: volume(1).id,
        },
    );
    assert_eq!(steps, [detach, delete]);
}

fn kinds(steps: &[Step]) -> Vec<&'static str> {
    let kind = |step: &Step| match step {
        Step::Detach { .. } => "detach",
        Step::Delete { .. } => "delete",
        Step::Create { .. } => "create",
        Step::Recover { .. } => "recover",
        Step::Grow { .. } => "grow",
        Step::Change { .. } => "change",
        Step::Adjust { .. } => "adjust",
        Step::Attach { .. } => "attach",
    };
    steps.iter().map(kind).collect()
}

#[test]
fn a_volume_grows_by_who_leads_it_while_clients_stay() {
    let mut have = have();
    reach(&mut have, &wanted(&[attached(1, 1)]));
    let mut larger = attached(1, 1);
    larger.size = VolumeSize::new(2 << 30).unwrap();
    let wanted = wanted(&[larger]);
    let follows = plan(&wanted, &have);
    assert_eq!(
        (kinds(&follows.steps), follows.unsettled),
        (vec!["adjust"], true)
    );
    have.replicas.get_mut(&volume(1).id).unwrap().leads = true;
    assert_eq!(kinds(&plan(&wanted, &have).steps), ["grow", "adjust"]);
    reach(&mut have, &wanted);
    assert_eq!(plan(&wanted, &have), Plan::default());
    // What is smaller is another thing: clients that are there could read beyond its end.
    let smaller = StorageConfig {
        volumes: vec![attached(1, 1)],
        ..StorageConfig::default()
    };
    assert_eq!(kinds(&plan(&smaller, &have).steps), ["detach", "attach"]);
}

/// Replica 3 gives way to a fourth, elsewhere.
fn moved(mut volume: VolumeConfig) -> VolumeConfig {
    volume.founding = Some(volume.founding());
    volume.leaving = vec![volume.replicas.remove(2)];
    volume.replicas.push(Replica {
        number: 4,
        host: HostId::from_random(4),
        disk: DiskId(14),
    });
    volume.numbered = 4;
    volume
}

#[test]
fn who_leads_has_the_members_changed() {
    let mut have = have();
    reach(&mut have, &wanted(&[attached(1, 1)]));
    let before = have.clone();
    let wanted_now = wanted(&[moved(attached(1, 1))]);
    assert_eq!(kinds(&plan(&wanted_now, &have).steps), ["adjust"]);
    have.replicas.get_mut(&volume(1).id).unwrap().leads = true;
    assert_eq!(kinds(&plan(&wanted_now, &have).steps), ["change", "adjust"]);
    reach(&mut have, &wanted_now);
    assert_eq!(plan(&wanted_now, &have), Plan::default());
    // An old configuration does not bring back what left: the log knows of a replica that came after it.
    let replica = have.replicas.get_mut(&volume(1).id).unwrap();
    replica.numbered = 4;
    have.attached = before.attached;
    let old = plan(&wanted(&[attached(1, 1)]), &have);
    assert_eq!((kinds(&old.steps), old.unsettled), (vec![], true));
}

#[test]
fn only_founders_are_made_and_only_once() {
    let mut late = have();
    let wanted_now = wanted(&[moved(volume(1))]);
    let made = plan(&wanted_now, &late).steps;
    let founding = volume(1).founding();
    let as_founded = Step::Create {
        volume: volume(1).id,
        size: founding.size,
        replicas: founding.replicas,
    };
    assert_eq!(made, [as_founded], "as the others were made");
    follow(&mut late, &made);
    // It was removed by the others, and this host has not heard of that yet.
    late.replicas.clear();
    let again = plan(&wanted_now, &late);
    assert_eq!(again.steps, []);
    assert_eq!(again.lacks[&volume(1).id], Lack::Removed);
    // Who comes later waits for who leads.
    let joins = Have {
        host: HostId::from_random(4),
        disk: Some(DiskId(14)),
        ..have()
    };
    assert_eq!(plan(&wanted_now, &joins), Plan::default());
}

#[test]
fn a_replica_that_left_goes_also_where_the_volume_is_attached() {
    let mut have = have();
    reach(&mut have, &wanted(&[attached(1, 1)]));
    let mut elsewhere = attached(1, 1);
    elsewhere.founding = Some(elsewhere.founding());
    elsewhere.replicas.remove(0);
    let mut wanted = wanted(&[elsewhere]);
    wanted.deleted.insert(volume(1).id);
    assert_eq!(kinds(&plan(&wanted, &have).steps), ["delete", "adjust"]);
}

#[test]
fn a_volume_goes_on_from_the_replica_that_was_chosen_and_once() {
    let mut have = have();
    reach(&mut have, &wanted(&[volume(1)]));
    let recovered = |number, replica| {
        let mut volume = volume(1);
        volume.replicas.retain(|it| it.number == replica);
        volume.recovery = Some(Recovery {
            number,
            replica,
            attachments: 4,
        });
        wanted(&[volume])
    };
    let elsewhere = plan(&recovered(1, 2), &have);
    assert_eq!(kinds(&elsewhere.steps), [""; 0], "another host has it");
    let first = plan(&recovered(1, 1), &have);
    assert_eq!(kinds(&first.steps), ["recover"]);
    assert!(first.unsettled, "it is looked at again");
    follow(&mut have, &first.steps);
    assert_eq!(kinds(&plan(&recovered(1, 1), &have).steps), [""; 0]);
    assert_eq!(kinds(&plan(&recovered(2, 1), &have).steps), ["recover"]);
}
