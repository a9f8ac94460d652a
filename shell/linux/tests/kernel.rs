//! Every action against a real kernel, seen through `ip`, `bridge` and `nft`. Run as root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where, and what it measured or left out"
)]

mod lab;

use host_plan::{
    Action, BridgePortFlags, FdbRow, FdbState, FdbTarget, Guard, LinkKind, Neighbour,
    VlanMembership,
};
use lab::*;
use model::{Capability, MacAddr};
use serde_json::{Value, json as value};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;

fn names_of(list: &Value, key: &str) -> BTreeSet<String> {
    list.as_array()
        .unwrap()
        .iter()
        .filter_map(|item| item[key].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn capabilities_are_what_the_tools_can_do() {
    lab(|lab| {
        let found = lab.kernel.capabilities().unwrap().clone();
        println!("capabilities: {found:?}");
        let works = |command: &str| {
            let mut words = command.split_whitespace();
            std::process::Command::new(words.next().unwrap())
                .args(words)
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap()
                .success()
        };
        assert_eq!(
            found.contains(&Capability::VlanFiltering),
            works("ip link add fi type bridge vlan_filtering 1")
        );
        assert!(works("ip link add bridge0 type bridge"));
        assert_eq!(
            found.contains(&Capability::VlanDevices),
            works("ip link add link bridge0 name v type vlan id 3")
        );
        assert_eq!(
            found.contains(&Capability::Vxlan),
            works("ip link add x type vxlan id 3 dstport 4789")
        );
        assert_eq!(
            found.contains(&Capability::Tap),
            works("ip tuntap add t mode tap")
        );
        assert_eq!(
            found.contains(&Capability::NftBridge),
            works("nft add table bridge t")
        );
        assert!(!json("ip -j link show").to_string().contains("probe"));
    });
}

#[test]
fn a_bridge_is_quiet_and_keeps_its_mtu_and_mac() {
    lab(|lab| {
        lab.act_twice([bridge("b-1", false)]);
        let link = lab.link("b-1");
        let info = &link["linkinfo"]["info_data"];
        assert_eq!(link["ifalias"], of_vpc().to_string());
        assert_eq!(link["address"], mac(0xb0).to_string());
        assert_eq!(link["mtu"], 1400);
        assert_eq!(link["operstate"], "DOWN");
        assert_eq!(info["mcast_snooping"], 0);
        assert_eq!(info["forward_delay"], 0);
        assert_eq!(info["stp_state"], 0);
        assert_eq!(sysctl("b-1", "disable_ipv6"), "1");
        // Ports of another MTU and a lower MAC come: it follows neither.
        tool("ip link add foreign type veth peer name other");
        tool("ip link set foreign mtu 1300 address 02:00:00:00:00:01");
        lab.act([Action::Enslave {
            link: ifname("foreign"),
            bridge: ifname("b-1"),
        }]);
        assert_eq!(lab.link("b-1")["mtu"], 1400);
        assert_eq!(lab.link("b-1")["address"], mac(0xb0).to_string());
        // The default of 1500 is kept too.
        lab.act([Action::CreateBridge {
            name: ifname("b-2"),
            mac: mac(0xb1),
            mtu: mtu(1500),
            vlan_filtering: false,
            stamp: of_vpc(),
        }]);
        lab.act([
            Action::LeaveBridge {
                link: ifname("foreign"),
            },
            Action::Enslave {
                link: ifname("foreign"),
                bridge: ifname("b-2"),
            },
        ]);
        assert_eq!(lab.link("b-2")["mtu"], 1500);
    });
}

fn sysctl(device: &str, key: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{device}/{key}"))
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn a_filtering_bridge_has_no_default_vlan() {
    lab(|lab| {
        if !lab.can(Capability::VlanFiltering) {
            let error = lab.fail(bridge("b-1", true));
            assert_eq!(error.cause.errno(), Some(libc::EOPNOTSUPP));
            assert!(error.to_string().contains("b-1"), "{error}");
            return;
        }
        lab.act_twice([bridge("b-1", true)]);
        let info = lab.link("b-1")["linkinfo"]["info_data"].clone();
        assert_eq!(info["vlan_filtering"], 1);
        assert_eq!(info["vlan_default_pvid"], 0);
        tool("ip link add port type veth peer name other");
        let (link, bridge) = (ifname("port"), ifname("b-1"));
        lab.act_twice([
            Action::Enslave {
                link: link.clone(),
                bridge,
            },
            Action::AddVlan {
                link: link.clone(),
                vlan: vlan(10),
                membership: VlanMembership::Access,
            },
            Action::AddVlan {
                link: link.clone(),
                vlan: vlan(20),
                membership: VlanMembership::Tagged,
            },
            Action::AddVlan {
                link: link.clone(),
                vlan: vlan(21),
                membership: VlanMembership::Tagged,
            },
        ]);
        let port = &lab.observe().links[&link].port.clone().unwrap();
        let vlans: Vec<_> = port.vlans.iter().map(|(v, m)| (v.get(), *m)).collect();
        assert_eq!(
            vlans,
            [
                (10, VlanMembership::Access),
                (20, VlanMembership::Tagged),
                (21, VlanMembership::Tagged)
            ]
        );
        // An access VLAN that becomes a trunk's.
        lab.act_twice([
            Action::AddVlan {
                link: link.clone(),
                vlan: vlan(10),
                membership: VlanMembership::Tagged,
            },
            Action::DeleteVlan {
                link: link.clone(),
                vlan: vlan(20),
            },
        ]);
        let port = &lab.observe().links[&link].port.clone().unwrap();
        let vlans: Vec<_> = port.vlans.iter().map(|(v, m)| (v.get(), *m)).collect();
        assert_eq!(
            vlans,
            [(10, VlanMembership::Tagged), (21, VlanMembership::Tagged)]
        );
    });
}

#[test]
fn a_vlan_device_holds_rows_and_stays_down() {
    lab(|lab| {
        if !lab.can(Capability::VlanFiltering) || !lab.can(Capability::VlanDevices) {
            return;
        }
        let dev = ifname("s-1");
        lab.act_twice([
            bridge("b-1", true),
            Action::CreateVlanDevice {
                name: dev.clone(),
                bridge: ifname("b-1"),
                vlan: vlan(10),
                stamp: of_subnet(),
            },
            // The device does not come up with it.
            Action::SetUp {
                link: ifname("b-1"),
            },
        ]);
        let link = lab.link("s-1");
        assert_eq!(link["inet6_addr_gen_mode"], "none");
        assert_eq!(link["linkinfo"]["info_data"]["id"], 10);
        let rows: Vec<Neighbour> = ["10.0.0.9", "fd00::9"]
            .map(|ip_text| Neighbour {
                dev: dev.clone(),
                ip: ip(ip_text),
                mac: mac(9),
                ours: true,
                remote: true,
                router: ip_text == "fd00::9",
            })
            .into();
        lab.act_twice(rows.iter().cloned().map(Action::SetNeighbour));
        let state = lab.observe();
        assert_eq!(state.neighbours, rows.into_iter().collect());
        assert!(!state.links[&dev].up && !state.links[&dev].ipv6_disabled);
        assert!(
            matches!(state.links[&dev].kind, LinkKind::Vlan { parent, .. } if parent == state.links[&ifname("b-1")].index)
        );
    });
}

#[test]
fn a_tunnel_learns_nothing() {
    lab(|lab| {
        lab.act_twice([vxlan("t-7", 7, "192.0.2.1"), vxlan("t-8", 8, "2001:db8::1")]);
        let link = lab.link("t-7");
        let info = &link["linkinfo"]["info_data"];
        assert_eq!(info["id"], 7);
        assert_eq!(info["local"], "192.0.2.1");
        assert_eq!(info["port"], 4789);
        assert_eq!(info["learning"], false);
        assert_eq!(info["df"], "set");
        assert_eq!(info["ttl"], 64);
        for off in ["proxy", "rsc", "l2miss", "l3miss", "gbp", "external"] {
            assert_ne!(info[off], true, "{off}");
        }
        assert_eq!(link["mtu"], 1400);
        assert_eq!(link["address"], mac(0xa0).to_string());
        assert_eq!(link["operstate"], "DOWN");
        assert_eq!(sysctl("t-7", "disable_ipv6"), "1");
        let v6 = lab.link("t-8")["linkinfo"]["info_data"].clone();
        assert_eq!(v6["local6"], "2001:db8::1");
        assert_eq!(v6["udp_zero_csum6_rx"], true);
        let state = lab.observe();
        assert_eq!(
            state.links[&ifname("t-8")].kind,
            LinkKind::Vxlan {
                vni: Some(vni(8)),
                local: Some(ip("2001:db8::1")),
                port: 4789,
                learning: false
            }
        );
    });
}

#[test]
fn what_is_in_the_way_is_said_and_left_alone() {
    lab(|lab| {
        tool("ip link add b-1 type veth peer name other");
        let error = lab.fail(bridge("b-1", false));
        assert!(error.to_string().contains("of kind veth"), "{error}");
        assert_eq!(lab.link("b-1")["ifalias"], Value::Null);
        tool("ip link add foreign type vxlan id 7 dstport 4789 local 192.0.2.1");
        let error = lab.fail(vxlan("t-7", 7, "192.0.2.1"));
        assert_eq!(error.cause.errno(), Some(libc::EEXIST));
        assert!(
            error.to_string().contains("make VXLAN device t-7 of VNI 7"),
            "{error}"
        );
        assert!(
            error.to_string().contains("VXLAN"),
            "the kernel's words: {error}"
        );
        tool("ip link add b-2 type bridge");
        tool("ip link set b-2 alias somebody's");
        let error = lab.fail(bridge("b-2", false));
        assert!(error.to_string().contains("stamped"), "{error}");
        // Killed between making and stamping: it is finished.
        tool("ip link add b-3 type bridge");
        lab.act([bridge("b-3", false)]);
        assert_eq!(lab.link("b-3")["ifalias"], of_vpc().to_string());
        let error = lab.fail(Action::SetUp {
            link: ifname("nowhere"),
        });
        assert_eq!(error.cause.errno(), Some(libc::ENODEV), "{error}");
    });
}

#[test]
fn one_failure_does_not_stop_the_rest_of_its_batch() {
    lab(|lab| {
        lab.act([bridge("b-1", false)]);
        let up = |name: &str| Action::SetUp { link: ifname(name) };
        let results = lab.kernel.run(&[up("nowhere"), up("b-1"), up("nobody")]);
        let ok: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!(ok, [false, true, false]);
        assert!(
            results[2]
                .as_ref()
                .unwrap_err()
                .to_string()
                .contains("nobody")
        );
        assert!(lab.observe().links[&ifname("b-1")].up);
    });
}

#[test]
fn a_namespace_is_ours_by_its_marker() {
    lab(|lab| {
        lab.act_twice([
            Action::CreateNetns(netns("web")),
            Action::CreateNetns(netns("db")),
        ]);
        assert_eq!(
            names_of(&json("ip -j netns list"), "name"),
            ["web".to_owned(), "db".to_owned()].into()
        );
        tool("ip netns add theirs");
        lab.act([Action::CreateNetns(netns("theirs"))]);
        let state = lab.observe();
        assert_eq!(*state.owned_netns, [netns("web"), netns("db")].into());
        assert!(state.netns.contains_key(&netns("theirs")));
        let error = lab.fail(Action::DeleteNetns(netns("theirs")));
        assert!(
            error.to_string().contains("not made by this agent"),
            "{error}"
        );
        // Somebody makes ours anew: it is theirs now.
        tool("ip netns del db");
        tool("ip netns add db");
        assert_eq!(*lab.observe().owned_netns, [netns("web")].into());
        lab.fail(Action::DeleteNetns(netns("db")));
        // A kernel may give theirs the inode number that ours had: the marker knows more than that.
        let marker = format!("{STATE_DIR}/netns/db");
        let (inode, cookie) = std::fs::read_to_string(&marker)
            .unwrap()
            .split_once(' ')
            .map(|(inode, cookie)| (inode.to_owned(), cookie.to_owned()))
            .unwrap();
        let theirs = std::fs::metadata("/run/netns/db").unwrap().ino();
        let reopen = |lab: &mut Lab| {
            lab.kernel = linux::Kernel::open(std::path::Path::new(STATE_DIR)).unwrap();
            lab.observe().owned_netns
        };
        std::fs::write(&marker, format!("{theirs} {cookie}")).unwrap();
        assert_eq!(*reopen(lab), [netns("web")].into());
        std::fs::write(&marker, format!("{inode} {cookie}")).unwrap();
        // An agent that knew inode numbers only made this one.
        let marker = format!("{STATE_DIR}/netns/web");
        let whole = std::fs::read_to_string(&marker).unwrap();
        std::fs::write(&marker, whole.split_once(' ').unwrap().0).unwrap();
        assert_eq!(*reopen(lab), [netns("web")].into());
        assert_eq!(std::fs::read_to_string(&marker).unwrap(), whole);
        lab.act_twice([
            Action::DeleteNetns(netns("web")),
            Action::DeleteNetns(netns("gone")),
        ]);
        assert_eq!(
            names_of(&json("ip -j netns list"), "name"),
            ["theirs".to_owned(), "db".to_owned()].into()
        );
        assert!(!std::path::Path::new("/run/netns/web").exists());
        // Killed between marker and mount.
        std::fs::write("/run/netns/half", "").unwrap();
        std::fs::write(format!("{STATE_DIR}/netns/half"), "1").unwrap();
        lab.act([Action::CreateNetns(netns("half"))]);
        assert!(lab.observe().owned_netns.contains(&netns("half")));
        // Killed there, and nobody wants it any more when the next one starts.
        for name in ["left", "bare"] {
            std::fs::write(format!("{STATE_DIR}/netns/{name}"), "").unwrap();
        }
        std::fs::write("/run/netns/left", "").unwrap();
        drop(linux::Kernel::open(std::path::Path::new(STATE_DIR)).unwrap());
        for gone in [
            "/run/netns/left",
            "/run/vpc/netns/left",
            "/run/vpc/netns/bare",
        ] {
            assert!(!std::path::Path::new(gone).exists(), "{gone}");
        }
        assert!(lab.observe().owned_netns.contains(&netns("half")));
    });
}

#[test]
fn a_nic_in_a_namespace_is_ready_at_once() {
    lab(|lab| {
        lab.act_twice([
            Action::CreateNetns(netns("web")),
            veth("n-1", "web", mac(1)),
            Action::SetUp {
                link: ifname("n-1"),
            },
            inside("web", 1),
        ]);
        assert_eq!(sysctl("n-1", "disable_ipv6"), "1");
        assert_eq!(lab.link("n-1")["mtu"], 1400);
        let told = inside_of("web", || json("ip -j -d addr show eth0"))[0].clone();
        assert_eq!(told["address"], mac(1).to_string());
        assert_eq!(told["mtu"], 1400);
        let addresses = told["addr_info"].as_array().unwrap();
        let has: BTreeSet<_> = addresses
            .iter()
            .map(|a| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]))
            .collect();
        let link_local = format!("{}/64", mac(1).link_local());
        let wanted = ["10.0.0.1/24".to_owned(), "fd00::1/64".into(), link_local];
        assert_eq!(has, wanted.into());
        assert!(
            addresses.iter().all(|a| a["tentative"] != value!(true)),
            "{addresses:?}"
        );
        assert!(inside_of("web", || tool("ip -br link show lo")).contains("UP"));

        let state = lab.observe();
        let link = &state.netns[&netns("web")].links[&ifname("eth0")];
        assert!(link.up && link.mac == mac(1) && link.mtu == 1400);
        assert!(link.addresses.contains(&"fd00::1/64".parse().unwrap()));
        let LinkKind::Veth {
            peer,
            peer_netns,
            peer_is_local,
        } = &state.links[&ifname("n-1")].kind
        else {
            panic!("{:?}", state.links[&ifname("n-1")]);
        };
        assert_eq!(
            (*peer, peer_netns, *peer_is_local),
            (link.index, &Some(netns("web")), false)
        );
        // Another prefix length takes the place of the old one in IPv6.
        let Action::ConfigureInside(mut wider) = inside("web", 1) else {
            unreachable!()
        };
        wider.addresses = ["fd00::1/48".parse().unwrap()].into();
        lab.act_twice([Action::ConfigureInside(wider)]);
        let link = lab.observe().netns[&netns("web")].links[&ifname("eth0")].clone();
        assert!(link.addresses.contains(&"fd00::1/48".parse().unwrap()));
        assert!(!link.addresses.contains(&"fd00::1/64".parse().unwrap()));
        let error = lab.fail(inside("nowhere", 1));
        assert!(error.to_string().contains("nowhere"), "{error}");
    });
}

#[test]
fn a_namespace_shows_the_far_ends_of_our_pairs_only() {
    lab(|lab| {
        tool("ip netns add theirs");
        let state = lab.observe();
        assert!(state.netns[&netns("theirs")].links.is_empty());
        lab.act([veth("n-1", "theirs", mac(1))]);
        inside_of("theirs", || {
            tool("ip link add own0 type veth peer name own1");
            tool("ip link set eth0 name lan0");
        });
        let links = lab.observe().netns[&netns("theirs")].links.clone();
        assert_eq!(links.keys().collect::<Vec<_>>(), [&ifname("lan0")]);
        std::fs::write("/run/netns/no-namespace", "").unwrap();
        assert!(!lab.observe().netns.contains_key(&netns("no-namespace")));
    });
}

#[test]
fn a_tap_is_for_virtual_machines() {
    lab(|lab| {
        if !lab.can(Capability::Tap) {
            return;
        }
        let create = Action::CreateTap {
            name: ifname("n-1"),
            mtu: mtu(1400),
            stamp: of_nic(),
        };
        lab.act_twice([create.clone()]);
        let link = lab.link("n-1");
        let info = &link["linkinfo"]["info_data"];
        assert_eq!(info["type"], "tap");
        for on in ["multi_queue", "vnet_hdr", "persist"] {
            assert_eq!(info[on], true, "{on}");
        }
        assert_eq!(info["pi"], false);
        assert_eq!(link["mtu"], 1400);
        assert_eq!(link["ifalias"], of_nic().to_string());
        assert_eq!(sysctl("n-1", "disable_ipv6"), "1");
        let kind = lab.observe().links[&ifname("n-1")].kind.clone();
        assert_eq!(
            kind,
            LinkKind::Tap {
                multi_queue: true,
                vnet_hdr: true
            }
        );
        lab.act([Action::DeleteLinks(vec![ifname("n-1")])]);
        tool("ip tuntap add n-1 mode tap");
        let error = lab.fail(create);
        assert!(error.to_string().contains("other parameters"), "{error}");
    });
}

#[test]
fn a_port_joins_isolated_and_keeps_its_flags() {
    lab(|lab| {
        tool("ip link add port type veth peer name other");
        let join = Action::Enslave {
            link: ifname("port"),
            bridge: ifname("b-1"),
        };
        lab.act_twice([bridge("b-1", false), join.clone()]);
        let port = lab.observe().links[&ifname("port")].port.clone().unwrap();
        assert!(port.isolated && port.bridge == ifname("b-1"));
        let flags = BridgePortFlags {
            isolated: false,
            learning: false,
            unicast_flood: false,
            neigh_suppress: true,
        };
        lab.act_twice([Action::SetPortFlags {
            link: ifname("port"),
            flags,
        }]);
        // Joining the bridge that it is in is nothing.
        lab.act_twice([join]);
        let told = json("bridge -j -d link show dev port")[0].clone();
        assert_eq!(
            (
                &told["isolated"],
                &told["learning"],
                &told["flood"],
                &told["neigh_suppress"]
            ),
            (
                &value!(false),
                &value!(false),
                &value!(false),
                &value!(true)
            )
        );
        let port = lab.observe().links[&ifname("port")].port.clone().unwrap();
        assert!(!port.isolated && !port.learning && !port.unicast_flood && port.neigh_suppress);
        lab.act_twice([Action::LeaveBridge {
            link: ifname("port"),
        }]);
        assert_eq!(lab.observe().links[&ifname("port")].port, None);
        lab.act([Action::LeaveBridge {
            link: ifname("nowhere"),
        }]);
    });
}

fn row(dev: &str, mac: MacAddr, target: FdbTarget, state: FdbState) -> FdbRow {
    FdbRow {
        dev: ifname(dev),
        mac,
        target,
        state,
    }
}

fn to_vtep(mac: MacAddr, vtep: &str) -> FdbRow {
    row(
        "t-7",
        mac,
        FdbTarget::Vtep(ip(vtep)),
        FdbState::ExternLearned,
    )
}

fn rows_of(lab: &mut Lab, wanted: MacAddr) -> Vec<FdbRow> {
    let rows = lab.observe().fdb;
    let of_mac = rows.iter().filter(|row| row.mac == wanted);
    of_mac.cloned().collect()
}

#[test]
fn rows_come_and_go_exactly() {
    lab(|lab| {
        lab.act([
            bridge("b-1", false),
            vxlan("t-7", 7, "192.0.2.1"),
            Action::Enslave {
                link: ifname("t-7"),
                bridge: ifname("b-1"),
            },
        ]);
        let all = [
            to_vtep(MacAddr::ZERO, "192.0.2.2"),
            to_vtep(MacAddr::ZERO, "192.0.2.3"),
            to_vtep(mac(5), "192.0.2.2"),
            row(
                "t-7",
                mac(5),
                FdbTarget::Bridge(None),
                FdbState::ExternLearned,
            ),
            row("t-7", mac(6), FdbTarget::Bridge(None), FdbState::Static),
        ];
        lab.act_twice(all.iter().cloned().map(Action::AddFdb));
        let fdb = lab.observe().fdb;
        for wanted in &all {
            assert!(fdb.contains(wanted), "{wanted:?} not in {fdb:#?}");
        }
        let told = json("bridge -j -d fdb show dev t-7");
        let flood: BTreeSet<_> = told
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row["mac"] == "00:00:00:00:00:00")
            .map(|row| row["dst"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            flood,
            ["192.0.2.2".to_owned(), "192.0.2.3".to_owned()].into()
        );

        // A MAC that moves has its new place only.
        lab.act_twice([Action::AddFdb(to_vtep(mac(5), "192.0.2.3"))]);
        let there = rows_of(lab, mac(5));
        assert!(there.contains(&to_vtep(mac(5), "192.0.2.3")));
        assert!(!there.contains(&to_vtep(mac(5), "192.0.2.2")));

        // Removing a flood entry leaves the other; removing a row of an old place leaves the new.
        lab.act_twice([
            Action::DeleteFdb(to_vtep(MacAddr::ZERO, "192.0.2.2")),
            Action::DeleteFdb(to_vtep(mac(5), "192.0.2.2")),
            Action::DeleteFdb(row(
                "t-7",
                mac(6),
                FdbTarget::Bridge(None),
                FdbState::Static,
            )),
        ]);
        assert_eq!(
            rows_of(lab, MacAddr::ZERO),
            [to_vtep(MacAddr::ZERO, "192.0.2.3")]
        );
        assert!(rows_of(lab, mac(5)).contains(&to_vtep(mac(5), "192.0.2.3")));
        assert_eq!(rows_of(lab, mac(6)), []);
        lab.act([Action::DeleteFdb(row(
            "gone",
            mac(6),
            FdbTarget::Bridge(None),
            FdbState::Static,
        ))]);
    });
}

#[test]
fn a_moving_mac_is_never_unknown() {
    lab(|lab| {
        lab.act([
            vxlan("t-7", 7, "192.0.2.1"),
            Action::AddFdb(to_vtep(mac(5), "192.0.2.2")),
        ]);
        let mut raw = std::process::Command::new("bridge")
            .args(["monitor", "fdb"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The monitor is listening when it has told of a row that is made until it has.
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(raw.stdout.take().unwrap()));
        let (done, seen) = (
            std::sync::atomic::AtomicBool::new(false),
            std::sync::Mutex::new(Vec::new()),
        );
        let netns = linux::Netns::current().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                linux::in_netns(&netns, || {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let command = "bridge fdb append 00:00:00:00:00:00 dev t-7 dst 192.0.2.99";
                        let undo = "bridge fdb del 00:00:00:00:00:00 dev t-7 dst 192.0.2.99";
                        tool(command);
                        tool(undo);
                    }
                })
                .unwrap();
            });
            lines.next().unwrap().unwrap();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        lab.act([Action::AddFdb(to_vtep(mac(5), "192.0.2.3"))]);
        lab.act([Action::AddFdb(to_vtep(MacAddr::ZERO, "192.0.2.200"))]);
        for line in lines {
            let line = line.unwrap();
            let last = line.contains("192.0.2.200");
            seen.lock().unwrap().push(line);
            if last {
                break;
            }
        }
        raw.kill().unwrap();
        raw.wait().unwrap();
        let seen = seen.into_inner().unwrap();
        let of_mac: Vec<_> = seen
            .iter()
            .filter(|line| line.contains(&mac(5).to_string()))
            .collect();
        assert!(
            !of_mac.is_empty() && of_mac.iter().all(|line| !line.contains("Deleted")),
            "{seen:#?}"
        );
    });
}

