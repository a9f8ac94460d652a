//! A datapath is replaced, dies, loses a TAP.

use crate::world::{HOSTS, Plan, SOON, World};
use datapath::{Change, Direction, Ends};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use testkit::{Stops, eventually};
use tunnel::Figures;

/// Numbers that are sent a thousand a second, and whether each comes back.
fn echoes<'a>(
    world: &World,
    stop: &'a AtomicBool,
    asked: &'a AtomicBool,
) -> (
    [SocketAddr; 2],
    impl FnOnce() -> (u64, u64) + Send + use<'a>,
    impl FnOnce() + Send + use<'a>,
) {
    let far = world.inside("tb", || UdpSocket::bind("10.9.0.2:0").unwrap());
    let near = world.inside("ta", || UdpSocket::bind("10.9.0.1:0").unwrap());
    near.connect(far.local_addr().unwrap()).unwrap();
    let ends = [near.local_addr().unwrap(), far.local_addr().unwrap()];
    // On a slow machine nobody reads for a while, and what is lost in these sockets is not lost in between.
    for socket in [&far, &near] {
        setsockopt(socket, sockopt::RcvBufForce, &(16 << 20)).unwrap();
    }
    let brief = Some(Duration::from_millis(100));
    far.set_read_timeout(brief).unwrap();
    near.set_nonblocking(true).unwrap();
    let answer = move || {
        let mut bytes = [0; 8];
        while !asked.load(Ordering::Relaxed) {
            if let Ok((_, from)) = far.recv_from(&mut bytes) {
                drop(far.send_to(&bytes, from));
            }
        }
    };
    let ask = move || {
        let (mut sent, mut got) = (0_u64, 0_u64);
        let begin = Instant::now();
        let mut bytes = [0; 8];
        while !stop.load(Ordering::Relaxed) {
            near.send(&sent.to_le_bytes()).unwrap();
            sent += 1;
            while near.recv(&mut bytes).is_ok() {
                got += 1;
            }
            let next = begin + Duration::from_millis(sent);
            thread::park_timeout(next.saturating_duration_since(Instant::now()));
        }
        near.set_nonblocking(false).unwrap();
        near.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        while got < sent && near.recv(&mut bytes).is_ok() {
            got += 1;
        }
        asked.store(true, Ordering::Relaxed);
        (sent, got)
    };
    (ends, ask, answer)
}

/// A transfer that goes on; how much has arrived, and that it was right.
fn stream(world: &World) -> (TcpStream, TcpStream) {
    let listener = world.inside("tb", || TcpListener::bind("10.9.0.2:0").unwrap());
    let address = listener.local_addr().unwrap();
    let near = world.inside("ta", || TcpStream::connect(address).unwrap());
    (near, listener.accept().unwrap().0)
}

