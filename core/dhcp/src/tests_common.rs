//! A port that the tests of each protocol ask about.

use crate::{Facts, V4, V6};
use model::{MacAddr, Mtu, NicId, SubnetId, SubnetOptions};

pub(crate) const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 7]);
pub(crate) const SERVER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub(crate) const SERVER: [u8; 4] = [10, 4, 1, 1];

pub(crate) fn facts() -> Facts {
    Facts {
        nic: NicId::from_random(7),
        mac: MAC,
        subnet: SubnetId::from_random(1),
        mtu: Mtu::new(1450).unwrap(),
        server_mac: SERVER_MAC,
        v4: Some(V4 {
            address: "10.4.1.9/24".parse().unwrap(),
            server: SERVER.into(),
            router: Some(SERVER.into()),
        }),
        v6: Some(V6 {
            address: Some("fd00::9".parse().unwrap()),
            net: "fd00::/64".parse().unwrap(),
            router: true,
        }),
        options: SubnetOptions {
            dns: ["10.4.1.53", "fd00::53", "10.4.1.54"]
                .map(|a| a.parse().unwrap())
                .into(),
            domain: Some("blue.internal".parse().unwrap()),
            search: vec!["web.blue".parse().unwrap(), "b".parse().unwrap()],
            ntp: vec!["10.4.1.123".parse().unwrap()],
            custom: [(66, b"tftp".to_vec())].into(),
            dhcp: true,
        },
    }
}
