//! What the kernel itself needs for a NIC: a minimal program that makes and deletes the kernel
//! objects of N NICs, the yardstick of the benchmark. `minimal_nics [N]`, as root.
//!
//! Per NIC: a named namespace, a veth pair with its far end in it, an IPv4 and an IPv6 address
//! inside, a place in one of 50 bridges, an FDB row, elements of the guard's sets. It keeps no state, checks nothing but errors,
//! reads nothing back. Deletion removes interfaces in one group, as `ip link del group` does.
//!
//! It shares the library's message builder and socket and nothing else.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "parts of the library, taken as source"
)]
#![allow(clippy::print_stdout, reason = "it prints its result")]

#[path = "../src/attr.rs"]
mod attr;
#[path = "../src/error.rs"]
mod error;
#[path = "../src/fdb.rs"]
mod fdb;
#[path = "../src/kept.rs"]
mod kept;
#[path = "../src/link.rs"]
mod link;
#[path = "../src/netns.rs"]
mod netns;
#[path = "../src/socket.rs"]
mod socket;
#[path = "../src/sys.rs"]
mod sys;

use attr::Message;
use host_plan::{FdbRow, FdbState, FdbTarget, Stamp, VethToNetns};
use model::{IfName, MacAddr, Mtu, NetnsName, NicId};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use socket::Socket;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const DIRECTORY: &str = "/run/netns";
const GROUP: u32 = 4711;
/// NICs whose messages are sent together.
const BATCH: usize = 256;
const SUBNETS: usize = 50;

fn main() {
    let count: usize = std::env::args()
        .nth(1)
        .map_or(1000, |text| text.parse().expect("the number of NICs"));
    // On a thread of its own, in namespaces of its own: whatever happens, nothing is left behind.
    std::thread::spawn(move || measure(count))
        .join()
        .expect("the measurement ran");
}

fn measure(count: usize) {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("run it as root");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("a private mount tree");
    let (tmpfs, none) = (Some("tmpfs"), MsFlags::empty());
    mount(tmpfs, "/run", tmpfs, none, None::<&str>).expect("a /run of its own");
    fs::create_dir(DIRECTORY).expect("/run is empty");
    let nics: Vec<Nic> = (0..count).map(Nic::new).collect();
    let mut route = Socket::route().expect("a netlink socket");
    let mut nft = Socket::netfilter().expect("a netlink socket");
    prepare(&mut route);

    timed("made", count, || create(&nics, &mut route, &mut nft));
    timed("deleted", count, || delete(&nics, &mut route, &mut nft));
}

fn timed(what: &str, count: usize, work: impl FnOnce()) {
    let (started, busy_before) = (Instant::now(), busy());
    work();
    let per_nic = |took: Duration| took.as_secs_f64() * 1000.0 / count as f64;
    println!(
        "{what:<12} {:>7.4} ms per NIC, {:>7.4} ms of processor",
        per_nic(started.elapsed()),
        per_nic(busy() - busy_before),
    );
}

/// Processor time of this process: what counts on a machine that others use too.
fn busy() -> Duration {
    let clock = nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID;
    nix::time::clock_gettime(clock)
        .expect("every process has this clock")
        .into()
}

struct Nic {
    veth: VethToNetns,
    number: usize,
    path: String,
    address: [u8; 4],
}

impl Nic {
    fn new(n: usize) -> Self {
        let [_, b, c, d] = (n as u32 + 1).to_be_bytes();
        let netns = NetnsName::new(format!("m{n}")).expect("a short name");
        Self {
            number: n,
            path: format!("{DIRECTORY}/{netns}"),
            veth: VethToNetns {
                name: IfName::new(format!("n-{n}")).expect("a short name"),
                netns,
                device: IfName::new("eth0").expect("a name"),
                mac: MacAddr([2, 0, 0, b, c, d]),
                mtu: Mtu::new(1400).expect("an MTU"),
                stamp: Stamp::Nic(NicId::from_random(n as u64)),
            },
            address: [10, b, c, d],
        }
    }

    fn address6(&self) -> [u8; 16] {
        let mut address = [0; 16];
        address[0] = 0xfd;
        address[12..].copy_from_slice(&self.address);
        address
    }

    fn row(&self) -> FdbRow {
        FdbRow {
            dev: self.veth.name.clone(),
            mac: self.veth.mac,
            target: FdbTarget::Bridge(None),
            state: FdbState::Static,
        }
    }
}

fn bridge(n: usize) -> IfName {
    IfName::new(format!("b-{n}")).expect("a short name")
}

fn index(name: &IfName) -> u32 {
    nix::net::if_::if_nametoindex(name.as_str()).expect("it was made")
}

fn prepare(route: &mut Socket) {
    let mtu = Mtu::new(1400).expect("an MTU");
    for n in 0..SUBNETS {
        let create = link::create_bridge(&bridge(n), MacAddr([2; 6]), mtu, false);
        route.request(create).expect("a bridge");
        let off = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", bridge(n));
        fs::write(off, "1").expect("a sysctl");
        route.request(link::set_up(&bridge(n), true)).expect("up");
    }
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft");
    let tables = "table bridge m {\n\
        set macs { type ifname . ether_addr; }\n\
        set ipv4 { type ifname . ipv4_addr; }\n\
        set ipv6 { type ifname . ipv6_addr; }\n}\n";
    std::io::Write::write_all(
        &mut nft.stdin.take().expect("stdin was asked for"),
        tables.as_bytes(),
    )
    .expect("nft reads");
    assert!(nft.wait().expect("nft ran").success());
}