#[test]
fn a_new_process_takes_over_and_nothing_is_lost() {
    let mut world = World::new(Plan::default());
    let (stop, all_asked) = (AtomicBool::new(false), AtomicBool::new(false));
    let (_, ask, answer) = echoes(&world, &stop, &all_asked);
    let (mut near, mut far) = stream(&world);
    far.set_read_timeout(Some(SOON)).unwrap();
    thread::scope(|scope| {
        let stops = Stops(&stop);
        let answers = scope.spawn(answer);
        let asked = scope.spawn(ask);
        scope.spawn(|| {
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let block: Vec<u8> = (number..number + 1024).flat_map(u64::to_le_bytes).collect();
                near.write_all(&block).unwrap();
                number += 1024;
            }
            near.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let received = scope.spawn(|| {
            let (mut expected, mut bytes) = (0_u64, [0; 8]);
            while far.read_exact(&mut bytes).is_ok() {
                assert_eq!(u64::from_le_bytes(bytes), expected);
                expected += 1;
            }
            expected
        });
        for round in 0..6 {
            let host = round % 2;
            let before = world.client(host).tables().unwrap();
            world.start(host);
            assert_eq!(world.client(host).tables().unwrap(), before);
            let packets = world.client(host).figures().unwrap().out.packets;
            eventually("it works", SOON, || {
                let now = world.client(host).figures().unwrap().out.packets;
                if now > packets + 100 {
                    Ok(())
                } else {
                    Err(now.to_string())
                }
            });
        }
        drop(stops);
        answers.join().unwrap();
        let (sent, got) = asked.join().unwrap();
        let numbers = received.join().unwrap();
        println!(
            "{got} of {sent} echoes over 6 handovers, {} MiB of TCP",
            numbers >> 17
        );
        assert!(sent - got < 10, "{got} of {sent}");
    });
}

/// Each of its counters, and what it is called.
fn each(figures: &Figures) -> Vec<(String, u64)> {
    let mut all = vec![
        ("answered".to_owned(), figures.answered),
        ("answered ARP".to_owned(), figures.answered_arp),
    ];
    for (way, counted) in [("out", figures.out), ("in", figures.inward)] {
        all.push((format!("{way} frames"), counted.frames));
        all.push((format!("{way} packets"), counted.packets));
        all.push((format!("{way} bytes"), counted.bytes));
    }
    all.extend(figures.dropped.clone());
    all
}

/// Each frame is counted once, by whichever process had it; no counter goes back, and what is counted of a
/// flow is what passed of it.
#[test]
fn who_takes_over_goes_on_with_what_was_counted() {
    let mut world = World::new(Plan::default());
    world.tell(0, &[world.neighbour(1, "10.9.0.2", false)]);
    world.exec("ta", "arping -q -b -c 3 -w 5 -I eth0 10.9.0.2");
    // A MAC that nobody announced.
    let nobody = "ip neigh replace 10.9.0.9 lladdr 02:00:00:00:00:09 dev eth0";
    world.exec("ta", nobody);
    let near = world.inside("ta", || UdpSocket::bind("10.9.0.1:0").unwrap());
    for _ in 0..5 {
        near.send_to(b"?", "10.9.0.9:9").unwrap();
    }
    eventually("questions and drops are counted", SOON, || {
        let figures = world.client(0).figures().unwrap();
        let unknown = figures.dropped.get("unknown-mac").copied();
        match (figures.answered, unknown) {
            (3.., Some(5..)) => Ok(()),
            _ => Err(format!("{figures:?}")),
        }
    });
    let (stop, all_asked) = (AtomicBool::new(false), AtomicBool::new(false));
    let (ends, ask, answer) = echoes(&world, &stop, &all_asked);
    let sent = thread::scope(|scope| {
        let stops = Stops(&stop);
        let answers = scope.spawn(answer);
        let asked = scope.spawn(ask);
        for round in 0..6 {
            let host = round % 2;
            let before = world.client(host).figures().unwrap();
            world.start(host);
            let after = world.client(host).figures().unwrap();
            for (name, count) in each(&before) {
                let now = each(&after).into_iter().find(|(other, _)| *other == name);
                let now = now.map_or(0, |(_, now)| now);
                assert!(now >= count, "{name} of host {host}: {count}, then {now}");
            }
            let far_more = after.out.packets + 100;
            eventually("it works", SOON, || {
                match world.client(host).figures().unwrap().out.packets {
                    now if now > far_more => Ok(()),
                    now => Err(now.to_string()),
                }
            });
        }
        drop(stops);
        answers.join().unwrap();
        asked.join().unwrap().0
    });
    // What had no room on a busy machine is no flow's.
    let lost = [0, 1].map(|host| {
        let dropped = world.client(host).figures().unwrap().dropped;
        let reasons = ["tap-queue-full", "receive-buffer-full", "socket-full"];
        let lost = reasons.map(|reason| dropped.get(reason).copied().unwrap_or_default());
        lost.into_iter().sum::<u64>()
    });
    for (host, direction) in [(0, Direction::Out), (1, Direction::In)] {
        let flows = world.client(host).flows().unwrap();
        let wanted = Ends::Ip {
            protocol: 17,
            source: ends[0].ip(),
            destination: ends[1].ip(),
            ports: Some((ends[0].port(), ends[1].port())),
        };
        let is_it =
            |flow: &&datapath::Flow| flow.key.ends == wanted && flow.key.direction == direction;
        let flow = flows.flows.iter().find(is_it).unwrap();
        println!("host {host}: {sent} sent, {lost:?} had no room, {flow:?}");
        assert!(flow.packets <= sent, "{flow:?}, {sent} sent");
        assert!(
            flow.packets + lost[0] + lost[1] >= sent,
            "{flow:?}, {sent} sent"
        );
        assert!(flow.age > Duration::from_millis(sent), "{flow:?}");
    }
}

/// What the kernel says of a host: frames that its TAP's queues had no room for, and packets that the sockets
/// of its tunnel had none for.
fn without_room(world: &World, host: usize) -> [u64; 2] {
    let number = |line: &str, column: usize| -> u64 {
        let word = line.split_whitespace().nth(column).unwrap();
        word.parse().unwrap()
    };
    let devices = world.exec(HOSTS[host], "cat /proc/net/dev");
    let tap = devices.lines().find(|line| line.trim().starts_with("t0:"));
    let sockets = world.exec(HOSTS[host], "cat /proc/net/udp");
    // 4789
    let of_tunnel = sockets.lines().filter(|line| {
        line.split_whitespace()
            .nth(1)
            .is_some_and(|at| at.ends_with(":12B5"))
    });
    [
        number(tap.unwrap(), 12),
        of_tunnel.map(|line| number(line, 12)).sum(),
    ]
}

/// Whatever two processes share while one takes over from the other is counted by one of them: as often as
/// the kernel says.
#[test]
fn what_has_no_room_while_another_takes_over_is_counted_once() {
    let mut world = World::new(Plan::default());
    // The kernel counts what it holds as one, so here it holds each packet by itself, as from a wire.
    world.exec("ha", "ethtool -K u0 tx off tso off gso off >/dev/null");
    world.exec("ta", "ping -q -c 1 10.9.0.2");
    let far = world.inside("tb", || UdpSocket::bind("10.9.0.2:0").unwrap());
    let near = world.inside("ta", || UdpSocket::bind("10.9.0.1:0").unwrap());
    near.connect(far.local_addr().unwrap()).unwrap();
    setsockopt(&near, sockopt::SndBufForce, &(8 << 20)).unwrap();
    let counted = |world: &World, host: usize| {
        let dropped = world.client(host).figures().unwrap().dropped;
        ["tap-queue-full", "receive-buffer-full"]
            .map(|reason| dropped.get(reason).copied().unwrap_or_default())
    };
    // What was before somebody counted is nobody's.
    let before = [0, 1].map(|host| (without_room(&world, host), counted(&world, host)));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stops = Stops(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // Too much for everybody.
                let _none_is_missed = near.send(&[7; 1_400]);
            }
        });
        let reasons = ["tap-queue-full", "receive-buffer-full"];
        for (host, which) in [(0, 0), (1, 1), (0, 0), (1, 1)] {
            let [of_tap, of_sockets] = without_room(&world, host);
            let frozen = world.freeze(host);
            let what = format!("host {host}: more is {}", reasons[which]);
            eventually(&what, SOON, || {
                let now = without_room(&world, host)[which];
                match now > [of_tap, of_sockets][which] + 1_000 {
                    true => Ok(()),
                    false => Err(now.to_string()),
                }
            });
            drop(frozen);
            world.start(host);
        }
        drop(stops);
    });
    for (host, (kernel_before, ours_before)) in before.into_iter().enumerate() {
        eventually("as often as the kernel says", SOON, || {
            let (kernel, ours) = (without_room(&world, host), counted(&world, host));
            let more = |now: [u64; 2], then: [u64; 2]| [now[0] - then[0], now[1] - then[1]];
            let (told, expected) = (more(ours, ours_before), more(kernel, kernel_before));
            println!("host {host}: {told:?} counted, {expected:?} says the kernel");
            match told == expected {
                true => Ok(()),
                false => Err(format!("{told:?} counted, {expected:?} says the kernel")),
            }
        });
    }
}

