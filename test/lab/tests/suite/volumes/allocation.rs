//! What foreign clients are told of which parts of a volume have something.

use super::{attach, create};
use lab::Lab;
use serde_json::Value;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// (from, bytes, whether something is there), as libnbd's tool has it.
fn nbdinfo(lab: &Lab, host: &str, uri: &str) -> Vec<(u64, u64, bool)> {
    let map = lab.json(host, &format!("nbdinfo --json --map '{uri}'"));
    let extents = map.as_array().expect("a list").iter();
    let number = |extent: &Value, key: &str| extent[key].as_u64().expect("a number");
    let extent = |it: &Value| {
        let kind = number(it, "type");
        assert!(kind == 0 || kind == 3, "a hole reads as zeroes: {it}");
        (number(it, "offset"), number(it, "length"), kind == 0)
    };
    extents.map(extent).collect()
}

/// The same, as QEMU's has it.
fn qemu(lab: &Lab, host: &str, uri: &str) -> Vec<(u64, u64, bool)> {
    let map = lab.json(host, &format!("qemu-img map --output=json -f raw '{uri}'"));
    let extents = map.as_array().expect("a list").iter();
    let number = |extent: &Value, key: &str| extent[key].as_u64().expect("a number");
    let extent = |it: &Value| {
        assert_eq!(it["data"], it["zero"] == false, "{it}");
        (
            number(it, "start"),
            number(it, "length"),
            it["data"] == true,
        )
    };
    extents.map(extent).collect()
}

#[test]
fn holes_are_told_as_holes() {
    let lab = super::up();
    create(&lab);
    // Wherever the leader is.
    for host in ["c1", "c2"] {
        let uri = attach(&lab, host);
        if host == "c1" {
            assert_eq!(nbdinfo(&lab, host, &uri), [(0, 32 * MIB, false)]);
            let write = format!(
                "qemu-io -f raw -c 'write -P 7 4M 1M' -c 'write -P 7 8M 4k' -c 'write -P 7 16M 64k' -c 'discard 16M 4k' \
                 -c 'write -z -u 4608k 256k' '{uri}'"
            );
            lab.sh(host, &write);
        }
        let expected = [
            (0, 4 * MIB, false),
            (4 * MIB, 512 * KIB, true),
            (4 * MIB + 512 * KIB, 256 * KIB, false),
            (4 * MIB + 768 * KIB, 256 * KIB, true),
            (5 * MIB, 3 * MIB, false),
            (8 * MIB, 4 * KIB, true),
            (8 * MIB + 4 * KIB, 8 * MIB, false),
            (16 * MIB + 4 * KIB, 60 * KIB, true),
            (16 * MIB + 64 * KIB, 16 * MIB - 64 * KIB, false),
        ];
        assert_eq!(nbdinfo(&lab, host, &uri), expected, "libnbd on {host}");
        assert_eq!(qemu(&lab, host, &uri), expected, "QEMU on {host}");
    }
}
