//! Disks on real files: made, locked, killed, filled.

use blocks::{Body, Buffer, Entry, Event, Identity, OpenError, Submission, VolumeId};
use disk::{Disk, DiskError, Engine, Fault, FileError, FormatError, Options, format};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const V: VolumeId = VolumeId::new(5);
const IDENTITY: Identity = Identity {
    cluster: 1,
    host: 2,
    disk: 3,
};
/// Far away: no test waits for it.
const DEADLINE: Duration = Duration::from_secs(60);

fn made(path: &Path) {
    let mut told = 0;
    format(path, (24 * MIB, 2 * MIB), IDENTITY, 77, &mut |done| {
        told = done
    })
    .expect("there is room");
    assert!(told > 23 * MIB, "all of it is written: {told}");
}

fn opened(path: &Path, engine: Engine) -> Disk {
    let options = Options {
        engine,
        fault: None,
    };
    Disk::open(path, IDENTITY, options).expect("it was made").0
}

/// The kernel frees what a killed process had after that is gone.
fn opened_when_free(path: &Path) -> Disk {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        let options = Options {
            engine: Engine::Threads,
            fault: None,
        };
        match Disk::open(path, IDENTITY, options) {
            Ok((disk, _)) => return disk,
            Err(DiskError::File(FileError::InUse { .. })) => std::thread::yield_now(),
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("{} stays in use", path.display());
}

fn block(index: u64) -> Buffer {
    Buffer::copied(&index.to_le_bytes().repeat(512))
}

fn write(disk: &mut Disk, index: u64) {
    let entry = Entry {
        index,
        term: 1,
        epoch: 0,
        body: Body::Write {
            lba: index % 64,
            data: block(index),
        },
    };
    let entries = vec![entry];
    disk.store
        .submit(
            V,
            Submission {
                hard: None,
                entries,
            },
        )
        .expect("there is room");
}

/// Turns until this event comes.
fn until(disk: &mut Disk, mut wanted: impl FnMut(&Event) -> bool) -> Event {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        let events = disk.turn(Duration::from_millis(100));
        if let Some(event) = events.into_iter().find(|event| wanted(event)) {
            return event;
        }
    }
    panic!("nothing came: {:?}", disk.store);
}

fn durable(disk: &mut Disk, index: u64) {
    let start = Instant::now();
    while disk.store.volume(V).expect("it is there").durable < index {
        assert!(start.elapsed() < DEADLINE);
        disk.turn(Duration::from_millis(100));
    }
}

fn read(disk: &mut Disk, lba: u64) -> Buffer {
    let ticket = disk.store.read(V, lba, 1).expect("it is in the volume");
    let event = until(
        disk,
        |event| matches!(event, Event::Read { ticket: of, .. } if *of == ticket),
    );
    match event {
        Event::Read { result, .. } => result.expect("it is whole")[0].clone(),
        _ => unreachable!("it was matched"),
    }
}

#[test]
fn what_is_written_is_read_after_it_was_opened_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    made(&path);
    for (round, engine) in [Engine::Best, Engine::Threads, Engine::Best]
        .into_iter()
        .enumerate()
    {
        let mut disk = opened(&path, engine);
        assert_eq!(
            disk.is_ring(),
            engine == Engine::Best,
            "this kernel has io_uring"
        );
        if round == 0 {
            disk.store.create(V, 1000).expect("there is room");
        }
        let from = 1 + 600 * round as u64;
        for index in from..from + 600 {
            write(&mut disk, index);
            if index % 7 == 0 {
                durable(&mut disk, index);
                disk.store.committed(V, index).expect("they are there");
            }
        }
        durable(&mut disk, from + 599);
        disk.store.committed(V, from + 599).expect("they are there");
        assert_eq!(
            read(&mut disk, 30),
            block((from + 599) / 64 * 64 + 30 - if (from + 599) % 64 < 30 { 64 } else { 0 })
        );
        disk.store.checkpoint();
        until(&mut disk, |event| {
            matches!(event, Event::Checkpointed { .. })
        });
        assert!(disk.store.counters().checkpoints > 0);
    }
}

#[test]
fn two_do_not_have_it_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    made(&path);
    let disk = opened(&path, Engine::Best);
    let second = Disk::open(&path, IDENTITY, Options::default());
    assert!(
        matches!(second, Err(DiskError::File(FileError::InUse { .. }))),
        "{second:?}"
    );
    drop(disk);
    opened(&path, Engine::Threads);
}

#[test]
fn a_disk_is_not_formatted_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    made(&path);
    let again = format(&path, (24 * MIB, 2 * MIB), IDENTITY, 78, &mut |_| {});
    assert!(
        matches!(again, Err(FormatError::Formatted { .. })),
        "{again:?}"
    );
    let other = Identity {
        host: 9,
        ..IDENTITY
    };
    let opened = Disk::open(&path, other, Options::default());
    let Err(DiskError::Open { source, .. }) = opened else {
        panic!("{opened:?}");
    };
    assert!(matches!(*source, OpenError::Foreign { .. }));
    let missing = Disk::open(&folder.path().join("none"), IDENTITY, Options::default());
    assert!(
        matches!(missing, Err(DiskError::File(FileError::Open { .. }))),
        "{missing:?}"
    );
}

