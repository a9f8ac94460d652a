//! What has no room: nothing waits for it, it is counted with its reason, and all goes on afterwards.

use crate::world::{Plan, SOON, World};
use datapath::Change;
use model::MacAddr;
use nix::sys::socket::{setsockopt, sockopt};
use std::net::UdpSocket;
use testkit::eventually;

/// Of a datagram, so that each is a packet of its own.
const BYTES: usize = 1_400;
/// More than the largest buffer here holds, 14 MB as the kernel counts.
const MANY: u64 = 20_000;

/// Frames of the kernels' own (router solicitations, group reports) that may be lost among them.
const STRAYS: u64 = 20;

/// Two sockets; the second has room for everything.
fn sockets(world: &World) -> (UdpSocket, UdpSocket) {
    let far = world.inside("tb", || UdpSocket::bind("10.9.0.2:0").unwrap());
    setsockopt(&far, sockopt::RcvBufForce, &(256 << 20)).unwrap();
    let near = world.inside("ta", || UdpSocket::bind("10.9.0.1:0").unwrap());
    near.connect(far.local_addr().unwrap()).unwrap();
    (near, far)
}

fn blast(near: &UdpSocket, count: u64) {
    for _ in 0..count {
        near.send(&[7; BYTES]).unwrap();
    }
}

/// Takes what is there; how many.
fn drain(far: &UdpSocket) -> u64 {
    far.set_nonblocking(true).unwrap();
    let mut bytes = [0; 2048];
    let mut count = 0;
    while far.recv(&mut bytes).is_ok() {
        count += 1;
    }
    count
}

fn dropped(world: &World, host: usize, reason: &str) -> u64 {
    let figures = world.client(host).figures().unwrap();
    figures.dropped.get(reason).copied().unwrap_or_default()
}

/// What this machine's processors had no room for between one interface and the next, of all tests that run
/// now: a busy machine is late to take packets up, and that is before the datapath.
fn backlog_drops() -> u64 {
    let table = std::fs::read_to_string("/proc/net/softnet_stat").unwrap();
    let dropped = table.lines().map(|line| {
        let column = line.split_whitespace().nth(1).unwrap();
        u64::from_str_radix(column, 16).unwrap()
    });
    dropped.sum()
}

/// Waits until every datagram has arrived or is counted as dropped for this reason.
fn all_are_accounted_for(
    world: &World,
    host: usize,
    reason: &str,
    far: &UdpSocket,
    (sent, drops_before): (u64, u64),
) {
    let mut arrived = 0;
    let lost = eventually("each datagram arrived or was counted", SOON, || {
        arrived += drain(far);
        let lost = dropped(world, host, reason);
        let before_us = backlog_drops() - drops_before;
        let (told, all) = (arrived + lost, arrived + lost + before_us);
        match all >= sent && told <= sent + STRAYS {
            true => Ok(lost),
            false => Err(format!(
                "{arrived} arrived, {lost} {reason}, {before_us} before, of {sent}"
            )),
        }
    });
    println!("{reason}: {lost} of {sent}");
    assert!(lost > 0, "there was room for all of {sent}");
    world.exec("ta", "ping -q -c 3 -i 0.05 10.9.0.2");
}

/// Who reads from the TAP does not come to it.
#[test]
fn a_taps_queue_that_is_full() {
    let world = World::new(Plan::default());
    let (near, far) = sockets(&world);
    world.exec("ta", "ping -q -c 1 10.9.0.2");
    let before = dropped(&world, 0, "tap-queue-full");
    assert_eq!(before, 0);
    let drops = backlog_drops();
    let frozen = world.freeze(0);
    blast(&near, MANY);
    drop(frozen);
    all_are_accounted_for(&world, 0, "tap-queue-full", &far, (MANY, drops));
}

