//! The server's configuration on disk: all of it as it once was, and what changed since. A host with hundreds of
//! routers writes what a change costs, not what it has.
//!
//! `host-config` has all of it, as [`Disk::save`] writes files. `host-config.changes` has what came after:
//!
//! ```text
//! | magic 8 | first line of host-config 64 | crc32c of these 4 | record.. |
//! record: | length of the change 4 | crc32c of the change 4 | crc32c of these 4 | a HostChange in JSON |
//! ```
//!
//! Numbers are little-endian. Changes of another `host-config` are left over from before it was written, and mean
//! nothing. A record is synced before it counts as kept, and nothing is written after one that could not be. So
//! what is bad at the end, with nothing good behind it, was never kept and is left out; what is bad with something
//! good behind it is damage. Format 1 is the only one.

use crate::disk::{Disk, FileDigest, StateError};
use crate::events::Event;
use model::{HostChange, HostConfig};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{error, warn};

/// Files in the state directory.
const WHOLE: &str = "host-config";
const CHANGES: &str = "host-config.changes";

const MAGIC: &[u8; 8] = b"vpcchg1\n";
const HEADER_BYTES: usize = MAGIC.len() + FileDigest::BYTES + 4;
const RECORD_HEADER_BYTES: usize = 12;
/// With more than this to go through at the next start, all of it is written again, when nobody waits.
const MOST_BYTES: u64 = 8 << 20;
/// After a failed write.
const RETRY: Duration = Duration::from_secs(2);

/// What an earlier agent kept; none if it kept nothing. What is damaged is set aside, because the server has it.
pub(crate) fn load(disk: &Disk) -> Result<Option<HostConfig>, StateError> {
    match read(disk) {
        Err(damage @ StateError::Damaged { .. }) => {
            // The changes first: they must not be taken for those of a file that says the same again.
            for name in [CHANGES, WHOLE] {
                if disk.path(name).exists() {
                    let aside = disk.set_aside(name)?;
                    warn!(%damage, aside = %aside.display(), "Set aside; waiting for the server's copy");
                }
            }
            Ok(None)
        }
        other => other,
    }
}

/// Starts the thread that writes, beside the passes. What came meanwhile is written as one: only the newest counts.
/// [`Event::Kept`] says what became of it, and what failed may be sent again.
pub(crate) fn start(disk: Disk, events: mpsc::Sender<Event>) -> std_mpsc::Sender<Arc<HostConfig>> {
    let (configs, queue) = std_mpsc::channel();
    thread::Builder::new()
        .name("config".to_owned())
        .spawn(move || serve(&mut KeptConfig::new(disk), &queue, &events))
        .expect("a process may start a thread");
    configs
}

fn serve(
    kept: &mut KeptConfig,
    queue: &std_mpsc::Receiver<Arc<HostConfig>>,
    events: &mpsc::Sender<Event>,
) {
    while let Ok(first) = queue.recv() {
        let config = queue.try_iter().last().unwrap_or(first);
        let saved = kept.save(&config);
        let failed = saved.is_err();
        let told = saved.map(|()| config.generation).map_err(|error| {
            error!(%error, "Keeping the configuration failed");
            error.to_string()
        });
        if events.blocking_send(Event::Kept(told)).is_err() {
            return;
        }
        match failed {
            true => thread::sleep(RETRY),
            false => kept.shorten(),
        }
    }
}

/// The two files, with one writer.
#[derive(Debug)]
struct KeptConfig {
    disk: Disk,
    /// None where it is not known what is there: then all is written.
    there: Option<There>,
}

#[derive(Debug)]
struct There {
    config: Arc<HostConfig>,
    /// Of the file that has all of it.
    digest: FileDigest,
    /// None before the first of them.
    changes: Option<File>,
    changes_bytes: u64,
}

impl KeptConfig {
    fn new(disk: Disk) -> Self {
        Self { disk, there: None }
    }

    /// On return it is on the disk.
    fn save(&mut self, config: &Arc<HostConfig>) -> Result<(), StateError> {
        let Some(mut there) = self.there.take() else {
            return self.save_whole(config);
        };
        if !Arc::ptr_eq(&there.config, config) {
            let added = there.add(&self.disk, config);
            added.map_err(|source| self.disk.failed("writing", CHANGES, source))?;
        }
        self.there = Some(there);
        Ok(())
    }

