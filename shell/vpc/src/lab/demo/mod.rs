//! `vpc lab demo`: VPCs with the same addresses, and proof of who reaches whom.

mod draw;
mod names;
mod outside;
mod reach;
mod volume;

use super::cli::DaemonKind;
use super::cluster::Inside;
use super::down;
use super::probe::Answers;
use super::progress::Progress;
use super::sniff::{COUNTING, Counts};
use super::spec::UNDERLAY_NAME;
use super::state::{LabDir, LabState};
use super::up::{Wanted, bring_up};
use crate::failure::{Doing, Failure, Outcome};
use crate::output::{Format, Paint, json, print, remark};
use outside::Outside;
use reach::{Matrix, Nic};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long the network may take from "applied" to what is expected.
const SETTLE: Duration = Duration::from_secs(20);

/// A VPC of the demo; all have the same addresses and MACs.
struct Vpc {
    name: &'static str,
    encoding: &'static str,
}

const VPCS: [Vpc; 3] = [
    Vpc {
        name: "blue",
        encoding: "vlan-based",
    },
    Vpc {
        name: "red",
        encoding: "vlan-based",
    },
    Vpc {
        name: "green",
        encoding: "vlan-aware-bundle",
    },
];
const SUBNETS: [(&str, u8); 2] = [("web", 1), ("db", 2)];
const VPC_CIDRS: [&str; 2] = ["10.4.0.0/16", "fd00:4::/32"];

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    lab: String,
    ok: bool,
    nics: Vec<Nic>,
    reach: Vec<reach::Cell>,
    /// How often all pairs were asked until it was so; more than once on a busy machine, or while
    /// the network settles.
    looks: u32,
    /// What is not as it should be, in words.
    wrong: Vec<String>,
    outside: Outside,
    names: Vec<names::Answer>,
    /// None where there are no hosts with disks enough, or no client.
    disk: Option<volume::Disk>,
    underlay: Counts,
    left_out: Vec<String>,
}

/// Brings it up or takes what is up, builds, checks, shows. A failure if one line is not as it
/// should be.
pub(crate) fn run(lab: &LabDir, wanted: &Wanted<'_>, format: Format, down: bool) -> Outcome {
    let shown = build_and_check(lab, wanted, format, down);
    if down {
        down::take_down(lab)?;
    }
    shown
}

fn build_and_check(lab: &LabDir, wanted: &Wanted<'_>, format: Format, down: bool) -> Outcome {
    let state = ready_lab(lab, wanted)?;
    let inside = Inside { lab, state: &state };
    let mut progress = Progress::new();
    let (vpcs, left_out) = supported(&inside)?;
    build(&inside, &vpcs, &mut progress)?;
    progress.step("hosts report every NIC as made");
    let nics = made_nics(&inside, &vpcs)?;
    progress.step("who reaches whom: ping, UDP, broadcast, multicast; every pair");
    let sniffer = Sniffer::start(&inside)?;
    let (matrix, looks) = settled(&inside, &nics)?;
    let outside = through_routers(&inside, &nics)?;
    let names = match outside::has_routers(&inside) {
        true => names::look(&inside, &nics)?,
        false => Vec::new(),
    };
    let underlay = sniffer.finish()?;
    let disk = match volume::can(&inside) {
        true => {
            progress.step("a volume: written, its leader killed, read back on another host");
            Some(volume::look(&inside)?)
        }
        false => None,
    };
    progress.done();

    let mut wrong = matrix.wrong();
    wrong.extend(outside.wrong());
    wrong.extend(names.iter().filter_map(names::Answer::wrong));
    wrong.extend(disk.iter().filter_map(volume::Disk::wrong));
    wrong.extend(wrong_on_underlay(
        &underlay,
        &expected_vnis(&inside, &vpcs)?,
    ));
    let report = Report {
        lab: lab.name().to_owned(),
        ok: wrong.is_empty(),
        reach: matrix.cells(),
        looks,
        nics,
        outside,
        names,
        disk,
        wrong,
        underlay,
        left_out,
    };
    match format {
        Format::Json => json(&report)?,
        Format::Table => {
            show(&state, &report, &matrix)?;
            if !down {
                print(&next_steps(lab))?;
            }
        }
    }
    match report.ok {
        true => Ok(()),
        false if down => Err(not_right(&report)),
        false => Err(not_right(&report).hint(format!(
            "the lab is up: look around with `vpc lab exec{0} c1 -- vpc agent status`; logs are in {1}",
            lab.flag(),
            lab.path().join("log").display()
        ))),
    }
}

