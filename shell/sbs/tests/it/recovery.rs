//! A volume goes on from one replica, by word of the configuration; the others come back with what they were told before.

use crate::rig::{MIB, Rig, contents};
use model::Recovery;

#[test]
fn a_volume_goes_on_from_one_replica_and_the_others_are_none_any_more() {
    let mut rig = Rig::with_disks(&[96 * MIB, 96 * MIB, 96 * MIB, 0]);
    let id = rig.create("data", 8 * MIB, &[0, 1, 2]);
    let target = rig.attach(0, 3, 1);
    let before = rig.client(&target);
    rig.runtime
        .block_on(before.write(0, contents(1), false))
        .unwrap();
    rig.wait_equal(0, &[0, 1, 2]);
    let volume = &mut rig.volumes[0];
    volume.founding = Some(volume.founding());
    volume.replicas.truncate(1);
    volume.recovery = Some(Recovery {
        number: 1,
        replica: 1,
        attachments: 2,
    });
    rig.kill(1);
    rig.kill(2);
    rig.tell(0, &rig.config(0, &[]));
    rig.wait_look("it goes on alone", 0, |look| {
        let replica = &look.replicas[&id];
        replica.role.name() == "leader" && replica.voters == [1] && look.troubles.is_empty()
    });
    // Host 3 was not told yet: its clients remember what may be lost.
    let refused = rig.runtime.block_on(before.write(0, contents(2), false));
    assert!(refused.is_err(), "it was fenced");
    let target = rig.attach(0, 3, 3);
    let after = rig.client(&target);
    let read = rig.runtime.block_on(after.read(0, 4096)).unwrap();
    assert!(read[..] == contents(1)[..]);
    rig.runtime
        .block_on(after.write(0, contents(3), false))
        .unwrap();
    for host in [1, 2] {
        rig.start(host);
        rig.wait_look("it has none any more", host, |look| {
            !look.replicas.contains_key(&id)
        });
    }
    let read = rig.runtime.block_on(after.read(0, 4096)).unwrap();
    assert!(read[..] == contents(3)[..]);
    rig.kill(0);
    rig.start(0);
    rig.tell(0, &rig.config(0, &[]));
    let read = rig.runtime.block_on(after.read(0, 4096)).unwrap();
    assert!(
        read[..] == contents(3)[..],
        "it was recovered once and for all"
    );
}
