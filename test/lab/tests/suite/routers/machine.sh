#!/bin/busybox sh
# The first process of the machine that machine.rs boots: takes its addresses by one DHCP client after
# the other and says on the console what came of it. What it is to end with is on the kernel's command
# line, and so in the environment: IPV4, IPV6, GATEWAY, GATEWAY6, OUTSIDE, FQDN.
export PATH=/usr/sbin:/usr/bin
busybox mount -t proc proc /proc
busybox --install -s /usr/bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
exec </dev/null >/dev/console 2>&1
for module in $(cat /modules/order); do insmod "/modules/$module"; done
ip link set lo up

seconds() { cut -d. -f1 /proc/uptime; }

# Tries a command until it succeeds, for a minute at most: an emulated processor is slow.
wait_for() {
    what=$1 until=$(($(seconds) + 60))
    shift
    until "$@" >/run/said 2>&1; do
        if [ "$(seconds)" -ge "$until" ]; then
            echo "vm: failed: $client: $what"
            cat /run/said /run/log
            ip address show dev eth0
            ip route
            ip -6 route
            poweroff -f
        fi
        usleep 100000
    done
}

settled() { ip -o -6 address show dev eth0 scope link -tentative | grep fe80; }
# Nobody may use an address before it is known that nobody else has it.
has() { ip -o address show dev eth0 scope global -tentative | grep " $1/"; }
one() { [ "$(ip -o "$1" address show dev eth0 scope global | wc -l)" = 1 ]; }
way() { ip "$1" route show default | grep "via $2"; }
metadata() { wget -qO - http://169.254.169.254/openstack/latest/meta_data.json | grep "\"$FQDN\""; }

# NAME, whether the kernel forms addresses from advertisements (0, 1), the client's command lines.
try() {
    client=$1
    : >/run/log
    ip link set eth0 down
    ip -4 address flush dev eth0
    echo "$2" >/proc/sys/net/ipv6/conf/eth0/autoconf
    ip link set eth0 up
    wait_for 'a link-local address' settled
    shift 2
    running=
    for line; do
        setsid sh -c "exec $line" >>/run/log 2>&1 &
        running="$running $!"
    done
    wait_for "$IPV4" has "$IPV4"
    wait_for "$IPV6" has "$IPV6"
    wait_for 'no other IPv4 address' one -4
    wait_for 'no other IPv6 address' one -6
    wait_for "a default route by $GATEWAY" way -4 "$GATEWAY"
    wait_for 'an IPv6 default route' way -6 fe80:
    wait_for "an answer from $GATEWAY" ping -c1 -W2 "$GATEWAY"
    wait_for "an answer from $GATEWAY6" ping -6 -c1 -W2 "$GATEWAY6"
    wait_for "an answer from $OUTSIDE" ping -c1 -W2 "$OUTSIDE"
    wait_for 'its metadata' metadata
    # shellcheck disable=SC2086
    kill $running
    wait
    echo "vm: $client has all"
}

echo "vm: booted $(uname -r)"
try udhcpc 1 'udhcpc -f -i eth0 -t 20 -T 1'
try dhclient 0 'dhclient -4 -d -lf /run/l4 -pf /run/p4 eth0' 'dhclient -6 -d -lf /run/l6 -pf /run/p6 eth0'
try dhcpcd 0 'dhcpcd -f /etc/dhcpcd-eth0.conf -B eth0'
echo 'vm: done'
poweroff -f
