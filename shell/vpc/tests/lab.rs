//! The lab leaves nothing behind, whatever happens to it. Needs root.

#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use testkit::eventually;

const LIMIT: Duration = Duration::from_secs(60);

/// A lab of the test's own; taken down at the end, also when the test fails.
struct Lab {
    name: String,
    links_before: String,
    namespaces: BTreeSet<u64>,
}

impl Lab {
    fn new(purpose: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "lab tests need root");
        let name = format!("t-{purpose}-{}", std::process::id());
        Self {
            name,
            links_before: links(),
            namespaces: BTreeSet::new(),
        }
    }

    fn command(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vpc"));
        command
            .args(["lab", verb, "--name", &self.name])
            .args(arguments)
            .env_remove("VPC_CREDENTIAL")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, verb: &str, arguments: &[&str]) -> Output {
        self.command(verb, arguments).output().unwrap()
    }

    fn must(&self, verb: &str, arguments: &[&str]) -> String {
        let output = self.run(verb, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "lab {verb} {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.must("status", &["-o", "json"])).unwrap()
    }

    fn dir(&self) -> PathBuf {
        Path::new("/run/vpc-lab").join(&self.name)
    }

    /// Remembers the namespaces that the lab's processes are in.
    fn note_namespaces(&mut self) {
        for host in self.status()["hosts"].as_array().unwrap() {
            if let Some(pid) = host["pid"].as_u64() {
                let inodes = namespaces_of(&format!("/proc/{pid}"));
                self.namespaces.extend(inodes);
            }
        }
        self.namespaces = &self.namespaces - &namespaces_of("/proc/self");
    }

    fn down_leaves_nothing(&self) {
        self.must("down", &[]);
        assert!(
            !self.dir().exists(),
            "{} is still there",
            self.dir().display()
        );
        assert_eq!(links(), self.links_before, "links of the machine");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("vpc-lab"), "{mounts}");
        // The kernel takes a moment to bury what was killed.
        eventually("no process of the lab", LIMIT, || {
            let left = self.processes();
            left.is_empty().then_some(()).ok_or(left.join("\n"))
        });
    }

    /// Processes that belong to the lab by their command line or namespaces.
    fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let path = entry.path();
            let words = fs::read(path.join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            let inside = !namespaces_of(&path.display().to_string()).is_disjoint(&self.namespaces);
            let by_name = words.contains(&format!("--name {}", self.name));
            if (inside || by_name) && !words.is_empty() {
                found.push(format!("{} {words}", path.display()));
            }
        }
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.dir().exists() {
            drop(self.run("down", &[]));
        }
    }
}

/// Inodes of the network, mount and pid namespaces of a process.
fn namespaces_of(proc_dir: &str) -> BTreeSet<u64> {
    ["net", "mnt", "pid"]
        .iter()
        .filter_map(|kind| Some(fs::metadata(format!("{proc_dir}/ns/{kind}")).ok()?.ino()))
        .collect()
}

/// Names of the machine's own interfaces.
fn links() -> String {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()))
        .collect();
    names.sort();
    names.join(" ")
}

#[test]
fn hosts_are_apart_from_the_machine_and_go_without_trace() {
    let mut lab = Lab::new("bare");
    lab.must("up", &["--bare", "--hosts", "c1,r1", "--mtu", "1400"]);
    lab.note_namespaces();

    assert_eq!(lab.must("exec", &["c1", "--", "hostname"]), "c1\n");
    let link: Value =
        serde_json::from_str(&lab.must("exec", &["c1", "--", "ip", "-j", "link", "show", "eth0"]))
            .unwrap();
    assert_eq!(link[0]["mtu"], 1400);
    lab.must("exec", &["c1", "--", "ping", "-c1", "-W5", "r1"]);
    // The bridge outside is its routers': the host has no address there, and needs one to be heard.
    let outside = lab.must("exec", &["r1", "--", "ip", "-j", "addr", "show", "br-ext"]);
    let outside: Value = serde_json::from_str(&outside).unwrap();
    assert_eq!(outside[0]["addr_info"], serde_json::json!([]));
    for address in ["198.51.100.11/24", "2001:db8:64::b/64"] {
        let mut add = vec!["r1", "--", "ip", "addr", "add", address, "dev", "br-ext"];
        add.extend(address.contains(':').then_some("nodad"));
        lab.must("exec", &add);
    }
    lab.must("exec", &["r1", "--", "ping", "-c1", "-W5", "198.51.100.1"]);
    lab.must(
        "exec",
        &["r1", "--", "ping", "-c1", "-W5", "2001:db8:64::1"],
    );
    assert!(
        !lab.run("exec", &["c1", "--", "ping", "-c1", "-W1", "198.51.100.1"])
            .status
            .success()
    );

    // Files of one host are no other's, and not the machine's.
    let write = "mkdir -p /etc/vpc /var/lib/vpc && echo c1 | tee /etc/vpc/x /var/lib/vpc/x /run/x";
    lab.must("exec", &["c1", "--", "sh", "-c", write]);
    for path in ["/etc/vpc/x", "/var/lib/vpc/x", "/run/x"] {
        assert_eq!(lab.must("exec", &["c1", "--", "cat", path]), "c1\n");
        assert!(!lab.run("exec", &["r1", "--", "cat", path]).status.success());
        assert!(!Path::new(path).exists());
    }
    lab.down_leaves_nothing();
}

