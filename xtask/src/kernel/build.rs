//! Builds the kernel from Debian's source package and keeps it in the cache.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::exec;

/// Newest first. The first that apt offers is built.
const SOURCES: [&str; 2] = ["linux-source-6.12", "linux-source-6.1"];

/// Lines of uml.config that the oldest of the sources is too old for.
const NEWER_THAN_6_1: [&str; 1] = ["CONFIG_BLK_DEV_WRITE_MOUNTED=y"];

const TOOLS: [&str; 9] = [
    "apt-get", "bc", "bison", "dpkg-deb", "flex", "gcc", "make", "tar", "xz",
];

/// Counts changes to this file that make a different kernel from the same configuration.
const RECIPE: u32 = 1;

/// Never compiled here, and four fifths of the source: not worth unpacking.
const UNUSED: [&str; 16] = [
    "*/Documentation/*.rst",
    "*/Documentation/devicetree",
    "*/arch/[a-tv-wy-z]*/*.[chS]",
    "*.dts",
    "*.dtsi",
    "*/drivers/gpu/*.[ch]",
    "*/drivers/infiniband/*.[ch]",
    "*/drivers/media/*.[ch]",
    "*/drivers/net/ethernet/*.[ch]",
    "*/drivers/net/wireless/*.[ch]",
    "*/drivers/scsi/*.[ch]",
    "*/drivers/staging/*.[ch]",
    "*/drivers/usb/*.[ch]",
    "*/sound/*.[ch]",
    "*/tools/perf",
    "*/tools/testing",
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build even if the cached kernel is current (takes the newest Debian revision of the source)
    #[arg(long)]
    force: bool,
    /// Compile this many files at once [default: one per CPU]
    #[arg(long)]
    jobs: Option<usize>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let cache = Cache::locate()?;
    if !args.force && cache.is_current() {
        println!(
            "{} is up to date ({})",
            cache.kernel.display(),
            cache.source()
        );
        return Ok(());
    }
    cache.build(args)
}

/// The kernel to boot, built first if it has to be.
pub(super) fn ensure() -> Result<PathBuf> {
    let cache = Cache::locate()?;
    if !cache.is_current() {
        cache.build(&Args {
            force: false,
            jobs: None,
        })?;
    }
    Ok(cache.kernel)
}

/// `DIR/linux` is the kernel. `DIR/linux.made-from` has three lines: the hash of all that shaped it, the Debian
/// source revision, the seconds it took; the first decides whether the kernel is current. `DIR/linux.config` is the
/// full configuration, `DIR/build.log` what the compiler said last.
struct Cache {
    dir: PathBuf,
    kernel: PathBuf,
    made_from: PathBuf,
    wanted: String,
    key: String,
}

impl Cache {
    fn locate() -> Result<Self> {
        let fragment = super::sources().join("uml.config");
        let wanted = fs::read_to_string(&fragment)
            .with_context(|| format!("read {}", fragment.display()))?;
        let dir = std::env::var_os("VPC_CACHE")
            .map_or_else(|| PathBuf::from("/var/cache/vpc"), PathBuf::from);
        let dir = std::path::absolute(dir.join("kernel")).context("make $VPC_CACHE absolute")?;
        // The series is in the key, not the Debian revision: a security update must not turn a test run of seconds
        // into a build of minutes. `build --force` takes the newest revision.
        let key = format!(
            "{:016x}",
            fnv1a(&format!("{RECIPE}\n{}\n{wanted}", SOURCES.join(" ")))
        );
        Ok(Self {
            kernel: dir.join("linux"),
            made_from: dir.join("linux.made-from"),
            dir,
            wanted,
            key,
        })
    }

    fn is_current(&self) -> bool {
        let made_from = fs::read_to_string(&self.made_from).unwrap_or_default();
        made_from.lines().next() == Some(self.key.as_str()) && self.kernel.exists()
    }

    fn source(&self) -> String {
        let made_from = fs::read_to_string(&self.made_from).unwrap_or_default();
        made_from
            .lines()
            .nth(1)
            .unwrap_or("source unknown")
            .to_owned()
    }

