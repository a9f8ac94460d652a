//! Whatever a workload's interface leaves to the next, what arrives is right.

use crate::world::{Plan, SOON, Transport, World, vlan_devices};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use testkit::eventually;

use Transport::{Kernel, Tap};

/// Bytes that are not the same anywhere.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(length);
    bytes
}

/// Sends bytes by TCP from the first workload to the second, in pieces, and compares them.
fn transfer(world: &World, to: &str, bytes: &[u8], piece: usize) {
    let address = format!("{to}:0");
    let listener = world.inside("tb", || TcpListener::bind(address).unwrap());
    let address = listener.local_addr().unwrap();
    let sender = world.inside("ta", || TcpStream::connect(address).unwrap());
    sender.set_nodelay(true).unwrap();
    sender.set_write_timeout(Some(SOON)).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut sender = sender;
            bytes
                .chunks(piece)
                .for_each(|some| sender.write_all(some).unwrap());
        });
        let mut got = Vec::new();
        receiver.read_to_end(&mut got).unwrap();
        assert!(
            got == bytes,
            "{} of {} bytes, or others",
            got.len(),
            bytes.len()
        );
    });
}

/// Sends datagrams of each length and compares them.
fn datagrams(world: &World, to: &str, lengths: impl IntoIterator<Item = usize>) {
    let any = if to.contains(':') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let receiver = world.inside("tb", || UdpSocket::bind(format!("{to}:0")).unwrap());
    let sender = world.inside("ta", || UdpSocket::bind(any).unwrap());
    receiver.set_read_timeout(Some(SOON)).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let mut got = vec![0; 65_536];
    for length in lengths {
        let bytes = noise(length);
        sender.send(&bytes).unwrap();
        let length = receiver.recv(&mut got).unwrap();
        assert!(
            got[..length] == bytes[..],
            "{} bytes, or others",
            bytes.len()
        );
    }
}

fn set(world: &World, end: &str, device: &str, on: bool) {
    let word = if on { "on" } else { "off" };
    world.exec(
        end,
        &format!("ethtool -K {device} tx {word} tso {word} gso {word} gro {word} >/dev/null"),
    );
}

fn everything(plan: Plan) {
    let world = World::new(plan);
    let low = if plan.tag.is_some() { "low" } else { "eth0" };
    let mtu = world.inner_mtu() as usize;
    // What the sender leaves undone, and what the last device has to have done.
    for (sender, receiver) in [(true, true), (true, false), (false, true), (false, false)] {
        set(&world, "ta", low, sender);
        set(&world, "hb", "n0", receiver);
        for to in ["10.9.0.2", "[fd00:9::2]"] {
            transfer(&world, to, &noise(3_000_001), 200_000);
            transfer(&world, to, &noise(300), 1);
            let headers = if to.starts_with('[') { 48 } else { 28 };
            let whole = mtu - headers;
            // The least, odd ones, the largest that go in one piece, and such that go in several.
            datagrams(
                &world,
                to,
                [
                    0,
                    1,
                    2,
                    3,
                    17,
                    18,
                    19,
                    511,
                    512,
                    513,
                    whole - 1,
                    whole,
                    whole + 1,
                    3 * mtu,
                    20_001,
                ],
            );
        }
    }
    for host in (0..2).filter(|host| plan.transports[*host] == Tap) {
        let dropped = world.client(host).figures().unwrap().dropped;
        // Workloads speak by themselves (MLD, DAD), also while one side has no rows yet.
        let usual = ["nobody-else", "unknown-vtep", "unknown-vni"];
        let strange: Vec<_> = dropped
            .iter()
            .filter(|(reason, _)| !usual.contains(&reason.as_str()))
            .collect();
        assert!(strange.is_empty(), "{strange:?}");
    }
}

#[test]
fn between_two_of_ours() {
    everything(Plan::default());
}

#[test]
fn from_the_kernels_device_to_ours() {
    everything(Plan {
        transports: [Kernel, Tap],
        ..Plan::default()
    });
}

#[test]
fn from_ours_to_the_kernels_device() {
    everything(Plan {
        transports: [Tap, Kernel],
        ..Plan::default()
    });
}

#[test]
fn over_ipv6() {
    everything(Plan {
        transports: [Tap, Kernel],
        v6: true,
        ..Plan::default()
    });
    everything(Plan {
        v6: true,
        ..Plan::default()
    });
}

#[test]
fn tagged_inside() {
    if !vlan_devices() {
        return;
    }
    everything(Plan {
        tag: Some(7),
        ..Plan::default()
    });
    everything(Plan {
        transports: [Kernel, Tap],
        tag: Some(7),
        ..Plan::default()
    });
}

#[test]
fn in_jumbo_frames() {
    everything(Plan {
        mtu: 9000,
        ..Plan::default()
    });
}

/// What is on the wire is whole: a receiver that has every checksum looked at finds none wrong, and no
/// packet is larger than the underlay takes.
#[test]
fn what_is_on_the_wire_is_whole() {
    let mut world = World::new(Plan::default());
    let file = world.run_dir(0).join("wire.pcap");
    // The other end of the underlay's cable computes what was left undone, as a network card does.
    for host in ["ha", "hb"] {
        world.exec(host, "ethtool -K u0 tx off tso off gso off >/dev/null");
    }
    // At once, or what is in its ring when it ends is lost.
    let dump = "tcpdump -i u0 --immediate-mode -B 16384 -U -w";
    let dump = format!("{dump} {} udp port 4789", file.display());
    let capture = world.spawn("hb", &dump);
    eventually("tcpdump listens", SOON, || match file.exists() {
        true => Ok(()),
        false => Err("no file yet".to_owned()),
    });
    transfer(&world, "10.9.0.2", &noise(1_000_001), 100_000);
    datagrams(&world, "10.9.0.2", [1, 100, 1400]);
    // tcpdump knows VXLAN and looks at checksums inside as well.
    let read = format!("tcpdump -vvnr {} 2>/dev/null", file.display());
    // Some of a million bytes; it may be too slow for all.
    eventually("packets are written", SOON, || {
        let text = world.exec("hb", &format!("sh -c '{read} || true'"));
        match text.matches("VXLAN").count() {
            few @ 0..=300 => Err(format!("{few} packets")),
            _ => Ok(()),
        }
    });
    world.end(capture);
    let text = world.exec("hb", &read);
    let lines: Vec<&str> = text.lines().collect();
    let wrong = |line: &str| line.contains("incorrect") || line.contains("[bad ");
    if let Some(at) = lines.iter().position(|line| wrong(line)) {
        panic!(
            "{}",
            lines[at.saturating_sub(3)..(at + 3).min(lines.len())].join("\n")
        );
    }
    let lengths = text.lines().filter_map(|line| {
        line.split("length ")
            .nth(1)?
            .split([')', ','])
            .next()?
            .trim()
            .parse::<u32>()
            .ok()
    });
    assert!(lengths.max().unwrap() <= 1500);
}