fn all_well(results: Vec<Result<(), error::Cause>>) {
    for result in results {
        result.unwrap_or_else(|cause| panic!("{cause}"));
    }
}

fn create(nics: &[Nic], route: &mut Socket, nft: &mut Socket) {
    let bridges: Vec<u32> = (0..SUBNETS).map(|n| index(&bridge(n))).collect();
    for nics in nics.chunks(BATCH) {
        let spaces = make_namespaces(nics);
        let mut requests: Vec<Message> = nics
            .iter()
            .zip(&spaces)
            .map(|(nic, netns)| link::create_veth(&nic.veth, netns.as_raw_fd()))
            .collect();
        all_well(route.transact(&mut requests));
        let mut requests: Vec<Message> = nics
            .iter()
            .map(|nic| link::set_alias(&nic.veth.name, &nic.veth.stamp.to_string()))
            .collect();
        all_well(route.transact(&mut requests));
        for nic in nics {
            let path = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", nic.veth.name);
            fs::write(path, "1").expect("a sysctl");
        }
        elements(nft, sys::NFT_MSG_NEWSETELEM, nics);
        let mut requests: Vec<Message> = nics
            .iter()
            .flat_map(|nic| {
                [
                    link::set_master(&nic.veth.name, bridges[nic.number % SUBNETS]),
                    fdb::add(&nic.row(), index(&nic.veth.name)),
                    link::set_up(&nic.veth.name, true),
                ]
            })
            .collect();
        all_well(route.transact(&mut requests));
        std::thread::scope(|scope| scope.spawn(|| configure(nics, &spaces)).join())
            .expect("the namespaces were set up");
    }
}

fn make_namespaces(nics: &[Nic]) -> Vec<File> {
    let make = || {
        let make_one = |nic: &Nic| {
            File::create(&nic.path).expect("a file");
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
            let own = "/proc/thread-self/ns/net";
            mount(
                Some(own),
                nic.path.as_str(),
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .expect("a mount");
            File::open(&nic.path).expect("it was made")
        };
        nics.iter().map(make_one).collect()
    };
    std::thread::scope(|scope| scope.spawn(make).join()).expect("namespaces were made")
}

fn configure(nics: &[Nic], spaces: &[File]) {
    for (nic, netns) in nics.iter().zip(spaces) {
        setns(netns, CloneFlags::CLONE_NEWNET).expect("its namespace");
        let mut socket = Socket::route().expect("a netlink socket");
        let device = &nic.veth.device;
        let address = ipnet::Ipv4Net::new(nic.address.into(), 8).expect("a prefix");
        let address6 = ipnet::Ipv6Net::new(nic.address6().into(), 64).expect("a prefix");
        all_well(socket.transact(&mut [
            link::set_up(&IfName::new("lo").expect("a name"), true),
            link::add_address(index(device), address.into()),
            link::add_address(index(device), address6.into()),
            link::set_up(device, true),
        ]));
    }
}

/// Three elements per NIC: its MAC and its addresses.
fn elements(nft: &mut Socket, kind: u8, nics: &[Nic]) {
    let message = |kind: i32| {
        let mut message = Message::new(kind as u16, 0);
        message.header(&[0, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8]);
        message
    };
    let mut datagram = message(libc::NFNL_MSG_BATCH_BEGIN).finish(1).to_vec();
    for (sequence, set) in [(2, "macs"), (3, "ipv4"), (4, "ipv6")] {
        let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | u16::from(kind);
        let mut request = Message::new(kind, libc::NLM_F_CREATE | libc::NLM_F_ACK);
        request
            .header(&[sys::NFPROTO_BRIDGE, 0, 0, 0])
            .put_text(sys::NFTA_SET_ELEM_LIST_TABLE, "m")
            .put_text(sys::NFTA_SET_ELEM_LIST_SET, set)
            .nest(sys::NFTA_SET_ELEM_LIST_ELEMENTS, |m| {
                for nic in nics {
                    let mut key = nic.veth.name.as_str().as_bytes().to_vec();
                    key.resize(16, 0);
                    match set {
                        "macs" => key.extend_from_slice(&nic.veth.mac.0),
                        "ipv6" => key.extend_from_slice(&nic.address6()),
                        _ => key.extend_from_slice(&nic.address),
                    }
                    key.resize(key.len().next_multiple_of(4), 0);
                    m.nest(sys::NFTA_LIST_ELEM, |m| {
                        m.nest(sys::NFTA_SET_ELEM_KEY, |m| {
                            m.put(sys::NFTA_DATA_VALUE, &key);
                        });
                    });
                }
            });
        datagram.extend_from_slice(request.finish(sequence));
    }
    datagram.extend_from_slice(message(libc::NFNL_MSG_BATCH_END).finish(5));
    let mut left = 3;
    nft.exchange(&datagram, |answer| {
        socket::acknowledgement(answer).unwrap_or_else(|cause| panic!("{cause}"));
        left -= 1;
        left == 0
    })
    .unwrap_or_else(|cause| panic!("{cause}"));
}

fn delete(nics: &[Nic], route: &mut Socket, nft: &mut Socket) {
    for nics in nics.chunks(BATCH) {
        let mut requests: Vec<Message> = nics
            .iter()
            .map(|nic| link::set_group(&nic.veth.name, GROUP))
            .collect();
        all_well(route.transact(&mut requests));
        all_well(route.transact(&mut [link::delete_group(GROUP)]));
        elements(nft, sys::NFT_MSG_DELSETELEM, nics);
        for nic in nics {
            umount2(nic.path.as_str(), MntFlags::MNT_DETACH).expect("a mount of its own");
            fs::remove_file(&nic.path).expect("a file of its own");
        }
    }
}