#[test]
fn neighbours_carry_our_protocol() {
    lab(|lab| {
        lab.act([bridge("b-1", false)]);
        let row = |text, n| Neighbour {
            dev: ifname("b-1"),
            ip: ip(text),
            mac: mac(n),
            ours: true,
            remote: true,
            router: false,
        };
        // The kernel takes no ND rows on an interface whose IPv6 is off.
        let error = lab.fail(Action::SetNeighbour(row("fd00::5", 5)));
        assert!(error.to_string().contains("IPv6 is disabled"), "{error}");
        let rows = [row("10.0.0.5", 5), row("10.0.0.6", 6)];
        lab.act_twice(rows.iter().cloned().map(Action::SetNeighbour));
        let told = json("ip -j -d neigh show dev b-1");
        for row in told.as_array().unwrap() {
            assert_eq!(
                row["protocol"].to_string().trim_matches('"'),
                "118",
                "{row}"
            );
            assert_eq!(row["state"], value!(["PERMANENT"]));
        }
        assert_eq!(lab.observe().neighbours, rows.iter().cloned().collect());
        let moved = Neighbour {
            mac: mac(6),
            ..rows[0].clone()
        };
        lab.act_twice([Action::SetNeighbour(moved.clone())]);
        assert!(lab.observe().neighbours.contains(&moved));
        tool("ip neigh add 10.0.0.77 lladdr 02:00:00:00:00:77 dev b-1 nud permanent");
        let neighbours = lab.observe().neighbours;
        let theirs = neighbours.iter().find(|n| n.ip == ip("10.0.0.77"));
        assert!(!theirs.unwrap().ours);
        lab.act_twice(rows.iter().cloned().map(Action::DeleteNeighbour));
        assert_eq!(lab.observe().neighbours.len(), 1);
    });
}

