#!/bin/bash
# Proves by use what a test kernel can do; one line a feature. Started by `cargo xtask kernel check`, which passes
# its own program as $VPC_XTASK. Makes and leaves network namespaces: only for a host that is thrown away.
set -u
: "${VPC_KERNEL_HOST:?run this by cargo xtask kernel check}"

# hosts NAME...: a network namespace each, with eth0 = 192.0.2.NUMBER, whose other end NAME lies here
hosts() {
    local n=0 name
    for name; do
        n=$((n + 1))
        ip netns add "$name"
        ip link add name "$name" type veth peer name eth0 netns "$name"
        ip -n "$name" address add "192.0.2.$n/24" dev eth0
        ip -n "$name" link set dev eth0 up
        ip -n "$name" link set dev lo up
        ip link set dev "$name" up
    done
}

# bridge_of NAME...: bridge br with these ports
bridge_of() {
    local port
    ip link add name br type bridge vlan_filtering 1
    for port; do ip link set dev "$port" master br; done
    ip link set dev br up
}

reaches() { ip netns exec "$1" ping -q -c1 -W2 "$2"; }

# A forgotten ! in front of the last command of a function would invert nothing under set -e, so this says it aloud.
not() { if "$@"; then echo "expected to fail: $*"; return 1; fi; }
blocked() { not ip netns exec "$1" ping -q -c1 -W0.3 "$2"; }

bridge_vlan_filtering() {
    hosts a b c
    bridge_of a b c
    local port
    for port in a b; do
        bridge vlan del dev $port vid 1
        bridge vlan add dev $port vid 10 pvid untagged
    done
    reaches a 192.0.2.2
    blocked a 192.0.2.3
    bridge vlan add dev c vid 10 pvid untagged
    reaches a 192.0.2.3
}

vlan_device() {
    hosts a b
    bridge_of a b
    bridge vlan add dev a vid 20
    bridge vlan add dev b vid 20
    ip -n a link add link eth0 name eth0.20 up type vlan id 20
    ip -n b link add link eth0 name eth0.20 up type vlan id 20
    ip -n a address add 198.51.100.1/24 dev eth0.20
    ip -n b address add 198.51.100.2/24 dev eth0.20
    reaches a 198.51.100.2
}

vxlan() {
    hosts a b
    bridge_of a b
    local peer=2 me
    for me in a b; do
        ip -n $me link add name vx up type vxlan id 7 dstport 4789 local 192.0.2.$((3 - peer)) nolearning
        bridge -n $me fdb append 00:00:00:00:00:00 dev vx dst 192.0.2.$peer
        ip -n $me address add 198.51.100.$((3 - peer))/24 dev vx
        peer=1
    done
    reaches a 198.51.100.2
}

vxlan_vnifilter() {
    ip link add name vx type vxlan dstport 4789 external vnifilter nolearning
    bridge vni add dev vx vni 1010
    ip link add name br type bridge vlan_filtering 1
    ip link set dev vx master br up
    bridge link set dev vx vlan_tunnel on neigh_suppress on learning off
    bridge vlan add dev vx vid 10
    bridge vlan add dev vx vid 10 tunnel_info id 1010
    bridge vlan tunnelshow dev vx | grep -w 1010
}

vrf() {
    hosts a b
    local port
    # the same subnet on both sides: only the table keeps them apart
    for port in a b; do
        ip link add name v-$port up type vrf table "$(printf '1%d' "'$port")"
        ip link set dev $port master v-$port
        ip address add 192.0.2.254/24 dev $port
    done
    ip vrf exec v-a ping -q -c1 -W2 192.0.2.1
    ip vrf exec v-b ping -q -c1 -W2 192.0.2.2
    not ip vrf exec v-a ping -q -c1 -W0.3 192.0.2.2
}

nft_bridge_concatenated_set() {
    hosts a b c
    bridge_of a b c
    local mac
    mac=$(ip netns exec a cat /sys/class/net/eth0/address)
    nft -f - <<NFT
table bridge t {
    set allowed { type ifname . ether_addr . ipv4_addr; elements = { "a" . $mac . 192.0.2.1 } }
    chain c {
        type filter hook prerouting priority -300; policy accept;
        iifname "a" ether type ip iifname . ether saddr . ip saddr @allowed counter accept
        iifname "a" ether type ip counter drop
    }
}
NFT
    reaches a 192.0.2.2
    ip -n a address add 192.0.2.99/24 dev eth0
    not ip netns exec a ping -q -c1 -W0.3 -I 192.0.2.99 192.0.2.2
}

nft_bridge_meta() {
    hosts a b
    bridge_of a b
    nft -f - <<'NFT'
table bridge t {
    counter seen { }
    chain c {
        type filter hook forward priority 0; policy accept;
        meta ibrname "br" meta ibrpvid 1 ether type ip counter name seen
    }
}
NFT
    reaches a 192.0.2.2
    nft list counter bridge t seen | grep -E 'packets [1-9]'
}

bridge_conntrack() {
    hosts a b
    bridge_of a b
    nft -f - <<'NFT'
table bridge t {
    chain c {
        type filter hook forward priority 0; policy drop;
        ether type arp accept
        ct state established,related accept
        iifname "a" ct state new accept
        log prefix "dropped "
    }
    # the bridge family rejects only where a frame comes in
    chain in {
        type filter hook prerouting priority 0; policy accept;
        ip daddr 192.0.2.250 reject with icmp type admin-prohibited
    }
}
NFT
    reaches a 192.0.2.2
    blocked b 192.0.2.1
}

