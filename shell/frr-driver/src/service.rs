//! What FRR there is on this host, and whether its own service is in the way.

use crate::daemon::Daemon;
use crate::vty;
use frr::Version;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// Where the distribution's service has its sockets.
const SERVICE_DIR: &str = "/run/frr";

/// The FRR that is installed on this host. It is asked for its version once, and again when it is
/// another.
#[derive(Debug, Default)]
pub struct Installed {
    asked: Option<SystemTime>,
    version: Option<Version>,
}

impl Installed {
    /// Its version; none if it is not there or cannot be run. Waits for a short process if it is not
    /// known yet.
    pub fn version(&mut self) -> Option<Version> {
        let program = Daemon::program("bgpd");
        let made = fs::metadata(&program).and_then(|file| file.modified()).ok();
        if self.asked != made {
            self.asked = made;
            self.version = made.and_then(|_| ask_version(&program));
        }
        self.version
    }
}

fn ask_version(program: &Path) -> Option<Version> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    Version::find(&String::from_utf8_lossy(&output.stdout))
}

/// What is wrong with FRR's own service as the neighbour of the instance in `dir`, if it runs, and
/// what to do: with `advertise-all-vni` it announces this host's VNIs a second time, and writes rows
/// of its own.
pub async fn rival(dir: &Path) -> Option<(String, String)> {
    let service = Path::new(SERVICE_DIR);
    if dir == service {
        return None;
    }
    // If it does not answer it is not there.
    let running = vty::ask(&service.join("bgpd.vty"), "show running-config").await;
    frr::announces_all_vnis(&running.ok()?).then(|| {
        let what = format!(
            "FRR's own service (frr.service, sockets in {SERVICE_DIR}) has advertise-all-vni: it \
             announces the VPCs' VNIs a second time and writes rows of its own"
        );
        let remedy = "take that line out of it (vtysh; configure terminal; router bgp AS; \
                      address-family l2vpn evpn; no advertise-all-vni; end; write), the rest of it \
                      may stay; or stop the service: the agent runs an FRR of its own";
        (what, remedy.to_owned())
    })
}