/// The limits of the kernel's neighbour tables (`gc_thresh3`: 1,024) are for what it learned itself: it
/// counts neither permanent rows nor those of a control plane.
#[test]
fn rows_of_ours_leave_room_in_the_neighbour_table() {
    lab(|lab| {
        lab.act([bridge("b-1", false)]);
        let rows: Vec<Neighbour> = (0..5_000_u32)
            .map(|n| Neighbour {
                dev: ifname("b-1"),
                ip: std::net::Ipv4Addr::from(0x0a01_0000 + n).into(),
                mac: mac(9),
                ours: true,
                remote: n % 2 == 0,
                router: false,
            })
            .collect();
        lab.act(rows.iter().cloned().map(Action::SetNeighbour));
        assert_eq!(lab.observe().neighbours.len(), rows.len());
        // What is counted still fits.
        for n in 1..200 {
            tool(&format!(
                "ip neigh add 10.2.0.{n} lladdr 02:00:00:00:00:77 dev b-1 nud reachable"
            ));
        }
        lab.act(rows.into_iter().map(Action::DeleteNeighbour));
        assert_eq!(lab.observe().neighbours.len(), 0);
    });
}

#[test]
fn groups_take_ours_and_leave_the_rest() {
    lab(|lab| {
        lab.act((0..20).map(|n| Action::CreateNetns(netns(&format!("w{n}")))));
        lab.act((0..20).map(|n| veth(&format!("n-{n}"), &format!("w{n}"), mac(n))));
        // A foreign link sits in the group that would be taken first.
        tool("ip link add foreign type veth peer name other");
        tool("ip link set foreign group 7761763");
        lab.act([bridge("b-1", false)]);
        let mut names: Vec<_> = (0..20).map(|n| ifname(&format!("n-{n}"))).collect();
        names.push(ifname("never-was"));
        names.push(ifname("b-1"));
        let started = std::time::Instant::now();
        lab.act_twice([Action::DeleteLinks(names)]);
        println!("20 pairs and a bridge removed in {:?}", started.elapsed());
        let left = names_of(&json("ip -j link show"), "ifname");
        assert!(
            !left
                .iter()
                .any(|name| name.starts_with("n-") || name.starts_with("b-"))
        );
        assert!(left.contains("foreign"));
        // Whatever a plan says, only what carries our stamp goes.
        let error = lab.fail(Action::DeleteLinks(vec![ifname("foreign")]));
        assert!(error.to_string().contains("not ours"), "{error}");
        // What is ours goes all the same.
        lab.act([bridge("b-2", false), bridge("b-3", false)]);
        let mixed = ["foreign", "b-2", "other", "b-3"].map(ifname);
        lab.fail(Action::DeleteLinks(mixed.into()));
        assert_eq!(names_of(&json("ip -j link show"), "ifname"), left);
    });
}

