//! OpenStack's metadata, as far as there is something to say.

use crate::{BYTES, Instance, JSON, Response, TEXT};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;

/// All are the same.
const VERSIONS: &[&str] = &[
    "2012-08-10",
    "2015-10-15",
    "2017-02-22",
    "2018-08-27",
    "latest",
];

pub(crate) fn answer(instance: &Instance<'_>, parts: &[&str]) -> Response {
    let json = |value: &Value| Response::new(JSON, value.to_string());
    match parts {
        [] => Response::new(TEXT, VERSIONS.join("\n")),
        [version, ..] if !VERSIONS.contains(version) => Response::none(),
        [_] => {
            let user_data = instance.nic.user_data.as_ref().map(|_| "user_data");
            let names = ["meta_data.json", "network_data.json", "vendor_data.json"];
            let names: Vec<&str> = names.into_iter().chain(user_data).collect();
            Response::new(TEXT, names.join("\n"))
        }
        [_, "meta_data.json"] => json(&meta_data(instance)),
        [_, "network_data.json"] => json(&network_data(instance)),
        [_, "vendor_data.json" | "vendor_data2.json"] => json(&json!({})),
        [_, "user_data"] => match &instance.nic.user_data {
            Some(data) => Response::new(BYTES, data.bytes()),
            None => Response::none(),
        },
        _ => Response::none(),
    }
}

fn meta_data(instance: &Instance<'_>) -> Value {
    json!({
        "uuid": instance.nic.nic.to_string(),
        "name": instance.nic.name.to_string(),
        "hostname": instance.hostname(),
        "launch_index": 0,
        "meta": {},
    })
}

/// One link. Where hosts answer DHCP the rest comes from there.
fn network_data(instance: &Instance<'_>) -> Value {
    const LINK: &str = "nic0";
    let network = |(n, address): (usize, &IpAddr)| {
        let id = format!("network{n}");
        let v4 = address.is_ipv4();
        if instance.dhcp {
            let kind = if v4 {
                "ipv4_dhcp"
            } else {
                "ipv6_dhcpv6-stateful"
            };
            return json!({ "id": id, "link": LINK, "type": kind });
        }
        let gateway = instance
            .leg
            .addresses
            .iter()
            .find(|net| net.addr().is_ipv4() == v4);
        let (zero, kind) = if v4 {
            ("0.0.0.0", "ipv4")
        } else {
            ("::", "ipv6")
        };
        let route =
            |net: &IpNet| json!({ "network": zero, "netmask": zero, "gateway": net.addr() });
        json!({
            "id": id,
            "link": LINK,
            "type": kind,
            "ip_address": address,
            "netmask": gateway.map(|net| net.netmask()),
            "routes": gateway.map(route).into_iter().collect::<Vec<_>>(),
        })
    };
    let networks = instance.nic.addresses.iter().enumerate().map(network);
    json!({
        "links": [{
            "id": LINK,
            "type": "vif",
            "ethernet_mac_address": instance.nic.mac.to_string(),
            "mtu": instance.leg.mtu.get(),
        }],
        "networks": networks.collect::<Vec<_>>(),
        "services": [],
    })
}
