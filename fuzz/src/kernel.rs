//! What the kernel says, as `linux` reads it. The kernel is no enemy; a version of it that says
//! something else than the one we know must not bring the agent down either.

/// A datagram of route netlink.
pub fn netlink(data: &[u8]) {
    linux::fuzzing::netlink(data);
}

/// Elements of our sets, and the names of BPF filters.
pub fn nftables(data: &[u8]) {
    linux::fuzzing::nftables(data);
}

/// Messages of route netlink: an interface, a row of a forwarding database, a neighbour, an
/// acknowledgement with text, a filter.
pub fn netlink_samples() -> Vec<Vec<u8>> {
    let attribute = |kind: u16, value: &[u8]| {
        let mut out = (4 + value.len() as u16).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    };
    let message = |kind: u16, payload: &[u8]| {
        let mut out = (16 + payload.len() as u32).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend([0; 10]);
        out.extend(payload);
        out
    };
    let mac = attribute(2, &[2, 0, 0, 0, 0, 1]);
    let row = |family: u8, rest: &[u8]| {
        let header = [family, 0, 0, 0, 5, 0, 0, 0, 0x80, 0, 0x10, 0];
        message(28, &[&header[..], rest].concat())
    };
    let vxlan = [
        attribute(1, b"vxlan\0"),
        attribute(
            2,
            &[
                attribute(1, &100_u32.to_ne_bytes()),
                attribute(4, &[10, 0, 0, 1]),
                attribute(15, &4789_u16.to_be_bytes()),
            ]
            .concat(),
        ),
    ];
    let link = [
        attribute(3, b"t-100\0"),
        attribute(1, &[2, 0, 0, 0, 0, 9]),
        attribute(4, &1450_u32.to_ne_bytes()),
        attribute(20, b"vpc:subnet:0000000000001\0"),
        attribute(18, &vxlan.concat()),
        attribute(10, &7_u32.to_ne_bytes()),
    ];
    let header = [0, 0, 1, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    let filter = attribute(2, &attribute(7, b"vpc-push-7-5\0"));
    let mut error = (-95_i32).to_ne_bytes().to_vec();
    error.extend([0; 16]);
    error.extend(attribute(1, b"no\0"));
    vec![
        row(7, &[mac.clone(), attribute(1, &[10, 0, 0, 2])].concat()),
        row(
            7,
            &[mac.clone(), attribute(9, &7_u32.to_ne_bytes())].concat(),
        ),
        row(2, &[attribute(1, &[10, 1, 0, 2]), mac].concat()),
        message(16, &[&header[..], &link.concat()].concat()),
        message(44, &[&[0; 20][..], &filter].concat()),
        message(2, &error),
        message(
            20,
            &[
                &[2, 24, 0, 0, 5, 0, 0, 0][..],
                &attribute(1, &[10, 1, 0, 2]),
            ]
            .concat(),
        ),
    ]
}

/// Messages with an element of each length of key that our sets have.
pub fn element_samples() -> Vec<Vec<u8>> {
    let attribute = |kind: u16, value: &[u8]| {
        let mut out = (4 + value.len() as u16).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    };
    let mut name = b"n-0000000001".to_vec();
    name.resize(16, 0);
    [0, 4, 8, 16]
        .iter()
        .map(|length| [&name[..], &vec![2; *length]].concat())
        .chain([vec![10, 0, 0, 1], vec![0xfd; 16]])
        .map(|key| {
            let element = attribute(1, &attribute(1, &attribute(1, &key)));
            [&[7, 0, 0, 0][..], &attribute(3, &element)].concat()
        })
        .collect()
}
