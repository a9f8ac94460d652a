//! Which flows pass: what is counted of each is what passed.

use crate::world::{Plan, SOON, Transport, VNI, World};
use datapath::{Direction, Ends, Flow};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use Transport::{Kernel, Tap};

const BYTES: usize = 3_000_000;

/// One TCP connection from the first workload to the second; its ends.
fn transfer(world: &World) -> [SocketAddr; 2] {
    let listener = world.inside("tb", || TcpListener::bind("10.9.0.2:0").unwrap());
    let far = listener.local_addr().unwrap();
    let mut near = world.inside("ta", || TcpStream::connect(far).unwrap());
    let ends = [near.local_addr().unwrap(), far];
    near.set_write_timeout(Some(SOON)).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.set_read_timeout(Some(SOON)).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || near.write_all(&[7; BYTES]).unwrap());
        let mut got = Vec::new();
        accepted.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), BYTES);
    });
    ends
}

/// The flow of one direction of a connection, as a host counted it.
fn flow(world: &World, host: usize, direction: Direction, ends: [SocketAddr; 2]) -> Flow {
    let [source, destination] = ends;
    let wanted = Ends::Ip {
        protocol: 6,
        source: source.ip(),
        destination: destination.ip(),
        ports: Some((source.port(), destination.port())),
    };
    let told = world.client(host).flows().unwrap();
    assert_eq!(told.pushed_out, 0);
    let is_it = |flow: &&Flow| flow.key.ends == wanted && flow.key.direction == direction;
    let found: Vec<&Flow> = told.flows.iter().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{:#?}", told.flows);
    found[0].clone()
}

#[test]
fn a_transfer_is_two_flows_at_each_host() {
    for (transports, tag) in [([Tap, Tap], None), ([Tap, Kernel], Some(7))] {
        if tag.is_some() && !crate::world::vlan_devices() {
            continue;
        }
        let world = World::new(Plan {
            transports,
            tag,
            ..Plan::default()
        });
        let there = transfer(&world);
        let back = [there[1], there[0]];
        let hosts = (0..2).filter(|host| transports[*host] == Tap);
        for host in hosts {
            let (ahead, behind) = match host {
                0 => (Direction::Out, Direction::In),
                _ => (Direction::In, Direction::Out),
            };
            let data = flow(&world, host, ahead, there);
            println!("host {host}: {data:?}");
            assert_eq!(data.key.domain, world.domain());
            assert_eq!(data.key.domain.vni.get(), VNI);
            assert_eq!(data.vtep, Some(world.underlay(1 - host)));
            // Headers of each frame, and what had to be sent twice.
            let bytes = data.bytes as usize;
            assert!((BYTES..BYTES + BYTES / 4).contains(&bytes), "{data:?}");
            let least = BYTES / world.inner_mtu() as usize;
            assert!(data.packets as usize >= least, "{data:?}");
            let acks = flow(&world, host, behind, back);
            assert!(acks.bytes < data.bytes / 10, "{acks:?}");
        }
    }
}
