//! Foreign DHCP clients, as their distribution configures interfaces with them.

use super::{made, nic, vpc};
use lab::Lab;
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Child;

/// A client on c1, and what it is to end with.
struct Client {
    number: u8,
    /// The lines of a shell in its namespace.
    run: &'static str,
    ipv4: &'static str,
    ipv6: &'static str,
}

/// What each does with files is its own: its mounts go with it.
const CLIENTS: [Client; 4] = [
    Client {
        number: 1,
        run: "ip link set eth0 up
              until ip -6 address show dev eth0 scope link -tentative | grep -q fe80; do sleep 0.1; done
              dhclient -6 -d -lf /run/k1/l6 -pf /run/k1/p6 eth0 &
              exec dhclient -4 -d -lf /run/k1/l4 -pf /run/k1/p4 eth0",
        ipv4: "10.4.1.101",
        ipv6: "fd00:4:0:1::101",
    },
    // IPv6 from the advertisement alone.
    Client {
        number: 2,
        run: "ip link set eth0 up
              exec udhcpc -f -i eth0 -t 20 -T 1",
        ipv4: "10.4.1.102",
        ipv6: "fd00:4:0:1:0:ff:fe00:102",
    },
    Client {
        number: 3,
        run: "mkdir -p /var/lib/dhcpcd && mount -t tmpfs none /var/lib/dhcpcd
              printf 'slaac hwaddr\nduid\n' > /run/k3/conf
              exec dhcpcd -f /run/k3/conf -B eth0",
        ipv4: "10.4.1.103",
        ipv6: "fd00:4:0:1::103",
    },
    // A container, as far as it is concerned: no udev is there to ask.
    Client {
        number: 4,
        run: "mkdir -p /run/systemd /etc/systemd
              mount -t tmpfs none /run/systemd
              mount -t tmpfs none /etc/systemd
              mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
              mkdir /etc/systemd/network
              chown -R systemd-network /run/systemd/netif
              printf '[Match]\nName=eth0\n[Network]\nDHCP=yes\n' > /etc/systemd/network/1.network
              umount /sys; mount -t sysfs -o ro sysfs /sys
              container=lxc exec /lib/systemd/systemd-networkd",
        ipv4: "10.4.1.104",
        ipv6: "fd00:4:0:1::104",
    },
];

impl Client {
    fn place(&self) -> String {
        format!("c1/k{}", self.number)
    }

    /// A NIC whose far end is in a namespace of somebody else's, down.
    fn lend(&self, lab: &Lab) {
        let Self {
            number, ipv4, ipv6, ..
        } = self;
        lab.sh(
            "c1",
            &format!(
                "ip netns add k{number} && ip link add l{number} type veth peer eth0 netns k{number} &&
                 ip -n k{number} link set eth0 address 02:00:00:00:01:{number:02x} &&
                 ip -n k{number} link set lo up && mkdir -p /run/k{number}"
            ),
        );
        lab.admin(&format!(
            "nic create blue/web/k{number} --host c1 --attach existing:l{number} \
             --mac 02:00:00:00:01:{number:02x} --ip {ipv4} --ip {ipv6} --wait"
        ));
    }

    fn start(&self, lab: &Lab) -> Child {
        let log = format!("exec > /run/k{}/log 2>&1\n", self.number);
        let run = log + self.run;
        // What it starts ends with it.
        let argv = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            &run,
        ];
        lab.spawn(&self.place(), &argv)
    }

    /// Waits until it has exactly the addresses that are planned, and a way out in both families.
    fn has_all(&self, lab: &Lab) {
        let expected: BTreeSet<String> = [self.ipv4, self.ipv6].map(String::from).into();
        lab.eventually(&format!("client {} has all", self.number), || {
            let links = lab.json(&self.place(), "ip -j address show dev eth0 scope global");
            let held = addresses(&links);
            let ways = lab.sh(
                &self.place(),
                "ip route show default; ip -6 route show default",
            );
            let gateways = [" 10.4.1.1 ", " fe80:"];
            if held == expected && gateways.iter().all(|gateway| ways.contains(gateway)) {
                return Ok(());
            }
            let log = lab.sh(
                "c1",
                &format!("tail -n 30 /run/k{}/log 2>&1 || true", self.number),
            );
            Err(format!("{links}\n{ways}\n{log}"))
        });
    }
}

