//! GoBGP as the reflector.

use crate::fabric::GUEST_ADDRESS;
use lab::Lab;
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What it reads; the lab host's own.
const FILE: &str = "/etc/vpc/gobgpd.toml";
/// What the guest may tell it.
pub(crate) const GUEST_LIMIT: u32 = 1_000;

/// A daemon on a lab host, ended when it is dropped.
pub(crate) struct Daemon {
    host: String,
    child: Mutex<Option<Child>>,
}

impl Daemon {
    pub(crate) fn start(&self, lab: &Lab) {
        let line =
            format!("exec gobgpd -f {FILE} --api-hosts 127.0.0.1:50051 >>/run/gobgpd.log 2>&1");
        let mut command = lab.command(&self.host, &["sh", "-c", &line]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        *self.child() = Some(child.expect("the vpc binary can be started"));
    }

    /// Replaces text in its configuration; it reads that when it is started.
    pub(crate) fn edit(&self, lab: &Lab, from: &str, to: &str) {
        lab.sh(&self.host, &format!("sed -i 's/{from}/{to}/' {FILE}"));
    }

    /// False once its process has ended.
    pub(crate) fn lives(&self) -> bool {
        let mut child = self.child();
        child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// What it said, but for connections that it closed.
    pub(crate) fn log(&self, lab: &Lab) -> String {
        lab.sh(&self.host, "grep -v Closed /run/gobgpd.log")
    }

    /// kill -9.
    pub(crate) fn kill(&self) {
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
        self.kill();
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

/// As the server prints it, and with what GoBGP can do beyond: long-lived graceful restart, route
/// target constraint, a limit of routes.
pub(crate) fn gobgp(lab: &Lab, host: &str) -> Daemon {
    let printed = lab.sh(host, "vpc server reflector-config gobgp");
    let mut text = String::new();
    let mut guest = false;
    for line in printed.lines() {
        text += line;
        text.push('\n');
        if line.contains("neighbor-address") {
            guest = line.contains(GUEST_ADDRESS);
        }
        if line.contains("notification-enabled") {
            text += "    long-lived-enabled = true\n";
        }
        if line.contains("l2vpn-evpn") && guest {
            text += "    [neighbors.afi-safis.prefix-limit.config]\n";
            text += &format!("      max-prefixes = {GUEST_LIMIT}\n");
        }
    }
    // Each neighbour's last table is that of its family's graceful restart.
    let last = "    [neighbors.afi-safis.mp-graceful-restart.config]\n      enabled = true\n";
    let more = format!(
        "{last}    [neighbors.afi-safis.long-lived-graceful-restart.config]\n      enabled = true\n      \
         restart-time = 300\n  [[neighbors.afi-safis]]\n    [neighbors.afi-safis.config]\n      \
         afi-safi-name = \"rtc\"\n"
    );
    let text = text.replace(last, &more);
    assert!(
        text.contains("\"rtc\"") && text.contains("long-lived-enabled"),
        "{text}"
    );
    lab.sh(host, &format!("cat > {FILE} <<'END'\n{text}END\n"));
    let daemon = Daemon {
        host: host.to_owned(),
        child: Mutex::default(),
    };
    daemon.start(lab);
    daemon
}