#[test]
fn one_that_was_killed_is_told_all_anew() {
    let mut world = World::new(Plan::default());
    world.exec("ta", "ping -q -c 3 -i 0.05 10.9.0.2");
    world.kill_newest();
    world.start(1);
    assert_eq!(world.client(1).tables().unwrap().dump(), []);
    world.tell(1, &world.rows(1));
    eventually("it works again", SOON, || {
        world.try_exec("ta", "ping -q -c 1 -W 1 10.9.0.2")
    });
}

#[test]
fn who_takes_over_and_dies_leaves_the_other_at_work() {
    let world = World::new(Plan::default());
    // A stream that asks for all and goes away.
    let mut rude =
        std::os::unix::net::UnixStream::connect(world.run_dir(0).join(tunnel::SOCKET_NAME))
            .unwrap();
    rude.write_all(&[11, 0, 0, 0]).unwrap();
    rude.write_all(b"\"take-over\"").unwrap();
    let mut some = [0; 100];
    rude.read_exact(&mut some).unwrap();
    drop(rude);
    eventually("it takes rows in again", SOON, || {
        let change = world.neighbour(1, "10.9.0.2", false);
        world
            .client(0)
            .apply(&[change])
            .map(drop)
            .map_err(|error| error.to_string())
    });
    world.exec("ta", "ping -q -c 3 -i 0.05 10.9.0.2");
}