#[test]
fn exec_passes_through_what_goes_in_and_comes_out() {
    let mut lab = Lab::new("exec");
    lab.must("up", &["--bare", "--hosts", "1"]);
    lab.note_namespaces();

    let code = |arguments: &[&str]| lab.run("exec", arguments).status.code();
    assert_eq!(code(&["c1", "--", "sh", "-c", "exit 7"]), Some(7));
    assert_eq!(code(&["c1", "--", "sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(code(&["c1", "--", "no-such-command"]), Some(127));
    assert_eq!(code(&["c9", "--", "true"]), Some(1));
    assert_eq!(code(&["c1/none", "--", "true"]), Some(1));

    let mut child = lab
        .command("exec", &["c1", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"through\n");

    // A workload's namespace, as `ip netns` makes it.
    lab.must("exec", &["c1", "--", "ip", "netns", "add", "a1"]);
    let inside = lab.must("exec", &["c1/a1", "--", "ls", "/sys/class/net"]);
    assert_eq!(inside.trim(), "lo");

    // What is left running on a host goes with it; a killed `exec` leaves nothing.
    lab.must(
        "exec",
        &[
            "c1",
            "--",
            "sh",
            "-c",
            "setsid sleep 1000 >/dev/null 2>&1 &",
        ],
    );
    let mut killed = lab
        .command("exec", &["c1", "--", "sleep", "2000"])
        .spawn()
        .unwrap();
    let runs = |words: &str| lab.processes().iter().any(|line| line.contains(words));
    eventually("the command to run", LIMIT, || {
        runs(" sleep 2000")
            .then_some(())
            .ok_or_else(|| lab.processes().join("\n"))
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    eventually("the command to end", LIMIT, || {
        (!runs(" sleep 2000"))
            .then_some(())
            .ok_or_else(|| lab.processes().join("\n"))
    });
    lab.down_leaves_nothing();
}

#[test]
fn a_second_up_is_refused_and_a_second_down_is_quiet() {
    let mut lab = Lab::new("twice");
    lab.must("up", &["--bare", "--hosts", "1"]);
    lab.note_namespaces();
    let second = lab.run("up", &["--bare", "--hosts", "1"]);
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1));
    assert!(
        said.contains("it is up already") && said.contains("vpc lab down"),
        "{said}"
    );
    assert_eq!(lab.status()["state"], "up");
    lab.down_leaves_nothing();
    let again = lab.run("down", &[]);
    assert!(again.status.success() && again.stderr.is_empty());
    assert_eq!(lab.status()["state"], "down");
}

#[test]
fn a_host_that_dies_shows_and_does_not_hinder_down() {
    let mut lab = Lab::new("dies");
    lab.must("up", &["--bare", "--hosts", "1"]);
    lab.note_namespaces();
    let status = lab.status();
    let c1 = status["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|host| host["name"] == "c1");
    let pid = i32::try_from(c1.unwrap()["pid"].as_u64().unwrap()).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    eventually("the lab to be incomplete", LIMIT, || {
        let status = lab.status();
        (status["state"] == "incomplete")
            .then_some(())
            .ok_or(status.to_string())
    });
    assert_eq!(
        lab.run("exec", &["c1", "--", "true"]).status.code(),
        Some(1)
    );
    lab.down_leaves_nothing();
}

/// `lab up` killed as soon as this file is there, or (with a word) has the word in it.
fn killed_in_the_middle(purpose: &str, bare: bool, file: &str, word: &str) {
    let mut lab = Lab::new(purpose);
    let mut arguments = vec!["--hosts", "1"];
    arguments.extend(bare.then_some("--bare"));
    let mut up: Child = lab
        .command("up", &arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let path = lab.dir().join(file);
    eventually("the moment to kill it", LIMIT, || match fs::read(&path) {
        Ok(text) if String::from_utf8_lossy(&text).contains(word) => Ok(()),
        // A socket or directory cannot be read; that it is there is enough.
        Err(_) if path.exists() => Ok(()),
        _ => Err(format!("{} is not so", path.display())),
    });
    up.kill().unwrap();
    up.wait().unwrap();
    lab.note_namespaces();
    lab.down_leaves_nothing();
}

#[test]
fn killed_before_anything_was_made() {
    killed_in_the_middle("k1", true, "", "");
}

#[test]
fn killed_when_its_plan_was_written() {
    killed_in_the_middle("k2", true, "lab.json", "");
}

#[test]
fn killed_when_a_host_was_started() {
    killed_in_the_middle("k3", true, "log/c1-holder.log", "");
}

#[test]
fn killed_when_the_hosts_were_written_down() {
    killed_in_the_middle("k4", true, "lab.json", "\"holder\": {");
}

#[test]
fn killed_when_a_host_listens() {
    killed_in_the_middle("k5", true, "c1.sock", "");
}

#[test]
fn killed_when_the_server_runs() {
    killed_in_the_middle("k6", false, "log/m1-server.log", "Serving");
}

#[test]
fn killed_when_an_agent_runs() {
    killed_in_the_middle("k7", false, "log/m1-agent.log", "");
}

#[test]
fn two_labs_do_not_meet() {
    let (mut one, mut two) = (Lab::new("one"), Lab::new("two"));
    one.must("up", &["--bare", "--hosts", "1"]);
    two.must("up", &["--bare", "--hosts", "2"]);
    one.note_namespaces();
    two.note_namespaces();
    two.must("exec", &["c1", "--", "ping", "-c1", "-W5", "c2"]);
    // The first has c1 at .2 and r1 at .3; only the second has a host at .4.
    let far = ["c1", "--", "ping", "-c1", "-W1", "100.64.0.4"];
    assert!(two.run("exec", &far).status.success());
    assert!(!one.run("exec", &far).status.success());
    // Links of the machine are the same before and after, whichever goes first.
    one.down_leaves_nothing();
    two.must("exec", &["c1", "--", "ping", "-c1", "-W5", "c2"]);
    two.down_leaves_nothing();
}

#[test]
fn the_demo_is_as_it_should_be_and_daemons_come_back() {
    let mut lab = Lab::new("demo");
    let report: Value = serde_json::from_str(&lab.must("demo", &["-o", "json"])).unwrap();
    lab.note_namespaces();
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!(report["wrong"], serde_json::json!([]));

    let nic = || -> Value {
        let shown = lab.must(
            "exec",
            &[
                "m1",
                "--",
                "vpc",
                "nic",
                "show",
                "blue/web/a1",
                "-o",
                "json",
            ],
        );
        serde_json::from_str(&shown).unwrap()
    };
    assert_eq!(nic()["state"], "applied");
    lab.must("kill", &["c1", "agent"]);
    eventually("c1 to be down", LIMIT, || {
        let nic = nic();
        (nic["state"] == "host_down")
            .then_some(())
            .ok_or(nic.to_string())
    });
    // The data plane needs no agent.
    lab.must(
        "exec",
        &["c1/blue-web-1", "--", "ping", "-c1", "-W5", "10.4.1.12"],
    );
    lab.must("start", &["c1", "agent"]);
    eventually("c1 to be back", LIMIT, || {
        let nic = nic();
        (nic["state"] == "applied")
            .then_some(())
            .ok_or(nic.to_string())
    });
    lab.down_leaves_nothing();
}