fn ready_lab(lab: &LabDir, wanted: &Wanted<'_>) -> Outcome<LabState> {
    match lab.load()? {
        Some(state)
            if state.complete && state.hosts.iter().all(|host| host.living_holder().is_ok()) =>
        {
            remark(&format!("Lab {} is up already; using it.", lab.name()));
            Ok(state)
        }
        Some(_) => {
            remark(&format!(
                "Lab {} is half up; taking it down first.",
                lab.name()
            ));
            down::take_down(lab)?;
            bring_up(lab, wanted)
        }
        None => bring_up(lab, wanted),
    }
}

/// What the hosts' kernels can do, and what is left out because they cannot.
fn supported(inside: &Inside<'_>) -> Outcome<(Vec<&'static Vpc>, Vec<String>)> {
    let hosts = inside.json(&inside.state.management()?.name, &["host", "list"])?;
    let can = |host: &Value| {
        let taps = host["transport"] == "tap";
        taps || host["capabilities"].as_array().is_some_and(|capabilities| {
            capabilities
                .iter()
                .any(|capability| capability == "vlan-filtering" || capability == "cls-bpf")
        })
    };
    let none = Vec::new();
    let hosts = hosts.as_array().unwrap_or(&none);
    let because = match hosts.iter().any(|host| host["speaker"] == "frr") {
        true => Some("FRR, the EVPN client of some hosts, does VLAN-based service only"),
        false if hosts.iter().all(can) => None,
        false => {
            Some("this kernel has neither VLAN filtering nor BPF classifiers for VXLAN devices")
        }
    };
    let mut left_out = Vec::new();
    let vpcs = VPCS
        .iter()
        .filter(|vpc| {
            let because = because.filter(|_| vpc.encoding == "vlan-aware-bundle");
            if let Some(because) = because {
                left_out.push(format!("{} ({}): {because}", vpc.name, vpc.encoding));
            }
            because.is_none()
        })
        .collect();
    Ok((vpcs, left_out))
}

/// What is to be: in each subnet one NIC on each compute host and a second one on the first, so
/// that there are neighbours on the same host and on others.
fn planned(inside: &Inside<'_>, vpcs: &[&Vpc]) -> Vec<Nic> {
    let mut hosts: Vec<&str> = inside
        .state
        .agents()
        .filter(|host| host.roles.iter().any(|role| role == "compute"))
        .map(|host| host.name.as_str())
        .collect();
    hosts.extend(hosts.first().copied());
    let mut nics = Vec::new();
    for vpc in vpcs {
        for (subnet, net) in SUBNETS {
            for (index, host) in hosts.iter().enumerate() {
                let number = index + 1;
                let last = 10 + number;
                nics.push(Nic {
                    path: format!("{}/{subnet}/a{number}", vpc.name),
                    subnet: format!("{}/{subnet}", vpc.name),
                    reach: match outside::has_routers(inside) {
                        true => vpc.name.to_owned(),
                        false => format!("{}/{subnet}", vpc.name),
                    },
                    host: (*host).to_owned(),
                    netns: format!("{}-{subnet}-{number}", vpc.name),
                    ipv4: format!("10.4.{net}.{last}"),
                    ipv6: format!("fd00:4:{net}::{last:x}"),
                    mac: format!("02:00:00:00:{net:02x}:{number:02x}"),
                });
            }
        }
    }
    nics
}

