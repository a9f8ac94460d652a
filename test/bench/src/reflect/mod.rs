//! The route reflector beside FRR's and GoBGP's, each alone in a network namespace with the same
//! clients.
//!
//! Ours is `shell/speaker/examples/reflector.rs`: the speaker as the server runs it, without the
//! server. FRR is bgpd alone (`-Z`), so that zebra's memory does not count.

mod client;
mod load;

use crate::figures::{Table, Target, median, progress};
use load::{FIRST_CLIENT, Outcome, Plan, REFLECTOR};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use testkit::Keeper;

/// Who reflects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Ours,
    Frr,
    GoBgp,
}

/// What is measured of each.
#[derive(Debug, Clone, Copy)]
struct Case {
    routes: usize,
    vnis: usize,
    receivers: usize,
    mute: bool,
    subjects: &'static [Subject],
}

const ALL: &[Subject] = &[Subject::Ours, Subject::Frr, Subject::GoBgp];
const NO_GOBGP: &[Subject] = &[Subject::Ours, Subject::Frr];

const fn case(routes: usize, receivers: usize, subjects: &'static [Subject]) -> Case {
    Case {
        routes,
        vnis: 1000,
        receivers,
        mute: false,
        subjects,
    }
}

const FULL: &[Case] = &[
    case(10_000, 1, ALL),
    case(10_000, 4, ALL),
    case(100_000, 1, ALL),
    case(100_000, 4, ALL),
    Case {
        mute: true,
        ..case(100_000, 4, NO_GOBGP)
    },
    case(50_000, 100, NO_GOBGP),
    case(1_000_000, 4, NO_GOBGP),
];
const QUICK: &[Case] = &[case(10_000, 1, NO_GOBGP), case(100_000, 4, NO_GOBGP)];

/// `bench reflect-load PLAN`, in the namespace of the reflector: prints the outcome.
pub(crate) fn serve(plan: &str) {
    let plan = serde_json::from_str(plan).expect("a plan as JSON");
    let outcome = load::run(&plan);
    let text = serde_json::to_string(&outcome).expect("it has a JSON form");
    println!("{text}");
}

/// Measures all cases.
pub(crate) fn measure(quick: bool, rounds: usize, table: &mut Table) {
    for case in if quick { QUICK } else { FULL } {
        // FRR and ours take turns, so that both see the same noise.
        let mut outcomes: Vec<(Subject, Outcome)> = vec![];
        for round in 0..rounds {
            for subject in case.subjects {
                if round > 0 && *subject == Subject::GoBgp {
                    continue;
                }
                let outcome = one(*subject, case);
                progress(&format!("{subject:?} {}: {}", name(case), tell(&outcome)));
                outcomes.push((*subject, outcome));
            }
        }
        report(case, &outcomes, table);
    }
}

fn name(case: &Case) -> String {
    let mute = if case.mute {
        " beside one that never reads"
    } else {
        ""
    };
    format!(
        "{} routes to {}{mute}",
        thousands(case.routes),
        case.receivers
    )
}

fn thousands(n: usize) -> String {
    let text = n.to_string();
    let groups: Vec<&str> = text
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).expect("digits"))
        .collect();
    groups.join(",")
}

fn tell(outcome: &Outcome) -> String {
    let time = |s: Option<f64>| s.map_or("-".to_owned(), |s| format!("{s:.3}"));
    format!(
        "all {} s, late {} s, gone {} s, probe p50 {} p99 {} ms ({} of {} lost), {} -> {} MiB, peak {} MiB, cpu {:.2} s",
        time(outcome.converged_s),
        time(outcome.joined_s),
        time(outcome.withdrawn_s),
        time(outcome.probe_p50_ms),
        time(outcome.probe_p99_ms),
        outcome.probes_lost,
        outcome.probes,
        outcome.idle_kib >> 10,
        outcome.full_kib >> 10,
        outcome.peak_kib >> 10,
        outcome.cpu_s,
    )
}

/// A figure of a run, if it has it.
type Figure<'a> = &'a dyn Fn(&Outcome) -> Option<f64>;