#[test]
fn attributes_change() {
    lab(|lab| {
        lab.act([bridge("b-1", false)]);
        let link = ifname("b-1");
        tool("sh -c true");
        std::fs::write("/proc/sys/net/ipv6/conf/b-1/disable_ipv6", "0").unwrap();
        assert!(!lab.observe().links[&link].ipv6_disabled);
        lab.act_twice([
            Action::SetMtu {
                link: link.clone(),
                mtu: mtu(1350),
            },
            Action::SetMac {
                link: link.clone(),
                mac: mac(0x77),
            },
            Action::DisableIpv6 { link: link.clone() },
            Action::SetUp { link: link.clone() },
        ]);
        let seen = lab.observe().links[&link].clone();
        assert!(seen.up && seen.ipv6_disabled && seen.mtu == 1350 && seen.mac == mac(0x77));
        lab.act_twice([Action::SetDown { link: link.clone() }]);
        assert!(!lab.observe().links[&link].up);
        let error = lab.fail(Action::DisableIpv6 {
            link: ifname("nowhere"),
        });
        assert_eq!(error.cause.errno(), Some(libc::ENODEV));
    });
}

#[test]
fn an_existing_interface_is_borrowed_and_given_back() {
    lab(|lab| {
        tool("ip link add eth7 type veth peer name far");
        let stamp = host_plan::Stamp::Adopted(model::NicId::from_random(3));
        let name = ifname("eth7");
        lab.act_twice([
            Action::InstallFirewall,
            Action::Adopt {
                name: name.clone(),
                stamp,
            },
        ]);
        assert_eq!(lab.link("eth7")["ifalias"], stamp.to_string());
        let state = lab.observe();
        assert!(state.links[&name].ipv6_disabled);
        assert_eq!(state.guards[&name], Guard::default());
        lab.act_twice([Action::SetGuard {
            link: name.clone(),
            guard: guard(1),
        }]);
        assert_eq!(lab.observe().guards[&name], guard(1));
        // Without its guard it is still closed.
        lab.act_twice([Action::ClearGuard { link: name.clone() }]);
        assert_eq!(lab.observe().guards[&name], Guard::default());
        lab.fail(Action::DeleteLinks(vec![name.clone()]));
        lab.act_twice([
            Action::Release { name: name.clone() },
            Action::ClearGuard { link: name.clone() },
        ]);
        // A port that is not one is closed by `ClearGuard`, and no more than that.
        lab.act([Action::Release { name: name.clone() }]);
        let state = lab.observe();
        assert_eq!(state.links[&name].alias, None);
        assert!(!state.links[&name].ipv6_disabled);
        assert!(state.guards.is_empty());
        // One that is gone leaves nothing.
        lab.act([
            Action::Adopt {
                name: name.clone(),
                stamp,
            },
            Action::SetGuard {
                link: name.clone(),
                guard: guard(1),
            },
        ]);
        tool("ip link del eth7");
        lab.act_twice([Action::Release { name }]);
        assert!(lab.observe().guards.is_empty());
    });
}

#[test]
fn everything_made_is_observed_by_a_second_reader() {
    lab(|lab| {
        lab.bridge_with_nics(&["a", "c"]);
        let one = lab.observe();
        let mut kernel = linux::Kernel::open(std::path::Path::new(STATE_DIR)).unwrap();
        let scope = host_plan::Scope {
            netns: one.netns.keys().cloned().collect(),
            ..Default::default()
        };
        assert_eq!(kernel.observe(&scope).unwrap(), one);
        assert!(one.firewall);
        assert_eq!(one.guards[&ifname("n-a")], guard(1));
        assert_eq!(*one.owned_netns, [netns("a"), netns("c")].into());
    });
}