fn build(inside: &Inside<'_>, vpcs: &[&Vpc], progress: &mut Progress) -> Outcome {
    let management = &inside.state.management()?.name;
    let there = |arguments: &[&str], field: &str| -> Outcome<BTreeSet<String>> {
        let list = inside.json(management, arguments)?;
        let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let name = |item: &Value| Some(crate::views::short(item[field].as_str()?).to_owned());
        Ok(items.iter().filter_map(name).collect())
    };
    progress.step("VPCs with the same addresses, two subnets each");
    let known = there(&["list"], "path")?;
    for vpc in vpcs.iter().filter(|vpc| !known.contains(vpc.name)) {
        progress.detail(vpc.name);
        let [v4, v6] = VPC_CIDRS;
        inside.vpc(
            management,
            &[
                "create",
                vpc.name,
                "--cidr",
                v4,
                "--cidr",
                v6,
                "--encoding",
                vpc.encoding,
            ],
        )?;
    }
    let known = there(&["subnet", "list"], "path")?;
    for vpc in vpcs {
        for (subnet, net) in SUBNETS {
            let path = format!("{}/{subnet}", vpc.name);
            if known.contains(&path) {
                continue;
            }
            progress.detail(&path);
            let (v4, v6) = (format!("10.4.{net}.0/24"), format!("fd00:4:{net}::/64"));
            inside.vpc(
                management,
                &["subnet", "create", &path, "--cidr", &v4, "--cidr", &v6],
            )?;
        }
    }
    let routed = outside::has_routers(inside);
    if routed {
        progress.step("routers between the subnets and to the outside");
        let names: Vec<&str> = vpcs.iter().map(|vpc| vpc.name).collect();
        outside::build(inside, &names, &SUBNETS.map(|(subnet, _)| subnet))?;
    }
    progress.step("NICs, the same MACs in every VPC");
    let known = there(&["nic", "list"], "path")?;
    for nic in planned(inside, vpcs) {
        if known.contains(&nic.path) {
            continue;
        }
        progress.detail(&nic.path);
        let attach = format!("netns:{}", nic.netns);
        inside.vpc(
            management,
            &[
                "nic", "create", &nic.path, "--host", &nic.host, "--attach", &attach, "--ip",
                &nic.ipv4, "--ip", &nic.ipv6, "--mac", &nic.mac,
            ],
        )?;
    }
    match routed {
        true => outside::build_public(inside),
        false => Ok(()),
    }
}

/// Waits until the hosts made them all; a NIC that failed says why.
fn made_nics(inside: &Inside<'_>, vpcs: &[&Vpc]) -> Outcome<Vec<Nic>> {
    let management = &inside.state.management()?.name;
    let nics = planned(inside, vpcs);
    inside.eventually(
        management,
        DaemonKind::Server,
        "all NICs to be applied",
        || {
            let list = inside.json(management, &["nic", "list"])?;
            let mut waiting = Vec::new();
            for nic in &nics {
                let found = list.as_array().and_then(|list| {
                    list.iter().find(|item| {
                        item["path"].as_str().map(crate::views::short) == Some(nic.path.as_str())
                    })
                });
                match found {
                    Some(item) if item["state"] == "applied" => {}
                    Some(item) => {
                        let why = item["conditions"][0]["message"]
                            .as_str()
                            .unwrap_or("no word yet");
                        let state = item["state"].as_str().unwrap_or_default();
                        waiting.push(format!("{} on {}: {state}: {why}", nic.path, nic.host));
                    }
                    None => waiting.push(format!("{} is not there", nic.path)),
                }
            }
            match waiting.is_empty() {
                true => outside::made(&inside.json(management, &["router", "list"])?),
                false => Err(Failure::new(waiting.join("; "))),
            }
        },
    )?;
    if outside::has_routers(inside) {
        outside::give_routes(inside, &nics)?;
    }
    Ok(nics)
}

/// Looks until all is as expected, or the time is up.
fn settled(inside: &Inside<'_>, nics: &[Nic]) -> Outcome<(Matrix, u32)> {
    let _answering = Answering::start(inside, nics)?;
    let deadline = Instant::now() + SETTLE;
    let mut looks = 0;
    loop {
        looks += 1;
        let matrix = Matrix::seen(nics, &ask_all(inside, nics)?);
        if matrix.wrong().is_empty() || Instant::now() >= deadline {
            return Ok((matrix, looks));
        }
    }
}