/// An upgrade, and somebody who restarts it at the same time: one after the other takes over, and no process
/// is left that nobody tells anything.
#[test]
fn several_that_take_over_at_once_take_turns() {
    let mut world = World::new(Plan::default());
    world.exec("ta", "ping -q -c 3 -i 0.05 10.9.0.2");
    for round in 0..4 {
        let before = world.client(0).tables().unwrap();
        let sent = world.client(0).figures().unwrap().out.packets;
        world.start_at_once(0, 3);
        let mut client = world.client(0);
        assert_eq!(client.tables().unwrap(), before, "round {round}");
        let now = client.figures().unwrap().out.packets;
        assert!(now >= sent, "round {round}: {sent}, then {now}");
        world.exec("ta", "ping -q -c 3 -i 0.05 10.9.0.2");
    }
}

#[test]
fn a_tap_that_goes_is_noticed_and_may_come_back() {
    let world = World::new(Plan::default());
    let netns = HOSTS[0];
    world.exec(netns, "ip link del t0");
    eventually("the binding is gone", SOON, || {
        let bindings = world.client(0).tables().unwrap().bindings;
        if bindings.is_empty() {
            Ok(())
        } else {
            Err(format!("{bindings:?}"))
        }
    });
    let outcome = world.client(0).apply(&[world.binding()]).unwrap();
    assert!(
        outcome[0].as_ref().unwrap_err().contains("No such device"),
        "{outcome:?}"
    );
    world.exec(netns, "ip tuntap add t0 mode tap multi_queue vnet_hdr");
    world.exec(netns, "ip link set t0 mtu 1450 master br0 up");
    world.tell(0, &[world.binding()]);
    world.exec("ta", "ping -q -c 3 -i 0.05 10.9.0.2");
    // Twice is once.
    world.tell(0, &[world.binding()]);
    let Change::Bind { place, .. } = world.binding() else {
        unreachable!()
    };
    world.tell(
        0,
        &[
            Change::Unbind {
                place: place.clone(),
            },
            Change::Unbind { place },
        ],
    );
    assert!(world.client(0).tables().unwrap().bindings.is_empty());
}
