//! Clients of others.

use crate::rig::{MIB, Rig};
use std::process::Command;

fn run(command: &[&str]) -> String {
    let output = Command::new(command[0])
        .args(&command[1..])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{complained}");
    said
}

#[test]
fn a_volume_of_three_replicas_is_read_and_written_by_foreign_clients() {
    let mut rig = Rig::new(3);
    rig.create("data", 32 * MIB, &[0, 1, 2]);
    rig.attach(0, 1, 1);
    let uri = rig.uri(0, 1);

    let info = run(&["nbdinfo", &uri]);
    for line in [
        "export-size: 33554432",
        "can_multi_conn: true",
        "block_size_minimum: 4096",
    ] {
        assert!(info.contains(line), "{line}: {info}");
    }
    let list = run(&["nbdinfo", "--list", &uri]);
    assert!(list.contains("export=\"data\""), "{list}");

    let image = rig.path().join("image");
    let back = rig.path().join("back");
    let contents: Vec<u8> = (0..16 * MIB / 8)
        .flat_map(|word| {
            if word / 512 % 3 == 0 {
                0
            } else {
                word.wrapping_mul(0x9e37_79b9_7f4a_7c15)
            }
            .to_le_bytes()
        })
        .collect();
    std::fs::write(&image, &contents).unwrap();
    run(&["nbdcopy", image.to_str().unwrap(), &uri]);
    run(&["nbdcopy", &uri, back.to_str().unwrap()]);
    let read = std::fs::read(&back).unwrap();
    assert!(
        read[..contents.len()] == contents[..],
        "what nbdcopy wrote is what it reads"
    );
    assert!(read[contents.len()..].iter().all(|byte| *byte == 0));
    run(&[
        "qemu-img",
        "compare",
        "-f",
        "raw",
        "-F",
        "raw",
        &uri,
        back.to_str().unwrap(),
    ]);

    run(&[
        "qemu-io",
        "-f",
        "raw",
        &uri,
        "-c",
        "write -P 0xaa 0 3M",
        "-c",
        "write -z 1M 64k",
        "-c",
        "write -f -P 0xbb 2M 4k",
        "-c",
        "write -P 0xcc 20481k 1k",
        "-c",
        "flush",
        "-c",
        "discard 8M 1M",
        "-c",
        "read -P 0xaa 0 1M",
        "-c",
        "read -P 0 1M 64k",
        "-c",
        "read -P 0xbb 2M 4k",
        "-c",
        "read -P 0xcc 20481k 1k",
        "-c",
        "read -P 0 8M 1M",
    ]);
    let fio = run(&[
        "fio",
        "--name=verify",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        "--size=32m",
        "--io_size=4m",
        "--verify=crc32c",
        "--do_verify=1",
        "--randrepeat=0",
        // It would be left in the working directory.
        "--verify_state_save=0",
    ]);
    assert!(fio.contains("err= 0"), "{fio}");
    rig.wait_equal(0, &[0, 1, 2]);
}
