//! What the kernel can do, found out by doing it where nobody sees it.

use crate::attr::Message;
use crate::error::{Cause, Error};
use crate::link;
use crate::netns::in_new_netns;
use crate::nft;
use crate::socket::Socket;
use crate::{bpf, sys, tap};
use host_plan::VXLAN_PORT;
use model::{Capability, IfName, MacAddr, Mtu, VlanId, Vni};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// Tries everything in a namespace of its own. What fails is not there; why does not matter, as an
/// action that needs it will say so.
pub(crate) fn capabilities() -> Result<BTreeSet<Capability>, Error> {
    in_new_netns(|| {
        let mut found = BTreeSet::new();
        let Ok(mut socket) = Socket::route() else {
            return found;
        };
        let mut note = |capability, result: Result<(), Cause>| {
            if result.is_ok() {
                found.insert(capability);
            }
        };
        note(Capability::VlanFiltering, vlan_filtering(&mut socket));
        note(Capability::VlanDevices, vlan_devices(&mut socket));
        note(Capability::Vxlan, vxlan(&mut socket));
        note(Capability::NftBridge, nft_bridge());
        note(Capability::Tap, tap::create(&name("probe-tap")));
        note(Capability::ClsBpf, cls_bpf(&mut socket));
        note(Capability::TcpMd5, sys::try_tcp_md5().map_err(Cause::from));
        found
    })
}

fn name(text: &str) -> IfName {
    IfName::new(text).expect("names of the probe are short")
}

fn mtu() -> Mtu {
    Mtu::new(1400).expect("1400 is an MTU")
}

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

fn vlan_filtering(socket: &mut Socket) -> Result<(), Cause> {
    socket.request(link::create_bridge(&name("probe-f"), MAC, mtu(), true))
}

fn vlan_devices(socket: &mut Socket) -> Result<(), Cause> {
    let bridge = name("probe-b");
    let vlan = VlanId::new(1).expect("1 is a VLAN");
    socket.request(link::create_bridge(&bridge, MAC, mtu(), false))?;
    let index = index(&bridge)?;
    socket.request(link::create_vlan_device(&name("probe-v"), index, vlan))
}

fn vxlan(socket: &mut Socket) -> Result<(), Cause> {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let vni = Vni::new(1).expect("1 is a VNI");
    socket.request(link::create_vxlan(
        &name("probe-x"),
        vni,
        local,
        VXLAN_PORT,
        MAC,
        mtu(),
    ))
}

fn cls_bpf(socket: &mut Socket) -> Result<(), Cause> {
    let lo = index(&name("lo"))?;
    bpf::attach_probe(socket, lo)
}

fn index(name: &IfName) -> Result<u32, Cause> {
    let any = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    use std::os::fd::AsFd;
    Ok(sys::index_of(any.as_fd(), name)?)
}

/// A set in the bridge family whose key is two things together.
fn nft_bridge() -> Result<(), Cause> {
    /// Types of nft: an interface's name (41) and a MAC (9), six bits each.
    const IFNAME_AND_MAC: u32 = 41 << 6 | 9;
    let mut socket = Socket::netfilter()?;
    let mut table = Message::new(nft::message(sys::NFT_MSG_NEWTABLE), libc::NLM_F_CREATE);
    table
        .header(&[sys::NFPROTO_BRIDGE, 0, 0, 0])
        .put_text(sys::NFTA_TABLE_NAME, "vpc");
    let mut set = Message::new(nft::message(sys::NFT_MSG_NEWSET), libc::NLM_F_CREATE);
    set.header(&[sys::NFPROTO_BRIDGE, 0, 0, 0])
        .put_text(sys::NFTA_SET_TABLE, "vpc")
        .put_text(sys::NFTA_SET_NAME, "probe")
        .put_be32(sys::NFTA_SET_KEY_TYPE, IFNAME_AND_MAC)
        .put_be32(sys::NFTA_SET_KEY_LEN, 24)
        .put_be32(sys::NFTA_SET_ID, 1);
    nft::transaction(&mut socket, &mut [table, set])
}
