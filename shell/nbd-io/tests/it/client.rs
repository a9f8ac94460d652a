//! Our client, with nbdkit, qemu-nbd and our own server.

use crate::rig::{LIMIT, MIB, Rig, foreign, pattern};
use bytes::Bytes;
use nbd::wire::{StateFlags, TransmissionFlags};
use nbd::{ClientConfig, Errno, Failure, Unsendable};
use nbd_io::{Client, ConnectError, Pool, RequestError, Target, Zeroes};
use std::fs::File;
use std::path::Path;

fn config(export: &str) -> ClientConfig {
    ClientConfig {
        export: export.to_owned(),
        tls: false,
        allocation: true,
    }
}

async fn connect(socket: &Path, export: &str) -> Result<Client, ConnectError> {
    let target = Target::Unix(socket.to_owned());
    Client::connect(&target, config(export), None, Pool::default()).await
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

const HOLE: Zeroes = Zeroes {
    fua: false,
    no_hole: false,
    fast: false,
};

/// Everything that an export of 4 MiB of zeroes can be asked.
async fn exercise(client: Client) {
    let data = Bytes::from(pattern(300_000));
    client.write(MIB - 1000, data.clone(), false).await.unwrap();
    let writes = (0..64_u64).map(|n| {
        let bytes = data.slice(n as usize * 512..(n as usize + 1) * 512);
        client.write(2 * MIB + n * 512, bytes, n % 2 == 0)
    });
    for result in futures::future::join_all(writes).await {
        result.unwrap();
    }
    client.flush().await.unwrap();
    let read = client.read(MIB - 2000, 302_000).await.unwrap();
    assert!(read[..1000].iter().all(|byte| *byte == 0));
    assert!(read[1000..301_000] == data[..] && read[301_000..].iter().all(|byte| *byte == 0));
    let reads = (0..64_u64).map(|n| client.read(2 * MIB + n * 512, 512));
    for (n, result) in futures::future::join_all(reads)
        .await
        .into_iter()
        .enumerate()
    {
        assert!(result.unwrap()[..] == data[n * 512..(n + 1) * 512]);
    }
    client.write_zeroes(MIB, 65536, HOLE).await.unwrap();
    assert!(
        client
            .read(MIB, 65536)
            .await
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
    client.trim(2 * MIB, 32768, false).await.unwrap();
    if client
        .export()
        .flags
        .contains(TransmissionFlags::SEND_CACHE)
    {
        client.cache(0, 4096).await.unwrap();
    }
    if client.export().allocation.is_some() {
        let extents = client.status(3 * MIB, MIB as u32, false).await.unwrap();
        assert!(extents[0].1.contains(StateFlags::ZERO), "{extents:?}");
        let one = client.status(MIB - 1000, 1000, true).await.unwrap();
        assert_eq!(one.len(), 1);
    }
    let over = client.read(4 * MIB, 1).await.unwrap_err();
    assert!(matches!(
        over,
        RequestError::Unsendable(Unsendable::OutOfRange { .. })
    ));
}

#[test]
fn nbdkit_serves_it() {
    let dir = tempfile::tempdir().unwrap();
    for (name, extra) in [
        ("all", &[][..]),
        ("simple", &["--no-sr"]),
        ("old", &["--mask-handshake=1"]),
    ] {
        let socket = dir.path().join(name);
        let place = socket.to_str().unwrap().to_owned();
        let args = [&["-f", "-U", &place], extra, &["memory", "4M"]].concat();
        let _server = foreign("nbdkit", &args, &socket);
        runtime().block_on(async {
            let client = connect(&socket, "").await.unwrap();
            assert_eq!(client.export().structured, name != "simple");
            exercise(client).await;
        });
    }
}

#[test]
fn qemu_nbd_serves_it() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, file) = (dir.path().join("socket"), dir.path().join("file"));
    File::create(&file).unwrap().set_len(4 * MIB).unwrap();
    let (place, file) = (socket.to_str().unwrap(), file.to_str().unwrap());
    let args = [
        "-f",
        "raw",
        "-t",
        "-e",
        "4",
        "-x",
        "it",
        "--discard=unmap",
        "-k",
        place,
        file,
    ];
    let _server = foreign("qemu-nbd", &args, &socket);
    runtime().block_on(async {
        exercise(connect(&socket, "it").await.unwrap()).await;
        let none = connect(&socket, "other").await.unwrap_err();
        assert!(none.to_string().contains("UnknownExport"), "{none}");
    });
}

#[test]
fn our_own_server_serves_it() {
    let rig = Rig::new(4 * MIB);
    runtime().block_on(async {
        exercise(connect(&rig.socket, "disk").await.unwrap()).await;
        let locked = connect(&rig.socket, "locked").await.unwrap();
        let refused = locked.write(0, Bytes::from_static(b"x"), false).await;
        assert_eq!(refused, Err(RequestError::Unsendable(Unsendable::ReadOnly)));
        let blocks = connect(&rig.socket, "blocks").await.unwrap();
        let unaligned = blocks.read(512, 512).await.unwrap_err();
        assert!(matches!(
            unaligned,
            RequestError::Unsendable(Unsendable::Unaligned { .. })
        ));
    });
}

#[test]
fn what_the_device_says_of_a_failure_is_heard() {
    let rig = Rig::new(MIB);
    let failure = Failure {
        errno: Errno::Io,
        message: "all copies of this block are bad".into(),
        offset: Some(8192),
    };
    rig.control.fail(4096, failure.clone());
    let none = Failure::new(Errno::NotSupported, "no faster");
    rig.control.fail(65536, none.clone());
    runtime().block_on(async {
        let client = connect(&rig.socket, "disk").await.unwrap();
        let failed = client.read(4096, 8192).await.unwrap_err();
        assert_eq!(failed, RequestError::Failed(failure));
        let fast = Zeroes { fast: true, ..HOLE };
        let slow = client.write_zeroes(65536, 4096, fast).await;
        assert_eq!(slow, Err(RequestError::Failed(none)));
        client.read(0, 4096).await.unwrap();
    });
}

#[test]
fn whoever_waits_hears_that_the_connection_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let place = socket.to_str().unwrap();
    let args = [
        "-f",
        "-U",
        place,
        "--filter=delay",
        "memory",
        "4M",
        "rdelay=1000",
    ];
    let server = foreign("nbdkit", &args, &socket);
    runtime().block_on(async {
        let client = connect(&socket, "").await.unwrap();
        let reads = (0..8).map(|n| client.read(n * 4096, 4096));
        let mut reads = std::pin::pin!(futures::future::join_all(reads));
        // They are sent when a write, which comes behind them, is answered.
        let sent = client.write(0, Bytes::from_static(b"x"), false);
        tokio::select! {
            biased;
            _ = &mut reads => panic!("the reads are slow"),
            written = sent => written.unwrap(),
        }
        drop(server);
        for read in tokio::time::timeout(LIMIT, reads).await.unwrap() {
            assert_eq!(read.unwrap_err(), RequestError::Lost);
        }
        assert_eq!(client.flush().await, Err(RequestError::Lost));
    });
}

#[test]
fn what_is_no_server_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let place = socket.to_str().unwrap();
    let _old = foreign(
        "nbdkit",
        &["-f", "-o", "-U", place, "memory", "4M"],
        &socket,
    );
    runtime().block_on(async {
        let old = connect(&socket, "").await.unwrap_err();
        assert!(old.to_string().contains("no NBD server"), "{old}");
        let none = connect(&dir.path().join("nothing"), "").await.unwrap_err();
        assert!(matches!(none, ConnectError::Connect { .. }));
    });
}