    fn save_whole(&mut self, config: &Arc<HostConfig>) -> Result<(), StateError> {
        self.there = None;
        let digest = self.disk.save_with_digest(WHOLE, config)?;
        // They mean nothing any more; if they cannot be removed the next are written in their place.
        drop(std::fs::remove_file(self.disk.path(CHANGES)));
        self.there = Some(There {
            config: Arc::clone(config),
            digest,
            changes: None,
            changes_bytes: 0,
        });
        Ok(())
    }

    /// Makes one of many changes. What fails leaves what there is.
    fn shorten(&mut self) {
        let long = self.there.as_ref();
        let long = long.filter(|there| there.changes_bytes > MOST_BYTES);
        let Some(config) = long.map(|there| Arc::clone(&there.config)) else {
            return;
        };
        if let Err(error) = self.save_whole(&config) {
            warn!(%error, "Making one of many changes of the configuration failed");
        }
    }
}

impl There {
    fn add(&mut self, disk: &Disk, config: &Arc<HostConfig>) -> io::Result<()> {
        let record = record(&HostChange::between(&self.config, config));
        match &mut self.changes {
            Some(file) => {
                file.write_all(&record)?;
                file.sync_data()?;
            }
            None => {
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(disk.path(CHANGES))?;
                let file = self.changes.insert(file);
                file.write_all(&[&header(self.digest)[..], &record].concat())?;
                file.sync_all()?;
                disk.sync()?;
            }
        }
        self.changes_bytes += record.len() as u64;
        self.config = Arc::clone(config);
        Ok(())
    }
}

fn header(digest: FileDigest) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let (named, crc) = header.split_at_mut(HEADER_BYTES - 4);
    named[..MAGIC.len()].copy_from_slice(MAGIC);
    named[MAGIC.len()..].copy_from_slice(&digest.0);
    crc.copy_from_slice(&crc32c::crc32c(named).to_le_bytes());
    header
}

fn record(change: &HostChange) -> Vec<u8> {
    let json = serde_json::to_vec(change).expect("our own types become JSON");
    let length = u32::try_from(json.len()).expect("a change is smaller than what gRPC carries");
    let mut record = Vec::with_capacity(RECORD_HEADER_BYTES + json.len());
    record.extend(length.to_le_bytes());
    record.extend(crc32c::crc32c(&json).to_le_bytes());
    record.extend(crc32c::crc32c(&record).to_le_bytes());
    record.extend(json);
    record
}

fn read(disk: &Disk) -> Result<Option<HostConfig>, StateError> {
    let Some((mut config, digest)) = disk.load_with_digest::<HostConfig>(WHOLE)? else {
        return Ok(None);
    };
    let bytes = disk.read(CHANGES)?.unwrap_or_default();
    let changes = changes(&bytes, digest).map_err(|at| {
        disk.damaged(
            CHANGES,
            format!("byte {at} begins no change, and others follow"),
        )
    })?;
    for json in changes {
        let change: HostChange =
            serde_json::from_slice(json).map_err(|error| disk.damaged(CHANGES, error))?;
        let changed = change.apply(Some(&config));
        config = changed.map_err(|error| disk.damaged(CHANGES, error))?;
    }
    Ok(Some(config))
}

/// The changes in a file, if they are of the configuration that has this digest. Else where it is damaged.
fn changes(bytes: &[u8], digest: FileDigest) -> Result<Vec<&[u8]>, usize> {
    let begins = bytes.split_at_checked(HEADER_BYTES);
    let begins = begins.filter(|(header, _)| {
        let (named, crc) = header.split_at(HEADER_BYTES - 4);
        named.starts_with(MAGIC) && crc == crc32c::crc32c(named).to_le_bytes()
    });
    let Some((found, mut rest)) = begins else {
        return match has_record(bytes) {
            true => Err(0),
            false => Ok(Vec::new()),
        };
    };
    if found != header(digest) {
        return Ok(Vec::new());
    }
    let mut changes = Vec::new();
    while !rest.is_empty() {
        match split_record(rest) {
            Some((json, after)) => {
                changes.push(json);
                rest = after;
            }
            None if rest.len() > 1 && has_record(&rest[1..]) => {
                return Err(bytes.len() - rest.len());
            }
            None => break,
        }
    }
    Ok(changes)
}

/// True if a whole record begins anywhere.
fn has_record(bytes: &[u8]) -> bool {
    (0..bytes.len()).any(|at| split_record(&bytes[at..]).is_some())
}

