#!/bin/bash
# ceph.sh DIR GIB: Ceph on this host's loopback: a monitor, a manager, three OSDs (BlueStore, each a file of GIB GiB in DIR), a pool
# of three replicas and an image of 1 GiB in it, no authentication. Writes DIR/ready when it serves; ends with its standard input.
set -euo pipefail
dir=$1 gib=$2
mkdir -p "$dir"/{mon,mgr,run}
fsid=$(cat /proc/sys/kernel/random/uuid)
cat >"$dir/ceph.conf" <<CONF
[global]
fsid = $fsid
mon host = v2:127.0.0.1:3300
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 3
osd pool default min size = 2
osd crush chooseleaf type = 0
osd pool default pg autoscale mode = off
run dir = $dir/run
admin socket = $dir/run/\$name.asok
pid file = $dir/run/\$name.pid
log file = $dir/\$name.log
mon data = $dir/mon
mgr data = $dir/mgr
osd data = $dir/osd\$id
mon warn on pool no redundancy = false
osd objectstore = bluestore
bluestore block size = $((gib << 30))
osd memory target = 1073741824
osd class dir = /usr/lib/x86_64-linux-gnu/rados-classes
ms bind msgr1 = false
mon data avail warn = 1
mon data avail crit = 1
[client]
rbd cache = false
CONF
# where fio looks
mkdir -p /etc/ceph
cp "$dir/ceph.conf" /etc/ceph/ceph.conf
daemons=()
finish() { kill -9 "${daemons[@]}" 2>/dev/null || true; }
trap finish EXIT
daemon() {
    "$@" >>"$dir/daemons.log" 2>&1 </dev/null &
    daemons+=($!)
}
ceph() { timeout 30 /usr/bin/ceph --connect-timeout 10 "$@"; }
# waits for a command whose output matches
until_matches() {
    local pattern=$1 deadline=$((SECONDS + 90))
    shift
    until "$@" 2>/dev/null | grep -qE "$pattern"; do
        [ $SECONDS -lt $deadline ] || { echo "ceph.sh: '$*' does not say $pattern" >&2; exit 1; }
        read -rt 0.5 <> <(:) || true
    done
}
monmaptool --create --addv a '[v2:127.0.0.1:3300]' --fsid "$fsid" "$dir/monmap"
ceph-authtool --create-keyring "$dir/keyring" --gen-key -n mon. --cap mon 'allow *'
ceph-mon --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring"
daemon ceph-mon -f -i a
until_matches 'a' ceph mon stat
daemon ceph-mgr -f -i x
for number in 0 1 2; do
    uuid=$(cat /proc/sys/kernel/random/uuid)
    mkdir -p "$dir/osd$number"
    ceph osd new "$uuid" $number
    ceph-osd -i $number --mkfs --osd-uuid "$uuid"
    ceph osd crush add osd.$number 1 root=default host=h$number
    daemon ceph-osd -f -i $number
done
until_matches '3 up' ceph osd stat
ceph osd pool create rbd 32 32
ceph osd pool application enable rbd rbd
# Ceph's own pools are among them.
until_matches '([0-9]+) pgs: \1 active\+clean' ceph pg stat
rbd create img --size 1G --image-feature layering
touch "$dir/ready"
cat >/dev/null