/// What the outside sees of each NIC, and what of the inside it reaches.
fn through_routers(inside: &Inside<'_>, nics: &[Nic]) -> Outcome<Outside> {
    if !outside::has_routers(inside) {
        return Ok(Outside::default());
    }
    let _answering = Answering::start(inside, nics)?;
    outside::look(inside, nics)
}

/// Every NIC asks every address that is not its own, all at the same time.
fn ask_all(inside: &Inside<'_>, nics: &[Nic]) -> Outcome<Vec<Answers>> {
    thread::scope(|scope| {
        let asking: Vec<_> = nics
            .iter()
            .map(|nic| {
                scope.spawn(move || {
                    let addresses: BTreeSet<&str> = nics
                        .iter()
                        .flat_map(|other| [other.ipv4.as_str(), other.ipv6.as_str()])
                        .filter(|address| *address != nic.ipv4 && *address != nic.ipv6)
                        .collect();
                    let broadcast = nic.broadcast();
                    let mut argv = vec!["vpc", "lab", "ask", "--broadcast", &broadcast];
                    argv.extend(addresses);
                    let output = inside
                        .command(&nic.place(), &argv)
                        .output()
                        .doing(|| format!("asking from {}", nic.path))?;
                    if !output.status.success() {
                        let said = String::from_utf8_lossy(&output.stderr);
                        return Err(Failure::new(format!(
                            "asking from {}: {}",
                            nic.path,
                            said.trim()
                        )));
                    }
                    serde_json::from_slice(&output.stdout)
                        .doing(|| format!("reading what {} heard", nic.path))
                })
            })
            .collect();
        asking
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| Failure::new("a thread that asked panicked"))?
            })
            .collect()
    })
}

/// One answering process in each workload's namespace, ended when this is dropped.
struct Answering(Vec<Child>);

