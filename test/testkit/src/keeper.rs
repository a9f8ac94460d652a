//! Cleaning up after a process, however it ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Says nothing, so that whoever reads our output does not wait for it; signals of the terminal are
/// not for it.
const SCRIPT: &str =
    r#"trap "" HUP INT TERM; read -r word || { shift 0; exec "$@" >/dev/null 2>&1; }"#;

/// Runs a command when this process has ended and did not say before that nothing is left to clean
/// up: by a panic or by a signal, SIGKILL among them. It waits at the other end of a pipe, which the
/// kernel closes with the process.
#[derive(Debug)]
pub struct Keeper(Option<Child>);

impl Keeper {
    /// From now on this command is run if need be; it begins with the program.
    ///
    /// # Panics
    /// If there is no shell.
    pub fn new(command: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT, "keeper"]).args(command);
        shell.process_group(0).stdin(Stdio::piped());
        shell.stdout(Stdio::null()).stderr(Stdio::null());
        Self(Some(shell.spawn().expect("a shell can be started")))
    }

    /// Nothing is left to clean up.
    pub fn dismiss(mut self) {
        if let Some(stdin) = self.0.as_mut().and_then(|shell| shell.stdin.as_mut()) {
            // If it has ended, it will do nothing either.
            drop(stdin.write_all(b"done\n"));
        }
    }
}

impl Drop for Keeper {
    /// Waits until it is done.
    fn drop(&mut self) {
        if let Some(mut shell) = self.0.take() {
            drop(shell.stdin.take());
            drop(shell.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Keeper;
    use std::process::{Command, Stdio};

    /// A file that is there; who has it open writes nothing.
    fn file(name: &str) -> String {
        let name = format!("keeper-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, "").unwrap();
        path.display().to_string()
    }

    #[test]
    fn it_cleans_up_unless_nothing_is_left() {
        let (kept, gone) = (file("kept"), file("gone"));
        Keeper::new(&["rm", &kept]).dismiss();
        drop(Keeper::new(&["rm", &gone]));
        assert!(std::fs::exists(&kept).unwrap());
        assert!(!std::fs::exists(&gone).unwrap());
        std::fs::remove_file(kept).unwrap();
    }

    #[test]
    fn it_cleans_up_after_a_process_that_was_killed() {
        if let Some(path) = std::env::var_os("KEEPER_TEST") {
            let keeper = Keeper::new(&["rm", path.to_str().unwrap()]);
            Command::new("sh")
                .args(["-c", "kill -9 $PPID"])
                .status()
                .unwrap();
            keeper.dismiss();
            return;
        }
        let path = file("killed");
        let own = std::env::current_exe().unwrap();
        let mut child = Command::new(own);
        child.args([
            "--exact",
            "keeper::tests::it_cleans_up_after_a_process_that_was_killed",
        ]);
        child.env("KEEPER_TEST", &path).stdout(Stdio::null());
        assert!(!child.status().unwrap().success());
        crate::eventually(
            "its keeper cleans up",
            std::time::Duration::from_secs(20),
            || match std::fs::exists(&path).unwrap() {
                true => Err(path.clone()),
                false => Ok(()),
            },
        );
    }
}
