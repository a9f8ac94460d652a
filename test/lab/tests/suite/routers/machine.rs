//! A virtual machine with Debian's kernel that takes its addresses by its distribution's DHCP clients:
//! TAP queues, virtio-net headers and checksums are then somebody else's, as for every user.

use super::{made, vpc};
use lab::Lab;
use std::env;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use testkit::eventually;

/// The first process inside.
const GUEST: &str = include_str!("machine.sh");
const MAC: &str = "02:00:00:00:01:65";
const IPV4: &str = "10.4.1.101";
/// What the MAC gives (EUI-64), so that it may be formed as well as asked for.
const IPV6: &str = "fd00:4:0:1:0:ff:fe00:165";
/// Each has a minute for each of a dozen things; that it is all of them together is an emulated
/// processor's slowness, not the network's.
const PATIENCE: Duration = Duration::from_secs(600);

/// With the libraries that they need.
const PROGRAMS: [&str; 7] = [
    "/usr/bin/busybox",
    "/usr/sbin/ip",
    "/usr/sbin/dhclient",
    "/usr/sbin/dhclient-script",
    "/usr/sbin/dhcpcd",
    "/usr/lib/dhcpcd/dhcpcd-run-hooks",
    "/etc/udhcpc/default.script",
];
/// In the order in which one needs the other.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];
const FILES: [(&str, &str); 4] = [
    (
        "etc/passwd",
        "root:x:0:0::/:/bin/sh\n_dhcpcd:x:100:100::/run:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\n_dhcpcd:x:100:\n"),
    // The guard of a port lets no other link-local address out than the MAC's.
    ("etc/dhcpcd-eth0.conf", "slaac hwaddr\nduid\n"),
    ("etc/hosts", ""),
];

#[test]
fn a_booted_machine_takes_its_addresses_by_three_clients() {
    if env::var_os("VPC_SOAK").is_none() {
        return;
    }
    let kernel = Kernel::find();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let initrd = initrd(&kernel, dir.path());
    let console = dir.path().join("console");

    let lab = Lab::up_with(&["--hosts", "m1,c1,r1"]);
    vpc(&lab, "blue");
    let nic = lab.admin(&format!(
        "nic create blue/web/vm --host c1 --attach tap --mac {MAC} --ip {IPV4} --ip {IPV6} --wait"
    ));
    made(&lab);
    let tap = format!("n-{}", nic["id"].as_str().expect("an id"));
    let mut machine = Machine::boot(&lab, "c1", &kernel.image, &initrd, &tap, &console);
    for milestone in [
        "booted",
        "udhcpc has all",
        "dhclient has all",
        "dhcpcd has all",
        "done",
    ] {
        let line = format!("vm: {milestone}");
        eventually(&line, PATIENCE, || {
            let ended = machine.has_ended();
            let said = fs::read_to_string(&console).unwrap_or_default();
            assert!(!said.contains("vm: failed"), "{said}");
            match said.contains(&line) {
                true => Ok(()),
                false if ended => panic!("QEMU ended early: {said}"),
                false => Err(said),
            }
        });
    }
    // What was asked is what was answered here, and by nobody else.
    let leases = lab.sh("c1", "vpc -o json agent leases");
    for address in [IPV4, IPV6] {
        assert!(leases.contains(address), "{address} in {leases}");
    }
}

/// As `scripts/setup.sh --vm` unpacks it.
struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    fn find() -> Self {
        let cache = env::var_os("VPC_CACHE").map_or_else(|| "/var/cache/vpc".into(), PathBuf::from);
        let root = cache.join("vm-kernel");
        let found = |dir: &str, start: &str| {
            let entries = fs::read_dir(root.join(dir)).into_iter().flatten().flatten();
            let mut paths = entries.map(|entry| entry.path());
            paths.find(|path| {
                path.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with(start))
            })
        };
        let image = found("boot", "vmlinuz-");
        let modules = found("lib/modules", "");
        let missing = || panic!("no kernel in {}: scripts/setup.sh --vm", root.display());
        Self {
            image: image.unwrap_or_else(missing),
            modules: modules.unwrap_or_else(missing),
        }
    }

    /// None if it is built in.
    fn module(&self, name: &str) -> Option<PathBuf> {
        let file = format!("{name}.ko");
        let found = output(
            Command::new("find")
                .arg(&self.modules)
                .args(["-name", &file]),
        );
        found.lines().next().map(PathBuf::from)
    }
}