nft_nat() {
    hosts a b
    ip address add 192.0.2.254/24 dev a
    ip address add 203.0.113.254/24 dev b
    ip -n b address flush dev eth0
    ip -n b address add 203.0.113.1/24 dev eth0
    ip -n a route add default via 192.0.2.254
    sysctl -qw net.ipv4.ip_forward=1
    # b has no way back to 192.0.2.0/24
    blocked a 203.0.113.1
    nft -f - <<'NFT'
table ip t {
    chain out { type nat hook postrouting priority srcnat; oifname "b" masquerade; }
    chain in { type nat hook prerouting priority dstnat; ip daddr 192.0.2.253 dnat to 203.0.113.1; }
}
table inet f {
    chain c {
        type filter hook forward priority 0; policy drop;
        iifname "a" fib saddr . iif oif exists limit rate 100/second accept
        ct state established accept
    }
}
NFT
    reaches a 203.0.113.1
    ip address add 192.0.2.253/24 dev a
    reaches a 192.0.2.253
}

nft_netdev() {
    hosts a b
    bridge_of a b
    nft -f - <<'NFT'
table netdev t { chain c { type filter hook ingress device "a" priority 0; ip protocol icmp drop; }; }
NFT
    blocked a 192.0.2.2
}

tc_flower_vlan() {
    hosts a b
    bridge_of b
    tc qdisc add dev a clsact
    tc filter add dev a ingress protocol ip flower ip_proto icmp action vlan push id 30 action mirred egress redirect dev b
    tc filter add dev a ingress protocol arp bpf bytecode '1,6 0 0 4294967295,' classid 1:1
    ip -n b link add link eth0 name tagged up type vlan id 30
    ip -n a neighbour add 192.0.2.2 lladdr "$(ip netns exec b cat /sys/class/net/eth0/address)" dev eth0
    ip netns exec a ping -q -c2 -i0.2 -W0.2 192.0.2.2 || true
    [ "$(ip netns exec b cat /sys/class/net/tagged/statistics/rx_packets)" -ge 1 ]
}

macvlan_dummy_nexthop() {
    ip link add name d0 up type dummy
    ip address add 192.0.2.1/24 dev d0
    ip netns add a
    ip link add link d0 name m0 netns a type macvlan mode bridge
    ip nexthop add id 1 via 192.0.2.9 dev d0
    ip nexthop add id 2 group 1
    ip route add 198.51.100.0/24 nhid 2
    ip route get 198.51.100.1 | grep 192.0.2.9
}

nbd_device() {
    [ -b /dev/nbd0 ]
    [ "$(cat /sys/block/nbd0/size)" = 0 ]
}

namespaces_cgroup() {
    unshare --user --map-root-user --net --pid --mount --uts --ipc --fork true
    mkdir /sys/fs/cgroup/check
    echo +memory +pids +cpu >/sys/fs/cgroup/cgroup.subtree_control
    (echo $BASHPID >/sys/fs/cgroup/check/cgroup.procs && grep -x 0::/check /proc/self/cgroup)
    rmdir /sys/fs/cgroup/check
}

ext4_loop() {
    truncate -s 16M /tmp/disk
    mkfs.ext4 -q /tmp/disk
    mount -o loop /tmp/disk /media
    echo works >/media/file
    umount /media
}

tun_multi_queue() { "$VPC_XTASK" kernel probe tun-multi-queue; }
tcp_md5() { "$VPC_XTASK" kernel probe tcp-md5; }
io_uring() { "$VPC_XTASK" kernel probe io-uring; }

# the machine's files, but what is written stays here
root_is_private() {
    touch "$PWD/.kernel-check" /usr/.kernel-check
    findmnt -n -o FSTYPE / | grep -x overlay
    rm "$PWD/.kernel-check" /usr/.kernel-check
    exec 3<>/dev/ptmx
    [ -e /dev/fd/3 ]
}

checks=(bridge_vlan_filtering vlan_device vxlan vxlan_vnifilter vrf nft_bridge_concatenated_set nft_bridge_meta
    bridge_conntrack nft_nat nft_netdev tc_flower_vlan macvlan_dummy_nexthop tun_multi_queue nbd_device tcp_md5 io_uring
    namespaces_cgroup ext4_loop root_is_private)

# Each check in a network namespace of its own, so that none meets what another left. The mounts of `ip netns` go with
# the mount namespace.
if [ "${1:-}" ]; then
    mount -t tmpfs tmpfs /run/netns
    ip link set dev lo up
    set -ex
    "$1"
    exit
fi
failed=0
for check in "${checks[@]}"; do
    start=${EPOCHREALTIME/./}
    if log=$(unshare --net --mount bash "$0" "$check" 2>&1); then verdict=ok; else verdict=FAILED; failed=1; fi
    printf '%-30s %-6s %5d ms\n' "$check" $verdict $(((${EPOCHREALTIME/./} - start) / 1000))
    [ $verdict = ok ] || sed 's/^/    /' <<<"$log"
done
exit $failed
