//! Duplicate addresses as a workload's own system looks for them, RFC 5227 and RFC 4862: whose an address is
//! elsewhere it hears on its host, and nobody else hears of it.

use super::super::evpn::{MAC_1, NOBODY, nic};
use super::neighbours::{KNOWN, KNOWN6, UNKNOWN, UNKNOWN6, is_neighbour_talk, nics};
use super::{ENCODINGS, sent_by, tunnelled, vpc};
use lab::Lab;
use lab::wire::{Wire, contains, mac};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Of another NIC of the same host.
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 4, 1, 14));
const NEAR6: Ipv6Addr = Ipv6Addr::new(0xfd00, 4, 0, 1, 0, 0, 0, 0x0e);

/// Lets a port ask for duplicates of addresses that are not its own, which guards do not. Nobody puts it
/// right while no agent runs.
fn opens_the_guard(lab: &Lab, vpc: &str, addresses: &[Ipv6Addr]) {
    let own = Ipv6Addr::new(0xfd00, 4, 0, 1, 0, 0, 0, 0x0b);
    let number = |address: Ipv6Addr| format!("{:#034x}", u128::from(address));
    let listed = lab.sh("c1", "nft list set bridge vpc nd-targets");
    let elements = listed.split([',', '{', '}']);
    let ports = elements.filter_map(|element| {
        let (port, address) = element.split_once(" . ")?;
        let digits = address.trim().strip_prefix("0x")?;
        let is_own = u128::from_str_radix(digits, 16) == Ok(own.into());
        is_own.then(|| port.trim().to_owned())
    });
    // Each VPC here has the same addresses.
    let ports: Vec<String> = ports.collect();
    assert!(!ports.is_empty(), "{vpc}: {listed}");
    for port in ports {
        for address in addresses {
            let element = format!("{{ {port} . {} }}", number(*address));
            lab.sh(
                "c1",
                &format!("nft 'add element bridge vpc nd-targets {element}'"),
            );
        }
    }
}

/// Frames about an address that left for other hosts: the questions of the one who wants it, and all.
fn asked_for(underlay: &Wire, vni: u64, address: IpAddr) -> (usize, usize) {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let packets = tunnelled(&underlay.received(), vni);
    let frames = packets.iter().map(|packet| packet.untagged());
    let about = frames.filter(|frame| is_neighbour_talk(frame) && contains(frame, &bytes));
    let about: Vec<Vec<u8>> = about.collect();
    let questions = about.iter().filter(|frame| frame[6..12] == mac(MAC_1));
    (questions.count(), about.len())
}

#[test]
fn an_address_that_is_taken_is_found_to_be_at_home_and_a_free_one_is_asked_for_everywhere() {
    let transports = ["--transport", "c1=tap,c2=kernel,c3=tap"];
    let lab = Lab::up_with(&[&["--hosts", "m1,c1,c2,c3"][..], &transports].concat());
    for (name, encoding) in ["blue", "green"].into_iter().zip(ENCODINGS) {
        let (vni, _) = vpc(&lab, name, &format!("--encoding {encoding}"));
        nics(&lab, name);
        nic(&lab, name, "a4", "c1", 14);
        let place = format!("c1/{name}-a1");
        lab.reaches(&place, &NEAR.to_string());
        lab.eventually("c1 knows its own", || {
            let known = lab.neighbours("c1");
            let has = |address: &str| known.iter().any(|row| row.address == address && row.here);
            match has(&NEAR.to_string()) && has(&NEAR6.to_string()) {
                true => Ok(()),
                false => Err(format!("{known:?}")),
            }
        });
        let rows = lab.vtep_rows("c1", vni);
        let others = rows.iter().filter(|(mac, _)| mac == NOBODY).count();
        let underlay = sent_by(&lab, "c1");

        // Probes of IPv4 (RFC 5227), as DHCP clients send them.
        for (address, is_free) in [(KNOWN.into(), false), (NEAR, false), (UNKNOWN.into(), true)] {
            underlay.received();
            let probes = lab.try_sh(&place, &format!("arping -D -q -c 2 -w 5 -I eth0 {address}"));
            assert_eq!(probes.status.success(), is_free, "{address}: {probes:?}");
            let expected = if is_free { 2 * others } else { 0 };
            let asked = asked_for(&underlay, vni, address);
            assert_eq!(asked, (expected, expected), "{address}");
        }

        // What the kernel does by itself with each address of IPv6 that it is given (RFC 4862 §5.4).
        lab.kill("c1", "agent");
        let unknown = UNKNOWN6;
        opens_the_guard(&lab, name, &[KNOWN6, NEAR6, unknown]);
        for (address, is_free) in [(KNOWN6, false), (NEAR6, false), (unknown, true)] {
            underlay.received();
            lab.sh(&place, &format!("ip address add {address}/64 dev eth0"));
            let has_it = lab.eventually(&format!("it is decided about {address}"), || {
                let told = lab.sh(
                    &place,
                    &format!("ip -6 -o address show dev eth0 to {address}"),
                );
                match (told.contains("dadfailed"), told.contains("tentative")) {
                    (true, _) => Ok(false),
                    (false, false) if told.contains(&address.to_string()) => Ok(true),
                    _ => Err(told),
                }
            });
            assert_eq!(has_it, is_free, "{address}");
            let (asked, all) = asked_for(&underlay, vni, address.into());
            match is_free {
                true => assert!(asked >= others, "{address}: {asked}"),
                false => assert_eq!(asked, 0, "{address}"),
            }
            // A neighbour of the same host says to all that it has it.
            assert!(address == NEAR6 || all == asked, "{address}: {all}");
            lab.sh(&place, &format!("ip address del {address}/64 dev eth0"));
        }
        lab.start("c1", "agent");
        lab.eventually("the guard is as it was", || {
            let listed = lab.sh("c1", "nft list set bridge vpc nd-targets");
            match listed.contains(&format!("{:x}", u128::from(unknown))) {
                true => Err(listed),
                false => Ok(()),
            }
        });
    }
}
