//! The tree of EC2's instance metadata, as far as there is something to say.

use crate::{BYTES, Instance, JSON, Response, TEXT};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What clients ask for first; all are the same.
const VERSIONS: &[&str] = &[
    "1.0",
    "2009-04-04",
    "2016-09-02",
    "2018-09-24",
    "2021-03-23",
    "latest",
];

pub(crate) fn answer(instance: &Instance<'_>, parts: &[&str]) -> Response {
    let user_data = instance.nic.user_data.as_ref();
    match parts {
        [] => Response::new(TEXT, VERSIONS.join("\n")),
        [version, ..] if !VERSIONS.contains(version) => Response::none(),
        [_] if user_data.is_some() => Response::new(TEXT, "dynamic\nmeta-data\nuser-data"),
        [_] => Response::new(TEXT, "dynamic\nmeta-data"),
        [_, "dynamic"] => Response::new(TEXT, "instance-identity/"),
        [_, "dynamic", "instance-identity"] => Response::new(TEXT, "document"),
        // Without a signature: it says who asks to nobody else. cloud-init waits for it.
        [_, "dynamic", "instance-identity", "document"] => {
            Response::new(JSON, document(instance).to_string())
        }
        [_, "user-data"] => match user_data {
            Some(data) => Response::new(BYTES, data.bytes()),
            None => Response::none(),
        },
        [_, "meta-data", path @ ..] => match look_up(&leaves(instance), path) {
            Some(text) => Response::new(TEXT, text),
            None => Response::none(),
        },
        _ => Response::none(),
    }
}

fn document(instance: &Instance<'_>) -> Value {
    json!({
        "version": "2017-09-30",
        "instanceId": instance.nic.nic.to_string(),
        "privateIp": instance.addresses(true).next(),
    })
}

/// A leaf's text, or the names in a directory.
fn look_up(leaves: &BTreeMap<String, String>, path: &[&str]) -> Option<String> {
    let path = path.join("/");
    if let Some(text) = leaves.get(&path) {
        return Some(text.clone());
    }
    let inside = match path.as_str() {
        "" => String::new(),
        path => format!("{path}/"),
    };
    let below = leaves.keys().filter_map(|leaf| leaf.strip_prefix(&inside));
    let names: BTreeSet<&str> = below
        .map(|rest| match rest.split_once('/') {
            Some((directory, _)) => &rest[..=directory.len()],
            None => rest,
        })
        .collect();
    (!names.is_empty()).then(|| Vec::from_iter(names).join("\n"))
}

fn leaves(instance: &Instance<'_>) -> BTreeMap<String, String> {
    let nic = instance.nic;
    let mut leaves = BTreeMap::new();
    let mut put = |path: &str, text: String| leaves.insert(path.to_owned(), text);
    let (id, mac, hostname) = (
        nic.nic.to_string(),
        nic.mac.to_string(),
        instance.hostname(),
    );
    put("instance-id", id.clone());
    put("hostname", hostname.clone());
    put("local-hostname", hostname.clone());
    put("mac", mac.clone());
    let list = |of: &mut dyn Iterator<Item = String>| of.collect::<Vec<_>>().join("\n");
    let own = |v4| list(&mut instance.addresses(v4).map(ToString::to_string));
    let public = |v4| {
        let public = instance.public.iter().filter(move |ip| ip.is_ipv4() == v4);
        list(&mut public.map(ToString::to_string))
    };
    let nets = |v4| {
        let nets = instance.leg.addresses.iter().map(IpNet::trunc);
        list(
            &mut nets
                .filter(move |net| net.addr().is_ipv4() == v4)
                .map(|net| net.to_string()),
        )
    };
    let mut put_some = |path: &str, text: String| {
        if !text.is_empty() {
            put(path, text);
        }
    };
    put_some("local-ipv4", own(true));
    put_some("ipv6", own(false));
    put_some(
        "public-ipv4",
        public(true).lines().next().unwrap_or_default().to_owned(),
    );
    let below = |name: &str| format!("network/interfaces/macs/{mac}/{name}");
    put_some(&below("device-number"), "0".to_owned());
    put_some(&below("interface-id"), id);
    put_some(&below("mac"), mac.clone());
    put_some(&below("local-hostname"), hostname);
    put_some(&below("local-ipv4s"), own(true));
    put_some(&below("ipv6s"), own(false));
    put_some(&below("public-ipv4s"), public(true));
    put_some(&below("subnet-id"), instance.leg.subnet.to_string());
    put_some(&below("subnet-ipv4-cidr-block"), nets(true));
    put_some(&below("subnet-ipv6-cidr-blocks"), nets(false));
    put_some(&below("vpc-id"), instance.vpc.to_string());
    leaves
}