    fn build(&self, args: &Args) -> Result<()> {
        let missing: Vec<_> = TOOLS.into_iter().filter(|tool| !on_path(tool)).collect();
        ensure!(
            missing.is_empty(),
            "build the kernel: {} not installed; run scripts/setup.sh --kernel",
            missing.join(", ")
        );
        fs::create_dir_all(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        let lock_path = self.dir.join("lock");
        let lock =
            File::create(&lock_path).with_context(|| format!("create {}", lock_path.display()))?;
        if lock.try_lock().is_err() {
            eprintln!("waiting for another kernel build in {}", self.dir.display());
            lock.lock()
                .with_context(|| format!("lock {}", lock_path.display()))?;
            if !args.force && self.is_current() {
                return Ok(());
            }
        }
        let work = self.dir.join("work");
        remove_tree(&work)?;
        fs::create_dir(&work).with_context(|| format!("create {}", work.display()))?;
        let outcome = self.build_in(&work, args);
        remove_tree(&work)?;
        outcome
    }

    fn build_in(&self, work: &Path, args: &Args) -> Result<()> {
        let started = Instant::now();
        let package = download(work)?;
        eprintln!(
            "building the test kernel from {package}: 5 to 15 minutes, once; log in {}/build.log",
            self.dir.display()
        );
        let source = unpack(work)?;
        let out = work.join("out");
        fs::create_dir(&out).with_context(|| format!("create {}", out.display()))?;
        let fragment = work.join("fragment");
        fs::write(&fragment, &self.wanted)
            .with_context(|| format!("write {}", fragment.display()))?;

        let log_path = self.dir.join("build.log");
        let log =
            File::create(&log_path).with_context(|| format!("create {}", log_path.display()))?;
        let make = |target: &str| -> Result<Command> {
            let mut make = Command::new("make");
            make.args(["-s", "ARCH=um", "SUBARCH=x86_64", target])
                .arg(format!("O={}", out.display()))
                .arg("-C")
                .arg(&source)
                // a cargo run under make hands down a job server meant for others
                .env_remove("MAKEFLAGS")
                .env_remove("MFLAGS")
                .stdin(Stdio::null())
                .stdout(log.try_clone().context("share build.log")?)
                .stderr(log.try_clone().context("share build.log")?);
            Ok(make)
        };
        let see_log = || {
            format!(
                "build the kernel; the cause is at the end of {}",
                log_path.display()
            )
        };
        exec(make("allnoconfig")?.env("KCONFIG_ALLCONFIG", &fragment)).with_context(see_log)?;
        let config_path = out.join(".config");
        let config = fs::read_to_string(&config_path)
            .with_context(|| format!("read {}", config_path.display()))?;
        let mut dropped = dropped(&self.wanted, &config);
        if package.starts_with("linux-source-6.1 ") {
            dropped.retain(|line| !NEWER_THAN_6_1.contains(line));
        }
        ensure!(
            dropped.is_empty(),
            "configure {package}: the source does not accept {}; find what each depends on and correct uml.config",
            dropped.join(" ")
        );
        let jobs = args
            .jobs
            .or_else(|| std::thread::available_parallelism().ok().map(Into::into))
            .unwrap_or(1);
        exec(make("linux")?.arg(format!("-j{jobs}"))).with_context(see_log)?;

        let fresh = self.dir.join("linux.new");
        exec(
            Command::new("strip")
                .arg("-s")
                .arg("-o")
                .arg(&fresh)
                .arg(out.join("linux")),
        )?;
        let seconds = started.elapsed().as_secs();
        // made-from goes first and comes last, so that a kernel cut short never looks current
        let _ = fs::remove_file(&self.made_from);
        let config_kept = self.dir.join("linux.config");
        fs::copy(&config_path, &config_kept)
            .with_context(|| format!("write {}", config_kept.display()))?;
        fs::rename(&fresh, &self.kernel).with_context(|| format!("rename {}", fresh.display()))?;
        fs::write(
            &self.made_from,
            format!("{}\n{package}\n{seconds}\n", self.key),
        )
        .with_context(|| format!("write {}", self.made_from.display()))?;
        println!(
            "built {} from {package} in {seconds} s",
            self.kernel.display()
        );
        Ok(())
    }
}

/// Fetches the source package into `work`; returns its name and revision.
fn download(work: &Path) -> Result<String> {
    for package in SOURCES {
        let known = Command::new("apt-cache")
            .args(["show", "--no-all-versions", package])
            .stderr(Stdio::null())
            .output()
            .context("start apt-cache")?;
        let text = String::from_utf8_lossy(&known.stdout);
        let Some(revision) = text.lines().find_map(|line| line.strip_prefix("Version: ")) else {
            continue;
        };
        let fetched = Command::new("apt-get")
            // the download would otherwise run as user _apt, who may not write to the work directory
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(work)
            .stdout(Stdio::null())
            .status()
            .context("start apt-get")?;
        ensure!(
            fetched.success(),
            "download {package} {revision}: apt-get {fetched}; run apt-get update and try again"
        );
        return Ok(format!("{package} {revision}"));
    }
    bail!(
        "download the kernel source: apt knows none of {}; add Debian 12's main and security archives, then apt-get update",
        SOURCES.join(", ")
    )
}

/// Unpacks the source package found in `work`; returns the source tree.
fn unpack(work: &Path) -> Result<PathBuf> {
    let source = work.join("source");
    fs::create_dir(&source).with_context(|| format!("create {}", source.display()))?;
    let excludes: String = UNUSED
        .iter()
        .map(|pattern| format!(" --exclude='{pattern}'"))
        .collect();
    let script = format!(
        "set -o pipefail; dpkg-deb --fsys-tarfile ./linux-source-*.deb \
         | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' \
         | tar -x -I 'xz -dT0' -C source --strip-components=1{excludes}; rm ./linux-source-*.deb"
    );
    exec(
        Command::new("bash")
            .args(["-ec", &script])
            .current_dir(work),
    )
    .context("unpack the kernel source")?;
    Ok(source)
}

/// The lines of `wanted` that `config` does not have: kconfig says nothing about what it cannot set.
fn dropped<'a>(wanted: &'a str, config: &str) -> Vec<&'a str> {
    let set: std::collections::HashSet<&str> = config.lines().collect();
    wanted
        .lines()
        .filter(|line| line.starts_with("CONFIG_") && !set.contains(line))
        .collect()
}

fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).exists())
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// FNV-1a, 64 bits: std's hasher may change between releases, and then every cache would look stale.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_kconfig_ignored_is_reported() {
        let wanted = "# a comment\nCONFIG_BRIDGE=y\nCONFIG_GONE=y\n";
        let config = "CONFIG_BRIDGE=y\n# CONFIG_GONE is not set\n";
        assert_eq!(dropped(wanted, config), ["CONFIG_GONE=y"]);
    }

    #[test]
    fn hash_is_the_published_one() {
        assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
    }
}
