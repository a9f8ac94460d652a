//! What only a file can suffer: a full disk, damage, a killed server.

use crate::cluster::{Server, account, nic, settings};
use fleet_plan::Intent;
use model::{Name, Object, Revision};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use store::{Location, Store, StoreError};

/// Tells a child process, which is this test program again, what to do.
const PART: &str = "STORE_TEST_PART";

fn here(path: &Path) -> Location {
    Location::Sqlite(path.to_owned())
}

#[tokio::test]
async fn files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vpc.db");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let store = Store::init(&here(&path), &settings()).await.unwrap();
    Server::start(&store, 1)
        .await
        .run(account("a"))
        .await
        .unwrap();
    for name in ["vpc.db", "vpc.db-wal", "vpc.db-shm"] {
        assert_eq!(mode(&dir.path().join(name)), 0o600, "{name}");
    }
    let copy = dir.path().join("copy.db");
    store.backup(&copy).await.unwrap();
    assert_eq!(mode(&copy), 0o600);
    store.close().await;
    // A careless copy is made private again.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    Store::open(&here(&path)).await.unwrap().close().await;
    assert_eq!(mode(&path), 0o600);
}

#[tokio::test]
async fn a_backup_is_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("vpc.db"), dir.path().join("it's a copy.db"));
    let store = Store::init(&here(&path), &settings()).await.unwrap();
    let mut server = Server::start(&store, 1).await;
    server.furnish().await;
    store.backup(&copy).await.unwrap();
    let then = server.intent.clone();
    server.run(account("later")).await.unwrap();
    assert_eq!(
        store.backup(&copy).await.unwrap_err().to_string(),
        format!(
            "the backup {} exists already: it is left as it is; choose another name",
            copy.display()
        )
    );
    let restored = Store::open(&here(&copy)).await.unwrap();
    assert_eq!(restored.load().await.unwrap(), then);
    restored.close().await;
    store.close().await;
}

#[tokio::test]
async fn the_log_is_folded_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vpc.db");
    let store = Store::init(&here(&path), &settings()).await.unwrap();
    let mut server = Server::start(&store, 1).await;
    let is_in_file = |text: &str| {
        let bytes = std::fs::read(&path).unwrap();
        let mut places = bytes.windows(text.len());
        places.any(|place| place == text.as_bytes())
    };
    for name in ["first-of-all", "second-of-all"] {
        server.run(account(name)).await.unwrap();
        assert!(!is_in_file(name));
        store.fold_log().await.unwrap();
        assert!(is_in_file(name));
    }
    store.close().await;
}

#[tokio::test]
async fn a_lost_file_is_not_replaced_by_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vpc.db");
    let error = Store::open(&here(&path)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "there is no store at {}: `vpc server init` makes one; if there was one, restore its \
             backup",
            path.display()
        )
    );
    assert!(!path.exists());
    std::fs::write(&path, "").unwrap();
    let error = Store::open(&here(&path)).await.unwrap_err();
    assert!(error.to_string().contains("the file is empty"), "{error}");
    let nowhere = dir.path().join("no/such/vpc.db");
    let error = Store::init(&here(&nowhere), &settings()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "making the store {}: check that its directory exists and belongs to the server's user",
            nowhere.display()
        )
    );
}

