//! A route host that is not ours: FRR's zebra and bgpd on the guest's host, with the VNI of a VPC's
//! routers. Its namespace is its VRF: kernels without VRF devices have the default one.

use crate::fabric::{Fabric, GUEST, GUEST_ADDRESS};
use crate::foreign::{asn, password};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Where its sockets and files are.
const DIR: &str = "/run/outsider";
const MAC: &str = "02:50:00:00:00:05";
const WORKLOAD_MAC: &str = "02:50:00:00:00:77";

/// FRR on the guest's host, ended when it is dropped, and all that was made for it.
pub(crate) struct Outsider<'a> {
    fabric: &'a Fabric,
    vni: u64,
}

impl<'a> Outsider<'a> {
    /// The Router's MAC of its routes.
    pub(crate) const MAC: &'static str = MAC;
    /// Its own address in each of its prefixes.
    pub(crate) const OWN: [&'static str; 2] = ["10.99.0.1", "fd00:99::1"];
    /// A workload's, in a segment that it has a gateway in.
    pub(crate) const WORKLOAD: [&'static str; 2] = ["10.4.3.77", "fd00:4:0:3::77"];
    pub(crate) const PREFIXES: [&'static str; 2] = ["10.99.0.0/24", "fd00:99::/64"];

    /// Starts it as a router of this VNI; returns when its session is up.
    pub(crate) fn start(fabric: &'a Fabric, vni: u64) -> Self {
        let outsider = Self { fabric, vni };
        outsider.sh(&format!(
            "mkdir -p {DIR} && chown frr:frr {DIR} && sysctl -qw net.ipv4.ip_forward=1 \
             net.ipv6.conf.all.forwarding=1 && \
             ip link add inside type veth peer name inside1 && ip link set inside1 up && \
             ip link set inside up && ip address add {}/24 dev inside && \
             ip address add {}/64 dev inside nodad",
            Self::OWN[0],
            Self::OWN[1]
        ));
        outsider.make_device(vni);
        for daemon in ["zebra", "bgpd"] {
            outsider.sh(&format!(
                "/usr/lib/frr/{daemon} -i {DIR}/{daemon}.pid -z {DIR}/zserv.api --vty_socket {DIR} \
                 -P 0 -A 127.0.0.1 -f /dev/null -d 2>{DIR}/{daemon}.log"
            ));
        }
        outsider.tell(&outsider.configuration());
        fabric.lab.eventually("FRR has its session", || {
            let text = outsider.ask("show bgp l2vpn evpn summary json");
            match text.contains("\"state\":\"Established\"") {
                true => Ok(()),
                false => Err(text),
            }
        });
        outsider
    }

    fn configuration(&self) -> String {
        let lab = &self.fabric.lab;
        let (asn, key, peer) = (asn(lab), password(lab), self.fabric.reflector());
        let mut text = format!(
            "vni {vni}\nrouter bgp {asn}\nbgp router-id {GUEST_ADDRESS}\nno bgp default ipv4-unicast\n\
             coalesce-time 0\nneighbor {peer} remote-as {asn}\nneighbor {peer} password {key}\n\
             neighbor {peer} ttl-security hops 1\nneighbor {peer} update-source {GUEST_ADDRESS}\n\
             neighbor {peer} timers connect 1\n",
            vni = self.vni
        );
        for (family, prefix) in ["ipv4", "ipv6"].iter().zip(Self::PREFIXES) {
            let _infallible = write!(
                text,
                "address-family {family} unicast\nnetwork {prefix}\nmaximum-paths ibgp 4\n\
                 exit-address-family\n"
            );
        }
        let _infallible = write!(
            text,
            "address-family l2vpn evpn\nneighbor {peer} activate\nadvertise-all-vni\n\
             advertise ipv4 unicast\nadvertise ipv6 unicast\ndefault-originate ipv4\n\
             default-originate ipv6\nexit-address-family\n"
        );
        text
    }

    /// The device of a VNI; FRR needs a bridge that is its end of it.
    pub(crate) fn make_device(&self, vni: u64) {
        self.sh(&format!(
            "ip link add br{vni} address {MAC} type bridge mcast_snooping 0 && \
             ip link set br{vni} addrgenmode none && \
             ip link add vx{vni} type vxlan id {vni} local {GUEST_ADDRESS} dstport 4789 nolearning && \
             ip link set vx{vni} addrgenmode none master br{vni} && \
             ip link set vx{vni} up && ip link set br{vni} up"
        ));
    }

    /// It has a segment with this VNI as well, of a subnet whose gateway it is with this MAC, and a workload
    /// in it: the place of that.
    pub(crate) fn has_segment(&self, vni: u64, mac: &str) -> String {
        let [v4, v6] = Self::WORKLOAD;
        self.sh(&format!(
            "ip link add br{vni} address {mac} type bridge mcast_snooping 0 && \
             ip link set br{vni} up && ip address add 10.4.3.1/24 dev br{vni} && \
             ip address add fd00:4:0:3::1/64 dev br{vni} nodad && \
             ip link add vx{vni} type vxlan id {vni} local {GUEST_ADDRESS} dstport 4789 nolearning && \
             ip link set vx{vni} addrgenmode none master br{vni} && \
             bridge link set dev vx{vni} learning off neigh_suppress on && ip link set vx{vni} up && \
             ip netns add outside && \
             ip link add work type veth peer name eth0 address {WORKLOAD_MAC} netns outside && \
             ip link set work master br{vni} up && \
             bridge fdb replace {WORKLOAD_MAC} dev work master static && \
             ip -n outside link set eth0 up && ip -n outside address add {v4}/24 dev eth0 && \
             ip -n outside address add {v6}/64 dev eth0 nodad && \
             ip -n outside route add default via 10.4.3.1 && \
             ip -n outside -6 route add default via fd00:4:0:3::1"
        ));
        // It announces the neighbours that its kernel knows.
        for address in Self::WORKLOAD {
            self.fabric.lab.reaches(GUEST, address);
        }
        format!("{GUEST}/outside")
    }

    /// The workload is gone.
    pub(crate) fn loses_workload(&self) {
        self.sh("ip link del work && ip netns del outside");
    }

    pub(crate) fn remove_device(&self, vni: u64) {
        self.sh(&format!("ip link del vx{vni} && ip link del br{vni}"));
    }

    /// Lines of configuration.
    pub(crate) fn tell(&self, lines: &str) {
        self.sh(&format!(
            "cat > {DIR}/lines <<'END'\n{lines}END\nvtysh --vty_socket {DIR} -f {DIR}/lines"
        ));
    }

    /// What it answers.
    pub(crate) fn ask(&self, words: &str) -> String {
        let line = format!("vtysh --vty_socket {DIR} -c '{words}'");
        lab::text_of(&self.fabric.lab.try_sh(GUEST, &line))
    }

    pub(crate) fn sh(&self, line: &str) -> String {
        self.fabric.lab.sh(GUEST, line)
    }

    /// Waits until its kernel sends what is for this prefix to these VTEPs and no others.
    pub(crate) fn sends(&self, prefix: &str, vteps: &[&str]) {
        let family = if prefix.contains(':') { "-6 " } else { "" };
        let wanted: BTreeSet<String> = vteps.iter().map(|vtep| (*vtep).to_owned()).collect();
        let what = format!("FRR's kernel sends what is for {prefix} to {vteps:?}");
        self.fabric.lab.eventually(&what, || {
            let text = self.sh(&format!("ip {family}route show {prefix} proto bgp"));
            let words: Vec<&str> = text.split_whitespace().collect();
            let vias = words.windows(2).filter(|pair| pair[0] == "via");
            let vias = vias.map(|pair| pair[1].trim_start_matches("::ffff:").to_owned());
            match vias.collect::<BTreeSet<String>>() {
                seen if seen == wanted => Ok(()),
                _ => Err(text),
            }
        });
    }

    /// Waits until it announces its own prefix in the target of this VNI, or not at all.
    pub(crate) fn announces(&self, prefix: &str, vni: Option<u64>) {
        let (network, bits) = prefix.split_once('/').expect("a prefix");
        let route = format!("[5]:[0]:[{bits}]:[{network}]");
        self.fabric
            .lab
            .eventually(&format!("FRR announces {prefix} in {vni:?}"), || {
                let text = self.ask("show bgp l2vpn evpn");
                // The line of the route, of its next hop, of its communities.
                let mut lines = text.lines().skip_while(|line| !line.contains(&route));
                let communities = lines.nth(2);
                let holds = match (vni, communities) {
                    (None, None) => true,
                    (Some(vni), Some(line)) => line.contains(&format!(":{vni} ")),
                    _ => false,
                };
                if holds { Ok(()) } else { Err(text) }
            });
    }

    /// Whether it has routes of this VTEP.
    pub(crate) fn hears_of(&self, vtep: &str) -> bool {
        let text = self.ask("show bgp l2vpn evpn");
        text.split_whitespace().any(|word| word == vtep)
    }

    /// Waits until its kernel has nothing of others' any more.
    pub(crate) fn knows_nobody(&self) {
        self.fabric.lab.eventually("FRR's kernel has no row", || {
            let text = self.sh(
                "ip route show proto bgp; ip -6 route show proto bgp; bridge fdb | grep dst || true",
            );
            match text.trim().is_empty() {
                true => Ok(()),
                false => Err(text),
            }
        });
    }
}

impl Drop for Outsider<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for words in [
                "show bgp l2vpn evpn",
                "show evpn vni",
                "show evpn rmac vni all",
            ] {
                eprintln!("{}", self.ask(words));
            }
        }
        let line = format!(
            "for d in bgpd zebra; do kill $(cat {DIR}/$d.pid); \
             while kill -0 $(cat {DIR}/$d.pid) 2>/dev/null; do sleep 0.1; done; done; \
             rm -r {DIR}; ip link del inside; ip link del work; ip netns del outside; \
             for link in $(ls /sys/class/net); do case $link in vx*|br[0-9]*) ip link del $link;; esac; done; \
             sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0"
        );
        // Whatever is there of it.
        drop(self.fabric.lab.try_sh(GUEST, &line));
    }
}