impl Answering {
    fn start(inside: &Inside<'_>, nics: &[Nic]) -> Outcome<Self> {
        let mut all = Self(Vec::new());
        for nic in nics {
            let child = inside
                .command(&nic.place(), &["vpc", "lab", "answer", &nic.path])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .doing(|| format!("starting an answerer at {}", nic.path))?;
            all.0.push(child);
        }
        for (child, nic) in all.0.iter_mut().zip(nics) {
            wait_for_word(child, super::probe::LISTENING)
                .map_err(|said| Failure::new(format!("the answerer at {}: {said}", nic.path)))?;
        }
        Ok(all)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // That it ended by itself is as good.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Reads one line; if it is not `word`, returns what the process said instead.
pub(super) fn wait_for_word(child: &mut Child, word: &str) -> Result<(), String> {
    let Some(stdout) = child.stdout.as_mut() else {
        return Err("it has no output".to_owned());
    };
    let mut line = String::new();
    // One byte at a time, so that what follows the line stays in the pipe.
    let mut one = BufReader::with_capacity(1, stdout);
    match one.read_line(&mut line) {
        Ok(_) if line.trim_end() == word => Ok(()),
        _ => {
            let mut said = String::new();
            if let Some(stderr) = child.stderr.as_mut() {
                drop(stderr.read_to_string(&mut said));
            }
            Err(format!("{} {}", line.trim_end(), said.trim()))
        }
    }
}

/// Counts what passes between the hosts while it lives.
struct Sniffer(Child);

impl Sniffer {
    fn start(inside: &Inside<'_>) -> Outcome<Self> {
        let mut argv = vec!["vpc", "lab", "sniff"];
        argv.extend(inside.state.agents().map(|host| host.name.as_str()));
        let mut child = inside
            .command(UNDERLAY_NAME, &argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .doing(|| "starting the capture on the underlay".to_owned())?;
        wait_for_word(&mut child, COUNTING)
            .map_err(|said| Failure::new(format!("the capture on the underlay: {said}")))?;
        Ok(Self(child))
    }

    fn finish(mut self) -> Outcome<Counts> {
        drop(self.0.stdin.take());
        let output = self
            .0
            .wait_with_output()
            .doing(|| "ending the capture on the underlay".to_owned())?;
        serde_json::from_slice(&output.stdout)
            .doing(|| "reading the capture on the underlay".to_owned())
    }
}

/// By VNI, what it is of.
fn expected_vnis(inside: &Inside<'_>, vpcs: &[&Vpc]) -> Outcome<BTreeMap<u32, String>> {
    let subnets = inside.json(&inside.state.management()?.name, &["subnet", "list"])?;
    let mut expected = BTreeMap::new();
    for subnet in subnets.as_array().map(Vec::as_slice).unwrap_or_default() {
        let path = crate::views::short(subnet["path"].as_str().unwrap_or_default());
        let ours = vpcs
            .iter()
            .any(|vpc| path.starts_with(&format!("{}/", vpc.name)));
        let vni = subnet["vni"]
            .as_u64()
            .and_then(|vni| u32::try_from(vni).ok());
        if let (true, Some(vni)) = (ours, vni) {
            expected.insert(vni, path.to_owned());
        }
    }
    Ok(expected)
}

fn wrong_on_underlay(counts: &Counts, expected: &BTreeMap<u32, String>) -> Vec<String> {
    let mut wrong: Vec<String> = counts
        .strangers()
        .map(|(kind, count)| {
            format!("underlay: {count} frames of {kind}, which has no business there")
        })
        .collect();
    for (vni, count) in &counts.vnis {
        if !expected.contains_key(vni) {
            wrong.push(format!(
                "underlay: {count} frames of VNI {vni}, which is no subnet's"
            ));
        }
    }
    for (vni, subnet) in expected {
        if !counts.vnis.contains_key(vni) {
            wrong.push(format!("underlay: no frame of VNI {vni} ({subnet})"));
        }
    }
    wrong
}

fn show(state: &LabState, report: &Report, matrix: &Matrix) -> Outcome {
    let paint = Paint::stdout();
    print(&format!(
        "\n{}\n{}",
        paint.title("Hosts, VPCs and NICs"),
        draw::map(state, &report.nics)
    ))?;
    print(&format!(
        "\n{}\n{}",
        paint.title("Who reaches whom"),
        draw::table(matrix, paint)
    ))?;
    if !report.outside.out.is_empty() {
        let title = paint.title("Through the routers");
        print(&format!("\n{title}\n{}", report.outside.lines()))?;
    }
    if !report.names.is_empty() {
        let lines: Vec<String> = report.names.iter().map(names::Answer::line).collect();
        let title = paint.title("Names and metadata");
        print(&format!("\n{title}\n{}", lines.join("\n")))?;
    }
    if let Some(disk) = &report.disk {
        print(&format!("\n{}\n{}", paint.title("Volumes"), disk.line()))?;
    }
    print(&format!(
        "\n{}\n{}",
        paint.title("On the underlay"),
        draw::underlay(&report.underlay)
    ))?;
    if report.looks > 1 {
        print(&format!(
            "\nAll pairs were asked {} times; this is the last.",
            report.looks
        ))?;
    }
    for left_out in &report.left_out {
        print(&format!("\nLeft out: {left_out}"))?;
    }
    if report.wrong.is_empty() {
        print(&format!("\n{}", paint.good("All is as it should be.")))?;
    } else {
        print(&format!("\n{}", paint.bad("Not as it should be:")))?;
        for line in &report.wrong {
            print(&format!("  {}", paint.bad(line)))?;
        }
    }
    Ok(())
}

fn next_steps(lab: &LabDir) -> String {
    let flag = lab.flag();
    format!(
        "
The lab is up. To look around:
  vpc lab exec{flag} m1 -- vpc show blue
  vpc lab exec{flag} m1 -- vpc router show blue/gw
  vpc lab exec{flag} m1 -- vpc volume show data
  vpc lab exec{flag} m1 -- vpc host list
  vpc lab exec{flag} c1 -- vpc evpn routes
  vpc lab exec{flag} c1/blue-web-1 -- ping -c3 10.4.1.12
and to take it down:
  vpc lab down{flag}"
    )
}

fn not_right(report: &Report) -> Failure {
    Failure::new(format!(
        "lab demo: {} things are not as they should be",
        report.wrong.len()
    ))
}
