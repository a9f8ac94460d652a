//! Processes that see this host's network and cannot change it.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::{fs, thread};

/// Starts a process in a user namespace of its own, with the users of this one. It may read the
/// kernel's tables and hear of every change, as anybody may; its capabilities, root's included, hold
/// for nothing that belongs to this user namespace, so the network is not its to change.
pub fn spawn_powerless(command: &mut Command) -> io::Result<Child> {
    let (mut who, said) = io::pipe()?;
    let (heard, mut go) = io::pipe()?;
    // Only a process outside may say which users the namespace has, and `spawn` returns when the
    // child runs the program: somebody has to do it meanwhile.
    let mapper = thread::spawn(move || {
        let mut pid = [0; 4];
        let mapped = who
            .read_exact(&mut pid)
            .and_then(|()| map_users(u32::from_ne_bytes(pid)));
        // If the child is gone, so is who would hear it.
        let _child_may_be_gone = go.write_all(&[u8::from(mapped.is_ok())]);
        mapped
    });
    // SAFETY: between fork and exec the closure makes system calls on descriptors that it owns, and
    // allocates nothing.
    unsafe { command.pre_exec(move || leave(&said, &heard)) };
    let child = command.spawn();
    // The closure holds the pipe's end until the command is dropped; it is the caller's.
    match child {
        Ok(child) => {
            if let Ok(mapped) = mapper.join() {
                mapped?;
            }
            Ok(child)
        }
        Err(error) => Err(error),
    }
}

fn leave(mut said: &PipeWriter, mut heard: &PipeReader) -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?;
    said.write_all(&std::process::id().to_ne_bytes())?;
    let mut go = [0];
    heard.read_exact(&mut go)?;
    match go {
        [1] => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
    }
}

/// The same users and groups inside as outside.
fn map_users(pid: u32) -> io::Result<()> {
    for map in ["gid_map", "uid_map"] {
        let ours = fs::read_to_string(format!("/proc/self/{map}"))?;
        let mut same = String::new();
        for line in ours.lines() {
            let mut numbers = line.split_whitespace();
            if let (Some(inside), Some(count)) = (numbers.next(), numbers.nth(1)) {
                same.push_str(&format!("{inside} {inside} {count}\n"));
            }
        }
        fs::write(format!("/proc/{pid}/{map}"), same)?;
    }
    Ok(())
}