/// The change at the beginning, and what follows it.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_at_checked(RECORD_HEADER_BYTES)?;
    let word = |at: usize| header[at..at + 4].try_into().map(u32::from_le_bytes);
    let (length, crc, own) = (word(0).ok()?, word(4).ok()?, word(8).ok()?);
    if own != crc32c::crc32c(&header[..8]) {
        return None;
    }
    let (json, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    (crc == crc32c::crc32c(json)).then_some((json, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{
        Asn, BgpConfig, Encoding, Generation, HostId, Mtu, Stack, SubnetId, Underlay, Vni, VpcId,
    };
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::PathBuf;

    /// VPCs by number, each with a VNI.
    type Vpcs = BTreeMap<u64, u32>;

    fn config(generation: u64, vpcs: &Vpcs, before: Option<&HostConfig>) -> Arc<HostConfig> {
        let stack = |(vpc, vni): (&u64, &u32)| {
            let stack = Arc::new(Stack {
                vpc: VpcId::from_random(*vpc),
                name: format!("v{vpc}"),
                vni: Vni::new(*vni).unwrap(),
                encoding: Encoding::VlanBased,
                unknown_neighbours: Default::default(),
                segments: Vec::new(),
                ports: Vec::new(),
            });
            let mut shared = before.into_iter().flat_map(|before| &before.stacks);
            shared
                .find(|held| **held == stack)
                .cloned()
                .unwrap_or(stack)
        };
        let members = vpcs.iter().map(|(vpc, vni)| {
            let vtep = [100, 64, 0, *vni as u8].into();
            (SubnetId::from_random(*vpc), BTreeSet::from([vtep]))
        });
        Arc::new(HostConfig {
            host: HostId::from_random(1),
            generation: Generation(generation),
            underlay: Underlay {
                address: [100, 64, 0, 1].into(),
                mtu: Mtu::new(1500).unwrap(),
            },
            bgp: BgpConfig {
                asn: Asn::new(65_000).unwrap(),
                reflectors: Vec::new(),
                speaker: Default::default(),
            },
            stacks: vpcs.iter().map(stack).collect(),
            routers: Vec::new(),
            voting: None,
            members: members.collect(),
            standby_for: BTreeMap::new(),
            storage: Default::default(),
        })
    }

    /// Each follows from the one before it.
    fn chain(of: &[Vpcs]) -> Vec<Arc<HostConfig>> {
        let mut chain: Vec<Arc<HostConfig>> = Vec::new();
        for (vpcs, generation) in of.iter().zip(7..) {
            let last = chain.last().map(Arc::as_ref);
            chain.push(config(generation, vpcs, last));
        }
        chain
    }

    struct Place {
        dir: tempfile::TempDir,
        disk: Disk,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        Place { dir, disk }
    }

    impl Place {
        fn changes(&self) -> PathBuf {
            self.dir.path().join(CHANGES)
        }

        fn read(&self) -> Result<Option<HostConfig>, StateError> {
            read(&self.disk)
        }
    }

    /// Four generations on disk, the first whole; how long the file of changes was with each.
    fn four(place: &Place) -> (Vec<Arc<HostConfig>>, Vec<usize>) {
        let chain = chain(&[
            Vpcs::from([(1, 10), (2, 10)]),
            Vpcs::from([(1, 10), (2, 11)]),
            Vpcs::from([(2, 11)]),
            Vpcs::from([(2, 11), (3, 10)]),
        ]);
        let mut kept = KeptConfig::new(place.disk.clone());
        let length = |config| {
            kept.save(config).unwrap();
            fs::read(place.changes()).map_or(0, |bytes| bytes.len())
        };
        let lengths = chain.iter().map(length).collect();
        (chain, lengths)
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_kept_last(
            of in proptest::collection::vec(
                (proptest::collection::btree_map(1_u64..6, 10_u32..13, 0..5), 0_u8..5),
                1..12,
            ),
        ) {
            let place = place();
            let (vpcs, starts): (Vec<Vpcs>, Vec<u8>) = of.into_iter().unzip();
            let mut kept = KeptConfig::new(place.disk.clone());
            for (config, start) in chain(&vpcs).iter().zip(starts) {
                if start == 0 {
                    kept = KeptConfig::new(place.disk.clone());
                }
                kept.save(config).unwrap();
                let read = place.read().unwrap().unwrap();
                prop_assert_eq!(&read, config.as_ref());
            }
        }
    }

    #[test]
    fn a_torn_tail_was_never_kept() {
        let place = place();
        let (chain, lengths) = four(&place);
        let whole = fs::read(place.changes()).unwrap();
        for cut in 0..=whole.len() {
            // Nothing of the rest, or the room for it.
            for fill in [0, whole.len() - cut] {
                fs::write(place.changes(), [&whole[..cut], &vec![0; fill]].concat()).unwrap();
                let kept = lengths.iter().rposition(|length| *length <= cut).unwrap();
                let read = place.read().unwrap().unwrap();
                assert_eq!(read, *chain[kept], "cut at {cut}, then {fill} zeros");
            }
        }
    }

    #[test]
    fn damage_is_not_taken_for_a_torn_tail() {
        let place = place();
        let (chain, lengths) = four(&place);
        let whole = fs::read(place.changes()).unwrap();
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1;
            fs::write(place.changes(), &bad).unwrap();
            match place.read() {
                Err(StateError::Damaged { .. }) => assert!(at < lengths[2], "{at}"),
                // The last may not have been kept, for all that can be seen.
                other => {
                    assert!(at >= lengths[2], "{at}");
                    assert_eq!(other.unwrap().unwrap(), *chain[2], "{at}");
                }
            }
        }
        let mut bad = whole;
        bad[lengths[1]] ^= 1;
        fs::write(place.changes(), &bad).unwrap();
        assert_eq!(load(&place.disk).unwrap(), None);
        for name in [WHOLE, CHANGES] {
            assert!(place.dir.path().join(format!("{name}.damaged-0")).exists());
            assert!(!place.dir.path().join(name).exists());
        }
    }

    #[test]
    fn changes_of_another_file_mean_nothing() {
        let place = place();
        let (chain, _) = four(&place);
        let old = fs::read(place.changes()).unwrap();
        let next = config(100, &Vpcs::new(), None);
        let mut kept = KeptConfig::new(place.disk.clone());
        kept.save(&next).unwrap();
        assert!(!place.changes().exists());
        fs::write(place.changes(), &old).unwrap();
        assert_eq!(place.read().unwrap().unwrap(), *next);
        // And the next change takes their place.
        let last = config(101, &Vpcs::from([(4, 10)]), Some(&chain[0]));
        kept.save(&last).unwrap();
        assert_eq!(place.read().unwrap().unwrap(), *last);
    }

    #[test]
    fn after_a_failed_write_all_of_it_is_written() {
        let place = place();
        let chain = chain(&[Vpcs::new(), Vpcs::from([(1, 10)]), Vpcs::from([(1, 11)])]);
        let mut kept = KeptConfig::new(place.disk.clone());
        kept.save(&chain[0]).unwrap();
        fs::create_dir(place.changes()).unwrap();
        let error = kept.save(&chain[1]).unwrap_err().to_string();
        assert!(error.starts_with("writing "), "{error}");
        fs::remove_dir(place.changes()).unwrap();
        assert_eq!(place.read().unwrap().unwrap(), *chain[0]);
        for (config, has_changes) in chain[1..].iter().zip([false, true]) {
            kept.save(config).unwrap();
            assert_eq!(place.read().unwrap().unwrap(), **config);
            assert_eq!(place.changes().exists(), has_changes);
        }
    }

    #[test]
    fn many_changes_become_one_file() {
        let place = place();
        let first = config(1, &Vpcs::from([(1, 10)]), None);
        let mut large = HostConfig::clone(&config(2, &Vpcs::from([(1, 10)]), Some(&first)));
        let stack = Arc::make_mut(&mut large.stacks[0]);
        stack.name = "v".repeat(usize::try_from(MOST_BYTES).unwrap());
        let mut kept = KeptConfig::new(place.disk.clone());
        let large = Arc::new(large);
        for config in [&first, &large] {
            kept.save(config).unwrap();
            kept.shorten();
        }
        assert!(!place.changes().exists());
        assert_eq!(place.read().unwrap().unwrap(), *large);
        let last = config(3, &Vpcs::from([(1, 11)]), None);
        kept.save(&last).unwrap();
        kept.shorten();
        assert!(place.changes().exists());
        assert_eq!(place.read().unwrap().unwrap(), *last);
    }
}