/// Every kind of damage is refused, and the file stays as it was found.
#[tokio::test]
async fn a_damaged_file_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.db");
    let store = Store::init(&here(&whole), &settings()).await.unwrap();
    let mut server = Server::start(&store, 1).await;
    let (subnet, host) = server.furnish().await;
    for n in 0..100 {
        server
            .run(nic(subnet, host, &format!("n{n}")))
            .await
            .unwrap();
    }
    let written = server.intent;
    // A backup has no free pages.
    let packed = dir.path().join("packed.db");
    store.backup(&packed).await.unwrap();
    store.close().await;
    Store::open(&here(&packed)).await.unwrap().close().await;
    let bytes = std::fs::read(&packed).unwrap();
    let mut damages: Vec<(String, Vec<u8>)> = vec![
        (
            "not a database".to_owned(),
            b"hello, this is no database at all".repeat(400),
        ),
        ("cut off".to_owned(), bytes[..bytes.len() / 2].to_vec()),
        ("header".to_owned(), flipped(&bytes, 20)),
    ];
    damages.extend((1..bytes.len() / 4096).map(|page| {
        let what = format!("kind of page {page}");
        (what, flipped(&bytes, page * 4096))
    }));
    // In the middle of rows and of index entries, where the structure stays whole.
    for needle in ["\"10.4.0.", "host", "created"] {
        damages.extend(places(&bytes, needle).into_iter().step_by(7).map(|at| {
            let what = format!("byte {at}, of {needle}");
            (what, flipped(&bytes, at + needle.len() - 1))
        }));
    }
    let mut found = 0;
    assert!(damages.len() > 100, "only {} damages", damages.len());
    for (what, damaged) in &damages {
        let path = dir.path().join("damaged.db");
        std::fs::write(&path, damaged).unwrap();
        let outcome = match Store::open(&here(&path)).await {
            Ok(store) => {
                let outcome = read_everything(&store).await;
                store.close().await;
                outcome
            }
            Err(error) => Err(error),
        };
        match outcome {
            Err(StoreError::Corrupt { .. }) => found += 1,
            // Left over in a page from rows that moved elsewhere.
            Ok(read) => assert_eq!(read, written, "{what}: wrong data was believed"),
            Err(other) => panic!("{what}: {other}"),
        }
        let now = std::fs::read(&path).unwrap();
        assert!(now == *damaged, "{what}: the file was changed");
    }
    let all = damages.len();
    assert!(found * 10 >= all * 9, "only {found} of {all} damages found");
}

/// Where `needle` is in `bytes`.
fn places(bytes: &[u8], needle: &str) -> Vec<usize> {
    let windows = bytes.windows(needle.len()).enumerate();
    windows
        .filter(|(_, window)| *window == needle.as_bytes())
        .map(|(at, _)| at)
        .collect()
}

async fn read_everything(store: &Store) -> Result<Intent, StoreError> {
    store.changes_since(Revision(0), usize::MAX).await?;
    store.tokens().await?;
    store.statuses().await?;
    store.issued().await?;
    store.load().await
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 0x05;
    bytes
}

/// Fills the disk, and frees it again, in a mount namespace of its own.
#[test]
fn a_full_disk_is_named_and_survived() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs -o size=2m,mode=700 tmpfs '{dir}' && exec '{program}' \
         --exact damage::on_a_small_disk --nocapture",
        dir = dir.path().display(),
        program = std::env::current_exe().unwrap().display(),
    );
    let done = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .env(PART, dir.path())
        .output()
        .expect("unshare runs");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && said.contains("the small disk was survived"),
        "{said}\n{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// The part of [`a_full_disk_is_named_and_survived`] that sees the small disk.
#[tokio::test]
async fn on_a_small_disk() {
    let Some(dir) = std::env::var_os(PART).map(PathBuf::from) else {
        return;
    };
    let path = dir.join("vpc.db");
    let store = Store::init(&here(&path), &settings()).await.unwrap();
    let mut server = Server::start(&store, 1).await;
    let (subnet, host) = server.furnish().await;
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![0_u8; 1_000_000]).unwrap();
    for round in 0..3 {
        let mut n = 0;
        let error = loop {
            match server
                .run(nic(subnet, host, &format!("n{round}-{n}")))
                .await
            {
                Ok(_) => n += 1,
                Err(error) => break error,
            }
            assert!(n < 10_000, "2 MB were never full");
        };
        assert_eq!(
            error.to_string(),
            format!(
                "committing a change in the store {}: no space left on its disk; nothing was \
                 changed, free some space and try again",
                path.display()
            )
        );
        // Reading goes on, and shows exactly what was acknowledged.
        assert_eq!(store.load().await.unwrap(), server.intent, "round {round}");
        // Still full: still refused, still whole.
        server
            .run(nic(subnet, host, "still-full"))
            .await
            .unwrap_err();
        let copy = dir.join("copy.db");
        assert!(matches!(
            store.backup(&copy).await,
            Err(StoreError::Full { .. })
        ));
        assert!(!copy.exists(), "half a backup was left behind");
        let smaller = 1_000_000 - (round + 1) * 250_000;
        std::fs::write(&ballast, vec![0_u8; smaller]).unwrap();
        server
            .run(nic(subnet, host, &format!("space-{round}")))
            .await
            .unwrap();
    }
    store.close().await;
    let store = Store::open(&here(&path)).await.unwrap();
    assert_eq!(store.load().await.unwrap(), server.intent);
    store.close().await;
    println!("the small disk was survived");
}

