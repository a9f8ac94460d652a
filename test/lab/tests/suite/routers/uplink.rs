//! A router whose address outside is a foreign DHCP server's to give.

use super::{Answerer, EXT, connect};
use lab::{Lab, Ping, text_of};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Child;
use std::time::Duration;

const PORT: u16 = 7777;
const A1: &str = "c1/a1";

/// Debian's dnsmasq on the network outside. Its leases are to be prolonged each four seconds.
struct Dnsmasq<'a> {
    lab: &'a Lab,
    running: Option<Child>,
}

impl<'a> Dnsmasq<'a> {
    fn on(lab: &'a Lab) -> Self {
        Self { lab, running: None }
    }

    /// Gives addresses from `first` to `first + 9`; it does not know what it gave before.
    fn start(&mut self, first: u8) {
        let last = first + 9;
        let line = format!(
            "mkdir -p /run/dq; rm -f /run/dq/leases; exec dnsmasq --keep-in-foreground --conf-file=/dev/null \
             --user=root --pid-file=/run/dq/pid --port=0 --interface=eth0 --bind-interfaces \
             --dhcp-authoritative --no-ping --dhcp-leasefile=/run/dq/leases --log-dhcp \
             --log-facility=/run/dq/log --dhcp-range=198.51.100.{first},198.51.100.{last},255.255.255.0,2m \
             --dhcp-option=option:router,198.51.100.1 --dhcp-option=58,4 --dhcp-option=59,60"
        );
        self.running = Some(self.lab.spawn("ext", &["sh", "-c", &line]));
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.running.take() {
            self.lab.sh("ext", "kill $(cat /run/dq/pid)");
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// How often clients looked for servers.
    fn discovers(&self) -> usize {
        let log = self.lab.sh("ext", "cat /run/dq/log");
        log.lines()
            .filter(|line| line.contains("DHCPDISCOVER("))
            .count()
    }
}

impl Drop for Dnsmasq<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

/// What the server knows of the router's lease, once it is as wanted.
fn lease(lab: &Lab, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    lab.eventually(what, || {
        let shown = lab.admin("router show blue/gw");
        let lease = shown["figures"]["lease"].clone();
        match wanted(&lease) {
            true => Ok(lease),
            false => Err(shown.to_string()),
        }
    })
}

fn address(lease: &Value) -> Option<Ipv4Addr> {
    let text = lease["address"].as_str()?;
    text.split('/').next()?.parse().ok()
}

/// The address that somebody inside is seen with outside.
fn seen(lab: &Lab) -> IpAddr {
    lab.reaches(A1, "198.51.100.1");
    connect(lab, A1, EXT, PORT).1
}

/// A router that is to ask for its address on r1, and somebody behind it.
fn asking_router(lab: &Lab) {
    lab.admin("create blue --cidr 10.4.0.0/16");
    lab.admin("subnet create blue/web --cidr 10.4.1.0/24");
    lab.admin("nic create blue/web/a1 --host c1 --attach netns:a1 --ip 10.4.1.11 --wait");
    lab.admin("external create lan --bridge br-ext --dhcp");
    lab.admin("router create blue/gw --subnet web --uplink lan --nat --host r1");
    lab.sh(A1, "ip route replace default via 10.4.1.1");
}

#[test]
fn a_router_has_its_address_outside_from_a_foreign_server() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,r1"]);
    let mut outside = Dnsmasq::on(&lab);
    asking_router(&lab);
    let _far = Answerer::start(&lab, "ext", EXT, PORT);

    // Nobody answers: that is told, with what to do.
    lab.eventually("it is told that no server answers", || {
        let shown = lab.try_sh("m1", "vpc router show blue/gw");
        let doctor = lab.try_sh("r1", "vpc doctor");
        let told = |text: &str| text.contains("no DHCP server answers on br-ext");
        match told(&text_of(&shown)) && told(&text_of(&doctor)) {
            true => Ok(()),
            false => Err(format!("{}\n{}", text_of(&shown), text_of(&doctor))),
        }
    });

    outside.start(200);
    let first = lease(&lab, "an address", |lease| address(lease).is_some());
    let held = address(&first).expect("there is one");
    assert!((200..210).contains(&held.octets()[3]), "{first}");
    assert_eq!(first["gateway"], "198.51.100.1");
    assert_eq!(seen(&lab), IpAddr::V4(held));
    lab.eventually("nothing is wrong any more", || {
        let shown = lab.admin("router show blue/gw");
        match shown["conditions"].as_array().is_some_and(Vec::is_empty) {
            true => Ok(()),
            false => Err(shown.to_string()),
        }
    });

    // It is prolonged, and stays the same.
    let renewed = lease(&lab, "it is prolonged", |lease| {
        lease["renewed"] != first["renewed"] && lease["until"] != first["until"]
    });
    let same = |lease: &Value| (lease["address"].clone(), lease["since"].clone());
    assert_eq!(same(&renewed), same(&first));

    // An agent that dies and comes again changes nothing, and asks for nothing before it is time.
    let asked = outside.discovers();
    let addresses = "ip -n $(ip netns list | grep -o 'r-[^ ]*') -4 -br address";
    let before = lab.sh("r1", addresses);
    let ping = Ping::start(&lab, A1, "198.51.100.1", Duration::from_millis(100));
    lab.kill("r1", "agent");
    lab.start("r1", "agent");
    lease(&lab, "it is prolonged by the new agent", |lease| {
        same(lease) == same(&first) && lease["renewed"] != renewed["renewed"]
    });
    let pinged = ping.stop();
    assert_eq!(outside.discovers(), asked);
    assert_eq!(lab.sh("r1", addresses), before);
    assert_eq!(pinged.lost(), 0, "{pinged:?}");

    // The server does not want to know of it any more: another address, and translation goes with it.
    outside.stop();
    outside.start(220);
    let other = lease(&lab, "another address", |lease| {
        address(lease).is_some_and(|ip| (220..230).contains(&ip.octets()[3]))
    });
    let other = address(&other).expect("there is one");
    assert_eq!(seen(&lab), IpAddr::V4(other));
    let inside = lab.sh("r1", addresses);
    assert!(!inside.contains(&held.to_string()), "{inside}");
}

#[test]
fn a_router_keeps_its_address_from_outside_on_another_host() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,r1,r2"]);
    let mut outside = Dnsmasq::on(&lab);
    outside.start(200);
    asking_router(&lab);
    let _far = Answerer::start(&lab, "ext", EXT, PORT);
    let first = lease(&lab, "an address", |lease| address(lease).is_some());
    let held = address(&first).expect("there is one");
    assert_eq!(seen(&lab), IpAddr::V4(held));

    // Moved, and taken over from a host that is gone: who asks is the same.
    lab.admin("router move blue/gw --host r2 --wait");
    let second = lease(&lab, "r2 has the address", |lease| {
        address(lease) == Some(held) && lease["since"] != first["since"]
    });
    assert_eq!(seen(&lab), IpAddr::V4(held));
    lab.sh("r2", "ip link set eth0 down; ip link set eth1 down");
    lab.kill("r2", "agent");
    lease(&lab, "r1 has the address", |lease| {
        address(lease) == Some(held) && lease["since"] != second["since"]
    });
    assert_eq!(seen(&lab), IpAddr::V4(held));
}