/// Who reads from the underlay does not come to it.
#[test]
fn a_receive_buffer_that_overflows() {
    let world = World::new(Plan::default());
    let (near, far) = sockets(&world);
    // The kernel counts what it holds as one, so here it holds each packet by itself, as from a wire.
    world.exec("ha", "ethtool -K u0 tx off tso off gso off >/dev/null");
    world.exec("ta", "ping -q -c 1 10.9.0.2");
    let drops = backlog_drops();
    let frozen = world.freeze(1);
    // Slower than the first host, which is to lose nothing.
    for sent in 0..MANY {
        near.send(&[7; BYTES]).unwrap();
        if sent % 64 == 63 {
            eventually("the first host keeps up", SOON, || {
                let out = world.client(0).figures().unwrap().out.packets;
                if out + backlog_drops() - drops > sent {
                    Ok(())
                } else {
                    Err(format!("{out} of {sent}"))
                }
            });
        }
    }
    drop(frozen);
    all_are_accounted_for(&world, 1, "receive-buffer-full", &far, (MANY, drops));
    assert_eq!(dropped(&world, 0, "tap-queue-full"), 0);
}

/// A VTEP that nobody answers for on the underlay: what is for it fills a socket's buffer, until the kernel
/// gives up.
#[test]
fn a_send_buffer_that_is_full() {
    let world = World::new(Plan::default());
    // The kernel keeps as much as it is given, and asks for half a minute.
    for setting in ["unres_qlen_bytes=100000000", "mcast_solicit=30"] {
        world.exec("ha", &format!("sysctl -qw net.ipv4.neigh.u0.{setting}"));
    }
    let (nobody, vtep) = (MacAddr([2, 0, 0, 0, 0, 9]), [192, 0, 2, 9].into());
    let domain = world.domain();
    world.tell(
        0,
        &[Change::SetMac {
            domain,
            mac: nobody,
            vtep,
        }],
    );
    world.tell(0, &[world.neighbour(1, "10.9.0.2", false)]);
    world.exec(
        "ta",
        &format!("ip neigh replace 10.9.0.9 lladdr {nobody} dev eth0"),
    );
    let near = world.inside("ta", || UdpSocket::bind("10.9.0.1:0").unwrap());
    near.connect("10.9.0.9:9").unwrap();
    let full = eventually("the buffer is full", SOON, || {
        blast(&near, 1_000);
        match dropped(&world, 0, "socket-full") {
            0 => Err("it is not".to_owned()),
            full => Ok(full),
        }
    });
    // It stays so; what is for others passes, and questions are answered.
    blast(&near, 10_000);
    eventually("the TAP's queue has room again", SOON, || {
        world.try_exec("ta", "ping -q -c 1 -W 1 10.9.0.2")
    });
    let told = world.exec("ta", "ping -q -c 200 -i 0.002 10.9.0.2");
    println!(
        "beside a socket that is full: {}",
        told.lines().last().unwrap_or_default()
    );
    assert!(told.contains(" 0% packet loss"), "{told}");
    world.exec("ta", "ip neigh flush dev eth0");
    world.exec("ta", "arping -q -c 3 -w 5 -I eth0 10.9.0.2");
    assert!(dropped(&world, 0, "socket-full") > full);
    // What a socket did not take was not sent.
    let figures = world.client(0).figures().unwrap();
    let not_taken = ["socket-full", "unreachable"].map(|reason| figures.dropped.get(reason));
    let not_taken: u64 = not_taken.into_iter().flatten().sum();
    assert_eq!(figures.out.packets + not_taken, figures.out.frames);
    // The VTEP comes up.
    world.exec("hb", "ip addr add 192.0.2.9/24 dev u0");
    world.tell(1, &[Change::SetLocal(Some([192, 0, 2, 9].into()))]);
    eventually("it passes again", SOON, || {
        let before = dropped(&world, 0, "socket-full");
        blast(&near, 100);
        std::thread::yield_now();
        let more = dropped(&world, 0, "socket-full") - before;
        if more == 0 {
            Ok(())
        } else {
            Err(format!("{more} dropped"))
        }
    });
}

/// A TAP that is down takes nothing.
#[test]
fn a_tap_that_is_down() {
    let world = World::new(Plan::default());
    let (near, far) = sockets(&world);
    world.exec("ta", "ping -q -c 1 10.9.0.2");
    world.exec("hb", "ip link set t0 down");
    let before = dropped(&world, 1, "tap-full");
    blast(&near, 10);
    eventually("they are counted", SOON, || {
        match dropped(&world, 1, "tap-full") - before {
            0 => Err("none".to_owned()),
            _ => Ok(()),
        }
    });
    assert_eq!(drain(&far), 0);
    world.exec("hb", "ip link set t0 up");
    eventually("it goes on", SOON, || {
        world.try_exec("ta", "ping -q -c 1 -W 1 10.9.0.2")
    });
}
