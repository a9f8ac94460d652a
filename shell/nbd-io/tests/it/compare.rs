//! The same requests to our server, to nbdkit and to qemu-nbd: where the standard leaves no choice they answer
//! alike.

use crate::raw::{Outcome, Raw};
use crate::rig::{MIB, Rig, Running, foreign, pattern};
use nbd::wire::{OptionReply, OptionRequest, RefusedOption, command};
use std::fs;
use std::path::{Path, PathBuf};

struct Servers {
    ours: Rig,
    others: Vec<(&'static str, PathBuf, Running)>,
}

/// Each serves a file of its own with the same contents: 64 KiB of data behind 64 KiB of nothing.
fn servers(read_only: bool) -> Servers {
    let ours = Rig::new(MIB);
    let others = ["nbdkit", "qemu-nbd"].map(|name| {
        let (socket, file) = (ours.path(&format!("{name}.socket")), ours.path(name));
        let (place, path) = (socket.to_str().unwrap(), file.to_str().unwrap());
        fill(&file);
        let mut args = match name {
            "nbdkit" => vec!["-f", "-U", place, "file", path],
            _ => vec![
                "-f",
                "raw",
                "-t",
                "-e",
                "4",
                "-x",
                "disk",
                "--discard=unmap",
                "-k",
                place,
                path,
            ],
        };
        if read_only {
            args.insert(0, "-r");
        }
        let server = foreign(name, &args, &socket);
        (name, socket, server)
    });
    fill(&ours.file());
    Servers {
        ours,
        others: others.into(),
    }
}

fn fill(path: &Path) {
    let mut bytes = vec![0; MIB as usize];
    bytes[65536..131_072].copy_from_slice(&pattern(65536));
    fs::write(path, bytes).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    let how = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
        | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nix::fcntl::fallocate(&file, how, 0, 65536).unwrap();
    nix::fcntl::fallocate(&file, how, 131_072, (MIB - 131_072) as i64).unwrap();
}

type Asked = (u16, u16, (u64, u32));

fn ask(socket: &Path, export: &str, structured: bool, asked: &[Asked]) -> Vec<Outcome> {
    let mut raw = Raw::serving(socket, export, structured);
    let answer = |(command, flags, place): &Asked| {
        raw.request(*command, *flags, 7, *place);
        if *command == command::WRITE {
            raw.send(&pattern(place.1 as usize));
        }
        raw.outcome(*command, *place)
    };
    asked.iter().map(answer).collect()
}

/// Asks all, each twice: with and without structured replies.
fn alike(servers: &Servers, export: &str, asked: &[Asked]) {
    for structured in [false, true] {
        let ours = ask(&servers.ours.socket, export, structured, asked);
        for (name, socket, _) in &servers.others {
            let theirs = ask(socket, "disk", structured, asked);
            for ((ours, theirs), asked) in ours.iter().zip(&theirs).zip(asked) {
                assert_eq!(
                    ours, theirs,
                    "{asked:?} of us and {name}, structured: {structured}"
                );
            }
        }
    }
}

const R: u16 = command::READ;
const W: u16 = command::WRITE;
const F: u16 = command::FLUSH;
const T: u16 = command::TRIM;
const C: u16 = command::CACHE;
const Z: u16 = command::WRITE_ZEROES;
const S: u16 = command::BLOCK_STATUS;

#[test]
fn what_is_fine_is_done() {
    alike(
        &servers(false),
        "disk",
        &[
            (R, 0, (0, 512)),
            (R, 0, (0, MIB as u32)),
            (R, 0, (65535, 3)),
            (W, 0, (200_000, 100_000)),
            (W, 1, (10, 1)),
            (R, 0, (199_999, 100_002)),
            (F, 0, (0, 0)),
            (Z, 0, (210_000, 5000)),
            (Z, 1, (220_000, 1)),
            (R, 0, (200_000, 100_000)),
            (T, 0, (512 << 10, 65536)),
            (C, 0, (0, 4096)),
            (R, 0, (MIB - 1, 1)),
        ],
    );
}

#[test]
fn what_is_beyond_the_end_is_refused() {
    let mut servers = servers(false);
    let reads = [
        (R, 0, (MIB, 1)),
        (R, 0, (MIB - 511, 512)),
        (R, 0, (u64::MAX, 1)),
        (T, 0, (MIB - 1, 2)),
        (R, 0, (0, 512)),
    ];
    alike(&servers, "disk", &reads);
    // The standard has `ENOSPC`; qemu-nbd says `EINVAL`.
    servers.others.retain(|(name, ..)| *name == "nbdkit");
    let writes = [
        (W, 0, (MIB, 512)),
        (W, 0, (MIB - 1, 2)),
        (Z, 0, (MIB - 1, 2)),
        (Z, 0, (1 << 62, 4096)),
        (R, 0, (0, 512)),
    ];
    alike(&servers, "disk", &writes);
}

#[test]
fn what_is_unknown_is_refused() {
    let unknown = [
        (99, 0, (0, 0)),
        (R, 0x100, (0, 512)),
        (T, 0x40, (0, 512)),
        (R, 0, (0, 512)),
    ];
    alike(&servers(false), "disk", &unknown);
}

/// The standard has `EPERM`; qemu-nbd says `EINVAL`.
#[test]
fn what_is_read_only_is_not_written() {
    let mut servers = servers(true);
    servers.others.retain(|(name, ..)| *name == "nbdkit");
    let writes = [
        (W, 0, (0, 512)),
        (T, 0, (0, 512)),
        (Z, 0, (0, 512)),
        (R, 0, (65536, 512)),
    ];
    alike(&servers, "locked", &writes);
}

#[test]
fn block_status_is_what_is_there() {
    let servers = servers(false);
    let one = 8;
    let asked = [
        (S, one, (0, 65536)),
        (S, one, (0, 4096)),
        (S, one, (65536, 65536)),
        (S, 0, (0, 131_072)),
    ];
    let ours = ask(&servers.ours.socket, "disk", true, &asked);
    for (name, socket, _) in &servers.others {
        assert_eq!(ours, ask(socket, "disk", true, &asked), "of us and {name}");
    }
}

/// Of an option that a server does not do only the reason is compared: what it says is its own.
#[test]
fn options_get_the_same_answers() {
    let servers = servers(false);
    let sockets = servers.others.iter().map(|(_, socket, _)| socket.clone());
    let sockets = [vec![servers.ours.socket.clone()], sockets.collect()].concat();
    let all = sockets.iter().map(|socket| {
        let mut raw = Raw::connect(socket);
        raw.flags();
        let mut said: Vec<String> = Vec::new();
        for (option, data) in [
            (99, &b""[..]),
            (99, b"data"),
            (8, b"x"),
            (3, b"x"),
            (6, b""),
            (7, &[0, 0, 0, 9, 0, 0]),
        ] {
            let replies = raw.raw_option(option, data);
            said.push(format!("{option}: {:?}", replies.last().map(reason)));
        }
        let selected = OptionRequest::SetMetaContext {
            name: "disk".to_owned(),
            queries: vec!["base:allocation".to_owned()],
        };
        for request in [selected.clone(), OptionRequest::StructuredReply, selected] {
            let replies = raw.option(&request);
            let contexts = replies
                .iter()
                .filter(|reply| matches!(reply, OptionReply::MetaContext { .. }));
            let (count, last) = (contexts.count(), replies.last().map(reason));
            said.push(format!("{}: {count} {last:?}", request.code()));
        }
        said.push(format!("{:?}", raw.option(&OptionRequest::Abort)));
        said
    });
    let all: Vec<_> = all.collect();
    assert_eq!(all[0], all[1], "of us and nbdkit");
    assert_eq!(all[0], all[2], "of us and qemu-nbd");
}

fn reason(reply: &OptionReply) -> Option<RefusedOption> {
    match reply {
        OptionReply::Refused { refusal, .. } => Some(*refusal),
        _ => None,
    }
}
