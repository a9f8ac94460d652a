#!/bin/bash
# setup.sh            the Debian 12 packages that building, the demo and the tests need
# setup.sh --kernel   also those that `cargo xtask kernel build` needs
# setup.sh --fuzz     also what the fuzzer is built with
# setup.sh --bench    also the DHCP servers and overlays that ours are measured beside
# setup.sh --ceph     also Ceph's daemons, which volumes are measured beside
# setup.sh --vm       also QEMU, and Debian's kernel for a virtual machine (amd64), unpacked in /var/cache/vpc
# Installs what is missing and nothing else; starts no service. Safe to run again.
set -euo pipefail

packages=(
    gcc make pkg-config libc6-dev git curl ca-certificates jq procps
    isc-dhcp-client udhcpc dhcpcd-base systemd
    iproute2 nftables iputils-ping iputils-arping ndisc6 tcpdump ethtool iperf3 socat
    frr gobgpd postgresql-15 faketime
    bind9-dnsutils cloud-init dnsmasq-base
    libnbd-bin python3-libnbd nbdkit qemu-utils fio
    fuse3 xfsprogs e2fsprogs nbd-client
)
kernel_packages=(bc binutils bison dpkg-dev e2fsprogs flex xz-utils)
rust_needed=1.95

fail() { echo "setup: $*" >&2; exit 1; }

case "$*" in
'') ;;
--fuzz) packages+=(g++) ;;
--bench) packages+=(kea-dhcp4-server openvswitch-switch wireguard-go wireguard-tools) ;;
--ceph) packages+=(ceph-mon ceph-mgr ceph-osd ceph-common) ;;
--kernel) packages+=("${kernel_packages[@]}") ;;
--vm) packages+=(qemu-system-x86) ;;
-h | --help) sed -n '2,8s/^# //p' "$0"; exit ;;
*) fail "unknown argument '$*': none, --kernel, --fuzz, --bench, --ceph or --vm" ;;
esac
[ "$(id -u)" = 0 ] || fail "installing packages needs root: run it as root (sudo $0 $*)"
command -v apt-get dpkg-query >/dev/null || fail "no apt here: this script is for Debian 12; elsewhere install: ${packages[*]}"

# prints those that are not installed
missing() {
    dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null |
        awk 'BEGIN { for (i = 1; i < ARGC; i++) want[ARGV[i]]; ARGC = 1 }
             $2 == "installed" { delete want[$1] }
             END { for (package in want) print package }' "$@" | sort
}

# While packages are installed, nothing of ours may start by itself: the lab runs FRR, GoBGP and PostgreSQL in
# namespaces of its own. What was there before is put back whatever happens.
policy=/usr/sbin/policy-rc.d
policy_kept=$policy.before-vpc-setup
no_cluster=/etc/postgresql-common/createcluster.d/vpc-setup.conf
hold_services() {
    [ -e $policy_kept ] || { [ -e $policy ] && mv $policy $policy_kept; } || true
    cat >$policy <<POLICY
#!/bin/sh
# made by vpc's setup.sh for as long as it runs
case "\$1" in frr* | gobgpd* | postgresql* | iperf3* | kea* | ceph* | openvswitch* | ovs* | wg-*) exit 101 ;; esac
[ -x $policy_kept ] && exec $policy_kept "\$@"
exit 0
POLICY
    chmod 755 $policy
    mkdir -p ${no_cluster%/*}
    echo 'create_main_cluster = false' >$no_cluster
}
release_services() {
    rm -f $policy $no_cluster
    rmdir --ignore-fail-on-non-empty ${no_cluster%/*} 2>/dev/null || true
    [ ! -e $policy_kept ] || mv $policy_kept $policy
}
# a run that was killed could not
! grep -qs "made by vpc's setup.sh" $policy || release_services

mapfile -t wanted < <(missing "${packages[@]}")
if [ ${#wanted[@]} -gt 0 ]; then
    echo "setup: installing ${wanted[*]}"
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    trap 'release_services; rm -f "$log"' EXIT
    trap 'exit 130' INT TERM HUP
    hold_services
    # Only its code is wanted. Where it was not before it stays off: it would take the machine for a new instance.
    if [[ " ${wanted[*]} " == *" cloud-init "* ]]; then
        mkdir -p /etc/cloud && touch /etc/cloud/cloud-init.disabled
    fi
    apt=(apt-get -q -y -o DPkg::Lock::Timeout=600)
    if ! "${apt[@]}" update >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        fail "apt-get update failed (above): check the network and /etc/apt/sources.list*"
    fi
    # What is there may be of another release, as from backports, and in the way: that is for its owner to decide.
    if ! "${apt[@]}" install --no-install-recommends --no-remove "${wanted[@]}" >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        fail "apt-get install failed (above): repair that (often: dpkg --configure -a; apt-get -f install) and run this again"
    fi
    # a new package enables its unit for the next boot, which would start it after all
    if [ -d /run/systemd/system ]; then
        for package in "${wanted[@]}"; do
            case $package in
            frr) systemctl -q disable frr ;;
            gobgpd) systemctl -q disable gobgpd ;;
            postgresql-15) systemctl -q disable postgresql ;;
            kea-dhcp4-server) systemctl -q disable kea-dhcp4-server ;;
            esac
        done
    fi
fi

# Unpacked only: an installed one would be what this machine boots next.
unpack_vm_kernel() (
    cache=${VPC_CACHE:-/var/cache/vpc}
    [ ! -e "$cache/vm-kernel" ] || exit 0
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }')
    [ -n "$package" ] || fail "apt has no linux-image-cloud-amd64: run apt-get update, or look at /etc/apt/sources.list*"
    echo "setup: unpacking $package in $cache/vm-kernel"
    mkdir -p "$cache"
    new=$(mktemp -d "$cache/vm-kernel.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    cd "$new"
    apt-get -qq -o APT::Sandbox::User=root download "$package" ||
        fail "apt-get download $package failed (above): run apt-get update, then this again"
    dpkg-deb -x ./*.deb kernel
    mv kernel "$cache/vm-kernel"
)
[ "$*" != --vm ] || unpack_vm_kernel

PATH=$PATH:${HOME:-/root}/.cargo/bin
command -v cargo >/dev/null ||
    fail "cargo is not installed: install Rust $rust_needed or newer (https://rustup.rs), then run this again"
rust=$(cargo --version | cut -d' ' -f2)
[ "$(printf '%s\n' $rust_needed "$rust" | sort -V | head -n1)" = $rust_needed ] ||
    fail "cargo is $rust, $rust_needed or newer is needed: run rustup update stable"
echo "setup: ready (${#packages[@]} packages, cargo $rust)"