#[test]
fn a_sync_that_fails_ends_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    made(&path);
    let mut syncs = 0;
    let fault = Fault(Box::new(move |io| {
        syncs += u32::from(matches!(
            io,
            blocks::Io::Sync | blocks::Io::WriteSync { .. }
        ));
        (syncs == 3).then(|| io::Error::from_raw_os_error(5))
    }));
    let options = Options {
        engine: Engine::Best,
        fault: Some(fault),
    };
    let (mut disk, _) = Disk::open(&path, IDENTITY, options).expect("that is the first sync");
    disk.store.create(V, 1000).expect("there is room");
    until(&mut disk, |event| matches!(event, Event::Durable { .. }));
    write(&mut disk, 1);
    let event = until(&mut disk, |event| {
        !matches!(event, Event::Checkpointed { .. })
    });
    let Event::Dead { cause } = event else {
        panic!("{event:?}");
    };
    assert!(cause.contains("writing the log"), "{cause}");
    assert_eq!(disk.store.volume(V).expect("it is there").durable, 0);
}

/// What [`killed_at_any_moment_it_has_what_it_said`] kills. By itself it does nothing.
#[test]
fn child() {
    let Ok(path) = std::env::var("DISK_TEST_CHILD") else {
        return;
    };
    let mut disk = opened(Path::new(&path), Engine::Best);
    if disk.store.volume(V).is_none() {
        disk.store.create(V, 1000).expect("there is room");
    }
    let mut out = io::stderr().lock();
    let mut told = 0;
    let mut next = disk.store.volume(V).expect("it is there").last + 1;
    loop {
        let info = disk.store.volume(V).expect("it is there");
        while next <= info.durable + 20 {
            write(&mut disk, next);
            next += 1;
        }
        disk.turn(Duration::from_millis(100));
        let durable = disk.store.volume(V).expect("it is there").durable;
        if durable > told {
            told = durable;
            writeln!(out, "durable {durable}").expect("somebody listens");
            disk.store.committed(V, durable).expect("they are there");
        }
    }
}

#[test]
fn killed_at_any_moment_it_has_what_it_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    made(&path);
    let mut before = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["child", "--exact", "--nocapture"])
            .env("DISK_TEST_CHILD", &path)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let numbers = lines.map_while(Result::ok);
        let mut numbers =
            numbers.filter_map(|line| line.strip_prefix("durable ")?.parse::<u64>().ok());
        let mut said = 0;
        for _ in 0..5 + 40 * round {
            said = numbers.next().expect("it goes on until it is killed");
        }
        child.kill().expect("it runs");
        said = numbers.last().unwrap_or(said);
        child.wait().expect("it was killed");
        let mut disk = opened_when_free(&path);
        let info = disk.store.volume(V).expect("it is there");
        assert!(
            info.durable >= said && said > before,
            "{info:?}, it said {said}"
        );
        before = info.durable;
        disk.store
            .committed(V, info.durable)
            .expect("they are there");
        for index in info.durable - 19..=info.durable {
            assert_eq!(read(&mut disk, index % 64), block(index), "round {round}");
        }
    }
}

/// A file system of its own, of so many MiB, on a file.
struct Small {
    mount: tempfile::TempDir,
    _image: tempfile::NamedTempFile,
}

impl Small {
    /// Nothing where this cannot be done: not root, no loop device.
    fn new(mib: u64) -> Option<Self> {
        let image = tempfile::NamedTempFile::new().expect("a file");
        image.as_file().set_len(mib * MIB).expect("it is sparse");
        let mount = tempfile::tempdir().expect("a folder");
        let run = |program: &str, args: &[&std::ffi::OsStr]| {
            let status = Command::new(program)
                .args(args)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            status.is_ok_and(|status| status.success())
        };
        let made = run(
            "mkfs.ext4",
            &["-q".as_ref(), "-F".as_ref(), image.path().as_ref()],
        ) && run(
            "mount",
            &[
                "-o".as_ref(),
                "loop".as_ref(),
                image.path().as_ref(),
                mount.path().as_ref(),
            ],
        );
        made.then_some(Self {
            mount,
            _image: image,
        })
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.mount.path()).status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "unmounting {:?}",
            self.mount
        );
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "what did not run is told")]
fn a_full_file_system_is_told_when_formatting_and_no_matter_later() {
    let Some(small) = Small::new(48) else {
        println!("not run: needs root, mkfs.ext4 and a loop device");
        return;
    };
    let path = small.mount.path().join("disk");
    let large = format(&path, (200 * MIB, 2 * MIB), IDENTITY, 77, &mut |_| {});
    let Err(FormatError::Write { source, at, .. }) = large else {
        panic!("{large:?}");
    };
    assert_eq!(
        (source.kind(), at > 20 * MIB),
        (io::ErrorKind::StorageFull, true),
        "{source}"
    );
    std::fs::remove_file(&path).expect("it is there");
    made(&path);
    // Others fill the rest: the disk has all that it will ever need.
    let mut rest = std::fs::File::create(small.mount.path().join("rest")).expect("a file");
    let chunk = vec![1; MIB as usize];
    while rest.write_all(&chunk).is_ok() {}
    drop(rest);
    let mut disk = opened(&path, Engine::Best);
    disk.store.create(V, 1000).expect("there is room");
    for index in 1..=2000 {
        write(&mut disk, index);
        durable(&mut disk, index);
        disk.store.committed(V, index).expect("they are there");
    }
    assert!(disk.store.counters().checkpoints > 2);
}