fn report(case: &Case, outcomes: &[(Subject, Outcome)], table: &mut Table) {
    let of = |subject: Subject, figure: Figure<'_>| {
        let mine = outcomes.iter().filter(|(s, _)| *s == subject);
        let values: Vec<f64> = mine.filter_map(|(_, outcome)| figure(outcome)).collect();
        (!values.is_empty()).then(|| median(&values))
    };
    let name = name(case);
    let times: [(&str, Figure<'_>, Target); 6] = [
        ("all have all", &|o| o.converged_s, Target::RatioMost(1.0)),
        ("late joiner has all", &|o| o.joined_s, Target::None),
        ("withdrawn everywhere", &|o| o.withdrawn_s, Target::None),
        ("probe p50", &|o| o.probe_p50_ms, Target::None),
        ("probe p99", &|o| o.probe_p99_ms, Target::Most(100.0)),
        (
            "resident",
            &|o| Some(o.full_kib as f64 / 1024.0),
            Target::RatioMost(1.0),
        ),
    ];
    for (figure, value, target) in times {
        let unit = match figure {
            "resident" => "MiB",
            probe if probe.starts_with("probe") => "ms",
            _ => "s",
        };
        let what = format!("{name}: {figure}");
        match of(Subject::Ours, value) {
            Some(ours) => table.add(&what, (ours, unit), of(Subject::Frr, value), target),
            None => table.note(&what, "did not finish"),
        }
        if let Some(gobgp) = of(Subject::GoBgp, value) {
            table.add(
                &format!("GoBGP, {what}"),
                (gobgp, unit),
                of(Subject::Frr, value),
                Target::None,
            );
        }
    }
    if case.subjects.contains(&Subject::GoBgp) && of(Subject::GoBgp, &|o| o.converged_s).is_none() {
        let text = format!("did not finish in {} s", limit_s(Subject::GoBgp));
        table.note(&format!("GoBGP, {name}: all have all"), &text);
    }
    let growth = |o: &Outcome| {
        o.converged_s?;
        Some(o.full_kib.saturating_sub(o.idle_kib) as f64 * 1024.0 / case.routes as f64)
    };
    if let Some(ours) = of(Subject::Ours, &growth) {
        let what = format!("{name}: resident per route");
        table.add(&what, (ours, "B"), of(Subject::Frr, &growth), Target::None);
    }
}