fn addresses(links: &Value) -> BTreeSet<String> {
    let all = links[0]["addr_info"].as_array().into_iter().flatten();
    // Nobody may use an address before it is known that nobody else has it.
    all.filter(|address| address["tentative"] != true)
        .filter_map(|address| address["local"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn foreign_clients_take_their_addresses_and_reach_what_is_behind_the_router() {
    let lab = Lab::up();
    vpc(&lab, "blue");
    let far = nic(&lab, "blue/db/b1", "c2", 11);
    for client in &CLIENTS {
        client.lend(&lab);
    }
    made(&lab);
    let mut running: Vec<Child> = CLIENTS.iter().map(|client| client.start(&lab)).collect();
    for client in &CLIENTS {
        client.has_all(&lab);
    }
    for client in &CLIENTS {
        // The other subnet and the outside, by the way that the client was told of.
        for to in [
            "10.4.2.11",
            "fd00:4:0:2::11",
            "198.51.100.1",
            "2001:db8:64::1",
        ] {
            lab.reaches(&client.place(), to);
        }
        // The MTU is the subnet's: what is larger fails at home, what is full passes.
        let full = "ping -nqc1 -W5 -M do -s 1422 198.51.100.1";
        lab.sh(&client.place(), full);
    }
    lab.reaches(&far, "10.4.1.104");
    let leases = lab.json("c1", "vpc -o json agent leases");
    let taken = leases.to_string();
    for client in &CLIENTS {
        assert!(taken.contains(client.ipv4), "{} in {taken}", client.ipv4);
    }
    for child in &mut running {
        drop(child.kill());
        drop(child.wait());
    }
}

#[test]
fn leases_are_given_while_the_disk_is_full_and_that_is_told() {
    let lab = Lab::up_with(&["--hosts", "m1,c1"]);
    lab.admin("create blue --cidr 10.4.0.0/16");
    lab.admin("subnet create blue/web --cidr 10.4.1.0/24");
    lab.sh(
        "c1",
        "ip netns add k1 && ip link add l1 type veth peer eth0 netns k1 && mkdir -p /run/k1 &&
                  ip -n k1 link set eth0 address 02:00:00:00:01:01 && ip -n k1 link set lo up",
    );
    lab.admin(
        "nic create blue/web/k1 --host c1 --attach existing:l1 --mac 02:00:00:00:01:01 \
         --ip 10.4.1.101 --wait",
    );
    lab.kill("c1", "agent");
    lab.sh("c1", "cp -a /var/lib/vpc/agent /run/copy && mount -t tmpfs -o size=64k,mode=700 tmpfs /var/lib/vpc/agent && cp -a /run/copy/. /var/lib/vpc/agent/");
    lab.try_sh("c1", "cat /dev/zero > /var/lib/vpc/agent/fill");
    lab.start("c1", "agent");
    lab.sh(
        "c1/k1",
        "ip link set eth0 up; udhcpc -n -q -i eth0 -t 30 -T 1",
    );
    let address = lab.sh("c1/k1", "ip -4 -br address show dev eth0");
    assert!(address.contains("10.4.1.101/24"), "{address}");
    let trouble = |wanted: bool| {
        lab.eventually("the agent says whether leases are kept", || {
            let leases = lab.json("c1", "vpc -o json agent leases");
            let told = leases["trouble"].as_str().unwrap_or_default();
            match (told.contains("free some space"), told.is_empty()) {
                (true, _) if wanted => Ok(()),
                (_, true) if !wanted => Ok(()),
                _ => Err(leases.to_string()),
            }
        });
    };
    trouble(true);
    lab.sh("c1", "rm /var/lib/vpc/agent/fill");
    trouble(false);
    // It is on disk now.
    lab.kill("c1", "agent");
    lab.start("c1", "agent");
    lab.eventually("the lease is known after a restart", || {
        let leases = lab.try_sh("c1", "vpc -o json agent leases");
        let text = lab::text_of(&leases);
        match text.contains("10.4.1.101") {
            true => Ok(()),
            false => Err(text),
        }
    });
}