/// An archive of all that the machine has.
fn initrd(kernel: &Kernel, dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for sub in [
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "etc",
        "modules",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "var/lib/dhcp",
        "var/lib/dhcpcd",
    ] {
        fs::create_dir_all(root.join(sub)).expect("a directory of the test's own");
    }
    let link = |to: &str, from: &str| symlink(to, root.join(from)).expect("nothing is there yet");
    for sub in ["bin", "sbin", "lib", "lib64"] {
        link(&format!("usr/{sub}"), sub);
    }
    link("/run", "var/run");
    link("../bin/busybox", "usr/sbin/udhcpc");
    for program in PROGRAMS {
        copy(&root, program);
        // A script has no libraries.
        let ldd = Command::new("ldd")
            .arg(program)
            .output()
            .expect("ldd is there");
        let text = String::from_utf8_lossy(&ldd.stdout);
        for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
            copy(&root, library);
        }
    }
    let mut order = String::new();
    for name in MODULES {
        if let Some(path) = kernel.module(name) {
            let file = format!("{name}.ko");
            fs::copy(path, root.join("modules").join(&file)).expect("a file of the kernel's");
            order.push_str(&format!("{file}\n"));
        }
    }
    let write =
        |path: &str, text: &str| fs::write(root.join(path), text).expect("a file of its own");
    write("modules/order", &order);
    for (path, text) in FILES {
        write(path, text);
    }
    write("init", GUEST);
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(root.join("init"), executable).expect("its own file");
    let archive = dir.join("initrd");
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | busybox cpio -o -H newc 2>/dev/null"])
        .current_dir(&root);
    pack.stdout(File::create(&archive).expect("a file of its own"));
    assert!(pack.status().expect("sh is there").success(), "cpio");
    archive
}

/// The file that a path leads to, under the same path.
fn copy(root: &Path, path: &str) {
    let to = root.join(path.trim_start_matches('/'));
    let dir = to.parent().expect("it is below the root");
    fs::create_dir_all(dir).expect("a directory of the test's own");
    fs::copy(path, &to).unwrap_or_else(|error| panic!("{path}: {error}: scripts/setup.sh --vm"));
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("it is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// QEMU; it ends when this is dropped.
struct Machine(Child);

impl Machine {
    fn boot(lab: &Lab, host: &str, image: &Path, initrd: &Path, tap: &str, console: &Path) -> Self {
        let told = format!(
            "console=ttyS0 quiet panic=-1 IPV4={IPV4} IPV6={IPV6} GATEWAY=10.4.1.1 \
             GATEWAY6=fd00:4:0:1::1 OUTSIDE=198.51.100.1 FQDN=vm.web.blue.internal"
        );
        // The TAP has several queues, and whoever opens it has to say so.
        let tap = format!("tap,id=n0,ifname={tap},script=no,downscript=no,queues=2");
        let device = format!("virtio-net-pci,netdev=n0,mac={MAC},mq=on,romfile=");
        let serial = format!("file:{}", console.display());
        let path = |path: &Path| path.display().to_string();
        let (image, initrd) = (path(image), path(initrd));
        let argv = [
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
            "-machine",
            "q35,accel=tcg",
            "-m",
            "256",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            &serial,
            "-kernel",
            &image,
            "-initrd",
            &initrd,
            "-append",
            &told,
            "-netdev",
            &tap,
            "-device",
            &device,
        ];
        let mut qemu = lab.command(host, &argv);
        qemu.stdout(Stdio::null());
        Self(qemu.spawn().expect("the vpc binary can be started"))
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|status| status.is_some())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
