//! What is opened and what is not: superblocks, other disks and formats, maps.

use crate::disk::Disk;
use crate::faults::{V, reopened, world, write};
use crate::machine::{IDENTITY, open};
use crate::rng::Rng;
use crate::world::World;
use blocks::format::layout::SUPERBLOCK_STRIDE;
use blocks::{BLOCK_BYTES, Identity, Io, OpenError, Opening, Refused, VolumeId};

#[test]
fn superblocks() {
    let mut world = world();
    write(&mut world, 1);
    world.commit(V, 1);
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    let whole = world.disk.clone();
    let open_without = |copies: &[u64], world: &World| {
        let mut disk = whole.clone();
        let mut rng = Rng(1);
        copies
            .iter()
            .for_each(|copy| disk.corrupt(copy * SUPERBLOCK_STRIDE, &mut rng));
        open(&mut disk, world.bytes, &mut Rng(1)).map(|(store, recovered)| {
            let applied = store.volume(V).map(|info| info.applied);
            (applied, recovered.superblocks)
        })
    };
    // The checkpoint was number 2: copies 0 and 2 are the new ones.
    assert_eq!(open_without(&[], &world), Ok((Some(1), 4)));
    assert_eq!(open_without(&[0], &world), Ok((Some(1), 3)));
    assert_eq!(open_without(&[2, 1, 3], &world), Ok((Some(1), 1)));
    // No batch came after it: the old ones and the log say as much.
    assert_eq!(open_without(&[0, 2], &world), Ok((Some(1), 2)));
    let none = open_without(&[0, 1, 2, 3], &world);
    assert!(
        matches!(
            none,
            Err(OpenError::NoSuperblock { .. } | OpenError::Version { .. })
        ),
        "{none:?}"
    );

    write(&mut world, 2);
    let mut disk = world.disk.clone();
    [0, 2]
        .iter()
        .for_each(|copy| disk.corrupt(copy * SUPERBLOCK_STRIDE, &mut Rng(1)));
    let stale = open(&mut disk, world.bytes, &mut Rng(1)).map(|_| ());
    assert_eq!(stale, Err(OpenError::Stale { found: 1, known: 2 }));
}

#[test]
fn a_disk_that_is_not_the_one() {
    let world = world();
    let opened = |identity, bytes, mut disk: Disk| {
        let mut opening = Opening::new(identity, bytes);
        while let Some((token, io)) = opening.poll_io() {
            let Io::Read { at, blocks } = io else {
                panic!("only reads until it is known whose disk it is");
            };
            let data = disk.read(at, blocks).expect("it can be read");
            opening.handle_done(token, blocks::Done::Read(data));
            disk.unreadable.clear();
            if opening.is_finished() {
                break;
            }
        }
        opening.finish().expect("it is finished").map(|_| ())
    };
    let other = Identity {
        host: 2,
        ..IDENTITY
    };
    let error = opened(other, world.bytes, world.disk.clone());
    let message = error.expect_err("another host's").to_string();
    assert!(
        message.contains("host 00000000000000000000000000000001") && message.contains("and not"),
        "{message}"
    );
    let empty = opened(IDENTITY, world.bytes, Disk::default());
    assert_eq!(empty, Err(OpenError::NotFormatted));
    assert_eq!(
        opened(IDENTITY, 0, Disk::default()),
        Err(OpenError::NotFormatted)
    );
    let small = opened(IDENTITY, world.bytes / 2, world.disk.clone());
    assert!(matches!(small, Err(OpenError::Small { .. })), "{small:?}");
}

#[test]
fn another_format_is_told_as_that() {
    let world = world();
    for (at, what) in [(12, "format 9"), (16, "features 0x9")] {
        let mut disk = world.disk.clone();
        for copy in 0..4 {
            let mut page = disk.current(copy * SUPERBLOCK_STRIDE);
            page.0[at] = 9;
            let crc = crc32c::crc32c(&page.0[12..]);
            page.0[8..12].copy_from_slice(&crc.to_le_bytes());
            let buffer = blocks::Buffer::from_pages(vec![page]);
            disk.write(copy * SUPERBLOCK_STRIDE * BLOCK_BYTES as u64, &[buffer]);
        }
        let error = open(&mut disk, world.bytes, &mut Rng(1))
            .map(|_| ())
            .expect_err("it is unknown");
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_damaged_map_takes_one_volume_with_it() {
    let mut world = world();
    let other = VolumeId::new(8);
    world.create(other, 10).expect("there is room");
    write(&mut world, 1);
    world.commit(V, 1);
    world.store.checkpoint();
    world.settle(&mut Rng(1));
    let map = world.store.layout().page_at(0) / BLOCK_BYTES as u64;
    let of_volume = |block: &u64| {
        let page = world.disk.current(*block);
        page.0[..4] == *b"vpcM" && page.0[4] == 1 && page.0[24] == 7
    };
    let leaf = world
        .disk
        .written()
        .into_iter()
        .filter(|block| *block >= map)
        .find(of_volume);
    world
        .disk
        .corrupt(leaf.expect("it has a leaf"), &mut Rng(2));
    let recovered = reopened(&mut world);
    let [(broken, why)] = &recovered.broken[..] else {
        panic!("{recovered:?}");
    };
    assert!(*broken == V && why.contains("is damaged"), "{why}");
    assert!(matches!(
        world.store.read(V, 0, 1),
        Err(Refused::Broken { .. })
    ));
    world
        .store
        .read(other, 0, 1)
        .expect("the other one is whole");
    world.store.delete(V).expect("that is how it ends");
    world.store.create(V, 200).expect("there is room");
}
