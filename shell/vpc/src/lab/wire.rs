//! Switches, cables and addresses of the lab, made with `ip` in the lab's own namespaces.

use super::process::ProcessId;
use super::spec::{EXT_NAME, OUTSIDE_BRIDGE, UNDERLAY_NAME, V4_LENGTH, V6_LENGTH};
use super::state::{HostKind, LabHost, LabState};
use crate::failure::{Doing, Failure, Outcome};
use nix::sched::{CloneFlags, setns};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

/// Joins the hosts.
pub(crate) fn connect(state: &LabState) -> Outcome {
    let switch = state.host(UNDERLAY_NAME)?.living_holder()?;
    let (cables, sysctls) = cables(state)?;
    in_net(switch, &sysctls, cables).map_err(|error| failed(UNDERLAY_NAME, &error))?;
    for host in &state.hosts {
        if host.kind != HostKind::Underlay {
            let (addresses, sysctls) = addresses(host);
            in_net(host.living_holder()?, &sysctls, addresses)
                .map_err(|error| failed(&host.name, &error))?;
        }
    }
    Ok(())
}

fn failed(host: &str, error: &io::Error) -> Failure {
    Failure::new(format!("lab host {host}: setting up its network: {error}"))
}

/// The bridges, and a veth pair to each host and network.
fn cables(state: &LabState) -> Outcome<(String, Vec<&'static str>)> {
    let mtu = state.mtu;
    let mut batch = "link set lo up\n".to_owned();
    for bridge in [UNDERLAY_NAME, "outside"] {
        line(
            &mut batch,
            &format!("link add name {bridge} type bridge mcast_snooping 0 forward_delay 0"),
        );
        line(&mut batch, &format!("link set {bridge} up"));
    }
    for host in &state.hosts {
        if host.kind == HostKind::Underlay {
            continue;
        }
        let pid = host.living_holder()?.pid;
        let mut plug = |near: &str, far: &str, bridge: &str| {
            line(
                &mut batch,
                &format!(
                    "link add name {near} mtu {mtu} type veth peer name {far} mtu {mtu} netns {pid}"
                ),
            );
            line(&mut batch, &format!("link set {near} master {bridge} up"));
        };
        if host.underlay.is_some() {
            plug(&host.name, "eth0", UNDERLAY_NAME);
        }
        if host.is_route() || host.kind == HostKind::Outside {
            plug(&format!("x-{}", host.name), outer(host), "outside");
        }
    }
    // The switches carry frames and have no business with IPv6 of their own.
    Ok((batch, vec!["default", "all"]))
}

/// Name of a host's interface on the outside network.
fn outer(host: &LabHost) -> &'static str {
    match host.name.as_str() {
        EXT_NAME => "eth0",
        _ => "eth1",
    }
}

fn addresses(host: &LabHost) -> (String, Vec<&'static str>) {
    let mut batch = "link set lo up\n".to_owned();
    let mut quiet = Vec::new();
    if let Some(address) = host.underlay {
        let (length, nodad) = match address {
            IpAddr::V4(_) => {
                // IPv6's router solicitations and multicast reports would only be noise on it.
                quiet.push("eth0");
                (V4_LENGTH, "")
            }
            IpAddr::V6(_) => (V6_LENGTH, " nodad"),
        };
        line(
            &mut batch,
            &format!("addr add {address}/{length} dev eth0{nodad}"),
        );
        line(&mut batch, "link set eth0 up");
    }
    if host.is_route() {
        // What is on this bridge is the routers', not the host's: it has no address there, not even
        // one of its own making.
        let outer = outer(host);
        quiet.push(outer);
        line(
            &mut batch,
            &format!("link add name {OUTSIDE_BRIDGE} type bridge mcast_snooping 0 forward_delay 0"),
        );
        line(
            &mut batch,
            &format!("link set {OUTSIDE_BRIDGE} addrgenmode none"),
        );
        line(
            &mut batch,
            &format!("link set {outer} master {OUTSIDE_BRIDGE} up"),
        );
        line(&mut batch, &format!("link set {OUTSIDE_BRIDGE} up"));
    }
    for address in &host.outside {
        let outer = outer(host);
        let (length, nodad) = match address {
            IpAddr::V4(_) => (V4_LENGTH, ""),
            IpAddr::V6(_) => (V6_LENGTH, " nodad"),
        };
        line(
            &mut batch,
            &format!("addr add {address}/{length} dev {outer}{nodad}"),
        );
        line(&mut batch, &format!("link set {outer} up"));
    }
    (batch, quiet)
}

fn line(batch: &mut String, text: &str) {
    writeln!(batch, "{text}").expect("a String takes all");
}

/// Runs a batch of `ip` commands in a process's network namespace, after switching IPv6 off for
/// what `quiet` names. On a thread of its own: a network namespace belongs to a thread.
fn in_net(process: ProcessId, quiet: &[&'static str], batch: String) -> io::Result<()> {
    let quiet = quiet.to_vec();
    let work = move || {
        let namespace = File::open(format!("/proc/{}/ns/net", process.pid))?;
        if !process.is_alive() {
            return Err(io::Error::other("its holder ended"));
        }
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        for device in quiet {
            let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
            match fs::write(&path, "1") {
                // A kernel without IPv6 has nothing to switch off.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
        ip_batch(&batch)
    };
    std::thread::spawn(work)
        .join()
        .map_err(|_| io::Error::other("the thread that did it panicked"))?
}

fn ip_batch(batch: &str) -> io::Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("running ip: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // What it did not take it complains about itself.
        drop(stdin.write_all(batch.as_bytes()));
    }
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr)
                .trim()
                .replace('\n', "; "),
        )),
    }
}

/// The tools that the lab itself runs.
pub(crate) fn check_tools() -> Outcome {
    let found = Command::new("ip")
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Failure::new("the lab needs `ip`, which is not installed")
                .hint("apt-get install iproute2"))
        }
        other => other.map(drop).doing(|| "running ip -V".to_owned()),
    }
}
