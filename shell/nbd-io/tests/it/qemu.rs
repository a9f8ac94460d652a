//! QEMU's tools, and fio.

use crate::rig::{MIB, Rig, pattern, run, try_run};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&run("qemu-img", args)).unwrap()
}

#[test]
fn qemu_img_sees_the_size_and_what_is_allocated() {
    let rig = Rig::new(8 * MIB);
    let file = fs::File::options().write(true).open(rig.file()).unwrap();
    file.write_all_at(&pattern(65536), MIB).unwrap();
    let info = json(&["info", "--output=json", &rig.uri("disk")]);
    assert_eq!(info["virtual-size"], 8 * MIB);
    let map = json(&["map", "--output=json", &rig.uri("disk")]);
    let data: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["data"] == true)
        .collect();
    assert_eq!(data.len(), 1, "{map:#}");
    assert_eq!(
        (&data[0]["start"], &data[0]["length"]),
        (&MIB.into(), &65536.into())
    );
    let gone = try_run("qemu-img", &["info", &rig.uri("nothing")]).unwrap_err();
    assert!(gone.contains("there is no such export"), "{gone}");
}

#[test]
fn qemu_img_converts_there_and_back() {
    let rig = Rig::new(16 * MIB);
    let (raw, qcow) = (rig.path("raw"), rig.path("qcow2"));
    let source = fs::File::create(&raw).unwrap();
    source.set_len(16 * MIB).unwrap();
    for at in [0, 5 * MIB + 512, 15 * MIB] {
        source.write_all_at(&pattern(300_032), at).unwrap();
    }
    let (raw, qcow) = (raw.to_str().unwrap(), qcow.to_str().unwrap());
    run(
        "qemu-img",
        &[
            "convert",
            "-n",
            "-f",
            "raw",
            "-O",
            "raw",
            "-W",
            raw,
            &rig.uri("disk"),
        ],
    );
    assert!(fs::read(rig.file()).unwrap() == fs::read(raw).unwrap());
    run(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            &rig.uri("disk"),
            qcow,
        ],
    );
    run("qemu-img", &["compare", raw, qcow]);
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", raw, &rig.uri("disk")],
    );
    assert!(fs::metadata(rig.file()).unwrap().blocks() * 512 < 2 * MIB);
}

#[test]
fn qemu_io_writes_what_it_reads() {
    let rig = Rig::new(16 * MIB);
    let commands = [
        "write -P 1 0 1M",
        "write -P 2 -f 1M 64k",
        "aio_write -P 3 2M 4M",
        "aio_write -P 4 6M 4M",
        "aio_flush",
        "write -z 2M 1M",
        "write -z -u 3M 1M",
        "write -z -n -u 1M 4k",
        "discard 0 64k",
        "flush",
        "read -P 0 2M 2M",
        "read -P 3 4M 2M",
        "read -P 4 6M 4M",
        "read -P 0 1M 4k",
        "read -P 2 1028k 60k",
        "read -P 1 64k 960k",
        "read -P 0 10M 6M",
        "writev -P 5 512 1024 2048",
        "readv -P 5 512 1024 2048",
        "map",
    ];
    let mut args = vec!["-f", "raw"];
    for command in &commands {
        args.extend(["-c", command]);
    }
    let uri = rig.uri("disk");
    args.push(&uri);
    let said = run("qemu-io", &args);
    assert!(!said.contains("verification failed"), "{said}");
    let locked = rig.uri("locked");
    let refused = try_run("qemu-io", &["-f", "raw", "-c", "write 0 512", &locked]).unwrap_err();
    assert!(refused.contains("Permission denied"), "{refused}");
}

#[test]
fn qemu_io_keeps_to_the_block_size() {
    let rig = Rig::new(MIB);
    let uri = rig.uri("blocks");
    let commands = [
        "-c",
        "write -P 7 512 1024",
        "-c",
        "read -P 7 512 1024",
        "-c",
        "read -P 0 0 512",
    ];
    let said = run(
        "qemu-io",
        &[&["-f", "raw"][..], &commands, &[&uri]].concat(),
    );
    assert!(!said.contains("verification failed"), "{said}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let rig = Rig::new(32 * MIB);
    let uri = format!("--uri={}", rig.uri("disk"));
    let args = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randrw",
        "--bsrange=512-64k",
        "--iodepth=32",
        "--size=32m",
        "--io_size=48m",
        "--verify=crc32c",
        "--verify_fatal=1",
        // Else it leaves a file in the working directory.
        "--verify_state_save=0",
        "--fsync=64",
        "--randseed=7",
        "--output-format=json",
    ];
    let said = run("fio", &args);
    let said: Value = serde_json::from_str(&said[said.find('{').unwrap()..]).unwrap();
    assert_eq!(said["jobs"][0]["error"], 0);
    assert!(said["jobs"][0]["read"]["total_ios"].as_u64() > Some(100));
}