/// kill -9 during commits: what was acknowledged is there, and nothing is half there.
#[test]
fn a_killed_server_loses_nothing_it_acknowledged() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vpc.db");
    runtime.block_on(async {
        let store = Store::init(&here(&path), &settings()).await.unwrap();
        Server::start(&store, 1).await.furnish().await;
        store.close().await;
    });
    let mut acknowledged = Vec::new();
    for round in 0..8_u64 {
        let mut child = Killed(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "damage::committing_until_killed", "--nocapture"])
                .env(PART, format!("{}:{round}", path.display()))
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let said = BufReader::new(child.0.stdout.take().unwrap());
        // A different number each round, so that the kill hits different places.
        let enough = 5 + round as usize * 7;
        let mut heard = 0;
        for line in said.lines() {
            let line = line.unwrap();
            if let Some(name) = line.strip_prefix("acknowledged ") {
                acknowledged.push(name.parse::<Name>().unwrap());
                heard += 1;
            }
            if heard == enough {
                child.0.kill().unwrap();
                // What it said before it died was acknowledged too: read on to the end.
                heard += 1;
            }
        }
        assert!(heard > enough, "the child of round {round} ended by itself");
        drop(child);
        let intent = runtime.block_on(async {
            let store = Store::open(&here(&path)).await.unwrap();
            let intent = store.load().await.unwrap();
            let history = store.changes_since(Revision(0), usize::MAX).await.unwrap();
            assert_eq!(history.changes.len() as u64, intent.revision().0);
            store.close().await;
            intent
        });
        let accounts = intent.list(model::Kind::Account, &Default::default(), None, usize::MAX);
        let names: std::collections::BTreeSet<Name> = accounts
            .items
            .iter()
            .map(|object| match object {
                Object::Account(account) => account.name.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|name| !names.contains(name))
            .collect();
        assert!(lost.is_empty(), "round {round} lost {lost:?}");
        // At most the one that was being committed is there without having been acknowledged,
        // and the account of the setup.
        let most = acknowledged.len() + 1 + round as usize + 1;
        assert!(
            names.len() <= most,
            "{} accounts, at most {most}",
            names.len()
        );
    }
}

/// The part of [`a_killed_server_loses_nothing_it_acknowledged`] that is killed.
#[tokio::test]
async fn committing_until_killed() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    let Some((path, round)) = part.rsplit_once(':') else {
        return;
    };
    let round: u64 = round.parse().unwrap();
    let store = Store::open(&here(Path::new(path))).await.unwrap();
    let mut server = Server::start(&store, round << 32).await;
    let mut out = std::io::stdout();
    for n in 0.. {
        let text = format!("r{round}-{n}");
        server.run(account(&text)).await.unwrap();
        writeln!(out, "acknowledged {text}").unwrap();
        out.flush().unwrap();
    }
}

/// A torn or foreign tail of the log is not taken for history.
#[tokio::test]
async fn a_torn_log_ends_where_it_was_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("vpc.db"), dir.path().join("copy.db"));
    let store = Store::init(&here(&path), &settings()).await.unwrap();
    let mut server = Server::start(&store, 1).await;
    for n in 0..5 {
        server.run(account(&format!("a{n}"))).await.unwrap();
    }
    let four = {
        let intent = server.intent.clone();
        server.run(account("torn")).await.unwrap();
        intent
    };
    // As after a power cut: the file and a log whose last page did not make it.
    std::fs::copy(&path, &copy).unwrap();
    let log = dir.path().join("copy.db-wal");
    std::fs::copy(dir.path().join("vpc.db-wal"), &log).unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(&log).unwrap();
    file.seek(SeekFrom::End(-100)).unwrap();
    file.write_all(&[0x55; 100]).unwrap();
    store.close().await;
    let store = Store::open(&here(&copy)).await.unwrap();
    assert_eq!(store.load().await.unwrap(), four);
    store.close().await;
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It is dead already unless the test failed; then these are the errors of a dead child.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
