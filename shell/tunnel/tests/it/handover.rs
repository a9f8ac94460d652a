//! A datapath is replaced, dies, loses a TAP.

use crate::world::{HOSTS, Plan, SOON, World};
use datapath::Change;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use testkit::eventually;

/// Numbers that are sent a thousand a second, and whether each comes back.
fn echoes<'a>(
    world: &World,
    stop: &'a AtomicBool,
    asked: &'a AtomicBool,
) -> (
    impl FnOnce() -> (u64, u64) + Send + use<'a>,
    impl FnOnce() + Send + use<'a>,
) {
    let far = world.inside("tb", || UdpSocket::bind("10.9.0.2:0").unwrap());
    let near = world.inside("ta", || UdpSocket::bind("10.9.0.1:0").unwrap());
    near.connect(far.local_addr().unwrap()).unwrap();
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
    (ask, answer)
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
    let (ask, answer) = echoes(&world, &stop, &all_asked);
    let (mut near, mut far) = stream(&world);
    far.set_read_timeout(Some(SOON)).unwrap();
    thread::scope(|scope| {
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
        stop.store(true, Ordering::Relaxed);
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
