//! DHCP: leases a second, of many workloads on one host at once, beside Kea and dnsmasq that serve
//! the same clients over a bridge made by hand.

use crate::Effort;
use crate::figures::{Table, Target, median, progress};
use crate::remote::Remote;
use crate::wire::{Answer, Ask, NewNic};
use lab::Lab;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::Child;

/// Bound to the bridge of the lab made by hand; leases in memory-backed files, as `/run` is.
const KEA: &str = r#"{"Dhcp4": {
    "interfaces-config": {"interfaces": ["server"], "dhcp-socket-type": "raw"},
    "lease-database": {"type": "memfile", "persist": true, "name": "/run/kea4.csv", "lfc-interval": 0},
    "valid-lifetime": 86400,
    "subnet4": [{"subnet": "10.97.0.0/16", "pools": [{"pool": "10.97.4.0-10.97.200.254"}]}],
    "loggers": [{"name": "kea-dhcp4", "output_options": [{"output": "/run/kea.log"}], "severity": "ERROR"}]
}}"#;
const DNSMASQ: &str = "rm -f /run/dnsmasq.leases; exec dnsmasq -k -C /dev/null --port=0 --user=root --interface=server \
    --bind-interfaces --dhcp-range=10.97.4.0,10.97.200.254,255.255.0.0,24h --dhcp-lease-max=300000 \
    --dhcp-authoritative --no-ping --dhcp-leasefile=/run/dnsmasq.leases --log-facility=/run/dnsmasq.log \
    --pid-file=";

fn kea_line() -> String {
    format!(
        "mkdir -p /run/kea; rm -f /run/kea4.csv*; echo '{KEA}' >/run/kea.json; \
         KEA_PIDFILE_DIR=/run/kea KEA_LOCKFILE_DIR=/run/kea exec kea-dhcp4 -c /run/kea.json"
    )
}

/// All three, one after the other, round for round.
pub(crate) fn measure(effort: Effort, table: &mut Table) {
    let count = effort.nics;
    let ms = effort.seconds * 1000 + 1000;
    progress(&format!(
        "{count} DHCP clients: NICs of ours, and a bridge made by hand for each other server"
    ));
    let lab = of_ours(count);
    let (mut ours, mut kea, mut dnsmasq) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        ours.push(leases(&lab, count, ms, "ours"));
        for (name, line, found) in [
            ("Kea", kea_line(), &mut kea),
            ("dnsmasq", DNSMASQ.to_owned(), &mut dnsmasq),
        ] {
            // Anew for each: where another server had answered before, some clients were seen to get no answer.
            let bridge = by_hand(count);
            let server = Serving::start(&bridge, &line, name);
            found.push(leases(&bridge, count, ms, name));
            drop(server);
        }
    }
    let what = format!("DHCP leases/s, {count} clients");
    let ours = median(&ours);
    table.add(
        &format!("{what}, beside Kea"),
        (ours, "/s"),
        Some(median(&kea)),
        Target::RatioLeast(1.0),
    );
    table.add(
        &format!("{what}, beside dnsmasq"),
        (ours, "/s"),
        Some(median(&dnsmasq)),
        Target::None,
    );
}

/// Leases a second in the workloads of c1, `w0` and on.
fn leases(lab: &Lab, count: usize, ms: u64, who: &str) -> f64 {
    let mut clients = Remote::start(lab, "c1", None);
    let names = || (0..count).map(|number| format!("w{number}")).collect();
    // Once to learn who is where, once that counts.
    clients.call(&Ask::Lease(names(), 1000));
    match clients.call(&Ask::Lease(names(), ms)) {
        Answer::Leases { done, again } => {
            let rate = done as f64 * 1000.0 / ms as f64;
            progress(&format!(
                "{who}: {rate:.0} leases/s, {again} questions asked again"
            ));
            rate
        }
        other => panic!("another answer than asked for: {other:?}"),
    }
}

fn of_ours(count: usize) -> Lab {
    let lab = Lab::up_with(&["--hosts", "m1,c1"]);
    lab.admin("create dhcp --cidr 10.97.0.0/16");
    lab.admin("subnet create dhcp/one --cidr 10.97.0.0/16");
    let nic = |number: usize| NewNic {
        subnet: "dhcp/one".to_owned(),
        name: format!("n{number}"),
        host: "c1".to_owned(),
        netns: format!("w{number}"),
        mac: String::new(),
        addresses: Vec::new(),
    };
    let mut client = Remote::start(&lab, "m1", None);
    client.call(&Ask::Fill((0..count).map(nic).collect()));
    drop(client);
    lab
}

/// A bridge with a port for each workload and one for the server, on the host itself. What a workload
/// says to all comes to the server alone, or the bridge would be what is measured.
fn by_hand(count: usize) -> Lab {
    let lab = Lab::up_with(&["--hosts", "c1", "--bare"]);
    lab.sh(
        "c1",
        &format!(
            "set -e
            for f in /proc/sys/net/bridge/bridge-nf-call-*; do if [ -e $f ]; then echo 0 >$f; fi; done
            echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
            ip link add br0 type bridge
            ip link set br0 up
            ip link add p type veth peer name server
            ip link set p master br0 up
            ip addr add 10.97.0.1/16 dev server
            ip link set server up
            for i in $(seq 0 {last}); do
                ip netns add w$i
                echo link add p$i type veth peer name eth0 netns w$i
                echo link set p$i master br0 up
                echo link set p$i type bridge_slave isolated on
            done | ip -batch -
            for i in $(seq 0 {last}); do ip -n w$i link set eth0 up; done",
            last = count - 1
        ),
    );
    lab
}

/// A DHCP server that ends when this is dropped.
struct Serving(Child);

impl Serving {
    fn start(lab: &Lab, line: &str, name: &str) -> Self {
        let child = lab.spawn("c1", &["sh", "-c", line]);
        lab.eventually(&format!("{name} listens"), || {
            // Kea's socket for DHCP is raw, and it has one beside it.
            let listens = lab.try_sh("c1", "ss -Huln 'sport = :67' | grep -q .");
            match listens.status.success() {
                true => Ok(()),
                false => Err(lab::text_of(&listens)),
            }
        });
        Self(child)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // `lab exec` passes the signal on. One that has ended already has had its say.
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).ok();
        self.0.wait().ok();
    }
}