fn limit_s(subject: Subject) -> u64 {
    match subject {
        Subject::GoBgp => 40,
        Subject::Ours | Subject::Frr => 120,
    }
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// What a [`Place`] leaves if nobody is left to drop it: namespace, directory.
const REMOVE: &str = r#"ip netns pids "$0" | xargs -r kill -9; ip netns del "$0"; rm -rf "$1""#;

/// A namespace with a reflector in it; both are gone when it is dropped, or this process has ended.
struct Place {
    netns: String,
    dir: PathBuf,
    daemon: Option<Child>,
    /// None once all is gone.
    keeper: Option<Keeper>,
}

impl Place {
    fn new() -> Self {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let netns = format!("bench-rr-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(&netns);
        let path = dir
            .to_str()
            .expect("a temporary directory with a plain name");
        let keeper = Keeper::new(&["sh", "-c", REMOVE, &netns, path]);
        fs::create_dir_all(&dir).expect("a directory for the reflector");
        ip(&["netns", "add", &netns]);
        let place = Self {
            keeper: Some(keeper),
            netns,
            dir,
            daemon: None,
        };
        ip(&["-n", &place.netns, "link", "set", "lo", "up"]);
        // Every address of the prefix is one of the namespace's own.
        let prefix = format!("{REFLECTOR}/16");
        ip(&["-n", &place.netns, "addr", "add", &prefix, "dev", "lo"]);
        place
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns]).arg(program);
        command
    }

    /// `ip netns exec` becomes the program: the child's process id is the reflector's.
    fn start(&mut self, mut command: Command) -> u32 {
        let log = fs::File::create(self.dir.join("log")).expect("a log file");
        let child = command
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the reflector can be started");
        self.daemon.insert(child).id()
    }

    fn start_subject(&mut self, subject: Subject, clients: usize) -> u32 {
        let path = |name: &str| self.dir.join(name);
        match subject {
            Subject::Ours => {
                let own = std::env::current_exe().expect("a program knows its own path");
                let mut command = self.command(&own.with_file_name("examples").join("reflector"));
                command.args([
                    format!("{REFLECTOR}:179"),
                    FIRST_CLIENT.to_string(),
                    clients.to_string(),
                ]);
                self.start(command)
            }
            Subject::Frr => {
                fs::write(path("bgpd.conf"), frr_config()).expect("a configuration");
                // bgpd drops to its own user, which has to make files there.
                let owned = Command::new("chown")
                    .args(["-R", "frr"])
                    .arg(&self.dir)
                    .status();
                assert!(
                    owned.is_ok_and(|status| status.success()),
                    "FRR's user owns its directory"
                );
                let mut command = self.command(Path::new("/usr/lib/frr/bgpd"));
                command.arg("-Z").arg("-f").arg(path("bgpd.conf"));
                command.arg("-i").arg(path("bgpd.pid"));
                command.arg("-z").arg(path("zserv.api"));
                command.arg("--vty_socket").arg(&self.dir).args(["-P", "0"]);
                self.start(command)
            }
            Subject::GoBgp => {
                fs::write(path("gobgpd.toml"), gobgp_config()).expect("a configuration");
                let mut command = self.command(Path::new("gobgpd"));
                command.arg("-f").arg(path("gobgpd.toml"));
                self.start(command)
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            // It may have ended by itself.
            drop(daemon.kill());
            drop(daemon.wait());
        }
        let removed = Command::new("ip")
            .args(["netns", "del", &self.netns])
            .status();
        let left = fs::remove_dir_all(&self.dir).is_err();
        if let Some(keeper) = self.keeper.take()
            && removed.is_ok_and(|status| status.success())
            && !left
        {
            keeper.dismiss();
        }
    }
}

fn one(subject: Subject, case: &Case) -> Outcome {
    let mut place = Place::new();
    let pid = place.start_subject(subject, case.receivers + 4);
    let plan = Plan {
        routes: case.routes,
        vnis: case.vnis.min(case.routes),
        receivers: case.receivers,
        pid,
        limit_s: limit_s(subject),
        mute: case.mute,
    };
    let own = std::env::current_exe().expect("a program knows its own path");
    let mut command = place.command(&own);
    command.arg("reflect-load");
    command.arg(serde_json::to_string(&plan).expect("it has a JSON form"));
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .expect("`bench reflect-load` can be started");
    if let Ok(outcome) = serde_json::from_slice(&output.stdout) {
        return outcome;
    }
    let log = fs::read_to_string(place.dir.join("log")).unwrap_or_default();
    let tail: Vec<&str> = log.lines().rev().take(5).collect();
    progress(&format!("{subject:?} could not be measured: {tail:?}"));
    Outcome::default()
}

fn frr_config() -> String {
    format!(
        "router bgp {}
 bgp router-id {REFLECTOR}
 no bgp default ipv4-unicast
 neighbor C peer-group
 neighbor C remote-as {}
 bgp listen limit 1000
 bgp listen range 10.200.0.0/16 peer-group C
 address-family l2vpn evpn
  neighbor C activate
  neighbor C route-reflector-client
 exit-address-family
",
        client::AS,
        client::AS
    )
}

fn gobgp_config() -> String {
    format!(
        r#"[global.config]
as = {}
router-id = "{REFLECTOR}"
[[peer-groups]]
[peer-groups.config]
peer-group-name = "clients"
peer-as = {}
[peer-groups.route-reflector.config]
route-reflector-client = true
route-reflector-cluster-id = "{REFLECTOR}"
[[peer-groups.afi-safis]]
[peer-groups.afi-safis.config]
afi-safi-name = "l2vpn-evpn"
[[dynamic-neighbors]]
[dynamic-neighbors.config]
prefix = "10.200.0.0/16"
peer-group = "clients"
"#,
        client::AS,
        client::AS
    )
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "ip {} failed: run `bench` as root",
        arguments.join(" ")
    );
}
