//! The userspace transport among hosts: what is on the wire, what is answered for, what is killed.

mod duplicates;
mod flows;
mod killed;
mod limits;
mod neighbours;
mod wire;

use lab::Lab;
use lab::outer::Tunnelled;
use lab::wire::Wire;
use serde_json::Value;

/// The encodings of a VPC.
const ENCODINGS: [&str; 2] = ["vlan-based", "vlan-aware-bundle"];

/// A VPC with one subnet; the VNI and the tag that its frames have on the underlay.
fn vpc(lab: &Lab, name: &str, options: &str) -> (u64, Option<u64>) {
    let vpc = lab.admin(&format!(
        "create {name} --cidr 10.4.0.0/16 --cidr fd00:4::/48 {options}"
    ));
    let subnet = lab.admin(&format!(
        "subnet create {name}/web --cidr 10.4.1.0/24 --cidr fd00:4:0:1::/64"
    ));
    let number = |value: &Value| value.as_u64().expect("a number");
    match vpc["encoding"] == ENCODINGS[1] {
        true => (number(&vpc["vni"]), Some(number(&subnet["vlan"]))),
        false => (number(&subnet["vni"]), None),
    }
}

/// What a host sends on the underlay, from now on.
fn sent_by(lab: &Lab, host: &str) -> Wire {
    lab.wire("underlay", host)
}

/// The tunnel packets of a VNI among frames.
fn tunnelled(frames: &[Vec<u8>], vni: u64) -> Vec<Tunnelled> {
    let all = frames.iter().filter_map(|frame| Tunnelled::of(frame));
    all.filter(|packet| packet.vni() == vni).collect()
}

/// What the datapath of a host dropped for a reason, so far.
fn dropped(lab: &Lab, host: &str, reason: &str) -> u64 {
    let status = lab.json(host, "vpc -o json datapath status");
    status["dropped"][reason].as_u64().unwrap_or_default()
}
