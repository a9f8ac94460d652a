//! Reflectors of others.

use lab::Lab;
use std::fs::File;
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

const CLIENTS: [&str; 5] = [
    "100.64.0.1",
    "100.64.0.2",
    "100.64.0.3",
    "100.64.0.4",
    "100.64.0.5",
];

/// A daemon on a lab host, ended when it is dropped.
pub(crate) struct Daemon {
    host: String,
    argv: Vec<String>,
    dir: TempDir,
    child: Mutex<Option<Child>>,
}

impl Daemon {
    fn new(lab: &Lab, host: &str, dir: TempDir, argv: &[&str]) -> Self {
        let daemon = Self {
            host: host.to_owned(),
            argv: argv.iter().map(ToString::to_string).collect(),
            dir,
            child: Mutex::default(),
        };
        daemon.start(lab);
        daemon
    }

    pub(crate) fn start(&self, lab: &Lab) {
        let mut options = File::options();
        let log = options.append(true).create(true);
        let log = log.open(self.dir.path().join("log")).expect("a log file");
        let argv: Vec<&str> = self.argv.iter().map(String::as_str).collect();
        let mut command = lab.command(&self.host, &argv);
        command.stdout(log.try_clone().expect("a second handle"));
        let child = command.stderr(log).spawn();
        *self.child() = Some(child.expect("the vpc binary can be started"));
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> String {
        self.dir.path().display().to_string()
    }

    /// Replaces text in its configuration; it reads that when it is started.
    pub(crate) fn edit(&self, lab: &Lab, from: &str, to: &str) {
        let line = format!(
            "sed -i 's/{from}/{to}/' {}/*.conf {0}/*.toml 2>/dev/null || true",
            self.dir()
        );
        lab.sh(&self.host, &line);
    }

    /// False once its process has ended.
    pub(crate) fn lives(&self) -> bool {
        let mut child = self.child();
        child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// kill -9.
    pub(crate) fn kill(&self, lab: &Lab) {
        // FRR changes its user, and with that no longer dies with the process that started it.
        let pid = self.dir.path().join("bgpd.pid");
        if pid.exists() {
            lab.sh(&self.host, &format!("kill -9 $(cat {})", pid.display()));
        }
        self.reap();
    }

    fn reap(&self) {
        if let Some(mut child) = self.child().take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.reap();
    }
}

/// What this lab's BGP sessions are signed with.
pub(crate) fn password(lab: &Lab) -> String {
    lab.sh("m1", "cat /var/lib/vpc/server/bgp.key")
        .trim()
        .to_owned()
}

/// The AS of this lab's fabric.
pub(crate) fn asn(lab: &Lab) -> u32 {
    let summary = lab.json("m1", "vpc -o json evpn summary");
    let asn = summary["asn"].as_u64();
    asn.and_then(|asn| u32::try_from(asn).ok()).expect("an AS")
}

/// bgpd alone: a reflector has no routes for its kernel.
pub(crate) fn frr_reflector(lab: &Lab, host: &str, address: &str) -> Daemon {
    let (asn, password) = (asn(lab), password(lab));
    let mut text =
        format!("router bgp {asn}\n bgp router-id {address}\n no bgp default ipv4-unicast\n");
    for client in CLIENTS {
        text += &format!(
            " neighbor {client} remote-as {asn}\n neighbor {client} timers 3 9\n \
             neighbor {client} ttl-security hops 1\n neighbor {client} password {password}\n \
             neighbor {client} passive\n"
        );
    }
    text += " address-family l2vpn evpn\n";
    for client in CLIENTS {
        text +=
            &format!("  neighbor {client} activate\n  neighbor {client} route-reflector-client\n");
    }
    text += " exit-address-family\n";
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("bgpd.conf"), text).expect("a file");
    let path = dir.path().display().to_string();
    // FRR drops to its own user, which makes sockets and files there.
    lab.sh("ext", &format!("chmod 755 {path} && chown -R frr {path}"));
    let (conf, pid) = (format!("{path}/bgpd.conf"), format!("{path}/bgpd.pid"));
    let argv = [
        "/usr/lib/frr/bgpd",
        "--no_zebra",
        "-f",
        &conf,
        "-i",
        &pid,
        "--vty_socket",
        &path,
        "-P",
        "0",
        "--log",
        "stdout",
    ];
    Daemon::new(lab, host, dir, &argv)
}

pub(crate) fn gobgp_reflector(lab: &Lab, host: &str, address: &str) -> Daemon {
    let (asn, password) = (asn(lab), password(lab));
    let mut text = format!(
        "[global.config]\nas = {asn}\nrouter-id = \"{address}\"\n\
         local-address-list = [\"{address}\"]\n"
    );
    for client in CLIENTS {
        text += &format!(
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{client}\"\n\
             peer-as = {asn}\nauth-password = \"{password}\"\n\
             [neighbors.transport.config]\npassive-mode = true\n\
             [neighbors.timers.config]\nhold-time = 9\nkeepalive-interval = 3\n\
             [neighbors.ttl-security.config]\nenabled = true\nttl-min = 255\n\
             [neighbors.route-reflector.config]\nroute-reflector-client = true\n\
             route-reflector-cluster-id = \"{address}\"\n\
             [neighbors.graceful-restart.config]\nenabled = true\nrestart-time = 60\n\
             notification-enabled = true\nlong-lived-enabled = true\n\
             [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"l2vpn-evpn\"\n\
             [neighbors.afi-safis.mp-graceful-restart.config]\nenabled = true\n\
             [neighbors.afi-safis.long-lived-graceful-restart.config]\nenabled = true\n\
             restart-time = 300\n\
             [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"rtc\"\n"
        );
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("gobgpd.toml");
    std::fs::write(&file, text).expect("a file");
    let file = file.display().to_string();
    let argv = ["gobgpd", "-f", &file, "--api-hosts", "127.0.0.1:50051"];
    Daemon::new(lab, host, dir, &argv)
}
