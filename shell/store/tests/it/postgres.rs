//! A throw-away PostgreSQL from Debian's package: a cluster in a temporary directory, reachable
//! only by a unix socket in there.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use store::Location;
use tempfile::TempDir;
use testkit::eventually;

/// Ends the server and removes its files when dropped, in a panic too.
pub(crate) struct Server {
    process: Child,
    dir: TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("pg")
            .tempdir_in("/tmp")
            .expect("a directory");
        let data = dir.path().join("data");
        let postgres = User::from_name("postgres").expect("the user database is readable");
        if nix::unistd::geteuid().is_root() {
            // The server refuses to run as root.
            let user = postgres.expect("Debian's postgresql package makes a user postgres");
            chown(dir.path(), Some(user.uid), Some(user.gid)).expect("root may chown");
        }
        let made = command("initdb")
            .args([
                "--no-sync",
                "--auth=trust",
                "--username=vpc",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .arg("-D")
            .arg(&data)
            .output()
            .expect("initdb runs: apt install postgresql-15");
        assert!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let mut server = Self {
            process: start(&data, dir.path()),
            dir,
        };
        let socket = server.dir.path().join(".s.PGSQL.5432");
        let pid = data.join("postmaster.pid");
        eventually(
            "PostgreSQL takes connections",
            Duration::from_secs(30),
            || {
                if let Ok(Some(status)) = server.process.try_wait() {
                    panic!("PostgreSQL ended at once: {status}");
                }
                let state = std::fs::read_to_string(&pid).unwrap_or_default();
                let ready = socket.exists() && state.lines().any(|line| line.trim() == "ready");
                if ready { Ok(()) } else { Err(state) }
            },
        );
        server
    }

    /// A fresh, empty database.
    pub(crate) fn database(&self, name: &str) -> Location {
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        self.location(name)
    }

    /// A database whose transactions are serializable unless they say otherwise.
    pub(crate) fn serializable_database(&self, name: &str) -> Location {
        let location = self.database(name);
        self.psql(
            "postgres",
            &format!("ALTER DATABASE {name} SET default_transaction_isolation = serializable"),
        );
        location
    }

    fn location(&self, database: &str) -> Location {
        let dir = self.dir.path().display().to_string().replace('/', "%2F");
        format!("postgres://vpc@{dir}/{database}")
            .parse()
            .expect("a location")
    }

    fn psql(&self, database: &str, sql: &str) -> String {
        let done = command("psql")
            .args([
                "-X",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "vpc",
                "-d",
                database,
            ])
            .arg("-h")
            .arg(self.dir.path())
            .args(["-c", sql])
            .output()
            .expect("psql runs");
        assert!(
            done.status.success(),
            "{sql}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        String::from_utf8(done.stdout).expect("UTF-8")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Immediate shutdown: ends its children, removes its shared memory, syncs nothing.
        let pid = Pid::from_raw(i32::try_from(self.process.id()).expect("a pid"));
        if kill(pid, Signal::SIGQUIT).is_ok()
            && let Err(error) = self.process.wait()
        {
            println!("waiting for PostgreSQL: {error}");
        }
    }
}

fn start(data: &Path, socket_dir: &Path) -> Child {
    let mut server = command("postgres");
    server.arg("-D").arg(data);
    for setting in [
        "listen_addresses=",
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "max_connections=50",
        &format!("unix_socket_directories={}", socket_dir.display()),
    ] {
        server.arg("-c").arg(setting);
    }
    server.stdout(Stdio::null()).stderr(Stdio::null());
    server.spawn().expect("postgres runs")
}

/// A program of PostgreSQL, as user postgres when we are root.
fn command(program: &str) -> Command {
    let mut command = Command::new(newest_bin().join(program));
    command.current_dir("/");
    if nix::unistd::geteuid().is_root()
        && let Ok(Some(user)) = User::from_name("postgres")
    {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn newest_bin() -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed: apt install postgresql")
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    versions.sort();
    versions
        .pop()
        .expect("PostgreSQL is installed: apt install postgresql")
}
