//! A block of which all copies are bad is an error for who reads it, for nobody else, and until it is written again.

use super::contract::{storage_off, storage_on};
use super::{attach, create, wait_healthy, write};
use lab::{Lab, text_of};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const BLOCK: usize = 4096;
/// Bytes from the volume's beginning.
const AT: usize = 5 << 20;

/// Flips a bit in each place of a host's disk that holds just these bytes. The host's storage is off.
fn damage(lab: &Lab, host: &str, block: &[u8]) {
    let path = format!("/proc/{}/root/var/lib/vpc/storage/disk", lab.holder(host));
    let path = PathBuf::from(path);
    let disk = File::options().read(true).write(true).open(&path);
    let disk = disk.expect("the host has a disk");
    let bytes = disk.metadata().expect("it has a size").len();
    let mut found = 0;
    let mut held = vec![0; BLOCK];
    for at in (0..bytes).step_by(BLOCK) {
        disk.read_exact_at(&mut held, at).expect("it can be read");
        if held == block {
            disk.write_all_at(&[held[99] ^ 4], at + 99)
                .expect("it can be written");
            found += 1;
        }
    }
    assert!(found > 0, "{host} has no such block");
}

fn qemu_io(lab: &Lab, uri: &str, command: &str) -> (bool, String) {
    let output = lab.try_sh("c1", &format!("qemu-io -f raw -c '{command}' '{uri}'"));
    let text = text_of(&output);
    let failed = !output.status.success() || text.contains("failed");
    (!failed, text)
}

fn wait_state(lab: &Lab, state: &str) {
    lab.eventually(state, || {
        let shown = lab.admin("volume show data");
        match shown["state"] == state {
            true => Ok(()),
            false => Err(shown.to_string()),
        }
    });
}

#[test]
fn a_block_that_nobody_has_is_an_error_until_it_is_written() {
    let lab = super::up();
    create(&lab);
    let uri = attach(&lab, "c1");
    write(&lab, "c1", &uri);
    wait_healthy(&lab);
    let image = std::fs::read(format!("/proc/{}/root/run/image", lab.holder("c1")));
    let image = image.expect("it was written there");
    let hosts = ["m1", "c1", "c2"];
    hosts.iter().for_each(|host| storage_off(&lab, host));
    for host in hosts {
        damage(&lab, host, &image[AT..][..BLOCK]);
    }
    hosts.iter().for_each(|host| storage_on(&lab, host));
    lab.eventually("it is served again", || {
        let (served, text) = qemu_io(&lab, &uri, "read 0 4k");
        served.then_some(()).ok_or(text)
    });
    let (read, text) = qemu_io(&lab, &uri, &format!("read {AT} 4k"));
    assert!(!read && text.contains("Input/output error"), "{text}");
    for (from, length) in [(0, AT), (AT + BLOCK, 4 << 20)] {
        let (read, text) = qemu_io(&lab, &uri, &format!("read {from} {length}"));
        assert!(read, "{text}");
    }
    wait_state(&lab, "lost-blocks");
    let told = text_of(&lab.try_sh("c1", "vpc doctor"));
    assert!(told.contains("no replica has"), "{told}");
    // What nobody has stays an error, whoever leads.
    let uri = attach(&lab, "c1");
    let (read, text) = qemu_io(&lab, &uri, &format!("read {AT} 4k"));
    assert!(!read, "{text}");

    let (written, text) = qemu_io(&lab, &uri, &format!("write -P 0x5a {AT} 4k"));
    assert!(written, "{text}");
    let (read, text) = qemu_io(&lab, &uri, &format!("read -P 0x5a {AT} 4k"));
    assert!(read, "{text}");
    wait_state(&lab, "healthy");
}
