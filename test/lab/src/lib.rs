//! Lab hosts for tests: a lab of the test's own, driven by the `vpc` binary that was just built.
//!
//! A [`Lab`] that is dropped takes everything down, also when the test panicked; one whose test was
//! stopped by a signal is taken down, too.

pub mod client;
pub mod disk;
pub mod faults;
pub mod machine;
pub mod outer;
mod ping;
pub mod stream;
mod tables;
pub mod transport;
pub mod wire;

pub use ping::{Ping, PingResult};
pub use tables::Neighbour;

use serde_json::Value;
use std::env;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use testkit::{Eventually, Keeper, eventually};
pub use testkit::{difference, without_counters};

/// What a state may take to come, on a slow machine that does other things as well.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Ports are in that set for a minute after they announced something.
const WITHOUT_ANNOUNCING: &str =
    r"| sed '/^\tset announcing {$/,/^\t}$/d; /^\tset asking {$/,/^\t}$/d'";

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    name: String,
    /// None once it is down.
    keeper: Option<Keeper>,
}

impl Lab {
    /// The default hosts: m1, c1, c2, r1, ext.
    pub fn up() -> Self {
        Self::up_with(&[])
    }

    /// With further options of `vpc lab up`. Which transport the hosts have that the options do not
    /// name one for, the environment says ([`transport`]).
    ///
    /// # Panics
    /// If it does not come up.
    pub fn up_with(options: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}-{number}", std::process::id());
        let binary = binary();
        let binary = binary.to_str().expect("its path is text");
        let lab = Self {
            keeper: Some(Keeper::new(&[binary, "lab", "down", "--name", &name])),
            name,
        };
        let output = vpc()
            .args(["lab", "up", "--name", &lab.name])
            .args(options)
            .args(transport::options(options))
            .output();
        let output = output.expect("the vpc binary can be started");
        assert!(output.status.success(), "lab up: {}", text_of(&output));
        lab
    }

    /// Its name, for `--name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the daemons' logs are.
    pub fn logs(&self) -> PathBuf {
        PathBuf::from("/run/vpc-lab").join(&self.name).join("log")
    }

    /// A command on a host (`c1`) or in a workload (`c1/a1`), not started yet.
    pub fn command(&self, place: &str, command: &[&str]) -> Command {
        let mut lab = vpc();
        lab.args(["lab", "exec", "--name", &self.name, place, "--"])
            .args(command);
        lab.stdin(Stdio::null());
        lab
    }

    /// Runs a shell line; its output, whatever the status.
    pub fn try_sh(&self, place: &str, line: &str) -> Output {
        self.command(place, &["sh", "-c", line])
            .output()
            .expect("the vpc binary can be started")
    }

    /// Runs a shell line that must succeed; its standard output.
    ///
    /// # Panics
    /// If it fails.
    pub fn sh(&self, place: &str, line: &str) -> String {
        let output = self.try_sh(place, line);
        assert!(
            output.status.success(),
            "{place}: {line}: {}",
            text_of(&output)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a shell line that prints JSON.
    ///
    /// # Panics
    /// If it fails or prints something else.
    pub fn json(&self, place: &str, line: &str) -> Value {
        let text = self.sh(place, line);
        let text = if text.trim().is_empty() { "[]" } else { &text };
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
    }

    /// A command of the administrator, as in `vpc nic list`; its output as JSON.
    ///
    /// # Panics
    /// If it fails.
    pub fn admin(&self, arguments: &str) -> Value {
        self.json("m1", &format!("vpc -o json {arguments}"))
    }

    /// A command of the administrator that must be refused; what it says.
    ///
    /// # Panics
    /// If it succeeds.
    pub fn refused(&self, arguments: &str) -> String {
        let output = self.try_sh("m1", &format!("vpc {arguments}"));
        assert!(
            !output.status.success(),
            "vpc {arguments} was taken: {}",
            text_of(&output)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Starts something that runs beside the test.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(&self, place: &str, command: &[&str]) -> Child {
        let mut command = self.command(place, command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the vpc binary can be started")
    }

    /// `vpc lab kill`: kill -9 of a host's `agent` or `server`.
    pub fn kill(&self, host: &str, daemon: &str) {
        self.control("kill", host, daemon);
    }

    /// Ends a daemon as systemd would, with SIGTERM.
    pub fn stop(&self, host: &str, daemon: &str) {
        self.control_with(&["kill", "--signal", "15"], host, daemon);
    }

    /// `vpc lab start`: starts a daemon that is not running. One that was told to stop answers before
    /// it has ended.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(&self, host: &str, daemon: &str) {
        self.eventually(&format!("{daemon} on {host} is started"), || {
            let output = self.try_control(&["start"], host, daemon);
            let said = text_of(&output);
            if !output.status.success() && said.contains("it runs already") {
                return Err(said);
            }
            assert!(output.status.success(), "lab start {host} {daemon}: {said}");
            Ok(())
        });
    }

    fn control(&self, verb: &str, host: &str, daemon: &str) {
        self.control_with(&[verb], host, daemon);
    }

    fn try_control(&self, verb: &[&str], host: &str, daemon: &str) -> Output {
        let output = vpc()
            .arg("lab")
            .args(verb)
            .args(["--name", &self.name, host, daemon])
            .output();
        output.expect("the vpc binary can be started")
    }

    fn control_with(&self, verb: &[&str], host: &str, daemon: &str) {
        let output = self.try_control(verb, host, daemon);
        assert!(
            output.status.success(),
            "lab {verb:?} {host} {daemon}: {}",
            text_of(&output)
        );
    }

    /// Waits until one workload reaches another address.
    pub fn reaches(&self, place: &str, address: &str) {
        eventually(&format!("{place} reaches {address}"), LIMIT, || {
            let output = self.try_sh(place, &format!("ping -c 1 -W 1 {address}"));
            if output.status.success() {
                Ok(())
            } else {
                Err(text_of(&output))
            }
        });
    }

    /// Waits until a probe answers.
    pub fn eventually<T>(&self, what: &str, probe: impl FnMut() -> Eventually<T>) -> T {
        eventually(what, LIMIT, probe)
    }

    /// True if the hosts' kernel filters VLANs on bridges.
    pub fn filters_vlans(&self) -> bool {
        self.try_sh(
            "ext",
            "ip link add name probe type bridge vlan_filtering 1 && ip link del dev probe",
        )
        .status
        .success()
    }

    /// A host's nftables rules and sets, without who announced something lately.
    pub fn rules(&self, host: &str) -> String {
        self.sh(host, &format!("nft list ruleset {WITHOUT_ANNOUNCING}"))
    }

    /// A host's kernel state, without what changes by itself: two dumps are equal if nothing was
    /// changed in between.
    pub fn dump(&self, host: &str) -> String {
        let text = self.sh(
            host,
            // What the bridge outside learned it forgets by itself, and a datapath counts.
            "vpc datapath show 2>/dev/null; ip -d link; ip -d address; ip neigh show nud permanent | sort; \
             bridge -d fdb | grep -v 'master br-ext *$' | sort; bridge -d link; bridge vlan 2>/dev/null",
        );
        without_counters(&(text + &self.rules(host)))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        let output = vpc().args(["lab", "down", "--name", &self.name]).output();
        let clean = output.as_ref().is_ok_and(|output| output.status.success());
        if let Some(keeper) = self.keeper.take()
            && clean
        {
            keeper.dismiss();
        }
        if !clean && !std::thread::panicking() {
            panic!("lab down: {:?}", output.map(|output| text_of(&output)));
        }
    }
}

impl Lab {
    #[expect(
        clippy::print_stderr,
        reason = "a failing test shows what the daemons said"
    )]
    fn show_logs(&self) {
        let Ok(entries) = std::fs::read_dir(self.logs()) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}", path.display());
            for line in lines.iter().skip(lines.len().saturating_sub(30)) {
                eprintln!("{line}");
            }
        }
    }
}

/// The binary of this build: beside the test's own (`target/PROFILE/vpc`), or `$VPC_BIN`.
pub fn vpc() -> Command {
    Command::new(binary())
}

/// Where [`vpc`] is.
///
/// # Panics
/// If it was not built.
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("VPC_BIN") {
        return path.into();
    }
    let own = env::current_exe().expect("a test knows its own path");
    let path = own
        .ancestors()
        .nth(2)
        .map(|dir| dir.join("vpc"))
        .unwrap_or_default();
    assert!(
        path.is_file(),
        "{} is not there: cargo build -p vpc",
        path.display()
    );
    path
}

/// Both outputs, for messages.
pub fn text_of(output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    format!("{}\n{out}{err}", output.status)
}
